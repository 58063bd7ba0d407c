//! A backup of the hub's store: what is copied, whether a copy is complete, and which one counts.

use std::fs;
use std::path::{Path, PathBuf};

use pgw_core::transaction::Hub;
use pgw_core::wire::signature::SigningKey;
use pgw_hub::backup::check::{CheckError, FileProblem, check};
use pgw_hub::backup::manifest::ManifestError;
use pgw_hub::backup::{self, BackupError, Backups, BegunBackup, NewBackup};
use pgw_hub::gateways::Gateways;
use pgw_hub::report;
use pgw_hub::store::ndjson::NdjsonStore;
use pgw_hub::store::{Entry, Store};

use crate::hub_kit::{Sender, lane, lane_of};

/// A store with two lanes, whose files rotate at each group.
struct Centre {
    directory: tempfile::TempDir,
    store: NdjsonStore,
    key: SigningKey,
    senders: [Sender; 2],
}

impl Centre {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = NdjsonStore::open(&directory.path().join("hub"), 1_000).unwrap();
        let key = SigningKey::from_pkcs8(&SigningKey::generate().unwrap()).unwrap();
        let senders =
            [Sender::new(&lane("clinical"), 1), Sender::new(&lane_of("A81001", "gw2", "letters"), 2)];
        let mut centre = Self { directory, store, key, senders };
        (0..4).for_each(|_| centre.more());
        centre
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Another group: each lane gets three transactions, and a new file.
    fn more(&mut self) {
        let group: Vec<Entry> = self.senders.iter_mut().flat_map(|sender| sender.take(3)).collect();
        self.store.append(&group).unwrap();
    }

    fn begin_in(&mut self, directory: Option<PathBuf>) -> Result<BegunBackup, BackupError> {
        let store = &self.directory.path().join("hub");
        let new = NewBackup { store, directory, hub: &Hub::new("hub1").unwrap(), key: &self.key };
        let open = &mut self.store;
        backup::begin(new, &mut |lane, into| Ok(open.link_lane(lane, into)?), &mut |_| {})
    }

    fn begin(&mut self) -> BegunBackup {
        self.begin_in(None).unwrap()
    }

    fn done(&self, digest: &str) -> Result<Vec<PathBuf>, BackupError> {
        backup::done(&self.path("hub"), digest)
    }

    fn through(&self) -> Vec<u64> {
        Backups::open(&self.path("hub")).lanes().values().map(|(_, through)| *through).collect()
    }
}

fn copy_directory(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy_directory(&path, &target);
        } else {
            fs::copy(&path, &target).unwrap();
        }
    }
}

fn faults(copy: &Path) -> Vec<String> {
    check(copy, None, &mut |_| {}).unwrap().faults.iter().map(ToString::to_string).collect()
}

/// How far a restored store is, and that it is whole.
fn restored(copy: &Path) -> Vec<u64> {
    let store = NdjsonStore::open(copy, 1_000).unwrap();
    let ends = store.watermarks().iter().map(|(_, epochs)| epochs[0].through).collect();
    let verified = report::verify(copy, &Gateways::default(), None).unwrap();
    assert!(verified.ok, "{}", verified.text);
    ends
}

#[test]
fn a_copy_of_the_links_has_everything_whatever_the_store_does_meanwhile() {
    let mut centre = Centre::new();
    let copies = Sender::new(&lane("clinical"), 1).take(2);
    centre.store.keep_copies(&copies).unwrap();
    let begun = centre.begin();
    assert_eq!((begun.lanes, begun.files), (2, 10), "four files of each lane, the copies, and the identity");
    // Files rotate, grow and are replaced.
    centre.store.keep_copies(&copies).unwrap();
    (0..5).for_each(|_| centre.more());
    let copy = centre.path("copy");
    copy_directory(&begun.directory, &copy);
    assert_eq!(faults(&copy), Vec::<String>::new());
    // The last file of each lane has grown by a group, and that may be in the copy.
    for through in restored(&copy) {
        assert!((12..=15).contains(&through), "{through}");
    }
    // Just what the manifest names is enough.
    let read = check(&copy, Some(centre.key.public()), &mut |_| {}).unwrap().read;
    for file in &read.manifest.files {
        fs::OpenOptions::new().write(true).open(copy.join(&file.path)).unwrap().set_len(file.bytes).unwrap();
    }
    assert_eq!(faults(&copy), Vec::<String>::new());
    assert_eq!(restored(&copy), [12, 12]);
    let ends: Vec<u64> = read.manifest.lanes.iter().map(|lane| lane.ends[0].through).collect();
    assert_eq!(ends, [12, 12]);
}

