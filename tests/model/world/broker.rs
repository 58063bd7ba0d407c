//! The broker: takes, acknowledges, delivers in order, and loses its state at the worst moment.

use std::collections::VecDeque;

use pgw_core::chain::{ChainValue, Through};
use pgw_core::committer::Missed;
use pgw_core::delivery::{Nonce, Receipt};
use pgw_core::transaction::{Epoch, Sequence};

use super::{Content, Random, Seen};

/// From the gateway.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Up {
    Position {
        nonce: Nonce,
        epoch: Epoch,
        tail: Sequence,
        point: Option<Through>,
    },
    Transaction {
        epoch: Epoch,
        sequence: Sequence,
        round: u64,
        content: Content,
        chain: ChainValue,
        /// The chain value that its gateway has signed.
        signs: ChainValue,
        /// With number 1: where its epoch begins.
        link: Option<Through>,
    },
}

/// To the gateway.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Down {
    PubAck(Result<(), u8>),
    Receipt(Receipt),
    Gap(Missed),
}

/// The hub's side of the broker.
#[derive(Debug, Default)]
pub(crate) struct Subscriber {
    pub(crate) connected: bool,
    pub(crate) queue: VecDeque<Up>,
    pub(crate) retained: Option<Receipt>,
    /// The retained receipt when the broker last saved its state.
    pub(crate) saved: Option<Receipt>,
}

pub(crate) struct Broker {
    pub(crate) hub: Subscriber,
    /// Of the current connection.
    pub(crate) down: VecDeque<Down>,
    /// The gateway's connection is half-open: nothing passes, and neither end notices.
    pub(crate) stuck: bool,
    /// Most messages queued for the hub; more are acknowledged and dropped.
    pub(crate) most_queued: usize,
}

impl Broker {
    pub(crate) fn new(most_queued: usize) -> Self {
        Self { hub: Subscriber::default(), down: VecDeque::new(), stuck: false, most_queued }
    }

    /// The gateway has connected and subscribed.
    pub(crate) fn subscribe(&mut self) {
        self.stuck = false;
        self.down.clear();
        self.down.extend(self.hub.retained.clone().map(Down::Receipt));
    }

    pub(crate) fn take(&mut self, packet: Up, refuse: bool, random: &mut Random, seen: &mut Seen) {
        if self.stuck {
            seen.note("swallowed by a half-open connection");
            return;
        }
        let is_transaction = matches!(packet, Up::Transaction { .. });
        if refuse && is_transaction {
            self.down.push_back(Down::PubAck(Err(0x97)));
            return;
        }
        if !self.hub.connected {
            seen.note("published with no hub there");
        } else if self.hub.queue.len() >= self.most_queued {
            seen.note("dropped silently after its PUBACK");
        } else {
            self.hub.queue.push_back(packet);
        }
        if is_transaction {
            let outcome = if self.hub.connected || random.percent(50) { Ok(()) } else { Err(0x10) };
            self.down.push_back(Down::PubAck(outcome));
        }
    }

    pub(crate) fn publish(&mut self, receipt: Receipt, gateway: bool) {
        self.hub.retained = Some(receipt.clone());
        if gateway && !self.stuck {
            self.down.push_back(Down::Receipt(receipt));
        }
    }

    /// kill -9: all connections and queues are gone; retained receipts are as old as the last save, or gone.
    pub(crate) fn restart(&mut self, random: &mut Random, seen: &mut Seen) {
        self.stuck = false;
        self.down.clear();
        let hub = &mut self.hub;
        hub.connected = false;
        hub.queue.clear();
        match random.below(3) {
            0 => hub.retained = None,
            1 => {
                if hub.saved != hub.retained && hub.saved.is_some() {
                    seen.note("stale retained receipt");
                }
                hub.retained.clone_from(&hub.saved);
            }
            _ => hub.saved.clone_from(&hub.retained),
        }
    }
}
