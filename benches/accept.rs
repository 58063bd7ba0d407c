//! How fast transactions are accepted, compared with two limits in the same run: raw append + fdatasync of the same
//! bytes, and sled alone.
//!
//!     cargo bench --bench accept
//!
//! Rounds of both are interleaved and the median is printed. `PGW_BENCH_DIR` names the directory (a real disk, not
//! tmpfs).
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a benchmark stops at the first thing that goes wrong, and prints"
)]

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use pgw_core::transaction::{Body, Gateway, Kind, Lane, Practice};
use pgw_outbox::{EventType, LaneSettings, Outbox, OutboxKey, OutboxSettings, Submission, TypeAffixes};

const BODY: usize = 1024;
const ROUNDS: usize = 5;

fn settings(directory: PathBuf) -> OutboxSettings {
    OutboxSettings {
        directory,
        practice: Practice::new("B86022").expect("a practice"),
        gateway: Gateway::new("gw1").expect("a gateway"),
        lanes: vec![LaneSettings { lane: Lane::new("clinical").expect("a lane"), urgent: false }],
        types: TypeAffixes::default(),
        segment_records: 8_192,
        segment_bytes: 32 << 20,
        retention: Duration::from_secs(35 * 86_400),
        limit_bytes: 6 << 30,
        min_free_bytes: 64 << 20,
        min_free_percent: 1,
        max_body_bytes: 20 << 20,
        queue_bytes: 64 << 20,
        quarantine_bytes: 256 << 20,
    }
}

fn submission(number: usize) -> Submission {
    let mut body = vec![0; BODY];
    // Bytes that do not compress, so that as many reach the disk as with the raw append.
    let mut state = number as u64 | 1 << 40;
    for chunk in body.chunks_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        chunk.copy_from_slice(&state.to_le_bytes()[..chunk.len()]);
    }
    Submission {
        lane: Lane::new("clinical").expect("a lane"),
        event_type: EventType::Named("opaque".into()),
        kind: Kind::Transaction,
        content_type: "application/octet-stream".into(),
        sender: "urn:pgw:bench".into(),
        key: number.to_string(),
        shows_key: true,
        correlation_id: String::new(),
        trace_parent: String::new(),
        body: Body::new(body),
    }
}

/// Transactions a second and the 99th percentile in milliseconds.
fn submit(
    outbox: &Outbox,
    runtime: &tokio::runtime::Runtime,
    in_flight: usize,
    count: usize,
    from: &AtomicUsize,
) -> (f64, f64) {
    let latencies = Arc::new(std::sync::Mutex::new(Vec::with_capacity(count)));
    let first = from.fetch_add(count, Ordering::Relaxed);
    let next = Arc::new(AtomicUsize::new(first));
    let start = Instant::now();
    runtime.block_on(async {
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..in_flight {
            let (outbox, next, latencies) = (outbox.clone(), next.clone(), latencies.clone());
            tasks.spawn(async move {
                let mut mine = Vec::new();
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= first + count {
                        break;
                    }
                    let submission = submission(number);
                    let begin = Instant::now();
                    outbox.submit(submission).await.expect("accepted");
                    mine.push(begin.elapsed());
                }
                latencies.lock().expect("no panic").extend(mine);
            });
        }
        while let Some(done) = tasks.join_next().await {
            done.expect("no panic");
        }
    });
    let rate = count as f64 / start.elapsed().as_secs_f64();
    let mut latencies = latencies.lock().expect("no panic");
    latencies.sort_unstable();
    (rate, latencies[latencies.len() * 99 / 100].as_secs_f64() * 1e3)
}

/// Appends of `group` bodies, each group followed by fdatasync: transactions a second.
fn raw(directory: &Path, group: usize, count: usize) -> f64 {
    let path = directory.join("raw");
    let mut file = std::fs::File::create(&path).expect("a file");
    let body = vec![b'x'; BODY * group];
    let start = Instant::now();
    let mut done = 0;
    while done < count {
        file.write_all(&body).expect("written");
        file.sync_data().expect("synced");
        done += group;
    }
    let rate = done as f64 / start.elapsed().as_secs_f64();
    std::fs::remove_file(&path).expect("removed");
    rate
}

/// Only the outbox's barrier: `group` bodies written to sled as they are, then `flush` and `sync_data`.
fn sled_alone(directory: &Path, group: usize, count: usize) -> f64 {
    let path = directory.join("sled");
    let open = || sled::Config::new().path(&path).flush_every_ms(None).cache_capacity(4 << 20).open();
    let database = open().expect("a database");
    let file = std::fs::File::open(path.join("db")).expect("its file");
    let bodies: Vec<_> = (0..group).map(|number| submission(number).body).collect();
    let start = Instant::now();
    let mut done = 0_u64;
    while done < count as u64 {
        for body in &bodies {
            done += 1;
            database.insert(done.to_be_bytes(), body.as_bytes()).expect("inserted");
        }
        database.flush().expect("flushed");
        file.sync_data().expect("synced");
    }
    let rate = done as f64 / start.elapsed().as_secs_f64();
    drop(database);
    std::fs::remove_dir_all(&path).expect("removed");
    rate
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() {
    let base = std::env::var_os("PGW_BENCH_DIR").map_or_else(|| PathBuf::from("target"), PathBuf::from);
    let directory = tempfile::tempdir_in(base).expect("a directory");
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    let outbox =
        Outbox::open(settings(directory.path().join("store")), OutboxKey::new([7; 32])).expect("a store");
    let number = AtomicUsize::new(0);
    println!("accept by submit(), {BODY} byte bodies, median of {ROUNDS} interleaved rounds");
    println!(
        "{:>9} {:>12} {:>9} {:>14} {:>7} {:>12} {:>7}",
        "in flight", "accept/s", "p99 ms", "raw append/s", "ratio", "sled alone/s", "ratio"
    );
    for in_flight in [1, 4, 16, 64, 256] {
        let count = if in_flight == 1 { 4_000 } else { 2_000 * in_flight.min(32) };
        let (mut rates, mut tails, mut raws, mut sleds) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            let (rate, p99) = submit(&outbox, &runtime, in_flight, count, &number);
            rates.push(rate);
            tails.push(p99);
            raws.push(raw(directory.path(), in_flight, count));
            sleds.push(sled_alone(directory.path(), in_flight, count));
        }
        let ratio_to = |limits: &[f64]| median(rates.iter().zip(limits).map(|(a, b)| a / b).collect());
        let (ratio, to_sled) = (ratio_to(&raws), ratio_to(&sleds));
        let (rate, p99, raw, sled) = (median(rates), median(tails), median(raws), median(sleds));
        println!(
            "{in_flight:>9} {rate:>12.0} {p99:>9.2} {raw:>14.0} {ratio:>7.2} {sled:>12.0} {to_sled:>7.2}"
        );
        println!("figure accept_{in_flight}_per_second {rate:.0} 1/s");
        println!("figure accept_{in_flight}_p99 {p99:.3} ms");
        println!("figure accept_{in_flight}_ratio_to_raw {ratio:.3} ratio");
        println!("figure accept_{in_flight}_ratio_to_sled {to_sled:.3} ratio");
    }
    outbox.close();
}
