//! What the outbox's threads share: settings, lanes, counters, and the list of what people should know.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::lane::{LaneShared, locked};
use super::seal::Sealer;
use super::segment::Segment;
use super::{Accepted, Notable, Refusal, Settings, Submission};
use crate::delivery::Numbering;
use crate::transaction::{Clock, Lane};

/// Events that are kept until somebody fetches them; beyond it the oldest go.
const NOTABLES: usize = 1000;

/// Work that would hold up the writer.
pub(crate) enum Chore {
    /// Make a segment ahead.
    MakeAhead {
        /// Index of the lane.
        lane: usize,
        /// The segment to be made.
        ordinal: u64,
    },
    /// Drop a handle.
    LetGo {
        /// Index of the lane.
        lane: usize,
        /// Its segment.
        ordinal: u64,
        /// The handle.
        segment: Arc<Segment>,
    },
    /// Remove a directory: to the trash first.
    Discard(PathBuf),
    /// End.
    Stop,
}

/// What the index and the store know of a submission.
#[derive(Debug, Default)]
pub(crate) struct Known {
    /// It is stored: this is the answer.
    pub(crate) repetition: Option<Accepted>,
    /// Its key was used before with other bytes.
    pub(crate) key_reused: bool,
}

/// Shared by the handle, the writer, the keeper and the maker.
pub(crate) struct Shared {
    pub(crate) settings: Settings,
    pub(crate) sealer: Sealer,
    pub(crate) lanes: Vec<Arc<LaneShared>>,
    pub(crate) repeated: AtomicU64,
    pub(crate) queued_bytes: AtomicU64,
    pub(crate) chores: Sender<Chore>,
    notables: Mutex<VecDeque<Notable>>,
    latency: Mutex<Latency>,
    clock: AtomicU8,
}

impl Shared {
    pub(crate) fn new(
        settings: Settings,
        sealer: Sealer,
        lanes: Vec<Arc<LaneShared>>,
        notables: Vec<Notable>,
        chores: Sender<Chore>,
    ) -> Self {
        Self {
            settings,
            sealer,
            lanes,
            repeated: AtomicU64::new(0),
            queued_bytes: AtomicU64::new(0),
            chores,
            notables: Mutex::new(notables.into()),
            latency: Mutex::new(Latency::new(Instant::now())),
            clock: AtomicU8::new(2),
        }
    }

    /// The lane of this name, and its index.
    pub(crate) fn lane(&self, name: &Lane) -> Option<(usize, &Arc<LaneShared>)> {
        self.lanes.iter().enumerate().find(|(_, lane)| lane.name == *name)
    }

    /// Hands work to the maker. When it has ended, so has the outbox.
    pub(crate) fn chore(&self, chore: Chore) {
        let _ = self.chores.send(chore);
    }

    /// Something that a person should know of.
    pub(crate) fn notable(&self, code: &'static str, detail: String) {
        let mut notables = locked(&self.notables);
        if notables.len() >= NOTABLES {
            notables.pop_front();
        }
        notables.push_back(Notable { code, detail });
    }

    pub(crate) fn take_notables(&self) -> Vec<Notable> {
        std::mem::take(&mut *locked(&self.notables)).into()
    }

    /// How far the clock can be believed, as the daemon last said.
    pub(crate) fn clock(&self) -> Clock {
        match self.clock.load(Ordering::Relaxed) {
            0 => Clock::Synced,
            1 => Clock::Holdover,
            _ => Clock::Untrusted,
        }
    }

    pub(crate) fn set_clock(&self, clock: Clock) {
        let code = match clock {
            Clock::Synced => 0,
            Clock::Holdover => 1,
            Clock::Untrusted => 2,
        };
        self.clock.store(code, Ordering::Relaxed);
    }

