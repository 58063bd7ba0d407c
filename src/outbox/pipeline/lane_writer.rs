//! The writer's state of a lane: numbers, and the segment that it writes now.

mod rolling;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use pgw_core::chain::ChainValue;
use pgw_core::transaction::{Body, Position, Transaction};

use crate::crypt::seal::RecordPlace;
use crate::dedup::fingerprint::Fingerprints;
use crate::errors::Refusal;
use crate::guard::segment::{Segment, SegmentError, Span};
use crate::lock::locked;
use crate::pipeline::jobs::{GROUP_BYTES, GROUP_RECORDS, Task};
use crate::pipeline::lane::SharedLane;
use crate::pipeline::pending::{LARGE_BYTES, PendingRecord};
use crate::pipeline::shared::SharedOutbox;
use crate::state::digest_table::OpenTable;

/// The segment that the writer continues.
#[derive(Debug)]
pub(crate) struct Continued {
    pub(crate) number: u64,
    pub(crate) segment: Arc<Segment>,
    pub(crate) records: u64,
    /// Payload bytes.
    pub(crate) bytes: u64,
    /// `None`: its digests are computed again when it is closed, or when they are wanted.
    pub(crate) digests: Option<OpenTable>,
}

/// The segment that the writer writes.
#[derive(Debug)]
struct Active {
    number: u64,
    segment: Arc<Segment>,
    records: u64,
    bytes: u64,
    digests: Option<OpenTable>,
    next_asked_for: bool,
}

/// The writer's state of one lane.
pub(crate) struct LaneWriter {
    lane: Arc<SharedLane>,
    index: usize,
    active: Option<Active>,
    /// Numbers up to this one were given out, here or to the segment worker.
    last_number: u64,
    /// The newest one that the writer has begun.
    newest: u64,
    /// Last position behind the barrier, and the value of the chain over positions there.
    tail: Position,
    tail_chain: ChainValue,
    /// Last position given out, and the value there.
    last: Position,
    last_chain: ChainValue,
    /// Numbered, and not behind the barrier: written before anything else.
    pending: VecDeque<PendingRecord>,
    /// How many of them are in the present segment.
    appended: usize,
    /// How many of those the barrier under way covers.
    under_way: Option<usize>,
    /// Appending one of them to the segment failed: it takes no more.
    broken: Option<SegmentError>,
    trouble: Option<String>,
    failing_since: Option<Instant>,
}

impl LaneWriter {
    /// For a lane as startup found it; `active` is the segment to continue, `last_number` the highest in use.
    pub(crate) fn new(
        lane: Arc<SharedLane>,
        index: usize,
        active: Option<Continued>,
        last_number: u64,
    ) -> Self {
        let state = lane.state();
        let (tail, chain) = (state.tail, state.chain);
        drop(state);
        let active = active.map(|Continued { number, segment, records, bytes, digests }| {
            lane.handles.register(number, &segment);
            Active { number, segment, records, bytes, digests, next_asked_for: false }
        });
        Self {
            lane,
            index,
            active,
            last_number,
            newest: last_number,
            tail,
            tail_chain: chain,
            last: tail,
            last_chain: chain,
            pending: VecDeque::new(),
            appended: 0,
            under_way: None,
            broken: None,
            trouble: None,
            failing_since: None,
        }
    }

    pub(crate) fn trouble(&self) -> Option<&str> {
        self.trouble.as_deref()
    }

    pub(crate) fn is_in_trouble(&self) -> bool {
        self.trouble.is_some()
    }

    /// Last position behind the barrier.
    pub(crate) fn tail(&self) -> Position {
        self.tail
    }

    /// A record that is not behind the barrier yet.
    pub(crate) fn pending_at(&self, position: Position) -> Option<&PendingRecord> {
        let index = position.checked_sub(self.tail + 1)?;
        self.pending.get(usize::try_from(index).ok()?)
    }

