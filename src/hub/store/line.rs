//! The lines of a lane file. `docs/on-disk-format.md` is the contract.
//!
//! - a transaction: one CloudEvents 1.0 JSON object, its body in `data_base64`, recognised by `specversion`
//! - `{"pgw":"group",...}`: a group begins; it holds all watermarks of the lane before it, so that a file is
//!   self-contained from here
//! - `{"pgw":"advance",...}`: a transaction whose content is already stored has another number after a fork
//! - `{"pgw":"archived",...}`: what remains of a transaction whose body was archived ([`super::archived`])
//! - `{"pgw":"rival",...}`: the transaction before it has an id under which another content is stored
//! - `{"pgw":"lost",...}`: numbers that the store has lost for good: it holds where each epoch of the lane ends after them
//! - `{"pgw":"head",...}`: the gateway's signature over the number before it, and the id of the key; verified before it was
//!   written, it proves everything before it
//!
//! Number 1 of an epoch also has `link`: where the line ends before it. The chain value follows from the content's digest, which
//! an `advance` and an `archived` therefore have.
//!
//! A program that follows the transactions reads the lines with `specversion` and skips those with `pgw`.

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use pgw_core::chain::{ChainValue, Digest};
use pgw_core::text::{from_hex, hex};
use pgw_core::transaction::{Epoch, Kind, Sequence};
use pgw_core::wire::envelope::Envelope;
use pgw_core::wire::sequence_text;
use pgw_core::wire::signature::{KeyId, Signature};
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use uuid::Uuid;

use super::Through;

/// How each group begins; no other line begins so, and a line cannot contain a newline.
pub const GROUP_START: &[u8] = br#"{"pgw":"group","#;
/// How the line begins that stands for what is lost for good.
const LOST_START: &[u8] = br#"{"pgw":"lost","#;
/// How each transaction begins whose body was archived; its id follows.
pub const ARCHIVED_START: &[u8] = br#"{"pgw":"archived","id":""#;
/// How each kept signature begins.
pub const HEAD_START: &[u8] = br#"{"pgw":"head""#;
/// How each transaction begins.
pub const RECORD_START: &[u8] = br#"{"specversion":"1.0""#;

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

/// A line that was read.
#[derive(Debug)]
pub enum Line<'a> {
    /// A group begins; the watermarks before it.
    Group(Vec<Through>),
    /// A transaction.
    Record(Box<Record<'a>>),
    /// A transaction that is already stored has another number.
    Advance(Box<Advance>),
    /// A transaction whose body was archived.
    Archived(Box<Archived>),
    /// The transaction before it is a rival.
    Rival {
        /// The number of that transaction, and its chain value.
        at: Through,
        /// Its id.
        id: Uuid,
    },
    /// What is between the line before it and these ends is lost for good.
    Lost {
        /// Where each epoch ends.
        until: Vec<Through>,
        /// All epochs that the lane's files named when that was noted, in the order of the line.
        line: Vec<Epoch>,
    },
    /// The gateway's signature over the number before it.
    Head(Box<Head>),
    /// A kind of a later version: its watermark counts.
    Other(Option<Through>),
}

/// A further number of a stored transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Advance {
    /// The number and its chain value.
    pub watermark: Through,
    /// With number 1: where the line ends before it.
    pub link: Option<Through>,
    /// The transaction's id.
    pub id: Uuid,
    /// What is stored of it.
    pub digest: Digest,
}

/// What remains of a transaction whose body was archived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Archived {
    /// Its number and chain value.
    pub watermark: Through,
    /// With number 1: where the line ends before it.
    pub link: Option<Through>,
    /// Its id.
    pub id: Uuid,
    /// What was stored of it.
    pub digest: Digest,
    /// When it was accepted, as its gateway has written it.
    pub time: String,
}

/// A gateway's signature that is kept as evidence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// The number, and the chain value there.
    pub at: Through,
    /// The signature.
    pub signature: Signature,
    /// The key that it was verified with.
    pub key: KeyId,
}

impl Line<'_> {
    /// The number in the line, with its chain value; a group has none, and a head or a rival is no number of its own.
    #[must_use]
    pub fn watermark(&self) -> Option<Through> {
        match self {
            Line::Group(_) | Line::Lost { .. } | Line::Head(_) | Line::Rival { .. } => None,
            Line::Record(record) => Some(record.watermark),
            Line::Advance(advance) => Some(advance.watermark),
            Line::Archived(archived) => Some(archived.watermark),
            Line::Other(watermark) => *watermark,
        }
    }
}

/// A stored transaction.
#[derive(Debug)]
pub struct Record<'a> {
    /// Its number and chain value.
    pub watermark: Through,
    /// With number 1: where the line ends before it.
    pub link: Option<Through>,
    /// Its id.
    pub id: Uuid,
    /// Everything else that is stored of it, in the order of the names.
    attributes: Vec<(Cow<'a, str>, Cow<'a, str>)>,
    /// The body.
    pub body: Vec<u8>,
}

