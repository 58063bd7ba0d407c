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
use pgw_core::numbering::{EntryKind, Gone, Numbering};
use pgw_core::transaction::{Lane, LaneName, Position, UnixMillis};
use tokio::sync::watch;
use uuid::Uuid;

use crate::guard::segment::{Segment, Span};
use crate::lock::locked;
use crate::pipeline::acceptance_times::AcceptanceTimes;
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
    /// Value of the chain over positions there, as the next record will have it as `previous`.
    pub(crate) chain: ChainValue,
    /// Confirmed through.
    pub(crate) watermark: Watermark,
    /// The hub has a backup through this position.
    pub(crate) backed_up_through: Option<Position>,
    /// Its missing records.
    pub(crate) missing: MissingRecords,
    /// The missing records that were written off.
    pub(crate) voids: Voids,
    /// Positions that the hub has confirmed and has lost for good, as its last answer says.
    pub(crate) lost_at_hub: Vec<(Position, Position)>,
    /// The oldest waiting record, and when it was accepted, as last looked up.
    pub(crate) oldest: Option<(Position, UnixMillis)>,
    /// Segments or missing records have changed since the segment table was written.
    pub(crate) table_stale: bool,
    /// The watermark has changed since it was handed to the watermarks file.
    pub(crate) watermark_stale: bool,
    /// How long before this start the hub's line last ended where this lane has never been, in running time; and that it does now,
    /// which the watermarks file does not know yet.
    pub(crate) since_diverged: Option<Duration>,
    pub(crate) diverged: bool,
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
    }

    /// Whether the hub has the content of a position: it is confirmed, no entry stands for it, and it is not lost there.
    pub(crate) fn is_confirmed_content(&self, position: Position) -> bool {
        let stands = |(from, through): &(Position, Position)| (*from..=*through).contains(&position);
        position <= self.watermark.position && !self.stood_for().iter().any(stands)
    }

    /// The ranges whose content the hub has not, or will not have: what a person has written off; what was deleted after
    /// it was confirmed, and was not there any more when the hub's line had to be begun before it; and what the hub itself has
    /// lost for good. In order, apart.
    fn stood_for(&self) -> Vec<(Position, Position)> {
        let voids = self.voids.ranges().iter().map(|void| (void.from, void.through));
        let entries = self.numbering.entries_of_line();
        let mut ranges: Vec<_> = voids.chain(entries).chain(self.lost_at_hub.iter().copied()).collect();
        ranges.sort_unstable();
        ranges.dedup_by(|next, before| {
            let joins = next.0 <= before.1;
            before.1 = if joins { before.1.max(next.1) } else { before.1 };
            joins
        });
        ranges
    }

    /// All positions that cannot be read any more, in order.
    pub(crate) fn gone(&self) -> Vec<Gone> {
        let kept_from = self.first_retained();
        let pruned = Gone { from: 1, through: kept_from - 1, kind: Some(EntryKind::Pruned) };
        let mut gone = Vec::from_iter((kept_from > 1).then_some(pruned));
        let mut voids: Vec<_> = self.voids.ranges().iter().map(|void| (void.from, void.through)).collect();
        voids.sort_unstable();
        for (from, through) in self.missing.ranges().iter().copied() {
            let mut next = from.max(kept_from);
            for (first, last) in voids.iter().copied().filter(|(a, b)| *b >= from && *a <= through) {
                if first > next {
                    gone.push(Gone { from: next, through: first - 1, kind: None });
                }
                let first = first.max(next);
                if first <= last {
                    gone.push(Gone { from: first, through: last.min(through), kind: Some(EntryKind::Void) });
                    next = last + 1;
                }
            }
            if next <= through {
                gone.push(Gone { from: next, through, kind: None });
            }
        }
        gone
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
        // A confirmed entry is not a transaction at the hub.
        let entries = self.entries_confirmed(confirmed);
        let oldest_time = (waiting > 0)
            .then(|| self.oldest.filter(|(at, _)| *at > confirmed).map(|(_, time)| time))
            .flatten();
        LaneCounts {
            accepted: self.tail,
            confirmed: confirmed - entries,
            waiting,
            damaged: damaged + entries,
            waiting_bytes: if waiting == 0 { 0 } else { self.bytes_after(confirmed) },
            oldest_time,
        }
    }

    /// Positions through here for which the hub has an entry: confirmed to be lost.
    fn entries_confirmed(&self, confirmed: Position) -> u64 {
        let ranges = self.stood_for().into_iter();
        ranges.map(|(from, through)| (through.min(confirmed) + 1).saturating_sub(from)).sum()
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

/// What this run knows of a lane's digest tables, by their bases.
#[derive(Debug, Default)]
pub(crate) struct DigestTables {
    /// The chain has not proven their entries yet: they are not used.
    pub(crate) unproven: Mutex<HashSet<Position>>,
    /// The writer could not begin them: what stands there beyond the proven entries may be of records that a power cut took.
    pub(crate) unwritten: Mutex<HashSet<Position>>,
    /// They were made again in this run: what they lack is not known.
    pub(crate) made: Mutex<HashSet<Position>>,
    /// Allows one to be made at a time.
    pub(crate) making: Mutex<()>,
}

impl DigestTables {
    /// The chain proves the entries of the table at `base` as far as its segment goes now.
    pub(crate) fn proven(&self, base: Position, newest: bool) {
        if !newest || !locked(&self.unwritten).contains(&base) {
            locked(&self.unproven).remove(&base);
        }
    }

    /// The writer begins a segment at `base`, with its table or without.
    pub(crate) fn begun(&self, base: Position, written: bool) {
        if written {
            locked(&self.unwritten).remove(&base);
            locked(&self.unproven).remove(&base);
        } else {
            locked(&self.unwritten).insert(base);
            locked(&self.unproven).insert(base);
        }
    }
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
    /// Its own random id, which begins its chain over positions.
    pub(crate) lane_id: Uuid,
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
    /// Allows one change of its epochs at a time.
    pub(crate) renumbering: Mutex<()>,
    /// Its digest tables.
    pub(crate) digests: DigestTables,
    /// When its records were accepted.
    pub(crate) accepted: Mutex<AcceptanceTimes>,
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
    use pgw_core::numbering::Entry;
    use pgw_core::transaction::{Epoch, TransactionId};

    fn span(base: Position, bytes: u64) -> Span {
        Span { base, previous: ChainValue([0; 32]), bytes, oldest: Some(base) }
    }

    fn state(watermark: Position) -> LaneState {
        LaneState {
            numbering: Numbering::new(Epoch(uuid::Uuid::nil())),
            segments: BTreeMap::from([(2, span(11, 100)), (3, span(21, 100)), (5, span(31, 50))]),
            tail: 35,
            chain: ChainValue([0; 32]),
            watermark: Watermark { position: watermark, point: None },
            backed_up_through: None,
            missing: MissingRecords::default(),
            voids: Voids::default(),
            lost_at_hub: Vec::new(),
            oldest: None,
            table_stale: false,
            watermark_stale: false,
            since_diverged: None,
            diverged: false,
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
    fn the_hub_has_only_an_entry_for_what_was_deleted_before_it_could_be_sent_again() {
        let mut state = state(30);
        let entry = |from, through, kind| Entry {
            from,
            through,
            kind,
            id: TransactionId(uuid::Uuid::nil()),
            time: 0,
            reason: String::new(),
            names: Vec::new(),
        };
        let entries = vec![entry(5, 10, EntryKind::Pruned), entry(15, 16, EntryKind::Void)];
        state.numbering = state.numbering.begun(Epoch(uuid::Uuid::max()), None, Vec::new(), 4, entries);
        state.missing.add(15, 16);
        let has = |state: &LaneState, position| state.is_confirmed_content(position);
        for position in [5, 10, 15, 16, 31] {
            assert!(!has(&state, position), "{position}");
        }
        for position in [4, 11, 14, 17, 30] {
            assert!(has(&state, position), "{position}");
        }
        let counts = state.counts();
        assert_eq!((counts.confirmed, counts.damaged, counts.waiting), (22, 8, 5));
        // What is not confirmed waits, and is not lost yet.
        state.watermark.position = 6;
        let counts = state.counts();
        assert_eq!((counts.confirmed, counts.damaged + counts.waiting), (4, 31));
        // One range is counted once, whoever names it.
        state.numbering = state.numbering.begun(
            Epoch(uuid::Uuid::nil()),
            None,
            Vec::new(),
            2,
            vec![entry(3, 4, EntryKind::Pruned)],
        );
        assert_eq!(state.stood_for(), [(3, 4), (5, 10), (15, 16)]);
        // What the hub has lost for good is not there either.
        state.watermark.position = 30;
        state.lost_at_hub = vec![(4, 6), (20, 21)];
        assert!(!has(&state, 20) && !has(&state, 21) && has(&state, 22));
        let counts = state.counts();
        assert_eq!((counts.confirmed, counts.damaged, counts.waiting), (18, 12, 5));
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
