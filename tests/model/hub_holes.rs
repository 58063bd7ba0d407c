//! A lane whose files are missing or damaged ends before that; what comes again makes it whole, and nothing is there twice.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use pgw_core::committer::{Content, Record as _};
use pgw_core::numbering::{LostNumbers, Numbers};
use pgw_core::transaction::{Hub, unix_millis_now};
use pgw_core::wire::signature::SigningKey;
use pgw_hub::backup::{self, NewBackup};
use pgw_hub::gateways::Gateways;
use pgw_hub::report;
use pgw_hub::store::line::{self, Line};
use pgw_hub::store::ndjson::{NdjsonStore, files_of};
use pgw_hub::store::walk::Fault;
use pgw_hub::store::{Entry, Store, StoreError};
use pgw_hub::verify;

use crate::hub_kit::{Sender, lane, lane_of};

/// Six groups of two: five rotated files and the one that grows.
const GROUPS: u64 = 6;

struct Centre {
    directory: tempfile::TempDir,
    all: Vec<Entry>,
    files: Vec<PathBuf>,
}

impl Centre {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut sender = Sender::new(&lane("clinical"), 1);
        let all = sender.take(2 * GROUPS + 2);
        let mut store = NdjsonStore::open(directory.path(), 1_000).unwrap();
        for group in all[..2 * GROUPS as usize].chunks(2) {
            store.append(group).unwrap();
        }
        // The index of the ids covers all of it.
        assert!(knows(&mut store, &all[0]));
        let files = files_of(directory.path(), &sender.lane).unwrap();
        assert_eq!(files.len() as u64, GROUPS);
        Self { directory, all, files }
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    fn open(&self) -> NdjsonStore {
        NdjsonStore::open(self.path(), 1_000).unwrap()
    }

    fn verify(&self) -> report::PrintedReport {
        report::verify(self.path(), &Gateways::default(), None).unwrap()
    }

    /// The lane ends at `through`, loudly; then its gateway sends again from there, `groups` at a time, and goes on.
    fn comes_again(&self, through: u64, groups: usize) {
        let lane = &self.all[0].lane;
        let mut store = self.open();
        assert_eq!(end(&store), through);
        let shown = report::list(self.path(), unix_millis_now()).unwrap();
        assert!(!shown.ok && shown.text.contains("is NOT whole"), "{}", shown.text);
        let verified = self.verify();
        assert!(!verified.ok, "{}", verified.text);
        // A restart in the middle changes nothing.
        while end(&store) < 2 * GROUPS {
            let before = usize::try_from(end(&store)).unwrap();
            store.append(&self.all[before..(before + groups).min(self.all.len() - 2)]).unwrap();
            assert!(end(&store) > before as u64, "nothing was stored");
            drop(store);
            store = self.open();
        }
        store.append(&self.all[2 * GROUPS as usize..]).unwrap();
        assert_eq!(end(&store), 2 * GROUPS + 2);
        for entry in &self.all {
            assert!(knows(&mut store, entry));
        }
        drop(store);
        let mut counts: BTreeMap<u64, u32> = BTreeMap::new();
        for path in files_of(self.path(), lane).unwrap().iter().filter(|path| path.exists()) {
            for text in fs::read(path).unwrap().split(|byte| *byte == b'\n') {
                if let Some(Line::Record(record)) = line::read(text) {
                    *counts.entry(record.watermark.through).or_default() += 1;
                }
            }
        }
        let once = (1..=2 * GROUPS + 2).map(|number| (number, 1)).collect();
        assert_eq!(counts, once, "each once");
        let verified = self.verify();
        assert!(verified.ok, "{}", verified.text);
        assert!(report::list(self.path(), unix_millis_now()).unwrap().ok);
        assert_eq!(end(&self.open()), 2 * GROUPS + 2);
    }
}

fn numbers(lost: &[Numbers]) -> Vec<(u64, u64)> {
    lost.iter().map(|lost| (lost.from, lost.through)).collect()
}

fn numbers_of(lost: &[LostNumbers]) -> Vec<(u64, u64)> {
    lost.iter().map(|lost| (lost.from, lost.through)).collect()
}

fn knows(store: &mut NdjsonStore, entry: &Entry) -> bool {
    let content = store.content(&entry.lane, entry.numbered().id, entry.digest()).unwrap();
    content == Content::Same
}

