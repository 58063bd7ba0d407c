//! Voids: lost positions that an operator has written off, so that their lane can continue.
//!
//! `lanes/{lane}/voids` keeps them for ever. On the wire an entry of kind `void` takes their place ([`pgw_core::numbering`]), in
//! every epoch that begins from then on; the counts keep such a position as `damaged`, confirmed or not.

use pgw_core::numbering::{Entry, EntryKind, Gone, Numbering};
use pgw_core::transaction::{Position, TransactionId, UnixMillis, unix_millis_now};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::types::ReleasedRange;

/// Version of this format.
const VERSION: u32 = 1;

/// All voids of a lane.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Voids {
    version: u32,
    ranges: Vec<VoidRange>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct VoidRange {
    pub(crate) from: Position,
    pub(crate) through: Position,
    pub(crate) reason: String,
    pub(crate) time: UnixMillis,
    pub(crate) id: Uuid,
    /// Positions in it whose records were found later, and are stored once more, as new.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) returned: Vec<Position>,
}

impl VoidRange {
    /// As users of the outbox see it.
    pub(crate) fn shown(&self) -> ReleasedRange {
        let Self { from, through, time, .. } = *self;
        ReleasedRange { from, through, reason: self.reason.clone(), time }
    }
}

impl Voids {
    /// The range that a position is in.
    pub(crate) fn at(&self, position: Position) -> Option<&VoidRange> {
        self.ranges.iter().find(|range| (range.from..=range.through).contains(&position))
    }

    /// The released ranges.
    pub(crate) fn ranges(&self) -> &[VoidRange] {
        &self.ranges
    }

    /// Whether its record was found later, and is stored once more.
    pub(crate) fn has_returned(&self, position: Position) -> bool {
        self.at(position).is_some_and(|range| range.returned.contains(&position))
    }

    /// Notes that; `false`: it is noted already, or was not written off.
    pub(crate) fn note_returned(&mut self, position: Position) -> bool {
        let range = self.ranges.iter_mut().find(|range| (range.from..=range.through).contains(&position));
        let Some(range) = range.filter(|range| !range.returned.contains(&position)) else { return false };
        range.returned.push(position);
        true
    }

    /// The entry of a lane with these epochs that goes out in the place of `gone`; `None`: a person has to decide.
    pub(crate) fn entry(&self, numbering: &Numbering, gone: &Gone) -> Option<Entry> {
        let Gone { from, through, kind } = *gone;
        let kind = kind?;
        let released = self.at(from).filter(|_| kind == EntryKind::Void);
        let (reason, time) = match released {
            Some(void) => (void.reason.clone(), void.time),
            None => (String::new(), unix_millis_now()),
        };
        let id = TransactionId(Uuid::now_v7());
        Some(Entry { from, through, kind, id, time, reason, names: numbering.names(from, through) })
    }

    /// Writes a range off, for good once it is saved.
    pub(crate) fn add(&mut self, range: VoidRange) {
        self.version = VERSION;
        self.ranges.push(range);
    }
}
