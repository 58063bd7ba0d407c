//! Repair by a person, of a store that no daemon has open (`practice-gateway repair`).
//!
//! The daemon salvages by itself what a damaged segment still holds ([`super::repair`]) and goes on; what it could not
//! read is a hole. Here everything is looked at once more, raw, and other places with it: segments that were set aside, records
//! in quarantine, and directories that a person names, such as an image of the old disk. A record is taken
//! in only where its seal, its checksum and its chain value are right ([`plan`]).
//!
//! - [`look`]: what the store should have, and what lies in its segments; nothing is written, sled is not asked
//! - [`identity`]: the two small files without which nothing starts
//! - [`plan`]: what stands, fits, is unproven, is lost; pure
//! - [`beside`]: the same records from elsewhere
//! - [`act`]: segments written anew, synced and read back before anything old is set aside; then the ledger
//! - [`numbers`]: new numbers where a fill would break the chain on the wire
//! - [`report`]: what a person is told

mod act;
mod beside;
mod identity;
mod look;
mod numbers;
mod plan;
mod report;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

pub use self::report::{Found, From, LaneReport, Lost, Neighbour, Report, Rewritten};

use pgw_core::transaction::{Lane, Position};

use self::beside::Beside;
use self::look::{Look, Opener};
use self::plan::{Anchor, Candidates, Part, Verdict, judge};
use super::claim::{self, Retirement};
use super::repair::finish_replacements;
use super::salvage::files_below;
use super::seal::Sealer;
use super::{Keyring, OpenError, Settings};

/// What a person asks for.
#[derive(Debug, Clone, Default)]
pub struct Request {
    /// Where else to look: directories, or files (an image of a disk).
    pub from: Vec<PathBuf>,
    /// Only this lane.
    pub lane: Option<Lane>,
    /// Takes records, too, that nothing vouches for, where they are the only ones.
    pub unproven: bool,
    /// Does it; otherwise nothing at all is written.
    pub act: bool,
}

/// Why there was no repair. What was done before it stands, and the command can be given again.
#[derive(Debug, thiserror::Error)]
pub enum RepairError {
    /// It is not a store that this configuration and key open, or it is in use.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// There is none.
    #[error("there is no store in {0}")]
    NoStore(PathBuf),
    /// It does not say whose it is, and no record of it opens with this key.
    #[error("the file FORMAT of the store in {0} is damaged, and no record there opens with the outbox key")]
    NothingOpens(PathBuf),
    /// The records are back; a lane needs new numbers after the confirmed mark, and they could not be made durable.
    #[error("lane {0} is filled, but cannot be numbered again, which it needs: {1}")]
    Numbers(Lane, String),
    /// `FORMAT` also said which key has sealed what.
    #[error(
        "the file FORMAT of the store in {0} is damaged, and records there were sealed with an earlier key: take FORMAT from a copy of the store"
    )]
    SeveralKeys(PathBuf),
    /// What is written here would belong to somebody else, and keep the daemon out.
    #[error(
        "the store in {0} belongs to user {1}: repair it as that user or as root, or the daemon could not read it afterwards"
    )]
    NotTheOwner(PathBuf, u32),
    /// The system said no.
    #[error("cannot {action} {path}")]
    Files {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What it said.
        #[source]
        source: io::Error,
    },
    /// A new segment did not read back as it was written; the old one is in its place.
    #[error("what was written to {0} does not read back: nothing was replaced")]
    ReadBack(PathBuf),
}

impl RepairError {
    fn cannot(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Files { action, path, source }
    }
}

/// One lane, judged.
struct Judgement {
    look: Look,
    /// What was found in each segment, and elsewhere for what is missing there.
    candidates: BTreeMap<u64, Candidates>,
    verdicts: BTreeMap<u64, BTreeMap<Position, Verdict>>,
}

/// Looks at a store that no process has open, and with [`Request::act`] fills what it can. Blocking. `progress` hears of
/// each segment before it is read.
///
/// # Errors
/// [`RepairError`].
pub fn repair(
    settings: &Settings,
    keys: &Keyring,
    request: &Request,
    progress: &mut dyn FnMut(&Lane, u64),
) -> Result<Report, RepairError> {
    let store = settings.directory.as_path();
    let sealer = Sealer::new(keys);
    // One that was retired is looked at, and no more.
    let retirement = if request.act { Retirement::Refused } else { Retirement::Ignored };
    let known = identity::is_known(settings, keys, &sealer, retirement)?;
    for from in &request.from {
        fs::metadata(from).map_err(RepairError::cannot("read", from))?;
    }
    let owner = if request.act { owner(store)? } else { None };
    let lock = match (request.act, looked_at(store)?) {
        // A store without one was never opened.
        (true, None) => Some(claim::lock(store)?),
        (_, lock) => lock,
    };
    let mut remade = Vec::new();
    if !known {
        remade.push("FORMAT".to_owned());
        if request.act {
            identity::write_format(settings, keys, owner)?;
        }
    }
    let (numbered, damaged) = identity::lanes(store)?;
    if damaged && (!request.act || identity::write_lanes(store, &numbered, owner)?) {
        remade.push("lanes.list".to_owned());
    }
    let mut opener = Opener::new(&sealer);
    let mut lanes = Vec::new();
    for (lane, id) in numbered {
        if request.lane.as_ref().is_some_and(|only| *only != lane) {
            continue;
        }
        let directory = store.join("segments").join(lane.as_str());
        if request.act && directory.is_dir() {
            finish_replacements(&directory)
                .map_err(RepairError::cannot("finish replacing in", &directory))?;
        }
        let look = Look::at(store, (&lane, id), &mut opener, progress)?;
        lanes.push(judged(look, &BTreeMap::new()));
    }
    let beside = Beside::search(store, keys, &request.from, &mut opener, &lanes)?;
    let mut report = Report {
        done: request.act,
        remade,
        renumbered: Vec::new(),
        lanes: Vec::new(),
        from: beside.reports(),
    };
    let mut numbered_again = Vec::new();
    for (index, judgement) in lanes.into_iter().enumerate() {
        let judgement = judged(judgement.look, beside.found(index));
        if request.act {
            act::mend((store, owner), &sealer, &judgement, &beside, request.unproven)?;
        }
        let epochs = judgement.look.numbering.as_ref().map_or(0, |numbering| numbering.epochs().len());
        if epochs > 1 {
            numbered_again.push(judgement.look.lane.clone());
        }
        report.lanes.push(report::lane(&judgement, &beside, request.unproven));
    }
    if request.act {
        drop(lock);
        report.renumbered = numbers::settle(settings, keys, &numbered_again, owner)?;
    }
    Ok(report)
}

