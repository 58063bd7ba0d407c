//! From the files on the disk to running threads: opens the parts in their order, then the lanes, then starts the threads.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use self::lane::StoreParts;
use crate::crypt::index_key::index_key;
use crate::crypt::keyring::Keyring;
use crate::crypt::seal::Sealer;
use crate::dedup::index::DuplicateIndex;
use crate::descriptor::{self, Descriptor, Retirement, failed};
use crate::errors::OpenError;
use crate::pipeline::jobs::{Job, Task};
use crate::pipeline::lane_writer::LaneWriter;
use crate::pipeline::maintenance::{self, Maintenance};
use crate::pipeline::running::{Running, spawn};
use crate::pipeline::shared::{Parts, SharedOutbox};
use crate::pipeline::space::Ballast;
use crate::pipeline::startup::lane::open_lane;
use crate::pipeline::writer::Writer;
use crate::pipeline::{duplicates, fsync_worker, segment_worker};
use crate::quarantine::Quarantine;
use crate::state::checkpoint::TailCheckpoint;
use crate::state::watermarks::Watermarks;
use crate::types::{OutboxAlarm, OutboxSettings};

mod epochs;
mod lane;
mod segments;
mod tail;

/// As [`crate::handle::Outbox::open`].
pub(crate) fn open(
    settings: OutboxSettings,
    keys: &Keyring,
    retirement: Retirement,
) -> Result<Running, OpenError> {
    let (lock, mut descriptor) = descriptor::identify_and_lock(&settings, keys, retirement)?;
    let mut alarms = Vec::new();
    let files = StoreFiles::open(&settings, keys, &mut descriptor, &mut alarms)?;
    files.tell_of_damage(&mut alarms);

    let sealer = Sealer::new(keys);
    let ids = descriptor::lane_ids(&settings, &mut alarms)?;
    let mut found = Vec::new();
    for (lane, id) in settings.lanes.iter().zip(ids) {
        let parts = StoreParts {
            settings: &settings,
            sealer: &sealer,
            checkpoint: &files.checkpoint,
            watermarks: &files.watermarks,
            quarantine: &files.quarantine,
            ballast: &files.ballast,
        };
        found.push(open_lane(&parts, lane, id, &mut alarms)?);
    }
    let next = found.iter().map(|found| (found.lane.name.clone(), found.lane.state().tail + 1));
    if descriptor.begin_lanes(next) {
        let path = settings.directory.join("FORMAT");
        descriptor.save(&settings.directory).map_err(failed("write", &path))?;
    }
    let StoreFiles { checkpoint, watermarks, ballast, quarantine, index } = files;
    let (tasks, work) = channel();
    let (jobs, queue) = channel();
    let lanes = found.iter().map(|found| Arc::clone(&found.lane)).collect();
    let parts =
        Parts { settings, sealer, periods: descriptor.periods(), lanes, index, quarantine, ballast, alarms };
    let shared = Arc::new(SharedOutbox::new(parts, tasks, jobs.clone()));
    for (index, found) in found.iter().enumerate() {
        let numbers: Vec<u64> = found.lane.state().segments.keys().copied().collect();
        for number in numbers {
            shared.task(Task::KeepDigests { lane: index, number });
        }
    }
    let lane_writers = found
        .into_iter()
        .enumerate()
        .map(|(index, found)| LaneWriter::new(found.lane, index, found.active, found.last_number))
        .collect();
    let mut maintenance = Maintenance::new(Arc::clone(&shared), checkpoint, watermarks);
    maintenance.measure();
    shared.fill_index_newest();
    start(shared, lock, (jobs, queue), work, lane_writers, maintenance)
}

/// The files of a store that all its lanes share.
struct StoreFiles {
    checkpoint: TailCheckpoint,
    watermarks: Watermarks,
    ballast: Ballast,
    quarantine: Quarantine,
    index: DuplicateIndex,
}

