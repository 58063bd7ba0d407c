//! The doors, driven by independent client programs: what they are told is safe must be in the hub's store byte for
//! byte, once and in order.
//!
//! `tests/all.sh` installs the clients, pinned, and passes their place in `PGW_CLIENTS` (and `PGW_CLIENTS_NODE=1` if
//! node is there). If `tests/all.sh` started the run a missing client is a failure; in any other run each test prints
//! `NOT RUN`.

use std::fmt::Write as _;
use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use base64::Engine as _;
use pgw_core::chain::{ChainValue, Digest};
use pgw_core::text::from_hex;
use pgw_core::transaction::Epoch;
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::Packet;
use rumqttc::v5::{Client, Event, MqttOptions};
use serde_json::{Value, json};

use crate::harness::proof::Proof;
use crate::harness::senders::{connect, exchange, message, positive};
use crate::harness::site::{Site, SiteOptions, adds_up};
use crate::harness::{CertificateFiles, Certificates, Mosquitto, ports};
use crate::http_kit::curl;

const PATIENCE: Duration = Duration::from_secs(120);

/// The place of the clients; `None`, with a message, if `tests/all.sh` has not installed them.
pub(crate) fn clients(name: &str, needs_node: bool) -> Option<PathBuf> {
    let place = std::env::var_os("PGW_CLIENTS").map(PathBuf::from);
    let node = std::env::var_os("PGW_CLIENTS_NODE").is_some();
    if place.is_none() || (needs_node && !node) {
        // Bypasses the capture of a test's output, which is not shown for a test that passes.
        let _ = writeln!(std::io::stderr(), "NOT RUN: {name}: tests/all.sh installs what it needs");
        return None;
    }
    place
}

struct Pipeline {
    site: Site,
    /// TLS, with certificates of the senders.
    guarded: SocketAddr,
    /// HTTP, for everyone.
    http: SocketAddr,
    certificates: Certificates,
    broker: Mosquitto,
}

impl Pipeline {
    fn new() -> Self {
        let certificates = Certificates::new();
        let broker = Mosquitto::start(&certificates);
        let mut site = Site::new(&certificates, broker.port(), broker.port(), SiteOptions::default());
        let guarded = SocketAddr::from((Ipv4Addr::LOCALHOST, ports::reserve()));
        let http = SocketAddr::from((Ipv4Addr::LOCALHOST, ports::reserve()));
        let server = certificates.server();
        let mut config = std::fs::read_to_string(site.gateway_config()).unwrap();
        let _ = writeln!(
            config,
            "[[mllp]]\nlisten = \"{guarded}\"\ncertificate_file = {:?}\nkey_file = {:?}\nclient_ca_file = {:?}",
            server.certificate,
            server.key,
            certificates.ca()
        );
        let _ = writeln!(config, "[[http]]\nlisten = \"{http}\"");
        std::fs::write(site.gateway_config(), config).unwrap();
        site.start_hub();
        site.start_gateway();
        Self { site, guarded, http, certificates, broker }
    }

    /// Everything acknowledged is at the hub, byte for byte, once, in order.
    fn check(mut self, safe: Vec<Vec<u8>>) {
        assert!(!safe.is_empty(), "nothing was accepted: the run proves nothing");
        self.site.wait_for("confirmed_total", safe.len() as u64, PATIENCE);
        self.site.stop();
        let accepted = safe.len();
        let proof = Proof::of(&self.site.store(), &[safe]).expect("the hub's files");
        assert_eq!((proof.delivered, proof.lost, proof.repeated, proof.out_of_order), (accepted, 0, 0, 0));
        assert!(proof.chain_ok);
    }
}

/// An HTTP door for everyone, on a gateway without a link.
fn http_door(certificates: &Certificates, more: &str) -> (Site, String) {
    let mut site = Site::new(certificates, ports::reserve(), ports::reserve(), SiteOptions::default());
    let door = ports::reserve();
    let mut config = std::fs::read_to_string(site.gateway_config()).unwrap();
    let _ = writeln!(config, "[[http]]\nlisten = \"127.0.0.1:{door}\"\n{more}");
    std::fs::write(site.gateway_config(), config).unwrap();
    site.start_gateway();
    (site, format!("http://127.0.0.1:{door}"))
}

