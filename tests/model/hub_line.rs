//! One line a lane, over the link: what continues it, what is kept beside it, and what waits for the centre.

use std::fs;
use std::sync::{Arc, mpsc};

use pgw_core::numbering::{self, EntryKind, LostNumbers, Numbers};
use pgw_core::transaction::{Epoch, Kind, Transaction, TransactionId, unix_millis_now};
use pgw_core::wire::entry;
use pgw_core::wire::receipt::GapCode;
use pgw_hub::answers::Answer;
use pgw_hub::imported::{NotTaken, Part};
use pgw_hub::report;
use pgw_hub::store::line::{self, Line};
use pgw_hub::store::ndjson::files_of;
use pgw_hub::store::{Entry, LaneName, Through};
use pgw_hub::store_thread::Arrival;
use pgw_hub::verify::{self, VerifiedLane};
use pgw_hub::waits::{Admission, AdmittedLane, NotAdmitted, WaitReason};
use uuid::Uuid;

use crate::hub_kit::{Sender, lane, listed, transaction};
use crate::hub_store_thread::{Running, gaps};

fn verified(running: &Running) -> VerifiedLane {
    let name = lane("clinical");
    let verified = verify::lane(running.directory.path(), &name, &listed(&[&name])).unwrap();
    assert_eq!(verified.faults, vec![]);
    verified
}

/// An entry for numbers of an older epoch.
fn entry_for(of: &Sender, (from, through): (u64, u64), kind: EntryKind, id: u128) -> Transaction {
    entry::transaction(&numbering::Entry {
        from,
        through,
        kind,
        id: TransactionId(Uuid::from_u128(id)),
        time: 1_795_385_530_123,
        reason: "disk".into(),
        names: vec![Numbers { epoch: of.epoch, from, through }],
    })
}

fn admit(
    running: &Running,
    lane: Option<LaneName>,
    reason: WaitReason,
) -> Result<Vec<AdmittedLane>, NotAdmitted> {
    let (answer, answered) = mpsc::sync_channel(1);
    let admission = Admission { lane, reason };
    running.arrivals.as_ref().unwrap().send(Arrival::Admit(admission, answer)).ok().unwrap();
    answered.recv().unwrap()
}

#[test]
fn an_epoch_that_begins_elsewhere_than_at_the_end_is_never_stored_and_kept_once() {
    let directory = Arc::new(tempfile::tempdir().unwrap());
    let mut running = Running::in_store(&directory, u64::MAX);
    let mut first = Sender::new(&lane("clinical"), 1);
    let mut earlier = first.clone();
    let all = first.take(5);
    earlier.take(3);
    running.send_together(&all);
    assert_eq!(running.through(&first, "a").0, 5);
    let mut others = [Sender::after(&earlier, 2), Sender::new(&lane("clinical"), 3)];
    let late: Vec<_> = others.iter_mut().flat_map(|sender| sender.take(3)).collect();
    for round in 0..3 {
        running.send_together(&late);
        let (through, before) = running.through(&first, &format!("b{round}"));
        assert_eq!(through, 5);
        assert!(gaps(&running, before).iter().all(|(code, _)| *code == GapCode::Link));
        if round == 1 {
            running.finish();
            running = Running::in_store(&directory, u64::MAX);
        }
    }
    // What is late is not known: the next epoch brings one of them as new.
    let mut next = Sender::after(&first, 4);
    let again = [next.again(&late[1]), next.again(&all[4])];
    running.send_together(&again);
    assert_eq!(running.through(&next, "c").0, 2);
    running.finish();
    let verified = verified(&running);
    assert_eq!((verified.transactions, verified.advances, verified.late.len()), (6, 1, 5));
    let ends: Vec<Through> = verified.watermarks;
    assert_eq!(ends, [first.end(), next.end()]);
    let list = report::list(running.directory.path(), unix_millis_now()).unwrap().text;
    assert!(list.contains("6 transactions and 0 files of another history"), "{list}");
}

