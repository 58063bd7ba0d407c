//! The test vectors of `docs/wire-format.md` are checked against the code: the document is the contract.

use pgw_core::chain::{ChainValue, Digest};
use pgw_core::numbering::EntryKind;
use pgw_core::transaction::{Epoch, LaneName};
use pgw_core::wire::entry;
use pgw_core::wire::envelope::Envelope;
use pgw_core::wire::signature::{PublicKey, SigningKey, Word};
use pgw_outbox::{EventType, TypeAffixes};
use serde_json::Value;

fn vectors() -> Value {
    let document = include_str!("../../docs/wire-format.md");
    let start = document.find("```json vectors").expect("the block of vectors") + "```json vectors".len();
    let end = start + document[start..].find("```").expect("the end of the block");
    serde_json::from_str(&document[start..end]).expect("vectors are JSON")
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_else(|| panic!("{key} is missing in the vectors"))
}

#[test]
fn chain_values_are_those_of_the_document() {
    let vectors = vectors();
    let chain = &vectors["chain"];
    let epoch = Epoch(text(chain, "epoch").parse().expect("a UUID"));
    let name = ["practice", "gateway", "lane"].map(|key| text(chain, key)).join("/");
    let mut value = ChainValue::first(&name.parse().expect("a lane"), epoch, None);
    assert_eq!(value.to_string(), text(chain, "first"));
    let transactions = chain["transactions"].as_array().expect("transactions");
    assert!(transactions.len() >= 2);
    for transaction in transactions {
        let attributes = transaction["attributes"].as_object().expect("attributes");
        let mut attributes: Vec<_> =
            attributes.iter().map(|(name, value)| (name.as_str(), value.as_str().expect("text"))).collect();
        attributes.sort_unstable();
        let digest = Digest::of(attributes, text(transaction, "body").as_bytes());
        assert_eq!(pgw_core::text::hex(&digest.0), text(transaction, "digest"));
        value = value.next(transaction["sequence"].as_u64().expect("a number"), digest);
        assert_eq!(value.to_string(), text(transaction, "chain"));
    }
}

#[test]
fn the_signature_is_that_of_the_document() {
    let vectors = vectors();
    let signature = &vectors["signature"];
    let public: PublicKey = text(signature, "public_key").parse().expect("a public key");
    public
        .verify(
            Word::Receipt,
            text(signature, "topic"),
            text(signature, "payload").as_bytes(),
            signature["signature"].as_str(),
        )
        .expect("the document's signature verifies");
    let seed_document = hex(text(signature, "pkcs8"));
    let key = SigningKey::from_pkcs8(&seed_document).expect("the document's key");
    assert_eq!(
        key.sign(Word::Receipt, text(signature, "topic"), text(signature, "payload").as_bytes()).to_string(),
        text(signature, "signature")
    );
}

#[test]
fn the_signature_of_a_head_is_that_of_the_document() {
    let vectors = vectors();
    let (chain, signature) = (&vectors["chain"], &vectors["signature"]);
    let names = ["practice", "gateway", "lane"].map(|name| text(chain, name));
    let lane: LaneName = names.join("/").parse().expect("a lane");
    let epoch = Epoch(text(chain, "epoch").parse().expect("an epoch"));
    let first = &chain["transactions"][0];
    let value = text(first, "chain").parse().expect("a chain value");
    let key = SigningKey::from_pkcs8(&hex(text(signature, "pkcs8"))).expect("the document's key");
    let head = key.sign_head(&lane, epoch, first["sequence"].as_u64().expect("a number"), value);
    assert_eq!(head.to_string(), text(signature, "head_of_transaction_1"));
}

#[test]
fn the_envelope_is_that_of_the_document() {
    let vectors = vectors();
    let properties: Vec<(String, String)> = vectors["envelope"]["user_properties"]
        .as_object()
        .expect("properties")
        .iter()
        .map(|(name, value)| (name.clone(), value.as_str().expect("text").to_owned()))
        .collect();
    let envelope = Envelope::from_properties(
        vectors["envelope"]["content_type"].as_str().map(str::to_owned),
        properties.clone(),
    )
    .expect("the document's envelope");
    assert!(envelope.is_of(&"B86022/gw1/clinical".parse().expect("a lane")));
    let digest = text(&vectors["chain"]["transactions"][0], "digest");
    let body = text(&vectors["chain"]["transactions"][0], "body");
    assert_eq!(pgw_core::text::hex(&envelope.digest(body.as_bytes()).0), digest);
    let (content_type, mut written) = envelope.into_properties();
    assert_eq!(content_type, text(&vectors["envelope"], "content_type"));
    let mut expected = properties;
    written.sort();
    expected.sort();
    assert_eq!(written, expected);
}

#[test]
fn types_are_called_as_in_the_document() {
    let vectors = vectors();
    let types = TypeAffixes::default();
    for (at, name) in ["hl7v2.oru_r01", "http.transaction"].into_iter().enumerate() {
        let attributes = &vectors["chain"]["transactions"][at]["attributes"];
        assert_eq!(types.whole(EventType::Named(name.to_owned())), text(attributes, "type"));
    }
    let document = include_str!("../../docs/wire-format.md");
    assert!(
        document.contains(&format!("`type` = `{}` at every gateway", entry::event_type(EntryKind::Void)))
    );
}

fn hex(text: &str) -> Vec<u8> {
    (0..text.len() / 2)
        .map(|i| u8::from_str_radix(&text[2 * i..2 * i + 2], 16).expect("hexadecimal"))
        .collect()
}
