//! The committer by itself, with a model record and a model store. The simulation and the exhaustive model drive whole
//! worlds.

use std::collections::BTreeSet;

use uuid::Uuid;

use super::*;
use crate::delivery::Millis;
use crate::transaction::{Gateway, Lane, Practice};

mod line_tests;
mod out_of_use_tests;
mod proof_tests;
mod refill_tests;

const EPOCH: Epoch = Epoch(Uuid::nil());
const OTHER: Epoch = Epoch(Uuid::max());

fn lane_of(gateway: &str, lane: &str) -> LaneName {
    LaneName {
        practice: Practice::new("B86022").unwrap(),
        gateway: Gateway::new(gateway).unwrap(),
        lane: Lane::new(lane).unwrap(),
    }
}

fn lane() -> LaneName {
    lane_of("gw1", "clinical")
}

/// A chain that needs no hashing: id and content are mixed into the last bytes.
fn link(before: ChainValue, id: u128, body: u8) -> ChainValue {
    let mut value = before;
    value.0[31] = value.0[31].wrapping_mul(31).wrapping_add(u8::try_from(id).unwrap());
    value.0[30] = value.0[30].wrapping_mul(31).wrapping_add(body);
    value
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Line {
    lane: LaneName,
    numbered: Numbered,
    body: u8,
    pruned: bool,
    too_large: bool,
    only_number: bool,
    rival: bool,
    /// The chain value that its gateway has signed.
    signs: Option<ChainValue>,
    /// Its signature is kept.
    is_head: bool,
}

impl Record for Line {
    fn lane(&self) -> &LaneName {
        &self.lane
    }
    fn numbered(&self) -> Numbered {
        self.numbered
    }
    fn is_pruned(&self) -> bool {
        self.pruned
    }
    fn is_too_large(&self) -> bool {
        self.too_large
    }
    fn digest(&self) -> Digest {
        let mut digest = Digest([self.body; 32]);
        digest.0[..16].copy_from_slice(self.numbered.id.0.as_bytes());
        digest
    }
    fn chain_after(&self, before: ChainValue) -> ChainValue {
        link(before, self.numbered.id.0.as_u128(), self.body)
    }
    fn bytes(&self) -> usize {
        10
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
    fn keep_head(&mut self, by: Option<KeyId>) {
        self.is_head = by.is_some();
    }
}

/// The content of its stable storage.
#[derive(Default)]
struct Store {
    lines: Vec<Line>,
    late: Vec<Line>,
    cannot_say: bool,
    /// Lanes whose files have failed.
    out: BTreeSet<LaneName>,
    /// How many signatures it was asked about.
    verified: usize,
    /// How many values it was asked for.
    looked_up: usize,
}

impl Lookup<Line> for Store {
    fn watermarks_of(&self, lane: &LaneName) -> Option<Vec<Through>> {
        let mut watermarks: Vec<Through> = Vec::new();
        for Line { numbered: Numbered { epoch, sequence, chain, .. }, .. } in
            self.lines.iter().filter(|line| line.lane == *lane)
        {
            let watermark = Through { epoch: *epoch, through: *sequence, chain: *chain };
            match watermarks.iter_mut().find(|known| known.epoch == *epoch) {
                Some(known) => *known = watermark,
                None => watermarks.push(watermark),
            }
        }
        (!self.out.contains(lane)).then_some(watermarks)
    }

    fn content(&mut self, lane: &LaneName, id: TransactionId, digest: Digest) -> Option<Content> {
        let is = |line: &&Line| line.lane == *lane && line.numbered.id == id;
        let found: Vec<_> = self.lines.iter().filter(is).map(Line::digest).collect();
        (!self.cannot_say).then_some(match found.is_empty() {
            true => Content::Unknown,
            false if found.contains(&digest) => Content::Same,
            false => Content::Other,
        })
    }

    fn value_at(&mut self, lane: &LaneName, epoch: Epoch, sequence: Sequence) -> Option<Option<ChainValue>> {
        self.looked_up += 1;
        (!self.cannot_say).then(|| value(&self.lines, lane, epoch, sequence).next())
    }

    fn late_at(&mut self, lane: &LaneName, epoch: Epoch, sequence: Sequence) -> Vec<ChainValue> {
        value(&self.late, lane, epoch, sequence).collect()
    }

    fn signed_by(&mut self, record: &Line, chain: ChainValue, _: Way) -> Option<KeyId> {
        self.verified += 1;
        (record.signs == Some(chain)).then_some(KeyId([1; 8]))
    }
}

fn value<'a>(
    lines: &'a [Line],
    lane: &'a LaneName,
    epoch: Epoch,
    sequence: Sequence,
) -> impl Iterator<Item = ChainValue> + 'a {
    let at = move |line: &&Line| {
        line.lane == *lane && (line.numbered.epoch, line.numbered.sequence) == (epoch, sequence)
    };
    lines.iter().filter(at).map(|line| line.numbered.chain)
}

