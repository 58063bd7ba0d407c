//! A progress bar: redrawn on a terminal, silent elsewhere, and one final line in both cases.

use std::io::{IsTerminal as _, Write as _};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

const INTERVAL: Duration = Duration::from_millis(100);
const WIDTH: u64 = 32;
/// Moves to the beginning of the line and clears it.
const CLEAR: &str = "\r\x1b[K";

/// The progress of some work. Several tasks may advance it.
pub(crate) struct Bar {
    what: &'static str,
    length: u64,
    start: Instant,
    position: AtomicU64,
    /// When it was last drawn; `None`: not on a terminal.
    drawn: Mutex<Option<Instant>>,
}

impl Bar {
    pub(crate) fn new(length: u64, what: &'static str) -> Self {
        let start = Instant::now();
        let drawn = Mutex::new(std::io::stderr().is_terminal().then_some(start));
        Self { what, length, start, position: AtomicU64::new(0), drawn }
    }

    /// One more is done.
    pub(crate) fn step(&self) {
        self.position.fetch_add(1, Ordering::Relaxed);
        self.draw();
    }

    /// This many are done.
    pub(crate) fn at(&self, position: u64) {
        self.position.store(position, Ordering::Relaxed);
        self.draw();
    }

    /// Removes the bar and prints the result.
    pub(crate) fn finish(&self) {
        if self.drawn.lock().unwrap_or_else(PoisonError::into_inner).take().is_some() {
            eprint!("{CLEAR}");
        }
        let (position, seconds) = self.so_far();
        println!("   {} {position} in {seconds:.2} s, {:.0}/s", self.what, position as f64 / seconds);
    }

    fn so_far(&self) -> (u64, f64) {
        (self.position.load(Ordering::Relaxed), self.start.elapsed().as_secs_f64().max(1e-9))
    }

    fn draw(&self) {
        let mut drawn = self.drawn.lock().unwrap_or_else(PoisonError::into_inner);
        if drawn.is_none_or(|last| last.elapsed() < INTERVAL) {
            return;
        }
        *drawn = Some(Instant::now());
        let (position, seconds) = self.so_far();
        let done = (WIDTH * position.min(self.length) / self.length.max(1)) as usize;
        let bar = format!("{}{}", "#".repeat(done), ".".repeat(WIDTH as usize - done));
        let (what, length, rate) = (self.what, self.length, position as f64 / seconds);
        let left = length.saturating_sub(position) as f64 / rate.max(1.0);
        eprint!("{CLEAR}   {what} {bar} {position:>7}/{length} {rate:>8.0}/s, {left:.0} s left");
        let _ = std::io::stderr().flush(); // a terminal that has gone is no reason to stop
    }
}
