//! Configuration: turns a file into settings with nothing optional left, or into an error that names file, line and
//! key.
//!
//! [`GatewayConfig`] is what everything else reads. `config/gateway.toml` lists every key with its default and
//! meaning.

mod doors;
mod events;
mod folder;
mod gateway;
mod raw;
mod uplink;

pub use gateway::GatewayConfig;
