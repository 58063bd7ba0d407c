//! The digest table of a segment: the digest of each of its transactions, in a file of its own beside the segment.
//!
//! With it the chain value of every number that was sent can be computed when its record is destroyed or pruned: it stays when
//! its segment goes. It needs no encryption, because a digest covers the transaction's random id and so gives nothing away.
//!
//! The file is `segments/{lane}/{base}.digests`, named by its first position in 20 digits. Numbers are big-endian:
//!
//! | bytes | what |
//! |---|---|
//! | 4 | magic `PGWD` |
//! | 2 | version, 1 |
//! | 2 | lane: its number in the store's `lanes.list` |
//! | 16 | the lane's own id |
//! | 8 | base: the first position |
//! | 32 | value of the chain over positions before it |
//! | 4 | CRC32C of everything before |
//! | 36 each | entries, one for each position from the base on: digest (32), CRC32C of lane id, position and digest (4) |
//! | 4 | magic `PGWE`: from here on the end, which seals the table |
//! | 8 | number of entries |
//! | 32 | value of the chain over positions after the last one |
//! | 4 | CRC32C of the lane id, the base and the 44 bytes before |
//!
//! An entry whose CRC32C does not fit is unknown. The writer appends entries after the barrier of their records and syncs
//! nothing; a crash may cost any of them, and they are computed again from the records ([`crate::state::settled_digests`]). A sealed table never
//! changes, unless an entry is damaged: then it is made again and replaced as a whole.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use pgw_core::chain::{ChainValue, Digest};
use pgw_core::transaction::Position;
use pgw_durable::PRIVATE;
use uuid::Uuid;

use crate::alternating::Take;
use crate::files::{self, is_unreadable};

const MAGIC: [u8; 4] = *b"PGWD";
const END_MAGIC: [u8; 4] = *b"PGWE";
const VERSION: u16 = 1;
const HEAD_BYTES: usize = 68;
const ENTRY_BYTES: usize = 36;
const END_BYTES: usize = 48;
/// Follows the base in a table's name.
const SUFFIX: &str = ".digests";

/// Whose table it is, and where it begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TableHead {
    /// The lane's number in the store.
    pub(crate) lane: u16,
    /// The lane's own id.
    pub(crate) lane_id: Uuid,
    /// The first position.
    pub(crate) base: Position,
    /// Value of the chain over positions before it.
    pub(crate) previous: ChainValue,
}

impl TableHead {
    fn encode(&self) -> [u8; HEAD_BYTES] {
        let mut bytes = [0; HEAD_BYTES];
        bytes[0..4].copy_from_slice(&MAGIC);
        bytes[4..6].copy_from_slice(&VERSION.to_be_bytes());
        bytes[6..8].copy_from_slice(&self.lane.to_be_bytes());
        bytes[8..24].copy_from_slice(self.lane_id.as_bytes());
        bytes[24..32].copy_from_slice(&self.base.to_be_bytes());
        bytes[32..64].copy_from_slice(&self.previous.0);
        let crc = crc32c::crc32c(&bytes[..64]);
        bytes[64..].copy_from_slice(&crc.to_be_bytes());
        bytes
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let mut rest = Take(bytes);
        if rest.array::<4>()? != MAGIC || rest.u16()? != VERSION {
            return None;
        }
        let head = Self {
            lane: rest.u16()?,
            lane_id: Uuid::from_bytes(rest.array()?),
            base: rest.u64()?,
            previous: ChainValue(rest.array()?),
        };
        (crc32c::crc32c(bytes.get(..64)?) == rest.u32()?).then_some(head)
    }

    fn entry(&self, position: Position, digest: Digest) -> [u8; ENTRY_BYTES] {
        let mut bytes = [0; ENTRY_BYTES];
        bytes[..32].copy_from_slice(&digest.0);
        bytes[32..].copy_from_slice(&entry_sum(self.lane_id, position, digest).to_be_bytes());
        bytes
    }

