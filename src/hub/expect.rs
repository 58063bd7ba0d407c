//! What each lane expects next (stands in for the intake until it is there).

use std::collections::HashMap;

use super::store::{LaneName, Mark};
use crate::chain::ChainValue;
use crate::transaction::{Epoch, Gateway, Practice, Sequence};
use crate::wire::envelope::Envelope;

/// What to do with a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is the next: store it. In a later epoch its id may be stored already.
    Next {
        /// Another epoch came before.
        later_epoch: bool,
    },
    /// It is stored.
    Repeated,
    /// Something is missing before it.
    Gap {
        /// What is expected.
        expected: Sequence,
        /// Not said yet for this number and round.
        notify: bool,
    },
    /// Its chain value does not follow.
    Broken,
}

/// All lanes.
pub(super) struct Expect {
    lanes: HashMap<LaneName, Vec<(Mark, Option<(Sequence, u64)>)>>,
}

impl Expect {
    /// From the store's marks.
    #[must_use]
    pub(super) fn new(marks: Vec<(LaneName, Vec<Mark>)>) -> Self {
        let lanes =
            marks.into_iter().map(|(lane, marks)| (lane, marks.into_iter().map(|m| (m, None)).collect()));
        Self { lanes: lanes.collect() }
    }

    /// Whether the lane is known.
    #[must_use]
    pub(super) fn knows(&self, lane: &LaneName) -> bool {
        self.lanes.contains_key(lane)
    }

    /// How many lanes of this gateway are known.
    #[must_use]
    pub(super) fn lanes_of(&self, practice: &Practice, gateway: &Gateway) -> usize {
        self.lanes.keys().filter(|lane| lane.practice == *practice && lane.gateway == *gateway).count()
    }

    fn mark(&self, lane: &LaneName, epoch: Epoch) -> Mark {
        let known = self.lanes.get(lane).and_then(|marks| marks.iter().find(|(m, _)| m.epoch == epoch));
        known.map_or_else(
            || Mark { epoch, through: 0, chain: ChainValue::first(epoch, lane.lane.as_str()) },
            |(mark, _)| *mark,
        )
    }

    /// Judges a transaction.
    pub(super) fn judge(&mut self, lane: &LaneName, envelope: &Envelope, body: &[u8]) -> Verdict {
        let mark = self.mark(lane, envelope.epoch);
        if envelope.sequence <= mark.through {
            return Verdict::Repeated;
        }
        if envelope.sequence > mark.through + 1 {
            let marks = self.lanes.entry(lane.clone()).or_default();
            let expected = mark.through + 1;
            let said = Some((expected, envelope.round));
            let notify = match marks.iter_mut().find(|(m, _)| m.epoch == envelope.epoch) {
                Some((_, before)) => std::mem::replace(before, said) != said,
                None => true,
            };
            return Verdict::Gap { expected, notify };
        }
        if mark.chain.next(&envelope.link(body)) != envelope.chain {
            return Verdict::Broken;
        }
        let marks = self.lanes.get(lane).map(Vec::as_slice).unwrap_or_default();
        Verdict::Next { later_epoch: marks.iter().any(|(m, _)| m.epoch != envelope.epoch) }
    }

    /// It is in the group.
    pub(super) fn advance(&mut self, lane: &LaneName, envelope: &Envelope) {
        let marks = self.lanes.entry(lane.clone()).or_default();
        let mark = Mark { epoch: envelope.epoch, through: envelope.sequence, chain: envelope.chain };
        match marks.iter_mut().find(|(m, _)| m.epoch == mark.epoch) {
            Some((known, _)) => *known = mark,
            None => marks.push((mark, None)),
        }
    }
}
