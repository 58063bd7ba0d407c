//! Reading what is behind the barrier, with its numbers on the wire.
//!
//! A record carries the numbers of the epoch in which it was accepted. After a renumbering the chain of what was
//! accepted before is computed on reading, from the new epoch's first value on; the last result is kept, so that a reader in order
//! needs one step a record. Nothing is rewritten.

use std::ops::ControlFlow;
use std::sync::Arc;

use pgw_core::chain::ChainValue;
use pgw_core::delivery::{Numbering, Renumbering};
use pgw_core::transaction::{Position, Transaction};

use super::lane::{Computed, LaneShared, locked};
use super::record::Header;
use super::repair::Repaired;
use super::segment::{Segment, SegmentError};
use super::shared::Shared;
use super::{ReadError, Stored};

/// Records that are read at once when a chain is computed anew.
const WALK_RECORDS: usize = 512;
const WALK_BYTES: usize = 4 << 20;

/// A record as it was stored.
pub(crate) type Record = (Header, Transaction);

impl Shared {
    /// As [`super::Outbox::read`].
    pub(crate) fn read(
        &self,
        lane: &LaneShared,
        from: Position,
        max_records: usize,
        max_bytes: usize,
    ) -> Result<Vec<Stored>, ReadError> {
        if let Some(voids) = self.voids_from(lane, from, max_records)? {
            return Ok(voids);
        }
        let records = self.records(lane, from, max_records, max_bytes)?;
        let numbering = lane.state().numbering.clone();
        records.into_iter().map(|record| self.on_the_wire(lane, &numbering, record)).collect()
    }

    fn on_the_wire(
        &self,
        lane: &LaneShared,
        numbering: &Numbering,
        (header, transaction): Record,
    ) -> Result<Stored, ReadError> {
        let position = header.position;
        let numbered = numbering.at(position);
        let sequence = position - numbered.base;
        let (previous, chain) = if header.epoch == numbered.epoch {
            (header.previous, header.chain)
        } else {
            let previous = self.chain_before(lane, numbered, position)?;
            let chain = previous.next_for(numbered.epoch, &lane.name, sequence, &transaction);
            *locked(&lane.computed) = Some(Computed { numbered, position, chain });
            (previous, chain)
        };
        Ok(Stored { position, epoch: numbered.epoch, sequence, previous, chain, transaction })
    }

    /// The chain value that `position` has for its previous in `numbered`, for records that were accepted in
    /// an older epoch. Lost positions are passed over.
    pub(crate) fn chain_before(
        &self,
        lane: &LaneShared,
        numbered: Renumbering,
        position: Position,
    ) -> Result<ChainValue, ReadError> {
        let cached = locked(&lane.computed).filter(|c| c.numbered == numbered && c.position < position);
        let (mark, gone) = {
            let state = lane.state();
            let mark = state.mark_in(numbered).filter(|mark| mark.position < position);
            let pruned = state.first_retained() > numbered.base + 1;
            let gone = mark.is_some_and(|mark| pruned || state.holes.count(numbered.base, mark.position) > 0);
            (mark, gone)
        };
        // What was computed over something that is gone now may differ from what the hub has of it. The mark does not.
        let cached = cached.filter(|_| !gone).map(|c| (c.position, c.chain));
        let (mut at, mut chain) = cached
            .or(mark.map(|mark| (mark.position, mark.chain)))
            .unwrap_or_else(|| (numbered.base, ChainValue::first(numbered.epoch, lane.name.as_str())));
        while at + 1 < position {
            let wanted = WALK_RECORDS.min(usize::try_from(position - at - 1).unwrap_or(WALK_RECORDS));
            match self.records(lane, at + 1, wanted, WALK_BYTES) {
                Ok(records) => {
                    if records.is_empty() {
                        return Err(ReadError::Trouble("a record is missing without a trace".into()));
                    }
                    for (header, transaction) in records.into_iter().filter(|(h, _)| h.position < position) {
                        at = header.position;
                        chain = if header.epoch == numbered.epoch {
                            header.chain
                        } else {
                            chain.next_for(numbered.epoch, &lane.name, at - numbered.base, &transaction)
                        };
                    }
                }
                Err(ReadError::Gone { .. }) => {
                    let state = lane.state();
                    let hole = state.holes.at(at + 1).map_or(at + 1, |(_, through)| through);
                    at = hole.max(state.first_retained() - 1).min(position - 1);
                }
                Err(trouble) => return Err(trouble),
            }
            *locked(&lane.computed) = Some(Computed { numbered, position: at, chain });
        }
        Ok(chain)
    }

