//! Where the hub's line ends here, and what the lane does about it: continue, stall, or begin a new epoch (design section 12.2).

use super::super::hub::{Answer, Claim, Place, Point};
use super::super::{Action, Alarm, Gone, Millis, Numbering};
use super::Delivery;
use crate::chain::{ChainValue, Through};
use crate::numbering::without;
use crate::transaction::{Epoch, Position, Sequence};

/// A new epoch that could not be made durable is tried again after this.
const BEGIN_AGAIN: Millis = 2_000;
/// The second end in a day that this lane has never been at waits for this: a person should look first.
pub(super) const DAY: Millis = 86_400_000;
const WAIT: Millis = 3_600_000;

/// A new epoch that is being written.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Beginning {
    after: Position,
    link: Option<Through>,
    follows: Vec<Epoch>,
    gone: Vec<Gone>,
    /// When to try it again, after it could not be written.
    pub(super) again_at: Option<Millis>,
}

impl Beginning {
    fn action(&self) -> Action {
        let (follows, gone) = (self.follows.clone(), self.gone.clone());
        Action::NewEpoch { after: self.after, link: self.link, follows, gone }
    }
}

impl Delivery {
    /// Where an end is, without reading if that is possible.
    pub(super) fn place(&self, end: Option<Through>) -> Place {
        let present = self.numbering.present();
        if end == present.link {
            return Place::Present(0);
        }
        let Some(end) = end else { return Place::Nowhere };
        if let Some(older) = self.numbering.epochs().find(|start| start.link == Some(end)) {
            return Place::Older(older.base);
        }
        let Some(start) = self.numbering.of(end.epoch) else { return Place::Nowhere };
        if end.through == 0 || start.positions(end.through).1 > self.tail {
            return Place::Nowhere;
        }
        if end.epoch != present.epoch {
            return Place::LookUp(end);
        }
        match self.chain_known(end.through) {
            Some(ours) if ours == end.chain => Place::Present(end.through),
            Some(_) => Place::Nowhere,
            None => Place::LookUp(end),
        }
    }

    /// The same once this lane's own chain value there was looked up.
    pub(super) fn place_with(&self, end: Through, ours: Option<ChainValue>) -> Place {
        if ours != Some(end.chain) {
            return Place::Nowhere;
        }
        if end.epoch == self.numbering.present().epoch {
            return Place::Present(end.through);
        }
        self.numbering.position(end.epoch, end.through).map_or(Place::Nowhere, Place::Older)
    }

    /// An answer says where the hub's line ends.
    pub(super) fn judge(
        &mut self,
        claim: Claim,
        answer: Answer,
        place: Place,
        now: Millis,
        out: &mut Vec<Action>,
    ) {
        let through = match place {
            Place::Present(number) => self.numbering.present().positions(number).1,
            Place::Older(position) => position.min(self.tail),
            Place::Nowhere | Place::LookUp(_) => 0,
        };
        let proven = answer.held.map_or(0, |point| point.position.min(self.tail)).max(through);
        let (lost, end) = (self.lost_at_hub(claim.end, answer, place, proven, out), claim.end);
        if let Place::Present(number) = place {
            // What is before a range that a person must decide about goes out in the present epoch. Numbers that were used for what
            // this store has lost are not used again: what is under way under them would be neither stored nor late.
            let decided = self.next_gone(through).is_some_and(|gone| gone.kind.is_some());
            if lost.is_none() && !answer.tail_lost && !decided {
                self.continue_at(number, claim, answer, now, out);
                return;
            }
        }
        out.push(Action::Withdraw);
        // What the hub has lost and this store still has goes again, and with it what was accepted after that: that is there, so
        // only its numbers are stored.
        let after = lost.map_or(proven, |lost| lost - 1);
        if self.stalls_after(after, out) {
            return;
        }
        if matches!(place, Place::Older(_)) && after < self.confirmed() {
            let to = self.confirmed();
            out.push(Action::Alarm(Alarm::HubRestored { from: after + 1, to }));
        }
        if matches!(place, Place::Nowhere)
            && let Some(end) = end
            && !self.may_diverge(end, after, now, out)
        {
            return;
        }
        // An end in an epoch of this lane is in that epoch's line, also where another history has written it: what the hub says of
        // that epoch is then believed rather too much than too little.
        let follows = self.epochs_of(end.into_iter().chain(answer.held.map(|point| point.at)));
        self.begin(after, end, follows, out);
    }

