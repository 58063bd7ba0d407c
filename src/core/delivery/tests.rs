//! The machine's rules, one by one. `tests/model/simulation.rs` and `tests/model/exhaustive.rs` test them together.

mod answer_tests;
mod line_tests;

use uuid::Uuid;

use super::*;

const HOUR: Millis = 3_600_000;

fn epoch(number: u128) -> Epoch {
    Epoch(Uuid::from_u128(number))
}

/// The box's chain value at a number, in this test's world: the epoch in front, the number behind.
fn chain(epoch: u8, position: Sequence) -> ChainValue {
    let mut value = [epoch; 32];
    value[24..].copy_from_slice(&position.to_be_bytes());
    ChainValue(value)
}

fn limits() -> Limits {
    Limits {
        window: 4,
        window_bytes: 10_000,
        receipt_timeout: 2_000,
        stall_timeout: 5_000,
        confirm_on_puback: false,
    }
}

fn point(of: u8, through: Sequence) -> Through {
    Through { epoch: epoch(of.into()), through, chain: chain(of, through) }
}

/// A machine and a driver that reads every record at once and keeps what was sent.
struct Bench {
    machine: Delivery,
    now: Millis,
    bytes: u64,
    nonce: Nonce,
    /// The hub's line holds the point that it is asked about.
    holds_point: bool,
    counter: u64,
    incarnation: u64,
    connections: u8,
    tail_seen: Option<(Epoch, Sequence)>,
    /// What the hub says is lost for good, and what the driver was told of that.
    lost: Vec<LostNumbers>,
    lost_at_hub: Vec<(Position, Position)>,
    known_store: bool,
    limits: HubLimits,
    /// How often what was answered before was withdrawn.
    withdrawn: usize,
}

const TOO_LARGE: HeldBecause = HeldBecause::TooLarge { bytes: 100, most: 99 };

impl Bench {
    fn new(limits: Limits, watermark: Position, tail: Position) -> Self {
        let confirmed = (watermark > 0).then(|| Point { position: watermark, at: point(0, watermark) });
        let machine = Delivery::new(limits, Numbering::new(epoch(0)), confirmed, tail);
        Self {
            machine,
            now: 0,
            bytes: 100,
            nonce: [0; 16],
            holds_point: true,
            counter: 0,
            incarnation: 1,
            connections: 0,
            tail_seen: None,
            lost: Vec::new(),
            lost_at_hub: Vec::new(),
            known_store: true,
            limits: HubLimits::default(),
            withdrawn: 0,
        }
    }

    /// The input's actions, and those of every record that the machine then wants.
    fn give(&mut self, input: Input) -> Vec<Action> {
        let mut out = Vec::new();
        self.machine.handle(input, self.now, &mut out);
        while let Some(position) = self.machine.wanted() {
            let present = self.machine.numbering().present();
            let of = u8::try_from(present.epoch.0.as_u128()).unwrap();
            let chain = chain(of, present.number(position));
            let offer = Input::Offer { position, bytes: self.bytes, chain };
            self.machine.handle(offer, self.now, &mut out);
        }
        let mut nonces = out.iter().filter_map(|a| match a {
            Action::AskPosition { nonce, .. } => Some(*nonce),
            _ => None,
        });
        self.nonce = nonces.next_back().unwrap_or(self.nonce);
        self.withdrawn += out.extract_if(.., |action| *action == Action::Withdraw).count();
        for told in out.extract_if(.., |action| matches!(action, Action::LostAtHub(_))) {
            let Action::LostAtHub(lost) = told else { continue };
            self.lost_at_hub = lost;
        }
        out
    }

    fn connect(&mut self) -> Vec<Action> {
        self.connect_to(1_000, None)
    }

    fn connect_to(&mut self, receive_maximum: u16, maximum_bytes: Option<u64>) -> Vec<Action> {
        self.connections += 1;
        self.give(Input::Connected { nonce: [self.connections; 16], receive_maximum, maximum_bytes })
    }

