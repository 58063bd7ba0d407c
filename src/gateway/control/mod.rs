//! The control socket: how the command line asks the process that has the outbox open.
//!
//! It is a door, because `submit` takes transactions in, and more: it reads the outbox and gives orders to the uplink.
//! Therefore it uses [`crate::ingest`], [`crate::export`] and [`crate::uplink`], and none of them knows it.
//!
//! [`pgw_host::control`] defines how requests and answers are sent; this module defines what they mean ([`Request`],
//! [`Reply`]). A submission's body follows [`Reply::Send`], and the bytes of a quarantine entry follow
//! [`Reply::Bytes`]. Anyone who can open the socket (mode 0660) may submit, see headers and decide about the
//! quarantine. Only root and the daemon's own user get bodies through it; others get them only as a bundle encrypted
//! to the configured hubs.

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
pub(crate) use hand_carry::{Source, Wanted, export as export_in_pieces};

use pgw_bundle::receipts;
use pgw_core::transaction::{Hub, Lane, Position, TransactionId, rfc3339};
use pgw_core::wire::receipt::StoreId;
use pgw_host::control::{ClientError, NotDone};
use pgw_outbox::{QuarantineEntry, Refusal};
use serde::{Deserialize, Serialize};

use crate::ingest::origin::Origin;
use crate::ingest::slip::AcceptanceSlip;
use crate::listing::ListedTransaction;

/// Most bytes of a bundle in one [`Reply::Piece`].
pub const PIECE_BYTES: usize = 32 * 1024;

/// Most entries that one [`Request::List`] gives.
pub const LIST_LIMIT: u32 = 10_000;

/// A client's request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// Take one transaction; answered by [`Reply::Send`], then `body_bytes` bytes follow.
    Submit {
        /// The lane.
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
    /// Headers of the transactions in the outbox, oldest first.
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
    Watermark {
        /// The lane.
        lane: Lane,
    },
    /// The entries in quarantine, oldest first.
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
    /// Submits an entry as its door would have, and removes it once it is on stable storage.
    QuarantineRelease {
        /// The entry's number.
        id: u64,
        /// The lane; otherwise the first.
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
        /// The reason; it goes to the log and to the centre.
        reason: String,
    },
    /// Waiting transactions, as a bundle encrypted to the configured hubs; answered by [`Reply::Piece`]s.
    Export {
        /// Only this lane; otherwise all.
        lane: Option<Lane>,
        /// From this position; otherwise the oldest waiting one.
        from: Option<Position>,
        /// Where the hub's line of a lane ends, as a file says: the lane begins there instead.
        ends: Vec<receipts::SignedReceipt>,
    },
    /// A hub's receipt from a file.
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
        /// Whether to do it; otherwise only report what would be done.
        act: bool,
    },
    /// Retries the held transaction that stalls a lane.
    #[serde(rename = "again")]
    RetryHead {
        /// The lane.
        lane: Lane,
    },
    /// Relies on a hub's store from now on.
    AcceptStore {
        /// The hub.
        hub: Hub,
        /// The store from which it answers.
        store: StoreId,
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

/// How a request names a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TransactionRef {
    /// By its id; the whole outbox is searched.
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

/// A line of the daemon's answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "snake_case")]
pub enum Reply {
    /// The client may send the body.
    Send {},
    /// It is on stable storage.
    Accepted(AcceptanceSlip),
    /// It is not stored.
    Refused {
        /// Whether the same transaction may be accepted later.
        temporary: bool,
        /// One sentence.
        reason: String,
    },
    /// Health's numbers, and `lanes`.
    Status {
        /// The document.
        status: serde_json::Value,
    },
    /// One header.
    Entry(ListedTransaction),
    /// Progress of a long answer.
    Progress {
        /// In this lane.
        lane: Lane,
        /// At this position ...
        position: Position,
        /// ... of this many.
        tail: Position,
    },
    /// The result for a lane.
    Verified(verify::LaneVerification),
    /// How far a lane is confirmed.
    Watermark {
        /// Every position up to here is confirmed.
        confirmed: Position,
    },
    /// One quarantine entry.
    Quarantined(Quarantined),
    /// This many plain bytes follow.
    Bytes {
        /// How many.
        body_bytes: u64,
    },
    /// This user may not do that.
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
        /// The missing record at which it had to stop.
        stopped_before: Option<Position>,
    },
    /// A receipt from a file was verified.
    ReceiptVerified {
        /// The receipt's lane.
        lane: Lane,
        /// The lane is now confirmed through this position.
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
    },
    /// Confirmed transactions were sent again.
    Resent {
        /// The lane.
        lane: Lane,
        /// How many; the broker has taken all of them.
        count: u64,
        /// Positions of the range that are no longer in the outbox.
        missing: u64,
        /// The broker had no subscriber for some of them.
        unsubscribed: bool,
    },
    /// The end of the answer.
    End {},
    /// The request failed; the connection may be closed.
    Failed(NotDone),
}

impl pgw_host::control::Reply for Reply {
    fn failed(failed: NotDone) -> Self {
        Self::Failed(failed)
    }

    fn is_last(&self) -> bool {
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

    fn checked(self) -> Result<Self, ClientError> {
        match self {
            Self::Failed(failed) => Err(ClientError::Failed(failed)),
            Self::NotPermitted { reason } => Err(ClientError::NotPermitted(reason)),
            other => Ok(other),
        }
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
    /// The entry's number.
    pub id: u64,
    /// When it was received, RFC 3339; empty when damaged.
    pub time: String,
    /// `mllp`, `http`, `folder`; `store` for the outbox's own records; empty when damaged.
    pub door: String,
    /// The peer's address, if the door has peers.
    pub address: Option<std::net::IpAddr>,
    /// CloudEvents `source`, or the lane of the outbox's own record; empty when damaged.
    pub source: String,
    /// Why it is here; empty when damaged.
    pub reason: String,
    /// How many bytes are stored.
    pub bytes: u64,
    /// The file does not hold what was written.
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
        let gone = ListedTransaction::gone(Lane::new("clinical").unwrap(), 7, false);
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
