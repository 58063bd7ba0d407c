//! The store thread: takes what has arrived as one group, judges it, stores it, and only then answers.
//!
//! A group is everything that has arrived, up to its limits. One that comes alone is stored at once; in a stream the
//! next group is not begun sooner than [`GATHER`] after the last, unless [`ENOUGH`] is there: each group costs an
//! fsync, and each lane in it a receipt, which is signed, carried and verified. Receipts are made from
//! [`Store::marks_of`], and so can never say more than what is on stable storage.

use std::collections::{BTreeMap, HashMap};
use std::sync::mpsc::{Receiver, SyncSender};
use std::time::{Duration, Instant};

use bytes::Bytes;
use pgw_core::delivery::{Nonce, Through};
use pgw_core::transaction::{Gateway, Practice, TransactionId, rfc3339, unix_millis_now};
use pgw_core::wire::envelope::Envelope;
use pgw_core::wire::receipt::{Gap, Position};
use pgw_core::wire::topic::{Kind, Topic};
use pgw_core::wire::void;
use pgw_core::wire::void::Void;
use pgw_core::wire::{WireError, from_json};
use rumqttc::v5::mqttbytes::v5::Publish;
use tokio::sync::OwnedSemaphorePermit;

use super::answers::Answers;
use super::backup::Backups;
use super::carried::{Carried, NotTaken, Tally};
use super::fleet::Fleet;
use super::intake::{Arrived, Intake, Verdict};
use super::refusals::{Refusals, reason};
use super::resend::{Outcome, Wanted, Wants};
use super::store::{Entry, LaneName, Mark, Store};
use super::trouble::Trouble;

/// Most lanes of one gateway: a limit against a gateway gone mad, far above any configuration.
const MOST_LANES: usize = 64;
const TOO_MANY_LANES: &str = "number of lanes";
/// Most topics whose parsed form is kept.
const MOST_TOPICS: usize = 10_000;
/// Largest status, health, info or event that is looked at, bytes.
const MOST_PRESENCE: usize = 16 * 1024;

/// In a stream, groups are about this far apart: a fraction of what a gateway's round trip takes.
const GATHER: Duration = Duration::from_millis(2);
/// How often what has arrived meanwhile is looked at. Waking up for each read would cost more than the waiting saves.
const LOOK: Duration = Duration::from_micros(500);
/// Transactions for which nothing more is waited: less than what one gateway's default window has under way at most.
const ENOUGH: usize = 48;

/// What reaches the store thread.
pub enum Arrival {
    /// Publishes in the order of their arrival, with their share of the byte limit.
    Publishes(Vec<Publish>, OwnedSemaphorePermit),
    /// A new connection is live: the broker may have lost the retained receipts.
    Connected,
    /// Time has passed.
    Tick,
    /// A part of a bundle that was carried here, and who waits for its fate.
    Carried(Box<Carried>, SyncSender<Result<Tally, NotTaken>>),
    /// A person wants something again that was stored before, and waits for what becomes of it.
    Wanted(Box<Wanted>, SyncSender<Outcome>),
}

/// How large groups may become.
#[derive(Debug, Clone, Copy)]
pub struct GroupLimits {
    /// Most transactions.
    pub transactions: usize,
    /// Most payload bytes; a single larger one goes alone.
    pub bytes: usize,
}

/// The store thread's state.
pub struct Desk {
    pub(super) store: Box<dyn Store>,
    lanes: HashMap<LaneName, Intake>,
    lanes_of: HashMap<(Practice, Gateway), usize>,
    pub(super) answers: Answers,
    pub(super) fleet: Fleet,
    backups: Backups,
    limits: GroupLimits,
    topics: HashMap<Bytes, Topic>,
    group: Vec<Entry>,
    group_bytes: usize,
    /// Lanes that get a receipt when the group is stored, with the nonce of the question that it answers.
    due: BTreeMap<LaneName, Option<String>>,
    probes: Vec<(Practice, Gateway, Bytes)>,
    refusals: Refusals,
    pub(super) wants: Wants,
    /// Lanes whose gateway has asked for the position since this hub started, with the last nonce.
    asked: HashMap<LaneName, String>,
    /// Lanes of which nothing more is taken in this group.
    unsure: Vec<LaneName>,
    pub(super) trouble: Option<Trouble>,
    /// Somebody waits for an answer: the group is not kept waiting.
    hurry: bool,
}

