//! Reads the outbox in order, for listing, checking, export and look-up: in batches, with each transaction's header.
//!
//! Everything here blocks, because it reads the disk.

use pgw_core::delivery::Numbering;
use pgw_core::transaction::{Epoch, Lane, Position, Sequence, TransactionId, rfc3339};
use pgw_outbox::{Outbox, ReadError, Stored};
use serde::{Deserialize, Serialize};

/// Records read at once.
const BATCH_RECORDS: usize = 256;
/// Payload bytes read at once, about.
const BATCH_BYTES: usize = 1 << 20;

/// The lanes, in the order of the configuration.
#[must_use]
pub fn lanes(outbox: &Outbox) -> Vec<Lane> {
    outbox.snapshot().lanes.into_iter().map(|(lane, _)| lane).collect()
}

/// The last position behind the barrier; 0 for an empty or unknown lane.
#[must_use]
pub fn tail(outbox: &Outbox, lane: &Lane) -> Position {
    outbox.tail(lane).map_or(0, |tail| *tail.borrow())
}

/// Confirmed by the hub through this position; 0: nothing is.
#[must_use]
pub fn confirmed(outbox: &Outbox, lane: &Lane) -> Position {
    outbox.watermark(lane).map_or(0, |watermark| watermark.position)
}

/// Consecutive records, from `first` on.
pub(crate) struct Batch {
    pub(crate) first: Position,
    /// Empty: the record at `first` can no longer be read.
    pub(crate) records: Vec<Stored>,
}

/// All positions from a first through a last one, in [`Batch`]es without a gap between them.
pub(crate) struct Batches<'a> {
    outbox: &'a Outbox,
    lane: &'a Lane,
    next: Position,
    last: Position,
}

/// Reads `lane` from `first` through `last`.
pub(crate) fn batches<'a>(
    outbox: &'a Outbox,
    lane: &'a Lane,
    first: Position,
    last: Position,
) -> Batches<'a> {
    Batches { outbox, lane, next: first.max(1), last }
}

impl Iterator for Batches<'_> {
    /// After an error there may be more: the next call reads the same records again.
    type Item = Result<Batch, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        let first = self.next;
        if first > self.last {
            return None;
        }
        let wanted = usize::try_from(self.last - first).unwrap_or(BATCH_RECORDS).saturating_add(1);
        let read = self.outbox.read(self.lane, first, wanted.min(BATCH_RECORDS), BATCH_BYTES);
        let mut records = match read {
            Ok(records) => records,
            Err(ReadError::Gone { .. }) => Vec::new(),
            Err(error) => return Some(Err(error)),
        };
        let following = (first..=self.last).zip(&records).take_while(|(at, stored)| stored.position == *at);
        records.truncate(following.count());
        self.next = first.saturating_add(records.len().max(1) as u64);
        Some(Ok(Batch { first, records }))
    }
}

/// The state of a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TransactionState {
    /// Not confirmed by the hub yet.
    Waiting,
    /// Confirmed by the hub.
    Confirmed,
    /// Confirmed, and deleted after its retention.
    Pruned,
    /// Can no longer be read: not confirmed, or written off by a person.
    Damaged,
}

/// One position of a lane, without key and body: those belong to the sender and the patient.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListedTransaction {
    /// Its lane.
    pub lane: Lane,
    /// Its position there.
    pub position: Position,
    /// Its state.
    pub state: TransactionState,
    /// The rest, if it can be read.
    #[serde(flatten)]
    pub header: Option<TransactionHeader>,
}

/// The header of a transaction that can be read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransactionHeader {
    /// Its newest epoch on the wire; `null`: it was forgotten, after very many epochs.
    pub epoch: Option<Epoch>,
    /// Its sequence in that epoch.
    pub sequence: Option<Sequence>,
    /// Its id.
    pub id: TransactionId,
    /// When it was accepted, RFC 3339.
    pub time: String,
    /// CloudEvents `type`.
    #[serde(rename = "type")]
    pub event_type: String,
    /// Media type.
    pub content_type: String,
    /// Which system sent it.
    pub sender: String,
    /// Size of the body.
    pub bytes: u64,
    /// SHA-256 over its attributes and its body, 64 hexadecimal digits: the same in every epoch, and at the hub.
    pub digest: String,
}

impl ListedTransaction {
    /// From a record, in a lane with these epochs that is confirmed through `confirmed`.
    #[must_use]
    pub fn stored(lane: Lane, stored: &Stored, numbering: &Numbering, confirmed: Position) -> Self {
        let transaction = &stored.transaction;
        let state = match stored.position <= confirmed {
            true => TransactionState::Confirmed,
            false => TransactionState::Waiting,
        };
        let (epoch, sequence) = numbering.wire(stored.position).unzip();
        let header = TransactionHeader {
            epoch,
            sequence,
            id: transaction.id,
            time: rfc3339(transaction.time),
            event_type: transaction.event_type.clone(),
            content_type: transaction.content_type.clone(),
            sender: transaction.sender.clone(),
            bytes: transaction.body.len() as u64,
            digest: stored.digest.to_string(),
        };
        Self { lane, position: stored.position, state, header: Some(header) }
    }

    /// For a record that can no longer be read; `at_hub`: the hub has its content ([`Outbox::is_at_hub`]).
    #[must_use]
    pub fn gone(lane: Lane, position: Position, at_hub: bool) -> Self {
        let state = if at_hub { TransactionState::Pruned } else { TransactionState::Damaged };
        Self { lane, position, state, header: None }
    }
}
