//! The box in the surgery: a model outbox, and the driver's turn around the real delivery machine.

use std::collections::{BTreeMap, VecDeque};

use pgw_core::chain::{ChainValue, Through};
use pgw_core::delivery::{
    Action, Alarm, Delivery, Entry, EntryKind, Gone, HeldBecause, Input, Layout, Limits, Millis, Nonce,
    Numbering, Point, Reason, Receipt,
};
use pgw_core::transaction::{Epoch, Kind, LaneName, Position, Sequence, TransactionId};

use super::{Content, Seen, epoch, id, link};
use crate::world::broker::Up;
use crate::world::center::name;

/// Entries have ids from here on.
pub(crate) const ENTRIES: u64 = 1 << 40;

/// A record that cannot be read any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Lost {
    /// A person has decided that it is lost for good.
    pub(crate) released: bool,
    /// The table beside its segment still has its digest.
    pub(crate) digest: bool,
}

/// What survives a crash.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Disk {
    name: &'static LaneName,
    /// Committed transactions, position 1 first.
    pub(crate) records: Vec<TransactionId>,
    pub(crate) numbering: Numbering,
    /// The last synced watermark: it lags.
    pub(crate) watermark: Option<Point>,
    /// Everything through here is pruned.
    pub(crate) pruned: Position,
    pub(crate) lost: BTreeMap<Position, Lost>,
    /// What the hub had confirmed and has lost for good, first to last.
    pub(crate) lost_at_hub: Vec<(Position, Position)>,
    /// Chain values of the present epoch, from number 0 on, as far as they were computed.
    chains: Vec<ChainValue>,
    /// What the process remembers: the confirmed point.
    pub(crate) point: Option<Through>,
}

impl Disk {
    pub(crate) fn new(name: &'static LaneName, first_epoch: u64) -> Self {
        let numbering = Numbering::new(epoch(first_epoch));
        let mut disk = Self {
            name,
            records: Vec::new(),
            numbering,
            watermark: None,
            pruned: 0,
            lost: BTreeMap::new(),
            lost_at_hub: Vec::new(),
            chains: Vec::new(),
            point: None,
        };
        disk.begin();
        disk
    }

    fn begin(&mut self) {
        let present = self.numbering.present();
        self.chains = vec![ChainValue::first(self.name, present.epoch, present.link.as_ref())];
    }

    pub(crate) fn tail(&self) -> Position {
        self.records.len() as u64
    }

    pub(crate) fn commit(&mut self, id: TransactionId) {
        self.records.push(id);
    }

    /// What number `sequence` of an epoch stands for; `None`: nothing, or its digest is not known any more.
    fn content(&self, of: Epoch, sequence: Sequence) -> Option<Content> {
        let start = self.numbering.of(of)?;
        let (first, last) = start.positions(sequence);
        if last > self.tail() {
            return None;
        }
        if let Some(entry) = start.entry_at(first) {
            let kind = if entry.kind == EntryKind::Void { Kind::Void } else { Kind::Pruned };
            return Some(Content { id: entry.id, kind, body: 0 });
        }
        let known = self.lost.get(&first).is_none_or(|lost| lost.digest);
        known.then(|| Content::transaction(self.records[first as usize - 1]))
    }

    /// This lane's own chain value at a number.
    pub(crate) fn value(&mut self, of: Epoch, sequence: Sequence) -> Option<ChainValue> {
        if of == self.numbering.present().epoch {
            while (self.chains.len() as u64) <= sequence {
                let next = self.chains.len() as u64;
                let before = self.chains[next as usize - 1];
                let Some(content) = self.content(of, next) else { break };
                self.chains.push(link(before, next, &content));
            }
            let chain = self.chains.get(sequence as usize).copied();
            return chain.or_else(|| self.value_from_the_point(of, sequence));
        }
        let start = self.numbering.of(of)?;
        let mut chain = ChainValue::first(self.name, of, start.link.as_ref());
        for number in 1..=sequence {
            chain = link(chain, number, &self.content(of, number)?);
        }
        Some(chain)
    }

