//! Why the outbox refuses or fails.

use std::path::PathBuf;

use pgw_core::consequence::Consequence;
use pgw_core::transaction::{Lane, Position};
use pgw_core::wire::limits::TextError;

/// Why a submission was not accepted. It is not stored, or at least was not acknowledged.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No room for this lane: later.
    #[error("the store is full: {0}")]
    Full(String),
    /// The writer's queue has more than `queue_bytes`: later.
    #[error("too many transactions are waiting for the disk")]
    Busy,
    /// The store fails; the gateway keeps trying: later.
    #[error("the store has failed: {0}")]
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
    /// A text that the wire cannot carry: never.
    #[error(transparent)]
    Text(#[from] TextError),
}

impl Refusal {
    /// How a door should react.
    #[must_use]
    pub fn consequence(&self) -> Consequence {
        match self {
            Refusal::TooLarge { .. } | Refusal::UnknownLane(_) | Refusal::Text(_) => Consequence::Quarantine,
            Refusal::Full(_) | Refusal::Busy | Refusal::Trouble(_) | Refusal::Stopping => Consequence::Retry,
        }
    }

    /// Whether the same submission may be accepted later.
    #[must_use]
    pub fn is_temporary(&self) -> bool {
        self.consequence() == Consequence::Retry
    }
}

/// Why a record in quarantine was not stored once more.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadmitError {
    /// There is no such entry, or it is no record of this store whose position was written off.
    #[error("it is no record of this store that was written off")]
    NotOurs,
    /// The hub has confirmed the lane through its place, and has no entry there: it has the record itself.
    #[error(
        "the hub has confirmed its place without an entry there, and so has it already: compare with the hub before you discard it"
    )]
    AtHub,
    /// It is stored once more already, and its entry could not be removed then.
    #[error("it is stored once more already: discard the entry")]
    Returned,
    /// It is not certain yet that the hub does not have it: later.
    #[error("the hub has not confirmed the entry in its place yet")]
    NotConfirmed,
    /// The store refuses it.
    #[error(transparent)]
    Refused(#[from] Refusal),
}

/// Why the outbox could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A store written by a newer version; nothing was touched.
    #[error(
        "the store in {directory} has format {found}, this version reads up to {known}: install the newer version again"
    )]
    Newer {
        /// The store.
        directory: PathBuf,
        /// Format found.
        found: u32,
        /// Newest known.
        known: u32,
    },
    /// The keys do not open all of this store; nothing was written.
    #[error(
        "the outbox keys do not open all of the store in {directory}: it needs key {expected}, and there is only {given}. Restore the missing key from central IT's copy"
    )]
    WrongKey {
        /// The store.
        directory: PathBuf,
        /// Ids of the keys that are missing, with what needs them.
        expected: String,
        /// Ids of the keys given.
        given: String,
    },
    /// It was retired: it has moved to another box, or is about to. Nothing was written.
    #[error(
        "the store in {directory} was retired at {time}: it continues on another box, and must never run here again. Is this the copy on the new box? `practice-gateway outbox adopt`. Was the move given up? `practice-gateway outbox retire --undo`"
    )]
    Retired {
        /// The store.
        directory: PathBuf,
        /// When, RFC 3339.
        time: String,
    },
    /// The store belongs to another practice or gateway.
    #[error("the store in {directory} belongs to {owner}, this configuration is for {configured}")]
    OtherOwner {
        /// The store.
        directory: PathBuf,
        /// `practice.gateway` in the store.
        owner: String,
        /// `practice.gateway` configured.
        configured: String,
    },
    /// Another process has it open.
    #[error("the store in {0} is in use by another process")]
    InUse(PathBuf),
    /// The file system failed.
    #[error("cannot {action} {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
}

impl OpenError {
    /// How whoever opens it should react.
    #[must_use]
    pub fn consequence(&self) -> Consequence {
        match self {
            Self::Newer { .. } | Self::WrongKey { .. } | Self::Retired { .. } | Self::OtherOwner { .. } => {
                Consequence::CONFIGURATION
            }
            Self::InUse(_) => Consequence::Retry,
            Self::Io { source, .. } => Consequence::of_file(source),
        }
    }
}

/// Why a record could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// Confirmed and pruned, or destroyed: it can no longer be read.
    #[error("position {position} of lane {lane} can no longer be read")]
    Gone {
        /// Lane.
        lane: Lane,
        /// Position.
        position: Position,
    },
    /// A digest before it is unknown, because record and table are lost: it has no chain value in this epoch.
    #[error(
        "position {position} of lane {lane} has no chain value in its epoch, because the digest of a lost record before it is lost too"
    )]
    Unproven {
        /// Lane.
        lane: Lane,
        /// Position.
        position: Position,
    },
    /// The store fails; try again later.
    #[error("the store has failed: {0}")]
    Trouble(String),
}

impl ReadError {
    /// How the caller should react.
    #[must_use]
    pub fn consequence(&self) -> Consequence {
        match self {
            Self::Gone { .. } | Self::Unproven { .. } => Consequence::Refuse,
            Self::Trouble(_) => Consequence::Retry,
        }
    }
}

/// Why lost positions were not written off.
#[derive(Debug, thiserror::Error)]
pub enum VoidError {
    /// No such lane is configured.
    #[error("there is no lane {0}")]
    UnknownLane(Lane),
    /// The range is not one of unconfirmed positions.
    #[error(
        "the range must start after the confirmed position {confirmed} and end at or before the tail {tail}"
    )]
    Range {
        /// The last confirmed position.
        confirmed: Position,
        /// The last position.
        tail: Position,
    },
    /// This position was confirmed once, and deleted after its retention.
    #[error(
        "position {0} was confirmed once and deleted after that: it is not lost; if the hub wants it again, central IT lets it go with `practice-hub lane admit`"
    )]
    Deleted(Position),
    /// The reason is empty, too long or has line ends.
    #[error("the reason must be 1 to {0} bytes on one line")]
    Reason(usize),
    /// This position was written off before.
    #[error("position {0} was written off already")]
    Already(Position),
    /// The store cannot say now whether this position is lost.
    #[error("cannot tell now whether position {0} is lost")]
    Unclear(Position),
    /// This position can be read.
    #[error("position {0} can be read: it is not lost, and was not written off")]
    Readable(Position),
    /// The store cannot be read now.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// It could not be written; nothing has changed.
    #[error("the void cannot be put on stable storage")]
    Save(#[source] std::io::Error),
}

impl VoidError {
    /// How the caller should react.
    #[must_use]
    pub fn consequence(&self) -> Consequence {
        match self {
            Self::Unclear(_) | Self::Read(_) | Self::Save(_) => Consequence::Retry,
            Self::UnknownLane(_)
            | Self::Range { .. }
            | Self::Deleted(_)
            | Self::Reason(_)
            | Self::Already(_)
            | Self::Readable(_) => Consequence::Refuse,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use pgw_core::consequence::Cause;

    use super::*;

    #[test]
    fn missing_rights_on_the_store_are_no_reason_to_restart() {
        let of = |kind: io::ErrorKind| {
            OpenError::Io { action: "open", path: "outbox".into(), source: kind.into() }.consequence()
        };
        assert_eq!(of(io::ErrorKind::PermissionDenied), Consequence::Stop(Cause::Rights));
        assert_eq!(of(io::ErrorKind::StorageFull), Consequence::FILES);
        assert_eq!(OpenError::InUse("outbox".into()).consequence(), Consequence::Retry);
    }
}
