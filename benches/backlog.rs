//! What a backlog costs: time from start to first accept (also after a kill under load, and without any derived
//! files), resident memory, disk space per payload byte, and disk space freed after a drain.
//!
//!     cargo bench --bench backlog                      # 0, 100,000 and 1,000,000 waiting
//!     PGW_BENCH_BACKLOGS=0,50000 cargo bench --bench backlog
//!
//! Each step runs in its own process (this program, started again), so that memory is that of one run of a gateway's
//! outbox. `PGW_BENCH_DIR` names the directory (a real disk, not tmpfs).
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a benchmark stops at the first thing that goes wrong, and prints"
)]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use pgw_core::chain::Through;
use pgw_core::transaction::{Body, Gateway, Kind, Lane, Practice};
use pgw_gateway::wire_chain::WireReader;
use pgw_outbox::{
    EventType, LaneSettings, Outbox, OutboxKey, OutboxSettings, Submission, TypeAffixes, Watermark,
};

const BODY: usize = 1024;

/// As `deploy/` starts the gateway: memory of a dropped segment goes back to the system.
const ALLOCATOR: [(&str, &str); 3] =
    [("MALLOC_ARENA_MAX", "1"), ("MALLOC_TRIM_THRESHOLD_", "1048576"), ("MALLOC_MMAP_THRESHOLD_", "131072")];

fn lane() -> Lane {
    Lane::new("clinical").expect("a lane")
}

fn open(directory: &Path) -> Outbox {
    let settings = OutboxSettings {
        directory: directory.to_owned(),
        practice: Practice::new("B86022").expect("a practice"),
        gateway: Gateway::new("gw1").expect("a gateway"),
        lanes: vec![LaneSettings { lane: lane(), urgent: false }],
        types: TypeAffixes::default(),
        segment_records: 8_192,
        segment_bytes: 32 << 20,
        retention: Duration::ZERO,
        limit_bytes: 16 << 30,
        min_free_bytes: 64 << 20,
        min_free_percent: 1,
        max_body_bytes: 20 << 20,
        queue_bytes: 64 << 20,
        quarantine_bytes: 256 << 20,
    };
    Outbox::open(settings, OutboxKey::new([7; 32])).expect("a store")
}

fn submission(number: usize) -> Submission {
    let mut body = vec![0; BODY];
    // Bytes that do not compress, like sealed ones.
    let mut state = number as u64 | 1 << 40;
    for chunk in body.chunks_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        chunk.copy_from_slice(&state.to_le_bytes()[..chunk.len()]);
    }
    Submission {
        lane: lane(),
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

fn fill(outbox: &Outbox, runtime: &tokio::runtime::Runtime, from: usize, to: usize) {
    let next = Arc::new(AtomicUsize::new(from));
    runtime.block_on(async {
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..64 {
            let (outbox, next) = (outbox.clone(), next.clone());
            tasks.spawn(async move {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= to {
                        break;
                    }
                    outbox.submit(submission(number)).await.expect("accepted");
                }
            });
        }
        while let Some(done) = tasks.join_next().await {
            done.expect("no panic");
        }
    });
}

/// Reads and confirms everything with the chain values of the wire, as delivery would, while new transactions arrive.
fn drain(outbox: &Outbox) -> usize {
    let mut position = outbox.watermark(&lane()).map_or(0, |watermark| watermark.position);
    let first = position;
    let tail = outbox.tail(&lane()).expect("the lane");
    let mut wire = WireReader::new(outbox, &lane());
    while position < *tail.borrow() {
        let records = wire.read(position + 1, 256, 1 << 20).expect("readable");
        let last = records.last().expect("at least one");
        position = last.position;
        let point = Some(Through { epoch: last.epoch, through: last.sequence, chain: last.chain });
        outbox.confirm(&lane(), Watermark { position, point }, Some(position), Some(Instant::now()));
    }
    usize::try_from(position - first).expect("a count")
}

/// Resident memory in MiB: now, and the highest so far.
fn memory() -> (f64, f64) {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let value = |key: &str| {
        let line = status.lines().find(|l| l.starts_with(key)).unwrap_or_default();
        line.split_whitespace().nth(1).and_then(|kib| kib.parse::<f64>().ok()).unwrap_or(0.0) / 1024.0
    };
    (value("VmRSS:"), value("VmHWM:"))
}

/// Bytes that the files below a directory take on disk, without the ballast, which exists from the first day.
fn disk(directory: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    let Ok(entries) = std::fs::read_dir(directory) else { return 0 };
    entries
        .filter_map(Result::ok)
        .filter(|entry| entry.file_name() != "ballast")
        .map(|entry| match entry.metadata() {
            Ok(data) if data.is_dir() => disk(&entry.path()),
            Ok(data) => data.blocks() * 512,
            Err(_) => 0,
        })
        .sum()
}

