//! `practice-hub backup check`: is a copy on stable storage, and does it hold everything that its manifest names? It needs
//! no secret, no configuration and no hub, and so runs wherever the copy is.

use std::collections::BTreeSet;
use std::fmt;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use pgw_core::consequence::Consequence;
use pgw_core::wire::signature::PublicKey;
use rustix::fs::{Advice, fadvise};

use super::links::{Hashed, sha256};
use super::manifest::{Manifest, ManifestError, ManifestFile, ReadManifest};
use crate::store::{StoreError, archived, late, ndjson};

/// What a check has found.
#[derive(Debug)]
pub struct CheckedCopy {
    /// The manifest and its digest.
    pub read: ReadManifest,
    /// What is wrong with the copy, file by file; empty: it is complete.
    pub faults: Vec<FileFault>,
}

/// What is wrong with a file of a copy.
#[derive(Debug)]
pub struct FileFault {
    /// Its path below the copy.
    pub path: String,
    /// What it lacks.
    pub problem: FileProblem,
}

/// Why a file of a copy does not hold what the manifest says.
#[derive(Debug)]
pub enum FileProblem {
    /// It is not there.
    Missing,
    /// It is shorter.
    Short {
        /// Its length.
        has: u64,
        /// The manifest's.
        wants: u64,
    },
    /// The bytes differ.
    Differs,
    /// The bytes differ, and it has lost bodies to an archive: before this backup began, or since.
    Archived,
    /// It does not belong to this backup: a restored store would take it for one of its own.
    Extra,
    /// The manifest's path leads out of the copy.
    Path,
    /// It, or its directory, cannot be read or synced.
    Unreadable(io::Error),
}

impl fmt::Display for FileFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { path, problem } = self;
        match problem {
            FileProblem::Missing => write!(f, "{path} is missing: copy it again"),
            FileProblem::Short { has, wants } => {
                write!(f, "{path} has {has} bytes, and {wants} belong to the backup: copy it again")
            }
            FileProblem::Differs => write!(f, "{path} has other content than at the hub: copy it again"),
            FileProblem::Archived => write!(
                f,
                "{path} is not as it was when this backup began, and has lost bodies to an archive: if it was archived since, the archive has the file as this backup had it; otherwise copy it again"
            ),
            FileProblem::Extra => write!(f, "{path} does not belong to this backup: remove it from the copy"),
            FileProblem::Path => {
                write!(
                    f,
                    "{path:?} does not lie in the copy: this manifest is not of a hub; begin another backup"
                )
            }
            FileProblem::Unreadable(error) => {
                write!(f, "{path} cannot be read back and synced ({error}): correct that, then check again")
            }
        }
    }
}

/// Why a copy cannot be checked.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// Its manifest cannot be used.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// It is no copy.
    #[error(
        "{0} is not a copy: it is the hub's directory of links, whose files are those of its store. Copy it, and check the copy"
    )]
    Links(PathBuf),
    /// It cannot be listed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl CheckError {
    /// How the command ends.
    #[must_use]
    pub fn consequence(&self) -> Consequence {
        match self {
            Self::Manifest(ManifestError::Unreadable(_, source)) => Consequence::of_file(source),
            Self::Manifest(_) | Self::Links(_) => Consequence::Refuse,
            Self::Store(error) => error.consequence(),
        }
    }
}

/// Syncs and compares a copy. With `pinned`, the manifest must be signed by this key, else by the one that it names.
/// `progress` gets the bytes that have been compared.
///
/// # Errors
/// [`CheckError`].
pub fn check(
    directory: &Path,
    pinned: Option<PublicKey>,
    progress: &mut dyn FnMut(u64),
) -> Result<CheckedCopy, CheckError> {
    let read = Manifest::read(directory, pinned)?;
    if is_the_links(directory, &read.manifest) {
        return Err(CheckError::Links(directory.to_owned()));
    }
    let mut faults = Vec::new();
    let mut directories = BTreeSet::from([directory.to_owned()]);
    directories.extend(fs::canonicalize(directory).ok().and_then(|whole| Some(whole.parent()?.to_owned())));
    let mut done = 0;
    for file in &read.manifest.files {
        let mut told = |bytes| progress(done + bytes);
        match file.below(directory) {
            None => faults.push(FileFault { path: file.path.clone(), problem: FileProblem::Path }),
            Some(path) => {
                let above = path.ancestors().skip(1).take_while(|above| *above != directory);
                directories.extend(above.map(Path::to_owned));
                let problem = compare(&path, file, &mut told);
                faults.extend(problem.map(|problem| FileFault { path: file.path.clone(), problem }));
            }
        }
        done += file.bytes;
    }
    for path in directories.iter().rev() {
        match pgw_durable::sync_directory(path) {
            // A missing one is already named with its files.
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                let problem = FileProblem::Unreadable(error);
                faults.push(FileFault { path: path.display().to_string(), problem });
            }
            _ => {}
        }
    }
    faults.extend(extra(directory, &read.manifest)?);
    Ok(CheckedCopy { read, faults })
}

/// Whether these are the very files of the store.
fn is_the_links(directory: &Path, manifest: &Manifest) -> bool {
    let same = |file: &ManifestFile| {
        let facts = file.below(directory).and_then(|path| fs::metadata(path).ok());
        facts.is_some_and(|facts| facts.dev() == manifest.device && facts.ino() == file.inode)
    };
    !manifest.files.is_empty() && manifest.files.iter().all(same)
}

/// Syncs a file, and compares its beginning with what the disk gives back.
fn compare(path: &Path, file: &ManifestFile, progress: &mut dyn FnMut(u64)) -> Option<FileProblem> {
    let opened = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Some(FileProblem::Missing),
        opened => opened,
    };
    let hashed = opened.and_then(|opened| {
        // Not `pgw_durable::sync_all`: that needs a file that may be written, and whoever checks may not be allowed to.
        opened.sync_all()?;
        // Only advice: where it is followed, the bytes come from the disk and not from memory.
        let _ = fadvise(&opened, 0, None, Advice::DontNeed);
        sha256(opened, file.bytes, progress)
    });
    match hashed {
        Ok(Hashed::All(digest)) if digest == file.sha256 => None,
        Ok(_) if archived::has_archived(path).unwrap_or(false) => Some(FileProblem::Archived),
        Ok(Hashed::All(_)) => Some(FileProblem::Differs),
        Ok(Hashed::Short(has)) => Some(FileProblem::Short { has, wants: file.bytes }),
        Err(error) => Some(FileProblem::Unreadable(error)),
    }
}

/// Files of lanes that the manifest does not name.
fn extra(directory: &Path, manifest: &Manifest) -> Result<Vec<FileFault>, StoreError> {
    let named: BTreeSet<&str> = manifest.files.iter().map(|file| file.path.as_str()).collect();
    let mut extra = Vec::new();
    for lane in ndjson::lanes_in(directory)? {
        let mut paths = ndjson::files_of(directory, &lane)?;
        paths.push(ndjson::again_path(directory, &lane));
        paths.extend(late::files(directory, &lane)?);
        for path in paths.iter().filter(|path| path.exists()) {
            let below = path.strip_prefix(directory).unwrap_or(path).to_string_lossy().into_owned();
            if !named.contains(below.as_str()) {
                extra.push(FileFault { path: below, problem: FileProblem::Extra });
            }
        }
    }
    Ok(extra)
}
