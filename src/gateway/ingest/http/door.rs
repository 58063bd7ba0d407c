//! The HTTP listener: TLS or not, and the conversation with each client (design section 8).
//!
//! Limits on everything: connections, time for the handshake, for the headers, for a body; size of headers and bodies.

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
use pgw_core::text::chain;
use pgw_host::accept::{Accept, told_to};
use pgw_link::clock::TrustedClock;
use pgw_link::server_tls::{FILES_INTERVAL, HANDSHAKE_TIME};
use pgw_outbox::{Outbox, Stored};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_rustls::TlsAcceptor;

use crate::ingest::http::access::{Access, AccessError, common_name};
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
/// A peer that takes nothing of its answer for this long is gone.
const UNSENT_MILLIS: u32 = 30_000;
/// Newest records of each lane whose keys are known again after a restart.
const NEWEST: u64 = 2_048;

/// The door cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum HttpDoorError {
    /// The address cannot be listened on.
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
    access: Access,
    clock: Arc<TrustedClock>,
}

impl HttpDoor {
    /// Reads the files and listens; nobody is answered before [`HttpDoor::serve`].
    ///
    /// # Errors
    /// [`HttpDoorError`].
    pub async fn listen(config: HttpDoorConfig, clock: Arc<TrustedClock>) -> Result<Self, HttpDoorError> {
        let address = config.listen;
        let access = Access::load(&config.files, &clock)
            .map_err(|source| HttpDoorError::Access { address, source })?;
        let failed = |source| HttpDoorError::Address { address, source };
        let listener = bind(address).map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        Ok(Self { listener, address, config, access, clock })
    }

    /// The address, with the port that was given for port 0.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Accepts connections until `stop` becomes true (or its sender is gone), then lets those that are open answer what
    /// they are storing, and returns. When `reload` changes the certificates and tokens are read again.
    pub async fn serve(
        self,
        outbox: Outbox,
        status: StatusSource,
        counters: Arc<Counters>,
        budget: Budget,
        reload: watch::Receiver<u64>,
        stop: watch::Receiver<bool>,
    ) {
        let Self { listener, address, config, access, clock } = self;
        let port = address.port();
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
            () = renew(&context, &clock, reload) => {}
        }
    }
}

/// Reads certificates and tokens again when they change and when `reload` says so; what is not usable replaces nothing.
/// Never returns.
async fn renew(context: &Arc<HttpContext>, clock: &Arc<TrustedClock>, mut reload: watch::Receiver<u64>) {
    let mut look = interval(FILES_INTERVAL);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut reload_is_there = true;
    loop {
        let always = tokio::select! {
            _ = look.tick() => false,
            asked = reload.changed(), if reload_is_there => {
                reload_is_there = asked.is_ok();
                reload_is_there
            }
        };
        let (files, old, clock) = (context.config.files.clone(), context.access(), Arc::clone(clock));
        let read = tokio::task::spawn_blocking(move || {
            (always || old.is_stale(&files)).then(|| Access::load(&files, &clock))
        });
        match read.await {
            Ok(Some(Ok(access))) => {
                context.replace_access(access);
                tracing::info!("Reloaded the certificates and tokens of the HTTP door");
            }
            Ok(Some(Err(error))) => {
                let error = chain(&error);
                tracing::error!(error, "The HTTP door keeps its old certificates and tokens");
            }
            Ok(None) | Err(_) => {}
        }
    }
}

/// Knows the keys of the newest records again after a restart. Blocking, and beside the work: until it is done a
/// key of another content is taken and flagged, as an old one is.
fn remember(context: &HttpContext) {
    for lane in listing::lanes(&context.outbox) {
        let tail = listing::tail(&context.outbox, &lane);
        let first = context.outbox.first_retained(&lane).unwrap_or(1);
        let first = first.max(tail.saturating_sub(NEWEST) + 1);
        // While the store cannot be read nothing is known of its keys: they are taken and flagged.
        for batch in listing::batches(&context.outbox, &lane, first, tail).map_while(Result::ok) {
            for Stored { transaction, .. } in batch.records {
                if !transaction.key.is_empty() && compose::is_ours(&transaction.source) {
                    let body = transaction.body.as_bytes();
                    let tag = KeyFingerprint::new(lane.as_str(), &transaction.source, &transaction.key, body);
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
            count(&context.counters.timeouts);
        } else if error.is_incomplete_message() {
            count(&context.counters.unfinished);
        }
        tracing::debug!(%error, "An HTTP connection ended early");
    }
}
