//! A surgery's whole input through the matching doors: it must be at the hub byte for byte, and nothing of it may be
//! anywhere else in the clear.
//!
//! The samples are those of `tests/gateway/corpus_kit/`; with `PGW_DATA=DIRECTORY` everything below that directory:
//!
//!     PGW_DATA=DIRECTORY cargo test --test gateway corpus:: -- --nocapture

use std::collections::{HashMap, HashSet};
use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::net::Shutdown;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::Packet;
use rumqttc::v5::{Client, Event, MqttOptions};

use crate::corpus_kit::secrets::{Leak, Secrets};
use crate::corpus_kit::{Doors, Named, Sender, Way, corpus};
use crate::harness::pipeline::Pipeline;
use crate::harness::senders::{connect, exchange, positive};
use crate::harness::site::{Site, SiteOptions, adds_up};
use crate::harness::{Fault, MosquittoOptions, eventually_blocking};
use crate::http_kit::{curl, raw};

const PATIENCE: Duration = Duration::from_secs(300);
const WAYS: [Way; 4] = [Way::Mllp, Way::Http, Way::Folder, Way::CommandLine];

/// All senders at once, as in a surgery; those of one door one after the other. Returns what each was told is safe.
fn send_all(doors: &Doors, site: &Site, corpus: &[Sender]) -> Vec<(String, Vec<Vec<u8>>)> {
    std::thread::scope(|scope| {
        let threads: Vec<_> = WAYS
            .iter()
            .map(|way| {
                scope.spawn(move || {
                    let mut accepted = HashSet::new();
                    let mine = corpus.iter().filter(|sender| sender.way == *way);
                    mine.map(|sender| (sender.name.clone(), doors.send(site, sender, &mut accepted)))
                        .collect::<Vec<_>>()
                })
            })
            .collect();
        threads.into_iter().flat_map(|thread| thread.join().expect("a sender")).collect()
    })
}

#[test]
fn every_sample_is_at_the_hub_byte_for_byte_once_and_in_the_order_of_its_sender() {
    let mut pipeline = Pipeline::prepare(SiteOptions::default(), &MosquittoOptions::default());
    let doors = Doors::open(&pipeline.site);
    pipeline.site.start_hub();
    pipeline.site.start_gateway();
    let corpus = corpus();
    // The link is cut after a third of the input, and restored when everything is in.
    let third = corpus.iter().map(|sender| sender.files.len() as u64).sum::<u64>() / 3;
    let safe = std::thread::scope(|scope| {
        let sent = scope.spawn(|| send_all(&doors, &pipeline.site, &corpus));
        pipeline.site.wait_for("accepted_total", third, PATIENCE);
        pipeline.cut_off();
        sent.join().expect("sent")
    });
    for (sender, safe) in &safe {
        println!("{sender}: {} accepted", safe.len());
    }
    let sent: usize = corpus.iter().map(|sender| sender.files.len()).sum();
    let safe: Vec<Vec<Vec<u8>>> = safe.into_iter().map(|(_, safe)| safe).collect();
    pipeline.proxy.set(Fault::Pass);
    let accepted: usize = safe.iter().map(Vec::len).sum();
    eventually_blocking("everything to be confirmed", PATIENCE, || {
        let status = pipeline.site.status()?;
        adds_up(&status);
        let number = |key: &str| status[key].as_u64().expect("a number");
        // In one run of the gateway nothing is confirmed that was not forwarded, at any moment.
        assert!(number("forwarded_total") >= number("confirmed_total"), "{status}");
        assert!(number("in_flight") <= number("waiting"), "{status}");
        (number("waiting") == 0).then_some(())
    });
    println!("{sent} sent, {} of them the same again", sent - accepted);
    let proof = pipeline.prove(&safe);
    assert_eq!((proof.accepted, proof.delivered), (accepted, accepted), "{proof:?}");
    assert_eq!((proof.lost, proof.repeated, proof.out_of_order), (0, 0, 0), "{proof:?}");
    assert!(proof.chain_ok, "{proof:?}");
}

