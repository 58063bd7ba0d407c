//! The handle on an open outbox, with every call that its users make; [`numbering`]: those about its epochs; [`readmit`]: those
//! about written-off records that were found.

mod numbering;
pub(crate) mod readmit;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use pgw_core::chain::{ChainValue, Digest};
use pgw_core::transaction::{Clock, Lane, LaneName, Position};
use pgw_core::wire::entry::REASON_BYTES;
use tokio::sync::{oneshot, watch};

use crate::crypt::key_use::{self, KeyUse, SealedRanges};
use crate::crypt::keyring::Keyring;
use crate::descriptor::{self, Retirement};
use crate::errors::{OpenError, ReadError, Refusal, VoidError};
use crate::guard::segment;
use crate::lock::locked;
use crate::pipeline::jobs::{FirstAcceptance, Job, Queued};
use crate::pipeline::lane::{Answer, SharedLane};
use crate::pipeline::running::Running;
use crate::pipeline::shared::SharedOutbox;
use crate::pipeline::startup;
use crate::quarantine::QuarantineEntry;
use crate::submission::Submission;
use crate::types::{
    Accepted, ChainedRecord, OutboxAlarm, OutboxSettings, Released, Snapshot, Stored, Watermark,
};

/// A submission's cost in the queue besides its body.
const SUBMISSION_BYTES: u64 = 512;

/// A handle on the open outbox; clones share it. Dropping the last one closes it.
#[derive(Clone)]
pub struct Outbox {
    running: Arc<Running>,
}

impl Outbox {
    /// Opens or creates the store, recovers it after a crash, and starts its threads.
    ///
    /// Blocking: call it before the runtime, or from `spawn_blocking`.
    ///
    /// # Errors
    /// [`OpenError`]; a damaged segment is no error but a [`OutboxAlarm`].
    pub fn open(settings: OutboxSettings, keys: impl Into<Keyring>) -> Result<Self, OpenError> {
        Self::started(settings, &keys.into(), Retirement::Refused)
    }

