//! A lane is a row of segments: segment k counts for the positions from its base up to the next one's base.
//!
//! [`LaneState`] is what everybody sees of a lane, under one lock, so that its numbers always add up; it changes only when
//! something is behind the barrier. [`Handles`] shares the open databases between writer and readers, as
//! sled locks its files.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use pgw_core::chain::ChainValue;
use pgw_core::delivery::{Numbering, Renumbering};
use pgw_core::transaction::{Epoch, Lane, Position, UnixMillis};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::segment::{Extent, Segment, SegmentError};
use super::voids::Voids;
use super::{LaneCounts, Mark};

/// Handles that are kept open for reading besides the one that is written.
const OPEN_FOR_READING: usize = 2;

/// A panic elsewhere while the lock was held leaves numbers that are whole: each change is one assignment deep.
pub(crate) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Ranges of positions that are not to be had any more, ascending, apart.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Holes(Vec<(Position, Position)>);

impl Holes {
    /// Adds `from..=through`; whether anything of it was new.
    pub(crate) fn add(&mut self, from: Position, through: Position) -> bool {
        if from > through || self.0.iter().any(|(a, b)| *a <= from && through <= *b) {
            return false;
        }
        self.0.push((from, through));
        self.0.sort_unstable();
        let mut merged: Vec<(Position, Position)> = Vec::with_capacity(self.0.len());
        for (from, through) in self.0.drain(..) {
            match merged.last_mut() {
                Some(last) if from <= last.1.saturating_add(1) => last.1 = last.1.max(through),
                _ => merged.push((from, through)),
            }
        }
        self.0 = merged;
        true
    }

    /// Takes out one position: it is to be had again.
    pub(crate) fn fill(&mut self, position: Position) {
        let Some(at) = self.0.iter().position(|(from, through)| (*from..=*through).contains(&position))
        else {
            return;
        };
        let (from, through) = self.0.remove(at);
        let rest = [(from, position - 1), (position + 1, through)];
        self.0.extend(rest.into_iter().filter(|(from, through)| from <= through));
        self.0.sort_unstable();
    }

    /// All of them, ascending.
    pub(crate) fn ranges(&self) -> &[(Position, Position)] {
        &self.0
    }

    /// Forgets what lies before `position`.
    pub(crate) fn forget_before(&mut self, position: Position) {
        self.0.retain(|(_, through)| *through >= position);
        if let Some(first) = self.0.first_mut() {
            first.0 = first.0.max(position);
        }
    }

    /// The hole that `position` lies in.
    pub(crate) fn at(&self, position: Position) -> Option<(Position, Position)> {
        self.0.iter().copied().find(|(from, through)| (*from..=*through).contains(&position))
    }

    /// The last position from `position` through `through` before a hole begins.
    pub(crate) fn before_next(&self, position: Position, through: Position) -> Position {
        let next = self.0.iter().find(|(from, _)| *from > position);
        next.map_or(through, |(from, _)| through.min(from - 1))
    }

    /// How many positions of `after + 1 ..= through` are missing.
    pub(crate) fn count(&self, after: Position, through: Position) -> u64 {
        self.0
            .iter()
            .map(|(a, b)| (*b).min(through).saturating_add(1).saturating_sub((*a).max(after + 1)))
            .sum()
    }
}

/// What everybody sees of a lane.
#[derive(Debug, Clone)]
pub(crate) struct LaneState {
    /// Its epochs.
    pub(crate) numbering: Numbering,
    /// Its segments by ordinal; the last is the one that is written.
    pub(crate) row: BTreeMap<u64, Extent>,
    /// The last position behind the barrier.
    pub(crate) tail: Position,
    /// The chain value there, as the next record has it for its previous.
    pub(crate) chain: ChainValue,
    /// Confirmed through.
    pub(crate) mark: Mark,
    /// The epoch in which the mark's chain value holds, where that is known.
    pub(crate) mark_epoch: Option<Epoch>,
    /// The hub has a backup through this position.
    pub(crate) backed_up_through: Option<Position>,
    /// What is lost.
    pub(crate) holes: Holes,
    /// What is lost and was released.
    pub(crate) voids: Voids,
    /// The oldest that waits, and when it was accepted, as last looked up.
    pub(crate) oldest: Option<(Position, UnixMillis)>,
    /// Row or holes have changed since the ledger was written.
    pub(crate) ledger_stale: bool,
    /// The mark has changed since it was handed to the marks file.
    pub(crate) mark_stale: bool,
    /// The mark was confirmed, or confirmed again, on the connection that is up now.
    pub(crate) answered: bool,
}

