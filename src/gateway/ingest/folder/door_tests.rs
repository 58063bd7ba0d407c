//! The folder door in front of a fake outbox under the test's control, with faults between any two steps.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, File, FileTimes};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use pgw_core::transaction::{Gateway, Lane, Practice, TransactionId};
use pgw_core::wire::limits::{Text, TextError};
use pgw_durable::ExclusiveRename;
use pgw_outbox::{Accepted, Refusal, Submission};
use serde_json::Value;
use tokio::sync::watch;
use uuid::Uuid;

use super::config::FolderDoorConfig;
use super::door::FolderDoor;
use super::rules::{Nature, Take};
use super::scanner::FolderScanner;
use super::settled_files::Point;
use crate::ingest::{Acceptor, Budget, Counters, Counts};

type Hook = Box<dyn Fn(&Submission) -> Option<Refusal> + Send>;

#[derive(Clone, Default)]
struct Fake(Arc<FakeState>);

#[derive(Default)]
struct FakeState {
    stored: Mutex<Vec<Submission>>,
    hook: Mutex<Option<Hook>>,
}

impl Acceptor for Fake {
    async fn submit(&self, submission: Submission) -> Result<Accepted, Refusal> {
        if let Some(hook) = &*self.0.hook.lock().unwrap()
            && let Some(refusal) = hook(&submission)
        {
            return Err(refusal);
        }
        let mut stored = self.0.stored.lock().unwrap();
        let same_key = |s: &Submission| s.sender == submission.sender && s.key == submission.key;
        let before = stored.iter().position(|s| same_key(s) && s.body == submission.body);
        let key_reused = before.is_none() && stored.iter().any(same_key);
        let index = before.unwrap_or(stored.len());
        if before.is_none() {
            stored.push(submission);
        }
        let position = index as u64 + 1;
        let id = TransactionId(Uuid::from_u128(u128::from(position)));
        Ok(Accepted {
            id,
            position,
            time: 1000 * position,
            repeated: before.is_some(),
            key_reused,
            withheld: false,
        })
    }

    fn quarantine(&self, _: &'static str, _: &str, _: &[u8]) -> Result<u64, Refusal> {
        panic!("refused files stay with their sender")
    }
}

impl Fake {
    /// Called with every submission; returns the answer.
    fn on_submit(&self, hook: impl Fn(&Submission) -> Option<Refusal> + Send + 'static) {
        *self.0.hook.lock().unwrap() = Some(Box::new(hook));
    }

    fn bodies(&self) -> Vec<String> {
        let stored = self.0.stored.lock().unwrap();
        stored.iter().map(|s| String::from_utf8_lossy(s.body.as_bytes()).into_owned()).collect()
    }
}

struct Scene {
    directory: tempfile::TempDir,
    outbox: Fake,
    counters: Arc<Counters>,
    budget: Budget,
    settings: FolderDoorConfig,
    stop: watch::Sender<bool>,
}

