//! One folder door: when it scans its folder (design section 8).
//!
//! A share that hangs holds up only this door; `scanner` has the steps of each scan.

use std::sync::Arc;
use std::time::Duration;

use pgw_host::accept::stop_requested;
use tokio::sync::watch;

use crate::ingest::folder::config::FolderDoorConfig;
use crate::ingest::folder::scanner::{BREATH, FolderScanner};
use crate::ingest::{Acceptor, Budget, Counters};

/// A door that is ready; [`FolderDoor::serve`] opens it. The folder need not be there yet.
#[derive(Debug)]
pub struct FolderDoor {
    config: FolderDoorConfig,
}

impl FolderDoor {
    /// Touches nothing on disk.
    #[must_use]
    pub fn new(config: FolderDoorConfig) -> Self {
        Self { config }
    }

    /// Takes files until `stop` becomes true (or its sender is gone), puts away what it has stored, and returns.
    pub async fn serve<A: Acceptor>(
        self,
        acceptor: A,
        counters: Arc<Counters>,
        budget: Budget,
        mut stop: watch::Receiver<bool>,
    ) {
        let mut folder = FolderScanner::new(self.config, acceptor, counters, &budget, stop.clone());
        loop {
            let pause = folder.scan().await;
            let breath = tokio::select! {
                () = stop_requested(&mut stop) => break,
                () = tokio::time::sleep(pause) => Duration::ZERO,
                () = folder.changed() => BREATH,
            };
            tokio::time::sleep(breath).await;
        }
        folder.end().await;
    }
}
