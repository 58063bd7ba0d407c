//! The store thread carries out what the committer decides. It takes what has arrived as one group, has the committer
//! check it, stores it, and only then answers.
//!
//! A group is everything that has arrived, up to its limits. A single transaction is stored at once. In a stream the
//! next group does not begin sooner than [`GATHER`] after the last, unless [`ENOUGH`] transactions are there: each
//! group costs an fsync, and each of its lanes a receipt, which is signed, carried and verified.
//! [`pgw_core::committer`] decides what is stored, answered and refused, and the models test it; this module has the
//! channel, the store, the clock and the log. `incoming` reads and verifies what the broker brings.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender};
use std::time::{Duration, Instant};

use bytes::Bytes;
use pgw_bundle::bundle::Older;
use pgw_core::chain::ChainValue;
use pgw_core::committer::{Action, Committer, Input, Lookup, Missed, Refusal, Statement, Way};
use pgw_core::delivery::Millis;
use pgw_core::text::chain;
use pgw_core::transaction::{Gateway, Practice, TransactionId, rfc3339, unix_millis_now};
use pgw_core::wire::receipt::{Gap, GapCode};
use pgw_core::wire::signature::KeyId;
use pgw_core::wire::topic::Topic;
use rumqttc::v5::mqttbytes::v5::Publish;
use tokio::sync::{OwnedSemaphorePermit, watch};

use super::answers::{Answers, Beside};
use super::backup::Backups;
use super::fleet::Fleet;
use super::gateways::Gateways;
use super::imported::{NotTaken, Part, Tally};
use super::refusals::Refusals;
use super::resend::{CopiesProgress, ResendError, ResendRequest, ResendRequests};
use super::speakers::{Speakers, Unheard};
use super::store::{Entry, LaneName, LinkedLane, Store, StoreError, Through};

mod incoming;

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
    /// A person says that the backup that was begun is complete.
    BackedUp,
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
    /// The committer's time counts from here.
    began: Instant,
    /// Groups given to the store, and how many of them failed.
    groups: u64,
    failed: u64,
    /// A client waits for an answer: the group is not delayed.
    hurry: bool,
}

/// What the committer asks of the store; an error is kept for the log.
struct Asked<'a> {
    store: &'a mut dyn Store,
    speakers: &'a Speakers,
    error: Option<StoreError>,
}

