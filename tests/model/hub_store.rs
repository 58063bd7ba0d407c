//! The embedded store: what was synced is there after a crash, complete and in order, and nothing else counts.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use pgw_core::committer::{Content, Record as _};
use pgw_core::transaction::{Kind, TransactionId};
use pgw_hub::store::line;
use pgw_hub::store::line::Line;
use pgw_hub::store::ndjson::{NdjsonStore, files_of};
use pgw_hub::store::walk::Walk;
use pgw_hub::store::{Entry, LaneName, Store, StoreError, Through};

use crate::hub_kit::{Sender, lane, lane_of, transaction};

const NEVER: u64 = u64::MAX;

fn watermark(sender: &Sender) -> Through {
    sender.end()
}

fn path_of(directory: &Path, lane: &LaneName) -> PathBuf {
    let parent = directory.join(lane.practice.as_str()).join(lane.gateway.as_str());
    parent.join(format!("{}.ndjson", lane.lane))
}

/// All sequences in the files of a lane, after a walk that must find no fault.
fn walked(directory: &Path, lane: &LaneName) -> Vec<u64> {
    let mut walk = Walk::new(lane.clone());
    let mut sequences = Vec::new();
    for path in files_of(directory, lane).unwrap() {
        let bytes = fs::read(&path).unwrap();
        for text in bytes.split_inclusive(|byte| *byte == b'\n') {
            let read = line::read(text.strip_suffix(b"\n").expect("every line ends"));
            walk.step(read.as_ref()).unwrap();
            if let Some(Line::Record(record)) = read {
                sequences.push(record.watermark.through);
            }
        }
    }
    sequences
}

/// In a memory file system if there is one: thousands of stores are opened, and the disk's speed does not matter.
fn in_memory() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory).unwrap() } else { tempfile::tempdir().unwrap() }
}

#[test]
fn a_line_is_a_cloud_event_and_the_body_comes_back() {
    let directory = tempfile::tempdir().unwrap();
    let mut sender = Sender::new(&lane("clinical"), 1);
    let body: Vec<u8> = (0..=255).collect();
    let mut sent = transaction(77, &body);
    sent.correlation_id = "c\n\u{1f980}".into();
    sent.kind = Kind::Test;
    sent.sender.push('\u{1}');
    let entry = sender.next_of(&sent);
    NdjsonStore::open(directory.path(), NEVER).unwrap().append(std::slice::from_ref(&entry)).unwrap();
    let path = path_of(directory.path(), &sender.lane);
    let text = fs::read_to_string(&path).unwrap();
    let event: serde_json::Value = serde_json::from_str(text.lines().nth(1).unwrap()).unwrap();
    let envelope = &entry.envelope;
    for (name, value) in [
        ("specversion", "1.0"),
        ("id", "00000000-0000-0000-0000-00000000004d"),
        ("source", "/pgw/B86022/gw1/clinical"),
        ("sender", &sent.sender),
        ("type", "hl7v2.oru_r01"),
        ("time", "2026-11-22T22:12:10.123Z"),
        ("datacontenttype", "application/hl7-v2+er7; charset=iso-8859-1"),
        ("partitionkey", "clinical"),
        ("epoch", "00000000-0000-0000-0000-000000000001"),
        ("sequence", "00000000000000000001"),
        ("chain", &envelope.chain.to_string()),
        ("kind", "test"),
        ("clock", "synced"),
        ("correlationid", "c\n\u{1f980}"),
    ] {
        assert_eq!(event[name], value, "{name}");
    }
    let data = event["data_base64"].as_str().unwrap();
    assert_eq!(base64::engine::general_purpose::STANDARD.decode(data).unwrap(), body);
    assert_eq!(event.as_object().unwrap().len(), 15, "nothing else is in it");
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(fs::metadata(path.parent().unwrap()).unwrap().permissions().mode() & 0o777, 0o700);
}

