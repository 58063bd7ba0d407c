//! The quarantine's commands over the real store.

use std::path::PathBuf;

use pgw_core::transaction::{Body, Kind, Lane};
use pgw_host::exit::Exit;
use pgw_outbox::{EventType, Outbox, Submission};

use super::may_see;
use crate::cli::quarantine::{Discard, List, Quarantine, Release, Show, run};
use crate::control::store_for_tests::{self, Store, lane};
use crate::ingest::origin::Origin;
use crate::listing;

const MESSAGE: &[u8] = b"MSH|^~\\&|LAB|SURG|||1||ORU^R01|77|P|2.3\rPID|1|9434765919\r";
const SOURCE: &str = "hl7v2:LAB%7CSURG";

struct Daemon {
    control: store_for_tests::Daemon,
    outbox: Outbox,
}

impl Daemon {
    fn start() -> Self {
        let store = Store::empty();
        let outbox = store.outbox.clone();
        let control = store_for_tests::Daemon::with_limit(store, serde_json::Value::Null, 200_000);
        Self { control, outbox }
    }

    fn entry_file(&self, id: u64) -> PathBuf {
        self.control.store.path().join(format!("outbox/quarantine/{id:016x}.entry"))
    }

    fn keep(&self, reason: &'static str, source: &str, bytes: &[u8]) -> u64 {
        self.outbox.quarantine(reason, source, bytes).unwrap()
    }

    fn run(&self, command: &Quarantine) -> (Exit, Vec<u8>, String) {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let exit = run(&self.control.socket, command, &mut out, &mut err);
        (exit, out, String::from_utf8(err).unwrap())
    }

    fn release(&self, id: u64) -> (Exit, String, String) {
        let (exit, out, err) = self.run(&release(id));
        (exit, String::from_utf8(out).unwrap(), err)
    }

    fn stored(&self, lane: &Lane) -> Vec<pgw_core::transaction::Transaction> {
        match listing::tail(&self.outbox, lane) {
            0 => Vec::new(),
            tail => {
                let read = self.outbox.read(lane, 1, tail as usize, 1 << 20).unwrap();
                read.into_iter().map(|stored| stored.transaction).collect()
            }
        }
    }

    fn ids(&self) -> Vec<u64> {
        self.outbox.quarantined().unwrap().iter().map(|entry| entry.id).collect()
    }
}

fn release(id: u64) -> Quarantine {
    Quarantine::Release(Release { id, lane: None, event_type: None, content_type: None })
}

fn mllp(source: &str) -> String {
    Origin::line("mllp", "192.168.7.4".parse().unwrap(), source)
}

#[test]
fn entries_are_listed_and_shown_and_never_what_is_in_them() {
    let daemon = Daemon::start();
    daemon.keep("sender not allowed", &mllp(SOURCE), MESSAGE);
    daemon.keep("no MSH", "folder:scans", b"9434765919");
    let (exit, out, _) = daemon.run(&Quarantine::List(List { json: false }));
    let text = String::from_utf8(out).unwrap();
    assert_eq!((exit, text.lines().count()), (Exit::Done, 3), "{text}");
    for word in ["mllp", "192.168.7.4", "sender not allowed", SOURCE, " 57 ", "folder", "no MSH"] {
        assert!(text.contains(word), "{word}: {text}");
    }
    let (_, json, _) = daemon.run(&Quarantine::List(List { json: true }));
    let (_, page, _) = daemon.run(&Quarantine::Show(Show { id: 1, json: false, bytes: false }));
    for shown in [&text, &String::from_utf8(json).unwrap(), &String::from_utf8(page).unwrap()] {
        assert!(!shown.contains("9434765919") && shown.contains("192.168.7.4"), "{shown}");
    }
    let (exit, bytes, _) = daemon.run(&Quarantine::Show(Show { id: 1, json: false, bytes: true }));
    assert_eq!((exit, bytes.as_slice()), (Exit::Done, MESSAGE));
    let (exit, _, err) = daemon.run(&Quarantine::Show(Show { id: 9, json: false, bytes: true }));
    assert_eq!((exit, err.as_str()), (Exit::Refused, "there is no entry 9 in quarantine\n"));
}

#[test]
fn bytes_are_for_root_and_the_daemon_alone() {
    assert!(may_see(0, 990) && may_see(990, 990));
    assert!(!may_see(1000, 990) && !may_see(990, 991));
    let refused = pgw_host::control::ClientError::NotPermitted(String::new());
    assert_eq!(Exit::from(refused.consequence()), Exit::NotPermitted);
}

