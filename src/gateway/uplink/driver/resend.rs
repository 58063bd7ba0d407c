//! Confirmed transactions sent again: orders of a person or a hub, and the sending beside the lanes' own traffic.

use std::time::Instant;

use pgw_core::transaction::{Epoch, Lane, Position};
use pgw_core::wire::command::{Command, CommandResult, Order};
use pgw_core::wire::signature::Word;
use pgw_core::wire::to_json;
use tokio::sync::watch;

use super::Driver;
use crate::uplink::in_flight::Ticket;
use crate::uplink::live::Live;
use crate::uplink::resend::{Requester, ResendFailed, ResendProgress};

/// Ranges that wait for their turn; further ones are refused.
const MOST: usize = 16;
/// In flight at once: few, because the lanes' own traffic shares the link.
const UNDER_WAY: (usize, u64) = (16, 256 * 1024);
/// Read at once.
const READ: (usize, usize) = (64, 512 * 1024);

impl Driver {
    /// A person orders a range again. `progress` receives its progress.
    pub(super) fn order_resend(
        &mut self,
        lane: &Lane,
        range: (Position, Position),
        progress: watch::Sender<ResendProgress>,
    ) {
        let requester = Requester::Person(progress);
        if !self.link.now.up {
            self.resends.report(requester, Err(ResendFailed::LinkDown));
            return;
        }
        self.admit(lane, None, range, requester);
    }

    /// A hub's command, verified as its own.
    pub(super) fn command(&mut self, command: Command) {
        let Command { id, hub, address, order, .. } = command;
        let Some(judged) = self.gate.judge(&id, &address, self.now()) else { return };
        let requester = Requester::Hub(id);
        if let Err(reason) = judged {
            tracing::warn!(%hub, %reason, "Refused a command");
            self.resends.report(requester, Err(reason.into()));
            return;
        }
        match order {
            Order::Resend { lane, epoch, from, through } => {
                let known = self.lanes.iter().find(|work| work.lane == lane);
                let start = known.and_then(|work| work.machine.numbering().of(epoch));
                let range = start.map(|start| (start.positions(from).0, start.positions(through).1));
                match range {
                    Some((first, last)) if from > 0 => {
                        tracing::info!(%hub, %lane, first, last, "A hub asked for confirmed transactions again");
                        self.admit(&lane, Some(epoch), (first, last), requester);
                    }
                    _ => {
                        let unknown = ResendFailed::UnknownSequences { lane, epoch, from, through };
                        self.resends.report(requester, Err(unknown));
                    }
                }
            }
            Order::Unknown => {
                self.resends.report(requester, Err(ResendFailed::UnknownCommand));
            }
        }
    }

    /// `epoch`: with its numbers; `None`: with those that the range had last.
    fn admit(
        &mut self,
        lane: &Lane,
        epoch: Option<Epoch>,
        (from, through): (Position, Position),
        requester: Requester,
    ) {
        let found = self.lanes.iter().position(|work| work.lane == *lane);
        let index = match found {
            Some(index) => index,
            None => {
                self.resends.report(requester, Err(ResendFailed::UnknownLane(lane.clone())));
                return;
            }
        };
        let numbering = self.lanes[index].machine.numbering();
        let newest = |position: Position| numbering.at(position.max(1)).map(|start| start.epoch);
        let (epoch, last) = (epoch.or(newest(from)), epoch.or(newest(through)));
        let confirmed = self.lanes[index].machine.confirmed();
        let first = self.outbox.first_retained(lane).unwrap_or(confirmed + 1);
        let refused = if from == 0 || through < from {
            Some(ResendFailed::Range)
        } else if through > confirmed {
            Some(ResendFailed::NotConfirmed { lane: lane.clone(), confirmed })
        } else if through < first {
            Some(ResendFailed::Pruned { lane: lane.clone(), first })
        } else if epoch != last {
            Some(ResendFailed::TwoEpochs(from))
        } else if self.resends.ranges.len() >= MOST {
            Some(ResendFailed::TooMany)
        } else {
            None
        };
        match (refused, epoch) {
            (Some(reason), _) => self.resends.report(requester, Err(reason)),
            (None, Some(epoch)) => self.resends.begin(index, epoch, (from, through), requester),
            (None, None) => self.resends.report(requester, Err(ResendFailed::TwoEpochs(from))),
        }
    }

    /// Sends as much as the window allows, and reports the results of commands to the hubs.
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
                let round = lane.machine.round().unwrap_or_default();
                let frame = ready.into_frame(round, Instant::now());
                let Some(frame) = frame.filter(|_| !too_large) else {
                    self.resends.end(Err(ResendFailed::TooLarge(position)));
                    break;
                };
                live.hand(Ticket::Resend(position));
                live.connection.frame(frame);
                range.under_way.push_back(bytes);
                self.link.now.forwarded_total += 1;
            }
            let Some(range) = self.resends.ranges.front_mut() else { break };
            if range.next <= range.through {
                if range.ready.is_empty() && !range.reading {
                    range.reading = true;
                    self.lanes[range.lane].reader().read_for_resend(range.epoch, range.next, READ);
                }
                break;
            }
            if !range.ready.is_empty() || !range.under_way.is_empty() {
                break;
            }
            let done = range.done;
            self.resends.end(Ok(done));
        }
        let nonce_age_seconds = self.gate.age(self.now());
        for result in self.resends.results.drain(..) {
            let result = CommandResult { nonce_age_seconds, ..result };
            let topic = self.root.plain("cmd/result");
            self.announcements.enqueue(Word::Result, topic, false, to_json(&result));
        }
    }
}
