//! Lost records stop their lane until an operator writes them off; readable ones cannot be written off.

use pgw_core::chain::ChainValue;
use pgw_core::transaction::Position;
use pgw_core::wire::envelope::Envelope;
use pgw_core::wire::void;

use crate::tests::{add, clinical, clinical_name, counts, open};
use crate::*;

fn lose(outbox: &Outbox, from: Position, through: Position) {
    outbox.lane(&clinical()).unwrap().state().missing.add(from, through);
}

fn release(outbox: &Outbox, from: Position, through: Position) -> Result<Released, String> {
    outbox.void(&clinical(), (from, through), "a bad sector", true).map_err(|error| error.to_string())
}

/// Reads the whole lane and checks it as the hub would; returns the positions that are void.
fn walk(outbox: &Outbox, tail: Position) -> Vec<Position> {
    let (mut voids, mut before, mut next) = (Vec::new(), None, 1);
    while next <= tail {
        for stored in outbox.read(&clinical(), next, 3, usize::MAX).unwrap() {
            assert_eq!(stored.position, next);
            let envelope = Envelope::new(
                &clinical_name(),
                stored.epoch,
                stored.sequence,
                stored.chain,
                0,
                &stored.transaction,
            );
            let first = ChainValue::first(&clinical_name(), stored.epoch);
            let previous =
                before.filter(|(epoch, _)| *epoch == stored.epoch).map_or(first, |(_, chain)| chain);
            assert_eq!(stored.previous, previous, "position {next}");
            let body = stored.transaction.body.as_bytes();
            assert_eq!(void::chain_after(previous, &envelope, body), stored.chain, "position {next}");
            assert_eq!(outbox.chain_at(&clinical(), next), Some(stored.chain), "position {next}");
            if void::is_void(&envelope) {
                voids.push(next);
            }
            before = Some((stored.epoch, stored.chain));
            next += 1;
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
        (6, 7, "begin with the first"),
        (0, 5, "the range must start"),
        (7, 5, "the range must start"),
        (20, 21, "the range must start"),
    ] {
        let refused = release(&outbox, from, through).unwrap_err();
        assert!(refused.contains(reason), "{from} to {through}: {refused}");
    }
    assert!(outbox.void(&clinical(), (5, 7), "", true).is_err(), "a reason is needed");
    let planned = outbox.void(&clinical(), (5, 7), "x", false).unwrap();
    assert!(outbox.read(&clinical(), 5, 1, 0).is_err(), "a plan changes nothing");
    // In two parts, and the tail.
    release(&outbox, 5, 5).unwrap();
    let second = release(&outbox, 6, 7).unwrap();
    assert_eq!(second.chain, planned.chain);
    release(&outbox, 20, 20).unwrap();
    assert!(release(&outbox, 5, 5).unwrap_err().contains("written off already"));
    assert_eq!(walk(&outbox, 20), [5, 6, 7, 20]);
    add(&outbox, 21..=22);
    assert_eq!(walk(&outbox, 22), [5, 6, 7, 20]);
    let ids: std::collections::BTreeSet<_> =
        (1..=22).map(|at| outbox.read(&clinical(), at, 1, 0).unwrap()[0].transaction.id.0).collect();
    assert_eq!(ids.len(), 22);
    outbox.close();

    let outbox = open(directory.path());
    assert_eq!(walk(&outbox, 22), [5, 6, 7, 20], "after a restart");
    let at = |outbox: &Outbox| {
        let counts = counts(outbox);
        (counts.accepted, counts.confirmed, counts.waiting, counts.damaged)
    };
    assert_eq!(at(&outbox), (22, 0, 18, 4));
    // The hub has confirmed the voids, not the lost records.
    let confirm = |position| {
        let chain = outbox.chain_at(&clinical(), position).unwrap();
        outbox.confirm(&clinical(), Watermark { position, chain }, None, None);
    };
    confirm(6);
    assert_eq!(at(&outbox), (22, 4, 14, 4));
    confirm(22);
    assert_eq!(at(&outbox), (22, 18, 0, 4));
    assert!(release(&outbox, 5, 7).is_err(), "what is confirmed is not released");
}

#[test]
fn in_a_new_epoch_the_chain_passes_over_what_was_released() {
    for after in 0..=9 {
        let directory = tempfile::tempdir().unwrap();
        let outbox = open(directory.path());
        add(&outbox, 1..=9);
        lose(&outbox, 4, 6);
        release(&outbox, 4, 6).unwrap();
        outbox.new_epoch(&clinical(), after).unwrap();
        assert_eq!(walk(&outbox, 9), [4, 5, 6], "after {after}");
        add(&outbox, 10..=12);
        assert_eq!(walk(&outbox, 12), [4, 5, 6], "after {after}");
        outbox.close();
        let outbox = open(directory.path());
        assert_eq!(walk(&outbox, 12), [4, 5, 6], "after {after}, reopened");
    }
}

#[test]
fn what_is_lost_after_a_fork_can_be_released_too() {
    for lost in [(5, 5), (4, 8), (8, 9), (5, 12), (11, 12)] {
        let directory = tempfile::tempdir().unwrap();
        let outbox = open(directory.path());
        add(&outbox, 1..=9);
        outbox.new_epoch(&clinical(), 3).unwrap();
        add(&outbox, 10..=12);
        lose(&outbox, lost.0, lost.1);
        release(&outbox, lost.0, lost.1).unwrap();
        add(&outbox, 13..=14);
        let voids: Vec<_> = (lost.0..=lost.1).collect();
        let walked = walk(&outbox, 14);
        assert_eq!(walked, voids, "{lost:?}");
    }
}

/// The chain value at `position` at the hub, which received the record before it was lost.
fn sent(outbox: &Outbox, position: Position) -> Watermark {
    Watermark { position, chain: outbox.read(&clinical(), position, 1, 0).unwrap()[0].chain }
}

#[test]
fn what_was_numbered_again_and_lost_under_way_stops_nothing_if_the_hub_has_it() {
    for reopen in [false, true] {
        let directory = tempfile::tempdir().unwrap();
        let mut outbox = open(directory.path());
        add(&outbox, 1..=9);
        outbox.new_epoch(&clinical(), 3).unwrap();
        let (five, after) = (sent(&outbox, 5), sent(&outbox, 6));
        lose(&outbox, 5, 5);
        outbox.confirm(&clinical(), five, None, None);
        if reopen {
            outbox.close();
            outbox = open(directory.path());
            lose(&outbox, 5, 5);
        }
        let next = outbox.read(&clinical(), 6, 1, 0).unwrap().remove(0);
        assert_eq!((next.previous, next.chain), (five.chain, after.chain), "reopened: {reopen}");
        assert_eq!(outbox.chain_at(&clinical(), 5), Some(five.chain));
        assert_eq!(
            outbox.chain_at(&clinical(), 9),
            Some(outbox.read(&clinical(), 9, 1, 0).unwrap()[0].chain)
        );
    }
}

#[test]
fn the_marks_chain_value_counts_in_its_own_epoch_only() {
    let directory = tempfile::tempdir().unwrap();
    let outbox = open(directory.path());
    add(&outbox, 1..=9);
    outbox.confirm(&clinical(), sent(&outbox, 5), None, None);
    outbox.new_epoch(&clinical(), 3).unwrap();
    assert_eq!(walk(&outbox, 9), [0; 0], "the watermark is of the epoch before");
}
