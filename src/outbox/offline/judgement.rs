//! A lane, judged: what is to stand at each of its positions.

use std::collections::BTreeMap;

use pgw_core::transaction::Position;

use crate::offline::inspect::Look;
use crate::offline::plan;
use crate::offline::plan::{Anchor, Candidates, Found, Part, Verdict, judge};

/// One lane, judged.
pub(super) struct Judgement {
    pub(super) look: Look,
    /// What was found in each segment, and elsewhere for what is missing there.
    pub(super) candidates: BTreeMap<u64, Candidates>,
    pub(super) verdicts: BTreeMap<u64, BTreeMap<Position, Verdict>>,
}

/// What a segment is to hold.
#[derive(Debug, Default)]
pub(super) struct Work {
    pub(super) records: BTreeMap<Position, Found>,
    /// Those of them that were missing.
    pub(super) filled: Vec<Position>,
}

/// Judges a lane from its newest segment to its oldest: each says what the one before it must end with.
pub(super) fn judged(look: Look, beside: &BTreeMap<Position, Vec<plan::Found>>) -> Judgement {
    let (holes, released, anchors) = (look.holes().to_vec(), look.released(), look.anchors());
    let (mut all, mut verdicts) = (BTreeMap::new(), BTreeMap::new());
    let mut carried: Option<Anchor> = None;
    for (ordinal, piece) in look.pieces.iter().rev() {
        let (first, last) = (piece.extent.base, piece.last);
        if first > last {
            continue;
        }
        if piece.whole {
            let found = piece.found.get(&first).and_then(|found| found.first());
            carried = found.map(|f| Anchor { position: first - 1, epoch: f.epoch, chain: f.previous });
            continue;
        }
        let mut candidates = piece.found.clone();
        for (position, found) in beside.range(first..=last) {
            let known = candidates.entry(*position).or_default();
            for found in found {
                if known.iter().all(|known| known.chain != found.chain) {
                    known.push(found.clone());
                }
            }
        }
        let anchors: Vec<Anchor> = anchors.iter().copied().chain(carried).collect();
        let part = Part { first, last, holes: &holes, released: &released, anchors: &anchors };
        let judged = judge(&part, &candidates);
        carried = judged.before;
        all.insert(*ordinal, candidates);
        verdicts.insert(*ordinal, judged.verdicts);
    }
    Judgement { look, candidates: all, verdicts }
}

impl Judgement {
    /// The positions for which another copy would help.
    pub(super) fn wanting(&self) -> impl Iterator<Item = Position> + '_ {
        self.verdicts.values().flatten().filter(|(_, verdict)| verdict.is_wanting()).map(|(p, _)| *p)
    }

    /// What is to stand at each position of a segment, and which of it was missing. `None`: the segment is left as it is.
    pub(super) fn work(&self, ordinal: u64, unproven: bool) -> Option<Work> {
        let (piece, verdicts) = (self.look.pieces.get(&ordinal)?, self.verdicts.get(&ordinal)?);
        let candidates = self.candidates.get(&ordinal)?;
        let mut work = Work::default();
        for (position, verdict) in verdicts {
            let taken = match verdict {
                Verdict::Fits(_) => true,
                Verdict::Unproven(_) if unproven => true,
                Verdict::Unproven(_) => continue,
                _ => false,
            };
            let chosen = verdict.chosen().and_then(|at| candidates.get(position)?.get(at));
            let Some(chosen) = chosen else { continue };
            work.records.insert(*position, chosen.clone());
            if taken {
                work.filled.push(*position);
            }
        }
        // An unsound one the daemon would salvage when it opens it: the same, earlier.
        let salvage = !piece.sound && piece.lies.is_some() && !work.records.is_empty();
        (!work.filled.is_empty() || salvage).then_some(work)
    }
}
