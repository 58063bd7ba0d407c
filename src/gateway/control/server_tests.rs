//! The control socket and its client, over a small outbox.

use pgw_core::transaction::TransactionId;
use uuid::Uuid;

use super::*;
use crate::control::TransactionRef;
use crate::control::client::{Client, submit as submit_body};
use crate::control::store_for_tests::{Daemon, Store, lane};
use crate::listing::TransactionState;
use pgw_host::control::ClientError;

fn submit(client: &mut Client, lane: &str, event_type: &str, key: &str, body: &[u8]) -> Reply {
    let request = Request::Submit {
        lane: Lane::new(lane).unwrap(),
        event_type: event_type.into(),
        content_type: "application/fhir+json; charset=utf-8".into(),
        key: key.into(),
        body_bytes: body.len() as u64,
    };
    submit_body(client, &request, body).unwrap()
}

fn collect(client: &mut Client, request: Request) -> Result<Vec<Reply>, ClientError> {
    let mut replies = Vec::new();
    client.ask(&request, |reply| replies.push(reply))?;
    replies.retain(|reply| !matches!(reply, Reply::End {}));
    Ok(replies)
}

#[test]
fn submissions_are_stored_or_refused() {
    let daemon = Daemon::start(Store::empty(), serde_json::Value::Null);
    let mut client = Client::connect(&daemon.socket).unwrap();
    let Reply::Accepted(slip) = submit(&mut client, "clinical", "fhir.bundle", "k", b"one") else {
        panic!("refused")
    };
    assert_eq!((slip.position, slip.repeated, slip.lane.as_str()), (1, false, "clinical"));
    let stored = daemon.store.record(1).transaction;
    assert_eq!((slip.id, slip.time), (Some(stored.id), Some(pgw_core::transaction::rfc3339(stored.time))));
    assert_eq!(
        (stored.body.as_bytes(), stored.key.as_str(), stored.kind),
        (&b"one"[..], "k", Kind::Transaction)
    );
    let is_refused = |reply, later| matches!(reply, Reply::Refused { temporary, .. } if temporary == later);
    assert!(is_refused(submit(&mut client, "other", "t", "", b"x"), false));
    assert!(is_refused(submit(&mut client, "clinical", "a type", "", b"x"), false));
    assert!(is_refused(submit(&mut client, "clinical", "t", "", &[b'x'; 1001]), false));
    for (key, says) in [("k".repeat(257), "the key has 257 bytes"), ("a\u{7f}".into(), "the key holds")] {
        let reply = submit(&mut client, "clinical", "t", &key, b"x");
        assert!(matches!(&reply, Reply::Refused { reason, .. } if reason.starts_with(says)), "{reply:?}");
        assert!(is_refused(reply, false));
    }
    let full = Daemon::start(Store::full(), serde_json::Value::Null);
    let mut asked = Client::connect(&full.socket).unwrap();
    assert!(is_refused(submit(&mut asked, "clinical", "t", "", b"two"), true));
    full.stop();
    let largest = |client: &mut Client| submit(client, "clinical", "t", "again", &[b'x'; 1000]);
    assert!(matches!(largest(&mut client), Reply::Accepted(slip) if !slip.repeated));
    assert!(matches!(largest(&mut client), Reply::Accepted(slip) if slip.repeated && slip.position == 2));
    daemon.stop();
}

#[test]
fn media_types_are_kept_as_they_came() {
    let daemon = Daemon::start(Store::empty(), serde_json::Value::Null);
    let mut client = Client::connect(&daemon.socket).unwrap();
    for content_type in [
        "application/hl7-v2+er7; charset=utf-8",
        "x-application/hl7-v2+er7",
        "Application/FHIR+xml",
        "application/edifact",
        "text/plain",
    ] {
        let request = Request::Submit {
            lane: Lane::new("clinical").unwrap(),
            event_type: "t".into(),
            content_type: content_type.into(),
            key: content_type.into(),
            body_bytes: 1,
        };
        let reply = submit_body(&mut client, &request, b"x").unwrap();
        let Reply::Accepted(slip) = reply else { panic!("{content_type}: {reply:?}") };
        assert_eq!(daemon.store.record(slip.position).transaction.content_type, content_type);
    }
    daemon.stop();
}

#[test]
fn headers_are_listed_and_shown_without_bodies() {
    let damaged = Store::with_lost(6, 1, &[5]);
    damaged.confirm(3);
    let daemon = Daemon::start(damaged, serde_json::Value::Null);
    let mut client = Client::connect(&daemon.socket).unwrap();
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
    let mut client = Client::connect(&daemon.socket).unwrap();
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
    let mut client = Client::connect(&daemon.socket).unwrap();
    let mut replies = collect(&mut client, Request::Verify { lane: Some(lane()) }).unwrap();
    let Some(Reply::Verified(found)) = replies.pop() else { panic!("no verification") };
    assert!(found.ok && found.verified == 600);
    let positions: Vec<_> = replies.iter().map(|r| matches!(r, Reply::Progress { tail: 600, .. })).collect();
    assert_eq!(positions, [true; 3]);
    daemon.stop();
}

#[test]
fn the_status_is_answered_and_the_socket_goes_with_its_daemon() {
    let daemon = Daemon::start(Store::empty(), serde_json::json!({"state": "ok"}));
    let mut client = Client::connect(&daemon.socket).unwrap();
    let status = collect(&mut client, Request::Status {}).unwrap();
    assert_eq!(status, [Reply::Status { status: serde_json::json!({"state": "ok"}) }]);
    let socket = daemon.socket.clone();
    daemon.stop();
    assert!(!socket.exists());
}
