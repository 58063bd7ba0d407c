//! The files and directories of the embedded store: names, creation, and what is set aside.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use pgw_core::transaction::{Gateway, Lane, Practice, unix_millis_now};

use super::tail::{self, Tail};
use super::{LaneName, StoreError};

pub(super) fn failed<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> StoreError + 'a {
    move |source| StoreError::Io { action, path: path.to_owned(), source }
}

pub(super) fn rotated_path(path: &Path, ordinal: u32) -> PathBuf {
    path.with_extension(format!("{ordinal:06}.ndjson"))
}

/// The numbers of a lane's rotated files, in their order.
pub(super) fn rotated(directory: &Path, lane: &Lane) -> Result<Vec<u32>, StoreError> {
    let mut ordinals = Vec::new();
    for entry in fs::read_dir(directory).map_err(failed("list", directory))? {
        let name = entry.map_err(failed("list", directory))?.file_name();
        let of_lane = |name: &str| name.strip_prefix(lane.as_str()).is_some_and(|rest| rest.starts_with('.'));
        let ordinal = name.to_str().filter(|name| of_lane(name)).and_then(|name| ordinal_of(Path::new(name)));
        ordinals.extend(ordinal);
    }
    ordinals.sort_unstable();
    Ok(ordinals)
}

/// The number in the name of a rotated file; `None`: it has none.
pub(super) fn ordinal_of(path: &Path) -> Option<u32> {
    let digits = path.file_name()?.to_str()?.strip_suffix(".ndjson")?.split_once('.')?.1;
    digits.bytes().all(|digit| digit.is_ascii_digit()).then(|| digits.parse().ok())?
}

/// Renames files that have lost their beginning, so that nobody takes them for a lane's, except an empty one, and one that
/// is written next and holds no whole group: that is the torn end of a lane that had just begun.
pub(super) fn put_aside(
    damaged: &[PathBuf],
    written: Option<&Path>,
    lane: &LaneName,
) -> Result<(), StoreError> {
    for path in damaged {
        let file = File::open(path).map_err(failed("open", path))?;
        let Tail { good, length, .. } = tail::read(&file, lane).map_err(failed("read", path))?;
        if length == 0 || (written == Some(path.as_path()) && good == 0) {
            continue;
        }
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".damaged-{}", unix_millis_now()));
        pgw_durable::rename(path, Path::new(&name)).map_err(failed("rename", path))?;
        tracing::error!(%lane, file = %path.display(), kept = %Path::new(&name).display(), "A file of a lane has lost its beginning and is set aside; the gateway sends again what was in it");
    }
    Ok(())
}

/// Every lane that has files below `directory`.
///
/// # Errors
/// [`StoreError`] when a directory cannot be listed.
pub fn lanes_in(directory: &Path) -> Result<Vec<LaneName>, StoreError> {
    let (lanes, unlisted) = lanes_found(directory)?;
    unlisted.into_iter().next().map_or(Ok(lanes), Err)
}

/// The same, with the directories below it that cannot be listed.
pub(super) fn lanes_found(directory: &Path) -> Result<(Vec<LaneName>, Vec<StoreError>), StoreError> {
    let (mut lanes, mut unlisted) = (HashSet::new(), Vec::new());
    let mut list = |path: &Path| children(path).map_err(|error| unlisted.push(error)).unwrap_or_default();
    for (practice, path) in children(directory)?.into_iter().filter(|(_, path)| path.is_dir()) {
        let Ok(practice) = Practice::new(&practice) else { continue };
        for (gateway, path) in list(&path).into_iter().filter(|(_, path)| path.is_dir()) {
            let Ok(gateway) = Gateway::new(&gateway) else { continue };
            for (name, _) in list(&path) {
                let Some((lane, rest)) = name.split_once('.') else { continue };
                if let (true, Ok(lane)) = (rest.ends_with("ndjson"), Lane::new(lane)) {
                    lanes.insert(LaneName { practice: practice.clone(), gateway: gateway.clone(), lane });
                }
            }
        }
    }
    let mut lanes: Vec<_> = lanes.into_iter().collect();
    lanes.sort();
    Ok((lanes, unlisted))
}

