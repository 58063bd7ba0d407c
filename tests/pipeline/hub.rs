//! The hub against a real Mosquitto over mutual TLS; the gateway is a plain rumqttc publisher that may misbehave.

use std::collections::VecDeque;
use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use pgw_core::transaction::Hub;
use pgw_core::wire::presence::{Probe, Status};
use pgw_core::wire::receipt::{Gap, Position, Receipt};
use pgw_core::wire::signature::{PROPERTY, PublicKey, SigningKey, Word};
use pgw_core::wire::topic::{Root, Topic};
use pgw_core::wire::{SCHEMA, from_json, to_json};
use pgw_hub::gateways::current::CurrentGateways;
use pgw_hub::gateways::file::edit;
use pgw_hub::store::ndjson::NdjsonStore;
use pgw_hub::store::{Entry, LaneName, Store};
use pgw_hub::{HubSettings, run};
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{Packet, Publish, PublishProperties};
use rumqttc::v5::{AsyncClient, Event, MqttOptions};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::harness::{Certificates, Mosquitto, eventually};
use crate::hub_kit::{Sender, lane, lane_of, listed, said};

const LIMIT: Duration = Duration::from_secs(20);

struct RunningHub {
    stop: watch::Sender<bool>,
    live: watch::Receiver<bool>,
    task: JoinHandle<Result<(), run::HubError>>,
}

impl RunningHub {
    fn start(settings: &HubSettings) -> Self {
        let (stop, stopped) = watch::channel(false);
        let (live_sender, live) = watch::channel(false);
        let gateways = CurrentGateways::load(&settings.gateways_file).unwrap();
        let task = tokio::spawn(run::run(settings.clone(), gateways, stopped, live_sender));
        Self { stop, live, task }
    }

    async fn live(&mut self) {
        tokio::time::timeout(LIMIT, self.live.wait_for(|live| *live))
            .await
            .expect("the hub is live")
            .unwrap();
    }

    async fn stop(self) {
        self.stop.send_replace(true);
        tokio::time::timeout(LIMIT, self.task).await.expect("the hub stops").unwrap().unwrap();
    }
}

struct Fleet {
    _certificates: Certificates,
    broker: Mosquitto,
    settings: HubSettings,
    key: PublicKey,
    directory: tempfile::TempDir,
}

impl Fleet {
    fn new() -> Self {
        let certificates = Certificates::new();
        let broker = Mosquitto::start(&certificates);
        let directory = tempfile::tempdir().unwrap();
        let document = SigningKey::generate().unwrap();
        let key = SigningKey::from_pkcs8(&document).unwrap().public();
        let signing_key_file = directory.path().join("signing.key");
        fs::write(&signing_key_file, document).unwrap();
        let client = certificates.client("hub1");
        let settings = HubSettings {
            hub: Hub::new("hub1").unwrap(),
            directory: directory.path().join("store"),
            broker_host: "localhost".into(),
            broker_port: broker.port(),
            ca_file: certificates.ca(),
            certificate_file: client.certificate,
            key_file: client.key,
            signing_key_file,
            control_socket: directory.path().join("control.sock"),
            carry_key_file: directory.path().join("carry.key"),
            gateways_file: directory.path().join("gateways.toml"),
            keep_alive: Duration::from_secs(5),
            connect_timeout: Duration::from_secs(5),
            reconnect_base: Duration::from_millis(50),
            reconnect_cap: Duration::from_millis(500),
            receive_maximum: 1_000,
            maximum_packet_bytes: 24 << 20,
            group_transactions: 1_024,
            group_bytes: 4 << 20,
            rotate_bytes: 1 << 30,
        };
        edit(&settings.gateways_file, directory.path(), |list| {
            for (name, gateway) in listed(&[&lane("any"), &lane_of("A81001", "gw2", "any")]).gateways {
                list.add(&name, gateway.clone(), gateway.keys[0].key, 0)?;
            }
            Ok(())
        })
        .unwrap();
        Self { _certificates: certificates, broker, settings, key, directory }
    }

    fn stored(&self, lane: &LaneName) -> Vec<(u64, String)> {
        stored(&self.settings.directory, lane)
    }
}

fn stored(directory: &Path, lane: &LaneName) -> Vec<(u64, String)> {
    let path = directory
        .join(lane.practice.as_str())
        .join(lane.gateway.as_str())
        .join(format!("{}.ndjson", lane.lane));
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
        .filter(|event| event.get("specversion").is_some())
        .map(|event| {
            (event["sequence"].as_str().unwrap().parse().unwrap(), event["id"].as_str().unwrap().to_owned())
        })
        .collect()
}

