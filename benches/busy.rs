//! How long a sender waits for its acknowledgment while 64 senders are busy and there is a backlog: the real daemon,
//! its MLLP door, no link.
//!
//!     cargo bench --bench busy                         # 0 and 1,000,000 waiting
//!     PGW_BENCH_BACKLOGS=0,50000 cargo bench --bench busy
//!
//! The backlog is also submitted at the door, by senders that do not wait for each answer. `PGW_BENCH_DIR` names the
//! directory (a real disk, not tmpfs), `PGW_BENCH_SECONDS` how long the 64 work (10).
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a benchmark stops at the first thing that goes wrong, and prints"
)]

#[allow(dead_code, unused_imports, reason = "a benchmark uses its own part of the harness")]
#[path = "../tests/harness/mod.rs"]
mod harness;
#[allow(dead_code, reason = "a benchmark uses its own part of it")]
#[path = "../tests/harness/memory.rs"]
mod memory;

use std::ffi::OsString;
use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use harness::Certificates;
use harness::senders::{connect, exchange, message, positive};
use harness::site::{Site, SiteOptions, adds_up};
use hdrhistogram::Histogram;

const SENDERS: usize = 64;
/// Connections that submit the backlog, and frames that each sends before it reads answers.
const BRINGERS: usize = 16;
const BURST: usize = 64;

fn main() {
    let base = std::env::var_os("PGW_BENCH_DIR").map_or_else(|| PathBuf::from("target"), PathBuf::from);
    let seconds = std::env::var("PGW_BENCH_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(10.0);
    let backlogs = std::env::var("PGW_BENCH_BACKLOGS").unwrap_or_else(|_| "0,1000000".to_owned());
    for backlog in backlogs.split(',').map(|text| text.trim().parse::<usize>().expect("a number")) {
        measure(&base, backlog, Duration::from_secs_f64(seconds));
    }
}

/// The allocator settings of the systemd unit.
fn environment() -> Vec<(OsString, OsString)> {
    let unit = include_str!("../deploy/usr/lib/systemd/system/practice-gateway.service");
    let line = unit.lines().find_map(|line| line.strip_prefix("Environment=")).expect("a line");
    line.split(' ').filter_map(|pair| pair.split_once('=')).map(|(k, v)| (k.into(), v.into())).collect()
}

fn measure(base: &Path, backlog: usize, work: Duration) {
    println!("-- {backlog} waiting");
    let certificates = Certificates::new();
    let options = SiteOptions { base: Some(base.to_owned()), ..SiteOptions::default() };
    let mut site = Site::new(&certificates, harness::ports::reserve(), harness::ports::reserve(), options);
    site.gateway_environment = environment();
    site.start_gateway();
    let (door, begun) = (site.door, Instant::now());
    std::thread::scope(|scope| {
        for bringer in 0..BRINGERS {
            let mine = backlog / BRINGERS + usize::from(bringer < backlog % BRINGERS);
            scope.spawn(move || bring(door, 1_000 + bringer, mine));
        }
    });
    if backlog > 0 {
        println!("brought in {:.1} s", begun.elapsed().as_secs_f64());
    }
    let begun = Instant::now();
    let mut all = Histogram::<u64>::new_with_bounds(1, 60_000_000, 3).expect("bounds");
    std::thread::scope(|scope| {
        let senders: Vec<_> =
            (0..SENDERS).map(|sender| scope.spawn(move || busy(door, sender, work))).collect();
        for sender in senders {
            all.add(sender.join().expect("a sender")).expect("the same bounds");
        }
    });
    let seconds = begun.elapsed().as_secs_f64();
    let status = site.status().expect("a status");
    adds_up(&status);
    let waiting = status["waiting"].as_u64().expect("a number");
    assert!(waiting >= backlog as u64 + all.len(), "what was acknowledged waits: {status}");
    let millis = |micros: u64| micros as f64 / 1000.0;
    println!("figure busy_{backlog}_accepts_per_second {:.0} 1/s", all.len() as f64 / seconds);
    println!("figure busy_{backlog}_accept_p50 {:.1} ms", millis(all.value_at_quantile(0.5)));
    println!("figure busy_{backlog}_accept_p99 {:.1} ms", millis(all.value_at_quantile(0.99)));
    println!("figure busy_{backlog}_accept_most {:.1} ms", millis(all.max()));
    println!(
        "figure busy_{backlog}_memory {:.1} MiB",
        memory::resident(site.gateway_pid()) as f64 / 1_048_576.0
    );
    site.stop();
}

/// Sends in bursts, and reads the answers of each before the next.
fn bring(door: SocketAddr, sender: usize, count: usize) {
    let mut stream = connect(door).expect("the door");
    let mut buffer = [0; 64 * 1024];
    let mut sent = 0;
    while sent < count {
        let burst = BURST.min(count - sent);
        let mut frames = Vec::new();
        for number in sent..sent + burst {
            frames.extend_from_slice(&[&[0x0b][..], &message(sender, number, 0), &[0x1c, 0x0d]].concat());
        }
        stream.write_all(&frames).expect("taken");
        let mut answered = 0;
        while answered < burst {
            let read = stream.read(&mut buffer).expect("answers");
            assert!(read > 0, "the door was closed");
            answered += buffer[..read].iter().filter(|byte| **byte == 0x1c).count();
        }
        sent += burst;
    }
}

/// One message at a time; microseconds until each acknowledgment.
fn busy(door: SocketAddr, sender: usize, work: Duration) -> Histogram<u64> {
    let mut waited = Histogram::new_with_bounds(1, 60_000_000, 3).expect("bounds");
    let mut stream = connect(door).expect("the door");
    let begun = Instant::now();
    let mut number = 0;
    while begun.elapsed() < work {
        number += 1;
        let message = message(sender, number, 800);
        let asked = Instant::now();
        assert!(positive(&exchange(&mut stream, &message).expect("an answer")));
        waited.saturating_record(u64::try_from(asked.elapsed().as_micros()).unwrap_or(u64::MAX).max(1));
    }
    waited
}
