//! Quarantine: refused input and damaged records, kept sealed until an operator has decided.
//!
//! One file an entry, `{id as 16 hexadecimal digits}.entry`, numbers big-endian:
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 4 | magic `PGWQ` |
//! | 4 | 2 | version, 1 |
//! | 6 | 2 | length of the sealed head |
//! | 8 | 8 | id |
//! | 16 | 8 | time, milliseconds since the Unix epoch |
//! | 24 | 8 | length of the sealed body |
//! | 32 | 24 | nonce of the head |
//! | 56 | 24 | nonce of the body |
//! | 80 | | head: length of the reason (2), reason, source; then body; each sealed with XChaCha20-Poly1305 and the 80 bytes before (and an `h` or a `b`) as associated data |
//!
//! A new entry never displaces an old one: without room it is refused. An id is not used twice; the highest removed
//! one leaves an empty `{id}.gone`.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use pgw_core::transaction::{UnixMillis, unix_millis_now};
use pgw_durable::PRIVATE;

use crate::alternating::Take;
use crate::crypt::entry_seal::{EntrySeal, TAG_BYTES};
use crate::files;

const MAGIC: [u8; 4] = *b"PGWQ";
const VERSION: u16 = 1;
const FIXED_BYTES: usize = 80;
/// More entries than anybody will read.
const MOST_ENTRIES: usize = 10_000;
const MOST_SOURCE_BYTES: usize = 1024;

/// Reason of a record that lost against another one for its position.
pub(crate) const RIVAL: &str = "rival record";
/// Reason of a record that a person had written off, and that was found later.
pub(crate) const WRITTEN_OFF: &str = "written-off record";
/// Reason of a last record that a crash truncated before it was answered.
pub(crate) const INCOMPLETE: &str = "incomplete record";

/// One entry in quarantine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QuarantineEntry {
    /// Its number; never used twice.
    pub id: u64,
    /// Why it is here; empty when damaged.
    pub reason: String,
    /// Where it came from; empty when damaged.
    pub source: String,
    /// Length of the kept bytes.
    pub bytes: u64,
    /// When it came; 0 when damaged.
    pub time: UnixMillis,
    /// The file was altered.
    pub damaged: bool,
}

impl QuarantineEntry {
    /// Whether this is one of the store's own records, not a door's input.
    #[must_use]
    pub fn is_own_record(&self) -> bool {
        [RIVAL, INCOMPLETE, WRITTEN_OFF].contains(&self.reason.as_str())
    }

    /// Whether this is a record that a person had written off: it can be stored once more, as new, under its old id.
    #[must_use]
    pub fn is_written_off(&self) -> bool {
        !self.damaged && self.reason == WRITTEN_OFF
    }
}

/// The entries of one store.
pub(crate) struct Quarantine {
    directory: PathBuf,
    seal: EntrySeal,
    limit_bytes: u64,
    state: Mutex<EntryTotals>,
}

/// What the directory holds.
struct EntryTotals {
    last_id: u64,
    count: usize,
    bytes: u64,
}

struct Fixed {
    head_length: u16,
    id: u64,
    time: UnixMillis,
    body_length: u64,
    head_nonce: [u8; 24],
    body_nonce: [u8; 24],
}

impl Quarantine {
    /// Opens or creates the directory; `limit_bytes` bounds the files together.
    pub(crate) fn open(directory: &Path, key: &[u8; 32], limit_bytes: u64) -> io::Result<Self> {
        files::create_directory(directory)?;
        let seal = EntrySeal::new(key)?;
        let mut state = EntryTotals { last_id: 0, count: 0, bytes: 0 };
        for entry in std::fs::read_dir(directory)? {
            let entry = entry?;
            match parse_name(&entry.path()) {
                Some((id, EntryFile::Entry)) => {
                    state.last_id = state.last_id.max(id);
                    state.count += 1;
                    state.bytes += entry.metadata()?.len();
                }
                Some((id, EntryFile::Gone)) => state.last_id = state.last_id.max(id),
                Some((_, EntryFile::New)) => std::fs::remove_file(entry.path())?,
                None => {}
            }
        }
        let state = Mutex::new(state);
        Ok(Self { directory: directory.to_owned(), seal, limit_bytes, state })
    }

    /// Also opens entries of an earlier key. An entry does not name its key; opening its seal shows it.
    pub(crate) fn also_opening(mut self, key: &[u8; 32]) -> io::Result<Self> {
        self.seal.also_opening(key)?;
        Ok(self)
    }

