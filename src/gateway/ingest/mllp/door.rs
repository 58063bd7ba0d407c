//! The MLLP listener: takes connections, and never gives up taking them (design section 8).
//!
//! While the outbox takes nothing, connections are closed as soon as they come: silence and a close is the one "later"
//! that every sender understands. [`super::connection`] holds the conversation.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use pgw_core::transaction::{Gateway, Lane, Practice, unix_millis_now};
use pgw_link::clock::TrustedClock;
use pgw_link::server_tls as tls;
use pgw_link::server_tls::{Certificates, FILES_INTERVAL, HANDSHAKE_TIME, TlsError};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tokio_rustls::TlsAcceptor;

use crate::ingest::mllp::ack::ControlIds;
use crate::ingest::mllp::allowance::Kept;
use crate::ingest::mllp::connection::Connection;
use crate::ingest::mllp::route::Route;
use crate::ingest::mllp::stream::Stream;
use crate::ingest::{Acceptor, Budget, Counters, count};

/// Connections that may wait for `accept`.
const BACKLOG: u32 = 1024;
/// Pause after a failed `accept`.
pub(in crate::ingest) const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// At most one warning of a kind in this time.
const WARNING_INTERVAL: Duration = Duration::from_secs(30);
/// How long connections have to end after a stop: what is being stored is still answered.
pub(in crate::ingest) const STOP_DEADLINE: Duration = Duration::from_secs(5);

/// What a sender is told when nothing can be stored now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnUnavailable {
    /// The connection is closed without an acknowledgment, and none is taken while it lasts.
    #[default]
    Close,
    /// A negative acknowledgment, for senders that are known to repeat after it.
    Reject,
}

/// What one MLLP door is told by the configuration.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Address and port to listen on.
    pub listen: SocketAddr,
    /// Whose gateway this is, for the `source` of transactions.
    pub practice: Practice,
    /// The gateway's id, likewise.
    pub gateway: Gateway,
    /// The lane that this door's messages go to, unless a route says otherwise.
    pub lane: Lane,
    /// Lanes of some kinds of messages; the first that fits decides.
    pub routes: Vec<Route>,
    /// TLS, where there is any; with a CA for clients every sender must show a certificate.
    pub tls: Option<tls::Files>,
    /// Largest message (20 MB).
    pub frame_limit_bytes: usize,
    /// Longest time from the start of a frame to its end (30 s).
    pub in_frame_timeout: Duration,
    /// Most connections at once (1,000).
    pub max_connections: usize,
    /// What to do when nothing can be stored (close).
    pub on_unavailable: OnUnavailable,
    /// How long nobody is let in after the outbox refused (1 s); the next message after that asks it again.
    pub unavailable_pause: Duration,
    /// Peers that may connect; empty: everybody who can reach the address.
    pub allowed_addresses: Vec<AddressRange>,
    /// `MSH-3|MSH-4` of the senders that may send, as they write it; empty: all.
    pub allowed_senders: Vec<String>,
}

/// An address and how many of its leading bits count: `10.1.0.0/16`, `192.168.7.4`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AddressRange {
    address: IpAddr,
    bits: u8,
}

/// Text that is no [`AddressRange`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("an address range is an IP address, with a prefix length if more than one is meant: \"10.1.0.0/16\"")]
pub struct NotAnAddressRange;

impl std::str::FromStr for AddressRange {
    type Err = NotAnAddressRange;

    fn from_str(text: &str) -> Result<Self, NotAnAddressRange> {
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(bits.parse::<u8>().map_err(|_| NotAnAddressRange)?)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| NotAnAddressRange)?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        match bits.unwrap_or(most) {
            bits if bits <= most => Ok(Self { address, bits }),
            _ => Err(NotAnAddressRange),
        }
    }
}

