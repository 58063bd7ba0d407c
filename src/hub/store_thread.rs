//! The store thread carries out what the committer decides. It takes what has arrived as one group, has the committer
//! check it, stores it, and only then answers.
//!
//! A group is everything that has arrived, up to its limits. A single transaction is stored at once. In a stream the
//! next group does not begin sooner than [`GATHER`] after the last, unless [`ENOUGH`] transactions are there: each
//! group costs an fsync, and each of its lanes a receipt, which is signed, carried and verified.
//! [`pgw_core::committer`] decides what is stored, answered and refused, and the models test it; this module has the
//! channel, the store, the clock and the log. `incoming` reads and verifies what the broker brings, `carried` takes bundles, `lookup` answers the
//! committer's questions, `usable` knows the lanes whose files fail, and `centre` is what people learn and decide.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender};
use std::time::{Duration, Instant};

use bytes::Bytes;
use pgw_core::committer::{Action, Committer, Input, Missed, Refusal, Statement, Way};
use pgw_core::delivery::Millis;
use pgw_core::text::chain;
use pgw_core::transaction::{Gateway, Practice, rfc3339, unix_millis_now};
use pgw_core::wire::receipt::{Gap, GapCode};
use pgw_core::wire::topic::Topic;
use rumqttc::v5::mqttbytes::v5::Publish;
use tokio::sync::{OwnedSemaphorePermit, watch};

use super::answers::{Answer, Answers, Beside};
use super::backup::Backups;
use super::fleet::Fleet;
use super::gateways::Gateways;
use super::imported::{NotTaken, Part, Tally};
use super::refusals::Refusals;
use super::resend::{CopiesProgress, ResendRequest, ResendRequests};
use super::speakers::{Speakers, Unheard};
use super::store::{Entry, LaneName, LinkedLane, Store, StoreError, Through};
use super::waits::{Admission, AdmittedLane, NotAdmitted};
use centre::Told;
use lookup::Asked;
use usable::{OUT_OF_USE_MILLIS, cannot_say};

mod carried;
mod centre;
mod incoming;
mod lookup;
mod usable;

pub use pgw_core::committer::GroupLimits;

/// In a stream, groups are about this far apart: a fraction of a gateway's round trip.
const GATHER: Duration = Duration::from_millis(2);
/// How often the thread checks for new arrivals. Waking up for each read would cost more than waiting saves.
const POLL: Duration = Duration::from_micros(500);
/// With this many transactions the thread does not wait for more: less than one gateway's default window has in
/// flight.
const ENOUGH: usize = 48;

/// A message to the store thread.
pub enum Arrival {
    /// Publishes in the order of their arrival, with their share of the byte limit.
    Publishes(Vec<Publish>, OwnedSemaphorePermit),
    /// A new connection is live: the broker may have lost the retained receipts.
    Connected,
    /// Time has passed.
    Tick,
    /// A part of an imported bundle, and where to send its result.
    Import(Box<Part>, SyncSender<Result<Tally, NotTaken>>),
    /// A person wants transactions sent again, and where to send the result.
    Resend(ResendRequest, watch::Sender<CopiesProgress>),
    /// A backup begins: link this lane's files below the directory, and where to send the result.
    LinkLane(LaneName, PathBuf, SyncSender<Result<LinkedLane, StoreError>>),
    /// Put what remains of this file of a lane in its place, and where to send the result.
    TakeRemains(LaneName, u32, SyncSender<Result<(), StoreError>>),
    /// A person says that the backup that was begun is complete.
    BackedUp,
    /// A person admits what waits at a lane, or at every lane, and where to send the result.
    Admit(Admission, SyncSender<Result<Vec<AdmittedLane>, NotAdmitted>>),
    /// Where a lane's line ends, as a receipt would say it now; `None`: nothing may be said of it.
    End(LaneName, SyncSender<Option<Answer>>),
}

