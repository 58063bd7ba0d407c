//! The tail checkpoint: the last accepted position and chain value of each lane, outside sled.
//!
//! Some damage removes the tail of a sled database without an error; a store that ends before its tail checkpoint
//! shows it. It is synced soon after a group, not before the answer, so it may lag behind the store but
//! never runs ahead of it.
//!
//! An [`Alternating`] file, magic `PGWS`, version 1. Payload: for each lane 73 bytes, ordered by name:
//! length of the name (1), name padded with zeros (32), position (8, big-endian), chain value (32).

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use pgw_core::chain::ChainValue;
use pgw_core::transaction::{Lane, Position};

use crate::alternating::{Alternating, SlotContent, Take};

const MAGIC: [u8; 4] = *b"PGWS";
const VERSION: u16 = 1;
const NAME_BYTES: usize = 32;

/// The last of every lane, in memory and, after [`TailCheckpoint::sync`], on the disk.
#[derive(Debug)]
pub(crate) struct TailCheckpoint {
    file: Alternating,
    lanes: BTreeMap<Lane, (Position, ChainValue)>,
    unsynced: bool,
    damaged: bool,
}

impl TailCheckpoint {
    /// Opens or creates the file. A damaged one is not an error: it is empty, and [`TailCheckpoint::was_damaged`].
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let (file, found) = Alternating::open(path, MAGIC, VERSION)?;
        let (lanes, damaged) = match found {
            SlotContent::Nothing => (BTreeMap::new(), false),
            SlotContent::Damaged => (BTreeMap::new(), true),
            SlotContent::Payload(payload) => decode(&payload).map_or((BTreeMap::new(), true), |l| (l, false)),
        };
        Ok(Self { file, lanes, unsynced: false, damaged })
    }

    /// Reads the file, and writes nothing; `None`: it is damaged.
    pub(crate) fn read(path: &Path) -> io::Result<Option<BTreeMap<Lane, (Position, ChainValue)>>> {
        Ok(match Alternating::read(path, MAGIC, VERSION)? {
            SlotContent::Nothing => Some(BTreeMap::new()),
            SlotContent::Damaged => None,
            SlotContent::Payload(payload) => decode(&payload),
        })
    }

    /// Whether the file was damaged when it was opened: tails cannot be checked against it then.
    pub(crate) fn was_damaged(&self) -> bool {
        self.damaged
    }

    /// The last recorded position of `lane` and its chain value.
    pub(crate) fn last(&self, lane: &Lane) -> Option<(Position, ChainValue)> {
        self.lanes.get(lane).copied()
    }

    /// Notes the last position of `lane`, in memory only.
    pub(crate) fn record(&mut self, lane: &Lane, position: Position, chain: ChainValue) {
        if self.lanes.insert(lane.clone(), (position, chain)) != Some((position, chain)) {
            self.unsynced = true;
        }
    }

    /// Makes the recorded positions durable; costs nothing when nothing is new.
    pub(crate) fn sync(&mut self) -> io::Result<()> {
        if self.unsynced {
            self.file.write(&encode(&self.lanes))?;
            self.unsynced = false;
        }
        Ok(())
    }
}

fn encode(lanes: &BTreeMap<Lane, (Position, ChainValue)>) -> Vec<u8> {
    let mut payload = Vec::with_capacity(lanes.len() * 73);
    for (lane, (position, chain)) in lanes {
        let name = lane.as_str().as_bytes();
        payload.push(u8::try_from(name.len()).unwrap_or(u8::MAX));
        payload.extend(name);
        payload.extend(std::iter::repeat_n(0, NAME_BYTES.saturating_sub(name.len())));
        payload.extend(position.to_be_bytes());
        payload.extend(chain.0);
    }
    payload
}

fn decode(payload: &[u8]) -> Option<BTreeMap<Lane, (Position, ChainValue)>> {
    let mut rest = Take(payload);
    let mut lanes = BTreeMap::new();
    while !rest.0.is_empty() {
        let [length] = rest.array()?;
        let name: [u8; NAME_BYTES] = rest.array()?;
        let lane = Lane::new(std::str::from_utf8(name.get(..usize::from(length))?).ok()?).ok()?;
        lanes.insert(lane, (rest.u64()?, ChainValue(rest.array()?)));
    }
    Some(lanes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lane(name: &str) -> Lane {
        Lane::new(name).unwrap()
    }

    #[test]
    fn what_was_synced_comes_back_and_what_was_not_does_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("sidecar");
        let longest = "a".repeat(32);
        let mut checkpoint = TailCheckpoint::open(&path).unwrap();
        assert_eq!(checkpoint.last(&lane("clinical")), None);
        checkpoint.record(&lane("clinical"), 7, ChainValue([7; 32]));
        checkpoint.record(&lane(&longest), u64::MAX, ChainValue([9; 32]));
        checkpoint.sync().unwrap();
        checkpoint.record(&lane("clinical"), 8, ChainValue([8; 32]));
        let again = TailCheckpoint::open(&path).unwrap();
        assert_eq!(again.last(&lane("clinical")), Some((7, ChainValue([7; 32]))));
        assert_eq!(again.last(&lane(&longest)), Some((u64::MAX, ChainValue([9; 32]))));
        checkpoint.sync().unwrap();
        assert_eq!(
            TailCheckpoint::open(&path).unwrap().last(&lane("clinical")),
            Some((8, ChainValue([8; 32])))
        );
        assert!(!TailCheckpoint::open(&path).unwrap().was_damaged());
    }

    #[test]
    fn a_damaged_file_is_empty_and_says_so() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("sidecar");
        std::fs::write(&path, b"something else").unwrap();
        let checkpoint = TailCheckpoint::open(&path).unwrap();
        assert!(checkpoint.was_damaged());
        assert_eq!(checkpoint.last(&lane("clinical")), None);
    }

    #[test]
    fn golden_payload() {
        let lanes = BTreeMap::from([(lane("urgent"), (0x0102, ChainValue([0xab; 32])))]);
        let payload = encode(&lanes);
        let mut expected = b"\x06urgent".to_vec();
        expected.extend([0; 26]);
        expected.extend([0, 0, 0, 0, 0, 0, 1, 2]);
        expected.extend([0xab; 32]);
        assert_eq!(payload, expected);
        assert_eq!(decode(&payload), Some(lanes));
        for cut in 1..payload.len() {
            assert_eq!(decode(&payload[..cut]), None, "{cut}");
        }
    }
}
