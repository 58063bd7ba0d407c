//! The state of one lane: where its line ends, and what continues it.

use std::collections::VecDeque;

use super::pause::Pause;
use super::{Content, Lookup, Missed, Numbered, Question, Record, Refill, Way, refill};
use crate::chain::{ChainValue, Through};
use crate::delivery::Millis;
use crate::transaction::{Epoch, LaneName, Sequence};
use crate::wire::receipt::GapCode;

/// Chain values of the last stored and staged numbers that are kept to check repetitions.
const REMEMBERED: usize = 64;
/// Epochs that a lane may begin in a day before the centre must let it.
const EPOCHS_A_DAY: usize = 64;
/// Epochs of a line: the store writes the end of each before every group.
const EPOCHS_A_LINE: usize = 4_096;
const DAY: Millis = 86_400_000;

/// What the committer does with a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Store it.
    Store,
    /// Its content is in the line already: store only that this number names it (the number must survive a restart), not the
    /// transaction itself.
    Known,
    /// Its id is in the line with another content: store it all the same, and say so.
    Rival,
    /// A repetition.
    Repeat,
    /// It does not continue the line, and everything in it is its gateway's: keep it beside the line.
    Late,
    /// It comes too early, this number is next: ignore it.
    Ahead(Sequence),
    /// It does not continue the line, though its gateway has signed it: ignore it.
    Link,
    /// Its gateway has not signed it: as if it had not arrived. This number is next.
    Unsigned(Sequence),
    /// The centre must admit it first: it stands for transactions that are deleted.
    Admit,
    /// The centre must give up first what the store has lost: this does not refill it.
    Hole,
    /// Its gateway has begun too many epochs today.
    Epochs,
    /// It is beyond the limits of this hub.
    TooLarge,
    /// The store cannot say whether it is stored already. The lane is unchanged.
    Unsure,
}

/// One lane of one gateway.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(super) struct LaneState {
    /// Its epochs in the order of the line; the last is the one that grows.
    line: Vec<EpochProgress>,
    /// The last position question since the hub started.
    question: Option<Question>,
    /// The epoch of what a bundle has brought since then, and the centre has to admit.
    carried: Option<Epoch>,
    /// The epoch whose entries for deleted transactions the centre admits.
    admits: Option<Epoch>,
    /// When the epochs of the last day began, as far as they are stored.
    begun: VecDeque<Millis>,
    /// The last that is kept beside the line; the store may not have it yet.
    late: Option<Through>,
    /// The last gap notice.
    last_notice: Option<Missed>,
    /// The store cannot use its files: what it has of the lane is not known, and nothing is said of it.
    out_of_use: bool,
    /// The store could not tell what it has of the lane: nothing is taken until then.
    pub(super) pause: Option<Pause>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct EpochProgress {
    /// On stable storage.
    stored: Through,
    /// Including the transactions in the group.
    staged: Through,
    /// Chain values of the numbers through `staged.through`, newest last.
    recent: VecDeque<ChainValue>,
}

impl EpochProgress {
    fn new(through: Through) -> Self {
        Self { stored: through, staged: through, recent: VecDeque::from([through.chain]) }
    }

    fn chain(&self, sequence: Sequence) -> Option<ChainValue> {
        let back = usize::try_from(self.staged.through.checked_sub(sequence)?).ok()?;
        self.recent.get(self.recent.len().checked_sub(back)?.checked_sub(1)?).copied()
    }

    fn advance(&mut self, chain: ChainValue) {
        self.staged.through += 1;
        self.staged.chain = chain;
        if self.recent.len() == REMEMBERED {
            self.recent.pop_front();
        }
        self.recent.push_back(chain);
    }
}

/// How a record came, and what it is compared with.
pub(super) struct Arrival<'a, R> {
    pub(super) way: Way,
    /// What is staged already.
    pub(super) group: &'a [R],
    /// Of a bundle: through this number of the end's epoch it has what the line has.
    pub(super) same_through: Sequence,
    pub(super) now: Millis,
}

impl LaneState {
    /// A lane as the store has it: where each epoch of its line ends; `None`: it is out of use. What its gateway has asked since
    /// the hub started stays.
    pub(super) fn begin_again(&mut self, line: Option<Vec<Through>>) {
        if self.out_of_use && line.is_none() {
            return;
        }
        self.out_of_use = line.is_none();
        self.line = line.unwrap_or_default().into_iter().map(EpochProgress::new).collect();
        self.last_notice = None;
    }