    /// The highest id that was ever given.
    pub(crate) fn last_id(&self) -> u64 {
        self.state().last_id
    }

    /// Shows the store's own records in `directory`, each with its file, one at a time; nothing is written. Entries
    /// that this key does not open are skipped.
    pub(crate) fn own_records(
        directory: &Path,
        key: &[u8; 32],
        each: &mut dyn FnMut(PathBuf, &QuarantineEntry, Vec<u8>),
    ) -> io::Result<()> {
        let state = Mutex::new(EntryTotals { last_id: 0, count: 0, bytes: 0 });
        let (directory, seal) = (directory.to_owned(), EntrySeal::new(key)?);
        let quarantine = Self { directory, seal, limit_bytes: 0, state };
        for entry in quarantine.list()?.into_iter().filter(QuarantineEntry::is_own_record) {
            if let Ok(Some((entry, bytes))) = quarantine.get(entry.id) {
                each(quarantine.path(entry.id), &entry, bytes);
            }
        }
        Ok(())
    }

    /// Keeps `bytes`, durably, and returns the entry's id.
    ///
    /// # Errors
    /// `StorageFull` when the limit is reached; else the file system's.
    pub(crate) fn keep(&self, reason: &'static str, source: &str, bytes: &[u8]) -> io::Result<u64> {
        self.keep_within(self.limit_bytes, MOST_ENTRIES, reason, source, bytes)
    }

    /// The same for records that the store must set aside to open: junk from senders must not prevent that.
    ///
    /// # Errors
    /// The file system's.
    pub(crate) fn keep_own(&self, reason: &'static str, source: &str, bytes: &[u8]) -> io::Result<u64> {
        self.keep_within(u64::MAX, usize::MAX, reason, source, bytes)
    }

    fn keep_within(
        &self,
        limit_bytes: u64,
        most_entries: usize,
        reason: &'static str,
        source: &str,
        bytes: &[u8],
    ) -> io::Result<u64> {
        let mut state = self.state();
        let id = state.last_id + 1;
        let file = self.seal(id, unix_millis_now(), reason, source, bytes)?;
        let length = file.len() as u64;
        if state.count >= most_entries || state.bytes.saturating_add(length) > limit_bytes {
            return Err(io::Error::new(io::ErrorKind::StorageFull, "the quarantine is full"));
        }
        let path = self.path(id);
        let written = pgw_durable::replace(&path, PRIVATE, &file);
        // Once the file has its name it counts, even if the name may not be durable.
        if written.is_ok() || path.exists() {
            state.last_id = id;
            state.count += 1;
            state.bytes += length;
        }
        written.map(|()| id)
    }

    /// The entries by their numbers; none where the directory cannot be read.
    pub(crate) fn ids(&self) -> Vec<u64> {
        ids(&self.directory).unwrap_or_default()
    }

    /// How many entries there are.
    pub(crate) fn count(&self) -> usize {
        self.state().count
    }

    /// All entries, oldest first; those whose head or length was altered are flagged as damaged.
    pub(crate) fn list(&self) -> io::Result<Vec<QuarantineEntry>> {
        let _state = self.state();
        let mut entries = Vec::new();
        for file in std::fs::read_dir(&self.directory)? {
            let path = file?.path();
            if let Some((id, EntryFile::Entry)) = parse_name(&path) {
                entries.push(self.entry(id, &path)?);
            }
        }
        entries.sort_by_key(|entry| entry.id);
        Ok(entries)
    }