    /// Whether nothing is waiting for a barrier.
    pub(crate) fn is_idle(&self) -> bool {
        self.pending.is_empty()
    }

    /// Whether a barrier is under way.
    pub(crate) fn is_under_way(&self) -> bool {
        self.under_way.is_some()
    }

    /// How many more the lane takes during the barrier under way: 0 when a whole group waits behind it, or when the
    /// segment is full: the next one begins only when every record of this one is behind its barrier.
    pub(crate) fn room(&self, shared: &SharedOutbox) -> usize {
        let Some(covered) = self.under_way else { return GROUP_RECORDS };
        let behind = self.pending.iter().skip(covered);
        let full = self.active.as_ref().is_some_and(|active| active.is_full(shared));
        if full || behind.map(|ready| ready.record.len()).sum::<usize>() >= GROUP_BYTES {
            return 0;
        }
        (GROUP_RECORDS + covered).saturating_sub(self.pending.len())
    }

    /// Numbers a transaction, seals it, and keeps it as pending. Returns its position.
    pub(crate) fn take(
        &mut self,
        shared: &SharedOutbox,
        mut transaction: Transaction,
        fingerprints: Fingerprints,
    ) -> Result<&PendingRecord, Refusal> {
        let position = self.last + 1;
        let previous = self.last_chain;
        let digest = transaction.digest(&self.lane.full_name);
        let chain = previous.next(position, digest);
        let place = RecordPlace { lane: self.lane.id, position, previous, chain };
        let record =
            shared.sealer.seal(&place, &transaction).map_err(|error| Refusal::Trouble(error.to_string()))?;
        self.last = position;
        self.last_chain = chain;
        let body_bytes = transaction.body.len() as u64;
        if body_bytes > LARGE_BYTES {
            // sled is about to allocate its own copy.
            transaction.body = Body::new(Vec::new());
        }
        let at = self.pending.len();
        self.pending.push_back(PendingRecord {
            position,
            digest,
            chain,
            record,
            transaction,
            body_bytes,
            fingerprints,
        });
        Ok(&self.pending[at])
    }

    /// Adds the pending records to the segment, even during a barrier for earlier ones. A full segment gets no more: the
    /// next barrier is that of a new one.
    pub(crate) fn append(&mut self, shared: &SharedOutbox) {
        let Some(active) = self.active.as_ref().filter(|active| !active.is_full(shared)) else { return };
        while self.broken.is_none()
            && let Some(ready) = self.pending.get(self.appended)
        {
            match active.segment.append(ready.position, &ready.record) {
                Ok(()) => self.appended += 1,
                Err(error) => self.broken = Some(error),
            }
        }
    }

    /// The segment whose barrier is due, if one is; [`LaneWriter::barrier_ended`] receives its outcome. `None` with something
    /// pending and nothing under way: [`LaneWriter::replace`].
    pub(crate) fn begin_barrier(&mut self) -> Option<Arc<Segment>> {
        if self.under_way.is_some() || self.trouble.is_some() || self.broken.is_some() || self.appended == 0 {
            return None;
        }
        let active = self.active.as_ref()?;
        self.under_way = Some(self.appended);
        Some(Arc::clone(&active.segment))
    }

    /// The barrier that was under way has ended: publishes what it covers.
    ///
    /// # Errors
    /// The failure; all records are kept, and [`LaneWriter::replace`] writes them again before anything else.
    pub(crate) fn barrier_ended(
        &mut self,
        shared: &SharedOutbox,
        outcome: Result<(), SegmentError>,
    ) -> Result<(), Refusal> {
        let covered = self.under_way.take().unwrap_or_default();
        match outcome {
            Ok(()) => {
                self.appended -= covered;
                self.publish(shared, None, covered);
                Ok(())
            }
            Err(error) => {
                self.broken = Some(error);
                self.replace(shared)
            }
        }
    }

