//! The folder door of the real daemon: files through faults, kills, full stores and slow writers.
//!
//! The oracle: every file is stored exactly once, in the order of the folder, and has one slip; nothing of its name is
//! anywhere but in the sealed store.

use std::collections::BTreeMap;
use std::fs::{self, File, FileTimes};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use serde_json::Value;

use crate::harness;
use crate::harness::proof::Proof;
use crate::harness::site::{Site, SiteOptions, adds_up};
use crate::harness::{Certificates, Mosquitto, eventually_blocking};

const PATIENCE: Duration = Duration::from_secs(120);
/// A synthetic number with a valid check digit; outside the folder it must appear only sealed.
const PATIENT: &str = "MUSTER_ERIKA_9434765919";

/// A site with folders: `in`, and others as given.
fn site(upstream: u16, certificates: &Certificates, outbox: &str, folder: &str) -> Site {
    let folders = format!("{outbox}\n[[folder]]\npath = \"in\"\nrescan_seconds = 0.5\n{folder}\n");
    let options = SiteOptions {
        outbox: folders,
        uplink: String::from("[log]\nlevel = \"trace\"\n"),
        ..SiteOptions::default()
    };
    let site = Site::new(certificates, upstream, upstream, options);
    fs::create_dir(site.path("in")).expect("made");
    site
}

/// A gateway without a centre.
fn alone(outbox: &str, folder: &str) -> (Site, Certificates) {
    let certificates = Certificates::new();
    (site(harness::ports::reserve(), &certificates, outbox, folder), certificates)
}

/// Renames a file into place, with an age given by its number: later numbers are younger.
fn put(site: &Site, folder: &str, name: &str, content: &[u8], number: u64) {
    let draft = site.path("draft");
    fs::write(&draft, content).expect("written");
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000 + number);
    File::options()
        .write(true)
        .open(&draft)
        .and_then(|file| file.set_times(FileTimes::new().set_modified(time)))
        .expect("dated");
    fs::rename(draft, site.path(folder).join(name)).expect("renamed");
}

fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).expect("a directory");
    let mut names: Vec<String> =
        entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// SHA-256 by position, of all slips.
fn receipts(site: &Site) -> BTreeMap<u64, (String, String)> {
    let mut found = BTreeMap::new();
    for name in names(&site.path("in/accepted")).iter().filter(|name| name.ends_with(".json")) {
        let text = fs::read(site.path("in/accepted").join(name)).expect("a receipt");
        let receipt: Value = serde_json::from_slice(&text).expect("JSON");
        let text = |key: &str| receipt[key].as_str().expect("text").to_owned();
        let position = receipt["position"].as_u64().expect("a position");
        assert!(found.insert(position, (text("sha256"), text("id"))).is_none(), "two for {position}");
    }
    found
}

fn wait_for_receipts(site: &Site, count: usize) -> BTreeMap<u64, (String, String)> {
    eventually_blocking(&format!("{count} receipts"), PATIENCE, || {
        let there = site.path("in/accepted").is_dir() && names(&site.path("in/accepted")).len() >= count;
        there.then_some(())
    });
    // The files are removed after their slips are written.
    eventually_blocking("the files to be put away", PATIENCE, || {
        let own = [".taken", "accepted", "rejected"];
        (names(&site.path("in")) == own && names(&site.path("in/.taken")).is_empty()).then_some(())
    });
    receipts(site)
}

fn sha256(content: &[u8]) -> String {
    pgw_gateway::ingest::folder::rules::sha256(content)
}

/// Bytes without a known type, the same for the same number.
fn content(number: u64, bytes: usize) -> Vec<u8> {
    let mut random = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut out = format!("UNB {number} ").into_bytes();
    while out.len() < bytes {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        out.extend_from_slice(&random.to_le_bytes());
    }
    out
}

fn everything_below(directory: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut all = Vec::new();
    for entry in fs::read_dir(directory).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            all.extend(everything_below(&path));
        } else if path.is_file() {
            let content = fs::read(&path).unwrap_or_default();
            all.push((path, content));
        }
    }
    all
}

fn holds(content: &[u8], words: &str) -> bool {
    content.windows(words.len()).any(|window| window == words.as_bytes())
}

