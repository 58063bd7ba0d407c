use super::*;
use crate::gateways::common_name;

fn key(byte: u8) -> PublicKey {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode([byte; 32]).parse().unwrap()
}

fn name(text: &str) -> (Practice, Gateway) {
    common_name(text).unwrap()
}

/// `B86022.gw1` with key 1, `B86023.gw1` with key 9.
fn list() -> Gateways {
    let mut list = Gateways::default();
    list.add(&name("B86022.gw1"), ListedGateway::default(), key(1), 7).unwrap();
    list.add(&name("B86023.gw1"), ListedGateway::default(), key(9), 7).unwrap();
    list
}

fn states(list: &Gateways) -> Vec<(PublicKey, KeyState)> {
    let (practice, gateway) = name("B86022.gw1");
    list.get(&practice, &gateway).unwrap().keys.iter().map(|listed| (listed.key, listed.state)).collect()
}

#[test]
fn a_gateway_is_added_once_and_with_a_key_of_its_own() {
    let mut list = list();
    let before = list.clone();
    let again = list.add(&name("B86022.gw1"), ListedGateway::default(), key(2), 8);
    assert!(matches!(again, Err(ChangeError::Listed(..))));
    let twice = list.add(&name("B86024.gw1"), ListedGateway::default(), key(1), 8);
    assert!(matches!(twice, Err(ChangeError::KeyOfAnother(..))));
    assert_eq!(list, before);
}

#[test]
fn after_a_rotation_the_former_key_still_verifies_and_can_sign_again() {
    let (mut list, own) = (list(), name("B86022.gw1"));
    assert_eq!(list.rotate(&own, key(1), 8), Ok(Rotated::Already));
    assert_eq!(list.rotate(&own, key(2), 8), Ok(Rotated::From(Some(key(1).id()))));
    assert_eq!(states(&list), [(key(1), KeyState::Verifying), (key(2), KeyState::Signing)]);
    let listed = &list.gateways[&own];
    assert_eq!((listed.signing(), listed.keys[1].added), (Some(&key(2)), Some(8)));
    assert_eq!(list.rotate(&own, key(1), 9), Ok(Rotated::From(Some(key(2).id()))));
    assert_eq!(states(&list), [(key(1), KeyState::Signing), (key(2), KeyState::Verifying)]);
    assert_eq!(list.gateways[&own].keys[0].added, Some(7), "it was added then");
}

#[test]
fn a_revoked_key_signs_nothing_at_once_and_never_again() {
    let (mut list, own) = (list(), name("B86022.gw1"));
    list.rotate(&own, key(2), 8).unwrap();
    assert_eq!(list.revoke(&own, key(1).id()), Ok(Revoked::Verifying));
    assert_eq!(list.gateways[&own].signing(), Some(&key(2)));
    assert!(!list.gateways[&own].is_revoked());
    assert_eq!(list.revoke(&own, key(2).id()), Ok(Revoked::Signing));
    assert_eq!(list.gateways[&own].signing(), None);
    assert!(list.gateways[&own].is_revoked());
    assert_eq!(list.without_signing_key().collect::<Vec<_>>(), [&own]);
    assert_eq!(list.revoke(&own, key(2).id()), Ok(Revoked::Already));
    for stolen in [key(1), key(2)] {
        assert!(matches!(list.rotate(&own, stolen, 9), Err(ChangeError::KeyRevoked(..))));
    }
    assert_eq!(list.rotate(&own, key(3), 9), Ok(Rotated::From(None)));
    assert_eq!(list.gateways[&own].signing(), Some(&key(3)));
    let elsewhere = list.rotate(&name("B86023.gw1"), key(2), 9);
    assert!(matches!(elsewhere, Err(ChangeError::KeyOfAnother(..))), "a stolen key is used nowhere else");
}

#[test]
fn who_or_what_is_not_listed_is_named() {
    let (mut list, other) = (list(), name("B86099.gw1"));
    let before = list.clone();
    assert!(matches!(list.rotate(&other, key(3), 9), Err(ChangeError::NotListed(..))));
    assert!(matches!(list.revoke(&other, key(1).id()), Err(ChangeError::NotListed(..))));
    assert!(matches!(list.remove(&other), Err(ChangeError::NotListed(..))));
    assert!(matches!(list.revoke(&name("B86022.gw1"), key(9).id()), Err(ChangeError::NoKey(..))));
    assert!(matches!(list.rotate(&name("B86022.gw1"), key(9), 9), Err(ChangeError::KeyOfAnother(..))));
    assert_eq!(list, before);
    assert_eq!(list.remove(&name("B86023.gw1")).unwrap().signing(), Some(&key(9)));
    assert_eq!(list.gateways.len(), 1);
}
