//! The store thread without a broker: a receipt never covers more than what the store has on stable storage.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use pgw_core::chain::{ChainValue, Digest};
use pgw_core::committer::Content;
use pgw_core::numbering::LostNumbers;
use pgw_core::transaction::{Epoch, TransactionId};
use pgw_core::wire::SCHEMA;
use pgw_core::wire::command::{CommandResult, Order};
use pgw_core::wire::envelope::Envelope;
use pgw_core::wire::limits::TEXT_BYTES;
use pgw_core::wire::presence::Status;
use pgw_core::wire::receipt::{GapCode, Position};
use pgw_core::wire::signature::{SigningKey, Word};
use pgw_core::wire::to_json;
use pgw_core::wire::topic::Root;
use pgw_hub::answers::{Answer, Answers};
use pgw_hub::backup::Backups;
use pgw_hub::fleet::Fleet;
use pgw_hub::gateways::{Gateways, KeyState};
use pgw_hub::imported::{NotTaken, Part};
use pgw_hub::report;
use pgw_hub::resend::{CopiesProgress, ResendDone, ResendRequest};
use pgw_hub::store::line::{self, Line};
use pgw_hub::store::ndjson::{NdjsonStore, again_path};
use pgw_hub::store::{Entry, LaneName, LateKept, LinkedLane, Store, StoreError, StoreIdentity, Through};
use pgw_hub::store_thread::{Arrival, GroupLimits, StoreThread};
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{Publish, PublishProperties};
use tokio::sync::{Semaphore, watch};

use crate::hub_kit::{Sender, lane, listed, said};

/// The faults of a store, set by the test.
#[derive(Default)]
struct Faults {
    full: AtomicBool,
    ids_unreadable: AtomicBool,
    /// Milliseconds that an append takes.
    slow: AtomicU64,
    /// Sizes of the groups that were appended.
    groups: Mutex<Vec<usize>>,
}

struct Unreliable {
    inner: NdjsonStore,
    faults: Arc<Faults>,
}

fn full() -> StoreError {
    StoreError::Io { action: "write", path: "x".into(), source: std::io::ErrorKind::StorageFull.into() }
}

impl Store for Unreliable {
    fn identity(&self) -> &StoreIdentity {
        self.inner.identity()
    }
    fn watermarks(&self) -> Vec<(LaneName, Vec<Through>)> {
        self.inner.watermarks()
    }
    fn watermarks_of(&self, lane: &LaneName) -> Vec<Through> {
        self.inner.watermarks_of(lane)
    }
    fn append(&mut self, group: &[Entry]) -> Result<(), StoreError> {
        if self.faults.full.load(Ordering::SeqCst) {
            return Err(full());
        }
        std::thread::sleep(Duration::from_millis(self.faults.slow.load(Ordering::SeqCst)));
        self.faults.groups.lock().unwrap().push(group.len());
        self.inner.append(group)
    }
    fn keep_copies(&mut self, copies: &[Entry]) -> Result<(), StoreError> {
        self.inner.keep_copies(copies)
    }
    fn keep_late(&mut self, entries: &[Entry]) -> Result<LateKept, StoreError> {
        self.inner.keep_late(entries)
    }
    fn content(&mut self, lane: &LaneName, id: TransactionId, digest: Digest) -> Result<Content, StoreError> {
        if self.faults.ids_unreadable.load(Ordering::SeqCst) {
            return Err(full());
        }
        self.inner.content(lane, id, digest)
    }
    fn value_at(
        &mut self,
        lane: &LaneName,
        epoch: Epoch,
        sequence: u64,
    ) -> Result<Option<ChainValue>, StoreError> {
        self.inner.value_at(lane, epoch, sequence)
    }
    fn late_at(
        &mut self,
        lane: &LaneName,
        epoch: Epoch,
        sequence: u64,
    ) -> Result<Vec<ChainValue>, StoreError> {
        self.inner.late_at(lane, epoch, sequence)
    }
    fn hole(&self, lane: &LaneName) -> Option<Vec<Through>> {
        self.inner.hole(lane)
    }
    fn lost(&self, lane: &LaneName) -> &[LostNumbers] {
        self.inner.lost(lane)
    }

    fn close_hole(&mut self, lane: &LaneName) -> Result<(), StoreError> {
        self.inner.close_hole(lane)
    }

