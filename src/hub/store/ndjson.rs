//! The embedded store: one append-only NDJSON file per lane, `{directory}/{practice}/{gateway}/{lane}.ndjson`.
//!
//! - A group is one buffer, one write and one `fdatasync` per lane file; a new file's directories are synced.
//! - The tail gives the watermark: at the start only the first line and the last group of each file are read
//!   ([`super::row`], [`super::tail`]), and the end counts only over files that follow on one another from the first. A
//!   torn end is copied to `{lane}.torn-{time}` and cut off. A lane whose files cannot be used stops no other.
//! - A file that has reached `rotate_bytes` is renamed to `{lane}.{ordinal}.ndjson`, six digits, in the order of
//!   the transactions. Programs that follow a lane read those first, then `{lane}.ndjson`.
//! - After a failed write or sync nothing of that lane's group counts. On a full disk, which concerns all lanes, the file is cut
//!   back to its last good barrier before anything else is written to it. Any other fault takes that lane out of use and stops
//!   no other: after a minute the file is cut back so, and the lane's files are read from the disk as at the start.
//!
//! `{lane}.again.ndjson` holds copies that a gateway sent again because the lane's files had lost or altered
//! something: readers of the lane use them in place of what is damaged.
//!
//! After a fork, stored ids are looked up in an index beside the file ([`super::ids`]). What does not continue a lane's line is
//! kept beside it ([`super::late`]).
//!
//! Files have mode 0600 and directories 0700: this is the centre's clinical data.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use pgw_core::chain::{ChainValue, Digest};
use pgw_core::committer::Content;
use pgw_core::numbering::LostNumbers;
use pgw_core::text::chain;
use pgw_core::transaction::{Epoch, Sequence, TransactionId, rfc3339, unix_millis_now};

use super::files::{failed, lanes_found, open_synced};
use super::lane_file::LaneFile;
use super::late::Late;
use super::line;
use super::points::Point;
use super::{Entry, LaneName, LateKept, LinkedLane, Store, StoreError, StoreIdentity, Through};

pub use super::files::{again_path, create_directory, directory_of, files_of, lanes_in};
pub use super::row::{LaneTrouble, StoredLane, peek};

/// How often, and how far apart, the lock is tried before the store counts as in use.
const TRIES: u32 = 6;
const PAUSE: Duration = Duration::from_millis(50);

/// A lane whose files could not be used is tried again after this.
const AGAIN: Duration = Duration::from_secs(60);

/// The embedded store.
pub struct NdjsonStore {
    directory: PathBuf,
    rotate_bytes: u64,
    lanes: HashMap<LaneName, LaneFile>,
    identity: StoreIdentity,
    /// Lanes whose files cannot be used.
    out_of_use: HashMap<LaneName, OutOfUse>,
    /// How long they are left alone before they are tried again.
    retry_after: Duration,
    /// What is beside lanes, as far as it was asked for.
    late: HashMap<LaneName, Late>,
    _lock: StoreLock,
}

/// A lane whose files cannot be used.
struct OutOfUse {
    reason: String,
    tried: Instant,
    /// A write or sync of this file has failed: what lies beyond its last barrier may be in memory only, and must go before the
    /// lane's files are read.
    unsynced: Option<LaneFile>,
}

impl OutOfUse {
    fn error(&self, lane: &LaneName) -> StoreError {
        StoreError::OutOfUse { lane: lane.clone(), reason: self.reason.clone() }
    }
}

