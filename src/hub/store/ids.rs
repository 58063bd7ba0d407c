//! The id index of a lane, `{lane}.ids`: where each stored transaction lies, by its id. It is used only after a fork,
//! and created when it is first needed.
//!
//! A hash table in a file (open addressing, linear probing), so that memory does not grow with the lane. It is derived
//! from the lane's files and may be deleted at any time while the hub is stopped. It is never trusted:
//!
//! - a hit counts only if the transaction is in the lane file where the index says (after a torn tail or a restored
//!   backup it may not be), and its content is compared there;
//! - a miss counts only because the table holds everything up to the last barrier: the header says how far the synced
//!   table reaches, and what lies beyond is read from the lane's files again; and only while the complete files before that
//!   have the lengths that they had: one that a person replaced by its archived or its whole form has its lines elsewhere.
//!
//! Format: a page of 4,096 bytes with the header (magic `PGWIDS02`, capacity u64, ordinal u32, offset u64, number of the first file
//! whose length is not noted u32, CRC32C of the noted lengths u32, CRC32C of these; little-endian), then `capacity` slots of 32 bytes: id, ordinal u32, 1u32 where taken, offset u64.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, Seek as _, SeekFrom};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use pgw_core::chain::Digest;
use pgw_core::committer::Content;
use uuid::Uuid;

use super::line::{self, Line};

const MAGIC: &[u8; 8] = b"PGWIDS02";
const PAGE: u64 = 4_096;
const HEADER: usize = 40;
const SLOT: u64 = 32;
const SLOTS_A_PAGE: u64 = PAGE / SLOT;
/// Capacity of a new index.
const FIRST_CAPACITY: u64 = 64 * 1024;
/// The header is updated after this many insertions.
const CHECKPOINT: u64 = 16 * 1024;
/// How the line of a transaction begins; its id follows.
const LINE_START: &[u8] = br#"{"specversion":"1.0","id":""#;

/// A position in a lane's files: the file's ordinal (in the order of the transactions, from 1) and the offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct FileOffset {
    pub(super) ordinal: u32,
    pub(super) offset: u64,
}

/// The open index.
pub(super) struct Ids {
    path: PathBuf,
    table: File,
    capacity: u64,
    count: u64,
    /// The table holds everything before this.
    covered: FileOffset,
    /// The lengths of the complete files.
    lengths: Lengths,
    since_checkpoint: u64,
}

/// The lengths of a lane's files with lower numbers than `before`, which is at most the number of the one that grows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Lengths {
    before: u32,
    sum: u32,
}

impl Lengths {
    /// None yet.
    const NONE: Self = Self { before: 0, sum: 0 };

    fn through(self, before: u32, file: &dyn Fn(u32) -> PathBuf) -> Self {
        let sum = (self.before..before).fold(self.sum, |sum, ordinal| {
            let length = fs::metadata(file(ordinal)).map_or(0, |facts| facts.len());
            crc32c::crc32c_append(sum, &length.to_le_bytes())
        });
        Self { before: before.max(self.before), sum }
    }
}

impl Ids {
    /// Opens the index, or creates one, and extends it to `end`. `file` gives the path of an ordinal.
    pub(super) fn open(path: PathBuf, file: &dyn Fn(u32) -> PathBuf, end: FileOffset) -> io::Result<Self> {
        let mut ids = match Self::existing(&path, file, end)? {
            Some(ids) => ids,
            None => Self::create(path, FIRST_CAPACITY, FileOffset { ordinal: 1, offset: 0 })?,
        };
        while ids.covered.ordinal <= end.ordinal {
            let ordinal = ids.covered.ordinal;
            let limit = if ordinal == end.ordinal { end.offset } else { u64::MAX };
            ids.read_lines(&file(ordinal), limit)?;
            if ordinal == end.ordinal {
                break;
            }
            ids.covered = FileOffset { ordinal: ordinal + 1, offset: 0 };
        }
        ids.lengths = ids.lengths.through(end.ordinal, file);
        ids.checkpoint()?;
        Ok(ids)
    }

