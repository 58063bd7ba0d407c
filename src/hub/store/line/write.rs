//! The writing of lines, without a JSON library: each transaction passes here.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use pgw_core::chain::{ChainValue, Digest};
use pgw_core::text::hex;
use pgw_core::transaction::Epoch;
use pgw_core::wire::envelope::Envelope;
use pgw_core::wire::sequence_text;
use pgw_core::wire::signature::{KeyId, Signature};
use uuid::Uuid;

use super::{ARCHIVED_START, GROUP_START, HEAD_START, RECORD_START, Record};
use crate::store::Through;

/// The beginning of the line for lost numbers.
const LOST_START: &[u8] = br#"{"pgw":"lost","#;

/// Writes the line with which a group begins.
pub fn write_group(out: &mut Vec<u8>, time: &str, watermarks: &[Through]) {
    write_ends(out, GROUP_START, time, watermarks);
}

/// Records that everything is lost for good through where each epoch ends, as the centre has admitted; `line`: all epochs that the
/// lane's files name by then, in the order of the line.
pub fn write_lost(out: &mut Vec<u8>, time: &str, until: &[Through], line: &[Epoch]) {
    let line: Vec<_> = line.iter().map(|epoch| format!("\"{epoch}\"")).collect();
    let start = [LOST_START, format!(r#""line":[{}],"#, line.join(",")).as_bytes()].concat();
    write_ends(out, &start, time, until);
}

fn write_ends(out: &mut Vec<u8>, start: &[u8], time: &str, watermarks: &[Through]) {
    out.extend_from_slice(start);
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

/// Writes a transaction as a CloudEvents JSON object: its attributes, its number, and its body.
pub fn write_record(out: &mut Vec<u8>, envelope: &Envelope, body: &[u8]) {
    out.reserve(720 + body.len().div_ceil(3) * 4);
    out.extend_from_slice(RECORD_START);
    out.extend_from_slice(br#","id":""#);
    write_uuid(out, envelope.id());
    out.push(b'"');
    let others = envelope.attributes().iter().filter(|(name, _)| !["id", "specversion"].contains(name));
    for (name, value) in others {
        out.extend_from_slice(b",\"");
        // A name is letters and digits only.
        out.extend_from_slice(name.as_bytes());
        out.extend_from_slice(b"\":");
        write_text(out, value);
    }
    write_numbers(out, envelope);
    out.extend_from_slice(br#","data_base64":""#);
    let start = out.len();
    out.resize(start + body.len().div_ceil(3) * 4, 0);
    // The space is exact, so this cannot fail; a line cut short would be found by its chain value.
    let written = BASE64.encode_slice(body, &mut out[start..]).unwrap_or_default();
    out.truncate(start + written);
    out.extend_from_slice(b"\"}\n");
}

/// Records that a transaction with this content is already stored under another number.
pub fn write_advance(out: &mut Vec<u8>, envelope: &Envelope, digest: Digest) {
    out.extend_from_slice(br#"{"pgw":"advance","id":""#);
    write_uuid(out, envelope.id());
    out.push(b'"');
    write_numbers(out, envelope);
    out.extend_from_slice(format!(r#","digest":"{}"}}"#, hex(&digest.0)).as_bytes());
    out.push(b'\n');
}

/// What remains of a transaction whose body was archived: its id, number, chain value, digest and time.
pub fn write_archived(out: &mut Vec<u8>, record: &Record<'_>) {
    out.extend_from_slice(ARCHIVED_START);
    write_uuid(out, record.id);
    out.extend_from_slice(br#"","epoch":""#);
    write_uuid(out, record.watermark.epoch.0);
    let number = sequence_text(record.watermark.through);
    out.extend_from_slice(format!(r#"","sequence":"{number}","chain":""#).as_bytes());
    write_hex(out, record.watermark.chain);
    out.push(b'"');
    if let Some(link) = &record.link {
        out.extend_from_slice(format!(r#","link":"{link}""#).as_bytes());
    }
    out.extend_from_slice(format!(r#","digest":"{}","time":"#, hex(&record.digest().0)).as_bytes());
    write_text(out, record.attribute("time"));
    out.extend_from_slice(b"}\n");
}

/// Records that another content is stored under the id of the transaction before this line.
pub fn write_rival(out: &mut Vec<u8>, envelope: &Envelope) {
    out.extend_from_slice(br#"{"pgw":"rival","id":""#);
    write_uuid(out, envelope.id());
    out.push(b'"');
    write_number_of(out, envelope);
    out.extend_from_slice(b"}\n");
}

/// Records the gateway's signature over this number, which was verified with this key.
pub fn write_head(out: &mut Vec<u8>, envelope: &Envelope, signature: &Signature, key: KeyId) {
    out.extend_from_slice(HEAD_START);
    write_number_of(out, envelope);
    out.extend_from_slice(format!(r#","signature":"{signature}","key":"{key}"}}"#).as_bytes());
    out.push(b'\n');
}

fn write_numbers(out: &mut Vec<u8>, envelope: &Envelope) {
    write_number_of(out, envelope);
    if let Some(link) = &envelope.link {
        out.extend_from_slice(format!(r#","link":"{link}""#).as_bytes());
    }
}

fn write_number_of(out: &mut Vec<u8>, envelope: &Envelope) {
    out.extend_from_slice(br#","epoch":""#);
    write_uuid(out, envelope.epoch.0);
    out.extend_from_slice(br#"","sequence":""#);
    out.extend_from_slice(sequence_text(envelope.sequence).as_bytes());
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
