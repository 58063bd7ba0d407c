//! Fills the missing records that it can: writes a new segment beside the old one, syncs it and reads it back. Only then it
//! sets the old one aside by rename and puts the new one in its place, and after that it updates the segment table.
//!
//! Nothing is deleted. After a kill at any moment it can be run again, or the daemon can be started: the old segment
//! or the new one is in its place, or the finished one beside it ([`finish_replacements`]).
//!
//! [`finish_replacements`]: crate::guard::replace::finish_replacements

use std::fs;
use std::io;
use std::ops::ControlFlow;
use std::path::Path;

use pgw_core::transaction::Position;

use crate::crypt::seal::Sealer;
use crate::files;
use crate::guard::carve::scan_directory;
use crate::guard::replace::{replace, step};
use crate::guard::segment::{Segment, SegmentError, SegmentHeader, Span};
use crate::offline::error::RepairError;
use crate::offline::inspect::{LaneInspection, SegmentInspection};
use crate::offline::lane_plan::{LanePlan, SegmentWork};
use crate::offline::sources::Sources;
use crate::state::lane_epochs::{LaneEpochs, copied};
use crate::state::layout::lane_file;
use crate::state::segment_table::SegmentTable;

fn failed(action: &'static str, path: &Path) -> impl FnOnce(SegmentError) -> RepairError {
    let path = path.to_owned();
    move |error| match error {
        SegmentError::Files(source) => RepairError::Files { action, path, source },
        other => RepairError::Files { action, path, source: io::Error::other(other) },
    }
}

/// Carries out a lane's plan.
pub(super) fn apply(
    (store, owner): (&Path, Option<(u32, u32)>),
    sealer: &Sealer,
    lane_plan: &LanePlan,
    sources: &Sources,
    unproven: bool,
) -> Result<(), RepairError> {
    let inspection = &lane_plan.inspection;
    let mut table = inspection.table.clone();
    for (number, inspected) in &inspection.segments {
        let Some(work) = lane_plan.work(*number, unproven) else { continue };
        let bytes = rewrite((store, owner), sealer, inspection, (*number, inspected), &work, sources)?;
        if let Some(table) = &mut table {
            update_table((store, owner), inspection, table, (*number, inspected), &work, bytes)?;
        }
    }
    Ok(())
}

/// Writes a new segment and puts it in its place. Returns the payload's bytes.
fn rewrite(
    (store, owner): (&Path, Option<(u32, u32)>),
    sealer: &Sealer,
    inspection: &LaneInspection,
    (number, inspected): (u64, &SegmentInspection),
    work: &SegmentWork,
    sources: &Sources,
) -> Result<u64, RepairError> {
    let place = inspected.place.as_path();
    let fresh = place.with_extension("new");
    // It is unfinished: a finished one would be in its place by now.
    if fresh.exists() {
        fs::remove_dir_all(&fresh).map_err(RepairError::cannot("remove", &fresh))?;
    }
    let own = match &inspected.lies {
        Some(lies) => scan_directory(lies).map_err(RepairError::cannot("read", lies))?,
        None => scan_of_nothing(),
    };
    let written = || -> Result<(), SegmentError> {
        if let Some(parent) = place.parent() {
            files::create_directory(parent).map_err(SegmentError::Files)?;
        }
        let segment = Segment::create(&fresh)?;
        segment.begin(&header(inspection, number, inspected)?)?;
        for (position, found) in &work.records {
            let name = (*position, found.tag);
            let carved = if found.own { own.record(name) } else { sources.record(name.0, name.1) };
            let changed = || io::Error::other("a record that was found before can no longer be read");
            let carved = carved.ok_or_else(changed).map_err(SegmentError::Files)?;
            segment.append(*position, &carved.record)?;
        }
        segment.barrier()?;
        step(place).map_err(SegmentError::Files)
    };
    written().map_err(failed("write", &fresh))?;
    let bytes = read_back(sealer, inspection, &fresh, work)?;
    if owner.is_some() {
        let given = files::create_directory(&store.join("aside")).and_then(|()| files::give_to_owner(store));
        given.map_err(RepairError::cannot("give to the store's owner", &fresh))?;
    }
    replace(store, (&inspection.lane, number), place, &fresh)
        .map_err(RepairError::cannot("replace", place))?;
    Ok(bytes)
}

fn scan_of_nothing() -> crate::guard::carve::Scan {
    crate::guard::carve::Scan::default()
}

fn header(
    inspection: &LaneInspection,
    number: u64,
    inspected: &SegmentInspection,
) -> Result<SegmentHeader, SegmentError> {
    if let Some(header) = &inspected.header {
        return Ok(header.clone());
    }
    let LaneEpochs { lane_id, epochs, .. } = inspection.epochs.clone().ok_or(SegmentError::Header)?;
    let (lane, numbering) = (inspection.id, copied(&epochs));
    let Span { base, previous, .. } = inspected.span;
    Ok(SegmentHeader { lane, number, base, previous, lane_id, numbering, predecessor: None })
}

/// Opens the new segment and compares every record with the chosen one: seal, place, chain value.
fn read_back(
    sealer: &Sealer,
    inspection: &LaneInspection,
    fresh: &Path,
    work: &SegmentWork,
) -> Result<u64, RepairError> {
    let segment = Segment::open(fresh, 0).map_err(failed("open", fresh))?;
    let mut chosen = work.records.iter();
    let (mut good, mut bytes) = (true, 0);
    let visited = segment.visit(1, Position::MAX, &mut |position, record| {
        let opened = record.and_then(|record| sealer.open(&record));
        good = match (opened, chosen.next()) {
            (Ok((header, transaction)), Some((wanted, found))) => {
                bytes += transaction.body.len() as u64;
                (position, header.position, header.chain) == (*wanted, *wanted, found.chain)
                    && inspection.is_sealed_here(&header, &transaction)
            }
            _ => false,
        };
        if good { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    });
    visited.map_err(failed("read", fresh))?;
    if good && chosen.next().is_none() { Ok(bytes) } else { Err(RepairError::ReadBack(fresh.to_owned())) }
}

/// Removes recovered records from the missing ones; a segment that was gone is in the segment table again.
fn update_table(
    (store, owner): (&Path, Option<(u32, u32)>),
    inspection: &LaneInspection,
    table: &mut SegmentTable,
    (number, inspected): (u64, &SegmentInspection),
    work: &SegmentWork,
    bytes: u64,
) -> Result<(), RepairError> {
    let before = table.clone();
    work.filled.iter().for_each(|position| table.missing.fill(*position));
    let span = Span { bytes, ..inspected.span };
    table.segments.entry(number).or_insert(span);
    let path = lane_file(store, &inspection.lane, "ledger");
    if *table != before {
        step(&inspected.place).map_err(RepairError::cannot("write", &path))?;
        files::save_for(owner, &path, table).map_err(RepairError::cannot("write", &path))?;
    }
    Ok(())
}
