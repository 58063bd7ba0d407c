//! The outbox: the durable, encrypted, ordered store of transactions.
//!
//! What is below its directory, and what becomes of a lost file: `docs/on-disk-format.md`.
//!
//! - [`types`], [`errors`]: what comes in and goes out, and why it does not
//! - [`handle`]: the handle on an open outbox
//! - [`pipeline`]: from a submission to a record behind the barrier and back: the threads and what they share
//! - [`dedup`]: the duplicate index
//! - [`guard`]: the segments' databases; the only files that know sled
//! - [`crypt`]: encryption at rest, all of it
//! - [`quarantine`]: refused input and damaged records, until a person has decided
//! - [`void`]: lost positions that a person wrote off
//! - [`state`]: the small files beside the segments
//! - [`descriptor`]: whose outbox it is, its version, its lock
//! - [`offline`]: work on a store that no daemon has open: repair, another box, a lost key
//! - [`files`], [`alternating`], [`lock`]: small files that are never torn, and locks
//! - [`fuzz_support`]: for the fuzz targets alone
//!
//! Imports go down this list of layers, never up: `handle` and `offline`, then `pipeline`, then `descriptor`, then the rest.
//!
//! Invariants, each held by a test:
//! - An answer is given after the barrier, never before; readers see only what is behind it ([`pipeline::lane_writer`]).
//! - Segment k counts for the positions from its base up to the base of the next one ([`pipeline::lane`]).
//! - After a failed barrier nothing is appended to that segment, and what was beyond its last good
//!   barrier is written again elsewhere before anything else ([`pipeline::lane_writer`]).
//! - accepted = confirmed + waiting + damaged, at any moment ([`pipeline::lane`]).
//! - Only the last record is ever trimmed, and only beyond the tail checkpoint ([`pipeline::startup`]).

mod alternating;
mod crypt;
mod dedup;
mod descriptor;
mod errors;
#[cfg(test)]
mod faults_for_tests;
mod files;
#[doc(hidden)]
pub mod fuzz_support;
mod guard;
mod handle;
mod lock;
pub mod offline;
mod pipeline;
mod quarantine;
mod state;
#[cfg(test)]
mod tests;
mod types;
mod void;

pub use crypt::key_use::KeyUse;
pub use crypt::keyring::{Keyring, OutboxKey};
pub use errors::{Consequence, OpenError, ReadError, Refusal, VoidError};
pub use handle::Outbox;
pub use quarantine::QuarantineEntry;
pub use types::{
    Accepted, LaneCounts, LaneSettings, OutboxAlarm, OutboxSettings, Released, Snapshot, Stored, Submission,
    Watermark,
};
