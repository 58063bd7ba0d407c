//! `submit` and `quarantine` as an operator in the surgery types them, with the real daemon and a real hub.

use std::io::Write as _;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use crate::harness;
use crate::harness::proof::Proof;
use crate::harness::senders::{connect, exchange, message, positive};
use crate::harness::site::{Site, SiteOptions};
use crate::harness::{Certificates, Mosquitto};

const GATEWAY: &str = env!("CARGO_BIN_EXE_practice-gateway");
const PATIENCE: Duration = Duration::from_secs(60);

fn text(output: &Output) -> (Option<i32>, String, String) {
    let lossy = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), lossy(&output.stdout), lossy(&output.stderr))
}

/// Adds a key for the MLLP door, whose table is the one before `[uplink]`.
fn with_door_key(site: &Site, key: &str) {
    let config = std::fs::read_to_string(site.gateway_config()).unwrap();
    std::fs::write(site.gateway_config(), config.replace("[uplink]", &format!("{key}\n[uplink]"))).unwrap();
}

#[test]
fn files_are_submitted_in_order_and_waited_for_until_the_hub_has_them() {
    let certificates = Certificates::new();
    let mut broker = Mosquitto::start(&certificates);
    let mut site = Site::new(&certificates, broker.port(), broker.port(), SiteOptions::default());
    broker.kill();
    site.start_gateway();
    let bodies: Vec<Vec<u8>> = (0..30).map(|n| message(7, n, n)).collect();
    let mut words =
        vec!["submit", "--lane", "clinical", "--type", "hl7v2.oru_r01", "--wait-confirmed", "--timeout"];
    let files: Vec<String> = bodies
        .iter()
        .enumerate()
        .map(|(n, body)| {
            let file = site.path(&format!("{n}.hl7"));
            std::fs::write(&file, body).unwrap();
            file.display().to_string()
        })
        .collect();
    words.push("0");
    words.extend(files.iter().map(String::as_str));
    let (code, out, err) = text(&site.gateway_command(&words));
    assert_eq!((code, out.lines().count()), (Some(75), 30), "stored, and no hub is there: {err}");
    assert!(err.contains("stored, but the hub has not confirmed within 0 s"), "{err}");
    assert!(!err.contains('\u{1b}'), "no progress line where there is no terminal: {err}");

    broker.restart();
    site.start_hub();
    words[6 + 1] = "60";
    let (code, out, err) = text(&site.gateway_command(&words));
    assert_eq!(code, Some(0), "{err}");
    assert!(
        out.lines().all(|line| line.ends_with(" (stored before)")),
        "the same again is a repetition: {out}"
    );
    // From the standard input.
    let mut child = Command::new(GATEWAY)
        .args(["submit", "--lane", "clinical", "--type", "t", "--json", "--wait-confirmed", "-", "--config"])
        .arg(site.gateway_config())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"from a pipe").unwrap();
    let (code, out, _) = text(&child.wait_with_output().unwrap());
    let all: serde_json::Value = serde_json::from_str(out.lines().last().unwrap()).unwrap();
    assert_eq!((code, &all["confirmed"], &all["accepted"]), (Some(0), &true.into(), &1.into()), "{out}");
    site.stop();
    let mut safe = bodies;
    safe.push(b"from a pipe".to_vec());
    let proof = Proof::of(&site.store(), &[safe]).expect("the hub's files");
    assert_eq!((proof.delivered, proof.lost, proof.repeated, proof.out_of_order), (31, 0, 0, 0));
}

