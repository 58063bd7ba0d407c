//! A lane is a sequence of segments: segment k counts for the positions from its base up to the next one's base.
//!
//! [`LaneState`] is the shared state of a lane, under one lock, so that its numbers always add up; it changes only when
//! a record is behind the barrier. [`Handles`] shares the open databases between writer and readers, as
//! sled locks its files.

use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use pgw_core::chain::ChainValue;
use pgw_core::delivery::{Numbering, Renumbering};
use pgw_core::transaction::{Epoch, Lane, LaneName, Position, UnixMillis};
use tokio::sync::watch;

use crate::guard::segment::{Segment, Span};
use crate::lock::locked;
use crate::pipeline::handles::Handles;
use crate::state::segment_table::MissingRecords;
use crate::types::{LaneCounts, Watermark};
use crate::void::Voids;

/// The shared state of a lane.
#[derive(Debug, Clone)]
pub(crate) struct LaneState {
    /// Its epochs.
    pub(crate) numbering: Numbering,
    /// Its segments by number; the writer writes the last one.
    pub(crate) segments: BTreeMap<u64, Span>,
    /// The last position behind the barrier.
    pub(crate) tail: Position,
    /// The chain value there, as the next record will have it as `previous`.
    pub(crate) chain: ChainValue,
    /// Confirmed through.
    pub(crate) watermark: Watermark,
    /// The epoch in which the watermark's chain value holds; none where nothing was ever confirmed.
    pub(crate) watermark_epoch: Option<Epoch>,
    /// The hub has a backup through this position.
    pub(crate) backed_up_through: Option<Position>,
    /// Its missing records.
    pub(crate) missing: MissingRecords,
    /// The missing records that were written off.
    pub(crate) voids: Voids,
    /// The oldest waiting record, and when it was accepted, as last looked up.
    pub(crate) oldest: Option<(Position, UnixMillis)>,
    /// Segments or missing records have changed since the segment table was written.
    pub(crate) table_stale: bool,
    /// The watermark has changed since it was handed to the watermarks file.
    pub(crate) watermark_stale: bool,
    /// What the hub last answered on the connection that is up now.
    pub(crate) answer: Option<Answer>,
    /// Something would be pruned if the hub said once more that it has it.
    pub(crate) wants_answer: bool,
}

/// For so long after its question an answer allows pruning: whoever repeats an old one must not delete anything with it.
const ANSWER_COUNTS: Duration = Duration::from_secs(60);

/// A hub's answer, as far as it allows pruning.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Answer {
    /// The hub has everything through here.
    pub(crate) through: Position,
    /// And a backup of it through here.
    pub(crate) backed_up_through: Option<Position>,
    /// When it was asked.
    pub(crate) asked: Instant,
}

impl Answer {
    /// Whether it allows to prune through `last`; `early`: before the retention has ended.
    pub(crate) fn allows(&self, last: Position, early: bool) -> bool {
        let covers = |through: Position| through >= last;
        covers(self.through)
            && (!early || self.backed_up_through.is_some_and(covers))
            && self.asked.elapsed() < ANSWER_COUNTS
    }
}

impl LaneState {
    /// Moves the watermark, as the hubs have confirmed.
    pub(crate) fn confirm(&mut self, watermark: Watermark) {
        self.watermark = watermark;
        self.watermark_epoch = Some(self.numbering.at(watermark.position.max(1)).epoch);
    }

    /// The watermark, if its chain value is of the epoch `numbered`: later values are computed from there. The hub has it, so
    /// it is right whatever was destroyed or pruned below it.
    pub(crate) fn watermark_in(&self, numbered: Renumbering) -> Option<Watermark> {
        let ours = self.watermark_epoch == Some(numbered.epoch) && self.watermark.position > numbered.base;
        ours.then_some(self.watermark)
    }

    /// The first position that is kept.
    pub(crate) fn first_retained(&self) -> Position {
        self.segments.values().next().map_or(self.tail + 1, |span| span.base)
    }

    /// The segment that holds `position`, and the last position that counts in it.
    pub(crate) fn segment_of(&self, position: Position) -> Option<(u64, Position)> {
        let mut through = self.tail;
        for (number, span) in self.segments.iter().rev() {
            if span.base <= position {
                return (position <= through).then_some((*number, through));
            }
            through = span.base - 1;
        }
        None
    }

    /// The last position of a segment.
    pub(crate) fn last_of(&self, number: u64) -> Position {
        self.segments.range(number + 1..).next().map_or(self.tail, |(_, next)| next.base - 1)
    }

    /// The lane in numbers. Cheap, and they add up: each position is in exactly one of the three.
    pub(crate) fn counts(&self) -> LaneCounts {
        let confirmed = self.watermark.position.min(self.tail);
        let kept_from = self.first_retained().max(confirmed + 1);
        let pruned = (kept_from - 1).saturating_sub(confirmed);
        let damaged = pruned + self.missing.count(kept_from - 1, self.tail);
        let waiting = self.tail - confirmed - damaged;
        // A confirmed void is not a transaction at the hub.
        let void = self.voids_confirmed();
        let oldest_time = (waiting > 0)
            .then(|| self.oldest.filter(|(at, _)| *at > confirmed).map(|(_, time)| time))
            .flatten();
        LaneCounts {
            accepted: self.tail,
            confirmed: confirmed - void,
            waiting,
            damaged: damaged + void,
            waiting_bytes: if waiting == 0 { 0 } else { self.bytes_after(confirmed) },
            oldest_time,
        }
    }

