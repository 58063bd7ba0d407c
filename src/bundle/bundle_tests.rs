//! Complete bundles, and every way to damage one.

use pgw_core::transaction::{Body, Clock, Kind, Transaction, TransactionId};
use uuid::Uuid;

use super::*;

fn owner() -> Owner {
    Owner {
        schema: 1,
        practice: Practice::new("B86022").unwrap(),
        gateway: Gateway::new("gw1").unwrap(),
        time: "2026-11-22T22:12:10.123Z".into(),
        version: "1".into(),
    }
}

fn lane() -> Lane {
    Lane::new("clinical").unwrap()
}

type One = (Envelope, Vec<u8>);

/// Transactions `first ..= last` of one epoch, chained.
fn chained(epoch: u128, first: u64, last: u64) -> (ChainValue, Vec<One>) {
    chained_as(epoch, first, last, "t", None)
}

/// The same of another type, in an epoch that begins at `link`.
fn chained_as(
    epoch: u128,
    first: u64,
    last: u64,
    event_type: &str,
    link: Option<Through>,
) -> (ChainValue, Vec<One>) {
    let (epoch, name) = (Epoch(Uuid::from_u128(epoch)), owner().lane(&lane()));
    let mut chain = ChainValue::first(&name, epoch, link.as_ref());
    let mut before = chain;
    let mut items = Vec::new();
    for sequence in 1..=last {
        if sequence == first {
            before = chain;
        }
        let body = format!("body {sequence}\nwith a line end").into_bytes();
        let transaction = Transaction {
            id: TransactionId(Uuid::from_u128(u128::from(sequence))),
            time: 0,
            event_type: event_type.into(),
            kind: if sequence == 2 { Kind::Void } else { Kind::Transaction },
            content_type: "text/plain".into(),
            sender: "x".into(),
            given_sender: None,
            key: String::new(),
            shows_key: false,
            correlation_id: String::new(),
            trace_parent: String::new(),
            clock: Clock::Synced,
            body: Body::new(body.clone()),
        };
        let mut envelope = Envelope::new(&name, epoch, sequence, chain, 0, &transaction).linked(link);
        envelope.chain = chain.next(sequence, envelope.digest(&body));
        chain = envelope.chain;
        if sequence >= first {
            items.push((envelope, body));
        }
    }
    (before, items)
}

fn head(before: ChainValue, first: &One) -> Head {
    let (epoch, first_number) = (first.0.epoch, first.0.sequence);
    Head { lane: lane(), epoch, first: first_number, position: first_number, before, link: first.0.link }
}

fn write(before: ChainValue, items: &[One]) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new(), owner()).unwrap();
    writer.head(head(before, &items[0])).unwrap();
    for (envelope, body) in items {
        writer.transaction(envelope.clone(), body).unwrap();
    }
    let last = &items[items.len() - 1].0;
    let foot = Foot {
        lane: lane(),
        count: items.len() as u64,
        epoch: last.epoch,
        last: last.sequence,
        chain: last.chain,
        stopped_before: None,
    };
    writer.foot(foot).unwrap();
    writer.finish().unwrap()
}

fn read(bundle: &[u8]) -> Result<Vec<One>, BundleError> {
    let mut reader = Reader::new(bundle)?;
    let mut found = Vec::new();
    while let Some(item) = reader.next_item()? {
        if let Item::Transaction(envelope, body) = item {
            found.push((*envelope, body.to_vec()));
        }
    }
    Ok(found)
}

#[test]
fn a_bundle_goes_there_and_back() {
    let (before, items) = chained(7, 5, 9);
    assert_eq!(read(&write(before, &items)).unwrap(), items);
}

#[test]
fn what_is_missing_altered_swapped_or_repeated_is_named() {
    let (before, items) = chained(7, 5, 9);
    let error = |items: &[One]| read(&write(before, items)).unwrap_err().to_string();

    let mut less = items.clone();
    less.remove(2);
    assert!(error(&less).contains("sequences 7 to 7 of epoch"), "{}", error(&less));
    let mut altered = items.clone();
    altered[2].1[0] ^= 1;
    assert!(error(&altered).contains("sequence 7 of epoch") && error(&altered).contains("altered"));
    let mut renamed = items.clone();
    let (chain, other) = (renamed[3].0.chain, chained_as(7, 5, 9, "other", None).1);
    renamed[3].0 = other[3].0.clone();
    renamed[3].0.chain = chain;
    assert!(error(&renamed).contains("sequence 8 of epoch"), "{}", error(&renamed));
    let mut swapped = items.clone();
    swapped.swap(1, 2);
    assert!(error(&swapped).contains("sequences 6 to 6"), "{}", error(&swapped));
    let mut repeated = items.clone();
    repeated.insert(2, items[1].clone());
    assert!(error(&repeated).contains("sequence 6 of epoch") && error(&repeated).contains("repeated"));
    // Another chain value before it: the first one shows it.
    let other = read(&write(ChainValue([3; 32]), &items)).unwrap_err().to_string();
    assert!(other.contains("sequence 5"), "{other}");
}

#[test]
fn a_bundle_that_is_cut_is_no_bundle() {
    let (before, items) = chained(7, 1, 4);
    let whole = write(before, &items);
    for end in 0..whole.len() {
        assert!(read(&whole[..end]).is_err(), "cut at {end} of {}", whole.len());
    }
    let after = read(&whole[..whole.len() - 200]).unwrap_err().to_string();
    assert!(after.contains("sequence 4 of lane clinical"), "{after}");
    let mut longer = whole;
    longer.push(b'\n');
    assert!(read(&longer).is_err());
}

fn end_of(items: &[One]) -> Through {
    let last = &items[items.len() - 1].0;
    Through { epoch: last.epoch, through: last.sequence, chain: last.chain }
}

#[test]
fn an_epoch_begins_where_the_one_before_it_ends() {
    let (before, mut items) = chained(7, 5, 9);
    items.extend(chained_as(8, 1, 3, "t", Some(end_of(&items))).1);
    assert_eq!(read(&write(before, &items)).unwrap(), items);
    // At another end, or at none.
    for link in [Some(end_of(&items[..3])), None] {
        let mut elsewhere = items[..5].to_vec();
        elsewhere.extend(chained_as(8, 1, 3, "t", link).1);
        let error = read(&write(before, &elsewhere)).unwrap_err();
        assert!(matches!(error, BundleError::Link { .. }), "{error}");
    }
}

#[test]
fn a_lane_that_begins_an_epoch_names_its_link() {
    let link = end_of(&chained(7, 5, 9).1);
    let (before, items) = chained_as(8, 1, 3, "t", Some(link));
    assert_eq!(read(&write(before, &items)).unwrap(), items);
    // The head's link is not the one that the first number names.
    let mut other = items.clone();
    other[0].0.link = None;
    let mut writer = Writer::new(Vec::new(), owner()).unwrap();
    writer.head(head(before, &items[0])).unwrap();
    writer.transaction(other[0].0.clone(), &other[0].1).unwrap();
    let error = read(&writer.finish().unwrap()).unwrap_err();
    assert!(matches!(error, BundleError::Link { .. }), "{error}");
    // A link where no epoch begins.
    let mut writer = Writer::new(Vec::new(), owner()).unwrap();
    writer.head(Head { first: 2, ..head(before, &items[0]) }).unwrap();
    let error = read(&writer.finish().unwrap()).unwrap_err();
    assert!(matches!(error, BundleError::Form(..)), "{error}");
}
