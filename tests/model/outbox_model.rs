//! The real outbox against a model that is a list: whatever is submitted, confirmed, renumbered, closed, crashed and
//! reopened, in any order, reads and counts match the model.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::{Duration, Instant};

use pgw_core::chain::{ChainValue, Digest, Through};
use pgw_core::delivery::Numbering;
use pgw_core::transaction::{Body, Gateway, Kind, Lane, Position, Practice, TransactionId};
use pgw_gateway::wire_chain::WireReader;
use pgw_outbox::{
    EventType, LaneSettings, Outbox, OutboxKey, OutboxSettings, ReadError, Submission, TypeAffixes, Watermark,
};
use proptest::prelude::*;

const LANES: [&str; 2] = ["clinical", "urgent"];

#[derive(Debug, Clone)]
enum Step {
    /// Several at once, so that they share groups.
    Submit { lane: usize, messages: Vec<(u8, u8)> },
    /// One body of many chunks.
    Large { lane: usize, bytes: usize },
    /// Confirm through a part of the lane, in 255ths; it may go back.
    Confirm { lane: usize, part: u8 },
    /// A new epoch after a part of the lane.
    NewEpoch { lane: usize, part: u8 },
    /// Close and open.
    Reopen,
    /// Continue with a copy of the files at that moment, some of them deleted.
    Crash { lost: Vec<&'static str> },
    /// The same, with digest tables deleted, cut or altered; `which` selects them.
    DamageTables { which: u8, how: TableDamage },
    /// Let maintenance do its work.
    Rest,
}

#[derive(Debug, Clone, Copy)]
enum TableDamage {
    Deleted,
    Cut,
    Altered,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let lane = 0..LANES.len();
    let lost = prop::sample::subsequence(vec!["marks", "index", "ledger", "sidecar", "numbering"], 0..=3);
    let step = prop_oneof![
        8 => (lane.clone(), prop::collection::vec((0..12u8, 0..3u8), 1..12))
            .prop_map(|(lane, messages)| Step::Submit { lane, messages }),
        1 => (lane.clone(), 4_000..60_000usize).prop_map(|(lane, bytes)| Step::Large { lane, bytes }),
        3 => (lane.clone(), any::<u8>()).prop_map(|(lane, part)| Step::Confirm { lane, part }),
        1 => (lane, any::<u8>()).prop_map(|(lane, part)| Step::NewEpoch { lane, part }),
        2 => Just(Step::Reopen),
        2 => lost.prop_map(|lost| Step::Crash { lost }),
        2 => (any::<u8>(), prop::sample::select(vec![TableDamage::Deleted, TableDamage::Cut, TableDamage::Altered]))
            .prop_map(|(which, how)| Step::DamageTables { which, how }),
        1 => Just(Step::Rest),
    ];
    prop::collection::vec(step, 1..25)
}

struct Record {
    id: TransactionId,
    key: String,
    body: Vec<u8>,
}

struct ModelLane {
    lane: Lane,
    records: Vec<Record>,
    numbering: Numbering,
    watermark: Position,
    /// Every watermark that was ever set: a crash may restore an older one.
    watermarks: BTreeSet<Position>,
    /// The furthest position that was ever confirmed, whatever happened to the watermarks since.
    ever: Position,
    /// The digest of each position, as it was read once.
    digests: BTreeMap<Position, Digest>,
    /// What was pruned before tables were damaged: their digests may be unknown, and never wrong.
    in_doubt: Position,
}

impl ModelLane {
    fn tail(&self) -> Position {
        self.records.len() as u64
    }

