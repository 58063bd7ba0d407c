//! The box in the surgery: a model outbox, and the driver's turn around the real delivery machine.

use std::collections::VecDeque;

use pgw_core::chain::ChainValue;
use pgw_core::delivery::{Action, Alarm, Delivery, Input, Limits, Millis, Nonce, Numbering, Reason, Receipt};
use pgw_core::transaction::{Epoch, LaneName, Position, Sequence, TransactionId};

use super::{Seen, epoch, link};
use crate::world::broker::Up;
use crate::world::center::name;

/// What survives a crash.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Disk {
    name: &'static LaneName,
    /// Committed transactions, position 1 first.
    pub(crate) records: Vec<TransactionId>,
    /// Chain values on the wire: at 0 the first epoch's initial value, then one for each record.
    pub(crate) chains: Vec<ChainValue>,
    pub(crate) numbering: Numbering,
    /// The last synced watermark: it lags.
    pub(crate) watermark: Position,
    /// Its epoch and chain value, stored with it.
    pub(crate) anchor: Option<(pgw_core::transaction::Epoch, ChainValue)>,
    /// Everything through here is pruned.
    pub(crate) pruned: Position,
    /// Destroyed; true: written off by a person, and void.
    pub(crate) lost: std::collections::BTreeMap<Position, bool>,
    /// The epoch on the wire in which each was accepted: its chain value is stored with it.
    born: Vec<pgw_core::transaction::Epoch>,
}

impl Disk {
    pub(crate) fn new(name: &'static LaneName, first_epoch: u64) -> Self {
        let first = epoch(first_epoch);
        Self {
            name,
            records: Vec::new(),
            chains: vec![ChainValue::first(name, first)],
            numbering: Numbering::new(first),
            watermark: 0,
            anchor: None,
            pruned: 0,
            lost: std::collections::BTreeMap::new(),
            born: Vec::new(),
        }
    }

    /// The chain value before the first transaction of an epoch.
    pub(crate) fn beginning(&self, epoch: pgw_core::transaction::Epoch) -> ChainValue {
        ChainValue::first(self.name, epoch)
    }

    pub(crate) fn tail(&self) -> Position {
        self.records.len() as u64
    }

    pub(crate) fn commit(&mut self, id: TransactionId) {
        self.records.push(id);
        self.born.push(self.numbering.current().epoch);
        let chain = self.computed(self.tail());
        self.chains.push(chain);
    }

    fn computed(&self, position: Position) -> ChainValue {
        let renumbering = self.numbering.at(position);
        let before = if position == renumbering.base + 1 {
            self.beginning(renumbering.epoch)
        } else {
            self.chains[position as usize - 1]
        };
        if self.lost.contains_key(&position) {
            return before;
        }
        let id = self.records[position as usize - 1];
        link(before, renumbering.epoch, position - renumbering.base, id)
    }

    /// The chain value before this number, as everybody who sees the wire knows it.
    pub(crate) fn before(&self, epoch: Epoch, sequence: Sequence) -> ChainValue {
        match self.numbering.position(epoch, sequence) {
            Some(position) if sequence > 1 => {
                self.chains.get(position as usize - 1).copied().unwrap_or(self.beginning(epoch))
            }
            _ => self.beginning(epoch),
        }
    }

    pub(crate) fn renumber(&mut self, new_epoch: u64, after: Position) {
        self.numbering = self.numbering.renumbered(epoch(new_epoch), after);
        if after == 0 {
            self.chains[0] = self.beginning(epoch(new_epoch));
        }
        for position in after + 1..=self.tail() {
            self.chains[position as usize] = self.computed(position);
        }
    }
}

impl Disk {
    /// Destroys a record. If it was numbered again, chain values computed over it are computed without it from now on,
    /// up to the first record that has its value stored.
    pub(crate) fn destroy(&mut self, position: Position) {
        self.lost.insert(position, false);
        let numbered = self.numbering.at(position);
        let stored = |disk: &Self, at: Position| disk.born[at as usize - 1] == numbered.epoch;
        if stored(self, position) {
            return;
        }
        for at in position..=self.tail() {
            if self.numbering.at(at) != numbered || stored(self, at) {
                break;
            }
            self.recompute(at);
        }
    }

