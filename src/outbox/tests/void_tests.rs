//! Lost records stop their lane until an operator writes them off; readable ones cannot be written off.

use pgw_core::numbering::{EntryKind, Gone};
use pgw_core::transaction::Position;

use crate::tests::{add, at as watermark, clinical, counts, key, open, settings};
use crate::*;

fn lose(outbox: &Outbox, from: Position, through: Position) {
    outbox.lane(&clinical()).unwrap().state().missing.add(from, through);
}

fn release(outbox: &Outbox, from: Position, through: Position) -> Result<Released, String> {
    outbox.void(&clinical(), (from, through), "a bad sector", true).map_err(|error| error.to_string())
}

/// Reads the whole lane; returns the positions that are written off.
fn walk(outbox: &Outbox, tail: Position) -> Vec<Position> {
    let (mut voids, mut next) = (Vec::new(), 1);
    while next <= tail {
        match outbox.read(&clinical(), next, 3, usize::MAX) {
            Ok(read) => {
                for stored in read {
                    assert_eq!(stored.position, next);
                    next += 1;
                }
            }
            Err(_) => {
                let gone = outbox.gone(&clinical());
                let of = gone.iter().find(|gone| (gone.from..=gone.through).contains(&next)).unwrap();
                assert_eq!(of.kind, Some(EntryKind::Void));
                voids.push(next);
                next += 1;
            }
        }
    }
    voids
}

#[test]
fn what_is_released_takes_its_place_for_ever() {
    let directory = tempfile::tempdir().unwrap();
    let outbox = open(directory.path());
    add(&outbox, 1..=20);
    lose(&outbox, 5, 7);
    lose(&outbox, 20, 20);
    assert!(matches!(outbox.read(&clinical(), 5, 1, 0), Err(ReadError::Gone { .. })));
    for (from, through, reason) in [
        (4, 5, "can be read"),
        (5, 8, "can be read"),
        (0, 5, "the range must start"),
        (7, 5, "the range must start"),
        (20, 21, "the range must start"),
    ] {
        let refused = release(&outbox, from, through).unwrap_err();
        assert!(refused.contains(reason), "{from} to {through}: {refused}");
    }
    assert!(outbox.void(&clinical(), (5, 7), "", true).is_err(), "a reason is needed");
    outbox.void(&clinical(), (5, 7), "x", false).unwrap();
    let undecided = |from, through| Gone { from, through, kind: None };
    assert_eq!(outbox.gone(&clinical()), [undecided(5, 7), undecided(20, 20)], "a plan changes nothing");
    // In two parts, the second first, and the tail.
    release(&outbox, 6, 7).unwrap();
    release(&outbox, 5, 5).unwrap();
    release(&outbox, 20, 20).unwrap();
    assert!(release(&outbox, 5, 5).unwrap_err().contains("written off already"));
    assert_eq!(walk(&outbox, 20), [5, 6, 7, 20]);
    add(&outbox, 21..=22);
    assert_eq!(walk(&outbox, 22), [5, 6, 7, 20]);
    outbox.close();

    let outbox = open(directory.path());
    assert_eq!(walk(&outbox, 22), [5, 6, 7, 20], "after a restart");
    let at = |outbox: &Outbox| {
        let counts = counts(outbox);
        (counts.accepted, counts.confirmed, counts.waiting, counts.damaged)
    };
    assert_eq!(at(&outbox), (22, 0, 18, 4));
    // The hub has confirmed the voids, not the lost records.
    let confirm = |position| outbox.confirm(&clinical(), watermark(position), None, None);
    confirm(6);
    assert_eq!(at(&outbox), (22, 4, 14, 4));
    confirm(22);
    assert_eq!(at(&outbox), (22, 18, 0, 4));
    assert!(release(&outbox, 5, 7).is_err(), "what is confirmed is not released");
}

