//! `practice-hub archive`: takes the bodies of old transactions out of the store, for those who must make room.
//!
//! For each complete file of a lane whose last transaction was stored long enough ago:
//! 1. what remains of it is written beside it, and its chain proved meanwhile ([`archived`]);
//! 2. the whole file is copied into the archive, synced, read back from the disk and compared by its SHA-256;
//! 3. only then does what remains take the file's place, in one step, by the store thread of the running hub or in a store that is
//!    open here ([`Swap`]), which compares the two line by line before.
//!
//! Whoever ends it at any moment leaves the file or what remains of it, and the same command again continues. The command copies
//! itself, because the hub's service may write nowhere but in its store.

use std::fs::{self, File};
use std::io::{self, Read, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use pgw_core::consequence::Consequence;
use pgw_core::text::hex;
use pgw_core::transaction::{UnixMillis, rfc3339};
use pgw_durable::{NewFile, PRIVATE};
use ring::digest::{Context, SHA256};
use rustix::fs::{Advice, fadvise};

use super::store::archived::{self, CompleteFile, NotArchived};
use super::store::{LaneName, StoreError, ndjson};

/// Read at once.
const PIECE: usize = 256 * 1024;
/// Held in the store's directory by the one command that archives.
const LOCK: &str = "archive.lock";

/// Why files are not archived, or not all. What was archived before that stays so.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// The store returned an error.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A file is not archived.
    #[error(transparent)]
    NotArchived(#[from] NotArchived),
    /// The file system returned an error.
    #[error("cannot {action} {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// The files of a lane do not follow on one another.
    #[error(
        "{0}: its files do not follow on one another, so nothing of it is archived: `practice-hub list` says what is missing"
    )]
    Hole(LaneName),
    /// The archive is in the store.
    #[error("{0} is in the store's directory: name a directory elsewhere, on another disk")]
    InStore(PathBuf),
    /// The archive has another file of this name.
    #[error(
        "{copy} is there already and is not {path}: nothing was changed; look which store it is of, and name another directory"
    )]
    Taken {
        /// The file of the archive.
        copy: PathBuf,
        /// The file of the store.
        path: PathBuf,
    },
    /// The copy is not what was copied.
    #[error(
        "{copy} does not hold what was written to it: nothing was changed; check that disk, and remove the file"
    )]
    NotProven {
        /// The file of the archive.
        copy: PathBuf,
    },
    /// Another command archives.
    #[error("another `practice-hub archive` is under way: run this one when that has ended")]
    Busy,
    /// The running hub has not done it.
    #[error("the hub has not put what remains of {path} in its place: {reason}")]
    Hub {
        /// The file.
        path: PathBuf,
        /// Why, in one sentence.
        reason: String,
        /// How the command ends.
        consequence: Consequence,
    },
}

impl ArchiveError {
    /// Whether other lanes can be archived all the same.
    #[must_use]
    pub fn concerns_one_lane(&self) -> bool {
        match self {
            Self::Hole(_)
            | Self::Taken { .. }
            | Self::NotArchived(NotArchived::NotWhole { .. } | NotArchived::Other { .. }) => true,
            Self::Store(error) => !error.is_full(),
            // As the hub says of a lane that is out of use there.
            Self::Hub { consequence, .. } => *consequence == Consequence::FILES,
            _ => false,
        }
    }

    /// How the command ends.
    #[must_use]
    pub fn consequence(&self) -> Consequence {
        match self {
            Self::Store(error) => error.consequence(),
            Self::NotArchived(NotArchived::Io { source, .. }) | Self::Io { source, .. } => {
                Consequence::of_file(source)
            }
            Self::NotArchived(_) | Self::Hole(_) | Self::InStore(_) | Self::Taken { .. } => {
                Consequence::Refuse
            }
            Self::NotProven { .. } => Consequence::FILES,
            Self::Busy => Consequence::Retry,
            Self::Hub { consequence, .. } => *consequence,
        }
    }
}

fn failed<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> ArchiveError + 'a {
    move |source| ArchiveError::Io { action, path: path.to_owned(), source }
}

/// Puts what remains of a lane's complete file in its place.
pub type Swap<'a> = &'a mut dyn FnMut(&LaneName, &CompleteFile) -> Result<(), ArchiveError>;

/// What is archived, and where.
#[derive(Debug)]
pub struct NewArchive<'a> {
    /// The store's directory.
    pub store: &'a Path,
    /// The archive's.
    pub into: &'a Path,
    /// Files whose last transaction was stored before this, by the hub's clock.
    pub stored_before: UnixMillis,
    _only_one: File,
}

/// What one lane has given.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ArchivedLane {
    /// Files that have lost their bodies.
    pub files: u64,
    /// So many bodies.
    pub bodies: u64,
    /// Bytes that the files took before, and now.
    pub before: u64,
    /// Now.
    pub after: u64,
}

