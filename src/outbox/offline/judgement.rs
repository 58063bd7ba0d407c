//! A lane, judged: what is to stand at each of its positions.

use std::collections::BTreeMap;

use pgw_core::transaction::Position;

use crate::offline::inspect::LaneInspection;
use crate::offline::plan::{self, Anchor, Candidates, FoundRecord, Part, PositionVerdict, judge};

/// One lane, judged.
pub(super) struct LaneJudgement {
    pub(super) inspection: LaneInspection,
    /// What was found in each segment, and elsewhere for what is missing there.
    pub(super) candidates: BTreeMap<u64, Candidates>,
    pub(super) verdicts: BTreeMap<u64, BTreeMap<Position, PositionVerdict>>,
}

/// What a segment is to hold.
#[derive(Debug, Default)]
pub(super) struct SegmentWork {
    pub(super) records: BTreeMap<Position, FoundRecord>,
    /// Those of them that were missing.
    pub(super) filled: Vec<Position>,
}

/// Judges a lane from its newest segment to its oldest: each says what the one before it must end with.
pub(super) fn judged(
    inspection: LaneInspection,
    sources: &BTreeMap<Position, Vec<plan::FoundRecord>>,
) -> LaneJudgement {
    let (missing, released, anchors) =
        (inspection.missing().to_vec(), inspection.released(), inspection.anchors());
    let (mut all, mut verdicts) = (BTreeMap::new(), BTreeMap::new());
    let mut carried: Option<Anchor> = None;
    for (number, segment) in inspection.segments.iter().rev() {
        let (first, last) = (segment.span.base, segment.last);
        if first > last {
            continue;
        }
        if segment.whole {
            let found = segment.found.get(&first).and_then(|found| found.first());
            carried = found.map(|f| Anchor { position: first - 1, epoch: f.epoch, chain: f.previous });
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
        let anchors: Vec<Anchor> = anchors.iter().copied().chain(carried).collect();
        let part = Part { first, last, missing: &missing, released: &released, anchors: &anchors };
        let judged = judge(&part, &candidates);
        carried = judged.before;
        all.insert(*number, candidates);
        verdicts.insert(*number, judged.verdicts);
    }
    LaneJudgement { inspection, candidates: all, verdicts }
}

impl LaneJudgement {
    /// The positions for which another copy would help.
    pub(super) fn wanting(&self) -> impl Iterator<Item = Position> + '_ {
        self.verdicts.values().flatten().filter(|(_, verdict)| verdict.is_wanting()).map(|(p, _)| *p)
    }

    /// What is to stand at each position of a segment, and which of it was missing. `None`: the segment is left as it is.
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
        // An unsound one the daemon would carving when it opens it: the same, earlier.
        let salvage = !segment.sound && segment.lies.is_some() && !work.records.is_empty();
        (!work.filled.is_empty() || salvage).then_some(work)
    }
}
