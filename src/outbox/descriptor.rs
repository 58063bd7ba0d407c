//! The store's owner, version and keys: checked before anything is written, then its lock is taken.
//!
//! `FORMAT` is one line of JSON and one with its checksum, replaced as a whole. It names the owner and the key that seals; from
//! the first rotation on also which key has sealed what ([`KeyPeriod`]), and of a retired store that it may not be opened
//! ([`Retired`]).

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use pgw_core::transaction::{Gateway, Lane, Position, Practice, rfc3339, unix_millis_now};
use serde::{Deserialize, Serialize};

use crate::crypt::key_use::{self, KeyPeriod, KeyUse, SealedRanges};
use crate::crypt::keyring::Keyring;
use crate::errors::OpenError;
use crate::state::layout::{lane_file, segment_numbers};
use crate::state::segment_table::SegmentTable;
use crate::types::{LaneSettings, OutboxAlarm, OutboxSettings};
use crate::{files, quarantine};

/// The format that this build reads and writes.
const FORMAT: u32 = 1;

/// The content of `FORMAT`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Descriptor {
    format: u32,
    pub(crate) practice: Practice,
    pub(crate) gateway: Gateway,
    /// The key that seals.
    key_id: String,
    /// Every key that has sealed, in the order in which they came; empty: `key_id` is the only one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    keys: Vec<KeyPeriod>,
    /// Set when the store was retired: nothing is accepted or delivered here any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) retired: Option<Retired>,
}

impl Descriptor {
    fn new(settings: &OutboxSettings, keys: &Keyring) -> Self {
        Self {
            format: FORMAT,
            practice: settings.practice.clone(),
            gateway: settings.gateway.clone(),
            key_id: keys.present().id(),
            keys: Vec::new(),
            retired: None,
        }
    }

    /// Which key has sealed what, oldest first.
    pub(crate) fn periods(&self) -> Vec<KeyPeriod> {
        if !self.keys.is_empty() {
            return self.keys.clone();
        }
        vec![KeyPeriod { key_id: self.key_id.clone(), quarantine: 1, lanes: BTreeMap::new() }]
    }

    /// The key that seals.
    pub(crate) fn key_id(&self) -> &str {
        &self.key_id
    }

    /// The key that the store was created with.
    pub(crate) fn first_key(&self) -> &str {
        self.keys.first().map_or(&self.key_id, |period| &period.key_id)
    }

    /// The active key seals from here on. Returns whether that is new; the caller saves it before the key seals anything.
    pub(crate) fn begin_key(&mut self, key_id: &str, next_quarantined: u64) -> bool {
        if self.key_id == key_id {
            return false;
        }
        self.keys = self.periods();
        key_id.clone_into(&mut self.key_id);
        let key_id = key_id.to_owned();
        self.keys.push(KeyPeriod { key_id, quarantine: next_quarantined, lanes: BTreeMap::new() });
        true
    }

    /// The next records of each lane are sealed with the active key. Returns whether that is new; the caller saves it first.
    pub(crate) fn begin_lanes(&mut self, next: impl Iterator<Item = (Lane, Position)>) -> bool {
        if self.keys.len() < 2 {
            return false;
        }
        let Some(present) = self.keys.last_mut() else { return false };
        let before = present.lanes.clone();
        for (lane, position) in next {
            let first = present.lanes.entry(lane).or_insert(position);
            // A power cut may have lost records that were never answered: their numbers are given again, under this key.
            *first = position.min(*first);
        }
        present.lanes != before
    }

    /// Writes `FORMAT`, durably.
    pub(crate) fn save(&self, directory: &Path) -> io::Result<()> {
        files::save(&directory.join("FORMAT"), self)
    }

    /// Writes a lost `FORMAT` again; only for a store that no other key than the active one has sealed.
    pub(crate) fn restore(
        settings: &OutboxSettings,
        keys: &Keyring,
        owner: Option<(u32, u32)>,
    ) -> io::Result<()> {
        files::save_for(owner, &settings.directory.join("FORMAT"), &Self::new(settings, keys))
    }
}

