//! A store whose key is lost: nobody can read it, so it is set aside whole, and a new one is created. Nothing is deleted: if
//! the key is found, its waiting transactions can be exported and delivered as usual.
//!
//! How much is unreadable is known without the key: the tail checkpoint, the watermarks, and the headers of the records are not sealed.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use pgw_core::consequence::Consequence;
use pgw_core::transaction::{Epoch, Lane, Position, rfc3339, unix_millis_now};
use serde::{Deserialize, Serialize};

use crate::crypt::keyring::Keyring;
use crate::descriptor::{self, failed};
use crate::errors::OpenError;
use crate::files;
use crate::guard::carve::scan_directory;
use crate::state::checkpoint::TailCheckpoint;
use crate::state::lane_epochs::LaneEpochs;
use crate::state::layout::segment_numbers;
use crate::state::watermarks::Watermarks;
use crate::types::{OutboxAlarm, OutboxSettings};

/// The file in a store that was set aside.
const FILE: &str = "SET-ASIDE";
/// Follows the store's name in its directory's name.
const SUFFIX: &str = ".set-aside-";
/// How many segments at the end of a lane are read: the last may only have been made ahead.
const SEGMENTS_READ: usize = 2;

/// A lane as far as it is known without its key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unreadable {
    /// The last position that was accepted.
    pub accepted: Position,
    /// Through which position the hub has confirmed; it has these.
    pub confirmed: Position,
    /// The epoch of the last accepted record.
    pub epoch: Option<Epoch>,
}

impl Unreadable {
    /// How many transactions the hub has not confirmed, and nobody can read without the key.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.accepted.saturating_sub(self.confirmed)
    }
}

/// A store that was set aside, or would be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetAside {
    /// RFC 3339.
    pub time: String,
    /// Ids of the keys that it needs.
    pub key_ids: Vec<String>,
    /// Each lane.
    pub lanes: BTreeMap<Lane, Unreadable>,
}

/// Why a store is not set aside. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum SetAsideError {
    /// It cannot be read.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// There is no store.
    #[error(
        "there is no store in {0}: `practice-gateway init` creates a key, and the first start creates the store"
    )]
    NoStore(PathBuf),
    /// Its keys are available.
    #[error("this box has the keys of the store in {0}: nothing is lost, and nothing was set aside")]
    Readable(PathBuf),
}

impl SetAsideError {
    /// How the command ends.
    #[must_use]
    pub fn consequence(&self) -> Consequence {
        match self {
            Self::Open(error) => error.consequence(),
            Self::NoStore(_) => Consequence::UNREACHABLE,
            Self::Readable(_) => Consequence::Refuse,
        }
    }
}

/// The loss that setting the store aside would mean. Nothing is written.
///
/// # Errors
/// [`SetAsideError`].
pub fn inspect(settings: &OutboxSettings, keys: Option<&Keyring>) -> Result<SetAside, SetAsideError> {
    let store = &settings.directory;
    let Some(format) = descriptor::owned(settings)? else {
        return Err(SetAsideError::NoStore(store.clone()));
    };
    match keys.map(|keys| descriptor::identify(settings, keys, descriptor::Retirement::Refused)) {
        Some(Ok(_)) => return Err(SetAsideError::Readable(store.clone())),
        None | Some(Err(OpenError::WrongKey { .. })) => {}
        Some(Err(error)) => return Err(error.into()),
    }
    let needed = descriptor::key_uses(store, &format)?.into_iter().filter(|used| used.essential);
    Ok(SetAside {
        time: rfc3339(unix_millis_now()),
        key_ids: needed.map(|used| used.id).collect(),
        lanes: lanes(store).map_err(failed("inspect", store))?,
    })
}

