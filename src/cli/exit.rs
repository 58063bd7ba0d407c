//! Exit codes, after `sysexits.h`: scripts decide by them.

use std::error::Error;
use std::io::Write;
use std::process::ExitCode;

use crate::ingest::control::client::ClientError;

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done; for `submit`: it is durable.
    Done = 0,
    /// The command line is wrong.
    Usage = 64,
    /// The input is refused, or what was checked is wrong.
    Refused = 65,
    /// The daemon cannot be reached.
    Unreachable = 69,
    /// A fault of the program.
    Internal = 70,
    /// A file cannot be read or written.
    Files = 74,
    /// Not now: try again later.
    Later = 75,
    /// Files or an address are not ours to use.
    NotPermitted = 77,
    /// The configuration is wrong; nothing was started.
    Configuration = 78,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        ExitCode::from(exit as u8)
    }
}

impl From<&ClientError> for Exit {
    fn from(error: &ClientError) -> Self {
        match error {
            ClientError::Unreachable { .. } => Exit::Unreachable,
            ClientError::Broken(_) => Exit::Later,
            ClientError::NotUnderstood(_) => Exit::Internal,
            ClientError::Failed(_) => Exit::Refused,
            ClientError::NotPermitted(_) => Exit::NotPermitted,
            ClientError::Write(_) => Exit::Files,
        }
    }
}

/// Writes an error with all its causes on one line. A closed stderr is no reason to end otherwise.
pub(crate) fn complain(err: &mut dyn Write, error: &dyn Error) {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        line.push_str(": ");
        line.push_str(&error.to_string());
        cause = error.source();
    }
    let _ = writeln!(err, "{line}");
}

/// Writes what the daemon's error is, and gives its exit code.
pub(crate) fn failed(err: &mut dyn Write, error: &ClientError) -> Exit {
    complain(err, error);
    error.into()
}
