//! The list of gateways as a file (`config/gateways.toml` says what each key means).
//!
//! Only [`edit`] writes it. Commands take turns by a lock on its directory: the file itself is replaced, so a lock on it
//! would hold back nobody who opens the new one.

use std::fs::{File, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, fchown};
use std::path::{Path, PathBuf};
use std::time::Duration;

use pgw_core::consequence::Consequence;
use pgw_core::transaction::{Gateway, Lane, Practice, from_rfc3339, rfc3339};
use pgw_core::wire::signature::PublicKey;
use pgw_durable::Replacement;
use pgw_host::config::{ConfigError, Source};
use serde::{Deserialize, Serialize};
use toml::Spanned;

use super::change::ChangeError;
use super::{Gateways, KeyState, ListedGateway, ListedKey, common_name, label};

/// Of a new file: the hub reads it through its group.
const MODE: u32 = 0o640;
/// How often, and how long, a command waits for another one that changes the list.
const TRIES: u32 = 100;
const PAUSE: Duration = Duration::from_millis(100);
const MOST_QUOTA_BYTES: u64 = 1 << 50;
/// Largest window that can be set.
const MOST_WINDOW: u32 = 65_535;
const HEAD: &str = "\
# The gateways of this hub, and their keys. `practice-hub gateway` writes this file: comments that you add are lost then.
# After an edit by hand run `practice-hub check`, then `systemctl reload practice-hub`.
";

