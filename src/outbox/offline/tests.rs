//! Repair of whole stores: destroyed records come back from a copy, records that do not fit are not taken, and a dry run
//! changes nothing.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use pgw_core::transaction::Position;

use crate::crypt::keyring::OutboxKey;
use crate::errors::{OpenError, ReadError, ReadmitError};
use crate::faults_for_tests::Point;
use crate::guard::carve::files_below;
use crate::handle::Outbox;
use crate::handle::readmit::WrittenOff;
use crate::offline::error::RepairError;
use crate::offline::repair::{RepairRequest, repair};
use crate::offline::report::{LaneReport, RepairReport};
use crate::state::digest_table::table_path;
use crate::tests::{
    add, add_again, at, bodies, clinical, codes, confirm_through, copy, counts, eventually, expected, key,
    open, segment_files, settings, submission, submit,
};
use crate::types::{Accepted, OutboxSettings};
use crate::{faults_for_tests as faults, files};

/// Every file below a directory, with its bytes.
fn image(directory: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let files = files_below(directory).unwrap();
    files.into_iter().map(|file| (file.clone(), fs::read(&file).unwrap())).collect()
}

fn run(store: &Path, from: &[&Path], act: bool) -> Result<RepairReport, RepairError> {
    let from = from.iter().map(|path| path.to_path_buf()).collect();
    let request = RepairRequest { from, act, ..RepairRequest::default() };
    repair(&settings(store), &key().into(), &request, &mut |_, _| {})
}

fn clinical_of(report: &RepairReport) -> &LaneReport {
    report.lanes.iter().find(|lane| lane.lane == clinical()).unwrap()
}

/// Overwrites every chunk of these positions in every segment, as a disk that lost some sectors.
pub(crate) fn destroy(store: &Path, positions: std::ops::RangeInclusive<Position>) {
    for file in segment_files(store) {
        let mut bytes = fs::read(&file).unwrap();
        let mut at = 0;
        while let Some(found) = bytes[at..].windows(4).position(|w| w == crate::guard::record::CHUNK_MAGIC) {
            at += found;
            if let Some(chunk) = crate::guard::record::parse_chunk(&bytes[at..])
                && positions.contains(&chunk.position)
            {
                let length = chunk.length();
                bytes[at..at + length].fill(0);
            }
            at += 1;
        }
        fs::write(&file, bytes).unwrap();
    }
}

/// A store of 30 in segments of 8, closed, a copy of it, and then 11 to 13 destroyed.
fn damaged() -> (tempfile::TempDir, tempfile::TempDir) {
    let (store, intact) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let outbox = open(store.path());
    add(&outbox, 1..=30);
    outbox.close();
    copy(store.path(), intact.path());
    destroy(store.path(), 11..=13);
    (store, intact)
}

fn saved(report: &RepairReport) -> Vec<(Position, Position)> {
    clinical_of(report).saved.iter().map(|found| (found.from, found.through)).collect()
}

fn written_off(report: &RepairReport) -> Vec<(Position, Position)> {
    clinical_of(report).written_off.iter().map(|found| (found.from, found.through)).collect()
}

fn lost(report: &RepairReport) -> Vec<(Position, Position)> {
    clinical_of(report).lost.iter().map(|lost| (lost.from, lost.through)).collect()
}

#[test]
fn what_is_whole_needs_nothing_and_is_not_touched() {
    let store = tempfile::tempdir().unwrap();
    let outbox = open(store.path());
    add(&outbox, 1..=30);
    outbox.close();
    let before = image(store.path());
    for act in [false, true] {
        let report = run(store.path(), &[], act).unwrap();
        let lane = clinical_of(&report);
        assert_eq!((lane.first, lane.last, lane.read, lane.missing), (1, 30, 30, 0));
        assert_eq!(lane.rewritten, []);
        assert_eq!(image(store.path()), before);
    }
}

