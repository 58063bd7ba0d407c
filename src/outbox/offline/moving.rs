//! Moving a store to another box: the old box retires it, the new one adopts the copy if it is complete.
//!
//! A retired store is never opened again: if it ran twice, its lanes would fork. [`retire`] writes that into `FORMAT` first,
//! then `MANIFEST`: the length and SHA-256 of every file below the data directory, and each lane's totals. [`check_copy`]
//! compares a copy with its manifest and names missing files; [`adopt`] lets it run. Machine and directory distinguish the
//! retired store itself from a copy; it is not adopted.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use pgw_core::chain::ChainValue;
use pgw_core::consequence::Consequence;
use pgw_core::text::hex;
use pgw_core::transaction::Lane;
use ring::digest::{Context, SHA256};
use serde::{Deserialize, Serialize};

use crate::crypt::keyring::Keyring;
use crate::descriptor::{self, Descriptor, Retired, failed};
use crate::errors::OpenError;
use crate::files;
use crate::handle::Outbox;
use crate::types::OutboxSettings;

/// Name of the list, in the store's directory.
pub const MANIFEST: &str = "MANIFEST";
/// Files that a copy may lack: they are recreated.
const NOT_LISTED: [&str; 5] = ["lock", "ballast", "trash", MANIFEST, "MANIFEST.new"];

/// A lane's totals.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaneTotals {
    /// Ever accepted: the last position.
    pub accepted: u64,
    /// Confirmed by the hub.
    pub confirmed: u64,
    /// Not confirmed yet, and readable.
    pub waiting: u64,
    /// No longer readable.
    pub damaged: u64,
    /// Value of the chain over positions at the last one.
    pub chain: Option<ChainValue>,
}

/// The content of a retired store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    version: u32,
    /// The id of the gateway's signing key, as whoever retired the store gave it: only text here.
    pub signing_key: String,
    /// Each lane.
    pub lanes: BTreeMap<Lane, LaneTotals>,
    /// Each file below the data directory: length in bytes, and SHA-256 in hexadecimal digits.
    pub files: BTreeMap<PathBuf, (u64, String)>,
}

impl Manifest {
    /// A few digits by which two people on the telephone can check that they have the same manifest.
    #[must_use]
    pub fn word(&self) -> String {
        let text = serde_json::to_vec(self).unwrap_or_default();
        let mut digits = hex(ring::digest::digest(&SHA256, &text).as_ref());
        digits.truncate(12);
        digits
    }
}

/// Why a store cannot be moved. Nothing was changed, unless it says so.
#[derive(Debug, thiserror::Error)]
pub enum MoveError {
    /// It cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// There is no store.
    #[error("there is no store in {0}")]
    NoStore(PathBuf),
    /// It was never retired, or is adopted already.
    #[error("the store in {0} is not retired: it can run as it is")]
    NotRetired(PathBuf),
    /// It is the retired store itself, not a copy.
    #[error(
        "the store in {0} is the retired store itself, on the machine that retired it: adopt the copy on the new box. Was the move given up, and nothing started on the new box? `practice-gateway outbox retire --undo`"
    )]
    NotACopy(PathBuf),
    /// There is no manifest to compare the copy with.
    #[error(
        "{0} is missing: the copy is incomplete, or `practice-gateway outbox retire` did not finish on the old box"
    )]
    NoManifest(PathBuf),
    /// The copy differs from the retired store.
    #[error("the copy differs from the retired store: {}", .0.join("; "))]
    Incomplete(Vec<String>),
}

impl MoveError {
    /// How the command ends.
    #[must_use]
    pub fn consequence(&self) -> Consequence {
        match self {
            Self::Open(error) => error.consequence(),
            Self::NoStore(_) => Consequence::UNREACHABLE,
            Self::NotRetired(_) | Self::NotACopy(_) | Self::NoManifest(_) | Self::Incomplete(_) => {
                Consequence::Refuse
            }
        }
    }
}

