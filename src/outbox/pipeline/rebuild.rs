//! Rebuilds a segment that sled cannot read any more: its readable records go to a new one in its place. The damaged one is
//! set aside by rename, as a copy may not fit, and is never deleted ([`crate::guard::replace`]).

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use pgw_core::chain::ChainValue;
use pgw_core::delivery::Numbering;
use pgw_core::text::chain;
use pgw_core::transaction::{Lane, Position};
use uuid::Uuid;

use crate::crypt::seal::Sealer;
use crate::guard::carve::{Scan, header_in, scan_directory};
use crate::guard::replace::replace;
use crate::guard::segment::{DATABASE_FILE, Segment, SegmentError, SegmentHeader, Span};
use crate::pipeline::jobs::Job;
use crate::pipeline::lane::SharedLane;
use crate::pipeline::shared::SharedOutbox;
use crate::quarantine::{Quarantine, RIVAL};
use crate::state::lane_epochs::copied;

/// How long a rebuild waits for readers of the segment.
const READER_PATIENCE: Duration = Duration::from_secs(5);

/// What other files say about a damaged segment.
pub(crate) struct DamagedSegment<'a> {
    /// The store's directory.
    pub(crate) store: &'a Path,
    /// Its lane, and the lane's number.
    pub(crate) lane: (&'a Lane, u16),
    /// Its segment number and directory.
    pub(crate) number: u64,
    pub(crate) directory: &'a Path,
    /// Its entry in the segment table.
    pub(crate) span: Option<Span>,
    /// The lane's own id and its epochs, as far as they are known.
    pub(crate) lane_id: Option<Uuid>,
    pub(crate) numbering: Option<&'a Numbering>,
    /// A position in it whose value of the chain over positions is known from elsewhere: the end of the segment, or the tail checkpoint's.
    pub(crate) known: Option<(Position, ChainValue)>,
    /// The last position that counts in it, if a later segment says so.
    pub(crate) through: Option<Position>,
}

/// The outcome of a rebuild.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Rebuilt {
    /// Records in the new segment.
    pub(crate) records: u64,
    /// Its first and last position.
    pub(crate) range: Option<(Position, Position)>,
    /// Records that lost against another one for the same position; they are in quarantine.
    pub(crate) rivals: u64,
}

/// A record that was found.
#[derive(Debug, Clone, Copy)]
struct Candidate {
    /// Its number in the scan.
    number: usize,
    previous: ChainValue,
    chain: ChainValue,
}

/// Carves a damaged segment's records into a new one in its place. No handle of it may be open here.
pub(crate) fn rebuild_segment(
    damaged: &DamagedSegment<'_>,
    sealer: &Sealer,
    quarantine: &Quarantine,
) -> Result<Rebuilt, SegmentError> {
    let scan = scan_directory(damaged.directory).map_err(SegmentError::Files)?;
    tracing::warn!(
        lane = %damaged.lane.0,
        segment = damaged.number,
        unreadable_bytes = scan.unreadable_bytes(),
        in_pieces = ?scan.in_pieces(),
        "Scanned a damaged segment for records"
    );
    let header = header_in(damaged.directory);
    let base = header.as_ref().map(|h| h.base).or(damaged.span.map(|e| e.base)).unwrap_or(1);
    let found = candidates(damaged, &scan, sealer, base);
    let mut chosen = choose(&found, damaged.known);
    if damaged.through.is_none() {
        // Records that a crash left after a gap were never answered: keeping them would show records as missing that never
        // counted.
        let durable = damaged.known.map_or(0, |(position, _)| position).max(base.saturating_sub(1));
        let end = (durable + 1..).find(|position| !chosen.contains_key(position)).unwrap_or(u64::MAX);
        chosen.split_off(&end);
    }

    let fresh = damaged.directory.with_extension("new");
    if fresh.exists() {
        fs::remove_dir_all(&fresh).map_err(SegmentError::Files)?;
    }
    let segment = Segment::create(&fresh)?;
    segment.begin(&header.unwrap_or_else(|| substitute_header(damaged, base, &chosen)))?;
    let mut rivals = 0;
    for (number, carved) in scan.records().enumerate() {
        match chosen.get(&carved.position) {
            Some(candidate) if candidate.number == number => {
                segment.append(carved.position, &carved.record)?
            }
            Some(_) => {
                rivals += 1;
                let _ = quarantine.keep_own(RIVAL, damaged.lane.0.as_str(), &carved.record);
            }
            None => {}
        }
    }
    segment.barrier()?;
    drop(segment);
    replace(damaged.store, (damaged.lane.0, damaged.number), damaged.directory, &fresh)
        .map_err(SegmentError::Files)?;
    let range = chosen.keys().next().copied().zip(chosen.keys().next_back().copied());
    Ok(Rebuilt { records: chosen.len() as u64, range, rivals })
}

