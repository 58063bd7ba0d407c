//! The whole road on the real programs: MLLP, outbox, a real Mosquitto over mutual TLS, hub, receipts, through faults.
//!
//! One oracle judges every run: what a sender was told is safe must stand in the hub's store exactly once, in the
//! order in which that sender got its acknowledgments, on an unbroken chain.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test stops at the first thing that goes wrong, and prints"
)]

mod harness;
#[path = "../examples/outage/proof.rs"]
mod proof;

use std::time::Duration;

use harness::senders::Senders;
use harness::site::{Site, SiteOptions};
use harness::{Certificates, Fault, FaultProxy, Mosquitto};
use proof::Proof;

const PATIENCE: Duration = Duration::from_secs(120);

struct Road {
    site: Site,
    proxy: FaultProxy,
    broker: Mosquitto,
    _certificates: Certificates,
}

fn road(options: SiteOptions) -> Road {
    let certificates = Certificates::new();
    let broker = Mosquitto::start(&certificates);
    let proxy = FaultProxy::start(broker.port());
    let mut site = Site::new(&certificates, proxy.port(), broker.port(), options);
    site.start_hub();
    site.start_gateway();
    Road { site, proxy, broker, _certificates: certificates }
}

impl Road {
    /// Everything that was accepted is confirmed; then both are stopped and the hub's files are compared.
    fn prove(mut self, safe: &[Vec<Vec<u8>>]) -> Proof {
        let accepted: usize = safe.iter().map(Vec::len).sum();
        self.site.wait_for("accepted_total", accepted as u64, PATIENCE);
        harness::eventually_blocking("everything to be confirmed", PATIENCE, || {
            let status = self.site.status()?;
            harness::site::adds_up(&status);
            (status["waiting"] == 0).then_some(())
        });
        self.site.stop();
        let verified = self.site.hub_command(&["verify"]);
        assert!(verified.status.success(), "{}", String::from_utf8_lossy(&verified.stdout));
        let proof = Proof::of(&self.site.store(), safe).expect("the hub's files");
        println!("{}", proof.json());
        proof
    }
}

fn judge(road: Road, safe: &[Vec<Vec<u8>>]) {
    let proof = road.prove(safe);
    assert_eq!(proof.lost, 0, "{proof:?}");
    assert_eq!(proof.repeated, 0, "{proof:?}");
    assert_eq!(proof.out_of_order, 0, "{proof:?}");
    assert!(proof.chain_ok, "{proof:?}");
    assert!(proof.accepted > 0, "nothing was accepted: the run proves nothing");
}

#[test]
fn an_outage_in_the_middle_loses_nothing() {
    let road = road(SiteOptions::default());
    road.site.wait_for_link(true);
    let first = Senders::start(road.site.door, 4, 100).join();
    road.site.wait_for("confirmed_total", 400, PATIENCE);
    road.proxy.set(Fault::Refuse);
    road.proxy.cut();
    road.site.wait_for_link(false);
    // The counters of these senders start again, as real ones do: same MSH-10, and the same bytes are repetitions.
    let again = Senders::start(road.site.door, 4, 100).join();
    assert_eq!(first, again);
    let status = road.site.status().expect("a status");
    assert_eq!(status["accepted_total"], 400, "repetitions are recognised: {status}");
    let more = Senders::start(road.site.door, 6, 300).join();
    road.site.wait_for("waiting", 1_400, PATIENCE);
    road.proxy.set(Fault::Pass);
    judge(road, &more);
}

#[test]
fn kill_9_of_the_gateway_at_random_moments_loses_nothing() {
    let kills = if std::env::var_os("PGW_LONG").is_some() { 200 } else { 12 };
    let mut road = road(SiteOptions {
        outbox: "segment_records = 200\nretention_days = 0\n".into(),
        ..SiteOptions::default()
    });
    let senders = Senders::start(road.site.door, 4, usize::MAX);
    let mut random = Random::seeded();
    for _ in 0..kills {
        std::thread::sleep(Duration::from_millis(random.below(300))); // the random moment
        road.site.kill_gateway();
        road.site.start_gateway();
    }
    let safe = senders.stop();
    judge(road, &safe);
}

#[test]
fn kill_9_of_the_broker_in_the_middle_of_a_replay_loses_nothing() {
    let mut road = road(SiteOptions::default());
    let safe = backlog(&road, 800);
    for confirmed in [200, 1_200, 2_400] {
        road.proxy.set(Fault::Throttle(400_000));
        road.site.wait_for("confirmed_total", confirmed, PATIENCE);
        road.broker.kill();
        road.site.wait_for_link(false);
        road.broker.restart();
    }
    road.proxy.set(Fault::Pass);
    judge(road, &safe);
}

