//! Hand-carry without the programs: a gateway's machine trusts a receipt from a file only as far as its own chain agrees.
//! `hub_import` has the hub's side.

use pgw_core::chain::{ChainValue, Through};
use pgw_core::delivery::{Action, Delivery, HubLimits, Input, Limits, Numbering, Point, Receipt};
use pgw_core::transaction::Epoch;
use uuid::Uuid;

#[test]
fn a_receipt_from_a_file_moves_the_mark_only_to_what_is_ours() {
    let epoch = Epoch(Uuid::from_u128(1));
    let limits = Limits {
        window: 8,
        window_bytes: 1 << 20,
        receipt_timeout: 1_000,
        stall_timeout: 1_000,
        confirm_on_puback: false,
    };
    let chain = |byte: u64| ChainValue([u8::try_from(byte).unwrap(); 32]);
    let at = |through| Through { epoch, through, chain: chain(through) };
    let receipt = |through: u64| Receipt {
        incarnation: 1,
        counter: 1,
        end: Some(at(through)),
        holds_point: false,
        backed_up_through: None,
        nonce: None,
        tail_seen: None,
        lost: Vec::new(),
        known_store: true,
        limits: HubLimits::default(),
    };
    let confirmed = Some(Point { position: 3, at: at(3) });
    let mut machine = Delivery::new(limits, Numbering::new(epoch), confirmed, 20);
    let mut give = |input: Input| {
        let mut actions = Vec::new();
        machine.handle(input, 0, &mut actions);
        actions
    };
    let ours = |sequence, chain| Input::ChainAt { epoch, sequence, chain };
    let looks = |sequence| [Action::LookUpChain { epoch, sequence }];

    assert_eq!(give(Input::Imported(receipt(2))), [], "it never goes back");
    assert_eq!(give(Input::Imported(receipt(21))), [], "beyond the tail: only an answer decides");
    assert_eq!(give(Input::Imported(receipt(9))), looks(9));
    assert_eq!(give(ours(9, Some(chain(77)))), [], "another history");
    assert_eq!(give(Input::Imported(receipt(9))), looks(9));
    assert_eq!(give(ours(9, None)), [], "its value is unknown");
    assert_eq!(give(Input::Imported(receipt(7))), looks(7));
    assert_eq!(
        give(ours(7, Some(chain(7)))),
        [Action::Confirm { position: 7, point: Some(at(7)), backed_up_through: None, asked: None }]
    );
    // A link comes up while a value is being looked up: from then on only answers count.
    assert_eq!(give(Input::Imported(receipt(9))), looks(9));
    let asked = give(Input::Connected { nonce: [7; 16], receive_maximum: 8, maximum_bytes: None });
    assert!(matches!(asked[..], [Action::AskPosition { .. }]), "{asked:?}");
    give(ours(9, Some(chain(9))));
    give(Input::Imported(receipt(12)));
    assert_eq!(machine.confirmed(), 7, "neither answers anything");
}
