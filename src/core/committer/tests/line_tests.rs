//! A lane is one line: what continues it, and what is kept beside it.

use super::*;

const THIRD: Epoch = Epoch(Uuid::from_u128(3));

/// A hub that has three of the first epoch.
fn begun() -> (Hub, Sender) {
    let (mut hub, old) = (Hub::asked(), Sender::new(EPOCH, 0, 9));
    old.stages(&mut hub, 1..=3);
    hub.finish();
    (hub, old)
}

fn only_numbers(hub: &Hub) -> Vec<bool> {
    hub.committer.group().iter().map(|line| line.only_number).collect()
}

#[test]
fn an_epoch_begins_only_where_its_link_is_the_end() {
    let (mut hub, old) = begun();
    let kept = |line: Line| {
        let Numbered { epoch, round, .. } = line.numbered;
        let missed = Missed { code: GapCode::Link, epoch, expected: 1, round };
        vec![Action::Gap(lane(), missed), Action::KeepLate(line)]
    };
    // Its link is not the end, however right everything else is: before it, beyond it, with another value, or none.
    let other_value = Through { chain: ChainValue([9; 32]), ..old.through(3) };
    for (id, end) in
        [(20, Some(old.through(2))), (30, Some(old.through(4))), (40, Some(other_value)), (50, None)]
    {
        let (new, round) = (Sender::linked(lane(), OTHER, end, id, 9), u64::try_from(id).unwrap());
        assert_eq!(new.send(&mut hub, 1, round), kept(new.line(1, round)), "{end:?}");
    }
    let new = Sender::after(old.through(3), OTHER, 60, 9);
    new.stages(&mut hub, [1, 2]);
    let third = Sender::after(new.through(2), THIRD, 70, 9);
    third.stages(&mut hub, [1]);
    hub.finish();
    assert_eq!(hub.committer.watermarks_of(&lane()), [old.through(3), new.through(2), third.through(1)]);
    // The epochs before the last grow no more.
    assert_eq!(new.send(&mut hub, 3, 0), {
        let missed = Missed { code: GapCode::Link, epoch: OTHER, expected: 3, round: 0 };
        vec![Action::Gap(lane(), missed), Action::KeepLate(new.line(3, 0))]
    });
    assert_eq!(hub.finish(), []);
}

#[test]
fn a_known_content_in_a_new_epoch_gets_its_number_without_a_second_copy() {
    let (mut hub, old) = begun();
    old.stages(&mut hub, [4]);
    // The last of them waits in the same group, the first new one has the same id.
    let new = Sender::after(old.through(4), OTHER, 3, 9);
    new.stages(&mut hub, [1, 2]);
    assert_eq!(only_numbers(&hub), [false, true, false]);
    hub.give(Input::BackedUp(BackedUp::from([(lane(), (OTHER, 1))])));
    let receipt = Hub::only_receipt(hub.finish());
    assert_eq!((receipt.end, receipt.backed_up_through), (Some(new.through(2)), Some(1)));
    // The same from the store.
    let mut hub = Hub::with(hub.store, hub.committer.limits());
    hub.ask(&lane(), "again");
    assert_eq!(Hub::only_receipt(hub.finish()), statement(receipt.end, Some("again")));
    let third = Sender::after(new.through(2), THIRD, 2, 9);
    third.stages(&mut hub, 1..=4);
    assert_eq!(only_numbers(&hub), [true, true, true, false], "also of what only its number was stored of");
}

#[test]
fn a_known_id_with_another_content_is_stored_and_said() {
    let (mut hub, old) = begun();
    let new = Sender::after(old.through(3), OTHER, 2, 9);
    let mut rival = Line { body: 7, ..new.line(1, 0) };
    rival.numbered.chain = rival.chain_after(new.chains[0]);
    rival.signs = Some(rival.numbered.chain);
    assert_eq!(hub.give(Input::Transaction(rival.clone())), []);
    let said = hub.finish();
    assert_eq!(said[0], Action::Rival(lane(), rival.numbered));
    let stored = hub.store.lines.last().unwrap();
    assert_eq!((stored.rival, stored.only_number), (true, false));
    // Each of the two contents is known now.
    let third = Sender::after(hub.committer.watermarks_of(&lane())[1], THIRD, 2, 9);
    third.stages(&mut hub, [1]);
    assert_eq!(only_numbers(&hub), [true]);
}

