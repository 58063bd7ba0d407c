//! From what lies on the disk to running threads: opens the parts in their order, then the lanes, then starts the threads.

use self::lane::{Beside, Found};
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use crate::crypt::index_key::index_key;
use crate::crypt::keyring::Keyring;
use crate::crypt::seal::Sealer;
use crate::dedup::index::DuplicateIndex;
use crate::descriptor;
use crate::descriptor::{Format, Retirement, failed};
use crate::errors::OpenError;
use crate::pipeline::jobs::{Chore, Job};
use crate::pipeline::lane_writer::Pen;
use crate::pipeline::maintenance::Keeper;
use crate::pipeline::running::{Running, spawn};
use crate::pipeline::shared::{Parts, Shared};
use crate::pipeline::space::Ballast;
use crate::pipeline::startup::lane::open_lane;
use crate::pipeline::writer::Writer;
use crate::pipeline::{duplicates, fsync_worker, maintenance, segment_worker};
use crate::quarantine::Quarantine;
use crate::state::checkpoint::Sidecar;
use crate::state::watermarks::Marks;
use crate::types::{Notable, Settings};

mod lane;
mod segments;
mod tail;

/// As [`crate::handle::Outbox::open`].
pub(crate) fn open(settings: Settings, keys: &Keyring, retirement: Retirement) -> Result<Running, OpenError> {
    let (lock, mut format) = descriptor::claim(&settings, keys, retirement)?;
    let mut notables = Vec::new();
    let files = StoreFiles::open(&settings, keys, &mut format, &mut notables)?;
    files.tell_of_damage(&mut notables);

    let sealer = Sealer::new(keys);
    let ids = descriptor::lane_ids(&settings, &mut notables)?;
    let mut found = Vec::new();
    for (lane, id) in settings.lanes.iter().zip(ids) {
        let beside = Beside {
            settings: &settings,
            sealer: &sealer,
            sidecar: &files.sidecar,
            marks: &files.marks,
            quarantine: &files.quarantine,
            ballast: &files.ballast,
        };
        found.push(open_lane(&beside, lane, id, &mut notables)?);
    }
    let next = found.iter().map(|found| (found.lane.name.clone(), found.lane.state().tail + 1));
    if format.begin_lanes(next) {
        let path = settings.directory.join("FORMAT");
        format.save(&settings.directory).map_err(failed("write", &path))?;
    }
    let StoreFiles { sidecar, marks, ballast, quarantine, index } = files;
    let (chores, work) = channel();
    let (jobs, queue) = channel();
    let lanes = found.iter().map(|found| Arc::clone(&found.lane)).collect();
    let parts =
        Parts { settings, sealer, periods: format.periods(), lanes, index, quarantine, ballast, notables };
    let shared = Arc::new(Shared::new(parts, chores, jobs.clone()));
    let pens = pens(&shared, found)?;
    let mut keeper = Keeper::new(Arc::clone(&shared), sidecar, marks);
    keeper.measure();
    shared.fill_index_newest();
    start(shared, lock, (jobs, queue), work, pens, keeper)
}

/// The files of a store that all its lanes share.
struct StoreFiles {
    sidecar: Sidecar,
    marks: Marks,
    ballast: Ballast,
    quarantine: Quarantine,
    index: DuplicateIndex,
}

