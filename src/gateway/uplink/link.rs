//! The link's state for health, kept up to date and published at a bounded rate.

use std::time::{Duration, Instant};

use pgw_link::failure::Failure;
use pgw_link::phase::Phase;
use tokio::sync::watch;

use super::snapshot::LinkSnapshot;

/// Numbers wake a waiting reader at most this often; changes of state at once.
const EVERY: Duration = Duration::from_millis(250);
/// The rate is smoothed over about this time, seconds.
const SMOOTH_SECONDS: f64 = 5.0;

/// The snapshot being built.
pub(super) struct LinkReport {
    sender: watch::Sender<LinkSnapshot>,
    pub(super) now: LinkSnapshot,
    /// The upstream of the current attempt.
    trying: String,
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
            trying: String::new(),
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

    /// Makes the numbers readable now; wakes a waiting reader if the last time is long enough ago.
    ///
    /// Health reads this together with the outbox: a number from before the last receipt would show fewer forwarded
    /// than confirmed transactions, until the next event.
    pub(super) fn publish_numbers(&mut self) {
        if self.published.elapsed() >= EVERY {
            return self.publish();
        }
        let now = &self.now;
        self.sender.send_if_modified(|shown| {
            shown.in_flight = now.in_flight;
            shown.held = now.held;
            shown.forwarded_total = now.forwarded_total;
            shown.last_receipt = now.last_receipt;
            shown.probe = now.probe;
            false
        });
    }

    /// An attempt has reached this phase. The last failure stays, with its upstream, phase and sentence, until this
    /// attempt has got further: otherwise a repeated attempt would show a reason under another's phase every second.
    pub(super) fn phase(&mut self, phase: Phase, upstream: &str) {
        if self.trying != upstream {
            self.trying = upstream.to_owned();
        }
        let failed = !self.now.failure.is_empty() && self.now.phase != Phase::Live;
        if failed && (self.trying != self.now.upstream || phase <= self.now.phase) {
            return;
        }
        if failed {
            self.now.failure.clear();
        }
        self.now.phase = phase;
        self.now.upstream.clone_from(&self.trying);
        self.publish();
    }

    /// Live.
    pub(super) fn up(&mut self) {
        self.now.up = true;
        self.now.upstream.clone_from(&self.trying);
        self.now.phase = Phase::Live;
        self.now.failure.clear();
        self.now.down_since = None;
        self.publish();
    }

    /// Failed, or lost.
    pub(super) fn down(&mut self, failure: &Failure) {
        self.now.up = false;
        self.now.upstream.clone_from(&self.trying);
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
        // A restored hub lowers the sum: that is not a rate.
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

    /// The first sum: transactions confirmed before this process started are not part of its rate.
    pub(super) fn begin(&mut self, confirmed: u64) {
        self.measured_confirmed = confirmed;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(report: &LinkReport) -> (Phase, &str, &str) {
        (report.now.phase, report.now.failure.as_str(), report.now.upstream.as_str())
    }

    #[test]
    fn numbers_can_be_read_at_once_and_wake_sometimes() {
        let (sender, mut reader) = watch::channel(LinkSnapshot::starting(Instant::now()));
        let mut report = LinkReport::new(sender);
        report.up();
        let _ = reader.borrow_and_update();
        for number in 1..=3 {
            report.now.forwarded_total = number;
            report.now.in_flight = number;
            report.publish_numbers();
            let shown = reader.borrow();
            assert_eq!((shown.forwarded_total, shown.in_flight), (number, number));
        }
        assert!(!reader.has_changed().unwrap(), "nobody is woken for each number");
        report.published = Instant::now().checked_sub(EVERY).unwrap();
        report.publish_numbers();
        assert!(reader.has_changed().unwrap());
    }

    #[test]
    fn a_failure_stays_with_its_phase_until_an_attempt_comes_further() {
        let mut report = LinkReport::new(watch::channel(LinkSnapshot::starting(Instant::now())).0);
        report.phase(Phase::Tls, "a:1");
        report.down(&Failure::new(Phase::Tls, "expired"));
        for phase in [Phase::Dns, Phase::Tcp, Phase::Tls] {
            report.phase(phase, "a:1");
            assert_eq!(shown(&report), (Phase::Tls, "expired", "a:1"));
        }
        report.phase(Phase::Tcp, "b:1");
        assert_eq!(shown(&report), (Phase::Tls, "expired", "a:1"));
        report.down(&Failure::new(Phase::Tcp, "refused"));
        assert_eq!(shown(&report), (Phase::Tcp, "refused", "b:1"));
        report.phase(Phase::Tls, "b:1");
        assert_eq!(shown(&report), (Phase::Tls, "", "b:1"));
        report.up();
        report.down(&Failure::new(Phase::Live, "reset"));
        report.phase(Phase::Dns, "b:1");
        assert_eq!(shown(&report), (Phase::Dns, "reset", "b:1"), "after a loss the way back is shown");
    }
}
