//! How a daemon starts and ends.
//!
//! Invariants of both daemons: doors open only after the store is open; a task that ends early ends the process, and
//! the log names the task; the watchdog is fed only while the runtime runs and the store responds.

use std::error::Error;
use std::io::Write;

use crate::exit::{Exit, complain};
use crate::log_config::Log;
use crate::logs;

/// Why a daemon did not start or ended early, with the exit code.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
pub struct Fatal {
    /// The exit code, which systemd and scripts act on.
    pub exit: Exit,
    what: String,
    #[source]
    source: Option<Box<dyn Error + Send + Sync>>,
}

impl Fatal {
    /// A reason without an underlying error.
    #[must_use]
    pub fn new(exit: Exit, what: impl Into<String>) -> Self {
        Self { exit, what: what.into(), source: None }
    }

    /// A reason with the error that caused it.
    pub fn of(exit: Exit, what: impl Into<String>, source: impl Error + Send + Sync + 'static) -> Self {
        Self { exit, what: what.into(), source: Some(Box::new(source)) }
    }
}

/// Starts the log and runs a daemon. Writes the reason if it fails, and returns the exit code.
pub fn run(log: &Log, daemon: impl FnOnce() -> Result<(), Fatal>, err: &mut dyn Write) -> Exit {
    logs::start(log);
    daemon().map_or_else(
        |fatal| {
            complain(err, &fatal);
            fatal.exit
        },
        |()| Exit::Done,
    )
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
        .map_err(|error| Fatal::of(Exit::Internal, "cannot start the runtime", error))
}