    /// The epochs of this lane that these points of the hub's line are in, or follow.
    pub(super) fn epochs_of(&self, points: impl Iterator<Item = Through>) -> Vec<Epoch> {
        let mut epochs: Vec<_> = points.filter_map(|point| self.numbering.newest_in_line(point)).collect();
        epochs.dedup();
        epochs
    }

    /// What the hub's line names and its store has lost for good, of what is proven to be in the line, which is through `proven`.
    /// Returns the first such position that can still be read.
    fn lost_at_hub(
        &mut self,
        end: Option<Through>,
        answer: Answer,
        place: Place,
        proven: Position,
        out: &mut Vec<Action>,
    ) -> Option<Position> {
        let held = answer.held.map(|point| (point.at.epoch, point.at.through));
        let own = end.filter(|end| self.numbering.of(end.epoch).is_some());
        let newest = match (place, own) {
            (Place::Present(number), _) => Some((self.numbering.present().epoch, number)),
            (Place::Older(_), Some(own)) => Some((own.epoch, own.through)),
            (Place::Older(_), None) => {
                end.and_then(|end| self.numbering.newest_in_line(end)).map(|newest| (newest, 0)).or(held)
            }
            _ => held,
        };
        let ends_here = match place {
            Place::Present(_) => true,
            Place::Older(_) => own.is_some(),
            Place::Nowhere | Place::LookUp(_) => false,
        };
        let numbers = self.hub.as_ref().map(|hub| hub.lost.as_slice()).unwrap_or_default();
        let mut lost =
            newest.map_or_else(Vec::new, |newest| self.numbering.lost_positions(numbers, newest, ends_here));
        for (_, through) in &mut lost {
            *through = proven.min(*through);
        }
        lost.retain(|(from, through)| from <= through);
        let readable = |&(from, through): &(Position, Position)| {
            let next = self.gone.iter().fold(from, |next, gone| match gone {
                gone if (gone.from..=gone.through).contains(&next) => gone.through + 1,
                _ => next,
            });
            (next <= through).then_some(next)
        };
        let first = lost.iter().find_map(readable);
        if self.lost.as_ref() != Some(&lost) {
            out.push(Action::LostAtHub(lost.clone()));
            self.lost = Some(lost);
        }
        first
    }

    /// Whether an epoch after this position could send nothing: a person must decide about the first one in it.
    fn stalls_after(&mut self, after: Position, out: &mut Vec<Action>) -> bool {
        let gone = without(&self.gone, &self.numbering.entries_after(after), after);
        let first = gone.first().filter(|first| first.kind.is_none() && first.from == after + 1);
        if let Some(first) = first {
            self.stall_at(first.from, out);
        }
        first.is_some()
    }

    /// Begins an epoch, with entries for what is decided.
    pub(super) fn begin(
        &mut self,
        after: Position,
        link: Option<Through>,
        follows: Vec<Epoch>,
        out: &mut Vec<Action>,
    ) {
        let mut gone = without(&self.gone, &self.numbering.entries_after(after), after);
        gone.retain(|gone| gone.kind.is_some());
        let beginning = Beginning { after, link, follows, gone, again_at: None };
        out.push(beginning.action());
        self.beginning = Some(beginning);
        if let Some(hub) = &mut self.hub {
            hub.reset_answer();
        }
    }

    /// The first that the present epoch would send as a transaction after this position, and cannot.
    pub(super) fn next_gone(&self, position: Position) -> Option<Gone> {
        without(&self.gone, &self.numbering.present().entries, position).into_iter().next()
    }

    /// The line ends where this lane has never been: the first time in a day it may begin an epoch there at once.
    fn may_diverge(&mut self, end: Through, proven: Position, now: Millis, out: &mut Vec<Action>) -> bool {
        if self.waits_until.is_some_and(|until| now < until) {
            return false;
        }
        let waited = self.waits_until.take().is_some();
        let again = self.diverges_again_until.is_some_and(|until| now < until);
        if again && !waited {
            self.waits_until = Some(now.saturating_add(WAIT));
        } else {
            self.diverges_again_until = Some(now.saturating_add(DAY));
        }
        if !waited {
            out.push(Action::Alarm(Alarm::Diverged { end, proven }));
        }
        !again || waited
    }

    /// A new epoch need not wait any longer.
    pub(super) fn a_person_has_looked(&mut self, now: Millis, out: &mut Vec<Action>) {
        if let Some(until) = &mut self.waits_until {
            *until = now;
            self.doubt(now, out);
        }
    }

    /// The lane stalls before a position that cannot be read, until a person has decided.
    pub(super) fn stall_at(&mut self, position: Position, out: &mut Vec<Action>) {
        if self.missing != Some(position) {
            self.missing = Some(position);
            out.push(Action::Alarm(Alarm::Missing(position)));
        }
    }

