//! Wanted again: what the hub's files have lost or altered is asked of the gateway that sent it, and copies are kept beside the
//! lane ([`Store::mend`](super::store::Store::mend)). What is stored stays as it is, and marks do not move: exactly once holds.
//!
//! A person orders it with `practice-hub resend`, which puts `ID.order` ([`Wanted`]) into `{store}/orders/`, where the running
//! hub finds it, and waits for `ID.json` ([`Outcome`]).

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, TryRecvError, sync_channel};
use std::time::{Duration, Instant};

use bytes::Bytes;
use pgw_core::transaction::{Epoch, Gateway, Lane, Practice, Sequence};
use pgw_core::wire::command::{CommandResult, Order};
use pgw_core::wire::envelope::Envelope;
use serde::{Deserialize, Serialize};

use super::store::{Entry, LaneName};
use super::store_thread::{Arrival, StoreThread};

/// The folder for orders, below the store.
pub const FOLDER: &str = "orders";
/// How often the folder is looked at.
const LOOK: Duration = Duration::from_millis(200);
/// A gateway that has sent nothing for so long does not answer.
const PATIENCE: Duration = Duration::from_secs(60);

/// What is wanted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wanted {
    /// Whose.
    pub practice: Practice,
    /// Its gateway.
    pub gateway: Gateway,
    /// Which.
    pub lane: Lane,
    /// Epoch of the numbers.
    pub epoch: Epoch,
    /// The first.
    pub from: Sequence,
    /// The last.
    pub through: Sequence,
}

/// What has become of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// Why it was not done, one sentence.
    pub error: Option<String>,
    /// So many went out, says the gateway.
    pub sent: u64,
    /// So many are kept here.
    pub kept: u64,
    /// What else the gateway says.
    pub detail: String,
}

impl Outcome {
    fn refused(error: String) -> Self {
        Self { error: Some(error), sent: 0, kept: 0, detail: String::new() }
    }
}

struct Want {
    id: String,
    epoch: Epoch,
    range: std::ops::RangeInclusive<Sequence>,
    kept: BTreeSet<Sequence>,
    heard: Instant,
    answer: SyncSender<Outcome>,
}

/// What the store thread waits for: one range a lane.
#[derive(Default)]
pub(super) struct Wants {
    lanes: HashMap<LaneName, Want>,
    copies: Vec<Entry>,
    bytes: usize,
}

impl Wants {
    /// Payload bytes that wait to be kept.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// A repetition has come: it is kept if it is wanted and not kept yet.
    pub(super) fn repetition(&mut self, lane: &LaneName, envelope: Envelope, body: Bytes) {
        let Some(want) = self.lanes.get_mut(lane) else { return };
        let sequence = envelope.sequence;
        if envelope.epoch == want.epoch && want.range.contains(&sequence) && want.kept.insert(sequence) {
            want.heard = Instant::now();
            self.bytes += body.len();
            self.copies.push(Entry { lane: lane.clone(), envelope, body: Some(body) });
        }
    }

    fn end(&mut self, lane: &LaneName, outcome: impl FnOnce(&Want) -> Outcome) {
        if let Some(want) = self.lanes.remove(lane) {
            // Whoever asked may have gone.
            let _ = want.answer.send(outcome(&want));
        }
    }
}

impl StoreThread {
    /// Somebody wants a range again.
    pub(super) fn want(&mut self, wanted: Wanted, answer: SyncSender<Outcome>) {
        let Wanted { practice, gateway, lane, epoch, from, through } = wanted;
        let name = LaneName { practice, gateway, lane: lane.clone() };
        let stored =
            self.store.marks_of(&name).iter().find(|mark| mark.epoch == epoch).map(|mark| mark.through);
        let session = self.fleet.session(&name.practice, &name.gateway);
        let refused = match (stored, session) {
            (None, _) => Some(format!("{name}: nothing of epoch {epoch} is stored here")),
            (Some(stored), _) if from == 0 || from > through || through > stored => Some(format!(
                "{name}: sequences {from} to {through} are not a range from 1 to {stored}; what comes later is sent by itself"
            )),
            (_, None) => Some(format!("{name}: the gateway is not online: order it again when it is")),
            _ => None,
        };
        if let Some(reason) = refused {
            let _ = answer.send(Outcome::refused(reason));
            return;
        }
        self.wants.end(&name, |_| Outcome::refused("another order took its place".to_owned()));
        let id = uuid::Uuid::now_v7().to_string();
        let order = Order::Resend { lane, epoch, from, through };
        self.answers.command(&name.practice, &name.gateway, id.clone(), session.unwrap_or_default(), order);
        tracing::info!(lane = %name, %epoch, from, through, "Asked a gateway for transactions again");
        let (kept, heard) = (BTreeSet::new(), Instant::now());
        self.wants.lanes.insert(name, Want { id, epoch, range: from..=through, kept, heard, answer });
    }

