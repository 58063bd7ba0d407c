//! The requests of the outbox's threads to each other.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use pgw_core::transaction::{Clock, Position, TransactionId, UnixMillis};
use tokio::sync::oneshot;

use crate::dedup::fingerprint::Fingerprints;
use crate::errors::Refusal;
use crate::guard::segment::{Segment, SegmentError};
use crate::submission::Submission;
use crate::types::Accepted;

/// Most transactions in a group.
pub(crate) const GROUP_RECORDS: usize = 256;
/// A group takes no more once it has this many payload bytes.
pub(crate) const GROUP_BYTES: usize = 4 << 20;

/// A request to the writer; it does them in order.
pub(crate) enum Job {
    /// Store a submission.
    Submit(Box<Queued>),
    /// Begin a new segment: the present one is wholly confirmed and idle, so that it can be pruned, or it is damaged.
    Retire {
        /// Index of the lane.
        lane: usize,
        /// The tail that was seen; if it has moved, the request is void.
        tail: Option<Position>,
    },
    /// The barrier under way in a lane has ended.
    BarrierEnded {
        /// Index of the lane.
        lane: usize,
        /// How it ended.
        outcome: Result<(), SegmentError>,
    },
    /// Answer, to show that the writer and the disk respond.
    Pulse(std::sync::mpsc::SyncSender<()>),
    /// Finish the pending records, and end.
    Stop,
}

/// A submission in the queue.
pub(crate) struct Queued {
    pub(crate) lane: usize,
    pub(crate) submission: Submission,
    /// The sender on the wire, where it is not the submission's.
    pub(crate) wire_sender: Option<String>,
    /// It was accepted before, and keeps what it got then.
    pub(crate) first: Option<FirstAcceptance>,
    pub(crate) fingerprints: Fingerprints,
    pub(crate) cost: u64,
    pub(crate) entered: Instant,
    pub(crate) answer: oneshot::Sender<Result<Accepted, Refusal>>,
    /// The comparer's results for it.
    pub(crate) compared: Comparisons,
}

/// What a transaction gets at its acceptance.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FirstAcceptance {
    pub(crate) id: TransactionId,
    pub(crate) time: UnixMillis,
    pub(crate) clock: Clock,
}

/// The result of comparing a submission with a record that the index has named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Examined {
    /// The same transaction: this is the answer.
    Same(Accepted),
    /// The same sender and key, and other bytes.
    KeyReused,
    /// Another one.
    Other,
    /// It cannot be compared now.
    Trouble(String),
}

/// The results for a submission, by position in its lane.
pub(crate) type Comparisons = BTreeMap<Position, Examined>;

/// A request for a barrier.
pub(crate) struct WantedBarrier {
    /// Index of the lane.
    pub(crate) lane: usize,
    /// The segment that the lane writes.
    pub(crate) segment: Arc<Segment>,
}

/// Work that would delay the writer.
pub(crate) enum Task {
    /// Make a segment ahead.
    MakeAhead {
        /// Index of the lane.
        lane: usize,
        /// The new segment's number.
        number: u64,
    },
    /// Drop a handle.
    DropHandle {
        /// Index of the lane.
        lane: usize,
        /// Its segment.
        number: u64,
        /// The handle.
        segment: Arc<Segment>,
    },
    /// Seal the digest table of a closed segment, or make one again whose entries the chain does not prove.
    KeepDigests {
        /// Index of the lane.
        lane: usize,
        /// Its segment.
        number: u64,
    },
    /// Remove a directory: to the trash first.
    Discard(PathBuf),
    /// End.
    Stop,
}
