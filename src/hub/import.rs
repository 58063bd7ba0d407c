//! Imports a bundle: reads and checks all of it before anything is stored, then stores it part by part.
//!
//! The running hub holds the store's lock. `practice-hub import` therefore opens the store itself if no hub runs, and
//! otherwise sends the file over the control socket ([`super::control`]) to the hub.

use std::fs::File;
use std::io::{BufReader, Seek as _};
use std::path::PathBuf;

use pgw_bundle::AgeError;
use pgw_bundle::bundle::{BundleError, Head, Item, Reader};
use pgw_bundle::keys::Identity;
use pgw_bundle::receipts;
use pgw_bundle::seal::Decryptor;
use pgw_core::consequence::Consequence;
use pgw_core::text::chain;
use pgw_core::transaction::{Epoch, Gateway, Lane, Practice, Sequence};
use pgw_host::secret::{self, KeyError};
use serde::{Deserialize, Serialize};

use super::HubSettings;
use super::answers::Answer;
use super::imported::{NotTaken, Part, Tally};
use super::link::AnswerSigner;
use super::store::{LaneName, StoreError, StoreIdentity, Through};

/// Most transactions and payload bytes in one part.
const PART: (usize, usize) = (1_024, 4 << 20);

/// Whether a part ends here: signatures are judged by the same parts as they are stored.
pub(super) fn is_full(transactions: usize, bytes: usize) -> bool {
    transactions >= PART.0 || bytes >= PART.1
}

