//! The whole pipeline with the real programs: how fast the MLLP door accepts, and how fast a backlog is replayed into
//! the hub's fsynced store over mutual TLS, compared with a rumqttc publisher from memory with the same window and
//! broker.
//!
//!     cargo bench --bench pipeline            # 100,000 transactions
//!     PGW_BENCH_COUNT=20000 cargo bench --bench pipeline
//!     PGW_BENCH_PARTS=replay cargo bench --bench pipeline     # without rumqttc from memory; `memory`: that alone
//!     PGW_BENCH_WINDOW=64 cargo bench --bench pipeline        # window and inflight, and rumqttc's own limit; 256
//!
//! The end of the replay is detected by the size of the hub's file, because asking the gateway would cost processor
//! time that is being measured. `PGW_BENCH_DIR` names the directory (a real disk, not tmpfs). Needs Mosquitto.
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

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use harness::senders::{connect, exchange, positive};
use harness::site::{Site, SiteOptions};
use harness::{Certificates, Mosquitto};
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::{AsyncClient, Event, Incoming, MqttOptions};
use rumqttc::{TlsConfiguration, Transport};

const BODY: usize = 1024;
const SENDERS: usize = 64;
/// How a group begins in the hub's file.
const GROUP: &str = "{\"pgw\":\"group\"";

fn main() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let count = number("PGW_BENCH_COUNT").unwrap_or(100_000);
    let window = number("PGW_BENCH_WINDOW").and_then(|window| u16::try_from(window).ok()).unwrap_or(256);
    let base = std::env::var_os("PGW_BENCH_DIR").map_or_else(|| PathBuf::from("target"), PathBuf::from);
    let _ = tokio_rustls::rustls::crypto::ring::default_provider().install_default();

    let parts = std::env::var("PGW_BENCH_PARTS").unwrap_or_default();
    let certificates = Certificates::new();
    let mut broker = Mosquitto::start(&certificates);
    let replayed = (parts != "memory").then(|| replay(&certificates, &mut broker, base, count, window));
    if parts != "replay" {
        let ceiling = from_memory(&certificates, broker.port(), count, window);
        println!("rumqttc from memory, window {window}, same broker, no subscriber: {ceiling:.0}/s");
        println!("figure rumqttc_from_memory_per_second {ceiling:.0} 1/s");
        if let Some(replayed) = replayed {
            println!("figure replay_ratio_to_rumqttc {:.3} ratio", replayed / ceiling);
        }
    }
}

/// Accepts `count` while the broker is stopped, then starts it: transactions a second into the hub's store.
fn replay(
    certificates: &Certificates,
    broker: &mut Mosquitto,
    base: PathBuf,
    count: usize,
    window: u16,
) -> f64 {
    // No proxy: it would be a fifth process on two cores. The link is down because the broker is not running yet.
    let options = SiteOptions {
        base: Some(base),
        uplink: format!("window = {window}\ninflight = {window}\nwindow_bytes = 4194304\n"),
        ..SiteOptions::default()
    };
    let mut site = Site::new(certificates, broker.port(), broker.port(), options);
    broker.kill();
    site.start_gateway();

    let (rate, p99) = accept(&site, count);
    println!(
        "accepted through the MLLP door: {rate:.0}/s, p99 {p99:.2} ms ({SENDERS} connections, {BODY} byte messages)"
    );
    println!("figure mllp_{SENDERS}_per_second {rate:.0} 1/s");
    println!("figure mllp_{SENDERS}_p99 {p99:.3} ms");

    site.start_hub();
    let file = site.store().join("B86022/gw1/clinical.ndjson");
    let pids = [("gateway", site.gateway_pid()), ("hub", site.hub_pid())];
    let before = pids.map(|(_, pid)| cpu_seconds(pid));
    broker.restart();
    let size = || std::fs::metadata(&file).map_or(0, |file| file.len());
    let (first, begin) = harness::eventually_blocking("the first one", Duration::from_secs(60), || {
        Some(size()).filter(|size| *size > 0).map(|size| (size, Instant::now()))
    });
    let (mut last, mut end) = (first, begin);
    while end.elapsed() < Duration::from_millis(500) {
        std::thread::sleep(Duration::from_millis(5));
        let size = size();
        if size != last {
            (last, end) = (size, Instant::now());
        }
    }
    let used = pids.map(|(_, pid)| cpu_seconds(pid));
    let brokers = cpu_seconds(broker.pid());
    site.wait_for("confirmed_total", count as u64, Duration::from_secs(60));
    assert_eq!(size(), last, "the replay stood still for half a second");

    let share = (last - first) as f64 / last as f64;
    let measured = count as f64 * share / (end - begin).as_secs_f64().max(1e-9);
    println!("replayed over TLS into the hub's fsynced store, window {window}: {measured:.0}/s");
    println!("figure replay_per_second {measured:.0} 1/s");
    let each = |seconds: f64| seconds * 1e6 / count as f64;
    for (index, (name, _)) in pids.into_iter().enumerate() {
        println!("figure replay_cpu_{name} {:.1} us/transaction", each(used[index] - before[index]));
    }
    println!("figure replay_cpu_broker {:.1} us/transaction", each(brokers));

    let stored = std::fs::read_to_string(&file).expect("the hub's file");
    let groups = stored.lines().filter(|line| line.starts_with(GROUP)).count();
    println!("figure replay_transactions_per_group {:.1} transactions", count as f64 / groups as f64);
    println!("figure first_transaction_after_link_up {:.3} s", first_after_an_outage(&site, broker, &file));
    site.stop();
    measured
}

