//! A segment: one small sled database in a directory of its own.
//!
//! Measurements decide how it is used (design, section 5): sled's `flush()` is no fsync, so the barrier is
//! `flush()` and then `sync_data()` on a handle of our own; values stay within 4 KiB, as larger pages go to files that sled
//! never syncs; sled panics on much damage, so every call is contained; after any error the
//! database is dead and must be dropped.

use std::fs::File;
use std::io;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use pgw_core::chain::ChainValue;
use pgw_core::delivery::Numbering;
use pgw_core::transaction::{Position, UnixMillis};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::files;
use crate::guard::log_check;
use crate::guard::record::{self, Assembly, RecordError};

#[cfg(test)]
use crate::faults_for_tests as faults;

/// The database's file in a segment's directory; carving reads it raw.
pub(crate) const DATABASE_FILE: &str = "db";
const CACHE_BYTES: u64 = 4 << 20;
/// The content of `conf` that sled writes with default settings; anything else is half written.
const CONF: &[u8] = b"segment_size: 524288\nuse_compression: false\nversion: 0.34\nv\x19Q\xc1";
/// A dropped handle holds its lock a little longer.
const LOCK_PATIENCE: Duration = Duration::from_secs(5);
/// The key of the segment's header; positions begin at 1.
const HEADER_KEY: [u8; 12] = [0; 12];

/// What a person has to do, whatever the store was doing.
const DISK_FULL: &str = "the disk is full: free some space on it";

/// Why a call on a segment failed. After any of these its handle is dead.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SegmentError {
    /// sled returned an error.
    #[error("{}", if self.is_full() { DISK_FULL } else { "the segment's database failed" })]
    Database(#[source] sled::Error),
    /// The file system failed.
    #[error("{}", if self.is_full() { DISK_FULL } else { "the segment's files failed" })]
    Files(#[source] io::Error),
    /// sled panicked.
    #[error("the segment's database panicked")]
    Panicked,
    /// Its log is damaged; opening it would destroy records that can still be read.
    #[error("the segment's log is damaged")]
    Unsound,
    /// Its header cannot be read.
    #[error("the segment's header is damaged")]
    Header,
}

impl SegmentError {
    /// Whether the disk was full.
    pub(crate) fn is_full(&self) -> bool {
        match self {
            SegmentError::Files(error) | SegmentError::Database(sled::Error::Io(error)) => is_full(error),
            _ => false,
        }
    }

    /// Whether the database itself is damaged, so that trying again does not help. Unreadable sectors count: carving
    /// skips them.
    pub(crate) fn is_damage(&self) -> bool {
        match self {
            SegmentError::Panicked | SegmentError::Header | SegmentError::Unsound => true,
            SegmentError::Database(_) => !self.is_full() && !is_locked(self),
            SegmentError::Files(error) => error.kind() == io::ErrorKind::NotFound,
        }
    }
}

/// Whether a write failed for lack of room.
pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// The first entry of a segment, behind the barrier before its first record is answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SegmentHeader {
    /// The lane's number in the store.
    pub(crate) lane: u16,
    /// This segment.
    pub(crate) number: u64,
    /// Its first position. Its predecessor's records from here on do not count.
    pub(crate) base: Position,
    /// Value of the chain over positions at `base - 1`, as the next record has it as `previous`.
    pub(crate) previous: ChainValue,
    /// The lane's own id.
    pub(crate) lane_id: Uuid,
    /// The lane's epochs when it was begun: a copy of its small file, in case that is lost ([`copied`](crate::state::lane_epochs::copied)).
    pub(crate) numbering: Option<Numbering>,
    /// The predecessor's number and content, so that a start need not open it.
    pub(crate) predecessor: Option<(u64, Span)>,
}

/// The content of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Span {
    /// Its first position.
    pub(crate) base: Position,
    /// Value of the chain over positions before that.
    pub(crate) previous: ChainValue,
    /// Payload bytes (an estimate after a crash).
    pub(crate) bytes: u64,
    /// When its first record was accepted.
    pub(crate) oldest: Option<UnixMillis>,
}

