//! How a lane writer continues in a new segment, when the present one is full, has failed, or is to be closed.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use pgw_core::text::chain;
use pgw_core::transaction::Position;

use super::{Active, LaneWriter};
use crate::errors::Refusal;
use crate::guard::segment::{Segment, SegmentError, SegmentHeader};
use crate::pipeline::jobs::Task;
use crate::pipeline::pending::PendingRecord;
use crate::pipeline::shared::SharedOutbox;
use crate::state::digest_table::{OpenTable, TableHead};
use crate::state::lane_epochs::copied;

impl LaneWriter {
    /// Continues in a new segment with all pending records: the present one is full, absent or broken.
    ///
    /// # Errors
    /// As [`LaneWriter::barrier_ended`].
    pub(crate) fn replace(&mut self, shared: &SharedOutbox) -> Result<(), Refusal> {
        if let Some(trouble) = &self.trouble {
            return Err(Refusal::Trouble(trouble.clone()));
        }
        self.appended = 0;
        if let Some(error) = self.broken.take() {
            let error = chain(&error);
            tracing::error!(lane = %self.lane.name, error, "A segment failed; everything beyond its last barrier is written again to a new one");
            shared.raise(
                "store.trouble",
                format!("a segment of lane {} failed and was replaced: {error}", self.lane.name),
            );
            let dead = self.active.take();
            self.drop_handle(shared, dead);
        }
        self.replace_segment(shared)
    }

    /// Tries again to write the pending records after a failure.
    pub(crate) fn retry(&mut self, shared: &SharedOutbox) {
        if self.trouble.is_some() && self.replace_segment(shared).is_ok() {
            self.trouble = None;
            shared.in_trouble(&self.lane.name, None);
            let seconds = self.failing_since.take().map_or(0, |since| since.elapsed().as_secs());
            tracing::info!(lane = %self.lane.name, seconds, "The store can write again");
            shared.raise(
                "store.works",
                format!("lane {} can be stored again after {seconds} s", self.lane.name),
            );
        }
    }

    /// Writes the pending records to a new segment, which follows or replaces the present one.
    fn replace_segment(&mut self, shared: &SharedOutbox) -> Result<(), Refusal> {
        let outcome = self.begin_segment(shared);
        match outcome {
            Ok((number, segment)) => {
                self.go_on_in(shared, number, segment);
                Ok(())
            }
            Err(error) => {
                if error.is_full() {
                    shared.out_of_room();
                }
                let text = chain(&error);
                if self.trouble.is_none() {
                    tracing::error!(lane = %self.lane.name, error = %text, "The store refuses new work until it can write again");
                    shared
                        .raise("store.trouble", format!("lane {} cannot be stored: {text}", self.lane.name));
                    self.failing_since = Some(Instant::now());
                }
                self.trouble = Some(text.clone());
                shared.in_trouble(&self.lane.name, Some(&text));
                Err(Refusal::Trouble(text))
            }
        }
    }

    fn begin_segment(&mut self, shared: &SharedOutbox) -> Result<(u64, Arc<Segment>), SegmentError> {
        let ahead = crate::lock::locked(&self.lane.ahead).take();
        let (number, segment) = match ahead {
            Some((number, segment)) if number > self.newest => (number, segment),
            late => {
                if let Some((number, segment)) = late {
                    drop(segment);
                    shared.task(Task::Discard(self.lane.segment_directory(number)));
                }
                let number = self.last_number + 1;
                self.last_number = number;
                let directory = self.lane.segment_directory(number);
                match Segment::create(&directory) {
                    Ok(segment) => (number, segment),
                    Err(error) => {
                        // Otherwise each try would leave a directory on a disk that is full already.
                        shared.task(Task::Discard(directory));
                        return Err(error);
                    }
                }
            }
        };
        self.newest = number;
        let header = {
            let state = self.lane.state();
            SegmentHeader {
                lane: self.lane.id,
                number,
                base: self.tail + 1,
                previous: self.tail_chain,
                lane_id: self.lane.lane_id,
                numbering: copied(&state.numbering),
                predecessor: state.segments.last_key_value().map(|(number, span)| (*number, *span)),
            }
        };
        let segment = Arc::new(segment);
        match begin(&segment, &header, &self.pending) {
            Ok(()) => Ok((number, segment)),
            Err(error) => {
                // Its base hides no answered record, but it must not count at the next start.
                drop(segment);
                shared.task(Task::Discard(self.lane.segment_directory(number)));
                Err(error)
            }
        }
    }

    /// Leaves dropping a handle, which takes milliseconds, to the segment worker.
    fn drop_handle(&self, shared: &SharedOutbox, old: Option<Active>) {
        if let Some(old) = old {
            shared.task(Task::DropHandle { lane: self.index, number: old.number, segment: old.segment });
        }
    }

    /// Closes the present segment, to be pruned or rebuilt, and begins a new one. With `tail`: only if nothing came since.
    pub(crate) fn retire(&mut self, shared: &SharedOutbox, tail: Option<Position>) {
        let wanted =
            tail.is_none_or(|tail| tail == self.tail) && self.active.as_ref().is_none_or(|a| a.records > 0);
        if wanted && self.trouble.is_none() {
            self.roll(shared);
        }
    }

    /// Continues in a new segment. A failure does no harm: nothing is pending, and the present one stays in use.
    fn roll(&mut self, shared: &SharedOutbox) {
        match self.begin_segment(shared) {
            Ok((number, segment)) => self.go_on_in(shared, number, segment),
            Err(error) => {
                tracing::warn!(lane = %self.lane.name, error = %error, "A segment could not be closed")
            }
        }
    }

    fn go_on_in(&mut self, shared: &SharedOutbox, number: u64, segment: Arc<Segment>) {
        self.lane.handles.register(number, &segment);
        let digests = self.begin_digests();
        let active = Active { number, segment, records: 0, bytes: 0, digests, next_asked_for: false };
        let old = self.active.replace(active);
        self.publish(shared, Some(number), self.pending.len());
        // The one before takes no more records now, whether it was this run's, or has failed.
        let closed = self.lane.state().segments.range(..number).next_back().map(|(number, _)| *number);
        if let Some(number) = closed {
            shared.task(Task::KeepDigests { lane: self.index, number });
        }
        self.drop_handle(shared, old);
    }

    /// The digest table of the segment that begins now. Without it the digests are computed again when they are wanted.
    fn begin_digests(&self) -> Option<OpenTable> {
        let (lane, lane_id) = (self.lane.id, self.lane.lane_id);
        let head = TableHead { lane, lane_id, base: self.tail + 1, previous: self.tail_chain };
        let table = OpenTable::create(&self.lane.directory, head)
            .inspect_err(|error| tracing::warn!(lane = %self.lane.name, %error, "A digest table could not be created; it is made from the records later"))
            .ok();
        self.lane.digests.begun(head.base, table.is_some());
        table
    }
}

fn begin(
    segment: &Segment,
    header: &SegmentHeader,
    first: &VecDeque<PendingRecord>,
) -> Result<(), SegmentError> {
    segment.begin(header)?;
    for ready in first {
        segment.append(ready.position, &ready.record)?;
    }
    segment.barrier()
}
