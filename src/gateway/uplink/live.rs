//! The state of one live connection, dropped with it.

use pgw_link::failure::Failure;
use pgw_link::phase::Phase;
use tokio::time::Instant;

use super::connection::Connection;
use super::in_flight::{InFlight, Ticket};

/// Publishes of the broker's Receive Maximum that are reserved for announcements, if it is large enough.
const ANNOUNCEMENT_SHARE: usize = 8;

/// The state of one connection.
pub(super) struct Live {
    pub(super) connection: Connection,
    pub(super) in_flight: InFlight,
    pub(super) last_received: Instant,
    /// When the last publish got its outcome, or the first of a series was handed over.
    pub(super) settled: Instant,
    /// When health's numbers are next due.
    pub(super) next_poll: Instant,
    /// The machines were given the time at most 5 ms ago.
    pub(super) ticked: Instant,
    pub(super) leave: Option<Failure>,
    /// The session has ended and knows the reason.
    pub(super) broken: bool,
}

impl Live {
    pub(super) fn new(connection: Connection) -> Self {
        let now = Instant::now();
        let in_flight = InFlight::default();
        Self {
            connection,
            in_flight,
            last_received: now,
            settled: now,
            next_poll: now,
            ticked: now,
            leave: None,
            broken: false,
        }
    }

    pub(super) fn may_send(&self) -> bool {
        let allowed = usize::from(self.connection.allowed.inflight.max(1));
        self.in_flight.transactions() < allowed - ANNOUNCEMENT_SHARE.min(allowed / 2)
            && self.in_flight.outstanding() < allowed
    }

    pub(super) fn may_announce(&self) -> bool {
        let allowed = usize::from(self.connection.allowed.inflight.max(1));
        self.in_flight.outstanding() - self.in_flight.transactions()
            < ANNOUNCEMENT_SHARE.min(allowed / 2).max(1)
            && self.in_flight.outstanding() < allowed
    }

    pub(super) fn hand(&mut self, ticket: Ticket) {
        if self.in_flight.outstanding() == 0 {
            self.settled = Instant::now();
        }
        self.in_flight.hand(ticket);
    }

    pub(super) fn lose(&mut self, sentence: &str) {
        self.leave.get_or_insert_with(|| Failure::new(Phase::Live, sentence));
    }
}
