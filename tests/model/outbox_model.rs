//! The real outbox against a model that is a list: whatever is submitted, confirmed, renumbered, closed, crashed and
//! reopened, in any order, reads and counts match the model.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use pgw_core::chain::ChainValue;
use pgw_core::delivery::Numbering;
use pgw_core::transaction::{Body, Gateway, Kind, Lane, Position, Practice, TransactionId};
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
    /// Let maintenance do its work.
    Rest,
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
    /// Everything through here was accepted before the last new epoch began.
    older: Position,
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
                older: 0,
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
            Step::Confirm { lane, part } => {
                let position = self.lanes[lane].part(part);
                let Some(chain) = self.outbox().chain_at(&self.lanes[lane].lane, position) else { return };
                self.outbox().confirm(
                    &self.lanes[lane].lane,
                    Watermark { position, chain },
                    None,
                    Some(Instant::now()),
                );
                self.lanes[lane].watermark = position;
                self.lanes[lane].watermarks.insert(position);
                self.lanes[lane].ever = self.lanes[lane].ever.max(position);
            }
            Step::NewEpoch { lane, part } => {
                // As delivery does it: after a position that the hub has.
                let model = &self.lanes[lane];
                let retained = self.outbox().first_retained(&model.lane).unwrap();
                let after = model.part(part).max(model.numbering.current().base).max(retained - 1);
                let numbering = self.outbox().new_epoch(&model.lane, after).unwrap();
                assert_eq!(numbering.current().base, after);
                assert_eq!(numbering, model.numbering.renumbered(numbering.current().epoch, after));
                self.lanes[lane].numbering = numbering;
                self.lanes[lane].older = self.lanes[lane].tail();
            }
            Step::Reopen => {
                self.outbox.take().unwrap().close();
                self.open();
            }
            Step::Crash { lost } => {
                let copied = tempfile::tempdir().unwrap();
                copy(self.directory.path(), copied.path());
                drop(self.outbox.take());
                self.directory = copied;
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
            Step::Rest => std::thread::sleep(Duration::from_millis(120)),
        }
    }

    fn check(&self) {
        let outbox = self.outbox();
        for model in &self.lanes {
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
            // Epochs whose chain can still be computed from their base.
            let mut chain = ChainValue([0; 32]);
            let mut read = Vec::new();
            let mut from = retained_before;
            loop {
                match outbox.read(lane, from, 5, 20_000) {
                    Ok(part) if part.is_empty() => break,
                    Ok(part) => {
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
                assert_eq!((stored.epoch, stored.sequence), model.numbering.wire(stored.position));
                if stored.sequence == 1 {
                    assert_eq!(stored.previous, ChainValue::first(&name, stored.epoch));
                } else if index > 0 {
                    // The value of a record that was numbered again follows from every record before it in its epoch: once one
                    // of them is pruned, it cannot be computed any more.
                    let base = model.numbering.at(stored.position).base;
                    let computable = outbox.first_retained(lane).unwrap() <= base + 1;
                    assert!(
                        stored.previous == chain || (!computable && stored.position <= model.older + 1),
                        "position {}: {} instead of {chain}",
                        stored.position,
                        stored.previous
                    );
                }
                chain = stored.previous.next(stored.sequence, stored.transaction.digest(&name));
                assert_eq!(stored.chain, chain, "position {}", stored.position);
            }
        }
    }
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        // Maintenance and the segment worker continue: files that vanish during the copy are those that they removed.
        if entry.file_type().unwrap().is_dir() {
            if entry.path().is_dir() {
                copy(&entry.path(), &to.join(entry.file_name()));
            }
        } else if let Err(error) = std::fs::copy(entry.path(), to.join(entry.file_name())) {
            assert_eq!(error.kind(), std::io::ErrorKind::NotFound, "{error}");
        }
    }
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
