//! The digest tables: what is sent can be proven when its record is gone, and forks cost nothing.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use pgw_core::chain::Digest;
use pgw_core::transaction::Position;

use crate::faults_for_tests::{self as faults, Point};
use crate::guard::segment::DATABASE_FILE;
use crate::state::digest_table::{sealed_end, table_path};
use crate::tests::{
    add, bodies, checkpointed, clinical, confirm_through, copy, eventually, expected, key, open,
    segment_files, settings, submission, submit,
};
use crate::*;

pub(super) fn directory_of(store: &Path) -> PathBuf {
    store.join("segments/clinical")
}

pub(super) fn is_sealed(outbox: &Outbox, store: &Path, base: Position) -> bool {
    let lane_id = outbox.lane(&clinical()).unwrap().lane_id;
    sealed_end(&directory_of(store), lane_id, base).unwrap().is_some()
}

/// The digests as the records have them now.
pub(super) fn recorded(outbox: &Outbox) -> Vec<Option<Digest>> {
    let records = outbox.chained(&clinical(), 1, usize::MAX, usize::MAX).unwrap();
    records.into_iter().map(|record| Some(record.digest)).collect()
}

pub(super) fn digests(outbox: &Outbox) -> Vec<Option<Digest>> {
    outbox.digests(&clinical(), 1, 1000).unwrap()
}

/// A closed store of 30 in segments of 8, and the digests.
fn closed() -> (tempfile::TempDir, Vec<Option<Digest>>) {
    let store = tempfile::tempdir().unwrap();
    let outbox = open(store.path());
    add(&outbox, 1..=30);
    let all = recorded(&outbox);
    assert_eq!((all.len(), digests(&outbox)), (30, all.clone()));
    eventually("closed segments are sealed", || {
        [1, 9, 17].iter().all(|base| is_sealed(&outbox, store.path(), *base))
    });
    assert!(!is_sealed(&outbox, store.path(), 25));
    outbox.close();
    (store, all)
}

/// Destroys a segment's database, so that nothing of it can be carved.
fn destroy_segment(store: &Path, index: usize) {
    let file = &segment_files(store)[index];
    let length = std::fs::metadata(file).unwrap().len();
    std::fs::write(file, vec![0; usize::try_from(length).unwrap()]).unwrap();
}

/// Every file of the lane's segments and tables: its bytes and when it was written.
fn segments(store: &Path) -> BTreeMap<PathBuf, (Vec<u8>, SystemTime)> {
    let files = crate::guard::carve::files_below(&store.join("segments")).unwrap();
    let facts =
        |path: &PathBuf| (std::fs::read(path).unwrap(), std::fs::metadata(path).unwrap().modified().unwrap());
    let files = files.into_iter().filter(|path| !path.ends_with("numbering.copy"));
    files.map(|path| (path.clone(), facts(&path))).collect()
}

fn large_store(store: &Path, count: u32) -> Outbox {
    let roomy = OutboxSettings { segment_records: 8192, ..settings(store) };
    let outbox = Outbox::open(roomy, key()).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        for first in (0..count).step_by(1000) {
            let mut group = tokio::task::JoinSet::new();
            for number in first..(first + 1000).min(count) {
                let outbox = outbox.clone();
                group.spawn(async move {
                    outbox.submit(submission(&number.to_string(), b"x")).await.unwrap();
                });
            }
            group.join_all().await;
        }
    });
    outbox
}

#[test]
fn a_fork_with_a_backlog_touches_no_segment_and_takes_no_turn_of_the_writer() {
    let directory = tempfile::tempdir().unwrap();
    let outbox = large_store(directory.path(), 100_000);
    let lane = outbox.lane(&clinical()).unwrap();
    let closed = lane.state().segments.len() - 1;
    eventually("the closed segments are sealed", || {
        let bases: Vec<Position> =
            lane.state().segments.values().map(|span| span.base).take(closed).collect();
        bases.iter().all(|base| is_sealed(&outbox, directory.path(), *base))
    });
    eventually("a segment is ready", || {
        crate::lock::locked(&lane.ahead).is_some() || lane.state().tail % 8192 < 6000
    });
    let faults = faults::in_store(directory.path());
    // The writer hangs in a barrier: whoever needs a turn of its thread waits.
    faults.allow_syncs(Some(0));
    let hanging = {
        let outbox = outbox.clone();
        std::thread::spawn(move || submit(&outbox, submission("last", b"x")))
    };
    eventually("the writer hangs", || faults.waiting() > 0);
    // From then on maintenance syncs no table either.
    eventually("the tail is noted", || checkpointed(directory.path()) == lane.state().tail);
    let (before, reads) = (segments(directory.path()), faults.reads());
    let numbering = outbox.new_epoch(&clinical(), 10, None, Vec::new(), &[]).unwrap();
    outbox.save_numbering(&clinical(), &numbering).unwrap();
    assert_eq!(faults.reads(), reads, "nothing was read");
    assert!(segments(directory.path()) == before, "no file of a segment has changed");
    assert_eq!(outbox.numbering(&clinical()).unwrap(), numbering);
    faults.allow_syncs(None);
    hanging.join().unwrap().unwrap();
    outbox.close();
    let outbox = open(directory.path());
    assert_eq!(outbox.numbering(&clinical()).unwrap(), numbering);
}

