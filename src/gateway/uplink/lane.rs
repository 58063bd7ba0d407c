//! One lane: its delivery machine, its read-ahead, and its thread for the outbox.

use std::collections::VecDeque;

use pgw_core::chain::{ChainValue, Through};
use pgw_core::delivery::{Action, Delivery, Input, Layout, Limits, Millis, Point};
use pgw_core::transaction::{Epoch, Lane, Position, Sequence};
use pgw_outbox::{Outbox, ReadError, Watermark};
use tokio::sync::{oneshot, watch};

use super::orders::OrderError;
use super::reader::{Reader, ReaderAnswer, Ready};

/// Most records and bytes in one read: a lane then holds about 1.5 MiB and 512 records.
const READ_RECORDS: usize = 256;
const READ_BYTES: usize = 512 * 1024;
/// A failing store, or a record that is not visible yet, is read again after this time.
const RETRY_AFTER: Millis = 500;

/// The answer to an order to lay out an epoch.
type LaidOut = oneshot::Sender<Result<Option<Position>, OrderError>>;

/// A running lane.
pub(super) struct LaneWork {
    pub(super) lane: Lane,
    /// `position/{lane}`.
    pub(super) position_topic: String,
    pub(super) machine: Delivery,
    /// The machine's actions, in order; drained by the driver.
    pub(super) actions: Vec<Action>,
    tail: watch::Receiver<Position>,
    reader: Reader,
    /// Read ahead, in order, without gaps.
    ahead: VecDeque<Ready>,
    ahead_bytes: u64,
    /// The position after the last that was read.
    read_through: Position,
    reading: bool,
    /// Incremented when the read-ahead is dropped: an answer with an older number is ignored.
    generation: u64,
    /// What is to be read next can no longer be read.
    unreadable: Option<Position>,
    retry_at: Option<Millis>,
    /// Who waits for the epoch that a file asked for, and the position before it.
    laying_out: Option<(Position, LaidOut)>,
    /// A chain value that could not be looked up, and when to try it again.
    look_up_again: Option<(Epoch, Sequence, Millis)>,
    /// What is to be read next has no chain value in the present epoch.
    unproven: Option<Position>,
    outbox: Outbox,
}

/// The outbox has no such lane, although it is configured.
#[derive(Debug)]
pub(super) struct UnknownLane;

impl LaneWork {
    /// Starts the lane from the outbox's state.
    pub(super) fn new(
        lane: Lane,
        position_topic: String,
        limits: Limits,
        outbox: &Outbox,
        reader: Reader,
    ) -> Result<Self, UnknownLane> {
        let tail = outbox.tail(&lane).ok_or(UnknownLane)?;
        let numbering = outbox.numbering(&lane).ok_or(UnknownLane)?;
        let confirmed = outbox
            .watermark(&lane)
            .and_then(|Watermark { position, point }| point.map(|at| Point { position, at }));
        let now = *tail.borrow();
        let since_diverged = outbox.since_diverged(&lane);
        let since_diverged =
            since_diverged.map(|ago| Millis::try_from(ago.as_millis()).unwrap_or(Millis::MAX));
        let mut machine = Delivery::new(limits, numbering, confirmed, now).diverged_before(since_diverged);
        machine.handle(Input::Gone(outbox.gone(&lane)), 0, &mut Vec::new());
        Ok(Self {
            outbox: outbox.clone(),
            lane,
            position_topic,
            machine,
            actions: Vec::new(),
            tail,
            reader,
            ahead: VecDeque::new(),
            ahead_bytes: 0,
            read_through: 0,
            reading: false,
            generation: 0,
            unreadable: None,
            retry_at: None,
            laying_out: None,
            look_up_again: None,
            unproven: None,
        })
    }

    /// Another receiver, for the task that wakes the driver.
    pub(super) fn tail(&self) -> watch::Receiver<Position> {
        self.tail.clone()
    }

