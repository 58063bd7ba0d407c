//! Again: confirmed transactions that a hub or a person wants once more, with the same ids and numbers.
//!
//! They go beside the machines, and never instead of them: only what is confirmed goes this way, what waits has its own; the
//! machines do not hear of it, and lanes come first whenever they have something to send. A hub stores none of them twice.

use std::collections::VecDeque;
use std::time::Duration;

use pgw_core::transaction::{Lane, Position, rfc3339, unix_millis_now};
use pgw_core::wire::command::{Command, CommandResult, Order};
use pgw_core::wire::to_json;
use pgw_outbox::ReadError;
use tokio::sync::watch;

use super::driver::Driver;
use super::inbound::seconds;
use super::ledger::Ticket;
use super::live::Live;
use super::notable::refusal;
use super::reader::Ready;

/// Ranges that wait for their turn; more are refused.
const MOST: usize = 16;
/// Under way at once: few, for the lanes' own traffic shares the link.
const UNDER_WAY: (usize, u64) = (16, 256 * 1024);
/// Read at once.
const READ: (usize, usize) = (64, 512 * 1024);
/// Commands that are remembered, so that one that comes twice is obeyed once.
const REMEMBERED: usize = 64;
/// The slowest link that is not taken for a dead one, bytes a second.
const SLOWEST: u64 = 2 * 1024;

/// How far a range is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Again {
    /// The last position that the broker has taken.
    pub arrived: Position,
    /// How it ended, or why it could not be done.
    pub ended: Option<Result<Resent, String>>,
}

/// What went out again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Resent {
    /// Transactions that the broker has taken.
    pub count: u64,
    /// Positions that are not to be had any more.
    pub missing: u64,
    /// Nobody was there to hear it.
    pub unheard: bool,
}

/// Who wants it.
enum Whose {
    Person(watch::Sender<Again>),
    Hub(String),
}

struct Range {
    lane: usize,
    next: Position,
    through: Position,
    arrived: Position,
    ready: VecDeque<Ready>,
    reading: bool,
    under_way: VecDeque<u64>,
    missing_through: Position,
    done: Resent,
    whose: Whose,
}

/// All ranges; the first is at work.
#[derive(Default)]
pub(super) struct Resends {
    ranges: VecDeque<Range>,
    obeyed: VecDeque<String>,
    /// Under way still of a range that has ended early.
    left_over: usize,
    /// For the hubs, not said yet.
    results: Vec<CommandResult>,
}

impl Resends {
    /// Nothing that the lost connection was handed counts.
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

    /// How long the broker may take over what is under way, at least.
    pub(super) fn patience(&self) -> Duration {
        let bytes: u64 = self.ranges.front().map_or(0, |range| range.under_way.iter().sum());
        Duration::from_secs(bytes / SLOWEST)
    }

    /// What was asked of the lane's thread.
    pub(super) fn read(&mut self, lane: usize, from: Position, records: Result<Vec<Ready>, ReadError>) {
        let Some(range) = self.ranges.front_mut().filter(|range| range.lane == lane && range.next == from)
        else {
            return;
        };
        range.reading = false;
        match records {
            Ok(records) if records.is_empty() => self.end(Err("the records cannot be read now".to_owned())),
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
            Err(error @ ReadError::Trouble(_)) => self.end(Err(error.to_string())),
        }
    }

    /// The broker has answered.
    pub(super) fn acknowledged(&mut self, position: Position, outcome: Result<(), u8>) {
        if self.left_over > 0 {
            // They went out first, so they are settled first.
            self.left_over -= 1;
            return;
        }
        let Some(range) = self.ranges.front_mut() else { return };
        range.under_way.pop_front();
        match outcome {
            // "No matching subscribers" (MQTT 5 §3.4.2.1): taken, and heard by nobody.
            Ok(()) | Err(0x10) => {
                range.arrived = position;
                range.done.count += 1;
                range.done.unheard |= outcome.is_err();
                if let Whose::Person(told) = &range.whose {
                    told.send_modify(|again| again.arrived = position);
                }
            }
            Err(code) => {
                let reason = format!("the broker refused position {position}: {}", refusal(code));
                self.end(Err(reason));
            }
        }
    }

    /// Takes a range in. `from` and `through` are confirmed positions of a configured lane.
    fn begin(&mut self, lane: usize, (from, through): (Position, Position), whose: Whose) {
        self.ranges.push_back(Range {
            lane,
            next: from,
            through,
            arrived: from.saturating_sub(1),
            ready: VecDeque::new(),
            reading: false,
            under_way: VecDeque::new(),
            missing_through: 0,
            done: Resent::default(),
            whose,
        });
    }

    fn end(&mut self, outcome: Result<Resent, String>) {
        if let Some(range) = self.ranges.pop_front() {
            self.left_over += range.under_way.len();
            self.tell(range.whose, outcome);
        }
    }

    fn tell(&mut self, whose: Whose, outcome: Result<Resent, String>) {
        match whose {
            Whose::Person(told) => told.send_modify(|again| again.ended = Some(outcome)),
            Whose::Hub(id) => self.results.push(result(id, outcome)),
        }
    }
}

/// What the hub is told.
fn result(id: String, outcome: Result<Resent, String>) -> CommandResult {
    let detail = match &outcome {
        Ok(Resent { missing, .. }) if *missing > 0 => format!("{missing} are not kept any more"),
        _ => String::new(),
    };
    let count = outcome.map(|resent| resent.count);
    CommandResult::new(id, count, detail, rfc3339(unix_millis_now()))
}

