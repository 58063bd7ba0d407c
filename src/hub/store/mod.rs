//! The seam between the hub and its stable storage: small, and blocking, for it is called from a thread of its own.
//!
//! [`ndjson`] is the embedded store. Another one has to keep three promises: `Ok` from [`Store::append`] means
//! that every entry is on stable storage and its mark with it; after `Err` every lane is either as before or
//! advanced, and [`Store::marks`] says which; and the marks after a restart are those of the stored transactions.

mod files;
mod ids;
pub mod line;
pub mod ndjson;
mod tail;
pub mod walk;

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use pgw_core::chain::ChainValue;
use pgw_core::committer::{Numbered, Record};
use pgw_core::transaction::{Epoch, Sequence, TransactionId};
use pgw_core::wire::envelope::Envelope;
use pgw_core::wire::void;
use pgw_durable::Replacement;
use uuid::Uuid;

/// Where an epoch of a lane ends: it is stored through `through`, whose chain value is `chain`.
pub use pgw_core::delivery::Through;
pub use pgw_core::transaction::LaneName;

/// New content for a file below the store, or beside somebody's file, mode 0600. It belongs to whom its directory belongs:
/// what root puts into the store the hub must be able to read.
///
/// # Errors
/// What the system said.
pub fn replacement(path: &Path) -> std::io::Result<Replacement> {
    let new = Replacement::begin(path, pgw_durable::PRIVATE)?;
    if let (Some(Ok(above)), own) = (path.parent().map(std::fs::metadata), new.file().metadata()?)
        && above.uid() != own.uid()
    {
        // Only root can; elsewhere (a stick that knows no owners) it is no harm.
        let _ = std::os::unix::fs::fchown(new.file(), Some(above.uid()), Some(above.gid()));
    }
    Ok(new)
}

/// One step of a lane, as the committer has judged it: in order, chain checked.
#[derive(Debug, Clone)]
pub struct Entry {
    /// The lane that it belongs to.
    pub lane: LaneName,
    /// As it came.
    pub envelope: Envelope,
    /// The body to store; `None`: its id is stored already, only the mark advances.
    pub body: Option<Bytes>,
}

impl Record for Entry {
    fn lane(&self) -> &LaneName {
        &self.lane
    }

    fn numbered(&self) -> Numbered {
        let Envelope { epoch, sequence, round, chain, .. } = self.envelope;
        Numbered { epoch, sequence, round, id: TransactionId(self.envelope.id), chain }
    }

    fn is_void(&self) -> bool {
        void::is_void(&self.envelope)
    }

    fn chain_after(&self, before: ChainValue) -> ChainValue {
        void::chain_after(before, &self.envelope, self.body.as_deref().unwrap_or_default())
    }

    fn bytes(&self) -> usize {
        self.body.as_ref().map_or(0, Bytes::len)
    }

    fn keep_only_number(&mut self) {
        self.body = None;
    }
}

/// Why the store did not do it. Nothing of what was asked counts then; everything is worth another try.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
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
    /// An entry that does not follow its lane's mark: the caller has lost count and must begin again from the marks.
    #[error("sequence {sequence} of epoch {epoch} of {lane} is not the next one")]
    NotNext {
        /// The lane.
        lane: LaneName,
        /// Its epoch.
        epoch: Epoch,
        /// The entry's sequence.
        sequence: Sequence,
    },
    /// Another process has the store.
    #[error("the store in {0} is in use by another process")]
    InUse(PathBuf),
}

impl StoreError {
    /// Whether there is no room: a person must make some.
    #[must_use]
    pub fn is_full(&self) -> bool {
        use std::io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
        matches!(self, StoreError::Io { source, .. }
            if matches!(source.kind(), StorageFull | QuotaExceeded | FileTooLarge))
    }
}

/// Stable storage for the fleet's lanes.
pub trait Store: Send {
    /// The marks of every lane that is known, epochs oldest first; only what is on stable storage. No disk.
    fn marks(&self) -> Vec<(LaneName, Vec<Through>)>;

    /// The marks of one lane, epochs oldest first; empty: not known. No disk.
    fn marks_of(&self, lane: &LaneName) -> Vec<Through>;

    /// Stores a group and advances the marks, each lane in one atomic step; on stable storage when it returns.
    ///
    /// # Errors
    /// [`StoreError`]: some lanes may have advanced, [`Store::marks`] says which.
    fn append(&mut self, group: &[Entry]) -> Result<(), StoreError>;

    /// Keeps copies of transactions that were stored before and wanted again, beside their lane, for what its files have
    /// lost or altered; marks stay as they are. On stable storage when it returns. [`super::verify`] judges them.
    ///
    /// # Errors
    /// [`StoreError`]: some may be kept.
    fn mend(&mut self, copies: &[Entry]) -> Result<(), StoreError>;

    /// Whether the transaction with this id is stored in this lane, in whatever epoch.
    ///
    /// # Errors
    /// [`StoreError`]: not known now.
    fn has_id(&mut self, lane: &LaneName, id: Uuid) -> Result<bool, StoreError>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_root_makes_belongs_to_whom_the_directory_belongs() {
        let directory = tempfile::tempdir().unwrap();
        if std::os::unix::fs::chown(directory.path(), Some(65_534), Some(65_534)).is_err() {
            eprintln!("NOT CHECKED: only root can give a directory away");
        }
        let file = directory.path().join("backup.begun");
        replacement(&file).unwrap().commit().unwrap();
        let owner = |path: &Path| std::fs::metadata(path).unwrap().uid();
        assert_eq!(owner(&file), owner(directory.path()));
    }
}