/// The records of this segment that were found, by position.
fn candidates(
    damaged: &DamagedSegment<'_>,
    scan: &Scan,
    sealer: &Sealer,
    base: Position,
) -> BTreeMap<Position, Vec<Candidate>> {
    let mut found: BTreeMap<Position, Vec<Candidate>> = BTreeMap::new();
    for (number, carved) in scan.records().enumerate() {
        let position = carved.position;
        let Ok((header, _)) = sealer.open(&carved.record) else { continue };
        if header.lane == damaged.lane.1
            && position >= base
            && damaged.through.is_none_or(|last| position <= last)
        {
            let candidate = Candidate { number, previous: header.previous, chain: header.chain };
            found.entry(position).or_default().push(candidate);
        }
    }
    found
}

/// A header for a segment whose own is destroyed, from the other files.
fn substitute_header(
    damaged: &DamagedSegment<'_>,
    base: Position,
    chosen: &BTreeMap<Position, Candidate>,
) -> SegmentHeader {
    let first = chosen.first_key_value();
    SegmentHeader {
        lane: damaged.lane.1,
        number: damaged.number,
        base: damaged.span.map(|e| e.base).or(first.map(|(position, _)| *position)).unwrap_or(base),
        previous: damaged
            .span
            .map(|e| e.previous)
            .or(first.map(|(_, candidate)| candidate.previous))
            .unwrap_or(ChainValue([0; 32])),
        lane_id: damaged.lane_id.unwrap_or_else(Uuid::now_v7),
        numbering: damaged.numbering.and_then(copied),
        predecessor: None,
    }
}

/// Among rivals the one counts whose chain reaches the known value, from the end backwards.
fn choose(
    found: &BTreeMap<Position, Vec<Candidate>>,
    known: Option<(Position, ChainValue)>,
) -> BTreeMap<Position, Candidate> {
    let mut chosen: BTreeMap<Position, Candidate> = BTreeMap::new();
    // The value that the record at a position must have, seen from the one after it.
    let mut wanted: Option<(Position, ChainValue)> = None;
    for (position, candidates) in found.iter().rev() {
        let value = known
            .filter(|(at, _)| at == position)
            .or(wanted.filter(|(at, _)| at == position))
            .map(|(_, value)| value);
        let fits = value.and_then(|value| candidates.iter().find(|c| c.chain == value));
        // No known value decides: take one that follows from the record before it, else the one found last.
        let before = found.get(&(position - 1));
        let follows = || {
            candidates
                .iter()
                .rev()
                .find(|c| before.is_some_and(|b| b.iter().any(|before| before.chain == c.previous)))
        };
        if let Some(candidate) = fits.or_else(follows).or(candidates.last()) {
            chosen.insert(*position, *candidate);
            wanted = Some((position - 1, candidate.previous));
        }
    }
    chosen
}

/// The result of a rebuild for a reader that found damage.
pub(crate) enum Rebuild {
    /// The segment was rebuilt: read again.
    Done,
    /// It was rebuilt before, or nothing was found: the missing records are lost.
    Useless,
    /// Not possible now: try later.
    Later(String),
}

