//! What is kept beside a lane: transactions that their gateway has signed and that do not continue the lane's line, because they
//! are of another history of it. They are no part of the line, and make no id known.
//!
//! - `{lane}.late.ndjson`: what arrived so, each once by epoch, number and chain value, with its signature; at most [`MOST_ROWS`]
//!   and [`MOST_BYTES`]
//! - `{lane}.late-{time}-{number}.ndjson`: files of the lane that came after a part that was given up (`practice-hub lane admit`)
//!
//! Lines are those of a lane ([`super::line`]). Only transactions whose content is not in the line need a person.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use pgw_core::chain::ChainValue;
use pgw_core::transaction::{Epoch, Sequence};

use super::files::{children, create_directory, directory_of, failed, open_synced};
use super::line::{self, Line};
use super::points::{Files, Point, value_in};
use super::{Entry, LaneName, LateKept, StoreError};

/// Most transactions that are kept beside a lane.
pub const MOST_ROWS: usize = 10_000;
/// Most bytes of their file.
pub const MOST_BYTES: u64 = 256 << 20;
/// In the names of files that were set aside, after the lane's.
const SET_ASIDE: &str = ".late-";

/// The file of what arrived.
#[must_use]
pub fn path(directory: &Path, lane: &LaneName) -> PathBuf {
    directory_of(directory, lane).join(format!("{}.late.ndjson", lane.lane))
}

/// The name of a file of the lane that is set aside.
pub(super) fn set_aside_path(base: &Path, time: u64, ordinal: u32) -> PathBuf {
    base.with_extension(format!("{}{time:014}-{ordinal:06}.ndjson", &SET_ASIDE[1..]))
}

/// All files beside a lane that exist: those that were set aside, in the order of time and line, then the one of what arrived.
///
/// # Errors
/// [`StoreError`] when the directory cannot be listed.
pub fn files(directory: &Path, lane: &LaneName) -> Result<Vec<PathBuf>, StoreError> {
    let mut paths: Vec<PathBuf> = set_aside(directory, lane)?.into_iter().map(|(_, path)| path).collect();
    paths.extend(Some(path(directory, lane)).filter(|path| path.exists()));
    Ok(paths)
}

/// The files that were set aside, each with the time in its name.
fn set_aside(directory: &Path, lane: &LaneName) -> Result<Vec<(String, PathBuf)>, StoreError> {
    let above = directory_of(directory, lane);
    if !above.is_dir() {
        return Ok(Vec::new());
    }
    let time = |name: &str| {
        let rest = name.strip_prefix(lane.lane.as_str())?.strip_prefix(SET_ASIDE)?;
        Some(rest.strip_suffix(".ndjson")?.split_once('-')?.0.to_owned())
    };
    let named = |(name, path): (String, PathBuf)| Some((time(&name)?, path));
    let mut found: Vec<_> = children(&above)?.into_iter().filter_map(named).collect();
    found.sort();
    Ok(found)
}

/// How much is beside a lane.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BesideLane {
    /// Transactions that arrived so.
    pub rows: u64,
    /// Files that were set aside.
    pub files: u64,
}

/// Counts what is beside a lane; it may be in the line as well by now, which `practice-hub lane show` says.
///
/// # Errors
/// [`StoreError`].
pub fn count(directory: &Path, lane: &LaneName) -> Result<BesideLane, StoreError> {
    let mut rows = 0;
    lines(&path(directory, lane), |text| {
        rows += u64::from(text.starts_with(line::RECORD_START));
    })?;
    Ok(BesideLane { rows, files: set_aside(directory, lane)?.len() as u64 })
}

/// Passes each whole line of a file, without its end; nothing where there is no file.
///
/// # Errors
/// [`StoreError`] when it cannot be read.
pub fn lines(path: &Path, mut show: impl FnMut(&[u8])) -> Result<(), StoreError> {
    let file = match File::open(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        opened => opened.map_err(failed("open", path))?,
    };
    let mut lines = BufReader::with_capacity(256 * 1024, file);
    let mut text = Vec::new();
    loop {
        text.clear();
        if lines.read_until(b'\n', &mut text).map_err(failed("read", path))? == 0 {
            return Ok(());
        }
        if let Some(line) = text.strip_suffix(b"\n") {
            show(line);
        }
    }
}