    fn receipt_of(&mut self, through: Sequence, nonce: Option<Nonce>) -> Input {
        self.receipt_at((through > 0).then(|| point(0, through)), nonce)
    }

    fn receipt_at(&mut self, end: Option<Through>, nonce: Option<Nonce>) -> Input {
        self.counter += 1;
        Input::Receipt(Receipt {
            incarnation: self.incarnation,
            counter: self.counter,
            end,
            holds_point: self.holds_point,
            backed_up_through: None,
            nonce,
            tail_seen: self.tail_seen,
            lost: self.lost.clone(),
            known_store: self.known_store,
            limits: self.limits,
        })
    }

    /// The hub answers that its line ends there.
    fn answer_at(&mut self, end: Option<Through>) -> Vec<Action> {
        let receipt = self.receipt_at(end, Some(self.nonce));
        self.give(receipt)
    }

    fn chain_at(&mut self, at: Through, ours: Option<ChainValue>) -> Vec<Action> {
        self.give(Input::ChainAt { epoch: at.epoch, sequence: at.through, chain: ours })
    }

    fn receipt(&mut self, through: Sequence) -> Vec<Action> {
        let receipt = self.receipt_of(through, None);
        self.give(receipt)
    }

    fn answer(&mut self, through: Sequence) -> Vec<Action> {
        let receipt = self.receipt_of(through, Some(self.nonce));
        self.give(receipt)
    }

    fn pub_ack(&mut self, position: Position) -> Vec<Action> {
        self.give(Input::PubAck { position, outcome: Ok(()) })
    }

    fn tick(&mut self) -> Vec<Action> {
        self.now = self.machine.deadline().expect("a deadline");
        self.give(Input::Tick)
    }

    fn gap(&mut self, expected: Sequence, round: u64) -> Vec<Action> {
        self.give(Input::Gap { code: GapCode::Missing, epoch: epoch(0), expected, round })
    }
}

fn sent(actions: &[Action]) -> Vec<Position> {
    let position = |a: &Action| if let Action::Send { position, .. } = a { Some(*position) } else { None };
    actions.iter().filter_map(position).collect()
}

fn round(actions: &[Action]) -> u64 {
    let round = |a: &Action| if let Action::Send { round, .. } = a { Some(*round) } else { None };
    actions.iter().find_map(round).expect("something was sent")
}

fn confirmed(actions: &[Action]) -> Vec<Position> {
    let position = |a: &Action| if let Action::Confirm { position, .. } = a { Some(*position) } else { None };
    actions.iter().filter_map(position).collect()
}

fn asked(actions: &[Action]) -> usize {
    actions.iter().filter(|a| matches!(a, Action::AskPosition { .. })).count()
}

#[test]
fn nothing_goes_before_the_answer_and_the_window_goes_with_it() {
    let mut bench = Bench::new(limits(), 0, 9);
    let question = Action::AskPosition { nonce: [1; 16], epoch: epoch(0), tail: 9, point: None };
    assert_eq!(bench.connect(), [question]);
    assert_eq!(bench.receipt(3), [], "a retained receipt is a hint");
    assert_eq!(bench.machine.confirmed(), 0);
    let stale = bench.receipt_of(3, Some([9; 16]));
    assert_eq!(bench.give(stale), [], "the answer to somebody else's question too");
    assert_eq!(sent(&bench.answer(0)), [1, 2, 3, 4]);
    assert_eq!(sent(&bench.receipt(2)), [5, 6]);
    assert!(sent(&bench.pub_ack(1)).is_empty(), "a PUBACK opens no window");
    assert_eq!(bench.machine.confirmed(), 2);
    assert_eq!(confirmed(&bench.receipt(6)), [6]);
}

