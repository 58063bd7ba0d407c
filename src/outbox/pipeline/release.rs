//! Writing off lost positions ([`crate::void`]): a readable record is never written off.

use pgw_core::transaction::{Position, unix_millis_now};
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
        let (watermark, tail, first) = {
            let state = lane.state();
            (state.watermark, state.tail, state.first_retained())
        };
        if from <= watermark.position || from > through || through > tail || through - from >= MOST {
            return Err(VoidError::Range { confirmed: watermark.position, tail });
        }
        if from < first {
            return Err(VoidError::Deleted(from));
        }
        let released = lane
            .state()
            .voids
            .ranges()
            .iter()
            .find(|void| void.through >= from && void.from <= through)
            .map(|void| void.from);
        if let Some(already) = released {
            return Err(VoidError::Already(already.max(from)));
        }
        let mut next = from;
        while next <= through {
            match self.read(lane, next, 1, 0) {
                Ok(found) if found.is_empty() => return Err(VoidError::Unclear(next)),
                Ok(_) => return Err(VoidError::Readable(next)),
                Err(ReadError::Gone { .. }) => next = self.after_loss(lane, next),
                Err(trouble) => return Err(trouble.into()),
            }
        }
        Ok(Released { from, through })
    }

    pub(crate) fn release(
        &self,
        lane: &SharedLane,
        released: &Released,
        reason: &str,
    ) -> Result<(), VoidError> {
        let Released { from, through } = *released;
        let mut voids = lane.state().voids.clone();
        voids.add(VoidRange {
            from,
            through,
            reason: reason.to_owned(),
            time: unix_millis_now(),
            id: Uuid::now_v7(),
            returned: Vec::new(),
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
