//! One scan of a folder, and the handling of what it shows: one file after the other.
//!
//! If one file cannot be stored now or is still being written, none after it is tried: the order of a folder is the
//! order of its lane. Everything that touches the folder runs on blocking threads.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use pgw_core::transaction::{Body, Kind};
use pgw_host::accept::stop_requested;
use pgw_outbox::{Accepted, Refusal, Submission};
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use crate::ingest::folder::config::FolderDoorConfig;
use crate::ingest::folder::debounce::{Candidate, Debounce, FileFacts};
use crate::ingest::folder::documents::Reason;
use crate::ingest::folder::read;
use crate::ingest::folder::read::ReadFile;
use crate::ingest::folder::rules;
use crate::ingest::folder::scan::scan;
use crate::ingest::folder::settled_files::{FilePlace, Point, SettledFiles, StoredFile};
use crate::ingest::folder::watcher::FolderWatcher;
use crate::ingest::{Acceptor, Budget, Counters, Share, count};

/// Stored files that are put away together: their folders are synced once.
const TOGETHER: usize = 64;
/// How long a stored file may wait for others.
const TOGETHER_TIME: Duration = Duration::from_secs(1);
/// Pauses while nothing can be stored, or a folder cannot be used: from the first to the second, doubling.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LAST_PAUSE: Duration = Duration::from_secs(30);
/// How long a large file waits for the memory that all doors share, before it is left for later.
const BUDGET_WAIT: Duration = Duration::from_secs(2);
/// What may be wrong with a folder.
const AWAY: &str = "it cannot be listed";
const STUCK: &str = "files cannot be moved in it";
const HANGS: &str = "it does not answer";
/// How long a folder may take to answer before that is reported.
const PATIENCE: Duration = Duration::from_secs(30);
/// After a change, so that many files at once are handled in one scan.
pub(super) const BREATH: Duration = Duration::from_millis(50);

/// How to continue after a file.
enum Next {
    Go,
    /// The files after it have to wait.
    Wait,
    /// End this scan.
    Pause,
}

pub(super) struct FolderScanner<A> {
    config: Arc<FolderDoorConfig>,
    pub(super) files: Arc<SettledFiles>,
    acceptor: A,
    counters: Arc<Counters>,
    share: Share,
    stop: watch::Receiver<bool>,
    debounce: Debounce,
    claimed: Debounce,
    /// Stored, and not put away yet.
    stored: Vec<StoredFile>,
    stored_since: Instant,
    /// Why the folder cannot be used now.
    failure: Option<&'static str>,
    /// The outbox accepts nothing now.
    shut: bool,
    pause: Duration,
    left: u64,
    /// Files that were stored or rejected.
    taken: u64,
    watcher: Option<FolderWatcher>,
    /// [`PATIENCE`].
    pub(super) patience: Duration,
}

impl<A: Acceptor> FolderScanner<A> {
    pub(super) fn new(
        config: FolderDoorConfig,
        acceptor: A,
        counters: Arc<Counters>,
        budget: &Budget,
        stop: watch::Receiver<bool>,
    ) -> Self {
        let FolderDoorConfig { path, accepted, rejected, take, keep_accepted, lane, .. } = &config;
        let files = SettledFiles::new(path, accepted, rejected, *take, *keep_accepted, lane.clone());
        Self {
            config: Arc::new(config),
            files: Arc::new(files),
            acceptor,
            counters,
            share: budget.share(),
            stop,
            debounce: Debounce::default(),
            claimed: Debounce::default(),
            stored: Vec::new(),
            stored_since: Instant::now(),
            failure: None,
            shut: false,
            pause: FIRST_PAUSE,
            left: 0,
            taken: 0,
            watcher: None,
            patience: PATIENCE,
        }
    }

    /// Puts away what was stored, and stops being counted.
    pub(super) async fn end(mut self) {
        self.put_away().await;
        self.counters.folders_away.fetch_sub(u64::from(self.failure.is_some()), Ordering::Relaxed);
        self.count_left(0);
    }

    /// Waits for a change; for ever if inotify does not work.
    pub(super) async fn changed(&mut self) {
        match &self.watcher {
            Some(watcher) => {
                if let Err(error) = watcher.wait().await {
                    tracing::debug!(%error, "No longer notified of changes in a folder");
                    self.watcher = None;
                }
            }
            None => std::future::pending().await,
        }
    }

