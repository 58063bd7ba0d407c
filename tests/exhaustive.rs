//! Every order of events within small bounds, over the real delivery machine and the real intake.
//!
//! The simulation meets many long histories by chance; this meets all short ones. In every state that can be
//! reached:
//! - the hub's store holds, of what the box accepted, a beginning without gap, repetition or exchange;
//! - the mark never passes what was on the hub's disk, nor, where it was never restored, what is;
//! - nothing is pruned that is not in the hub's backup;
//! - if the faults stopped here, everything would be confirmed.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "the whole file is a test; its helpers are no test functions"
)]

mod model;

use std::collections::VecDeque;

use model::broker::{Down, Up};
use model::center::Entry;
use model::surgery::Disk;
use model::{id, lane, link};
use practice_gateway::delivery::{Action, Delivery, Input, Limits, Millis, Receipt, Through};
use practice_gateway::hub::intake::{Arrived, Intake, Statement, Verdict};
use practice_gateway::transaction::{Position, TransactionId};
use stateright::{Checker, Model, Property};

/// How often each kind of trouble may come in one history.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
struct Budget {
    accepts: u8,
    cuts: u8,
    box_crashes: u8,
    hub_crashes: u8,
    restores: u8,
    backups: u8,
    losses: u8,
    lost_receipts: u8,
    repetitions: u8,
    images: u8,
    ticks: u8,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct World {
    left: Budget,
    now: Millis,
    // The box.
    disk: Disk,
    image: Option<Disk>,
    mark: Position,
    machine: Delivery,
    connected: bool,
    published: VecDeque<Position>,
    hole: bool,
    // The broker, which holds one queue each way.
    up: VecDeque<Up>,
    down: VecDeque<Down>,
    retained: Option<Receipt>,
    // The hub.
    intake: Intake,
    entries: Vec<Entry>,
    synced: usize,
    backup: usize,
    /// Ids that were on its disk at some time.
    ever: Vec<TransactionId>,
    restored: bool,
    // Names for new things.
    connections: u8,
    incarnation: u8,
    accepted: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Step {
    Accept,
    Connect,
    Cut,
    /// Power cut of the box; the mark comes back as it is, or as it was synced last.
    BoxCrash,
    MarkSynced,
    TakeImage,
    RestoreImage,
    /// The broker hands the hub its next message.
    HubTakes,
    /// ... and will hand it over once more.
    HubTakesAndAgain,
    /// ... or has dropped it after its PUBACK.
    BrokerDrops,
    HubSyncs,
    HubSendsReceipt,
    HubBacksUp,
    /// It starts again at once; `kept`: what was staged had reached the disk.
    HubCrash {
        kept: bool,
    },
    HubRestored,
    GatewayTakes,
    ReceiptLost,
    Tick,
}

impl World {
    fn new(left: Budget) -> Self {
        let disk = Disk::new(1);
        let mut world = Self {
            left,
            now: 0,
            machine: Delivery::new(limits(), disk.numbering.clone(), (0, disk.chains[0]), 0),
            disk,
            image: None,
            mark: 0,
            connected: false,
            published: VecDeque::new(),
            hole: false,
            up: VecDeque::new(),
            down: VecDeque::new(),
            retained: None,
            intake: Intake::new(lane(), 1),
            entries: Vec::new(),
            synced: 0,
            backup: 0,
            ever: Vec::new(),
            restored: false,
            connections: 0,
            incarnation: 1,
            accepted: 0,
        };
        let first = world.intake.statement(None);
        world.publish(first);
        world
    }

    // ---- the box

    fn give(&mut self, input: Input) {
        let mut actions = Vec::new();
        self.machine.handle(input, self.now, &mut actions);
        let mut actions = VecDeque::from(actions);
        loop {
            while let Some(action) = actions.pop_front() {
                let mut more = Vec::new();
                self.act(action, &mut more);
                actions.extend(more);
            }
            let Some(position) = self.machine.wanted() else { break };
            let input = if position <= self.disk.pruned {
                Input::Missing(position)
            } else {
                Input::Offer { position, bytes: 1, chain: self.disk.chains[position as usize] }
            };
            let mut more = Vec::new();
            self.machine.handle(input, self.now, &mut more);
            actions.extend(more);
        }
    }

    fn act(&mut self, action: Action, more: &mut Vec<Action>) {
        match action {
            Action::AskPosition(nonce) => self.up.push_back(Up::Position(nonce)),
            Action::Send { position, round } => {
                let (epoch, sequence) = self.disk.numbering.wire(position);
                let id = self.disk.records[position as usize - 1];
                let chain = self.disk.chains[position as usize];
                self.published.push_back(position);
                self.up.push_back(Up::Transaction { epoch, sequence, round, id, chain, void: None });
                // The broker takes what reaches it at once; a message under way and one in its queue are alike.
                self.down.push_back(Down::PubAck(Ok(())));
            }
            Action::Confirm { position, backed_up_through, .. } => {
                self.mark = position;
                let through = backed_up_through.unwrap_or(0).min(position);
                if through > self.disk.pruned {
                    self.disk.mark = position;
                    self.disk.pruned = through;
                }
            }
            Action::LookUpChain(position) => {
                let chain = self.disk.chains.get(position as usize).copied();
                self.machine.handle(Input::ChainAt { position, chain }, self.now, more);
            }
            Action::NewEpoch { after } => {
                let new_epoch = 100 + u64::from(self.connections);
                self.disk.renumber(new_epoch, after);
                self.machine.handle(Input::Renumbered(self.disk.numbering.clone()), self.now, more);
            }
            Action::Reconnect(_) => self.offline(),
            Action::Alarm(practice_gateway::delivery::Alarm::Hole(_)) => self.hole = true,
            Action::Alarm(_) => {}
        }
    }

    /// What the broker has of the old connection stays on its way to the hub.
    fn offline(&mut self) {
        self.connected = false;
        self.published.clear();
        self.down.clear();
    }

    fn cut(&mut self) {
        self.offline();
        self.give(Input::Disconnected);
    }

    fn restart(&mut self) {
        self.offline();
        self.mark = self.disk.mark;
        let chain = self.disk.chains[self.mark as usize];
        self.machine =
            Delivery::new(limits(), self.disk.numbering.clone(), (self.mark, chain), self.disk.tail());
    }

    fn connect(&mut self) {
        self.connected = true;
        self.connections += 1;
        let mut nonce = [0; 16];
        nonce[5] = self.connections * 16;
        self.down.extend(self.retained.clone().map(Down::Receipt));
        self.give(Input::Connected { nonce, receive_maximum: 100, maximum_bytes: None });
    }

    // ---- the hub

    fn publish(&mut self, statement: Statement) {
        let receipt = Receipt {
            hub: 0,
            incarnation: statement.incarnation,
            counter: statement.counter,
            epochs: statement.epochs,
            backed_up_through: statement.backed_up_through,
            nonce: statement.nonce,
        };
        self.retained = Some(receipt.clone());
        if self.connected {
            self.down.push_back(Down::Receipt(receipt));
        }
    }

    fn hub_takes(&mut self, packet: &Up) {
        match packet {
            Up::Position(nonce) => {
                let statement = self.intake.statement(Some(*nonce));
                self.publish(statement);
            }
            Up::Transaction { epoch, sequence, round, id, chain, .. } => {
                let (epoch, sequence, round, id, chain) = (*epoch, *sequence, *round, *id, *chain);
                let arrived = Arrived { epoch, sequence, round, id, chain };
                let entries = &self.entries;
                let verdict = self.intake.arrive(
                    &arrived,
                    |before| link(before, epoch, sequence, id),
                    |id| entries.iter().any(|entry| entry.id == id),
                );
                match verdict {
                    Verdict::Store | Verdict::Known => {
                        let stored = verdict == Verdict::Store;
                        self.entries.push(Entry { epoch, sequence, chain, id, stored, void: false });
                    }
                    Verdict::Ahead { say: Some(missed) } if self.connected => {
                        self.down.push_back(Down::Gap(missed));
                    }
                    _ => {}
                }
            }
        }
    }

    fn hub_syncs(&mut self) {
        self.synced = self.entries.len();
        for entry in &self.entries {
            if !self.ever.contains(&entry.id) {
                self.ever.push(entry.id);
            }
        }
        self.intake.synced();
    }

    fn hub_starts(&mut self, length: usize) {
        self.entries.truncate(length);
        self.hub_syncs();
        self.backup = self.backup.min(length);
        let mut epochs: Vec<Through> = Vec::new();
        for entry in &self.entries {
            let through = Through { epoch: entry.epoch, through: entry.sequence, chain: entry.chain };
            match epochs.iter_mut().find(|known| known.epoch == entry.epoch) {
                Some(known) => *known = through,
                None => epochs.push(through),
            }
        }
        self.incarnation += 1;
        self.intake = Intake::restored(lane(), u64::from(self.incarnation), epochs);
        if let Some(last) = self.entries[..self.backup].last() {
            self.intake.backed_up(last.epoch, last.sequence);
            self.intake.receipt();
        }
        let statement = self.intake.statement(None);
        self.publish(statement);
    }

    fn gateway_takes(&mut self) {
        match self.down.pop_front().expect("something is under way") {
            Down::PubAck(outcome) => {
                let position = self.published.pop_front().expect("a PUBACK belongs to a publish");
                self.give(Input::PubAck { position, outcome });
            }
            Down::Receipt(receipt) => self.give(Input::Receipt(receipt)),
            Down::Gap(gap) => {
                self.give(Input::Gap { epoch: gap.epoch, expected: gap.expected, round: gap.round });
            }
        }
    }

    // ---- what is promised

    /// The hub's store, as far as the box still has it, is a beginning of the box's records; nothing is there twice.
    fn is_in_order_and_once(&self) -> bool {
        let stored: Vec<_> = self.entries.iter().filter(|entry| entry.stored).map(|entry| entry.id).collect();
        let once = stored.iter().enumerate().all(|(place, id)| !stored[..place].contains(id));
        let ours = &self.disk.records;
        let kept: Vec<_> = stored.iter().filter(|id| ours.contains(id)).collect();
        once && kept.iter().zip(ours).all(|(stored, ours)| *stored == ours)
    }

    fn mark_is_true(&self) -> bool {
        let marked = self.disk.records.iter().take(self.mark as usize);
        let on_disk = &self.entries[..self.synced];
        marked.clone().all(|id| self.ever.contains(id))
            && (self.restored || marked.clone().all(|id| on_disk.iter().any(|entry| entry.id == *id)))
    }

    fn pruned_is_backed_up(&self) -> bool {
        let pruned = self.disk.records.iter().take(self.disk.pruned as usize);
        let backup = &self.entries[..self.backup];
        !self.hole && pruned.clone().all(|id| backup.iter().any(|entry| entry.id == *id))
    }

    /// Without another fault, and with all the time that is wanted, everything is confirmed.
    fn comes_to_rest(&self) -> bool {
        let mut world = self.clone();
        for _ in 0..400 {
            if !world.connected {
                world.connect();
            } else if let Some(packet) = world.up.pop_front() {
                world.hub_takes(&packet);
            } else if world.synced < world.entries.len() {
                world.hub_syncs();
            } else if let Some(statement) = world.intake.receipt() {
                world.publish(statement);
            } else if !world.down.is_empty() {
                world.gateway_takes();
            } else if world.machine.confirmed() == world.disk.tail() {
                return world.is_in_order_and_once() && world.mark_is_true();
            } else {
                let Some(deadline) = world.machine.deadline() else { return false };
                world.now = world.now.max(deadline);
                world.give(Input::Tick);
            }
        }
        false
    }
}

fn limits() -> Limits {
    Limits {
        window: 2,
        window_bytes: 1_000,
        receipt_timeout: 3_000,
        stall_timeout: 5_000,
        hubs: 1,
        confirm_on_puback: false,
    }
}

struct Small(Budget);

impl Model for Small {
    type State = World;
    type Action = Step;

    fn init_states(&self) -> Vec<World> {
        vec![World::new(self.0)]
    }

    fn actions(&self, world: &World, steps: &mut Vec<Step>) {
        let left = &world.left;
        let mut may = |yes: bool, step: Step| {
            if yes {
                steps.push(step);
            }
        };
        may(left.accepts > 0, Step::Accept);
        may(!world.connected, Step::Connect);
        may(world.connected && left.cuts > 0, Step::Cut);
        may(left.box_crashes > 0, Step::BoxCrash);
        may(left.box_crashes > 0 && world.disk.mark != world.mark, Step::MarkSynced);
        may(left.images > 0 && world.image.is_none() && world.disk.tail() > 0, Step::TakeImage);
        may(left.images > 0 && world.image.is_some(), Step::RestoreImage);
        may(!world.up.is_empty(), Step::HubTakes);
        may(!world.up.is_empty() && left.repetitions > 0, Step::HubTakesAndAgain);
        may(!world.up.is_empty() && left.losses > 0, Step::BrokerDrops);
        may(world.synced < world.entries.len(), Step::HubSyncs);
        may(world.intake.clone().receipt().is_some(), Step::HubSendsReceipt);
        may(left.backups > 0 && world.synced > world.backup, Step::HubBacksUp);
        may(left.hub_crashes > 0, Step::HubCrash { kept: false });
        may(left.hub_crashes > 0 && world.synced < world.entries.len(), Step::HubCrash { kept: true });
        may(left.restores > 0 && world.synced > world.backup, Step::HubRestored);
        may(!world.down.is_empty(), Step::GatewayTakes);
        let receipt = matches!(world.down.front(), Some(Down::Receipt(_) | Down::Gap(_)));
        may(receipt && left.lost_receipts > 0, Step::ReceiptLost);
        may(left.ticks > 0 && world.machine.deadline().is_some(), Step::Tick);
    }

    fn next_state(&self, world: &World, step: Step) -> Option<World> {
        let mut world = world.clone();
        match step {
            Step::Accept => {
                world.left.accepts -= 1;
                world.accepted += 1;
                world.disk.commit(id(u64::from(world.accepted)));
                world.give(Input::Committed(world.disk.tail()));
            }
            Step::Connect => world.connect(),
            Step::Cut => {
                world.left.cuts -= 1;
                world.cut();
            }
            Step::BoxCrash => {
                world.left.box_crashes -= 1;
                world.restart();
            }
            Step::MarkSynced => world.disk.mark = world.mark,
            Step::TakeImage => world.image = Some(world.disk.clone()),
            Step::RestoreImage => {
                world.left.images -= 1;
                world.disk = world.image.take()?;
                world.restart();
            }
            Step::HubTakes => {
                let packet = world.up.pop_front()?;
                world.hub_takes(&packet);
            }
            Step::HubTakesAndAgain => {
                world.left.repetitions -= 1;
                let packet = world.up.front()?.clone();
                world.hub_takes(&packet);
            }
            Step::BrokerDrops => {
                world.left.losses -= 1;
                world.up.pop_front();
            }
            Step::HubSyncs => world.hub_syncs(),
            Step::HubSendsReceipt => {
                let statement = world.intake.receipt()?;
                world.publish(statement);
            }
            Step::HubBacksUp => {
                world.left.backups -= 1;
                world.backup = world.synced;
                let last = world.entries[..world.synced].last()?;
                world.intake.backed_up(last.epoch, last.sequence);
            }
            Step::HubCrash { kept } => {
                world.left.hub_crashes -= 1;
                let length = if kept { world.entries.len() } else { world.synced };
                world.hub_starts(length);
            }
            Step::HubRestored => {
                world.left.restores -= 1;
                world.restored = true;
                world.hub_starts(world.backup);
            }
            Step::GatewayTakes => world.gateway_takes(),
            Step::ReceiptLost => {
                world.left.lost_receipts -= 1;
                world.down.pop_front();
            }
            Step::Tick => {
                world.left.ticks -= 1;
                world.now = world.now.max(world.machine.deadline()?);
                world.give(Input::Tick);
            }
        }
        Some(world)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("in order, and once", |_, world: &World| world.is_in_order_and_once()),
            Property::always("the mark is true", |_, world: &World| world.mark_is_true()),
            Property::always("pruned is backed up", |_, world: &World| world.pruned_is_backed_up()),
            Property::always("comes to rest", |_, world: &World| world.comes_to_rest()),
            Property::sometimes("all confirmed", |model: &Self, world: &World| {
                world.left.accepts == 0 && world.mark == u64::from(model.0.accepts)
            }),
        ]
    }
}

fn explore(name: &str, budget: Budget) {
    let started = std::time::Instant::now();
    let checker = Small(budget).checker().threads(2).spawn_bfs().join();
    println!(
        "{name}: {} states, {} of them distinct, in {:.1?}",
        checker.state_count(),
        checker.unique_state_count(),
        started.elapsed()
    );
    checker.assert_properties();
}

/// `PGW_DEEP=1`: larger bounds, minutes instead of seconds.
fn deep() -> bool {
    std::env::var_os("PGW_DEEP").is_some()
}

#[test]
fn links_and_brokers_fail() {
    let ticks = u8::from(deep());
    let budget = Budget { accepts: 3, cuts: 1, losses: 1, repetitions: ticks, ticks, ..Budget::default() };
    explore("cut, loss", budget);
    let budget =
        Budget { accepts: 2, losses: 1, repetitions: 1, lost_receipts: 1, ticks: 1, ..Budget::default() };
    explore("loss, repetition, lost receipt, timeout", budget);
}

#[test]
fn hubs_crash_and_are_restored() {
    let ticks = u8::from(deep());
    let budget = Budget { accepts: 3, hub_crashes: 1, restores: 1, backups: 1, ticks, ..Budget::default() };
    explore("hub crash, restore", budget);
}

#[test]
fn boxes_crash() {
    let ticks = u8::from(deep());
    let budget = Budget {
        accepts: 2,
        box_crashes: 1 + ticks,
        losses: 1,
        lost_receipts: 1,
        repetitions: 1,
        ticks,
        ..Budget::default()
    };
    explore("box crash, lost message and receipt, repetition", budget);
}

#[test]
fn boxes_are_restored_from_an_image() {
    let hub_crashes = 1;
    let ticks = u8::from(deep());
    let budget = Budget { accepts: 3, images: 1, losses: 1, hub_crashes, ticks, ..Budget::default() };
    explore("image, loss, hub crash", budget);
}
