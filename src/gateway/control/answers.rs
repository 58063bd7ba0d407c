//! The answers of many lines: they read the disk, and run on a thread of their own.

use std::ops::ControlFlow;

use pgw_core::transaction::{Lane, Position};
use pgw_outbox::ReadError;

use crate::ingest::control::kept::{Kept, READ_BYTES, READ_RECORDS};
use crate::ingest::control::{Entry, LIST_LIMIT, Reply, Which, verify};

/// Where an answer's lines go; it may end the answer.
pub(super) type Say<'a> = &'a mut dyn FnMut(Reply) -> ControlFlow<()>;

pub(super) fn chosen<K: Kept>(kept: &K, lane: Option<&Lane>) -> Result<Vec<Lane>, String> {
    let lanes = kept.lanes();
    match lane {
        None => Ok(lanes),
        Some(lane) if lanes.contains(lane) => Ok(vec![lane.clone()]),
        Some(lane) => Err(format!("there is no lane {lane:?} in the configuration")),
    }
}

/// Headers from `from` on, or from the oldest that waits.
pub(super) fn list<K: Kept>(
    kept: &K,
    lane: Option<&Lane>,
    from: Option<Position>,
    limit: u32,
    say: Say<'_>,
) -> Result<(), String> {
    for lane in chosen(kept, lane)? {
        let confirmed = kept.mark(&lane).map_or(0, |mark| mark.position);
        let from = from.unwrap_or(confirmed + 1);
        let last =
            kept.tail(&lane).min(from.saturating_add(u64::from(limit.min(LIST_LIMIT))).saturating_sub(1));
        if entries(kept, &lane, from, last, &mut |entry| say(Reply::Entry(entry)))?.is_break() {
            return Ok(());
        }
    }
    Ok(())
}

/// One header, by position or by search.
pub(super) fn show<K: Kept>(kept: &K, lane: Option<&Lane>, which: Which, say: Say<'_>) -> Result<(), String> {
    let mut found = false;
    for lane in chosen(kept, lane)? {
        let (first, last) = match which {
            Which::Position(position) => (position, position),
            Which::Id(_) => (kept.first_retained(&lane).unwrap_or(1), Position::MAX),
        };
        let over = entries(kept, &lane, first, last.min(kept.tail(&lane)), &mut |entry| {
            let wanted = match which {
                Which::Position(_) => true,
                Which::Id(id) => entry.header.as_ref().is_some_and(|header| header.id == id),
            };
            if !wanted {
                return ControlFlow::Continue(());
            }
            found = true;
            let heard = say(Reply::Entry(entry));
            if matches!(which, Which::Id(_)) { ControlFlow::Break(()) } else { heard }
        })?;
        if over.is_break() {
            break;
        }
    }
    if found { Ok(()) } else { Err("no such transaction is kept here".to_owned()) }
}

/// Every header from `from` through `last`, with a line for each record that is gone.
fn entries<K: Kept>(
    kept: &K,
    lane: &Lane,
    from: Position,
    last: Position,
    each: &mut dyn FnMut(Entry) -> ControlFlow<()>,
) -> Result<ControlFlow<()>, String> {
    let confirmed = kept.mark(lane).map_or(0, |mark| mark.position);
    let mut next = from.max(1);
    while next <= last {
        let wanted = usize::try_from(last - next + 1).unwrap_or(READ_RECORDS).min(READ_RECORDS);
        let batch = match kept.read(lane, next, wanted, READ_BYTES) {
            Ok(batch) => batch,
            Err(ReadError::Gone { .. }) => Vec::new(),
            Err(error) => return Err(error.to_string()),
        };
        let before = next;
        for stored in batch.iter().take_while(|stored| stored.position <= last) {
            if stored.position != next {
                break;
            }
            next += 1;
            if each(Entry::stored(lane.clone(), stored, confirmed)).is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        if next == before {
            next += 1;
            if each(Entry::gone(lane.clone(), before, confirmed)).is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
    }
    Ok(ControlFlow::Continue(()))
}

/// Walks the chains.
pub(super) fn verify_lanes<K: Kept>(kept: &K, lane: Option<&Lane>, say: Say<'_>) -> Result<(), String> {
    for lane in chosen(kept, lane)? {
        let walked = verify::verify(kept, &lane, |position, tail| {
            say(Reply::Progress { lane: lane.clone(), position, tail })
        });
        match walked.map_err(|error| error.to_string())? {
            Some(verdict) => {
                if say(Reply::Verified(verdict)).is_break() {
                    return Ok(());
                }
            }
            None => return Ok(()),
        }
    }
    Ok(())
}