/// In this order, each in its own process.
const STEPS: [&str; 6] = ["fill", "start", "kill", "recover", "bare", "drain"];
/// What the store recreates if it is missing.
const DERIVED: [&str; 2] = ["index", "marks"];

fn step(what: &str, directory: &Path, backlog: usize) {
    let started = Instant::now();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    let before = disk(directory);
    let outbox = open(directory);
    match what {
        "fill" => {
            let begin = Instant::now();
            fill(&outbox, &runtime, 0, backlog);
            let rate = backlog as f64 / begin.elapsed().as_secs_f64();
            let (now, peak) = memory();
            println!("figure fill_{backlog}_per_second {rate:.0} 1/s");
            println!("figure fill_{backlog}_memory {now:.1} MiB");
            println!("figure fill_{backlog}_memory_peak {peak:.1} MiB");
            outbox.close();
            println!(
                "figure disk_per_payload_byte_{backlog} {:.3} ratio",
                (disk(directory) - before) as f64 / (backlog * BODY) as f64
            );
        }
        "kill" => {
            // Killed under load without notice: no thread has time to write anything.
            let more = outbox.clone();
            std::thread::spawn(move || fill(&more, &runtime, 10_000_000, usize::MAX));
            let tail = outbox.tail(&lane()).expect("the lane");
            let first = *tail.borrow();
            while *tail.borrow() < first + 2_000 {
                std::thread::sleep(Duration::from_millis(1));
            }
            std::process::abort();
        }
        "recover" | "bare" => {
            let number = if what == "bare" { 20_000_001 } else { 20_000_000 };
            fill(&outbox, &runtime, number, number + 1);
            println!("figure {what}_to_first_accept_{backlog} {:.3} s", started.elapsed().as_secs_f64());
            outbox.close();
        }
        "start" => {
            fill(&outbox, &runtime, backlog, backlog + 1);
            println!("figure start_to_first_accept_{backlog} {:.3} s", started.elapsed().as_secs_f64());
            println!("figure start_memory_{backlog} {:.1} MiB", memory().0);
            outbox.close();
        }
        _ => {
            let more = outbox.clone();
            let rate = std::thread::scope(|scope| {
                let filler =
                    scope.spawn(move || fill(&more, &runtime, backlog + 1, backlog + 1 + backlog / 10));
                let begin = Instant::now();
                let rate = drain(&outbox) as f64 / begin.elapsed().as_secs_f64();
                filler.join().expect("filled");
                drain(&outbox);
                rate
            });
            let (now, peak) = memory();
            println!("figure drain_{backlog}_read_per_second {rate:.0} 1/s");
            println!("figure drain_and_accept_{backlog}_memory {now:.1} MiB");
            println!("figure drain_and_accept_{backlog}_memory_peak {peak:.1} MiB");
            let limit = Instant::now();
            while disk(directory) * 100 > before && limit.elapsed() < Duration::from_secs(30) {
                std::thread::sleep(Duration::from_millis(100));
            }
            println!("figure disk_left_after_drain_{backlog} {:.2} MiB", disk(directory) as f64 / 1048576.0);
            println!(
                "figure disk_given_back_{backlog} {:.2} %",
                100.0 - 100.0 * disk(directory) as f64 / before as f64
            );
            outbox.close();
        }
    }
}

fn main() {
    let words: Vec<String> = std::env::args().collect();
    if let [_, what, directory, backlog] = &words[..]
        && STEPS.contains(&what.as_str())
    {
        step(what, Path::new(directory), backlog.parse().expect("a number"));
        return;
    }
    let base = std::env::var_os("PGW_BENCH_DIR").map_or_else(|| PathBuf::from("target"), PathBuf::from);
    let backlogs = std::env::var("PGW_BENCH_BACKLOGS").unwrap_or_else(|_| "0,100000,1000000".to_owned());
    for backlog in backlogs.split(',').map(|b| b.trim().parse::<usize>().expect("a number")) {
        let directory = tempfile::tempdir_in(&base).expect("a directory");
        let store = directory.path().join("store");
        println!("-- {backlog} waiting");
        for what in STEPS {
            if backlog == 0 && what != "start" {
                continue;
            }
            if what == "bare" {
                // More than any power cut removes: all derived files, which may be lost.
                for derived in DERIVED {
                    let path = store.join(derived);
                    let _ = std::fs::remove_file(&path).or_else(|_| std::fs::remove_dir_all(&path));
                }
            }
            let own = std::env::current_exe().expect("this program");
            let status = Command::new(own)
                .arg(what)
                .arg(&store)
                .arg(backlog.to_string())
                .envs(ALLOCATOR)
                .status()
                .expect("run");
            assert!(status.success() || what == "kill", "{what} ended with {status}");
        }
    }
}
