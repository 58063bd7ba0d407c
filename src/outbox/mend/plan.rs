//! What stands, what fits a hole, and what is lost: decided by chain values alone; no IO.
//!
//! A record fits when something that comes *after* it vouches for it: the next record names its chain value as the
//! one before it, or the sidecar, a confirmed mark, a void or a kept end of an epoch has that value. That it follows from the
//! record before it proves less: a record that nobody was told of, and that a power cut took, follows from it as well, and so does one of
//! a copy of this box that went on by itself. Such a record is *unproven*, and a person decides.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::chain::ChainValue;
use crate::transaction::{Epoch, Position, UnixMillis};

/// A record that was found, without its content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    /// Epoch at acceptance.
    pub(super) epoch: Epoch,
    /// Chain value before it, in that epoch.
    pub(super) previous: ChainValue,
    /// Its chain value.
    pub(super) chain: ChainValue,
    /// CRC32C of its sealed bytes: with the position, its name in a scan.
    pub(super) tag: u32,
    /// It lies where it belongs, in its own segment.
    pub(super) own: bool,
    /// When it was accepted, and the sender that its transaction names.
    pub(super) time: UnixMillis,
    pub(super) sender: Arc<str>,
}

/// All that was found, by position.
pub(super) type Candidates = BTreeMap<Position, Vec<Found>>;

/// A chain value that is known from elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Anchor {
    pub(super) position: Position,
    /// In which it holds.
    pub(super) epoch: Epoch,
    pub(super) chain: ChainValue,
}

/// A released range, and the chain value before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Released {
    pub(super) from: Position,
    pub(super) through: Position,
    pub(super) epoch: Epoch,
    pub(super) previous: ChainValue,
}

/// The positions of one segment, and what is known of them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Part<'a> {
    pub(super) first: Position,
    pub(super) last: Position,
    /// What the store gives up as lost.
    pub(super) holes: &'a [(Position, Position)],
    pub(super) released: &'a [Released],
    pub(super) anchors: &'a [Anchor],
}

/// What becomes of a position; the numbers are places among its candidates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It lies in its segment and can be read there.
    Stands(usize),
    /// It can be read there, and what comes after it names another chain value.
    Contradicts(usize),
    /// It is missing, and this one is vouched for by what comes after it.
    Fits(usize),
    /// It is missing; this is the only one that was found, nothing contradicts it and nothing vouches for it.
    Unproven(usize),
    /// It is released for good, whatever was found.
    Released(Option<usize>),
    /// Nothing that was found belongs here.
    Lost,
}

impl Verdict {
    /// Which candidate stands here, or would.
    pub(super) fn chosen(self) -> Option<usize> {
        match self {
            Self::Stands(at) | Self::Contradicts(at) | Self::Fits(at) | Self::Unproven(at) => Some(at),
            Self::Released(own) => own,
            Self::Lost => None,
        }
    }

    /// Whether another copy of the record would help.
    pub(super) fn is_wanting(self) -> bool {
        matches!(self, Self::Contradicts(_) | Self::Unproven(_) | Self::Lost)
    }
}

/// What became of a part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Judged {
    pub(super) verdicts: BTreeMap<Position, Verdict>,
    /// What the last position before the part must have, where its first record says so.
    pub(super) before: Option<Anchor>,
}

fn within(ranges: &[(Position, Position)], position: Position) -> bool {
    ranges.iter().any(|(from, through)| (*from..=*through).contains(&position))
}