    /// The chain value that the record after `last` will have for its previous, in `numbering`.
    pub(crate) fn chain_in(
        &self,
        lane: &LaneShared,
        numbering: &Numbering,
        last: Position,
    ) -> Result<ChainValue, ReadError> {
        let numbered = numbering.at(last + 1);
        if last <= numbered.base {
            return Ok(ChainValue::first(numbered.epoch, lane.name.as_str()));
        }
        match self.records(lane, last, 1, 0).map(|records| records.into_iter().next()) {
            Ok(Some(record)) => Ok(self.on_the_wire(lane, numbering, record)?.chain),
            Ok(None) | Err(ReadError::Gone { .. }) => self.chain_before(lane, numbered, last + 1),
            Err(trouble) => Err(trouble),
        }
    }

    /// As [`super::Outbox::chain_at`].
    pub(crate) fn chain_at(&self, lane: &LaneShared, position: Position) -> Option<ChainValue> {
        let (numbering, mark, tail, chain) = {
            let state = lane.state();
            (state.numbering.clone(), state.mark, state.tail, state.chain)
        };
        let numbered = numbering.at(position.max(1));
        if position == 0 {
            return Some(ChainValue::first(numbered.epoch, lane.name.as_str()));
        }
        if position == tail && numbering.at(tail + 1) == numbered {
            return Some(chain);
        }
        if let Ok(stored) = self.read(lane, position, 1, 0)
            && let Some(stored) = stored.first()
        {
            return Some(stored.chain);
        }
        if let Some(end) = lane.state().voids.end(numbered.epoch, position) {
            return Some(end);
        }
        // Each record keeps the value before it: the neighbour knows, if it is of the same epoch.
        if numbering.at(position + 1) == numbered
            && let Ok(stored) = self.read(lane, position + 1, 1, 0)
            && let Some(stored) = stored.first()
        {
            return Some(stored.previous);
        }
        (mark.position == position).then_some(mark.chain)
    }

    /// The records from `from` on, as they were stored: never beyond the tail, never past a hole, and at least one if
    /// there is one at `from`.
    pub(crate) fn records(
        &self,
        lane: &LaneShared,
        from: Position,
        max_records: usize,
        max_bytes: usize,
    ) -> Result<Vec<Record>, ReadError> {
        let gone = |position| ReadError::Gone { lane: lane.name.clone(), position };
        let mut found: Vec<Record> = Vec::new();
        let mut bytes = 0usize;
        let mut taken = 0usize;
        let mut next = from;
        loop {
            let at = {
                let state = lane.state();
                if next > state.tail {
                    return Ok(found);
                }
                // What was once lost stays lost, even if the disk gives it back: it may have been released meanwhile.
                let found = state.segment_of(next).filter(|_| next > 0 && state.holes.at(next).is_none());
                found.map(|(ordinal, through)| (ordinal, state.holes.before_next(next, through)))
            };
            let Some((ordinal, through)) = at else {
                return if found.is_empty() { Err(gone(next)) } else { Ok(found) };
            };
            let part = self.segment_records(lane, ordinal, next, through, |body| {
                bytes += body;
                taken += 1;
                taken >= max_records || bytes >= max_bytes
            });
            let part = match part {
                Ok(part) => part,
                Err(_) if !found.is_empty() => return Ok(found),
                Err(error) => return Err(error),
            };
            let Some(part) = part else {
                // Damage was found and recorded: what is before it counts.
                continue;
            };
            let (records, enough) = part;
            next += records.len() as u64;
            found.extend(records);
            if enough || found.len() >= max_records || bytes >= max_bytes {
                return Ok(found);
            }
        }
    }

    /// One record, if its segment is open now and it can be read there: nothing is opened or repaired for it.
    pub(crate) fn record_if_open(&self, lane: &LaneShared, position: Position) -> Option<Transaction> {
        let (ordinal, _) = {
            let state = lane.state();
            state.segment_of(position).filter(|_| state.holes.at(position).is_none())?
        };
        let (at, bytes) = lane.handles.known(ordinal)?.first(position, position).ok().flatten()?;
        let (header, transaction) = self.sealer.open(&bytes.ok()?).ok()?;
        (at == position && header.position == position && header.lane == lane.id).then_some(transaction)
    }

