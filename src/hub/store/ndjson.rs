//! The embedded store: one append-only NDJSON file per lane, `{directory}/{practice}/{gateway}/{lane}.ndjson`.
//!
//! - A group is one buffer, one write and one `fdatasync` per lane file; a new file's directories are synced.
//! - The tail gives the watermark: at the start only the last group of each file is read ([`super::tail`]). A torn end
//!   is copied to `{lane}.torn-{time}` and cut off.
//! - A file that has reached `rotate_bytes` is renamed to `{lane}.{ordinal}.ndjson`, six digits, in the order of
//!   the transactions. Programs that follow a lane read those first, then `{lane}.ndjson`.
//! - After a failed write or sync nothing of that group counts: the file is cut back to its last good barrier before
//!   anything else is written to it.
//!
//! `{lane}.again.ndjson` holds copies that a gateway sent again because the lane's files had lost or altered
//! something: readers of the lane use them in place of what is damaged.
//!
//! After a fork, stored ids are looked up in an index beside the file ([`super::ids`]).
//!
//! Files have mode 0600 and directories 0700: this is the centre's clinical data.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use pgw_core::transaction::{rfc3339, unix_millis_now};
use pgw_core::wire::void;
use pgw_core::wire::void::Void;
use uuid::Uuid;

use super::files::{create_directory, failed, last_rotated, open_synced, rotated_path, set_aside};
use super::ids::{FileOffset, Ids};
use super::line;
use super::tail::{self, Tail};
use super::{Entry, LaneName, Store, StoreError, StoreIdentity, Through};

pub use super::files::{again_path, files_of, lanes_in, peek};

/// Buffers above this are freed after a group.
const KEEP_BUFFER: usize = 1024 * 1024;

/// How often, and how far apart, the lock is tried before the store counts as in use.
const TRIES: u32 = 6;
const PAUSE: Duration = Duration::from_millis(50);

/// The embedded store.
pub struct NdjsonStore {
    directory: PathBuf,
    rotate_bytes: u64,
    lanes: HashMap<LaneName, LaneFile>,
    identity: StoreIdentity,
    _lock: StoreLock,
}

struct LaneFile {
    name: LaneName,
    path: PathBuf,
    file: File,
    /// The last good barrier.
    length: u64,
    watermarks: Vec<Through>,
    /// Number of rotated files.
    rotated: u32,
    /// What lies beyond `length` still has to be copied aside.
    torn: bool,
    /// The file was renamed, and the new one does not exist yet.
    renamed: bool,
    /// A write or sync failed: cut back to `length` first.
    broken: bool,
    pending: Vec<u8>,
    pending_watermarks: Vec<Through>,
    /// Ids of the transactions in `pending`, and their offsets in it; only if there is an index.
    pending_ids: Vec<(Uuid, u64)>,
    ids: Option<Ids>,
}

