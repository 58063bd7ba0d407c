//! Finds a segment's missing records elsewhere: set aside, in quarantine, in another segment, in places that an operator
//! names.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use pgw_core::transaction::Position;

use crate::crypt::keyring::Keyring;
use crate::guard::carve::{CarvedRecord, Scan, files_below};
use crate::guard::record::{self, Header};
use crate::guard::segment::DATABASE_FILE;
use crate::offline::error::RepairError;
use crate::offline::inspect::Opener;
use crate::offline::lane_plan::LanePlan;
use crate::offline::plan::FoundRecord;
use crate::quarantine::{INCOMPLETE, Quarantine, QuarantineEntry};

/// All records found outside their segment. Pieces of one record in several files are put together.
pub(super) struct Sources {
    scan: Scan,
    /// The file of each source of the scan.
    files: BTreeMap<usize, PathBuf>,
    /// For each lane, in its order.
    found: Vec<BTreeMap<Position, Vec<FoundRecord>>>,
    /// Files that cannot be opened.
    unreadable: Vec<PathBuf>,
}

impl Sources {
    /// Searches for the missing records of these lanes; if none is missing, nothing is read.
    pub(super) fn search(
        store: &Path,
        keys: &Keyring,
        from: &[PathBuf],
        opener: &mut Opener<'_>,
        lanes: &[LanePlan],
    ) -> Result<Self, RepairError> {
        let wanted: BTreeSet<Position> = lanes.iter().flat_map(LanePlan::wanting).collect();
        let mut sources = Self {
            scan: Scan::default(),
            files: BTreeMap::new(),
            found: lanes.iter().map(|_| BTreeMap::new()).collect(),
            unreadable: Vec::new(),
        };
        if !wanted.is_empty() {
            sources.read(store, keys, from, &|position| wanted.contains(&position))?;
        }
        let names: Vec<(Position, u32)> = sources.scan.names().collect();
        for name in names {
            let Some(carved) = sources.scan.record(name) else { continue };
            let Some((header, transaction, opened)) = opener.open(&carved) else { continue };
            let lane = lanes.iter().position(|lane| lane.inspection.is_sealed_here(&header, &transaction));
            if let Some(found) = lane.and_then(|lane| sources.found.get_mut(lane)) {
                found.entry(name.0).or_default().push(opened);
            }
        }
        Ok(sources)
    }

    fn read(
        &mut self,
        store: &Path,
        keys: &Keyring,
        from: &[PathBuf],
        wanted: &dyn Fn(Position) -> bool,
    ) -> Result<(), RepairError> {
        for file in searched(store, from)? {
            match self.scan.add_file(&file, wanted) {
                Ok(Some(source)) => drop(self.files.insert(source, file)),
                Ok(None) => {}
                // On a failing disk the other files matter all the more.
                Err(_) => self.unreadable.push(file),
            }
        }
        let quarantines = std::iter::once(store).chain(from.iter().map(PathBuf::as_path));
        for place in quarantines.flat_map(|place| [place.join("quarantine"), place.join("outbox/quarantine")])
        {
            if !place.is_dir() {
                continue;
            }
            let mut each = |file: PathBuf, entry: &QuarantineEntry, bytes: Vec<u8>| {
                // Quarantine has a rival as a record, and an incomplete record as its chunks.
                let chunks = match Header::parse(&bytes) {
                    Ok((header, _)) if entry.reason != INCOMPLETE => {
                        record::chunks(header.position, &bytes).flatten().collect()
                    }
                    _ => bytes,
                };
                if let Some(source) = self.scan.add_bytes(chunks, wanted) {
                    self.files.insert(source, file);
                }
            };
            for key in keys.iter() {
                Quarantine::own_records(&place, &key.derived("quarantine"), &mut each)
                    .map_err(RepairError::cannot("read", &place))?;
            }
        }
        Ok(())
    }

    /// The records found for a lane.
    pub(super) fn found(&self, lane: usize) -> &BTreeMap<Position, Vec<FoundRecord>> {
        static NONE: BTreeMap<Position, Vec<FoundRecord>> = BTreeMap::new();
        self.found.get(lane).unwrap_or(&NONE)
    }

    /// A record that was found.
    pub(super) fn record(&self, position: Position, tag: u32) -> Option<CarvedRecord> {
        self.scan.record((position, tag))
    }

    /// Where a record was found; the segment's directory, where it is one.
    pub(super) fn place_of(&self, position: Position, tag: u32) -> Option<String> {
        let file = self.file_of(position, tag)?;
        let place = if file.file_name().is_some_and(|name| name == DATABASE_FILE) {
            file.parent().unwrap_or(file)
        } else {
            file
        };
        Some(place.display().to_string())
    }

    fn file_of(&self, position: Position, tag: u32) -> Option<&Path> {
        self.files.get(&self.scan.source_of((position, tag))?).map(PathBuf::as_path)
    }

    /// The result from a place that the operator named: records, fitting or not, and the files that cannot be opened.
    pub(super) fn given_by(&self, place: &Path) -> (u64, Vec<&Path>) {
        let mut records = 0;
        for (position, found) in self.found.iter().flatten() {
            let here = |found: &&FoundRecord| {
                self.file_of(*position, found.tag).is_some_and(|file| file.starts_with(place))
            };
            records += found.iter().filter(here).count() as u64;
        }
        let unreadable = self.unreadable.iter().filter(|file| file.starts_with(place));
        (records, unreadable.map(PathBuf::as_path).collect())
    }
}

/// The files to search for missing records: those of the store, then those that the operator named.
fn searched(store: &Path, from: &[PathBuf]) -> Result<Vec<PathBuf>, RepairError> {
    let own = ["segments", "aside", "trash"].map(|name| store.join(name));
    let mut found = Vec::new();
    for place in own.iter().filter(|place| place.is_dir()).chain(from) {
        if place.is_dir() {
            found.extend(files_below(place).map_err(RepairError::cannot("list", place))?);
        } else {
            found.push(place.clone());
        }
    }
    let mut known = std::collections::BTreeSet::new();
    found.retain(|file| known.insert(file.clone()));
    Ok(found)
}
