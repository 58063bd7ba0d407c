//! The lines of a lane file. `docs/on-disk-format.md` is the contract.
//!
//! - a transaction: one CloudEvents 1.0 JSON object, its body in `data_base64`, recognised by `specversion`
//! - `{"pgw":"group",...}`: a group begins; it holds all watermarks of the lane before it, so that a file is
//!   self-contained from here
//! - `{"pgw":"advance",...}`: a transaction whose id is already stored was numbered again after a fork
//! - `{"pgw":"void",...}`: a lost transaction that a person wrote off: its number, the chain values before and after
//!
//! A program that follows the transactions reads the lines with `specversion` and skips those with `pgw`.

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use pgw_core::chain::{ChainValue, Link};
use pgw_core::transaction::{Epoch, Sequence};
use pgw_core::wire::envelope::Envelope;
use pgw_core::wire::void::Void;
use serde::Deserialize;
use uuid::Uuid;

use super::{LaneName, Through};

/// How each group begins; no other line begins so, and a line cannot contain a newline.
pub const GROUP_START: &[u8] = br#"{"pgw":"group","#;

/// Writes the line with which a group begins.
pub fn write_group(out: &mut Vec<u8>, time: &str, watermarks: &[Through]) {
    out.extend_from_slice(GROUP_START);
    out.extend_from_slice(br#""time":""#);
    out.extend_from_slice(time.as_bytes());
    out.extend_from_slice(br#"","epochs":["#);
    for (index, watermark) in watermarks.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        out.extend_from_slice(br#"{"epoch":""#);
        write_uuid(out, watermark.epoch.0);
        out.extend_from_slice(br#"","through":""#);
        write_number(out, watermark.through);
        out.extend_from_slice(br#"","chain":""#);
        write_hex(out, watermark.chain);
        out.extend_from_slice(br#""}"#);
    }
    out.extend_from_slice(b"]}\n");
}

/// Writes a transaction as a CloudEvents JSON object.
pub fn write_record(out: &mut Vec<u8>, lane: &LaneName, envelope: &Envelope, body: &[u8]) {
    out.reserve(640 + body.len().div_ceil(3) * 4);
    out.extend_from_slice(br#"{"specversion":"1.0","id":""#);
    write_uuid(out, envelope.id);
    out.push(b'"');
    for (name, value) in [
        (r#","source":"#, envelope.source.as_str()),
        (r#","type":"#, &envelope.event_type),
        (r#","time":"#, &envelope.time),
        (r#","datacontenttype":"#, &envelope.content_type),
        (r#","practice":"#, lane.practice.as_str()),
        (r#","gateway":"#, lane.gateway.as_str()),
        (r#","lane":"#, lane.lane.as_str()),
    ] {
        out.extend_from_slice(name.as_bytes());
        write_text(out, value);
    }
    write_numbers(out, envelope);
    for (name, value) in [
        (r#","kind":"#, envelope.kind.as_str()),
        (r#","clock":"#, &envelope.clock),
        (r#","correlationid":"#, &envelope.correlation_id),
    ] {
        if !value.is_empty() {
            out.extend_from_slice(name.as_bytes());
            write_text(out, value);
        }
    }
    if envelope.test_data {
        out.extend_from_slice(br#","testdata":true"#);
    }
    out.extend_from_slice(br#","data_base64":""#);
    let start = out.len();
    out.resize(start + body.len().div_ceil(3) * 4, 0);
    // The reserved space is exact, so this cannot fail; the chain value would reveal a line cut short.
    let written = BASE64.encode_slice(body, &mut out[start..]).unwrap_or_default();
    out.truncate(start + written);
    out.extend_from_slice(b"\"}\n");
}

/// Records that a transaction is already stored under another number.
pub fn write_advance(out: &mut Vec<u8>, envelope: &Envelope) {
    out.extend_from_slice(br#"{"pgw":"advance","id":""#);
    write_uuid(out, envelope.id);
    out.push(b'"');
    write_numbers(out, envelope);
    out.extend_from_slice(b"}\n");
}

/// Records that a transaction is lost for good and was written off by a person.
pub fn write_void(out: &mut Vec<u8>, envelope: &Envelope, void: &Void) {
    out.extend_from_slice(br#"{"pgw":"void","id":""#);
    write_uuid(out, envelope.id);
    out.push(b'"');
    write_numbers(out, envelope);
    out.extend_from_slice(br#","previous":""#);
    write_hex(out, void.previous);
    out.extend_from_slice(br#"","time":"#);
    write_text(out, &void.time);
    out.extend_from_slice(br#","reason":"#);
    write_text(out, &void.reason);
    out.extend_from_slice(b"}\n");
}

fn write_numbers(out: &mut Vec<u8>, envelope: &Envelope) {
    out.extend_from_slice(br#","epoch":""#);
    write_uuid(out, envelope.epoch.0);
    out.extend_from_slice(br#"","sequence":""#);
    write_number(out, envelope.sequence);
    out.extend_from_slice(br#"","chain":""#);
    write_hex(out, envelope.chain);
    out.push(b'"');
}

fn write_uuid(out: &mut Vec<u8>, uuid: Uuid) {
    let mut text = [0; uuid::fmt::Hyphenated::LENGTH];
    out.extend_from_slice(uuid.as_hyphenated().encode_lower(&mut text).as_bytes());
}

fn write_number(out: &mut Vec<u8>, mut number: u64) {
    let mut digits = [0u8; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + u8::try_from(number % 10).unwrap_or_default();
        number /= 10;
        if number == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

const HEX: &[u8; 16] = b"0123456789abcdef";

fn write_hex(out: &mut Vec<u8>, chain: ChainValue) {
    for byte in chain.0 {
        out.push(HEX[usize::from(byte >> 4)]);
        out.push(HEX[usize::from(byte & 15)]);
    }
}

/// A JSON string (RFC 8259 section 7).
fn write_text(out: &mut Vec<u8>, text: &str) {
    out.push(b'"');
    let bytes = text.as_bytes();
    let mut plain_from = 0;
    for (at, &byte) in bytes.iter().enumerate() {
        if byte >= b' ' && byte != b'"' && byte != b'\\' {
            continue;
        }
        out.extend_from_slice(&bytes[plain_from..at]);
        plain_from = at + 1;
        match byte {
            b'"' | b'\\' => out.extend_from_slice(&[b'\\', byte]),
            _ => {
                out.extend_from_slice(br"\u00");
                out.push(HEX[usize::from(byte >> 4)]);
                out.push(HEX[usize::from(byte & 15)]);
            }
        }
    }
    out.extend_from_slice(&bytes[plain_from..]);
    out.push(b'"');
}

/// A line that was read.
#[derive(Debug)]
pub enum Line<'a> {
    /// A group begins; the watermarks before it.
    Group(Vec<Through>),
    /// A transaction.
    Record(Box<Record<'a>>),
    /// A transaction that is already stored was numbered again.
    Advance {
        /// Its number and chain value.
        watermark: Through,
        /// Its id.
        id: Uuid,
    },
    /// A lost transaction that was written off by a person.
    Void {
        /// Its number, and the chain value after it.
        watermark: Through,
        /// The chain value before it.
        previous: ChainValue,
        /// The person's reason.
        reason: Cow<'a, str>,
    },
    /// A kind of a later version: its watermark counts.
    Other(Option<Through>),
}

impl Line<'_> {
    /// The number in the line, with its chain value; a group has none.
    #[must_use]
    pub fn watermark(&self) -> Option<Through> {
        match self {
            Line::Group(_) => None,
            Line::Record(record) => Some(record.watermark),
            Line::Advance { watermark, .. } | Line::Void { watermark, .. } => Some(*watermark),
            Line::Other(watermark) => *watermark,
        }
    }
}

/// A stored transaction.
#[derive(Debug)]
pub struct Record<'a> {
    /// Its number and chain value.
    pub watermark: Through,
    /// Its id.
    pub id: Uuid,
    /// CloudEvents `type`.
    pub event_type: Cow<'a, str>,
    /// Media type.
    pub content_type: Cow<'a, str>,
    /// RFC 3339.
    pub time: Cow<'a, str>,
    /// The practice, gateway and lane that it names.
    pub owner: [Cow<'a, str>; 3],
    /// The body.
    pub body: Vec<u8>,
}

impl Record<'_> {
    /// The chain value that follows from `previous`, as numbered by `watermark`.
    #[must_use]
    pub fn chain_after(&self, previous: ChainValue, lane: &str, watermark: &Through) -> ChainValue {
        previous.next(&Link {
            epoch: watermark.epoch,
            lane,
            sequence: watermark.through,
            id: self.id,
            event_type: &self.event_type,
            content_type: &self.content_type,
            time: &self.time,
            body: &self.body,
        })
    }
}

#[derive(Deserialize)]
struct RawWatermark {
    epoch: Epoch,
    through: String,
    chain: ChainValue,
}

#[derive(Deserialize)]
struct Raw<'a> {
    #[serde(borrow, default)]
    pgw: Cow<'a, str>,
    #[serde(borrow, default)]
    specversion: Cow<'a, str>,
    id: Option<Uuid>,
    #[serde(borrow, default, rename = "type")]
    event_type: Cow<'a, str>,
    #[serde(borrow, default)]
    datacontenttype: Cow<'a, str>,
    #[serde(borrow, default)]
    time: Cow<'a, str>,
    #[serde(borrow, default)]
    practice: Cow<'a, str>,
    #[serde(borrow, default)]
    gateway: Cow<'a, str>,
    #[serde(borrow, default)]
    lane: Cow<'a, str>,
    epoch: Option<Epoch>,
    #[serde(borrow, default)]
    sequence: Cow<'a, str>,
    #[serde(borrow, default)]
    chain: Cow<'a, str>,
    #[serde(borrow, default)]
    data_base64: Cow<'a, str>,
    #[serde(borrow, default)]
    previous: Cow<'a, str>,
    #[serde(borrow, default)]
    reason: Cow<'a, str>,
    #[serde(default)]
    epochs: Vec<RawWatermark>,
}

/// Reads one line, without its newline. `None`: it is not a line of this format.
#[must_use]
pub fn read(line: &[u8]) -> Option<Line<'_>> {
    let raw: Raw<'_> = serde_json::from_slice(line).ok()?;
    let watermark = || {
        Some(Through {
            epoch: raw.epoch?,
            through: raw.sequence.parse::<Sequence>().ok()?,
            chain: raw.chain.parse().ok()?,
        })
    };
    match raw.pgw.as_ref() {
        "" if raw.specversion == "1.0" => Some(Line::Record(Box::new(Record {
            watermark: watermark()?,
            id: raw.id?,
            body: BASE64.decode(raw.data_base64.as_bytes()).ok()?,
            event_type: raw.event_type,
            content_type: raw.datacontenttype,
            time: raw.time,
            owner: [raw.practice, raw.gateway, raw.lane],
        }))),
        "" => None,
        "group" => {
            let watermarks = raw.epochs.iter().map(|watermark| {
                Some(Through {
                    epoch: watermark.epoch,
                    through: watermark.through.parse().ok()?,
                    chain: watermark.chain,
                })
            });
            Some(Line::Group(watermarks.collect::<Option<_>>()?))
        }
        "advance" => Some(Line::Advance { watermark: watermark()?, id: raw.id? }),
        "void" => {
            let previous = raw.previous.parse().ok()?;
            Some(Line::Void { watermark: watermark()?, previous, reason: raw.reason })
        }
        _ => Some(Line::Other(watermark())),
    }
}
