//! `[[folder]]` of `gateway.toml`, checked.

use std::path::Path;

use pgw_host::config::ConfigError;
use pgw_host::config::Source;
use pgw_outbox as outbox;
use toml::Spanned;

use crate::config::doors::{lane, limit};
use crate::config::raw::{RawExtension, RawFolder};
use crate::ingest::folder::config::FolderDoorConfig;
use crate::ingest::folder::rules::{Nature, Take};
use crate::ingest::media;

/// One folder; `others` are those before it.
pub(super) fn folder(
    source: &Source,
    raw: RawFolder,
    outbox: &outbox::OutboxSettings,
    data_directory: &Path,
    others: &[FolderDoorConfig],
) -> Result<FolderDoorConfig, ConfigError> {
    const PATH: &str = "the folder in which a sender leaves its files";
    let written = source.required("folder.path", raw.path, PATH)?;
    let path = source.path(written.get_ref());
    if others.iter().any(|other| other.path == path) {
        return Err(source.wrong("folder.path", &written, "different from the other folders' paths"));
    }
    if path.starts_with(data_directory) || data_directory.starts_with(&path) {
        return Err(source.wrong("folder.path", &written, "outside data_directory, and not around it"));
    }
    let name = raw.name.unwrap_or_else(|| Spanned::new(0..0, String::from("folder")));
    if !is_name(name.get_ref()) {
        let allowed = "1 to 32 lower-case letters, digits and hyphens, for example \"pathology\"";
        return Err(source.wrong("folder.name", &name, allowed));
    }
    if others.iter().any(|other| other.name == *name.get_ref()) {
        return Err(source.wrong("folder.name", &name, "different from the other folders' names"));
    }
    let take = source.word(
        "folder.take",
        raw.take,
        Take::Rename,
        &[("rename", Take::Rename), ("ctl", Take::Ctl)],
    )?;
    let settle = if take == Take::Ctl { 0.0 } else { 2.0 };
    let accepted = subfolder(source, "folder.accepted", raw.accepted, "accepted")?;
    if let Some(rejected) = raw.rejected.as_ref().filter(|rejected| *rejected.get_ref() == accepted) {
        return Err(source.wrong("folder.rejected", rejected, "another name than that of folder.accepted"));
    }
    let event_type = event_type(source, "folder.type", raw.event_type)?;
    let content_type = content_type(source, "folder.content_type", raw.content_type)?;
    Ok(FolderDoorConfig {
        name: name.into_inner(),
        path,
        practice: outbox.practice.clone(),
        gateway: outbox.gateway.clone(),
        lane: lane(source, "folder.lane", raw.lane, outbox)?,
        take,
        mounted: raw.mounted.unwrap_or(false),
        file_limit_bytes: limit(source, "folder.file_limit_bytes", raw.file_limit_bytes, 1, outbox)?,
        rescan: source.seconds("folder.rescan_seconds", raw.rescan_seconds, 5.0, 0.1..=3600.0)?,
        settle: source.seconds("folder.settle_seconds", raw.settle_seconds, settle, 0.0..=3600.0)?,
        empty: source.seconds("folder.empty_seconds", raw.empty_seconds, 60.0, 0.0..=86_400.0)?,
        accepted,
        rejected: subfolder(source, "folder.rejected", raw.rejected, "rejected")?,
        keep_accepted: raw.keep_accepted.unwrap_or(false),
        usual: Nature { event_type, content_type },
        by_extension: extensions(source, raw.by_extension)?,
    })
}

fn is_name(text: &str) -> bool {
    (1..=32).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

/// A name in the folder itself: not a path, and not one that the door ignores or uses itself.
fn subfolder(
    source: &Source,
    key: &str,
    given: Option<Spanned<String>>,
    default: &str,
) -> Result<String, ConfigError> {
    let Some(given) = given else { return Ok(default.to_owned()) };
    let text = given.get_ref();
    let plain = (1..=64).contains(&text.len()) && !text.starts_with('.') && !text.contains(['/', '\0']);
    if plain {
        Ok(given.into_inner())
    } else {
        Err(source.wrong(key, &given, "the name of a subfolder, for example \"accepted\""))
    }
}

fn event_type(source: &Source, key: &str, given: Option<Spanned<String>>) -> Result<String, ConfigError> {
    let Some(given) = given else { return Ok(String::new()) };
    let text = given.get_ref();
    if text.is_empty() || media::is_event_type(text) {
        Ok(given.into_inner())
    } else {
        Err(source.wrong(
            key,
            &given,
            "letters, digits and . _ - : / only, for example \"edifact.interchange\"",
        ))
    }
}

fn content_type(source: &Source, key: &str, given: Option<Spanned<String>>) -> Result<String, ConfigError> {
    let Some(given) = given else { return Ok(String::from("application/octet-stream")) };
    let text = given.get_ref();
    if media::is_media_type(text) {
        Ok(given.into_inner())
    } else {
        Err(source.wrong(key, &given, "a media type, for example \"application/edifact\""))
    }
}

fn extensions(source: &Source, raw: Vec<RawExtension>) -> Result<Vec<(String, Nature)>, ConfigError> {
    const KEY: &str = "folder.by_extension.extension";
    let mut known: Vec<(String, Nature)> = Vec::new();
    for entry in raw {
        let given = source.required(KEY, entry.extension, "the end of a name, for example \"edi\"")?;
        let extension = given.get_ref().to_ascii_lowercase();
        if extension.is_empty() || extension.contains(['.', '/']) {
            return Err(source.wrong(
                KEY,
                &given,
                "the end of a name after its last dot, for example \"edi\"",
            ));
        }
        if known.iter().any(|(other, _)| *other == extension) {
            return Err(source.wrong(KEY, &given, "different from the others"));
        }
        let event_type = event_type(source, "folder.by_extension.type", entry.event_type)?;
        let content_type = content_type(source, "folder.by_extension.content_type", entry.content_type)?;
        known.push((extension, Nature { event_type, content_type }));
    }
    Ok(known)
}