    /// Beyond a digest that is not known any more, the confirmed point still is.
    fn value_from_the_point(&self, of: Epoch, sequence: Sequence) -> Option<ChainValue> {
        let at = self.point.filter(|at| at.epoch == of && at.through <= sequence)?;
        let mut chain = at.chain;
        for number in at.through + 1..=sequence {
            chain = link(chain, number, &self.content(of, number)?);
        }
        Some(chain)
    }

    /// The chain value before this number, as everybody who sees the wire knows it.
    pub(crate) fn before(&mut self, epoch: Epoch, sequence: Sequence) -> ChainValue {
        self.value(epoch, sequence - 1).unwrap_or(ChainValue([0; 32]))
    }

    /// What cannot be read any more.
    pub(crate) fn gone(&self) -> Vec<Gone> {
        let pruned = Gone { from: 1, through: self.pruned, kind: Some(EntryKind::Pruned) };
        let lost = self.lost.range(self.pruned + 1..).map(|(position, lost)| Gone {
            from: *position,
            through: *position,
            kind: lost.released.then_some(EntryKind::Void),
        });
        std::iter::once(pruned).filter(|pruned| pruned.through > 0).chain(lost).collect()
    }

    pub(crate) fn is_gone(&self, position: Position) -> bool {
        position <= self.pruned || self.lost.contains_key(&position)
    }

    /// Whether a transaction can still be read here.
    pub(crate) fn can_read(&self, id: TransactionId) -> bool {
        (1..).zip(&self.records).any(|(position, of)| *of == id && !self.is_gone(position))
    }

    /// Whether the hub has an entry for a position, or has lost it, and says so: it has not got its content.
    pub(crate) fn is_not_at_hub(&self, position: Position) -> bool {
        let entries = self.numbering.entries_of_line();
        entries.iter().chain(&self.lost_at_hub).any(|(from, through)| (*from..=*through).contains(&position))
    }

    /// The driver's answer to what the machine wants. `None`: its chain value cannot be computed, because something before it was
    /// destroyed with its digest after it was sent: the driver ends the connection.
    pub(crate) fn offer(
        &mut self,
        position: Position,
        bytes: impl Fn(TransactionId) -> u64,
    ) -> Option<Input> {
        let present = self.numbering.present();
        let (epoch, sequence) = (present.epoch, present.number(position));
        if self.is_gone(position) && present.entry_at(position).is_none() {
            return Some(Input::Missing(position));
        }
        let bytes = self.content(epoch, sequence).map_or(0, |content| bytes(content.id));
        let chain = self.value(epoch, sequence)?;
        Some(Input::Offer { position, bytes, chain })
    }

    /// A position as it is published.
    pub(crate) fn packet(&mut self, position: Position, round: u64) -> Option<Up> {
        let present = self.numbering.present();
        let (epoch, sequence, link) = (present.epoch, present.number(position), present.link);
        let content = self.content(epoch, sequence)?;
        let chain = self.value(epoch, sequence)?;
        let link = link.filter(|_| sequence == 1);
        Some(Up::Transaction { epoch, sequence, round, content, chain, signs: chain, link })
    }

    /// Destroys a record. Values that were computed over it are remembered until the process ends.
    pub(crate) fn destroy(&mut self, position: Position, digest: bool) {
        self.lost.insert(position, Lost { released: false, digest });
    }

    /// As after a restart: only what is stored is known.
    pub(crate) fn forget(&mut self) {
        self.point = self.watermark.map(|point| point.at);
        self.begin();
    }

    /// A person writes it off.
    pub(crate) fn release(&mut self, position: Position) {
        if let Some(lost) = self.lost.get_mut(&position) {
            lost.released = true;
        }
    }

    /// Begins an epoch.
    pub(crate) fn renumber(
        &mut self,
        new_epoch: u64,
        (after, link, follows): (Position, Option<Through>, Vec<Epoch>),
        gone: &[Gone],
    ) {
        let made = gone.iter().filter_map(|gone| {
            Some(Entry {
                from: gone.from,
                through: gone.through,
                kind: gone.kind?,
                id: id(ENTRIES + new_epoch * 1_000 + gone.from),
                time: 0,
                reason: String::new(),
                names: Vec::new(),
            })
        });
        self.numbering = self.numbering.begun(epoch(new_epoch), link, follows, after, made.collect());
        self.begin();
    }
}

