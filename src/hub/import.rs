//! Importing a bundle: read through once to its end before anything of it is stored, then stored part by part.
//!
//! The store is locked by the running hub. `practice-hub import` therefore opens it itself where no hub runs, and hands the
//! file to the running hub's drop folder (`{store}/import/`) where one does; whoever else can write there may do the same.
//!
//! | in `import/` | what |
//! |---|---|
//! | `NAME.age` | a bundle that is to be imported |
//! | `NAME.age.done` | it was; all of it is stored, and may be deleted |
//! | `NAME.age.refused` | it was not |
//! | `NAME.json` | what became of it ([`Outcome`]) |

use std::fs::{self, File};
use std::io::{BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, sync_channel};
use std::time::Duration;

use pgw_bundle::AgeError;
use pgw_bundle::bundle::{BundleError, Head, Item, Reader};
use pgw_bundle::keys::Identity;
use pgw_bundle::seal::Decryptor;
use pgw_core::chain::ChainValue;
use pgw_core::transaction::{Epoch, Gateway, Lane, Practice, Sequence};
use serde::{Deserialize, Serialize};

use super::imported::{NotTaken, Part, Tally};
use super::store::{LaneName, Mark};
use super::store_thread::Arrival;
use crate::keys;

/// The drop folder, below the store.
pub const FOLDER: &str = "import";
/// Most transactions and payload bytes in one part.
const PART: (usize, usize) = (1_024, 4 << 20);
/// How often the folder is looked at.
const LOOK: Duration = Duration::from_millis(500);

/// Why a bundle is not imported, or not all of it.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The file cannot be opened.
    #[error("cannot open {0}")]
    File(PathBuf, #[source] std::io::Error),
    /// It is no age file, or not for this hub.
    #[error("it cannot be decrypted")]
    Age(#[from] AgeError),
    /// Its inside is not whole.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// The hub does not take it.
    #[error(transparent)]
    NotTaken(#[from] NotTaken),
    /// The hub ended meanwhile.
    #[error("the hub has ended")]
    Ended,
}

/// What a bundle holds of a lane, and what became of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaneOutcome {
    /// Whose.
    pub practice: Practice,
    /// Its gateway.
    pub gateway: Gateway,
    /// Which.
    pub lane: Lane,
    /// Epoch of the first transaction.
    pub epoch: Epoch,
    /// Its sequence.
    pub first: Sequence,
    /// The last transaction's sequence, in its own epoch.
    pub last: Sequence,
    /// Transactions.
    pub count: u64,
    /// New here.
    pub stored: u64,
    /// Here already under another number.
    pub renumbered: u64,
    /// Here already.
    pub repeated: u64,
    /// Where the lane stands now, epochs oldest first.
    pub marks: Vec<MarkOutcome>,
}

/// A mark of the hub.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct MarkOutcome {
    /// Epoch.
    pub epoch: Epoch,
    /// Stored through here.
    pub through: Sequence,
    /// Chain value there.
    pub chain: ChainValue,
}

impl From<Mark> for MarkOutcome {
    fn from(Mark { epoch, through, chain }: Mark) -> Self {
        Self { epoch, through, chain }
    }
}

impl From<MarkOutcome> for Mark {
    fn from(MarkOutcome { epoch, through, chain }: MarkOutcome) -> Self {
        Self { epoch, through, chain }
    }
}

/// What became of a bundle.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// All of it is stored.
    pub ok: bool,
    /// Why not, one sentence.
    pub error: Option<String>,
    /// Lane by lane, as far as it came.
    pub lanes: Vec<LaneOutcome>,
}

fn open(
    file: &Path,
    identity: &Identity,
) -> Result<Reader<BufReader<Decryptor<BufReader<File>>>>, ImportError> {
    let open = File::open(file).map_err(|error| ImportError::File(file.to_owned(), error))?;
    let opening = Decryptor::new(BufReader::new(open), identity)?;
    Ok(Reader::new(BufReader::new(opening))?)
}

fn outcome(reader: &Reader<impl std::io::BufRead>, head: &Head) -> LaneOutcome {
    LaneOutcome {
        practice: reader.owner().practice.clone(),
        gateway: reader.owner().gateway.clone(),
        lane: head.lane.clone(),
        epoch: head.epoch,
        first: head.first,
        last: head.first,
        count: 0,
        stored: 0,
        renumbered: 0,
        repeated: 0,
        marks: Vec::new(),
    }
}

/// Reads a bundle to its end and checks all of it; stores nothing. The lanes that it holds.
///
/// # Errors
/// [`ImportError`] names the sequence that is missing, altered or out of order.
pub fn check(file: &Path, identity: &Identity) -> Result<Vec<LaneOutcome>, ImportError> {
    let mut reader = open(file, identity)?;
    let mut lanes: Vec<LaneOutcome> = Vec::new();
    while let Some(item) = reader.next_item()? {
        match item {
            Item::Head(head) => lanes.push(outcome(&reader, &head)),
            Item::Foot(foot) => {
                if let Some(lane) = lanes.last_mut() {
                    (lane.last, lane.count) = (foot.last, foot.count);
                }
            }
            Item::Transaction(..) => {}
        }
    }
    Ok(lanes)
}

