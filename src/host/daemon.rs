//! How a daemon begins and ends.
//!
//! Invariants of both daemons: doors open only after the store is open; a task that ends early ends the process, which says
//! which; the watchdog is fed only by a runtime that runs and a store that answers.

use std::error::Error;

use crate::exit::Exit;

/// Why a daemon did not start or did not stay, and the exit code that says so.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
pub struct Fatal {
    /// What systemd and scripts decide by.
    pub exit: Exit,
    what: String,
    #[source]
    source: Option<Box<dyn Error + Send + Sync>>,
}

impl Fatal {
    /// A reason without a cause beneath it.
    #[must_use]
    pub fn new(exit: Exit, what: impl Into<String>) -> Self {
        Self { exit, what: what.into(), source: None }
    }

    /// A reason, and the error that it comes from.
    pub fn of(exit: Exit, what: impl Into<String>, source: impl Error + Send + Sync + 'static) -> Self {
        Self { exit, what: what.into(), source: Some(Box::new(source)) }
    }
}

/// Only the owner may read what we make; the control socket and public files set their own modes.
pub fn close_umask() {
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
}

/// Two workers, and threads for what blocks.
///
/// # Errors
/// [`Fatal`]: the system has no threads left.
pub fn runtime() -> Result<tokio::runtime::Runtime, Fatal> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(32)
        .thread_name("worker")
        .enable_all()
        .build()
        .map_err(|error| Fatal::of(Exit::Internal, "cannot start the runtime", error))
}