    /// Reads from one segment. `None`: what was wanted turned out to be damaged, which is recorded; look again.
    fn segment_records(
        &self,
        lane: &LaneShared,
        ordinal: u64,
        from: Position,
        through: Position,
        mut count: impl FnMut(usize) -> bool,
    ) -> Result<Option<(Vec<Record>, bool)>, ReadError> {
        let segment = match self.segment(lane, ordinal) {
            Ok(segment) => segment,
            Err(error) => return self.failed(lane, ordinal, &error),
        };
        let mut enough = false;
        let mut records: Vec<Record> = Vec::new();
        let mut expected = from;
        let visited = segment.visit(from, through, &mut |position, bytes| {
            if position != expected {
                return ControlFlow::Break(());
            }
            match bytes.and_then(|bytes| self.sealer.open(&bytes)) {
                Ok((header, transaction)) if header.position == position && header.lane == lane.id => {
                    enough = count(transaction.body.len());
                    records.push((header, transaction));
                }
                _ => return ControlFlow::Break(()),
            }
            expected += 1;
            if enough { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        if let Err(error) = visited {
            drop(segment);
            return self.failed(lane, ordinal, &error);
        }
        if (enough || expected > through) && !records.is_empty() {
            return Ok(Some((records, enough)));
        }
        if !records.is_empty() {
            // Damage lies ahead; what is before it is good, and the next call finds it at its beginning.
            return Ok(Some((records, true)));
        }
        drop(segment);
        match self.repair(lane, ordinal) {
            Repaired::Yes => {}
            Repaired::Useless => self.declare_damaged(lane, ordinal, from, through),
            Repaired::Later(why) => return Err(ReadError::Trouble(why)),
        }
        Ok(None)
    }

    /// The handle of a segment of the row.
    pub(crate) fn segment(&self, lane: &LaneShared, ordinal: u64) -> Result<Arc<Segment>, SegmentError> {
        let durable = lane.state().last_of(ordinal);
        lane.handles.get(ordinal, || Segment::open(&lane.segment_directory(ordinal), durable))
    }

    /// A handle that failed is dead. Damage is repaired; the rest may be better next time.
    fn failed<T>(
        &self,
        lane: &LaneShared,
        ordinal: u64,
        error: &SegmentError,
    ) -> Result<Option<T>, ReadError> {
        if lane.state().row.contains_key(&ordinal) {
            tracing::warn!(lane = %lane.name, ordinal, error = %error, "Segment could not be read");
            drop(lane.handles.forget(ordinal));
            if error.is_full() {
                self.out_of_room();
            }
            if error.is_damage()
                && let Repaired::Yes = self.repair(lane, ordinal)
            {
                return Ok(None);
            }
            return Err(ReadError::Trouble(error.to_string()));
        }
        // It was pruned meanwhile.
        Ok(None)
    }

    /// Finds out how far the damage at `from` goes, and records it: these positions are lost.
    fn declare_damaged(&self, lane: &LaneShared, ordinal: u64, from: Position, through: Position) {
        let next = self.segment(lane, ordinal).and_then(|segment| {
            let mut good = None;
            segment.visit(from, through, &mut |position, bytes| {
                if bytes.is_ok_and(|bytes| self.sealer.open(&bytes).is_ok()) {
                    good = Some(position);
                    return ControlFlow::Break(());
                }
                ControlFlow::Continue(())
            })?;
            Ok(good)
        });
        let lost_through = match next {
            Ok(Some(good)) if good > from => good - 1,
            Ok(None) => through,
            Ok(Some(_)) => return,
            Err(_) => from,
        };
        let new = {
            let mut state = lane.state();
            let new = state.holes.add(from, lost_through);
            state.ledger_stale |= new;
            new
        };
        if new {
            tracing::error!(lane = %lane.name, from, through = lost_through, "Records are lost");
            self.notable(
                "damaged",
                format!("positions {from} to {lost_through} of lane {} are lost", lane.name),
            );
        }
    }
}
