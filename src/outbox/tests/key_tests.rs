//! Another outbox key: records of the earlier one are read, recognised, carved, and a key is missed only when it is needed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use pgw_core::transaction::Position;

use crate::crypt::seal::Sealer;
use crate::descriptor;
use crate::guard::segment::{DATABASE_FILE, Segment};
use crate::state::layout::segment_numbers;
use crate::tests::{
    add, bodies, clinical, codes, confirm_through, expected, settings, submission, submit, tail,
};
use crate::*;

fn k(n: u8) -> OutboxKey {
    OutboxKey::new([n; 32])
}

/// A key ring; the first key is the active one.
fn ring(keys: &[u8]) -> Keyring {
    Keyring::new(k(keys[0]), keys[1..].iter().map(|n| k(*n)).collect())
}

fn open_with(directory: &Path, keys: &[u8]) -> Outbox {
    Outbox::open(settings(directory), ring(keys)).unwrap()
}

fn content(directory: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(content(&path));
        } else {
            files.insert(path.clone(), std::fs::read(&path).unwrap());
        }
    }
    files
}

/// Opening is refused, names these keys, and writes nothing.
fn refused(directory: &Path, keys: &[u8], missing: &[u8]) {
    let before = content(directory);
    let error = Outbox::open(settings(directory), ring(keys)).unwrap_err();
    let OpenError::WrongKey { expected, .. } = &error else { panic!("{error}") };
    for key in 1..9 {
        assert_eq!(expected.contains(&k(key).id()), missing.contains(&key), "key {key}: {error}");
    }
    assert_eq!(content(directory), before, "something was written");
}

fn repeat(outbox: &Outbox, number: u32) -> Accepted {
    submit(outbox, submission(&format!("K{number}"), format!("body {number}").as_bytes())).unwrap()
}

/// The segments of the lane, oldest first.
fn segments(directory: &Path) -> Vec<PathBuf> {
    let lane = directory.join("segments/clinical");
    segment_numbers(&lane).unwrap().iter().map(|number| lane.join(format!("{number:010}"))).collect()
}

/// The positions whose records this key has sealed.
fn sealed_with(directory: &Path, key: u8) -> Vec<Position> {
    let sealer = Sealer::new(&ring(&[key]));
    let mut found = Vec::new();
    for directory in segments(directory) {
        let segment = Segment::open(&directory, 0).unwrap();
        segment
            .visit(1, u64::MAX, &mut |position, record| {
                found.extend(record.is_ok_and(|record| sealer.open(&record).is_ok()).then_some(position));
                std::ops::ControlFlow::Continue(())
            })
            .unwrap();
    }
    found
}

#[test]
fn after_a_rotation_old_records_are_read_and_repetitions_recognised() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    let outbox = open_with(directory, &[1]);
    add(&outbox, 1..=12);
    outbox.quarantine("no-msh", "s", b"old garbage").unwrap();
    outbox.close();

    let outbox = open_with(directory, &[2, 1]);
    assert_eq!(codes(&outbox), ["key.rotated"]);
    assert_eq!(bodies(&outbox), expected(1..=12));
    for number in 1..=12 {
        let again = repeat(&outbox, number);
        assert!(again.repeated && again.position == u64::from(number), "{number}: {again:?}");
    }
    assert!(submit(&outbox, submission("K3", b"other bytes")).unwrap().key_reused);
    add(&outbox, 14..=20);
    assert_eq!(outbox.quarantined_bytes(1).unwrap().unwrap().1, b"old garbage");
    assert_eq!(outbox.quarantine("no-msh", "s", b"new garbage").unwrap(), 2);
    outbox.close();
    assert_eq!(sealed_with(directory, 1), (1..=12).collect::<Vec<_>>());
    assert_eq!(sealed_with(directory, 2), (13..=20).collect::<Vec<_>>());

    refused(directory, &[1], &[2]);
    refused(directory, &[2], &[1]);
    refused(directory, &[3], &[1, 2]);
    // A second one, and all is still the same.
    let outbox = open_with(directory, &[3, 2, 1]);
    assert_eq!(tail(&outbox), 20);
    assert!((1..=12).chain(14..=20).all(|number| repeat(&outbox, number).repeated));
    assert_eq!(outbox.quarantined_bytes(1).unwrap().unwrap().1, b"old garbage");
    assert_eq!(outbox.quarantined_bytes(2).unwrap().unwrap().1, b"new garbage");
    outbox.close();
    refused(directory, &[3, 1], &[2]);
    refused(directory, &[2, 1], &[3]);
}