struct Hub {
    committer: Committer<Line>,
    store: Store,
    now: Millis,
}

type Actions = Vec<Action<Line>>;

impl Hub {
    fn new() -> Self {
        Self::with(Store::default(), GroupLimits { transactions: 1_000, bytes: 1 << 20 })
    }

    fn with(store: Store, limits: GroupLimits) -> Self {
        let lanes: BTreeSet<_> = store.lines.iter().map(|line| line.lane.clone()).collect();
        let watermarks: Vec<_> =
            lanes.into_iter().map(|lane| (lane.clone(), store.watermarks_of(&lane).unwrap())).collect();
        Self { committer: Committer::new(limits, watermarks, BackedUp::new()), store, now: 0 }
    }

    /// A new hub whose gateway has asked for the position.
    fn asked() -> Self {
        let mut hub = Self::new();
        hub.ask(&lane(), "q");
        hub.finish();
        hub
    }

    fn give(&mut self, input: Input<Line>) -> Actions {
        let mut actions = Vec::new();
        self.committer.handle(input, self.now, &mut self.store, &mut actions);
        for action in &actions {
            if let Action::KeepLate(line) = action {
                self.store.late.push(line.clone());
            }
        }
        actions
    }

    fn import(
        &mut self,
        lane: &LaneName,
        lines: impl IntoIterator<Item = Line>,
    ) -> Result<(Tally, Option<NotTaken>), NotTaken> {
        self.committer.import(lane, lines, self.now, &mut self.store, &mut Vec::new())
    }

    fn ask(&mut self, lane: &LaneName, nonce: &str) -> Actions {
        self.ask_about(lane, nonce, EPOCH, None)
    }

    fn ask_about(&mut self, lane: &LaneName, nonce: &str, epoch: Epoch, point: Option<Through>) -> Actions {
        let question = Question { nonce: nonce.to_owned(), epoch, point };
        self.give(Input::Position { lane: lane.clone(), question })
    }

    /// Stores a part of the group, and reports whether that was all.
    fn append(&mut self, part: usize, outcome: Input<Line>) -> Actions {
        self.store.lines.extend(self.committer.group()[..part].iter().cloned());
        self.give(outcome)
    }

    /// A flush; the store works.
    fn finish(&mut self) -> Actions {
        let mut actions = self.give(Input::Flush);
        if actions.pop_if(|last| *last == Action::Append).is_some() {
            actions.extend(self.append(self.committer.group().len(), Input::Stored));
        }
        actions
    }

    fn only_receipt(actions: Actions) -> Statement {
        match <[Action<Line>; 1]>::try_from(actions) {
            Ok([Action::Receipt(_, statement)]) => statement,
            other => panic!("{other:?}"),
        }
    }
}

struct Sender {
    lane: LaneName,
    epoch: Epoch,
    link: Option<Through>,
    chains: Vec<ChainValue>,
    base: u128,
}

impl Sender {
    fn new(epoch: Epoch, base: u128, ids: u128) -> Self {
        Self::of(lane(), epoch, base, ids)
    }

    fn of(lane: LaneName, epoch: Epoch, base: u128, ids: u128) -> Self {
        Self::linked(lane, epoch, None, base, ids)
    }