#[test]
fn marks_of_every_epoch_are_read_from_the_tail() {
    let directory = tempfile::tempdir().unwrap();
    let mut first = Sender::new(&lane("clinical"), 1);
    let mut other = Sender::new(&lane_of("A81001", "gw9", "urgent"), 1);
    let mut store = NdjsonStore::open(directory.path(), NEVER).unwrap();
    store.append(&first.take(3)).unwrap();
    let mut mixed = first.take(1);
    let mut second = Sender::after(&first, 2);
    mixed.extend(other.take(2));
    mixed.extend(second.take(1));
    store.append(&mixed).unwrap();
    store.append(&second.take(5)).unwrap();
    let expected = vec![
        (other.lane.clone(), vec![watermark(&other)]),
        (first.lane.clone(), vec![watermark(&first), watermark(&second)]),
    ];
    assert_eq!(store.watermarks(), expected);
    drop(store);
    let store = NdjsonStore::open(directory.path(), NEVER).unwrap();
    assert_eq!(store.watermarks(), expected);
    assert_eq!(walked(directory.path(), &first.lane), [1, 2, 3, 4, 1, 2, 3, 4, 5, 6]);
}

#[test]
fn a_tail_torn_at_any_byte_is_cut_after_the_last_whole_transaction() {
    let whole = tempfile::tempdir().unwrap();
    let mut sender = Sender::new(&lane("clinical"), 1);
    let mut store = NdjsonStore::open(whole.path(), NEVER).unwrap();
    store.append(&sender.take(2)).unwrap();
    let synced = watermark(&sender);
    let path = path_of(whole.path(), &sender.lane);
    let before = usize::try_from(fs::metadata(&path).unwrap().len()).unwrap();
    let group = sender.clone().take(3);
    store.append(&group).unwrap();
    drop(store);
    let bytes = fs::read(&path).unwrap();
    for length in before..=bytes.len() {
        let directory = in_memory();
        let copy = path_of(directory.path(), &sender.lane);
        fs::create_dir_all(copy.parent().unwrap()).unwrap();
        fs::write(&copy, &bytes[..length]).unwrap();
        let mut store = NdjsonStore::open(directory.path(), NEVER).unwrap();
        let lines = bytes[before..length].iter().filter(|byte| **byte == b'\n').count();
        let through = 2 + lines.saturating_sub(1);
        let expected = if lines < 2 {
            synced
        } else {
            let envelope = &group[lines - 2].envelope;
            Through { epoch: envelope.epoch, through: envelope.sequence, chain: envelope.chain }
        };
        assert_eq!(store.watermarks(), [(sender.lane.clone(), vec![expected])], "cut at {length}");
        // The torn end is copied aside, to the byte.
        let good = fs::metadata(&copy).unwrap().len();
        let torn: Vec<_> = fs::read_dir(copy.parent().unwrap())
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.to_string_lossy().contains(".torn-"))
            .collect();
        if usize::try_from(good).unwrap() == length {
            assert!(torn.is_empty());
        } else {
            assert_eq!(fs::read(&torn[0]).unwrap(), &bytes[usize::try_from(good).unwrap()..length]);
        }
        // The gateway sends the rest again, and the lane is as if nothing had happened.
        store.append(&group[through - 2..]).unwrap();
        drop(store);
        assert_eq!(walked(directory.path(), &sender.lane), [1, 2, 3, 4, 5], "cut at {length}");
    }
}

#[test]
fn a_gap_inside_the_last_group_is_found_although_its_last_line_is_whole() {
    let whole = tempfile::tempdir().unwrap();
    let mut sender = Sender::new(&lane("clinical"), 1);
    let mut store = NdjsonStore::open(whole.path(), NEVER).unwrap();
    store.append(&sender.take(2)).unwrap();
    let synced = watermark(&sender);
    let path = path_of(whole.path(), &sender.lane);
    let before = usize::try_from(fs::metadata(&path).unwrap().len()).unwrap();
    store.append(&sender.take(3)).unwrap();
    drop(store);
    let bytes = fs::read(&path).unwrap();
    let third = before + bytes[before..].iter().position(|byte| *byte == b'\n').unwrap() + 1;
    // The group's first line, or its first transaction: in both cases nothing of it counts.
    for zeroed in [before..before + 30, third..third + 30, third + 400..third + 401] {
        let mut damaged = bytes.clone();
        damaged[zeroed.clone()].fill(0);
        fs::write(&path, &damaged).unwrap();
        let store = NdjsonStore::open(whole.path(), NEVER).unwrap();
        assert_eq!(store.watermarks_of(&sender.lane), [synced], "zeroed at {zeroed:?}");
    }
}

