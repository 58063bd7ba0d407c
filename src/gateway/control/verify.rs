//! Checks the chain over positions of a lane, over every transaction in the outbox, and what the hub has confirmed of it.

use std::ops::ControlFlow;

use pgw_core::chain::ChainValue;
use pgw_core::transaction::{Lane, Position};
use pgw_outbox::{ChainedRecord, Outbox, ReadError};
use serde::{Deserialize, Serialize};

use crate::listing;
use crate::wire_chain::WireReader;

/// Most ranges of each kind that are listed.
const LISTED: usize = 100;
/// Records that are read at once, and payload bytes, about.
const BATCH_RECORDS: usize = 256;
const BATCH_BYTES: usize = 1 << 20;

/// The result for a lane. `ok` says whether a person has to do something.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaneVerification {
    /// The lane.
    pub lane: Lane,
    /// Nothing is wrong, and no unconfirmed record is missing.
    pub ok: bool,
    /// Checked from this position ...
    pub from: Position,
    /// ... through this one.
    pub through: Position,
    /// Records whose chain value follows from their predecessor and their content.
    pub verified: u64,
    /// Records whose chain value does not: they were altered.
    pub wrong: u64,
    /// Records that can no longer be read.
    pub missing: u64,
    /// The first ranges of wrong records.
    pub wrong_ranges: Vec<(Position, Position)>,
    /// The first ranges of missing records.
    pub missing_ranges: Vec<(Position, Position)>,
    /// Whether the digests here lead to the chain value that the hub confirmed; `None` if one of them is not known any more.
    pub agrees_with_hub: Option<bool>,
    /// The last value of the chain over positions.
    pub chain: Option<ChainValue>,
}

/// Checks `lane`; `progress` gets the position after each batch and may end the check, which then returns `None`.
///
/// # Errors
/// [`ReadError::Trouble`]: the store cannot be read now.
pub fn verify(
    outbox: &Outbox,
    lane: &Lane,
    mut progress: impl FnMut(Position, Position) -> ControlFlow<()>,
) -> Result<Option<LaneVerification>, ReadError> {
    let tail = listing::tail(outbox, lane);
    let from = outbox.first_retained(lane).unwrap_or(1).max(1);
    let released = outbox.released(lane);
    let mut walk = ChainWalk::new(lane.clone(), (from, tail), listing::confirmed(outbox, lane));
    let mut next = from;
    while next <= tail {
        if let Some(range) = released.iter().find(|range| (range.from..=range.through).contains(&next)) {
            walk.released();
            next = range.through + 1;
            continue;
        }
        let records = match outbox.chained(lane, next, BATCH_RECORDS, BATCH_BYTES) {
            Ok(records) => records,
            Err(ReadError::Gone { .. }) => Vec::new(),
            Err(error) => return Err(error),
        };
        if records.is_empty() {
            walk.missing(next);
            next += 1;
        }
        for record in records.iter().take_while(|record| record.position <= tail) {
            let before = record.position - 1;
            // A lane begins its chain with the first, and where it has lost its end.
            let begins = |previous| match before {
                0 => outbox.first_of_positions(lane) == Some(previous),
                _ => outbox.after_lost_position(lane, before) == Some(previous),
            };
            walk.record(record, begins);
            next = record.position + 1;
        }
        if progress(next - 1, tail).is_break() {
            return Ok(None);
        }
    }
    let agrees_with_hub = WireReader::new(outbox, lane).agrees_with_hub()?;
    Ok(Some(walk.end(agrees_with_hub)))
}

/// The check without the store: takes each position once, in order.
struct ChainWalk {
    found: LaneVerification,
    confirmed: Position,
    /// Chain value of the record before, if known.
    before: Option<ChainValue>,
}

impl ChainWalk {
    fn new(lane: Lane, (from, through): (Position, Position), confirmed: Position) -> Self {
        let found = LaneVerification {
            lane,
            ok: true,
            from,
            through,
            verified: 0,
            wrong: 0,
            missing: 0,
            wrong_ranges: Vec::new(),
            missing_ranges: Vec::new(),
            agrees_with_hub: None,
            chain: None,
        };
        Self { found, confirmed, before: None }
    }

    /// `begins`: whether a lane's chain begins here with this value before it.
    fn record(&mut self, record: &ChainedRecord, begins: impl Fn(ChainValue) -> bool) {
        let ChainedRecord { position, digest, previous, chain } = *record;
        let found = &mut self.found;
        let follows = match self.before {
            Some(before) => before == previous || begins(previous),
            // The record before is not there to be compared with, unless there was none.
            None => position > 1 || begins(previous),
        };
        if follows && previous.next(position, digest) == chain {
            found.verified += 1;
        } else {
            found.wrong += 1;
            extend(&mut found.wrong_ranges, position);
        }
        found.chain = Some(chain);
        self.before = Some(chain);
    }