    fn leave_hole(&mut self, lane: &LaneName) -> Result<u64, StoreError> {
        self.inner.leave_hole(lane)
    }
    fn is_out_of_use(&self, lane: &LaneName) -> bool {
        self.inner.is_out_of_use(lane)
    }
    fn check_lane(&mut self, lane: &LaneName) -> Result<(), StoreError> {
        self.inner.check_lane(lane)
    }
    fn is_archived(&mut self, lane: &LaneName, epoch: Epoch, sequence: u64) -> Result<bool, StoreError> {
        self.inner.is_archived(lane, epoch, sequence)
    }
    fn take_remains(&mut self, lane: &LaneName, file: u32) -> Result<(), StoreError> {
        self.inner.take_remains(lane, file)
    }
    fn link_lane(&mut self, lane: &LaneName, into: &Path) -> Result<LinkedLane, StoreError> {
        self.inner.link_lane(lane, into)
    }
}

fn wire(entry: &Entry) -> Publish {
    let (content_type, user_properties) = entry.envelope.clone().into_properties();
    let properties = PublishProperties {
        content_type: Some(content_type),
        user_properties,
        ..PublishProperties::default()
    };
    let topic = Root::new(&entry.lane.practice, &entry.lane.gateway).transactions(&entry.lane.lane);
    Publish::new(topic, QoS::AtLeastOnce, entry.body.clone().unwrap(), Some(properties))
}

pub(crate) struct Running {
    pub(crate) directory: Arc<tempfile::TempDir>,
    faults: Arc<Faults>,
    pub(crate) answers: Answers,
    list: watch::Sender<Arc<Gateways>>,
    pub(crate) arrivals: Option<mpsc::Sender<Arrival>>,
    thread: Option<JoinHandle<()>>,
    capacity: Arc<Semaphore>,
}

impl Running {
    pub(crate) fn start() -> Self {
        Self::in_store(&Arc::new(tempfile::tempdir().unwrap()), u64::MAX)
    }

    pub(crate) fn in_store(directory: &Arc<tempfile::TempDir>, rotate_bytes: u64) -> Self {
        Self::of(directory, NdjsonStore::open(directory.path(), rotate_bytes).unwrap())
    }

    fn of(directory: &Arc<tempfile::TempDir>, inner: NdjsonStore) -> Self {
        let faults = Arc::new(Faults::default());
        let store = Unreliable { inner, faults: faults.clone() };
        let answers = Answers::default();
        let limits = GroupLimits { transactions: 100, bytes: 1 << 20 };
        let list = watch::Sender::new(Arc::new(listed(&[&lane("any")])));
        let hub = StoreThread::new(
            Box::new(store),
            answers.clone(),
            list.subscribe(),
            Fleet::open(directory.path()),
            Backups::default(),
            limits,
        );
        let (arrivals, inbox) = mpsc::channel();
        let thread = std::thread::spawn(move || hub.run(inbox));
        let capacity = Arc::new(Semaphore::new(1_000));
        Self {
            directory: directory.clone(),
            faults,
            answers,
            list,
            arrivals: Some(arrivals),
            thread: Some(thread),
            capacity,
        }
    }

    pub(crate) fn publish(&self, publish: Publish) {
        let permit = self.capacity.clone().try_acquire_owned().unwrap();
        self.arrivals.as_ref().unwrap().send(Arrival::Publishes(vec![publish], permit)).ok().unwrap();
    }

    pub(crate) fn send(&self, entry: &Entry) {
        self.publish(wire(entry));
    }

    /// All of them with one read, as a stream arrives.
    pub(crate) fn send_together(&self, entries: &[Entry]) {
        let permit = self.capacity.clone().try_acquire_owned().unwrap();
        let publishes = entries.iter().map(wire).collect();
        self.arrivals.as_ref().unwrap().send(Arrival::Publishes(publishes, permit)).ok().unwrap();
    }

    pub(crate) fn ask(&self, sender: &Sender, nonce: &str) {
        self.ask_about(sender, None, nonce);
    }