#[test]
fn the_last_group_is_found_across_the_seams_of_what_is_read_at_once() {
    // The last group's size varies over two block sizes around each seam.
    for size in (0..60).chain(32_700..32_800).step_by(3) {
        let directory = tempfile::tempdir().unwrap();
        let mut sender = Sender::new(&lane("clinical"), 1);
        let mut store = NdjsonStore::open(directory.path(), NEVER).unwrap();
        store.append(&sender.take(1)).unwrap();
        let line = 1_000;
        // Base64 of three bytes is four: the end moves in steps of four, and so does the beginning of the group.
        store.append(&[sender.next(9, &vec![b'x'; (65_536 - line) / 4 * 3 + size % 60 * 24])]).unwrap();
        let trailing = sender.next(10, &vec![b'y'; size * 3 / 2 + 1]);
        store.append(&[trailing]).unwrap();
        drop(store);
        let store = NdjsonStore::open(directory.path(), NEVER).unwrap();
        assert_eq!(store.watermarks_of(&sender.lane), [watermark(&sender)], "{size}");
    }
}

#[test]
fn rotated_files_keep_order_and_marks_also_when_the_new_file_is_not_there_yet() {
    let directory = tempfile::tempdir().unwrap();
    let mut sender = Sender::new(&lane("clinical"), 1);
    let mut store = NdjsonStore::open(directory.path(), 1_000).unwrap();
    for _ in 0..6 {
        store.append(&sender.take(2)).unwrap();
    }
    drop(store);
    assert!(files_of(directory.path(), &sender.lane).unwrap().len() > 3);
    assert_eq!(walked(directory.path(), &sender.lane), (1..=12).collect::<Vec<_>>());
    // A crash after the rename: first without the new file, then with an empty one.
    let current = path_of(directory.path(), &sender.lane);
    let last = files_of(directory.path(), &sender.lane).unwrap().len();
    fs::rename(&current, current.with_extension(format!("{last:06}.ndjson"))).unwrap();
    for _ in 0..2 {
        let store = NdjsonStore::open(directory.path(), 1_000).unwrap();
        assert_eq!(store.watermarks_of(&sender.lane), [watermark(&sender)]);
    }
    let mut store = NdjsonStore::open(directory.path(), 1_000).unwrap();
    store.append(&sender.take(1)).unwrap();
    assert_eq!(walked(directory.path(), &sender.lane), (1..=13).collect::<Vec<_>>());
}

#[test]
fn a_lane_without_room_does_not_advance_and_the_others_do() {
    let directory = tempfile::tempdir().unwrap();
    let (mut full, mut good) = (Sender::new(&lane("full"), 1), Sender::new(&lane("good"), 1));
    let path = path_of(directory.path(), &good.lane).with_file_name("full.ndjson");
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    symlink("/dev/full", &path).unwrap();
    let mut store = NdjsonStore::open(directory.path(), NEVER).unwrap();
    let group: Vec<_> = full.take(1).into_iter().chain(good.take(1)).collect();
    let error = store.append(&group).unwrap_err();
    assert!(error.is_full(), "{error:?}");
    assert_eq!(store.watermarks_of(&full.lane), []);
    assert_eq!(store.watermarks_of(&good.lane), [watermark(&good)]);
}

#[test]
fn what_does_not_follow_the_mark_is_not_stored() {
    let directory = tempfile::tempdir().unwrap();
    let (mut bad, mut good) = (Sender::new(&lane("bad"), 1), Sender::new(&lane("good"), 1));
    let mut store = NdjsonStore::open(directory.path(), NEVER).unwrap();
    let all = bad.take(4);
    for wrong in [&all[1..2], &[all[0].clone(), all[2].clone()], &all[..1]] {
        let group: Vec<_> = wrong.iter().cloned().chain(good.take(1)).collect();
        assert!(matches!(store.append(&group), Err(StoreError::NotNext { .. })));
        assert_eq!(store.watermarks_of(&good.lane), [watermark(&good)], "the other lane continues");
    }
    assert_eq!(store.watermarks_of(&bad.lane)[0].through, 1, "and what was right of it is there");
    assert_eq!(walked(directory.path(), &bad.lane), [1]);
}

