//! The directory of links of a backup: each file of the store that is copied has a second name there. A lane's file that
//! rotates while the copy runs keeps that name, so the copy has no hole; and the names cost no space.
//!
//! The store thread links one lane at a time, and says how long its files are and where it ends. Whoever began the backup
//! then reads the files for their digests: hours of reading hold up nobody.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use pgw_core::text::hex;
use ring::digest::{Context, SHA256};

use super::BackupError;
use super::manifest::{LaneEnd, LaneEnds, LeftOut, MANIFEST, Manifest, ManifestFile, SIGNATURE};
use crate::store::{LaneName, LinkedLane, StoreError, Through, identity, ndjson};

/// Files of the store that belong to no lane and go into a backup; they are replaced by a rename.
const BESIDE: &[&str] = &[identity::FILE, crate::fleet::FILE];
/// Read at once.
const PIECE: usize = 256 * 1024;

/// Links one lane's files below a directory: by the store thread, or in a store that is open here.
pub type LinkLane<'a> = &'a mut dyn FnMut(&LaneName, &Path) -> Result<LinkedLane, BackupError>;

/// Links every lane's files, and what else is copied, into `directory`, and notes them in the manifest without digests.
pub(super) fn link(
    store: &Path,
    directory: &Path,
    manifest: &mut Manifest,
    link_lane: LinkLane<'_>,
) -> Result<(), BackupError> {
    let mut directories = vec![directory.to_owned()];
    for name in ndjson::lanes_in(store)? {
        for part in [Path::new(name.practice.as_str()).to_owned(), ndjson::directory_of(Path::new(""), &name)]
        {
            let path = directory.join(part);
            if directories.last() != Some(&path) && !path.is_dir() {
                ndjson::create_directory(&path)?;
                directories.push(path);
            }
        }
        let LinkedLane { ends, files, hole } = match link_lane(&name, directory) {
            Err(BackupError::Store(StoreError::OutOfUse { lane, reason })) => {
                manifest.left_out.push(LeftOut { lane: lane.to_string(), reason });
                continue;
            }
            linked => linked?,
        };
        let part = |reason| LeftOut { lane: name.to_string(), reason };
        manifest.left_out.extend(hole.map(part));
        let ends =
            ends.into_iter().map(|Through { epoch, through, chain }| LaneEnd { epoch, through, chain });
        manifest.lanes.push(LaneEnds { lane: name.to_string(), ends: ends.collect() });
        for (path, bytes) in files {
            manifest.files.push(of_file(directory, &path, bytes)?);
        }
    }
    for name in BESIDE {
        let (from, to) = (store.join(name), directory.join(name));
        match pgw_durable::add_name_unsynced(&from, &to) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            linked => linked.map_err(io_failed("link", &from))?,
        }
        let bytes = fs::metadata(&to).map_err(io_failed("read", &to))?.len();
        manifest.files.push(of_file(directory, Path::new(name), bytes)?);
    }
    for path in directories.iter().rev() {
        pgw_durable::sync_directory(path).map_err(io_failed("sync", path))?;
    }
    Ok(())
}

fn of_file(directory: &Path, path: &Path, bytes: u64) -> Result<ManifestFile, BackupError> {
    let at = directory.join(path);
    let inode = fs::metadata(&at).map_err(io_failed("read", &at))?.ino();
    let path = path.to_string_lossy().into_owned();
    Ok(ManifestFile { path, bytes, sha256: String::new(), inode })
}

/// Reads the files for their digests; passes how many bytes have been read.
pub(super) fn hash(
    directory: &Path,
    manifest: &mut Manifest,
    progress: &mut dyn FnMut(u64),
) -> Result<(), BackupError> {
    let mut done = 0;
    for file in &mut manifest.files {
        let path = directory.join(&file.path);
        let opened = File::open(&path).map_err(io_failed("open", &path))?;
        let mut told = |bytes| progress(done + bytes);
        match sha256(opened, file.bytes, &mut told).map_err(io_failed("read", &path))? {
            Hashed::All(digest) => file.sha256 = digest,
            Hashed::Short(has) => return Err(BackupError::Shrunk { path, has, wants: file.bytes }),
        }
        done += file.bytes;
    }
    Ok(())
}

/// The digest of a file's beginning.
pub(super) enum Hashed {
    /// 64 hexadecimal digits.
    All(String),
    /// It has only so many bytes.
    Short(u64),
}

/// SHA-256 of the first `bytes` bytes.
pub(super) fn sha256(mut file: File, bytes: u64, progress: &mut dyn FnMut(u64)) -> io::Result<Hashed> {
    let mut hash = Context::new(&SHA256);
    let mut piece = vec![0; PIECE];
    let mut done = 0;
    while done < bytes {
        let most = usize::try_from(bytes - done).unwrap_or(PIECE).min(PIECE);
        match file.read(&mut piece[..most]) {
            Ok(0) => return Ok(Hashed::Short(done)),
            Ok(count) => {
                hash.update(&piece[..count]);
                done += count as u64;
                progress(done);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(Hashed::All(hex(hash.finish().as_ref())))
}

/// Removes a directory of links: names that the store has too, and what [`Manifest::write`] has put there. A file that
/// has no other name is a copy, perhaps the only one, and stays with its directories; `false` then.
pub(super) fn remove(directory: &Path) -> io::Result<bool> {
    let ours = |name: &str| BESIDE.contains(&name) || [MANIFEST, SIGNATURE].contains(&name);
    let mut empty = true;
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
        entries => entries?,
    };
    for entry in entries {
        let path = entry?.path();
        let facts = fs::symlink_metadata(&path)?;
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if facts.is_dir() {
            empty &= remove(&path)?;
        } else if facts.is_file() && (facts.nlink() > 1 || ours(name)) {
            fs::remove_file(&path)?;
        } else {
            empty = false;
        }
    }
    if empty {
        fs::remove_dir(directory)?;
    }
    Ok(empty)
}

pub(super) fn io_failed<'a>(
    action: &'static str,
    path: &'a Path,
) -> impl FnOnce(io::Error) -> BackupError + 'a {
    move |source| BackupError::Io { action, path: PathBuf::from(path), source }
}