#[test]
fn files_are_at_the_hub_byte_for_byte_in_order_and_their_names_are_nowhere() {
    let certificates = Certificates::new();
    let broker = Mosquitto::start(&certificates);
    let mut site = site(broker.port(), &certificates, "", "settle_seconds = 0");
    site.start_hub();
    site.start_gateway();
    let mut safe = Vec::new();
    for number in 0..200_u64 {
        let body = content(number, 1 + usize::try_from(number * number % 60_000).expect("small"));
        put(&site, "in", &format!("{PATIENT}_{number}.edi"), &body, number);
        safe.push(body);
    }
    put(&site, "in", &format!("{PATIENT}_empty"), b"", 500);
    let receipts = wait_for_receipts_with_rejects(&site, 200);
    site.wait_for("confirmed_total", 200, PATIENCE);
    let status = site.status().expect("a status");
    adds_up(&status);
    assert_eq!((&status["accepted_total"], &status["refused_total"]), (&200.into(), &0.into()), "{status}");
    assert!(!holds(status.to_string().as_bytes(), PATIENT));
    site.stop();
    let wanted: Vec<String> = safe.iter().map(|body| sha256(body)).collect();
    assert_eq!(receipts.values().map(|(sha256, _)| sha256.clone()).collect::<Vec<_>>(), wanted);
    let proof = Proof::of(&site.store(), &[safe]).expect("the hub's files");
    assert_eq!(
        (proof.lost, proof.repeated, proof.out_of_order, proof.delivered),
        (0, 0, 0, 200),
        "{proof:?}"
    );
    assert!(proof.chain_ok);
    let hub: Vec<u8> = everything_below(&site.store()).into_iter().flat_map(|(_, content)| content).collect();
    for (_, id) in receipts.values() {
        assert!(holds(&hub, id), "the hub knows the receipt's transaction");
    }
    // Everything but the folder itself: logs at the most detailed level, the store, the hub's store, the socket's
    // answers.
    let mut seen = 0;
    for (path, content) in everything_below(site.path("in").parent().expect("the site")) {
        if !path.starts_with(site.path("in")) || path.starts_with(site.path("in/accepted")) {
            seen += 1;
            assert!(!holds(&content, PATIENT) && !holds(&content, "MUSTER"), "{}", path.display());
            assert!(!holds(path.to_string_lossy().as_bytes(), PATIENT), "{}", path.display());
        }
    }
    assert!(seen > 210 && holds(site.log("gateway").as_bytes(), "TRACE"), "{seen}");
}

/// The empty file waits its time in the folder.
fn wait_for_receipts_with_rejects(site: &Site, count: usize) -> BTreeMap<u64, (String, String)> {
    eventually_blocking("the receipts", PATIENCE, || {
        let there = site.path("in/accepted").is_dir() && names(&site.path("in/accepted")).len() >= count;
        (there && names(&site.path("in")).len() == 4).then_some(())
    });
    receipts(site)
}

#[test]
fn kill_9_between_storing_and_moving_loses_and_repeats_nothing() {
    const FILES: u64 = 1_500;
    let (mut site, _certificates) = alone("", "settle_seconds = 0");
    site.start_gateway();
    let stop = Arc::new(AtomicBool::new(false));
    let (stopped, folder, draft) = (Arc::clone(&stop), site.path("in"), site.path("draft"));
    // A sender with its own pace, independent of the kills.
    let sender = std::thread::spawn(move || {
        for number in 0..FILES {
            if stopped.load(Ordering::Relaxed) {
                return;
            }
            fs::write(&draft, content(number, 700)).expect("written");
            fs::rename(&draft, folder.join(format!("{number:06}.edi"))).expect("renamed");
            std::thread::sleep(Duration::from_millis(4)); // the sender's pace
        }
    });
    let (mut kills, mut repeated, mut random) = (0, 0, 7_u64);
    while !sender.is_finished() || kills < 15 {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        std::thread::sleep(Duration::from_millis(random >> 54)); // a random moment, up to a second
        repeated += site.status().map_or(0, |status| status["duplicates_total"].as_u64().unwrap_or(0));
        site.kill_gateway();
        kills += 1;
        site.start_gateway();
    }
    stop.store(true, Ordering::Relaxed);
    sender.join().expect("the sender");
    let receipts = wait_for_receipts(&site, usize::try_from(FILES).expect("small"));
    let status = site.status().expect("a status");
    repeated += status["duplicates_total"].as_u64().expect("a number");
    println!("{kills} kills, {repeated} files found again");
    assert!(repeated > 0, "no kill came between storing and moving: the test has not tested");
    assert_eq!(status["accepted_total"], FILES, "stored once each");
    assert_eq!(status["folders_away"], Value::Null, "health has no more keys than it says");
    let wanted: Vec<String> = (0..FILES).map(|number| sha256(&content(number, 700))).collect();
    assert_eq!(receipts.values().map(|(sha256, _)| sha256.clone()).collect::<Vec<_>>(), wanted, "in order");
    assert_eq!(receipts.keys().copied().collect::<Vec<_>>(), (1..=FILES).collect::<Vec<_>>());
    site.stop();
}

