//! Practice Gateway: a surgery's outbox, and the hub that empties it.
//!
//! Data flows one way, ingest -> outbox -> delivery -> uplink -> broker -> hub; receipts come back.
//!
//! The words and the proof, which everything else speaks:
//! - [`transaction`]: practice, gateway, lane, epoch, transaction
//! - [`chain`]: the proof that none is missing, altered or swapped
//!
//! The gateway, in the order in which a transaction passes:
//! - [`ingest`]: the doors (MLLP, HTTP, folders, the control socket) and the one `submit()` behind them
//! - [`outbox`]: durable, encrypted, ordered; the only part that knows sled
//! - [`delivery`]: what is sent when, and what a receipt means; sans-IO
//! - [`wire`]: topics, envelopes, payloads, signatures; pure
//! - [`uplink`]: rumqttc and TLS, one connection at a time
//! - [`health`]: looks on and tells the truth
//! - [`carry`]: what waits in a file for the hub, for the week when the link does not come back
//!
//! The other end, and what holds both up:
//! - [`committer`]: what the hub stores, what it answers, and when; sans-IO
//! - [`hub`]: takes the fleet's transactions, stores them exactly once, sends receipts
//! - [`config`]: files to settings, with errors that name line and key
//! - [`daemon`]: the tasks on one JoinSet, signals, systemd
//! - [`cli`]: both command lines
#![forbid(unsafe_code)]

pub mod carry;
pub mod chain;
pub mod cli;
pub mod committer;
pub mod config;
pub mod daemon;
pub mod delivery;
pub mod health;
pub mod hub;
pub mod ingest;
pub mod outbox;
pub mod transaction;
pub mod uplink;
pub mod wire;
