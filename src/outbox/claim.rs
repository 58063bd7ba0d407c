//! Whose store it is: checked before anything is written, then its lock is taken.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{LaneSettings, Notable, OpenError, OutboxKey, Settings, files};
use crate::transaction::{Gateway, Lane, Practice};

/// Newest format that this build reads, and the one that it writes.
pub(crate) const FORMAT: u32 = 1;

/// Whose store it is. Written once, before anything else.
#[derive(Debug, Serialize, Deserialize)]
struct Format {
    format: u32,
    practice: Practice,
    gateway: Gateway,
    key_id: String,
}

/// Makes an [`OpenError`] of what the system said.
pub(crate) fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> OpenError {
    let path = path.to_owned();
    move |source| OpenError::Io { action, path, source }
}

/// Checks whose store it is; whether there is one. Nothing is written.
pub(crate) fn identify(settings: &Settings, key: &OutboxKey) -> Result<bool, OpenError> {
    let directory = &settings.directory;
    let path = directory.join("FORMAT");
    let found = files::load::<serde_json::Value>(&path).map_err(failed("read", &path))?;
    if let Some(found) = &found {
        let version = found.get("format").and_then(serde_json::Value::as_u64).unwrap_or(u64::MAX);
        if version > u64::from(FORMAT) {
            return Err(OpenError::Newer {
                directory: directory.clone(),
                found: u32::try_from(version).unwrap_or(u32::MAX),
                known: FORMAT,
            });
        }
        let format: Format = serde_json::from_value(found.clone())
            .map_err(|error| failed("read", &path)(io::Error::new(io::ErrorKind::InvalidData, error)))?;
        if (&format.practice, &format.gateway) != (&settings.practice, &settings.gateway) {
            return Err(OpenError::OtherOwner {
                directory: directory.clone(),
                owner: format!("{}.{}", format.practice, format.gateway),
                configured: format!("{}.{}", settings.practice, settings.gateway),
            });
        }
        if format.key_id != key.id() {
            return Err(OpenError::WrongKey {
                directory: directory.clone(),
                expected: format.key_id,
                given: key.id(),
            });
        }
    }
    Ok(found.is_some())
}

/// Checks whose store it is, before anything is written, and takes its lock.
pub(crate) fn claim(settings: &Settings, key: &OutboxKey) -> Result<File, OpenError> {
    let there = identify(settings, key)?;
    let directory = &settings.directory;
    let path = directory.join("FORMAT");
    files::create_directory(directory).map_err(failed("create", directory))?;
    let lock_path = directory.join("lock");
    let lock = File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .open(&lock_path)
        .map_err(failed("open", &lock_path))?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(fs::TryLockError::WouldBlock) => return Err(OpenError::InUse(directory.clone())),
        Err(fs::TryLockError::Error(source)) => return Err(failed("lock", &lock_path)(source)),
    }
    if !there {
        if directory.join("segments").exists() {
            let missing =
                io::Error::new(io::ErrorKind::NotFound, "there are segments, but the file FORMAT is missing");
            return Err(failed("read", &path)(missing));
        }
        write_format(settings, key, None).map_err(failed("write", &path))?;
    }
    Ok(lock)
}

/// Says whose store it is.
pub(crate) fn write_format(
    settings: &Settings,
    key: &OutboxKey,
    owner: Option<(u32, u32)>,
) -> io::Result<()> {
    let format = Format {
        format: FORMAT,
        practice: settings.practice.clone(),
        gateway: settings.gateway.clone(),
        key_id: key.id(),
    };
    files::save_for(owner, &settings.directory.join("FORMAT"), &format)
}

/// The numbers of the lanes: what records name a lane by. Only ever appended to.
pub(crate) fn lane_ids(settings: &Settings, notables: &mut Vec<Notable>) -> Result<Vec<u16>, OpenError> {
    let path = settings.directory.join("lanes.list");
    let mut known: Vec<Lane> = files::load(&path).map_err(failed("read", &path))?.unwrap_or_default();
    let before = known.len();
    for lane in &settings.lanes {
        if !known.contains(&lane.lane) {
            known.push(lane.lane.clone());
        }
    }
    if known.len() > before {
        files::save(&path, &known).map_err(failed("write", &path))?;
    }
    for lane in known.iter().filter(|known| settings.lanes.iter().all(|lane| lane.lane != **known)) {
        notables.push(Notable {
            code: "lane.unconfigured",
            detail: format!(
                "the store has a lane {lane} that the configuration does not name; it is kept and not sent"
            ),
        });
    }
    let id = |lane: &LaneSettings| known.iter().position(|known| *known == lane.lane).unwrap_or_default();
    Ok(settings.lanes.iter().map(|lane| u16::try_from(id(lane)).unwrap_or(u16::MAX)).collect())
}
