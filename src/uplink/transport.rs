//! Name, socket and handshake of a connection, each with its own deadline, and the bridge to rumqttc.
//!
//! rumqttc opens its sockets itself, and then a hung name server, a closed port and a refused certificate all
//! look alike; and it writes and flushes every packet by itself, one TLS record and one system call each. So the
//! socket and TLS are ours, and rumqttc speaks through an abstract Unix socket that only this process may join:
//! what it writes in small pieces leaves in large ones.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, copy_bidirectional_with_sizes};
use tokio::net::{TcpStream, UnixListener, UnixStream, lookup_host};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::pki_types::ServerName;

use super::failure::Failure;
use super::settings::Upstream;
use crate::health::Phase;

/// Bytes read at once in each direction.
const CHUNK_BYTES: usize = 64 * 1024;

/// A byte stream to the broker, with TLS or without.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// Looks a name up. `known` are the addresses of the last success: they serve when the name server does not.
pub(super) async fn resolve(
    upstream: &Upstream,
    known: &mut Vec<SocketAddr>,
    limit: Duration,
) -> Result<(), Failure> {
    let sentence = match timeout(limit, lookup_host((upstream.host.as_str(), upstream.port))).await {
        Ok(Ok(found)) => {
            let found: Vec<_> = found.collect();
            if !found.is_empty() {
                *known = found;
                return Ok(());
            }
            format!("the name {:?} has no address", upstream.host)
        }
        Ok(Err(error)) => format!("the name {:?} cannot be looked up: {error}", upstream.host),
        Err(_) => Failure::timeout(Phase::Dns, limit.as_secs()).sentence,
    };
    if known.is_empty() {
        return Err(Failure::new(Phase::Dns, sentence));
    }
    tracing::debug!(reason = sentence, "Name look-up failed, the last known addresses serve");
    Ok(())
}

/// Opens a socket to the first address that answers.
pub(super) async fn open(addresses: &[SocketAddr], limit: Duration) -> Result<TcpStream, Failure> {
    let mut last = Failure::new(Phase::Tcp, "there is no address to connect to");
    for address in addresses {
        match timeout(limit, TcpStream::connect(address)).await {
            Ok(Ok(socket)) => {
                // Our writes are large already; waiting for more would only delay the last one.
                socket.set_nodelay(true).map_err(|error| Failure::tcp(&error))?;
                return Ok(socket);
            }
            Ok(Err(error)) => last = Failure::tcp(&error),
            Err(_) => last = Failure::timeout(Phase::Tcp, limit.as_secs()),
        }
    }
    Err(last)
}

/// The TLS handshake; the broker's certificate must be for `host`.
pub(super) async fn secure(
    socket: TcpStream,
    host: &str,
    config: Arc<ClientConfig>,
    limit: Duration,
) -> Result<Box<dyn Stream>, Failure> {
    let name = ServerName::try_from(host.to_owned()).map_err(|_| {
        Failure::new(Phase::Tls, format!("{host:?} is not a name that a certificate can have"))
    })?;
    match timeout(limit, TlsConnector::from(config).connect(name, socket)).await {
        Ok(Ok(stream)) => Ok(Box::new(stream)),
        Ok(Err(error)) => Err(Failure::stream(Phase::Tls, Some(&error))),
        Err(_) => Err(Failure::timeout(Phase::Tls, limit.as_secs())),
    }
}

/// Our end of the Unix socket, before rumqttc has come to it.
pub(super) struct Landing {
    listener: UnixListener,
    name: String,
}

impl Landing {
    /// An abstract name that nobody can guess: no file, and gone with the process.
    pub(super) fn new() -> io::Result<Self> {
        let mut random = [0; 16];
        ring::rand::SecureRandom::fill(&ring::rand::SystemRandom::new(), &mut random)
            .map_err(|_| io::Error::other("the system has no randomness"))?;
        let name = format!("\0practice-gateway/{:032x}", u128::from_ne_bytes(random));
        Ok(Self { listener: UnixListener::bind(Path::new(&name))?, name })
    }

    /// What rumqttc is told as its broker's address.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Waits for rumqttc, and lets nobody else in.
    async fn join(self) -> io::Result<UnixStream> {
        let own = i32::try_from(std::process::id()).ok();
        loop {
            let (stream, _) = self.listener.accept().await?;
            if stream.peer_cred()?.pid() == own {
                return Ok(stream);
            }
            tracing::warn!("Another process tried to join the uplink's inner socket, it was turned away");
        }
    }

    /// Carries bytes until either end is done: the broker's error, if it was the broker's.
    pub(super) async fn carry(self, mut broker: Box<dyn Stream>) -> io::Result<()> {
        let mut inner = self.join().await?;
        copy_bidirectional_with_sizes(&mut inner, &mut broker, CHUNK_BYTES, CHUNK_BYTES).await.map(drop)
    }
}
