//! Command line arguments.

use std::ffi::OsString;
use std::io::Write;

use clap::Parser;

use crate::exit::Exit;

/// Reads a command line; help and version are written and end well, anything wrong ends with 64.
///
/// # Errors
/// How the command ends.
pub fn parse<P: Parser>(
    args: impl IntoIterator<Item = OsString>,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> Result<P, Exit> {
    P::try_parse_from(args).map_err(|error| {
        // A reader that has gone is no error.
        if error.use_stderr() {
            let _ = write!(err, "{error}");
            Exit::Usage
        } else {
            let _ = write!(out, "{error}");
            Exit::Done
        }
    })
}