/// A position that has chunks, and its record if they make one.
pub(crate) type Shown = (Position, Result<Vec<u8>, RecordError>);

/// An open segment.
pub(crate) struct Segment {
    /// `None` only while it is being dropped.
    database: Option<sled::Db>,
    file: File,
    directory: PathBuf,
    #[cfg(test)]
    faults: std::sync::Arc<faults::Faults>,
}

impl std::fmt::Debug for Segment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Segment({})", self.directory.display())
    }
}

/// sled panics on much damage: a panic becomes an error like any other. Its message is still printed.
fn contained<T>(call: impl FnOnce() -> Result<T, SegmentError>) -> Result<T, SegmentError> {
    catch_unwind(AssertUnwindSafe(call)).unwrap_or(Err(SegmentError::Panicked))
}

/// sled panics in its own drop when its last fsync fails; a panic during a panic would abort the process.
impl Drop for Segment {
    fn drop(&mut self) {
        let database = self.database.take();
        let dropped = catch_unwind(AssertUnwindSafe(|| {
            drop(database);
            #[cfg(test)]
            assert!(self.faults.check(faults::Point::Close).is_ok(), "planted");
        }));
        if dropped.is_err() {
            tracing::warn!(directory = %self.directory.display(), "Segment's database panicked when it was closed");
        }
    }
}

impl Segment {
    /// Creates an empty segment, and makes all its files and directories durable.
    ///
    /// # Errors
    /// [`SegmentError`]; the next start removes the remains.
    pub(crate) fn create(directory: &Path) -> Result<Self, SegmentError> {
        files::create_directory(directory).map_err(SegmentError::Files)?;
        let segment = Self::open_database(directory)?;
        #[cfg(test)]
        segment.faults.check(faults::Point::Create).map_err(SegmentError::Files)?;
        segment.db()?.flush().map_err(SegmentError::Database)?;
        files::sync_tree(directory).map_err(SegmentError::Files)?;
        files::sync_name(directory).map_err(SegmentError::Files)?;
        Ok(segment)
    }

    /// Opens an existing segment: removes leftovers of a crash, waits for a lock that a dropped handle still holds, and
    /// tries again without sled's snapshot. `durable`: the records up to this position are known to have
    /// been behind the barrier.
    ///
    /// # Errors
    /// [`SegmentError`]; if it [is damage](SegmentError::is_damage), carving is next.
    pub(crate) fn open(directory: &Path, durable: Position) -> Result<Self, SegmentError> {
        remove_leftovers(directory).map_err(SegmentError::Files)?;
        if !directory.join(DATABASE_FILE).is_file() {
            let missing = io::Error::new(io::ErrorKind::NotFound, "the segment has no database file");
            return Err(SegmentError::Files(missing));
        }
        let sound = log_check::is_sound(&directory.join(DATABASE_FILE), durable);
        #[cfg(test)]
        faults::of(directory).count_read();
        #[cfg(test)]
        let sound = match faults::of(directory).check(faults::Point::Read) {
            Ok(()) => sound,
            Err(_) => Err(io::Error::from_raw_os_error(5)),
        };
        match sound {
            Ok(true) => {}
            Ok(false) => return Err(SegmentError::Unsound),
            Err(error) if files::is_unreadable(&error) => return Err(SegmentError::Unsound),
            Err(error) => return Err(SegmentError::Files(error)),
        }
        let begun = Instant::now();
        let mut without_snapshot = false;
        let segment = loop {
            match Self::open_database(directory) {
                Ok(segment) => break segment,
                Err(error) if is_locked(&error) && begun.elapsed() < LOCK_PATIENCE => {
                    std::thread::sleep(Duration::from_millis(2));
                }
                Err(error) if error.is_damage() && !without_snapshot => {
                    tracing::warn!(directory = %directory.display(), error = %error, "A segment did not open; retrying without its snapshot");
                    without_snapshot = true;
                    set_snapshots_aside(directory).map_err(SegmentError::Files)?;
                }
                Err(error) => return Err(error),
            }
        };
        // Recovery has rewritten the tail and made a snapshot: sync both before anything relies on them.
        files::sync_tree(directory).map_err(SegmentError::Files)?;
        Ok(segment)
    }