fn end(store: &NdjsonStore) -> u64 {
    store.watermarks().first().and_then(|(_, ends)| ends.first()).map_or(0, |end| end.through)
}

#[test]
fn a_lane_ends_before_a_missing_file_and_is_whole_once_that_has_come_again() {
    for missing in 0..GROUPS as usize - 1 {
        // What comes again ends at the hole's other side, or goes far beyond it.
        for groups in [1, 2, 3, 100] {
            let centre = Centre::new();
            fs::remove_file(&centre.files[missing]).unwrap();
            let text = centre.verify().text;
            let expected = match missing {
                0 => "the lane's first file is missing".to_owned(),
                _ => format!("a file is missing between clinical.{missing:06}.ndjson and this one"),
            };
            assert!(text.contains(&expected), "{text}");
            centre.comes_again(2 * missing as u64, groups);
        }
    }
}

#[test]
fn several_holes_are_filled_one_after_the_other() {
    let centre = Centre::new();
    for missing in [0, 1, 3] {
        fs::remove_file(&centre.files[missing]).unwrap();
    }
    let shown = report::list(centre.path(), unix_millis_now()).unwrap().text;
    assert!(
        shown.contains("files number 1 to 2 are missing before clinical.000003.ndjson: sequences 1 to 4"),
        "{shown}"
    );
    centre.comes_again(0, 100);
}

#[test]
fn a_file_that_has_lost_its_end_or_its_beginning_is_a_hole() {
    for middle in 0..GROUPS as usize - 1 {
        let centre = Centre::new();
        let whole = fs::read(&centre.files[middle]).unwrap();
        fs::write(&centre.files[middle], &whole[..whole.len() - 5]).unwrap();
        centre.comes_again(2 * middle as u64 + 1, 100);
        let centre = Centre::new();
        let mut damaged = whole.clone();
        damaged[3] = b'#';
        fs::write(&centre.files[middle], &damaged).unwrap();
        let mut store = centre.open();
        assert_eq!(end(&store), 2 * middle as u64);
        store.append(&centre.all[2 * middle..2 * GROUPS as usize]).unwrap();
        assert_eq!(end(&store), 2 * GROUPS);
        drop(store);
        assert!(centre.verify().ok, "{}", centre.verify().text);
        let kept = fs::read_dir(centre.files[0].parent().unwrap()).unwrap();
        let kept =
            kept.filter_map(Result::ok).find(|entry| entry.path().to_string_lossy().contains(".damaged-"));
        assert_eq!(fs::read(kept.unwrap().path()).unwrap(), damaged, "set aside");
    }
}

#[test]
fn what_was_sent_again_on_request_fills_the_place_of_a_lost_end() {
    let centre = Centre::new();
    let whole = fs::read(&centre.files[1]).unwrap();
    fs::write(&centre.files[1], &whole[..whole.len() - 5]).unwrap();
    let mut store = centre.open();
    assert_eq!(end(&store), 3);
    store.keep_copies(&centre.all[3..4]).unwrap();
    drop(store);
    assert_eq!(end(&centre.open()), 2 * GROUPS, "the gateway need not send it once more");
    assert!(centre.verify().ok, "{}", centre.verify().text);
}

