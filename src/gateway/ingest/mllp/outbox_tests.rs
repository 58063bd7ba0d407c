//! The door with the real outbox: what was acknowledged is there, in order, after the store was reopened.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use pgw_core::transaction::{Gateway, Lane, Practice};
use pgw_link::clock::TrustedClock;
use pgw_outbox::{self as outbox, LaneSettings, Outbox, OutboxKey, TypeAffixes};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::control::verify::verify;
use crate::ingest::mllp::codec::{Decoder, Event, encode};
use crate::ingest::mllp::context::{MllpDoorConfig, OnUnavailable};
use crate::ingest::mllp::door::MllpDoor;
use crate::ingest::{Budget, Counters};

const PATIENCE: Duration = Duration::from_secs(60);

fn lane() -> Lane {
    Lane::new("clinical").unwrap()
}

fn open(directory: &Path) -> Outbox {
    let settings = outbox::OutboxSettings {
        directory: directory.join("outbox"),
        practice: Practice::new("B86022").unwrap(),
        gateway: Gateway::new("gw1").unwrap(),
        lanes: vec![LaneSettings { lane: lane(), urgent: false }],
        types: TypeAffixes::default(),
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

fn door_settings() -> MllpDoorConfig {
    MllpDoorConfig {
        listen: "127.0.0.1:0".parse().unwrap(),
        practice: Practice::new("B86022").unwrap(),
        gateway: Gateway::new("gw1").unwrap(),
        lane: lane(),
        frame_limit_bytes: 200_000,
        in_frame_timeout: Duration::from_secs(30),
        max_connections: 8,
        on_unavailable: OnUnavailable::Close,
        unavailable_pause: Duration::from_secs(1),
        allowed_addresses: Vec::new(),
        allowed_senders: Vec::new(),
        routes: Vec::new(),
        tls: None,
    }
}

/// Sends all at once and returns the second field of each MSA, in order.
async fn converse(address: std::net::SocketAddr, messages: &[Vec<u8>]) -> Vec<String> {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let (mut reader, mut writer) = stream.split();
    let mut wire = Vec::new();
    for message in messages {
        encode(message, &mut wire);
    }
    let write = async { writer.write_all(&wire).await.unwrap() };
    let read = async {
        let (mut decoder, mut events) = (Decoder::new(1400, 1), std::collections::VecDeque::new());
        let mut buffer = vec![0; 4096];
        while events.len() < messages.len() {
            let read = reader.read(&mut buffer).await.unwrap();
            assert!(read > 0, "closed after {} answers", events.len());
            decoder.handle(&buffer[..read], 0, &mut events);
        }
        events
    };
    let ((), events) = timeout(PATIENCE, async { tokio::join!(write, read) }).await.unwrap();
    let codes = events.into_iter().map(|event| {
        let Event::Frame(body) = event else { panic!("an answer is small") };
        let text = String::from_utf8_lossy(body.as_bytes()).into_owned();
        text.split("MSA|").nth(1).unwrap().splitn(3, '|').take(2).collect::<Vec<_>>().join(" ")
    });
    codes.collect()
}

#[test]
fn what_was_acknowledged_is_there_after_a_reopening() {
    let directory = tempfile::tempdir().unwrap();
    let outbox = open(directory.path());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let mut messages: Vec<Vec<u8>> = (1..=20usize)
        .map(|n| {
            let mut message =
                format!("MSH|^~\\&|LAB|SURG|||1||ORU^R01|{n}|P|2.3|||AL\rPID|1|x\r").into_bytes();
            // Some span several chunks of the store, some have bytes of no charset.
            message.resize(message.len() + n * 1500, b'\xfc');
            message
        })
        .collect();
    let mut expected = messages.clone();
    messages.push(messages[4].clone());
    messages.push(b"PID|no header".to_vec());
    let named = b"MSH|^~\\&|943 476 5919|SURG|||1||ORU^R01|9434765919|P|2.3|||AL\rPID|1|x\r".to_vec();
    messages.push(named.clone());

    let counters = Arc::new(Counters::default());
    let (stop, stopped) = watch::channel(false);
    runtime.block_on(async {
        let door = MllpDoor::listen(door_settings(), TrustedClock::open(directory.path())).await.unwrap();
        let address = door.address();
        let serving = tokio::spawn(door.serve(
            outbox.clone(),
            Arc::clone(&counters),
            Budget::new(1 << 20),
            watch::Sender::new(0).subscribe(),
            stopped,
        ));
        let mut answers: Vec<String> = (1..=20).map(|n| format!("CA {n}")).collect();
        answers.extend(["CA 5".to_owned(), "AR ".to_owned(), "CA 9434765919".to_owned()]);
        assert_eq!(converse(address, &messages).await, answers);
        stop.send(true).unwrap();
        timeout(PATIENCE, serving).await.unwrap().unwrap();
    });
    let counts = counters.counts();
    assert_eq!((counts.accepted, counts.repeated, counts.refused, counts.quarantine_failed), (22, 1, 1, 0));
    assert_eq!(counts.withheld, 1, "the patient's number is accepted in the body");
    expected.push(named);
    assert_eq!(outbox.snapshot().quarantined, 1);
    outbox.close();

    let outbox = open(directory.path());
    let mut bodies = Vec::new();
    while (bodies.len() as u64) < *outbox.tail(&lane()).unwrap().borrow() {
        let next = bodies.len() as u64 + 1;
        let stored = outbox.read(&lane(), next, 100, 1 << 20).unwrap();
        bodies.extend(stored.iter().map(|stored| stored.transaction.body.as_bytes().to_vec()));
    }
    assert_eq!(bodies, expected);
    let verdict = verify(&outbox, &lane(), |_, _| ControlFlow::Continue(())).unwrap().unwrap();
    assert!(verdict.ok && verdict.verified == 21, "{verdict:?}");
    let last = outbox.read(&lane(), 21, 1, usize::MAX).unwrap().remove(0).transaction;
    assert_eq!((last.sender.as_str(), last.shows_key), ("hl7v2:withheld%7CSURG", false));
    assert_eq!(last.sender_as_given(), "hl7v2:943%20476%205919%7CSURG");
    assert_eq!(outbox.snapshot().quarantined, 1);
    outbox.close();
}
