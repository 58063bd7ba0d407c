//! The digests of a segment from its records, and from its table where the chain over positions proves that.

use std::collections::BTreeMap;

use pgw_core::chain::{ChainValue, Digest};
use pgw_core::transaction::Position;

/// The chain value after these digests; `None`: one of them is unknown.
pub(crate) fn chain_over(
    previous: ChainValue,
    base: Position,
    digests: &[Option<Digest>],
) -> Option<ChainValue> {
    digests
        .iter()
        .zip(base..)
        .try_fold(previous, |chain, (digest, position)| Some(chain.next(position, (*digest)?)))
}

/// What a record says about its position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RecordedDigest {
    /// The digest of its content.
    pub(crate) digest: Digest,
    /// Value of the chain over positions before it.
    pub(crate) previous: ChainValue,
    /// The same after it.
    pub(crate) chain: ChainValue,
}

/// The digests of a segment from `base` on, from its records, and from its table where there is no record: but only where
/// the chain over positions, which the records around know, proves the table. `end`: the value after the last.
pub(crate) fn settled(
    (base, previous): (Position, ChainValue),
    entries: &[Option<Digest>],
    records: &BTreeMap<Position, RecordedDigest>,
    end: ChainValue,
) -> Vec<Option<Digest>> {
    let mut digests: Vec<Option<Digest>> = Vec::with_capacity(entries.len());
    let mut before = previous;
    let mut at = 0;
    while let Some(rest) = entries.get(at..).filter(|rest| !rest.is_empty()) {
        let position = base + at as u64;
        if let Some(record) = records.get(&position) {
            digests.push(Some(record.digest));
            before = record.chain;
            at += 1;
            continue;
        }
        let next = records.range(position..).next();
        let gap = next.map_or(rest.len() as u64, |(next, _)| next - position);
        let gap = usize::try_from(gap).unwrap_or(usize::MAX).min(rest.len());
        let reaches = next.map_or(end, |(_, record)| record.previous);
        let lost = rest.get(..gap).unwrap_or_default();
        if chain_over(before, position, lost) == Some(reaches) {
            digests.extend_from_slice(lost);
        } else {
            digests.resize(at + gap, None);
        }
        before = reaches;
        at += gap;
    }
    digests
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(position: Position) -> Digest {
        Digest([u8::try_from(position).unwrap(); 32])
    }

    #[test]
    fn a_lost_record_keeps_its_digest_only_where_the_chain_proves_it() {
        let previous = ChainValue([9; 32]);
        let known: Vec<_> = (101..=106).map(|at| Some(digest(at))).collect();
        let mut records = BTreeMap::new();
        let mut chain = previous;
        for position in 101..=106 {
            let record = RecordedDigest {
                digest: digest(position),
                previous: chain,
                chain: chain.next(position, digest(position)),
            };
            chain = record.chain;
            records.insert(position, record);
        }
        let settle = |entries: &[Option<Digest>], lost: &[Position], end| {
            let there =
                records.iter().filter(|(at, _)| !lost.contains(at)).map(|(at, r)| (*at, *r)).collect();
            settled((101, previous), entries, &there, end)
        };
        // Whatever the table has, a record counts.
        assert_eq!(settle(&[None; 6], &[], chain), known);
        assert_eq!(settle(&known, &[101, 102, 104, 106], chain), known);
        assert_eq!(settle(&known, &[101, 102, 103, 104, 105, 106], chain), known);
        let mut wrong = known.clone();
        wrong[3] = Some(digest(1));
        assert_eq!(settle(&wrong, &[], chain), known);
        let without =
            |gone: &[usize]| (0..6).map(|at| known[at].filter(|_| !gone.contains(&at))).collect::<Vec<_>>();
        assert_eq!(settle(&wrong, &[104], chain), without(&[3]));
        assert_eq!(
            settle(&wrong, &[103, 104], chain),
            without(&[2, 3]),
            "nothing says which of them is wrong"
        );
        assert_eq!(settle(&known, &[105, 106], ChainValue([1; 32])), without(&[4, 5]), "another end");
    }
}