    fn end(&self, count: u64, chain: ChainValue) -> [u8; END_BYTES] {
        let mut bytes = [0; END_BYTES];
        bytes[0..4].copy_from_slice(&END_MAGIC);
        bytes[4..12].copy_from_slice(&count.to_be_bytes());
        bytes[12..44].copy_from_slice(&chain.0);
        let sum = end_sum(self.lane_id, self.base, &bytes[..44]);
        bytes[44..].copy_from_slice(&sum.to_be_bytes());
        bytes
    }

    /// Where the entry of a position is in the file.
    fn offset(&self, position: Position) -> u64 {
        HEAD_BYTES as u64 + position.saturating_sub(self.base).saturating_mul(ENTRY_BYTES as u64)
    }
}

fn entry_sum(lane_id: Uuid, position: Position, digest: Digest) -> u32 {
    let sum = crc32c::crc32c(lane_id.as_bytes());
    crc32c::crc32c_append(crc32c::crc32c_append(sum, &position.to_be_bytes()), &digest.0)
}

fn end_sum(lane_id: Uuid, base: Position, bytes: &[u8]) -> u32 {
    let sum = crc32c::crc32c(lane_id.as_bytes());
    crc32c::crc32c_append(crc32c::crc32c_append(sum, &base.to_be_bytes()), bytes)
}

fn parse_entry(bytes: &[u8], lane_id: Uuid, position: Position) -> Option<Digest> {
    let mut rest = Take(bytes);
    let digest = Digest(rest.array()?);
    (rest.u32()? == entry_sum(lane_id, position, digest)).then_some(digest)
}

/// The table that begins at `base`, in a lane's directory of segments.
pub(crate) fn table_path(directory: &Path, base: Position) -> PathBuf {
    directory.join(format!("{base:020}{SUFFIX}"))
}

/// The bases of the tables in a lane's directory of segments.
pub(crate) fn table_bases(directory: &Path) -> io::Result<BTreeSet<Position>> {
    let mut bases = BTreeSet::new();
    for entry in std::fs::read_dir(directory)? {
        let name = entry?.file_name();
        let digits = name.to_str().and_then(|name| name.strip_suffix(SUFFIX)).filter(|d| d.len() == 20);
        bases.extend(digits.and_then(|digits| digits.parse::<Position>().ok()));
    }
    Ok(bases)
}

/// The lane's own id, as the newest readable table of its directory has it.
pub(crate) fn lane_id_in(directory: &Path) -> Option<Uuid> {
    let bases = table_bases(directory).ok()?;
    bases
        .iter()
        .rev()
        .find_map(|base| head_of(&File::open(table_path(directory, *base)).ok()?).ok()?)
        .map(|h| h.lane_id)
}

