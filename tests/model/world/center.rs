//! The hub: the real committer over a model store that stores groups, fails, crashes and is restored from backups.

use std::collections::HashSet;
use std::sync::LazyLock;

use pgw_core::chain::ChainValue;
use pgw_core::committer::{
    Action, BackedUp, Committer, GroupLimits, Input, Lookup, Missed, Numbered, Record, Refusal, Statement,
    Way,
};
use pgw_core::delivery::{HubLimits, Millis, Receipt, Through};
use pgw_core::transaction::{Epoch, Gateway, LaneName, Practice, Sequence, TransactionId};
use pgw_core::wire::receipt::{nonce_bytes, nonce_text};
use pgw_core::wire::signature::KeyId;

use super::broker::Up;
use super::surgery::Bundle;
use super::{Random, Seen, lane, link};

/// The owner of the lane with this index. It is the only lane of its gateway: nothing at the hub depends on more.
pub(crate) fn name(index: usize) -> &'static LaneName {
    static NAMES: LazyLock<[LaneName; 4]> = LazyLock::new(|| {
        std::array::from_fn(|index| LaneName {
            practice: Practice::new("B86022").unwrap(),
            gateway: Gateway::new(&format!("gw{index}")).unwrap(),
            lane: lane(),
        })
    });
    &NAMES[index]
}

/// The lane with this name.
pub(crate) fn index_of(lane: &LaneName) -> usize {
    (0..).find(|index| name(*index) == lane).expect("a lane of the model")
}

/// A transaction as it reaches the committer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Line {
    of: usize,
    numbered: Numbered,
    /// The chain value that its gateway has signed.
    signs: ChainValue,
    /// It is a void: the chain value before it.
    void: Option<ChainValue>,
    only_number: bool,
}

impl Record for Line {
    fn lane(&self) -> &LaneName {
        name(self.of)
    }

    fn numbered(&self) -> Numbered {
        self.numbered
    }

    fn is_void(&self) -> bool {
        self.void.is_some()
    }

    fn chain_after(&self, before: ChainValue) -> ChainValue {
        let Numbered { epoch, sequence, id, chain, .. } = self.numbered;
        match self.void {
            // As `wire::void::chain_after`, for a range of one.
            Some(previous) if previous == before => chain,
            Some(_) => ChainValue(chain.0.map(|byte| !byte)),
            None => link(before, epoch, sequence, id),
        }
    }

    fn bytes(&self) -> usize {
        1
    }

    fn keep_only_number(&mut self) {
        self.only_number = true;
    }

    fn keep_head(&mut self, _: Option<KeyId>) {}
}

/// The answer of a list with one key for each gateway.
pub(crate) fn signed_by(line: &Line, chain: ChainValue) -> Option<KeyId> {
    (line.signs == chain).then_some(KeyId([1; 8]))
}

/// What may reach the disk of a group: a line that is signed proves those before it in its lane, and what nothing proves is
/// dropped before the group is stored.
pub(crate) fn provable(group: &[Line]) -> Vec<Entry> {
    let proven = |(at, line): &(usize, &Line)| {
        let proves = |later: &Line| later.of == line.of && signed_by(later, later.numbered.chain).is_some();
        group[*at..].iter().any(proves)
    };
    group.iter().enumerate().filter(proven).map(|(_, line)| Entry::from(line)).collect()
}

/// What a broker that changes transactions makes of one: another id and, if it `fits`, the chain value that follows from the
/// one `before`. It cannot sign that.
pub(crate) fn changed(packet: &mut Up, strange: TransactionId, before: ChainValue, fits: bool) {
    if let Up::Transaction { epoch, sequence, id, chain, .. } = packet {
        *id = strange;
        if fits {
            *chain = link(before, *epoch, *sequence, strange);
        }
    }
}

/// The committer's input for a packet.
pub(crate) fn input(of: usize, packet: &Up) -> Input<Line> {
    match *packet {
        Up::Position(nonce) => Input::Position { lane: name(of).clone(), nonce: nonce_text(&nonce) },
        Up::Transaction { epoch, sequence, round, id, chain, signs, void } => {
            let numbered = Numbered { epoch, sequence, round, id, chain };
            Input::Transaction(Line { of, numbered, signs, void, only_number: false })
        }
    }
}

