//! What the connections of one HTTP door share.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pgw_core::transaction::{Gateway, Lane, Practice, unix_millis_now};
use pgw_outbox::Outbox;
use tokio::sync::Semaphore;

use crate::ingest::http::access::{Access, AccessFiles, ReloadingAccess};
use crate::ingest::http::keys;
use crate::ingest::http::keys::RecentKeys;
use crate::ingest::listen::{AddressRange, is_allowed};
use crate::ingest::mllp::ack::ControlIds;
use crate::ingest::{Budget, Counters, StatusSource, count};

/// One HTTP door's settings.
#[derive(Debug, Clone)]
pub struct HttpDoorConfig {
    /// Address and port to listen on.
    pub listen: SocketAddr,
    /// Whose gateway this is, for the `source` of transactions.
    pub practice: Practice,
    /// The gateway's id, likewise.
    pub gateway: Gateway,
    /// The lane of transactions that name none.
    pub lane: Lane,
    /// All lanes; a request may name any of them.
    pub lanes: Vec<Lane>,
    /// Largest body (20 MB).
    pub body_limit_bytes: usize,
    /// Longest time for a request's headers, and for an idle connection (10 s).
    pub header_timeout: Duration,
    /// Longest time for a body (30 s).
    pub body_timeout: Duration,
    /// Most connections at once (256).
    pub max_connections: usize,
    /// The rules of BaRS for FHIR messages: ids are required, and a repetition gets an error (true).
    pub bars: bool,
    /// Peers that may connect; empty: everyone who can reach the address.
    pub allowed_addresses: Vec<AddressRange>,
    /// Who may send.
    pub files: AccessFiles,
}

/// What is known of a connection's peer.
#[derive(Debug, Clone)]
pub(super) struct Peer {
    pub(super) address: IpAddr,
    /// Common name of its verified certificate.
    pub(super) certificate: Option<Arc<str>>,
}

/// What all connections of a door share.
pub(super) struct HttpContext {
    pub(super) config: HttpDoorConfig,
    pub(super) outbox: Outbox,
    pub(super) status: StatusSource,
    pub(super) counters: Arc<Counters>,
    pub(super) budget: Budget,
    /// Refused bodies go to quarantine one by one: a flood of them must not use up the blocking threads.
    pub(super) quarantine_slot: Semaphore,
    keys: Mutex<RecentKeys>,
    control_ids: ControlIds,
    access: Arc<ReloadingAccess>,
}

impl HttpContext {
    pub(super) fn new(
        config: HttpDoorConfig,
        port: u16,
        access: Arc<ReloadingAccess>,
        outbox: Outbox,
        status: StatusSource,
        counters: Arc<Counters>,
        budget: Budget,
    ) -> Self {
        Self {
            config,
            outbox,
            status,
            counters,
            budget,
            quarantine_slot: Semaphore::new(1),
            keys: Mutex::new(RecentKeys::new(keys::LIMIT)),
            control_ids: ControlIds::new(unix_millis_now(), port),
            access,
        }
    }

    /// Whether a peer may connect while `open` connections exist; otherwise the reason, which is counted.
    pub(super) fn admit(&self, peer: SocketAddr, open: usize) -> Result<(), &'static str> {
        let reason = if !is_allowed(&self.config.allowed_addresses, peer.ip()) {
            "address not allowed"
        } else if open >= self.config.max_connections {
            "too many connections"
        } else {
            return Ok(());
        };
        count(&self.counters.connections_refused);
        Err(reason)
    }

    /// The keys that senders have used recently.
    pub(super) fn keys(&self) -> MutexGuard<'_, RecentKeys> {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Who may send, according to the last reading of the files.
    pub(super) fn access(&self) -> Arc<Access> {
        self.access.current()
    }

    /// A number for one of our acknowledgments.
    pub(super) fn next_id(&self) -> String {
        self.control_ids.next()
    }
}
