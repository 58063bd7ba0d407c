//! Bundles at the hub, without the programs: they continue a lane's line as what the broker brings does, and nothing else.

use std::path::Path;

use pgw_core::committer::NotTaken;
use pgw_hub::answers::{Answer, Answers};
use pgw_hub::backup::Backups;
use pgw_hub::fleet::Fleet;
use pgw_hub::gateways::Gateways;
use pgw_hub::import::{ImportError, ImportedLane, elsewhere};
use pgw_hub::imported::{Part, Tally};
use pgw_hub::store::Entry;
use pgw_hub::store::ndjson::NdjsonStore;
use pgw_hub::store_thread::{GroupLimits, StoreThread};
use pgw_hub::verify;

use crate::hub_kit::{Sender, in_use, lane};

fn part(entries: &[Entry]) -> Part {
    let one = |entry: &Entry| (entry.envelope.clone(), entry.body.clone().unwrap_or_default());
    Part { lane: lane("clinical"), transactions: entries.iter().map(one).collect() }
}

fn hub(directory: &Path) -> StoreThread {
    let store = NdjsonStore::open(directory, 1 << 30).unwrap();
    let limits = GroupLimits { transactions: 1_024, bytes: 4 << 20 };
    let fleet = Fleet::open(directory);
    let listed = in_use(&[&lane("clinical")]);
    StoreThread::new(Box::new(store), Answers::default(), listed, fleet, Backups::default(), limits)
}

fn shown(tally: Result<Tally, NotTaken>) -> (u64, u64, u64, u64) {
    let tally = tally.unwrap();
    (tally.stored, tally.repeated, tally.late, tally.end.map_or(0, |end| end.through))
}

#[test]
fn the_hub_imports_bundles_by_the_same_rules() {
    let directory = tempfile::tempdir().unwrap();
    let mut hub = hub(directory.path());
    let mut first = Sender::new(&lane("clinical"), 1);
    let old = first.take(5);
    let mut second = Sender::after(&first, 2);
    let new = second.take(3);
    let link = |epoch, sequence| NotTaken::Link { lane: lane("clinical"), epoch, sequence };

    assert_eq!(hub.import(part(&old[2..])), Err(link(first.epoch, 3)), "what is before it is not here");
    assert_eq!(shown(hub.import(part(&old[..3]))), (3, 0, 0, 3));
    let missing =
        NotTaken::Missing { lane: lane("clinical"), epoch: first.epoch, sequence: 4, position: None };
    assert_eq!(hub.import(part(&old[4..])), Err(missing), "a gap");
    assert_eq!(shown(hub.import(part(&old))), (2, 3, 0, 5));
    assert_eq!(shown(hub.import(part(&new))), (3, 0, 0, 3));
    assert_eq!(shown(hub.import(part(&new))), (0, 3, 0, 3));
    assert_eq!(shown(hub.import(part(&old))), (0, 5, 0, 3), "of an older epoch");
    // Another history from there on: nobody can say what its sixth follows.
    let mut other = Sender::new(&lane("clinical"), 1);
    other.take(4);
    other.next(99, b"another fifth");
    let sixth = other.next(100, b"another sixth");
    assert_eq!(hub.import(part(&[sixth])), Err(link(first.epoch, 6)));
}

#[test]
fn a_bundle_whose_link_is_not_the_end_puts_nothing_into_the_lane() {
    let directory = tempfile::tempdir().unwrap();
    let mut hub = hub(directory.path());
    let mut first = Sender::new(&lane("clinical"), 1);
    let old = first.take(5);
    let mut elsewhere_at = first.clone();
    (elsewhere_at.sequence, elsewhere_at.chain) = (3, old[2].envelope.chain);
    assert_eq!(shown(hub.import(part(&old))), (5, 0, 0, 5));
    for (epoch, mut other) in [(2, Sender::after(&elsewhere_at, 2)), (3, Sender::new(&lane("clinical"), 3))] {
        let entries = other.take(4);
        // What its gateway has signed is kept, once, and nothing of it is in the lane.
        for _ in 0..2 {
            assert_eq!(shown(hub.import(part(&entries))), (0, 0, 4, 5), "{epoch}");
        }
    }
    let Some(Answer::Receipt { end, nonce: None, .. }) = hub.end_of(lane("clinical")) else { panic!() };
    assert_eq!(end, Some(first.end()), "where the next export may begin");
    drop(hub);
    let verified = verify::lane(directory.path(), &lane("clinical"), &Gateways::default()).unwrap();
    assert_eq!((verified.transactions, verified.late.len(), verified.faults), (5, 8, vec![]));
}

#[test]
fn another_history_of_the_ends_epoch_is_no_repetition_however_far_back_it_begins() {
    let directory = tempfile::tempdir().unwrap();
    let mut first = Sender::new(&lane("clinical"), 1);
    let old = first.take(200);
    let mut hub = self::hub(directory.path());
    assert_eq!(shown(hub.import(part(&old))), (200, 0, 0, 200));
    // A box that came back from an image has accepted others under these numbers.
    let mut image = Sender::new(&lane("clinical"), 1);
    image.take(100);
    let others: Vec<_> = (0..50u8).map(|number| image.next(900 + u128::from(number), b"another")).collect();
    assert_eq!(shown(hub.import(part(&others))), (0, 0, 50, 200));
    drop(hub);
    let mut hub = self::hub(directory.path());
    assert_eq!(shown(hub.import(part(&old))), (0, 200, 0, 200), "the hub has these");
    assert_eq!(shown(hub.import(part(&others))), (0, 0, 50, 200));
    let lanes = verify::lane(directory.path(), &lane("clinical"), &Gateways::default()).unwrap();
    assert_eq!((lanes.transactions, lanes.late.len(), lanes.faults), (200, 50, vec![]));
}

#[test]
fn a_lane_that_a_bundle_does_not_continue_is_named_once() {
    let of = |name: &str, late| ImportedLane {
        practice: lane(name).practice,
        gateway: lane(name).gateway,
        lane: lane(name).lane,
        epoch: Sender::new(&lane(name), 1).epoch,
        first: 1,
        last: 1,
        count: 1,
        stored: 0,
        renumbered: 0,
        repeated: 0,
        late,
        end: None,
    };
    let lanes = [of("clinical", 3), of("letters", 0), of("urgent", 0)];
    let link = |name: &str| {
        ImportError::from(NotTaken::Link { lane: lane(name), epoch: lanes[0].epoch, sequence: 1 })
    };
    assert_eq!(elsewhere(&lanes, None), [lane("clinical")]);
    assert_eq!(elsewhere(&lanes, Some(&link("clinical"))), [lane("clinical")]);
    assert_eq!(elsewhere(&lanes, Some(&link("urgent"))), [lane("clinical"), lane("urgent")]);
    assert!(link("urgent").sentence().contains("export --end"));
    assert_eq!(elsewhere(&lanes[1..], Some(&ImportError::Ended)), []);
}
