//! `[events]` of `gateway.toml`, checked.

use pgw_host::config::ConfigError;
use pgw_host::config::Source;
use pgw_outbox::{PREFIX_BYTES, SUFFIX_BYTES, TypeAffixes, TypePrefix, TypeSuffix};
use toml::Spanned;

use crate::config::raw::RawEvents;

/// What a word is, for an error.
const WORDS: &str =
    "words of lower-case letters, digits and hyphens, none of which begins or ends with a hyphen";

/// What stands around the types that doors name.
pub(super) fn types(source: &Source, raw: &RawEvents) -> Result<TypeAffixes, ConfigError> {
    let prefix = affix(source, "events.type_prefix", &raw.type_prefix, TypePrefix::new, || {
        format!(
            "at most {PREFIX_BYTES} characters: {WORDS}, each with a dot behind it, for example \"uk.nhs.example.\"; or empty"
        )
    })?;
    let suffix = affix(source, "events.type_suffix", &raw.type_suffix, TypeSuffix::new, || {
        format!(
            "at most {SUFFIX_BYTES} characters: {WORDS}, each with a dot before it, for example \".v1\"; or empty"
        )
    })?;
    Ok(TypeAffixes { prefix, suffix })
}

fn affix<T: Default>(
    source: &Source,
    key: &str,
    given: &Option<Spanned<String>>,
    read: fn(&str) -> Option<T>,
    allowed: impl FnOnce() -> String,
) -> Result<T, ConfigError> {
    let Some(text) = given else { return Ok(T::default()) };
    read(text.get_ref()).ok_or_else(|| source.wrong(key, text, allowed()))
}
