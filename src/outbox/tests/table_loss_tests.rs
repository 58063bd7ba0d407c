//! What becomes of digest tables and of a lane's epochs when files are lost, unreadable or not where they should be.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use pgw_core::chain::Digest;
use pgw_core::transaction::Position;

use crate::faults_for_tests::{self as faults, Point};
use crate::pipeline::jobs::{Job, Task};
use crate::pipeline::segment_worker;
use crate::state::digest_table::{self, table_path};
use crate::tests::digest_tests::{digests, directory_of, is_sealed, recorded};
use crate::tests::{
    add, bodies, checkpointed, clinical, codes, confirm_through, copy, eventually, expected, key, open,
    segment_files, settings, submission, submit, tail,
};
use crate::*;

fn table_at(store: &Path, base: Position) -> PathBuf {
    table_path(&directory_of(store), base)
}

fn destroy(database: &Path) {
    let length = std::fs::metadata(database).unwrap().len();
    std::fs::write(database, vec![0; usize::try_from(length).unwrap()]).unwrap();
}

/// A closed store of 14 in segments of 8, and the digests.
fn closed() -> (tempfile::TempDir, Vec<Option<Digest>>) {
    let store = tempfile::tempdir().unwrap();
    let outbox = open(store.path());
    add(&outbox, 1..=14);
    let all = recorded(&outbox);
    eventually("the closed segment is sealed", || is_sealed(&outbox, store.path(), 1));
    outbox.close();
    (store, all)
}

/// The store as a power cut leaves it that takes every digest which was not synced.
fn after_power_cut(store: &Path) -> tempfile::TempDir {
    let cut = tempfile::tempdir().unwrap();
    copy(store, cut.path());
    for base in digest_table::table_bases(&directory_of(store)).unwrap() {
        match faults::in_store(store).durable(&table_at(store, base)) {
            Some(bytes) => std::fs::write(table_at(cut.path(), base), bytes).unwrap(),
            None => std::fs::remove_file(table_at(cut.path(), base)).unwrap(),
        }
    }
    cut
}

#[test]
fn a_tail_checkpoint_names_no_record_whose_digest_is_not_durable() {
    for count in [3, 8, 11, 19] {
        let directory = tempfile::tempdir().unwrap();
        let outbox = open(directory.path());
        let first_of_newest = (count - 1) / 8 * 8 + 1;
        add(&outbox, 1..=first_of_newest);
        let earlier = tempfile::tempdir().unwrap();
        copy(directory.path(), earlier.path());
        add(&outbox, first_of_newest + 1..=count);
        let all = recorded(&outbox);
        eventually("the checkpoint names the tail", || checkpointed(directory.path()) == u64::from(count));
        let cut = after_power_cut(directory.path());
        let number = outbox.lane(&clinical()).unwrap().state().segments.keys().next_back().copied().unwrap();
        drop(outbox);
        // The disk has lost the end of the newest segment as well.
        let of = |store: &Path| directory_of(store).join(format!("{number:010}"));
        std::fs::remove_dir_all(of(cut.path())).unwrap();
        copy(&of(earlier.path()), &of(cut.path()));
        let outbox = open(cut.path());
        assert!(codes(&outbox).contains(&"store.shortfall"), "{count}: {:?}", codes(&outbox));
        assert_eq!((tail(&outbox), digests(&outbox)), (u64::from(count), all.clone()), "{count}");
        // The lane goes on behind them, and the digests stay when their table is sealed.
        submit(&outbox, submission("next", b"next")).unwrap();
        eventually("sealed", || is_sealed(&outbox, cut.path(), u64::from(first_of_newest)));
        assert_eq!(digests(&outbox)[..all.len()], all, "{count}");
    }
}

