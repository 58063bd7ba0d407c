//! The HTTP listener: takes connections, TLS or not, and never gives up taking them (design section 8).
//!
//! Limits on everything: connections, time for the handshake, for the headers, for a body; size of headers and bodies.

use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use axum::Router;
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use pgw_core::transaction::{Gateway, Lane, Practice, unix_millis_now};
use pgw_link::clock::TrustedClock;
use pgw_link::server_tls::{FILES_INTERVAL, HANDSHAKE_TIME};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_rustls::TlsAcceptor;

use crate::ingest::control::kept::{Kept, READ_BYTES, READ_RECORDS};
use crate::ingest::control::server::StatusSource;
use crate::ingest::http::access::{Access, AccessError, Files, common_name};
use crate::ingest::http::keys;
use crate::ingest::http::keys::{Keys, Tag};
use crate::ingest::http::{router, submission};
use crate::ingest::mllp::ack::ControlIds;
use crate::ingest::mllp::door::{ACCEPT_PAUSE, AddressRange, STOP_DEADLINE, Warnings, bind, prepare};
use crate::ingest::{Budget, Counters, count};

/// Most bytes of a request's line and headers.
const HEADER_BYTES: usize = 16 * 1024;
/// Most headers of a request.
const HEADERS: usize = 64;
/// A peer that takes nothing of its answer for this long is gone.
const UNSENT_MILLIS: u32 = 30_000;
/// Newest records of each lane whose keys are known again after a restart.
const NEWEST: u64 = 2_048;

/// What one HTTP door is told by the configuration.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Address and port to listen on.
    pub listen: SocketAddr,
    /// Whose gateway this is, for the `source` of transactions.
    pub practice: Practice,
    /// The gateway's id, likewise.
    pub gateway: Gateway,
    /// Where transactions go that name no lane.
    pub lane: Lane,
    /// All lanes, which a request may name.
    pub lanes: Vec<Lane>,
    /// Largest body (20 MB).
    pub body_limit_bytes: usize,
    /// Longest time for a request's headers, and without any request (10 s).
    pub header_timeout: Duration,
    /// Longest time for a body (30 s).
    pub body_timeout: Duration,
    /// Most connections at once (256).
    pub max_connections: usize,
    /// The rules of BaRS for FHIR messages: ids are required, a repetition is told so (true).
    pub bars: bool,
    /// Peers that may connect; empty: everybody who can reach the address.
    pub allowed_addresses: Vec<AddressRange>,
    /// Who may send.
    pub files: Files,
}

/// The door cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The address cannot be listened on.
    #[error("cannot listen for HTTP on {address}")]
    Address {
        /// Which.
        address: SocketAddr,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// Its certificates or tokens are not usable.
    #[error("the HTTP door on {address} cannot be opened")]
    Access {
        /// Which.
        address: SocketAddr,
        /// What is wrong.
        #[source]
        source: AccessError,
    },
}

/// A door that listens; [`Door::serve`] opens it.
#[derive(Debug)]
pub struct Door {
    listener: TcpListener,
    address: SocketAddr,
    settings: Settings,
    access: Access,
    clock: Arc<TrustedClock>,
}

/// What is known of a connection's other end.
#[derive(Debug, Clone)]
pub(super) struct Peer {
    pub(super) address: IpAddr,
    /// Common name of the certificate that it has shown and that was verified.
    pub(super) certificate: Option<Arc<str>>,
}

/// What all connections of a door share.
pub(super) struct Shared<K> {
    pub(super) settings: Settings,
    pub(super) kept: K,
    pub(super) status: StatusSource,
    pub(super) counters: Arc<Counters>,
    pub(super) budget: Budget,
    /// Refused bodies go to quarantine one by one: a flood of them must not take the blocking threads.
    pub(super) quarantine_slot: Semaphore,
    keys: Mutex<Keys>,
    control_ids: ControlIds,
    access: RwLock<Arc<Access>>,
}

