//! Where the hub's line of a lane ends, as a file: for an export after a bundle whose link was not that end, while there is no
//! link to ask over.
//!
//! One object of JSON and a newline: the hub's receipt for the lane as it would publish it, and its signature.
//!
//! ```text
//! {"pgw":"end","schema":1,"topic":"pgw/v1/B86022/gw1/receipt/hub1/clinical","payload":"{...}","signature":"..."}
//! ```
//!
//! It answers no question. It says where an epoch may begin, and nothing else: it confirms nothing and nothing is deleted
//! because of it.

use std::io::{self, Read, Write};

use pgw_core::transaction::{Hub, LaneName};
use pgw_core::wire::receipt::Receipt;
use pgw_core::wire::signature::{PublicKey, Word};
use pgw_core::wire::topic::Root;
use pgw_core::wire::{SCHEMA, WireError, from_json};
use serde::{Deserialize, Serialize};

use crate::receipts::SignedReceipt;

/// Largest file that is read, bytes.
const MOST_BYTES: u64 = 32 * 1024;

#[derive(Serialize, Deserialize)]
struct EndFile {
    pgw: String,
    schema: u32,
    topic: String,
    payload: String,
    signature: String,
}

/// Why such a file does not count.
#[derive(Debug, thiserror::Error)]
pub enum EndError {
    /// It cannot be read.
    #[error("it cannot be read")]
    Io(#[from] io::Error),
    /// It has another form.
    #[error("it is not a file that `practice-hub import` has written with the end of a lane")]
    Form,
    /// It is of another lane, gateway or hub.
    #[error("it is the end of {found}, and {expected} is asked for")]
    Other {
        /// The topic that was expected.
        expected: String,
        /// Its topic.
        found: String,
    },
    /// It is not signed with one of the hub's keys, or its payload cannot be read.
    #[error("it does not count")]
    Payload(#[from] WireError),
}

/// Writes the file's content.
///
/// # Errors
/// Those of the writer.
pub fn write(out: &mut impl Write, end: &SignedReceipt) -> io::Result<()> {
    let SignedReceipt { topic, payload, signature } = end.clone();
    serde_json::to_writer(
        &mut *out,
        &EndFile { pgw: "end".into(), schema: SCHEMA, topic, payload, signature },
    )?;
    out.write_all(b"\n")
}

/// Reads the file's content. Nothing of it is verified: see [`verify`].
///
/// # Errors
/// [`EndError::Io`], [`EndError::Form`].
pub fn read(input: &mut impl Read) -> Result<SignedReceipt, EndError> {
    let mut text = Vec::new();
    input.take(MOST_BYTES).read_to_end(&mut text)?;
    let file: EndFile = serde_json::from_slice(&text).map_err(|_| EndError::Form)?;
    if file.pgw != "end" || file.schema != SCHEMA {
        return Err(EndError::Form);
    }
    let EndFile { topic, payload, signature, .. } = file;
    Ok(SignedReceipt { topic, payload, signature })
}

/// What the hub says in it, if one of these keys, which are the hub's, has signed it for this lane.
///
/// # Errors
/// [`EndError::Other`], [`EndError::Payload`].
pub fn verify(
    end: &SignedReceipt,
    hub: &Hub,
    lane: &LaneName,
    keys: &[PublicKey],
) -> Result<Receipt, EndError> {
    let expected = Root::new(&lane.practice, &lane.gateway).receipt(hub, &lane.lane);
    if end.topic != expected {
        return Err(EndError::Other { expected, found: end.topic.clone() });
    }
    let payload = end.payload.as_bytes();
    let signed =
        |key: &PublicKey| key.verify(Word::Receipt, &end.topic, payload, Some(&end.signature)).is_ok();
    if !keys.iter().any(signed) {
        return Err(WireError::Signature.into());
    }
    let receipt: Receipt = from_json(payload)?;
    if receipt.hub != *hub {
        return Err(WireError::Malformed("hub").into());
    }
    Ok(receipt)
}

#[cfg(test)]
mod tests {
    use pgw_core::chain::{ChainValue, Through};
    use pgw_core::transaction::Epoch;
    use pgw_core::wire::receipt::{HubLimits, StoreId};
    use pgw_core::wire::signature::SigningKey;
    use pgw_core::wire::to_json;
    use uuid::Uuid;

    use super::*;

    fn lane(name: &str) -> LaneName {
        format!("B86022/gw1/{name}").parse().unwrap()
    }

    fn key() -> SigningKey {
        SigningKey::from_pkcs8(&SigningKey::generate().unwrap()).unwrap()
    }

    fn signed(key: &SigningKey, hub: &Hub) -> (Receipt, SignedReceipt) {
        let end = Through { epoch: Epoch(Uuid::from_u128(1)), through: 7, chain: ChainValue([7; 32]) };
        let receipt = Receipt {
            schema: SCHEMA,
            hub: hub.clone(),
            incarnation: 1,
            counter: 1,
            end: Some(end),
            holds_point: None,
            store: StoreId(Uuid::nil()),
            succeeds: Vec::new(),
            tail_seen: None,
            lost: Vec::new(),
            backed_up_through: None,
            limits: HubLimits::default(),
            nonce: None,
            time: "t".into(),
        };
        let topic = Root::new(&lane("clinical").practice, &lane("clinical").gateway)
            .receipt(hub, &lane("clinical").lane);
        let payload = String::from_utf8(to_json(&receipt)).unwrap();
        let signature = key.sign(Word::Receipt, &topic, payload.as_bytes()).to_string();
        (receipt, SignedReceipt { topic, payload, signature })
    }

    #[test]
    fn an_end_goes_there_and_back_and_counts_only_as_its_hub_has_signed_it() {
        let (own, other, hub) = (key(), key(), Hub::new("hub1").unwrap());
        let (receipt, end) = signed(&own, &hub);
        let mut file = Vec::new();
        write(&mut file, &end).unwrap();
        let read = read(&mut &file[..]).unwrap();
        assert_eq!(read, end);
        let keys = [other.public(), own.public()];
        assert_eq!(verify(&read, &hub, &lane("clinical"), &keys).unwrap(), receipt);
        // Another key, lane or hub, and a changed number.
        assert!(matches!(
            verify(&read, &hub, &lane("clinical"), &keys[..1]),
            Err(EndError::Payload(WireError::Signature))
        ));
        assert!(matches!(verify(&read, &hub, &lane("letters"), &keys), Err(EndError::Other { .. })));
        let hub2 = Hub::new("hub2").unwrap();
        assert!(matches!(verify(&read, &hub2, &lane("clinical"), &keys), Err(EndError::Other { .. })));
        let mut changed = read;
        changed.payload = changed.payload.replace(r#""through":7"#, r#""through":6"#);
        assert_ne!(changed, end);
        assert!(matches!(
            verify(&changed, &hub, &lane("clinical"), &keys),
            Err(EndError::Payload(WireError::Signature))
        ));
    }

    #[test]
    fn something_else_is_no_end() {
        let line = serde_json::to_vec(&signed(&key(), &Hub::new("hub1").unwrap()).1).unwrap();
        for other in [&b""[..], b"{}", &line[..], br#"{"pgw":"lane"}"#] {
            assert!(matches!(read(&mut &other[..]), Err(EndError::Form)));
        }
    }
}