    /// A gateway says what has become of a command. What it sent before is kept first.
    pub(super) fn command_result(&mut self, practice: &Practice, gateway: &Gateway, result: CommandResult) {
        self.keep_copies();
        let of = self.wants.lanes.iter().find(|(name, want)| {
            want.id == result.id && name.practice == *practice && name.gateway == *gateway
        });
        let Some(name) = of.map(|(name, _)| name.clone()) else { return };
        self.wants.end(&name, |want| {
            let CommandResult { done, count, detail, .. } = result;
            let kept = want.kept.len() as u64;
            match done {
                1 => Outcome { error: None, sent: count, kept, detail },
                _ => Outcome { kept, ..Outcome::refused(format!("the gateway refuses: {detail}")) },
            }
        });
    }

    /// Puts what has come on stable storage.
    pub(super) fn keep_copies(&mut self) {
        self.wants.bytes = 0;
        let copies = std::mem::take(&mut self.wants.copies);
        if copies.is_empty() {
            return;
        }
        if let Err(error) = self.store.mend(&copies) {
            tracing::error!(
                error = %error,
                source = std::error::Error::source(&error).map(tracing::field::display),
                "Copies that were wanted again cannot be kept"
            );
            for copy in copies {
                self.wants.end(&copy.lane, |_| Outcome::refused(error.to_string()));
            }
        }
    }

    /// Who waits too long for a gateway is told.
    pub(super) fn give_up(&mut self) {
        let late = self.wants.lanes.iter().filter(|(_, want)| want.heard.elapsed() > PATIENCE);
        for name in late.map(|(name, _)| name.clone()).collect::<Vec<_>>() {
            self.wants.end(&name, |want| Outcome {
                kept: want.kept.len() as u64,
                ..Outcome::refused("the gateway does not answer".to_owned())
            });
        }
    }
}

/// Looks at the folder until `stop`, on a thread of its own.
pub(super) fn watch(store: &Path, arrivals: &Sender<Arrival>, stop: &AtomicBool) {
    let folder = store.join(FOLDER);
    if let Err(error) = super::store::create_private(&folder) {
        tracing::error!(%error, "The folder for orders cannot be made: nothing can be wanted again");
        return;
    }
    let mut waiting: Vec<(PathBuf, Receiver<Outcome>)> = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let entries = fs::read_dir(&folder).into_iter().flatten().flatten().map(|entry| entry.path());
        let orders = entries.filter(|path| path.extension().is_some_and(|extension| extension == "order"));
        for path in orders.filter(|path| waiting.iter().all(|(known, _)| known != path)).collect::<Vec<_>>() {
            let (answer, answered) = sync_channel(1);
            match fs::read(&path)
                .map_err(std::io::Error::other)
                .and_then(|text| Ok(serde_json::from_slice(&text)?))
            {
                Ok(wanted) => {
                    if arrivals.send(Arrival::Wanted(Box::new(wanted), answer)).is_err() {
                        return;
                    }
                }
                Err(error) => {
                    let _ = answer.send(Outcome::refused(format!("it is no order: {error}")));
                }
            }
            waiting.push((path, answered));
        }
        waiting.retain(|(path, answered)| match answered.try_recv() {
            Err(TryRecvError::Empty) => true,
            Err(TryRecvError::Disconnected) => false,
            Ok(outcome) => {
                if let Err(error) = write_outcome(path, &outcome) {
                    tracing::error!(%error, "What became of an order cannot be written down");
                }
                false
            }
        });
        std::thread::sleep(LOOK);
    }
}

fn write_outcome(order: &Path, outcome: &Outcome) -> std::io::Result<()> {
    let new = order.with_extension("new");
    super::store::create_private_file(&new)?.write_all(&serde_json::to_vec(outcome)?)?;
    fs::rename(&new, order.with_extension("json"))?;
    fs::remove_file(order)
}
