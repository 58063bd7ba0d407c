//! Answers of many lines: they read the disk and run on their own thread.

use std::ops::ControlFlow;

use pgw_core::transaction::{Lane, Position};
use pgw_outbox::Outbox;

use crate::control::context::RequestError;
use crate::control::{LIST_LIMIT, Reply, TransactionRef, verify};
use crate::listing;
use crate::listing::ListedTransaction;

/// Takes the lines of an answer; it may end the answer.
pub(super) type SendReply<'a> = &'a mut dyn FnMut(Reply) -> ControlFlow<()>;

pub(super) fn chosen(outbox: &Outbox, lane: Option<&Lane>) -> Result<Vec<Lane>, RequestError> {
    let lanes = listing::lanes(outbox);
    match lane {
        None => Ok(lanes),
        Some(lane) if lanes.contains(lane) => Ok(vec![lane.clone()]),
        Some(lane) => Err(RequestError::UnknownLane(lane.clone())),
    }
}

/// Headers from `from` on, or from the oldest waiting one.
pub(super) fn list(
    outbox: &Outbox,
    lane: Option<&Lane>,
    from: Option<Position>,
    limit: u32,
    send: SendReply<'_>,
) -> Result<(), RequestError> {
    for lane in chosen(outbox, lane)? {
        let confirmed = listing::confirmed(outbox, &lane);
        let from = from.unwrap_or(confirmed + 1);
        let last = listing::tail(outbox, &lane)
            .min(from.saturating_add(u64::from(limit.min(LIST_LIMIT))).saturating_sub(1));
        if entries(outbox, &lane, from, last, &mut |entry| send(Reply::Entry(entry)))?.is_break() {
            return Ok(());
        }
    }
    Ok(())
}

/// One header, by position or by search.
pub(super) fn show(
    outbox: &Outbox,
    lane: Option<&Lane>,
    which: TransactionRef,
    send: SendReply<'_>,
) -> Result<(), RequestError> {
    let mut found = false;
    for lane in chosen(outbox, lane)? {
        let (first, last) = match which {
            TransactionRef::Position(position) => (position, position),
            TransactionRef::Id(_) => (outbox.first_retained(&lane).unwrap_or(1), Position::MAX),
        };
        let over = entries(outbox, &lane, first, last.min(listing::tail(outbox, &lane)), &mut |entry| {
            let wanted = match which {
                TransactionRef::Position(_) => true,
                TransactionRef::Id(id) => entry.header.as_ref().is_some_and(|header| header.id == id),
            };
            if !wanted {
                return ControlFlow::Continue(());
            }
            found = true;
            let sent = send(Reply::Entry(entry));
            if matches!(which, TransactionRef::Id(_)) { ControlFlow::Break(()) } else { sent }
        })?;
        if over.is_break() {
            break;
        }
    }
    if found { Ok(()) } else { Err(RequestError::NoTransaction) }
}

/// Every header from `from` through `last`, with a line for each record that is missing.
fn entries(
    outbox: &Outbox,
    lane: &Lane,
    from: Position,
    last: Position,
    each: &mut dyn FnMut(ListedTransaction) -> ControlFlow<()>,
) -> Result<ControlFlow<()>, RequestError> {
    let (numbering, confirmed) = (outbox.numbering(lane), listing::confirmed(outbox, lane));
    for batch in listing::batches(outbox, lane, from, last) {
        let batch = batch?;
        let missing = batch.records.is_empty().then_some(batch.first);
        let missing = missing.map(|position| {
            ListedTransaction::gone(lane.clone(), position, outbox.is_at_hub(lane, position))
        });
        let there = batch.records.iter().filter_map(|one| {
            Some(ListedTransaction::stored(lane.clone(), one, numbering.as_ref()?, confirmed))
        });
        for entry in missing.into_iter().chain(there) {
            if each(entry).is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
    }
    Ok(ControlFlow::Continue(()))
}

/// Checks the chains.
pub(super) fn verify_lanes(
    outbox: &Outbox,
    lane: Option<&Lane>,
    send: SendReply<'_>,
) -> Result<(), RequestError> {
    for lane in chosen(outbox, lane)? {
        let walked = verify::verify(outbox, &lane, |position, tail| {
            send(Reply::Progress { lane: lane.clone(), position, tail })
        });
        match walked? {
            Some(found) => {
                if send(Reply::Verified(found)).is_break() {
                    return Ok(());
                }
            }
            None => return Ok(()),
        }
    }
    Ok(())
}
