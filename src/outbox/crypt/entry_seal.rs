//! The seal of an entry in quarantine. An entry does not name its key; each key is tried.

use std::io;

use chacha20poly1305::aead::{Aead as _, KeyInit as _, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use ring::hmac;

/// Bytes that a seal adds.
pub(crate) const TAG_BYTES: usize = 16;

/// Seals with one key, and opens seals of this and earlier ones.
pub(crate) struct EntrySeal {
    present: XChaCha20Poly1305,
    earlier: Vec<XChaCha20Poly1305>,
}

impl EntrySeal {
    /// For a key that was derived for the quarantine.
    pub(crate) fn new(key: &[u8; 32]) -> io::Result<Self> {
        Ok(Self { present: cipher(key)?, earlier: Vec::new() })
    }

    /// Also opens seals of an earlier key.
    pub(crate) fn also_opening(&mut self, key: &[u8; 32]) -> io::Result<()> {
        self.earlier.push(cipher(key)?);
        Ok(())
    }

    /// Seals a part of an entry; the seal covers the entry's fixed bytes and the part's letter as well.
    pub(crate) fn seal(&self, nonce: &[u8; 24], msg: &[u8], fixed: &[u8], part: u8) -> io::Result<Vec<u8>> {
        let aad = [fixed, &[part]].concat();
        self.present
            .encrypt(&XNonce::from(*nonce), Payload { msg, aad: &aad })
            .map_err(|_| io::Error::other("it is too large to be sealed"))
    }

    /// Opens a part of an entry; `None`: no key opens it, or it is damaged.
    pub(crate) fn open(&self, nonce: &[u8; 24], msg: &[u8], fixed: &[u8], part: u8) -> Option<Vec<u8>> {
        let aad = [fixed, &[part]].concat();
        std::iter::once(&self.present)
            .chain(&self.earlier)
            .find_map(|cipher| cipher.decrypt(&XNonce::from(*nonce), Payload { msg, aad: &aad }).ok())
    }
}

fn cipher(key: &[u8; 32]) -> io::Result<XChaCha20Poly1305> {
    let derived = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), b"practice-gateway quarantine");
    XChaCha20Poly1305::new_from_slice(derived.as_ref())
        .map_err(|_| io::Error::other("the key has the wrong length"))
}
