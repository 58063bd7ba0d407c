//! `practice-gateway repair` on the real programs: records that the daemon cannot rebuild from the damaged disk are
//! recovered from a copy, the lane continues by itself, and the hub has all of it once and in order.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use crate::harness::pipeline::{PATIENCE, Pipeline, Random, copy_directory};
use crate::harness::senders::{connect, exchange, positive};
use crate::harness::site::{SiteOptions, adds_up};
use crate::harness::{Fault, eventually_blocking};

const GATEWAY: &str = env!("CARGO_BIN_EXE_practice-gateway");

/// Every file below a directory, with its bytes.
fn image(directory: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(image(&path));
        } else {
            let bytes = std::fs::read(&path).unwrap();
            files.insert(path, bytes);
        }
    }
    files
}

fn databases(directory: &Path) -> Vec<PathBuf> {
    let files = image(directory).into_keys();
    files.filter(|p| p.ends_with("db") && p.to_string_lossy().contains("/segments/clinical/")).collect()
}

/// Zeroes two stretches of the second segment: long enough to cover all copies of some of its records.
fn destroy(data: &Path) {
    let files = databases(data);
    let mut bytes = std::fs::read(&files[1]).unwrap();
    let used = bytes.iter().rposition(|byte| *byte != 0).unwrap();
    for part in [1, 3] {
        let from = used * part / 5;
        bytes[from..from + used / 5].fill(0);
    }
    std::fs::write(&files[1], bytes).unwrap();
}

fn printed(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

fn json(output: &Output) -> serde_json::Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", printed(output)))
}

#[test]
fn what_the_disk_has_destroyed_comes_back_from_a_copy_and_the_lane_continues_by_itself() {
    let options = SiteOptions { outbox: "segment_records = 200\n".into(), ..SiteOptions::default() };
    let mut pipeline = Pipeline::start(options);
    let safe = pipeline.backlog(150);
    pipeline.site.stop_gateway();
    let (data, copy) = (pipeline.site.path("data"), pipeline.site.path("old-disk"));
    copy_directory(&data, &copy);
    destroy(&data);

    // The daemon rebuilds what it can; the lane is stalled before the rest.
    pipeline.site.start_gateway();
    let verified = pipeline.site.gateway_command(&["verify", "--json"]);
    assert_eq!(verified.status.code(), Some(65), "{}", printed(&verified));
    let missing = json(&verified)["missing"].as_u64().unwrap();
    let ranges: Vec<(u64, u64)> = serde_json::from_value(json(&verified)["missing_ranges"].clone()).unwrap();
    assert!(missing > 0, "nothing was destroyed: the run proves nothing");
    println!("missing: {ranges:?}");
    pipeline.proxy.set(Fault::Pass);
    pipeline.site.wait_for("confirmed_total", ranges[0].0 - 1, PATIENCE);
    eventually_blocking("the lane to stall", PATIENCE, || {
        (pipeline.site.status()?["held"] == 1).then_some(())
    });
    let status = pipeline.site.status().unwrap();
    adds_up(&status);
    assert_eq!(status["damaged"], missing);
    let running = pipeline.site.gateway_command(&["repair"]);
    assert_eq!(running.status.code(), Some(75), "{}", printed(&running));
    assert!(printed(&running).contains("systemctl stop practice-gateway"), "{}", printed(&running));
    pipeline.site.stop_gateway();

    // The dry run reports what can and what cannot be recovered, and writes nothing.
    let before = image(&data);
    let alone = pipeline.site.gateway_command(&["repair", "--json"]);
    assert_eq!(alone.status.code(), Some(65));
    let lane = &json(&alone)["lanes"][0];
    let lost: Vec<(u64, u64)> = lane["lost"]
        .as_array()
        .unwrap()
        .iter()
        .map(|lost| (lost["from"].as_u64().unwrap(), lost["through"].as_u64().unwrap()))
        .collect();
    assert_eq!(lost, ranges);
    assert_eq!(lane["lost"][0]["before"]["position"], ranges[0].0 - 1);
    assert!(lane["lost"][0]["after"]["sender"].as_str().unwrap().starts_with("hl7v2:"), "{lane}");
    let from = copy.display().to_string();
    let plan = pipeline.site.gateway_command(&["repair", "--from", &from]);
    assert_eq!(plan.status.code(), Some(65));
    for words in ["would be recovered", "Nothing was changed. Add --yes to do it."] {
        assert!(printed(&plan).contains(words), "{}", printed(&plan));
    }
    // The image of a disk: the same bytes at other offsets, in one file.
    let disk = pipeline.site.path("disk.img");
    let mut bytes = vec![0x5a; 4096 * 3];
    databases(&copy).iter().rev().for_each(|file| bytes.extend(std::fs::read(file).unwrap()));
    std::fs::write(&disk, bytes).unwrap();
    let plan = pipeline.site.gateway_command(&["repair", "--json", "--from", &disk.display().to_string()]);
    let lane = &json(&plan)["lanes"][0];
    assert_eq!((&lane["missing"], &lane["lost"]), (&missing.into(), &serde_json::json!([])), "{lane}");
    assert!(image(&data) == before, "a dry run has written");

    // Killed at random moments, it can be run again.
    let mut random = Random::seeded();
    let mut kills = 0;
    let done = loop {
        let mut repair = Command::new(GATEWAY)
            .args(["repair", "--yes", "--from", &from, "--config"])
            .arg(pipeline.site.gateway_config())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        if kills < 8 {
            std::thread::sleep(Duration::from_millis(random.below(150))); // the random moment
            let _ = repair.kill();
        }
        let output = repair.wait_with_output().unwrap();
        if output.status.code().is_some() {
            break output;
        }
        kills += 1;
    };
    println!("killed {kills} times; then: {}", printed(&done));
    assert_eq!(done.status.code(), Some(0), "{}", printed(&done));
    let again = pipeline.site.gateway_command(&["repair"]);
    assert_eq!(again.status.code(), Some(0), "nothing is left to be done: {}", printed(&again));

    pipeline.site.start_gateway();
    eventually_blocking("all to be confirmed", PATIENCE, || {
        let status = pipeline.site.status()?;
        adds_up(&status);
        (status["waiting"] == 0).then_some(())
    });
    assert_eq!(pipeline.site.status().unwrap()["damaged"], 0);
    let verified = pipeline.site.gateway_command(&["verify"]);
    assert!(verified.status.success(), "{}", printed(&verified));
    pipeline.check(&safe);
}

