//! Logs go to stderr, which systemd passes to the journal. The log of a panic says where it happened, never what data
//! was being processed.

use std::io::IsTerminal as _;

use tracing_subscriber::fmt;

use crate::log_config::{Log, LogFormat};

/// Starts logging. Called once, before anything is logged; a second call changes nothing.
pub fn start(log: &Log) {
    let builder = fmt()
        .with_max_level(log.level)
        .with_target(false)
        .with_writer(std::io::stderr)
        // A line that cannot be written (the journal is gone, its disk is full) must not stop a box that can still
        // store: the error would be reported to the same place, by a macro that panics.
        .log_internal_errors(false)
        .with_ansi(std::io::stderr().is_terminal());
    // Under systemd the journal records the time.
    let journal = std::env::var_os("JOURNAL_STREAM").is_some();
    let _ = match (log.format, journal) {
        (LogFormat::Json, _) => builder.json().try_init().is_ok(),
        (LogFormat::Text, true) => builder.without_time().try_init().is_ok(),
        (LogFormat::Text, false) => builder.try_init().is_ok(),
    };
    // The only line at this level: it shows that nothing more detailed is missing from the log.
    tracing::trace!(level = %log.level, "Logging has started");
    // A panic's message may quote patient data ("byte index 4 is not a char boundary of ..."), so it is left out.
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        let thread = std::thread::current();
        tracing::warn!(place, thread = thread.name().unwrap_or_default(), "A thread panicked");
    }));
}
