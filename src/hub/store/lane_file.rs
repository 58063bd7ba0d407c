//! One lane of the embedded store: its files, and the last group that is on stable storage.

use std::fs::File;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use pgw_core::chain::{ChainValue, Digest};
use pgw_core::committer::{Content, Record as _, Refill, refill};
use pgw_core::numbering::LostNumbers;
use uuid::Uuid;

use super::files::{
    again_path, create_directory, directory_of, failed, files_of, open_synced, ordinal_of, put_aside,
    rotated, rotated_path, set_aside,
};
use super::ids::{FileOffset, Ids};
use super::points::{Files, Point, found_in, value_in};
use super::row::{self, Hole, Row};
use super::tail::{self, Tail};
use super::{Entry, LaneName, LinkedLane, StoreError, Through};
use super::{archived, late, line};

mod hole;

/// Buffers above this are freed after a group.
const KEEP_BUFFER: usize = 1024 * 1024;

/// A lane that is open for writing.
pub(super) struct LaneFile {
    pub(super) name: LaneName,
    directory: PathBuf,
    /// The file that grows, unless there is a hole.
    base: PathBuf,
    /// The file that is written: in a lane with a hole, the one after the last before it, or that one.
    path: PathBuf,
    file: File,
    /// The last good barrier.
    length: u64,
    pub(super) watermarks: Vec<Through>,
    /// The number of the file that is written; it gets it in its name when it rotates.
    ordinal: u32,
    /// Files are missing after the one that is written.
    hole: Option<Hole>,
    /// What is lost for good, in the order of the line.
    pub(super) lost: Vec<LostNumbers>,
    /// What lies beyond `length` still has to be copied aside.
    torn: bool,
    /// The file was renamed, and the new one does not exist yet.
    renamed: bool,
    /// A write or sync failed: cut back to `length` first.
    broken: bool,
    pub(super) pending: Vec<u8>,
    pub(super) pending_watermarks: Vec<Through>,
    /// Ids of the transactions in `pending`, and their offsets in it; only if there is an index.
    pending_ids: Vec<(Uuid, u64)>,
    ids: Option<Ids>,
}

