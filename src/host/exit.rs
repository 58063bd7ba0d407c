//! Exit codes, after `sysexits.h`. Scripts act on them.

use std::error::Error;
use std::io::Write;
use std::process::ExitCode;

use pgw_core::consequence::{Cause, Consequence};

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

/// The one mapping from errors to exit codes: a command or a daemon ends with the code of its error's consequence.
impl From<Consequence> for Exit {
    fn from(consequence: Consequence) -> Self {
        match consequence {
            Consequence::Retry => Self::Later,
            Consequence::Refuse | Consequence::Quarantine => Self::Refused,
            Consequence::Stop(Cause::Configuration) => Self::Configuration,
            Consequence::Stop(Cause::Rights) => Self::NotPermitted,
            Consequence::Stop(Cause::Files) => Self::Files,
            Consequence::Stop(Cause::Unreachable) => Self::Unreachable,
            Consequence::Stop(Cause::Bug) => Self::Internal,
        }
    }
}

/// Writes why a command failed, and returns its exit code.
pub fn fail(err: &mut dyn Write, error: &dyn Error, consequence: Consequence) -> Exit {
    complain(err, error);
    consequence.into()
}

/// Writes an error with all its causes on one line. A closed stderr does not change the exit code.
pub fn complain(err: &mut dyn Write, error: &dyn Error) {
    let _ = writeln!(err, "{}", pgw_core::text::chain(error));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_consequence_has_its_exit_code() {
        for (consequence, code) in [
            (Consequence::Retry, 75),
            (Consequence::Refuse, 65),
            (Consequence::Quarantine, 65),
            (Consequence::CONFIGURATION, 78),
            (Consequence::Stop(Cause::Rights), 77),
            (Consequence::FILES, 74),
            (Consequence::UNREACHABLE, 69),
            (Consequence::BUG, 70),
        ] {
            assert_eq!(Exit::from(consequence) as u8, code, "{consequence:?}");
        }
    }
}