/// Judges every position of a part, from its end backwards.
pub(super) fn judge(part: &Part<'_>, candidates: &Candidates) -> Judged {
    let mut verdicts = BTreeMap::new();
    // What the one after this position names as the value before it.
    let mut named: Option<Anchor> = None;
    for position in (part.first..=part.last).rev() {
        let found = candidates.get(&position).map_or(&[][..], Vec::as_slice);
        let own = || found.iter().rposition(|found| found.own);
        if let Some(released) = part.released.iter().find(|r| (r.from..=r.through).contains(&position)) {
            verdicts.insert(position, Verdict::Released(own()));
            let Released { epoch, previous, .. } = *released;
            named = (position == released.from).then(|| Anchor {
                position: position.saturating_sub(1),
                epoch,
                chain: previous,
            });
            continue;
        }
        let known: Vec<Anchor> =
            part.anchors.iter().copied().chain(named).filter(|anchor| anchor.position == position).collect();
        let verdict = at_position(position, found, &known, within(part.holes, position), candidates);
        named = match verdict {
            Verdict::Stands(at) | Verdict::Fits(at) => found.get(at),
            _ => None,
        }
        .map(|found| Anchor {
            position: position.saturating_sub(1),
            epoch: found.epoch,
            chain: found.previous,
        });
        verdicts.insert(position, verdict);
    }
    settle_unproven(part, candidates, &mut verdicts);
    Judged { verdicts, before: named.filter(|anchor| anchor.position + 1 == part.first) }
}

fn at_position(
    position: Position,
    found: &[Found],
    known: &[Anchor],
    hole: bool,
    candidates: &Candidates,
) -> Verdict {
    let vouched = |found: &Found| known.iter().any(|a| (a.epoch, a.chain) == (found.epoch, found.chain));
    let contradicted = |found: &Found| !vouched(found) && known.iter().any(|a| a.epoch == found.epoch);
    let of = |own: bool| found.iter().position(|found| found.own == own && vouched(found));
    if let Some(at) = of(true) {
        return if hole { Verdict::Fits(at) } else { Verdict::Stands(at) };
    }
    if let Some(at) = of(false) {
        return Verdict::Fits(at);
    }
    if !hole && found.iter().any(|found| found.own) {
        // As the daemon's own salvage: the one that follows from what is before it, then the one that was found last.
        let before = candidates.get(&position.saturating_sub(1)).map_or(&[][..], Vec::as_slice);
        let follows = found.iter().rposition(|f| f.own && before.iter().any(|b| b.chain == f.previous));
        let at = follows.or(found.iter().rposition(|found| found.own)).unwrap_or_default();
        return if found.get(at).is_some_and(contradicted) {
            Verdict::Contradicts(at)
        } else {
            Verdict::Stands(at)
        };
    }
    // Two that differ, and nothing decides between them: neither.
    let left: Vec<usize> =
        (0..found.len()).filter(|at| found.get(*at).is_some_and(|f| !contradicted(f))).collect();
    let same = |at: &usize| {
        found.get(*at).map(|f| f.chain) == left.first().and_then(|l| found.get(*l)).map(|f| f.chain)
    };
    match left.first() {
        Some(at) if left.iter().all(same) => Verdict::Unproven(*at),
        _ => Verdict::Lost,
    }
}

/// An unproven record must at least follow from what stands before it, and two of them must not contradict each other.
fn settle_unproven(part: &Part<'_>, candidates: &Candidates, verdicts: &mut BTreeMap<Position, Verdict>) {
    let unproven: Vec<Position> =
        verdicts.iter().filter(|(_, v)| matches!(v, Verdict::Unproven(_))).map(|(p, _)| *p).collect();
    let mut refused = Vec::new();
    let chosen = |position: Position, verdicts: &BTreeMap<Position, Verdict>| -> Option<Found> {
        let at = verdicts.get(&position).copied().and_then(Verdict::chosen)?;
        candidates.get(&position)?.get(at).cloned()
    };
    for position in unproven {
        let before = position.saturating_sub(1);
        let (Some(this), Some(previous)) = (chosen(position, verdicts), chosen(before, verdicts)) else {
            continue;
        };
        if this.epoch == previous.epoch && this.previous != previous.chain {
            refused.push(position);
            if matches!(verdicts.get(&before), Some(Verdict::Unproven(_))) {
                refused.push(before);
            }
        }
    }
    for position in refused.into_iter().filter(|position| (part.first..=part.last).contains(position)) {
        verdicts.insert(position, Verdict::Lost);
    }
}
