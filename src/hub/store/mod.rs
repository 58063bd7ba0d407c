//! The interface between the hub and its stable storage: small, and blocking, because it is called from its own
//! thread.
//!
//! [`ndjson`] is the embedded store. Any other one has to keep four promises. `Ok` from [`Store::append`] means that
//! every entry is on stable storage together with its watermark. After `Err` every lane is either as before or
//! advanced, and [`Store::watermarks`] says which, or out of use. What fails in one lane's files stops no other
//! ([`StoreError::concerns_one_lane`]). After a restart the watermarks are those of the stored transactions.

pub mod archived;
pub mod beside;
mod files;
pub mod identity;
mod ids;
mod lane_file;
pub mod late;
pub mod line;
pub mod ndjson;
mod points;
mod row;
mod tail;
pub mod walk;

use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use bytes::Bytes;
use pgw_core::chain::{ChainValue, Digest};
use pgw_core::committer::{Content, Numbered, Record};
use pgw_core::consequence::Consequence;
use pgw_core::numbering::LostNumbers;
use pgw_core::transaction::{Epoch, Kind, Sequence, TransactionId};
use pgw_core::wire::envelope::Envelope;
use pgw_core::wire::signature::KeyId;
use pgw_durable::Replacement;

pub use identity::StoreIdentity;
/// The end of an epoch in a lane: it is stored through `through`, whose chain value is `chain`.
pub use pgw_core::chain::Through;
pub use pgw_core::transaction::LaneName;
pub use row::Hole;

/// New content for a file in the store, or beside another file, mode 0600. The file gets the owner of its directory:
/// the hub must be able to read what root puts into the store.
///
/// # Errors
/// The system's error.
pub fn replacement(path: &Path) -> std::io::Result<Replacement> {
    let new = Replacement::begin(path, pgw_durable::PRIVATE)?;
    give_to_owner_above(path, new.file())?;
    Ok(new)
}

/// The owner of the directory above also owns `file`, which is there or will be at `path`.
pub(crate) fn give_to_owner_above(path: &Path, file: &File) -> std::io::Result<()> {
    if let (Some(Ok(above)), own) = (path.parent().map(std::fs::metadata), file.metadata()?)
        && above.uid() != own.uid()
    {
        // Only root can; elsewhere (a USB stick without file owners) a failure does no harm.
        let _ = std::os::unix::fs::fchown(file, Some(above.uid()), Some(above.gid()));
    }
    Ok(())
}

/// Replaces such a file whole, durably.
///
/// # Errors
/// The system's error.
pub fn replace(path: &Path, content: &[u8]) -> std::io::Result<()> {
    let mut new = replacement(path)?;
    new.write_all(content)?;
    new.commit()
}

/// One step of a lane, as checked by the committer: in order, chain verified.
#[derive(Debug, Clone)]
pub struct Entry {
    /// The lane that it belongs to.
    pub lane: LaneName,
    /// The envelope, as received.
    pub envelope: Envelope,
    /// The body to store; `None`: its content is already stored, and only its number is.
    pub body: Option<Bytes>,
    /// The key with which its signature was verified, which is kept as evidence then.
    pub signed_by: Option<KeyId>,
    /// Its id is stored already with another content.
    pub rival: bool,
    /// It is beyond the limits of this hub: never stored.
    pub too_large: bool,
    /// Computed when it is first needed: repetitions do without.
    digest: OnceLock<Digest>,
}

impl Entry {
    /// A transaction that has arrived.
    #[must_use]
    pub fn new(lane: LaneName, envelope: Envelope, body: Bytes) -> Self {
        let (signed_by, digest) = (None, OnceLock::new());
        Self { lane, envelope, body: Some(body), signed_by, rival: false, too_large: false, digest }
    }
}

impl Record for Entry {
    fn lane(&self) -> &LaneName {
        &self.lane
    }

    fn numbered(&self) -> Numbered {
        let Envelope { epoch, sequence, round, chain, link, .. } = self.envelope;
        Numbered { epoch, sequence, round, id: TransactionId(self.envelope.id()), chain, link }
    }

    fn is_pruned(&self) -> bool {
        self.envelope.is(Kind::Pruned)
    }

    fn is_too_large(&self) -> bool {
        self.too_large
    }

