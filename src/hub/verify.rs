//! Walks the files of a lane and names each sequence that is missing, altered, swapped, repeated or elsewhere than at the end of
//! the line; and what of the lane a person should know besides: rivals, what is missing for good, what is kept beside it.
//!
//! Reads only and needs no lock, so it can run beside the hub. Lines beyond the barrier of a running hub may then be
//! incomplete; a line without its end at the end of the last file is reported as torn, not as a fault.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use pgw_core::chain::Digest;
use pgw_core::numbering::Numbers;
use pgw_core::transaction::{Epoch, Sequence};
use pgw_core::wire::entry::Entry;
use pgw_core::wire::signature::KeyId;
use uuid::Uuid;

use super::gateways::{Gateways, KeyState, ListedGateway};
use super::missing::{self, MissingForGood};
use super::store::line::{self, Head, Line};
use super::store::walk::{Fault, Walk};
use super::store::{LaneName, StoreError, Through, late, ndjson};
use lines::{Copies, LineAt, OpenFile, for_lines, open_all};

pub(super) use lines::ranges;

mod lines;

/// Most faults that are listed for one lane; the rest are counted.
const MOST_FAULTS: usize = 100;

/// The result for a lane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedLane {
    /// Its full name.
    pub lane: LaneName,
    /// Number of stored transactions.
    pub transactions: u64,
    /// Stored transactions whose bodies were archived.
    pub archived: u64,
    /// Transactions that were numbered again after a fork.
    pub advances: u64,
    /// Lines of a later version.
    pub others: u64,
    /// Entries for transactions that their gateway cannot send any more and that the line lacks.
    pub missing: Vec<MissingForGood>,
    /// Numbers that the line names and that are lost for good, as the centre has admitted.
    pub lost: Vec<Numbers>,
    /// Later numbers whose content is lost with them.
    pub lost_again: u64,
    /// Transactions under an id that has another content as well, by number; at most a hundred.
    pub rivals: Vec<(Through, Uuid)>,
    /// Number of all rivals.
    pub rivals_total: u64,
    /// Transactions beside the line whose content the line lacks.
    pub late: Vec<LateTransaction>,
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

/// A transaction of another history of the gateway, kept beside the line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LateTransaction {
    /// Its number in that history.
    pub at: Through,
    /// Its id.
    pub id: Uuid,
    /// Its type.
    pub event_type: String,
    /// When it was accepted, RFC 3339, by the gateway's clock.
    pub time: String,
    /// The file that has it.
    pub file: PathBuf,
    digest: Digest,
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
            archived: 0,
            advances: 0,
            others: 0,
            missing: Vec::new(),
            lost: Vec::new(),
            lost_again: 0,
            rivals: Vec::new(),
            rivals_total: 0,
            late: Vec::new(),
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
}

/// Walks all files of a lane, and verifies its gateway's signatures with the keys of the list.
///
/// # Errors
/// [`StoreError`] when a file cannot be read.
pub fn lane(directory: &Path, name: &LaneName, list: &Gateways) -> Result<VerifiedLane, StoreError> {
    lane_with(directory, None, name, list)
}

