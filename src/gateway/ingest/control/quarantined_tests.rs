//! The quarantine's commands over the real store.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use pgw_core::delivery::Numbering;
use pgw_core::transaction::{Body, Gateway, Lane, Position, Practice};
use pgw_host::exit::Exit;
use pgw_outbox::{
    self as outbox, Accepted, LaneSettings, Outbox, OutboxAlarm, OutboxKey, QuarantineEntry, ReadError,
    Refusal, Released, Stored, Submission, Watermark,
};
use tokio::sync::watch;

use super::may_see;
use crate::cli::quarantine::{Discard, List, Quarantine, Release, Show, run};
use crate::ingest::control::kept::Kept;
use crate::ingest::control::server::{Control, Settings, StatusSource};
use crate::ingest::origin::Origin;
use crate::ingest::{Acceptor, Budget, Counters};

const MESSAGE: &[u8] = b"MSH|^~\\&|LAB|SURG|||1||ORU^R01|77|P|2.3\rPID|1|9434765919\r";
const SOURCE: &str = "urn:pgw:B86022:gw1:hl7v2:LAB%7CSURG";

/// The real store; while `dies` is true it dies between the durable answer and the removal.
#[derive(Clone)]
struct Mortal {
    outbox: Outbox,
    dies: Arc<AtomicBool>,
}

impl Acceptor for Mortal {
    async fn submit(&self, submission: Submission) -> Result<Accepted, Refusal> {
        self.outbox.submit(submission).await
    }

    fn quarantine(&self, reason: &'static str, source: &str, bytes: &[u8]) -> Result<u64, Refusal> {
        self.outbox.quarantine(reason, source, bytes)
    }
}

impl Kept for Mortal {
    fn lanes(&self) -> Vec<Lane> {
        self.outbox.lanes()
    }

    fn first_retained(&self, lane: &Lane) -> Option<Position> {
        self.outbox.first_retained(lane)
    }

    fn numbering(&self, lane: &Lane) -> Option<Numbering> {
        self.outbox.numbering(lane)
    }

    fn void(
        &self,
        lane: &Lane,
        range: (Position, Position),
        reason: &str,
        act: bool,
    ) -> Result<Released, String> {
        self.outbox.void(lane, range, reason, act).map_err(|error| error.to_string())
    }

    fn tail(&self, lane: &Lane) -> Position {
        Kept::tail(&self.outbox, lane)
    }

    fn mark(&self, lane: &Lane) -> Option<Watermark> {
        self.outbox.watermark(lane)
    }

    fn read(&self, lane: &Lane, from: Position, most: usize, bytes: usize) -> Result<Vec<Stored>, ReadError> {
        self.outbox.read(lane, from, most, bytes)
    }

    fn quarantined(&self) -> Result<Vec<QuarantineEntry>, Refusal> {
        self.outbox.quarantined()
    }

    fn quarantined_entry(&self, id: u64) -> Result<Option<QuarantineEntry>, Refusal> {
        self.outbox.quarantined_entry(id)
    }

    fn quarantined_bytes(&self, id: u64) -> Result<Option<Vec<u8>>, Refusal> {
        Kept::quarantined_bytes(&self.outbox, id)
    }

    fn discard_quarantined(&self, id: u64) -> Result<bool, Refusal> {
        if self.dies.load(Ordering::SeqCst) {
            return Err(Refusal::Trouble("died".into()));
        }
        self.outbox.discard_quarantined(id)
    }

    fn note(&self, notable: OutboxAlarm) {
        self.outbox.raise(notable);
    }
}

struct Daemon {
    kept: Mortal,
    socket: PathBuf,
    _stop: watch::Sender<bool>,
    _runtime: tokio::runtime::Runtime,
    directory: tempfile::TempDir,
}

fn lane() -> Lane {
    Lane::new("clinical").unwrap()
}

fn open(directory: &Path) -> Outbox {
    let settings = outbox::OutboxSettings {
        directory: directory.join("outbox"),
        practice: Practice::new("B86022").unwrap(),
        gateway: Gateway::new("gw1").unwrap(),
        lanes: ["clinical", "letters"]
            .map(|l| LaneSettings { lane: Lane::new(l).unwrap(), urgent: false })
            .into(),
        segment_records: 1000,
        segment_bytes: 1 << 20,
        retention: Duration::from_secs(3600),
        limit_bytes: 1 << 30,
        min_free_bytes: 0,
        min_free_percent: 0,
        max_body_bytes: 200_000,
        queue_bytes: 1 << 20,
        quarantine_bytes: 1 << 20,
    };
    Outbox::open(settings, OutboxKey::new([7; 32])).unwrap()
}

