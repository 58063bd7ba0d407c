//! What happens at a deadline: stalls, overdue receipts, unanswered questions, another try of a held record.

use super::super::{Action, Millis, Reason};
use super::questions::ASK_SELDOM;
use super::{Delivery, Link};

/// Doublings of a timeout on one head.
const MOST_DOUBLINGS: u32 = 6;
/// Rate assumed for a single large record before any was measured: 64 kbit/s, in bytes a second.
const SLOWEST: u64 = 8_000;

impl Delivery {
    /// When to drop a connection whose broker takes nothing.
    pub(super) fn stalled_at(&self, link: &Link) -> Option<Millis> {
        let patience = self.window.patience().unwrap_or_else(|| match self.window.in_flight() {
            1 => self.window.bytes().saturating_mul(1_000) / SLOWEST,
            _ => 0,
        });
        let patience = self.limits.stall_timeout.max(patience) << self.trips.min(MOST_DOUBLINGS);
        (link.unacked > 0).then(|| link.moved.saturating_add(patience))
    }

    /// When the hub should have confirmed what the broker has taken.
    pub(super) fn overdue_at(&self, link: &Link) -> Option<Millis> {
        let patience = self.limits.receipt_timeout << self.misses.min(MOST_DOUBLINGS);
        let taken = self.window.in_flight() > 0 && link.taken > self.confirmed;
        (taken && self.hub.is_some() && self.answered()).then(|| link.moved.saturating_add(patience))
    }

    pub(super) fn tick(&mut self, now: Millis, out: &mut Vec<Action>) {
        let Some(link) = &self.link else { return };
        let (asked, again) = (link.asked, link.ask_again);
        let due = |at: Option<Millis>| at.is_some_and(|at| now >= at);
        if due(self.try_held_at()) {
            self.try_held(out);
        }
        self.begin_again(now, out);
        let Some(link) = &self.link else { return };
        if due(self.stalled_at(link)) {
            self.trips = self.trips.saturating_add(1).min(MOST_DOUBLINGS);
            self.reconnect(Reason::Stalled, now, out);
        } else if due(self.overdue_at(link)) {
            // The broker took it and no receipt came: it was lost on the way, or the hub is down. If the hub answers,
            // everything is sent again; if not, the broker is spared the load.
            self.misses = self.misses.saturating_add(1).min(MOST_DOUBLINGS);
            self.window.halve();
            self.everything_in_doubt(now, out);
        } else if (!self.answered() || self.hub_window() == 0)
            && self.beginning.is_none()
            && now >= asked.saturating_add(again)
        {
            if let Some(link) = &mut self.link {
                link.ask_again = again.saturating_mul(2).min(ASK_SELDOM);
            }
            // A look-up that was never answered must not block the next answer.
            if let Some(hub) = self.hub.as_mut().filter(|hub| !hub.answered) {
                (hub.looking, hub.waiting) = (None, None);
            }
            self.ask(now, out);
        }
    }
}
