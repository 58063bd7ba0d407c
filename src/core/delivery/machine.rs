//! One lane's machine: see [`super`] for the rules and for a driver's turn.

mod held;
mod questions;
mod receipts;
mod timers;

use self::held::{Held, Suspect};
use self::questions::ASK_AGAIN;
use super::hubs::{Claim, HubView};
use super::window::Window;
use super::{Action, Alarm, HeldBecause, Input, Limits, Millis, Nonce, Numbering, Reason, Receipt};
use crate::chain::ChainValue;
use crate::transaction::Position;

/// A head that ended so many connections by itself, or was not verified so often, is held.
const TRIES: u32 = 3;
/// A new epoch that could not be made durable is tried again after this.
const FORK_AGAIN: Millis = 2_000;
/// PUBACK reason "no matching subscribers": the hub is not connected; the connection is not at fault.
const NO_SUBSCRIBERS: u8 = 0x10;

/// A lane's delivery. `Clone`, `Eq` and `Hash`, so that a model checker can drive it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Delivery {
    limits: Limits,
    numbering: Numbering,
    tail: Position,
    /// The lowest of the hubs' verified positions, and our chain value there (`None` only while it is looked up).
    confirmed: Position,
    chain: Option<ChainValue>,
    backed_up: Option<Position>,
    window: Window,
    hubs: Vec<HubView>,
    /// Raised at each rewind, so that a gap notice about an earlier pass causes no second one.
    round: Option<u64>,
    link: Option<Link>,
    /// The record that stalls the lane; the last alarm was about it.
    held: Option<Held>,
    missing: Option<Position>,
    /// A head that may be at fault for what went wrong: it is sent alone.
    suspect: Option<Suspect>,
    /// A new epoch is being written: positions after this.
    forking: Option<Position>,
    /// When to try it again, after it could not be written.
    fork_again: Option<Millis>,
    /// Receipt timeouts and stalls on the present head: each doubles the next.
    misses: u32,
    trips: u32,
}

/// The live connection.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Link {
    nonce: Nonce,
    /// When the question was asked, and how long its answer may take before it is asked again.
    asked: Millis,
    ask_again: Millis,
    maximum_bytes: Option<u64>,
    /// Publishes without a PUBACK that the broker's Receive Maximum leaves to this lane.
    receive: u32,
    unacked: u32,
    /// How many of them went before the last rewind.
    old_unacked: u32,
    /// The broker took everything of this pass through here.
    taken: Position,
    /// Last PUBACK, confirmation, or send on a quiet link.
    moved: Millis,
    /// Size of the record at `next`, once it was offered and had no room.
    waiting_bytes: u64,
    /// The alarm about a lost tail was raised.
    tail_lost: bool,
}

/// A lane in numbers, for health.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Counts {
    /// Sent and not confirmed.
    pub in_flight: u32,
    /// Their payload bytes.
    pub in_flight_bytes: u64,
    /// Sent on this connection without a PUBACK yet.
    pub unacknowledged: u32,
    /// Messages that the window allows now.
    pub window: u32,
    /// The record that is held and stops the lane.
    pub held: Option<Position>,
    /// The record that can no longer be read and stops the lane.
    pub missing: Option<Position>,
    /// Every hub has answered on this connection.
    pub hubs_answered: bool,
    /// A new epoch is being written.
    pub forking: bool,
}

impl Delivery {
    /// A lane as the outbox knows it: numbering, watermark with its chain value, and the last durable position.
    #[must_use]
    pub fn new(
        limits: Limits,
        numbering: Numbering,
        watermark: (Position, ChainValue),
        tail: Position,
    ) -> Self {
        // A tail that lost records lies below the watermark: all that is left was confirmed.
        let (confirmed, chain) =
            if watermark.0 > tail { (tail, None) } else { (watermark.0, Some(watermark.1)) };
        let hubs = if limits.confirm_on_puback { 0 } else { limits.hubs };
        Self {
            window: Window::new(&limits, confirmed),
            hubs: vec![HubView::new(confirmed, chain); hubs],
            limits,
            numbering,
            tail,
            confirmed,
            chain,
            backed_up: None,
            round: None,
            link: None,
            held: None,
            missing: None,
            suspect: None,
            forking: None,
            fork_again: None,
            misses: 0,
            trips: 0,
        }
    }

