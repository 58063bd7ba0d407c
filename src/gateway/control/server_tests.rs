//! The control socket and its client, over a small outbox.

use std::time::Duration;

use pgw_core::transaction::TransactionId;
use uuid::Uuid;

use super::*;
use crate::control::TransactionRef;
use crate::control::client::{Client as Blocking, ClientError};
use crate::control::store_for_tests::{Daemon, Store, config, lane};
use crate::listing::TransactionState;

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
    let daemon = Daemon::start(Store::empty(), serde_json::Value::Null);
    let mut client = Blocking::connect(&daemon.socket).unwrap();
    let Reply::Accepted(slip) = submit(&mut client, "clinical", "fhir.bundle", "k", b"one") else {
        panic!("refused")
    };
    assert_eq!((slip.position, slip.repeated, slip.lane.as_str()), (1, false, "clinical"));
    let stored = daemon.store.record(1).transaction;
    assert_eq!((slip.id, slip.time), (Some(stored.id), Some(pgw_core::transaction::rfc3339(stored.time))));
    assert_eq!(
        (stored.body.as_bytes(), stored.key.as_str(), stored.kind.as_str()),
        (&b"one"[..], "k", "fhir")
    );
    let is_refused = |reply, later| matches!(reply, Reply::Refused { temporary, .. } if temporary == later);
    assert!(is_refused(submit(&mut client, "other", "t", "", b"x"), false));
    assert!(is_refused(submit(&mut client, "clinical", "a type", "", b"x"), false));
    assert!(is_refused(submit(&mut client, "clinical", "t", "", &[b'x'; 1001]), false));
    let full = Daemon::start(Store::full(), serde_json::Value::Null);
    let mut asked = Blocking::connect(&full.socket).unwrap();
    assert!(is_refused(submit(&mut asked, "clinical", "t", "", b"two"), true));
    full.stop();
    let largest = |client: &mut Blocking| submit(client, "clinical", "t", "again", &[b'x'; 1000]);
    assert!(matches!(largest(&mut client), Reply::Accepted(slip) if !slip.repeated));
    assert!(matches!(largest(&mut client), Reply::Accepted(slip) if slip.repeated && slip.position == 2));
    daemon.stop();
}

#[test]
fn kinds_follow_from_media_types() {
    let daemon = Daemon::start(Store::empty(), serde_json::Value::Null);
    let mut client = Blocking::connect(&daemon.socket).unwrap();
    for (content_type, kind) in [
        ("application/hl7-v2+er7; charset=utf-8", "hl7v2"),
        ("x-application/hl7-v2+er7", "hl7v2"),
        ("Application/FHIR+xml", "fhir"),
        ("application/edifact", "edifact"),
        ("text/plain", "opaque"),
    ] {
        let request = Request::Submit {
            lane: Lane::new("clinical").unwrap(),
            event_type: "t".into(),
            content_type: content_type.into(),
            key: content_type.into(),
            body_bytes: 1,
        };
        let reply = client.submit(&request, b"x").unwrap();
        let Reply::Accepted(slip) = reply else { panic!("{content_type}: {reply:?}") };
        assert_eq!(daemon.store.record(slip.position).transaction.kind, kind, "{content_type}");
    }
    daemon.stop();
}

#[test]
fn headers_are_listed_and_shown_without_bodies() {
    let damaged = Store::with_lost(6, 1, &[5]);
    damaged.confirm(3);
    let daemon = Daemon::start(damaged, serde_json::Value::Null);
    let mut client = Blocking::connect(&daemon.socket).unwrap();
    let list = |from, limit| Request::List { lane: None, from, limit };
    let states = |replies: Vec<Reply>| -> Vec<(u64, TransactionState, bool)> {
        let each = |reply| match reply {
            Reply::Entry(entry) => (entry.position, entry.state, entry.header.is_some()),
            other => panic!("{other:?}"),
        };
        replies.into_iter().map(each).collect()
    };
    assert_eq!(
        states(collect(&mut client, list(None, 3)).unwrap()),
        [
            (4, TransactionState::Waiting, true),
            (5, TransactionState::Damaged, false),
            (6, TransactionState::Waiting, true)
        ]
    );
    assert_eq!(
        states(collect(&mut client, list(Some(3), 1)).unwrap()),
        [(3, TransactionState::Confirmed, true)]
    );
    daemon.stop();
    let daemon = Daemon::start(Store::with(600), serde_json::Value::Null);
    let mut client = Blocking::connect(&daemon.socket).unwrap();
    assert_eq!(collect(&mut client, list(Some(1), u32::MAX)).unwrap().len(), 600);
    assert_eq!(collect(&mut client, list(Some(u64::MAX), 5)).unwrap(), []);
    let shown =
        collect(&mut client, Request::Show { lane: None, which: TransactionRef::Position(4) }).unwrap();
    assert!(!serde_json::to_string(&shown).unwrap().contains("body"), "{shown:?}");
    let id = daemon.store.record(590).transaction.id;
    let by_id = collect(&mut client, Request::Show { lane: None, which: TransactionRef::Id(id) }).unwrap();
    assert_eq!(states(by_id), [(590, TransactionState::Waiting, true)]);
    let nobody = TransactionRef::Id(TransactionId(Uuid::max()));
    let missing = collect(&mut client, Request::Show { lane: None, which: nobody });
    assert!(matches!(missing, Err(ClientError::Failed(_))));
    let unknown = Request::List { lane: Some(Lane::new("other").unwrap()), from: None, limit: 1 };
    assert!(matches!(collect(&mut client, unknown), Err(ClientError::Failed(_))));
    daemon.stop();
}

#[test]
fn a_walk_tells_how_far_it_is_and_what_it_found() {
    let daemon = Daemon::start(Store::with(600), serde_json::Value::Null);
    let mut client = Blocking::connect(&daemon.socket).unwrap();
    let mut replies = collect(&mut client, Request::Verify { lane: Some(lane()) }).unwrap();
    let Some(Reply::Verified(found)) = replies.pop() else { panic!("no verification") };
    assert!(found.ok && found.verified == 600);
    let positions: Vec<_> = replies.iter().map(|r| matches!(r, Reply::Progress { tail: 600, .. })).collect();
    assert_eq!(positions, [true; 3]);
    daemon.stop();
}

#[test]
fn the_socket_is_private_replaced_when_stale_and_gone_after_a_stop() {
    let daemon = Daemon::start(Store::empty(), serde_json::json!({"state": "ok"}));
    let mode = std::fs::metadata(&daemon.socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o660);
    let second = config(daemon.socket.clone(), 1, Vec::new());
    let guard = daemon.runtime.enter();
    assert!(matches!(ControlSocket::listen(second.clone()), Err(ControlSocketError::InUse(_))));
    drop(guard);
    let mut client = Blocking::connect(&daemon.socket).unwrap();
    let status = collect(&mut client, Request::Status {}).unwrap();
    assert_eq!(status, [Reply::Status { status: serde_json::json!({"state": "ok"}) }]);
    let stale = daemon.socket.with_file_name("stale.sock");
    drop(std::os::unix::net::UnixListener::bind(&stale).unwrap());
    let guard = daemon.runtime.enter();
    let again = ControlSocket::listen(ControlConfig { socket: stale.clone(), ..second }).unwrap();
    assert!(stale.exists());
    drop(again);
    assert!(!stale.exists(), "and it is gone with its owner");
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
    let daemon = Daemon::start(Store::empty(), serde_json::Value::Null);
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
