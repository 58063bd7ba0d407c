//! The report for the operator: where everything is, in ranges, and whom to ask for the rest.

use std::path::PathBuf;

use pgw_core::transaction::{Lane, Position, rfc3339};
use serde::Serialize;

use crate::offline::lane_plan::LanePlan;
use crate::offline::plan::{self, NotPutBack, PositionVerdict};
use crate::offline::sources::Sources;

/// The work that offline repair did, or would do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RepairReport {
    /// The work was done; otherwise nothing was written, and this is what would be done.
    pub done: bool,
    /// Small files that a start needs and that are rewritten from the records.
    pub remade: Vec<String>,
    /// Each lane of the store.
    pub lanes: Vec<LaneReport>,
    /// The result from each place that the operator named.
    pub from: Vec<SourceReport>,
}

/// A place that the operator named.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SourceReport {
    /// The place.
    pub path: String,
    /// Records of this store found there at positions that need one, fitting or not.
    pub records: u64,
    /// Files there that cannot be opened; the others were read.
    pub unreadable_files: Vec<String>,
}

/// One lane.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LaneReport {
    /// The lane.
    pub lane: Lane,
    /// The first position that is kept.
    pub first: Position,
    /// The last one that was accepted.
    pub last: Position,
    /// The hub has confirmed through this one.
    pub confirmed: Position,
    /// Positions that can be read where they belong.
    pub read: u64,
    /// Positions that an operator has written off: they stay so.
    pub released: u64,
    /// Positions that could not be read where they belong.
    pub missing: u64,
    /// Found records for those positions that fit: they were taken, or would be.
    pub saved: Vec<FoundRange>,
    /// Found records that nothing vouches for: taken only on the operator's order.
    pub unproven: Vec<FoundRange>,
    /// Found records of positions that were written off: they went to the quarantine, or would.
    pub written_off: Vec<FoundRange>,
    /// Found records that are not what the digest table names: never taken.
    pub refused: Vec<FoundRange>,
    /// Positions that are lost.
    pub lost: Vec<LostRange>,
    /// Positions that can be read, but whose chain value differs from the one that the next record names.
    pub contradicted: Vec<(Position, Position)>,
    /// Segments that are rewritten.
    pub rewritten: Vec<RewrittenSegment>,
    /// Bytes in its segments that the disk could not read.
    pub unreadable_bytes: u64,
}

/// Records that were found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FoundRange {
    /// First position.
    pub from: Position,
    /// Last position.
    pub through: Position,
    /// The segment's directory, or the file.
    pub found_in: String,
}

/// Lost positions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LostRange {
    /// First position.
    pub from: Position,
    /// Last position.
    pub through: Position,
    /// The record before them, if there is one.
    pub before: Option<Neighbour>,
    /// The record after them, if there is one.
    pub after: Option<Neighbour>,
    /// The hub has confirmed them: only this box's copies are gone.
    pub confirmed: bool,
}

/// A record next to lost ones: its time and sender show who can be asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Neighbour {
    /// Its position.
    pub position: Position,
    /// When it was accepted, RFC 3339.
    pub time: String,
    /// Which system sent it.
    pub sender: String,
}

/// A segment that is rewritten.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RewrittenSegment {
    /// Its number.
    pub segment: u64,
    /// Records in the new one.
    pub records: u64,
    /// How many of them it lacked.
    pub filled: u64,
    /// The old one was unsound or gone.
    pub unsound: bool,
}

impl LaneReport {
    /// Positions that were missing and have been found.
    #[must_use]
    pub fn saved_count(&self) -> u64 {
        count(&self.saved)
    }

    /// Positions that nothing vouches for.
    #[must_use]
    pub fn unproven_count(&self) -> u64 {
        count(&self.unproven)
    }

    /// Records of written-off positions that were found.
    #[must_use]
    pub fn written_off_count(&self) -> u64 {
        count(&self.written_off)
    }

    /// Lost positions that the hub does not have either.
    #[must_use]
    pub fn lost_count(&self) -> u64 {
        let unconfirmed = self.lost.iter().filter(|lost| !lost.confirmed);
        unconfirmed.map(|lost| lost.through + 1 - lost.from).sum()
    }
}

fn count(found: &[FoundRange]) -> u64 {
    found.iter().map(|found| found.through + 1 - found.from).sum()
}

/// The result from each place that the operator named.
pub(super) fn from(sources: &Sources, places: &[PathBuf]) -> Vec<SourceReport> {
    let result = |place: &PathBuf| {
        let (records, unreadable) = sources.given_by(place);
        let unreadable_files = unreadable.iter().map(|file| file.display().to_string()).collect();
        SourceReport { path: place.display().to_string(), records, unreadable_files }
    };
    places.iter().map(result).collect()
}