impl Desk {
    /// Begins from the store's marks.
    #[must_use]
    pub fn new(
        store: Box<dyn Store>,
        answers: Answers,
        fleet: Fleet,
        backups: Backups,
        limits: GroupLimits,
    ) -> Self {
        let mut desk = Self {
            store,
            lanes: HashMap::new(),
            lanes_of: HashMap::new(),
            answers,
            fleet,
            backups,
            limits,
            topics: HashMap::new(),
            group: Vec::new(),
            group_bytes: 0,
            due: BTreeMap::new(),
            probes: Vec::new(),
            refusals: Refusals::default(),
            wants: Wants::default(),
            asked: HashMap::new(),
            unsure: Vec::new(),
            trouble: None,
            hurry: false,
        };
        for (lane, marks) in desk.store.marks() {
            desk.restore(lane, &marks);
        }
        desk
    }

    /// Begins with a lane as the store has it.
    fn restore(&mut self, lane: LaneName, marks: &[Mark]) {
        let epochs = marks.iter().map(|m| Through { epoch: m.epoch, through: m.through, chain: m.chain });
        // Receipts are numbered where they are published: the intake's own count and incarnation are not used.
        let mut intake = Intake::restored(lane.lane.clone(), 0, epochs.collect());
        if self.asked.contains_key(&lane) {
            // What the gateway was told since this hub started still stands.
            intake.statement(Some(Nonce::default()));
        }
        let gateway = (lane.practice.clone(), lane.gateway.clone());
        if self.lanes.insert(lane, intake).is_none() {
            *self.lanes_of.entry(gateway).or_default() += 1;
        }
    }

    /// Works until every sender is gone. Blocking.
    pub fn run(mut self, arrivals: Receiver<Arrival>) {
        let mut permits = Vec::new();
        let mut stored: Option<Instant> = None;
        while let Ok(first) = arrivals.recv() {
            let mut next = Some(first);
            while let Some(arrival) = next.take() {
                permits.extend(self.take(arrival));
                if self.full() {
                    break;
                }
                next = arrivals.try_recv().ok();
                if next.is_none() && !self.hurry && self.group.len() < ENOUGH {
                    let rest = stored.map_or(Duration::ZERO, |at| GATHER.saturating_sub(at.elapsed()));
                    if !rest.is_zero() {
                        std::thread::sleep(rest.min(LOOK));
                        next = Some(arrivals.try_recv().unwrap_or(Arrival::Tick));
                    }
                }
            }
            let group = !self.group.is_empty();
            self.finish();
            permits.clear();
            if group {
                stored = Some(Instant::now());
            }
        }
        self.fleet.save(true);
    }

    /// What comes next begins a new group.
    fn full(&self) -> bool {
        self.group.len() >= self.limits.transactions
            || self.group_bytes + self.wants.bytes() >= self.limits.bytes
    }

    fn take(&mut self, arrival: Arrival) -> Option<OwnedSemaphorePermit> {
        match arrival {
            Arrival::Connected => {
                self.all_due();
                None
            }
            Arrival::Tick => {
                self.give_up();
                if self.backups.look() {
                    self.all_due();
                }
                None
            }
            Arrival::Wanted(wanted, answer) => {
                self.want(*wanted, answer);
                self.hurry = true;
                None
            }
            Arrival::Carried(carried, answer) => {
                // Whoever waited may have gone: what is stored is stored.
                let _ = answer.send(self.carried(*carried));
                None
            }
            Arrival::Publishes(publishes, permit) => {
                for publish in publishes {
                    if self.full() {
                        self.finish();
                    }
                    self.publish(publish);
                }
                Some(permit)
            }
        }
    }

    /// Every lane gets a receipt. An answer may have been lost with the connection before, so the last nonce goes with it
    /// again.
    fn all_due(&mut self) {
        let known = self.store.marks().into_iter().map(|(lane, _)| lane);
        for lane in known.chain(self.asked.keys().cloned()) {
            let nonce = self.asked.get(&lane).cloned();
            self.due.entry(lane).or_insert(nonce);
        }
        self.hurry = true;
    }