/// Everything that the broker carries except the transactions themselves.
struct BrokerWatch {
    messages: Arc<Mutex<Vec<Named>>>,
    over: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl BrokerWatch {
    fn listen(plain_port: u16) -> Self {
        let mut options = MqttOptions::new("watch", "127.0.0.1", plain_port);
        options.set_keep_alive(Duration::from_secs(30));
        options.set_max_packet_size(Some(64 << 20));
        let (client, mut connection) = Client::new(options, 16);
        client.subscribe("pgw/#", QoS::AtLeastOnce).expect("asked");
        let (messages, over) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let (shared, ended) = (messages.clone(), over.clone());
        let (subscribed, wait) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            while !ended.load(Ordering::Relaxed) {
                match connection.recv_timeout(Duration::from_millis(100)) {
                    Ok(Ok(Event::Incoming(Packet::SubAck(_)))) => {
                        let _ = subscribed.send(());
                    }
                    Ok(Ok(Event::Incoming(Packet::Publish(publish)))) => {
                        let topic = String::from_utf8_lossy(&publish.topic).into_owned();
                        if !topic.contains("/txn/") {
                            let words = format!("{:?}", publish.properties).into_bytes();
                            let all = [publish.payload.to_vec(), words].concat();
                            shared.lock().unwrap().push((topic, all));
                        }
                    }
                    Ok(Ok(_)) | Err(_) => {}
                    Ok(Err(error)) => panic!("the watcher lost the broker: {error}"),
                }
            }
            drop(client);
        });
        wait.recv_timeout(PATIENCE).expect("subscribed");
        Self { messages, over, thread: Some(thread) }
    }

    fn messages(&self) -> Vec<Named> {
        self.messages.lock().unwrap().clone()
    }
}

impl Drop for BrokerWatch {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(std::thread::JoinHandle::join);
    }
}

/// Input that each door refuses, made from samples; a person's number in every place where a sender can put one.
fn send_refused(doors: &Doors, site: &Site, corpus: &[Sender]) {
    let of =
        |way: Way| corpus.iter().filter(move |sender| sender.way == way).flat_map(|sender| &sender.files);
    for (_, message) in of(Way::Mllp).take(20) {
        let mut stream = connect(site.door).expect("the door");
        let batch = [b"BHS|^~\\&|\r", message.as_slice()].concat();
        assert!(!positive(&exchange(&mut stream, &batch).expect("an answer")));
        // Noise, then half a frame.
        stream.write_all(&[&message[4..], b"\x0b", &message[..message.len() / 2]].concat()).expect("taken");
        stream.shutdown(Shutdown::Write).expect("ended");
    }
    let url = |path: &str| format!("http://{}{path}", doors.http);
    let content = ["Content-Type: application/fhir+json".to_owned()];
    for (_, body) in of(Way::Http).take(20) {
        let message = url("/fhir/$process-message");
        assert_eq!(curl(&message, &content, Some(body), &[]).status, 400);
        assert!(curl(&message, &content, Some(&body[1..]), &[]).status >= 400);
        assert_eq!(curl(&url("/v1/transactions/nowhere"), &content, Some(body), &[]).status, 404);
        let xml = "Content-Type: application/fhir+xml".to_owned();
        assert!(curl(&message, &[xml], Some(body), &[]).status >= 400);
    }
    let key = [format!("Idempotency-Key: {NUMBER}"), format!("X-Correlation-ID: {NAME}")];
    assert_eq!(curl(&url("/v1/transactions"), &key, Some(b"one"), &[]).status, 202);
    assert_eq!(curl(&url("/v1/transactions"), &key, Some(b"two"), &[]).status, 422);
    for path in ["/v1/transactions/", "/fhir/Patient?family=", "/fhir/Patient/", "/"] {
        for value in [NUMBER, NAME] {
            assert!(curl(&url(&format!("{path}{value}")), &[], None, &[]).status >= 400);
        }
    }
    raw(
        doors.http,
        format!("POST /hl7 HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\nPID|{NUMBER}").as_bytes(),
        true,
    );
    raw(doors.http, format!("{NAME} is no HTTP\r\n\r\n").as_bytes(), true);
    // A file that is refused: empty, with a name that reveals a patient.
    fs::write(doors.folder.join(format!("{NAME}_{NUMBER}.dat")), b"").expect("written");
    let big = site.path("in").join(format!("{NAME}.dat"));
    let file = fs::File::create(&big).expect("made");
    file.set_len(21_000_000).expect("as large");
    let mut output = Vec::new();
    for (lane, file) in [("nowhere", "by-hand"), ("clinical", "by-hand/nothing")] {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_practice-gateway"));
        command.args(["submit", "--type", "x", "--key", NUMBER, "--lane", lane, "--config"]);
        command.arg(site.gateway_config()).arg(site.path(file));
        output.push(command.output().expect("run").status.code());
    }
    assert!(output.iter().all(|code| *code != Some(0)), "{output:?}");
}

