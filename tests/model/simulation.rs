//! More than 100,000 outages, crashes and restores over the real delivery machine and the hub's real committer.
//!
//! Everything follows from one seed, which is printed; `PGW_SEED` repeats a run. What must hold for each episode:
//! - a watermark is only ever recorded over transactions that every hub had on stable storage at some time;
//! - nothing is pruned that the hubs' backups do not hold;
//! - when the faults stop, everything that the box still has is confirmed, and every hub's store holds it exactly
//!   once, in the order of acceptance, and nothing that was never accepted.

use std::collections::{HashMap, HashSet};

use pgw_core::chain::Through;
use pgw_core::committer::Missed;
use pgw_core::delivery::{Input, Limits, Millis, Receipt};
use pgw_core::transaction::TransactionId;
use pgw_link::backoff::{Backoff, BackoffLimits};

use crate::world::broker::{Broker, Down, Up};
use crate::world::center::{self, Center};
use crate::world::surgery::{Bundle, Disk, Surgery};
use crate::world::{Content, Random, Seen, id};

const OUTAGES: u64 = 110_000;
const TURNS: u64 = 2_000;
/// An id that the box has not accepted.
const STRANGE: u64 = u64::MAX;

/// A run must meet every one of these, or it proves less than it claims.
const MUST_BE_SEEN: [&str; 65] = [
    "a part of the hub's files is lost",
    "late, because it came after a lost part",
    "lost at the hub, and sent again",
    "lost for good",
    "what was missing has come again",
    "the lane's files fail",
    "the lane's files can be used again",
    "the store can say again what it has",
    "an end by file",
    "an end by file is refused",
    "an epoch is laid out by a file",
    "admitted",
    "beyond the limits of the hub",
    "does not continue the line",
    "held: the hub takes no such record",
    "held when the faults stop",
    "kept beside the line",
    "replayed by the broker",
    "waits until the centre admits it",
    "changed by the broker",
    "not signed",
    "bundle exported",
    "carried in, known",
    "carried in, new",
    "hub set back with its memory",
    "receipt by file",
    "receipt by file confirms, without a link",
    "a lane is stalled by a lost record",
    "a record is destroyed",
    "a receipt takes the place of one that waits",
    "append failed",
    "append failed, and is stored all the same",
    "the store cannot say what it has",
    "the store works again",
    "released by a person",
    "void at the hub",
    "box crash",
    "box restored from an image",
    "broker restart",
    "confirmed watermark lost at a crash",
    "connection cut",
    "connection half-open",
    "connection thrown away: refused",
    "connection thrown away: stalled",
    "dropped silently after its PUBACK",
    "ended by the broker over one record",
    "fork found",
    "gap at the hub",
    "held",
    "hub connection cut",
    "hub crash",
    "hub crash after storing, before its receipt",
    "hub crash before storing",
    "hub restored to less",
    "hub stopped for a while",
    "known id in a new epoch",
    "published with no hub there",
    "pruned",
    "receipt lost",
    "refused publish",
    "released",
    "repeated by the broker",
    "restored hub found",
    "stale retained receipt",
    "swallowed by a half-open connection",
];