#[test]
fn a_lane_whose_files_cannot_be_used_stops_no_other() {
    let centre = Centre::new();
    let mut good = Sender::new(&lane_of("B86022", "gw2", "letters"), 3);
    centre.open().append(&good.take(3)).unwrap();
    // No file, though it has the name of one: it can be opened and not read.
    let file = &centre.files[2];
    let content = fs::read(file).unwrap();
    fs::remove_file(file).unwrap();
    fs::create_dir(file).unwrap();
    let mut store = centre.open();
    let broken = &centre.all[0].lane;
    let error = store.check_lane(broken).unwrap_err();
    assert!(matches!(error, StoreError::OutOfUse { .. }), "{error}");
    assert_eq!(store.watermarks().len(), 1, "nothing is said of it");
    store.append(&good.take(3)).unwrap();
    // A backup goes on without it, and says so.
    let key = SigningKey::from_pkcs8(&SigningKey::generate().unwrap()).unwrap();
    let hub = &Hub::new("hub1").unwrap();
    let new = NewBackup { store: centre.path(), directory: None, hub, key: &key };
    let begun = backup::begin(new, &mut |lane, into| Ok(store.link_lane(lane, into)?), &mut |_| {}).unwrap();
    assert_eq!((begun.lanes, begun.files), (1, 3));
    assert_eq!(begun.left_out[0].lane, broken.to_string());
    drop(store);
    let list = report::list(centre.path(), unix_millis_now()).unwrap();
    assert!(!list.ok && list.text.contains("clinical.000003.ndjson"), "{}", list.text);
    assert!(list.text.contains("the lane is out of use"), "{}", list.text);
    let verified = centre.verify();
    assert!(
        !verified.ok && verified.text.contains("B86022/gw1/clinical: NOT whole: cannot read"),
        "{}",
        verified.text
    );
    assert!(verified.text.contains("B86022/gw2/letters: whole, 6 transactions"), "{}", verified.text);
    // A lane that begins where nothing can be written.
    let mut new = Sender::new(&lane("new"), 4);
    let mut store = centre.open();
    let group = [new.take(1), good.take(1)].concat();
    std::os::unix::fs::symlink("nowhere/new", file.with_file_name("new.ndjson")).unwrap();
    assert!(store.check_lane(&new.lane).is_ok(), "it has no file yet");
    assert!(matches!(store.append(&group), Err(StoreError::OutOfUse { .. })));
    assert_eq!(store.watermarks_of(&good.lane)[0].through, 7, "the other goes on");
    assert!(store.check_lane(&new.lane).is_err(), "it fails no later group");
    drop(store);
    // Corrected, it has lost nothing.
    fs::remove_dir(file).unwrap();
    fs::write(file, content).unwrap();
    assert_eq!(centre.open().watermarks_of(broken)[0].through, 2 * GROUPS);
}

#[test]
fn while_a_hole_is_open_only_what_refills_it_is_stored() {
    let centre = Centre::new();
    fs::remove_file(&centre.files[2]).unwrap();
    let lane = &centre.all[0].lane;
    let mut store = centre.open();
    assert_eq!(end(&store), 4);
    assert_eq!(store.hole(lane).unwrap()[0].through, 6);
    // A new epoch, and another fifth and sixth in the lane's own.
    let mut history = Sender::new(lane, 1);
    history.take(4);
    let mut epoch = Sender::after(&history, 2);
    assert!(matches!(store.append(&epoch.take(1)), Err(StoreError::NotNext { .. })));
    let other = [history.next(77, b"another fifth"), history.next(78, b"another sixth")];
    assert!(matches!(store.append(&other), Err(StoreError::NotNext { .. })));
    drop(store);
    let mut store = centre.open();
    assert_eq!(end(&store), 5, "which number of it is wrong shows only at its end");
    // So the lane can only be given up there.
    assert_eq!(store.leave_hole(lane).unwrap(), GROUPS - 3);
    store.append(&other[1..]).unwrap();
    assert_eq!(end(&centre_after(store, &centre)), 6);
    assert!(centre.verify().ok, "{}", centre.verify().text);
}

/// The store after a restart.
fn centre_after(store: NdjsonStore, centre: &Centre) -> NdjsonStore {
    drop(store);
    centre.open()
}

#[test]
fn a_hole_that_is_given_up_ends_the_line_there_and_what_came_after_it_is_late() {
    for (missing, ends) in [(0, 0), (2, 4), (GROUPS as usize - 2, 8)] {
        let centre = Centre::new();
        fs::remove_file(&centre.files[missing]).unwrap();
        let lane = &centre.all[0].lane;
        let mut store = centre.open();
        assert_eq!(end(&store), ends);
        let files = store.leave_hole(lane).unwrap();
        assert_eq!(files, GROUPS - 1 - missing as u64);
        assert_eq!((end(&store), store.hole(lane)), (ends, None));
        // A new epoch begins there: with one of the late ones under its old id, and one that is new.
        let mut history = Sender::new(lane, 1);
        history.take(ends);
        let mut epoch = match ends {
            0 => Sender::new(lane, 2),
            _ => Sender::after(&history, 2),
        };
        let again = epoch.again(&centre.all[10]);
        assert!(!knows(&mut store, &centre.all[10]), "what is late is not known");
        store.append(&[again, epoch.next(99, b"new")]).unwrap();
        assert_eq!(store.watermarks_of(lane).last(), Some(&epoch.end()));
        drop(store);
        let mut store = centre.open();
        assert_eq!((store.watermarks_of(lane).last(), store.hole(lane)), (Some(&epoch.end()), None));
        assert!(knows(&mut store, &centre.all[10]) && !knows(&mut store, &centre.all[11]));
        let verified = verify::lane(centre.path(), lane, &Gateways::default()).unwrap();
        assert_eq!(verified.faults, vec![]);
        let late: Vec<u64> = verified.late.iter().map(|late| late.at.through).collect();
        let expected: Vec<u64> = (2 * missing as u64 + 3..=12).filter(|number| *number != 11).collect();
        assert_eq!(late, expected, "of those that came after the hole, the ones that the lane lacks");
        let shown = centre.verify();
        assert!(
            shown.ok && shown.text.contains(&format!("late: {} transactions", late.len())),
            "{}",
            shown.text
        );
        let list = report::list(centre.path(), unix_millis_now()).unwrap();
        assert!(list.ok && list.text.contains("files of another history"), "{}", list.text);
    }
}