    fn publish(&mut self, publish: Publish) {
        let Some(topic) = self.topic(&publish.topic) else {
            self.refuse(String::from_utf8_lossy(&publish.topic).into_owned(), "unknown topic");
            return;
        };
        let Topic::Gateway { practice, gateway, kind } = topic else { return };
        match kind {
            Kind::Transaction(lane) => {
                let lane = LaneName { practice, gateway, lane };
                if let Err(error) = self.transaction(&lane, publish) {
                    self.refuse(lane.to_string(), reason(&error));
                }
            }
            Kind::Position(lane) => {
                self.fleet.seen(&practice, &gateway, publish.retain);
                let lane = LaneName { practice, gateway, lane };
                match from_json::<Position>(&publish.payload) {
                    Ok(position) if position.nonce.len() <= 64 => {
                        if self.known_lane(&lane) {
                            self.ask(lane, position.nonce);
                        } else {
                            self.refuse(lane.to_string(), TOO_MANY_LANES);
                        }
                    }
                    Ok(_) => self.refuse(lane.to_string(), "nonce does not fit"),
                    Err(error) => self.refuse(lane.to_string(), reason(&error)),
                }
            }
            Kind::Probe if publish.payload.len() <= MOST_PRESENCE => {
                self.fleet.seen(&practice, &gateway, publish.retain);
                self.hurry = true;
                self.probes.push((practice, gateway, publish.payload));
            }
            Kind::CommandResult if publish.payload.len() <= MOST_PRESENCE => {
                match from_json(&publish.payload) {
                    Ok(result) => self.command_result(&practice, &gateway, result),
                    Err(error) => self.refuse(format!("{practice}/{gateway}"), reason(&error)),
                }
            }
            Kind::Status | Kind::Health | Kind::Info | Kind::Event
                if publish.payload.len() <= MOST_PRESENCE =>
            {
                if !self.fleet.heard(&practice, &gateway, &kind, &publish.payload, publish.retain) {
                    self.refuse(format!("{practice}/{gateway}"), "malformed presence");
                }
            }
            _ => self.refuse(format!("{practice}/{gateway}"), "unexpected topic or size"),
        }
    }

    /// Makes sure that there is an intake for the lane; `false`: the gateway has too many already.
    pub(super) fn known_lane(&mut self, lane: &LaneName) -> bool {
        if self.lanes.contains_key(lane) {
            return true;
        }
        let gateway = (lane.practice.clone(), lane.gateway.clone());
        if self.lanes_of.get(&gateway).copied().unwrap_or(0) >= MOST_LANES {
            return false;
        }
        self.restore(lane.clone(), &[]);
        true
    }

    /// The gateway asks where the hub is; from now on its transactions are taken.
    fn ask(&mut self, lane: LaneName, nonce: String) {
        if let Some(intake) = self.lanes.get_mut(&lane) {
            intake.statement(Some(Nonce::default()));
        }
        self.hurry = true;
        self.asked.insert(lane.clone(), nonce.clone());
        self.due.insert(lane, Some(nonce));
    }

    fn transaction(&mut self, lane: &LaneName, publish: Publish) -> Result<(), WireError> {
        let (body, properties) = (publish.payload, publish.properties.unwrap_or_default());
        let envelope = Envelope::from_properties(properties.content_type, properties.user_properties)?;
        if envelope.lane != lane.lane {
            return Err(WireError::Malformed("lane"));
        }
        if void::is_void(&envelope) && Void::of(&envelope, &body).is_none() {
            return Err(WireError::Malformed("void"));
        }
        if let Some(trouble) = &mut self.trouble
            && trouble.waits()
        {
            trouble.dropped += 1;
            return Ok(());
        }
        if self.unsure.contains(lane) {
            return Ok(());
        }
        if !self.known_lane(lane) {
            return Err(WireError::Malformed(TOO_MANY_LANES));
        }
        let Some(verdict) = self.judge(lane, &envelope, &body, false) else { return Ok(()) };
        match verdict {
            Verdict::Store | Verdict::Known => self.stage(lane, envelope, body, verdict),
            Verdict::Repeat => {
                self.receipt_due(lane);
                self.wants.repetition(lane, envelope, body);
            }
            Verdict::Unasked => self.receipt_due(lane),
            Verdict::Ahead { say } => {
                if let Some(missed) = say {
                    self.answers.gap(lane, Gap::new(missed.epoch, missed.expected, missed.round));
                }
            }
            Verdict::Diverged { .. } => {
                self.receipt_due(lane);
                return Err(WireError::Malformed("chain"));
            }
        }
        Ok(())
    }

