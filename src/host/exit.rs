//! Exit codes, after `sysexits.h`. Scripts act on them.

use std::error::Error;
use std::io::Write;
use std::process::ExitCode;

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Success; for `submit`: all files are on stable storage.
    Done = 0,
    /// The command line is wrong.
    Usage = 64,
    /// The input is refused, or a check found something wrong.
    Refused = 65,
    /// The daemon cannot be reached.
    Unreachable = 69,
    /// A bug in this program.
    Internal = 70,
    /// A file cannot be read or written.
    Files = 74,
    /// Try again later.
    Later = 75,
    /// This user may not use a file or an address.
    NotPermitted = 77,
    /// The configuration is wrong; nothing was started.
    Configuration = 78,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        ExitCode::from(exit as u8)
    }
}

/// Writes an error with all its causes on one line. A closed stderr does not change the exit code.
pub fn complain(err: &mut dyn Write, error: &dyn Error) {
    let _ = writeln!(err, "{}", pgw_core::text::chain(error));
}
