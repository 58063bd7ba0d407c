//! Voids: positions that are lost for good and were released by a person, so that their lane can go on.
//!
//! `lanes/{lane}/voids` keeps them for ever, with the chain values before and after. Such a position is read as a transaction
//! of kind `void` ([`pgw_core::wire::void`]) that takes its place on the wire; in the numbers it stays `damaged`, confirmed or not.

use pgw_core::chain::ChainValue;
use pgw_core::delivery::{Numbering, Renumbering};
use pgw_core::transaction::{
    Body, Clock, Epoch, Lane, Position, Transaction, TransactionId, UnixMillis, rfc3339, unix_millis_now,
};
use pgw_core::wire::to_json;
use pgw_core::wire::void;
use pgw_core::wire::void::{REASON_BYTES, Void};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::lane::{LaneShared, LaneState, locked};
use super::shared::Shared;
use super::{Outbox, ReadError, Stored};

/// Of this format.
const VERSION: u32 = 1;
/// Most positions in one void: a whole segment.
const MOST: u64 = 1 << 20;

/// All of a lane.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Voids {
    version: u32,
    ranges: Vec<Range>,
    /// Chain values at lost ends of epochs, as the sidecar had them: the hub may have had what was lost.
    ends: Vec<End>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Range {
    from: Position,
    through: Position,
    /// The epoch on the wire in which the chain values hold; in a later one the chain passes over the range.
    epoch: Epoch,
    previous: ChainValue,
    chain: ChainValue,
    reason: String,
    time: UnixMillis,
    id: Uuid,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct End {
    epoch: Epoch,
    position: Position,
    chain: ChainValue,
}

impl Voids {
    fn at(&self, position: Position) -> Option<&Range> {
        self.ranges.iter().find(|range| (range.from..=range.through).contains(&position))
    }

    /// The released ranges: first and last position, and the chain value before them with the epoch in which it holds.
    pub(crate) fn ranges(&self) -> impl Iterator<Item = (Position, Position, Epoch, ChainValue)> + '_ {
        self.ranges.iter().map(|range| (range.from, range.through, range.epoch, range.previous))
    }

    /// The chain values at lost ends of epochs.
    pub(crate) fn ends(&self) -> impl Iterator<Item = (Epoch, Position, ChainValue)> + '_ {
        self.ends.iter().map(|end| (end.epoch, end.position, end.chain))
    }

    /// How many of the positions through `through` are void.
    pub(crate) fn count(&self, through: Position) -> u64 {
        self.ranges.iter().map(|range| (range.through.min(through) + 1).saturating_sub(range.from)).sum()
    }

    /// The chain value at the lost end of an epoch, where it was kept.
    pub(crate) fn end(&self, epoch: Epoch, position: Position) -> Option<ChainValue> {
        let end = self.ends.iter().find(|end| end.epoch == epoch && end.position == position)?;
        Some(end.chain)
    }

    pub(crate) fn add_end(&mut self, epoch: Epoch, position: Position, chain: ChainValue) {
        self.version = VERSION;
        self.ends.push(End { epoch, position, chain });
    }
}

/// What would be released, or was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Released {
    /// First position.
    pub from: Position,
    /// Last position.
    pub through: Position,
    /// Chain value on the wire before the first.
    pub previous: ChainValue,
    /// Chain value on the wire at the last.
    pub chain: ChainValue,
}

impl Outbox {
    /// Releases lost positions for good, durably; with `act` false it only says whether it could. What can be read is never
    /// released. Blocking.
    ///
    /// # Errors
    /// One sentence; nothing has changed then.
    pub fn void(
        &self,
        lane: &Lane,
        (from, through): (Position, Position),
        reason: &str,
        act: bool,
    ) -> Result<Released, String> {
        let shared = self.shared();
        let Some((_, lane)) = shared.lane(lane) else { return Err(format!("there is no lane {lane}")) };
        let _one_at_a_time = locked(&lane.voiding);
        let released = shared.releasable(lane, from, through)?;
        if reason.trim().is_empty() || reason.len() > REASON_BYTES || reason.chars().any(char::is_control) {
            return Err(format!("a reason has 1 to {REASON_BYTES} bytes, and no line ends"));
        }
        if act {
            shared.release(lane, &released, reason)?;
            if shared.breaks_the_chain(lane, &released) {
                let after = lane.state().mark.position;
                self.new_epoch(&lane.name, after).map_err(|error| {
                    format!("it is released, but no new epoch can be begun, which it needs: {error}")
                })?;
            }
        }
        Ok(released)
    }
}