    fn part(&self, part: u8) -> Position {
        self.tail() * u64::from(part) / 255
    }
}

fn settings(directory: &Path, retention: Duration) -> OutboxSettings {
    let lanes = LANES.map(|lane| LaneSettings { lane: Lane::new(lane).unwrap(), urgent: lane == "urgent" });
    OutboxSettings {
        directory: directory.to_owned(),
        practice: Practice::new("B86022").unwrap(),
        gateway: Gateway::new("gw1").unwrap(),
        lanes: lanes.to_vec(),
        types: TypeAffixes::default(),
        segment_records: 8,
        segment_bytes: 100_000,
        retention,
        limit_bytes: 1 << 40,
        min_free_bytes: 0,
        min_free_percent: 0,
        max_body_bytes: 1 << 20,
        queue_bytes: 1 << 30,
        quarantine_bytes: 1 << 20,
    }
}

struct World {
    directory: tempfile::TempDir,
    retention: Duration,
    outbox: Option<Outbox>,
    runtime: tokio::runtime::Runtime,
    lanes: Vec<ModelLane>,
}

impl World {
    fn new(retention: Duration) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let outbox = Outbox::open(settings(directory.path(), retention), OutboxKey::new([7; 32])).unwrap();
        let lanes = LANES.map(|name| {
            let lane = Lane::new(name).unwrap();
            let numbering = outbox.numbering(&lane).unwrap();
            ModelLane {
                lane,
                records: Vec::new(),
                numbering,
                watermark: 0,
                watermarks: BTreeSet::from([0]),
                ever: 0,
                digests: BTreeMap::new(),
                in_doubt: 0,
            }
        });
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        Self { directory, retention, outbox: Some(outbox), runtime, lanes: lanes.into() }
    }

    fn outbox(&self) -> &Outbox {
        self.outbox.as_ref().unwrap()
    }

    fn open(&mut self) {
        let outbox =
            Outbox::open(settings(self.directory.path(), self.retention), OutboxKey::new([7; 32])).unwrap();
        for alarm in outbox.alarms() {
            assert!(!["store.shortfall", "salvaged", "tail.trimmed"].contains(&alarm.code), "{alarm:?}");
        }
        for model in &mut self.lanes {
            let watermark = outbox.watermark(&model.lane).unwrap().position;
            assert!(model.watermarks.contains(&watermark), "a watermark that was never set: {watermark}");
            model.watermark = watermark;
            if model.tail() == 0 {
                // No record uses the epoch yet that may be lost with its file.
                model.numbering = outbox.numbering(&model.lane).unwrap();
            }
        }
        self.outbox = Some(outbox);
    }

    fn submit(&mut self, lane: usize, messages: Vec<(String, Vec<u8>)>) {
        let outbox = self.outbox().clone();
        let model = &mut self.lanes[lane];
        let retained = outbox.first_retained(&model.lane).unwrap();
        let submissions: Vec<_> = messages
            .iter()
            .map(|(key, body)| Submission {
                lane: model.lane.clone(),
                event_type: EventType::Named("t".into()),
                kind: Kind::Transaction,
                content_type: "text/plain".into(),
                sender: "urn:s".into(),
                key: key.clone(),
                shows_key: true,
                correlation_id: String::new(),
                trace_parent: String::new(),
                body: Body::new(body.clone()),
            })
            .collect();
        let answers = self.runtime.block_on(async {
            let local = tokio::task::LocalSet::new();
            local
                .run_until(async {
                    let tasks: Vec<_> = submissions
                        .into_iter()
                        .map(|submission| {
                            let outbox = outbox.clone();
                            tokio::task::spawn_local(async move { outbox.submit(submission).await.unwrap() })
                        })
                        .collect();
                    let mut answers = Vec::new();
                    for task in tasks {
                        answers.push(task.await.unwrap());
                    }
                    answers
                })
                .await
        });
        let mut answered: Vec<_> = messages.into_iter().zip(answers).collect();
        // A submission that the store must first compare with an old record may be overtaken by others submitted with
        // it; no other may.
        let strange = |key: &str, body: &[u8]| {
            !model.records.iter().any(|record| record.key == key || record.body == body)
        };
        let in_order: Vec<Position> = answered
            .iter()
            .filter(|((key, body), answer)| !answer.repeated && strange(key, body))
            .map(|(_, answer)| answer.position)
            .collect();
        assert!(in_order.is_sorted(), "{in_order:?}");
        answered.sort_by_key(|(_, answer)| (answer.position, answer.repeated));
        for ((key, body), answer) in answered {
            let known = (1u64..).zip(&model.records).find(|(_, r)| r.key == key && r.body == body);
            if answer.repeated {
                // A pruned transaction may be known or not; if known, it must be the first one or its successor.
                let (_, record) = (1u64..).zip(&model.records).find(|(p, _)| *p == answer.position).unwrap();
                assert_eq!((&record.key, &record.body), (&key, &body));
                assert!(
                    answer.id == record.id
                        || answer.position < retained.max(outbox.first_retained(&model.lane).unwrap())
                );
            } else {
                if let Some((position, _)) = known {
                    assert!(
                        position < outbox.first_retained(&model.lane).unwrap(),
                        "{key} was at {position} already"
                    );
                }
                assert_eq!(answer.position, model.tail() + 1);
                model.records.push(Record { id: answer.id, key, body });
            }
        }
        assert_eq!(*outbox.tail(&model.lane).unwrap().borrow(), model.tail());
    }

