//! One lane's machine: see [`super`] for the rules and for a driver's turn.

mod by_file;
mod held;
mod line;
mod questions;
mod receipts;
mod timers;

use self::held::{Held, Suspect};
use self::line::{Beginning, DAY};
use self::questions::ASK_AGAIN;
use super::hub::{HubView, Point};
use super::window::Window;
use super::{Action, Alarm, Gone, HeldBecause, Input, Limits, Millis, Nonce, Numbering, Reason};
use crate::chain::ChainValue;
use crate::transaction::{Position, Sequence};

/// A head that ended so many connections by itself, or was not verified so often, is held.
const TRIES: u32 = 3;
/// PUBACK reason "no matching subscribers": the hub is not connected; the connection is not at fault.
const NO_SUBSCRIBERS: u8 = 0x10;

/// A lane's delivery. `Clone`, `Eq` and `Hash`, so that a model checker can drive it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Delivery {
    limits: Limits,
    numbering: Numbering,
    tail: Position,
    /// What cannot be read any more, in order.
    gone: Vec<Gone>,
    /// The hub has the present epoch through this number, whose chain value is the second (`None` at 0).
    confirmed: Sequence,
    chain: Option<ChainValue>,
    /// The confirmed point: the hub has said, at some time, that its line holds it.
    point: Option<Point>,
    backed_up: Option<Position>,
    window: Window,
    /// `None`: a site without a hub.
    hub: Option<HubView>,
    /// Raised at each rewind, so that a gap notice about an earlier pass causes no second one.
    round: Option<u64>,
    link: Option<Link>,
    /// The record that stalls the lane; the last alarm was about it.
    held: Option<Held>,
    missing: Option<Position>,
    /// A head that may be at fault for what went wrong: it is sent alone.
    suspect: Option<Suspect>,
    /// A new epoch is being written.
    beginning: Option<Beginning>,
    /// The hub's line ended where this lane has never been: until when the next such end has to wait, and until when the next
    /// epoch does wait because of one.
    diverges_again_until: Option<Millis>,
    waits_until: Option<Millis>,
    /// The hub waits for the centre before it takes what was sent.
    waits_for_centre: bool,
    /// What the hub has lost for good, as the driver was told last.
    lost: Option<Vec<(Position, Position)>>,
    /// Receipt timeouts and stalls on the present head: each doubles the next.
    misses: u32,
    trips: u32,
}

/// The live connection.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Link {
    nonce: Nonce,
    /// When the question was asked, about which point, and how long its answer may take before it is asked again.
    asked: Millis,
    asked_about: Option<Point>,
    ask_again: Millis,
    maximum_bytes: Option<u64>,
    /// Publishes without a PUBACK that the broker's Receive Maximum leaves to this lane.
    receive: u32,
    unacked: u32,
    /// How many of them went before the last rewind.
    old_unacked: u32,
    /// The broker took everything of this pass through here.
    taken: Sequence,
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
    /// The hub has answered on this connection.
    pub answered: bool,
    /// A new epoch is being written.
    pub beginning: bool,
}

impl Delivery {
    /// A lane as the outbox knows it: its epochs, the confirmed point, and the last durable position.
    #[must_use]
    pub fn new(limits: Limits, numbering: Numbering, confirmed: Option<Point>, tail: Position) -> Self {
        // A tail that lost records lies below the point: all that is left was confirmed.
        let point = confirmed.map(|point| Point { position: point.position.min(tail), ..point });
        let present = numbering.present();
        let (confirmed, chain) = match point.filter(|point| point.at.epoch == present.epoch) {
            Some(point) if present.positions(point.at.through).1 <= tail => {
                (point.at.through, Some(point.at.chain))
            }
            Some(_) => (present.number(tail), None),
            None => (0, None),
        };
        let hub = (!limits.confirm_on_puback).then(HubView::new);
        Self {
            window: Window::new(&limits, confirmed),
            hub,
            limits,
            numbering,
            tail,
            gone: Vec::new(),
            confirmed,
            chain,
            point,
            backed_up: None,
            round: None,
            link: None,
            held: None,
            missing: None,
            suspect: None,
            beginning: None,
            diverges_again_until: None,
            waits_until: None,
            waits_for_centre: false,
            lost: None,
            misses: 0,
            trips: 0,
        }
    }