#[test]
fn an_unanswered_question_is_asked_again_ever_more_seldom_and_a_sign_of_life_hurries_it() {
    let mut bench = Bench::new(limits(), 0, 9);
    bench.connect();
    let mut waits = Vec::new();
    for _ in 0..7 {
        let before = bench.now;
        assert_eq!(asked(&bench.tick()), 1);
        waits.push((bench.now - before) / 1_000);
    }
    assert_eq!(waits, [2, 4, 8, 16, 32, 60, 60]);
    let last = bench.now;
    assert_eq!(bench.receipt(0), [], "its answer may be under way");
    assert_eq!(bench.machine.deadline(), Some(last + 250), "but the hub may have connected after it");
    bench.now += 10_000;
    assert_eq!(asked(&bench.receipt(0)), 1);
    assert_eq!(bench.machine.deadline(), Some(bench.now + 2_000));
    assert_eq!(sent(&bench.answer(0)), [1, 2, 3, 4]);
    assert_eq!(asked(&bench.give(Input::Tick)), 0);
}

#[test]
fn receipts_of_the_past_are_ignored() {
    let mut bench = Bench::new(limits(), 0, 9);
    bench.connect();
    bench.answer(0);
    bench.receipt(2);
    bench.counter = 1;
    assert_eq!(bench.receipt(4), [], "its counter was seen");
    assert_eq!(confirmed(&bench.receipt(4)), [4]);
}

#[test]
fn reconnection_sends_again_from_the_mark_in_a_new_round() {
    let mut bench = Bench::new(limits(), 0, 9);
    bench.connect();
    let first = round(&bench.answer(0));
    bench.receipt(1);
    bench.give(Input::Disconnected);
    bench.connect();
    let actions = bench.answer(1);
    assert_eq!(sent(&actions), [2], "alone: the last connection may have died of it");
    assert_eq!(round(&actions), first + 1);
    assert_eq!(confirmed(&actions), [1], "repeated, as pruning may rely on it again");
    assert_eq!(sent(&bench.pub_ack(2)), [3, 4, 5]);
}

#[test]
fn a_gap_of_this_round_rewinds_once_and_halves_the_window() {
    let mut bench = Bench::new(limits(), 0, 9);
    bench.connect();
    let first = round(&bench.answer(0));
    assert_eq!(bench.gap(2, first + 7), [], "of another round");
    let again = bench.gap(2, first);
    assert_eq!((sent(&again), round(&again)), (vec![1, 2], first + 1));
    assert_eq!(bench.gap(2, first), [], "the same loss, seen by a later record");
    assert_eq!(sent(&bench.receipt(2)), [3, 4, 5], "a clean round trip adds one");
}

#[test]
fn a_gap_below_what_was_confirmed_is_a_question_for_the_hub() {
    let mut bench = Bench::new(limits(), 0, 9);
    bench.connect();
    let first = round(&bench.answer(0));
    bench.receipt(4);
    let actions = bench.gap(2, first);
    assert_eq!((asked(&actions), sent(&actions)), (1, vec![]));
    assert_eq!(sent(&bench.answer(4)), [5, 6, 7, 8]);
}

#[test]
fn a_new_incarnation_must_answer_and_gets_everything_again() {
    let mut bench = Bench::new(limits(), 0, 9);
    bench.connect();
    let first = round(&bench.answer(0));
    bench.incarnation = 2;
    bench.counter = 0;
    let actions = bench.receipt(2);
    assert_eq!((asked(&actions), confirmed(&actions)), (1, vec![]), "it may be a retained one of long ago");
    let again = bench.answer(2);
    assert_eq!((confirmed(&again), sent(&again)), (vec![2], vec![3, 4, 5, 6]));
    assert!(round(&again) > first);
}

#[test]
fn a_silent_hub_is_asked_and_not_sent_to_blindly() {
    let mut bench = Bench::new(limits(), 0, 9);
    bench.connect();
    bench.answer(0);
    bench.pub_ack(1);
    let actions = bench.tick();
    assert_eq!((bench.now, asked(&actions), sent(&actions)), (2_000, 1, vec![]));
    assert_eq!(sent(&bench.answer(0)), [1, 2], "half a window");
    for position in [2, 3, 4, 1, 2] {
        bench.pub_ack(position);
    }
    let before = bench.now;
    assert_eq!(asked(&bench.tick()), 1);
    assert_eq!(bench.now - before, 4_000, "doubled on the same head");
}

