//! How a daemon starts and ends.
//!
//! Invariants of both daemons: doors open only after the store is open; a task that ends early ends the process, and
//! the log names the task; the watchdog is fed only while the runtime runs and the store responds.

use std::error::Error;
use std::io::Write;

use pgw_core::consequence::Consequence;

use crate::exit::{Exit, fail};
use crate::log_config::Log;
use crate::logs;

/// Why a daemon did not start or ended early.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
pub struct Fatal {
    what: String,
    consequence: Consequence,
    #[source]
    source: Option<Box<dyn Error + Send + Sync>>,
}

impl Fatal {
    /// A reason without an underlying error.
    #[must_use]
    pub fn new(what: impl Into<String>, consequence: Consequence) -> Self {
        Self { what: what.into(), consequence, source: None }
    }

    /// A reason with the error that caused it.
    pub fn of(
        what: impl Into<String>,
        consequence: Consequence,
        source: impl Error + Send + Sync + 'static,
    ) -> Self {
        Self { what: what.into(), consequence, source: Some(Box::new(source)) }
    }

    /// How the daemon ends; systemd and scripts act on its exit code.
    #[must_use]
    pub fn consequence(&self) -> Consequence {
        self.consequence
    }
}

/// Starts the log and runs a daemon. Writes the reason if it fails, and returns the exit code.
pub fn run(log: &Log, daemon: impl FnOnce() -> Result<(), Fatal>, err: &mut dyn Write) -> Exit {
    logs::start(log);
    daemon().map_or_else(|fatal| fail(err, &fatal, fatal.consequence()), |()| Exit::Done)
}

/// Only the owner may read the files we create; the control socket and public files set their own modes.
pub fn close_umask() {
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
}

/// Two worker threads, and more for blocking work.
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
        .map_err(|error| Fatal::of("cannot start the runtime", Consequence::BUG, error))
}
