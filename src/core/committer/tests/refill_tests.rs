//! A store that had lost a part of a lane, and has all of it at once when that part has come again.

use super::*;

#[test]
fn what_the_store_has_more_after_a_group_counts_at_once() {
    let (mut hub, sender) = (Hub::asked(), Sender::new(EPOCH, 0, 9));
    sender.stages(&mut hub, 1..=3);
    assert_eq!(hub.give(Input::Flush), [Action::Append]);
    // The group goes beyond what was missing: of that the store takes nothing, it has 3 to 7 already.
    hub.store.lines.extend((3..=7).map(|sequence| sender.line(sequence, 0)));
    let shows = Hub::only_receipt(hub.give(Input::Stored));
    assert_eq!(shows, statement(Some(sender.through(7)), None));
    assert_eq!(sender.send(&mut hub, 9, 1), [Action::Gap(lane(), missing(8, 1))]);
    sender.stages(&mut hub, 8..=9);
}
