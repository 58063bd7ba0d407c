//! From the outbox into a bundle: what waits, lane by lane, in order.

use std::io::{self, Write};
use std::ops::ControlFlow;

use pgw_bundle::bundle::{Foot, Head, Older, Owner, Writer};
use pgw_core::delivery::Numbering;
use pgw_core::transaction::{Gateway, Lane, Position, Practice, rfc3339, unix_millis_now};
use pgw_core::wire::SCHEMA;
use pgw_core::wire::envelope::Envelope;
use pgw_outbox::{ReadError, Stored};

use crate::ingest::control::kept::{Kept, READ_BYTES, READ_RECORDS};

/// What became of a lane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exported {
    /// Which.
    pub lane: Lane,
    /// Transactions in the bundle.
    pub count: u64,
    /// First and last position of them.
    pub positions: (Position, Position),
    /// A position that is lost, before which it had to stop.
    pub stopped_before: Option<Position>,
}

/// Why there is no bundle.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// It cannot be written.
    #[error("the bundle cannot be written")]
    Write(#[from] io::Error),
    /// The store has trouble.
    #[error("the outbox cannot be read")]
    Read(#[from] ReadError),
    /// Whoever wanted it has gone.
    #[error("the export was broken off")]
    BrokenOff,
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

/// Writes what waits of these lanes, each from `from` on, or from the first that is not confirmed. A record at a time is in
/// memory, and what was read with it. What is accepted meanwhile is not waited for.
///
/// # Errors
/// [`ExportError`]; what was written is no bundle then.
pub fn export<K: Kept, W: Write>(
    kept: &K,
    lanes: &[Lane],
    from: Option<Position>,
    out: &mut Writer<W>,
    progress: &mut dyn FnMut(&Lane, Position, Position) -> ControlFlow<()>,
) -> Result<Vec<Exported>, ExportError> {
    let mut done = Vec::new();
    for lane in lanes {
        let first = from.unwrap_or_else(|| kept.mark(lane).map_or(1, |mark| mark.position + 1)).max(1);
        let tail = kept.tail(lane);
        let Some(numbering) = kept.numbering(lane).filter(|_| first <= tail) else { continue };
        done.extend(export_lane(kept, lane, &numbering, (first, tail), out, progress)?);
    }
    Ok(done)
}

fn export_lane<K: Kept, W: Write>(
    kept: &K,
    lane: &Lane,
    numbering: &Numbering,
    (first, tail): (Position, Position),
    out: &mut Writer<W>,
    progress: &mut dyn FnMut(&Lane, Position, Position) -> ControlFlow<()>,
) -> Result<Option<Exported>, ExportError> {
    let mut next = first;
    let mut stopped_before = None;
    let mut foot: Option<Foot> = None;
    while next <= tail && stopped_before.is_none() {
        let batch = match kept.read(lane, next, READ_RECORDS, READ_BYTES) {
            Ok(batch) => batch,
            Err(ReadError::Gone { .. }) => Vec::new(),
            Err(error) => return Err(error.into()),
        };
        let before = next;
        for stored in batch.into_iter().take_while(|stored| stored.position <= tail) {
            if stored.position != next {
                break;
            }
            if foot.is_none() {
                out.head(head(lane, numbering, &stored))?;
            }
            next += 1;
            let count = foot.map_or(0, |foot| foot.count) + 1;
            let Stored { epoch, sequence, chain, transaction, .. } = stored;
            let envelope = Envelope::new(lane, epoch, sequence, chain, 0, &transaction);
            out.transaction(envelope, transaction.body.as_bytes())?;
            foot =
                Some(Foot { lane: lane.clone(), count, epoch, last: sequence, chain, stopped_before: None });
        }
        if next == before {
            stopped_before = Some(next);
        }
        if progress(lane, next - 1, tail).is_break() {
            return Err(ExportError::BrokenOff);
        }
    }
    let positions = (first, next - 1);
    let count = foot.as_ref().map_or(0, |foot| foot.count);
    if let Some(foot) = foot {
        out.foot(Foot { stopped_before, ..foot })?;
    }
    let said = count > 0 || stopped_before.is_some();
    Ok(said.then(|| Exported { lane: lane.clone(), count, positions, stopped_before }))
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
