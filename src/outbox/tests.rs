//! The outbox as a whole, with faults planted where only this crate can.

mod barrier_tests;
mod damage_tests;
mod digest_tests;
mod key_tests;
mod table_loss_tests;
mod void_tests;

use std::path::Path;
use std::time::{Duration, Instant};

use pgw_core::chain::{ChainValue, Through};
use pgw_core::numbering::Gone;
use pgw_core::transaction::{Body, Epoch, Gateway, Kind, Lane, LaneName, Position, Practice};
use uuid::Uuid;

use crate::faults_for_tests::Point;
use crate::guard::{record, segment};
use crate::*;
use crate::{faults_for_tests as faults, files};

pub(super) fn settings(directory: &Path) -> OutboxSettings {
    OutboxSettings {
        directory: directory.to_owned(),
        practice: Practice::new("B86022").unwrap(),
        gateway: Gateway::new("gw1").unwrap(),
        lanes: vec![
            LaneSettings { lane: clinical(), urgent: false },
            LaneSettings { lane: urgent(), urgent: true },
        ],
        types: TypeAffixes::default(),
        segment_records: 8,
        segment_bytes: 1 << 20,
        retention: Duration::from_secs(3600),
        limit_bytes: 1 << 30,
        min_free_bytes: 0,
        min_free_percent: 0,
        max_body_bytes: 20_000_000,
        queue_bytes: 64 << 20,
        quarantine_bytes: 1 << 20,
    }
}

pub(super) fn clinical() -> Lane {
    Lane::new("clinical").unwrap()
}

/// With the practice and the gateway of the settings.
pub(super) fn clinical_name() -> LaneName {
    "B86022/gw1/clinical".parse().unwrap()
}

fn urgent() -> Lane {
    Lane::new("urgent").unwrap()
}

pub(super) fn key() -> OutboxKey {
    OutboxKey::new([7; 32])
}

pub(super) fn open(directory: &Path) -> Outbox {
    Outbox::open(settings(directory), key()).unwrap()
}

pub(super) fn submission(key: &str, body: &[u8]) -> Submission {
    Submission {
        lane: clinical(),
        event_type: EventType::Named("hl7v2.oru_r01".into()),
        kind: Kind::Transaction,
        content_type: "application/hl7-v2+er7".into(),
        sender: "urn:lab".into(),
        key: key.into(),
        shows_key: true,
        correlation_id: String::new(),
        trace_parent: String::new(),
        body: Body::new(body.to_vec()),
    }
}

pub(super) fn submit(outbox: &Outbox, submission: Submission) -> Result<Accepted, Refusal> {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(outbox.submit(submission))
}

pub(super) fn add(outbox: &Outbox, numbers: impl IntoIterator<Item = u32>) {
    for number in numbers {
        submit(outbox, submission(&format!("K{number}"), format!("body {number}").as_bytes())).unwrap();
    }
}

pub(super) fn tail(outbox: &Outbox) -> Position {
    *outbox.tail(&clinical()).unwrap().borrow()
}

/// A sender repeats what [`add`] has added.
pub(super) fn add_again(outbox: &Outbox, number: u32) -> Accepted {
    submit(outbox, submission(&format!("K{number}"), format!("body {number}").as_bytes())).unwrap()
}

/// Reads a lane from its beginning and checks positions, the chain over them, and the digests.
pub(super) fn bodies(outbox: &Outbox) -> Vec<String> {
    let mut bodies = Vec::new();
    let mut from = 1;
    let mut chain = outbox.first_of_positions(&clinical()).unwrap();
    loop {
        let records = outbox.read(&clinical(), from, 3, usize::MAX).unwrap();
        if records.is_empty() {
            assert_eq!(outbox.chain_of_positions(&clinical()), Some(chain));
            return bodies;
        }
        for stored in records {
            assert_eq!(stored.position, from);
            let digest = stored.transaction.digest(&clinical_name());
            let next = chain.next(from, digest);
            let expected = ChainedRecord { position: from, digest, previous: chain, chain: next };
            assert_eq!(outbox.chained(&clinical(), from, 1, 0).unwrap(), [expected], "position {from}");
            assert_eq!(stored.digest, digest, "position {from}");
            assert_eq!(outbox.digests(&clinical(), from, 1).unwrap(), [Some(digest)], "position {from}");
            chain = next;
            bodies.push(String::from_utf8(stored.transaction.body.as_bytes().to_vec()).unwrap());
            from += 1;
        }
    }
}

