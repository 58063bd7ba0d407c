//! A store that has failed: it is left alone for a while, and what comes meanwhile is not taken. The gateways keep everything.

use std::time::{Duration, Instant};

use super::desk::Desk;
use super::store::StoreError;

/// How long before the next trial, and at most.
const TRIAL: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));

/// The store has failed.
pub(super) struct Trouble {
    next_trial: Instant,
    pause: Duration,
    /// Transactions that were not taken.
    pub(super) dropped: u64,
}

impl Trouble {
    /// The store is still left alone.
    pub(super) fn waits(&self) -> bool {
        Instant::now() < self.next_trial
    }
}

impl Desk {
    /// Nothing of the last group counts but what the store's marks say.
    pub(super) fn store_failed(&mut self, error: &StoreError, lost: usize) {
        let pause = self.trouble.as_ref().map_or(TRIAL.0, |trouble| (trouble.pause * 2).min(TRIAL.1));
        let dropped = self.trouble.as_ref().map_or(0, |trouble| trouble.dropped) + lost as u64;
        tracing::error!(
            error = %error,
            source = std::error::Error::source(&error).map(tracing::field::display),
            full = error.is_full(),
            "The store has failed: nothing is confirmed, the gateways keep everything"
        );
        self.trouble = Some(Trouble { next_trial: Instant::now() + pause, pause, dropped });
    }
}
