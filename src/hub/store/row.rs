//! Do a lane's files follow on one another, from the first? Only then is the end of the last one the lane's end.
//!
//! Each file begins with a group, whose first line has the ends of the lane before it. They must be the ends with which the
//! file before it ends, and none at all in the first file. Only the first line and the last group of each file are read.
//! Where files do not follow there is a [`Hole`]: the lane ends before it. Its gateway sends the difference again, which is
//! stored after the last file before the hole, until that file ends where the next one begins: then the row is whole, and
//! the lane ends where its last file ends.

use std::collections::HashMap;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};

use pgw_core::numbering::{LostNumbers, Numbers};
use pgw_core::text::chain;

use super::files::{again_path, failed, files_of, lanes_in};
use super::line::{self, Line};
use super::tail::{self, Tail};
use super::walk::{LostPart, Walk};
use super::{LaneName, StoreError, Through};

/// Longest first line that is read, bytes.
const MOST_FIRST_LINE: u64 = 1 << 20;
/// How often a lane whose files rotate meanwhile is read again.
const TRIES: u32 = 5;

/// Files that are missing, or have lost their end: the lane ends before them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hole {
    /// The last file before it; `None`: it is at the lane's beginning.
    pub after: Option<PathBuf>,
    /// The first file after it.
    pub before: PathBuf,
    /// Where the lane ends before it, epochs oldest first.
    pub ends: Vec<Through>,
    /// Where the lane must be for that file to follow.
    pub until: Vec<Through>,
}

impl fmt::Display for Hole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let number =
            |path: &Path| -> Option<u32> { path.file_stem()?.to_str()?.rsplit_once('.')?.1.parse().ok() };
        let next = self.after.as_deref().and_then(number).unwrap_or(0) + 1;
        match number(&self.before) {
            Some(before) if before == next + 1 => write!(f, "file number {next} is missing")?,
            Some(before) if before > next => write!(f, "files number {next} to {} are missing", before - 1)?,
            Some(_) => f.write_str("a file has lost its end")?,
            None => write!(f, "file number {next} is missing, or more, or the end of the one before")?,
        }
        match &self.after {
            Some(after) => write!(f, ", between {} and {}", name(after), name(&self.before))?,
            None => write!(f, " before {}", name(&self.before))?,
        }
        for until in &self.until {
            let before = self.ends.iter().find(|end| end.epoch == until.epoch).map_or(0, |end| end.through);
            if before < until.through {
                write!(f, ": sequences {} to {} of epoch {}", before + 1, until.through, until.epoch)?;
            }
        }
        Ok(())
    }
}

/// A lane's files, as far as they follow on one another.
#[derive(Debug)]
pub(super) struct Row {
    /// Where the lane ends, epochs oldest first.
    pub(super) ends: Vec<Through>,
    /// The last file that belongs to the row, and the state of its end.
    pub(super) last: Option<(PathBuf, Tail)>,
    /// What comes after it.
    pub(super) hole: Option<Hole>,
    /// What it says is lost for good.
    pub(super) lost: Vec<LostNumbers>,
    /// Files between the last of the row and the hole's other side that do not even have a first line.
    pub(super) damaged: Vec<PathBuf>,
}

/// What is wrong with a lane's files.
#[derive(Debug, thiserror::Error)]
pub enum LaneTrouble {
    /// Some are missing.
    #[error("{0}; its gateway sends again what was in it")]
    Hole(Hole),
    /// They cannot be read: the lane is out of use.
    #[error("{}; the lane is out of use until that is corrected", chain(.0))]
    OutOfUse(StoreError),
}

/// A lane as its files have it.
#[derive(Debug)]
pub struct StoredLane {
    /// Its name.
    pub lane: LaneName,
    /// How far it is, epochs oldest first.
    pub ends: Vec<Through>,
    /// What is wrong with its files: some are missing after these ends, or they cannot be used.
    pub trouble: Option<LaneTrouble>,
}

