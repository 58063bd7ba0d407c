//! The chain: proof that no transaction of a lane is missing, altered or swapped.
//!
//! `chain(n) = SHA-256(chain(n-1) || field(epoch) || field(lane) || field(sequence) || field(id) ||
//! field(type) || field(content type) || field(time) || field(body))`, where `field(x)` is the length of
//! `x` in bytes as u64 big-endian and then `x`; epoch and id are their 16 bytes, sequence is u64
//! big-endian, time is the RFC 3339 text of the envelope. `chain(0) = SHA-256(field(epoch) || field(lane))`.
//! `docs/wire-format.md` holds test vectors. The id is random and sealed on disk, so a value gives nothing away.

use std::fmt;

use ring::digest::{Context, SHA256};
use serde::{Deserialize, Serialize};

use crate::transaction::{Epoch, Lane, Sequence, Transaction, rfc3339};

/// One link: 32 bytes of SHA-256; 64 lower-case hexadecimal digits as text.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ChainValue(pub [u8; 32]);

/// What a link is computed over, as both ends see it.
#[derive(Debug, Clone, Copy)]
pub struct Link<'a> {
    /// The epoch on the wire.
    pub epoch: Epoch,
    /// The lane's name.
    pub lane: &'a str,
    /// The sequence on the wire.
    pub sequence: Sequence,
    /// The transaction's id.
    pub id: uuid::Uuid,
    /// CloudEvents `type`.
    pub event_type: &'a str,
    /// Media type.
    pub content_type: &'a str,
    /// RFC 3339 text as in the envelope.
    pub time: &'a str,
    /// The body.
    pub body: &'a [u8],
}

impl ChainValue {
    /// The value before a lane's first transaction in `epoch`.
    #[must_use]
    pub fn first(epoch: Epoch, lane: &str) -> Self {
        let mut hash = Context::new(&SHA256);
        field(&mut hash, epoch.0.as_bytes());
        field(&mut hash, lane.as_bytes());
        Self::finish(hash)
    }

    /// The value after `link`.
    #[must_use]
    pub fn next(self, link: &Link<'_>) -> Self {
        let mut hash = Context::new(&SHA256);
        hash.update(&self.0);
        field(&mut hash, link.epoch.0.as_bytes());
        field(&mut hash, link.lane.as_bytes());
        field(&mut hash, &link.sequence.to_be_bytes());
        field(&mut hash, link.id.as_bytes());
        field(&mut hash, link.event_type.as_bytes());
        field(&mut hash, link.content_type.as_bytes());
        field(&mut hash, link.time.as_bytes());
        field(&mut hash, link.body);
        Self::finish(hash)
    }

    /// The value after `transaction`, numbered `sequence` in `epoch`.
    #[must_use]
    pub fn next_for(self, epoch: Epoch, lane: &Lane, sequence: Sequence, transaction: &Transaction) -> Self {
        self.next(&Link {
            epoch,
            lane: lane.as_str(),
            sequence,
            id: transaction.id.0,
            event_type: &transaction.event_type,
            content_type: &transaction.content_type,
            time: &rfc3339(transaction.time),
            body: transaction.body.as_bytes(),
        })
    }

    fn finish(hash: Context) -> Self {
        let mut value = [0; 32];
        value.copy_from_slice(hash.finish().as_ref());
        Self(value)
    }
}

fn field(hash: &mut Context, bytes: &[u8]) {
    hash.update(&(bytes.len() as u64).to_be_bytes());
    hash.update(bytes);
}

impl fmt::Display for ChainValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let mut text = [0u8; 64];
        for (pair, byte) in text.chunks_exact_mut(2).zip(self.0) {
            pair[0] = DIGITS[usize::from(byte >> 4)];
            pair[1] = DIGITS[usize::from(byte & 15)];
        }
        f.write_str(std::str::from_utf8(&text).unwrap_or_default())
    }
}

impl fmt::Debug for ChainValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Text that is not a chain value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a chain value is 64 lower-case hexadecimal digits")]
pub struct NotAChainValue;

impl std::str::FromStr for ChainValue {
    type Err = NotAChainValue;

    fn from_str(text: &str) -> Result<Self, NotAChainValue> {
        fn digit(byte: u8) -> Result<u8, NotAChainValue> {
            match byte {
                b'0'..=b'9' => Ok(byte - b'0'),
                b'a'..=b'f' => Ok(byte - b'a' + 10),
                _ => Err(NotAChainValue),
            }
        }
        let bytes: &[u8; 64] = text.as_bytes().try_into().map_err(|_| NotAChainValue)?;
        let mut value = [0; 32];
        for (byte, pair) in value.iter_mut().zip(bytes.chunks_exact(2)) {
            *byte = digit(pair[0])? << 4 | digit(pair[1])?;
        }
        Ok(Self(value))
    }
}

impl TryFrom<String> for ChainValue {
    type Error = NotAChainValue;
    fn try_from(text: String) -> Result<Self, NotAChainValue> {
        text.parse()
    }
}

impl From<ChainValue> for String {
    fn from(value: ChainValue) -> String {
        value.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    #[test]
    fn text_goes_there_and_back() {
        let first = ChainValue::first(Epoch(Uuid::nil()), "clinical");
        assert_eq!(first.to_string().parse(), Ok(first));
        assert_eq!("AB".repeat(32).parse::<ChainValue>(), Err(NotAChainValue));
        assert_eq!("a".parse::<ChainValue>(), Err(NotAChainValue));
    }

    #[test]
    fn every_field_counts() {
        let link = Link {
            epoch: Epoch(Uuid::nil()),
            lane: "clinical",
            sequence: 1,
            id: Uuid::nil(),
            event_type: "t",
            content_type: "c",
            time: "1970-01-01T00:00:00.000Z",
            body: b"b",
        };
        let zero = ChainValue([0; 32]);
        let plain = zero.next(&link);
        let others = [
            ChainValue([1; 32]).next(&link),
            zero.next(&Link { epoch: Epoch(Uuid::max()), ..link }),
            zero.next(&Link { lane: "clinica", ..link }),
            zero.next(&Link { sequence: 2, ..link }),
            zero.next(&Link { id: Uuid::max(), ..link }),
            zero.next(&Link { event_type: "", ..link }),
            zero.next(&Link { content_type: "ct", ..link }),
            zero.next(&Link { time: "", ..link }),
            zero.next(&Link { body: b"", ..link }),
        ];
        assert!(others.iter().all(|other| *other != plain));
    }
}