    /// The entry `id` without its bytes; `None` if there is none.
    pub(crate) fn find(&self, id: u64) -> io::Result<Option<QuarantineEntry>> {
        match self.entry(id, &self.path(id)) {
            Ok(entry) => Ok(Some(entry)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The entry `id` with its bytes; `None` if there is none.
    ///
    /// # Errors
    /// `InvalidData` when it is damaged; else the file system's.
    pub(crate) fn get(&self, id: u64) -> io::Result<Option<(QuarantineEntry, Vec<u8>)>> {
        let path = self.path(id);
        let file = match std::fs::read(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let damaged = || io::Error::new(io::ErrorKind::InvalidData, "the entry is damaged");
        self.open_whole(id, &file).map(Some).ok_or_else(damaged)
    }

    /// Removes `id` for good; false if there is no such entry.
    pub(crate) fn remove(&self, id: u64) -> io::Result<bool> {
        let mut state = self.state();
        let path = self.path(id);
        let length = match std::fs::metadata(&path) {
            Ok(metadata) => metadata.len(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error),
        };
        if id == state.last_id {
            pgw_durable::replace(&self.path(id).with_extension("gone"), PRIVATE, b"")?;
            for file in std::fs::read_dir(&self.directory)? {
                let file = file?.path();
                if matches!(parse_name(&file), Some((other, EntryFile::Gone)) if other != id) {
                    std::fs::remove_file(file)?;
                }
            }
        }
        std::fs::remove_file(&path)?;
        state.count = state.count.saturating_sub(1);
        state.bytes = state.bytes.saturating_sub(length);
        pgw_durable::sync_directory(&self.directory)?;
        Ok(true)
    }

    fn state(&self) -> MutexGuard<'_, EntryTotals> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn path(&self, id: u64) -> PathBuf {
        self.directory.join(format!("{id:016x}.entry"))
    }

    fn seal(
        &self,
        id: u64,
        time: UnixMillis,
        reason: &str,
        source: &str,
        body: &[u8],
    ) -> io::Result<Vec<u8>> {
        let source = cut_between_characters(source);
        let mut head = u16::try_from(reason.len()).map_err(io::Error::other)?.to_be_bytes().to_vec();
        head.extend(reason.bytes());
        head.extend(source.bytes());
        let fixed = Fixed {
            head_length: u16::try_from(head.len() + TAG_BYTES).map_err(io::Error::other)?,
            id,
            time,
            body_length: (body.len() + TAG_BYTES) as u64,
            head_nonce: pgw_durable::random()?,
            body_nonce: pgw_durable::random()?,
        };
        let mut file = fixed.encode();
        let sealed_head = self.seal.seal(&fixed.head_nonce, &head, &file, b'h')?;
        let sealed_body = self.seal.seal(&fixed.body_nonce, body, &file, b'b')?;
        file.extend(sealed_head);
        file.extend(sealed_body);
        Ok(file)
    }

    /// Reads the head only: bodies may be large.
    fn entry(&self, id: u64, path: &Path) -> io::Result<QuarantineEntry> {
        let file = File::open(path)?;
        let length = file.metadata()?.len();
        let mut front = Vec::new();
        file.take((FIXED_BYTES + usize::from(u16::MAX)) as u64).read_to_end(&mut front)?;
        let damaged = QuarantineEntry {
            id,
            reason: String::new(),
            source: String::new(),
            bytes: length,
            time: 0,
            damaged: true,
        };
        Ok(self.open_head(id, &front, length).map_or(damaged, |(entry, _)| entry))
    }

    fn open_head(&self, id: u64, front: &[u8], length: u64) -> Option<(QuarantineEntry, Fixed)> {
        let mut rest = Take(front);
        let fixed_bytes = rest.bytes(FIXED_BYTES)?;
        let fixed = Fixed::parse(fixed_bytes)?;
        let sealed = rest.bytes(usize::from(fixed.head_length))?;
        let whole = (FIXED_BYTES as u64 + u64::from(fixed.head_length)).checked_add(fixed.body_length)?;
        if fixed.id != id || whole != length {
            return None;
        }
        let head = self.seal.open(&fixed.head_nonce, sealed, fixed_bytes, b'h')?;
        let mut head = Take(&head);
        let reason_length = head.u16()?;
        let entry = QuarantineEntry {
            id,
            reason: String::from_utf8(head.bytes(usize::from(reason_length))?.to_vec()).ok()?,
            source: String::from_utf8(head.0.to_vec()).ok()?,
            bytes: fixed.body_length.checked_sub(TAG_BYTES as u64)?,
            time: fixed.time,
            damaged: false,
        };
        Some((entry, fixed))
    }

    fn open_whole(&self, id: u64, file: &[u8]) -> Option<(QuarantineEntry, Vec<u8>)> {
        let (entry, fixed) = self.open_head(id, file, file.len() as u64)?;
        let sealed = file.get(FIXED_BYTES + usize::from(fixed.head_length)..)?;
        let body = self.seal.open(&fixed.body_nonce, sealed, file.get(..FIXED_BYTES)?, b'b')?;
        Some((entry, body))
    }
}

impl Fixed {
    fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(FIXED_BYTES);
        bytes.extend(MAGIC);
        bytes.extend(VERSION.to_be_bytes());
        bytes.extend(self.head_length.to_be_bytes());
        bytes.extend(self.id.to_be_bytes());
        bytes.extend(self.time.to_be_bytes());
        bytes.extend(self.body_length.to_be_bytes());
        bytes.extend(self.head_nonce);
        bytes.extend(self.body_nonce);
        bytes
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let mut rest = Take(bytes);
        if rest.array()? != MAGIC || rest.u16()? != VERSION {
            return None;
        }
        Some(Self {
            head_length: rest.u16()?,
            id: rest.u64()?,
            time: rest.u64()?,
            body_length: rest.u64()?,
            head_nonce: rest.array()?,
            body_nonce: rest.array()?,
        })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum EntryFile {
    Entry,
    New,
    Gone,
}

/// The ids of the entries in a quarantine's directory, from the file names.
pub(crate) fn ids(directory: &Path) -> io::Result<Vec<u64>> {
    let files = match std::fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let mut ids = Vec::new();
    for file in files {
        ids.extend(parse_name(&file?.path()).filter(|(_, kind)| *kind == EntryFile::Entry).map(|(id, _)| id));
    }
    Ok(ids)
}

fn parse_name(path: &Path) -> Option<(u64, EntryFile)> {
    let (id, extension) = path.file_name()?.to_str()?.split_once('.')?;
    let kind = match extension {
        "entry" => EntryFile::Entry,
        "gone" => EntryFile::Gone,
        // A file that was being written when the process crashed.
        "entry.new" | "gone.new" => EntryFile::New,
        _ => return None,
    };
    Some((u64::from_str_radix(id, 16).ok()?, kind))
}

fn cut_between_characters(source: &str) -> &str {
    let whole =
        source.char_indices().map(|(at, c)| at + c.len_utf8()).take_while(|end| *end <= MOST_SOURCE_BYTES);
    source.get(..whole.last().unwrap_or(0)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: [u8; 32] = [5; 32];

    fn open(directory: &Path) -> Quarantine {
        Quarantine::open(directory, &KEY, 1 << 20).unwrap()
    }

    #[test]
    fn entries_survive_a_restart_and_are_nowhere_in_the_clear() {
        let directory = tempfile::tempdir().unwrap();
        let first = open(directory.path()).keep("no-msh", "urn:sender:ward", b"PID|1||9434765919").unwrap();
        let second = open(directory.path()).keep("too-large", "", b"").unwrap();
        assert_eq!((first, second), (1, 2));
        let again = open(directory.path());
        let listed = again.list().unwrap();
        assert_eq!(again.count(), 2);
        assert_eq!((listed[0].reason.as_str(), listed[0].source.as_str()), ("no-msh", "urn:sender:ward"));
        assert_eq!((listed[0].bytes, listed[1].bytes), (17, 0));
        assert!(listed[0].time > 1_600_000_000_000 && !listed[0].damaged && !listed[1].damaged);
        assert_eq!(again.get(1).unwrap().unwrap(), (listed[0].clone(), b"PID|1||9434765919".to_vec()));
        assert_eq!(again.get(9).unwrap(), None);
        let file = std::fs::read(again.path(1)).unwrap();
        for secret in [&b"9434765919"[..], b"urn:sender", b"no-msh"] {
            assert!(!file.windows(secret.len()).any(|window| window == secret));
        }
    }

    #[test]
    fn what_does_not_fit_is_refused_and_pushes_nothing_out() {
        let directory = tempfile::tempdir().unwrap();
        let quarantine = Quarantine::open(directory.path(), &KEY, 1000).unwrap();
        let id = quarantine.keep("no-msh", "s", &[1; 500]).unwrap();
        let error = quarantine.keep("no-msh", "s", &[1; 500]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        assert_eq!(quarantine.list().unwrap().len(), 1);
        assert!(
            Quarantine::open(directory.path(), &KEY, 1000).unwrap().keep("no-msh", "s", &[1; 500]).is_err()
        );
        assert!(quarantine.remove(id).unwrap());
        assert!(!quarantine.remove(id).unwrap());
        quarantine.keep("no-msh", "s", &[1; 500]).unwrap();
    }

    #[test]
    fn an_id_is_never_used_twice() {
        let directory = tempfile::tempdir().unwrap();
        for id in 1..=4 {
            assert_eq!(open(directory.path()).keep("no-msh", "s", b"x").unwrap(), id);
            if id != 2 {
                assert!(open(directory.path()).remove(id).unwrap());
            }
        }
        let files = std::fs::read_dir(directory.path()).unwrap().count();
        assert_eq!(files, 2, "the entry 2 and the trace of the last one removed");
    }

    #[test]
    fn damage_is_listed_as_damage_wherever_it_is() {
        let directory = tempfile::tempdir().unwrap();
        let quarantine = open(directory.path());
        quarantine.keep("no-msh", "urn:s", b"body").unwrap();
        let path = quarantine.path(1);
        let good = std::fs::read(&path).unwrap();
        let head_ends = good.len() - 20;
        for byte in 0..good.len() {
            let mut bad = good.clone();
            bad[byte] ^= 4;
            std::fs::write(&path, &bad).unwrap();
            assert_eq!(quarantine.get(1).unwrap_err().kind(), io::ErrorKind::InvalidData, "{byte}");
            assert_eq!(quarantine.list().unwrap()[0].damaged, byte < head_ends, "{byte}");
        }
        for cut in 0..good.len() {
            std::fs::write(&path, &good[..cut]).unwrap();
            assert!(quarantine.list().unwrap()[0].damaged, "{cut}");
        }
        std::fs::write(&path, &good).unwrap();
        std::fs::rename(&path, quarantine.path(7)).unwrap();
        assert!(quarantine.list().unwrap()[0].damaged, "an entry under another's name");
        let other = Quarantine::open(directory.path(), &[6; 32], 1 << 20).unwrap();
        assert!(other.list().unwrap()[0].damaged);
        assert!(other.remove(7).unwrap(), "and can be removed");
    }

    #[test]
    fn what_a_crash_left_half_written_is_swept_away() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("0000000000000005.entry.new"), b"half").unwrap();
        let quarantine = open(directory.path());
        assert_eq!(quarantine.list().unwrap(), []);
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_long_source_is_cut_between_characters() {
        let directory = tempfile::tempdir().unwrap();
        let quarantine = open(directory.path());
        quarantine.keep("no-msh", &"ü".repeat(600), b"").unwrap();
        quarantine.keep("no-msh", &format!("a{}", "ü".repeat(600)), b"").unwrap();
        let lengths: Vec<_> = quarantine.list().unwrap().iter().map(|e| e.source.len()).collect();
        assert_eq!(lengths, [1024, 1023]);
    }

    /// Written by version 1 with fixed nonces; must stay readable for ever.
    #[test]
    fn golden_entry() {
        let directory = tempfile::tempdir().unwrap();
        let quarantine = open(directory.path());
        let hex = concat!(
            "504757510001001d0000000000000003000001a20551170b0000000000000014000102030405060708090a0b",
            "0c0d0e0f10111213141516176465666768696a6b6c6d6e6f707172737475767778797a7b32e9aae6a67da05e",
            "7e58d23483f9bca1312cb000e76cc3fd287475424efef560685ebec2256011d17da50ab47a92eae428"
        );
        let file: Vec<u8> =
            (0..hex.len() / 2).map(|i| u8::from_str_radix(&hex[2 * i..2 * i + 2], 16).unwrap()).collect();
        std::fs::write(quarantine.path(3), file).unwrap();
        let (entry, body) = quarantine.get(3).unwrap().unwrap();
        let expected = QuarantineEntry {
            id: 3,
            reason: String::from("no-msh"),
            source: String::from("urn:s"),
            bytes: 4,
            time: 1_795_385_530_123,
            damaged: false,
        };
        assert_eq!((entry, body), (expected, b"body".to_vec()));
    }

    #[test]
    fn an_earlier_key_opens_what_it_sealed_and_seals_nothing_more() {
        let directory = tempfile::tempdir().unwrap();
        open(directory.path()).keep("no-msh", "s", b"before").unwrap();
        let new = || Quarantine::open(directory.path(), &[6; 32], 1 << 20).unwrap();
        let both = new().also_opening(&KEY).unwrap();
        assert_eq!(both.get(1).unwrap().unwrap().1, b"before");
        assert_eq!(both.keep("no-msh", "s", b"after").unwrap(), 2);
        assert_eq!(new().get(2).unwrap().unwrap().1, b"after");
        assert!(open(directory.path()).get(2).is_err());
        assert_eq!((ids(directory.path()).unwrap().len(), both.last_id()), (2, 2));
    }
}
