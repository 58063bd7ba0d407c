//! The lines of a lane's files for `verify`: read once in their order, and copies that were sent again.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Seek as _, SeekFrom};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use pgw_core::chain::Digest;
use pgw_core::transaction::{Epoch, Sequence};
use uuid::Uuid;

use crate::store::line::{self, Line};
use crate::store::walk::Walk;
use crate::store::{LaneName, StoreError, ndjson};

/// Where a line lies.
#[derive(Clone, Copy)]
pub(super) struct LineAt {
    pub(super) file: usize,
    pub(super) offset: u64,
    pub(super) length: u64,
}

/// What the gateway has sent again, by number and by id.
pub(super) struct Copies {
    numbers: HashMap<(Epoch, Sequence), LineAt>,
    /// The contents of all of them.
    pub(super) contents: HashMap<Uuid, Vec<Digest>>,
    pub(super) used: Vec<(Epoch, Sequence)>,
}

impl Copies {
    /// Of several copies of a number the last counts.
    pub(super) fn read(again: &[OpenFile], file: usize) -> Result<Self, StoreError> {
        let mut copies = Self { numbers: HashMap::new(), contents: HashMap::new(), used: Vec::new() };
        for_lines(again, |_, _, offset, text| {
            let place = LineAt { file, offset, length: text.len() as u64 };
            if let Some(Line::Record(record)) = line::read(text) {
                copies.numbers.insert((record.watermark.epoch, record.watermark.through), place);
                copies.contents.entry(record.id).or_default().push(record.digest());
            }
        })?;
        Ok(copies)
    }

    /// Continues with a copy, if one follows.
    pub(super) fn step(&mut self, walk: &mut Walk, files: &[OpenFile], number: (Epoch, Sequence)) -> bool {
        let text = self.numbers.get(&number).and_then(|place| load(files, place));
        let read = text.as_deref().and_then(line::read);
        let mut trial = walk.clone();
        if read.is_none() || trial.step(read.as_ref()).is_err() {
            return false;
        }
        *walk = trial;
        self.used.push(number);
        true
    }

    /// Continues with copies as long as they follow, at most through this number.
    pub(super) fn fill(
        &mut self,
        walk: &mut Walk,
        files: &[OpenFile],
        epoch: Epoch,
        through: Sequence,
    ) -> u64 {
        let mut filled = 0;
        loop {
            let here = walk.watermark_of(epoch).through;
            if here >= through || !self.step(walk, files, (epoch, here + 1)) {
                return filled;
            }
            filled += 1;
        }
    }
}

/// Merges neighbours.
pub(crate) fn ranges(
    mut numbers: Vec<(Epoch, Sequence)>,
) -> Vec<(Epoch, std::ops::RangeInclusive<Sequence>)> {
    numbers.sort_by_key(|(epoch, sequence)| (epoch.0, *sequence));
    numbers.dedup();
    let mut ranges: Vec<(Epoch, std::ops::RangeInclusive<Sequence>)> = Vec::new();
    for (epoch, sequence) in numbers {
        match ranges.last_mut() {
            Some((of, range)) if *of == epoch && range.end() + 1 == sequence => {
                *range = *range.start()..=sequence;
            }
            _ => ranges.push((epoch, sequence..=sequence)),
        }
    }
    ranges
}

/// A file of a lane that stays the same, whatever is renamed meanwhile.
pub(super) struct OpenFile {
    pub(super) path: PathBuf,
    file: File,
}

impl OpenFile {
    /// `None`: it does not exist.
    pub(super) fn open(path: PathBuf) -> Result<Option<Self>, StoreError> {
        match File::open(&path) {
            Ok(file) => Ok(Some(Self { path, file })),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(StoreError::Io { action: "open", path, source }),
        }
    }
}

/// Opens all files of a lane, each in `archive` if it is there. Where one rotates meanwhile the list is made again: it would lack
/// that file.
pub(super) fn open_all(
    directory: &Path,
    archive: Option<&Path>,
    name: &LaneName,
) -> Result<Vec<OpenFile>, StoreError> {
    let mut paths = ndjson::files_of(directory, name)?;
    let archived = |path: &Path| Some(archive?.join(path.strip_prefix(directory).ok()?));
    let open = |path: &PathBuf| match archived(path).map(OpenFile::open).transpose()?.flatten() {
        Some(archived) => Ok(Some(archived)),
        None => OpenFile::open(path.clone()),
    };
    loop {
        let opened: Vec<_> = paths.iter().map(open).collect::<Result<_, _>>()?;
        let again = ndjson::files_of(directory, name)?;
        if again == paths {
            return Ok(opened.into_iter().flatten().collect());
        }
        paths = again;
    }
}

/// Passes every complete line with its file's index, its number from 1 and its offset; returns the bytes after the
/// last.
pub(super) fn for_lines(
    files: &[OpenFile],
    mut show: impl FnMut(usize, u64, u64, &[u8]),
) -> Result<u64, StoreError> {
    let mut torn = 0;
    for (index, OpenFile { path, file }) in files.iter().enumerate() {
        let failed = |source| StoreError::Io { action: "read", path: path.clone(), source };
        let mut file = file;
        file.seek(SeekFrom::Start(0)).map_err(failed)?;
        let mut lines = BufReader::with_capacity(256 * 1024, file);
        let (mut text, mut number, mut offset) = (Vec::new(), 0, 0);
        loop {
            text.clear();
            let length = lines.read_until(b'\n', &mut text).map_err(failed)? as u64;
            if length == 0 {
                break;
            }
            let Some(line) = text.strip_suffix(b"\n") else {
                torn += length;
                break;
            };
            number += 1;
            show(index, number, offset, line);
            offset += length;
        }
    }
    Ok(torn)
}

fn load(files: &[OpenFile], place: &LineAt) -> Option<Vec<u8>> {
    let mut text = vec![0; usize::try_from(place.length).ok()?];
    files.get(place.file)?.file.read_exact_at(&mut text, place.offset).ok()?;
    Some(text)
}