#[test]
fn a_release_is_a_submission_and_removes_its_entry() {
    let daemon = Daemon::start();
    let id = daemon.keep("sender not allowed", &mllp(SOURCE), MESSAGE);
    let (exit, out, err) = daemon.release(id);
    assert_eq!((exit, err.as_str()), (Exit::Done, ""));
    let stored = daemon.stored(&lane());
    assert_eq!(out, format!("{} clinical 1\n", stored[0].id));
    let one = &stored[0];
    assert_eq!(one.body.as_bytes(), MESSAGE);
    let outside = (one.event_type.as_str(), one.kind, one.sender.as_str(), one.key.as_str());
    assert_eq!(outside, ("org.practice-gateway.hl7v2.oru_r01.v1", Kind::Transaction, SOURCE, "77"));
    assert!(daemon.ids().is_empty());
    let alarms = daemon.outbox.alarms();
    let alarm = alarms.iter().find(|n| n.code == "quarantine.released").unwrap();
    assert!(alarm.detail.contains("entry 1 (sender not allowed, 57 bytes)"), "{}", alarm.detail);
    assert_eq!(daemon.release(id).0, Exit::Refused, "it is gone");

    // An entry without a header needs a person who says what it is.
    let id = daemon.keep("no MSH", &mllp("urn:x"), b"PID|1");
    let (exit, _, err) = daemon.release(id);
    assert!(exit == Exit::Refused && err.contains("--type"), "{err}");
    let typed = Release {
        id,
        lane: Some(Lane::new("letters").unwrap()),
        event_type: Some("letter".into()),
        content_type: Some("text/plain".into()),
    };
    assert_eq!(daemon.run(&Quarantine::Release(typed)).0, Exit::Done);
    let letters = daemon.stored(&Lane::new("letters").unwrap());
    assert_eq!((letters.len(), letters[0].event_type.as_str()), (1, "letter"));
}

#[test]
fn a_crash_between_the_answer_and_the_removal_stores_nothing_twice() {
    let daemon = Daemon::start();
    let id = daemon.keep("sender not allowed", &mllp(SOURCE), MESSAGE);
    // A later one, so that the first one's number is not recorded as removed.
    let later = daemon.keep("no MSH", &mllp(SOURCE), b"PID|1");
    let file = daemon.entry_file(id);
    let entry = std::fs::read(&file).unwrap();
    assert_eq!(daemon.release(id).0, Exit::Done);
    // As after a crash: it is stored, and the entry is still there.
    std::fs::write(&file, &entry).unwrap();
    assert_eq!((daemon.stored(&lane()).len(), daemon.ids()), (1, vec![id, later]), "both are there");
    let (exit, out, _) = daemon.release(id);
    assert!(exit == Exit::Done && out.ends_with(" (stored before)\n"), "{out}");
    assert_eq!((daemon.stored(&lane()).len(), daemon.ids()), (1, vec![later]));
}

#[test]
fn an_entry_that_cannot_be_removed_is_reported_and_stored_once() {
    let daemon = Daemon::start();
    let id = daemon.keep("sender not allowed", &mllp(SOURCE), MESSAGE);
    // The record of the last removed entry cannot be replaced: it is a non-empty directory.
    let gone = daemon.entry_file(id).with_extension("gone");
    std::fs::create_dir_all(gone.join("x")).unwrap();
    let (exit, _, err) = daemon.release(id);
    assert!(exit == Exit::Refused && err.contains("discard the entry"), "{err}");
    assert_eq!((daemon.stored(&lane()).len(), daemon.ids()), (1, vec![id]), "both are there");
    std::fs::remove_dir_all(&gone).unwrap();
    let (exit, out, _) = daemon.release(id);
    assert!(exit == Exit::Done && out.ends_with(" (stored before)\n"), "{out}");
    assert_eq!((daemon.stored(&lane()).len(), daemon.ids()), (1, vec![]));
}

