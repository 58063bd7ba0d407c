//! The hubs' stores that this gateway relies on: it prunes only what a store that it knows has (design section 12.3).
//!
//! The first store that answers is relied on. Another one knows nothing of what the first has confirmed: until an operator
//! accepts it (`practice-gateway hub accept`), or the hub states that it has replaced the first, nothing is pruned on
//! its word. File `hub-stores` in the state directory: one line of JSON.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use pgw_core::transaction::Hub;
use pgw_core::wire::receipt::StoreId;
use pgw_durable::PRIVATE;

/// What an answer's store is to this gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Judged {
    /// It is relied on.
    Known,
    /// It is relied on once it is saved: the first one, or the hub states that it has replaced the one before.
    New,
    /// Another store than the one that is relied on; `None`: nobody can say which that was, its file is damaged.
    Strange(Option<StoreId>),
}

/// The stores by their hubs; clones share them.
#[derive(Debug, Clone)]
pub(super) struct KnownStores {
    path: PathBuf,
    stores: Arc<Mutex<BTreeMap<Hub, StoreId>>>,
    /// Those of them that are on the disk: only these are relied on, or a restart would take the next one for the first.
    saved: Arc<Mutex<BTreeMap<Hub, StoreId>>>,
    /// Held while the file is written.
    writing: Arc<Mutex<()>>,
    damaged: bool,
    /// The stores that wait for an operator.
    strange: BTreeMap<Hub, StoreId>,
}

impl KnownStores {
    /// Reads the file. Without one, the first answer decides.
    pub(super) fn open(directory: &Path) -> Self {
        let path = directory.join("hub-stores");
        let read = match std::fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text).map_err(io::Error::from),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(BTreeMap::new()),
            Err(error) => Err(error),
        };
        if let Err(error) = &read {
            let file = path.display();
            tracing::error!(%error, %file, "It cannot be read which hub stores this gateway relies on; nothing is pruned before an operator accepts one with `practice-gateway hub accept`");
        }
        let damaged = read.is_err();
        let stores = read.unwrap_or_default();
        Self {
            path,
            damaged,
            saved: Arc::new(Mutex::new(stores.clone())),
            stores: Arc::new(Mutex::new(stores)),
            writing: Arc::default(),
            strange: BTreeMap::new(),
        }
    }

    /// Judges the store that an answer names.
    pub(super) fn judge(&mut self, hub: &Hub, store: StoreId, succeeds: &[StoreId]) -> Judged {
        let mut stores = self.stores.lock().unwrap_or_else(PoisonError::into_inner);
        let known = stores.get(hub).copied();
        let saved = self.saved.lock().unwrap_or_else(PoisonError::into_inner).get(hub) == Some(&store);
        let judged = match known {
            Some(known) if known == store && saved => Judged::Known,
            Some(known) if known == store => Judged::New,
            Some(known) if succeeds.contains(&known) => Judged::New,
            None if !self.damaged => Judged::New,
            known => Judged::Strange(known),
        };
        match judged {
            Judged::Known => {
                self.strange.remove(hub);
            }
            Judged::New => {
                stores.insert(hub.clone(), store);
                self.strange.remove(hub);
            }
            Judged::Strange(_) => {
                self.strange.insert(hub.clone(), store);
            }
        }
        judged
    }

    /// The stores that wait for an operator.
    pub(super) fn strange(&self) -> &BTreeMap<Hub, StoreId> {
        &self.strange
    }

    /// An operator relies on this store from now on. False: it is not the one that waits.
    pub(super) fn accept(&mut self, hub: &Hub, store: StoreId) -> bool {
        if self.strange.get(hub) != Some(&store) {
            return false;
        }
        self.strange.remove(hub);
        self.stores.lock().unwrap_or_else(PoisonError::into_inner).insert(hub.clone(), store);
        true
    }

    /// Writes the file. Blocking.
    pub(super) fn save(&self) -> io::Result<()> {
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let stores = self.stores.lock().unwrap_or_else(PoisonError::into_inner).clone();
        pgw_durable::replace(&self.path, PRIVATE, &serde_json::to_vec(&stores)?)?;
        *self.saved.lock().unwrap_or_else(PoisonError::into_inner) = stores;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(number: u128) -> StoreId {
        StoreId(uuid::Uuid::from_u128(number))
    }

    #[test]
    fn another_store_is_relied_on_only_when_somebody_says_so() {
        let (directory, hub) = (tempfile::tempdir().unwrap(), Hub::new("hub1").unwrap());
        let mut known = KnownStores::open(directory.path());
        assert_eq!(known.judge(&hub, store(1), &[]), Judged::New);
        assert_eq!(known.judge(&hub, store(1), &[]), Judged::New, "it is not on the disk yet");
        known.save().unwrap();
        assert_eq!(known.judge(&hub, store(1), &[]), Judged::Known);
        let mut known = KnownStores::open(directory.path());
        assert_eq!(known.judge(&hub, store(2), &[store(7)]), Judged::Strange(Some(store(1))));
        assert!(!known.accept(&hub, store(3)), "only the one that waits");
        assert_eq!(known.judge(&hub, store(1), &[]), Judged::Known);
        assert!(known.strange().is_empty() && !known.accept(&hub, store(2)), "the known one is back");
        known.judge(&hub, store(2), &[]);
        assert!(known.accept(&hub, store(2)));
        known.save().unwrap();
        assert_eq!(known.judge(&hub, store(2), &[]), Judged::Known);
        assert_eq!(known.judge(&hub, store(4), &[store(3), store(2)]), Judged::New, "the hub states it");
    }

    #[test]
    fn a_damaged_file_makes_no_store_the_first() {
        let (directory, hub) = (tempfile::tempdir().unwrap(), Hub::new("hub1").unwrap());
        std::fs::write(directory.path().join("hub-stores"), "{").unwrap();
        let mut known = KnownStores::open(directory.path());
        assert_eq!(known.judge(&hub, store(1), &[]), Judged::Strange(None));
        assert!(known.accept(&hub, store(1)));
        known.save().unwrap();
        assert_eq!(KnownStores::open(directory.path()).judge(&hub, store(1), &[]), Judged::Known);
    }
}
