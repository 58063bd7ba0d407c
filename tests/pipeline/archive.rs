//! Bodies are archived under a running hub and without one, while gateways send; put back, nothing is missing.

use std::path::Path;

use crate::harness::eventually_blocking;
use crate::harness::pipeline::{PATIENCE, Pipeline, copy_directory};
use crate::harness::senders::Senders;
use crate::harness::site::{Site, SiteOptions};

/// Runs a command of the hub; returns what it has printed.
fn printed(site: &Site, words: &[&str], code: i32) -> String {
    let done = site.hub_command(words);
    let text = [&done.stdout[..], &done.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    assert_eq!(done.status.code(), Some(code), "{words:?}: {text}");
    text
}

fn archived_lines(file: &Path) -> usize {
    let text = std::fs::read_to_string(file).expect("a file of the lane");
    text.lines().filter(|line| line.starts_with(r#"{"pgw":"archived","#)).count()
}

#[test]
fn bodies_are_archived_while_gateways_send_and_the_lane_stays_proven() {
    let hub = "[store]\nrotate_bytes = 65_536\n".to_owned();
    let mut pipeline = Pipeline::start(SiteOptions { hub, ..SiteOptions::default() });
    let senders = Senders::start(pipeline.site.door, 4, usize::MAX);
    let lane = pipeline.site.store().join("B86022/gw1");
    let file = |number: usize| lane.join(format!("clinical.{number:06}.ndjson"));
    let rotated = |number: usize| {
        eventually_blocking("the lane's files to rotate", PATIENCE, || file(number).exists().then_some(()));
    };
    let into = pipeline.site.path("archive");
    let archive = ["archive", "--older-than", "0", "--into", into.to_str().expect("a name")];
    let verify = ["verify", "--archive", into.to_str().expect("a name")];
    rotated(3);
    let site = &pipeline.site;
    let young = printed(site, &["archive", "--older-than", "1", "--into", archive[4]], 0);
    assert!(young.starts_with("0 files archived"), "{young}");
    let text = printed(site, &archive, 0);
    assert!(text.contains("B86022/gw1/clinical: ") && text.contains("files archived"), "{text}");
    assert!(archived_lines(&file(1)) > 0 && archived_lines(&file(3)) > 0);
    let text = printed(site, &["verify"], 0);
    assert!(text.contains("of them archived: their bodies are elsewhere"), "{text}");
    assert!(!printed(site, &verify, 0).contains("of them archived"));
    let again = ["resend", "B86022/gw1/clinical", "--from", "1"];
    let refused = printed(site, &again, 65);
    assert!(refused.contains("was archived") && refused.contains("verify --archive"), "{refused}");
    // The hub goes on, and without one the command does it in the store.
    let newest = (4..).find(|number| !file(*number).exists()).expect("a number");
    rotated(newest + 1);
    pipeline.site.kill_hub();
    // A lane whose files cannot be read is named, and stops no other.
    let broken = lane.join("aaa.000001.ndjson");
    std::fs::create_dir(&broken).expect("made");
    let named = pipeline.site.hub_command(&archive);
    assert!(!named.status.success() && String::from_utf8_lossy(&named.stderr).contains("aaa.000001.ndjson"));
    std::fs::remove_dir(&broken).expect("removed");
    assert!(archived_lines(&file(newest)) > 0);
    pipeline.site.start_hub();
    rotated(newest + 4);
    assert!(!printed(&pipeline.site, &verify, 0).contains("of them archived"));
    // Put back, the store is what it was: the oracle finds every body.
    pipeline.site.kill_hub();
    copy_directory(&into, &pipeline.site.store());
    pipeline.site.start_hub();
    let safe = senders.stop();
    pipeline.check(&safe);
}
