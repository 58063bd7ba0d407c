//! The HTTP door of the real daemon, driven with curl and, for errors that curl does not make, with raw sockets.
//!
//! `docs/openapi.yaml` is checked here: every method, path and status in it occurs, every answer that occurs is in it,
//! and its paths are the routes in the code.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use pgw_gateway::ingest::http::router::ROUTES;

use crate::harness::proof::Proof;
use crate::harness::senders::{connect, exchange, message, positive};
use crate::harness::{Certificates, Mosquitto, eventually_blocking};
use crate::http_kit::{Answer, Contract, Doors, curl, raw, uuid};

const TOKEN: &str = "0123456789abcdef0123456789";
const PATIENCE: Duration = Duration::from_secs(60);
const FHIR: &str = "Content-Type: application/fhir+json";
const HL7: &str = "Content-Type: application/hl7-v2+er7";

fn bundle(number: usize) -> Vec<u8> {
    format!(
        r#"{{"resourceType":"Bundle","type":"message","identifier":{{"system":"urn:x","value":"{number}"}},"entry":[{{"resource":
        {{"resourceType":"MessageHeader","eventCoding":{{"code":"servicerequest-request"}}}}}}]}}"#
    )
    .into_bytes()
}

fn ids(request: u32) -> [String; 2] {
    [format!("X-Request-ID: {}", uuid(request)), format!("X-Correlation-ID: {}", uuid(1))]
}

/// One request of the table.
struct Row<'a> {
    what: &'a str,
    path: &'a str,
    /// The path as in the contract.
    template: &'a str,
    headers: Vec<String>,
    body: Vec<u8>,
    status: u16,
    /// What the answer must contain.
    says: &'a str,
    /// Whether the body must then be in quarantine.
    kept: bool,
}

fn row<'a>(
    what: &'a str,
    path: &'a str,
    headers: &[&str],
    body: &[u8],
    status: u16,
    says: &'a str,
    kept: bool,
) -> Row<'a> {
    let template = match path {
        "/fhir/$process-message" | "/hl7" | "/v1/transactions" => path,
        _ => "/v1/transactions/{name}",
    };
    let headers = headers.iter().map(|h| (*h).to_owned()).collect();
    Row { what, path, template, headers, body: body.to_vec(), status, says, kept }
}