    fn open_database(directory: &Path) -> Result<Self, SegmentError> {
        let path = directory.to_owned();
        let open = move || {
            contained(|| {
                sled::Config::new()
                    .path(path)
                    .flush_every_ms(None)
                    .cache_capacity(CACHE_BYTES)
                    .open()
                    .map_err(SegmentError::Database)
            })
        };
        // On a thread of its own, so that a panic leaves nothing behind on ours.
        let thread = std::thread::Builder::new()
            .name("segment-open".into())
            .spawn(open)
            .map_err(SegmentError::Files)?;
        let db = thread.join().unwrap_or(Err(SegmentError::Panicked))?;
        // For writing, because the barrier asks the file system whether it still works.
        let file =
            File::options().write(true).open(directory.join(DATABASE_FILE)).map_err(SegmentError::Files)?;
        Ok(Self {
            database: Some(db),
            file,
            directory: directory.to_owned(),
            #[cfg(test)]
            faults: faults::of(directory),
        })
    }

    fn db(&self) -> Result<&sled::Db, SegmentError> {
        self.database.as_ref().ok_or(SegmentError::Panicked)
    }

    /// Its directory.
    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Its header, if it has one: a segment that was only made ahead has none.
    ///
    /// # Errors
    /// [`SegmentError::Header`] if it cannot be read as one.
    pub(crate) fn header(&self) -> Result<Option<SegmentHeader>, SegmentError> {
        contained(|| {
            let value = self.db()?.get(HEADER_KEY).map_err(SegmentError::Database)?;
            let parsed = |value: &[u8]| record::parse_chunk(value).and_then(|chunk| parse_header(chunk.part));
            value.map(|value| parsed(&value).ok_or(SegmentError::Header)).transpose()
        })
    }

    /// Writes the header; durable with the next [barrier](Segment::barrier).
    ///
    /// # Errors
    /// [`SegmentError`]
    pub(crate) fn begin(&self, header: &SegmentHeader) -> Result<(), SegmentError> {
        // A chunk like those of records, so that carving finds it.
        let value = postcard::to_stdvec(header).map_err(|_| SegmentError::Header)?;
        let value = record::chunks(0, &value).next().ok_or(SegmentError::Header)?;
        contained(|| self.db()?.insert(HEADER_KEY, value).map(|_| ()).map_err(SegmentError::Database))
    }

    /// Adds a record; durable with the next [barrier](Segment::barrier).
    ///
    /// # Errors
    /// [`SegmentError`]: part of it may be there.
    pub(crate) fn append(&self, position: Position, bytes: &[u8]) -> Result<(), SegmentError> {
        #[cfg(test)]
        self.faults.check(faults::Point::Append).map_err(SegmentError::Files)?;
        contained(|| {
            for (index, value) in (0u32..).zip(record::chunks(position, bytes)) {
                self.db()?.insert(record::key(position, index), value).map_err(SegmentError::Database)?;
            }
            Ok(())
        })
    }

    /// Returns when everything that was added so far is on stable storage.
    ///
    /// # Errors
    /// [`SegmentError`]: records since the last barrier may be lost, even if they can be read: the caller must write them
    /// again, to another segment.
    pub(crate) fn barrier(&self) -> Result<(), SegmentError> {
        contained(|| self.db()?.flush().map(|_| ()).map_err(SegmentError::Database))?;
        #[cfg(test)]
        self.faults.check(faults::Point::Sync).map_err(SegmentError::Files)?;
        pgw_durable::sync_data(&self.file).map_err(SegmentError::Files)
    }

    /// The last position that has a chunk here.
    ///
    /// # Errors
    /// [`SegmentError`]
    pub(crate) fn last_position(&self) -> Result<Option<Position>, SegmentError> {
        contained(|| {
            let last = self.db()?.last().map_err(SegmentError::Database)?;
            Ok(last
                .and_then(|(key, _)| record::parse_key(&key))
                .map(|(position, _)| position)
                .filter(|p| *p > 0))
        })
    }