impl Shared {
    fn releasable(&self, lane: &LaneShared, from: Position, through: Position) -> Result<Released, String> {
        let (mark, tail, numbering) = {
            let state = lane.state();
            (state.mark, state.tail, state.numbering.clone())
        };
        if from <= mark.position || from > through || through > tail || through - from >= MOST {
            return Err(format!(
                "a range lies between the confirmed position {} and the tail {tail}, from its first to its last",
                mark.position
            ));
        }
        let numbered = numbering.at(from);
        if numbering.at(through) != numbered {
            return Err("the range lies in two epochs: release each part by itself".into());
        }
        let mut next = from;
        while next <= through {
            match self.read(lane, next, 1, 0) {
                Ok(found) if found.iter().any(|stored| stored.transaction.kind == void::KIND) => {
                    return Err(format!("position {next} is released already"));
                }
                Ok(found) if found.is_empty() => return Err(format!("position {next} cannot be judged now")),
                Ok(_) => {
                    return Err(format!("position {next} can be read: it is not lost, and is not released"));
                }
                Err(ReadError::Gone { .. }) => next = self.lost_through(lane, next) + 1,
                Err(trouble) => return Err(trouble.to_string()),
            }
        }
        let Some(previous) = self.chain_before_range(lane, numbered, from) else {
            return Err(format!("position {} is lost, too: begin with the first that is", from - 1));
        };
        let chain = self.chain_after_range(lane, &numbering, numbered, through).unwrap_or(previous);
        Ok(Released { from, through, previous, chain })
    }

    /// Whether what was computed over the lost content is stored in a later record: the range was numbered again after it was
    /// accepted, and something was accepted in the new numbers since. Its content is gone, so that nobody can compute that value
    /// again: everything after the mark gets new numbers once more, over the void.
    fn breaks_the_chain(&self, lane: &LaneShared, released: &Released) -> bool {
        let (tail, numbered, following) = {
            let state = lane.state();
            (state.tail, state.numbering.at(released.from), state.numbering.at(released.through + 1))
        };
        if released.through == tail || following != numbered {
            return false;
        }
        let next =
            self.records(lane, released.through + 1, 1, 0).ok().and_then(|found| found.into_iter().next());
        next.is_some_and(|(header, _)| header.epoch != numbered.epoch)
    }

    /// How far it is known that what is at `position` is lost.
    fn lost_through(&self, lane: &LaneShared, position: Position) -> Position {
        let state = lane.state();
        let hole = state.holes.at(position).map_or(position, |(_, through)| through);
        hole.max(state.first_retained() - 1)
    }

    fn chain_before_range(
        &self,
        lane: &LaneShared,
        numbered: Renumbering,
        from: Position,
    ) -> Option<ChainValue> {
        if from - 1 == numbered.base {
            return Some(ChainValue::first(numbered.epoch, lane.name.as_str()));
        }
        // The neighbour of what is lost knows nothing: only the record itself, a void, or the mark.
        if let Ok(stored) = self.read(lane, from - 1, 1, 0) {
            return stored.first().map(|stored| stored.chain);
        }
        let mark = lane.state().mark;
        (mark.position == from - 1).then_some(mark.chain)
    }

