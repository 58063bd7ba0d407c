//! Confirmed transactions that a hub or a person requests again, sent with the same ids and numbers.
//!
//! They are sent beside the machines and never replace their work: only confirmed transactions are sent this way, the
//! machines send the waiting ones and do not know of these, and lanes come first whenever they have something to send.
//! A hub stores none of them twice.

use std::collections::VecDeque;
use std::time::Duration;

use pgw_core::consequence::Consequence;
use pgw_core::transaction::{Epoch, Lane, Position, Sequence, rfc3339, unix_millis_now};
use pgw_core::wire::command::CommandResult;
use pgw_outbox::ReadError;
use tokio::sync::watch;

use super::command_gate::NotObeyed;
use super::reader::Ready;
use super::refusal::refusal;

/// The slowest link that does not count as dead, bytes a second.
const SLOWEST: u64 = 2 * 1024;

/// The progress of a range.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ResendProgress {
    /// The last position that the broker has taken.
    pub arrived: Position,
    /// The result, or why it failed.
    pub ended: Option<Result<Resent, ResendFailed>>,
}

/// The result of a resend.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Resent {
    /// Transactions that the broker has taken.
    pub count: u64,
    /// Positions that can no longer be read.
    pub missing: u64,
    /// The broker had no subscriber for some of them.
    pub unsubscribed: bool,
}

/// Why a range was not sent again, or not completely.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ResendFailed {
    /// There is no connection.
    #[error("the link is down: run this command again when it is up (waiting transactions are sent anyway)")]
    LinkDown,
    /// The hub's command is not for this connection, or too late.
    #[error(transparent)]
    NotObeyed(#[from] NotObeyed),
    /// The hub asks for numbers that this gateway has never given.
    #[error("lane {lane} of this gateway does not know sequences {from} to {through} of epoch {epoch}")]
    UnknownSequences {
        /// The lane.
        lane: Lane,
        /// The epoch.
        epoch: Epoch,
        /// The first sequence.
        from: Sequence,
        /// The last one.
        through: Sequence,
    },
    /// The hub is newer.
    #[error("this version does not know the command")]
    UnknownCommand,
    /// No such lane is configured.
    #[error("there is no lane {0}")]
    UnknownLane(Lane),
    /// It is no range.
    #[error("the first position must be 1 or more, and the last must not be before it")]
    Range,
    /// Part of the range is still waiting.
    #[error("lane {lane} is confirmed through {confirmed} only: later transactions are sent anyway")]
    NotConfirmed {
        /// The lane.
        lane: Lane,
        /// Its last confirmed position.
        confirmed: Position,
    },
    /// All of the range is pruned.
    #[error("lane {lane} no longer has anything before position {first}")]
    Pruned {
        /// The lane.
        lane: Lane,
        /// The first position that it still has.
        first: Position,
    },
    /// Its positions had numbers of several epochs last.
    #[error("the positions from {0} on had their numbers in more than one epoch: send each part by itself")]
    TwoEpochs(Position),
    /// Too many ranges wait for their turn.
    #[error("too many ranges are waiting already")]
    TooMany,
    /// The store has no record and no error.
    #[error("the records cannot be read now")]
    NothingRead,
    /// The store fails.
    #[error("the store has failed: {0}")]
    StoreFailed(String),
    /// The broker refused one; nothing after it was sent.
    #[error("the broker refused position {position}: {reason}")]
    BrokerRefused {
        /// The position.
        position: Position,
        /// The meaning of the broker's code.
        reason: String,
    },
    /// The broker's limit is below the size of one.
    #[error("the broker does not accept position {0}: it is too large")]
    TooLarge(Position),
}

impl ResendFailed {
    /// How the command ends.
    #[must_use]
    pub fn consequence(&self) -> Consequence {
        match self {
            Self::LinkDown | Self::TooMany | Self::NothingRead | Self::StoreFailed(_) => Consequence::Retry,
            Self::NotObeyed(_)
            | Self::UnknownSequences { .. }
            | Self::UnknownCommand
            | Self::UnknownLane(_)
            | Self::Range
            | Self::TwoEpochs(_)
            | Self::NotConfirmed { .. }
            | Self::Pruned { .. }
            | Self::BrokerRefused { .. }
            | Self::TooLarge(_) => Consequence::Refuse,
        }
    }
}

/// Who requested a range.
pub(super) enum Requester {
    Person(watch::Sender<ResendProgress>),
    Hub(String),
}

/// A range of a lane that is being sent.
pub(super) struct Resend {
    pub(super) lane: usize,
    /// Whose numbers they get.
    pub(super) epoch: Epoch,
    pub(super) next: Position,
    pub(super) through: Position,
    arrived: Position,
    pub(super) ready: VecDeque<Ready>,
    pub(super) reading: bool,
    pub(super) under_way: VecDeque<u64>,
    missing_through: Position,
    pub(super) done: Resent,
    requester: Requester,
}

