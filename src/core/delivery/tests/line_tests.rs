//! Where the hub's line ends, and what the lane does about it.

use super::*;
use crate::transaction::TransactionId;

fn begins(actions: &[Action]) -> Option<(Position, Option<Through>, Vec<Gone>)> {
    actions.iter().find_map(|action| match action {
        Action::NewEpoch { after, link, gone, .. } => Some((*after, *link, gone.clone())),
        _ => None,
    })
}

fn follows(actions: &[Action]) -> Vec<Epoch> {
    let follows = actions.iter().find_map(|action| match action {
        Action::NewEpoch { follows, .. } => Some(follows.clone()),
        _ => None,
    });
    follows.unwrap_or_default()
}

fn void(from: Position, through: Position) -> Gone {
    Gone { from, through, kind: Some(EntryKind::Void) }
}

fn undecided(position: Position) -> Gone {
    Gone { from: position, through: position, kind: None }
}

/// As the driver makes it.
fn entry(gone: &Gone) -> Entry {
    Entry {
        from: gone.from,
        through: gone.through,
        kind: gone.kind.unwrap(),
        id: TransactionId(Uuid::from_u128(u128::from(gone.from))),
        time: 0,
        reason: String::new(),
        names: Vec::new(),
    }
}

impl Bench {
    /// The driver has made the epoch durable.
    fn begun(&mut self, of: u128, actions: &[Action]) -> Vec<Action> {
        let (after, link, gone) = begins(actions).expect("a new epoch");
        let made = gone.iter().map(entry).collect();
        let numbering = self.machine.numbering().begun(epoch(of), link, follows(actions), after, made);
        self.give(Input::Renumbered(numbering))
    }
}

#[test]
fn an_end_that_was_never_here_begins_an_epoch_after_the_point_that_the_line_holds() {
    let foreign = [
        // Beyond the tail, in another epoch, and a number of its own with another value.
        (point(0, 12), None),
        (point(7, 3), None),
        (point(0, 8), Some(Some(chain(9, 8)))),
        // Record and digest before it are lost: there is no value of its own.
        (point(0, 8), Some(None)),
    ];
    for (end, ours) in foreign {
        for holds_point in [true, false] {
            let mut bench = Bench::new(limits(), 5, 9);
            bench.holds_point = holds_point;
            bench.connect();
            let mut actions = bench.answer_at(Some(end));
            if let Some(ours) = ours {
                assert_eq!(actions, [Action::LookUpChain { epoch: epoch(0), sequence: 8 }]);
                actions = bench.chain_at(end, ours);
            }
            let proven = if holds_point { 5 } else { 0 };
            assert_eq!(actions[0], Action::Alarm(Alarm::Diverged { end, proven }));
            assert_eq!(begins(&actions), Some((proven, Some(end), vec![])));
            assert!(confirmed(&actions).is_empty());
            assert_eq!(bench.machine.deadline(), None, "it waits for the new epoch");
            assert_eq!(asked(&bench.begun(1, &actions)), 1);
            let actions = bench.answer_at(Some(end));
            assert_eq!((confirmed(&actions), sent(&actions)[0]), (vec![proven], proven + 1));
        }
    }
}

#[test]
fn an_end_in_an_older_epoch_proves_its_position() {
    let link = Some(point(0, 6));
    let numbering = Numbering::new(epoch(0)).begun(epoch(1), link, vec![epoch(0)], 6, vec![]);
    let at = Some(Point { position: 8, at: point(1, 2) });
    let with = |end: Through, ours: Option<ChainValue>| {
        let mut bench = Bench::new(limits(), 0, 9);
        bench.machine = Delivery::new(limits(), numbering.clone(), at, 9);
        bench.holds_point = false;
        bench.connect();
        let mut actions = bench.answer_at(Some(end));
        if actions == [(Action::LookUpChain { epoch: end.epoch, sequence: end.through })] {
            actions = bench.chain_at(end, ours);
        }
        (begins(&actions).map(|(after, ..)| after), sent(&actions))
    };
    assert_eq!(with(point(0, 4), Some(chain(0, 4))), (Some(4), vec![]));
    assert_eq!(
        with(point(0, 4), Some(chain(9, 4))),
        (Some(0), vec![]),
        "with another value it proves nothing"
    );
    assert_eq!(with(point(0, 4), None), (Some(0), vec![]), "nor with one that nobody can compute");
    assert_eq!(with(point(0, 6), None), (None, vec![7, 8, 9]), "where the present epoch begins it continues");
}

