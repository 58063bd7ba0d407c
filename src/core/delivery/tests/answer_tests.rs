//! What an answer says besides how far the hub is, and how long it counts.

use super::*;

#[test]
fn a_record_over_the_hubs_limit_is_held_until_an_answer_raises_it() {
    let mut bench = Bench::new(limits(), 0, 9);
    bench.limits.packet_bytes = Some(99);
    bench.connect();
    assert_eq!(bench.answer(0).last(), Some(&Action::Alarm(Alarm::Held(1, TOO_LARGE))));
    bench.limits.packet_bytes = Some(100);
    assert!(bench.receipt(0).is_empty(), "a receipt that answers nothing may be of any age");
    bench.connect();
    assert_eq!(sent(&bench.answer(0)), [1, 2, 3, 4]);
}

#[test]
fn the_hubs_window_counts_in_an_answer_and_none_means_wait_and_ask() {
    let mut bench = Bench::new(limits(), 0, 9);
    bench.limits.window = Some(0);
    bench.connect();
    assert!(sent(&bench.answer(0)).is_empty());
    let mut pauses = Vec::new();
    for _ in 0..8 {
        let before = bench.now;
        assert_eq!(asked(&bench.tick()), 1);
        pauses.push(bench.now - before);
        assert!(sent(&bench.answer(0)).is_empty());
    }
    assert!(pauses.is_sorted() && pauses.last() == Some(&60_000), "{pauses:?}");
    bench.limits.window = Some(2);
    bench.now += HOUR;
    assert_eq!(asked(&bench.receipt(0)), 1, "the hub says something: perhaps that it lets go");
    assert_eq!(sent(&bench.answer(0)), [1, 2]);
    bench.give(Input::Disconnected);
    bench.limits = HubLimits::default();
    bench.connect();
    bench.answer(0);
    assert!(bench.machine.counts().in_flight > 0, "without a limit its own window counts");
}

#[test]
fn what_the_hub_cannot_verify_alone_three_times_is_held() {
    let mut bench = Bench::new(limits(), 0, 9);
    bench.connect();
    bench.answer(0);
    let unverified = |bench: &mut Bench, expected| {
        let round = bench.machine.round().unwrap();
        bench.give(Input::Gap { code: GapCode::Unverified, epoch: epoch(0), expected, round })
    };
    assert_eq!(unverified(&mut bench, 1), [], "it was not alone");
    for position in 2..=4 {
        bench.pub_ack(position);
    }
    for time in 1..=3 {
        // The hub says nothing more: everything is sent again, the head alone.
        bench.pub_ack(1);
        assert_eq!(asked(&bench.tick()), 1);
        assert_eq!(sent(&bench.answer(0)), [1], "time {time}");
        assert_eq!(unverified(&mut bench, 2), [], "not the head");
        let held = Action::Alarm(Alarm::Held(1, HeldBecause::Unverified));
        let said = unverified(&mut bench, 1);
        assert_eq!(said, if time == 3 { vec![held] } else { vec![] });
        assert_eq!(unverified(&mut bench, 1), [], "the same notice repeated");
    }
    assert!(
        bench.give(Input::ReleaseHeld).contains(&Action::Alarm(Alarm::Released(1))),
        "a person has it tried again"
    );
    assert_eq!(sent(&bench.receipt(1))[0], 2);
}

