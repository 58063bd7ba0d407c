//! The hub: the real committer over a model store that stores groups, fails, crashes and is restored from backups.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::LazyLock;

use pgw_core::chain::{ChainValue, Digest, Through};
use pgw_core::committer::{
    self, Action, BackedUp, Committer, GroupLimits, Input, Lookup, Missed, Numbered, Question, Record,
    Refusal, Statement, Way,
};
use pgw_core::delivery::{EntryKind, HubLimits, LostNumbers, Millis, Receipt};
use pgw_core::transaction::{Epoch, Gateway, Kind, LaneName, Practice, Sequence, TransactionId};
use pgw_core::wire::receipt::{nonce_bytes, nonce_text};
use pgw_core::wire::signature::KeyId;

use super::broker::Up;
use super::surgery::{Bundle, Disk};
use super::{Content, Random, Seen, lane, link};

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
    content: Content,
    /// The chain value that its gateway has signed.
    signs: ChainValue,
    only_number: bool,
    rival: bool,
    /// Beyond the limits of the hub.
    too_large: bool,
}

impl Record for Line {
    fn lane(&self) -> &LaneName {
        name(self.of)
    }

    fn numbered(&self) -> Numbered {
        self.numbered
    }

    fn is_pruned(&self) -> bool {
        self.content.kind == Kind::Pruned
    }

    fn is_too_large(&self) -> bool {
        self.too_large
    }

    fn digest(&self) -> Digest {
        self.content.digest()
    }

    fn chain_after(&self, before: ChainValue) -> ChainValue {
        link(before, self.numbered.sequence, &self.content)
    }

    fn bytes(&self) -> usize {
        1
    }

    fn keep_only_number(&mut self) {
        self.only_number = true;
    }

    fn mark_rival(&mut self) {
        self.rival = true;
    }

    fn is_rival(&self) -> bool {
        self.rival
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

/// What a broker that changes transactions makes of one: another content, or another id, and, if it `fits`, the chain value
/// that follows from the one `before`. It cannot sign that.
pub(crate) fn changed(packet: &mut Up, strange: Content, before: ChainValue, fits: bool) {
    if let Up::Transaction { sequence, content, chain, .. } = packet {
        *content = strange;
        if fits {
            *chain = link(before, *sequence, &strange);
        }
    }
}

/// The committer's input for a packet. `too_large`: which contents are beyond the limits of the hub.
pub(crate) fn input(of: usize, packet: &Up, too_large: impl Fn(&Content) -> bool) -> Input<Line> {
    match *packet {
        Up::Position { nonce, epoch, point, .. } => Input::Position {
            lane: name(of).clone(),
            question: Question { nonce: nonce_text(&nonce), epoch, point },
        },
        Up::Transaction { epoch, sequence, round, content, chain, signs, link } => {
            let numbered = Numbered { epoch, sequence, round, id: content.id, chain, link };
            let (only_number, rival, too_large) = (false, false, too_large(&content));
            Input::Transaction(Line { of, numbered, content, signs, only_number, rival, too_large })
        }
    }
}

/// What a position says of its lane's tail.
pub(crate) fn note_tail(tails: &mut BTreeMap<(usize, Epoch), Sequence>, of: usize, packet: &Up) {
    if let Up::Position { epoch, tail, .. } = *packet {
        let seen = tails.entry((of, epoch)).or_default();
        *seen = tail.max(*seen);
    }
}

/// The gateway's view of a statement.
pub(crate) fn receipt(
    (incarnation, counter): (u64, u64),
    statement: Statement,
    tails: &BTreeMap<(usize, Epoch), Sequence>,
    of: usize,
) -> Receipt {
    let Statement { end, holds_point, backed_up_through, nonce } = statement;
    let tail_seen = end.and_then(|end| Some((end.epoch, *tails.get(&(of, end.epoch))?)));
    Receipt {
        incarnation,
        counter,
        end,
        holds_point: holds_point == Some(true),
        backed_up_through,
        nonce: nonce.map(|text| nonce_bytes(&text).expect("it is as the gateway wrote it")),
        tail_seen,
        lost: Vec::new(),
        known_store: true,
        limits: HubLimits::default(),
    }
}

/// A line of the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Entry {
    /// Index of its lane.
    pub(crate) of: usize,
    pub(crate) epoch: Epoch,
    pub(crate) sequence: Sequence,
    pub(crate) chain: ChainValue,
    pub(crate) content: Content,
    /// False: the content is already stored, this only names it again.
    pub(crate) stored: bool,
    /// It is lost for good, as was noted when this was the line's newest epoch: only that it was there is known, and of the last
    /// one the chain value.
    pub(crate) lost: Option<Epoch>,
}

impl Entry {
    pub(crate) fn id(&self) -> TransactionId {
        self.content.id
    }