/// The gateway's view of a statement.
pub(crate) fn receipt(hub: usize, (incarnation, counter): (u64, u64), statement: Statement) -> Receipt {
    let Statement { epochs, backed_up_through, nonce } = statement;
    let nonce = nonce.map(|text| nonce_bytes(&text).expect("it is as the gateway wrote it"));
    let limits = HubLimits::default();
    let (tail_seen, known_store) = (None, true);
    Receipt { hub, incarnation, counter, epochs, backed_up_through, nonce, tail_seen, known_store, limits }
}

/// A line of the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Entry {
    /// Index of its lane.
    pub(crate) of: usize,
    pub(crate) epoch: Epoch,
    pub(crate) sequence: Sequence,
    pub(crate) chain: ChainValue,
    pub(crate) id: TransactionId,
    /// False: the id is already stored, this only names it again.
    pub(crate) stored: bool,
    /// It replaces a lost record.
    pub(crate) void: bool,
}

impl From<&Line> for Entry {
    fn from(line: &Line) -> Self {
        let (Numbered { epoch, sequence, id, chain, .. }, void) = (line.numbered, line.void.is_some());
        Self { of: line.of, epoch, sequence, chain, id, stored: !line.only_number && !void, void }
    }
}

/// The watermarks of a lane.
pub(crate) fn watermarks(entries: &[Entry], of: usize) -> Vec<Through> {
    let mut epochs: Vec<Through> = Vec::new();
    for entry in entries.iter().filter(|entry| entry.of == of) {
        let through = Through { epoch: entry.epoch, through: entry.sequence, chain: entry.chain };
        match epochs.iter_mut().find(|known| known.epoch == entry.epoch) {
            Some(known) => *known = through,
            None => epochs.push(through),
        }
    }
    epochs
}

/// A hub's initial state: the watermarks of every known lane, and what its last backup holds.
pub(crate) fn begin(limits: GroupLimits, entries: &[Entry], backup: usize) -> Committer<Line> {
    let lanes = (0..4)
        .map(|of| (name(of).clone(), watermarks(entries, of)))
        .filter(|(_, watermarks)| !watermarks.is_empty());
    Committer::new(limits, lanes, backed_up(&entries[..backup]))
}

/// The report of a backup.
pub(crate) fn backed_up(backup: &[Entry]) -> BackedUp {
    backup.iter().map(|entry| (name(entry.of).clone(), (entry.epoch, entry.sequence))).collect()
}

/// The committer's questions.
struct Asked<'a> {
    entries: &'a [Entry],
    ids: &'a HashSet<TransactionId>,
    cannot_say: bool,
}

impl Lookup<Line> for Asked<'_> {
    fn watermarks_of(&self, lane: &LaneName) -> Vec<Through> {
        watermarks(self.entries, index_of(lane))
    }

    fn has_id(&mut self, _: &LaneName, id: TransactionId) -> Option<bool> {
        (!self.cannot_say).then(|| self.ids.contains(&id))
    }

    fn signed_by(&mut self, record: &Line, chain: ChainValue, _: Way) -> Option<KeyId> {
        signed_by(record, chain)
    }
}

/// The memory of the hub's machine.
#[derive(Clone)]
struct Memory {
    committer: Committer<Line>,
    incarnation: u64,
    counter: u64,
    /// The receipt that waits to be published.
    waiting: Option<Statement>,
    asked: bool,
}

/// One lane's hub.
pub(crate) struct Center {
    pub(crate) index: usize,
    pub(crate) up: bool,
    memory: Memory,
    limits: GroupLimits,
    /// On stable storage.
    pub(crate) entries: Vec<Entry>,
    ids: HashSet<TransactionId>,
    /// Everything that was ever on stable storage, even if a restore removed it.
    pub(crate) ever: HashSet<TransactionId>,
    /// Lengths of the store at the backups.
    pub(crate) backups: Vec<usize>,
    /// A snapshot of the virtual machine: its memory and the length of its store.
    snapshot: Option<(Memory, usize)>,
    /// The next append fails; true: it is on stable storage all the same.
    pub(crate) append_fails: Option<bool>,
    /// The store cannot tell which ids it has.
    pub(crate) cannot_say: bool,
    gaps: Vec<Missed>,
}

