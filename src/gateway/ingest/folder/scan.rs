//! One scan: the folder, and what is still in `.taken/`. Blocks.

use std::ffi::OsStr;
use std::io;

use super::config::FolderDoorConfig;
use super::debounce::Candidate;
use super::list;
use super::settled_files::{FilePlace, SettledFiles};
use super::watcher;

/// The result of a scan.
pub(super) struct Scanned {
    pub(super) claimed: Vec<Candidate>,
    pub(super) files: Vec<Candidate>,
    pub(super) odd: u64,
    pub(super) more: bool,
    pub(super) watch: Option<std::os::fd::OwnedFd>,
}

/// Scans the folder and `.taken/`. Blocks.
pub(super) fn scan(config: &FolderDoorConfig, files: &SettledFiles, watched: bool) -> io::Result<Scanned> {
    if config.mounted && !list::is_mounted(&config.path)? {
        return Err(io::Error::new(io::ErrorKind::NotFound, "nothing is mounted there"));
    }
    files.prepare()?;
    // Before the scan, so that inotify reports later changes.
    let watch = if watched { None } else { watcher::watch(&config.path).ok() };
    let claimed = list::list(files.directory(FilePlace::Taken), config.take, list::MOST, |_| Ok(true))?;
    // A name that is still in `.taken/` waits its turn.
    let names: std::collections::HashSet<&OsStr> =
        claimed.files.iter().map(|file| file.name.as_os_str()).collect();
    let may = |name: &OsStr| Ok(!names.contains(name) && files.is_complete(name)?);
    let found = list::list(files.directory(FilePlace::Folder), config.take, list::MOST, may)?;
    let (odd, more) = (claimed.odd + found.odd, claimed.more || found.more);
    Ok(Scanned { files: found.files, claimed: claimed.files, odd, more, watch })
}
