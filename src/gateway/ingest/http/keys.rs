//! The keys that senders have used recently, so that one key is never used for two contents. Pure.
//!
//! The outbox finds repetitions by itself, and accepts a known key with other content as a new transaction, flagged: a
//! sender's counter may have started again. HTTP senders choose keys that never come again, and get an error *before*
//! anything is stored. Keys too old for this table are accepted and flagged: nothing is lost.

use std::collections::{HashMap, VecDeque};

use ring::digest::{Context, SHA256, digest};

/// Number of keys that are remembered; about 6 MiB.
pub const LIMIT: usize = 65_536;

type Hash = [u8; 16];

#[derive(Debug, Clone, Copy)]
struct UsedKey {
    body: Hash,
    under_way: u32,
    stored: bool,
}

/// A door's memory of its senders' keys: hashes only.
#[derive(Debug)]
pub struct RecentKeys {
    seen: HashMap<Hash, UsedKey>,
    /// The stored ones, oldest first.
    order: VecDeque<Hash>,
    limit: usize,
}

/// A key with its content, hashed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyFingerprint {
    name: Hash,
    body: Hash,
}

impl KeyFingerprint {
    /// For a sender's key in a lane.
    #[must_use]
    pub fn new(lane: &str, source: &str, key: &str, body: &[u8]) -> Self {
        let mut name = Context::new(&SHA256);
        for part in [lane, source] {
            name.update(&(part.len() as u64).to_be_bytes());
            name.update(part.as_bytes());
        }
        name.update(key.as_bytes());
        Self { name: front(name.finish().as_ref()), body: front(digest(&SHA256, body).as_ref()) }
    }
}

fn front(hash: &[u8]) -> Hash {
    let mut front = Hash::default();
    for (to, from) in front.iter_mut().zip(hash) {
        *to = *from;
    }
    front
}

/// The key was used for another content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Conflict;

impl RecentKeys {
    /// Remembers at most `limit` stored keys.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self { seen: HashMap::new(), order: VecDeque::new(), limit }
    }

    /// A submission begins; the caller must call [`RecentKeys::ended`] afterwards.
    ///
    /// # Errors
    /// [`Conflict`]: it must not begin.
    pub fn begin(&mut self, tag: KeyFingerprint) -> Result<(), Conflict> {
        let seen =
            self.seen.entry(tag.name).or_insert(UsedKey { body: tag.body, under_way: 0, stored: false });
        if seen.body != tag.body {
            return Err(Conflict);
        }
        seen.under_way += 1;
        Ok(())
    }

    /// A submission that had begun was stored, or not.
    pub fn ended(&mut self, tag: KeyFingerprint, stored: bool) {
        let Some(seen) = self.seen.get_mut(&tag.name) else { return };
        seen.under_way = seen.under_way.saturating_sub(1);
        if stored && !seen.stored {
            seen.stored = true;
            self.order.push_back(tag.name);
        } else if !seen.stored && seen.under_way == 0 {
            self.seen.remove(&tag.name);
        }
        while self.order.len() > self.limit {
            let Some(oldest) = self.order.pop_front() else { return };
            match self.seen.get_mut(&oldest) {
                // Another request repeats it just now: it is forgotten when that one has ended.
                Some(seen) if seen.under_way > 0 => seen.stored = false,
                _ => {
                    self.seen.remove(&oldest);
                }
            }
        }
    }

    /// Loads the store's keys when the door opens.
    pub fn stored_before(&mut self, tag: KeyFingerprint) {
        if self.begin(tag).is_ok() {
            self.ended(tag, true);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn tag(key: &str, body: &str) -> KeyFingerprint {
        KeyFingerprint::new("clinical", "urn:x", key, body.as_bytes())
    }

    #[test]
    fn one_key_is_for_one_content() {
        let mut keys = RecentKeys::new(10);
        assert_eq!(keys.begin(tag("k", "a")), Ok(()));
        assert_eq!(keys.begin(tag("k", "b")), Err(Conflict), "also while the first is under way");
        keys.ended(tag("k", "a"), true);
        assert_eq!(keys.begin(tag("k", "b")), Err(Conflict));
        assert_eq!(keys.begin(tag("k", "a")), Ok(()));
        assert_eq!(keys.begin(tag("l", "b")), Ok(()));
        assert_ne!(tag("k", "a"), KeyFingerprint::new("clinical", "urn:y", "k", b"a"));
        assert_ne!(tag("k", "a"), KeyFingerprint::new("urgent", "urn:x", "k", b"a"));
    }

    #[test]
    fn what_was_not_stored_binds_nobody() {
        let mut keys = RecentKeys::new(10);
        keys.begin(tag("k", "a")).unwrap();
        keys.begin(tag("k", "a")).unwrap();
        keys.ended(tag("k", "a"), false);
        assert_eq!(keys.begin(tag("k", "b")), Err(Conflict), "one is under way still");
        keys.ended(tag("k", "a"), false);
        assert_eq!(keys.begin(tag("k", "b")), Ok(()));
    }

    #[test]
    fn the_oldest_are_forgotten() {
        let mut keys = RecentKeys::new(2);
        for key in ["a", "b", "c"] {
            keys.stored_before(tag(key, "1"));
        }
        assert_eq!(keys.begin(tag("a", "2")), Ok(()));
        assert_eq!(keys.begin(tag("b", "2")), Err(Conflict));
    }

    proptest! {
        #![proptest_config(crate::seeds::kept())]

        #[test]
        fn memory_is_bounded_and_a_conflict_is_never_missed_within_it(
            steps in proptest::collection::vec((0u8..6, 0u8..2, any::<bool>()), 0..200)
        ) {
            let mut keys = RecentKeys::new(6);
            let mut model: HashMap<u8, u8> = HashMap::new();
            for (key, body, stored) in steps {
                let tag = tag(&key.to_string(), &body.to_string());
                let expected = model.get(&key).is_none_or(|known| *known == body);
                prop_assert_eq!(keys.begin(tag).is_ok(), expected);
                if expected {
                    keys.ended(tag, stored);
                    if stored {
                        model.insert(key, body);
                    }
                }
                prop_assert!(keys.seen.len() <= 6 && keys.order.len() <= 6);
            }
        }
    }
}
