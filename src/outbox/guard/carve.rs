//! Carving of last resort: finds our own chunks in the bytes of files that sled cannot read any more.
//!
//! sled writes a value in one piece, uncompressed, anywhere in its log and possibly several times. Each chunk
//! names its record and has a checksum ([`parse_chunk`]), so a search for its magic finds every chunk
//! whose bytes are intact. The first pass remembers only where the chunks are, some 80 bytes for each;
//! the second puts the records together, one at a time. Sectors that the disk cannot read are skipped.
//!
//! The same position may come up with different content (a record that was never answered, then another one after a
//! power cut): both are returned, and the caller decides by the chain.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use pgw_core::transaction::Position;

use crate::guard::record::{Assembly, CHUNK_MAGIC, Header, VALUE_BYTES, parse_chunk};
use crate::guard::segment::{DATABASE_FILE, SegmentHeader, parse_header};

const WINDOW_BYTES: usize = 256 * 1024;
const SECTOR_BYTES: u64 = 4096;

/// A file, or bytes in memory.
trait Source {
    /// Fills `buffer` from `offset` on, up to the end of the source; returns how many bytes.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;
}

impl Source for File {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut filled = 0;
        while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match FileExt::read_at(self, rest, offset + filled as u64) {
                Ok(0) => break,
                Ok(read) => filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(filled)
    }
}

impl Source for Vec<u8> {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let start = usize::try_from(offset).map_err(io::Error::other)?.min(self.len());
        let found = self.get(start..).unwrap_or_default();
        let length = found.len().min(buffer.len());
        for (to, from) in buffer.iter_mut().zip(found) {
            *to = *from;
        }
        Ok(length)
    }
}

/// A record put together from its chunks. Its seal was not opened yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CarvedRecord {
    /// Its position in its lane.
    pub(crate) position: Position,
    /// Its bytes, header and all; length and checksum fit.
    pub(crate) record: Vec<u8>,
}

/// The result of a first pass.
#[derive(Default)]
pub(crate) struct Scan {
    sources: Vec<Box<dyn Source>>,
    records: BTreeMap<(Position, u32), Pieces>,
    unreadable_bytes: u64,
}

#[derive(Default)]
struct Pieces {
    count: u32,
    places: BTreeMap<u32, ChunkPlace>,
}

#[derive(Clone, Copy)]
struct ChunkPlace {
    source: usize,
    offset: u64,
    length: usize,
}

/// Searches every file below `directory`.
pub(crate) fn scan_directory(directory: &Path) -> io::Result<Scan> {
    scan_files(&files_below(directory)?)
}

/// Every file below `directory`, in the order of their names; links are not followed.
pub(crate) fn files_below(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut open = vec![directory.to_owned()];
    while let Some(directory) = open.pop() {
        for entry in std::fs::read_dir(directory)? {
            let entry = entry?;
            let kind = entry.file_type()?;
            if kind.is_dir() {
                open.push(entry.path());
            } else if kind.is_file() {
                files.push(entry.path());
            }
        }
    }
    files.sort();
    Ok(files)
}

/// Searches these files.
pub(crate) fn scan_files(files: &[PathBuf]) -> io::Result<Scan> {
    let mut scan = Scan::default();
    for file in files {
        scan.add_file(file, &|_| true)?;
    }
    Ok(scan)
}

impl Scan {
    /// Bytes that the disk could not read.
    pub(crate) fn unreadable_bytes(&self) -> u64 {
        self.unreadable_bytes
    }

