//! Health: looks on and tells the truth (design section 9).
//!
//! - [`state`]: what state the gateway is in and what has changed; sans-IO
//! - [`watcher`]: the task that looks on
//! - [`clock`]: whether the wall clock can be believed
//!
//! The uplink publishes a [`LinkSnapshot`] and takes [`Reports`], which it publishes in turn.
//!
//! Invariant: accepted = confirmed + waiting + damaged in every payload; where it is not so, the payload says so.

mod changes;
pub mod clock;
mod link;
mod payload;
pub mod state;
pub mod watcher;

pub use link::LinkSnapshot;
pub use payload::MAX_BYTES;

use pgw_core::wire::presence::Event;
use tokio::sync::{mpsc, watch};

/// What health has to say upstream: taken and published by the uplink.
pub struct Reports {
    /// The newest `health` payload (JSON, at most 1 KiB): publish it at each connect and each change, retained.
    /// Empty before the first.
    pub health: watch::Receiver<Vec<u8>>,
    /// Events in order, bounded: while the link is down for long, further ones are in the log only.
    pub events: mpsc::Receiver<Event>,
}