impl<'a> Record<'a> {
    /// Its attribute of this name; empty where there is none.
    #[must_use]
    pub fn attribute(&self, name: &str) -> &str {
        self.attributes.iter().find(|(known, _)| known == name).map_or("", |(_, value)| value)
    }

    /// Whether it stands for other transactions, which its gateway cannot send any more.
    #[must_use]
    pub fn is_entry(&self) -> bool {
        [Kind::Void, Kind::Pruned].iter().any(|kind| self.attribute("kind") == kind.as_str())
    }

    /// What the chain is computed over, apart from the number.
    #[must_use]
    pub fn digest(&self) -> Digest {
        let attributes = self.attributes.iter().map(|(name, value)| (name.as_ref(), value.as_ref()));
        Digest::of(attributes, &self.body)
    }

    /// From the members of its line. `None`: some are missing, malformed, or there twice.
    fn of(mut members: Vec<(Cow<'a, str>, Cow<'a, str>)>) -> Option<Self> {
        members.sort_unstable();
        if members.windows(2).any(|pair| pair[0].0 == pair[1].0) {
            return None;
        }
        let mut take = |name: &str| {
            let at = members.binary_search_by(|(known, _)| known.as_ref().cmp(name)).ok()?;
            Some(members.remove(at).1)
        };
        let body = BASE64.decode(take("data_base64")?.as_bytes()).ok()?;
        let watermark = Through {
            epoch: Epoch(take("epoch")?.parse().ok()?),
            through: take("sequence")?.parse().ok()?,
            chain: take("chain")?.parse().ok()?,
        };
        let link = match take("link") {
            Some(text) => Some(text.parse().ok()?),
            None => None,
        };
        let id = members.iter().find(|(name, _)| name == "id")?.1.parse().ok()?;
        Some(Self { watermark, link, id, attributes: members, body })
    }
}

/// The members of a JSON object, all of them text.
struct Members<'a>(Vec<(Cow<'a, str>, Cow<'a, str>)>);

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

        struct Object;

        impl<'de> Visitor<'de> for Object {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object whose members are text")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::with_capacity(20);
                while let Some((Text(name), Text(value))) = map.next_entry()? {
                    members.push((name, value));
                }
                Ok(Members(members))
            }
        }

        deserializer.deserialize_map(Object)
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
    id: Option<Uuid>,
    epoch: Option<Epoch>,
    #[serde(borrow, default)]
    sequence: Cow<'a, str>,
    #[serde(borrow, default)]
    chain: Cow<'a, str>,
    #[serde(borrow, default)]
    link: Cow<'a, str>,
    #[serde(borrow, default)]
    digest: Cow<'a, str>,
    #[serde(borrow, default)]
    time: Cow<'a, str>,
    #[serde(borrow, default)]
    signature: Cow<'a, str>,
    key: Option<KeyId>,
    #[serde(default)]
    line: Vec<Epoch>,
    #[serde(default)]
    epochs: Vec<RawWatermark>,
}

/// Reads one line, without its newline. `None`: it is not a line of this format.
#[must_use]
pub fn read(line: &[u8]) -> Option<Line<'_>> {
    if line.starts_with(RECORD_START) {
        let Members(members) = serde_json::from_slice(line).ok()?;
        return Some(Line::Record(Box::new(Record::of(members)?)));
    }
    let raw: Raw<'_> = serde_json::from_slice(line).ok()?;
    let watermark = || {
        Some(Through {
            epoch: raw.epoch?,
            through: raw.sequence.parse::<Sequence>().ok()?,
            chain: raw.chain.parse().ok()?,
        })
    };
    let ends = || {
        let end = |watermark: &RawWatermark| {
            let RawWatermark { epoch, chain, ref through } = *watermark;
            Some(Through { epoch, through: through.parse().ok()?, chain })
        };
        raw.epochs.iter().map(end).collect::<Option<Vec<_>>>()
    };
    match raw.pgw.as_ref() {
        "" => None,
        "group" => Some(Line::Group(ends()?)),
        "lost" => Some(Line::Lost { until: ends()?, line: raw.line }),
        "advance" => {
            let link = if raw.link.is_empty() { None } else { Some(raw.link.parse().ok()?) };
            let digest = Digest(from_hex(&raw.digest)?);
            Some(Line::Advance(Box::new(Advance { watermark: watermark()?, link, id: raw.id?, digest })))
        }
        "archived" => {
            let link = if raw.link.is_empty() { None } else { Some(raw.link.parse().ok()?) };
            let (watermark, digest) = (watermark()?, Digest(from_hex(&raw.digest)?));
            let time = raw.time.into_owned();
            Some(Line::Archived(Box::new(Archived { watermark, link, id: raw.id?, digest, time })))
        }
        "rival" => Some(Line::Rival { at: watermark()?, id: raw.id? }),
        "head" => {
            let (at, signature) = (watermark()?, raw.signature.parse().ok()?);
            Some(Line::Head(Box::new(Head { at, signature, key: raw.key? })))
        }
        _ => Some(Line::Other(watermark())),
    }
}