impl StoreFiles {
    fn open(
        settings: &Settings,
        keys: &Keyring,
        format: &mut Format,
        notables: &mut Vec<Notable>,
    ) -> Result<Self, OpenError> {
        let directory = &settings.directory;
        let path = directory.join("sidecar");
        let sidecar = Sidecar::open(&path).map_err(failed("open", &path))?;
        let path = directory.join("marks");
        let marks = Marks::open(&path).map_err(failed("open", &path))?;
        let path = directory.join("ballast");
        let ballast =
            Ballast::open(&path, settings.segment_bytes.saturating_mul(4)).map_err(failed("open", &path))?;
        let path = directory.join("quarantine");
        let quarantine =
            open_quarantine(&path, keys, settings.quarantine_bytes).map_err(failed("open", &path))?;
        // Before anything is sealed with a new key the store names it: here, and later where its lanes begin.
        if format.begin_key(&keys.present().id(), quarantine.last_id() + 1) {
            format.save(directory).map_err(failed("write", &directory.join("FORMAT")))?;
            let detail = format!("from now on is sealed with the outbox key {}", keys.present().id());
            tracing::info!(key = keys.present().id(), "Sealing with another outbox key");
            notables.push(Notable { code: "key.rotated", detail });
        }
        let path = directory.join("index");
        let index_key = index_key(&path, keys, format.first_key()).map_err(failed("open", &path))?;
        let index = DuplicateIndex::open(&path, &index_key).map_err(failed("open", &path))?;
        Ok(Self { sidecar, marks, ballast, quarantine, index })
    }

    fn tell_of_damage(&self, notables: &mut Vec<Notable>) {
        for (damaged, code, detail) in [
            (
                self.sidecar.was_damaged(),
                "damaged",
                "the sidecar was damaged: a tail that the disk has lost would not show",
            ),
            (
                self.marks.was_damaged(),
                "damaged",
                "the confirmed marks were damaged: what the hub has may be sent once more",
            ),
            (
                self.index.was_rebuilt(),
                "index.rebuilt",
                "the duplicate index is made again from what is kept",
            ),
        ] {
            if damaged {
                tracing::warn!(code, detail, "A file of the store had to be begun anew");
                notables.push(Notable { code, detail: detail.to_owned() });
            }
        }
    }
}

/// The writer's state of each lane. Where the last record is of an older epoch, its chain value is computed now.
fn pens(shared: &Shared, found: Vec<Found>) -> Result<Vec<Pen>, OpenError> {
    let mut pens = Vec::new();
    for (index, found) in found.into_iter().enumerate() {
        if found.chain_unknown {
            let (numbering, tail) = {
                let state = found.lane.state();
                (state.numbering.clone(), state.tail)
            };
            let chain = shared
                .chain_in(&found.lane, &numbering, tail)
                .map_err(|error| failed("read", &found.lane.directory)(io::Error::other(error)))?;
            found.lane.state().chain = chain;
        }
        pens.push(Pen::new(found.lane, index, found.active, found.last_ordinal));
    }
    Ok(pens)
}

fn start(
    shared: Arc<Shared>,
    lock: File,
    (jobs, queue): (Sender<Job>, Receiver<Job>),
    work: Receiver<Chore>,
    pens: Vec<Pen>,
    keeper: Keeper,
) -> Result<Running, OpenError> {
    let (stop_keeper, keeper_stopped) = channel();
    let (syncer, wanted) = channel();
    let (comparer, compared) = channel();
    let writer = Writer::new(Arc::clone(&shared), queue, pens, syncer, comparer);
    let (settled, back) = (jobs.clone(), jobs.clone());
    let comparing = Arc::clone(&shared);
    let maker_shared = Arc::clone(&shared);
    let threads = vec![
        spawn("outbox-writer", &shared, move || writer.run())?,
        spawn("outbox-syncer", &shared, move || fsync_worker::run(&wanted, &settled))?,
        spawn("outbox-comparer", &shared, move || duplicates::run(&comparing, &compared, &back))?,
        spawn("outbox-maker", &shared, move || segment_worker::run(&maker_shared, &work))?,
        spawn("outbox-keeper", &shared, move || maintenance::run(keeper, &keeper_stopped))?,
    ];
    Ok(Running::new(shared, jobs, stop_keeper, threads, lock))
}

fn open_quarantine(directory: &Path, keys: &Keyring, limit_bytes: u64) -> io::Result<Quarantine> {
    let quarantine = Quarantine::open(directory, &keys.present().derived("quarantine"), limit_bytes)?;
    keys.iter()
        .skip(1)
        .try_fold(quarantine, |quarantine, key| quarantine.also_opening(&key.derived("quarantine")))
}