impl LaneState {
    /// The hub has said so.
    pub(crate) fn confirm(&mut self, mark: Mark) {
        self.mark = mark;
        self.mark_epoch = Some(self.numbering.at(mark.position.max(1)).epoch);
    }

    /// The mark, where its chain value is one of `numbered`: what follows in it is computed from there. The hub has it, and
    /// it is right whatever was destroyed or pruned below it.
    pub(crate) fn mark_in(&self, numbered: Renumbering) -> Option<Mark> {
        let ours = self.mark_epoch == Some(numbered.epoch) && self.mark.position > numbered.base;
        ours.then_some(self.mark)
    }

    /// The first position that is kept.
    pub(crate) fn first_retained(&self) -> Position {
        self.row.values().next().map_or(self.tail + 1, |extent| extent.base)
    }

    /// The segment that holds `position`, and the last position that counts in it.
    pub(crate) fn segment_of(&self, position: Position) -> Option<(u64, Position)> {
        let mut through = self.tail;
        for (ordinal, extent) in self.row.iter().rev() {
            if extent.base <= position {
                return (position <= through).then_some((*ordinal, through));
            }
            through = extent.base - 1;
        }
        None
    }

    /// The last position of a segment of the row.
    pub(crate) fn last_of(&self, ordinal: u64) -> Position {
        self.row.range(ordinal + 1..).next().map_or(self.tail, |(_, next)| next.base - 1)
    }

    /// The lane in numbers. Cheap, and they add up: each position is in exactly one of the three.
    pub(crate) fn counts(&self) -> LaneCounts {
        let confirmed = self.mark.position.min(self.tail);
        let kept_from = self.first_retained().max(confirmed + 1);
        let pruned = (kept_from - 1).saturating_sub(confirmed);
        let damaged = pruned + self.holes.count(kept_from - 1, self.tail);
        let waiting = self.tail - confirmed - damaged;
        // A void that the hub has confirmed is no transaction that it has.
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

    /// Payload bytes after `position`; within one segment by its average.
    fn bytes_after(&self, position: Position) -> u64 {
        let mut through = self.tail;
        let mut bytes = 0u64;
        for extent in self.row.values().rev() {
            let records = (through + 1).saturating_sub(extent.base);
            let beyond = through.saturating_sub(position).min(records);
            if beyond == 0 {
                break;
            }
            let part = u128::from(extent.bytes) * u128::from(beyond) / u128::from(records.max(1));
            bytes = bytes.saturating_add(u64::try_from(part).unwrap_or(u64::MAX));
            through = extent.base - 1;
        }
        bytes
    }
}

/// The row and the holes as they are kept beside the segments, so that a start needs to open the newest only.
/// Written behind; what it misses is in the newest segment's header.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ledger {
    /// Of this format.
    pub(crate) version: u32,
    /// Segments by ordinal.
    pub(crate) row: BTreeMap<u64, Extent>,
    /// Lost positions.
    pub(crate) holes: Holes,
}

/// The databases of a lane that are open now.
#[derive(Debug, Default)]
pub(crate) struct Handles {
    inner: Mutex<HandlesInner>,
    /// One opens at a time: sled would refuse the second.
    opening: Mutex<()>,
    /// A replacement has ended.
    replaced: Condvar,
}

#[derive(Debug, Default)]
struct HandlesInner {
    known: HashMap<u64, Weak<Segment>>,
    recent: VecDeque<(u64, Arc<Segment>)>,
    /// Being replaced: nobody opens them.
    closed: HashSet<u64>,
}

/// A segment that nobody opens until this is dropped.
struct Closed<'a>(&'a Handles, u64);

impl Drop for Closed<'_> {
    fn drop(&mut self) {
        locked(&self.0.inner).closed.remove(&self.1);
        self.0.replaced.notify_all();
    }
}

impl Handles {
    /// Makes the writer's handle known to readers; the writer keeps it alive.
    pub(crate) fn register(&self, ordinal: u64, segment: &Arc<Segment>) {
        let mut inner = locked(&self.inner);
        inner.known.retain(|_, weak| weak.strong_count() > 0);
        inner.known.insert(ordinal, Arc::downgrade(segment));
    }