#[test]
fn a_number_of_the_ends_own_epoch_with_another_content_is_late() {
    let mut running = Running::start();
    let mut first = Sender::new(&lane("clinical"), 1);
    let mut twin = first.clone();
    let all = first.take(3);
    running.send_together(&all);
    assert_eq!(running.through(&first, "a").0, 3);
    twin.take(1);
    let other = [twin.next(77, b"another second"), twin.next(78, b"another third")];
    running.send_together(&other);
    let (through, before) = running.through(&first, "b");
    assert_eq!(through, 3);
    // The newest notice of a code replaces one that nobody has taken yet.
    assert_eq!(gaps(&running, before).last(), Some(&(GapCode::Link, 3)));
    running.finish();
    let verified = verified(&running);
    assert_eq!((verified.transactions, verified.late.len()), (3, 2));
}

#[test]
fn a_rival_is_stored_whole_and_named_and_makes_no_other_content_known() {
    let mut running = Running::start();
    let mut first = Sender::new(&lane("clinical"), 1);
    let all = first.take(3);
    running.send_together(&all);
    assert_eq!(running.through(&first, "a").0, 3);
    let mut second = Sender::after(&first, 2);
    let id = all[2].envelope.id().as_u128();
    let known = second.again(&all[1]);
    let rival = second.next(id, b"another content");
    let group = [
        known,
        rival.clone(),
        second.next(id, b"a third content"),
        second.again(&rival),
        second.again(&all[2]),
    ];
    running.send_together(&group);
    assert_eq!(running.through(&second, "b").0, 5);
    running.finish();
    let verified = verified(&running);
    assert_eq!((verified.transactions, verified.advances, verified.rivals_total), (5, 3, 2));
    let named: Vec<_> = verified.rivals.iter().map(|(at, id)| (at.through, id.as_u128())).collect();
    assert_eq!(named, [(2, id), (3, id)]);
    let shown = report::verify(running.directory.path(), &listed(&[&first.lane]), None).unwrap();
    assert!(shown.text.contains("rival: sequence 2 of epoch"), "{}", shown.text);
    let list = report::list(running.directory.path(), unix_millis_now()).unwrap().text;
    assert!(list.contains("2 transactions have an id that has another content"), "{list}");
}

#[test]
fn an_entry_is_a_line_like_every_other_and_names_what_is_missing_for_good() {
    let mut running = Running::start();
    let mut first = Sender::new(&lane("clinical"), 1);
    let all = first.take(7);
    running.send_together(&all[..4]);
    let mut lost = first.clone();
    (lost.sequence, lost.chain) = (4, all[3].envelope.chain);
    assert_eq!(running.through(&first, "a").0, 4);
    let mut second = Sender::after(&lost, 2);
    // The hub has 3 and 4 of what it stands for.
    let void = second.next_of(&entry_for(&first, (3, 6), EntryKind::Void, 0xabc));
    running.send_together(&[void.clone(), second.again(&all[6])]);
    assert_eq!(running.through(&second, "b").0, 2);
    // One of those that were released comes back: it is new.
    running.send_together(&[second.again(&all[4])]);
    // In the next epoch the entry is the same one.
    assert_eq!(running.through(&second, "c").0, 3);
    let mut third = Sender::after(&second, 3);
    running.send_together(&[third.again(&void)]);
    assert_eq!(running.through(&third, "d").0, 1);
    running.finish();
    let verified = verified(&running);
    assert_eq!((verified.transactions, verified.advances, verified.rivals_total), (7, 1, 0));
    let [missing] = &verified.missing[..] else { panic!("{:?}", verified.missing) };
    assert_eq!((missing.transactions, &missing.numbers[..]), (2, &[(first.epoch, 5, 6)][..]));
    let shown = report::verify(running.directory.path(), &listed(&[&first.lane]), None).unwrap().text;
    let line = format!(
        "2 transactions are missing for good at this lane: epoch {} numbers 5 to 6, written off",
        first.epoch
    );
    assert!(shown.contains(&line) && shown.contains("disk"), "{shown}");
    let path = files_of(running.directory.path(), &first.lane).unwrap().remove(0);
    let text = fs::read(path).unwrap();
    let entry = text.split(|byte| *byte == b'\n').filter_map(line::read).find_map(|line| match line {
        Line::Record(record) if record.attribute("kind") == "void" => {
            Some(record.attribute("type").to_owned())
        }
        _ => None,
    });
    assert_eq!(entry.as_deref(), Some("org.practice-gateway.void.v1"));
}