#[test]
fn what_is_destroyed_comes_back_from_a_copy_and_a_dry_run_touches_nothing() {
    for daemon_saw_it in [false, true] {
        let (store, intact) = damaged();
        if daemon_saw_it {
            let outbox = open(store.path());
            assert!(matches!(outbox.read(&clinical(), 11, 1, 0), Err(ReadError::Gone { .. })));
            assert_eq!(counts(&outbox).damaged, 3);
            outbox.close();
        }
        let before = image(store.path());
        let report = run(store.path(), &[], false).unwrap();
        assert_eq!((saved(&report), lost(&report)), (vec![], vec![(11, 13)]));
        let neighbours = &clinical_of(&report).lost[0];
        assert_eq!(neighbours.before.as_ref().unwrap().position, 10);
        assert_eq!(neighbours.after.as_ref().unwrap().sender, "urn:lab");
        let report = run(store.path(), &[intact.path()], false).unwrap();
        assert_eq!((saved(&report), lost(&report)), (vec![(11, 13)], vec![]));
        assert!(clinical_of(&report).saved[0].found_in.starts_with(&intact.path().display().to_string()));
        assert_eq!(image(store.path()), before, "a dry run writes nothing");
        let image_of_copy = image(intact.path());

        let report = run(store.path(), &[intact.path()], true).unwrap();
        assert_eq!((saved(&report), report.done), (vec![(11, 13)], true));
        assert_eq!(image(intact.path()), image_of_copy, "the copy is only read");
        let again = run(store.path(), &[intact.path()], false).unwrap();
        assert_eq!((clinical_of(&again).missing, clinical_of(&again).read), (0, 30));
        let outbox = open(store.path());
        assert_eq!(bodies(&outbox), expected(1..=30));
        assert_eq!((counts(&outbox).waiting, counts(&outbox).damaged), (30, 0));
        assert_eq!(codes(&outbox), Vec::<&str>::new());
        assert!(submit(&outbox, submission("K12", b"body 12")).unwrap().repeated);
        add(&outbox, 31..=40);
        assert_eq!(bodies(&outbox), expected(1..=40));
    }
}

#[test]
fn wherever_it_ends_it_can_be_run_again_and_the_daemon_can_start() {
    for (steps, daemon_saw_it) in (0..20).flat_map(|steps| [(steps, false), (steps, true)]) {
        let (store, intact) = damaged();
        if daemon_saw_it {
            let outbox = open(store.path());
            outbox.read(&clinical(), 11, 1, 0).unwrap_err();
            outbox.close();
        }
        faults::in_store(store.path()).fail_after(Point::Step, steps);
        let ended = run(store.path(), &[intact.path()], true);
        faults::in_store(store.path()).fail_next(Point::Step, 0);
        if ended.is_ok() {
            assert!(steps >= 4, "{steps}");
            if daemon_saw_it {
                return;
            }
            continue;
        }
        let started = tempfile::tempdir().unwrap();
        copy(store.path(), started.path());
        let outbox = open(started.path());
        for position in (1..=10).chain(14..=30) {
            let stored = outbox.read(&clinical(), position, 1, 0).unwrap();
            assert_eq!(stored[0].position, position, "after {steps} steps");
        }
        drop(outbox);
        run(started.path(), &[intact.path()], true).unwrap();
        assert_eq!(bodies(&open(started.path())), expected(1..=30), "after {steps} steps and a start");
        run(store.path(), &[intact.path()], true).unwrap();
        assert_eq!(bodies(&open(store.path())), expected(1..=30), "after {steps} steps");
        let aside = fs::read_dir(store.path().join("aside")).unwrap().count();
        assert!(aside >= 1, "the damaged segment is kept");
    }
    panic!("it never comes to its end");
}

#[test]
fn nothing_old_moves_before_what_is_new_is_synced() {
    let (store, intact) = damaged();
    let segment_files = |store: &Path| {
        let segments = image(&store.join("segments"));
        segments.into_iter().filter(|(path, _)| !path.to_string_lossy().contains(".new/")).collect::<Vec<_>>()
    };
    let before = segment_files(store.path());
    let table = fs::read(store.path().join("lanes/clinical/ledger")).unwrap();
    faults::in_store(store.path()).fail_next(Point::Sync, 1);
    run(store.path(), &[intact.path()], true).unwrap_err();
    assert_eq!(segment_files(store.path()), before);
    assert_eq!(fs::read(store.path().join("lanes/clinical/ledger")).unwrap(), table);
}