/// A publisher that is not a gateway: it sends what the test wants, and collects the answers.
struct Peer {
    client: AsyncClient,
    inbox: Arc<Mutex<VecDeque<Publish>>>,
    task: JoinHandle<()>,
    key: PublicKey,
    /// What it sends is to be retained.
    retains: bool,
}

impl Peer {
    async fn connect(fleet: &Fleet, name: &str) -> Self {
        let mut options = MqttOptions::new(name, "127.0.0.1", fleet.broker.plain_port());
        options.set_max_packet_size(Some(1 << 20));
        let (client, mut events) = AsyncClient::new(options, 1_000);
        for filter in ["pgw/v1/+/+/receipt/#", "pgw/v1/+/+/gap/#", "pgw/v1/+/+/probe/reply", "pgw/v1/hub/#"] {
            client.subscribe(filter, QoS::AtLeastOnce).await.unwrap();
        }
        let inbox = Arc::new(Mutex::new(VecDeque::new()));
        let (shared, mut acks) = (inbox.clone(), 0);
        let (ready_sender, mut ready) = watch::channel(false);
        let task = tokio::spawn(async move {
            while let Ok(event) = events.poll().await {
                match event {
                    Event::Incoming(Packet::Publish(publish)) => shared.lock().unwrap().push_back(publish),
                    Event::Incoming(Packet::SubAck(_)) => {
                        acks += 1;
                        ready_sender.send_replace(acks == 4);
                    }
                    _ => {}
                }
            }
        });
        ready.wait_for(|ready| *ready).await.unwrap();
        Self { client, inbox, task, key: fleet.key, retains: false }
    }

    async fn send(&self, entry: &Entry) {
        self.send_as(&entry.lane, entry).await;
    }

    /// On a topic for another lane than the envelope's.
    async fn send_as(&self, lane: &LaneName, entry: &Entry) {
        let (content_type, user_properties) = entry.envelope.clone().into_properties();
        let properties = PublishProperties {
            content_type: Some(content_type),
            user_properties,
            ..PublishProperties::default()
        };
        let topic = Root::new(&lane.practice, &lane.gateway).transactions(&lane.lane);
        let body = entry.body.clone().unwrap();
        self.client
            .publish_with_properties(topic, QoS::AtLeastOnce, self.retains, body, properties)
            .await
            .unwrap();
    }

    /// As a gateway does at each connect, and at each new incarnation of the hub.
    async fn greet(&self, sender: &Sender) {
        let nonce = uuid::Uuid::new_v4().simple().to_string();
        self.ask(sender, &nonce).await;
        self.wait("an answer", |on, publish| {
            let receipt: Receipt = on.contains("/receipt/").then(|| from_json(&publish.payload).unwrap())?;
            (receipt.nonce.as_deref() == Some(&nonce)).then_some(())
        })
        .await;
    }

    async fn say(&self, publish: Publish) {
        let (topic, properties) = (String::from_utf8(publish.topic.to_vec()).unwrap(), publish.properties);
        let (payload, properties) = (publish.payload, properties.unwrap());
        self.client
            .publish_with_properties(topic, QoS::AtLeastOnce, self.retains, payload, properties)
            .await
            .unwrap();
    }

    async fn raw(&self, topic: &str, payload: &[u8]) {
        self.client.publish(topic, QoS::AtLeastOnce, false, payload.to_vec()).await.unwrap();
    }

    async fn ask(&self, sender: &Sender, nonce: &str) {
        let position = Position {
            schema: SCHEMA,
            session: 1,
            epoch: sender.epoch,
            tail: sender.sequence,
            point: None,
            nonce: nonce.into(),
        };
        let topic = Root::new(&sender.lane.practice, &sender.lane.gateway).position(&sender.lane.lane);
        self.say(said(&sender.key, Word::Position, &topic, to_json(&position))).await;
    }

    /// Waits for a message below `pgw/v1/` for which `wanted` holds; drops those before it.
    async fn wait<T>(&self, what: &str, wanted: impl Fn(&str, &Publish) -> Option<T>) -> T {
        eventually(what, LIMIT, || {
            while let Some(publish) = self.inbox.lock().unwrap().pop_front() {
                let topic = String::from_utf8(publish.topic.to_vec()).unwrap();
                let properties = publish.properties.clone().unwrap_or_default().user_properties;
                let signature = properties.iter().find(|(name, _)| name == PROPERTY).map(|(_, v)| v.as_str());
                let word = Topic::parse(&topic).unwrap().word().unwrap();
                self.key.verify(word, &topic, &publish.payload, signature).expect("signed by the hub");
                if let Some(found) = wanted(&topic, &publish) {
                    return Some(found);
                }
            }
            None
        })
        .await
    }