    /// Before this machine was made, so long ago, the hub's line ended where this lane has never been ([`Alarm::Diverged`]): the
    /// next such end waits as if it had been this machine's. Its time begins with 0.
    #[must_use]
    pub fn diverged_before(mut self, ago: Option<Millis>) -> Self {
        self.diverges_again_until = ago.and_then(|ago| DAY.checked_sub(ago));
        self
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
                if self.wanted() == Some(position) {
                    self.stall_at(position, out);
                }
            }
            Input::Gone(gone) => self.gone(gone, now, out),
            Input::PubAck { position, outcome } => self.pub_ack(position, outcome, now, out),
            Input::Receipt(receipt) => self.receipt(&receipt, now, out),
            Input::Imported(receipt) => self.imported(&receipt, now, out),
            Input::EndByFile { end, ours, set_aside } => self.lay_out(end, ours, set_aside, out),
            Input::Gap { code, epoch, expected, round } => self.gap(code, (epoch, expected, round), now, out),
            Input::AskAgain => self.ask_again(now, out),
            Input::ChainAt { epoch, sequence, chain } => self.chain_at((epoch, sequence), chain, now, out),
            Input::Renumbered(numbering) => self.renumbered(numbering, now, out),
            Input::NotRenumbered => self.not_renumbered(now),
            Input::ReleaseHeld => {
                self.suspect = None;
                self.release(out);
                self.a_person_has_looked(now, out);
            }
            Input::Tick => self.tick(now, out),
        }
    }

    /// The record that the driver should offer now: the first position of the next number. `None`: nothing can go now.
    #[must_use]
    pub fn wanted(&self) -> Option<Position> {
        let (next, last) = self.numbering.present().positions(self.window.next());
        let stalled = self.held.is_some_and(|held| held.position == next) || self.missing == Some(next);
        let (records, _) = self.room();
        (records > 0 && !stalled && last <= self.tail).then_some(next)
    }

    /// How many records, and how many of their bytes, could be sent now: as many are worth reading ahead from
    /// [`Self::next`]. A single record may be sent even if it is larger.
    #[must_use]
    pub fn room(&self) -> (u32, u64) {
        let Some(link) = self.link.as_ref().filter(|_| self.answered() && self.beginning.is_none()) else {
            return (0, 0);
        };
        let in_flight = self.window.in_flight();
        let alone = self.suspect.is_some_and(|suspect| suspect.position == self.head());
        let size = if alone { 1 } else { self.window.size() }.min(self.hub_window());
        let records = size.saturating_sub(in_flight).min(link.receive.saturating_sub(link.unacked));
        if self.window.fits(link.waiting_bytes.max(1)) { (records, self.window.free_bytes()) } else { (0, 0) }
    }

    /// The next position that will be sent, whether there is room for it now or not.
    #[must_use]
    pub fn next(&self) -> Position {
        self.numbering.present().positions(self.window.next()).0
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
        let asks = self.beginning.is_none() && (!self.answered() || self.hub_window() == 0);
        let ask = asks.then(|| link.asked.saturating_add(link.ask_again));
        let begin = self.beginning.as_ref().and_then(|beginning| beginning.again_at);
        let others = [self.stalled_at(link), self.overdue_at(link), self.try_held_at(), begin];
        others.into_iter().chain([ask]).flatten().min()
    }

    /// Everything through here is at the hub.
    #[must_use]
    pub fn confirmed(&self) -> Position {
        self.numbering.present().positions(self.confirmed).1
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
            answered: self.link.is_some() && self.answered(),
            beginning: self.beginning.is_some(),
        }
    }

    fn answered(&self) -> bool {
        self.hub.as_ref().is_none_or(|hub| hub.answered)
    }

    /// How many records the hub lets go beyond the last receipt; 0: the lane waits, and asks again.
    fn hub_window(&self) -> u32 {
        self.hub.as_ref().and_then(|hub| hub.limits.window).unwrap_or(u32::MAX)
    }

    /// The first position of the number after the confirmed one.
    fn head(&self) -> Position {
        self.numbering.present().positions(self.confirmed + 1).0
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
        // What a file asked for counts no more: an answer will show whether it is still needed.
        self.beginning = None;
        // Positions, health and events share the broker's limit with the transactions.
        let receive = u32::from(receive_maximum.max(1));
        let receive = receive - (receive / 2).min(8);
        self.link = Some(Link {
            nonce,
            asked: now,
            asked_about: self.point,
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
        if let Some(hub) = &mut self.hub {
            // What a file claimed before counts no more: from now on only answers do.
            hub.reset_answer();
        }
        if self.hub.is_none() {
            self.try_too_large(out);
        } else {
            self.publish_position(out);
        }
    }

    fn disconnected(&mut self, now: Millis, out: &mut Vec<Action>) {
        let Some(link) = self.link.take() else { return };
        let head = self.head();
        if self.window.in_flight() > 0 && link.taken <= self.confirmed {
            // It ended with the head under way. The head is sent alone next time, to learn whether it is at fault.
            let alone = self.window.in_flight() == 1 && link.unacked == 1;
            let suspect = self.suspect_at(head);
            suspect.endings += u32::from(alone);
            if suspect.endings >= TRIES {
                self.hold(head, HeldBecause::EndedConnections, now, out);
            }
        }
        self.window.rewind();
        // The answer on the next connection will show whether it is still needed.
        self.beginning = None;
        if let Some(hub) = &mut self.hub {
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
        let of_hub = self.hub.as_ref().and_then(|hub| hub.limits.packet_bytes);
        if let Some(most) = of_hub.into_iter().chain(link.maximum_bytes).min().filter(|most| bytes > *most) {
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
            if reason == NO_SUBSCRIBERS && self.hub.is_some() {
                self.everything_in_doubt(now, out);
            } else {
                self.reconnect(Reason::Refused(reason), now, out);
            }
            return;
        }
        link.moved = now;
        if link.old_unacked > 0 {
            link.old_unacked -= 1;
            return;
        }
        let number = self.numbering.present().number(position);
        self.window.taken(number, now);
        if number != link.taken + 1 {
            return;
        }
        link.taken = number;
        if number == self.confirmed + 1 {
            self.trips = 0;
            self.taken_by_the_broker();
        }
        if self.hub.is_none() {
            self.chain = self.window.chain(number).or(self.chain);
            self.forward(number, Some(now), now, out);
        }
    }
}