/// Every wrong (and right) input of the table in docs/ingest.md that needs no certificates and no fault.
fn rows() -> Vec<Row<'static>> {
    let [request, correlation] = ids(7);
    let both = [FHIR, request.as_str(), correlation.as_str()];
    let large = vec![b'x'; 60_000];
    let large_hl7 = message(1, 1, 60_000);
    let (tx, lane, fhir, hl7) =
        ("/v1/transactions", "/v1/transactions/clinical", "/fhir/$process-message", "/hl7");
    let mut rows = vec![
        row(
            "any bytes",
            tx,
            &["Content-Type: application/edifact"],
            b"UNA:+.? '",
            202,
            "\"repeated\":false",
            false,
        ),
        row(
            "the same again",
            tx,
            &["Content-Type: application/edifact"],
            b"UNA:+.? '",
            202,
            "\"repeated\":true",
            false,
        ),
        row("no content type", tx, &["Content-Type:"], b"\0\xff\x01", 202, "\"position\":2", false),
        row("a key", tx, &["Idempotency-Key: k1"], b"one", 202, "\"repeated\":false", false),
        row("the key again", tx, &["Idempotency-Key: k1"], b"one", 202, "\"repeated\":true", false),
        row("the key of another body", tx, &["Idempotency-Key: k1"], b"two", 422, "conflict", true),
        row(
            "a key of a body that has none",
            tx,
            &["Idempotency-Key: k2"],
            b"one",
            202,
            "\"repeated\":false",
            false,
        ),
        row("a tab in a key", tx, &["Idempotency-Key: a\tb"], b"zz", 400, "Idempotency-Key", true),
        row("an empty body", tx, &[], b"", 400, "required", false),
        row("a body that is too large", tx, &[], &large, 413, "too-long", true),
        row("a packed body", tx, &["Content-Encoding: gzip"], b"zz", 415, "not-supported", true),
        row("no media type", tx, &["Content-Type: text"], b"zz", 400, "value", true),
        row("a type that is none", tx, &["Ce-Type: a b"], b"zz", 400, "value", true),
        row("into a lane", lane, &[], b"lane", 202, "\"lane\":\"clinical\"", false),
        row("into no lane", "/v1/transactions/nowhere", &[], b"lane", 404, "not-found", true),
        row("empty into a lane", lane, &[], b"", 400, "required", false),
        row("too large into a lane", lane, &[], &large, 413, "too-long", true),
        row("packed into a lane", lane, &["Content-Encoding: br"], b"zz", 415, "not-supported", true),
        row("another content into a lane", lane, &["Idempotency-Key: k1"], b"three", 422, "conflict", true),
        row("a FHIR message", fhir, &both, &bundle(1), 202, "informational", false),
        row("the FHIR message again", fhir, &both, &bundle(1), 409, "\"duplicate\"", false),
        row("its id with another message", fhir, &both, &bundle(2), 409, "\"conflict\"", true),
        row("without X-Request-ID", fhir, &[FHIR, &correlation], &bundle(3), 400, "\"required\"", true),
        row("without X-Correlation-ID", fhir, &[FHIR, &request], &bundle(3), 400, "\"required\"", true),
        row(
            "an id that is no UUID",
            fhir,
            &[FHIR, "X-Request-ID: 1", &correlation],
            &bundle(3),
            400,
            "\"value\"",
            true,
        ),
        row(
            "FHIR in XML",
            fhir,
            &["Content-Type: application/fhir+xml", &request, &correlation],
            b"<Bundle/>",
            415,
            "REC_UNSUPPORTED_MEDIA_TYPE",
            true,
        ),
        row("no JSON", fhir, &both, b"{\"resourceType\"", 400, "REC_BAD_REQUEST", true),
        row(
            "no message",
            fhir,
            &both,
            b"{\"resourceType\":\"Bundle\",\"type\":\"searchset\"}",
            422,
            "REC_UNPROCESSABLE_ENTITY",
            true,
        ),
        row(
            "no MessageHeader",
            fhir,
            &both,
            b"{\"resourceType\":\"Bundle\",\"type\":\"message\",\"entry\":[]}",
            422,
            "MessageHeader",
            true,
        ),
        row("a FHIR message that is too large", fhir, &both, &large, 413, "too-long", true),
        row(
            "an HL7 message",
            hl7,
            &[HL7],
            &message(1, 1, 10),
            200,
            "MSA|CA|1-1|Stored for forwarding",
            false,
        ),
        row("the HL7 message again", hl7, &[HL7], &message(1, 1, 10), 200, "MSA|CA|1-1|", false),
        row("its number with another content", hl7, &[HL7], &message(1, 1, 11), 200, "MSA|CA|1-1|", false),
        row(
            "an HL7 message as plain text",
            hl7,
            &["Content-Type: text/plain"],
            &message(1, 2, 10),
            200,
            "MSA|CA|1-2|",
            false,
        ),
        row(
            "HL7 under a key",
            hl7,
            &[HL7, "Idempotency-Key: h"],
            &message(1, 3, 10),
            200,
            "MSA|CA|1-3|",
            false,
        ),
        row(
            "another HL7 message under the key",
            hl7,
            &[HL7, "Idempotency-Key: h"],
            &message(1, 4, 10),
            422,
            "MSA|CR|1-4|",
            true,
        ),
        row("no header", hl7, &[HL7], b"PID|1", 400, "MSA|AR|", true),
        row("a batch", hl7, &[HL7], b"FHS|^~\\&|A", 400, "Batches", true),
        row(
            "HL7 in XML",
            hl7,
            &["Content-Type: application/hl7-v2+xml"],
            b"<ORU/>",
            415,
            "not-supported",
            true,
        ),
        row("an HL7 message that is too large", hl7, &[HL7], &large_hl7, 413, "MSA|CE|1-1|", true),
    ];
    let long = format!("Idempotency-Key: {}", "k".repeat(300));
    rows.push(row("a key that is too long", tx, &[&long], b"zz", 400, "Idempotency-Key", true));
    rows
}