impl Scene {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("in");
        fs::create_dir(&path).unwrap();
        let nature =
            |content_type: &str| Nature { event_type: String::new(), content_type: content_type.into() };
        let settings = FolderDoorConfig {
            name: "pathology".into(),
            path,
            practice: Practice::new("B86022").unwrap(),
            gateway: Gateway::new("gw1").unwrap(),
            lane: Lane::new("clinical").unwrap(),
            take: Take::Rename,
            mounted: false,
            file_limit_bytes: 1000,
            rescan: Duration::from_secs(5),
            settle: Duration::ZERO,
            empty: Duration::ZERO,
            accepted: "accepted".into(),
            rejected: "rejected".into(),
            keep_accepted: false,
            usual: nature("application/octet-stream"),
            by_extension: vec![("edi".into(), nature("application/edifact"))],
        };
        Self {
            directory,
            outbox: Fake::default(),
            counters: Arc::default(),
            budget: Budget::new(1 << 20),
            settings,
            stop: watch::Sender::new(false),
        }
    }

    /// A door as after a start of the daemon.
    fn folder(&self) -> FolderScanner<Fake> {
        let counters = Arc::clone(&self.counters);
        FolderScanner::new(
            self.settings.clone(),
            self.outbox.clone(),
            counters,
            &self.budget,
            self.stop.subscribe(),
        )
    }

    fn path(&self, name: &str) -> PathBuf {
        self.settings.path.join(name)
    }

    /// Renamed into place, with a given age in seconds.
    fn put(&self, name: impl AsRef<OsStr>, content: &str, age: u64) {
        let draft = self.directory.path().join("draft");
        fs::write(&draft, content).unwrap();
        self.age(&draft, age);
        fs::rename(draft, self.settings.path.join(name.as_ref())).unwrap();
    }

    fn age(&self, path: &Path, age: u64) {
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000 - age);
        File::options()
            .write(true)
            .open(path)
            .unwrap()
            .set_times(FileTimes::new().set_modified(time))
            .unwrap();
    }

    fn names(&self, folder: &str) -> BTreeSet<String> {
        let entries = fs::read_dir(self.path(folder)).unwrap();
        entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect()
    }

    fn json(&self, file: &str) -> Value {
        serde_json::from_slice(&fs::read(self.path(file)).unwrap()).unwrap()
    }

    fn counts(&self) -> Counts {
        self.counters.counts()
    }

    /// Two scans, after which the door has tried every unchanged file once.
    async fn round(&self, folder: &mut FolderScanner<Fake>) -> Duration {
        folder.scan().await;
        folder.scan().await
    }

    /// Asserts that all of the sender's files are gone, and none of ours is half done.
    fn all_put_away(&self) {
        let subfolders = [".taken", "accepted", "rejected"].map(String::from);
        assert_eq!(self.names("."), BTreeSet::from(subfolders));
        assert_eq!(self.names(".taken"), BTreeSet::new());
        assert_eq!(self.budget.free_bytes(), 1 << 20, "the memory was given back");
    }
}

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

