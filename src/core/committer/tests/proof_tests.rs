//! What is not signed is not stored.

use super::*;

/// A line that a broker has changed: another id, and every chain value from there on as it follows.
fn changed(sender: &Sender, sequences: std::ops::RangeInclusive<u64>) -> Vec<Line> {
    let mut chain = sender.chains[usize::try_from(*sequences.start()).unwrap() - 1];
    let first = *sequences.start();
    let change = |sequence| {
        let mut line = sender.line(sequence, 0);
        if sequence == first {
            line.numbered.id = TransactionId(Uuid::from_u128(200));
        }
        chain = link(chain, line.numbered.id.0.as_u128(), 0);
        line.numbered.chain = chain;
        line
    };
    sequences.map(change).collect()
}

fn heads(hub: &Hub) -> Vec<u64> {
    hub.store.lines.iter().filter(|line| line.is_head).map(|line| line.numbered.sequence).collect()
}

#[test]
fn one_signature_proves_a_group_and_is_kept() {
    let (mut hub, sender) = (Hub::asked(), Sender::new(EPOCH, 0, 90));
    sender.stages(&mut hub, 1..=50);
    hub.finish();
    assert_eq!(hub.store.verified, 1);
    sender.stages(&mut hub, 51..=60);
    hub.finish();
    assert_eq!(heads(&hub), [50, 60]);
}

#[test]
fn a_broker_that_changes_one_and_all_chain_values_after_it_gets_nothing_stored() {
    for first in 1..=9 {
        let (mut hub, sender) = (Hub::asked(), Sender::new(EPOCH, 0, 9));
        sender.stages(&mut hub, 1..first);
        for line in changed(&sender, first..=9) {
            assert_eq!(hub.give(Input::Transaction(line)), [], "the chain fits");
        }
        let actions = hub.finish();
        if first == 1 {
            let mut expected = unsigned(1);
            expected.push(Action::Receipt(lane(), statement(None, None)));
            assert_eq!(actions, expected);
        }
        let stored: Vec<u64> = hub.store.lines.iter().map(|line| line.numbered.sequence).collect();
        assert_eq!(stored, (1..first).collect::<Vec<_>>());
        // What the gateway sends again is taken.
        sender.stages(&mut hub, first..=9);
        hub.finish();
        assert_eq!(hub.committer.watermarks_of(&lane()), [sender.through(9)]);
        assert_eq!(hub.store.lines.last().map(|line| line.is_head), Some(true));
    }
}

#[test]
fn what_is_dropped_is_said_once_and_the_other_lanes_are_stored() {
    let (mut hub, sender) = (Hub::asked(), Sender::new(EPOCH, 0, 9));
    let other = Sender::of(lane_of("gw2", "clinical"), EPOCH, 20, 9);
    hub.ask(&other.lane, "b");
    hub.finish();
    sender.stages(&mut hub, [1, 2]);
    other.stages(&mut hub, [1]);
    for line in changed(&sender, 3..=5) {
        hub.give(Input::Transaction(line));
    }
    other.stages(&mut hub, [2]);
    let mut expected = unsigned(3);
    expected.push(Action::Append);
    assert_eq!(hub.give(Input::Flush), expected);
    let numbers: Vec<_> = hub.committer.group().iter().map(|line| line.numbered.sequence).collect();
    assert_eq!(numbers, [1, 2, 1, 2]);
    let receipts = hub.append(4, Input::Stored);
    assert_eq!(receipts.len(), 2);
    assert_eq!(hub.committer.watermarks_of(&lane()), [sender.through(2)]);
    assert_eq!(hub.committer.watermarks_of(&other.lane), [other.through(2)]);
}

#[test]
fn a_wrong_chain_value_that_nobody_has_signed_says_nothing_about_the_gateway() {
    let (mut hub, sender) = (Hub::asked(), Sender::new(EPOCH, 0, 9));
    sender.stages(&mut hub, [1]);
    hub.finish();
    let mut line = sender.line(2, 0);
    line.numbered.id = TransactionId(Uuid::from_u128(200));
    line.signs = None;
    assert_eq!(hub.give(Input::Transaction(line)), unsigned(2));
    let mut repeated = sender.line(1, 0);
    repeated.numbered.chain.0[0] ^= 1;
    assert_eq!(hub.give(Input::Transaction(repeated)), unsigned(1));
    assert_eq!(hub.finish(), [], "and needs no receipt");
    sender.stages(&mut hub, [2]);
}

