//! The doors, driven by programs that nobody here wrote: what they are told is safe stands in the hub's store byte for
//! byte, once and in order.
//!
//! `tests/all.sh` installs them, pinned, and says where by `PGW_CLIENTS` (and `PGW_CLIENTS_NODE=1` where node is there).
//! In a run that it has started a client that is missing is a failure; in any other run each test says `NOT RUN`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test stops at the first thing that goes wrong, and prints"
)]

mod harness;

use std::fmt::Write as _;
use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use base64::Engine as _;
use harness::proof::Proof;
use harness::senders::message;
use harness::site::{Site, SiteOptions};
use harness::{CertificateFiles, Certificates, Mosquitto, ports};

const PATIENCE: Duration = Duration::from_secs(120);

/// Where the clients are; `None`, loudly, where `tests/all.sh` has not installed them.
fn clients(name: &str, needs_node: bool) -> Option<PathBuf> {
    let place = std::env::var_os("PGW_CLIENTS").map(PathBuf::from);
    let node = std::env::var_os("PGW_CLIENTS_NODE").is_some();
    if place.is_none() || (needs_node && !node) {
        // Past the capture of a test's output, which a test that passes would keep to itself.
        let _ = writeln!(std::io::stderr(), "NOT RUN: {name}: tests/all.sh installs what it needs");
        return None;
    }
    place
}

struct Road {
    site: Site,
    /// TLS, with certificates of the senders.
    guarded: SocketAddr,
    certificates: Certificates,
    _broker: Mosquitto,
}

impl Road {
    fn new() -> Self {
        let certificates = Certificates::new();
        let broker = Mosquitto::start(&certificates);
        let mut site = Site::new(&certificates, broker.port(), broker.port(), SiteOptions::default());
        let guarded = SocketAddr::from((Ipv4Addr::LOCALHOST, ports::reserve()));
        let server = certificates.server();
        let mut config = std::fs::read_to_string(site.gateway_config()).unwrap();
        let _ = writeln!(
            config,
            "[[mllp]]\nlisten = \"{guarded}\"\ncertificate_file = {:?}\nkey_file = {:?}\nclient_ca_file = {:?}",
            server.certificate,
            server.key,
            certificates.ca()
        );
        std::fs::write(site.gateway_config(), config).unwrap();
        site.start_hub();
        site.start_gateway();
        Self { site, guarded, certificates, _broker: broker }
    }

    /// All that was acknowledged is at the hub, byte for byte, once, in order.
    fn judge(mut self, safe: Vec<Vec<u8>>) {
        assert!(!safe.is_empty(), "nothing was accepted: the run proves nothing");
        self.site.wait_for("confirmed_total", safe.len() as u64, PATIENCE);
        self.site.stop();
        let accepted = safe.len();
        let proof = Proof::of(&self.site.store(), &[safe]).expect("the hub's files");
        assert_eq!((proof.delivered, proof.lost, proof.repeated, proof.out_of_order), (accepted, 0, 0, 0));
        assert!(proof.chain_ok);
    }
}

fn succeeded(output: &Output) -> String {
    let (said, complained) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}\n{said}\n{complained}", output.status);
    said.into_owned()
}

/// Runs a script of `tests/clients/`, and gives what it sent; each message was answered positively, by its own id.
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
    let said = succeeded(&command.output().expect("the client is installed"));
    let sent: Vec<Vec<u8>> = said
        .lines()
        .map(|line| {
            let line: serde_json::Value =
                serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
            assert_eq!((line["code"].as_str(), &line["answered"]), (Some("AA"), &line["id"]), "{line}");
            let sent = line["sent"].as_str().expect("what it sent");
            base64::engine::general_purpose::STANDARD.decode(sent).expect("base64")
        })
        .collect();
    assert_eq!(sent.len(), count, "{said}");
    sent
}

fn python(clients: &Path) -> Command {
    Command::new(clients.join("python/bin/python3"))
}

fn node(clients: &Path) -> Command {
    let mut command = Command::new("node");
    command.env("NODE_PATH", clients.join("node/node_modules"));
    command
}

