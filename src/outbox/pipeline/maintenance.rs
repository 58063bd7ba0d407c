//! The maintenance thread: it writes derived state, measures the disk, and prunes.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::time::{Duration, Instant};

use pgw_core::transaction::Position;

use crate::files;
use crate::lock::locked;
use crate::pipeline::durable_digests::DurableDigests;
use crate::pipeline::jobs::{Job, Task};
use crate::pipeline::lane::SharedLane;
use crate::pipeline::shared::SharedOutbox;
use crate::pipeline::space;
use crate::state::checkpoint::TailCheckpoint;
use crate::state::segment_table::{SEGMENT_TABLE_VERSION, SegmentTable};
use crate::state::watermarks::Watermarks;

const TICK: Duration = Duration::from_millis(50);
/// The index is synced this often; after a crash the rest is rebuilt from the records.
const INDEX_EVERY: Duration = Duration::from_secs(1);
/// A lost watermark only means sending again.
const WATERMARKS_EVERY: Duration = Duration::from_secs(1);
/// Running time is written this often if nothing else is.
const RUNNING_EVERY: Duration = Duration::from_secs(60);
const STORE_SIZE_EVERY: Duration = Duration::from_secs(1);
/// The writer leaves a wholly confirmed segment when nothing came for this long and pruning it is worthwhile.
const RETIRE_AFTER: Duration = Duration::from_secs(2);
const RETIRE_BYTES: u64 = 1 << 20;

/// The maintenance thread's own state.
pub(crate) struct Maintenance {
    shared: Arc<SharedOutbox>,
    checkpoint: TailCheckpoint,
    watermarks: Watermarks,
    running_since: Instant,
    watermarks_saved: Instant,
    running_saved: Instant,
    index_synced: Instant,
    sized: Option<Instant>,
    watermarks_stale: bool,
    /// How far the watermarks on the disk confirm each lane.
    durable: Vec<Position>,
    tails: Vec<(Position, Instant)>,
    /// How far the digests of each lane are durable.
    digests: Vec<DurableDigests>,
    filled: bool,
    checkpoint_fails: bool,
    watermarks_fail: bool,
    /// The order to stop has come, perhaps in the middle of a tick.
    stopped: bool,
}

/// Runs until `stop` sends or is dropped, and then writes everything once more.
pub(crate) fn run(mut maintenance: Maintenance, stop: &Receiver<()>) {
    maintenance.load_bloom();
    loop {
        match stop.recv_timeout(TICK) {
            Err(RecvTimeoutError::Timeout) => maintenance.tick(Instant::now(), stop),
            Ok(()) | Err(RecvTimeoutError::Disconnected) => maintenance.stopped = true,
        }
        if maintenance.stopped {
            maintenance.finish();
            return;
        }
    }
}

impl Maintenance {
    pub(crate) fn new(shared: Arc<SharedOutbox>, checkpoint: TailCheckpoint, watermarks: Watermarks) -> Self {
        let now = Instant::now();
        let tails = shared.lanes.iter().map(|lane| (lane.state().tail, now)).collect();
        let durable = vec![0; shared.lanes.len()];
        let at_checkpoint = |lane: &Arc<SharedLane>| checkpoint.last(&lane.name).map_or(0, |last| last.0);
        let digests = shared.lanes.iter().map(|lane| DurableDigests::through(at_checkpoint(lane))).collect();
        Self {
            shared,
            checkpoint,
            watermarks,
            running_since: now,
            watermarks_saved: now,
            running_saved: now,
            index_synced: now,
            sized: None,
            watermarks_stale: false,
            durable,
            tails,
            digests,
            filled: false,
            checkpoint_fails: false,
            watermarks_fail: false,
            stopped: false,
        }
    }

    fn tick(&mut self, now: Instant, stop: &Receiver<()>) {
        self.checkpoint();
        self.measure();
        if !self.filled {
            // Reads the records that the index lacks after a crash; takes long only when the whole index was lost.
            self.filled = self.fill(stop);
        }
        self.hand_over_watermarks(now);
        self.prune();
        self.retire(now);
        for lane in &self.shared.lanes {
            save_segment_table(&self.shared, lane);
            look_up_oldest(&self.shared, lane);
        }
        if self.filled && now.duration_since(self.index_synced) >= INDEX_EVERY {
            self.index_synced = now;
            self.sync_index();
        }
    }

    /// Writes everything once more before the end, so that the next start finds all of it verified.
    fn finish(&mut self) {
        self.checkpoint();
        self.watermarks_stale |= self.take_watermarks();
        self.add_running();
        if let Err(error) = self.watermarks.save() {
            tracing::warn!(error = %error, "The watermarks could not be written");
        }
        for lane in &self.shared.lanes {
            lane.state().table_stale = true;
            save_segment_table(&self.shared, lane);
        }
        if self.filled {
            self.sync_index();
        }
    }

