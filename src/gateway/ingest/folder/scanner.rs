//! One look into a folder, and what is done with all that it shows: one file after the other.
//!
//! When one cannot be stored now or is still being written to, none behind it is tried: the order of a folder is the
//! order of its lane. Everything that touches the folder is done on blocking threads.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use pgw_core::transaction::Body;
use pgw_outbox::{Accepted, Refusal, Submission};
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use crate::ingest::folder::door::Settings;
use crate::ingest::folder::news;
use crate::ingest::folder::news::News;
use crate::ingest::folder::papers::Reason;
use crate::ingest::folder::read;
use crate::ingest::folder::read::Taken;
use crate::ingest::folder::rules;
use crate::ingest::folder::scan;
use crate::ingest::folder::settle::{Candidate, Facts, Settling};
use crate::ingest::folder::shelf::{Item, Place, Point, Shelf};
use crate::ingest::{Acceptor, Budget, Counters, Share, count};

/// Stored files that are put away together: their folders are synced once.
const TOGETHER: usize = 64;
/// How long a stored file may wait for others.
const TOGETHER_TIME: Duration = Duration::from_secs(1);
/// Pauses while nothing can be stored, or a folder cannot be used: from the first to the second, doubling.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LAST_PAUSE: Duration = Duration::from_secs(30);
/// How long a large file waits for the memory that all doors share, before it is for later.
const BUDGET_WAIT: Duration = Duration::from_secs(2);
/// What may be wrong with a folder.
const AWAY: &str = "it cannot be looked into";
const STUCK: &str = "files cannot be moved in it";
const HANGS: &str = "it does not answer";
/// How long a folder may take to answer before that is told.
const PATIENCE: Duration = Duration::from_secs(30);
/// After news, so that many files at once are one look.
pub(super) const BREATH: Duration = Duration::from_millis(50);

/// Returns when it is time to stop.
pub(super) async fn told_to(stop: &mut watch::Receiver<bool>) {
    // An error means that the sender has gone, which is as good a reason.
    drop(stop.wait_for(|stop| *stop).await);
}

/// What is next after a file.
enum Next {
    Go,
    /// Those behind it wait for it.
    Wait,
    /// Nothing more in this round.
    Pause,
}

pub(super) struct Folder<A> {
    settings: Arc<Settings>,
    pub(super) shelf: Arc<Shelf>,
    acceptor: A,
    counters: Arc<Counters>,
    share: Share,
    stop: watch::Receiver<bool>,
    settling: Settling,
    claimed: Settling,
    /// Stored, and not put away yet.
    stored: Vec<Item>,
    stored_since: Instant,
    /// Why the folder cannot be used now.
    trouble: Option<&'static str>,
    /// The outbox takes nothing now.
    shut: bool,
    pause: Duration,
    left: u64,
    /// Files that were stored or rejected.
    taken: u64,
    news: Option<News>,
    /// [`PATIENCE`].
    pub(super) patience: Duration,
}

impl<A: Acceptor> Folder<A> {
    pub(super) fn new(
        settings: Settings,
        acceptor: A,
        counters: Arc<Counters>,
        budget: &Budget,
        stop: watch::Receiver<bool>,
    ) -> Self {
        let Settings { path, accepted, rejected, take, keep_accepted, lane, .. } = &settings;
        let shelf = Shelf::new(path, accepted, rejected, *take, *keep_accepted, lane.clone());
        Self {
            settings: Arc::new(settings),
            shelf: Arc::new(shelf),
            acceptor,
            counters,
            share: budget.share(),
            stop,
            settling: Settling::default(),
            claimed: Settling::default(),
            stored: Vec::new(),
            stored_since: Instant::now(),
            trouble: None,
            shut: false,
            pause: FIRST_PAUSE,
            left: 0,
            taken: 0,
            news: None,
            patience: PATIENCE,
        }
    }