    /// Shows the records from `from` to `through`, in order, until the visitor has enough. A position that
    /// has no chunk at all is left out.
    ///
    /// # Errors
    /// [`SegmentError`]: the database failed; a damaged record is no such error.
    pub(crate) fn visit(
        &self,
        from: Position,
        through: Position,
        visitor: &mut dyn FnMut(Position, Result<Vec<u8>, RecordError>) -> ControlFlow<()>,
    ) -> Result<(), SegmentError> {
        #[cfg(test)]
        self.faults.count_read();
        contained(|| {
            let mut current: Option<(Position, Result<Assembly, RecordError>)> = None;
            for entry in self.db()?.range(record::key(from, 0)..=record::key(through, u32::MAX)) {
                let (key, value) = entry.map_err(SegmentError::Database)?;
                let Some((position, _)) = record::parse_key(&key) else { continue };
                let chunk = record::parse_chunk(&value)
                    .filter(|c| c.length() == value.len() && c.position == position)
                    .ok_or(RecordError::Chunks);
                current = match current.take() {
                    Some((at, assembly)) if at == position => Some((
                        at,
                        assembly
                            .and_then(|mut assembly| chunk.and_then(|c| assembly.add(&c)).map(|()| assembly)),
                    )),
                    other => {
                        if let Some((at, assembly)) = other
                            && visitor(at, assembly.and_then(Assembly::finish)).is_break()
                        {
                            return Ok(());
                        }
                        Some((position, chunk.and_then(|c| Assembly::begin(&c))))
                    }
                };
            }
            if let Some((at, assembly)) = current {
                let _ = visitor(at, assembly.and_then(Assembly::finish));
            }
            Ok(())
        })
    }

    /// The first record from `from` to `through`, if there is any, as bytes.
    ///
    /// # Errors
    /// [`SegmentError`]
    pub(crate) fn first(&self, from: Position, through: Position) -> Result<Option<Shown>, SegmentError> {
        let mut first = None;
        self.visit(from, through, &mut |position, record| {
            first = Some((position, record));
            ControlFlow::Break(())
        })?;
        Ok(first)
    }

    /// The raw values of one position, for quarantine.
    ///
    /// # Errors
    /// [`SegmentError`]
    pub(crate) fn pieces(&self, position: Position) -> Result<Vec<u8>, SegmentError> {
        contained(|| {
            let mut pieces = Vec::new();
            for entry in self.db()?.range(record::key(position, 0)..=record::key(position, u32::MAX)) {
                pieces.extend_from_slice(&entry.map_err(SegmentError::Database)?.1);
            }
            Ok(pieces)
        })
    }

    /// Removes one position; durable with the next [barrier](Segment::barrier).
    ///
    /// # Errors
    /// [`SegmentError`]
    pub(crate) fn remove(&self, position: Position) -> Result<(), SegmentError> {
        contained(|| {
            for key in self.db()?.range(record::key(position, 0)..=record::key(position, u32::MAX)).keys() {
                self.db()?.remove(key.map_err(SegmentError::Database)?).map_err(SegmentError::Database)?;
            }
            Ok(())
        })
    }
}

/// Reads the part of the chunk that [`Segment::begin`] wrote.
pub(crate) fn parse_header(value: &[u8]) -> Option<SegmentHeader> {
    postcard::from_bytes(value).ok()
}

fn is_locked(error: &SegmentError) -> bool {
    // sled has no error kind for this, so its text is compared; we pin sled's exact version.
    matches!(error, SegmentError::Database(sled::Error::Io(error)) if error.to_string().starts_with("could not acquire lock"))
}

/// Removes half-made files that sled refuses but can recreate: an unfinished snapshot, and a truncated `conf`.
fn remove_leftovers(directory: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        if name.starts_with("snap.") && name.ends_with(".generating") {
            pgw_durable::remove(&path)?;
        }
        if name == "conf" && std::fs::read(&path)? != CONF {
            tracing::warn!(directory = %directory.display(), "Removed a half-written conf of a segment");
            pgw_durable::remove(&path)?;
        }
    }
    Ok(())
}

