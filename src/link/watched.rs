//! Files that are reread when they change: certificates, keys, tokens.

use std::fmt;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use pgw_core::text::chain;
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

/// What was read from files, exchanged while it is in use when they change.
pub struct Reloading<T, E> {
    name: &'static str,
    stamp: Box<dyn Fn() -> Stamp + Send + Sync>,
    read: Box<dyn Fn() -> Result<T, E> + Send + Sync>,
    now: RwLock<(Arc<T>, Stamp)>,
}

impl<T, E> fmt::Debug for Reloading<T, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reloading").field("name", &self.name).finish_non_exhaustive()
    }
}

impl<T, E: std::error::Error> Reloading<T, E> {
    /// Reads the files. `name` is for the log: "certificates of the MLLP door". Blocking.
    ///
    /// # Errors
    /// Those of `read`.
    pub fn load(
        name: &'static str,
        stamp: impl Fn() -> Stamp + Send + Sync + 'static,
        read: impl Fn() -> Result<T, E> + Send + Sync + 'static,
    ) -> Result<Self, E> {
        // The stamp is taken first, so that a change during reading is noticed at the next check.
        let before = stamp();
        let now = RwLock::new((Arc::new(read()?), before));
        Ok(Self { name, stamp: Box::new(stamp), read: Box::new(read), now })
    }

    /// What the next connection gets.
    pub fn current(&self) -> Arc<T> {
        Arc::clone(&self.now.read().unwrap_or_else(PoisonError::into_inner).0)
    }

    /// Rereads the files if they have changed, or in any case when asked to. Unusable files replace nothing. Blocking.
    pub fn renew(&self, always: bool) {
        let stamp = (self.stamp)();
        if !always && stamp == self.now.read().unwrap_or_else(PoisonError::into_inner).1 {
            return;
        }
        match (self.read)() {
            Ok(read) => {
                *self.now.write().unwrap_or_else(PoisonError::into_inner) = (Arc::new(read), stamp);
                tracing::info!("Reloaded the {}", self.name);
            }
            Err(error) => {
                let error = chain(&error);
                tracing::error!(error, "Could not reload the {}; the old ones stay in use", self.name);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_file_is_read_again_and_an_unusable_one_replaces_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("key.pem");
        std::fs::write(&file, "1").unwrap();
        let (watched, read) = (file.clone(), file.clone());
        let number = Reloading::load(
            "number of this test",
            move || stamp([watched.as_path()]),
            move || std::fs::read_to_string(&read).unwrap_or_default().parse::<u32>(),
        );
        let number = number.unwrap();
        number.renew(false);
        assert_eq!(*number.current(), 1);
        for (text, value) in [("22", 22), ("nonsense", 22), ("333", 333)] {
            std::fs::write(&file, text).unwrap();
            number.renew(false);
            assert_eq!(*number.current(), value, "{text}");
        }
        let before = number.current();
        number.renew(true);
        assert!(!Arc::ptr_eq(&before, &number.current()), "asked to, it reads them in any case");
    }

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
