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
use pgw_core::text::from_hex;
use pgw_core::transaction::{Epoch, Kind, Sequence};
use pgw_core::wire::signature::{KeyId, Signature};
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use uuid::Uuid;

use super::Through;

mod write;

pub use write::{
    write_advance, write_archived, write_group, write_head, write_lost, write_record, write_rival,
};

/// How each group begins; no other line begins so, and a line cannot contain a newline.
pub const GROUP_START: &[u8] = br#"{"pgw":"group","#;
/// How each transaction begins whose body was archived; its id follows.
pub const ARCHIVED_START: &[u8] = br#"{"pgw":"archived","id":""#;
/// How each kept signature begins.
pub const HEAD_START: &[u8] = br#"{"pgw":"head""#;
/// How each transaction begins.
pub const RECORD_START: &[u8] = br#"{"specversion":"1.0""#;

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
