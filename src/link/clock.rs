//! The time used to check certificates: a box whose clock says 1970 still connects (design section 10).

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use tokio_rustls::rustls::pki_types::UnixTime;
use tokio_rustls::rustls::time_provider::TimeProvider;

use crate::state_file;

/// This program cannot be running before this time, in seconds since the epoch: its build's `SOURCE_DATE_EPOCH`, or
/// its release date.
const BUILT: u64 = match option_env!("SOURCE_DATE_EPOCH") {
    Some(text) => decimal(text),
    None => 1_793_491_200, // 2026-11-01T00:00:00Z
};

const fn decimal(text: &str) -> u64 {
    let bytes = text.as_bytes();
    let (mut value, mut index) = (0, 0);
    while index < bytes.len() {
        value = value * 10 + (bytes[index] - b'0') as u64;
        index += 1;
    }
    value
}

/// Written at most this often, so that a small disk does not wear out.
const KEEP_EVERY_SECONDS: u64 = 3_600;

/// The last time that two independent clocks agreed on, stored on disk; it never goes back.
#[derive(Debug)]
pub struct TrustedClock {
    seconds: AtomicU64,
    path: PathBuf,
}

impl TrustedClock {
    /// Reads the stored time. A missing or damaged file is no error: the build time is used.
    #[must_use]
    pub fn open(directory: &Path) -> Arc<Self> {
        let path = directory.join("trusted-time");
        let kept = state_file::read_number(&path).unwrap_or(0);
        Arc::new(Self { seconds: AtomicU64::new(kept.max(BUILT)), path })
    }

    /// The hub has signed `seconds` in an answer to a fresh question. The earlier of its clock and ours is trusted, so
    /// that one clock that runs ahead cannot make good certificates look expired. True: worth storing.
    pub fn agree(&self, seconds: u64) -> bool {
        let agreed = seconds.min(now_seconds());
        let before = self.seconds.load(Ordering::Relaxed);
        if agreed < before.saturating_add(KEEP_EVERY_SECONDS) {
            return false;
        }
        self.seconds.store(agreed, Ordering::Relaxed);
        true
    }

    /// Stores it. Blocking.
    pub fn keep(&self) -> std::io::Result<()> {
        state_file::write_number(&self.path, self.seconds.load(Ordering::Relaxed))
    }

    /// The last trusted time, or the build time, whatever the box's clock says: seconds since the epoch.
    #[must_use]
    pub fn trusted_seconds(&self) -> u64 {
        self.seconds.load(Ordering::Relaxed)
    }

    /// The latest of the box's clock, the build time and the last trusted time, seconds since the epoch.
    #[must_use]
    pub fn seconds(&self) -> u64 {
        now_seconds().max(self.seconds.load(Ordering::Relaxed))
    }
}

impl TimeProvider for TrustedClock {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(std::time::Duration::from_secs(self.seconds())))
    }
}

fn now_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_never_goes_back_over_a_restart_and_never_runs_ahead_of_either_clock() {
        let directory = tempfile::tempdir().unwrap();
        let clock = TrustedClock::open(directory.path());
        assert!(clock.seconds() >= BUILT);
        let now = now_seconds();
        assert!(clock.agree(u64::MAX), "the hub's clock runs ahead: ours is believed");
        clock.keep().unwrap();
        assert!(TrustedClock::open(directory.path()).seconds.load(Ordering::Relaxed) >= now);
        assert!(TrustedClock::open(directory.path()).seconds() <= now + 60);
        assert!(!clock.agree(0));
        std::fs::write(directory.path().join("trusted-time"), b"\0\0").unwrap();
        assert_eq!(TrustedClock::open(directory.path()).seconds.load(Ordering::Relaxed), BUILT);
    }

    #[test]
    fn a_box_in_1970_uses_the_stored_time() {
        let directory = tempfile::tempdir().unwrap();
        let later = now_seconds() + 1_000_000;
        std::fs::write(directory.path().join("trusted-time"), later.to_string()).unwrap();
        assert_eq!(TrustedClock::open(directory.path()).seconds(), later);
    }
}