#[test]
fn each_right_and_wrong_input_gets_what_the_contract_says() {
    let contract = Contract::read();
    let routes: BTreeSet<(String, String)> =
        ROUTES.iter().map(|(method, path)| ((*method).to_owned(), (*path).to_owned())).collect();
    assert_eq!(contract.routes(), routes, "docs/openapi.yaml and the routes in the code");

    let certificates = Certificates::new();
    let mut doors = Doors::new(&certificates, TOKEN);
    doors.site.start_gateway();
    let (open, guarded) = (doors.open, doors.guarded);
    let mut given = BTreeSet::new();
    let mut give = |method: &str, template: &str, answer: &Answer| {
        contract.check(method, template, answer);
        given.insert((method.to_owned(), template.to_owned(), answer.status));
    };

    let mut kept = 0;
    for row in rows() {
        let echo = "X-Correlation-ID: 0000-echo";
        let mut headers = row.headers.clone();
        if !headers.iter().any(|h| h.starts_with("X-")) && row.template != "/fhir/$process-message" {
            headers.push(echo.to_owned());
        }
        let answer = curl(&format!("http://{open}{}", row.path), &headers, Some(&row.body), &[]);
        let text = answer.text();
        assert_eq!(answer.status, row.status, "{}: {text}", row.what);
        assert!(text.contains(row.says), "{}: {} is not in {text}", row.what, row.says);
        for header in headers.iter().filter(|h| h.starts_with("X-")) {
            let (name, value) = header.split_once(": ").unwrap();
            assert_eq!(answer.header(name), Some(value), "{}: {name} is not echoed", row.what);
        }
        give("post", row.template, &answer);
        kept += u64::from(row.kept);
        let status = doors.site.status().expect("a status");
        assert_eq!(status["refused_in_quarantine"], kept, "{}: {status}", row.what);
        if (200..300).contains(&row.status) {
            let location = answer.header("Location").expect("a place").to_owned();
            let found = curl(&format!("http://{open}{location}"), &[], None, &[]);
            assert_eq!(found.status, 200, "{}: {}", row.what, found.text());
            assert_eq!(found.json()["bytes"], row.body.len(), "{}", row.what);
            give("get", "/v1/transactions/{name}", &found);
            let id = location.split(['?', '/']).nth(3).expect("an id").to_owned();
            let bare = curl(&format!("http://{open}/v1/transactions/{id}"), &[], None, &[]);
            assert_eq!(bare.text(), found.text(), "{}: the same without hints", row.what);
        }
    }

    // Requests without a body, and unknown paths.
    for (path, template, status, says) in [
        ("/v1/transactions/nobody", "/v1/transactions/{name}", 400, "value"),
        (
            "/v1/transactions/01939b1e-0000-7000-8000-000000000001?position=false",
            "/v1/transactions/{name}",
            400,
            "hints",
        ),
        (
            "/v1/transactions/01939b1e-0000-7000-8000-000000000001?lane=Clinical",
            "/v1/transactions/{name}",
            400,
            "hints",
        ),
        (
            "/v1/transactions/01939b1e-0000-7000-8000-000000000001",
            "/v1/transactions/{name}",
            404,
            "not-found",
        ),
        ("/fhir/Appointment?patient=1", "/fhir/{query}", 501, "REC_NOT_IMPLEMENTED"),
        ("/healthz", "/healthz", 200, "alive"),
        ("/readyz", "/readyz", 200, "ready"),
        ("/metrics", "/metrics", 200, "pgw_accepted_total "),
    ] {
        let answer = curl(&format!("http://{open}{path}"), &[], None, &[]);
        assert_eq!(answer.status, status, "{path}: {}", answer.text());
        assert!(answer.text().contains(says), "{path}: {}", answer.text());
        give("get", template, &answer);
    }
    for (path, status) in [("/", 404), ("/v1/transaction", 404), ("/hl7/", 404)] {
        assert_eq!(curl(&format!("http://{open}{path}"), &[], None, &[]).status, status, "{path}");
    }
    for (path, allow) in [("/hl7", "POST"), ("/metrics", "GET,HEAD")] {
        let answer = curl(&format!("http://{open}{path}"), &[], None, &["-X", "DELETE"]);
        assert_eq!((answer.status, answer.header("Allow")), (405, Some(allow)), "{path}");
    }

    // Strangers, at the guarded door.
    let ca = certificates.ca().display().to_string();
    for (method, path, template) in [
        ("post", "/v1/transactions", "/v1/transactions"),
        ("post", "/v1/transactions/clinical", "/v1/transactions/{name}"),
        ("get", "/v1/transactions/01939b1e-0000-7000-8000-000000000001", "/v1/transactions/{name}"),
        ("post", "/fhir/$process-message", "/fhir/$process-message"),
        ("get", "/fhir/Slot", "/fhir/{query}"),
        ("post", "/hl7", "/hl7"),
        ("get", "/metrics", "/metrics"),
    ] {
        let body = (method == "post").then_some(&b"MSH|^~\\&|from a stranger"[..]);
        let answer = curl(&format!("https://{guarded}{path}"), &[], body, &["--cacert", &ca]);
        assert_eq!((answer.status, answer.header("WWW-Authenticate")), (401, Some("Bearer")), "{path}");
        give(method, template, &answer);
    }
    let status = doors.site.status().expect("a status");
    assert_eq!(status["refused_in_quarantine"], kept, "what strangers send is not kept: {status}");

    // A body that does not arrive.
    for (path, template) in [
        ("/v1/transactions", "/v1/transactions"),
        ("/v1/transactions/clinical", "/v1/transactions/{name}"),
        ("/fhir/$process-message", "/fhir/$process-message"),
        ("/hl7", "/hl7"),
    ] {
        let request = format!("POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n12345");
        let answer = Answer::read(&raw(open, request.as_bytes(), false));
        assert_eq!((answer.status, answer.header("Connection")), (408, Some("close")), "{path}");
        give("post", template, &answer);
    }

    // Nothing can be stored.
    let mut full = Doors::full(&certificates);
    full.site.start_gateway();
    for (path, template, headers) in [
        ("/v1/transactions", "/v1/transactions", vec![]),
        ("/v1/transactions/clinical", "/v1/transactions/{name}", vec![]),
        (
            "/fhir/$process-message",
            "/fhir/$process-message",
            [vec![FHIR.to_owned()], ids(1).to_vec()].concat(),
        ),
        ("/hl7", "/hl7", vec![HL7.to_owned()]),
    ] {
        let body = if path == "/hl7" { message(1, 1, 1) } else { bundle(1) };
        let answer = curl(&format!("http://{}{path}", full.open), &headers, Some(&body), &[]);
        assert_eq!(answer.status, 503, "{path}: {}", answer.text());
        assert_eq!(answer.header("Retry-After"), Some("10"), "{path}");
        give("post", template, &answer);
    }
    let answer = curl(&format!("http://{}/readyz", full.open), &[], None, &[]);
    assert_eq!(answer.status, 503, "{}", answer.text());
    give("get", "/readyz", &answer);
    assert_eq!(curl(&format!("http://{}/healthz", full.open), &[], None, &[]).status, 200);
    let status = full.site.status().expect("a status");
    assert_eq!(
        (&status["accepted_total"], &status["refused_in_quarantine"]),
        (&0.into(), &0.into()),
        "{status}"
    );

    assert_eq!(given, contract.all(), "what was given, and what docs/openapi.yaml says");
    doors.site.stop();
    full.site.stop();
}

