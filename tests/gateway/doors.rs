//! All doors side by side, on the real daemon: what holds for each of them (`docs/ingest.md`, first table).

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use crate::harness::senders::{connect, exchange, message, positive};
use crate::harness::site::{Site, SiteOptions, adds_up};
use crate::harness::{Certificates, eventually_blocking, ports};
use crate::http_kit::curl;

const PATIENCE: Duration = Duration::from_secs(60);

struct Doors {
    site: Site,
    http: SocketAddr,
    _certificates: Certificates,
}

fn doors(outbox: &str) -> Doors {
    let certificates = Certificates::new();
    let http = SocketAddr::from((Ipv4Addr::LOCALHOST, ports::reserve()));
    let outbox = format!(
        "{outbox}\n[[http]]\nlisten = \"{http}\"\n\
         [[folder]]\npath = \"in\"\nrescan_seconds = 0.2\nsettle_seconds = 0\n"
    );
    let options = SiteOptions { outbox, ..SiteOptions::default() };
    let mut site = Site::new(&certificates, ports::reserve(), ports::reserve(), options);
    fs::create_dir(site.path("in")).expect("made");
    site.start_gateway();
    Doors { site, http, _certificates: certificates }
}

impl Doors {
    /// Renamed into the folder.
    fn put(&self, name: &str, content: &str) {
        fs::write(self.site.path("draft"), content).expect("written");
        fs::rename(self.site.path("draft"), self.site.path("in").join(name)).expect("renamed");
    }

    /// `submit` of a file with this content.
    fn submit(&self, content: &str) -> Output {
        fs::write(self.site.path("by-hand"), content).expect("written");
        Command::new(env!("CARGO_BIN_EXE_practice-gateway"))
            .args(["submit", "--lane", "clinical", "--type", "test", "--config"])
            .arg(self.site.gateway_config())
            .arg(self.site.path("by-hand"))
            .stdin(Stdio::null())
            .output()
            .expect("run")
    }

    /// `None`: the connection was closed without an answer.
    fn mllp(&self, message: &[u8]) -> Option<bool> {
        let mut stream = connect(self.site.door).expect("the door");
        exchange(&mut stream, message).ok().map(|answer| positive(&answer))
    }

    fn http(&self, body: &str) -> u16 {
        curl(&format!("http://{}/v1/transactions", self.http), &[], Some(body.as_bytes()), &[]).status
    }

    /// A counter of all doors.
    fn counter(&self, name: &str) -> u64 {
        let text = curl(&format!("http://{}/metrics", self.http), &[], None, &[]).text();
        let start = format!("pgw_doors_{name} ");
        let line = text.lines().find_map(|line| line.strip_prefix(&start)).expect("the counter");
        line.parse().expect("a number")
    }

    fn status(&self, key: &str) -> u64 {
        let status = self.site.status().expect("a status");
        adds_up(&status);
        status[key].as_u64().unwrap_or_else(|| panic!("{key} in {status}"))
    }
}

#[test]
fn every_door_takes_its_own_and_the_outbox_has_it() {
    let mut doors = doors("");
    assert_eq!(doors.mllp(&message(1, 1, 10)), Some(true));
    assert_eq!(doors.http("by http"), 202);
    let output = doors.submit("by hand");
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    doors.put("a", "by folder");
    eventually_blocking("all four", PATIENCE, || (doors.status("accepted_total") == 4).then_some(()));
    let list = doors.site.gateway_command(&["outbox", "list", "--json"]);
    let list = String::from_utf8_lossy(&list.stdout).into_owned();
    for sender in ["hl7v2:LAB1%7CTEST", "http:local", "cli", "folder:folder"] {
        assert!(list.contains(sender), "{sender} is not in {list}");
    }
    doors.site.stop();
}

#[test]
fn without_a_number_the_content_decides() {
    let mut doors = doors("");
    let unnumbered =
        |text: &str| format!("MSH|^~\\&|LAB|TEST|||1||ORU^R01||P|2.3\rNTE|1||{text}\r").into_bytes();
    for (text, repeated) in [("one", 0), ("one", 1), ("two", 1)] {
        assert_eq!(doors.mllp(&unnumbered(text)), Some(true));
        assert_eq!(doors.counter("repeated"), repeated, "{text}");
    }
    for (body, repeated) in [("one", 1), ("one", 2), ("two", 2)] {
        assert_eq!(doors.http(body), 202);
        assert_eq!(doors.counter("repeated"), repeated, "{body}");
    }
    assert_eq!((doors.status("accepted_total"), doors.status("duplicates_total")), (4, 2));
    doors.site.stop();
}

#[test]
fn training_messages_are_counted_apart() {
    let mut doors = doors("");
    for (kind, counted) in [("P", 0), ("T", 1), ("D", 2), ("P", 2)] {
        let message = format!("MSH|^~\\&|LAB|TEST|||1||ORU^R01|{kind}{counted}|{kind}|2.3\r");
        assert_eq!(doors.mllp(message.as_bytes()), Some(true));
        assert_eq!(doors.counter("not_production"), counted, "{kind}");
    }
    assert_eq!(doors.status("accepted_total"), 4, "they are taken as any other");
    doors.site.stop();
}

#[test]
fn full_means_later_at_every_door() {
    // Requires more free space on the disk than there is.
    let mut doors = doors("min_free_bytes = 1_000_000_000_000\n");
    doors.put("a", "by folder");
    eventually_blocking("the folder's word", PATIENCE, || {
        doors.site.log("gateway").contains("Closed the folder door while nothing can be stored").then_some(())
    });
    let before = doors.counter("unavailable");
    assert_eq!(doors.mllp(&message(1, 1, 10)), None, "MLLP must be silent");
    assert_eq!(doors.http("by http"), 503);
    let output = doors.submit("by hand");
    assert_eq!(output.status.code(), Some(75), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(doors.counter("unavailable") >= before + 3);
    let status = doors.site.status().expect("a status");
    assert_eq!((&status["state"], &status["state_code"]), (&"refusing".into(), &3.into()), "{status}");
    for key in ["accepted_total", "refused_total", "refused_in_quarantine"] {
        assert_eq!(doors.status(key), 0, "{key}");
    }
    assert_eq!(fs::read(doors.site.path("in/a")).expect("the file is where it was"), b"by folder");
    for folder in [".taken", "accepted", "rejected"] {
        assert_eq!(fs::read_dir(doors.site.path("in").join(folder)).expect("it").count(), 0, "{folder}");
    }
    doors.site.stop();
}
