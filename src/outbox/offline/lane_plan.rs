//! The plan for a whole lane: which record belongs at each of its positions.

use std::collections::BTreeMap;

use pgw_core::transaction::Position;

use crate::offline::inspect::LaneInspection;
use crate::offline::plan::{self, Anchor, Candidates, FoundRecord, Part, PositionVerdict, decide};

/// The plan for one lane.
pub(super) struct LanePlan {
    pub(super) inspection: LaneInspection,
    /// The records found in each segment, and elsewhere for its missing ones.
    pub(super) candidates: BTreeMap<u64, Candidates>,
    pub(super) verdicts: BTreeMap<u64, BTreeMap<Position, PositionVerdict>>,
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
    let (mut all, mut verdicts) = (BTreeMap::new(), BTreeMap::new());
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
        all.insert(*number, candidates);
        verdicts.insert(*number, decisions.verdicts);
    }
    LanePlan { inspection, candidates: all, verdicts }
}

impl LanePlan {
    /// The positions for which another copy would help.
    pub(super) fn wanting(&self) -> impl Iterator<Item = Position> + '_ {
        self.verdicts.values().flatten().filter(|(_, verdict)| verdict.is_wanting()).map(|(p, _)| *p)
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