    /// It holds the content of a transaction.
    pub(crate) fn has_body(&self) -> bool {
        self.stored && self.content.kind == Kind::Transaction
    }
}

impl From<&Line> for Entry {
    fn from(line: &Line) -> Self {
        let Numbered { epoch, sequence, chain, .. } = line.numbered;
        let (of, content, stored) = (line.of, line.content, !line.only_number);
        Self { of, epoch, sequence, chain, content, stored, lost: None }
    }
}

/// Where the epochs of a lane's line end.
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

/// Whether an entry comes next in its lane's line: with the next number, and a chain value that follows from the end's.
pub(crate) fn continues(entries: &[Entry], entry: &Entry) -> bool {
    let end = end(entries, entry.of);
    let begins = |other: &Entry| other.of == entry.of && other.epoch == entry.epoch;
    let before = match end {
        Some(end) if end.epoch == entry.epoch => (end.through + 1 == entry.sequence).then_some(end.chain),
        _ if entry.sequence > 1 || entries.iter().any(begins) => None,
        end => Some(ChainValue::first(name(entry.of), entry.epoch, end.as_ref())),
    };
    before.is_some_and(|before| link(before, entry.sequence, &entry.content) == entry.chain)
}

/// The end of a lane's line.
pub(crate) fn end(entries: &[Entry], of: usize) -> Option<Through> {
    let last = entries.iter().rfind(|entry| entry.of == of)?;
    Some(Through { epoch: last.epoch, through: last.sequence, chain: last.chain })
}

/// The chain value at a number.
pub(crate) fn value_at<'a>(
    entries: impl Iterator<Item = &'a Entry> + Clone,
    of: usize,
    epoch: Epoch,
    sequence: Sequence,
) -> Option<ChainValue> {
    let at = |sequence| {
        let mut entries = entries.clone();
        entries.find(|entry| (entry.of, entry.epoch, entry.sequence) == (of, epoch, sequence))
    };
    let found = at(sequence)?;
    let is_inside = found.lost.is_some() && at(sequence + 1).is_some_and(|next| next.lost == found.lost);
    (!is_inside).then_some(found.chain)
}

/// Of each newest epoch when a part was given up, all epochs of the line then.
pub(crate) type Closings = BTreeMap<Epoch, Vec<Epoch>>;

/// What a lane's line names and is lost.
pub(crate) fn lost(entries: &[Entry], of: usize, closings: &Closings) -> Vec<LostNumbers> {
    let line = watermarks(entries, of);
    let in_line = |then: &Epoch| {
        let epochs = closings.get(then).expect("it was noted");
        let newest = line.iter().rev().find(|end| epochs.contains(&end.epoch));
        newest.expect("the lost part's own epoch is in the line").epoch
    };
    let mut lost: Vec<LostNumbers> = Vec::new();
    for entry in entries.iter().filter(|entry| entry.of == of) {
        let Entry { epoch, sequence, lost: Some(then), .. } = *entry else { continue };
        let newest = in_line(&then);
        let follows = |last: &&mut LostNumbers| {
            (last.epoch, last.through + 1, last.newest) == (epoch, sequence, newest)
        };
        match lost.last_mut().filter(follows) {
            Some(last) => last.through = sequence,
            None => lost.push(LostNumbers { epoch, from: sequence, through: sequence, newest }),
        }
    }
    lost
}

/// Whether a box has an entry, first in its present epoch, for all that the hub's files have lost.
pub(crate) fn is_covered(disk: &Disk, missing: &[Entry]) -> bool {
    let start = disk.numbering.present();
    let Some(entry) = start.entries.first().filter(|entry| entry.from == start.base + 1) else {
        return false;
    };
    let is_in = |missing: &Entry| {
        let position = disk.numbering.position(missing.epoch, missing.sequence);
        position.is_some_and(|position| (entry.from..=entry.through).contains(&position))
    };
    entry.kind == EntryKind::Pruned && missing.iter().all(is_in)
}