    /// One scan, with everything it shows. Returns the longest time until the next scan.
    pub(super) async fn scan(&mut self) -> Duration {
        if !self.put_away().await {
            return self.longer();
        }
        let (config, all) = (Arc::clone(&self.config), Arc::clone(&self.files));
        let watched = self.watcher.is_some();
        let found = match self.blocking(move || scan(&config, &all, watched)).await.flatten() {
            Ok(found) => found,
            Err(error) => {
                self.report_failure(AWAY, &error);
                self.watcher = None;
                return self.longer();
            }
        };
        self.well(AWAY);
        if let Some(descriptor) = found.watch {
            self.watcher = FolderWatcher::new(descriptor).ok();
        }
        let now = Instant::now();
        self.claimed.handle(found.claimed.iter(), now);
        self.debounce.handle(found.files.iter(), now);
        let (mut left, stored_before) = (found.odd, self.taken);
        for (place, files) in [(FilePlace::Taken, found.claimed), (FilePlace::Folder, found.files)] {
            for file in files {
                if *self.stop.borrow() {
                    return Duration::ZERO;
                }
                match self.file(place, file, &mut left).await {
                    Next::Go => {}
                    Next::Wait => break,
                    Next::Pause => {
                        // Stored files can be put away, whatever the outbox answers now.
                        self.put_away().await;
                        return self.longer();
                    }
                }
            }
            if !self.put_away().await {
                return self.longer();
            }
        }
        self.count_left(left);
        self.well(STUCK);
        self.pause = FIRST_PAUSE;
        let now = Instant::now();
        let settled = [&self.debounce, &self.claimed].map(|files| files.next(now, self.config.settle));
        let soonest = settled.into_iter().flatten().min().unwrap_or(self.config.rescan);
        let went_on = self.taken != stored_before;
        if found.more && went_on { Duration::ZERO } else { soonest.min(self.config.rescan).max(BREATH) }
    }

    /// Reads and submits one file.
    async fn file(&mut self, place: FilePlace, file: Candidate, left: &mut u64) -> Next {
        let Candidate { name, facts } = file;
        let debounce = if place == FilePlace::Folder { &self.debounce } else { &self.claimed };
        let now = Instant::now();
        let age = debounce.age(&name, now);
        if !debounce.is_settled(&name, now, self.config.settle) {
            return Next::Wait;
        }
        let limit = self.config.file_limit_bytes as u64;
        let bytes = usize::try_from(facts.bytes.min(limit)).unwrap_or(usize::MAX);
        tokio::select! {
            grown = timeout(BUDGET_WAIT, self.share.grow_to(bytes)) => if grown.is_err() {
                tracing::debug!(folder = self.config.name, "Too many large messages are under way");
                return Next::Pause;
            },
            () = stop_requested(&mut self.stop) => return Next::Pause,
        }
        let (files, path) = (Arc::clone(&self.files), self.files.path(place, &name));
        let taken = self.blocking(move || match files.point(Point::Read) {
            Ok(()) => read::take(&path, facts, limit),
            Err(error) => ReadFile::Unreadable(error.kind()),
        });
        let bytes = match taken.await.unwrap_or_else(|error| ReadFile::Unreadable(error.kind())) {
            ReadFile::Whole(bytes) => bytes,
            ReadFile::Empty if age < self.config.empty => return Next::Go,
            ReadFile::Empty => return self.reject(place, &name, facts, Reason::Empty).await,
            ReadFile::TooLarge => return self.reject(place, &name, facts, Reason::TooLarge(limit)).await,
            ReadFile::Changed => {
                match place {
                    FilePlace::Folder => self.debounce.changed(&name),
                    FilePlace::Taken => self.claimed.changed(&name),
                }
                return Next::Wait;
            }
            ReadFile::Gone => return Next::Go,
            ReadFile::Unreadable(kind) => {
                tracing::debug!(folder = self.config.name, %kind, "Left a file that cannot be read");
                *left += 1;
                return Next::Go;
            }
        };
        count(&self.counters.received);
        let sha256 = rules::sha256(&bytes);
        let submission = self.submission(&name, facts.modified, Body::new(bytes));
        let outcome = self.acceptor.submit(submission).await;
        self.share.release();
        match outcome {
            Ok(accepted) => {
                self.count_accepted(&accepted);
                self.taken += 1;
                if self.stored.is_empty() {
                    self.stored_since = Instant::now();
                }
                self.stored.push(StoredFile::new(name, facts, sha256, accepted, place));
                let enough = self.stored.len() >= TOGETHER || self.stored_since.elapsed() >= TOGETHER_TIME;
                if enough && !self.put_away().await { Next::Pause } else { Next::Go }
            }
            Err(Refusal::TooLarge { limit, .. }) => {
                self.reject(place, &name, facts, Reason::TooLarge(limit)).await
            }
            Err(Refusal::Text(error)) => self.reject(place, &name, facts, Reason::Text(error)).await,
            Err(refusal) => {
                count(&self.counters.unavailable);
                self.cannot_store(&refusal);
                Next::Pause
            }
        }
    }

    fn submission(&self, name: &OsStr, modified: rules::Modified, body: Body) -> Submission {
        let config = &self.config;
        let extension = rules::extension(name.as_bytes());
        let known = config.by_extension.iter().find(|(of, _)| *of == extension);
        let nature = known.map_or(&config.usual, |(_, nature)| nature);
        let event_type = rules::event_type(nature, body.as_bytes());
        Submission {
            lane: config.lane.clone(),
            event_type,
            kind: Kind::Transaction,
            content_type: nature.content_type.clone(),
            sender: format!("folder:{}", config.name),
            key: rules::key(name.as_bytes(), modified),
            // File names name patients.
            shows_key: false,
            correlation_id: String::new(),
            trace_parent: String::new(),
            body,
        }
    }