#[test]
fn what_the_door_refuses_is_listed_shown_released_and_discarded() {
    let certificates = Certificates::new();
    let options = SiteOptions::default();
    let mut site = Site::new(&certificates, harness::ports::reserve(), harness::ports::reserve(), options);
    with_door_key(&site, "allow_senders = [\"LAB1|TEST\"]");
    site.start_gateway();
    let mut stream = connect(site.door).expect("the door");
    let refused = message(2, 1, 100);
    assert!(!positive(&exchange(&mut stream, &refused).expect("an answer")));
    assert!(!positive(&exchange(&mut stream, b"9434765919 without a header").expect("an answer")));
    let (code, list, _) = text(&site.gateway_command(&["quarantine", "list"]));
    assert_eq!(code, Some(0));
    for word in ["mllp", "127.0.0.1", "sender not allowed", "no MSH", "LAB2%7CTEST"] {
        assert!(list.contains(word), "{word}: {list}");
    }
    assert_eq!(site.status().expect("a status")["refused_in_quarantine"], 2);
    let output = site.gateway_command(&["quarantine", "show", "1", "--bytes"]);
    assert_eq!((output.status.code(), output.stdout), (Some(0), refused));

    let (code, out, err) = text(&site.gateway_command(&["quarantine", "release", "1"]));
    assert_eq!((code, err.as_str()), (Some(0), ""), "{out}");
    let id = out.split(' ').next().unwrap().to_owned();
    let (_, shown, _) = text(&site.gateway_command(&["outbox", "show", &id, "--json"]));
    assert!(shown.contains("hl7v2.oru_r01") && shown.contains("LAB2%7CTEST"), "{shown}");
    assert_eq!(text(&site.gateway_command(&["quarantine", "release", "2"])).0, Some(65), "it says no type");
    let discard = ["quarantine", "discard", "2", "--reason", "a test of the lab"];
    assert_eq!(text(&site.gateway_command(&discard)).0, Some(0));
    assert_eq!(text(&site.gateway_command(&["quarantine", "discard", "2"])).0, Some(64), "why is not said");
    site.wait_for("accepted_total", 1, PATIENCE);
    assert_eq!(site.status().expect("a status")["refused_in_quarantine"], 0);
    site.stop();
    let log = site.log("gateway");
    for printed in
        ["Released an entry from quarantine", "Discarded an entry of the quarantine", "a test of the lab"]
    {
        assert!(log.contains(printed), "{printed}: {log}");
    }
    assert!(!log.contains("9434765919") && !log.contains("EX2"), "what is in them is not logged: {log}");
    // After a restart the decisions are still in effect.
    site.start_gateway();
    let (_, list, _) = text(&site.gateway_command(&["quarantine", "list", "--json"]));
    assert_eq!(list, "");
    site.stop();
}

#[test]
fn a_kill_after_a_release_stores_nothing_twice() {
    let certificates = Certificates::new();
    let options = SiteOptions::default();
    let mut site = Site::new(&certificates, harness::ports::reserve(), harness::ports::reserve(), options);
    with_door_key(&site, "allow_senders = [\"LAB1|TEST\"]");
    site.start_gateway();
    let mut stream = connect(site.door).expect("the door");
    assert!(!positive(&exchange(&mut stream, &message(2, 1, 100)).expect("an answer")));
    let entries = site.path("data/outbox/quarantine");
    let entry = std::fs::read_dir(&entries)
        .unwrap()
        .map(|e| e.unwrap().path())
        .find(|p| p.extension().is_some_and(|e| e == "entry"))
        .expect("an entry");
    let kept = std::fs::read(&entry).unwrap();
    assert_eq!(text(&site.gateway_command(&["quarantine", "release", "1"])).0, Some(0));
    site.kill_gateway();
    // As if the kill had come between the durable answer and the removal.
    std::fs::write(&entry, kept).unwrap();
    site.start_gateway();
    let (code, out, err) = text(&site.gateway_command(&["quarantine", "release", "1"]));
    assert!(code == Some(0) && out.ends_with(" (stored before)\n"), "{out}{err}");
    let status = site.status().expect("a status");
    assert_eq!((&status["accepted_total"], &status["refused_in_quarantine"]), (&1.into(), &0.into()));
    site.stop();
}