/// A hub's initial state: the ends of every known lane, and what its last backup holds. The first lane is known even if its files
/// have lost their beginning.
pub(crate) fn begin(
    limits: GroupLimits,
    entries: &[Entry],
    backup: usize,
    has_hole: bool,
) -> Committer<Line> {
    let lanes = (0..4)
        .map(|of| (of, watermarks(entries, of)))
        .filter(|(of, watermarks)| !watermarks.is_empty() || (*of == 0 && has_hole))
        .map(|(of, watermarks)| (name(of).clone(), watermarks));
    Committer::new(limits, lanes, backed_up(&entries[..backup]))
}

/// The report of a backup.
pub(crate) fn backed_up(backup: &[Entry]) -> BackedUp {
    backup.iter().map(|entry| (name(entry.of).clone(), (entry.epoch, entry.sequence))).collect()
}

/// The committer's questions.
struct Asked<'a> {
    entries: &'a [Entry],
    hole: Option<Vec<Through>>,
    late: &'a [Entry],
    contents: &'a HashMap<TransactionId, Vec<Digest>>,
    cannot_say: bool,
    out_of_use: bool,
}

impl Lookup<Line> for Asked<'_> {
    fn hole(&self, _: &LaneName) -> Option<Vec<Through>> {
        self.hole.clone()
    }

    fn watermarks_of(&self, lane: &LaneName) -> Option<Vec<Through>> {
        (!self.out_of_use).then(|| watermarks(self.entries, index_of(lane)))
    }

    fn content(&mut self, _: &LaneName, id: TransactionId, digest: Digest) -> Option<committer::Content> {
        (!self.cannot_say).then(|| match self.contents.get(&id) {
            None => committer::Content::Unknown,
            Some(stored) if stored.contains(&digest) => committer::Content::Same,
            Some(_) => committer::Content::Other,
        })
    }

    fn value_at(&mut self, lane: &LaneName, epoch: Epoch, sequence: Sequence) -> Option<Option<ChainValue>> {
        (!self.cannot_say).then(|| value_at(self.entries.iter(), index_of(lane), epoch, sequence))
    }

    fn late_at(&mut self, lane: &LaneName, epoch: Epoch, sequence: Sequence) -> Vec<ChainValue> {
        value_at(self.late.iter(), index_of(lane), epoch, sequence).into_iter().collect()
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
}

/// One lane's hub.
pub(crate) struct Center {
    pub(crate) up: bool,
    memory: Memory,
    limits: GroupLimits,
    /// On stable storage.
    pub(crate) entries: Vec<Entry>,
    /// Beside the line.
    pub(crate) late: Vec<Entry>,
    /// After the last of the line these are missing, and those come then.
    pub(crate) missing: Vec<Entry>,
    after: Vec<Entry>,
    closings: Closings,
    /// Its files have ever lost a part.
    pub(crate) has_lost: bool,
    contents: HashMap<TransactionId, Vec<Digest>>,
    /// Everything that was ever on stable storage, even if a restore removed it.
    pub(crate) ever: std::collections::HashSet<TransactionId>,
    /// What was lost for good, and whose numbers the files have lost once more: an image may send it under them while it is already
    /// stored after the hole, where nobody looks before the files follow again.
    pub(crate) lost_again: HashSet<TransactionId>,
    /// What was in a hole, and another history of the box has sent something else under its number. Nothing proves that before the
    /// files follow again; where the rest of the hole is lost for good, nothing ever does.
    pub(crate) replaced: HashSet<TransactionId>,
    /// What was in a backup when the files lost a part.
    in_old_backup: std::collections::HashSet<TransactionId>,
    /// Lengths of the store at the backups.
    pub(crate) backups: Vec<usize>,
    /// A snapshot of the virtual machine: its memory and the length of its store.
    snapshot: Option<(Memory, usize)>,
    /// The next append fails; true: it is on stable storage all the same.
    pub(crate) append_fails: Option<bool>,
    /// ... not the whole store, but the lane's files.
    pub(crate) lane_fails: bool,
    /// They have failed, and cannot be used yet.
    pub(crate) out_of_use: bool,
    /// The store cannot tell which ids it has.
    pub(crate) cannot_say: bool,
    /// The centre is asked to admit something.
    pub(crate) wants_admission: bool,
    /// The version of the hub that runs does not take this one.
    pub(crate) too_large: Option<TransactionId>,
    gaps: Vec<Missed>,
    /// The highest tail of each epoch that a position has named. The fleet keeps it beside the store.
    tails: BTreeMap<(usize, Epoch), Sequence>,
}