    /// Also whether the line holds this point.
    pub(crate) fn ask_about(&self, sender: &Sender, point: Option<Through>, nonce: &str) {
        let position = Position {
            schema: SCHEMA,
            session: 1,
            epoch: sender.epoch,
            tail: sender.sequence,
            point,
            nonce: nonce.into(),
        };
        let topic = Root::new(&sender.lane.practice, &sender.lane.gateway).position(&sender.lane.lane);
        self.publish(said(&sender.key, Word::Position, &topic, to_json(&position)));
    }

    /// The next answer.
    pub(crate) fn answer(&self) -> Answer {
        let start = Instant::now();
        loop {
            if let Some(answer) = self.answers.take() {
                return answer;
            }
            assert!(start.elapsed() < Duration::from_secs(20), "no answer came");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// The answer to a question asked now: everything sent before it has then been handled.
    pub(crate) fn through(&self, sender: &Sender, nonce: &str) -> (u64, Vec<Answer>) {
        self.ask(sender, nonce);
        let mut before = Vec::new();
        loop {
            match self.answer() {
                Answer::Receipt { end, nonce: Some(answered), .. } if answered == nonce => {
                    let end = end.filter(|end| end.epoch == sender.epoch);
                    return (end.map_or(0, |end| end.through), before);
                }
                other => before.push(other),
            }
        }
    }

    pub(crate) fn stored(&mut self, lane: &LaneName) -> Vec<u64> {
        self.finish();
        let path = pgw_hub::store::ndjson::files_of(self.directory.path(), lane).unwrap().remove(0);
        std::fs::read_to_string(path)
            .unwrap()
            .lines()
            .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
            .filter(|event| event.get("specversion").is_some())
            .map(|event| event["sequence"].as_str().unwrap().parse().unwrap())
            .collect()
    }

    pub(crate) fn finish(&mut self) {
        self.arrivals = None;
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.finish();
    }
}

#[test]
fn a_lane_whose_files_cannot_be_used_gets_no_answer_and_the_others_do() {
    let mut running = Running::start();
    let (mut broken, mut good) = (Sender::new(&lane("broken"), 1), Sender::new(&lane("clinical"), 2));
    // No file, though it has the name of one.
    let path = pgw_hub::store::ndjson::files_of(running.directory.path(), &broken.lane);
    assert!(path.is_err(), "its directory is not there yet");
    std::fs::create_dir_all(running.directory.path().join("B86022/gw1/broken.000001.ndjson")).unwrap();
    running.ask(&broken, "b");
    // Its gateway learns why nothing comes, and until when; nothing else is said of it.
    let Answer::Gap { lane: named, gap } = running.answer() else { panic!("no notice") };
    assert_eq!((named, gap.code, gap.until.is_some()), (broken.lane.clone(), GapCode::Later, true));
    broken.take(2).iter().for_each(|entry| running.send(entry));
    assert_eq!(running.through(&good, "a"), (0, vec![]), "nothing is said of the other");
    good.take(3).iter().for_each(|entry| running.send(entry));
    assert_eq!(running.through(&good, "c").0, 3);
    running.arrivals.as_ref().unwrap().send(Arrival::Connected).unwrap();
    let (progress, mut ended) = watch::channel(CopiesProgress::default());
    let request = ResendRequest { lane: broken.lane.clone(), epoch: None, from: 1, through: 1 };
    running.arrivals.as_ref().unwrap().send(Arrival::Resend(request, progress)).unwrap();
    let (through, before) = running.through(&good, "d");
    assert_eq!(through, 3);
    for answer in before {
        assert!(matches!(&answer, Answer::Receipt { lane, .. } if *lane == good.lane), "{answer:?}");
    }
    let ended = ended.borrow_and_update().ended.clone().unwrap().unwrap_err().to_string();
    assert!(ended.contains("broken is out of use"), "{ended}");
    running.finish();
    assert!(running.directory.path().join("B86022/gw1/broken.000001.ndjson").is_dir());
    assert!(!running.directory.path().join("B86022/gw1/broken.ndjson").exists(), "nothing is stored");
}

/// Two lanes whose files fail while the hub runs: the next file of the first cannot be made, and the second's cannot be synced.
/// They are tried again at once.
fn with_two_failing_lanes() -> (Running, [Sender; 3]) {
    let directory = Arc::new(tempfile::tempdir().unwrap());
    let above = directory.path().join("B86022/gw1");
    std::fs::create_dir_all(&above).unwrap();
    std::os::unix::fs::symlink("/dev/null", above.join("letters.ndjson")).unwrap();
    // Each group begins a file.
    let store = NdjsonStore::open(directory.path(), 1).unwrap().retrying_after(Duration::from_millis(200));
    let running = Running::of(&directory, store);
    let mut senders = ["clinical", "letters", "good"].map(|name| Sender::new(&lane(name), 1));
    for sender in &senders {
        assert_eq!(running.through(sender, "first").0, 0);
    }
    let first = senders[0].take(2);
    running.send_together(&first);
    assert_eq!(running.through(&senders[0], "a").0, 2);
    std::fs::create_dir(above.join("clinical.000001.ndjson")).unwrap();
    (running, senders)
}

#[test]
fn a_lane_whose_files_fail_while_the_hub_runs_stops_no_other_and_comes_back() {
    let (mut running, [mut clinical, mut letters, mut good]) = with_two_failing_lanes();
    let above = running.directory.path().join("B86022/gw1");
    let (more, posted) = (clinical.take(2), letters.take(2));
    let group = [&more[..], &posted[..], &good.take(3)[..]].concat();
    running.send_together(&group);
    let (through, before) = running.through(&good, "b");
    assert_eq!(through, 3, "the group's third lane is stored");
    let name = good.lane.clone();
    let later = |answer: &Answer| match answer {
        Answer::Gap { lane, gap } => {
            assert_eq!((gap.code, gap.until.is_some()), (GapCode::Later, true));
            Some(lane.clone())
        }
        Answer::Receipt { lane, .. } => {
            assert_eq!(*lane, name, "nothing else is said");
            None
        }
        other => panic!("{other:?}"),
    };
    let mut told: std::collections::BTreeSet<_> = before.iter().filter_map(later).collect();
    // Receipts are published before notices.
    while told.len() < 2 {
        told.extend(later(&running.answer()));
    }
    assert_eq!(told.into_iter().collect::<Vec<_>>(), [clinical.lane.clone(), letters.lane.clone()]);
    // The hub does not pause: the next group of the good one is stored at once, though those come again.
    running.send_together(&[&more[..], &posted[..], &good.take(3)[..]].concat());
    let (through, before) = running.through(&good, "c");
    assert_eq!(through, 6);
    before.iter().for_each(|answer| assert_eq!(later(answer).filter(|lane| *lane == name), None));
    // A person learns of both, also of the one whose files can be read.
    let start = Instant::now();
    loop {
        let list = report::list(running.directory.path(), 0).unwrap();
        let shown = list.text.contains("letters is OUT OF USE at the hub since")
            && list.text.contains("clinical is NOT whole: cannot");
        if shown && !list.ok {
            break;
        }
        assert!(start.elapsed() < Duration::from_secs(20), "{}", list.text);
        running.arrivals.as_ref().unwrap().send(Arrival::Tick).unwrap();
        std::thread::sleep(Duration::from_millis(20));
    }
    // Corrected: they come back with what they have, and nothing is there twice.
    std::fs::remove_dir(above.join("clinical.000001.ndjson")).unwrap();
    std::fs::remove_file(above.join("letters.ndjson")).unwrap();
    for (sender, entries, end) in [(&clinical, &more, 4), (&letters, &posted, 2)] {
        let start = Instant::now();
        for nonce in 0.. {
            running.ask(sender, &format!("back {nonce}"));
            running.send_together(entries);
            let (through, _) = running.through(&good, &format!("{}{nonce}", sender.lane.lane));
            assert_eq!(through, 6);
            let ends = pgw_hub::store::ndjson::peek(running.directory.path()).unwrap();
            if ends.iter().any(|stored| stored.lane == sender.lane && stored.ends == [sender.end()]) {
                break;
            }
            assert!(start.elapsed() < Duration::from_secs(20), "{} does not come back", sender.lane);
            std::thread::sleep(Duration::from_millis(20));
        }
        assert_eq!(running.through(sender, &format!("end {}", sender.lane.lane)).0, end);
    }
    running.finish();
    let list = listed(&[&good.lane]);
    for sender in [&clinical, &letters, &good] {
        let report = pgw_hub::verify::lane(running.directory.path(), &sender.lane, &list).unwrap();
        assert_eq!((report.faults, report.transactions), (vec![], sender.sequence));
    }
    assert!(report::list(running.directory.path(), 0).unwrap().ok);
}

#[test]
fn a_bundle_of_a_lane_whose_files_fail_is_not_stored_and_no_end_is_given_of_it() {
    let (running, [mut clinical, mut letters, good]) = with_two_failing_lanes();
    for sender in [&mut clinical, &mut letters] {
        let one = |entry: &Entry| (entry.envelope.clone(), entry.body.clone().unwrap());
        let transactions = sender.take(2).iter().map(one).collect();
        let (answer, asked) = mpsc::sync_channel(1);
        let part = Part { lane: sender.lane.clone(), transactions };
        running.arrivals.as_ref().unwrap().send(Arrival::Import(Box::new(part), answer)).ok().unwrap();
        assert_eq!(asked.recv().unwrap(), Err(NotTaken::StoreFailed(sender.lane.clone())));
        let (answer, asked) = mpsc::sync_channel(1);
        running.arrivals.as_ref().unwrap().send(Arrival::End(sender.lane.clone(), answer)).ok().unwrap();
        assert!(asked.recv().unwrap().is_none(), "an empty end would be a lie");
    }
    assert_eq!(running.through(&good, "b").0, 0);
}

#[test]
fn a_full_disk_gives_no_receipt_and_gets_well_by_itself() {
    let mut running = Running::start();
    let mut sender = Sender::new(&lane("clinical"), 1);
    assert_eq!(running.through(&sender, "first").0, 0);
    let all = sender.take(20);
    all[..5].iter().for_each(|entry| running.send(entry));
    assert_eq!(running.through(&sender, "a").0, 5);
    running.faults.full.store(true, Ordering::SeqCst);
    all[5..10].iter().for_each(|entry| running.send(entry));
    let (through, before) = running.through(&sender, "b");
    assert_eq!(through, 5, "the answer is at the old mark");
    let is_later = |answer: &Answer| matches!(answer, Answer::Gap { gap, .. } if gap.code == GapCode::Later);
    assert!(before.iter().all(is_later), "nothing but the answer, and that the store fails: {before:?}");
    running.faults.full.store(false, Ordering::SeqCst);
    // The gateway sends again from time to time; it is accepted when the store is tried again.
    let start = Instant::now();
    let mut nonce = 0;
    loop {
        all[5..].iter().for_each(|entry| running.send(entry));
        nonce += 1;
        if running.through(&sender, &format!("{nonce}")).0 == 20 {
            break;
        }
        assert!(start.elapsed() < Duration::from_secs(20));
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(running.stored(&sender.lane), (1..=20).collect::<Vec<_>>());
}

#[test]
fn groups_keep_their_limit_within_one_read_and_a_question_behind_them_speaks_of_them_all() {
    let mut running = Running::start();
    let mut sender = Sender::new(&lane("clinical"), 1);
    assert_eq!(running.through(&sender, "first").0, 0);
    running.send_together(&sender.take(250));
    let (through, before) = running.through(&sender, "after");
    assert_eq!(through, 250);
    assert!(before.iter().all(|answer| matches!(answer, Answer::Receipt { nonce: None, .. })), "{before:?}");
    assert_eq!(running.stored(&sender.lane), (1..=250).collect::<Vec<_>>());
    let groups = running.faults.groups.lock().unwrap().clone();
    assert!(groups.iter().all(|group| *group <= 100), "{groups:?}");
}

#[test]
fn a_receipt_comes_after_the_barrier_and_one_for_a_group() {
    let mut running = Running::start();
    running.faults.slow.store(200, Ordering::SeqCst);
    let mut sender = Sender::new(&lane("clinical"), 1);
    assert_eq!(running.through(&sender, "first").0, 0);
    let all = sender.take(150);
    let start = Instant::now();
    all.iter().for_each(|entry| running.send(entry));
    let mut seen = Vec::new();
    while seen.last() != Some(&150) {
        if let Answer::Receipt { end: Some(end), nonce: None, .. } = running.answer() {
            assert!(start.elapsed() >= Duration::from_millis(200), "before the barrier");
            seen.push(end.through);
        }
    }
    running.finish();
    let groups = running.faults.groups.lock().unwrap().clone();
    let ends: Vec<_> = groups
        .iter()
        .scan(0, |sum, group| {
            *sum += *group as u64;
            Some(*sum)
        })
        .collect();
    assert!(seen.iter().all(|through| ends.contains(through)), "{seen:?} of {ends:?}");
    assert!(seen.len() <= groups.len() && groups.len() <= 4, "{groups:?}");
    assert!(groups.iter().all(|group| *group <= 100));
    assert_eq!(running.stored(&sender.lane), (1..=150).collect::<Vec<_>>());
}

#[test]
fn when_the_ids_cannot_be_read_nothing_is_stored_twice_or_lost() {
    let mut running = Running::start();
    let mut old = Sender::new(&lane("clinical"), 1);
    assert_eq!(running.through(&old, "first").0, 0);
    let first = old.take(5);
    first.iter().for_each(|entry| running.send(entry));
    assert_eq!(running.through(&old, "a").0, 5);
    let mut new = Sender::after(&old, 2);
    let mut again: Vec<_> = first[2..].iter().map(|entry| new.again(entry)).collect();
    again.extend(new.take(2));
    running.faults.ids_unreadable.store(true, Ordering::SeqCst);
    again.iter().for_each(|entry| running.send(entry));
    assert_eq!(running.through(&new, "b").0, 0);
    running.faults.ids_unreadable.store(false, Ordering::SeqCst);
    let start = Instant::now();
    let mut nonce = 0;
    loop {
        again.iter().for_each(|entry| running.send(entry));
        nonce += 1;
        if running.through(&new, &format!("{nonce}")).0 == 5 {
            break;
        }
        assert!(start.elapsed() < Duration::from_secs(20));
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(running.stored(&old.lane), [1, 2, 3, 4, 5, 4, 5]);
    let report = pgw_hub::verify::lane(running.directory.path(), &old.lane, &listed(&[&old.lane])).unwrap();
    assert_eq!((report.advances, report.faults), (3, vec![]));
}

#[test]
fn one_gateway_cannot_fill_the_hub_with_lanes() {
    let mut running = Running::start();
    for n in 0..100 {
        let mut sender = Sender::new(&lane(&format!("l{n}")), 1);
        running.ask(&sender, "n");
        running.send(&sender.next(1, b"x"));
    }
    let last = Sender::new(&lane("l0"), 1);
    assert_eq!(running.through(&last, "a").0, 1);
    running.finish();
    let files = std::fs::read_dir(running.directory.path().join("B86022/gw1")).unwrap().count();
    assert_eq!(files, 64);
}

/// The gap notices so far. Receipts are published before them.
pub(crate) fn gaps(running: &Running, mut answers: Vec<Answer>) -> Vec<(GapCode, u64)> {
    answers.extend(std::iter::from_fn(|| running.answers.take()));
    let gap = |answer: &Answer| match answer {
        Answer::Gap { gap, .. } => Some((gap.code, gap.expected)),
        _ => None,
    };
    answers.iter().filter_map(gap).collect()
}

#[test]
fn what_its_gateway_has_not_signed_is_not_stored() {
    let mut running = Running::start();
    let mut sender = Sender::new(&lane("clinical"), 1);
    assert_eq!(running.through(&sender, "first").0, 0);
    let all = sender.take(10);
    let key = SigningKey::from_pkcs8(&SigningKey::generate().unwrap()).unwrap();
    // A broker takes the fourth away, and writes all that follow again, with the chain values that follow.
    let mut forger = Sender { sequence: 3, chain: all[2].envelope.chain, ..sender.clone() };
    forger.key = Arc::new(key);
    let mut forged = all[..3].to_vec();
    forged.extend(forger.take(4));
    running.send_together(&forged);
    let (through, before) = running.through(&sender, "a");
    assert_eq!((through, gaps(&running, before)), (3, vec![(GapCode::Unverified, 4)]));
    // Without any signature, and with that of another number.
    let mut bare = all[3].clone();
    bare.envelope.signature = None;
    running.send(&bare);
    let mut moved = all[3].clone();
    moved.envelope.signature = all[4].envelope.signature;
    moved.envelope.round = 2;
    running.send(&moved);
    let (through, before) = running.through(&sender, "b");
    assert_eq!((through, gaps(&running, before)), (3, vec![(GapCode::Unverified, 4)]));
    running.send_together(&all[3..]);
    assert_eq!(running.through(&sender, "c").0, 10);
    assert_eq!(running.stored(&sender.lane), (1..=10).collect::<Vec<_>>());
    let report =
        pgw_hub::verify::lane(running.directory.path(), &sender.lane, &listed(&[&sender.lane])).unwrap();
    assert_eq!(report.faults, vec![]);
    let [head] = report.heads[..] else { panic!("{:?}", report.heads) };
    assert_eq!((head.at.through, head.key, head.verified), (10, sender.key.public().id(), true));
}

#[test]
fn what_is_beyond_its_limits_is_named_to_its_gateway_and_not_stored() {
    let mut running = Running::start();
    let mut sender = Sender::new(&lane("clinical"), 1);
    assert_eq!(running.through(&sender, "first").0, 0);
    running.send_together(&sender.take(2));
    let before = sender.chain;
    let plain = sender.next(7, b"body");
    let (content_type, mut properties) = plain.envelope.clone().into_properties();
    properties.push(("note".into(), "x".repeat(TEXT_BYTES + 1)));
    let envelope = Envelope::of_any_length(Some(content_type), properties).unwrap();
    // A broker has made the attribute longer: nothing of its gateway's is too large.
    let entry = |envelope| Entry::new(sender.lane.clone(), envelope, plain.body.clone().unwrap());
    let changed = entry(envelope.clone());
    running.send(&changed);
    let (through, answers) = running.through(&sender, "a");
    assert_eq!((through, gaps(&running, answers)), (2, vec![(GapCode::Link, 3)]));
    let mut envelope = envelope;
    envelope.chain = before.next(3, envelope.digest(b"body"));
    let long = entry(envelope.signed(&sender.lane, &sender.key));
    let next = Sender { chain: long.envelope.chain, ..sender.clone() }.next(8, b"body 8");
    running.send_together(&[long, next]);
    let (through, answers) = running.through(&sender, "b");
    let named = vec![(GapCode::TooLarge, 3), (GapCode::Missing, 3)];
    assert_eq!((through, gaps(&running, answers)), (2, named));
    // The same number as a hub with these limits takes it.
    running.send(&plain);
    assert_eq!(running.through(&sender, "c").0, 3);
    assert_eq!(running.stored(&sender.lane), [1, 2, 3]);
}

/// Says something as the gateway of this sender.
fn say(running: &Running, sender: &Sender, word: Word, topic: &str, payload: Vec<u8>) {
    let topic = format!("pgw/v1/{}/{}/{topic}", sender.lane.practice, sender.lane.gateway);
    running.publish(said(&sender.key, word, &topic, payload));
}

#[test]
fn a_copy_replaces_nothing_unless_its_gateway_has_signed_it_and_it_follows() {
    let mut running = Running::start();
    let mut sender = Sender::new(&lane("clinical"), 1);
    say(&running, &sender, Word::Status, "status", to_json(&Status::new("online", 7, "", String::new())));
    assert_eq!(running.through(&sender, "first").0, 0);
    // More than the committer remembers.
    let all = sender.take(90);
    running.send_together(&all);
    assert_eq!(running.through(&sender, "a").0, 90);
    let request = ResendRequest { lane: sender.lane.clone(), epoch: None, from: 3, through: 3 };
    let (progress, ended) = watch::channel(CopiesProgress::default());
    running.arrivals.as_ref().unwrap().send(Arrival::Resend(request, progress)).ok().unwrap();
    let command = std::iter::from_fn(|| Some(running.answer())).find_map(|answer| match answer {
        Answer::Command { id, order, .. } => Some((id, order)),
        _ => None,
    });
    let (id, order) = command.unwrap();
    assert!(matches!(order, Order::Resend { from: 2, through: 3, .. }), "{order:?}");
    // Another body under the number, chain value and signature of the true one; and one without a signature.
    let mut forged = all[2].clone();
    forged.body = Some("another".into());
    let mut bare = forged.clone();
    bare.envelope.signature = None;
    running.send_together(&[bare.clone(), all[1].clone(), forged.clone(), bare, all[2].clone(), forged]);
    let result = CommandResult::new(id, Ok(2), String::new(), String::new());
    say(&running, &sender, Word::Result, "cmd/result", to_json(&result));
    running.finish();
    assert_eq!(ended.borrow().ended, Some(Ok(ResendDone { sent: 1, detail: String::new() })));
    let copies = std::fs::read_to_string(again_path(running.directory.path(), &sender.lane)).unwrap();
    assert_eq!(copies.lines().count(), 1);
    let Some(Line::Record(record)) = line::read(copies.trim_end().as_bytes()) else { panic!("{copies}") };
    assert_eq!((record.watermark.through, &record.body[..]), (3, &all[2].body.as_ref().unwrap()[..]));
}

#[test]
fn a_key_that_was_replaced_signs_nothing_new_but_its_bundles_and_a_revoked_one_nothing() {
    let mut running = Running::start();
    let mut sender = Sender::new(&lane("clinical"), 1);
    assert_eq!(running.through(&sender, "first").0, 0);
    let all = sender.take(9);
    running.send_together(&all[..3]);
    assert_eq!(running.through(&sender, "a").0, 3);
    let import = |entries: &[Entry]| {
        let one = |entry: &Entry| (entry.envelope.clone(), entry.body.clone().unwrap());
        let transactions = entries.iter().map(one).collect();
        let (answer, asked) = mpsc::sync_channel(1);
        let part = Part { lane: lane("clinical"), transactions };
        running.arrivals.as_ref().unwrap().send(Arrival::Import(Box::new(part), answer)).ok().unwrap();
        asked.recv().unwrap()
    };
    let key_is = |state| {
        let mut list = listed(&[&lane("any")]);
        list.gateways.values_mut().for_each(|gateway| gateway.keys[0].state = state);
        running.list.send_replace(Arc::new(list));
    };
    for (state, through) in [(KeyState::Verifying, 6), (KeyState::Revoked, 6)] {
        key_is(state);
        running.send_together(&all[3..]);
        running.ask(&sender, "b");
        let gaps = std::iter::from_fn(|| Some(running.answer())).find_map(|answer| match answer {
            Answer::Gap { gap, .. } if gap.code == GapCode::Key => Some(gap.key),
            _ => None,
        });
        assert_eq!(gaps.flatten(), Some(sender.key.public().id()), "{state:?}");
        let imported = import(&all[3..if state == KeyState::Verifying { 6 } else { 9 }]);
        match state {
            KeyState::Revoked => {
                let first = NotTaken::Unsigned { lane: lane("clinical"), epoch: sender.epoch, sequence: 7 };
                assert_eq!(imported, Err(first));
            }
            _ => assert_eq!(imported.map(|tally| tally.stored), Ok(3)),
        }
        let files = pgw_hub::store::ndjson::peek(running.directory.path()).unwrap();
        assert_eq!(files[0].ends[0].through, through, "{state:?}");
    }
    key_is(KeyState::Signing);
    running.send_together(&all[6..]);
    assert_eq!(running.through(&sender, "c").0, 9);
    running.finish();
}

#[test]
fn a_question_counts_once_and_only_from_a_key_that_may_sign() {
    let running = Running::start();
    let sender = Sender::new(&lane("clinical"), 1);
    let other = Arc::new(SigningKey::from_pkcs8(&SigningKey::generate().unwrap()).unwrap());
    // A box whose key is not listed yet learns why nothing comes.
    running.ask(&Sender { key: other.clone(), ..sender.clone() }, "unlisted");
    let Answer::Gap { gap, .. } = running.answer() else { panic!("no gap") };
    assert_eq!((gap.code, gap.key), (GapCode::Key, Some(other.public().id())));
    // A forged signature in the name of the listed key gets no answer, and neither does a repetition.
    let topic = Root::new(&sender.lane.practice, &sender.lane.gateway).position(&sender.lane.lane);
    let position = Position {
        schema: SCHEMA,
        session: 1,
        epoch: sender.epoch,
        tail: 0,
        point: None,
        nonce: "forged".into(),
    };
    let mut forged = said(&sender.key, Word::Position, &topic, to_json(&position));
    forged.properties = said(&other, Word::Position, &topic, to_json(&position)).properties;
    running.publish(forged);
    let good =
        said(&sender.key, Word::Position, &topic, to_json(&Position { nonce: "good".into(), ..position }));
    running.publish(good.clone());
    assert!(matches!(running.answer(), Answer::Receipt { nonce: Some(nonce), .. } if nonce == "good"));
    running.publish(good);
    let (_, before) = running.through(&sender, "last");
    assert_eq!(before, vec![]);
}
