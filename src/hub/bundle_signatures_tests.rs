use pgw_core::chain::ChainValue;
use pgw_core::transaction::{Body, Clock, Kind, Transaction, TransactionId};
use pgw_core::wire::signature::SigningKey;
use uuid::Uuid;

use super::*;
use crate::gateways::ListedKey;

const EPOCH: Epoch = Epoch(Uuid::from_u128(1));
const NEXT: Epoch = Epoch(Uuid::from_u128(2));

fn name() -> LaneName {
    LaneName {
        practice: "B86022".parse().unwrap(),
        gateway: "gw1".parse().unwrap(),
        lane: "clinical".parse().unwrap(),
    }
}

fn key() -> SigningKey {
    SigningKey::from_pkcs8(&SigningKey::generate().unwrap()).unwrap()
}

fn envelope(epoch: Epoch, sequence: Sequence, key: Option<&SigningKey>) -> Envelope {
    let transaction = Transaction {
        id: TransactionId(Uuid::from_u128(u128::from(sequence))),
        time: 1,
        event_type: String::from("x"),
        kind: Kind::Test,
        content_type: String::from("application/octet-stream"),
        sender: String::from("test"),
        given_sender: None,
        key: String::new(),
        shows_key: false,
        correlation_id: String::new(),
        trace_parent: String::new(),
        clock: Clock::Untrusted,
        body: Body::new(Vec::new()),
    };
    let chain = ChainValue::first(&name(), epoch, None);
    let envelope = Envelope::new(&name(), epoch, sequence, chain, 0, &transaction);
    match key {
        Some(key) => envelope.signed(&name(), key),
        None => envelope,
    }
}

fn list(keys: &[(&SigningKey, KeyState)]) -> Gateways {
    let keys = keys.iter().map(|(key, state)| ListedKey { key: key.public(), state: *state, added: None });
    let listed = ListedGateway { keys: keys.collect(), ..ListedGateway::default() };
    let name = name();
    Gateways { serial: 1, gateways: [((name.practice, name.gateway), listed)].into() }
}

/// The lane after these parts.
fn judged(parts: &[&[Envelope]], list: &Gateways) -> SignedLane {
    let mut lane = SignedLane::new(name());
    for part in parts {
        lane.add(part, list);
    }
    lane
}

fn unsigned(epoch: Epoch, sequence: Sequence, why: Why) -> Option<Unsigned> {
    Some(Unsigned { epoch, sequence, why })
}

#[test]
fn each_key_is_named_with_the_last_number_that_it_signed() {
    let (old, new) = (key(), key());
    let list = list(&[(&old, KeyState::Verifying), (&new, KeyState::Signing)]);
    let first = [envelope(EPOCH, 1, Some(&old)), envelope(EPOCH, 2, None), envelope(EPOCH, 3, Some(&old))];
    let second =
        [envelope(EPOCH, 4, Some(&new)), envelope(NEXT, 1, Some(&new)), envelope(NEXT, 2, Some(&new))];
    let lane = judged(&[&first, &second], &list);
    let (old, new) = (old.public().id(), new.public().id());
    assert_eq!(lane.signed, [(EPOCH, old, 3), (EPOCH, new, 4), (NEXT, new, 2)]);
    assert_eq!(lane.unsigned, None);
}

#[test]
fn the_first_number_that_is_not_signed_is_named_with_the_reason() {
    let (own, stolen, strange) = (key(), key(), key());
    let list = list(&[(&own, KeyState::Signing), (&stolen, KeyState::Revoked)]);
    let id = own.public().id();
    for (by, why) in [
        (None, Why::NoSignature),
        (Some(&strange), Why::UnknownKey),
        (Some(&stolen), Why::Revoked(stolen.public().id())),
    ] {
        let part = [envelope(EPOCH, 1, Some(&own)), envelope(EPOCH, 2, by), envelope(EPOCH, 3, by)];
        let lane = judged(&[&part, &[envelope(EPOCH, 4, Some(&own))]], &list);
        assert_eq!((&lane.signed[..], lane.unsigned), (&[(EPOCH, id, 1)][..], unsigned(EPOCH, 2, why)));
        // Nothing of a later epoch counts after it.
        let part = [envelope(EPOCH, 1, by), envelope(NEXT, 1, Some(&own))];
        let lane = judged(&[&part], &list);
        assert_eq!((lane.signed.len(), lane.unsigned), (0, unsigned(EPOCH, 1, why)));
    }
    let lane = judged(&[&[envelope(EPOCH, 1, Some(&own))]], &Gateways::default());
    assert_eq!(lane.unsigned, unsigned(EPOCH, 1, Why::NotListed));
}
