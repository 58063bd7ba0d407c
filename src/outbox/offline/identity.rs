//! The two small files that every start needs: the store's owner (`FORMAT`), and the numbers of its lanes. If one is damaged
//! the daemon does not start; the records have the same information.

use std::fs;
use std::path::Path;

use pgw_core::transaction::Lane;
use uuid::Uuid;

use crate::crypt::keyring::Keyring;
use crate::crypt::seal::Sealer;
use crate::descriptor::{self, Retirement};
use crate::errors::OpenError;
use crate::files;
use crate::guard::carve::{header_in, scan_directory};
use crate::offline::error::RepairError;
use crate::types::OutboxSettings;

const FORMAT: &str = "FORMAT";
const LANES: &str = "lanes.list";

/// Whether the store's `FORMAT` is there and is this owner's; `false`: it is damaged or gone, and the records open with this key.
///
/// # Errors
/// [`RepairError`]: there is no store, or not this one.
pub(super) fn is_known(
    settings: &OutboxSettings,
    keys: &Keyring,
    sealer: &Sealer,
    retirement: Retirement,
) -> Result<bool, RepairError> {
    let store = settings.directory.as_path();
    match descriptor::identify(settings, keys, retirement) {
        Ok(Some(_)) => return Ok(true),
        Ok(None) if !store.join("segments").is_dir() => return Err(RepairError::NoStore(store.to_owned())),
        Ok(None) => {}
        Err(OpenError::Io { source, .. })
            if source.kind() == std::io::ErrorKind::InvalidData || files::is_unreadable(&source) => {}
        Err(error) => return Err(error.into()),
    }
    // `FORMAT` also said which key has sealed what. It can be rebuilt only if one key has sealed everything.
    let present = keys.present().id_bytes();
    let mut opened = false;
    for segment in segments(store)? {
        let scan = scan_directory(&segment).map_err(RepairError::cannot("read", &segment))?;
        for carved in scan.records() {
            let Ok((header, _)) = sealer.open(&carved.record) else { continue };
            if header.key_id != present {
                return Err(RepairError::SeveralKeys(store.to_owned()));
            }
            opened = true;
            break;
        }
    }
    if opened { Ok(false) } else { Err(RepairError::NothingOpens(store.to_owned())) }
}

/// Writes `FORMAT` again, for the owner that the configuration names.
pub(super) fn write_format(
    settings: &OutboxSettings,
    keys: &Keyring,
    owner: Option<(u32, u32)>,
) -> Result<(), RepairError> {
    keep(&settings.directory, FORMAT, owner)?;
    let path = settings.directory.join(FORMAT);
    descriptor::Descriptor::restore(settings, keys, owner).map_err(RepairError::cannot("write", &path))
}

/// The store's lanes with their numbers, and whether their list is damaged or gone: then they come from the segments.
pub(super) fn lanes(store: &Path) -> Result<(Vec<(Lane, u16)>, bool), RepairError> {
    let numbered = |(id, lane)| u16::try_from(id).ok().map(|id| (lane, id));
    if let Ok(Some(list)) = files::load::<Vec<Lane>>(&store.join(LANES)) {
        return Ok((list.into_iter().enumerate().filter_map(numbered).collect(), false));
    }
    let mut lanes: Vec<(Lane, u16)> = Vec::new();
    for segment in segments(store)? {
        let name = segment.parent().and_then(Path::file_name).and_then(|name| name.to_str());
        let Some(lane) = name.and_then(|name| Lane::new(name).ok()) else { continue };
        if lanes.iter().all(|(known, _)| *known != lane)
            && let Some(header) = header_in(&segment)
        {
            lanes.push((lane, header.lane));
        }
    }
    lanes.sort_by_key(|(_, id)| *id);
    let damaged = store.join(LANES).exists() || !lanes.is_empty();
    Ok((lanes, damaged))
}

/// Writes the list of lanes again, if their numbers leave no gap: in a gap may have been a lane without records.
pub(super) fn write_lanes(
    store: &Path,
    lanes: &[(Lane, u16)],
    owner: Option<(u32, u32)>,
) -> Result<bool, RepairError> {
    if lanes.iter().enumerate().any(|(place, (_, id))| place != usize::from(*id)) {
        return Ok(false);
    }
    keep(store, LANES, owner)?;
    let list: Vec<Lane> = lanes.iter().map(|(lane, _)| lane.clone()).collect();
    let path = store.join(LANES);
    files::save_for(owner, &path, &list).map_err(RepairError::cannot("write", &path))?;
    Ok(true)
}

/// Keeps the damaged file in `aside`.
fn keep(store: &Path, name: &str, owner: Option<(u32, u32)>) -> Result<(), RepairError> {
    let (path, aside) = (store.join(name), store.join("aside"));
    let copy = aside.join(format!("{name}-{}", Uuid::now_v7()));
    // A file that cannot be read at all is no loss.
    let Ok(bytes) = fs::read(&path) else { return Ok(()) };
    let written = files::create_directory(&aside)
        .and_then(|()| pgw_durable::create(&copy, pgw_durable::PRIVATE, &bytes))
        .and_then(|()| if owner.is_some() { files::give_to_owner(store) } else { Ok(()) })
        .and_then(|()| files::sync_tree(&aside));
    written.map_err(RepairError::cannot("write", &copy))
}

/// The directories of all segments, lane by lane.
fn segments(store: &Path) -> Result<Vec<std::path::PathBuf>, RepairError> {
    let mut found = Vec::new();
    let mut lanes = vec![store.join("segments")];
    for depth in 0..2 {
        for directory in std::mem::take(&mut lanes) {
            let entries = fs::read_dir(&directory).map_err(RepairError::cannot("list", &directory))?;
            let below = entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir());
            if depth == 0 { lanes.extend(below) } else { found.extend(below) }
        }
    }
    found.sort();
    Ok(found)
}
