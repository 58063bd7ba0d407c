//! A lane's segment table: what each segment holds, and which records are missing.
//!
//! It is the file `lanes/{lane}/ledger`: with it a start opens the newest segment only.

use std::collections::BTreeMap;

use pgw_core::transaction::Position;
use serde::{Deserialize, Serialize};

use crate::guard::segment::Span;

/// Version of the segment table.
pub(crate) const SEGMENT_TABLE_VERSION: u32 = 1;

/// A lane's segments and missing records. It may lag behind: the newest segment's header has the rest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SegmentTable {
    /// Version of this format.
    pub(crate) version: u32,
    /// Segments by number.
    #[serde(rename = "row")]
    pub(crate) segments: BTreeMap<u64, Span>,
    /// Lost positions.
    #[serde(rename = "holes")]
    pub(crate) missing: MissingRecords,
}

/// Ranges of positions that can no longer be read: ascending, never adjacent.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MissingRecords(Vec<(Position, Position)>);

impl MissingRecords {
    /// Adds `from..=through`; answers whether anything of it was new.
    pub(crate) fn add(&mut self, from: Position, through: Position) -> bool {
        if from > through || self.0.iter().any(|(a, b)| *a <= from && through <= *b) {
            return false;
        }
        self.0.push((from, through));
        self.0.sort_unstable();
        let mut merged: Vec<(Position, Position)> = Vec::with_capacity(self.0.len());
        for (from, through) in self.0.drain(..) {
            match merged.last_mut() {
                Some(last) if from <= last.1.saturating_add(1) => last.1 = last.1.max(through),
                _ => merged.push((from, through)),
            }
        }
        self.0 = merged;
        true
    }

    /// Removes one position: its record was found again.
    pub(crate) fn fill(&mut self, position: Position) {
        let Some(at) = self.0.iter().position(|(from, through)| (*from..=*through).contains(&position))
        else {
            return;
        };
        let (from, through) = self.0.remove(at);
        let rest = [(from, position - 1), (position + 1, through)];
        self.0.extend(rest.into_iter().filter(|(from, through)| from <= through));
        self.0.sort_unstable();
    }

    /// All of them, ascending.
    pub(crate) fn ranges(&self) -> &[(Position, Position)] {
        &self.0
    }

    /// Forgets everything before `position`.
    pub(crate) fn forget_before(&mut self, position: Position) {
        self.0.retain(|(_, through)| *through >= position);
        if let Some(first) = self.0.first_mut() {
            first.0 = first.0.max(position);
        }
    }

    /// The missing record that `position` lies in.
    pub(crate) fn at(&self, position: Position) -> Option<(Position, Position)> {
        self.0.iter().copied().find(|(from, through)| (*from..=*through).contains(&position))
    }

    /// The last position from `position` through `through` before a missing record begins.
    pub(crate) fn before_next(&self, position: Position, through: Position) -> Position {
        let next = self.0.iter().find(|(from, _)| *from > position);
        next.map_or(through, |(from, _)| through.min(from - 1))
    }

    /// How many positions of `after + 1 ..= through` are missing.
    pub(crate) fn count(&self, after: Position, through: Position) -> u64 {
        self.0
            .iter()
            .map(|(a, b)| (*b).min(through).saturating_add(1).saturating_sub((*a).max(after + 1)))
            .sum()
    }
}

#[cfg(test)]
mod tests {
    use pgw_core::chain::ChainValue;

    use super::*;

    #[test]
    fn holes_merge_and_count() {
        let mut missing = MissingRecords::default();
        assert!(missing.add(5, 6) && missing.add(8, 9) && missing.add(7, 7));
        assert!(!missing.add(6, 8));
        assert_eq!(missing, MissingRecords(vec![(5, 9)]));
        assert_eq!((missing.count(0, 100), missing.count(5, 8), missing.count(9, 100)), (5, 3, 0));
        missing.forget_before(7);
        assert_eq!(missing, MissingRecords(vec![(7, 9)]));
        [8, 100].into_iter().for_each(|position| missing.fill(position));
        assert_eq!(missing, MissingRecords(vec![(7, 7), (9, 9)]));
        [7, 9].into_iter().for_each(|position| missing.fill(position));
        assert_eq!(missing, MissingRecords::default());
    }

    #[test]
    fn golden_file() {
        let span = Span { base: 1, previous: ChainValue([0; 32]), bytes: 5, oldest: Some(9) };
        let mut missing = MissingRecords::default();
        missing.add(3, 4);
        let segments = BTreeMap::from([(2, span)]);
        let table = SegmentTable { version: SEGMENT_TABLE_VERSION, segments, missing };
        let zeros = "00".repeat(32);
        let span = format!("{{\"base\":1,\"previous\":\"{zeros}\",\"bytes\":5,\"oldest\":9}}");
        let whole = format!("{{\"version\":1,\"row\":{{\"2\":{span}}},\"holes\":[[3,4]]}}");
        assert_eq!(serde_json::to_string(&table).unwrap(), whole);
    }
}
