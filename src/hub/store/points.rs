//! The chain value at a number of a lane's line, from its files.
//!
//! Each file, and each group in it, begins with the ends of the lane before it. So the file and then the group that have a number
//! are found by bisection, and only that group is read.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Seek as _, SeekFrom};
use std::path::PathBuf;

use pgw_core::chain::ChainValue;
use pgw_core::transaction::{Epoch, Sequence};

use super::StoreError;
use super::Through;
use super::files::failed;
use super::line::{self, GROUP_START, Line};
use super::row::begins;
use super::tail::last_group;

/// A number of an epoch.
#[derive(Debug, Clone, Copy)]
pub(super) struct Point {
    pub(super) epoch: Epoch,
    pub(super) sequence: Sequence,
}

impl Point {
    /// Whether the line is at this number, or beyond it.
    pub(super) fn is_in(&self, ends: &[Through]) -> bool {
        ends.iter().any(|end| end.epoch == self.epoch && self.sequence <= end.through)
    }
}

/// Files in the order of the line, each with the bytes of it that count.
pub(super) type Files = Vec<(PathBuf, u64)>;

/// A number of the line, as its files have it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FoundPoint {
    pub(super) chain: ChainValue,
    /// Its body was archived.
    pub(super) archived: bool,
}

/// The value at a number in these files; `None`: they do not have it.
pub(super) fn value_in(files: &Files, point: Point) -> Result<Option<ChainValue>, StoreError> {
    Ok(found_in(files, point)?.map(|found| found.chain))
}

/// The number in these files; `None`: they do not have it.
pub(super) fn found_in(files: &Files, point: Point) -> Result<Option<FoundPoint>, StoreError> {
    for (path, length) in files.iter().rev() {
        let read = failed("read", path);
        let file = match File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            opened => opened.map_err(failed("open", path))?,
        };
        match begins(&file) {
            Err(error) => return Err(read(error)),
            // It has lost its beginning, or the number is before it.
            Ok(None) => {}
            Ok(Some(ends)) if point.is_in(&ends) => {}
            Ok(Some(_)) => return in_file(&file, *length, point).map_err(read),
        }
    }
    Ok(None)
}

fn in_file(file: &File, length: u64, point: Point) -> io::Result<Option<FoundPoint>> {
    let start = group_with(file, length, point)?;
    let mut file = file;
    file.seek(SeekFrom::Start(start))?;
    let mut lines = BufReader::with_capacity(64 * 1024, file);
    let (mut text, mut at) = (Vec::new(), start);
    while at < length {
        text.clear();
        let read = lines.read_until(b'\n', &mut text)? as u64;
        if read == 0 {
            break;
        }
        at += read;
        let Some(line) = text.strip_suffix(b"\n").and_then(line::read) else { continue };
        // Of what is lost for good only the ends are known.
        if let Line::Lost { until, .. } = &line {
            let is_it = |end: &&Through| (end.epoch, end.through) == (point.epoch, point.sequence);
            if let Some(end) = until.iter().find(is_it) {
                return Ok(Some(FoundPoint { chain: end.chain, archived: false }));
            }
            continue;
        }
        match line.watermark() {
            Some(found) if found.epoch == point.epoch && found.through == point.sequence => {
                let archived = matches!(&line, Line::Archived(_));
                return Ok(Some(FoundPoint { chain: found.chain, archived }));
            }
            // Nothing of it is in a later group: the line has a fault here.
            _ if matches!(&line, Line::Group(ends) if point.is_in(ends)) => break,
            _ => {}
        }
    }
    Ok(None)
}

/// Where the last group begins before which the line does not have the number.
fn group_with(file: &File, length: u64, point: Point) -> io::Result<u64> {
    let (mut best, mut low, mut high) = (0, 1, length);
    // The groups that begin from `low` to before `high` are undecided.
    while low < high {
        let middle = low + (high - low) / 2;
        let until = middle.saturating_add(GROUP_START.len() as u64).min(length);
        let found = last_group(file, until)?.filter(|start| *start >= low);
        match found {
            Some(start) if has(file, start, point)? => high = start,
            Some(start) => (best, low) = (start, middle + 1),
            None => low = middle + 1,
        }
    }
    Ok(best)
}

