//! A lane whose files fail: nothing is said of it, no other lane stops, and it begins again from what the store has then.

use super::*;

fn later(sender: &Sender, round: u64) -> Action<Line> {
    Action::Gap(sender.lane.clone(), Missed { code: GapCode::Later, epoch: sender.epoch, expected: 0, round })
}

/// Two lanes with two staged transactions each; the store has what was staged of the second, and `kept` of the first, whose
/// files have failed.
fn failed(kept: usize, outcome: Input<Line>) -> (Hub, Sender, Sender, Actions) {
    let (mut hub, a) = (Hub::asked(), Sender::new(EPOCH, 0, 9));
    let b = Sender::of(lane_of("gw1", "letters"), EPOCH, 5, 9);
    hub.ask(&b.lane, "q");
    hub.finish();
    a.stages(&mut hub, 1..=2);
    b.stages(&mut hub, 1..=2);
    assert_eq!(hub.give(Input::Flush), [Action::Append]);
    let group = hub.committer.group().to_vec();
    hub.store.lines.extend(group[..kept].iter().chain(&group[2..]).cloned());
    hub.store.out.insert(lane());
    let actions = hub.give(outcome);
    (hub, a, b, actions)
}

#[test]
fn a_lane_whose_files_fail_gets_no_receipt_and_stops_no_other() {
    for kept in 0..=2 {
        let (mut hub, a, b, actions) = failed(kept, Input::Stored);
        let receipt = |through| Action::Receipt(b.lane.clone(), statement(Some(b.through(through)), None));
        assert_eq!(actions, [later(&a, 0), receipt(2)], "{kept}");
        assert_eq!(hub.committer.watermarks_of(&lane()), []);
        // The other is not delayed.
        b.stages(&mut hub, [3]);
        assert_eq!(hub.finish(), [receipt(3)]);
        // Nothing makes the hub speak of the one, or take anything of it.
        assert_eq!(a.send(&mut hub, 1, 1), [later(&a, 1)]);
        assert_eq!(a.send(&mut hub, 3, 1), []);
        assert_eq!(hub.ask(&a.lane, "where"), [later(&a, 0)]);
        assert_eq!(hub.finish(), []);
        assert_eq!(hub.import(&lane(), [a.line(1, 0)]), Err(NotTaken::StoreFailed(lane())));
        hub.give(Input::Admit(lane()));
        hub.give(Input::Connected);
        let answer = Action::Receipt(b.lane.clone(), statement(Some(b.through(3)), Some("q")));
        assert_eq!(hub.finish(), [answer]);
        // It comes back with what the store has of it.
        hub.store.out.clear();
        hub.ask(&a.lane, "where");
        let end = (kept > 0).then(|| a.through(kept as u64));
        assert_eq!(Hub::only_receipt(hub.finish()), statement(end, Some("where")));
        a.stages(&mut hub, kept as u64 + 1..=3);
        assert_eq!(Hub::only_receipt(hub.finish()), statement(Some(a.through(3)), None));
    }
}

#[test]
fn where_the_whole_store_fails_as_well_nothing_is_said_of_the_lane_either() {
    let (mut hub, a, b, actions) = failed(1, Input::StoreFailed);
    assert_eq!(actions, [later(&a, 0)]);
    hub.give(Input::Connected);
    let answer = Action::Receipt(b.lane.clone(), statement(Some(b.through(2)), Some("q")));
    assert_eq!(hub.finish(), [answer]);
}

#[test]
fn a_lane_whose_files_were_read_again_is_what_they_have() {
    let (mut hub, a) = (Hub::asked(), Sender::new(EPOCH, 0, 9));
    a.stages(&mut hub, 1..=5);
    hub.finish();
    hub.store.lines.truncate(3);
    hub.give(Input::ReadAgain(lane()));
    assert_eq!(hub.committer.watermarks_of(&lane()), [a.through(3)]);
    hub.store.out.insert(lane());
    hub.give(Input::ReadAgain(lane()));
    assert_eq!(a.send(&mut hub, 4, 1), [later(&a, 1)]);
    hub.store.out.clear();
    a.stages(&mut hub, 4..=5);
}