/// All lanes without opening the store: only reads, beside a running hub.
///
/// # Errors
/// [`StoreError`] when a directory cannot be listed.
pub fn peek(directory: &Path) -> Result<Vec<StoredLane>, StoreError> {
    let stored = |lane: LaneName| match read(directory, &lane) {
        Ok(Row { ends, hole, .. }) => StoredLane { lane, ends, trouble: hole.map(LaneTrouble::Hole) },
        Err(error) => StoredLane { lane, ends: Vec::new(), trouble: Some(LaneTrouble::OutOfUse(error)) },
    };
    Ok(lanes_in(directory)?.into_iter().map(stored).collect())
}

/// Reads how far a lane's files follow on one another. Beside a running hub files may rotate meanwhile.
pub(super) fn read(directory: &Path, lane: &LaneName) -> Result<Row, StoreError> {
    let existing = || -> Result<Vec<PathBuf>, StoreError> {
        Ok(files_of(directory, lane)?.into_iter().filter(|path| path.exists()).collect())
    };
    let mut tries = 0;
    loop {
        tries += 1;
        let paths = existing()?;
        let row = of(&paths, &again_path(directory, lane), lane);
        let rotated = existing()? != paths;
        if !rotated || tries == TRIES {
            return row;
        }
    }
}

fn of(paths: &[PathBuf], again: &Path, lane: &LaneName) -> Result<Row, StoreError> {
    let mut row = Row { ends: Vec::new(), last: None, hole: None, lost: Vec::new(), damaged: Vec::new() };
    let mut lost: Vec<LostPart> = Vec::new();
    for path in paths {
        let file = File::open(path).map_err(failed("open", path))?;
        let Some(begins) = begins(&file).map_err(failed("read", path))? else {
            row.damaged.push(path.clone());
            continue;
        };
        if begins != row.ends && !bridged(again, lane, &row.ends, &begins).map_err(failed("read", again))? {
            let (after, before) = (row.last.as_ref().map(|(path, _)| path.clone()), path.clone());
            row.hole = Some(Hole { after, before, ends: row.ends.clone(), until: begins });
            break;
        }
        let tail = tail::read(&file, lane).map_err(failed("read", path))?;
        lost.extend_from_slice(&tail.lost);
        row.ends = tail.watermarks.clone().unwrap_or(begins);
        row.last = Some((path.clone(), tail));
        row.damaged.clear();
    }
    row.lost = lost.iter().map(|part| in_line(part, &row.ends)).collect();
    Ok(row)
}

/// A lost part as an answer names it: some of the epochs of then may have been set aside since.
fn in_line(part: &LostPart, ends: &[Through]) -> LostNumbers {
    let Numbers { epoch, from, through } = part.numbers;
    let newest = ends.iter().rev().map(|end| end.epoch).find(|epoch| part.line.contains(epoch));
    LostNumbers { epoch, from, through, newest: newest.unwrap_or(epoch) }
}

/// The ends with which a file begins; `None`: it has no whole first line of a group.
pub(super) fn begins(file: &File) -> io::Result<Option<Vec<Through>>> {
    let mut first = Vec::new();
    BufReader::new(file.take(MOST_FIRST_LINE)).read_until(b'\n', &mut first)?;
    Ok(first.strip_suffix(b"\n").and_then(line::read).and_then(|line| match line {
        Line::Group(watermarks) => Some(watermarks),
        _ => None,
    }))
}

/// Whether copies that the gateway has sent again lead from the one to the other.
fn bridged(again: &Path, lane: &LaneName, ends: &[Through], until: &[Through]) -> io::Result<bool> {
    let bytes = match fs::read(again) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        read => read?,
    };
    let mut copies = HashMap::new();
    for text in bytes.split(|byte| *byte == b'\n') {
        if let Some(at) = line::read(text).as_ref().and_then(Line::watermark) {
            copies.insert((at.epoch, at.through), text);
        }
    }
    let mut walk = Walk::new(lane.clone());
    if walk.step(Some(&Line::Group(ends.to_vec()))).is_err() {
        return Ok(false);
    }
    for end in until {
        for sequence in walk.watermark_of(end.epoch).through + 1..=end.through {
            let copy = copies.get(&(end.epoch, sequence)).and_then(|text| line::read(text));
            if copy.is_none() || walk.step(copy.as_ref()).is_err() {
                return Ok(false);
            }
        }
    }
    Ok(walk.watermarks() == until)
}
