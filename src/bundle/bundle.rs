//! The content of a bundle: a stream that describes and proves itself.
//!
//! ```text
//! {"pgw":"bundle","schema":1,"practice":"B86022","gateway":"gw1","time":"...","version":"..."}
//! {"pgw":"lane","lane":"clinical","epoch":"...","first":101,"position":101,"before":"<chain>","link":null}
//! {"pgw":"transaction","content_type":"...","bytes":25000,"properties":[["specversion","1.0"],...]}
//! <25000 bytes as they came><newline>
//! ...
//! {"pgw":"lane_end","lane":"clinical","count":400,"epoch":"...","last":500,"chain":"<chain>","stopped_before":null}
//! {"pgw":"end","transactions":400}
//! ```
//!
//! A lane begins with the chain value before its first number, and with number 1 also with the end of the line where the epoch
//! begins (`link`). An epoch that begins later in the bundle begins where the one before it ends.
//!
//! The properties are those of the publish (`docs/wire-format.md`). [`Reader`] checks every chain value: a
//! bundle that it has read to the end is complete, in order, and as accepted.

use std::io::{self, BufRead, Read as _, Write};

use bytes::Bytes;
use pgw_core::chain::{ChainValue, Through};
use pgw_core::transaction::{Epoch, Gateway, Lane, LaneName, Position, Practice, Sequence};
use pgw_core::wire::envelope::Envelope;
use pgw_core::wire::limits::BODY_BYTES;
use pgw_core::wire::{SCHEMA, WireError};
use serde::{Deserialize, Serialize};

/// Longest line.
const LINE_BYTES: usize = 1 << 20;

/// The first line: the bundle's origin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// 1.
    pub schema: u32,
    /// The practice.
    pub practice: Practice,
    /// Its gateway.
    pub gateway: Gateway,
    /// When it was made, RFC 3339.
    pub time: String,
    /// Version of the gateway.
    pub version: String,
}

impl Owner {
    /// The full name of one of its lanes.
    #[must_use]
    pub fn lane(&self, lane: &Lane) -> LaneName {
        LaneName { practice: self.practice.clone(), gateway: self.gateway.clone(), lane: lane.clone() }
    }
}

/// A lane begins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// The lane.
    pub lane: Lane,
    /// The epoch of the first transaction.
    pub epoch: Epoch,
    /// Its sequence.
    pub first: Sequence,
    /// Its position in the outbox.
    pub position: Position,
    /// The chain value before it.
    pub before: ChainValue,
    /// With number 1: the end of the line where the epoch begins; `None`: an empty line.
    pub link: Option<Through>,
}

/// A lane ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Foot {
    /// The lane.
    pub lane: Lane,
    /// Transactions of it.
    pub count: u64,
    /// Epoch of the last one.
    pub epoch: Epoch,
    /// Its sequence.
    pub last: Sequence,
    /// Its chain value.
    pub chain: ChainValue,
    /// The missing record before which the lane stopped, if one did.
    pub stopped_before: Option<Position>,
}

#[derive(Serialize, Deserialize)]
#[serde(tag = "pgw", rename_all = "snake_case")]
enum BundleLine {
    Bundle(Owner),
    Lane(Head),
    Transaction { content_type: String, bytes: u64, properties: Vec<(String, String)> },
    LaneEnd(Foot),
    End { transactions: u64 },
}

/// Writes a bundle to an encrypting writer.
pub struct Writer<W> {
    out: W,
    transactions: u64,
}

impl<W: Write> Writer<W> {
    /// Writes the first line.
    ///
    /// # Errors
    /// Those of the writer, as of all other methods.
    pub fn new(out: W, owner: Owner) -> io::Result<Self> {
        let mut writer = Self { out, transactions: 0 };
        writer.line(&BundleLine::Bundle(owner))?;
        Ok(writer)
    }

    fn line(&mut self, line: &BundleLine) -> io::Result<()> {
        serde_json::to_writer(&mut self.out, line)?;
        self.out.write_all(b"\n")
    }

    /// A lane begins.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn head(&mut self, head: Head) -> io::Result<()> {
        self.line(&BundleLine::Lane(head))
    }

    /// The next transaction of it.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn transaction(&mut self, envelope: Envelope, body: &[u8]) -> io::Result<()> {
        self.transactions += 1;
        let (content_type, properties) = envelope.into_properties();
        let bytes = body.len() as u64;
        self.line(&BundleLine::Transaction { content_type, bytes, properties })?;
        self.out.write_all(body)?;
        self.out.write_all(b"\n")
    }

    /// The lane ends.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn foot(&mut self, foot: Foot) -> io::Result<()> {
        self.line(&BundleLine::LaneEnd(foot))
    }

    /// Ends the bundle and returns the writer.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn finish(mut self) -> io::Result<W> {
        let transactions = self.transactions;
        self.line(&BundleLine::End { transactions })?;
        Ok(self.out)
    }
}

