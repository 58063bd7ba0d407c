//! The open databases of a lane, shared between writer and readers, as sled locks its files.

use std::collections::{HashMap, HashSet, VecDeque};
use std::fs::File;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use crate::guard::segment::{Segment, SegmentError};
use crate::lock::locked;

/// Handles kept open for reading, besides the writer's.
const OPEN_FOR_READING: usize = 2;

/// The databases of a lane that are open now.
#[derive(Debug, Default)]
pub(crate) struct Handles {
    inner: Mutex<HandlesInner>,
    /// One thread opens at a time: sled would refuse the second.
    opening: Mutex<()>,
    /// Signals that a replacement has ended.
    replaced: Condvar,
}

#[derive(Debug, Default)]
struct HandlesInner {
    known: HashMap<u64, Weak<Segment>>,
    recent: VecDeque<(u64, Arc<Segment>)>,
    /// Segments that are being replaced: nobody opens them.
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
    pub(crate) fn register(&self, number: u64, segment: &Arc<Segment>) {
        let mut inner = locked(&self.inner);
        inner.known.retain(|_, weak| weak.strong_count() > 0);
        inner.known.insert(number, Arc::downgrade(segment));
    }

    /// Forgets a handle: it failed, or its segment is gone. Returns the handles, which another thread must drop.
    pub(crate) fn forget(&self, number: u64) -> Vec<Arc<Segment>> {
        let mut inner = locked(&self.inner);
        inner.known.remove(&number);
        let (gone, remaining) = inner.recent.drain(..).partition(|(o, _)| *o == number);
        inner.recent = remaining;
        let gone: VecDeque<_> = gone;
        gone.into_iter().map(|(_, segment)| segment).collect()
    }

    /// The open handle of a segment, or the one that `open` returns.
    ///
    /// # Errors
    /// Those of `open`.
    pub(crate) fn get(
        &self,
        number: u64,
        open: impl FnOnce() -> Result<Segment, SegmentError>,
    ) -> Result<Arc<Segment>, SegmentError> {
        let _one_at_a_time = loop {
            if let Some(segment) = self.known(number) {
                return Ok(segment);
            }
            let one_at_a_time = locked(&self.opening);
            if !locked(&self.inner).closed.contains(&number) {
                break one_at_a_time;
            }
            drop(one_at_a_time);
            let inner = locked(&self.inner);
            let open_again = self.replaced.wait_while(inner, |inner| inner.closed.contains(&number));
            drop(open_again.unwrap_or_else(PoisonError::into_inner));
        };
        if let Some(segment) = self.known(number) {
            return Ok(segment);
        }
        let segment = Arc::new(open()?);
        let evicted: Vec<_> = {
            let mut inner = locked(&self.inner);
            inner.known.insert(number, Arc::downgrade(&segment));
            inner.recent.push_back((number, Arc::clone(&segment)));
            let surplus = inner.recent.len().saturating_sub(OPEN_FOR_READING);
            inner.recent.drain(..surplus).collect()
        };
        drop(evicted);
        Ok(segment)
    }

    /// Changes the files of a segment while no thread has it open or opens it: sled would recreate files that were moved
    /// away, and write into those of a successor. Readers wait meanwhile. `None`: a reader kept its handle for too long.
    pub(crate) fn alone<T>(
        &self,
        number: u64,
        database: &Path,
        patience: Duration,
        act: impl FnOnce() -> T,
    ) -> Option<T> {
        locked(&self.inner).closed.insert(number);
        let _closed = Closed(self, number);
        // A thread that is opening it now has not seen that.
        drop(locked(&self.opening));
        drop(self.forget(number));
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
    pub(crate) fn known(&self, number: u64) -> Option<Arc<Segment>> {
        locked(&self.inner).known.get(&number).and_then(Weak::upgrade)
    }

    /// Drops all handles that are kept for reading.
    pub(crate) fn clear(&self) {
        let recent = std::mem::take(&mut locked(&self.inner).recent);
        drop(recent);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
            let (opened, was_opened) = std::sync::mpsc::channel();
            let (handles, place) = (&handles, &place);
            let done = handles.alone(1, &database, long, || {
                scope.spawn(move || {
                    inside.send(()).unwrap();
                    let segment = handles.get(1, || Segment::open(place, 0)).unwrap();
                    opened.send(()).unwrap();
                    drop(segment);
                });
                entered.recv().unwrap();
                was_opened.recv_timeout(short).is_err()
            });
            assert_eq!(done, Some(true), "nobody opens it meanwhile");
            was_opened.recv_timeout(long).unwrap();
        });
    }
}
