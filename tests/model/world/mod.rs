//! A world for the delivery machine and the hub's committer, both real, with a model outbox, broker and store.

pub(crate) mod broker;
pub(crate) mod center;
pub(crate) mod surgery;

use pgw_core::chain::ChainValue;
use pgw_core::transaction::{Epoch, Lane, Sequence, TransactionId};
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

/// A chain that covers what the real one covers, without the cost of SHA-256 for millions of links.
pub(crate) fn link(before: ChainValue, epoch: Epoch, sequence: Sequence, id: TransactionId) -> ChainValue {
    let words = [epoch.0.as_u128() as u64, sequence, id.0.as_u128() as u64];
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
