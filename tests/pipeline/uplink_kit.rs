//! A gateway without doors and a scripted hub, for the uplink's tests.
#![allow(unreachable_pub, missing_docs, reason = "a kit says what it offers")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot continue fails")]

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use pgw_core::chain::{ChainValue, Through};
use pgw_core::delivery;
use pgw_core::delivery::HubLimits;
use pgw_core::transaction::{
    Body, Gateway as GatewayId, Hub, Kind as TransactionKind, Lane, LaneName, Practice,
};
use pgw_core::wire::envelope::Envelope;
use pgw_core::wire::presence::{Event, Info, Status};
use pgw_core::wire::receipt::{Gap, GapCode, Position, Receipt, StoreId};
use pgw_core::wire::signature::{PROPERTY, PublicKey, SigningKey};
use pgw_core::wire::topic::{HUB_FILTERS, Kind, Root, Topic};
use pgw_core::wire::{from_json, to_json};
use pgw_gateway::uplink;
use pgw_gateway::uplink::{LinkSnapshot, PinnedHub, Reports, UplinkSettings};
use pgw_host::config::Upstream;
use pgw_link::backoff::BackoffLimits;
use pgw_link::tls::TlsFiles;
use pgw_outbox::{EventType, LaneSettings, Outbox, OutboxKey, OutboxSettings, Submission, TypeAffixes};
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{ConnectProperties, Filter, Packet, Publish, PublishProperties};
use rumqttc::v5::{AsyncClient, Event as MqttEvent, MqttOptions};
use tempfile::TempDir;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use crate::harness::{CertificateFiles, Certificates, eventually};
use crate::hub_kit::{key_of, lane};

/// The body of the n-th transaction.
pub fn body(number: u64) -> Vec<u8> {
    format!("MSH|^~\\&|TEST|{number}|").into_bytes()
}

fn names() -> (Practice, GatewayId) {
    (Practice::new("B86022").unwrap(), GatewayId::new("gw1").unwrap())
}

/// An outbox and its uplink.
pub struct Gateway {
    pub settings: UplinkSettings,
    pub outbox: Outbox,
    _directory: Directory,
    link: Option<watch::Receiver<LinkSnapshot>>,
    shutdown: watch::Sender<bool>,
    reload: watch::Sender<u64>,
    health: watch::Sender<Vec<u8>>,
    events: Option<mpsc::Sender<Event>>,
    task: Option<JoinHandle<Result<(), uplink::UplinkError>>>,
}

impl Gateway {
    pub fn new(certificates: &Certificates, hub: PublicKey) -> Self {
        let directory = Directory(Some(TempDir::with_prefix("pgw-uplink-").unwrap()));
        let (practice, gateway) = names();
        let lane = |name: &str, urgent| LaneSettings { lane: Lane::new(name).unwrap(), urgent };
        let outbox = Outbox::open(
            OutboxSettings {
                directory: directory.path().join("outbox"),
                practice: practice.clone(),
                gateway: gateway.clone(),
                lanes: vec![lane("urgent", true), lane("clinical", false)],
                types: TypeAffixes::default(),
                segment_records: 8_192,
                segment_bytes: 32 << 20,
                retention: Duration::from_secs(35 * 86_400),
                limit_bytes: 6 << 30,
                min_free_bytes: 1 << 20,
                min_free_percent: 0,
                max_body_bytes: 20_000_000,
                queue_bytes: 64 << 20,
                quarantine_bytes: 1 << 20,
            },
            OutboxKey::new([7; 32]),
        )
        .unwrap();
        let own = directory.path().join("certificate");
        std::fs::create_dir(&own).unwrap();
        let files = certificates.client(&format!("{practice}.{gateway}"));
        let tls = TlsFiles {
            ca: certificates.ca(),
            certificate: own.join("certificate.pem"),
            key: own.join("key.pem"),
        };
        std::fs::copy(&files.certificate, &tls.certificate).unwrap();
        std::fs::copy(&files.key, &tls.key).unwrap();
        let settings = UplinkSettings {
            practice,
            gateway,
            lanes: vec![Lane::new("urgent").unwrap(), Lane::new("clinical").unwrap()],
            upstreams: vec![],
            tls: Some(tls),
            state_directory: directory.path().to_owned(),
            hubs: vec![PinnedHub { hub: Hub::new("hub1").unwrap(), keys: vec![hub] }],
            lane_hubs: BTreeMap::new(),
            keep_alive: Duration::from_secs(20),
            phase_timeout: Duration::from_secs(5),
            inflight: 1_000,
            max_incoming_packet_bytes: 256 * 1024,
            delivery: delivery::Limits {
                window: 64,
                window_bytes: 1 << 20,
                receipt_timeout: 2_000,
                stall_timeout: 5_000,
                confirm_on_puback: false,
            },
            reconnect: BackoffLimits { base: 20, cap: 100, first_spread: 50, proof: 20_000 },
            info: Info {
                schema: 1,
                version: "test".into(),
                lanes: "urgent clinical".into(),
                interfaces: String::new(),
                configuration_digest: String::new(),
                confirm: "receipt".into(),
                certificate_expires: String::new(),
                key_id: String::new(),
                health_interval_seconds: 60.0,
                time: String::new(),
            },
        };
        Self {
            settings,
            outbox,
            _directory: directory,
            link: None,
            shutdown: watch::channel(false).0,
            reload: watch::channel(0).0,
            health: watch::channel(Vec::new()).0,
            events: None,
            task: None,
        }
    }