    /// The store could not use it when it was last asked.
    pub(super) fn is_out_of_use(&self) -> bool {
        self.out_of_use
    }

    /// A record is kept beside the line.
    pub(super) fn keeps_late(&mut self, numbered: &Numbered) {
        let Numbered { epoch, sequence, chain, .. } = *numbered;
        self.late = Some(Through { epoch, through: sequence, chain });
    }

    /// The gateway asks where the line ends.
    pub(super) fn ask(&mut self, question: Question) {
        self.question = Some(question);
        self.carried = None;
    }

    /// A bundle has brought what the centre has to admit.
    pub(super) fn carries(&mut self, epoch: Epoch) {
        self.carried = Some(epoch);
    }

    /// The epoch that its gateway has named last, over the link or with a bundle.
    pub(super) fn named(&self) -> Option<Epoch> {
        self.carried.or(self.question.as_ref().map(|question| question.epoch))
    }

    /// Its last question.
    pub(super) fn question(&self) -> Option<&Question> {
        self.question.as_ref()
    }

    /// The centre lets it continue, with what its gateway has named as its present epoch.
    pub(super) fn admit(&mut self) {
        self.admits = self.named();
        self.begun.clear();
    }

    /// A transaction has arrived.
    pub(super) fn classify<R: Record>(
        &mut self,
        record: &R,
        arrival: &Arrival<'_, R>,
        store: &mut impl Lookup<R>,
    ) -> Verdict {
        let Numbered { epoch, sequence, chain, link, .. } = record.numbered();
        let end = self.staged();
        let continues = end.is_some_and(|end| end.epoch == epoch);
        let expected = if continues { end.map_or(0, |end| end.through) + 1 } else { 1 };
        if continues && sequence > expected {
            // Another history of this epoch goes on where it has left off.
            let other = self.follows_late(record);
            return if other { self.beside(record, arrival, store) } else { Verdict::Ahead(expected) };
        }
        if continues && sequence < expected {
            let remembered = self.line.last().and_then(|progress| progress.chain(sequence));
            let is_same = match remembered {
                Some(stored) => stored == chain,
                // Over a link its gateway learns with the next answer where the line ends. With a bundle a person learns it now,
                // and may destroy what the bundle came from.
                None => arrival.way == Way::Link || sequence <= arrival.same_through,
            };
            return if is_same { Verdict::Repeat } else { self.beside(record, arrival, store) };
        }
        let asked_about = self.question.as_ref().is_some_and(|question| question.epoch == epoch);
        if !continues && sequence > 1 && asked_about && !self.has_epoch(epoch) {
            // The beginning of its gateway's present epoch has not arrived.
            return Verdict::Ahead(1);
        }
        let begins = !continues && sequence == 1 && link == end && !self.has_epoch(epoch);
        let before = match end {
            Some(end) if continues => end.chain,
            _ if begins => ChainValue::first(record.lane(), epoch, link.as_ref()),
            _ => return self.beside(record, arrival, store),
        };
        // A wrong chain value says something about the gateway only if the gateway has signed it.
        if record.chain_after(before) != chain {
            return match self.beside(record, arrival, store) {
                // Its number is the next one all the same: it must ask where the line ends.
                Verdict::Repeat => Verdict::Link,
                verdict => verdict,
            };
        }
        let verdict = self.content(record, arrival, store);
        if verdict == Verdict::Unsure {
            return verdict;
        }
        if let Some(waits) = self.waits(record, verdict, begins, arrival.now, store) {
            // A person is asked only about what its gateway has signed, and only that stalls its lane.
            let signed = store.signed_by(record, chain, arrival.way);
            return if signed.is_some() { waits } else { Verdict::Unsigned(sequence) };
        }
        self.advance(record.lane(), &record.numbered());
        verdict
    }