impl Center {
    /// `transactions`: the limit of its groups.
    pub(crate) fn new(index: usize, incarnation: u64, transactions: usize) -> Self {
        let limits = GroupLimits { transactions, bytes: usize::MAX };
        Self {
            index,
            up: true,
            memory: Memory {
                committer: begin(limits, &[], 0),
                incarnation,
                counter: 0,
                waiting: None,
                asked: false,
            },
            limits,
            entries: Vec::new(),
            ids: HashSet::new(),
            ever: HashSet::new(),
            backups: Vec::new(),
            snapshot: None,
            append_fails: None,
            cannot_say: false,
            gaps: Vec::new(),
        }
    }

    /// The store thread's turn.
    fn give(&mut self, input: Input<Line>, now: Millis, seen: &mut Seen) {
        let mut next = Some(input);
        while let Some(input) = next.take() {
            let mut actions = Vec::new();
            let (entries, ids, cannot_say) = (&self.entries[..], &self.ids, self.cannot_say);
            let mut asked = Asked { entries, ids, cannot_say };
            self.memory.committer.handle(input, now, &mut asked, &mut actions);
            for action in actions {
                match action {
                    Action::Append => next = Some(self.append(seen)),
                    Action::Receipt(_, statement) => {
                        self.check(&statement);
                        let before = self.memory.waiting.take();
                        if before.is_some() {
                            seen.note("a receipt takes the place of one that waits");
                        }
                        self.memory.waiting = Some(statement.instead_of(before));
                    }
                    Action::Gap(_, missed) => {
                        seen.note("gap at the hub");
                        self.gaps.push(missed);
                    }
                    Action::Refuse(_, Refusal::Unsigned) => seen.note("not signed"),
                    Action::Refuse(..) => seen.note("other chain at the hub"),
                    Action::Repeated(_) => seen.note("repetition at the hub"),
                    Action::Recovered { .. } => seen.note("the store works again"),
                }
            }
        }
    }

    fn append(&mut self, seen: &mut Seen) -> Input<Line> {
        let fails = self.append_fails.take();
        if fails != Some(false) {
            let group = self.memory.committer.group().iter().map(Entry::from).collect::<Vec<_>>();
            for entry in group {
                self.write(entry, seen);
            }
        }
        match fails {
            None => return Input::Stored,
            Some(true) => seen.note("append failed, and is stored all the same"),
            Some(false) => seen.note("append failed"),
        }
        Input::StoreFailed
    }

    fn write(&mut self, entry: Entry, seen: &mut Seen) {
        if entry.void {
            seen.note("void at the hub");
        } else {
            if !entry.stored {
                seen.note("known id in a new epoch");
            }
            self.ids.insert(entry.id);
            self.ever.insert(entry.id);
        }
        self.entries.push(entry);
    }

    /// No receipt covers more than what is on stable storage.
    fn check(&self, statement: &Statement) {
        let watermarks = watermarks(&self.entries, 0);
        assert_eq!(statement.epochs, watermarks, "a receipt says what is stored");
    }

    /// Takes a packet; may cause gap notices.
    pub(crate) fn take(&mut self, packet: &Up, now: Millis, seen: &mut Seen) -> Vec<Missed> {
        match packet {
            Up::Position(_) => self.memory.asked = true,
            Up::Transaction { .. } if !self.memory.asked => seen.note("sent to an earlier incarnation"),
            Up::Transaction { .. } => {}
        }
        self.give(input(0, packet), now, seen);
        std::mem::take(&mut self.gaps)
    }

    /// Takes a bundle as the store thread does; returns a receipt for the way back.
    pub(crate) fn import(
        &mut self,
        bundle: &Bundle,
        incarnation: u64,
        now: Millis,
        seen: &mut Seen,
    ) -> Option<Receipt> {
        if !self.finish(now, seen) {
            return None;
        }
        let lines = bundle.packets.iter().filter_map(|packet| match input(0, packet) {
            Input::Transaction(line) => Some(line),
            _ => None,
        });
        let older = bundle.older.iter().copied();
        let (entries, ids, cannot_say) = (&self.entries[..], &self.ids, self.cannot_say);
        let mut asked = Asked { entries, ids, cannot_say };
        let taken = self.memory.committer.import(name(0), older, lines, now, &mut asked);
        let Ok((tally, wrong)) = taken else {
            seen.note("bundle refused: the hub lacks an older epoch's end, or leaves its store alone");
            return None;
        };
        if !self.finish(now, seen) {
            return None;
        }
        if wrong.is_some() {
            seen.note("bundle refused: it does not follow");
        }
        if tally.stored + tally.renumbered > 0 {
            seen.note("carried in, new");
        }
        if tally.repeated > 0 {
            seen.note("carried in, known");
        }
        let statement = Statement { epochs: watermarks(&self.entries, 0), ..Statement::default() };
        self.check(&Statement {
            epochs: self.memory.committer.watermarks_of(name(0)),
            ..Statement::default()
        });
        Some(receipt(self.index, (incarnation, 1), statement))
    }

