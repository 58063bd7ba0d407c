//! The outbox: the durable, encrypted, ordered store of transactions.
//!
//! What is below its directory (`docs/on-disk-format.md`):
//!
//! | path | what | lost? |
//! |---|---|---|
//! | `FORMAT` | version, owner, which key has sealed what ([`claim`]); written first | the store is refused ([`mend`]) |
//! | `lock` | held while a process has the store | - |
//! | `lanes.list` | the numbers of the lanes in records | - |
//! | `lanes/{lane}/numbering` | the lane's epochs | taken from the newest segment |
//! | `lanes/{lane}/ledger` | what each segment holds | made again from the segments |
//! | `lanes/{lane}/voids` | what is lost and was released by a person ([`voids`]) | the lane stands there again |
//! | `segments/{lane}/{ordinal}/` | the records ([`record`]), a small sled database each ([`segment`]) | salvaged, else damaged |
//! | `sidecar` | the last accepted position and chain value of each lane | a lost tail goes unseen |
//! | `marks` | confirmed through, retention | everything is sent once more |
//! | `index/` | keyed hashes for de-duplication, and their key ([`index_key`]) | made again |
//! | `quarantine/`, `aside/` | refused input, damaged records and segments: a person decides | - |
//! | `ballast` | space that is released when the disk is full | made again |
//! | `trash/` | being deleted | - |
//!
//! Beside the daemon work [`mend`] (offline repair), [`moving`] (another box) and [`set_aside`] (a lost key); [`hostile`] is for the fuzz targets.
//!
//! Invariants, each held by a test:
//! - An answer is given after the barrier, never before; readers see only what is behind it ([`pen`]).
//! - Segment k counts for the positions from its base up to the base of the next one ([`lane`]).
//! - After a failed barrier nothing is appended to that segment, and what was beyond its last good
//!   barrier is written again elsewhere before anything else ([`pen`]).
//! - accepted = confirmed + waiting + damaged, at any moment ([`lane`]).
//! - Only the last record is ever trimmed, and only beyond the sidecar ([`recovery`]).

mod admission;
mod alternating;
#[cfg(test)]
mod barrier_tests;
mod claim;
#[cfg(test)]
mod damage_tests;
mod duplicates;
mod errors;
#[cfg(test)]
mod faults_for_tests;
mod files;
mod filter;
mod generation;
#[doc(hidden)]
pub mod hostile;
mod index;
mod index_key;
mod keeper;
#[cfg(test)]
mod key_tests;
mod key_use;
mod keyring;
mod lane;
mod log_check;
mod maker;
mod marks;
pub mod mend;
pub mod moving;
mod opening;
mod pen;
mod quarantine;
mod read;
mod record;
mod recovery;
mod repair;
mod salvage;
mod seal;
mod segment;
pub mod set_aside;
mod shared;
mod sidecar;
mod space;
mod syncer;
mod tags;
#[cfg(test)]
mod tests;
mod trash;
#[cfg(test)]
mod void_tests;
mod voids;
mod writer;

pub use errors::{OpenError, ReadError, Refusal};
pub use key_use::KeyUse;
pub use keyring::{Keyring, OutboxKey};
pub use quarantine::Entry as QuarantineEntry;
pub use voids::Released;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use pgw_core::chain::ChainValue;
use pgw_core::delivery::Numbering;
use pgw_core::transaction::{
    Body, Clock, Epoch, Gateway, Lane, Position, Practice, Sequence, Transaction, TransactionId, UnixMillis,
};
use tokio::sync::{oneshot, watch};

use self::lane::LaneShared;
use self::shared::Shared;
use self::writer::{Job, Queued};

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

/// Beside its body, what a submission costs in the queue.
const SUBMISSION_BYTES: u64 = 512;

/// A handle on the open outbox; clones share it. The last one dropped closes it (as a crash would, only tidier).
#[derive(Clone)]
pub struct Outbox {
    running: Arc<opening::Running>,
}

impl Outbox {
    /// Opens or creates the store, recovers what a crash left, and starts the writer thread.
    ///
    /// Blocking: call it before the runtime, or from `spawn_blocking`.
    ///
    /// # Errors
    /// [`OpenError`]; a damaged segment is no error but a [`Notable`].
    pub fn open(settings: Settings, keys: impl Into<Keyring>) -> Result<Self, OpenError> {
        Ok(Self { running: Arc::new(opening::open(settings, &keys.into(), claim::Retirement::Refused)?) })
    }