#[test]
fn what_does_not_reach_the_chain_is_not_taken() {
    // A copy of the box that continued by itself after 16: the same numbers, the same key, other contents.
    let (store, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let outbox = open(store.path());
    add(&outbox, 1..=16);
    outbox.close();
    copy(store.path(), other.path());
    let outbox = open(other.path());
    add(&outbox, 101..=120);
    outbox.close();
    let outbox = open(store.path());
    add(&outbox, 17..=30);
    outbox.close();
    let intact = tempfile::tempdir().unwrap();
    copy(store.path(), intact.path());
    destroy(store.path(), 16..=19);
    // 16 is the same in both. The copy's later records follow from it too, but are not this store's, as the digest table says.
    let report = run(store.path(), &[other.path()], true).unwrap();
    assert_eq!((saved(&report), lost(&report)), (vec![(16, 16)], vec![(17, 19)]), "{report:?}");
    assert_eq!(
        clinical_of(&report).refused[0].through,
        18,
        "the next record contradicts the last one: {report:?}"
    );
    let outbox = open(store.path());
    assert_eq!(outbox.read(&clinical(), 16, 1, 0).unwrap()[0].transaction.body.as_bytes(), b"body 16");
    for position in 17..=19 {
        assert!(outbox.read(&clinical(), position, 1, 0).is_err(), "{position}");
    }
    outbox.close();
    // With the right one beside it, the right one is taken.
    run(store.path(), &[other.path(), intact.path()], true).unwrap();
    assert_eq!(bodies(&open(store.path())), expected(1..=30));
}

#[test]
fn what_nothing_vouches_for_is_taken_only_where_a_person_says_so() {
    let (store, intact) = damaged();
    destroy(intact.path(), 12..=12);
    let report = run(store.path(), &[intact.path()], false).unwrap();
    let both = vec![(11, 11), (13, 13)];
    assert_eq!(
        (saved(&report), lost(&report)),
        (both, vec![(12, 12)]),
        "the digest of 12 leads from 11 to 13"
    );
    fs::remove_file(table_path(&store.path().join("segments/clinical"), 9)).unwrap();
    let report = run(store.path(), &[intact.path()], false).unwrap();
    assert_eq!((saved(&report), lost(&report)), (vec![(13, 13)], vec![(12, 12)]));
    let unproven = &clinical_of(&report).unproven;
    assert_eq!((unproven.len(), unproven[0].from, unproven[0].through), (1, 11, 11));
    run(store.path(), &[intact.path()], true).unwrap();
    let outbox = open(store.path());
    assert!(outbox.read(&clinical(), 11, 1, 0).is_err());
    assert_eq!(outbox.read(&clinical(), 13, 1, 0).unwrap()[0].position, 13);
    outbox.close();
    let from = vec![intact.path().to_owned()];
    let request = RepairRequest { from, act: true, unproven: true, ..RepairRequest::default() };
    repair(&settings(store.path()), &key().into(), &request, &mut |_, _| {}).unwrap();
    let outbox = open(store.path());
    assert_eq!(outbox.read(&clinical(), 11, 1, 0).unwrap()[0].transaction.body.as_bytes(), b"body 11");
    assert!(outbox.read(&clinical(), 12, 1, 0).is_err());
    assert_eq!(counts(&outbox).damaged, 1);
}

#[test]
fn what_a_person_has_released_stays_released() {
    let (store, intact) = damaged();
    let outbox = open(store.path());
    assert!(outbox.read(&clinical(), 11, 1, 0).is_err());
    outbox.void(&clinical(), (11, 12), "a bad sector", true).unwrap();
    outbox.close();
    let report = run(store.path(), &[intact.path()], true).unwrap();
    assert_eq!((saved(&report), clinical_of(&report).released), (vec![(13, 13)], 2));
    assert_eq!(written_off(&report), [(11, 12)]);
    let outbox = open(store.path());
    assert!(outbox.read(&clinical(), 12, 1, 0).is_err());
    assert_eq!(outbox.read(&clinical(), 13, 1, 0).unwrap()[0].transaction.body.as_bytes(), b"body 13");
    assert_eq!((counts(&outbox).waiting, counts(&outbox).damaged), (28, 2));
}

fn stored_again(outbox: &Outbox, found: &WrittenOff) -> Accepted {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(outbox.readmit(found)).unwrap()
}

fn readmit(outbox: &Outbox, entry: u64) -> Accepted {
    let found = outbox.written_off(entry).unwrap();
    let accepted = stored_again(outbox, &found);
    outbox.note_returned(&found).unwrap();
    accepted
}

#[test]
fn what_was_written_off_and_is_found_returns_once_under_its_old_id() {
    let (store, intact) = damaged();
    let outbox = open(intact.path());
    let accepted: Vec<_> =
        (11..=13).map(|at| outbox.read(&clinical(), at, 1, 0).unwrap().remove(0)).collect();
    outbox.close();
    let outbox = open(store.path());
    assert!(outbox.read(&clinical(), 11, 1, 0).is_err());
    outbox.void(&clinical(), (11, 13), "a bad sector", true).unwrap();
    outbox.close();
    let before = image(store.path());
    let plan = run(store.path(), &[intact.path()], false).unwrap();
    assert_eq!((written_off(&plan), saved(&plan)), (vec![(11, 13)], vec![]));
    assert_eq!(image(store.path()), before, "a dry run writes nothing");
    // It can end anywhere and be run again.
    faults::in_store(store.path()).fail_after(Point::Step, 1);
    run(store.path(), &[intact.path()], true).unwrap_err();
    faults::in_store(store.path()).fail_next(Point::Step, 0);
    for _ in 0..2 {
        run(store.path(), &[intact.path()], true).unwrap();
    }
    let outbox = open(store.path());
    let entries = outbox.quarantined().unwrap();
    assert_eq!(entries.iter().map(|entry| entry.id).collect::<Vec<_>>(), [1, 2, 3], "each once");
    let source = format!("store - clinical position 11 {}", accepted[0].transaction.id);
    assert_eq!((entries[0].source.as_str(), entries[0].is_written_off()), (source.as_str(), true));
    let why = |outbox: &Outbox| outbox.written_off(1).unwrap_err();
    assert_eq!(why(&outbox), ReadmitError::NotConfirmed, "it may be under way, or at the hub");
    outbox.confirm(&clinical(), at(30), None, None);
    assert_eq!(why(&outbox), ReadmitError::AtHub, "the line has no entry there");
    outbox.confirm(&clinical(), at(10), None, None);
    let gone = outbox.gone(&clinical());
    outbox.new_epoch(&clinical(), 10, None, Vec::new(), &gone).unwrap();
    outbox.confirm(&clinical(), at(30), None, None);
    // The sender has sent 12 once more meanwhile.
    let again = add_again(&outbox, 12);
    assert_eq!((again.position, again.repeated), (31, false));
    let first = stored_again(&outbox, &outbox.written_off(1).unwrap());
    let old = &accepted[0].transaction;
    assert_eq!((first.id, first.time, first.position, first.repeated), (old.id, old.time, 32, false));
    let stored = outbox.read(&clinical(), 32, 1, 0).unwrap().remove(0);
    assert_eq!(
        (&stored.transaction, stored.digest),
        (old, accepted[0].digest),
        "with everything of its acceptance"
    );
    assert_eq!(outbox.accepted_at(&clinical(), 32), None, "nobody knows how long ago that was");
    // A crash before that is noted: it is recognised. After that the duplicate check is not even asked.
    let repeated = readmit(&outbox, 1);
    assert_eq!((repeated.id, repeated.position, repeated.repeated), (old.id, 32, true));
    assert_eq!(outbox.written_off(1).unwrap_err(), ReadmitError::Returned);
    let second = readmit(&outbox, 2);
    assert_eq!((second.id, second.position, second.repeated), (again.id, 31, true));
    assert_eq!(readmit(&outbox, 3).position, 33);
    assert!(add_again(&outbox, 13).repeated, "the sender's repetition is known");
    for entry in 1..=3 {
        assert!(outbox.discard_quarantined(entry).unwrap());
    }
    assert_eq!(outbox.written_off(1).unwrap_err(), ReadmitError::NotOurs);
    outbox.close();
    let report = run(store.path(), &[intact.path()], true).unwrap();
    assert_eq!(
        (written_off(&report), clinical_of(&report).released),
        (vec![], 3),
        "what has returned is known"
    );
    let outbox = open(store.path());
    assert_eq!(outbox.quarantined().unwrap(), []);
    assert_eq!((counts(&outbox).accepted, counts(&outbox).damaged), (33, 3));
}

/// Its segment went when the hub had confirmed the entry; the old disk is found after that.
#[test]
fn what_was_written_off_and_is_found_returns_also_when_its_segment_was_pruned() {
    let (store, intact) = damaged();
    let settings = OutboxSettings { retention: Duration::ZERO, ..settings(store.path()) };
    let open = || Outbox::open(settings.clone(), key()).unwrap();
    let outbox = open();
    assert!(outbox.read(&clinical(), 11, 1, 0).is_err());
    outbox.void(&clinical(), (11, 13), "a bad sector", true).unwrap();
    let gone = outbox.gone(&clinical());
    outbox.new_epoch(&clinical(), 10, None, Vec::new(), &gone).unwrap();
    confirm_through(&outbox, 30, None);
    eventually("pruned", || outbox.first_retained(&clinical()) == Some(25));
    outbox.close();
    let run = || {
        let from = vec![intact.path().to_owned()];
        let request = RepairRequest { from, act: true, ..RepairRequest::default() };
        repair(&settings, &key().into(), &request, &mut |_, _| {}).unwrap()
    };
    for _ in 0..2 {
        assert_eq!(written_off(&run()), [(11, 13)]);
    }
    let outbox = open();
    assert_eq!(outbox.quarantined().unwrap().len(), 3);
    assert_eq!([1, 2, 3].map(|entry| readmit(&outbox, entry).position), [31, 32, 33]);
    assert_eq!(outbox.read(&clinical(), 31, 1, 0).unwrap()[0].transaction.body.as_bytes(), b"body 11");
    outbox.close();
    assert_eq!(written_off(&run()), []);
}

/// Another copy of the box has continued by itself. Where everything behind its record is lost as well, only the digest table
/// says that it is another one.
#[test]
fn what_the_digest_table_contradicts_is_never_taken() {
    let (store, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let outbox = open(store.path());
    add(&outbox, 1..=10);
    outbox.close();
    copy(store.path(), other.path());
    let outbox = open(other.path());
    add(&outbox, 101..=103);
    outbox.close();
    let outbox = open(store.path());
    add(&outbox, 11..=30);
    outbox.close();
    destroy(store.path(), 11..=13);
    let request = |act, unproven| {
        let from = vec![other.path().to_owned()];
        let request = RepairRequest { from, act, unproven, ..RepairRequest::default() };
        repair(&settings(store.path()), &key().into(), &request, &mut |_, _| {}).unwrap()
    };
    let refused = |report: &RepairReport| -> Vec<(Position, Position)> {
        clinical_of(report).refused.iter().map(|found| (found.from, found.through)).collect()
    };
    for (act, unproven) in [(false, false), (false, true), (true, false), (true, true), (true, true)] {
        let report = request(act, unproven);
        assert_eq!((refused(&report), lost(&report)), (vec![(11, 12)], vec![(11, 13)]), "{act} {unproven}");
        assert!(clinical_of(&report).rewritten.iter().all(|segment| segment.filled == 0));
    }
    let outbox = open(store.path());
    assert!(outbox.read(&clinical(), 11, 1, 0).is_err());
    let kept: Vec<_> = outbox.quarantined().unwrap().into_iter().map(|entry| entry.source).collect();
    assert_eq!(kept.len(), 2, "each once, and only where a person would have taken it: {kept:?}");
    assert!(kept[0].starts_with("store - clinical position 11 "), "{kept:?}");
    assert_eq!(outbox.written_off(1).unwrap_err(), ReadmitError::NotOurs, "it is not what was accepted");
}

#[test]
fn a_lost_tail_and_lost_segments_come_back() {
    for gone in [0, 1, 3] {
        for daemon_saw_it in [false, true] {
            let (store, intact) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
            let outbox = open(store.path());
            add(&outbox, 1..=30);
            outbox.close();
            copy(store.path(), intact.path());
            let segments = segment_files(store.path());
            assert_eq!(segments.len(), 4);
            fs::remove_dir_all(segments[gone].parent().unwrap()).unwrap();
            if daemon_saw_it {
                let outbox = open(store.path());
                for position in 1..=30 {
                    let _ = outbox.read(&clinical(), position, 1, 0);
                }
                outbox.close();
            }
            let report = run(store.path(), &[intact.path()], true).unwrap();
            assert_eq!(clinical_of(&report).lost, [], "{gone} {daemon_saw_it}: {report:?}");
            let outbox = open(store.path());
            assert_eq!(bodies(&outbox).len(), 30, "{gone} {daemon_saw_it}");
            assert_eq!(bodies(&outbox), expected(1..=30));
            assert_eq!(counts(&outbox).damaged, 0, "{gone} {daemon_saw_it}");
            add(&outbox, 31..=33);
            assert_eq!(bodies(&outbox), expected(1..=33));
        }
    }
}

/// The watermark says that there were more, and nothing knows the chain value there: the chain begins again, which proves nothing
/// about what was lost, and contradicts nothing either.
#[test]
fn a_chain_that_began_again_after_a_lost_end_proves_nothing_and_contradicts_nothing() {
    let (store, intact) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let outbox = open(store.path());
    add(&outbox, 1..=30);
    confirm_through(&outbox, 30, None);
    outbox.close();
    copy(store.path(), intact.path());
    fs::remove_file(store.path().join("sidecar")).unwrap();
    fs::remove_dir_all(segment_files(store.path())[3].parent().unwrap()).unwrap();
    let outbox = open(store.path());
    assert!(codes(&outbox).contains(&"store.shortfall"));
    add(&outbox, 31..=40);
    let chained = outbox.chained(&clinical(), 31, 1, 0).unwrap()[0];
    assert_eq!(outbox.after_lost_position(&clinical(), 30), Some(chained.previous));
    outbox.close();
    let report = run(store.path(), &[intact.path()], false).unwrap();
    assert_eq!((clinical_of(&report).unproven_count(), saved(&report), lost(&report)), (6, vec![], vec![]));
    assert_eq!(clinical_of(&report).contradicted, []);
    let from = vec![intact.path().to_owned()];
    let request = RepairRequest { from, act: true, unproven: true, ..RepairRequest::default() };
    repair(&settings(store.path()), &key().into(), &request, &mut |_, _| {}).unwrap();
    let outbox = open(store.path());
    let bodies: Vec<_> = (1..=40).map(|at| outbox.read(&clinical(), at, 1, 0).unwrap().remove(0)).collect();
    assert!(
        bodies
            .iter()
            .zip(expected(1..=40))
            .all(|(stored, body)| stored.transaction.body.as_bytes() == body.as_bytes())
    );
    assert!(outbox.digests(&clinical(), 1, 40).unwrap().iter().all(Option::is_some));
}

#[test]
fn what_was_lost_before_a_fork_comes_back() {
    for lost_before in [true, false] {
        let (store, intact) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let outbox = open(store.path());
        add(&outbox, 1..=12);
        outbox.close();
        copy(store.path(), intact.path());
        let lose = || {
            destroy(store.path(), 5..=6);
            let outbox = open(store.path());
            outbox.read(&clinical(), 5, 1, 0).unwrap_err();
            outbox
        };
        let outbox = if lost_before { lose() } else { open(store.path()) };
        outbox.new_epoch(&clinical(), 3, None, Vec::new(), &[]).unwrap();
        add(&outbox, 13..=15);
        outbox.close();
        if !lost_before {
            lose().close();
        }
        let report = run(store.path(), &[intact.path()], true).unwrap();
        assert_eq!((saved(&report), lost(&report)), (vec![(5, 6)], vec![]));
        let outbox = open(store.path());
        assert_eq!(bodies(&outbox), expected(1..=15), "lost before the fork: {lost_before}");
        add(&outbox, 16..=20);
        assert_eq!(bodies(&outbox), expected(1..=20));
        assert_eq!(counts(&outbox).damaged, 0);
    }
}

#[test]
fn a_store_that_does_not_start_for_a_small_file_starts_again() {
    for name in ["FORMAT", "lanes.list"] {
        for deleted in [false, true] {
            let (store, intact) = damaged();
            let path = store.path().join(name);
            let whole = fs::read(&path).unwrap();
            if deleted {
                fs::remove_file(&path).unwrap();
            } else {
                let mut bytes = whole.clone();
                bytes[3] ^= 1;
                fs::write(&path, bytes).unwrap();
                assert!(matches!(Outbox::open(settings(store.path()), key()), Err(OpenError::Io { .. })));
            }
            let before = image(store.path());
            assert_eq!(run(store.path(), &[], false).unwrap().remade, [name]);
            assert_eq!(image(store.path()), before);
            let other = OutboxKey::new([8; 32]).into();
            repair(&settings(store.path()), &other, &RepairRequest::default(), &mut |_, _| {}).unwrap_err();
            let report = run(store.path(), &[intact.path()], true).unwrap();
            assert_eq!((&report.remade[..], saved(&report)), (&[name.to_owned()][..], vec![(11, 13)]));
            if name == "FORMAT" {
                assert_eq!(fs::read(&path).unwrap(), whole);
            }
            assert_eq!(bodies(&open(store.path())), expected(1..=30));
        }
    }
}

/// Only root can make a store that belongs to another user.
#[test]
fn what_root_repairs_stays_the_owners() {
    use std::os::unix::fs::MetadataExt as _;
    if rustix::process::geteuid().as_raw() != 0 {
        return;
    }
    let (store, intact) = damaged();
    let outbox = open(store.path());
    outbox.read(&clinical(), 11, 1, 0).unwrap_err();
    outbox.close();
    std::os::unix::fs::chown(store.path(), Some(65_534), Some(65_533)).unwrap();
    files::give_to_owner(store.path()).unwrap();
    run(store.path(), &[intact.path()], true).unwrap();
    for file in files_below(store.path()).unwrap() {
        let metadata = fs::metadata(&file).unwrap();
        assert_eq!((metadata.uid(), metadata.gid()), (65_534, 65_533), "{}", file.display());
        let directory = fs::metadata(file.parent().unwrap()).unwrap();
        assert_eq!((directory.uid(), directory.gid()), (65_534, 65_533), "{}", file.display());
    }
    assert_eq!(bodies(&open(store.path())), expected(1..=30));
}

#[test]
fn a_store_that_is_open_is_refused_and_another_owner_too() {
    let (store, _) = damaged();
    let outbox = open(store.path());
    for act in [false, true] {
        let refused = run(store.path(), &[], act);
        assert!(matches!(refused, Err(RepairError::Open(OpenError::InUse(_)))));
    }
    outbox.close();
    let nothing = tempfile::tempdir().unwrap();
    assert!(matches!(run(nothing.path(), &[], true), Err(RepairError::NoStore(_))));
    assert_eq!(image(nothing.path()), BTreeMap::new());
    let other = OutboxKey::new([8; 32]).into();
    let refused = repair(&settings(store.path()), &other, &RepairRequest::default(), &mut |_, _| {});
    assert!(matches!(refused, Err(RepairError::Open(OpenError::WrongKey { .. }))));
}
