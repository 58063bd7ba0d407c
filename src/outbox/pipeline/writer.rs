//! The writer: one thread does every append, so that order needs no lock, and commits in groups.
//!
//! A group is everything queued at that moment, at most [`GROUP_RECORDS`] and about [`GROUP_BYTES`]; the writer never waits
//! for it to fill. It is numbered, chained, sealed, inserted, brought behind the barrier, and only then published and answered.
//!
//! If more is queued already, the fsync worker ([`crate::pipeline::fsync_worker`]) waits for the barrier while the writer
//! prepares and inserts the next group. That barrier does not cover it; it waits for one of its own. At most one barrier
//! and one group behind it are under way in a lane.
//!
//! When a segment fails, the writer first writes everything beyond its last good barrier to another one. Until that
//! works the lane refuses new work, and the writer keeps trying.

use std::collections::{HashMap, VecDeque};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use pgw_core::transaction::{Position, Transaction, TransactionId, unix_millis_now};
use tokio::sync::oneshot;
use uuid::Uuid;

use crate::errors::Refusal;
use crate::guard::segment::SegmentError;
use crate::lock::locked;
use crate::pipeline::duplicates::Answerable;
use crate::pipeline::jobs::{FirstAcceptance, GROUP_BYTES, GROUP_RECORDS, Job, Queued, WantedBarrier};
use crate::pipeline::lane_writer::LaneWriter;
use crate::pipeline::shared::SharedOutbox;
use crate::types::Accepted;

/// First pause before a failed lane is tried again, doubled up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// A sender that waits for a record to be behind the barrier.
struct Waiter {
    entered: Instant,
    cost: u64,
    answer: oneshot::Sender<Result<Accepted, Refusal>>,
    accepted: Accepted,
}

/// How a submission compares with the records that wait for their barrier.
enum PendingMatch {
    /// The same transaction, in the same lane.
    Same(Accepted),
    /// None is the same.
    Other {
        /// But one has the same key and other bytes.
        same_key: bool,
    },
}

/// The writer's own state; it lives on the writer's thread.
pub(crate) struct Writer {
    shared: Arc<SharedOutbox>,
    jobs: Receiver<Job>,
    /// Taken from the queue and postponed: done before the queue.
    held: VecDeque<Job>,
    fsync_worker: Sender<WantedBarrier>,
    comparer: Sender<(Box<Queued>, Position)>,
    lane_writers: Vec<LaneWriter>,
    /// The waiting senders of each lane.
    waiters: Vec<Vec<Waiter>>,
    /// Lane and position of the pending records, by a hash that says where to compare. Entries that are no longer pending
    /// do no harm.
    seen: HashMap<u64, Vec<(usize, Position)>>,
    /// The pause between two tries of a failed lane.
    pause: Duration,
    retry_at: Option<Instant>,
}

impl Writer {
    pub(crate) fn new(
        shared: Arc<SharedOutbox>,
        jobs: Receiver<Job>,
        lane_writers: Vec<LaneWriter>,
        fsync_worker: Sender<WantedBarrier>,
        comparer: Sender<(Box<Queued>, Position)>,
    ) -> Self {
        let waiters = lane_writers.iter().map(|_| Vec::new()).collect();
        let (held, seen) = (VecDeque::new(), HashMap::new());
        Self {
            shared,
            jobs,
            held,
            fsync_worker,
            comparer,
            lane_writers,
            waiters,
            seen,
            pause: FIRST_PAUSE,
            retry_at: None,
        }
    }

    /// Runs until it is stopped or no handle is left to submit.
    pub(crate) fn run(mut self) {
        loop {
            let Some(job) = self.next_job() else { return };
            match job {
                Job::Submit(first) => self.store(*first),
                Job::BarrierEnded { lane, outcome } => self.barrier_ended(lane, outcome),
                other => {
                    self.finish_barriers();
                    if self.other(other).is_break() {
                        return;
                    }
                }
            }
            self.begin_barriers();
        }
    }

    /// The next job. Meanwhile a failed lane is tried again when it is due, however much comes in. `None`: no handle is left
    /// to submit.
    fn next_job(&mut self) -> Option<Job> {
        while self.lane_writers.iter().any(LaneWriter::is_in_trouble) {
            let pause = self.pause;
            let at = *self.retry_at.get_or_insert_with(|| Instant::now() + pause);
            let left = at.saturating_duration_since(Instant::now());
            if left.is_zero() {
                self.retry_at = None;
                self.retry();
                continue;
            }
            if let Some(job) = self.held.pop_front() {
                return Some(job);
            }
            match self.jobs.recv_timeout(left) {
                Ok(job) => return Some(job),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return None,
            }
        }
        self.held.pop_front().or_else(|| self.jobs.recv().ok())
    }

