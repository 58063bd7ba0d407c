//! Every order of events within small bounds, over the real delivery machines and the hub's real committer.
//!
//! The simulation meets many long histories by chance; this meets all short ones. A world has one or two boxes, which
//! share the broker's queue, the hub, its store and its crashes, with one or two lanes each, which share a connection.
//! In every reachable state:
//! - the hub's store holds a prefix of what each lane accepted, without gap, repetition or exchange;
//! - a receipt says what is on the hub's disk, no more and no less, and nothing of a lane that is out of use;
//! - a lane that is out of use at the hub stops no other;
//! - a watermark never passes what was on the hub's disk, nor, if the hub was never restored, what is; the only
//!   exception is what a person wrote off as a void;
//! - no number of an epoch is used for two contents;
//! - nothing is pruned that is not in the hub's backup, and nothing larger than the broker's limit is sent;
//! - a held lane stops no other, and delays nothing before the held record; only what the broker or the hub does not take is
//!   held;
//! - if the faults stopped here, everything would be confirmed.
//!
//! The last is how liveness is proven. stateright's `eventually` says nothing about paths that end in a cycle, and a
//! lane that asks for ever is a cycle. So every reachable state is continued separately, without faults, by one fair
//! schedule, and must come to rest after a bounded number of steps. This shows that no reachable state is a trap. It
//! does not show that every other fair schedule comes to rest: the simulation draws those.
//!
//! Some worlds have more than one of what there should be one of, or a store that changes under its hub. All of this holds
//! there too, and:
//! - Two boxes with one store have no order between them, and use one number for two contents. At the hub a number has one
//!   content all the same, each box's transactions are there in its order, and both boxes deliver without a person.
//! - A box that was replaced never runs again. What it has not delivered, and what a hub that is restored later lacks of it, is on
//!   its disk, for people to carry.
//! - A hub whose store has changed without it may say, until its next group, that its line ends where it once did: its gateway
//!   sends the rest again, and prunes nothing of it. It never claims more, nor that a lane is empty that is not: its driver, like the
//!   store thread, withholds that, and if no group comes then, only a person who starts the hub again ends it.
//! - The store compares each row of a group with the end that it has itself. If something does not follow, the hub begins again
//!   from there, and says exactly what is stored from then on.
//!
//! `PGW_LONG`: larger bounds (`tests/all.sh --long`). Each world prints how many states it has.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Instant;

use pgw_core::chain::{ChainValue, Digest, Through};
use pgw_core::committer;
use pgw_core::committer::{Committer, GroupLimits, Lookup, Missed, Refusal, Statement, Way};
use pgw_core::delivery::{Action, Delivery, Input, Layout, Limits, LostNumbers, Millis, Point, Receipt};
use pgw_core::transaction::{Epoch, Kind, LaneName, Position, Sequence, TransactionId};
use pgw_core::wire::signature::KeyId;
use stateright::{Checker, Model, Property};

use crate::world::broker::{Down, Up};
use crate::world::center::{self, Entry, Line, backed_up, index_of, name, watermarks};
use crate::world::surgery::Disk;
use crate::world::{Content, id};

/// Ids from here on belong to records that are larger than the broker's limit.
const LARGE: u64 = 1_000;
/// Ids from here on belong to records that are beyond the limits of the hub.
const BEYOND: u64 = 2_000;
/// An id that no box has accepted, and one that is beyond the limits of the hub too.
const STRANGE: u64 = 999;
const STRANGE_BEYOND: u64 = 2_999;
/// The broker's limit, and the size of a large record.
const LIMIT: (u64, u64) = (50, 100);

/// How often each kind of fault may come in one history.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
struct Budget {
    /// One number for each lane of each box.
    accepts: Vec<Vec<u8>>,
    /// How many records of the first box's first lane are too large for the broker.
    large: u8,
    /// How many of them are beyond the limits of the hub.
    beyond: u8,
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
    /// Records that the disk of the first box destroys.
    destroyed: u8,
    /// Transactions that are exchanged on their way.
    altered: u8,
    /// Messages that the broker says again, whenever it wants.
    replays: u8,
    /// Files that say where the hub's line ends, or ended once.
    files: u8,
    /// Parts that the hub's files lose from the middle of the first lane's line.
    holes: u8,
    /// Groups that the hub's store does not store, or not completely.
    failed_appends: u8,
    /// Groups of which the hub's store cannot store some lanes, because their files fail.
    failed_lanes: u8,
    /// Id look-ups that the store cannot answer.
    unsure: u8,
    /// New connections of the hub, which keeps running.
    reconnects: u8,
    /// Transactions that make a group full; 0: no limit.
    group: usize,
    /// The store of the first box begins to run on another one too, which has the accepts of the second box.
    twins: u8,
    /// Another box with an empty store takes the place of the first, for good, and has the accepts of the second box.
    replacements: u8,
    /// How often another hub process speaks from now on. There are two, each with its own memory, and one store.
    takeovers: u8,
    /// How often a person puts the backup in the place of the hub's store, while the hub runs.
    set_backs: u8,
}

/// One lane of one box, and what the hub wants to publish for it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Stream {
    /// The lane that it sends. Of two boxes with one lane the first one's stream keeps what the hub wants to publish for it.
    lane: usize,
    machine: Delivery,
    disk: Disk,
    watermark: Position,
    point: Option<Through>,
    retained: Option<Receipt>,
    /// What the hub wants to publish, and how often it has published since its start.
    waiting: Option<Statement>,
    /// What it says with that is lost for good.
    lost: Vec<LostNumbers>,
    counter: u8,
    accepted: u8,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Surgery {
    /// Indexes of its lanes.
    lanes: Vec<usize>,
    connected: bool,
    connections: u8,
    published: VecDeque<(usize, Position)>,
    down: VecDeque<(usize, Down)>,
    image: Option<Vec<Disk>>,
    /// It was replaced, and never runs again.
    retired: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct World {
    left: Budget,
    now: Millis,
    streams: Vec<Stream>,
    boxes: Vec<Surgery>,
    /// The broker's queue for the hub: all boxes and lanes share it.
    up: VecDeque<(usize, Up)>,
    limited: bool,
    /// The hub that runs does not take what is beyond its limits.
    hub_limited: bool,
    hub: Committer<Line>,
    /// The hub's store: all of it crashes and is restored together.
    disk: HubDisk,
    backup: usize,
    /// A receipt differed from what was on the hub's disk.
    lied: bool,
    /// Ids that were on its disk at some time, and those that a person wrote off as lost.
    ever: BTreeSet<TransactionId>,
    released: BTreeSet<TransactionId>,
    /// Ids whose rows the hub has lost, and those of them that the box had pruned by then, or prunes on an answer from before.
    lost: BTreeSet<TransactionId>,
    beyond_help: BTreeSet<TransactionId>,
    /// What was in the backup then.
    in_old_backup: BTreeSet<TransactionId>,
    /// Everything that was ever published, for a broker that says it again.
    recorded: BTreeSet<(usize, Up)>,
    /// Every end that the hub has ever named, for the files.
    ends: BTreeSet<(usize, Option<Through>)>,
    /// The highest tail of each epoch that a position has named.
    tails: BTreeMap<(usize, Epoch), Sequence>,
    images_used: bool,
    /// Lanes for which the centre is asked to admit something.
    wants_admission: BTreeSet<usize>,
    restored: bool,
    incarnation: u8,
    /// How many hub processes have started.
    started: u8,
    epochs: u8,
    /// The first box's store runs on two boxes.
    twin: bool,
    /// The hub process that does not speak now.
    resting: Option<Box<Process>>,
    /// Lanes of which the store may have changed without the hub that speaks.
    stale: BTreeSet<usize>,
    /// A receipt was withheld: it claims more than is stored.
    withheld: bool,
}

/// What is on the hub's stable storage.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
struct HubDisk {
    entries: Vec<Entry>,
    /// Beside the lines.
    late: Vec<Entry>,
    /// After the last of the line these are missing, and those come then.
    missing: Vec<Entry>,
    after: Vec<Entry>,
    closings: center::Closings,
    cannot_say: bool,
    /// Lanes whose files have failed.
    out: BTreeSet<usize>,
}

/// What a hub process knows while another one speaks.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Process {
    hub: Committer<Line>,
    incarnation: u8,
    /// For each stream what it wants to publish, and how often it has published.
    waiting: Vec<(Option<Statement>, u8)>,
}

/// How an append fails.
#[derive(Debug, Clone, Copy)]
enum Fails {
    /// The whole store, except for the lanes with these bits.
    Store(u8),
    /// The files of the lanes with these bits; `kept`: what they have of the group shows when they can be used again.
    Lanes { lanes: u8, kept: bool },
}

impl Fails {
    fn keeps(self, of: usize) -> bool {
        match self {
            Fails::Store(kept) => kept & (1 << of) != 0,
            Fails::Lanes { lanes, kept } => kept || lanes & (1 << of) == 0,
        }
    }
}

