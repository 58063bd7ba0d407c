//! The handling of receipts and gap notices.

use super::super::hub::{Answer, Claim, Place};
use super::super::{Action, Millis, Receipt};
use super::Delivery;
use super::questions::ASK_AGAIN;
use crate::chain::{ChainValue, Through};
use crate::transaction::{Epoch, Position, Sequence};
use crate::wire::receipt::GapCode;

impl Delivery {
    /// The position through which a receipt claims to confirm this lane.
    #[must_use]
    pub fn claimed_by(&self, receipt: &Receipt) -> Position {
        let position = |end: Through| self.numbering.position(end.epoch, end.through);
        receipt.end.and_then(position).unwrap_or(0)
    }

    /// Whether a receipt answers this connection's last question.
    #[must_use]
    pub fn is_answer(&self, receipt: &Receipt) -> bool {
        self.link.as_ref().is_some_and(|link| receipt.nonce == Some(link.nonce))
    }

    pub(super) fn receipt(&mut self, receipt: &Receipt, now: Millis, out: &mut Vec<Action>) {
        let (Some(link), Some(hub)) = (&mut self.link, &mut self.hub) else { return };
        if self.beginning.is_some() {
            return;
        }
        let answered = receipt.nonce == Some(link.nonce);
        let same = hub.incarnation == Some(receipt.incarnation);
        if same && receipt.counter <= hub.counter && (hub.answered || !answered) {
            // Stale; or the hub is a virtual machine that was restored with its memory. The answer to a new question
            // tells them apart: it cannot be older than the question.
            let lower = hub.answered && receipt.counter < hub.counter;
            if lower && now.saturating_sub(link.asked) >= ASK_AGAIN {
                self.doubt(now, out);
            }
            return;
        }
        if !answered && !hub.answered {
            // It proves only that the hub is alive. Ask again soon instead of waiting for the rest of the pause: a hub that
            // connects after us has not received our question.
            if hub.looking.is_none() {
                self.ask_soon(now, out);
            }
            return;
        }
        if !answered && !same {
            self.doubt(now, out);
            return;
        }
        hub.incarnation = Some(receipt.incarnation);
        hub.counter = receipt.counter;
        if !same {
            hub.reset_answer();
        }
        let (asked, held) = (link.asked, link.asked_about.filter(|_| receipt.holds_point));
        if answered {
            hub.limits = receipt.limits;
            hub.lost.clone_from(&receipt.lost);
        }
        let answer = answered.then(|| Answer {
            asked,
            known_store: receipt.known_store,
            held,
            tail_lost: self.compare_tail(receipt.tail_seen, out),
        });
        let claim = Claim { end: receipt.end, answer, backed_up_through: receipt.backed_up_through };
        self.consider(claim, now, out);
        self.try_too_large(out);
        if answered {
            self.try_beyond_hub(out);
        }
        if !answered && self.hub_window() == 0 {
            // The hub lets go again, perhaps.
            self.ask_soon(now, out);
        }
    }

    /// A receipt that came by file. It is signed, but of any age, and answers no question. It only moves the watermark
    /// forward, to a chain value that is ours, and the next answer on a link may take that back. Nothing is pruned because
    /// of it: that needs an answer.
    pub(super) fn imported(&mut self, receipt: &Receipt, now: Millis, out: &mut Vec<Action>) {
        if self.link.is_some() {
            self.receipt(receipt, now, out);
            return;
        }
        let claim = Claim { end: receipt.end, answer: None, backed_up_through: receipt.backed_up_through };
        let further = receipt
            .end
            .is_some_and(|end| end.epoch == self.numbering.present().epoch && end.through > self.confirmed);
        if further && self.hub.as_ref().is_some_and(|hub| hub.looking.is_none()) {
            self.consider(claim, now, out);
        }
    }

    fn consider(&mut self, claim: Claim, now: Millis, out: &mut Vec<Action>) {
        let place = self.place(claim.end);
        let Some(hub) = &mut self.hub else { return };
        if let Some(looking) = hub.looking {
            // One look-up at a time, and the newest claim after it. A later claim of the same end stays an answer.
            let before = hub.waiting.unwrap_or(looking);
            let answer = claim.answer.or(before.answer.filter(|_| before.end == claim.end));
            hub.waiting = Some(Claim { answer, ..claim });
            return;
        }
        let present = self.numbering.present().epoch;
        match place {
            // Backward, or elsewhere: only an answer may say so.
            Place::LookUp(end)
                if claim.answer.is_none() && (end.epoch != present || end.through < self.confirmed) =>
            {
                self.doubt(now, out);
            }
            Place::LookUp(end) => {
                hub.looking = Some(claim);
                out.push(Action::LookUpChain { epoch: end.epoch, sequence: end.through });
            }
            place => self.settle(claim, place, now, out),
        }
    }