    /// Continues with a copy of the files at this moment, which nobody has opened yet.
    fn crash(&mut self) {
        let copied = loop {
            let copied = tempfile::tempdir().unwrap();
            if copy(self.directory.path(), copied.path()) {
                break copied;
            }
        };
        drop(self.outbox.take());
        self.directory = copied;
    }

    fn damage_tables(&mut self, which: u8, how: TableDamage) {
        self.crash();
        for (at, path) in tables(self.directory.path()).into_iter().enumerate() {
            if which >> (at % 8) & 1 == 0 {
                continue;
            }
            let mut bytes = std::fs::read(&path).unwrap();
            let place = bytes.len() * usize::from(which) / 256;
            match how {
                TableDamage::Deleted => std::fs::remove_file(&path).unwrap(),
                TableDamage::Cut => std::fs::write(&path, &bytes[..place]).unwrap(),
                TableDamage::Altered => {
                    if let Some(byte) = bytes.get_mut(place) {
                        *byte ^= 0x5a;
                    }
                    std::fs::write(&path, bytes).unwrap();
                }
            }
        }
        self.open();
        for model in &mut self.lanes {
            let outbox = self.outbox.as_ref().unwrap();
            model.in_doubt = model.in_doubt.max(outbox.first_retained(&model.lane).unwrap() - 1);
        }
    }

    fn confirm(&mut self, lane: usize, part: u8) {
        let position = self.lanes[lane].part(part);
        let mut wire = WireReader::new(self.outbox(), &self.lanes[lane].lane);
        let numbered = self.lanes[lane].numbering.wire(position.max(1)).filter(|_| position > 0);
        let point = numbered.map(|(epoch, through)| {
            let chain = wire.value_at(epoch, through).unwrap();
            assert!(chain.is_some() || self.lanes[lane].in_doubt > 0, "every digest is known");
            chain.map(|chain| Through { epoch, through, chain })
        });
        let point = point.flatten();
        self.outbox().confirm(
            &self.lanes[lane].lane,
            Watermark { position, point },
            None,
            Some(Instant::now()),
        );
        self.lanes[lane].watermark = position;
        self.lanes[lane].watermarks.insert(position);
        self.lanes[lane].ever = self.lanes[lane].ever.max(position);
    }