#[test]
fn an_epoch_in_another_history_follows_the_one_in_which_its_beginning_was_proven() {
    let numbering = Numbering::new(epoch(0)).begun(epoch(1), Some(point(0, 6)), vec![epoch(0)], 6, vec![]);
    let follows = |at: Point, holds_point, end| {
        let mut bench = Bench::new(limits(), 0, 9);
        bench.machine = Delivery::new(limits(), numbering.clone(), Some(at), 9);
        bench.holds_point = holds_point;
        bench.connect();
        let actions = bench.answer_at(Some(end));
        (begins(&actions).map(|(after, ..)| after), follows(&actions))
    };
    let (first, second) = (Point { position: 4, at: point(0, 4) }, Point { position: 8, at: point(1, 2) });
    // Nothing says that the line leads through the second epoch: the box came from an image, or its link was down.
    assert_eq!(follows(first, true, point(7, 3)), (Some(4), vec![epoch(0)]));
    assert_eq!(follows(second, true, point(7, 3)), (Some(8), vec![epoch(1)]));
    assert_eq!(follows(second, false, point(7, 3)), (Some(0), vec![]));
}

#[test]
fn the_second_end_in_a_day_that_was_never_here_waits_for_an_hour() {
    let mut bench = Bench::new(limits(), 5, 9);
    bench.connect();
    let actions = bench.answer_at(Some(point(7, 3)));
    bench.begun(1, &actions);
    bench.now = HOUR;
    bench.give(Input::Disconnected);
    bench.connect();
    let actions = bench.answer_at(Some(point(8, 3)));
    assert!(matches!(actions[..], [Action::Alarm(Alarm::Diverged { .. })]), "{actions:?}");
    let waited = loop {
        assert_eq!(asked(&bench.tick()), 1);
        let actions = bench.answer_at(Some(point(8, 3)));
        if begins(&actions).is_some() {
            break bench.now - HOUR;
        }
        assert_eq!(actions, [], "said once");
    };
    assert!((HOUR..HOUR + 120_000).contains(&waited), "{waited}");
}

#[test]
fn a_restart_shortens_no_hour() {
    for (ago, waits) in [(None, false), (Some(HOUR), true), (Some(23 * HOUR), true), (Some(24 * HOUR), false)]
    {
        let mut bench = Bench::new(limits(), 5, 9);
        bench.machine = bench.machine.clone().diverged_before(ago);
        bench.now = 1_000;
        bench.connect();
        let actions = bench.answer_at(Some(point(7, 3)));
        assert_eq!(begins(&actions).is_none(), waits, "{ago:?}");
        assert!(actions.iter().any(|action| matches!(action, Action::Alarm(Alarm::Diverged { .. }))));
    }
}

#[test]
fn a_person_who_has_looked_need_not_wait_for_the_hour() {
    let mut bench = Bench::new(limits(), 5, 9);
    bench.connect();
    let actions = bench.answer_at(Some(point(7, 3)));
    bench.begun(1, &actions);
    assert!(begins(&bench.answer_at(Some(point(8, 3)))).is_none());
    assert_eq!(asked(&bench.give(Input::ReleaseHeld)), 1);
    assert!(begins(&bench.answer_at(Some(point(8, 3)))).is_some());
    // It counts for this one only.
    let mut out = Vec::new();
    let numbering = bench.machine.numbering().begun(epoch(2), Some(point(8, 3)), vec![epoch(1)], 5, vec![]);
    bench.machine.handle(Input::Renumbered(numbering), bench.now, &mut out);
    bench.give(Input::ReleaseHeld);
    assert!(begins(&bench.answer_at(Some(point(9, 3)))).is_none());
}

#[test]
fn a_hub_that_was_set_back_before_the_present_epoch_is_named() {
    let numbering = Numbering::new(epoch(0)).begun(epoch(1), Some(point(0, 6)), vec![epoch(0)], 6, vec![]);
    let mut bench = Bench::new(limits(), 0, 9);
    bench.machine = Delivery::new(limits(), numbering, Some(Point { position: 8, at: point(1, 2) }), 9);
    bench.holds_point = false;
    bench.connect();
    bench.answer_at(Some(point(0, 4)));
    let actions = bench.chain_at(point(0, 4), Some(chain(0, 4)));
    assert_eq!(actions[0], Action::Alarm(Alarm::HubRestored { from: 5, to: 8 }));
}