    /// Released positions that the watermark has passed: confirmed to be lost.
    fn voids_confirmed(&self) -> u64 {
        self.voids.count(self.watermark.position.min(self.tail))
    }

    /// Payload bytes after `position`; within one segment by its average.
    fn bytes_after(&self, position: Position) -> u64 {
        let mut through = self.tail;
        let mut bytes = 0u64;
        for span in self.segments.values().rev() {
            let records = (through + 1).saturating_sub(span.base);
            let beyond = through.saturating_sub(position).min(records);
            if beyond == 0 {
                break;
            }
            let part = u128::from(span.bytes) * u128::from(beyond) / u128::from(records.max(1));
            bytes = bytes.saturating_add(u64::try_from(part).unwrap_or(u64::MAX));
            through = span.base - 1;
        }
        bytes
    }
}

/// A chain value that was computed on reading, kept so that a reader in order needs one step a record.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ComputedChain {
    pub(crate) numbered: pgw_core::delivery::Renumbering,
    pub(crate) position: Position,
    pub(crate) chain: ChainValue,
}

/// One lane as writer, readers and maintenance thread share it.
#[derive(Debug)]
pub(crate) struct SharedLane {
    /// Its name.
    pub(crate) name: Lane,
    /// The same with practice and gateway.
    pub(crate) full_name: LaneName,
    /// Its number in this store.
    pub(crate) id: u16,
    /// Whether it may use the reserve.
    pub(crate) urgent: bool,
    /// `segments/{lane}`.
    pub(crate) directory: PathBuf,
    /// The last position behind the barrier, for delivery.
    pub(crate) tail: watch::Sender<Position>,
    /// Its counts and watermark.
    pub(crate) state: Mutex<LaneState>,
    /// Open databases.
    pub(crate) handles: Handles,
    /// A segment that was made ahead.
    pub(crate) ahead: Mutex<Option<(u64, Segment)>>,
    /// Allows one void at a time.
    pub(crate) voiding: Mutex<()>,
    /// Segments that were carved in this run.
    pub(crate) rebuilt: Mutex<HashSet<u64>>,
    /// The last chain value that was computed for a renumbered record.
    pub(crate) computed: Mutex<Option<ComputedChain>>,
}

impl SharedLane {
    /// The state, locked.
    pub(crate) fn state(&self) -> MutexGuard<'_, LaneState> {
        locked(&self.state)
    }

    /// The directory of segment `number`.
    pub(crate) fn segment_directory(&self, number: u64) -> PathBuf {
        self.directory.join(format!("{number:010}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pgw_core::transaction::Epoch;

    fn span(base: Position, bytes: u64) -> Span {
        Span { base, previous: ChainValue([0; 32]), bytes, oldest: Some(base) }
    }

    fn state(watermark: Position) -> LaneState {
        LaneState {
            numbering: Numbering::new(Epoch(uuid::Uuid::nil())),
            segments: BTreeMap::from([(2, span(11, 100)), (3, span(21, 100)), (5, span(31, 50))]),
            tail: 35,
            chain: ChainValue([0; 32]),
            watermark: Watermark { position: watermark, chain: ChainValue([0; 32]) },
            watermark_epoch: None,
            backed_up_through: None,
            missing: MissingRecords::default(),
            voids: Voids::default(),
            oldest: None,
            table_stale: false,
            watermark_stale: false,
            answer: None,
            wants_answer: false,
        }
    }

    #[test]
    fn every_position_is_in_exactly_one_state() {
        for watermark in 0..40 {
            let mut state = state(watermark);
            for (from, through) in [(15, 16), (20, 22), (34, 35)] {
                state.missing.add(from, through);
                let counts = state.counts();
                assert_eq!(
                    counts.accepted,
                    counts.confirmed + counts.waiting + counts.damaged,
                    "watermark {watermark}"
                );
                let missing = |p: Position| p < 11 || state.missing.at(p).is_some();
                let damaged = (watermark + 1..=35).filter(|p| missing(*p)).count() as u64;
                assert_eq!(counts.damaged, damaged, "watermark {watermark}");
            }
        }
    }

    #[test]
    fn a_position_belongs_to_the_segment_before_the_next_base() {
        let state = state(0);
        assert_eq!(state.segment_of(10), None);
        assert_eq!(state.segment_of(11), Some((2, 20)));
        assert_eq!(state.segment_of(20), Some((2, 20)));
        assert_eq!(state.segment_of(30), Some((3, 30)));
        assert_eq!(state.segment_of(35), Some((5, 35)));
        assert_eq!(state.segment_of(36), None);
        assert_eq!((state.last_of(3), state.last_of(5)), (30, 35));
    }

    #[test]
    fn waiting_bytes_shrink_to_nothing() {
        assert_eq!(state(10).counts().waiting_bytes, 250);
        assert_eq!(state(15).counts().waiting_bytes, 200);
        assert_eq!(state(30).counts().waiting_bytes, 50);
        assert_eq!(state(35).counts().waiting_bytes, 0);
    }
}
