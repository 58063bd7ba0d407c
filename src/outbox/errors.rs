//! Why the outbox says no.

use std::path::PathBuf;

use pgw_core::transaction::{Lane, Position};

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
    /// The keys do not open all of this store; nothing was written.
    #[error(
        "the outbox keys do not open all of the store in {directory}: it needs key {expected}; there is only {given}. Bring the missing key back from central IT's copy"
    )]
    WrongKey {
        /// Where.
        directory: PathBuf,
        /// Ids of the keys that are missing, with what needs them.
        expected: String,
        /// Ids of the keys given.
        given: String,
    },
    /// It was retired: another box has it now, or is to have it. Nothing was written.
    #[error(
        "the store in {directory} was retired at {time}: its content goes on in another box, and this one must never run again. Is this the copy on the new box? `practice-gateway outbox adopt`. Was the move given up? `practice-gateway outbox retire --undo`"
    )]
    Retired {
        /// Where.
        directory: PathBuf,
        /// When, RFC 3339.
        time: String,
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