    /// Its epoch begins where the line ends with `end`.
    fn after(end: Through, epoch: Epoch, base: u128, ids: u128) -> Self {
        Self::linked(lane(), epoch, Some(end), base, ids)
    }

    fn linked(lane: LaneName, epoch: Epoch, at: Option<Through>, base: u128, ids: u128) -> Self {
        let mut chains = vec![ChainValue::first(&lane, epoch, at.as_ref())];
        for id in 1..=ids {
            chains.push(link(chains[chains.len() - 1], base + id, 0));
        }
        Self { lane, epoch, link: at, chains, base }
    }

    fn line(&self, sequence: u64, round: u64) -> Line {
        let id = TransactionId(Uuid::from_u128(self.base + u128::from(sequence)));
        let chain = self.chains[usize::try_from(sequence).unwrap()];
        let link = self.link.filter(|_| sequence == 1);
        let numbered = Numbered { epoch: self.epoch, sequence, round, id, chain, link };
        Line {
            lane: self.lane.clone(),
            numbered,
            body: 0,
            pruned: false,
            too_large: false,
            only_number: false,
            rival: false,
            signs: Some(chain),
            is_head: false,
        }
    }

    fn send(&self, hub: &mut Hub, sequence: u64, round: u64) -> Actions {
        hub.give(Input::Transaction(self.line(sequence, round)))
    }

    /// It joins the group.
    fn stages(&self, hub: &mut Hub, sequences: impl IntoIterator<Item = u64>) {
        for sequence in sequences {
            let before = hub.committer.group().len();
            assert_eq!(self.send(hub, sequence, 0), []);
            assert_eq!(hub.committer.group().len(), before + 1, "{sequence}");
        }
    }

    fn through(&self, sequence: u64) -> Through {
        let chain = self.chains[usize::try_from(sequence).unwrap()];
        Through { epoch: self.epoch, through: sequence, chain }
    }
}

fn statement(end: Option<Through>, nonce: Option<&str>) -> Statement {
    Statement { end, holds_point: None, backed_up_through: None, nonce: nonce.map(str::to_owned) }
}

fn missing(expected: Sequence, round: u64) -> Missed {
    Missed { code: GapCode::Missing, epoch: EPOCH, expected, round }
}

fn elsewhere(epoch: Epoch, expected: Sequence, round: u64) -> Actions {
    let missed = Missed { code: GapCode::Link, epoch, expected, round };
    vec![Action::Gap(lane(), missed), Action::Refuse(lane(), Refusal::Link)]
}

fn unsigned(expected: Sequence) -> Actions {
    let missed = Missed { code: GapCode::Unverified, epoch: EPOCH, expected, round: 0 };
    vec![Action::Gap(lane(), missed), Action::Refuse(lane(), Refusal::Unsigned)]
}

#[test]
fn a_receipt_speaks_of_what_is_stored_only_and_comes_once() {
    let (mut hub, sender) = (Hub::asked(), Sender::new(EPOCH, 0, 9));
    sender.stages(&mut hub, [1, 2]);
    assert_eq!(hub.ask(&lane(), "early"), [], "no answer before the group is stored");
    assert_eq!(hub.give(Input::Flush), [Action::Append]);
    assert_eq!(hub.committer.watermarks_of(&lane()), []);
    let answer = Hub::only_receipt(hub.append(2, Input::Stored));
    assert_eq!(answer, statement(Some(sender.through(2)), Some("early")));
    assert_eq!(hub.finish(), [], "once");
    sender.stages(&mut hub, [3]);
    let receipt = Hub::only_receipt(hub.finish());
    assert_eq!(receipt, statement(Some(sender.through(3)), None), "a question is answered once");
}