/// The store thread's state.
pub struct StoreThread {
    store: Box<dyn Store>,
    committer: Committer<Entry>,
    /// The committer's output that is not carried out yet.
    actions: Vec<Action<Entry>>,
    answers: Answers,
    speakers: Speakers,
    fleet: Fleet,
    backups: Backups,
    topics: HashMap<Bytes, Topic>,
    probes: Vec<(Practice, Gateway, Bytes)>,
    refusals: Refusals,
    resends: ResendRequests,
    /// To be kept beside their lanes, and their payload bytes.
    late: Vec<Entry>,
    late_bytes: usize,
    told: Told,
    /// Lanes whose gateway has deleted all that their files lack, where those end before that, and where they go on.
    covered: BTreeMap<LaneName, (Vec<Through>, Vec<Through>)>,
    /// The last transaction was refused until the centre admits it.
    refused: Option<(LaneName, Refusal)>,
    /// The committer's time counts from here.
    began: Instant,
    /// Groups given to the store, how many of them failed, and how many in part.
    groups: u64,
    failed: u64,
    failed_lanes: u64,
    /// Lanes that the fleet's view shows as out of use.
    out_of_use: BTreeSet<LaneName>,
    /// A client waits for an answer: the group is not delayed.
    hurry: bool,
}

impl StoreThread {
    /// Starts from the store's watermarks.
    #[must_use]
    pub fn new(
        store: Box<dyn Store>,
        answers: Answers,
        gateways: watch::Receiver<Arc<Gateways>>,
        fleet: Fleet,
        backups: Backups,
        limits: GroupLimits,
    ) -> Self {
        Self {
            committer: Committer::new(limits, store.watermarks(), backups.lanes()),
            store,
            actions: Vec::new(),
            answers,
            speakers: Speakers::new(gateways),
            fleet,
            backups,
            topics: HashMap::new(),
            probes: Vec::new(),
            refusals: Refusals::default(),
            resends: ResendRequests::default(),
            late: Vec::new(),
            late_bytes: 0,
            told: Told::default(),
            covered: BTreeMap::new(),
            refused: None,
            began: Instant::now(),
            groups: 0,
            failed: 0,
            failed_lanes: 0,
            out_of_use: BTreeSet::new(),
            hurry: false,
        }
    }

    /// Works until all senders are gone. Blocking.
    pub fn run(mut self, arrivals: Receiver<Arrival>) {
        let mut permits = Vec::new();
        let mut stored: Option<Instant> = None;
        while let Ok(first) = arrivals.recv() {
            let before = self.groups;
            let mut next = Some(first);
            while let Some(arrival) = next.take() {
                permits.extend(self.take(arrival));
                let waiting = self.committer.group().len();
                if waiting == 0 && self.groups > before {
                    // The group was full and is stored: the next arrival begins a new one.
                    break;
                }
                next = arrivals.try_recv().ok();
                if next.is_none() && !self.hurry && waiting < ENOUGH {
                    let rest = stored.map_or(Duration::ZERO, |at| GATHER.saturating_sub(at.elapsed()));
                    if !rest.is_zero() {
                        std::thread::sleep(rest.min(POLL));
                        next = Some(arrivals.try_recv().unwrap_or(Arrival::Tick));
                    }
                }
            }
            self.finish();
            permits.clear();
            if self.groups > before {
                stored = Some(Instant::now());
            }
        }
        self.fleet.save(true);
    }

    fn take(&mut self, arrival: Arrival) -> Option<OwnedSemaphorePermit> {
        if self.committer.group().is_empty() && self.speakers.refresh() {
            // What a gateway may have under way may be another number now.
            self.hurry = true;
            self.tell(Input::Connected);
        }
        match arrival {
            Arrival::Connected => {
                self.hurry = true;
                self.tell(Input::Connected);
                None
            }
            Arrival::Tick => {
                self.resends.give_up();
                self.try_lanes_again();
                None
            }
            Arrival::LinkLane(lane, into, answer) => {
                let _ = answer.send(self.store.link_lane(&lane, &into));
                None
            }
            Arrival::TakeRemains(lane, file, answer) => {
                let _ = answer.send(self.store.take_remains(&lane, file));
                None
            }
            Arrival::BackedUp => {
                self.backups.read();
                self.hurry = true;
                self.tell(Input::BackedUp(self.backups.lanes()));
                None
            }
            Arrival::Resend(request, progress) => {
                self.resend(request, progress);
                self.hurry = true;
                None
            }
            Arrival::Admit(admission, answer) => {
                let _ = answer.send(self.admit(&admission));
                None
            }
            Arrival::End(lane, answer) => {
                let _ = answer.send(self.end_of(lane));
                None
            }
            Arrival::Import(part, answer) => {
                // The client may have gone: the transactions are stored all the same.
                let _ = answer.send(self.import(*part));
                None
            }
            Arrival::Publishes(publishes, permit) => {
                for publish in publishes {
                    self.publish(publish);
                    if self.resends.bytes() + self.late_bytes >= self.committer.limits().bytes {
                        self.finish();
                    }
                }
                Some(permit)
            }
        }
    }