    fn digest(&self) -> Digest {
        *self.digest.get_or_init(|| self.envelope.digest(self.body.as_deref().unwrap_or_default()))
    }

    fn chain_after(&self, before: ChainValue) -> ChainValue {
        before.next(self.envelope.sequence, self.digest())
    }

    fn bytes(&self) -> usize {
        self.body.as_ref().map_or(0, Bytes::len)
    }

    fn keep_only_number(&mut self) {
        self.digest();
        self.body = None;
    }

    fn mark_rival(&mut self) {
        self.rival = true;
    }

    fn is_rival(&self) -> bool {
        self.rival
    }

    fn keep_head(&mut self, by: Option<KeyId>) {
        self.signed_by = by;
    }
}

/// What became of late transactions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LateKept {
    /// So many are new.
    pub new: u64,
    /// So many found no room: the lane has as many as it may have.
    pub no_room: u64,
}

/// A lane's files, as a backup holds them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LinkedLane {
    /// How far the lane is, epochs oldest first.
    pub ends: Vec<Through>,
    /// The path of each file below the store's directory, in the order of the transactions, and how many bytes of it are
    /// on stable storage and stay as they are.
    pub files: Vec<(PathBuf, u64)>,
    /// What the lane lacks, if its files do not follow on one another.
    pub hole: Option<String>,
}

/// Why the store did not do it. Nothing of the request counts then; each error is worth a retry.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file system returned an error.
    #[error("cannot {action} {path}")]
    Io {
        /// What the store tried to do.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
    /// An entry that does not follow its lane's watermark: the caller has to start again from the watermarks.
    #[error("sequence {sequence} of epoch {epoch} of {lane} is not the next one")]
    NotNext {
        /// The lane.
        lane: LaneName,
        /// Its epoch.
        epoch: Epoch,
        /// The entry's sequence.
        sequence: Sequence,
    },
    /// A lane's files cannot be used: nothing may be stored in it, or said of it. The other lanes continue.
    #[error("{lane} is out of use: {reason}")]
    OutOfUse {
        /// The lane.
        lane: LaneName,
        /// Why, in one sentence.
        reason: String,
    },
    /// Another process has locked the store.
    #[error("the store in {0} is in use by another process")]
    InUse(PathBuf),
}

impl StoreError {
    /// How a command or the hub ends.
    #[must_use]
    pub fn consequence(&self) -> Consequence {
        match self {
            Self::Io { source, .. } => Consequence::of_file(source),
            Self::NotNext { .. } | Self::OutOfUse { .. } | Self::InUse(_) => Consequence::FILES,
        }
    }

    /// Whether only one lane has failed: the others of a group are stored.
    #[must_use]
    pub fn concerns_one_lane(&self) -> bool {
        matches!(self, Self::NotNext { .. } | Self::OutOfUse { .. })
    }

    /// Whether the disk is full: a person must free space.
    #[must_use]
    pub fn is_full(&self) -> bool {
        use std::io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
        matches!(self, StoreError::Io { source, .. }
            if matches!(source.kind(), StorageFull | QuotaExceeded | FileTooLarge))
    }
}

/// Stable storage for the fleet's lanes.
pub trait Store: Send {
    /// Which store this is. Does not read the disk.
    fn identity(&self) -> &StoreIdentity;

    /// Where each epoch of each known lane's line ends, in the order of the line; only what is on stable storage. Does not read the
    /// disk.
    fn watermarks(&self) -> Vec<(LaneName, Vec<Through>)>;

    /// The watermarks of one lane, epochs oldest first; empty: unknown. Does not read the disk.
    fn watermarks_of(&self, lane: &LaneName) -> Vec<Through>;

    /// Stores a group and advances the watermarks, each lane in one atomic step; on stable storage when it returns. A lane
    /// that had lost a part may be further than the group then: what comes after that part counts once it has come again.
    ///
    /// # Errors
    /// [`StoreError`]: some lanes may have advanced, [`Store::watermarks`] says which. What fails in one lane's files takes that lane
    /// out of use ([`Store::is_out_of_use`]), and the other lanes are stored; that is the error only where nothing worse has failed.
    fn append(&mut self, group: &[Entry]) -> Result<(), StoreError>;

