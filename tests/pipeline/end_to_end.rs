//! The whole pipeline on the real programs: MLLP, outbox, a real Mosquitto over mutual TLS, hub, receipts, through faults.
//!
//! The oracle is `harness::pipeline`'s.

use std::time::Duration;

use crate::harness;
use crate::harness::Fault;
use crate::harness::pipeline::{PATIENCE, Pipeline, Random, copy_directory};
use crate::harness::proof::Proof;
use crate::harness::senders::Senders;
use crate::harness::site::SiteOptions;

#[test]
fn an_outage_in_the_middle_loses_nothing() {
    let pipeline = Pipeline::start(SiteOptions::default());
    pipeline.site.wait_for_link(true);
    let first = Senders::start(pipeline.site.door, 4, 100).join();
    pipeline.site.wait_for("confirmed_total", 400, PATIENCE);
    pipeline.proxy.set(Fault::Refuse);
    pipeline.proxy.cut();
    pipeline.site.wait_for_link(false);
    // The counters of these senders start again, as real ones do: the same MSH-10 with the same bytes is a repetition.
    let again = Senders::start(pipeline.site.door, 4, 100).join();
    assert_eq!(first, again);
    let status = pipeline.site.status().expect("a status");
    assert_eq!(status["accepted_total"], 400, "repetitions are recognised: {status}");
    let more = Senders::start(pipeline.site.door, 6, 300).join();
    pipeline.site.wait_for("waiting", 1_400, PATIENCE);
    pipeline.proxy.set(Fault::Pass);
    pipeline.check(&more);
}

#[test]
fn kill_9_of_the_gateway_at_random_moments_loses_nothing() {
    let kills = if std::env::var_os("PGW_LONG").is_some() { 200 } else { 12 };
    let mut pipeline = Pipeline::start(SiteOptions {
        outbox: "segment_records = 200\nretention_days = 0\n".into(),
        ..SiteOptions::default()
    });
    let senders = Senders::start(pipeline.site.door, 4, usize::MAX);
    let mut random = Random::seeded();
    for _ in 0..kills {
        std::thread::sleep(Duration::from_millis(random.below(300))); // the random moment
        pipeline.site.kill_gateway();
        pipeline.site.start_gateway();
    }
    let safe = senders.stop();
    pipeline.check(&safe);
}

#[test]
fn kill_9_of_the_broker_in_the_middle_of_a_replay_loses_nothing() {
    let mut pipeline = Pipeline::start(SiteOptions::default());
    let safe = pipeline.backlog(800);
    for confirmed in [200, 1_200, 2_400] {
        pipeline.proxy.set(Fault::Throttle(400_000));
        pipeline.site.wait_for("confirmed_total", confirmed, PATIENCE);
        pipeline.broker.kill();
        pipeline.site.wait_for_link(false);
        pipeline.broker.restart();
    }
    pipeline.proxy.set(Fault::Pass);
    pipeline.check(&safe);
}

#[test]
fn kill_9_of_the_hub_in_the_middle_of_a_replay_loses_nothing() {
    let mut pipeline = Pipeline::start(SiteOptions::default());
    let safe = pipeline.backlog(800);
    pipeline.proxy.set(Fault::Throttle(400_000));
    for confirmed in [200, 1_200, 2_400] {
        pipeline.site.wait_for("confirmed_total", confirmed, PATIENCE);
        pipeline.site.kill_hub();
        pipeline.site.start_hub();
    }
    pipeline.proxy.set(Fault::Pass);
    pipeline.check(&safe);
}

#[test]
fn a_hub_restored_from_an_older_copy_gets_the_difference_again() {
    let mut pipeline = Pipeline::start(SiteOptions::default());
    let mut safe = Senders::start(pipeline.site.door, 4, 100).join();
    pipeline.site.wait_for("confirmed_total", 400, PATIENCE);
    pipeline.site.kill_hub();
    let copy = pipeline.site.path("copy");
    copy_directory(&pipeline.site.store(), &copy);
    pipeline.site.start_hub();
    for (sender, mut more) in safe.iter_mut().zip(pipeline.more_from(4, 100..200)) {
        sender.append(&mut more);
    }
    pipeline.site.wait_for("confirmed_total", 800, PATIENCE);
    pipeline.site.kill_hub();
    std::fs::remove_dir_all(pipeline.site.store()).expect("removed");
    std::fs::rename(&copy, pipeline.site.store()).expect("restored");
    pipeline.site.start_hub();
    // Confirmed goes down with the hub's answer, and up again; the log and the hub's store show both.
    harness::eventually_blocking("the hub to have all again", PATIENCE, || {
        Proof::of(&pipeline.site.store(), &safe).ok().filter(|p| p.lost == 0)
    });
    pipeline.check(&safe);
}

#[test]
fn a_link_that_stalls_half_open_is_given_up_and_nothing_is_lost() {
    let pipeline =
        Pipeline::start(SiteOptions { uplink: "stall_seconds = 1.0\n".into(), ..SiteOptions::default() });
    let safe = pipeline.backlog(500);
    for confirmed in [100, 900] {
        pipeline.proxy.set(Fault::Throttle(400_000));
        pipeline.site.wait_for("confirmed_total", confirmed, PATIENCE);
        pipeline.proxy.set(Fault::Stall);
        pipeline.site.wait_for_link(false);
    }
    pipeline.proxy.set(Fault::Pass);
    pipeline.proxy.cut();
    pipeline.check(&safe);
}

#[test]
fn a_slow_and_far_link_delivers_all_in_order() {
    let pipeline = Pipeline::start(SiteOptions::default());
    pipeline.proxy.set(Fault::Delay(Duration::from_millis(120)));
    let safe = Senders::start(pipeline.site.door, 4, 150).join();
    pipeline.check(&safe);
}

#[test]
fn a_link_that_is_reset_again_and_again_delivers_all_in_order() {
    let pipeline = Pipeline::start(SiteOptions::default());
    let senders = Senders::start(pipeline.site.door, 4, 400);
    let mut random = Random::seeded();
    for _ in 0..25 {
        std::thread::sleep(Duration::from_millis(random.below(250))); // the random moment
        pipeline.proxy.cut();
    }
    let safe = senders.join();
    pipeline.check(&safe);
}