/// Why the list cannot be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum ListError {
    /// The file is wrong, or cannot be read.
    #[error(transparent)]
    Wrong(#[from] ConfigError),
    /// The running hub has a list, and its file is no longer there.
    #[error("the list of gateways {0} is not there any more")]
    Gone(PathBuf),
    /// The running hub has a later one.
    #[error(
        "{file}: serial = {serial} is not allowed: it must be {in_use} or more, as in the list that the hub has; is this an \
         older copy?"
    )]
    Older {
        /// The list's file.
        file: PathBuf,
        /// Its serial.
        serial: u64,
        /// The serial of the list that the hub has.
        in_use: u64,
    },
    /// Another command is changing it.
    #[error("another command is changing the list of gateways {0}: run this command again in a moment")]
    Busy(PathBuf),
    /// It cannot be locked or written.
    #[error("cannot write the list of gateways {file}")]
    Write {
        /// The list's file.
        file: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// The list does not allow this change.
    #[error(transparent)]
    Refused(#[from] ChangeError),
    /// The list cannot be written as TOML.
    #[error("the list of gateways cannot be written")]
    Form(#[from] toml::ser::Error),
}

impl ListError {
    /// How a command ends.
    #[must_use]
    pub fn consequence(&self) -> Consequence {
        match self {
            Self::Wrong(error) => error.consequence(),
            Self::Gone(_) | Self::Older { .. } => Consequence::CONFIGURATION,
            Self::Busy(_) => Consequence::Retry,
            Self::Write { source, .. } => Consequence::of_file(source),
            Self::Refused(_) => Consequence::Refuse,
            Self::Form(_) => Consequence::BUG,
        }
    }
}

/// A change that has been made.
#[derive(Debug)]
pub struct Edited<T> {
    /// What the change itself returned.
    pub outcome: T,
    /// The list before.
    pub before: Gateways,
    /// The list now: the same, if nothing had to be changed.
    pub after: Gateways,
}

impl Gateways {
    /// Reads and checks the list. Without the file it is empty: a hub before its first gateway.
    ///
    /// # Errors
    /// [`ListError::Wrong`] names file, line and key.
    pub fn load(file: &Path) -> Result<Self, ListError> {
        match Source::read(file) {
            Ok(source) => Ok(checked(&source)?),
            Err(ConfigError::Unreadable { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                Ok(Self::default())
            }
            Err(error) => Err(error.into()),
        }
    }
}

/// Changes the list: alone, atomically, with the next serial, and on stable storage before this returns. Where
/// `change` leaves the list as it was, nothing is written. A new file gets the group of `like`, a file that the hub can
/// read.
///
/// # Errors
/// [`ListError`]; except where the last sync failed, the file is as it was.
pub fn edit<T>(
    file: &Path,
    like: &Path,
    change: impl FnOnce(&mut Gateways) -> Result<T, ChangeError>,
) -> Result<Edited<T>, ListError> {
    let failed = |source| ListError::Write { file: file.to_owned(), source };
    let _lock = lock(file)?;
    let before = Gateways::load(file)?;
    let mut after = before.clone();
    let outcome = change(&mut after)?;
    if after != before {
        after.serial = before.serial.saturating_add(1);
        let text = text(&after)?;
        // No command may leave behind what the hub then refuses to read.
        checked(&Source::of(file, text.clone()))?;
        write(file, like, &text).map_err(failed)?;
    }
    Ok(Edited { outcome, before, after })
}

fn lock(file: &Path) -> Result<File, ListError> {
    let failed = |source| ListError::Write { file: file.to_owned(), source };
    for _ in 0..TRIES {
        if let Some(locked) = pgw_durable::try_lock_directory(file).map_err(failed)? {
            return Ok(locked);
        }
        std::thread::sleep(PAUSE);
    }
    Err(ListError::Busy(file.to_owned()))
}

fn write(file: &Path, like: &Path, text: &str) -> io::Result<()> {
    if file.exists() {
        return pgw_durable::replace_in_place(file, text.as_bytes());
    }
    let mut new = Replacement::begin(file, MODE)?;
    // Of root's group, or after a strict umask, the hub could not read it.
    let group = std::fs::metadata(like)?.gid();
    if new.file().metadata()?.gid() != group {
        fchown(new.file(), None, Some(group))?;
    }
    new.file().set_permissions(Permissions::from_mode(MODE))?;
    new.write_all(text.as_bytes())?;
    new.commit()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawList {
    #[serde(default)]
    serial: u64,
    #[serde(default)]
    gateway: Vec<RawGateway>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawGateway {
    name: Spanned<String>,
    display_name: Option<Spanned<String>>,
    district: Option<Spanned<String>>,
    lanes: Option<Spanned<Vec<Spanned<String>>>>,
    quota_bytes_per_day: Option<Spanned<u64>>,
    window: Option<Spanned<u64>>,
    #[serde(default)]
    key: Vec<RawKey>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawKey {
    public_key: Spanned<String>,
    state: Spanned<String>,
    added: Option<Spanned<String>>,
}

fn checked(source: &Source) -> Result<Gateways, ConfigError> {
    let raw: RawList = source.parse()?;
    let mut list = Gateways { serial: raw.serial, ..Gateways::default() };
    for raw in raw.gateway {
        let name = common_name(raw.name.get_ref()).map_err(|error| {
            let allowed = error.rsplit_once("it must be ").map_or(error.as_str(), |(_, rule)| rule);
            source.wrong("gateway.name", &raw.name, allowed)
        })?;
        if list.gateways.contains_key(&name) {
            return Err(source.wrong("gateway.name", &raw.name, "different from the other gateways' names"));
        }
        let mut gateway = ListedGateway {
            display_name: checked_label(source, "gateway.display_name", raw.display_name)?,
            district: checked_label(source, "gateway.district", raw.district)?,
            lanes: checked_lanes(source, raw.lanes)?,
            quota_bytes_per_day: checked_quota(source, raw.quota_bytes_per_day)?,
            window: checked_window(source, raw.window)?,
            keys: Vec::new(),
        };
        for raw in &raw.key {
            let key = checked_key(source, raw, &name, &gateway, &list)?;
            gateway.keys.push(key);
        }
        list.gateways.insert(name, gateway);
    }
    Ok(list)
}

fn checked_label(source: &Source, key: &str, given: Option<Spanned<String>>) -> Result<String, ConfigError> {
    let Some(given) = given else { return Ok(String::new()) };
    label(given.get_ref()).map_err(|rule| source.wrong(key, &given, rule.trim_start_matches("it must be ")))
}

fn checked_lanes(
    source: &Source,
    given: Option<Spanned<Vec<Spanned<String>>>>,
) -> Result<Vec<Lane>, ConfigError> {
    const KEY: &str = "gateway.lanes";
    let Some(given) = given else { return Ok(Vec::new()) };
    if given.get_ref().is_empty() {
        return Err(source.wrong(KEY, &given, "one lane or more; leave the key out to allow any lane"));
    }
    let mut lanes = Vec::new();
    for given in given.get_ref() {
        let lane = source.parsed(KEY, given)?;
        if lanes.contains(&lane) {
            return Err(source.wrong(KEY, given, "different from the gateway's other lanes"));
        }
        lanes.push(lane);
    }
    Ok(lanes)
}

fn checked_window(source: &Source, given: Option<Spanned<u64>>) -> Result<Option<u32>, ConfigError> {
    let none = given.is_none();
    let window = source.number("gateway.window", given, 0, 0..=u64::from(MOST_WINDOW))?;
    Ok((!none).then_some(window))
}

fn checked_quota(source: &Source, given: Option<Spanned<u64>>) -> Result<Option<u64>, ConfigError> {
    let none = given.is_none();
    let bytes = source.number("gateway.quota_bytes_per_day", given, 0, 1..=MOST_QUOTA_BYTES)?;
    Ok((!none).then_some(bytes))
}

/// A key of the gateway `name`, beside the keys that it and all gateways before it in the file have.
fn checked_key(
    source: &Source,
    raw: &RawKey,
    name: &(Practice, Gateway),
    gateway: &ListedGateway,
    before: &Gateways,
) -> Result<ListedKey, ConfigError> {
    const STATES: [(&str, KeyState); 3] =
        [("signing", KeyState::Signing), ("verifying", KeyState::Verifying), ("revoked", KeyState::Revoked)];
    let wrong_key = |allowed: &str| source.wrong("gateway.key.public_key", &raw.public_key, allowed);
    let key: PublicKey = raw.public_key.get_ref().parse().map_err(|_| wrong_key("32 bytes in base64"))?;
    let other = before.owner(&key).or_else(|| gateway.key(key.id()).map(|_| name));
    if let Some((practice, gateway)) = other {
        return Err(wrong_key(&format!(
            "different from every other key in the list: {practice}.{gateway} has it already"
        )));
    }
    let state = source.word("gateway.key.state", Some(raw.state.clone()), KeyState::Revoked, &STATES)?;
    if state == KeyState::Signing && gateway.signing().is_some() {
        let (practice, gateway) = name;
        let allowed = format!("\"verifying\" or \"revoked\": {practice}.{gateway} has another signing key");
        return Err(source.wrong("gateway.key.state", &raw.state, allowed));
    }
    let added = match &raw.added {
        None => None,
        Some(given) => {
            let added = from_rfc3339(given.get_ref());
            let allowed = "a time like \"2026-11-27T10:00:00Z\"";
            Some(added.ok_or_else(|| source.wrong("gateway.key.added", given, allowed))?)
        }
    };
    Ok(ListedKey { key, state, added })
}

#[derive(Serialize)]
struct WrittenList<'a> {
    serial: u64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    gateway: Vec<WrittenGateway<'a>>,
}

#[derive(Serialize)]
struct WrittenGateway<'a> {
    name: String,
    display_name: &'a str,
    district: &'a str,
    #[serde(skip_serializing_if = "<[Lane]>::is_empty")]
    lanes: &'a [Lane],
    #[serde(skip_serializing_if = "Option::is_none")]
    quota_bytes_per_day: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    window: Option<u32>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    key: Vec<WrittenKey>,
}

#[derive(Serialize)]
struct WrittenKey {
    public_key: PublicKey,
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    added: Option<String>,
}

fn text(list: &Gateways) -> Result<String, toml::ser::Error> {
    let gateway = list.gateways.iter().map(|(name, gateway)| written(name, gateway)).collect();
    let list = toml::to_string(&WrittenList { serial: list.serial, gateway })?;
    Ok(format!("{HEAD}\n{list}"))
}

fn written<'a>((practice, name): &(Practice, Gateway), gateway: &'a ListedGateway) -> WrittenGateway<'a> {
    let key = |listed: &ListedKey| WrittenKey {
        public_key: listed.key,
        state: listed.state.as_str(),
        added: listed.added.map(rfc3339),
    };
    WrittenGateway {
        name: format!("{practice}.{name}"),
        display_name: &gateway.display_name,
        district: &gateway.district,
        lanes: &gateway.lanes,
        quota_bytes_per_day: gateway.quota_bytes_per_day,
        window: gateway.window,
        key: gateway.keys.iter().map(key).collect(),
    }
}

#[cfg(test)]
#[path = "file_tests.rs"]
mod tests;