#[test]
fn contents_are_known_whatever_their_epoch_and_file() {
    let directory = tempfile::tempdir().unwrap();
    let mut sender = Sender::new(&lane("clinical"), 1);
    let mut store = NdjsonStore::open(directory.path(), 1_000).unwrap();
    let mut all = Vec::new();
    let mut more = |store: &mut NdjsonStore, all: &mut Vec<Entry>| {
        let group = sender.take(2);
        store.append(&group).unwrap();
        all.extend(group);
    };
    let check = |store: &mut NdjsonStore, all: &[Entry]| {
        for entry in all {
            let (id, digest) = (entry.numbered().id, entry.digest());
            assert_eq!(store.content(&entry.lane, id, digest).unwrap(), Content::Same);
            let other = store.content(&entry.lane, id, all[0].digest()).unwrap();
            assert_eq!(other, if digest == all[0].digest() { Content::Same } else { Content::Other });
            assert_eq!(store.content(&lane("other"), id, digest).unwrap(), Content::Unknown);
        }
        let unknown = TransactionId(uuid::Uuid::from_u128(3));
        assert_eq!(store.content(&lane("clinical"), unknown, all[0].digest()).unwrap(), Content::Unknown);
    };
    (0..6).for_each(|_| more(&mut store, &mut all));
    check(&mut store, &all);
    more(&mut store, &mut all);
    check(&mut store, &all);
    drop(store);
    check(&mut NdjsonStore::open(directory.path(), 1_000).unwrap(), &all);
}

#[test]
fn one_process_at_a_time() {
    let directory = tempfile::tempdir().unwrap();
    let _store = NdjsonStore::open(directory.path(), NEVER).unwrap();
    assert!(matches!(NdjsonStore::open(directory.path(), NEVER), Err(StoreError::InUse(_))));
}

#[test]
fn an_epoch_begins_only_at_the_end_and_no_epoch_before_the_last_grows() {
    let directory = tempfile::tempdir().unwrap();
    let mut first = Sender::new(&lane("clinical"), 1);
    let mut store = NdjsonStore::open(directory.path(), NEVER).unwrap();
    store.append(&first.take(3)).unwrap();
    let mut earlier = Sender::new(&lane("clinical"), 1);
    earlier.take(2);
    let mut not_begun = Sender::after(&first, 3);
    not_begun.take(1);
    for mut wrong in [Sender::new(&lane("clinical"), 2), Sender::after(&earlier, 2), not_begun] {
        assert!(matches!(store.append(&wrong.take(2)), Err(StoreError::NotNext { .. })));
        assert_eq!(store.watermarks_of(&first.lane), [watermark(&first)]);
    }
    let mut second = Sender::after(&first, 2);
    store.append(&second.take(2)).unwrap();
    assert!(matches!(store.append(&first.clone().take(1)), Err(StoreError::NotNext { .. })), "it is over");
    // Nor does an epoch begin twice.
    let mut again = Sender::at(&first.lane, 1, Some(second.end()));
    assert!(matches!(store.append(&again.take(1)), Err(StoreError::NotNext { .. })));
    assert_eq!(store.watermarks_of(&first.lane), [watermark(&first), watermark(&second)]);
    assert_eq!(walked(directory.path(), &first.lane), [1, 2, 3, 1, 2]);
}