    /// Through which number of the end's epoch a part of a bundle has what the line has, if all that it has of it is the same. Its
    /// chain values were checked, so the value of its last such number proves those before it. `None`: the store cannot say.
    pub(super) fn same_through<R: Record>(&self, part: &[R], store: &mut impl Lookup<R>) -> Option<Sequence> {
        let Some(end) = self.staged() else { return Some(0) };
        let is_known = |at: &Numbered| at.epoch == end.epoch && at.sequence <= end.through;
        let of = part.iter().map(|record| (record.lane(), record.numbered())).rfind(|(_, at)| is_known(at));
        let Some((lane, last)) = of else { return Some(0) };
        let stored = match self.line.last().and_then(|progress| progress.chain(last.sequence)) {
            Some(stored) => Some(stored),
            None => store.value_at(lane, last.epoch, last.sequence)?,
        };
        Some(if stored == Some(last.chain) { last.sequence } else { 0 })
    }

    /// Whether the record, which continues the line, has to wait: for the centre, or for a hub that takes more.
    fn waits<R: Record>(
        &mut self,
        record: &R,
        verdict: Verdict,
        begins: bool,
        now: Millis,
        store: &impl Lookup<R>,
    ) -> Option<Verdict> {
        let Numbered { epoch, sequence, chain, .. } = record.numbered();
        if record.is_too_large() && verdict != Verdict::Known {
            return Some(Verdict::TooLarge);
        }
        if let Some(until) = store.hole(record.lane()) {
            let line: Vec<_> = self.line.iter().map(|progress| progress.staged).collect();
            if refill(&line, &until, &Through { epoch, through: sequence, chain }) == Refill::Other {
                return Some(Verdict::Hole);
            }
        }
        if verdict == Verdict::Store && record.is_pruned() && self.admits != Some(epoch) {
            return Some(Verdict::Admit);
        }
        if !begins {
            return None;
        }
        self.begun.retain(|begun| now < begun.saturating_add(DAY));
        let begun =
            self.begun.len() + self.line.iter().filter(|progress| progress.stored.through == 0).count();
        (begun >= EPOCHS_A_DAY || self.line.len() >= EPOCHS_A_LINE).then_some(Verdict::Epochs)
    }

    /// The record continues the line: is its content in it already?
    fn content<R: Record>(
        &self,
        record: &R,
        arrival: &Arrival<'_, R>,
        store: &mut impl Lookup<R>,
    ) -> Verdict {
        let Numbered { epoch, id, .. } = record.numbered();
        // Only in another epoch can an id come under a second number.
        if self.line.iter().all(|progress| progress.staged.epoch == epoch) {
            return Verdict::Store;
        }
        let digest = record.digest();
        let same = |staged: &&R| staged.lane() == record.lane() && staged.numbered().id == id;
        let staged = arrival.group.iter().filter(same).fold(Content::Unknown, |found, staged| {
            if staged.digest() == digest || found == Content::Same { Content::Same } else { Content::Other }
        });
        let found = match staged {
            Content::Same => Some(Content::Same),
            Content::Unknown => store.content(record.lane(), id, digest),
            Content::Other => store.content(record.lane(), id, digest).map(|stored| match stored {
                Content::Same => Content::Same,
                _ => Content::Other,
            }),
        };
        match found {
            None => Verdict::Unsure,
            Some(Content::Unknown) => Verdict::Store,
            Some(Content::Same) => Verdict::Known,
            Some(Content::Other) => Verdict::Rival,
        }
    }

    /// The record does not continue the line: a repetition, or what another history of its gateway had here.
    fn beside<R: Record>(&self, record: &R, arrival: &Arrival<'_, R>, store: &mut impl Lookup<R>) -> Verdict {
        let Numbered { sequence, id, chain, .. } = record.numbered();
        if store.signed_by(record, chain, arrival.way).is_none() {
            return Verdict::Unsigned(sequence);
        }
        let digest = record.digest();
        let staged = |staged: &R| {
            staged.lane() == record.lane() && staged.numbered().id == id && staged.digest() == digest
        };
        if arrival.group.iter().any(staged) {
            return Verdict::Repeat;
        }
        match store.content(record.lane(), id, digest) {
            None => return Verdict::Unsure,
            Some(Content::Same) => return Verdict::Repeat,
            Some(_) => {}
        }
        match self.follows_what_is_known(record, store) {
            None => Verdict::Unsure,
            Some(true) if !record.is_too_large() => Verdict::Late,
            Some(_) => Verdict::Link,
        }
    }

