//! The duplicate index: has this sender given us this transaction before?
//!
//! A sequence of [`Table`]s, hash tables on the disk. Each new one is as large as all before it together;
//! one is removed when everything in it is forgotten. Memory does not grow with the backlog, a look-up costs about one
//! `pread` a table. It holds keyed hashes ([`crate::dedup::fingerprint`]).
//!
//! A hit is only a hint: the caller reads the named record and compares. So nothing here needs an fsync per
//! transaction: after a crash the caller inserts the store's records after [`DuplicateIndex::synced_through`]
//! again, and leftovers of later ones do no harm.
//!
//! Files: `{number}.table` and `state`, an [`Alternating`] file with magic `PGWX`, version 1. Its payload, numbers
//! big-endian: id of the key (8); number of tables (2), for each its number (8), buckets (8), slots used (8) and for
//! each lane in it (count 2) the lane (2) and its last position (8); then for each lane (count 2) the lane (2), the last
//! position that is synced (8) and the last that is forgotten (8).

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use pgw_core::transaction::Position;

use crate::alternating::{Alternating, SlotContent, Take};
use crate::dedup::bloom::BloomFilter;
use crate::dedup::fingerprint::{Fingerprinter, Fingerprints};
use crate::dedup::table::{DuplicateHint, Insertion, SLOTS, Table};
use crate::files;

const MAGIC: [u8; 4] = *b"PGWX";
const VERSION: u16 = 1;
/// Buckets of the first table: 65,536 transactions or so, 1.8 MiB when full.
const FIRST_BUCKETS: u64 = 1836;
/// Used slots in a hundred before the next table begins.
const LOAD_PERCENT: u64 = 85;
const LAST_POSITION: Position = (1 << 48) - 1;

/// The index of one store.
pub(crate) struct DuplicateIndex {
    directory: PathBuf,
    fingerprinter: Fingerprinter,
    state: Alternating,
    /// Oldest first; new slots go to the last one. Never empty.
    tables: Vec<OpenTable>,
    lanes: BTreeMap<u16, LaneState>,
    removable: Vec<PathBuf>,
    rebuilt: bool,
    bloom: BloomFilter,
    /// Whether the filter has every key of the tables.
    filtered: bool,
}

struct OpenTable {
    number: u64,
    buckets: u64,
    used: u64,
    last: BTreeMap<u16, Position>,
    slots: Table,
    dirty: bool,
    named: bool,
}

#[derive(Default, Clone, Copy)]
struct LaneState {
    synced: Position,
    inserted: Position,
    forgotten: Position,
    /// The first position that could not be inserted: `synced_through` must stay below it.
    missing: Option<Position>,
}

/// The slow part of a sync, to be run on any thread while the index is used.
pub(crate) struct Sync {
    directory: PathBuf,
    files: Vec<Arc<File>>,
    names_changed: bool,
    numbers: BTreeSet<u64>,
    through: BTreeMap<u16, Position>,
}

impl Sync {
    /// Waits until everything that was inserted before this was made is on the disk.
    pub(crate) fn run(&self) -> io::Result<()> {
        for file in &self.files {
            file.sync_data()?;
        }
        if self.names_changed { pgw_durable::sync_directory(&self.directory) } else { Ok(()) }
    }
}

/// The tables of the index at one moment.
pub(crate) struct Tables(Vec<Table>);

impl Tables {
    /// Reads every table into a new filter.
    pub(crate) fn bloom(&self) -> io::Result<BloomFilter> {
        let mut bloom = BloomFilter::new();
        for table in &self.0 {
            table.visit(|fingerprints| bloom.add(fingerprints))?;
        }
        Ok(bloom)
    }
}

impl DuplicateIndex {
    /// Opens or creates the index. One that is damaged or made with another key is recreated
    /// ([`DuplicateIndex::was_rebuilt`]); `synced_through` then makes the caller insert all records again.
    pub(crate) fn open(directory: &Path, key: &[u8; 32]) -> io::Result<Self> {
        files::create_directory(directory)?;
        let fingerprinter = Fingerprinter::new(key);
        let (state, found) = Alternating::open(&directory.join("state"), MAGIC, VERSION)?;
        let mut index = Self {
            directory: directory.to_owned(),
            fingerprinter,
            state,
            tables: Vec::new(),
            lanes: BTreeMap::new(),
            removable: Vec::new(),
            rebuilt: false,
            bloom: BloomFilter::new(),
            filtered: false,
        };
        match found {
            SlotContent::Nothing => {}
            SlotContent::Damaged => index.rebuilt = true,
            SlotContent::Payload(payload) => match index.decode(&payload)? {
                Some((tables, lanes)) => (index.tables, index.lanes) = (tables, lanes),
                None => index.rebuilt = true,
            },
        }
        index.remove_strangers()?;
        if index.tables.is_empty() {
            index.add_table(FIRST_BUCKETS)?;
        }
        Ok(index)
    }

