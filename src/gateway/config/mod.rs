//! Configuration: a file becomes settings with nothing optional left, or an error that names file, line and key.
//!
//! [`GatewayConfig`] is what everything else reads. Every key, its default and its meaning stand in `config/gateway.toml`.

mod doors;
mod folder;
mod gateway;
mod raw;
mod uplink;

pub use gateway::GatewayConfig;
