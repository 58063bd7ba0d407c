//! Walks the files of a lane and names each sequence that is missing, altered, swapped or repeated.
//!
//! Reads only and needs no lock, so it can run beside the hub. Lines beyond the barrier of a running hub may then be
//! incomplete; a line without its end at the end of the last file is reported as torn, not as a fault.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Seek as _, SeekFrom};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use pgw_core::transaction::{Epoch, Sequence};
use pgw_core::wire::signature::KeyId;
use uuid::Uuid;

use super::gateways::{Gateways, KeyState, ListedGateway};
use super::store::line::{self, Head, Line};
use super::store::walk::{Fault, Walk};
use super::store::{LaneName, StoreError, Through, ndjson};

/// Most faults that are listed for one lane; the rest are counted.
const MOST_FAULTS: usize = 100;

/// The result for a lane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedLane {
    /// Its full name.
    pub lane: LaneName,
    /// Number of stored transactions.
    pub transactions: u64,
    /// Transactions that were numbered again after a fork.
    pub advances: u64,
    /// Lines of a later version.
    pub others: u64,
    /// Lost sequences that a person wrote off.
    pub voids: Vec<WrittenOff>,
    /// Sequences that are damaged in its files, but that its gateway sent again: the copies are beside them.
    pub recovered: Vec<(Epoch, std::ops::RangeInclusive<Sequence>)>,
    /// The lane's ends, epochs oldest first.
    pub watermarks: Vec<Through>,
    /// The newest signature of each epoch that was verified, and those that could not be, in the order of the files.
    pub heads: Vec<VerifiedHead>,
    /// Bytes of a last line without its end.
    pub torn_bytes: u64,
    /// File, line (from 1) and fault; at most a hundred.
    pub faults: Vec<(PathBuf, u64, Fault)>,
    /// Number of all faults.
    pub faults_total: u64,
}

/// Sequences of one epoch that a person wrote off.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WrittenOff {
    /// Their epoch.
    pub epoch: Epoch,
    /// The first.
    pub from: Sequence,
    /// The last.
    pub to: Sequence,
    /// The person's reason.
    pub reason: String,
}

/// The newest signature that an epoch has of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VerifiedHead {
    /// The number, and the chain value there.
    pub at: Through,
    /// The key.
    pub key: KeyId,
    /// Whether the signature was verified; else the list of gateways does not have the key for this gateway.
    pub verified: bool,
    /// The key is revoked by now.
    pub revoked: bool,
}

impl VerifiedLane {
    fn of(lane: &LaneName) -> Self {
        Self {
            lane: lane.clone(),
            transactions: 0,
            advances: 0,
            others: 0,
            voids: Vec::new(),
            recovered: Vec::new(),
            watermarks: Vec::new(),
            heads: Vec::new(),
            torn_bytes: 0,
            faults: Vec::new(),
            faults_total: 0,
        }
    }

    fn head(&mut self, head: VerifiedHead) {
        let same = |known: &VerifiedHead| known.at.epoch == head.at.epoch && known.key == head.key;
        self.heads.retain(|known| !same(known));
        self.heads.push(head);
    }

    fn void(&mut self, watermark: &Through, reason: &str) {
        let sequence = watermark.through;
        match self.voids.last_mut() {
            Some(last)
                if last.epoch == watermark.epoch && last.to + 1 == sequence && last.reason == reason =>
            {
                last.to = sequence;
            }
            _ => self.voids.push(WrittenOff {
                epoch: watermark.epoch,
                from: sequence,
                to: sequence,
                reason: reason.to_owned(),
            }),
        }
    }
}

/// Where a transaction lies that a later line may refer to.
#[derive(Clone, Copy)]
struct LineAt {
    file: usize,
    offset: u64,
    length: u64,
}

/// What the gateway has sent again, by number and by id.
struct Copies {
    numbers: HashMap<(Epoch, Sequence), LineAt>,
    ids: HashMap<Uuid, LineAt>,
    used: Vec<(Epoch, Sequence)>,
}

impl Copies {
    /// Of several copies of a number the last counts.
    fn read(again: &[OpenFile], file: usize) -> Result<Self, StoreError> {
        let mut copies = Self { numbers: HashMap::new(), ids: HashMap::new(), used: Vec::new() };
        for_lines(again, |_, _, offset, text| {
            let place = LineAt { file, offset, length: text.len() as u64 };
            match line::read(text) {
                Some(Line::Record(record)) => {
                    copies.numbers.insert((record.watermark.epoch, record.watermark.through), place);
                    copies.ids.insert(record.id, place);
                }
                Some(Line::Void { watermark, .. }) => {
                    copies.numbers.insert((watermark.epoch, watermark.through), place);
                }
                _ => {}
            }
        })?;
        Ok(copies)
    }

