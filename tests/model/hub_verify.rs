//! `practice-hub verify` names exactly the sequence at which the store was changed; `list` shows the fleet.

use std::fs;
use std::path::Path;

use base64::Engine as _;
use pgw_core::committer::Record as _;
use pgw_core::transaction::unix_millis_now;
use pgw_core::wire::presence::Status;
use pgw_core::wire::said::{BootId, Origin};
use pgw_core::wire::signature::KeyId;
use pgw_core::wire::to_json;
use pgw_core::wire::topic::Kind;
use pgw_hub::fleet::Fleet;
use pgw_hub::gateways::{Gateways, KeyState};
use pgw_hub::report;
use pgw_hub::store::ndjson::{NdjsonStore, files_of};
use pgw_hub::store::walk::Fault;
use pgw_hub::store::{Entry, LaneName, Store, Through, line};
use pgw_hub::verify::{VerifiedLane, all};

use crate::hub_kit::{Sender, lane, lane_of, listed};

/// Nine transactions in three groups and files; `change` gets the lines of transactions, which are then written back.
fn after(change: impl FnOnce(&mut Vec<String>)) -> (VerifiedLane, Sender) {
    let directory = tempfile::tempdir().unwrap();
    let mut sender = Sender::new(&lane("clinical"), 1);
    let mut store = NdjsonStore::open(directory.path(), 1 << 30).unwrap();
    for _ in 0..3 {
        store.append(&sender.take(3)).unwrap();
    }
    drop(store);
    let path = files_of(directory.path(), &sender.lane).unwrap().remove(0);
    let mut lines: Vec<_> = fs::read_to_string(&path).unwrap().lines().map(str::to_owned).collect();
    change(&mut lines);
    fs::write(&path, lines.join("\n") + "\n").unwrap();
    (all(directory.path(), &Gateways::default()).unwrap().remove(0), sender)
}

fn faults(report: &VerifiedLane) -> Vec<Fault> {
    report.faults.iter().map(|(_, _, fault)| fault.clone()).collect()
}

