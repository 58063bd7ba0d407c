//! Health: observes everything else and reports it truthfully (design section 9).
//!
//! - [`observation`]: all that health reads, at one moment, and the terms for what it finds
//! - [`state`]: the gateway's state, `changes`: what has changed; sans-IO
//! - [`watcher`]: the task that observes
//! - [`clock`]: whether the wall clock can be trusted
//!
//! The uplink publishes a [`crate::uplink::LinkSnapshot`] for health, and receives [`crate::uplink::Reports`], which
//! it publishes to the hub.
//!
//! Invariant: accepted = confirmed + waiting + damaged in every payload; if not, the payload says so.

mod changes;
pub mod clock;
pub mod observation;
mod payload;
pub mod state;
pub mod watcher;

pub use payload::MAX_BYTES;
