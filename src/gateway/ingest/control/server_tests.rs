//! The control socket and its client, over a shelf of records that tests can damage.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use pgw_bundle::keys::Identity;
use pgw_core::chain::ChainValue;
use pgw_core::delivery::Numbering;
use pgw_core::transaction::{Clock, Epoch, Position, Transaction, TransactionId};
use pgw_outbox::{Accepted, OutboxAlarm, QuarantineEntry, ReadError, Refusal, Released, Stored, Watermark};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use uuid::Uuid;

use super::*;
use crate::ingest::Acceptor;
use crate::ingest::control::client::{Client as Blocking, ClientError};
use crate::ingest::control::{State, Which};

/// An outbox in memory with one lane.
#[derive(Clone, Default)]
pub(crate) struct Shelf(Arc<Mutex<Contents>>);

#[derive(Default)]
struct Contents {
    records: Vec<Option<Stored>>,
    mark: Option<Watermark>,
    refusal: Option<Refusal>,
}

impl Shelf {
    pub(crate) fn lane() -> Lane {
        Lane::new("clinical").unwrap()
    }

    pub(crate) fn with(count: u64) -> Self {
        let shelf = Self::default();
        for n in 0..count {
            shelf.put("t", "c/d", "", Body::new(format!("body {n}").into_bytes()));
        }
        shelf
    }

    fn put(&self, event_type: &str, content_type: &str, key: &str, body: Body) -> u64 {
        let mut contents = self.0.lock().unwrap();
        let position = contents.records.len() as u64 + 1;
        let epoch = Epoch(Uuid::from_u128(7));
        let previous = match contents.records.last() {
            None => ChainValue::first(epoch, "clinical"),
            Some(last) => last.as_ref().unwrap().chain,
        };
        let transaction = Transaction {
            id: TransactionId(Uuid::from_u128(u128::from(position))),
            time: position,
            event_type: event_type.into(),
            kind: kind(content_type).into(),
            content_type: content_type.into(),
            source: "urn:x".into(),
            key: key.into(),
            correlation_id: String::new(),
            clock: Clock::Synced,
            test_data: false,
            body,
        };
        let chain = previous.next_for(epoch, &Self::lane(), position, &transaction);
        contents.records.push(Some(Stored {
            position,
            epoch,
            sequence: position,
            previous,
            chain,
            transaction,
        }));
        position
    }

    pub(crate) fn record(&self, position: u64) -> Stored {
        self.0.lock().unwrap().records[position as usize - 1].clone().unwrap()
    }

    pub(crate) fn change(&self, position: u64, change: impl FnOnce(&mut Stored)) {
        change(self.0.lock().unwrap().records[position as usize - 1].as_mut().unwrap());
    }

    pub(crate) fn destroy(&self, position: u64) {
        self.0.lock().unwrap().records[position as usize - 1] = None;
    }

    pub(crate) fn count(&self) -> u64 {
        self.0.lock().unwrap().records.len() as u64
    }

    pub(crate) fn confirm(&self, position: u64) {
        self.set_mark(Watermark { position, chain: self.record(position).chain });
    }

    pub(crate) fn set_mark(&self, mark: Watermark) {
        self.0.lock().unwrap().mark = Some(mark);
    }

    pub(crate) fn refuse(&self, refusal: Option<Refusal>) {
        self.0.lock().unwrap().refusal = refusal;
    }
}

impl Acceptor for Shelf {
    async fn submit(&self, s: Submission) -> Result<Accepted, Refusal> {
        if let Some(refusal) = self.0.lock().unwrap().refusal.clone() {
            return Err(refusal);
        }
        if s.lane != Self::lane() {
            return Err(Refusal::UnknownLane(s.lane));
        }
        let position = self.put(&s.event_type, &s.content_type, &s.key, s.body);
        let id = self.record(position).transaction.id;
        Ok(Accepted { id, position, time: position, repeated: s.key == "again", key_reused: false })
    }

