//! Checks whether a body is a FHIR message, and how it names itself. Pure.
//!
//! The bundle is read as a stream: other parts are checked as JSON and skipped, nothing of them is kept, and their
//! depth costs no stack. Everything else in the message stays opaque.

use std::borrow::Cow;
use std::fmt;

use pgw_core::wire::limits::Text;
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, SeqAccess, Visitor};

/// Longest part of a name that is kept, bytes: a name that was cut is always too long for a key, and so refused.
const NAME_BYTES: usize = Text::Key.most_bytes() + 4;

/// What the header of a FHIR message says. No `Debug`: a faulty sender may put anything into a header.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Peek {
    /// `Bundle.identifier`, `system|value`; empty if there is none.
    pub identifier: String,
    /// `MessageHeader.eventCoding.code`, or `eventUri`, or STU3's `event.code`; empty if there is none.
    pub event: String,
}

/// Why it is not a FHIR message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NoMessage {
    /// Not JSON, or not that of a FHIR resource.
    #[error("the body is not a FHIR resource in JSON")]
    NotFhir,
    /// A resource other than a bundle of type `message`.
    #[error("the resource is not a Bundle of type message")]
    NotMessage,
    /// The first entry is not a MessageHeader.
    #[error("the first entry of the message is not a MessageHeader")]
    NoHeader,
}

#[derive(Deserialize)]
struct Bundle<'a> {
    #[serde(rename = "resourceType", borrow)]
    resource_type: Cow<'a, str>,
    #[serde(rename = "type", default)]
    kind: Lenient,
    #[serde(default)]
    identifier: Named,
    #[serde(default)]
    entry: First,
}

#[derive(Default, Deserialize)]
struct FirstEntry {
    #[serde(default)]
    resource: EntryResource,
}

#[derive(Default, Deserialize)]
struct EntryResource {
    #[serde(rename = "resourceType", default)]
    resource_type: Lenient,
    #[serde(rename = "eventCoding", default)]
    event_coding: Named,
    #[serde(rename = "eventUri", default)]
    event_uri: Lenient,
    #[serde(default)]
    event: Named,
}

/// Text if it is text; a resource of another type may have anything there.
#[derive(Default)]
struct Lenient(String);

/// `system` with `value` (an identifier) or `code` (a coding), if it is an object.
#[derive(Default)]
struct Named {
    system: String,
    name: String,
}

/// The first entry; the others are skipped.
#[derive(Default)]
struct First(FirstEntry);

/// A visitor that takes what it needs and skips the rest, of any type.
macro_rules! passes_over {
    ($($method:ident: $type:ty),*) => {
        $(fn $method<E>(self, _: $type) -> Result<Self::Value, E> {
            Ok(Self::Value::default())
        })*
        fn visit_unit<E>(self) -> Result<Self::Value, E> {
            Ok(Self::Value::default())
        }
    };
}

fn expecting_anything(f: &mut fmt::Formatter<'_>) -> fmt::Result {
    f.write_str("anything")
}

impl<'de> Deserialize<'de> for Lenient {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl<'de> Visitor<'de> for Text {
            type Value = Lenient;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                expecting_anything(f)
            }
            passes_over!(visit_bool: bool, visit_i64: i64, visit_u64: u64, visit_f64: f64);
            fn visit_str<E>(self, text: &str) -> Result<Lenient, E> {
                Ok(Lenient(shortened(text)))
            }
            fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<Lenient, A::Error> {
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(Lenient::default())
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Lenient, A::Error> {
                while seq.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Lenient::default())
            }
        }
        deserializer.deserialize_any(Text)
    }
}