    /// A lost record before one that has its value stored keeps its own value: the later one knows what it follows
    /// from.
    fn recompute(&mut self, at: Position) {
        let numbered = self.numbering.at(at);
        let next = at + 1;
        let known = next <= self.tail()
            && self.numbering.at(next) == numbered
            && self.born[next as usize - 1] == numbered.epoch;
        if !(known && self.lost.contains_key(&at)) {
            self.chains[at as usize] = self.computed(at);
        }
    }

    /// The watermark's chain value is what the hub has, whatever was destroyed below it: computed values follow from
    /// it.
    pub(crate) fn confirmed(&mut self, position: Position, chain: ChainValue) {
        self.follow(position, chain, self.numbering.at(position.max(1)).epoch);
    }

    /// As after a restart: only what is stored is known, and the watermark.
    pub(crate) fn forget(&mut self) {
        for at in 1..=self.tail() {
            if self.born[at as usize - 1] != self.numbering.at(at).epoch {
                self.recompute(at);
            }
        }
        if let Some((epoch, chain)) = self.anchor {
            self.follow(self.watermark, chain, epoch);
        }
    }

    fn follow(&mut self, position: Position, chain: ChainValue, of: pgw_core::transaction::Epoch) {
        let numbered = self.numbering.at(position.max(1));
        let here = numbered.epoch == of && position > numbered.base && position <= self.tail();
        if !here || self.chains[position as usize] == chain {
            return;
        }
        self.chains[position as usize] = chain;
        for at in position + 1..=self.tail() {
            if self.numbering.at(at) != numbered || self.born[at as usize - 1] == numbered.epoch {
                break;
            }
            self.recompute(at);
        }
    }

    /// Writes it off. True: records after the watermark need new numbers (`outbox::voids`).
    pub(crate) fn release(&mut self, position: Position) -> bool {
        self.lost.insert(position, true);
        let numbered = self.numbering.at(position);
        let next = position + 1;
        next <= self.tail()
            && self.numbering.at(next) == numbered
            && self.born[next as usize - 1] != numbered.epoch
    }
}

/// Work for the daemon around the machine.
#[derive(Debug, Clone)]
pub(crate) enum Task {
    LookUp(Position),
    NewEpoch(Position),
}

/// A bundle for the hub.
#[derive(Debug, Clone)]
pub(crate) struct Bundle {
    /// What the hub must have: epochs and their lengths.
    pub(crate) older: Vec<(pgw_core::transaction::Epoch, u64)>,
    pub(crate) packets: Vec<Up>,
}

pub(crate) struct Surgery {
    pub(crate) disk: Disk,
    /// The watermark in memory; [`Disk::watermark`] follows later.
    pub(crate) watermark: Position,
    anchor: Option<(pgw_core::transaction::Epoch, ChainValue)>,
    pub(crate) machine: Delivery,
    pub(crate) limits: Limits,
    pub(crate) up: VecDeque<Up>,
    /// Positions in the order of their publishes on this connection, which is the order of PUBACKs.
    pub(crate) published: VecDeque<Position>,
    pub(crate) tasks: VecDeque<Task>,
    pub(crate) connected: bool,
    /// The machine asked for a new connection.
    pub(crate) wants_reconnect: bool,
    /// Pruning is allowed through the hub's backup once confirmed.
    pub(crate) prunes: bool,
    /// Confirmations since the oracle last checked.
    pub(crate) confirmations: Vec<(Position, Position)>,
    pub(crate) prunings: Vec<(Position, Position)>,
    actions: Vec<Action>,
}

