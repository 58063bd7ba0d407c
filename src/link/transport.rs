//! Name, socket and handshake of a connection, each with its own deadline.
//!
//! rumqttc opens its sockets itself, and then a hung name server, a closed port and a refused certificate all look the
//! same. So socket and TLS are ours, and [`super::session`] runs MQTT over them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use pgw_host::config::Upstream;
use tokio::io::{AsyncRead, AsyncWrite, BufReader};
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::pki_types::ServerName;

use super::failure::Failure;
use crate::phase::Phase;

/// Bytes read from a socket at once. Without a buffer rustls would read 4 KiB at a time, one system call each.
const CHUNK_BYTES: usize = 64 * 1024;

/// A byte stream to the broker, with or without TLS.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// Looks a name up. `known` are the addresses of the last success, used when the name server does not answer.
pub async fn resolve(
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
    tracing::debug!(reason = sentence, "Name lookup failed; using the last known addresses");
    Ok(())
}

/// Opens a socket to the first address that answers.
pub async fn open(addresses: &[SocketAddr], limit: Duration) -> Result<TcpStream, Failure> {
    let mut last = Failure::new(Phase::Tcp, "there is no address to connect to");
    for address in addresses {
        match timeout(limit, TcpStream::connect(address)).await {
            Ok(Ok(socket)) => {
                // Our writes are already large; waiting for more would only delay the last one.
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
pub async fn secure(
    socket: TcpStream,
    host: &str,
    config: Arc<ClientConfig>,
    limit: Duration,
) -> Result<Box<dyn Stream>, Failure> {
    let name = ServerName::try_from(host.to_owned()).map_err(|_| {
        Failure::new(Phase::Tls, format!("{host:?} is not a name that a certificate can have"))
    })?;
    let buffered = BufReader::with_capacity(CHUNK_BYTES, socket);
    match timeout(limit, TlsConnector::from(config).connect(name, buffered)).await {
        Ok(Ok(stream)) => Ok(Box::new(stream)),
        Ok(Err(error)) => Err(Failure::stream(Phase::Tls, Some(&error))),
        Err(_) => Err(Failure::timeout(Phase::Tls, limit.as_secs())),
    }
}