    /// Whether it had to be recreated when it was opened.
    pub(crate) fn was_rebuilt(&self) -> bool {
        self.rebuilt
    }

    /// Makes fingerprints outside of this index, which saves its owner the hashing.
    pub(crate) fn fingerprinter(&self) -> Fingerprinter {
        self.fingerprinter.clone()
    }

    /// Where a transaction with these fingerprints may be stored: hints only.
    pub(crate) fn find_fingerprints(&self, fingerprints: Fingerprints) -> io::Result<Vec<DuplicateHint>> {
        let mut found = Vec::new();
        if self.filtered && !self.bloom.may_have(fingerprints) {
            return Ok(found);
        }
        for table in &self.tables {
            table.slots.find(fingerprints, &mut found)?;
        }
        // A torn slot may look like position 0.
        found.retain(|f| f.position > self.lanes.get(&f.lane).map_or(0, |lane| lane.forgotten));
        found.sort_by_key(|f| (!f.same_body, std::cmp::Reverse(f.position)));
        Ok(found)
    }

    /// The present tables, for making a filter on any thread: [`Tables::bloom`].
    pub(crate) fn tables(&self) -> Tables {
        Tables(self.tables.iter().map(|table| table.slots.clone()).collect())
    }

    /// Takes the filter of the earlier tables; slots inserted meanwhile are in ours. Look-ups cost less from now on.
    pub(crate) fn use_bloom(&mut self, bloom: &BloomFilter) {
        self.bloom.join(bloom);
        self.filtered = true;
    }

    /// Remembers a stored transaction by its fingerprints.
    pub(crate) fn insert_fingerprints(
        &mut self,
        lane: u16,
        position: Position,
        fingerprints: Fingerprints,
    ) -> io::Result<()> {
        self.bloom.add(fingerprints);
        let result = self.place(lane, position, fingerprints);
        let state = self.lanes.entry(lane).or_default();
        match result {
            Ok(()) => state.inserted = state.inserted.max(position),
            Err(_) => self.lacks(lane, position),
        }
        result
    }

    /// Notes that this position is not in the index: the next start makes its fingerprints again.
    pub(crate) fn lacks(&mut self, lane: u16, position: Position) {
        let state = self.lanes.entry(lane).or_default();
        state.missing = Some(state.missing.map_or(position, |first| first.min(position)));
    }

    /// The position of `lane` through which the index is complete even after a crash now; 0: nothing.
    pub(crate) fn synced_through(&self, lane: u16) -> Position {
        self.lanes.get(&lane).map_or(0, |state| state.synced)
    }

    /// The first part of a sync in three: this, [`Sync::run`] elsewhere, [`DuplicateIndex::end_sync`].
    pub(crate) fn begin_sync(&mut self) -> Sync {
        let dirty: Vec<_> = self.tables.iter_mut().filter(|t| t.dirty || !t.named).collect();
        let mut sync = Sync {
            directory: self.directory.clone(),
            files: Vec::with_capacity(dirty.len()),
            names_changed: false,
            numbers: BTreeSet::new(),
            through: BTreeMap::new(),
        };
        for table in dirty {
            table.dirty = false;
            sync.names_changed |= !table.named;
            sync.files.push(table.slots.file());
        }
        sync.numbers.extend(self.tables.iter().map(|t| t.number));
        for (lane, state) in &self.lanes {
            let whole = state.missing.map_or(Position::MAX, |first| first.saturating_sub(1));
            sync.through.insert(*lane, state.inserted.min(whole).max(state.synced));
        }
        sync
    }