fn set_snapshots_aside(directory: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        if name.starts_with("snap.") {
            pgw_durable::rename(&path, &directory.join(format!("aside-{name}")))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use pgw_core::text::chain;
    use pgw_core::transaction::Epoch;

    fn header() -> SegmentHeader {
        SegmentHeader {
            lane: 0,
            number: 1,
            base: 1,
            previous: ChainValue([0; 32]),
            lane_id: Uuid::from_u128(5),
            numbering: Some(Numbering::new(Epoch(Uuid::nil()))),
            predecessor: None,
        }
    }

    fn fake(position: Position, size: usize) -> Vec<u8> {
        vec![u8::try_from(position).unwrap(); size.max(record::HEADER_BYTES)]
    }

    #[test]
    fn what_was_added_is_there_after_reopening() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("segments/clinical/1");
        let segment = Segment::create(&path).unwrap();
        assert_eq!(segment.header().unwrap(), None);
        segment.begin(&header()).unwrap();
        for position in 1..=5 {
            segment.append(position, &fake(position, 9000)).unwrap();
        }
        segment.barrier().unwrap();
        drop(segment);
        let segment = Segment::open(&path, 0).unwrap();
        assert_eq!(segment.header().unwrap(), Some(header()));
        assert_eq!(segment.last_position().unwrap(), Some(5));
        let mut all = Vec::new();
        let mut visitor = |position, record| {
            all.push((position, record));
            ControlFlow::Continue(())
        };
        segment.visit(1, u64::MAX, &mut visitor).unwrap();
        assert_eq!(all, (1..=5).map(|p| (p, Ok(fake(p, 9000)))).collect::<Vec<_>>());
        assert_eq!(segment.first(2, 9).unwrap(), Some((2, Ok(fake(2, 9000)))));
        assert_eq!(segment.first(6, 9).unwrap(), None);
        segment.remove(5).unwrap();
        assert_eq!(segment.last_position().unwrap(), Some(4));
    }

    #[test]
    fn a_full_disk_is_named_with_its_cause() {
        let full = || io::Error::from_raw_os_error(rustix::io::Errno::NOSPC.raw_os_error());
        for error in [SegmentError::Database(sled::Error::Io(full())), SegmentError::Files(full())] {
            let text = chain(&error);
            assert!(text.starts_with("the disk is full: free some space on it"), "{text}");
            assert!(text.contains("No space left on device"), "{text}");
        }
        let other = SegmentError::Database(sled::Error::Io(io::ErrorKind::Other.into()));
        assert_eq!(other.to_string(), "the segment's database failed");
    }

    #[test]
    fn leftovers_of_a_crash_are_cleared_away() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("segments/clinical/1");
        let segment = Segment::create(&path).unwrap();
        segment.append(1, &fake(1, 200)).unwrap();
        segment.barrier().unwrap();
        drop(segment);
        assert_eq!(std::fs::read(path.join("conf")).unwrap(), CONF);
        for conf in [&b""[..], &CONF[..20]] {
            std::fs::write(path.join("conf"), conf).unwrap();
            std::fs::write(path.join("snap.00000000000000FF.generating"), b"half").unwrap();
            let segment = Segment::open(&path, 0).unwrap();
            assert_eq!(segment.last_position().unwrap(), Some(1));
            assert!(!path.join("snap.00000000000000FF.generating").exists());
        }
        for entry in std::fs::read_dir(&path).unwrap() {
            let path = entry.unwrap().path();
            if path.file_name().unwrap().to_str().unwrap().starts_with("snap.") {
                std::fs::write(path, b"not a snapshot at all").unwrap();
            }
        }
        assert_eq!(
            Segment::open(&path, 0).unwrap().last_position().unwrap(),
            Some(1),
            "without its snapshot"
        );
    }

    #[test]
    fn a_held_lock_is_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("segments/clinical/1");
        let segment = Segment::create(&path).unwrap();
        let held = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(50));
            drop(segment);
        });
        Segment::open(&path, 0).unwrap();
        held.join().unwrap();
    }
}