impl NdjsonStore {
    /// Opens or creates the store, and reads from each file's tail where its lane ends. A lane whose files cannot be used
    /// stops no other.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn open(directory: &Path, rotate_bytes: u64) -> Result<Self, StoreError> {
        let lock = StoreLock::take(directory)?;
        let mut store = Self {
            directory: directory.to_owned(),
            rotate_bytes,
            lanes: HashMap::new(),
            identity: StoreIdentity::open(directory)?,
            out_of_use: HashMap::new(),
            retry_after: AGAIN,
            late: HashMap::new(),
            _lock: lock,
        };
        let (names, unlisted) = lanes_found(directory)?;
        for error in unlisted {
            tracing::error!(
                error = chain(&error),
                "A directory of the store cannot be listed: the lanes in it are out of use"
            );
        }
        for name in names {
            let opened = LaneFile::open(directory, name.clone());
            // Its error is logged, and given to whoever asks for the lane.
            let _ = store.keep_or_not(&name, opened.map(Some));
        }
        Ok(store)
    }

    /// Tries a lane that is out of use again after this, not after a minute.
    #[must_use]
    pub fn retrying_after(self, retry_after: Duration) -> Self {
        Self { retry_after, ..self }
    }

    /// What is beside a lane.
    fn late(&mut self, lane: &LaneName) -> Result<&mut Late, StoreError> {
        if !self.late.contains_key(lane) {
            self.late.insert(lane.clone(), Late::open(&self.directory, lane)?);
        }
        self.late.get_mut(lane).ok_or_else(|| StoreError::OutOfUse {
            lane: lane.clone(),
            reason: "what is beside it cannot be read".to_owned(),
        })
    }

    /// Takes a lane that was opened, one that does not exist yet, or one whose files cannot be used.
    fn keep_or_not(
        &mut self,
        name: &LaneName,
        opened: Result<Option<LaneFile>, StoreError>,
    ) -> Result<(), StoreError> {
        match opened {
            Ok(opened) => {
                if self.out_of_use.remove(name).is_some() {
                    tracing::info!(lane = %name, "The files of a lane can be used again");
                }
                self.lanes.extend(opened.map(|lane| (name.clone(), lane)));
                Ok(())
            }
            Err(error) => Err(self.take_out(name, &error, None)),
        }
    }

    /// A lane's files have failed: it is out of use from now on.
    fn take_out(&mut self, name: &LaneName, error: &StoreError, unsynced: Option<LaneFile>) -> StoreError {
        let reason = chain(error);
        tracing::error!(
            lane = %name,
            error = reason,
            "A lane is out of use: its files cannot be used; nothing is stored in it or said of it; the other lanes continue"
        );
        let out = OutOfUse { reason, tried: Instant::now(), unsynced };
        let error = out.error(name);
        self.out_of_use.insert(name.clone(), out);
        error
    }

    /// An entry joins what is written next of its lane; a lane that has nothing there yet is `touched`.
    fn stage(&mut self, entry: &Entry, time: &str, touched: &mut Vec<LaneName>) -> Result<(), StoreError> {
        let name = &entry.lane;
        if !self.lanes.contains_key(name) {
            // It is tried again when it is next asked about: with every group would hold up the other lanes.
            if let Some(out) = self.out_of_use.get(name) {
                return Err(out.error(name));
            }
            let lane = LaneFile::open(&self.directory, name.clone())?;
            self.lanes.insert(name.clone(), lane);
        }
        let Some(lane) = self.lanes.get_mut(name) else { return Ok(()) };
        if lane.pending.is_empty() {
            lane.rejoin()?;
            touched.push(name.clone());
            line::write_group(&mut lane.pending, time, &lane.watermarks);
            lane.pending_watermarks.clone_from(&lane.watermarks);
        }
        lane.stage(entry)
    }

    /// A full disk concerns all lanes; what else has failed takes its lane out of use.
    fn outcome(&mut self, faults: BTreeMap<LaneName, StoreError>) -> Result<(), StoreError> {
        let mut outcome = Ok(());
        for (name, error) in faults {
            let error = if error.is_full() || error.concerns_one_lane() {
                error
            } else {
                let unsynced = self.lanes.remove(&name).filter(LaneFile::is_unsynced);
                self.take_out(&name, &error, unsynced)
            };
            if outcome.is_ok() || error.is_full() {
                outcome = Err(error);
            }
        }
        outcome
    }

    /// The lane's open files, if it has any and they can be used.
    fn lane(&mut self, name: &LaneName) -> Result<Option<&mut LaneFile>, StoreError> {
        match self.out_of_use.get(name) {
            Some(out) => Err(out.error(name)),
            None => Ok(self.lanes.get_mut(name)),
        }
    }
}

