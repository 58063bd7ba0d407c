//! The uplink's part of the configuration, checked; nothing in it is optional.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use pgw_core::delivery;
use pgw_core::transaction::{Gateway, Hub, Lane, Practice};
use pgw_core::wire::presence::Info;
use pgw_core::wire::signature::PublicKey;
use pgw_host::config::Upstream;
use pgw_link::backoff::BackoffLimits;
use pgw_link::tls::TlsFiles;

/// The uplink's part of the configuration.
#[derive(Debug, Clone)]
pub struct UplinkSettings {
    /// First half of the topic root and of the certificate's common name.
    pub practice: Practice,
    /// Second half.
    pub gateway: Gateway,
    /// The lanes, urgent ones first: they are served in this order.
    pub lanes: Vec<Lane>,
    /// The brokers, in the order in which they are tried.
    pub upstreams: Vec<Upstream>,
    /// PEM files; `None`: MQTT without TLS, for a broker on the same machine in tests only.
    pub tls: Option<TlsFiles>,
    /// The directory for the session counter and the last trusted time (two small files).
    pub state_directory: PathBuf,
    /// The hubs, with their pinned keys.
    pub hubs: Vec<PinnedHub>,
    /// Which of them each lane is delivered to, by its index; the first where a lane is not named.
    pub lane_hubs: BTreeMap<Lane, usize>,
    /// MQTT keep-alive (20-30 s; at least 5).
    pub keep_alive: Duration,
    /// Deadline for each of name look-up, socket, handshake, CONNACK and SUBACK.
    pub phase_timeout: Duration,
    /// Most unacknowledged publishes on one connection, if the broker allows as many.
    pub inflight: u16,
    /// Largest packet that is accepted from the broker, bytes.
    pub max_incoming_packet_bytes: u32,
    /// Limits of every lane's machine.
    pub delivery: delivery::Limits,
    /// When to retry: full jitter from the first attempt on.
    pub reconnect: BackoffLimits,
    /// `info`, published at each connect; the uplink fills in the time and the certificate's end.
    pub info: Info,
}

/// A hub that may confirm.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PinnedHub {
    /// Its name in topics.
    pub hub: Hub,
    /// Its Ed25519 keys: one, or two while it is being replaced.
    pub keys: Vec<PublicKey>,
}
