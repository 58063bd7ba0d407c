//! The limits of the wire: what a transaction may be so that MQTT, a broker and a hub take it.
//!
//! One place for all: doors refuse what is beyond them before acceptance, the outbox stores nothing beyond them, and a hub's
//! parser refuses the same. A transaction that was accepted can thus always be delivered: one that no broker takes would
//! stall its lane.

/// Largest packet of MQTT besides its fixed header, bytes (MQTT 5 §1.5.5).
pub const PACKET_BYTES: u64 = 268_435_455;
/// Most bytes that a transaction's packet has besides its body: topic, properties and their lengths.
pub const ENVELOPE_BYTES: u64 = 16 * 1024;
/// Largest body.
pub const BODY_BYTES: u64 = PACKET_BYTES - ENVELOPE_BYTES;
/// Longest name of an attribute, bytes (CloudEvents 1.0, "Naming Conventions").
pub const NAME_BYTES: usize = 20;
/// Longest value of an attribute that a hub takes, bytes. Every [`Text`] is shorter: a newer gateway may allow more, and a hub
/// need not know. MQTT itself would carry 65,535.
pub const TEXT_BYTES: usize = 2048;
/// Most bytes of all attributes together, names and the lengths before them included.
pub const ATTRIBUTES_BYTES: usize = 15 * 1024;
/// Most ranges of a lane that an answer names as lost for good.
pub const LOST_RANGES: usize = 64;

/// A text of the envelope whose value comes from outside: from a sender, or from the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Text {
    /// `type`.
    EventType,
    /// `datacontenttype`, the MQTT Content Type.
    ContentType,
    /// `sender`.
    Sender,
    /// `senderkey`; the limit also counts for a key that does not go on the wire.
    Key,
    /// `correlationid`.
    CorrelationId,
    /// `traceparent`.
    TraceParent,
}

impl Text {
    /// Most bytes.
    #[must_use]
    pub const fn most_bytes(self) -> usize {
        match self {
            // HL7 2.7 allows 199 characters in MSH-10; UUIDs and URLs fit as well.
            Self::EventType | Self::ContentType | Self::Key | Self::CorrelationId => 256,
            // MSH-3 and MSH-4 of 227 characters each (HL7 2.5), some of them percent-encoded. A line of the quarantine, at most
            // 1,024 bytes, still holds it beside the door and the address.
            Self::Sender => 960,
            // 55 in version 00 of W3C Trace Context.
            Self::TraceParent => 64,
        }
    }

    /// What it is called in an error.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::EventType => "type",
            Self::ContentType => "content type",
            Self::Sender => "sender",
            Self::Key => "key",
            Self::CorrelationId => "correlation id",
            Self::TraceParent => "trace parent",
        }
    }

    /// Checks a value.
    ///
    /// # Errors
    /// [`TextError`]; it holds nothing of the value.
    pub fn check(self, value: &str) -> Result<(), TextError> {
        if value.len() > self.most_bytes() {
            return Err(TextError::TooLong { text: self, bytes: value.len() });
        }
        if is_carried(value) { Ok(()) } else { Err(TextError::Character(self)) }
    }
}

/// Why a text cannot be carried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TextError {
    /// Beyond its limit.
    #[error("the {} has {bytes} bytes, more than the limit of {}", text.name(), text.most_bytes())]
    TooLong {
        /// Which.
        text: Text,
        /// Its size.
        bytes: usize,
    },
    /// It holds a character that MQTT and CloudEvents forbid.
    #[error("the {} holds a control character, or one that is none in Unicode", .0.name())]
    Character(Text),
}

impl TextError {
    /// Which text.
    #[must_use]
    pub const fn text(self) -> Text {
        match self {
            Self::TooLong { text, .. } | Self::Character(text) => text,
        }
    }
}

/// Whether every character may stand in a text of MQTT and in an attribute of CloudEvents: no control character and none of
/// Unicode's noncharacters. MQTT forbids only U+0000, but a broker may end the connection for the others (MQTT 5 §1.5.4), and
/// Mosquitto does.
#[must_use]
pub fn is_carried(text: &str) -> bool {
    let is_none = |c: char| {
        let code = u32::from(c);
        (0xfdd0..=0xfdef).contains(&code) || code & 0xfffe == 0xfffe
    };
    text.bytes().all(|byte| matches!(byte, b' '..=b'~'))
        || !text.chars().any(|c| c.is_control() || is_none(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Text; 6] =
        [Text::EventType, Text::ContentType, Text::Sender, Text::Key, Text::CorrelationId, Text::TraceParent];

    #[test]
    fn a_text_fits_up_to_its_limit_and_not_beyond() {
        for text in ALL {
            let most = "x".repeat(text.most_bytes());
            assert_eq!(text.check(&most), Ok(()));
            let error = text.check(&format!("{most}x")).unwrap_err();
            assert_eq!(error, TextError::TooLong { text, bytes: text.most_bytes() + 1 });
            assert_eq!(error.text(), text);
            assert!(error.to_string().contains(text.name()), "{error}");
            assert!(text.most_bytes() < TEXT_BYTES && text.check("").is_ok());
        }
    }

    #[test]
    fn characters_that_a_broker_refuses_are_not_carried() {
        for good in ["", "a b~", "Müller", "\u{a0}", "\u{fdcf}\u{fdf0}\u{fffd}", "\u{1f300}"] {
            assert!(is_carried(good), "{good:?}");
        }
        for bad in [
            "\0",
            "\t",
            "a\n",
            "\u{1f}",
            "\u{7f}",
            "\u{80}",
            "\u{9f}",
            "\u{fdd0}",
            "\u{fdef}",
            "\u{fffe}",
            "\u{ffff}",
            "x\u{1ffff}",
            "\u{10fffe}",
        ] {
            assert!(!is_carried(bad), "{bad:?}");
            assert_eq!(Text::Key.check(bad), Err(TextError::Character(Text::Key)));
        }
    }
}
