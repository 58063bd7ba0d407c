//! What remains of a lane's file when its bodies are archived (design section 12.8): the same lines in the same order, except that
//! each transaction has lost its body and its other attributes. Its id, number, link, chain value, digest and time remain, so that
//! the row is unbroken from the first, `verify` still proves it, and its id is still known.
//!
//! Entries stay whole: they are small, name no patient, and say what is missing for good.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Write};
use std::path::{Path, PathBuf};

use super::files::{directory_of, failed, rotated, rotated_path};
use super::line::{self, GROUP_START, Line};
use super::row;
use super::tail::last_group;
use super::walk::{Fault, Walk};
use super::{LaneName, StoreError};

/// Added to a file's name while what remains of it waits to take its place.
const DRAFT: &str = ".remains";
const BUFFER_BYTES: usize = 256 * 1024;

/// Where what remains of a file is written, before it takes the file's place.
#[must_use]
pub fn draft(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(DRAFT);
    PathBuf::from(name)
}

/// The file of a lane with this number.
#[must_use]
pub fn path_of(directory: &Path, lane: &LaneName, file: u32) -> PathBuf {
    rotated_path(&directory_of(directory, lane).join(format!("{}.ndjson", lane.lane)), file)
}

/// A file of a lane that is complete.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CompleteFile {
    /// Its number.
    pub number: u32,
    /// Its path.
    pub path: PathBuf,
    /// When its last transactions were stored, RFC 3339, by the hub's clock.
    pub stored: String,
}

/// The complete files of a lane, in the order of the line; `None`: they do not follow on one another.
///
/// # Errors
/// [`StoreError`]: they cannot be read.
pub fn complete_files(directory: &Path, lane: &LaneName) -> Result<Option<Vec<CompleteFile>>, StoreError> {
    if row::read(directory, lane)?.hole.is_some() {
        return Ok(None);
    }
    let mut found = Vec::new();
    for number in rotated(&directory_of(directory, lane), &lane.lane)? {
        let path = path_of(directory, lane, number);
        let stored = last_stored(&path).map_err(failed("read", &path))?;
        found.extend(stored.map(|stored| CompleteFile { number, path, stored }));
    }
    Ok(Some(found))
}

/// When the last group of a file was stored.
fn last_stored(path: &Path) -> io::Result<Option<String>> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    let Some(start) = last_group(&file, length)? else { return Ok(None) };
    io::Seek::seek(&mut file, io::SeekFrom::Start(start))?;
    let mut text = Vec::new();
    BufReader::new(file).read_until(b'\n', &mut text)?;
    let time = text.strip_prefix(GROUP_START).and_then(|rest| rest.strip_prefix(br#""time":""#));
    let time = time.and_then(|rest| rest.split(|byte| *byte == b'"').next());
    Ok(time.and_then(|time| String::from_utf8(time.to_vec()).ok()))
}

/// Why a file is not archived; it is as it was.
#[derive(Debug, thiserror::Error)]
pub enum NotArchived {
    /// It cannot be read, or what remains of it cannot be written.
    #[error("cannot read {path}, or write what remains of it")]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// Its lines do not follow from each other.
    #[error(
        "{path}:{number}: {fault}; `practice-hub verify` says what to do; nothing that is damaged is archived"
    )]
    NotWhole {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        number: u64,
        /// What is wrong.
        fault: Fault,
    },
    /// What is to take its place is not what remains of it.
    #[error("{path}:{number}: what is to take the place of this line is not what remains of it")]
    Other {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        number: u64,
    },
}

/// Writes what remains of a file, and proves its chain meanwhile. Returns how many transactions lose their bodies; 0: nothing is to
/// be done.
///
/// # Errors
/// [`NotArchived`].
pub fn write_remains(lane: &LaneName, path: &Path, out: &mut impl Write) -> Result<u64, NotArchived> {
    let io_failed = |source| NotArchived::Io { path: path.to_owned(), source };
    let mut walk = Walk::new(lane.clone());
    let (mut bodies, mut number) = (0, 0);
    let mut lines = Lines::open(path).map_err(io_failed)?;
    while let Some(text) = lines.next().map_err(io_failed)? {
        number += 1;
        let read = text.strip_suffix(b"\n").and_then(line::read);
        walk.step(read.as_ref()).map_err(|fault| NotArchived::NotWhole {
            path: path.to_owned(),
            number,
            fault,
        })?;
        match &read {
            Some(Line::Record(record)) if !record.is_entry() => {
                bodies += 1;
                let mut remains = Vec::new();
                line::write_archived(&mut remains, record);
                out.write_all(&remains)
            }
            _ => out.write_all(text),
        }
        .map_err(io_failed)?;
    }
    Ok(bodies)
}

/// Proves, line by line, that `remains` is what remains of a file.
///
/// # Errors
/// [`NotArchived`].
pub fn compare(path: &Path, remains: &Path) -> Result<(), NotArchived> {
    let io_failed = |path: &Path, source| NotArchived::Io { path: path.to_owned(), source };
    let mut number = 0;
    let mut before = Lines::open(path).map_err(|source| io_failed(path, source))?;
    let mut after = Lines::open(remains).map_err(|source| io_failed(remains, source))?;
    loop {
        number += 1;
        let old = before.next().map_err(|source| io_failed(path, source))?;
        let new = after.next().map_err(|source| io_failed(remains, source))?;
        match (old, new) {
            (None, None) => return Ok(()),
            (Some(old), Some(new)) if old == new || remains_of(old).as_deref() == Some(new) => {}
            _ => return Err(NotArchived::Other { path: path.to_owned(), number }),
        }
    }
}

/// What remains of a transaction's line; `None`: it is none, or stays as it is.
fn remains_of(text: &[u8]) -> Option<Vec<u8>> {
    match text.strip_suffix(b"\n").and_then(line::read) {
        Some(Line::Record(record)) if !record.is_entry() => {
            let mut remains = Vec::new();
            line::write_archived(&mut remains, &record);
            Some(remains)
        }
        _ => None,
    }
}

/// Whether a file has lost bodies to an archive.
///
/// # Errors
/// The system's error.
pub fn has_archived(path: &Path) -> io::Result<bool> {
    let mut lines = Lines::open(path)?;
    while let Some(text) = lines.next()? {
        if text.starts_with(line::ARCHIVED_START) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The lines of a file, one at a time, each with its newline.
struct Lines {
    file: BufReader<File>,
    text: Vec<u8>,
}

impl Lines {
    fn open(path: &Path) -> io::Result<Self> {
        Ok(Self { file: BufReader::with_capacity(BUFFER_BYTES, File::open(path)?), text: Vec::new() })
    }

    fn next(&mut self) -> io::Result<Option<&[u8]>> {
        self.text.clear();
        let length = self.file.read_until(b'\n', &mut self.text)?;
        Ok((length > 0).then_some(&self.text[..]))
    }
}