    /// Forgets a handle: it failed, or its segment is gone. Gives back what must be dropped elsewhere.
    pub(crate) fn forget(&self, ordinal: u64) -> Vec<Arc<Segment>> {
        let mut inner = locked(&self.inner);
        inner.known.remove(&ordinal);
        let (gone, kept) = inner.recent.drain(..).partition(|(o, _)| *o == ordinal);
        inner.recent = kept;
        let gone: VecDeque<_> = gone;
        gone.into_iter().map(|(_, segment)| segment).collect()
    }

    /// The open handle of a segment, or what `open` gives.
    ///
    /// # Errors
    /// Those of `open`.
    pub(crate) fn get(
        &self,
        ordinal: u64,
        open: impl FnOnce() -> Result<Segment, SegmentError>,
    ) -> Result<Arc<Segment>, SegmentError> {
        let _one_at_a_time = loop {
            if let Some(segment) = self.known(ordinal) {
                return Ok(segment);
            }
            let one_at_a_time = locked(&self.opening);
            if !locked(&self.inner).closed.contains(&ordinal) {
                break one_at_a_time;
            }
            drop(one_at_a_time);
            let inner = locked(&self.inner);
            let open_again = self.replaced.wait_while(inner, |inner| inner.closed.contains(&ordinal));
            drop(open_again.unwrap_or_else(PoisonError::into_inner));
        };
        if let Some(segment) = self.known(ordinal) {
            return Ok(segment);
        }
        let segment = Arc::new(open()?);
        let evicted: Vec<_> = {
            let mut inner = locked(&self.inner);
            inner.known.insert(ordinal, Arc::downgrade(&segment));
            inner.recent.push_back((ordinal, Arc::clone(&segment)));
            let surplus = inner.recent.len().saturating_sub(OPEN_FOR_READING);
            inner.recent.drain(..surplus).collect()
        };
        drop(evicted);
        Ok(segment)
    }

    /// Does something to the files of a segment while nobody has it open or opens it: sled would make files again that have been
    /// moved away, and write into those of a successor. Who wants to read meanwhile waits. `None`: somebody who reads did not
    /// let go of it in time.
    pub(crate) fn alone<T>(
        &self,
        ordinal: u64,
        database: &Path,
        patience: Duration,
        act: impl FnOnce() -> T,
    ) -> Option<T> {
        locked(&self.inner).closed.insert(ordinal);
        let _closed = Closed(self, ordinal);
        // Whoever is opening it just now has not seen that.
        drop(locked(&self.opening));
        drop(self.forget(ordinal));
        let begun = Instant::now();
        // sled holds this lock until the last handle is gone, and a little longer.
        while File::open(database).is_ok_and(|file| file.try_lock().is_err()) {
            if begun.elapsed() >= patience {
                return None;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Some(act())
    }

    /// The handle of a segment, if it is open.
    pub(crate) fn known(&self, ordinal: u64) -> Option<Arc<Segment>> {
        locked(&self.inner).known.get(&ordinal).and_then(Weak::upgrade)
    }

    /// Lets go of all that are kept for reading.
    pub(crate) fn clear(&self) {
        let recent = std::mem::take(&mut locked(&self.inner).recent);
        drop(recent);
    }
}

/// A chain value that was computed on reading, so that a reader in order needs one step a record.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Computed {
    pub(crate) numbered: pgw_core::delivery::Renumbering,
    pub(crate) position: Position,
    pub(crate) chain: ChainValue,
}

/// One lane as writer, readers and keeper share it.
#[derive(Debug)]
pub(crate) struct LaneShared {
    /// Its name.
    pub(crate) name: Lane,
    /// Its number in this store.
    pub(crate) id: u16,
    /// Whether the reserve is there for it.
    pub(crate) urgent: bool,
    /// `segments/{lane}`.
    pub(crate) directory: PathBuf,
    /// The last position behind the barrier, for delivery.
    pub(crate) tail: watch::Sender<Position>,
    /// All that adds up.
    pub(crate) state: Mutex<LaneState>,
    /// Open databases.
    pub(crate) handles: Handles,
    /// A segment that was made ahead.
    pub(crate) ahead: Mutex<Option<(u64, Segment)>>,
    /// One void is made at a time.
    pub(crate) voiding: Mutex<()>,
    /// Segments that were salvaged in this run.
    pub(crate) repaired: Mutex<HashSet<u64>>,
    /// The last chain value that was computed for a renumbered record.
    pub(crate) computed: Mutex<Option<Computed>>,
}

impl LaneShared {
    /// The state, locked.
    pub(crate) fn state(&self) -> MutexGuard<'_, LaneState> {
        locked(&self.state)
    }