#[test]
fn what_the_centre_has_admitted_is_sent_again_at_the_hubs_next_word() {
    for code in [GapCode::Admit, GapCode::Epochs] {
        let mut bench = Bench::new(limits(), 0, 3);
        bench.connect();
        assert_eq!(sent(&bench.answer(0)), [1, 2, 3]);
        let round = bench.machine.round().unwrap();
        assert_eq!(bench.give(Input::Gap { code, epoch: epoch(0), expected: 1, round }), []);
        assert_eq!(sent(&bench.receipt(0)), [1, 2, 3], "{code:?}");
        assert!(sent(&bench.receipt(0)).is_empty(), "once");
    }
}

#[test]
fn an_answer_that_does_not_let_the_lane_continue_withdraws_the_one_before() {
    let bench = |after: Through, gone: Vec<Gone>, known_store| {
        let mut bench = Bench::new(limits(), 5, 9);
        bench.connect();
        bench.answer(5);
        assert_eq!(bench.withdrawn, 0);
        bench.give(Input::Gone(gone));
        bench.now += 10_000;
        bench.give(Input::AskAgain);
        bench.known_store = known_store;
        bench.answer_at(Some(after));
        bench.withdrawn
    };
    assert_eq!(bench(point(0, 5), vec![], true), 0);
    assert_eq!(bench(point(0, 5), vec![], false), 1, "an unknown store");
    assert_eq!(bench(point(7, 3), vec![], true), 1, "another history");
    assert_eq!(bench(point(7, 3), vec![undecided(1), undecided(6)], true), 1, "a person must decide");
}

#[test]
fn a_file_says_where_a_bundle_begins_and_moves_nothing() {
    let numbering = Numbering::new(epoch(0)).begun(epoch(1), Some(point(0, 6)), vec![epoch(0)], 6, vec![]);
    let machine = || {
        let at = Some(Point { position: 8, at: point(1, 2) });
        Delivery::new(limits(), numbering.clone(), at, 9)
    };
    let layout = |end, ours, set_aside| machine().layout(end, ours, set_aside);
    let own = |of, number| Some(chain(of, number));
    assert_eq!(layout(Some(point(0, 6)), None, None), Some(Layout::Continues(6)), "where it begins");
    assert_eq!(layout(Some(point(1, 1)), own(1, 1), None), Some(Layout::Continues(7)));
    assert_eq!(layout(Some(point(1, 2)), None, None), Some(Layout::Continues(8)), "the confirmed point");
    assert_eq!(layout(Some(point(0, 4)), own(0, 4), None), Some(Layout::Begins(4)));
    assert_eq!(layout(None, None, None), Some(Layout::Begins(0)));
    assert_eq!(layout(Some(point(0, 6)), None, Some(3)), Some(Layout::Begins(3)), "whoever exports says so");
    for foreign in [point(0, 4), point(1, 9), point(7, 1)] {
        assert_eq!(layout(Some(foreign), None, None), None, "{foreign}");
        assert_eq!(
            layout(Some(foreign), None, Some(3)),
            Some(Layout::Begins(3)),
            "a store that was set aside"
        );
    }

    let mut bench = Bench::new(limits(), 0, 9);
    bench.machine = machine();
    bench.give(Input::Gone(vec![void(7, 7)]));
    assert_eq!(bench.machine.layout(Some(point(0, 6)), None, None), Some(Layout::Begins(6)), "an entry");
    let input = Input::EndByFile { end: Some(point(0, 4)), ours: own(0, 4), set_aside: None };
    let actions = bench.give(input.clone());
    assert_eq!(
        actions,
        [Action::NewEpoch {
            after: 4,
            link: Some(point(0, 4)),
            follows: vec![epoch(0)],
            gone: vec![void(7, 7)]
        }]
    );
    assert_eq!(bench.give(input.clone()), [], "one is being written");
    // It could not be: whoever brought the file may bring it again, and a connection asks anew.
    bench.give(Input::NotRenumbered);
    assert_eq!(begins(&bench.give(input.clone())).map(|(after, ..)| after), Some(4));
    bench.connect();
    bench.give(Input::NotRenumbered);
    bench.now += HOUR;
    assert_eq!(begins(&bench.give(Input::Tick)), None, "not on the word of a file");
    bench.give(Input::Disconnected);
    bench.begun(2, &actions);
    // An answer over the link counts more.
    bench.connect();
    bench.answer_at(Some(point(0, 4)));
    assert_eq!(bench.machine.layout(Some(point(0, 4)), None, None), None);
    assert_eq!(bench.give(input), []);
}