    /// Keeps copies of stored transactions that were sent again, beside their lane, for what its files have lost or
    /// altered; watermarks stay as they are. On stable storage when it returns. [`super::verify`] checks them.
    ///
    /// # Errors
    /// [`StoreError`]: some copies may be kept.
    fn keep_copies(&mut self, copies: &[Entry]) -> Result<(), StoreError>;

    /// Keeps transactions beside their lane that do not continue its line, each once by epoch, number and chain value, up to the
    /// lane's limit. On stable storage when it returns.
    ///
    /// # Errors
    /// [`StoreError`]: some may be kept.
    fn keep_late(&mut self, entries: &[Entry]) -> Result<LateKept, StoreError>;

    /// What a lane's line has under this id, in any epoch, as compared with this content. Only what is on stable storage.
    ///
    /// # Errors
    /// [`StoreError`]: this cannot be decided now.
    fn content(&mut self, lane: &LaneName, id: TransactionId, digest: Digest) -> Result<Content, StoreError>;

    /// The chain value at a number of a lane's line; `None`: it has no such number. Only what is on stable storage.
    ///
    /// # Errors
    /// [`StoreError`]: this cannot be decided now.
    fn value_at(
        &mut self,
        lane: &LaneName,
        epoch: Epoch,
        sequence: Sequence,
    ) -> Result<Option<ChainValue>, StoreError>;

    /// The chain values at a number among what is kept beside a lane's line.
    ///
    /// # Errors
    /// [`StoreError`]: this cannot be decided now.
    fn late_at(
        &mut self,
        lane: &LaneName,
        epoch: Epoch,
        sequence: Sequence,
    ) -> Result<Vec<ChainValue>, StoreError>;

    /// Where a lane's files go on after a part that is missing: the ends that the lane must have there, in the order of the line;
    /// `None`: nothing is missing. Does not read the disk.
    fn hole(&self, lane: &LaneName) -> Option<Vec<Through>>;

    /// The numbers that a lane's line names and that are lost for good, in the order of the line. Does not read the disk.
    fn lost(&self, lane: &LaneName) -> &[LostNumbers];

    /// Notes that what is missing of a lane is lost for good: the line goes on with what its files have after that. On stable
    /// storage when it returns.
    ///
    /// # Errors
    /// [`StoreError`]: nothing is noted, or it is, and the lane goes on with its next group.
    fn close_hole(&mut self, lane: &LaneName) -> Result<(), StoreError>;

    /// Gives up what is missing of a lane: what its files have after that is late from now on, and the line continues where it
    /// ends now. Returns how many files that are; 0: nothing is missing.
    ///
    /// # Errors
    /// [`StoreError`]: some of the files may have been set aside, and the lane still has a hole.
    fn leave_hole(&mut self, lane: &LaneName) -> Result<u64, StoreError>;

    /// Whether a lane is out of use: its files have failed, and what is in them is not known. Does not read the disk.
    fn is_out_of_use(&self, lane: &LaneName) -> bool;

    /// Whether something may be said of this lane, and stored in it. A lane whose files could not be used is tried again
    /// from time to time; one that is not known may begin.
    ///
    /// # Errors
    /// [`StoreError::OutOfUse`].
    fn check_lane(&mut self, lane: &LaneName) -> Result<(), StoreError>;

    /// Whether the body of a number of a lane's line was archived.
    ///
    /// # Errors
    /// [`StoreError`]: this cannot be decided now.
    fn is_archived(&mut self, lane: &LaneName, epoch: Epoch, sequence: Sequence) -> Result<bool, StoreError>;

    /// Puts what remains of a lane's complete file with this number in its place ([`archived::draft`]), which is on stable storage
    /// and was compared with it. What was known of its ids is read from it anew when that is needed.
    ///
    /// # Errors
    /// [`StoreError`]: either of the two is there.
    fn take_remains(&mut self, lane: &LaneName, file: u32) -> Result<(), StoreError>;

    /// Gives each of a lane's files a second name at the same place below `into`, a directory of the store's file system
    /// in which the lane's directory exists; empty: unknown. Does not read the files. The caller syncs the directories.
    ///
    /// # Errors
    /// [`StoreError`]: some names may be there.
    fn link_lane(&mut self, lane: &LaneName, into: &Path) -> Result<LinkedLane, StoreError>;
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