    /// Where segment `ordinal` lies.
    pub(crate) fn segment_directory(&self, ordinal: u64) -> PathBuf {
        self.directory.join(format!("{ordinal:010}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pgw_core::transaction::Epoch;

    fn extent(base: Position, bytes: u64) -> Extent {
        Extent { base, previous: ChainValue([0; 32]), bytes, oldest: Some(base) }
    }

    fn state(mark: Position) -> LaneState {
        LaneState {
            numbering: Numbering::new(Epoch(uuid::Uuid::nil())),
            row: BTreeMap::from([(2, extent(11, 100)), (3, extent(21, 100)), (5, extent(31, 50))]),
            tail: 35,
            chain: ChainValue([0; 32]),
            mark: Mark { position: mark, chain: ChainValue([0; 32]) },
            mark_epoch: None,
            backed_up_through: None,
            holes: Holes::default(),
            voids: Voids::default(),
            oldest: None,
            ledger_stale: false,
            mark_stale: false,
            answered: false,
        }
    }

    #[test]
    fn every_position_is_in_exactly_one_state() {
        for mark in 0..40 {
            let mut state = state(mark);
            for (from, through) in [(15, 16), (20, 22), (34, 35)] {
                state.holes.add(from, through);
                let counts = state.counts();
                assert_eq!(
                    counts.accepted,
                    counts.confirmed + counts.waiting + counts.damaged,
                    "mark {mark}"
                );
                let missing = |p: Position| p < 11 || state.holes.at(p).is_some();
                let damaged = (mark + 1..=35).filter(|p| missing(*p)).count() as u64;
                assert_eq!(counts.damaged, damaged, "mark {mark}");
            }
        }
    }

    #[test]
    fn nobody_opens_what_is_being_replaced_and_it_is_not_replaced_while_somebody_reads() {
        let directory = tempfile::tempdir().unwrap();
        let place = directory.path().join("store/segments/clinical/0000000001");
        drop(Segment::create(&place).unwrap());
        let (handles, database) = (Handles::default(), place.join("db"));
        let short = Duration::from_millis(50);
        let reader = handles.get(1, || Segment::open(&place, 0)).unwrap();
        assert_eq!(handles.alone(1, &database, short, || ()), None, "it is being read");
        drop(reader);
        let long = Duration::from_secs(20);
        std::thread::scope(|scope| {
            let (inside, entered) = std::sync::mpsc::channel();
            let (opened, told) = std::sync::mpsc::channel();
            let (handles, place) = (&handles, &place);
            let done = handles.alone(1, &database, long, || {
                scope.spawn(move || {
                    inside.send(()).unwrap();
                    let segment = handles.get(1, || Segment::open(place, 0)).unwrap();
                    opened.send(()).unwrap();
                    drop(segment);
                });
                entered.recv().unwrap();
                told.recv_timeout(short).is_err()
            });
            assert_eq!(done, Some(true), "nobody opens it meanwhile");
            told.recv_timeout(long).unwrap();
        });
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

    #[test]
    fn holes_merge_and_count() {
        let mut holes = Holes::default();
        assert!(holes.add(5, 6) && holes.add(8, 9) && holes.add(7, 7));
        assert!(!holes.add(6, 8));
        assert_eq!(holes, Holes(vec![(5, 9)]));
        assert_eq!((holes.count(0, 100), holes.count(5, 8), holes.count(9, 100)), (5, 3, 0));
        holes.forget_before(7);
        assert_eq!(holes, Holes(vec![(7, 9)]));
        [8, 100].into_iter().for_each(|position| holes.fill(position));
        assert_eq!(holes, Holes(vec![(7, 7), (9, 9)]));
        [7, 9].into_iter().for_each(|position| holes.fill(position));
        assert_eq!(holes, Holes::default());
    }
}
