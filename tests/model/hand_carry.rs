//! Hand-carry without the programs: the hub accepts nothing of a later epoch too early, and a gateway's machine trusts
//! a receipt from a file only as far as its own chain agrees.

use pgw_bundle::bundle::Older;
use pgw_core::chain::ChainValue;
use pgw_core::delivery::{Action, Delivery, HubLimits, Input, Limits, Numbering, Receipt, Through};
use pgw_core::transaction::Epoch;
use pgw_hub::answers::Answers;
use pgw_hub::backup::Backups;
use pgw_hub::fleet::Fleet;
use pgw_hub::imported::{NotTaken, Part, Tally};
use pgw_hub::store::Entry;
use pgw_hub::store::ndjson::NdjsonStore;
use pgw_hub::store_thread::{GroupLimits, StoreThread};
use uuid::Uuid;

use crate::hub_kit::{Sender, in_use, lane};

fn part(older: &[Older], entries: &[Entry]) -> Part {
    let one = |entry: &Entry| (entry.envelope.clone(), entry.body.clone().unwrap_or_default());
    Part { lane: lane("clinical"), older: older.to_vec(), transactions: entries.iter().map(one).collect() }
}

#[test]
fn the_hub_imports_bundles_by_the_same_rules() {
    let directory = tempfile::tempdir().unwrap();
    let store = NdjsonStore::open(directory.path(), 1 << 30).unwrap();
    let limits = GroupLimits { transactions: 1_024, bytes: 4 << 20 };
    let mut hub = StoreThread::new(
        Box::new(store),
        Answers::default(),
        in_use(&[&lane("clinical")]),
        Fleet::open(directory.path()),
        Backups::default(),
        limits,
    );
    let (mut first, mut second) = (Sender::new(&lane("clinical"), 1), Sender::new(&lane("clinical"), 2));
    let (old, new) = (first.take(5), second.take(3));
    let older = [Older { epoch: first.epoch, through: 5 }];
    let missing = |epoch: Epoch, sequence| {
        Err(NotTaken::Missing { lane: lane("clinical"), epoch, sequence, position: None })
    };

    assert_eq!(hub.import(part(&older, &new)), missing(first.epoch, 1), "the older epoch is not here");
    assert_eq!(hub.import(part(&[], &old[2..])), missing(first.epoch, 1), "a gap");
    let stored = |tally: Result<Tally, NotTaken>| {
        let tally = tally.unwrap();
        (tally.stored, tally.repeated, tally.watermarks.len())
    };
    assert_eq!(stored(hub.import(part(&[], &old[..3]))), (3, 0, 1));
    assert_eq!(hub.import(part(&older, &new)), missing(first.epoch, 4), "its end is not here");
    assert_eq!(stored(hub.import(part(&[], &old))), (2, 3, 1));
    assert_eq!(stored(hub.import(part(&older, &new))), (3, 0, 2));
    assert_eq!(stored(hub.import(part(&older, &new))), (0, 3, 2));
    // Another history from there on.
    let mut other = Sender::new(&lane("clinical"), 1);
    other.take(4);
    other.next(99, b"another fifth");
    let sixth = other.next(100, b"another sixth");
    let diverged = NotTaken::Diverged { lane: lane("clinical"), epoch: first.epoch, sequence: 6 };
    assert_eq!(hub.import(part(&[], &[sixth])), Err(diverged));
}

#[test]
fn a_receipt_from_a_file_moves_the_mark_only_to_what_is_ours() {
    let epoch = Epoch(Uuid::from_u128(1));
    let limits = Limits {
        window: 8,
        window_bytes: 1 << 20,
        receipt_timeout: 1_000,
        stall_timeout: 1_000,
        hubs: 2,
        confirm_on_puback: false,
    };
    let chain = |byte: u8| ChainValue([byte; 32]);
    let receipt = |hub: usize, through: u64| Receipt {
        hub,
        incarnation: 1,
        counter: 1,
        epochs: vec![Through { epoch, through, chain: chain(u8::try_from(through).unwrap()) }],
        backed_up_through: None,
        nonce: None,
        tail_seen: None,
        known_store: true,
        limits: HubLimits::default(),
    };
    let mut machine = Delivery::new(limits, Numbering::new(epoch), (3, chain(3)), 20);
    let mut give = |input: Input| {
        let mut actions = Vec::new();
        machine.handle(input, 0, &mut actions);
        actions
    };
    let ours =
        |position: u64| Input::ChainAt { position, chain: Some(chain(u8::try_from(position).unwrap())) };

    assert_eq!(give(Input::Imported(receipt(0, 2))), [], "it never goes back");
    assert_eq!(give(Input::Imported(receipt(0, 21))), [], "beyond the tail: only an answer decides");
    assert_eq!(give(Input::Imported(receipt(0, 9))), [Action::LookUpChain(9)]);
    assert_eq!(give(Input::ChainAt { position: 9, chain: Some(chain(77)) }), [], "another history");
    assert_eq!(give(Input::Imported(receipt(0, 9))), [Action::LookUpChain(9)]);
    assert_eq!(give(Input::ChainAt { position: 9, chain: None }), [], "not to be had");
    assert_eq!(give(Input::Imported(receipt(0, 9))), [Action::LookUpChain(9)]);
    assert_eq!(give(ours(9)), [], "the other hub has not got it");
    assert_eq!(give(Input::Imported(receipt(1, 7))), [Action::LookUpChain(7)]);
    assert_eq!(
        give(ours(7)),
        [Action::Confirm { position: 7, chain: chain(7), backed_up_through: None, asked: None }],
        "confirmed is the lowest of them"
    );
    // A link comes up while a value is being looked up: from then on only answers count.
    assert_eq!(give(Input::Imported(receipt(1, 9))), [Action::LookUpChain(9)]);
    let asked = give(Input::Connected { nonce: [7; 16], receive_maximum: 8, maximum_bytes: None });
    assert!(matches!(asked[..], [Action::AskPosition(_)]), "{asked:?}");
    assert_eq!(give(ours(9)), []);
    assert_eq!(give(Input::Imported(receipt(1, 12))), [], "it answers nothing");
    assert_eq!(machine.confirmed(), 7);
}