    /// Takes an event and appends the tasks for the driver. `now` never goes back.
    pub fn handle(&mut self, input: Input, now: Millis, out: &mut Vec<Action>) {
        match input {
            Input::Connected { nonce, receive_maximum, maximum_bytes } => {
                self.connected(nonce, receive_maximum, maximum_bytes, now, out);
            }
            Input::Disconnected => self.disconnected(now, out),
            Input::Committed(tail) => self.tail = self.tail.max(tail),
            Input::Offer { position, bytes, chain } => self.offer(position, bytes, chain, now, out),
            Input::Missing(position) => {
                if self.wanted() == Some(position) && self.missing != Some(position) {
                    self.missing = Some(position);
                    out.push(Action::Alarm(Alarm::Missing(position)));
                }
            }
            Input::PubAck { position, outcome } => self.pub_ack(position, outcome, now, out),
            Input::Receipt(receipt) => self.receipt(&receipt, now, out),
            Input::Imported(receipt) => self.imported(&receipt, now, out),
            Input::Gap { code, epoch, expected, round } => self.gap(code, (epoch, expected, round), now, out),
            Input::AskAgain => self.ask_again(now, out),
            Input::ChainAt { position, chain } => self.chain_at(position, chain, now, out),
            Input::Renumbered(numbering) => self.renumbered(numbering, now, out),
            Input::NotRenumbered => {
                self.fork_again = self.forking.map(|_| now.saturating_add(FORK_AGAIN));
            }
            Input::ReleaseHeld => {
                self.suspect = None;
                self.missing = None;
                self.release(out);
            }
            Input::Tick => self.tick(now, out),
        }
    }

    /// The record that the driver should offer now; `None`: nothing can go now.
    #[must_use]
    pub fn wanted(&self) -> Option<Position> {
        let next = self.window.next();
        let stalled = self.held.is_some_and(|held| held.position == next) || self.missing == Some(next);
        let (records, _) = self.room();
        // A hub cannot know where an epoch ends: if the last record of this one is lost, the first of the next one
        // would look right. So the older epoch is confirmed before the newer begins.
        let begins_epoch = self.numbering.at(next).base == next - 1;
        let stalled = stalled || (begins_epoch && self.window.in_flight() > 0);
        (records > 0 && !stalled && next <= self.tail).then_some(next)
    }

    /// How many records, and how many of their bytes, could be sent now: as many are worth reading ahead from
    /// [`Self::next`]. A single record may be sent even if it is larger.
    #[must_use]
    pub fn room(&self) -> (u32, u64) {
        let Some(link) = self.link.as_ref().filter(|_| self.hubs_answered() && self.forking.is_none()) else {
            return (0, 0);
        };
        let in_flight = self.window.in_flight();
        let alone = self.suspect.is_some_and(|suspect| suspect.position == self.confirmed + 1);
        let size = if alone { 1 } else { self.window.size() }.min(self.hubs_window());
        let records = size.saturating_sub(in_flight).min(link.receive.saturating_sub(link.unacked));
        if self.window.fits(link.waiting_bytes.max(1)) { (records, self.window.free_bytes()) } else { (0, 0) }
    }

    /// The next position that will be sent, whether there is room for it now or not.
    #[must_use]
    pub fn next(&self) -> Position {
        self.window.next()
    }

    /// The round in which the next record would be sent now; `None`: there was no connection yet.
    #[must_use]
    pub fn round(&self) -> Option<u64> {
        self.round
    }

    /// When [`Input::Tick`] is due, at the latest.
    #[must_use]
    pub fn deadline(&self) -> Option<Millis> {
        let link = self.link.as_ref()?;
        let asks = self.forking.is_none() && (!self.hubs_answered() || self.hubs_window() == 0);
        let ask = asks.then(|| link.asked.saturating_add(link.ask_again));
        let others = [self.stalled_at(link), self.overdue_at(link), self.try_held_at(), self.fork_again];
        others.into_iter().chain([ask]).flatten().min()
    }

    /// Everything through here is at every hub.
    #[must_use]
    pub fn confirmed(&self) -> Position {
        self.confirmed
    }

    /// The last durable position.
    #[must_use]
    pub fn tail(&self) -> Position {
        self.tail
    }

    /// How positions map to numbers on the wire.
    #[must_use]
    pub fn numbering(&self) -> &Numbering {
        &self.numbering
    }

    /// Numbers for health.
    #[must_use]
    pub fn counts(&self) -> Counts {
        Counts {
            in_flight: self.window.in_flight(),
            in_flight_bytes: self.window.bytes(),
            unacknowledged: self.link.as_ref().map_or(0, |link| link.unacked),
            window: self.window.size(),
            held: self.held.map(|held| held.position),
            missing: self.missing,
            hubs_answered: self.link.is_some() && self.hubs_answered(),
            forking: self.forking.is_some(),
        }
    }

    /// The position through which a receipt claims to confirm this lane.
    #[must_use]
    pub fn claimed_by(&self, receipt: &Receipt) -> Position {
        Claim::new(&self.numbering, &receipt.epochs).position
    }

    /// Whether a receipt answers this connection's last question.
    #[must_use]
    pub fn is_answer(&self, receipt: &Receipt) -> bool {
        self.link.as_ref().is_some_and(|link| receipt.nonce == Some(link.nonce))
    }

    fn hubs_answered(&self) -> bool {
        self.hubs.iter().all(|hub| hub.answered)
    }

    /// How many records the hubs let go beyond the last receipt; 0: the lane waits, and asks again.
    fn hubs_window(&self) -> u32 {
        self.hubs.iter().filter_map(|hub| hub.limits.window).min().unwrap_or(u32::MAX)
    }