/// A person has written off what the disk destroyed, and the old disk is found later. One of the senders has sent its messages
/// again meanwhile.
#[test]
fn what_was_written_off_and_is_found_later_returns_once_under_its_old_id() {
    let options = SiteOptions { outbox: "segment_records = 200\n".into(), ..SiteOptions::default() };
    let mut pipeline = Pipeline::start(options);
    let safe = pipeline.backlog(150);
    pipeline.site.stop_gateway();
    let (data, copy) = (pipeline.site.path("data"), pipeline.site.path("old-disk"));
    copy_directory(&data, &copy);
    destroy(&data);
    pipeline.site.start_gateway();
    let verified = pipeline.site.gateway_command(&["verify", "--json"]);
    let ranges: Vec<(u64, u64)> = serde_json::from_value(json(&verified)["missing_ranges"].clone()).unwrap();
    let missing = json(&verified)["missing"].as_u64().unwrap();
    assert!(missing > 0, "nothing was destroyed: the run proves nothing");
    for (from, through) in &ranges {
        let (from, through) = (from.to_string(), through.to_string());
        let range = ["--lane", "clinical", "--sequence", &from, "--through", &through];
        let words = [&["outbox", "void", "--reason", "a bad sector", "--yes"][..], &range[..]].concat();
        let done = pipeline.site.gateway_command(&words);
        assert!(done.status.success(), "{}", printed(&done));
    }
    pipeline.proxy.set(Fault::Pass);
    let drained = |pipeline: &Pipeline| {
        eventually_blocking("all to be confirmed", PATIENCE, || {
            let status = pipeline.site.status()?;
            adds_up(&status);
            (status["waiting"] == 0 && status["held"] == 0).then_some(())
        });
    };
    drained(&pipeline);
    assert_eq!(pipeline.site.status().unwrap()["damaged"], missing);
    let mut stream = connect(pipeline.site.door).unwrap();
    for message in &safe[0] {
        assert!(positive(&exchange(&mut stream, message).unwrap()));
    }
    pipeline.site.stop_gateway();

    let from = copy.display().to_string();
    let plan = pipeline.site.gateway_command(&["repair", "--from", &from]);
    assert_eq!(plan.status.code(), Some(65));
    assert!(printed(&plan).contains("would go to the quarantine"), "{}", printed(&plan));
    for _ in 0..2 {
        let done = pipeline.site.gateway_command(&["repair", "--yes", "--from", &from]);
        assert_eq!(done.status.code(), Some(0), "{}", printed(&done));
    }
    pipeline.site.start_gateway();
    let listed = pipeline.site.gateway_command(&["quarantine", "list", "--json"]);
    let listed = String::from_utf8(listed.stdout).unwrap();
    let entries: Vec<serde_json::Value> =
        listed.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(entries.len() as u64, missing, "each once: {listed}");
    let (mut returned, mut repeated) = (0, 0);
    for entry in &entries {
        let (id, source) = (entry["id"].to_string(), entry["source"].as_str().unwrap());
        assert_eq!((&entry["reason"], &entry["door"]), (&"written-off record".into(), &"store".into()));
        let released = pipeline.site.gateway_command(&["quarantine", "release", &id]);
        assert!(released.status.success(), "{}", printed(&released));
        let printed = printed(&released);
        if printed.contains("stored before") {
            repeated += 1;
        } else {
            returned += 1;
            let old = source.rsplit(' ').next().unwrap();
            assert!(printed.starts_with(old), "{printed}: {source}");
        }
    }
    println!("{returned} returned, {repeated} had been sent again");
    assert!(returned > 0 && repeated > 0);
    drained(&pipeline);
    pipeline.site.stop_gateway();
    let done = pipeline.site.gateway_command(&["repair", "--yes", "--from", &from]);
    assert_eq!(done.status.code(), Some(0), "{}", printed(&done));
    pipeline.site.start_gateway();
    let listed = pipeline.site.gateway_command(&["quarantine", "list", "--json"]);
    assert!(listed.stdout.is_empty(), "what has returned is known: {}", printed(&listed));
    // Their order is that of their return. Nothing is there twice: beside them are only the entries.
    let proof = pipeline.prove(&safe);
    assert_eq!((proof.lost, proof.repeated, proof.chain_ok), (0, ranges.len(), true), "{proof:?}");
}
