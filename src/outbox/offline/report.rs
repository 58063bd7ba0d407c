//! What a person is told: where everything is, in ranges, and whom to ask for the rest.

use std::path::PathBuf;

use pgw_core::transaction::{Lane, Position, rfc3339};
use serde::Serialize;

use crate::offline::judgement::Judgement;
use crate::offline::plan;
use crate::offline::plan::Verdict;
use crate::offline::sources::Beside;

/// All of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// It was done; otherwise nothing was written, and this is what would be done.
    pub done: bool,
    /// Small files without which no daemon starts, and that are written anew from what the records say.
    pub remade: Vec<String>,
    /// Lanes whose unconfirmed transactions have new numbers now, as what is back was left out when they were last numbered.
    pub renumbered: Vec<Lane>,
    /// Each lane of the store.
    pub lanes: Vec<LaneReport>,
    /// What each of the places that a person named gave.
    pub from: Vec<From>,
}

/// A place that a person named.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct From {
    /// Which.
    pub path: String,
    /// Records of this store found there at positions that need one, fitting or not.
    pub records: u64,
    /// Files there that cannot be opened; the others count.
    pub unreadable_files: Vec<String>,
}

/// One lane.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LaneReport {
    /// Which.
    pub lane: Lane,
    /// The first position that is kept.
    pub first: Position,
    /// The last one that was accepted.
    pub last: Position,
    /// The hub has confirmed through this one.
    pub confirmed: Position,
    /// Positions that can be read where they belong.
    pub read: u64,
    /// Positions that a person has released before: they stay so.
    pub released: u64,
    /// Positions that could not be read where they belong.
    pub missing: u64,
    /// What was found of them and fits: taken in, or would be.
    pub saved: Vec<Found>,
    /// What was found and nothing vouches for: taken in only where a person says so.
    pub unproven: Vec<Found>,
    /// What is not to be had.
    pub lost: Vec<Lost>,
    /// Positions that can be read, but whose chain value is not the one that what follows names.
    pub contradicted: Vec<(Position, Position)>,
    /// Segments that are written anew.
    pub rewritten: Vec<Rewritten>,
    /// Bytes in its segments that the disk could not read.
    pub unreadable_bytes: u64,
}

/// Records that were found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Found {
    /// First position.
    pub from: Position,
    /// Last position.
    pub through: Position,
    /// The segment's directory, or the file.
    pub found_in: String,
}

/// Positions that are not to be had.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Lost {
    /// First position.
    pub from: Position,
    /// Last position.
    pub through: Position,
    /// What stands before them, if anything.
    pub before: Option<Neighbour>,
    /// What stands behind them.
    pub after: Option<Neighbour>,
    /// The hub has confirmed them: only this box's copies are gone.
    pub confirmed: bool,
}

/// A record beside what is lost: its time and sender say who can be asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Neighbour {
    /// Its position.
    pub position: Position,
    /// When it was accepted, RFC 3339.
    pub time: String,
    /// Its CloudEvents `source`.
    pub source: String,
}

/// A segment that is written anew.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Rewritten {
    /// Which.
    pub segment: u64,
    /// Records in the new one.
    pub records: u64,
    /// How many of them it lacked.
    pub filled: u64,
    /// sled would not have opened the old one as it is, or it was gone.
    pub unsound: bool,
}

impl LaneReport {
    /// Positions that are to be had, and were missing.
    #[must_use]
    pub fn saved_count(&self) -> u64 {
        count(&self.saved)
    }

    /// Positions that nothing vouches for.
    #[must_use]
    pub fn unproven_count(&self) -> u64 {
        count(&self.unproven)
    }

    /// Positions that are not to be had, and that the hub does not have either.
    #[must_use]
    pub fn lost_count(&self) -> u64 {
        let unconfirmed = self.lost.iter().filter(|lost| !lost.confirmed);
        unconfirmed.map(|lost| lost.through + 1 - lost.from).sum()
    }
}

fn count(found: &[Found]) -> u64 {
    found.iter().map(|found| found.through + 1 - found.from).sum()
}

/// What each of the places that a person named gave.
pub(super) fn from(beside: &Beside, places: &[PathBuf]) -> Vec<From> {
    let told = |place: &PathBuf| {
        let (records, unreadable) = beside.given_by(place);
        let unreadable_files = unreadable.iter().map(|file| file.display().to_string()).collect();
        From { path: place.display().to_string(), records, unreadable_files }
    };
    places.iter().map(told).collect()
}