#[test]
fn while_a_group_is_being_stored_nothing_joins_it_and_nobody_is_answered() {
    let (mut hub, sender) = (Hub::asked(), Sender::new(EPOCH, 0, 9));
    assert_eq!(hub.give(Input::Stored), [], "no group is under way");
    sender.stages(&mut hub, [1]);
    assert_eq!(hub.give(Input::Stored), [], "nor now");
    assert_eq!(hub.committer.watermarks_of(&lane()), []);
    assert_eq!(hub.give(Input::Flush), [Action::Append]);
    assert_eq!(sender.send(&mut hub, 2, 0), []);
    assert_eq!(hub.ask(&lane(), "meanwhile"), []);
    assert_eq!(hub.give(Input::Flush), []);
    assert_eq!(hub.committer.group().len(), 1);
    let part = hub.import(&lane(), [sender.line(2, 0)]);
    assert_eq!(part, Err(NotTaken::StoreFailed(lane())));
    let answer = Hub::only_receipt(hub.append(1, Input::Stored));
    assert_eq!(answer, statement(Some(sender.through(1)), Some("meanwhile")));
    sender.stages(&mut hub, [2]);
}

#[test]
fn a_repetition_is_not_stored_and_makes_one_receipt_due() {
    let (mut hub, sender) = (Hub::asked(), Sender::new(EPOCH, 0, 90));
    sender.stages(&mut hub, 1..=80);
    hub.finish();
    let repeated = |sequence| [Action::Repeated(sender.line(sequence, 1))];
    assert_eq!(sender.send(&mut hub, 3, 1), repeated(3), "beyond what is remembered");
    assert_eq!(sender.send(&mut hub, 79, 1), repeated(79));
    assert!(hub.committer.group().is_empty());
    assert_eq!(Hub::only_receipt(hub.finish()), statement(Some(sender.through(80)), None));
    assert_eq!(hub.finish(), []);
    let strange = Sender::new(EPOCH, 150, 90);
    assert_eq!(strange.send(&mut hub, 79, 1), elsewhere(EPOCH, 79, 1));
    // The same for transactions that wait in the group.
    sender.stages(&mut hub, [81]);
    assert_eq!(sender.send(&mut hub, 81, 1), repeated(81));
    assert_eq!(hub.committer.group().len(), 1);
}

#[test]
fn one_gap_notice_for_each_number_and_round() {
    let (mut hub, sender) = (Hub::asked(), Sender::new(EPOCH, 0, 9));
    let say = |expected, round| [Action::Gap(lane(), missing(expected, round))];
    assert_eq!(sender.send(&mut hub, 2, 5), say(1, 5));
    assert_eq!(sender.send(&mut hub, 3, 5), []);
    assert_eq!(sender.send(&mut hub, 3, 6), say(1, 6));
    assert!(!hub.committer.has_work());
    sender.stages(&mut hub, [1]);
    assert_eq!(sender.send(&mut hub, 3, 6), say(2, 6));
    assert_eq!(hub.committer.group().len(), 1);
}

#[test]
fn another_chain_is_not_stored() {
    let (mut hub, sender) = (Hub::asked(), Sender::new(EPOCH, 0, 9));
    sender.stages(&mut hub, [1]);
    hub.finish();
    let forked = Sender::new(EPOCH, 50, 9);
    assert_eq!(forked.send(&mut hub, 2, 0), elsewhere(EPOCH, 2, 0));
    assert_eq!(hub.committer.watermarks_of(&lane()), [sender.through(1)]);
    sender.stages(&mut hub, [2]);
}