pub(crate) fn succeeded(output: &Output) -> String {
    let (printed, complained) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}\n{printed}\n{complained}", output.status);
    printed.into_owned()
}

/// Runs a script of `tests/clients/`, and returns what it sent; each message got a positive answer with its own id.
fn script(
    command: &mut Command,
    name: &str,
    port: u16,
    count: usize,
    tls: Option<(&Path, &CertificateFiles)>,
) -> Vec<Vec<u8>> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients").join(name);
    command.arg(script).arg(port.to_string()).arg(count.to_string());
    if let Some((ca, files)) = tls {
        command.arg(ca).arg(&files.certificate).arg(&files.key);
    }
    let printed = succeeded(&command.output().expect("the client is installed"));
    let sent: Vec<Vec<u8>> = printed
        .lines()
        .map(|line| {
            let line: serde_json::Value =
                serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
            assert_eq!((line["code"].as_str(), &line["answered"]), (Some("AA"), &line["id"]), "{line}");
            let sent = line["sent"].as_str().expect("what it sent");
            base64::engine::general_purpose::STANDARD.decode(sent).expect("base64")
        })
        .collect();
    assert_eq!(sent.len(), count, "{printed}");
    sent
}

pub(crate) fn python(clients: &Path) -> Command {
    Command::new(clients.join("python/bin/python3"))
}

pub(crate) fn node(clients: &Path) -> Command {
    let mut command = Command::new("node");
    command.env("NODE_PATH", clients.join("node/node_modules"));
    command
}

#[test]
fn mllp_send_of_pypi_hl7() {
    let Some(clients) = clients("mllp_send", false) else { return };
    let pipeline = Pipeline::new();
    let messages: Vec<Vec<u8>> = (0..40).map(|n| message(1, n, n * 50)).collect();
    let mut file = Vec::new();
    for message in &messages {
        file.extend_from_slice(&[&[0x0b], message.as_slice(), &[0x1c, 0x0d]].concat());
    }
    let path = pipeline.site.path("frames");
    std::fs::write(&path, file).unwrap();
    let output = Command::new(clients.join("python/bin/mllp_send"))
        .args(["--port", &pipeline.site.door.port().to_string(), "--file"])
        .arg(&path)
        .arg("127.0.0.1")
        .output()
        .expect("mllp_send is installed");
    let printed = succeeded(&output);
    let answered: Vec<&str> = printed.split("MSA|").skip(1).collect();
    assert_eq!(answered.len(), messages.len(), "{printed}");
    for (number, answer) in answered.iter().enumerate() {
        assert!(answer.starts_with(&format!("CA|1-{number}|")), "{answer}");
    }
    // The client removes the last line end before it sends.
    let sent = messages.into_iter().map(|m| m.strip_suffix(b"\r").expect("a line end").to_vec()).collect();
    pipeline.check(sent);
}

#[test]
fn the_asyncio_client_of_pypi_hl7() {
    let Some(clients) = clients("asyncio client", false) else { return };
    let pipeline = Pipeline::new();
    let sent = script(&mut python(&clients), "asyncio_client.py", pipeline.site.door.port(), 40, None);
    assert!(sent[0].contains(&0xfc), "not UTF-8, and unchanged");
    pipeline.check(sent);
}

#[test]
fn the_asyncio_client_over_tls_with_a_certificate() {
    let Some(clients) = clients("asyncio client over TLS", false) else { return };
    let pipeline = Pipeline::new();
    let (ca, files) = (pipeline.certificates.ca(), pipeline.certificates.client("lab"));
    let port = pipeline.guarded.port();
    let sent = script(&mut python(&clients), "asyncio_client.py", port, 20, Some((&ca, &files)));
    let strangers = Certificates::new();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients/asyncio_client.py");
    let stranger = strangers.client("lab");
    let mut refused = python(&clients);
    refused.arg(script).arg(port.to_string()).arg("1").arg(&ca).arg(&stranger.certificate).arg(&stranger.key);
    assert!(!refused.output().expect("python").status.success(), "a stranger's certificate got in");
    pipeline.check(sent);
}

