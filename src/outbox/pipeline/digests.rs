//! The digests of a lane's positions: from the tables beside the segments, and from the records where a table lacks one.

use std::collections::BTreeMap;

use pgw_core::chain::{ChainValue, Digest};
use pgw_core::text::chain;
use pgw_core::transaction::Position;

use crate::errors::ReadError;
use crate::guard::segment::Span;
use crate::lock::locked;
use crate::pipeline::lane::SharedLane;
use crate::pipeline::shared::SharedOutbox;
use crate::state::digest_table::{self, OpenTable, TableHead, table_bases};
use crate::state::settled_digests::{RecordedDigest, chain_over, settled};
use crate::types::ChainedRecord;

/// Records that are read at once.
const READ_RECORDS: usize = 512;
const READ_BYTES: usize = 4 << 20;

/// The table that has a position.
struct Covering {
    base: Position,
    /// The last position that it counts for.
    last: Position,
    /// Its segment, if that is still kept.
    segment: Option<u64>,
}

/// A segment whose table is completed.
struct Completed {
    span: Span,
    last: Position,
    /// Value of the chain over positions at `last`.
    end: ChainValue,
    /// The writer may still append to it.
    newest: bool,
}

impl SharedOutbox {
    /// As [`crate::handle::Outbox::chained`].
    pub(crate) fn chained(
        &self,
        lane: &SharedLane,
        from: Position,
        max_records: usize,
        max_bytes: usize,
    ) -> Result<Vec<ChainedRecord>, ReadError> {
        let records = self.records(lane, from, max_records, max_bytes)?;
        let chained = records.into_iter().map(|(header, transaction)| ChainedRecord {
            position: header.position,
            digest: transaction.digest(&lane.full_name),
            previous: header.previous,
            chain: header.chain,
        });
        Ok(chained.collect())
    }

    /// As [`crate::handle::Outbox::digests`].
    pub(crate) fn digests(
        &self,
        lane: &SharedLane,
        from: Position,
        most: usize,
    ) -> Result<Vec<Option<Digest>>, ReadError> {
        let tail = lane.state().tail;
        let end = from.saturating_add(most as u64).saturating_sub(1).min(tail);
        let mut digests: Vec<Option<Digest>> = Vec::new();
        let mut next = from.max(1);
        while next <= end {
            let covering = covering(lane, next).map_err(|error| ReadError::Trouble(error.to_string()))?;
            let through = covering.last.min(end);
            digests.extend(self.part(lane, &covering, (next, through))?);
            next = through + 1;
        }
        Ok(digests)
    }

    /// The digests of positions that one table counts for.
    fn part(
        &self,
        lane: &SharedLane,
        covering: &Covering,
        (from, through): (Position, Position),
    ) -> Result<Vec<Option<Digest>>, ReadError> {
        let base = covering.base;
        let mut part = digest_table::read(&lane.directory, lane.lane_id, base, (from, through))
            .map_err(|error| ReadError::Trouble(format!("a digest table cannot be read: {error}")))?;
        let Some(number) = covering.segment else { return Ok(part) };
        let unproven = locked(&lane.digests.unproven).contains(&base);
        let lacking = part.iter().any(Option::is_none) && !locked(&lane.digests.made).contains(&base);
        if (unproven || lacking)
            && let Some(made) = self.complete(lane, number)?
        {
            for (digest, position) in part.iter_mut().zip(from..) {
                let at = usize::try_from(position - base).unwrap_or(usize::MAX);
                *digest = made.get(at).copied().flatten();
            }
        }
        // A record was appended and its digest was not, on a full disk perhaps.
        let mut at = from;
        while let Some(unknown) = part.iter().zip(from..).find(|(digest, p)| digest.is_none() && *p >= at) {
            at = unknown.1;
            let wanted = usize::try_from(through + 1 - at).unwrap_or(READ_RECORDS).min(READ_RECORDS);
            match self.chained(lane, at, wanted, READ_BYTES) {
                Ok(records) if records.is_empty() => break,
                Ok(records) => {
                    for record in records {
                        let index = usize::try_from(record.position - from).unwrap_or(usize::MAX);
                        if let Some(digest) = part.get_mut(index) {
                            *digest = Some(record.digest);
                        }
                        at = record.position + 1;
                    }
                }
                Err(ReadError::Gone { .. }) => at = self.after_loss(lane, at),
                Err(trouble) => return Err(trouble),
            }
        }
        Ok(part)
    }