/// Where and when a store was retired.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Retired {
    /// RFC 3339.
    pub(crate) time: String,
    /// The machine's id, as systemd keeps it; empty where there is none.
    pub(crate) machine: String,
    /// Inode of the store's directory. Not its device: that may have another number after a restart.
    pub(crate) inode: u64,
}

impl Retired {
    /// This store on this machine, now.
    pub(crate) fn here(directory: &Path) -> io::Result<Self> {
        let facts = fs::metadata(directory)?;
        let machine = fs::read_to_string("/etc/machine-id").unwrap_or_default();
        Ok(Self { time: rfc3339(unix_millis_now()), machine: machine.trim().to_owned(), inode: facts.ino() })
    }
}

/// Makes an [`OpenError`] of the system's error.
pub(crate) fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> OpenError {
    let path = path.to_owned();
    move |source| OpenError::Io { action, path, source }
}

/// Reads `FORMAT`, if there is a store. Nothing is written.
pub(crate) fn read(directory: &Path) -> Result<Option<Descriptor>, OpenError> {
    let path = directory.join("FORMAT");
    let found = files::load::<serde_json::Value>(&path).map_err(failed("read", &path))?;
    let Some(found) = found else { return Ok(None) };
    let version = found.get("format").and_then(serde_json::Value::as_u64).unwrap_or(u64::MAX);
    if version > u64::from(FORMAT) {
        return Err(OpenError::Newer {
            directory: directory.to_owned(),
            found: u32::try_from(version).unwrap_or(u32::MAX),
            known: FORMAT,
        });
    }
    serde_json::from_value(found)
        .map(Some)
        .map_err(|error| failed("read", &path)(io::Error::new(io::ErrorKind::InvalidData, error)))
}

/// The same, refused if the store belongs to another gateway.
pub(crate) fn owned(settings: &OutboxSettings) -> Result<Option<Descriptor>, OpenError> {
    let directory = &settings.directory;
    let found = read(directory)?;
    if let Some(format) = &found
        && (&format.practice, &format.gateway) != (&settings.practice, &settings.gateway)
    {
        return Err(OpenError::OtherOwner {
            directory: directory.clone(),
            owner: format!("{}.{}", format.practice, format.gateway),
            configured: format!("{}.{}", settings.practice, settings.gateway),
        });
    }
    Ok(found)
}

/// From the names on the disk and the segment tables. Without a table, the whole lane counts as kept.
fn sealed_ranges_on_disk(store: &Path) -> io::Result<SealedRanges> {
    let mut ranges = SealedRanges::default();
    for entry in listed(&store.join("segments"))? {
        let Some(lane) = entry.to_str().and_then(|name| Lane::new(name).ok()) else { continue };
        let numbers = segment_numbers(&store.join("segments").join(&entry))?;
        let Some(oldest) = numbers.first() else { continue };
        let table = files::load::<SegmentTable>(&lane_file(store, &lane, "ledger")).ok().flatten();
        let first = table.and_then(|table| table.segments.get(oldest).map(|span| span.base));
        ranges.lanes.push((lane, first.unwrap_or(1)));
    }
    ranges.quarantine = quarantine::ids(&store.join("quarantine"))?;
    ranges.aside = listed(&store.join("aside"))?.len();
    Ok(ranges)
}

