//! A segment that sled cannot read any more: what can be had of it goes to a new one in its place; the damaged one is set
//! aside by rename, as a copy may not fit, and is never deleted ([`crate::guard::replace`]).

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use pgw_core::chain::ChainValue;
use pgw_core::delivery::Numbering;
use pgw_core::transaction::{Epoch, Lane, Position};
use uuid::Uuid;

use crate::crypt::seal::Sealer;
use crate::guard::carve::{Scan, header_in, scan_directory};
use crate::guard::replace::replace;
use crate::guard::segment::{DATABASE_FILE, Extent, Segment, SegmentError, SegmentHeader};
use crate::pipeline::jobs::Job;
use crate::pipeline::lane::LaneShared;
use crate::pipeline::shared::Shared;
use crate::quarantine::{Quarantine, RIVAL};

/// So long a repair waits for those who still read the segment.
const LET_GO_PATIENCE: Duration = Duration::from_secs(5);

/// What is known of a damaged segment from elsewhere.
pub(crate) struct Damaged<'a> {
    /// The store's directory.
    pub(crate) store: &'a Path,
    /// Its lane, and the lane's number.
    pub(crate) lane: (&'a Lane, u16),
    /// Its ordinal and directory.
    pub(crate) ordinal: u64,
    pub(crate) directory: &'a Path,
    /// What the ledger says of it.
    pub(crate) extent: Option<Extent>,
    /// The lane's epochs.
    pub(crate) numbering: Option<&'a Numbering>,
    /// A position in it whose chain value is known from elsewhere: the end of the row's part, or the sidecar's.
    pub(crate) known: Option<(Position, ChainValue)>,
    /// The last position that counts in it, if a later segment says so.
    pub(crate) through: Option<Position>,
}

/// What came of it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// Records in the new segment.
    pub(crate) records: u64,
    /// Its first and last position.
    pub(crate) range: Option<(Position, Position)>,
    /// Records that lost against another one for the same position; they are in quarantine.
    pub(crate) rivals: u64,
}

/// One record that was found.
#[derive(Debug, Clone, Copy)]
struct Candidate {
    /// The how-manieth of the scan.
    number: usize,
    previous: ChainValue,
    chain: ChainValue,
}

/// Salvages a damaged segment into a new one in its place. No handle of it may be open here.
pub(crate) fn salvage_segment(
    damaged: &Damaged<'_>,
    sealer: &Sealer,
    quarantine: &Quarantine,
) -> Result<Outcome, SegmentError> {
    let scan = scan_directory(damaged.directory).map_err(SegmentError::Files)?;
    tracing::warn!(
        lane = %damaged.lane.0,
        segment = damaged.ordinal,
        unreadable_bytes = scan.unreadable_bytes(),
        in_pieces = ?scan.in_pieces(),
        "Scanned a damaged segment for records"
    );
    let header = header_in(damaged.directory);
    let base = header.as_ref().map(|h| h.base).or(damaged.extent.map(|e| e.base)).unwrap_or(1);
    let found = candidates(damaged, &scan, sealer, base);
    let mut chosen = choose(&found, damaged.known);
    if damaged.through.is_none() {
        // What a crash left behind a gap was never answered, and would make a hole where there is none.
        let durable = damaged.known.map_or(0, |(position, _)| position).max(base.saturating_sub(1));
        let end = (durable + 1..).find(|position| !chosen.contains_key(position)).unwrap_or(u64::MAX);
        chosen.split_off(&end);
    }

    let fresh = damaged.directory.with_extension("new");
    if fresh.exists() {
        fs::remove_dir_all(&fresh).map_err(SegmentError::Files)?;
    }
    let segment = Segment::create(&fresh)?;
    segment.begin(&header.unwrap_or_else(|| made_up_header(damaged, base, &chosen)))?;
    let mut rivals = 0;
    for (number, salvaged) in scan.records().enumerate() {
        match chosen.get(&salvaged.position) {
            Some(candidate) if candidate.number == number => {
                segment.append(salvaged.position, &salvaged.record)?
            }
            Some(_) => {
                rivals += 1;
                let _ = quarantine.keep_own(RIVAL, damaged.lane.0.as_str(), &salvaged.record);
            }
            None => {}
        }
    }
    segment.barrier()?;
    drop(segment);
    replace(damaged.store, (damaged.lane.0, damaged.ordinal), damaged.directory, &fresh)
        .map_err(SegmentError::Files)?;
    let range = chosen.keys().next().copied().zip(chosen.keys().next_back().copied());
    Ok(Outcome { records: chosen.len() as u64, range, rivals })
}