    fn shared(&self) -> &Arc<Shared> {
        &self.running.shared
    }

    fn lane(&self, lane: &Lane) -> Option<&Arc<LaneShared>> {
        self.shared().lane(lane).map(|(_, lane)| lane)
    }

    /// The only way in: returns when the transaction is behind the barrier. Cancelling it does not take it back.
    ///
    /// # Errors
    /// [`Refusal`]: nothing was promised.
    pub async fn submit(&self, submission: Submission) -> Result<Accepted, Refusal> {
        let entered = Instant::now();
        let shared = self.shared();
        let Some((lane, _)) = shared.lane(&submission.lane) else {
            return Err(Refusal::UnknownLane(submission.lane));
        };
        let bytes = submission.body.len() as u64;
        let limit = shared.settings.max_body_bytes;
        if bytes > limit {
            return Err(Refusal::TooLarge { bytes, limit });
        }
        let cost = bytes + SUBMISSION_BYTES;
        let queued = shared.queued_bytes.fetch_add(cost, Ordering::Relaxed);
        // One alone is taken whatever its size, or a limit below the largest body would refuse it for ever.
        if queued > 0 && queued + cost > shared.settings.queue_bytes {
            shared.queued_bytes.fetch_sub(cost, Ordering::Relaxed);
            return Err(Refusal::Busy);
        }
        let tags = shared.tagger.tags(&submission.source, &submission.key, submission.body.as_bytes());
        let (answer, outcome) = oneshot::channel();
        let compared = BTreeMap::new();
        let queued = Queued { lane, submission, tags, cost, entered, answer, compared };
        let job = Job::Submit(Box::new(queued));
        if self.running.jobs.send(job).is_err() {
            shared.queued_bytes.fetch_sub(cost, Ordering::Relaxed);
            return Err(self.running.ended());
        }
        outcome.await.unwrap_or_else(|_| Err(self.running.ended()))
    }

    /// The last position behind the barrier, as it grows.
    #[must_use]
    pub fn tail(&self, lane: &Lane) -> Option<watch::Receiver<Position>> {
        self.lane(lane).map(|lane| lane.tail.subscribe())
    }