    /// The virtual machine is set back, including its memory: it continues in the same incarnation, with a lower
    /// counter.
    pub(crate) fn set_back(&mut self) -> bool {
        let Some((memory, length)) = self.snapshot.take() else { return false };
        self.truncate(length.min(self.entries.len()));
        self.backups.retain(|backup| *backup <= length);
        self.memory = memory;
        true
    }

    /// Stores the group, and sends the answers that are due. False: it is not stored.
    pub(crate) fn finish(&mut self, now: Millis, seen: &mut Seen) -> bool {
        let fails = self.append_fails.is_some();
        self.give(Input::Flush, now, seen);
        !(fails && self.append_fails.is_none())
    }

    /// Takes the receipt that waits to be published.
    pub(crate) fn receipt(&mut self) -> Option<Receipt> {
        let statement = self.memory.waiting.take()?;
        self.memory.counter += 1;
        Some(receipt(self.index, (self.memory.incarnation, self.memory.counter), statement))
    }

    /// Its memory holds nothing that waits.
    pub(crate) fn is_quiet(&self) -> bool {
        !self.memory.committer.has_work() && self.memory.waiting.is_none()
    }

    /// It has connected.
    pub(crate) fn announce(&mut self, now: Millis, seen: &mut Seen) {
        self.give(Input::Connected, now, seen);
        self.finish(now, seen);
    }

    pub(crate) fn back_up(&mut self, now: Millis, seen: &mut Seen) {
        self.backups.push(self.entries.len());
        self.give(Input::BackedUp(backed_up(&self.entries)), now, seen);
    }

    /// kill -9 or a power cut: some part of the staged group may have reached the disk.
    pub(crate) fn crash(&mut self, random: &mut Random, seen: &mut Seen) {
        self.up = false;
        let staged = provable(self.memory.committer.group());
        let kept = random.below(staged.len() as u64 + 1) as usize;
        if !staged.is_empty() {
            seen.note(if kept > 0 {
                "hub crash after storing, before its receipt"
            } else {
                "hub crash before storing"
            });
        }
        for entry in &staged[..kept] {
            self.write(*entry, seen);
        }
        self.truncate(self.entries.len());
        self.forget();
    }

    pub(crate) fn restore(&mut self, length: usize, seen: &mut Seen) {
        self.up = false;
        if length < self.entries.len() {
            seen.note("hub restored to less");
        }
        self.truncate(length.min(self.entries.len()));
        self.backups.retain(|backup| *backup <= length);
        self.forget();
    }

    /// It loses its memory.
    fn forget(&mut self) {
        self.start(self.memory.incarnation);
        self.up = false;
    }

    fn truncate(&mut self, length: usize) {
        self.snapshot = self.snapshot.take().filter(|(_, kept)| *kept <= length);
        self.entries.truncate(length);
        self.ids = self.entries.iter().filter(|entry| !entry.void).map(|entry| entry.id).collect();
    }

    pub(crate) fn has_snapshot(&self) -> bool {
        self.snapshot.is_some()
    }

    pub(crate) fn take_snapshot(&mut self, now: Millis, seen: &mut Seen) {
        self.finish(now, seen);
        self.snapshot = Some((self.memory.clone(), self.entries.len()));
    }

    pub(crate) fn start(&mut self, incarnation: u64) {
        self.up = true;
        let backup = self.backups.last().copied().unwrap_or(0);
        let committer = begin(self.limits, &self.entries, backup);
        self.memory = Memory { committer, incarnation, counter: 0, waiting: None, asked: false };
    }

    /// Whether the last backup holds it.
    pub(crate) fn has_backup_of(&self, id: TransactionId) -> bool {
        let length = self.backups.last().copied().unwrap_or(0);
        self.entries[..length].iter().any(|entry| entry.id == id)
    }
}
