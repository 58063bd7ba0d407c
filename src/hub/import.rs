//! Importing a bundle: read through once to its end before anything of it is stored, then stored part by part.
//!
//! The store is locked by the running hub. `practice-hub import` therefore opens it itself where no hub runs, and sends the
//! file over the control socket ([`super::control`]) to the hub that does.

use std::fs::File;
use std::io::{BufReader, Seek as _};
use std::path::PathBuf;

use pgw_bundle::AgeError;
use pgw_bundle::bundle::{BundleError, Head, Item, Reader};
use pgw_bundle::keys::Identity;
use pgw_bundle::receipts;
use pgw_bundle::seal::Decryptor;
use pgw_core::text::chain;
use pgw_core::transaction::{Epoch, Gateway, Lane, Practice, Sequence};
use pgw_core::wire::receipt::Stored;
use pgw_host::exit::Exit;
use serde::{Deserialize, Serialize};

use super::answers::Answer;
use super::imported::{NotTaken, Part, Tally};
use super::link::Speaker;
use super::store::{LaneName, Through};

/// Most transactions and payload bytes in one part.
const PART: (usize, usize) = (1_024, 4 << 20);

/// Why a bundle is not imported, or not all of it.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The file cannot be read.
    #[error("cannot read {0}")]
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
    /// The hub stops meanwhile.
    #[error("the hub is stopping: import the file again when it runs")]
    Ended,
}

impl ImportError {
    /// What whoever brought the bundle does about it.
    #[must_use]
    pub fn consequence(&self) -> Exit {
        match self {
            Self::File(..) => Exit::Files,
            Self::NotTaken(NotTaken::Trouble(_)) | Self::Ended => Exit::Later,
            Self::Age(_) | Self::Bundle(_) | Self::NotTaken(_) => Exit::Refused,
        }
    }

    /// The error with its causes, and what to do about a gap.
    #[must_use]
    pub fn sentence(&self) -> String {
        let mut text = chain(self);
        if let Self::NotTaken(NotTaken::Missing { lane, position: Some(position), .. }) = self {
            text += &format!(" (practice-gateway export --lane {} --from {position})", lane.lane);
        }
        text
    }
}

/// What a bundle holds of a lane, and what became of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImportedLane {
    /// The practice that it comes from.
    pub practice: Practice,
    /// Its gateway.
    pub gateway: Gateway,
    /// Name of the lane.
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
    /// Stored already under another number.
    pub renumbered: u64,
    /// Stored already.
    pub repeated: u64,
    /// Where the lane ends now, epochs oldest first.
    pub ends: Vec<Stored>,
}

impl ImportedLane {
    fn new(reader: &Reader<impl std::io::BufRead>, head: &Head) -> Self {
        Self {
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
            ends: Vec::new(),
        }
    }

    /// Its full name.
    #[must_use]
    pub fn name(&self) -> LaneName {
        LaneName { practice: self.practice.clone(), gateway: self.gateway.clone(), lane: self.lane.clone() }
    }
}

/// A bundle's file, which is read twice.
#[derive(Debug)]
pub struct BundleFile {
    file: File,
    path: PathBuf,
}

impl BundleFile {
    /// Opens it.
    ///
    /// # Errors
    /// [`ImportError::File`].
    pub fn open(path: PathBuf) -> Result<Self, ImportError> {
        match File::open(&path) {
            Ok(file) => Ok(Self { file, path }),
            Err(error) => Err(ImportError::File(path, error)),
        }
    }

    /// One that is open already; `path` is what errors call it.
    #[must_use]
    pub fn of(file: File, path: PathBuf) -> Self {
        Self { file, path }
    }

    /// From its beginning.
    fn read(
        &self,
        identity: &Identity,
    ) -> Result<Reader<BufReader<Decryptor<BufReader<&File>>>>, ImportError> {
        let mut file = &self.file;
        file.rewind().map_err(|error| ImportError::File(self.path.clone(), error))?;
        let opening = Decryptor::new(BufReader::new(file), identity)?;
        Ok(Reader::new(BufReader::new(opening))?)
    }
}

/// Reads a bundle to its end and checks all of it; stores nothing. The lanes that it holds. `read` hears now and then how many
/// transactions were read.
///
/// # Errors
/// [`ImportError`] names the sequence that is missing, altered or out of order.
pub fn check(
    file: &BundleFile,
    identity: &Identity,
    read: &mut dyn FnMut(u64),
) -> Result<Vec<ImportedLane>, ImportError> {
    let mut reader = file.read(identity)?;
    let mut lanes: Vec<ImportedLane> = Vec::new();
    let mut transactions = 0_u64;
    while let Some(item) = reader.next_item()? {
        match item {
            Item::Head(head) => lanes.push(ImportedLane::new(&reader, &head)),
            Item::Foot(foot) => {
                if let Some(lane) = lanes.last_mut() {
                    (lane.last, lane.count) = (foot.last, foot.count);
                }
            }
            Item::Transaction(..) => {
                transactions += 1;
                if transactions.is_multiple_of(PART.0 as u64) {
                    read(transactions);
                }
            }
        }
    }
    Ok(lanes)
}

/// Stores a bundle that [`check`] has found whole: hands it to `take` part by part.
///
/// # Errors
/// [`ImportError`]; `lanes` has what was stored before it.
pub fn import(
    file: &BundleFile,
    identity: &Identity,
    take: &mut dyn FnMut(Part) -> Result<Tally, ImportError>,
    lanes: &mut Vec<ImportedLane>,
) -> Result<(), ImportError> {
    let mut reader = file.read(identity)?;
    let mut current: Option<Head> = None;
    let (mut part, mut bytes) = (Vec::new(), 0);
    while let Some(item) = reader.next_item()? {
        let ends = matches!(item, Item::Foot(_));
        match item {
            Item::Head(head) => {
                lanes.push(ImportedLane::new(&reader, &head));
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
            let transactions = std::mem::take(&mut part);
            let whole = Part { lane: lane.name(), older: head.older.clone(), transactions };
            let tally = take(whole).map_err(|error| with_position(error, head))?;
            bytes = 0;
            lane.stored += tally.stored;
            lane.renumbered += tally.renumbered;
            lane.repeated += tally.repeated;
            lane.ends = tally
                .marks
                .into_iter()
                .map(|Through { epoch, through, chain }| Stored { epoch, through, chain })
                .collect();
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

/// The hub's receipts for these lanes, for the way back by file. They answer no question, and the gateway takes them for no
/// more than that.
///
/// # Errors
/// A payload that is no text: a bug in this program.
pub fn receipts(
    speaker: &mut Speaker,
    lanes: &[ImportedLane],
) -> Result<Vec<receipts::SignedReceipt>, std::string::FromUtf8Error> {
    let mut lines = Vec::new();
    for lane in lanes {
        let end = |Stored { epoch, through, chain }: &Stored| Through {
            epoch: *epoch,
            through: *through,
            chain: *chain,
        };
        let marks = lane.ends.iter().map(end).collect();
        let said = speaker.say(Answer::Receipt { lane: lane.name(), marks, backed_up: None, nonce: None });
        let signature = said.properties.user_properties.into_iter().next().map(|(_, value)| value);
        lines.push(receipts::SignedReceipt {
            topic: said.topic,
            payload: String::from_utf8(said.payload)?,
            signature: signature.unwrap_or_default(),
        });
    }
    Ok(lines)
}
