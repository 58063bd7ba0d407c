//! Records that cannot be sent: which one is suspected, which one is held, and when it is tried again.

use super::super::{Action, Alarm, HeldBecause, Millis};
use super::{Delivery, TRIES};
use crate::transaction::{Epoch, Position, Sequence};

/// A head that is held is tried once more, alone, after this: the link may be to blame.
const TRY_HELD_AGAIN: Millis = 3_600_000;

/// A head that is sent alone, to learn whether it is at fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Suspect {
    pub(super) position: Position,
    /// How many connections it has ended by itself.
    pub(super) endings: u32,
    /// How often the hub could not verify it, sent alone; `None`: it has not complained.
    pub(super) unverified: Option<u32>,
    /// The round of the last complaint: whoever repeats one complains once.
    round: Option<u64>,
}

/// The record that stalls the lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Held {
    pub(super) position: Position,
    pub(super) why: HeldBecause,
    since: Millis,
    /// The hub that was answering then, and its limit: another one may take it.
    of_hub: OfHub,
}

/// The start of the hub, and the largest packet that it takes.
type OfHub = (Option<u64>, Option<u64>);

impl Delivery {
    /// The head is suspected from now on, with what is known of it.
    pub(super) fn suspect_at(&mut self, head: Position) -> &mut Suspect {
        let known = self.suspect.filter(|suspect| suspect.position == head);
        self.suspect.insert(known.unwrap_or(Suspect {
            position: head,
            endings: 0,
            unverified: None,
            round: None,
        }))
    }

    pub(super) fn hold(&mut self, position: Position, why: HeldBecause, now: Millis, out: &mut Vec<Action>) {
        // What is held behind it is found again when this one is released.
        if self.held.is_none_or(|held| held.position > position) {
            self.held = Some(Held { position, why, since: now, of_hub: self.of_hub() });
            out.push(Action::Alarm(Alarm::Held(position, why)));
        }
    }

    pub(super) fn release(&mut self, out: &mut Vec<Action>) {
        if let Some(held) = self.held.take() {
            out.push(Action::Alarm(Alarm::Released(held.position)));
        }
    }

    /// A record was too large: perhaps larger ones are taken now.
    pub(super) fn try_too_large(&mut self, out: &mut Vec<Action>) {
        let Some(Held { why: HeldBecause::TooLarge { bytes, .. }, .. }) = self.held else { return };
        let link = self.link.as_ref().and_then(|link| link.maximum_bytes);
        let of_hub = self.hub.as_ref().and_then(|hub| hub.limits.packet_bytes);
        let most = of_hub.into_iter().chain(link).min();
        if most.is_none_or(|most| bytes <= most) {
            self.release(out);
        }
    }

    fn of_hub(&self) -> OfHub {
        self.hub.as_ref().map_or((None, None), |hub| (hub.incarnation, hub.limits.packet_bytes))
    }

    /// The hub has answered: if it has started again, or takes other packets now, it may take what was beyond its limits.
    pub(super) fn try_beyond_hub(&mut self, out: &mut Vec<Action>) {
        let of_hub = self.of_hub();
        if self.held.is_some_and(|held| held.why == HeldBecause::BeyondHub && held.of_hub != of_hub) {
            self.release(out);
        }
    }

    /// The hub can read this number and does not store it: that would not change if it were sent for ever.
    pub(super) fn beyond_hub(&mut self, number: Sequence, now: Millis, out: &mut Vec<Action>) {
        if number > self.confirmed && number < self.window.next() {
            let (position, _) = self.numbering.present().positions(number);
            self.hold(position, HeldBecause::BeyondHub, now, out);
            // What has gone after it was not stored either.
            self.rewind();
        }
    }

    pub(super) fn try_held_at(&self) -> Option<Millis> {
        let held = self.held?;
        let lasts = matches!(held.why, HeldBecause::TooLarge { .. });
        (!lasts).then(|| held.since.saturating_add(TRY_HELD_AGAIN))
    }

    /// Once more, alone if it may be at fault for what else goes wrong; if that fails too, it is held again.
    pub(super) fn try_held(&mut self, out: &mut Vec<Action>) {
        let Some(Held { position, why, .. }) = self.held else { return };
        match why {
            HeldBecause::Unverified => self.suspect_at(position).unverified = Some(TRIES - 1),
            HeldBecause::EndedConnections => self.suspect_at(position).endings = TRIES - 1,
            HeldBecause::TooLarge { .. } | HeldBecause::BeyondHub => {}
        }
        self.release(out);
    }

    /// The broker has taken the head, so that it ends no connection.
    pub(super) fn taken_by_the_broker(&mut self) {
        self.suspect = self.suspect.filter(|suspect| suspect.unverified.is_some());
        if let Some(suspect) = &mut self.suspect {
            suspect.endings = 0;
        }
    }

    /// The hub could not verify this number. What is changed on its way again and again must not stall the lane in silence.
    pub(super) fn unverified(&mut self, through: Sequence, now: Millis, out: &mut Vec<Action>) {
        if through != self.confirmed || self.window.in_flight() == 0 {
            return;
        }
        let (alone, round) = (self.window.in_flight() == 1, self.round);
        let head = self.head();
        let suspect = self.suspect_at(head);
        let repeated = suspect.round.is_some() && suspect.round == round;
        suspect.round = round;
        let alone = alone && !repeated;
        let times = suspect.unverified.unwrap_or(0) + u32::from(alone);
        suspect.unverified = Some(times);
        if times >= TRIES {
            self.hold(head, HeldBecause::Unverified, now, out);
        }
    }

    /// A hub has heard of a longer history than this store has.
    pub(super) fn compare_tail(&mut self, seen: Option<(Epoch, Sequence)>, out: &mut Vec<Action>) -> bool {
        let present = self.numbering.present();
        let Some((epoch, tail)) = seen.filter(|(epoch, _)| *epoch == present.epoch) else { return false };
        let missing = tail.saturating_sub(present.number(self.tail));
        if let Some(link) = self.link.as_mut().filter(|link| missing > 0 && !link.tail_lost) {
            link.tail_lost = true;
            out.push(Action::Alarm(Alarm::TailLost { epoch, missing }));
        }
        missing > 0
    }
}
