//! Both command lines.
//!
//! - [`gateway`]: `practice-gateway`; [`submit`], [`status`], [`outbox`], [`quarantine`] and [`verify`] ask the running
//!   daemon over its control socket ([`crate::ingest::control`])
//! - [`hub`]: `practice-hub`; [`acl`] makes the broker's access rules; [`import`] and [`resend`] ask a running hub by its
//!   folders
//! - [`repair`] works on the store itself, which no daemon may have open
//! - [`check`] and [`init`] are for both, and need no daemon
//! - [`key`] and [`moving`]: another key, another box; both work on the store and its key file themselves
//! - [`exit`]: what a script decides by; [`progress`]: what a person sees meanwhile
//!
//! Each command writes to the writers that it is given, so that tests can read what a person would.

pub mod acl;
pub mod check;
pub mod exit;
pub mod export;
pub mod gateway;
pub mod hub;
pub mod import;
pub mod init;
pub mod key;
pub mod moving;
pub mod outbox;
pub mod progress;
pub mod quarantine;
pub mod repair;
pub mod resend;
pub mod status;
pub mod submit;
pub mod verify;

use std::ffi::OsString;
use std::io::Write;

use clap::Parser;

use crate::cli::exit::Exit;

/// Reads a command line; help and version are written and end well, anything wrong ends with 64.
fn parse<P: Parser>(
    words: impl IntoIterator<Item = OsString>,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> Result<P, Exit> {
    P::try_parse_from(words).map_err(|error| {
        // A reader that has gone is no fault.
        if error.use_stderr() {
            let _ = write!(err, "{error}");
            Exit::Usage
        } else {
            let _ = write!(out, "{error}");
            Exit::Done
        }
    })
}
