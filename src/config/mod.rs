//! Configuration: a file becomes settings with nothing optional left, or an error that names file, line and key.
//!
//! - [`GatewayConfig`] and [`HubConfig`]: what everything else is told
//! - [`keys`]: the outbox key, the hubs' public keys, the hub's signing key
//!
//! Every key, its default and its meaning stand in `config/gateway.toml` and `config/hub.toml`.

mod doors;
mod folder;
mod gateway;
mod hub;
pub mod keys;
mod log;
mod raw;
mod source;
mod uplink;

use std::path::PathBuf;

pub use gateway::GatewayConfig;
pub use hub::HubConfig;
pub use log::{Log, LogFormat};

/// What is wrong with a configuration; exit code 78. Nothing was started and no store was touched.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file is not there or cannot be read.
    #[error("cannot read the configuration {file}")]
    Unreadable {
        /// Which.
        file: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// It is no TOML, a key is unknown, or a value is of another kind.
    #[error("{file}:{line}: {what}")]
    Syntax {
        /// Which.
        file: PathBuf,
        /// From 1.
        line: usize,
        /// What the reader said; for an unknown key, which there are.
        what: String,
    },
    /// A key that must be there is not.
    #[error("{file}: {key} is missing: it must be {allowed}")]
    Missing {
        /// Which.
        file: PathBuf,
        /// With its table: `uplink.ca_file`.
        key: String,
        /// What it could be.
        allowed: String,
    },
    /// A value that is not allowed.
    #[error("{file}:{line}: {key} = {given} is not allowed: it must be {allowed}")]
    Value {
        /// Which.
        file: PathBuf,
        /// From 1.
        line: usize,
        /// With its table: `outbox.segment_records`.
        key: String,
        /// As it is written.
        given: String,
        /// What it could be.
        allowed: String,
    },
}