#[tokio::test]
async fn an_accepted_file_leaves_a_receipt_and_nothing_of_a_patient() {
    let scene = Scene::new();
    fs::set_permissions(&scene.settings.path, fs::Permissions::from_mode(0o775)).unwrap();
    scene.put("SMITH_9434765919.edi", "UNB+UNOA", 1);
    scene.round(&mut scene.folder()).await;
    scene.all_put_away();
    assert_eq!(scene.names("accepted"), set(&["clinical-000000000001.json"]));
    let receipt = scene.json("accepted/clinical-000000000001.json");
    assert_eq!(receipt["id"], Uuid::from_u128(1).to_string());
    assert_eq!((receipt["position"].as_u64(), receipt["bytes"].as_u64()), (Some(1), Some(8)));
    assert_eq!(receipt["sha256"], super::rules::sha256(b"UNB+UNOA"));
    assert!(!receipt.to_string().contains("SMITH"), "{receipt}");
    let mode = |name: &str| fs::metadata(scene.path(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode("accepted/clinical-000000000001.json"), 0o644, "its sender may read it");
    assert_eq!((mode("accepted"), mode(".taken")), (0o775, 0o700));
    let stored = scene.outbox.0.stored.lock().unwrap();
    let first = &stored[0];
    assert_eq!(first.sender, "folder:pathology");
    assert_eq!(
        (first.event_type.text(), first.shows_key, first.content_type.as_str()),
        ("edifact.interchange", false, "application/edifact")
    );
    assert!(!format!("{first:?}").contains("SMITH"), "a name goes no further");
    let counts = scene.counts();
    assert_eq!((counts.received, counts.accepted, counts.refused), (1, 1, 0));
}

#[tokio::test]
async fn the_oldest_goes_first_and_the_name_decides_between_equals() {
    let scene = Scene::new();
    for (name, age) in [("a", 10), ("b", 30), ("z", 20), ("y", 20)] {
        scene.put(name, name, age);
    }
    scene.round(&mut scene.folder()).await;
    assert_eq!(scene.outbox.bodies(), ["b", "y", "z", "a"]);
    scene.all_put_away();
}

#[tokio::test]
async fn a_kept_file_lies_beside_its_receipt_and_never_over_another() {
    let mut scene = Scene::new();
    scene.settings.keep_accepted = true;
    let mut folder = scene.folder();
    let long = "x".repeat(255);
    for (age, content) in ["one", "two", "three"].iter().enumerate() {
        scene.put("a.hl7", content, 100 - age as u64);
        scene.round(&mut folder).await;
    }
    scene.put(&long, "long", 1);
    scene.round(&mut folder).await;
    scene.all_put_away();
    let names = scene.names("accepted");
    assert_eq!(names.len(), 8, "{names:?}");
    for (name, content, position) in [("a.hl7", "one", 1), ("2-a.hl7", "two", 2), ("3-a.hl7", "three", 3)] {
        assert_eq!(fs::read_to_string(scene.path(&format!("accepted/{name}"))).unwrap(), content);
        assert_eq!(scene.json(&format!("accepted/{name}.receipt.json"))["position"], position);
    }
    assert_eq!(fs::read_to_string(scene.path(&format!("accepted/{long}"))).unwrap(), "long");
}

#[tokio::test]
async fn after_a_crash_between_any_two_steps_it_is_stored_once_with_the_same_receipt() {
    for (keep, take) in [(false, Take::Rename), (true, Take::Rename), (false, Take::Ctl), (true, Take::Ctl)] {
        for no_replace in [true, false] {
            let exclusive =
                || if no_replace { ExclusiveRename::default() } else { ExclusiveRename::in_two_steps() };
            for point in [Point::Claim, Point::Slip, Point::Put] {
                let what = format!("keep {keep}, {take:?}, {point:?}, {no_replace}");
                let mut scene = Scene::new();
                (scene.settings.keep_accepted, scene.settings.take) = (keep, take);
                for name in ["a.dat", "b.dat"] {
                    scene.put(name, name, 9);
                    if take == Take::Ctl {
                        scene.put(name.replace(".dat", ".ctl"), "", 8);
                    }
                }
                let mut first = scene.folder();
                Arc::get_mut(&mut first.files).unwrap().exclusive = exclusive();
                first.files.faults.fail(point, 1000);
                scene.round(&mut first).await;
                assert_eq!(scene.outbox.bodies(), ["a.dat", "b.dat"], "{what}");
                drop(first);
                let second = &mut scene.folder();
                Arc::get_mut(&mut second.files).unwrap().exclusive = exclusive();
                scene.round(second).await;
                assert_eq!(scene.outbox.bodies().len(), 2, "{what}: stored once each");
                scene.all_put_away();
                let names = scene.names("accepted");
                let wanted = match (keep, take) {
                    (false, _) => set(&["clinical-000000000001.json", "clinical-000000000002.json"]),
                    (true, Take::Rename) => {
                        set(&["a.dat", "a.dat.receipt.json", "b.dat", "b.dat.receipt.json"])
                    }
                    (true, Take::Ctl) => {
                        set(&["a.ctl", "a.dat", "a.dat.receipt.json", "b.ctl", "b.dat", "b.dat.receipt.json"])
                    }
                };
                assert_eq!(names, wanted, "{what}");
                let receipt = if keep { "b.dat.receipt.json" } else { "clinical-000000000002.json" };
                assert_eq!(scene.json(&format!("accepted/{receipt}"))["position"], 2, "{what}");
            }
        }
    }
}

#[tokio::test]
async fn while_nothing_can_be_stored_every_file_stays_and_none_overtakes() {
    let scene = Scene::new();
    for (name, age) in [("a", 30), ("b", 20), ("c", 10)] {
        scene.put(name, name, age);
    }
    scene.outbox.on_submit(|s| (s.body.as_bytes() == b"b").then(|| Refusal::Full("no space".into())));
    let mut folder = scene.folder();
    let mut pauses = vec![scene.round(&mut folder).await];
    for _ in 1..10 {
        pauses.push(folder.scan().await);
    }
    assert_eq!(scene.outbox.bodies(), ["a"], "c must not overtake b");
    assert_eq!(scene.names("."), set(&[".taken", "accepted", "rejected", "b", "c"]));
    assert!(pauses[0] < pauses[3] && pauses[9] == Duration::from_secs(30), "{pauses:?}");
    let counts = scene.counts();
    assert_eq!((counts.accepted, counts.unavailable, counts.refused), (1, 10, 0));
    scene.outbox.on_submit(|_| None);
    scene.round(&mut folder).await;
    assert_eq!(scene.outbox.bodies(), ["a", "b", "c"]);
    scene.all_put_away();
}

#[tokio::test]
async fn what_is_refused_goes_to_rejected_with_its_reason() {
    let scene = Scene::new();
    let large = "x".repeat(1001);
    let mut folder = scene.folder();
    for age in [9, 8, 8] {
        scene.put("large", &large, age);
        scene.put("empty", "", 7);
        scene.put("good", &format!("good {age}"), 1);
        scene.round(&mut folder).await;
    }
    scene.all_put_away();
    assert_eq!(scene.outbox.bodies().len(), 2, "the others continue");
    let names = scene.names("rejected");
    assert_eq!(names.iter().filter(|name| !name.ends_with(".reason.json")).count(), 6, "{names:?}");
    assert_eq!(names.len(), 12, "{names:?}");
    assert_eq!(fs::read_to_string(scene.path("rejected/large")).unwrap(), large);
    let reason = scene.json("rejected/large.reason.json");
    assert_eq!((&reason["code"], reason["bytes"].as_u64()), (&"too_large".into(), Some(1001)));
    assert!(reason["reason"].as_str().unwrap().contains("limit of 1000"), "{reason}");
    assert_eq!(scene.json("rejected/empty.reason.json")["code"], "empty");
    assert_eq!((scene.counts().refused, scene.counts().accepted), (6, 3));
}

#[tokio::test]
async fn a_limit_of_the_outbox_rejects_too() {
    let scene = Scene::new();
    scene.put("a", "abc", 1);
    scene.outbox.on_submit(|_| Some(Refusal::TooLarge { bytes: 3, limit: 2 }));
    scene.round(&mut scene.folder()).await;
    assert!(scene.json("rejected/a.reason.json")["reason"].as_str().unwrap().contains("limit of 2"));
    scene.put("b", "abc", 2);
    scene.outbox.on_submit(|_| Some(Refusal::Text(TextError::Character(Text::EventType))));
    scene.round(&mut scene.folder()).await;
    assert_eq!(scene.json("rejected/b.reason.json")["code"], "text");
    scene.all_put_away();
}

#[tokio::test]
async fn an_empty_file_gets_time_to_be_filled() {
    let mut scene = Scene::new();
    scene.settings.empty = Duration::from_secs(3600);
    scene.put("a", "", 9);
    let mut folder = scene.folder();
    scene.round(&mut folder).await;
    scene.round(&mut folder).await;
    assert_eq!(scene.names("rejected"), set(&[]));
    fs::write(scene.path("a"), "now").unwrap();
    scene.round(&mut folder).await;
    assert_eq!(scene.outbox.bodies(), ["now"]);
    scene.all_put_away();
}

#[tokio::test]
async fn a_file_that_comes_under_the_same_name_while_the_first_is_stored_is_not_lost() {
    for keep in [false, true] {
        let mut scene = Scene::new();
        scene.settings.keep_accepted = keep;
        scene.put("ORDERS.DAT", "first", 9);
        let (path, draft) = (scene.path("ORDERS.DAT"), scene.directory.path().join("draft"));
        scene.outbox.on_submit(move |submission| {
            if submission.body.as_bytes() == b"first" {
                fs::write(&draft, "other").unwrap();
                fs::rename(&draft, &path).unwrap();
            }
            None
        });
        let mut folder = scene.folder();
        scene.round(&mut folder).await;
        assert_eq!(scene.outbox.bodies(), ["first"]);
        assert!(scene.names(".taken").contains("ORDERS.DAT"), "the second must not go with the first");
        scene.round(&mut folder).await;
        assert_eq!(scene.outbox.bodies(), ["first", "other"]);
        scene.all_put_away();
        let receipts = scene.names("accepted").into_iter().filter(|name| name.ends_with(".json")).count();
        assert_eq!(receipts, 2, "each has its receipt");
    }
}

#[tokio::test]
async fn a_good_file_that_comes_in_the_place_of_a_bad_one_is_not_rejected_with_it() {
    let scene = Scene::new();
    scene.put("a", &"x".repeat(1001), 9);
    let (path, draft) = (scene.path("a"), scene.directory.path().join("draft"));
    let mut folder = scene.folder();
    folder.files.faults.at(Point::Claim, move || {
        fs::write(&draft, "good").unwrap();
        fs::rename(&draft, &path).unwrap();
    });
    scene.round(&mut folder).await;
    assert_eq!(scene.names("rejected"), set(&[]));
    scene.round(&mut folder).await;
    assert_eq!(scene.outbox.bodies(), ["good"]);
    scene.all_put_away();
}

#[tokio::test]
async fn a_name_that_is_still_being_put_away_waits_its_turn() {
    let scene = Scene::new();
    let mut folder = scene.folder();
    scene.round(&mut folder).await;
    fs::write(scene.path(".taken/a"), "one").unwrap();
    scene.put("a", "two", 1);
    folder.files.faults.fail(Point::Read, 1);
    scene.round(&mut folder).await;
    assert_eq!((scene.outbox.bodies().len(), scene.counts().folders_away), (0, 0));
    scene.round(&mut folder).await;
    scene.round(&mut folder).await;
    assert_eq!(scene.outbox.bodies(), ["one", "two"]);
    scene.all_put_away();
}

#[tokio::test]
async fn a_file_that_is_written_to_again_after_it_was_read_is_stored_again() {
    let scene = Scene::new();
    scene.put("a", "half", 9);
    let path = scene.path("a");
    scene.outbox.on_submit(move |submission| {
        if submission.body.as_bytes() == b"half" {
            fs::write(&path, "whole").unwrap();
        }
        None
    });
    let mut folder = scene.folder();
    scene.round(&mut folder).await;
    scene.round(&mut folder).await;
    assert_eq!(scene.outbox.bodies(), ["half", "whole"], "never lost, whatever a sender does");
    scene.all_put_away();
}

#[tokio::test]
async fn same_bytes_are_the_same_file_only_under_the_same_name_and_time() {
    let scene = Scene::new();
    let mut folder = scene.folder();
    for (name, age, stored) in [("a", 9, 1), ("b", 9, 2), ("a", 8, 3), ("a", 9, 3)] {
        scene.put(name, "nil return", age);
        scene.round(&mut folder).await;
        assert_eq!(scene.outbox.bodies().len(), stored, "{name} {age}");
    }
    assert_eq!((scene.counts().accepted, scene.counts().repeated), (4, 1));
    scene.put("a", "other", 9);
    scene.round(&mut folder).await;
    assert_eq!((scene.outbox.bodies().len(), scene.counts().key_reused), (4, 1));
    scene.all_put_away();
}

#[tokio::test]
async fn what_is_no_file_stays_and_is_counted() {
    let scene = Scene::new();
    let secret = scene.directory.path().join("secret");
    fs::write(&secret, "secret").unwrap();
    std::os::unix::fs::symlink(&secret, scene.path("link")).unwrap();
    std::os::unix::fs::symlink("nowhere", scene.path("dangling")).unwrap();
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    rustix::fs::mknodat(rustix::fs::CWD, scene.path("pipe"), rustix::fs::FileType::Fifo, mode, 0).unwrap();
    fs::create_dir(scene.path("directory")).unwrap();
    scene.put("good", "good", 1);
    let mut folder = scene.folder();
    scene.round(&mut folder).await;
    scene.round(&mut folder).await;
    assert_eq!(scene.outbox.bodies(), ["good"]);
    assert_eq!(scene.counts().files_left, 3);
    for name in ["link", "dangling", "pipe", "directory"] {
        assert!(fs::symlink_metadata(scene.path(name)).is_ok(), "{name} is gone");
        if name != "directory" {
            fs::remove_file(scene.path(name)).unwrap();
        }
    }
    scene.round(&mut folder).await;
    assert_eq!(scene.counts().files_left, 0);
}

#[tokio::test]
async fn a_file_that_cannot_be_read_stays_and_holds_up_nobody() {
    let scene = Scene::new();
    scene.put("a", "a", 9);
    scene.put("b", "b", 8);
    let mut folder = scene.folder();
    folder.files.faults.fail(Point::Read, 1);
    scene.round(&mut folder).await;
    assert_eq!((scene.outbox.bodies(), scene.counts().files_left), (vec!["b".to_owned()], 1));
    assert!(scene.names(".").contains("a"));
    folder.scan().await;
    assert_eq!((scene.outbox.bodies().len(), scene.counts().files_left), (2, 0));
    scene.all_put_away();
}

#[tokio::test]
async fn names_need_not_be_text() {
    for keep in [false, true] {
        let mut scene = Scene::new();
        scene.settings.keep_accepted = keep;
        for name in [&b"\xff\xfe.edi"[..], b"a\nb", b"  ", b"-rf", "Müller".as_bytes(), b"$(reboot)"] {
            scene.put(OsStr::from_bytes(name), "content", 1);
        }
        scene.round(&mut scene.folder()).await;
        assert_eq!(scene.outbox.bodies().len(), 6);
        scene.all_put_away();
        if keep {
            assert!(fs::metadata(scene.path("accepted").join(OsStr::from_bytes(b"\xff\xfe.edi"))).is_ok());
        }
    }
}

#[tokio::test]
async fn where_files_cannot_be_moved_nothing_more_is_taken_until_they_can() {
    for point in [Point::Claim, Point::Slip, Point::Put, Point::Reject] {
        let scene = Scene::new();
        scene.put("a", if point == Point::Reject { "" } else { "a" }, 9);
        let mut folder = scene.folder();
        folder.files.faults.fail(point, 3);
        scene.round(&mut folder).await;
        assert_eq!(scene.counts().folders_away, 1, "{point:?}");
        scene.put("b", "b", 8);
        folder.scan().await;
        folder.scan().await;
        let before = if point == Point::Reject { 0 } else { 1 };
        assert_eq!(scene.outbox.bodies().len(), before, "{point:?}: b must wait");
        assert_eq!(scene.counts().folders_away, 1, "{point:?}: counted once");
        scene.round(&mut folder).await;
        folder.scan().await;
        assert_eq!(scene.counts().folders_away, 0, "{point:?}");
        assert_eq!(scene.outbox.bodies().len(), before + 1);
        assert_eq!(scene.counts().repeated, 0, "{point:?}: what is stored is not submitted again");
        scene.all_put_away();
    }
}

#[tokio::test]
async fn a_folder_that_goes_away_is_reported_once_and_found_again() {
    let scene = Scene::new();
    let elsewhere = scene.directory.path().join("elsewhere");
    let mut folder = scene.folder();
    scene.round(&mut folder).await;
    fs::rename(&scene.settings.path, &elsewhere).unwrap();
    for _ in 0..3 {
        scene.round(&mut folder).await;
        assert_eq!(scene.counts().folders_away, 1);
        assert!(!scene.settings.path.exists(), "it must not be made: files would be left where nobody looks");
    }
    fs::rename(&elsewhere, &scene.settings.path).unwrap();
    scene.put("a", "a", 1);
    scene.round(&mut folder).await;
    assert_eq!((scene.counts().folders_away, scene.outbox.bodies().len()), (0, 1));
    scene.all_put_away();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_share_that_hangs_is_reported_and_waited_for() {
    for point in [Point::Read, Point::Claim] {
        let scene = Scene::new();
        scene.put("a", "a", 1);
        let mut folder = scene.folder();
        folder.patience = Duration::from_millis(30);
        let (answer, hanging) = std::sync::mpsc::channel::<()>();
        folder.files.faults.at(point, move || hanging.recv().unwrap());
        let at_work = tokio::spawn(async move {
            folder.scan().await;
            folder.scan().await;
        });
        let start = Instant::now();
        while scene.counts().folders_away == 0 {
            assert!(start.elapsed() < Duration::from_secs(20), "the hang is not reported");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        answer.send(()).unwrap();
        at_work.await.unwrap();
        assert_eq!((scene.counts().folders_away, scene.outbox.bodies().len()), (0, 1));
        scene.all_put_away();
    }
}

#[tokio::test]
async fn a_file_that_its_sender_takes_away_after_it_was_stored_has_its_receipt() {
    let scene = Scene::new();
    scene.put("a", "a", 1);
    let path = scene.path("a");
    scene.outbox.on_submit(move |_| {
        fs::remove_file(&path).unwrap();
        None
    });
    scene.round(&mut scene.folder()).await;
    assert_eq!(scene.names("accepted"), set(&["clinical-000000000001.json"]));
    scene.all_put_away();
}

#[tokio::test]
async fn where_a_share_must_be_mounted_the_bare_directory_is_not_used() {
    let mut scene = Scene::new();
    scene.settings.mounted = true;
    scene.put("a", "a", 1);
    scene.round(&mut scene.folder()).await;
    assert_eq!((scene.counts().folders_away, scene.outbox.bodies().len()), (1, 0));
    assert_eq!(scene.names("."), set(&["a"]), "nothing is made there");
}

#[tokio::test]
async fn a_link_in_the_place_of_a_subfolder_is_not_followed() {
    for name in ["accepted", "rejected", ".taken"] {
        let scene = Scene::new();
        let elsewhere = scene.directory.path().join("elsewhere");
        fs::create_dir(&elsewhere).unwrap();
        std::os::unix::fs::symlink(&elsewhere, scene.path(name)).unwrap();
        scene.put("a", "a", 1);
        scene.round(&mut scene.folder()).await;
        assert_eq!((scene.counts().folders_away, scene.outbox.bodies().len()), (1, 0), "{name}");
        assert_eq!(fs::read_dir(&elsewhere).unwrap().count(), 0);
    }
}

#[tokio::test]
async fn a_dat_is_taken_when_its_ctl_is_there_and_goes_with_it() {
    for (dat, ctl) in [("x.dat", "x.ctl"), ("X.DAT", "X.CTL"), ("y.DAT", "y.ctl")] {
        let mut scene = Scene::new();
        scene.settings.take = Take::Ctl;
        scene.put(dat, "data", 9);
        scene.put("note.txt", "not meant", 9);
        fs::create_dir(scene.path("x")).unwrap();
        let mut folder = scene.folder();
        scene.round(&mut folder).await;
        assert_eq!(scene.outbox.bodies().len(), 0, "{dat} is not complete");
        scene.put(ctl, "<control/>", 1);
        scene.round(&mut folder).await;
        assert_eq!(scene.outbox.bodies(), ["data"]);
        // The next file of this name is not complete because the last one was.
        scene.put(dat, "half", 0);
        scene.round(&mut folder).await;
        assert_eq!(scene.outbox.bodies(), ["data"]);
        assert_eq!(scene.names("."), set(&[".taken", "accepted", "rejected", "note.txt", "x", dat]));
    }
}

#[tokio::test]
async fn a_ctl_that_a_crash_has_left_behind_does_not_speak_for_the_next_dat() {
    let mut scene = Scene::new();
    scene.settings.take = Take::Ctl;
    scene.put("x.dat", "data", 9);
    scene.put("x.ctl", "", 9);
    let mut folder = scene.folder();
    folder.files.faults.fail(Point::Slip, 1000);
    scene.round(&mut folder).await;
    assert_eq!(scene.names(".taken"), set(&["x.ctl", "x.dat"]));
    // As if the crash had come between the two steps, and somebody had taken the first file away.
    fs::remove_file(scene.path(".taken/x.dat")).unwrap();
    let mut folder = scene.folder();
    scene.round(&mut folder).await;
    scene.put("x.dat", "half", 0);
    scene.round(&mut folder).await;
    assert_eq!(scene.outbox.bodies(), ["data"]);
    assert_eq!(scene.names(".taken"), set(&[]));
}

#[tokio::test]
async fn a_rejected_dat_takes_its_ctl_along() {
    let mut scene = Scene::new();
    scene.settings.take = Take::Ctl;
    scene.put("x.dat", "", 9);
    scene.put("x.ctl", "c", 9);
    scene.round(&mut scene.folder()).await;
    assert_eq!(scene.names("rejected"), set(&["x.ctl", "x.dat", "x.dat.reason.json"]));
    scene.all_put_away();
}

#[tokio::test]
async fn a_file_that_still_grows_is_not_taken() {
    let mut scene = Scene::new();
    scene.settings.settle = Duration::from_millis(80);
    scene.settings.rescan = Duration::from_secs(3600);
    let mut folder = scene.folder();
    let start = Instant::now();
    let mut written = String::new();
    while start.elapsed() < Duration::from_millis(400) {
        written.push('x');
        fs::write(scene.path("a"), &written).unwrap();
        let again = folder.scan().await;
        assert!(again <= scene.settings.settle, "it comes back soon, not at the next rescan: {again:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(scene.outbox.bodies().iter().all(|body| *body == written), "a half file was taken");
    while scene.outbox.bodies().is_empty() {
        assert!(start.elapsed() < Duration::from_secs(20));
        let again = folder.scan().await;
        tokio::time::sleep(again.min(Duration::from_millis(100))).await;
    }
    assert_eq!(scene.outbox.bodies(), [written]);
    scene.all_put_away();
}

#[tokio::test]
async fn a_large_file_waits_for_memory_and_gives_it_back() {
    let mut scene = Scene::new();
    scene.settings.file_limit_bytes = 1 << 19;
    let mut other = scene.budget.share();
    other.grow_to(1 << 20).await;
    scene.put("a", &"x".repeat(1 << 19), 1);
    let mut folder = scene.folder();
    scene.round(&mut folder).await;
    assert_eq!(scene.outbox.bodies().len(), 0);
    drop(other);
    scene.round(&mut folder).await;
    assert_eq!(scene.outbox.bodies().len(), 1);
    scene.all_put_away();
}

#[tokio::test]
async fn a_name_that_is_refused_elsewhere_is_no_reason_to_stop() {
    let scene = Scene::new();
    let mut folder = scene.folder();
    scene.round(&mut folder).await;
    // A stranger's directory in the place of the slip.
    fs::create_dir(scene.path("accepted/clinical-000000000001.json")).unwrap();
    scene.put("a", "a", 1);
    scene.round(&mut folder).await;
    assert_eq!(scene.outbox.bodies().len(), 1);
    assert!(scene.names("accepted").contains("clinical-000000000001-1.json"));
    scene.all_put_away();
}

/// A scan may miss a file that is renamed in during the listing, and still see a later one.
#[tokio::test]
async fn a_file_that_a_look_has_missed_is_not_overtaken() {
    let scene = Scene::new();
    let mut folder = scene.folder();
    scene.put("b", "b", 8);
    folder.scan().await;
    scene.put("a", "a", 9);
    for _ in 0..3 {
        folder.scan().await;
    }
    assert_eq!(scene.outbox.bodies(), ["a", "b"]);
    // A file that is still being written holds up those that came after it.
    let mut slow = Scene::new();
    slow.settings.settle = Duration::from_secs(3600);
    slow.put("c", "c", 7);
    slow.round(&mut slow.folder()).await;
    assert_eq!(slow.outbox.bodies().len(), 0);
}

#[tokio::test]
async fn the_door_wakes_when_a_file_is_renamed_in_and_stops_when_it_is_told() {
    let mut scene = Scene::new();
    scene.settings.rescan = Duration::from_secs(3600);
    let door = FolderDoor::new(scene.settings.clone());
    let (outbox, counters) = (scene.outbox.clone(), Arc::clone(&scene.counters));
    let task = tokio::spawn(door.serve(outbox, counters, scene.budget.clone(), scene.stop.subscribe()));
    let start = Instant::now();
    for number in 0..3 {
        while scene.counts().accepted < number || !scene.path("accepted").exists() {
            assert!(start.elapsed() < Duration::from_secs(20), "it did not wake");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        scene.put(format!("{number}"), &number.to_string(), 1);
    }
    while scene.names("accepted").len() < 3 {
        assert!(start.elapsed() < Duration::from_secs(20), "it did not wake");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    scene.stop.send_replace(true);
    task.await.unwrap();
    assert_eq!(scene.outbox.bodies(), ["0", "1", "2"]);
    scene.all_put_away();
}