#[test]
fn what_a_copy_lacks_is_named_file_by_file() {
    let mut centre = Centre::new();
    let begun = centre.begin();
    let copy = centre.path("copy");
    let clinical = copy.join("B86022/gw1/clinical.000002.ndjson");
    let again = || {
        let _ = fs::remove_dir_all(&copy);
        copy_directory(&begun.directory, &copy);
        assert_eq!(faults(&copy), Vec::<String>::new());
    };
    again();
    fs::remove_file(&clinical).unwrap();
    assert_eq!(faults(&copy), ["B86022/gw1/clinical.000002.ndjson is missing: copy it again"]);
    again();
    let whole = fs::read(&clinical).unwrap();
    fs::write(&clinical, &whole[..whole.len() - 1]).unwrap();
    let found = faults(&copy);
    assert!(
        found[0].contains(&format!("has {} bytes, and {} belong", whole.len() - 1, whole.len())),
        "{found:?}"
    );
    let mut altered = whole.clone();
    altered[100] ^= 1;
    fs::write(&clinical, &altered).unwrap();
    assert_eq!(
        faults(&copy),
        ["B86022/gw1/clinical.000002.ndjson has other content than at the hub: copy it again"]
    );
    // More is no fault, but another file would be taken for one of the lane's.
    fs::write(&clinical, [&whole[..], b"more"].concat()).unwrap();
    assert_eq!(faults(&copy), Vec::<String>::new());
    fs::write(clinical.with_file_name("clinical.000009.ndjson"), &whole).unwrap();
    let checked = check(&copy, None, &mut |_| {}).unwrap();
    assert!(
        matches!(checked.faults[..], [ref fault] if matches!(fault.problem, FileProblem::Extra)),
        "{checked:?}"
    );
    again();
    fs::remove_dir_all(copy.join("A81001")).unwrap();
    assert_eq!(faults(&copy).len(), 4, "each file of the lane");
}

#[test]
fn a_manifest_is_its_hubs_and_the_links_are_no_copy() {
    let mut centre = Centre::new();
    let begun = centre.begin();
    let look = |copy: &Path, key| check(copy, key, &mut |_| {});
    assert!(matches!(look(&begun.directory, None), Err(CheckError::Links(_))));
    let copy = centre.path("copy");
    copy_directory(&begun.directory, &copy);
    let other = SigningKey::from_pkcs8(&SigningKey::generate().unwrap()).unwrap();
    let unsigned = |error| matches!(error, Err(CheckError::Manifest(ManifestError::Signature(..))));
    assert!(unsigned(look(&copy, Some(other.public()))));
    assert!(look(&copy, Some(centre.key.public())).is_ok());
    let manifest = copy.join("manifest.json");
    let text = fs::read_to_string(&manifest).unwrap();
    fs::write(&manifest, text.replacen("\"bytes\":", "\"bytes\":1", 1)).unwrap();
    assert!(unsigned(look(&copy, None)));
    fs::remove_file(&manifest).unwrap();
    assert!(matches!(look(&copy, None), Err(CheckError::Manifest(ManifestError::Missing(_)))));
}

#[test]
fn only_the_latest_manifest_counts_and_then_all_links_go() {
    let mut centre = Centre::new();
    assert!(matches!(centre.done(&"0".repeat(64)), Err(BackupError::NoneBegun)));
    let chosen = centre.path("links");
    let first = centre.begin_in(Some(chosen.clone())).unwrap();
    assert!(matches!(centre.begin_in(Some(chosen.clone())), Err(BackupError::Exists(_))));
    centre.more();
    let second = centre.begin();
    let error = centre.done(&first.digest).unwrap_err();
    assert!(matches!(error, BackupError::OtherDigest { .. }));
    let text = error.to_string();
    assert!(text.contains(&first.digest) && text.contains(&second.digest), "{text}");
    assert!(first.directory.exists() && second.directory.exists());
    assert_eq!(centre.through(), Vec::<u64>::new(), "nothing counts before");
    // What is no link stays: it may be the only copy.
    fs::write(chosen.join("own"), "precious").unwrap();
    assert_eq!(centre.done(&second.digest.to_uppercase()).unwrap(), std::slice::from_ref(&chosen));
    assert_eq!(centre.through(), [15, 15]);
    assert!(!second.directory.exists());
    assert_eq!(fs::read_dir(&chosen).unwrap().count(), 1);
    let verified = report::verify(&centre.path("hub"), &Gateways::default(), None).unwrap();
    assert!(verified.ok && verified.text.contains("2 lanes, 30 transactions"), "{}", verified.text);
    // A repetition is no error; a digest of an earlier one is.
    assert!(centre.done(&second.digest).unwrap().is_empty());
    assert!(matches!(centre.done(&first.digest), Err(BackupError::NoneBegun)));
}