pub(super) fn expected(numbers: impl IntoIterator<Item = u32>) -> Vec<String> {
    numbers.into_iter().map(|n| format!("body {n}")).collect()
}

pub(super) fn codes(outbox: &Outbox) -> Vec<&'static str> {
    outbox.alarms().into_iter().map(|raise| raise.code).collect()
}

#[test]
fn what_was_accepted_is_there_after_reopening() {
    let directory = tempfile::tempdir().unwrap();
    let outbox = open(directory.path());
    add(&outbox, 1..=30);
    assert_eq!(bodies(&outbox), expected(1..=30));
    outbox.close();
    let outbox = open(directory.path());
    assert_eq!(bodies(&outbox), expected(1..=30));
    add(&outbox, 31..=35);
    assert_eq!(bodies(&outbox), expected(1..=35));
    let counts = &outbox.snapshot().lanes[0].1;
    assert_eq!((counts.accepted, counts.waiting, counts.damaged), (35, 35, 0));
    assert_eq!(codes(&outbox), Vec::<&str>::new());
}

#[test]
fn a_type_is_settled_at_acceptance() {
    let directory = tempfile::tempdir().unwrap();
    let given =
        || Submission { event_type: EventType::Given("uk.nhs.nhais".into()), ..submission("", b"given") };
    let outbox = open(directory.path());
    add(&outbox, [1]);
    submit(&outbox, given()).unwrap();
    outbox.close();
    let types = TypeAffixes {
        prefix: TypePrefix::new("uk.nhs.example.").unwrap(),
        suffix: TypeSuffix::new(".2").unwrap(),
    };
    let outbox = Outbox::open(OutboxSettings { types, ..settings(directory.path()) }, key()).unwrap();
    add(&outbox, [1, 2]);
    assert!(submit(&outbox, given()).unwrap().repeated);
    let read = outbox.read(&clinical(), 1, 9, usize::MAX).unwrap();
    let types: Vec<&str> = read.iter().map(|stored| stored.transaction.event_type.as_str()).collect();
    let expected =
        ["org.practice-gateway.hl7v2.oru_r01.v1", "uk.nhs.nhais", "uk.nhs.example.hl7v2.oru_r01.2"];
    assert_eq!(types, expected, "no later configuration changes what was accepted");
}

#[test]
fn senders_that_only_a_withheld_number_tells_apart_are_two() {
    let directory = tempfile::tempdir().unwrap();
    let of = |sender: &str, body: &[u8]| Submission { sender: sender.into(), ..submission("A", body) };
    let senders = ["clinic:9434765919", "clinic:4010232137"];
    let outbox = open(directory.path());
    // At once, while the first is not yet behind its barrier, and one after the other.
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let together = runtime.block_on(async {
        tokio::join!(outbox.submit(of(senders[0], b"one")), outbox.submit(of(senders[1], b"one")))
    });
    let accepted = [together.0.unwrap(), together.1.unwrap()];
    assert!(accepted.iter().all(|one| one.withheld && !one.repeated && !one.key_reused));
    let other = submit(&outbox, of(senders[0], b"two")).unwrap();
    assert!(other.key_reused, "the sender's own number");
    let alarms = outbox.alarms();
    assert_eq!(alarms.len(), 2, "once for each sender: {alarms:?}");
    for accepted in accepted {
        let named = format!("sender of transaction {}, ", accepted.id);
        assert!(alarms.iter().any(|alarm| alarm.detail.starts_with(&named)), "{alarms:?}");
    }
    outbox.close();
    std::fs::remove_dir_all(directory.path().join("index")).unwrap();
    let outbox = open(directory.path());
    for (sender, first) in senders.into_iter().zip(accepted) {
        let again = submit(&outbox, of(sender, b"one")).unwrap();
        assert_eq!((again.id, again.repeated), (first.id, true), "{sender}");
    }
    let read = outbox.read(&clinical(), 1, 9, usize::MAX).unwrap();
    let told: Vec<_> = read
        .iter()
        .map(|stored| (stored.transaction.sender.as_str(), stored.transaction.sender_as_given()))
        .collect();
    assert_eq!(told, [senders[0], senders[1], senders[0]].map(|given| ("clinic:withheld", given)));
    assert_eq!(bodies(&outbox), ["one", "one", "two"]);
}

