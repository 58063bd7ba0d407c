//! A gateway's side of a lane, as far as the hub's tests need it: numbered, chained transactions.
#![allow(unreachable_pub, reason = "a kit says what it offers")]

use pgw_core::chain::ChainValue;
use pgw_core::transaction::{Body, Clock, Epoch, Gateway, Kind, Lane, Practice, Transaction, TransactionId};
use pgw_core::wire::envelope::Envelope;
use pgw_hub::store::{Entry, LaneName};
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
    pub sequence: u64,
    pub chain: ChainValue,
    pub round: u64,
}

impl Sender {
    pub fn new(lane: &LaneName, epoch: u128) -> Self {
        let epoch = Epoch(Uuid::from_u128(epoch));
        let chain = ChainValue::first(lane, epoch);
        Self { lane: lane.clone(), epoch, sequence: 0, chain, round: 1 }
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
            Envelope::new(&self.lane, self.epoch, self.sequence, self.chain, self.round, transaction);
        envelope.chain = self.chain.next(self.sequence, envelope.digest(&body));
        self.chain = envelope.chain;
        Entry { lane: self.lane.clone(), envelope, body: Some(body) }
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
