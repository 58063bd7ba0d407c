//! A lane's segments at start: the newest is opened, the older ones are known from the segment table; a damaged one is rebuilt.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;

use pgw_core::delivery::Numbering;
use pgw_core::transaction::{Lane, LaneName, Position};
use uuid::Uuid;

use crate::crypt::seal::Sealer;
use crate::descriptor::failed;
use crate::errors::OpenError;
use crate::guard::carve::was_begun;
use crate::guard::segment::{DATABASE_FILE, Segment, SegmentError, SegmentHeader, Span};
use crate::pipeline::rebuild::{DamagedSegment, rebuild_segment, summary};
use crate::pipeline::space::Ballast;
use crate::pipeline::trash::discard;
use crate::quarantine::Quarantine;
use crate::state::checkpoint::TailCheckpoint;
use crate::state::segment_table::SegmentTable;
use crate::types::OutboxAlarm;

/// Makes an [`OpenError`] of a segment's error.
pub(super) fn segment_failed(path: &Path) -> impl FnOnce(SegmentError) -> OpenError {
    let path = path.to_owned();
    move |error| OpenError::Io {
        action: "open the segment",
        path,
        source: match error {
            SegmentError::Files(source) => source,
            other => io::Error::other(other),
        },
    }
}

/// Number, handle and header of the newest segment.
pub(super) type Newest = (u64, Segment, SegmentHeader);

/// Everything that opening a lane's segments needs.
pub(super) struct LaneContext<'a> {
    pub(super) store: &'a Path,
    pub(super) lane: &'a Lane,
    pub(super) full_name: LaneName,
    pub(super) id: u16,
    pub(super) directory: &'a Path,
    pub(super) sealer: &'a Sealer,
    pub(super) checkpoint: &'a TailCheckpoint,
    pub(super) quarantine: &'a Quarantine,
    pub(super) ballast: &'a Ballast,
    pub(super) lane_id: Option<Uuid>,
    pub(super) numbering: Option<&'a Numbering>,
}

/// The newest segment that was begun. Newer ones were only made ahead, and are removed; a damaged one is rebuilt.
pub(super) fn newest_begun(
    context: &LaneContext<'_>,
    table: Option<&SegmentTable>,
    numbers: &mut BTreeSet<u64>,
    alarms: &mut Vec<OutboxAlarm>,
) -> Result<Option<Newest>, OpenError> {
    while let Some(number) = numbers.last().copied() {
        let path = context.directory.join(format!("{number:010}"));
        // A crash while a segment was made ahead leaves one that sled may refuse; it had no records.
        let made_ahead = table.is_none_or(|table| !table.segments.contains_key(&number));
        if made_ahead && !was_begun(&path).map_err(failed("read", &path))? {
            discard(context.store, &path).map_err(failed("remove", &path))?;
            numbers.remove(&number);
            continue;
        }
        match open_or_carve(context, table, number, &path, None, alarms)? {
            (segment, Some(header)) => {
                // Recovery must be durable: the records read from here on must survive the next power cut too.
                segment.barrier().map_err(segment_failed(&path))?;
                return Ok(Some((number, segment, header)));
            }
            (segment, None) => {
                drop(segment);
                discard(context.store, &path).map_err(failed("remove", &path))?;
                numbers.remove(&number);
            }
        }
    }
    Ok(None)
}

/// A power cut while a segment is made can leave its directory without a database. A begun segment had every file synced
/// first; if its database vanishes, the segment table or the tail checkpoint has the segment.
fn is_half_made(path: &Path, table: Option<&SegmentTable>, number: u64) -> bool {
    !path.join(DATABASE_FILE).exists() && table.is_none_or(|table| !table.segments.contains_key(&number))
}

