//! The hub's age key: an X25519 identity, and the recipient that every gateway's configuration holds.

use std::fmt;
use std::str::FromStr;

use curve25519_dalek::MontgomeryPoint;
use zeroize::{Zeroize as _, Zeroizing};

use super::{AgeError, bech32};

/// A bundle's recipient: `age1...`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Recipient(pub(super) [u8; 32]);

impl FromStr for Recipient {
    type Err = AgeError;

    fn from_str(text: &str) -> Result<Self, AgeError> {
        let bytes = bech32::decode("age", text.trim()).filter(|_| text.trim().starts_with("age1"));
        bytes.and_then(|bytes| bytes.try_into().ok()).map(Self).ok_or(AgeError::Key("recipient (age1...)"))
    }
}

impl fmt::Display for Recipient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&bech32::encode("age", &self.0))
    }
}

/// The secret key that opens a bundle: `AGE-SECRET-KEY-1...`. No `Debug`.
pub struct Identity(Zeroizing<[u8; 32]>);

impl Identity {
    /// Makes a new identity.
    ///
    /// # Errors
    /// [`AgeError::Random`].
    pub fn generate() -> Result<Self, AgeError> {
        pgw_durable::random().map(|bytes| Self(Zeroizing::new(bytes))).map_err(AgeError::Random)
    }

    /// The first identity of a key file: lines, of which those with `#` are comments.
    ///
    /// # Errors
    /// [`AgeError::Key`].
    pub fn from_file_text(text: &str) -> Result<Self, AgeError> {
        let wrong = AgeError::Key("identity (AGE-SECRET-KEY-1...)");
        let line = text.lines().map(str::trim).find(|line| !line.is_empty() && !line.starts_with('#'));
        let Some(mut bytes) = line
            .filter(|line| line.starts_with("AGE-SECRET-KEY-1"))
            .and_then(|line| bech32::decode("age-secret-key-", line))
        else {
            return Err(wrong);
        };
        let key = <[u8; 32]>::try_from(&bytes[..]).map(|key| Self(Zeroizing::new(key)));
        bytes.zeroize();
        key.map_err(|_| wrong)
    }

    /// A key file that `age` and `rage` read, too.
    #[must_use]
    pub fn to_file_text(&self) -> Zeroizing<String> {
        let secret = Zeroizing::new(bech32::encode("age-secret-key-", &*self.0).to_ascii_uppercase());
        Zeroizing::new(format!("# public key: {}\n{}\n", self.recipient(), *secret))
    }

    /// The public half.
    #[must_use]
    pub fn recipient(&self) -> Recipient {
        Recipient(MontgomeryPoint::mul_base_clamped(*self.0).to_bytes())
    }

    /// X25519 with another's public half. `None`: that one has a low order, and the result would be no secret.
    pub(super) fn agree(&self, other: &[u8; 32]) -> Option<Zeroizing<[u8; 32]>> {
        let shared = Zeroizing::new(MontgomeryPoint(*other).mul_clamped(*self.0).to_bytes());
        // All bytes in one comparison of constant time: the time reveals nothing about the secret.
        (shared.iter().fold(0, |sum, byte| sum | byte) != 0).then_some(shared)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn x25519_is_that_of_rfc_7748() {
        // Section 6.1.
        let alice = Identity(Zeroizing::new([
            0x77, 0x07, 0x6d, 0x0a, 0x73, 0x18, 0xa5, 0x7d, 0x3c, 0x16, 0xc1, 0x72, 0x51, 0xb2, 0x66, 0x45,
            0xdf, 0x4c, 0x2f, 0x87, 0xeb, 0xc0, 0x99, 0x2a, 0xb1, 0x77, 0xfb, 0xa5, 0x1d, 0xb9, 0x2c, 0x2a,
        ]));
        let bob = [
            0xde, 0x9e, 0xdb, 0x7d, 0x7b, 0x7d, 0xc1, 0xb4, 0xd3, 0x5b, 0x61, 0xc2, 0xec, 0xe4, 0x35, 0x37,
            0x3f, 0x83, 0x43, 0xc8, 0x5b, 0x78, 0x67, 0x4d, 0xad, 0xfc, 0x7e, 0x14, 0x6f, 0x88, 0x2b, 0x4f,
        ];
        let shared = alice.agree(&bob).unwrap();
        assert_eq!(shared[..4], [0x4a, 0x5d, 0x9d, 0x5b]);
        assert_eq!(alice.recipient().0[..4], [0x85, 0x20, 0xf0, 0x09]);
        assert!(alice.agree(&[0; 32]).is_none(), "a low order gives no secret");
    }

    #[test]
    fn key_files_are_those_of_age() {
        let identity = Identity::generate().unwrap();
        let text = identity.to_file_text();
        let again = Identity::from_file_text(&text).unwrap();
        assert_eq!(again.recipient(), identity.recipient());
        let recipient = identity.recipient().to_string();
        assert_eq!(recipient.parse::<Recipient>().unwrap(), identity.recipient());
        assert!(recipient.to_uppercase().parse::<Recipient>().is_err(), "age takes no capitals here");
        assert!(Identity::from_file_text("# nothing\n").is_err());
        assert!(Identity::from_file_text(&text.to_lowercase()).is_err());
    }
}