    /// Passes an event to the committer and carries out its output.
    fn tell(&mut self, input: Input<Entry>) {
        let mut next = Some(input);
        while let Some(input) = next.take() {
            let now = self.now();
            let mut actions = std::mem::take(&mut self.actions);
            let mut asked = Asked {
                store: &mut *self.store,
                speakers: &self.speakers,
                late: &self.late,
                resends: &self.resends,
                error: None,
            };
            self.committer.handle(input, now, &mut asked, &mut actions);
            if let Some((lane, error)) = asked.error {
                cannot_say(&lane, &error);
            }
            for action in actions.drain(..) {
                next = self.carry_out(action, Way::Link).or(next);
            }
            self.actions = actions;
        }
    }

    /// Carries out one task; returns the committer's next event. `way`: how what it is about has come.
    fn carry_out(&mut self, action: Action<Entry>, way: Way) -> Option<Input<Entry>> {
        match action {
            Action::Append => return Some(self.append()),
            Action::Receipt(lane, statement) => self.receipt(&lane, statement),
            Action::Gap(lane, Missed { code, epoch, expected, round }) => {
                let mut gap = Gap::new(code, epoch, expected, round);
                if code == GapCode::Later {
                    let pause = self.committer.retries_in(&lane, self.now()).unwrap_or(OUT_OF_USE_MILLIS);
                    gap.until = Some(rfc3339(unix_millis_now() + pause));
                }
                self.answers.gap(&lane, gap);
            }
            Action::Refuse(lane, why) => {
                let reason = match why {
                    Refusal::TooManyLanes => "number of lanes",
                    Refusal::Link => "it does not continue the lane",
                    Refusal::Admit | Refusal::Hole => "the centre must admit it",
                    Refusal::Epochs => "number of epochs in a day",
                    Refusal::TooLarge => "beyond the limits of this hub",
                    Refusal::Unsigned => Unheard::Unverified.reason(),
                };
                self.refuse(lane.to_string(), reason);
                self.refused = Some((lane, why));
            }
            Action::KeepLate(entry) => self.late(entry, way),
            Action::Rival(lane, numbered) => self.rival(&lane, numbered),
            Action::Repeated(copy) => self.repeated(copy),
            Action::Recovered { lane: None, dropped } => {
                tracing::info!(dropped, "The store works again");
            }
            Action::Recovered { lane: Some(lane), dropped } => {
                tracing::info!(%lane, dropped, "The store can tell again what it has of a lane");
            }
        }
        None
    }

    /// The committer's time.
    fn now(&self) -> Millis {
        Millis::try_from(self.began.elapsed().as_millis()).unwrap_or(Millis::MAX)
    }

    fn append(&mut self) -> Input<Entry> {
        self.groups += 1;
        match self.store.append(self.committer.group()) {
            Ok(()) => {
                self.name_kinds();
                Input::Stored
            }
            // The other lanes are stored, and the committer asks of each what is.
            Err(error) if error.concerns_one_lane() => {
                if let StoreError::NotNext { lane, .. } = &error {
                    tracing::error!(%lane, error = chain(&error), "A lane begins again from what is stored; a bug in this program");
                }
                self.failed_lanes += 1;
                self.name_kinds();
                self.name_failed_lanes();
                Input::Stored
            }
            Err(error) => {
                store_failed(&error);
                self.name_failed_lanes();
                self.failed += 1;
                Input::StoreFailed
            }
        }
    }

