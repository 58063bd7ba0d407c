//! A gateway with HTTP doors, curl, raw sockets, and the contract.
#![allow(
    unreachable_pub,
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot continue fails"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::harness::site::{Site, SiteOptions};
use crate::harness::{Certificates, ports};

/// A site with three HTTP doors.
pub struct Doors {
    pub site: Site,
    /// On loopback, for everyone; the rules of BaRS.
    pub open: SocketAddr,
    /// TLS; a client certificate or a token.
    pub guarded: SocketAddr,
    /// Two connections at once, FHIR without the rules of BaRS.
    pub plain: SocketAddr,
}

fn free() -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, ports::reserve()))
}

impl Doors {
    pub fn new(certificates: &Certificates, token: &str) -> Self {
        Self::with_upstream(certificates, token, free().port())
    }

    pub fn with_upstream(certificates: &Certificates, token: &str, upstream: u16) -> Self {
        let site = Site::new(certificates, upstream, upstream, SiteOptions::default());
        let doors = Self { site, open: free(), guarded: free(), plain: free() };
        let server = certificates.server();
        let short = "body_limit_bytes = 50_000\nheader_seconds = 1.0\nbody_seconds = 1.0";
        let mut more = String::new();
        let _ = writeln!(more, "[[http]]\nlisten = \"{}\"\n{short}", doors.open);
        let _ = writeln!(
            more,
            "[[http]]\nlisten = \"{}\"\ncertificate_file = {:?}\nkey_file = {:?}\nclient_ca_file = {:?}\ntokens_file = {:?}",
            doors.guarded,
            server.certificate,
            server.key,
            certificates.ca(),
            doors.site.path("http.tokens")
        );
        let _ =
            writeln!(more, "[[http]]\nlisten = \"{}\"\nfhir = \"plain\"\nmax_connections = 2", doors.plain);
        doors.append(&more);
        doors.write_tokens(&format!("# senders\nlab-1 {token}\n"));
        doors
    }

    /// A store that refuses everything: it requires more free space on the disk than there is.
    pub fn full(certificates: &Certificates) -> Self {
        let options =
            SiteOptions { outbox: "min_free_bytes = 1_000_000_000_000\n".into(), ..SiteOptions::default() };
        let site = Site::new(certificates, free().port(), free().port(), options);
        let doors = Self { site, open: free(), guarded: free(), plain: free() };
        doors.append(&format!("[[http]]\nlisten = \"{}\"\n", doors.open));
        doors
    }

    fn append(&self, more: &str) {
        let mut text = std::fs::read_to_string(self.site.gateway_config()).unwrap();
        text.push_str(more);
        std::fs::write(self.site.gateway_config(), text).unwrap();
    }

    pub fn write_tokens(&self, text: &str) {
        let path = self.site.path("http.tokens");
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    }

    /// SIGHUP.
    pub fn hang_up(&self) {
        let pid = rustix::process::Pid::from_raw(self.site.gateway_pid().cast_signed()).expect("a process");
        rustix::process::kill_process(pid, rustix::process::Signal::HUP).expect("signalled");
    }
}

/// An answer; status 0: there was none.
#[derive(Debug, Default)]
pub struct Answer {
    pub status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Answer {
    /// Parses the bytes received; skips `100 Continue`.
    pub fn read(mut bytes: &[u8]) -> Self {
        loop {
            let Some(end) = bytes.windows(4).position(|w| w == b"\r\n\r\n") else { return Self::default() };
            let (head, body) = (String::from_utf8_lossy(&bytes[..end]).into_owned(), &bytes[end + 4..]);
            let mut lines = head.lines();
            let status = lines.next().and_then(|l| l.split(' ').nth(1)?.parse().ok()).unwrap_or(0);
            if status / 100 == 1 {
                bytes = body;
                continue;
            }
            let headers = lines
                .filter_map(|l| l.split_once(':'))
                .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
                .collect();
            return Self { status, headers, body: body.to_vec() };
        }
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        let name = name.to_ascii_lowercase();
        self.headers.iter().find(|(known, _)| *known == name).map(|(_, value)| value.as_str())
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }
}

/// One request with curl: a POST where there is a body.
pub fn curl(url: &str, headers: &[String], body: Option<&[u8]>, more: &[&str]) -> Answer {
    let mut command = Command::new("curl");
    command.args(["--silent", "--include", "--http1.1", "--max-time", "60", "--noproxy", "*"]).args(more);
    for header in headers {
        command.args(["--header", header]);
    }
    if body.is_some() {
        command.args(["--data-binary", "@-"]);
        if !headers.iter().any(|h| h.starts_with("Content-Type:")) {
            command.args(["--header", "Content-Type: application/octet-stream"]);
        }
    }
    let mut child = command
        .arg(url)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("curl, which tests/all.sh installs");
    let mut input = child.stdin.take().unwrap();
    let _ = input.write_all(body.unwrap_or_default());
    drop(input);
    Answer::read(&child.wait_with_output().unwrap().stdout)
}

/// Sends bytes, ends its side if `end`, and returns everything that arrives until the other side closes.
pub fn raw(door: SocketAddr, bytes: &[u8], end: bool) -> Vec<u8> {
    let mut stream = TcpStream::connect(door).expect("the door");
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let _ = stream.write_all(bytes);
    if end {
        let _ = stream.shutdown(Shutdown::Write);
    }
    let mut answer = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return answer,
            Ok(n) => answer.extend_from_slice(&buffer[..n]),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => panic!("it did not close"),
            // Closed with unread bytes.
            Err(_) => return answer,
        }
    }
}