    /// These submissions have their answer: their bytes leave the queue's account, and good ones count for the latency.
    pub(crate) fn answered(&self, answers: impl Iterator<Item = (u64, Duration)>, good: bool) {
        let mut bytes = 0;
        let mut latency = locked(&self.latency);
        let now = Instant::now();
        for (cost, took) in answers {
            bytes += cost;
            if good {
                latency.record(now, took);
            }
        }
        self.queued_bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    pub(crate) fn latency_p99(&self) -> f64 {
        locked(&self.latency).p99(Instant::now())
    }

    /// Whether there is room for new work in this lane.
    pub(crate) fn admits(&self, _lane: usize) -> Result<(), Refusal> {
        Ok(())
    }

    /// The disk is full: what is kept for that is released.
    pub(crate) fn out_of_room(&self) {}

    /// What is known of a submission that is not in the present group.
    pub(crate) fn find_stored(&self, _lane: usize, _submission: &Submission) -> Result<Known, String> {
        Ok(Known::default())
    }

    /// Notes stored records in the index.
    pub(crate) fn remember(&self, _lane: &LaneShared, _ready: &[super::pen::Ready]) {}

    pub(crate) fn save_numbering(&self, lane: &LaneShared, numbering: &Numbering) -> std::io::Result<()> {
        super::files::save(&self.lane_file(&lane.name, "numbering"), numbering)
    }

    /// A small file of a lane.
    pub(crate) fn lane_file(&self, lane: &Lane, name: &str) -> PathBuf {
        lane_file(&self.settings.directory, lane, name)
    }
}

/// `lanes/{lane}/{name}`
pub(crate) fn lane_file(store: &std::path::Path, lane: &Lane, name: &str) -> PathBuf {
    store.join("lanes").join(lane.as_str()).join(name)
}

/// Answer times of the last minute, in six slices of ten seconds and buckets of an eighth of an octave.
struct Latency {
    slices: [[u32; BUCKETS]; SLICES],
    current: usize,
    turned: Instant,
}

const SLICES: usize = 6;
const BUCKETS: usize = 256;
const SLICE: Duration = Duration::from_secs(10);

impl Latency {
    fn new(now: Instant) -> Self {
        Self { slices: [[0; BUCKETS]; SLICES], current: 0, turned: now }
    }

    fn turn(&mut self, now: Instant) {
        for _ in 0..SLICES {
            if now.duration_since(self.turned) < SLICE {
                return;
            }
            self.turned += SLICE;
            self.current = (self.current + 1) % SLICES;
            self.slices[self.current] = [0; BUCKETS];
        }
        self.turned = now;
    }

    fn record(&mut self, now: Instant, took: Duration) {
        self.turn(now);
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX).max(1);
        self.slices[self.current][bucket(micros)] += 1;
    }

    fn p99(&mut self, now: Instant) -> f64 {
        self.turn(now);
        let sums: Vec<u64> = (0..BUCKETS).map(|b| self.slices.iter().map(|s| u64::from(s[b])).sum()).collect();
        let total: u64 = sums.iter().sum();
        let mut beyond = total / 100;
        for (bucket, count) in sums.iter().enumerate().rev() {
            if *count > beyond {
                return upper_micros(bucket) / 1e6;
            }
            beyond -= count;
        }
        0.0
    }
}

/// Eight buckets an octave.
fn bucket(micros: u64) -> usize {
    let octave = micros.ilog2();
    let eighth = if octave >= 3 { (micros >> (octave - 3)) & 7 } else { (micros << (3 - octave)) & 7 };
    (octave as usize * 8 + usize::try_from(eighth).unwrap_or(0)).min(BUCKETS - 1)
}

fn upper_micros(bucket: usize) -> f64 {
    let octave = i32::try_from(bucket / 8).unwrap_or(i32::MAX);
    2f64.powi(octave) * (1.0 + f64::from(u32::try_from(bucket % 8 + 1).unwrap_or(8)) / 8.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_99th_percentile_is_of_the_last_minute() {
        let start = Instant::now();
        let mut latency = Latency::new(start);
        assert!(latency.p99(start) < f64::EPSILON);
        for _ in 0..980 {
            latency.record(start, Duration::from_micros(100));
        }
        for _ in 0..20 {
            latency.record(start, Duration::from_millis(10));
        }
        let p99 = latency.p99(start + Duration::from_secs(30));
        assert!((0.010..0.0115).contains(&p99), "{p99}");
        assert!(latency.p99(start + Duration::from_secs(61)) < f64::EPSILON);
    }
}
