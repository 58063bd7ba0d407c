//! A store that moves to another box: the old box retires it, the new one adopts the copy when nothing of it is missing.
//!
//! Retired, a store is never opened again: what runs twice forks. [`retire`] writes that into `FORMAT` first, then `MANIFEST`: the
//! length and SHA-256 of every file below the data directory, and where each lane stood. [`check_copy`] compares a copy
//! with its manifest and names what is missing; [`adopt`] lets it run. The store that was retired itself is distinguished from a copy by
//! its machine and its directory, and is not adopted.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use pgw_core::chain::ChainValue;
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
/// What a copy may lack: it is made again.
const NOT_LISTED: [&str; 5] = ["lock", "ballast", "trash", MANIFEST, "MANIFEST.new"];

/// How far a lane was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaneStand {
    /// Ever accepted: the last position.
    pub accepted: u64,
    /// Confirmed by the hub.
    pub confirmed: u64,
    /// Not confirmed yet, and there.
    pub waiting: u64,
    /// No longer readable.
    pub damaged: u64,
    /// Chain value on the wire at the last position.
    pub chain: Option<ChainValue>,
}

/// What a retired store holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    version: u32,
    /// Each lane.
    pub lanes: BTreeMap<Lane, LaneStand>,
    /// Each file below the data directory: length in bytes, and SHA-256 in hexadecimal digits.
    pub files: BTreeMap<PathBuf, (u64, String)>,
}

impl Manifest {
    /// A few digits by which two people on the telephone can tell that they have the same.
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
    /// There is none.
    #[error("there is no store in {0}")]
    NoStore(PathBuf),
    /// It was never retired, or is adopted already.
    #[error("the store in {0} is not retired: it can run as it is")]
    NotRetired(PathBuf),
    /// It is the one that was retired, and no copy.
    #[error(
        "the store in {0} is the retired store itself, on the machine that retired it: adopt the copy on the new box. Was the move given up, and nothing started on the new box? `practice-gateway outbox retire --undo`"
    )]
    NotACopy(PathBuf),
    /// There is no list to compare the copy with.
    #[error(
        "{0} is missing: the copy is incomplete, or `practice-gateway outbox retire` did not finish on the old box"
    )]
    NoManifest(PathBuf),
    /// The copy is not what was retired.
    #[error("the copy differs from the retired store: {}", .0.join("; "))]
    Incomplete(Vec<String>),
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

/// Where each lane stands.
pub fn stands(outbox: &Outbox) -> BTreeMap<Lane, LaneStand> {
    let stand = |(lane, counts): (Lane, crate::types::LaneCounts)| {
        let chain = outbox.chain_at(&lane, counts.accepted);
        let crate::types::LaneCounts { accepted, confirmed, waiting, damaged, .. } = counts;
        (lane, LaneStand { accepted, confirmed, waiting, damaged, chain })
    };
    outbox.snapshot().lanes.into_iter().map(stand).collect()
}

fn remove_manifest(store: &Path) -> Result<(), OpenError> {
    let path = store.join(MANIFEST);
    pgw_durable::remove(&path).map_err(failed("remove", &path))
}

fn manifest(store: &Path) -> Result<Option<Manifest>, OpenError> {
    let path = store.join(MANIFEST);
    files::load(&path).map_err(failed("read", &path))
}

/// Watermarks the store as one that must never be opened again, and lists what a copy of it must have. `data`: the data directory. A
/// store that is retired already only gives its list. The daemon must not run.
///
/// # Errors
/// [`MoveError`].
pub fn retire(settings: &OutboxSettings, data: &Path, keys: Keyring) -> Result<Manifest, MoveError> {
    let store = &settings.directory;
    let Some(descriptor) = descriptor::owned(settings)? else {
        return Err(MoveError::NoStore(store.clone()));
    };
    if descriptor.retired.is_some() {
        if let Some(manifest) = manifest(store)? {
            return Ok(manifest);
        }
        // A crash came before the list.
        let outbox = Outbox::open_retired(settings.clone(), keys)?;
        return list(settings, data, outbox);
    }
    let outbox = Outbox::open(settings.clone(), keys)?;
    let retired = Retired::here(store).map_err(failed("look at", store))?;
    let path = store.join("FORMAT");
    // Its lock is still held here. Opening it may have begun a key: what FORMAT says now counts.
    let Some(mut descriptor) = descriptor::owned(settings)? else {
        return Err(MoveError::NoStore(store.clone()));
    };
    // One of an earlier move must not be taken for this one's, should a crash come before the list.
    remove_manifest(store)?;
    descriptor.retired = Some(retired);
    descriptor.save(store).map_err(failed("write", &path))?;
    list(settings, data, outbox)
}

fn list(settings: &OutboxSettings, data: &Path, outbox: Outbox) -> Result<Manifest, MoveError> {
    let store = &settings.directory;
    let lanes = stands(&outbox);
    outbox.close();
    let _lock = descriptor::lock(store)?;
    let manifest = Manifest { version: 1, lanes, files: inventory(data, store)? };
    let path = store.join(MANIFEST);
    files::save(&path, &manifest).map_err(failed("write", &path))?;
    give_to_owner(store)?;
    Ok(manifest)
}

/// Gives all of a store that no daemon has open to whoever owns its directory: root's commands make files, too.
///
/// # Errors
/// [`OpenError::Io`].
pub fn give_to_owner(store: &Path) -> Result<(), OpenError> {
    files::give_to_owner(store).map_err(failed("give to its owner what is in", store))
}

/// The move is given up: the store runs again where it was. Whoever calls this knows that no copy was adopted.
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

/// `FORMAT` last: until then the store is refused.
fn release(store: &Path, mut descriptor: Descriptor) -> Result<(), MoveError> {
    let path = store.join("FORMAT");
    descriptor.retired = None;
    descriptor.save(store).map_err(failed("write", &path))?;
    remove_manifest(store)?;
    Ok(give_to_owner(store)?)
}

/// Compares a copy with its list, file by file. Nothing is written.
///
/// # Errors
/// [`MoveError::Incomplete`] names what is missing or other than it was.
pub fn check_copy(settings: &OutboxSettings, data: &Path) -> Result<Manifest, MoveError> {
    const MOST_NAMED: usize = 10;
    let store = &settings.directory;
    let Some(descriptor) = descriptor::owned(settings)? else {
        return Err(MoveError::NoStore(store.clone()));
    };
    let Some(retired) = &descriptor.retired else { return Err(MoveError::NotRetired(store.clone())) };
    let here = Retired::here(store).map_err(failed("look at", store))?;
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

/// The copy may run from now on. Whoever calls this has checked it.
///
/// # Errors
/// [`MoveError`].
pub fn adopt(settings: &OutboxSettings) -> Result<(), MoveError> {
    let (_lock, descriptor) = retired(settings)?;
    release(&settings.directory, descriptor)
}