/// The records of this segment that were found, by position.
fn candidates(
    damaged: &Damaged<'_>,
    scan: &Scan,
    sealer: &Sealer,
    base: Position,
) -> BTreeMap<Position, Vec<Candidate>> {
    let mut found: BTreeMap<Position, Vec<Candidate>> = BTreeMap::new();
    for (number, salvaged) in scan.records().enumerate() {
        let position = salvaged.position;
        let Ok((header, _)) = sealer.open(&salvaged.record) else { continue };
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

/// A header for a segment whose own is destroyed, from what is known elsewhere.
fn made_up_header(
    damaged: &Damaged<'_>,
    base: Position,
    chosen: &BTreeMap<Position, Candidate>,
) -> SegmentHeader {
    let first = chosen.first_key_value();
    SegmentHeader {
        lane: damaged.lane.1,
        ordinal: damaged.ordinal,
        base: damaged.extent.map(|e| e.base).or(first.map(|(position, _)| *position)).unwrap_or(base),
        previous: damaged
            .extent
            .map(|e| e.previous)
            .or(first.map(|(_, candidate)| candidate.previous))
            .unwrap_or(ChainValue([0; 32])),
        numbering: damaged.numbering.cloned().unwrap_or_else(|| Numbering::new(Epoch(Uuid::now_v7()))),
        predecessor: None,
    }
}

/// Among rivals the one counts whose chain reaches the value that is known, from the end backwards.
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
        // Nothing decides: the one that follows from what is before it, then the one that was found last.
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

/// What a reader who found damage can do next.
pub(crate) enum Repaired {
    /// There is something new to be read.
    Yes,
    /// It was done before, or gave nothing: what is missing is lost.
    Useless,
    /// Not now.
    Later(String),
}

impl Shared {
    /// Sets a damaged segment of the row aside and salvages what is in it into a new one. Once a run: what is still
    /// missing then is lost.
    pub(crate) fn repair(&self, lane: &LaneShared, ordinal: u64) -> Repaired {
        let mut repaired = crate::lock::locked(&lane.repaired);
        if repaired.contains(&ordinal) {
            return Repaired::Useless;
        }
        let (extent, through, known, numbering, written) = {
            let state = lane.state();
            let Some(extent) = state.row.get(&ordinal).copied() else { return Repaired::Yes };
            let next = state.row.range(ordinal + 1..).next().map(|(_, next)| *next);
            let through = next.map_or(state.tail, |next| next.base - 1);
            let chain = next.map_or(state.chain, |next| next.previous);
            (extent, through, (through, chain), state.numbering.clone(), next.is_none())
        };
        if written {
            // The writer has it: it goes on elsewhere, and then this one can be replaced.
            if let Some((index, _)) = self.lane(&lane.name) {
                self.job(Job::Retire { lane: index, tail: None });
            }
            return Repaired::Later("a damaged segment is being left".into());
        }
        let directory: PathBuf = lane.segment_directory(ordinal);
        let damaged = Damaged {
            store: &self.settings.directory,
            lane: (&lane.name, lane.id),
            ordinal,
            directory: &directory,
            extent: Some(extent),
            numbering: Some(&numbering),
            known: Some(known),
            through: Some(through),
        };
        let database = directory.join(DATABASE_FILE);
        let salvaged = lane.handles.alone(ordinal, &database, LET_GO_PATIENCE, || {
            salvage_segment(&damaged, &self.sealer, &self.quarantine)
        });
        let Some(salvaged) = salvaged else {
            return Repaired::Later("a damaged segment is still being read elsewhere".into());
        };
        match salvaged {
            Ok(outcome) => {
                repaired.insert(ordinal);
                let lost = (through + 1 - extent.base).saturating_sub(outcome.records);
                tracing::error!(lane = %lane.name, ordinal, salvaged = outcome.records, lost, "Damaged segment was replaced by what could be salvaged");
                self.notable("salvaged", told(&lane.name, ordinal, &outcome, lost));
                Repaired::Yes
            }
            Err(error) if error.is_full() => {
                self.out_of_room();
                Repaired::Later(error.to_string())
            }
            Err(error) => {
                tracing::error!(lane = %lane.name, ordinal, error = %error, "Damaged segment could not be salvaged");
                Repaired::Later(error.to_string())
            }
        }
    }
}

/// One sentence of a replaced segment.
pub(crate) fn told(lane: &Lane, ordinal: u64, outcome: &Outcome, lost: u64) -> String {
    format!(
        "segment {ordinal} of lane {lane} was damaged and set aside; {} records were salvaged, {lost} are missing, {} rivals are in quarantine",
        outcome.records, outcome.rivals
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(number: usize, previous: u8, chain: u8) -> Candidate {
        Candidate { number, previous: ChainValue([previous; 32]), chain: ChainValue([chain; 32]) }
    }

    fn numbers(chosen: &BTreeMap<Position, Candidate>) -> Vec<usize> {
        chosen.values().map(|c| c.number).collect()
    }

    #[test]
    fn the_rival_whose_chain_reaches_the_known_value_wins() {
        let found = BTreeMap::from([
            (1, vec![candidate(0, 0, 1)]),
            (2, vec![candidate(1, 1, 2), candidate(2, 1, 22)]),
            (3, vec![candidate(3, 2, 3), candidate(4, 22, 33)]),
        ]);
        assert_eq!(numbers(&choose(&found, Some((3, ChainValue([3; 32]))))), [0, 1, 3]);
        assert_eq!(numbers(&choose(&found, Some((3, ChainValue([33; 32]))))), [0, 2, 4]);
        assert_eq!(numbers(&choose(&found, Some((2, ChainValue([22; 32]))))), [0, 2, 4]);
    }
}