impl Center {
    /// `transactions`: the limit of its groups.
    pub(crate) fn new(incarnation: u64, transactions: usize) -> Self {
        let limits = GroupLimits { transactions, bytes: usize::MAX };
        Self {
            up: true,
            memory: Memory {
                committer: begin(limits, &[], 0, false),
                incarnation,
                counter: 0,
                waiting: None,
            },
            limits,
            entries: Vec::new(),
            late: Vec::new(),
            missing: Vec::new(),
            after: Vec::new(),
            closings: Closings::new(),
            has_lost: false,
            lost_again: HashSet::new(),
            replaced: HashSet::new(),
            contents: HashMap::new(),
            ever: Default::default(),
            in_old_backup: Default::default(),
            backups: Vec::new(),
            snapshot: None,
            append_fails: None,
            lane_fails: false,
            out_of_use: false,
            cannot_say: false,
            wants_admission: false,
            too_large: None,
            gaps: Vec::new(),
            tails: BTreeMap::new(),
        }
    }

    /// The store thread's turn.
    fn give(&mut self, input: Input<Line>, now: Millis, seen: &mut Seen) {
        let mut next = Some(input);
        while let Some(input) = next.take() {
            let mut actions = Vec::new();
            let hole = self.until();
            let Self { entries, late, contents, cannot_say, out_of_use, memory, .. } = self;
            let (cannot_say, out_of_use) = (*cannot_say, *out_of_use);
            let mut asked = Asked { entries, hole, late, contents, cannot_say, out_of_use };
            memory.committer.handle(input, now, &mut asked, &mut actions);
            for action in actions {
                if let Some(outcome) = self.act(action, seen) {
                    next = Some(outcome);
                }
            }
        }
    }