#[test]
fn simple_hl7_of_npm() {
    let Some(clients) = clients("simple-hl7", true) else { return };
    let pipeline = Pipeline::new();
    let sent = script(&mut node(&clients), "simple-hl7.cjs", pipeline.site.door.port(), 40, None);
    pipeline.check(sent);
}

#[test]
fn node_hl7_client_of_npm() {
    let Some(clients) = clients("node-hl7-client", true) else { return };
    let pipeline = Pipeline::new();
    let mut sent = script(&mut node(&clients), "node-hl7-client.cjs", pipeline.site.door.port(), 40, None);
    let (ca, files) = (pipeline.certificates.ca(), pipeline.certificates.client("lab"));
    // Over TLS, by another door and so with other ids.
    sent.extend(script(
        &mut node(&clients),
        "node-hl7-client.cjs",
        pipeline.guarded.port(),
        10,
        Some((&ca, &files)),
    ));
    pipeline.check(sent);
}

#[test]
fn curl_sends_hl7_over_http() {
    // Debian's curl is on every machine that builds this; nothing is installed for it.
    let certificates = Certificates::new();
    let (mut site, door) = http_door(&certificates, "");
    let file = site.path("message.hl7");
    std::fs::write(&file, message(1, 1, 100)).unwrap();
    let output = Command::new("curl")
        .args(["--silent", "--fail-with-body", "--noproxy", "*", "--max-time", "60"])
        .args(["--header", "Content-Type: application/hl7-v2+er7", "--data-binary"])
        .arg(format!("@{}", file.display()))
        .arg(format!("{door}/hl7"))
        .output()
        .expect("curl");
    assert!(succeeded(&output).contains("MSA|CA|1-1|"));
    site.wait_for("accepted_total", 1, PATIENCE);
    site.stop();
}

/// Requests generated from the contract, right and wrong ones: each answer must be one that the contract allows, wrong
/// ones must be refused, and the gateway must not be harmed.
#[test]
fn schemathesis_finds_no_lie_in_the_contract() {
    let Some(clients) = clients("schemathesis", false) else { return };
    let certificates = Certificates::new();
    let (mut site, door) = http_door(&certificates, "body_limit_bytes = 50_000");
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let long = std::env::var_os("PGW_LONG").is_some();
    let mut command = Command::new(clients.join("python/bin/schemathesis"));
    command
        .env("NO_PROXY", "*")
        .env("SCHEMATHESIS_HOOKS", root.join("tests/clients/schemathesis_hooks.py"))
        .current_dir(site.store().parent().unwrap())
        .arg("--config-file")
        .arg(root.join("tests/clients/schemathesis.toml"))
        .arg("run")
        .arg(root.join("docs/openapi.yaml"))
        .args(["--url", &door, "--no-color", "--continue-on-failure", "--warnings", "off"]);
    // The daily run uses the same seed each time; the long one chooses a seed and prints it.
    command.args(match long {
        true => ["--max-examples=500", "--generation-database=none"],
        false => ["--max-examples=30", "--generation-deterministic"],
    });
    let printed = succeeded(&command.output().expect("schemathesis is installed"));
    println!("{printed}");
    let cases =
        printed.lines().find_map(|line| line.trim().split_once(" generated, ")?.0.parse::<u32>().ok());
    assert!(cases.is_some_and(|cases| cases > 300), "hardly anything was tried:\n{printed}");
    let status = site.status().expect("the gateway answers");
    adds_up(&status);
    let number = |key: &str| status[key].as_u64().unwrap();
    assert!(number("accepted_total") > 10 && number("refused_total") > 10, "{status}");
    let log = site.log("gateway");
    assert!(!log.contains(" ERROR ") && !log.contains("A panic"), "{log}");
    site.stop();
}

