//! The chain: proof that no transaction of a lane is missing, altered or swapped (design section 12.1).
//!
//! `field(x)` is the length of `x` in bytes as u64 big-endian and then `x`.
//!
//! - `digest = SHA-256(field(name) field(value) ... field(body))`: every attribute that is stored, in the order of the names'
//!   bytes, and the body. It is the same in every epoch.
//! - `chain(n) = SHA-256(chain(n-1) || n || digest)`, the sequence `n` as u64 big-endian.
//! - `chain(0) = SHA-256(field("pgw-v1 epoch") field(practice) field(gateway) field(lane) field(epoch))`, the epoch as its 16
//!   bytes.
//!
//! `docs/wire-format.md` holds test vectors. As the id is random and sealed on disk, a value gives nothing away.

use std::fmt;

use ring::digest::{Context, SHA256};
use serde::{Deserialize, Serialize};

use crate::transaction::{Epoch, LaneName, Sequence};

/// Begins what the value before an epoch's first transaction is computed over.
const EPOCH_TAG: &[u8] = b"pgw-v1 epoch";

/// SHA-256 over all that is stored of one transaction, its numbers excepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// The digest of a body with these attributes, which come in the order of their names, each name once.
    #[must_use]
    pub fn of<'n, 'v>(attributes: impl IntoIterator<Item = (&'n str, &'v str)>, body: &[u8]) -> Self {
        let mut hash = Context::new(&SHA256);
        for (name, value) in attributes {
            field(&mut hash, name.as_bytes());
            field(&mut hash, value.as_bytes());
        }
        field(&mut hash, body);
        Self(finish(hash))
    }
}

/// One value of the chain: 32 bytes of SHA-256; 64 lower-case hexadecimal digits as text.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ChainValue(pub [u8; 32]);

impl ChainValue {
    /// The value before the first transaction of a lane in `epoch`.
    #[must_use]
    pub fn first(lane: &LaneName, epoch: Epoch) -> Self {
        let mut hash = Context::new(&SHA256);
        field(&mut hash, EPOCH_TAG);
        field(&mut hash, lane.practice.as_str().as_bytes());
        field(&mut hash, lane.gateway.as_str().as_bytes());
        field(&mut hash, lane.lane.as_str().as_bytes());
        field(&mut hash, epoch.0.as_bytes());
        Self(finish(hash))
    }

    /// The value after the transaction with this number and digest.
    #[must_use]
    pub fn next(self, sequence: Sequence, digest: Digest) -> Self {
        let mut hash = Context::new(&SHA256);
        hash.update(&self.0);
        hash.update(&sequence.to_be_bytes());
        hash.update(&digest.0);
        Self(finish(hash))
    }
}

fn finish(hash: Context) -> [u8; 32] {
    let mut value = [0; 32];
    value.copy_from_slice(hash.finish().as_ref());
    value
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

    fn lane(practice: &str, gateway: &str, lane: &str) -> LaneName {
        format!("{practice}/{gateway}/{lane}").parse().unwrap()
    }

    #[test]
    fn text_goes_there_and_back() {
        let first = ChainValue::first(&lane("B86022", "gw1", "clinical"), Epoch(Uuid::nil()));
        assert_eq!(first.to_string().parse(), Ok(first));
        assert_eq!("AB".repeat(32).parse::<ChainValue>(), Err(NotAChainValue));
        assert_eq!("a".parse::<ChainValue>(), Err(NotAChainValue));
    }

    #[test]
    fn an_epoch_begins_with_all_that_names_it() {
        let first = |practice, gateway, name, epoch| {
            ChainValue::first(&lane(practice, gateway, name), Epoch(Uuid::from_u128(epoch)))
        };
        let plain = first("B86022", "gw1", "clinical", 1);
        for other in [
            first("B8602", "gw1", "clinical", 1),
            first("B86022", "gw11", "clinical", 1),
            first("B86022", "gw1", "linical", 1),
            first("B86022", "gw1c", "linical", 1),
            first("B86022", "gw1", "clinical", 2),
        ] {
            assert_ne!(other, plain);
        }
    }

    #[test]
    fn every_name_value_and_byte_counts() {
        let digest = |attributes: &[(&str, &str)], body: &[u8]| Digest::of(attributes.iter().copied(), body);
        let plain = digest(&[("id", "1"), ("type", "t")], b"b");
        let others = [
            digest(&[("id", "1"), ("type", "t")], b""),
            digest(&[("id", "1")], b"b"),
            digest(&[("id", "1"), ("type", "t"), ("x", "")], b"b"),
            digest(&[("id", "1"), ("type", "tt")], b"b"),
            digest(&[("id", "1t"), ("type", "")], b"b"),
            digest(&[("i", "d1"), ("type", "t")], b"b"),
        ];
        assert!(others.iter().all(|other| *other != plain));
        let value = ChainValue([0; 32]).next(1, plain);
        assert_ne!(value, ChainValue([1; 32]).next(1, plain));
        assert_ne!(value, ChainValue([0; 32]).next(2, plain));
        assert_ne!(value, ChainValue([0; 32]).next(1, others[0]));
    }
}
