//! The outbox: the durable, encrypted, ordered store of transactions.
//!
//! The files below its directory, and what the loss of one means: `docs/on-disk-format.md`.
//!
//! - [`types`], [`errors`]: the data that goes in and out, and why a call fails
//! - [`submission`], [`event_type`]: a door's input, and how its type is called; [`nhs_number`]: what stays out of its envelope
//! - [`handle`]: the handle on an open outbox
//! - [`pipeline`]: from a submission to a record behind the barrier and back: the threads and what they share
//! - [`dedup`]: the duplicate index
//! - [`guard`]: the segments' databases; the only files that know sled
//! - [`crypt`]: encryption at rest, all of it
//! - [`quarantine`]: refused input and damaged records, until an operator has decided
//! - [`void`]: lost positions that an operator has written off
//! - [`state`]: the small files beside the segments
//! - [`descriptor`]: the outbox's owner, version and lock
//! - [`offline`]: work on a store that no daemon has open: repair, another box, a lost key
//! - [`files`], [`alternating`], [`lock`]: small files that are never torn, and locks
//! - [`fuzz_support`]: for the fuzz targets alone
//!
//! Imports go down this list of layers, never up: `handle` and `offline`, then `pipeline`, then `descriptor`, then the rest.
//!
//! Invariants, each held by a test:
//! - A sender is answered after the barrier, never before; readers see only records behind it ([`pipeline::lane_writer`]).
//! - Segment k counts for the positions from its base up to the base of the next one ([`pipeline::lane`]).
//! - After a failed barrier nothing is appended to that segment, and the records beyond its last good
//!   barrier are written again to another one before anything else ([`pipeline::lane_writer`]).
//! - accepted = confirmed + waiting + damaged, at any moment ([`pipeline::lane`]).
//! - Only the last record is ever trimmed, and only beyond the tail checkpoint ([`pipeline::startup`]).

mod alternating;
mod crypt;
mod dedup;
mod descriptor;
mod errors;
mod event_type;
#[cfg(test)]
mod faults_for_tests;
mod files;
#[doc(hidden)]
pub mod fuzz_support;
mod guard;
mod handle;
mod lock;
mod nhs_number;
pub mod offline;
mod pipeline;
mod quarantine;
#[cfg(test)]
#[path = "../../tests/seeds.rs"]
mod seeds;
mod state;
mod submission;
#[cfg(test)]
mod tests;
mod types;
mod void;

pub use crypt::key_use::KeyUse;
pub use crypt::keyring::{Keyring, OutboxKey};
pub use errors::{OpenError, ReadError, ReadmitError, Refusal, VoidError};
pub use event_type::{EventType, PREFIX_BYTES, SUFFIX_BYTES, TypeAffixes, TypePrefix, TypeSuffix};
pub use handle::Outbox;
pub use handle::readmit::WrittenOff;
pub use quarantine::QuarantineEntry;
pub use submission::Submission;
pub use types::{
    Accepted, ChainedRecord, LaneCounts, LaneSettings, OutboxAlarm, OutboxSettings, Released, ReleasedRange,
    Snapshot, Stored, Watermark,
};