#[test]
fn certificates_and_tokens_let_in_who_has_one_and_name_the_sender() {
    let certificates = Certificates::new();
    let strangers = Certificates::new();
    let mut doors = Doors::new(&certificates, TOKEN);
    doors.site.start_gateway();
    let url = format!("https://{}/v1/transactions", doors.guarded);
    let ca = certificates.ca().display().to_string();
    let known = certificates.client("pc-7");
    let (cert, key) = (known.certificate.display().to_string(), known.key.display().to_string());
    let authorization = [format!("Authorization: Bearer {TOKEN}")];
    let sender = |answer: &Answer| {
        assert_eq!(answer.status, 202, "{}", answer.text());
        let place = format!("https://{}{}", doors.guarded, answer.header("Location").expect("a place"));
        curl(&place, &authorization, None, &["--cacert", &ca]).json()["sender"].as_str().unwrap().to_owned()
    };
    let by_token = curl(&url, &authorization, Some(b"by token"), &["--cacert", &ca]);
    assert_eq!(sender(&by_token), "http:lab-1");
    let with_certificate = ["--cacert", &ca, "--cert", &cert, "--key", &key];
    let by_certificate = curl(&url, &[], Some(b"by certificate"), &with_certificate);
    assert_eq!(sender(&by_certificate), "http:pc-7");
    // The same key of two senders is two keys.
    let shared = ["Idempotency-Key: 1".to_owned()];
    assert_eq!(curl(&url, &shared, Some(b"a"), &with_certificate).status, 202);
    let other = [authorization.to_vec(), shared.to_vec()].concat();
    assert_eq!(curl(&url, &other, Some(b"b"), &["--cacert", &ca]).status, 202);

    let wrong = ["Authorization: Bearer 0123456789abcdef012345678X".to_owned()];
    assert_eq!(curl(&url, &wrong, Some(b"x"), &["--cacert", &ca]).status, 401);
    for bad in [strangers.client("pc-7"), certificates.expired_client("pc-7")] {
        let (cert, key) = (bad.certificate.display().to_string(), bad.key.display().to_string());
        let answer = curl(&url, &[], Some(b"x"), &["--cacert", &ca, "--cert", &cert, "--key", &key]);
        assert_eq!(answer.status, 0, "the handshake must fail: {}", answer.text());
    }
    // HTTP at a TLS door, and junk, do no harm.
    assert_eq!(curl(&format!("http://{}/healthz", doors.guarded), &[], None, &[]).status, 0);
    raw(doors.guarded, &[0x16, 3, 1, 0xff, 0xff, 1, 2, 3], true);
    assert_eq!(curl(&url, &authorization, Some(b"more"), &["--cacert", &ca]).status, 202);

    // A removed token stops working at SIGHUP, and a new one starts; a bad file changes nothing.
    let fresh = "fresh-fresh-fresh-fresh-fresh";
    let renewed = [format!("Authorization: Bearer {fresh}")];
    doors.write_tokens(&format!("lab-1 {fresh}\n"));
    doors.hang_up();
    eventually_blocking("the new token", PATIENCE, || {
        (curl(&url, &renewed, Some(b"more"), &["--cacert", &ca]).status == 202).then_some(())
    });
    assert_eq!(curl(&url, &authorization, Some(b"more"), &["--cacert", &ca]).status, 401);
    for (times, bad) in ["nonsense\n", ""].into_iter().enumerate() {
        doors.write_tokens(bad);
        doors.hang_up();
        eventually_blocking("the word about the bad file", PATIENCE, || {
            let said = "Could not reload the certificates and tokens of the HTTP door";
            (doors.site.log("gateway").matches(said).count() > times).then_some(())
        });
        assert_eq!(curl(&url, &renewed, Some(b"more"), &["--cacert", &ca]).status, 202, "{bad:?}");
    }
    let log = doors.site.log("gateway");
    assert!(!log.contains(TOKEN) && !log.contains(fresh) && !log.contains("nonsense"), "{log}");
    doors.site.stop();
}

