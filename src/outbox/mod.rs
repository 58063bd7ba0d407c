//! The outbox: the durable, encrypted, ordered store of transactions (stub: see the interface below).

mod admission;
mod alternating;
mod generation;
mod index;
mod marks;
mod quarantine;
mod sidecar;
mod space;
mod tags;

use std::path::PathBuf;
use std::time::Duration;

use tokio::sync::watch;

use crate::chain::ChainValue;
use crate::delivery::Numbering;
use crate::transaction::{
    Body, Epoch, Gateway, Lane, Position, Practice, Sequence, Transaction, TransactionId, UnixMillis,
};

/// What the outbox is told by the configuration. Nothing in it is optional: the configuration has the defaults.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The store's directory; everything the outbox writes is below it.
    pub directory: PathBuf,
    /// Names the owner, bound into the store so that a disk moved to another box is noticed.
    pub practice: Practice,
    /// The gateway's id.
    pub gateway: Gateway,
    /// The lanes, in the order of the configuration.
    pub lanes: Vec<LaneSettings>,
    /// Records in a segment before it rolls (16,384).
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
    /// Largest body (20 MB).
    pub max_body_bytes: u64,
    /// Bytes of all submissions that wait for the writer together (64 MiB).
    pub queue_bytes: u64,
    /// Most bytes kept in quarantine (256 MiB).
    pub quarantine_bytes: u64,
}

/// One lane.
#[derive(Debug, Clone)]
pub struct LaneSettings {
    /// Its name.
    pub lane: Lane,
    /// Whether the reserve is there for it when others are refused.
    pub urgent: bool,
}

/// What a door hands over; the outbox gives it id, time and number.
#[derive(Debug, Clone)]
pub struct Submission {
    /// Where it goes.
    pub lane: Lane,
    /// CloudEvents `type`.
    pub event_type: String,
    /// `hl7v2`, `fhir`, `edifact`, `opaque`.
    pub kind: String,
    /// Media type.
    pub content_type: String,
    /// CloudEvents `source`.
    pub source: String,
    /// The sender's key; empty: the content hash is the key.
    pub key: String,
    /// Correlation id; may be empty.
    pub correlation_id: String,
    /// Our own probes and drills only.
    pub test_data: bool,
    /// The message.
    pub body: Body,
}

/// It is on stable storage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Accepted {
    /// The id of the stored transaction (of the first, for a repetition).
    pub id: TransactionId,
    /// Its position in its lane.
    pub position: Position,
    /// When it was accepted first.
    pub time: UnixMillis,
    /// It was there already: same source, key and bytes.
    pub repeated: bool,
    /// The same source and key were seen before with other bytes: accepted as new, and flagged.
    pub key_reused: bool,
}

/// Why a submission was not accepted. It is not stored, or at least nobody was told so.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No room for this lane: later.
    #[error("the outbox has no room: {0}")]
    Full(String),
    /// More is waiting for the writer than `queue_bytes` allows: later.
    #[error("too much is waiting to be stored")]
    Busy,
    /// The store has trouble; the gateway is working on it: later.
    #[error("the store has trouble: {0}")]
    Trouble(String),
    /// The daemon is stopping: later.
    #[error("the gateway is stopping")]
    Stopping,
    /// Larger than `max_body_bytes`: never.
    #[error("the message has {bytes} bytes, more than the limit of {limit}")]
    TooLarge {
        /// Its size.
        bytes: u64,
        /// The limit.
        limit: u64,
    },
    /// No such lane is configured: never.
    #[error("there is no lane {0:?} in the configuration")]
    UnknownLane(Lane),
}

impl Refusal {
    /// Whether the same submission may be accepted later.
    #[must_use]
    pub fn is_temporary(&self) -> bool {
        !matches!(self, Refusal::TooLarge { .. } | Refusal::UnknownLane(_))
    }
}

/// A transaction as it is read back, behind the barrier, with its numbers on the wire.
#[derive(Debug, Clone)]
pub struct Stored {
    /// Where it lies.
    pub position: Position,
    /// Its epoch on the wire (after any renumbering).
    pub epoch: Epoch,
    /// Its sequence on the wire.
    pub sequence: Sequence,
    /// The chain value before it, on the wire.
    pub previous: ChainValue,
    /// Its chain value, on the wire.
    pub chain: ChainValue,
    /// The transaction itself.
    pub transaction: Transaction,
}

/// How far the hub's receipts have confirmed a lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Mark {
    /// Confirmed through this position; 0: nothing.
    pub position: Position,
    /// Chain value on the wire at that position.
    pub chain: ChainValue,
}

/// One lane in numbers; `accepted == confirmed + waiting + damaged` always.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LaneCounts {
    /// Ever accepted (the tail).
    pub accepted: u64,
    /// Confirmed by the hub.
    pub confirmed: u64,
    /// Not confirmed yet, and there.
    pub waiting: u64,
    /// Not confirmed and not to be had any more.
    pub damaged: u64,
    /// Payload bytes of what waits (an estimate is good enough after a restart).
    pub waiting_bytes: u64,
    /// Acceptance time of the oldest that waits.
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

/// Something that a person should know of; drained by health and sent as `event`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notable {
    /// Short code of the design: `store.low`, `store.trouble`, `quarantine`, `damaged`, `tail.trimmed`, `pruned.early` ...
    pub code: &'static str,
    /// One sentence, no patient data.
    pub detail: String,
}

