//! Notifications to systemd: ready, status, stopping, and the watchdog.

use std::time::Duration;

use sd_notify::NotifyState;

/// How often to notify the watchdog: half of `WatchdogSec`; `None` if it is off.
pub fn watchdog_interval() -> Option<Duration> {
    sd_notify::watchdog_enabled().map(|limit| limit / 2)
}

/// Notifies systemd; without systemd it does nothing.
pub fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "Could not notify systemd");
    }
}