    /// Continues with a copy, if one follows.
    fn step(&mut self, walk: &mut Walk, files: &[OpenFile], number: (Epoch, Sequence)) -> bool {
        let text = self.numbers.get(&number).and_then(|place| load(files, place));
        let read = text.as_deref().and_then(line::read);
        let mut trial = walk.clone();
        if read.is_none() || trial.step(read.as_ref(), None).is_err() {
            return false;
        }
        *walk = trial;
        self.used.push(number);
        true
    }

    /// Continues with copies as long as they follow, at most through this number.
    fn fill(&mut self, walk: &mut Walk, files: &[OpenFile], epoch: Epoch, through: Sequence) -> u64 {
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

/// Walks all files of a lane, and verifies its gateway's signatures with the keys of the list.
///
/// # Errors
/// [`StoreError`] when a file cannot be read.
pub fn lane(directory: &Path, name: &LaneName, list: &Gateways) -> Result<VerifiedLane, StoreError> {
    let mut files = open_all(directory, name)?;
    let own = files.len();
    files.extend(OpenFile::open(ndjson::again_path(directory, name))?);
    let copies = Copies::read(&files[own..], own)?;
    let mut advanced: HashMap<Uuid, Option<LineAt>> = HashMap::new();
    // Only transactions that an advance refers to have to be found again; most lanes have none, and nothing is read
    // twice.
    for_lines(&files[..own], |_, _, _, text| {
        if text.starts_with(br#"{"pgw":"advance""#)
            && let Some(Line::Advance { id, .. }) = line::read(text)
        {
            advanced.insert(id, copies.ids.get(&id).copied());
        }
    })?;
    let (walk, report) = (Walk::from_first(name.clone()), VerifiedLane::of(name));
    let listed = list.get(&name.practice, &name.gateway);
    let mut check = Check { files: &files, walk, copies, advanced, listed, report };
    let torn_bytes = for_lines(&files[..own], |file, number, offset, text| {
        check.line(LineAt { file, offset, length: text.len() as u64 }, number, text);
    })?;
    let Check { walk, copies, report, .. } = check;
    Ok(VerifiedLane {
        torn_bytes,
        watermarks: walk.watermarks().to_vec(),
        recovered: ranges(copies.used),
        ..report
    })
}

/// A lane being walked, line by line.
struct Check<'a> {
    files: &'a [OpenFile],
    walk: Walk,
    copies: Copies,
    /// What the advances refer to, and where those transactions are.
    advanced: HashMap<Uuid, Option<LineAt>>,
    listed: Option<&'a ListedGateway>,
    report: VerifiedLane,
}

impl Check<'_> {
    fn line(&mut self, at: LineAt, number: u64, text: &[u8]) {
        let read = line::read(text);
        self.fill_before(read.as_ref());
        let known = match &read {
            Some(Line::Advance { id, .. }) => self.advanced.get(id).and_then(Option::as_ref),
            _ => None,
        };
        let known = known.and_then(|at| load(self.files, at));
        let known = known.as_deref().and_then(line::read);
        let content = match &known {
            Some(Line::Record(record)) => Some(record.as_ref()),
            _ => None,
        };
        if read.is_none() && text.starts_with(line::HEAD_START) {
            let (epoch, after) = self.walk.last();
            return self.fault(at, number, Fault::UnreadableHead { epoch, after });
        }
        let before = self.walk.clone();
        let mut step =
            self.walk.step(read.as_ref(), content).map_err(|fault| self.between(at, number, fault));
        if let (Ok(()), Some(Line::Head(head))) = (&step, &read) {
            step = self.head(head);
        }
        if let Err(fault) = &step
            && self.copy_replaces(before, fault, read.as_ref())
        {
            step = Ok(());
        }
        self.count(at, read.as_ref());
        let lost = match (&read, &known) {
            (Some(Line::Advance { watermark, id }), None) => {
                Some(Fault::Lost { epoch: watermark.epoch, sequence: watermark.through, id: *id })
            }
            _ => None,
        };
        for fault in step.err().into_iter().chain(lost) {
            self.fault(at, number, fault);
        }
    }

    fn fault(&mut self, at: LineAt, number: u64, fault: Fault) {
        self.report.faults_total += 1;
        if self.report.faults.len() < MOST_FAULTS {
            self.report.faults.push((self.files[at.file].path.clone(), number, fault));
        }
    }

    /// A file that begins with other ends than the one before it ends with does not follow it.
    fn between(&self, at: LineAt, number: u64, fault: Fault) -> Fault {
        let before = at.file.checked_sub(1).and_then(|before| self.files.get(before));
        let name = before.and_then(|file| file.path.file_name());
        match fault {
            Fault::Watermarks { epoch, after } if number == 1 => {
                Fault::File { previous: name.map(|name| name.to_string_lossy().into_owned()), epoch, after }
            }
            other => other,
        }
    }

    /// Verifies a signature that belongs to the lines before it.
    fn head(&mut self, head: &Head) -> Result<(), Fault> {
        let Head { at, signature, key } = *head;
        let listed = self.listed.and_then(|gateway| gateway.key(key));
        if let Some(listed) = listed
            && !listed.key.verify_head(&self.report.lane, at.epoch, at.through, at.chain, &signature)
        {
            return Err(Fault::Signature { epoch: at.epoch, sequence: at.through, key });
        }
        let revoked = listed.is_some_and(|listed| listed.state == KeyState::Revoked);
        self.report.head(VerifiedHead { at, key, verified: listed.is_some(), revoked });
        Ok(())
    }

    /// What is missing before this line may have been sent again.
    fn fill_before(&mut self, read: Option<&Line<'_>>) {
        let Self { files, walk, copies, report, .. } = self;
        match read {
            Some(Line::Group(watermarks)) => {
                for watermark in watermarks {
                    report.transactions += copies.fill(walk, files, watermark.epoch, watermark.through);
                }
            }
            Some(Line::Head(head)) => {
                report.transactions += copies.fill(walk, files, head.at.epoch, head.at.through);
            }
            Some(line) => {
                if let Some(watermark) = line.watermark() {
                    let before = watermark.through.saturating_sub(1);
                    report.transactions += copies.fill(walk, files, watermark.epoch, before);
                }
            }
            None => {}
        }
    }

    /// Whether a copy replaces a line that does not follow; then the walk continues after it.
    fn copy_replaces(&mut self, before: Walk, fault: &Fault, read: Option<&Line<'_>>) -> bool {
        let number = match (fault, read.and_then(Line::watermark)) {
            (Fault::Repeated { epoch, sequence, .. }, _)
                if self.copies.used.contains(&(*epoch, *sequence)) =>
            {
                // Its copy is already counted.
                self.walk = before;
                return true;
            }
            (Fault::Unreadable { epoch, after }, _) => (*epoch, after + 1),
            (_, Some(watermark)) => (watermark.epoch, watermark.through),
            (_, None) => (Epoch(Uuid::nil()), 0),
        };
        let mut trial = before;
        if !self.copies.step(&mut trial, self.files, number) {
            return false;
        }
        self.walk = trial;
        self.report.transactions += u64::from(read.is_none());
        true
    }

    fn count(&mut self, at: LineAt, read: Option<&Line<'_>>) {
        match read {
            Some(Line::Record(record)) => {
                self.report.transactions += 1;
                if let Some(place) = self.advanced.get_mut(&record.id) {
                    *place = Some(at);
                }
            }
            Some(Line::Advance { .. }) => self.report.advances += 1,
            Some(Line::Void { watermark, reason, .. }) => self.report.void(watermark, reason),
            Some(Line::Other(_)) => self.report.others += 1,
            Some(Line::Group(_) | Line::Head(_)) | None => {}
        }
    }
}

/// Merges neighbours.
pub(super) fn ranges(
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

/// Walks every lane below `directory`.
///
/// # Errors
/// [`StoreError`] when a directory or file cannot be read.
pub fn all(directory: &Path, list: &Gateways) -> Result<Vec<VerifiedLane>, StoreError> {
    ndjson::lanes_in(directory)?.iter().map(|name| lane(directory, name, list)).collect()
}

/// A file of a lane that stays the same, whatever is renamed meanwhile.
struct OpenFile {
    path: PathBuf,
    file: File,
}

impl OpenFile {
    /// `None`: it does not exist.
    fn open(path: PathBuf) -> Result<Option<Self>, StoreError> {
        match File::open(&path) {
            Ok(file) => Ok(Some(Self { path, file })),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(StoreError::Io { action: "open", path, source }),
        }
    }
}

/// Opens all files of a lane. Where one rotates meanwhile the list is made again: it would lack that file.
fn open_all(directory: &Path, name: &LaneName) -> Result<Vec<OpenFile>, StoreError> {
    let mut paths = ndjson::files_of(directory, name)?;
    loop {
        let opened: Vec<_> = paths.iter().cloned().map(OpenFile::open).collect::<Result<_, _>>()?;
        let again = ndjson::files_of(directory, name)?;
        if again == paths {
            return Ok(opened.into_iter().flatten().collect());
        }
        paths = again;
    }
}

/// Passes every complete line with its file's index, its number from 1 and its offset; returns the bytes after the
/// last.
fn for_lines(files: &[OpenFile], mut show: impl FnMut(usize, u64, u64, &[u8])) -> Result<u64, StoreError> {
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