impl HubDisk {
    /// Where the line goes on after what is missing.
    fn until(&self) -> Vec<Through> {
        let whole: Vec<_> = self.entries.iter().chain(&self.missing).copied().collect();
        watermarks(&whole, 0)
    }

    /// What is stored of a group: of a lane with a hole only what refills it. Where the hub's memory may be wrong (`stale`), the store
    /// compares what comes with the end that it has itself, and after what does not fit takes nothing more of its lane.
    fn write(&mut self, group: impl Iterator<Item = Entry>, stale: &BTreeSet<usize>) {
        let mut refused = BTreeSet::new();
        for entry in group {
            let compared = stale.contains(&entry.of);
            if compared && (refused.contains(&entry.of) || !center::continues(&self.entries, &entry)) {
                refused.insert(entry.of);
                continue;
            }
            if !self.after.is_empty() && entry.of == 0 {
                let Some(next) = self.missing.first() else { continue };
                assert_eq!((next.epoch, next.sequence), (entry.epoch, entry.sequence), "it refills the hole");
                self.missing.remove(0);
            }
            self.entries.push(entry);
        }
        if self.missing.is_empty() {
            self.entries.append(&mut self.after);
        }
    }
}

impl Lookup<Line> for HubDisk {
    fn hole(&self, lane: &LaneName) -> Option<Vec<Through>> {
        (index_of(lane) == 0 && !self.after.is_empty()).then(|| self.until())
    }

    fn watermarks_of(&self, lane: &LaneName) -> Option<Vec<Through>> {
        let of = index_of(lane);
        (!self.out.contains(&of)).then(|| watermarks(&self.entries, of))
    }

    fn content(&mut self, lane: &LaneName, id: TransactionId, digest: Digest) -> Option<committer::Content> {
        let of = index_of(lane);
        let mut found = committer::Content::Unknown;
        let kept = self.entries.iter().filter(|entry| entry.stored);
        for entry in kept.filter(|entry| entry.of == of && entry.id() == id) {
            match entry.content.digest() == digest {
                true => return (!self.cannot_say).then_some(committer::Content::Same),
                false => found = committer::Content::Other,
            }
        }
        (!self.cannot_say).then_some(found)
    }

    fn value_at(&mut self, lane: &LaneName, epoch: Epoch, sequence: Sequence) -> Option<Option<ChainValue>> {
        (!self.cannot_say).then(|| center::value_at(self.entries.iter(), index_of(lane), epoch, sequence))
    }

    fn late_at(&mut self, lane: &LaneName, epoch: Epoch, sequence: Sequence) -> Vec<ChainValue> {
        center::value_at(self.late.iter(), index_of(lane), epoch, sequence).into_iter().collect()
    }

