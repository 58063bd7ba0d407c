//! The outbox under the power-cut rig (`tests/powercut/README.md`).
//!
//! ```text
//! powercut-outbox run   DIR SOCKET SECONDS SEED   submit, confirm, prune; tell the rig what was promised
//! powercut-outbox check DIR EVENTS                exit 0, or a verdict word and exit 1
//! ```
//!
//! Events, one per line:
//! - `ack LANE POSITION ID KEY`: `submit` answered; from here on it must be there
//! - `seen LANE POSITION ID`: delivery has read it; this number may never name another transaction
//! - `confirm LANE POSITION`: about to confirm, so everything up to here may be pruned
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)] // a workload: any surprise ends it

use std::collections::{BTreeMap, HashMap};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::exit;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use pgw_core::transaction::{Body, Gateway, Kind, Lane, Position, Practice};
use pgw_outbox::{
    Accepted, EventType, Keyring, LaneSettings, Outbox, OutboxKey, OutboxSettings, Refusal, Stored,
    Submission, TypeAffixes, Watermark,
};

const LANES: [&str; 2] = ["clinical", "urgent"];
const SOURCE: &str = "urn:powercut";
/// Submissions that may be in progress at a cut; twice as many after a second one.
const BATCH: u64 = 16;

fn settings(directory: &Path) -> OutboxSettings {
    OutboxSettings {
        directory: directory.join("store"),
        practice: Practice::new("B86022").unwrap(),
        gateway: Gateway::new("gw1").unwrap(),
        lanes: LANES
            .iter()
            .map(|name| LaneSettings { lane: Lane::new(name).unwrap(), urgent: *name == "urgent" })
            .collect(),
        types: TypeAffixes::default(),
        segment_records: 64,
        segment_bytes: 192 * 1024,
        retention: Duration::ZERO,
        limit_bytes: 400 << 20,
        min_free_bytes: 1 << 20,
        min_free_percent: 0,
        max_body_bytes: 1 << 20,
        queue_bytes: 16 << 20,
        quarantine_bytes: 1 << 20,
    }
}

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}