    fn missing(&mut self, position: Position) {
        // Destroyed, or pruned during this walk: it is a loss only if the hub does not have it.
        if position > self.confirmed {
            self.found.missing += 1;
            extend(&mut self.found.missing_ranges, position);
        }
        self.before = None;
    }

    /// Of a released range no content is left to check.
    fn released(&mut self) {
        self.before = None;
    }

    fn end(mut self, agrees_with_hub: Option<bool>) -> LaneVerification {
        let found = &mut self.found;
        found.agrees_with_hub = agrees_with_hub;
        found.ok = found.wrong == 0 && found.missing == 0 && agrees_with_hub != Some(false);
        self.found
    }
}

fn extend(ranges: &mut Vec<(Position, Position)>, position: Position) {
    let listed = ranges.len();
    match ranges.last_mut() {
        Some((_, last)) if *last + 1 == position => *last = position,
        _ if listed < LISTED => ranges.push((position, position)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::store_for_tests;
    use pgw_core::chain::Digest;
    use pgw_outbox::Watermark;

    /// The records of a small store, some of them altered or missing.
    struct Lines(Vec<Option<ChainedRecord>>, ChainValue);

    impl Lines {
        fn with(count: u64) -> Self {
            let store = store_for_tests::Store::with(count);
            let lane = store_for_tests::lane();
            let first = store.outbox.first_of_positions(&lane).unwrap();
            let records = store.outbox.chained(&lane, 1, 1000, usize::MAX).unwrap();
            Self(records.into_iter().map(Some).collect(), first)
        }

        fn change(&mut self, position: usize, change: impl FnOnce(&mut ChainedRecord)) {
            change(self.0[position - 1].as_mut().unwrap());
        }

        fn walk(&self, confirmed: Position) -> LaneVerification {
            let lane = store_for_tests::lane();
            let mut walk = ChainWalk::new(lane, (1, self.0.len() as u64), confirmed);
            for (position, record) in (1..).zip(&self.0) {
                match record {
                    Some(record) => walk.record(record, |previous| position == 1 && previous == self.1),
                    None => walk.missing(position),
                }
            }
            walk.end(None)
        }
    }

    #[test]
    fn a_whole_lane_verifies() {
        let store = store_for_tests::Store::with(1000);
        store.confirm(400);
        let walk = |store: &store_for_tests::Store| {
            verify(&store.outbox, &store_for_tests::lane(), |_, _| ControlFlow::Continue(()))
                .unwrap()
                .unwrap()
        };
        let found = walk(&store);
        assert!(found.ok, "{found:?}");
        assert_eq!((found.from, found.through, found.verified), (1, 1000, 1000));
        assert_eq!(found.agrees_with_hub, Some(true));
        assert_eq!(found.chain, store.outbox.chain_of_positions(&store_for_tests::lane()));
        let point = store.outbox.watermark(&store_for_tests::lane()).unwrap().point;
        let point = point.map(|point| pgw_core::chain::Through { chain: ChainValue([1; 32]), ..point });
        let other = Watermark { position: 400, point };
        store.outbox.confirm(&store_for_tests::lane(), other, None, None);
        let found = walk(&store);
        assert_eq!((found.ok, found.agrees_with_hub), (false, Some(false)));
        let empty = walk(&store_for_tests::Store::with(0));
        assert!(empty.ok && empty.verified == 0);
    }

    #[test]
    fn an_altered_a_swapped_and_a_missing_record_are_found() {
        let mut lines = Lines::with(20);
        lines.change(7, |record| record.digest = Digest([0; 32]));
        let found = lines.walk(0);
        assert!(!found.ok);
        assert_eq!((found.wrong_ranges, found.verified), (vec![(7, 7)], 19));

        // A record that is consistent in itself but does not follow its predecessor.
        for (position, wrong) in [(9, (9, 10)), (1, (1, 2))] {
            let mut lines = Lines::with(20);
            lines.change(position, |record| {
                record.previous = ChainValue([9; 32]);
                record.chain = record.previous.next(record.position, record.digest);
            });
            assert_eq!(lines.walk(0).wrong_ranges, [wrong], "and its successor does not follow it");
        }

        // But where a lane has lost its end it begins its chain again.
        for (begins, wrong) in [(true, vec![]), (false, vec![(11, 11)])] {
            let mut walk = ChainWalk::new(store_for_tests::lane(), (9, 11), 0);
            walk.record(&lines.0[8].unwrap(), |_| false);
            walk.record(&lines.0[10].unwrap(), |_| begins);
            assert_eq!(walk.end(None).wrong_ranges, wrong);
        }

        let mut lines = Lines::with(20);
        for position in [3, 8, 9] {
            lines.0[position - 1] = None;
        }
        let found = lines.walk(5);
        assert!(!found.ok);
        assert_eq!(found.missing_ranges, [(8, 9)], "what is confirmed is not missing");
    }
}
