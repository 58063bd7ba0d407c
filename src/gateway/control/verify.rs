//! Checks the chain of a lane over every transaction in the outbox.

use std::ops::ControlFlow;

use pgw_core::chain::ChainValue;
use pgw_core::transaction::{Epoch, Kind, Lane, LaneName, Position};
use pgw_outbox::{Outbox, ReadError, Stored, Watermark};
use serde::{Deserialize, Serialize};

use crate::listing;

/// Most ranges of each kind that are listed.
const LISTED: usize = 100;

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
    /// Whether the chain value that the hub confirmed is the one here; `None` if that record is pruned.
    pub agrees_with_hub: Option<bool>,
    /// The last chain value.
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
    let mut walk = ChainWalk::new(outbox.lane_name(lane), (from, tail), outbox.watermark(lane));
    for batch in listing::batches(outbox, lane, from, tail) {
        let batch = batch?;
        let last = batch.records.last().map_or(batch.first, |stored| stored.position);
        if batch.records.is_empty() {
            walk.missing(batch.first);
        }
        for stored in &batch.records {
            walk.record(stored);
        }
        if progress(last, tail).is_break() {
            return Ok(None);
        }
    }
    Ok(Some(walk.end()))
}

/// The check without the store: takes each position once, in order.
struct ChainWalk {
    found: LaneVerification,
    watermark: Option<Watermark>,
    /// Epoch and chain value of the record before, if known.
    before: Option<(Epoch, ChainValue)>,
    name: LaneName,
}

impl ChainWalk {
    fn new(name: LaneName, (from, through): (Position, Position), watermark: Option<Watermark>) -> Self {
        let found = LaneVerification {
            lane: name.lane.clone(),
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
        Self { found, watermark, before: None, name }
    }

    fn record(&mut self, stored: &Stored) {
        let found = &mut self.found;
        if follows(&self.name, self.before, stored) {
            found.verified += 1;
        } else {
            found.wrong += 1;
            extend(&mut found.wrong_ranges, stored.position);
        }
        if let Some(watermark) = self.watermark.filter(|watermark| watermark.position == stored.position) {
            found.agrees_with_hub = Some(watermark.chain == stored.chain);
        }
        found.chain = Some(stored.chain);
        self.before = Some((stored.epoch, stored.chain));
    }

    fn missing(&mut self, position: Position) {
        // Destroyed, or pruned during this walk: it is a loss only if the hub does not have it.
        if self.watermark.is_none_or(|watermark| position > watermark.position) {
            self.found.missing += 1;
            extend(&mut self.found.missing_ranges, position);
        }
        self.before = None;
    }

    fn end(mut self) -> LaneVerification {
        let found = &mut self.found;
        found.ok = found.wrong == 0 && found.missing == 0 && found.agrees_with_hub != Some(false);
        self.found
    }
}

/// Whether the record's chain value follows from its own content and, if known, from its predecessor.
fn follows(lane: &LaneName, before: Option<(Epoch, ChainValue)>, stored: &Stored) -> bool {
    let previous_fits = match before {
        _ if stored.sequence == 1 => stored.previous == ChainValue::first(lane, stored.epoch),
        Some((epoch, chain)) => epoch == stored.epoch && chain == stored.previous,
        None => true,
    };
    if stored.transaction.kind == Kind::Void {
        // It replaces a lost record, so there is no content to check.
        return previous_fits;
    }
    let chain = stored.previous.next(stored.sequence, stored.transaction.digest(lane));
    previous_fits && chain == stored.chain
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
    use pgw_core::transaction::Body;

    /// The records of a small store, some of them altered or missing.
    struct Lines(Vec<Option<Stored>>);

    impl Lines {
        fn with(count: u64) -> Self {
            let store = store_for_tests::Store::with(count);
            let records = (1..=count).map(|position| Some(store.record(position)));
            Self(records.collect())
        }

        fn change(&mut self, position: usize, change: impl FnOnce(&mut Stored)) {
            change(self.0[position - 1].as_mut().unwrap());
        }

        fn watermark(&self, position: u64) -> Watermark {
            Watermark { position, chain: self.0[position as usize - 1].as_ref().unwrap().chain }
        }

        fn walk(&self, watermark: Option<Watermark>) -> LaneVerification {
            let mut walk = ChainWalk::new(store_for_tests::lane_name(), (1, self.0.len() as u64), watermark);
            for (position, stored) in (1..).zip(&self.0) {
                match stored {
                    Some(stored) => walk.record(stored),
                    None => walk.missing(position),
                }
            }
            walk.end()
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
        assert_eq!(found.chain, Some(store.record(1000).chain));
        let empty = walk(&store_for_tests::Store::with(0));
        assert!(empty.ok && empty.verified == 0);
    }

    #[test]
    fn an_altered_a_swapped_and_a_missing_record_are_found() {
        let mut lines = Lines::with(20);
        lines.change(7, |stored| stored.transaction.body = Body::new(&b"other"[..]));
        let found = lines.walk(None);
        assert!(!found.ok);
        assert_eq!((found.wrong_ranges, found.verified), (vec![(7, 7)], 19));

        // A record that is consistent in itself but does not follow its predecessor.
        let mut lines = Lines::with(20);
        lines.change(9, |stored| {
            stored.previous = ChainValue([9; 32]);
            let lane = store_for_tests::lane_name();
            stored.chain = stored.previous.next(stored.sequence, stored.transaction.digest(&lane));
        });
        assert_eq!(lines.walk(None).wrong_ranges, [(9, 10)], "and its successor does not follow it");

        let mut lines = Lines::with(20);
        let watermark = lines.watermark(5);
        for position in [3, 8, 9] {
            lines.0[position - 1] = None;
        }
        let found = lines.walk(Some(watermark));
        assert!(!found.ok);
        assert_eq!(found.missing_ranges, [(8, 9)], "what is confirmed is not missing");
    }

    #[test]
    fn another_chain_at_the_hub_is_found() {
        let found = Lines::with(3).walk(Some(Watermark { position: 2, chain: ChainValue([1; 32]) }));
        assert_eq!((found.ok, found.agrees_with_hub), (false, Some(false)));
    }
}