#[test]
fn a_late_puback_alone_rewinds_nothing_but_ends_the_connection_in_the_end() {
    let mut bench = Bench::new(limits(), 0, 9);
    let mut took = Vec::new();
    for _ in 0..3 {
        bench.connect();
        bench.answer(0);
        let before = bench.now;
        let actions = bench.tick();
        assert_eq!(actions.last(), Some(&Action::Reconnect(Reason::Stalled)));
        assert_eq!((asked(&actions), sent(&actions)), (0, vec![]));
        took.push(bench.now - before);
    }
    assert_eq!(took, [5_000, 10_000, 20_000]);
    bench.connect();
    bench.answer(0);
    bench.pub_ack(1);
    bench.receipt(1);
    bench.pub_ack(2);
    bench.now += 1;
    bench.give(Input::Disconnected);
    bench.connect();
    bench.answer(2);
    let before = bench.now;
    bench.tick();
    assert_eq!(bench.now - before, 5_000, "another head");
}

#[test]
fn pubacks_of_an_earlier_pass_are_not_those_of_this_one() {
    let mut bench = Bench::new(limits(), 0, 9);
    bench.connect();
    let first = round(&bench.answer(0));
    bench.gap(1, first);
    for position in 1..=4 {
        bench.pub_ack(position);
    }
    assert_eq!(bench.machine.counts().unacknowledged, 2);
    let stalled = bench.machine.deadline();
    assert_eq!(stalled, Some(5_000), "not the receipt's timeout: the broker has not taken this pass");
    bench.pub_ack(1);
    assert_eq!(bench.machine.deadline(), Some(2_000));
}

#[test]
fn the_brokers_receive_maximum_holds_with_room_for_the_others() {
    let mut bench = Bench::new(Limits { window: 100, ..limits() }, 0, 99);
    bench.connect_to(20, None);
    assert_eq!(sent(&bench.answer(0)).len(), 12);
    assert!(sent(&bench.receipt(12)).is_empty(), "confirmed, and still not acknowledged");
    assert_eq!(sent(&bench.pub_ack(1)), [13]);
    bench.connect_to(1, None);
    assert_eq!(sent(&bench.answer(13)), [14]);
}

#[test]
fn bytes_bound_the_window_and_a_larger_record_goes_alone() {
    let mut bench = Bench::new(limits(), 0, 9);
    bench.bytes = 4_000;
    bench.connect();
    assert_eq!(sent(&bench.answer(0)), [1, 2]);
    assert_eq!(bench.machine.room(), (0, 0), "2,000 bytes are free, and the next needs more");
    bench.bytes = 40_000;
    assert!(sent(&bench.receipt(1)).is_empty());
    assert_eq!(sent(&bench.receipt(2)), [3]);
    assert!(sent(&bench.pub_ack(3)).is_empty());
    assert_eq!(sent(&bench.receipt(3)), [4]);
}

#[test]
fn a_record_over_the_brokers_limit_is_held_until_the_limit_grows() {
    let mut bench = Bench::new(limits(), 0, 9);
    bench.connect_to(1_000, Some(99));
    assert_eq!(bench.answer(0).last(), Some(&Action::Alarm(Alarm::Held(1, TOO_LARGE))));
    assert_eq!(bench.machine.counts().held, Some(1));
    bench.give(Input::Disconnected);
    assert!(!bench.connect_to(1_000, Some(99)).contains(&Action::Alarm(Alarm::Released(1))));
    assert!(sent(&bench.answer(0)).is_empty());
    bench.give(Input::Disconnected);
    bench.connect_to(1_000, Some(100));
    let actions = bench.answer(0);
    assert!(actions.contains(&Action::Alarm(Alarm::Released(1))));
    assert_eq!(sent(&actions), [1, 2, 3, 4]);
}

