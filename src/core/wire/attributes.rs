//! The attributes of a transaction: everything that is stored of it besides its numbers and its body, and what its digest is
//! computed over (design section 12.1).
//!
//! They are CloudEvents attributes: names of lower-case letters and digits, values of text. A hub stores those that it does not
//! know as well, so that a newer gateway can add one: whatever is stored is covered by the digest.

use std::borrow::Cow;

use crate::chain::Digest;
use crate::transaction::{LaneName, Transaction, rfc3339};
use crate::wire::WireError;
use crate::wire::limits::{ATTRIBUTES_BYTES, NAME_BYTES, TEXT_BYTES, is_carried};

/// What a property takes in a packet besides its name and value: its identifier and two lengths.
const PROPERTY_BYTES: usize = 5;

/// The number on the wire and what belongs to one sending: no attributes.
pub const NUMBERS: [&str; 7] = ["chain", "delayed", "epoch", "link", "round", "sequence", "signature"];

/// Names that JSON of a CloudEvent has beside the attributes, or that are ours.
const RESERVED: [&str; 3] = ["data", "datacontenttype", "pgw"];

/// Names with their values, in the order of the names, each once. None is empty: an empty value is left out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Attributes(Vec<(Cow<'static, str>, String)>);

impl Attributes {
    /// Those of a stored transaction of this lane.
    #[must_use]
    pub fn of(lane: &LaneName, transaction: &Transaction) -> Self {
        let text = [transaction.id.to_string(), source(lane), rfc3339(transaction.time)];
        let named = named(lane, transaction, &text);
        Self(named.map(|(name, value)| (Cow::Borrowed(name), value.to_owned())).collect())
    }

    /// From properties in any order, as long as they may be: [`Attributes::fits`] says whether they are within the limits. Names
    /// that no attribute can have are passed over.
    ///
    /// # Errors
    /// [`WireError::Twice`], or [`WireError::Malformed`] for a name that is reserved.
    pub fn of_any_length(
        content_type: String,
        properties: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, WireError> {
        let mut attributes: Vec<(Cow<'static, str>, String)> = properties
            .into_iter()
            .filter(|(name, value)| is_name(name) && !value.is_empty())
            .map(|(name, value)| (Cow::Owned(name), value))
            .collect();
        if attributes.iter().any(|(name, _)| RESERVED.contains(&name.as_ref())) {
            return Err(WireError::Malformed("the name of a property"));
        }
        attributes.push((Cow::Borrowed("datacontenttype"), content_type));
        attributes.sort_unstable();
        if let Some(pair) = attributes.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            return Err(WireError::Twice(pair[0].0.clone().into_owned()));
        }
        Ok(Self(attributes))
    }

    /// The same, within the limits.
    ///
    /// # Errors
    /// Those, and [`WireError::Text`] for one beyond the [limits](crate::wire::limits).
    pub fn from_properties(
        content_type: String,
        properties: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, WireError> {
        let attributes = Self::of_any_length(content_type, properties)?;
        attributes.fits()?;
        Ok(attributes)
    }

    /// Whether all of them are within the [limits](crate::wire::limits), one by one and together.
    ///
    /// # Errors
    /// [`WireError::Text`] names the first that is not.
    pub fn fits(&self) -> Result<(), WireError> {
        let mut bytes = 0;
        for (name, value) in &self.0 {
            bytes += PROPERTY_BYTES + name.len() + value.len();
            if value.len() > TEXT_BYTES || bytes > ATTRIBUTES_BYTES || !is_carried(value) {
                return Err(WireError::Text(name.clone().into_owned()));
            }
        }
        Ok(())
    }

    /// The value of a name; empty where there is none.
    #[must_use]
    pub fn get(&self, name: &str) -> &str {
        let found = self.0.binary_search_by(|(known, _)| known.as_ref().cmp(name));
        found.ok().and_then(|at| self.0.get(at)).map_or("", |(_, value)| value)
    }

    /// All, in the order of the names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_ref(), value.as_str()))
    }

    /// The digest of these with a body.
    #[must_use]
    pub fn digest(&self, body: &[u8]) -> Digest {
        Digest::of(self.iter(), body)
    }

    /// All, to be sent.
    pub(super) fn into_properties(self) -> impl Iterator<Item = (String, String)> {
        self.0.into_iter().map(|(name, value)| (name.into_owned(), value))
    }
}

/// The attributes of a stored transaction, in the order of their names; `text` is its id, source and time.
fn named<'a>(
    lane: &'a LaneName,
    transaction: &'a Transaction,
    [id, source, time]: &'a [String; 3],
) -> impl Iterator<Item = (&'static str, &'a str)> {
    let key = if transaction.shows_key { transaction.key.as_str() } else { "" };
    let ordered = [
        ("clock", transaction.clock.as_str()),
        ("correlationid", &transaction.correlation_id),
        ("datacontenttype", &transaction.content_type),
        ("id", id),
        ("kind", transaction.kind.as_str()),
        ("partitionkey", lane.lane.as_str()),
        ("sender", &transaction.sender),
        ("senderkey", key),
        ("source", source),
        ("specversion", "1.0"),
        ("time", time),
        ("traceparent", &transaction.trace_parent),
        ("type", &transaction.event_type),
    ];
    ordered.into_iter().filter(|(_, value)| !value.is_empty())
}

