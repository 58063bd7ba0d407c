//! Faults that a unit test plants into every segment below a directory.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex};

#[derive(Debug, Clone, Copy)]
pub(crate) enum Point {
    Create,
    Append,
    Sync,
    Close,
    Read,
    /// Between two steps of a segment's replacement.
    Step,
    /// An entry of a digest table is written.
    Table,
    /// A digest table is begun.
    TableBegin,
}

#[derive(Debug, Default)]
pub(crate) struct Faults {
    /// How many of the next calls at each point fail, as on a full disk.
    failing: [AtomicU32; 8],
    /// How many calls at each point succeed before that.
    passing: [AtomicU32; 8],
    /// How many more syncs may finish; `None`: no limit.
    allowed: Mutex<Option<u32>>,
    allowed_more: Condvar,
    waiting: AtomicU32,
    /// Openings and walks of segments.
    reads: AtomicU32,
    /// The digest tables as a power cut would leave them.
    durable: Mutex<HashMap<PathBuf, Vec<u8>>>,
}

impl Faults {
    pub(crate) fn fail_next(&self, point: Point, times: u32) {
        self.failing[point as usize].store(times, Ordering::SeqCst);
    }

    /// Fails the call after `times` more.
    pub(crate) fn fail_after(&self, point: Point, times: u32) {
        self.passing[point as usize].store(times, Ordering::SeqCst);
        self.fail_next(point, 1);
    }

    /// From now on only this many syncs finish; later ones wait, as on a disk that hangs.
    pub(crate) fn allow_syncs(&self, syncs: Option<u32>) {
        *self.allowed.lock().unwrap() = syncs;
        self.allowed_more.notify_all();
    }

    pub(crate) fn count_read(&self) {
        self.reads.fetch_add(1, Ordering::SeqCst);
    }

    /// How often a segment was opened or records were read from one.
    pub(crate) fn reads(&self) -> u32 {
        self.reads.load(Ordering::SeqCst)
    }

    /// A digest table was synced.
    pub(crate) fn note_durable(&self, table: &Path) {
        if let Ok(bytes) = std::fs::read(table) {
            self.durable.lock().unwrap().insert(table.to_owned(), bytes);
        }
    }

    /// What a power cut at this moment would leave of a digest table.
    pub(crate) fn durable(&self, table: &Path) -> Option<Vec<u8>> {
        self.durable.lock().unwrap().get(table).cloned()
    }

    /// Threads whose sync waits.
    pub(crate) fn waiting(&self) -> u32 {
        self.waiting.load(Ordering::SeqCst)
    }

    pub(crate) fn check(&self, point: Point) -> io::Result<()> {
        if matches!(point, Point::Sync) {
            self.waiting.fetch_add(1, Ordering::SeqCst);
            let allowed = self.allowed.lock().unwrap();
            let mut allowed = self.allowed_more.wait_while(allowed, |n| *n == Some(0)).unwrap();
            self.waiting.fetch_sub(1, Ordering::SeqCst);
            *allowed = allowed.map(|n| n - 1);
        }
        let passing = &self.passing[point as usize];
        if passing.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)).is_ok() {
            return Ok(());
        }
        let left = &self.failing[point as usize];
        match left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)) {
            Ok(_) => Err(io::ErrorKind::StorageFull.into()),
            Err(_) => Ok(()),
        }
    }
}

static ALL: Mutex<Option<HashMap<PathBuf, Arc<Faults>>>> = Mutex::new(None);

/// The faults of the store that contains `path`: `{store}/segments/{lane}/{segment number}`, or a digest table beside it.
pub(crate) fn of(path: &Path) -> Arc<Faults> {
    let store = path.ancestors().nth(3).unwrap_or(path);
    in_store(store)
}

pub(crate) fn in_store(store: &Path) -> Arc<Faults> {
    let mut all = ALL.lock().unwrap();
    Arc::clone(all.get_or_insert_default().entry(store.to_owned()).or_default())
}