#[test]
fn a_repetition_gets_the_first_answer_and_is_not_stored_twice() {
    let directory = tempfile::tempdir().unwrap();
    let outbox = open(directory.path());
    let first = submit(&outbox, submission("A", b"one")).unwrap();
    let again = submit(&outbox, submission("A", b"one")).unwrap();
    assert_eq!(again, Accepted { repeated: true, ..first });
    let other = submit(&outbox, submission("A", b"two")).unwrap();
    assert!(other.key_reused && !other.repeated && other.position == 2);
    let unnamed = submit(&outbox, submission("", b"three")).unwrap();
    assert_eq!(submit(&outbox, submission("", b"three")).unwrap().id, unnamed.id);
    let elsewhere = Submission { sender: "ward".into(), ..submission("A", b"one") };
    assert!(!submit(&outbox, elsewhere).unwrap().repeated);
    assert_eq!(tail(&outbox), 4);
    outbox.close();
    let outbox = open(directory.path());
    assert_eq!(submit(&outbox, submission("A", b"one")).unwrap(), Accepted { repeated: true, ..first });
    assert_eq!(outbox.snapshot().repeated_total, 1);
}

#[test]
fn repetitions_in_one_group_share_their_fate() {
    let directory = tempfile::tempdir().unwrap();
    let outbox = open(directory.path());
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let answers = runtime.block_on(async {
        let tasks: Vec<_> = (0..50)
            .map(|n| {
                let outbox = outbox.clone();
                async move {
                    outbox.submit(submission("A", if n % 2 == 0 { b"one" } else { b"two" })).await.unwrap()
                }
            })
            .collect();
        let mut set = tokio::task::JoinSet::new();
        let local = tokio::task::LocalSet::new();
        local
            .run_until(async {
                for task in tasks {
                    set.spawn_local(task);
                }
                set.join_all().await
            })
            .await
    });
    assert_eq!(answers.iter().filter(|a| !a.repeated).count(), 2);
    assert_eq!(answers.iter().filter(|a| a.key_reused).count(), 1);
    assert_eq!(tail(&outbox), 2);
}

#[test]
fn after_a_failed_sync_what_is_beyond_the_barrier_is_written_again() {
    for point in [Point::Sync, Point::Append] {
        let directory = tempfile::tempdir().unwrap();
        let outbox = open(directory.path());
        add(&outbox, 1..=3);
        faults::in_store(directory.path()).fail_next(point, 1);
        add(&outbox, 4..=5);
        assert_eq!(bodies(&outbox), expected(1..=5));
        assert_eq!(codes(&outbox), ["store.trouble"]);
        // The segment that failed takes no more, and its records beyond the barrier do not count.
        let state = outbox.lane(&clinical()).unwrap().state().clone();
        assert_eq!(state.segments.values().map(|span| span.base).collect::<Vec<_>>(), [1, 4]);
        outbox.close();
        let outbox = open(directory.path());
        assert_eq!(bodies(&outbox), expected(1..=5));
    }
}

#[test]
fn a_store_that_cannot_write_refuses_and_gets_out_of_it_by_itself() {
    let directory = tempfile::tempdir().unwrap();
    let outbox = open(directory.path());
    add(&outbox, 1..=3);
    let faults = faults::in_store(directory.path());
    faults.fail_next(Point::Sync, 1);
    faults.fail_next(Point::Create, 4);
    let refused = submit(&outbox, submission("K4", b"body 4")).unwrap_err();
    assert!(matches!(refused, Refusal::Trouble(_)), "{refused}");
    assert!(refused.to_string().contains("the disk is full: free some space on it: "), "{refused}");
    assert_eq!(tail(&outbox), 3, "not published before it is behind a barrier");
    let mut tail = outbox.tail(&clinical()).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(tail.wait_for(|tail| *tail == 4)).unwrap();
    assert!(submit(&outbox, submission("K4", b"body 4")).unwrap().repeated, "stored once it worked");
    add(&outbox, 5..=9);
    assert_eq!(bodies(&outbox), expected(1..=9));
    assert_eq!(codes(&outbox), ["store.trouble", "store.ballast", "store.trouble", "store.works"]);
    outbox.close();
    let outbox = open(directory.path());
    assert_eq!(bodies(&outbox), expected(1..=9));
}

