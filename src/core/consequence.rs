//! How whoever meets an error should react.
//!
//! Every error that reaches an edge (a sender, a command's caller, systemd) has a `consequence()`; the edge acts on that,
//! never on the error's kind. `pgw_host::exit` turns it into an exit code, the doors into their protocol's answers.

use std::io;

use serde::{Deserialize, Serialize};

/// How to react to an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Consequence {
    /// The same may succeed later.
    Retry,
    /// It never will: tell the sender.
    Refuse,
    /// It never will, because of its content: tell the sender, and keep the content until a person has decided.
    Quarantine,
    /// The program cannot continue until a person has changed something.
    Stop(Cause),
}

/// What a person has to change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// The configuration, a key, or whose store this is.
    Configuration,
    /// The owner or the mode of a file.
    Rights,
    /// A file cannot be read or written.
    Files,
    /// What is needed is not there: a daemon, a store, a free address.
    Unreachable,
    /// Nothing: it is a bug in this program.
    Bug,
}

impl Consequence {
    /// The configuration has to be corrected.
    pub const CONFIGURATION: Self = Self::Stop(Cause::Configuration);
    /// A file cannot be read or written.
    pub const FILES: Self = Self::Stop(Cause::Files);
    /// What is needed is not there.
    pub const UNREACHABLE: Self = Self::Stop(Cause::Unreachable);
    /// A bug in this program.
    pub const BUG: Self = Self::Stop(Cause::Bug);

    /// Of an error on one of this program's own files. Missing rights are not a failing disk: they do not come back by
    /// themselves, so a supervisor must not try again for ever.
    #[must_use]
    pub fn of_file(error: &io::Error) -> Self {
        Self::Stop(if error.kind() == io::ErrorKind::PermissionDenied { Cause::Rights } else { Cause::Files })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_rights_are_not_a_failing_disk() {
        let of = |kind: io::ErrorKind| Consequence::of_file(&kind.into());
        assert_eq!(of(io::ErrorKind::PermissionDenied), Consequence::Stop(Cause::Rights));
        assert_eq!(of(io::ErrorKind::StorageFull), Consequence::FILES);
    }
}
