//! Which records are intact, which fit a missing one, and which are lost: decided by chain values alone; no IO.
//!
//! A record fits when something *after* it vouches for it: the next record names its chain value as the one before it, or
//! the tail checkpoint, a watermark, a void or a kept end of an epoch has that value. That it follows from the record before
//! it proves less: so does a record that was never answered and lost in a power cut, and one of a copy of this box that
//! continued by itself. Such a record is *unproven*, and an operator decides.

use std::collections::BTreeMap;
use std::sync::Arc;

use pgw_core::chain::ChainValue;
use pgw_core::transaction::{Epoch, Position, UnixMillis};

/// A record that was found, without its content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FoundRecord {
    /// Epoch at acceptance.
    pub(super) epoch: Epoch,
    /// Chain value before it, in that epoch.
    pub(super) previous: ChainValue,
    /// Its chain value.
    pub(super) chain: ChainValue,
    /// CRC32C of its sealed bytes: with the position, its name in a scan.
    pub(super) tag: u32,
    /// It was found in its own segment.
    pub(super) own: bool,
    /// When it was accepted, and the sender that its transaction names.
    pub(super) time: UnixMillis,
    pub(super) sender: Arc<str>,
}

/// All records that were found, by position.
pub(super) type Candidates = BTreeMap<Position, Vec<FoundRecord>>;

/// A chain value that is known from elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Anchor {
    pub(super) position: Position,
    /// The epoch in which it holds.
    pub(super) epoch: Epoch,
    pub(super) chain: ChainValue,
}

/// A released range, and the chain value before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ReleasedRange {
    pub(super) from: Position,
    pub(super) through: Position,
    pub(super) epoch: Epoch,
    pub(super) previous: ChainValue,
}

/// The positions of one segment, with everything that is known about them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Part<'a> {
    pub(super) first: Position,
    pub(super) last: Position,
    /// The positions that the store counts as missing.
    pub(super) missing: &'a [(Position, Position)],
    pub(super) released: &'a [ReleasedRange],
    pub(super) anchors: &'a [Anchor],
}

/// The decision about a position; the numbers are indexes of its candidates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PositionVerdict {
    /// Its record can be read in its segment.
    Intact(usize),
    /// Its record can be read there, but the next one names another chain value.
    Contradicts(usize),
    /// It is missing, and what comes after vouches for this candidate.
    Fits(usize),
    /// It is missing; this is the only candidate, nothing contradicts it and nothing vouches for it.
    Unproven(usize),
    /// It was written off for good, whatever was found.
    Released(Option<usize>),
    /// No candidate belongs here.
    Lost,
}

impl PositionVerdict {
    /// The candidate that is here, or would be.
    pub(super) fn chosen(self) -> Option<usize> {
        match self {
            Self::Intact(at) | Self::Contradicts(at) | Self::Fits(at) | Self::Unproven(at) => Some(at),
            Self::Released(own) => own,
            Self::Lost => None,
        }
    }

    /// Whether another copy of the record would help.
    pub(super) fn is_wanting(self) -> bool {
        matches!(self, Self::Contradicts(_) | Self::Unproven(_) | Self::Lost)
    }
}

/// The decisions about a part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Decisions {
    pub(super) verdicts: BTreeMap<Position, PositionVerdict>,
    /// The chain value that the last position before the part must have, if its first record names it.
    pub(super) before: Option<Anchor>,
}

fn within(ranges: &[(Position, Position)], position: Position) -> bool {
    ranges.iter().any(|(from, through)| (*from..=*through).contains(&position))
}

