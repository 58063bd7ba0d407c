//! The basic types: practice, gateway, lane, transaction (`docs/architecture.md`, Words).
//!
//! Every name that can reach a topic, a path or a log is validated when it is made, so no
//! other module needs to check it again.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// A number of a record in its lane's outbox: from 1, without gaps, never reset, never given twice.
///
/// On the wire a transaction is named by epoch and [`Sequence`]; [`crate::delivery::Numbering`] translates.
pub type Position = u64;

/// A transaction's number in its epoch and lane, from 1, without gaps.
pub type Sequence = u64;

/// Milliseconds since the Unix epoch by the wall clock: shown to people, never used to decide.
pub type UnixMillis = u64;

/// A name that does not fit its rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} {given:?} is not allowed: it must be {rule}")]
pub struct NameError {
    what: &'static str,
    given: String,
    rule: &'static str,
}

macro_rules! name {
    ($(#[$doc:meta])* $type:ident, $what:literal, $rule:literal, $valid:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $type(Arc<str>);

        impl $type {
            /// Checks the name.
            ///
            /// # Errors
            /// [`NameError`] names the rule that is broken.
            pub fn new(name: &str) -> Result<Self, NameError> {
                let valid: fn(&str) -> bool = $valid;
                if valid(name) {
                    Ok(Self(name.into()))
                } else {
                    Err(NameError { what: $what, given: name.chars().take(64).collect(), rule: $rule })
                }
            }

            /// The name.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }

        impl TryFrom<String> for $type {
            type Error = NameError;
            fn try_from(name: String) -> Result<Self, NameError> {
                Self::new(&name)
            }
        }

        impl From<$type> for String {
            fn from(name: $type) -> String {
                name.0.as_ref().to_owned()
            }
        }

        impl std::str::FromStr for $type {
            type Err = NameError;
            fn from_str(name: &str) -> Result<Self, NameError> {
                Self::new(name)
            }
        }
    };
}

fn lower_id(name: &str) -> bool {
    (1..=32).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !name.starts_with('-')
}

name!(
    /// A practice: its ODS code, for example `B86022`.
    Practice,
    "practice",
    "an ODS code: 3 to 9 capital letters and digits, for example \"B86022\"",
    |n| (3..=9).contains(&n.len()) && n.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit())
);
name!(
    /// A gateway: unique in its practice, for example `gw1`.
    Gateway,
    "gateway",
    "1 to 32 lower-case letters, digits and hyphens, for example \"gw1\"",
    lower_id
);
name!(
    /// A lane: a named, totally ordered stream of transactions.
    Lane,
    "lane",
    "1 to 32 lower-case letters, digits and hyphens, for example \"clinical\"",
    lower_id
);
name!(
    /// A hub, for example `hub1`.
    Hub,
    "hub",
    "1 to 32 lower-case letters, digits and hyphens, for example \"hub1\"",
    lower_id
);

/// A lane of a gateway of a practice.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LaneName {
    /// Practice.
    pub practice: Practice,
    /// Gateway.
    pub gateway: Gateway,
    /// Lane.
    pub lane: Lane,
}

impl fmt::Display for LaneName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.practice, self.gateway, self.lane)
    }
}

impl std::str::FromStr for LaneName {
    type Err = NameError;
    fn from_str(name: &str) -> Result<Self, NameError> {
        let mut parts = name.splitn(3, '/');
        let mut next = || parts.next().unwrap_or_default();
        Ok(Self { practice: next().parse()?, gateway: next().parse()?, lane: next().parse()? })
    }
}

/// UUIDv7 made when an outbox is created, and again at each fork that forces a renumbering.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Epoch(pub Uuid);

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// UUIDv7 of a transaction: given at acceptance, never changes, whatever its number becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TransactionId(pub Uuid);

impl fmt::Display for TransactionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// How reliable the clock was that stamped a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Clock {
    /// The kernel says that it is synchronised.
    Synced,
    /// It was synchronised since the box started, and is not now.
    Holdover,
    /// It was never synchronised since the box started.
    Untrusted,
}

impl Clock {
    /// The word used on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Clock::Synced => "synced",
            Clock::Holdover => "holdover",
            Clock::Untrusted => "untrusted",
        }
    }
}

/// The kind of an entry of a lane; on the wire `kind`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A clinical message.
    Transaction,
    /// A message of our own: a probe or a drill.
    Test,
    /// In the place of transactions that are lost for good and that an operator released.
    Void,
    /// In the place of transactions that were confirmed once, and deleted at the gateway.
    Pruned,
}

impl Kind {
    /// The word used on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Transaction => "transaction",
            Kind::Test => "test",
            Kind::Void => "void",
            Kind::Pruned => "pruned",
        }
    }
}