#[test]
fn what_was_released_begins_an_epoch_with_an_entry_and_the_rest_keeps_its_order() {
    let mut bench = Bench::new(limits(), 0, 9);
    bench.give(Input::Gone(vec![undecided(3)]));
    bench.connect();
    assert_eq!(sent(&bench.answer(0))[..2], [1, 2]);
    bench.receipt(2);
    let stalled = |bench: &mut Bench| {
        let mut out = Vec::new();
        bench.machine.handle(Input::Missing(3), bench.now, &mut out);
        out
    };
    // This bench reads everything; a real driver reports what it cannot read.
    let mut bench = Bench::new(limits(), 2, 2);
    bench.give(Input::Gone(vec![undecided(3)]));
    bench.connect();
    bench.answer(2);
    let mut out = Vec::new();
    bench.machine.handle(Input::Committed(9), bench.now, &mut out);
    assert_eq!(stalled(&mut bench), [Action::Alarm(Alarm::Missing(3))]);
    assert_eq!(bench.machine.wanted(), None);
    let actions = bench.give(Input::Gone(vec![void(3, 5)]));
    assert_eq!(asked(&actions), 1, "an epoch begins on an answer");
    let actions = bench.answer(2);
    assert_eq!(begins(&actions), Some((2, Some(point(0, 2)), vec![void(3, 5)])));
    bench.begun(1, &actions);
    let actions = bench.answer(2);
    assert_eq!(sent(&actions), [3, 6, 7, 8], "one number for three positions");
    let actions = bench.answer_at(Some(point(1, 2)));
    assert_eq!(confirmed(&actions), [6]);
    assert_eq!(bench.machine.counts().in_flight, 3);
}

#[test]
fn what_nobody_has_decided_about_begins_no_epoch() {
    let mut bench = Bench::new(limits(), 5, 9);
    bench.give(Input::Gone(vec![undecided(6)]));
    bench.connect();
    let actions = bench.answer_at(Some(point(7, 3)));
    assert_eq!(actions.last(), Some(&Action::Alarm(Alarm::Missing(6))));
    assert_eq!((begins(&actions), bench.machine.wanted()), (None, None));
    assert_eq!(asked(&bench.tick()), 1, "it asks again");
    assert_eq!(bench.answer_at(Some(point(7, 3))), [], "and says so once");
    assert_eq!(asked(&bench.give(Input::Gone(vec![void(6, 6)]))), 1);
    let actions = bench.answer_at(Some(point(7, 3)));
    assert_eq!(begins(&actions), Some((5, Some(point(7, 3)), vec![void(6, 6)])));
}

#[test]
fn a_hub_that_wants_what_was_deleted_gets_an_entry_for_it() {
    let pruned = Gone { from: 1, through: 4, kind: Some(EntryKind::Pruned) };
    let mut bench = Bench::new(limits(), 5, 9);
    bench.give(Input::Gone(vec![pruned]));
    bench.connect();
    bench.holds_point = false;
    let actions = bench.answer(2);
    assert_eq!(actions, [Action::LookUpChain { epoch: epoch(0), sequence: 2 }]);
    let actions = bench.chain_at(point(0, 2), Some(chain(0, 2)));
    assert_eq!(begins(&actions), Some((2, Some(point(0, 2)), vec![Gone { from: 3, ..pruned }])));
    bench.begun(1, &actions);
    assert_eq!(sent(&bench.answer(2)), [3, 5, 6, 7]);
}

#[test]
fn a_tail_below_the_point_is_where_the_next_epoch_begins() {
    let mut bench = Bench::new(limits(), 7, 5);
    bench.connect();
    assert_eq!(begins(&bench.answer(7)).map(|(after, ..)| after), Some(5));
}

#[test]
fn a_line_that_was_lost_whole_is_sent_again_in_the_first_epoch() {
    let mut bench = Bench::new(limits(), 7, 9);
    bench.holds_point = false;
    bench.connect();
    let actions = bench.answer(0);
    assert_eq!(actions[0], Action::Alarm(Alarm::HubRestored { from: 1, to: 7 }));
    assert_eq!((confirmed(&actions), sent(&actions)), (vec![0], vec![1, 2, 3, 4]));
}

