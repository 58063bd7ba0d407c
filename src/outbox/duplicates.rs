//! Repetitions: the index gives hints, the store decides.
//!
//! A sender repeats when it had no answer, so it repeats what came last; an answer to a repetition is a promise
//! like any other and is given only for a record that was read from behind the barrier and compared.

use super::lane::{LaneShared, locked};
use super::pen::Ready;
use super::shared::Shared;
use super::tags::Tags;
use super::{Accepted, ReadError, Submission};
use crate::transaction::{Position, TransactionId};

/// Records whose tags are made again before the first accept; the rest follows while the outbox is at work.
const NEWEST: u64 = 4096;
const STEP_RECORDS: usize = 256;
const STEP_BYTES: usize = 4 << 20;

/// What the index and the store know of a submission.
#[derive(Debug, Default)]
pub(crate) struct Known {
    /// It is stored: this is the answer.
    pub(crate) repetition: Option<Accepted>,
    /// Its key was used before with other bytes.
    pub(crate) key_reused: bool,
}

impl Shared {
    /// What is known of a submission that is not in the present group.
    ///
    /// # Errors
    /// What the trouble is: it cannot be said whether it is stored.
    pub(crate) fn find_stored(
        &self,
        lane: usize,
        submission: &Submission,
        tags: Tags,
    ) -> Result<Known, String> {
        // Without the hint a repetition may be stored twice, and its keys show it; refused, its sender would stand.
        let found = locked(&self.index).find_tags(tags).unwrap_or_default();
        let lane = &self.lanes[lane];
        let mut known = Known::default();
        for found in found.into_iter().filter(|found| found.lane == lane.id) {
            let (tail, mark) = {
                let state = lane.state();
                (state.tail, state.mark.position)
            };
            // What a crash took with it may have left its tags.
            if found.position > tail {
                continue;
            }
            if !found.same_body {
                known.key_reused |= !submission.key.is_empty();
                continue;
            }
            match self.records(lane, found.position, 1, 0) {
                Ok(records) => {
                    let Some((_, first)) = records.into_iter().next() else { continue };
                    if first.source == submission.source && first.key == submission.key {
                        if first.body == submission.body {
                            known.repetition = Some(Accepted {
                                id: first.id,
                                position: found.position,
                                time: first.time,
                                repeated: true,
                                key_reused: false,
                            });
                            return Ok(known);
                        }
                        known.key_reused |= !submission.key.is_empty();
                    }
                }
                // The hub has it, and both of its tags are the same: to store it again would give the hub a second one.
                Err(ReadError::Gone { .. }) if found.position <= mark => {
                    known.repetition = Some(Accepted {
                        id: TransactionId(uuid::Uuid::nil()),
                        position: found.position,
                        time: 0,
                        repeated: true,
                        key_reused: false,
                    });
                    return Ok(known);
                }
                Err(ReadError::Gone { .. }) => {}
                Err(ReadError::Trouble(trouble)) => return Err(trouble),
            }
        }
        Ok(known)
    }

    /// Notes stored records in the index. A failure costs a repetition, not a record.
    pub(crate) fn remember(&self, lane: &LaneShared, settled: &[Ready]) {
        let mut index = locked(&self.index);
        for ready in settled {
            if let Err(error) = index.insert_tags(lane.id, ready.position, ready.tags) {
                tracing::warn!(lane = %lane.name, error = %error, "Duplicate index takes no more");
                return;
            }
        }
    }

    /// After a crash: makes the tags of the newest records again, before anything is accepted.
    pub(crate) fn fill_index_newest(&self) {
        for lane in &self.lanes {
            let (from, tail) = self.index_missing(lane);
            let from = from.max(tail.saturating_sub(NEWEST) + 1);
            self.fill_index(lane, from, tail, &mut || true);
        }
    }

    /// The positions that the index does not vouch for.
    pub(crate) fn index_missing(&self, lane: &LaneShared) -> (Position, Position) {
        let state = lane.state();
        let (first, tail) = (state.first_retained(), state.tail);
        drop(state);
        (first.max(locked(&self.index).synced_through(lane.id) + 1), tail)
    }

    /// Makes the tags of `from..=through` again, as long as `go_on` says so. Whether it came to the end.
    pub(crate) fn fill_index(
        &self,
        lane: &LaneShared,
        mut from: Position,
        through: Position,
        go_on: &mut dyn FnMut() -> bool,
    ) -> bool {
        while from <= through {
            if !go_on() {
                return false;
            }
            match self.records(lane, from, STEP_RECORDS, STEP_BYTES) {
                Ok(records) if records.is_empty() => return true,
                Ok(records) => {
                    let tagged: Vec<_> = records
                        .iter()
                        .map(|(header, t)| {
                            (header.position, self.tagger.tags(&t.source, &t.key, t.body.as_bytes()))
                        })
                        .collect();
                    let mut index = locked(&self.index);
                    for (position, tags) in tagged {
                        if index.insert_tags(lane.id, position, tags).is_err() {
                            return true;
                        }
                        from = position + 1;
                    }
                }
                Err(ReadError::Gone { .. }) => {
                    let state = lane.state();
                    from =
                        state.holes.at(from).map_or(from + 1, |(_, end)| end + 1).max(state.first_retained());
                }
                Err(ReadError::Trouble(_)) => {
                    locked(&self.index).lacks(lane.id, from);
                    return true;
                }
            }
        }
        true
    }
}