#[test]
fn what_its_sender_sent_again_meanwhile_is_one_transaction_with_it() {
    let daemon = Daemon::start();
    let id = daemon.keep("sender not allowed", &mllp(SOURCE), MESSAGE);
    let again = Submission {
        lane: lane(),
        event_type: EventType::Named("hl7v2.oru_r01".into()),
        kind: Kind::Transaction,
        content_type: "application/hl7-v2+er7".into(),
        sender: SOURCE.into(),
        key: "77".into(),
        shows_key: true,
        correlation_id: String::new(),
        trace_parent: String::new(),
        body: Body::new(MESSAGE.to_vec()),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(daemon.outbox.submit(again)).unwrap();
    let (exit, out, _) = daemon.release(id);
    assert!(exit == Exit::Done && out.ends_with(" (stored before)\n"), "{out}");
    assert_eq!(daemon.stored(&lane()).len(), 1);
}

#[test]
fn what_its_door_refused_for_a_name_that_is_too_long_can_be_released_under_another() {
    let daemon = Daemon::start();
    let name = "L".repeat(1000);
    let message = format!("MSH|^~\\&|{name}|S|||||ORU^R01|{}|P|2.4", "7".repeat(300));
    let source = format!("hl7v2:{name}%7CS");
    let id = daemon.keep("bad MSH-10", &mllp(&source), message.as_bytes());
    assert_eq!(daemon.release(id).0, Exit::Done);
    let stored = daemon.stored(&lane());
    assert_eq!((stored[0].key.as_str(), stored[0].sender.as_str()), ("", "quarantine"));
}

#[test]
fn what_it_is_follows_from_its_media_type() {
    let daemon = Daemon::start();
    for content_type in ["x-application/hl7-v2+er7", "application/fhir+json"] {
        let id = daemon.keep("no MSH", &mllp("urn:x"), content_type.as_bytes());
        let typed =
            Release { id, lane: None, event_type: Some("t".into()), content_type: Some(content_type.into()) };
        assert_eq!(daemon.run(&Quarantine::Release(typed)).0, Exit::Done);
        assert_eq!(daemon.stored(&lane()).last().unwrap().content_type, content_type);
    }
}

#[test]
fn what_is_no_whole_input_is_not_released() {
    let daemon = Daemon::start();
    let cut = daemon.keep("too large", &mllp(SOURCE), &[b'x'; 4096]);
    let whole = daemon.keep("too large", &mllp(SOURCE), &[MESSAGE, &[b'x'; 5000]].concat());
    let own = daemon.keep("rival record", "clinical", MESSAGE);
    let torn = daemon.keep("incomplete record", "clinical", MESSAGE);
    let damaged = daemon.keep("no MSH", &mllp(SOURCE), MESSAGE);
    let file = daemon.entry_file(damaged);
    let mut bytes = std::fs::read(&file).unwrap();
    bytes[85] ^= 1;
    std::fs::write(&file, bytes).unwrap();
    for (id, why) in [
        (cut, "only the beginning"),
        (own, "record of the store's own"),
        (torn, "not input"),
        (damaged, "damaged"),
    ] {
        let (exit, _, err) = daemon.release(id);
        assert!(exit == Exit::Refused && err.contains(why), "{why}: {err}");
    }
    assert_eq!(daemon.release(whole).0, Exit::Done);
    assert_eq!((daemon.stored(&lane()).len(), daemon.ids()), (1, vec![cut, own, torn, damaged]));
    let (_, list, _) = daemon.run(&Quarantine::List(List { json: false }));
    let list = String::from_utf8(list).unwrap();
    assert!(list.contains("DAMAGED") && list.contains("store "), "{list}");
    let discard = Discard { id: damaged, reason: "nobody can read it".into() };
    assert_eq!(daemon.run(&Quarantine::Discard(discard)).0, Exit::Done, "damaged ones can be discarded");
}

#[test]
fn a_discard_needs_a_reason_and_is_reported() {
    let daemon = Daemon::start();
    let id = daemon.keep("no MSH", &mllp(SOURCE), MESSAGE);
    let discard = |reason: &str| daemon.run(&Quarantine::Discard(Discard { id, reason: reason.into() }));
    for bad in ["", "  ", "two\nlines", &"x".repeat(201)] {
        assert_eq!(discard(bad).0, Exit::Refused, "{bad}");
    }
    assert_eq!(daemon.ids(), [id]);
    assert_eq!(discard("a test of the lab's").0, Exit::Done);
    assert_eq!((daemon.ids(), daemon.stored(&lane()).len()), (vec![], 0));
    let alarms = daemon.outbox.alarms();
    let alarm = alarms.iter().find(|n| n.code == "quarantine.discarded").unwrap();
    assert!(alarm.detail.contains("entry 1 (no MSH, 57 bytes): a test of the lab's"), "{}", alarm.detail);
    assert_eq!(discard("again").0, Exit::Refused);
}

#[test]
fn without_room_an_entry_stays() {
    let daemon = Daemon::start();
    let id = daemon.keep("sender not allowed", &mllp(SOURCE), MESSAGE);
    daemon.outbox.clone().close();
    let (exit, _, err) = daemon.release(id);
    assert!(exit == Exit::Later && err.contains("stays in quarantine"), "{exit:?} {err}");
    assert_eq!(daemon.ids(), [id]);
}
