//! Files that are reread when they change: certificates, keys, tokens.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};

/// How often the files are checked.
pub const FILES_INTERVAL: Duration = Duration::from_secs(30);

/// Times and sizes of files: shows whether they have changed since they were read. Taken before the files are read, so
/// that a change during reading is noticed at the next check.
pub type Stamp = Vec<Option<(SystemTime, u64)>>;

/// Reads the files' metadata; a missing file is a state like any other. Blocking.
pub fn stamp<'a>(paths: impl IntoIterator<Item = &'a Path>) -> Stamp {
    let stamp_of = |path: &Path| {
        let facts = std::fs::metadata(path).ok()?;
        Some((facts.modified().ok()?, facts.len()))
    };
    paths.into_iter().map(stamp_of).collect()
}

/// Calls `read` whenever the files are due for a check, and with `true` ("in any case") whenever `reload` changes.
/// `read` may block because the disk may be slow; it runs on another thread, never twice at once. Never returns.
pub async fn keep_reading(mut reload: watch::Receiver<u64>, read: impl Fn(bool) + Send + Sync + 'static) {
    let read = Arc::new(read);
    let mut tick = interval(FILES_INTERVAL);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut reload_is_there = true;
    loop {
        let always = tokio::select! {
            _ = tick.tick() => false,
            asked = reload.changed(), if reload_is_there => {
                reload_is_there = asked.is_ok();
                reload_is_there
            }
        };
        let read = Arc::clone(&read);
        // A call that panics has replaced nothing; the next check follows.
        let _ = tokio::task::spawn_blocking(move || read(always)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_comes_grows_or_goes_changes_the_stamp() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("key.pem");
        let now = || stamp([file.as_path()]);
        let none = now();
        std::fs::write(&file, "one").unwrap();
        let one = now();
        assert_ne!(none, one);
        assert_eq!(one, now());
        std::fs::write(&file, "more").unwrap();
        assert_ne!(one, now());
        std::fs::remove_file(&file).unwrap();
        assert_eq!(none, now());
    }
}