/// Tells of one lane.
pub(super) fn lane(judgement: &Judgement, beside: &Beside, unproven: bool) -> LaneReport {
    let look = &judgement.look;
    let first = look.pieces.values().next().map_or(look.tail + 1, |piece| piece.extent.base);
    let confirmed = look.mark.map_or(0, |mark| mark.position);
    let mut report = LaneReport {
        lane: look.lane.clone(),
        first,
        last: look.tail,
        confirmed,
        read: 0,
        released: 0,
        missing: 0,
        saved: Vec::new(),
        unproven: Vec::new(),
        lost: Vec::new(),
        contradicted: Vec::new(),
        rewritten: Vec::new(),
        unreadable_bytes: look.pieces.values().map(|piece| piece.unreadable_bytes).sum(),
    };
    for (ordinal, piece) in &look.pieces {
        let Some(verdicts) = judgement.verdicts.get(ordinal) else {
            report.read += (piece.last + 1).saturating_sub(piece.extent.base);
            continue;
        };
        for (position, verdict) in verdicts {
            let candidates = judgement.candidates.get(ordinal).and_then(|all| all.get(position));
            let chosen = verdict.chosen().and_then(|at| candidates?.get(at));
            let place = || {
                chosen.map(|found| match beside.place_of(*position, found.tag) {
                    Some(place) if !found.own => place,
                    _ => piece.place.display().to_string(),
                })
            };
            if matches!(verdict, Verdict::Fits(_) | Verdict::Unproven(_) | Verdict::Lost) {
                report.missing += 1;
            }
            match verdict {
                Verdict::Stands(_) => report.read += 1,
                Verdict::Contradicts(_) => {
                    report.read += 1;
                    extend(&mut report.contradicted, *position);
                }
                Verdict::Released(_) => report.released += 1,
                Verdict::Fits(_) => add(&mut report.saved, *position, place()),
                Verdict::Unproven(_) => add(&mut report.unproven, *position, place()),
                Verdict::Lost => lost(&mut report, judgement, *position),
            }
        }
        if let Some(work) = judgement.work(*ordinal, unproven) {
            report.rewritten.push(Rewritten {
                segment: *ordinal,
                records: work.records.len() as u64,
                filled: work.filled.len() as u64,
                unsound: !piece.sound,
            });
        }
    }
    for lost in &mut report.lost {
        lost.after = neighbour(judgement, lost.through + 1);
    }
    report
}

fn lost(report: &mut LaneReport, judgement: &Judgement, position: Position) {
    let confirmed = position <= report.confirmed;
    match report.lost.last_mut() {
        Some(lost) if lost.through + 1 == position && lost.confirmed == confirmed => lost.through = position,
        _ => report.lost.push(Lost {
            from: position,
            through: position,
            before: neighbour(judgement, position - 1),
            after: None,
            confirmed,
        }),
    }
}

fn add(list: &mut Vec<Found>, position: Position, place: Option<String>) {
    let found_in = place.unwrap_or_default();
    match list.last_mut() {
        Some(last) if last.through + 1 == position && last.found_in == found_in => last.through = position,
        _ => list.push(Found { from: position, through: position, found_in }),
    }
}

fn extend(ranges: &mut Vec<(Position, Position)>, position: Position) {
    match ranges.last_mut() {
        Some((_, last)) if *last + 1 == position => *last = position,
        _ => ranges.push((position, position)),
    }
}

/// What stands, or will stand, at a position.
fn neighbour(judgement: &Judgement, position: Position) -> Option<Neighbour> {
    let (ordinal, piece) = judgement
        .look
        .pieces
        .iter()
        .find(|(_, piece)| (piece.extent.base..=piece.last).contains(&position))?;
    let chosen: &plan::Found = match judgement.verdicts.get(ordinal) {
        Some(verdicts) => {
            let at = verdicts.get(&position).copied().and_then(Verdict::chosen)?;
            judgement.candidates.get(ordinal)?.get(&position)?.get(at)?
        }
        None => piece.found.get(&position)?.first()?,
    };
    Some(Neighbour { position, time: rfc3339(chosen.time), source: chosen.sender.as_ref().to_owned() })
}
