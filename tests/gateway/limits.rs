//! The MLLP door's limits for many connections, large frames and junk, on the real daemon.

use std::ffi::OsString;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use crate::harness::senders::{connect, exchange, message, positive};
use crate::harness::site::{Site, SiteOptions};
use crate::harness::{Certificates, ports};
use crate::memory;

fn site() -> (Site, Certificates) {
    let certificates = Certificates::new();
    let site = Site::new(&certificates, ports::reserve(), ports::reserve(), SiteOptions::default());
    (site, certificates)
}

/// As many files as the system allows for this process and, by inheritance, the daemon: its unit allows more than this
/// test needs.
fn many_files() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).expect("up to the hard limit");
    assert!(limit.maximum.is_none_or(|most| most >= 2_500), "this machine allows too few open files");
}

#[test]
fn a_thousand_connections_are_open_at_once_and_each_is_answered() {
    many_files();
    let (mut site, _certificates) = site();
    site.start_gateway();
    let mut connections: Vec<TcpStream> = (0..1000)
        .map(|n| connect(site.door).unwrap_or_else(|error| panic!("connection {n}: {error}")))
        .collect();
    let before = memory::resident(site.gateway_pid());
    // All send, then all are answered: they are open and busy at the same time.
    for (number, connection) in connections.iter_mut().enumerate() {
        let framed = [&[0x0b][..], &message(number, 1, 500), &[0x1c, 0x0d]].concat();
        connection.write_all(&framed).expect("taken");
    }
    for (number, connection) in connections.iter_mut().enumerate() {
        let mut answer = Vec::new();
        let mut buffer = [0; 2048];
        while !answer.ends_with(&[0x1c, 0x0d]) {
            let read = connection.read(&mut buffer).expect("an answer");
            assert!(read > 0, "connection {number} was closed");
            answer.extend_from_slice(&buffer[..read]);
        }
        assert!(positive(&answer), "connection {number}");
    }
    site.wait_for("accepted_total", 1000, Duration::from_secs(60));
    let held = memory::resident(site.gateway_pid()).saturating_sub(before);
    println!("1,000 busy connections took {} KiB", held / 1024);
    // One more is turned away, and the open ones are not affected.
    let mut late = connect(site.door).expect("taken by the kernel");
    assert_eq!(late.read(&mut [0; 10]).unwrap_or(0), 0, "the limit is 1,000");
    assert!(positive(&exchange(&mut connections[999], &message(999, 2, 10)).expect("an answer")));
    site.stop();
}

/// The unit's allocator settings: without them the process keeps memory that was freed.
fn environment() -> Vec<(OsString, OsString)> {
    let unit = include_str!("../../deploy/usr/lib/systemd/system/practice-gateway.service");
    let line = unit.lines().find_map(|line| line.strip_prefix("Environment=")).expect("a line");
    line.split(' ').filter_map(|pair| pair.split_once('=')).map(|(k, v)| (k.into(), v.into())).collect()
}

#[test]
fn a_frame_of_20_mb_costs_little_more_than_twice_its_size() {
    let certificates = Certificates::new();
    let mut site = Site::new(&certificates, ports::reserve(), ports::reserve(), SiteOptions::default());
    site.gateway_environment = environment();
    site.start_gateway();
    let pid = site.gateway_pid();
    let mut stream = connect(site.door).expect("the door");
    let mut least = f64::INFINITY;
    // A segment holds two: the first starts a segment and lets the one before be closed, so that the second is
    // measured.
    for pair in (1..=6).map(large).collect::<Vec<_>>().chunks(2) {
        assert!(positive(&exchange(&mut stream, &pair[0]).expect("an answer")));
        let before = memory::resident(pid);
        memory::forget_peak(pid);
        assert!(positive(&exchange(&mut stream, &pair[1]).expect("an answer")));
        let cost = memory::peak(pid).saturating_sub(before);
        let ratio = cost as f64 / pair[1].len() as f64;
        println!("a frame of {} bytes cost {cost} bytes: {ratio:.2} of its size", pair[1].len());
        least = least.min(ratio);
    }
    // The frame and its sealed form exist at the same moment; then the sealed form and sled's copy of it. The least of
    // three measurements counts: what the uplink or health does at that moment does not belong to the frame.
    assert!(least <= 2.25, "{least:.2} of its size");
    site.stop();
}

/// Nearly 20 MB that do not compress.
fn large(number: usize) -> Vec<u8> {
    let mut frame = message(1, number, 0);
    frame.truncate(frame.len() - 1);
    let mut state = 88_172_645_463_325_252_u64;
    while frame.len() < 19_990_000 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        frame.extend(state.to_le_bytes().map(|b| b' ' + b % 90));
    }
    frame
}