/// Why a bundle is not imported, or not completely.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The file cannot be read.
    #[error("cannot read {0}")]
    File(PathBuf, #[source] std::io::Error),
    /// It is not an age file, or not encrypted for this hub.
    #[error("it cannot be decrypted")]
    Age(#[from] AgeError),
    /// Its content is damaged or incomplete.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// The hub does not accept it.
    #[error(transparent)]
    NotTaken(#[from] NotTaken),
    /// It is of another history of its gateway than the one that is stored.
    #[error(
        "{lane}: {transactions} transactions do not continue what is stored here, and are kept beside the lane as late; nothing of them is in the lane or confirmed"
    )]
    Late {
        /// The lane.
        lane: LaneName,
        /// How many.
        transactions: u64,
    },
    /// It cannot be kept beside its lanes.
    #[error("it cannot be kept beside its lanes")]
    Store(#[from] StoreError),
    /// The hub is stopping.
    #[error("the hub is stopping: import the file again once it has restarted")]
    Ended,
}

impl ImportError {
    /// How the person who brought the bundle should react.
    #[must_use]
    pub fn consequence(&self) -> Consequence {
        match self {
            Self::File(..) => Consequence::FILES,
            Self::NotTaken(error) => error.consequence(),
            Self::Store(error) => error.consequence(),
            Self::Ended => Consequence::Retry,
            Self::Age(_) | Self::Bundle(_) | Self::Late { .. } => Consequence::Refuse,
        }
    }

    /// The error with its causes, and what to do about a gap.
    #[must_use]
    pub fn sentence(&self) -> String {
        let mut text = chain(self);
        if let Self::NotTaken(NotTaken::Missing { lane, position: Some(position), .. }) = self {
            text += &format!(" (practice-gateway export --lane {} --from {position})", lane.lane);
        }
        if let Self::NotTaken(NotTaken::Link { .. }) | Self::Late { .. } = self {
            text += " (carry the end that is written beside the bundle to the gateway: practice-gateway export --end FILE)";
        }
        if let Self::NotTaken(NotTaken::Unsigned { .. }) = self {
            text += " (`practice-hub import --unsigned` keeps such a file beside the lane: nothing of it is then in the lane or confirmed)";
        }
        text
    }
}

/// What the hub lacks to read a bundle or to sign its receipts.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// The carry key or the signing key.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// Random bytes.
    #[error("the system provides no random bytes")]
    Random(#[source] std::io::Error),
    /// The store's identity.
    #[error("it cannot be read which store this is")]
    Store(#[from] StoreError),
    /// A receipt that is not text.
    #[error("a receipt is not text: a bug in this program")]
    NotText(#[from] std::string::FromUtf8Error),
}

impl KeysError {
    /// How the command ends.
    #[must_use]
    pub fn consequence(&self) -> Consequence {
        match self {
            Self::Key(error) => error.consequence(),
            Self::Store(error) => error.consequence(),
            Self::Random(_) | Self::NotText(_) => Consequence::BUG,
        }
    }
}

/// What a bundle holds of a lane, and the result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImportedLane {
    /// The practice that sent it.
    pub practice: Practice,
    /// Its gateway.
    pub gateway: Gateway,
    /// The lane's name.
    pub lane: Lane,
    /// Epoch of the first transaction.
    pub epoch: Epoch,
    /// Its sequence.
    pub first: Sequence,
    /// The last transaction's sequence, in its own epoch.
    pub last: Sequence,
    /// Number of transactions.
    pub count: u64,
    /// Newly stored.
    pub stored: u64,
    /// Stored already under another number.
    pub renumbered: u64,
    /// Already stored.
    pub repeated: u64,
    /// Of another history of the gateway: kept beside the lane.
    pub late: u64,
    /// Where the lane ends now.
    pub end: Option<Through>,
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
            late: 0,
            end: None,
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

    /// A file that is already open; `path` is its name in errors.
    #[must_use]
    pub fn of(file: File, path: PathBuf) -> Self {
        Self { file, path }
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Reads it from the beginning.
    pub(super) fn read(
        &self,
        identity: &Identity,
    ) -> Result<Reader<BufReader<Decryptor<BufReader<&File>>>>, ImportError> {
        let mut file = &self.file;
        file.rewind().map_err(|error| ImportError::File(self.path.clone(), error))?;
        let decryptor = Decryptor::new(BufReader::new(file), identity)?;
        Ok(Reader::new(BufReader::new(decryptor))?)
    }
}

/// Reads a bundle to its end and checks all of it; stores nothing. Returns its lanes. `read` is called now and then
/// with the number of transactions read.
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

/// Stores a bundle that [`check`] has found complete: passes it to `take` part by part.
///
/// # Errors
/// [`ImportError`]; `lanes` has what was stored before the error.
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
        let full = is_full(part.len(), bytes);
        if let (true, Some(head), Some(lane)) = (full || ends, &current, lanes.last_mut()) {
            let count = part.len() as u64;
            let last = part.last().map_or(lane.last, |(envelope, _)| envelope.sequence);
            let transactions = std::mem::take(&mut part);
            let whole = Part { lane: lane.name(), transactions };
            let tally = take(whole).map_err(|error| with_position(error, head))?;
            bytes = 0;
            // Only now: a part that is not taken is not in the store.
            (lane.count, lane.last) = (lane.count + count, last);
            lane.stored += tally.stored;
            lane.renumbered += tally.renumbered;
            lane.repeated += tally.repeated;
            lane.late += tally.late;
            lane.end = tally.end;
        }
    }
    if let Some(lane) = lanes.iter().find(|lane| lane.late > 0) {
        return Err(ImportError::Late { lane: lane.name(), transactions: lane.late });
    }
    Ok(())
}

/// The lanes of a bundle that it does not continue: their gateway needs the hub's end for the next one.
#[must_use]
pub fn elsewhere(lanes: &[ImportedLane], error: Option<&ImportError>) -> Vec<LaneName> {
    let mut names: Vec<_> = lanes.iter().filter(|lane| lane.late > 0).map(ImportedLane::name).collect();
    if let Some(ImportError::NotTaken(NotTaken::Link { lane, .. })) = error
        && !names.contains(lane)
    {
        names.push(lane.clone());
    }
    names
}

/// The value for the gateway's `export --from`, if it is in the epoch with which the bundle begins.
fn with_position(error: ImportError, head: &Head) -> ImportError {
    match error {
        ImportError::NotTaken(NotTaken::Missing { lane, epoch, sequence, .. }) if epoch == head.epoch => {
            let position = (head.position + sequence).checked_sub(head.first);
            NotTaken::Missing { lane, epoch, sequence, position }.into()
        }
        error => error,
    }
}

/// The hub's receipts for these lanes, signed with its key: see [`mod@receipts`].
///
/// # Errors
/// [`KeysError`].
pub fn signed_receipts(
    settings: &HubSettings,
    lanes: &[ImportedLane],
) -> Result<Vec<receipts::SignedReceipt>, KeysError> {
    Ok(receipts(&mut signer(settings)?, lanes)?)
}

fn signer(settings: &HubSettings) -> Result<AnswerSigner, KeysError> {
    let key = secret::signing_key(&settings.signing_key_file)?;
    let store = StoreIdentity::open(&settings.directory)?;
    AnswerSigner::begin(settings, store, key).map_err(KeysError::Random)
}

/// Where the line of each of these lanes ends, signed with the hub's key: see [`mod@pgw_bundle::end`].
///
/// # Errors
/// [`KeysError`].
pub fn signed_ends(
    settings: &HubSettings,
    answers: Vec<(Lane, Answer)>,
) -> Result<Vec<(Lane, receipts::SignedReceipt)>, KeysError> {
    if answers.is_empty() {
        return Ok(Vec::new());
    }
    let mut signer = signer(settings)?;
    let sign = |(lane, answer)| Ok((lane, signed(&mut signer, answer)?));
    answers.into_iter().map(sign).collect()
}

/// The hub's receipts for these lanes, to be carried back in a file. They answer no question, and the gateway trusts
/// them accordingly.
///
/// # Errors
/// A payload that is not text: a bug in this program.
pub fn receipts(
    signer: &mut AnswerSigner,
    lanes: &[ImportedLane],
) -> Result<Vec<receipts::SignedReceipt>, std::string::FromUtf8Error> {
    let answer = |lane: &ImportedLane| Answer::Receipt {
        lane: lane.name(),
        end: lane.end,
        holds_point: None,
        backed_up: None,
        tail_seen: None,
        lost: Vec::new(),
        window: None,
        nonce: None,
    };
    lanes.iter().map(|lane| signed(signer, answer(lane))).collect()
}

fn signed(
    signer: &mut AnswerSigner,
    answer: Answer,
) -> Result<receipts::SignedReceipt, std::string::FromUtf8Error> {
    let signed = signer.sign(answer);
    let signature = signed.properties.user_properties.into_iter().next().map(|(_, value)| value);
    Ok(receipts::SignedReceipt {
        topic: signed.topic,
        payload: String::from_utf8(signed.payload)?,
        signature: signature.unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests {
    use pgw_bundle::bundle::{Foot, Owner, Writer};
    use pgw_bundle::seal::Encryptor;
    use pgw_core::chain::ChainValue;
    use pgw_core::transaction::{Body, Clock, Kind, Transaction, TransactionId};
    use pgw_core::wire::SCHEMA;
    use pgw_core::wire::envelope::Envelope;
    use uuid::Uuid;

    use super::*;

    /// A bundle of one lane; each transaction fills a part.
    fn bundle(identity: &Identity, count: u64) -> BundleFile {
        let lane: Lane = "clinical".parse().unwrap();
        let epoch = Epoch(Uuid::from_u128(1));
        let file = tempfile::tempfile().unwrap();
        let owner = Owner {
            schema: SCHEMA,
            practice: "B86022".parse().unwrap(),
            gateway: "gw1".parse().unwrap(),
            time: String::from("2026-01-01T00:00:00Z"),
            version: String::from("1"),
        };
        let sealed = Encryptor::new(file.try_clone().unwrap(), &[identity.recipient()]).unwrap();
        let name = owner.lane(&lane);
        let mut out = Writer::new(sealed, owner).unwrap();
        let mut chain = ChainValue::first(&name, epoch, None);
        let head = Head { lane: lane.clone(), epoch, first: 1, position: 1, before: chain, link: None };
        out.head(head).unwrap();
        for sequence in 1..=count {
            let transaction = Transaction {
                id: TransactionId(Uuid::from_u128(u128::from(sequence))),
                time: 1,
                event_type: String::from("x"),
                kind: Kind::Test,
                content_type: String::from("application/octet-stream"),
                sender: String::from("test"),
                given_sender: None,
                key: String::new(),
                shows_key: false,
                correlation_id: String::new(),
                trace_parent: String::new(),
                clock: Clock::Untrusted,
                body: Body::new(vec![0; PART.1]),
            };
            chain = chain.next(sequence, transaction.digest(&name));
            let envelope = Envelope::new(&name, epoch, sequence, chain, 0, &transaction);
            out.transaction(envelope, transaction.body.as_bytes()).unwrap();
        }
        out.foot(Foot { lane, count, epoch, last: count, chain, stopped_before: None }).unwrap();
        out.finish().unwrap().finish().unwrap();
        BundleFile::of(file, "the bundle".into())
    }

    #[test]
    fn a_part_that_is_not_taken_is_not_counted() {
        let identity = Identity::generate().unwrap();
        let (mut lanes, mut taken) = (Vec::new(), 0);
        let mut take = |part: Part| {
            taken += part.transactions.len() as u64;
            if taken > 2 { Err(ImportError::Ended) } else { Ok(Tally { stored: 1, ..Tally::default() }) }
        };
        let imported = import(&bundle(&identity, 3), &identity, &mut take, &mut lanes);
        assert!(matches!(imported, Err(ImportError::Ended)), "{imported:?}");
        assert_eq!((lanes[0].count, lanes[0].stored, lanes[0].last), (2, 2, 2));
    }
}