impl LaneFile {
    /// Whether the lane has any file.
    pub(super) fn exists(directory: &Path, name: &LaneName) -> Result<bool, StoreError> {
        let above = directory_of(directory, name);
        if !above.try_exists().map_err(failed("find", &above))? {
            return Ok(false);
        }
        let mut paths = files_of(directory, name)?;
        paths.push(again_path(directory, name));
        paths.push(late::path(directory, name));
        for path in paths {
            if path.try_exists().map_err(failed("find", &path))? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    pub(super) fn open(directory: &Path, name: LaneName) -> Result<Self, StoreError> {
        let parent = directory_of(directory, &name);
        create_directory(&parent)?;
        let base = parent.join(format!("{}.ndjson", name.lane));
        let Row { ends, last, hole, lost, damaged } = row::read(directory, &name)?;
        let numbers = rotated(&parent, &name.lane)?;
        let next = numbers.last().copied().unwrap_or(0) + 1;
        if let Some(hole) = &hole {
            tracing::error!(lane = %name, hole = %hole, "Files of a lane are missing or damaged: its end moves back, and its gateway sends the difference again");
        }
        let (path, ordinal) = match (&hole, &last) {
            (None, _) => (base.clone(), next),
            (Some(hole), Some((path, tail))) => {
                let ordinal = ordinal_of(path).unwrap_or(next);
                let is_free = ordinal + 1 < ordinal_of(&hole.before).unwrap_or(next);
                // In the place of the missing file, so that what is noted as lost stays the end of its file. A file that has lost
                // its own end gets that again.
                match is_free && tail.good == tail.length {
                    true => (rotated_path(&base, ordinal + 1), ordinal + 1),
                    false => (path.clone(), ordinal),
                }
            }
            // Before everything that is there.
            (Some(_), None) => {
                let before = numbers.first().map_or(1, |first| first.saturating_sub(1));
                (rotated_path(&base, before), before)
            }
        };
        put_aside(&damaged, last.is_none().then_some(path.as_path()), &name)?;
        if hole.is_some() {
            // It covers more than the lane has now.
            pgw_durable::remove(&base.with_extension("ids")).map_err(failed("remove", &base))?;
        }
        let file = open_synced(&path)?;
        let tail = tail::read(&file, &name).map_err(failed("read", &path))?;
        // On a full disk the torn end cannot be copied yet; the lane can still be queried. Before a hole nothing is cut until
        // the gateway sends again what the file has lost.
        let torn = match if hole.is_none() { set_aside(&file, &path, &tail) } else { Ok(()) } {
            Ok(()) => hole.is_some() && tail.good < tail.length,
            Err(error) if error.is_full() => {
                tracing::error!(file = %path.display(), "The torn end of a lane file could not be saved: the disk is full");
                true
            }
            Err(error) => return Err(error),
        };
        Ok(Self {
            name,
            directory: directory.to_owned(),
            base,
            path,
            file,
            length: tail.good,
            watermarks: ends,
            ordinal,
            hole,
            lost,
            torn,
            renamed: false,
            broken: false,
            pending: Vec::new(),
            pending_watermarks: Vec::new(),
            pending_ids: Vec::new(),
            ids: None,
        })
    }

    pub(super) fn stage(&mut self, entry: &Entry) -> Result<(), StoreError> {
        let envelope = &entry.envelope;
        let watermark = Through { epoch: envelope.epoch, through: envelope.sequence, chain: envelope.chain };
        let fills = self.hole.as_ref().map(|hole| refill(&self.pending_watermarks, &hole.until, &watermark));
        if fills == Some(Refill::Beyond) {
            // It is judged again once the files follow on one another.
            return Ok(());
        }
        // The committer has checked it; this is the last place where a gap in a lane, or an epoch elsewhere than at its end, can
        // be prevented.
        if fills == Some(Refill::Other) || !self.continues(entry) {
            return Err(StoreError::NotNext {
                lane: entry.lane.clone(),
                epoch: watermark.epoch,
                sequence: watermark.through,
            });
        }
        match self.pending_watermarks.last_mut().filter(|end| end.epoch == watermark.epoch) {
            Some(end) => *end = watermark,
            None => self.pending_watermarks.push(watermark),
        }
        if self.ids.is_some() && entry.body.is_some() {
            self.pending_ids.push((envelope.id(), self.pending.len() as u64));
        }
        match &entry.body {
            Some(body) => line::write_record(&mut self.pending, envelope, body),
            None => line::write_advance(&mut self.pending, envelope, entry.digest()),
        }
        if entry.rival {
            line::write_rival(&mut self.pending, envelope);
        }
        if let (Some(key), Some(signature)) = (entry.signed_by, &envelope.signature) {
            line::write_head(&mut self.pending, envelope, signature, key);
        }
        Ok(())
    }

    /// Whether it has the number after the end, or begins an epoch there.
    fn continues(&self, entry: &Entry) -> bool {
        let envelope = &entry.envelope;
        match self.pending_watermarks.last() {
            Some(end) if end.epoch == envelope.epoch => end.through + 1 == envelope.sequence,
            end => {
                let known = self.pending_watermarks.iter().any(|end| end.epoch == envelope.epoch);
                envelope.sequence == 1 && envelope.link.as_ref() == end && !known
            }
        }
    }

    pub(super) fn commit(&mut self, rotate_bytes: u64) -> Result<(), StoreError> {
        let nothing = self.hole.is_some() && self.pending_watermarks == self.watermarks;
        let outcome = if nothing { Ok(()) } else { self.write(rotate_bytes) };
        let outcome = outcome.and_then(|()| self.rejoin());
        if self.pending.capacity() > KEEP_BUFFER {
            self.pending = Vec::new();
        }
        self.pending.clear();
        self.pending_ids.clear();
        outcome
    }

    fn write(&mut self, rotate_bytes: u64) -> Result<(), StoreError> {
        self.cut_torn()?;
        if self.broken {
            self.cut_back()?;
        }
        if self.length >= rotate_bytes && self.hole.is_none() {
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
        // Nothing is answered that only a file without a name has.
        self.in_place()?;
        self.broken = false;
        self.length += self.pending.len() as u64;
        std::mem::swap(&mut self.watermarks, &mut self.pending_watermarks);
        self.index();
        Ok(())
    }

    /// Copies aside and cuts off what lies torn beyond the last barrier.
    fn cut_torn(&mut self) -> Result<(), StoreError> {
        if self.torn {
            let tail =
                Tail { good: self.length, length: self.file_length()?, watermarks: None, lost: Vec::new() };
            set_aside(&self.file, &self.path, &tail)?;
            self.torn = false;
        }
        Ok(())
    }

    fn file_length(&self) -> Result<u64, StoreError> {
        Ok(self.file.metadata().map_err(failed("read", &self.path))?.len())
    }

    #[cfg(test)]
    pub(super) fn sync_has_failed(&mut self) {
        self.broken = true;
    }

    /// Whether a group may be in its file, or in memory only, that was not synced.
    pub(super) fn is_unsynced(&self) -> bool {
        self.broken
    }

    /// Cuts off what was not synced: after a failed sync the kernel may show it as if it were on the disk. Another file that a
    /// person has put in its place is not touched.
    pub(super) fn drop_unsynced(&mut self) -> Result<(), StoreError> {
        if self.broken && self.is_in_place()? { self.cut_back() } else { Ok(()) }
    }

    fn is_in_place(&self) -> Result<bool, StoreError> {
        let inode = |facts: std::fs::Metadata| (facts.dev(), facts.ino());
        let open = self.file.metadata().map_err(failed("read", &self.path))?;
        Ok(self.path.metadata().is_ok_and(|there| inode(there) == inode(open)))
    }

    /// What a person puts back while the hub runs takes the name of the file that is written.
    fn in_place(&self) -> Result<(), StoreError> {
        if self.renamed || self.is_in_place()? {
            return Ok(());
        }
        let source = std::io::Error::other(
            "it is not the file any more that this hub writes: the lane is read again; stop the hub before its files are moved",
        );
        Err(failed("continue", &self.path)(source))
    }

    /// Cuts the file back to the last good barrier.
    fn cut_back(&mut self) -> Result<(), StoreError> {
        self.file.set_len(self.length).map_err(failed("cut back", &self.path))?;
        self.file.sync_all().map_err(failed("sync", &self.path))?;
        self.broken = false;
        Ok(())
    }

    fn rotate(&mut self) -> Result<(), StoreError> {
        self.in_place()?;
        if !self.renamed {
            let aside = rotated_path(&self.path, self.ordinal);
            let renamed = pgw_durable::rename(&self.path, &aside);
            // It may be renamed with only the directory not synced: the sync for the new file below covers that.
            if renamed.is_ok() || matches!(self.path.try_exists(), Ok(false)) {
                self.ordinal += 1;
                self.renamed = true;
            }
            renamed.map_err(failed("rename", &self.path))?;
        }
        self.file = open_synced(&self.path)?;
        self.renamed = false;
        self.length = 0;
        Ok(())
    }

    /// The path of each of its files by number.
    fn path_of(&self) -> impl Fn(u32) -> PathBuf + use<> {
        let (current, base, number) = (self.path.clone(), self.base.clone(), self.ordinal);
        move |ordinal| if ordinal == number { current.clone() } else { rotated_path(&base, ordinal) }
    }

    /// What the line has under an id, as compared with a content.
    pub(super) fn content(&mut self, id: Uuid, digest: Digest) -> Result<Content, StoreError> {
        let path = self.base.with_extension("ids");
        let file = self.path_of();
        if self.ids.is_none() {
            let end = self.place(self.length);
            self.ids = Some(Ids::open(path.clone(), &file, end).map_err(failed("make", &path))?);
        }
        let found = self.ids.as_ref().map_or(Ok(Content::Unknown), |ids| ids.content(id, digest, &file));
        found.map_err(failed("read", &path))
    }

    /// The chain value at a number of the line; `None`: it does not have it.
    pub(super) fn value_at(&self, point: Point) -> Result<Option<ChainValue>, StoreError> {
        if point.sequence == 0 || !point.is_in(&self.watermarks) {
            return Ok(None);
        }
        let is_end = |end: &&Through| (end.epoch, end.through) == (point.epoch, point.sequence);
        if let Some(end) = self.watermarks.iter().find(is_end) {
            return Ok(Some(end.chain));
        }
        if let Some(value) = value_in(&self.files()?, point)? {
            return Ok(Some(value));
        }
        // Where a file has lost its end, copies may be in its place.
        let (again, mut value) = (again_path(&self.directory, &self.name), None);
        late::lines(&again, |text| {
            let at = line::read(text).as_ref().and_then(line::Line::watermark);
            let at = at.filter(|at| (at.epoch, at.through) == (point.epoch, point.sequence));
            value = at.map(|at| at.chain).or(value);
        })?;
        // Damaged in the middle of a file, which `verify` names. The answer is that it is not here.
        Ok(value)
    }

    /// Its files, each with the bytes of it that count.
    fn files(&self) -> Result<Files, StoreError> {
        let mut files = Files::new();
        for path in files_of(&self.directory, &self.name)? {
            let is_written = path == self.path;
            let length = match path.metadata() {
                _ if is_written && !self.renamed => self.length,
                Ok(facts) => facts.len(),
                Err(_) => 0,
            };
            files.push((path, length));
            if is_written && self.hole.is_some() {
                break;
            }
        }
        Ok(files)
    }

    /// Whether the body of a number was archived.
    pub(super) fn is_archived(&self, point: Point) -> Result<bool, StoreError> {
        let there = point.sequence > 0 && point.is_in(&self.watermarks);
        Ok(there && found_in(&self.files()?, point)?.is_some_and(|found| found.archived))
    }

    /// Puts what remains of a rotated file in its place: `archived::draft` of it, which is on stable storage.
    pub(super) fn take_remains(&mut self, ordinal: u32) -> Result<(), StoreError> {
        let path = rotated_path(&self.base, ordinal);
        let is_written = ordinal >= self.ordinal || self.hole.is_some();
        if is_written || !path.try_exists().map_err(failed("find", &path))? {
            let source = std::io::Error::other("it is not a complete file of a lane without a hole");
            return Err(failed("archive", &path)(source));
        }
        // Its places are those of the lines before: an id that it does not find would be stored twice.
        let index = self.base.with_extension("ids");
        self.ids = None;
        pgw_durable::remove(&index).map_err(failed("remove", &index))?;
        pgw_durable::rename(&archived::draft(&path), &path).map_err(failed("replace", &path))
    }

    fn place(&self, offset: u64) -> FileOffset {
        FileOffset { ordinal: self.ordinal, offset }
    }

    /// Extends the id index to the new barrier. If that fails, the index is reopened when it is needed, and reads from
    /// the lane's files what it lacks.
    fn index(&mut self) {
        let start = self.length - self.pending.len() as u64;
        let end = self.place(self.length);
        let file = self.path_of();
        if let Some(ids) = &mut self.ids {
            let place = |at| FileOffset { offset: start + at, ..end };
            let inserted = self.pending_ids.drain(..).try_for_each(|(id, at)| ids.insert(id, place(at)));
            if let Err(error) = inserted.and_then(|()| ids.cover(end, &file)) {
                tracing::warn!(lane = %self.name, error = %error, "The id index could not be written");
                self.ids = None;
            }
        }
    }

    /// Gives each of its files a second name below `into`; quick, because nothing is read.
    pub(super) fn link(&self, directory: &Path, into: &Path) -> Result<LinkedLane, StoreError> {
        self.in_place()?;
        let above = directory_of(Path::new(""), &self.name);
        let mut paths = files_of(directory, &self.name)?;
        paths.push(again_path(directory, &self.name));
        paths.extend(late::files(directory, &self.name)?);
        let mut files = Vec::new();
        for path in paths.iter().filter(|path| path.exists()) {
            let Some(name) = path.file_name() else { continue };
            let below = above.join(name);
            let link = into.join(&below);
            pgw_durable::add_name_unsynced(path, &link).map_err(failed("link", path))?;
            // Beyond the last barrier there is what may not last; the other files are complete.
            let bytes = if *path == self.path && !self.renamed {
                self.length
            } else {
                path.metadata().map_err(failed("read", path))?.len()
            };
            files.push((below, bytes));
        }
        let hole = self.hole.as_ref().map(ToString::to_string);
        Ok(LinkedLane { ends: self.watermarks.clone(), files, hole })
    }
}