    /// Asks the intake, by one of its two ways. `None`: the store cannot say whether it is new, and nothing more of this
    /// lane is taken in this group.
    pub(super) fn judge(
        &mut self,
        lane: &LaneName,
        envelope: &Envelope,
        body: &[u8],
        by_hand: bool,
    ) -> Option<Verdict> {
        let intake = self.lanes.get_mut(lane)?;
        let arrived = Arrived {
            epoch: envelope.epoch,
            sequence: envelope.sequence,
            round: envelope.round,
            id: TransactionId(envelope.id),
            chain: envelope.chain,
        };
        let (group, store) = (&self.group, &mut self.store);
        let mut doubt = None;
        let known = |id: TransactionId| {
            let here = |entry: &Entry| entry.lane == *lane && entry.envelope.id == id.0;
            // A void is nobody's second number: it holds its own place, in each epoch.
            !void::is_void(envelope)
                && (group.iter().any(here)
                    || store.has_id(lane, id.0).unwrap_or_else(|error| {
                        doubt = Some(error);
                        false
                    }))
        };
        let link = |before| void::chain_after(before, envelope, body);
        let verdict = if by_hand {
            intake.carried(&arrived, link, known)
        } else {
            intake.arrive(&arrived, link, known)
        };
        if let Some(error) = doubt {
            // The intake has taken it all the same: the lane begins again from its mark.
            self.unsure.push(lane.clone());
            self.store_failed(&error, 1);
            return None;
        }
        Some(verdict)
    }

    pub(super) fn stage(&mut self, lane: &LaneName, envelope: Envelope, body: Bytes, verdict: Verdict) {
        self.receipt_due(lane);
        self.group_bytes += body.len();
        let body = (verdict == Verdict::Store).then_some(body);
        self.group.push(Entry { lane: lane.clone(), envelope, body });
    }

    fn receipt_due(&mut self, lane: &LaneName) {
        if !self.due.contains_key(lane) {
            self.due.insert(lane.clone(), None);
        }
    }

    /// Every lane that the group may have touched begins again from its mark.
    fn restore_all(&mut self) {
        for lane in self.lanes.keys().cloned().collect::<Vec<_>>() {
            let marks = self.store.marks_of(&lane);
            self.restore(lane, &marks);
        }
    }

    /// Stores the group, then answers. False: it is not stored.
    pub(super) fn finish(&mut self) -> bool {
        self.hurry = false;
        self.keep_copies();
        let mut stored = true;
        if !self.group.is_empty() {
            let outcome = self.store.append(&self.group);
            let count = self.group.len();
            self.group.clear();
            self.group_bytes = 0;
            match outcome {
                Ok(()) => {
                    for lane in self.due.keys() {
                        if let Some(intake) = self.lanes.get_mut(lane) {
                            intake.synced();
                        }
                    }
                    if let Some(trouble) = self.trouble.take() {
                        tracing::info!(dropped = trouble.dropped, "The store works again");
                    }
                }
                Err(error) => {
                    stored = false;
                    self.store_failed(&error, count);
                    // No receipt, except to those who ask where the hub is.
                    self.due.retain(|_, question| question.is_some());
                    self.restore_all();
                }
            }
        }
        for lane in std::mem::take(&mut self.unsure) {
            let marks = self.store.marks_of(&lane);
            self.restore(lane, &marks);
        }
        for (lane, question) in std::mem::take(&mut self.due) {
            self.fleet.seen(&lane.practice, &lane.gateway, false);
            // An epoch that is not in it is not known here; none at all for a lane of which nothing is stored.
            let marks = self.store.marks_of(&lane);
            let backed_up = self.backups.through(&lane, &marks);
            self.answers.receipt(&lane, marks, backed_up, question);
        }
        for (practice, gateway, payload) in self.probes.drain(..) {
            self.answers.probe(practice, gateway, payload);
        }
        self.fleet.save(false);
        stored
    }

    fn topic(&mut self, topic: &Bytes) -> Option<Topic> {
        if let Some(known) = self.topics.get(topic) {
            return Some(known.clone());
        }
        let parsed = Topic::parse(std::str::from_utf8(topic).ok()?).ok()?;
        if self.topics.len() >= MOST_TOPICS {
            self.topics.clear();
        }
        // A copy, for the publish's topic is a view into the whole packet.
        self.topics.insert(Bytes::copy_from_slice(topic), parsed.clone());
        Some(parsed)
    }

    fn refuse(&mut self, who: String, why: &'static str) {
        self.refusals.count(&who, why, Instant::now());
        self.fleet.refused(&who);
    }
}

/// The wall clock as text, for payloads.
pub(super) fn now_text() -> String {
    rfc3339(unix_millis_now())
}