#[test]
fn mllp_send_of_pypi_hl7() {
    let Some(clients) = clients("mllp_send", false) else { return };
    let road = Road::new();
    let messages: Vec<Vec<u8>> = (0..40).map(|n| message(1, n, n * 50)).collect();
    let mut file = Vec::new();
    for message in &messages {
        file.extend_from_slice(&[&[0x0b], message.as_slice(), &[0x1c, 0x0d]].concat());
    }
    let path = road.site.path("frames");
    std::fs::write(&path, file).unwrap();
    let output = Command::new(clients.join("python/bin/mllp_send"))
        .args(["--port", &road.site.door.port().to_string(), "--file"])
        .arg(&path)
        .arg("127.0.0.1")
        .output()
        .expect("mllp_send is installed");
    let said = succeeded(&output);
    let answered: Vec<&str> = said.split("MSA|").skip(1).collect();
    assert_eq!(answered.len(), messages.len(), "{said}");
    for (number, answer) in answered.iter().enumerate() {
        assert!(answer.starts_with(&format!("CA|1-{number}|")), "{answer}");
    }
    // It takes the last line end away before it sends.
    let sent = messages.into_iter().map(|m| m.strip_suffix(b"\r").expect("a line end").to_vec()).collect();
    road.judge(sent);
}

#[test]
fn the_asyncio_client_of_pypi_hl7() {
    let Some(clients) = clients("asyncio client", false) else { return };
    let road = Road::new();
    let sent = script(&mut python(&clients), "asyncio_client.py", road.site.door.port(), 40, None);
    assert!(sent[0].contains(&0xfc), "not UTF-8, and unchanged");
    road.judge(sent);
}

#[test]
fn the_asyncio_client_over_tls_with_a_certificate() {
    let Some(clients) = clients("asyncio client over TLS", false) else { return };
    let road = Road::new();
    let (ca, files) = (road.certificates.ca(), road.certificates.client("lab"));
    let port = road.guarded.port();
    let sent = script(&mut python(&clients), "asyncio_client.py", port, 20, Some((&ca, &files)));
    let strangers = Certificates::new();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients/asyncio_client.py");
    let stranger = strangers.client("lab");
    let mut refused = python(&clients);
    refused.arg(script).arg(port.to_string()).arg("1").arg(&ca).arg(&stranger.certificate).arg(&stranger.key);
    assert!(!refused.output().expect("python").status.success(), "a stranger's certificate got in");
    road.judge(sent);
}

#[test]
fn simple_hl7_of_npm() {
    let Some(clients) = clients("simple-hl7", true) else { return };
    let road = Road::new();
    let sent = script(&mut node(&clients), "simple-hl7.cjs", road.site.door.port(), 40, None);
    road.judge(sent);
}

#[test]
fn node_hl7_client_of_npm() {
    let Some(clients) = clients("node-hl7-client", true) else { return };
    let road = Road::new();
    let mut sent = script(&mut node(&clients), "node-hl7-client.cjs", road.site.door.port(), 40, None);
    let (ca, files) = (road.certificates.ca(), road.certificates.client("lab"));
    // Over TLS, by another door and so with other ids.
    sent.extend(script(
        &mut node(&clients),
        "node-hl7-client.cjs",
        road.guarded.port(),
        10,
        Some((&ca, &files)),
    ));
    road.judge(sent);
}

#[test]
fn curl_sends_hl7_over_http() {
    // Debian's curl is on every machine that builds this; nothing is installed for it.
    let certificates = Certificates::new();
    let mut site = Site::new(&certificates, ports::reserve(), ports::reserve(), SiteOptions::default());
    let door = ports::reserve();
    let mut config = std::fs::read_to_string(site.gateway_config()).unwrap();
    let _ = writeln!(config, "[[http]]\nlisten = \"127.0.0.1:{door}\"");
    std::fs::write(site.gateway_config(), config).unwrap();
    site.start_gateway();
    let file = site.path("message.hl7");
    std::fs::write(&file, message(1, 1, 100)).unwrap();
    let output = Command::new("curl")
        .args(["--silent", "--fail-with-body", "--noproxy", "*", "--max-time", "60"])
        .args(["--header", "Content-Type: application/hl7-v2+er7", "--data-binary"])
        .arg(format!("@{}", file.display()))
        .arg(format!("http://127.0.0.1:{door}/hl7"))
        .output()
        .expect("curl");
    assert!(succeeded(&output).contains("MSA|CA|1-1|"));
    site.wait_for("accepted_total", 1, PATIENCE);
    site.stop();
}