    /// Passes an input to the machine.
    pub(super) fn handle(&mut self, input: Input, now: Millis) {
        self.machine.handle(input, now, &mut self.actions);
    }

    /// A person has changed what stalls the lane: its head is retried.
    pub(super) fn retry_head(&mut self, now: Millis) {
        self.forget();
        self.look_at_gone(now);
        self.handle(Input::ReleaseHeld, now);
    }

    /// A bundle is to begin where the hub's line ends, as a file says.
    pub(super) fn lay_out(
        &mut self,
        end: Option<Through>,
        ours: Option<ChainValue>,
        answer: LaidOut,
        now: Millis,
    ) {
        self.look_at_tail(now);
        self.look_at_gone(now);
        let counts = self.machine.counts();
        let refused = if counts.answered {
            Some(OrderError::HubAnswers(self.lane.clone()))
        } else if counts.beginning {
            Some(OrderError::Beginning(self.lane.clone()))
        } else {
            None
        };
        let layout = self.machine.layout(end, ours, None);
        match (refused, layout) {
            (Some(refused), _) => drop(answer.send(Err(refused))),
            (None, None) => drop(answer.send(Ok(None))),
            (None, Some(Layout::Continues(after))) => drop(answer.send(Ok(Some(after)))),
            (None, Some(Layout::Begins(after))) => {
                self.laying_out = Some((after, answer));
                self.handle(Input::EndByFile { end, ours, set_aside: None }, now);
            }
        }
    }

    /// Tells the machine what can no longer be read, if that has changed.
    pub(super) fn look_at_gone(&mut self, now: Millis) {
        let gone = self.outbox.gone(&self.lane);
        self.handle(Input::Gone(gone), now);
    }

    /// Tells the machine how far the outbox has committed.
    pub(super) fn look_at_tail(&mut self, now: Millis) {
        let tail = *self.tail.borrow_and_update();
        if tail != self.machine.tail() {
            self.handle(Input::Committed(tail), now);
        }
    }

    /// Offers the machine its next record if that is available. True: it was offered (the machine decides whether to
    /// send it).
    pub(super) fn offer(&mut self, now: Millis) -> bool {
        let Some(wanted) = self.machine.wanted() else { return false };
        if self.unreadable == Some(wanted) {
            self.unreadable = None;
            self.look_at_gone(now);
            self.handle(Input::Missing(wanted), now);
            return true;
        }
        while self.ahead.front().is_some_and(|ready| ready.position < wanted) {
            self.take_front();
        }
        let Some(front) = self.ahead.front() else { return false };
        if front.position != wanted {
            // It went back: the read-ahead is of no use now.
            self.forget();
            return false;
        }
        let input = Input::Offer { position: wanted, bytes: front.bytes, chain: front.chain };
        self.machine.handle(input, now, &mut self.actions);
        true
    }

    /// The record that the machine sends now.
    pub(super) fn take(&mut self, position: Position) -> Option<Ready> {
        if self.ahead.front().is_some_and(|ready| ready.position == position) {
            self.take_front()
        } else {
            None
        }
    }

    fn take_front(&mut self) -> Option<Ready> {
        let ready = self.ahead.pop_front()?;
        self.ahead_bytes = self.ahead_bytes.saturating_sub(ready.bytes);
        Some(ready)
    }

    fn forget(&mut self) {
        self.ahead.clear();
        self.ahead_bytes = 0;
        self.generation += 1;
        self.reading = false;
        self.unreadable = None;
    }

    /// Keeps the read-ahead full while the link is live.
    pub(super) fn read_ahead(&mut self, now: Millis) {
        self.retry_at = self.retry_at.filter(|at| now < *at);
        if let Some((epoch, sequence, _)) = self.look_up_again.take_if(|(.., at)| now >= *at) {
            self.reader.chain_at(epoch, sequence);
        }
        let next = self.machine.next();
        let from = match self.ahead.front() {
            Some(front) if front.position <= next && next <= self.read_through => self.read_through,
            Some(_) => {
                self.forget();
                next
            }
            None => next,
        };
        let full = self.ahead.len() >= READ_RECORDS || self.ahead_bytes >= READ_BYTES as u64;
        let missing = self.unreadable.is_some() || self.machine.counts().missing == Some(next);
        if self.reading || full || self.retry_at.is_some() || missing || from > self.machine.tail() {
            return;
        }
        self.reading = true;
        let round = self.machine.round().unwrap_or_default();
        self.reader.read(self.generation, from, (READ_RECORDS, READ_BYTES), round);
    }