/// Work for the daemon around the machine.
#[derive(Debug, Clone)]
pub(crate) enum Task {
    LookUp(Epoch, Sequence),
    NewEpoch { after: Position, link: Option<Through>, follows: Vec<Epoch>, gone: Vec<Gone> },
}

/// A bundle for the hub.
#[derive(Debug, Clone)]
pub(crate) struct Bundle {
    pub(crate) packets: Vec<Up>,
}

pub(crate) struct Surgery {
    pub(crate) disk: Disk,
    /// The watermark in memory; [`Disk::watermark`] follows later.
    pub(crate) watermark: Position,
    point: Option<Through>,
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
    pruned_now: bool,
    actions: Vec<Action>,
}

impl Surgery {
    pub(crate) fn new(limits: Limits, first_epoch: u64, prunes: bool) -> Self {
        let disk = Disk::new(name(0), first_epoch);
        Self {
            machine: Delivery::new(limits.clone(), disk.numbering.clone(), None, 0),
            disk,
            watermark: 0,
            point: None,
            limits,
            up: VecDeque::new(),
            published: VecDeque::new(),
            tasks: VecDeque::new(),
            connected: false,
            wants_reconnect: false,
            prunes,
            confirmations: Vec::new(),
            prunings: Vec::new(),
            pruned_now: false,
            actions: Vec::new(),
        }
    }

    /// The watermark reaches the disk.
    pub(crate) fn sync_watermark(&mut self) {
        self.disk.watermark = self.point.map(|at| Point { position: self.watermark, at });
    }

    /// The process starts (again) from its disk.
    pub(crate) fn start(&mut self) {
        let watermark = self.disk.watermark;
        self.watermark = watermark.map_or(0, |point| point.position);
        self.point = watermark.map(|point| point.at);
        self.disk.forget();
        let (limits, numbering) = (self.limits.clone(), self.disk.numbering.clone());
        self.machine = Delivery::new(limits, numbering, watermark, self.disk.tail());
        self.connected = false;
        self.wants_reconnect = false;
        self.up.clear();
        self.published.clear();
        self.tasks.clear();
        self.machine.handle(Input::Gone(self.disk.gone()), 0, &mut Vec::new());
    }

    /// What cannot be read any more has changed.
    pub(crate) fn tell_gone(&mut self, now: Millis, seen: &mut Seen) {
        let gone = self.disk.gone();
        self.give(Input::Gone(gone), now, seen);
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

    /// An answer was heard, and waits for a chain value of its own.
    pub(crate) fn looks_up(&self) -> bool {
        self.tasks.iter().any(|task| matches!(task, Task::LookUp(..)))
    }

    /// Does the oldest postponed task. `new_epoch` names an epoch if one is needed.
    pub(crate) fn work(&mut self, new_epoch: u64, now: Millis, seen: &mut Seen) {
        match self.tasks.pop_front() {
            Some(Task::LookUp(epoch, sequence)) => {
                let chain = self.disk.value(epoch, sequence);
                self.give(Input::ChainAt { epoch, sequence, chain }, now, seen);
            }
            Some(Task::NewEpoch { after, link, follows, gone }) => {
                seen.note("epoch begun");
                self.disk.renumber(new_epoch, (after, link, follows), &gone);
                let numbering = self.disk.numbering.clone();
                self.give(Input::Renumbered(numbering), now, seen);
            }
            None => {}
        }
    }

    /// A file says where the hub's line ends. Without a link the epoch is begun at once, if one is needed. After which
    /// position the bundle begins; `None`: it is refused.
    pub(crate) fn end_by_file(
        &mut self,
        end: Option<Through>,
        new_epoch: u64,
        now: Millis,
        seen: &mut Seen,
    ) -> Option<Position> {
        let ours = end.and_then(|end| self.disk.value(end.epoch, end.through));
        let layout = self.machine.layout(end, ours, None);
        let before = self.watermark;
        self.give(Input::EndByFile { end, ours, set_aside: None }, now, seen);
        assert_eq!(self.watermark, before, "a file moves nothing");
        match layout? {
            Layout::Continues(after) => Some(after),
            Layout::Begins(after) => {
                seen.note("an epoch is laid out by a file");
                if !self.connected {
                    while !self.tasks.is_empty() {
                        self.work(new_epoch, now, seen);
                    }
                }
                Some(after)
            }
        }
    }

    /// The waiting records of the present epoch, as an export writes them: up to a lost one. From after the watermark, or
    /// after this position.
    pub(crate) fn export(&mut self, after: Option<Position>, most: u64) -> Bundle {
        let present = self.disk.numbering.present();
        let (after, base) = (after.unwrap_or(self.watermark), present.base);
        let first = present.number(after.max(base)) + 1;
        let mut packets = Vec::new();
        for number in first..first + most {
            let (position, last) = self.disk.numbering.present().positions(number);
            let readable =
                !self.disk.is_gone(position) || self.disk.numbering.present().entry_at(position).is_some();
            if after < base || last > self.disk.tail() || !readable {
                break;
            }
            packets.extend(self.disk.packet(position, 0));
        }
        Bundle { packets }
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
            let input = self.disk.offer(position, |id| {
                // Most are small; some are larger than the window in bytes.
                let size = id.0.as_u128() % 50;
                if size == 0 { self.limits.window_bytes + 1 } else { 100 * size as u64 }
            });
            let Some(input) = input else {
                seen.note("a value that cannot be computed any more");
                self.wants_reconnect = true;
                break;
            };
            self.machine.handle(input, now, &mut actions);
        }
        self.actions = actions;
        if std::mem::take(&mut self.pruned_now) {
            self.tell_gone(now, seen);
        }
    }