    /// The whole records by position, rivals for one position one after the other. Records whose bytes cannot
    /// be read again or do not fit their header are left out.
    pub(crate) fn records(&self) -> impl Iterator<Item = CarvedRecord> + '_ {
        self.records.iter().filter_map(|(&(position, _), pieces)| self.assemble(position, pieces))
    }

    /// Positions of which only pieces were found.
    pub(crate) fn in_pieces(&self) -> Vec<Position> {
        let whole = |position: Position| {
            let mut rivals = self.records.range((position, 0)..=(position, u32::MAX));
            rivals.any(|(_, pieces)| pieces.is_whole())
        };
        let mut positions: Vec<_> = self.records.keys().map(|&(position, _)| position).collect();
        positions.dedup();
        positions.retain(|&position| !whole(position));
        positions
    }

    /// Searches one more file for records at wanted positions. Returns its number among the sources, or `None` if nothing
    /// was found; the file is closed then.
    ///
    /// # Errors
    /// It cannot be opened.
    pub(crate) fn add_file(
        &mut self,
        file: &Path,
        wanted: &dyn Fn(Position) -> bool,
    ) -> io::Result<Option<usize>> {
        let file = File::open(file)?;
        let length = file.metadata()?.len();
        Ok(self.add(Box::new(file), length, wanted))
    }

    /// The same for bytes that are in memory.
    pub(crate) fn add_bytes(&mut self, bytes: Vec<u8>, wanted: &dyn Fn(Position) -> bool) -> Option<usize> {
        let length = bytes.len() as u64;
        self.add(Box::new(bytes), length, wanted)
    }

    /// The name of each record, whole or in pieces: its position, and the CRC32C of its sealed bytes.
    pub(crate) fn names(&self) -> impl Iterator<Item = (Position, u32)> + '_ {
        self.records.keys().copied()
    }

    /// One record, if it is whole.
    pub(crate) fn record(&self, (position, tag): (Position, u32)) -> Option<CarvedRecord> {
        self.assemble(position, self.records.get(&(position, tag))?)
    }

    /// The source of a record's first piece.
    pub(crate) fn source_of(&self, name: (Position, u32)) -> Option<usize> {
        Some(self.records.get(&name)?.places.first_key_value()?.1.source)
    }

    fn add(
        &mut self,
        source: Box<dyn Source>,
        length: u64,
        wanted: &dyn Fn(Position) -> bool,
    ) -> Option<usize> {
        let number = self.sources.len();
        let mut used = false;
        // Room for one more chunk than is read, so that the window's end cuts none.
        let mut window = vec![0; WINDOW_BYTES + VALUE_BYTES];
        let mut start = 0;
        while start < length {
            let filled = self.fill(source.as_ref(), &mut window, start, length);
            let bytes = window.get(..filled).unwrap_or_default();
            let mut at = 0;
            while let Some(found) = next_magic(bytes, at).filter(|found| *found < WINDOW_BYTES) {
                let Some(chunk) = bytes.get(found..).and_then(parse_chunk) else {
                    at = found + 1;
                    continue;
                };
                at = found + chunk.length();
                if !wanted(chunk.position) {
                    continue;
                }
                let place =
                    ChunkPlace { source: number, offset: start + found as u64, length: chunk.length() };
                let pieces = self.records.entry((chunk.position, chunk.tag)).or_default();
                pieces.count = chunk.count;
                pieces.places.entry(chunk.index).or_insert_with(|| {
                    used = true;
                    place
                });
            }
            start += WINDOW_BYTES as u64;
        }
        used.then(|| {
            self.sources.push(source);
            number
        })
    }

    /// Fills the window, with zeros where the disk cannot be read.
    fn fill(&mut self, source: &dyn Source, window: &mut [u8], start: u64, length: u64) -> usize {
        if let Ok(filled) = source.read_at(window, start) {
            return filled;
        }
        let mut at = 0;
        for sector in window.chunks_mut(SECTOR_BYTES as usize) {
            if source.read_at(sector, start + at).is_err() {
                sector.fill(0);
                if at < WINDOW_BYTES as u64 {
                    self.unreadable_bytes += SECTOR_BYTES.min(length.saturating_sub(start + at));
                }
            }
            at += SECTOR_BYTES;
        }
        usize::try_from(length - start).unwrap_or(usize::MAX).min(window.len())
    }

    fn assemble(&self, position: Position, pieces: &Pieces) -> Option<CarvedRecord> {
        if !pieces.is_whole() {
            return None;
        }
        let mut assembly: Option<Assembly> = None;
        for place in pieces.places.values() {
            let mut bytes = vec![0; place.length];
            self.sources.get(place.source)?.read_at(&mut bytes, place.offset).ok()?;
            let chunk = parse_chunk(&bytes)?;
            match &mut assembly {
                None => assembly = Some(Assembly::begin(&chunk).ok()?),
                Some(assembly) => assembly.add(&chunk).ok()?,
            }
        }
        let record = assembly?.finish().ok()?;
        let (header, _) = Header::parse(&record).ok()?;
        (header.position == position).then_some(CarvedRecord { position, record })
    }
}