/// A person of the samples in the repository.
const NUMBER: &str = "9434765919";
const NAME: &str = "Quetzalbrook";

/// What is shown to people and monitors.
fn shown(doors: &Doors, site: &Site) -> Vec<Named> {
    let mut shown = Vec::new();
    let list = site.gateway_command(&["quarantine", "list", "--json"]);
    let ids = String::from_utf8_lossy(&list.stdout).into_owned();
    let ids = ids.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let ids: Vec<String> =
        ids.map(|entry| entry["id"].to_string().trim_matches('"').to_owned()).take(30).collect();
    let mut run = |words: &[&str]| {
        let output = site.gateway_command(words);
        shown.push((format!("{words:?}"), [output.stdout, output.stderr].concat()));
    };
    for words in [
        &["status"][..],
        &["status", "--json"],
        &["outbox", "list"],
        &["outbox", "list", "--json", "--from", "1"],
        &["outbox", "show", "1"],
        &["quarantine", "list"],
        &["quarantine", "list", "--json"],
        &["check"],
        &["verify"],
    ] {
        run(words);
    }
    for id in &ids {
        run(&["quarantine", "show", id]);
    }
    for path in ["/metrics", "/healthz", "/readyz"] {
        let answer = curl(&format!("http://{}{path}", doors.http), &[], None, &[]);
        shown.push((path.to_owned(), answer.text().into_bytes()));
    }
    shown
}

/// Nothing may be in the clear in what is shown, sent, logged or stored. The site's directory is searched except for
/// what is meant to be in the clear (the folder's own files, what the test itself wrote, the hub's store).
fn search(secrets: &Secrets, doors: &Doors, site: &Site, watch: &BrokerWatch, when: &str) {
    let mut leaks: Vec<Leak> = Vec::new();
    for (place, text) in shown(doors, site).into_iter().chain(watch.messages()) {
        leaks.extend(secrets.in_text(&place, &text));
    }
    for program in ["gateway", "hub"] {
        leaks.extend(secrets.in_text(program, site.log(program).as_bytes()));
    }
    for entry in fs::read_dir(site.path("")).expect("the site") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        match name.as_str() {
            "hub" | "in" | "by-hand" | "draft" | "gateway.log" | "hub.log" => {}
            _ if path.is_dir() => leaks.extend(secrets.in_files(&path)),
            _ => leaks.extend(secrets.in_text(&name, &fs::read(&path).unwrap_or_default())),
        }
    }
    leaks.extend(secrets.in_files(&doors.folder.join("accepted")));
    // Only some of each place, because a log repeats itself.
    let mut named: HashMap<&str, HashSet<&str>> = HashMap::new();
    for leak in &leaks {
        let values = named.entry(&leak.place).or_default();
        if values.len() < 5 && values.insert(&leak.value) {
            eprintln!("{when}: {} in {}: {}", leak.value, leak.place, leak.around);
        }
    }
    assert!(leaks.is_empty(), "{when}: {} times something about a patient is in the clear", leaks.len());
}

/// Overwrites the middle of each database, so that the messages of sled and of the rebuild are searched as well.
fn damage(directory: &Path) -> usize {
    let mut damaged = 0;
    for entry in fs::read_dir(directory).expect("listed") {
        let path: PathBuf = entry.expect("an entry").path();
        if path.is_dir() {
            damaged += damage(&path);
        } else if path.file_name().is_some_and(|name| name == "db") {
            let mut bytes = fs::read(&path).expect("read");
            let middle = bytes.len() / 3;
            bytes[middle..middle + 2_000].fill(0xff);
            fs::write(&path, bytes).expect("written");
            damaged += 1;
        }
    }
    damaged
}

