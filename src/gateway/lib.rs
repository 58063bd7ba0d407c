//! The surgery's end: `practice-gateway`.
//!
//! In the order in which a transaction passes:
//! - [`ingest`]: the doors (MLLP, HTTP, folders) and the one `submit()` behind them
//! - [`uplink`]: one connection at a time, the machines of delivery on it
//! - [`export`]: waiting transactions in a file for the hub, for the week when the link does not come back
//!
//! And around it:
//! - [`control`]: the control socket: a door, and what the command line asks and orders; [`listing`]: headers of the outbox
//! - [`health`]: looks on and tells the truth
//! - [`config`], [`keys`]: files to settings and keys
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
pub mod listing;
pub mod uplink;
