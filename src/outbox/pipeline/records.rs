//! Reading records as they were stored: only behind the barrier, never past a missing one. A damaged segment is rebuilt
//! once; records that are missing after that are noted.

use std::ops::ControlFlow;
use std::sync::Arc;

use pgw_core::text::chain;
use pgw_core::transaction::{Position, Transaction};

use crate::errors::ReadError;
use crate::guard::record::Header;
use crate::guard::segment::{Segment, SegmentError};
use crate::pipeline::lane::SharedLane;
use crate::pipeline::rebuild::Rebuild;
use crate::pipeline::shared::SharedOutbox;

/// A record as it was stored.
pub(crate) type Record = (Header, Transaction);

impl SharedOutbox {
    /// The records from `from` on, as they were stored: never beyond the tail, never past a missing record, and at least one if
    /// there is one at `from`.
    pub(crate) fn records(
        &self,
        lane: &SharedLane,
        from: Position,
        max_records: usize,
        max_bytes: usize,
    ) -> Result<Vec<Record>, ReadError> {
        let gone = |position| ReadError::Gone { lane: lane.name.clone(), position };
        let mut found: Vec<Record> = Vec::new();
        let mut bytes = 0usize;
        let mut taken = 0usize;
        let mut next = from;
        loop {
            let at = {
                let state = lane.state();
                if next > state.tail {
                    return Ok(found);
                }
                // A lost record stays lost, even if the disk can read it again: it may have been written off meanwhile.
                let found = state.segment_of(next).filter(|_| next > 0 && state.missing.at(next).is_none());
                found.map(|(number, through)| (number, state.missing.before_next(next, through)))
            };
            let Some((number, through)) = at else {
                return if found.is_empty() { Err(gone(next)) } else { Ok(found) };
            };
            let part = self.segment_records(lane, number, next, through, |body| {
                bytes += body;
                taken += 1;
                taken >= max_records || bytes >= max_bytes
            });
            let part = match part {
                Ok(part) => part,
                Err(_) if !found.is_empty() => return Ok(found),
                Err(error) => return Err(error),
            };
            let Some(part) = part else {
                // Damage was found and noted: the records before it count.
                continue;
            };
            let (records, enough) = part;
            next += records.len() as u64;
            found.extend(records);
            if enough || found.len() >= max_records || bytes >= max_bytes {
                return Ok(found);
            }
        }
    }

    /// One record, if its segment is open now and it can be read there: nothing is opened or rebuilt for it.
    pub(crate) fn record_if_open(&self, lane: &SharedLane, position: Position) -> Option<Transaction> {
        let (number, _) = {
            let state = lane.state();
            state.segment_of(position).filter(|_| state.missing.at(position).is_none())?
        };
        let (at, bytes) = lane.handles.known(number)?.first(position, position).ok().flatten()?;
        let (header, transaction) = self.sealer.open(&bytes.ok()?).ok()?;
        (at == position && header.position == position && header.lane == lane.id).then_some(transaction)
    }

    /// Reads from one segment. `None`: the records were damaged, which is noted now; the caller tries again.
    fn segment_records(
        &self,
        lane: &SharedLane,
        number: u64,
        from: Position,
        through: Position,
        mut count: impl FnMut(usize) -> bool,
    ) -> Result<Option<(Vec<Record>, bool)>, ReadError> {
        let segment = match self.segment(lane, number) {
            Ok(segment) => segment,
            Err(error) => return self.failed(lane, number, &error),
        };
        let mut enough = false;
        let mut records: Vec<Record> = Vec::new();
        let mut expected = from;
        let visited = segment.visit(from, through, &mut |position, bytes| {
            if position != expected {
                return ControlFlow::Break(());
            }
            match bytes.and_then(|bytes| self.sealer.open(&bytes)) {
                Ok((header, transaction)) if header.position == position && header.lane == lane.id => {
                    enough = count(transaction.body.len());
                    records.push((header, transaction));
                }
                _ => return ControlFlow::Break(()),
            }
            expected += 1;
            if enough { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        if let Err(error) = visited {
            drop(segment);
            return self.failed(lane, number, &error);
        }
        if (enough || expected > through) && !records.is_empty() {
            return Ok(Some((records, enough)));
        }
        if !records.is_empty() {
            // Return the good records before the damage; the next call begins with it.
            return Ok(Some((records, true)));
        }
        drop(segment);
        match self.rebuild(lane, number) {
            Rebuild::Done => {}
            Rebuild::Useless => self.declare_damaged(lane, number, from, through),
            Rebuild::Later(reason) => return Err(ReadError::Trouble(reason)),
        }
        Ok(None)
    }

    /// The handle of a segment of the lane.
    pub(crate) fn segment(&self, lane: &SharedLane, number: u64) -> Result<Arc<Segment>, SegmentError> {
        let durable = lane.state().last_of(number);
        lane.handles.get(number, || Segment::open(&lane.segment_directory(number), durable))
    }

    /// A handle that failed is dead. A damaged segment is rebuilt; other failures may pass.
    fn failed<T>(
        &self,
        lane: &SharedLane,
        number: u64,
        error: &SegmentError,
    ) -> Result<Option<T>, ReadError> {
        if lane.state().segments.contains_key(&number) {
            tracing::warn!(lane = %lane.name, segment = number, error = chain(error), "A segment could not be read");
            drop(lane.handles.forget(number));
            if error.is_full() {
                self.out_of_room();
            }
            if error.is_damage()
                && let Rebuild::Done = self.rebuild(lane, number)
            {
                return Ok(None);
            }
            return Err(ReadError::Trouble(chain(error)));
        }
        // It was pruned meanwhile.
        Ok(None)
    }

    /// Finds out how far the damage at `from` goes, and notes these positions as lost.
    fn declare_damaged(&self, lane: &SharedLane, number: u64, from: Position, through: Position) {
        let next = self.segment(lane, number).and_then(|segment| {
            let mut good = None;
            segment.visit(from, through, &mut |position, bytes| {
                if bytes.is_ok_and(|bytes| self.sealer.open(&bytes).is_ok()) {
                    good = Some(position);
                    return ControlFlow::Break(());
                }
                ControlFlow::Continue(())
            })?;
            Ok(good)
        });
        let lost_through = match next {
            Ok(Some(good)) if good > from => good - 1,
            Ok(None) => through,
            Ok(Some(_)) => return,
            Err(_) => from,
        };
        let new = {
            let mut state = lane.state();
            let new = state.missing.add(from, lost_through);
            state.table_stale |= new;
            new
        };
        if new {
            tracing::error!(lane = %lane.name, from, through = lost_through, "Records are lost");
            self.raise(
                "damaged",
                format!("positions {from} to {lost_through} of lane {} are lost", lane.name),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use pgw_core::consequence::Consequence;

    use super::*;
    use crate::tests::{add, clinical, open};

    #[test]
    fn a_read_that_a_full_disk_stops_says_so_and_may_succeed_later() {
        let directory = tempfile::tempdir().unwrap();
        let outbox = open(directory.path());
        add(&outbox, 1..=3);
        let lane = outbox.lane(&clinical()).unwrap();
        let full = std::io::Error::from_raw_os_error(rustix::io::Errno::NOSPC.raw_os_error());
        let full = SegmentError::Database(sled::Error::Io(full));
        let error = outbox.shared().failed::<()>(lane, 1, &full).unwrap_err();
        assert_eq!(error.consequence(), Consequence::Retry);
        let text = chain(&error);
        assert!(text.contains("the disk is full: free some space on it: "), "{text}");
        assert!(text.contains("No space left on device"), "{text}");
    }
}
