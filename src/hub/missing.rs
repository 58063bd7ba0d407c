//! Which transactions are missing for good: what an entry stands for, less what the line has of it. Pure.

use pgw_core::numbering::Numbers;
use pgw_core::transaction::{Epoch, Position, Sequence};
use pgw_core::wire::entry::Entry;

use super::store::{Through, walk};

/// Transactions that their gateway cannot send any more, and that the line lacks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MissingForGood {
    /// The number of the entry in their place.
    pub at: Through,
    /// Its kind: `void`, a person released them; `pruned`, they were confirmed once and are deleted.
    pub kind: String,
    /// How many.
    pub transactions: u64,
    /// The numbers that they had in older epochs.
    pub numbers: Vec<(Epoch, Sequence, Sequence)>,
    /// The reason of the person who released them.
    pub reason: String,
    /// When the entry was made, RFC 3339.
    pub time: String,
}

/// What is missing for good by an entry at `at`; `ends`: where each epoch of the line ends; `lost`: what of it the store has
/// lost. `None`: the line has all of it.
#[must_use]
pub fn of(
    entry: &Entry,
    kind: &str,
    at: Through,
    ends: &[Through],
    lost: &[Numbers],
) -> Option<MissingForGood> {
    let lacking = lacking(entry, ends, lost);
    let transactions = lacking.iter().map(|(from, through)| through - from + 1).sum();
    let numbers = lacking.iter().filter_map(|range| numbers(entry, *range)).collect();
    (transactions > 0).then(|| MissingForGood {
        at,
        kind: kind.to_owned(),
        transactions,
        numbers,
        reason: entry.reason.clone(),
        time: entry.time.clone(),
    })
}

/// Positions from the first to the last.
type Positions = (Position, Position);

/// The positions that the line does not have under any of their numbers. Numbers of one epoch rise with the positions, and the
/// last of them is that of the last position.
fn lacking(entry: &Entry, ends: &[Through], lost: &[Numbers]) -> Vec<Positions> {
    let mut lacking = vec![(entry.from, entry.through)];
    for (epoch, from, through) in named(entry) {
        let Some(end) = ends.iter().find(|end| end.epoch == epoch) else { continue };
        let stored = through.min(end.through);
        if stored < from {
            continue;
        }
        let mut stored = vec![(from, stored)];
        for lost in lost.iter().filter(|lost| lost.epoch == epoch) {
            stored = stored.into_iter().flat_map(|range| without(range, (lost.from, lost.through))).collect();
        }
        for (first, last) in stored {
            let has = (entry.through - (through - first), entry.through - (through - last));
            lacking = lacking.into_iter().flat_map(|range| without(range, has)).collect();
        }
    }
    lacking
}

/// Whether an entry stands for all that a line lacks from these ends to those.
#[must_use]
pub fn covers(entry: &Entry, ends: &[Through], until: &[Through]) -> bool {
    let stands_for = |lost: &Numbers| {
        let of = |(epoch, from, through): (Epoch, Sequence, Sequence)| {
            epoch == lost.epoch && from <= lost.from && lost.through <= through
        };
        named(entry).any(of)
    };
    walk::between(ends, until).is_some_and(|lost| lost.iter().all(stands_for))
}

/// The numbers of an entry's names, as far as they can be true.
fn named(entry: &Entry) -> impl DoubleEndedIterator<Item = (Epoch, Sequence, Sequence)> {
    let most = entry.through - entry.from;
    let names = entry.names.iter().map(|name| (name.epoch, name.from, name.through));
    names.filter(move |(_, from, through)| from <= through && through - from <= most)
}

fn without((from, through): Positions, has: Positions) -> impl Iterator<Item = Positions> {
    let before = (from, through.min(has.0.saturating_sub(1)));
    let after = (from.max(has.1.saturating_add(1)), through);
    let (apart, all) = (has.1 < from || through < has.0, (from, through));
    let parts = if apart { [Some(all), None] } else { [Some(before), Some(after)] };
    parts.into_iter().flatten().filter(|(from, through)| from <= through)
}

/// The newest numbers of these positions.
fn numbers(entry: &Entry, (from, through): Positions) -> Option<(Epoch, Sequence, Sequence)> {
    let number = |last: Sequence, position| last - (entry.through - position);
    let (epoch, _, last) =
        named(entry).rev().find(|(_, first, last)| entry.through - (last - first) <= from)?;
    Some((epoch, number(last, from), number(last, through)))
}

#[cfg(test)]
mod tests {
    use pgw_core::chain::ChainValue;
    use pgw_core::wire::SCHEMA;
    use pgw_core::wire::entry::Named;
    use uuid::Uuid;

    use super::*;