impl<K> Shared<K> {
    /// The keys that senders have chosen lately.
    pub(super) fn keys(&self) -> MutexGuard<'_, Keys> {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Who may send, as the files said last.
    pub(super) fn access(&self) -> Arc<Access> {
        Arc::clone(&self.access.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// A number for an acknowledgment of ours.
    pub(super) fn next_id(&self) -> String {
        self.control_ids.next()
    }
}

impl Door {
    /// Reads the files and listens; nobody is answered before [`Door::serve`].
    ///
    /// # Errors
    /// [`ListenError`].
    pub async fn listen(settings: Settings, clock: Arc<TrustedClock>) -> Result<Self, ListenError> {
        let address = settings.listen;
        let access = Access::load(&settings.files, &clock)
            .map_err(|source| ListenError::Access { address, source })?;
        let failed = |source| ListenError::Address { address, source };
        let listener = bind(address).map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        Ok(Self { listener, address, settings, access, clock })
    }

    /// The address, with the port that was given for port 0.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Takes connections until `stop` becomes true (or its sender is gone), then lets those that are open answer what
    /// they are storing, and returns. When `reload` changes the certificates and tokens are read again.
    pub async fn serve<K: Kept>(
        self,
        kept: K,
        status: StatusSource,
        counters: Arc<Counters>,
        budget: Budget,
        mut reload: watch::Receiver<u64>,
        mut stop: watch::Receiver<bool>,
    ) {
        let shared = Arc::new(Shared {
            settings: self.settings,
            kept,
            status,
            counters,
            budget,
            quarantine_slot: Semaphore::new(1),
            keys: Mutex::new(Keys::new(keys::LIMIT)),
            control_ids: ControlIds::new(unix_millis_now(), self.address.port()),
            access: RwLock::new(Arc::new(self.access)),
        });
        let known = Arc::clone(&shared);
        drop(tokio::task::spawn_blocking(move || remember(&known)));
        let router = router::router(Arc::clone(&shared));
        let mut warnings = Warnings::default();
        let mut look = interval(FILES_INTERVAL);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut connections = JoinSet::new();
        let mut reload_is_there = true;
        loop {
            // All of these lose nothing when they are cancelled.
            let accepted = tokio::select! {
                () = told_to(&mut stop) => break,
                Some(ended) = connections.join_next(), if !connections.is_empty() => {
                    shared.counters.connections.fetch_sub(1, Ordering::Relaxed);
                    if ended.is_err() {
                        tracing::error!("An HTTP connection ended by a fault of this program");
                    }
                    continue;
                }
                _ = look.tick() => {
                    renew(&shared, &self.clock, false).await;
                    continue;
                }
                asked = reload.changed(), if reload_is_there => {
                    reload_is_there = asked.is_ok();
                    if reload_is_there {
                        renew(&shared, &self.clock, true).await;
                    }
                    continue;
                }
                accepted = self.listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, peer)) => {
                    let allowed = &shared.settings.allowed_addresses;
                    let reason =
                        if !allowed.is_empty() && !allowed.iter().any(|range| range.contains(peer.ip())) {
                            Some("address not allowed")
                        } else if connections.len() >= shared.settings.max_connections {
                            Some("too many connections")
                        } else {
                            None
                        };
                    if let Some(reason) = reason {
                        count(&shared.counters.connections_refused);
                        // The address is not logged: a sender's host may name a person.
                        warnings.seldom(|| tracing::warn!(reason, "Turned an HTTP connection away"));
                        continue;
                    }
                    prepare(&stream);
                    if let Err(error) = rustix::net::sockopt::set_tcp_user_timeout(&stream, UNSENT_MILLIS) {
                        tracing::debug!(%error, "Could not set the time limit of an HTTP connection");
                    }
                    count(&shared.counters.connections);
                    count(&shared.counters.connections_total);
                    let (shared, router) = (Arc::clone(&shared), router.clone());
                    connections.spawn(connection(stream, peer.ip(), shared, router, stop.clone()));
                }
                Err(error) => {
                    warnings.seldom(|| tracing::warn!(%error, "Could not take an HTTP connection"));
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
        if timeout(STOP_DEADLINE, all_ended).await.is_err() {
            tracing::warn!(connections = connections.len(), "Cut HTTP connections that did not end in time");
            shared.counters.connections.fetch_sub(connections.len() as u64, Ordering::Relaxed);
        }
    }
}

/// Reads certificates and tokens again; what is not usable replaces nothing.
async fn renew<K: Kept>(shared: &Arc<Shared<K>>, clock: &Arc<TrustedClock>, always: bool) {
    let (files, old, clock) = (shared.settings.files.clone(), shared.access(), Arc::clone(clock));
    let read = tokio::task::spawn_blocking(move || {
        (always || old.is_stale(&files)).then(|| Access::load(&files, &clock))
    });
    match read.await {
        Ok(Some(Ok(access))) => {
            *shared.access.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(access);
            tracing::info!("Read the certificates and tokens of the HTTP door again");
        }
        Ok(Some(Err(error))) => {
            tracing::error!(%error, "The HTTP door goes on with the certificates and tokens that it has");
        }
        Ok(None) | Err(_) => {}
    }
}

/// Knows the keys of the newest records again after a restart. Blocking, and beside the work: until it is done a
/// key of another content is taken and flagged, as an old one is.
fn remember<K: Kept>(shared: &Shared<K>) {
    for lane in shared.kept.lanes() {
        let tail = shared.kept.tail(&lane);
        let first = shared.kept.first_retained(&lane).unwrap_or(1);
        let mut next = first.max(tail.saturating_sub(NEWEST) + 1);
        while next <= tail {
            let records = shared.kept.read(&lane, next, READ_RECORDS, READ_BYTES).unwrap_or_default();
            let before = next;
            for stored in records {
                next = stored.position + 1;
                let transaction = stored.transaction;
                if !transaction.key.is_empty() && submission::is_ours(&transaction.source) {
                    let body = transaction.body.as_bytes();
                    let tag = Tag::new(lane.as_str(), &transaction.source, &transaction.key, body);
                    shared.keys().stored_before(tag);
                }
            }
            next = next.max(before + 1);
        }
    }
}

async fn connection<K: Kept>(
    stream: TcpStream,
    address: IpAddr,
    shared: Arc<Shared<K>>,
    router: Router,
    stop: watch::Receiver<bool>,
) {
    let Some(tls) = shared.access().tls() else {
        return converse(stream, Peer { address, certificate: None }, &shared, router, stop).await;
    };
    match timeout(HANDSHAKE_TIME, TlsAcceptor::from(tls).accept(stream)).await {
        Ok(Ok(stream)) => {
            let certificate = common_name(stream.get_ref().1).map(Arc::from);
            converse(stream, Peer { address, certificate }, &shared, router, stop).await;
        }
        Ok(Err(error)) => {
            count(&shared.counters.connections_refused);
            tracing::debug!(%error, "A TLS handshake at the HTTP door failed");
        }
        Err(_) => count(&shared.counters.timeouts),
    }
}

/// Returns when it is time to stop.
async fn told_to(stop: &mut watch::Receiver<bool>) {
    // An error means that the sender has gone, which is as good a reason.
    drop(stop.wait_for(|stop| *stop).await);
}

async fn converse<K: Kept, S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    stream: S,
    peer: Peer,
    shared: &Arc<Shared<K>>,
    router: Router,
    mut stop: watch::Receiver<bool>,
) {
    let routes = TowerToHyperService::new(router);
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(peer.clone());
        routes.call(request)
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(shared.settings.header_timeout)
        // Who has said all it has to say and closes its side still gets the answers.
        .half_close(true)
        .max_headers(HEADERS)
        .max_buf_size(HEADER_BYTES)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = told_to(&mut stop) => {
            // What is being stored is still answered.
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        if error.is_timeout() {
            count(&shared.counters.timeouts);
        } else if error.is_incomplete_message() {
            count(&shared.counters.unfinished);
        }
        tracing::debug!(%error, "An HTTP connection ended early");
    }
}
