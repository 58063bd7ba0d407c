//! The barrier under load: the writer takes the next group while the disk still works on the last.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::task::JoinSet;

use crate::faults_for_tests as faults;
use crate::faults_for_tests::Point;
use crate::pipeline::jobs::GROUP_RECORDS;
use crate::tests::{add, bodies, clinical, codes, eventually, expected, key, settings, submission, tail};
use crate::*;

fn open(directory: &std::path::Path) -> Outbox {
    Outbox::open(OutboxSettings { segment_records: 8_192, ..settings(directory) }, key()).unwrap()
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_time().build().unwrap()
}

/// Submits one after the other, without waiting for an answer; all are queued when this returns.
fn queue(
    outbox: &Outbox,
    runtime: &tokio::runtime::Runtime,
    numbers: impl IntoIterator<Item = u32>,
) -> JoinSet<Result<Accepted, Refusal>> {
    let mut answers = JoinSet::new();
    for number in numbers {
        let one = submission(&format!("K{number}"), format!("body {number}").as_bytes());
        let taker = outbox.clone();
        answers.spawn_on(async move { taker.submit(one).await }, runtime.handle());
        // A runtime with one thread polls it now, in order.
        runtime.block_on(tokio::task::yield_now());
    }
    answers
}

/// Releases the disk when a test ends, even by a panic: the outbox cannot close while it hangs.
struct ReleaseDisk(Arc<faults::Faults>);

impl Drop for ReleaseDisk {
    fn drop(&mut self) {
        self.0.allow_syncs(None);
    }
}

/// The first submission keeps the writer at the disk, so that a group and ten more are queued behind it. Then one
/// barrier after the other is let through.
#[test]
fn the_next_group_waits_for_a_barrier_of_its_own() {
    for failing in [None, Some(Point::Sync), Some(Point::Append)] {
        let directory = tempfile::tempdir().unwrap();
        let outbox = open(directory.path());
        add(&outbox, 1..=1);
        let faults = faults::in_store(directory.path());
        let _release = ReleaseDisk(faults.clone());
        faults.allow_syncs(Some(0));
        let group = u32::try_from(GROUP_RECORDS).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let first = queue(&outbox, &runtime, 2..=2);
        eventually("the writer is at the disk", || faults.waiting() == 1);
        let answers = queue(&outbox, &runtime, 3..=group + 12);
        if let Some(Point::Append) = failing {
            faults.fail_next(Point::Append, 1);
        }
        faults.allow_syncs(Some(1));
        eventually("the first is answered", || tail(&outbox) == 2);
        assert!(runtime.block_on(first.join_all())[0].is_ok());
        // The writer is not at the disk now: it adds the ten while the group waits for its barrier.
        if let Some(Point::Sync) = failing {
            faults.fail_next(Point::Sync, 1);
        }
        eventually("the group is at the disk", || faults.waiting() == 1);
        assert_eq!(tail(&outbox), 2, "nothing is published before its barrier");
        if failing.is_none() {
            faults.allow_syncs(Some(1));
            eventually("the group is answered", || tail(&outbox) == u64::from(group) + 2);
            eventually("the ten are at the disk", || faults.waiting() == 1);
            assert_eq!(tail(&outbox), u64::from(group) + 2, "the ten wait for theirs");
        }
        faults.allow_syncs(None);
        let answers = runtime.block_on(answers.join_all());
        assert!(answers.iter().all(Result::is_ok));
        assert_eq!(bodies(&outbox), expected(1..=group + 12));
        let alarms = if failing.is_some() { vec!["store.trouble"] } else { vec![] };
        assert_eq!(codes(&outbox), alarms, "{failing:?}");
        outbox.close();
        assert_eq!(bodies(&open(directory.path())), expected(1..=group + 12));
    }
}

/// Sixty-four senders repeat every refused submission, while the disk fails again and again.
#[test]
fn under_load_and_faults_each_is_stored_once_and_none_is_lost() {
    let directory = tempfile::tempdir().unwrap();
    let settings = OutboxSettings { segment_records: 500, ..settings(directory.path()) };
    let outbox = Outbox::open(settings.clone(), key()).unwrap();
    let faults = faults::in_store(directory.path());
    let runtime = runtime();
    let done = Arc::new(AtomicBool::new(false));
    let saboteur = std::thread::spawn({
        let (faults, done, outbox) = (faults.clone(), done.clone(), outbox.clone());
        move || {
            let mut seen = 0;
            for point in [Point::Sync, Point::Append, Point::Sync, Point::Create].into_iter().cycle() {
                // Between two faults some work must get through.
                while tail(&outbox) < seen + 150 {
                    if done.load(Ordering::Relaxed) {
                        return;
                    }
                    std::thread::sleep(Duration::from_micros(500));
                }
                seen = tail(&outbox);
                faults.fail_next(point, 1);
            }
        }
    });
    let mut senders = JoinSet::new();
    for sender in 0..64u32 {
        let outbox = outbox.clone();
        senders.spawn_on(
            async move {
                let mut positions = Vec::new();
                for number in sender * 60..sender * 60 + 60 {
                    positions.push(loop {
                        let one = submission(&format!("K{number}"), format!("body {number}").as_bytes());
                        match outbox.submit(one).await {
                            Ok(accepted) => break (number, accepted.position),
                            Err(_) => tokio::time::sleep(Duration::from_millis(2)).await,
                        }
                    });
                }
                positions
            },
            runtime.handle(),
        );
    }
    let limit = Duration::from_secs(60);
    let all = runtime.block_on(async { tokio::time::timeout(limit, senders.join_all()).await });
    let answered = all.expect("the store works again, however much comes in meanwhile").concat();
    done.store(true, Ordering::Relaxed);
    saboteur.join().unwrap();
    assert!(codes(&outbox).contains(&"store.trouble"), "the faults were met");
    outbox.close();

    let outbox = Outbox::open(settings, key()).unwrap();
    assert_eq!(tail(&outbox), 64 * 60, "each once");
    let bodies = bodies(&outbox);
    for (number, position) in answered {
        let index = usize::try_from(position - 1).unwrap();
        assert_eq!(bodies[index], format!("body {number}"), "as it was answered");
    }
    assert_eq!(outbox.tail(&clinical()).map(|tail| *tail.borrow()), Some(64 * 60));
}