impl AddressRange {
    /// Whether `address` is in it; an IPv4 address that came through an IPv6 socket counts as IPv4.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address.to_canonical()) {
            (IpAddr::V4(range), IpAddr::V4(given)) => {
                let differing = u32::from(range) ^ u32::from(given);
                self.bits == 0 || differing >> (32 - u32::from(self.bits)) == 0
            }
            (IpAddr::V6(range), IpAddr::V6(given)) => {
                let differing = u128::from(range) ^ u128::from(given);
                self.bits == 0 || differing >> (128 - u32::from(self.bits)) == 0
            }
            _ => false,
        }
    }
}

/// The door cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The address cannot be listened on.
    #[error("cannot listen for MLLP on {address}")]
    Address {
        /// Which.
        address: SocketAddr,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// Its certificates are not usable.
    #[error("the MLLP door on {address} cannot be opened")]
    Certificates {
        /// Which.
        address: SocketAddr,
        /// What is wrong.
        #[source]
        source: TlsError,
    },
}

/// A door that listens; [`Door::serve`] opens it.
#[derive(Debug)]
pub struct Door {
    listener: TcpListener,
    address: SocketAddr,
    settings: Settings,
    certificates: Option<Arc<Certificates>>,
}

/// What all connections of a door share.
pub(super) struct Shared<A> {
    pub(super) settings: Settings,
    pub(super) acceptor: A,
    pub(super) counters: Arc<Counters>,
    pub(super) budget: Budget,
    pub(super) control_ids: ControlIds,
    pub(super) started: Instant,
    /// Refused messages go to quarantine one by one: a flood of them must not take the blocking threads.
    pub(super) quarantine_slot: Semaphore,
    /// Shares of the quarantine.
    kept: Mutex<Kept>,
    certificates: Option<Arc<Certificates>>,
    /// Milliseconds since `started` until which nothing is taken.
    closed_until: AtomicU64,
}

impl<A> Shared<A> {
    /// Milliseconds since the door opened.
    pub(super) fn now(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// The outbox takes nothing now. With [`OnUnavailable::Close`] nobody is let in for a while.
    pub(super) fn shut(&self) {
        if self.settings.on_unavailable == OnUnavailable::Close {
            let pause = u64::try_from(self.settings.unavailable_pause.as_millis()).unwrap_or(u64::MAX);
            let until = self.now().saturating_add(pause).max(1);
            if self.closed_until.swap(until, Ordering::Relaxed) == 0 {
                tracing::warn!(lane = %self.settings.lane, "Closed the MLLP door while nothing can be stored");
            }
        }
    }

    /// A message was stored.
    pub(super) fn stored(&self) {
        if self.closed_until.load(Ordering::Relaxed) != 0 && self.closed_until.swap(0, Ordering::Relaxed) != 0
        {
            tracing::info!(lane = %self.settings.lane, "Opened the MLLP door again");
        }
    }

    /// Whether a refused message of this address goes to quarantine.
    pub(super) fn may_keep(&self, peer: IpAddr, bytes: u64) -> bool {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).take(peer, bytes, self.now())
    }

    /// Looks at the certificates beside the work: the disk may be slow.
    fn renew(&self, always: bool) {
        if let Some(certificates) = self.certificates.clone() {
            drop(tokio::task::spawn_blocking(move || certificates.renew(always)));
        }
    }

    fn is_shut(&self) -> bool {
        let until = self.closed_until.load(Ordering::Relaxed);
        until != 0 && self.now() < until
    }
}

impl Door {
    /// Reads the certificates, if there are any, and listens; nobody is answered before [`Door::serve`].
    ///
    /// # Errors
    /// [`ListenError`].
    pub async fn listen(settings: Settings, clock: Arc<TrustedClock>) -> Result<Self, ListenError> {
        let address = settings.listen;
        let load = |files| Certificates::load(files, clock).map(Arc::new);
        let certificates = settings.tls.clone().map(load).transpose();
        let certificates = certificates.map_err(|source| ListenError::Certificates { address, source })?;
        let failed = |source| ListenError::Address { address, source };
        let listener = bind(address).map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        Ok(Self { listener, address, settings, certificates })
    }