fn head_of(file: &File) -> io::Result<Option<TableHead>> {
    let mut bytes = [0; HEAD_BYTES];
    match file.read_exact_at(&mut bytes, 0) {
        Ok(()) => Ok(TableHead::parse(&bytes)),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof || is_unreadable(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The table at `base`, as far as it can be used.
enum Found {
    /// One of this lane that begins there.
    Ours(File, TableHead),
    /// There is none, or a crash has left an empty file.
    Nothing,
    /// Something else is in its place.
    Unusable(String),
}

/// Opens the table at `base`. A table is derived from the records: what cannot be read counts as unknown and stops nothing.
///
/// # Errors
/// The process lacks something that it may have again soon, such as file handles.
fn find(directory: &Path, lane_id: Uuid, base: Position) -> io::Result<Found> {
    let opened = File::open(table_path(directory, base)).and_then(|file| {
        let facts = file.metadata()?;
        let head = if facts.is_file() { head_of(&file)? } else { None };
        Ok((file, facts.len(), head))
    });
    match opened {
        Ok((file, _, Some(head))) if head.lane_id == lane_id && head.base == base => {
            Ok(Found::Ours(file, head))
        }
        Ok((_, 0, _)) => Ok(Found::Nothing),
        Ok((_, _, Some(_))) => Ok(Found::Unusable("it is another segment's or another lane's".into())),
        Ok((_, _, None)) => Ok(Found::Unusable("its head is damaged".into())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Found::Nothing),
        Err(error) if files::may_pass(&error) => Err(error),
        Err(error) => Ok(Found::Unusable(error.to_string())),
    }
}

fn open_if_ours(directory: &Path, lane_id: Uuid, base: Position) -> io::Result<Option<(File, TableHead)>> {
    match find(directory, lane_id, base)? {
        Found::Ours(file, head) => Ok(Some((file, head))),
        Found::Nothing | Found::Unusable(_) => Ok(None),
    }
}

/// Why the table at `base` cannot be used, although there is something in its place.
pub(crate) fn unusable(directory: &Path, lane_id: Uuid, base: Position) -> Option<String> {
    match find(directory, lane_id, base) {
        Ok(Found::Unusable(reason)) => Some(reason),
        Ok(_) => None,
        Err(error) => Some(error.to_string()),
    }
}

/// Makes the entries of the table at `base` durable, whoever writes it; `named`: its name is durable already.
///
/// # Errors
/// The file system's.
pub(crate) fn sync(directory: &Path, base: Position, named: bool) -> io::Result<()> {
    let path = table_path(directory, base);
    let file = match OpenOptions::new().write(true).open(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    pgw_durable::sync_all(&file)?;
    if !named {
        files::sync_name(&path)?;
    }
    #[cfg(test)]
    crate::faults_for_tests::of(&path).note_durable(&path);
    Ok(())
}

/// The digests from `from` through `through` in the table at `base`; unknown where it has none, or a damaged one.
///
/// # Errors
/// The process lacks something that it may have again soon. A table or a sector that cannot be read is no error: unknown.
pub(crate) fn read(
    directory: &Path,
    lane_id: Uuid,
    base: Position,
    (from, through): (Position, Position),
) -> io::Result<Vec<Option<Digest>>> {
    let count = usize::try_from((through + 1).saturating_sub(from)).map_err(io::Error::other)?;
    let Some((file, head)) = open_if_ours(directory, lane_id, base)? else { return Ok(vec![None; count]) };
    let mut bytes = vec![0; count.saturating_mul(ENTRY_BYTES)];
    fill(&file, &mut bytes, head.offset(from))?;
    let entries = bytes.chunks_exact(ENTRY_BYTES).zip(from..);
    Ok(entries.map(|(entry, position)| parse_entry(entry, lane_id, position)).collect())
}

/// Fills the buffer; with zeros behind the file's end and where the disk cannot be read.
fn fill(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<()> {
    let mut filled = 0;
    while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, offset + filled as u64) {
            Ok(0) => return Ok(()),
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if is_unreadable(&error) && rest.len() > ENTRY_BYTES => {
                let half = rest.len() / 2;
                let (front, back) = rest.split_at_mut(half);
                fill(file, front, offset + filled as u64)?;
                return fill(file, back, offset + (filled + half) as u64);
            }
            Err(error) if files::may_pass(&error) => return Err(error),
            Err(_) => return Ok(()),
        }
    }
    Ok(())
}

/// The end of a sealed table: how many entries it has, and the chain value after the last. `None`: it is not sealed.
///
/// # Errors
/// The file system's.
pub(crate) fn sealed_end(
    directory: &Path,
    lane_id: Uuid,
    base: Position,
) -> io::Result<Option<(u64, ChainValue)>> {
    let Some((file, _)) = open_if_ours(directory, lane_id, base)? else { return Ok(None) };
    let length = file.metadata()?.len();
    let Some(entries) = length.checked_sub((HEAD_BYTES + END_BYTES) as u64) else { return Ok(None) };
    let mut bytes = [0; END_BYTES];
    fill(&file, &mut bytes, length - END_BYTES as u64)?;
    let mut rest = Take(&bytes);
    let (magic, count, chain) = (rest.array::<4>(), rest.u64(), rest.array().map(ChainValue));
    let whole = magic == Some(END_MAGIC)
        && rest.u32() == Some(end_sum(lane_id, base, &bytes[..44]))
        && count.and_then(|count| count.checked_mul(ENTRY_BYTES as u64)) == Some(entries);
    Ok(count.zip(chain).filter(|_| whole))
}

/// Writes a sealed table in place of any other, durably.
///
/// # Errors
/// The file system's; the one before is then untouched.
pub(crate) fn write_sealed(
    directory: &Path,
    head: &TableHead,
    digests: &[Option<Digest>],
    chain: ChainValue,
) -> io::Result<()> {
    let mut bytes = Vec::with_capacity(HEAD_BYTES + digests.len() * ENTRY_BYTES + END_BYTES);
    bytes.extend(head.encode());
    for (digest, position) in digests.iter().zip(head.base..) {
        bytes.extend(digest.map_or([0; ENTRY_BYTES], |digest| head.entry(position, digest)));
    }
    bytes.extend(head.end(digests.len() as u64, chain));
    let path = table_path(directory, head.base);
    pgw_durable::replace(&path, PRIVATE, &bytes)?;
    #[cfg(test)]
    crate::faults_for_tests::of(&path).note_durable(&path);
    Ok(())
}

/// The table of the segment that the writer writes.
#[derive(Debug)]
pub(crate) struct OpenTable {
    file: File,
    head: TableHead,
    path: PathBuf,
}

impl OpenTable {
    /// Begins an empty table, whatever is in its place. Nothing is synced.
    ///
    /// # Errors
    /// The file system's.
    pub(crate) fn create(directory: &Path, head: TableHead) -> io::Result<Self> {
        let path = table_path(directory, head.base);
        #[cfg(test)]
        crate::faults_for_tests::of(&path).check(crate::faults_for_tests::Point::TableBegin)?;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .mode(PRIVATE)
            .open(&path)?;
        file.write_all_at(&head.encode(), 0)?;
        Ok(Self { file, head, path })
    }

    /// Opens the table of a segment that ends at `tail` now, to be continued; `None`: there is none, or another's. What it has
    /// beyond `tail` is cut off durably: those positions may be given again, and an old entry must never name a new record.
    ///
    /// # Errors
    /// The file system's.
    pub(crate) fn resume(directory: &Path, head: TableHead, tail: Position) -> io::Result<Option<Self>> {
        let Some(table) = Self::reopen(directory, head)? else { return Ok(None) };
        let end = head.offset(tail + 1);
        if table.file.metadata()?.len() > end {
            table.file.set_len(end)?;
            pgw_durable::sync_all(&table.file)?;
        }
        Ok(Some(table))
    }

    /// Opens a table as it is; `None`: there is none, or another's.
    ///
    /// # Errors
    /// The file system's.
    pub(crate) fn reopen(directory: &Path, head: TableHead) -> io::Result<Option<Self>> {
        let path = table_path(directory, head.base);
        let file = match OpenOptions::new().read(true).write(true).open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        let ours = head_of(&file)? == Some(head);
        Ok(ours.then_some(Self { file, head, path }))
    }

    /// Writes the entries from `first` on. Nothing is synced.
    ///
    /// # Errors
    /// The file system's: any of them may be there.
    pub(crate) fn write(&self, first: Position, digests: impl Iterator<Item = Digest>) -> io::Result<()> {
        #[cfg(test)]
        crate::faults_for_tests::of(&self.path).check(crate::faults_for_tests::Point::Table)?;
        let bytes: Vec<u8> =
            digests.zip(first..).flat_map(|(digest, position)| self.head.entry(position, digest)).collect();
        self.file.write_all_at(&bytes, self.head.offset(first))
    }

    /// Makes the entry of a position unknown. Nothing is synced.
    ///
    /// # Errors
    /// The file system's.
    pub(crate) fn erase(&self, position: Position) -> io::Result<()> {
        self.file.write_all_at(&[0; ENTRY_BYTES], self.head.offset(position))
    }

    /// Seals it behind `count` entries, durably.
    ///
    /// # Errors
    /// The file system's: it is not sealed then, unless it is.
    pub(crate) fn seal(&self, count: u64, chain: ChainValue) -> io::Result<()> {
        let at = self.head.offset(self.head.base + count);
        self.file.write_all_at(&self.head.end(count, chain), at)?;
        self.file.set_len(at + END_BYTES as u64)?;
        pgw_durable::sync_all(&self.file)?;
        files::sync_name(&self.path)?;
        #[cfg(test)]
        crate::faults_for_tests::of(&self.path).note_durable(&self.path);
        Ok(())
    }

    /// Makes its entries durable.
    ///
    /// # Errors
    /// The file system's.
    pub(crate) fn sync(&self) -> io::Result<()> {
        pgw_durable::sync_all(&self.file)?;
        files::sync_name(&self.path)?;
        #[cfg(test)]
        crate::faults_for_tests::of(&self.path).note_durable(&self.path);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LANE: Uuid = Uuid::from_u128(7);

    fn head() -> TableHead {
        TableHead { lane: 2, lane_id: LANE, base: 101, previous: ChainValue([9; 32]) }
    }

    fn digest(position: Position) -> Digest {
        Digest([u8::try_from(position).unwrap(); 32])
    }

    fn written(directory: &Path, through: Position) -> OpenTable {
        let table = OpenTable::create(directory, head()).unwrap();
        table.write(101, (101..=through).map(digest)).unwrap();
        table
    }

    fn all(directory: &Path) -> Vec<Option<Digest>> {
        read(directory, LANE, 101, (101, 105)).unwrap()
    }

    #[test]
    fn what_is_appended_is_read_and_what_is_not_there_is_unknown() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(all(directory.path()), [None; 5], "there is no table");
        let table = written(directory.path(), 103);
        table.write(105, std::iter::once(digest(105))).unwrap();
        let known = [101, 102, 103, 104, 105].map(|at| (at != 104).then(|| digest(at)));
        assert_eq!(all(directory.path()), known);
        assert_eq!(read(directory.path(), LANE, 101, (102, 103)).unwrap(), known[1..3]);
        assert_eq!(table_bases(directory.path()).unwrap(), BTreeSet::from([101]));
        assert_eq!(lane_id_in(directory.path()), Some(LANE));
        assert_eq!(sealed_end(directory.path(), LANE, 101).unwrap(), None);
        table.seal(5, ChainValue([8; 32])).unwrap();
        assert_eq!(sealed_end(directory.path(), LANE, 101).unwrap(), Some((5, ChainValue([8; 32]))));
        assert_eq!(all(directory.path()), known);
        write_sealed(directory.path(), &head(), &[101, 102].map(|at| Some(digest(at))), ChainValue([7; 32]))
            .unwrap();
        assert_eq!(sealed_end(directory.path(), LANE, 101).unwrap(), Some((2, ChainValue([7; 32]))));
    }

    #[test]
    fn no_flipped_bit_gives_a_wrong_digest_and_none_unseals_unseen() {
        let directory = tempfile::tempdir().unwrap();
        let known = [101, 102, 103, 104, 105].map(|at| Some(digest(at)));
        write_sealed(directory.path(), &head(), &known, ChainValue([8; 32])).unwrap();
        let path = table_path(directory.path(), 101);
        let whole = std::fs::read(&path).unwrap();
        assert_eq!(whole.len(), HEAD_BYTES + 5 * ENTRY_BYTES + END_BYTES);
        for bit in 0..whole.len() * 8 {
            let mut flipped = whole.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            std::fs::write(&path, &flipped).unwrap();
            let found = all(directory.path());
            let unknown = found.iter().filter(|digest| digest.is_none()).count();
            assert!(
                found.iter().zip(known).all(|(found, known)| found.is_none() || *found == known),
                "bit {bit}"
            );
            let sealed = sealed_end(directory.path(), LANE, 101).unwrap();
            let expected = match bit / 8 {
                at if at < HEAD_BYTES => (5, None),
                at if at < HEAD_BYTES + 5 * ENTRY_BYTES => (1, Some((5, ChainValue([8; 32])))),
                _ => (0, None),
            };
            assert_eq!((unknown, sealed), expected, "bit {bit}");
        }
        for cut in 0..whole.len() {
            std::fs::write(&path, &whole[..cut]).unwrap();
            let entries = cut.saturating_sub(HEAD_BYTES) / ENTRY_BYTES;
            let found = all(directory.path());
            assert!(
                found.iter().enumerate().all(|(at, found)| *found == known[at].filter(|_| at < entries)),
                "{cut}"
            );
            assert_eq!(sealed_end(directory.path(), LANE, 101).unwrap(), None, "{cut}");
        }
    }

    #[test]
    fn another_lanes_table_and_entries_at_other_positions_count_for_nothing() {
        let directory = tempfile::tempdir().unwrap();
        written(directory.path(), 105);
        assert_eq!(read(directory.path(), Uuid::from_u128(8), 101, (101, 105)).unwrap(), [None; 5]);
        let path = table_path(directory.path(), 101);
        std::fs::copy(&path, table_path(directory.path(), 201)).unwrap();
        assert_eq!(read(directory.path(), LANE, 201, (201, 202)).unwrap(), [None; 2]);
        let mut bytes = std::fs::read(&path).unwrap();
        let (one, other) = (HEAD_BYTES..HEAD_BYTES + ENTRY_BYTES, HEAD_BYTES + ENTRY_BYTES);
        bytes.copy_within(one, other);
        std::fs::write(&path, bytes).unwrap();
        assert_eq!(all(directory.path())[..3], [Some(digest(101)), None, Some(digest(103))]);
    }

    #[test]
    fn what_a_table_has_beyond_the_tail_is_cut_off() {
        let directory = tempfile::tempdir().unwrap();
        written(directory.path(), 105);
        let table = OpenTable::resume(directory.path(), head(), 102).unwrap().unwrap();
        table.write(104, std::iter::once(digest(4))).unwrap();
        assert_eq!(
            all(directory.path()),
            [Some(digest(101)), Some(digest(102)), None, Some(digest(4)), None]
        );
        let other = TableHead { previous: ChainValue([1; 32]), ..head() };
        assert!(OpenTable::resume(directory.path(), other, 102).unwrap().is_none());
    }

    #[test]
    fn version_1_has_these_bytes() {
        let directory = tempfile::tempdir().unwrap();
        let head = TableHead { base: 0x0102, ..head() };
        let digests = [Some(Digest([0xdd; 32])), None];
        write_sealed(directory.path(), &head, &digests, ChainValue([0xee; 32])).unwrap();
        let path = directory.path().join("00000000000000000258.digests");
        let expected = [
            "50475744",
            "0001",
            "0002",
            "00000000000000000000000000000007",
            "0000000000000102",
            &"09".repeat(32),
            "c9d88d0f",
            &"dd".repeat(32),
            "cda91882",
            &"00".repeat(36),
            "50475745",
            "0000000000000002",
            &"ee".repeat(32),
            "6622dea0",
        ]
        .concat();
        assert_eq!(pgw_core::text::hex(&std::fs::read(path).unwrap()), expected);
    }
}