#[test]
fn check_finds_the_files_that_run_refuses() {
    let certificates = Certificates::new();
    let doors = Doors::new(&certificates, TOKEN);
    let output = doors.site.gateway_command(&["check"]);
    let printed = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success() && printed.contains("OK    http "), "{printed}");
    for (bad, says) in
        [("nonsense\n", "http.tokens:1:"), ("", "there is no token"), ("# later\n", "no token")]
    {
        doors.write_tokens(bad);
        for command in ["check", "run"] {
            let output = doors.site.gateway_command(&[command]);
            let printed = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
            assert_eq!(output.status.code(), Some(78), "{command} {bad:?}: {printed}");
            assert!(printed.contains(says), "{command} {bad:?}: {printed}");
        }
    }
}

#[test]
fn a_door_to_the_world_without_a_guard_is_no_configuration() {
    let certificates = Certificates::new();
    let doors = Doors::new(&certificates, TOKEN);
    let good = std::fs::read_to_string(doors.site.gateway_config()).unwrap();
    for (from, to, says) in [
        (format!("listen = \"{}\"", doors.open), "listen = \"0.0.0.0:0\"".to_owned(), "a loopback address"),
        ("tokens_file = ".to_owned(), "# ".to_owned(), ""),
        ("key_file = ".to_owned(), "# ".to_owned(), "http.key_file is missing"),
        ("\"lab-1".to_owned(), "\"lab-1".to_owned(), ""),
    ] {
        let (head, tail) = good.split_once("[[http]]").unwrap();
        let changed = format!("{head}[[http]]{}", tail.replacen(&from, &to, 1));
        std::fs::write(doors.site.gateway_config(), changed).unwrap();
        let output = doors.site.gateway_command(&["check"]);
        let printed = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(printed.contains("gateway.toml"), "{printed}");
        if !says.is_empty() {
            assert_eq!(output.status.code(), Some(78), "{to}: {printed}");
            assert!(printed.contains(says), "{to}: {printed}");
        }
    }
}

