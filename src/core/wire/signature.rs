//! Signatures of everything that a gateway or a hub says: Ed25519 (RFC 8032; design section 12.3).
//!
//! Signed are the bytes `pgw-v1` 00 *word* 00 *topic* 00 *payload*: a message can then neither be moved to another topic nor
//! taken for one of another meaning. The signature travels as the user property `signature`, in standard base64 with padding.
//!
//! A transaction's publish carries the signature of its *head*: `pgw-v1` 00 `head` 00 *practice* 00 *gateway* 00 *epoch* 00
//! *lane* 00 *sequence* (20 digits) 00 *chain*, the texts as in the envelope. As the chain value covers everything before it,
//! one head proves the epoch up to its number.
//!
//! A broker account alone can then neither confirm nor command, nor speak for a surgery.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use ring::digest::{SHA256, digest};
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use serde::{Deserialize, Serialize};

use crate::chain::ChainValue;
use crate::text::{from_hex, hex};
use crate::transaction::{Epoch, LaneName, Sequence};
use crate::wire::{WireError, sequence_text};

/// Name of the user property.
pub const PROPERTY: &str = "signature";

/// What a signed message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Word {
    /// A gateway's or a hub's status, and its will.
    Status,
    /// A gateway's health.
    Health,
    /// What is installed and configured at a gateway.
    Info,
    /// An event at a gateway.
    Event,
    /// A probe.
    Probe,
    /// A hub's reply to a probe.
    Reply,
    /// A gateway's question about a lane.
    Position,
    /// A hub's receipt.
    Receipt,
    /// A hub's notice about what it did not store.
    Gap,
    /// A hub's command.
    Command,
    /// A gateway's result of a command.
    Result,
    /// Central IT's notice for a surgery's staff.
    Notice,
    /// What a hub's backup holds.
    Manifest,
}

impl Word {
    /// The word itself.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Status => "status",
            Self::Health => "health",
            Self::Info => "info",
            Self::Event => "event",
            Self::Probe => "probe",
            Self::Reply => "reply",
            Self::Position => "position",
            Self::Receipt => "receipt",
            Self::Gap => "gap",
            Self::Command => "command",
            Self::Result => "result",
            Self::Notice => "notice",
            Self::Manifest => "manifest",
        }
    }
}

/// The bytes that are signed: `parts`, each after a zero byte.
fn signed_bytes<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> Vec<u8> {
    let mut bytes = b"pgw-v1".to_vec();
    for part in parts {
        bytes.push(0);
        bytes.extend_from_slice(part);
    }
    bytes
}

fn message(word: Word, topic: &str, payload: &[u8]) -> Vec<u8> {
    signed_bytes([word.as_str().as_bytes(), topic.as_bytes(), payload])
}

fn head(lane: &LaneName, epoch: Epoch, sequence: Sequence, chain: ChainValue) -> Vec<u8> {
    let texts = [
        "head",
        lane.practice.as_str(),
        lane.gateway.as_str(),
        &epoch.to_string(),
        lane.lane.as_str(),
        &sequence_text(sequence),
        &chain.to_string(),
    ];
    signed_bytes(texts.map(str::as_bytes))
}

/// An Ed25519 signature: 64 bytes, 88 characters of base64 as text.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Signature([u8; 64]);

impl fmt::Display for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&BASE64.encode(self.0))
    }
}

impl fmt::Debug for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::str::FromStr for Signature {
    type Err = WireError;

    fn from_str(text: &str) -> Result<Self, WireError> {
        let bytes = BASE64.decode(text).map_err(|_| WireError::Signature)?;
        bytes.try_into().map(Self).map_err(|_| WireError::Signature)
    }
}

/// The key with which a gateway or a hub signs.
pub struct SigningKey(Ed25519KeyPair);

impl SigningKey {
    /// Reads a PKCS#8 document, as made by [`SigningKey::generate`].
    ///
    /// # Errors
    /// [`WireError::Malformed`].
    pub fn from_pkcs8(document: &[u8]) -> Result<Self, WireError> {
        Ed25519KeyPair::from_pkcs8(document).map(Self).map_err(|_| WireError::Malformed("signing key"))
    }

    /// Makes a new key and returns its PKCS#8 document.
    ///
    /// # Errors
    /// [`WireError::Malformed`] when the system provides no random bytes.
    pub fn generate() -> Result<Vec<u8>, WireError> {
        Ed25519KeyPair::generate_pkcs8(&ring::rand::SystemRandom::new())
            .map(|document| document.as_ref().to_vec())
            .map_err(|_| WireError::Malformed("signing key"))
    }

    /// The public half.
    #[must_use]
    pub fn public(&self) -> PublicKey {
        let mut bytes = [0; 32];
        bytes.copy_from_slice(self.0.public_key().as_ref());
        PublicKey(bytes)
    }

    /// Signs a message on its topic.
    #[must_use]
    pub fn sign(&self, word: Word, topic: &str, payload: &[u8]) -> Signature {
        self.over(&message(word, topic, payload))
    }

    /// Signs a lane's chain at this number.
    #[must_use]
    pub fn sign_head(
        &self,
        lane: &LaneName,
        epoch: Epoch,
        sequence: Sequence,
        chain: ChainValue,
    ) -> Signature {
        self.over(&head(lane, epoch, sequence, chain))
    }

    fn over(&self, bytes: &[u8]) -> Signature {
        let mut signature = [0; 64];
        signature.copy_from_slice(self.0.sign(bytes).as_ref());
        Signature(signature)
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey({})", self.public().id())
    }
}

