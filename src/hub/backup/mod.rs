//! Backups of the store, and which transactions are in one. Receipts report that, and a gateway whose disk is full may
//! then delete confirmed transactions before their retention ends, and no others.
//!
//! The hub does not copy anything itself. `practice-hub backup begin` makes a directory of links of the store's files,
//! which is copied by any means, with a manifest ([`manifest`]). `practice-hub backup check` compares the copy with it,
//! wherever the copy is ([`check`]). `practice-hub backup done` takes the digest that the check has printed, makes that
//! backup count, and removes the links. A running hub begins and ends backups itself, over its control socket; without one
//! the commands do it in the store, and hold its lock meanwhile.
//!
//! - [`manifest`]: what a backup holds, signed by the hub; [`links`]: the directory that is copied
//! - [`check`]: compares a copy with its manifest
//!
//! `backup.begun` in the store has the directories of links that there are, and the latest manifest; `backup.json` has the
//! backup that counts.

pub mod check;
pub mod links;
pub mod manifest;

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use pgw_core::committer::BackedUp;
use pgw_core::consequence::Consequence;
use pgw_core::transaction::{Epoch, Hub, Sequence, rfc3339, unix_millis_now};
use pgw_core::wire::signature::SigningKey;
use pgw_host::control::NotDone;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use self::links::{LinkLane, io_failed};
use self::manifest::{LeftOut, Manifest};
use super::store::{StoreError, ndjson, replacement};

/// Written by `done`.
const DONE: &str = "backup.json";
/// Written by `begin`.
const BEGUN: &str = "backup.begun";
/// Most lanes that are out of use and named in an answer, which is one line.
const MOST_LEFT_OUT: usize = 50;
/// Below the store's directory, for directories of links whose place nobody has chosen.
const LINKS: &str = "backup";

/// How far the backup covers a lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct InBackup {
    epoch: Epoch,
    through: Sequence,
}

/// A backup, by its manifest.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Known {
    digest: String,
    time: String,
    lanes: BTreeMap<String, InBackup>,
}

/// What [`BEGUN`] holds.
#[derive(Debug, Default, Serialize, Deserialize)]
struct BegunFile {
    /// Directories of links, the latest last.
    directories: Vec<PathBuf>,
    latest: Option<Known>,
}

/// Why a backup cannot begin or end. None harms the store.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The store returned an error.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The file system did.
    #[error("cannot {action} {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// The directory for the links exists.
    #[error("{0} is there already: name a directory that is not, or none")]
    Exists(PathBuf),
    /// No link reaches from the store to the directory.
    #[error(
        "{directory} is not on the file system of the store {store}, and a file has its names on one only: name a directory there, or none, and copy what is in it"
    )]
    OtherFileSystem {
        /// The directory.
        directory: PathBuf,
        /// The store.
        store: PathBuf,
    },
    /// A file of the store lost bytes while it was read.
    #[error(
        "{path} has only {has} of its {wants} bytes: the disk has lost some; run `practice-hub verify`, and begin again"
    )]
    Shrunk {
        /// The file.
        path: PathBuf,
        /// What can be read.
        has: u64,
        /// What the hub has stored.
        wants: u64,
    },
    /// No manifest waits for its copy.
    #[error("no backup has begun: run `practice-hub backup begin` before the copy")]
    NoneBegun,
    /// The digest of another manifest.
    #[error(
        "the digest {given} is not that of the latest backup, which began at {time} and has the digest {latest}: only a copy of that one counts. Copy and check it, or begin another"
    )]
    OtherDigest {
        /// What was given.
        given: String,
        /// The latest.
        latest: String,
        /// When that one began.
        time: String,
    },
    /// The running hub ends.
    #[error("the hub is stopping: run this command again once it has restarted")]
    Stopping,
}

impl BackupError {
    /// How the command ends.
    #[must_use]
    pub fn consequence(&self) -> Consequence {
        match self {
            Self::Store(error) => error.consequence(),
            Self::Io { source, .. } => Consequence::of_file(source),
            Self::Shrunk { .. } => Consequence::FILES,
            Self::Exists(_) | Self::OtherFileSystem { .. } | Self::NoneBegun | Self::OtherDigest { .. } => {
                Consequence::Refuse
            }
            Self::Stopping => Consequence::Retry,
        }
    }
}

impl From<BackupError> for NotDone {
    fn from(error: BackupError) -> Self {
        Self::of(&error, error.consequence())
    }
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
        match read_json::<Known>(&self.path) {
            Ok(Some(Known { lanes, .. })) => self.lanes = lanes,
            Ok(None) => {}
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

/// A backup that has begun: what is to be copied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BegunBackup {
    /// The directory of links.
    pub directory: PathBuf,
    /// The manifest's digest.
    pub digest: String,
    /// Number of lanes.
    pub lanes: u64,
    /// Number of files.
    pub files: u64,
    /// Bytes of these files that belong to the backup.
    pub bytes: u64,
    /// Lanes that are not in it, at most [`MOST_LEFT_OUT`]; the manifest has all.
    pub left_out: Vec<LeftOut>,
}

/// Where and by whom a backup begins.
#[derive(Debug)]
pub struct NewBackup<'a> {
    /// The store's directory.
    pub store: &'a Path,
    /// The directory of links, absolute; `None`: a new one below the store's directory.
    pub directory: Option<PathBuf>,
    /// The hub's name.
    pub hub: &'a Hub,
    /// Its signing key.
    pub key: &'a SigningKey,
}