/// A copy of the store as a crash of the process would leave it.
pub(super) fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &to.join(entry.file_name()));
        } else {
            // The drafts of an open store's small files vanish meanwhile.
            let copied = std::fs::copy(entry.path(), to.join(entry.file_name()));
            assert!(copied.is_ok() || !entry.path().exists(), "{copied:?}");
        }
    }
}

pub(super) fn segment_files(directory: &Path) -> Vec<std::path::PathBuf> {
    let mut files: Vec<_> = std::fs::read_dir(directory.join("segments/clinical"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_dir())
        .map(|path| path.join("db"))
        .collect();
    files.sort();
    files
}

pub(super) fn counts(outbox: &Outbox) -> LaneCounts {
    let counts = outbox.snapshot().lanes[0].1.clone();
    assert_eq!(counts.accepted, counts.confirmed + counts.waiting + counts.damaged);
    counts
}

#[test]
fn a_destroyed_segment_is_rebuilt_when_it_is_read_and_lost_records_are_named() {
    let directory = tempfile::tempdir().unwrap();
    let outbox = open(directory.path());
    add(&outbox, 1..=24);
    outbox.close();
    let file = &segment_files(directory.path())[0];
    let mut bytes = std::fs::read(file).unwrap();
    // Destroys sled's own structures, and every copy of one record's chunk.
    let lost = (0..bytes.len() - 30)
        .filter(|at| record::parse_chunk(&bytes[*at..]).is_some_and(|chunk| chunk.position == 3))
        .collect::<Vec<_>>();
    assert!(!lost.is_empty());
    for at in lost {
        bytes[at + 40] ^= 1;
    }
    bytes[..16].fill(0xff);
    std::fs::write(file, bytes).unwrap();
    for entry in std::fs::read_dir(file.parent().unwrap()).unwrap() {
        let path = entry.unwrap().path();
        if path.file_name().unwrap().to_str().unwrap().starts_with("snap.") {
            std::fs::remove_file(path).unwrap();
        }
    }

    let outbox = open(directory.path());
    let first = outbox.read(&clinical(), 1, 100, usize::MAX).unwrap();
    assert_eq!(first.iter().map(|s| s.position).collect::<Vec<_>>(), [1, 2]);
    assert!(matches!(outbox.read(&clinical(), 3, 100, usize::MAX), Err(ReadError::Gone { position: 3, .. })));
    let rest = outbox.read(&clinical(), 4, 100, usize::MAX).unwrap();
    assert_eq!(rest.iter().map(|s| s.position).collect::<Vec<_>>(), (4..=24).collect::<Vec<_>>());
    let digests = outbox.digests(&clinical(), 1, 100).unwrap();
    assert_eq!(
        (digests.len(), digests.iter().flatten().count()),
        (24, 24),
        "the destroyed one's is known too"
    );
    assert_eq!(counts(&outbox).damaged, 1);
    let codes = codes(&outbox);
    assert!(codes.contains(&"salvaged") && codes.contains(&"damaged"), "{codes:?}");
    assert_eq!(std::fs::read_dir(directory.path().join("aside")).unwrap().count(), 1, "nothing was deleted");
    outbox.close();
    let outbox = open(directory.path());
    assert_eq!(counts(&outbox).damaged, 1);
    add(&outbox, 25..=26);
}

#[test]
fn a_destroyed_newest_segment_is_rebuilt_at_start() {
    let directory = tempfile::tempdir().unwrap();
    let outbox = open(directory.path());
    add(&outbox, 1..=12);
    outbox.close();
    let file = segment_files(directory.path()).pop().unwrap();
    let mut bytes = std::fs::read(&file).unwrap();
    bytes[..16].fill(0xff);
    std::fs::write(&file, bytes).unwrap();
    let outbox = open(directory.path());
    assert_eq!(bodies(&outbox), expected(1..=12));
    assert_eq!(codes(&outbox), ["salvaged"]);
    add(&outbox, 13..=20);
    assert_eq!(bodies(&outbox), expected(1..=20));
}

#[test]
fn a_store_that_ends_before_its_tail_checkpoint_continues_behind_it() {
    let directory = tempfile::tempdir().unwrap();
    let outbox = open(directory.path());
    add(&outbox, 1..=5);
    outbox.close();
    let older = tempfile::tempdir().unwrap();
    copy(&directory.path().join("segments"), older.path());
    let outbox = open(directory.path());
    add(&outbox, 6..=7);
    let numbering = outbox.numbering(&clinical()).unwrap();
    let at_seven = outbox.chain_of_positions(&clinical()).unwrap();
    outbox.close();
    std::fs::remove_dir_all(directory.path().join("segments")).unwrap();
    copy(older.path(), &directory.path().join("segments"));

    for _ in 0..2 {
        let outbox = open(directory.path());
        assert!(codes(&outbox).contains(&"store.shortfall"));
        assert_eq!((counts(&outbox).accepted, counts(&outbox).damaged), (7, 2));
    }
    let outbox = open(directory.path());
    assert_eq!(outbox.numbering(&clinical()).unwrap(), numbering, "an epoch begins on an answer");
    assert_eq!(outbox.gone(&clinical()), [Gone { from: 6, through: 7, kind: None }]);
    add(&outbox, 8..=9);
    outbox.close();
    let outbox = open(directory.path());
    assert_eq!(codes(&outbox), Vec::<&str>::new());
    assert_eq!((counts(&outbox).accepted, counts(&outbox).damaged), (9, 2));
    let new = outbox.read(&clinical(), 8, 9, usize::MAX).unwrap();
    assert_eq!(new[0].position, 8);
    // The tail checkpoint knew the chain value there, and the digest table, which was lost too, nothing.
    let chained = outbox.chained(&clinical(), 8, 1, 0).unwrap()[0];
    assert_eq!(chained.previous, at_seven);
    assert_eq!(
        outbox.digests(&clinical(), 5, 9).unwrap().iter().map(Option::is_some).collect::<Vec<_>>(),
        [true, false, false, true, true]
    );
    assert!(matches!(outbox.read(&clinical(), 6, 9, usize::MAX), Err(ReadError::Gone { .. })));
}

#[test]
fn only_an_unanswered_last_record_is_trimmed() {
    let directory = tempfile::tempdir().unwrap();
    let outbox = open(directory.path());
    add(&outbox, 1..=3);
    outbox.close();
    let tear = |position| {
        let path = segment_files(directory.path()).pop().unwrap();
        let segment = segment::Segment::open(path.parent().unwrap(), 0).unwrap();
        let torn = [[0xaa; 200].as_slice(), &[0; 9000]].concat();
        segment.append(position, &torn).unwrap();
        segment.barrier().unwrap();
    };
    tear(4);
    let outbox = open(directory.path());
    assert_eq!(codes(&outbox), ["tail.trimmed"]);
    assert_eq!((tail(&outbox), outbox.snapshot().quarantined), (3, 1));
    add(&outbox, 4..=5);
    assert_eq!(bodies(&outbox), expected(1..=5));
    outbox.close();
    // Answered, and destroyed since: it stays, damaged.
    tear(5);
    let outbox = open(directory.path());
    assert_eq!(tail(&outbox), 5);
    assert_eq!(outbox.read(&clinical(), 4, 9, usize::MAX).unwrap().len(), 1);
    // The tail checkpoint has the chain value after it, so the lane continues in its epoch.
    add(&outbox, 6..=6);
    assert_eq!(outbox.numbering(&clinical()).unwrap().epochs().count(), 1);
    // And once its segment is no longer written, carving finds the answered record in sled's log.
    assert_eq!(bodies(&outbox), expected(1..=6));
    assert_eq!(counts(&outbox).damaged, 0);
}

#[test]
fn wrong_key_owner_version_and_a_second_process_are_refused_untouched() {
    let directory = tempfile::tempdir().unwrap();
    let outbox = open(directory.path());
    add(&outbox, 1..=2);
    assert!(matches!(Outbox::open(settings(directory.path()), key()), Err(OpenError::InUse(_))));
    outbox.close();
    // No child process: until it runs its own code, a child holds a copy of every lock of this process.
    let list = || {
        let mut all = Vec::new();
        let mut folders = vec![directory.path().to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                let facts = std::fs::symlink_metadata(&path).unwrap();
                if facts.is_dir() {
                    folders.push(path.clone());
                }
                all.push((path, facts.modified().unwrap(), facts.len()));
            }
        }
        all.sort();
        all
    };
    let before = list();
    let other = OutboxKey::new([8; 32]);
    assert!(matches!(Outbox::open(settings(directory.path()), other), Err(OpenError::WrongKey { .. })));
    let other = OutboxSettings { gateway: Gateway::new("gw2").unwrap(), ..settings(directory.path()) };
    assert!(matches!(Outbox::open(other, key()), Err(OpenError::OtherOwner { .. })));
    assert_eq!(list(), before, "nothing was written");
    files::save(&directory.path().join("FORMAT"), &serde_json::json!({"format": 2, "anything": 1})).unwrap();
    let before = list();
    assert!(matches!(
        Outbox::open(settings(directory.path()), key()),
        Err(OpenError::Newer { found: 2, .. })
    ));
    assert_eq!(list(), before, "nothing was written");
}

