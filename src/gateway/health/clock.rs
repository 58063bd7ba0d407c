//! Whether the wall clock can be believed.
//!
//! The kernel's own word needs `adjtimex`, which no crate offers without unsafe code of ours. systemd-timesyncd
//! touches a file at each answer of its server, in a directory that is empty after a boot: that is read. Where
//! something else keeps the clock it is called untrusted, which costs nothing: the clock is shown, never obeyed.

use std::path::Path;
use std::time::{Duration, SystemTime};

use pgw_core::transaction::Clock;

const SYNCHRONISED: &str = "/run/systemd/timesync/synchronized";

/// timesyncd asks at least every 2,048 s; three missed answers and the clock runs by itself.
const BELIEVED_FOR: Duration = Duration::from_secs(3 * 2048);

/// The clock now.
#[must_use]
pub fn trust() -> Clock {
    judge(Path::new(SYNCHRONISED), SystemTime::now())
}

fn judge(file: &Path, now: SystemTime) -> Clock {
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
        assert_eq!(judge(&file, now), Clock::Untrusted);
        std::fs::write(&file, "").unwrap();
        assert_eq!(judge(&file, now), Clock::Synced);
        assert_eq!(judge(&file, now + BELIEVED_FOR + Duration::from_secs(60)), Clock::Holdover);
    }
}
