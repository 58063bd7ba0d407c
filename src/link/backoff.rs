//! How long to wait before the next connection: full jitter, so that a district's boxes do not all reconnect at the
//! same time.
//!
//! Sans-IO: the caller supplies 64 random bits for each delay. The first delay after a live connection is lost is
//! uniform over at least `first_spread` (6,300 boxes within 1 s are 6,300 handshakes a second, within 30 s 350). After
//! each failure it is uniform up to `base`, doubled for each failure so far, at most `cap`. Only progress over `proof`
//! resets the doubling: a link that comes up and fails at once is not a success. The owner of the connection defines
//! progress: for a gateway it is a hub's confirmation, for a hub that its subscriptions are active.

use pgw_core::delivery::Millis;

/// The four settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct BackoffLimits {
    /// Longest wait before a process's first attempt; doubles with each failure.
    pub base: Millis,
    /// Longest wait of all.
    pub cap: Millis,
    /// The first wait after a loss is uniform over this.
    pub first_spread: Millis,
    /// Progress for this long on one connection proves it.
    pub proof: Millis,
}

impl Default for BackoffLimits {
    /// Base 1 s, cap 120 s, first delay over 30 s, proven after 25 s.
    fn default() -> Self {
        Self { base: 1_000, cap: 120_000, first_spread: 30_000, proof: 25_000 }
    }
}

/// The state of a series of attempts.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Backoff {
    limits: BackoffLimits,
    /// Delays given since the process started or a connection was last proven.
    given: u32,
    /// The last attempt reached a live connection: the whole fleet may lose theirs at the same moment.
    live: bool,
    progress_since: Option<Millis>,
}

impl Backoff {
    /// Before the first attempt of a process.
    #[must_use]
    pub fn new(limits: BackoffLimits) -> Self {
        Self { limits, given: 0, live: false, progress_since: None }
    }

    /// How long to wait before the next attempt; `random` is 64 fresh random bits ([`random_bits`]).
    pub fn delay(&mut self, random: u64) -> Millis {
        self.progress_since = None;
        let doubled = u32::min(self.given, 32);
        let jitter = self.limits.base.saturating_mul(1 << doubled).min(self.limits.cap);
        let most = if self.live { jitter.max(self.limits.first_spread) } else { jitter };
        self.live = false;
        self.given = self.given.saturating_add(1);
        let spread = u128::from(most).saturating_add(1);
        u64::try_from((u128::from(random) * spread) >> 64).unwrap_or(most)
    }

    /// The attempt succeeded: subscriptions are acknowledged.
    pub fn connected(&mut self) {
        self.live = true;
    }

    /// The connection makes progress.
    pub fn progress(&mut self, now: Millis) {
        let since = *self.progress_since.get_or_insert(now);
        if now.saturating_sub(since) >= self.limits.proof {
            self.given = 0;
        }
    }
}

/// Random bits for [`Backoff::delay`]. If the system gives no random bytes, they are half of the range, so that a box
/// can still connect.
#[must_use]
pub fn random_bits() -> u64 {
    pgw_durable::random().map_or(u64::MAX / 2, u64::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_doubles_to_the_cap_with_full_jitter() {
        let mut backoff = Backoff::new(BackoffLimits::default());
        let longest: Vec<_> = (0..9).map(|_| backoff.delay(u64::MAX)).collect();
        assert_eq!(longest, [1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 64_000, 120_000, 120_000]);
        assert_eq!(backoff.delay(0), 0);
        assert_eq!(backoff.delay(u64::MAX / 2), 60_000);
        for _ in 0..100 {
            assert!(backoff.delay(u64::MAX) <= 120_000);
        }
    }

    #[test]
    fn the_loss_of_a_live_connection_spreads_the_fleet() {
        let mut backoff = Backoff::new(BackoffLimits::default());
        backoff.delay(0);
        backoff.connected();
        assert_eq!(backoff.delay(u64::MAX), 30_000);
        assert_eq!(backoff.delay(u64::MAX), 4_000, "the attempts after it are each box's own");
        assert_eq!(backoff.delay(u64::MAX), 8_000);
    }

    #[test]
    fn only_proven_progress_starts_the_doubling_again() {
        let mut backoff = Backoff::new(BackoffLimits::default());
        for _ in 0..6 {
            backoff.delay(0);
        }
        backoff.connected();
        backoff.progress(1_000);
        backoff.progress(25_999);
        assert_eq!(backoff.delay(u64::MAX), 64_000, "24.999 s prove nothing");
        backoff.progress(30_000);
        assert_eq!(backoff.delay(u64::MAX), 120_000, "progress of another connection does not count");
        backoff.connected();
        backoff.progress(40_000);
        backoff.progress(65_000);
        assert_eq!(backoff.delay(u64::MAX), 30_000);
        assert_eq!(backoff.delay(u64::MAX), 2_000);
    }
}
