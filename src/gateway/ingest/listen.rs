//! Listening sockets of the network doors, and the addresses that may connect.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;
use tokio::net::{TcpListener, TcpSocket, TcpStream};

/// Connections that may wait for `accept`.
const BACKLOG: u32 = 1024;

/// An address or a network: `192.168.7.4`, `10.1.0.0/16`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AddressRange(IpNet);

/// Text that is not an [`AddressRange`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("an address range is an IP address, with a prefix length for a network: \"10.1.0.0/16\"")]
pub struct NotAnAddressRange;

impl std::str::FromStr for AddressRange {
    type Err = NotAnAddressRange;

    fn from_str(text: &str) -> Result<Self, NotAnAddressRange> {
        let range = text.parse().or_else(|_| text.parse().map(|address: IpAddr| address.into()));
        range.map(Self).map_err(|_| NotAnAddressRange)
    }
}

impl AddressRange {
    /// Whether `address` is in it; an IPv4 address that came through an IPv6 socket counts as IPv4.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        self.0.contains(&address.to_canonical())
    }
}

/// Whether a peer may connect; an empty list admits everyone who can reach the address.
pub(crate) fn is_allowed(ranges: &[AddressRange], peer: IpAddr) -> bool {
    ranges.is_empty() || ranges.iter().any(|range| range.contains(peer))
}

/// Also on an address that the box does not have yet: after a power cut it may start before its network is up.
pub(crate) fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
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
        tracing::debug!(%error, "Cannot listen on an address that is not configured on this host yet");
    }
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Sends each acknowledgment as one segment, at once; a dead peer is noticed in minutes.
pub(crate) fn prepare(stream: &TcpStream) {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_address_that_is_not_there_yet_is_no_obstacle() {
        // From the range for documentation: nobody has it.
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