#[test]
fn an_answer_says_whether_the_line_holds_a_point_also_after_rotation_and_a_restart() {
    let directory = Arc::new(tempfile::tempdir().unwrap());
    let mut first = Sender::new(&lane("clinical"), 1);
    let old = first.take(90);
    let mut second = Sender::after(&first, 2);
    let new = second.take(20);
    let mut running = Running::in_store(&directory, 3_000);
    for group in old.chunks(7).chain(new.chunks(3)) {
        running.send_together(group);
        running.through(&second, &format!("{}", group[0].envelope.chain));
    }
    running.finish();
    assert!(files_of(directory.path(), &first.lane).unwrap().len() > 5);
    running = Running::in_store(&directory, 3_000);
    let holds = |point: Through, nonce: String| {
        running.ask_about(&second, Some(point), &nonce);
        loop {
            match running.answer() {
                Answer::Receipt { nonce: Some(answered), holds_point, end, .. } if answered == nonce => {
                    assert_eq!(end, Some(second.end()));
                    return holds_point;
                }
                _ => {}
            }
        }
    };
    for entry in old.iter().chain(&new) {
        let (epoch, through, chain) = (entry.envelope.epoch, entry.envelope.sequence, entry.envelope.chain);
        let point = Through { epoch, through, chain };
        assert_eq!(holds(point, format!("t{epoch}{through}")), Some(true), "{through}");
        let other = Through { chain: old[0].envelope.chain.next(9, entry.envelope.digest(b"")), ..point };
        assert_eq!(holds(other, format!("f{epoch}{through}")), Some(false), "{through}");
    }
    let beyond = [Through { through: 91, ..first.end() }, Through { through: 21, ..second.end() }];
    for (at, point) in beyond.into_iter().enumerate() {
        assert_eq!(holds(point, format!("beyond {at}")), Some(false));
    }
    running.ask(&second, "no point");
    let Answer::Receipt { holds_point: None, .. } = running.answer() else { panic!("it named none") };
}

