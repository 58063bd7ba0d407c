//! What the uplink tells health, kept up to date and published at a bounded rate.

use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::failure::Failure;
use crate::health::{LinkSnapshot, Phase};

/// Numbers are published at most this often; changes of state at once.
const EVERY: Duration = Duration::from_millis(250);
/// The rate is smoothed over about this time, seconds.
const SMOOTH_SECONDS: f64 = 5.0;

/// The snapshot under work.
pub(super) struct LinkReport {
    sender: watch::Sender<LinkSnapshot>,
    pub(super) now: LinkSnapshot,
    published: Instant,
    measured: Instant,
    measured_confirmed: u64,
}

impl LinkReport {
    pub(super) fn new(sender: watch::Sender<LinkSnapshot>) -> Self {
        let now = Instant::now();
        Self {
            sender,
            now: LinkSnapshot::starting(now),
            published: now,
            measured: now,
            measured_confirmed: 0,
        }
    }

    /// Publishes now.
    pub(super) fn publish(&mut self) {
        self.published = Instant::now();
        self.sender.send_replace(self.now.clone());
    }

    /// Publishes if the last time is long enough ago.
    pub(super) fn publish_sometimes(&mut self) {
        if self.published.elapsed() >= EVERY {
            self.publish();
        }
    }

    /// An attempt has come this far. What failed the last one stands, phase and sentence together, until this one
    /// has come further: a repeated attempt must not show the reason under another phase every second.
    pub(super) fn phase(&mut self, phase: Phase, upstream: &str) {
        let same = self.now.upstream == upstream;
        if same && !self.now.failure.is_empty() && self.now.phase != Phase::Live {
            if phase <= self.now.phase {
                return;
            }
            self.now.failure.clear();
        }
        self.now.phase = phase;
        if !same {
            self.now.upstream = upstream.to_owned();
        }
        self.publish();
    }

    /// Live.
    pub(super) fn up(&mut self) {
        self.now.up = true;
        self.now.phase = Phase::Live;
        self.now.failure.clear();
        self.now.down_since = None;
        self.publish();
    }

    /// Failed, or lost.
    pub(super) fn down(&mut self, failure: &Failure) {
        self.now.up = false;
        self.now.phase = failure.phase;
        self.now.failure.clone_from(&failure.sentence);
        self.now.down_since.get_or_insert_with(Instant::now);
        self.now.in_flight = 0;
        self.publish();
    }

    /// `confirmed`: the sum over the lanes' confirmed positions.
    pub(super) fn measure(&mut self, confirmed: u64) {
        let seconds = self.measured.elapsed().as_secs_f64();
        if seconds < 0.5 {
            return;
        }
        // A restored hub takes the sum back: that is no rate.
        let moved = confirmed.saturating_sub(self.measured_confirmed) as f64 / seconds;
        let weight = 1.0 - (-seconds / SMOOTH_SECONDS).exp();
        let rate = &mut self.now.forward_rate_per_second;
        *rate += (moved - *rate) * weight;
        if *rate < 0.001 {
            *rate = 0.0;
        }
        self.measured = Instant::now();
        self.measured_confirmed = confirmed;
    }

    /// The first sum: what was confirmed before this process is no rate of it.
    pub(super) fn begin(&mut self, confirmed: u64) {
        self.measured_confirmed = confirmed;
    }
}