#[test]
fn what_is_beyond_the_hubs_limits_is_held_until_an_hour_has_passed_or_the_hub_is_another() {
    let mut bench = Bench::new(limits(), 0, 9);
    bench.connect();
    let first = round(&bench.answer(0));
    let too_large = |bench: &mut Bench, of, expected, round| {
        bench.give(Input::Gap { code: GapCode::TooLarge, epoch: epoch(of), expected, round })
    };
    let now = |bench: &Bench| bench.machine.round().unwrap();
    // An old notice, one of another epoch, and one of what was not sent or is confirmed.
    for (of, expected, round) in [(0, 3, first + 1), (1, 3, first), (0, 0, first), (0, 5, first)] {
        assert_eq!(too_large(&mut bench, of, expected, round), [], "{of} {expected} {round}");
    }
    let said = too_large(&mut bench, 0, 3, first);
    assert_eq!(said[0], Action::Alarm(Alarm::Held(3, HeldBecause::BeyondHub)));
    assert_eq!(sent(&said), [1, 2], "what is before it goes again, and nothing after it");
    assert_eq!(too_large(&mut bench, 0, 3, first), [], "the same notice repeated");
    assert!(sent(&bench.receipt(2)).is_empty());
    assert_eq!(bench.machine.counts().held, Some(3));
    bench.connect();
    assert!(sent(&bench.answer(2)).is_empty(), "the same hub says that it has no more");
    bench.now += HOUR;
    let tried = bench.give(Input::Tick);
    assert!(tried.contains(&Action::Alarm(Alarm::Released(3))), "{tried:?}");
    assert_eq!(bench.machine.counts().held, None);
    bench.connect();
    for other in [(2, None), (2, Some(1_000))] {
        assert!(sent(&bench.answer(2)).contains(&3), "{other:?}");
        let round = now(&bench);
        too_large(&mut bench, 0, 3, round);
        assert_eq!(bench.machine.counts().held, Some(3), "{other:?}");
        (bench.incarnation, bench.limits.packet_bytes) = other;
        bench.connect();
    }
    assert!(sent(&bench.answer(2)).contains(&3), "it takes other packets now");
    // A record before it that cannot be sent either stalls the lane first.
    assert!(sent(&bench.receipt(3)).contains(&5));
    let round = now(&bench);
    too_large(&mut bench, 0, 5, round);
    assert_eq!(bench.machine.counts().held, Some(5));
    too_large(&mut bench, 0, 4, round + 1);
    assert_eq!(bench.machine.counts().held, Some(4));
}

#[test]
fn pruning_may_rely_on_a_fresh_answer_of_a_known_store_only() {
    let asked_at = |actions: &[Action]| {
        let of = |a: &Action| if let Action::Confirm { asked, .. } = a { Some(*asked) } else { None };
        actions.iter().filter_map(of).next_back()
    };
    let mut bench = Bench::new(limits(), 0, 9);
    bench.now = 7;
    bench.connect();
    bench.now = 1_000;
    assert_eq!(asked_at(&bench.answer(0)), Some(Some(7)), "the question counts, not the answer");
    assert_eq!(asked_at(&bench.receipt(3)), Some(None));
    assert_eq!(asked(&bench.give(Input::AskAgain)), 0, "not twice at once");
    bench.now = 5_000;
    assert_eq!(asked(&bench.give(Input::AskAgain)), 1);
    bench.now = 5_500;
    let old = bench.nonce;
    assert_eq!(asked_at(&bench.answer(3)), Some(Some(5_000)));
    bench.now = 9_000;
    assert_eq!(asked(&bench.give(Input::AskAgain)), 1);
    let replayed = bench.receipt_of(3, Some(old));
    assert_eq!(asked_at(&bench.give(replayed)).flatten(), None, "an answer to an earlier question");
    bench.known_store = false;
    assert_eq!(asked_at(&bench.answer(4)), Some(None), "of a store that nobody has accepted");
    bench.now = HOUR;
    let mut without = Bench::new(Limits { confirm_on_puback: true, ..limits() }, 0, 5);
    without.connect();
    without.now = 50;
    assert_eq!(asked_at(&without.give(Input::AskAgain)), Some(Some(50)), "a site without a hub");
}

#[test]
fn a_hub_that_has_heard_of_a_longer_history_raises_an_alarm_once() {
    let mut bench = Bench::new(limits(), 5, 9);
    bench.tail_seen = Some((epoch(7), 99));
    bench.connect();
    assert!(!bench.answer(5).iter().any(|a| matches!(a, Action::Alarm(_))), "of another epoch");
    bench.tail_seen = Some((epoch(0), 12));
    bench.connect();
    let alarm = Action::Alarm(Alarm::TailLost { epoch: epoch(0), missing: 3 });
    assert!(bench.answer(5).contains(&alarm));
    bench.now = HOUR;
    bench.give(Input::AskAgain);
    assert!(!bench.answer(5).contains(&alarm), "once");
}

#[test]
fn numbers_that_were_used_for_what_was_lost_are_not_used_again() {
    let mut bench = Bench::new(limits(), 5, 9);
    bench.tail_seen = Some((epoch(0), 12));
    bench.connect();
    let actions = bench.answer(5);
    let begins =
        |actions: &[Action]| actions.iter().any(|action| matches!(action, Action::NewEpoch { after: 5, .. }));
    assert!(begins(&actions) && sent(&actions).is_empty(), "{actions:?}");
    let numbering = bench.machine.numbering().begun(epoch(1), Some(point(0, 5)), vec![epoch(0)], 5, vec![]);
    bench.give(Input::Renumbered(numbering));
    assert_eq!(sent(&bench.answer(5)), [6, 7, 8, 9], "it is of an older epoch now");
}
