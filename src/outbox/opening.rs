//! Starting and stopping: opens the parts in their order, starts the threads, ends them again.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use super::claim::{Retirement, failed};
use super::index::DuplicateIndex;
use super::index_key::index_key;
use super::keeper::Keeper;
use super::keyring::Keyring;
use super::lane::locked;
use super::marks::Marks;
use super::pen::Pen;
use super::quarantine::Quarantine;
use super::recovery::Beside;
use super::seal::Sealer;
use super::shared::{Chore, Parts, Shared};
use super::sidecar::Sidecar;
use super::space::Ballast;
use super::writer::{Job, Writer};
use super::{
    Notable, OpenError, Refusal, Settings, claim, duplicates, keeper, maker, recovery, syncer, trash,
};

/// An outbox whose threads run.
pub(crate) struct Running {
    pub(crate) shared: Arc<Shared>,
    pub(crate) jobs: Sender<Job>,
    keeper: Sender<()>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    stopping: AtomicBool,
    lock: Mutex<Option<File>>,
}

/// As [`super::Outbox::open`].
pub(crate) fn open(settings: Settings, keys: &Keyring, retirement: Retirement) -> Result<Running, OpenError> {
    let directory = settings.directory.clone();
    let (lock, mut format) = claim::claim(&settings, keys, retirement)?;
    let mut notables = Vec::new();
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
    // Before anything is sealed with a new key the store names it: here, and below where its lanes begin.
    let format_path = directory.join("FORMAT");
    if format.begin_key(&keys.present().id(), quarantine.last_id() + 1) {
        format.save(&directory).map_err(failed("write", &format_path))?;
        let detail = format!("from now on is sealed with the outbox key {}", keys.present().id());
        tracing::info!(key = keys.present().id(), "Sealing with another outbox key");
        notables.push(Notable { code: "key.rotated", detail });
    }
    let path = directory.join("index");
    let index_key = index_key(&path, keys, format.first_key()).map_err(failed("open", &path))?;
    let index = DuplicateIndex::open(&path, &index_key).map_err(failed("open", &path))?;
    for (damaged, code, detail) in [
        (
            sidecar.was_damaged(),
            "damaged",
            "the sidecar was damaged: a tail that the disk has lost would not show",
        ),
        (
            marks.was_damaged(),
            "damaged",
            "the confirmed marks were damaged: what the hub has may be sent once more",
        ),
        (index.was_rebuilt(), "index.rebuilt", "the duplicate index is made again from what is kept"),
    ] {
        if damaged {
            tracing::warn!(code, detail, "A file of the store had to be begun anew");
            notables.push(Notable { code, detail: detail.to_owned() });
        }
    }

    let sealer = Sealer::new(keys);
    let ids = claim::lane_ids(&settings, &mut notables)?;
    let mut found = Vec::new();
    for (lane, id) in settings.lanes.iter().zip(ids) {
        let beside = Beside {
            settings: &settings,
            sealer: &sealer,
            sidecar: &sidecar,
            marks: &marks,
            quarantine: &quarantine,
            ballast: &ballast,
        };
        found.push(recovery::open_lane(&beside, lane, id, &mut notables)?);
    }
    let next = found.iter().map(|found| (found.lane.name.clone(), found.lane.state().tail + 1));
    if format.begin_lanes(next) {
        format.save(&directory).map_err(failed("write", &format_path))?;
    }
    let (chores, work) = channel();
    let (jobs, queue) = channel();
    let lanes = found.iter().map(|found| Arc::clone(&found.lane)).collect();
    let parts =
        Parts { settings, sealer, periods: format.periods(), lanes, index, quarantine, ballast, notables };
    let shared = Arc::new(Shared::new(parts, chores, jobs.clone()));
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
    let mut keeper = Keeper::new(Arc::clone(&shared), sidecar, marks);
    keeper.measure();
    shared.fill_index_newest();

    let (stop_keeper, keeper_stopped) = channel();
    let (syncer, wanted) = channel();
    let (comparer, compared) = channel();
    let writer = Writer::new(Arc::clone(&shared), queue, pens, syncer, comparer);
    let (settled, back) = (jobs.clone(), jobs.clone());
    let comparing = Arc::clone(&shared);
    let maker_shared = Arc::clone(&shared);
    let threads = vec![
        spawn("outbox-writer", &shared, move || writer.run())?,
        spawn("outbox-syncer", &shared, move || syncer::run(&wanted, &settled))?,
        spawn("outbox-comparer", &shared, move || duplicates::run(&comparing, &compared, &back))?,
        spawn("outbox-maker", &shared, move || maker::run(&maker_shared, &work))?,
        spawn("outbox-keeper", &shared, move || keeper::run(keeper, &keeper_stopped))?,
    ];
    Ok(Running {
        shared,
        jobs,
        keeper: stop_keeper,
        threads: Mutex::new(threads),
        stopping: AtomicBool::new(false),
        lock: Mutex::new(Some(lock)),
    })
}

fn open_quarantine(directory: &Path, keys: &Keyring, limit_bytes: u64) -> io::Result<Quarantine> {
    let quarantine = Quarantine::open(directory, &keys.present().derived("quarantine"), limit_bytes)?;
    keys.iter()
        .skip(1)
        .try_fold(quarantine, |quarantine, key| quarantine.also_opening(&key.derived("quarantine")))
}

/// Tells of its thread's end, however that comes.
struct Told(Arc<Shared>);

impl Drop for Told {
    fn drop(&mut self) {
        self.0.thread_ended();
    }
}

fn spawn(
    name: &str,
    shared: &Arc<Shared>,
    body: impl FnOnce() + Send + 'static,
) -> Result<JoinHandle<()>, OpenError> {
    let told = Told(Arc::clone(shared));
    let run = move || {
        let _told = told;
        body();
    };
    let directory = &shared.settings.directory;
    std::thread::Builder::new().name(name.into()).spawn(run).map_err(failed("start a thread for", directory))
}

impl Running {
    /// Why nobody answers any more.
    pub(crate) fn ended(&self) -> Refusal {
        if self.stopping.load(Ordering::SeqCst) {
            Refusal::Stopping
        } else {
            tracing::error!("Writer has ended, the outbox must be opened again");
            Refusal::Trouble("the writer has ended".into())
        }
    }

    /// Ends the threads in the order in which they feed each other. Once; later calls do nothing.
    pub(crate) fn stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
        let mut threads = std::mem::take(&mut *locked(&self.threads)).into_iter();
        let _ = self.jobs.send(Job::Stop);
        let (writer, syncer, comparer) = (threads.next(), threads.next(), threads.next());
        let (maker, keeper) = (threads.next(), threads.next());
        let join = |thread: Option<JoinHandle<()>>| {
            if let Some(thread) = thread {
                let _ = thread.join();
            }
        };
        join(writer);
        join(syncer);
        join(comparer);
        let _ = self.keeper.send(());
        join(keeper);
        self.shared.chore(Chore::Stop);
        join(maker);
        for lane in &self.shared.lanes {
            lane.handles.clear();
            if let Some((ordinal, segment)) = locked(&lane.ahead).take() {
                drop(segment);
                let _ = trash::discard(&self.shared.settings.directory, &lane.segment_directory(ordinal));
            }
        }
        drop(locked(&self.lock).take());
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop();
    }
}