/// Why the outbox could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A store written by a newer version; nothing was touched.
    #[error(
        "the store in {directory} has format {found}, this version reads up to {known}: install the newer version again"
    )]
    Newer {
        /// Where.
        directory: PathBuf,
        /// Format found.
        found: u32,
        /// Newest known.
        known: u32,
    },
    /// The key does not open this store; nothing was written.
    #[error(
        "the outbox key does not open the store in {directory}: its key id is {expected}, the given key's is {given}"
    )]
    WrongKey {
        /// Where.
        directory: PathBuf,
        /// Key id in the store.
        expected: String,
        /// Id of the key given.
        given: String,
    },
    /// The store belongs to another practice or gateway.
    #[error("the store in {directory} belongs to {owner}, this configuration is for {configured}")]
    OtherOwner {
        /// Where.
        directory: PathBuf,
        /// `practice.gateway` in the store.
        owner: String,
        /// `practice.gateway` configured.
        configured: String,
    },
    /// Another process has it.
    #[error("the store in {0} is in use by another process")]
    InUse(PathBuf),
    /// The file system said no.
    #[error("cannot {action} {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
}

/// Why a record could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// Confirmed and pruned, or destroyed: not to be had.
    #[error("position {position} of lane {lane} is not to be had any more")]
    Gone {
        /// Lane.
        lane: Lane,
        /// Position.
        position: Position,
    },
    /// The store has trouble; try again later.
    #[error("the store has trouble: {0}")]
    Trouble(String),
}

/// The key that seals records: 32 bytes, zeroed when dropped, and its id (first 8 bytes of its SHA-256, hex).
pub struct OutboxKey {
    _private: (),
}

impl OutboxKey {
    /// A key of 32 bytes.
    #[must_use]
    pub fn new(_bytes: [u8; 32]) -> Self {
        todo!()
    }

    /// Its id: names it without giving it away.
    #[must_use]
    pub fn id(&self) -> String {
        todo!()
    }
}

/// A handle on the open outbox; clones share it. The last one dropped closes it (as a crash would, only tidier).
#[derive(Clone)]
pub struct Outbox {
    _private: (),
}

impl Outbox {
    /// Opens or creates the store, recovers what a crash left, and starts the writer thread.
    ///
    /// Blocking: call it before the runtime, or from `spawn_blocking`.
    ///
    /// # Errors
    /// [`OpenError`]; a damaged segment is no error but a [`Notable`].
    pub fn open(_settings: Settings, _key: OutboxKey) -> Result<Self, OpenError> {
        todo!()
    }

    /// The only way in: returns when the transaction is behind the barrier.
    ///
    /// # Errors
    /// [`Refusal`]: nothing was promised.
    pub async fn submit(&self, _submission: Submission) -> Result<Accepted, Refusal> {
        todo!()
    }

    /// The last position behind the barrier, as it grows.
    #[must_use]
    pub fn tail(&self, _lane: &Lane) -> Option<watch::Receiver<Position>> {
        todo!()
    }

    /// Reads what is behind the barrier, in order: at least one record if there is one at `from`, then up to
    /// `max_records` and about `max_bytes`. Blocking: has a thread of its own.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn read(
        &self,
        _lane: &Lane,
        _from: Position,
        _max_records: usize,
        _max_bytes: usize,
    ) -> Result<Vec<Stored>, ReadError> {
        todo!()
    }

    /// The chain value on the wire at a position (0: the epoch's first value), if it can still be had. Blocking.
    #[must_use]
    pub fn chain_at(&self, _lane: &Lane, _position: Position) -> Option<ChainValue> {
        todo!()
    }

    /// The confirmed mark as last recorded.
    #[must_use]
    pub fn mark(&self, _lane: &Lane) -> Option<Mark> {
        todo!()
    }

    /// Records the confirmed mark (it may go back when a hub was restored); written behind, cheap, never blocks.
    pub fn confirm(&self, _lane: &Lane, _mark: Mark, _backed_up_through: Option<Position>) {
        todo!()
    }

    /// The first position that is still kept (confirmed ones in retention included).
    #[must_use]
    pub fn first_retained(&self, _lane: &Lane) -> Option<Position> {
        todo!()
    }

    /// How positions map to epochs and sequences.
    #[must_use]
    pub fn numbering(&self, _lane: &Lane) -> Option<Numbering> {
        todo!()
    }

    /// A fork: positions after `after` get a new epoch, by one synced renumbering record. Blocking.
    ///
    /// # Errors
    /// [`Refusal::Trouble`] when it could not be made durable; nothing has changed then.
    pub fn new_epoch(&self, _lane: &Lane, _after: Position) -> Result<Numbering, Refusal> {
        todo!()
    }

    /// Keeps refused input, sealed, bounded, with its reason. Blocking. Returns its quarantine id.
    ///
    /// # Errors
    /// [`Refusal`] when there is no room.
    pub fn quarantine(&self, _reason: &'static str, _source: &str, _bytes: &[u8]) -> Result<u64, Refusal> {
        todo!()
    }

    /// Numbers for health.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        todo!()
    }

    /// What people should know of since the last call.
    #[must_use]
    pub fn notables(&self) -> Vec<Notable> {
        todo!()
    }

    /// Stops accepting, finishes the groups under way, syncs and closes. Blocking.
    pub fn close(self) {
        todo!()
    }
}