    /// Notes where the lanes end. When the records before a checkpoint are lost later, only the digests say what they were: so
    /// these are durable first.
    fn checkpoint(&mut self) {
        for (lane, digests) in self.shared.lanes.iter().zip(&mut self.digests) {
            let (tail, chain) = {
                let state = lane.state();
                (state.tail, state.chain)
            };
            digests.sync(lane, tail);
            if tail > 0 {
                self.checkpoint.record(&lane.name, tail, chain);
            }
        }
        match self.checkpoint.sync() {
            Ok(()) => self.checkpoint_fails = false,
            Err(error) if !self.checkpoint_fails => {
                self.checkpoint_fails = true;
                tracing::warn!(error = %error, "The tail checkpoint could not be written; the gateway retries");
            }
            Err(_) => {}
        }
    }

    /// Measures the disk and updates admission.
    pub(crate) fn measure(&mut self) {
        let directory = &self.shared.settings.directory;
        let Ok(mut measured) = space::free(directory) else { return };
        if self.sized.is_none_or(|at| at.elapsed() >= STORE_SIZE_EVERY) {
            if let Ok(bytes) = space::directory_bytes(directory) {
                self.shared.set_store_bytes(bytes);
            }
            self.sized = Some(Instant::now());
        }
        measured.store_bytes = self.shared.store_bytes();
        self.shared.measured(measured);
    }

    fn fill(&mut self, stop: &Receiver<()>) -> bool {
        let stopped = &mut self.stopped;
        let mut go_on = || {
            // The order comes only once, so it is remembered.
            *stopped |= !matches!(stop.try_recv(), Err(TryRecvError::Empty));
            !*stopped
        };
        self.shared.lanes.iter().all(|lane| {
            let (from, tail) = self.shared.index_missing(lane);
            self.shared.fill_index(lane, from, tail, &mut go_on)
        })
    }

    /// Without the filter every look-up reads the tables: slower, but just as correct.
    fn load_bloom(&self) {
        let tables = locked(&self.shared.index).tables();
        match tables.bloom() {
            Ok(bloom) => locked(&self.shared.index).use_bloom(&bloom),
            Err(error) => tracing::warn!(error = %error, "Part of the duplicate index could not be read"),
        }
    }

    fn sync_index(&self) {
        let sync = locked(&self.shared.index).begin_sync();
        let result = sync.run();
        if let Err(error) = locked(&self.shared.index).end_sync(sync, result) {
            tracing::warn!(error = %error, "Duplicate index could not be synced");
        }
    }

    /// Takes new watermarks from the lanes; whether there were any.
    fn take_watermarks(&mut self) -> bool {
        let mut any = false;
        for lane in &self.shared.lanes {
            let (watermark, backed_up) = {
                let mut state = lane.state();
                if std::mem::take(&mut state.diverged) {
                    self.watermarks.diverged(&lane.name);
                    any = true;
                }
                if !std::mem::take(&mut state.watermark_stale) {
                    continue;
                }
                (state.watermark, state.backed_up_through)
            };
            self.watermarks.set(&lane.name, watermark, backed_up);
            any = true;
        }
        any
    }

    fn add_running(&mut self) {
        let now = Instant::now();
        self.watermarks.add_running(now.duration_since(self.running_since));
        self.running_since = now;
    }

    fn hand_over_watermarks(&mut self, now: Instant) {
        self.watermarks_stale |= self.take_watermarks();
        self.add_running();
        let due = self.watermarks_stale && now.duration_since(self.watermarks_saved) >= WATERMARKS_EVERY;
        if due || now.duration_since(self.running_saved) >= RUNNING_EVERY {
            self.save_watermarks(now);
        }
    }

    fn save_watermarks(&mut self, now: Instant) {
        match self.watermarks.save() {
            Ok(()) => {
                self.watermarks_stale = false;
                self.watermarks_fail = false;
                for (durable, lane) in self.durable.iter_mut().zip(&self.shared.lanes) {
                    *durable =
                        self.watermarks.watermark(&lane.name).map_or(0, |watermark| watermark.position);
                }
            }
            Err(error) if !self.watermarks_fail => {
                self.watermarks_fail = true;
                tracing::warn!(error = %error, "The watermarks could not be written; the gateway retries");
            }
            Err(_) => {}
        }
        self.watermarks_saved = now;
        self.running_saved = now;
    }

    /// Whether the watermarks on the disk confirm a lane through `last`. If a segment were pruned before its watermark was
    /// durable, its records would be missing after a crash: neither confirmed nor readable.
    fn confirmed_durably(&mut self, index: usize, last: Position) -> bool {
        let tried_just_now = self.watermarks_fail && self.watermarks_saved.elapsed() < WATERMARKS_EVERY;
        if self.durable[index] < last && !tried_just_now {
            self.watermarks_stale |= self.take_watermarks();
            self.save_watermarks(Instant::now());
        }
        self.durable[index] >= last
    }