/// What a subscriber of the broker gets of `count` transactions, in order of arrival; a second copy of one is left
/// out. Subscribed when this returns.
fn listen(plain_port: u16, count: usize) -> std::thread::JoinHandle<Vec<Value>> {
    let (subscribed, wait) = std::sync::mpsc::channel();
    let thread = std::thread::spawn(move || {
        let mut options = MqttOptions::new("listener", "127.0.0.1", plain_port);
        options.set_keep_alive(Duration::from_secs(30));
        options.set_max_packet_size(Some(1 << 20));
        let (client, mut connection) = Client::new(options, 16);
        client.subscribe("pgw/v1/+/+/txn/+", QoS::AtLeastOnce).expect("asked");
        let mut carried: Vec<Value> = Vec::new();
        while carried.len() < count {
            match connection.recv_timeout(PATIENCE).expect("before long").expect("the broker") {
                Event::Incoming(Packet::SubAck(_)) => subscribed.send(()).expect("waited for"),
                Event::Incoming(Packet::Publish(publish)) => {
                    let properties = publish.properties.expect("properties");
                    let one = json!({
                        "content_type": properties.content_type.expect("a content type"),
                        "properties": properties.user_properties,
                        "payload": base64::engine::general_purpose::STANDARD.encode(&publish.payload),
                    });
                    if carried.iter().all(|known| known["payload"] != one["payload"]) {
                        carried.push(one);
                    }
                }
                _ => {}
            }
        }
        carried
    });
    wait.recv_timeout(PATIENCE).expect("subscribed");
    thread
}