/// The body that belongs to a key: mostly up to 2 KiB, one in eight up to 20 KiB.
fn body_of(key: &str) -> Vec<u8> {
    let seed =
        key.bytes().fold(0xcbf2_9ce4_8422_2325, |h: u64, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
    let mut random = Random(seed);
    let length = if random.below(8) == 0 { random.below(20 * 1024) } else { random.below(2048) };
    (0..length.div_ceil(8)).flat_map(|_| random.next().to_le_bytes()).take(length as usize).collect()
}

fn submission(lane: &Lane, key: &str) -> Submission {
    Submission {
        lane: lane.clone(),
        event_type: EventType::Named(String::from("powercut")),
        kind: Kind::Transaction,
        content_type: String::from("application/octet-stream"),
        sender: String::from(SOURCE),
        key: key.to_owned(),
        shows_key: true,
        correlation_id: String::new(),
        trace_parent: String::new(),
        body: Body::new(body_of(key)),
    }
}

#[derive(Clone)]
struct Events(Arc<Mutex<(UnixStream, BufReader<UnixStream>)>>);

impl Events {
    fn connect(socket: &str) -> Self {
        let stream = UnixStream::connect(socket).unwrap();
        let answers = BufReader::new(stream.try_clone().unwrap());
        Self(Arc::new(Mutex::new((stream, answers))))
    }

    fn tell(&self, line: &str) {
        let (stream, answers) = &mut *self.0.lock().unwrap();
        writeln!(stream, "{line}").unwrap();
        answers.read_line(&mut String::new()).unwrap();
    }
}

/// Each opening uses another current key, so that cuts also hit rotations.
fn open(directory: &Path, turn: u64) -> Outbox {
    let [present, earlier, earliest] =
        [0, 1, 2].map(|n| OutboxKey::new([7 + u8::try_from((turn + n) % 3).unwrap(); 32]));
    let keys = Keyring::new(present, vec![earlier, earliest]);
    match Outbox::open(settings(directory), keys) {
        Ok(outbox) => outbox,
        Err(error) => fail("OPENFAIL", &format!("{error} {error:?}")),
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

/// Submits a batch at once; returns the answers in order of arrival.
fn submit_all(
    runtime: &tokio::runtime::Runtime,
    outbox: &Outbox,
    batch: Vec<(Lane, String)>,
    mut answered: impl FnMut(Lane, String, Result<Accepted, Refusal>),
) {
    let (answers, received) = std::sync::mpsc::channel();
    for (lane, key) in batch {
        let (outbox, answers) = (outbox.clone(), answers.clone());
        runtime.spawn(async move {
            let answer = outbox.submit(submission(&lane, &key)).await;
            answers.send((lane, key, answer)).unwrap();
        });
    }
    drop(answers);
    for (lane, key, answer) in received {
        answered(lane, key, answer);
    }
}

/// Plays delivery: reads everything behind the barrier and reports it.
fn follow(outbox: &Outbox, lane: &Lane, events: &Events, stop: &AtomicBool) {
    let mut next = outbox.first_retained(lane).unwrap_or(1).max(1);
    let tail = outbox.tail(lane).expect("the lane is configured");
    while !stop.load(Ordering::Relaxed) {
        if *tail.borrow() < next {
            std::thread::sleep(Duration::from_millis(1));
            continue;
        }
        match outbox.read(lane, next, 64, 1 << 20) {
            Ok(read) => {
                for stored in &read {
                    events.tell(&format!("seen {lane} {} {}", stored.position, stored.transaction.id));
                }
                next = read.last().map_or(next, |stored| stored.position + 1);
            }
            Err(_) => next = next.max(outbox.first_retained(lane).unwrap_or(next)), // pruned meanwhile
        }
    }
}

fn run(directory: &Path, socket: &str, seconds: u64, seed: u64) {
    let events = Events::connect(socket);
    let outbox = open(directory, seed);
    let runtime = runtime();
    let stop = Arc::new(AtomicBool::new(false));
    let lanes: Vec<Lane> = LANES.iter().map(|name| Lane::new(name).unwrap()).collect();
    let followers: Vec<_> = lanes
        .iter()
        .map(|lane| {
            let (outbox, lane, events, stop) = (outbox.clone(), lane.clone(), events.clone(), stop.clone());
            std::thread::spawn(move || follow(&outbox, &lane, &events, &stop))
        })
        .collect();
    let mut random = Random(seed);
    let mut acknowledged: HashMap<Lane, Vec<(String, Accepted)>> = HashMap::new();
    let (mut number, mut repeated) = (0u64, 0u64);
    let until = Instant::now() + Duration::from_secs(seconds);
    while Instant::now() < until {
        let mut batch = Vec::new();
        let mut expected: HashMap<String, Accepted> = HashMap::new();
        for _ in 0..=random.below(BATCH) {
            let lane = lanes[usize::from(random.below(4) == 0)].clone();
            let known = acknowledged.entry(lane.clone()).or_default();
            let confirmed = outbox.watermark(&lane).map_or(0, |watermark| watermark.position);
            let pick = known.len().saturating_sub(1 + random.below(40) as usize);
            match known.get(pick).filter(|(_, accepted)| accepted.position > confirmed) {
                Some((key, accepted)) if random.below(8) == 0 => {
                    expected.insert(key.clone(), *accepted);
                    batch.push((lane, key.clone()));
                }
                _ => {
                    number += 1;
                    batch.push((lane, format!("{seed}-{number}")));
                }
            }
        }
        submit_all(&runtime, &outbox, batch, |lane, key, answer| {
            let accepted = answer.unwrap_or_else(|refusal| panic!("refused: {refusal}"));
            events.tell(&format!("ack {lane} {} {} {key}", accepted.position, accepted.id));
            match expected.get(&key) {
                Some(first) => {
                    assert!(accepted.repeated && accepted.id == first.id, "a repetition was not recognised");
                    assert_eq!(accepted.position, first.position);
                    repeated += 1;
                }
                None => {
                    assert!(!accepted.repeated, "a new one was taken for a repetition");
                    acknowledged.entry(lane).or_default().push((key, accepted));
                }
            }
        });
        if random.below(6) == 0 {
            let lane = &lanes[random.below(2) as usize];
            let tail = *outbox.tail(lane).unwrap().borrow();
            let position = tail.saturating_sub(random.below(100));
            if position > outbox.watermark(lane).map_or(0, |watermark| watermark.position) {
                events.tell(&format!("confirm {lane} {position}"));
                outbox.confirm(
                    lane,
                    Watermark { position, point: None },
                    Some(position),
                    Some(Instant::now()),
                );
            }
        }
        if random.below(100) == 0 {
            let lane = &lanes[random.below(2) as usize];
            let tail = *outbox.tail(lane).unwrap().borrow();
            outbox.new_epoch(lane, tail, None, Vec::new(), &[]).unwrap();
        }
    }
    stop.store(true, Ordering::Relaxed);
    for follower in followers {
        follower.join().unwrap();
    }
    let retained: Vec<_> = lanes.iter().map(|lane| outbox.first_retained(lane)).collect();
    println!("submitted {number}, repeated {repeated}, first retained {retained:?}, {:?}", outbox.alarms());
    outbox.close();
}

/// What was promised before the cut.
#[derive(Default)]
struct Promised {
    /// Key and id of every acknowledged position.
    acknowledged: BTreeMap<Position, (String, String)>,
    seen: BTreeMap<Position, String>,
    may_be_gone: Position,
}

fn promised(events: &str) -> HashMap<String, Promised> {
    let mut lanes: HashMap<String, Promised> = HashMap::new();
    for line in std::fs::read_to_string(events).unwrap().lines() {
        let words: Vec<&str> = line.split(' ').collect();
        let lane = lanes.entry(words[1].to_owned()).or_default();
        let position: Position = words[2].parse().unwrap();
        match words[0] {
            "ack" => drop(lane.acknowledged.insert(position, (words[4].to_owned(), words[3].to_owned()))),
            "seen" => drop(lane.seen.insert(position, words[3].to_owned())),
            "confirm" => lane.may_be_gone = lane.may_be_gone.max(position),
            word => panic!("event {word}"),
        }
    }
    lanes
}

fn read_all(outbox: &Outbox, lane: &Lane) -> Vec<Stored> {
    let tail = *outbox.tail(lane).unwrap().borrow();
    let mut next = outbox.first_retained(lane).unwrap_or(1).max(1);
    let mut all: Vec<Stored> = Vec::new();
    while next <= tail {
        match outbox.read(lane, next, 100, 1 << 20) {
            Ok(read) if read.is_empty() => {
                fail("LOST", &format!("{lane} {next} is not there, the tail is {tail}"))
            }
            Ok(read) => all.extend(read),
            // Confirmed records are pruned while we read: start again after them. Whether they may be gone is checked
            // later.
            Err(_) if outbox.first_retained(lane).is_some_and(|first| first > next) => {
                all.clear();
                next = outbox.first_retained(lane).unwrap_or(next);
                continue;
            }
            Err(error) => {
                fail("LOST", &format!("{lane} {next}: {error}; the tail is {tail}; {:?}", outbox.alarms()))
            }
        }
        next = all.last().map_or(next, |stored| stored.position + 1);
    }
    all
}

/// Order, numbers, chain, and every body against its key.
fn check_content(outbox: &Outbox, lane: &Lane, all: &[Stored]) {
    let mut before = None;
    for stored in all {
        let at = format!("{lane} {}", stored.position);
        let transaction = &stored.transaction;
        if transaction.body.as_bytes() != body_of(&transaction.key) {
            fail("CORRUPT", &format!("{at} is not what its key {} says", transaction.key));
        }
        let chained = match outbox.chained(lane, stored.position, 1, 0) {
            Ok(chained) if chained.len() == 1 => chained[0],
            // It is pruned meanwhile.
            _ => continue,
        };
        if chained.previous.next(chained.position, stored.digest) != chained.chain {
            fail("CHAIN", &format!("{at} does not follow from the value before it"));
        }
        if before
            .is_some_and(|(position, chain)| position + 1 == stored.position && chain != chained.previous)
        {
            fail("CHAIN", &format!("{at} does not follow the one before it"));
        }
        before = Some((stored.position, chained.chain));
    }
    for pair in all.windows(2) {
        if pair[1].position != pair[0].position + 1 {
            fail("REORDERED", &format!("{lane} {} follows {}", pair[1].position, pair[0].position));
        }
    }
    let there: HashMap<Position, &Stored> = all.iter().map(|stored| (stored.position, stored)).collect();
    let digests = outbox.digests(lane, 1, usize::MAX).unwrap();
    for (position, digest) in (1..).zip(&digests) {
        let here = there.get(&position);
        if digest.is_none() || here.is_some_and(|stored| Some(stored.digest) != *digest) {
            fail("DIGEST", &format!("{lane} {position}: {digest:?}"));
        }
    }
}

fn check_promises(lane: &Lane, promised: &Promised, all: &[Stored], tail: Position) {
    let found: HashMap<Position, &Stored> = all.iter().map(|stored| (stored.position, stored)).collect();
    let obligations = promised.acknowledged.range(promised.may_be_gone + 1..);
    let missing: Vec<_> =
        obligations.clone().filter(|(p, _)| !found.contains_key(p)).map(|(p, _)| *p).collect();
    if let Some(first) = missing.first() {
        fail("LOST", &format!("{lane}: {} acknowledged ones, first {first}, tail {tail}", missing.len()));
    }
    for (position, (key, id)) in &promised.acknowledged {
        if found
            .get(position)
            .is_some_and(|s| s.transaction.key != *key || s.transaction.id.to_string() != *id)
        {
            fail("REORDERED", &format!("{lane} {position} is another transaction than was acknowledged"));
        }
    }
    for (position, id) in &promised.seen {
        if found.get(position).is_some_and(|s| s.transaction.id.to_string() != *id) {
            fail("REUSED", &format!("{lane} {position} is another transaction than delivery has seen"));
        }
        if *position > promised.may_be_gone && !found.contains_key(position) {
            fail("REUSED", &format!("{lane} {position} was seen by delivery and is gone"));
        }
    }
    let last = promised.acknowledged.keys().next_back().copied().unwrap_or(0);
    if tail > last.max(promised.may_be_gone) + 2 * BATCH {
        fail("PHANTOM", &format!("{lane}: tail {tail}, but acknowledged only up to {last}"));
    }
    let mut keys: Vec<_> = all.iter().map(|stored| &stored.transaction.key).collect();
    keys.sort();
    if let Some(pair) = keys.windows(2).find(|pair| pair[0] == pair[1]) {
        fail("REPEATED", &format!("{lane}: {} is there twice", pair[0]));
    }
}

/// The store must continue: repetitions are recognised, new submissions accepted, and all of it is there after another
/// opening.
fn checks(directory: &Path, outbox: Outbox, lanes: &HashMap<String, Promised>) {
    let runtime = runtime();
    let mut expected: Vec<(Lane, Vec<String>)> = Vec::new();
    for name in LANES {
        let lane = Lane::new(name).unwrap();
        let none = Promised::default();
        let promised = lanes.get(name).unwrap_or(&none);
        let old: Vec<_> = promised.acknowledged.range(promised.may_be_gone + 1..).rev().take(8).collect();
        let batch = old.iter().map(|(_, (key, _))| (lane.clone(), key.clone())).collect();
        submit_all(&runtime, &outbox, batch, |_, key, answer| match answer {
            Ok(accepted)
                if accepted.repeated
                    && old.iter().any(|(_, (k, id))| *k == key && *id == accepted.id.to_string()) => {}
            other => {
                fail("FORGOTTEN", &format!("{lane}: the repetition of {key} was answered with {other:?}"))
            }
        });
        let batch = (0..20).map(|n| (lane.clone(), format!("future-{name}-{n}"))).collect();
        submit_all(&runtime, &outbox, batch, |_, key, answer| {
            if !answer.as_ref().is_ok_and(|accepted| !accepted.repeated) {
                fail("STUCK", &format!("{lane}: {key} was answered with {answer:?}"));
            }
        });
        let all = read_all(&outbox, &lane);
        check_content(&outbox, &lane, &all);
        expected.push((lane, all.iter().map(|stored| stored.transaction.id.to_string()).collect()));
    }
    outbox.close();
    let outbox = open(directory, 0);
    for (lane, ids) in expected {
        let again: Vec<_> =
            read_all(&outbox, &lane).iter().map(|stored| stored.transaction.id.to_string()).collect();
        // Confirmed records may have been pruned from the front meanwhile; nothing else may have changed.
        if !ids.ends_with(&again) || again.len() < 20 {
            fail("REOPEN", &format!("{lane}: {} before, {} after opening again", ids.len(), again.len()));
        }
        check_content(&outbox, &lane, &read_all(&outbox, &lane));
    }
    outbox.close();
}

fn check(directory: &Path, events: &str) {
    let lanes = promised(events);
    if !directory.join("store").exists() && lanes.is_empty() {
        println!("ok: cut before the store began");
        return;
    }
    let outbox = open(directory, 1);
    let mut summary = Vec::new();
    for name in LANES {
        let lane = Lane::new(name).unwrap();
        let tail = *outbox.tail(&lane).unwrap().borrow();
        let all = read_all(&outbox, &lane);
        let none = Promised::default();
        let promised = lanes.get(name).unwrap_or(&none);
        check_content(&outbox, &lane, &all);
        check_promises(&lane, promised, &all, tail);
        summary.push(format!(
            "{lane}: acknowledged {}, confirmed {}, read {}..={tail}",
            promised.acknowledged.len(),
            promised.may_be_gone,
            tail + 1 - all.len() as u64
        ));
    }
    for (lane, counts) in outbox.snapshot().lanes {
        if counts.damaged > 0 || counts.accepted != counts.confirmed + counts.waiting {
            fail("DAMAGED", &format!("{lane}: {counts:?}, though nothing was destroyed"));
        }
    }
    let alarms: Vec<_> = outbox.alarms().into_iter().map(|alarm| alarm.code).collect();
    checks(directory, outbox, &lanes);
    println!("ok {} {alarms:?}", summary.join("; "));
}

fn fail(word: &str, detail: &str) -> ! {
    println!("{word} {detail}");
    exit(1)
}

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["run", directory, socket, seconds, seed] => {
            run(Path::new(directory), socket, seconds.parse().unwrap(), seed.parse().unwrap());
        }
        ["check", directory, events] => check(Path::new(directory), events),
        _ => {
            println!("usage: powercut-outbox run DIR SOCKET SECONDS SEED | check DIR EVENTS");
            exit(64)
        }
    }
}
