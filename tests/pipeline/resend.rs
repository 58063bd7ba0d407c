//! Confirmed transactions are sent again, on a person's order and on a hub's command: with the same ids, stored once;
//! and what the hub's files have lost or altered is recovered.

use std::path::Path;
use std::process::Output;
use std::sync::mpsc;
use std::time::Duration;

use pgw_core::transaction::{Hub, Lane};
use pgw_core::wire::command::{Command, CommandAddress, CommandResult, Order};
use pgw_core::wire::signature::{PROPERTY, SigningKey, Word};
use pgw_core::wire::{SCHEMA, from_json, to_json};
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{Packet, PublishProperties};
use rumqttc::v5::{Client, Event, MqttOptions};

use crate::harness;
use crate::harness::eventually_blocking;
use crate::harness::pipeline::{PATIENCE, Pipeline};
use crate::harness::site::{Site, SiteOptions};
use crate::harness::wire::Wire;

fn printed(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

fn confirmed(pipeline: &Pipeline, senders: usize, each: usize) -> Vec<Vec<Vec<u8>>> {
    let safe = pipeline.more_from(senders, 0..each);
    pipeline.site.wait_for("confirmed_total", (senders * each) as u64, PATIENCE);
    safe
}

#[test]
fn a_person_has_confirmed_transactions_sent_again_and_the_hub_stores_none_twice() {
    let mut pipeline = Pipeline::start(SiteOptions::default());
    let wire = Wire::watch(pipeline.broker.plain_port());
    let safe = confirmed(&pipeline, 1, 30);
    let again = |site: &Site, range: [&str; 2]| {
        site.gateway_command(&[
            "outbox",
            "resend",
            "--lane",
            "clinical",
            "--from",
            range[0],
            "--through",
            range[1],
        ])
    };
    let done = again(&pipeline.site, ["3", "12"]);
    assert!(done.status.success(), "{}", printed(&done));
    assert!(printed(&done).contains("clinical: 10 transactions sent again"), "{}", printed(&done));
    eventually_blocking("ten bodies to be seen twice", PATIENCE, || (wire.repeated() == 10).then_some(()));
    let refused = again(&pipeline.site, ["25", "31"]);
    assert_eq!(refused.status.code(), Some(65));
    assert!(printed(&refused).contains("confirmed through 30 only"), "{}", printed(&refused));
    assert_eq!(again(&pipeline.site, ["12", "3"]).status.code(), Some(65));

    pipeline.cut_off();
    let refused = again(&pipeline.site, ["3", "12"]);
    assert!(printed(&refused).contains("the link is down"), "{}", printed(&refused));
    pipeline.proxy.set(harness::Fault::Pass);
    // A store that has lost them accepts none out of order: it asks for all, and gets all.
    pipeline.site.kill_hub();
    std::fs::remove_dir_all(pipeline.site.store().join("B86022")).unwrap();
    pipeline.site.start_hub();
    pipeline.site.wait_for_link(true);
    let _ = again(&pipeline.site, ["3", "12"]);
    pipeline.check(&safe);
}

/// The lane's file with its transactions' lines changed by `change`.
fn damage(file: &Path, change: impl Fn(u64, &str) -> Option<String>) {
    let text = std::fs::read_to_string(file).unwrap();
    let mut lines = String::new();
    for line in text.lines() {
        let value: serde_json::Value = serde_json::from_str(line).unwrap();
        // A signature that is kept names the number before it; it is no transaction.
        let number = value.get("pgw").is_none().then(|| value["sequence"].as_str());
        let sequence = number.flatten().and_then(|text| text.parse().ok());
        if let Some(line) = sequence.map_or(Some(line.to_owned()), |sequence| change(sequence, line)) {
            lines += &line;
            lines += "\n";
        }
    }
    std::fs::write(file, lines).unwrap();
}

#[test]
fn what_the_hubs_files_have_lost_or_altered_is_recovered_from_what_the_gateway_sends_again() {
    let mut pipeline = Pipeline::start(SiteOptions::default());
    let safe = confirmed(&pipeline, 1, 40);
    // The hub checks the last group at its start, and a damaged one is sent again anyway: these are older.
    pipeline.more_from(1, 40..45);
    pipeline.site.wait_for("confirmed_total", 45, PATIENCE);
    let file = pipeline.site.store().join("B86022/gw1/clinical.ndjson");
    pipeline.site.kill_hub();
    damage(&file, |sequence, line| match sequence {
        7 => Some(line.replace("\"data_base64\":\"", "\"data_base64\":\"AAAA")),
        11 | 12 => None,
        20 => Some("nothing that can be read".to_owned()),
        30 => Some(line.replace("\"chain\":\"", "\"chain\":\"0").replacen("0\",\"kind", "\",\"kind", 1)),
        _ => Some(line.to_owned()),
    });
    let damaged = std::fs::read(&file).unwrap();
    let not_running = pipeline.site.hub_command(&["resend", "B86022/gw1/clinical", "--from", "7"]);
    assert_eq!(not_running.status.code(), Some(69), "{}", printed(&not_running));
    assert!(printed(&not_running).contains("the hub is not running"), "{}", printed(&not_running));
    pipeline.site.start_hub();

    let verified = pipeline.site.hub_command(&["verify"]);
    assert_eq!(verified.status.code(), Some(65), "{}", printed(&verified));
    let proposed: Vec<String> = printed(&verified)
        .lines()
        .filter_map(|line| Some(line.split_once("what to do: practice-hub ")?.1.to_owned()))
        .collect();
    let ranges: Vec<&str> = proposed.iter().map(|command| command.split_once("--from ").unwrap().1).collect();
    assert_eq!(
        ranges,
        ["7 --through 7", "11 --through 12", "20 --through 20", "30 --through 30"],
        "{}",
        printed(&verified)
    );

    for command in &proposed {
        let words: Vec<&str> = command.split(' ').collect();
        // The hub has only just been started.
        let asked = eventually_blocking("the hub to run and to know the gateway as online", PATIENCE, || {
            let asked = pipeline.site.hub_command(&words);
            // The gateway may get the command before it has asked this hub for its position: then the hub accepts
            // nothing from it.
            let early = ["not online", "not running", "run this command again"]
                .iter()
                .any(|word| printed(&asked).contains(word));
            (!early).then_some(asked)
        });
        assert!(asked.status.success(), "{command}: {}", printed(&asked));
    }
    let verified = pipeline.site.hub_command(&["verify"]);
    assert!(verified.status.success(), "{}", printed(&verified));
    assert!(printed(&verified).contains("recovered: sequences 11 to 12 of epoch"), "{}", printed(&verified));
    assert!(printed(&verified).contains("whole, 45 transactions"), "{}", printed(&verified));
    assert_eq!(std::fs::read(&file).unwrap(), damaged, "what is stored stays as it is");

    let unknown = pipeline.site.hub_command(&["resend", "B86022/gw1/clinical", "--from", "46"]);
    assert_eq!(unknown.status.code(), Some(65));
    assert!(printed(&unknown).contains("a range from 1 to 45"), "{}", printed(&unknown));
    // A copy with a wrong chain value recovers nothing.
    let copies = pipeline.site.store().join("B86022/gw1/clinical.again.ndjson");
    damage(&copies, |sequence, line| match sequence {
        12 => Some(line.replace("\"data_base64\":\"", "\"data_base64\":\"AAAA")),
        _ => Some(line.to_owned()),
    });
    let verified = pipeline.site.hub_command(&["verify"]);
    assert_eq!(verified.status.code(), Some(65));
    assert!(printed(&verified).contains("sequences 12 to 12 of epoch"), "{}", printed(&verified));
    assert_eq!(safe[0].len(), 40);
}

/// A client that sends commands as the hub and receives the results.
struct CommandSender {
    client: Client,
    results: mpsc::Receiver<CommandResult>,
}

impl CommandSender {
    fn new(port: u16) -> Self {
        let mut options = MqttOptions::new("commander", "127.0.0.1", port);
        options.set_keep_alive(Duration::from_secs(30));
        let (client, mut connection) = Client::new(options, 16);
        let (sender, results) = mpsc::channel();
        let (ready, is_ready) = mpsc::channel();
        let subscriber = client.clone();
        std::thread::spawn(move || {
            for event in connection.iter() {
                match event {
                    Ok(Event::Incoming(Packet::ConnAck(_))) => {
                        subscriber.try_subscribe("pgw/v1/+/+/cmd/result", QoS::AtLeastOnce).unwrap();
                    }
                    Ok(Event::Incoming(Packet::SubAck(_))) => ready.send(()).unwrap(),
                    Ok(Event::Incoming(Packet::Publish(publish))) => {
                        let _ = sender.send(from_json(&publish.payload).unwrap());
                    }
                    Ok(_) => {}
                    Err(_) => return,
                }
            }
        });
        is_ready.recv_timeout(PATIENCE).unwrap();
        Self { client, results }
    }

    fn send(&self, key: &SigningKey, command: &Command) {
        let topic = "pgw/v1/B86022/gw1/cmd";
        let payload = to_json(command);
        let properties = PublishProperties {
            user_properties: vec![(
                PROPERTY.to_owned(),
                key.sign(Word::Command, topic, &payload).to_string(),
            )],
            ..PublishProperties::default()
        };
        self.client.publish_with_properties(topic, QoS::AtLeastOnce, false, payload, properties).unwrap();
    }

    fn result(&self) -> CommandResult {
        self.results.recv_timeout(PATIENCE).unwrap()
    }
}

#[test]
fn a_command_that_is_forged_old_expired_or_unknown_is_not_obeyed_and_a_good_one_once() {
    let pipeline = Pipeline::start(SiteOptions::default());
    let wire = Wire::watch(pipeline.broker.plain_port());
    confirmed(&pipeline, 1, 10);
    let key = SigningKey::from_pkcs8(&std::fs::read(pipeline.site.path("signing.key")).unwrap()).unwrap();
    let forged = SigningKey::from_pkcs8(&SigningKey::generate().unwrap()).unwrap();
    let list = pipeline.site.gateway_command(&["outbox", "show", "--json", "4"]);
    let shown: serde_json::Value = serde_json::from_slice(&list.stdout).unwrap();
    let epoch = serde_json::from_value(shown["epoch"].clone()).unwrap();
    let order = |from, through| Order::Resend { lane: Lane::new("clinical").unwrap(), epoch, from, through };
    let nonce = wire.command_nonce();
    let numbers = std::cell::Cell::new(0);
    let command = |id: &str, order: Order| {
        numbers.set(numbers.get() + 1);
        Command {
            schema: SCHEMA,
            id: id.to_owned(),
            hub: Hub::new("hub1").unwrap(),
            address: CommandAddress { nonce: nonce.clone(), number: numbers.get(), expires_seconds: 600 },
            order,
        }
    };
    let sender = CommandSender::new(pipeline.broker.plain_port());

    sender.send(&forged, &command("forged", order(2, 3)));
    sender.send(&key, &Command { hub: Hub::new("hub2").unwrap(), ..command("foreign", order(2, 3)) });
    let good = command("old", order(2, 3));
    let other = CommandAddress { nonce: "00".repeat(16), ..good.address.clone() };
    sender.send(&key, &Command { address: other, ..good.clone() });
    let result = sender.result();
    assert_eq!((result.id.as_str(), result.done), ("old", 0), "the forged ones get no answer: {result:?}");
    assert!(result.detail.contains("for another connection"), "{result:?}");
    let late = CommandAddress { expires_seconds: 0, ..good.address.clone() };
    sender.send(&key, &Command { address: late, id: "late".into(), ..good.clone() });
    let result = sender.result();
    assert!(result.done == 0 && result.detail.contains("expired"), "{result:?}");
    sender.send(&key, &command("unknown", order(2, 30)));
    let result = sender.result();
    assert!(result.done == 0 && result.detail.contains("confirmed through 10 only"), "{result:?}");
    sender.send(&key, &Command { id: "earlier".into(), ..good });
    let result = sender.result();
    assert!(result.done == 0 && result.detail.contains("is not above"), "{result:?}");
    sender.send(&key, &command("reboot", Order::Unknown));
    let result = sender.result();
    assert!(result.done == 0 && result.detail.contains("does not know the command"), "{result:?}");
    assert_eq!(wire.repeated(), 0, "nothing of it was obeyed");

    let good = command("good", order(2, 3));
    sender.send(&key, &good);
    sender.send(&key, &good);
    let result = sender.result();
    assert_eq!((result.id.as_str(), result.done, result.transactions), ("good", 1, 2), "{result:?}");
    sender.send(&key, &command("next", order(5, 5)));
    let result = sender.result();
    assert_eq!(
        (result.id.as_str(), result.transactions),
        ("next", 1),
        "the good one was obeyed once: {result:?}"
    );
    eventually_blocking("three bodies to be seen twice", PATIENCE, || (wire.repeated() == 3).then_some(()));
}
