//! Command line arguments.

use std::ffi::OsString;
use std::io::Write;

use clap::Parser;

use crate::exit::Exit;

/// Reads a command line. Help and version are printed with exit code 0; a wrong command line gives 64.
///
/// # Errors
/// The exit code of the command.
pub fn parse<P: Parser>(
    args: impl IntoIterator<Item = OsString>,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> Result<P, Exit> {
    P::try_parse_from(args).map_err(|error| {
        // A reader that has closed its end is not an error.
        if error.use_stderr() {
            let _ = write!(err, "{error}");
            Exit::Usage
        } else {
            let _ = write!(out, "{error}");
            Exit::Done
        }
    })
}