fn lanes(store: &Path) -> io::Result<BTreeMap<Lane, Unreadable>> {
    let path = store.join("sidecar");
    let checkpoint = path.exists().then(|| TailCheckpoint::open(&path)).transpose()?;
    let watermarks = Watermarks::open(&store.join("marks"))?;
    let mut lanes = BTreeMap::new();
    let segments = store.join("segments");
    for entry in fs::read_dir(&segments).into_iter().flatten() {
        let name = entry?.file_name();
        let Some(lane) = name.to_str().and_then(|name| Lane::new(name).ok()) else { continue };
        let directory = segments.join(&name);
        let mut accepted =
            checkpoint.as_ref().and_then(|s| s.last(&lane)).map_or(0, |(position, _)| position);
        for number in segment_numbers(&directory)?.iter().rev().take(SEGMENTS_READ) {
            let scan = scan_directory(&directory.join(format!("{number:010}")))?;
            accepted = scan.records().map(|found| found.position).fold(accepted, Position::max);
        }
        let known = LaneEpochs::read(store, &lane);
        let confirmed = watermarks.watermark(&lane).map_or(0, |watermark| watermark.position);
        let epoch = known.map(|known| known.epochs.present().epoch);
        lanes.insert(lane, Unreadable { accepted: accepted.max(confirmed), confirmed, epoch });
    }
    Ok(lanes)
}

/// Renames the whole store, and returns its new path. The daemon must not run.
///
/// # Errors
/// [`SetAsideError`].
pub fn set_aside(
    settings: &OutboxSettings,
    keys: Option<&Keyring>,
) -> Result<(PathBuf, SetAside), SetAsideError> {
    let store = &settings.directory;
    inspect(settings, keys)?;
    let _lock = descriptor::lock(store)?;
    let facts = inspect(settings, keys)?;
    let stamp: String = facts.time.chars().filter(char::is_ascii_alphanumeric).collect();
    let mut name = store.file_name().unwrap_or_default().to_owned();
    name.push(format!("{SUFFIX}{stamp}"));
    let aside = store.with_file_name(name);
    let path = store.join(FILE);
    files::save(&path, &facts).map_err(failed("write", &path))?;
    files::give_to_owner(store).map_err(failed("give to its owner what is in", store))?;
    if aside.exists() {
        return Err(failed("rename", store)(io::ErrorKind::AlreadyExists.into()).into());
    }
    pgw_durable::rename(store, &aside).map_err(failed("rename", store))?;
    Ok((aside, facts))
}

/// The stores that were set aside beside this one, oldest first. Unreadable ones are skipped.
#[must_use]
pub fn beside(settings: &OutboxSettings) -> Vec<(PathBuf, SetAside)> {
    let store = &settings.directory;
    let prefix = format!("{}{SUFFIX}", store.file_name().unwrap_or_default().to_string_lossy());
    let parent = store.parent().unwrap_or(Path::new("."));
    let mut found = Vec::new();
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(&prefix)
            && let Ok(Some(facts)) = files::load::<SetAside>(&entry.path().join(FILE))
        {
            found.push((entry.path(), facts));
        }
    }
    found.sort_by(|a, b| a.0.cmp(&b.0));
    found
}

/// The alarm about a store that was set aside: raised at every start until its directory is moved away.
#[must_use]
pub fn alarm(directory: &Path, facts: &SetAside) -> OutboxAlarm {
    let name = directory.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let lane = |(lane, facts): (&Lane, &Unreadable)| {
        let Unreadable { accepted, confirmed, epoch } = facts;
        match facts.count() {
            0 => format!("lane {lane}: all {accepted} were confirmed"),
            count => format!(
                "lane {lane}: {count} transactions, positions {} to {accepted}{}",
                confirmed + 1,
                epoch.map_or(String::new(), |epoch| format!(" of epoch {epoch}"))
            ),
        }
    };
    let lanes: Vec<String> = facts.lanes.iter().map(lane).collect();
    OutboxAlarm {
        code: "store.set_aside",
        detail: format!(
            "the store {name} needs the lost outbox key {}; their senders must repeat these unreadable transactions: {}",
            facts.key_ids.join(" and "),
            lanes.join("; ")
        ),
    }
}
