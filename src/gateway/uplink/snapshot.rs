//! What the uplink and health exchange: the state of the link, and what is to be published.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use pgw_core::transaction::{Lane, UnixMillis};
use pgw_core::wire::presence::Event;
use pgw_link::phase::Phase;
use tokio::sync::{mpsc, watch};

/// The link as the uplink sees it. The sender replaces it whole; neither side waits.
#[derive(Debug, Clone, PartialEq)]
pub struct LinkSnapshot {
    /// Live, and data has come back on this connection within its deadline: not just an open socket.
    pub up: bool,
    /// The current phase, or the phase in which the last attempt failed.
    pub phase: Phase,
    /// Why the last attempt failed, including the chain of causes, without secrets; empty when up.
    pub failure: String,
    /// `host:port` in use or last tried; empty before the first attempt.
    pub upstream: String,
    /// Persisted counter, one more at each connect.
    pub session: u64,
    /// Since when the link is down; `None` when up.
    pub down_since: Option<Instant>,
    /// When the last verified receipt came, whatever its connection.
    pub last_receipt: Option<Instant>,
    /// Round trip of the last probe through the whole pipeline, and when it came back.
    pub probe: Option<(Duration, Instant)>,
    /// Published and not confirmed yet, all lanes.
    pub in_flight: u64,
    /// Accepted but not sendable now, all lanes.
    pub held: u64,
    /// A hub is ahead of this gateway, or a chain value differs: one sentence; empty if all agree.
    pub diverged: String,
    /// Why the record is held that was held last.
    pub held_because: String,
    /// The hub does not accept what this gateway says: one sentence; empty if it does.
    pub refused: String,
    /// Lanes of which the hub takes nothing now, each with one sentence.
    pub later: BTreeMap<Lane, String>,
    /// A hub answers from a store that nobody has accepted: one sentence; empty if not.
    pub strange_store: String,
    /// Publishes sent since start, repetitions included.
    pub forwarded_total: u64,
    /// Confirmed per second, smoothed over some seconds; 0 when nothing is being confirmed.
    pub forward_rate_per_second: f64,
    /// End of the client certificate in use, if it could be read.
    pub certificate_expires: Option<UnixMillis>,
}

impl LinkSnapshot {
    /// Before the first attempt.
    #[must_use]
    pub fn starting(now: Instant) -> Self {
        Self {
            up: false,
            phase: Phase::Dns,
            failure: String::new(),
            upstream: String::new(),
            session: 0,
            down_since: Some(now),
            last_receipt: None,
            probe: None,
            in_flight: 0,
            held: 0,
            diverged: String::new(),
            held_because: String::new(),
            refused: String::new(),
            later: BTreeMap::new(),
            strange_store: String::new(),
            forwarded_total: 0,
            forward_rate_per_second: 0.0,
            certificate_expires: None,
        }
    }
}

/// What health wants published; the uplink publishes it.
pub struct Reports {
    /// The newest `health` payload (JSON): publish it at each connect and each change, retained.
    /// Empty before the first.
    pub health: watch::Receiver<Vec<u8>>,
    /// Events in order, bounded: while the link is down for long, further ones are in the log only.
    pub events: mpsc::Receiver<Event>,
}
