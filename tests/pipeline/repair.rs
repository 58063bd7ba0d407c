//! `practice-gateway repair` on the real programs: what the disk has destroyed beyond the daemon's own salvage comes back
//! from a copy, the lane goes on by itself, and the hub has all of it once and in order.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use crate::harness::road::{PATIENCE, Random, Road, copy_directory};
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

/// Zeroes two stretches of the second segment: long enough to take all copies of some of its records.
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

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

fn json(output: &Output) -> serde_json::Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", said(output)))
}

#[test]
fn what_the_disk_has_destroyed_comes_back_from_a_copy_and_the_lane_goes_on_by_itself() {
    let options = SiteOptions { outbox: "segment_records = 200\n".into(), ..SiteOptions::default() };
    let mut road = Road::start(options);
    let safe = road.backlog(150);
    road.site.stop_gateway();
    let (data, copy) = (road.site.path("data"), road.site.path("old-disk"));
    copy_directory(&data, &copy);
    destroy(&data);

    // The daemon salvages what it can, and stands before the rest.
    road.site.start_gateway();
    let verified = road.site.gateway_command(&["verify", "--json"]);
    assert_eq!(verified.status.code(), Some(65), "{}", said(&verified));
    let missing = json(&verified)["missing"].as_u64().unwrap();
    let ranges: Vec<(u64, u64)> = serde_json::from_value(json(&verified)["missing_ranges"].clone()).unwrap();
    assert!(missing > 0, "nothing was destroyed: the run proves nothing");
    println!("missing: {ranges:?}");
    road.proxy.set(Fault::Pass);
    road.site.wait_for("confirmed_total", ranges[0].0 - 1, PATIENCE);
    eventually_blocking("the lane stands", PATIENCE, || (road.site.status()?["held"] == 1).then_some(()));
    let status = road.site.status().unwrap();
    adds_up(&status);
    assert_eq!(status["damaged"], missing);
    let running = road.site.gateway_command(&["repair"]);
    assert_eq!(running.status.code(), Some(75), "{}", said(&running));
    assert!(said(&running).contains("systemctl stop practice-gateway"), "{}", said(&running));
    road.site.stop_gateway();

    // The dry run says what there is and what there is not, and writes nothing.
    let before = image(&data);
    let alone = road.site.gateway_command(&["repair", "--json"]);
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
    assert!(lane["lost"][0]["after"]["source"].as_str().unwrap().starts_with("urn:"), "{lane}");
    let from = copy.display().to_string();
    let plan = road.site.gateway_command(&["repair", "--from", &from]);
    assert_eq!(plan.status.code(), Some(65));
    for words in ["would be recovered", "Nothing was changed. Add --yes to do it."] {
        assert!(said(&plan).contains(words), "{}", said(&plan));
    }
    // The image of a disk: the same bytes at other places, in one file.
    let disk = road.site.path("disk.img");
    let mut bytes = vec![0x5a; 4096 * 3];
    databases(&copy).iter().rev().for_each(|file| bytes.extend(std::fs::read(file).unwrap()));
    std::fs::write(&disk, bytes).unwrap();
    let plan = road.site.gateway_command(&["repair", "--json", "--from", &disk.display().to_string()]);
    let lane = &json(&plan)["lanes"][0];
    assert_eq!((&lane["missing"], &lane["lost"]), (&missing.into(), &serde_json::json!([])), "{lane}");
    assert!(image(&data) == before, "a dry run has written");

    // Killed at random moments it can be run again.
    let mut random = Random::seeded();
    let mut kills = 0;
    let done = loop {
        let mut repair = Command::new(GATEWAY)
            .args(["repair", "--yes", "--from", &from, "--config"])
            .arg(road.site.gateway_config())
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
    println!("killed {kills} times; then: {}", said(&done));
    assert_eq!(done.status.code(), Some(0), "{}", said(&done));
    let again = road.site.gateway_command(&["repair"]);
    assert_eq!(again.status.code(), Some(0), "nothing is left to be done: {}", said(&again));

    road.site.start_gateway();
    eventually_blocking("all to be confirmed", PATIENCE, || {
        let status = road.site.status()?;
        adds_up(&status);
        (status["waiting"] == 0).then_some(())
    });
    assert_eq!(road.site.status().unwrap()["damaged"], 0);
    let verified = road.site.gateway_command(&["verify"]);
    assert!(verified.status.success(), "{}", said(&verified));
    road.judge(&safe);
}