/// Held by the only process that may change the store.
#[derive(Debug)]
pub struct StoreLock {
    _file: File,
}

impl StoreLock {
    /// Takes the lock; creates the store's directory if necessary.
    ///
    /// # Errors
    /// [`StoreError::InUse`]: a hub is running.
    pub fn take(directory: &Path) -> Result<Self, StoreError> {
        // A command holds it only for a moment.
        for _ in 0..TRIES {
            if let Some(file) = lock(directory)? {
                return Ok(Self { _file: file });
            }
            std::thread::sleep(PAUSE);
        }
        Err(StoreError::InUse(directory.to_owned()))
    }
}

/// The store's lock; `None`: another process holds it.
fn lock(directory: &Path) -> Result<Option<File>, StoreError> {
    create_directory(directory)?;
    let path = directory.join("lock");
    let lock = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(&path)
        .map_err(failed("open", &path))?;
    match lock.try_lock() {
        Ok(()) => Ok(Some(lock)),
        Err(fs::TryLockError::WouldBlock) => Ok(None),
        Err(fs::TryLockError::Error(source)) => Err(failed("lock", &path)(source)),
    }
}

impl Store for NdjsonStore {
    fn identity(&self) -> &StoreIdentity {
        &self.identity
    }

    fn watermarks(&self) -> Vec<(LaneName, Vec<Through>)> {
        let mut watermarks: Vec<_> =
            self.lanes.values().map(|lane| (lane.name.clone(), lane.watermarks.clone())).collect();
        watermarks.sort_by(|a, b| a.0.cmp(&b.0));
        watermarks
    }

    fn watermarks_of(&self, lane: &LaneName) -> Vec<Through> {
        self.lanes.get(lane).map(|lane| lane.watermarks.clone()).unwrap_or_default()
    }

    fn append(&mut self, group: &[Entry]) -> Result<(), StoreError> {
        let mut touched: Vec<LaneName> = Vec::new();
        let mut faults: BTreeMap<LaneName, StoreError> = BTreeMap::new();
        let time = rfc3339(unix_millis_now());
        for entry in group {
            if faults.contains_key(&entry.lane) {
                continue;
            }
            if let Err(error) = self.stage(entry, &time, &mut touched) {
                faults.insert(entry.lane.clone(), error);
            }
        }
        for name in touched {
            if let Some(lane) = self.lanes.get_mut(&name)
                && let Err(error) = lane.commit(self.rotate_bytes)
            {
                faults.insert(name, error);
            }
        }
        self.outcome(faults)
    }

    fn keep_copies(&mut self, copies: &[Entry]) -> Result<(), StoreError> {
        let mut lines: HashMap<&LaneName, Vec<u8>> = HashMap::new();
        for Entry { lane, envelope, body, .. } in copies {
            if let Some(body) = body {
                let text = lines.entry(lane).or_default();
                line::write_record(text, envelope, body);
            }
        }
        for (lane, text) in lines {
            let path = again_path(&self.directory, lane);
            let file = open_synced(&path)?;
            let length = file.metadata().map_err(failed("read", &path))?.len();
            // A line that a crash has cut short ends here and is not a valid line.
            let mut last = [b'\n'];
            if length > 0 {
                file.read_exact_at(&mut last, length - 1).map_err(failed("read", &path))?;
            }
            let text = if last == *b"\n" { text } else { [b"\n", &text[..]].concat() };
            file.write_all_at(&text, length).map_err(failed("write", &path))?;
            pgw_durable::sync_data(&file).map_err(failed("sync", &path))?;
        }
        Ok(())
    }

