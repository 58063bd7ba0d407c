//! Whether the wall clock can be trusted.
//!
//! The kernel's own answer needs `adjtimex`, which no crate offers without unsafe code of ours. systemd-timesyncd
//! touches a file at each answer of its server, in a directory that is empty after a boot: we read that. If another
//! program sets the clock it counts as untrusted, which costs nothing: the clock is shown, but no decision depends on
//! it.

use std::path::Path;
use std::time::{Duration, SystemTime};

use pgw_core::transaction::Clock;

const SYNCHRONISED: &str = "/run/systemd/timesync/synchronized";

/// timesyncd asks at least every 2,048 s; after three missed answers the clock runs unchecked.
const BELIEVED_FOR: Duration = Duration::from_secs(3 * 2048);

/// The state of the clock now.
#[must_use]
pub fn trust() -> Clock {
    assess(Path::new(SYNCHRONISED), SystemTime::now())
}

fn assess(file: &Path, now: SystemTime) -> Clock {
    let Ok(answered) = std::fs::metadata(file).and_then(|facts| facts.modified()) else {
        return Clock::Untrusted;
    };
    match now.duration_since(answered) {
        Ok(age) if age > BELIEVED_FOR => Clock::Holdover,
        _ => Clock::Synced,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_is_believed_while_its_server_answers() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("synchronized");
        let now = SystemTime::now();
        assert_eq!(assess(&file, now), Clock::Untrusted);
        std::fs::write(&file, "").unwrap();
        assert_eq!(assess(&file, now), Clock::Synced);
        assert_eq!(assess(&file, now + BELIEVED_FOR + Duration::from_secs(60)), Clock::Holdover);
    }
}