    /// Something is confirmed and still there.
    pub(crate) fn would_prune(&self) -> bool {
        self.prunes && self.watermark > self.disk.pruned
    }

    fn act(&mut self, action: Action, seen: &mut Seen) {
        match action {
            Action::AskPosition { nonce, epoch, tail, point } => {
                self.up.push_back(Up::Position { nonce, epoch, tail, point });
            }
            Action::Send { position, round } => {
                self.published.push_back(position);
                let packet = self.disk.packet(position, round);
                self.up.push_back(packet.expect("what is sent was read"));
            }
            Action::Confirm { position, point, backed_up_through, asked } => {
                self.confirmations.push((self.watermark, position));
                self.watermark = position;
                (self.point, self.disk.point) = (point, point);
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
                        self.pruned_now = true;
                        seen.note("pruned");
                    }
                }
            }
            // Pruning comes with the answer that allows it.
            Action::Withdraw => {}
            Action::LostAtHub(lost) => self.disk.lost_at_hub = lost,
            Action::LookUpChain { epoch, sequence } => self.tasks.push_back(Task::LookUp(epoch, sequence)),
            Action::NewEpoch { after, link, follows, gone } => {
                self.tasks.push_back(Task::NewEpoch { after, link, follows, gone });
            }
            Action::Reconnect(reason) => {
                seen.note(match reason {
                    Reason::Stalled => "connection thrown away: stalled",
                    Reason::Refused(_) => "connection thrown away: refused",
                });
                self.wants_reconnect = true;
            }
            Action::Alarm(alarm) => seen.note(match alarm {
                Alarm::Held(_, HeldBecause::EndedConnections) => "held",
                Alarm::Held(_, HeldBecause::BeyondHub) => "held: the hub takes no such record",
                Alarm::Held(..) => "held, for another reason",
                Alarm::Released(_) => "released",
                Alarm::Diverged { .. } => "fork found",
                Alarm::TailLost { .. } => "lost tail found",
                Alarm::HubRestored { .. } => "restored hub found",
                Alarm::Missing(position) => {
                    if self.disk.lost.contains_key(&position) {
                        "a lane is stalled by a lost record"
                    } else {
                        assert!(self.disk.is_gone(position), "position {position} can be read");
                        "a lane is stalled by a deleted record"
                    }
                }
                Alarm::Refused { .. } => "refused publish",
            }),
        }
    }
}