    /// The thread has answered.
    pub(super) fn answered(&mut self, answer: ReaderAnswer, now: Millis) {
        match answer {
            ReaderAnswer::Records { generation, from, records } => {
                if generation == self.generation {
                    self.reading = false;
                    self.records(from, records, now);
                }
            }
            // Not for the machine: the driver has handled it.
            ReaderAnswer::Resend { .. } => {}
            ReaderAnswer::ChainAt { epoch, sequence, chain: Ok(chain) } => {
                self.handle(Input::ChainAt { epoch, sequence, chain }, now);
            }
            // Not known yet is not unknown: on that a new epoch would begin.
            ReaderAnswer::ChainAt { epoch, sequence, chain: Err(error) } => {
                tracing::warn!(lane = %self.lane, %epoch, sequence, %error, "A chain value cannot be computed now; the gateway retries");
                self.look_up_again = Some((epoch, sequence, now + RETRY_AFTER));
            }
            ReaderAnswer::Renumbered(Ok(numbering)) => {
                self.forget();
                self.handle(Input::Renumbered(numbering), now);
                if let Some((after, answer)) = self.laying_out.take() {
                    let _ = answer.send(Ok(Some(after)));
                }
            }
            ReaderAnswer::Renumbered(Err(error)) => {
                tracing::error!(lane = %self.lane, %error, "A new epoch could not be written; the lane is stalled");
                if let Some((_, answer)) = self.laying_out.take() {
                    let _ = answer.send(Err(OrderError::NotLaidOut(error.to_string())));
                }
                self.handle(Input::NotRenumbered, now);
            }
        }
    }

    fn records(&mut self, from: Position, records: Result<Vec<Ready>, ReadError>, now: Millis) {
        match records {
            Ok(records) if records.is_empty() => self.retry_at = Some(now + RETRY_AFTER),
            Ok(records) => {
                let mut expected = from;
                for ready in records {
                    if ready.position != expected {
                        break;
                    }
                    expected = ready.through + 1;
                    self.ahead_bytes += ready.bytes;
                    self.ahead.push_back(ready);
                }
                self.read_through = expected;
                if expected == from {
                    self.retry_at = Some(now + RETRY_AFTER);
                }
            }
            Err(ReadError::Gone { position, .. }) => self.unreadable = Some(position.max(from)),
            Err(ReadError::Unproven { position, .. }) => {
                self.unproven = Some(position);
                self.retry_at = Some(now + RETRY_AFTER);
            }
            Err(ReadError::Trouble(reason)) => {
                tracing::warn!(lane = %self.lane, reason, "The outbox cannot be read now; the gateway retries");
                self.retry_at = Some(now + RETRY_AFTER);
            }
        }
    }

    /// A position that cannot go in the present epoch: the next answer of a hub decides where another one begins.
    pub(super) fn take_unproven(&mut self) -> Option<Position> {
        self.unproven.take()
    }

    /// The latest time at which something is due.
    pub(super) fn deadline(&self) -> Option<Millis> {
        let look_up_at = self.look_up_again.map(|(.., at)| at);
        [self.machine.deadline(), self.retry_at, look_up_at].into_iter().flatten().min()
    }

    pub(super) fn reader(&self) -> &Reader {
        &self.reader
    }

    /// The connection is gone.
    pub(super) fn disconnected(&mut self, now: Millis) {
        self.look_up_again = None;
        self.handle(Input::Disconnected, now);
    }
}
