//! Voids: lost positions that an operator has written off, so that their lane can continue.
//!
//! `lanes/{lane}/voids` keeps them for ever, with the chain values before and after. Such a position is read as a transaction
//! of kind `void` ([`pgw_core::wire::void`]) that takes its place on the wire; the counts keep it as `damaged`, confirmed or not.

use pgw_core::chain::ChainValue;
use pgw_core::transaction::{Epoch, Position, UnixMillis};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Version of this format.
const VERSION: u32 = 1;

/// All voids of a lane.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Voids {
    version: u32,
    ranges: Vec<VoidRange>,
    /// Chain values at lost ends of epochs, as the tail checkpoint had them: the hub may have the lost records.
    ends: Vec<EpochEnd>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct VoidRange {
    pub(crate) from: Position,
    pub(crate) through: Position,
    /// The epoch on the wire in which the chain values hold; in a later one the chain passes over the range.
    pub(crate) epoch: Epoch,
    pub(crate) previous: ChainValue,
    pub(crate) chain: ChainValue,
    pub(crate) reason: String,
    pub(crate) time: UnixMillis,
    pub(crate) id: Uuid,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct EpochEnd {
    epoch: Epoch,
    position: Position,
    chain: ChainValue,
}

impl Voids {
    /// The range that a position is in.
    pub(crate) fn at(&self, position: Position) -> Option<&VoidRange> {
        self.ranges.iter().find(|range| (range.from..=range.through).contains(&position))
    }

    /// The released ranges: first and last position, and the chain value before them with the epoch in which it holds.
    pub(crate) fn ranges(&self) -> impl Iterator<Item = (Position, Position, Epoch, ChainValue)> + '_ {
        self.ranges.iter().map(|range| (range.from, range.through, range.epoch, range.previous))
    }

    /// The chain values at lost ends of epochs.
    pub(crate) fn ends(&self) -> impl Iterator<Item = (Epoch, Position, ChainValue)> + '_ {
        self.ends.iter().map(|end| (end.epoch, end.position, end.chain))
    }

    /// How many of the positions through `through` are void.
    pub(crate) fn count(&self, through: Position) -> u64 {
        self.ranges.iter().map(|range| (range.through.min(through) + 1).saturating_sub(range.from)).sum()
    }

    /// The chain value at the lost end of an epoch, where it was kept.
    pub(crate) fn end(&self, epoch: Epoch, position: Position) -> Option<ChainValue> {
        let end = self.ends.iter().find(|end| end.epoch == epoch && end.position == position)?;
        Some(end.chain)
    }

    pub(crate) fn add_end(&mut self, epoch: Epoch, position: Position, chain: ChainValue) {
        self.version = VERSION;
        self.ends.push(EpochEnd { epoch, position, chain });
    }

    /// Writes a range off, for good once it is saved.
    pub(crate) fn add(&mut self, range: VoidRange) {
        self.version = VERSION;
        self.ranges.push(range);
    }
}