/// Attack: the disk can read again what was written off, and the list of what it could not read is lost. Its sender's repetition
/// must not hear that it is stored: the hub has an entry.
#[test]
fn what_was_written_off_stays_so_where_the_segment_table_is_lost() {
    let directory = tempfile::tempdir().unwrap();
    let outbox = open(directory.path());
    add(&outbox, 1..=20);
    lose(&outbox, 5, 7);
    release(&outbox, 5, 7).unwrap();
    outbox.close();
    std::fs::remove_file(directory.path().join("lanes/clinical/ledger")).unwrap();
    let outbox = open(directory.path());
    assert_eq!(walk(&outbox, 20), [5, 6, 7]);
    assert_eq!(crate::tests::add_again(&outbox, 6).position, 21);
    assert_eq!(outbox.gone(&clinical()), [Gone { from: 5, through: 7, kind: Some(EntryKind::Void) }]);
}

#[test]
fn an_epoch_has_an_entry_for_what_was_released_before_it_began() {
    let directory = tempfile::tempdir().unwrap();
    let outbox = open(directory.path());
    add(&outbox, 1..=12);
    lose(&outbox, 4, 6);
    lose(&outbox, 9, 9);
    release(&outbox, 4, 6).unwrap();
    let gone = outbox.gone(&clinical());
    assert_eq!(gone[1], Gone { from: 9, through: 9, kind: None });
    let numbering = outbox.new_epoch(&clinical(), 2, None, Vec::new(), &gone).unwrap();
    let present = numbering.present();
    assert_eq!((present.base, present.positions(2), present.number(12)), (2, (4, 6), 8));
    let entry = &present.entries[0];
    assert_eq!((entry.reason.as_str(), entry.kind), ("a bad sector", EntryKind::Void));
    assert_eq!((entry.names[0].from, entry.names[0].through), (4, 6), "as they were called before");
    outbox.close();
    let outbox = open(directory.path());
    assert_eq!(outbox.numbering(&clinical()).unwrap(), numbering);
    // It stays the same entry in a later epoch, beside a new one.
    release(&outbox, 9, 9).unwrap();
    let gone: Vec<_> = outbox.gone(&clinical()).into_iter().filter(|gone| gone.from == 9).collect();
    let later = outbox.new_epoch(&clinical(), 1, None, Vec::new(), &gone).unwrap();
    assert_eq!((&later.present().entries[0], later.present().entries.len()), (entry, 2));
}

#[test]
fn what_the_hub_has_confirmed_and_retention_has_deleted_is_not_written_off() {
    let directory = tempfile::tempdir().unwrap();
    let retention = std::time::Duration::ZERO;
    let outbox = Outbox::open(OutboxSettings { retention, ..settings(directory.path()) }, key()).unwrap();
    add(&outbox, 1..=30);
    crate::tests::confirm_through(&outbox, 12, None);
    crate::tests::eventually("pruned", || outbox.first_retained(&clinical()) == Some(9));
    outbox.confirm(&clinical(), watermark(3), None, None);
    assert_eq!(outbox.gone(&clinical()), [Gone { from: 1, through: 8, kind: Some(EntryKind::Pruned) }]);
    assert!(release(&outbox, 4, 8).unwrap_err().contains("lane admit"));
    let gone = [Gone { from: 4, through: 8, kind: Some(EntryKind::Pruned) }];
    let numbering = outbox.new_epoch(&clinical(), 3, None, Vec::new(), &gone).unwrap();
    assert_eq!(numbering.present().positions(1), (4, 8));
}

/// Attack: a record is destroyed and written off, and the hub confirms the void. A sender that repeats the message must not
/// hear that it is stored.
#[test]
fn a_repetition_of_what_was_written_off_is_stored_again() {
    let directory = tempfile::tempdir().unwrap();
    let outbox = open(directory.path());
    add(&outbox, 1..=20);
    outbox.close();
    crate::offline::tests::destroy(directory.path(), 5..=5);
    let outbox = open(directory.path());
    assert!(outbox.read(&clinical(), 5, 1, 0).is_err());
    release(&outbox, 5, 5).unwrap();
    outbox.confirm(&clinical(), watermark(20), None, None);
    let again = crate::tests::add_again(&outbox, 5);
    assert_eq!((again.position, again.repeated), (21, false));
    assert_eq!(crate::tests::add_again(&outbox, 6).position, 6, "what is confirmed is known");
}