/// Decides about every position of a part, from its end backwards.
pub(super) fn decide(part: &Part<'_>, candidates: &Candidates) -> Decisions {
    let mut verdicts = BTreeMap::new();
    let anchors: Vec<Anchor> =
        part.anchors.iter().copied().filter(|a| (part.first..=part.last).contains(&a.position)).collect();
    // The value that the next position names as the one before it.
    let mut named: Option<Anchor> = None;
    for position in (part.first..=part.last).rev() {
        let found = candidates.get(&position).map_or(&[][..], Vec::as_slice);
        let own = || found.iter().rposition(|found| found.own);
        if let Some(released) = part.released.iter().find(|r| (r.from..=r.through).contains(&position)) {
            verdicts.insert(position, PositionVerdict::Released(own()));
            let ReleasedRange { epoch, previous, .. } = *released;
            named = (position == released.from).then(|| Anchor {
                position: position.saturating_sub(1),
                epoch,
                chain: previous,
            });
            continue;
        }
        let known: Vec<Anchor> =
            anchors.iter().copied().chain(named).filter(|anchor| anchor.position == position).collect();
        let verdict = at_position(position, found, &known, within(part.missing, position), candidates);
        named = match verdict {
            PositionVerdict::Intact(at) | PositionVerdict::Fits(at) => found.get(at),
            _ => None,
        }
        .map(|found| Anchor {
            position: position.saturating_sub(1),
            epoch: found.epoch,
            chain: found.previous,
        });
        verdicts.insert(position, verdict);
    }
    resolve_unproven(part, candidates, &mut verdicts);
    Decisions { verdicts, before: named.filter(|anchor| anchor.position + 1 == part.first) }
}

fn at_position(
    position: Position,
    found: &[FoundRecord],
    known: &[Anchor],
    is_missing: bool,
    candidates: &Candidates,
) -> PositionVerdict {
    let vouched =
        |found: &FoundRecord| known.iter().any(|a| (a.epoch, a.chain) == (found.epoch, found.chain));
    let contradicted = |found: &FoundRecord| !vouched(found) && known.iter().any(|a| a.epoch == found.epoch);
    let of = |own: bool| found.iter().position(|found| found.own == own && vouched(found));
    if let Some(at) = of(true) {
        return if is_missing { PositionVerdict::Fits(at) } else { PositionVerdict::Intact(at) };
    }
    if let Some(at) = of(false) {
        return PositionVerdict::Fits(at);
    }
    if !is_missing && found.iter().any(|found| found.own) {
        // As the daemon's own rebuild does: one that follows from the record before it, else the one found last.
        let before = candidates.get(&position.saturating_sub(1)).map_or(&[][..], Vec::as_slice);
        let follows = found.iter().rposition(|f| f.own && before.iter().any(|b| b.chain == f.previous));
        let at = follows.or(found.iter().rposition(|found| found.own)).unwrap_or_default();
        return if found.get(at).is_some_and(contradicted) {
            PositionVerdict::Contradicts(at)
        } else {
            PositionVerdict::Intact(at)
        };
    }
    // If candidates differ and nothing decides between them, take none.
    let left: Vec<usize> =
        (0..found.len()).filter(|at| found.get(*at).is_some_and(|f| !contradicted(f))).collect();
    let same = |at: &usize| {
        found.get(*at).map(|f| f.chain) == left.first().and_then(|l| found.get(*l)).map(|f| f.chain)
    };
    match left.first() {
        Some(at) if left.iter().all(same) => PositionVerdict::Unproven(*at),
        _ => PositionVerdict::Lost,
    }
}

