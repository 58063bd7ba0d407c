//! The MLLP listener: TLS or not, and the conversation with each sender (design section 8).
//!
//! [`super::connection`] holds the conversation, [`super::context`] decides who is admitted.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use pgw_host::accept::{Accept, stop_requested};
use pgw_link::clock::TrustedClock;
use pgw_link::server_tls::{Certificates, HANDSHAKE_TIME, TlsError, certificates, keep_reading};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use crate::ingest::listen::{bind, prepare};
use crate::ingest::mllp::connection::Connection;
use crate::ingest::mllp::context::{MllpContext, MllpDoorConfig};
use crate::ingest::mllp::stream::Stream;
use crate::ingest::{Acceptor, Budget, Counters, count};

/// The door cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum MllpDoorError {
    /// The address is not usable.
    #[error("cannot listen for MLLP on {address}")]
    Address {
        /// As configured.
        address: SocketAddr,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
    /// Its certificates are not usable.
    #[error("the MLLP door on {address} cannot be opened")]
    Certificates {
        /// As configured.
        address: SocketAddr,
        /// What is wrong with them.
        #[source]
        source: TlsError,
    },
}

/// A door that listens; [`MllpDoor::serve`] opens it.
#[derive(Debug)]
pub struct MllpDoor {
    listener: TcpListener,
    address: SocketAddr,
    config: MllpDoorConfig,
    certificates: Option<Arc<Certificates>>,
}

impl MllpDoor {
    /// Reads the certificates, if there are any, and listens; answers nobody before [`MllpDoor::serve`].
    ///
    /// # Errors
    /// [`MllpDoorError`].
    pub async fn listen(config: MllpDoorConfig, clock: Arc<TrustedClock>) -> Result<Self, MllpDoorError> {
        let address = config.listen;
        let load = |files| certificates("certificates of the MLLP door", files, clock).map(Arc::new);
        let loaded = config.tls.clone().map(load).transpose();
        let certificates = loaded.map_err(|source| MllpDoorError::Certificates { address, source })?;
        let failed = |source| MllpDoorError::Address { address, source };
        let listener = bind(address).map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        Ok(Self { listener, address, config, certificates })
    }

    /// The address, with the assigned port if port 0 was configured.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Accepts connections until `stop` becomes true (or its sender is gone), then lets open ones answer what they are
    /// storing, and returns. When `reload` changes, the certificates are reread.
    pub async fn serve<A: Acceptor>(
        self,
        acceptor: A,
        counters: Arc<Counters>,
        budget: Budget,
        reload: watch::Receiver<u64>,
        stop: watch::Receiver<bool>,
    ) {
        let Self { listener, address, config, certificates } = self;
        let context = Arc::new(MllpContext::new(config, address.port(), acceptor, counters, budget));
        let renewing = renew(certificates.clone(), reload);
        let client = |stream: TcpStream, peer: SocketAddr| {
            prepare(&stream);
            let open = context.counters.connection();
            let talk = hold(stream, peer.ip(), certificates.clone(), Arc::clone(&context), stop.clone());
            async move {
                let _open = open;
                talk.await;
            }
        };
        let admit = |peer: &SocketAddr, open| context.admit(*peer, open);
        let accept = Accept { name: "MLLP", listener, most_clients: usize::MAX };
        tokio::select! {
            () = accept.serve(admit, client, stop.clone()) => {}
            () = renewing => {}
        }
    }
}

/// Replaces the certificates when they change and when `reload` says so. Never returns.
async fn renew(certificates: Option<Arc<Certificates>>, reload: watch::Receiver<u64>) {
    match certificates {
        Some(certificates) => keep_reading(reload, move |always| certificates.renew(always)).await,
        None => std::future::pending().await,
    }
}

/// Does the handshake if there is TLS, and holds the conversation.
async fn hold<A: Acceptor>(
    stream: TcpStream,
    peer: IpAddr,
    certificates: Option<Arc<Certificates>>,
    context: Arc<MllpContext<A>>,
    mut stop: watch::Receiver<bool>,
) {
    let Some(certificates) = certificates else {
        return Connection::new(Stream::Plain(stream), peer, context, stop).run().await;
    };
    let handshake = timeout(HANDSHAKE_TIME, TlsAcceptor::from(certificates.current()).accept(stream));
    let shaken = tokio::select! {
        () = stop_requested(&mut stop) => return,
        shaken = handshake => shaken,
    };
    match shaken {
        Ok(Ok(stream)) => Connection::new(Stream::Tls(Box::new(stream)), peer, context, stop).run().await,
        Ok(Err(error)) => {
            count(&context.counters.connections_refused);
            tracing::debug!(%error, "A TLS handshake at the MLLP door failed");
        }
        Err(_) => count(&context.counters.timeouts),
    }
}