#[test]
fn what_is_lost_for_good_stays_a_part_of_the_line_and_what_came_after_it_too() {
    for missing in [0, 2, GROUPS as usize - 2] {
        let centre = Centre::new();
        fs::remove_file(&centre.files[missing]).unwrap();
        let (lane, epoch) = (&centre.all[0].lane, centre.all[0].envelope.epoch);
        let (from, through) = (2 * missing as u64 + 1, 2 * missing as u64 + 2);
        let lost = [LostNumbers { epoch, from, through, newest: epoch }];
        let mut store = centre.open();
        store.close_hole(lane).unwrap();
        for _ in 0..2 {
            assert_eq!((end(&store), store.hole(lane)), (2 * GROUPS, None));
            assert_eq!(store.lost(lane), lost);
            for (number, entry) in (1..).zip(&centre.all[..2 * GROUPS as usize]) {
                let value = store.value_at(lane, epoch, number).unwrap();
                assert_eq!(value, (number != from).then_some(entry.envelope.chain), "{number}");
                assert_eq!(knows(&mut store, entry), !(from..=through).contains(&number), "{number}");
            }
            store = centre_after(store, &centre);
        }
        store.append(&centre.all[2 * GROUPS as usize..]).unwrap();
        store = centre_after(store, &centre);
        assert_eq!(end(&store), 2 * GROUPS + 2);
        let verified = verify::lane(centre.path(), lane, &Gateways::default()).unwrap();
        assert_eq!((verified.faults, numbers(&verified.lost)), (vec![], numbers_of(&lost)));
        assert_eq!((verified.transactions, verified.late.len()), (2 * GROUPS, 0));
        let shown = centre.verify();
        let expected = format!("LOST for good, as the centre has admitted: sequences {from} to {through}");
        assert!(shown.ok && shown.text.contains(&expected), "{}", shown.text);
        assert!(report::list(centre.path(), unix_millis_now()).unwrap().ok);
    }
}

