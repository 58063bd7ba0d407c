//! What systemd is told: ready, status, stopping, and that things move.

use std::time::Duration;

use sd_notify::NotifyState;

/// How often systemd wants to hear from us: half of `WatchdogSec`; `None` where it does not.
pub fn watchdog_interval() -> Option<Duration> {
    sd_notify::watchdog_enabled().map(|limit| limit / 2)
}

/// Tells systemd; where there is none, nobody.
pub fn tell(news: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(news) {
        tracing::debug!(%error, "Could not tell systemd");
    }
}
