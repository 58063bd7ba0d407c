//! One file of the duplicate index: a hash table of fixed size that is read and written in place.
//!
//! A sequence of buckets of [`BUCKET_BYTES`], each of [`SLOTS`] slots of 24 bytes and 16 unused ones. A slot, numbers
//! big-endian: key fingerprint (8, 0: empty), body fingerprint (8), lane (2) and position (6). Slots of a bucket are
//! filled from the front and never emptied. A full bucket continues in the next one.
//!
//! A sender that uses one key for everything would fill bucket after bucket. So from the ninth slot with one key
//! fingerprint in its bucket on, a slot goes to the bucket that key and body name together.
//!
//! Nothing is cached in this process: buckets are read with `pread` from the system's page cache.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::Arc;

use pgw_core::transaction::Position;

use crate::dedup::fingerprint::Fingerprints;

pub(super) const BUCKET_BYTES: usize = 1024;
pub(super) const SLOT_BYTES: usize = 24;
/// Slots of a bucket.
pub(super) const SLOTS: usize = 42;
/// Slots with one key fingerprint in its own bucket before further ones go to another.
const SAME_KEY: usize = 8;
/// Buckets that are probed before the table counts as full.
const PROBES: u64 = 16;
const POSITION_BITS: u32 = 48;
/// Buckets that are read at once when all are visited.
const VISIT_BUCKETS: usize = 256;

/// A record that may be the same transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DuplicateHint {
    /// Number of its lane.
    pub(crate) lane: u16,
    /// Its position there.
    pub(crate) position: Position,
    /// Whether the body seems to be the same too; if not, the sender has used its key again.
    pub(crate) same_body: bool,
}

/// An open table; clones share its file.
#[derive(Debug, Clone)]
pub(super) struct Table {
    file: Arc<File>,
    buckets: u64,
}

/// Whether a slot found room.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Insertion {
    /// The slot is in the table now, or was already.
    Taken,
    /// No room: the table is full.
    Full,
}

struct Bucket([u8; BUCKET_BYTES]);

#[derive(Clone, Copy)]
struct Slot {
    fingerprints: Fingerprints,
    place: u64,
}

impl Table {
    /// Makes an empty table, and replaces an existing file.
    pub(super) fn create(path: &Path, buckets: u64) -> io::Result<Self> {
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(true).mode(0o600).open(path)?;
        file.set_len(buckets * BUCKET_BYTES as u64)?;
        Ok(Self { file: Arc::new(file), buckets })
    }

    /// Opens an existing table; `None` if there is none or it has another size.
    pub(super) fn open(path: &Path, buckets: u64) -> io::Result<Option<Self>> {
        let file = match OpenOptions::new().read(true).write(true).open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let fits = buckets > 0 && Some(file.metadata()?.len()) == buckets.checked_mul(BUCKET_BYTES as u64);
        Ok(fits.then(|| Self { file: Arc::new(file), buckets }))
    }

    /// Its file, for another thread to sync.
    pub(super) fn file(&self) -> Arc<File> {
        Arc::clone(&self.file)
    }

    /// Adds every slot with this key on the look-up's path to `found`.
    pub(super) fn find(&self, fingerprints: Fingerprints, found: &mut Vec<DuplicateHint>) -> io::Result<()> {
        let end = self.walk(self.home(fingerprints), fingerprints.key, |slot| {
            if slot.fingerprints.key == fingerprints.key {
                found.push(slot.found(fingerprints));
            }
            false
        })?;
        if end.crowded {
            self.walk(self.away(fingerprints), fingerprints.key, |slot| {
                if slot.fingerprints == fingerprints && !found.contains(&slot.found(fingerprints)) {
                    found.push(slot.found(fingerprints));
                }
                false
            })?;
        }
        Ok(())
    }

