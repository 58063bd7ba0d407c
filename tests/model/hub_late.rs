//! What is kept beside a lane: once, whatever restarts; no part of the line; in every backup; and never without a limit.

use std::fs;

use pgw_core::committer::{Content, Record as _};
use pgw_core::transaction::Hub;
use pgw_core::wire::signature::SigningKey;
use pgw_hub::backup::{self, NewBackup};
use pgw_hub::gateways::Gateways;
use pgw_hub::store::line::{self, Line};
use pgw_hub::store::ndjson::NdjsonStore;
use pgw_hub::store::{LateKept, Store, late};
use pgw_hub::verify;

use crate::hub_kit::{Sender, lane};

/// The numbers in the file of what arrived late, and how many signatures are beside them.
fn kept(directory: &std::path::Path) -> (Vec<u64>, usize) {
    let (mut numbers, mut heads) = (Vec::new(), 0);
    late::lines(&late::path(directory, &lane("clinical")), |text| match line::read(text) {
        Some(Line::Record(record)) => numbers.push(record.watermark.through),
        Some(Line::Head(_)) => heads += 1,
        other => panic!("{other:?}"),
    })
    .unwrap();
    (numbers, heads)
}

#[test]
fn what_is_late_is_kept_once_also_after_a_restart_and_makes_no_id_known() {
    let directory = tempfile::tempdir().unwrap();
    let mut store = NdjsonStore::open(directory.path(), 1_000).unwrap();
    let mut sender = Sender::new(&lane("clinical"), 1);
    store.append(&sender.take(3)).unwrap();
    let mut other = Sender::new(&lane("clinical"), 2);
    let mut entries = other.take(4);
    entries.iter_mut().for_each(|entry| entry.keep_head(Some(sender.key.public().id())));
    assert_eq!(store.keep_late(&entries[..3]).unwrap(), LateKept { new: 3, no_room: 0 });
    assert_eq!(store.keep_late(&entries[..3]).unwrap(), LateKept::default());
    drop(store);
    // A line that a crash has cut short is none, and takes none with it.
    let path = late::path(directory.path(), &lane("clinical"));
    let whole = fs::read(&path).unwrap();
    fs::write(&path, [&whole[..], &whole[..200]].concat()).unwrap();
    let mut store = NdjsonStore::open(directory.path(), 1_000).unwrap();
    assert_eq!(store.keep_late(&entries).unwrap(), LateKept { new: 1, no_room: 0 });
    for entry in &entries {
        let numbered = entry.numbered();
        let values = store.late_at(&lane("clinical"), numbered.epoch, numbered.sequence).unwrap();
        assert_eq!(values, [numbered.chain]);
        let content = store.content(&lane("clinical"), numbered.id, entry.digest()).unwrap();
        assert_eq!(content, Content::Unknown);
    }
    assert_eq!(store.watermarks_of(&lane("clinical")), [sender.end()]);
    drop(store);
    let text = fs::read(&path).unwrap();
    let readable = text.split(|byte| *byte == b'\n').filter_map(line::read);
    assert_eq!(readable.filter(|line| matches!(line, Line::Record(_))).count(), 4);
    let verified = verify::lane(directory.path(), &lane("clinical"), &Gateways::default()).unwrap();
    assert_eq!((verified.transactions, verified.late.len(), verified.faults_total), (3, 4, 0));
}

#[test]
fn what_comes_into_the_lane_after_all_is_listed_no_more() {
    let directory = tempfile::tempdir().unwrap();
    let mut store = NdjsonStore::open(directory.path(), 1 << 30).unwrap();
    let mut sender = Sender::new(&lane("clinical"), 1);
    store.append(&sender.take(3)).unwrap();
    let entries = Sender::new(&lane("clinical"), 2).take(3);
    store.keep_late(&entries).unwrap();
    assert_eq!(kept(directory.path()), (vec![1, 2, 3], 0));
    let mut next = Sender::after(&sender, 3);
    store.append(&[next.again(&entries[1])]).unwrap();
    // Under its id, and with another content.
    store.append(&[next.next(entries[2].envelope.id().as_u128(), b"another")]).unwrap();
    let verified = verify::lane(directory.path(), &lane("clinical"), &Gateways::default()).unwrap();
    let late: Vec<u64> = verified.late.iter().map(|late| late.at.through).collect();
    assert_eq!((late, verified.faults), (vec![1, 3], vec![]));
}

#[test]
fn what_is_beside_a_lane_is_in_its_backup_and_has_a_limit() {
    let directory = tempfile::tempdir().unwrap();
    let mut store = NdjsonStore::open(&directory.path().join("hub"), 1 << 30).unwrap();
    let mut other = Sender::new(&lane("clinical"), 2);
    let entries = other.take(late::MOST_ROWS as u64 + 5);
    let most = late::MOST_ROWS as u64;
    assert_eq!(store.keep_late(&entries).unwrap(), LateKept { new: most, no_room: 5 });
    assert_eq!(store.keep_late(&entries[..10]).unwrap(), LateKept::default(), "those are there");
    assert_eq!(store.keep_late(&entries[most as usize..]).unwrap(), LateKept { new: 0, no_room: 5 });
    let key = SigningKey::from_pkcs8(&SigningKey::generate().unwrap()).unwrap();
    let hub = &Hub::new("hub1").unwrap();
    let new = NewBackup { store: &directory.path().join("hub"), directory: None, hub, key: &key };
    let begun = backup::begin(new, &mut |lane, into| Ok(store.link_lane(lane, into)?), &mut |_| {}).unwrap();
    let copy = late::path(&begun.directory, &lane("clinical"));
    assert_eq!(
        fs::read(copy).unwrap(),
        fs::read(late::path(&directory.path().join("hub"), &lane("clinical"))).unwrap()
    );
}