/// An unproven record must at least follow from the record before it, and two of them must not contradict each other.
fn resolve_unproven(
    part: &Part<'_>,
    candidates: &Candidates,
    verdicts: &mut BTreeMap<Position, PositionVerdict>,
) {
    let unproven: Vec<Position> =
        verdicts.iter().filter(|(_, v)| matches!(v, PositionVerdict::Unproven(_))).map(|(p, _)| *p).collect();
    let mut refused = Vec::new();
    let chosen =
        |position: Position, verdicts: &BTreeMap<Position, PositionVerdict>| -> Option<FoundRecord> {
            let at = verdicts.get(&position).copied().and_then(PositionVerdict::chosen)?;
            candidates.get(&position)?.get(at).cloned()
        };
    for position in unproven {
        let before = position.saturating_sub(1);
        let (Some(this), Some(previous)) = (chosen(position, verdicts), chosen(before, verdicts)) else {
            continue;
        };
        if this.epoch == previous.epoch && this.previous != previous.chain {
            refused.push(position);
            if matches!(verdicts.get(&before), Some(PositionVerdict::Unproven(_))) {
                refused.push(before);
            }
        }
    }
    for position in refused.into_iter().filter(|position| (part.first..=part.last).contains(position)) {
        verdicts.insert(position, PositionVerdict::Lost);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use uuid::Uuid;

    const EPOCH: Epoch = Epoch(Uuid::nil());
    const LAST: Position = 12;

    fn value(position: Position, rival: u8) -> ChainValue {
        let mut bytes = [rival; 32];
        bytes[0] = u8::try_from(position).unwrap();
        ChainValue(bytes)
    }

    fn found(position: Position, rival: u8, follows: u8, own: bool) -> FoundRecord {
        FoundRecord {
            epoch: EPOCH,
            previous: value(position - 1, follows),
            chain: value(position, rival),
            tag: u32::from(rival),
            own,
            time: 0,
            sender: Arc::from("urn:x"),
        }
    }

    fn anchor(position: Position) -> Anchor {
        Anchor { position, epoch: EPOCH, chain: value(position, 0) }
    }

    fn decide_all(
        candidates: &Candidates,
        missing: &[(Position, Position)],
        anchors: &[Anchor],
    ) -> BTreeMap<Position, PositionVerdict> {
        decide(&Part { first: 1, last: LAST, missing, released: &[], anchors }, candidates).verdicts
    }

    fn own(positions: impl IntoIterator<Item = Position>) -> Candidates {
        positions.into_iter().map(|position| (position, vec![found(position, 0, 0, true)])).collect()
    }

    #[test]
    fn a_hole_is_filled_from_its_end_and_what_only_follows_is_unproven() {
        let mut candidates = own((1..=4).chain(9..=LAST));
        for position in [5, 6, 8] {
            candidates.insert(position, vec![found(position, 0, 0, false)]);
        }
        let verdicts = decide_all(&candidates, &[], &[]);
        let at = |position| verdicts[&position];
        assert_eq!(
            [4, 5, 6, 7, 8, 9].map(at),
            [
                PositionVerdict::Intact(0),
                PositionVerdict::Unproven(0),
                PositionVerdict::Unproven(0),
                PositionVerdict::Lost,
                PositionVerdict::Fits(0),
                PositionVerdict::Intact(0),
            ]
        );
        // The whole run is proven by its end.
        candidates.insert(7, vec![found(7, 0, 0, false)]);
        let verdicts = decide_all(&candidates, &[], &[]);
        assert!((5..=8).all(|position| verdicts[&position] == PositionVerdict::Fits(0)));
        // A tail is proven by the tail checkpoint only.
        let tail: Candidates = own(1..=10);
        let mut tail_found = tail.clone();
        (11..=LAST).for_each(|p| drop(tail_found.insert(p, vec![found(p, 0, 0, false)])));
        assert_eq!(decide_all(&tail_found, &[], &[])[&LAST], PositionVerdict::Unproven(0));
        assert_eq!(decide_all(&tail_found, &[], &[anchor(LAST)])[&11], PositionVerdict::Fits(0));
    }

    #[test]
    fn two_that_differ_and_nothing_decides_are_both_left() {
        let mut candidates = own((1..=4).chain(7..=LAST));
        candidates.insert(5, vec![found(5, 0, 0, false), found(5, 1, 0, false)]);
        assert_eq!(decide_all(&candidates, &[], &[])[&5], PositionVerdict::Lost);
        // A record that does not follow from the one before it is no candidate at all.
        candidates.insert(5, vec![found(5, 1, 1, false)]);
        assert_eq!(decide_all(&candidates, &[], &[])[&5], PositionVerdict::Lost);
        candidates.insert(6, vec![found(6, 0, 0, false)]);
        candidates.insert(5, vec![found(5, 0, 0, false), found(5, 1, 0, false)]);
        assert_eq!(decide_all(&candidates, &[], &[])[&5], PositionVerdict::Fits(0));
    }

    #[test]
    fn what_was_released_stays_released_and_still_says_what_was_before_it() {
        let mut candidates = own((1..=3).chain(8..=LAST));
        for position in 4..=7 {
            candidates.insert(position, vec![found(position, 0, 0, false)]);
        }
        let released = [ReleasedRange { from: 6, through: 7, epoch: EPOCH, previous: value(5, 0) }];
        let part = Part { first: 1, last: LAST, missing: &[(4, 7)], released: &released, anchors: &[] };
        let verdicts = decide(&part, &candidates).verdicts;
        assert_eq!([verdicts[&6], verdicts[&7]], [PositionVerdict::Released(None); 2]);
        assert_eq!([verdicts[&4], verdicts[&5]], [PositionVerdict::Fits(0); 2]);
    }

    #[test]
    fn another_epochs_values_prove_nothing() {
        let mut candidates = own((1..=4).chain(6..=LAST));
        let other = Epoch(Uuid::max());
        for of in 6..=LAST {
            candidates.get_mut(&of).unwrap()[0].epoch = other;
        }
        candidates.insert(5, vec![found(5, 0, 0, false)]);
        assert_eq!(decide_all(&candidates, &[], &[])[&5], PositionVerdict::Unproven(0));
    }

    prop_compose! {
        /// For each position: whether its record is in its segment or elsewhere, and rivals elsewhere, each with its predecessor.
        fn worlds()(
            own in prop::collection::vec(any::<bool>(), LAST as usize),
            copy in prop::collection::vec(any::<bool>(), LAST as usize),
            rivals in prop::collection::vec(prop::collection::vec((1u8..4, 0u8..4), 0..3), LAST as usize),
            is_missing in (1..=LAST, 1..=LAST),
            anchored in any::<bool>(),
        ) -> (Candidates, Vec<(Position, Position)>, bool) {
            let mut candidates = Candidates::new();
            for position in 1..=LAST {
                let at = position as usize - 1;
                let all: &mut Vec<FoundRecord> = candidates.entry(position).or_default();
                all.extend(rivals[at].iter().map(|(rival, follows)| found(position, *rival, *follows, false)));
                all.extend(copy[at].then(|| found(position, 0, 0, false)));
                all.extend(own[at].then(|| found(position, 0, 0, true)));
            }
            (candidates, vec![(is_missing.0.min(is_missing.1), is_missing.0.max(is_missing.1))], anchored)
        }
    }

    proptest! {
        #![proptest_config(crate::seeds::kept_of(2000))]
        /// Whatever rivals there are: only accepted records are taken, and all of those that are vouched for.
        #[test]
        fn only_what_was_accepted_is_taken_and_all_of_it_that_is_vouched_for(
            (candidates, missing, anchored) in worlds()
        ) {
            let anchors: Vec<Anchor> = anchored.then(|| anchor(LAST)).into_iter().collect();
            let verdicts = decide_all(&candidates, &missing, &anchors);
            // Whether the next position has a record that is intact or taken.
            let mut vouched = anchored;
            for position in (1..=LAST).rev() {
                let all = &candidates[&position];
                let verdict = verdicts[&position];
                let is_missing = within(&missing, position);
                let (accepted, own) = (value(position, 0), all.iter().any(|f| f.own));
                let chosen = verdict.chosen().map(|at| &all[at]);
                match verdict {
                    PositionVerdict::Intact(_) => prop_assert!(chosen.unwrap().own && !is_missing),
                    PositionVerdict::Fits(_) => prop_assert!(chosen.unwrap().chain == accepted && vouched),
                    PositionVerdict::Unproven(_) => {
                        prop_assert!(!vouched && (is_missing || !own));
                        prop_assert!(all.iter().all(|f| f.chain == chosen.unwrap().chain));
                    }
                    PositionVerdict::Lost => {
                        prop_assert!(is_missing || !own);
                        prop_assert!(!vouched || all.iter().all(|f| f.chain != accepted));
                    }
                    other => prop_assert!(false, "{other:?}"),
                }
                vouched = matches!(verdict, PositionVerdict::Intact(_) | PositionVerdict::Fits(_));
            }
        }
    }
}
