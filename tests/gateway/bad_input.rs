//! What each wrong input gets, on the real programs: a clear error, and nothing lost.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::path::Path;
use std::time::Duration;

use crate::harness;
use crate::harness::senders::{connect, exchange, message, positive};
use crate::harness::site::{Site, SiteOptions};
use crate::harness::{CertificateFiles, Certificates, Mosquitto};

/// A port on which nobody listens.
fn dead_port() -> u16 {
    harness::ports::reserve()
}

fn site(options: SiteOptions) -> (Site, Certificates) {
    let certificates = Certificates::new();
    let site = Site::new(&certificates, dead_port(), dead_port(), options);
    (site, certificates)
}

/// Every file below a directory with its content.
fn content(directory: &Path) -> BTreeMap<std::path::PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    for entry in std::fs::read_dir(directory).into_iter().flatten() {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            files.extend(content(&path));
        } else {
            files.insert(path.clone(), std::fs::read(&path).expect("read"));
        }
    }
    files
}

#[test]
fn a_wrong_configuration_names_file_line_and_key_and_touches_nothing() {
    let (site, _certificates) = site(SiteOptions::default());
    let good = std::fs::read_to_string(site.gateway_config()).expect("the configuration");
    let before = content(&site.path("data"));
    for (from, to, key) in [
        ("practice = \"B86022\"", "practice = \"b86022\"", "practice"),
        ("practice = \"B86022\"", "practise = \"B86022\"", "practise"),
        ("min_free_percent = 1", "min_free_percent = 101", "min_free_percent"),
        ("min_free_percent = 1", "min_free_percent = \"one\"", "min_free_percent"),
        ("name = \"clinical\"", "name = \"Clinical/1\"", "name"),
        ("lane = \"clinical\"", "lane = \"no-such-lane\"", "lane"),
    ] {
        assert!(good.contains(from), "{from}");
        std::fs::write(site.gateway_config(), good.replacen(from, to, 1)).expect("written");
        let line = 1 + good[..good.find(from).expect("there")].matches('\n').count();
        for words in [["run"], ["check"]] {
            let output = site.gateway_command(&words);
            let printed = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
            assert_eq!(output.status.code(), Some(78), "{to}: {printed}");
            assert!(printed.contains("gateway.toml"), "{to}: no file named: {printed}");
            assert!(printed.contains(&format!("gateway.toml:{line}: ")), "{to}: not line {line}: {printed}");
            assert!(printed.contains(key), "{to}: no key named: {printed}");
        }
    }
    assert_eq!(content(&site.path("data")), before, "the store was touched");
}

#[test]
fn another_outbox_key_is_refused_and_nothing_is_written() {
    let (mut site, _certificates) = site(SiteOptions::default());
    site.start_gateway();
    let mut stream = connect(site.door).expect("the door");
    assert!(positive(&exchange(&mut stream, &message(1, 1, 10)).expect("an answer")));
    site.stop();
    let key = site.path("outbox.key");
    let right = std::fs::read(&key).expect("the key");
    let wrong: Vec<u8> = right
        .iter()
        .map(|b| {
            if *b == b'0' {
                b'1'
            } else if b.is_ascii_digit() {
                b'0'
            } else {
                *b
            }
        })
        .collect();
    assert_ne!(right, wrong);
    std::fs::write(&key, &wrong).expect("written");
    let before = content(&site.path("data"));
    let output = site.gateway_command(&["run"]);
    let printed = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(78), "{printed}");
    assert!(printed.contains("key"), "{printed}");
    assert_eq!(content(&site.path("data")), before, "something was written");
    std::fs::write(&key, &right).expect("written");
    site.start_gateway();
    assert_eq!(site.status().expect("a status")["waiting"], 1);
    site.stop();
}

#[test]
fn a_link_that_cannot_be_made_is_named_by_its_phase_and_work_continues() {
    let certificates = Certificates::new();
    let strangers = Certificates::new();
    let broker = Mosquitto::start(&certificates);
    let missing =
        CertificateFiles { certificate: "/nonexistent/gw.pem".into(), key: "/nonexistent/gw.key".into() };
    for (what, certificate, port, phase) in [
        ("nobody listens", None, dead_port(), "tcp"),
        ("a certificate that ran out", Some(certificates.expired_client("B86022.gw1")), broker.port(), "tls"),
        ("a certificate of another CA", Some(strangers.client("B86022.gw1")), broker.port(), "tls"),
        ("no certificate", Some(missing), broker.port(), "tls"),
    ] {
        let mut site =
            Site::new(&certificates, port, port, SiteOptions { certificate, ..SiteOptions::default() });
        site.start_gateway();
        let mut stream = connect(site.door).expect("the door");
        assert!(positive(&exchange(&mut stream, &message(1, 1, 10)).expect("an answer")), "{what}");
        harness::eventually_blocking(what, Duration::from_secs(30), || {
            let status = site.status()?;
            harness::site::adds_up(&status);
            assert_eq!(status["link_up"], 0, "{what}");
            let reason = status["state_reason"].as_str()?;
            (status["link_phase"] == phase && !reason.is_empty()).then_some(())
        });
        assert_eq!(site.status().expect("a status")["waiting"], 1);
        site.stop();
    }
}

#[test]
fn garbage_on_the_mllp_port_harms_nobody() {
    let (mut site, _certificates) = site(SiteOptions::default());
    site.start_gateway();
    let mut other = connect(site.door).expect("the door");
    let mut random = 0x1234_5678_9abc_def1_u64;
    for _ in 0..20 {
        let mut garbage = connect(site.door).expect("the door");
        let bytes: Vec<u8> = (0..5_000)
            .map(|_| {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                random as u8
            })
            .collect();
        let _ = garbage.write_all(&bytes);
        drop(garbage);
    }
    // A frame without a header gets a negative answer, and is kept.
    let mut stream = connect(site.door).expect("the door");
    let answer = exchange(&mut stream, b"this is not HL7").expect("an answer");
    assert!(!positive(&answer), "{}", String::from_utf8_lossy(&answer));
    assert!(answer.windows(4).any(|w| w == b"MSA|"), "{}", String::from_utf8_lossy(&answer));
    assert!(positive(&exchange(&mut other, &message(1, 1, 10)).expect("an answer")));
    let status = site.status().expect("a status");
    harness::site::adds_up(&status);
    assert_eq!(status["accepted_total"], 1, "{status}");
    assert!(status["refused_in_quarantine"].as_u64().expect("a number") >= 1, "{status}");
    site.stop();
}

#[test]
fn a_message_that_is_too_large_is_refused_by_name() {
    let (mut site, _certificates) =
        site(SiteOptions { outbox: "max_body_bytes = 50_000\n".into(), ..SiteOptions::default() });
    site.start_gateway();
    let mut stream = connect(site.door).expect("the door");
    let answer = exchange(&mut stream, &message(1, 1, 60_000)).expect("an answer");
    let text = String::from_utf8_lossy(&answer).into_owned();
    assert!(!positive(&answer), "{text}");
    assert!(text.to_lowercase().contains("large") || text.contains("limit"), "{text}");
    assert!(positive(&exchange(&mut stream, &message(1, 2, 10)).expect("the connection stays open")));
    let mut nothing = [0; 1];
    stream.set_read_timeout(Some(Duration::from_millis(50))).expect("set");
    assert!(stream.read(&mut nothing).is_err(), "exactly one acknowledgment each");
    site.stop();
}