fn files_below(data: &Path, store: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut open = vec![store.to_owned(), data.join("uplink")];
    while let Some(directory) = open.pop() {
        let entries = match fs::read_dir(&directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            other => other?,
        };
        for entry in entries {
            let entry = entry?;
            let listed = directory != store
                || entry.file_name().to_str().is_none_or(|name| !NOT_LISTED.contains(&name));
            let kind = entry.file_type()?;
            if listed && kind.is_dir() {
                open.push(entry.path());
            } else if listed && kind.is_file() {
                found.push(entry.path());
            }
        }
    }
    Ok(found)
}

fn digest(path: &Path) -> io::Result<(u64, String)> {
    let mut file = File::open(path)?;
    let (mut context, mut length) = (Context::new(&SHA256), 0);
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok((length, hex(context.finish().as_ref()))),
            read => {
                length += read as u64;
                context.update(buffer.get(..read).unwrap_or_default());
            }
        }
    }
}

fn inventory(data: &Path, store: &Path) -> Result<BTreeMap<PathBuf, (u64, String)>, OpenError> {
    let mut listed = BTreeMap::new();
    for path in files_below(data, store).map_err(failed("list", data))? {
        let digest = digest(&path).map_err(failed("read", &path))?;
        let name = path.strip_prefix(data).unwrap_or(&path).to_owned();
        listed.insert(name, digest);
    }
    Ok(listed)
}

/// Each lane's totals.
pub fn lane_totals(outbox: &Outbox) -> BTreeMap<Lane, LaneTotals> {
    let totals = |(lane, counts): (Lane, crate::types::LaneCounts)| {
        let chain = outbox.chain_of_positions(&lane);
        let crate::types::LaneCounts { accepted, confirmed, waiting, damaged, .. } = counts;
        (lane, LaneTotals { accepted, confirmed, waiting, damaged, chain })
    };
    outbox.snapshot().lanes.into_iter().map(totals).collect()
}

fn remove_manifest(store: &Path) -> Result<(), OpenError> {
    let path = store.join(MANIFEST);
    pgw_durable::remove(&path).map_err(failed("remove", &path))
}

fn manifest(store: &Path) -> Result<Option<Manifest>, OpenError> {
    let path = store.join(MANIFEST);
    files::load(&path).map_err(failed("read", &path))
}

/// Retires the store, so that it is never opened again, and lists the files that a copy must have. `data`: the data directory;
/// `signing_key`: the id of the gateway's signing key. For a store that is retired already it only returns the list. The daemon
/// must not run.
///
/// # Errors
/// [`MoveError`].
pub fn retire(
    settings: &OutboxSettings,
    data: &Path,
    keys: Keyring,
    signing_key: String,
) -> Result<Manifest, MoveError> {
    let store = &settings.directory;
    let Some(descriptor) = descriptor::owned(settings)? else {
        return Err(MoveError::NoStore(store.clone()));
    };
    if descriptor.retired.is_some() {
        if let Some(manifest) = manifest(store)? {
            return Ok(manifest);
        }
        // A crash came before the manifest.
        let outbox = Outbox::open_retired(settings.clone(), keys)?;
        return list(settings, data, outbox, signing_key);
    }
    let outbox = Outbox::open(settings.clone(), keys)?;
    let retired = Retired::here(store).map_err(failed("inspect", store))?;
    let path = store.join("FORMAT");
    // The lock is still held. Opening the store may have begun a key, so FORMAT is read again.
    let Some(mut descriptor) = descriptor::owned(settings)? else {
        return Err(MoveError::NoStore(store.clone()));
    };
    // After a crash before the new manifest, one of an earlier move must not be taken for it.
    remove_manifest(store)?;
    descriptor.retired = Some(retired);
    descriptor.save(store).map_err(failed("write", &path))?;
    list(settings, data, outbox, signing_key)
}

