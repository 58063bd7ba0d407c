//! Repetitions: the index gives hints, the store decides.
//!
//! A sender that gets no answer repeats its last transactions. An answer to a repetition is a promise like any other:
//! it is given only for a record that was read from behind the barrier and compared.
//!
//! The writer compares only records in an open segment. The comparer, a thread of its own, compares those in older ones:
//! opening one takes a tenth of a second and more, carving a damaged one longer, and all other senders would wait. Then
//! the submission comes back to the writer, which decides.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender};

use pgw_core::text::chain;
use pgw_core::transaction::{Position, Transaction, TransactionId};

use crate::dedup::fingerprint::Fingerprints;
use crate::errors::ReadError;
use crate::lock::locked;
use crate::pipeline::jobs::{Comparisons, Examined, Job, Queued};
use crate::pipeline::lane::SharedLane;
use crate::pipeline::pending::PendingRecord;
use crate::pipeline::shared::SharedOutbox;
use crate::submission::Submission;
use crate::types::Accepted;

/// Records whose fingerprints are made again before the first accept; the rest follow while the outbox runs.
const NEWEST: u64 = 4096;
const STEP_RECORDS: usize = 256;
const STEP_BYTES: usize = 4 << 20;

fn compare(submission: &Submission, position: Position, first: &Transaction) -> Examined {
    if first.sender_as_given() != submission.sender || first.key != submission.key {
        return Examined::Other;
    }
    if first.body != submission.body {
        return Examined::KeyReused;
    }
    Examined::Same(Accepted {
        id: first.id,
        position,
        time: first.time,
        repeated: true,
        key_reused: false,
        withheld: false,
    })
}

/// The index's and the store's information on a submission.
#[derive(Debug, Default)]
pub(crate) struct Known {
    /// It is stored: this is the answer.
    pub(crate) repetition: Option<Accepted>,
    /// Its key was used before with other bytes.
    pub(crate) key_reused: bool,
}

/// The writer's next step with a submission.
#[derive(Debug)]
pub(crate) enum Answerable {
    /// Decide.
    Now(Known),
    /// This record must be compared first, and its segment is not open.
    AfterComparing(Position),
    /// Refuse.
    Trouble(String),
}

/// Compares records that the writer must not wait for, until the writer has ended.
pub(crate) fn run(
    shared: &Arc<SharedOutbox>,
    wanted: &Receiver<(Box<Queued>, Position)>,
    writer: &Sender<Job>,
) {
    while let Ok((mut queued, position)) = wanted.recv() {
        if let Some(lane) = shared.lanes.get(queued.lane) {
            let examined = shared.examine(lane, position, &queued.submission);
            queued.compared.insert(position, examined);
        }
        if writer.send(Job::Submit(queued)).is_err() {
            return;
        }
    }
}

impl SharedOutbox {
    /// Looks up a submission that is not in the present group. It opens no segment: `compared` has the comparer's results.
    pub(crate) fn find_stored(
        &self,
        lane: usize,
        submission: &Submission,
        fingerprints: Fingerprints,
        compared: &Comparisons,
    ) -> Answerable {
        // Without the hint a repetition may be stored twice, which its key shows; refusing it would block its sender.
        let found = locked(&self.index).find_fingerprints(fingerprints).unwrap_or_default();
        let lane = &self.lanes[lane];
        let mut known = Known::default();
        for found in found.into_iter().filter(|found| found.lane == lane.id) {
            // A record lost in a crash may have left its fingerprints.
            if found.position > lane.state().tail {
                continue;
            }
            if !found.same_body {
                known.key_reused |= !submission.key.is_empty();
                continue;
            }
            let examined = match compared.get(&found.position) {
                Some(examined) => examined.clone(),
                None => match self.record_if_open(lane, found.position) {
                    Some(record) => compare(submission, found.position, &record),
                    None => return Answerable::AfterComparing(found.position),
                },
            };
            match examined {
                Examined::Same(accepted) => {
                    known.repetition = Some(accepted);
                    return Answerable::Now(known);
                }
                Examined::KeyReused => known.key_reused |= !submission.key.is_empty(),
                Examined::Other => {}
                Examined::Trouble(trouble) => return Answerable::Trouble(trouble),
            }
        }
        Answerable::Now(known)
    }

    /// Reads the named record from any segment, and compares. May take as long as carving does.
    fn examine(&self, lane: &SharedLane, position: Position, submission: &Submission) -> Examined {
        match self.records(lane, position, 1, 0) {
            Ok(records) => {
                records.first().map_or(Examined::Other, |(_, first)| compare(submission, position, first))
            }
            // The hub has it, and both fingerprints are the same: storing it again would give the hub a second one. Of what a
            // person has written off the hub has an entry only: the sender's repetition is its way back.
            Err(ReadError::Gone { .. }) if lane.state().is_confirmed_content(position) => {
                Examined::Same(Accepted {
                    id: TransactionId(uuid::Uuid::nil()),
                    position,
                    time: 0,
                    repeated: true,
                    key_reused: false,
                    withheld: false,
                })
            }
            Err(ReadError::Gone { .. }) => Examined::Other,
            Err(trouble) => Examined::Trouble(chain(&trouble)),
        }
    }

    /// Notes stored records in the index. A failure costs a repetition, not a record.
    pub(crate) fn remember(&self, lane: &SharedLane, durable: &[PendingRecord]) {
        let mut index = locked(&self.index);
        for ready in durable {
            if let Err(error) = index.insert_fingerprints(lane.id, ready.position, ready.fingerprints) {
                tracing::warn!(lane = %lane.name, error = %error, "The duplicate index accepts no more entries");
                return;
            }
        }
    }

    /// After a crash: makes the fingerprints of the newest records again, before anything is accepted.
    pub(crate) fn fill_index_newest(&self) {
        for lane in &self.lanes {
            let (from, tail) = self.index_missing(lane);
            let from = from.max(tail.saturating_sub(NEWEST) + 1);
            self.fill_index(lane, from, tail, &mut || true);
        }
    }

    /// The positions that the index may lack.
    pub(crate) fn index_missing(&self, lane: &SharedLane) -> (Position, Position) {
        let state = lane.state();
        let (first, tail) = (state.first_retained(), state.tail);
        drop(state);
        (first.max(locked(&self.index).synced_through(lane.id) + 1), tail)
    }

    /// Makes the fingerprints of `from..=through` again, as long as `go_on` allows. Returns whether it is complete.
    pub(crate) fn fill_index(
        &self,
        lane: &SharedLane,
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
                    let fingerprinted: Vec<_> = records
                        .iter()
                        .map(|(header, t)| {
                            (
                                header.position,
                                self.fingerprinter.fingerprints(
                                    t.sender_as_given(),
                                    &t.key,
                                    t.body.as_bytes(),
                                ),
                            )
                        })
                        .collect();
                    let mut index = locked(&self.index);
                    for (position, fingerprints) in fingerprinted {
                        if index.insert_fingerprints(lane.id, position, fingerprints).is_err() {
                            return true;
                        }
                        from = position + 1;
                    }
                }
                Err(ReadError::Gone { .. }) => {
                    let state = lane.state();
                    from = state
                        .missing
                        .at(from)
                        .map_or(from + 1, |(_, end)| end + 1)
                        .max(state.first_retained());
                }
                Err(_) => {
                    locked(&self.index).lacks(lane.id, from);
                    return true;
                }
            }
        }
        true
    }
}
