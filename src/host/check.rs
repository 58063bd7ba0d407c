//! What the `check` commands print: one line for each check, with what to do if it fails.

use std::error::Error;
use std::io::{self, Write};
use std::path::Path;

use pgw_core::text::chain;

use crate::control::{self, ListenError};
use crate::exit::Exit;

/// The lines so far, and the exit code.
pub struct Checks<'a> {
    /// Where the lines go.
    pub out: &'a mut dyn Write,
    /// [`Exit::Configuration`] once any check has failed.
    pub exit: Exit,
}

impl<'a> Checks<'a> {
    /// No check has failed yet.
    pub fn new(out: &'a mut dyn Write) -> Self {
        Self { out, exit: Exit::Done }
    }

    /// The check passed.
    pub fn ok(&mut self, what: &str, detail: &str) {
        let _ = writeln!(self.out, "OK    {what:<14} {detail}");
    }

    /// Allowed, but an administrator should know.
    pub fn note(&mut self, what: &str, detail: &str) {
        let _ = writeln!(self.out, "NOTE  {what:<14} {detail}");
    }

    /// The check failed; the text says what to do.
    pub fn fail(&mut self, what: &str, problem: &str, action: &str) {
        let _ = writeln!(self.out, "FAIL  {what:<14} {problem}\n      {:<14} -> {action}", "");
        self.exit = Exit::Configuration;
    }

    /// The check failed with an error; `action` is what to do unless this user lacks the rights to check.
    pub fn error(&mut self, what: &str, error: &(dyn Error + 'static), action: &str) {
        let action = if is_denied(error) { "run this as root or as the daemon's user" } else { action };
        self.fail(what, &chain(error), action);
    }
}

impl Checks<'_> {
    /// The path of a control socket. Its directory may be missing: systemd creates it at the start.
    pub fn control_socket(&mut self, socket: &Path) {
        match control::check(socket) {
            Ok(()) => {}
            Err(error @ ListenError::NoDirectory(_)) => {
                self.note("control socket", &format!("{error} yet: systemd creates it at the start"));
            }
            Err(error) => self.error("control socket", &error, "change [control] socket"),
        }
    }
}

/// Whether missing rights are the cause.
fn is_denied(error: &(dyn Error + 'static)) -> bool {
    std::iter::successors(Some(error), |&error| error.source()).any(|error| {
        error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::PermissionDenied)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::KeyError;

    #[test]
    fn who_may_not_read_a_file_is_not_told_to_make_it() {
        let printed = |kind: io::ErrorKind| {
            let error = KeyError::Unreadable { file: "outbox.key".into(), source: kind.into() };
            let mut out = Vec::new();
            Checks::new(&mut out).error("outbox key", &error, "make one");
            String::from_utf8(out).unwrap()
        };
        let (denied, gone) = (printed(io::ErrorKind::PermissionDenied), printed(io::ErrorKind::NotFound));
        assert!(denied.contains("-> run this as root or as the daemon's user"), "{denied}");
        assert!(gone.contains("-> make one"), "{gone}");
    }
}