    fn keep_late(&mut self, entries: &[Entry]) -> Result<LateKept, StoreError> {
        let mut lanes: HashMap<&LaneName, Vec<&Entry>> = HashMap::new();
        for entry in entries {
            lanes.entry(&entry.lane).or_default().push(entry);
        }
        let mut all = LateKept::default();
        for (lane, entries) in lanes {
            let LateKept { new, no_room } = self.late(lane)?.keep(&entries)?;
            (all.new, all.no_room) = (all.new + new, all.no_room + no_room);
        }
        Ok(all)
    }

    fn content(&mut self, lane: &LaneName, id: TransactionId, digest: Digest) -> Result<Content, StoreError> {
        self.lane(lane)?.map_or(Ok(Content::Unknown), |lane| lane.content(id.0, digest))
    }

    fn value_at(
        &mut self,
        lane: &LaneName,
        epoch: Epoch,
        sequence: Sequence,
    ) -> Result<Option<ChainValue>, StoreError> {
        self.lane(lane)?.map_or(Ok(None), |lane| lane.value_at(Point { epoch, sequence }))
    }

    fn late_at(
        &mut self,
        lane: &LaneName,
        epoch: Epoch,
        sequence: Sequence,
    ) -> Result<Vec<ChainValue>, StoreError> {
        self.late(lane)?.values_at(epoch, sequence)
    }

    fn hole(&self, lane: &LaneName) -> Option<Vec<Through>> {
        self.lanes.get(lane)?.hole()
    }

    fn lost(&self, lane: &LaneName) -> &[LostNumbers] {
        self.lanes.get(lane).map(|lane| lane.lost.as_slice()).unwrap_or_default()
    }

    fn close_hole(&mut self, lane: &LaneName) -> Result<(), StoreError> {
        let Some(file) = self.lanes.get_mut(lane) else { return Ok(()) };
        let before = file.watermarks.clone();
        match file.close_hole() {
            // It is noted, and the files after it cannot be read: nothing may be said of the lane until they can.
            Err(error) if file.watermarks != before => {
                self.lanes.remove(lane);
                self.keep_or_not(lane, Err(error))
            }
            outcome => outcome,
        }
    }

    fn leave_hole(&mut self, lane: &LaneName) -> Result<u64, StoreError> {
        // What is set aside is late from now on.
        self.late.remove(lane);
        let Some(mut file) = self.lanes.remove(lane) else { return Ok(0) };
        match file.leave_hole() {
            Ok(moved) => {
                self.lanes.insert(lane.clone(), file);
                Ok(moved)
            }
            // Some of its files may have gone already: what would be written now could be lost with them.
            Err(error) => self.keep_or_not(lane, Err(error)).map(|()| 0),
        }
    }

    fn is_out_of_use(&self, lane: &LaneName) -> bool {
        self.out_of_use.contains_key(lane)
    }

    fn check_lane(&mut self, lane: &LaneName) -> Result<(), StoreError> {
        if self.lanes.contains_key(lane) {
            return Ok(());
        }
        if let Some(out) = self.out_of_use.get_mut(lane) {
            if out.tried.elapsed() < self.retry_after {
                return Err(out.error(lane));
            }
            if let Some(mut file) = out.unsynced.take()
                && let Err(error) = file.drop_unsynced()
            {
                return Err(self.take_out(lane, &error, Some(file)));
            }
        }
        let opened = match LaneFile::exists(&self.directory, lane) {
            Ok(true) => LaneFile::open(&self.directory, lane.clone()).map(Some),
            Ok(false) => Ok(None),
            Err(error) => Err(error),
        };
        self.keep_or_not(lane, opened)
    }

    fn is_archived(&mut self, lane: &LaneName, epoch: Epoch, sequence: Sequence) -> Result<bool, StoreError> {
        self.lane(lane)?.map_or(Ok(false), |lane| lane.is_archived(Point { epoch, sequence }))
    }

