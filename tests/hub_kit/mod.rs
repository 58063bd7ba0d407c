//! A gateway's side of a lane, as far as the hub's tests need it: numbered, chained transactions.
#![allow(unreachable_pub, dead_code, reason = "a kit says what it offers")]

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use pgw_core::chain::{ChainValue, Through};
use pgw_core::transaction::{Body, Clock, Epoch, Gateway, Kind, Lane, Practice, Transaction, TransactionId};
use pgw_core::wire::envelope::Envelope;
use pgw_core::wire::said::{BootId, Origin};
use pgw_core::wire::signature::{PROPERTY, SigningKey, Word};
use pgw_hub::gateways::{Gateways, KeyState, ListedGateway, ListedKey};
use pgw_hub::store::{Entry, LaneName};
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{Publish, PublishProperties};
use tokio::sync::watch;
use uuid::Uuid;

/// `B86022/gw1/{lane}`.
pub fn lane(name: &str) -> LaneName {
    lane_of("B86022", "gw1", name)
}

/// Any lane.
pub fn lane_of(practice: &str, gateway: &str, name: &str) -> LaneName {
    LaneName {
        practice: Practice::new(practice).unwrap(),
        gateway: Gateway::new(gateway).unwrap(),
        lane: Lane::new(name).unwrap(),
    }
}

/// A transaction with this id and body.
pub fn transaction(id: u128, body: &[u8]) -> Transaction {
    Transaction {
        id: TransactionId(Uuid::from_u128(id)),
        time: 1_795_385_530_123,
        event_type: "hl7v2.oru_r01".into(),
        kind: Kind::Transaction,
        content_type: "application/hl7-v2+er7; charset=iso-8859-1".into(),
        sender: "hl7v2:L\u{e4}B\"\\".into(),
        given_sender: None,
        key: String::new(),
        shows_key: false,
        correlation_id: String::new(),
        trace_parent: String::new(),
        clock: Clock::Synced,
        body: Body::new(body.to_vec()),
    }
}

/// Numbers and chains transactions as a gateway does.
#[derive(Clone)]
pub struct Sender {
    pub lane: LaneName,
    pub epoch: Epoch,
    /// Where the epoch begins.
    pub link: Option<Through>,
    pub sequence: u64,
    pub chain: ChainValue,
    pub round: u64,
    /// Signs for its gateway.
    pub key: Arc<SigningKey>,
}

/// The key with which the gateway of this lane signs.
pub fn key_of(lane: &LaneName) -> Arc<SigningKey> {
    static KEYS: Mutex<BTreeMap<(Practice, Gateway), Arc<SigningKey>>> = Mutex::new(BTreeMap::new());
    let fresh = || Arc::new(SigningKey::from_pkcs8(&SigningKey::generate().unwrap()).unwrap());
    let mut keys = KEYS.lock().unwrap();
    keys.entry((lane.practice.clone(), lane.gateway.clone())).or_insert_with(fresh).clone()
}

/// A list in which the gateways of these lanes have their keys.
pub fn listed(lanes: &[&LaneName]) -> Gateways {
    let gateway = |lane: &&LaneName| {
        let key = ListedKey { key: key_of(lane).public(), state: KeyState::Signing, added: None };
        let listed = ListedGateway { keys: vec![key], ..ListedGateway::default() };
        ((lane.practice.clone(), lane.gateway.clone()), listed)
    };
    Gateways { serial: 1, gateways: lanes.iter().map(gateway).collect() }
}

/// The same, as the hub's parts take it.
pub fn in_use(lanes: &[&LaneName]) -> watch::Receiver<Arc<Gateways>> {
    watch::channel(Arc::new(listed(lanes))).1
}

/// A message as its gateway says it, signed and counted.
pub fn said(key: &SigningKey, word: Word, topic: &str, payload: Vec<u8>) -> Publish {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::SeqCst) + 1;
    let payload = Origin { boot: BootId([7; 8]), count, key: key.public().id() }.end(payload);
    let signature = key.sign(word, topic, &payload).to_string();
    let user_properties = vec![(PROPERTY.to_owned(), signature)];
    let properties = PublishProperties { user_properties, ..PublishProperties::default() };
    Publish::new(topic, QoS::AtLeastOnce, payload, Some(properties))
}

impl Sender {
    /// In an epoch with which the line begins.
    pub fn new(lane: &LaneName, epoch: u128) -> Self {
        Self::at(lane, epoch, None)
    }

    /// In an epoch that begins where this one is now.
    pub fn after(before: &Self, epoch: u128) -> Self {
        Self::at(&before.lane, epoch, Some(before.end()))
    }

    /// In an epoch that begins there.
    pub fn at(lane: &LaneName, epoch: u128, link: Option<Through>) -> Self {
        let epoch = Epoch(Uuid::from_u128(epoch));
        let chain = ChainValue::first(lane, epoch, link.as_ref());
        Self { lane: lane.clone(), epoch, link, sequence: 0, chain, round: 1, key: key_of(lane) }
    }

    /// The last number and its chain value.
    pub fn end(&self) -> Through {
        Through { epoch: self.epoch, through: self.sequence, chain: self.chain }
    }

    /// The next transaction, with this id and body.
    pub fn next(&mut self, id: u128, body: &[u8]) -> Entry {
        self.next_of(&transaction(id, body))
    }

    /// The next one.
    pub fn next_of(&mut self, transaction: &Transaction) -> Entry {
        self.sequence += 1;
        let body = transaction.body.to_bytes();
        let mut envelope =
            Envelope::new(&self.lane, self.epoch, self.sequence, self.chain, self.round, transaction)
                .linked(self.link);
        envelope.chain = self.chain.next(self.sequence, envelope.digest(&body));
        self.chain = envelope.chain;
        Entry::new(self.lane.clone(), envelope.signed(&self.lane, &self.key), body)
    }

    /// The content of an entry that came before, under the next number.
    pub fn again(&mut self, entry: &Entry) -> Entry {
        self.sequence += 1;
        let (_, properties) = entry.envelope.clone().into_properties();
        let numbers = ["epoch", "sequence", "round", "delayed", "chain", "link", "signature"];
        let mut properties: Vec<_> =
            properties.into_iter().filter(|(name, _)| !numbers.contains(&name.as_str())).collect();
        let body = entry.body.clone().unwrap();
        self.chain = self.chain.next(self.sequence, entry.envelope.digest(&body));
        let mut put = |name: &str, value: String| properties.push((name.into(), value));
        put("epoch", self.epoch.to_string());
        put("sequence", self.sequence.to_string());
        put("round", self.round.to_string());
        put("chain", self.chain.to_string());
        if let Some(link) = self.link.filter(|_| self.sequence == 1) {
            put("link", link.to_string());
        }
        let content_type = entry.envelope.attributes().get("datacontenttype").to_owned();
        let envelope = Envelope::from_properties(Some(content_type), properties).unwrap();
        Entry::new(self.lane.clone(), envelope.signed(&self.lane, &self.key), body)
    }

    /// The next `count` transactions: ids `base + sequence`, bodies that differ.
    pub fn take(&mut self, count: u64) -> Vec<Entry> {
        (0..count)
            .map(|_| {
                let n = self.sequence + 1;
                self.next(
                    (self.epoch.0.as_u128() << 32) + u128::from(n),
                    format!("body \u{e9} {n}").as_bytes(),
                )
            })
            .collect()
    }
}