    fn count_accepted(&mut self, accepted: &Accepted) {
        self.counters.count_accepted(accepted);
        if std::mem::take(&mut self.shut) {
            tracing::info!(folder = self.config.name, "Opened the folder door again");
        }
        self.pause = FIRST_PAUSE;
    }

    fn cannot_store(&mut self, refusal: &Refusal) {
        if refusal.is_temporary() {
            tracing::debug!(%refusal, "Left a file in its folder");
        } else {
            tracing::error!(%refusal, "The outbox refuses transactions from the folder door");
        }
        // A full queue drains in milliseconds; that alone is not worth reporting.
        if *refusal != Refusal::Busy && !std::mem::replace(&mut self.shut, true) {
            tracing::warn!(folder = self.config.name, "Closed the folder door while nothing can be stored");
        }
    }

    /// Refuses a file because of its content. In `.taken/` it is checked once more, so that only what was checked is
    /// rejected.
    async fn reject(&mut self, place: FilePlace, name: &OsStr, facts: FileFacts, reason: Reason) -> Next {
        self.share.release();
        if !self.put_away().await {
            return Next::Pause;
        }
        let (files, name) = (Arc::clone(&self.files), name.to_owned());
        let rejected = self.blocking(move || {
            if place == FilePlace::Folder && !files.claim(&name)? {
                return Ok(false);
            }
            let now = std::fs::symlink_metadata(files.path(FilePlace::Taken, &name))?;
            if !now.is_file() || read::facts(&now) != facts {
                // Another file has arrived under this name: it is taken from there.
                return Ok(false);
            }
            files.reject(&name, facts, reason).map(|()| true)
        });
        match rejected.await.flatten() {
            Ok(true) => {
                self.well(STUCK);
                self.taken += 1;
                count(&self.counters.received);
                count(&self.counters.refused);
                let (folder, bytes) = (&self.config.name, facts.bytes);
                tracing::warn!(folder, reason = reason.code(), bytes, "Rejected a file");
                Next::Go
            }
            Ok(false) => Next::Go,
            Err(error) => {
                self.report_failure(STUCK, &error);
                Next::Pause
            }
        }
    }

    /// Puts away stored files; false: that failed, and nothing else may be taken first.
    pub(super) async fn put_away(&mut self) -> bool {
        if self.stored.is_empty() {
            return true;
        }
        let (files, mut items) = (Arc::clone(&self.files), std::mem::take(&mut self.stored));
        let put = self.blocking(move || {
            let put = files.put_away(&mut items);
            (items, put)
        });
        let put = match put.await {
            Ok((items, put)) => {
                self.stored = items;
                put
            }
            // Its files are found in the folder again, and recognised.
            Err(error) => Err(error),
        };
        match put {
            Ok(()) => {
                self.well(STUCK);
                true
            }
            Err(error) => {
                self.report_failure(STUCK, &error);
                false
            }
        }
    }

    /// Runs on a blocking thread what touches the folder. A share that hangs is reported, and waited for: at most one
    /// thread waits.
    async fn blocking<T: Send + 'static>(
        &mut self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<T> {
        let mut task = spawn_blocking(work);
        loop {
            match timeout(self.patience, &mut task).await {
                Ok(done) => {
                    self.well(HANGS);
                    return done.map_err(|_| io::Error::other("a bug in this program"));
                }
                Err(_) => {
                    let error = io::ErrorKind::TimedOut.into();
                    self.report_failure(HANGS, &error);
                    if *self.stop.borrow() {
                        return Err(error);
                    }
                }
            }
        }
    }

    /// Logged once, until it ends. The error is the system's and contains no file name.
    fn report_failure(&mut self, what: &'static str, error: &io::Error) {
        if self.failure.is_none() {
            count(&self.counters.folders_away);
        }
        if self.failure.replace(what) != Some(what) {
            tracing::error!(folder = self.config.name, what, %error, "The folder cannot be used; the folder door is closed");
        }
    }

    fn well(&mut self, what: &'static str) {
        if self.failure == Some(what) {
            self.failure = None;
            self.counters.folders_away.fetch_sub(1, Ordering::Relaxed);
            tracing::info!(folder = self.config.name, "The folder can be used again");
        }
    }

    /// Reports how many entries stay because they cannot be taken, when that number changes.
    fn count_left(&mut self, left: u64) {
        let before = std::mem::replace(&mut self.left, left);
        self.counters.files_left.fetch_add(left, Ordering::Relaxed);
        self.counters.files_left.fetch_sub(before, Ordering::Relaxed);
        if left > before {
            let folder = &self.config.name;
            tracing::warn!(
                folder,
                left,
                "Ignored a folder entry that is not a regular file or cannot be read"
            );
        }
    }

    /// The next pause after a failure.
    fn longer(&mut self) -> Duration {
        let pause = self.pause;
        self.pause = (pause * 2).min(LAST_PAUSE);
        pause
    }
}