    pub async fn submit(&self, lane: &str, numbers: std::ops::RangeInclusive<u64>) {
        for number in numbers {
            self.submit_body(lane, body(number)).await;
        }
    }

    pub async fn submit_body(&self, lane: &str, body: Vec<u8>) {
        let submission = Submission {
            lane: Lane::new(lane).unwrap(),
            event_type: EventType::Named("hl7v2.adt_a01".into()),
            kind: TransactionKind::Test,
            content_type: "application/hl7-v2+er7".into(),
            sender: "test".into(),
            key: uuid::Uuid::now_v7().to_string(),
            shows_key: true,
            correlation_id: String::new(),
            trace_parent: String::new(),
            body: Body::new(body),
        };
        self.outbox.submit(submission).await.unwrap();
    }

    pub fn connect_to(&mut self, port: u16) {
        self.connect_to_all(&[port]);
    }

    pub fn connect_to_host(&mut self, host: &str, port: u16) {
        self.settings.upstreams = vec![Upstream { host: host.into(), port }];
        self.start();
    }

    pub fn connect_to_all(&mut self, ports: &[u16]) {
        let upstream = |port: &u16| Upstream { host: "localhost".into(), port: *port };
        self.settings.upstreams = ports.iter().map(upstream).collect();
        self.start();
    }

    fn start(&mut self) {
        let (sender, link) = watch::channel(LinkSnapshot::starting(std::time::Instant::now()));
        self.link = Some(link);
        let (events_sender, events) = mpsc::channel(16);
        self.events = Some(events_sender);
        let reports = Reports { health: self.health.subscribe(), events };
        let requests = uplink::Requests {
            shutdown: self.shutdown.subscribe(),
            reload: self.reload.subscribe(),
            orders: uplink::orders().1,
        };
        self.task = Some(tokio::spawn(uplink::run(
            self.settings.clone(),
            key_of(&lane("any")),
            self.outbox.clone(),
            sender,
            reports,
            requests,
        )));
    }

    pub fn link(&self) -> LinkSnapshot {
        self.link.as_ref().unwrap().borrow().clone()
    }

    pub fn watermark(&self, lane: &str) -> u64 {
        self.outbox.watermark(&Lane::new(lane).unwrap()).map_or(0, |watermark| watermark.position)
    }

    pub async fn confirmed(&self, lane: &str, through: u64) {
        let what = format!("{lane} is confirmed through {through}");
        eventually(&what, Duration::from_secs(30), || (self.watermark(lane) >= through).then_some(())).await;
        assert_eq!(self.watermark(lane), through);
    }

    pub fn reload(&self) {
        self.reload.send_modify(|count| *count += 1);
    }

    pub fn replace_certificate(&self, files: &CertificateFiles) {
        let tls = self.settings.tls.as_ref().unwrap();
        std::fs::copy(&files.certificate, &tls.certificate).unwrap();
        std::fs::copy(&files.key, &tls.key).unwrap();
    }

    pub async fn stop(&mut self) {
        self.shutdown.send_replace(true);
        let task = self.task.take().unwrap();
        tokio::time::timeout(Duration::from_secs(5), task).await.expect("it stops in time").unwrap().unwrap();
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.shutdown.send_replace(true);
        if let Some(task) = self.task.take() {
            task.abort();
        }
    }
}

/// Removed completely, though the outbox's threads may still be ending in it.
struct Directory(Option<TempDir>);