/// Of the newest segment only its header is left: its table is all that knows the records.
#[test]
fn a_start_cuts_off_no_digest_of_a_record_that_is_lost() {
    let directory = tempfile::tempdir().unwrap();
    let outbox = open(directory.path());
    add(&outbox, 1..=3);
    outbox.shared().job(Job::Retire { lane: 0, tail: None });
    let lane = outbox.lane(&clinical()).unwrap();
    eventually("an empty segment", || lane.state().segments.len() == 2);
    let number = lane.state().segments.keys().next_back().copied().unwrap();
    let earlier = tempfile::tempdir().unwrap();
    let of = |store: &Path| directory_of(store).join(format!("{number:010}"));
    copy(&of(directory.path()), earlier.path());
    add(&outbox, 4..=6);
    let all = recorded(&outbox);
    eventually("the checkpoint names the tail", || checkpointed(directory.path()) == 6);
    outbox.close();
    std::fs::remove_dir_all(of(directory.path())).unwrap();
    copy(earlier.path(), &of(directory.path()));
    for _ in 0..2 {
        let outbox = open(directory.path());
        assert_eq!((tail(&outbox), digests(&outbox)), (6, all.clone()));
        outbox.close();
    }
}

/// The second of two segments that begin at one position has the table.
#[test]
fn a_segment_that_was_begun_and_left_empty_spoils_no_table() {
    let directory = tempfile::tempdir().unwrap();
    let outbox = open(directory.path());
    add(&outbox, 1..=3);
    outbox.shared().job(Job::Retire { lane: 0, tail: None });
    eventually("an empty segment", || outbox.lane(&clinical()).unwrap().state().segments.len() == 2);
    faults::in_store(directory.path()).fail_next(Point::Sync, 1);
    add(&outbox, 4..=6);
    let all = recorded(&outbox);
    let lane = outbox.lane(&clinical()).unwrap();
    let bases: Vec<_> = lane.state().segments.values().map(|span| span.base).collect();
    assert_eq!(bases, [1, 4, 4]);
    let numbers: Vec<_> = lane.state().segments.keys().copied().collect();
    for number in numbers {
        outbox.shared().keep_digests(lane, number);
    }
    let table = digest_table::read(&directory_of(directory.path()), lane.lane_id, 4, (4, 6)).unwrap();
    assert_eq!((table, digests(&outbox)), (all[3..].to_vec(), all.clone()));
    assert!(!is_sealed(&outbox, directory.path(), 4));
    add(&outbox, 7..=8);
    assert_eq!(digests(&outbox), recorded(&outbox));
}

type Spoil = fn(&Path);

/// What may stand in the place of a table.
const UNREADABLE: [(&str, Spoil); 4] = [
    ("a directory", |table| std::fs::create_dir(table).unwrap()),
    ("a link to itself", |table| symlink(table, table).unwrap()),
    ("garbage", |table| std::fs::write(table, [0xa5; 5000]).unwrap()),
    ("another length", |table| std::fs::write(table, [0; 10]).unwrap()),
];

#[test]
fn no_table_that_cannot_be_read_or_written_stops_a_start() {
    let (store, all) = closed();
    for (what, spoil) in UNREADABLE {
        for base in [1, 9] {
            let spoilt = tempfile::tempdir().unwrap();
            copy(store.path(), spoilt.path());
            std::fs::remove_file(table_at(spoilt.path(), base)).unwrap();
            spoil(&table_at(spoilt.path(), base));
            let outbox = open(spoilt.path());
            assert_eq!((bodies(&outbox), digests(&outbox)), (expected(1..=14), all.clone()), "{what} {base}");
            eventually("an alarm", || codes(&outbox).contains(&"damaged"));
            add(&outbox, 15..=20);
            assert_eq!(digests(&outbox), recorded(&outbox), "{what} {base}");
            outbox.close();
            let outbox = open(spoilt.path());
            assert_eq!(bodies(&outbox), expected(1..=20), "{what} {base}");
        }
    }
}

#[test]
fn without_table_and_record_a_digest_is_unknown_and_people_are_told() {
    let (store, all) = closed();
    for (what, spoil) in UNREADABLE {
        let spoilt = tempfile::tempdir().unwrap();
        copy(store.path(), spoilt.path());
        destroy(&segment_files(spoilt.path())[0]);
        std::fs::remove_file(table_at(spoilt.path(), 1)).unwrap();
        spoil(&table_at(spoilt.path(), 1));
        let outbox = open(spoilt.path());
        assert!(matches!(outbox.read(&clinical(), 1, 1, 0), Err(ReadError::Gone { .. })));
        assert_eq!(digests(&outbox), [&[None; 8], &all[8..]].concat(), "{what}");
        let told = |alarm: &OutboxAlarm| alarm.detail.contains("8 digests are unknown");
        assert!(outbox.alarms().iter().any(told), "{what}: {:?}", outbox.alarms());
    }
}