impl<'de> Deserialize<'de> for Named {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;
        impl<'de> Visitor<'de> for Object {
            type Value = Named;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                expecting_anything(f)
            }
            passes_over!(visit_bool: bool, visit_i64: i64, visit_u64: u64, visit_f64: f64, visit_str: &str);
            fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<Named, A::Error> {
                let mut named = Named::default();
                while let Some(key) = map.next_key::<Cow<'de, str>>()? {
                    match key.as_ref() {
                        "system" => named.system = map.next_value::<Lenient>()?.0,
                        "value" | "code" => named.name = map.next_value::<Lenient>()?.0,
                        _ => {
                            map.next_value::<IgnoredAny>()?;
                        }
                    }
                }
                Ok(named)
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Named, A::Error> {
                while seq.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Named::default())
            }
        }
        deserializer.deserialize_any(Object)
    }
}

impl<'de> Deserialize<'de> for First {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct List;
        impl<'de> Visitor<'de> for List {
            type Value = First;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of entries")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<First, A::Error> {
                let first = seq.next_element::<FirstEntry>()?.unwrap_or_default();
                while seq.next_element::<IgnoredAny>()?.is_some() {}
                Ok(First(first))
            }
        }
        deserializer.deserialize_seq(List)
    }
}

/// Whole characters, at most [`NAME_BYTES`] bytes.
fn shortened(text: &str) -> String {
    let mut end = text.len().min(NAME_BYTES);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}