#[test]
fn what_is_destroyed_or_pruned_after_its_segment_closed_keeps_its_digest() {
    let (store, all) = closed();
    destroy_segment(store.path(), 1);
    let outbox = open(store.path());
    assert!(matches!(outbox.read(&clinical(), 9, 1, 0), Err(ReadError::Gone { .. })));
    assert_eq!(digests(&outbox), all);
    outbox.close();
    let pruning = OutboxSettings { retention: std::time::Duration::ZERO, ..settings(store.path()) };
    let outbox = Outbox::open(pruning, key()).unwrap();
    confirm_through(&outbox, 30, None);
    eventually("it is pruned", || outbox.first_retained(&clinical()) == Some(25));
    assert_eq!(digests(&outbox), all);
    assert_eq!(outbox.digests(&clinical(), 7, 4).unwrap(), all[6..10]);
    assert_eq!(outbox.digests(&clinical(), 23, 4).unwrap(), all[22..26]);
    outbox.close();
    let outbox = open(store.path());
    assert_eq!(digests(&outbox), all);
    assert_eq!(outbox.digests(&clinical(), 31, 9).unwrap(), [], "there is nothing beyond the tail");
}

/// What may have become of the table at 9: everything about it is of another segment, another lane, torn, damaged or gone.
fn spoilt(store: &Path) -> Vec<(&'static str, Option<Vec<u8>>)> {
    let directory = directory_of(store);
    let whole = std::fs::read(table_path(&directory, 9)).unwrap();
    let flipped = |at: usize| {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        Some(bytes)
    };
    let other = {
        let other = tempfile::tempdir().unwrap();
        let outbox = open(other.path());
        add(&outbox, 101..=117);
        outbox.close();
        std::fs::read(table_path(&directory_of(other.path()), 9)).unwrap()
    };
    vec![
        ("missing", None),
        ("empty", Some(Vec::new())),
        ("head damaged", flipped(20)),
        ("an entry damaged", flipped(68 + 36 * 3)),
        ("torn", Some(whole[..68 + 36 * 4 + 10].to_vec())),
        ("another segment's", Some(std::fs::read(table_path(&directory, 17)).unwrap())),
        ("another lane's", Some(other)),
    ]
}

/// A file with this content; `None`: none.
fn put(path: &Path, bytes: Option<Vec<u8>>) {
    match bytes {
        Some(bytes) => std::fs::write(path, bytes).unwrap(),
        None => std::fs::remove_file(path).unwrap(),
    }
}

#[test]
fn a_table_that_is_damaged_torn_missing_or_anothers_is_made_again_from_the_records() {
    let (store, all) = closed();
    for (what, bytes) in spoilt(store.path()) {
        let spoilt = tempfile::tempdir().unwrap();
        copy(store.path(), spoilt.path());
        let path = table_path(&directory_of(spoilt.path()), 9);
        put(&path, bytes);
        let outbox = open(spoilt.path());
        assert_eq!(digests(&outbox), all, "{what}");
        eventually("it is sealed again", || is_sealed(&outbox, spoilt.path(), 9));
        outbox.close();
        assert_eq!(
            std::fs::read(&path).unwrap(),
            std::fs::read(table_path(&directory_of(store.path()), 9)).unwrap(),
            "{what}"
        );
        destroy_segment(spoilt.path(), 1);
        let outbox = open(spoilt.path());
        assert_eq!(digests(&outbox), all, "{what}, and its segment is gone now");
    }
}

#[test]
fn where_the_records_are_gone_too_a_digest_is_unknown_and_never_wrong() {
    let (store, all) = closed();
    for (what, bytes) in spoilt(store.path()) {
        let spoilt = tempfile::tempdir().unwrap();
        copy(store.path(), spoilt.path());
        let path = table_path(&directory_of(spoilt.path()), 9);
        put(&path, bytes);
        destroy_segment(spoilt.path(), 1);
        for _ in 0..2 {
            let outbox = open(spoilt.path());
            let found = digests(&outbox);
            assert!(
                found.iter().zip(&all).all(|(found, true_one)| found.is_none() || found == true_one),
                "{what}"
            );
            assert_eq!((&found[..8], &found[16..]), (&all[..8], &all[16..]), "{what}");
            assert!(found[8..16].iter().any(Option::is_none), "{what}");
            outbox.close();
        }
    }
}

#[test]
fn a_crash_between_the_barrier_and_the_table_loses_no_digest() {
    for passing in 0..5 {
        let directory = tempfile::tempdir().unwrap();
        let outbox = open(directory.path());
        let faults = faults::in_store(directory.path());
        faults.fail_after(Point::Table, passing);
        add(&outbox, 1..=5);
        faults.fail_next(Point::Table, u32::MAX);
        add(&outbox, 6..=11);
        assert_eq!(digests(&outbox), recorded(&outbox), "while it runs, {passing}");
        add(&outbox, 12..=14);
        let all = recorded(&outbox);
        assert_eq!(digests(&outbox), all, "and once more, {passing}");
        // As after a kill: the files as they are now.
        let killed = tempfile::tempdir().unwrap();
        copy(directory.path(), killed.path());
        drop(outbox);
        let outbox = open(killed.path());
        assert_eq!(digests(&outbox), all, "{passing}");
        add(&outbox, 15..=20);
        assert_eq!(bodies(&outbox), expected(1..=20));
        eventually("sealed", || [1, 9].iter().all(|base| is_sealed(&outbox, killed.path(), *base)));
    }
}

