//! The HTTP listener: TLS or not, and the conversation with each client (design section 8).
//!
//! Everything is limited: connections, time for the handshake, for the headers, for a body; size of headers and
//! bodies.

use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;

use axum::Router;
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use pgw_host::accept::{Accept, stop_requested};
use pgw_link::clock::TrustedClock;
use pgw_link::server_tls::{HANDSHAKE_TIME, keep_reading};
use pgw_outbox::{Outbox, Stored};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use crate::ingest::http::access::{Access, AccessError, ReloadingAccess, common_name};
use crate::ingest::http::context::{HttpContext, HttpDoorConfig, Peer};
use crate::ingest::http::keys::KeyFingerprint;
use crate::ingest::http::{compose, router};
use crate::ingest::listen::{bind, prepare};
use crate::ingest::{Budget, Counters, StatusSource, count};
use crate::listing;

/// Most bytes of a request's line and headers.
const HEADER_BYTES: usize = 16 * 1024;
/// Most headers of a request.
const HEADERS: usize = 64;
/// A peer that reads nothing of its answer for this long is gone.
const UNSENT_MILLIS: u32 = 30_000;
/// Number of newest records of each lane whose keys are loaded after a restart.
const NEWEST: u64 = 2_048;

/// The door cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum HttpDoorError {
    /// The address is not usable.
    #[error("cannot listen for HTTP on {address}")]
    Address {
        /// As configured.
        address: SocketAddr,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
    /// Its certificates or tokens are not usable.
    #[error("the HTTP door on {address} cannot be opened")]
    Access {
        /// As configured.
        address: SocketAddr,
        /// What is wrong with them.
        #[source]
        source: AccessError,
    },
}

/// A door that listens; [`HttpDoor::serve`] opens it.
#[derive(Debug)]
pub struct HttpDoor {
    listener: TcpListener,
    address: SocketAddr,
    config: HttpDoorConfig,
    access: Arc<ReloadingAccess>,
}

impl HttpDoor {
    /// Reads the files and listens; answers nobody before [`HttpDoor::serve`].
    ///
    /// # Errors
    /// [`HttpDoorError`].
    pub async fn listen(config: HttpDoorConfig, clock: Arc<TrustedClock>) -> Result<Self, HttpDoorError> {
        let address = config.listen;
        let access = Access::reloading(&config.files, &clock)
            .map_err(|source| HttpDoorError::Access { address, source })?;
        let failed = |source| HttpDoorError::Address { address, source };
        let listener = bind(address).map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        Ok(Self { listener, address, config, access: Arc::new(access) })
    }

    /// The address, with the assigned port if port 0 was configured.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Accepts connections until `stop` becomes true (or its sender is gone), then lets open ones answer what they are
    /// storing, and returns. When `reload` changes, certificates and tokens are reread.
    pub async fn serve(
        self,
        outbox: Outbox,
        status: StatusSource,
        counters: Arc<Counters>,
        budget: Budget,
        reload: watch::Receiver<u64>,
        stop: watch::Receiver<bool>,
    ) {
        let Self { listener, address, config, access } = self;
        let port = address.port();
        let renewed = Arc::clone(&access);
        let renewing = keep_reading(reload, move |always| renewed.renew(always));
        let context = Arc::new(HttpContext::new(config, port, access, outbox, status, counters, budget));
        let known = Arc::clone(&context);
        drop(tokio::task::spawn_blocking(move || remember(&known)));
        let router = router::router(Arc::clone(&context));
        let client = |stream: TcpStream, peer: SocketAddr| {
            prepare(&stream);
            if let Err(error) = rustix::net::sockopt::set_tcp_user_timeout(&stream, UNSENT_MILLIS) {
                tracing::debug!(%error, "Could not set the time limit of an HTTP connection");
            }
            let open = context.counters.connection();
            let talk = connection(stream, peer.ip(), Arc::clone(&context), router.clone(), stop.clone());
            async move {
                let _open = open;
                talk.await;
            }
        };
        let admit = |peer: &SocketAddr, open| context.admit(*peer, open);
        let accept = Accept { name: "HTTP", listener, most_clients: usize::MAX };
        tokio::select! {
            () = accept.serve(admit, client, stop.clone()) => {}
            () = renewing => {}
        }
    }
}

/// Loads the keys of the newest records after a restart. Blocking, in parallel with requests: until it is done a key
/// used before with other content is accepted and flagged, like an old one.
pub(super) fn remember(context: &HttpContext) {
    for lane in listing::lanes(&context.outbox) {
        let tail = listing::tail(&context.outbox, &lane);
        let first = context.outbox.first_retained(&lane).unwrap_or(1);
        let first = first.max(tail.saturating_sub(NEWEST) + 1);
        // While the store cannot be read its keys are unknown: they are accepted and flagged.
        for batch in listing::batches(&context.outbox, &lane, first, tail).map_while(Result::ok) {
            for Stored { transaction, .. } in batch.records {
                let sender = transaction.sender_as_given();
                if !transaction.key.is_empty() && compose::is_ours(sender) {
                    let body = transaction.body.as_bytes();
                    let tag = KeyFingerprint::new(lane.as_str(), sender, &transaction.key, body);
                    context.keys().stored_before(tag);
                }
            }
        }
    }
}

async fn connection(
    stream: TcpStream,
    address: IpAddr,
    context: Arc<HttpContext>,
    router: Router,
    stop: watch::Receiver<bool>,
) {
    let Some(tls) = context.access().tls() else {
        return converse(stream, Peer { address, certificate: None }, &context, router, stop).await;
    };
    match timeout(HANDSHAKE_TIME, TlsAcceptor::from(tls).accept(stream)).await {
        Ok(Ok(stream)) => {
            let certificate = common_name(stream.get_ref().1).map(Arc::from);
            converse(stream, Peer { address, certificate }, &context, router, stop).await;
        }
        Ok(Err(error)) => {
            count(&context.counters.connections_refused);
            tracing::debug!(%error, "A TLS handshake at the HTTP door failed");
        }
        Err(_) => count(&context.counters.timeouts),
    }
}

async fn converse<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    stream: S,
    peer: Peer,
    context: &Arc<HttpContext>,
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
        .header_read_timeout(context.config.header_timeout)
        // A client that has sent everything and closes its side still gets the answers.
        .half_close(true)
        .max_headers(HEADERS)
        .max_buf_size(HEADER_BYTES)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stop_requested(&mut stop) => {
            // What is being stored is still answered.
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        if error.is_timeout() {
            count(&context.counters.timeouts);
        } else if error.is_incomplete_message() {
            count(&context.counters.unfinished);
        }
        tracing::debug!(%error, "An HTTP connection ended early");
    }
}
