//! How positions in the outbox map to epochs and sequences on the wire.

use serde::{Deserialize, Serialize};

use crate::transaction::{Epoch, Position, Sequence};

/// The beginning of an epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Renumbering {
    /// The epoch of the positions after `base`.
    pub epoch: Epoch,
    /// `sequence = position - base`.
    pub base: Position,
}

/// A lane's epochs, oldest first; the first has base 0. Never empty.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Numbering(Vec<Renumbering>);

impl Numbering {
    /// A lane in its first epoch.
    #[must_use]
    pub fn new(epoch: Epoch) -> Self {
        Self(vec![Renumbering { epoch, base: 0 }])
    }

    /// The epochs, oldest first.
    #[must_use]
    pub fn epochs(&self) -> &[Renumbering] {
        &self.0
    }

    /// The epoch that new transactions get.
    #[must_use]
    pub fn current(&self) -> Renumbering {
        self.0.last().copied().unwrap_or(Renumbering { epoch: Epoch(uuid::Uuid::nil()), base: 0 })
    }

    /// The renumbering that names `position` (from 1) on the wire.
    #[must_use]
    pub fn at(&self, position: Position) -> Renumbering {
        self.0
            .iter()
            .rev()
            .find(|r| r.base < position)
            .copied()
            .unwrap_or_else(|| self.0.first().copied().unwrap_or(self.current()))
    }

    /// Epoch and sequence of `position` (from 1).
    #[must_use]
    pub fn wire(&self, position: Position) -> (Epoch, Sequence) {
        let r = self.at(position);
        (r.epoch, position - r.base)
    }

    /// The position that `sequence` of `epoch` names, if the epoch is known and the number is its own.
    /// Sequence 0 gives the epoch's base.
    #[must_use]
    pub fn position(&self, epoch: Epoch, sequence: Sequence) -> Option<Position> {
        let index = self.0.iter().position(|r| r.epoch == epoch)?;
        let position = self.0[index].base.checked_add(sequence)?;
        match self.0.get(index + 1) {
            Some(next) if position > next.base => None,
            _ => Some(position),
        }
    }

    /// Positions after `base` belong to `epoch` from now on; epochs that began at or after `base` are superseded.
    #[must_use]
    pub fn renumbered(&self, epoch: Epoch, base: Position) -> Self {
        let mut epochs: Vec<_> =
            self.0.iter().copied().filter(|r| r.base < base || (r.base == 0 && base != 0)).collect();
        epochs.push(Renumbering { epoch, base });
        Self(epochs)
    }
}