    fn take_remains(&mut self, lane: &LaneName, file: u32) -> Result<(), StoreError> {
        self.check_lane(lane)?;
        let out_of_use = || StoreError::OutOfUse { lane: lane.clone(), reason: "it has no files".to_owned() };
        self.lanes.get_mut(lane).ok_or_else(out_of_use)?.take_remains(file)
    }

    fn link_lane(&mut self, lane: &LaneName, into: &Path) -> Result<LinkedLane, StoreError> {
        self.check_lane(lane)?;
        self.lanes
            .get(lane)
            .map_or_else(|| Ok(LinkedLane::default()), |lane| lane.link(&self.directory, into))
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use pgw_core::transaction::{Body, Clock, Kind, Transaction};
    use pgw_core::wire::envelope::Envelope;
    use uuid::Uuid;

    use super::*;

    /// Numbers 1 to `count` of a lane.
    fn entries(count: u64) -> Vec<Entry> {
        let (name, epoch): (LaneName, _) = ("B86022/gw1/clinical".parse().unwrap(), Epoch(Uuid::max()));
        let mut chain = ChainValue::first(&name, epoch, None);
        let entry = |sequence| {
            let transaction = Transaction {
                id: TransactionId(Uuid::from_u128(u128::from(sequence))),
                time: 0,
                event_type: "t".into(),
                kind: Kind::Transaction,
                content_type: "t/p".into(),
                sender: "x".into(),
                given_sender: None,
                key: String::new(),
                shows_key: false,
                correlation_id: String::new(),
                trace_parent: String::new(),
                clock: Clock::Synced,
                body: Body::new(b"body".to_vec()),
            };
            let mut envelope = Envelope::new(&name, epoch, sequence, chain, 0, &transaction);
            chain = chain.next(sequence, envelope.digest(b"body"));
            envelope.chain = chain;
            Entry::new(name.clone(), envelope, b"body".to_vec().into())
        };
        (1..=count).map(entry).collect()
    }

    #[test]
    fn what_was_not_synced_does_not_count_when_the_lane_comes_back_although_it_shows_in_the_file() {
        let (directory, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let all = entries(3);
        let name = all[0].lane.clone();
        let mut store = NdjsonStore::open(directory.path(), u64::MAX).unwrap().retrying_after(Duration::ZERO);
        store.append(&all[..2]).unwrap();
        let path = files_of(directory.path(), &name).unwrap().remove(0);
        let before = fs::read(&path).unwrap();
        // A whole group beyond the barrier, as memory shows it after a sync that has failed.
        let mut longer = NdjsonStore::open(other.path(), u64::MAX).unwrap();
        longer.append(&all[..2]).unwrap();
        let length = fs::metadata(files_of(other.path(), &name).unwrap().remove(0)).unwrap().len();
        longer.append(&all[2..]).unwrap();
        let group = fs::read(files_of(other.path(), &name).unwrap().remove(0)).unwrap();
        let group = &group[usize::try_from(length).unwrap()..];
        fs::write(&path, [&before, group].concat()).unwrap();
        store.lanes.get_mut(&name).unwrap().sync_has_failed();
        let error = failed("sync", &path)(io::ErrorKind::Other.into());
        let outcome = store.outcome(BTreeMap::from([(name.clone(), error)]));
        assert!(matches!(outcome, Err(StoreError::OutOfUse { .. })));
        assert!(store.is_out_of_use(&name) && store.watermarks_of(&name).is_empty());
        // Nothing may be concluded from what cannot be read.
        let id = TransactionId(all[0].envelope.id());
        assert!(store.content(&name, id, Digest([0; 32])).is_err());
        assert!(store.value_at(&name, all[0].envelope.epoch, 1).is_err());
        store.check_lane(&name).unwrap();
        assert_eq!(store.watermarks_of(&name)[0].through, 2);
        assert_eq!(fs::read(&path).unwrap(), before);
        store.append(&all[2..]).unwrap();
        assert_eq!(store.watermarks_of(&name)[0].through, 3);
    }
}
