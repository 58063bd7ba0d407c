//! `[log]`, checked.

use serde::Deserialize;
use toml::Spanned;

use crate::config::{ConfigError, Source};

/// The table as written.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawLog {
    level: Option<Spanned<String>>,
    format: Option<Spanned<String>>,
}

/// Logs go to stderr; systemd passes them to the journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Log {
    /// The lowest level that is written.
    pub level: tracing::Level,
    /// The format of a line.
    pub format: LogFormat,
}

/// The format of a line in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people; without the time under systemd, because the journal records it.
    Text,
    /// One JSON object per line.
    Json,
}

/// Checks the table.
///
/// # Errors
/// [`ConfigError`].
pub fn log(source: &Source, raw: RawLog) -> Result<Log, ConfigError> {
    use tracing::Level;
    Ok(Log {
        level: source.word(
            "log.level",
            raw.level,
            Level::INFO,
            &[
                ("error", Level::ERROR),
                ("warn", Level::WARN),
                ("info", Level::INFO),
                ("debug", Level::DEBUG),
                ("trace", Level::TRACE),
            ],
        )?,
        format: source.word(
            "log.format",
            raw.format,
            LogFormat::Text,
            &[("text", LogFormat::Text), ("json", LogFormat::Json)],
        )?,
    })
}