#[test]
fn a_new_epoch_renumbers_what_is_there_without_rewriting_it() {
    let directory = tempfile::tempdir().unwrap();
    let outbox = open(directory.path());
    add(&outbox, 1..=20);
    let old = outbox.read(&clinical(), 1, 100, usize::MAX).unwrap();
    let chained = outbox.chained(&clinical(), 1, 20, usize::MAX).unwrap();
    let numbering = outbox.new_epoch(&clinical(), 5, None, Vec::new(), &[]).unwrap();
    add(&outbox, 21..=30);
    let check = |outbox: &Outbox| {
        assert_eq!(bodies(outbox), expected(1..=30));
        let new = outbox.read(&clinical(), 1, 100, usize::MAX).unwrap();
        assert!(old.iter().zip(&new).all(|(old, new)| old.transaction == new.transaction));
        assert_eq!(outbox.chained(&clinical(), 1, 20, usize::MAX).unwrap(), chained);
        assert_eq!(outbox.numbering(&clinical()).unwrap(), numbering);
    };
    check(&outbox);
    outbox.close();
    let outbox = open(directory.path());
    check(&outbox);
    // A crash right after it, before anything was added.
    outbox.new_epoch(&clinical(), 30, None, Vec::new(), &[]).unwrap();
    outbox.new_epoch(&clinical(), 28, None, Vec::new(), &[]).unwrap();
    outbox.close();
    let outbox = open(directory.path());
    add(&outbox, 31..=33);
    assert_eq!(bodies(&outbox), expected(1..=33));
    assert_eq!(outbox.numbering(&clinical()).unwrap().epochs().count(), 4);
}