    /// Puts away what was stored, and is counted no more.
    pub(super) async fn end(mut self) {
        self.put_away().await;
        self.counters.folders_away.fetch_sub(u64::from(self.trouble.is_some()), Ordering::Relaxed);
        self.count_left(0);
    }

    /// When there is something new; never, where the system does not tell.
    pub(super) async fn news(&mut self) {
        match &self.news {
            Some(news) => {
                if let Err(error) = news.wait().await {
                    tracing::debug!(%error, "Not told of changes in a folder any more");
                    self.news = None;
                }
            }
            None => std::future::pending().await,
        }
    }

    /// One look, and all that it shows. Returns after how long to look again, at the latest.
    pub(super) async fn round(&mut self) -> Duration {
        if !self.put_away().await {
            return self.longer();
        }
        let (settings, shelf) = (Arc::clone(&self.settings), Arc::clone(&self.shelf));
        let watched = self.news.is_some();
        let looked = match self.blocking(move || look(&settings, &shelf, watched)).await.flatten() {
            Ok(looked) => looked,
            Err(error) => {
                self.in_trouble(AWAY, &error);
                self.news = None;
                return self.longer();
            }
        };
        self.well(AWAY);
        if let Some(told) = looked.told {
            self.news = News::new(told).ok();
        }
        let now = Instant::now();
        self.claimed.handle(looked.claimed.iter(), now);
        self.settling.handle(looked.files.iter(), now);
        let (mut left, stored_before) = (looked.odd, self.taken);
        for (place, files) in [(Place::Taken, looked.claimed), (Place::Folder, looked.files)] {
            for file in files {
                if *self.stop.borrow() {
                    return Duration::ZERO;
                }
                match self.file(place, file, &mut left).await {
                    Next::Go => {}
                    Next::Wait => break,
                    Next::Pause => {
                        // What was stored can be put away, whatever the outbox says now.
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
        let settled = [&self.settling, &self.claimed].map(|files| files.next(now, self.settings.settle));
        let soonest = settled.into_iter().flatten().min().unwrap_or(self.settings.rescan);
        let went_on = self.taken != stored_before;
        if looked.more && went_on { Duration::ZERO } else { soonest.min(self.settings.rescan).max(BREATH) }
    }

    /// Reads and submits one file.
    async fn file(&mut self, place: Place, file: Candidate, left: &mut u64) -> Next {
        let Candidate { name, facts } = file;
        let settling = if place == Place::Folder { &self.settling } else { &self.claimed };
        let now = Instant::now();
        let age = settling.age(&name, now);
        if !settling.is_settled(&name, now, self.settings.settle) {
            return Next::Wait;
        }
        let limit = self.settings.file_limit_bytes as u64;
        let room = usize::try_from(facts.bytes.min(limit)).unwrap_or(usize::MAX);
        tokio::select! {
            grown = timeout(BUDGET_WAIT, self.share.grow_to(room)) => if grown.is_err() {
                tracing::debug!(folder = self.settings.name, "Too many large messages are under way");
                return Next::Pause;
            },
            () = told_to(&mut self.stop) => return Next::Pause,
        }
        let (shelf, path) = (Arc::clone(&self.shelf), self.shelf.path(place, &name));
        let taken = self.blocking(move || match shelf.point(Point::Read) {
            Ok(()) => read::take(&path, facts, limit),
            Err(error) => Taken::Unreadable(error.kind()),
        });
        let bytes = match taken.await.unwrap_or_else(|error| Taken::Unreadable(error.kind())) {
            Taken::Whole(bytes) => bytes,
            Taken::Empty if age < self.settings.empty => return Next::Go,
            Taken::Empty => return self.reject(place, &name, facts, Reason::Empty).await,
            Taken::TooLarge => return self.reject(place, &name, facts, Reason::TooLarge(limit)).await,
            Taken::Changed => {
                match place {
                    Place::Folder => self.settling.changed(&name),
                    Place::Taken => self.claimed.changed(&name),
                }
                return Next::Wait;
            }
            Taken::Gone => return Next::Go,
            Taken::Unreadable(kind) => {
                tracing::debug!(folder = self.settings.name, %kind, "Left a file that cannot be read");
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
                self.count_accepted(accepted);
                self.taken += 1;
                if self.stored.is_empty() {
                    self.stored_since = Instant::now();
                }
                self.stored.push(Item::new(name, facts, sha256, accepted, place));
                let enough = self.stored.len() >= TOGETHER || self.stored_since.elapsed() >= TOGETHER_TIME;
                if enough && !self.put_away().await { Next::Pause } else { Next::Go }
            }
            Err(Refusal::TooLarge { limit, .. }) => {
                self.reject(place, &name, facts, Reason::TooLarge(limit)).await
            }
            Err(refusal) => {
                count(&self.counters.unavailable);
                self.cannot_store(&refusal);
                Next::Pause
            }
        }
    }

    fn submission(&self, name: &OsStr, modified: rules::Modified, body: Body) -> Submission {
        let settings = &self.settings;
        let extension = rules::extension(name.as_bytes());
        let known = settings.by_extension.iter().find(|(of, _)| *of == extension);
        let nature = known.map_or(&settings.usual, |(_, nature)| nature);
        let (event_type, kind) = rules::kinds(nature, body.as_bytes());
        Submission {
            lane: settings.lane.clone(),
            event_type,
            kind: kind.to_owned(),
            content_type: nature.content_type.clone(),
            source: format!("urn:pgw:{}:{}:folder:{}", settings.practice, settings.gateway, settings.name),
            key: rules::key(name.as_bytes(), modified),
            correlation_id: String::new(),
            test_data: false,
            body,
        }
    }

    fn count_accepted(&mut self, accepted: Accepted) {
        count(&self.counters.accepted);
        if accepted.repeated {
            count(&self.counters.repeated);
        }
        if accepted.key_reused {
            count(&self.counters.key_reused);
        }
        if std::mem::take(&mut self.shut) {
            tracing::info!(folder = self.settings.name, "Opened the folder door again");
        }
        self.pause = FIRST_PAUSE;
    }

    fn cannot_store(&mut self, refusal: &Refusal) {
        if refusal.is_temporary() {
            tracing::debug!(%refusal, "Left a file in its folder");
        } else {
            tracing::error!(%refusal, "The outbox refuses what the folder door brings");
        }
        // A full queue drains in milliseconds; that alone is no news.
        if *refusal != Refusal::Busy && !std::mem::replace(&mut self.shut, true) {
            tracing::warn!(folder = self.settings.name, "Closed the folder door while nothing can be stored");
        }
    }

    /// Refuses a file for what it is. In `.taken/` it is looked at once more: what is rejected is what was judged.
    async fn reject(&mut self, place: Place, name: &OsStr, facts: Facts, reason: Reason) -> Next {
        self.share.release();
        if !self.put_away().await {
            return Next::Pause;
        }
        let (shelf, name) = (Arc::clone(&self.shelf), name.to_owned());
        let rejected = self.blocking(move || {
            if place == Place::Folder && !shelf.claim(&name)? {
                return Ok(false);
            }
            let now = std::fs::symlink_metadata(shelf.path(Place::Taken, &name))?;
            if !now.is_file() || read::facts(&now) != facts {
                // Another one has come under this name: it is taken from there.
                return Ok(false);
            }
            shelf.reject(&name, facts, reason).map(|()| true)
        });
        match rejected.await.flatten() {
            Ok(true) => {
                self.well(STUCK);
                self.taken += 1;
                count(&self.counters.received);
                count(&self.counters.refused);
                let (folder, bytes) = (&self.settings.name, facts.bytes);
                tracing::warn!(folder, reason = reason.code(), bytes, "Rejected a file");
                Next::Go
            }
            Ok(false) => Next::Go,
            Err(error) => {
                self.in_trouble(STUCK, &error);
                Next::Pause
            }
        }
    }

    /// Puts away what is stored; false: not now, and nothing else must be taken before it can.
    pub(super) async fn put_away(&mut self) -> bool {
        if self.stored.is_empty() {
            return true;
        }
        let (shelf, mut items) = (Arc::clone(&self.shelf), std::mem::take(&mut self.stored));
        let put = self.blocking(move || {
            let put = shelf.put_away(&mut items);
            (items, put)
        });
        let put = match put.await {
            Ok((items, put)) => {
                self.stored = items;
                put
            }
            // What it held is found in the folder again, and known.
            Err(error) => Err(error),
        };
        match put {
            Ok(()) => {
                self.well(STUCK);
                true
            }
            Err(error) => {
                self.in_trouble(STUCK, &error);
                false
            }
        }
    }

    /// Does on a blocking thread what touches the folder. A share that hangs is told of, and waited for: there is never
    /// more than one thread that waits.
    async fn blocking<T: Send + 'static>(
        &mut self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<T> {
        let mut task = spawn_blocking(work);
        loop {
            match timeout(self.patience, &mut task).await {
                Ok(done) => {
                    self.well(HANGS);
                    return done.map_err(|_| io::Error::other("a fault of this program"));
                }
                Err(_) => {
                    let error = io::ErrorKind::TimedOut.into();
                    self.in_trouble(HANGS, &error);
                    if *self.stop.borrow() {
                        return Err(error);
                    }
                }
            }
        }
    }

    /// Said once, until it is over. The error is the system's word and has no name in it.
    fn in_trouble(&mut self, what: &'static str, error: &io::Error) {
        if self.trouble.is_none() {
            count(&self.counters.folders_away);
        }
        if self.trouble.replace(what) != Some(what) {
            tracing::error!(folder = self.settings.name, what, %error, "The folder door is shut");
        }
    }

    fn well(&mut self, what: &'static str) {
        if self.trouble == Some(what) {
            self.trouble = None;
            self.counters.folders_away.fetch_sub(1, Ordering::Relaxed);
            tracing::info!(folder = self.settings.name, "The folder can be used again");
        }
    }

    /// Tells how many files stay because they cannot be taken, when that changes.
    fn count_left(&mut self, left: u64) {
        let before = std::mem::replace(&mut self.left, left);
        self.counters.files_left.fetch_add(left, Ordering::Relaxed);
        self.counters.files_left.fetch_sub(before, Ordering::Relaxed);
        if left > before {
            let folder = &self.settings.name;
            tracing::warn!(folder, left, "Left in a folder what is no file or cannot be read");
        }
    }

    /// The next pause after something that did not work.
    fn longer(&mut self) -> Duration {
        let pause = self.pause;
        self.pause = (pause * 2).min(LAST_PAUSE);
        pause
    }
}

/// All that a look shows.
struct Looked {
    claimed: Vec<Candidate>,
    files: Vec<Candidate>,
    odd: u64,
    more: bool,
    told: Option<std::os::fd::OwnedFd>,
}

/// Blocks.
fn look(settings: &Settings, shelf: &Shelf, watched: bool) -> io::Result<Looked> {
    if settings.mounted && !scan::is_mounted(&settings.path)? {
        return Err(io::Error::new(io::ErrorKind::NotFound, "nothing is mounted there"));
    }
    shelf.prepare()?;
    // Before the look: what comes after it is news.
    let told = if watched { None } else { news::watch(&settings.path).ok() };
    let claimed = scan::look(shelf.directory(Place::Taken), settings.take, scan::MOST, |_| Ok(true))?;
    // A name that is still in `.taken/` waits its turn.
    let names: std::collections::HashSet<&OsStr> =
        claimed.files.iter().map(|file| file.name.as_os_str()).collect();
    let may = |name: &OsStr| Ok(!names.contains(name) && shelf.is_complete(name)?);
    let found = scan::look(shelf.directory(Place::Folder), settings.take, scan::MOST, may)?;
    let (odd, more) = (claimed.odd + found.odd, claimed.more || found.more);
    Ok(Looked { files: found.files, claimed: claimed.files, odd, more, told })
}