    fn quarantine(&self, _: &'static str, _: &str, _: &[u8]) -> Result<u64, Refusal> {
        Err(Refusal::Busy)
    }
}

impl Kept for Shelf {
    fn lanes(&self) -> Vec<Lane> {
        vec![Self::lane()]
    }

    fn first_retained(&self, _: &Lane) -> Option<Position> {
        Some(1)
    }

    fn tail(&self, _: &Lane) -> Position {
        self.0.lock().unwrap().records.len() as u64
    }

    fn numbering(&self, _: &Lane) -> Option<Numbering> {
        Some(Numbering::new(Epoch(Uuid::from_u128(7))))
    }

    fn void(&self, _: &Lane, (from, through): (u64, u64), _: &str, _: bool) -> Result<Released, String> {
        let lost = |position: u64| self.0.lock().unwrap().records[position as usize - 1].is_none();
        if (from..=through).all(lost) {
            let chain = ChainValue([1; 32]);
            Ok(Released { from, through, previous: chain, chain })
        } else {
            Err("it can be read".into())
        }
    }

    fn mark(&self, _: &Lane) -> Option<Watermark> {
        self.0.lock().unwrap().mark
    }

    fn read(&self, lane: &Lane, from: Position, records: usize, _: usize) -> Result<Vec<Stored>, ReadError> {
        let contents = self.0.lock().unwrap();
        let found: Vec<_> =
            contents.records.iter().skip(from as usize - 1).take(records).map_while(Clone::clone).collect();
        match found.is_empty() {
            true => Err(ReadError::Gone { lane: lane.clone(), position: from }),
            false => Ok(found),
        }
    }

    fn quarantined(&self) -> Result<Vec<QuarantineEntry>, Refusal> {
        Ok(Vec::new())
    }

    fn quarantined_entry(&self, _: u64) -> Result<Option<QuarantineEntry>, Refusal> {
        Ok(None)
    }

    fn quarantined_bytes(&self, _: u64) -> Result<Option<Vec<u8>>, Refusal> {
        Ok(None)
    }

    fn discard_quarantined(&self, _: u64) -> Result<bool, Refusal> {
        Ok(false)
    }

    fn note(&self, _: OutboxAlarm) {}
}

/// The hub's key in the tests.
pub(crate) fn hub_identity() -> Identity {
    Identity::from_file_text("AGE-SECRET-KEY-1EGTZVFFV20835NWYV6270LXYVK2VKNX2MMDKWYKLMGR48UAWX40Q2P2LM0")
        .unwrap()
}

/// A daemon's control socket for the tests of the commands, on a runtime of its own.
pub(crate) struct Daemon {
    pub(crate) shelf: Shelf,
    pub(crate) socket: PathBuf,
    stop: watch::Sender<bool>,
    task: Option<JoinHandle<()>>,
    runtime: tokio::runtime::Runtime,
    _directory: tempfile::TempDir,
}

impl Daemon {
    pub(crate) fn start(shelf: Shelf, status: serde_json::Value) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("control.sock");
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let (stop, stopped) = watch::channel(false);
        let settings = Settings {
            socket: socket.clone(),
            practice: Practice::new("B86022").unwrap(),
            gateway: Gateway::new("gw1").unwrap(),
            max_body_bytes: 1000,
            recipients: vec![hub_identity().recipient()],
        };
        let guard = runtime.enter();
        let control = Control::listen(settings).unwrap();
        drop(guard);
        let status: StatusSource = Arc::new(move || status.clone());
        let serving = control.serve(shelf.clone(), status, Arc::default(), Budget::new(1 << 20), stopped);
        let task = Some(runtime.spawn(serving));
        Self { shelf, socket, stop, task, runtime, _directory: directory }
    }

    fn stop(mut self) {
        self.stop.send(true).unwrap();
        let task = self.task.take().unwrap();
        self.runtime
            .block_on(async { tokio::time::timeout(Duration::from_secs(20), task).await })
            .unwrap()
            .unwrap();
    }
}

