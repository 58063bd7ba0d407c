//! Numbers and chain values on the wire, made when a transaction is sent.
//!
//! A record on the disk has its position only. Its number follows from the lane's epochs; its chain value from a point that is
//! known (the epoch's beginning, the confirmed point, or what was computed last) and the digests from there on. So a reader in
//! order takes one step a record, and whoever goes back reads 32 bytes a record and no body.
//!
//! [`WireChain`] is the computation, without the store; [`WireReader`] reads the outbox with it.

use pgw_core::chain::{ChainValue, Digest, Through};
use pgw_core::numbering::EpochStart;
use pgw_core::transaction::{Epoch, Lane, LaneName, Position, Sequence, Transaction};
use pgw_core::wire::entry;
use pgw_outbox::{Outbox, ReadError};

/// Digests that are read at once.
const STEP: Position = 4096;

/// A transaction, or an entry, with its number on the wire.
#[derive(Debug, Clone)]
pub struct Numbered {
    /// Its position; of an entry, the first.
    pub position: Position,
    /// The last position that its number names.
    pub through: Position,
    /// Its epoch.
    pub epoch: Epoch,
    /// Its sequence there.
    pub sequence: Sequence,
    /// With number 1: where its epoch begins.
    pub link: Option<Through>,
    /// The chain value before it.
    pub previous: ChainValue,
    /// Its chain value.
    pub chain: ChainValue,
    /// The transaction itself.
    pub transaction: Transaction,
}

/// Computes the chain values of one lane, and keeps the last.
#[derive(Debug)]
pub struct WireChain {
    lane: LaneName,
    last: Option<Through>,
}

impl WireChain {
    /// Nothing is computed yet.
    #[must_use]
    pub fn new(lane: LaneName) -> Self {
        Self { lane, last: None }
    }

    /// The lane's own chain value at a number of an epoch (0: where it begins). `point` is one that the hub has confirmed.
    /// `digests` returns those from a position on, at most so many. `None`: a digest is unknown, and so is the value.
    ///
    /// # Errors
    /// Those of `digests`.
    pub fn value<E>(
        &mut self,
        start: &EpochStart,
        sequence: Sequence,
        point: Option<Through>,
        digests: &mut dyn FnMut(Position, usize) -> Result<Vec<Option<Digest>>, E>,
    ) -> Result<Option<ChainValue>, E> {
        let nearest = self.nearest(start, sequence, point);
        let (mut number, mut chain) = (nearest.through, nearest.chain);
        while number < sequence {
            let (first, _) = start.positions(number + 1);
            if let Some(entry) = start.entry_at(first) {
                number += 1;
                chain = chain.next(number, entry::transaction(entry).digest(&self.lane));
                continue;
            }
            let next_entry = start.entries.iter().map(|entry| entry.from).find(|from| *from > first);
            let plain = next_entry.map_or(Position::MAX, |from| from - first);
            let wanted = plain.min(sequence - number).min(STEP);
            let found = digests(first, usize::try_from(wanted).unwrap_or(usize::MAX))?;
            if found.is_empty() {
                return Ok(None);
            }
            for digest in (0..wanted).zip(found).map(|(_, digest)| digest) {
                let Some(digest) = digest else { return Ok(None) };
                number += 1;
                chain = chain.next(number, digest);
            }
        }
        self.last = Some(Through { epoch: start.epoch, through: number, chain });
        Ok(Some(chain))
    }

    /// The nearest known value, not after `sequence`.
    fn nearest(&self, start: &EpochStart, sequence: Sequence, point: Option<Through>) -> Through {
        let first = ChainValue::first(&self.lane, start.epoch, start.link.as_ref());
        let beginning = Through { epoch: start.epoch, through: 0, chain: first };
        let known = [self.last, point].into_iter().flatten();
        let known = known.filter(|at| at.epoch == start.epoch && at.through <= sequence);
        known.max_by_key(|at| at.through).unwrap_or(beginning)
    }

    /// It is known that the value at this number follows from the last one.
    fn follows(&mut self, epoch: Epoch, sequence: Sequence, chain: ChainValue) {
        self.last = Some(Through { epoch, through: sequence, chain });
    }
}

/// Reads a lane of the outbox with its numbers on the wire. Everything here blocks.
#[derive(Debug)]
pub struct WireReader {
    outbox: Outbox,
    lane: Lane,
    chain: WireChain,
}

impl WireReader {
    /// For a lane of the outbox.
    #[must_use]
    pub fn new(outbox: &Outbox, lane: &Lane) -> Self {
        let chain = WireChain::new(outbox.lane_name(lane));
        Self { outbox: outbox.clone(), lane: lane.clone(), chain }
    }