#[test]
fn a_new_epoch_that_could_not_be_made_is_wanted_again_only_while_an_answer_wants_it() {
    let mut bench = Bench::new(limits(), 5, 9);
    bench.connect();
    assert_eq!(begins(&bench.answer(12)).map(|(after, ..)| after), Some(5));
    bench.give(Input::NotRenumbered);
    let again = bench.machine.deadline().unwrap();
    bench.now = again - 1;
    assert_eq!(bench.give(Input::Tick), []);
    bench.now = again;
    assert_eq!(begins(&bench.give(Input::Tick)).map(|(after, ..)| after), Some(5));
    assert_eq!(bench.machine.deadline(), None, "once");
    bench.give(Input::NotRenumbered);
    // On the next connection the hub says something else: it was restored.
    bench.connect();
    assert_eq!(sent(&bench.answer(5)), [6, 7, 8, 9]);
    bench.give(Input::NotRenumbered);
    bench.now += HOUR;
    assert_eq!(begins(&bench.give(Input::Tick)), None);
}

#[test]
fn a_notice_that_the_line_ends_elsewhere_is_a_question_without_haste() {
    let mut bench = Bench::new(limits(), 0, 9);
    bench.connect();
    bench.answer(0);
    let link = |bench: &mut Bench| {
        let round = bench.machine.round().unwrap();
        bench.give(Input::Gap { code: GapCode::Link, epoch: epoch(0), expected: 1, round })
    };
    assert_eq!(asked(&link(&mut bench)), 0, "it was asked a moment ago");
    bench.now += 2_000;
    assert_eq!(asked(&link(&mut bench)), 1);
    assert_eq!(sent(&bench.answer(0)), [1, 2, 3, 4]);
}

#[test]
fn without_a_hub_an_epoch_begins_where_the_lane_has_sent_through() {
    let mut bench = Bench::new(Limits { confirm_on_puback: true, ..limits() }, 0, 1);
    bench.connect();
    bench.pub_ack(1);
    let mut out = Vec::new();
    bench.machine.handle(Input::Committed(4), 0, &mut out);
    bench.machine.handle(Input::Gone(vec![void(2, 3)]), 0, &mut out);
    assert_eq!(begins(&out), Some((1, Some(point(0, 1)), vec![void(2, 3)])));
    assert_eq!(sent(&bench.begun(1, &out)), [2, 4]);
}

#[test]
fn what_the_hub_has_lost_goes_again_if_it_can_be_read_and_else_is_not_at_the_hub() {
    let lost = |from, through| LostNumbers { epoch: epoch(0), from, through, newest: epoch(0) };
    let pruned = |through| Gone { from: 1, through, kind: Some(EntryKind::Pruned) };
    let bench = |gone: Vec<Gone>| {
        let mut bench = Bench::new(limits(), 5, 9);
        bench.give(Input::Gone(gone));
        bench.lost = vec![lost(2, 4)];
        bench.connect();
        let actions = bench.answer(5);
        (bench, actions)
    };
    // Nothing of it is here any more.
    let (whole, actions) = bench(vec![pruned(4)]);
    assert_eq!((begins(&actions), sent(&actions)[0]), (None, 6));
    assert_eq!((whole.lost_at_hub, whole.machine.confirmed()), (vec![(2, 4)], 5));
    // Some of it is.
    for (gone, after) in [(vec![], 1), (vec![pruned(2)], 2), (vec![undecided(2), void(3, 3)], 3)] {
        let (mut some, actions) = bench(gone);
        assert_eq!(begins(&actions).map(|(after, link, _)| (after, link)), Some((after, Some(point(0, 5)))));
        assert_eq!((some.withdrawn, &some.lost_at_hub), (1, &vec![(2, 4)]), "nothing is pruned now");
        some.begun(1, &actions);
        // From there on all of it goes again, once.
        let actions = some.answer_at(Some(point(0, 5)));
        assert_eq!((begins(&actions), sent(&actions)[0]), (None, after + 1));
        assert_eq!(some.machine.confirmed(), after);
        assert_eq!(some.lost_at_hub, if after > 1 { vec![(2, after)] } else { vec![] });
        let answer = some.receipt_at(Some(point(1, 2)), None);
        some.give(answer);
        assert_eq!(some.machine.confirmed(), after + 2);
    }
    // The hub was restored from a backup that has it.
    let (mut restored, _) = bench(vec![pruned(4)]);
    restored.lost.clear();
    restored.connect();
    restored.answer(5);
    assert_eq!(restored.lost_at_hub, []);
}
