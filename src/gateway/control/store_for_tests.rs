//! A small real outbox in a temporary directory, and a daemon's control socket over it, for tests.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use pgw_bundle::keys::{Identity, Recipient};
use pgw_core::chain::Through;
use pgw_core::transaction::{Body, Gateway, Kind, Lane, Position, Practice};
use pgw_host::control::Control;
use pgw_outbox::{
    self as outbox, EventType, LaneSettings, Outbox, OutboxKey, Stored, Submission, TypeAffixes, Watermark,
};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::control::ControlConfig;
use crate::control::server::Commands;
use crate::ingest::{Budget, StatusSource};
use crate::listing;
use crate::wire_chain::WireReader;

/// The first lane; the second is `letters`.
pub(crate) fn lane() -> Lane {
    Lane::new("clinical").unwrap()
}

fn settings(directory: &Path) -> outbox::OutboxSettings {
    outbox::OutboxSettings {
        directory: directory.join("outbox"),
        practice: Practice::new("B86022").unwrap(),
        gateway: Gateway::new("gw1").unwrap(),
        lanes: ["clinical", "letters"]
            .map(|lane| LaneSettings { lane: Lane::new(lane).unwrap(), urgent: false })
            .into(),
        types: TypeAffixes::default(),
        segment_records: 1000,
        segment_bytes: 1 << 20,
        retention: Duration::from_secs(3600),
        limit_bytes: 1 << 30,
        min_free_bytes: 0,
        min_free_percent: 0,
        max_body_bytes: 200_000,
        queue_bytes: 1 << 20,
        quarantine_bytes: 1 << 20,
    }
}

fn open(settings: outbox::OutboxSettings) -> Outbox {
    Outbox::open(settings, OutboxKey::new([7; 32])).unwrap()
}

/// An outbox of two lanes, and its directory.
#[derive(Clone)]
pub(crate) struct Store {
    pub(crate) outbox: Outbox,
    directory: Arc<tempfile::TempDir>,
}

impl Store {
    fn of(change: impl FnOnce(&mut outbox::OutboxSettings)) -> Self {
        let directory = Arc::new(tempfile::tempdir().unwrap());
        let mut settings = settings(directory.path());
        change(&mut settings);
        Self { outbox: open(settings), directory }
    }

    pub(crate) fn empty() -> Self {
        Self::of(|_| ())
    }

    /// Requires more free space on the disk than there is.
    pub(crate) fn full() -> Self {
        Self::of(|settings| settings.min_free_bytes = u64::MAX / 2)
    }

    /// Its quarantine has no room for anything.
    pub(crate) fn without_quarantine() -> Self {
        Self::of(|settings| settings.quarantine_bytes = 0)
    }

    /// Transactions of type `t` and media type `c/d` in the first lane, `body 0`, `body 1` and so on.
    pub(crate) fn with(count: u64) -> Self {
        let store = Self::empty();
        store.fill(count);
        store
    }

    /// The same with the records of these positions lost: each segment has `segment_records`, and the segments with
    /// these positions are deleted.
    pub(crate) fn with_lost(count: u64, segment_records: u64, lost: &[Position]) -> Self {
        Self::losing(count, segment_records, lost, false)
    }

    /// The same with their digests lost as well.
    pub(crate) fn with_lost_digests(count: u64, segment_records: u64, lost: &[Position]) -> Self {
        Self::losing(count, segment_records, lost, true)
    }