    fn receipt(&mut self, lane: &LaneName, statement: Statement) {
        if !self.in_use(lane) {
            return;
        }
        // What the models prove about the committer holds for this store only as long as the two agree.
        if !is_stored(statement.end.as_ref(), &self.store.watermarks_of(lane)) {
            tracing::error!(%lane, "Withheld a receipt that claims more than is stored; a bug in this program");
            return;
        }
        if let Some(end) = &statement.end {
            self.fleet.is_at(lane, end);
        }
        let tail_seen = statement.end.and_then(|end| self.fleet.tail_seen(lane, end.epoch));
        let window = self.speakers.window(&lane.practice, &lane.gateway);
        let lost = self.store.lost(lane).to_vec();
        self.answers.receipt(lane, statement, Beside { tail_seen, lost, window });
    }

    /// Puts the requested copies on stable storage.
    fn keep_copies(&mut self) {
        let copies = self.resends.take_copies();
        if copies.is_empty() {
            return;
        }
        if let Err(error) = self.store.keep_copies(&copies) {
            tracing::error!(error = chain(&error), "Copies that a gateway sent again could not be stored");
            self.resends.copies_lost(&copies, &error);
        }
    }

    /// Nothing of a repetition counts, unless a person has asked for it: then its content may replace what the files have lost.
    fn repeated(&mut self, copy: Entry) {
        if !self.resends.asks_for(&copy) {
            return;
        }
        match self.speakers.signed_by(&copy, copy.envelope.chain, Way::Link) {
            Some(_) => self.resends.repetition(copy),
            None => self.refuse(copy.lane.to_string(), Unheard::Unverified.reason()),
        }
    }

    /// Stores the group, then answers. False: it is not stored.
    fn finish(&mut self) -> bool {
        self.hurry = false;
        self.keep_copies();
        self.keep_late();
        let failed = self.failed;
        self.tell(Input::Flush);
        for (practice, gateway, payload) in self.probes.drain(..) {
            self.answers.probe(practice, gateway, payload);
        }
        self.fleet.save(false);
        self.failed == failed
    }

    fn refuse(&mut self, who: String, why: &'static str) {
        self.refusals.count(&who, why, Instant::now());
        self.fleet.refused(&who);
    }
}

/// Whether the store has everything that a receipt covers, and no receipt calls a lane empty that is not.
fn is_stored(claimed: Option<&Through>, watermarks: &[Through]) -> bool {
    let Some(claimed) = claimed else { return watermarks.is_empty() };
    let watermark = watermarks.iter().find(|watermark| watermark.epoch == claimed.epoch);
    watermark.is_some_and(|watermark| claimed.through < watermark.through || claimed == watermark)
}

fn store_failed(error: &StoreError) {
    tracing::error!(
        error = chain(error),
        full = error.is_full(),
        "The store has failed: the hub stores and confirms nothing; the gateways keep everything"
    );
}

/// The wall clock as text, for payloads.
pub(super) fn now_text() -> String {
    rfc3339(unix_millis_now())
}

#[cfg(test)]
mod tests {
    use super::*;
    use pgw_core::chain::ChainValue;
    use pgw_core::transaction::Epoch;

    #[test]
    fn a_receipt_that_says_more_than_the_store_has_is_found() {
        let watermark = |epoch: u128, through, chain| Through {
            epoch: Epoch(uuid::Uuid::from_u128(epoch)),
            through,
            chain: ChainValue([chain; 32]),
        };
        let watermarks = [watermark(1, 5, 5), watermark(2, 3, 3)];
        assert!(is_stored(None, &[]));
        assert!(!is_stored(None, &watermarks), "an empty line, and there is something");
        assert!(is_stored(Some(&watermarks[1]), &watermarks));
        assert!(is_stored(Some(&watermark(1, 4, 4)), &watermarks));
        assert!(!is_stored(Some(&watermark(2, 4, 4)), &watermarks), "more");
        assert!(!is_stored(Some(&watermark(2, 3, 9)), &watermarks), "something else");
        assert!(!is_stored(Some(&watermark(3, 1, 1)), &watermarks), "another epoch");
    }
}