#[test]
fn a_head_that_ended_three_connections_by_itself_is_held_until_a_person_or_an_hour() {
    let mut bench = Bench::new(limits(), 0, 9);
    let kill = |bench: &mut Bench| {
        bench.connect();
        bench.answer(0);
        bench.give(Input::Disconnected)
    };
    assert_eq!(kill(&mut bench), [], "it was not alone");
    assert_eq!(kill(&mut bench), []);
    assert_eq!(kill(&mut bench), []);
    assert_eq!(kill(&mut bench), [Action::Alarm(Alarm::Held(1, HeldBecause::EndedConnections))]);
    bench.connect();
    assert!(sent(&bench.answer(0)).is_empty());
    assert_eq!(sent(&bench.give(Input::ReleaseHeld)), [1, 2, 3, 4]);
    for _ in 0..4 {
        kill(&mut bench);
    }
    bench.connect();
    bench.answer(0);
    assert_eq!(sent(&bench.tick()), [1], "once more, alone");
    assert_eq!(bench.now, HOUR);
    let held = Action::Alarm(Alarm::Held(1, HeldBecause::EndedConnections));
    assert_eq!(bench.give(Input::Disconnected), [held], "one ending is enough then");
}

#[test]
fn a_refusal_is_no_delivery() {
    let mut bench = Bench::new(limits(), 0, 9);
    bench.connect();
    bench.answer(0);
    let refused = |reason| Input::PubAck { position: 1, outcome: Err(reason) };
    let alarm = |reason| Action::Alarm(Alarm::Refused { position: 1, reason });
    assert_eq!(bench.give(refused(0x97)), [alarm(0x97), Action::Reconnect(Reason::Refused(0x97))]);
    assert_eq!(bench.machine.confirmed(), 0);
    bench.connect();
    bench.answer(0);
    bench.pub_ack(1);
    let gone = bench.give(Input::PubAck { position: 2, outcome: Err(0x10) });
    assert_eq!(asked(&gone), 1, "no subscriber: the hub is away, the connection is sound");
    assert_eq!(bench.give(refused(0x10)), [], "once for all that were under way");
    assert_eq!(sent(&bench.answer(0)), [1, 2, 3, 4]);
}

#[test]
fn a_restored_hub_gets_exactly_the_difference() {
    let mut bench = Bench::new(limits(), 7, 9);
    bench.connect();
    assert_eq!(bench.answer(3), [Action::LookUpChain { epoch: epoch(0), sequence: 3 }]);
    let actions = bench.give(Input::ChainAt { epoch: epoch(0), sequence: 3, chain: Some(chain(0, 3)) });
    assert_eq!(actions[0], Action::Alarm(Alarm::HubRestored { from: 4, to: 7 }));
    assert_eq!((confirmed(&actions), sent(&actions)), (vec![3], vec![4, 5, 6, 7]));
}

#[test]
fn an_unanswered_step_back_moves_nothing() {
    let mut bench = Bench::new(limits(), 0, 9);
    bench.connect();
    bench.answer(0);
    bench.receipt(4);
    let actions = bench.receipt(2);
    assert_eq!((asked(&actions), confirmed(&actions)), (1, vec![]));
    assert_eq!(bench.machine.confirmed(), 4);
}

#[test]
fn a_mark_that_was_lost_is_found_again_without_sending() {
    let mut bench = Bench::new(limits(), 0, 9);
    bench.connect();
    assert_eq!(bench.answer(8), [Action::LookUpChain { epoch: epoch(0), sequence: 8 }]);
    let actions = bench.give(Input::ChainAt { epoch: epoch(0), sequence: 8, chain: Some(chain(0, 8)) });
    assert_eq!((confirmed(&actions), sent(&actions)), (vec![8], vec![9]));
}

