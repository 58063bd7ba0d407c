//! The outbox keys: the present one seals, earlier ones only open their own seals.

use zeroize::Zeroizing;

/// A key that seals records: 32 bytes, zeroed when dropped, and its id (first 8 bytes of its SHA-256, hex).
pub struct OutboxKey {
    bytes: Zeroizing<[u8; 32]>,
    id: [u8; 8],
}

impl OutboxKey {
    /// A key of 32 bytes.
    #[must_use]
    pub fn new(bytes: [u8; 32]) -> Self {
        let digest = ring::digest::digest(&ring::digest::SHA256, &bytes);
        let mut id = [0; 8];
        id.copy_from_slice(&digest.as_ref()[..8]);
        Self { bytes: Zeroizing::new(bytes), id }
    }

    /// Its id: names it and reveals nothing of it.
    #[must_use]
    pub fn id(&self) -> String {
        pgw_core::text::hex(&self.id)
    }

    /// The id as its sealed records have it.
    pub(crate) fn id_bytes(&self) -> [u8; 8] {
        self.id
    }

    /// The key itself.
    pub(crate) fn bytes(&self) -> &[u8; 32] {
        &self.bytes
    }

    /// A key for another purpose that reveals nothing of this one.
    pub(crate) fn derived(&self, purpose: &str) -> Zeroizing<[u8; 32]> {
        let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, &*self.bytes);
        let mut derived = Zeroizing::new([0; 32]);
        derived.copy_from_slice(ring::hmac::sign(&key, purpose.as_bytes()).as_ref());
        derived
    }
}

impl std::fmt::Debug for OutboxKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "OutboxKey({})", self.id())
    }
}

/// All the keys that this box has: the present one first.
#[derive(Debug)]
pub struct Keyring {
    present: OutboxKey,
    earlier: Vec<OutboxKey>,
}

impl Keyring {
    /// The present key seals, each of them opens. A duplicate counts once.
    #[must_use]
    pub fn new(present: OutboxKey, earlier: Vec<OutboxKey>) -> Self {
        let mut keys = Self { present, earlier: Vec::new() };
        for key in earlier {
            if !keys.has(&key.id()) {
                keys.earlier.push(key);
            }
        }
        keys
    }

    /// The key that seals new records.
    #[must_use]
    pub fn present(&self) -> &OutboxKey {
        &self.present
    }

    /// All of them, the present one first.
    pub fn iter(&self) -> impl Iterator<Item = &OutboxKey> {
        std::iter::once(&self.present).chain(&self.earlier)
    }

    /// Whether there is a key of this id.
    #[must_use]
    pub fn has(&self, id: &str) -> bool {
        self.iter().any(|key| key.id() == id)
    }

    /// Their ids, the present one first.
    #[must_use]
    pub fn ids(&self) -> Vec<String> {
        self.iter().map(OutboxKey::id).collect()
    }
}

impl From<OutboxKey> for Keyring {
    fn from(present: OutboxKey) -> Self {
        Self::new(present, Vec::new())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_named_but_never_shown() {
        let key = OutboxKey::new([7; 32]);
        assert_eq!(key.id().len(), 16);
        assert_eq!(format!("{key:?}"), format!("OutboxKey({})", key.id()));
        assert_ne!(*key.derived("index"), *key.derived("quarantine"));
    }

    #[test]
    fn the_present_key_comes_first_and_each_once() {
        let key = |n| OutboxKey::new([n; 32]);
        let keys = Keyring::new(key(1), vec![key(2), key(1), key(2)]);
        assert_eq!(keys.ids(), [key(1).id(), key(2).id()]);
        assert!(keys.has(&key(2).id()) && !keys.has(&key(3).id()));
    }
}