    /// Does a job that must wait until all records before it are behind their barrier or have failed.
    fn other(&mut self, job: Job) -> ControlFlow<()> {
        match job {
            Job::Retire { lane, tail } => self.lane_writers[lane].retire(&self.shared, tail),
            Job::Pulse(answer) => drop(answer.send(())),
            Job::Stop => return ControlFlow::Break(()),
            Job::Submit(_) | Job::BarrierEnded { .. } => {}
        }
        ControlFlow::Continue(())
    }

    fn retry(&mut self) {
        let shared = &self.shared;
        self.lane_writers.iter_mut().for_each(|lane_writer| lane_writer.retry(shared));
        if self.lane_writers.iter().any(LaneWriter::is_in_trouble) {
            self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        } else {
            self.pause = FIRST_PAUSE;
        }
    }

    /// Takes the queue as a group, and adds it to the segments.
    fn store(&mut self, first: Queued) {
        let mut most = GROUP_RECORDS;
        for lane in 0..self.lane_writers.len() {
            while self.lane_writers[lane].room(&self.shared) == 0 {
                self.wait_for(lane);
                self.begin_barriers();
            }
            most = most.min(self.lane_writers[lane].room(&self.shared));
        }
        let (mut taken, mut bytes) = (0, 0);
        let mut next = Some(first);
        while let Some(queued) = next.take() {
            taken += 1;
            bytes += queued.submission.body.len();
            self.admit(queued);
            if taken == most || bytes >= GROUP_BYTES {
                break;
            }
            match self.held.pop_front().or_else(|| self.jobs.try_recv().ok()) {
                Some(Job::Submit(queued)) => next = Some(*queued),
                Some(other) => self.held.push_front(other),
                None => {}
            }
        }
        for lane_writer in &mut self.lane_writers {
            lane_writer.append(&self.shared);
        }
    }

    /// Begins every barrier that is due: on this thread if nothing else is to be done, else on the fsync worker's.
    fn begin_barriers(&mut self) {
        for lane in 0..self.lane_writers.len() {
            while !self.lane_writers[lane].is_idle()
                && !self.lane_writers[lane].is_under_way()
                && !self.lane_writers[lane].is_in_trouble()
            {
                let Some(segment) = self.lane_writers[lane].begin_barrier() else {
                    let outcome = self.lane_writers[lane].replace(&self.shared);
                    self.answer(lane, outcome);
                    continue;
                };
                if self.held.is_empty() {
                    self.held.extend(self.jobs.try_recv());
                }
                let quiet = self.held.is_empty();
                if quiet
                    || self.fsync_worker.send(WantedBarrier { lane, segment: Arc::clone(&segment) }).is_err()
                {
                    self.barrier_ended(lane, segment.barrier());
                }
            }
        }
    }

    fn barrier_ended(&mut self, lane: usize, outcome: Result<(), SegmentError>) {
        let outcome = self.lane_writers[lane].barrier_ended(&self.shared, outcome);
        self.answer(lane, outcome);
    }

    /// Waits for the end of the barrier under way in a lane.
    fn wait_for(&mut self, lane: usize) {
        let ours = |job: &Job| matches!(job, Job::BarrierEnded { lane: barrier_ended, .. } if *barrier_ended == lane);
        let mut job = self.held.iter().position(ours).and_then(|index| self.held.remove(index));
        while self.lane_writers[lane].is_under_way() {
            match job.take().or_else(|| self.jobs.recv().ok()) {
                Some(Job::BarrierEnded { lane, outcome }) => self.barrier_ended(lane, outcome),
                Some(other) => self.held.push_back(other),
                None => return,
            }
        }
    }

    /// Brings every pending record behind its barrier, or notes its lane as failed.
    fn finish_barriers(&mut self) {
        for lane in 0..self.lane_writers.len() {
            loop {
                self.begin_barriers();
                if !self.lane_writers[lane].is_under_way() {
                    break;
                }
                self.wait_for(lane);
            }
        }
    }

    /// Answers the senders whose records are behind the barrier; after a failure, all.
    fn answer(&mut self, lane: usize, outcome: Result<(), Refusal>) {
        let tail = self.lane_writers[lane].tail();
        let done: Vec<_> = self.waiters[lane]
            .extract_if(.., |waiter| outcome.is_err() || waiter.accepted.position <= tail)
            .collect();
        self.shared.answered(done.iter().map(|w| (w.cost, w.entered.elapsed())), outcome.is_ok());
        for waiter in done {
            let _ = waiter.answer.send(match &outcome {
                Ok(()) => Ok(waiter.accepted),
                Err(refusal) => Err(refusal.clone()),
            });
        }
        if self.seen.len() > 4 * GROUP_RECORDS {
            let lane_writers = &self.lane_writers;
            self.seen.retain(|_, places| {
                places.retain(|(lane, position)| *position > lane_writers[*lane].tail());
                !places.is_empty()
            });
        }
    }

