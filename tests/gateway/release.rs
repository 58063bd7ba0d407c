//! A lane that is stalled by lost records continues once a person has written them off: on the real programs, with a
//! part of the store destroyed on the disk.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::harness::senders::Senders;
use crate::harness::site::{Site, SiteOptions, adds_up};
use crate::harness::{Certificates, Fault, FaultProxy, Mosquitto, eventually_blocking};

const PATIENCE: Duration = Duration::from_secs(60);

fn databases(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            databases(&path, found);
        } else if path.ends_with("db") && path.to_string_lossy().contains("/segments/clinical/") {
            found.push(path);
        }
    }
    found.sort();
}

fn printed(output: &std::process::Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[test]
fn what_the_disk_has_destroyed_stops_the_lane_until_it_is_released() {
    let certificates = Certificates::new();
    let broker = Mosquitto::start(&certificates);
    let proxy = FaultProxy::start(broker.port());
    let options = SiteOptions { outbox: "segment_records = 200\n".into(), ..SiteOptions::default() };
    let mut site = Site::new(&certificates, proxy.port(), broker.port(), options);
    site.start_hub();
    proxy.set(Fault::Refuse);
    site.start_gateway();
    let _ = Senders::start(site.door, 2, 300).join();
    site.kill_gateway();

    let mut files = Vec::new();
    databases(&site.path("data"), &mut files);
    let mut bytes = std::fs::read(&files[1]).unwrap();
    let used = bytes.iter().rposition(|byte| *byte != 0).unwrap();
    // Each record is in sled's log once or more: the stretches are long enough to cover all copies of some.
    for part in [1, 3] {
        let from = used * part / 5;
        bytes[from..from + used / 5].fill(0);
    }
    std::fs::write(&files[1], bytes).unwrap();

    site.start_gateway();
    let verified = site.gateway_command(&["verify", "--json"]);
    assert_eq!(verified.status.code(), Some(65));
    let verdict: serde_json::Value = serde_json::from_slice(&verified.stdout).unwrap();
    let lost: Vec<(u64, u64)> = serde_json::from_value(verdict["missing_ranges"].clone()).unwrap();
    let damaged = verdict["missing"].as_u64().unwrap();
    assert!(damaged > 0 && damaged <= 200, "at most the segment: {verdict}");
    println!("lost: {lost:?}");

    proxy.set(Fault::Pass);
    site.wait_for("confirmed_total", lost[0].0 - 1, PATIENCE);
    eventually_blocking("the lane to stall", PATIENCE, || (site.status()?["held"] == 1).then_some(()));
    assert_eq!(site.status().unwrap()["confirmed_total"], lost[0].0 - 1);

    for (from, through) in &lost {
        let (from, through) = (from.to_string(), through.to_string());
        let words = [
            "outbox",
            "void",
            "--lane",
            "clinical",
            "--sequence",
            &from,
            "--through",
            &through,
            "--reason",
            "the disk destroyed it",
        ];
        let plan = site.gateway_command(&words);
        assert!(printed(&plan).contains("would be released (add --yes)"), "{}", printed(&plan));
        let mut words = words.to_vec();
        words.push("--yes");
        let done = site.gateway_command(&words);
        assert!(done.status.success(), "{}", printed(&done));
    }
    let readable = site.gateway_command(&[
        "outbox",
        "void",
        "--lane",
        "clinical",
        "--sequence",
        "600",
        "--reason",
        "x",
        "--yes",
    ]);
    assert_eq!(readable.status.code(), Some(65), "what can be read is not released: {}", printed(&readable));

    eventually_blocking("all the rest to be confirmed", PATIENCE, || {
        let status = site.status()?;
        adds_up(&status);
        (status["waiting"] == 0).then_some(())
    });
    let status = site.status().unwrap();
    assert_eq!((&status["damaged"], &status["confirmed_total"]), (&damaged.into(), &(600 - damaged).into()));
    eventually_blocking("no lane to be stalled", PATIENCE, || (site.status()?["held"] == 0).then_some(()));
    // After a restart the result is the same, and new transactions pass.
    site.kill_gateway();
    site.start_gateway();
    assert_eq!(site.status().unwrap()["damaged"], damaged);
    assert!(site.gateway_command(&["verify"]).status.success());
    let _ = Senders::start(site.door, 3, 310).join();
    eventually_blocking("new work to be confirmed", PATIENCE, || {
        (site.status()?["waiting"] == 0).then_some(())
    });
    site.stop();
    let verified = site.hub_command(&["verify"]);
    assert!(verified.status.success(), "{}", printed(&verified));
    for (from, through) in &lost {
        let line = format!("{} transactions are missing for good at this lane: epoch", through - from + 1);
        assert!(printed(&verified).contains(&line), "{line}: {}", printed(&verified));
    }
    assert!(printed(&verified).contains("the disk destroyed it"));
}