    /// Removes whole segments that are confirmed and past their retention; earlier only for lack of space, and then only
    /// those that the hub has a backup of. Either way the hub must have said in answer to a question of the last minute that it
    /// has them: one that was restored from a backup needs records again that it had confirmed.
    fn prune(&mut self) {
        let lanes = self.shared.lanes.clone();
        for (index, lane) in lanes.iter().enumerate() {
            self.note_confirmed(lane);
            let mut wants_answer = false;
            loop {
                let (number, last, answer, backed_up) = {
                    let state = lane.state();
                    let Some(number) =
                        state.segments.keys().next().copied().filter(|_| state.segments.len() > 1)
                    else {
                        break;
                    };
                    let last = state.last_of(number);
                    if last > state.watermark.position {
                        break;
                    }
                    let backed_up = state.backed_up_through.is_some_and(|through| through >= last);
                    (number, last, state.answer, backed_up)
                };
                let expired = self.watermarks.expired(&lane.name, number, self.shared.settings.retention);
                let forced = !expired && backed_up && self.shared.refusing().is_some();
                if !expired && !forced {
                    break;
                }
                if !answer.is_some_and(|answer| answer.allows(last, forced)) {
                    wants_answer = true;
                    break;
                }
                if !self.confirmed_durably(index, last) {
                    break;
                }
                if forced {
                    tracing::warn!(lane = %lane.name, through = last, "Pruned before its retention for lack of space");
                    self.shared.raise(
                        "pruned.early",
                        format!("lane {} was pruned through position {last} before its retention, for lack of space", lane.name),
                    );
                }
                self.remove(lane, number, last, forced);
            }
            lane.state().wants_answer = wants_answer;
        }
    }

    /// Each segment's retention begins when it is wholly confirmed, independently of earlier segments.
    fn note_confirmed(&mut self, lane: &SharedLane) {
        let state = lane.state();
        let left = state.segments.len().saturating_sub(1);
        for number in state.segments.keys().take(left) {
            let last = state.last_of(*number);
            if last > state.watermark.position {
                break;
            }
            self.watermarks.segment_confirmed(&lane.name, *number, last);
        }
    }

    fn remove(&mut self, lane: &SharedLane, number: u64, last: Position, early: bool) {
        // Only the records could complete the table. Where that fails the space counts for more: a full disk stops the doors.
        self.shared.prove_digests(lane, number);
        {
            let mut state = lane.state();
            // Checked under the lock: the watermark may have moved back meanwhile, or the link may be lost.
            let allowed = state.answer.is_some_and(|answer| answer.allows(last, early));
            if last > state.watermark.position || !allowed {
                return;
            }
            state.segments.remove(&number);
            let first = state.first_retained();
            state.missing.forget_before(first);
            state.table_stale = true;
        }
        for handle in lane.handles.forget(number) {
            self.shared.task(Task::DropHandle { lane: 0, number, segment: handle });
        }
        save_segment_table(&self.shared, lane);
        self.shared.task(Task::Discard(lane.segment_directory(number)));
        self.watermarks.forget(&lane.name, number);
        if let Err(error) = locked(&self.shared.index).forget_through(lane.id, last) {
            tracing::warn!(lane = %lane.name, error = %error, "The duplicate index could not delete old entries");
        }
    }

    fn retire(&mut self, now: Instant) {
        for (index, lane) in self.shared.lanes.iter().enumerate() {
            let (tail, confirmed, bytes) = {
                let state = lane.state();
                let bytes = state.segments.last_key_value().map_or(0, |(_, span)| span.bytes);
                (state.tail, state.watermark.position >= state.tail, bytes)
            };
            let seen = &mut self.tails[index];
            if seen.0 != tail || !confirmed {
                *seen = (tail, now);
            } else if bytes > RETIRE_BYTES
                // Leaving it earlier would not remove it earlier.
                && now.duration_since(seen.1) >= RETIRE_AFTER.max(self.shared.settings.retention)
            {
                seen.1 = now;
                self.shared.job(Job::Retire { lane: index, tail: Some(tail) });
            }
        }
    }
}

fn save_segment_table(shared: &SharedOutbox, lane: &SharedLane) {
    let table = {
        let mut state = lane.state();
        if !std::mem::take(&mut state.table_stale) {
            return;
        }
        SegmentTable {
            version: SEGMENT_TABLE_VERSION,
            segments: state.segments.clone(),
            missing: state.missing.clone(),
        }
    };
    if let Err(error) = files::save(&shared.lane_file(&lane.name, "ledger"), &table) {
        lane.state().table_stale = true;
        tracing::warn!(lane = %lane.name, error = %error, "The segment table could not be written");
    }
}

/// Reads the oldest waiting record when the watermark has moved: health shows its age.
fn look_up_oldest(shared: &SharedOutbox, lane: &SharedLane) {
    let wanted = {
        let state = lane.state();
        let first = (state.watermark.position + 1).max(state.first_retained());
        if first > state.tail || state.oldest.is_some_and(|(at, _)| at == first) {
            return;
        }
        first
    };
    if let Ok(records) = shared.records(lane, wanted, 1, 0)
        && let Some((_, transaction)) = records.first()
    {
        lane.state().oldest = Some((wanted, transaction.time));
    }
}
