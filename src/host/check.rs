//! What the `check` commands print: one line for each check, with what to do if it fails.

use std::io::Write;

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
}
