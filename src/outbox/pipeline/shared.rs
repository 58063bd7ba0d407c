//! What the outbox's threads share: settings, lanes, counters, and the list of alarms.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use pgw_core::delivery::Numbering;
use pgw_core::transaction::{Clock, Lane, Position};

use crate::crypt::key_use::KeyPeriod;
use crate::crypt::seal::Sealer;
use crate::dedup::fingerprint::Fingerprinter;
use crate::dedup::index::DuplicateIndex;
use crate::errors::Refusal;
use crate::lock::locked;
use crate::pipeline::admission::{Admission, DiskSpace, SpaceLimits};
use crate::pipeline::jobs::{Job, Task};
use crate::pipeline::lane::SharedLane;
use crate::pipeline::latency::Latency;
use crate::pipeline::space::Ballast;
use crate::quarantine::Quarantine;
use crate::state::lane_epochs::LaneEpochs;
use crate::state::layout::lane_file;
use crate::types::{Accepted, OutboxAlarm, OutboxSettings, Snapshot};

/// Attributes of senders of which an event says that they contained an NHS number, from the start on.
const MOST_WITHHELD: usize = 1024;
/// A released ballast is not taken again for at least this long.
const BALLAST_PAUSE: Duration = Duration::from_secs(30);
/// Alarms that are kept until health fetches them; beyond this the oldest are dropped.
const MOST_ALARMS: usize = 1000;

/// The parts of an outbox.
pub(crate) struct Parts {
    pub(crate) settings: OutboxSettings,
    pub(crate) sealer: Sealer,
    /// Which key has sealed what.
    pub(crate) periods: Vec<KeyPeriod>,
    pub(crate) lanes: Vec<Arc<SharedLane>>,
    pub(crate) index: DuplicateIndex,
    pub(crate) quarantine: Quarantine,
    pub(crate) ballast: Ballast,
    pub(crate) alarms: Vec<OutboxAlarm>,
}

/// Shared by the handle, the writer, the maintenance thread and the segment worker.
pub(crate) struct SharedOutbox {
    pub(crate) settings: OutboxSettings,
    pub(crate) sealer: Sealer,
    /// Which key has sealed what.
    pub(crate) periods: Vec<KeyPeriod>,
    pub(crate) lanes: Vec<Arc<SharedLane>>,
    pub(crate) fingerprinter: Fingerprinter,
    pub(crate) index: Mutex<DuplicateIndex>,
    pub(crate) quarantine: Quarantine,
    pub(crate) repeated: AtomicU64,
    pub(crate) queued_bytes: AtomicU64,
    tasks: Sender<Task>,
    jobs: Mutex<Option<Sender<Job>>>,
    ballast: Ballast,
    released: Mutex<Option<Instant>>,
    admission: Mutex<Admission>,
    store_bytes: AtomicU64,
    free_bytes: AtomicU64,
    alarms: Mutex<VecDeque<OutboxAlarm>>,
    latency: Mutex<Latency>,
    clock: AtomicU8,
    /// Why a lane cannot be stored, by its name.
    troubles: Mutex<BTreeMap<Lane, String>>,
    thread_ended: AtomicBool,
    /// Attributes, each with its sender's fingerprint, of which was said that they contained an NHS number.
    withheld: Mutex<BTreeSet<(&'static str, u64)>>,
}

impl SharedOutbox {
    pub(crate) fn new(parts: Parts, tasks: Sender<Task>, jobs: Sender<Job>) -> Self {
        let Parts { settings, sealer, periods, lanes, index, quarantine, ballast, alarms } = parts;
        let limits = SpaceLimits {
            limit_bytes: settings.limit_bytes,
            min_free_bytes: settings.min_free_bytes,
            min_free_percent: settings.min_free_percent,
        };
        Self {
            settings,
            sealer,
            periods,
            lanes,
            fingerprinter: index.fingerprinter(),
            index: Mutex::new(index),
            quarantine,
            repeated: AtomicU64::new(0),
            queued_bytes: AtomicU64::new(0),
            tasks,
            jobs: Mutex::new(Some(jobs)),
            ballast,
            released: Mutex::new(None),
            admission: Mutex::new(Admission::new(limits)),
            store_bytes: AtomicU64::new(0),
            free_bytes: AtomicU64::new(0),
            alarms: Mutex::new(alarms.into()),
            latency: Mutex::new(Latency::new(Instant::now())),
            clock: AtomicU8::new(2),
            troubles: Mutex::default(),
            thread_ended: AtomicBool::new(false),
            withheld: Mutex::default(),
        }
    }