#[test]
fn the_centre_admits_exactly_the_epoch_that_waits() {
    let mut running = Running::start();
    let mut first = Sender::new(&lane("clinical"), 1);
    running.send_together(&first.take(3));
    assert_eq!(running.through(&first, "a").0, 3);
    assert_eq!(
        admit(&running, Some(lane("clinical")), WaitReason::Deleted),
        Err(NotAdmitted::Nothing(lane("clinical")))
    );
    let mut present = Sender::after(&first, 2);
    let pruned = present.next_of(&entry_for(&first, (4, 9), EntryKind::Pruned, 0xabc));
    let behind = present.next(99, b"after them");
    // Of another epoch, which the gateway does not name: a broker repeats it.
    let mut other = Sender::after(&first, 3);
    let replayed = other.next_of(&entry_for(&first, (4, 9), EntryKind::Pruned, 0xdef));
    running.ask(&present, "b");
    // Nobody is asked about what the gateway has not signed.
    let mut forged = pruned.clone();
    forged.envelope.signature = replayed.envelope.signature;
    running.send(&forged);
    let (_, before) = running.through(&present, "forged");
    assert_eq!(gaps(&running, before), [(GapCode::Unverified, 1)]);
    assert_eq!(admit(&running, None, WaitReason::Deleted), Err(NotAdmitted::NothingAnywhere));
    for _ in 0..2 {
        running.send_together(&[pruned.clone(), behind.clone(), replayed.clone()]);
        assert_eq!(running.through(&present, "waits").0, 0);
    }
    let waiting = list_waits(&running, present.epoch);
    assert!(waiting.contains("stands for 6 transactions"), "{waiting}");
    let admitted = admit(&running, None, WaitReason::Deleted).unwrap();
    let [one] = &admitted[..] else { panic!("{admitted:?}") };
    assert_eq!((one.name(), one.waits.epoch, one.waits.transactions), (lane("clinical"), present.epoch, 6));
    assert_eq!((one.waits.reason, one.waits.sequence), (WaitReason::Deleted, 1));
    running.send_together(&[replayed, pruned, behind]);
    assert_eq!(running.through(&present, "c").0, 2);
    // What was admitted is the present epoch; the next one waits again.
    let mut next = Sender::after(&present, 4);
    let again = next.next_of(&entry_for(&present, (1, 1), EntryKind::Pruned, 0x123));
    running.ask(&next, "d");
    running.send_together(&[again]);
    assert_eq!(running.through(&next, "e").0, 0);
    assert_eq!(
        admit(&running, Some(lane("other")), WaitReason::Deleted),
        Err(NotAdmitted::Nothing(lane("other")))
    );
    running.finish();
    let verified = verified(&running);
    assert_eq!((verified.transactions, verified.missing.len()), (5, 1));
}

/// A hub with twelve numbers of a lane, of whose files the one with 5 and 6 is missing.
fn with_a_hole() -> (Sender, Vec<Entry>, Running) {
    let directory = Arc::new(tempfile::tempdir().unwrap());
    let mut first = Sender::new(&lane("clinical"), 1);
    let all = first.take(12);
    let mut running = Running::in_store(&directory, 1_000);
    for group in all.chunks(2) {
        running.send_together(group);
        running.through(&first, &format!("{}", group[0].envelope.chain));
    }
    running.finish();
    let files = files_of(directory.path(), &first.lane).unwrap();
    fs::remove_file(&files[2]).unwrap();
    let running = Running::in_store(&directory, 1_000);
    (first, all, running)
}

#[test]
fn a_new_epoch_waits_while_a_hole_is_open_and_what_came_after_it_is_late_then() {
    let (first, all, mut running) = with_a_hole();
    // The gateway does not have what is missing any more: it goes on from the hub's end with a new epoch.
    let mut kept = first.clone();
    (kept.sequence, kept.chain) = (4, all[3].envelope.chain);
    let mut present = Sender::after(&kept, 2);
    let group = [present.again(&all[7]), present.next(99, b"new")];
    running.ask(&present, "a");
    running.send_together(&group);
    let (through, before) = running.through(&present, "b");
    assert_eq!((through, gaps(&running, before).contains(&(GapCode::Admit, 1))), (0, true));
    // What refills it is taken meanwhile.
    running.send_together(&all[4..5]);
    assert_eq!(running.through(&first, "c").0, 5);
    assert_eq!(
        admit(&running, Some(lane("clinical")), WaitReason::Hole),
        Err(NotAdmitted::Nothing(lane("clinical"))),
        "its gateway is in the first one again"
    );
    let mut kept = first.clone();
    (kept.sequence, kept.chain) = (5, all[4].envelope.chain);
    let mut present = Sender::after(&kept, 3);
    let group = [present.again(&all[7]), present.next(99, b"new")];
    running.ask(&present, "d");
    running.send_together(&group);
    assert_eq!(running.through(&present, "e").0, 0);
    let admitted = admit(&running, Some(lane("clinical")), WaitReason::Hole).unwrap();
    assert_eq!((admitted[0].waits.reason, admitted[0].waits.epoch), (WaitReason::Hole, present.epoch));
    assert_eq!(admitted[0].set_aside, 3);
    running.send_together(&group);
    assert_eq!(running.through(&present, "f").0, 2);
    running.finish();
    let verified = verified(&running);
    let late: Vec<u64> = verified.late.iter().map(|late| late.at.through).collect();
    assert_eq!((verified.transactions, late), (7, vec![7, 9, 10, 11, 12]));
    assert_eq!(verified.watermarks, [kept.end(), present.end()]);
}