/// Files written elsewhere and renamed in, as fast as possible.
fn ten_thousand(site: &Site, bytes: usize) {
    let elsewhere = site.path("elsewhere");
    fs::create_dir(&elsewhere).expect("made");
    for number in 0..10_000 {
        fs::write(elsewhere.join(format!("{number:06}.edi")), content(number, bytes)).expect("written");
    }
    for number in 0..10_000 {
        let name = format!("{number:06}.edi");
        fs::rename(elsewhere.join(&name), site.path("in").join(&name)).expect("renamed");
    }
}

fn rss(site: &Site) -> u64 {
    site.status().expect("a status")["rss_bytes"].as_u64().expect("a number")
}

#[test]
fn ten_thousand_files_at_once_are_taken_in_order() {
    let (mut site, _certificates) = alone("", "settle_seconds = 0");
    site.start_gateway();
    ten_thousand(&site, 1000);
    let (start, mut most) = (Instant::now(), 0);
    eventually_blocking("10,000 files to be accepted", 3 * PATIENCE, || {
        let status = site.status()?;
        most = most.max(status["rss_bytes"].as_u64()?);
        (status["accepted_total"] == 10_000).then_some(())
    });
    println!("10,000 files in {:.1} s; resident {most} bytes at most", start.elapsed().as_secs_f64());
    let receipts = wait_for_receipts(&site, 10_000);
    for (position, (found, _)) in &receipts {
        assert_eq!(*found, sha256(&content(position - 1, 1000)), "{position}");
    }
    site.stop();
}

/// A waiting file costs memory for its name, and none for its content. (Stored content stays in the outbox's memory
/// for a while, whichever door it came by.)
#[test]
fn ten_thousand_files_that_wait_cost_little_memory() {
    let (mut site, _certificates) = alone("min_free_bytes = 1_000_000_000_000\n", "settle_seconds = 0");
    site.start_gateway();
    let before = rss(&site);
    ten_thousand(&site, 6000);
    let closed = || site.log("gateway").matches("Left a file in its folder").count();
    let mut most = before;
    // Eight scans, each of which shows all of them.
    eventually_blocking("eight looks", PATIENCE, || {
        most = most.max(rss(&site));
        (closed() >= 8).then_some(())
    });
    println!("10,000 files wait; resident {before} bytes before, {most} at most");
    assert!(most < before + (24 << 20), "{before} bytes before, {most} at most");
    assert_eq!(names(&site.path("in")).len(), 10_003, "all are where they were");
    site.stop();
}

#[test]
fn a_file_that_is_still_being_written_is_taken_whole() {
    let (mut site, _certificates) = alone("", "settle_seconds = 0.6");
    site.start_gateway();
    let mut written = Vec::new();
    let mut file = File::create(site.path("in/slow.edi")).expect("made");
    for number in 0..20 {
        let piece = content(number, 1000);
        file.write_all(&piece).expect("written");
        written.extend_from_slice(&piece);
        std::thread::sleep(Duration::from_millis(120)); // a slow writer
    }
    // The folder was scanned all the time.
    assert_eq!(site.status().expect("a status")["accepted_total"], 0);
    drop(file);
    let receipts = wait_for_receipts(&site, 1);
    assert_eq!(receipts[&1].0, sha256(&written));
    site.stop();
}

#[test]
fn a_dat_is_taken_when_its_ctl_comes() {
    let (mut site, _certificates) = alone("", "take = \"ctl\"");
    site.start_gateway();
    for number in 0..20 {
        let mut file = File::create(site.path("in").join(format!("{number:02}.dat"))).expect("made");
        file.write_all(&content(number, 100)).expect("written");
    }
    put(&site, "in", "zz.dat", b"last", 1 << 40);
    put(&site, "in", "zz.ctl", b"", 0);
    eventually_blocking("the one that is complete", PATIENCE, || {
        (site.status()?["accepted_total"] == 1).then_some(())
    });
    for number in 0..20 {
        put(&site, "in", &format!("{number:02}.ctl"), b"", number);
    }
    let receipts = wait_for_receipts(&site, 21);
    assert_eq!(receipts[&1].0, sha256(b"last"));
    assert_eq!(receipts[&21].0, sha256(&content(19, 100)));
    site.stop();
}