    fn run(&mut self, step: Step) {
        match step {
            Step::Submit { lane, messages } => {
                // Key 0 means no key; the same key with another body is another message.
                let name = |key: u8| {
                    if key == 0 { String::new() } else { format!("K{key}-{}", self.lanes[lane].tail() / 40) }
                };
                let messages = messages.into_iter().map(|(key, body)| {
                    (name(key), vec![b'a' + body; usize::from(body) * 300 + usize::from(key)])
                });
                let messages = messages.collect();
                self.submit(lane, messages);
            }
            Step::Large { lane, bytes } => {
                let tail = self.lanes[lane].tail();
                let body = (0..bytes as u64).map(|n| u8::try_from((n * n + tail) % 253).unwrap()).collect();
                self.submit(lane, vec![(format!("L{tail}"), body)]);
            }
            Step::Confirm { lane, part } => self.confirm(lane, part),
            Step::NewEpoch { lane, part } => {
                // As delivery does it: after a position that the hub has.
                let model = &self.lanes[lane];
                let retained = self.outbox().first_retained(&model.lane).unwrap();
                let after = model.part(part).max(model.numbering.present().base).max(retained - 1);
                let numbering = self.outbox().new_epoch(&model.lane, after, None, Vec::new(), &[]).unwrap();
                assert_eq!(numbering.present().base, after);
                let epoch = numbering.present().epoch;
                assert_eq!(numbering, model.numbering.begun(epoch, None, Vec::new(), after, vec![]));
                self.lanes[lane].numbering = numbering;
            }
            Step::Reopen => {
                self.outbox.take().unwrap().close();
                self.open();
            }
            Step::Crash { lost } => {
                self.crash();
                for name in lost {
                    for path in files_named(self.directory.path(), name) {
                        if path.is_dir() {
                            std::fs::remove_dir_all(path).unwrap();
                        } else {
                            std::fs::remove_file(path).unwrap();
                        }
                    }
                    if name == "marks" {
                        self.lanes.iter_mut().for_each(|model| model.watermarks = BTreeSet::from([0]));
                    }
                }
                self.open();
            }
            Step::DamageTables { which, how } => self.damage_tables(which, how),
            Step::Rest => std::thread::sleep(Duration::from_millis(120)),
        }
    }

    fn check(&mut self) {
        let outbox = self.outbox.as_ref().unwrap();
        for model in &mut self.lanes {
            let lane = &model.lane;
            // Pruning continues meanwhile, so these are read first.
            let retained_before = outbox.first_retained(lane).unwrap();
            let counts = outbox.snapshot().lanes.into_iter().find(|(l, _)| l == lane).unwrap().1;
            assert_eq!(counts.accepted, model.tail());
            assert_eq!(counts.accepted, counts.confirmed + counts.waiting + counts.damaged);
            assert_eq!(counts.confirmed, model.watermark);
            let pruned = |retained: Position| (retained - 1).saturating_sub(model.watermark);
            assert!(
                (pruned(retained_before)..=pruned(outbox.first_retained(lane).unwrap()))
                    .contains(&counts.damaged)
            );
            assert!(retained_before - 1 <= model.ever, "pruned what was never confirmed");
            assert_eq!(outbox.numbering(lane).unwrap(), model.numbering);

            let name = outbox.lane_name(lane);
            let mut wire = WireReader::new(outbox, lane);
            let mut chain = ChainValue([0; 32]);
            let mut read = Vec::new();
            let mut from = retained_before;
            loop {
                let numbering = outbox.numbering(lane).unwrap();
                let start = numbering.at(from).unwrap();
                match wire.read_in(start, from, 5, 20_000) {
                    // Only where what was pruned has taken its digests with it.
                    Err(ReadError::Unproven { position, .. }) if model.in_doubt > 0 => {
                        assert!(position > model.in_doubt);
                        from = model.tail() + 1;
                    }
                    Ok(part) if part.is_empty() => break,
                    Ok(mut part) => {
                        // What a later epoch names is read there.
                        part.retain(|at| numbering.at(at.position).is_some_and(|of| of.epoch == start.epoch));
                        from = part.last().unwrap().position + 1;
                        read.extend(part);
                    }
                    Err(ReadError::Gone { position, .. }) => {
                        assert!(position < outbox.first_retained(lane).unwrap(), "{position} is gone");
                        from = outbox.first_retained(lane).unwrap();
                        read.clear();
                    }
                    Err(error) => panic!("{error}"),
                }
            }
            assert_eq!(from, model.tail() + 1);
            for (index, stored) in read.iter().enumerate() {
                let record = &model.records[usize::try_from(stored.position).unwrap() - 1];
                assert_eq!(stored.transaction.id, record.id);
                assert_eq!(stored.transaction.body.as_bytes(), record.body);
                assert_eq!(Some((stored.epoch, stored.sequence)), model.numbering.wire(stored.position));
                if stored.sequence == 1 {
                    assert_eq!(stored.previous, ChainValue::first(&name, stored.epoch, None));
                } else if index > 0 {
                    assert_eq!(stored.previous, chain, "position {}", stored.position);
                }
                chain = stored.previous.next(stored.sequence, stored.transaction.digest(&name));
                assert_eq!(stored.chain, chain, "position {}", stored.position);
                model.digests.insert(stored.position, stored.transaction.digest(&name));
            }
            check_positions(outbox, lane);
            // Pruned ones too, whatever was read when.
            let all = outbox.digests(lane, 1, usize::MAX).unwrap();
            assert_eq!(all.len() as u64, model.tail());
            for (position, digest) in &model.digests {
                let found = all[usize::try_from(*position).unwrap() - 1];
                let unknown = found.is_none() && *position <= model.in_doubt;
                assert!(unknown || found == Some(*digest), "position {position}: {found:?}");
            }
        }
    }
}

