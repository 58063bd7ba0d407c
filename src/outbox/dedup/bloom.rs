//! Which key fingerprints the duplicate index surely lacks, so that a new transaction costs no read.
//!
//! A Bloom filter of a fixed 4 MiB with three bits for each key: at 1,000,000 keys one read in 1,600 is
//! needless, at 10,000,000 one in five. Keys are never removed; the filter is rebuilt at each start.

use crate::dedup::fingerprint::Fingerprints;

const WORDS: usize = 1 << 19;

/// The filter.
pub(crate) struct BloomFilter(Vec<u64>);

impl BloomFilter {
    /// For an index that is empty.
    pub(crate) fn new() -> Self {
        Self(vec![0; WORDS])
    }

    /// Notes that the key of these fingerprints is in the index.
    pub(crate) fn add(&mut self, fingerprints: Fingerprints) {
        for (word, bit) in places(fingerprints.key) {
            self.0[word] |= bit;
        }
    }

    /// False: no slot of the index has this key.
    pub(crate) fn may_have(&self, fingerprints: Fingerprints) -> bool {
        places(fingerprints.key).all(|(word, bit)| self.0[word] & bit != 0)
    }

    /// Adds all keys of another one.
    pub(crate) fn join(&mut self, other: &Self) {
        for (word, more) in self.0.iter_mut().zip(&other.0) {
            *word |= more;
        }
    }
}

/// The fingerprint is a keyed hash already: its parts are the places.
fn places(key: u64) -> impl Iterator<Item = (usize, u64)> {
    let first = key & 0xffff_ffff;
    let step = (key >> 32) | 1;
    (0..3).map(move |n| {
        let bit = first.wrapping_add(step.wrapping_mul(n));
        ((bit >> 6) as usize % WORDS, 1 << (bit & 63))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fingerprints(number: u64) -> Fingerprints {
        let digest = ring::digest::digest(&ring::digest::SHA256, &number.to_be_bytes());
        let mut key = [0; 8];
        key.copy_from_slice(&digest.as_ref()[..8]);
        Fingerprints { key: u64::from_be_bytes(key), body: 0 }
    }

    #[test]
    fn what_was_added_is_always_seen_and_little_else() {
        let (mut one, mut other) = (BloomFilter::new(), BloomFilter::new());
        (0..50_000).for_each(|n| one.add(fingerprints(n)));
        (50_000..100_000).for_each(|n| other.add(fingerprints(n)));
        one.join(&other);
        assert!((0..100_000).all(|n| one.may_have(fingerprints(n))));
        let strangers = (100_000..200_000).filter(|n| one.may_have(fingerprints(*n))).count();
        assert!(strangers < 20, "{strangers} of 100,000");
    }
}
