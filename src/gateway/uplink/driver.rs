//! The driver passes a live connection's events to the lanes' machines and carries out the machines' actions.
//!
//! One task, one owner, no locks: it takes an event, applies it, refills the window, and waits for the next.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use pgw_core::delivery::{Action, Input, Millis, Nonce, Reason};
use pgw_core::transaction::Lane;
use pgw_core::wire::SCHEMA;
use pgw_core::wire::receipt::{self, Gap, GapCode, StoreId, nonce_text};
use pgw_core::wire::said::BootId;
use pgw_core::wire::signature::Word;
use pgw_core::wire::to_json;
use pgw_core::wire::topic::Root;
use pgw_link::backoff::Backoff;
use pgw_link::clock::TrustedClock;
use pgw_link::failure::Failure;
use pgw_link::phase::Phase;
use pgw_link::session::SessionEvent;
use pgw_outbox::{Outbox, Watermark};
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, sleep_until};

use super::announcements::Announcements;
use super::command_gate::CommandGate;
use super::connection::Connection;
use super::in_flight::{OutOfStep, Ticket};
use super::known_stores::KnownStores;
use super::lane::LaneWork;
use super::link::LinkReport;
use super::live::Live;
use super::orders::Ordered;
use super::probe::Prober;
use super::reader::ReaderAnswer;
use super::refusal::{Ignored, refusal};
use super::resend::Resends;
use super::snapshot::Reports;
use super::verifier::{Inbound, Verifier};

mod alarms;
mod obey;
mod resend;
mod stores;

/// Announcements must be acknowledged within this time while nothing else is in flight.
const ANNOUNCEMENT_PATIENCE: Duration = Duration::from_secs(15);
/// Health's numbers are updated this often.
const POLL_EVERY: Duration = Duration::from_millis(500);
/// Ticks are at least this far apart.
const TICK_EVERY: Duration = Duration::from_millis(5);
/// Batches of events that are applied before the window is refilled.
const MOST_BATCHES: usize = 4;

/// Everything that is kept from one connection to the next.
pub(super) struct Driver {
    pub(super) outbox: Outbox,
    pub(super) root: Root,
    pub(super) lanes: Vec<LaneWork>,
    pub(super) answers: mpsc::UnboundedReceiver<(usize, ReaderAnswer)>,
    /// Notified when any lane's tail grows.
    pub(super) tails: Arc<Notify>,
    pub(super) verifier: Verifier,
    pub(super) orders: Ordered,
    pub(super) announcements: Announcements,
    pub(super) reports: Reports,
    pub(super) link: LinkReport,
    pub(super) clock: Arc<TrustedClock>,
    pub(super) backoff: Backoff,
    pub(super) started: Instant,
    pub(super) keep_alive: Duration,
    pub(super) ignored: Ignored,
    pub(super) probe: Prober,
    pub(super) resends: Resends,
    pub(super) stores: KnownStores,
    pub(super) gate: CommandGate,
    /// When it was last said of each lane that the hub takes nothing of it.
    pub(super) later_said: BTreeMap<Lane, Instant>,
    /// The store of a hub that waits for an operator, and when that was last said.
    pub(super) strange_said: Option<(StoreId, Instant)>,
    /// When the alarm about transactions that the hub could not verify was last raised.
    pub(super) unverified_said: Option<Instant>,
}

/// Why the driver leaves a live connection.
pub(super) enum Left {
    Lost(Failure),
    /// `asked` is done: the connection is still up.
    Asked(Connection),
}

