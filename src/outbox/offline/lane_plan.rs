//! The plan for a whole lane: which record belongs at each of its positions.

use std::collections::BTreeMap;

use pgw_core::transaction::Position;

use crate::offline::inspect::LaneInspection;
use crate::offline::plan::{
    self, Anchor, Candidates, FoundRecord, NotPutBack, Part, PositionVerdict, decide,
};

/// The plan for one lane.
pub(super) struct LanePlan {
    pub(super) inspection: LaneInspection,
    /// The records found in each segment, and elsewhere for its missing ones.
    pub(super) candidates: BTreeMap<u64, Candidates>,
    pub(super) verdicts: BTreeMap<u64, BTreeMap<Position, PositionVerdict>>,
    /// Records that were found and do not go back into their places.
    pub(super) not_put_back: BTreeMap<Position, KeptRecord>,
}

/// A record that goes to the quarantine.
#[derive(Debug, Clone)]
pub(super) struct KeptRecord {
    /// The segment in which its place is; `None`: it was pruned.
    pub(super) segment: Option<u64>,
    pub(super) why: NotPutBack,
    pub(super) record: FoundRecord,
}

/// The content of a new segment.
#[derive(Debug, Default)]
pub(super) struct SegmentWork {
    pub(super) records: BTreeMap<Position, FoundRecord>,
    /// The positions among them that were missing.
    pub(super) filled: Vec<Position>,
}

/// Plans a lane from its newest segment to its oldest: each says which chain value the one before it must end with.
pub(super) fn plan_lane(
    inspection: LaneInspection,
    sources: &BTreeMap<Position, Vec<plan::FoundRecord>>,
) -> LanePlan {
    let (missing, released, anchors) =
        (inspection.missing().to_vec(), inspection.released(), inspection.anchors());
    let (mut all, mut verdicts, mut not_put_back) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
    let mut from_newer: Option<Anchor> = None;
    for (number, segment) in inspection.segments.iter().rev() {
        let (first, last) = (segment.span.base, segment.last);
        if first > last {
            continue;
        }
        if segment.whole {
            let found = segment.found.get(&first).and_then(|found| found.first());
            from_newer = found
                .map(|found| Anchor { position: first - 1, chain: found.previous })
                .filter(|anchor| !inspection.begins_again(*anchor));
            continue;
        }
        let mut candidates = segment.found.clone();
        for (position, found) in sources.range(first..=last) {
            let known = candidates.entry(*position).or_default();
            for found in found {
                if known.iter().all(|known| known.chain != found.chain) {
                    known.push(found.clone());
                }
            }
        }
        let anchors: Vec<Anchor> = anchors.iter().copied().chain(from_newer).collect();
        let (missing, released, digests) = (&missing[..], &released[..], &segment.digests);
        let part = Part { first, last, missing, released, anchors: &anchors, digests };
        let decisions = decide(&part, &candidates);
        from_newer = decisions.before.filter(|anchor| !inspection.begins_again(*anchor));
        for (position, (at, why)) in decisions.not_put_back {
            let record = candidates.get(&position).and_then(|found| found.get(at));
            // What a person has had sent again is known, also where it lies.
            if let Some(record) = record.filter(|_| !inspection.voids.has_returned(position)) {
                not_put_back
                    .insert(position, KeptRecord { segment: Some(*number), why, record: record.clone() });
            }
        }
        all.insert(*number, candidates);
        verdicts.insert(*number, decisions.verdicts);
    }
    for (position, digest) in &inspection.pruned {
        let proven = |found: &&FoundRecord| found.agrees_with(*position, Some(*digest)) == Some(true);
        if let Some(record) = sources.get(position).and_then(|found| found.iter().find(proven)) {
            let (why, record) = (NotPutBack::WrittenOff, record.clone());
            not_put_back.insert(*position, KeptRecord { segment: None, why, record });
        }
    }
    LanePlan { inspection, candidates: all, verdicts, not_put_back }
}

impl LanePlan {
    /// The positions for which another copy would help.
    pub(super) fn wanting(&self) -> impl Iterator<Item = Position> + '_ {
        let may_return = |position: &Position| {
            !self.not_put_back.contains_key(position) && !self.inspection.voids.has_returned(*position)
        };
        let wanting = move |(position, verdict): &(&Position, &PositionVerdict)| match verdict {
            PositionVerdict::Released(_) => may_return(position),
            verdict => verdict.is_wanting(),
        };
        let pruned =
            self.inspection.pruned.keys().filter(|position| !self.not_put_back.contains_key(position));
        let kept = self.verdicts.values().flatten().filter(wanting).map(|(position, _)| *position);
        kept.chain(pruned.copied())
    }

    /// The records that go to the quarantine; those that the digest table contradicts only where a person would have taken them.
    pub(super) fn kept(&self, unproven: bool) -> impl Iterator<Item = (Position, &KeptRecord)> {
        let goes = move |kept: &KeptRecord| unproven || kept.why == NotPutBack::WrittenOff;
        self.not_put_back.iter().filter(move |(_, kept)| goes(kept)).map(|(position, kept)| (*position, kept))
    }

    /// The record at each position of a segment, and which were missing. `None`: the segment is left as it is.
    pub(super) fn work(&self, number: u64, unproven: bool) -> Option<SegmentWork> {
        let (segment, verdicts) = (self.inspection.segments.get(&number)?, self.verdicts.get(&number)?);
        let candidates = self.candidates.get(&number)?;
        let mut work = SegmentWork::default();
        for (position, verdict) in verdicts {
            let taken = match verdict {
                PositionVerdict::Fits(_) => true,
                PositionVerdict::Unproven(_) if unproven => true,
                PositionVerdict::Unproven(_) => continue,
                _ => false,
            };
            let chosen = verdict.chosen().and_then(|at| candidates.get(position)?.get(at));
            let Some(chosen) = chosen else { continue };
            work.records.insert(*position, chosen.clone());
            if taken {
                work.filled.push(*position);
            }
        }
        // The daemon would rebuild an unsound segment when it opens it: do the same now.
        let rebuild = !segment.sound && segment.lies.is_some() && !work.records.is_empty();
        (!work.filled.is_empty() || rebuild).then_some(work)
    }
}