/// What is wrong with a bundle.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// It cannot be read: truncated, altered, or a fault of the medium.
    #[error("the bundle cannot be read {0}")]
    Unreadable(LastRead, #[source] io::Error),
    /// It ends too early.
    #[error("the bundle is cut off {0}")]
    Cut(LastRead),
    /// A line or lane that does not belong there.
    #[error("the bundle is malformed {0}: {1}")]
    Form(LastRead, &'static str),
    /// An invalid envelope.
    #[error("the bundle has an envelope that cannot be read {0}")]
    Envelope(LastRead, #[source] WireError),
    /// Transactions are missing.
    #[error("lane {lane}: sequences {from} to {to} of epoch {epoch} are missing in the bundle")]
    Missing {
        /// The lane.
        lane: Lane,
        /// Their epoch.
        epoch: Epoch,
        /// The first.
        from: Sequence,
        /// The last.
        to: Sequence,
    },
    /// A transaction is out of order.
    #[error(
        "lane {lane}: sequence {sequence} of epoch {epoch} is out of order or repeated: it follows {after}"
    )]
    OutOfOrder {
        /// The lane.
        lane: Lane,
        /// Its epoch.
        epoch: Epoch,
        /// Its sequence.
        sequence: Sequence,
        /// The sequence before it.
        after: Sequence,
    },
    /// An epoch that does not begin where the one before it ends.
    #[error("lane {lane}: epoch {epoch} does not begin where the transactions before it in the bundle end")]
    Link {
        /// The lane.
        lane: Lane,
        /// The epoch.
        epoch: Epoch,
    },
    /// A transaction's chain value does not follow.
    #[error("lane {lane}: sequence {sequence} of epoch {epoch} is altered: its chain value does not follow")]
    Altered {
        /// The lane.
        lane: Lane,
        /// Its epoch.
        epoch: Epoch,
        /// Its sequence.
        sequence: Sequence,
    },
}

/// How far the bundle was good.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LastRead(Option<(Lane, Sequence)>);

impl std::fmt::Display for LastRead {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.0 {
            None => f.write_str("before its first transaction"),
            Some((lane, sequence)) => write!(f, "after sequence {sequence} of lane {lane}"),
        }
    }
}

/// An item that the reader returns.
#[derive(Debug)]
pub enum Item {
    /// A lane begins.
    Head(Head),
    /// A transaction of it, in order, chain checked.
    Transaction(Box<Envelope>, Bytes),
    /// The lane ends.
    Foot(Foot),
}

/// A lane's progress while it is read.
struct Standing {
    lane: Lane,
    epoch: Epoch,
    last: Sequence,
    chain: ChainValue,
    /// Where the epoch begins, if its number 1 is in the bundle.
    link: Option<Through>,
    count: u64,
}

/// Reads and checks a bundle.
pub struct Reader<R> {
    input: R,
    owner: Owner,
    standing: Option<Standing>,
    place: LastRead,
    transactions: u64,
    ended: bool,
}

impl<R: BufRead> Reader<R> {
    /// Reads the first line.
    ///
    /// # Errors
    /// [`BundleError`].
    pub fn new(mut input: R) -> Result<Self, BundleError> {
        let place = LastRead::default();
        let BundleLine::Bundle(owner) = read_line(&mut input, &place)? else {
            return Err(BundleError::Form(place, "it must begin with its owner"));
        };
        if owner.schema != SCHEMA {
            return Err(BundleError::Form(place, "it is of a newer version"));
        }
        Ok(Self { input, owner, standing: None, place, transactions: 0, ended: false })
    }

    /// The bundle's origin.
    #[must_use]
    pub fn owner(&self) -> &Owner {
        &self.owner
    }

