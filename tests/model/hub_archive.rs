//! Files of a lane whose bodies are archived: the whole files are elsewhere before anything is taken away, ids stay known, and the
//! chain still proves the lane.

use std::fs;
use std::path::{Path, PathBuf};

use pgw_core::committer::{Content, Record};
use pgw_core::transaction::{Hub, Kind, Transaction, TransactionId, unix_millis_now};
use pgw_core::wire::signature::SigningKey;
use pgw_hub::archive::{ArchiveError, ArchivedLane, NewArchive};
use pgw_hub::backup::check::{FileProblem, check};
use pgw_hub::backup::{self, NewBackup};
use pgw_hub::report;
use pgw_hub::store::archived::{self, CompleteFile, NotArchived};
use pgw_hub::store::line::{self, Line};
use pgw_hub::store::ndjson::{NdjsonStore, files_of};
use pgw_hub::store::walk::Fault;
use pgw_hub::store::{Entry, LaneName, Store};
use pgw_hub::verify::{self, VerifiedLane};

use crate::hub_kit::{Sender, lane, listed, transaction};

/// A lane with two epochs, numbers that name stored contents again, a rival, an entry, signatures; each group is a file.
struct Centre {
    directory: tempfile::TempDir,
    store: NdjsonStore,
    name: LaneName,
    all: Vec<Entry>,
    sender: Sender,
}

impl Centre {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = NdjsonStore::open(&directory.path().join("hub"), 1).unwrap();
        let mut first = Sender::new(&lane("clinical"), 1);
        let mut all: Vec<Entry> = (1..=6).map(|id| first.next(id, &[b'b'; 400])).collect();
        let mut sender = Sender::after(&first, 2);
        let mut again: Vec<Entry> = all[4..].iter().map(|entry| sender.again(entry)).collect();
        again.iter_mut().for_each(Record::keep_only_number);
        let mut rival = sender.next(6, b"another content");
        rival.rival = true;
        let void = Transaction { kind: Kind::Void, ..transaction(50, b"{\"schema\":1}") };
        let entry = sender.next_of(&void);
        let mut centre = Self { directory, store, name: first.lane.clone(), all: Vec::new(), sender };
        all.iter_mut().for_each(|entry| entry.signed_by = Some(first.key.public().id()));
        centre.append(all[..3].to_vec());
        centre.append(all[3..].to_vec());
        centre.append([again, vec![rival, entry]].concat());
        centre.more();
        centre
    }

    fn append(&mut self, entries: Vec<Entry>) {
        self.store.append(&entries).unwrap();
        self.all.extend(entries);
    }

    /// Another file: what was the last one is complete then.
    fn more(&mut self) {
        let id = 100 + self.sender.sequence;
        let next = self.sender.next(u128::from(id), b"the newest");
        self.append(vec![next]);
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn files(&self) -> Vec<PathBuf> {
        files_of(&self.path("hub"), &self.name).unwrap()
    }

    fn verify(&self) -> VerifiedLane {
        verify::lane(&self.path("hub"), &self.name, &listed(&[&self.name])).unwrap()
    }

    /// With what the running hub, or the command in a store, does for each file.
    fn archive_with(
        &mut self,
        stored_before: u64,
        swap: impl Fn(&mut NdjsonStore, &LaneName, &CompleteFile) -> Result<(), ArchiveError>,
    ) -> Result<ArchivedLane, ArchiveError> {
        let (store, into) = (self.path("hub"), self.path("archive"));
        let archive = NewArchive::begin(&store, &into, stored_before)?;
        let open = &mut self.store;
        let mut done = ArchivedLane::default();
        archive.lane(&self.name, &mut done, &mut |lane, file| swap(open, lane, file))?;
        Ok(done)
    }

    fn archive(&mut self) -> Result<ArchivedLane, ArchiveError> {
        self.archive_with(unix_millis_now() + 1_000, take)
    }
}