    /// The signature is over the chain value: it proves the content only where the value before it is known. What costs least is
    /// asked first: reading a value of the line may read a group. `None`: the store cannot say.
    fn follows_what_is_known<R: Record>(&self, record: &R, store: &mut impl Lookup<R>) -> Option<bool> {
        let Numbered { epoch, sequence, chain, link, .. } = record.numbered();
        let follows = |before: ChainValue| record.chain_after(before) == chain;
        if sequence == 1 {
            return Some(follows(ChainValue::first(record.lane(), epoch, link.as_ref())));
        }
        let before = sequence - 1;
        if self.follows_late(record) || store.late_at(record.lane(), epoch, before).into_iter().any(follows) {
            return Some(true);
        }
        let of = self.line.iter().find(|progress| progress.staged.epoch == epoch);
        let Some(progress) = of.filter(|progress| before <= progress.staged.through) else {
            return Some(false);
        };
        let stored = match progress.chain(before) {
            Some(stored) => Some(stored),
            None => store.value_at(record.lane(), epoch, before)?,
        };
        Some(stored.is_some_and(follows))
    }

    /// The record follows the last that is kept beside the line.
    fn follows_late<R: Record>(&self, record: &R) -> bool {
        let Numbered { epoch, sequence, chain, .. } = record.numbered();
        self.late.is_some_and(|late| {
            (late.epoch, late.through + 1) == (epoch, sequence) && record.chain_after(late.chain) == chain
        })
    }

    fn has_epoch(&self, epoch: Epoch) -> bool {
        self.line.iter().any(|progress| progress.staged.epoch == epoch)
    }

    /// The end of the line, including what is staged.
    fn staged(&self) -> Option<Through> {
        self.line.last().map(|progress| progress.staged)
    }

    fn advance(&mut self, lane: &LaneName, numbered: &Numbered) {
        let Numbered { epoch, chain, link, .. } = *numbered;
        match self.line.last_mut().filter(|progress| progress.staged.epoch == epoch) {
            Some(progress) => progress.advance(chain),
            None => {
                let first = ChainValue::first(lane, epoch, link.as_ref());
                let mut progress = EpochProgress::new(Through { epoch, through: 0, chain: first });
                progress.advance(chain);
                self.line.push(progress);
            }
        }
    }

    /// Of the records that were staged since [`LaneState::begin_again`], one stays staged.
    pub(super) fn stage_again(&mut self, lane: &LaneName, numbered: &Numbered) {
        self.advance(lane, numbered);
    }

    /// The gap notice for a transaction that is not stored, unless it was sent for this number and round already.
    pub(super) fn missed(
        &mut self,
        code: GapCode,
        numbered: &Numbered,
        expected: Sequence,
    ) -> Option<Missed> {
        let missed = Missed { code, epoch: numbered.epoch, expected, round: numbered.round };
        let new = self.last_notice != Some(missed);
        self.last_notice = Some(missed);
        new.then_some(missed)
    }

    /// Everything that was taken so far is on stable storage.
    pub(super) fn stored(&mut self, now: Millis) {
        for progress in &mut self.line {
            if progress.stored.through == 0 {
                self.begun.push_back(now);
            }
            progress.stored = progress.staged;
        }
    }

    /// Where each epoch of the line ends on stable storage.
    pub(super) fn watermarks(&self) -> Vec<Through> {
        self.line.iter().map(|progress| progress.stored).filter(|stored| stored.through > 0).collect()
    }

    /// The end of the line on stable storage.
    pub(super) fn end(&self) -> Option<Through> {
        self.line.iter().rev().map(|progress| progress.stored).find(|stored| stored.through > 0)
    }

    /// The number that an epoch expects next.
    pub(super) fn expected(&self, epoch: Epoch) -> Sequence {
        let of = self.line.iter().find(|progress| progress.stored.epoch == epoch);
        of.map_or(0, |progress| progress.stored.through).saturating_add(1)
    }

    /// Whether the line on stable storage holds a point; `None`: the store cannot say now.
    pub(super) fn holds<R>(
        &self,
        lane: &LaneName,
        point: &Through,
        store: &mut impl Lookup<R>,
    ) -> Option<bool> {
        let of = self.line.iter().find(|progress| progress.stored.epoch == point.epoch);
        let Some(progress) =
            of.filter(|progress| point.through > 0 && point.through <= progress.stored.through)
        else {
            return Some(false);
        };
        if let Some(chain) = progress.chain(point.through) {
            return Some(chain == point.chain);
        }
        let stored = store.value_at(lane, point.epoch, point.through)?;
        Some(stored == Some(point.chain))
    }
}