    // ---- the connection

    fn connected(
        &mut self,
        nonce: Nonce,
        receive_maximum: u16,
        maximum_bytes: Option<u64>,
        now: Millis,
        out: &mut Vec<Action>,
    ) {
        self.disconnected(now, out);
        // Positions, health and events share the broker's limit with the transactions.
        let receive = u32::from(receive_maximum.max(1));
        let receive = receive - (receive / 2).min(8);
        self.link = Some(Link {
            nonce,
            asked: now,
            ask_again: ASK_AGAIN,
            maximum_bytes,
            receive,
            unacked: 0,
            old_unacked: 0,
            taken: self.confirmed,
            moved: now,
            waiting_bytes: 0,
            tail_lost: false,
        });
        // 48 random bits for a process's first round: notices about an earlier process's rounds mean nothing.
        let first = u64::from_be_bytes([0, 0, nonce[0], nonce[1], nonce[2], nonce[3], nonce[4], nonce[5]]);
        self.round = Some(self.round.map_or(first, |round| round.wrapping_add(1)));
        self.missing = None;
        for hub in &mut self.hubs {
            hub.imported = None;
        }
        if self.hubs.is_empty() {
            self.try_too_large(out);
        } else {
            out.push(Action::AskPosition(nonce));
        }
    }

    fn disconnected(&mut self, now: Millis, out: &mut Vec<Action>) {
        let Some(link) = self.link.take() else { return };
        let head = self.confirmed + 1;
        if self.window.in_flight() > 0 && link.taken < head {
            // It ended with the head under way. The head is sent alone next time, to learn whether it is at fault.
            let alone = self.window.in_flight() == 1 && link.unacked == 1;
            let suspect = self.suspect_at(head);
            suspect.endings += u32::from(alone);
            if suspect.endings >= TRIES {
                self.hold(head, HeldBecause::EndedConnections, now, out);
            }
        }
        self.window.rewind();
        // The answers on the next connection will show whether it is still a fork.
        self.forking = None;
        self.fork_again = None;
        for hub in &mut self.hubs {
            hub.reset_answer();
        }
    }

    fn reconnect(&mut self, reason: Reason, now: Millis, out: &mut Vec<Action>) {
        self.disconnected(now, out);
        out.push(Action::Reconnect(reason));
    }

    fn rewind(&mut self) {
        self.window.rewind();
        self.round = self.round.map(|round| round.wrapping_add(1));
        if let Some(link) = &mut self.link {
            link.old_unacked = link.unacked;
            link.taken = self.confirmed;
            link.waiting_bytes = 0;
        }
    }

    // ---- sending

    fn offer(
        &mut self,
        position: Position,
        bytes: u64,
        chain: ChainValue,
        now: Millis,
        out: &mut Vec<Action>,
    ) {
        if self.wanted() != Some(position) {
            return;
        }
        let (Some(link), Some(round)) = (&mut self.link, self.round) else { return };
        let hubs = self.hubs.iter().filter_map(|hub| hub.limits.packet_bytes);
        if let Some(most) = hubs.chain(link.maximum_bytes).min().filter(|most| bytes > *most) {
            self.hold(position, HeldBecause::TooLarge { bytes, most }, now, out);
            return;
        }
        if !self.window.fits(bytes) {
            link.waiting_bytes = bytes;
            return;
        }
        if link.unacked == 0 {
            link.moved = now;
            self.window.busy(now);
        } else if self.window.in_flight() == 0 {
            link.moved = now;
        }
        link.waiting_bytes = 0;
        link.unacked += 1;
        self.window.push(bytes, chain);
        out.push(Action::Send { position, round });
    }

    fn pub_ack(&mut self, position: Position, outcome: Result<(), u8>, now: Millis, out: &mut Vec<Action>) {
        let Some(link) = &mut self.link else { return };
        if link.unacked == 0 {
            return;
        }
        link.unacked -= 1;
        if let Err(reason) = outcome {
            if reason == NO_SUBSCRIBERS && link.old_unacked > 0 {
                link.old_unacked -= 1;
                return;
            }
            out.push(Action::Alarm(Alarm::Refused { position, reason }));
            if reason == NO_SUBSCRIBERS && !self.hubs.is_empty() {
                self.everything_in_doubt(now, out);
            } else {
                self.reconnect(Reason::Refused(reason), now, out);
            }
            return;
        }
        link.moved = now;
        self.window.taken(position, now);
        if link.old_unacked > 0 {
            link.old_unacked -= 1;
            return;
        }
        if position != link.taken + 1 {
            return;
        }
        link.taken = position;
        if position == self.confirmed + 1 {
            self.trips = 0;
            self.taken_by_the_broker();
        }
        if self.limits.confirm_on_puback {
            self.chain = self.window.chain(position).or(self.chain);
            self.forward(position, Some(now), now, out);
        }
    }
}
