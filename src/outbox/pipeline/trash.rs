//! Deletes directories so that a crash in between leaves all of one, or nothing that counts.

use std::fs;
use std::io;
use std::path::Path;

use uuid::Uuid;

use crate::files;

/// Removes a directory: to the trash by rename, durably, and only then its files.
pub(crate) fn discard(store: &Path, directory: &Path) -> io::Result<()> {
    let trash = store.join("trash");
    files::create_directory(&trash)?;
    let name = directory.file_name().and_then(|n| n.to_str()).unwrap_or("segment");
    let lane = directory.parent().and_then(Path::file_name).and_then(|n| n.to_str()).unwrap_or("lane");
    let target = trash.join(format!("{lane}-{name}-{}", Uuid::now_v7()));
    pgw_durable::rename(directory, &target)?;
    fs::remove_dir_all(target)
}

/// Removes leftovers of a crash from the trash.
pub(crate) fn empty_trash(store: &Path) -> io::Result<()> {
    let trash = store.join("trash");
    if !trash.is_dir() {
        return Ok(());
    }
    for entry in fs::read_dir(&trash)? {
        fs::remove_dir_all(entry?.path())?;
    }
    Ok(())
}