    /// The last part: `result` is that of [`Sync::run`]. Writes the state and removes tables that are no longer needed.
    pub(crate) fn end_sync(&mut self, sync: Sync, result: io::Result<()>) -> io::Result<()> {
        let ended = result.and_then(|()| {
            let lanes = self.lanes.iter().map(|(lane, state)| {
                let synced = sync.through.get(lane).copied().unwrap_or(state.synced);
                (*lane, LaneState { synced, ..*state })
            });
            let lanes: BTreeMap<_, _> = lanes.collect();
            self.state.write(&self.encode(&sync.numbers, &lanes))?;
            self.lanes = lanes;
            Ok(())
        });
        for table in self.tables.iter_mut().filter(|t| sync.numbers.contains(&t.number)) {
            // The kernel may have dropped failed pages: slots inserted since the last good sync may be lost, so
            // `synced_through` stays below them.
            table.dirty |= ended.is_err();
            table.named |= ended.is_ok();
        }
        if let Err(error) = ended {
            for state in self.lanes.values_mut().filter(|s| s.inserted > s.synced) {
                state.missing =
                    Some(state.missing.map_or(state.synced + 1, |first| first.min(state.synced + 1)));
            }
            return Err(error);
        }
        self.removable.retain(|path| match std::fs::remove_file(path) {
            Err(error) => error.kind() != io::ErrorKind::NotFound,
            Ok(()) => false,
        });
        Ok(())
    }

    /// Forgets `lane`'s records up to `position`: nobody will look them up any more.
    pub(crate) fn forget_through(&mut self, lane: u16, position: Position) -> io::Result<()> {
        let state = self.lanes.entry(lane).or_default();
        state.forgotten = state.forgotten.max(position);
        let lanes = &self.lanes;
        let forgotten = |table: &OpenTable| {
            let mut last = table.last.iter();
            last.all(|(lane, last)| lanes.get(lane).is_some_and(|state| *last <= state.forgotten))
        };
        let current = self.tables.last().map_or(0, |t| t.number);
        let keep = |t: &OpenTable| !forgotten(t) || (t.number == current && t.buckets <= FIRST_BUCKETS);
        let removable: Vec<_> = self.tables.iter().filter(|t| !keep(t)).map(|t| t.number).collect();
        if removable.contains(&current) {
            self.add_table(FIRST_BUCKETS)?;
        }
        self.tables.retain(|table| !removable.contains(&table.number));
        let paths: Vec<_> = removable.into_iter().map(|number| self.path(number)).collect();
        self.removable.extend(paths);
        Ok(())
    }

    fn place(&mut self, lane: u16, position: Position, fingerprints: Fingerprints) -> io::Result<()> {
        if position == 0 || position > LAST_POSITION {
            return Err(io::Error::other("the index cannot name this position"));
        }
        for attempt in 0..2 {
            if attempt > 0 {
                let buckets = self.tables.iter().map(|t| t.buckets).sum();
                self.add_table(buckets)?;
            }
            let Some(table) = self.tables.last_mut() else { continue };
            let room = table.buckets * SLOTS as u64 * LOAD_PERCENT / 100;
            if table.used >= room || table.slots.insert(lane, position, fingerprints)? == Insertion::Full {
                continue;
            }
            table.dirty = true;
            table.used += 1;
            let last = table.last.entry(lane).or_default();
            *last = position.max(*last);
            return Ok(());
        }
        Err(io::Error::other("a new table has no place"))
    }

    fn add_table(&mut self, buckets: u64) -> io::Result<()> {
        let number = self.tables.last().map_or(1, |t| t.number + 1);
        let slots = Table::create(&self.path(number), buckets)?;
        let last = BTreeMap::new();
        self.tables.push(OpenTable { number, buckets, used: 0, last, slots, dirty: false, named: false });
        Ok(())
    }

    fn path(&self, number: u64) -> PathBuf {
        self.directory.join(format!("{number}.table"))
    }

    /// Removes tables that the state does not name: the process crashed before the sync that would have named them.
    fn remove_strangers(&self) -> io::Result<()> {
        for entry in std::fs::read_dir(&self.directory)? {
            let path = entry?.path();
            let known = self.tables.iter().any(|t| self.path(t.number) == path);
            if !known && path.extension().is_some_and(|e| e == "table") {
                std::fs::remove_file(&path)?;
            }
        }
        Ok(())
    }

    fn encode(&self, numbers: &BTreeSet<u64>, lanes: &BTreeMap<u16, LaneState>) -> Vec<u8> {
        let mut payload = self.fingerprinter.id().to_vec();
        let tables: Vec<_> = self.tables.iter().filter(|t| numbers.contains(&t.number)).collect();
        payload.extend(count(tables.len()));
        for table in tables {
            payload.extend(table.number.to_be_bytes());
            payload.extend(table.buckets.to_be_bytes());
            payload.extend(table.used.to_be_bytes());
            payload.extend(count(table.last.len()));
            for (lane, last) in &table.last {
                payload.extend(lane.to_be_bytes());
                payload.extend(last.to_be_bytes());
            }
        }
        payload.extend(count(lanes.len()));
        for (lane, state) in lanes {
            payload.extend(lane.to_be_bytes());
            payload.extend(state.synced.to_be_bytes());
            payload.extend(state.forgotten.to_be_bytes());
        }
        payload
    }

