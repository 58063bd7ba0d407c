//! Bundles that no key vouches for, kept beside the lanes that they name: `{lane}.unsigned/{SHA-256 of the file}.age`.
//!
//! They are no part of a lane: nothing reads them but a person, and [`all`] counts them. A bundle of several lanes is one file
//! with a name beside each.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use pgw_core::text::hex;
use pgw_core::transaction::{Gateway, Lane, Practice, UnixMillis};
use ring::digest::{Context, SHA256};

use super::files::{children, create_directory, failed};
use super::{LaneName, StoreError, replacement};

const DIRECTORY: &str = ".unsigned";
const BUNDLE: &str = ".age";
const BLOCK_BYTES: usize = 64 * 1024;

/// What lies beside a lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Beside {
    /// How many bundles.
    pub bundles: u64,
    /// Since when the oldest of them lies there, by the wall clock.
    pub since: UnixMillis,
}

/// Keeps a bundle's file beside these lanes, whole and on stable storage when this returns. False: it was there already, and
/// nothing is kept twice.
///
/// # Errors
/// [`StoreError`]: it may be kept beside some of them; the same again completes it.
pub fn keep(store: &Path, lanes: &[LaneName], bundle: &File) -> Result<bool, StoreError> {
    let name = digest(bundle).map_err(failed("read", Path::new("the bundle")))? + BUNDLE;
    let mut there: Option<PathBuf> = None;
    let mut new = false;
    for lane in lanes {
        let directory = directory_of(store, lane)?;
        let path = directory.join(&name);
        if !path.exists() {
            match &there {
                Some(there) => pgw_durable::add_name(there, &path),
                None => copy(bundle, &path),
            }
            .map_err(failed("write", &path))?;
            new = true;
        } else {
            // An earlier try may have ended between its rename and its sync.
            pgw_durable::sync_directory(&directory).map_err(failed("sync", &directory))?;
        }
        there = Some(path);
    }
    Ok(new)
}

fn directory_of(store: &Path, lane: &LaneName) -> Result<PathBuf, StoreError> {
    let mut path = store.to_owned();
    for part in [lane.practice.as_str(), lane.gateway.as_str(), &format!("{}{DIRECTORY}", lane.lane)] {
        path.push(part);
        create_directory(&path)?;
    }
    Ok(path)
}

fn digest(bundle: &File) -> io::Result<String> {
    let mut hash = Context::new(&SHA256);
    blocks(bundle, |block| {
        hash.update(block);
        Ok(())
    })?;
    Ok(hex(hash.finish().as_ref()))
}

fn copy(bundle: &File, path: &Path) -> io::Result<()> {
    let mut new = replacement(path)?;
    blocks(bundle, |block| new.write_all(block))?;
    new.commit()
}

fn blocks(bundle: &File, mut take: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
    let (mut block, mut at) = (vec![0; BLOCK_BYTES], 0);
    loop {
        match bundle.read_at(&mut block, at) {
            Ok(0) => return Ok(()),
            Ok(count) => {
                take(&block[..count])?;
                at += count as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// What lies beside each lane; lanes without anything are left out.
///
/// # Errors
/// [`StoreError`] when a directory cannot be listed.
pub fn all(store: &Path) -> Result<BTreeMap<LaneName, Beside>, StoreError> {
    let mut found = BTreeMap::new();
    let below = |path: &Path| {
        let is_directory = |(_, path): &(String, PathBuf)| path.is_dir();
        children(path).map(|all| all.into_iter().filter(is_directory).collect::<Vec<_>>())
    };
    for (practice, path) in below(store)? {
        let Ok(practice) = Practice::new(&practice) else { continue };
        // What cannot be listed is named where the lanes are.
        for (gateway, path) in below(&path).unwrap_or_default() {
            let Ok(gateway) = Gateway::new(&gateway) else { continue };
            for (name, path) in below(&path).unwrap_or_default() {
                let lane = name.strip_suffix(DIRECTORY).and_then(|lane| Lane::new(lane).ok());
                if let (Some(lane), Some(beside)) = (lane, count(&path)?) {
                    let (practice, gateway) = (practice.clone(), gateway.clone());
                    found.insert(LaneName { practice, gateway, lane }, beside);
                }
            }
        }
    }
    Ok(found)
}

fn count(directory: &Path) -> Result<Option<Beside>, StoreError> {
    let mut beside: Option<Beside> = None;
    for entry in fs::read_dir(directory).map_err(failed("list", directory))? {
        let entry = entry.map_err(failed("list", directory))?;
        if !entry.file_name().to_str().is_some_and(|name| name.ends_with(BUNDLE)) {
            continue;
        }
        let seconds = entry.metadata().map_err(failed("read", directory))?.mtime();
        let since = u64::try_from(seconds).unwrap_or(0) * 1_000;
        let Beside { bundles, since: oldest } = beside.unwrap_or(Beside { bundles: 0, since });
        beside = Some(Beside { bundles: bundles + 1, since: oldest.min(since) });
    }
    Ok(beside)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bundle_is_kept_once_beside_each_of_its_lanes() {
        let directory = tempfile::tempdir().unwrap();
        let store = directory.path();
        let lanes: Vec<LaneName> =
            ["B86022/gw1/clinical", "B86022/gw1/admin"].map(|name| name.parse().unwrap()).into();
        let bundle = |bytes: &[u8]| {
            let file = tempfile::tempfile().unwrap();
            file.write_all_at(bytes, 0).unwrap();
            file
        };
        let long = vec![7; BLOCK_BYTES + 1];
        assert!(keep(store, &lanes, &bundle(&long)).unwrap());
        assert!(!keep(store, &lanes, &bundle(&long)).unwrap(), "it is there already");
        assert!(keep(store, &lanes[..1], &bundle(b"another")).unwrap());
        let found = all(store).unwrap();
        let counts: Vec<_> = lanes.iter().map(|lane| found[lane].bundles).collect();
        assert_eq!(counts, [2, 1]);
        let beside = fs::read_dir(store.join("B86022/gw1/admin.unsigned")).unwrap().next().unwrap().unwrap();
        assert_eq!(fs::read(beside.path()).unwrap(), long);
        assert_eq!(beside.metadata().unwrap().nlink(), 2, "one file, two names");
        assert!(super::super::ndjson::lanes_in(store).unwrap().is_empty(), "it is no lane");
    }
}
