//! Writing off lost positions ([`crate::void`]): a readable record is never written off.

use pgw_core::chain::ChainValue;
use pgw_core::delivery::{Numbering, Renumbering};
use pgw_core::transaction::{Kind, Position, unix_millis_now};
use uuid::Uuid;

use crate::errors::{ReadError, VoidError};
use crate::files;
use crate::pipeline::lane::SharedLane;
use crate::pipeline::shared::SharedOutbox;
use crate::types::Released;
use crate::void::VoidRange;

/// Most positions in one void: a whole segment.
const MOST: u64 = 1 << 20;

impl SharedOutbox {
    pub(crate) fn releasable(
        &self,
        lane: &SharedLane,
        from: Position,
        through: Position,
    ) -> Result<Released, VoidError> {
        let (watermark, tail, numbering) = {
            let state = lane.state();
            (state.watermark, state.tail, state.numbering.clone())
        };
        if from <= watermark.position || from > through || through > tail || through - from >= MOST {
            return Err(VoidError::Range { confirmed: watermark.position, tail });
        }
        let numbered = numbering.at(from);
        if numbering.at(through) != numbered {
            return Err(VoidError::TwoEpochs);
        }
        let mut next = from;
        while next <= through {
            match self.read(lane, next, 1, 0) {
                Ok(found) if found.iter().any(|stored| stored.transaction.kind == Kind::Void) => {
                    return Err(VoidError::Already(next));
                }
                Ok(found) if found.is_empty() => return Err(VoidError::Unclear(next)),
                Ok(_) => return Err(VoidError::Readable(next)),
                Err(ReadError::Gone { .. }) => next = self.lost_through(lane, next) + 1,
                Err(trouble) => return Err(trouble.into()),
            }
        }
        let Some(previous) = self.chain_before_range(lane, numbered, from) else {
            return Err(VoidError::NotTheFirst(from - 1));
        };
        let chain = self.chain_after_range(lane, &numbering, numbered, through).unwrap_or(previous);
        Ok(Released { from, through, previous, chain })
    }

    /// Whether a later record stores a chain value that was computed over the lost content: the range was numbered again after
    /// it was accepted, and records were accepted in the new numbers since. Nobody can compute that value again without the
    /// content, so everything after the watermark gets new numbers once more, over the void.
    pub(crate) fn breaks_the_chain(&self, lane: &SharedLane, released: &Released) -> bool {
        let (tail, numbered, following) = {
            let state = lane.state();
            (state.tail, state.numbering.at(released.from), state.numbering.at(released.through + 1))
        };
        if released.through == tail || following != numbered {
            return false;
        }
        let next =
            self.records(lane, released.through + 1, 1, 0).ok().and_then(|found| found.into_iter().next());
        next.is_some_and(|(header, _)| header.epoch != numbered.epoch)
    }

    /// How far the loss at `position` is known to go.
    fn lost_through(&self, lane: &SharedLane, position: Position) -> Position {
        let state = lane.state();
        let missing = state.missing.at(position).map_or(position, |(_, through)| through);
        missing.max(state.first_retained() - 1)
    }

    fn chain_before_range(
        &self,
        lane: &SharedLane,
        numbered: Renumbering,
        from: Position,
    ) -> Option<ChainValue> {
        if from - 1 == numbered.base {
            return Some(ChainValue::first(&lane.full_name, numbered.epoch));
        }
        // The record after a lost one does not help: only the record itself, a void, or the watermark has the value.
        if let Ok(stored) = self.read(lane, from - 1, 1, 0) {
            return stored.first().map(|stored| stored.chain);
        }
        let watermark = lane.state().watermark;
        (watermark.position == from - 1).then_some(watermark.chain)
    }

    /// The value that the next transaction of the epoch follows from, where there is one.
    fn chain_after_range(
        &self,
        lane: &SharedLane,
        numbering: &Numbering,
        numbered: Renumbering,
        through: Position,
    ) -> Option<ChainValue> {
        let (tail, chain, end) = {
            let state = lane.state();
            (state.tail, state.chain, state.voids.end(numbered.epoch, through))
        };
        if numbering.at(through + 1) != numbered {
            return end;
        }
        if through == tail {
            return Some(chain);
        }
        self.read(lane, through + 1, 1, 0).ok()?.first().map(|stored| stored.previous)
    }

    pub(crate) fn release(
        &self,
        lane: &SharedLane,
        released: &Released,
        reason: &str,
    ) -> Result<(), VoidError> {
        let (mut voids, epoch) = {
            let state = lane.state();
            (state.voids.clone(), state.numbering.at(released.from).epoch)
        };
        let Released { from, through, previous, chain } = *released;
        voids.add(VoidRange {
            from,
            through,
            epoch,
            previous,
            chain,
            reason: reason.to_owned(),
            time: unix_millis_now(),
            id: Uuid::now_v7(),
        });
        files::save(&self.lane_file(&lane.name, "voids"), &voids).map_err(VoidError::Save)?;
        {
            let mut state = lane.state();
            let kept_from = state.first_retained();
            let new = state.missing.add(from.max(kept_from), through);
            state.table_stale |= new;
            state.voids = voids;
        }
        tracing::error!(lane = %lane.name, from, through, reason, "An operator wrote off lost positions");
        self.raise(
            "void",
            format!("positions {from} to {through} of lane {} were written off: {reason}", lane.name),
        );
        Ok(())
    }
}
