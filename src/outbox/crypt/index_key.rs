//! The key of the duplicate index. Its fingerprints must survive a rotation of the outbox key, or repetitions of older
//! transactions would be stored twice. So from the first rotation on the key is in the store, sealed with the present one.
//!
//! Before that it is derived from the store's only key, and there is no file. `index/key` is 85 bytes:
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 4 | magic `PGWK` |
//! | 4 | 1 | version, 1 |
//! | 5 | 8 | id of the outbox key that seals it |
//! | 13 | 24 | nonce |
//! | 37 | 48 | the key, sealed with XChaCha20-Poly1305 and the 13 bytes before as associated data |
//!
//! The sealing key is derived from the outbox key, as those of the quarantine are. A lost file costs a rebuilt index.

use std::fs;
use std::io;
use std::path::Path;

use chacha20poly1305::aead::{Aead as _, KeyInit as _, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use pgw_durable::PRIVATE;
use zeroize::Zeroizing;

use crate::crypt::keyring::{Keyring, OutboxKey};
use crate::files;

const MAGIC: [u8; 4] = *b"PGWK";
const VERSION: u8 = 1;
const HEAD_BYTES: usize = 13;
const NONCE_BYTES: usize = 24;
/// The purpose from which the first key's index key is derived.
const PURPOSE: &str = "index";
const WRAPPING: &str = "index key";

/// The index's key; `first` is the id of the key that the store was created with. Sealed with the present key when this returns.
pub(crate) fn index_key(index: &Path, keys: &Keyring, first: &str) -> io::Result<Zeroizing<[u8; 32]>> {
    files::create_directory(index)?;
    let path = index.join("key");
    let found = match fs::read(&path) {
        Ok(bytes) => Some(bytes),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) if files::is_unreadable(&error) => Some(Vec::new()),
        Err(error) => return Err(error),
    };
    let present = keys.present();
    if found.is_none() && present.id() == first {
        return Ok(present.derived(PURPOSE));
    }
    let opened = found.as_deref().and_then(|bytes| open(bytes, keys));
    if let Some((sealed_with, key)) = &opened
        && *sealed_with == present.id_bytes()
    {
        return Ok(key.clone());
    }
    // Missing: this is the first start with another key. Damaged, or its key lost: the derived key fits no index, so the
    // index is rebuilt.
    let key = opened
        .map(|(_, key)| key)
        .unwrap_or_else(|| keys.iter().find(|key| key.id() == first).unwrap_or(present).derived(PURPOSE));
    pgw_durable::replace(&path, PRIVATE, &seal(&key, present)?)?;
    Ok(key)
}

fn cipher(key: &OutboxKey) -> XChaCha20Poly1305 {
    XChaCha20Poly1305::new((&*key.derived(WRAPPING)).into())
}

fn seal(key: &[u8; 32], present: &OutboxKey) -> io::Result<Vec<u8>> {
    let mut bytes = MAGIC.to_vec();
    bytes.push(VERSION);
    bytes.extend(present.id_bytes());
    let nonce = pgw_durable::random::<NONCE_BYTES>()?;
    let sealed = cipher(present)
        .encrypt(XNonce::from_slice(&nonce), Payload { msg: key, aad: &bytes })
        .map_err(|_| io::Error::other("the index's key cannot be sealed"))?;
    bytes.extend(nonce);
    bytes.extend(sealed);
    Ok(bytes)
}

fn open(bytes: &[u8], keys: &Keyring) -> Option<([u8; 8], Zeroizing<[u8; 32]>)> {
    let (head, rest) = bytes.split_at_checked(HEAD_BYTES)?;
    let (nonce, sealed) = rest.split_at_checked(NONCE_BYTES)?;
    let id: [u8; 8] = head.strip_prefix(&MAGIC)?.strip_prefix(&[VERSION])?.try_into().ok()?;
    let key = keys.iter().find(|key| key.id_bytes() == id)?;
    let opened = cipher(key).decrypt(XNonce::from_slice(nonce), Payload { msg: sealed, aad: head }).ok()?;
    let opened = Zeroizing::new(opened);
    let mut key = Zeroizing::new([0; 32]);
    if opened.len() != key.len() {
        return None;
    }
    key.copy_from_slice(&opened);
    Some((id, key))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u8) -> OutboxKey {
        OutboxKey::new([n; 32])
    }

    #[test]
    fn it_stays_the_same_over_rotations_and_without_the_old_keys() {
        let directory = tempfile::tempdir().unwrap();
        let index = directory.path().join("index");
        let first = key(1).id();
        let begun = index_key(&index, &key(1).into(), &first).unwrap();
        assert!(!index.join("key").exists());
        let rotated = index_key(&index, &Keyring::new(key(2), vec![key(1)]), &first).unwrap();
        assert_eq!(*begun, *rotated);
        let bytes = fs::read(index.join("key")).unwrap();
        assert_eq!(bytes.len(), 85);
        assert!(!bytes.windows(8).any(|window| window == &begun[..8]), "the key lies open");
        // The first key may be destroyed when nothing else needs it.
        assert_eq!(*begun, *index_key(&index, &key(2).into(), &first).unwrap());
        assert_eq!(*begun, *index_key(&index, &Keyring::new(key(3), vec![key(2)]), &first).unwrap());
        assert_eq!(*begun, *index_key(&index, &key(3).into(), &first).unwrap());
        // Back to the first key: the file counts, not the derivation.
        assert_eq!(*begun, *index_key(&index, &Keyring::new(key(1), vec![key(3)]), &first).unwrap());
        assert_eq!(*begun, *index_key(&index, &key(1).into(), &first).unwrap());
    }

    #[test]
    fn a_damaged_one_is_made_again_and_never_believed() {
        let directory = tempfile::tempdir().unwrap();
        let index = directory.path().join("index");
        let keys = Keyring::new(key(2), vec![key(1)]);
        let begun = index_key(&index, &keys, &key(1).id()).unwrap();
        let whole = fs::read(index.join("key")).unwrap();
        for at in 0..whole.len() {
            let mut flipped = whole.clone();
            flipped[at] ^= 1;
            assert!(open(&flipped, &keys).is_none_or(|(_, key)| *key == *begun), "byte {at}");
            assert!(open(&whole[..at], &keys).is_none(), "cut at {at}");
        }
        fs::write(index.join("key"), b"").unwrap();
        let other = index_key(&index, &key(2).into(), &key(1).id()).unwrap();
        assert_ne!(*begun, *other);
        assert_eq!(*other, *index_key(&index, &key(2).into(), &key(1).id()).unwrap());
    }
}
