//! What must hold for any bytes: no panic, no memory beyond a bound, and what is read means one thing.
//!
//! The fuzz targets call these, and so does `tests/model/fuzz_corpus.rs`, which needs no nightly compiler.

use std::collections::VecDeque;
use std::path::Path;

use pgw_core::wire::command::{Command, CommandResult};
use pgw_core::wire::envelope::Envelope;
use pgw_core::wire::from_json;
use pgw_core::wire::receipt::{Gap, Position, Receipt, nonce_bytes};
use pgw_core::wire::topic::Topic;
use pgw_gateway::config::GatewayConfig;
use pgw_gateway::control::Request;
use pgw_gateway::ingest::http::fhir::Peek;
use pgw_gateway::ingest::mllp::ack::{AckOutcome, Fault, MAX_BYTES, Stamp, acknowledgment};
use pgw_gateway::ingest::mllp::codec::{Decoder, Event, HEAD_BYTES};
use pgw_gateway::ingest::mllp::envelope;
use pgw_gateway::ingest::mllp::msh::Msh;
use pgw_outbox::fuzz_support;

/// What must hold for any bytes.
pub type Check = fn(&[u8]);

/// Every target by its name.
pub const TARGETS: [(&str, Check); 7] = [
    ("mllp", mllp),
    ("msh", msh),
    ("fhir", fhir),
    ("record", record),
    ("receipt", receipt),
    ("command", command),
    ("configuration", configuration),
];

/// The MLLP decoder: whole or in pieces the same frames come out, and no more is held than was allowed.
pub fn mllp(data: &[u8]) {
    let [limit, piece, data @ ..] = data else { return };
    let limit = 16 + usize::from(*limit) * 64;
    let whole = decode(data, limit, data.len().max(1));
    let pieces = decode(data, limit, usize::from(*piece).max(1));
    assert_eq!(whole, pieces);
    let mut bytes = 0;
    for event in &whole {
        match event {
            Event::Frame(body) => {
                assert!(body.len() <= limit);
                bytes += body.len();
                msh(body.as_bytes());
            }
            Event::TooLarge { head, bytes } => assert!(head.len() <= HEAD_BYTES && *bytes > limit as u64),
        }
    }
    assert!(bytes <= data.len(), "what came out was never sent");
}

fn decode(data: &[u8], limit: usize, piece: usize) -> VecDeque<Event> {
    let (mut decoder, mut events) = (Decoder::new(limit, 30_000), VecDeque::new());
    for part in data.chunks(piece) {
        decoder.handle(part, 7, &mut events);
        assert!(
            decoder.held_bytes() <= limit.max(HEAD_BYTES) + 8 * 1024,
            "{} bytes held",
            decoder.held_bytes()
        );
    }
    decoder.finish(&mut events);
    events
}

/// The MSH reader, and all that is made of a header: every answer is one small frame, every name is harmless.
pub fn msh(data: &[u8]) {
    let msh = Msh::read(data);
    if let Some(msh) = &msh {
        let harmless = |text: &str| text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-~:%".contains(&b));
        assert!(harmless(&envelope::event_type(msh)) && harmless(&envelope::sender_name(msh)));
        let _ = (envelope::content_type(msh), envelope::key(msh), envelope::sender(msh));
    }
    let stamp = Stamp { now: 1_795_385_530_123, control_id: "PGW1" };
    for outcome in
        [AckOutcome::Stored, AckOutcome::Refused(Fault::NO_HEADER), AckOutcome::Refused(Fault::TOO_LARGE)]
    {
        let Some(framed) = acknowledgment(msh.as_ref(), outcome, stamp) else { continue };
        assert!(framed.len() < MAX_BYTES);
        let frames = decode(&framed, MAX_BYTES, framed.len());
        assert!(matches!(frames.as_slices().0, [Event::Frame(_)]), "one answer is one frame");
    }
}

/// The look into a FHIR message.
pub fn fhir(data: &[u8]) {
    if let Ok(peek) = Peek::read(data) {
        assert!(peek.event_type().len() <= 256 && peek.key().len() <= 4096);
    }
}

/// Records and chunks of the store.
pub fn record(data: &[u8]) {
    let parts = fuzz_support::record(data).expect("a header means what it says");
    assert!(parts <= data.len());
}

/// What comes over the broker: receipts, commands, gaps, positions, topics, envelopes.
pub fn receipt(data: &[u8]) {
    let _ = (from_json::<Gap>(data), from_json::<Position>(data), from_json::<CommandResult>(data));
    if let Ok(command) = from_json::<Command>(data) {
        let again = pgw_core::wire::to_json(&command);
        assert_eq!(from_json::<Command>(&again).ok(), Some(command), "it means what it says");
    }
    if let Ok(receipt) = from_json::<Receipt>(data) {
        let again = pgw_core::wire::to_json(&receipt);
        assert_eq!(from_json::<Receipt>(&again).ok(), Some(receipt), "it means what it says");
    }
    let Ok(text) = std::str::from_utf8(data) else { return };
    let _ = (nonce_bytes(text), Topic::parse(text));
    let mut lines = text.lines();
    let content_type = lines.next().map(str::to_owned);
    let properties: Vec<(String, String)> = lines
        .filter_map(|line| line.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    if let Ok(envelope) = Envelope::from_properties(content_type.clone(), properties) {
        let (content_type, properties) = envelope.clone().into_properties();
        let again = Envelope::from_properties(Some(content_type), properties);
        assert_eq!(again.ok(), Some(envelope));
    }
}

/// Requests at the control socket.
pub fn command(data: &[u8]) {
    if let Ok(request) = serde_json::from_slice::<Request>(data) {
        let again = serde_json::to_vec(&request).unwrap();
        assert_eq!(serde_json::from_slice::<Request>(&again).ok(), Some(request));
    }
}

/// The gateway's configuration; an error names the file.
pub fn configuration(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Err(error) = GatewayConfig::of_text(Path::new("/nonexistent/gateway.toml"), text) {
        assert!(error.to_string().contains("gateway.toml"), "{error}");
    }
}
