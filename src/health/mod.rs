//! Health: looks on and tells the truth (design section 9).
//!
//! The uplink publishes a [`LinkSnapshot`] and takes [`Reports`], which it publishes in turn.

mod link;

pub use link::{LinkSnapshot, Phase};

use tokio::sync::{mpsc, watch};

use crate::wire::presence::Event;

/// What health has to say upstream: taken and published by the uplink.
pub struct Reports {
    /// The newest `health` payload (JSON, at most 1 KiB): publish it at each connect and each change, retained.
    /// Empty before the first.
    pub health: watch::Receiver<Vec<u8>>,
    /// Events in order, bounded: while the link is down the oldest are dropped by the uplink, never the outbox's work.
    pub events: mpsc::Receiver<Event>,
}
