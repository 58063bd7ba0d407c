//! Walks the chain of a lane over everything that is kept of it.

use std::ops::ControlFlow;

use pgw_core::chain::ChainValue;
use pgw_core::transaction::{Epoch, Lane, Position};
use pgw_core::wire::void;
use pgw_outbox::{ReadError, Stored};
use serde::{Deserialize, Serialize};

use crate::ingest::control::kept::{Kept, READ_BYTES, READ_RECORDS};

/// Most ranges that a verdict lists of each kind.
const LISTED: usize = 100;

/// What the walk found in a lane. `ok` says whether a person has to do something.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// The lane.
    pub lane: Lane,
    /// Nothing is wrong and nothing unconfirmed is missing.
    pub ok: bool,
    /// Walked from this position ...
    pub from: Position,
    /// ... through this one.
    pub through: Position,
    /// Records whose chain value follows from their predecessor and themselves.
    pub verified: u64,
    /// Records that do not; they are there, and altered.
    pub wrong: u64,
    /// Records that are not to be had.
    pub missing: u64,
    /// The first ranges of wrong records.
    pub wrong_ranges: Vec<(Position, Position)>,
    /// The first ranges of missing records.
    pub missing_ranges: Vec<(Position, Position)>,
    /// Whether the chain value that the hub confirmed is the one here; `None` where that record is pruned.
    pub agrees_with_hub: Option<bool>,
    /// The last chain value.
    pub chain: Option<ChainValue>,
}

/// Walks `lane`; `progress` hears the position after each batch and may end the walk, which then gives `None`.
///
/// # Errors
/// [`ReadError::Trouble`]: the store cannot be read now.
pub fn verify<K: Kept>(
    kept: &K,
    lane: &Lane,
    mut progress: impl FnMut(Position, Position) -> ControlFlow<()>,
) -> Result<Option<Verdict>, ReadError> {
    let tail = kept.tail(lane);
    let mark = kept.mark(lane);
    let from = kept.first_retained(lane).unwrap_or(1).max(1);
    let mut verdict = Verdict {
        lane: lane.clone(),
        ok: true,
        from,
        through: tail,
        verified: 0,
        wrong: 0,
        missing: 0,
        wrong_ranges: Vec::new(),
        missing_ranges: Vec::new(),
        agrees_with_hub: None,
        chain: None,
    };
    let mut next = from;
    let mut before: Option<(Epoch, ChainValue)> = None;
    while next <= tail {
        let batch = match kept.read(lane, next, READ_RECORDS, READ_BYTES) {
            Ok(batch) => batch,
            Err(ReadError::Gone { .. }) => Vec::new(),
            Err(trouble) => return Err(trouble),
        };
        let mut walked = next;
        for stored in batch.into_iter().take_while(|stored| stored.position <= tail) {
            if stored.position != walked {
                break;
            }
            if follows(lane, before, &stored) {
                verdict.verified += 1;
            } else {
                verdict.wrong += 1;
                extend(&mut verdict.wrong_ranges, stored.position);
            }
            if let Some(mark) = mark.filter(|mark| mark.position == stored.position) {
                verdict.agrees_with_hub = Some(mark.chain == stored.chain);
            }
            before = Some((stored.epoch, stored.chain));
            verdict.chain = Some(stored.chain);
            walked += 1;
        }
        if walked == next {
            // Destroyed, or pruned while we walked: only what nobody else has is a loss.
            if mark.is_none_or(|mark| next > mark.position) {
                verdict.missing += 1;
                extend(&mut verdict.missing_ranges, next);
            }
            before = None;
            walked += 1;
        }
        next = walked;
        if progress(next - 1, tail).is_break() {
            return Ok(None);
        }
    }
    verdict.ok = verdict.wrong == 0 && verdict.missing == 0 && verdict.agrees_with_hub != Some(false);
    Ok(Some(verdict))
}

/// Whether the record's chain value follows from its own content and, where that is known, from its predecessor.
fn follows(lane: &Lane, before: Option<(Epoch, ChainValue)>, stored: &Stored) -> bool {
    let previous_fits = match before {
        _ if stored.sequence == 1 => stored.previous == ChainValue::first(stored.epoch, lane.as_str()),
        Some((epoch, chain)) => epoch == stored.epoch && chain == stored.previous,
        None => true,
    };
    if stored.transaction.kind == void::KIND {
        // It stands for what is lost: there is no content to check.
        return previous_fits;
    }
    let chain = stored.previous.next_for(stored.epoch, lane, stored.sequence, &stored.transaction);
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
    use crate::ingest::control::server::tests::Shelf;
    use pgw_core::transaction::Body;
    use pgw_outbox::Watermark;

    fn walk(shelf: &Shelf) -> Verdict {
        verify(shelf, &Shelf::lane(), |_, _| ControlFlow::Continue(())).unwrap().unwrap()
    }

    #[test]
    fn a_whole_lane_verifies() {
        let shelf = Shelf::with(1000);
        shelf.confirm(400);
        let verdict = walk(&shelf);
        assert!(verdict.ok, "{verdict:?}");
        assert_eq!((verdict.from, verdict.through, verdict.verified), (1, 1000, 1000));
        assert_eq!(verdict.agrees_with_hub, Some(true));
        assert_eq!(verdict.chain, Some(shelf.record(1000).chain));
        let empty = walk(&Shelf::with(0));
        assert!(empty.ok && empty.verified == 0);
    }

    #[test]
    fn an_altered_a_swapped_and_a_missing_record_are_found() {
        let shelf = Shelf::with(20);
        shelf.change(7, |stored| stored.transaction.body = Body::new(&b"other"[..]));
        let verdict = walk(&shelf);
        assert!(!verdict.ok);
        assert_eq!((verdict.wrong_ranges, verdict.verified), (vec![(7, 7)], 19));

        // A record that is consistent in itself but does not follow its predecessor.
        let shelf = Shelf::with(20);
        shelf.change(9, |stored| {
            stored.previous = ChainValue([9; 32]);
            stored.chain =
                stored.previous.next_for(stored.epoch, &Shelf::lane(), stored.sequence, &stored.transaction);
        });
        assert_eq!(walk(&shelf).wrong_ranges, [(9, 10)], "and its successor does not follow it");

        let shelf = Shelf::with(20);
        shelf.confirm(5);
        for position in [3, 8, 9] {
            shelf.destroy(position);
        }
        let verdict = walk(&shelf);
        assert!(!verdict.ok);
        assert_eq!(verdict.missing_ranges, [(8, 9)], "what is confirmed is not missing");
    }

    #[test]
    fn another_chain_at_the_hub_is_found() {
        let shelf = Shelf::with(3);
        shelf.set_mark(Watermark { position: 2, chain: ChainValue([1; 32]) });
        let verdict = walk(&shelf);
        assert_eq!((verdict.ok, verdict.agrees_with_hub), (false, Some(false)));
    }
}
