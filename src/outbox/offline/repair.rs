//! Offline repair, from the first inspection to the report (`practice-gateway repair`).

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use pgw_core::transaction::Lane;

use crate::crypt::keyring::Keyring;
use crate::crypt::seal::Sealer;
use crate::descriptor::{self, Retirement};
use crate::errors::OpenError;
use crate::guard::replace::finish_replacements;
use crate::offline::error::RepairError;
use crate::offline::inspect::{LaneInspection, Opener};
use crate::offline::lane_plan::plan_lane;
use crate::offline::report::{self, RepairReport};
use crate::offline::sources::Sources;
use crate::offline::{apply, identity, keep};
use crate::types::OutboxSettings;

/// An operator's request.
#[derive(Debug, Clone, Default)]
pub struct RepairRequest {
    /// Where else to search: directories, or files (an image of a disk).
    pub from: Vec<PathBuf>,
    /// Only this lane.
    pub lane: Option<Lane>,
    /// Also takes records that nothing vouches for, if they are the only candidates.
    pub unproven: bool,
    /// Carries it out; otherwise nothing at all is written.
    pub act: bool,
}

/// Inspects a store that no process has open, and with [`RepairRequest::act`] fills missing records. Blocking. Calls `progress`
/// with each segment before it is read.
///
/// # Errors
/// [`RepairError`].
pub fn repair(
    settings: &OutboxSettings,
    keys: &Keyring,
    request: &RepairRequest,
    progress: &mut dyn FnMut(&Lane, u64),
) -> Result<RepairReport, RepairError> {
    let store = settings.directory.as_path();
    let sealer = Sealer::new(keys);
    // A retired store is only read.
    let retirement = if request.act { Retirement::Refused } else { Retirement::Ignored };
    let known = identity::is_known(settings, keys, &sealer, retirement)?;
    for from in &request.from {
        fs::metadata(from).map_err(RepairError::cannot("read", from))?;
    }
    let owner = if request.act { owner(store)? } else { None };
    let lock = match (request.act, lock_for_reading(store)?) {
        // A store without a lock file was never opened.
        (true, None) => Some(descriptor::lock(store)?),
        (_, lock) => lock,
    };
    let (numbered, remade) = remake(settings, keys, request, known, owner)?;
    let mut opener = Opener::new(&sealer);
    let mut lanes = Vec::new();
    for (lane, id) in numbered {
        if request.lane.as_ref().is_some_and(|only| *only != lane) {
            continue;
        }
        let directory = store.join("segments").join(lane.as_str());
        if request.act && directory.is_dir() {
            finish_replacements(&directory)
                .map_err(RepairError::cannot("finish replacing in", &directory))?;
        }
        let inspection = LaneInspection::at(store, (settings.lane_name(&lane), id), &mut opener, progress)?;
        lanes.push(plan_lane(inspection, &BTreeMap::new()));
    }
    let sources = Sources::search(store, keys, &request.from, &mut opener, &lanes)?;
    let from = report::from(&sources, &request.from);
    let mut report = RepairReport { done: request.act, remade, lanes: Vec::new(), from };
    for (index, lane_plan) in lanes.into_iter().enumerate() {
        let lane_plan = plan_lane(lane_plan.inspection, sources.found(index));
        if request.act {
            // First: what is rewritten moves.
            keep::keep(settings, (keys, &sealer), owner, &lane_plan, &sources, request.unproven)?;
            apply::apply((store, owner), &sealer, &lane_plan, &sources, request.unproven)?;
        }
        report.lanes.push(report::lane(&lane_plan, &sources, request.unproven));
    }
    drop(lock);
    Ok(report)
}

/// The lanes of a store with their numbers in records.
type NumberedLanes = Vec<(Lane, u16)>;

/// The lanes with their numbers, and which of the two files that a start needs are rewritten.
fn remake(
    settings: &OutboxSettings,
    keys: &Keyring,
    request: &RepairRequest,
    known: bool,
    owner: Option<(u32, u32)>,
) -> Result<(NumberedLanes, Vec<String>), RepairError> {
    let mut remade = Vec::new();
    if !known {
        remade.push("FORMAT".to_owned());
        if request.act {
            identity::write_format(settings, keys, owner)?;
        }
    }
    let (numbered, damaged) = identity::lanes(&settings.directory)?;
    if damaged && (!request.act || identity::write_lanes(&settings.directory, &numbered, owner)?) {
        remade.push("lanes.list".to_owned());
    }
    Ok((numbered, remade))
}

/// Takes the store's lock without writing anything. A store that has none was never opened.
fn lock_for_reading(store: &Path) -> Result<Option<File>, RepairError> {
    let path = store.join("lock");
    let lock = match File::open(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(RepairError::cannot("open", &path))?,
    };
    match lock.try_lock() {
        Ok(()) => Ok(Some(lock)),
        Err(fs::TryLockError::WouldBlock) => Err(OpenError::InUse(store.to_owned()).into()),
        Err(fs::TryLockError::Error(source)) => Err(RepairError::cannot("lock", &path)(source)),
    }
}

/// The owner for new files: the daemon must be able to read them, so root gives them to the store's owner.
///
/// # Errors
/// [`RepairError::NotTheOwner`].
fn owner(store: &Path) -> Result<Option<(u32, u32)>, RepairError> {
    let metadata = fs::metadata(store).map_err(RepairError::cannot("read", store))?;
    let (user, group) = (metadata.uid(), metadata.gid());
    match rustix::process::geteuid().as_raw() {
        us if us == user => Ok(None),
        0 => Ok(Some((user, group))),
        _ => Err(RepairError::NotTheOwner(store.to_owned(), user)),
    }
}
