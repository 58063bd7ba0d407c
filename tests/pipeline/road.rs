//! The whole road on the real programs: MLLP, outbox, a real Mosquitto over mutual TLS, hub, receipts, through faults.
//!
//! The oracle is `harness::road`'s.

use std::time::Duration;

use crate::harness;
use crate::harness::Fault;
use crate::harness::proof::Proof;
use crate::harness::road::{PATIENCE, Random, Road, copy_directory};
use crate::harness::senders::Senders;
use crate::harness::site::SiteOptions;

#[test]
fn an_outage_in_the_middle_loses_nothing() {
    let road = Road::start(SiteOptions::default());
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
    road.judge(&more);
}

#[test]
fn kill_9_of_the_gateway_at_random_moments_loses_nothing() {
    let kills = if std::env::var_os("PGW_LONG").is_some() { 200 } else { 12 };
    let mut road = Road::start(SiteOptions {
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
    road.judge(&safe);
}

#[test]
fn kill_9_of_the_broker_in_the_middle_of_a_replay_loses_nothing() {
    let mut road = Road::start(SiteOptions::default());
    let safe = road.backlog(800);
    for confirmed in [200, 1_200, 2_400] {
        road.proxy.set(Fault::Throttle(400_000));
        road.site.wait_for("confirmed_total", confirmed, PATIENCE);
        road.broker.kill();
        road.site.wait_for_link(false);
        road.broker.restart();
    }
    road.proxy.set(Fault::Pass);
    road.judge(&safe);
}

#[test]
fn kill_9_of_the_hub_in_the_middle_of_a_replay_loses_nothing() {
    let mut road = Road::start(SiteOptions::default());
    let safe = road.backlog(800);
    road.proxy.set(Fault::Throttle(400_000));
    for confirmed in [200, 1_200, 2_400] {
        road.site.wait_for("confirmed_total", confirmed, PATIENCE);
        road.site.kill_hub();
        road.site.start_hub();
    }
    road.proxy.set(Fault::Pass);
    road.judge(&safe);
}

#[test]
fn a_hub_restored_from_an_older_copy_gets_the_difference_again() {
    let mut road = Road::start(SiteOptions::default());
    let mut safe = Senders::start(road.site.door, 4, 100).join();
    road.site.wait_for("confirmed_total", 400, PATIENCE);
    road.site.kill_hub();
    let copy = road.site.path("copy");
    copy_directory(&road.site.store(), &copy);
    road.site.start_hub();
    for (sender, mut more) in safe.iter_mut().zip(road.more_from(4, 100..200)) {
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
    road.judge(&safe);
}

#[test]
fn a_link_that_stalls_half_open_is_given_up_and_nothing_is_lost() {
    let road = Road::start(SiteOptions { uplink: "stall_seconds = 1.0\n".into(), ..SiteOptions::default() });
    let safe = road.backlog(500);
    for confirmed in [100, 900] {
        road.proxy.set(Fault::Throttle(400_000));
        road.site.wait_for("confirmed_total", confirmed, PATIENCE);
        road.proxy.set(Fault::Stall);
        road.site.wait_for_link(false);
    }
    road.proxy.set(Fault::Pass);
    road.proxy.cut();
    road.judge(&safe);
}

#[test]
fn a_slow_and_far_link_delivers_all_in_order() {
    let road = Road::start(SiteOptions::default());
    road.proxy.set(Fault::Delay(Duration::from_millis(120)));
    let safe = Senders::start(road.site.door, 4, 150).join();
    road.judge(&safe);
}

#[test]
fn a_link_that_is_reset_again_and_again_delivers_all_in_order() {
    let road = Road::start(SiteOptions::default());
    let senders = Senders::start(road.site.door, 4, 400);
    let mut random = Random::seeded();
    for _ in 0..25 {
        std::thread::sleep(Duration::from_millis(random.below(250))); // the random moment
        road.proxy.cut();
    }
    let safe = senders.join();
    road.judge(&safe);
}
