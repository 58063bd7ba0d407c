//! Ports for programs that cannot be told "port 0, and report which".
//!
//! A port that the system picks and that is released can be taken again before the program binds it: by another test,
//! by an outgoing connection, even by a connection to itself (a client that tries a dead port of the ephemeral range
//! for long enough connects to itself). So these ports lie below that range, and no other of our processes gets one
//! that is in use here.

use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::sync::atomic::{AtomicU16, Ordering};

const FIRST: u16 = 12_000;
const PORTS: u16 = 18_000;

/// A port of 127.0.0.1 that belongs to this process until it ends.
///
/// # Panics
///
/// If none is left.
pub(crate) fn reserve() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = u16::try_from(std::process::id().wrapping_mul(61) % u32::from(PORTS)).unwrap_or(0);
    for _ in 0..PORTS {
        let port = FIRST + (start + NEXT.fetch_add(1, Ordering::Relaxed) % PORTS) % PORTS;
        // A name in the abstract namespace is a lock that ends with its process, however that ends.
        let name = SocketAddr::from_abstract_name(format!("practice-gateway-test-port-{port}"));
        let Ok(lock) = name.and_then(|name| UnixListener::bind_addr(&name)) else { continue };
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            std::mem::forget(lock);
            return port;
        }
    }
    panic!("every port from {FIRST} to {} is taken", FIRST + PORTS);
}
