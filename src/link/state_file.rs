//! Two small numbers that are kept across restarts: the session counter and the last trusted time.

use std::io;
use std::path::{Path, PathBuf};

use pgw_core::transaction::unix_millis_now;
use pgw_durable::PRIVATE;

/// The number in a file; `None`: there is no file, or it does not hold a number.
pub(crate) fn read_number(path: &Path) -> Option<u64> {
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// Replaces the number so that a power cut leaves either the old or the new one. Blocking.
pub(crate) fn write_number(path: &Path, number: u64) -> io::Result<()> {
    pgw_durable::replace(path, PRIVATE, format!("{number}\n").as_bytes())
}

/// Numbers a client's sessions at the broker, across restarts. Its will names its session, so that a late will of an
/// older session can be recognised (`session` in the state directory).
#[derive(Debug)]
pub struct SessionCounter {
    path: PathBuf,
    /// The last number that this process gave, in case the file fails.
    last: u64,
}

impl SessionCounter {
    /// The counter of this state directory.
    #[must_use]
    pub fn new(directory: &Path) -> Self {
        Self { path: directory.join("session"), last: 0 }
    }

    /// The next session: one more than the last, and at least `trusted_seconds`, so that it does not go back where an image of
    /// the machine was restored. It is stored on disk before it is used. If it cannot be stored, it is still
    /// one more than this process's last, and an error is logged.
    pub async fn next(&mut self, trusted_seconds: u64) -> u64 {
        let (path, least) = (self.path.clone(), trusted_seconds.max(self.last + 1));
        let next = tokio::task::spawn_blocking(move || next(&path, least, unix_millis_now() / 1_000));
        // A panic there is treated like a file that cannot be written.
        self.last = match next.await {
            Ok(Ok(session)) => session,
            Ok(Err(error)) => {
                tracing::error!(%error, "The session counter could not be saved; a late will may override this client's status");
                least
            }
            Err(_) => least,
        };
        self.last
    }
}

/// A damaged file must not make the counter go back behind a will that may still arrive: then the counter is at least
/// the wall clock.
fn next(path: &Path, least: u64, now_seconds: u64) -> io::Result<u64> {
    let next = match read_number(path) {
        Some(last) => last.saturating_add(1).max(least),
        None if path.exists() => now_seconds.max(least),
        None => least,
    };
    write_number(path, next)?;
    Ok(next)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_is_one_more_at_each_connect_over_restarts() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("session");
        assert_eq!(next(&path, 1, 50).unwrap(), 1);
        assert_eq!(next(&path, 1, 50).unwrap(), 2);
        std::fs::write(&path, b"\0\0\0").unwrap();
        assert_eq!(next(&path, 1, 50).unwrap(), 50, "a damaged file does not start again at 1");
        assert_eq!(next(&path, 1, 50).unwrap(), 51);
    }

    #[tokio::test]
    async fn where_it_cannot_be_kept_it_still_grows() {
        let directory = tempfile::tempdir().unwrap();
        let mut counter = SessionCounter::new(directory.path());
        assert_eq!((counter.next(0).await, counter.next(0).await, counter.next(9).await), (1, 2, 9));
        let mut counter = SessionCounter::new(&directory.path().join("not there"));
        assert_eq!((counter.next(0).await, counter.next(0).await, counter.next(9).await), (1, 2, 9));
    }
}
