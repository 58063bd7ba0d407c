//! Which files are still being written to: those that were not the same for long enough. Sans-IO.
//!
//! By a monotonic clock of ours and never by comparing a file's time with it: a file server has a clock of its own.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::time::{Duration, Instant};

use super::rules::Modified;

/// What a look at a file shows without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Facts {
    pub(super) bytes: u64,
    pub(super) modified: Modified,
}

/// A file that may be taken. No `Debug`: its name is a patient's, often.
pub(super) struct Candidate {
    pub(super) name: OsString,
    pub(super) facts: Facts,
}

/// Since when each file has been as it is. No larger than the last look.
#[derive(Default)]
pub(super) struct Settling {
    since: HashMap<OsString, (Facts, Instant)>,
}

impl Settling {
    /// What a look has shown.
    pub(super) fn handle<'a>(&mut self, seen: impl Iterator<Item = &'a Candidate>, now: Instant) {
        let mut before = std::mem::take(&mut self.since);
        for Candidate { name, facts } in seen {
            let (name, since) = match before.remove_entry(name) {
                Some((name, (known, since))) if known == *facts => (name, since),
                Some((name, _)) => (name, now),
                None => (name.clone(), now),
            };
            self.since.insert(name, (*facts, since));
        }
    }

    /// It is not as the last look showed it: its time begins again.
    pub(super) fn changed(&mut self, name: &OsStr) {
        self.since.remove(name);
    }

    /// For how long a file has been as it is.
    pub(super) fn age(&self, name: &OsStr, now: Instant) -> Duration {
        self.since.get(name).map_or(Duration::ZERO, |(_, since)| now.saturating_duration_since(*since))
    }

    /// Until the first of those that are not old enough is; `None`: all are.
    pub(super) fn next(&self, now: Instant, enough: Duration) -> Option<Duration> {
        let ages = self.since.values().map(|(_, since)| now.saturating_duration_since(*since));
        ages.filter(|age| *age < enough).map(|age| enough - age).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(name: &str, bytes: u64, modified: i64) -> Candidate {
        Candidate { name: name.into(), facts: Facts { bytes, modified: (modified, 0) } }
    }

    #[test]
    fn a_file_ages_only_while_it_stays_as_it_is() {
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        let mut settling = Settling::default();
        let age = |settling: &Settling, at| settling.age(OsStr::new("a"), start + at);
        settling.handle([file("a", 1, 1)].iter(), start);
        assert_eq!(age(&settling, second), second);
        settling.handle([file("a", 1, 1), file("b", 1, 1)].iter(), start + second);
        assert_eq!(age(&settling, 2 * second), 2 * second);
        assert_eq!(settling.next(start + second, 2 * second), Some(second));
        assert_eq!(settling.next(start + second, second), Some(second), "b is new");
        for (at, bytes, modified) in [(3, 2, 1), (4, 2, 2)] {
            settling.handle([file("a", bytes, modified)].iter(), start + at * second);
            assert_eq!(age(&settling, at * second), Duration::ZERO, "{bytes} {modified}");
        }
        assert_eq!(settling.since.len(), 1, "b is forgotten");
        settling.changed(OsStr::new("a"));
        assert_eq!(age(&settling, 9 * second), Duration::ZERO);
        assert_eq!(settling.next(start, second), None);
    }
}