/// Imports a bundle: checks it whole first, then hands it to `take` part by part.
///
/// # Errors
/// [`ImportError`]; `lanes` has what was stored before it.
pub fn import(
    file: &Path,
    identity: &Identity,
    take: &mut dyn FnMut(Part) -> Result<Tally, ImportError>,
    lanes: &mut Vec<LaneOutcome>,
) -> Result<(), ImportError> {
    check(file, identity)?;
    let mut reader = open(file, identity)?;
    let mut current: Option<Head> = None;
    let (mut part, mut bytes) = (Vec::new(), 0);
    while let Some(item) = reader.next_item()? {
        let ends = matches!(item, Item::Foot(_));
        match item {
            Item::Head(head) => {
                lanes.push(outcome(&reader, &head));
                current = Some(head);
            }
            Item::Transaction(envelope, body) => {
                bytes += body.len();
                part.push((*envelope, body));
            }
            Item::Foot(_) => {}
        }
        let full = part.len() >= PART.0 || bytes >= PART.1;
        if let (true, Some(head), Some(lane)) = (full || ends, &current, lanes.last_mut()) {
            lane.count += part.len() as u64;
            lane.last = part.last().map_or(lane.last, |(envelope, _)| envelope.sequence);
            let name = LaneName {
                practice: lane.practice.clone(),
                gateway: lane.gateway.clone(),
                lane: lane.lane.clone(),
            };
            let transactions = std::mem::take(&mut part);
            let whole = Part { lane: name, older: head.older.clone(), transactions };
            let tally = take(whole).map_err(|error| with_position(error, head))?;
            bytes = 0;
            lane.stored += tally.stored;
            lane.renumbered += tally.renumbered;
            lane.repeated += tally.repeated;
            lane.marks = tally.marks.into_iter().map(MarkOutcome::from).collect();
        }
    }
    Ok(())
}

/// What the gateway's `export --from` takes, if it is of the epoch with which the bundle begins.
fn with_position(error: ImportError, head: &Head) -> ImportError {
    match error {
        ImportError::NotTaken(NotTaken::Missing { lane, epoch, sequence, .. }) if epoch == head.epoch => {
            let position = (head.position + sequence).checked_sub(head.first);
            NotTaken::Missing { lane, epoch, sequence, position }.into()
        }
        error => error,
    }
}

/// The error with its causes, and what to do about a gap.
#[must_use]
pub fn sentence(error: &ImportError) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text += &format!(": {error}");
        cause = error.source();
    }
    if let ImportError::NotTaken(NotTaken::Missing { lane, position: Some(position), .. }) = error {
        text += &format!(" (practice-gateway export --lane {} --from {position})", lane.lane);
    }
    text
}

/// Looks at the drop folder until `stop`, on a thread of its own.
pub(super) fn watch(store: &Path, key_file: &Path, arrivals: &Sender<Arrival>, stop: &AtomicBool) {
    let folder = store.join(FOLDER);
    if let Err(error) = super::store::create_private(&folder) {
        tracing::error!(%error, "The folder for bundles cannot be made: nothing can be imported while the hub runs");
        return;
    }
    while !stop.load(Ordering::Relaxed) {
        for file in waiting(&folder) {
            take_file(&file, key_file, arrivals);
            if stop.load(Ordering::Relaxed) {
                return;
            }
        }
        std::thread::sleep(LOOK);
    }
}

fn waiting(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut files: Vec<_> = entries
        .filter(|path| path.extension().is_some_and(|extension| extension == "age") && path.is_file())
        .collect();
    files.sort();
    files
}

fn take_file(file: &Path, key_file: &Path, arrivals: &Sender<Arrival>) {
    let mut lanes = Vec::new();
    let outcome = match keys::carry_key(key_file) {
        Err(error) => Err(error.to_string()),
        Ok(identity) => import(file, &identity, &mut |part| hand_over(arrivals, part), &mut lanes)
            .map_err(|error| sentence(&error)),
    };
    let ok = outcome.is_ok();
    match &outcome {
        Ok(()) => tracing::info!(
            stored = lanes.iter().map(|lane| lane.stored).sum::<u64>(),
            repeated = lanes.iter().map(|lane| lane.repeated + lane.renumbered).sum::<u64>(),
            "Imported a bundle"
        ),
        Err(error) => tracing::error!(error, "A bundle was refused"),
    }
    let outcome = Outcome { ok, error: outcome.err(), lanes };
    let mut aside = file.as_os_str().to_owned();
    aside.push(if ok { ".done" } else { ".refused" });
    let written =
        write_outcome(&file.with_extension("json"), &outcome).and_then(|()| fs::rename(file, aside));
    if let Err(error) = written {
        tracing::error!(%error, "What became of a bundle cannot be written down");
        // Not again at once: it would be imported without end, harmlessly but for the work.
        std::thread::sleep(LOOK * 20);
    }
}

fn hand_over(arrivals: &Sender<Arrival>, part: Part) -> Result<Tally, ImportError> {
    let (answer, answered) = sync_channel(1);
    arrivals.send(Arrival::Import(Box::new(part), answer)).map_err(|_| ImportError::Ended)?;
    Ok(answered.recv().map_err(|_| ImportError::Ended)??)
}

fn write_outcome(file: &Path, outcome: &Outcome) -> std::io::Result<()> {
    let new = file.with_extension("json.new");
    let mut out = super::store::create_private_file(&new)?;
    out.write_all(&serde_json::to_vec(outcome)?)?;
    out.sync_all()?;
    fs::rename(&new, file)
}