#[test]
fn a_full_store_leaves_every_file_where_it_is_and_takes_them_when_it_is_free() {
    const FILES: u64 = 60;
    let certificates = Certificates::new();
    let broker = Mosquitto::start(&certificates);
    let outbox = "segment_bytes = 1_048_576\nlimit_bytes = 16_777_216\nretention_days = 0\n";
    let mut site = site(broker.port(), &certificates, outbox, "settle_seconds = 0");
    site.start_gateway();
    let mut safe = Vec::new();
    let mut put_more = |numbers: std::ops::Range<u64>| {
        for number in numbers {
            let body = content(number, 200_000);
            put(&site, "in", &format!("{number:03}.edi"), &body, number);
            safe.push(body);
        }
    };
    // More than fits; the store measures itself once a second, and on a fast disk accepts all of it before.
    put_more(0..FILES * 2 / 3);
    eventually_blocking("the store to be full", PATIENCE, || {
        (site.status()?["state"] == "refusing").then_some(())
    });
    put_more(FILES * 2 / 3..FILES);
    let accepted = || site.status().expect("a status")["accepted_total"].as_u64().expect("a number");
    let stored = eventually_blocking("what is stored to be put away", PATIENCE, || {
        let before = accepted();
        let left = names(&site.path("in")).iter().filter(|name| name.ends_with(".edi")).count() as u64;
        (left + before == FILES && left > 0 && accepted() == before).then_some(before)
    });
    assert!((5..FILES).contains(&stored), "{stored}");
    // The oldest were taken, without a gap.
    let left: Vec<String> =
        names(&site.path("in")).into_iter().filter(|name| name.ends_with(".edi")).collect();
    assert_eq!(left[0], format!("{stored:03}.edi"));
    site.start_hub();
    let receipts = wait_for_receipts(&site, usize::try_from(FILES).expect("small"));
    let wanted: Vec<String> = safe.iter().map(|body| sha256(body)).collect();
    assert_eq!(receipts.values().map(|(sha256, _)| sha256.clone()).collect::<Vec<_>>(), wanted);
    site.wait_for("confirmed_total", FILES, PATIENCE);
    site.stop();
    let proof = Proof::of(&site.store(), &[safe]).expect("the hub's files");
    assert_eq!((proof.lost, proof.repeated, proof.out_of_order), (0, 0, 0), "{proof:?}");
}

#[test]
fn a_folder_that_is_not_there_degrades_the_state_and_nothing_else() {
    let (mut site, _certificates) = alone("", "settle_seconds = 0");
    let check = |site: &Site| {
        let output = site.gateway_command(&["check"]);
        (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let (code, printed) = check(&site);
    assert!(code == Some(0) && printed.contains("OK    folder "), "{printed}");
    fs::remove_dir(site.path("in")).expect("removed");
    let (code, printed) = check(&site);
    assert!(
        code == Some(78) && printed.contains("FAIL  folder ") && printed.contains("-> create or mount it"),
        "{printed}"
    );
    site.start_gateway();
    let reason = "1 of the folders cannot be used";
    eventually_blocking("the folder to be missed", PATIENCE, || {
        let status = site.status()?;
        (status["state"] == "degraded" && status["state_reason"] == reason).then_some(())
    });
    let mut stream = harness::senders::connect(site.door).expect("the other door");
    let answer = harness::senders::exchange(&mut stream, &harness::senders::message(1, 1, 10));
    assert!(harness::senders::positive(&answer.expect("an answer")));
    fs::create_dir(site.path("in")).expect("made");
    put(&site, "in", "a", b"a", 0);
    wait_for_receipts(&site, 1);
    eventually_blocking("the state to be well", PATIENCE, || {
        (site.status()?["state"] == "buffering").then_some(())
    });
    let printed = [
        "The folder cannot be used; the folder door is closed",
        "folder.away",
        "The folder can be used again",
        "folder.back",
    ];
    // The event is published after the state has changed.
    let log = eventually_blocking("all four to be logged", PATIENCE, || {
        let log = site.log("gateway");
        printed.iter().all(|text| log.contains(text)).then_some(log)
    });
    for once in printed {
        assert_eq!(log.matches(once).count(), 1, "{once}");
    }
    site.stop();
}

#[test]
fn what_is_refused_is_counted_and_its_reason_is_beside_it() {
    let (mut site, _certificates) =
        alone("", "settle_seconds = 0\nempty_seconds = 0\nfile_limit_bytes = 1000\nkeep_accepted = true");
    site.start_gateway();
    put(&site, "in", "large.edi", &content(1, 2000), 1);
    put(&site, "in", "empty.edi", b"", 2);
    put(&site, "in", "good.edi", b"good", 3);
    eventually_blocking("all three to be put away", PATIENCE, || {
        (names(&site.path("in")).len() == 3 && names(&site.path("in/accepted")).len() == 2).then_some(())
    });
    assert_eq!(names(&site.path("in/accepted")), ["good.edi", "good.edi.receipt.json"]);
    let rejected = ["empty.edi", "empty.edi.reason.json", "large.edi", "large.edi.reason.json"];
    assert_eq!(names(&site.path("in/rejected")), rejected);
    let status = site.status().expect("a status");
    assert_eq!((&status["refused_total"], &status["accepted_total"]), (&2.into(), &1.into()), "{status}");
    assert_eq!(status["refused_in_quarantine"], 0, "it is with its sender, not in quarantine: {status}");
    site.stop();
}