    /// As [`Outbox::open`], for inspecting a retired store. Nothing may be submitted.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open_retired(settings: OutboxSettings, keys: Keyring) -> Result<Self, OpenError> {
        Self::started(settings, &keys, Retirement::Ignored)
    }

    pub(crate) fn started(
        settings: OutboxSettings,
        keys: &Keyring,
        retirement: Retirement,
    ) -> Result<Self, OpenError> {
        Ok(Self { running: Arc::new(startup::open(settings, keys, retirement)?) })
    }

    pub(crate) fn shared(&self) -> &Arc<SharedOutbox> {
        &self.running.shared
    }

    /// The name of one of its lanes, with practice and gateway.
    #[must_use]
    pub fn lane_name(&self, lane: &Lane) -> LaneName {
        self.shared().settings.lane_name(lane)
    }

    pub(crate) fn lane(&self, lane: &Lane) -> Option<&Arc<SharedLane>> {
        self.shared().lane(lane).map(|(_, lane)| lane)
    }

    /// Stores a transaction, and returns when it is behind the barrier. Cancelling the call does not take it back.
    ///
    /// # Errors
    /// [`Refusal`]: nothing was promised.
    pub async fn submit(&self, mut submission: Submission) -> Result<Accepted, Refusal> {
        let shared = self.shared();
        let Some((lane, _)) = shared.lane(&submission.lane) else {
            return Err(Refusal::UnknownLane(submission.lane));
        };
        let bytes = submission.body.len() as u64;
        let limit = shared.settings.max_body_bytes;
        if bytes > limit {
            return Err(Refusal::TooLarge { bytes, limit });
        }
        submission.check_texts()?;
        let withheld = submission.withhold_numbers(&shared.settings.types);
        let sender = shared.fingerprinter.fingerprints(&submission.sender, "", b"").key;
        let accepted = self.enqueue(lane, submission, withheld.sender, None).await?;
        shared.report_withheld(&withheld.names, sender, lane, accepted);
        Ok(Accepted { withheld: !withheld.names.is_empty(), ..accepted })
    }

    /// Hands it to the writer, and waits for its answer.
    async fn enqueue(
        &self,
        lane: usize,
        submission: Submission,
        wire_sender: Option<String>,
        first: Option<FirstAcceptance>,
    ) -> Result<Accepted, Refusal> {
        let entered = Instant::now();
        let (shared, bytes) = (self.shared(), submission.body.len() as u64);
        let cost = bytes + SUBMISSION_BYTES;
        let queued = shared.queued_bytes.fetch_add(cost, Ordering::Relaxed);
        // An empty queue takes any size, or a limit below the largest body would refuse it for ever.
        if queued > 0 && queued + cost > shared.settings.queue_bytes {
            shared.queued_bytes.fetch_sub(cost, Ordering::Relaxed);
            return Err(Refusal::Busy);
        }
        let fingerprints = shared.fingerprinter.fingerprints(
            &submission.sender,
            &submission.key,
            submission.body.as_bytes(),
        );
        let (answer, outcome) = oneshot::channel();
        let compared = BTreeMap::new();
        let queued =
            Queued { lane, submission, wire_sender, first, fingerprints, cost, entered, answer, compared };
        let job = Job::Submit(Box::new(queued));
        if self.running.jobs.send(job).is_err() {
            shared.queued_bytes.fetch_sub(cost, Ordering::Relaxed);
            return Err(self.running.ended());
        }
        outcome.await.unwrap_or_else(|_| Err(self.running.ended()))
    }

    /// The last position behind the barrier, as it grows.
    #[must_use]
    pub fn tail(&self, lane: &Lane) -> Option<watch::Receiver<Position>> {
        self.lane(lane).map(|lane| lane.tail.subscribe())
    }

    /// Reads records behind the barrier, in order: at least one record if there is one at `from`, then up to
    /// `max_records` and about `max_bytes`. Blocking: has a thread of its own.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn read(
        &self,
        lane: &Lane,
        from: Position,
        max_records: usize,
        max_bytes: usize,
    ) -> Result<Vec<Stored>, ReadError> {
        let gone = || ReadError::Gone { lane: lane.clone(), position: from };
        self.shared().read(self.lane(lane).ok_or_else(gone)?, from, max_records, max_bytes)
    }

    /// When a record that this process has accepted was behind its barrier, at the latest: at most a second, or a 32nd of its age,
    /// after it was. `None`: unknown, as of every record from before this start.
    #[must_use]
    pub fn accepted_at(&self, lane: &Lane, position: Position) -> Option<Instant> {
        locked(&self.lane(lane)?.accepted).at_the_latest(position)
    }

    /// The digests of at most `most` positions from `from` on, never beyond the tail; of destroyed and pruned ones too, where
    /// their digest table has them. `None`: unknown. Blocking.
    ///
    /// # Errors
    /// [`ReadError::Trouble`]: the store cannot be read now.
    pub fn digests(
        &self,
        lane: &Lane,
        from: Position,
        most: usize,
    ) -> Result<Vec<Option<Digest>>, ReadError> {
        self.lane(lane).map_or_else(|| Ok(Vec::new()), |lane| self.shared().digests(lane, from, most))
    }

    /// As [`Outbox::read`], with what the records say about the chain over positions instead of their content; a released
    /// position counts as one that can no longer be read. Blocking.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn chained(
        &self,
        lane: &Lane,
        from: Position,
        max_records: usize,
        max_bytes: usize,
    ) -> Result<Vec<ChainedRecord>, ReadError> {
        let gone = || ReadError::Gone { lane: lane.clone(), position: from };
        self.shared().chained(self.lane(lane).ok_or_else(gone)?, from, max_records, max_bytes)
    }

    /// The value of the chain over positions before position 1.
    #[must_use]
    pub fn first_of_positions(&self, lane: &Lane) -> Option<ChainValue> {
        let lane = self.lane(lane)?;
        Some(ChainValue::first_of_positions(&lane.full_name, lane.lane_id))
    }

    /// The value with which the chain over positions continues after `position`, where the true one was lost with its record.
    #[must_use]
    pub fn after_lost_position(&self, lane: &Lane, position: Position) -> Option<ChainValue> {
        let lane = self.lane(lane)?;
        Some(ChainValue::after_lost_position(&lane.full_name, lane.lane_id, position))
    }

    /// The value of the chain over positions at the tail.
    #[must_use]
    pub fn chain_of_positions(&self, lane: &Lane) -> Option<ChainValue> {
        Some(self.lane(lane)?.state().chain)
    }

    /// The watermark as last recorded.
    #[must_use]
    pub fn watermark(&self, lane: &Lane) -> Option<Watermark> {
        Some(self.lane(lane)?.state().watermark)
    }

    /// Records the watermark (it may go back when a hub was restored). Cheap, never blocks: another thread writes it. `asked`
    /// is when the hub was asked whose answer says so: for a minute from then on, what it covers may be pruned. `None`: it is
    /// no answer.
    pub fn confirm(
        &self,
        lane: &Lane,
        watermark: Watermark,
        backed_up_through: Option<Position>,
        asked: Option<Instant>,
    ) {
        if let Some(lane) = self.lane(lane) {
            let mut state = lane.state();
            if watermark.position < state.watermark.position {
                // What was answered before it went back counts no more.
                state.answer = None;
            }
            state.confirm(watermark);
            state.backed_up_through = backed_up_through;
            state.watermark_stale = true;
            if let Some(asked) = asked {
                state.answer = Some(Answer { through: watermark.position, backed_up_through, asked });
            }
        }
    }

    /// What the hub has answered allows no pruning any more, until it answers again.
    pub fn withdraw_answer(&self, lane: &Lane) {
        if let Some(lane) = self.lane(lane) {
            lane.state().answer = None;
        }
    }

    /// Something would be pruned if the hub said once more that it has it.
    #[must_use]
    pub fn wants_answer(&self, lane: &Lane) -> bool {
        self.lane(lane).is_some_and(|lane| lane.state().wants_answer)
    }

    /// Records a watermark from an imported receipt. No hub has answered on a live connection, so nothing is pruned because
    /// of it.
    pub fn confirm_by_file(&self, lane: &Lane, watermark: Watermark) {
        if let Some(lane) = self.lane(lane) {
            let mut state = lane.state();
            state.confirm(watermark);
            state.watermark_stale = true;
        }
    }

    /// The connection has ended. Its answers allow no pruning until the hubs have answered on the next one: they may have been
    /// restored from a backup meanwhile.
    pub fn link_lost(&self) {
        for lane in &self.shared().lanes {
            lane.state().answer = None;
        }
    }

    /// The first position that is still kept (confirmed ones in retention included).
    #[must_use]
    pub fn first_retained(&self, lane: &Lane) -> Option<Position> {
        Some(self.lane(lane)?.state().first_retained())
    }

    /// Keeps refused input, sealed, bounded, with its reason. Blocking. Returns its quarantine id.
    ///
    /// # Errors
    /// [`Refusal`] when there is no room.
    pub fn quarantine(&self, reason: &'static str, source: &str, bytes: &[u8]) -> Result<u64, Refusal> {
        self.shared().quarantine.keep(reason, source, bytes).map_err(|error| {
            if segment::is_full(&error) {
                Refusal::Full(error.to_string())
            } else {
                Refusal::Trouble(error.to_string())
            }
        })
    }

    /// The entries in quarantine, oldest first. Blocking.
    ///
    /// # Errors
    /// [`Refusal::Trouble`]: the directory cannot be read.
    pub fn quarantined(&self) -> Result<Vec<QuarantineEntry>, Refusal> {
        self.shared().quarantine.list().map_err(|error| Refusal::Trouble(error.to_string()))
    }

    /// An entry of the quarantine without its bytes; `None`: there is no such entry. Blocking.
    ///
    /// # Errors
    /// [`Refusal::Trouble`]: it cannot be read.
    pub fn quarantined_entry(&self, id: u64) -> Result<Option<QuarantineEntry>, Refusal> {
        self.shared().quarantine.find(id).map_err(|error| Refusal::Trouble(error.to_string()))
    }

    /// An entry of the quarantine with its bytes; `None`: there is no such entry. Blocking.
    ///
    /// # Errors
    /// [`Refusal::Trouble`]: it is damaged or cannot be read.
    pub fn quarantined_bytes(&self, id: u64) -> Result<Option<(QuarantineEntry, Vec<u8>)>, Refusal> {
        self.shared().quarantine.get(id).map_err(|error| Refusal::Trouble(error.to_string()))
    }

    /// Removes an entry of the quarantine for good, on an operator's order; false: there is no such entry. Blocking.
    ///
    /// # Errors
    /// [`Refusal::Trouble`]: it cannot be removed.
    pub fn discard_quarantined(&self, id: u64) -> Result<bool, Refusal> {
        self.shared().quarantine.remove(id).map_err(|error| Refusal::Trouble(error.to_string()))
    }

    /// How reliable the clock is from now on; stamped on each accepted transaction. Untrusted until set.
    pub fn set_clock(&self, clock: Clock) {
        self.shared().set_clock(clock);
    }

    /// For the watchdog: whether every thread of the outbox runs, and the writer and the disk have responded within this time.
    /// Blocking.
    #[must_use]
    pub fn pulse(&self, within: Duration) -> bool {
        let (answer, pulse) = std::sync::mpsc::sync_channel(1);
        self.shared().all_threads_run()
            && self.running.jobs.send(Job::Pulse(answer)).is_ok()
            && pulse.recv_timeout(within).is_ok()
    }

    /// Numbers for health.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        self.shared().snapshot()
    }

    /// Raises an alarm: health sends it with its next message.
    pub fn raise(&self, alarm: OutboxAlarm) {
        self.shared().raise(alarm.code, alarm.detail);
    }

    /// The alarms since the last call.
    #[must_use]
    pub fn alarms(&self) -> Vec<OutboxAlarm> {
        self.shared().take_alarms()
    }

    /// Stops accepting, finishes the groups under way, syncs and closes. Blocking.
    pub fn close(self) {
        self.running.stop();
    }

    /// Writes off lost positions for good, durably; with `act` false it only checks whether it could. A readable record is
    /// never written off. Blocking.
    ///
    /// # Errors
    /// [`VoidError`]; nothing has changed then, unless it says so.
    pub fn void(
        &self,
        lane: &Lane,
        (from, through): (Position, Position),
        reason: &str,
        act: bool,
    ) -> Result<Released, VoidError> {
        let shared = self.shared();
        let Some((_, lane)) = shared.lane(lane) else { return Err(VoidError::UnknownLane(lane.clone())) };
        let _one_at_a_time = locked(&lane.voiding);
        let released = shared.releasable(lane, from, through)?;
        if reason.trim().is_empty() || reason.len() > REASON_BYTES || reason.chars().any(char::is_control) {
            return Err(VoidError::Reason(REASON_BYTES));
        }
        if act {
            shared.release(lane, &released, reason)?;
        }
        Ok(released)
    }

    /// Whether there is a store, of a known format, of this owner, opened by these keys. Nothing is opened or written.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn identify(settings: &OutboxSettings, keys: &Keyring) -> Result<bool, OpenError> {
        descriptor::identify(settings, keys, Retirement::Refused).map(|format| format.is_some())
    }

    /// Each key of the store with what needs it, for the status: from memory; of the disk only the names in quarantine.
    #[must_use]
    pub fn key_uses(&self) -> Vec<KeyUse> {
        let shared = self.shared();
        let lanes =
            shared.lanes.iter().map(|lane| (lane.name.clone(), lane.state().first_retained())).collect();
        let quarantine = shared.quarantine.ids();
        key_use::uses(&shared.periods, &SealedRanges { lanes, quarantine, aside: 0 })
    }

    /// The same of a store that need not be open, from the files on the disk; `None`: there is no store.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn key_uses_of(settings: &OutboxSettings) -> Result<Option<Vec<KeyUse>>, OpenError> {
        let Some(format) = descriptor::owned(settings)? else { return Ok(None) };
        descriptor::key_uses(&settings.directory, &format).map(Some)
    }
}

impl std::fmt::Debug for Outbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Outbox").field("directory", &self.shared().settings.directory).finish_non_exhaustive()
    }
}