fn listed(directory: &Path) -> io::Result<Vec<std::ffi::OsString>> {
    match std::fs::read_dir(directory) {
        Ok(entries) => entries.map(|entry| entry.map(|entry| entry.file_name())).collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// Each key with what needs it, from the files on the disk.
pub(crate) fn key_uses(directory: &Path, format: &Descriptor) -> Result<Vec<KeyUse>, OpenError> {
    let ranges = sealed_ranges_on_disk(directory).map_err(failed("list", directory))?;
    Ok(key_use::uses(&format.periods(), &ranges))
}

/// Checks that these keys open everything in the store.
fn opened_by(directory: &Path, format: &Descriptor, keys: &Keyring) -> Result<(), OpenError> {
    if format.periods().iter().all(|period| keys.has(&period.key_id)) {
        return Ok(());
    }
    let missing: Vec<KeyUse> = key_uses(directory, format)?
        .into_iter()
        .filter(|used| used.essential && !keys.has(&used.id))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let needed_by = |used: &KeyUse| match used.needed_by.as_slice() {
        [] => used.id.clone(),
        parts => format!("{} ({})", used.id, parts.join(", ")),
    };
    Err(OpenError::WrongKey {
        directory: directory.to_owned(),
        expected: missing.iter().map(needed_by).collect::<Vec<_>>().join(" and "),
        given: keys.ids().join(", "),
    })
}

/// Checks the owner, the keys, and that the store was not retired; returns `FORMAT`, if there is one. Nothing is written.
pub(crate) fn identify(
    settings: &OutboxSettings,
    keys: &Keyring,
    retirement: Retirement,
) -> Result<Option<Descriptor>, OpenError> {
    let Some(format) = owned(settings)? else { return Ok(None) };
    if let Some(retired) = format.retired.as_ref().filter(|_| retirement == Retirement::Refused) {
        return Err(OpenError::Retired { directory: settings.directory.clone(), time: retired.time.clone() });
    }
    opened_by(&settings.directory, &format, keys)?;
    Ok(Some(format))
}

/// Whether a retired store may be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Retirement {
    /// Never: the store is to run.
    Refused,
    /// Yes: the store is only inspected.
    Ignored,
}

/// Takes the store's lock.
pub(crate) fn lock(directory: &Path) -> Result<File, OpenError> {
    let lock_path = directory.join("lock");
    let lock = File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .open(&lock_path)
        .map_err(failed("open", &lock_path))?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(fs::TryLockError::WouldBlock) => Err(OpenError::InUse(directory.to_owned())),
        Err(fs::TryLockError::Error(source)) => Err(failed("lock", &lock_path)(source)),
    }
}

/// Checks the store as [`identify`] does, before anything is written, and takes its lock.
pub(crate) fn identify_and_lock(
    settings: &OutboxSettings,
    keys: &Keyring,
    retirement: Retirement,
) -> Result<(File, Descriptor), OpenError> {
    identify(settings, keys, retirement)?;
    let directory = &settings.directory;
    let path = directory.join("FORMAT");
    files::create_directory(directory).map_err(failed("create", directory))?;
    let lock = lock(directory)?;
    // Once more: the process that had the lock may have rotated the key, or retired the store.
    if let Some(format) = identify(settings, keys, retirement)? {
        return Ok((lock, format));
    }
    if directory.join("segments").exists() {
        let missing =
            io::Error::new(io::ErrorKind::NotFound, "there are segments, but the file FORMAT is missing");
        return Err(failed("read", &path)(missing));
    }
    let format = Descriptor::new(settings, keys);
    format.save(directory).map_err(failed("write", &path))?;
    Ok((lock, format))
}

/// The numbers by which records name their lane. Numbers are only ever added.
pub(crate) fn lane_ids(
    settings: &OutboxSettings,
    alarms: &mut Vec<OutboxAlarm>,
) -> Result<Vec<u16>, OpenError> {
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
        alarms.push(OutboxAlarm {
            code: "lane.unconfigured",
            detail: format!(
                "the store has a lane {lane} that the configuration does not name; it is kept and not sent"
            ),
        });
    }
    let id = |lane: &LaneSettings| known.iter().position(|known| *known == lane.lane).unwrap_or_default();
    Ok(settings.lanes.iter().map(|lane| u16::try_from(id(lane)).unwrap_or(u16::MAX)).collect())
}