#[test]
fn what_verifies_beside_the_line_is_late_and_a_repetition_is_not() {
    let (mut hub, old) = begun();
    let new = Sender::after(old.through(3), OTHER, 60, 9);
    new.stages(&mut hub, [1]);
    hub.finish();
    let late = |line: Line| {
        let Numbered { epoch, sequence, .. } = line.numbered;
        let missed = Missed { code: GapCode::Link, epoch, expected: sequence, round: 0 };
        vec![Action::Gap(lane(), missed), Action::KeepLate(line)]
    };
    // What the first epoch's gateway had sent on before it was set back follows from the line, then from what is late.
    assert_eq!(old.send(&mut hub, 4, 0), late(old.line(4, 0)));
    assert_eq!(old.send(&mut hub, 5, 0), late(old.line(5, 0)));
    // A number of the end's own epoch with another content.
    let mut other = Line { body: 7, ..new.line(1, 0) };
    other.numbered.link = new.link;
    other.numbered.chain = other.chain_after(new.chains[0]);
    other.signs = Some(other.numbered.chain);
    assert_eq!(hub.give(Input::Transaction(other.clone())), late(other));
    // A signature over the chain value proves no body where the value before it is not known.
    assert_eq!(old.send(&mut hub, 7, 0), elsewhere(EPOCH, 7, 0));
    // What is in the line is repeated, and what nobody has signed has not arrived.
    assert_eq!(old.send(&mut hub, 2, 0), [Action::Repeated(old.line(2, 0))]);
    let nobody = Line { signs: None, ..old.line(6, 0) };
    assert_eq!(hub.give(Input::Transaction(nobody)), unsigned(6));
    hub.finish();
    assert_eq!(hub.committer.watermarks_of(&lane()), [old.through(3), new.through(1)]);
    // It makes no id known.
    let third = Sender::after(new.through(1), THIRD, 3, 9);
    third.stages(&mut hub, [1]);
    assert_eq!(only_numbers(&hub), [false]);
}

#[test]
fn another_history_of_the_ends_own_epoch_is_late_beyond_the_end_too() {
    let (mut hub, old) = begun();
    old.stages(&mut hub, 4..=5);
    hub.finish();
    let other = |number: Sequence, before: ChainValue| {
        let mut line = Line { body: 7, ..old.line(number, 0) };
        line.numbered.chain = line.chain_after(before);
        line.signs = Some(line.numbered.chain);
        line
    };
    let mut chain = old.chains[3];
    for number in 4..=7 {
        let line = other(number, chain);
        chain = line.numbered.chain;
        let actions = hub.give(Input::Transaction(line.clone()));
        assert!(actions.contains(&Action::KeepLate(line)), "{number}: {actions:?}");
    }
    // Of what follows something unknown nothing can be said but that the end lacks it.
    let beyond = other(9, other(8, chain).numbered.chain);
    let missed = Missed { code: GapCode::Missing, epoch: EPOCH, expected: 6, round: 0 };
    assert_eq!(hub.give(Input::Transaction(beyond)), [Action::Gap(lane(), missed)]);
    assert_eq!(hub.committer.watermarks_of(&lane()), [old.through(5)]);
    old.stages(&mut hub, [6]);
}