fn submit(client: &mut Blocking, lane: &str, event_type: &str, key: &str, body: &[u8]) -> Reply {
    let request = Request::Submit {
        lane: Lane::new(lane).unwrap(),
        event_type: event_type.into(),
        content_type: "application/fhir+json; charset=utf-8".into(),
        key: key.into(),
        body_bytes: body.len() as u64,
    };
    client.submit(&request, body).unwrap()
}

fn collect(client: &mut Blocking, request: Request) -> Result<Vec<Reply>, ClientError> {
    let mut replies = Vec::new();
    client.ask(&request, |reply| replies.push(reply)).map(|()| replies)
}

#[test]
fn submissions_are_stored_or_refused() {
    let daemon = Daemon::start(Shelf::default(), serde_json::Value::Null);
    let mut client = Blocking::connect(&daemon.socket).unwrap();
    let Reply::Accepted(receipt) = submit(&mut client, "clinical", "fhir.bundle", "k", b"one") else {
        panic!("refused")
    };
    assert_eq!((receipt.position, receipt.repeated, receipt.lane.as_str()), (1, false, "clinical"));
    assert_eq!(receipt.time, "1970-01-01T00:00:00.001Z");
    let stored = daemon.shelf.record(1).transaction;
    assert_eq!(
        (stored.body.as_bytes(), stored.key.as_str(), stored.kind.as_str()),
        (&b"one"[..], "k", "fhir")
    );
    let is_refused = |reply, later| matches!(reply, Reply::Refused { temporary, .. } if temporary == later);
    assert!(is_refused(submit(&mut client, "other", "t", "", b"x"), false));
    assert!(is_refused(submit(&mut client, "clinical", "a type", "", b"x"), false));
    assert!(is_refused(submit(&mut client, "clinical", "t", "", &[b'x'; 1001]), false));
    daemon.shelf.refuse(Some(Refusal::Full("no space".into())));
    assert!(is_refused(submit(&mut client, "clinical", "t", "", b"two"), true));
    daemon.shelf.refuse(None);
    assert!(
        matches!(submit(&mut client, "clinical", "t", "again", &[b'x'; 1000]), Reply::Accepted(r) if r.repeated)
    );
    daemon.stop();
}

#[test]
fn headers_are_listed_and_shown_without_bodies() {
    let shelf = Shelf::with(600);
    shelf.confirm(3);
    shelf.destroy(5);
    let daemon = Daemon::start(shelf, serde_json::Value::Null);
    let mut client = Blocking::connect(&daemon.socket).unwrap();
    let list = |from, limit| Request::List { lane: None, from, limit };
    let states = |replies: Vec<Reply>| -> Vec<(u64, State, bool)> {
        let each = |reply| match reply {
            Reply::Entry(entry) => (entry.position, entry.state, entry.header.is_some()),
            other => panic!("{other:?}"),
        };
        replies.into_iter().map(each).collect()
    };
    assert_eq!(
        states(collect(&mut client, list(None, 3)).unwrap()),
        [(4, State::Waiting, true), (5, State::Damaged, false), (6, State::Waiting, true)]
    );
    assert_eq!(states(collect(&mut client, list(Some(3), 1)).unwrap()), [(3, State::Confirmed, true)]);
    assert_eq!(collect(&mut client, list(Some(1), u32::MAX)).unwrap().len(), 600);
    assert_eq!(collect(&mut client, list(Some(u64::MAX), 5)).unwrap(), []);
    let shown = collect(&mut client, Request::Show { lane: None, which: Which::Position(4) }).unwrap();
    assert!(!serde_json::to_string(&shown).unwrap().contains("body"), "{shown:?}");
    let id = daemon.shelf.record(590).transaction.id;
    let by_id = collect(&mut client, Request::Show { lane: None, which: Which::Id(id) }).unwrap();
    assert_eq!(states(by_id), [(590, State::Waiting, true)]);
    let nobody = Which::Id(TransactionId(Uuid::max()));
    let missing = collect(&mut client, Request::Show { lane: None, which: nobody });
    assert!(matches!(missing, Err(ClientError::Failed(_))));
    let unknown = Request::List { lane: Some(Lane::new("other").unwrap()), from: None, limit: 1 };
    assert!(matches!(collect(&mut client, unknown), Err(ClientError::Failed(_))));
    daemon.stop();
}

