//! The harness itself: a fault that does not take effect would make every test with it worthless.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use crate::harness::{Certificates, Direction, Fault, FaultProxy, Mosquitto, eventually_blocking};

/// An echo server on loopback.
fn echo() -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            std::thread::spawn(move || {
                let mut buffer = [0; 4096];
                while let Ok(length @ 1..) = stream.read(&mut buffer) {
                    if stream.write_all(&buffer[..length]).is_err() {
                        return;
                    }
                }
            });
        }
    });
    port
}

fn round_trip(stream: &mut TcpStream, limit: Duration) -> Option<Duration> {
    let start = Instant::now();
    stream.set_read_timeout(Some(limit)).unwrap();
    stream.write_all(b"ping").ok()?;
    let mut back = [0; 4];
    stream.read_exact(&mut back).ok()?;
    Some(start.elapsed())
}

#[test]
fn the_proxy_passes_delays_stalls_swallows_and_cuts() {
    let proxy = FaultProxy::start(echo());
    let mut stream = TcpStream::connect(("127.0.0.1", proxy.port())).unwrap();
    let second = Duration::from_secs(1);
    assert!(round_trip(&mut stream, 5 * second).is_some());

    proxy.set(Fault::Delay(Duration::from_millis(150)));
    assert!(round_trip(&mut stream, 5 * second).unwrap() >= Duration::from_millis(300));

    proxy.set(Fault::Stall);
    assert_eq!(round_trip(&mut stream, Duration::from_millis(200)), None);
    proxy.set(Fault::Pass);
    let mut late = [0; 4];
    stream.set_read_timeout(Some(5 * second)).unwrap();
    stream.read_exact(&mut late).unwrap();
    assert_eq!(&late, b"ping");

    proxy.set(Fault::Swallow(Direction::Down));
    assert_eq!(round_trip(&mut stream, Duration::from_millis(200)), None);
    proxy.set(Fault::Pass);
    assert!(round_trip(&mut stream, 5 * second).is_some());

    proxy.set(Fault::Throttle(40));
    assert!(round_trip(&mut stream, 5 * second).unwrap() >= Duration::from_millis(200));
    proxy.set(Fault::Pass);

    proxy.cut();
    stream.set_read_timeout(Some(5 * second)).unwrap();
    let error = stream.read(&mut late).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);

    proxy.set(Fault::Refuse);
    let mut refused = TcpStream::connect(("127.0.0.1", proxy.port())).unwrap();
    assert_eq!(round_trip(&mut refused, 5 * second), None);
    assert_eq!(proxy.accepted(), 2);
}

#[test]
fn mosquitto_dies_and_comes_back_on_its_ports() {
    let certificates = Certificates::new();
    let mut broker = Mosquitto::start(&certificates);
    let port = broker.port();
    let mut standing = TcpStream::connect(("127.0.0.1", port)).unwrap();
    broker.kill();
    eventually_blocking("the connection ends with the broker", Duration::from_secs(5), || {
        match standing.read(&mut [0]) {
            Ok(0) | Err(_) => Some(()),
            Ok(_) => None,
        }
    });
    assert!(TcpStream::connect(("127.0.0.1", port)).is_err());
    broker.restart();
    assert_eq!(broker.port(), port);
    assert!(TcpStream::connect(("127.0.0.1", port)).is_ok());
}