#[test]
fn after_a_failed_append_every_lane_begins_again_from_its_marks() {
    let (mut hub, a, b) = (Hub::asked(), Sender::new(EPOCH, 0, 9), lane_of("gw2", "clinical"));
    let b = Sender::of(b, EPOCH, 20, 9);
    hub.ask(&b.lane, "b");
    hub.finish();
    a.stages(&mut hub, 1..=2);
    b.stages(&mut hub, 1..=2);
    hub.ask(&b.lane, "where");
    assert_eq!(hub.give(Input::Flush), [Action::Append]);
    // The store has the first lane's part; only an answer to a question says so.
    let actions = hub.append(2, Input::StoreFailed);
    assert_eq!(actions, [Action::Receipt(b.lane.clone(), statement(None, Some("where")))]);
    assert_eq!(hub.finish(), []);
    assert_eq!(hub.committer.watermarks_of(&lane()), [a.through(2)]);
    assert_eq!(hub.committer.watermarks_of(&b.lane), []);
    // During the pause the hub takes nothing, and says so once in each round.
    hub.now = 499;
    let later = |round| {
        let missed = Missed { code: GapCode::Later, epoch: EPOCH, expected: 1, round };
        vec![Action::Gap(b.lane.clone(), missed)]
    };
    assert_eq!(b.send(&mut hub, 1, 0), later(0));
    assert_eq!(b.send(&mut hub, 2, 0), []);
    assert_eq!(b.send(&mut hub, 1, 1), later(1));
    let part = hub.import(&b.lane, [b.line(1, 0)]);
    assert_eq!(part, Err(NotTaken::StoreFailed(b.lane.clone())));
    assert!(!hub.committer.has_work());
    hub.now = 500;
    b.stages(&mut hub, [1]);
    a.stages(&mut hub, [3]);
    hub.give(Input::Flush);
    assert_eq!(hub.append(0, Input::StoreFailed), []);
    hub.now = 1_499;
    assert_eq!(b.send(&mut hub, 1, 0), later(0), "twice as long");
    hub.now = 1_500;
    a.stages(&mut hub, [3]);
    b.stages(&mut hub, [1, 2]);
    let actions = hub.finish();
    assert_eq!(actions[0], Action::Recovered { lane: None, dropped: 4 + 3 + 2 + 1 });
    assert_eq!(actions[1], Action::Receipt(lane(), statement(Some(a.through(3)), None)));
    assert_eq!(actions[2], Action::Receipt(b.lane.clone(), statement(Some(b.through(2)), None)));
    assert_eq!(actions.len(), 3);
    let stored: Vec<_> = hub.store.lines.iter().map(|line| line.numbered.sequence).collect();
    assert_eq!(stored, [1, 2, 3, 1, 2]);
}

#[test]
fn when_the_store_cannot_say_what_it_has_the_lane_stays_as_it_was() {
    let (mut hub, old) = (Hub::asked(), Sender::new(EPOCH, 0, 9));
    old.stages(&mut hub, 1..=2);
    hub.finish();
    old.stages(&mut hub, [3]);
    let new = Sender::after(old.through(3), OTHER, 1, 9);
    hub.store.cannot_say = true;
    let later =
        |round| vec![Action::Gap(lane(), Missed { code: GapCode::Later, epoch: OTHER, expected: 1, round })];
    assert_eq!(new.send(&mut hub, 1, 0), later(0));
    assert_eq!(hub.committer.group().len(), 1);
    assert_eq!(new.send(&mut hub, 2, 0), [], "the store is left alone, and it was said");
    assert_eq!(new.send(&mut hub, 1, 1), later(1));
    // Another lane does not even notice.
    let other = Sender::of(lane_of("gw1", "letters"), EPOCH, 5, 9);
    other.stages(&mut hub, [1]);
    let actions = hub.finish();
    let receipts = [(lane(), old.through(3)), (other.lane.clone(), other.through(1))];
    let receipts = receipts.map(|(lane, end)| Action::Receipt(lane, statement(Some(end), None)));
    assert_eq!(actions, receipts, "what was staged before is stored all the same");
    assert_eq!(hub.import(&lane(), [new.line(1, 0)]), Err(NotTaken::StoreFailed(lane())));
    hub.now = 500;
    let part = hub.import(&lane(), [new.line(1, 0)]);
    assert_eq!(part, Ok((Tally::default(), Some(NotTaken::StoreFailed(lane())))));
    hub.store.cannot_say = false;
    hub.now = 1_499;
    assert_eq!(new.send(&mut hub, 1, 2), later(2), "twice as long");
    hub.now = 1_500;
    let recovered = Action::Recovered { lane: Some(lane()), dropped: 5 };
    assert_eq!(new.send(&mut hub, 1, 2), [recovered]);
    new.stages(&mut hub, [2]);
    let only_number: Vec<_> = hub.committer.group().iter().map(|line| line.only_number).collect();
    assert_eq!(only_number, [true, true]);
}

