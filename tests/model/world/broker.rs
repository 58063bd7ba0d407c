//! The broker: takes, acknowledges, delivers in order, and loses its state at the worst moment.

use std::collections::VecDeque;

use pgw_core::chain::ChainValue;
use pgw_core::committer::Missed;
use pgw_core::delivery::{Nonce, Receipt};
use pgw_core::transaction::{Epoch, Sequence, TransactionId};

use super::{Random, Seen};

/// From the gateway.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Up {
    Position(Nonce),
    Transaction {
        epoch: Epoch,
        sequence: Sequence,
        round: u64,
        id: TransactionId,
        chain: ChainValue,
        /// The chain value that its gateway has signed.
        signs: ChainValue,
        /// It is a void: the chain value before it.
        void: Option<ChainValue>,
    },
}

/// To the gateway.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Down {
    PubAck(Result<(), u8>),
    Receipt(Receipt),
    Gap(Missed),
}

/// A hub's side of the broker.
#[derive(Debug, Default)]
pub(crate) struct Subscriber {
    pub(crate) connected: bool,
    pub(crate) queue: VecDeque<Up>,
    pub(crate) retained: Option<Receipt>,
    /// The retained receipt when the broker last saved its state.
    pub(crate) saved: Option<Receipt>,
}

pub(crate) struct Broker {
    pub(crate) hubs: Vec<Subscriber>,
    /// Of the current connection.
    pub(crate) down: VecDeque<Down>,
    /// The gateway's connection is half-open: nothing passes, and neither end notices.
    pub(crate) stuck: bool,
    /// Most messages queued for a hub; more are acknowledged and dropped.
    pub(crate) most_queued: usize,
}

impl Broker {
    pub(crate) fn new(hubs: usize, most_queued: usize) -> Self {
        Self {
            hubs: (0..hubs).map(|_| Subscriber::default()).collect(),
            down: VecDeque::new(),
            stuck: false,
            most_queued,
        }
    }

    /// The gateway has connected and subscribed.
    pub(crate) fn subscribe(&mut self) {
        self.stuck = false;
        self.down.clear();
        self.down.extend(self.hubs.iter().filter_map(|hub| hub.retained.clone()).map(Down::Receipt));
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
        let mut subscribers = false;
        for hub in self.hubs.iter_mut().filter(|hub| hub.connected) {
            subscribers = true;
            if hub.queue.len() >= self.most_queued {
                seen.note("dropped silently after its PUBACK");
                continue;
            }
            hub.queue.push_back(packet.clone());
        }
        if is_transaction {
            if !subscribers {
                seen.note("published with no hub there");
            }
            let outcome = if subscribers || random.percent(50) { Ok(()) } else { Err(0x10) };
            self.down.push_back(Down::PubAck(outcome));
        }
    }

    pub(crate) fn publish(&mut self, hub: usize, receipt: Receipt, gateway: bool) {
        self.hubs[hub].retained = Some(receipt.clone());
        if gateway && !self.stuck {
            self.down.push_back(Down::Receipt(receipt));
        }
    }

    /// kill -9: all connections and queues are gone; retained receipts are as old as the last save, or gone.
    pub(crate) fn restart(&mut self, random: &mut Random, seen: &mut Seen) {
        self.stuck = false;
        self.down.clear();
        for hub in &mut self.hubs {
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
}
