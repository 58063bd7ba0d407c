//! Exports from the outbox into a bundle: waiting transactions, lane by lane, in order.

use std::io::{self, Write};
use std::ops::ControlFlow;

use pgw_bundle::bundle::{Foot, Head, Older, Owner, Writer};
use pgw_core::consequence::Consequence;
use pgw_core::delivery::Numbering;
use pgw_core::transaction::{Gateway, Lane, Position, Practice, rfc3339, unix_millis_now};
use pgw_core::wire::SCHEMA;
use pgw_core::wire::envelope::Envelope;
use pgw_core::wire::signature::SigningKey;
use pgw_outbox::{Outbox, ReadError, Stored};

use crate::listing;

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

/// Writes the waiting transactions of these lanes, signed with the gateway's `key`, each from `from` on, or from the first that is not confirmed.
/// Memory holds one record at a time, and what was read with it. Transactions accepted meanwhile are not included.
///
/// # Errors
/// [`ExportError`]; what was written is then not a complete bundle.
pub fn export<W: Write>(
    outbox: &Outbox,
    key: &SigningKey,
    lanes: &[Lane],
    from: Option<Position>,
    out: &mut Writer<W>,
    progress: &mut dyn FnMut(&Lane, Position, Position) -> ControlFlow<()>,
) -> Result<Vec<Exported>, ExportError> {
    let mut done = Vec::new();
    for lane in lanes {
        let first = from.unwrap_or_else(|| listing::confirmed(outbox, lane) + 1).max(1);
        let tail = listing::tail(outbox, lane);
        let Some(numbering) = outbox.numbering(lane).filter(|_| first <= tail) else { continue };
        done.extend(export_lane(outbox, key, lane, &numbering, (first, tail), out, progress)?);
    }
    Ok(done)
}

fn export_lane<W: Write>(
    outbox: &Outbox,
    key: &SigningKey,
    lane: &Lane,
    numbering: &Numbering,
    (first, tail): (Position, Position),
    out: &mut Writer<W>,
    progress: &mut dyn FnMut(&Lane, Position, Position) -> ControlFlow<()>,
) -> Result<Option<Exported>, ExportError> {
    let name = outbox.lane_name(lane);
    let mut next = first;
    let mut stopped_before = None;
    let mut foot: Option<Foot> = None;
    for batch in listing::batches(outbox, lane, first, tail) {
        let batch = batch?;
        if batch.records.is_empty() {
            stopped_before = Some(batch.first);
        }
        for stored in batch.records {
            if foot.is_none() {
                out.head(head(lane, numbering, &stored))?;
            }
            next += 1;
            let count = foot.map_or(0, |foot| foot.count) + 1;
            let Stored { epoch, sequence, chain, transaction, .. } = stored;
            let envelope = Envelope::new(&name, epoch, sequence, chain, 0, &transaction).signed(&name, key);
            out.transaction(envelope, transaction.body.as_bytes())?;
            foot =
                Some(Foot { lane: lane.clone(), count, epoch, last: sequence, chain, stopped_before: None });
        }
        if progress(lane, next - 1, tail).is_break() {
            return Err(ExportError::Interrupted);
        }
        if stopped_before.is_some() {
            break;
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

fn head(lane: &Lane, numbering: &Numbering, stored: &Stored) -> Head {
    let epochs = numbering.epochs();
    let older = epochs
        .iter()
        .zip(epochs.iter().skip(1))
        .take_while(|(of, _)| of.epoch != stored.epoch)
        .map(|(of, following)| Older { epoch: of.epoch, through: following.base - of.base })
        .filter(|older| older.through > 0)
        .collect();
    Head {
        lane: lane.clone(),
        older,
        epoch: stored.epoch,
        first: stored.sequence,
        position: stored.position,
        before: stored.previous,
    }
}
