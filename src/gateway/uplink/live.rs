//! What belongs to one live connection, and dies with it.

use pgw_link::failure::Failure;
use pgw_link::phase::Phase;
use tokio::time::Instant;

use super::connection::Connection;
use super::in_flight::{InFlight, Ticket};

/// Publishes of the broker's Receive Maximum that are left to our own messages, if it is large enough.
const ANNOUNCEMENT_SHARE: usize = 8;

/// What belongs to one connection.
pub(super) struct Live {
    pub(super) connection: Connection,
    pub(super) in_flight: InFlight,
    pub(super) heard: Instant,
    /// Last settled publish, or the first that was handed over with none before it.
    pub(super) settled: Instant,
    /// When the numbers for health are due.
    pub(super) look: Instant,
    /// The machines were told the time at most 5 ms ago.
    pub(super) ticked: Instant,
    pub(super) leave: Option<Failure>,
    /// The session takes nothing any more: it has ended, and knows why.
    pub(super) broken: bool,
}

impl Live {
    pub(super) fn new(connection: Connection) -> Self {
        let now = Instant::now();
        let in_flight = InFlight::default();
        Self {
            connection,
            in_flight,
            heard: now,
            settled: now,
            look: now,
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