    /// The position behind the lost ones at `position`.
    pub(crate) fn after_loss(&self, lane: &SharedLane, position: Position) -> Position {
        let state = lane.state();
        let missing = state.missing.at(position).map_or(position, |(_, through)| through);
        missing.max(state.first_retained() - 1) + 1
    }

    /// Seals the table of a closed segment, or proves the newest one's: costs little where nothing is lacking. A failure is
    /// logged: the next start tries again, and until then digests come from the records.
    pub(crate) fn keep_digests(&self, lane: &SharedLane, number: u64) {
        let Some(segment) = lane.completed(number) else { return };
        let unproven = locked(&lane.digests.unproven).contains(&segment.span.base);
        if segment.newest && !unproven {
            return;
        }
        let kept = match lane.sealed(&segment) {
            Ok(true) => return,
            Ok(false) => self.complete(lane, number).map(drop),
            Err(error) => Err(ReadError::Trouble(error.to_string())),
        };
        if let Err(error) = kept {
            tracing::warn!(lane = %lane.name, segment = number, error = chain(&error), "A digest table could not be completed; the gateway tries again");
        }
    }

    /// Proves the table of a segment that is about to be pruned, entry by entry: what it lacks only the records have.
    pub(crate) fn prove_digests(&self, lane: &SharedLane, number: u64) {
        if let Err(error) = self.complete(lane, number) {
            tracing::warn!(lane = %lane.name, segment = number, error = chain(&error), "The digest table of a segment could not be completed before its records go");
        }
    }

    /// Computes the digests of a segment, puts its table in order, and returns them from its base on. `None`: it is pruned, and its
    /// table was complete before.
    fn complete(&self, lane: &SharedLane, number: u64) -> Result<Option<Vec<Option<Digest>>>, ReadError> {
        let _one_at_a_time = locked(&lane.digests.making);
        let Some(segment) = lane.completed(number) else { return Ok(None) };
        let (base, previous) = (segment.span.base, segment.span.previous);
        let trouble = |error: std::io::Error| ReadError::Trouble(error.to_string());
        let entries = digest_table::read(&lane.directory, lane.lane_id, base, (base, segment.last));
        let entries = entries.map_err(trouble)?;
        if chain_over(previous, base, &entries) == Some(segment.end) {
            if let Err(error) = lane.write_digests(&segment, &entries, &entries) {
                tracing::warn!(lane = %lane.name, segment = number, %error, "A digest table could not be sealed; the gateway tries again");
            }
            lane.digests.proven(base, segment.newest);
            return Ok(Some(entries));
        }
        let unusable = digest_table::unusable(&lane.directory, lane.lane_id, base);
        let records = self.recorded(lane, (base, segment.last))?;
        let digests = settled((base, previous), &entries, &records, segment.end);
        let unknown = digests.iter().filter(|digest| digest.is_none()).count();
        match lane.write_digests(&segment, &entries, &digests) {
            Ok(()) => {
                lane.digests.proven(base, segment.newest);
                tracing::info!(lane = %lane.name, segment = number, unknown, "A digest table was made again from the records");
            }
            Err(error) => {
                if crate::guard::segment::is_full(&error) {
                    self.out_of_room();
                }
                tracing::warn!(lane = %lane.name, segment = number, %error, "A digest table could not be written; its digests come from the records");
            }
        }
        if locked(&lane.digests.made).insert(base) && (unknown > 0 || unusable.is_some()) {
            let reason = unusable.unwrap_or_else(|| "it is not whole".into());
            self.raise(
                "damaged",
                format!(
                    "the digest table of segment {number} of lane {} was made again from the records, {unknown} digests are unknown: {reason}",
                    lane.name
                ),
            );
        }
        Ok(Some(digests))
    }