fn list(
    settings: &OutboxSettings,
    data: &Path,
    outbox: Outbox,
    signing_key: String,
) -> Result<Manifest, MoveError> {
    let store = &settings.directory;
    let lanes = lane_totals(&outbox);
    outbox.close();
    let _lock = descriptor::lock(store)?;
    let manifest = Manifest { version: 1, signing_key, lanes, files: inventory(data, store)? };
    let path = store.join(MANIFEST);
    files::save(&path, &manifest).map_err(failed("write", &path))?;
    give_to_owner(store)?;
    Ok(manifest)
}

/// Gives all files of a store that no daemon has open to its directory's owner: root's commands make files, too.
///
/// # Errors
/// [`OpenError::Io`].
pub fn give_to_owner(store: &Path) -> Result<(), OpenError> {
    files::give_to_owner(store).map_err(failed("give to its owner what is in", store))
}

/// Cancels a move: the store runs again where it was. The caller must know that no copy was adopted.
///
/// # Errors
/// [`MoveError`].
pub fn take_back(settings: &OutboxSettings) -> Result<(), MoveError> {
    let store = &settings.directory;
    let (_lock, descriptor) = retired(settings)?;
    release(store, descriptor)
}

fn retired(settings: &OutboxSettings) -> Result<(File, Descriptor), MoveError> {
    let store = &settings.directory;
    if descriptor::owned(settings)?.is_none() {
        return Err(MoveError::NoStore(store.clone()));
    }
    let lock = descriptor::lock(store)?;
    match descriptor::owned(settings)? {
        Some(descriptor) if descriptor.retired.is_some() => Ok((lock, descriptor)),
        _ => Err(MoveError::NotRetired(store.clone())),
    }
}

/// Writes `FORMAT` last: until then the store is refused.
fn release(store: &Path, mut descriptor: Descriptor) -> Result<(), MoveError> {
    let path = store.join("FORMAT");
    descriptor.retired = None;
    descriptor.save(store).map_err(failed("write", &path))?;
    remove_manifest(store)?;
    Ok(give_to_owner(store)?)
}

/// Compares a copy with its manifest, file by file. Nothing is written.
///
/// # Errors
/// [`MoveError::Incomplete`] names missing and altered files.
pub fn check_copy(settings: &OutboxSettings, data: &Path) -> Result<Manifest, MoveError> {
    const MOST_NAMED: usize = 10;
    let store = &settings.directory;
    let Some(descriptor) = descriptor::owned(settings)? else {
        return Err(MoveError::NoStore(store.clone()));
    };
    let Some(retired) = &descriptor.retired else { return Err(MoveError::NotRetired(store.clone())) };
    let here = Retired::here(store).map_err(failed("inspect", store))?;
    if (&here.machine, here.inode) == (&retired.machine, retired.inode) {
        return Err(MoveError::NotACopy(store.clone()));
    }
    let Some(manifest) = manifest(store)? else {
        return Err(MoveError::NoManifest(store.join(MANIFEST)));
    };
    let found = inventory(data, store)?;
    let mut wrong = Vec::new();
    for (name, (length, digest)) in &manifest.files {
        let name_shown = name.display();
        match found.get(name) {
            None => wrong.push(format!("{name_shown} is missing")),
            Some((here, _)) if here != length => {
                wrong.push(format!("{name_shown} has {here} bytes and not {length}"));
            }
            Some((_, other)) if other != digest => wrong.push(format!("{name_shown} has other bytes")),
            Some(_) => {}
        }
    }
    for name in found.keys().filter(|name| !manifest.files.contains_key(*name)) {
        wrong.push(format!("{} was not there", name.display()));
    }
    let more = wrong.len().saturating_sub(MOST_NAMED);
    wrong.truncate(MOST_NAMED);
    if more > 0 {
        wrong.push(format!("and {more} more"));
    }
    if wrong.is_empty() { Ok(manifest) } else { Err(MoveError::Incomplete(wrong)) }
}

/// Lets the copy run from now on. The caller has checked it.
///
/// # Errors
/// [`MoveError`].
pub fn adopt(settings: &OutboxSettings) -> Result<(), MoveError> {
    let (_lock, descriptor) = retired(settings)?;
    release(&settings.directory, descriptor)
}
