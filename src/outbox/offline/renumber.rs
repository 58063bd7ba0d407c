//! The effect of a recovered record on the chain on the wire, in a lane that was numbered again.
//!
//! For positions that were numbered again after acceptance, the chain on the wire is computed on reading, over the readable
//! records. If one of them was lost then, a later record's chain value was computed without it, and no longer fits once the
//! lost record is recovered. So everything after the watermark gets new numbers once more, as after a void (`release`). This
//! is checked whenever a lane has had more than one epoch: a crash may have come between the two steps.

use pgw_core::delivery::Renumbering;
use pgw_core::transaction::{Lane, Position};

use crate::crypt::keyring::Keyring;
use crate::descriptor::Retirement;
use crate::errors::{ReadError, Refusal};
use crate::files;
use crate::handle::Outbox;
use crate::offline::error::RepairError;
use crate::types::OutboxSettings;

const STEP_RECORDS: usize = 256;
const STEP_BYTES: usize = 4 << 20;

/// Opens the repaired store and numbers lanes again where that is needed. Returns those lanes.
pub(super) fn renumber(
    settings: &OutboxSettings,
    keys: &Keyring,
    lanes: &[Lane],
    owner: Option<(u32, u32)>,
) -> Result<Vec<Lane>, RepairError> {
    let mut again = Vec::new();
    if lanes.is_empty() {
        return Ok(again);
    }
    let outbox = Outbox::started(settings.clone(), keys, Retirement::Refused)?;
    let mut outcome = Ok(());
    for lane in lanes {
        match outbox.renumber_if_broken(lane) {
            Ok(true) => again.push(lane.clone()),
            Ok(false) => {}
            Err(trouble) => outcome = Err(RepairError::Numbers(lane.clone(), trouble)),
        }
    }
    outbox.close();
    let directory = settings.directory.as_path();
    if owner.is_some() {
        files::give_to_owner(directory).map_err(RepairError::cannot("give to its owner", directory))?;
    }
    outcome.map(|()| again)
}

impl Outbox {
    /// If the first unconfirmed record that was accepted in an epoch does not follow from the one before it on the wire,
    /// everything after the watermark gets a new epoch.
    fn renumber_if_broken(&self, lane: &Lane) -> Result<bool, Refusal> {
        let Some(shared) = self.lane(lane) else { return Ok(false) };
        let (numbering, watermark) = {
            let state = shared.state();
            (state.numbering.clone(), state.watermark.position)
        };
        for numbered in numbering.epochs() {
            let next = numbered.base.max(watermark) + 1;
            if numbering.at(next) == *numbered && self.is_broken(lane, *numbered, next)? {
                self.new_epoch(lane, watermark)?;
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn is_broken(&self, lane: &Lane, numbered: Renumbering, mut next: Position) -> Result<bool, Refusal> {
        let Some(lane) = self.lane(lane) else { return Ok(false) };
        if lane.state().first_retained() > numbered.base + 1 {
            // The records before it are pruned, so they were confirmed: nothing to check.
            return Ok(false);
        }
        // Read one record more, for its epoch.
        next = (next - 1).max(numbered.base + 1);
        let mut before = None;
        while lane.state().numbering.at(next) == numbered {
            let records = match self.shared().records(lane, next, STEP_RECORDS, STEP_BYTES) {
                Ok(records) if records.is_empty() => break,
                Ok(records) => records,
                Err(ReadError::Gone { .. }) => {
                    // After a lost record nothing can be checked.
                    before = None;
                    next = lane.state().missing.at(next).map_or(next, |(_, through)| through) + 1;
                    continue;
                }
                Err(trouble) => return Err(Refusal::Trouble(trouble.to_string())),
            };
            for (header, _) in &records {
                next = header.position + 1;
                if header.epoch != numbered.epoch {
                    before = Some(header.epoch);
                } else if before.is_none() {
                    return Ok(false);
                } else {
                    let chain = self.shared().chain_before(lane, numbered, header.position);
                    let chain = chain.map_err(|error| Refusal::Trouble(error.to_string()))?;
                    return Ok(chain != header.previous);
                }
            }
        }
        Ok(false)
    }
}