#[test]
fn a_full_group_is_stored_at_once() {
    for limits in [GroupLimits { transactions: 2, bytes: 1_000 }, GroupLimits { transactions: 9, bytes: 20 }]
    {
        let (mut hub, sender) = (Hub::with(Store::default(), limits), Sender::new(EPOCH, 0, 9));
        hub.ask(&lane(), "q");
        sender.stages(&mut hub, [1]);
        assert_eq!(sender.send(&mut hub, 2, 0), [Action::Append]);
        let answer = Hub::only_receipt(hub.append(2, Input::Stored));
        assert_eq!(answer, statement(Some(sender.through(2)), Some("q")));
        sender.stages(&mut hub, [3]);
    }
}

#[test]
fn a_new_connection_gets_every_receipt_and_the_last_answers_again() {
    let (mut hub, sender) = (Hub::asked(), Sender::new(EPOCH, 0, 9));
    sender.stages(&mut hub, [1]);
    hub.finish();
    sender.send(&mut hub, 1, 1);
    hub.give(Input::Connected);
    let receipt = Hub::only_receipt(hub.finish());
    assert_eq!(receipt, statement(Some(sender.through(1)), Some("q")), "the answer may have been lost");
    // A new hub has been asked nothing.
    let mut hub = Hub::with(hub.store, hub.committer.limits());
    hub.give(Input::Connected);
    assert_eq!(Hub::only_receipt(hub.finish()), statement(Some(sender.through(1)), None));
    hub.ask(&lane(), "old");
    hub.ask(&lane(), "new");
    assert_eq!(Hub::only_receipt(hub.finish()).nonce.as_deref(), Some("new"));
    hub.give(Input::Connected);
    assert_eq!(Hub::only_receipt(hub.finish()).nonce.as_deref(), Some("new"));
}

#[test]
fn a_receipt_that_waits_is_replaced_and_its_question_stays_answered() {
    let sender = Sender::new(EPOCH, 0, 9);
    let (first, second) =
        (statement(Some(sender.through(1)), Some("q")), statement(Some(sender.through(2)), None));
    assert_eq!(second.clone().instead_of(Some(first.clone())), statement(Some(sender.through(2)), Some("q")));
    assert_eq!(second.clone().instead_of(None), second);
    let answer = statement(Some(sender.through(2)), Some("r"));
    assert_eq!(answer.clone().instead_of(Some(first)), answer, "the newer question");
}

#[test]
fn a_backup_counts_for_the_newest_epoch_and_for_no_more_than_is_here() {
    let (mut hub, sender) = (Hub::asked(), Sender::new(EPOCH, 0, 9));
    sender.stages(&mut hub, 1..=3);
    hub.finish();
    let mut word = |of: LaneName, epoch, through| {
        hub.give(Input::BackedUp(BackedUp::from([(of, (epoch, through))])));
        Hub::only_receipt(hub.finish()).backed_up_through
    };
    assert_eq!(word(lane(), EPOCH, 2), Some(2));
    assert_eq!(word(lane(), EPOCH, 7), Some(3), "the store was restored from an older copy");
    assert_eq!(word(lane(), OTHER, 1), None);
    assert_eq!(word(lane_of("gw2", "clinical"), EPOCH, 1), None);
}

#[test]
fn one_gateway_cannot_fill_the_hub_with_lanes() {
    let mut hub = Hub::new();
    let neighbours = [lane_of("gw0", "z"), lane_of("gw2", "a")];
    for lane in &neighbours {
        assert_eq!(hub.ask(lane, "q"), []);
    }
    let names: Vec<_> = (0..MOST_LANES).map(|n| lane_of("gw1", &format!("l{n}"))).collect();
    for name in &names {
        assert_eq!(hub.ask(name, "q"), []);
    }
    for name in [lane_of("gw1", "a"), lane_of("gw1", "z"), lane_of("gw1", "l50a")] {
        let refused = [Action::Refuse(name.clone(), Refusal::TooManyLanes)];
        assert_eq!(hub.ask(&name, "q"), refused);
        assert_eq!(Sender::of(name.clone(), EPOCH, 0, 9).send(&mut hub, 1, 0), refused);
        let part = hub.import(&name, []);
        assert_eq!(part, Err(NotTaken::TooManyLanes(name)));
    }
    Sender::of(names[7].clone(), EPOCH, 0, 9).stages(&mut hub, [1]);
    assert_eq!(hub.ask(&lane_of("gw3", "a"), "q"), []);
}

