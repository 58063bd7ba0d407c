//! The end of a lane file after a restart: the last group is read and checked, and a torn end is found.
//!
//! A group that was never synced can be torn anywhere, not only at its last line: a power cut may keep its later pages
//! and lose its earlier ones. Each group begins with a line that holds the watermarks before it, so the last group can
//! be checked as a whole, with its chain, without reading anything before it. A later group is written only after the
//! earlier one was synced. What is lost for good is a group of its own, and the last of its file:
//! what comes again after that has a file of its own.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::line::{self, GROUP_START, Line};
use super::walk::{LostPart, Walk};
use super::{LaneName, Through};

const BLOCK: u64 = 64 * 1024;

/// The state of a file's end.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Tail {
    /// Everything before this offset is good; everything after it is torn.
    pub(super) good: u64,
    /// Length of the file.
    pub(super) length: u64,
    /// The watermarks at `good`; `None`: the file has no whole group.
    pub(super) watermarks: Option<Vec<Through>>,
    /// What its last groups say is lost for good.
    pub(super) lost: Vec<LostPart>,
}

/// Reads the end of the file.
pub(super) fn read(file: &File, lane: &LaneName) -> io::Result<Tail> {
    let length = file.metadata()?.len();
    let mut before = length;
    while let Some(start) = last_group(file, before)? {
        if let Some((good, walk)) = check_group(file, lane, start, length)? {
            let (watermarks, lost) =
                (Some(walk.watermarks().to_vec()), lost_through(file, lane, start, walk)?);
            return Ok(Tail { good, length, watermarks, lost });
        }
        before = start;
    }
    Ok(Tail { good: 0, length, watermarks: None, lost: Vec::new() })
}

/// What the last groups of a file say is lost; `walk` is over the last one.
fn lost_through(file: &File, lane: &LaneName, start: u64, walk: Walk) -> io::Result<Vec<LostPart>> {
    let (mut lost, mut walk, mut before) = (Vec::new(), walk, start);
    while !walk.lost().is_empty() {
        lost.splice(..0, walk.lost().iter().cloned());
        let Some(start) = last_group(file, before)? else { break };
        let Some((_, earlier)) = check_group(file, lane, start, before)? else { break };
        (walk, before) = (earlier, start);
    }
    Ok(lost)
}

/// The start of the last group whose beginning lies before `before`.
pub(super) fn last_group(file: &File, before: u64) -> io::Result<Option<u64>> {
    let mut end = before;
    let mut buffer = Vec::new();
    while end > 0 {
        let start = end.saturating_sub(BLOCK);
        // A group may begin at the seam of two blocks: read on past the end by the length of its beginning.
        let stop = (end + GROUP_START.len() as u64 - 1).min(before);
        // The byte before shows whether a line begins at `start`.
        let from = start.saturating_sub(1);
        buffer.resize(usize::try_from(stop - from).unwrap_or_default(), 0);
        file.read_exact_at(&mut buffer, from)?;
        let found = buffer.windows(GROUP_START.len()).rposition(|window| window == GROUP_START);
        let mut limit = found;
        while let Some(at) = limit {
            let offset = from + at as u64;
            if offset == 0 || (at > 0 && buffer[at - 1] == b'\n') {
                return Ok(Some(offset));
            }
            limit = buffer[..at].windows(GROUP_START.len()).rposition(|window| window == GROUP_START);
        }
        end = start;
    }
    Ok(None)
}

/// Checks the lines of the group that begins at `start`; `None`: not even its first line is complete.
fn check_group(file: &File, lane: &LaneName, start: u64, end: u64) -> io::Result<Option<(u64, Walk)>> {
    let mut bytes = vec![0; usize::try_from(end - start).unwrap_or_default()];
    file.read_exact_at(&mut bytes, start)?;
    let mut walk = Walk::new(lane.clone());
    let mut good = 0;
    let mut begun = false;
    for text in bytes.split_inclusive(|byte| *byte == b'\n') {
        let Some(text_line) = text.strip_suffix(b"\n") else { break };
        let read = line::read(text_line);
        if !begun && !matches!(read, Some(Line::Group(_))) {
            return Ok(None);
        }
        if walk.step(read.as_ref()).is_err() {
            break;
        }
        begun = true;
        good += text.len() as u64;
    }
    Ok(begun.then_some((start + good, walk)))
}
