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

/// What is put before the names that doors make: a reversed domain name with a dot behind it, or nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TypePrefix(String);

impl Default for TypePrefix {
    /// `org.practice-gateway.`.
    fn default() -> Self {
        Self(String::from("org.practice-gateway."))
    }
}

impl TypePrefix {
    /// From a text of at most [`PREFIX_BYTES`]; `None`: it cannot be a prefix.
    #[must_use]
    pub fn new(text: &str) -> Option<Self> {
        let is_name = text.is_empty() || text.strip_suffix('.').is_some_and(is_domain);
        (is_name && text.len() <= PREFIX_BYTES).then(|| Self(text.to_owned()))
    }
}

/// What is put behind the names that doors make: a dot with words behind it, or nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TypeSuffix(String);

impl Default for TypeSuffix {
    /// `.v1`.
    fn default() -> Self {
        Self(String::from(".v1"))
    }
}

impl TypeSuffix {
    /// From a text of at most [`SUFFIX_BYTES`]; `None`: it cannot be a suffix.
    #[must_use]
    pub fn new(text: &str) -> Option<Self> {
        let is_name = text.is_empty() || text.strip_prefix('.').is_some_and(is_domain);
        (is_name && text.len() <= SUFFIX_BYTES).then(|| Self(text.to_owned()))
    }
}

/// What is put around the names that doors make.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TypeAffixes {
    /// Before them.
    pub prefix: TypePrefix,
    /// Behind them.
    pub suffix: TypeSuffix,
}

impl TypeAffixes {
    /// The whole type: `org.practice-gateway.hl7v2.oru_r01.v1`.
    #[must_use]
    pub fn whole(&self, event_type: EventType) -> String {
        match event_type {
            EventType::Named(name) => [self.prefix.0.as_str(), &name, &self.suffix.0].concat(),
            EventType::Given(text) => text,
        }
    }
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

    fn affixes(prefix: &str, suffix: &str) -> TypeAffixes {
        TypeAffixes { prefix: TypePrefix::new(prefix).unwrap(), suffix: TypeSuffix::new(suffix).unwrap() }
    }

    #[test]
    fn a_name_gets_prefix_and_suffix_and_a_given_type_stays() {
        let default = TypeAffixes::default();
        assert_eq!(
            default.whole(EventType::Named("hl7v2.oru_r01".into())),
            "org.practice-gateway.hl7v2.oru_r01.v1"
        );
        assert_eq!(default.whole(EventType::Given("uk.nhs.nhais".into())), "uk.nhs.nhais");
        assert_eq!(affixes("", "").whole(EventType::Named("hl7v2.oru_r01".into())), "hl7v2.oru_r01");
    }

    #[test]
    fn the_longest_of_each_can_be_sent_and_nothing_longer() {
        let (prefix, suffix) =
            (format!("{}.", "p".repeat(PREFIX_BYTES - 1)), format!(".{}", "s".repeat(SUFFIX_BYTES - 1)));
        let longest = EventType::Named("n".repeat(NAME_BYTES));
        assert_eq!(longest.check(), Ok(()));
        let whole = affixes(&prefix, &suffix).whole(longest);
        assert_eq!((whole.len(), Text::EventType.check(&whole)), (256, Ok(())));
        let longer = EventType::Named("n".repeat(NAME_BYTES + 1));
        assert_eq!(longer.check(), Err(TextError::TooLong { text: Text::EventType, bytes: 257 }));
        assert_eq!(EventType::Given("n".repeat(256)).check(), Ok(()));
        assert!(
            EventType::Given("n".repeat(257)).check().is_err()
                && EventType::Given("a\n".into()).check().is_err()
        );
        assert_eq!(TypePrefix::new(&format!("p{prefix}")), None);
        assert_eq!(TypeSuffix::new(&format!("{suffix}s")), None);
    }

    #[test]
    fn what_is_no_prefix_or_suffix() {
        affixes("uk.nhs.b86022-gw.", ".2.beta-1");
        assert_eq!(TypePrefix::new(&TypePrefix::default().0), Some(TypePrefix::default()));
        assert_eq!(TypeSuffix::new(&TypeSuffix::default().0), Some(TypeSuffix::default()));
        for bad in
            ["org", "org.Practice.", ".org.", "org..x.", "org.-x.", "org.x-.", "a b.", "é.", "a_b.", "."]
        {
            assert_eq!(TypePrefix::new(bad), None, "{bad:?}");
        }
        for bad in ["v1", ".", ".V1", ".v1.", "..v1", ".v_1", ".v1-", ".v 1"] {
            assert_eq!(TypeSuffix::new(bad), None, "{bad:?}");
        }
    }
}
