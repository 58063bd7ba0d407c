//! Finds the files that may still be being written: those that were not unchanged for long enough. Sans-IO.
//!
//! It uses our monotonic clock and never compares a file's time with it, because a file server has its own clock.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::time::{Duration, Instant};

use super::rules::Modified;

/// What a scan shows of a file without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FileFacts {
    pub(super) bytes: u64,
    pub(super) modified: Modified,
}

/// A file that may be taken. No `Debug`: its name often contains a patient's name.
pub(super) struct Candidate {
    pub(super) name: OsString,
    pub(super) facts: FileFacts,
}

/// Since when each file is unchanged. No larger than the last scan.
///
/// A file must have been seen in two scans, however short the required time is: a file that is renamed in while a
/// folder is being listed may be missed while a later file is seen, and would be overtaken.
#[derive(Default)]
pub(super) struct Debounce {
    since: HashMap<OsString, SeenFile>,
}

struct SeenFile {
    facts: FileFacts,
    since: Instant,
    times_seen: u32,
}

impl Debounce {
    /// Takes the result of a scan.
    pub(super) fn handle<'a>(&mut self, shown: impl Iterator<Item = &'a Candidate>, now: Instant) {
        let mut before = std::mem::take(&mut self.since);
        for Candidate { name, facts } in shown {
            let new = SeenFile { facts: *facts, since: now, times_seen: 1 };
            let (name, seen) = match before.remove_entry(name) {
                Some((name, seen)) if seen.facts == *facts => {
                    (name, SeenFile { times_seen: seen.times_seen.saturating_add(1), ..seen })
                }
                Some((name, _)) => (name, new),
                None => (name.clone(), new),
            };
            self.since.insert(name, seen);
        }
    }

    /// The file has changed since the last scan: its time starts again.
    pub(super) fn changed(&mut self, name: &OsStr) {
        self.since.remove(name);
    }

    /// For how long a file has been unchanged.
    pub(super) fn age(&self, name: &OsStr, now: Instant) -> Duration {
        self.since.get(name).map_or(Duration::ZERO, |seen| now.saturating_duration_since(seen.since))
    }

    /// Whether it has been unchanged for long enough.
    pub(super) fn is_settled(&self, name: &OsStr, now: Instant, enough: Duration) -> bool {
        self.since.get(name).is_some_and(|seen| seen.remaining(now, enough).is_none())
    }

    /// The time until the first of the other files is unchanged for long enough; `None`: all are.
    pub(super) fn next(&self, now: Instant, enough: Duration) -> Option<Duration> {
        self.since.values().filter_map(|seen| seen.remaining(now, enough)).min()
    }
}

impl SeenFile {
    fn remaining(&self, now: Instant, enough: Duration) -> Option<Duration> {
        let rest = enough.saturating_sub(now.saturating_duration_since(self.since));
        (self.times_seen < 2 || !rest.is_zero()).then_some(rest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(name: &str, bytes: u64, modified: i64) -> Candidate {
        Candidate { name: name.into(), facts: FileFacts { bytes, modified: (modified, 0) } }
    }

    #[test]
    fn a_file_settles_only_while_it_stays_as_it_is() {
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        let mut debounce = Debounce::default();
        let settled =
            |debounce: &Debounce, at, enough| debounce.is_settled(OsStr::new("a"), start + at, enough);
        debounce.handle([file("a", 1, 1)].iter(), start);
        assert!(!settled(&debounce, 9 * second, second), "it was seen once");
        assert!(!settled(&debounce, Duration::ZERO, Duration::ZERO));
        assert_eq!(debounce.next(start, Duration::ZERO), Some(Duration::ZERO));
        debounce.handle([file("a", 1, 1), file("b", 1, 1)].iter(), start + second);
        assert!(settled(&debounce, second, second) && !settled(&debounce, second, 2 * second));
        assert_eq!(debounce.next(start + second, 3 * second), Some(2 * second));
        assert_eq!(debounce.age(OsStr::new("a"), start + 2 * second), 2 * second);
        for (at, bytes, modified) in [(3, 2, 1), (4, 2, 2)] {
            debounce.handle([file("a", bytes, modified)].iter(), start + at * second);
            assert!(!settled(&debounce, at * second, Duration::ZERO), "{bytes} {modified}");
        }
        assert_eq!(debounce.since.len(), 1, "b is forgotten");
        debounce.changed(OsStr::new("a"));
        assert!(!settled(&debounce, 9 * second, Duration::ZERO));
        assert_eq!(debounce.next(start, second), None);
    }
}