#[test]
fn a_table_that_a_crash_left_half_written_keeps_no_store_from_opening() {
    let (store, all) = closed();
    let table = table_path(&directory_of(store.path()), 9);
    let half = std::fs::read(&table).unwrap()[..100].to_vec();
    let draft = table.with_extension("digests.new");
    for there in [true, false] {
        std::fs::write(&draft, &half).unwrap();
        if !there {
            std::fs::remove_file(&table).unwrap();
        }
        let outbox = open(store.path());
        assert_eq!((digests(&outbox), bodies(&outbox)), (all.clone(), expected(1..=30)));
        outbox.close();
    }
    assert!(table.exists() && !draft.exists());
}

/// A table may have reached the disk further than the records that a power cut left.
#[test]
fn an_old_entry_never_names_a_new_record() {
    let directory = tempfile::tempdir().unwrap();
    let outbox = open(directory.path());
    add(&outbox, 1..=3);
    outbox.close();
    let before = tempfile::tempdir().unwrap();
    copy(directory.path(), before.path());
    let outbox = open(directory.path());
    add(&outbox, 4..=6);
    outbox.close();
    let old = table_path(&directory_of(directory.path()), 1);
    for entries_are_written in [false, true] {
        let store = tempfile::tempdir().unwrap();
        copy(before.path(), store.path());
        std::fs::copy(&old, table_path(&directory_of(store.path()), 1)).unwrap();
        let outbox = open(store.path());
        if !entries_are_written {
            faults::in_store(store.path()).fail_next(Point::Table, 100);
        }
        for number in 4..=6 {
            submit(&outbox, submission(&format!("N{number}"), b"other")).unwrap();
        }
        assert_eq!(digests(&outbox), recorded(&outbox));
        faults::in_store(store.path()).fail_next(Point::Table, 0);
        outbox.close();
        // The old entries once more, as if cutting them off had never reached the disk.
        std::fs::copy(&old, table_path(&directory_of(store.path()), 1)).unwrap();
        let outbox = open(store.path());
        assert_eq!(digests(&outbox), recorded(&outbox));
    }
}

#[test]
fn the_lanes_own_id_survives_the_loss_of_its_small_file() {
    let (store, all) = closed();
    let small = store.path().join("lanes/clinical/numbering");
    // A fork that no segment knows of.
    let numbering = open(store.path()).new_epoch(&clinical(), 30, None, Vec::new(), &[]).unwrap();
    for deleted in [true, false] {
        if deleted {
            std::fs::remove_file(&small).unwrap();
        } else {
            std::fs::write(&small, "damaged").unwrap();
        }
        let outbox = open(store.path());
        assert_eq!(bodies(&outbox), expected(1..=30));
        assert_eq!(
            (digests(&outbox), outbox.numbering(&clinical()).unwrap()),
            (all.clone(), numbering.clone())
        );
    }
    // Without its copy the headers of the segments have it, and without them the tables.
    let copy = directory_of(store.path()).join("numbering.copy");
    for file in [&small, &copy] {
        std::fs::remove_file(file).unwrap();
    }
    assert_eq!(bodies(&open(store.path())), expected(1..=30));
    for file in [&small, &copy] {
        std::fs::remove_file(file).unwrap();
    }
    for file in segment_files(store.path()) {
        let mut bytes = std::fs::read(&file).unwrap();
        for at in 0..bytes.len() {
            if crate::guard::record::parse_chunk(&bytes[at..]).is_some_and(|chunk| chunk.position == 0) {
                bytes[at + 40] ^= 1;
            }
        }
        std::fs::write(file, bytes).unwrap();
    }
    let outbox = open(store.path());
    assert_eq!(bodies(&outbox), expected(1..=30));
    assert_eq!(digests(&outbox), all);
}

#[test]
fn a_release_reads_no_backlog() {
    let directory = tempfile::tempdir().unwrap();
    let outbox = large_store(directory.path(), 20_000);
    outbox.new_epoch(&clinical(), 5, None, Vec::new(), &[]).unwrap();
    outbox.lane(&clinical()).unwrap().state().missing.add(100, 100);
    let faults = faults::in_store(directory.path());
    let reads = faults.reads();
    outbox.void(&clinical(), (100, 100), "a bad sector", true).unwrap();
    assert!(faults.reads() <= reads + 2, "{} reads", faults.reads() - reads);
    assert_eq!(outbox.numbering(&clinical()).unwrap().epochs().count(), 2);
    assert!(outbox.read(&clinical(), 100, 1, 0).is_err());
    assert!(directory.path().join("segments/clinical/0000000001").join(DATABASE_FILE).exists());
}
