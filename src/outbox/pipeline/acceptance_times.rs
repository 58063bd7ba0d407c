//! When the records of a lane were accepted, by running time: for the attribute `delayed` (design section 12.4).
//!
//! Only since this start, and in memory only: how long the box was off before it nobody knows, and its wall clock may be wrong by
//! years. A few marks are enough, however much is waiting: the older they are, the further they may lie apart.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use pgw_core::transaction::Position;

/// Records within this time share a mark.
const STEP: Duration = Duration::from_secs(1);
/// Marks become one where they lie within this part of their age.
const PART_OF_AGE: u32 = 32;
/// Most marks of a lane, 40 KiB. The rule above leaves fewer for 35 days of steady traffic.
const MOST: usize = 1024;

/// The acceptance times of one lane.
#[derive(Debug)]
pub(crate) struct AcceptanceTimes {
    /// In the order of positions, and so of times.
    marks: Vec<Mark>,
    /// Beyond it the oldest are forgotten.
    most: usize,
    /// Accepted before this start, and stored once more: few, each on a person's order.
    unknown: BTreeSet<Position>,
}

impl Default for AcceptanceTimes {
    fn default() -> Self {
        Self { marks: Vec::new(), most: MOST, unknown: BTreeSet::new() }
    }
}

/// Positions from here up to the next mark were accepted between these times.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Mark {
    from: Position,
    first: Instant,
    last: Instant,
}

impl AcceptanceTimes {
    /// Notes that positions from here on were accepted now, and not before.
    pub(crate) fn accepted(&mut self, from: Position, now: Instant) {
        if let Some(newest) = self.marks.last_mut()
            && now.saturating_duration_since(newest.first) < STEP
        {
            newest.last = now;
            return;
        }
        if self.marks.len() >= self.most {
            self.thin_out(now);
        }
        self.marks.push(Mark { from, first: now, last: now });
    }

    /// This record was accepted long before it was stored here.
    pub(crate) fn is_not_known_of(&mut self, position: Position) {
        self.unknown.insert(position);
    }

    /// The time at which a record of this run had been accepted at the latest; it was at most a second, or a 32nd of its age,
    /// earlier. `None`: unknown.
    pub(crate) fn at_the_latest(&self, position: Position) -> Option<Instant> {
        if self.unknown.contains(&position) {
            return None;
        }
        let next = self.marks.partition_point(|mark| mark.from <= position);
        self.marks.get(next.checked_sub(1)?).map(|mark| mark.last)
    }

    fn thin_out(&mut self, now: Instant) {
        let mut kept: Vec<Mark> = Vec::with_capacity(self.most);
        for mark in self.marks.drain(..) {
            let most = now.saturating_duration_since(mark.last) / PART_OF_AGE;
            match kept.last_mut() {
                Some(before) if mark.last.saturating_duration_since(before.first) <= most => {
                    before.last = mark.last;
                }
                _ => kept.push(mark),
            }
        }
        // Room for a while, or each record would come here again.
        let room = self.most - self.most / 8;
        kept.drain(..kept.len().saturating_sub(room));
        self.marks = kept;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_record_of_this_run_has_a_time_and_one_from_before_has_none() {
        let (mut times, began) = (AcceptanceTimes::default(), Instant::now());
        assert_eq!(times.at_the_latest(1), None);
        times.accepted(10, began);
        times.accepted(12, began + SECOND / 2);
        times.accepted(13, began + 90 * SECOND);
        assert_eq!(times.at_the_latest(9), None, "accepted before this start");
        for position in 10..13 {
            assert_eq!(times.at_the_latest(position), Some(began + SECOND / 2), "{position}");
        }
        assert_eq!(times.at_the_latest(13), Some(began + 90 * SECOND));
        times.is_not_known_of(12);
        assert_eq!(times.at_the_latest(12), None, "accepted long ago, and stored once more");
    }

    /// A year of one record every 2 s, and of one every hour after that.
    #[test]
    fn few_marks_are_right_for_ever_and_never_early() {
        let (mut times, began) = (AcceptanceTimes::default(), Instant::now());
        let (busy, hours) = (100_000_u64, 5_000_u64);
        let at = |position: Position| {
            let quiet = position.saturating_sub(busy);
            began + SECOND * u32::try_from(2 * position.min(busy) + 3600 * quiet).unwrap()
        };
        for position in 1..=busy + hours {
            times.accepted(position, at(position));
            assert!(times.marks.len() <= MOST, "{position}");
        }
        let now = at(busy + hours) + SECOND;
        let mut known = 0;
        for position in 1..=busy + hours {
            let Some(latest) = times.at_the_latest(position) else {
                assert_eq!(known, 0, "only the oldest are forgotten");
                continue;
            };
            known += 1;
            let (age, off) = (now - at(position), latest.checked_duration_since(at(position)));
            let off = off.unwrap_or_else(|| panic!("{position} was not accepted yet"));
            assert!(off <= SECOND + age / PART_OF_AGE, "{position}: {off:?} of {age:?}");
        }
        assert_eq!(known, busy + hours, "a year is not too long");
    }

    #[test]
    fn beyond_the_most_the_oldest_are_forgotten() {
        let began = Instant::now();
        let mut times = AcceptanceTimes { most: 16, ..AcceptanceTimes::default() };
        // Each so far from the one before that no two become one.
        let mut now = began;
        for position in 1..=100 {
            now += (now - began) / 8 + SECOND;
            times.accepted(position, now);
            assert!(times.marks.len() <= 16 && times.at_the_latest(position) == Some(now), "{position}");
        }
        assert_eq!(times.at_the_latest(1), None);
    }
}