    /// The lane of this name, and its index.
    pub(crate) fn lane(&self, name: &Lane) -> Option<(usize, &Arc<SharedLane>)> {
        self.lanes.iter().enumerate().find(|(_, lane)| lane.name == *name)
    }

    /// Sends work to the segment worker. It ends only when the outbox ends.
    pub(crate) fn task(&self, task: Task) {
        let _ = self.tasks.send(task);
    }

    /// Raises an alarm.
    pub(crate) fn raise(&self, code: &'static str, detail: String) {
        let mut alarms = locked(&self.alarms);
        if alarms.len() >= MOST_ALARMS {
            alarms.pop_front();
        }
        alarms.push_back(OutboxAlarm { code, detail });
    }

    /// Names the first transaction of which an attribute contained an NHS number, once for each attribute of each sender: somebody
    /// has to correct every one of them. The doors count them all.
    pub(crate) fn report_withheld(
        &self,
        attributes: &[&'static str],
        sender: u64,
        lane: usize,
        accepted: Accepted,
    ) {
        let is_new = |attribute: &&'static str| {
            let mut said = locked(&self.withheld);
            said.len() < MOST_WITHHELD && said.insert((*attribute, sender))
        };
        let new: Vec<&str> = attributes.iter().copied().filter(is_new).collect();
        if let (false, Some(lane)) = (new.is_empty(), self.lanes.get(lane)) {
            let (id, position, lane, attributes) =
                (accepted.id, accepted.position, &lane.name, new.join(", "));
            let detail = format!(
                "{attributes} of transaction {id}, position {position} of lane {lane}, contained a valid NHS number, which stays in the body alone; further ones of this sender are only counted"
            );
            self.raise("envelope.nhs_number", detail);
        }
    }

    pub(crate) fn take_alarms(&self) -> Vec<OutboxAlarm> {
        std::mem::take(&mut *locked(&self.alarms)).into()
    }

    /// How reliable the clock is, as the daemon last said.
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

    /// Notes answered submissions: their bytes leave the queue's count, and accepted ones count for the latency.
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

    /// Whether there is room for new work in this lane.
    ///
    /// # Errors
    /// [`Refusal::Full`] with the reason.
    pub(crate) fn admits(&self, lane: usize) -> Result<(), Refusal> {
        let urgent = self.lanes.get(lane).is_some_and(|lane| lane.urgent);
        locked(&self.admission).admit(urgent).map_err(|none| Refusal::Full(none.to_string()))
    }

    /// Why ordinary lanes are refused now, if they are.
    pub(crate) fn refusing(&self) -> Option<String> {
        locked(&self.admission).admit(false).err().map(|none| none.to_string())
    }

    /// Notes that a lane cannot be stored, or can be again.
    pub(crate) fn in_trouble(&self, lane: &Lane, trouble: Option<&str>) {
        let mut troubles = locked(&self.troubles);
        match trouble {
            Some(trouble) => drop(troubles.insert(lane.clone(), trouble.to_owned())),
            None => drop(troubles.remove(lane)),
        }
    }

    fn trouble(&self) -> Option<String> {
        let troubles = locked(&self.troubles);
        troubles.iter().next().map(|(lane, trouble)| format!("lane {lane} cannot be stored: {trouble}"))
    }

    /// Notes that a thread of the outbox has ended.
    pub(crate) fn thread_ended(&self) {
        self.thread_ended.store(true, Ordering::SeqCst);
    }

    pub(crate) fn all_threads_run(&self) -> bool {
        !self.thread_ended.load(Ordering::SeqCst)
    }

