//! Progress of a long command: one line that is redrawn, on a terminal only.

use std::io::Write;
use std::time::{Duration, Instant};

/// The line is redrawn at most this often.
const INTERVAL: Duration = Duration::from_millis(200);
const WIDTH: u64 = 30;
/// Moves to the beginning of the line and clears it.
const CLEAR: &str = "\r\x1b[K";

/// A progress line on a terminal; prints nothing anywhere else.
#[derive(Debug)]
pub struct Progress {
    total: u64,
    on: bool,
    drawn: bool,
    last: Option<Instant>,
}

impl Progress {
    /// For `total` steps. A single step needs no progress line.
    #[must_use]
    pub fn new(total: usize, is_terminal: bool) -> Self {
        Self { total: total as u64, on: is_terminal && total > 1, drawn: false, last: None }
    }

    /// This many steps are done.
    pub fn at(&mut self, done: usize, now: Instant, err: &mut dyn Write) {
        if !self.on || self.last.is_some_and(|last| now.duration_since(last) < INTERVAL) {
            return;
        }
        self.last = Some(now);
        self.drawn = true;
        let done = done as u64;
        let filled = usize::try_from(WIDTH * done.min(self.total) / self.total.max(1)).unwrap_or(0);
        let rest = usize::try_from(WIDTH).unwrap_or(0) - filled;
        // A terminal that has gone is no reason to stop.
        let _ = write!(err, "{CLEAR}[{}{}] {done} of {}", "#".repeat(filled), ".".repeat(rest), self.total);
        let _ = err.flush();
    }

    /// Clears the progress line so that another line can be printed.
    pub fn clear(&mut self, err: &mut dyn Write) {
        if std::mem::take(&mut self.drawn) {
            let _ = write!(err, "{CLEAR}");
            let _ = err.flush();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_drawn_seldom_and_cleared() {
        let (start, mut out) = (Instant::now(), Vec::new());
        let mut progress = Progress::new(4, true);
        progress.at(1, start, &mut out);
        progress.at(2, start + Duration::from_millis(199), &mut out);
        progress.at(3, start + Duration::from_millis(201), &mut out);
        progress.clear(&mut out);
        progress.clear(&mut out);
        let bar = |filled: usize| format!("{}{}", "#".repeat(filled), ".".repeat(30 - filled));
        let expected = format!("{CLEAR}[{}] 1 of 4{CLEAR}[{}] 3 of 4{CLEAR}", bar(7), bar(22));
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }

    #[test]
    fn only_a_terminal_and_only_many_see_it() {
        let mut out = Vec::new();
        for mut progress in [Progress::new(4, false), Progress::new(1, true), Progress::new(0, true)] {
            progress.at(1, Instant::now(), &mut out);
            progress.clear(&mut out);
        }
        assert!(out.is_empty());
    }
}
