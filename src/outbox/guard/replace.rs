//! Replaces a segment by a new one. The old one is set aside by rename and never deleted.
//!
//! The new one is finished beside the old before either is renamed, so that a crash at any moment leaves one of
//! them in place: `{number}.new` beside `{number}` is unfinished; without `{number}` it is the finished one.

use std::fs;
use std::io;
use std::path::Path;

use pgw_core::transaction::Lane;
use uuid::Uuid;

use crate::files;

/// Sets the old one aside, if there is one, and puts the new one in its place.
pub(crate) fn replace(
    store: &Path,
    (lane, number): (&Lane, u64),
    place: &Path,
    fresh: &Path,
) -> io::Result<()> {
    let aside = store.join("aside");
    files::create_directory(&aside)?;
    files::sync_tree(fresh)?;
    files::sync_name(fresh)?;
    step(place)?;
    if place.exists() {
        let name = format!("{lane}-{number:010}-{}", Uuid::now_v7());
        pgw_durable::rename(place, &aside.join(name))?;
        step(place)?;
    }
    pgw_durable::rename(fresh, place)?;
    step(place)
}

/// Called between two steps of a replacement; tests make it fail.
#[cfg_attr(not(test), expect(clippy::unnecessary_wraps, reason = "only a test makes it fail"))]
pub(crate) fn step(place: &Path) -> io::Result<()> {
    #[cfg(test)]
    crate::faults_for_tests::of(place).check(crate::faults_for_tests::Point::Step)?;
    let _ = place;
    Ok(())
}

/// Finishes or removes a replacement that a crash interrupted in a lane's directory.
pub(crate) fn finish_replacements(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let fresh = entry?.path();
        // A digest table that was being written is a file: the next one replaces it.
        if fresh.is_dir() && fresh.extension().is_some_and(|extension| extension == "new") {
            let place = fresh.with_extension("");
            if place.exists() {
                fs::remove_dir_all(&fresh)?;
                pgw_durable::sync_directory(directory)?;
            } else {
                pgw_durable::rename(&fresh, &place)?;
            }
        }
    }
    Ok(())
}