impl SharedOutbox {
    /// Sets a damaged segment of the lane aside and carves its records into a new one. Only once a run: records that are
    /// still missing then are lost.
    pub(crate) fn rebuild(&self, lane: &SharedLane, number: u64) -> Rebuild {
        let mut rebuilt = crate::lock::locked(&lane.rebuilt);
        if rebuilt.contains(&number) {
            return Rebuild::Useless;
        }
        let (span, through, known, numbering, written) = {
            let state = lane.state();
            let Some(span) = state.segments.get(&number).copied() else { return Rebuild::Done };
            let next = state.segments.range(number + 1..).next().map(|(_, next)| *next);
            let through = next.map_or(state.tail, |next| next.base - 1);
            let chain = next.map_or(state.chain, |next| next.previous);
            (span, through, (through, chain), state.numbering.clone(), next.is_none())
        };
        if written {
            // The writer uses it: it continues in another segment first, then this one can be replaced.
            if let Some((index, _)) = self.lane(&lane.name) {
                self.job(Job::Retire { lane: index, tail: None });
            }
            return Rebuild::Later("the writer is leaving a damaged segment".into());
        }
        let directory: PathBuf = lane.segment_directory(number);
        let damaged = DamagedSegment {
            store: &self.settings.directory,
            lane: (&lane.name, lane.id),
            number,
            directory: &directory,
            span: Some(span),
            lane_id: Some(lane.lane_id),
            numbering: Some(&numbering),
            known: Some(known),
            through: Some(through),
        };
        let database = directory.join(DATABASE_FILE);
        let carved = lane.handles.alone(number, &database, READER_PATIENCE, || {
            rebuild_segment(&damaged, &self.sealer, &self.quarantine)
        });
        let Some(carved) = carved else {
            return Rebuild::Later("a damaged segment is still being read".into());
        };
        match carved {
            Ok(outcome) => {
                rebuilt.insert(number);
                let lost = (through + 1 - span.base).saturating_sub(outcome.records);
                tracing::error!(lane = %lane.name, segment = number, carved = outcome.records, lost, "A damaged segment was carved and rebuilt");
                self.raise("salvaged", summary(&lane.name, number, &outcome, lost));
                Rebuild::Done
            }
            Err(error) if error.is_full() => {
                self.out_of_room();
                Rebuild::Later(chain(&error))
            }
            Err(error) => {
                let error = chain(&error);
                tracing::error!(lane = %lane.name, segment = number, error, "A damaged segment could not be carved");
                Rebuild::Later(error)
            }
        }
    }
}

/// One sentence about a rebuilt segment, for its alarm.
pub(crate) fn summary(lane: &Lane, number: u64, outcome: &Rebuilt, lost: u64) -> String {
    format!(
        "segment {number} of lane {lane} was damaged and set aside; {} records were carved from it, {lost} are missing, {} rivals are in quarantine",
        outcome.records, outcome.rivals
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(number: usize, previous: u8, chain: u8) -> Candidate {
        Candidate { number, previous: ChainValue([previous; 32]), chain: ChainValue([chain; 32]) }
    }

    fn chosen_numbers(chosen: &BTreeMap<Position, Candidate>) -> Vec<usize> {
        chosen.values().map(|c| c.number).collect()
    }

    #[test]
    fn the_rival_whose_chain_reaches_the_known_value_wins() {
        let found = BTreeMap::from([
            (1, vec![candidate(0, 0, 1)]),
            (2, vec![candidate(1, 1, 2), candidate(2, 1, 22)]),
            (3, vec![candidate(3, 2, 3), candidate(4, 22, 33)]),
        ]);
        assert_eq!(chosen_numbers(&choose(&found, Some((3, ChainValue([3; 32]))))), [0, 1, 3]);
        assert_eq!(chosen_numbers(&choose(&found, Some((3, ChainValue([33; 32]))))), [0, 2, 4]);
        assert_eq!(chosen_numbers(&choose(&found, Some((2, ChainValue([22; 32]))))), [0, 2, 4]);
    }
}