struct World {
    random: Random,
    seen: Seen,
    now: Millis,
    surgery: Surgery,
    backoff: Backoff,
    connect_at: Millis,
    broker: Broker,
    center: Center,
    start_hub_at: Millis,
    images: Vec<Disk>,
    /// Being carried by hand to the hub.
    bundles: Vec<Bundle>,
    receipts: Vec<Receipt>,
    /// Where the hub's line has ended, in files.
    ends: Vec<Option<Through>>,
    /// What the broker may say once more, at any time.
    recorded: Vec<Up>,
    /// The disk destroys records.
    destroys: bool,
    /// What a person has ever written off.
    released: HashSet<TransactionId>,
    /// What the hub's files have ever lost, or have beside the line because of that; and what of it the box could not read then.
    lost: HashSet<TransactionId>,
    beyond_help: HashSet<TransactionId>,
    accepted: HashSet<TransactionId>,
    /// One in this many turns brings a fault; 0: none.
    faults: u64,
    outages: u64,
    fresh: u64,
    /// The broker ends the connection because of this message, this many times.
    poison: Option<(TransactionId, u64)>,
    /// Print every step.
    log: bool,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut random = Random(seed);
        let limits = Limits {
            window: 1 + random.below(12) as u32,
            window_bytes: 4_000 + random.below(60_000),
            receipt_timeout: 100 + random.below(2_000),
            stall_timeout: 300 + random.below(3_000),
            confirm_on_puback: false,
        };
        let prunes = random.percent(50);
        let most_queued = 2 + random.below(20) as usize;
        let faults = 8 + random.below(72);
        let most_in_group = 1 + random.below(12) as usize;
        let settings = BackoffLimits { base: 100, cap: 1_000, first_spread: 500, proof: 2_000 };
        let mut world = Self {
            surgery: Surgery::new(limits, 1, prunes),
            seen: Seen::default(),
            now: 0,
            backoff: Backoff::new(settings),
            connect_at: 0,
            broker: Broker::new(most_queued),
            center: Center::new(100, most_in_group),
            start_hub_at: 0,
            images: Vec::new(),
            bundles: Vec::new(),
            receipts: Vec::new(),
            ends: Vec::new(),
            recorded: Vec::new(),
            destroys: false,
            released: HashSet::new(),
            lost: HashSet::new(),
            beyond_help: HashSet::new(),
            accepted: HashSet::new(),
            faults,
            outages: 0,
            fresh: 1_000,
            poison: None,
            log: false,
            random,
        };
        world.center.up = false;
        world.destroys = world.random.percent(50);
        world
    }

    fn fresh(&mut self) -> u64 {
        self.fresh += 1;
        self.fresh
    }

    fn log(&self, what: impl Fn() -> String) {
        if self.log {
            println!("{:>7} {}", self.now, what());
        }
    }

    fn turn(&mut self) {
        let accepting = if self.faults > 0 { self.random.below(4) } else { 0 };
        for _ in 0..accepting.saturating_sub(1) {
            let id = id(self.fresh());
            self.accepted.insert(id);
            self.surgery.accept(id, self.now, &mut self.seen);
        }
        self.connections();
        self.gateway_to_broker();
        self.hub();
        self.broker_to_gateway();
        if self.random.percent(80) {
            for _ in 0..2 {
                let new_epoch = self.fresh();
                self.surgery.work(new_epoch, self.now, &mut self.seen);
            }
        }
        if self.random.percent(10) {
            self.surgery.sync_watermark();
        }
        self.person();
        self.carry();
        if self.faults > 0 && self.random.below(self.faults) == 0 {
            self.fault();
        }
        self.log(|| {
            let (s, c) = (&self.surgery, &self.surgery.machine.counts());
            let numbers: Vec<_> = s.disk.numbering.epochs().map(|r| (r.epoch.0.as_u128(), r.base)).collect();
            format!(
                "tail {} watermark {} pruned {} {numbers:?} {c:?} {:?}",
                s.disk.tail(),
                s.watermark,
                s.disk.pruned,
                center::end(&self.center.entries, 0).map(|end| (end.epoch.0.as_u128(), end.through)),
            )
        });
        self.now += self.random.below(60);
        if self.surgery.machine.deadline().is_some_and(|at| self.now >= at) {
            self.surgery.give(Input::Tick, self.now, &mut self.seen);
            if self.surgery.would_prune() {
                self.surgery.give(Input::AskAgain, self.now, &mut self.seen);
            }
        }
        self.check();
    }

    fn connections(&mut self) {
        if self.surgery.wants_reconnect {
            self.cut();
        }
        if !self.surgery.connected && self.now >= self.connect_at {
            let mut nonce = [0; 16];
            nonce[..8].copy_from_slice(&self.random.bits().to_be_bytes());
            let receive_maximum = 1 + self.random.below(30) as u16;
            self.broker.subscribe();
            self.backoff.connected();
            self.surgery.connect(nonce, receive_maximum, self.now, &mut self.seen);
            self.log(|| "connected".into());
        }
        if !self.center.up && self.now >= self.start_hub_at {
            let incarnation = self.random.bits();
            self.center.start(incarnation);
            if self.random.percent(50) {
                self.center.too_large = None;
            }
        }
        if self.center.up && !self.broker.hub.connected && self.random.percent(30) {
            self.broker.hub.connected = true;
            self.center.announce(self.now, &mut self.seen);
        }
    }

    /// The gateway's connection is lost.
    fn cut(&mut self) {
        self.surgery.disconnect(self.now, &mut self.seen);
        self.broker.down.clear();
        self.broker.stuck = false;
        self.connect_at = self.now + self.backoff.delay(self.random.bits());
        self.log(|| "cut".into());
    }

    fn publish(&mut self, receipt: Receipt) {
        if self.random.percent(if self.faults > 0 { 5 } else { 0 }) {
            self.seen.note("receipt lost");
            return;
        }
        self.broker.publish(receipt, self.surgery.connected);
        if self.random.percent(10) {
            self.broker.hub.saved = self.broker.hub.retained.clone();
        }
    }

    fn gateway_to_broker(&mut self) {
        for _ in 0..self.random.below(8) {
            let Some(packet) = self.surgery.up.pop_front() else { break };
            let refuse = self.faults > 0 && self.random.below(400) == 0;
            self.log(|| format!("up {packet:?}"));
            if let Up::Transaction { content, .. } = packet
                && let Some((poison, times)) = self.poison
                && content.id == poison
                && !self.broker.stuck
            {
                self.poison = (times > 1).then_some((poison, times - 1));
                self.seen.note("ended by the broker over one record");
                self.cut();
                break;
            }
            if self.recorded.len() < 200 {
                self.recorded.push(packet.clone());
            } else {
                let place = self.random.below(200) as usize;
                self.recorded[place] = packet.clone();
            }
            self.broker.take(packet, refuse, &mut self.random, &mut self.seen);
        }
    }

    fn hub(&mut self) {
        if !self.center.up || !self.broker.hub.connected {
            return;
        }
        let faults = self.faults > 0;
        if faults && self.random.percent(2) {
            self.center.append_fails = Some(self.random.percent(50));
            self.center.lane_fails = self.random.percent(50);
        }
        if self.center.out_of_use && (!faults || self.random.percent(5)) {
            self.seen.note("the lane's files can be used again");
            self.center.out_of_use = false;
        }
        self.center.cannot_say = faults && self.random.percent(2);
        if self.center.cannot_say {
            self.seen.note("the store cannot say what it has");
        }
        for _ in 0..self.random.below(8) {
            if faults && !self.recorded.is_empty() && self.random.percent(3) {
                self.seen.note("replayed by the broker");
                let place = self.random.below(self.recorded.len() as u64) as usize;
                self.broker.hub.queue.push_front(self.recorded[place].clone());
            }
            let Some(packet) = self.broker.hub.queue.pop_front() else { break };
            if faults && self.random.percent(2) {
                self.seen.note("repeated by the broker");
                self.broker.hub.queue.push_front(packet.clone());
            }
            let packet = self.on_its_way(packet);
            self.log(|| format!("hub takes {packet:?}"));
            for gap in self.center.take(&packet, self.now, &mut self.seen) {
                if self.surgery.connected && !self.broker.stuck {
                    self.broker.down.push_back(Down::Gap(gap));
                }
            }
        }
        if self.random.percent(60) {
            self.center.finish(self.now, &mut self.seen);
        }
        if self.random.percent(80)
            && let Some(receipt) = self.center.receipt()
        {
            self.publish(receipt);
        }
        if self.random.percent(4) {
            self.center.back_up(self.now, &mut self.seen);
        }
        if self.center.wants_admission && (!faults || self.random.percent(10)) {
            let late = self.center.admit(&self.surgery.disk, self.now, &mut self.seen);
            self.lost(&late);
        }
    }

    /// The hub has lost these rows, or has them beside the line.
    fn lost(&mut self, rows: &[center::Entry]) {
        let ids: Vec<_> = rows.iter().filter(|entry| entry.has_body()).map(center::Entry::id).collect();
        let disk = &self.surgery.disk;
        // What the gateway may prune on an answer from before.
        let is_answer = |packet: &Down| matches!(packet, Down::Receipt(receipt) if receipt.nonce.is_some());
        // One that is heard may wait for a chain value.
        let answered = self.broker.down.iter().any(is_answer) || self.surgery.looks_up();
        self.beyond_help.extend(ids.iter().filter(|id| answered || !disk.can_read(**id)));
        self.lost.extend(ids);
    }

    /// A broker may change a transaction, and its chain value with it.
    fn on_its_way(&mut self, mut packet: Up) -> Up {
        if let Up::Transaction { epoch, sequence, content, .. } = packet
            && self.faults > 0
            && self.random.percent(1)
        {
            let (before, fits) = (self.surgery.disk.before(epoch, sequence), self.random.percent(70));
            let strange = match self.random.percent(50) {
                true => Content::transaction(id(STRANGE)),
                false => Content { body: 1, ..content },
            };
            center::changed(&mut packet, strange, before, fits);
            self.seen.note("changed by the broker");
        }
        packet
    }

    fn broker_to_gateway(&mut self) {
        for _ in 0..self.random.below(10) {
            if !self.surgery.connected || self.surgery.wants_reconnect || self.broker.stuck {
                break;
            }
            let Some(packet) = self.broker.down.pop_front() else { break };
            self.log(|| format!("down {packet:?}"));
            let before = self.surgery.watermark;
            match packet {
                Down::PubAck(outcome) => self.surgery.receive_puback(outcome, self.now, &mut self.seen),
                Down::Receipt(receipt) => self.surgery.receive(receipt, self.now, &mut self.seen),
                Down::Gap(gap) => {
                    let Missed { code, epoch, expected, round } = gap;
                    let input = Input::Gap { code, epoch, expected, round };
                    self.surgery.give(input, self.now, &mut self.seen);
                }
            }
            if self.surgery.watermark > before {
                self.backoff.progress(self.now);
            }
        }
    }

    fn fault(&mut self) {
        self.check();
        let what = match self.random.below(100) {
            0..2 => {
                if !self.center.can_lose() {
                    return;
                }
                self.center.lose(&mut self.random);
                let missing = self.center.missing.clone();
                self.lost(&missing);
                self.hub_down();
                "a part of the hub's files is lost"
            }
            2..30 => {
                if self.surgery.connected {
                    self.cut();
                }
                "connection cut"
            }
            30..38 => {
                self.broker.stuck = self.surgery.connected;
                "connection half-open"
            }
            38..48 => {
                self.broker.restart(&mut self.random, &mut self.seen);
                self.cut();
                "broker restart"
            }
            48..58 => {
                // Its session is over: its queued messages are lost.
                self.broker.hub.connected = false;
                self.broker.hub.queue.clear();
                "hub connection cut"
            }
            58..74 => {
                self.center.crash(&mut self.random, &mut self.seen);
                self.hub_down()
            }
            74..82 => {
                // If boxes prune early, the hub restores its last backup, which is not modelled once its files have lost a part;
                // otherwise any.
                if self.surgery.prunes && self.center.has_lost {
                    return;
                }
                let backups = &self.center.backups;
                let least = if self.surgery.prunes { backups.len().saturating_sub(1) } else { 0 };
                let choice = least as u64 + self.random.below((backups.len() - least).max(1) as u64);
                let length = backups.get(choice as usize).copied().unwrap_or(0);
                self.center.restore(length, &mut self.seen);
                self.hub_down()
            }
            82..84 if self.random.percent(50) => {
                self.hub_takes_less();
                return;
            }
            82..84 => {
                let head = self.surgery.machine.confirmed() as usize;
                let Some(id) = self.surgery.disk.records.get(head + self.random.below(5) as usize) else {
                    return;
                };
                self.poison = Some((*id, 2 + self.random.below(6)));
                return;
            }
            84..86 => {
                if self.center.up && !self.center.has_snapshot() {
                    self.center.take_snapshot(self.now, &mut self.seen);
                    return;
                }
                if !self.center.up || self.surgery.prunes || !self.center.set_back() {
                    return;
                }
                self.broker.hub.connected = false;
                self.broker.hub.queue.clear();
                "hub set back with its memory"
            }
            86..94 => {
                if self.surgery.disk.watermark.map_or(0, |at| at.position) < self.surgery.watermark {
                    self.seen.note("confirmed watermark lost at a crash");
                }
                if !self.surgery.prunes && self.random.percent(10) {
                    self.surgery.disk.watermark = None;
                }
                self.box_down();
                "box crash"
            }
            94..97 => {
                self.images.push(self.surgery.disk.clone());
                return;
            }
            _ => {
                if self.images.is_empty() {
                    return;
                }
                let index = self.random.below(self.images.len() as u64) as usize;
                self.surgery.disk = self.images[index].clone();
                let disk = &self.surgery.disk;
                self.beyond_help = self.lost.iter().copied().filter(|id| !disk.can_read(*id)).collect();
                self.box_down();
                "box restored from an image"
            }
        };
        if self.surgery.machine.counts().held.is_some() && self.random.percent(50) {
            self.surgery.give(Input::ReleaseHeld, self.now, &mut self.seen);
        }
        self.outages += 1;
        self.seen.note(what);
        self.log(|| what.into());
    }

    /// Another version of the hub does not take one of the next records.
    fn hub_takes_less(&mut self) {
        let place = self.surgery.machine.confirmed() as usize + self.random.below(5) as usize;
        self.center.too_large = self.surgery.disk.records.get(place).copied();
    }

    /// The disk destroys a waiting record now and then; a person writes off the record that stalls the lane.
    fn person(&mut self) {
        if self.faults > 0 && self.destroys && self.random.below(300) == 0 {
            let position = self.surgery.watermark + 1 + self.random.below(8);
            let digest = self.random.percent(80);
            let disk = &mut self.surgery.disk;
            if !disk.is_gone(position) && position <= disk.tail() {
                disk.destroy(position, digest);
                // Lost in both places: an image had set the watermark back before it.
                let id = disk.records[position as usize - 1];
                self.beyond_help.extend(self.lost.contains(&id).then_some(id));
                self.seen.note("a record is destroyed");
                if self.random.percent(50) {
                    self.surgery.tell_gone(self.now, &mut self.seen);
                }
            }
        }
        let Some(missing) = self.surgery.machine.counts().missing else { return };
        if self.surgery.disk.lost.get(&missing).is_none_or(|lost| lost.released) {
            // The outbox notices that its list was old.
            self.surgery.tell_gone(self.now, &mut self.seen);
        } else if self.faults == 0 || self.random.percent(10) {
            self.seen.note("released by a person");
            self.released.insert(self.surgery.disk.records[missing as usize - 1]);
            self.surgery.disk.release(missing);
            self.surgery.tell_gone(self.now, &mut self.seen);
        }
    }

    /// Bundles and receipts are carried by hand, at any moment, in any order, more than once, and with the link up or
    /// down.
    fn carry(&mut self) {
        if self.random.percent(1) {
            let most = 1 + self.random.below(40);
            let mut after = None;
            if self.random.percent(50) {
                // The end of the hub's line comes by file too, and may be as old as the simulation.
                let here = center::end(&self.center.entries, 0);
                self.ends.push(here);
                let index = if self.random.percent(50) {
                    self.ends.len() - 1
                } else {
                    self.random.below(self.ends.len() as u64) as usize
                };
                let end = self.ends[index];
                let new_epoch = self.fresh();
                after = self.surgery.end_by_file(end, new_epoch, self.now, &mut self.seen);
                self.seen.note(if after.is_some() { "an end by file" } else { "an end by file is refused" });
            }
            let bundle = self.surgery.export(after, most);
            if !bundle.packets.is_empty() {
                self.seen.note("bundle exported");
                self.bundles.push(bundle);
            }
        }
        if !self.bundles.is_empty() && self.random.percent(2) {
            let index = self.random.below(self.bundles.len() as u64) as usize;
            let bundle = self.bundles[index].clone();
            if self.random.percent(80) {
                self.bundles.swap_remove(index);
            }
            if self.center.up {
                let incarnation = self.random.bits();
                let receipt = self.center.import(&bundle, incarnation, self.now, &mut self.seen);
                self.receipts.extend(receipt);
            }
        }
        if !self.receipts.is_empty() && self.random.percent(2) {
            let index = self.random.below(self.receipts.len() as u64) as usize;
            let receipt = self.receipts[index].clone();
            if self.random.percent(80) {
                self.receipts.swap_remove(index);
            }
            self.seen.note("receipt by file");
            let before = self.surgery.watermark;
            self.surgery.give(Input::Imported(receipt), self.now, &mut self.seen);
            let task = self.fresh();
            if !self.surgery.connected {
                self.surgery.work(task, self.now, &mut self.seen);
                if self.surgery.watermark > before {
                    self.seen.note("receipt by file confirms, without a link");
                }
            }
        }
    }

    fn hub_down(&mut self) -> &'static str {
        self.broker.hub.connected = false;
        self.broker.hub.queue.clear();
        if self.random.percent(70) {
            return "hub crash";
        }
        self.start_hub_at = self.now + self.random.below(3_000);
        "hub stopped for a while"
    }

    fn box_down(&mut self) {
        self.cut();
        self.surgery.start();
    }

    /// What must hold at every moment.
    fn check(&mut self) {
        for (from, to) in self.surgery.confirmations.drain(..) {
            for position in from + 1..=to {
                let id = self.surgery.disk.records[position as usize - 1];
                let ever = self.center.ever.contains(&id) || self.released.contains(&id);
                assert!(ever, "position {position} was confirmed and the hub's disk never had it");
            }
        }
        for (from, to) in self.surgery.prunings.drain(..) {
            for position in from + 1..=to {
                let id = self.surgery.disk.records[position as usize - 1];
                let kept = self.center.has_backup_of(id) || self.released.contains(&id);
                assert!(kept, "position {position} was pruned and is in no backup");
            }
        }
    }

    /// The faults stop: everything must reach the hub.
    fn finish(&mut self) {
        self.faults = 0;
        self.broker.stuck = false;
        if self.random.percent(20) {
            self.hub_takes_less();
            for _ in 0..300 {
                self.turn();
            }
        }
        // It takes it now, and nobody says so: the gateway tries it again.
        if self.center.too_large.take().is_some() && self.surgery.machine.counts().held.is_some() {
            self.seen.note("held when the faults stop");
        }
        let mut connections = 0;
        for turn in 0.. {
            self.turn();
            let busy = !self.surgery.up.is_empty()
                || !self.broker.down.is_empty()
                || !self.surgery.tasks.is_empty()
                || !self.broker.hub.queue.is_empty();
            // A hub that was restored a moment ago has not reported it before it is connected and heard.
            let heard = self.surgery.connected && self.broker.hub.connected;
            let quiet = self.center.up && self.center.is_quiet();
            if quiet && heard && !busy && self.surgery.machine.confirmed() == self.surgery.disk.tail() {
                // A hub that was restored to a store without this lane knows no gateway to tell: a gateway that has
                // nothing to send finds out at its next connection.
                if connections > 0 {
                    break;
                }
                connections += 1;
                self.cut();
            }
            assert!(turn < 20_000, "not everything is confirmed: {:?}", self.surgery.machine);
            if !busy && turn % 20 == 19 {
                let next = self.surgery.machine.deadline().unwrap_or(self.now + 100);
                self.now = self.now.max(next);
            }
        }
    }

    /// What the box knows of its epochs, and the hub's line, each epoch's part of it in one.
    fn picture(&self, id: TransactionId) -> String {
        let mut text = format!("lost at the hub: {:?}\n", self.surgery.disk.lost_at_hub);
        for entry in self.center.entries.iter().filter(|entry| entry.id() == id) {
            text += &format!("row: {entry:?}\n");
        }
        for start in self.surgery.disk.numbering.epochs() {
            let link = start.link.map(|link| (link.epoch, link.through));
            let entries: Vec<_> = start.entries.iter().map(|entry| (entry.from, entry.through)).collect();
            let (epoch, base, follows) = (start.epoch, start.base, &start.follows);
            text +=
                &format!("{epoch:?} after {base}, at {link:?}, follows {follows:?}, entries {entries:?}\n");
        }
        for run in self.center.entries.chunk_by(|one, next| one.epoch == next.epoch) {
            text += &format!("line: {:?} 1 to {}\n", run[0].epoch, run.len());
        }
        text
    }

    fn verdict(&mut self) {
        let ours = &self.surgery.disk.records;
        let bodies = self.center.entries.iter().filter(|entry| entry.has_body());
        let stored: Vec<_> = bodies.clone().map(center::Entry::id).collect();
        let places: HashMap<_, _> = stored.iter().enumerate().map(|(place, id)| (*id, place)).collect();
        let again = &self.center.lost_again;
        let twice = stored.iter().enumerate().filter(|(place, id)| places.get(id) != Some(place));
        assert!(twice.map(|(_, id)| id).all(|id| again.contains(id)), "something is stored twice");
        assert!(bodies.clone().all(|entry| entry.content.body == 0), "something was changed");
        assert!(stored.iter().all(|id| self.accepted.contains(id)), "something was never accepted");
        let rows = self.center.entries.iter().filter(|entry| entry.lost.is_some());
        let for_good: HashSet<_> = rows.map(center::Entry::id).collect();
        let mut before = None;
        for (position, id) in (1..).zip(ours) {
            // What a person has written off may be at the hub all the same: it may have come there before it was lost, or
            // come back with an image.
            if self.released.contains(id) {
                continue;
            }
            let place = places.get(id).copied();
            if self.lost.contains(id) {
                // It comes again after what the hub still has.
                if place.is_some() && for_good.contains(id) {
                    self.seen.note("lost at the hub, and sent again");
                }
                let nobody = self.beyond_help.contains(id) && !self.surgery.disk.can_read(*id);
                assert!(
                    place.is_some() || nobody,
                    "{id:?}, position {position}, is lost at the hub\n{}",
                    self.picture(*id)
                );
                let is_known = self.surgery.disk.is_not_at_hub(position) || self.center.replaced.contains(id);
                assert!(
                    place.is_some() || is_known,
                    "the gateway believes that {id:?}, position {position}, is at the hub\n{}",
                    self.picture(*id)
                );
                continue;
            }
            assert!(place.is_some(), "{id:?} is missing at the hub");
            assert!(place > before, "{id:?} is out of order at the hub");
            before = place;
        }
        let mut before: Option<Through> = None;
        for entry in &self.center.entries {
            let same = before.filter(|before| before.epoch == entry.epoch);
            assert_eq!(entry.sequence, same.map_or(0, |before| before.through) + 1, "the line has a gap");
            before = Some(Through { epoch: entry.epoch, through: entry.sequence, chain: entry.chain });
        }
    }
}