    /// Reads what is behind the barrier, in order: at least one record if there is one at `from`, then up to
    /// `max_records` and about `max_bytes`. Blocking: has a thread of its own.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn read(
        &self,
        lane: &Lane,
        from: Position,
        max_records: usize,
        max_bytes: usize,
    ) -> Result<Vec<Stored>, ReadError> {
        let gone = || ReadError::Gone { lane: lane.clone(), position: from };
        self.shared().read(self.lane(lane).ok_or_else(gone)?, from, max_records, max_bytes)
    }

    /// The chain value on the wire at a position (0: the epoch's first value), if it can still be had. Blocking.
    #[must_use]
    pub fn chain_at(&self, lane: &Lane, position: Position) -> Option<ChainValue> {
        self.shared().chain_at(self.lane(lane)?, position)
    }

    /// The confirmed mark as last recorded.
    #[must_use]
    pub fn mark(&self, lane: &Lane) -> Option<Mark> {
        Some(self.lane(lane)?.state().mark)
    }

    /// Records the confirmed mark (it may go back when a hub was restored); written behind, cheap, never blocks.
    pub fn confirm(&self, lane: &Lane, mark: Mark, backed_up_through: Option<Position>) {
        if let Some(lane) = self.lane(lane) {
            let mut state = lane.state();
            state.confirm(mark);
            state.backed_up_through = backed_up_through;
            state.mark_stale = true;
            state.answered = true;
        }
    }

    /// Records a confirmed mark that no hub has answered for on a live connection: it came by file. Nothing is pruned on
    /// its word.
    pub fn confirm_by_file(&self, lane: &Lane, mark: Mark) {
        if let Some(lane) = self.lane(lane) {
            let mut state = lane.state();
            state.confirm(mark);
            state.mark_stale = true;
        }
    }

    /// The connection is gone: until the hubs have answered on the next one nothing is pruned on the word of the last. They
    /// may have been restored from a backup meanwhile.
    pub fn link_lost(&self) {
        for lane in &self.shared().lanes {
            lane.state().answered = false;
        }
    }

    /// The first position that is still kept (confirmed ones in retention included).
    #[must_use]
    pub fn first_retained(&self, lane: &Lane) -> Option<Position> {
        Some(self.lane(lane)?.state().first_retained())
    }

    /// How positions map to epochs and sequences.
    #[must_use]
    pub fn numbering(&self, lane: &Lane) -> Option<Numbering> {
        Some(self.lane(lane)?.state().numbering.clone())
    }

    /// A fork: positions after `after` get a new epoch, by one synced renumbering record. Blocking.
    ///
    /// # Errors
    /// [`Refusal::Trouble`] when it could not be made durable; nothing has changed then.
    pub fn new_epoch(&self, lane: &Lane, after: Position) -> Result<Numbering, Refusal> {
        let Some((index, _)) = self.shared().lane(lane) else {
            return Err(Refusal::UnknownLane(lane.clone()));
        };
        let (answer, outcome) = std::sync::mpsc::sync_channel(1);
        let job = Job::NewEpoch { lane: index, after, answer };
        self.running.jobs.send(job).map_err(|_| self.running.ended())?;
        outcome.recv().unwrap_or_else(|_| Err(self.running.ended()))
    }

    /// Keeps refused input, sealed, bounded, with its reason. Blocking. Returns its quarantine id.
    ///
    /// # Errors
    /// [`Refusal`] when there is no room.
    pub fn quarantine(&self, reason: &'static str, source: &str, bytes: &[u8]) -> Result<u64, Refusal> {
        self.shared().quarantine.keep(reason, source, bytes).map_err(|error| {
            if segment::is_full(&error) {
                Refusal::Full(error.to_string())
            } else {
                Refusal::Trouble(error.to_string())
            }
        })
    }

    /// What is in quarantine, oldest first. Blocking.
    ///
    /// # Errors
    /// [`Refusal::Trouble`]: the directory cannot be read.
    pub fn quarantined(&self) -> Result<Vec<QuarantineEntry>, Refusal> {
        self.shared().quarantine.list().map_err(|error| Refusal::Trouble(error.to_string()))
    }

    /// An entry of the quarantine without its bytes; `None`: there is none of this number. Blocking.
    ///
    /// # Errors
    /// [`Refusal::Trouble`]: it cannot be read.
    pub fn quarantined_entry(&self, id: u64) -> Result<Option<QuarantineEntry>, Refusal> {
        self.shared().quarantine.find(id).map_err(|error| Refusal::Trouble(error.to_string()))
    }

    /// An entry of the quarantine with its bytes; `None`: there is none of this number. Blocking.
    ///
    /// # Errors
    /// [`Refusal::Trouble`]: it is damaged or cannot be read.
    pub fn quarantined_bytes(&self, id: u64) -> Result<Option<(QuarantineEntry, Vec<u8>)>, Refusal> {
        self.shared().quarantine.get(id).map_err(|error| Refusal::Trouble(error.to_string()))
    }

    /// Removes an entry of the quarantine for good, as a person has decided; false: there is none. Blocking.
    ///
    /// # Errors
    /// [`Refusal::Trouble`]: it cannot be removed.
    pub fn discard_quarantined(&self, id: u64) -> Result<bool, Refusal> {
        self.shared().quarantine.remove(id).map_err(|error| Refusal::Trouble(error.to_string()))
    }

    /// How far the clock can be believed from now on; stamped on what is accepted. Untrusted until told otherwise.
    pub fn set_clock(&self, clock: Clock) {
        self.shared().set_clock(clock);
    }

    /// Whether every thread of the outbox runs and the writer has come round within this time, the disk with it: for the
    /// watchdog. Blocking.
    #[must_use]
    pub fn pulse(&self, within: Duration) -> bool {
        let (answer, pulse) = std::sync::mpsc::sync_channel(1);
        self.shared().all_threads_run()
            && self.running.jobs.send(Job::Pulse(answer)).is_ok()
            && pulse.recv_timeout(within).is_ok()
    }

    /// Numbers for health.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        self.shared().snapshot()
    }

    /// Something that people should know of: health says it with the next message.
    pub fn note(&self, notable: Notable) {
        self.shared().notable(notable.code, notable.detail);
    }

    /// What people should know of since the last call.
    #[must_use]
    pub fn notables(&self) -> Vec<Notable> {
        self.shared().take_notables()
    }

    /// Stops accepting, finishes the groups under way, syncs and closes. Blocking.
    pub fn close(self) {
        self.running.stop();
    }
}

impl std::fmt::Debug for Outbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Outbox").field("directory", &self.shared().settings.directory).finish_non_exhaustive()
    }
}
