//! How much junk on one MLLP connection slows another: a sender that waits for each answer, alone and beside a flood.
//!
//!     cargo bench --bench garbage
//!
//! Rounds with and without the flood are interleaved, and the medians compared. `PGW_BENCH_DIR` names the directory (a
//! real disk, not tmpfs), `PGW_BENCH_SECONDS` the length of a round (2).
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

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use harness::Certificates;
use harness::senders::{connect, exchange, message, positive};
use harness::site::{Site, SiteOptions};

const ROUNDS: usize = 5;

fn main() {
    let base = std::env::var_os("PGW_BENCH_DIR").map_or_else(|| PathBuf::from("target"), PathBuf::from);
    let seconds = std::env::var("PGW_BENCH_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(2.0);
    let certificates = Certificates::new();
    let options = SiteOptions { base: Some(base), ..SiteOptions::default() };
    let mut site = Site::new(&certificates, harness::ports::reserve(), harness::ports::reserve(), options);
    site.start_gateway();
    let round = Duration::from_secs_f64(seconds);
    let mut number = 0;
    for (name, junk) in [("noise", vec![b'x'; 64 * 1024]), ("frames", b"\x0bjunk\x1c\r".repeat(8 * 1024))] {
        let (mut alone, mut beside) = (Vec::new(), Vec::new());
        let mut pushed = 0;
        for _ in 0..ROUNDS {
            alone.push(rate(site.door, round, &mut number));
            let flood = Flood::start(site.door, junk.clone());
            beside.push(rate(site.door, round, &mut number));
            pushed += flood.stop();
        }
        let (alone, beside) = (median(alone), median(beside));
        let slower = (1.0 - beside / alone) * 100.0;
        println!(
            "{name}: {alone:.0}/s alone, {beside:.0}/s beside it ({slower:.1} % slower); it got rid of {} bytes in {ROUNDS} rounds",
            pushed
        );
        println!("figure sender_alone_{name} {alone:.0} 1/s");
        println!("figure sender_beside_{name} {beside:.0} 1/s");
        println!("figure garbage_{name}_slows_another_by {slower:.1} %");
    }
    site.stop();
}

/// Messages a second of one sender that waits for each answer.
fn rate(door: SocketAddr, round: Duration, number: &mut usize) -> f64 {
    let mut stream = connect(door).expect("the door");
    let (begun, mut sent) = (Instant::now(), 0);
    while begun.elapsed() < round {
        *number += 1;
        assert!(positive(&exchange(&mut stream, &message(1, *number, 800)).expect("an answer")));
        sent += 1;
    }
    f64::from(sent) / begun.elapsed().as_secs_f64()
}

/// Junk on one connection, as fast as the door reads it; answers are read and dropped.
struct Flood {
    stop: Arc<AtomicBool>,
    pushed: Arc<AtomicU64>,
    stream: TcpStream,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Flood {
    fn start(door: SocketAddr, junk: Vec<u8>) -> Self {
        let stream = connect(door).expect("the door");
        stream.set_write_timeout(Some(Duration::from_millis(100))).expect("set");
        let (stop, pushed) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (mut writer, mut reader) =
            (stream.try_clone().expect("a clone"), stream.try_clone().expect("a clone"));
        let (stopped, counted) = (Arc::clone(&stop), Arc::clone(&pushed));
        let write = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                if let Ok(written) = writer.write(&junk) {
                    counted.fetch_add(written as u64, Ordering::Relaxed);
                }
            }
        });
        let read = std::thread::spawn(move || {
            let mut buffer = [0; 64 * 1024];
            while reader.read(&mut buffer).is_ok_and(|read| read > 0) {}
        });
        Self { stop, pushed, stream, threads: vec![write, read] }
    }

    fn stop(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.stream.shutdown(Shutdown::Both);
        for thread in self.threads {
            thread.join().expect("joined");
        }
        self.pushed.load(Ordering::Relaxed)
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
