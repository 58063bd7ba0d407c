//! What a hub's answers say besides how far it is, on the real programs: which store it has, what it takes now, and how much
//! of this box it has heard of.

use std::process::Output;
use std::time::{Duration, Instant};

use crate::harness::eventually_blocking;
use crate::harness::pipeline::{PATIENCE, Pipeline, copy_directory};
use crate::harness::site::SiteOptions;

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

fn hub(pipeline: &Pipeline, words: &[&str]) -> String {
    let output = pipeline.site.hub_command(words);
    assert!(output.status.success(), "{words:?}: {}", text(&output));
    text(&output)
}

fn store_id(pipeline: &Pipeline) -> String {
    let shown = hub(pipeline, &["store", "show"]);
    let line = shown.lines().find_map(|line| line.strip_prefix("store ")).expect("a store");
    line.trim().to_owned()
}

fn is_pruned(pipeline: &Pipeline, position: &str) -> bool {
    let shown = pipeline.site.gateway_command(&["outbox", "show", "--json", position]);
    !shown.status.success() || text(&shown).contains("\"pruned\"")
}

/// The hub goes on with everything that it has, as another store.
fn make_it_another_store(pipeline: &mut Pipeline) {
    pipeline.site.kill_hub();
    std::fs::remove_file(pipeline.site.store().join("identity.json")).expect("removed");
}

#[test]
fn nothing_is_pruned_on_the_word_of_another_store_until_it_is_accepted_or_named_as_its_successor() {
    let options = SiteOptions {
        outbox: "segment_records = 100\nretention_days = 0\nmin_free_bytes = 1_048_576\n".into(),
        ..SiteOptions::default()
    };
    let mut pipeline = Pipeline::start(options);
    let mut safe = pipeline.more_from(1, 0..150);
    eventually_blocking("the first segment to go", PATIENCE, || is_pruned(&pipeline, "1").then_some(()));
    let first = store_id(&pipeline);

    make_it_another_store(&mut pipeline);
    pipeline.site.start_hub();
    safe[0].append(&mut pipeline.more_from(1, 150..350)[0]);
    pipeline.site.wait_for("confirmed_total", 350, PATIENCE);
    let alarms = || pipeline.books.events("hub.store");
    eventually_blocking("the alarm", PATIENCE, || (!alarms().is_empty()).then_some(()));
    let second = store_id(&pipeline);
    assert!(alarms()[0].contains(&second) && alarms()[0].contains(&first), "{:?}", alarms());
    eventually_blocking("the gateway to show it", PATIENCE, || {
        let status = pipeline.site.status()?;
        let reason = status["state_reason"].as_str()?;
        (status["state"] == "degraded" && reason.contains(&second)).then_some(())
    });
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(3) {
        assert!(!is_pruned(&pipeline, "101"), "the second segment was pruned on its word");
        std::thread::sleep(Duration::from_millis(100));
    }

    let wrong = pipeline.site.gateway_command(&["hub", "accept", "hub1", &first]);
    assert_eq!(wrong.status.code(), Some(65), "{}", text(&wrong));
    assert!(text(&wrong).contains(&second), "{}", text(&wrong));
    let accepted = pipeline.site.gateway_command(&["hub", "accept", "hub1", &second]);
    assert!(accepted.status.success(), "{}", text(&accepted));
    eventually_blocking("the second segment to go", PATIENCE, || is_pruned(&pipeline, "101").then_some(()));
    eventually_blocking("all to be well", PATIENCE, || {
        (pipeline.site.status()?["state"] == "ok").then_some(())
    });

    // It was written down, and a hub can say it for all its gateways.
    make_it_another_store(&mut pipeline);
    let stated = hub(&pipeline, &["store", "succeed", &second]);
    assert!(stated.contains(&second), "{stated}");
    pipeline.site.stop_gateway();
    pipeline.site.start_hub();
    pipeline.site.start_gateway();
    safe[0].append(&mut pipeline.more_from(1, 350..450)[0]);
    eventually_blocking("the fourth segment to go", PATIENCE, || is_pruned(&pipeline, "301").then_some(()));
    assert_eq!(pipeline.books.events("hub.store").len(), 1, "no other alarm");
    pipeline.check(&safe);
}

#[test]
fn a_gateway_waits_while_the_centre_says_so_and_an_image_says_what_it_lacks() {
    let mut pipeline = Pipeline::start(SiteOptions::default());
    let mut safe = pipeline.more_from(1, 0..50);
    pipeline.site.wait_for("confirmed_total", 50, PATIENCE);
    pipeline.site.stop_gateway();
    copy_directory(&pipeline.site.path("data"), &pipeline.site.path("image"));

    let set = |pipeline: &Pipeline, words: &[&str]| {
        let printed = hub(pipeline, &[&["gateway", "set", "B86022.gw1"], words].concat());
        assert!(printed.contains("the hub has read the list"), "{printed}");
    };
    set(&pipeline, &["--window", "0"]);
    pipeline.site.start_gateway();
    pipeline.site.wait_for_link(true);
    let lost = pipeline.more_from(1, 50..80);
    // It connects once more, so that its tail is named, and still sends nothing.
    pipeline.site.stop_gateway();
    pipeline.site.start_gateway();
    pipeline.site.wait_for_link(true);
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(2) {
        let status = pipeline.site.status().expect("a status");
        assert_eq!((&status["waiting"], &status["forwarded_total"]), (&30.into(), &0.into()), "{status}");
        std::thread::sleep(Duration::from_millis(100));
    }

    // The box is restored from the image, which has never seen the thirty.
    pipeline.site.stop_gateway();
    std::fs::rename(pipeline.site.path("data"), pipeline.site.path("before")).expect("moved");
    copy_directory(&pipeline.site.path("image"), &pipeline.site.path("data"));
    pipeline.site.start_gateway();
    eventually_blocking("the alarm", PATIENCE, || {
        let alarms = pipeline.books.events("tail.lost");
        alarms.first().map(|alarm| assert!(alarm.contains("lacks 30 transactions"), "{alarm}"))
    });
    // The disk before is found: nothing is lost after all.
    pipeline.site.stop_gateway();
    std::fs::remove_dir_all(pipeline.site.path("data")).expect("removed");
    std::fs::rename(pipeline.site.path("before"), pipeline.site.path("data")).expect("moved");
    pipeline.site.start_gateway();
    set(&pipeline, &["--own-window"]);
    safe[0].extend(lost.into_iter().flatten());
    pipeline.check(&safe);
}

#[test]
fn a_lane_that_the_hubs_list_does_not_have_is_named_and_goes_on_once_it_has() {
    let pipeline = Pipeline::start(SiteOptions::default());
    let mut safe = pipeline.more_from(1, 0..10);
    pipeline.site.wait_for("confirmed_total", 10, PATIENCE);
    hub(&pipeline, &["gateway", "set", "B86022.gw1", "--lane", "letters"]);
    safe[0].append(&mut pipeline.more_from(1, 10..20)[0]);
    pipeline.proxy.cut();
    eventually_blocking("the gateway to show why", PATIENCE, || {
        let status = pipeline.site.status()?;
        let reason = status["state_reason"].as_str()?;
        (status["state"] == "degraded" && reason.contains("does not have lane clinical")).then_some(())
    });
    eventually_blocking("the alarm", PATIENCE, || {
        (!pipeline.books.events("hub.later").is_empty()).then_some(())
    });
    hub(&pipeline, &["gateway", "set", "B86022.gw1", "--any-lane"]);
    pipeline.check(&safe);
}