fn take(store: &mut NdjsonStore, lane: &LaneName, file: &CompleteFile) -> Result<(), ArchiveError> {
    archived::compare(&file.path, &archived::draft(&file.path))?;
    Ok(store.take_remains(lane, file.number)?)
}

/// What the store has of each id, as compared with its content and with another one.
fn contents(centre: &mut Centre) -> Vec<(Content, Content)> {
    let Centre { store, all, .. } = centre;
    let mut other = all[0].digest();
    other.0[0] ^= 1;
    let of = |entry: &Entry| {
        let id = entry.numbered().id;
        (
            store.content(&entry.lane, id, entry.digest()).unwrap(),
            store.content(&entry.lane, id, other).unwrap(),
        )
    };
    all.iter().filter(|entry| entry.body.is_some()).map(of).collect()
}

fn names_in(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn the_bodies_are_in_the_archive_and_all_else_holds_as_before() {
    let mut centre = Centre::new();
    let (before, known) = (centre.verify(), contents(&mut centre));
    assert_eq!((before.archived, before.faults.len(), before.heads.len()), (0, 0, 1));
    assert!(known.iter().all(|of| *of == (Content::Same, Content::Other)));
    let whole: Vec<_> = centre.files().iter().map(|path| fs::read(path).unwrap()).collect();
    let values = |centre: &mut Centre| -> Vec<_> {
        let numbers: Vec<_> = centre.all.iter().map(Entry::numbered).collect();
        numbers.iter().map(|at| centre.store.value_at(&centre.name, at.epoch, at.sequence).unwrap()).collect()
    };
    let values_before = values(&mut centre);
    let done = centre.archive().unwrap();
    // Three complete files: of the third only the rival has a body to lose.
    assert_eq!((done.files, done.bodies), (3, 7));
    assert!(done.after < done.before, "{done:?}");
    assert_eq!(centre.archive().unwrap(), ArchivedLane::default(), "once");
    let files = centre.files();
    for (place, path) in files.iter().enumerate() {
        let copy = centre.path("archive").join(path.strip_prefix(centre.path("hub")).unwrap());
        let is_complete = place < 3;
        assert_eq!(fs::read(&copy).ok(), is_complete.then(|| whole[place].clone()), "{}", copy.display());
        let text = fs::read_to_string(path).unwrap();
        assert_eq!(text.contains("data_base64"), place >= 2, "{text}");
        assert_eq!(fs::read(path).unwrap() == whole[place], !is_complete);
    }
    let third = fs::read_to_string(&files[2]).unwrap();
    assert!(third.contains(r#""kind":"void""#) && third.contains(r#""pgw":"rival""#), "{third}");
    for _ in 0..2 {
        let after = centre.verify();
        assert_eq!((after.archived, after.faults.clone()), (7, vec![]));
        let like_before = VerifiedLane { archived: 0, ..after };
        assert_eq!(like_before, before, "heads and rivals and all");
        assert_eq!(contents(&mut centre), known);
        assert_eq!(values(&mut centre), values_before);
        let unknown =
            centre.store.content(&centre.name, TransactionId(uuid::Uuid::max()), centre.all[0].digest());
        assert_eq!(unknown.unwrap(), Content::Unknown);
        let archived = |entry: &Entry, store: &mut NdjsonStore| {
            let at = entry.numbered();
            store.is_archived(&entry.lane, at.epoch, at.sequence).unwrap()
        };
        let is: Vec<_> = centre.all.iter().map(|entry| archived(entry, &mut centre.store)).collect();
        assert_eq!(is, [true, true, true, true, true, true, false, false, true, false, false]);
        // After a restart too.
        centre.store = {
            let name = centre.path("hub");
            let Centre { store, .. } = &mut centre;
            let other = tempfile::tempdir().unwrap();
            drop(std::mem::replace(store, NdjsonStore::open(other.path(), 1).unwrap()));
            NdjsonStore::open(&name, 1).unwrap()
        };
        assert_eq!(centre.store.watermarks_of(&centre.name), before.watermarks);
    }
    centre.more();
    assert_eq!(centre.verify().faults, vec![]);
    // With the archive the whole lane is proven with its bodies.
    let list = listed(&[&centre.name]);
    let (store, into) = (centre.path("hub"), centre.path("archive"));
    let shown = report::verify_with(&store, Some(&into), &list, None).unwrap();
    assert!(shown.ok && !shown.text.contains("archived"), "{}", shown.text);
    let shown = report::verify(&store, &list, None).unwrap();
    assert!(shown.ok && shown.text.contains("10 transactions, 7 of them archived"), "{}", shown.text);
    // And an archive that was altered is found.
    let copy = into.join("B86022/gw1/clinical.000002.ndjson");
    let text = fs::read_to_string(&copy).unwrap().replacen("YmJi", "YWFh", 1);
    fs::write(&copy, text).unwrap();
    let shown = report::verify_with(&store, Some(&into), &list, None).unwrap();
    assert!(!shown.ok && shown.text.contains("sequence 4 of epoch") && shown.text.contains("is altered"));
}

#[test]
fn a_person_may_put_the_whole_file_back_while_the_hub_is_stopped_and_ids_stay_known() {
    let mut centre = Centre::new();
    let known = contents(&mut centre);
    centre.archive().unwrap();
    // The index is of the files as they are now.
    assert_eq!(contents(&mut centre), known);
    for name in ["clinical.000001.ndjson", "clinical.000002.ndjson"] {
        let other = tempfile::tempdir().unwrap();
        drop(std::mem::replace(&mut centre.store, NdjsonStore::open(other.path(), 1).unwrap()));
        let copy = centre.path("archive/B86022/gw1").join(name);
        fs::copy(copy, centre.path("hub/B86022/gw1").join(name)).unwrap();
        centre.store = NdjsonStore::open(&centre.path("hub"), 1).unwrap();
        assert_eq!(contents(&mut centre), known);
    }
    let report = centre.verify();
    assert_eq!((report.archived, report.faults), (1, vec![]));
}

#[test]
fn only_old_files_are_archived_and_none_of_a_lane_with_a_hole() {
    let mut centre = Centre::new();
    let done = centre.archive_with(unix_millis_now() - 60_000, take).unwrap();
    assert_eq!(done, ArchivedLane::default());
    // One that is younger than those after it.
    let first = &centre.files()[0];
    let text = fs::read_to_string(first).unwrap();
    let (before, last) = text.rsplit_once("\"group\",\"time\":\"2").unwrap();
    fs::write(first, format!("{before}\"group\",\"time\":\"9{last}")).unwrap();
    let done = centre.archive().unwrap();
    assert_eq!(done.files, 2);
    assert!(fs::read_to_string(&centre.files()[0]).unwrap().contains("data_base64"));
    fs::remove_file(&centre.files()[0]).unwrap();
    assert!(matches!(centre.archive(), Err(ArchiveError::Hole(_))));
    assert!(matches!(
        NewArchive::begin(&centre.path("hub"), &centre.path("hub").join("x"), 0),
        Err(ArchiveError::InStore(_))
    ));
}

#[test]
fn nothing_is_taken_away_where_the_copy_is_not_what_was_copied() {
    let mut centre = Centre::new();
    let before: Vec<_> = centre.files().iter().map(|path| fs::read(path).unwrap()).collect();
    let unchanged = |centre: &Centre| {
        let now: Vec<_> = centre.files().iter().map(|path| fs::read(path).unwrap()).collect();
        assert!(now == before);
        let names = names_in(&centre.path("hub/B86022/gw1"));
        assert!(names.iter().all(|name| !name.ends_with(".remains")), "{names:?}");
    };
    let copy = centre.path("archive/B86022/gw1/clinical.000001.ndjson");
    fs::create_dir_all(copy.parent().unwrap()).unwrap();
    let mut other = before[0].clone();
    other[100] ^= 1;
    fs::write(&copy, &other).unwrap();
    let error = centre.archive().unwrap_err();
    assert!(matches!(&error, ArchiveError::Taken { copy: named, .. } if *named == copy), "{error}");
    assert_eq!(fs::read(&copy).unwrap(), other, "it may be another store's");
    unchanged(&centre);
    // What was damaged is neither copied nor reduced.
    fs::remove_file(&copy).unwrap();
    let path = centre.files()[0].clone();
    fs::write(&path, &other).unwrap();
    assert!(matches!(centre.archive(), Err(ArchiveError::Hole(_))));
    let error = archived::write_remains(&centre.name, &path, &mut Vec::new()).unwrap_err();
    assert!(matches!(error, NotArchived::NotWhole { .. }), "{error}");
    assert!(!copy.exists());
    fs::write(&path, &before[0]).unwrap();
    unchanged(&centre);
}

#[test]
fn whoever_ends_it_at_any_step_leaves_the_file_or_what_remains_and_the_same_again_continues() {
    // Before anything takes the file's place, or right after that.
    for after in [false, true] {
        let mut centre = Centre::new();
        let before = fs::read(&centre.files()[0]).unwrap();
        let ends = centre.archive_with(unix_millis_now() + 1_000, |store, lane, file| {
            if after {
                take(store, lane, file)?;
            }
            // As a kill leaves it: what was written stays.
            let draft = archived::draft(&file.path);
            fs::write(draft.with_extension("kept"), fs::read(&draft).unwrap_or_default()).unwrap();
            Err(ArchiveError::Busy)
        });
        assert!(ends.is_err());
        let path = centre.files()[0].clone();
        assert_eq!(fs::read(&path).unwrap() == before, !after);
        let draft = archived::draft(&path);
        fs::rename(draft.with_extension("kept"), &draft).unwrap();
        let copy = centre.path("archive/B86022/gw1/clinical.000001.ndjson");
        assert_eq!(fs::read(&copy).unwrap(), before);
        // A copy that had only begun.
        fs::write(centre.path("archive/B86022/gw1/clinical.000002.ndjson.new"), b"{\"pgw\"").unwrap();
        assert_eq!(centre.verify().faults, vec![]);
        assert_eq!(centre.archive().unwrap().files, if after { 2 } else { 3 });
        assert_eq!(centre.verify().archived, 7);
        assert_eq!(names_in(&centre.path("archive/B86022/gw1")).len(), 3);
        let left = names_in(&centre.path("hub/B86022/gw1"));
        assert!(left.iter().all(|name| !name.contains(".remains")), "{left:?}");
    }
}

#[test]
fn what_takes_a_files_place_is_what_remains_of_it_and_nothing_else() {
    let centre = Centre::new();
    let path = centre.files()[0].clone();
    let mut remains = Vec::new();
    assert_eq!(archived::write_remains(&centre.name, &path, &mut remains).unwrap(), 3);
    let lines: Vec<_> = String::from_utf8(remains).unwrap().lines().map(str::to_owned).collect();
    let kinds: Vec<_> = lines.iter().map(|text| text.split('"').nth(3).unwrap()).collect();
    assert_eq!(kinds, ["group", "archived", "head", "archived", "head", "archived", "head"]);
    let draft = archived::draft(&path);
    let refuses = |lines: &[String]| {
        fs::write(&draft, lines.join("\n") + "\n").unwrap();
        archived::compare(&path, &draft).is_err()
    };
    assert!(!refuses(&lines));
    for at in 0..lines.len() {
        let mut less = lines.clone();
        less.remove(at);
        assert!(refuses(&less), "without line {at}");
        let mut twice = lines.clone();
        twice.insert(at, lines[at].clone());
        assert!(refuses(&twice), "line {at} twice");
    }
    let Some(Line::Archived(one)) = line::read(lines[3].as_bytes()) else { panic!("{}", lines[3]) };
    assert_eq!((one.id, one.digest), (centre.all[1].envelope.id(), centre.all[1].digest()));
    for (from, to) in
        [("\"digest\":\"", "\"digest\":\"00"), ("\"id\":\"0", "\"id\":\"1"), ("\"time\":\"2", "\"time\":\"1")]
    {
        let mut other = lines.clone();
        other[3] = match from {
            "\"digest\":\"" => {
                let (start, end) = lines[3].split_once(from).unwrap();
                format!("{start}{to}{}", &end[2..])
            }
            _ => lines[3].replacen(from, to, 1),
        };
        assert_ne!(other[3], lines[3]);
        assert!(refuses(&other), "{}", other[3]);
    }
    let mut fewer = lines[..3].to_vec();
    fewer.extend(lines[5..].iter().cloned());
    assert!(refuses(&fewer), "one that is gone altogether");
}

#[test]
fn an_archived_line_that_was_altered_is_found() {
    let mut centre = Centre::new();
    centre.archive().unwrap();
    let path = centre.files()[0].clone();
    let whole = fs::read_to_string(&path).unwrap();
    let digest = pgw_core::text::hex(&centre.all[1].digest().0);
    let altered = format!("{}0", &digest[..63]);
    let altered = if altered == digest { format!("{}1", &digest[..63]) } else { altered };
    fs::write(&path, whole.replace(&digest, &altered)).unwrap();
    let epoch = centre.all[1].envelope.epoch;
    let faults: Vec<_> = centre.verify().faults.into_iter().map(|(_, _, fault)| fault).collect();
    assert_eq!(faults, [Fault::Altered { epoch, sequence: 2 }]);
    // One that is gone.
    let without: Vec<_> = whole.lines().filter(|line| !line.contains(&digest)).collect();
    fs::write(&path, without.join("\n") + "\n").unwrap();
    let faults: Vec<_> = centre.verify().faults.into_iter().map(|(_, _, fault)| fault).collect();
    assert!(faults.contains(&Fault::Missing { epoch, from: 2, to: 2 }), "{faults:?}");
}

#[test]
fn a_backup_that_had_begun_keeps_what_it_has_and_says_of_an_archived_file_what_it_is() {
    let mut centre = Centre::new();
    let store = centre.path("hub");
    let key = SigningKey::from_pkcs8(&SigningKey::generate().unwrap()).unwrap();
    let hub = &Hub::new("hub1").unwrap();
    let begin = |centre: &mut Centre| {
        let new = NewBackup { store: &store, directory: None, hub, key: &key };
        let open = &mut centre.store;
        backup::begin(new, &mut |lane, into| Ok(open.link_lane(lane, into)?), &mut |_| {}).unwrap()
    };
    let copy = |from: &Path, to: &Path| {
        for name in ["manifest.json", "manifest.signature", "identity.json"] {
            fs::create_dir_all(to.join("B86022/gw1")).unwrap();
            fs::copy(from.join(name), to.join(name)).unwrap();
        }
        for name in names_in(&from.join("B86022/gw1")) {
            fs::copy(from.join("B86022/gw1").join(&name), to.join("B86022/gw1").join(&name)).unwrap();
        }
    };
    let begun = begin(&mut centre);
    centre.archive().unwrap();
    let first = centre.path("first");
    copy(&begun.directory, &first);
    assert!(check(&first, None, &mut |_| {}).unwrap().faults.is_empty(), "the links have the whole files");
    // The store's file, as it is now, under the manifest from before.
    let name = "B86022/gw1/clinical.000001.ndjson";
    fs::copy(store.join(name), first.join(name)).unwrap();
    let faults = check(&first, None, &mut |_| {}).unwrap().faults;
    assert!(matches!(faults[0].problem, FileProblem::Archived), "{}", faults[0]);
    assert!(faults[0].to_string().contains("the archive has the file"), "{}", faults[0]);
    // A backup of the store as it is now is a store.
    let begun = begin(&mut centre);
    let second = centre.path("second");
    copy(&begun.directory, &second);
    assert!(check(&second, None, &mut |_| {}).unwrap().faults.is_empty());
    let report = verify::lane(&second, &centre.name, &listed(&[&centre.name])).unwrap();
    assert_eq!((report.archived, report.faults), (7, vec![]));
}