impl Driver {
    /// A person wants a range again. What becomes of it is told to `told`.
    pub(super) fn again(&mut self, lane: &Lane, range: (Position, Position), told: watch::Sender<Again>) {
        let whose = Whose::Person(told);
        if !self.link.now.up {
            let reason = "the link is down: order it again when it is up (what waits goes by itself)";
            self.resends.tell(whose, Err(reason.to_owned()));
            return;
        }
        self.admit(lane, range, whose);
    }

    /// A hub's command, found to be its own.
    pub(super) fn command(&mut self, command: Command) {
        let Command { id, hub, session, expires, order, .. } = command;
        if self.resends.obeyed.contains(&id) {
            return;
        }
        if self.resends.obeyed.len() == REMEMBERED {
            self.resends.obeyed.pop_front();
        }
        self.resends.obeyed.push_back(id.clone());
        let whose = Whose::Hub(id);
        let refused = if session != self.link.now.session {
            Some(format!("it is for session {session}, this is session {}", self.link.now.session))
        } else if has_expired(&expires, unix_millis_now() / 1_000) {
            Some(format!("it has expired at {expires}, by this gateway's clock"))
        } else {
            None
        };
        if let Some(reason) = refused {
            tracing::warn!(%hub, reason, "Refused a command");
            self.resends.tell(whose, Err(reason));
            return;
        }
        match order {
            Order::Resend { lane, epoch, from, through } => {
                let numbering = self.lanes.iter().find(|work| work.lane == lane);
                let position = |sequence| numbering?.machine.numbering().position(epoch, sequence);
                match (position(from), position(through)) {
                    (Some(first), Some(last)) if from > 0 => {
                        tracing::info!(%hub, %lane, first, last, "A hub wants confirmed transactions again");
                        self.admit(&lane, (first, last), whose);
                    }
                    _ => {
                        let reason = format!(
                            "lane {lane} of this gateway does not know sequences {from} to {through} of epoch {epoch}"
                        );
                        self.resends.tell(whose, Err(reason));
                    }
                }
            }
            Order::Unknown => {
                self.resends.tell(whose, Err("this version does not know the command".to_owned()));
            }
        }
    }

    fn admit(&mut self, lane: &Lane, (from, through): (Position, Position), whose: Whose) {
        let found = self.lanes.iter().position(|work| work.lane == *lane);
        let index = match found {
            Some(index) => index,
            None => {
                self.resends.tell(whose, Err(format!("there is no lane {lane}")));
                return;
            }
        };
        let confirmed = self.lanes[index].machine.confirmed();
        let first = self.outbox.first_retained(lane).unwrap_or(confirmed + 1);
        let refused = if from == 0 || through < from {
            Some("a range has a first position from 1, and a last one that is not before it".to_owned())
        } else if through > confirmed {
            Some(format!(
                "lane {lane} is confirmed through {confirmed} only: what comes later goes by itself"
            ))
        } else if through < first {
            Some(format!("lane {lane} keeps nothing before position {first} any more"))
        } else if self.resends.ranges.len() >= MOST {
            Some("too many ranges wait already".to_owned())
        } else {
            None
        };
        match refused {
            Some(reason) => self.resends.tell(whose, Err(reason)),
            None => self.resends.begin(index, (from, through), whose),
        }
    }

    /// Sends what there is room for, and tells the hubs what has become of their commands.
    pub(super) fn resend(&mut self, live: &mut Live) {
        while let Some(range) = self.resends.ranges.front_mut() {
            while live.leave.is_none()
                && !live.broken
                && live.may_send()
                && let Some(front) = range.ready.front()
                && range.under_way.len() < UNDER_WAY.0
                && (range.under_way.is_empty()
                    || range.under_way.iter().sum::<u64>() + front.bytes <= UNDER_WAY.1)
                && let Some(ready) = range.ready.pop_front()
            {
                let lane = &self.lanes[range.lane];
                let (position, bytes) = (ready.position, ready.bytes);
                let too_large = live.connection.allowed.packet_bytes.is_some_and(|most| bytes > most);
                let frame = ready.into_frame(lane.machine.round().unwrap_or_default());
                let Some(frame) = frame.filter(|_| !too_large) else {
                    self.resends
                        .end(Err(format!("the broker does not take position {position}: it is too large")));
                    break;
                };
                live.hand(Ticket::Again(position));
                live.connection.frame(frame);
                range.under_way.push_back(bytes);
                self.link.now.forwarded_total += 1;
            }
            let Some(range) = self.resends.ranges.front_mut() else { break };
            if range.next <= range.through {
                if range.ready.is_empty() && !range.reading {
                    range.reading = true;
                    self.lanes[range.lane].read_again(range.next, READ);
                }
                break;
            }
            if !range.ready.is_empty() || !range.under_way.is_empty() {
                break;
            }
            let done = range.done;
            self.resends.end(Ok(done));
        }
        for result in self.resends.results.drain(..) {
            self.own.say("cmd/result", self.root.plain("cmd/result"), false, to_json(&result));
        }
    }
}

/// A time that cannot be read has passed.
fn has_expired(expires: &str, now_seconds: u64) -> bool {
    seconds(expires) <= now_seconds
}