impl Directory {
    fn path(&self) -> &std::path::Path {
        self.0.as_ref().unwrap().path()
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let path = self.0.take().unwrap().keep();
        for _ in 0..500 {
            if std::fs::remove_dir_all(&path).is_ok() || !path.exists() {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// A hub that follows the wire format: it expects, checks the chain, stores in memory, and answers, signed.
pub struct HubKit {
    state: Arc<Mutex<State>>,
    key: Arc<SigningKey>,
    silent: Arc<AtomicBool>,
    answers: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

#[derive(Default)]
struct State {
    lanes: BTreeMap<String, LaneState>,
    status: Option<Status>,
    events: Vec<Event>,
    incarnation: u64,
    counter: u64,
}

#[derive(Default)]
struct LaneState {
    stored: Vec<(Vec<u8>, ChainValue)>,
    /// The line: each number of it, with its chain value.
    values: Vec<Through>,
    seen: u64,
    gap_round: Option<(u64, u64)>,
}

impl HubKit {
    pub fn any_key() -> PublicKey {
        SigningKey::from_pkcs8(&SigningKey::generate().unwrap()).unwrap().public()
    }

    /// On the broker's plain port; it reconnects by itself.
    pub async fn start(port: u16) -> Self {
        let key = Arc::new(SigningKey::from_pkcs8(&SigningKey::generate().unwrap()).unwrap());
        let state = Arc::new(Mutex::new(State { incarnation: 1, ..State::default() }));
        let (silent, answers) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (ready, mut is_ready) = mpsc::channel(8);
        let serve = Serve {
            state: state.clone(),
            key: key.clone(),
            silent: silent.clone(),
            answers: answers.clone(),
            ready,
        };
        let task = tokio::spawn(async move {
            loop {
                serve.one_connection(port).await;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        is_ready.recv().await.unwrap();
        Self { state, key, silent, answers, task }
    }

    pub fn public_key(&self) -> PublicKey {
        self.key.public()
    }

    /// From now on it neither answers nor stores.
    pub fn silence(&self) {
        self.silent.store(true, Ordering::SeqCst);
    }

    pub fn answers(&self) -> u64 {
        self.answers.load(Ordering::SeqCst)
    }

    /// The bodies stored, in order.
    pub fn stored(&self, lane: &str) -> Vec<Vec<u8>> {
        let state = self.state.lock().unwrap();
        state.lanes.get(lane).map_or(vec![], |it| it.stored.iter().map(|(body, _)| body.clone()).collect())
    }

    /// Publishes seen, stored or not.
    pub fn seen(&self, lane: &str) -> u64 {
        self.state.lock().unwrap().lanes.get(lane).map_or(0, |it| it.seen)
    }

    pub fn status_of_gateway(&self) -> Option<Status> {
        self.state.lock().unwrap().status.clone()
    }

    pub fn events(&self) -> Vec<Event> {
        self.state.lock().unwrap().events.clone()
    }

    /// As from a backup: only this many are left, and it is a new process.
    pub fn restore_to(&self, lane: &str, count: usize) {
        let mut state = self.state.lock().unwrap();
        let known = state.lanes.get_mut(lane).unwrap();
        known.stored.truncate(count);
        known.values.truncate(count);
        state.incarnation += 1;
        state.counter = 0;
    }
}

impl Drop for HubKit {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Serve {
    state: Arc<Mutex<State>>,
    key: Arc<SigningKey>,
    silent: Arc<AtomicBool>,
    answers: Arc<AtomicU64>,
    ready: mpsc::Sender<()>,
}

impl Serve {
    async fn one_connection(&self, port: u16) {
        let mut options = MqttOptions::new(uuid::Uuid::now_v7().to_string(), "127.0.0.1", port);
        options.set_clean_start(true).set_keep_alive(Duration::from_secs(20));
        let mut properties = ConnectProperties::new();
        properties.max_packet_size = Some(30_000_000);
        options.set_connect_properties(properties);
        let (client, mut events) = AsyncClient::new(options, 10_000);
        client.try_subscribe_many(HUB_FILTERS.map(|filter| Filter::new(filter, QoS::AtLeastOnce))).unwrap();
        loop {
            match events.poll().await {
                Ok(MqttEvent::Incoming(Packet::SubAck(_))) => {
                    let _ = self.ready.try_send(());
                }
                Ok(MqttEvent::Incoming(Packet::Publish(publish))) => {
                    for (topic, retain, payload) in self.take(&publish) {
                        let word = Topic::parse(&topic).unwrap().word().unwrap();
                        let signature = self.key.sign(word, &topic, &payload).to_string();
                        let properties = PublishProperties {
                            user_properties: vec![("signature".into(), signature)],
                            ..Default::default()
                        };
                        let sent = client.try_publish_with_properties(
                            topic,
                            QoS::AtLeastOnce,
                            retain,
                            payload,
                            properties,
                        );
                        if sent.is_ok() {
                            self.answers.fetch_add(1, Ordering::SeqCst);
                        }
                    }
                }
                Ok(_) => {}
                Err(_) => return,
            }
        }
    }

    fn take(&self, publish: &Publish) -> Vec<(String, bool, Vec<u8>)> {
        let topic = String::from_utf8(publish.topic.to_vec()).unwrap();
        let Ok(Topic::Gateway { practice, gateway, kind }) = Topic::parse(&topic) else { return vec![] };
        let root = Root::new(&practice, &gateway);
        let hub = Hub::new("hub1").unwrap();
        let named = |lane: &Lane| LaneName {
            practice: practice.clone(),
            gateway: gateway.clone(),
            lane: lane.clone(),
        };
        // Whatever a gateway says is signed.
        let public = key_of(&lane("any")).public();
        let properties = publish.properties.clone().unwrap();
        let signed = properties.user_properties.iter().find(|(name, _)| name == PROPERTY);
        if let Some(word) = kind.word() {
            let signature = signed.map(|(_, value)| value.as_str());
            public.verify(word, &topic, &publish.payload, signature).expect("signed");
        }
        let mut state = self.state.lock().unwrap();
        let silent = self.silent.load(Ordering::SeqCst);
        match kind {
            Kind::Status => state.status = from_json(&publish.payload).ok(),
            Kind::Probe if !silent => {
                return vec![(root.plain("probe/reply"), false, publish.payload.to_vec())];
            }
            Kind::Event => state.events.extend(from_json::<Event>(&publish.payload).ok()),
            Kind::Position(lane) if !silent => {
                let question: Position = from_json(&publish.payload).unwrap();
                let known = state.lanes.entry(lane.to_string()).or_default();
                let held = question.point.map(|point| known.values.contains(&point));
                return vec![state.receipt(&root, &hub, &named(&lane), Some((question.nonce, held)))];
            }
            Kind::Transaction(lane) => {
                let envelope =
                    Envelope::from_properties(properties.content_type, properties.user_properties).unwrap();
                let (epoch, sequence, chain) = (envelope.epoch, envelope.sequence, envelope.chain);
                let signature = envelope.signature.expect("signed");
                assert!(public.verify_head(&named(&lane), epoch, sequence, chain, &signature));
                let known = state.lanes.entry(lane.to_string()).or_default();
                known.seen += 1;
                if silent {
                    return vec![];
                }
                let end = known.values.last().copied();
                let present = end.filter(|end| end.epoch == envelope.epoch);
                if present.is_none() && envelope.sequence == 1 && envelope.link != end {
                    let gap = Gap::new(GapCode::Link, envelope.epoch, 1, envelope.round);
                    return vec![(root.gap(&hub, &lane), false, to_json(&gap))];
                }
                let expected = present.map_or(0, |end| end.through) + 1;
                if envelope.sequence > expected {
                    if known.gap_round == Some((expected, envelope.round)) {
                        return vec![];
                    }
                    known.gap_round = Some((expected, envelope.round));
                    let gap = Gap::new(GapCode::Missing, envelope.epoch, expected, envelope.round);
                    return vec![(root.gap(&hub, &lane), false, to_json(&gap))];
                }
                if envelope.sequence == expected {
                    let before = present.map_or_else(
                        || ChainValue::first(&named(&lane), envelope.epoch, end.as_ref()),
                        |end| end.chain,
                    );
                    assert_eq!(
                        before.next(envelope.sequence, envelope.digest(&publish.payload)),
                        envelope.chain,
                        "the chain holds"
                    );
                    known.stored.push((publish.payload.to_vec(), envelope.chain));
                    let (epoch, through) = (envelope.epoch, envelope.sequence);
                    known.values.push(Through { epoch, through, chain: envelope.chain });
                }
                return vec![state.receipt(&root, &hub, &named(&lane), None)];
            }
            _ => {}
        }
        vec![]
    }
}

impl State {
    fn receipt(
        &mut self,
        root: &Root,
        hub: &Hub,
        name: &LaneName,
        answers: Option<(String, Option<bool>)>,
    ) -> (String, bool, Vec<u8>) {
        self.counter += 1;
        let lane = &name.lane;
        let (nonce, holds_point) = answers.unzip();
        let receipt = Receipt {
            schema: 1,
            hub: hub.clone(),
            incarnation: self.incarnation,
            counter: self.counter,
            end: self.lanes[lane.as_str()].values.last().copied(),
            holds_point: holds_point.flatten(),
            store: StoreId(uuid::Uuid::nil()),
            succeeds: Vec::new(),
            tail_seen: None,
            lost: Vec::new(),
            backed_up_through: None,
            limits: HubLimits::default(),
            nonce,
            time: "2026-11-22T22:12:10.123Z".into(),
        };
        (root.receipt(hub, lane), true, to_json(&receipt))
    }
}