pub(super) fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < Duration::from_secs(20), "never: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The lane's last position in the tail checkpoint.
pub(super) fn checkpointed(store: &Path) -> Position {
    let lanes = crate::state::checkpoint::TailCheckpoint::read(&store.join("sidecar")).unwrap().unwrap();
    lanes.get(&clinical()).map_or(0, |(position, _)| *position)
}

/// A watermark there; nothing here compares its chain value, which is of the wire.
pub(super) fn at(position: Position) -> Watermark {
    let point = Through { epoch: Epoch(Uuid::nil()), through: position.max(1), chain: ChainValue([9; 32]) };
    Watermark { position, point: Some(point) }
}

pub(super) fn confirm_through(outbox: &Outbox, position: Position, backed_up: Option<Position>) {
    outbox.confirm(&clinical(), at(position), backed_up, Some(Instant::now()));
}

#[test]
fn a_start_knows_that_the_hubs_line_ended_elsewhere() {
    let directory = tempfile::tempdir().unwrap();
    let outbox = open(directory.path());
    assert_eq!(outbox.since_diverged(&clinical()), None);
    outbox.note_diverged(&clinical());
    outbox.close();
    for _ in 0..2 {
        let outbox = open(directory.path());
        let since = outbox.since_diverged(&clinical()).unwrap();
        assert!(since < Duration::from_secs(3600), "{since:?}");
        assert_eq!(outbox.since_diverged(&urgent()), None, "of its lane only");
        outbox.close();
    }
}

