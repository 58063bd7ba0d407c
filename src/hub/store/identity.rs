//! Which store this is: made with it, kept in it and in its backups (`identity.json`; design section 12.3). A gateway prunes only
//! on the word of a store that it knows: another one knows nothing of what the first has confirmed.

use std::fs;
use std::io;
use std::path::Path;

use pgw_core::wire::receipt::StoreId;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::files::failed;
use super::{StoreError, replace};

/// Name of the file.
pub const FILE: &str = "identity.json";
/// Most stores that one may have replaced.
const MOST: usize = 16;

/// A store's identity.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreIdentity {
    /// Its own.
    pub store: StoreId,
    /// The stores that it has replaced, as an operator has stated, the newest last.
    #[serde(default)]
    pub succeeds: Vec<StoreId>,
}

impl StoreIdentity {
    /// A new store's.
    #[must_use]
    pub fn new() -> Self {
        Self { store: StoreId(Uuid::now_v7()), succeeds: Vec::new() }
    }

    /// Reads it; `None`: the store has none yet.
    ///
    /// # Errors
    /// [`StoreError`], also where the file is damaged: a new identity would make every gateway ask its operator.
    pub fn read(directory: &Path) -> Result<Option<Self>, StoreError> {
        let path = directory.join(FILE);
        match fs::read(&path) {
            Ok(text) => {
                serde_json::from_slice(&text).map(Some).map_err(|error| failed("read", &path)(error.into()))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed("read", &path)(error)),
        }
    }

    /// Reads it, or makes it. Whoever calls this holds the store's lock.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn open(directory: &Path) -> Result<Self, StoreError> {
        if let Some(identity) = Self::read(directory)? {
            return Ok(identity);
        }
        let identity = Self::new();
        identity.write(directory)?;
        Ok(identity)
    }

    /// States that this store has replaced another one. False: it was stated already, or it is this store itself.
    pub fn stand_for(&mut self, other: StoreId) -> bool {
        if other == self.store || self.succeeds.contains(&other) {
            return false;
        }
        if self.succeeds.len() == MOST {
            self.succeeds.remove(0);
        }
        self.succeeds.push(other);
        true
    }

    /// Writes it, durably.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn write(&self, directory: &Path) -> Result<(), StoreError> {
        let path = directory.join(FILE);
        let text = serde_json::to_vec(self).map_err(|error| failed("write", &path)(error.into()))?;
        replace(&path, &text).map_err(failed("write", &path))
    }
}

impl Default for StoreIdentity {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_made_once_and_keeps_what_was_stated() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(StoreIdentity::read(directory.path()).unwrap(), None);
        let mut identity = StoreIdentity::open(directory.path()).unwrap();
        assert_eq!(StoreIdentity::open(directory.path()).unwrap(), identity);
        let other = StoreIdentity::new().store;
        assert!(
            identity.stand_for(other) && !identity.stand_for(other) && !identity.stand_for(identity.store)
        );
        identity.write(directory.path()).unwrap();
        assert_eq!(StoreIdentity::open(directory.path()).unwrap().succeeds, [other]);
        fs::write(directory.path().join(FILE), "{").unwrap();
        assert!(StoreIdentity::open(directory.path()).is_err(), "a damaged one is not replaced");
    }
}
