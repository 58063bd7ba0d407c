//! A store with a bad disk, a full quarantine or a long retention.

use std::time::{Duration, Instant};

use crate::faults_for_tests as faults;
use crate::faults_for_tests::Point;
use crate::guard::segment::{DATABASE_FILE, Segment};
use crate::pipeline::jobs::Task;
use crate::tests::{
    add, at, bodies, clinical, codes, confirm_through, copy, counts, eventually, expected, key, open,
    segment_files, settings, submission, submit, tail,
};
use crate::*;

#[test]
fn the_retention_of_all_segments_runs_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let retention = Duration::from_secs(3);
    let outbox = Outbox::open(OutboxSettings { retention, ..settings(directory.path()) }, key()).unwrap();
    add(&outbox, 1..=65);
    confirm_through(&outbox, 65, None);
    eventually("the first goes", || outbox.first_retained(&clinical()) > Some(1));
    let first = Instant::now();
    eventually("the others go", || outbox.first_retained(&clinical()) == Some(65));
    assert!(first.elapsed() < retention, "with it, not each after another retention");
}

#[test]
fn nothing_is_pruned_on_the_word_of_a_connection_that_is_gone() {
    let directory = tempfile::tempdir().unwrap();
    let outbox = open(directory.path());
    add(&outbox, 1..=30);
    confirm_through(&outbox, 30, None);
    outbox.close();
    let settings = OutboxSettings { retention: Duration::ZERO, ..settings(directory.path()) };
    let outbox = Outbox::open(settings, key()).unwrap();
    let checks = || (0..10).map(|_| std::thread::sleep(Duration::from_millis(50)));
    checks().for_each(|()| assert_eq!(outbox.first_retained(&clinical()), Some(1), "before the hub answers"));
    confirm_through(&outbox, 12, None);
    eventually("it has answered", || outbox.first_retained(&clinical()) == Some(9));
    let old = Instant::now().checked_sub(Duration::from_secs(61)).unwrap();
    outbox.confirm(&clinical(), at(30), None, Some(old));
    checks().for_each(|()| {
        assert_eq!(outbox.first_retained(&clinical()), Some(9), "an answer of another minute")
    });
    outbox.confirm(&clinical(), at(30), None, None);
    checks().for_each(|()| assert_eq!(outbox.first_retained(&clinical()), Some(9), "no answer at all"));
    assert!(outbox.wants_answer(&clinical()));
    outbox.link_lost();
    let state = outbox.lane(&clinical()).unwrap();
    state.state().watermark.position = 30;
    checks().for_each(|()| assert_eq!(outbox.first_retained(&clinical()), Some(9), "the link is lost"));
}

/// Two hubs under one name: what one of them has answered must not prune once the other has set the watermark back.
#[test]
fn an_answer_counts_no_more_once_the_watermark_has_gone_back() {
    let directory = tempfile::tempdir().unwrap();
    let outbox = open(directory.path());
    add(&outbox, 1..=30);
    confirm_through(&outbox, 30, None);
    let lane = outbox.lane(&clinical()).unwrap();
    assert!(lane.state().answer.is_some());
    outbox.confirm(&clinical(), at(12), None, None);
    assert!(lane.state().answer.is_none());
    confirm_through(&outbox, 12, None);
    assert!(lane.state().answer.is_some());
    outbox.withdraw_answer(&clinical());
    assert!(lane.state().answer.is_none());
}

/// sled panics in its drop when the fsync there fails.
#[test]
fn a_handle_that_panics_when_it_is_dropped_takes_no_thread_with_it() {
    let directory = tempfile::tempdir().unwrap();
    let outbox = open(directory.path());
    add(&outbox, 1..=3);
    let faults = faults::in_store(directory.path());
    faults.fail_next(Point::Sync, 1);
    faults.fail_next(Point::Close, 3);
    add(&outbox, 4..=40);
    assert_eq!(bodies(&outbox), expected(1..=40));
    assert!(outbox.pulse(Duration::from_secs(10)));
    outbox.close();
    faults.fail_next(Point::Close, 0);
    assert_eq!(bodies(&open(directory.path())), expected(1..=40));
}

#[test]
fn a_thread_that_ended_feeds_no_watchdog() {
    let directory = tempfile::tempdir().unwrap();
    let outbox = open(directory.path());
    assert!(outbox.pulse(Duration::from_secs(10)));
    outbox.shared().task(Task::Stop);
    eventually("it is noticed", || !outbox.pulse(Duration::from_secs(10)));
}

#[test]
fn a_segment_that_the_disk_cannot_read_is_rebuilt() {
    let directory = tempfile::tempdir().unwrap();
    let outbox = open(directory.path());
    add(&outbox, 1..=12);
    outbox.close();
    faults::in_store(directory.path()).fail_next(Point::Read, 1);
    let outbox = open(directory.path());
    assert_eq!(codes(&outbox), ["salvaged"]);
    assert_eq!(bodies(&outbox), expected(1..=12));
}

