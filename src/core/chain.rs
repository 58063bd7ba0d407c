//! The chain: proof that no transaction of a lane is missing, altered or swapped (design section 12.1).
//!
//! `field(x)` is the length of `x` in bytes as u64 big-endian and then `x`.
//!
//! - `digest = SHA-256(field(name) field(value) ... field(body))`: every attribute that is stored, in the order of the names'
//!   bytes, and the body. It is the same in every epoch.
//! - `chain(n) = SHA-256(chain(n-1) || n || digest)`, the sequence `n` as u64 big-endian.
//! - `chain(0) = SHA-256(field("pgw-v1 epoch") field(practice) field(gateway) field(lane) field(epoch) field(link))`, the epoch
//!   as its 16 bytes. `link` is the end of the line where the epoch begins: the 16 bytes of its epoch, its sequence as u64
//!   big-endian and its chain value; nothing where the line is empty. So one value proves the whole line before it.
//!
//! A second chain goes over *positions* and never leaves the box: it proves what the outbox finds on its disk, whatever epochs
//! give the same transactions numbers on the wire. Only its beginning differs, and `n` is the position:
//!
//! - `chain(0) = SHA-256(field("pgw-v1 positions") field(practice) field(gateway) field(lane) field(id))`, the lane's own random
//!   id as its 16 bytes;
//! - where a lane lost its end together with the value there, it begins again: `chain(p) = SHA-256(field("pgw-v1 positions
//!   lost") field(practice) field(gateway) field(lane) field(id) field(p))`.
//!
//! `docs/wire-format.md` holds test vectors. As the id is random and sealed on disk, a value gives nothing away.

use std::fmt;

use ring::digest::{Context, SHA256};
use serde::{Deserialize, Serialize};

use uuid::Uuid;

use crate::transaction::{Epoch, LaneName, Position, Sequence};

/// Begins what the value before an epoch's first transaction is computed over.
const EPOCH_TAG: &[u8] = b"pgw-v1 epoch";
/// The same for the chain over positions.
const POSITIONS_TAG: &[u8] = b"pgw-v1 positions";
/// Begins what the value is computed over with which the chain over positions continues after a lost one.
const LOST_TAG: &[u8] = b"pgw-v1 positions lost";

/// A point of a lane's line: "stored through `through` of `epoch`, whose chain value there is `chain`".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Through {
    /// Epoch.
    pub epoch: Epoch,
    /// Its sequence, from 1.
    pub through: Sequence,
    /// Chain value there.
    pub chain: ChainValue,
}

impl Through {
    /// As `chain(0)` covers it.
    fn bytes(&self) -> [u8; 56] {
        let mut bytes = [0; 56];
        bytes[..16].copy_from_slice(self.epoch.0.as_bytes());
        bytes[16..24].copy_from_slice(&self.through.to_be_bytes());
        bytes[24..].copy_from_slice(&self.chain.0);
        bytes
    }
}

/// As the property `link` of the wire: epoch, sequence with 20 digits and chain value, with slashes between them.
impl fmt::Display for Through {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{:020}/{}", self.epoch, self.through, self.chain)
    }
}

/// Text that is not a point of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it must be an epoch, a sequence and a chain value, with slashes between them")]
pub struct NotAPoint;

impl std::str::FromStr for Through {
    type Err = NotAPoint;

    fn from_str(text: &str) -> Result<Self, NotAPoint> {
        let mut parts = text.split('/');
        let (Some(epoch), Some(through), Some(chain), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(NotAPoint);
        };
        let through = through.parse().map_err(|_| NotAPoint)?;
        if through == 0 {
            return Err(NotAPoint);
        }
        Ok(Self {
            epoch: Epoch(epoch.parse().map_err(|_| NotAPoint)?),
            through,
            chain: chain.parse().map_err(|_| NotAPoint)?,
        })
    }
}

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
    /// The value before the first transaction of a lane in `epoch`, which begins where the line ends with `link`; `None`: the
    /// line is empty.
    #[must_use]
    pub fn first(lane: &LaneName, epoch: Epoch, link: Option<&Through>) -> Self {
        let mut hash = begun(EPOCH_TAG, lane);
        field(&mut hash, epoch.0.as_bytes());
        field(&mut hash, link.map(Through::bytes).as_ref().map_or(&[], |bytes| bytes.as_slice()));
        Self(finish(hash))
    }

    /// The value of the chain over positions before position 1 of a lane, whose own random id is `id`.
    #[must_use]
    pub fn first_of_positions(lane: &LaneName, id: Uuid) -> Self {
        let mut hash = begun(POSITIONS_TAG, lane);
        field(&mut hash, id.as_bytes());
        Self(finish(hash))
    }

    /// The value that the chain over positions has at `position` where the true one was lost with its record: the lane
    /// continues from it.
    #[must_use]
    pub fn after_lost_position(lane: &LaneName, id: Uuid, position: Position) -> Self {
        let mut hash = begun(LOST_TAG, lane);
        field(&mut hash, id.as_bytes());
        field(&mut hash, &position.to_be_bytes());
        Self(finish(hash))
    }

    /// The value after the transaction with this number (a sequence, or a position) and digest.
    #[must_use]
    pub fn next(self, sequence: Sequence, digest: Digest) -> Self {
        let mut hash = Context::new(&SHA256);
        hash.update(&self.0);
        hash.update(&sequence.to_be_bytes());
        hash.update(&digest.0);
        Self(finish(hash))
    }
}