    pub(super) fn chain_at(
        &mut self,
        (epoch, sequence): (Epoch, Sequence),
        ours: Option<ChainValue>,
        now: Millis,
        out: &mut Vec<Action>,
    ) {
        let Some(hub) = &mut self.hub else { return };
        let Some(end) = hub.looking.and_then(|claim| claim.end) else { return };
        if (end.epoch, end.through) != (epoch, sequence) {
            return;
        }
        let (claim, newest) = (hub.looking.take(), hub.waiting.take());
        if let Some(claim) = claim {
            let place = self.place_with(end, ours);
            self.settle(claim, place, now, out);
        }
        if let Some(newest) = newest.filter(|_| self.link.is_some() && self.beginning.is_none()) {
            self.consider(newest, now, out);
        }
    }

    /// It is known where the end of a claim is.
    fn settle(&mut self, claim: Claim, place: Place, now: Millis, out: &mut Vec<Action>) {
        if let Some(answer) = claim.answer {
            self.judge(claim, answer, place, now, out);
            return;
        }
        match place {
            Place::Present(number) if number >= self.confirmed => {
                if std::mem::take(&mut self.waits_for_centre) {
                    // The hub says something again: perhaps because it takes what it has refused.
                    self.rewind();
                }
                let before = self.backed_up;
                self.backed_up_in(claim);
                if number > self.confirmed {
                    self.chain = claim.end.map(|end| end.chain);
                    self.forward(number, None, now, out);
                } else if self.backed_up != before {
                    self.confirm(None, out);
                }
            }
            // Backward, or elsewhere: only an answer may say so.
            _ if self.link.is_some() => self.doubt(now, out),
            _ => {}
        }
    }

    /// `asked`: when the question was asked whose answer says so.
    pub(super) fn confirm(&self, asked: Option<Millis>, out: &mut Vec<Action>) {
        let (position, backed_up_through) = (self.confirmed(), self.backed_up);
        let point = self.point.map(|point| point.at);
        out.push(Action::Confirm { position, point, backed_up_through, asked });
    }

    /// The watermark moves forward to this number; `self.chain` is the value there.
    pub(super) fn forward(
        &mut self,
        number: Sequence,
        asked: Option<Millis>,
        now: Millis,
        out: &mut Vec<Action>,
    ) {
        self.at(number, self.chain);
        let position = self.confirmed();
        self.window.confirm(number);
        self.misses = 0;
        self.trips = 0;
        if let Some(link) = &mut self.link {
            link.moved = now;
            link.taken = link.taken.max(number);
            link.waiting_bytes = 0;
        }
        if self.suspect.is_some_and(|suspect| suspect.position <= position) {
            self.suspect = None;
        }
        if self.held.is_some_and(|held| held.position <= position) {
            self.release(out);
        }
        if self.missing.is_some_and(|missing| missing <= position) {
            self.missing = None;
        }
        self.confirm(asked, out);
    }

    pub(super) fn gap(
        &mut self,
        code: GapCode,
        (epoch, expected, round): (Epoch, Sequence, u64),
        now: Millis,
        out: &mut Vec<Action>,
    ) {
        let listening = self.link.is_some()
            && self.hub.is_some()
            && self.answered()
            && self.beginning.is_none()
            && epoch == self.numbering.present().epoch;
        if !listening || self.round != Some(round) {
            return;
        }
        let through = expected.saturating_sub(1);
        match code {
            GapCode::Missing if through < self.confirmed => {
                // It expects a number that it said it had: ask where its line ends.
                self.everything_in_doubt(now, out);
            }
            GapCode::Missing if self.window.in_flight() > 0 => {
                self.window.halve();
                self.rewind();
            }
            GapCode::Unverified => self.unverified(through, now, out),
            GapCode::TooLarge => self.beyond_hub(expected, now, out),
            GapCode::Link => {
                // The line ends elsewhere. Whoever says so again and again must not make us ask without a pause.
                let due = |link: &super::Link| now >= link.asked.saturating_add(ASK_AGAIN);
                if self.link.as_ref().is_some_and(due) {
                    self.everything_in_doubt(now, out);
                }
            }
            GapCode::Admit | GapCode::Epochs => self.waits_for_centre = true,
            // Whatever else is wrong would be wrong again.
            _ => {}
        }
    }
}
