//! The handling of receipts, gap notices and a new numbering.

use super::super::hubs::{Claim, HubView, backed_up};
use super::super::{Action, Alarm, Millis, Numbering, Receipt};
use super::Delivery;
use super::questions::ASK_AGAIN;
use crate::chain::ChainValue;
use crate::transaction::{Epoch, Position, Sequence};
use crate::wire::receipt::GapCode;

impl Delivery {
    pub(super) fn receipt(&mut self, receipt: &Receipt, now: Millis, out: &mut Vec<Action>) {
        let (Some(link), Some(hub)) = (&mut self.link, self.hubs.get_mut(receipt.hub)) else { return };
        if self.forking.is_some() {
            return;
        }
        let answered = receipt.nonce == Some(link.nonce);
        let same = hub.incarnation == Some(receipt.incarnation);
        if same && receipt.counter <= hub.counter && (hub.answered || !answered) {
            // Stale; or the hub is a virtual machine that was restored with its memory. The answer to a new question
            // tells them apart: it cannot be older than the question.
            let lower = hub.answered && receipt.counter < hub.counter;
            if lower && now.saturating_sub(link.asked) >= ASK_AGAIN {
                self.doubt(receipt.hub, now, out);
            }
            return;
        }
        if !answered && !hub.answered {
            // It proves only that the hub is alive. Ask again soon instead of waiting for the rest of the pause: a hub that
            // connects after us has not received our question.
            if hub.claims.is_empty() {
                self.ask_soon(now, out);
            }
            return;
        }
        if !answered && !same {
            self.doubt(receipt.hub, now, out);
            return;
        }
        let asked = link.asked;
        hub.incarnation = Some(receipt.incarnation);
        hub.counter = receipt.counter;
        if !same {
            hub.reset_answer();
        }
        hub.backed_up = backed_up(&self.numbering, &receipt.epochs, receipt.backed_up_through);
        let mut claim = Claim::new(&self.numbering, &receipt.epochs);
        if answered {
            (claim.asked, claim.known_store) = (Some(asked), receipt.known_store);
            hub.limits = receipt.limits;
            self.compare_tail(receipt.tail_seen, out);
        }
        self.consider(receipt.hub, claim, now, out);
        self.try_too_large(out);
        if !answered && self.hubs_window() == 0 {
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
        let claim = Claim::new(&self.numbering, &receipt.epochs);
        let Some(hub) = self.hubs.get_mut(receipt.hub) else { return };
        if claim.position > hub.at && claim.position <= self.tail && claim.chain.is_some() {
            hub.imported = Some(claim);
            out.push(Action::LookUpChain(claim.position));
        }
    }

    fn imported_chain(
        &mut self,
        position: Position,
        ours: Option<ChainValue>,
        now: Millis,
        out: &mut Vec<Action>,
    ) {
        for hub in &mut self.hubs {
            let Some(claim) = hub.imported.filter(|claim| claim.position == position) else { continue };
            hub.imported = None;
            if ours.is_some() && claim.chain == ours {
                hub.at = position;
                hub.chain = ours;
            }
        }
        let Some(lowest) = self.hubs.iter().min_by_key(|hub| hub.at) else { return };
        if lowest.at > self.confirmed {
            self.chain = lowest.chain;
            self.forward(lowest.at, None, now, out);
        }
    }

    /// Our chain value at a position, without reading.
    fn chain_known(&self, hub: usize, position: Position) -> Option<ChainValue> {
        if position == self.confirmed {
            return self.chain;
        }
        self.hubs
            .get(hub)
            .filter(|hub| hub.at == position)
            .and_then(|hub| hub.chain)
            .or_else(|| self.window.chain(position))
    }

    fn consider(&mut self, hub: usize, claim: Claim, now: Millis, out: &mut Vec<Action>) {
        let Some(view) = self.hubs.get_mut(hub) else { return };
        if let Some(looking) = view.claims.front().copied() {
            // One look-up at a time, and the newest claim after it. A later claim for the same position stays an answer.
            view.claims.truncate(1);
            let before = looking.asked.filter(|_| claim.position == looking.position);
            view.claims.push_back(Claim { asked: claim.asked.or(before), ..claim });
            return;
        }
        let back = claim.position < view.at;
        if claim.position > self.tail {
            self.contradicts(hub, claim, now, out);
        } else if back && claim.asked.is_none() {
            self.doubt(hub, now, out);
        } else if let Some(ours) = self.chain_known(hub, claim.position) {
            self.check_claim(hub, claim, Some(ours), now, out);
        } else if let Some(view) = self.hubs.get_mut(hub) {
            view.claims.push_back(claim);
            out.push(Action::LookUpChain(claim.position));
        }
    }

    pub(super) fn chain_at(
        &mut self,
        position: Position,
        chain: Option<ChainValue>,
        now: Millis,
        out: &mut Vec<Action>,
    ) {
        if self.link.is_none() {
            self.imported_chain(position, chain, now, out);
            return;
        }
        for hub in 0..self.hubs.len() {
            let Some(view) = self.hubs.get_mut(hub) else { continue };
            if view.claims.front().is_none_or(|claim| claim.position != position) {
                continue;
            }
            let Some(claim) = view.claims.pop_front() else { continue };
            let newest = view.claims.pop_front();
            self.check_claim(hub, claim, chain, now, out);
            if let Some(newest) = newest.filter(|_| self.link.is_some() && self.forking.is_none()) {
                self.consider(hub, newest, now, out);
            }
        }
    }

    /// Compares the hub's claim with our chain value (`None`: it can no longer be read).
    fn check_claim(
        &mut self,
        hub: usize,
        claim: Claim,
        ours: Option<ChainValue>,
        now: Millis,
        out: &mut Vec<Action>,
    ) {
        if let (Some(theirs), Some(ours)) = (claim.chain, ours)
            && theirs != ours
        {
            self.contradicts(hub, claim, now, out);
            return;
        }
        let Some(view) = self.hubs.get_mut(hub) else { return };
        let had_answered = view.answered;
        if ours.is_some() || claim.position <= self.confirmed {
            view.at = claim.position;
            view.chain = ours.or(claim.chain);
        }
        // Forward, but without our own chain value to check it: the records between are sent again, which shows it.
        view.answered |= claim.asked.is_some();
        if let Some(asked) = claim.asked {
            view.relied_on = claim.known_store.then_some((asked, claim.position));
        }
        let all = self.hubs_answered();
        let Some(lowest) = self.hubs.iter().min_by_key(|hub| hub.at) else { return };
        let (at, chain) = (lowest.at, lowest.chain);
        // What every hub has answered, if this is an answer.
        let relied_on =
            |hub: &HubView| hub.relied_on.filter(|(_, through)| *through >= at).map(|(asked, _)| asked);
        let asked = self.hubs.iter().map(relied_on).min().flatten().filter(|_| claim.asked.is_some());
        let backed_up = self.hubs.iter().map(|hub| hub.backed_up).min().flatten();
        let new_backup = self.backed_up != backed_up;
        self.backed_up = backed_up;
        if at < self.confirmed {
            let from = self.confirmed;
            self.confirmed = at;
            self.chain = chain;
            self.window.reset(at);
            self.rewind();
            out.push(Action::Alarm(Alarm::HubRestored { from: at + 1, to: from }));
            self.confirm(asked, out);
        } else if all && at > self.confirmed {
            self.chain = chain;
            self.forward(at, asked, now, out);
        } else if all && (new_backup || !had_answered || asked.is_some()) {
            self.chain = chain.or(self.chain);
            self.confirm(asked, out);
        }
        if all && !had_answered && self.window.in_flight() > 0 {
            // The hub was in doubt, or restarted: the records under way may be lost.
            self.rewind();
        }
    }

    /// `asked`: when the question was asked whose answer says so.
    pub(super) fn confirm(&self, asked: Option<Millis>, out: &mut Vec<Action>) {
        if let Some(chain) = self.chain {
            let (position, backed_up_through) = (self.confirmed, self.backed_up);
            out.push(Action::Confirm { position, chain, backed_up_through, asked });
        }
    }

    pub(super) fn forward(
        &mut self,
        position: Position,
        asked: Option<Millis>,
        now: Millis,
        out: &mut Vec<Action>,
    ) {
        self.confirmed = position;
        self.window.confirm(position);
        self.misses = 0;
        self.trips = 0;
        if let Some(link) = &mut self.link {
            link.moved = now;
            link.taken = link.taken.max(position);
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

    /// The hub has more than we have, or different records: a fork, if it says so in answer to our question.
    fn contradicts(&mut self, hub: usize, claim: Claim, now: Millis, out: &mut Vec<Action>) {
        if claim.asked.is_none() {
            self.doubt(hub, now, out);
            return;
        }
        // The watermark was verified when it was recorded. If the value at or below it differs, the hub provably has only
        // what precedes that epoch.
        let after = if claim.position > self.confirmed {
            self.confirmed
        } else {
            self.numbering.at(claim.position.max(1)).base
        };
        self.forking = Some(after);
        for hub in &mut self.hubs {
            hub.reset_answer();
        }
        out.push(Action::Alarm(Alarm::Diverged { through: claim.through, position: claim.position }));
        out.push(Action::NewEpoch { after });
    }

    pub(super) fn renumbered(&mut self, numbering: Numbering, now: Millis, out: &mut Vec<Action>) {
        self.forking = None;
        self.fork_again = None;
        let base = numbering.current().base;
        self.numbering = numbering;
        // The value at position 0 belongs to the first epoch, which may be another one now.
        if base < self.confirmed || base == 0 {
            self.chain = None;
        }
        self.confirmed = self.confirmed.min(base);
        for hub in &mut self.hubs {
            hub.at = self.confirmed;
            hub.chain = self.chain;
            hub.reset_answer();
        }
        self.window.reset(self.confirmed);
        self.rewind();
        self.ask(now, out);
    }

    pub(super) fn gap(
        &mut self,
        code: GapCode,
        (epoch, expected, round): (Epoch, Sequence, u64),
        now: Millis,
        out: &mut Vec<Action>,
    ) {
        let listening =
            self.link.is_some() && self.hubs_answered() && !self.hubs.is_empty() && self.forking.is_none();
        if !listening || self.round != Some(round) {
            return;
        }
        let expects = expected.checked_sub(1).and_then(|through| self.numbering.position(epoch, through));
        match code {
            GapCode::Missing => {}
            GapCode::Unverified => return self.unverified(expects, now, out),
            // Whatever else is wrong would be wrong again.
            _ => return,
        }
        if expects.is_none_or(|through| through < self.confirmed) {
            // It expects a number that it said it had, or one that is not ours: ask for its position.
            self.everything_in_doubt(now, out);
        } else if self.window.in_flight() > 0 {
            self.window.halve();
            self.rewind();
        }
    }
}
