//! A record between its number and its barrier.

use pgw_core::chain::{ChainValue, Digest};
use pgw_core::transaction::{Body, Position, Transaction};

use crate::crypt::seal::Sealer;
use crate::dedup::fingerprint::Fingerprints;

/// Of a body larger than this only the sealed record is kept in memory.
pub(crate) const LARGE_BYTES: u64 = 1 << 20;

/// A record that is sealed and numbered, and not behind the barrier yet.
#[derive(Debug)]
pub(crate) struct PendingRecord {
    pub(crate) position: Position,
    pub(crate) digest: Digest,
    /// Value of the chain over positions after it.
    pub(crate) chain: ChainValue,
    pub(crate) record: Vec<u8>,
    /// Without its body if that is large: the record has it.
    pub(crate) transaction: Transaction,
    pub(crate) body_bytes: u64,
    pub(crate) fingerprints: Fingerprints,
}

impl PendingRecord {
    /// Whether this is its body.
    pub(crate) fn has_body(&self, sealer: &Sealer, body: &Body) -> bool {
        if self.body_bytes != body.len() as u64 {
            return false;
        }
        if self.transaction.body.len() == body.len() {
            return self.transaction.body == *body;
        }
        sealer.open(&self.record).is_ok_and(|(_, transaction)| transaction.body == *body)
    }
}