    /// The address, with the port that was given for port 0.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Takes connections until `stop` becomes true (or its sender is gone), then lets those that are open answer
    /// what they are storing, and returns. When `reload` changes the certificates are read again.
    pub async fn serve<A: Acceptor>(
        self,
        acceptor: A,
        counters: Arc<Counters>,
        budget: Budget,
        mut reload: watch::Receiver<u64>,
        mut stop: watch::Receiver<bool>,
    ) {
        let shared = Arc::new(Shared {
            settings: self.settings,
            acceptor,
            counters,
            budget,
            control_ids: ControlIds::new(unix_millis_now(), self.address.port()),
            started: Instant::now(),
            quarantine_slot: Semaphore::new(1),
            kept: Mutex::new(Kept::new(0)),
            certificates: self.certificates,
            closed_until: AtomicU64::new(0),
        });
        let has_certificates = shared.certificates.is_some();
        let mut look = interval(FILES_INTERVAL);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut reload_is_there = has_certificates;
        let mut warnings = Warnings::default();
        let mut connections = JoinSet::new();
        loop {
            // All of these lose nothing when they are cancelled.
            let accepted = tokio::select! {
                _ = stop.wait_for(|stop| *stop) => break,
                Some(ended) = connections.join_next(), if !connections.is_empty() => {
                    shared.counters.connections.fetch_sub(1, Ordering::Relaxed);
                    if ended.is_err() {
                        tracing::error!("An MLLP connection ended by a fault of this program");
                    }
                    continue;
                }
                _ = look.tick(), if has_certificates => {
                    shared.renew(false);
                    continue;
                }
                asked = reload.changed(), if reload_is_there => {
                    reload_is_there = asked.is_ok();
                    if reload_is_there {
                        shared.renew(true);
                    }
                    continue;
                }
                accepted = self.listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, peer)) => {
                    if let Some(reason) = turned_away(&shared, peer, connections.len()) {
                        count(&shared.counters.connections_refused);
                        // The address is not logged: a sender's host may name a person.
                        warnings.seldom(|| tracing::warn!(reason, "Turned an MLLP connection away"));
                        drop(stream);
                        continue;
                    }
                    prepare(&stream);
                    count(&shared.counters.connections);
                    count(&shared.counters.connections_total);
                    connections.spawn(hold(stream, peer.ip(), Arc::clone(&shared), stop.clone()));
                }
                Err(error) => {
                    warnings.seldom(|| tracing::warn!(%error, "Could not take an MLLP connection"));
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        drop(self.listener);
        let all_ended = async {
            while connections.join_next().await.is_some() {
                shared.counters.connections.fetch_sub(1, Ordering::Relaxed);
            }
        };
        if tokio::time::timeout(STOP_DEADLINE, all_ended).await.is_err() {
            tracing::warn!(connections = connections.len(), "Cut MLLP connections that did not end in time");
            shared.counters.connections.fetch_sub(connections.len() as u64, Ordering::Relaxed);
        }
    }
}

/// Shakes hands where there is TLS, and holds the conversation.
async fn hold<A: Acceptor>(
    stream: TcpStream,
    peer: IpAddr,
    shared: Arc<Shared<A>>,
    mut stop: watch::Receiver<bool>,
) {
    let Some(certificates) = shared.certificates.clone() else {
        return Connection::new(Stream::Plain(stream), peer, shared, stop).run().await;
    };
    let handshake = timeout(HANDSHAKE_TIME, TlsAcceptor::from(certificates.current()).accept(stream));
    let shaken = tokio::select! {
        _ = stop.wait_for(|stop| *stop) => return,
        shaken = handshake => shaken,
    };
    match shaken {
        Ok(Ok(stream)) => Connection::new(Stream::Tls(Box::new(stream)), peer, shared, stop).run().await,
        Ok(Err(error)) => {
            count(&shared.counters.connections_refused);
            tracing::debug!(%error, "A TLS handshake at the MLLP door failed");
        }
        Err(_) => count(&shared.counters.timeouts),
    }
}

/// Also on an address that the box does not have yet: after a power cut it may be up before its network is.
pub(in crate::ingest) fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    let (socket, freed) = if address.is_ipv4() {
        let socket = TcpSocket::new_v4()?;
        let freed = rustix::net::sockopt::set_ip_freebind(&socket, true);
        (socket, freed)
    } else {
        let socket = TcpSocket::new_v6()?;
        let freed = rustix::net::sockopt::set_ipv6_freebind(&socket, true);
        (socket, freed)
    };
    if let Err(error) = freed {
        tracing::debug!(%error, "Cannot listen on addresses that are not there yet");
    }
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

fn turned_away<A>(shared: &Shared<A>, peer: SocketAddr, open: usize) -> Option<&'static str> {
    let allowed = &shared.settings.allowed_addresses;
    if !allowed.is_empty() && !allowed.iter().any(|range| range.contains(peer.ip())) {
        Some("address not allowed")
    } else if open >= shared.settings.max_connections {
        Some("too many connections")
    } else if shared.is_shut() {
        Some("nothing can be stored now")
    } else {
        None
    }
}

