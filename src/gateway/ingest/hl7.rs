//! Where an HL7 v2 message begins: the same rule for every door. Pure.
//!
//! Real senders put a byte order mark, line ends, spaces, or the start byte of MLLP before the name of the first
//! segment. All of them are skipped when reading, in any order; the stored bytes stay as they came.

/// Start byte of an MLLP frame: VT.
const FRAME_START: u8 = 0x0b;
/// The byte order mark of UTF-8.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// What a body begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Beginning {
    /// One message: MSH, at this offset.
    Message(usize),
    /// A file or a batch of messages: FHS or BHS.
    Batch,
    /// No HL7 v2.
    Other,
}

impl Beginning {
    /// Checks the first bytes; a segment's name counts only if a delimiter follows it.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        let mut rest = bytes;
        loop {
            rest = match rest {
                [b'\r' | b'\n' | b' ' | FRAME_START, more @ ..] => more,
                _ => match rest.strip_prefix(BYTE_ORDER_MARK) {
                    Some(more) => more,
                    None => break,
                },
            };
        }
        match rest {
            [a, b, c, delimiter, ..] if delimiter.is_ascii_punctuation() => match &[*a, *b, *c] {
                b"MSH" => Self::Message(bytes.len() - rest.len()),
                b"FHS" | b"BHS" => Self::Batch,
                _ => Self::Other,
            },
            _ => Self::Other,
        }
    }
}

/// Whether a byte may be skipped before a message.
#[must_use]
pub fn may_precede(byte: u8) -> bool {
    matches!(byte, b'\r' | b'\n' | b' ' | FRAME_START) || BYTE_ORDER_MARK.contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_senders_leave_before_a_message_is_passed_over() {
        for before in
            ["", "\r\n", "\n \r", "\u{feff}", "\u{feff}\r\n", "\r\n\u{feff}", "\u{b}", "\u{b}\u{feff} \n"]
        {
            let message = format!("{before}MSH|^~\\&|A");
            assert_eq!(Beginning::of(message.as_bytes()), Beginning::Message(before.len()), "{message:?}");
            for name in ["FHS", "BHS"] {
                let batch = format!("{before}{name}|^~\\&|A");
                assert_eq!(Beginning::of(batch.as_bytes()), Beginning::Batch, "{batch:?}");
            }
        }
    }

    #[test]
    fn other_beginnings_are_no_message() {
        for other in [
            "", "\r", "\u{feff}", "MSH", "MSHA", "MSH\r", "msh|", "PID|1", "xMSH|", "\tMSH|", "FHS", "BHSx",
            "<MSH|",
        ] {
            assert_eq!(Beginning::of(other.as_bytes()), Beginning::Other, "{other:?}");
        }
    }

    /// What may stand before a message, and bytes of it.
    fn beginnings() -> impl Strategy<Value = Vec<u8>> {
        let part = prop_oneof![
            6 => proptest::sample::select(vec![&b"\r"[..], b"\n", b" ", b"\x0b", BYTE_ORDER_MARK]).prop_map(<[u8]>::to_vec),
            1 => proptest::collection::vec(any::<u8>(), 1..3),
        ];
        proptest::collection::vec(part, 0..8).prop_map(|parts| parts.concat())
    }

    proptest! {
        #![proptest_config(crate::seeds::kept())]

        #[test]
        fn the_offset_is_where_the_name_begins(bytes in beginnings()) {
            for given in [bytes.clone(), [&bytes[..], b"MSH|"].concat()] {
                if let Beginning::Message(at) = Beginning::of(&given) {
                    prop_assert!(given[at..].starts_with(b"MSH"));
                    prop_assert!(given[..at].iter().all(|byte| may_precede(*byte)));
                }
            }
        }
    }
}