/// CloudEvents `source` of a lane: `/pgw/{practice}/{gateway}/{lane}`.
#[must_use]
pub fn source(lane: &LaneName) -> String {
    format!("/pgw/{lane}")
}

fn is_name(name: &str) -> bool {
    (1..=NAME_BYTES).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
}

impl Transaction {
    /// The digest of a stored transaction of this lane. The outbox's writer computes it for each: it copies nothing.
    #[must_use]
    pub fn digest(&self, lane: &LaneName) -> Digest {
        let text = [self.id.to_string(), source(lane), rfc3339(self.time)];
        Digest::of(named(lane, self, &text), self.body.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transaction::{Body, Clock, Kind, TransactionId};

    fn transaction() -> Transaction {
        Transaction {
            id: TransactionId(uuid::Uuid::from_u128(1)),
            time: 0,
            event_type: "t".into(),
            kind: Kind::Transaction,
            content_type: "a/b".into(),
            sender: "lab".into(),
            given_sender: None,
            key: "MSG1".into(),
            shows_key: true,
            correlation_id: "c".into(),
            trace_parent: "00-1-2-00".into(),
            clock: Clock::Synced,
            body: Body::new(&b"x"[..]),
        }
    }

    #[test]
    fn everything_that_is_stored_is_covered() {
        let lane: LaneName = "B86022/gw1/clinical".parse().unwrap();
        let plain = transaction().digest(&lane);
        assert_eq!(plain, Attributes::of(&lane, &transaction()).digest(b"x"), "the hub's is the same");
        type Change = fn(&mut Transaction);
        let changes: [Change; 12] = [
            |t| t.id = TransactionId(uuid::Uuid::from_u128(2)),
            |t| t.time = 1,
            |t| t.event_type = "u".into(),
            |t| t.kind = Kind::Test,
            |t| t.content_type = "a/c".into(),
            |t| t.sender = "labs".into(),
            |t| t.key = "MSG2".into(),
            |t| t.shows_key = false,
            |t| t.correlation_id = String::new(),
            |t| t.trace_parent = String::new(),
            |t| t.clock = Clock::Holdover,
            |t| t.body = Body::new(&b"y"[..]),
        ];
        for (index, change) in changes.into_iter().enumerate() {
            let mut other = transaction();
            change(&mut other);
            assert_ne!(other.digest(&lane), plain, "change {index}");
        }
        for other in ["B86022/gw1/letters", "B86022/gw2/clinical", "B86023/gw1/clinical"] {
            assert_ne!(transaction().digest(&other.parse().unwrap()), plain, "{other}");
        }
    }

    #[test]
    fn they_stand_in_the_order_of_their_names() {
        let lane = "B86022/gw1/clinical".parse().unwrap();
        let attributes = Attributes::of(&lane, &transaction());
        assert!(attributes.iter().map(|(name, _)| name).is_sorted());
        assert_eq!(attributes.iter().count(), 13);
        assert_eq!((attributes.get("senderkey"), attributes.get("nothing")), ("MSG1", ""));
        let content_type = attributes.get("datacontenttype").to_owned();
        let sent = attributes.clone().into_properties().filter(|(name, _)| name != "datacontenttype");
        let mut sent: Vec<_> = sent.collect();
        sent.reverse();
        sent.push(("X-Bridge".into(), "no attribute".into()));
        sent.push(("empty".into(), String::new()));
        assert_eq!(Attributes::from_properties(content_type, sent), Ok(attributes));
    }

    #[test]
    fn a_text_beyond_the_limits_is_named() {
        let read = |properties: &[(&str, &str)]| {
            let properties = properties.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
            Attributes::from_properties("a/b".into(), properties)
        };
        let most = "v".repeat(TEXT_BYTES);
        assert!(read(&[("new", &most)]).is_ok(), "a newer gateway may allow more than this one");
        for bad in [format!("{most}v"), "a\0".into(), "a\nb".into(), "\u{fffe}".into()] {
            assert_eq!(read(&[("a", "b"), ("sender", &bad)]), Err(WireError::Text("sender".into())));
        }
        assert_eq!(
            Attributes::from_properties("a/b\u{1}".into(), []),
            Err(WireError::Text("datacontenttype".into()))
        );
        let many: Vec<(String, &str)> = (0..8).map(|n| (format!("a{n}"), most.as_str())).collect();
        let many: Vec<(&str, &str)> = many.iter().map(|(name, value)| (name.as_str(), *value)).collect();
        assert!(read(&many[..7]).is_ok());
        assert_eq!(read(&many), Err(WireError::Text("a7".into())));
    }

    #[test]
    fn a_name_comes_once_and_is_no_reserved_one() {
        let read = |names: &[&str]| {
            let properties = names.iter().map(|name| ((*name).to_owned(), "v".to_owned()));
            Attributes::from_properties("a/b".into(), properties)
        };
        assert_eq!(read(&["id", "time", "id"]), Err(WireError::Twice("id".into())));
        for reserved in RESERVED {
            assert!(matches!(read(&[reserved]), Err(WireError::Malformed(_))), "{reserved}");
        }
        assert!(read(&["id", "time", "new1"]).is_ok_and(|read| read.get("new1") == "v"));
    }
}