    /// Decides whether a submission is a repetition, refused, or new in its lane.
    fn admit(&mut self, queued: Queued) {
        let lane = queued.lane;
        let mut key_reused = false;
        match self.find_pending(&queued) {
            PendingMatch::Same(accepted) => return self.repeat_pending(queued, accepted),
            PendingMatch::Other { same_key } => key_reused |= same_key,
        }
        match self.shared.find_stored(lane, &queued.submission, queued.fingerprints, &queued.compared) {
            Answerable::Now(known) => {
                if let Some(accepted) = known.repetition {
                    self.shared.repeated.fetch_add(1, Ordering::Relaxed);
                    self.shared.answered(std::iter::once((queued.cost, queued.entered.elapsed())), true);
                    let _ = queued.answer.send(Ok(accepted));
                    return;
                }
                key_reused |= known.key_reused;
            }
            Answerable::AfterComparing(position) => {
                if let Err(back) = self.comparer.send((Box::new(queued), position)) {
                    let trouble = Refusal::Trouble("repetitions cannot be compared any more".into());
                    self.refuse(*back.0.0, trouble);
                }
                return;
            }
            Answerable::Trouble(trouble) => return self.refuse(queued, Refusal::Trouble(trouble)),
        }
        if let Err(full) = self.shared.admits(lane) {
            return self.refuse(queued, full);
        }
        if let Some(trouble) = self.lane_writers[lane].trouble() {
            let trouble = trouble.to_owned();
            return self.refuse(queued, Refusal::Trouble(trouble));
        }
        self.take(queued, key_reused);
    }

    fn refuse(&self, queued: Queued, refusal: Refusal) {
        self.shared.answered(std::iter::once((queued.cost, queued.entered.elapsed())), false);
        let _ = queued.answer.send(Err(refusal));
    }

    /// Whether the same transaction already waits for its barrier.
    fn find_pending(&self, queued: &Queued) -> PendingMatch {
        let submission = &queued.submission;
        let mut same_key = false;
        for (first_lane, position) in self.seen.get(&queued.fingerprints.key).into_iter().flatten().copied() {
            let Some(ready) = self.lane_writers[first_lane].pending_at(position) else { continue };
            let first = &ready.transaction;
            if first.sender_as_given() != submission.sender || first.key != submission.key {
                continue;
            }
            let same_body = ready.has_body(&self.shared.sealer, &submission.body);
            if first_lane == queued.lane && same_body {
                let (id, time) = (first.id, first.time);
                return PendingMatch::Same(Accepted {
                    id,
                    position,
                    time,
                    repeated: true,
                    key_reused: false,
                    withheld: false,
                });
            }
            same_key |= !submission.key.is_empty() && !same_body;
        }
        PendingMatch::Other { same_key }
    }

    /// A repetition of a pending record gets the same answer as that record.
    fn repeat_pending(&mut self, queued: Queued, accepted: Accepted) {
        if let Some(trouble) = self.lane_writers[queued.lane].trouble() {
            let trouble = trouble.to_owned();
            return self.refuse(queued, Refusal::Trouble(trouble));
        }
        self.shared.repeated.fetch_add(1, Ordering::Relaxed);
        let Queued { lane, entered, cost, answer, .. } = queued;
        self.waiters[lane].push(Waiter { entered, cost, answer, accepted });
    }

    /// Gives a new transaction its place in its lane.
    fn take(&mut self, queued: Queued, key_reused: bool) {
        let Queued { lane, submission, wire_sender, first, fingerprints, cost, entered, answer, .. } = queued;
        let FirstAcceptance { id, time, clock } = first.unwrap_or_else(|| FirstAcceptance {
            id: TransactionId(Uuid::now_v7()),
            time: unix_millis_now(),
            clock: self.shared.clock(),
        });
        let (sender, given_sender) = match wire_sender {
            Some(changed) => (changed, Some(submission.sender)),
            None => (submission.sender, None),
        };
        let transaction = Transaction {
            id,
            time,
            event_type: self.shared.settings.types.whole(submission.event_type),
            kind: submission.kind,
            content_type: submission.content_type,
            sender,
            given_sender,
            key: submission.key,
            shows_key: submission.shows_key,
            correlation_id: submission.correlation_id,
            trace_parent: submission.trace_parent,
            clock,
            body: submission.body,
        };
        let ready = match self.lane_writers[lane].take(&self.shared, transaction, fingerprints) {
            Ok(ready) => ready,
            Err(refusal) => {
                self.shared.answered(std::iter::once((cost, entered.elapsed())), false);
                let _ = answer.send(Err(refusal));
                return;
            }
        };
        let position = ready.position;
        if first.is_some() {
            locked(&self.shared.lanes[lane].accepted).is_not_known_of(position);
        }
        let accepted = Accepted { id, position, time, repeated: false, key_reused, withheld: false };
        self.seen.entry(fingerprints.key).or_default().push((lane, position));
        self.waiters[lane].push(Waiter { entered, cost, answer, accepted });
    }
}
