//! Asks a gateway to send again what the hub's files have lost or altered, and keeps the copies beside the lane
//! ([`Store::keep_copies`](super::store::Store::keep_copies)). The stored lines stay as they are, and no lane's end
//! moves: exactly once still holds.
//!
//! A person requests it with `practice-hub resend`, over the control socket; the store thread owns [`ResendRequests`].

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use pgw_core::chain::ChainValue;
use pgw_core::committer::{Numbered, Record as _};
use pgw_core::transaction::{Epoch, Gateway, Practice, Sequence};
use pgw_core::wire::command::{CommandAddress, CommandResult, Order};
use pgw_core::wire::envelope::Envelope;
use tokio::sync::watch;

use super::answers::Answers;
use super::store::{Entry, LaneName, StoreError, Through};

/// Chain values that are remembered of a range: its copies arrive in order, but for repetitions.
const REMEMBERED: usize = 64;
/// A gateway that has sent nothing for this long counts as not responding.
const PATIENCE: Duration = Duration::from_secs(60);

/// The request of a person.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResendRequest {
    /// The lane.
    pub lane: LaneName,
    /// Epoch of the sequences; the lane's last one if left out.
    pub epoch: Option<Epoch>,
    /// The first sequence.
    pub from: Sequence,
    /// The last one.
    pub through: Sequence,
}

/// How far a resend has come.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CopiesProgress {
    /// Copies that have arrived; they are on stable storage when it has ended.
    pub kept: u64,
    /// How it ended.
    pub ended: Option<Result<ResendDone, ResendError>>,
}

/// A resend that the gateway reports as done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResendDone {
    /// How many it has sent.
    pub sent: u64,
    /// Its remark.
    pub detail: String,
}

/// Why a resend was not done, or not completely. A person reads it and asks again; the program decides nothing by it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ResendError {
    /// The lane is unknown.
    #[error("the hub has stored nothing of {0}")]
    NothingStored(LaneName),
    /// The epoch is unknown.
    #[error("{lane}: nothing of epoch {epoch} is stored here")]
    UnknownEpoch {
        /// The lane.
        lane: LaneName,
        /// The epoch that was asked for.
        epoch: Epoch,
    },
    /// The range is not stored.
    #[error(
        "{lane}: sequences {from} to {through} are not a range from 1 to {stored}; the gateway sends later ones without being asked"
    )]
    NoRange {
        /// The lane.
        lane: LaneName,
        /// The first sequence that was asked for.
        from: Sequence,
        /// The last one.
        through: Sequence,
        /// The last stored one.
        stored: Sequence,
    },
    /// Its body was archived.
    #[error(
        "{lane}: the body of sequence {sequence} of epoch {epoch} was archived, and a copy would change nothing here: read it in the archive (`practice-hub verify --archive DIR` proves it); if the line is damaged, put the archive's file back"
    )]
    Archived {
        /// The lane.
        lane: LaneName,
        /// Its epoch.
        epoch: Epoch,
        /// The sequence that was asked for.
        sequence: Sequence,
    },
    /// The gateway cannot be asked.
    #[error("{0}: the gateway is not online: run this command again when it is")]
    NotOnline(LaneName),
    /// Replaced by a later request for the same lane.
    #[error("another request for this lane replaced it")]
    Replaced,
    /// The gateway refuses.
    #[error("the gateway refuses: {0}")]
    Refused(String),
    /// The gateway has sent more than arrived here: the broker dropped some, or the hub had only just started.
    #[error("the gateway sent {sent} transactions, and {kept} of them arrived: run this command again")]
    NotArrived {
        /// According to the gateway.
        sent: u64,
        /// Copies that are kept.
        kept: u64,
    },
    /// Nothing has arrived for too long.
    #[error("the gateway has not answered")]
    NoAnswer,
    /// The copies could not be put on stable storage.
    #[error("{0}")]
    Store(String),
}