    /// What cannot be read has changed, or what was decided about it.
    pub(super) fn gone(&mut self, gone: Vec<Gone>, now: Millis, out: &mut Vec<Action>) {
        if gone == self.gone {
            return;
        }
        self.gone = gone;
        self.missing = None;
        let decided = self.next_gone(self.confirmed()).is_some_and(|gone| gone.kind.is_some());
        if self.beginning.is_some() {
        } else if self.hub.is_none() && decided {
            // No hub whose line would have to be asked for: it ends where this lane has sent through.
            let end = self.end();
            self.begin(self.confirmed(), end, self.epochs_of(end.into_iter()), out);
        } else if self.hub.is_some() && (decided || !self.answered()) {
            self.everything_in_doubt(now, out);
        }
    }

    /// The point of the line that the hub has confirmed here.
    fn end(&self) -> Option<Through> {
        let present = self.numbering.present();
        let own = |chain| Through { epoch: present.epoch, through: self.confirmed, chain };
        if self.confirmed == 0 { present.link } else { self.chain.map(own) }
    }

    pub(super) fn renumbered(&mut self, numbering: Numbering, now: Millis, out: &mut Vec<Action>) {
        self.beginning = None;
        self.numbering = numbering;
        self.at(0, None);
        self.window.reset(0);
        self.rewind();
        self.missing = None;
        if let Some(hub) = &mut self.hub {
            hub.reset_answer();
        }
        self.ask(now, out);
    }

    pub(super) fn not_renumbered(&mut self, now: Millis) {
        if self.link.is_none() {
            // A file asked for it: whoever brought it gets the error, and may bring it again.
            self.beginning = None;
        } else if let Some(beginning) = &mut self.beginning {
            beginning.again_at = Some(now.saturating_add(BEGIN_AGAIN));
        }
    }

    pub(super) fn begin_again(&mut self, now: Millis, out: &mut Vec<Action>) {
        let Some(beginning) = &mut self.beginning else { return };
        if beginning.again_at.is_some_and(|at| now >= at) {
            beginning.again_at = None;
            out.push(beginning.action());
        }
    }

    /// The hub has the present epoch through this number, with this chain value; 0: through where it begins.
    pub(super) fn at(&mut self, number: Sequence, chain: Option<ChainValue>) {
        self.confirmed = number;
        self.chain = chain.filter(|_| number > 0);
        let position = self.confirmed();
        if let Some(at) = self.end() {
            self.point = Some(Point { position, at });
        } else if number == 0 {
            self.point = None;
        }
    }

    /// The line ends at this number of the present epoch, and continues from there.
    fn continue_at(
        &mut self,
        number: Sequence,
        claim: Claim,
        answer: Answer,
        now: Millis,
        out: &mut Vec<Action>,
    ) {
        let chain = claim.end.map(|end| end.chain);
        let Some(hub) = &mut self.hub else { return };
        let had_answered = std::mem::replace(&mut hub.answered, true);
        hub.relied_on = answer.known_store.then_some(answer.asked);
        let asked = hub.relied_on;
        if asked.is_none() {
            out.push(Action::Withdraw);
        }
        self.backed_up_in(claim);
        if number < self.confirmed {
            let to = self.confirmed();
            self.at(number, chain);
            self.window.reset(number);
            self.rewind();
            out.push(Action::Alarm(Alarm::HubRestored { from: self.confirmed() + 1, to }));
            self.confirm(asked, out);
        } else if number > self.confirmed {
            self.chain = chain;
            self.forward(number, asked, now, out);
        } else {
            self.at(number, chain.or(self.chain));
            self.confirm(asked, out);
        }
        if !had_answered && self.window.in_flight() > 0 {
            // The hub was in doubt, or restarted: the records under way may be lost.
            self.rewind();
        }
    }

    /// Where the backup of the line lies here; of an epoch before the present one it says nothing.
    pub(super) fn backed_up_in(&mut self, claim: Claim) {
        let present = self.numbering.present();
        let ours = claim.end.filter(|end| end.epoch == present.epoch);
        let through = ours.zip(claim.backed_up_through).map(|(end, through)| end.through.min(through));
        self.backed_up = through.map(|through| present.positions(through).1);
    }

    /// Our chain value at a number of the present epoch, without reading.
    pub(super) fn chain_known(&self, number: Sequence) -> Option<ChainValue> {
        if number == self.confirmed { self.chain } else { self.window.chain(number) }
    }
}