impl<'a> NewArchive<'a> {
    /// Makes the archive's directory.
    ///
    /// # Errors
    /// [`ArchiveError`].
    pub fn begin(store: &'a Path, into: &'a Path, stored_before: UnixMillis) -> Result<Self, ArchiveError> {
        pgw_durable::create_directory(into, 0o700).map_err(failed("create", into))?;
        let real = |path: &Path| fs::canonicalize(path).map_err(failed("find", path));
        if real(into)?.starts_with(real(store)?) {
            return Err(ArchiveError::InStore(into.to_owned()));
        }
        let path = store.join(LOCK);
        let lock = File::options().create(true).truncate(false).write(true).mode(PRIVATE).open(&path);
        let lock = lock.map_err(failed("open", &path))?;
        super::store::give_to_owner_above(&path, &lock).map_err(failed("open", &path))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { store, into, stored_before, _only_one: lock }),
            Err(fs::TryLockError::WouldBlock) => Err(ArchiveError::Busy),
            Err(fs::TryLockError::Error(source)) => Err(failed("lock", &path)(source)),
        }
    }

    /// Archives the old files of a lane, and counts them.
    ///
    /// # Errors
    /// [`ArchiveError`]: the files before that are archived; the one that it names is as it was, or archived.
    pub fn lane(&self, lane: &LaneName, done: &mut ArchivedLane, swap: Swap<'_>) -> Result<(), ArchiveError> {
        let before = rfc3339(self.stored_before);
        let files = archived::complete_files(self.store, lane)?;
        for file in files.ok_or_else(|| ArchiveError::Hole(lane.clone()))? {
            // Both have the same form, which orders as text. What fills a hole is younger than the files after it.
            if file.stored >= before {
                continue;
            }
            let Some((bodies, remains)) = self.remains(lane, &file)? else { continue };
            let copied = self.copy(lane, &file)?;
            // Its draft is dropped, and so removed, unless it has the file's name by now.
            swap(lane, &file)?;
            drop(remains);
            let after = file.path.metadata().map_err(failed("read", &file.path))?.len();
            done.files += 1;
            done.bodies += bodies;
            done.before += copied;
            done.after += after;
        }
        Ok(())
    }

    /// Writes what remains of a file, on stable storage; `None`: it has lost its bodies already.
    fn remains(&self, lane: &LaneName, file: &CompleteFile) -> Result<Option<(u64, NewFile)>, ArchiveError> {
        let draft = archived::draft(&file.path);
        let new = NewFile::begin(&draft, PRIVATE).map_err(failed("write", &draft))?;
        super::store::give_to_owner_above(&draft, new.file()).map_err(failed("write", &draft))?;
        let mut out = io::BufWriter::with_capacity(PIECE, new);
        let bodies = archived::write_remains(lane, &file.path, &mut out)?;
        let new = out.into_inner().map_err(|error| failed("write", &draft)(error.into_error()))?;
        pgw_durable::sync_all(new.file()).map_err(failed("sync", &draft))?;
        Ok((bodies > 0).then_some((bodies, new)))
    }

    /// Copies a file into the archive, unless it is there, and proves the copy. Returns its length.
    fn copy(&self, lane: &LaneName, file: &CompleteFile) -> Result<u64, ArchiveError> {
        let above = ndjson::directory_of(self.into, lane);
        pgw_durable::create_directory(&above, 0o700).map_err(failed("create", &above))?;
        let copy = above.join(file.path.file_name().unwrap_or_default());
        let mut old = File::open(&file.path).map_err(failed("open", &file.path))?;
        let there = copy.try_exists().map_err(failed("find", &copy))?;
        let digest = if there {
            digest_of(&mut old, |_| Ok(())).map_err(failed("read", &file.path))?
        } else {
            let mut new = pgw_durable::Replacement::begin(&copy, PRIVATE).map_err(failed("write", &copy))?;
            // A part of a file must not get its name.
            let digest = digest_of(&mut old, |piece| new.write_all(piece)).map_err(failed("write", &copy))?;
            new.commit().map_err(failed("write", &copy))?;
            digest
        };
        let proven = proven(&copy).map_err(failed("read back", &copy))?;
        match (there, proven == digest) {
            (_, true) => Ok(digest.1),
            (true, false) => Err(ArchiveError::Taken { copy, path: file.path.clone() }),
            (false, false) => Err(ArchiveError::NotProven { copy }),
        }
    }
}

/// The digest of a file on stable storage, as the disk gives it back.
fn proven(path: &Path) -> io::Result<(String, u64)> {
    let mut file = File::options().read(true).write(true).open(path)?;
    pgw_durable::sync_all(&file)?;
    if let Some(above) = path.parent() {
        // An earlier try may have ended between its rename and its sync.
        pgw_durable::sync_directory(above)?;
    }
    // Only advice: where it is followed, the bytes come from the disk and not from memory.
    let _ = fadvise(&file, 0, None, Advice::DontNeed);
    digest_of(&mut file, |_| Ok(()))
}

/// SHA-256 and length of all that can be read.
fn digest_of(file: &mut File, mut take: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<(String, u64)> {
    let (mut hash, mut piece, mut length) = (Context::new(&SHA256), vec![0; PIECE], 0);
    loop {
        match file.read(&mut piece) {
            Ok(0) => return Ok((hex(hash.finish().as_ref()), length)),
            Ok(count) => {
                hash.update(&piece[..count]);
                take(&piece[..count])?;
                length += count as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