    fn existing(path: &Path, file: &dyn Fn(u32) -> PathBuf, end: FileOffset) -> io::Result<Option<Self>> {
        let table = match OpenOptions::new().read(true).write(true).open(path) {
            Ok(table) => table,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut header = [0; HEADER];
        if table.read_exact_at(&mut header, 0).is_err()
            || crc32c::crc32c(&header[..HEADER - 4]).to_le_bytes() != header[HEADER - 4..]
        {
            return Ok(None);
        }
        let number = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| header[at + i]));
        let short = |at: usize| u32::from_le_bytes(std::array::from_fn(|i| header[at + i]));
        let capacity = number(8);
        let covered = FileOffset { ordinal: short(16), offset: number(20) };
        let lengths = Lengths { before: short(28), sum: short(32) };
        let fits = &header[..8] == MAGIC
            && capacity.is_power_of_two()
            && capacity >= SLOTS_A_PAGE
            && table.metadata()?.len() == PAGE + capacity * SLOT;
        // A lane that was restored from an older copy may end before what the index covers: the index is recreated.
        let there = covered.ordinal < end.ordinal
            && fs::metadata(file(covered.ordinal)).is_ok_and(|facts| facts.len() >= covered.offset)
            || covered.ordinal == end.ordinal && covered.offset <= end.offset;
        let same = lengths.before <= end.ordinal && Lengths::NONE.through(lengths.before, file) == lengths;
        if !fits || !there || !same {
            return Ok(None);
        }
        let path = path.to_owned();
        let mut ids = Self { path, table, capacity, count: 0, covered, lengths, since_checkpoint: 0 };
        ids.count = ids.taken()?;
        Ok(Some(ids))
    }

    fn create(path: PathBuf, capacity: u64, covered: FileOffset) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        let table = options.read(true).write(true).create(true).truncate(true).mode(0o600).open(&path)?;
        table.set_len(PAGE + capacity * SLOT)?;
        let lengths = Lengths::NONE;
        Ok(Self { path, table, capacity, count: 0, covered, lengths, since_checkpoint: 0 })
    }

    fn taken(&self) -> io::Result<u64> {
        let mut page = [0; PAGE as usize];
        let mut count = 0;
        for number in 0..self.capacity / SLOTS_A_PAGE {
            self.table.read_exact_at(&mut page, PAGE + number * PAGE)?;
            count += page.chunks_exact(SLOT as usize).filter(|slot| slot[20] == 1).count() as u64;
        }
        Ok(count)
    }

    fn read_lines(&mut self, path: &Path, limit: u64) -> io::Result<()> {
        let mut file = match File::open(path) {
            // A number that no file has: the files around it follow on one another all the same.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            opened => opened?,
        };
        file.seek(SeekFrom::Start(self.covered.offset))?;
        let mut lines = BufReader::with_capacity(256 * 1024, file);
        let mut line = Vec::new();
        while self.covered.offset < limit {
            line.clear();
            let length = lines.read_until(b'\n', &mut line)? as u64;
            if length == 0 || line.last() != Some(&b'\n') {
                break;
            }
            if let Some(id) = id_of(&line) {
                self.insert(id, self.covered)?;
            }
            self.covered.offset += length;
        }
        Ok(())
    }

    /// The transaction is behind the barrier at this position.
    pub(super) fn insert(&mut self, id: Uuid, place: FileOffset) -> io::Result<()> {
        if self.count * 8 >= self.capacity * 5 {
            self.grow()?;
        }
        if self.put(id, place)? {
            self.count += 1;
        }
        self.since_checkpoint += 1;
        Ok(())
    }

    /// The table now holds everything before this position.
    pub(super) fn cover(&mut self, place: FileOffset, file: &dyn Fn(u32) -> PathBuf) -> io::Result<()> {
        self.covered = place;
        self.lengths = self.lengths.through(place.ordinal, file);
        if self.since_checkpoint >= CHECKPOINT { self.checkpoint() } else { Ok(()) }
    }

    /// Syncs the table, and only then records in the header how far it reaches.
    fn checkpoint(&mut self) -> io::Result<()> {
        self.table.sync_data()?;
        let mut header = [0; HEADER];
        header[..8].copy_from_slice(MAGIC);
        header[8..16].copy_from_slice(&self.capacity.to_le_bytes());
        header[16..20].copy_from_slice(&self.covered.ordinal.to_le_bytes());
        header[20..28].copy_from_slice(&self.covered.offset.to_le_bytes());
        header[28..32].copy_from_slice(&self.lengths.before.to_le_bytes());
        header[32..36].copy_from_slice(&self.lengths.sum.to_le_bytes());
        let sum = crc32c::crc32c(&header[..HEADER - 4]);
        header[HEADER - 4..].copy_from_slice(&sum.to_le_bytes());
        self.table.write_all_at(&header, 0)?;
        self.table.sync_data()?;
        self.since_checkpoint = 0;
        Ok(())
    }

    /// Replaces this table by one of twice the size.
    fn grow(&mut self) -> io::Result<()> {
        let mut larger = Self::create(self.path.with_extension("ids-new"), self.capacity * 2, self.covered)?;
        let mut page = [0; PAGE as usize];
        for number in 0..self.capacity / SLOTS_A_PAGE {
            self.table.read_exact_at(&mut page, PAGE + number * PAGE)?;
            for slot in page.chunks_exact(SLOT as usize).filter(|slot| slot[20] == 1) {
                let (id, place) = read_slot(slot);
                larger.put(id, place)?;
            }
        }
        larger.lengths = self.lengths;
        larger.checkpoint()?;
        pgw_durable::rename(&larger.path, &self.path)?;
        larger.path.clone_from(&self.path);
        larger.count = self.count;
        *self = larger;
        Ok(())
    }

    /// `false`: this very entry was already there.
    fn put(&mut self, id: Uuid, place: FileOffset) -> io::Result<bool> {
        let mut taken = false;
        let free = self.probe(id, |_, found| {
            taken = found == place;
            taken
        })?;
        if taken {
            return Ok(false);
        }
        let mut slot = [0; SLOT as usize];
        slot[..16].copy_from_slice(id.as_bytes());
        slot[16..20].copy_from_slice(&place.ordinal.to_le_bytes());
        slot[20] = 1;
        slot[24..].copy_from_slice(&place.offset.to_le_bytes());
        self.table.write_all_at(&slot, PAGE + free * SLOT)?;
        Ok(true)
    }

    /// What is stored under this id, as compared with this content; read from the lane's files. What cannot be read there is
    /// another content: then the one that has come is stored.
    pub(super) fn content(
        &self,
        id: Uuid,
        digest: Digest,
        file: &dyn Fn(u32) -> PathBuf,
    ) -> io::Result<Content> {
        let mut failure = None;
        let mut content = Content::Unknown;
        self.probe(id, |_, place| {
            match content_at(&file(place.ordinal), place.offset, id, digest) {
                Ok(Content::Unknown) => {}
                Ok(found) => content = found,
                Err(error) => failure = Some(error),
            }
            content == Content::Same || failure.is_some()
        })?;
        failure.map_or(Ok(content), Err)
    }

    /// Passes the entries of `id` to `enough` until it returns true; returns the slot where it stopped, or the first
    /// free one.
    fn probe(&self, id: Uuid, mut enough: impl FnMut(u64, FileOffset) -> bool) -> io::Result<u64> {
        let mut page = [0; PAGE as usize];
        let mut loaded = None;
        let mut slot = hash(id) & (self.capacity - 1);
        loop {
            let number = slot / SLOTS_A_PAGE;
            if loaded != Some(number) {
                self.table.read_exact_at(&mut page, PAGE + number * PAGE)?;
                loaded = Some(number);
            }
            let at = usize::try_from(slot % SLOTS_A_PAGE * SLOT).unwrap_or_default();
            let bytes = &page[at..at + SLOT as usize];
            if bytes[20] != 1 {
                return Ok(slot);
            }
            let (found, place) = read_slot(bytes);
            if found == id && enough(slot, place) {
                return Ok(slot);
            }
            slot = (slot + 1) & (self.capacity - 1);
        }
    }
}

