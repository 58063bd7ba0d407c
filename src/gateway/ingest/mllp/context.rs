//! What the connections of one MLLP door share: its configuration, its counters, and whether it is closed.
//!
//! While the outbox accepts nothing, connections are closed as soon as they arrive: silence and a close is the only
//! "later" that every sender understands.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use pgw_core::transaction::{Gateway, Lane, Practice, unix_millis_now};
use pgw_link::server_tls as tls;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::ingest::listen::{AddressRange, is_allowed};
use crate::ingest::mllp::abuse_limiter::QuarantineQuota;
use crate::ingest::mllp::ack::ControlIds;
use crate::ingest::mllp::route::Route;
use crate::ingest::{Budget, Counters, count};

/// What to do when nothing can be stored now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnUnavailable {
    /// Close the connection without an acknowledgment, and accept none meanwhile.
    #[default]
    Close,
    /// Send a negative acknowledgment, for senders that are known to repeat after it.
    Reject,
}

/// One MLLP door's settings.
#[derive(Debug, Clone)]
pub struct MllpDoorConfig {
    /// Address and port to listen on.
    pub listen: SocketAddr,
    /// Whose gateway this is, for the `source` of transactions.
    pub practice: Practice,
    /// The gateway's id, likewise.
    pub gateway: Gateway,
    /// The lane for this door's messages, unless a route names another.
    pub lane: Lane,
    /// Lanes for some kinds of messages; the first match decides.
    pub routes: Vec<Route>,
    /// TLS settings, if any; with a CA for clients every sender must show a certificate.
    pub tls: Option<tls::Files>,
    /// Largest message (20 MB).
    pub frame_limit_bytes: usize,
    /// Longest time from the start of a frame to its end (30 s).
    pub in_frame_timeout: Duration,
    /// Most connections at once (1,000).
    pub max_connections: usize,
    /// What to do when nothing can be stored (close).
    pub on_unavailable: OnUnavailable,
    /// How long nobody is admitted after the outbox refused (1 s); the next message after that tries it again.
    pub unavailable_pause: Duration,
    /// Peers that may connect; empty: everyone who can reach the address.
    pub allowed_addresses: Vec<AddressRange>,
    /// `MSH-3|MSH-4` of the permitted senders, as they write it; empty: all.
    pub allowed_senders: Vec<String>,
}

/// What all connections of a door share.
pub(super) struct MllpContext<A> {
    pub(super) config: MllpDoorConfig,
    pub(super) acceptor: A,
    pub(super) counters: Arc<Counters>,
    pub(super) budget: Budget,
    pub(super) control_ids: ControlIds,
    pub(super) started: Instant,
    /// Refused messages go to quarantine one by one: a flood of them must not use up the blocking threads.
    pub(super) quarantine_slot: Semaphore,
    quota: Mutex<QuarantineQuota>,
    /// Milliseconds since `started` until which nothing is accepted.
    closed_until: AtomicU64,
}

impl<A> MllpContext<A> {
    pub(super) fn new(
        config: MllpDoorConfig,
        port: u16,
        acceptor: A,
        counters: Arc<Counters>,
        budget: Budget,
    ) -> Self {
        Self {
            config,
            acceptor,
            counters,
            budget,
            control_ids: ControlIds::new(unix_millis_now(), port),
            started: Instant::now(),
            quarantine_slot: Semaphore::new(1),
            quota: Mutex::new(QuarantineQuota::new(0)),
            closed_until: AtomicU64::new(0),
        }
    }

    /// Milliseconds since the door opened.
    pub(super) fn now(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// The outbox accepts nothing now. With [`OnUnavailable::Close`] nobody is admitted for a while.
    pub(super) fn shut(&self) {
        if self.config.on_unavailable == OnUnavailable::Close {
            let pause = u64::try_from(self.config.unavailable_pause.as_millis()).unwrap_or(u64::MAX);
            let until = self.now().saturating_add(pause).max(1);
            if self.closed_until.swap(until, Ordering::Relaxed) == 0 {
                tracing::warn!(lane = %self.config.lane, "Closed the MLLP door while nothing can be stored");
            }
        }
    }

    /// A message was stored.
    pub(super) fn stored(&self) {
        if self.closed_until.load(Ordering::Relaxed) != 0 && self.closed_until.swap(0, Ordering::Relaxed) != 0
        {
            tracing::info!(lane = %self.config.lane, "Opened the MLLP door again");
        }
    }

    /// Whether a refused message of this address may be quarantined.
    pub(super) fn may_keep(&self, peer: IpAddr, bytes: u64) -> bool {
        self.quota.lock().unwrap_or_else(PoisonError::into_inner).take(peer, bytes, self.now())
    }

    fn is_shut(&self) -> bool {
        let until = self.closed_until.load(Ordering::Relaxed);
        until != 0 && self.now() < until
    }

    /// Whether a peer may connect while `open` connections exist; otherwise the reason, which is counted.
    pub(super) fn admit(&self, peer: SocketAddr, open: usize) -> Result<(), &'static str> {
        let reason = if !is_allowed(&self.config.allowed_addresses, peer.ip()) {
            "address not allowed"
        } else if open >= self.config.max_connections {
            "too many connections"
        } else if self.is_shut() {
            "nothing can be stored now"
        } else {
            return Ok(());
        };
        count(&self.counters.connections_refused);
        Err(reason)
    }
}