    /// Puts a slot into the table, once.
    pub(super) fn insert(
        &self,
        lane: u16,
        position: u64,
        fingerprints: Fingerprints,
    ) -> io::Result<Insertion> {
        let new = Slot { fingerprints, place: u64::from(lane) << POSITION_BITS | position };
        let mut there = false;
        let mut end = self.walk(self.home(fingerprints), fingerprints.key, |slot| {
            there |= slot.same(new);
            there
        })?;
        if !there && end.crowded {
            end = self.walk(self.away(fingerprints), fingerprints.key, |slot| {
                there |= slot.same(new);
                there
            })?;
        }
        if there {
            return Ok(Insertion::Taken);
        }
        let Some(offset) = end.free else { return Ok(Insertion::Full) };
        self.file.write_all_at(&new.encode(), offset)?;
        Ok(Insertion::Taken)
    }

    /// Shows the fingerprints of every slot, from the first bucket to the last.
    pub(super) fn visit(&self, mut visitor: impl FnMut(Fingerprints)) -> io::Result<()> {
        let mut many = vec![0; VISIT_BUCKETS * BUCKET_BYTES];
        let bytes = self.buckets * BUCKET_BYTES as u64;
        let mut at = 0;
        while at < bytes {
            let length = many.len().min(usize::try_from(bytes - at).unwrap_or(usize::MAX));
            self.file.read_exact_at(&mut many[..length], at)?;
            for bucket in many[..length].as_chunks::<BUCKET_BYTES>().0 {
                Bucket(*bucket)
                    .slots()
                    .filter(|slot| slot.fingerprints.key != 0)
                    .for_each(|slot| visitor(slot.fingerprints));
            }
            at += length as u64;
        }
        Ok(())
    }

    fn home(&self, fingerprints: Fingerprints) -> u64 {
        fingerprints.key % self.buckets
    }

    fn away(&self, fingerprints: Fingerprints) -> u64 {
        (fingerprints.key ^ fingerprints.body.rotate_left(32)) % self.buckets
    }

    /// Shows every slot from the bucket `start` on, to the first free one or until `enough`.
    fn walk(&self, start: u64, key: u64, mut enough: impl FnMut(Slot) -> bool) -> io::Result<WalkEnd> {
        let mut end = WalkEnd { free: None, crowded: false };
        let mut same_key = 0;
        for probe in 0..PROBES.min(self.buckets) {
            let at = (start + probe) % self.buckets * BUCKET_BYTES as u64;
            let mut bucket = Bucket([0; BUCKET_BYTES]);
            self.file.read_exact_at(&mut bucket.0, at)?;
            for (index, slot) in bucket.slots().enumerate() {
                if slot.fingerprints.key == 0 {
                    end.free = Some(at + (index * SLOT_BYTES) as u64);
                    return Ok(end);
                }
                same_key += usize::from(probe == 0 && slot.fingerprints.key == key);
                end.crowded = same_key >= SAME_KEY;
                if enough(slot) {
                    return Ok(end);
                }
            }
        }
        Ok(end)
    }
}

/// Where a walk ended.
struct WalkEnd {
    /// Offset of the free slot, if there was one within reach.
    free: Option<u64>,
    /// The first bucket has its most slots of this key: further ones are in another.
    crowded: bool,
}

impl Bucket {
    fn slots(&self) -> impl Iterator<Item = Slot> {
        let (slots, _) = self.0.as_chunks::<SLOT_BYTES>();
        slots.iter().take(SLOTS).map(Slot::decode)
    }
}

impl Slot {
    fn encode(self) -> [u8; SLOT_BYTES] {
        let mut bytes = [0; SLOT_BYTES];
        bytes[..8].copy_from_slice(&self.fingerprints.key.to_be_bytes());
        bytes[8..16].copy_from_slice(&self.fingerprints.body.to_be_bytes());
        bytes[16..].copy_from_slice(&self.place.to_be_bytes());
        bytes
    }

    fn decode(bytes: &[u8; SLOT_BYTES]) -> Self {
        let word = |at: usize| {
            let mut word = [0; 8];
            word.copy_from_slice(&bytes[at..at + 8]);
            u64::from_be_bytes(word)
        };
        Self { fingerprints: Fingerprints { key: word(0), body: word(8) }, place: word(16) }
    }

