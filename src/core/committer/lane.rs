//! The state of one lane: which number it expects next.

use std::collections::VecDeque;

use super::{Lookup, Missed, Numbered, Record, Way};
use crate::chain::ChainValue;
use crate::delivery::Through;
use crate::transaction::{Epoch, LaneName, Sequence};
use crate::wire::receipt::GapCode;

/// Chain values of the last stored and staged numbers that are kept to check repetitions.
const REMEMBERED: usize = 64;

/// What the committer does with a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Store it.
    Store,
    /// It is stored already, under an older epoch: store only that this number names it (the number must survive a
    /// restart), not the transaction itself.
    Known,
    /// A repetition.
    Repeat,
    /// It comes too early, this number is next: ignore it.
    Ahead(Sequence),
    /// The gateway has not asked for the position since this hub started: ignore it.
    Unasked,
    /// Its chain value does not follow from the stored ones, though its gateway has signed it: ignore it. This number is next.
    Diverged(Sequence),
    /// Its chain value does not follow from the stored ones, and its gateway has not signed it: as if it had not arrived.
    /// This number is next.
    Unsigned(Sequence),
    /// The store cannot say whether it is stored already. The lane is unchanged.
    Unsure,
}

/// One lane of one gateway.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(super) struct LaneState {
    epochs: Vec<EpochProgress>,
    /// The nonce of the last position question since the hub started.
    asked: Option<String>,
    /// The last gap notice.
    last_notice: Option<Missed>,
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

impl LaneState {
    /// A lane as the store has it, its epochs in the order of their first transactions. Its gateway's last question
    /// stays: it was asked since the hub started.
    pub(super) fn begin_again(&mut self, watermarks: Vec<Through>) {
        self.epochs = watermarks.into_iter().map(EpochProgress::new).collect();
        self.last_notice = None;
    }

    /// The gateway asks how far the hub has stored.
    pub(super) fn ask(&mut self, nonce: String) {
        self.asked = Some(nonce);
    }

    /// The nonce of its last question.
    pub(super) fn asked(&self) -> Option<&String> {
        self.asked.as_ref()
    }

    /// A transaction has arrived; `group` is what is staged already. Over the link, the gateway must have asked for the
    /// position since the hub started. By hand, it may not have asked for weeks: instead the caller has checked that the
    /// epochs before it are here, which is what the question is for.
    pub(super) fn classify<R: Record>(
        &mut self,
        record: &R,
        way: Way,
        group: &[R],
        store: &mut impl Lookup<R>,
    ) -> Verdict {
        if way == Way::Link && self.asked.is_none() {
            return Verdict::Unasked;
        }
        let Numbered { epoch, sequence, id, chain, .. } = record.numbered();
        let found = self.epochs.iter().rposition(|progress| progress.staged.epoch == epoch);
        let others = self.epochs.len() > usize::from(found.is_some());
        let progress = found.and_then(|index| self.epochs.get_mut(index));
        let through = progress.as_ref().map_or(0, |progress| progress.staged.through);
        if sequence > through.saturating_add(1) {
            return Verdict::Ahead(through + 1);
        }
        // A wrong chain value says something about the gateway only if the gateway has signed it.
        let wrong = |store: &mut _| match Lookup::signed_by(store, record, chain, way) {
            Some(_) => Verdict::Diverged(through + 1),
            None => Verdict::Unsigned(through + 1),
        };
        if sequence <= through {
            return match progress.and_then(|progress| progress.chain(sequence)) {
                Some(expected) if expected != chain => wrong(store),
                _ => Verdict::Repeat,
            };
        }
        let before = match &progress {
            Some(progress) => progress.staged.chain,
            None => ChainValue::first(record.lane(), epoch),
        };
        if record.chain_after(before) != chain {
            return wrong(store);
        }
        // Only in another epoch can an id come under a second number.
        let known = (others && !record.is_void()).then(|| {
            let here = |staged: &R| {
                staged.lane() == record.lane() && !staged.is_void() && staged.numbered().id == id
            };
            if group.iter().any(here) { Some(true) } else { store.has_id(record.lane(), id) }
        });
        let verdict = match known {
            None | Some(Some(false)) => Verdict::Store,
            Some(Some(true)) => Verdict::Known,
            Some(None) => return Verdict::Unsure,
        };
        match progress {
            Some(progress) => progress.advance(chain),
            None => self.begin(record.lane(), epoch, chain),
        }
        verdict
    }

    /// The first number of a new epoch is staged.
    fn begin(&mut self, lane: &LaneName, epoch: Epoch, chain: ChainValue) {
        let first = ChainValue::first(lane, epoch);
        let mut progress = EpochProgress::new(Through { epoch, through: 0, chain: first });
        progress.advance(chain);
        self.epochs.push(progress);
    }

    /// Of the records that were staged since [`LaneState::begin_again`], one stays staged.
    pub(super) fn stage_again(&mut self, lane: &LaneName, numbered: &Numbered) {
        let Numbered { epoch, chain, .. } = *numbered;
        match self.epochs.iter_mut().rfind(|progress| progress.staged.epoch == epoch) {
            Some(progress) => progress.advance(chain),
            None => self.begin(lane, epoch, chain),
        }
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
    pub(super) fn stored(&mut self) {
        for progress in &mut self.epochs {
            progress.stored = progress.staged;
        }
    }

    /// How far each epoch is on stable storage.
    pub(super) fn watermarks(&self) -> Vec<Through> {
        self.epochs.iter().map(|progress| progress.stored).filter(|stored| stored.through > 0).collect()
    }

    /// The number that an epoch expects next.
    pub(super) fn expected(&self, epoch: Epoch) -> Sequence {
        self.through(epoch).saturating_add(1)
    }

    /// How far an epoch is on stable storage.
    pub(super) fn through(&self, epoch: Epoch) -> Sequence {
        let of = self.epochs.iter().find(|progress| progress.stored.epoch == epoch);
        of.map_or(0, |progress| progress.stored.through)
    }
}