impl Pieces {
    fn is_whole(&self) -> bool {
        self.places.len() as u64 == u64::from(self.count)
    }
}

fn next_magic(bytes: &[u8], from: usize) -> Option<usize> {
    let mut at = from;
    loop {
        at += bytes.get(at..)?.iter().position(|byte| *byte == CHUNK_MAGIC[0])?;
        if bytes.get(at..)?.starts_with(&CHUNK_MAGIC) {
            return Some(at);
        }
        at += 1;
    }
}

/// Whether a segment was ever begun: it has a header or a whole record anywhere in its files. One that a crash left half
/// made has neither.
pub(crate) fn was_begun(directory: &Path) -> io::Result<bool> {
    Ok(header_in(directory).is_some() || scan_directory(directory)?.records().next().is_some())
}

/// The segment's header, as the damaged file has it.
pub(crate) fn header_in(directory: &Path) -> Option<SegmentHeader> {
    let mut file = File::open(directory.join(DATABASE_FILE)).ok()?;
    let mut window: Vec<u8> = Vec::new();
    loop {
        let overlap = window.len().min(VALUE_BYTES);
        window.drain(..window.len() - overlap);
        let read = (&mut file).take(1 << 20).read_to_end(&mut window).ok()?;
        let mut at = 0;
        while let Some(found) = window.get(at..)?.windows(4).position(|bytes| bytes == CHUNK_MAGIC) {
            at += found;
            let header = window.get(at..).and_then(parse_chunk).filter(|chunk| chunk.position == 0);
            if let Some(header) = header.and_then(|chunk| parse_header(chunk.part)) {
                return Some(header);
            }
            at += 1;
        }
        if read == 0 {
            return None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guard::record::chunks;
    use pgw_core::chain::ChainValue;
    use proptest::prelude::*;

    fn record(position: Position, length: usize, fill: u8) -> Vec<u8> {
        let sealed: Vec<u8> = (0..length).map(|n| fill ^ (n % 251) as u8).collect();
        let header = Header {
            key_id: [1; 8],
            lane: 1,
            position,
            sealed_length: u32::try_from(length).unwrap(),
            previous: ChainValue([2; 32]),
            chain: ChainValue([3; 32]),
            nonce: [4; 24],
            crc: crc32c::crc32c(&sealed),
        };
        [&header.encode()[..], &sealed].concat()
    }

    fn values(position: Position, length: usize, fill: u8) -> Vec<Vec<u8>> {
        chunks(position, &record(position, length, fill)).collect()
    }

    fn scan(bytes: &[u8]) -> Scan {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        scan_files(&[file.path().to_owned()]).unwrap()
    }

    fn positions(scan: &Scan) -> Vec<Position> {
        scan.records().map(|carved| carved.position).collect()
    }

    #[test]
    fn chunks_are_found_in_any_order_and_repeated_and_across_window_borders() {
        let mut bytes = vec![b'P'; WINDOW_BYTES - 2000];
        let one = values(1, 10_000, 1);
        for value in one.iter().rev().chain(&one[..2]).chain(&values(2, 0, 2)) {
            bytes.extend(value);
            bytes.extend(b"PGWPGWc garbage");
        }
        let scan = scan(&bytes);
        let found: Vec<_> = scan.records().collect();
        assert_eq!(
            found,
            [(1, 10_000, 1), (2, 0, 2)].map(|(position, length, fill)| CarvedRecord {
                position,
                record: record(position, length, fill)
            })
        );
        assert!(scan.in_pieces().is_empty());
    }

    #[test]
    fn rivals_are_both_given_and_never_mixed() {
        let (one, other) = (values(7, 9000, 1), values(7, 9000, 2));
        let bytes = [&one[0], &other[1], &one[2], &other[0], &one[1]].map(|v| v.clone()).concat();
        let part = scan(&bytes);
        assert_eq!(part.records().map(|s| s.record).collect::<Vec<_>>(), [record(7, 9000, 1)]);
        let whole = scan(&[&bytes[..], &other[2]].concat());
        assert_eq!(positions(&whole), [7, 7]);
        assert!(whole.in_pieces().is_empty());
    }

    #[test]
    fn a_record_in_pieces_is_named() {
        let value = values(9, 9000, 1);
        let scan = scan(&[&value[0][..], &value[2]].concat());
        assert!(positions(&scan).is_empty());
        assert_eq!(scan.in_pieces(), [9]);
    }

    struct Sick(Vec<u8>, u64);

    impl Source for Sick {
        fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
            let end = (offset + buffer.len() as u64).min(self.0.len() as u64);
            if (offset..end).contains(&self.1) {
                return Err(io::Error::other("a bad sector"));
            }
            let found = &self.0[offset as usize..end as usize];
            buffer[..found.len()].copy_from_slice(found);
            Ok(found.len())
        }
    }

    #[test]
    fn a_sector_that_cannot_be_read_costs_only_what_lies_in_it() {
        let bytes: Vec<u8> = (1..=200).flat_map(|n| values(n, 3000, 5).concat()).collect();
        let length = bytes.len() as u64;
        let mut scan = Scan::default();
        scan.add(Box::new(Sick(bytes, 300_000)), length, &|_| true);
        let found = positions(&scan);
        assert_eq!(scan.unreadable_bytes(), SECTOR_BYTES);
        assert!((197..200).contains(&found.len()), "{}", found.len());
    }

    /// A real database, damaged in many places.
    #[test]
    fn a_damaged_database_gives_back_all_but_what_was_hit() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("segment");
        let records = 3000;
        {
            let database = sled::Config::new().path(&path).flush_every_ms(None).open().unwrap();
            for position in 1..=records {
                for (index, value) in (0..).zip(values(position, 20 + (position as usize * 37) % 6000, 9)) {
                    database.insert(crate::guard::record::key(position, index), value).unwrap();
                }
                if position % 16 == 0 {
                    database.flush().unwrap();
                }
            }
            database.flush().unwrap();
        }
        let whole = scan_directory(&path).unwrap();
        assert_eq!(positions(&whole), (1..=records).collect::<Vec<_>>());
        let db = path.join("db");
        let mut bytes = std::fs::read(&db).unwrap();
        for hit in 0..40 {
            let at = (hit * 7_919_777) % (bytes.len() - 64);
            bytes[at..at + 64].fill(0xff);
        }
        bytes.truncate(bytes.len() - bytes.len() / 50);
        std::fs::write(&db, bytes).unwrap();
        let damaged = scan_directory(&path).unwrap();
        let found: Vec<_> = damaged.records().collect();
        assert!(found.len() as u64 > records - 200, "{}", found.len());
        for carved in &found {
            let length = 20 + (carved.position as usize * 37) % 6000;
            assert_eq!(carved.record, record(carved.position, length, 9));
        }
    }

    proptest! {
        #![proptest_config(crate::seeds::kept_of(64))]
        /// Whatever is hit, each carved record is as written, and only hit records are missing.
        #[test]
        fn never_another_record(hits in proptest::collection::vec((0usize..60_000, any::<u8>()), 0..8)) {
            let each: Vec<_> = (1..=12).map(|n| values(n, 4500, n as u8).concat()).collect();
            let mut bytes = each.concat();
            let size = each[0].len();
            let mut hit_positions = std::collections::BTreeSet::new();
            for (at, value) in hits {
                let at = at % bytes.len();
                if bytes[at] != value {
                    hit_positions.insert((at / size) as u64 + 1);
                }
                bytes[at] = value;
            }
            let scan = scan(&bytes);
            for carved in scan.records() {
                prop_assert_eq!(&carved.record, &record(carved.position, 4500, carved.position as u8));
            }
            let found = positions(&scan);
            prop_assert!((1..=12).all(|n| found.contains(&n) || hit_positions.contains(&n)));
        }
    }
}