/// Opens a segment, and rebuilds it first if it is damaged.
fn open_or_carve(
    context: &LaneContext<'_>,
    table: Option<&SegmentTable>,
    number: u64,
    path: &Path,
    through: Option<Position>,
    alarms: &mut Vec<OutboxAlarm>,
) -> Result<(Segment, Option<SegmentHeader>), OpenError> {
    let checkpoint = context.checkpoint.last(context.lane);
    let durable = through.or(checkpoint.map(|(position, _)| position)).unwrap_or(0);
    let opened = match open_begun(path, durable) {
        Err(error) if error.is_full() => {
            context.ballast.release().map_err(failed("release the ballast for", path))?;
            open_begun(path, durable)
        }
        other => other,
    };
    let opened = match opened {
        Err(error) if error.is_damage() => {
            tracing::error!(lane = %context.lane, segment = number, error = %error, "A segment is damaged and is being carved");
            let damaged = DamagedSegment {
                store: context.store,
                lane: (context.lane, context.id),
                number,
                directory: path,
                span: table.and_then(|table| table.segments.get(&number).copied()),
                lane_id: context.lane_id,
                numbering: context.numbering,
                known: checkpoint,
                through,
            };
            let outcome = rebuild_segment(&damaged, context.sealer, context.quarantine)
                .map_err(segment_failed(path))?;
            let lost = outcome
                .range
                .map_or(0, |(first, last)| (last.max(durable) + 1 - first).saturating_sub(outcome.records));
            let detail = summary(context.lane, number, &outcome, lost);
            alarms.push(OutboxAlarm { code: "salvaged", detail });
            open_begun(path, durable)
        }
        other => other,
    };
    opened.map_err(segment_failed(path))
}

/// Opens a segment and its header. One without a header that holds records is damaged.
fn open_begun(path: &Path, durable: Position) -> Result<(Segment, Option<SegmentHeader>), SegmentError> {
    let segment = Segment::open(path, durable)?;
    let header = segment.header()?;
    if header.is_none() && segment.last_position()?.is_some() {
        return Err(SegmentError::Header);
    }
    Ok((segment, header))
}

/// The segments before the newest.
pub(super) struct Older {
    pub(super) segments: BTreeMap<u64, Span>,
    /// The segment table did not have all of them.
    pub(super) stale: bool,
}

/// The segments before the newest: from the segment table, the newest one's header, and only then from the segments.
pub(super) fn older(
    context: &LaneContext<'_>,
    table: Option<&SegmentTable>,
    numbers: &BTreeSet<u64>,
    newest: u64,
    header: &SegmentHeader,
    alarms: &mut Vec<OutboxAlarm>,
) -> Result<Older, OpenError> {
    let mut segments: BTreeMap<u64, Span> = BTreeMap::new();
    let mut stale = false;
    let mut next_base = header.base;
    for number in numbers.range(..newest).rev().copied() {
        let from_header =
            header.predecessor.filter(|(predecessor, _)| *predecessor == number).map(|(_, span)| span);
        let known = from_header.or_else(|| table.and_then(|table| table.segments.get(&number).copied()));
        let span = match known {
            Some(span) => span,
            None => {
                stale = true;
                let path = context.directory.join(format!("{number:010}"));
                if is_half_made(&path, table, number) {
                    discard(context.store, &path).map_err(failed("remove", &path))?;
                    continue;
                }
                match open_or_carve(context, table, number, &path, Some(next_base - 1), alarms)? {
                    (_, Some(header)) => {
                        Span { base: header.base, previous: header.previous, bytes: 0, oldest: None }
                    }
                    (segment, None) => {
                        // Made ahead, but the writer needed one sooner and made its own.
                        drop(segment);
                        discard(context.store, &path).map_err(failed("remove", &path))?;
                        continue;
                    }
                }
            }
        };
        if span.base < next_base {
            next_base = span.base;
            segments.insert(number, span);
        } else {
            // A later segment began at the same position: this one has no answered record.
            let path = context.directory.join(format!("{number:010}"));
            discard(context.store, &path).map_err(failed("remove", &path))?;
        }
    }
    Ok(Older { segments, stale })
}
