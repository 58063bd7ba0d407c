//! A world for the delivery machine and the hub's committer, both real, with a model outbox, broker and store.

pub(crate) mod broker;
pub(crate) mod center;
pub(crate) mod surgery;

use pgw_core::chain::{ChainValue, Digest};
use pgw_core::transaction::{Epoch, Kind, Lane, Sequence, TransactionId};
use uuid::Uuid;

/// SplitMix64: small, fast, and the same everywhere for a seed.
#[derive(Debug, Clone)]
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// Uniform in `0..below`.
    pub(crate) fn below(&mut self, below: u64) -> u64 {
        ((u128::from(self.bits()) * u128::from(below)) >> 64) as u64
    }

    pub(crate) fn percent(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

fn mix(bits: u64) -> u64 {
    let bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

pub(crate) fn lane() -> Lane {
    Lane::new("clinical").unwrap()
}

pub(crate) fn epoch(number: u64) -> Epoch {
    Epoch(Uuid::from_u128(u128::from(number)))
}

pub(crate) fn id(number: u64) -> TransactionId {
    TransactionId(Uuid::from_u128(u128::from(number)))
}

/// What is stored of a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Content {
    pub(crate) id: TransactionId,
    pub(crate) kind: Kind,
    /// 0 as it was accepted.
    pub(crate) body: u8,
}

impl Content {
    pub(crate) fn transaction(id: TransactionId) -> Self {
        Self { id, kind: Kind::Transaction, body: 0 }
    }

    pub(crate) fn digest(&self) -> Digest {
        let mut bytes = [0; 32];
        bytes[..16].copy_from_slice(self.id.0.as_bytes());
        bytes[16] = self.kind as u8;
        bytes[17] = self.body;
        Digest(bytes)
    }
}

/// A chain that covers what the real one covers, without the cost of SHA-256 for millions of links.
pub(crate) fn link(before: ChainValue, sequence: Sequence, content: &Content) -> ChainValue {
    let digest = content.digest().0;
    let word = |at: usize| u64::from_be_bytes(std::array::from_fn(|i| digest[at + i]));
    let words = [sequence, word(0), word(8), word(16)];
    let mut value = before;
    for (index, lane) in value.0.chunks_exact_mut(8).enumerate() {
        let mut word = u64::from_be_bytes(lane.try_into().unwrap()) ^ index as u64;
        for part in words {
            word = mix(word ^ part).wrapping_add(part);
        }
        lane.copy_from_slice(&word.to_be_bytes());
    }
    value
}

/// Which kinds of fault a run has met, and how often.
#[derive(Debug, Default, Clone)]
pub(crate) struct Seen(pub(crate) std::collections::BTreeMap<&'static str, u64>);

impl Seen {
    pub(crate) fn note(&mut self, what: &'static str) {
        *self.0.entry(what).or_default() += 1;
    }
}
