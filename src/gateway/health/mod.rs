//! Health: looks on and tells the truth (design section 9).
//!
//! - [`observation`]: all that health reads, at one moment, and the words for its findings
//! - [`state`]: what state the gateway is in, `changes`: what has changed; sans-IO
//! - [`watcher`]: the task that looks on
//! - [`clock`]: whether the wall clock can be believed
//!
//! The uplink publishes a [`crate::uplink::LinkSnapshot`] and takes [`crate::uplink::Reports`], which it publishes in turn.
//!
//! Invariant: accepted = confirmed + waiting + damaged in every payload; where it is not so, the payload says so.

mod changes;
pub mod clock;
pub mod observation;
mod payload;
pub mod state;
pub mod watcher;

pub use payload::MAX_BYTES;
