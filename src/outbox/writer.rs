//! The writer: one thread does every append, so that order needs no lock, and commits in groups.
//!
//! A group is what is queued at that moment, at most [`GROUP_RECORDS`] and about [`GROUP_BYTES`]; nobody waits for it to fill. It is
//! numbered, chained, sealed, inserted, brought behind the barrier, and only then published and answered.
//!
//! When a segment fails, everything beyond its last good barrier is written again to another one, before
//! anything else; until that works the lane refuses, and tries again by itself.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use uuid::Uuid;

use super::pen::{Pen, Ready};
use super::shared::Shared;
use super::tags::Tags;
use super::{Accepted, Refusal, Submission};
use crate::delivery::Numbering;
use crate::transaction::{Position, Transaction, TransactionId, unix_millis_now};

/// Most transactions in a group.
pub(crate) const GROUP_RECORDS: usize = 256;
/// A group takes no more once it has this many payload bytes.
pub(crate) const GROUP_BYTES: usize = 4 << 20;
/// First pause before a failed lane is tried again, doubled up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// What the writer is asked to do, in order.
pub(crate) enum Job {
    /// Store it.
    Submit(Box<Queued>),
    /// Number what comes after `after` in a new epoch.
    NewEpoch {
        /// Index of the lane.
        lane: usize,
        /// Last position that keeps its number.
        after: Position,
        /// Told the outcome.
        answer: std::sync::mpsc::SyncSender<Result<Numbering, Refusal>>,
    },
    /// Begin a new segment: all of this one is confirmed and nothing came for a while, so that it can be pruned; or it
    /// is damaged.
    Retire {
        /// Index of the lane.
        lane: usize,
        /// The tail that was seen; if it has moved on, there is no need any more.
        tail: Option<Position>,
    },
    /// Say that the writer moves.
    Pulse(std::sync::mpsc::SyncSender<()>),
    /// Finish what was taken, and end.
    Stop,
}

/// A submission in the queue.
pub(crate) struct Queued {
    pub(crate) lane: usize,
    pub(crate) submission: Submission,
    pub(crate) tags: Tags,
    pub(crate) cost: u64,
    pub(crate) entered: Instant,
    pub(crate) answer: oneshot::Sender<Result<Accepted, Refusal>>,
}

/// Somebody who waits for a record of the group.
struct Waiter {
    entered: Instant,
    cost: u64,
    answer: oneshot::Sender<Result<Accepted, Refusal>>,
    accepted: Accepted,
}

/// What a group holds for one lane.
#[derive(Default)]
struct Batch {
    ready: Vec<Ready>,
    waiters: Vec<Waiter>,
}

/// The writer's own state; it lives on the writer's thread.
pub(crate) struct Writer {
    shared: Arc<Shared>,
    jobs: Receiver<Job>,
    pens: Vec<Pen>,
    pause: Duration,
}

impl Writer {
    pub(crate) fn new(shared: Arc<Shared>, jobs: Receiver<Job>, pens: Vec<Pen>) -> Self {
        Self { shared, jobs, pens, pause: FIRST_PAUSE }
    }

    /// Runs until it is stopped or nobody can submit any more.
    pub(crate) fn run(mut self) {
        let mut group = Vec::with_capacity(GROUP_RECORDS);
        loop {
            let job = if self.pens.iter().any(Pen::is_in_trouble) {
                match self.jobs.recv_timeout(self.pause) {
                    Ok(job) => Some(job),
                    Err(RecvTimeoutError::Timeout) => {
                        self.retry();
                        None
                    }
                    Err(RecvTimeoutError::Disconnected) => return,
                }
            } else {
                match self.jobs.recv() {
                    Ok(job) => Some(job),
                    Err(_) => return,
                }
            };
            let Some(job) = job else { continue };
            let mut bytes = 0;
            let mut other = self.take(job, &mut group, &mut bytes);
            while other.is_none() && group.len() < GROUP_RECORDS && bytes < GROUP_BYTES {
                match self.jobs.try_recv() {
                    Ok(job) => other = self.take(job, &mut group, &mut bytes),
                    Err(_) => break,
                }
            }
            self.store(&mut group);
            match other {
                None | Some(Job::Submit(_)) => {}
                Some(Job::NewEpoch { lane, after, answer }) => {
                    let outcome = self.pens[lane].new_epoch(&self.shared, after);
                    let _ = answer.send(outcome);
                }
                Some(Job::Retire { lane, tail }) => self.pens[lane].retire(&self.shared, tail),
                Some(Job::Pulse(answer)) => drop(answer.send(())),
                Some(Job::Stop) => return,
            }
        }
    }