#[test]
fn kill_9_of_the_hub_in_the_middle_of_a_replay_loses_nothing() {
    let mut road = road(SiteOptions::default());
    let safe = backlog(&road, 800);
    road.proxy.set(Fault::Throttle(400_000));
    for confirmed in [200, 1_200, 2_400] {
        road.site.wait_for("confirmed_total", confirmed, PATIENCE);
        road.site.kill_hub();
        road.site.start_hub();
    }
    road.proxy.set(Fault::Pass);
    judge(road, &safe);
}

#[test]
fn a_hub_restored_from_an_older_copy_gets_the_difference_again() {
    let mut road = road(SiteOptions::default());
    let mut safe = Senders::start(road.site.door, 4, 100).join();
    road.site.wait_for("confirmed_total", 400, PATIENCE);
    road.site.kill_hub();
    let copy = road.site.path("copy");
    copy_directory(&road.site.store(), &copy);
    road.site.start_hub();
    for (sender, mut more) in safe.iter_mut().zip(more_from(&road, 4, 100..200)) {
        sender.append(&mut more);
    }
    road.site.wait_for("confirmed_total", 800, PATIENCE);
    road.site.kill_hub();
    std::fs::remove_dir_all(road.site.store()).expect("removed");
    std::fs::rename(&copy, road.site.store()).expect("restored");
    road.site.start_hub();
    // Confirmed goes down when the hub speaks, and up again; both are seen in the log and the hub's store.
    harness::eventually_blocking("the hub to have all again", PATIENCE, || {
        Proof::of(&road.site.store(), &safe).ok().filter(|p| p.lost == 0)
    });
    judge(road, &safe);
}

#[test]
fn a_link_that_stalls_half_open_is_given_up_and_nothing_is_lost() {
    let road = road(SiteOptions { uplink: "stall_seconds = 1.0\n".into(), ..SiteOptions::default() });
    let safe = backlog(&road, 500);
    for confirmed in [100, 900] {
        road.proxy.set(Fault::Throttle(400_000));
        road.site.wait_for("confirmed_total", confirmed, PATIENCE);
        road.proxy.set(Fault::Stall);
        road.site.wait_for_link(false);
    }
    road.proxy.set(Fault::Pass);
    road.proxy.cut();
    judge(road, &safe);
}

#[test]
fn a_slow_and_far_link_delivers_all_in_order() {
    let road = road(SiteOptions::default());
    road.proxy.set(Fault::Delay(Duration::from_millis(120)));
    let safe = Senders::start(road.site.door, 4, 150).join();
    judge(road, &safe);
}

#[test]
fn a_link_that_is_reset_again_and_again_delivers_all_in_order() {
    let road = road(SiteOptions::default());
    let senders = Senders::start(road.site.door, 4, 400);
    let mut random = Random::seeded();
    for _ in 0..25 {
        std::thread::sleep(Duration::from_millis(random.below(250))); // the random moment
        road.proxy.cut();
    }
    let safe = senders.join();
    judge(road, &safe);
}

/// Cuts the link and lets four senders fill the outbox.
fn backlog(road: &Road, each: usize) -> Vec<Vec<Vec<u8>>> {
    road.site.wait_for_link(true);
    road.proxy.set(Fault::Refuse);
    road.proxy.cut();
    road.site.wait_for_link(false);
    let safe = Senders::start(road.site.door, 4, each).join();
    road.site.wait_for("waiting", 4 * each as u64, PATIENCE);
    safe
}

fn more_from(road: &Road, senders: usize, numbers: std::ops::Range<usize>) -> Vec<Vec<Vec<u8>>> {
    (0..senders)
        .map(|sender| {
            let mut stream = harness::senders::connect(road.site.door).expect("the door");
            numbers
                .clone()
                .map(|number| {
                    let message = harness::senders::message(sender, number + 1, 50);
                    let answer = harness::senders::exchange(&mut stream, &message).expect("an answer");
                    assert!(harness::senders::positive(&answer));
                    message
                })
                .collect()
        })
        .collect()
}

fn copy_directory(from: &std::path::Path, to: &std::path::Path) {
    std::fs::create_dir_all(to).expect("a directory");
    for entry in std::fs::read_dir(from).expect("listed") {
        let path = entry.expect("an entry").path();
        let target = to.join(path.file_name().expect("a name"));
        if path.is_dir() {
            copy_directory(&path, &target);
        } else {
            std::fs::copy(&path, &target).expect("copied");
        }
    }
}

/// A small generator with a printed seed: `PGW_SEED` runs the same moments again.
struct Random(u64);

impl Random {
    fn seeded() -> Self {
        let seed = std::env::var("PGW_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or_else(|| {
            std::time::SystemTime::now()
                .duration_since(std::time::UNIX_EPOCH)
                .map_or(1, |d| d.as_nanos() as u64)
        });
        println!("PGW_SEED={seed}");
        Self(seed | 1)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}
