//! `[log]`, checked.

use serde::Deserialize;
use toml::Spanned;

use crate::config::{ConfigError, Source};

/// The table as it is written.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawLog {
    level: Option<Spanned<String>>,
    format: Option<Spanned<String>>,
}

/// Logs go to stderr, which systemd takes to the journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Log {
    /// The least important that is written.
    pub level: tracing::Level,
    /// How a line looks.
    pub format: LogFormat,
}

/// How a line of the log looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people; without the time under systemd, whose journal has it.
    Text,
    /// One JSON object a line.
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
