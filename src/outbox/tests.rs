//! The outbox as a whole, with faults planted where only this crate can.

use std::path::Path;

use super::segment::faults::{self, Point};
use super::*;

fn settings(directory: &Path) -> Settings {
    Settings {
        directory: directory.to_owned(),
        practice: Practice::new("B86022").unwrap(),
        gateway: Gateway::new("gw1").unwrap(),
        lanes: vec![
            LaneSettings { lane: clinical(), urgent: false },
            LaneSettings { lane: urgent(), urgent: true },
        ],
        segment_records: 8,
        segment_bytes: 1 << 20,
        retention: Duration::from_secs(3600),
        limit_bytes: 1 << 30,
        min_free_bytes: 0,
        min_free_percent: 0,
        max_body_bytes: 20_000_000,
        queue_bytes: 64 << 20,
        quarantine_bytes: 1 << 20,
    }
}

fn clinical() -> Lane {
    Lane::new("clinical").unwrap()
}

fn urgent() -> Lane {
    Lane::new("urgent").unwrap()
}

fn key() -> OutboxKey {
    OutboxKey::new([7; 32])
}

fn open(directory: &Path) -> Outbox {
    Outbox::open(settings(directory), key()).unwrap()
}

fn submission(key: &str, body: &[u8]) -> Submission {
    Submission {
        lane: clinical(),
        event_type: "hl7v2.oru_r01".into(),
        kind: "hl7v2".into(),
        content_type: "application/hl7-v2+er7".into(),
        source: "urn:lab".into(),
        key: key.into(),
        correlation_id: String::new(),
        test_data: false,
        body: Body::new(body.to_vec()),
    }
}

fn submit(outbox: &Outbox, submission: Submission) -> Result<Accepted, Refusal> {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(outbox.submit(submission))
}

fn add(outbox: &Outbox, numbers: impl IntoIterator<Item = u32>) {
    for number in numbers {
        submit(outbox, submission(&format!("K{number}"), format!("body {number}").as_bytes())).unwrap();
    }
}

fn tail(outbox: &Outbox) -> Position {
    *outbox.tail(&clinical()).unwrap().borrow()
}

/// Reads a lane from its beginning and checks numbers and chain.
fn bodies(outbox: &Outbox) -> Vec<String> {
    let mut bodies = Vec::new();
    let mut from = 1;
    let mut last: Option<Stored> = None;
    loop {
        let records = outbox.read(&clinical(), from, 3, usize::MAX).unwrap();
        if records.is_empty() {
            return bodies;
        }
        for stored in records {
            assert_eq!(stored.position, from);
            let first = ChainValue::first(stored.epoch, "clinical");
            let previous = last.filter(|l| l.epoch == stored.epoch).map_or(first, |l| l.chain);
            assert_eq!(stored.previous, previous, "position {from}");
            let chain = previous.next_for(stored.epoch, &clinical(), stored.sequence, &stored.transaction);
            assert_eq!(stored.chain, chain, "position {from}");
            bodies.push(String::from_utf8(stored.transaction.body.as_bytes().to_vec()).unwrap());
            last = Some(stored);
            from += 1;
        }
    }
}

fn expected(numbers: impl IntoIterator<Item = u32>) -> Vec<String> {
    numbers.into_iter().map(|n| format!("body {n}")).collect()
}

fn codes(outbox: &Outbox) -> Vec<&'static str> {
    outbox.notables().into_iter().map(|notable| notable.code).collect()
}

#[test]
fn what_was_accepted_is_there_after_reopening() {
    let directory = tempfile::tempdir().unwrap();
    let outbox = open(directory.path());
    add(&outbox, 1..=30);
    assert_eq!(bodies(&outbox), expected(1..=30));
    outbox.close();
    let outbox = open(directory.path());
    assert_eq!(bodies(&outbox), expected(1..=30));
    add(&outbox, 31..=35);
    assert_eq!(bodies(&outbox), expected(1..=35));
    let counts = &outbox.snapshot().lanes[0].1;
    assert_eq!((counts.accepted, counts.waiting, counts.damaged), (35, 35, 0));
    assert_eq!(codes(&outbox), Vec::<&str>::new());
}

