//! Exports from the outbox into a bundle: waiting transactions, lane by lane, in order.

use std::io::{self, Write};
use std::ops::ControlFlow;

use pgw_bundle::bundle::{Foot, Head, Owner, Writer};
use pgw_core::consequence::Consequence;
use pgw_core::numbering::EpochStart;
use pgw_core::transaction::{Gateway, Lane, Position, Practice, rfc3339, unix_millis_now};
use pgw_core::wire::SCHEMA;
use pgw_core::wire::envelope::Envelope;
use pgw_core::wire::signature::SigningKey;
use pgw_outbox::{Outbox, ReadError};

use crate::listing;
use crate::wire_chain::{Numbered, WireReader};

/// Records and bytes that are read at once.
const BATCH: (usize, usize) = (256, 1 << 20);

/// What a bundle holds of a lane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exported {
    /// The lane.
    pub lane: Lane,
    /// Number of transactions.
    pub count: u64,
    /// Their first and last position.
    pub positions: (Position, Position),
    /// The missing record at which it had to stop.
    pub stopped_before: Option<Position>,
}

/// Why there is no bundle.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The bundle cannot be written.
    #[error("the bundle cannot be written")]
    Write(#[from] io::Error),
    /// The store cannot be read.
    #[error("the outbox cannot be read")]
    Read(#[from] ReadError),
    /// The client has gone.
    #[error("the export was interrupted")]
    Interrupted,
}

impl ExportError {
    /// How the command ends.
    #[must_use]
    pub fn consequence(&self) -> Consequence {
        match self {
            Self::Write(_) => Consequence::FILES,
            Self::Read(error) => error.consequence(),
            Self::Interrupted => Consequence::Retry,
        }
    }
}

/// The first line of a bundle.
#[must_use]
pub fn owner(practice: &Practice, gateway: &Gateway) -> Owner {
    Owner {
        schema: SCHEMA,
        practice: practice.clone(),
        gateway: gateway.clone(),
        time: rfc3339(unix_millis_now()),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    }
}

/// Writes the waiting transactions of these lanes, signed with the gateway's `key`, each from the position beside it on, or from the first
/// that is not confirmed.
/// Memory holds one record at a time, and what was read with it. Transactions accepted meanwhile are not included.
///
/// # Errors
/// [`ExportError`]; what was written is then not a complete bundle.
pub fn export<W: Write>(
    outbox: &Outbox,
    key: &SigningKey,
    lanes: &[(Lane, Option<Position>)],
    out: &mut Writer<W>,
    progress: &mut dyn FnMut(&Lane, Position, Position) -> ControlFlow<()>,
) -> Result<Vec<Exported>, ExportError> {
    let mut done = Vec::new();
    for (lane, from) in lanes {
        let tail = listing::tail(outbox, lane);
        let Some(numbering) = outbox.numbering(lane) else { continue };
        // What is before the present epoch is at the hub, or was when it began.
        let start = numbering.present();
        let first = from.unwrap_or_else(|| listing::confirmed(outbox, lane) + 1).max(start.base + 1);
        if first <= tail {
            done.extend(export_lane(outbox, key, lane, start, (first, tail), out, progress)?);
        }
    }
    Ok(done)
}

fn export_lane<W: Write>(
    outbox: &Outbox,
    key: &SigningKey,
    lane: &Lane,
    start: &EpochStart,
    (first, tail): (Position, Position),
    out: &mut Writer<W>,
    progress: &mut dyn FnMut(&Lane, Position, Position) -> ControlFlow<()>,
) -> Result<Option<Exported>, ExportError> {
    let name = outbox.lane_name(lane);
    let mut wire = WireReader::new(outbox, lane);
    // In the middle of an entry: it goes whole.
    let first = start.entry_at(first).map_or(first, |entry| entry.from);
    let mut next = first;
    let mut stopped_before = None;
    let mut foot: Option<Foot> = None;
    while next <= tail && stopped_before.is_none() {
        let wanted = usize::try_from(tail + 1 - next).unwrap_or(BATCH.0).min(BATCH.0);
        let records = match wire.read_in(start, next, wanted, BATCH.1) {
            Ok(records) => records,
            Err(ReadError::Gone { .. }) => Vec::new(),
            Err(error) => return Err(error.into()),
        };
        let before = next;
        for numbered in records {
            if numbered.position != next {
                break;
            }
            if foot.is_none() {
                out.head(head(lane, &numbered))?;
            }
            next = numbered.through + 1;
            let count = foot.map_or(0, |foot| foot.count) + 1;
            let Numbered { epoch, sequence, link, chain, transaction, .. } = numbered;
            let envelope = Envelope::new(&name, epoch, sequence, chain, 0, &transaction);
            out.transaction(envelope.linked(link).signed(&name, key), transaction.body.as_bytes())?;
            foot =
                Some(Foot { lane: lane.clone(), count, epoch, last: sequence, chain, stopped_before: None });
        }
        if next == before {
            stopped_before = Some(next);
        }
        if progress(lane, next - 1, tail).is_break() {
            return Err(ExportError::Interrupted);
        }
    }
    let positions = (first, next - 1);
    let count = foot.as_ref().map_or(0, |foot| foot.count);
    if let Some(foot) = foot {
        out.foot(Foot { stopped_before, ..foot })?;
    }
    let has_any = count > 0 || stopped_before.is_some();
    Ok(has_any.then(|| Exported { lane: lane.clone(), count, positions, stopped_before }))
}

fn head(lane: &Lane, first: &Numbered) -> Head {
    Head {
        lane: lane.clone(),
        epoch: first.epoch,
        first: first.sequence,
        position: first.position,
        link: first.link,
        before: first.previous,
    }
}