pub(super) fn children(directory: &Path) -> Result<Vec<(String, PathBuf)>, StoreError> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).map_err(failed("list", directory))? {
        let entry = entry.map_err(failed("list", directory))?;
        if let Ok(name) = entry.file_name().into_string() {
            found.push((name, entry.path()));
        }
    }
    Ok(found)
}

/// The directory of a lane's files.
#[must_use]
pub fn directory_of(directory: &Path, lane: &LaneName) -> PathBuf {
    directory.join(lane.practice.as_str()).join(lane.gateway.as_str())
}

/// The files of a lane, in the order of its transactions. The last is the one that grows; it may not exist.
///
/// # Errors
/// [`StoreError`] when the directory cannot be listed.
pub fn files_of(directory: &Path, lane: &LaneName) -> Result<Vec<PathBuf>, StoreError> {
    let parent = directory_of(directory, lane);
    let path = parent.join(format!("{}.ndjson", lane.lane));
    let mut paths: Vec<_> =
        rotated(&parent, &lane.lane)?.into_iter().map(|ordinal| rotated_path(&path, ordinal)).collect();
    paths.push(path);
    Ok(paths)
}

/// The file for copies of a lane's transactions that its gateway has sent again.
#[must_use]
pub fn again_path(directory: &Path, lane: &LaneName) -> PathBuf {
    directory_of(directory, lane).join(format!("{}.again.ndjson", lane.lane))
}

/// Creates a directory, mode 0700, durably; a new one gets the owner of the directory above it.
///
/// # Errors
/// [`StoreError`].
pub fn create_directory(path: &Path) -> Result<(), StoreError> {
    if path.is_dir() {
        return Ok(());
    }
    pgw_durable::create_directory(path, 0o700)
        .and_then(|()| super::give_to_owner_above(path, &File::open(path)?))
        .map_err(failed("create", path))
}

fn sync_directory(path: &Path) -> Result<(), StoreError> {
    pgw_durable::sync_directory(path).map_err(failed("sync", path))
}

/// Opens a file for reading and writing; a new one is on stable storage with its name before anything is written to
/// it.
pub(super) fn open_synced(path: &Path) -> Result<File, StoreError> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600);
    match options.open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let file = options.create_new(true).open(path).map_err(failed("create", path))?;
            // A command of root's may be the one that opens the store.
            super::give_to_owner_above(path, &file).map_err(failed("create", path))?;
            file.sync_all().map_err(failed("sync", path))?;
            path.parent().map_or(Ok(()), sync_directory)?;
            Ok(file)
        }
        opened => opened.map_err(failed("open", path)),
    }
}

/// Copies the torn end to a file of its own, then cuts it off.
pub(super) fn set_aside(file: &File, path: &Path, tail: &Tail) -> Result<(), StoreError> {
    if tail.good >= tail.length {
        return Ok(());
    }
    let aside = path.with_extension(format!("torn-{}", unix_millis_now()));
    let copy = open_synced(&aside)?;
    let mut block = vec![0; 64 * 1024];
    let mut at = tail.good;
    while at < tail.length {
        let count = file.read_at(&mut block, at).map_err(failed("read", path))?;
        if count == 0 {
            break;
        }
        if let Err(source) = copy.write_all_at(&block[..count], at - tail.good) {
            let _ = fs::remove_file(&aside);
            return Err(failed("write", &aside)(source));
        }
        at += count as u64;
    }
    copy.sync_all().map_err(failed("sync", &aside))?;
    file.set_len(tail.good).map_err(failed("cut", path))?;
    file.sync_all().map_err(failed("sync", path))?;
    tracing::warn!(
        file = %path.display(),
        kept = %aside.display(),
        bytes = tail.length - tail.good,
        "The end of a lane file was torn and is cut off; the gateway sends again what was in it"
    );
    Ok(())
}