#[test]
fn confirmed_segments_go_after_their_retention_and_nothing_else_does() {
    let directory = tempfile::tempdir().unwrap();
    let outbox =
        Outbox::open(OutboxSettings { retention: Duration::ZERO, ..settings(directory.path()) }, key())
            .unwrap();
    add(&outbox, 1..=30);
    confirm_through(&outbox, 12, None);
    eventually("the first segment is pruned", || outbox.first_retained(&clinical()) == Some(9));
    eventually("its files are gone", || {
        segment_files(directory.path())
            .iter()
            .all(|f| !f.starts_with(directory.path().join("segments/clinical/0000000001")))
    });
    assert_eq!(counts(&outbox).damaged, 0);
    assert!(matches!(outbox.read(&clinical(), 8, 1, 0), Err(ReadError::Gone { .. })));
    assert_eq!(outbox.read(&clinical(), 9, 1, 0).unwrap()[0].position, 9);
    // After a hub was restored, pruned records that are no longer confirmed cannot be read.
    outbox.confirm(&clinical(), at(3), None, Some(Instant::now()));
    assert_eq!((counts(&outbox).confirmed, counts(&outbox).damaged, counts(&outbox).waiting), (3, 5, 22));
    outbox.close();
    let outbox = Outbox::open(
        OutboxSettings { retention: Duration::from_secs(3600), ..settings(directory.path()) },
        key(),
    )
    .unwrap();
    assert_eq!(outbox.watermark(&clinical()).unwrap().position, 3);
    confirm_through(&outbox, 30, None);
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(outbox.first_retained(&clinical()), Some(9), "kept for its retention");
}

#[test]
fn for_lack_of_space_only_what_the_hub_has_a_backup_of_goes_early() {
    let directory = tempfile::tempdir().unwrap();
    let outbox = open(directory.path());
    add(&outbox, 1..=40);
    confirm_through(&outbox, 40, Some(20));
    outbox.close();
    let tight = OutboxSettings { limit_bytes: 1 << 20, ..settings(directory.path()) };
    let outbox = Outbox::open(tight, key()).unwrap();
    assert!(matches!(submit(&outbox, submission("new", b"new")), Err(Refusal::Full(_))));
    assert!(submit(&outbox, submission("K30", b"body 30")).unwrap().repeated, "a repetition needs no room");
    eventually("it asks for an answer", || outbox.wants_answer(&clinical()));
    assert_eq!(outbox.first_retained(&clinical()), Some(1), "nothing goes before the hub has answered");
    confirm_through(&outbox, 40, Some(20));
    eventually("what is backed up is pruned", || outbox.first_retained(&clinical()) == Some(17));
    // A receipt that answers nothing names a later backup.
    outbox.confirm(&clinical(), at(40), Some(40), None);
    eventually("it asks whether that is so", || outbox.wants_answer(&clinical()));
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(outbox.first_retained(&clinical()), Some(17));
    assert!(codes(&outbox).contains(&"pruned.early"));
    assert!(outbox.snapshot().refusing.is_some());
}

#[test]
fn large_bodies_and_limits() {
    let directory = tempfile::tempdir().unwrap();
    let outbox = open(directory.path());
    let large: Vec<u8> =
        (0..20_000_000u32).map(|n| u8::try_from(n.wrapping_mul(2_654_435_761) >> 24).unwrap()).collect();
    submit(&outbox, submission("L", &large)).unwrap();
    submit(&outbox, submission("E", b"")).unwrap();
    let read = outbox.read(&clinical(), 1, 9, usize::MAX).unwrap();
    assert_eq!(read[0].transaction.body.as_bytes(), large);
    assert_eq!(read[1].transaction.body.len(), 0);
    assert_eq!(outbox.read(&clinical(), 1, 9, 1000).unwrap().len(), 1, "bounded by bytes");
    let larger = [large.as_slice(), b"x"].concat();
    assert!(matches!(submit(&outbox, submission("X", &larger)), Err(Refusal::TooLarge { .. })));
    let nowhere = Submission { lane: Lane::new("nowhere").unwrap(), ..submission("X", b"x") };
    assert!(matches!(submit(&outbox, nowhere), Err(Refusal::UnknownLane(_))));
    let unsendable = Submission { correlation_id: "c\u{ffff}".into(), ..submission("X", b"x") };
    assert!(matches!(submit(&outbox, unsendable), Err(Refusal::Text(_))), "no broker would take it");
    outbox.clone().close();
    assert_eq!(submit(&outbox, submission("X", b"x")), Err(Refusal::Stopping));
}
