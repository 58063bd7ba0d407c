//! Which transactions are in a backup. Receipts report it, and a gateway whose disk is full may then delete confirmed
//! transactions before their retention ends, and no others.
//!
//! The hub does not make backups; an operator reports them. `practice-hub backup begin` records how far each lane is
//! (`backup.begun`). Then the store's files are copied, by any means. `practice-hub backup done` makes the record
//! valid (`backup.json`). Lane files only grow, so the copy holds at least what was there at the beginning. A running
//! hub does both itself, over its control socket; without one the commands do it in the store, and hold its lock
//! meanwhile.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use pgw_core::committer::BackedUp;
use pgw_core::transaction::{Epoch, Sequence};
use serde::{Deserialize, Serialize};

use super::store::{StoreError, ndjson, replacement};

/// Written by `done`.
const DONE: &str = "backup.json";
/// Written by `begin`.
const BEGUN: &str = "backup.begun";

/// How far the backup covers a lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct InBackup {
    epoch: Epoch,
    through: Sequence,
}

/// The current backup.
#[derive(Debug, Default)]
pub struct Backups {
    path: PathBuf,
    lanes: BTreeMap<String, InBackup>,
}

impl Backups {
    /// Reads it from the store's directory; empty if there is none.
    #[must_use]
    pub fn open(directory: &Path) -> Self {
        let mut backups = Self { path: directory.join(DONE), ..Self::default() };
        backups.read();
        backups
    }

    /// Reads the file of `done`. If it cannot be read, the current backup stays.
    pub fn read(&mut self) {
        let read = fs::read(&self.path).and_then(|text| Ok(serde_json::from_slice(&text)?));
        match read {
            Ok(lanes) => self.lanes = lanes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => tracing::warn!(%error, "The record of the last backup cannot be read"),
        }
    }

    /// Through which sequence of which epoch each lane is backed up.
    #[must_use]
    pub fn lanes(&self) -> BackedUp {
        let named = |(name, of): (&String, &InBackup)| Some((name.parse().ok()?, (of.epoch, of.through)));
        self.lanes.iter().filter_map(named).collect()
    }
}

/// Records how far each lane is. Returns the number of lanes.
///
/// # Errors
/// [`StoreError`].
pub fn begin(directory: &Path) -> Result<usize, StoreError> {
    let lanes: BTreeMap<String, InBackup> = ndjson::peek(directory)?
        .into_iter()
        .filter_map(|(name, watermarks)| {
            let last = watermarks.last()?;
            Some((name.to_string(), InBackup { epoch: last.epoch, through: last.through }))
        })
        .collect();
    let path = directory.join(BEGUN);
    let failed = |source| StoreError::Io { action: "write", path: path.clone(), source };
    let text = serde_json::to_vec(&lanes).map_err(|error| failed(error.into()))?;
    let mut file = replacement(&path).map_err(failed)?;
    file.write_all(&text).and_then(|()| file.commit()).map_err(failed)?;
    Ok(lanes.len())
}

/// The copy that was begun is complete. False: none was begun.
///
/// # Errors
/// [`StoreError`].
pub fn done(directory: &Path) -> Result<bool, StoreError> {
    let (from, to) = (directory.join(BEGUN), directory.join(DONE));
    match pgw_durable::rename(&from, &to) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(source) => Err(StoreError::Io { action: "rename", path: from, source }),
    }
}
