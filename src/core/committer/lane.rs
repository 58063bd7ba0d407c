//! What one lane expects next.

use std::collections::VecDeque;

use super::{Missed, Numbered, Record};
use crate::chain::ChainValue;
use crate::delivery::Through;
use crate::transaction::{Epoch, Sequence, TransactionId};

/// Chain values of the last stored and staged numbers that are kept to check repetitions.
const REMEMBERED: usize = 64;

/// What is to be done with a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Store it.
    Store,
    /// It is stored already, under an older epoch: store that this number names it (the mark must survive a restart), not
    /// the transaction itself.
    Known,
    /// A repetition.
    Repeat,
    /// Not the next one, which is this: ignore it.
    Ahead(Sequence),
    /// The gateway has not asked for the position since this hub started: ignore it.
    Unasked,
    /// Its chain value is not the one that it must have here: ignore it.
    Diverged,
    /// The store cannot say whether it is stored already. The lane is as it was before.
    Unsure,
}

/// One lane of one gateway.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(super) struct LaneState {
    epochs: Vec<Progress>,
    /// The nonce of the last position question since the hub started.
    asked: Option<String>,
    /// The last gap notice.
    said: Option<Missed>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Progress {
    /// On stable storage.
    stored: Through,
    /// With what waits in the group.
    staged: Through,
    /// Chain values of the numbers through `staged.through`, newest last.
    recent: VecDeque<ChainValue>,
}

impl Progress {
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
    /// A lane as the store has it, its epochs in the order of their first transactions. What its gateway was told since the
    /// hub started still stands.
    pub(super) fn begin_again(&mut self, marks: Vec<Through>) {
        self.epochs = marks.into_iter().map(Progress::new).collect();
        self.said = None;
    }

    /// The gateway asks where the hub is.
    pub(super) fn ask(&mut self, nonce: String) {
        self.asked = Some(nonce);
    }

    /// The nonce of its last question.
    pub(super) fn asked(&self) -> Option<&String> {
        self.asked.as_ref()
    }

    /// A transaction came from the broker.
    ///
    /// `known` says whether an id is stored or staged. It is asked only where the lane has another epoch, for only there can
    /// an id come under a second number.
    pub(super) fn arrive(
        &mut self,
        record: &impl Record,
        known: impl FnOnce(TransactionId) -> Option<bool>,
    ) -> Verdict {
        if self.asked.is_none() { Verdict::Unasked } else { self.judge(record, known) }
    }

    /// A transaction came from the broker, or by hand. In that case nobody has asked, perhaps for weeks: the caller has made
    /// sure that the epochs before it are here, which is what the question is for.
    pub(super) fn judge(
        &mut self,
        record: &impl Record,
        known: impl FnOnce(TransactionId) -> Option<bool>,
    ) -> Verdict {
        let Numbered { epoch, sequence, id, chain, .. } = record.numbered();
        let found = self.epochs.iter().rposition(|progress| progress.staged.epoch == epoch);
        let others = self.epochs.len() > usize::from(found.is_some());
        let progress = found.and_then(|index| self.epochs.get_mut(index));
        let through = progress.as_ref().map_or(0, |progress| progress.staged.through);
        if sequence > through.saturating_add(1) {
            return Verdict::Ahead(through + 1);
        }
        if sequence <= through {
            return match progress.and_then(|progress| progress.chain(sequence)) {
                Some(expected) if expected != chain => Verdict::Diverged,
                _ => Verdict::Repeat,
            };
        }
        let before = match &progress {
            Some(progress) => progress.staged.chain,
            None => ChainValue::first(epoch, record.lane().lane.as_str()),
        };
        if record.chain_after(before) != chain {
            return Verdict::Diverged;
        }
        let verdict = match (others && !record.is_void()).then(|| known(id)) {
            None | Some(Some(false)) => Verdict::Store,
            Some(Some(true)) => Verdict::Known,
            Some(None) => return Verdict::Unsure,
        };
        match progress {
            Some(progress) => progress.advance(chain),
            None => {
                let mut progress = Progress::new(Through { epoch, through: 0, chain: before });
                progress.advance(chain);
                self.epochs.push(progress);
            }
        }
        verdict
    }

    /// The notice about a transaction that is not the next one, unless it was sent for this number and round.
    pub(super) fn missed(&mut self, numbered: &Numbered, expected: Sequence) -> Option<Missed> {
        let missed = Missed { epoch: numbered.epoch, expected, round: numbered.round };
        let new = self.said != Some(missed);
        self.said = Some(missed);
        new.then_some(missed)
    }

    /// Everything that was taken so far is on stable storage.
    pub(super) fn stored(&mut self) {
        for progress in &mut self.epochs {
            progress.stored = progress.staged;
        }
    }

    /// What is on stable storage.
    pub(super) fn marks(&self) -> Vec<Through> {
        self.epochs.iter().map(|progress| progress.stored).filter(|stored| stored.through > 0).collect()
    }

    /// What is on stable storage of an epoch.
    pub(super) fn through(&self, epoch: Epoch) -> Sequence {
        let of = self.epochs.iter().find(|progress| progress.stored.epoch == epoch);
        of.map_or(0, |progress| progress.stored.through)
    }
}