fn line_of(lines: &[String], sequence: u64) -> usize {
    lines.iter().position(|line| line.contains(&format!(r#""sequence":"{sequence:020}""#))).unwrap()
}

#[test]
fn an_untouched_lane_is_whole() {
    let (report, sender) = after(|_| {});
    assert_eq!((report.transactions, faults(&report)), (9, vec![]));
    assert_eq!((report.watermarks[0].through, report.watermarks[0].chain), (9, sender.chain));
}

#[test]
fn a_missing_one_is_named() {
    let (report, sender) = after(|lines| {
        let at = line_of(lines, 5);
        lines.remove(at);
    });
    assert_eq!(faults(&report), [Fault::Missing { epoch: sender.epoch, from: 5, to: 5 }]);
    assert_eq!(report.faults[0].1, 7, "and the line at which it is missed");
}

#[test]
fn a_missing_tail_of_a_group_is_named_too() {
    let (report, sender) = after(|lines| {
        let at = line_of(lines, 6);
        lines.remove(at);
    });
    let watermarks = Fault::Watermarks { epoch: sender.epoch, after: 5 };
    assert_eq!(faults(&report), [watermarks, Fault::Missing { epoch: sender.epoch, from: 6, to: 6 }]);
}

#[test]
fn an_altered_one_is_named_and_no_other() {
    let altered = |report: &VerifiedLane, sequence| {
        assert_eq!(faults(report), [Fault::Altered { epoch: report.watermarks[0].epoch, sequence }]);
    };
    let body = |n: u64| base64::engine::general_purpose::STANDARD.encode(format!("body \u{e9} {n}"));
    for what in ["body", "time", "type", "sender", "kind", "clock", "another attribute", "id"] {
        let (report, _) = after(|lines| {
            let at = line_of(lines, 4);
            let changed = match what {
                "body" => lines[at].replace(&body(4), &body(8)),
                "time" => lines[at].replace("22:12", "22:13"),
                "type" => lines[at].replace("oru_r01", "oru_r02"),
                "sender" => lines[at].replace("hl7v2:", "hl7v3:"),
                "kind" => lines[at].replace(r#""kind":"transaction""#, r#""kind":"test""#),
                "clock" => lines[at].replace(r#""clock":"synced""#, r#""clock":"holdover""#),
                "another attribute" => lines[at].replace(r#","epoch":"#, r#","new":"x","epoch":"#),
                _ => lines[at].replace(r#""id":"0"#, r#""id":"1"#),
            };
            assert_ne!(changed, lines[at], "{what}");
            lines[at] = changed;
        });
        altered(&report, 4);
    }
    // The chain value itself: later ones still follow from the true one.
    let (report, _) = after(|lines| {
        let at = line_of(lines, 4);
        let start = lines[at].find(r#""chain":""#).unwrap() + 9;
        let other = if &lines[at][start..=start] == "a" { "b" } else { "a" };
        lines[at].replace_range(start..=start, other);
    });
    altered(&report, 4);
}

#[test]
fn swapped_and_repeated_ones_are_named() {
    let (report, sender) = after(|lines| {
        let (a, b) = (line_of(lines, 4), line_of(lines, 5));
        lines.swap(a, b);
    });
    let epoch = sender.epoch;
    let found = faults(&report);
    assert_eq!(found[0], Fault::Missing { epoch, from: 4, to: 4 });
    assert_eq!(found[1], Fault::Repeated { epoch, sequence: 4, after: 5 });
    assert_eq!(found.len(), 2);

    let (report, _) = after(|lines| {
        let at = line_of(lines, 5);
        lines.insert(at + 1, lines[at].clone());
    });
    assert_eq!(faults(&report), [Fault::Repeated { epoch, sequence: 5, after: 5 }]);
}

#[test]
fn a_foreign_one_and_an_unreadable_line_are_named() {
    let (report, sender) = after(|lines| {
        let at = line_of(lines, 5);
        lines[at] = lines[at].replace("/pgw/B86022/", "/pgw/A81001/");
    });
    let epoch = sender.epoch;
    assert!(
        matches!(&faults(&report)[0], Fault::Foreign { sequence: 5, owner, .. } if owner == "/pgw/A81001/gw1/clinical")
    );
    let (report, _) = after(|lines| {
        let at = line_of(lines, 5);
        lines[at].truncate(100);
    });
    assert_eq!(
        faults(&report),
        [Fault::Unreadable { epoch, after: 4 }, Fault::Missing { epoch, from: 5, to: 5 }]
    );
}

#[test]
fn a_number_given_again_is_checked_against_the_stored_transaction() {
    let directory = tempfile::tempdir().unwrap();
    let mut old = Sender::new(&lane("clinical"), 1);
    let first = old.take(5);
    let mut new = Sender::after(&old, 2);
    let mut again: Vec<_> = first[3..].iter().map(|entry| new.again(entry)).collect();
    again.iter_mut().for_each(|entry| entry.keep_only_number());
    let mut store = NdjsonStore::open(directory.path(), 1 << 30).unwrap();
    store.append(&first).unwrap();
    store.append(&again).unwrap();
    store.append(&new.take(1)).unwrap();
    drop(store);
    let report = all(directory.path(), &Gateways::default()).unwrap().remove(0);
    assert_eq!((report.transactions, report.advances, faults(&report)), (6, 2, vec![]));

    let path = files_of(directory.path(), &old.lane).unwrap().remove(0);
    let text = fs::read_to_string(&path).unwrap();
    // The stored transaction is altered: both of its numbers are reported.
    fs::write(&path, text.replacen("22:12:10.123Z\",\"type", "22:12:10.124Z\",\"type", 5)).unwrap();
    let found = faults(&all(directory.path(), &Gateways::default()).unwrap().remove(0));
    let id = first[3].envelope.id();
    assert!(found.contains(&Fault::Altered { epoch: old.epoch, sequence: 4 }), "{found:?}");
    assert!(found.contains(&Fault::Lost { epoch: new.epoch, sequence: 1, id }), "{found:?}");
    // It is missing.
    let without: String = text
        .lines()
        .filter(|line| !line.contains(r#""sequence":"00000000000000000004""#))
        .map(|line| format!("{line}\n"))
        .collect();
    fs::write(&path, without).unwrap();
    let found = faults(&all(directory.path(), &Gateways::default()).unwrap().remove(0));
    assert!(found.contains(&Fault::Lost { epoch: new.epoch, sequence: 1, id }), "{found:?}");
}

#[test]
fn the_report_says_whether_all_is_well() {
    let directory = tempfile::tempdir().unwrap();
    let mut sender = Sender::new(&lane("clinical"), 1);
    let mut store = NdjsonStore::open(directory.path(), 1 << 30).unwrap();
    store.append(&sender.take(3)).unwrap();
    store.append(&Sender::new(&lane_of("A81001", "gw2", "urgent"), 4).take(2)).unwrap();
    // Beside a running hub.
    let good = report::verify(directory.path(), &Gateways::default(), None).unwrap();
    assert!(good.ok);
    assert!(good.text.ends_with("2 lanes, 5 transactions: whole\n"), "{}", good.text);
    assert!(
        report::verify(directory.path(), &Gateways::default(), Some("B86022/gw1"))
            .unwrap()
            .text
            .ends_with("1 lanes, 3 transactions: whole\n")
    );
    assert!(
        !report::verify(directory.path(), &Gateways::default(), Some("B8602")).unwrap().ok,
        "nothing was checked"
    );
    damage(&files_of(directory.path(), &sender.lane).unwrap()[0]);
    let bad = report::verify(directory.path(), &Gateways::default(), None).unwrap();
    assert!(!bad.ok);
    assert!(
        bad.text.contains("sequence 2 of epoch 00000000-0000-0000-0000-000000000001 is altered"),
        "{}",
        bad.text
    );
}

fn damage(path: &Path) {
    let text = fs::read_to_string(path).unwrap();
    let at = text.find(r#""sequence":"00000000000000000002""#).unwrap();
    let (before, after) = text.split_at(at);
    let start = before.rfind("hl7v2.oru").unwrap();
    fs::write(path, format!("{}hl7v2.orx{}{after}", &before[..start], &before[start + 9..])).unwrap();
}

#[test]
fn the_fleet_is_listed_from_the_store_and_from_what_gateways_said() {
    let directory = tempfile::tempdir().unwrap();
    let mut sender = Sender::new(&lane("clinical"), 1);
    let mut store = NdjsonStore::open(directory.path(), 1 << 30).unwrap();
    store.append(&sender.take(3)).unwrap();
    let mut fleet = Fleet::open(directory.path());
    let (practice, gateway) = (sender.lane.practice.clone(), sender.lane.gateway.clone());
    let origin = |boot, count| Origin { boot: BootId([boot; 8]), count, key: KeyId([0; 8]) };
    let status = |word: &str, session| to_json(&Status::new(word, session, "", String::new()));
    let mut say = |kind, payload: Vec<u8>, origin: Origin| {
        fleet.record(&practice, &gateway, &kind, &origin.end(payload), false).unwrap();
    };
    say(Kind::Status, status("online", 7), origin(1, 2));
    say(Kind::Status, status("offline", 6), origin(1, 1));
    let health = br#"{"schema":1,"state":"buffering","state_code":1,"waiting":12}"#;
    say(Kind::Health, health.to_vec(), origin(1, 3));
    fleet.save(true);
    let list = report::list(directory.path(), unix_millis_now()).unwrap();
    let row = list.text.lines().nth(1).unwrap().split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(row.starts_with("B86022/gw1 clinical 3 0 s ago online buffering 12 "), "{row}");
    assert!(list.ok);
}

/// A store in two groups whose heads are kept.
fn signed_store(directory: &Path) -> Sender {
    let mut sender = Sender::new(&lane("clinical"), 1);
    let mut store = NdjsonStore::open(directory, 1 << 30).unwrap();
    for _ in 0..2 {
        let mut group = sender.take(3);
        group[2].keep_head(Some(sender.key.public().id()));
        store.append(&group).unwrap();
    }
    sender
}

#[test]
fn kept_signatures_are_verified_and_one_that_is_not_the_keys_is_a_fault() {
    let directory = tempfile::tempdir().unwrap();
    let sender = signed_store(directory.path());
    let (list, key) = (listed(&[&sender.lane]), sender.key.public().id());
    let good = report::verify(directory.path(), &list, None).unwrap();
    let line = format!("epoch {} signed with key {key} through 6\n", sender.epoch);
    assert!(good.ok && good.text.contains(&line), "{}", good.text);
    // Without the list the chain is whole, and nobody can say who made it.
    let unknown = report::verify(directory.path(), &Gateways::default(), None).unwrap();
    assert!(unknown.ok && unknown.text.contains("no signature could be verified"), "{}", unknown.text);
    assert!(unknown.text.contains(&format!("has no key {key}")), "{}", unknown.text);
    // A stolen key, and an end that nobody has signed.
    let mut revoked = list.clone();
    revoked.gateways.values_mut().for_each(|gateway| gateway.keys[0].state = KeyState::Revoked);
    NdjsonStore::open(directory.path(), 1 << 30).unwrap().append(&sender.clone().take(2)).unwrap();
    let doubtful = report::verify(directory.path(), &revoked, None).unwrap();
    assert!(doubtful.text.contains(&format!("key {key} is revoked")), "{}", doubtful.text);
    assert!(doubtful.text.contains("NOT signed: sequences 7 to 8;"), "{}", doubtful.text);
    // A signature of another number, and one that says it belongs elsewhere.
    let path = files_of(directory.path(), &sender.lane).unwrap().remove(0);
    let text = fs::read_to_string(&path).unwrap();
    let heads: Vec<&str> = text.lines().filter(|line| line.starts_with(r#"{"pgw":"head""#)).collect();
    let signature = |head: &str| head.split(r#""signature":""#).nth(1).unwrap()[..88].to_owned();
    fs::write(&path, text.replace(&signature(heads[0]), &signature(heads[1]))).unwrap();
    let found = faults(&all(directory.path(), &list).unwrap().remove(0));
    assert_eq!(found, [Fault::Signature { epoch: sender.epoch, sequence: 3, key }]);
    // One that cannot be read: nothing has to be sent again for it.
    fs::write(&path, text.replace(heads[0], &heads[0].replace("signature", "signatur"))).unwrap();
    let damaged = report::verify(directory.path(), &list, None).unwrap();
    assert!(
        !damaged.ok && damaged.text.contains("a signature cannot be read (after sequence 3"),
        "{}",
        damaged.text
    );
    assert!(!damaged.text.contains("practice-hub resend"), "{}", damaged.text);
    fs::write(&path, text.replace(heads[1], heads[0])).unwrap();
    let found = faults(&all(directory.path(), &list).unwrap().remove(0));
    assert_eq!(found, [Fault::Head { epoch: sender.epoch, sequence: 3 }]);
}

/// The lines of these groups as a lane file, whatever they say.
fn file_of(directory: &Path, name: &LaneName, groups: &[(Vec<Through>, &[Entry])]) {
    let mut text = Vec::new();
    for (ends, group) in groups {
        line::write_group(&mut text, "t", ends);
        group
            .iter()
            .for_each(|entry| line::write_record(&mut text, &entry.envelope, entry.body.as_ref().unwrap()));
    }
    let above = directory.join(name.practice.as_str()).join(name.gateway.as_str());
    fs::create_dir_all(&above).unwrap();
    fs::write(above.join(format!("{}.ndjson", name.lane)), text).unwrap();
}

#[test]
fn an_epoch_that_begins_or_continues_elsewhere_than_at_the_end_is_a_fault() {
    let directory = tempfile::tempdir().unwrap();
    let mut first = Sender::new(&lane("clinical"), 1);
    let mut earlier = first.clone();
    let old = first.take(3);
    earlier.take(2);
    let (mut good, mut elsewhere) = (Sender::after(&first, 2), Sender::after(&earlier, 2));
    let fourth = first.clone().take(1);
    let verify = |groups: &[(Vec<Through>, &[Entry])]| {
        file_of(directory.path(), &first.lane, groups);
        faults(&all(directory.path(), &Gateways::default()).unwrap().remove(0))
    };
    let (new, other) = (good.take(2), elsewhere.take(2));
    assert_eq!(verify(&[(vec![], &old), (vec![first.end()], &new)]), []);
    let fault = Fault::Link { epoch: elsewhere.epoch, sequence: 1 };
    assert_eq!(verify(&[(vec![], &old), (vec![first.end()], &other)]), [fault]);
    let fault = Fault::Link { epoch: first.epoch, sequence: 4 };
    let ends = vec![first.end(), good.end()];
    assert_eq!(verify(&[(vec![], &old), (vec![first.end()], &new), (ends, &fourth)]), [fault]);
}
