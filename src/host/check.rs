//! What the `check` commands print: one line for each thing that must be right, and what to do where it is not.

use std::io::Write;

use crate::exit::Exit;

/// Lines so far, and how the command will end.
pub struct Checks<'a> {
    /// Where lines go.
    pub out: &'a mut dyn Write,
    /// [`Exit::Configuration`] as soon as anything has failed.
    pub exit: Exit,
}

impl<'a> Checks<'a> {
    /// Nothing has failed yet.
    pub fn new(out: &'a mut dyn Write) -> Self {
        Self { out, exit: Exit::Done }
    }

    /// It is right.
    pub fn ok(&mut self, what: &str, detail: &str) {
        let _ = writeln!(self.out, "OK    {what:<14} {detail}");
    }

    /// It is allowed, and somebody should know.
    pub fn note(&mut self, what: &str, detail: &str) {
        let _ = writeln!(self.out, "NOTE  {what:<14} {detail}");
    }

    /// It is wrong, and this is what to do.
    pub fn fail(&mut self, what: &str, problem: &str, action: &str) {
        let _ = writeln!(self.out, "FAIL  {what:<14} {problem}\n      {:<14} -> {action}", "");
        self.exit = Exit::Configuration;
    }
}