#[test]
fn an_unanswered_contradiction_is_a_question_first() {
    let mut bench = Bench::new(limits(), 0, 9);
    bench.connect();
    bench.answer(0);
    let actions = bench.receipt(11);
    assert_eq!((asked(&actions), actions.len()), (1, 1));
    assert_eq!(sent(&bench.answer(0)), [1, 2, 3, 4], "the answer counts");
}

#[test]
fn a_hole_stops_the_lane_and_says_so_once() {
    let mut bench = Bench::new(limits(), 0, 0);
    bench.connect();
    bench.answer(0);
    let mut out = Vec::new();
    bench.machine.handle(Input::Committed(2), 0, &mut out);
    bench.machine.handle(Input::Missing(1), 0, &mut out);
    bench.machine.handle(Input::Missing(1), 0, &mut out);
    assert_eq!(out, [Action::Alarm(Alarm::Missing(1))]);
    assert_eq!((bench.machine.wanted(), bench.machine.counts().missing), (None, Some(1)));
}

#[test]
fn without_a_hub_the_contiguous_pubacks_confirm() {
    let mut bench = Bench::new(Limits { confirm_on_puback: true, ..limits() }, 0, 5);
    assert_eq!(sent(&bench.connect()), [1, 2, 3, 4]);
    assert!(confirmed(&bench.pub_ack(2)).is_empty(), "not contiguous");
    assert_eq!(confirmed(&bench.pub_ack(1)), [1]);
    bench.give(Input::Disconnected);
    assert_eq!(sent(&bench.connect()), [2], "alone: the last connection may have died of it");
    assert_eq!(sent(&bench.pub_ack(2)), [3, 4, 5]);
}

#[test]
fn the_backup_that_a_receipt_names_reaches_the_mark() {
    let mut bench = Bench::new(limits(), 0, 9);
    bench.connect();
    bench.answer(0);
    let Input::Receipt(mut receipt) = bench.receipt_of(4, None) else { unreachable!() };
    receipt.backed_up_through = Some(2);
    let actions = bench.give(Input::Receipt(receipt));
    let confirm =
        Action::Confirm { position: 4, point: Some(point(0, 4)), backed_up_through: Some(2), asked: None };
    assert_eq!(actions[0], confirm);
}

/// A virtual machine that was restored has its old memory: the same incarnation, a lower counter.
#[test]
fn a_hub_that_was_set_back_with_its_memory_is_believed_when_it_answers() {
    for idle in [true, false] {
        let mut bench = Bench::new(limits(), 0, if idle { 3 } else { 9 });
        bench.connect();
        bench.answer(0);
        for through in 1..=3 {
            bench.receipt(through);
        }
        bench.counter = 1;
        bench.now += HOUR;
        let actions = if idle {
            // It announces its position when it is connected to its broker again.
            bench.receipt(2)
        } else {
            bench.give(Input::Gap {
                code: GapCode::Missing,
                epoch: epoch(0),
                expected: 3,
                round: bench.machine.round().unwrap(),
            })
        };
        assert_eq!((asked(&actions), confirmed(&actions)), (1, vec![]), "its word alone moves nothing");
        bench.counter = 1;
        let actions = bench.answer(2);
        let actions = match actions.as_slice() {
            [Action::LookUpChain { sequence: 2, .. }] => {
                bench.give(Input::ChainAt { epoch: epoch(0), sequence: 2, chain: Some(chain(0, 2)) })
            }
            _ => actions,
        };
        assert_eq!(confirmed(&actions), [2]);
        assert_eq!(sent(&actions)[0], 3);
    }
}

#[test]
fn an_answer_of_an_earlier_question_that_comes_late_is_still_ignored() {
    let mut bench = Bench::new(limits(), 0, 3);
    bench.connect();
    let late = bench.nonce;
    bench.answer(0);
    bench.receipt(3);
    bench.counter = 0;
    let old = bench.receipt_of(1, Some(late));
    assert_eq!(bench.give(old), [], "answered, and not asked again so soon");
}
