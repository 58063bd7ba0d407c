//! Signatures of a hub's messages: Ed25519 (RFC 8032) over topic and payload, so that neither can be moved.
//!
//! Signed are the bytes `pgw-v1` 00 `topic` 00 `payload`; the signature travels as the user property
//! `signature` in standard base64 with padding. A broker account alone can then neither confirm nor command.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};

use crate::wire::WireError;

/// Name of the user property.
pub const PROPERTY: &str = "signature";

fn message(topic: &str, payload: &[u8]) -> Vec<u8> {
    let mut message = Vec::with_capacity(topic.len() + payload.len() + 8);
    message.extend_from_slice(b"pgw-v1\0");
    message.extend_from_slice(topic.as_bytes());
    message.push(0);
    message.extend_from_slice(payload);
    message
}

/// A hub's signing key.
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

    /// The user property's value for this payload on this topic.
    #[must_use]
    pub fn sign(&self, topic: &str, payload: &[u8]) -> String {
        BASE64.encode(self.0.sign(&message(topic, payload)))
    }
}

/// A hub's public key, as pinned in a gateway's configuration: 32 bytes in base64.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicKey([u8; 32]);

impl PublicKey {
    /// Whether `signature` (the user property's value) is of this key over topic and payload.
    ///
    /// # Errors
    /// [`WireError::Signature`] when it is not.
    pub fn verify(&self, topic: &str, payload: &[u8], signature: Option<&str>) -> Result<(), WireError> {
        let signature = signature.and_then(|text| BASE64.decode(text).ok()).ok_or(WireError::Signature)?;
        UnparsedPublicKey::new(&ED25519, &self.0)
            .verify(&message(topic, payload), &signature)
            .map_err(|_| WireError::Signature)
    }
}

impl std::fmt::Display for PublicKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_key_over_this_topic_and_payload() {
        let key = SigningKey::from_pkcs8(&SigningKey::generate().unwrap()).unwrap();
        let other = SigningKey::from_pkcs8(&SigningKey::generate().unwrap()).unwrap();
        let signature = key.sign("a/b", b"payload");
        let public: PublicKey = key.public().to_string().parse().unwrap();
        assert_eq!(public.verify("a/b", b"payload", Some(&signature)), Ok(()));
        for (topic, payload, signature) in [
            ("a/c", &b"payload"[..], Some(signature.as_str())),
            ("a/b", b"payloae", Some(&signature)),
            ("a/b", b"payload", None),
            ("a/b", b"payload", Some("AAAA")),
            ("a/b", b"payload", Some(&other.sign("a/b", b"payload"))),
        ] {
            assert_eq!(public.verify(topic, payload, signature), Err(WireError::Signature));
        }
    }
}