    /// Publishes the first `count` pending records: they are behind the barrier now.
    fn publish(&mut self, shared: &SharedOutbox, begun: Option<u64>, count: usize) {
        let durable: Vec<_> = self.pending.drain(..count).collect();
        let Some(active) = &mut self.active else { return };
        let bytes: u64 = durable.iter().map(|ready| ready.body_bytes).sum();
        active.records += durable.len() as u64;
        active.bytes += bytes;
        let base = self.tail + 1;
        let previous = self.tail_chain;
        // Before the records show: whoever reads them finds their digests.
        if let Some(table) = &active.digests
            && let Err(error) = table.write(base, durable.iter().map(|ready| ready.digest))
        {
            // The records are safe, and have it all: the sender must not wait for this.
            tracing::warn!(lane = %self.lane.name, %error, "Digests could not be noted; they are computed again from the records");
        }
        if !durable.is_empty() {
            locked(&self.lane.accepted).accepted(base, Instant::now());
        }
        shared.remember(&self.lane, &durable);
        if let Some(last) = durable.last() {
            self.tail = last.position;
            self.tail_chain = last.chain;
        }
        {
            let mut state = self.lane.state();
            if let Some(number) = begun {
                state.segments.insert(number, Span { base, previous, bytes: 0, oldest: None });
                state.table_stale = true;
            }
            if state.tail <= state.watermark.position
                && let Some(first) = durable.first()
            {
                state.oldest = Some((first.position, first.transaction.time));
            }
            if let Some(mut span) = state.segments.last_entry() {
                let span = span.get_mut();
                span.bytes += bytes;
                span.oldest = span.oldest.or(durable.first().map(|ready| ready.transaction.time));
            }
            state.tail = self.tail;
            state.chain = self.tail_chain;
        }
        self.lane.tail.send_replace(self.tail);
        if active.is_nearly_full(shared) && !active.next_asked_for {
            active.next_asked_for = true;
            self.last_number += 1;
            shared.task(Task::MakeAhead { lane: self.index, number: self.last_number });
        }
    }
}

impl Active {
    fn is_full(&self, shared: &SharedOutbox) -> bool {
        self.records >= shared.settings.segment_records || self.bytes >= shared.settings.segment_bytes
    }

    fn is_nearly_full(&self, shared: &SharedOutbox) -> bool {
        self.records * 4 >= shared.settings.segment_records * 3
            || self.bytes * 4 >= shared.settings.segment_bytes * 3
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::crypt::keyring::OutboxKey;
    use crate::crypt::seal::Sealer;
    use pgw_core::chain::Digest;
    use pgw_core::transaction::{Clock, Kind, TransactionId};

    #[test]
    fn a_large_body_is_known_again_from_its_record() {
        let sealer = Sealer::new(&OutboxKey::new([7; 32]).into());
        let chain = ChainValue([1; 32]);
        let place = RecordPlace { lane: 0, position: 1, previous: chain, chain };
        let body = Body::new(b"MSH|".repeat(300_000));
        let mut transaction = Transaction {
            id: TransactionId(Uuid::nil()),
            time: 0,
            event_type: "t".into(),
            kind: Kind::Transaction,
            content_type: "a/b".into(),
            sender: "x".into(),
            given_sender: None,
            key: String::new(),
            shows_key: false,
            correlation_id: String::new(),
            trace_parent: String::new(),
            clock: Clock::Synced,
            body: body.clone(),
        };
        let record = sealer.seal(&place, &transaction).unwrap();
        transaction.body = Body::new(Vec::new());
        let body_bytes = body.len() as u64;
        let fingerprints = Fingerprints { key: 1, body: 1 };
        let digest = Digest([0; 32]);
        let ready =
            PendingRecord { position: 1, digest, chain, record, transaction, body_bytes, fingerprints };
        assert!(ready.has_body(&sealer, &body));
        let mut other = body.as_bytes().to_vec();
        other[1_000_000] ^= 1;
        assert!(!ready.has_body(&sealer, &Body::new(other)));
        assert!(!ready.has_body(&sealer, &Body::new(Vec::new())));
    }
}