/// All ranges; the first is being sent.
#[derive(Default)]
pub(super) struct Resends {
    pub(super) ranges: VecDeque<Resend>,
    /// Still in flight, of a range that has ended early.
    left_over: usize,
    /// Results for the hubs, not sent yet.
    pub(super) results: Vec<CommandResult>,
}

impl Resends {
    /// What was handed to the lost connection does not count.
    pub(super) fn disconnected(&mut self) {
        self.left_over = 0;
        if let Some(range) = self.ranges.front_mut() {
            range.ready.clear();
            range.under_way.clear();
            range.next = range.arrived + 1;
            range.reading = false;
        }
    }

    /// Transactions that this connection was handed and the broker has not taken yet.
    pub(super) fn under_way(&self) -> usize {
        self.left_over + self.ranges.front().map_or(0, |range| range.under_way.len())
    }

    /// How long the broker may take for what is in flight, at least.
    pub(super) fn patience(&self) -> Duration {
        let bytes: u64 = self.ranges.front().map_or(0, |range| range.under_way.iter().sum());
        Duration::from_secs(bytes / SLOWEST)
    }

    /// The question to the lane's thread.
    pub(super) fn read(&mut self, lane: usize, from: Position, records: Result<Vec<Ready>, ReadError>) {
        let Some(range) = self.ranges.front_mut().filter(|range| range.lane == lane && range.next == from)
        else {
            return;
        };
        range.reading = false;
        match records {
            Ok(records) if records.is_empty() => self.end(Err(ResendFailed::NothingRead)),
            Ok(records) => {
                for ready in records.into_iter().filter(|ready| ready.position <= range.through) {
                    range.next = ready.position + 1;
                    range.ready.push_back(ready);
                }
            }
            Err(ReadError::Gone { position, .. }) => {
                let position = position.max(from);
                if position > range.missing_through && position <= range.through {
                    range.done.missing += 1;
                    range.missing_through = position;
                }
                range.next = position + 1;
            }
            Err(error @ ReadError::Unproven { .. }) => {
                self.end(Err(ResendFailed::StoreFailed(error.to_string())));
            }
            Err(ReadError::Trouble(reason)) => self.end(Err(ResendFailed::StoreFailed(reason))),
        }
    }

    /// The broker has acknowledged one.
    pub(super) fn acknowledged(&mut self, position: Position, outcome: Result<(), u8>) {
        if self.left_over > 0 {
            // They were sent first, so they are acknowledged first.
            self.left_over -= 1;
            return;
        }
        let Some(range) = self.ranges.front_mut() else { return };
        range.under_way.pop_front();
        match outcome {
            // "No matching subscribers" (MQTT 5 §3.4.2.1): the broker has taken it, but nobody received it.
            Ok(()) | Err(0x10) => {
                range.arrived = position;
                range.done.count += 1;
                range.done.unsubscribed |= outcome.is_err();
                if let Requester::Person(watcher) = &range.requester {
                    watcher.send_modify(|progress| progress.arrived = position);
                }
            }
            Err(code) => {
                let reason = refusal(code).to_string();
                self.end(Err(ResendFailed::BrokerRefused { position, reason }));
            }
        }
    }

    /// Accepts a range. `from` and `through` are confirmed positions of a configured lane.
    pub(super) fn begin(
        &mut self,
        lane: usize,
        epoch: Epoch,
        (from, through): (Position, Position),
        requester: Requester,
    ) {
        self.ranges.push_back(Resend {
            lane,
            epoch,
            next: from,
            through,
            arrived: from.saturating_sub(1),
            ready: VecDeque::new(),
            reading: false,
            under_way: VecDeque::new(),
            missing_through: 0,
            done: Resent::default(),
            requester,
        });
    }

    pub(super) fn end(&mut self, outcome: Result<Resent, ResendFailed>) {
        if let Some(range) = self.ranges.pop_front() {
            self.left_over += range.under_way.len();
            self.report(range.requester, outcome);
        }
    }

    pub(super) fn report(&mut self, requester: Requester, outcome: Result<Resent, ResendFailed>) {
        match requester {
            Requester::Person(watcher) => watcher.send_modify(|progress| progress.ended = Some(outcome)),
            Requester::Hub(id) => self.results.push(result(id, outcome)),
        }
    }
}

/// The answer to the hub's command.
fn result(id: String, outcome: Result<Resent, ResendFailed>) -> CommandResult {
    let detail = match &outcome {
        Ok(Resent { missing, .. }) if *missing > 0 => format!("{missing} are no longer in the outbox"),
        _ => String::new(),
    };
    let count = outcome.map(|resent| resent.count).map_err(|error| error.to_string());
    CommandResult::new(id, count, detail, rfc3339(unix_millis_now()))
}