fn begun(tag: &[u8], lane: &LaneName) -> Context {
    let mut hash = Context::new(&SHA256);
    field(&mut hash, tag);
    field(&mut hash, lane.practice.as_str().as_bytes());
    field(&mut hash, lane.gateway.as_str().as_bytes());
    field(&mut hash, lane.lane.as_str().as_bytes());
    hash
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

/// 64 lower-case hexadecimal digits.
fn write_digits(value: [u8; 32], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = [0u8; 64];
    for (pair, byte) in text.chunks_exact_mut(2).zip(value) {
        pair[0] = DIGITS[usize::from(byte >> 4)];
        pair[1] = DIGITS[usize::from(byte & 15)];
    }
    f.write_str(std::str::from_utf8(&text).unwrap_or_default())
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_digits(self.0, f)
    }
}

impl fmt::Display for ChainValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_digits(self.0, f)
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
        let first = ChainValue::first(&lane("B86022", "gw1", "clinical"), Epoch(Uuid::nil()), None);
        assert_eq!(first.to_string().parse(), Ok(first));
        assert_eq!("AB".repeat(32).parse::<ChainValue>(), Err(NotAChainValue));
        assert_eq!("a".parse::<ChainValue>(), Err(NotAChainValue));
    }

    #[test]
    fn a_point_goes_there_and_back() {
        let point = Through { epoch: Epoch(Uuid::from_u128(7)), through: 12, chain: ChainValue([9; 32]) };
        assert_eq!(point.to_string().parse(), Ok(point));
        let zero = Through { through: 0, ..point };
        for wrong in
            [zero.to_string(), format!("{point}/"), point.to_string().replace('/', " "), String::new()]
        {
            assert_eq!(wrong.parse::<Through>(), Err(NotAPoint), "{wrong}");
        }
    }

    #[test]
    fn an_epoch_begins_with_all_that_names_it() {
        let first = |practice, gateway, name, epoch| {
            ChainValue::first(&lane(practice, gateway, name), Epoch(Uuid::from_u128(epoch)), None)
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
    fn an_epoch_begins_with_all_of_its_link() {
        let lane = lane("B86022", "gw1", "clinical");
        let after = |epoch, through, chain| {
            let link =
                Through { epoch: Epoch(Uuid::from_u128(epoch)), through, chain: ChainValue([chain; 32]) };
            ChainValue::first(&lane, Epoch(Uuid::from_u128(9)), Some(&link))
        };
        let plain = after(1, 2, 3);
        for other in [after(2, 2, 3), after(1, 3, 3), after(1, 2, 4)] {
            assert_ne!(other, plain);
        }
        assert_ne!(ChainValue::first(&lane, Epoch(Uuid::from_u128(9)), None), plain);
    }

    #[test]
    fn the_chain_over_positions_begins_with_all_that_names_the_lane_and_is_no_epochs() {
        let name = lane("B86022", "gw1", "clinical");
        let id = Uuid::from_u128(1);
        let plain = ChainValue::first_of_positions(&name, id);
        for other in [
            ChainValue::first(&name, Epoch(id), None),
            ChainValue::first_of_positions(&name, Uuid::from_u128(2)),
            ChainValue::first_of_positions(&lane("B86022", "gw2", "clinical"), id),
            ChainValue::after_lost_position(&name, id, 0),
            ChainValue::after_lost_position(&name, id, 1),
        ] {
            assert_ne!(other, plain);
        }
        let lost = |position| ChainValue::after_lost_position(&name, id, position);
        assert_ne!(lost(1), lost(2));
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
