//! `[events]` of `gateway.toml`, checked.

use pgw_host::config::ConfigError;
use pgw_host::config::Source;
use pgw_outbox::{PREFIX_BYTES, SUFFIX_BYTES, TypeAffixes, is_prefix, is_suffix};
use toml::Spanned;

use crate::config::raw::RawEvents;

/// What stands around the types that doors name.
pub(super) fn types(source: &Source, raw: &RawEvents) -> Result<TypeAffixes, ConfigError> {
    let by_default = TypeAffixes::default();
    let words = "words of lower-case letters, digits and hyphens";
    let prefix = affix(
        source,
        "events.type_prefix",
        &raw.type_prefix,
        by_default.prefix(),
        is_prefix,
        || {
            format!(
                "at most {PREFIX_BYTES} characters: {words}, each with a dot behind it, for example \"uk.nhs.example.\"; or empty"
            )
        },
    )?;
    let suffix = affix(
        source,
        "events.type_suffix",
        &raw.type_suffix,
        by_default.suffix(),
        is_suffix,
        || {
            format!(
                "at most {SUFFIX_BYTES} characters: {words}, each with a dot before it, for example \".v1\"; or empty"
            )
        },
    )?;
    Ok(TypeAffixes::new(&prefix, &suffix).unwrap_or(by_default))
}

fn affix(
    source: &Source,
    key: &str,
    given: &Option<Spanned<String>>,
    default: &str,
    is_allowed: fn(&str) -> bool,
    allowed: impl FnOnce() -> String,
) -> Result<String, ConfigError> {
    match given {
        None => Ok(default.to_owned()),
        Some(text) if is_allowed(text.get_ref()) => Ok(text.get_ref().clone()),
        Some(text) => Err(source.wrong(key, text, allowed())),
    }
}
