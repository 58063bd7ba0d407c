//! How the newest segment of a lane ends.

use std::ops::ControlFlow;

use pgw_core::chain::ChainValue;
use pgw_core::transaction::Position;

use crate::guard::segment::{Segment, SegmentError};
use crate::pipeline::startup::segments::LaneContext;
use crate::quarantine::INCOMPLETE;
use crate::types::OutboxAlarm;

/// Records at the end of the newest segment from which its payload is estimated.
const SAMPLE_RECORDS: u64 = 32;
const SAMPLE_BYTES: u64 = 4 << 20;

/// How the newest segment ends.
#[derive(Default)]
pub(super) struct SegmentEnd {
    pub(super) position: Option<Position>,
    pub(super) chain: Option<ChainValue>,
    pub(super) oldest: Option<u64>,
    pub(super) average_bytes: u64,
    pub(super) trimmed: bool,
}

/// Reads the last record; one that a crash truncated before it was answered is trimmed and goes to quarantine.
pub(super) fn last_record(
    context: &LaneContext<'_>,
    segment: &Segment,
    base: Position,
    alarms: &mut Vec<OutboxAlarm>,
) -> Result<SegmentEnd, SegmentError> {
    let LaneContext { lane, sealer, checkpoint, quarantine, .. } = *context;
    let mut end = SegmentEnd::default();
    let vouched = checkpoint.last(lane).map_or(0, |(position, _)| position);
    while let Some(last) = segment.last_position()?.filter(|last| *last >= base) {
        let opened = segment.first(last, last)?.map(|(_, bytes)| bytes.and_then(|bytes| sealer.open(&bytes)));
        match opened {
            Some(Ok((header, _))) => {
                end.position = Some(last);
                end.chain = Some(header.chain);
                break;
            }
            // A crash truncated it before it was answered. Its pieces are kept nevertheless.
            _ if last > vouched && !end.trimmed => {
                quarantine
                    .keep_own(INCOMPLETE, lane.as_str(), &segment.pieces(last)?)
                    .map_err(SegmentError::Files)?;
                segment.remove(last)?;
                segment.barrier()?;
                end.trimmed = true;
                tracing::warn!(%lane, position = last, "Trimmed an incomplete last record");
                alarms.push(OutboxAlarm {
                    code: "tail.trimmed",
                    detail: format!(
                        "position {last} of lane {lane} was truncated by a crash before it was answered"
                    ),
                });
            }
            // It was answered, so it stays. A reader will find it damaged, and carving may find a whole copy.
            _ => {
                end.position = Some(last);
                end.trimmed = true;
                break;
            }
        }
    }
    if let Some(last) = end.position {
        let sample_from = last.saturating_sub(SAMPLE_RECORDS - 1).max(base);
        let (mut records, mut bytes) = (0, 0);
        segment.visit(sample_from, last, &mut |_, record| {
            if let Ok((_, transaction)) = record.and_then(|record| sealer.open(&record)) {
                records += 1;
                bytes += transaction.body.len() as u64;
            }
            if bytes < SAMPLE_BYTES { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        end.average_bytes = bytes / records.max(1);
        let oldest = segment.first(base, last)?;
        end.oldest = oldest.and_then(|(_, bytes)| sealer.open(&bytes.ok()?).ok()).map(|(_, t)| t.time);
    }
    Ok(end)
}
