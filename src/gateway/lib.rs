//! The surgery's end: `practice-gateway`.
//!
//! In the order in which a transaction passes:
//! - [`ingest`]: the doors (MLLP, HTTP, folders) and the one `submit()` behind them
//! - [`uplink`]: one connection at a time, with the delivery machines on it
//! - [`wire_chain`]: the numbers and chain values that transactions get when they are sent
//! - [`export`]: waiting transactions in a file for the hub, if the link stays down for long; [`layout`]: where it begins after an end that a file names
//!
//! And around it:
//! - [`control`]: the control socket: a door, and the commands' requests and orders; [`listing`]: headers of the
//!   outbox
//! - [`health`]: observes everything else and reports it truthfully
//! - [`config`], [`keys`]: settings and keys from files
//! - [`daemon`]: the tasks on one JoinSet, signals, systemd
//! - [`cli`]: the command line

pub mod cli;
pub mod config;
pub mod control;
pub mod daemon;
pub mod export;
pub mod health;
pub mod ingest;
pub mod keys;
pub mod layout;
pub mod listing;
#[cfg(test)]
#[path = "../../tests/seeds.rs"]
mod seeds;
pub mod uplink;
pub mod wire_chain;
