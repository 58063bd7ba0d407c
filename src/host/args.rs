//! Command line arguments.

use std::error::Error;
use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};

use clap::Parser;

use crate::exit::{Exit, complain};

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

/// Reads a command line, and the configuration in the file that it names.
///
/// # Errors
/// The exit code of the command; the reason is written.
pub fn parse_and_load<P: Parser, C, E: Error + 'static>(
    args: impl IntoIterator<Item = OsString>,
    file: impl FnOnce(&P) -> PathBuf,
    load: impl FnOnce(&Path) -> Result<C, E>,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> Result<(P, C), Exit> {
    let arguments = parse(args, out, err)?;
    match load(&file(&arguments)) {
        Ok(config) => Ok((arguments, config)),
        Err(error) => {
            complain(err, &error);
            Err(Exit::Configuration)
        }
    }
}