/// One transaction is accepted while the broker is stopped; returns the seconds from the moment when both ends are
/// connected again until the hub has stored it.
fn first_after_an_outage(site: &Site, broker: &mut Mosquitto, file: &Path) -> f64 {
    broker.kill();
    let mut stream = connect(site.door).expect("the door");
    let answer = exchange(&mut stream, &harness::senders::message(SENDERS, 0, 0)).expect("an answer");
    assert!(positive(&answer));
    let before = std::fs::metadata(file).map_or(0, |file| file.len());
    broker.restart();
    harness::eventually_blocking("the one that waits", Duration::from_secs(60), || {
        std::fs::metadata(file).is_ok_and(|file| file.len() > before).then_some(())
    });
    let last = |text: &str, wanted: &str| {
        text.lines().rfind(|line| line.contains(wanted)).map(moment).unwrap_or_else(|| panic!("{wanted}"))
    };
    let stored = std::fs::read_to_string(file).expect("the hub's file");
    let group = stored.lines().rfind(|line| line.starts_with(GROUP)).expect("a group");
    let stored = moment(group.trim_start_matches(GROUP));
    let up = last(&site.log("gateway"), "The link is up");
    let hub_up = last(&site.log("hub"), "The hub is connected and subscribed");
    (stored - up.max(hub_up)).as_seconds_f64()
}

/// The RFC 3339 time with which a text begins.
fn moment(text: &str) -> time::OffsetDateTime {
    let end = text.find('Z').expect("a UTC time") + 1;
    let start = text[..end].rfind(|c: char| !"0123456789-:.TZ".contains(c)).map_or(0, |at| at + 1);
    time::OffsetDateTime::parse(&text[start..end], &time::format_description::well_known::Rfc3339)
        .expect("an RFC 3339 time")
}

/// Messages a second and the 99th percentile in milliseconds.
fn accept(site: &Site, count: usize) -> (f64, f64) {
    let next = Arc::new(AtomicUsize::new(0));
    let start = Instant::now();
    let threads: Vec<_> = (0..SENDERS)
        .map(|sender| {
            let (next, door) = (next.clone(), site.door);
            std::thread::Builder::new()
                .stack_size(128 << 10)
                .spawn(move || {
                    let mut stream = connect(door).expect("the door");
                    let mut times = Vec::new();
                    while next.fetch_add(1, Ordering::Relaxed) < count {
                        let number = next.load(Ordering::Relaxed);
                        let mut message = harness::senders::message(sender, number, 0);
                        let missing = BODY.saturating_sub(message.len() + 6);
                        message.extend_from_slice(b"NTE|2|");
                        // Letters that do not compress, so that as many bytes reach the disk as are sent.
                        let mut state = number as u64 | 1 << 40;
                        message.extend((0..missing).map(|_| {
                            state ^= state << 13;
                            state ^= state >> 7;
                            state ^= state << 17;
                            b'0' + (state % 75) as u8
                        }));
                        let begin = Instant::now();
                        let answer = exchange(&mut stream, &message).expect("an answer");
                        times.push(begin.elapsed());
                        assert!(positive(&answer));
                    }
                    times
                })
                .expect("a thread")
        })
        .collect();
    let mut times: Vec<Duration> = threads.into_iter().flat_map(|t| t.join().expect("a sender")).collect();
    let rate = times.len() as f64 / start.elapsed().as_secs_f64();
    times.sort_unstable();
    (rate, times[times.len() * 99 / 100].as_secs_f64() * 1e3)
}

/// The upper limit: the same client library, QoS 1, TLS with a client certificate, bodies from memory, no subscriber.
fn from_memory(certificates: &Certificates, port: u16, count: usize, window: u16) -> f64 {
    let client = certificates.client("B86022.bench");
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let mut options = MqttOptions::new("bench", "localhost", port);
        options.set_transport(Transport::tls_with_config(TlsConfiguration::Simple {
            ca: std::fs::read(certificates.ca()).expect("the CA"),
            alpn: None,
            client_auth: Some((
                std::fs::read(&client.certificate).expect("a certificate"),
                std::fs::read(&client.key).expect("a key"),
            )),
        }));
        options.set_outgoing_inflight_upper_limit(window);
        let mut network = rumqttc::NetworkOptions::new();
        network.set_tcp_nodelay(true);
        options.set_network_options(network);
        let (client, mut events) = AsyncClient::new(options, usize::from(window));
        let body = vec![b'x'; BODY];
        let feeder = tokio::spawn(async move {
            for _ in 0..count {
                client
                    .publish("bench/txn", QoS::AtLeastOnce, false, body.clone())
                    .await
                    .expect("handed over");
            }
            client
        });
        let (mut done, mut start) = (0, Instant::now());
        while done < count {
            match events.poll().await.expect("the link") {
                Event::Incoming(Incoming::ConnAck(_)) => start = Instant::now(),
                Event::Incoming(Incoming::PubAck(_)) => done += 1,
                _ => {}
            }
        }
        let rate = count as f64 / start.elapsed().as_secs_f64();
        drop(feeder.await.expect("fed"));
        rate
    })
}

/// User and system time of a process so far, seconds.
fn cpu_seconds(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
    let ticks = |n: usize| fields.get(n).and_then(|f| f.parse::<f64>().ok()).unwrap_or(0.0);
    (ticks(11) + ticks(12)) / 100.0
}