    fn signed_by(&mut self, record: &Line, chain: ChainValue, _: Way) -> Option<KeyId> {
        center::signed_by(record, chain)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Step {
    Accept(usize),
    AcceptLarge,
    AcceptBeyond,
    /// The broker's limit is raised; a connected box learns it at its next connection.
    RaiseLimit,
    /// The hub starts again, in a version that takes more.
    HubUpgraded,
    Connect(usize),
    Cut(usize),
    /// Power cut of a box; its watermarks go back to the last synced ones.
    BoxCrash(usize),
    WatermarkSynced(usize),
    TakeImage,
    RestoreImage,
    /// The disk destroys the first unconfirmed record of the first lane, and perhaps its digest.
    Destroy {
        digest: bool,
    },
    /// A person writes off the record that stalls a lane.
    Release(usize),
    /// The broker passes its next message to the hub.
    HubTakes,
    /// ... and will deliver it once more.
    HubTakesAndAgain,
    /// ... or has dropped it after its PUBACK.
    BrokerDrops,
    /// ... or the message is not what the box sent; `fits`: its chain value is what follows then.
    Altered {
        fits: bool,
    },
    /// ... or says again what it has heard before.
    Replays(usize),
    /// A file says where the hub's line ends; the bundle that begins there is imported at once, or is lost.
    EndByFile {
        place: usize,
        carried: bool,
    },
    /// The centre lets a lane continue.
    Admit(usize),
    /// ... and the store cannot tell whether it has the id.
    HubTakesUnsure,
    /// The hub's group is stored, and answers that are due are sent.
    HubStores,
    /// It is not stored, except the lanes with these bits.
    AppendFails(u8),
    /// The files of the lanes with these bits fail; the others are stored.
    LanesFail {
        lanes: u8,
        kept: bool,
    },
    /// The files of a lane can be used again.
    LaneComesBack(usize),
    /// The next message makes the group full; the append fails, with or without storing it.
    TakenAppendFails {
        kept: bool,
    },
    HubSendsReceipt(usize),
    HubConnects,
    HubBacksUp,
    /// It restarts at once; `kept`: its group had reached the disk.
    HubCrash {
        kept: bool,
    },
    HubRestored,
    /// The first box's store runs on another box too.
    BoxCopied,
    /// A new box takes its place.
    BoxReplaced,
    /// The other hub process speaks from now on.
    OtherHubSpeaks,
    /// The backup is put in the place of the store, and the hub runs on.
    StoreSetBack,
    /// Its files lose these rows, from the first to before the other, which it finds when it starts again.
    HubLoses {
        from: usize,
        to: usize,
    },
    GatewayTakes(usize),
    ReceiptLost(usize),
    Tick(usize),
}

impl World {
    fn new(left: Budget) -> Self {
        let mut world = Self {
            now: 0,
            streams: Vec::new(),
            boxes: Vec::new(),
            up: VecDeque::new(),
            limited: left.large > 0,
            hub_limited: left.beyond > 0,
            hub: center::begin(group_limits(&left), &[], 0, false),
            disk: HubDisk::default(),
            backup: 0,
            lied: false,
            ever: BTreeSet::new(),
            released: BTreeSet::new(),
            lost: BTreeSet::new(),
            beyond_help: BTreeSet::new(),
            in_old_backup: BTreeSet::new(),
            recorded: BTreeSet::new(),
            ends: BTreeSet::new(),
            tails: BTreeMap::new(),
            images_used: false,
            wants_admission: BTreeSet::new(),
            restored: false,
            incarnation: 1,
            started: 1,
            epochs: 100,
            twin: false,
            resting: None,
            stale: BTreeSet::new(),
            withheld: false,
            left,
        };
        // A box that comes later has the accepts of the last.
        let later = usize::from(world.left.twins + world.left.replacements);
        let accepts = world.left.accepts.clone();
        for lanes in &accepts[..accepts.len() - later] {
            let first = world.streams.len();
            let lanes = first..first + lanes.len();
            world.add_box(lanes.map(|index| (index, Disk::new(name(index), index as u64 + 1))).collect());
        }
        world
    }

    /// A box, by the lane and the disk of each of its streams.
    fn add_box(&mut self, disks: Vec<(usize, Disk)>) {
        let first = self.streams.len();
        let lanes = (first..first + disks.len()).collect();
        self.streams.extend(disks.into_iter().map(|(lane, disk)| Stream {
            lane,
            machine: Delivery::new(limits(), disk.numbering.clone(), None, 0),
            accepted: disk.records.len() as u8,
            disk,
            watermark: 0,
            point: None,
            retained: None,
            waiting: None,
            lost: Vec::new(),
            counter: 0,
        }));
        self.boxes.push(Surgery {
            lanes,
            connected: false,
            connections: 0,
            published: VecDeque::new(),
            down: VecDeque::new(),
            image: None,
            retired: false,
        });
    }

    fn owner(&self, index: usize) -> usize {
        self.boxes.iter().position(|surgery| surgery.lanes.contains(&index)).expect("every lane has a box")
    }

    fn may_accept(&self, index: usize) -> bool {
        let surgery = self.owner(index);
        !self.boxes[surgery].retired && self.left.accepts[surgery][index - self.boxes[surgery].lanes[0]] > 0
    }

    /// `kind`: added to its id.
    fn accept(&mut self, index: usize, kind: u64) {
        let surgery = self.owner(index);
        let place = index - self.boxes[surgery].lanes[0];
        self.left.accepts[surgery][place] -= 1;
        let stream = &mut self.streams[index];
        stream.accepted += 1;
        let number = index as u64 * 100 + u64::from(stream.accepted) + kind;
        stream.disk.commit(id(number));
        let tail = stream.disk.tail();
        self.give(index, Input::Committed(tail));
    }

    // ---- the box

    fn give(&mut self, index: usize, input: Input) {
        let mut actions = Vec::new();
        let now = self.now;
        self.streams[index].machine.handle(input, now, &mut actions);
        let mut actions = VecDeque::from(actions);
        loop {
            while let Some(action) = actions.pop_front() {
                let mut more = Vec::new();
                self.act(index, action, &mut more);
                actions.extend(more);
            }
            let stream = &mut self.streams[index];
            let Some(position) = stream.machine.wanted() else { break };
            let large = |of| if (id(LARGE)..id(BEYOND)).contains(&of) { LIMIT.1 } else { 1 };
            let Some(input) = stream.disk.offer(position, large) else {
                let surgery = self.owner(index);
                self.cut(surgery);
                break;
            };
            let mut more = Vec::new();
            stream.machine.handle(input, now, &mut more);
            actions.extend(more);
        }
    }

    fn act(&mut self, index: usize, action: Action, more: &mut Vec<Action>) {
        let surgery = self.owner(index);
        let stream = &mut self.streams[index];
        match action {
            Action::AskPosition { nonce, epoch, tail, point } => {
                // Of interest only where a box can come back with less.
                let less = self.left.images > 0 || self.images_used || self.left.twins > 0 || self.twin;
                let tail = if less { tail } else { 0 };
                self.publish(index, Up::Position { nonce, epoch, tail, point });
            }
            Action::Send { position, round } => {
                let packet = stream.disk.packet(position, round).expect("what is sent was read");
                self.boxes[surgery].published.push_back((index, position));
                self.publish(index, packet);
                // The broker takes what reaches it at once; a message in flight and one in its queue are equivalent.
                self.boxes[surgery].down.push_back((index, Down::PubAck(Ok(()))));
            }
            Action::Confirm { position, point, backed_up_through, asked } => {
                stream.watermark = position;
                (stream.point, stream.disk.point) = (point, point);
                let backed_up_through = backed_up_through.filter(|_| asked.is_some());
                let through = backed_up_through.unwrap_or(0).min(position);
                if through > stream.disk.pruned {
                    stream.disk.watermark = point.map(|at| Point { position, at });
                    stream.disk.pruned = through;
                    let gone = stream.disk.gone();
                    stream.machine.handle(Input::Gone(gone), self.now, more);
                }
            }
            // Pruning comes with the answer that allows it.
            Action::Withdraw => {}
            Action::LostAtHub(lost) => stream.disk.lost_at_hub = lost,
            Action::LookUpChain { epoch, sequence } => {
                let chain = stream.disk.value(epoch, sequence);
                stream.machine.handle(Input::ChainAt { epoch, sequence, chain }, self.now, more);
            }
            Action::NewEpoch { after, link, follows, gone } => {
                self.epochs += 1;
                stream.disk.renumber(u64::from(self.epochs), (after, link, follows), &gone);
                let numbering = stream.disk.numbering.clone();
                stream.machine.handle(Input::Renumbered(numbering), self.now, more);
            }
            Action::Reconnect(_) => self.cut(surgery),
            Action::Alarm(_) => {}
        }
    }

    fn publish(&mut self, index: usize, packet: Up) {
        let index = self.streams[index].lane;
        if self.left.replays > 0 {
            self.recorded.insert((index, packet.clone()));
        }
        self.up.push_back((index, packet));
    }

    /// The broker's messages of the old connection are still delivered to the hub.
    fn offline(&mut self, surgery: usize) {
        let surgery = &mut self.boxes[surgery];
        surgery.connected = false;
        surgery.published.clear();
        surgery.down.clear();
    }

    fn cut(&mut self, surgery: usize) {
        self.offline(surgery);
        for index in self.boxes[surgery].lanes.clone() {
            self.give(index, Input::Disconnected);
        }
    }

    fn restart(&mut self, surgery: usize) {
        self.offline(surgery);
        for index in self.boxes[surgery].lanes.clone() {
            let stream = &mut self.streams[index];
            let watermark = stream.disk.watermark;
            stream.watermark = watermark.map_or(0, |point| point.position);
            stream.point = watermark.map(|point| point.at);
            stream.disk.forget();
            let numbering = stream.disk.numbering.clone();
            stream.machine = Delivery::new(limits(), numbering, watermark, stream.disk.tail());
            let gone = stream.disk.gone();
            stream.machine.handle(Input::Gone(gone), self.now, &mut Vec::new());
        }
    }

    fn connect(&mut self, surgery: usize) {
        let maximum_bytes = self.limited.then_some(LIMIT.0);
        let lanes = self.boxes[surgery].lanes.clone();
        self.boxes[surgery].connected = true;
        self.boxes[surgery].connections += 1;
        let mut nonce = [0; 16];
        (nonce[4], nonce[5]) = (surgery as u8, self.boxes[surgery].connections * 16);
        for index in &lanes {
            let retained = self.streams[self.streams[*index].lane].retained.clone();
            self.boxes[surgery].down.extend(retained.map(|receipt| (*index, Down::Receipt(receipt))));
        }
        for index in lanes {
            self.give(index, Input::Connected { nonce, receive_maximum: 100, maximum_bytes });
        }
    }

    fn release(&mut self, index: usize) {
        let stream = &mut self.streams[index];
        let Some(missing) = stream.machine.counts().missing else { return };
        self.released.insert(stream.disk.records[missing as usize - 1]);
        stream.disk.release(missing);
        let gone = stream.disk.gone();
        self.give(index, Input::Gone(gone));
    }

    /// Without a link the lane begins a bundle where the file says. All of it is as if it were published.
    fn end_by_file(&mut self, index: usize, end: Option<Through>, carried: bool) {
        let stream = &mut self.streams[index];
        let ours = end.and_then(|end| stream.disk.value(end.epoch, end.through));
        let Some(layout) = stream.machine.layout(end, ours, None) else { return };
        self.give(index, Input::EndByFile { end, ours, set_aside: None });
        let (Layout::Continues(after) | Layout::Begins(after)) = layout;
        let stream = &mut self.streams[index];
        let present = stream.disk.numbering.present();
        let mut number = present.number(after) + 1;
        while carried && stream.disk.numbering.present().positions(number).1 <= stream.disk.tail() {
            let position = stream.disk.numbering.present().positions(number).0;
            if stream.disk.is_gone(position) && stream.disk.numbering.present().entry_at(position).is_none() {
                break;
            }
            let Some(packet) = stream.disk.packet(position, 0) else { break };
            self.up.push_back((index, packet));
            number += 1;
        }
    }

    fn is_stalled_by_a_lost_record(&self, index: usize) -> bool {
        let stream = &self.streams[index];
        let lost = |missing| stream.disk.lost.get(&missing).is_some_and(|lost| !lost.released);
        stream.machine.counts().missing.is_some_and(lost)
    }

    // ---- the hub

    fn sends_receipt(&mut self, index: usize) -> Option<()> {
        let stream = &mut self.streams[index];
        let statement = stream.waiting.take()?;
        stream.counter += 1;
        if self.left.files > 0 {
            self.ends.insert((index, statement.end));
        }
        let number = (u64::from(self.incarnation), u64::from(stream.counter));
        let lost = stream.lost.clone();
        let receipt = Receipt { lost, ..center::receipt(number, statement, &self.tails, index) };
        stream.retained = Some(receipt.clone());
        self.gateways_hear(index, &Down::Receipt(receipt));
        Some(())
    }

    /// Every box that is connected hears what is said of its lane.
    fn gateways_hear(&mut self, lane: usize, packet: &Down) {
        for surgery in self.boxes.iter_mut().filter(|surgery| surgery.connected) {
            let of = surgery.lanes.iter().find(|index| self.streams[**index].lane == lane);
            surgery.down.extend(of.map(|index| (*index, packet.clone())));
        }
    }

    /// The store thread's turn. `fails`: the next append fails.
    fn tell_hub(&mut self, input: committer::Input<Line>, mut fails: Option<Fails>) {
        let mut next = Some(input);
        while let Some(input) = next.take() {
            let mut actions = Vec::new();
            self.hub.handle(input, self.now, &mut self.disk, &mut actions);
            for action in actions {
                match action {
                    committer::Action::Append => {
                        let fails = fails.take();
                        self.append(|of| fails.is_none_or(|fails| fails.keeps(of)));
                        next = Some(match fails {
                            Some(Fails::Store(_)) => committer::Input::StoreFailed,
                            Some(Fails::Lanes { lanes, .. }) => {
                                let of = |index: &usize| lanes & (1 << index) != 0;
                                self.disk.out.extend((0..self.streams.len()).filter(of));
                                committer::Input::Stored
                            }
                            None => committer::Input::Stored,
                        });
                    }
                    committer::Action::Receipt(lane, statement) => {
                        let index = index_of(&lane);
                        if !self.may_say(index, statement.end) {
                            continue;
                        }
                        let stream = &mut self.streams[index];
                        stream.waiting = Some(statement.instead_of(stream.waiting.take()));
                        stream.lost = center::lost(&self.disk.entries, index, &self.disk.closings);
                    }
                    committer::Action::Gap(lane, missed) => {
                        self.gateways_hear(index_of(&lane), &Down::Gap(missed));
                    }
                    committer::Action::Refuse(lane, Refusal::Admit | Refusal::Hole | Refusal::Epochs) => {
                        self.wants_admission.insert(index_of(&lane));
                    }
                    committer::Action::KeepLate(line) => {
                        let entry = Entry::from(&line);
                        if !self.disk.late.contains(&entry) {
                            self.disk.late.push(entry);
                        }
                    }
                    committer::Action::Refuse(..)
                    | committer::Action::Rival(..)
                    | committer::Action::Repeated(_)
                    | committer::Action::Recovered { .. } => {}
                }
            }
        }
    }

    fn append(&mut self, kept: impl Fn(usize) -> bool) {
        let group = center::provable(self.hub.group());
        self.disk.write(group.iter().copied().filter(|entry| kept(entry.of)), &self.stale);
        // Whatever has become of it, the hub has to compare its memory with the store now.
        self.stale.retain(|of| group.iter().all(|entry| entry.of != *of));
        self.withheld &= !self.stale.is_empty();
        self.ever.extend(self.disk.entries.iter().filter(|entry| entry.has_body()).map(Entry::id));
    }

    fn hub_takes(&mut self, (index, packet): &(usize, Up)) {
        center::note_tail(&mut self.tails, *index, packet);
        self.tell_hub(self.hub_input(*index, packet), None);
    }

    fn hub_input(&self, index: usize, packet: &Up) -> committer::Input<Line> {
        center::input(index, packet, |content| self.hub_limited && is_beyond(content))
    }

    fn hub_stores(&mut self) {
        self.tell_hub(committer::Input::Flush, None);
    }

    /// The centre lets a lane continue, or gives up what its files have lost.
    fn admit(&mut self, index: usize) {
        let present = self.streams[index].disk.numbering.present().epoch;
        if self.disk.hole(name(index)).is_some() && self.hub.may_admit(name(index)) == Some(present) {
            let late = if center::is_covered(&self.streams[index].disk, &self.disk.missing) {
                let newest = self.disk.after.last().map(|entry| entry.epoch);
                let whole = [&self.disk.entries[..], &self.disk.missing, &self.disk.after].concat();
                let epochs = watermarks(&whole, 0).iter().map(|end| end.epoch).collect();
                self.disk.closings.extend(newest.map(|newest| (newest, epochs)));
                let lost = |entry: Entry| Entry { stored: false, lost: newest, ..entry };
                self.disk.entries.extend(self.disk.missing.drain(..).map(lost));
                self.disk.entries.append(&mut self.disk.after);
                Vec::new()
            } else {
                self.disk.missing.clear();
                std::mem::take(&mut self.disk.after)
            };
            self.lost.extend(late.iter().map(Entry::id));
            self.disk.late.extend(late);
            self.tell_hub(committer::Input::ReadAgain(name(index).clone()), None);
        }
        self.tell_hub(committer::Input::Admit(name(index).clone()), None);
    }

    fn hub_loses(&mut self, from: usize, to: usize) {
        self.in_old_backup.extend(self.disk.entries[..self.backup].iter().map(Entry::id));
        self.disk.after = self.disk.entries.split_off(to);
        self.disk.missing = self.disk.entries.split_off(from);
        let ids: Vec<_> = self.disk.missing.iter().filter(|entry| entry.has_body()).map(Entry::id).collect();
        let disk = &self.streams[0].disk;
        let is_answer = |packet: &(usize, Down)| match packet {
            (_, Down::Receipt(receipt)) => receipt.nonce.is_some(),
            _ => false,
        };
        let answered = self.boxes[0].down.iter().any(is_answer);
        self.beyond_help.extend(ids.iter().filter(|id| answered || !disk.can_read(**id)));
        self.lost.extend(ids);
        self.backup = self.backup.min(from);
        self.hub_restarts();
    }

    fn hub_starts(&mut self, length: usize) {
        self.disk.entries.truncate(length);
        self.disk.late.clear();
        (self.disk.missing, self.disk.after) = (Vec::new(), Vec::new());
        self.disk.out.clear();
        self.backup = self.backup.min(length);
        self.hub_restarts();
    }

    fn hub_restarts(&mut self) {
        self.started += 1;
        self.incarnation = self.started;
        self.stale.clear();
        self.withheld = false;
        for stream in &mut self.streams {
            (stream.waiting, stream.counter) = (None, 0);
        }
        let has_hole = !self.disk.after.is_empty();
        self.hub = center::begin(group_limits(&self.left), &self.disk.entries, self.backup, has_hole);
        self.tell_hub(committer::Input::Connected, None);
        self.hub_stores();
    }

    fn hub_backs_up(&mut self) {
        self.backup = self.disk.entries.len();
        self.tell_hub(committer::Input::BackedUp(backed_up(&self.disk.entries)), None);
    }

    /// What is on the hub's disk, and what may be stored of its current group.
    fn taken(&self) -> impl Iterator<Item = Entry> {
        let mut group = center::provable(self.hub.group());
        if !self.stale.is_empty() {
            let mut disk = self.disk.clone();
            disk.write(group.into_iter(), &self.stale);
            group = disk.entries.split_off(self.disk.entries.len());
        }
        self.disk.entries.iter().copied().chain(group)
    }

    fn gateway_takes(&mut self, surgery: usize) {
        let (index, packet) = self.boxes[surgery].down.pop_front().expect("something is under way");
        match packet {
            Down::PubAck(outcome) => {
                let published = self.boxes[surgery].published.pop_front();
                let (of, position) = published.expect("a PUBACK belongs to a publish");
                self.give(of, Input::PubAck { position, outcome });
            }
            Down::Receipt(receipt) => self.give(index, Input::Receipt(receipt)),
            Down::Gap(gap) => {
                let Missed { code, epoch, expected, round } = gap;
                let input = Input::Gap { code, epoch, expected, round };
                self.give(index, input);
            }
        }
    }

    // ---- invariants

    /// The hub's store, as far as a box still has it, is a prefix of each lane's records; nothing is in it twice.
    fn is_in_order_and_once(&self) -> bool {
        (0..self.streams.len()).all(|index| {
            let ours = self.taken().filter(|entry| entry.of == self.streams[index].lane && entry.has_body());
            let stored: Vec<_> = ours.map(|entry| entry.id()).collect();
            let once = stored.iter().enumerate().all(|(place, id)| !stored[..place].contains(id));
            // A written-off record may have reached the hub before it was lost; its position cannot be wrong. What the hub has lost
            // comes again after what it still has.
            let counts = |id: &&TransactionId| !self.released.contains(*id) && !self.lost.contains(*id);
            let ours = &self.streams[index].disk.records;
            let kept: Vec<_> = stored.iter().filter(counts).filter(|id| ours.contains(id)).collect();
            once && kept.iter().zip(ours.iter().filter(counts)).all(|(stored, ours)| *stored == ours)
        })
    }

    fn watermark_is_true(&self) -> bool {
        self.streams.iter().all(|stream| {
            let mut marked = (1..).zip(stream.disk.records.iter().take(stream.watermark as usize));
            marked.all(|(position, id)| {
                let mut disk = self.disk.entries.iter().chain(&self.disk.after);
                let mut on_disk = || disk.any(|entry| entry.has_body() && entry.id() == *id);
                // A void excuses the box that has lost the record, not one that came back with it.
                let void = stream.disk.lost.get(&position).is_some_and(|lost| lost.released);
                let lost = self.lost.contains(id);
                void || (self.ever.contains(id) && (self.restored || lost || on_disk()))
            })
        })
    }

    /// A number of an epoch is used for one content, at the hub and on the way to it.
    fn numbers_are_used_once(&self) -> bool {
        let named = |entry: &Entry| (entry.of, entry.epoch, entry.sequence);
        let taken: Vec<_> = self.taken().collect();
        taken.iter().enumerate().all(|(place, entry)| {
            taken[..place].iter().all(|other| named(other) != named(entry))
                && self.up.iter().all(|(of, packet)| match packet {
                    Up::Transaction { epoch, sequence, content, chain, signs, .. } => {
                        // What a broker has made of it is no use of its number.
                        let ours = !is_strange(content.id);
                        let signed = ours && signs == chain && (*of, *epoch, *sequence) == named(entry);
                        !signed || *chain != entry.chain || *content == entry.content
                    }
                    Up::Position { .. } => true,
                })
        })
    }

    /// Whether the box knows of every confirmed transaction whose content the hub has not got, and whether there is only such as
    /// nobody has any more.
    fn confirmed_is_at_the_hub(&self) -> bool {
        self.streams.iter().enumerate().all(|(index, stream)| {
            let disk = &stream.disk;
            // What a hub that was restored lacks of a box that is gone, only that box's disk has.
            let lacks = self.restored && self.boxes[self.owner(index)].retired;
            let mut marked = (1..).zip(disk.records.iter().take(stream.watermark as usize));
            marked.all(|(position, id)| {
                let here = self.disk.entries.iter().any(|entry| entry.has_body() && entry.id() == *id);
                let late = self.disk.late.iter().any(|entry| entry.id() == *id);
                let deleted = self.beyond_help.contains(id) && !disk.can_read(*id);
                let nobody = deleted || self.released.contains(id) || late;
                here || lacks || (disk.is_not_at_hub(position) && (self.restored || nobody))
            })
        })
    }

    fn pruned_is_backed_up(&self) -> bool {
        self.streams.iter().all(|stream| {
            let mut pruned = stream.disk.records.iter().take(stream.disk.pruned as usize);
            let backup = &self.disk.entries[..self.backup];
            pruned.all(|id| {
                self.in_old_backup.contains(id)
                    || backup.iter().any(|entry| entry.has_body() && entry.id() == *id)
            })
        })
    }

    fn only_what_fits_is_sent(&self) -> bool {
        let large = |packet: &Up| matches!(packet, Up::Transaction { content, .. } if is_large(content));
        !self.limited || !self.up.iter().any(|(_, packet)| large(packet))
    }

    /// Only what the broker or the hub does not take is held.
    fn only_what_is_not_taken_is_held(&self) -> bool {
        self.streams.iter().all(|stream| {
            let held = stream.machine.counts().held;
            let record = held.and_then(|held| stream.disk.records.get(held as usize - 1));
            record.is_none_or(|record| *record >= id(LARGE))
        })
    }

    /// What a lane must reach without help: its tail, or the last record before one that is too large.
    fn must_reach(&self, index: usize) -> Position {
        let disk = &self.streams[index].disk;
        let taken = |of: &TransactionId| {
            (self.limited && (id(LARGE)..id(BEYOND)).contains(of)) || (self.hub_limited && *of >= id(BEYOND))
        };
        let held = disk.records.iter().position(taken);
        held.map_or(disk.tail(), |before| before as u64)
    }

    /// One step of a fair schedule without faults; `None`: nothing more will happen.
    fn next_step(&mut self, lanes_come_back: bool) -> Option<()> {
        let apart = self.boxes.iter().position(|surgery| !surgery.connected && !surgery.retired);
        let lost = (0..self.streams.len()).find(|index| self.is_stalled_by_a_lost_record(*index));
        if let Some(surgery) = apart {
            self.connect(surgery);
        } else if let Some(packet) = self.up.pop_front() {
            self.hub_takes(&packet);
        } else if self.hub.has_work() {
            self.hub_stores();
        } else if let Some(index) = self.streams.iter().position(|stream| stream.waiting.is_some()) {
            self.sends_receipt(index)?;
        } else if let Some(surgery) = self.boxes.iter().position(|surgery| !surgery.down.is_empty()) {
            self.gateway_takes(surgery);
        } else if let Some(index) = lost {
            self.release(index);
        } else if let Some(index) = self.wants_admission.pop_first() {
            self.admit(index);
        } else if lanes_come_back && self.disk.out.pop_first().is_some() {
            // Its gateway asks again by itself.
        } else if std::mem::take(&mut self.withheld) {
            // The log says so until a person starts the hub again.
            self.hub_restarts();
        } else {
            let machines = self.streams.iter().enumerate();
            let (deadline, index) =
                machines.filter_map(|(index, stream)| Some((stream.machine.deadline()?, index))).min()?;
            self.now = self.now.max(deadline);
            self.give(index, Input::Tick);
        }
        Some(())
    }

    fn is_at_rest(&self) -> bool {
        let running = || self.boxes.iter().filter(|surgery| !surgery.retired);
        let lanes = || running().flat_map(|surgery| &surgery.lanes).copied();
        let idle = self.up.is_empty()
            && self.streams.iter().all(|stream| stream.waiting.is_none())
            && lanes().all(|index| self.streams[index].machine.counts().answered)
            && running().all(|surgery| surgery.connected && surgery.down.is_empty());
        let reached = |index: usize| self.streams[index].machine.confirmed() == self.must_reach(index);
        idle && !self.hub.has_work() && lanes().all(reached)
    }

    /// Without another fault, and with unlimited time, everything is confirmed: first, if a record is held, all that
    /// it does not stop; then, once the limit is raised, that record too.
    fn comes_to_rest(&self) -> bool {
        let mut world = self.clone();
        let mut tells = self.restored;
        for _ in 0..800 {
            if !world.is_at_rest() {
                if world.next_step(true).is_none() {
                    return false;
                }
            } else if world.limited {
                world.raise_limit();
            } else if world.hub_limited {
                world.upgrade_hub();
            } else if std::mem::take(&mut tells) {
                // A hub that was restored to a store without a lane knows no gateway to tell.
                (0..world.boxes.len()).for_each(|surgery| world.cut(surgery));
            } else {
                return world.is_in_order_and_once()
                    && world.watermark_is_true()
                    && world.confirmed_is_at_the_hub();
            }
        }
        false
    }

    fn upgrade_hub(&mut self) {
        self.hub_limited = false;
        self.hub_starts(self.disk.entries.len());
    }

    /// While a lane is out of use at the hub, everything of the others is confirmed.
    fn others_continue(&self) -> bool {
        if self.disk.out.is_empty() {
            return true;
        }
        let mut world = self.clone();
        let others: Vec<_> = (0..self.streams.len()).filter(|of| !self.disk.out.contains(of)).collect();
        let reached = |world: &World| {
            others.iter().all(|of| world.streams[*of].machine.confirmed() == world.must_reach(*of))
        };
        for _ in 0..800 {
            if reached(&world) {
                return true;
            }
            if world.next_step(false).is_none() {
                return false;
            }
        }
        false
    }

    fn raise_limit(&mut self) {
        self.limited = false;
        for surgery in 0..self.boxes.len() {
            self.cut(surgery);
        }
    }
}

// ---- more than one of what there should be one of

impl World {
    /// The first box's disk is copied while it runs, and both run from now on.
    fn copy_box(&mut self) {
        self.left.twins -= 1;
        self.twin = true;
        let lanes = self.boxes[0].lanes.clone();
        self.add_box(lanes.iter().map(|index| (*index, self.streams[*index].disk.clone())).collect());
        self.restart(self.boxes.len() - 1);
    }

    fn replace_box(&mut self) {
        self.left.replacements -= 1;
        self.cut(0);
        self.boxes[0].retired = true;
        let lanes = self.boxes[0].lanes.clone();
        self.add_box(lanes.iter().map(|index| (*index, self.empty_disk(*index))).collect());
    }

    /// A new store names its first epoch itself.
    fn empty_disk(&self, index: usize) -> Disk {
        Disk::new(name(index), self.streams.len() as u64 + index as u64 + 1)
    }

    /// The other process gets the connection. When it speaks for the first time, it has only just started.
    fn other_hub_speaks(&mut self) {
        self.left.takeovers -= 1;
        let new = || Process {
            hub: center::begin(group_limits(&self.left), &self.disk.entries, self.backup, false),
            incarnation: self.started + 1,
            waiting: vec![(None, 0); self.streams.len()],
        };
        let is_new = self.resting.is_none();
        let mut other = self.resting.take().map_or_else(new, |other| *other);
        self.started += u8::from(is_new);
        std::mem::swap(&mut self.hub, &mut other.hub);
        std::mem::swap(&mut self.incarnation, &mut other.incarnation);
        for (stream, (waiting, counter)) in self.streams.iter_mut().zip(&mut other.waiting) {
            std::mem::swap(&mut stream.waiting, waiting);
            std::mem::swap(&mut stream.counter, counter);
        }
        // Nothing is known of what the other one has stored meanwhile.
        self.stale = if is_new { BTreeSet::new() } else { (0..self.streams.len()).collect() };
        self.resting = Some(Box::new(other));
        self.tell_hub(committer::Input::Connected, None);
    }

    /// The hub's memory is ahead of the store from now on.
    fn set_store_back(&mut self) {
        self.left.set_backs -= 1;
        self.restored = true;
        self.disk.entries.truncate(self.backup);
        self.stale = (0..self.streams.len()).collect();
    }

    /// The hub has something to say of a lane: whether its driver lets it out. It withholds what claims more than is stored.
    fn may_say(&mut self, index: usize, end: Option<Through>) -> bool {
        let stored = center::end(&self.disk.entries, index);
        if end == stored || !self.stale.contains(&index) {
            self.lied |= self.disk.out.contains(&index) || end != stored;
            return true;
        }
        let line = center::watermarks(&self.disk.entries, index);
        let claimed =
            |end: Through| line.iter().find(|of| of.epoch == end.epoch).map(|of| (of.through, *of == end));
        let is_stored = match end {
            None => line.is_empty(),
            Some(end) => claimed(end).is_some_and(|(through, same)| end.through < through || same),
        };
        self.withheld |= !is_stored;
        // A line that nobody has set back still has every end that it ever had, but is not empty any more.
        self.lied |= !is_stored && end.is_some() && !self.restored;
        is_stored
    }
}

fn is_large(content: &Content) -> bool {
    content.kind == Kind::Transaction && (id(LARGE)..id(BEYOND)).contains(&content.id)
}

fn is_strange(of: TransactionId) -> bool {
    [id(STRANGE), id(STRANGE_BEYOND)].contains(&of)
}

fn is_beyond(content: &Content) -> bool {
    content.kind == Kind::Transaction && content.id >= id(BEYOND)
}

fn limits() -> Limits {
    Limits {
        window: 2,
        window_bytes: 1_000,
        receipt_timeout: 3_000,
        stall_timeout: 5_000,
        confirm_on_puback: false,
    }
}

fn group_limits(budget: &Budget) -> GroupLimits {
    let transactions = if budget.group == 0 { usize::MAX } else { budget.group };
    GroupLimits { transactions, bytes: usize::MAX }
}

struct Small {
    budget: Budget,
    must_be_met: fn(&World) -> bool,
}

impl Model for Small {
    type State = World;
    type Action = Step;

    fn init_states(&self) -> Vec<World> {
        vec![World::new(self.budget.clone())]
    }

    fn actions(&self, world: &World, steps: &mut Vec<Step>) {
        let left = &world.left;
        let mut may = |yes: bool, step: Step| {
            if yes {
                steps.push(step);
            }
        };
        for index in 0..world.streams.len() {
            let stream = &world.streams[index];
            may(world.may_accept(index), Step::Accept(index));
            may(
                left.box_crashes > 0
                    && stream.disk.watermark.map(|point| (point.position, point.at))
                        != stream.point.map(|at| (stream.watermark, at)),
                Step::WatermarkSynced(index),
            );
            may(stream.waiting.is_some(), Step::HubSendsReceipt(index));
            may(left.ticks > 0 && stream.machine.deadline().is_some(), Step::Tick(index));
            may(world.is_stalled_by_a_lost_record(index), Step::Release(index));
        }
        may(left.large > 0 && world.limited && world.may_accept(0), Step::AcceptLarge);
        may(left.beyond > 0 && world.hub_limited && world.may_accept(0), Step::AcceptBeyond);
        may(world.hub_limited && world.streams[0].machine.counts().held.is_some(), Step::HubUpgraded);
        may(world.limited && world.streams[0].machine.counts().held.is_some(), Step::RaiseLimit);
        for (index, surgery) in world.boxes.iter().enumerate() {
            may(!surgery.connected && !surgery.retired, Step::Connect(index));
            may(surgery.connected && left.cuts > 0, Step::Cut(index));
            may(left.box_crashes > 0 && !surgery.retired, Step::BoxCrash(index));
            may(!surgery.down.is_empty(), Step::GatewayTakes(index));
            let receipt = matches!(surgery.down.front(), Some((_, Down::Receipt(_) | Down::Gap(_))));
            may(receipt && left.lost_receipts > 0, Step::ReceiptLost(index));
        }
        let first = &world.streams[0];
        may(left.images > 0 && world.boxes[0].image.is_none() && first.disk.tail() > 0, Step::TakeImage);
        may(left.images > 0 && world.boxes[0].image.is_some(), Step::RestoreImage);
        let readable = !first.disk.is_gone(first.watermark + 1) && first.watermark < first.disk.tail();
        may(left.destroyed > 0 && readable, Step::Destroy { digest: true });
        may(left.destroyed > 0 && readable, Step::Destroy { digest: false });
        for place in 0..world.recorded.len() {
            may(left.replays > 0, Step::Replays(place));
        }
        for (place, (of, _)) in world.ends.iter().enumerate() {
            let apart = !world.boxes[world.owner(*of)].connected;
            for carried in [false, true] {
                may(left.files > 0 && apart, Step::EndByFile { place, carried });
            }
        }
        for index in &world.wants_admission {
            may(true, Step::Admit(*index));
        }
        may(!world.up.is_empty(), Step::HubTakes);
        may(!world.up.is_empty() && left.repetitions > 0, Step::HubTakesAndAgain);
        may(!world.up.is_empty() && left.losses > 0, Step::BrokerDrops);
        let transaction = matches!(world.up.front(), Some((_, Up::Transaction { .. })));
        may(transaction && left.altered > 0, Step::Altered { fits: false });
        may(transaction && left.altered > 0, Step::Altered { fits: true });
        may(transaction && left.unsure > 0, Step::HubTakesUnsure);
        let (group, stored) = (world.hub.group(), world.disk.entries.len());
        may(world.hub.has_work(), Step::HubStores);
        let lanes = group.iter().map(Entry::from).fold(0, |lanes, entry| lanes | 1 << entry.of);
        // Groups of one are stored at once.
        may(
            transaction && left.failed_appends > 0 && left.group == 1,
            Step::TakenAppendFails { kept: false },
        );
        may(transaction && left.failed_appends > 0 && left.group == 1, Step::TakenAppendFails { kept: true });
        for kept in 0..=lanes {
            may(lanes != 0 && kept & !lanes == 0 && left.failed_appends > 0, Step::AppendFails(kept));
        }
        for some in 1..=lanes {
            for kept in [false, true] {
                let may_fail = some & !lanes == 0 && left.failed_lanes > 0;
                may(may_fail, Step::LanesFail { lanes: some, kept });
            }
        }
        for index in &world.disk.out {
            may(true, Step::LaneComesBack(*index));
        }
        may(left.reconnects > 0, Step::HubConnects);
        may(left.backups > 0 && stored > world.backup, Step::HubBacksUp);
        may(left.hub_crashes > 0, Step::HubCrash { kept: false });
        may(left.hub_crashes > 0 && !group.is_empty(), Step::HubCrash { kept: true });
        may(left.restores > 0 && stored > world.backup, Step::HubRestored);
        may(left.twins > 0, Step::BoxCopied);
        may(left.replacements > 0, Step::BoxReplaced);
        may(left.takeovers > 0, Step::OtherHubSpeaks);
        may(left.set_backs > 0 && stored > world.backup, Step::StoreSetBack);
        let whole = world.disk.after.is_empty();
        for (from, to) in (1..stored).flat_map(|to| (0..to).map(move |from| (from, to))) {
            may(left.holes > 0 && whole, Step::HubLoses { from, to });
        }
    }

    fn next_state(&self, world: &World, step: Step) -> Option<World> {
        let mut world = world.clone();
        match step {
            Step::Accept(index) => world.accept(index, 0),
            Step::AcceptLarge => {
                world.left.large -= 1;
                world.accept(0, LARGE);
            }
            Step::AcceptBeyond => {
                world.left.beyond -= 1;
                world.accept(0, BEYOND);
            }
            Step::RaiseLimit => world.raise_limit(),
            Step::HubUpgraded => world.upgrade_hub(),
            Step::Connect(surgery) => world.connect(surgery),
            Step::Cut(surgery) => {
                world.left.cuts -= 1;
                world.cut(surgery);
            }
            Step::BoxCrash(surgery) => {
                world.left.box_crashes -= 1;
                world.restart(surgery);
            }
            Step::WatermarkSynced(index) => {
                let stream = &mut world.streams[index];
                stream.disk.watermark = stream.point.map(|at| Point { position: stream.watermark, at });
            }
            Step::TakeImage => {
                let lanes = world.boxes[0].lanes.clone();
                let image = lanes.iter().map(|index| world.streams[*index].disk.clone()).collect();
                world.boxes[0].image = Some(image);
            }
            Step::RestoreImage => {
                world.left.images -= 1;
                world.images_used = true;
                for (index, disk) in world.boxes[0].image.take()?.into_iter().enumerate() {
                    world.beyond_help.retain(|id| !disk.can_read(*id));
                    world.streams[index].disk = disk;
                }
                world.restart(0);
            }
            Step::Destroy { digest } => {
                world.left.destroyed -= 1;
                let stream = &mut world.streams[0];
                stream.disk.destroy(stream.watermark + 1, digest);
            }
            Step::Replays(place) => {
                world.left.replays -= 1;
                let packet = world.recorded.iter().nth(place)?.clone();
                if world.left.replays == 0 {
                    world.recorded.clear();
                }
                world.hub_takes(&packet);
            }
            Step::EndByFile { place, carried } => {
                world.left.files -= 1;
                let (index, end) = *world.ends.iter().nth(place)?;
                if world.left.files == 0 {
                    world.ends.clear();
                }
                world.end_by_file(index, end, carried);
            }
            Step::Admit(index) => {
                world.wants_admission.remove(&index);
                world.admit(index);
            }
            Step::Release(index) => world.release(index),
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
            Step::Altered { fits } => {
                world.left.altered -= 1;
                let (of, packet) = world.up.front_mut()?;
                if let Up::Transaction { epoch, sequence, .. } = *packet {
                    let before = world.streams[*of].disk.before(epoch, sequence);
                    let strange = if world.hub_limited { STRANGE_BEYOND } else { STRANGE };
                    center::changed(packet, Content::transaction(id(strange)), before, fits);
                }
            }
            Step::HubTakesUnsure => {
                world.left.unsure -= 1;
                let packet = world.up.pop_front()?;
                world.disk.cannot_say = true;
                world.hub_takes(&packet);
                world.disk.cannot_say = false;
            }
            Step::HubStores => world.hub_stores(),
            Step::AppendFails(kept) => {
                world.left.failed_appends -= 1;
                world.tell_hub(committer::Input::Flush, Some(Fails::Store(kept)));
            }
            Step::LanesFail { lanes, kept } => {
                world.left.failed_lanes -= 1;
                world.tell_hub(committer::Input::Flush, Some(Fails::Lanes { lanes, kept }));
            }
            Step::LaneComesBack(index) => {
                world.disk.out.remove(&index);
            }
            Step::TakenAppendFails { kept } => {
                world.left.failed_appends -= 1;
                let (index, packet) = world.up.pop_front()?;
                let kept = if kept { u8::MAX } else { 0 };
                world.tell_hub(world.hub_input(index, &packet), Some(Fails::Store(kept)));
            }
            Step::HubSendsReceipt(index) => world.sends_receipt(index)?,
            Step::HubConnects => {
                world.left.reconnects -= 1;
                world.tell_hub(committer::Input::Connected, None);
            }
            Step::HubBacksUp => {
                world.left.backups -= 1;
                world.hub_backs_up();
            }
            Step::HubCrash { kept } => {
                world.left.hub_crashes -= 1;
                world.append(|_| kept);
                world.hub_starts(world.disk.entries.len());
            }
            Step::HubRestored => {
                world.left.restores -= 1;
                world.restored = true;
                world.hub_starts(world.backup);
            }
            Step::BoxCopied => world.copy_box(),
            Step::BoxReplaced => world.replace_box(),
            Step::OtherHubSpeaks => world.other_hub_speaks(),
            Step::StoreSetBack => world.set_store_back(),
            Step::HubLoses { from, to } => {
                world.left.holes -= 1;
                world.hub_loses(from, to);
            }
            Step::GatewayTakes(surgery) => world.gateway_takes(surgery),
            Step::ReceiptLost(surgery) => {
                world.left.lost_receipts -= 1;
                world.boxes[surgery].down.pop_front();
            }
            Step::Tick(index) => {
                world.left.ticks -= 1;
                world.now = world.now.max(world.streams[index].machine.deadline()?);
                world.give(index, Input::Tick);
            }
        }
        Some(world)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("in order, and once", |_, world: &World| world.is_in_order_and_once()),
            Property::always("only what was accepted is stored", |_, world: &World| {
                world.taken().all(|entry| !is_strange(entry.id()))
            }),
            Property::always("a receipt says what is stored", |_, world: &World| !world.lied),
            Property::always("the watermark is true", |_, world: &World| world.watermark_is_true()),
            Property::always("a number is used once", |_, world: &World| world.numbers_are_used_once()),
            Property::always("pruned is backed up", |_, world: &World| world.pruned_is_backed_up()),
            Property::always("only what fits is sent", |_, world: &World| world.only_what_fits_is_sent()),
            Property::always("only what is not taken is held", |_, world: &World| {
                world.only_what_is_not_taken_is_held()
            }),
            Property::always("a lane that is out of use stops no other", |_, world: &World| {
                world.others_continue()
            }),
            Property::always("comes to rest", |_, world: &World| world.comes_to_rest()),
            Property::sometimes("all confirmed", |_, world: &World| {
                let all = world.left.accepts.iter().flatten().all(|left| *left == 0);
                all && world.streams.iter().all(|stream| stream.watermark == u64::from(stream.accepted))
            }),
            Property::sometimes("what it is about was met", |model: &Self, world: &World| {
                (model.must_be_met)(world)
            }),
        ]
    }
}

fn explore(name: &str, budget: Budget, must_be_met: fn(&World) -> bool) {
    let started = Instant::now();
    let builder = Small { budget, must_be_met }.checker().threads(2);
    // All worlds of one depth can be gigabytes, and a single path to each is little. Only the first finds the shortest way to what
    // is wrong.
    if long() == 0 {
        report(name, started, &builder.spawn_bfs().join());
    } else {
        report(name, started, &builder.spawn_dfs().join());
    }
}

fn report(name: &str, started: Instant, checker: &impl Checker<Small>) {
    println!(
        "{name}: {} states, {} of them distinct, depth {}, in {:.1?}",
        checker.state_count(),
        checker.unique_state_count(),
        checker.max_depth(),
        started.elapsed()
    );
    checker.assert_properties();
}

/// `PGW_LONG`: larger bounds, minutes instead of seconds.
fn long() -> u8 {
    u8::from(std::env::var_os("PGW_LONG").is_some())
}

fn one_lane(accepts: u8) -> Budget {
    Budget { accepts: vec![vec![accepts]], ..Budget::default() }
}

fn known_in_a_new_epoch(world: &World) -> bool {
    world.taken().any(|entry| !entry.stored)
}

fn lane_came_back(world: &World) -> bool {
    world.left.failed_lanes == 0 && world.disk.out.is_empty() && all_marked(world)
}

fn all_marked(world: &World) -> bool {
    world.streams.iter().all(|stream| stream.accepted > 0 && stream.watermark == u64::from(stream.accepted))
}

#[test]
fn links_and_brokers_fail() {
    let ticks = long();
    let budget = Budget { cuts: 1, losses: 1, repetitions: ticks, ticks, ..one_lane(5) };
    explore("cut, loss", budget, |world| world.left.losses == 0);
    let budget = Budget { losses: 1, repetitions: 1, lost_receipts: 1, ticks: 1, ..one_lane(3) };
    explore("loss, repetition, lost receipt, timeout", budget, |world| world.left.lost_receipts == 0);
}

#[test]
fn hubs_crash_and_are_restored() {
    let budget = Budget { hub_crashes: 1, restores: 1, backups: 1, ticks: long(), ..one_lane(4) };
    explore("hub crash, restore", budget, |world| world.restored);
}

#[test]
fn hubs_connect_again() {
    let budget = Budget { reconnects: 1, cuts: 1, losses: 1, ..one_lane(2 + long()) };
    explore("hub connects again, cut, loss", budget, |world| world.left.reconnects == 0);
    let budget = Budget { reconnects: 1, restores: 1, backups: 1, ..one_lane(3) };
    explore("hub connects again, restore", budget, |world| world.restored);
}

#[test]
fn stores_fail() {
    let recovered = |world: &World| world.left.failed_appends == 0 && all_marked(world);
    let ticks = 1 + long();
    let budget = Budget { failed_appends: 1, repetitions: 1, ticks, ..one_lane(3) };
    explore("append fails, repetition, timeout", budget, recovered);
    let budget = Budget { failed_appends: 1, hub_crashes: 1, ticks, ..one_lane(2) };
    explore("append fails, hub crash, timeout", budget, recovered);
    let budget = Budget { failed_appends: 2, losses: 1, ticks: 2, group: 1, ..one_lane(2 + long()) };
    explore("groups of one, two appends fail, loss, timeouts", budget, recovered);
    let accepts = vec![vec![2, 1 + long()]];
    let budget = Budget { accepts, failed_appends: 1, ticks: 1, ..Budget::default() };
    explore("two lanes: append fails, timeout", budget, recovered);
    let budget = Budget { accepts: vec![vec![1], vec![1]], failed_appends: 1, ticks, ..Budget::default() };
    explore("two boxes: append fails, timeout", budget, recovered);
    let budget = Budget { failed_lanes: 1, reconnects: 1, ticks, ..one_lane(2 + long()) };
    explore("a lane's files fail, hub connects again, timeout", budget, lane_came_back);
    let budget = Budget { failed_lanes: 2, hub_crashes: long(), ticks: 1, ..one_lane(2) };
    explore("a lane's files fail twice, timeout", budget, lane_came_back);
    let budget = Budget { accepts: vec![vec![2, 1]], failed_lanes: 1, ticks: long(), ..Budget::default() };
    explore("two lanes: the files of one fail", budget, lane_came_back);
    let budget = Budget { accepts: vec![vec![1], vec![1]], failed_lanes: 1, ticks, ..Budget::default() };
    explore("two boxes: the files of one fail, timeout", budget, lane_came_back);
    let budget = Budget { images: 1, unsure: 1, ticks, ..one_lane(3) };
    explore("image, ids unknown, timeout", budget, |world| {
        world.left.unsure == 0 && known_in_a_new_epoch(world)
    });
}

#[test]
fn boxes_crash() {
    let ticks = long();
    let budget =
        Budget { box_crashes: 1 + ticks, losses: 1, lost_receipts: 1, repetitions: 1, ticks, ..one_lane(3) };
    explore("box crash, lost message and receipt, repetition", budget, |world| world.left.box_crashes == 0);
}

#[test]
fn boxes_are_restored_from_an_image() {
    let budget = Budget { images: 1, losses: 1, hub_crashes: long(), ..one_lane(4) };
    explore("image, loss", budget, known_in_a_new_epoch);
}

#[test]
fn two_lanes_share_a_connection() {
    let accepts = vec![vec![2 + long(), 1]];
    let budget = Budget { accepts: vec![vec![2, 2 + long()]], losses: 1, ..Budget::default() };
    explore("two lanes: loss", budget, |world| world.left.losses == 0);
    let budget = Budget { accepts: accepts.clone(), cuts: 1, ..Budget::default() };
    explore("two lanes: cut", budget, |world| world.left.cuts == 0);
    let budget = Budget { accepts, hub_crashes: 1, ..Budget::default() };
    explore("two lanes: hub crash", budget, |world| world.left.hub_crashes == 0);
}

#[test]
fn two_boxes_share_a_broker_and_a_hub() {
    let accepts = vec![vec![2], vec![1]];
    let budget = Budget { accepts: accepts.clone(), cuts: 1, losses: 1, ..Budget::default() };
    explore("two boxes: cut, loss", budget, |world| world.left.losses == 0);
    let restored = Budget { accepts: accepts.clone(), restores: 1, backups: 1, ..Budget::default() };
    explore("two boxes: hub restored", restored, |world| world.restored);
    let budget = Budget { accepts, hub_crashes: 1, box_crashes: long(), ..Budget::default() };
    explore("two boxes: hub crash", budget, |world| world.left.hub_crashes == 0);
}

#[test]
fn a_fork_beside_another_box() {
    let budget = Budget { accepts: vec![vec![2 + long()], vec![1]], images: 1, ..Budget::default() };
    explore("two boxes: image of the first", budget, known_in_a_new_epoch);
}

#[test]
fn what_was_exchanged_on_its_way_is_not_stored() {
    let budget = Budget { altered: 1, losses: 1, ticks: long(), ..one_lane(3) };
    explore("exchanged, loss", budget, |world| world.left.altered == 0);
}

#[test]
fn what_is_held_stops_its_lane_alone() {
    let budget = Budget { large: 1, losses: 1, ..one_lane(4) };
    explore("one too large, loss", budget, |world| world.streams[0].machine.counts().held.is_some());
    let budget = Budget { accepts: vec![vec![2, 1]], large: 1, losses: long(), ..Budget::default() };
    explore("two lanes: one too large", budget, |world| {
        world.streams[0].machine.counts().held.is_some() && world.streams[1].watermark == 1
    });
}

#[test]
fn what_the_hub_does_not_take_is_held_until_it_does() {
    let held = |world: &World| world.streams[0].machine.counts().held.is_some();
    let budget = Budget { beyond: 1, losses: 1, repetitions: 1, ..one_lane(3 + long()) };
    explore("one beyond the hub's limits; loss, repetition", budget, held);
    let budget = Budget { beyond: 1, altered: 1, lost_receipts: long(), ..one_lane(2 + long()) };
    explore("one beyond the hub's limits; exchanged", budget, held);
    let budget = Budget { beyond: 1, replays: 1, hub_crashes: 1, ..one_lane(2) };
    explore("one beyond the hub's limits; replay, hub crash", budget, held);
    let budget = Budget { beyond: 1, images: 1, ticks: 1, ..one_lane(2 + long()) };
    explore("one beyond the hub's limits; image, timeout", budget, held);
}

#[test]
fn what_is_lost_is_released() {
    let met =
        |world: &World| world.taken().any(|entry| entry.content.kind == Kind::Void) && all_marked(world);
    let budget = Budget { destroyed: 1, cuts: 1, losses: 1, ..one_lane(3 + long()) };
    explore("a record destroyed under way, released; cut, loss", budget, met);
    let budget = Budget { destroyed: 1, hub_crashes: 1, ticks: long(), ..one_lane(4) };
    explore("a record destroyed under way, released; hub crash", budget, met);
}

#[test]
fn what_was_released_comes_back_with_an_image() {
    let budget = Budget { destroyed: 1, images: 1, ..one_lane(2) };
    explore("a record destroyed, released; image that still has it", budget, |world| {
        !world.released.is_empty() && world.left.images == 0
    });
}

#[test]
fn a_hub_and_a_box_are_set_back() {
    let budget = Budget { images: 1, restores: 1, backups: 1, ..one_lane(3) };
    explore("image, hub restored", budget, |world| world.restored && world.left.images == 0);
}

#[test]
fn a_broker_says_again_what_it_has_heard() {
    let budget = Budget { replays: 1, restores: 1, backups: 1, ..one_lane(2 + long()) };
    explore("replay, hub restored", budget, |world| world.restored && world.left.replays == 0);
    let budget = Budget { replays: 1, images: 1, ..one_lane(2 + long()) };
    explore("replay, image", budget, |world| world.left.images == 0 && world.left.replays == 0);
}

#[test]
fn a_file_says_where_the_line_ended_once() {
    let budget = Budget { files: 1, cuts: 1, losses: long(), ..one_lane(2 + long()) };
    explore("end by file, cut", budget, |world| world.left.files == 0);
    let budget = Budget { files: 1, cuts: 1, restores: 1, backups: 1, ..one_lane(2) };
    explore("end by file, hub restored", budget, |world| world.restored && world.left.files == 0);
    let budget = Budget { files: 1, cuts: 1, images: 1, ..one_lane(2) };
    explore("end by file, image", budget, |world| world.left.images == 0 && world.left.files == 0);
}

#[test]
fn the_hubs_files_lose_a_part() {
    let lost = |world: &World| world.taken().any(|entry| entry.lost.is_some());
    let budget = Budget { holes: 1, backups: 1, ..one_lane(3) };
    explore("a part of the hub's files lost", budget, lost);
    let budget = Budget { holes: 1, backups: 1, images: 1, ..one_lane(2 + long()) };
    explore("a part of the hub's files lost, image", budget, |world| {
        let again = |entry: Entry| entry.has_body() && world.lost.contains(&entry.id());
        world.left.images == 0 && world.taken().any(|entry| entry.lost.is_some()) && world.taken().any(again)
    });
}

#[test]
fn a_box_has_a_twin() {
    let met = |world: &World| center::watermarks(&world.disk.entries, 0).len() > 1 && all_marked(world);
    let twin = Budget { accepts: vec![vec![1], vec![1]], twins: 1, ..Budget::default() };
    explore("a box and its twin; loss", Budget { losses: 1, ..twin.clone() }, met);
    if long() == 1 {
        explore("a box and its twin; cut", Budget { cuts: 1, ..twin.clone() }, met);
        explore("a box and its twin, backup", Budget { backups: 1, ..twin.clone() }, met);
        let budget = Budget { accepts: vec![vec![2], vec![1]], ..twin };
        explore("a box and its twin", budget, |world| world.twin && known_in_a_new_epoch(world));
    }
}

#[test]
fn a_box_is_replaced() {
    let met = |world: &World| world.boxes[0].retired && world.streams[0].accepted > 0 && all_marked(world);
    let base = Budget { accepts: vec![vec![2], vec![1]], replacements: 1, ..Budget::default() };
    explore("box replaced; loss, repetition", Budget { losses: 1, repetitions: 1, ..base.clone() }, met);
    explore("box replaced; replay", Budget { replays: 1, hub_crashes: long(), ..base.clone() }, met);
    let restored = Budget { restores: 1, backups: 1, replays: long(), ..base };
    explore("box replaced, hub restored", restored, |world| world.boxes[0].retired && world.restored);
}

#[test]
fn two_hub_processes_share_a_store() {
    let met = |world: &World| world.left.takeovers == 0 && all_marked(world);
    let budget = Budget { takeovers: 3, ..one_lane(2 + long()) };
    explore("two hub processes, one store", budget, met);
    let budget = Budget { takeovers: 2, losses: 1, ..one_lane(2 + long()) };
    explore("two hub processes, one store; loss", budget, met);
    let budget = Budget { takeovers: 2, backups: 1, ..one_lane(2) };
    explore("two hub processes, one store; backup", budget, met);
    let budget = Budget { takeovers: 2, images: 1, ..one_lane(2) };
    explore("two hub processes, one store; image", budget, |world| {
        world.left.takeovers == 0 && known_in_a_new_epoch(world)
    });
}

#[test]
fn a_store_is_put_back_under_a_running_hub() {
    let met = |world: &World| world.restored && all_marked(world);
    let base = Budget { set_backs: 1, backups: 1, ..one_lane(2 + long()) };
    explore("store put back; cut", Budget { cuts: 1, ..base.clone() }, met);
    explore("store put back; the lane's files fail", Budget { failed_lanes: 1, ..base.clone() }, met);
    explore("store put back; image", Budget { images: 1, ..base.clone() }, met);
    let budget = Budget { takeovers: 1 + long(), ..Budget { accepts: vec![vec![2]], ..base } };
    explore("store put back, two hub processes", budget, met);
}