/// A range that was requested from a gateway.
struct Pending {
    id: String,
    epoch: Epoch,
    range: RangeInclusive<Sequence>,
    /// Signed copies, of the range and of the number before it.
    arrived: BTreeSet<Sequence>,
    /// Those of them that follow from the gateway's own chain value before them.
    proven: BTreeSet<Sequence>,
    /// Chain values that the gateway has signed, of the last numbers that arrived.
    signed: BTreeMap<Sequence, ChainValue>,
    last_received: Instant,
    progress: watch::Sender<CopiesProgress>,
}

impl Pending {
    /// The first number that the gateway is asked for: a chain value proves a body only together with the value before it.
    fn first(range: &RangeInclusive<Sequence>) -> Sequence {
        range.start().saturating_sub(1).max(1)
    }

    fn asks_for(&self, envelope: &Envelope) -> bool {
        let asked = Self::first(&self.range)..=*self.range.end();
        envelope.epoch == self.epoch && asked.contains(&envelope.sequence)
    }

    /// How many copies of the range have arrived.
    fn count(&self) -> u64 {
        self.arrived.range(self.range.clone()).count() as u64
    }

    /// Whether a signed copy is to be kept. One that cannot be proven yet, because the one before it has not arrived, is
    /// kept until one comes that can: `verify` judges both, and takes the later one.
    fn keeps(&mut self, copy: &Entry) -> bool {
        let Numbered { sequence, chain, epoch, link, .. } = copy.numbered();
        let before = match sequence {
            1 => Some(ChainValue::first(&copy.lane, epoch, link.as_ref())),
            _ => self.signed.get(&(sequence - 1)).copied(),
        };
        self.signed.insert(sequence, chain);
        if self.signed.len() > REMEMBERED {
            self.signed.pop_first();
        }
        let follows = before.map(|before| copy.chain_after(before) == chain);
        if follows == Some(false) {
            return false;
        }
        let is_first = self.arrived.insert(sequence);
        let proves = follows == Some(true) && self.proven.insert(sequence);
        (is_first || proves) && self.range.contains(&sequence)
    }
}

/// All requests: one range per lane.
#[derive(Default)]
pub(super) struct ResendRequests {
    lanes: HashMap<LaneName, Pending>,
    copies: Vec<Entry>,
    bytes: usize,
}

impl ResendRequests {
    /// Payload bytes of the copies that are not on stable storage yet.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// A person requests a range. `stored` is where the lane's epochs end, `address` the gateway's if it is online.
    pub(super) fn ask(
        &mut self,
        request: ResendRequest,
        stored: &[Through],
        address: Option<CommandAddress>,
        answers: &Answers,
        progress: watch::Sender<CopiesProgress>,
    ) {
        let (epoch, address) = match possible(&request, stored, address) {
            Ok(possible) => possible,
            Err(error) => {
                progress.send_replace(CopiesProgress { kept: 0, ended: Some(Err(error)) });
                return;
            }
        };
        let ResendRequest { lane: name, from, through, .. } = request;
        self.end(&name, Err(ResendError::Replaced));
        let id = uuid::Uuid::now_v7().to_string();
        let range = from..=through;
        let first = Pending::first(&range);
        let order = Order::Resend { lane: name.lane.clone(), epoch, from: first, through };
        answers.command(&name.practice, &name.gateway, id.clone(), address, order);
        tracing::info!(lane = %name, %epoch, from, through, "Asked a gateway for transactions again");
        let (arrived, proven, last_received) = (BTreeSet::new(), BTreeSet::new(), Instant::now());
        let signed = BTreeMap::new();
        let pending = Pending { id, epoch, range, arrived, proven, signed, last_received, progress };
        self.lanes.insert(name, pending);
    }

    /// Whether a repetition was requested: its signature is to be verified then.
    pub(super) fn asks_for(&self, copy: &Entry) -> bool {
        self.lanes.get(&copy.lane).is_some_and(|pending| pending.asks_for(&copy.envelope))
    }