fn episode(seed: u64, log: bool) -> World {
    let mut world = World::new(seed);
    world.log = log;
    for _ in 0..TURNS {
        world.turn();
    }
    world.finish();
    world.verdict();
    world
}

#[test]
fn nothing_is_lost_repeated_or_reordered() {
    let given = std::env::var("PGW_SEED").ok().map(|seed| seed.parse::<u64>().expect("PGW_SEED is a number"));
    let seed = given.unwrap_or_else(|| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("a clock");
        now.as_nanos() as u64
    });
    println!("PGW_SEED={seed} repeats this run");
    let mut seeds = Random(seed);
    let (mut outages, mut episodes, mut accepted, mut stored) = (0, 0, 0, 0);
    let mut seen = Seen::default();
    while outages < OUTAGES {
        let seed = seeds.bits();
        let run = std::panic::catch_unwind(|| episode(seed, false));
        let world =
            run.unwrap_or_else(|_| panic!("episode {episodes} of this run failed; its own seed is {seed}"));
        outages += world.outages;
        episodes += 1;
        accepted += world.accepted.len();
        stored += world.center.entries.len();
        for (what, times) in &world.seen.0 {
            *seen.0.entry(what).or_default() += times;
        }
    }
    println!("{outages} outages in {episodes} episodes, {accepted} transactions accepted, {stored} stored");
    for (what, times) in &seen.0 {
        println!("{times:>9} {what}");
    }
    for what in MUST_BE_SEEN {
        assert!(seen.0.contains_key(what), "never met: {what}");
    }
}

/// One episode with its log: `PGW_EPISODE=seed cargo test --test model simulation::one_episode -- --nocapture`.
#[test]
fn one_episode() {
    let given = std::env::var("PGW_EPISODE").ok();
    let seed = given.as_ref().map_or(7, |seed| seed.parse().expect("a number"));
    let world = episode(seed, given.is_some());
    assert!(world.outages > 0, "an episode without an outage shows nothing");
}