    fn act(&mut self, action: Action<Line>, seen: &mut Seen) -> Option<Input<Line>> {
        match action {
            Action::Append => return Some(self.append(seen)),
            Action::Receipt(_, statement) => {
                assert!(!self.out_of_use, "nothing is said of a lane that is out of use");
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
            Action::Refuse(_, refusal) => {
                self.wants_admission |= matches!(refusal, Refusal::Admit | Refusal::Hole | Refusal::Epochs);
                seen.note(match refusal {
                    Refusal::Unsigned => "not signed",
                    Refusal::Link => "does not continue the line",
                    Refusal::Admit => "waits until the centre admits it",
                    Refusal::Epochs => "too many epochs",
                    Refusal::TooManyLanes => "too many lanes",
                    Refusal::Hole => "does not refill the hole",
                    Refusal::TooLarge => "beyond the limits of the hub",
                });
            }
            Action::KeepLate(line) => {
                let entry = Entry::from(&line);
                let same = |kept: &Entry| {
                    (kept.epoch, kept.sequence, kept.chain) == (entry.epoch, entry.sequence, entry.chain)
                };
                if !self.late.iter().any(same) {
                    seen.note("kept beside the line");
                    self.late.push(entry);
                }
            }
            Action::Rival(..) => seen.note("rival"),
            Action::Repeated(_) => seen.note("repetition at the hub"),
            Action::Recovered { lane: None, .. } => seen.note("the store works again"),
            Action::Recovered { lane: Some(_), .. } => seen.note("the store can say again what it has"),
        }
        None
    }

    /// The centre lets the lane continue, or gives up what its files have lost. Returns what is late then.
    pub(crate) fn admit(&mut self, disk: &Disk, now: Millis, seen: &mut Seen) -> Vec<Entry> {
        self.wants_admission = false;
        seen.note("admitted");
        let mut late = Vec::new();
        let named = self.memory.committer.may_admit(name(0)) == Some(disk.numbering.present().epoch);
        if !self.after.is_empty() && named && self.finish(now, seen) && !self.after.is_empty() {
            if is_covered(disk, &self.missing) {
                seen.note("lost for good");
                let newest = self.after.last().map(|entry| entry.epoch);
                let whole = [&self.entries[..], &self.missing, &self.after].concat();
                let epochs = watermarks(&whole, 0).iter().map(|end| end.epoch).collect();
                self.closings.extend(newest.map(|newest| (newest, epochs)));
                let lost = |entry: Entry| Entry { stored: false, lost: newest, ..entry };
                self.entries.extend(self.missing.drain(..).map(lost));
                self.entries.append(&mut self.after);
            } else {
                seen.note("late, because it came after a lost part");
                self.missing.clear();
                late = std::mem::take(&mut self.after);
                self.late.extend(&late);
            }
            self.truncate(self.entries.len());
            self.give(Input::ReadAgain(name(0).clone()), now, seen);
        }
        self.give(Input::Admit(name(0).clone()), now, seen);
        late
    }

    /// Where the line goes on after what is missing.
    fn until(&self) -> Option<Vec<Through>> {
        let whole = || self.entries.iter().chain(&self.missing).copied().collect::<Vec<_>>();
        (!self.after.is_empty()).then(|| watermarks(&whole(), 0))
    }

    /// Its files lose a part of the line, which it finds when it starts again.
    pub(crate) fn lose(&mut self, random: &mut Random) {
        self.up = false;
        self.has_lost = true;
        self.snapshot = None;
        let backup = self.backups.last().copied().unwrap_or(0);
        self.in_old_backup.extend(self.entries[..backup].iter().map(Entry::id));
        let to = 1 + random.below(self.entries.len() as u64 - 1) as usize;
        let from = to - (1 + random.below((to as u64).min(30)) as usize);
        self.after = self.entries.split_off(to);
        self.missing = self.entries.split_off(from);
        self.lost_again.extend(self.missing.iter().filter(|entry| entry.lost.is_some()).map(Entry::id));
        self.backups.retain(|backup| *backup <= from);
        self.truncate(from);
        self.forget();
    }

    /// Whether its files can lose a part: they have, or are too few.
    pub(crate) fn can_lose(&self) -> bool {
        self.after.is_empty() && self.entries.len() > 1
    }

    fn append(&mut self, seen: &mut Seen) -> Input<Line> {
        let fails = self.append_fails.take();
        if fails.is_some() && std::mem::take(&mut self.lane_fails) {
            seen.note("the lane's files fail");
            self.out_of_use = true;
        }
        if fails != Some(false) {
            let group = self.memory.committer.group().iter().map(Entry::from).collect::<Vec<_>>();
            for entry in group {
                self.write(entry, seen);
            }
            self.rejoin(seen);
        }
        match fails {
            _ if self.out_of_use => return Input::Stored,
            None => return Input::Stored,
            Some(true) => seen.note("append failed, and is stored all the same"),
            Some(false) => seen.note("append failed"),
        }
        Input::StoreFailed
    }

    fn write(&mut self, entry: Entry, seen: &mut Seen) {
        match entry.content.kind {
            Kind::Void => seen.note("void at the hub"),
            Kind::Pruned => seen.note("deleted and wanted again"),
            _ if !entry.stored => seen.note("known id in a new epoch"),
            _ => {}
        }
        if !self.after.is_empty() {
            // What comes in one group after the last that was missing is not stored: it is judged again.
            let Some(next) = self.missing.first() else { return };
            assert_eq!((next.epoch, next.sequence), (entry.epoch, entry.sequence), "it refills the hole");
            let was = self.missing.remove(0);
            self.replaced.extend((was.chain != entry.chain).then(|| was.id()));
        }
        if entry.has_body() {
            self.ever.insert(entry.id());
        }
        self.know(&entry);
        self.entries.push(entry);
    }

    /// The line goes on where its files do.
    fn rejoin(&mut self, seen: &mut Seen) {
        if self.missing.is_empty() && !self.after.is_empty() {
            seen.note("what was missing has come again");
            self.entries.append(&mut self.after);
            self.truncate(self.entries.len());
        }
    }

    fn know(&mut self, entry: &Entry) {
        if !entry.stored {
            return;
        }
        let stored = self.contents.entry(entry.id()).or_default();
        if !stored.contains(&entry.content.digest()) {
            stored.push(entry.content.digest());
        }
    }

    /// No receipt covers more than what is on stable storage.
    fn check(&self, statement: &Statement) {
        assert_eq!(statement.end, end(&self.entries, 0), "a receipt says what is stored");
    }

    /// Takes a packet; may cause gap notices.
    pub(crate) fn take(&mut self, packet: &Up, now: Millis, seen: &mut Seen) -> Vec<Missed> {
        note_tail(&mut self.tails, 0, packet);
        let too_large = self.too_large;
        self.give(input(0, packet, |content| Some(content.id) == too_large), now, seen);
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
        let too_large = self.too_large;
        let read = |packet| match input(0, packet, |content| Some(content.id) == too_large) {
            Input::Transaction(line) => Some(line),
            _ => None,
        };
        // A bundle cannot even be read beyond one.
        let lines = bundle.packets.iter().filter_map(read).take_while(|line| !line.too_large);
        let mut actions = Vec::new();
        let hole = self.until();
        let Self { entries, late, contents, cannot_say, out_of_use, memory, .. } = self;
        let (cannot_say, out_of_use) = (*cannot_say, *out_of_use);
        let mut asked = Asked { entries, hole, late, contents, cannot_say, out_of_use };
        let taken = memory.committer.import(name(0), lines, now, &mut asked, &mut actions);
        for action in actions {
            self.act(action, seen);
        }
        let Ok((tally, wrong)) = taken else {
            seen.note("bundle refused: the hub leaves its store alone");
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
        let statement = Statement { end: end(&self.entries, 0), ..Statement::default() };
        Some(receipt((incarnation, 1), statement, &BTreeMap::new(), 0))
    }

    /// The virtual machine is set back, including its memory: it continues in the same incarnation, with a lower
    /// counter.
    pub(crate) fn set_back(&mut self) -> bool {
        let Some((memory, length)) = self.snapshot.take() else { return false };
        self.truncate(length.min(self.entries.len()));
        self.backups.retain(|backup| *backup <= length);
        self.memory = memory;
        self.out_of_use = false;
        true
    }

    /// Stores the group, and sends the answers that are due. False: it is not stored.
    pub(crate) fn finish(&mut self, now: Millis, seen: &mut Seen) -> bool {
        let fails = self.append_fails.is_some();
        self.give(Input::Flush, now, seen);
        let failed = fails && self.append_fails.is_none();
        !failed && !self.out_of_use
    }

    /// Takes the receipt that waits to be published.
    pub(crate) fn receipt(&mut self) -> Option<Receipt> {
        let statement = self.memory.waiting.take()?;
        self.memory.counter += 1;
        let lost = lost(&self.entries, 0, &self.closings);
        let number = (self.memory.incarnation, self.memory.counter);
        Some(Receipt { lost, ..receipt(number, statement, &self.tails, 0) })
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
        self.rejoin(seen);
        self.truncate(self.entries.len());
        self.forget();
    }

    pub(crate) fn restore(&mut self, length: usize, seen: &mut Seen) {
        self.up = false;
        if length < self.entries.len() {
            seen.note("hub restored to less");
        }
        (self.missing, self.after) = (Vec::new(), Vec::new());
        self.truncate(length.min(self.entries.len()));
        self.late.clear();
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
        self.contents.clear();
        for entry in self.entries.clone() {
            self.know(&entry);
        }
    }

    pub(crate) fn has_snapshot(&self) -> bool {
        self.snapshot.is_some()
    }

    pub(crate) fn take_snapshot(&mut self, now: Millis, seen: &mut Seen) {
        self.finish(now, seen);
        if self.after.is_empty() {
            self.snapshot = Some((self.memory.clone(), self.entries.len()));
        }
    }

    pub(crate) fn start(&mut self, incarnation: u64) {
        self.up = true;
        self.out_of_use = false;
        let backup = self.backups.last().copied().unwrap_or(0);
        let committer = begin(self.limits, &self.entries, backup, !self.after.is_empty());
        self.memory = Memory { committer, incarnation, counter: 0, waiting: None };
    }

    /// Whether the last backup holds it.
    pub(crate) fn has_backup_of(&self, id: TransactionId) -> bool {
        let length = self.backups.last().copied().unwrap_or(0);
        self.in_old_backup.contains(&id)
            || self.entries[..length].iter().any(|entry| entry.has_body() && entry.id() == id)
    }
}
