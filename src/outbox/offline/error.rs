//! Why offline repair failed.

use std::io;
use std::path::{Path, PathBuf};

use pgw_core::transaction::Lane;

use crate::errors::{OpenError, Refusal};

/// Why a repair failed. Everything done so far stays, and the command can be run again.
#[derive(Debug, thiserror::Error)]
pub enum RepairError {
    /// It is not a store that this configuration and key open, or it is in use.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// There is no store.
    #[error("there is no store in {0}")]
    NoStore(PathBuf),
    /// `FORMAT` is damaged or gone, and no record opens with this key.
    #[error("the file FORMAT of the store in {0} is damaged, and no record there opens with the outbox key")]
    NothingOpens(PathBuf),
    /// The records are recovered, but a lane needs new numbers after the watermark, and they could not be written.
    #[error("lane {0}: records were recovered, but the lane could not be renumbered")]
    Numbers(Lane, #[source] Refusal),
    /// `FORMAT` also said which key has sealed what.
    #[error(
        "the file FORMAT of the store in {0} is damaged, and records there were sealed with an earlier key: take FORMAT from a copy of the store"
    )]
    SeveralKeys(PathBuf),
    /// New files would belong to another user, and the daemon could not read them.
    #[error(
        "the store in {0} belongs to user {1}: repair it as that user or as root, or the daemon could not read it afterwards"
    )]
    NotTheOwner(PathBuf, u32),
    /// The file system failed.
    #[error("cannot {action} {path}")]
    Files {
        /// What was tried.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// A new segment did not read back as it was written; the old one is in its place.
    #[error("{0} does not read back as it was written: nothing was replaced")]
    ReadBack(PathBuf),
}

impl RepairError {
    /// Makes one of the system's error.
    pub(super) fn cannot(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Files { action, path, source }
    }
}