    /// The value that the next transaction of the epoch follows from, where there is one.
    fn chain_after_range(
        &self,
        lane: &LaneShared,
        numbering: &Numbering,
        numbered: Renumbering,
        through: Position,
    ) -> Option<ChainValue> {
        let (tail, chain, end) = {
            let state = lane.state();
            (state.tail, state.chain, state.voids.end(numbered.epoch, through))
        };
        if numbering.at(through + 1) != numbered {
            return end;
        }
        if through == tail {
            return Some(chain);
        }
        self.read(lane, through + 1, 1, 0).ok()?.first().map(|stored| stored.previous)
    }

    fn release(&self, lane: &LaneShared, released: &Released, reason: &str) -> Result<(), String> {
        let (mut voids, epoch) = {
            let state = lane.state();
            (state.voids.clone(), state.numbering.at(released.from).epoch)
        };
        let Released { from, through, previous, chain } = *released;
        voids.version = VERSION;
        voids.ranges.push(Range {
            from,
            through,
            epoch,
            previous,
            chain,
            reason: reason.to_owned(),
            time: unix_millis_now(),
            id: Uuid::now_v7(),
        });
        super::files::save(&self.lane_file(&lane.name, "voids"), &voids)
            .map_err(|error| format!("the void cannot be made durable: {error}"))?;
        {
            let mut state = lane.state();
            let kept_from = state.first_retained();
            let new = state.holes.add(from.max(kept_from), through);
            state.ledger_stale |= new;
            state.voids = voids;
        }
        tracing::error!(lane = %lane.name, from, through, reason, "A person has released lost positions");
        self.notable(
            "void",
            format!("positions {from} to {through} of lane {} are released: {reason}", lane.name),
        );
        Ok(())
    }

    /// The voids from `from` on, as they go out; `None`: there is none at `from`.
    ///
    /// # Errors
    /// As [`Shared::read`].
    pub(crate) fn voids_from(
        &self,
        lane: &LaneShared,
        from: Position,
        most: usize,
    ) -> Result<Option<Vec<Stored>>, ReadError> {
        let (range, numbering) = {
            let state = lane.state();
            let Some(range) = state.voids.at(from) else { return Ok(None) };
            (range.clone(), state.numbering.clone())
        };
        let numbered = numbering.at(from);
        let (previous, chain) = if range.epoch == numbered.epoch {
            (range.previous, range.chain)
        } else {
            let passed = self.chain_before(lane, numbered, from)?;
            (passed, passed)
        };
        // A fork may have cut the range: what the epoch has of it.
        let first = range.from.max(numbered.base + 1);
        let through =
            (first..=range.through).take_while(|at| numbering.at(*at) == numbered).last().unwrap_or(first);
        let whole = through == range.through;
        let stored = (from..=through).take(most.max(1)).map(|position| {
            let sequence = position - numbered.base;
            let body = Void::new(
                (first - numbered.base, through - numbered.base),
                previous,
                range.reason.clone(),
                rfc3339(range.time),
            );
            Stored {
                position,
                epoch: numbered.epoch,
                sequence,
                previous,
                chain: if position == through && whole { chain } else { previous },
                transaction: self.tombstone(&range, position, to_json(&body)),
            }
        });
        Ok(Some(stored.collect()))
    }

    fn tombstone(&self, range: &Range, position: Position, body: Vec<u8>) -> Transaction {
        let id = range.id.as_u128().wrapping_add(u128::from(position - range.from));
        Transaction {
            id: TransactionId(Uuid::from_u128(id)),
            time: range.time,
            event_type: void::EVENT_TYPE.to_owned(),
            kind: void::KIND.to_owned(),
            content_type: void::CONTENT_TYPE.to_owned(),
            source: format!("urn:pgw:{}:{}:void", self.settings.practice, self.settings.gateway),
            key: String::new(),
            correlation_id: String::new(),
            clock: Clock::Untrusted,
            test_data: false,
            body: Body::new(body),
        }
    }
}

impl LaneState {
    /// Released positions that the mark has passed: confirmed to be lost.
    pub(crate) fn voids_confirmed(&self) -> u64 {
        self.voids.count(self.mark.position.min(self.tail))
    }
}
