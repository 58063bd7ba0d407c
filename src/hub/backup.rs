//! What there is a backup of: receipts say so, and a gateway whose disk is full may then delete confirmed transactions before
//! their retention, and no others.
//!
//! The hub does not make backups; whoever does tells it. `practice-hub backup begin` writes down how far each lane is
//! (`backup.begun`); then the store's files are copied, by whatever means; `practice-hub backup done` makes that the hub's word
//! (`backup.json`). Lane files only grow, so the copy holds at least what was there at the beginning.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use pgw_core::committer::BackedUp;
use pgw_core::transaction::{Epoch, Sequence};
use serde::{Deserialize, Serialize};

use super::store::{StoreError, create_private_file, ndjson};

/// What `done` has said.
const DONE: &str = "backup.json";
/// What `begin` has written down.
const BEGUN: &str = "backup.begun";

/// How far a lane is in the backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Through {
    epoch: Epoch,
    through: Sequence,
}

/// The present word about backups.
#[derive(Debug, Default)]
pub struct Backups {
    path: PathBuf,
    read: Option<SystemTime>,
    lanes: BTreeMap<String, Through>,
}

impl Backups {
    /// As the store's directory has it; nothing where there is none.
    #[must_use]
    pub fn open(directory: &Path) -> Self {
        let mut backups = Self { path: directory.join(DONE), ..Self::default() };
        backups.look();
        backups
    }

    /// Looks whether there is a newer backup. True: there is.
    pub fn look(&mut self) -> bool {
        let changed = fs::metadata(&self.path).and_then(|file| file.modified()).ok();
        if changed.is_none() || changed == self.read {
            return false;
        }
        self.read = changed;
        match fs::read(&self.path)
            .map_err(std::io::Error::other)
            .and_then(|text| Ok(serde_json::from_slice(&text)?))
        {
            Ok(lanes) => {
                self.lanes = lanes;
                true
            }
            Err(error) => {
                tracing::warn!(%error, "The word about the last backup cannot be read");
                false
            }
        }
    }

    /// Through which sequence of which epoch each lane is in it.
    #[must_use]
    pub fn lanes(&self) -> BackedUp {
        let named = |(name, of): (&String, &Through)| Some((name.parse().ok()?, (of.epoch, of.through)));
        self.lanes.iter().filter_map(named).collect()
    }
}

/// Writes down how far each lane is. Gives the number of lanes.
///
/// # Errors
/// [`StoreError`].
pub fn begin(directory: &Path) -> Result<usize, StoreError> {
    let lanes: BTreeMap<String, Through> = ndjson::peek(directory)?
        .into_iter()
        .filter_map(|(name, marks)| {
            let last = marks.last()?;
            Some((name.to_string(), Through { epoch: last.epoch, through: last.through }))
        })
        .collect();
    let path = directory.join(BEGUN);
    let failed = |source| StoreError::Io { action: "write", path: path.clone(), source };
    let text = serde_json::to_vec(&lanes).map_err(|error| failed(error.into()))?;
    let mut file = create_private_file(&path).map_err(failed)?;
    file.write_all(&text).and_then(|()| file.sync_all()).map_err(failed)?;
    Ok(lanes.len())
}

/// The copy that was begun is complete. False: none was begun.
///
/// # Errors
/// [`StoreError`].
pub fn done(directory: &Path) -> Result<bool, StoreError> {
    let (from, to) = (directory.join(BEGUN), directory.join(DONE));
    let renamed = match fs::rename(&from, &to) {
        Ok(()) => File::open(directory).and_then(|directory| directory.sync_all()).map(|()| true),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    };
    renamed.map_err(|source| StoreError::Io { action: "rename", path: from, source })
}