#[test]
fn what_its_gateway_has_deleted_of_a_hole_is_lost_for_good_and_the_lane_goes_on_after_it() {
    let (first, all, mut running) = with_a_hole();
    let mut kept = first.clone();
    (kept.sequence, kept.chain) = (4, all[3].envelope.chain);
    // An entry for a part only, and a sender's transaction that looks like an entry for all of it.
    let mut looks = entry_for(&first, (5, 6), EntryKind::Pruned, 1);
    looks.kind = Kind::Transaction;
    for (number, not) in [entry_for(&first, (6, 8), EntryKind::Pruned, 2), looks].into_iter().enumerate() {
        let mut present = Sender::after(&kept, 10 + number as u128);
        running.ask(&present, &format!("not {number}"));
        running.send_together(&[present.next_of(&not)]);
        assert_eq!(running.through(&present, &format!("still not {number}")).0, 0);
        let waits = list_waits(&running, present.epoch);
        assert!(waits.contains("sends something else than that part"), "{waits}");
    }
    let mut present = Sender::after(&kept, 2);
    let pruned = present.next_of(&entry_for(&first, (5, 8), EntryKind::Pruned, 3));
    running.ask(&present, "a");
    running.send_together(std::slice::from_ref(&pruned));
    assert_eq!(running.through(&present, "b").0, 0);
    for reason in [WaitReason::Hole, WaitReason::Deleted, WaitReason::Epochs] {
        let error = admit(&running, Some(lane("clinical")), reason).unwrap_err();
        assert!(error.to_string().contains("does not wait for that now"), "{error}");
        assert_eq!(admit(&running, None, reason), Err(NotAdmitted::NothingAnywhere));
    }
    let admitted = admit(&running, Some(lane("clinical")), WaitReason::Lost).unwrap();
    assert_eq!((admitted[0].waits.reason, admitted[0].set_aside), (WaitReason::Lost, 0));
    // The line ends where its files end, and every answer names what is lost.
    running.ask(&present, "c");
    let lost = loop {
        if let Answer::Receipt { nonce: Some(nonce), end, lost, .. } = running.answer()
            && nonce == "c"
        {
            assert_eq!(end, Some(first.end()));
            break lost;
        }
    };
    let epoch = first.epoch;
    assert_eq!(lost, [LostNumbers { epoch, from: 5, through: 6, newest: epoch }]);
    // What is lost is new, what is not is known, and the entry is not wanted any more.
    let mut next = Sender::after(&first, 3);
    running.ask(&next, "d");
    running.send_together(&[next.again(&all[4]), next.again(&all[7])]);
    assert_eq!(running.through(&next, "e").0, 2);
    running.finish();
    let verified = verified(&running);
    assert_eq!((verified.transactions, verified.advances), (11, 1));
    assert_eq!((verified.missing, verified.watermarks), (vec![], vec![first.end(), next.end()]));
}

/// What `practice-hub list` says of what waits, once it says it of this epoch: the view is written a few seconds later at most.
fn list_waits(running: &Running, epoch: Epoch) -> String {
    loop {
        running.arrivals.as_ref().unwrap().send(Arrival::Tick).ok().unwrap();
        let text = report::list(running.directory.path(), unix_millis_now()).unwrap().text;
        if text.contains("WAITS") && text.contains(&epoch.to_string()) {
            return text;
        }
        std::thread::yield_now();
    }
}