    /// The next item; `None`: the bundle was read to its end, and all of it is good.
    ///
    /// # Errors
    /// [`BundleError`]; the caller must use nothing after it.
    pub fn next_item(&mut self) -> Result<Option<Item>, BundleError> {
        if self.ended {
            return Ok(None);
        }
        match (read_line(&mut self.input, &self.place)?, &mut self.standing) {
            (BundleLine::Lane(head), None) => {
                if head.first == 0 {
                    return Err(self.form("a lane begins with sequence 0"));
                }
                let (lane, epoch, last, chain) = (head.lane.clone(), head.epoch, head.first - 1, head.before);
                let link = head.link;
                if last > 0 && link.is_some() {
                    return Err(self.form("a lane has a link and does not begin with number 1"));
                }
                if last == 0 && chain != ChainValue::first(&self.owner.lane(&lane), epoch, link.as_ref()) {
                    return Err(BundleError::Altered { lane, epoch, sequence: 1 });
                }
                self.place = LastRead(Some((lane.clone(), last)));
                self.standing = Some(Standing { lane, epoch, last, chain, link, count: 0 });
                Ok(Some(Item::Head(head)))
            }
            (BundleLine::Transaction { content_type, bytes, properties }, Some(_)) => {
                let body = self.body(bytes)?;
                let envelope = Envelope::from_properties(Some(content_type), properties)
                    .map_err(|error| BundleError::Envelope(self.place.clone(), error))?;
                self.follow(&envelope, &body)?;
                Ok(Some(Item::Transaction(Box::new(envelope), body)))
            }
            (BundleLine::LaneEnd(foot), Some(standing)) => {
                let same = (&foot.lane, foot.count, foot.epoch, foot.last, foot.chain)
                    == (&standing.lane, standing.count, standing.epoch, standing.last, standing.chain);
                if !same {
                    return Err(self.form("the end of a lane does not fit what is before it"));
                }
                self.standing = None;
                Ok(Some(Item::Foot(foot)))
            }
            (BundleLine::End { transactions }, None) => {
                if transactions != self.transactions {
                    return Err(self.form("its end counts other transactions than there are"));
                }
                let mut more = [0];
                let read = self.input.read(&mut more);
                match read.map_err(|error| BundleError::Unreadable(self.place.clone(), error))? {
                    0 => self.ended = true,
                    _ => return Err(self.form("something follows after its end")),
                }
                Ok(None)
            }
            _ => Err(self.form("a line is out of place")),
        }
    }

    fn form(&self, what: &'static str) -> BundleError {
        BundleError::Form(self.place.clone(), what)
    }

    fn body(&mut self, bytes: u64) -> Result<Bytes, BundleError> {
        if bytes > BODY_BYTES {
            return Err(self.form("a body is larger than any outbox takes"));
        }
        let mut body = Vec::new();
        let read = (&mut self.input).take(bytes + 1).read_to_end(&mut body);
        read.map_err(|error| BundleError::Unreadable(self.place.clone(), error))?;
        if body.len() as u64 != bytes + 1 {
            return Err(BundleError::Cut(self.place.clone()));
        }
        if body.pop() != Some(b'\n') {
            return Err(self.form("a body has another length than was said"));
        }
        Ok(body.into())
    }

    /// The transaction must be the next one, and its chain value must follow.
    fn follow(&mut self, envelope: &Envelope, body: &[u8]) -> Result<(), BundleError> {
        let Some(standing) = &mut self.standing else { return Ok(()) };
        let (lane, epoch, sequence) = (standing.lane.clone(), envelope.epoch, envelope.sequence);
        let name = self.owner.lane(&lane);
        if !envelope.is_of(&name) {
            return Err(BundleError::Form(self.place.clone(), "it has a transaction of another lane"));
        }
        if epoch != standing.epoch {
            let end = Through { epoch: standing.epoch, through: standing.last, chain: standing.chain };
            standing.link = (standing.last > 0).then_some(end);
        }
        let (after, before) = if epoch == standing.epoch {
            (standing.last, standing.chain)
        } else {
            (0, ChainValue::first(&name, epoch, standing.link.as_ref()))
        };
        if sequence > after + 1 {
            return Err(BundleError::Missing { lane, epoch, from: after + 1, to: sequence - 1 });
        }
        if sequence <= after {
            return Err(BundleError::OutOfOrder { lane, epoch, sequence, after });
        }
        if sequence == 1 && envelope.link != standing.link {
            return Err(BundleError::Link { lane, epoch });
        }
        if before.next(sequence, envelope.digest(body)) != envelope.chain {
            return Err(BundleError::Altered { lane, epoch, sequence });
        }
        standing.epoch = epoch;
        standing.last = sequence;
        standing.chain = envelope.chain;
        standing.count += 1;
        self.transactions += 1;
        self.place = LastRead(Some((lane, sequence)));
        Ok(())
    }
}

fn read_line(input: &mut impl BufRead, place: &LastRead) -> Result<BundleLine, BundleError> {
    let mut line = Vec::new();
    let read = input.by_ref().take(LINE_BYTES as u64).read_until(b'\n', &mut line);
    read.map_err(|error| BundleError::Unreadable(place.clone(), error))?;
    if !line.ends_with(b"\n") {
        return Err(if line.len() == LINE_BYTES {
            BundleError::Form(place.clone(), "a line is too long")
        } else {
            BundleError::Cut(place.clone())
        });
    }
    serde_json::from_slice(&line).map_err(|_| BundleError::Form(place.clone(), "a line cannot be read"))
}

#[cfg(test)]
#[path = "bundle_tests.rs"]
mod tests;