    /// The chain value at a number that the gateway has signed with the copies so far.
    pub(super) fn signed_at(&self, lane: &LaneName, epoch: Epoch, sequence: Sequence) -> Option<ChainValue> {
        let pending = self.lanes.get(lane).filter(|pending| pending.epoch == epoch)?;
        pending.signed.get(&sequence).copied()
    }

    /// A repetition has arrived that was requested, and that its gateway has signed.
    pub(super) fn repetition(&mut self, copy: Entry) {
        let Some(pending) = self.lanes.get_mut(&copy.lane) else { return };
        pending.last_received = Instant::now();
        if pending.keeps(&copy) {
            let kept = pending.count();
            pending.progress.send_modify(|progress| progress.kept = kept);
            self.bytes += copy.bytes();
            self.copies.push(copy);
        }
    }

    /// A gateway reports the result of a command; what it sent before is on stable storage.
    pub(super) fn result(&mut self, practice: &Practice, gateway: &Gateway, result: CommandResult) {
        let of = self.lanes.iter().find(|(name, pending)| {
            pending.id == result.id && name.practice == *practice && name.gateway == *gateway
        });
        let Some((name, pending)) = of else { return };
        let (name, kept) = (name.clone(), pending.count());
        let before = pending.arrived.len() as u64 - kept;
        let CommandResult { done, transactions, detail, .. } = result;
        // Without the one before the range.
        let sent = transactions.saturating_sub(before);
        let ended = match done {
            1 if kept < sent => Err(ResendError::NotArrived { sent, kept }),
            1 => Ok(ResendDone { sent, detail }),
            _ => Err(ResendError::Refused(detail)),
        };
        self.end(&name, ended);
    }

    /// The copies that are to be put on stable storage.
    pub(super) fn take_copies(&mut self) -> Vec<Entry> {
        self.bytes = 0;
        std::mem::take(&mut self.copies)
    }

    /// They could not be.
    pub(super) fn copies_lost(&mut self, copies: &[Entry], error: &StoreError) {
        for copy in copies {
            self.end(&copy.lane, Err(ResendError::Store(error.to_string())));
        }
    }

    /// Ends requests whose gateway has not responded for too long.
    pub(super) fn give_up(&mut self) {
        let late = self.lanes.iter().filter(|(_, pending)| pending.last_received.elapsed() > PATIENCE);
        for name in late.map(|(name, _)| name.clone()).collect::<Vec<_>>() {
            self.end(&name, Err(ResendError::NoAnswer));
        }
    }

    fn end(&mut self, lane: &LaneName, ended: Result<ResendDone, ResendError>) {
        if let Some(pending) = self.lanes.remove(lane) {
            // The client may have gone.
            pending.progress.send_modify(|progress| progress.ended = Some(ended));
        }
    }
}

/// The epoch and what makes the gateway obey, if it can be asked for the range.
fn possible(
    request: &ResendRequest,
    stored: &[Through],
    address: Option<CommandAddress>,
) -> Result<(Epoch, CommandAddress), ResendError> {
    let ResendRequest { lane, epoch, from, through } = request;
    let Some(last) = stored.last() else { return Err(ResendError::NothingStored(lane.clone())) };
    let epoch = epoch.unwrap_or(last.epoch);
    let stored = match stored.iter().find(|of| of.epoch == epoch) {
        Some(end) => end.through,
        None => return Err(ResendError::UnknownEpoch { lane: lane.clone(), epoch }),
    };
    let (from, through) = (*from, *through);
    if from == 0 || from > through || through > stored {
        return Err(ResendError::NoRange { lane: lane.clone(), from, through, stored });
    }
    let address = address.ok_or_else(|| ResendError::NotOnline(lane.clone()))?;
    Ok((epoch, address))
}