/// sled takes the first message that it cannot read for the end of its log, and zeroes the rest.
#[test]
fn a_flipped_bit_costs_one_record_at_most_wherever_it_is() {
    let directory = tempfile::tempdir().unwrap();
    let outbox = open(directory.path());
    let body = |number: u64| vec![u8::try_from(number).unwrap() | 0x80; 15_000 + number as usize];
    // Bodies that compress well: a piece of sled's log should have many of them.
    let bodies: Vec<_> = (1..=60).map(body).collect();
    for (number, body) in bodies.iter().enumerate() {
        let mut noise = body.clone();
        let mut state = number as u64 + 1;
        for byte in &mut noise {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            *byte = (state >> 33) as u8;
        }
        submit(&outbox, submission(&number.to_string(), &noise)).unwrap();
    }
    outbox.close();
    let files = segment_files(directory.path());
    let mut carved = 0;
    for file in [&files[0], files.last().unwrap()] {
        let length = std::fs::metadata(file).unwrap().len() as usize;
        for offset in (0..length).step_by(length / 24).map(|at| at + 61) {
            let damaged = tempfile::tempdir().unwrap();
            copy(directory.path(), damaged.path());
            let file = damaged.path().join(file.strip_prefix(directory.path()).unwrap());
            let mut bytes = std::fs::read(&file).unwrap();
            let Some(byte) = bytes.get_mut(offset) else { continue };
            *byte ^= 0x10;
            std::fs::write(&file, bytes).unwrap();
            let outbox = open(damaged.path());
            let mut readable = 0;
            for position in 1..=60 {
                readable +=
                    usize::from(outbox.read(&clinical(), position, 1, 0).is_ok_and(|r| !r.is_empty()));
            }
            carved += codes(&outbox).iter().filter(|code| **code == "salvaged").count();
            assert!(readable >= 59, "{} at {offset}: {readable} of 60", file.display());
            assert_eq!(counts(&outbox).accepted, 60);
        }
    }
    assert!(carved > 0);
}

#[test]
fn a_full_quarantine_does_not_keep_the_store_shut() {
    let directory = tempfile::tempdir().unwrap();
    let outbox = open(directory.path());
    add(&outbox, 1..=3);
    outbox.close();
    let path = segment_files(directory.path()).pop().unwrap();
    let segment = Segment::open(path.parent().unwrap(), 3).unwrap();
    segment.append(4, &[[0xaa; 200].as_slice(), &[0; 9000]].concat()).unwrap();
    segment.barrier().unwrap();
    drop(segment);
    assert!(path.ends_with(DATABASE_FILE));
    let full = OutboxSettings { quarantine_bytes: 0, ..settings(directory.path()) };
    let outbox = Outbox::open(full, key()).unwrap();
    assert!(outbox.quarantine("framing", "urn:x", b"junk").is_err(), "it is full");
    assert_eq!(codes(&outbox), ["tail.trimmed"]);
    assert_eq!((tail(&outbox), outbox.snapshot().quarantined), (3, 1));
}

#[test]
fn what_cannot_be_stored_shows_as_refusing() {
    let directory = tempfile::tempdir().unwrap();
    let outbox = open(directory.path());
    let faults = faults::in_store(directory.path());
    faults.fail_next(Point::Create, 1_000);
    faults.fail_next(Point::Sync, 1);
    submit(&outbox, submission("K1", b"body 1")).unwrap_err();
    let refusing = outbox.snapshot().refusing.unwrap();
    assert!(refusing.contains("clinical"), "{refusing}");
    let left = std::fs::read_dir(directory.path().join("segments/clinical")).unwrap().count();
    faults.fail_next(Point::Create, 0);
    eventually("it can be stored again", || outbox.snapshot().refusing.is_none());
    assert!(left < 4, "a failed try leaves nothing behind: {left}");
}

/// Opening an old segment takes a tenth of a second and more, carving it longer: only the sender that repeats one of its
/// records waits.
#[test]
fn a_repetition_of_something_old_holds_up_nobody_else() {
    let directory = tempfile::tempdir().unwrap();
    let outbox = open(directory.path());
    add(&outbox, 1..=30);
    outbox.close();
    let outbox = open(directory.path());
    let lane = outbox.lane(&clinical()).unwrap();
    let database = lane.segment_directory(1).join(DATABASE_FILE);
    let patience = Duration::from_secs(20);
    let mut repetition = Box::pin(outbox.submit(submission("K1", b"body 1")));
    std::thread::scope(|scope| {
        let (closed, is_closed) = std::sync::mpsc::channel();
        let (done, others) = std::sync::mpsc::channel();
        let slow = scope.spawn(move || {
            let wait = || {
                closed.send(()).unwrap();
                others.recv_timeout(patience).is_ok()
            };
            lane.handles.alone(1, &database, patience, wait)
        });
        is_closed.recv().unwrap();
        // The first poll submits it.
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        assert!(repetition.as_mut().poll(&mut context).is_pending());
        add(&outbox, 31..=40);
        let _ = done.send(());
        assert_eq!(slow.join().unwrap(), Some(true), "the others waited for it");
    });
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let first = runtime.block_on(repetition).unwrap();
    assert_eq!((first.repeated, first.position), (true, 1));
    assert_eq!(bodies(&outbox), expected(1..=40));
}
