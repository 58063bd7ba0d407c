//! `sequence` orders as text: the packages that the CloudEvents project publishes sort a long lane by it, and find the order of
//! its chain.

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::Path;
use std::process::Command;

use pgw_core::chain::ChainValue;
use pgw_core::transaction::{Body, Clock, Epoch, Kind, LaneName, Transaction, TransactionId};
use pgw_core::wire::envelope::Envelope;
use serde_json::{Map, Value};

use crate::clients::{clients, node, python, succeeded};

const COUNT: u64 = 1_000_000;
/// Has no factor in common with [`COUNT`]: its multiples are every number once, in no order.
const STEP: u64 = 382_017;
/// What CloudEvents requires, and what is compared.
const ATTRIBUTES: [&str; 6] = ["specversion", "id", "source", "type", "sequence", "chain"];

/// The chain values of sequences 1 to [`COUNT`]; their envelopes are in the file, one a line in JSON, in no order.
fn lane(path: &Path) -> Vec<String> {
    let lane: LaneName = "B86022/gw1/clinical".parse().expect("a lane");
    let epoch = Epoch(uuid::Uuid::from_u128(1));
    let transaction = Transaction {
        id: TransactionId(uuid::Uuid::from_u128(2)),
        time: 0,
        event_type: String::from("org.practice-gateway.hl7v2.oru_r01.v1"),
        kind: Kind::Transaction,
        content_type: String::from("application/hl7-v2+er7"),
        sender: String::new(),
        given_sender: None,
        key: String::new(),
        shows_key: false,
        correlation_id: String::new(),
        trace_parent: String::new(),
        clock: Clock::Synced,
        body: Body::new(Vec::new()),
    };
    let digest = transaction.digest(&lane);
    let mut value = ChainValue::first(&lane, epoch, None);
    let chain: Vec<ChainValue> = (1..=COUNT)
        .map(|sequence| {
            value = value.next(sequence, digest);
            value
        })
        .collect();
    let mut file = BufWriter::new(File::create(path).expect("a file"));
    for number in 0..COUNT {
        let at = number * STEP % COUNT;
        let value = chain[usize::try_from(at).expect("small")];
        let (_, properties) = Envelope::new(&lane, epoch, at + 1, value, 0, &transaction).into_properties();
        let wanted = properties.into_iter().filter(|(name, _)| ATTRIBUTES.contains(&name.as_str()));
        let event: Map<String, Value> = wanted.map(|(name, value)| (name, value.into())).collect();
        assert_eq!(event.len(), ATTRIBUTES.len());
        serde_json::to_writer(&mut file, &event).expect("written");
        file.write_all(b"\n").expect("written");
    }
    file.flush().expect("written");
    chain.iter().map(ChainValue::to_string).collect()
}

fn sorted(mut command: Command, script: &str, events: &Path) -> String {
    command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients").join(script));
    command.stdin(File::open(events).expect("the events"));
    succeeded(&command.output().expect("the decoder is installed"))
}

#[test]
fn cloudevents_of_pypi_and_npm_sort_a_million_sequences_into_the_order_of_the_chain() {
    let Some(clients) = clients("the order of sequences", false) else { return };
    let directory = tempfile::tempdir().expect("a directory");
    let events = directory.path().join("events");
    let chain = lane(&events);
    let mut judges = vec![("PyPI", sorted(python(&clients), "order_pypi.py", &events))];
    if std::env::var_os("PGW_CLIENTS_NODE").is_some() {
        judges.push(("npm", sorted(node(&clients), "order-npm.cjs", &events)));
    }
    for (judge, sorted) in judges {
        let mut sequence = 0;
        for (found, expected) in sorted.lines().zip(&chain) {
            sequence += 1;
            assert_eq!(found, expected, "{judge}, place {sequence}");
        }
        assert_eq!((sequence, sorted.lines().count()), (COUNT, chain.len()), "{judge}");
    }
}