/// The output of a decoder of `tests/clients/` for these lines.
fn decoded(mut command: Command, script: &str, lines: &str) -> Vec<Value> {
    command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients").join(script));
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the decoder is installed");
    // A decoder that gives up early prints the reason.
    let _ = child.stdin.take().unwrap().write_all(lines.as_bytes());
    let printed = succeeded(&child.wait_with_output().unwrap());
    printed.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

/// The packages that the CloudEvents project publishes must read the broker's messages, and find in them what was
/// sent.
#[test]
fn cloudevents_of_pypi_and_npm_decode_what_the_broker_carries() {
    let Some(clients) = clients("cloudevents of PyPI", false) else { return };
    let mut pipeline = Pipeline::new();
    let latin =
        b"MSH|^~\\&|LAB|SURG||PGW|1||ADT^A08^ADT_A05|7|P|2.4|||AL|||8859/1\rPID|1||X||M\xfcller\r".to_vec();
    let all: Vec<u8> = (0..=255).cycle().take(70_000).collect();
    let bundle =
        br#"{"resourceType":"Bundle","type":"message","entry":[{"resource":{"resourceType":"MessageHeader",
        "eventCoding":{"code":"servicerequest-request"}}}]}"#
            .to_vec();
    let fhir_ids = [
        "X-Request-ID: 00000000-0000-4000-8000-000000000001",
        "X-Correlation-ID: 00000000-0000-4000-8000-000000000002",
    ];
    let edifact = b"UNB+UNOA:2+1+2+260101:1200+1'".to_vec();
    // Body; expected sender, type, media type and correlation id.
    let expected = [
        (
            message(1, 1, 50),
            ["hl7v2:LAB1%7CTEST", "org.practice-gateway.hl7v2.oru_r01.v1", "application/hl7-v2+er7", ""],
        ),
        (
            latin,
            [
                "hl7v2:LAB%7CSURG",
                "org.practice-gateway.hl7v2.adt_a08.v1",
                "application/hl7-v2+er7; charset=iso-8859-1",
                "",
            ],
        ),
        (edifact, ["http:local", "uk.nhs.nhais", "application/edifact", "a b-1"]),
        (all, ["http:local", "org.practice-gateway.http.transaction.v1", "application/octet-stream", ""]),
        (
            bundle,
            [
                "fhir:local",
                "org.practice-gateway.fhir.servicerequest-request.v1",
                "application/fhir+json",
                "00000000-0000-4000-8000-000000000002",
            ],
        ),
    ];
    let listener = listen(pipeline.broker.plain_port(), expected.len());
    let mut stream = connect(pipeline.site.door).expect("the door");
    for (body, _) in &expected[..2] {
        assert!(positive(&exchange(&mut stream, body).expect("an answer")));
    }
    let post = |path: &str, headers: &[&str], body: &[u8]| {
        let headers: Vec<String> = headers.iter().map(|header| (*header).to_owned()).collect();
        let answer = curl(&format!("http://{}{path}", pipeline.http), &headers, Some(body), &[]);
        assert_eq!(answer.status, 202, "{}", answer.text());
    };
    let edifact = ["Content-Type: application/edifact", "Ce-Type: uk.nhs.nhais", "X-Correlation-ID: a b-1"];
    post("/v1/transactions", &edifact, &expected[2].0);
    post("/v1/transactions", &[], &expected[3].0);
    let fhir = ["Content-Type: application/fhir+json", fhir_ids[0], fhir_ids[1]];
    post("/fhir/$process-message", &fhir, &expected[4].0);
    let carried = listener.join().expect("listened");
    pipeline.site.wait_for("confirmed_total", expected.len() as u64, PATIENCE);
    // The outbox's own record of them.
    let list = pipeline.site.gateway_command(&["outbox", "list", "--json", "--from", "1"]);
    let kept: Vec<Value> =
        succeeded(&list).lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let lines: String = carried.iter().map(|line| format!("{line}\n")).collect();
    let mut decoders = vec![("PyPI", decoded(python(&clients), "cloudevents_pypi.py", &lines))];
    if std::env::var_os("PGW_CLIENTS_NODE").is_some() {
        decoders.push(("npm", decoded(node(&clients), "cloudevents-npm.cjs", &lines)));
    }
    for (decoder, events) in decoders {
        assert_eq!((events.len(), kept.len()), (expected.len(), expected.len()), "{decoder}");
        // The chain follows from the outbox's own record of what it holds.
        let epoch =
            kept[0]["epoch"].as_str().and_then(|text| text.parse().ok()).map(Epoch).expect("an epoch");
        let mut chain = ChainValue::first(&"B86022/gw1/clinical".parse().expect("a lane"), epoch, None);
        for (number, ((event, kept), (body, words))) in events.iter().zip(&kept).zip(&expected).enumerate() {
            let [sender, event_type, content_type, correlation] = *words;
            let digest = kept["digest"].as_str().and_then(from_hex).map(Digest).expect("a digest");
            chain = chain.next(number as u64 + 1, digest);
            let mut wanted = json!({
                "specversion": "1.0",
                "id": kept["id"],
                "source": "/pgw/B86022/gw1/clinical",
                "sender": sender,
                "type": event_type,
                "time": kept["time"],
                "datacontenttype": content_type,
                "partitionkey": "clinical",
                "epoch": kept["epoch"],
                "sequence": format!("{:020}", number + 1),
                "round": event["round"],
                "delayed": event["delayed"],
                "chain": chain.to_string(),
                "signature": event["signature"],
                "kind": "transaction",
                "clock": event["clock"],
                "data": base64::engine::general_purpose::STANDARD.encode(body),
            });
            if let Some(key) = sender_key(body, sender) {
                wanted["senderkey"] = key.into();
            }
            if !correlation.is_empty() {
                wanted["correlationid"] = correlation.into();
            }
            assert_eq!(*event, wanted, "{decoder}, transaction {}", number + 1);
            for number in ["round", "delayed"] {
                assert!(event[number].as_str().is_some_and(|text| text.parse::<u64>().is_ok()), "{event}");
            }
            let clock = event["clock"].as_str().expect("a word");
            assert!(["synced", "holdover", "untrusted"].contains(&clock), "{clock}");
            assert!(
                kept["id"].is_string() && kept["digest"].is_string() && kept["time"].is_string(),
                "{kept}"
            );
        }
    }
    pipeline.site.stop();
}

/// The key that the test's senders give: MSH-10, or `X-Request-ID` with the FHIR message.
fn sender_key(body: &[u8], sender: &str) -> Option<String> {
    match sender.split_once(':')?.0 {
        "hl7v2" => Some(String::from_utf8_lossy(body).split('|').nth(9)?.to_owned()),
        "fhir" => Some("00000000-0000-4000-8000-000000000001".to_owned()),
        _ => None,
    }
}