impl NdjsonStore {
    /// Opens or creates the store, and reads from each file's tail where its lane ends.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn open(directory: &Path, rotate_bytes: u64) -> Result<Self, StoreError> {
        let lock = StoreLock::take(directory)?;
        let identity = StoreIdentity::open(directory)?;
        let mut lanes = HashMap::new();
        for name in lanes_in(directory)? {
            let lane = LaneFile::open(directory, name.clone())?;
            lanes.insert(name, lane);
        }
        Ok(Self { directory: directory.to_owned(), rotate_bytes, lanes, identity, _lock: lock })
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
        let mut outcome = Ok(());
        let time = rfc3339(unix_millis_now());
        for entry in group {
            if !self.lanes.contains_key(&entry.lane) {
                match LaneFile::open(&self.directory, entry.lane.clone()) {
                    Ok(lane) => {
                        self.lanes.insert(entry.lane.clone(), lane);
                    }
                    Err(error) => {
                        outcome = outcome.and(Err(error));
                        continue;
                    }
                }
            }
            if let Some(lane) = self.lanes.get_mut(&entry.lane) {
                if lane.pending.is_empty() {
                    touched.push(entry.lane.clone());
                    line::write_group(&mut lane.pending, &time, &lane.watermarks);
                    lane.pending_watermarks.clone_from(&lane.watermarks);
                }
                outcome = outcome.and(lane.stage(entry));
            }
        }
        for name in &touched {
            if let Some(lane) = self.lanes.get_mut(name) {
                outcome = outcome.and(lane.commit(self.rotate_bytes));
            }
        }
        outcome
    }

    fn keep_copies(&mut self, copies: &[Entry]) -> Result<(), StoreError> {
        let mut lines: HashMap<&LaneName, Vec<u8>> = HashMap::new();
        for Entry { lane, envelope, body, .. } in copies {
            if let Some(body) = body {
                let text = lines.entry(lane).or_default();
                match Void::of(envelope, body) {
                    Some(void) if void::is_void(envelope) => line::write_void(text, envelope, &void),
                    _ => line::write_record(text, envelope, body),
                }
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

    fn has_id(&mut self, lane: &LaneName, id: Uuid) -> Result<bool, StoreError> {
        match self.lanes.get_mut(lane) {
            Some(lane) => lane.has_id(id),
            None => Ok(false),
        }
    }
}

impl LaneFile {
    fn open(directory: &Path, name: LaneName) -> Result<Self, StoreError> {
        let parent = directory.join(name.practice.as_str());
        create_directory(&parent)?;
        let parent = parent.join(name.gateway.as_str());
        create_directory(&parent)?;
        let path = parent.join(format!("{}.ndjson", name.lane));
        let file = open_synced(&path)?;
        let rotated = last_rotated(&parent, &name.lane)?;
        let tail = tail::read(&file, &name).map_err(failed("read", &path))?;
        // On a full disk the torn end cannot be copied yet; the lane can still be queried.
        let torn = match set_aside(&file, &path, &tail) {
            Ok(()) => false,
            Err(error) if error.is_full() => {
                tracing::error!(file = %path.display(), "The torn end of a lane file could not be saved: the disk is full");
                true
            }
            Err(error) => return Err(error),
        };
        let watermarks = match tail.watermarks {
            Some(watermarks) => watermarks,
            None if rotated > 0 => {
                let path = rotated_path(&path, rotated);
                let file = File::open(&path).map_err(failed("open", &path))?;
                tail::read(&file, &name).map_err(failed("read", &path))?.watermarks.unwrap_or_default()
            }
            None => Vec::new(),
        };
        Ok(Self {
            name,
            path,
            file,
            length: tail.good,
            watermarks,
            rotated,
            torn,
            renamed: false,
            broken: false,
            pending: Vec::new(),
            pending_watermarks: Vec::new(),
            pending_ids: Vec::new(),
            ids: None,
        })
    }

    fn stage(&mut self, entry: &Entry) -> Result<(), StoreError> {
        let envelope = &entry.envelope;
        let watermark = Through { epoch: envelope.epoch, through: envelope.sequence, chain: envelope.chain };
        let before = self.pending_watermarks.iter_mut().rev().find(|known| known.epoch == watermark.epoch);
        // The committer has checked it; this is the last place where a gap in a lane can be prevented.
        if before.as_ref().map_or(0, |known| known.through) + 1 != watermark.through {
            return Err(StoreError::NotNext {
                lane: entry.lane.clone(),
                epoch: watermark.epoch,
                sequence: watermark.through,
            });
        }
        match before {
            Some(known) => *known = watermark,
            None => self.pending_watermarks.push(watermark),
        }
        if self.ids.is_some() && entry.body.is_some() {
            self.pending_ids.push((envelope.id(), self.pending.len() as u64));
        }
        match &entry.body {
            Some(body) if void::is_void(envelope) => {
                let Some(void) = Void::of(envelope, body) else { return Ok(()) };
                line::write_void(&mut self.pending, envelope, &void);
            }
            Some(body) => line::write_record(&mut self.pending, envelope, body),
            None => line::write_advance(&mut self.pending, envelope),
        }
        if let (Some(key), Some(signature)) = (entry.signed_by, &envelope.signature) {
            line::write_head(&mut self.pending, envelope, signature, key);
        }
        Ok(())
    }

    fn commit(&mut self, rotate_bytes: u64) -> Result<(), StoreError> {
        let outcome = self.write(rotate_bytes);
        if self.pending.capacity() > KEEP_BUFFER {
            self.pending = Vec::new();
        }
        self.pending.clear();
        self.pending_ids.clear();
        outcome
    }

    fn write(&mut self, rotate_bytes: u64) -> Result<(), StoreError> {
        if self.torn {
            let tail = Tail { good: self.length, length: self.file_length()?, watermarks: None };
            set_aside(&self.file, &self.path, &tail)?;
            self.torn = false;
        }
        if self.broken {
            self.cut_back()?;
        }
        if self.length >= rotate_bytes {
            self.rotate()?;
        }
        self.broken = true;
        let written = self.file.write_all_at(&self.pending, self.length).map_err(failed("write", &self.path));
        if let Err(error) =
            written.and_then(|()| pgw_durable::sync_data(&self.file).map_err(failed("sync", &self.path)))
        {
            // At once if possible: what was written takes space on a full disk, and would look torn after a crash.
            let _ = self.cut_back();
            return Err(error);
        }
        self.broken = false;
        self.length += self.pending.len() as u64;
        std::mem::swap(&mut self.watermarks, &mut self.pending_watermarks);
        self.index();
        Ok(())
    }

    fn file_length(&self) -> Result<u64, StoreError> {
        Ok(self.file.metadata().map_err(failed("read", &self.path))?.len())
    }

    /// Cuts the file back to the last good barrier.
    fn cut_back(&mut self) -> Result<(), StoreError> {
        self.file.set_len(self.length).map_err(failed("cut back", &self.path))?;
        self.file.sync_all().map_err(failed("sync", &self.path))?;
        self.broken = false;
        Ok(())
    }

    fn rotate(&mut self) -> Result<(), StoreError> {
        if !self.renamed {
            let aside = rotated_path(&self.path, self.rotated + 1);
            let renamed = pgw_durable::rename(&self.path, &aside);
            // It may be renamed with only the directory not synced: the sync for the new file below covers that.
            if renamed.is_ok() || matches!(self.path.try_exists(), Ok(false)) {
                self.rotated += 1;
                self.renamed = true;
            }
            renamed.map_err(failed("rename", &self.path))?;
        }
        self.file = open_synced(&self.path)?;
        self.renamed = false;
        self.length = 0;
        Ok(())
    }

    fn has_id(&mut self, id: Uuid) -> Result<bool, StoreError> {
        let path = self.path.with_extension("ids");
        let rotated = self.rotated;
        let current = self.path.clone();
        let file =
            move |ordinal| if ordinal > rotated { current.clone() } else { rotated_path(&current, ordinal) };
        if self.ids.is_none() {
            let end = self.place(self.length);
            self.ids = Some(Ids::open(path.clone(), &file, end).map_err(failed("make", &path))?);
        }
        let found = self.ids.as_ref().map_or(Ok(false), |ids| ids.contains(id, &file));
        found.map_err(failed("read", &path))
    }

    fn place(&self, offset: u64) -> FileOffset {
        FileOffset { ordinal: self.rotated + 1, offset }
    }

    /// Extends the id index to the new barrier. If that fails, the index is reopened when it is needed, and reads from
    /// the lane's files what it lacks.
    fn index(&mut self) {
        let start = self.length - self.pending.len() as u64;
        let end = self.place(self.length);
        if let Some(ids) = &mut self.ids {
            let place = |at| FileOffset { offset: start + at, ..end };
            let inserted = self.pending_ids.drain(..).try_for_each(|(id, at)| ids.insert(id, place(at)));
            if let Err(error) = inserted.and_then(|()| ids.cover(end)) {
                tracing::warn!(lane = %self.name, error = %error, "The id index could not be written");
                self.ids = None;
            }
        }
    }
}