    /// `None`: the state does not fit this key, or a table does not match it.
    fn decode(&self, payload: &[u8]) -> io::Result<Option<Opened>> {
        let Some((tables, lanes)) = parse(payload, self.fingerprinter.id()) else { return Ok(None) };
        let mut opened = Vec::with_capacity(tables.len());
        for (number, buckets, used, last) in tables {
            let Some(slots) = Table::open(&self.path(number), buckets)? else { return Ok(None) };
            opened.push(OpenTable { number, buckets, used, last, slots, dirty: false, named: true });
        }
        Ok(Some((opened, lanes)))
    }
}

type Opened = (Vec<OpenTable>, BTreeMap<u16, LaneState>);
type TableState = (u64, u64, u64, BTreeMap<u16, Position>);

fn parse(payload: &[u8], key_id: [u8; 8]) -> Option<(Vec<TableState>, BTreeMap<u16, LaneState>)> {
    let mut rest = Take(payload);
    if rest.array()? != key_id {
        return None;
    }
    let mut tables = Vec::new();
    for _ in 0..rest.u16()? {
        let (number, buckets, used) = (rest.u64()?, rest.u64()?, rest.u64()?);
        let mut last = BTreeMap::new();
        for _ in 0..rest.u16()? {
            last.insert(rest.u16()?, rest.u64()?);
        }
        tables.push((number, buckets, used, last));
    }
    let mut lanes = BTreeMap::new();
    for _ in 0..rest.u16()? {
        let (lane, synced, forgotten) = (rest.u16()?, rest.u64()?, rest.u64()?);
        lanes.insert(lane, LaneState { synced, inserted: synced, forgotten, missing: None });
    }
    rest.0.is_empty().then_some((tables, lanes))
}