    /// As [`Outbox::read`], in the present epoch, with the entries in the place of what they stand for.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn read(
        &mut self,
        from: Position,
        max_records: usize,
        max_bytes: usize,
    ) -> Result<Vec<Numbered>, ReadError> {
        let Some(numbering) = self.outbox.numbering(&self.lane) else { return Ok(Vec::new()) };
        self.read_in(numbering.present(), from, max_records, max_bytes)
    }

    /// The same in one of the lane's epochs.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn read_in(
        &mut self,
        start: &EpochStart,
        from: Position,
        max_records: usize,
        max_bytes: usize,
    ) -> Result<Vec<Numbered>, ReadError> {
        let records: Vec<(Position, Position, Digest, Transaction)> = match start.entry_at(from) {
            Some(entry) => {
                let transaction = entry::transaction(entry);
                let digest = transaction.digest(&self.outbox.lane_name(&self.lane));
                vec![(entry.from, entry.through, digest, transaction)]
            }
            None => {
                let read = self.outbox.read(&self.lane, from, max_records, max_bytes)?;
                let plain = read.into_iter().take_while(|stored| start.entry_at(stored.position).is_none());
                plain
                    .map(|stored| (stored.position, stored.position, stored.digest, stored.transaction))
                    .collect()
            }
        };
        let Some((first, ..)) = records.first() else { return Ok(Vec::new()) };
        let mut sequence = start.number(*first);
        let Some(mut previous) = self.value(start, sequence.saturating_sub(1))? else {
            return Err(ReadError::Unproven { lane: self.lane.clone(), position: *first });
        };
        let mut numbered = Vec::with_capacity(records.len());
        for (position, through, digest, transaction) in records {
            let chain = previous.next(sequence, digest);
            let link = start.link.filter(|_| sequence == 1);
            let epoch = start.epoch;
            numbered.push(Numbered {
                position,
                through,
                epoch,
                sequence,
                link,
                previous,
                chain,
                transaction,
            });
            self.chain.follows(epoch, sequence, chain);
            (previous, sequence) = (chain, sequence + 1);
        }
        Ok(numbered)
    }

    /// This lane's own chain value at a number of an epoch (0: where it begins); `None`: it has no such epoch or number, or the
    /// value cannot be computed any more.
    ///
    /// # Errors
    /// [`ReadError::Trouble`]: the store cannot be read now.
    pub fn value_at(&mut self, epoch: Epoch, sequence: Sequence) -> Result<Option<ChainValue>, ReadError> {
        let numbering = self.outbox.numbering(&self.lane);
        let Some(start) = numbering.as_ref().and_then(|numbering| numbering.of(epoch)) else {
            return Ok(None);
        };
        self.value(start, sequence)
    }

    fn value(&mut self, start: &EpochStart, sequence: Sequence) -> Result<Option<ChainValue>, ReadError> {
        let (outbox, lane) = (&self.outbox, &self.lane);
        let point = outbox.watermark(lane).and_then(|watermark| watermark.point);
        self.chain.value(start, sequence, point, &mut |from, most| outbox.digests(lane, from, most))
    }

    /// Whether the outbox itself leads to the chain value that a hub confirmed last; `None`: nothing was confirmed, or it cannot
    /// be computed any more.
    ///
    /// # Errors
    /// [`ReadError::Trouble`]: the store cannot be read now.
    pub fn agrees_with_hub(&self) -> Result<Option<bool>, ReadError> {
        let (outbox, lane) = (&self.outbox, &self.lane);
        let Some(point) = outbox.watermark(lane).and_then(|watermark| watermark.point) else {
            return Ok(None);
        };
        let numbering = outbox.numbering(lane);
        let Some(start) = numbering.as_ref().and_then(|numbering| numbering.of(point.epoch)) else {
            return Ok(None);
        };
        let mut alone = WireChain::new(outbox.lane_name(lane));
        let ours =
            alone.value(start, point.through, None, &mut |from, most| outbox.digests(lane, from, most))?;
        Ok(ours.map(|ours| ours == point.chain))
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use pgw_core::numbering::{Entry, EntryKind, Gone};
    use pgw_core::transaction::TransactionId;
    use uuid::Uuid;

    use super::*;
    use crate::control::store_for_tests::{self, Store};

    const TAIL: Position = 12;

    fn lane() -> LaneName {
        "B86022/gw1/clinical".parse().unwrap()
    }

    fn digest(position: Position) -> Digest {
        Digest([u8::try_from(position).unwrap(); 32])
    }

    /// What is known of a lane of 12.
    #[derive(Default)]
    struct Disk {
        unknown: Vec<Position>,
        /// How many digests were read.
        read: u64,
    }

    impl Disk {
        fn value(
            &mut self,
            chain: &mut WireChain,
            start: &EpochStart,
            sequence: Sequence,
            point: Option<Through>,
        ) -> Option<ChainValue> {
            let mut digests = |from: Position, most: usize| -> Result<Vec<Option<Digest>>, Infallible> {
                let there = (from..=TAIL).take(most);
                let found: Vec<_> =
                    there.map(|at| (!self.unknown.contains(&at)).then(|| digest(at))).collect();
                self.read += found.len() as u64;
                Ok(found)
            };
            chain.value(start, sequence, point, &mut digests).unwrap()
        }
    }

    fn start(entries: Vec<Entry>) -> EpochStart {
        EpochStart { epoch: Epoch(Uuid::from_u128(1)), base: 2, link: None, follows: Vec::new(), entries }
    }

    fn entry(from: Position, through: Position) -> Entry {
        let id = TransactionId(Uuid::from_u128(9));
        Entry { from, through, kind: EntryKind::Void, id, time: 0, reason: "r".into(), names: Vec::new() }
    }

    #[test]
    fn a_value_follows_from_the_nearest_that_is_known() {
        let (mut disk, start) = (Disk::default(), start(vec![]));
        let mut chain = WireChain::new(lane());
        let all: Vec<_> = (0..=10).map(|n| disk.value(&mut chain, &start, n, None).unwrap()).collect();
        assert_eq!(disk.read, 10, "one step each");
        assert_eq!(all[0], ChainValue::first(&lane(), start.epoch, None));
        assert_eq!(all[3], all[2].next(3, digest(5)));
        // Whoever goes back walks from the beginning, or from the confirmed point.
        disk.read = 0;
        assert_eq!(disk.value(&mut chain, &start, 4, None), Some(all[4]));
        assert_eq!(disk.read, 4);
        disk.read = 0;
        let point = Through { epoch: start.epoch, through: 6, chain: all[6] };
        assert_eq!(disk.value(&mut WireChain::new(lane()), &start, 8, Some(point)), Some(all[8]));
        assert_eq!(disk.read, 2);
        // What is before the point may be lost with its digest: the hub has it.
        disk.unknown = vec![5];
        assert_eq!(disk.value(&mut WireChain::new(lane()), &start, 8, None), None);
        assert_eq!(disk.value(&mut WireChain::new(lane()), &start, 8, Some(point)), Some(all[8]));
        let other = Through { epoch: Epoch(Uuid::from_u128(7)), ..point };
        assert_eq!(disk.value(&mut WireChain::new(lane()), &start, 8, Some(other)), None, "another epoch's");
        assert_eq!(disk.value(&mut WireChain::new(lane()), &start, 11, Some(point)), None, "beyond the tail");
    }

    /// A hub that ends behind such a record ends where this lane has no value: delivery begins a new epoch.
    #[test]
    fn behind_a_record_that_is_lost_with_its_digest_nothing_has_a_value_until_an_epoch_begins_there() {
        let store = Store::with_lost_digests(12, 4, &[5]);
        let (outbox, lane) = (&store.outbox, store_for_tests::lane());
        let epoch = outbox.numbering(&lane).unwrap().present().epoch;
        let mut wire = WireReader::new(outbox, &lane);
        assert!(wire.value_at(epoch, 4).unwrap().is_some());
        for unknown in 5..=12 {
            assert_eq!(wire.value_at(epoch, unknown).unwrap(), None, "{unknown}");
        }
        assert!(matches!(wire.read(5, 9, 1000), Err(ReadError::Gone { position: 5, .. })));
        let unproven = wire.read(9, 9, 1000);
        assert!(matches!(unproven, Err(ReadError::Unproven { position: 9, .. })), "{unproven:?}");
        assert_eq!(outbox.gone(&lane), [Gone { from: 5, through: 8, kind: None }], "a person decides");
        outbox.new_epoch(&lane, 8, None, Vec::new(), &[]).unwrap();
        let read = wire.read(9, 9, 1000).unwrap();
        assert_eq!(read.iter().map(|numbered| numbered.sequence).collect::<Vec<_>>(), [1, 2, 3, 4]);
    }

    #[test]
    fn an_entry_has_a_digest_of_its_own_and_needs_none_of_what_it_stands_for() {
        let mut disk = Disk { unknown: vec![4, 5, 6], ..Disk::default() };
        let start = start(vec![entry(4, 6)]);
        let value = |disk: &mut Disk, n| disk.value(&mut WireChain::new(lane()), &start, n, None).unwrap();
        let void = entry::transaction(&start.entries[0]).digest(&lane());
        assert_eq!(value(&mut disk, 2), value(&mut disk, 1).next(2, void));
        assert_eq!(value(&mut disk, 3), value(&mut disk, 2).next(3, digest(7)));
        assert_eq!(value(&mut disk, 8), value(&mut disk, 7).next(8, digest(12)));
    }
}