/// One acknowledgment is one segment, at once; a peer that is gone is found out in minutes, not never.
pub(in crate::ingest) fn prepare(stream: &TcpStream) {
    use rustix::net::sockopt;
    let prepared = stream.set_nodelay(true).and_then(|()| {
        sockopt::set_socket_keepalive(stream, true)?;
        sockopt::set_tcp_keepidle(stream, Duration::from_secs(60))?;
        sockopt::set_tcp_keepintvl(stream, Duration::from_secs(20))?;
        sockopt::set_tcp_keepcnt(stream, 3)?;
        Ok(())
    });
    if let Err(error) = prepared {
        tracing::debug!(%error, "Could not set the options of a connection");
    }
}

/// Warnings at a limited rate.
#[derive(Default)]
pub(in crate::ingest) struct Warnings {
    last: Option<Instant>,
}

impl Warnings {
    pub(in crate::ingest) fn seldom(&mut self, warn: impl FnOnce()) {
        if self.last.is_none_or(|last| last.elapsed() >= WARNING_INTERVAL) {
            self.last = Some(Instant::now());
            warn();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_address_that_is_not_there_yet_is_no_obstacle() {
        // Of the range for documentation: nobody has it.
        for address in ["192.0.2.1:0", "[2001:db8::1]:0"] {
            let bound = bind(address.parse().unwrap());
            assert!(bound.is_ok(), "{address}: {bound:?}");
        }
        let taken = bind("127.0.0.1:0".parse().unwrap()).unwrap();
        assert!(bind(taken.local_addr().unwrap()).is_err(), "one door an address");
    }

    #[test]
    fn address_ranges() {
        let range = |text: &str| text.parse::<AddressRange>();
        let inside = |text: &str, address: &str| range(text).unwrap().contains(address.parse().unwrap());
        assert!(inside("10.1.0.0/16", "10.1.255.3"));
        assert!(!inside("10.1.0.0/16", "10.2.0.0"));
        assert!(inside("192.168.7.4", "192.168.7.4"));
        assert!(!inside("192.168.7.4", "192.168.7.5"));
        assert!(inside("0.0.0.0/0", "1.2.3.4"));
        assert!(!inside("0.0.0.0/0", "fd00::1"));
        assert!(inside("fd00::/8", "fd12::1"));
        assert!(inside("10.0.0.0/8", "::ffff:10.9.8.7"));
        for bad in ["", "10.1.0.0/33", "10.1/16", "10.1.0.0/-1", "host"] {
            assert_eq!(range(bad), Err(NotAnAddressRange), "{bad}");
        }
    }
}
