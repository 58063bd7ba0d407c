//! The control socket: how the command line asks the process that has the outbox open.
//!
//! It is a door, for `submit` takes transactions in, and more: it reads the outbox and gives orders to the uplink.
//! Therefore it stands above [`crate::ingest`], [`crate::export`] and [`crate::uplink`], and none of them knows it.
//!
//! One connection carries any number of requests, one after the other. A request is a line of JSON ([`Request`]); the
//! answer is one or more lines ([`Reply`]), the last of which says so ([`Reply::is_last`]). Only a submission's body
//! follows as plain bytes, after [`Reply::Send`], and the bytes of a quarantine entry after [`Reply::Bytes`]. Whoever may
//! open the socket (mode 0660) may submit, see headers and decide about the quarantine; bodies leave through it for root
//! and the daemon's own user alone, and else only as a bundle that is encrypted to the configured hubs.

mod answers;
pub mod client;
mod context;
mod hand_carry;
mod orders;
mod quarantined;
pub mod server;
pub mod verify;

#[cfg(test)]
pub(crate) mod store_for_tests;

pub use context::ControlConfig;
pub(crate) use hand_carry::export as export_in_pieces;

use pgw_bundle::receipts;
use pgw_core::chain::ChainValue;
use pgw_core::transaction::{Lane, Position, TransactionId, rfc3339};
use pgw_outbox::{QuarantineEntry, Refusal};
use serde::{Deserialize, Serialize};

use crate::ingest::origin::Origin;
use crate::ingest::slip::AcceptanceSlip;
use crate::listing::ListedTransaction;

/// Longest line in either direction, its end included.
pub const LINE_BYTES: usize = 64 * 1024;

/// Most bytes of a bundle in one [`Reply::Piece`].
pub const PIECE_BYTES: usize = 32 * 1024;

/// Most entries that one [`Request::List`] gives.
pub const LIST_LIMIT: u32 = 10_000;

/// What a client may ask.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// Take one transaction; answered by [`Reply::Send`], then `body_bytes` bytes follow.
    Submit {
        /// Where it goes.
        lane: Lane,
        /// CloudEvents `type`.
        event_type: String,
        /// Media type.
        content_type: String,
        /// The sender's key; empty: the content hash is the key.
        key: String,
        /// Size of the body.
        body_bytes: u64,
    },
    /// The daemon's status document.
    Status {},
    /// Headers of what is kept, oldest first.
    List {
        /// Only this lane; otherwise all.
        lane: Option<Lane>,
        /// From this position; otherwise the oldest waiting one.
        from: Option<Position>,
        /// At most so many of each lane, up to [`LIST_LIMIT`].
        limit: u32,
    },
    /// One header.
    Show {
        /// Only in this lane; otherwise in all.
        lane: Option<Lane>,
        /// By its id or its position.
        which: TransactionRef,
    },
    /// Checks the chain over every transaction in the outbox.
    Verify {
        /// Only this lane; otherwise all.
        lane: Option<Lane>,
    },
    /// How far a lane is confirmed.
    Mark {
        /// The lane.
        lane: Lane,
    },
    /// What is in quarantine, oldest first.
    QuarantineList {},
    /// One entry of the quarantine.
    QuarantineShow {
        /// The entry's number.
        id: u64,
    },
    /// The bytes of an entry, for root and the daemon's user; they follow [`Reply::Bytes`].
    QuarantineBytes {
        /// The entry's number.
        id: u64,
    },
    /// Submits an entry as its door would have, and removes it when it is on stable storage.
    QuarantineRelease {
        /// The entry's number.
        id: u64,
        /// Where it goes; otherwise to the first lane.
        lane: Option<Lane>,
        /// CloudEvents `type`; otherwise from its MSH.
        event_type: Option<String>,
        /// Media type; otherwise from its MSH, or `application/octet-stream`.
        content_type: Option<String>,
    },
    /// Removes an entry for good.
    QuarantineDiscard {
        /// The entry's number.
        id: u64,
        /// The reason; goes to the log and to the centre.
        reason: String,
    },
    /// Waiting transactions, as a bundle encrypted to the configured hubs; answered by [`Reply::Piece`]s.
    Export {
        /// Only this lane; otherwise all.
        lane: Option<Lane>,
        /// From this position; otherwise the oldest waiting one.
        from: Option<Position>,
    },
    /// A hub's receipt that came by file.
    Receipt(receipts::SignedReceipt),
    /// Writes off lost records for good, so that their lane continues.
    Void {
        /// The lane.
        lane: Lane,
        /// The first.
        from: Position,
        /// The last.
        through: Position,
        /// The person's reason.
        reason: String,
        /// Whether to do it; otherwise only to say what would be done.
        act: bool,
    },
    /// Retries the held transaction that stalls a lane.
    #[serde(rename = "again")]
    RetryHead {
        /// The lane.
        lane: Lane,
    },
    /// Sends confirmed transactions again, with the same ids and numbers.
    Resend {
        /// The lane.
        lane: Lane,
        /// The first.
        from: Position,
        /// The last.
        through: Position,
    },
}

/// How one transaction is named.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TransactionRef {
    /// By its id; all that is kept is searched.
    Id(TransactionId),
    /// By its position.
    Position(Position),
}

impl std::str::FromStr for TransactionRef {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Ok(position) = text.parse() {
            return Ok(TransactionRef::Position(position));
        }
        let id = uuid::Uuid::try_parse(text).map_err(|_| "it must be a transaction's id or its position")?;
        Ok(TransactionRef::Id(TransactionId(id)))
    }
}