#[test]
fn an_entry_for_deleted_transactions_waits_until_the_centre_admits_it() {
    let (mut hub, old) = begun();
    let new = Sender::after(old.through(3), OTHER, 60, 9);
    let entry = |sender: &Sender| Line { pruned: true, ..sender.line(1, 0) };
    let waits = |epoch| {
        let missed = Missed { code: GapCode::Admit, epoch, expected: 1, round: 0 };
        vec![Action::Gap(lane(), missed), Action::Refuse(lane(), Refusal::Admit)]
    };
    assert_eq!(hub.give(Input::Transaction(entry(&new))), waits(OTHER));
    // Only what the gateway has named as its present epoch is admitted.
    hub.give(Input::Admit(lane()));
    hub.finish();
    assert_eq!(hub.give(Input::Transaction(entry(&new)))[..1], waits(OTHER)[1..]);
    hub.ask_about(&lane(), "q", OTHER, None);
    hub.give(Input::Admit(lane()));
    assert_eq!(hub.give(Input::Transaction(entry(&new))), []);
    hub.finish();
    assert_eq!(hub.committer.watermarks_of(&lane()).last(), Some(&new.through(1)));
    // What the hub has it needs not admit again.
    let third = Sender::after(new.through(1), THIRD, 60, 9);
    assert_eq!(hub.give(Input::Transaction(entry(&third))), []);
    assert_eq!(only_numbers(&hub), [true]);
}

#[test]
fn after_64_epochs_in_a_day_the_centre_must_let_the_next_begin() {
    let (mut hub, old) = begun();
    let mut end = old.through(3);
    let begin = |hub: &mut Hub, end: &mut Through, number: u128| {
        let sender = Sender::after(*end, Epoch(Uuid::from_u128(1_000 + number)), 60, 1);
        let actions = sender.send(hub, 1, 0);
        if actions.is_empty() {
            *end = sender.through(1);
        }
        hub.finish();
        actions
    };
    for number in 1..64 {
        assert_eq!(begin(&mut hub, &mut end, number), [], "{number}");
    }
    let refused = begin(&mut hub, &mut end, 64);
    assert_eq!(refused.last(), Some(&Action::Refuse(lane(), Refusal::Epochs)));
    hub.now = 86_400_000;
    assert_eq!(begin(&mut hub, &mut end, 64), [], "a day later");
    hub.now = 0;
    for number in 65..=128 {
        if !begin(&mut hub, &mut end, number).is_empty() {
            hub.give(Input::Admit(lane()));
            assert_eq!(begin(&mut hub, &mut end, number), []);
        }
    }
}

#[test]
fn an_answer_says_whether_the_line_holds_the_point() {
    let (mut hub, old) = begun();
    old.stages(&mut hub, 4..=9);
    hub.finish();
    let new = Sender::after(old.through(9), OTHER, 60, 90);
    new.stages(&mut hub, 1..=80);
    hub.finish();
    let holds = |hub: &mut Hub, point| {
        hub.ask_about(&lane(), "q", OTHER, Some(point));
        Hub::only_receipt(hub.finish()).holds_point
    };
    for point in [old.through(9), old.through(2), new.through(80), new.through(79), new.through(3)] {
        assert_eq!(holds(&mut hub, point), Some(true), "{point}");
        let other = Through { chain: ChainValue([9; 32]), ..point };
        assert_eq!(holds(&mut hub, other), Some(false), "another value");
    }
    assert_eq!(holds(&mut hub, new.through(81)), Some(false));
    assert_eq!(holds(&mut hub, Through { epoch: THIRD, ..new.through(3) }), Some(false));
    // What is only staged is not held.
    new.stages(&mut hub, [81]);
    hub.ask_about(&lane(), "q", OTHER, Some(new.through(81)));
    hub.give(Input::Flush);
    let answer = Hub::only_receipt(hub.append(0, Input::StoreFailed));
    assert_eq!((answer.holds_point, answer.end), (Some(false), Some(new.through(80))));
    // A store that cannot say gives no answer.
    hub.now = 10_000;
    hub.store.cannot_say = true;
    hub.ask_about(&lane(), "q", OTHER, Some(new.through(3)));
    assert_eq!(Hub::only_receipt(hub.finish()), statement(Some(new.through(80)), None));
}

#[test]
fn a_beginning_that_has_not_arrived_is_missing_if_the_gateway_has_named_its_epoch() {
    let (mut hub, old) = begun();
    let new = Sender::after(old.through(3), OTHER, 60, 9);
    hub.ask_about(&lane(), "q", OTHER, None);
    let missed = Missed { code: GapCode::Missing, epoch: OTHER, expected: 1, round: 0 };
    assert_eq!(new.send(&mut hub, 2, 0), [Action::Gap(lane(), missed)]);
    new.stages(&mut hub, [1, 2]);
}