#[test]
fn nothing_about_a_patient_is_in_the_clear_outside_the_doors() {
    let options = SiteOptions { uplink: "[log]\nlevel = \"trace\"\n".into(), ..SiteOptions::default() };
    let mut pipeline = Pipeline::prepare(options, &MosquittoOptions::default());
    let doors = Doors::open(&pipeline.site);
    let mut hub = fs::read_to_string(pipeline.site.hub_config()).unwrap();
    let _ = writeln!(hub, "[log]\nlevel = \"trace\"");
    fs::write(pipeline.site.hub_config(), hub).unwrap();
    fs::create_dir(pipeline.site.path("temporary")).expect("made");
    pipeline.site.gateway_environment = vec![("TMPDIR".into(), pipeline.site.path("temporary").into())];
    let watch = BrokerWatch::listen(pipeline.broker.plain_port());
    pipeline.site.start_hub();
    pipeline.site.start_gateway();
    let mut corpus = corpus();
    let secrets = Secrets::of(&corpus).with([NUMBER, NAME]);
    assert!(secrets.count > 40, "{} values are no corpus", secrets.count);

    // With and without the link; refused input; a kill in the middle.
    let rest = corpus.split_off(1);
    send_all(&doors, &pipeline.site, &corpus);
    pipeline.cut_off();
    send_all(&doors, &pipeline.site, &rest);
    corpus.extend(rest);
    send_refused(&doors, &pipeline.site, &corpus);
    pipeline.site.wait_for("refused_in_quarantine", 5, PATIENCE);
    search(&secrets, &doors, &pipeline.site, &watch, "while the link is down");
    pipeline.site.kill_gateway();
    pipeline.site.start_gateway();

    // A person's decisions about the quarantine, and the replay.
    let list = pipeline.site.gateway_command(&["quarantine", "list", "--json"]);
    let list = String::from_utf8_lossy(&list.stdout).into_owned();
    let ids: Vec<String> = list
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).expect("JSON")["id"].to_string())
        .map(|id| id.trim_matches('"').to_owned())
        .collect();
    assert!(ids.len() > 4, "{list}");
    // The last entry is discarded; the others are released if possible.
    let (last, rest) = ids.split_last().expect("some");
    let released = rest.iter().filter(|id| {
        let words = ["quarantine", "release", id.as_str(), "--type", "x.released", "--lane", "clinical"];
        pipeline.site.gateway_command(&words).status.success()
    });
    assert!(released.count() > 2, "{list}");
    let discard = pipeline.site.gateway_command(&["quarantine", "discard", last, "--reason", "a test"]);
    assert!(discard.status.success(), "{}", String::from_utf8_lossy(&discard.stderr));
    pipeline.proxy.set(Fault::Pass);
    eventually_blocking("the replay", PATIENCE, || {
        let status = pipeline.site.status()?;
        adds_up(&status);
        (status["waiting"] == 0 && status["link_up"] == 1).then_some(())
    });
    search(&secrets, &doors, &pipeline.site, &watch, "after the replay");

    // A disk that destroys data: startup, rebuilding, and any panic on the way.
    pipeline.site.stop();
    assert!(damage(&pipeline.site.path("data")) > 0, "nothing to damage");
    pipeline.site.start_hub();
    pipeline.site.start_gateway();
    pipeline.site.wait_for_link(true);
    search(&secrets, &doors, &pipeline.site, &watch, "after damage");

    // The search itself works: it finds what must be in the clear, and there is output to search.
    assert!(!secrets.in_files(&doors.folder.join("rejected")).is_empty(), "the search is blind");
    let (gateway, topics) = (pipeline.site.log("gateway"), watch.messages());
    assert!(gateway.contains(" TRACE ") && gateway.contains(" DEBUG "), "not at TRACE");
    for kind in ["/status", "/health", "/info", "/event", "/receipt/", "/position/"] {
        assert!(topics.iter().any(|(topic, _)| topic.contains(kind)), "no {kind} was seen");
    }
    pipeline.site.stop();
}