/// Judges a lane from its newest segment to its oldest: each says what the one before it must end with.
fn judged(look: Look, beside: &BTreeMap<Position, Vec<plan::Found>>) -> Judgement {
    let (holes, released, anchors) = (look.holes().to_vec(), look.released(), look.anchors());
    let (mut all, mut verdicts) = (BTreeMap::new(), BTreeMap::new());
    let mut carried: Option<Anchor> = None;
    for (ordinal, piece) in look.pieces.iter().rev() {
        let (first, last) = (piece.extent.base, piece.last);
        if first > last {
            continue;
        }
        if piece.whole {
            let found = piece.found.get(&first).and_then(|found| found.first());
            carried = found.map(|f| Anchor { position: first - 1, epoch: f.epoch, chain: f.previous });
            continue;
        }
        let mut candidates = piece.found.clone();
        for (position, found) in beside.range(first..=last) {
            let known = candidates.entry(*position).or_default();
            for found in found {
                if known.iter().all(|known| known.chain != found.chain) {
                    known.push(found.clone());
                }
            }
        }
        let anchors: Vec<Anchor> = anchors.iter().copied().chain(carried).collect();
        let part = Part { first, last, holes: &holes, released: &released, anchors: &anchors };
        let judged = judge(&part, &candidates);
        carried = judged.before;
        all.insert(*ordinal, candidates);
        verdicts.insert(*ordinal, judged.verdicts);
    }
    Judgement { look, candidates: all, verdicts }
}

impl Judgement {
    /// The positions for which another copy would help.
    fn wanting(&self) -> impl Iterator<Item = Position> + '_ {
        self.verdicts.values().flatten().filter(|(_, verdict)| verdict.is_wanting()).map(|(p, _)| *p)
    }

    /// What is to stand at each position of a segment, and which of it was missing. `None`: the segment is left as it is.
    fn work(&self, ordinal: u64, unproven: bool) -> Option<act::Work> {
        let (piece, verdicts) = (self.look.pieces.get(&ordinal)?, self.verdicts.get(&ordinal)?);
        let candidates = self.candidates.get(&ordinal)?;
        let mut work = act::Work::default();
        for (position, verdict) in verdicts {
            let taken = match verdict {
                Verdict::Fits(_) => true,
                Verdict::Unproven(_) if unproven => true,
                Verdict::Unproven(_) => continue,
                _ => false,
            };
            let chosen = verdict.chosen().and_then(|at| candidates.get(position)?.get(at));
            let Some(chosen) = chosen else { continue };
            work.records.insert(*position, chosen.clone());
            if taken {
                work.filled.push(*position);
            }
        }
        // An unsound one the daemon would salvage when it opens it: the same, earlier.
        let salvage = !piece.sound && piece.lies.is_some() && !work.records.is_empty();
        (!work.filled.is_empty() || salvage).then_some(work)
    }
}

/// The store's lock, without a byte written. A store that has none was never opened.
fn looked_at(store: &Path) -> Result<Option<File>, RepairError> {
    let path = store.join("lock");
    let lock = match File::open(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(RepairError::cannot("open", &path))?,
    };
    match lock.try_lock() {
        Ok(()) => Ok(Some(lock)),
        Err(fs::TryLockError::WouldBlock) => Err(OpenError::InUse(store.to_owned()).into()),
        Err(fs::TryLockError::Error(source)) => Err(RepairError::cannot("lock", &path)(source)),
    }
}

/// New files belong to whoever makes them, and the daemon has to read them: root gives them to the store's owner.
///
/// # Errors
/// [`RepairError::NotTheOwner`].
fn owner(store: &Path) -> Result<Option<(u32, u32)>, RepairError> {
    let metadata = fs::metadata(store).map_err(RepairError::cannot("read", store))?;
    let (user, group) = (metadata.uid(), metadata.gid());
    match rustix::process::geteuid().as_raw() {
        us if us == user => Ok(None),
        0 => Ok(Some((user, group))),
        _ => Err(RepairError::NotTheOwner(store.to_owned(), user)),
    }
}

/// The files that are searched for what is missing: those of the store, then those of a person.
fn searched(store: &Path, from: &[PathBuf]) -> Result<Vec<PathBuf>, RepairError> {
    let own = ["segments", "aside", "trash"].map(|name| store.join(name));
    let mut found = Vec::new();
    for place in own.iter().filter(|place| place.is_dir()).chain(from) {
        if place.is_dir() {
            found.extend(files_below(place).map_err(RepairError::cannot("list", place))?);
        } else {
            found.push(place.clone());
        }
    }
    let mut known = std::collections::BTreeSet::new();
    found.retain(|file| known.insert(file.clone()));
    Ok(found)
}
