//! Keyed hashes of a transaction's source and key, and of its body.
//!
//! Sender, key and body come from patient data, so none of it may be on the disk outside the seal. Without
//! the outbox key a keyed hash shows "the same as before", and nothing else.

use ring::digest;
use ring::hmac::{self, HMAC_SHA256};

/// Makes [`Fingerprints`]; cheap to clone, so that they can be made outside the writer's thread.
#[derive(Clone)]
pub(crate) struct Fingerprinter {
    name: hmac::Key,
    body: hmac::Key,
    id: [u8; 8],
}

/// The hashes of one transaction in the index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Fingerprints {
    /// Of source and key; of source and body where there was no key. Never 0.
    pub(crate) key: u64,
    /// Of the body.
    pub(crate) body: u64,
}

impl Fingerprinter {
    /// Derives its keys from the outbox key.
    pub(crate) fn new(key: &[u8; 32]) -> Self {
        let root = hmac::Key::new(HMAC_SHA256, key);
        let derived = |name: &[u8]| hmac::sign(&root, name);
        Self {
            name: hmac::Key::new(HMAC_SHA256, derived(b"practice-gateway index key").as_ref()),
            body: hmac::Key::new(HMAC_SHA256, derived(b"practice-gateway index body").as_ref()),
            id: first_eight(derived(b"practice-gateway index id").as_ref()),
        }
    }

    /// Names the key and reveals nothing of it.
    pub(crate) fn id(&self) -> [u8; 8] {
        self.id
    }

    /// The fingerprints of one transaction; with an empty `key` the body takes its place.
    pub(crate) fn fingerprints(&self, source: &str, key: &str, body: &[u8]) -> Fingerprints {
        let content = digest::digest(&digest::SHA256, body);
        let mut name = hmac::Context::with_key(&self.name);
        name.update(&(source.len() as u64).to_be_bytes());
        name.update(source.as_bytes());
        if key.is_empty() {
            name.update(&[1]);
            name.update(content.as_ref());
        } else {
            name.update(&[0]);
            name.update(key.as_bytes());
        }
        Fingerprints {
            key: u64::from_be_bytes(first_eight(name.sign().as_ref())).max(1),
            body: u64::from_be_bytes(first_eight(hmac::sign(&self.body, content.as_ref()).as_ref())),
        }
    }
}

fn first_eight(hash: &[u8]) -> [u8; 8] {
    let mut front = [0; 8];
    for (to, from) in front.iter_mut().zip(hash) {
        *to = *from;
    }
    front
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_counts_and_none_runs_into_the_next() {
        let fingerprinter = Fingerprinter::new(&[1; 32]);
        let plain = fingerprinter.fingerprints("a", "b", b"c");
        assert_eq!(plain, fingerprinter.fingerprints("a", "b", b"c"));
        assert_ne!(plain.key, fingerprinter.fingerprints("ab", "", b"c").key);
        assert_ne!(plain.key, fingerprinter.fingerprints("", "ab", b"c").key);
        assert_eq!(plain.key, fingerprinter.fingerprints("a", "b", b"d").key);
        assert_ne!(plain.body, fingerprinter.fingerprints("a", "b", b"d").body);
        assert_eq!(plain.body, fingerprinter.fingerprints("x", "", b"c").body);
        assert_ne!(
            fingerprinter.fingerprints("a", "", b"c").key,
            fingerprinter.fingerprints("a", "", b"d").key
        );
        let other = Fingerprinter::new(&[2; 32]);
        assert_ne!(plain, other.fingerprints("a", "b", b"c"));
        assert_ne!(fingerprinter.id(), other.id());
    }

    /// The fingerprints are on the disk: after a change of the derivation no repetition would be recognised.
    #[test]
    fn golden_fingerprints() {
        let fingerprinter = Fingerprinter::new(&[7; 32]);
        let keyed = fingerprinter.fingerprints("urn:sender", "MSG00001", b"MSH|");
        let plain = fingerprinter.fingerprints("urn:sender", "", b"MSH|");
        let seen = [keyed.key, keyed.body, plain.key, plain.body, u64::from_be_bytes(fingerprinter.id())];
        let expected = [
            0x6d54_75e7_e51c_90ac,
            0xb282_eab9_deb3_df19,
            0xddb1_60a9_ae62_e73e,
            0xb282_eab9_deb3_df19,
            0xa643_176f_8a1b_00b7,
        ];
        assert_eq!(seen, expected);
    }
}