/// Clinical bytes. No `Display`; `Debug` prints the length only, so that no log can carry a patient.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Body(Bytes);

impl Body {
    /// Takes the bytes as they came; they are never changed.
    pub fn new(bytes: impl Into<Bytes>) -> Self {
        Self(bytes.into())
    }

    /// The bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The bytes, shared and not copied.
    #[must_use]
    pub fn to_bytes(&self) -> Bytes {
        self.0.clone()
    }

    /// Length in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Body({} bytes)", self.0.len())
    }
}

/// One accepted clinical message: opaque bytes and the attributes of its envelope.
///
/// `Debug` is safe to log: identifiers that a sender chose are left out with the body.
#[derive(Clone, PartialEq, Eq)]
pub struct Transaction {
    /// Never changes.
    pub id: TransactionId,
    /// When it was accepted, by the wall clock.
    pub time: UnixMillis,
    /// CloudEvents `type`, whole, for example `org.practice-gateway.hl7v2.oru_r01.v1`.
    pub event_type: String,
    /// Its kind.
    pub kind: Kind,
    /// Media type with charset, for example `application/hl7-v2+er7`.
    pub content_type: String,
    /// Which system sent it, never a person or a host: on the wire `sender`.
    pub sender: String,
    /// The same as its door has named it, where the wire has it changed; `None`: as in `sender`. It never leaves the gateway, where
    /// it tells senders apart.
    pub given_sender: Option<String>,
    /// The sender's key (MSH-10, Idempotency-Key ...); empty where there was none.
    pub key: String,
    /// The key goes on the wire (`senderkey`): it is the sender's own word and names no patient.
    pub shows_key: bool,
    /// The sender's correlation id; empty where there was none. On the wire `correlationid`.
    pub correlation_id: String,
    /// W3C trace context of its request; empty where there was none. On the wire `traceparent`.
    pub trace_parent: String,
    /// How far `time` can be believed.
    pub clock: Clock,
    /// The message.
    pub body: Body,
}

impl Transaction {
    /// The sender as its door has named it.
    #[must_use]
    pub fn sender_as_given(&self) -> &str {
        self.given_sender.as_deref().unwrap_or(&self.sender)
    }
}

impl fmt::Debug for Transaction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transaction")
            .field("id", &self.id)
            .field("time", &self.time)
            .field("event_type", &self.event_type)
            .field("body", &self.body)
            .finish_non_exhaustive()
    }
}

/// `time` as RFC 3339 in UTC with milliseconds: the text on the wire and in the chain.
#[must_use]
pub fn rfc3339(time: UnixMillis) -> String {
    use time::macros::format_description;
    let moment = time::OffsetDateTime::from_unix_timestamp_nanos(i128::from(time) * 1_000_000)
        .unwrap_or(time::OffsetDateTime::UNIX_EPOCH);
    moment
        .format(format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z"))
        .unwrap_or_else(|_| String::from("1970-01-01T00:00:00.000Z"))
}

/// The moment that an RFC 3339 text names, to the millisecond; `None` for other text and for times before 1970.
#[must_use]
pub fn from_rfc3339(text: &str) -> Option<UnixMillis> {
    let moment = time::OffsetDateTime::parse(text, &time::format_description::well_known::Rfc3339).ok()?;
    u64::try_from(moment.unix_timestamp_nanos() / 1_000_000).ok()
}

/// The wall clock now.
#[must_use]
pub fn unix_millis_now() -> UnixMillis {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_their_rules() {
        assert!(Practice::new("B86022").is_ok());
        for bad in ["b86022", "B8", "B860221234", "B8/#", ""] {
            assert!(Practice::new(bad).is_err(), "{bad}");
        }
        assert!(Lane::new("clinical").is_ok());
        for bad in ["Clinical", "a/b", "+", "#", "", "..", "-a"] {
            assert!(Lane::new(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_body_cannot_be_printed() {
        let body = Body::new(&b"PID|1||9434765919"[..]);
        assert_eq!(format!("{body:?}"), "Body(17 bytes)");
    }

    #[test]
    fn times_are_rfc_3339_in_utc() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(rfc3339(1_795_385_530_123), "2026-11-22T22:12:10.123Z");
        assert_eq!(from_rfc3339("2026-11-22T22:12:10.123Z"), Some(1_795_385_530_123));
        assert_eq!(from_rfc3339("2026-11-22T23:12:10+01:00"), Some(1_795_385_530_000));
        for wrong in ["2026-11-22", "1969-12-31T23:59:59Z", "yesterday", ""] {
            assert_eq!(from_rfc3339(wrong), None, "{wrong}");
        }
    }
}