impl Peek {
    /// Checks a body.
    ///
    /// # Errors
    /// [`NoMessage`].
    pub fn read(body: &[u8]) -> Result<Self, NoMessage> {
        let body = body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body);
        let bundle: Bundle<'_> = serde_json::from_slice(body).map_err(|_| NoMessage::NotFhir)?;
        if bundle.resource_type != "Bundle" || bundle.kind.0 != "message" {
            return Err(NoMessage::NotMessage);
        }
        let Named { system, name } = bundle.identifier;
        let header = bundle.entry.0.resource;
        if header.resource_type.0 != "MessageHeader" {
            return Err(NoMessage::NoHeader);
        }
        let events = [header.event_coding.name, header.event.name, header.event_uri.0];
        Ok(Self {
            identifier: if name.is_empty() { name } else { format!("{system}|{name}") },
            event: events.into_iter().find(|event| !event.is_empty()).unwrap_or_default(),
        })
    }

    /// What its CloudEvents `type` is called: `fhir.{event}`, safe characters only.
    #[must_use]
    pub fn event_type(&self) -> String {
        // The last part of a URI, which distinguishes the events.
        let name = self.event.rsplit(['/', ':', '#']).next().unwrap_or_default();
        let mut event_type = String::from("fhir.");
        let letters = name.chars().filter(|c| c.is_ascii_alphanumeric() || "-_.".contains(*c)).take(64);
        event_type.extend(letters.map(|c| c.to_ascii_lowercase()));
        if event_type.len() == "fhir.".len() {
            event_type.push_str("message");
        }
        event_type
    }

    /// The message's own key: its identifier with its event. Empty if it has no identifier.
    #[must_use]
    pub fn key(&self) -> String {
        if self.identifier.is_empty() { String::new() } else { format!("{}|{}", self.identifier, self.event) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MESSAGE: &str = r#"{"resourceType":"Bundle","id":"1","type":"message","identifier":{"system":"urn:s","value":"v"},
        "entry":[{"fullUrl":"u","resource":{"resourceType":"MessageHeader","eventCoding":{"system":"e","code":"Servicerequest-Request"},
        "source":{"name":"x"}}},{"resource":{"resourceType":"Patient"}}]}"#;

    #[test]
    fn a_message_says_who_it_is() {
        let peek = Peek::read(MESSAGE.as_bytes()).ok().unwrap();
        assert_eq!((peek.identifier.as_str(), peek.event.as_str()), ("urn:s|v", "Servicerequest-Request"));
        assert_eq!(peek.event_type(), "fhir.servicerequest-request");
        assert_eq!(peek.key(), "urn:s|v|Servicerequest-Request");
        let marked = [b"\xef\xbb\xbf", MESSAGE.as_bytes()].concat();
        assert!(Peek::read(&marked).ok() == Some(peek));
    }

    #[test]
    fn order_and_missing_parts_do_not_matter() {
        let text = r#"{"entry":[{"resource":{"event":{"code":"a"},"resourceType":"MessageHeader"}}],"type":"message","resourceType":"Bundle"}"#;
        let peek = Peek::read(text.as_bytes()).ok().unwrap();
        assert_eq!((peek.event.as_str(), peek.key().as_str()), ("a", ""));
        let text = text.replace(r#""event":{"code":"a"}"#, r#""eventUri":"http://x.nhs.uk/events/ITK 007C""#);
        assert_eq!(Peek::read(text.as_bytes()).ok().unwrap().event_type(), "fhir.itk007c");
        let text = text.replace(r#""eventUri":"http://x.nhs.uk/events/ITK 007C""#, r#""event":7"#);
        assert_eq!(Peek::read(text.as_bytes()).ok().unwrap().event_type(), "fhir.message");
    }

    #[test]
    fn what_is_no_message_is_told_apart() {
        let error = |text: &str| Peek::read(text.as_bytes()).err();
        for text in ["", "{", "[]", "1", "<Bundle/>", "{}", r#"{"resourceType":1}"#, &format!("{MESSAGE}x")] {
            assert_eq!(error(text), Some(NoMessage::NotFhir), "{text}");
        }
        for text in [
            r#"{"resourceType":"Task","type":{"a":1},"identifier":[{"value":"x"}]}"#.to_owned(),
            MESSAGE.replace(r#""message""#, r#""searchset""#),
            MESSAGE.replace("Bundle", "Parameters"),
        ] {
            assert_eq!(error(&text), Some(NoMessage::NotMessage), "{text}");
        }
        assert_eq!(error(&MESSAGE.replace("MessageHeader", "Patient")), Some(NoMessage::NoHeader));
        assert_eq!(error(r#"{"resourceType":"Bundle","type":"message"}"#), Some(NoMessage::NoHeader));
    }

    #[test]
    fn depth_and_length_are_bounded() {
        let nested = format!("{}{}", "[".repeat(1_000_000), "]".repeat(1_000_000));
        for key in ["x", "type", "identifier"] {
            let deep = MESSAGE.replacen("\"id\":", &format!("\"{key}\":{nested},\"id\":"), 1);
            assert!(deep.len() > 2_000_000);
            let _ = Peek::read(deep.as_bytes());
        }
        let deep = MESSAGE.replace(r#""v""#, &nested);
        assert!(Peek::read(deep.as_bytes()).ok().unwrap().key().is_empty());
        let long = MESSAGE.replace(r#""v""#, &format!("\"{}\"", "é".repeat(100_000)));
        let peek = Peek::read(long.as_bytes()).ok().unwrap();
        assert!(peek.key().len() < 3 * NAME_BYTES + 3);
    }

    proptest! {
        #![proptest_config(crate::seeds::kept())]

        #[test]
        fn anything_can_be_looked_at(
            at in 0..MESSAGE.len(),
            with in proptest::collection::vec(any::<u8>(), 0..8),
            cut in 0usize..40,
            names in proptest::collection::vec("[ -~]{0,20}|.{0,300}", 2),
        ) {
            let [event, identifier] = [&names[0], &names[1]].map(|name| serde_json::to_string(name).unwrap());
            let named = MESSAGE.replace("\"Servicerequest-Request\"", &event).replace("\"v\"", &identifier);
            let found = Peek::read(named.as_bytes()).map(|peek| {
                assert!(peek.event_type().bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b)));
                assert!(peek.event_type().len() <= 70 && peek.key().len() <= 3 * NAME_BYTES + 3);
            });
            prop_assert!(found.is_ok(), "whatever it is called");
            let mut body = MESSAGE.as_bytes().to_vec();
            let end = (at + cut).min(body.len());
            body.splice(at..end, with);
            if let Ok(peek) = Peek::read(&body) {
                prop_assert!(peek.event_type().bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b)));
                prop_assert!(peek.event_type().len() <= 70 && peek.key().len() <= 3 * NAME_BYTES + 3);
            }
        }
    }
}