fn count(items: usize) -> [u8; 2] {
    u16::try_from(items).unwrap_or(u16::MAX).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In one step, where the store takes several.
    impl DuplicateIndex {
        fn find(&self, source: &str, key: &str, body: &[u8]) -> io::Result<Vec<DuplicateHint>> {
            self.find_fingerprints(self.fingerprinter.fingerprints(source, key, body))
        }

        fn load_bloom(&mut self) {
            let bloom = self.tables().bloom().unwrap();
            self.use_bloom(&bloom);
        }

        fn insert(
            &mut self,
            lane: u16,
            position: Position,
            source: &str,
            key: &str,
            body: &[u8],
        ) -> io::Result<()> {
            self.insert_fingerprints(lane, position, self.fingerprinter.fingerprints(source, key, body))
        }

        fn sync(&mut self) -> io::Result<()> {
            let sync = self.begin_sync();
            let result = sync.run();
            self.end_sync(sync, result)
        }
    }

    const KEY: [u8; 32] = [5; 32];

    fn fill(index: &mut DuplicateIndex, positions: std::ops::RangeInclusive<u64>) {
        for n in positions {
            index.insert(0, n, "urn:s", &format!("key {n}"), &n.to_be_bytes()).unwrap();
        }
    }

    fn find(index: &DuplicateIndex, n: u64) -> Vec<DuplicateHint> {
        index.find("urn:s", &format!("key {n}"), &n.to_be_bytes()).unwrap()
    }

    fn hit(position: u64) -> Vec<DuplicateHint> {
        vec![DuplicateHint { lane: 0, position, same_body: true }]
    }

    fn bytes_on_disk(directory: &Path) -> u64 {
        use std::os::unix::fs::MetadataExt;
        let entries = std::fs::read_dir(directory).unwrap();
        entries.map(|entry| entry.unwrap().metadata().unwrap().blocks() * 512).sum()
    }

    #[test]
    fn what_was_inserted_is_found_over_many_tables_and_after_opening_again() {
        let directory = tempfile::tempdir().unwrap();
        let mut index = DuplicateIndex::open(directory.path(), &KEY).unwrap();
        fill(&mut index, 1..=300_000);
        assert!(index.tables.len() > 2);
        index.sync().unwrap();
        let bytes = bytes_on_disk(directory.path());
        assert!(bytes / 300_000 < 60, "{bytes}");
        let mut again = DuplicateIndex::open(directory.path(), &KEY).unwrap();
        assert!(!again.was_rebuilt());
        assert_eq!(again.synced_through(0), 300_000);
        let check = |index: &DuplicateIndex, last: u64| {
            assert!((1..=last).step_by(7).all(|n| find(index, n) == hit(n)));
            assert!((last + 1..310_000).all(|n| find(index, n).is_empty()));
        };
        check(&again, 300_000);
        index.load_bloom();
        check(&index, 300_000);
        // Records that come while the filter is being made are found too.
        let tables = again.tables();
        fill(&mut again, 300_001..=300_500);
        check(&again, 300_500);
        again.use_bloom(&tables.bloom().unwrap());
        check(&again, 300_500);
    }

    #[test]
    fn the_same_key_with_another_body_is_told_apart() {
        let directory = tempfile::tempdir().unwrap();
        let mut index = DuplicateIndex::open(directory.path(), &KEY).unwrap();
        index.insert(2, 10, "urn:s", "1", b"one").unwrap();
        index.insert(3, 11, "urn:s", "1", b"two").unwrap();
        index.insert(3, 12, "urn:s", "1", b"two").unwrap();
        let found = index.find("urn:s", "1", b"two").unwrap();
        let expected = [(3, 12, true), (3, 11, true), (2, 10, false)];
        assert_eq!(
            found,
            expected.map(|(lane, position, same_body)| DuplicateHint { lane, position, same_body })
        );
        assert!(index.find("urn:other", "1", b"two").unwrap().is_empty());
        index.insert(2, 13, "urn:s", "", b"no key").unwrap();
        assert_eq!(index.find("urn:s", "", b"no key").unwrap().len(), 1);
        assert!(index.find("urn:s", "", b"no keys").unwrap().is_empty());
    }

    /// A power cut may leave, of each 512 bytes written since the last sync, the old or the new.
    #[test]
    fn after_a_torn_write_the_records_after_synced_through_complete_it_again() {
        use std::collections::hash_map::DefaultHasher;
        use std::hash::{Hash, Hasher};
        for round in 0..6u64 {
            let directory = tempfile::tempdir().unwrap();
            let mut index = DuplicateIndex::open(directory.path(), &KEY).unwrap();
            fill(&mut index, 1..=64_000);
            index.sync().unwrap();
            let path = directory.path().join("1.table");
            let before = std::fs::read(&path).unwrap();
            fill(&mut index, 64_001..=80_000); // begins the second table
            assert_eq!(index.tables.len(), 2);
            drop(index);
            let mut torn = std::fs::read(&path).unwrap();
            for (at, piece) in before.chunks(512).enumerate() {
                let mut hash = DefaultHasher::new();
                (round, at).hash(&mut hash);
                if hash.finish().is_multiple_of(2) {
                    torn[at * 512..][..512].copy_from_slice(piece);
                }
            }
            std::fs::write(&path, torn).unwrap();
            let mut again = DuplicateIndex::open(directory.path(), &KEY).unwrap();
            assert!(!again.was_rebuilt());
            let from = again.synced_through(0) + 1;
            assert_eq!(from, 64_001);
            assert!((1..from).all(|n| find(&again, n) == hit(n)), "synced slots are found");
            fill(&mut again, from..=90_000);
            assert!((1..=90_000).all(|n| find(&again, n) == hit(n)));
        }
    }

    #[test]
    fn what_is_forgotten_is_not_found_and_its_disk_comes_back() {
        let directory = tempfile::tempdir().unwrap();
        let mut index = DuplicateIndex::open(directory.path(), &KEY).unwrap();
        fill(&mut index, 1..=300_000);
        index.sync().unwrap();
        let full = bytes_on_disk(directory.path());
        index.forget_through(0, 150_000).unwrap();
        index.sync().unwrap();
        assert!(bytes_on_disk(directory.path()) < full * 8 / 10);
        assert!(find(&index, 150_000).is_empty());
        assert_eq!(find(&index, 150_001), hit(150_001));
        index.forget_through(0, 300_000).unwrap();
        fill(&mut index, 300_001..=300_010);
        index.sync().unwrap();
        assert!(bytes_on_disk(directory.path()) < 200_000);
        let again = DuplicateIndex::open(directory.path(), &KEY).unwrap();
        assert!(!again.was_rebuilt());
        assert!(find(&again, 299_999).is_empty());
        assert_eq!(find(&again, 300_001), hit(300_001));
    }

    #[test]
    fn a_table_that_another_lane_needs_stays() {
        let directory = tempfile::tempdir().unwrap();
        let mut index = DuplicateIndex::open(directory.path(), &KEY).unwrap();
        index.insert(1, 5, "urn:s", "lane 1", b"").unwrap();
        fill(&mut index, 1..=80_000);
        index.forget_through(0, 80_000).unwrap();
        assert_eq!(index.find("urn:s", "lane 1", b"").unwrap().len(), 1);
        index.forget_through(1, 5).unwrap();
        assert_eq!(index.tables.len(), 1);
    }

    #[test]
    fn after_damage_or_with_another_key_it_is_recreated() {
        let directory = tempfile::tempdir().unwrap();
        let mut index = DuplicateIndex::open(directory.path(), &KEY).unwrap();
        fill(&mut index, 1..=10);
        index.sync().unwrap();
        drop(index);
        for damage in ["state", "1.table"] {
            std::fs::write(directory.path().join(damage), b"?").unwrap();
            let mut index = DuplicateIndex::open(directory.path(), &KEY).unwrap();
            assert!(index.was_rebuilt(), "{damage}");
            assert_eq!(index.synced_through(0), 0);
            assert!(find(&index, 1).is_empty());
            fill(&mut index, 1..=10);
            index.sync().unwrap();
        }
        let index = DuplicateIndex::open(directory.path(), &[6; 32]).unwrap();
        assert!(index.was_rebuilt());
        assert_eq!(index.synced_through(0), 0);
    }

    #[test]
    fn a_record_that_could_not_be_inserted_is_never_claimed() {
        let directory = tempfile::tempdir().unwrap();
        let mut index = DuplicateIndex::open(directory.path(), &KEY).unwrap();
        fill(&mut index, 1..=10);
        assert!(index.insert(0, LAST_POSITION + 1, "", "", b"").is_err());
        index.lanes.get_mut(&0).unwrap().missing = Some(11);
        fill(&mut index, 12..=20);
        index.sync().unwrap();
        assert_eq!(index.synced_through(0), 10);
        let again = DuplicateIndex::open(directory.path(), &KEY).unwrap();
        assert_eq!(again.synced_through(0), 10);
    }

    #[test]
    fn a_sync_under_way_claims_only_what_it_began_with() {
        let directory = tempfile::tempdir().unwrap();
        let mut index = DuplicateIndex::open(directory.path(), &KEY).unwrap();
        fill(&mut index, 1..=10);
        let sync = index.begin_sync();
        fill(&mut index, 11..=80_000); // another table begins meanwhile
        let result = sync.run();
        index.end_sync(sync, result).unwrap();
        assert_eq!(index.synced_through(0), 10);
        assert_eq!(DuplicateIndex::open(directory.path(), &KEY).unwrap().synced_through(0), 10);
    }

    #[test]
    fn after_a_failed_sync_nothing_since_the_last_good_one_is_ever_claimed() {
        let directory = tempfile::tempdir().unwrap();
        let mut index = DuplicateIndex::open(directory.path(), &KEY).unwrap();
        fill(&mut index, 1..=10);
        index.sync().unwrap();
        fill(&mut index, 11..=20);
        let sync = index.begin_sync();
        assert!(index.end_sync(sync, Err(io::Error::other("the disk is gone"))).is_err());
        fill(&mut index, 21..=30);
        index.sync().unwrap();
        assert_eq!(index.synced_through(0), 10);
    }

    #[test]
    fn golden_state() {
        let directory = tempfile::tempdir().unwrap();
        let mut index = DuplicateIndex::open(directory.path(), &KEY).unwrap();
        index.insert(2, 7, "urn:s", "k", b"b").unwrap();
        index.forget_through(2, 3).unwrap();
        index.lanes.get_mut(&2).unwrap().synced = 7;
        let payload = index.encode(&BTreeSet::from([1]), &index.lanes);
        let mut expected = index.fingerprinter.id().to_vec();
        expected.extend([0, 1]); // one table: number 1, 1,836 buckets, one slot used, one lane in it
        expected.extend([0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0x07, 0x2c, 0, 0, 0, 0, 0, 0, 0, 1]);
        expected.extend([0, 1, 0, 2, 0, 0, 0, 0, 0, 0, 0, 7]);
        expected.extend([0, 1, 0, 2, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 3]);
        assert_eq!(payload, expected);
        assert!(parse(&payload, index.fingerprinter.id()).is_some());
        assert!((0..payload.len()).all(|cut| parse(&payload[..cut], index.fingerprinter.id()).is_none()));
    }
}