    fn losing(count: u64, segment_records: u64, lost: &[Position], tables: bool) -> Self {
        let store = Self::of(|settings| settings.segment_records = segment_records);
        // One by one: a group lies in one segment.
        for _ in 0..count {
            store.fill(1);
        }
        let Self { outbox, directory } = store;
        outbox.close();
        let mut segments: Vec<PathBuf> = std::fs::read_dir(directory.path().join("outbox/segments/clinical"))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.is_dir())
            .collect();
        segments.sort();
        for position in lost {
            let index = usize::try_from((position - 1) / segment_records).unwrap();
            let _ = std::fs::remove_dir_all(&segments[index]);
            if tables {
                let base = index as u64 * segment_records + 1;
                let table = segments[index].with_file_name(format!("{base:020}.digests"));
                std::fs::remove_file(table).unwrap();
            }
        }
        let mut settings = settings(directory.path());
        settings.segment_records = segment_records;
        Self { outbox: open(settings), directory }
    }

    fn fill(&self, count: u64) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            // In the order of the writer's queue, many in one group.
            let mut under_way = Vec::new();
            let before = self.count();
            for n in before..before + count {
                let submission = Submission {
                    lane: lane(),
                    event_type: EventType::Given("t".into()),
                    kind: Kind::Transaction,
                    content_type: "c/d".into(),
                    sender: "urn:x".into(),
                    key: String::new(),
                    shows_key: false,
                    correlation_id: String::new(),
                    trace_parent: String::new(),
                    body: Body::new(format!("body {n}").into_bytes()),
                };
                let mut answer = Box::pin(self.outbox.submit(submission));
                let mut context = Context::from_waker(Waker::noop());
                // A quick writer has answered already.
                match answer.as_mut().poll(&mut context) {
                    Poll::Pending => under_way.push(answer),
                    Poll::Ready(accepted) => drop(accepted.unwrap()),
                }
            }
            for answer in under_way {
                answer.await.unwrap();
            }
        });
    }

    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    pub(crate) fn record(&self, position: Position) -> Stored {
        self.outbox.read(&lane(), position, 1, 0).unwrap().remove(0)
    }

    /// How many are in the first lane.
    pub(crate) fn count(&self) -> u64 {
        listing::tail(&self.outbox, &lane())
    }

    /// Confirms as a hub's receipt does.
    pub(crate) fn confirm(&self, position: Position) {
        let (epoch, through) = self.outbox.numbering(&lane()).unwrap().wire(position).unwrap();
        let chain = WireReader::new(&self.outbox, &lane()).value_at(epoch, through).unwrap().unwrap();
        let point = Some(Through { epoch, through, chain });
        self.outbox.confirm(&lane(), Watermark { position, point }, None, None);
        let began = Instant::now();
        while listing::confirmed(&self.outbox, &lane()) < position {
            assert!(began.elapsed() < Duration::from_secs(20), "the watermark does not move");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// The hub's key in the tests.
pub(crate) fn hub_identity() -> Identity {
    Identity::from_file_text("AGE-SECRET-KEY-1EGTZVFFV20835NWYV6270LXYVK2VKNX2MMDKWYKLMGR48UAWX40Q2P2LM0")
        .unwrap()
}

pub(crate) fn config(socket: PathBuf, max_body_bytes: u64, recipients: Vec<Recipient>) -> ControlConfig {
    ControlConfig {
        socket,
        practice: Practice::new("B86022").unwrap(),
        gateway: Gateway::new("gw1").unwrap(),
        max_body_bytes,
        recipients,
        lane_hubs: std::collections::BTreeMap::new(),
        signing_key_file: PathBuf::from("no-signing.key"),
    }
}

/// A daemon's control socket, on its own runtime.
pub(crate) struct Daemon {
    pub(crate) store: Store,
    pub(crate) socket: PathBuf,
    pub(crate) runtime: tokio::runtime::Runtime,
    stop: watch::Sender<bool>,
    task: Option<JoinHandle<()>>,
}

impl Daemon {
    /// Bodies have at most 1,000 bytes.
    pub(crate) fn start(store: Store, status: serde_json::Value) -> Self {
        Self::with_limit(store, status, 1000)
    }

    pub(crate) fn with_limit(store: Store, status: serde_json::Value, max_body_bytes: u64) -> Self {
        let socket = store.path().join("control.sock");
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let (stop, stopped) = watch::channel(false);
        let config = config(socket.clone(), max_body_bytes, vec![hub_identity().recipient()]);
        let guard = runtime.enter();
        let control = Control::listen(&socket).unwrap();
        drop(guard);
        let status: StatusSource = Arc::new(move || status.clone());
        let budget = Budget::new(1 << 20);
        let commands = Commands::new(config, store.outbox.clone(), status, Arc::default(), budget, None);
        let task = Some(runtime.spawn(control.serve(Arc::new(commands), stopped)));
        Self { store, socket, runtime, stop, task }
    }

    pub(crate) fn stop(mut self) {
        self.stop.send(true).unwrap();
        let task = self.task.take().unwrap();
        self.runtime
            .block_on(async { tokio::time::timeout(Duration::from_secs(20), task).await })
            .unwrap()
            .unwrap();
    }
}