    fn epoch(number: u128) -> Epoch {
        Epoch(Uuid::from_u128(number))
    }

    fn end(of: u128, through: u64) -> Through {
        Through { epoch: epoch(of), through, chain: ChainValue([0; 32]) }
    }

    fn entry(names: &[(u128, u64, u64)]) -> Entry {
        let named = |(of, from, through): &(u128, u64, u64)| Named {
            epoch: epoch(*of),
            from: *from,
            through: *through,
        };
        Entry {
            schema: SCHEMA,
            from: 11,
            through: 20,
            names: names.iter().map(named).collect(),
            reason: "disk".into(),
            time: "t".into(),
        }
    }

    fn shown(names: &[(u128, u64, u64)], ends: &[Through]) -> (u64, Vec<(u128, u64, u64)>) {
        let missing = of(&entry(names), "void", end(9, 4), ends, &[]);
        missing.map_or((0, Vec::new()), |missing| {
            let plain = |(of, from, through): &(Epoch, u64, u64)| (of.0.as_u128(), *from, *through);
            (missing.transactions, missing.numbers.iter().map(plain).collect())
        })
    }

    #[test]
    fn only_the_numbers_that_the_line_lacks_are_listed() {
        // In epoch 1 they were 1 to 10.
        let names = [(1, 1, 10)];
        assert_eq!(shown(&names, &[]), (10, vec![(1, 1, 10)]), "the line has nothing of them");
        assert_eq!(shown(&names, &[end(1, 6), end(9, 4)]), (4, vec![(1, 7, 10)]));
        assert_eq!(shown(&names, &[end(1, 10)]), (0, vec![]));
        assert_eq!(shown(&names, &[end(1, 12)]), (0, vec![]), "and it went on after them");
    }

    #[test]
    fn numbers_of_several_epochs_are_those_of_the_same_transactions() {
        // The last four had numbers in epoch 2 as well.
        let names = [(1, 101, 110), (2, 1, 4)];
        assert_eq!(shown(&names, &[end(1, 103), end(2, 2)]), (5, vec![(1, 104, 106), (2, 3, 4)]));
        assert_eq!(shown(&names, &[end(1, 100)]), (10, vec![(1, 101, 110)]));
        assert_eq!(shown(&names, &[end(1, 106), end(2, 4)]), (0, vec![]));
    }

    #[test]
    fn what_the_store_has_lost_is_missing_though_the_line_names_it() {
        let (entry, ends) = (entry(&[(1, 101, 110), (2, 1, 4)]), [end(1, 110), end(2, 4)]);
        let lost = |of, from, through| Numbers { epoch: epoch(of), from, through };
        let missing = |lost: &[Numbers]| of_entry(&entry, &ends, lost);
        assert_eq!(missing(&[]), 0);
        assert_eq!(missing(&[lost(1, 90, 103), lost(3, 1, 9)]), 3);
        assert_eq!(missing(&[lost(1, 105, 105), lost(1, 108, 200)]), 1, "108 to 110 have numbers in epoch 2");
        assert_eq!(missing(&[lost(1, 105, 105), lost(1, 108, 200), lost(2, 2, 3)]), 3);
    }

    fn of_entry(entry: &Entry, ends: &[Through], lost: &[Numbers]) -> u64 {
        of(entry, "pruned", end(9, 4), ends, lost).map_or(0, |missing| missing.transactions)
    }

    #[test]
    fn an_entry_covers_a_hole_only_if_it_stands_for_all_of_it() {
        let ends = [end(1, 103)];
        let covers = |names: &[(u128, u64, u64)], until: &[Through]| covers(&entry(names), &ends, until);
        assert!(covers(&[(1, 101, 110)], &[end(1, 110)]));
        assert!(covers(&[(1, 104, 109)], &[end(1, 109)]));
        assert!(!covers(&[(1, 101, 110)], &[end(1, 111)]), "one more");
        assert!(!covers(&[(1, 105, 110)], &[end(1, 110)]), "the first is still at the gateway, or lost");
        assert!(!covers(&[(1, 101, 110)], &[end(1, 110), end(2, 1)]), "of the next epoch too");
        assert!(covers(&[(1, 101, 110), (2, 1, 4)], &[end(1, 110), end(2, 4)]));
        assert!(!covers(&[(2, 1, 4)], &[end(2, 4)]), "it does not follow on the line");
        assert!(!covers(&[(1, 101, 110)], &[end(1, 103)]), "nothing is missing");
    }

    #[test]
    fn what_cannot_be_true_counts_as_missing() {
        for names in [vec![], vec![(1, 5, 4)], vec![(1, 1, u64::MAX)]] {
            assert_eq!(shown(&names, &[end(1, u64::MAX)]), (10, vec![]), "{names:?}");
        }
    }
}