fn read_slot(slot: &[u8]) -> (Uuid, FileOffset) {
    let id = Uuid::from_bytes(std::array::from_fn(|i| slot[i]));
    let ordinal = u32::from_le_bytes(std::array::from_fn(|i| slot[16 + i]));
    (id, FileOffset { ordinal, offset: u64::from_le_bytes(std::array::from_fn(|i| slot[24 + i])) })
}

/// Spreads ids whose low bits are random (UUIDv7), and also ids that are counted.
fn hash(id: Uuid) -> u64 {
    let (high, low) = id.as_u64_pair();
    let mixed = (low ^ high.rotate_left(32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed ^ (mixed >> 32)
}

fn id_of(text: &[u8]) -> Option<Uuid> {
    let id = text.strip_prefix(LINE_START).or_else(|| text.strip_prefix(line::ARCHIVED_START))?.get(..36)?;
    Uuid::try_parse_ascii(id).ok()
}

/// Compares the line at this place. `Unknown`: it has another id, or none.
fn content_at(path: &Path, offset: u64, id: Uuid, digest: Digest) -> io::Result<Content> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Content::Unknown),
        Err(error) => return Err(error),
    };
    file.seek(SeekFrom::Start(offset))?;
    let mut text = Vec::new();
    BufReader::with_capacity(64 * 1024, file).read_until(b'\n', &mut text)?;
    if id_of(&text) != Some(id) {
        return Ok(Content::Unknown);
    }
    Ok(match text.strip_suffix(b"\n").and_then(line::read) {
        Some(Line::Record(record)) if record.digest() == digest => Content::Same,
        Some(Line::Archived(archived)) if archived.digest == digest => Content::Same,
        _ => Content::Other,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    struct Lane {
        directory: tempfile::TempDir,
    }

    impl Lane {
        fn new() -> Self {
            Self { directory: tempfile::tempdir().unwrap() }
        }

        fn file(&self) -> impl Fn(u32) -> PathBuf + use<> {
            let directory = self.directory.path().to_owned();
            move |ordinal| directory.join(format!("{ordinal}"))
        }

        fn write(&self, ordinal: u32, ids: std::ops::Range<u128>) -> FileOffset {
            let path = self.file()(ordinal);
            let mut file = OpenOptions::new().create(true).append(true).open(&path).unwrap();
            for id in ids {
                writeln!(file, r#"{{"pgw":"group"}}"#).unwrap();
                writeln!(file, r#"{{"specversion":"1.0","id":"{}","source":"x"}}"#, Uuid::from_u128(id))
                    .unwrap();
            }
            FileOffset { ordinal, offset: fs::metadata(path).unwrap().len() }
        }

        fn open(&self, end: FileOffset) -> Ids {
            Ids::open(self.directory.path().join("ids"), &self.file(), end).unwrap()
        }

        fn has(&self, ids: &Ids, id: u128) -> bool {
            let content = ids.content(Uuid::from_u128(id), Digest([0; 32]), &self.file()).unwrap();
            // The lines here have no content.
            assert_ne!(content, Content::Same);
            content == Content::Other
        }
    }

    #[test]
    fn every_id_is_found_also_after_growing_and_after_a_restart() {
        let lane = Lane::new();
        lane.write(1, 0..50_000);
        let end = lane.write(2, 50_000..60_000);
        for _ in 0..2 {
            let ids = lane.open(end);
            assert!(ids.capacity > FIRST_CAPACITY);
            assert!((0..60_000).all(|id| lane.has(&ids, id)));
            assert!((60_000..61_000).all(|id| !lane.has(&ids, id)));
            assert_eq!(ids.count, 60_000);
        }
    }

    #[test]
    fn what_lies_beyond_the_barrier_or_the_checkpoint_is_judged_by_the_files() {
        let lane = Lane::new();
        let first = lane.write(1, 0..10);
        let second = lane.write(1, 10..20);
        // Only what is behind the barrier.
        let ids = lane.open(first);
        assert!(lane.has(&ids, 9));
        assert!(!lane.has(&ids, 10));
        drop(ids);
        // A header that covers less than the files: reading starts from there.
        let mut ids = lane.open(second);
        assert!(lane.has(&ids, 19));
        // Entries of lines that have gone do not count: a torn tail, or a restored copy.
        ids.insert(Uuid::from_u128(77), FileOffset { ordinal: 1, offset: second.offset }).unwrap();
        ids.insert(Uuid::from_u128(78), FileOffset { ordinal: 9, offset: 0 }).unwrap();
        assert!(!lane.has(&ids, 77));
        assert!(!lane.has(&ids, 78));
        // The same id at its true position, later.
        lane.write(1, 78..79);
        let place = FileOffset { ordinal: 1, offset: second.offset + 16 };
        ids.insert(Uuid::from_u128(78), place).unwrap();
        assert!(lane.has(&ids, 78));
    }

    #[test]
    fn an_index_that_is_damaged_or_ahead_of_its_lane_is_made_anew() {
        let lane = Lane::new();
        let first = lane.write(1, 0..10);
        let path = lane.directory.path().join("ids");
        drop(lane.open(first));
        let mut bytes = fs::read(&path).unwrap();
        bytes[20] ^= 1;
        fs::write(&path, &bytes).unwrap();
        assert!(lane.has(&lane.open(first), 3));
        // Restored from an older copy: the lane is shorter, other transactions follow.
        drop(lane.open(lane.write(1, 10..20)));
        let file = OpenOptions::new().write(true).open(lane.file()(1)).unwrap();
        file.set_len(first.offset).unwrap();
        let ids = lane.open(lane.write(1, 30..33));
        assert!(lane.has(&ids, 31));
        assert!(!lane.has(&ids, 15));
    }
}