impl Surgery {
    pub(crate) fn new(limits: Limits, first_epoch: u64, prunes: bool) -> Self {
        let disk = Disk::new(name(0), first_epoch);
        Self {
            machine: Delivery::new(limits.clone(), disk.numbering.clone(), (0, disk.chains[0]), 0),
            disk,
            watermark: 0,
            anchor: None,
            limits,
            up: VecDeque::new(),
            published: VecDeque::new(),
            tasks: VecDeque::new(),
            connected: false,
            wants_reconnect: false,
            prunes,
            confirmations: Vec::new(),
            prunings: Vec::new(),
            actions: Vec::new(),
        }
    }

    /// The watermark reaches the disk.
    pub(crate) fn sync_watermark(&mut self) {
        (self.disk.watermark, self.disk.anchor) = (self.watermark, self.anchor);
    }

    /// The process starts (again) from its disk.
    pub(crate) fn start(&mut self) {
        (self.watermark, self.anchor) = (self.disk.watermark, self.disk.anchor);
        self.disk.forget();
        let ours = self.disk.chains.get(self.watermark as usize).copied().unwrap_or(ChainValue([0xee; 32]));
        let chain = self.anchor.map_or(ours, |(_, chain)| chain);
        self.machine = Delivery::new(
            self.limits.clone(),
            self.disk.numbering.clone(),
            (self.watermark, chain),
            self.disk.tail(),
        );
        self.connected = false;
        self.wants_reconnect = false;
        self.up.clear();
        self.published.clear();
        self.tasks.clear();
    }

    pub(crate) fn connect(&mut self, nonce: Nonce, receive_maximum: u16, now: Millis, seen: &mut Seen) {
        self.connected = true;
        self.wants_reconnect = false;
        self.up.clear();
        self.published.clear();
        self.give(Input::Connected { nonce, receive_maximum, maximum_bytes: None }, now, seen);
    }

    pub(crate) fn disconnect(&mut self, now: Millis, seen: &mut Seen) {
        self.connected = false;
        self.wants_reconnect = false;
        self.up.clear();
        self.published.clear();
        self.give(Input::Disconnected, now, seen);
    }

    pub(crate) fn accept(&mut self, id: TransactionId, now: Millis, seen: &mut Seen) {
        self.disk.commit(id);
        self.give(Input::Committed(self.disk.tail()), now, seen);
    }

    pub(crate) fn receive_puback(&mut self, outcome: Result<(), u8>, now: Millis, seen: &mut Seen) {
        let position = self.published.pop_front().expect("a PUBACK belongs to a publish");
        self.give(Input::PubAck { position, outcome }, now, seen);
    }

    pub(crate) fn receive(&mut self, receipt: Receipt, now: Millis, seen: &mut Seen) {
        self.give(Input::Receipt(receipt), now, seen);
    }

    /// Does the oldest postponed task. `new_epoch` names an epoch if one is needed.
    pub(crate) fn work(&mut self, new_epoch: u64, now: Millis, seen: &mut Seen) {
        match self.tasks.pop_front() {
            Some(Task::LookUp(position)) => {
                let chain = self.disk.chains.get(position as usize).copied();
                self.give(Input::ChainAt { position, chain }, now, seen);
            }
            Some(Task::NewEpoch(after)) => {
                self.disk.renumber(new_epoch, after);
                let numbering = self.disk.numbering.clone();
                self.give(Input::Renumbered(numbering), now, seen);
            }
            None => {}
        }
    }

    /// The waiting records, from the watermark on, as an export writes them: up to a lost one.
    pub(crate) fn export(&self, most: u64) -> Bundle {
        let disk = &self.disk;
        let first = (self.watermark + 1).max(disk.pruned + 1);
        let epochs = disk.numbering.epochs();
        let current = disk.numbering.at(first).epoch;
        let older = epochs.iter().zip(epochs.iter().skip(1)).take_while(|(of, _)| of.epoch != current);
        let older = older.map(|(of, following)| (of.epoch, following.base - of.base));
        let whole = |at: &Position| disk.lost.get(at) != Some(&false);
        let packets = (first..=disk.tail()).take_while(whole).take(most as usize);
        Bundle {
            older: older.filter(|(_, through)| *through > 0).collect(),
            packets: packets.map(|at| self.packet(at, 0)).collect(),
        }
    }