#[test]
fn parts_that_are_lost_one_after_the_other_are_all_named() {
    let centre = Centre::new();
    let (lane, epoch) = (&centre.all[0].lane, centre.all[0].envelope.epoch);
    for file in [1, 2, 4] {
        fs::remove_file(&centre.files[file]).unwrap();
        centre.open().close_hole(lane).unwrap();
    }
    let lost =
        [(3, 4), (5, 6), (9, 10)].map(|(from, through)| LostNumbers { epoch, from, through, newest: epoch });
    let store = centre.open();
    assert_eq!((end(&store), store.lost(lane)), (2 * GROUPS, &lost[..]));
    drop(store);
    let verified = verify::lane(centre.path(), lane, &Gateways::default()).unwrap();
    assert_eq!((verified.faults, numbers(&verified.lost)), (vec![], numbers_of(&lost)));
    // Whoever makes more of it than was lost makes a hole.
    let path = &centre.files[3];
    let text = fs::read_to_string(path).unwrap().replace(r#""through":"10""#, r#""through":"11""#);
    fs::write(path, text).unwrap();
    assert!(!centre.verify().ok);
    assert_eq!(end(&centre.open()), 11);
}

#[test]
fn what_is_lost_stays_named_when_the_next_part_is_missing_and_comes_again() {
    for groups in [1, 2] {
        let centre = Centre::new();
        let (lane, epoch) = (&centre.all[0].lane, centre.all[0].envelope.epoch);
        let lost = [LostNumbers { epoch, from: 3, through: 4, newest: epoch }];
        fs::remove_file(&centre.files[1]).unwrap();
        centre.open().close_hole(lane).unwrap();
        fs::remove_file(&centre.files[2]).unwrap();
        loop {
            let mut store = centre.open();
            assert_eq!(store.lost(lane), lost, "at {}", end(&store));
            let before = usize::try_from(end(&store)).unwrap();
            if before >= 6 {
                break;
            }
            store.append(&centre.all[before..(before + groups).min(6)]).unwrap();
        }
        let store = centre.open();
        assert_eq!((end(&store), store.hole(lane), store.lost(lane)), (2 * GROUPS, None, &lost[..]));
        drop(store);
        let verified = verify::lane(centre.path(), lane, &Gateways::default()).unwrap();
        assert_eq!((verified.faults, numbers(&verified.lost)), (vec![], numbers_of(&lost)));
        // The missing file is found after all: it takes the place of what is noted in its stead.
        let whole = Centre::new();
        fs::copy(&whole.files[1], &centre.files[1]).unwrap();
        let store = centre.open();
        assert_eq!((end(&store), store.hole(lane), store.lost(lane)), (2 * GROUPS, None, &[][..]));
    }
}

#[test]
fn a_number_without_content_is_explained_by_a_lost_part_only_if_it_was_there_before() {
    let centre = Centre::new();
    let lane = &centre.all[0].lane;
    let mut history = Sender::new(lane, 1);
    history.take(2 * GROUPS);
    let verified = || verify::lane(centre.path(), lane, &Gateways::default()).unwrap();
    let known_again = |sender: &mut Sender| {
        let mut known = sender.again(&centre.all[2]);
        known.keep_only_number();
        centre.open().append(&[known]).unwrap();
    };
    let mut before = Sender::after(&history, 2);
    known_again(&mut before);
    fs::remove_file(&centre.files[1]).unwrap();
    centre.open().close_hole(lane).unwrap();
    assert_eq!((verified().faults, verified().lost_again), (vec![], 1));
    known_again(&mut Sender::after(&before, 3));
    let fault = &verified().faults[0].2;
    assert!(matches!(fault, Fault::Lost { sequence: 1, .. }), "{fault}");
    assert_eq!((verified().faults_total, verified().lost_again), (1, 1));
}

#[test]
fn a_torn_end_before_a_hole_that_is_given_up_is_no_fault() {
    let centre = Centre::new();
    let whole = fs::read(&centre.files[1]).unwrap();
    fs::write(&centre.files[1], &whole[..whole.len() - 5]).unwrap();
    let mut store = centre.open();
    assert_eq!(end(&store), 3);
    assert_eq!(store.leave_hole(&centre.all[0].lane).unwrap(), GROUPS - 2);
    store.append(&centre.all[3..6]).unwrap();
    drop(store);
    assert_eq!(end(&centre.open()), 6);
    let verified = verify::lane(centre.path(), &centre.all[0].lane, &Gateways::default()).unwrap();
    assert_eq!((verified.faults, verified.torn_bytes, verified.late.len()), (vec![], 0, 6));
}

#[test]
fn a_hole_that_is_given_up_only_half_takes_the_lane_out_of_use_and_nothing_is_stored_into_a_removed_file() {
    let centre = Centre::new();
    fs::remove_file(&centre.files[0]).unwrap();
    let mut store = centre.open();
    let name = centre.all[0].lane.clone();
    // The index of the ids cannot be removed.
    let index = centre.files[0].with_file_name("clinical.ids");
    let _ = fs::remove_file(&index);
    fs::create_dir(&index).unwrap();
    assert!(store.leave_hole(&name).is_err());
    assert!(matches!(store.check_lane(&name), Err(StoreError::OutOfUse { .. })));
    assert_eq!(store.watermarks_of(&name), [], "nothing is said of it");
    fs::remove_dir(&index).unwrap();
    drop(store);
    // What is stored from now on is there after the next start too.
    let mut store = centre.open();
    let before = store.watermarks_of(&name).first().map_or(0, |end| usize::try_from(end.through).unwrap());
    store.append(&centre.all[before..before + 2]).unwrap();
    let ends = store.watermarks_of(&name);
    drop(store);
    assert_eq!(centre.open().watermarks_of(&name), ends);
}