/// The chain over positions proves all that is kept.
fn check_positions(outbox: &Outbox, lane: &Lane) {
    let tail = *outbox.tail(lane).unwrap().borrow();
    let mut next = outbox.first_retained(lane).unwrap();
    let mut before = (next == 1).then(|| outbox.first_of_positions(lane).unwrap());
    while next <= tail {
        match outbox.chained(lane, next, usize::MAX, usize::MAX) {
            Ok(records) => {
                for record in &records {
                    assert!(before.is_none_or(|b| b == record.previous), "position {}", record.position);
                    assert_eq!(record.previous.next(record.position, record.digest), record.chain);
                    before = Some(record.chain);
                    next = record.position + 1;
                }
            }
            // Maintenance has pruned them meanwhile.
            Err(ReadError::Gone { position, .. }) => {
                next = outbox.first_retained(lane).unwrap();
                assert!(position < next, "{position} is gone");
                before = None;
            }
            Err(error) => panic!("{error}"),
        }
    }
    if let Some(end) = before {
        assert_eq!(Some(end), outbox.chain_of_positions(lane));
    }
}

/// Copies a directory. `false`: files vanished meanwhile, so the copy may have parts of what maintenance and the segment worker
/// remove as a whole.
fn copy(from: &Path, to: &Path) -> bool {
    std::fs::create_dir_all(to).unwrap();
    let whole = |done: std::io::Result<bool>| {
        done.unwrap_or_else(|error| {
            assert_eq!(error.kind(), std::io::ErrorKind::NotFound, "{error}");
            false
        })
    };
    whole(std::fs::read_dir(from).map(|entries| {
        entries.map(Result::unwrap).all(|entry| {
            let (path, copied) = (entry.path(), to.join(entry.file_name()));
            if entry.file_type().unwrap().is_dir() {
                copy(&path, &copied)
            } else {
                whole(std::fs::copy(path, copied).map(|_| true))
            }
        })
    }))
}

/// The digest tables below a directory, in the order of their paths.
fn tables(directory: &Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(tables(&path));
        } else if path.extension().is_some_and(|extension| extension == "digests") {
            found.push(path);
        }
    }
    found.sort();
    found
}

fn files_named(directory: &Path, name: &str) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.file_name().unwrap() == name {
            found.push(path);
        } else if path.is_dir() {
            found.extend(files_named(&path, name));
        }
    }
    found
}

proptest! {
    #![proptest_config(ProptestConfig { max_shrink_iters: 60, ..crate::seeds::kept_of(24) })]

    #[test]
    fn the_outbox_is_a_list_that_survives(steps in steps(), prunes in any::<bool>()) {
        let retention = if prunes { Duration::ZERO } else { Duration::from_secs(3600) };
        let mut world = World::new(retention);
        for step in steps {
            world.run(step);
            world.check();
        }
        world.run(Step::Reopen);
        world.check();
    }
}