pub fn uuid(number: u32) -> String {
    format!("00000000-0000-4000-8000-{number:012}")
}

/// `docs/openapi.yaml`, read by its indentation: methods and statuses of each path, with their media types.
pub struct Contract {
    answers: BTreeMap<(String, String, u16), Vec<String>>,
}

impl Contract {
    pub fn read() -> Self {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/openapi.yaml");
        let text = std::fs::read_to_string(path).expect("docs/openapi.yaml");
        let (_, paths) = text.split_once("\npaths:\n").expect("paths");
        let (paths, components) = paths.split_once("\ncomponents:\n").expect("components");
        let shared = shared_media_types(components);
        let mut answers: BTreeMap<(String, String, u16), Vec<String>> = BTreeMap::new();
        let (mut path, mut method, mut status) = (String::new(), String::new(), 0);
        for line in paths.lines() {
            let word = line.trim().trim_end_matches(':').trim_matches('"');
            match line.len() - line.trim_start().len() {
                2 => path = word.to_owned(),
                4 => method = word.to_owned(),
                8 if word.len() == 3 && word.parse::<u16>().is_ok() => {
                    status = word.parse().unwrap();
                    answers.insert((method.clone(), path.clone(), status), Vec::new());
                }
                6 => status = 0,
                10 | 12 if status != 0 => {
                    let types = answers.get_mut(&(method.clone(), path.clone(), status)).unwrap();
                    if let Some((_, name)) = word.split_once("#/components/responses/") {
                        types.extend(shared[name].clone());
                    } else if word.contains('/') && !word.contains(' ') {
                        types.push(word.to_owned());
                    }
                }
                _ => {}
            }
        }
        assert!(answers.len() > 30, "the contract was not understood");
        Self { answers }
    }

    pub fn routes(&self) -> BTreeSet<(String, String)> {
        self.answers.keys().map(|(method, path, _)| (method.clone(), path.clone())).collect()
    }

    pub fn all(&self) -> BTreeSet<(String, String, u16)> {
        self.answers.keys().cloned().collect()
    }

    /// The answer is one of those in the contract, with one of its media types.
    pub fn check(&self, method: &str, path: &str, answer: &Answer) {
        let key = (method.to_owned(), path.to_owned(), answer.status);
        let types = self.answers.get(&key).unwrap_or_else(|| panic!("{key:?} is not in docs/openapi.yaml"));
        let given = answer.header("Content-Type").unwrap_or_default().split(';').next().unwrap_or_default();
        assert!(types.iter().any(|known| known == given), "{key:?}: {given} is none of {types:?}");
    }
}

/// Media types of `components.responses`.
fn shared_media_types(components: &str) -> BTreeMap<String, Vec<String>> {
    let mut shared: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let (_, responses) = components.split_once("  responses:\n").expect("responses");
    let (responses, _) = responses.split_once("\n  schemas:\n").expect("schemas");
    let mut name = String::new();
    for line in responses.lines() {
        let word = line.trim().trim_end_matches(':');
        match line.len() - line.trim_start().len() {
            4 => name = word.to_owned(),
            8 if word.contains('/') => shared.entry(name.clone()).or_default().push(word.to_owned()),
            _ => {}
        }
    }
    shared
}