    fn same(self, other: Self) -> bool {
        self.fingerprints == other.fingerprints && self.place == other.place
    }

    fn found(self, asked: Fingerprints) -> DuplicateHint {
        DuplicateHint {
            lane: u16::try_from(self.place >> POSITION_BITS).unwrap_or_default(),
            position: self.place & ((1 << POSITION_BITS) - 1),
            same_body: self.fingerprints.body == asked.body,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fingerprints(key: u64, body: u64) -> Fingerprints {
        Fingerprints { key, body }
    }

    fn find(table: &Table, asked: Fingerprints) -> Vec<DuplicateHint> {
        let mut found = Vec::new();
        table.find(asked, &mut found).unwrap();
        found
    }

    fn table(buckets: u64) -> (tempfile::TempDir, Table) {
        let directory = tempfile::tempdir().unwrap();
        let table = Table::create(&directory.path().join("1"), buckets).unwrap();
        (directory, table)
    }

    #[test]
    fn a_full_bucket_goes_on_in_the_next() {
        let (_directory, table) = table(4);
        for n in 0..60 {
            assert_eq!(table.insert(1, n + 1, fingerprints(4 * n + 2, 9)).unwrap(), Insertion::Taken);
        }
        for n in 0..60 {
            let found = DuplicateHint { lane: 1, position: n + 1, same_body: true };
            assert_eq!(find(&table, fingerprints(4 * n + 2, 9)), [found]);
        }
    }

    #[test]
    fn a_full_table_says_so_and_forgets_nothing() {
        let (_directory, table) = table(2);
        let mut taken = 0;
        while table.insert(0, taken + 1, fingerprints(taken + 1, 0)).unwrap() == Insertion::Taken {
            taken += 1;
        }
        assert_eq!(taken, 2 * SLOTS as u64);
        assert!((1..=taken).all(|n| find(&table, fingerprints(n, 0)).len() == 1));
    }

    /// A sender with one key for everything must not fill the table early, and its repetitions must still be found.
    #[test]
    fn one_key_for_everything_spreads_over_the_table() {
        let (_directory, table) = table(64);
        for n in 1..=2000 {
            assert_eq!(
                table.insert(0, n, fingerprints(5, n.wrapping_mul(0x9e37_79b9_7f4a_7c15))).unwrap(),
                Insertion::Taken,
                "{n}"
            );
        }
        for n in 1..=2000u64 {
            let found = find(&table, fingerprints(5, n.wrapping_mul(0x9e37_79b9_7f4a_7c15)));
            assert_eq!(found.iter().filter(|f| f.same_body && f.position == n).count(), 1, "{n}");
        }
        let other = find(&table, fingerprints(5, 77));
        assert!(!other.is_empty() && other.iter().all(|f| !f.same_body), "the key is known, the body is not");
    }

    #[test]
    fn the_same_slot_twice_takes_one_place() {
        let (_directory, table) = table(1);
        for _ in 0..1000 {
            assert_eq!(table.insert(3, 4, fingerprints(1, 2)).unwrap(), Insertion::Taken);
        }
        assert_eq!(find(&table, fingerprints(1, 2)).len(), 1);
    }

    #[test]
    fn golden_slot() {
        let (directory, table) = table(2);
        let key = 0x0102_0304_0506_0709; // odd: the second bucket
        table.insert(0x0a0b, 0x0000_0c0d_0e0f_1011, fingerprints(key, 0x1213_1415_1617_1819)).unwrap();
        let bytes = std::fs::read(directory.path().join("1")).unwrap();
        assert_eq!(bytes.len(), 2048);
        assert_eq!(
            pgw_core::text::hex(&bytes[1024..1048]),
            "010203040506070912131415161718190a0b0c0d0e0f1011"
        );
        assert!(bytes[..1024].iter().chain(&bytes[1048..]).all(|b| *b == 0));
    }
}