impl StoreFiles {
    fn open(
        settings: &OutboxSettings,
        keys: &Keyring,
        descriptor: &mut Descriptor,
        alarms: &mut Vec<OutboxAlarm>,
    ) -> Result<Self, OpenError> {
        let directory = &settings.directory;
        let path = directory.join("sidecar");
        let checkpoint = TailCheckpoint::open(&path).map_err(failed("open", &path))?;
        let path = directory.join("marks");
        let watermarks = Watermarks::open(&path).map_err(failed("open", &path))?;
        let path = directory.join("ballast");
        let ballast =
            Ballast::open(&path, settings.segment_bytes.saturating_mul(4)).map_err(failed("open", &path))?;
        let path = directory.join("quarantine");
        let quarantine =
            open_quarantine(&path, keys, settings.quarantine_bytes).map_err(failed("open", &path))?;
        // `FORMAT` must name a new key before it seals anything: here, and again later with the lanes' first positions.
        if descriptor.begin_key(&keys.present().id(), quarantine.last_id() + 1) {
            descriptor.save(directory).map_err(failed("write", &directory.join("FORMAT")))?;
            let detail =
                format!("new records are sealed with outbox key {} from now on", keys.present().id());
            tracing::info!(key = keys.present().id(), "New records are sealed with another outbox key");
            alarms.push(OutboxAlarm { code: "key.rotated", detail });
        }
        let path = directory.join("index");
        let index_key = index_key(&path, keys, descriptor.first_key()).map_err(failed("open", &path))?;
        let index = DuplicateIndex::open(&path, &index_key).map_err(failed("open", &path))?;
        Ok(Self { checkpoint, watermarks, ballast, quarantine, index })
    }

    fn tell_of_damage(&self, alarms: &mut Vec<OutboxAlarm>) {
        for (damaged, code, detail) in [
            (
                self.checkpoint.was_damaged(),
                "damaged",
                "the tail checkpoint (file sidecar) was damaged and recreated: a tail lost before now would not show",
            ),
            (
                self.watermarks.was_damaged(),
                "damaged",
                "the watermarks (file marks) were damaged and recreated: confirmed transactions may be sent once more",
            ),
            (
                self.index.was_rebuilt(),
                "index.rebuilt",
                "the duplicate index was damaged and is rebuilt from the outbox",
            ),
        ] {
            if damaged {
                tracing::warn!(code, detail, "A damaged file of the store was recreated");
                alarms.push(OutboxAlarm { code, detail: detail.to_owned() });
            }
        }
    }
}

fn start(
    shared: Arc<SharedOutbox>,
    lock: File,
    (jobs, queue): (Sender<Job>, Receiver<Job>),
    work: Receiver<Task>,
    lane_writers: Vec<LaneWriter>,
    maintenance: Maintenance,
) -> Result<Running, OpenError> {
    let (stop_maintenance, maintenance_stopped) = channel();
    let (barriers, wanted) = channel();
    let (comparer, compared) = channel();
    let writer = Writer::new(Arc::clone(&shared), queue, lane_writers, barriers, comparer);
    let (barrier_ended, back) = (jobs.clone(), jobs.clone());
    let comparing = Arc::clone(&shared);
    let worker_shared = Arc::clone(&shared);
    let threads = vec![
        spawn("outbox-writer", &shared, move || writer.run())?,
        spawn("outbox-fsync", &shared, move || fsync_worker::run(&wanted, &barrier_ended))?,
        spawn("outbox-comparer", &shared, move || duplicates::run(&comparing, &compared, &back))?,
        spawn("outbox-segment", &shared, move || segment_worker::run(&worker_shared, &work))?,
        spawn("outbox-maintain", &shared, move || maintenance::run(maintenance, &maintenance_stopped))?,
    ];
    Ok(Running::new(shared, jobs, stop_maintenance, threads, lock))
}

fn open_quarantine(directory: &Path, keys: &Keyring, limit_bytes: u64) -> io::Result<Quarantine> {
    let quarantine = Quarantine::open(directory, &keys.present().derived("quarantine"), limit_bytes)?;
    keys.iter()
        .skip(1)
        .try_fold(quarantine, |quarantine, key| quarantine.also_opening(&key.derived("quarantine")))
}