impl Driver {
    pub(super) fn now(&self) -> Millis {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Drives a connection until it is lost or `asked` is done. The machines know that it has ended when this returns.
    pub(super) async fn live(
        &mut self,
        connection: Connection,
        nonce: Nonce,
        asked: impl Future<Output = ()>,
    ) -> Left {
        let allowed = connection.allowed;
        let mut live = Live::new(connection);
        self.enqueue_health();
        self.link.up();
        let millis = self.now();
        for lane in &mut self.lanes {
            lane.look_at_tail(millis);
            let input = Input::Connected {
                nonce,
                receive_maximum: allowed.inflight,
                maximum_bytes: allowed.packet_bytes,
            };
            lane.handle(input, millis);
        }
        let left = self.serve(&mut live, asked).await;
        self.outbox.link_lost();
        self.resends.disconnected();
        let millis = self.now();
        for index in 0..self.lanes.len() {
            self.lanes[index].disconnected(millis);
            self.act(index, None);
        }
        match left {
            Err(failure) => Left::Lost(failure),
            Ok(()) => Left::Asked(live.connection),
        }
    }

    async fn serve(&mut self, live: &mut Live, asked: impl Future<Output = ()>) -> Result<(), Failure> {
        let mut asked = std::pin::pin!(asked);
        loop {
            self.turn(live);
            if let Some(failure) = live.leave.take() {
                return Err(failure);
            }
            if live.broken {
                return Err(live.connection.failure(Phase::Live).await);
            }
            let due = self.due(live);
            tokio::select! {
                events = live.connection.events() => match events {
                    Some(events) => self.events(live, events),
                    None => return Err(live.connection.failure(Phase::Live).await),
                },
                Some((lane, answer)) = self.answers.recv() => self.answer(lane, answer),
                () = self.tails.notified() => {}
                Some(order) = self.orders.0.recv() => self.obey(order),
                Ok(()) = self.reports.health.changed() => self.enqueue_health(),
                Some(event) = self.reports.events.recv() => self.announcements.push_event(event),
                () = sleep_until(due) => self.tick(live),
                () = &mut asked => return Ok(()),
            }
        }
    }

    /// One turn: carries out the machines' actions and fills the window, urgent lanes first.
    fn turn(&mut self, live: &mut Live) {
        let now = self.now();
        for index in 0..self.lanes.len() {
            self.lanes[index].look_at_tail(now);
            self.act(index, Some(live));
        }
        while !live.broken
            && live.may_announce()
            && let Some(message) = self.announcements.next()
        {
            live.hand(Ticket::Control(message.word));
            live.connection.publish(&message.topic, message.retain, message.spoken);
        }
        for index in 0..self.lanes.len() {
            // An offer that is not sent means a full window: the machine is asked again when something has changed.
            while live.leave.is_none()
                && !live.broken
                && live.may_send()
                && self.lanes[index].offer(now)
                && self.act(index, Some(live))
            {}
            self.lanes[index].read_ahead(now);
            self.begin_anew_if_unproven(index, live);
        }
        self.resend(live);
        if !live.connection.send() {
            live.broken = true;
        }
        let counts = self.lanes.iter().map(|lane| lane.machine.counts());
        self.link.now.in_flight = counts.map(|counts| u64::from(counts.in_flight)).sum();
        self.link.publish_numbers();
    }

    /// Carries out the actions of a lane's machine. True: it sent something. Without a connection only actions that
    /// concern the outbox and people are carried out.
    pub(super) fn act(&mut self, index: usize, mut live: Option<&mut Live>) -> bool {
        let mut sent = false;
        while !self.lanes[index].actions.is_empty() {
            for action in std::mem::take(&mut self.lanes[index].actions) {
                match action {
                    Action::Send { position, round } => {
                        sent = true;
                        if let Some(live) = live.as_deref_mut() {
                            self.send(index, position, round, live);
                        }
                    }
                    Action::AskPosition { nonce, epoch, tail, point } => {
                        let (session, nonce) = (self.link.now.session, nonce_text(&nonce));
                        let question =
                            receipt::Position { schema: SCHEMA, session, epoch, tail, point, nonce };
                        let topic = self.lanes[index].position_topic.clone();
                        self.announcements.enqueue(Word::Position, topic, false, to_json(&question));
                        self.asked();
                    }
                    Action::Confirm { position, point, backed_up_through, asked } => {
                        let (lane, watermark) = (&self.lanes[index].lane, Watermark { position, point });
                        let asked = asked.map(|at| (self.started + Duration::from_millis(at)).into_std());
                        match live {
                            Some(_) => self.outbox.confirm(lane, watermark, backed_up_through, asked),
                            None => self.outbox.confirm_by_file(lane, watermark),
                        }
                        let now = self.now();
                        self.backoff.progress(now);
                    }
                    Action::LostAtHub(lost) => self.lanes[index].reader().lost_at_hub(lost),
                    Action::Withdraw => self.outbox.withdraw_answer(&self.lanes[index].lane),
                    Action::LookUpChain { epoch, sequence } => {
                        self.lanes[index].reader().chain_at(epoch, sequence);
                    }
                    Action::NewEpoch { after, link, follows, gone } => {
                        self.lanes[index].reader().new_epoch(after, link, follows, gone);
                    }
                    Action::Reconnect(reason) => {
                        if let Some(live) = live.as_deref_mut() {
                            live.lose(&match reason {
                                Reason::Stalled => "the broker accepted nothing for too long".to_owned(),
                                Reason::Refused(code) => {
                                    format!("the broker refused a transaction: {}", refusal(code))
                                }
                            });
                        }
                    }
                    Action::Alarm(alarm) => self.alarm(index, &alarm),
                }
            }
        }
        sent
    }

    fn send(&mut self, index: usize, position: u64, round: u64, live: &mut Live) {
        let lane = &mut self.lanes[index];
        let Some(ready) = lane.take(position) else {
            // It was offered a moment ago, from the same position.
            live.lose("the record to be sent is not at hand");
            return;
        };
        let Some(frame) = ready.into_frame(round, std::time::Instant::now()) else {
            live.lose("a record could not be written for the wire");
            return;
        };
        live.hand(Ticket::Transaction { lane: index, position });
        live.connection.frame(frame);
        self.link.now.forwarded_total += 1;
    }

    fn events(&mut self, live: &mut Live, events: Vec<SessionEvent>) {
        live.last_received = Instant::now();
        let now = self.now();
        let mut events = Some(events);
        for _ in 0..MOST_BATCHES {
            let Some(batch) = events else { return };
            for event in batch {
                if self.event(live, event, now).is_err() {
                    live.lose("the broker acknowledged what was never sent");
                }
            }
            events = live.connection.more_events();
        }
        if let Some(batch) = events {
            live.connection.put_back(batch);
        }
    }

    fn event(&mut self, live: &mut Live, event: SessionEvent, now: Millis) -> Result<(), OutOfStep> {
        match event {
            SessionEvent::Written(packet) => live.in_flight.written(packet)?,
            SessionEvent::Acknowledged(packet, outcome) => {
                let (lanes, announcements) = (&mut self.lanes, &mut self.announcements);
                let resends = &mut self.resends;
                live.in_flight.acknowledged(packet, outcome, |ticket, outcome| match ticket {
                    Ticket::Transaction { lane, position } => {
                        lanes[lane].handle(Input::PubAck { position, outcome }, now);
                    }
                    Ticket::Resend(position) => resends.acknowledged(position, outcome),
                    Ticket::Control(word) => {
                        if word == Word::Event {
                            announcements.event_arrived();
                        }
                        // Having no subscriber is fine; any other error is the broker's ACL.
                        if let Err(code) = outcome
                            && code != 0x10
                        {
                            tracing::warn!(
                                message = word.as_str(),
                                reason = refusal(code),
                                "The broker refused one of the gateway's own messages"
                            );
                        }
                    }
                })?;
                live.settled = Instant::now();
            }
            SessionEvent::Message(publish) => match self.verifier.verify(&publish) {
                Ok(inbound) => self.inbound(inbound, now),
                Err(reason) => self.ignored.count(&reason),
            },
            SessionEvent::Other | SessionEvent::Subscribed(_) => {}
        }
        Ok(())
    }

    fn inbound(&mut self, inbound: Inbound, now: Millis) {
        match inbound {
            Inbound::Receipt { lane, mut receipt, hub, stores, seconds } => {
                self.link.now.last_receipt = Some(std::time::Instant::now());
                // Only an answer to this connection's question is known to be fresh.
                if self.lanes[lane].machine.is_answer(&receipt) {
                    self.lanes[lane].look_at_gone(now);
                    self.link.now.refused.clear();
                    self.announcements.speaker.answered();
                    self.link.now.later.remove(&self.lanes[lane].lane);
                    receipt.known_store = self.known_store(&hub, stores.0, &stores.1);
                    if self.clock.agree(seconds) {
                        let clock = self.clock.clone();
                        tokio::task::spawn_blocking(move || {
                            if let Err(error) = clock.keep() {
                                tracing::warn!(%error, "The last trusted time could not be saved");
                            }
                        });
                    }
                }
                self.lanes[lane].handle(Input::Receipt(receipt), now);
            }
            Inbound::Gap { lane, gap } => self.gap(lane, &gap, now),
            Inbound::HubStatus { hub, online: true } => tracing::info!(%hub, "The hub is online"),
            Inbound::HubStatus { hub, online: false } => tracing::info!(%hub, "The hub is offline"),
            Inbound::ProbeReply(id) => {
                if let Some(round_trip) = self.probe.returned(&id) {
                    self.link.now.probe = Some((round_trip, std::time::Instant::now()));
                }
            }
            Inbound::Command(command) => self.command(command),
            Inbound::Other => {}
        }
    }

    fn asked(&mut self) {
        let now = self.now();
        if !self.announcements.speaker.asked(now) {
            return;
        }
        match pgw_durable::random() {
            Ok(boot) => self.announcements.speaker.begin(BootId(boot)),
            Err(error) => tracing::warn!(%error, "The system provides no random bytes"),
        }
    }

    /// What a hub did not store, and why.
    fn gap(&mut self, lane: usize, gap: &Gap, now: Millis) {
        let Gap { code, epoch, expected, round, .. } = *gap;
        match code {
            GapCode::Key if gap.key == Some(self.announcements.speaker.key_id()) => self.key_refused(),
            GapCode::Unverified => self.unverified(lane, expected),
            GapCode::Later | GapCode::Admit | GapCode::Epochs => self.later(lane, gap),
            _ => {}
        }
        self.lanes[lane].handle(Input::Gap { code, epoch, expected, round }, now);
    }

    pub(super) fn answer(&mut self, lane: usize, answer: ReaderAnswer) {
        let now = self.now();
        match answer {
            ReaderAnswer::Resend { from, records } => self.resends.read(lane, from, records),
            answer => self.lanes[lane].answered(answer, now),
        }
    }

    pub(super) fn enqueue_health(&mut self) {
        let payload = self.reports.health.borrow_and_update().clone();
        if !payload.is_empty() {
            let topic = self.root.plain("health");
            self.announcements.enqueue(Word::Health, topic, true, payload);
        }
    }

    fn tick(&mut self, live: &mut Live) {
        live.ticked = Instant::now();
        let now = self.now();
        for lane in &mut self.lanes {
            if lane.machine.deadline().is_some_and(|at| at <= now) {
                lane.handle(Input::Tick, now);
            }
        }
        if live.next_poll <= Instant::now() {
            live.next_poll = Instant::now() + POLL_EVERY;
            self.measure();
            for lane in self.lanes.iter_mut().filter(|lane| self.outbox.wants_answer(&lane.lane)) {
                lane.handle(Input::AskAgain, now);
            }
            if let Some(probe) = self.probe.due() {
                let topic = self.root.plain("probe");
                self.announcements.enqueue(Word::Probe, topic, false, to_json(&probe));
            }
        }
        if live.last_received.elapsed() > self.keep_alive.mul_f32(2.5) {
            live.lose("the broker fell silent");
        }
        // The machines watch their own deadlines.
        let machines = live.in_flight.transactions() > self.resends.under_way();
        let patience = ANNOUNCEMENT_PATIENCE + self.resends.patience();
        if live.in_flight.outstanding() > 0 && !machines && live.settled.elapsed() > patience {
            live.lose("the broker does not acknowledge the gateway's own messages");
        }
    }

    pub(super) fn confirmed_sum(&self) -> u64 {
        self.lanes.iter().map(|lane| lane.machine.confirmed()).sum()
    }

    fn measure(&mut self) {
        let confirmed = self.confirmed_sum();
        self.link.measure(confirmed);
        let held = self.lanes.iter().filter(|lane| {
            let counts = lane.machine.counts();
            counts.held.or(counts.missing).is_some()
        });
        self.link.now.held = held.count() as u64;
        if self.lanes.iter().all(|lane| lane.machine.counts().answered) {
            self.link.now.diverged.clear();
        }
    }

    fn due(&self, live: &Live) -> Instant {
        let lanes = self.lanes.iter().filter_map(LaneWork::deadline).min();
        let at = lanes.map(|at| self.started + Duration::from_millis(at));
        // A deadline that is not changed by its tick must not cause a busy loop.
        at.map_or(live.next_poll, |at| at.max(live.ticked + TICK_EVERY).min(live.next_poll))
    }
}
