//! The acceptance slip: a sender's proof that its transaction is on stable storage.
//!
//! The HTTP door and the control socket send it as JSON; the folder door writes a document from it. MLLP uses HL7's
//! own acknowledgment instead.

use pgw_core::transaction::{Lane, Position, TransactionId, rfc3339};
use pgw_outbox::Accepted;
use serde::{Deserialize, Serialize};

/// What is known of an accepted transaction.
///
/// `id` and `time` are missing for a repetition of a transaction that has since been delivered, confirmed and deleted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AcceptanceSlip {
    /// The transaction's id.
    pub id: Option<TransactionId>,
    /// Its lane.
    pub lane: Lane,
    /// Its position there.
    pub position: Position,
    /// When it was accepted first, RFC 3339.
    pub time: Option<String>,
    /// Whether it had been accepted before.
    pub repeated: bool,
    /// Whether its key was used before with other content.
    pub key_reused: bool,
}

impl AcceptanceSlip {
    /// From the outbox's answer.
    #[must_use]
    pub fn new(lane: Lane, accepted: &Accepted) -> Self {
        let Accepted { id, position, time, repeated, key_reused, .. } = *accepted;
        let known = !id.0.is_nil();
        let (id, time) = (known.then_some(id), known.then(|| rfc3339(time)));
        Self { id, lane, position, time, repeated, key_reused }
    }

    /// The id as text; all zeros if it is no longer known.
    #[must_use]
    pub fn id_text(&self) -> String {
        self.id.unwrap_or(TransactionId(uuid::Uuid::nil())).to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accepted(id: u128) -> Accepted {
        let id = TransactionId(uuid::Uuid::from_u128(id));
        Accepted { id, position: 42, time: 0, repeated: id.0.is_nil(), key_reused: false, withheld: false }
    }

    #[test]
    fn a_slip_is_the_same_json_for_every_reader() {
        let lane = Lane::new("clinical").unwrap();
        let slip = AcceptanceSlip::new(lane.clone(), &accepted(7));
        let text = serde_json::to_string(&slip).unwrap();
        assert_eq!(
            text,
            r#"{"id":"00000000-0000-0000-0000-000000000007","lane":"clinical","position":42,"time":"1970-01-01T00:00:00.000Z","repeated":false,"key_reused":false}"#
        );
        assert_eq!(serde_json::from_str::<AcceptanceSlip>(&text).unwrap(), slip);
        let gone = AcceptanceSlip::new(lane, &accepted(0));
        assert_eq!((gone.id, &gone.time), (None, &None));
        assert_eq!(gone.id_text(), "00000000-0000-0000-0000-000000000000");
        assert!(serde_json::to_string(&gone).unwrap().starts_with(r#"{"id":null,"#));
    }
}