/// Whether the line has the number before the group that begins here.
fn has(file: &File, start: u64, point: Point) -> io::Result<bool> {
    let mut file = file;
    file.seek(SeekFrom::Start(start))?;
    Ok(begins_here(file)?.is_some_and(|ends| point.is_in(&ends)))
}

fn begins_here(file: &File) -> io::Result<Option<Vec<Through>>> {
    let mut text = Vec::new();
    BufReader::with_capacity(4 * 1024, file).read_until(b'\n', &mut text)?;
    Ok(text.strip_suffix(b"\n").and_then(line::read).and_then(|line| match line {
        Line::Group(ends) => Some(ends),
        _ => None,
    }))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use pgw_core::chain::Digest;
    use pgw_core::transaction::{Body, Clock, Kind, LaneName, Transaction, TransactionId};
    use pgw_core::wire::envelope::Envelope;
    use uuid::Uuid;

    use super::*;

    fn lane() -> LaneName {
        "B86022/gw1/clinical".parse().unwrap()
    }

    /// Numbers `from` to `through` of an epoch in one group; returns the ends after it.
    fn group(
        file: &mut File,
        ends: &[Through],
        epoch: u128,
        numbers: std::ops::RangeInclusive<u64>,
    ) -> Vec<Through> {
        let epoch = Epoch(Uuid::from_u128(epoch));
        let mut out = Vec::new();
        line::write_group(&mut out, "t", ends);
        let mut ends = ends.to_vec();
        for sequence in numbers {
            let transaction = Transaction {
                id: TransactionId(Uuid::from_u128(u128::from(sequence))),
                time: 0,
                event_type: "t".into(),
                kind: Kind::Transaction,
                content_type: "t/p".into(),
                sender: "x".into(),
                given_sender: None,
                key: String::new(),
                shows_key: false,
                correlation_id: String::new(),
                trace_parent: String::new(),
                clock: Clock::Synced,
                body: Body::new(vec![b'x'; usize::try_from(sequence * 97 % 3_000).unwrap()]),
            };
            let mut chain = ChainValue([0; 32]);
            chain.0[..8].copy_from_slice(&sequence.to_be_bytes());
            chain.0[8..24].copy_from_slice(epoch.0.as_bytes());
            let envelope = Envelope::new(&lane(), epoch, sequence, chain, 0, &transaction);
            if sequence % 5 == 0 {
                line::write_advance(&mut out, &envelope, Digest([1; 32]));
            } else {
                line::write_record(&mut out, &envelope, transaction.body.as_bytes());
            }
            let end = Through { epoch, through: sequence, chain };
            match ends.last_mut().filter(|last| last.epoch == epoch) {
                Some(last) => *last = end,
                None => ends.push(end),
            }
        }
        file.write_all(&out).unwrap();
        ends
    }

    #[test]
    fn every_number_is_found_and_no_other_and_nothing_beyond_what_counts() {
        let directory = tempfile::tempdir().unwrap();
        let (mut files, mut ends, mut number) = (Files::new(), Vec::new(), [0, 0]);
        for place in 0..4 {
            let path = directory.path().join(place.to_string());
            let mut file = File::options().create(true).truncate(true).write(true).open(&path).unwrap();
            for size in 1..9 {
                let epoch = usize::from(place >= 2);
                let from = number[epoch] + 1;
                number[epoch] += size;
                ends = group(&mut file, &ends, epoch as u128 + 1, from..=number[epoch]);
            }
            files.push((path.clone(), std::fs::metadata(path).unwrap().len()));
        }
        let value = |files: &Files, epoch: u128, sequence| {
            value_in(files, Point { epoch: Epoch(Uuid::from_u128(epoch)), sequence }).unwrap()
        };
        for epoch in 1..=2 {
            for sequence in 1..=72_u64 {
                let found = value(&files, epoch, sequence).unwrap();
                assert_eq!(found.0[..8], sequence.to_be_bytes());
                assert_eq!(found.0[8..24], epoch.to_be_bytes());
            }
            assert_eq!((value(&files, epoch, 0), value(&files, epoch, 73)), (None, None));
        }
        assert_eq!(value(&files, 3, 1), None);
        // The last file counts only up to here: before its last group.
        let last = File::open(&files[3].0).unwrap();
        files[3].1 = last_group(&last, files[3].1).unwrap().unwrap();
        assert_eq!((value(&files, 2, 64).is_some(), value(&files, 2, 65)), (true, None));
    }
}