    /// What the readable records of a range say.
    fn recorded(
        &self,
        lane: &SharedLane,
        (from, through): (Position, Position),
    ) -> Result<BTreeMap<Position, RecordedDigest>, ReadError> {
        let mut recorded = BTreeMap::new();
        let mut next = from;
        while next <= through {
            match self.chained(lane, next, READ_RECORDS, READ_BYTES) {
                Ok(records) if records.is_empty() => break,
                Ok(records) => {
                    for record in records {
                        let ChainedRecord { position, digest, previous, chain } = record;
                        next = position + 1;
                        recorded.insert(position, RecordedDigest { digest, previous, chain });
                    }
                }
                Err(ReadError::Gone { .. }) => next = self.after_loss(lane, next),
                Err(trouble) => return Err(trouble),
            }
        }
        recorded.retain(|position, _| *position <= through);
        Ok(recorded)
    }
}

/// The table that has `position`, which is not beyond the tail.
fn covering(lane: &SharedLane, position: Position) -> std::io::Result<Covering> {
    let (kept, first, tail) = {
        let state = lane.state();
        let kept = state.segment_of(position).and_then(|(number, last)| {
            state.segments.get(&number).map(|span| Covering { base: span.base, last, segment: Some(number) })
        });
        (kept, state.first_retained(), state.tail)
    };
    if let Some(kept) = kept {
        return Ok(kept);
    }
    let bases = table_bases(&lane.directory)?;
    let base = bases.range(..=position).next_back().copied().unwrap_or(1);
    let next = bases.range(position + 1..).next().map_or(Position::MAX, |next| next - 1);
    Ok(Covering { base, last: next.min(first.saturating_sub(1).max(position)).min(tail), segment: None })
}

impl SharedLane {
    fn completed(&self, number: u64) -> Option<Completed> {
        let state = self.state();
        let span = *state.segments.get(&number)?;
        let next = state.segments.range(number + 1..).next().map(|(_, next)| *next);
        let (last, end) = next.map_or((state.tail, state.chain), |next| (next.base - 1, next.previous));
        // An empty one's table is that of the segment which begins at the same position.
        (last >= span.base).then_some(Completed { span, last, end, newest: next.is_none() })
    }

    /// Whether the table of a closed segment is sealed as the segment ends.
    fn sealed(&self, segment: &Completed) -> std::io::Result<bool> {
        let base = segment.span.base;
        let count = (segment.last + 1).saturating_sub(base);
        let end = digest_table::sealed_end(&self.directory, self.lane_id, base)?;
        Ok(end == Some((count, segment.end)))
    }

    /// Writes what differs from the entries that are there: in place while the writer may append, else sealed and as a whole.
    fn write_digests(
        &self,
        segment: &Completed,
        entries: &[Option<Digest>],
        digests: &[Option<Digest>],
    ) -> std::io::Result<()> {
        let Span { base, previous, .. } = segment.span;
        let head = TableHead { lane: self.id, lane_id: self.lane_id, base, previous };
        let count = digests.len() as u64;
        if !segment.newest {
            if self.sealed(segment)? && entries == digests {
                return Ok(());
            }
            let same = entries == digests;
            return match OpenTable::resume(&self.directory, head, segment.last)?.filter(|_| same) {
                Some(table) => table.seal(count, segment.end),
                None => digest_table::write_sealed(&self.directory, &head, digests, segment.end),
            };
        }
        let Some(table) = OpenTable::reopen(&self.directory, head)? else { return Ok(()) };
        for ((before, digest), position) in entries.iter().zip(digests).zip(base..) {
            match digest {
                Some(digest) if before.as_ref() != Some(digest) => {
                    table.write(position, std::iter::once(*digest))?;
                }
                None if before.is_some() => table.erase(position)?,
                _ => {}
            }
        }
        table.sync()
    }
}