#[test]
fn a_repetition_gets_the_first_answer_and_is_not_stored_twice() {
    let directory = tempfile::tempdir().unwrap();
    let outbox = open(directory.path());
    let first = submit(&outbox, submission("A", b"one")).unwrap();
    let again = submit(&outbox, submission("A", b"one")).unwrap();
    assert_eq!(again, Accepted { repeated: true, ..first });
    let other = submit(&outbox, submission("A", b"two")).unwrap();
    assert!(other.key_reused && !other.repeated && other.position == 2);
    let unnamed = submit(&outbox, submission("", b"three")).unwrap();
    assert_eq!(submit(&outbox, submission("", b"three")).unwrap().id, unnamed.id);
    let elsewhere = Submission { source: "urn:ward".into(), ..submission("A", b"one") };
    assert!(!submit(&outbox, elsewhere).unwrap().repeated);
    assert_eq!(tail(&outbox), 4);
    outbox.close();
    let outbox = open(directory.path());
    assert_eq!(submit(&outbox, submission("A", b"one")).unwrap(), Accepted { repeated: true, ..first });
    assert_eq!(outbox.snapshot().repeated_total, 1);
}

#[test]
fn repetitions_in_one_group_share_their_fate() {
    let directory = tempfile::tempdir().unwrap();
    let outbox = open(directory.path());
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let answers = runtime.block_on(async {
        let tasks: Vec<_> = (0..50).map(|n| {
            let outbox = outbox.clone();
            async move { outbox.submit(submission("A", if n % 2 == 0 { b"one" } else { b"two" })).await.unwrap() }
        }).collect();
        let mut set = tokio::task::JoinSet::new();
        let local = tokio::task::LocalSet::new();
        local.run_until(async {
            for task in tasks {
                set.spawn_local(task);
            }
            set.join_all().await
        }).await
    });
    assert_eq!(answers.iter().filter(|a| !a.repeated).count(), 2);
    assert_eq!(answers.iter().filter(|a| a.key_reused).count(), 1);
    assert_eq!(tail(&outbox), 2);
}

#[test]
fn after_a_failed_sync_what_is_beyond_the_barrier_is_written_again() {
    for point in [Point::Sync, Point::Append] {
        let directory = tempfile::tempdir().unwrap();
        let outbox = open(directory.path());
        add(&outbox, 1..=3);
        faults::in_store(directory.path()).fail_next(point, 1);
        add(&outbox, 4..=5);
        assert_eq!(bodies(&outbox), expected(1..=5));
        assert_eq!(codes(&outbox), ["store.trouble"]);
        // The segment that failed takes no more, and what it holds beyond its barrier does not count.
        let state = outbox.lane(&clinical()).unwrap().state().clone();
        assert_eq!(state.row.values().map(|extent| extent.base).collect::<Vec<_>>(), [1, 4]);
        outbox.close();
        let outbox = open(directory.path());
        assert_eq!(bodies(&outbox), expected(1..=5));
    }
}

#[test]
fn a_store_that_cannot_write_refuses_and_gets_out_of_it_by_itself() {
    let directory = tempfile::tempdir().unwrap();
    let outbox = open(directory.path());
    add(&outbox, 1..=3);
    let faults = faults::in_store(directory.path());
    faults.fail_next(Point::Sync, 1);
    faults.fail_next(Point::Create, 4);
    let refused = submit(&outbox, submission("K4", b"body 4")).unwrap_err();
    assert!(matches!(refused, Refusal::Trouble(_)), "{refused}");
    assert_eq!(tail(&outbox), 3, "not published before it is behind a barrier");
    let mut tail = outbox.tail(&clinical()).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(tail.wait_for(|tail| *tail == 4)).unwrap();
    assert!(submit(&outbox, submission("K4", b"body 4")).unwrap().repeated, "stored once it worked");
    add(&outbox, 5..=9);
    assert_eq!(bodies(&outbox), expected(1..=9));
    assert_eq!(codes(&outbox), ["store.trouble", "store.ballast", "store.trouble", "store.works"]);
    outbox.close();
    let outbox = open(directory.path());
    assert_eq!(bodies(&outbox), expected(1..=9));
}