    fn packet(&self, position: Position, round: u64) -> Up {
        let (epoch, sequence) = self.disk.numbering.wire(position);
        let id = self.disk.records[position as usize - 1];
        let chain = self.disk.chains[position as usize];
        let void = self.disk.lost.get(&position).map(|_| match sequence {
            1 => self.disk.beginning(epoch),
            _ => self.disk.chains[position as usize - 1],
        });
        Up::Transaction { epoch, sequence, round, id, chain, signs: chain, void }
    }

    /// A driver's turn.
    pub(crate) fn give(&mut self, input: Input, now: Millis, seen: &mut Seen) {
        let mut actions = std::mem::take(&mut self.actions);
        self.machine.handle(input, now, &mut actions);
        loop {
            for action in actions.drain(..) {
                self.act(action, seen);
            }
            let Some(position) = self.machine.wanted() else { break };
            let lost = self.disk.lost.get(&position);
            let input = if position <= self.disk.pruned || lost == Some(&false) {
                Input::Missing(position)
            } else {
                // Most are small; some are larger than the window in bytes.
                let size = self.disk.records[position as usize - 1].0.as_u128() % 50;
                let bytes = if size == 0 { self.limits.window_bytes + 1 } else { 100 * size as u64 };
                Input::Offer { position, bytes, chain: self.disk.chains[position as usize] }
            };
            self.machine.handle(input, now, &mut actions);
        }
        self.actions = actions;
    }

    /// Something is confirmed and still there.
    pub(crate) fn would_prune(&self) -> bool {
        self.prunes && self.watermark > self.disk.pruned
    }

    fn act(&mut self, action: Action, seen: &mut Seen) {
        match action {
            Action::AskPosition(nonce) => self.up.push_back(Up::Position(nonce)),
            Action::Send { position, round } => {
                self.published.push_back(position);
                self.up.push_back(self.packet(position, round));
            }
            Action::Confirm { position, chain, backed_up_through, asked } => {
                // A record destroyed in new numbers is computed differently from then on; what was sent before is
                // still right. Before the first there is only an epoch's initial value, and that of an earlier epoch
                // is the same.
                let ours = position == 0
                    || !self.disk.lost.is_empty()
                    || chain == self.disk.chains[position as usize];
                assert!(ours, "the watermark's chain value is ours");
                self.confirmations.push((self.watermark, position));
                self.watermark = position;
                self.anchor = Some((self.disk.numbering.at(position.max(1)).epoch, chain));
                self.disk.confirmed(position, chain);
                if self.prunes
                    && self.connected
                    && asked.is_some()
                    && let Some(safe) = backed_up_through
                {
                    let through = safe.min(position);
                    if through > self.disk.pruned {
                        self.prunings.push((self.disk.pruned, through));
                        // The watermark is synced first: a pruned record must never look unconfirmed.
                        self.sync_watermark();
                        self.disk.pruned = through;
                        seen.note("pruned");
                    }
                }
            }
            Action::LookUpChain(position) => self.tasks.push_back(Task::LookUp(position)),
            Action::NewEpoch { after } => self.tasks.push_back(Task::NewEpoch(after)),
            Action::Reconnect(reason) => {
                seen.note(match reason {
                    Reason::Stalled => "connection thrown away: stalled",
                    Reason::Refused(_) => "connection thrown away: refused",
                });
                self.wants_reconnect = true;
            }
            Action::Alarm(alarm) => seen.note(match alarm {
                Alarm::Held(..) => "held",
                Alarm::Released(_) => "released",
                Alarm::Diverged { .. } => "fork found",
                Alarm::TailLost { .. } => "lost tail found",
                Alarm::HubRestored { .. } => "restored hub found",
                Alarm::Missing(position) => {
                    assert!(
                        self.disk.lost.contains_key(&position),
                        "position {position} is missing: pruned, and still wanted"
                    );
                    "a lane is stalled by a lost record"
                }
                Alarm::Refused { .. } => "refused publish",
            }),
        }
    }
}
