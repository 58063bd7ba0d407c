//! Which records are intact, which fit a missing one, and which are lost: decided by chain values alone; no IO.
//!
//! A record fits when something *after* it vouches for it: the next record names its chain value as the one before it, or
//! the tail checkpoint or a segment's header has that value. Between the two may be lost records whose digests are known: then
//! the value must lead to the one that is named. That it follows from the record before it proves less: so does a record that was never answered and lost in a power cut, and one of a copy of this box that
//! continued by itself. Such a record is *unproven*, and an operator decides.

use std::collections::BTreeMap;
use std::sync::Arc;

use pgw_core::chain::{ChainValue, Digest};
use pgw_core::transaction::{Position, UnixMillis};

/// A record that was found, without its content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FoundRecord {
    /// Value of the chain over positions before it.
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

impl FoundRecord {
    /// Whether it is the one that the digest table names; `None`: the table says nothing.
    pub(super) fn agrees_with(&self, position: Position, digest: Option<Digest>) -> Option<bool> {
        digest.map(|digest| self.previous.next(position, digest) == self.chain)
    }
}

/// All records that were found, by position.
pub(super) type Candidates = BTreeMap<Position, Vec<FoundRecord>>;

/// A value of the chain over positions that is known from elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Anchor {
    pub(super) position: Position,
    pub(super) chain: ChainValue,
}

/// What comes after a position: its chain value must lead to `chain` over the lost ones between, latest first.
#[derive(Debug, Clone)]
struct Wanted {
    position: Position,
    lost: Vec<(Position, Digest)>,
    chain: ChainValue,
}

impl Wanted {
    fn at(Anchor { position, chain }: Anchor) -> Self {
        Self { position, lost: Vec::new(), chain }
    }

    fn vouches_for(&self, found: &FoundRecord) -> bool {
        let over =
            |chain: ChainValue, (position, digest): &(Position, Digest)| chain.next(*position, *digest);
        self.lost.iter().rev().fold(found.chain, over) == self.chain
    }

    /// The same, seen from the position before: this one is lost, and its digest known.
    fn before_lost(mut self, digest: Digest) -> Self {
        self.lost.push((self.position, digest));
        self.position = self.position.saturating_sub(1);
        self
    }
}

/// The positions of one segment, with everything that is known about them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Part<'a> {
    pub(super) first: Position,
    pub(super) last: Position,
    /// The positions that the store counts as missing.
    pub(super) missing: &'a [(Position, Position)],
    pub(super) released: &'a [(Position, Position)],
    pub(super) anchors: &'a [Anchor],
    /// What the digest table says.
    pub(super) digests: &'a BTreeMap<Position, Digest>,
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

/// Why a record that was found does not go back into its place. It goes to the quarantine, where a person decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NotPutBack {
    /// What comes after it, or its digest table, vouches for it, and a person has written it off.
    WrittenOff,
    /// The digest table, which was written behind the barrier of the true record, has another digest.
    Contradicted,
}

/// The decisions about a part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Decisions {
    pub(super) verdicts: BTreeMap<Position, PositionVerdict>,
    /// Candidates that do not go back into their places.
    pub(super) not_put_back: BTreeMap<Position, (usize, NotPutBack)>,
    /// The chain value that the last position before the part must have, if its first record names it.
    pub(super) before: Option<Anchor>,
}

fn within(ranges: &[(Position, Position)], position: Position) -> bool {
    ranges.iter().any(|(from, through)| (*from..=*through).contains(&position))
}

/// Decides about every position of a part, from its end backwards.
pub(super) fn decide(part: &Part<'_>, candidates: &Candidates) -> Decisions {
    let (mut verdicts, mut not_put_back) = (BTreeMap::new(), BTreeMap::new());
    let anchors: Vec<Anchor> =
        part.anchors.iter().copied().filter(|a| (part.first..=part.last).contains(&a.position)).collect();
    // What the next position names as the value before it.
    let mut named: Option<Wanted> = None;
    for position in (part.first..=part.last).rev() {
        let found = candidates.get(&position).map_or(&[][..], Vec::as_slice);
        let here = anchors.iter().copied().filter(|anchor| anchor.position == position).map(Wanted::at);
        let wanted: Vec<Wanted> =
            here.chain(named.take().filter(|wanted| wanted.position == position)).collect();
        let digest = part.digests.get(&position).copied();
        let (verdict, kept) = if within(part.released, position) {
            let proven = |found: &FoundRecord| {
                wanted.iter().any(|wanted| wanted.vouches_for(found))
                    || found.agrees_with(position, digest) == Some(true)
            };
            let returns = found.iter().position(proven).map(|at| (at, NotPutBack::WrittenOff));
            (PositionVerdict::Released(found.iter().rposition(|found| found.own)), returns)
        } else {
            at_position((position, digest), found, &wanted, within(part.missing, position), candidates)
        };
        not_put_back.extend(kept.map(|kept| (position, kept)));
        named = match verdict {
            PositionVerdict::Intact(at) | PositionVerdict::Fits(at) => found.get(at).map(|found| {
                Wanted::at(Anchor { position: position.saturating_sub(1), chain: found.previous })
            }),
            PositionVerdict::Lost | PositionVerdict::Released(_) => {
                wanted.into_iter().next().zip(digest).map(|(wanted, digest)| wanted.before_lost(digest))
            }
            PositionVerdict::Contradicts(_) | PositionVerdict::Unproven(_) => None,
        };
        verdicts.insert(position, verdict);
    }
    resolve_unproven(part, candidates, &mut verdicts);
    let before = named.filter(|wanted| wanted.position + 1 == part.first && wanted.lost.is_empty());
    let before = before.map(|Wanted { position, chain, .. }| Anchor { position, chain });
    Decisions { verdicts, not_put_back, before }
}

