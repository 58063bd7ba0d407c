//! Reading records behind the barrier, with their numbers on the wire.
//!
//! A record carries the numbers of the epoch in which it was accepted. After a renumbering the chain of earlier
//! records is computed on reading, from the new epoch's first value on. The last result is kept, so that a reader in order
//! needs one step a record. Nothing is rewritten.

use pgw_core::chain::ChainValue;
use pgw_core::delivery::{Numbering, Renumbering};
use pgw_core::transaction::{Body, Clock, Kind, Position, Transaction, TransactionId, rfc3339};
use pgw_core::wire::to_json;
use pgw_core::wire::void::{self, Void};
use uuid::Uuid;

use crate::errors::ReadError;
use crate::lock::locked;
use crate::pipeline::lane::{ComputedChain, SharedLane};
use crate::pipeline::records::Record;
use crate::pipeline::shared::SharedOutbox;
use crate::types::Stored;
use crate::void::VoidRange;

/// Records that are read at once to compute a chain.
const WALK_RECORDS: usize = 512;
const WALK_BYTES: usize = 4 << 20;

impl SharedOutbox {
    /// As [`crate::handle::Outbox::read`].
    pub(crate) fn read(
        &self,
        lane: &SharedLane,
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
        lane: &SharedLane,
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
            let chain = previous.next(sequence, transaction.digest(&lane.full_name));
            *locked(&lane.computed) = Some(ComputedChain { numbered, position, chain });
            (previous, chain)
        };
        Ok(Stored { position, epoch: numbered.epoch, sequence, previous, chain, transaction })
    }

    /// The chain value before `position` in `numbered`, for records that were accepted in an older epoch. Lost positions
    /// are skipped.
    pub(crate) fn chain_before(
        &self,
        lane: &SharedLane,
        numbered: Renumbering,
        position: Position,
    ) -> Result<ChainValue, ReadError> {
        let cached = locked(&lane.computed).filter(|c| c.numbered == numbered && c.position < position);
        let (watermark, gone) = {
            let state = lane.state();
            let watermark = state.watermark_in(numbered).filter(|watermark| watermark.position < position);
            let pruned = state.first_retained() > numbered.base + 1;
            let gone = watermark.is_some_and(|watermark| {
                pruned || state.missing.count(numbered.base, watermark.position) > 0
            });
            (watermark, gone)
        };
        // A value that was computed over a record that is gone now may differ from the hub's. The watermark does not.
        let cached = cached.filter(|_| !gone).map(|c| (c.position, c.chain));
        let (mut at, mut chain) = cached
            .or(watermark.map(|watermark| (watermark.position, watermark.chain)))
            .unwrap_or_else(|| (numbered.base, ChainValue::first(&lane.full_name, numbered.epoch)));
        while at + 1 < position {
            let wanted = WALK_RECORDS.min(usize::try_from(position - at - 1).unwrap_or(WALK_RECORDS));
            match self.records(lane, at + 1, wanted, WALK_BYTES) {
                Ok(records) => {
                    if records.is_empty() {
                        return Err(ReadError::Trouble(
                            "a record is missing that was not noted as lost".into(),
                        ));
                    }
                    for (header, transaction) in records.into_iter().filter(|(h, _)| h.position < position) {
                        at = header.position;
                        chain = if header.epoch == numbered.epoch {
                            header.chain
                        } else {
                            chain.next(at - numbered.base, transaction.digest(&lane.full_name))
                        };
                    }
                }
                Err(ReadError::Gone { .. }) => {
                    let state = lane.state();
                    let missing = state.missing.at(at + 1).map_or(at + 1, |(_, through)| through);
                    at = missing.max(state.first_retained() - 1).min(position - 1);
                }
                Err(trouble) => return Err(trouble),
            }
            *locked(&lane.computed) = Some(ComputedChain { numbered, position: at, chain });
        }
        Ok(chain)
    }

    /// The chain value before the record after `last`, in `numbering`.
    pub(crate) fn chain_in(
        &self,
        lane: &SharedLane,
        numbering: &Numbering,
        last: Position,
    ) -> Result<ChainValue, ReadError> {
        let numbered = numbering.at(last + 1);
        if last <= numbered.base {
            return Ok(ChainValue::first(&lane.full_name, numbered.epoch));
        }
        match self.records(lane, last, 1, 0).map(|records| records.into_iter().next()) {
            Ok(Some(record)) => Ok(self.on_the_wire(lane, numbering, record)?.chain),
            Ok(None) | Err(ReadError::Gone { .. }) => self.chain_before(lane, numbered, last + 1),
            Err(trouble) => Err(trouble),
        }
    }

    /// As [`crate::handle::Outbox::chain_at`].
    pub(crate) fn chain_at(&self, lane: &SharedLane, position: Position) -> Option<ChainValue> {
        let (numbering, watermark, tail, chain) = {
            let state = lane.state();
            (state.numbering.clone(), state.watermark, state.tail, state.chain)
        };
        let numbered = numbering.at(position.max(1));
        if position == 0 {
            return Some(ChainValue::first(&lane.full_name, numbered.epoch));
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
        // Each record stores the value before it, so the next one has it, if it is of the same epoch.
        if numbering.at(position + 1) == numbered
            && let Ok(stored) = self.read(lane, position + 1, 1, 0)
            && let Some(stored) = stored.first()
        {
            return Some(stored.previous);
        }
        (watermark.position == position).then_some(watermark.chain)
    }

    /// The voids from `from` on, as they go out; `None`: there is none at `from`.
    ///
    /// # Errors
    /// As [`SharedOutbox::read`].
    fn voids_from(
        &self,
        lane: &SharedLane,
        from: Position,
        most: usize,
    ) -> Result<Option<Vec<Stored>>, ReadError> {
        let (range, numbering) = {
            let state = lane.state();
            let Some(range) = state.voids.at(from) else { return Ok(None) };
            (range.clone(), state.numbering.clone())
        };
        let numbered = numbering.at(from);
        let (previous, chain) = if range.epoch == numbered.epoch {
            (range.previous, range.chain)
        } else {
            let passed = self.chain_before(lane, numbered, from)?;
            (passed, passed)
        };
        // A fork may have cut the range: take this epoch's part of it.
        let first = range.from.max(numbered.base + 1);
        let through =
            (first..=range.through).take_while(|at| numbering.at(*at) == numbered).last().unwrap_or(first);
        let whole = through == range.through;
        let stored = (from..=through).take(most.max(1)).map(|position| {
            let sequence = position - numbered.base;
            let body = Void::new(
                (first - numbered.base, through - numbered.base),
                previous,
                range.reason.clone(),
                rfc3339(range.time),
            );
            Stored {
                position,
                epoch: numbered.epoch,
                sequence,
                previous,
                chain: if position == through && whole { chain } else { previous },
                transaction: Self::tombstone(&range, position, to_json(&body)),
            }
        });
        Ok(Some(stored.collect()))
    }

    fn tombstone(range: &VoidRange, position: Position, body: Vec<u8>) -> Transaction {
        let id = range.id.as_u128().wrapping_add(u128::from(position - range.from));
        Transaction {
            id: TransactionId(Uuid::from_u128(id)),
            time: range.time,
            event_type: void::EVENT_TYPE.to_owned(),
            kind: Kind::Void,
            content_type: void::CONTENT_TYPE.to_owned(),
            sender: String::new(),
            key: String::new(),
            shows_key: false,
            correlation_id: String::new(),
            trace_parent: String::new(),
            clock: Clock::Untrusted,
            body: Body::new(body),
        }
    }
}