    /// Takes a submission into the group; anything else ends the group and is done after it.
    fn take(&self, job: Job, group: &mut Vec<Queued>, bytes: &mut usize) -> Option<Job> {
        match job {
            Job::Submit(queued) => {
                *bytes += queued.submission.body.len();
                group.push(*queued);
                None
            }
            other => Some(other),
        }
    }

    fn retry(&mut self) {
        let shared = &self.shared;
        self.pens.iter_mut().for_each(|pen| pen.settle(shared));
        if self.pens.iter().any(Pen::is_in_trouble) {
            self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        } else {
            self.pause = FIRST_PAUSE;
        }
    }

    fn store(&mut self, group: &mut Vec<Queued>) {
        if group.is_empty() {
            return;
        }
        let mut batches: Vec<Batch> = self.pens.iter().map(|_| Batch::default()).collect();
        // Repetitions within the group, by a hash that says where to compare.
        let mut seen: HashMap<u64, Vec<(usize, usize)>> = HashMap::with_capacity(group.len());
        for queued in group.drain(..) {
            self.admit(queued, &mut batches, &mut seen);
        }
        for (pen, mut batch) in self.pens.iter_mut().zip(batches) {
            if batch.ready.is_empty() && batch.waiters.is_empty() {
                continue;
            }
            let outcome = pen.store(&self.shared, std::mem::take(&mut batch.ready));
            self.shared
                .answered(batch.waiters.iter().map(|w| (w.cost, w.entered.elapsed())), outcome.is_ok());
            for waiter in batch.waiters {
                let _ = waiter.answer.send(match &outcome {
                    Ok(()) => Ok(waiter.accepted),
                    Err(trouble) => Err(Refusal::Trouble(trouble.clone())),
                });
            }
        }
    }

    /// Decides about one submission: a repetition, refused, or new in its lane's batch.
    fn admit(&mut self, queued: Queued, batches: &mut [Batch], seen: &mut HashMap<u64, Vec<(usize, usize)>>) {
        let Queued { lane, submission, tags, cost, entered, answer } = queued;
        let shared = Arc::clone(&self.shared);
        let refuse = |answer: oneshot::Sender<_>, refusal| {
            shared.answered(std::iter::once((cost, entered.elapsed())), false);
            let _ = answer.send(Err(refusal));
        };
        let mut key_reused = false;
        // A repetition of a queued record shares that record's barrier and fate.
        for (batch_index, index) in seen.get(&tags.key).into_iter().flatten().copied() {
            let batch = &mut batches[batch_index];
            let Some(Ready { position, transaction: first, .. }) = batch.ready.get(index) else { continue };
            if first.source != submission.source || first.key != submission.key {
                continue;
            }
            if batch_index == lane && first.body == submission.body {
                let accepted = Accepted {
                    id: first.id,
                    position: *position,
                    time: first.time,
                    repeated: true,
                    key_reused: false,
                };
                shared.repeated.fetch_add(1, Ordering::Relaxed);
                batch.waiters.push(Waiter { entered, cost, answer, accepted });
                return;
            }
            key_reused |= !submission.key.is_empty() && first.body != submission.body;
        }
        match shared.find_stored(lane, &submission, tags) {
            Ok(known) => {
                if let Some(accepted) = known.repetition {
                    shared.repeated.fetch_add(1, Ordering::Relaxed);
                    shared.answered(std::iter::once((cost, entered.elapsed())), true);
                    let _ = answer.send(Ok(accepted));
                    return;
                }
                key_reused |= known.key_reused;
            }
            Err(trouble) => return refuse(answer, Refusal::Trouble(trouble)),
        }
        if let Err(full) = shared.admits(lane) {
            return refuse(answer, full);
        }
        let pen = &mut self.pens[lane];
        if let Some(trouble) = pen.trouble() {
            return refuse(answer, Refusal::Trouble(trouble.to_owned()));
        }
        let batch = &mut batches[lane];
        let transaction = Transaction {
            id: TransactionId(Uuid::now_v7()),
            time: unix_millis_now(),
            event_type: submission.event_type,
            kind: submission.kind,
            content_type: submission.content_type,
            source: submission.source,
            key: submission.key,
            correlation_id: submission.correlation_id,
            clock: shared.clock(),
            test_data: submission.test_data,
            body: submission.body,
        };
        let ready = match pen.number(&shared, transaction, tags) {
            Ok(ready) => ready,
            Err(trouble) => return refuse(answer, Refusal::Trouble(trouble)),
        };
        let accepted = Accepted {
            id: ready.transaction.id,
            position: ready.position,
            time: ready.transaction.time,
            repeated: false,
            key_reused,
        };
        seen.entry(tags.key).or_default().push((lane, batch.ready.len()));
        batch.ready.push(ready);
        batch.waiters.push(Waiter { entered, cost, answer, accepted });
    }
}