/// The verdict, and a candidate that the digest table contradicts.
fn at_position(
    (position, digest): (Position, Option<Digest>),
    found: &[FoundRecord],
    wanted: &[Wanted],
    is_missing: bool,
    candidates: &Candidates,
) -> (PositionVerdict, Option<(usize, NotPutBack)>) {
    let vouched = |found: &FoundRecord| wanted.iter().any(|wanted| wanted.vouches_for(found));
    // A digest alone contradicts nothing: what it says counts only where the chain confirms it.
    let contradicted =
        |found: &FoundRecord| !vouched(found) && wanted.iter().any(|wanted| wanted.lost.is_empty());
    let of = |own: bool| found.iter().position(|found| found.own == own && vouched(found));
    if let Some(at) = of(true) {
        return (if is_missing { PositionVerdict::Fits(at) } else { PositionVerdict::Intact(at) }, None);
    }
    if let Some(at) = of(false) {
        return (PositionVerdict::Fits(at), None);
    }
    if !is_missing && found.iter().any(|found| found.own) {
        // As the daemon's own rebuild does: one that follows from the record before it, else the one found last.
        let before = candidates.get(&position.saturating_sub(1)).map_or(&[][..], Vec::as_slice);
        let follows = found.iter().rposition(|f| f.own && before.iter().any(|b| b.chain == f.previous));
        let at = follows.or(found.iter().rposition(|found| found.own)).unwrap_or_default();
        let contradicts = found.get(at).is_some_and(contradicted);
        return (
            if contradicts { PositionVerdict::Contradicts(at) } else { PositionVerdict::Intact(at) },
            None,
        );
    }
    // If candidates differ and nothing decides between them, take none.
    let left = (0..found.len()).filter(|at| found.get(*at).is_some_and(|f| !contradicted(f)));
    // Nothing vouches for these: then the table, which was written behind the barrier, may say that they are others.
    let (refused, left): (Vec<usize>, Vec<usize>) =
        left.partition(|at| found.get(*at).and_then(|f| f.agrees_with(position, digest)) == Some(false));
    let same = |at: &usize| {
        found.get(*at).map(|f| f.chain) == left.first().and_then(|l| found.get(*l)).map(|f| f.chain)
    };
    let refused = refused.first().map(|at| (*at, NotPutBack::Contradicted));
    match left.first() {
        Some(at) if left.iter().all(same) => (PositionVerdict::Unproven(*at), refused),
        _ => (PositionVerdict::Lost, refused),
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
        if this.previous != previous.chain {
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

    const LAST: Position = 12;

    fn value(position: Position, rival: u8) -> ChainValue {
        let mut bytes = [rival; 32];
        bytes[0] = u8::try_from(position).unwrap();
        ChainValue(bytes)
    }

    fn found(position: Position, rival: u8, follows: u8, own: bool) -> FoundRecord {
        FoundRecord {
            previous: value(position - 1, follows),
            chain: value(position, rival),
            tag: u32::from(rival),
            own,
            time: 0,
            sender: Arc::from("urn:x"),
        }
    }

    fn anchor(position: Position) -> Anchor {
        Anchor { position, chain: value(position, 0) }
    }

    fn decide_all(
        candidates: &Candidates,
        missing: &[(Position, Position)],
        anchors: &[Anchor],
    ) -> BTreeMap<Position, PositionVerdict> {
        let digests = &BTreeMap::new();
        decide(&Part { first: 1, last: LAST, missing, released: &[], anchors, digests }, candidates).verdicts
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
    fn what_was_released_stays_released_and_known_digests_lead_over_it() {
        let mut chain = value(0, 0);
        let mut candidates = Candidates::new();
        let digest = |position: Position| Digest([u8::try_from(position).unwrap(); 32]);
        for position in 1..=LAST {
            let previous = chain;
            chain = chain.next(position, digest(position));
            let own = !(4..=7).contains(&position);
            candidates.insert(position, vec![FoundRecord { previous, chain, ..found(position, 0, 0, own) }]);
        }
        let lost: Candidates = candidates
            .iter()
            .filter(|(at, _)| **at < 6 || **at > 7)
            .map(|(at, f)| (*at, f.clone()))
            .collect();
        let at = |candidates: &Candidates, released: &[(Position, Position)], digests: &BTreeMap<_, _>| {
            let part = Part { first: 1, last: LAST, missing: &[(4, 7)], released, anchors: &[], digests };
            let verdicts = decide(&part, candidates).verdicts;
            [4, 5, 6, 7].map(|position| verdicts[&position])
        };
        use PositionVerdict::{Fits, Lost, Released, Unproven};
        let known = BTreeMap::from([(6, digest(6)), (7, digest(7))]);
        assert_eq!(at(&candidates, &[(6, 7)], &known), [Fits(0), Fits(0), Released(None), Released(None)]);
        assert_eq!(at(&lost, &[], &known), [Fits(0), Fits(0), Lost, Lost]);
        let one = BTreeMap::from([(6, digest(6))]);
        assert_eq!(at(&lost, &[], &one), [Unproven(0), Unproven(0), Lost, Lost]);
        let wrong = BTreeMap::from([(6, digest(7)), (7, digest(7))]);
        assert_eq!(at(&lost, &[], &wrong), [Unproven(0), Unproven(0), Lost, Lost]);
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