#[test]
fn a_key_is_missed_until_nothing_needs_it_and_not_longer() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    let outbox = open_with(directory, &[1]);
    add(&outbox, 1..=12);
    let garbage = outbox.quarantine("no-msh", "s", b"old garbage").unwrap();
    outbox.close();
    let at_once = || OutboxSettings { retention: Duration::ZERO, ..settings(directory) };
    let outbox = Outbox::open(at_once(), ring(&[2, 1])).unwrap();
    add(&outbox, 13..=40);
    confirm_through(&outbox, 24, Some(24));
    let start = Instant::now();
    while outbox.first_retained(&clinical()).unwrap() < 17 {
        assert!(start.elapsed() < Duration::from_secs(20), "nothing was pruned");
        std::thread::sleep(Duration::from_millis(10));
    }
    let uses = outbox.key_uses();
    assert_eq!(
        (&uses[0].id, &uses[0].needed_by[..]),
        (&k(1).id(), &["1 entries in quarantine".to_owned()][..])
    );
    outbox.close();
    refused(directory, &[2], &[1]);
    let outbox = open_with(directory, &[2, 1]);
    assert!(outbox.discard_quarantined(garbage).unwrap());
    assert!(outbox.key_uses()[0].needed_by.is_empty());
    outbox.close();
    assert!(Outbox::key_uses_of(&at_once()).unwrap().unwrap()[0].needed_by.is_empty());
    // The first key is destroyed.
    let outbox = open_with(directory, &[2]);
    assert!(!codes(&outbox).contains(&"index.rebuilt"));
    assert!((25..=40).all(|number| repeat(&outbox, number).repeated));
    assert_eq!(tail(&outbox), 40);
    outbox.close();
}

#[test]
fn without_its_segment_table_a_whole_lane_counts_as_kept() {
    let directory = tempfile::tempdir().unwrap();
    let outbox = open_with(directory.path(), &[1]);
    add(&outbox, 1..=3);
    outbox.close();
    let outbox = open_with(directory.path(), &[2, 1]);
    add(&outbox, 4..=6);
    outbox.close();
    std::fs::remove_file(directory.path().join("lanes/clinical/ledger")).unwrap();
    refused(directory.path(), &[2], &[1]);
}

#[test]
fn a_key_that_the_store_cannot_name_seals_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    let outbox = open_with(directory, &[1]);
    add(&outbox, 1..=3);
    outbox.close();
    // FORMAT is written to FORMAT.new first: here that fails.
    std::fs::create_dir(directory.join("FORMAT.new")).unwrap();
    assert!(matches!(Outbox::open(settings(directory), ring(&[2, 1])), Err(OpenError::Io { .. })));
    assert!(
        !directory.join("index/key").exists(),
        "something is sealed with a key that FORMAT does not name"
    );
    let outbox = open_with(directory, &[1]);
    assert_eq!(bodies(&outbox), expected(1..=3));
    outbox.close();
    std::fs::remove_dir(directory.join("FORMAT.new")).unwrap();
    // The key is named, and the power fails before the lanes are: the next start names them.
    let mut format = descriptor::read(directory).unwrap().unwrap();
    assert!(format.begin_key(&k(2).id(), 1));
    format.save(directory).unwrap();
    refused(directory, &[1], &[2]);
    let outbox = open_with(directory, &[2, 1]);
    add(&outbox, 4..=6);
    outbox.close();
    assert_eq!(descriptor::read(directory).unwrap().unwrap().periods()[1].lanes[&clinical()], 4);
    refused(directory, &[2], &[1]);
    let outbox = open_with(directory, &[2, 1]);
    assert_eq!(bodies(&outbox), expected(1..=6));
    outbox.close();
}

/// A power cut loses records that were never answered, and their numbers are given again under the new key.
#[test]
fn a_lane_begins_under_a_key_where_it_was_shortest() {
    let directory = tempfile::tempdir().unwrap();
    let outbox = open_with(directory.path(), &[1]);
    outbox.close();
    let mut format = descriptor::read(directory.path()).unwrap().unwrap();
    assert!(!format.begin_lanes([(clinical(), 5)].into_iter()), "one key: there is nothing to tell apart");
    format.begin_key(&k(2).id(), 1);
    assert!(format.begin_lanes([(clinical(), 10)].into_iter()));
    assert!(!format.begin_lanes([(clinical(), 12)].into_iter()));
    assert!(format.begin_lanes([(clinical(), 8)].into_iter()));
    assert_eq!(format.periods()[1].lanes[&clinical()], 8);
}

#[test]
fn a_segment_rebuilt_after_a_rotation_is_complete() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    let outbox = open_with(directory, &[1]);
    add(&outbox, 1..=12);
    outbox.close();
    let outbox = open_with(directory, &[2, 1]);
    add(&outbox, 13..=20);
    outbox.close();
    // A segment with records of both keys loses its beginning, and sled with it.
    let file = segments(directory)[1].join(DATABASE_FILE);
    let mut bytes = std::fs::read(&file).unwrap();
    bytes[..64].fill(0xff);
    std::fs::write(&file, bytes).unwrap();
    let outbox = open_with(directory, &[2, 1]);
    assert_eq!(bodies(&outbox), expected(1..=20));
    assert!(codes(&outbox).contains(&"salvaged"));
    outbox.close();
    let uses = Outbox::key_uses_of(&settings(directory)).unwrap().unwrap();
    assert!(uses[0].needed_by.iter().any(|by| by.contains("aside/")), "{uses:?}");
}