#[test]
fn a_kind_that_is_not_known_is_stored_as_it_is() {
    let mut running = Running::start();
    let mut sender = Sender::new(&lane("clinical"), 1);
    let plain = sender.clone().next_of(&transaction(7, b"body"));
    let (content_type, mut properties) = plain.envelope.into_properties();
    properties.iter_mut().filter(|(name, _)| name == "kind").for_each(|(_, kind)| *kind = "newer".into());
    let envelope =
        pgw_core::wire::envelope::Envelope::from_properties(Some(content_type), properties).unwrap();
    let newer = pgw_hub::store::Entry::new(sender.lane.clone(), envelope, "body".into());
    running.send_together(&[sender.again(&newer)]);
    assert_eq!(running.through(&sender, "a").0, 1);
    running.finish();
    let path = files_of(running.directory.path(), &sender.lane).unwrap().remove(0);
    assert!(fs::read_to_string(path).unwrap().contains(r#""kind":"newer""#));
    assert_eq!(verified(&running).transactions, 1);
}

#[test]
fn too_many_epochs_in_a_day_wait_for_the_centre_and_forged_ones_do_not_count() {
    let mut running = Running::start();
    let mut last = Sender::new(&lane("clinical"), 1);
    running.send_together(&last.take(1));
    assert_eq!(running.through(&last, "first").0, 1);
    for forged in 0..70 {
        let mut other = Sender::after(&last, 1_000 + forged).take(1).remove(0);
        other.envelope.signature = None;
        running.send(&other);
        running.through(&last, &format!("forged {forged}"));
    }
    let begin = |running: &Running, last: &Sender, number: u128| {
        let mut next = Sender::after(last, number);
        let entry = next.take(1);
        running.ask(&next, &format!("asks {number}"));
        running.send_together(&entry);
        (running.through(&next, &format!("through {number}")).0, next, entry)
    };
    // The first epoch of the lane counts as well.
    for number in 2..=64 {
        let (through, next, _) = begin(&running, &last, number);
        assert_eq!(through, 1, "{number}");
        last = next;
    }
    let (through, next, entry) = begin(&running, &last, 65);
    assert_eq!(through, 0);
    let admitted = admit(&running, Some(lane("clinical")), WaitReason::Epochs).unwrap();
    assert_eq!((admitted[0].waits.reason, admitted[0].waits.epoch), (WaitReason::Epochs, next.epoch));
    running.send_together(&entry);
    assert_eq!(running.through(&next, "admitted").0, 1);
    running.finish();
    assert_eq!(verified(&running).watermarks.len(), 65);
}

#[test]
fn what_a_bundle_brings_can_be_admitted_without_a_link() {
    let mut running = Running::start();
    let mut first = Sender::new(&lane("clinical"), 1);
    let all = first.take(3);
    let import = |running: &Running, entries: &[Entry]| {
        let one = |entry: &Entry| (entry.envelope.clone(), entry.body.clone().unwrap());
        let part = Part { lane: lane("clinical"), transactions: entries.iter().map(one).collect() };
        let (answer, answered) = mpsc::sync_channel(1);
        running.arrivals.as_ref().unwrap().send(Arrival::Import(Box::new(part), answer)).ok().unwrap();
        answered.recv().unwrap()
    };
    assert_eq!(import(&running, &all).unwrap().stored, 3);
    let mut present = Sender::after(&first, 2);
    let group = [
        present.next_of(&entry_for(&first, (4, 9), EntryKind::Pruned, 0xabc)),
        present.next(99, b"after them"),
    ];
    let waits = NotTaken::Admit { lane: lane("clinical"), epoch: present.epoch, sequence: 1, deleted: true };
    assert_eq!(import(&running, &group), Err(waits));
    let admitted = admit(&running, Some(lane("clinical")), WaitReason::Deleted).unwrap();
    assert_eq!((admitted[0].waits.epoch, admitted[0].waits.transactions), (present.epoch, 6));
    assert_eq!(import(&running, &group).unwrap().stored, 2);
    running.finish();
    assert_eq!(verified(&running).watermarks, [first.end(), present.end()]);
}