impl Daemon {
    fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let kept = Mortal { outbox: open(directory.path()), dies: Arc::default() };
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let socket = directory.path().join("control.sock");
        let settings = Settings {
            socket: socket.clone(),
            practice: Practice::new("B86022").unwrap(),
            gateway: Gateway::new("gw1").unwrap(),
            max_body_bytes: 200_000,
            recipients: Vec::new(),
        };
        let guard = runtime.enter();
        let control = Control::listen(settings).unwrap();
        drop(guard);
        let (stop, stopped) = watch::channel(false);
        let status: StatusSource = Arc::new(|| serde_json::Value::Null);
        let counters = Arc::new(Counters::default());
        runtime.spawn(control.serve(kept.clone(), status, counters, Budget::new(1 << 20), stopped));
        Self { kept, socket, _stop: stop, _runtime: runtime, directory }
    }

    fn keep(&self, reason: &'static str, source: &str, bytes: &[u8]) -> u64 {
        self.kept.outbox.quarantine(reason, source, bytes).unwrap()
    }

    fn run(&self, command: &Quarantine) -> (Exit, Vec<u8>, String) {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let exit = run(&self.socket, command, &mut out, &mut err);
        (exit, out, String::from_utf8(err).unwrap())
    }

    fn release(&self, id: u64) -> (Exit, String, String) {
        let (exit, out, err) = self.run(&release(id));
        (exit, String::from_utf8(out).unwrap(), err)
    }

    fn stored(&self, lane: &Lane) -> Vec<pgw_core::transaction::Transaction> {
        match Kept::tail(&self.kept, lane) {
            0 => Vec::new(),
            tail => {
                let read = self.kept.read(lane, 1, tail as usize, 1 << 20).unwrap();
                read.into_iter().map(|stored| stored.transaction).collect()
            }
        }
    }

    fn ids(&self) -> Vec<u64> {
        self.kept.quarantined().unwrap().iter().map(|entry| entry.id).collect()
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
    daemon.keep("no MSH", "urn:pgw:B86022:gw1:folder:scans", b"9434765919");
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
    assert_eq!(
        Exit::from(&crate::ingest::control::client::ClientError::NotPermitted(String::new())),
        Exit::NotPermitted
    );
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
    let outside = (one.event_type.as_str(), one.kind.as_str(), one.source.as_str(), one.key.as_str());
    assert_eq!(outside, ("hl7v2.oru_r01", "hl7v2", SOURCE, "77"));
    assert!(daemon.ids().is_empty());
    let notables = daemon.kept.outbox.alarms();
    let said = notables.iter().find(|n| n.code == "quarantine.released").unwrap();
    assert!(said.detail.contains("entry 1 (sender not allowed, 57 bytes)"), "{}", said.detail);
    assert_eq!(daemon.release(id).0, Exit::Refused, "it is gone");

    // What has no header needs a person who says what it is.
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
    daemon.kept.dies.store(true, Ordering::SeqCst);
    let (exit, _, err) = daemon.release(id);
    assert!(exit == Exit::Refused && err.contains("it will not be stored twice"), "{err}");
    assert_eq!((daemon.stored(&lane()).len(), daemon.ids()), (1, vec![id]), "both are there");
    daemon.kept.dies.store(false, Ordering::SeqCst);
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
        event_type: "hl7v2.oru_r01".into(),
        kind: "hl7v2".into(),
        content_type: "application/hl7-v2+er7".into(),
        source: SOURCE.into(),
        key: "77".into(),
        correlation_id: String::new(),
        test_data: false,
        body: Body::new(MESSAGE.to_vec()),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(daemon.kept.outbox.submit(again)).unwrap();
    let (exit, out, _) = daemon.release(id);
    assert!(exit == Exit::Done && out.ends_with(" (stored before)\n"), "{out}");
    assert_eq!(daemon.stored(&lane()).len(), 1);
}

#[test]
fn what_is_no_whole_input_is_not_released() {
    let daemon = Daemon::start();
    let cut = daemon.keep("too large", &mllp(SOURCE), &[b'x'; 4096]);
    let whole = daemon.keep("too large", &mllp(SOURCE), &[MESSAGE, &[b'x'; 5000]].concat());
    let own = daemon.keep("rival record", "clinical", MESSAGE);
    let torn = daemon.keep("incomplete record", "clinical", MESSAGE);
    let damaged = daemon.keep("no MSH", &mllp(SOURCE), MESSAGE);
    let file = daemon.directory.path().join(format!("outbox/quarantine/{damaged:016x}.entry"));
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
fn a_discard_needs_a_reason_and_is_told() {
    let daemon = Daemon::start();
    let id = daemon.keep("no MSH", &mllp(SOURCE), MESSAGE);
    let discard = |reason: &str| daemon.run(&Quarantine::Discard(Discard { id, reason: reason.into() }));
    for bad in ["", "  ", "two\nlines", &"x".repeat(201)] {
        assert_eq!(discard(bad).0, Exit::Refused, "{bad}");
    }
    assert_eq!(daemon.ids(), [id]);
    assert_eq!(discard("a test of the lab's").0, Exit::Done);
    assert_eq!((daemon.ids(), daemon.stored(&lane()).len()), (vec![], 0));
    let notables = daemon.kept.outbox.alarms();
    let said = notables.iter().find(|n| n.code == "quarantine.discarded").unwrap();
    assert!(said.detail.contains("entry 1 (no MSH, 57 bytes): a test of the lab's"), "{}", said.detail);
    assert_eq!(discard("again").0, Exit::Refused);
}

#[test]
fn without_room_an_entry_stays() {
    let daemon = Daemon::start();
    let id = daemon.keep("sender not allowed", &mllp(SOURCE), MESSAGE);
    daemon.kept.outbox.clone().close();
    let (exit, _, err) = daemon.release(id);
    assert!(exit == Exit::Later && err.contains("stays in quarantine"), "{exit:?} {err}");
    assert_eq!(daemon.ids(), [id]);
}