#[test]
fn an_entry_that_went_bad_in_a_sealed_table_comes_back_before_its_record_goes() {
    let (store, all) = closed();
    let table = table_at(store.path(), 1);
    let mut bytes = std::fs::read(&table).unwrap();
    bytes[68 + 36 * 3] ^= 1;
    std::fs::write(&table, bytes).unwrap();
    let pruning = OutboxSettings { retention: std::time::Duration::ZERO, ..settings(store.path()) };
    let outbox = Outbox::open(pruning, key()).unwrap();
    confirm_through(&outbox, 8, None);
    eventually("it is pruned", || outbox.first_retained(&clinical()) == Some(9));
    assert_eq!(digests(&outbox), all);
}

/// A backlog whose tables are all lost must delay neither a segment that the writer needs nor the end.
#[test]
fn tables_that_are_made_again_wait_for_all_other_work() {
    let (store, all) = closed();
    let outbox = open(store.path());
    eventually("the start's own work is done", || is_sealed(&outbox, store.path(), 1));
    std::fs::remove_file(table_at(store.path(), 1)).unwrap();
    let (tasks, work) = std::sync::mpsc::channel();
    tasks.send(Task::KeepDigests { lane: 0, number: 1 }).unwrap();
    tasks.send(Task::Stop).unwrap();
    segment_worker::run(outbox.shared(), &work);
    assert!(!table_at(store.path(), 1).exists());
    assert_eq!(digests(&outbox), all);
}

/// The table of a newest segment that the writer does not continue, as it was before a power cut.
#[test]
fn entries_of_another_history_count_for_nothing_in_a_segment_that_is_not_continued() {
    let directory = tempfile::tempdir().unwrap();
    let outbox = open(directory.path());
    add(&outbox, 1..=3);
    outbox.close();
    let other = tempfile::tempdir().unwrap();
    copy(directory.path(), other.path());
    let outbox = open(other.path());
    for number in 4..=6 {
        submit(&outbox, submission(&format!("N{number}"), b"other")).unwrap();
    }
    outbox.close();
    let before = std::fs::read(directory.path().join("sidecar")).unwrap();
    let outbox = open(directory.path());
    add(&outbox, 4..=6);
    let all = recorded(&outbox);
    outbox.close();
    std::fs::copy(table_at(other.path(), 1), table_at(directory.path(), 1)).unwrap();
    std::fs::write(directory.path().join("sidecar"), before).unwrap();
    let outbox = open(directory.path());
    assert_eq!(digests(&outbox), all);
    add(&outbox, 7..=7);
    eventually("sealed", || is_sealed(&outbox, directory.path(), 1));
    assert_eq!(digests(&outbox), recorded(&outbox));
}

/// A new segment whose table cannot be made stands beside what a power cut left of an older one.
#[test]
fn entries_of_another_history_count_for_nothing_where_the_writer_has_no_table() {
    let directory = tempfile::tempdir().unwrap();
    let outbox = open(directory.path());
    add(&outbox, 1..=8);
    let lane_id = outbox.lane(&clinical()).unwrap().lane_id;
    let other = tempfile::tempdir().unwrap();
    copy(directory.path(), other.path());
    let outside = tempfile::tempdir().unwrap();
    let elsewhere = outside.path().join("old");
    {
        let outbox = open(other.path());
        assert_eq!(outbox.lane(&clinical()).unwrap().lane_id, lane_id);
        for number in 9..=12 {
            submit(&outbox, submission(&format!("N{number}"), b"other")).unwrap();
        }
        outbox.close();
        std::fs::copy(table_at(other.path(), 9), &elsewhere).unwrap();
    }
    faults::in_store(directory.path()).fail_next(Point::TableBegin, 1);
    std::fs::copy(&elsewhere, table_at(directory.path(), 9)).unwrap();
    for number in 9..=12 {
        add(&outbox, number..=number);
        assert_eq!(digests(&outbox), recorded(&outbox), "{number}");
    }
    add(&outbox, 13..=17);
    eventually("sealed", || is_sealed(&outbox, directory.path(), 9));
    assert_eq!(digests(&outbox), recorded(&outbox));
}

