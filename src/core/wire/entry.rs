//! An entry: one number in the place of transactions that a gateway cannot send any more (design section 12.2).
//!
//! On the wire it is a transaction of kind `void` or `pruned`, whose payload is an [`Entry`]. It has a content of its own, which
//! the chain covers like every other one, and an id of its own: it makes no id known.

use crate::numbering::{self, EntryKind, MOST_NAMES, Numbers};
use crate::transaction::{Body, Clock, Epoch, Kind, Position, Sequence, Transaction, rfc3339};
use crate::wire::{SCHEMA, from_json, to_json};
use serde::{Deserialize, Serialize};

/// Media type of its payload.
pub const CONTENT_TYPE: &str = "application/json";
/// Longest reason, bytes.
pub const REASON_BYTES: usize = 256;

/// The payload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// 1.
    pub schema: u32,
    /// First position in the gateway's lane.
    pub from: Position,
    /// Last position.
    pub through: Position,
    /// The numbers that they had before, oldest epoch first.
    pub names: Vec<Named>,
    /// The reason of the person who released them, without patient data; empty for deleted ones.
    pub reason: String,
    /// When the entry was made, RFC 3339.
    pub time: String,
}

/// Numbers of an older epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Named {
    /// The epoch.
    pub epoch: Epoch,
    /// First number.
    pub from: Sequence,
    /// Last number.
    pub through: Sequence,
}

impl Entry {
    /// The payload of an entry, from its bytes; `None`: malformed.
    #[must_use]
    pub fn read(body: &[u8]) -> Option<Self> {
        let entry: Self = from_json(body).ok()?;
        let in_order = 0 < entry.from && entry.from <= entry.through && entry.through < Position::MAX;
        let fits = entry.names.len() <= MOST_NAMES && entry.reason.len() <= REASON_BYTES;
        (in_order && fits).then_some(entry)
    }

    /// How many transactions it stands for.
    #[must_use]
    pub fn transactions(&self) -> u64 {
        self.through - self.from + 1
    }
}

/// `type` of an entry.
#[must_use]
pub fn event_type(kind: EntryKind) -> &'static str {
    match kind {
        EntryKind::Void => "org.practice-gateway.void.v1",
        EntryKind::Pruned => "org.practice-gateway.pruned.v1",
    }
}

/// An entry of a lane's layout as a transaction: always the same bytes.
#[must_use]
pub fn transaction(entry: &numbering::Entry) -> Transaction {
    let named = |names: &Numbers| Named { epoch: names.epoch, from: names.from, through: names.through };
    let payload = Entry {
        schema: SCHEMA,
        from: entry.from,
        through: entry.through,
        names: entry.names.iter().map(named).collect(),
        reason: entry.reason.clone(),
        time: rfc3339(entry.time),
    };
    Transaction {
        id: entry.id,
        time: entry.time,
        event_type: event_type(entry.kind).to_owned(),
        kind: match entry.kind {
            EntryKind::Void => Kind::Void,
            EntryKind::Pruned => Kind::Pruned,
        },
        content_type: CONTENT_TYPE.to_owned(),
        sender: String::new(),
        given_sender: None,
        key: String::new(),
        shows_key: false,
        correlation_id: String::new(),
        trace_parent: String::new(),
        clock: Clock::Untrusted,
        body: Body::new(to_json(&payload)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transaction::TransactionId;
    use uuid::Uuid;

    #[test]
    fn an_entry_is_always_the_same_transaction() {
        let names = vec![Numbers { epoch: Epoch(Uuid::from_u128(1)), from: 3, through: 5 }];
        let entry = numbering::Entry {
            from: 13,
            through: 15,
            kind: EntryKind::Pruned,
            id: TransactionId(Uuid::from_u128(9)),
            time: 1_795_385_530_123,
            reason: String::new(),
            names,
        };
        let made = transaction(&entry);
        assert_eq!(made, transaction(&entry));
        assert_eq!((made.kind, made.event_type.as_str()), (Kind::Pruned, "org.practice-gateway.pruned.v1"));
        let read = Entry::read(made.body.as_bytes()).unwrap();
        assert_eq!((read.transactions(), read.names[0].through), (3, 5));
        assert_eq!(Entry::read(b"{}"), None);
        let with = |change: &dyn Fn(&mut Entry)| {
            let mut entry = read.clone();
            change(&mut entry);
            Entry::read(&to_json(&entry))
        };
        assert!(with(&|entry| entry.names = vec![entry.names[0]; MOST_NAMES]).is_some());
        assert_eq!(with(&|entry| entry.names = vec![entry.names[0]; MOST_NAMES + 1]), None);
        assert_eq!(with(&|entry| entry.from = 0), None);
        assert_eq!(with(&|entry| entry.through = u64::MAX), None, "its length would not fit");
        assert_eq!(with(&|entry| entry.through = entry.from - 1), None);
    }
}