#[test]
fn what_is_carried_by_hand_continues_the_line_as_publishes_do() {
    let (mut hub, old) = (Hub::new(), Sender::new(EPOCH, 0, 9));
    let new = Sender::after(old.through(5), OTHER, 3, 9);
    let import = |hub: &mut Hub, lines: Vec<Line>| {
        let part = hub.import(&lane(), lines);
        hub.finish();
        part
    };
    let missing = |sequence| NotTaken::Missing { lane: lane(), epoch: EPOCH, sequence, position: None };
    let link = |sequence| NotTaken::Link { lane: lane(), epoch: OTHER, sequence };
    let tally = |stored, renumbered, repeated| Tally { stored, renumbered, repeated, ..Tally::default() };
    let lines =
        |of: &Sender, range: std::ops::RangeInclusive<u64>| range.map(|n| of.line(n, 0)).collect::<Vec<_>>();
    assert_eq!(import(&mut hub, lines(&old, 1..=2)), Ok((tally(2, 0, 0), None)));
    assert_eq!(import(&mut hub, lines(&old, 4..=4)), Ok((tally(0, 0, 0), Some(missing(3)))));
    assert_eq!(import(&mut hub, lines(&new, 2..=2)), Ok((tally(0, 0, 0), Some(link(2)))));
    assert_eq!(import(&mut hub, lines(&old, 1..=4)), Ok((tally(2, 0, 2), None)));
    // Another history of this gateway: kept, and not in the line.
    let late = Tally { late: 1, ..Tally::default() };
    let other = Sender::after(old.through(5), OTHER, 70, 9);
    assert_eq!(import(&mut hub, lines(&other, 1..=1)), Ok((late, None)));
    // Staged transactions do not count yet.
    assert_eq!(hub.import(&lane(), lines(&old, 5..=5)), Ok((tally(1, 0, 0), None)));
    assert_eq!(hub.committer.watermarks_of(&lane()), [old.through(4)]);
    hub.finish();
    assert_eq!(import(&mut hub, lines(&new, 1..=3)), Ok((tally(1, 2, 0), None)));
    assert_eq!(hub.committer.watermarks_of(&lane()), [old.through(5), new.through(3)]);
    let strange = Sender::new(OTHER, 60, 9).line(4, 0);
    assert_eq!(import(&mut hub, vec![strange]), Ok((tally(0, 0, 0), Some(link(4)))));
}

#[test]
fn a_bundle_that_the_hub_has_costs_few_look_ups_also_where_it_goes_another_way() {
    let (mut hub, old) = (Hub::new(), Sender::new(EPOCH, 0, 240));
    let lines: Vec<Line> = (1..=220).map(|number| old.line(number, 0)).collect();
    hub.import(&lane(), lines.clone()).unwrap();
    hub.finish();
    let import = |hub: &mut Hub, lines: Vec<Line>| {
        hub.store.looked_up = 0;
        let (tally, wrong) = hub.import(&lane(), lines).unwrap();
        assert_eq!((wrong, tally.stored), (None, 0));
        hub.finish();
        (tally.repeated, tally.late, hub.store.looked_up)
    };
    assert_eq!(import(&mut hub, lines[..150].to_vec()), (150, 0, 1));
    for same in [0, 1, 74, 148] {
        let mut forked = lines[..150].to_vec();
        for at in same..150_usize {
            let before = at.checked_sub(1).map_or(old.chains[0], |at| forked[at].numbered.chain);
            forked[at].body = 7;
            forked[at].numbered.chain = forked[at].chain_after(before);
            forked[at].signs = Some(forked[at].numbered.chain);
        }
        let (repeated, late, looked_up) = import(&mut hub, forked);
        assert_eq!((repeated, late), (same as u64, 150 - same as u64));
        // Its last number, and what its first other number follows.
        assert!(looked_up <= 2, "{looked_up}");
    }
    hub.store.cannot_say = true;
    let part = hub.import(&lane(), lines[..150].to_vec());
    assert_eq!(part, Err(NotTaken::StoreFailed(lane())));
}