/// What the daemon says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "snake_case")]
pub enum Reply {
    /// The body may follow.
    Send {},
    /// It is on stable storage.
    Accepted(AcceptanceSlip),
    /// It is not stored.
    Refused {
        /// Whether the same may be accepted later.
        temporary: bool,
        /// One sentence.
        reason: String,
    },
    /// Health's numbers, and `lanes`.
    Status {
        /// The document.
        status: serde_json::Value,
    },
    /// One of many headers.
    Entry(ListedTransaction),
    /// How far a long answer has come.
    Progress {
        /// In this lane.
        lane: Lane,
        /// At this position ...
        position: Position,
        /// ... of so many.
        tail: Position,
    },
    /// A lane has been checked.
    Verified(verify::LaneVerification),
    /// How far a lane is confirmed.
    Mark {
        /// Everything up to here is.
        confirmed: Position,
    },
    /// One of the quarantine's entries.
    Quarantined(Quarantined),
    /// So many plain bytes follow.
    Bytes {
        /// How many.
        body_bytes: u64,
    },
    /// This user may not have it.
    NotPermitted {
        /// One sentence.
        reason: String,
    },
    /// The next bytes of a bundle, encrypted, in base64.
    Piece {
        /// At most [`PIECE_BYTES`] of them.
        base64: String,
    },
    /// What a bundle holds of a lane.
    Exported {
        /// The lane.
        lane: Lane,
        /// Transactions.
        count: u64,
        /// The first position.
        first: Position,
        /// The last.
        last: Position,
        /// The missing record before which it had to stop.
        stopped_before: Option<Position>,
    },
    /// A receipt that came by file was verified.
    Heard {
        /// Its lane.
        lane: Lane,
        /// Confirmed through this position now.
        confirmed: Position,
    },
    /// Lost records are written off, or would be.
    Released {
        /// The lane.
        lane: Lane,
        /// The first.
        from: Position,
        /// The last.
        through: Position,
        /// Chain value before the first.
        previous: ChainValue,
        /// Chain value at the last.
        chain: ChainValue,
    },
    /// Confirmed transactions went out again.
    Resent {
        /// The lane.
        lane: Lane,
        /// So many, all taken by the broker.
        count: u64,
        /// Positions of the range that are no longer in the outbox.
        missing: u64,
        /// The broker had nobody to give some of them to.
        unheard: bool,
    },
    /// That was all.
    End {},
    /// The request cannot be answered; the connection may be closed.
    Failed {
        /// One sentence.
        reason: String,
    },
}

impl Reply {
    /// Whether nothing more follows for this request.
    #[must_use]
    pub fn is_last(&self) -> bool {
        !matches!(
            self,
            Reply::Send {}
                | Reply::Entry(_)
                | Reply::Progress { .. }
                | Reply::Verified(_)
                | Reply::Quarantined(_)
                | Reply::Piece { .. }
                | Reply::Exported { .. }
        )
    }
}

impl From<Refusal> for Reply {
    fn from(refusal: Refusal) -> Self {
        Reply::Refused { temporary: refusal.is_temporary(), reason: refusal.to_string() }
    }
}

/// An entry of the quarantine, without its bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quarantined {
    /// Names it.
    pub id: u64,
    /// When it came, RFC 3339; empty when damaged.
    pub time: String,
    /// `mllp`, `http`, `folder`; `store` for the outbox's own records; empty when damaged.
    pub door: String,
    /// The peer's address, where the door has peers.
    pub address: Option<std::net::IpAddr>,
    /// CloudEvents `source`, or the lane of the outbox's own record; empty when damaged.
    pub source: String,
    /// Why it is here; empty when damaged.
    pub reason: String,
    /// How many bytes are kept.
    pub bytes: u64,
    /// The file is not what was written.
    pub damaged: bool,
}

impl From<QuarantineEntry> for Quarantined {
    fn from(entry: QuarantineEntry) -> Self {
        let QuarantineEntry { id, reason, source, bytes, time, damaged } = entry;
        let mut origin = Origin::read(&source);
        if damaged {
            origin.door.clear();
        }
        let time = if damaged { String::new() } else { rfc3339(time) };
        let Origin { door, address, source } = origin;
        Self { id, time, door, address, source, reason, bytes, damaged }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_plain_json() {
        let line = r#"{"command":"list","lane":"clinical","from":null,"limit":5}"#;
        let request: Request = serde_json::from_str(line).unwrap();
        assert_eq!(
            request,
            Request::List { lane: Some(Lane::new("clinical").unwrap()), from: None, limit: 5 }
        );
        assert_eq!(serde_json::to_string(&request).unwrap(), line);
        for bad in [
            r#"{"command":"drop"}"#,
            r#"{"command":"status","more":1}"#,
            r#"{"command":"list","lane":"../x","limit":1}"#,
        ] {
            assert!(serde_json::from_str::<Request>(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_entry_survives_with_and_without_its_header() {
        let gone = ListedTransaction::gone(Lane::new("clinical").unwrap(), 7, 6);
        let text = serde_json::to_string(&Reply::Entry(gone.clone())).unwrap();
        assert_eq!(text, r#"{"reply":"entry","lane":"clinical","position":7,"state":"damaged"}"#);
        assert_eq!(serde_json::from_str::<Reply>(&text).unwrap(), Reply::Entry(gone));
    }

    #[test]
    fn names_of_transactions() {
        assert_eq!("12".parse(), Ok(TransactionRef::Position(12)));
        let id = "01939b1e-0000-7000-8000-000000000001";
        assert_eq!(id.parse(), Ok(TransactionRef::Id(TransactionId(uuid::Uuid::try_parse(id).unwrap()))));
        assert!("Smith.hl7".parse::<TransactionRef>().is_err());
    }
}