    async fn receipt(&self, lane: &LaneName, through: u64) -> Receipt {
        let topic = Root::new(&lane.practice, &lane.gateway).receipt(&Hub::new("hub1").unwrap(), &lane.lane);
        self.wait(&format!("a receipt through {through} of {lane}"), |on, publish| {
            let receipt: Receipt = (on == topic).then(|| from_json(&publish.payload).unwrap())?;
            (receipt.end.is_some_and(|end| end.through == through)).then_some(receipt)
        })
        .await
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn repeats_gaps_and_wrong_chains_leave_a_store_that_is_whole_and_in_order() {
    let fleet = Fleet::new();
    let mut hub = RunningHub::start(&fleet.settings);
    hub.live().await;
    let peer = Peer::connect(&fleet, "peer").await;
    let mut sender = Sender::new(&lane("clinical"), 1);
    let all = sender.take(60);

    peer.greet(&sender).await;

    for entry in &all[..20] {
        peer.send(entry).await;
    }
    let receipt = peer.receipt(&sender.lane, 20).await;
    assert_eq!(receipt.end.map(|end| end.chain), Some(all[19].envelope.chain));
    assert_eq!(receipt.nonce, None);

    // Repeated: not stored again, and the receipt comes again.
    for entry in &all[10..20] {
        peer.send(entry).await;
    }
    let again = peer.receipt(&sender.lane, 20).await;
    assert_eq!(again.incarnation, receipt.incarnation);
    assert!(again.counter > receipt.counter);

    // A gap: one notice for this number and round, another for the next round.
    for entry in &all[25..30] {
        peer.send(entry).await;
    }
    let gap_topic = Root::new(&sender.lane.practice, &sender.lane.gateway)
        .gap(&Hub::new("hub1").unwrap(), &sender.lane.lane);
    let gaps = |round: u64| {
        let gap_topic = gap_topic.clone();
        move |on: &str, publish: &Publish| {
            let gap: Gap = (on == gap_topic).then(|| from_json(&publish.payload).unwrap())?;
            assert_eq!((gap.expected, gap.round), (21, round));
            Some(())
        }
    };
    peer.wait("a gap notice", gaps(1)).await;
    let mut later = all[26].clone();
    later.envelope.round = 2;
    peer.send(&later).await;
    peer.wait("a notice of the next round, and no second one of the first", gaps(2)).await;

    // A wrong chain value, and an envelope that disagrees with its topic: refused; the lane and others continue.
    let mut forged = all[20].clone();
    forged.body = Some(b"forged"[..].into());
    peer.send(&forged).await;
    peer.send_as(&lane("other"), &all[20]).await;
    let mut other = Sender::new(&lane_of("A81001", "gw2", "clinical"), 5);
    peer.greet(&other).await;
    for entry in other.take(3) {
        peer.send(&entry).await;
    }
    peer.receipt(&other.lane, 3).await;
    assert_eq!(fleet.stored(&sender.lane).len(), 20);

    for entry in &all[20..] {
        peer.send(entry).await;
    }
    peer.receipt(&sender.lane, 60).await;
    let expected: Vec<_> = all.iter().map(|e| (e.envelope.sequence, e.envelope.id().to_string())).collect();
    assert_eq!(fleet.stored(&sender.lane), expected);
    assert_eq!(fleet.stored(&lane("other")), []);
    hub.stop().await;
    let store = NdjsonStore::open(&fleet.settings.directory, 1 << 30).unwrap();
    assert_eq!(store.watermarks().len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_from_one_gateway_hurts_nobody() {
    let fleet = Fleet::new();
    let mut hub = RunningHub::start(&fleet.settings);
    hub.live().await;
    let peer = Peer::connect(&fleet, "peer").await;
    for (topic, payload) in [
        ("pgw/v1/B86022/gw9/txn/clinical", &b"no properties"[..]),
        ("pgw/v1/B86022/gw9/txn/..", b""),
        ("pgw/v1/b/gw9/txn/clinical", b""),
        ("pgw/v1/B86022/gw9/position/clinical", b"{"),
        ("pgw/v1/B86022/gw9/position/clinical", b"{\"schema\":9}"),
        ("pgw/v1/B86022/gw9/status", b"\xff\xfe"),
        ("pgw/v1/B86022/gw9/health", b"[]"),
        ("pgw/v1/B86022/gw9/health", &[b'x'; 100_000]),
    ] {
        peer.raw(topic, payload).await;
    }
    let mut good = Sender::new(&lane("clinical"), 1);
    peer.greet(&good).await;
    for entry in good.take(5) {
        peer.send(&entry).await;
    }
    peer.receipt(&good.lane, 5).await;
    peer.raw("pgw/v1/B86022/gw1/probe", br#"{"schema":1,"id":"unsigned","time":"t"}"#).await;
    let probe = br#"{"schema":1,"id":"signed","time":"t"}"#.to_vec();
    peer.say(said(&good.key, Word::Probe, "pgw/v1/B86022/gw1/probe", probe)).await;
    // The first answer is to the signed one.
    peer.wait("the answer to a probe", |on, publish| {
        (on == "pgw/v1/B86022/gw1/probe/reply").then(|| {
            let reply: Probe = from_json(&publish.payload).unwrap();
            assert_eq!(reply.id, "signed");
        })
    })
    .await;
    hub.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_gateway_has_the_broker_retain_does_not_come_with_each_connection_of_the_hub() {
    let fleet = Fleet::new();
    let mut peer = Peer::connect(&fleet, "peer").await;
    let mut sender = Sender::new(&lane("clinical"), 1);
    peer.retains = true;
    peer.ask(&sender, "retained").await;
    for entry in sender.take(1) {
        peer.send(&entry).await;
    }
    peer.retains = false;
    // The broker handles what one client sends in order.
    peer.raw("pgw/v1/hub/echo", b"").await;
    eventually("the broker to have it", LIMIT, || peer.inbox.lock().unwrap().pop_front()).await;
    let mut hub = RunningHub::start(&fleet.settings);
    hub.live().await;
    peer.ask(&sender, "sent").await;
    let answer = peer
        .wait("an answer", |on, publish| {
            let receipt: Receipt = on.contains("/receipt/").then(|| from_json(&publish.payload).unwrap())?;
            receipt.nonce.is_some().then_some(receipt)
        })
        .await;
    assert_eq!((answer.nonce.as_deref(), answer.end), (Some("sent"), None));
    hub.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_position_is_answered_with_its_nonce_and_goes_back_after_a_restore() {
    let fleet = Fleet::new();
    let mut hub = RunningHub::start(&fleet.settings);
    hub.live().await;
    let peer = Peer::connect(&fleet, "peer").await;
    let mut sender = Sender::new(&lane("clinical"), 1);
    let answered = |nonce: &'static str| {
        move |on: &str, publish: &Publish| {
            let receipt: Receipt = on.contains("/receipt/").then(|| from_json(&publish.payload).unwrap())?;
            (receipt.nonce.as_deref() == Some(nonce)).then_some(receipt)
        }
    };
    peer.ask(&sender, "aa").await;
    let unknown = peer.wait("an answer", answered("aa")).await;
    assert_eq!(unknown.end, None);

    let first = sender.take(5);
    for entry in &first {
        peer.send(entry).await;
    }
    let before = peer.receipt(&sender.lane, 5).await;
    hub.stop().await;
    let backup = fleet.directory.path().join("backup");
    copy(&fleet.settings.directory, &backup);

    let mut hub = RunningHub::start(&fleet.settings);
    hub.live().await;
    peer.greet(&sender).await;
    let second = sender.take(5);
    for entry in &second {
        peer.send(entry).await;
    }
    let after = peer.receipt(&sender.lane, 10).await;
    assert_ne!(before.incarnation, after.incarnation, "each start is a new incarnation");
    hub.stop().await;

    // The older copy is restored: the answer goes back with it, and what is sent again is accepted.
    fs::remove_dir_all(&fleet.settings.directory).unwrap();
    copy(&backup, &fleet.settings.directory);
    let mut hub = RunningHub::start(&fleet.settings);
    hub.live().await;
    peer.ask(&sender, "bb").await;
    let back = peer.wait("an answer", answered("bb")).await;
    assert_eq!(back.end.map(|end| (end.through, end.chain)), Some((5, first[4].envelope.chain)));
    for entry in &second {
        peer.send(entry).await;
    }
    peer.receipt(&sender.lane, 10).await;
    hub.stop().await;
    let sequences: Vec<_> = fleet.stored(&sender.lane).into_iter().map(|(sequence, _)| sequence).collect();
    assert_eq!(sequences, (1..=10).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_fork_each_id_is_stored_once() {
    let fleet = Fleet::new();
    let mut hub = RunningHub::start(&fleet.settings);
    hub.live().await;
    let peer = Peer::connect(&fleet, "peer").await;
    let mut old = Sender::new(&lane("clinical"), 1);
    peer.greet(&old).await;
    let first = old.take(10);
    for entry in &first {
        peer.send(entry).await;
    }
    peer.receipt(&old.lane, 10).await;
    // The gateway numbers 8, 9, 10 and two new ones again.
    let mut new = Sender::after(&old, 2);
    for entry in &first[7..] {
        peer.send(&new.again(entry)).await;
    }
    for entry in new.take(2) {
        peer.send(&entry).await;
    }
    let receipt = peer.receipt(&old.lane, 5).await;
    assert_eq!(receipt.end, Some(new.end()));
    let ids: Vec<_> = fleet.stored(&old.lane).into_iter().map(|(_, id)| id).collect();
    assert_eq!(ids.len(), 12);
    assert_eq!(ids.iter().collect::<std::collections::HashSet<_>>().len(), 12);
    hub.stop().await;
    let store = NdjsonStore::open(&fleet.settings.directory, 1 << 30).unwrap();
    let watermarks: Vec<_> =
        store.watermarks_of(&old.lane).iter().map(|watermark| watermark.through).collect();
    assert_eq!(watermarks, [10, 5]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_forgets_everything_gets_all_receipts_and_the_status_again() {
    let mut fleet = Fleet::new();
    let mut hub = RunningHub::start(&fleet.settings);
    hub.live().await;
    let peer = Peer::connect(&fleet, "peer").await;
    let (mut one, mut two) = (Sender::new(&lane("clinical"), 1), Sender::new(&lane("urgent"), 1));
    peer.greet(&one).await;
    peer.greet(&two).await;
    for entry in one.take(3).iter().chain(&two.take(2)) {
        peer.send(entry).await;
    }
    peer.receipt(&one.lane, 3).await;
    peer.receipt(&two.lane, 2).await;
    let status = |on: &str, publish: &Publish| {
        let status: Status =
            (on == "pgw/v1/hub/hub1/status").then(|| from_json(&publish.payload).unwrap())?;
        (status.up == 1).then_some(status.session)
    };
    drop(peer);
    fleet.broker.restart();
    hub.live().await;
    let peer = Peer::connect(&fleet, "peer2").await;
    // Retained again at the new broker, in either order.
    // An answer that was lost with the connection is sent again: every receipt carries the last nonce.
    let mut missing = vec!["receipt/hub1/clinical", "receipt/hub1/urgent", "status"];
    let mut session = 0;
    while !missing.is_empty() {
        let (topic, found) =
            peer.wait("what was retained", |on, publish| Some((on.to_owned(), status(on, publish)))).await;
        missing.retain(|tail| !topic.ends_with(tail));
        session = found.unwrap_or(session);
    }
    // Attempts that fail while the broker is away count too: the number is in the will, and on the disk before it is
    // used.
    let kept = std::fs::read_to_string(fleet.settings.directory.join("session")).unwrap();
    assert_eq!(session.to_string(), kept.trim(), "the number of this connection");
    assert!(session >= 2, "one more at each try");
    let last_word = |on: &str, publish: &Publish, reason: &str| {
        let status: Status =
            (on == "pgw/v1/hub/hub1/status").then(|| from_json(&publish.payload).unwrap())?;
        (status.up == 0 && status.reason == reason).then_some(())
    };
    hub.stop().await;
    peer.wait("the farewell", |on, publish| last_word(on, publish, "stopped")).await;
    // A hub that dies: the broker's word for it, signed when it connected.
    let mut hub = RunningHub::start(&fleet.settings);
    hub.live().await;
    let online = |on: &str, publish: &Publish| status(on, publish).map(|_| ());
    peer.wait("the hub online", online).await;
    hub.task.abort();
    let lost = "connection lost (unconfirmed)";
    peer.wait("the will", |on, publish| last_word(on, publish, lost)).await;
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        if entry.path().is_dir() {
            copy(&entry.path(), &to.join(entry.file_name()));
        } else {
            fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
}