#[test]
fn slow_and_broken_clients_are_let_go_and_others_do_not_wait() {
    let certificates = Certificates::new();
    let mut doors = Doors::new(&certificates, TOKEN);
    doors.site.start_gateway();
    let open = doors.open;
    // Headers that do not arrive, and no request at all: closed without an answer, after a second.
    for begun in [&b"POST /hl7 HTTP/1.1\r\nHost: x\r\nX-"[..], b""] {
        let start = Instant::now();
        let answer = raw(open, begun, false);
        assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 408"), "{answer:?}");
        assert!((0.5..20.0).contains(&start.elapsed().as_secs_f64()), "{:?}", start.elapsed());
    }
    // One byte at a time, for ever: the time limit is for the whole body.
    let mut slow = TcpStream::connect(open).unwrap();
    slow.write_all(b"POST /hl7 HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n").unwrap();
    let start = Instant::now();
    let mut answer = [0; 12];
    slow.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    while slow.read_exact(&mut answer).is_err() {
        assert!(start.elapsed() < PATIENCE);
        let _ = slow.write_all(b"x");
        assert!(curl(&format!("http://{open}/healthz"), &[], None, &[]).status == 200);
    }
    assert_eq!(&answer, b"HTTP/1.1 408");
    // A body that ends early is not stored.
    let before = doors.site.status().expect("a status")["accepted_total"].clone();
    raw(open, b"POST /v1/transactions HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n12345", true);
    raw(
        open,
        b"POST /v1/transactions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n12345\r\n",
        true,
    );
    for (request, status) in [
        (&b"not http at all\r\n\r\n"[..], 400),
        (b"POST /v1/transactions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
        (b"POST /v1/transactions HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", 400),
    ] {
        let answer = raw(open, request, false);
        assert_eq!(Answer::read(&answer).status, status, "{}", String::from_utf8_lossy(request));
    }
    let long = format!("GET /healthz HTTP/1.1\r\nHost: x\r\nX-Long: {}\r\n\r\n", "x".repeat(40_000));
    let many = format!("GET /healthz HTTP/1.1\r\nHost: x\r\n{}\r\n", "X-Many: x\r\n".repeat(100));
    for request in [long, many] {
        assert_eq!(Answer::read(&raw(open, request.as_bytes(), false)).status, 431);
    }
    assert_eq!(doors.site.status().expect("a status")["accepted_total"], before, "nothing of it was stored");
    // Two requests in one write are answered one after the other.
    let one = "POST /v1/transactions HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n";
    let answers = raw(open, format!("{one}p1{one}p2").as_bytes(), true);
    assert_eq!(String::from_utf8_lossy(&answers).matches("HTTP/1.1 202").count(), 2);
    // Chunked, and with a `100 Continue` before the body.
    let chunked = ["Transfer-Encoding: chunked".to_owned()];
    assert_eq!(
        curl(&format!("http://{open}/v1/transactions"), &chunked, Some(&[9; 40_000]), &[]).status,
        202
    );
    let expecting = ["Expect: 100-continue".to_owned()];
    let url = format!("http://{open}/v1/transactions");
    assert_eq!(curl(&url, &expecting, Some(&[8; 40_000]), &[]).status, 202);
    assert_eq!(curl(&url, &expecting, Some(&[8; 60_000]), &[]).status, 413);
    doors.site.stop();
}

#[test]
fn connections_beyond_the_limit_are_closed_and_the_door_stays_open() {
    let certificates = Certificates::new();
    let mut doors = Doors::new(&certificates, TOKEN);
    doors.site.start_gateway();
    // The door with fhir = "plain" accepts two at once, for as long as a header may take.
    let mut held: Vec<TcpStream> = (0..2).map(|_| TcpStream::connect(doors.plain).unwrap()).collect();
    for stream in &mut held {
        stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        let mut first = [0; 12];
        stream.read_exact(&mut first).unwrap();
        assert_eq!(&first, b"HTTP/1.1 200");
    }
    assert_eq!(raw(doors.plain, b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n", true), b"");
    drop(held);
    eventually_blocking("space again", PATIENCE, || {
        let answer = raw(doors.plain, b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n", true);
        answer.starts_with(b"HTTP/1.1 200").then_some(())
    });
    // At that door ids are optional, the message's own identifier is its key, and a repetition is no error.
    let url = format!("http://{}/fhir/$process-message", doors.plain);
    let send = |body: &[u8]| curl(&url, &[FHIR.to_owned()], Some(body), &[]);
    let (first, again) = (send(&bundle(5)), send(&bundle(5)));
    assert_eq!((first.status, again.status), (202, 202), "{}", again.text());
    assert_eq!(first.header("Location"), again.header("Location"));
    doors.site.stop();
}

#[test]
fn kill_9_in_the_middle_loses_nothing_and_a_repetition_gets_the_first_answer() {
    let certificates = Certificates::new();
    let mut doors = Doors::new(&certificates, TOKEN);
    doors.site.start_gateway();
    let open = doors.open;
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let senders: Vec<_> = (0..3)
        .map(|sender| {
            let stop = std::sync::Arc::clone(&stop);
            std::thread::spawn(move || {
                let mut places: Vec<String> = Vec::new();
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    let number = places.len();
                    let body = format!("body {sender} {number}");
                    let request = format!(
                        "POST /v1/transactions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nIdempotency-Key: {sender}-{number}\r\nContent-Length: {}\r\n\r\n{body}",
                        body.len()
                    );
                    // Repeats until there is an answer, as a real sender does.
                    let answer = attempt(open, request.as_bytes());
                    if answer.starts_with(b"HTTP/1.1 202") {
                        let answer = Answer::read(&answer);
                        places.push(answer.header("Location").expect("a place").to_owned());
                    }
                }
                places
            })
        })
        .collect();
    for round in 1..=5 {
        doors.site.wait_for("accepted_total", round * 60, PATIENCE);
        doors.site.kill_gateway();
        doors.site.start_gateway();
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    let places: Vec<Vec<String>> = senders.into_iter().map(|s| s.join().unwrap()).collect();
    let all: BTreeSet<&String> = places.iter().flatten().collect();
    assert_eq!(all.len(), places.iter().map(Vec::len).sum::<usize>(), "no two have one place");
    for (sender, places) in places.iter().enumerate() {
        for (number, place) in places.iter().enumerate() {
            let found = curl(&format!("http://{open}{place}"), &[], None, &[]);
            let length = format!("body {sender} {number}").len();
            assert_eq!((found.status, &found.json()["bytes"]), (200, &length.into()), "{place}");
        }
    }
    let accepted = doors.site.status().expect("a status")["accepted_total"].as_u64().expect("a number");
    let answered = all.len() as u64;
    // One request of each sender may be stored without an answer: the sender stops without repeating it.
    assert!((answered..=answered + 3).contains(&accepted), "{accepted} stored, {answered} answered");
    // Known keys after the restart: the first answer again, and no other content is accepted.
    let url = format!("http://{open}/v1/transactions");
    let key = ["Idempotency-Key: 0-0".to_owned()];
    let again = curl(&url, &key, Some(b"body 0 0"), &[]);
    assert_eq!((again.status, again.header("Location")), (202, Some(places[0][0].as_str())));
    eventually_blocking("the old keys to be known", PATIENCE, || {
        (curl(&url, &key, Some(b"other"), &[]).status == 422).then_some(())
    });
    doors.site.stop();
    assert!(doors.site.gateway_command(&["verify"]).status.code() != Some(65));
}

/// The answer, whatever it is; nothing while the gateway is not running.
fn attempt(door: SocketAddr, request: &[u8]) -> Vec<u8> {
    let Ok(mut stream) = TcpStream::connect(door) else {
        std::thread::sleep(Duration::from_millis(5)); // nothing listens: no need to try faster
        return Vec::new();
    };
    let mut answer = Vec::new();
    let _ = stream.set_read_timeout(Some(PATIENCE));
    let _ = stream.write_all(request);
    let _ = stream.read_to_end(&mut answer);
    answer
}

#[test]
fn what_comes_in_by_http_is_at_the_hub_byte_for_byte_and_once_beside_mllp() {
    let certificates = Certificates::new();
    let broker = Mosquitto::start(&certificates);
    let mut doors = Doors::with_upstream(&certificates, TOKEN, broker.port());
    doors.site.start_hub();
    doors.site.start_gateway();
    let url = |path: &str| format!("http://{}{path}", doors.open);
    let mut safe = Vec::new();
    for number in 0..20_u8 {
        let body: Vec<u8> = (0..=255).chain([number]).collect();
        assert_eq!(curl(&url("/v1/transactions"), &[], Some(&body), &[]).status, 202);
        safe.push(body);
        let body = bundle(number.into());
        let headers = [vec![FHIR.to_owned()], ids(u32::from(number)).to_vec()].concat();
        assert_eq!(curl(&url("/fhir/$process-message"), &headers, Some(&body), &[]).status, 202);
        safe.push(body);
        let body = message(1, number.into(), 10);
        assert_eq!(curl(&url("/hl7"), &[HL7.to_owned()], Some(&body), &[]).status, 200);
        // The same message by the other door is the same transaction.
        let mut stream = connect(doors.site.door).unwrap();
        assert!(positive(&exchange(&mut stream, &body).unwrap()));
        stream.shutdown(Shutdown::Both).unwrap();
        safe.push(body);
    }
    doors.site.wait_for("confirmed_total", 60, PATIENCE);
    assert_eq!(doors.site.status().expect("a status")["accepted_total"], 60);
    let last = curl(&url("/hl7"), &[HL7.to_owned()], Some(&message(1, 19, 10)), &[]);
    let place = url(last.header("Location").expect("a place"));
    assert_eq!(curl(&place, &[], None, &[]).json()["state"], "confirmed");
    doors.site.stop();
    let proof = Proof::of(&doors.site.store(), &[safe]).expect("the hub's files");
    assert_eq!((proof.lost, proof.repeated, proof.out_of_order, proof.delivered), (0, 0, 0, 60), "{proof:?}");
    assert!(proof.chain_ok);
}