/// A public key, as pinned at the other side: 32 bytes, in base64 as text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PublicKey([u8; 32]);

impl PublicKey {
    /// Whether `signature` (the user property's value) is of this key over this message.
    ///
    /// # Errors
    /// [`WireError::Signature`] when it is not.
    pub fn verify(
        &self,
        word: Word,
        topic: &str,
        payload: &[u8],
        signature: Option<&str>,
    ) -> Result<(), WireError> {
        let signature: Signature = signature.ok_or(WireError::Signature)?.parse()?;
        self.is_over(&message(word, topic, payload), &signature).then_some(()).ok_or(WireError::Signature)
    }

    /// Whether `signature` is of this key over a lane's chain at this number.
    #[must_use]
    pub fn verify_head(
        &self,
        lane: &LaneName,
        epoch: Epoch,
        sequence: Sequence,
        chain: ChainValue,
        signature: &Signature,
    ) -> bool {
        self.is_over(&head(lane, epoch, sequence, chain), signature)
    }

    fn is_over(&self, bytes: &[u8], signature: &Signature) -> bool {
        UnparsedPublicKey::new(&ED25519, &self.0).verify(bytes, &signature.0).is_ok()
    }

    /// Its short name.
    #[must_use]
    pub fn id(&self) -> KeyId {
        let mut id = [0; 8];
        id.copy_from_slice(&digest(&SHA256, &self.0).as_ref()[..8]);
        KeyId(id)
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&BASE64.encode(self.0))
    }
}

impl std::str::FromStr for PublicKey {
    type Err = WireError;

    fn from_str(text: &str) -> Result<Self, WireError> {
        let bytes = BASE64.decode(text.trim()).map_err(|_| WireError::Malformed("public key"))?;
        bytes.try_into().map(Self).map_err(|_| WireError::Malformed("public key"))
    }
}

impl TryFrom<String> for PublicKey {
    type Error = WireError;
    fn try_from(text: String) -> Result<Self, WireError> {
        text.parse()
    }
}

impl From<PublicKey> for String {
    fn from(key: PublicKey) -> String {
        key.to_string()
    }
}

/// The short name of a public key: the first 8 bytes of its SHA-256, 16 hexadecimal digits as text.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct KeyId(pub [u8; 8]);

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::str::FromStr for KeyId {
    type Err = WireError;

    fn from_str(text: &str) -> Result<Self, WireError> {
        from_hex(text).map(Self).ok_or(WireError::Malformed("key id"))
    }
}

impl TryFrom<String> for KeyId {
    type Error = WireError;
    fn try_from(text: String) -> Result<Self, WireError> {
        text.parse()
    }
}

impl From<KeyId> for String {
    fn from(id: KeyId) -> String {
        id.to_string()
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn key() -> SigningKey {
        SigningKey::from_pkcs8(&SigningKey::generate().unwrap()).unwrap()
    }

    #[test]
    fn only_this_key_over_this_word_topic_and_payload() {
        let (key, other) = (key(), key());
        let signature = key.sign(Word::Status, "a/b", b"payload").to_string();
        let public: PublicKey = key.public().to_string().parse().unwrap();
        assert_eq!(public.verify(Word::Status, "a/b", b"payload", Some(&signature)), Ok(()));
        let others = other.sign(Word::Status, "a/b", b"payload").to_string();
        for (word, topic, payload, signature) in [
            (Word::Health, "a/b", &b"payload"[..], Some(signature.as_str())),
            (Word::Status, "a/c", b"payload", Some(&signature)),
            (Word::Status, "a/b", b"payloae", Some(&signature)),
            (Word::Status, "a/b", b"payload", None),
            (Word::Status, "a/b", b"payload", Some("AAAA")),
            (Word::Status, "a/b", b"payload", Some(&others)),
        ] {
            assert_eq!(public.verify(word, topic, payload, signature), Err(WireError::Signature));
        }
    }

    #[test]
    fn a_head_is_of_one_lane_epoch_number_and_chain() {
        let (key, other) = (key(), key());
        let lane = |text: &str| text.parse::<LaneName>().unwrap();
        let epoch = |number| Epoch(Uuid::from_u128(number));
        let (own, value) = (lane("B86022/gw1/clinical"), ChainValue([7; 32]));
        let signature = key.sign_head(&own, epoch(1), 9, value);
        let signature: Signature = signature.to_string().parse().unwrap();
        let verify = |lane: &LaneName, number, sequence, chain| {
            key.public().verify_head(lane, epoch(number), sequence, chain, &signature)
        };
        assert!(verify(&own, 1, 9, value));
        assert!(!verify(&lane("B86022/gw1/letters"), 1, 9, value));
        assert!(!verify(&lane("B86022/gw2/clinical"), 1, 9, value));
        assert!(!verify(&lane("B86023/gw1/clinical"), 1, 9, value));
        assert!(!verify(&own, 2, 9, value));
        assert!(!verify(&own, 1, 8, value));
        assert!(!verify(&own, 1, 9, ChainValue([8; 32])));
        assert!(!other.public().verify_head(&own, epoch(1), 9, value, &signature));
    }

    #[test]
    fn a_key_has_a_short_name() {
        let key: PublicKey = "ldjcA1IQlgl2vobDI8JAd3Ac/MY8wPOxCojkPII2tNU=".parse().unwrap();
        let id = key.id();
        assert_eq!(id.to_string().len(), 16);
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_eq!("0".parse::<KeyId>(), Err(WireError::Malformed("key id")));
    }
}
