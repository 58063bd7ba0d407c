//! The life of a daemon: open, accept, look on, stop in order (design sections 3 and 4).
//!
//! - [`gateway`] and [`hub`]: what each starts, in which order, and how it stops
//! - [`logs`]: where logs go
//! - `tasks`: one set of named tasks, stopped stage by stage
//! - `systemd`: ready, status, watchdog
//!
//! Invariants: doors open only after the store is open; a task that ends early ends the process, which says which;
//! the watchdog is fed only by a runtime that runs and a store that answers.

pub mod gateway;
pub mod hub;
pub mod logs;
mod systemd;
mod tasks;

use std::error::Error;

use crate::cli::exit::Exit;

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
    fn new(exit: Exit, what: impl Into<String>) -> Self {
        Self { exit, what: what.into(), source: None }
    }

    fn of(exit: Exit, what: impl Into<String>, source: impl Error + Send + Sync + 'static) -> Self {
        Self { exit, what: what.into(), source: Some(Box::new(source)) }
    }
}

/// Only the owner may read what we make; the control socket and public files set their own modes.
fn close_umask() {
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
}

fn runtime() -> Result<tokio::runtime::Runtime, Fatal> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(32)
        .thread_name("worker")
        .enable_all()
        .build()
        .map_err(|error| Fatal::of(Exit::Internal, "cannot start the runtime", error))
}
