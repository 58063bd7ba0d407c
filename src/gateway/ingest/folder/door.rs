//! One folder door: what it is told, and when it looks into its folder (design section 8).
//!
//! A share that hangs holds up this door alone; `rounds` has what is done at each look.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use pgw_core::transaction::{Gateway, Lane, Practice};
use tokio::sync::watch;

use crate::ingest::folder::rounds::{BREATH, Folder, told_to};
use crate::ingest::folder::rules::{Nature, Take};
use crate::ingest::{Acceptor, Budget, Counters};

/// What one folder door is told by the configuration.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The folder's name, part of the `source` of its transactions.
    pub name: String,
    /// Where it is.
    pub path: PathBuf,
    /// Whose gateway this is, for the `source` of transactions.
    pub practice: Practice,
    /// The gateway's id, likewise.
    pub gateway: Gateway,
    /// The lane that its files go to.
    pub lane: Lane,
    /// How a sender says that a file is complete.
    pub take: Take,
    /// A file system must be mounted there: without it the folder counts as away.
    pub mounted: bool,
    /// Largest file.
    pub file_limit_bytes: usize,
    /// How often it looks, besides when it is told of something new (5 s).
    pub rescan: Duration,
    /// How long a file must have been the same (2 s; none with a second file).
    pub settle: Duration,
    /// How long an empty file may stay empty before it is rejected (60 s).
    pub empty: Duration,
    /// Name of the subfolder for receipts.
    pub accepted: String,
    /// Name of the subfolder for refused files.
    pub rejected: String,
    /// Whether accepted files are kept beside their receipts.
    pub keep_accepted: bool,
    /// What files are whose extension says nothing.
    pub usual: Nature,
    /// What files of an extension (in lower case) are.
    pub by_extension: Vec<(String, Nature)>,
}

/// A door that is ready; [`Door::serve`] opens it. The folder need not be there yet.
#[derive(Debug)]
pub struct Door {
    settings: Settings,
}

impl Door {
    /// Touches nothing.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self { settings }
    }

    /// Takes files until `stop` becomes true (or its sender is gone), puts away what it has stored, and returns.
    pub async fn serve<A: Acceptor>(
        self,
        acceptor: A,
        counters: Arc<Counters>,
        budget: Budget,
        mut stop: watch::Receiver<bool>,
    ) {
        let mut folder = Folder::new(self.settings, acceptor, counters, &budget, stop.clone());
        loop {
            let pause = folder.round().await;
            let breath = tokio::select! {
                () = told_to(&mut stop) => break,
                () = tokio::time::sleep(pause) => Duration::ZERO,
                () = folder.news() => BREATH,
            };
            tokio::time::sleep(breath).await;
        }
        folder.end().await;
    }
}
