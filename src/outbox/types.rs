//! The data that goes into and out of the outbox.

use std::path::PathBuf;
use std::time::Duration;

use pgw_core::chain::{ChainValue, Digest, Through};
use pgw_core::transaction::{
    Gateway, Lane, LaneName, Position, Practice, Transaction, TransactionId, UnixMillis,
};

use crate::event_type::TypeAffixes;

/// The outbox's part of the configuration. Nothing in it is optional: the configuration has the defaults.
#[derive(Debug, Clone)]
pub struct OutboxSettings {
    /// The store's directory; everything the outbox writes is below it.
    pub directory: PathBuf,
    /// The owner's practice, stored so that a disk moved to another box is noticed.
    pub practice: Practice,
    /// The gateway's id.
    pub gateway: Gateway,
    /// The lanes, in the order of the configuration.
    pub lanes: Vec<LaneSettings>,
    /// What stands around the types that doors name.
    pub types: TypeAffixes,
    /// Records in a segment before it rolls (8,192).
    pub segment_records: u64,
    /// Payload bytes in a segment before it rolls (32 MiB).
    pub segment_bytes: u64,
    /// Running time for which a confirmed transaction is kept (35 days).
    pub retention: Duration,
    /// Most bytes on disk for the whole store (6 GiB); beyond it new work is refused.
    pub limit_bytes: u64,
    /// Free bytes that the file system must keep: max of this (64 MiB) and `min_free_percent`.
    pub min_free_bytes: u64,
    /// Free part of the file system that must stay (10 %).
    pub min_free_percent: u8,
    /// Largest body (20 MB); at most [`pgw_core::wire::limits::BODY_BYTES`].
    pub max_body_bytes: u64,
    /// Most bytes of all submissions in the writer's queue (64 MiB).
    pub queue_bytes: u64,
    /// Most bytes kept in quarantine (256 MiB).
    pub quarantine_bytes: u64,
}

impl OutboxSettings {
    /// The full name of one of its lanes.
    #[must_use]
    pub fn lane_name(&self, lane: &Lane) -> LaneName {
        LaneName { practice: self.practice.clone(), gateway: self.gateway.clone(), lane: lane.clone() }
    }
}

/// One lane.
#[derive(Debug, Clone)]
pub struct LaneSettings {
    /// Its name.
    pub lane: Lane,
    /// Whether it may use the reserve when other lanes are refused.
    pub urgent: bool,
}

/// The answer to a submission that is on stable storage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Accepted {
    /// The id of the stored transaction (of the first, for a repetition).
    pub id: TransactionId,
    /// Its position in its lane.
    pub position: Position,
    /// When it was accepted first.
    pub time: UnixMillis,
    /// It was stored already: same source, key and bytes.
    pub repeated: bool,
    /// The same source and key were seen before with other bytes: accepted as new, and flagged.
    pub key_reused: bool,
    /// An attribute contained a valid NHS number, which was left out; the body has everything.
    pub withheld: bool,
}

/// A transaction as it is read back, behind the barrier. Its numbers and chain value on the wire are made when it is sent.
#[derive(Debug, Clone)]
pub struct Stored {
    /// Its position.
    pub position: Position,
    /// SHA-256 over its attributes and its body ([`Digest::of`]).
    pub digest: Digest,
    /// The transaction itself.
    pub transaction: Transaction,
}

/// What a record says about its place in the chain over positions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChainedRecord {
    /// Its position.
    pub position: Position,
    /// SHA-256 over its attributes and its body, as read now.
    pub digest: Digest,
    /// Value of the chain over positions before it, as its header has it.
    pub previous: ChainValue,
    /// The same after it.
    pub chain: ChainValue,
}

/// Positions that an operator has written off.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReleasedRange {
    /// First position.
    pub from: Position,
    /// Last position.
    pub through: Position,
    /// The operator's reason.
    pub reason: String,
    /// When it was written off.
    pub time: UnixMillis,
}

/// How far the hub's receipts have confirmed a lane.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Watermark {
    /// Confirmed through this position; 0: nothing.
    pub position: Position,
    /// The point of the lane's line on the wire that says so; `None`: there is none.
    pub point: Option<Through>,
}

/// One lane in numbers; `accepted == confirmed + waiting + damaged` always.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LaneCounts {
    /// Ever accepted (the tail).
    pub accepted: u64,
    /// Confirmed by the hub.
    pub confirmed: u64,
    /// Not confirmed yet, and readable.
    pub waiting: u64,
    /// Not confirmed and no longer readable.
    pub damaged: u64,
    /// Payload bytes of the waiting transactions (an estimate after a restart).
    pub waiting_bytes: u64,
    /// Acceptance time of the oldest waiting transaction.
    pub oldest_time: Option<UnixMillis>,
}

/// The outbox in numbers, for health and status; cheap, no disk.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// Each lane, in the order of the configuration.
    pub lanes: Vec<(Lane, LaneCounts)>,
    /// Bytes of the store on disk.
    pub store_bytes: u64,
    /// Its limit.
    pub limit_bytes: u64,
    /// Free on the file system.
    pub disk_free_bytes: u64,
    /// Entries in quarantine.
    pub quarantined: u64,
    /// Submissions recognised as repetitions since start.
    pub repeated_total: u64,
    /// Why new work is refused now, if it is.
    pub refusing: Option<String>,
    /// 99th percentile of submit to answer over the last minute, seconds.
    pub accept_seconds_p99: f64,
}

/// An alarm; health collects it and sends it as `event`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutboxAlarm {
    /// Short code of the design: `store.low`, `store.trouble`, `quarantine`, `damaged`, `tail.trimmed`, `pruned.early` ...
    pub code: &'static str,
    /// One sentence, no patient data.
    pub detail: String,
}

/// A range that was released, or would be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Released {
    /// First position.
    pub from: Position,
    /// Last position.
    pub through: Position,
}
