//! One lane: its delivery machine, its read-ahead, and its thread for the outbox.

use std::collections::VecDeque;

use pgw_core::chain::ChainValue;
use pgw_core::delivery::{Action, Delivery, Input, Limits, Millis, Nonce, Numbering};
use pgw_core::transaction::{Lane, Position};
use pgw_core::wire::SCHEMA;
use pgw_core::wire::receipt;
use pgw_outbox::{Outbox, ReadError};
use tokio::sync::watch;

use super::reader::{Reader, ReaderAnswer, Ready};

/// Most records and bytes in one read: a lane then holds about 1.5 MiB and 512 records.
const READ_RECORDS: usize = 256;
const READ_BYTES: usize = 512 * 1024;
/// A failing store, or a record that is not visible yet, is read again after this time.
const RETRY_AFTER: Millis = 500;

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
    gone: Option<Position>,
    retry_at: Option<Millis>,
    /// Chain value at the machine's confirmed position, as last confirmed.
    watermark_chain: ChainValue,
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
        let first = ChainValue::first(&outbox.lane_name(&lane), numbering.at(1).epoch);
        let watermark =
            outbox.watermark(&lane).map_or((0, first), |watermark| (watermark.position, watermark.chain));
        let now = *tail.borrow();
        let machine = Delivery::new(limits, numbering, watermark, now);
        Ok(Self {
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
            gone: None,
            retry_at: None,
            watermark_chain: watermark.1,
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
    pub(super) fn retry_head(&mut self, numbering: Option<Numbering>, now: Millis) {
        self.gone = None;
        self.forget();
        if let Some(numbering) = numbering.filter(|numbering| numbering != self.machine.numbering()) {
            self.handle(Input::Renumbered(numbering), now);
        }
        self.handle(Input::ReleaseHeld, now);
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
        if self.gone == Some(wanted) {
            self.gone = None;
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
        self.gone = None;
    }

    /// Keeps the read-ahead full while the link is live.
    pub(super) fn read_ahead(&mut self, now: Millis) {
        self.retry_at = self.retry_at.filter(|at| now < *at);
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
        let missing = self.gone.is_some() || self.machine.counts().missing == Some(next);
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
            ReaderAnswer::ChainAt { position, chain } => self.handle(Input::ChainAt { position, chain }, now),
            ReaderAnswer::Renumbered(Ok(numbering)) => {
                self.forget();
                self.handle(Input::Renumbered(numbering), now);
            }
            ReaderAnswer::Renumbered(Err(error)) => {
                tracing::error!(lane = %self.lane, %error, "A new epoch could not be written; the lane is stalled");
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
                    expected += 1;
                    self.ahead_bytes += ready.bytes;
                    self.ahead.push_back(ready);
                }
                self.read_through = expected;
                if expected == from {
                    self.retry_at = Some(now + RETRY_AFTER);
                }
            }
            Err(ReadError::Gone { position, .. }) => self.gone = Some(position.max(from)),
            Err(ReadError::Trouble(reason)) => {
                tracing::warn!(lane = %self.lane, reason, "The outbox cannot be read now; the gateway retries");
                self.retry_at = Some(now + RETRY_AFTER);
            }
        }
    }

    /// The latest time at which something is due.
    pub(super) fn deadline(&self) -> Option<Millis> {
        [self.machine.deadline(), self.retry_at].into_iter().flatten().min()
    }

    /// Records what the hub confirmed.
    pub(super) fn confirmed(&mut self, chain: ChainValue) {
        self.watermark_chain = chain;
    }

    pub(super) fn read_for_resend(&self, from: Position, limits: (usize, usize)) {
        self.reader.read_for_resend(from, limits);
    }

    pub(super) fn look_up_chain(&self, position: Position) {
        self.reader.chain_at(position);
    }

    pub(super) fn new_epoch(&self, after: Position) {
        self.reader.new_epoch(after);
    }

    /// The connection is gone.
    pub(super) fn disconnected(&mut self, now: Millis) {
        self.handle(Input::Disconnected, now);
    }

    /// The position question.
    pub(super) fn question(&self, nonce: &Nonce, session: u64) -> receipt::Position {
        let (numbering, confirmed) = (self.machine.numbering(), self.machine.confirmed());
        let current = numbering.current();
        let point = (confirmed > 0).then(|| {
            let (epoch, through) = numbering.wire(confirmed);
            receipt::Stored { epoch, through, chain: self.watermark_chain }
        });
        receipt::Position {
            schema: SCHEMA,
            session,
            epoch: current.epoch,
            tail: self.machine.tail().saturating_sub(current.base),
            point,
            nonce: receipt::nonce_text(nonce),
        }
    }
}