#[test]
fn a_walk_tells_how_far_it_is_and_what_it_found() {
    let daemon = Daemon::start(Shelf::with(600), serde_json::Value::Null);
    let mut client = Blocking::connect(&daemon.socket).unwrap();
    let mut replies = collect(&mut client, Request::Verify { lane: None }).unwrap();
    let Some(Reply::Verified(verdict)) = replies.pop() else { panic!("no verdict") };
    assert!(verdict.ok && verdict.verified == 600);
    let positions: Vec<_> = replies.iter().map(|r| matches!(r, Reply::Progress { tail: 600, .. })).collect();
    assert_eq!(positions, [true; 3]);
    daemon.stop();
}

#[test]
fn the_socket_is_private_replaced_when_stale_and_gone_after_a_stop() {
    let daemon = Daemon::start(Shelf::default(), serde_json::json!({"state": "ok"}));
    let mode = std::fs::metadata(&daemon.socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o660);
    let settings = Settings {
        socket: daemon.socket.clone(),
        practice: Practice::new("B86022").unwrap(),
        gateway: Gateway::new("gw1").unwrap(),
        max_body_bytes: 1,
        recipients: Vec::new(),
    };
    let guard = daemon.runtime.enter();
    assert!(matches!(Control::listen(settings.clone()), Err(ListenError::InUse(_))));
    drop(guard);
    let mut client = Blocking::connect(&daemon.socket).unwrap();
    let status = collect(&mut client, Request::Status {}).unwrap();
    assert_eq!(status, [Reply::Status { status: serde_json::json!({"state": "ok"}) }]);
    let stale = daemon.socket.with_file_name("stale.sock");
    drop(std::os::unix::net::UnixListener::bind(&stale).unwrap());
    let guard = daemon.runtime.enter();
    drop(Control::listen(Settings { socket: stale, ..settings }).unwrap());
    drop(guard);
    let socket = daemon.socket.clone();
    let directory = tempfile::tempdir_in(socket.parent().unwrap());
    daemon.stop();
    assert!(!socket.exists());
    drop(directory);
}

#[test]
fn nonsense_is_answered_and_ended() {
    use std::io::{Read as _, Write as _};
    let daemon = Daemon::start(Shelf::default(), serde_json::Value::Null);
    let long = vec![b'x'; LINE_BYTES + 10];
    for nonsense in [&b"GET / HTTP/1.1\r\n\r\n"[..], b"{\"command\":\"status\"", b"\xff\n", &long] {
        let mut stream = std::os::unix::net::UnixStream::connect(&daemon.socket).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream.write_all(nonsense).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut answer = Vec::new();
        // A close with bytes unread may come as a reset after the answer.
        let _ = stream.read_to_end(&mut answer);
        assert!(answer.starts_with(b"{\"reply\":\"failed\""), "{}", String::from_utf8_lossy(&answer));
    }
    daemon.stop();
}

#[test]
fn kinds_follow_from_media_types() {
    assert_eq!(kind("application/hl7-v2+er7; charset=utf-8"), "hl7v2");
    assert_eq!(kind("Application/FHIR+xml"), "fhir");
    assert_eq!(kind("application/edifact"), "edifact");
    assert_eq!(kind("text/plain"), "opaque");
    for bad in ["", "text", "/x", "a/", "a/b\n", "a/\u{e9}"] {
        assert!(!is_media_type(bad), "{bad:?}");
    }
}