/// The same, with the files that `archive` has in place of those that have lost their bodies to it.
///
/// # Errors
/// [`StoreError`] when a file cannot be read.
pub fn lane_with(
    directory: &Path,
    archive: Option<&Path>,
    name: &LaneName,
    list: &Gateways,
) -> Result<VerifiedLane, StoreError> {
    let mut files = open_all(directory, archive, name)?;
    let own = files.len();
    files.extend(OpenFile::open(ndjson::again_path(directory, name))?);
    let copies = Copies::read(&files[own..], own)?;
    let late = read_late(directory, name)?;
    // Only contents that something else refers to have to be known; most lanes have none.
    let mut contents: HashMap<Uuid, Vec<Digest>> = late.iter().map(|late| (late.id, Vec::new())).collect();
    for_lines(&files[..own], |_, _, _, text| {
        if text.starts_with(br#"{"pgw":"advance""#)
            && let Some(Line::Advance(advance)) = line::read(text)
        {
            contents.insert(advance.id, Vec::new());
        }
    })?;
    for (id, known) in &mut contents {
        known.extend(copies.contents.get(id).into_iter().flatten());
    }
    let (walk, report) = (Walk::from_first(name.clone()), VerifiedLane::of(name));
    let listed = list.get(&name.practice, &name.gateway);
    let entries = Vec::new();
    let mut check = Check { files: &files, walk, copies, contents, entries, listed, report };
    let torn_bytes = for_lines(&files[..own], |file, number, offset, text| {
        check.line(LineAt { file, offset, length: text.len() as u64 }, number, text);
    })?;
    let Check { walk, copies, contents, entries, report, .. } = check;
    let lost: Vec<_> = walk.lost().iter().map(|part| part.numbers).collect();
    let of = |(at, kind, entry): &(Through, String, Entry)| {
        missing::of(entry, kind, *at, walk.watermarks(), &lost)
    };
    let missing = entries.iter().filter_map(of);
    Ok(VerifiedLane {
        torn_bytes,
        missing: missing.collect(),
        lost,
        late: lacking(late, &contents),
        watermarks: walk.watermarks().to_vec(),
        recovered: ranges(copies.used),
        ..report
    })
}

/// The transactions beside a lane.
fn read_late(directory: &Path, name: &LaneName) -> Result<Vec<LateTransaction>, StoreError> {
    let mut found = Vec::new();
    for file in late::files(directory, name)? {
        late::lines(&file, |text| {
            let late = match line::read(text) {
                Some(Line::Record(record)) if !record.is_entry() => LateTransaction {
                    at: record.watermark,
                    id: record.id,
                    event_type: record.attribute("type").to_owned(),
                    time: record.attribute("time").to_owned(),
                    file: file.clone(),
                    digest: record.digest(),
                },
                Some(Line::Archived(archived)) => LateTransaction {
                    at: archived.watermark,
                    id: archived.id,
                    event_type: "(archived)".to_owned(),
                    time: archived.time,
                    file: file.clone(),
                    digest: archived.digest,
                },
                _ => return,
            };
            found.push(late);
        })?;
    }
    Ok(found)
}

/// Those of them whose content is not in the line, each once.
fn lacking(late: Vec<LateTransaction>, contents: &HashMap<Uuid, Vec<Digest>>) -> Vec<LateTransaction> {
    let mut lacking: Vec<LateTransaction> = Vec::new();
    let mut seen: HashMap<Uuid, Vec<Digest>> = HashMap::new();
    for late in late {
        let of = |known: &HashMap<Uuid, Vec<Digest>>| {
            known.get(&late.id).is_some_and(|known| known.contains(&late.digest))
        };
        if !of(contents) && !of(&seen) {
            seen.entry(late.id).or_default().push(late.digest);
            lacking.push(late);
        }
    }
    lacking
}

/// A lane being walked, line by line.
struct Check<'a> {
    files: &'a [OpenFile],
    walk: Walk,
    copies: Copies,
    /// Of the ids that something refers to, the contents that the line has so far.
    contents: HashMap<Uuid, Vec<Digest>>,
    /// Entries, with their number and kind.
    entries: Vec<(Through, String, Entry)>,
    listed: Option<&'a ListedGateway>,
    report: VerifiedLane,
}

impl Check<'_> {
    fn line(&mut self, at: LineAt, number: u64, text: &[u8]) {
        let read = line::read(text);
        self.fill_before(read.as_ref());
        if read.is_none() && text.starts_with(line::HEAD_START) {
            let (epoch, after) = self.walk.last();
            return self.fault(at, number, Fault::UnreadableHead { epoch, after });
        }
        let before = self.walk.clone();
        let mut step = self.walk.step(read.as_ref()).map_err(|fault| self.between(at, number, fault));
        if let (Ok(()), Some(Line::Head(head))) = (&step, &read) {
            step = self.head(head);
        }
        if let Err(fault) = &step
            && self.copy_replaces(before, fault, read.as_ref())
        {
            step = Ok(());
        }
        self.count(read.as_ref());
        let lost = match &read {
            Some(Line::Advance(advance)) => {
                let known = self.contents.get(&advance.id);
                let here = known.is_some_and(|known| known.contains(&advance.digest));
                let Through { epoch, through: sequence, .. } = advance.watermark;
                // Its content may be in a part that is lost for good; what came after that was noted has its own.
                let explained = !here && self.walk.lost().iter().any(|part| part.line.contains(&epoch));
                self.report.lost_again += u64::from(explained);
                (!here && !explained).then_some(Fault::Lost { epoch, sequence, id: advance.id })
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

    fn count(&mut self, read: Option<&Line<'_>>) {
        match read {
            Some(Line::Record(record)) => {
                self.report.transactions += 1;
                if let Some(known) = self.contents.get_mut(&record.id) {
                    known.push(record.digest());
                }
                if record.is_entry()
                    && let Some(entry) = Entry::read(&record.body)
                {
                    self.entries.push((record.watermark, record.attribute("kind").to_owned(), entry));
                }
            }
            Some(Line::Archived(archived)) => {
                self.report.transactions += 1;
                self.report.archived += 1;
                if let Some(known) = self.contents.get_mut(&archived.id) {
                    known.push(archived.digest);
                }
            }
            Some(Line::Advance(_)) => self.report.advances += 1,
            Some(Line::Rival { at, id }) => {
                self.report.rivals_total += 1;
                if self.report.rivals.len() < MOST_FAULTS {
                    self.report.rivals.push((*at, *id));
                }
            }
            Some(Line::Other(_)) => self.report.others += 1,
            Some(Line::Group(_) | Line::Lost { .. } | Line::Head(_)) | None => {}
        }
    }
}

/// Walks every lane below `directory`.
///
/// # Errors
/// [`StoreError`] when a directory or file cannot be read.
pub fn all(directory: &Path, list: &Gateways) -> Result<Vec<VerifiedLane>, StoreError> {
    ndjson::lanes_in(directory)?.iter().map(|name| lane(directory, name, list)).collect()
}