#[test]
fn a_value_is_that_of_the_line_on_stable_storage_only() {
    let directory = tempfile::tempdir().unwrap();
    let mut sender = Sender::new(&lane("clinical"), 1);
    let mut store = NdjsonStore::open(directory.path(), 1_000).unwrap();
    let mut all = Vec::new();
    for _ in 0..5 {
        let group = sender.take(2);
        store.append(&group).unwrap();
        all.extend(group);
    }
    let value = |store: &mut NdjsonStore, sequence| {
        store.value_at(&lane("clinical"), all[0].envelope.epoch, sequence).unwrap()
    };
    // A group that is in the file and was never synced.
    let unsynced = tempfile::tempdir().unwrap();
    let mut other = NdjsonStore::open(unsynced.path(), NEVER).unwrap();
    let mut ahead = Sender::new(&lane("clinical"), 1);
    other.append(&ahead.take(10)).unwrap();
    let before = fs::metadata(path_of(unsynced.path(), &sender.lane)).unwrap().len();
    other.append(&ahead.take(2)).unwrap();
    let bytes = fs::read(path_of(unsynced.path(), &sender.lane)).unwrap();
    let path = path_of(directory.path(), &sender.lane);
    let whole = fs::read(&path).unwrap();
    fs::write(&path, [&whole[..], &bytes[usize::try_from(before).unwrap()..]].concat()).unwrap();
    for entry in &all {
        assert_eq!(value(&mut store, entry.envelope.sequence), Some(entry.envelope.chain));
    }
    for sequence in [0, 11, 12, 13] {
        assert_eq!(value(&mut store, sequence), None, "{sequence}");
    }
    assert_eq!(store.value_at(&lane("other"), sender.epoch, 1).unwrap(), None);
}

#[test]
fn a_value_that_damage_has_taken_from_the_middle_of_a_file_is_not_here_and_stops_no_question() {
    let directory = tempfile::tempdir().unwrap();
    let mut sender = Sender::new(&lane("clinical"), 1);
    let mut store = NdjsonStore::open(directory.path(), NEVER).unwrap();
    let all: Vec<_> = (0..5)
        .flat_map(|_| {
            let group = sender.take(2);
            store.append(&group).unwrap();
            group
        })
        .collect();
    drop(store);
    let path = path_of(directory.path(), &sender.lane);
    let mut bytes = fs::read(&path).unwrap();
    let fifth = all[4].envelope.chain.to_string();
    let at = bytes.windows(fifth.len()).position(|window| window == fifth.as_bytes()).unwrap();
    bytes[at..at + 64].fill(b'!');
    fs::write(&path, bytes).unwrap();
    let mut store = NdjsonStore::open(directory.path(), NEVER).unwrap();
    let value = |store: &mut NdjsonStore, at: usize| {
        store.value_at(&lane("clinical"), sender.epoch, all[at].envelope.sequence).unwrap()
    };
    assert_eq!(value(&mut store, 4), None);
    for at in [0, 3, 6, 9] {
        assert_eq!(value(&mut store, at), Some(all[at].envelope.chain), "{at}");
    }
    assert_eq!(store.watermarks_of(&sender.lane), [sender.end()]);
}

/// An operator puts files back without stopping the hub.
#[test]
fn a_file_that_another_has_taken_the_name_of_is_neither_answered_for_nor_moved_nor_backed_up() {
    for rotate_bytes in [NEVER, 1] {
        let directory = tempfile::tempdir().unwrap();
        let mut sender = Sender::new(&lane("clinical"), 1);
        let mut store = NdjsonStore::open(directory.path(), rotate_bytes).unwrap();
        store.append(&sender.take(3)).unwrap();
        let path = path_of(directory.path(), &sender.lane);
        let copy = path.with_extension("copy");
        fs::copy(&path, &copy).unwrap();
        fs::rename(&copy, &path).unwrap();
        let put_back = fs::read(&path).unwrap();
        let backup = directory.path().join("backup/B86022/gw1");
        fs::create_dir_all(&backup).unwrap();
        let linked = store.link_lane(&sender.lane, &directory.path().join("backup"));
        assert!(linked.is_err() && fs::read_dir(backup).unwrap().next().is_none(), "{linked:?}");
        let error = store.append(&sender.take(1)).unwrap_err();
        assert!(error.to_string().contains("clinical"), "{error}");
        assert!(store.is_out_of_use(&sender.lane), "it is read again before anything is said of it");
        assert_eq!(fs::read(&path).unwrap(), put_back);
        assert_eq!(files_of(directory.path(), &sender.lane).unwrap(), [path]);
    }
}