/// As a broker does that changes a body and leaves the rest alone.
#[test]
fn a_body_that_is_changed_under_its_own_signature_is_not_stored_and_the_gateway_hears_of_it() {
    let (mut hub, sender) = (Hub::asked(), Sender::new(EPOCH, 0, 9));
    sender.stages(&mut hub, [1]);
    hub.finish();
    let mut line = sender.line(2, 0);
    line.numbered.id = TransactionId(Uuid::from_u128(200));
    assert_eq!(hub.give(Input::Transaction(line)), elsewhere(EPOCH, 2, 0));
    assert_eq!(hub.finish(), []);
    sender.stages(&mut hub, [2]);
}

#[test]
fn what_follows_an_unsigned_epoch_does_not_overtake_it() {
    let (mut hub, old) = (Hub::asked(), Sender::new(EPOCH, 0, 9));
    old.stages(&mut hub, [1]);
    let changed = changed(&old, 2..=2).remove(0);
    let end = Through { epoch: EPOCH, through: 2, chain: changed.numbered.chain };
    hub.give(Input::Transaction(changed));
    let new = Sender::after(end, OTHER, 2, 9);
    new.stages(&mut hub, [1, 2]);
    hub.finish();
    assert_eq!(hub.committer.watermarks_of(&lane()), [old.through(1)]);
}

#[test]
fn a_bundle_counts_what_is_signed_and_names_the_first_that_is_not() {
    let (mut hub, sender) = (Hub::new(), Sender::new(EPOCH, 0, 9));
    let mut lines = vec![sender.line(1, 0), sender.line(2, 0)];
    lines.extend(changed(&sender, 3..=5));
    let (tally, wrong) = hub.import(&lane(), lines).unwrap();
    assert_eq!(tally, Tally { stored: 2, ..Tally::default() });
    assert_eq!(wrong, Some(NotTaken::Unsigned { lane: lane(), epoch: EPOCH, sequence: 3 }));
    hub.finish();
    assert_eq!(hub.committer.watermarks_of(&lane()), [sender.through(2)]);
}

#[test]
fn what_is_beyond_the_hubs_limits_is_named_if_it_is_next_and_signed_and_stored_nowhere() {
    let (mut hub, sender) = (Hub::asked(), Sender::new(EPOCH, 0, 9));
    let large = |sequence, round| Line { too_large: true, ..sender.line(sequence, round) };
    let refused = Action::Refuse(lane(), Refusal::TooLarge);
    let named = |epoch, expected, round| {
        let missed = Missed { code: GapCode::TooLarge, epoch, expected, round };
        vec![Action::Gap(lane(), missed), refused.clone()]
    };
    assert_eq!(hub.give(Input::Transaction(large(1, 0))), named(EPOCH, 1, 0), "an epoch's first too");
    sender.stages(&mut hub, [1]);
    assert_eq!(hub.give(Input::Transaction(large(2, 0))), named(EPOCH, 2, 0));
    assert_eq!(hub.give(Input::Transaction(large(2, 0))), std::slice::from_ref(&refused), "once in a round");
    assert_eq!(sender.send(&mut hub, 3, 0), [Action::Gap(lane(), missing(2, 0))], "what follows it waits");
    assert_eq!(hub.give(Input::Transaction(large(2, 1))), named(EPOCH, 2, 1));
    let ahead = hub.give(Input::Transaction(large(4, 1)));
    assert_eq!(ahead, [Action::Gap(lane(), missing(2, 1))], "it is not its turn");
    // Whoever changes one on its way stalls no lane with it.
    let changed = Line { signs: None, ..large(2, 0) };
    assert_eq!(hub.give(Input::Transaction(changed)), unsigned(2));
    hub.finish();
    assert_eq!(hub.committer.watermarks_of(&lane()), [sender.through(1)]);
    let repeated = hub.give(Input::Transaction(large(1, 1)));
    assert!(matches!(repeated[..], [Action::Repeated(_)]), "{repeated:?}");
    let other = Sender::new(OTHER, 20, 3);
    let beside = Line { too_large: true, ..other.line(1, 0) };
    assert_eq!(hub.give(Input::Transaction(beside)), elsewhere(OTHER, 1, 0), "it is not kept as late");
    // A hub that takes it.
    hub.finish();
    sender.stages(&mut hub, [2, 3]);
}