/// What is beside one lane of an open store.
pub(super) struct Late {
    path: PathBuf,
    /// The numbers in the file of what arrived, and their chain values.
    known: HashMap<(Epoch, Sequence), Vec<ChainValue>>,
    rows: usize,
    /// The files that were set aside, those of one time together.
    set_aside: Vec<Files>,
}

impl Late {
    pub(super) fn open(directory: &Path, lane: &LaneName) -> Result<Self, StoreError> {
        let mut late =
            Self { path: path(directory, lane), known: HashMap::new(), rows: 0, set_aside: Vec::new() };
        let mut of: Option<String> = None;
        for (time, path) in set_aside(directory, lane)? {
            let length = fs::metadata(&path).map_err(failed("read", &path))?.len();
            if of.as_ref() != Some(&time) {
                late.set_aside.push(Files::new());
                of = Some(time);
            }
            late.set_aside.last_mut().unwrap_or(&mut Files::new()).push((path, length));
        }
        let path = late.path.clone();
        lines(&path, |text| {
            if let Some(Line::Record(record)) = line::read(text) {
                late.know(record.watermark.epoch, record.watermark.through, record.watermark.chain);
            }
        })?;
        Ok(late)
    }

    fn know(&mut self, epoch: Epoch, sequence: Sequence, chain: ChainValue) {
        self.known.entry((epoch, sequence)).or_default().push(chain);
        self.rows += 1;
    }

    /// The chain values at a number.
    pub(super) fn values_at(&self, epoch: Epoch, sequence: Sequence) -> Result<Vec<ChainValue>, StoreError> {
        let mut values = self.known.get(&(epoch, sequence)).cloned().unwrap_or_default();
        for files in &self.set_aside {
            values.extend(value_in(files, Point { epoch, sequence })?);
        }
        Ok(values)
    }

    /// Appends what is new, as far as there is room; on stable storage when it returns.
    pub(super) fn keep(&mut self, entries: &[&Entry]) -> Result<LateKept, StoreError> {
        let mut kept = LateKept::default();
        if let Some(above) = self.path.parent() {
            create_directory(above)?;
        }
        let file = open_synced(&self.path)?;
        let length = file.metadata().map_err(failed("read", &self.path))?.len();
        // A line that a crash has cut short ends here and is not a valid line.
        let mut text = Vec::new();
        let mut last = [b'\n'];
        if length > 0 {
            file.read_exact_at(&mut last, length - 1).map_err(failed("read", &self.path))?;
        }
        if last != *b"\n" {
            text.push(b'\n');
        }
        let mut new: Vec<(Epoch, Sequence, ChainValue)> = Vec::new();
        for entry in entries {
            let (envelope, Some(body)) = (&entry.envelope, &entry.body) else { continue };
            let number = (envelope.epoch, envelope.sequence, envelope.chain);
            if new.contains(&number) || self.values_at(number.0, number.1)?.contains(&number.2) {
                continue;
            }
            let before = text.len();
            line::write_record(&mut text, envelope, body);
            if let (Some(key), Some(signature)) = (entry.signed_by, &envelope.signature) {
                line::write_head(&mut text, envelope, signature, key);
            }
            if self.rows + new.len() >= MOST_ROWS || length + text.len() as u64 > MOST_BYTES {
                text.truncate(before);
                kept.no_room += 1;
                continue;
            }
            new.push(number);
        }
        if !new.is_empty() {
            file.write_all_at(&text, length).map_err(failed("write", &self.path))?;
            pgw_durable::sync_data(&file).map_err(failed("sync", &self.path))?;
        }
        kept.new = new.len() as u64;
        for (epoch, sequence, chain) in new {
            self.know(epoch, sequence, chain);
        }
        Ok(kept)
    }
}
