//! What the threads of the outbox ask of each other.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use pgw_core::delivery::Numbering;
use pgw_core::transaction::Position;
use tokio::sync::oneshot;

use crate::dedup::fingerprint::Fingerprints;
use crate::errors::Refusal;
use crate::guard::segment::{Segment, SegmentError};
use crate::types::{Accepted, Submission};

/// Most transactions in a group.
pub(crate) const GROUP_RECORDS: usize = 256;
/// A group takes no more once it has this many payload bytes.
pub(crate) const GROUP_BYTES: usize = 4 << 20;

/// What the writer is asked to do, in order.
pub(crate) enum Job {
    /// Store it.
    Submit(Box<Queued>),
    /// Number what comes after `after` in a new epoch.
    NewEpoch {
        /// Index of the lane.
        lane: usize,
        /// Last position that keeps its number.
        after: Position,
        /// EndNotice the outcome.
        answer: std::sync::mpsc::SyncSender<Result<Numbering, Refusal>>,
    },
    /// Begin a new segment: all of this one is confirmed and nothing came for a while, so that it can be pruned; or it
    /// is damaged.
    Retire {
        /// Index of the lane.
        lane: usize,
        /// The tail that was seen; if it has moved on, there is no need any more.
        tail: Option<Position>,
    },
    /// The barrier under way in a lane has ended.
    BarrierEnded {
        /// Index of the lane.
        lane: usize,
        /// How it ended.
        outcome: Result<(), SegmentError>,
    },
    /// Say that the writer moves, and the disk with it.
    Pulse(std::sync::mpsc::SyncSender<()>),
    /// Finish what was taken, and end.
    Stop,
}

/// A submission in the queue.
pub(crate) struct Queued {
    pub(crate) lane: usize,
    pub(crate) submission: Submission,
    pub(crate) fingerprints: Fingerprints,
    pub(crate) cost: u64,
    pub(crate) entered: Instant,
    pub(crate) answer: oneshot::Sender<Result<Accepted, Refusal>>,
    /// What was compared for it elsewhere.
    pub(crate) compared: Comparisons,
}

/// What a record that the index has named turned out to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Examined {
    /// The same transaction: this is the answer.
    Same(Accepted),
    /// The same sender and key, and other bytes.
    KeyReused,
    /// Another one.
    Other,
    /// It cannot be said now.
    Trouble(String),
}

/// What has been compared for a submission, by position in its lane.
pub(crate) type Comparisons = BTreeMap<Position, Examined>;

/// A barrier that is wanted.
pub(crate) struct WantedBarrier {
    /// Index of the lane.
    pub(crate) lane: usize,
    /// The segment that it writes.
    pub(crate) segment: Arc<Segment>,
}

/// Work that would hold up the writer.
pub(crate) enum Task {
    /// Make a segment ahead.
    MakeAhead {
        /// Index of the lane.
        lane: usize,
        /// The segment to be made.
        number: u64,
    },
    /// Drop a handle.
    LetGo {
        /// Index of the lane.
        lane: usize,
        /// Its segment.
        number: u64,
        /// The handle.
        segment: Arc<Segment>,
    },
    /// Remove a directory: to the trash first.
    Discard(PathBuf),
    /// End.
    Stop,
}