    /// Takes a measurement of the disk.
    pub(crate) fn measured(&self, space: DiskSpace) {
        let changed = {
            let mut admission = locked(&self.admission);
            admission.handle(space).then(|| admission.admit(false).err())
        };
        self.free_bytes.store(space.free_bytes, Ordering::Relaxed);
        match changed {
            Some(Some(reason)) => {
                tracing::warn!(
                    free_bytes = space.free_bytes,
                    store_bytes = space.store_bytes,
                    "The store is full and refuses new work"
                );
                self.raise("store.low", reason.to_string());
            }
            Some(None) => {
                tracing::info!(free_bytes = space.free_bytes, "Store has room again");
                self.raise("store.room", "the store has room again".into());
            }
            None => {}
        }
        // Not at once: the outbox should use the released space first.
        let waits = locked(&self.released).is_some_and(|at| at.elapsed() < BALLAST_PAUSE);
        if self.refusing().is_none()
            && !waits
            && let Err(error) = self.ballast.restore(space.free_bytes)
        {
            tracing::debug!(error = %error, "Ballast could not be restored");
        }
    }

    /// The disk is full: releases the ballast, so that the store can open and drain.
    pub(crate) fn out_of_room(&self) {
        if self.ballast.is_held().unwrap_or(false) && self.ballast.release().is_ok() {
            locked(&self.released).replace(Instant::now());
            tracing::warn!("The disk is full; the ballast was released");
            self.raise(
                "store.ballast",
                "the disk is full; the reserve for opening and draining was released".into(),
            );
        }
    }

    pub(crate) fn set_store_bytes(&self, bytes: u64) {
        self.store_bytes.store(bytes, Ordering::Relaxed);
    }

    pub(crate) fn store_bytes(&self) -> u64 {
        self.store_bytes.load(Ordering::Relaxed)
    }

    /// Sends a job to the writer.
    pub(crate) fn job(&self, job: Job) {
        if let Some(jobs) = locked(&self.jobs).as_ref() {
            let _ = jobs.send(job);
        }
    }

    /// As [`crate::handle::Outbox::snapshot`].
    pub(crate) fn snapshot(&self) -> Snapshot {
        Snapshot {
            lanes: self.lanes.iter().map(|lane| (lane.name.clone(), lane.state().counts())).collect(),
            store_bytes: self.store_bytes(),
            limit_bytes: self.settings.limit_bytes,
            disk_free_bytes: self.free_bytes.load(Ordering::Relaxed),
            quarantined: self.quarantine.count() as u64,
            repeated_total: self.repeated.load(Ordering::Relaxed),
            refusing: self.refusing().or_else(|| self.trouble()),
            accept_seconds_p99: locked(&self.latency).p99(Instant::now()),
        }
    }

    /// Changes a lane's epochs, durably: no segment and no other thread takes part. Returns them as they are then.
    ///
    /// # Errors
    /// The file could not be written; nothing has changed.
    pub(crate) fn renumber(
        &self,
        lane: &SharedLane,
        change: impl FnOnce(&Numbering) -> Numbering,
    ) -> std::io::Result<Numbering> {
        let _one_at_a_time = locked(&lane.renumbering);
        let (numbering, lost_at_hub) = {
            let state = lane.state();
            (change(&state.numbering), state.lost_at_hub.clone())
        };
        let content = LaneEpochs::new(lane.lane_id, numbering.clone()).with_lost_at_hub(lost_at_hub);
        content.save(&self.settings.directory, &lane.name)?;
        lane.state().numbering = numbering.clone();
        Ok(numbering)
    }

    /// Takes in what the hub has lost of a lane; returns how many positions more than before. If it cannot be written it counts
    /// until the next start, and the first answer after that says it again.
    pub(crate) fn lost_at_hub(&self, lane: &SharedLane, lost: &[(Position, Position)]) -> u64 {
        let count = |ranges: &[(Position, Position)]| ranges.iter().map(|(a, b)| b - a + 1).sum::<u64>();
        let _one_at_a_time = locked(&lane.renumbering);
        let (before, content) = {
            let mut state = lane.state();
            let before = std::mem::replace(&mut state.lost_at_hub, lost.to_vec());
            let epochs = LaneEpochs::new(lane.lane_id, state.numbering.clone());
            (before, epochs.with_lost_at_hub(lost.to_vec()))
        };
        if before == lost {
            return 0;
        }
        if let Err(error) = content.save(&self.settings.directory, &lane.name) {
            tracing::error!(lane = %lane.name, %error, "It cannot be written what the hub has lost of a lane");
        }
        count(lost).saturating_sub(count(&before))
    }

    /// A small file of a lane.
    pub(crate) fn lane_file(&self, lane: &Lane, name: &str) -> PathBuf {
        lane_file(&self.settings.directory, lane, name)
    }
}
