//! CloudEvents `type` of a transaction: a prefix and a suffix of the configuration around what a door calls it, or what the
//! sender has given. Pure.
//!
//! The whole type is made when a transaction is accepted. It is part of the record, and no later configuration changes it.

use pgw_core::wire::limits::{Text, TextError};

/// Longest prefix, bytes.
pub const PREFIX_BYTES: usize = 128;
/// Longest name that a door makes, bytes: `fhir.` and 64 characters of an event are 69.
pub(crate) const NAME_BYTES: usize = 72;
/// Longest suffix, bytes.
pub const SUFFIX_BYTES: usize = 56;

const _: () = assert!(
    PREFIX_BYTES + NAME_BYTES + SUFFIX_BYTES <= Text::EventType.most_bytes(),
    "every type can be sent"
);

/// The type of a submission.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EventType {
    /// The door has named it, for example `hl7v2.oru_r01`: prefix and suffix are put around it.
    Named(String),
    /// The sender or a person has given it: it stays as it is.
    Given(String),
}

impl EventType {
    /// Without prefix and suffix.
    #[must_use]
    pub fn text(&self) -> &str {
        let (Self::Named(text) | Self::Given(text)) = self;
        text
    }

    /// Whether the wire can carry it, with the longest prefix and suffix.
    pub(crate) fn check(&self) -> Result<(), TextError> {
        let text = self.text();
        if matches!(self, Self::Named(_)) && text.len() > NAME_BYTES {
            let bytes = PREFIX_BYTES + text.len() + SUFFIX_BYTES;
            return Err(TextError::TooLong { text: Text::EventType, bytes });
        }
        Text::EventType.check(text)
    }
}

/// What is put around the names that doors make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TypeAffixes {
    prefix: String,
    suffix: String,
}

impl Default for TypeAffixes {
    /// `org.practice-gateway.` and `.v1`.
    fn default() -> Self {
        Self { prefix: String::from("org.practice-gateway."), suffix: String::from(".v1") }
    }
}

impl TypeAffixes {
    /// Others; `None` unless [`is_prefix`] and [`is_suffix`] hold.
    #[must_use]
    pub fn new(prefix: &str, suffix: &str) -> Option<Self> {
        let allowed = is_prefix(prefix) && is_suffix(suffix);
        allowed.then(|| Self { prefix: prefix.to_owned(), suffix: suffix.to_owned() })
    }

    /// What stands before a name.
    #[must_use]
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// What stands behind a name.
    #[must_use]
    pub fn suffix(&self) -> &str {
        &self.suffix
    }

    /// The whole type: `org.practice-gateway.hl7v2.oru_r01.v1`.
    #[must_use]
    pub fn whole(&self, event_type: EventType) -> String {
        match event_type {
            EventType::Named(name) => [self.prefix.as_str(), &name, &self.suffix].concat(),
            EventType::Given(text) => text,
        }
    }
}

/// Whether a text can be a prefix: a reversed domain name with a dot behind it, of at most [`PREFIX_BYTES`], or nothing.
#[must_use]
pub fn is_prefix(text: &str) -> bool {
    text.len() <= PREFIX_BYTES && (text.is_empty() || text.strip_suffix('.').is_some_and(is_domain))
}

/// Whether a text can be a suffix: a dot with words behind it, of at most [`SUFFIX_BYTES`], or nothing.
#[must_use]
pub fn is_suffix(text: &str) -> bool {
    text.len() <= SUFFIX_BYTES && (text.is_empty() || text.strip_prefix('.').is_some_and(is_domain))
}

/// Words of lower-case letters, digits and hyphens, with a dot between them; none begins or ends with a hyphen.
fn is_domain(text: &str) -> bool {
    let is_word = |word: &str| {
        let characters = word.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        characters && !word.is_empty() && !word.starts_with('-') && !word.ends_with('-')
    };
    text.split('.').all(is_word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_gets_prefix_and_suffix_and_a_given_type_stays() {
        let affixes = TypeAffixes::default();
        assert_eq!(
            affixes.whole(EventType::Named("hl7v2.oru_r01".into())),
            "org.practice-gateway.hl7v2.oru_r01.v1"
        );
        assert_eq!(affixes.whole(EventType::Given("uk.nhs.nhais".into())), "uk.nhs.nhais");
        let none = TypeAffixes::new("", "").unwrap();
        assert_eq!(none.whole(EventType::Named("hl7v2.oru_r01".into())), "hl7v2.oru_r01");
    }

    #[test]
    fn the_longest_of_each_can_be_sent_and_nothing_longer() {
        let (prefix, suffix) =
            (format!("{}.", "p".repeat(PREFIX_BYTES - 1)), format!(".{}", "s".repeat(SUFFIX_BYTES - 1)));
        let longest = EventType::Named("n".repeat(NAME_BYTES));
        assert_eq!(longest.check(), Ok(()));
        let whole = TypeAffixes::new(&prefix, &suffix).unwrap().whole(longest);
        assert_eq!((whole.len(), Text::EventType.check(&whole)), (256, Ok(())));
        let longer = EventType::Named("n".repeat(NAME_BYTES + 1));
        assert_eq!(longer.check(), Err(TextError::TooLong { text: Text::EventType, bytes: 257 }));
        assert_eq!(EventType::Given("n".repeat(256)).check(), Ok(()));
        assert!(
            EventType::Given("n".repeat(257)).check().is_err()
                && EventType::Given("a\n".into()).check().is_err()
        );
        assert!(!is_prefix(&format!("p{prefix}")) && !is_suffix(&format!("{suffix}s")));
    }

    #[test]
    fn what_is_no_prefix_or_suffix() {
        assert!(is_prefix("") && is_prefix("uk.nhs.b86022-gw.") && is_suffix("") && is_suffix(".2.beta-1"));
        for bad in
            ["org", "org.Practice.", ".org.", "org..x.", "org.-x.", "org.x-.", "a b.", "é.", "a_b.", "."]
        {
            assert!(!is_prefix(bad), "{bad:?}");
        }
        for bad in ["v1", ".", ".V1", ".v1.", "..v1", ".v_1", ".v1-", ".v 1"] {
            assert!(!is_suffix(bad), "{bad:?}");
        }
        assert_eq!((TypeAffixes::new("org", ".v1"), TypeAffixes::new("org.", "v1")), (None, None));
    }
}