/// Reports on one lane.
pub(super) fn lane(lane_plan: &LanePlan, sources: &Sources, unproven: bool) -> LaneReport {
    let inspection = &lane_plan.inspection;
    let first = inspection.segments.values().next().map_or(inspection.tail + 1, |segment| segment.span.base);
    let confirmed = inspection.watermark.map_or(0, |watermark| watermark.position);
    let mut report = LaneReport {
        lane: inspection.lane.clone(),
        first,
        last: inspection.tail,
        confirmed,
        read: 0,
        released: 0,
        missing: 0,
        saved: Vec::new(),
        unproven: Vec::new(),
        written_off: Vec::new(),
        refused: Vec::new(),
        lost: Vec::new(),
        contradicted: Vec::new(),
        rewritten: Vec::new(),
        unreadable_bytes: inspection.segments.values().map(|segment| segment.unreadable_bytes).sum(),
    };
    for (number, segment) in &inspection.segments {
        let Some(verdicts) = lane_plan.verdicts.get(number) else {
            report.read += (segment.last + 1).saturating_sub(segment.span.base);
            continue;
        };
        for (position, verdict) in verdicts {
            let candidates = lane_plan.candidates.get(number).and_then(|all| all.get(position));
            let chosen = verdict.chosen().and_then(|at| candidates?.get(at));
            let place = || {
                chosen.map(|found| match sources.place_of(*position, found.tag) {
                    Some(place) if !found.own => place,
                    _ => segment.place.display().to_string(),
                })
            };
            if matches!(
                verdict,
                PositionVerdict::Fits(_) | PositionVerdict::Unproven(_) | PositionVerdict::Lost
            ) {
                report.missing += 1;
            }
            match verdict {
                PositionVerdict::Intact(_) => report.read += 1,
                PositionVerdict::Contradicts(_) => {
                    report.read += 1;
                    extend(&mut report.contradicted, *position);
                }
                PositionVerdict::Released(_) => report.released += 1,
                PositionVerdict::Fits(_) => add(&mut report.saved, *position, place()),
                PositionVerdict::Unproven(_) => add(&mut report.unproven, *position, place()),
                PositionVerdict::Lost => lost(&mut report, lane_plan, *position),
            }
        }
        if let Some(work) = lane_plan.work(*number, unproven) {
            report.rewritten.push(RewrittenSegment {
                segment: *number,
                records: work.records.len() as u64,
                filled: work.filled.len() as u64,
                unsound: !segment.sound,
            });
        }
    }
    not_put_back(&mut report, lane_plan, sources);
    for lost in &mut report.lost {
        lost.after = neighbour(lane_plan, lost.through + 1);
    }
    report
}

/// What was found and goes to the quarantine.
fn not_put_back(report: &mut LaneReport, lane_plan: &LanePlan, sources: &Sources) {
    for (position, kept) in &lane_plan.not_put_back {
        let segment = kept.segment.and_then(|number| lane_plan.inspection.segments.get(&number));
        let own = || segment.map(|segment| segment.place.display().to_string());
        let place = if kept.record.own { own() } else { sources.place_of(*position, kept.record.tag) };
        let list = match kept.why {
            NotPutBack::WrittenOff => &mut report.written_off,
            NotPutBack::Contradicted => &mut report.refused,
        };
        add(list, *position, place);
    }
}

fn lost(report: &mut LaneReport, lane_plan: &LanePlan, position: Position) {
    let confirmed = position <= report.confirmed;
    match report.lost.last_mut() {
        Some(lost) if lost.through + 1 == position && lost.confirmed == confirmed => lost.through = position,
        _ => report.lost.push(LostRange {
            from: position,
            through: position,
            before: neighbour(lane_plan, position - 1),
            after: None,
            confirmed,
        }),
    }
}

fn add(list: &mut Vec<FoundRange>, position: Position, place: Option<String>) {
    let found_in = place.unwrap_or_default();
    match list.last_mut() {
        Some(last) if last.through + 1 == position && last.found_in == found_in => last.through = position,
        _ => list.push(FoundRange { from: position, through: position, found_in }),
    }
}

fn extend(ranges: &mut Vec<(Position, Position)>, position: Position) {
    match ranges.last_mut() {
        Some((_, last)) if *last + 1 == position => *last = position,
        _ => ranges.push((position, position)),
    }
}

/// The record that is, or will be, at a position.
fn neighbour(lane_plan: &LanePlan, position: Position) -> Option<Neighbour> {
    let (number, segment) = lane_plan
        .inspection
        .segments
        .iter()
        .find(|(_, segment)| (segment.span.base..=segment.last).contains(&position))?;
    let chosen: &plan::FoundRecord = match lane_plan.verdicts.get(number) {
        Some(verdicts) => {
            let at = verdicts.get(&position).copied().and_then(PositionVerdict::chosen)?;
            lane_plan.candidates.get(number)?.get(&position)?.get(at)?
        }
        None => segment.found.get(&position)?.first()?,
    };
    Some(Neighbour { position, time: rfc3339(chosen.time), sender: chosen.sender.as_ref().to_owned() })
}