fn numbering_file(store: &Path) -> PathBuf {
    store.join("lanes/clinical/numbering")
}

fn numbering_copy(store: &Path) -> PathBuf {
    store.join("segments/clinical/numbering.copy")
}

#[test]
fn of_two_files_with_epochs_the_one_written_last_counts_and_the_other_follows() {
    let (store, _) = closed();
    let (file, copied) = (numbering_file(store.path()), numbering_copy(store.path()));
    let outbox = open(store.path());
    let first = outbox.numbering(&clinical()).unwrap();
    let old = std::fs::read(&file).unwrap();
    let second = outbox.new_epoch(&clinical(), 3, None, Vec::new(), &[]).unwrap();
    outbox.close();
    let new = std::fs::read(&file).unwrap();
    assert_eq!(new, std::fs::read(&copied).unwrap());
    // A crash between the two: the epoch in the copy was never used.
    std::fs::write(&file, &old).unwrap();
    let outbox = open(store.path());
    assert_eq!(outbox.numbering(&clinical()).unwrap(), first);
    outbox.close();
    assert_eq!(std::fs::read(&copied).unwrap(), old);
    // A copy that has stayed behind, that is damaged, or lost.
    for there in [Some(&old[..]), Some(b"damaged"), None] {
        std::fs::write(&file, &new).unwrap();
        match there {
            Some(bytes) => std::fs::write(&copied, bytes).unwrap(),
            None => std::fs::remove_file(&copied).unwrap(),
        }
        let outbox = open(store.path());
        assert_eq!(outbox.numbering(&clinical()).unwrap(), second);
        outbox.close();
        assert_eq!(std::fs::read(&copied).unwrap(), new);
    }
    // A place that takes no copy stops no start.
    std::fs::remove_file(&copied).unwrap();
    std::fs::create_dir(&copied).unwrap();
    let outbox = open(store.path());
    assert_eq!(outbox.numbering(&clinical()).unwrap(), second);
    assert!(codes(&outbox).contains(&"damaged"));
}

#[test]
fn a_lost_directory_loses_no_epoch() {
    let (store, all) = closed();
    let outbox = open(store.path());
    let numbering = outbox.new_epoch(&clinical(), 3, None, Vec::new(), &[]).unwrap();
    outbox.close();
    std::fs::remove_dir_all(store.path().join("lanes")).unwrap();
    let outbox = open(store.path());
    assert_eq!(outbox.numbering(&clinical()).unwrap(), numbering);
    assert!(outbox.alarms().iter().any(|alarm| alarm.detail.contains("recreated from its copy")));
    assert_eq!((bodies(&outbox), digests(&outbox)), (expected(1..=14), all));
    outbox.close();
    assert_eq!(
        std::fs::read(numbering_file(store.path())).unwrap(),
        std::fs::read(numbering_copy(store.path())).unwrap()
    );
}

#[test]
fn a_lane_that_has_lost_both_files_with_its_epochs_uses_no_number_again() {
    let (store, all) = closed();
    let outbox = open(store.path());
    let known = outbox.numbering(&clinical()).unwrap();
    // No segment's header has this one.
    let used = outbox.new_epoch(&clinical(), 3, None, Vec::new(), &[]).unwrap().present().epoch;
    outbox.close();
    std::fs::remove_file(numbering_file(store.path())).unwrap();
    std::fs::write(numbering_copy(store.path()), "damaged").unwrap();
    let outbox = open(store.path());
    let found = outbox.numbering(&clinical()).unwrap();
    let present = found.present();
    assert!(known.of(present.epoch).is_none() && present.epoch != used, "{present:?}");
    assert_eq!((present.base, present.link), (0, None));
    assert_eq!(found.of(known.present().epoch), Some(known.present()), "what the segment knew is kept");
    assert!(outbox.alarms().iter().any(|alarm| alarm.detail.contains("it begins a new epoch")));
    assert_eq!((bodies(&outbox), digests(&outbox)), (expected(1..=14), all));
    outbox.close();
    let outbox = open(store.path());
    assert_eq!(outbox.numbering(&clinical()).unwrap(), found, "once, and not at each start");
    assert!(!codes(&outbox).contains(&"damaged"), "{:?}", outbox.alarms());
}