/// Makes the directory of links and its manifest; `progress` gets the bytes that have been read for it. Links that were
/// begun before stay until [`done`]; their digest counts no more.
///
/// # Errors
/// [`BackupError`]: no backup has begun; an earlier one stays as it is.
pub fn begin(
    new: NewBackup<'_>,
    link_lane: LinkLane<'_>,
    progress: &mut dyn FnMut(u64),
) -> Result<BegunBackup, BackupError> {
    let NewBackup { store, directory, hub, key } = new;
    let time = unix_millis_now();
    let directory = match directory {
        Some(chosen) => chosen,
        None => {
            let above = store.join(LINKS);
            ndjson::create_directory(&above)?;
            above.join(time.to_string())
        }
    };
    if directory.symlink_metadata().is_ok() {
        return Err(BackupError::Exists(directory));
    }
    ndjson::create_directory(&directory)?;
    let device = |path: &Path| fs::metadata(path).map(|facts| facts.dev()).map_err(io_failed("read", path));
    let begun = (device(store)? == device(&directory)?)
        .then_some(())
        .ok_or_else(|| BackupError::OtherFileSystem { directory: directory.clone(), store: store.to_owned() })
        .and_then(|()| {
            let manifest = Manifest::new(hub.clone(), key, rfc3339(time), device(&directory)?);
            fill(store, &directory, manifest, key, link_lane, progress)
        });
    if begun.is_err() {
        // Only links are in it.
        let _ = links::remove(&directory);
    }
    begun
}

fn fill(
    store: &Path,
    directory: &Path,
    mut manifest: Manifest,
    key: &SigningKey,
    link_lane: LinkLane<'_>,
    progress: &mut dyn FnMut(u64),
) -> Result<BegunBackup, BackupError> {
    let path = store.join(BEGUN);
    let mut record = read_json::<BegunFile>(&path)?.unwrap_or_default();
    record.directories.retain(|known| known.is_dir());
    // Noted before there is a link in it: whatever happens, `done` removes them all.
    record.directories.push(directory.to_owned());
    write_json(&path, &record)?;
    links::link(store, directory, &mut manifest, link_lane)?;
    links::hash(directory, &mut manifest, progress)?;
    let digest = manifest.write(directory, key)?;
    let lanes = manifest.lanes.iter().filter_map(|lane| {
        let last = lane.ends.last()?;
        Some((lane.lane.clone(), InBackup { epoch: last.epoch, through: last.through }))
    });
    record.latest =
        Some(Known { digest: digest.clone(), time: manifest.time.clone(), lanes: lanes.collect() });
    write_json(&path, &record)?;
    Ok(BegunBackup {
        directory: directory.to_owned(),
        digest,
        lanes: manifest.lanes.len() as u64,
        files: manifest.files.len() as u64,
        bytes: manifest.files.iter().map(|file| file.bytes).sum(),
        left_out: manifest.left_out.into_iter().take(MOST_LEFT_OUT).collect(),
    })
}

/// The backup with this digest is copied and checked: it counts from now on, and the directories of links are removed.
/// Returns those that could not be removed, because something else is in them. It can be repeated.
///
/// # Errors
/// [`BackupError`]: the backup that counted before still does.
pub fn done(store: &Path, digest: &str) -> Result<Vec<PathBuf>, BackupError> {
    let (begun, path) = (store.join(BEGUN), store.join(DONE));
    let given = digest.trim().to_ascii_lowercase();
    let record = read_json::<BegunFile>(&begun)?.unwrap_or_default();
    let Some(latest) = record.latest else {
        let counts = read_json::<Known>(&path)?.is_some_and(|known| known.digest == given);
        return if counts { Ok(Vec::new()) } else { Err(BackupError::NoneBegun) };
    };
    if latest.digest != given {
        let Known { digest: latest, time, .. } = latest;
        return Err(BackupError::OtherDigest { given, latest, time });
    }
    write_json(&path, &latest)?;
    let mut kept = Vec::new();
    for directory in record.directories {
        if !links::remove(&directory).map_err(io_failed("remove", &directory))? {
            kept.push(directory);
        }
    }
    pgw_durable::remove(&begun).map_err(io_failed("remove", &begun))?;
    Ok(kept)
}

fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, BackupError> {
    match fs::read(path).and_then(|text| Ok(serde_json::from_slice(&text)?)) {
        Ok(read) => Ok(Some(read)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(io_failed("read", path)(error)),
    }
}

fn write_json(path: &Path, value: &impl Serialize) -> Result<(), BackupError> {
    let write = || {
        let mut file = replacement(path)?;
        file.write_all(&serde_json::to_vec(value)?)?;
        file.commit()
    };
    write().map_err(io_failed("write", path))
}
