//! A void: the entry for a transaction that is lost for good. An operator has written it off, so that its lane continues.
//!
//! On the wire each number of the released range is a transaction of kind `void`, whose payload is a [`Void`]. It holds the
//! number's place: no other transaction may ever have it. The chain passes over the range: the value stays what it was
//! before, up to the last number, which brings the value that the next transaction follows from.

use serde::{Deserialize, Serialize};

use crate::chain::ChainValue;
use crate::transaction::{Kind, Sequence};
use crate::wire::envelope::Envelope;
use crate::wire::{SCHEMA, from_json};

/// `type` of its envelope, whatever prefix and suffix a gateway has: a void is this protocol's own.
pub const EVENT_TYPE: &str = "org.practice-gateway.void.v1";
/// Media type of its payload.
pub const CONTENT_TYPE: &str = "application/json";
/// Longest reason, bytes.
pub const REASON_BYTES: usize = 256;

/// The payload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Void {
    /// 1.
    pub schema: u32,
    /// First number of the released range, in the envelope's epoch.
    pub from: Sequence,
    /// Its last number.
    pub through: Sequence,
    /// Chain value before this number: that of the last transaction before the range.
    pub previous: ChainValue,
    /// The operator's reason; no patient data.
    pub reason: String,
    /// When it was released, RFC 3339.
    pub time: String,
}

impl Void {
    /// A void of the current schema.
    #[must_use]
    pub fn new(range: (Sequence, Sequence), previous: ChainValue, reason: String, time: String) -> Self {
        Self { schema: SCHEMA, from: range.0, through: range.1, previous, reason, time }
    }

    /// The void in an envelope of its kind; `None`: it is an ordinary transaction, or malformed.
    #[must_use]
    pub fn of(envelope: &Envelope, body: &[u8]) -> Option<Self> {
        if !is_void(envelope) {
            return None;
        }
        let void: Self = from_json(body).ok()?;
        let fits =
            (void.from..=void.through).contains(&envelope.sequence) && void.reason.len() <= REASON_BYTES;
        fits.then_some(void)
    }
}

/// Whether an envelope says that it is a void.
#[must_use]
pub fn is_void(envelope: &Envelope) -> bool {
    envelope.is(Kind::Void)
}

/// The chain value that an envelope must carry after `before`; for both kinds of transaction.
#[must_use]
pub fn chain_after(before: ChainValue, envelope: &Envelope, body: &[u8]) -> ChainValue {
    if !is_void(envelope) {
        return before.next(envelope.sequence, envelope.digest(body));
    }
    match Void::of(envelope, body) {
        Some(void) if void.previous == before => {
            // Only the last number of the range changes the value.
            if envelope.sequence == void.through { envelope.chain } else { before }
        }
        // Not a void that follows here: return a value that its envelope cannot have.
        _ => ChainValue(envelope.chain.0.map(|byte| !byte)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transaction::{Body, Clock, Epoch, Transaction, TransactionId};
    use crate::wire::to_json;
    use uuid::Uuid;

    fn envelope(sequence: u64, chain: u8, kind: Kind) -> Envelope {
        let transaction = Transaction {
            id: TransactionId(Uuid::from_u128(1)),
            time: 0,
            event_type: EVENT_TYPE.into(),
            kind,
            content_type: CONTENT_TYPE.into(),
            sender: String::new(),
            key: String::new(),
            shows_key: false,
            correlation_id: String::new(),
            trace_parent: String::new(),
            clock: Clock::Synced,
            body: Body::new(Vec::new()),
        };
        let lane = "B86022/gw1/clinical".parse().unwrap();
        Envelope::new(&lane, Epoch(Uuid::nil()), sequence, ChainValue([chain; 32]), 0, &transaction)
    }

    #[test]
    fn only_the_last_number_of_the_range_brings_another_value() {
        let before = ChainValue([1; 32]);
        let body = to_json(&Void::new((4, 6), before, "disk".into(), "t".into()));
        for (sequence, chain, good) in [
            (4, 1, true),
            (5, 1, true),
            (5, 9, false),
            (6, 9, true),
            (6, 1, true),
            (7, 9, false),
            (3, 1, false),
        ] {
            let envelope = envelope(sequence, chain, Kind::Void);
            assert_eq!(chain_after(before, &envelope, &body) == envelope.chain, good, "{sequence} {chain}");
        }
        let last = envelope(6, 9, Kind::Void);
        assert_ne!(chain_after(ChainValue([2; 32]), &last, &body), last.chain, "another value before it");
        assert_ne!(chain_after(before, &last, b"{}"), last.chain, "no void at all");
        let plain = envelope(6, 9, Kind::Transaction);
        assert_ne!(chain_after(before, &plain, &body), plain.chain, "an ordinary one must be in the chain");
    }
}