impl Lookup<Entry> for Asked<'_> {
    fn watermarks_of(&self, lane: &LaneName) -> Vec<Through> {
        self.store.watermarks_of(lane)
    }

    fn has_id(&mut self, lane: &LaneName, id: TransactionId) -> Option<bool> {
        self.store.has_id(lane, id.0).map_err(|error| self.error = Some(error)).ok()
    }

    fn signed_by(&mut self, entry: &Entry, chain: ChainValue, way: Way) -> Option<KeyId> {
        self.speakers.signed_by(entry, chain, way)
    }
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
            began: Instant::now(),
            groups: 0,
            failed: 0,
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
                None
            }
            Arrival::LinkLane(lane, into, answer) => {
                let _ = answer.send(self.store.link_lane(&lane, &into));
                None
            }
            Arrival::BackedUp => {
                self.backups.read();
                self.hurry = true;
                self.tell(Input::BackedUp(self.backups.lanes()));
                None
            }
            Arrival::Resend(request, progress) => {
                if let Err(error) = self.store.check_lane(&request.lane) {
                    let ended = Some(Err(ResendError::Store(error.to_string())));
                    progress.send_replace(CopiesProgress { kept: 0, ended });
                    return None;
                }
                let stored = self.store.watermarks_of(&request.lane);
                let address = self.fleet.next_command(&request.lane.practice, &request.lane.gateway);
                self.resends.ask(request, &stored, address, &self.answers, progress);
                self.hurry = true;
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
                    if self.resends.bytes() >= self.committer.limits().bytes {
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
            let mut asked = Asked { store: &mut *self.store, speakers: &self.speakers, error: None };
            self.committer.handle(input, now, &mut asked, &mut actions);
            if let Some(error) = asked.error {
                store_failed(&error);
            }
            for action in actions.drain(..) {
                match action {
                    Action::Append => next = Some(self.append()),
                    Action::Receipt(lane, statement) => self.receipt(&lane, statement),
                    Action::Gap(lane, Missed { code, epoch, expected, round }) => {
                        let mut gap = Gap::new(code, epoch, expected, round);
                        if code == GapCode::Later {
                            gap.until = self
                                .committer
                                .retries_in(now)
                                .map(|pause| rfc3339(unix_millis_now() + pause));
                        }
                        self.answers.gap(&lane, gap);
                    }
                    Action::Refuse(lane, Refusal::TooManyLanes) => {
                        self.refuse(lane.to_string(), "number of lanes");
                    }
                    Action::Refuse(lane, Refusal::Chain) => self.refuse(lane.to_string(), "chain"),
                    Action::Refuse(lane, Refusal::Unsigned) => {
                        self.refuse(lane.to_string(), Unheard::Unverified.reason());
                    }
                    Action::Repeated(copy) => self.repeated(copy),
                    Action::Recovered { dropped } => tracing::info!(dropped, "The store works again"),
                }
            }
            self.actions = actions;
        }
    }

    /// The committer's time.
    fn now(&self) -> Millis {
        Millis::try_from(self.began.elapsed().as_millis()).unwrap_or(Millis::MAX)
    }

    fn append(&mut self) -> Input<Entry> {
        self.groups += 1;
        match self.store.append(self.committer.group()) {
            Ok(()) => Input::Stored,
            Err(error) => {
                store_failed(&error);
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
        if !is_stored(&statement.epochs, &self.store.watermarks_of(lane)) {
            tracing::error!(%lane, "Withheld a receipt that claims more than is stored; a bug in this program");
            return;
        }
        let newest = statement.epochs.last().map(|newest| newest.epoch);
        let tail_seen = newest.and_then(|epoch| self.fleet.tail_seen(lane, epoch));
        let window = self.speakers.window(&lane.practice, &lane.gateway);
        self.answers.receipt(lane, statement, Beside { tail_seen, window });
    }

    /// Takes a part of a bundle: stores what the broker brought before, then this part. It is on stable storage when
    /// this returns.
    ///
    /// # Errors
    /// [`NotTaken`].
    pub fn import(&mut self, part: Part) -> Result<Tally, NotTaken> {
        let Part { lane, older, transactions } = part;
        if !self.finish() || !self.in_use(&lane) {
            return Err(NotTaken::StoreFailed(lane));
        }
        let older = older.into_iter().map(|Older { epoch, through }| (epoch, through));
        let entry = |(envelope, body)| Entry::new(lane.clone(), envelope, body);
        let now = self.now();
        let mut asked = Asked { store: &mut *self.store, speakers: &self.speakers, error: None };
        let taken = self.committer.import(&lane, older, transactions.into_iter().map(entry), now, &mut asked);
        if let Some(error) = asked.error {
            store_failed(&error);
        }
        let (mut tally, wrong) = taken?;
        if !self.finish() {
            return Err(NotTaken::StoreFailed(lane));
        }
        tally.watermarks = self.store.watermarks_of(&lane);
        wrong.map_or(Ok(tally), Err)
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
        let failed = self.failed;
        self.tell(Input::Flush);
        for (practice, gateway, payload) in self.probes.drain(..) {
            self.answers.probe(practice, gateway, payload);
        }
        self.fleet.save(false);
        self.failed == failed
    }

    /// Whether something may be said of a lane: not where its files cannot be used.
    fn in_use(&mut self, lane: &LaneName) -> bool {
        let in_use = self.store.check_lane(lane).is_ok();
        if !in_use {
            self.refuse(lane.to_string(), "lane out of use");
        }
        in_use
    }

    fn refuse(&mut self, who: String, why: &'static str) {
        self.refusals.count(&who, why, Instant::now());
        self.fleet.refused(&who);
    }
}

/// Whether the store has everything that a receipt covers.
fn is_stored(claimed: &[Through], watermarks: &[Through]) -> bool {
    claimed.iter().all(|claimed| {
        let watermark = watermarks.iter().find(|watermark| watermark.epoch == claimed.epoch);
        watermark.is_some_and(|watermark| claimed.through < watermark.through || claimed == watermark)
    })
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
        assert!(is_stored(&[], &[]));
        assert!(is_stored(&watermarks, &watermarks));
        assert!(is_stored(&[watermark(1, 4, 4)], &watermarks));
        assert!(!is_stored(&[watermark(1, 5, 5), watermark(2, 4, 4)], &watermarks), "more");
        assert!(!is_stored(&[watermark(2, 3, 9)], &watermarks), "something else");
        assert!(!is_stored(&[watermark(3, 1, 1)], &watermarks), "another epoch");
    }
}
