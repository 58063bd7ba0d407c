//! The format of a record, version 1. All numbers are big-endian.
//!
//! A record is a header and the sealed transaction:
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 4 | magic `PGWr` |
//! | 4 | 1 | version, 1 |
//! | 5 | 1 | 0 |
//! | 6 | 2 | lane: its number in the store's `lanes.list` |
//! | 8 | 8 | key id: the first 8 bytes of the SHA-256 of the outbox key |
//! | 16 | 8 | position in its lane |
//! | 24 | 4 | length of the sealed bytes |
//! | 28 | 32 | value of the chain over positions before it |
//! | 60 | 32 | the same after it |
//! | 92 | 24 | nonce |
//! | 116 | 4 | CRC32C of the sealed bytes |
//! | 120 | | sealed bytes: XChaCha20-Poly1305 over the transaction ([`crate::crypt::seal`]), with bytes 0-116 as associated data |
//!
//! It names no epoch: numbers and chain values of the wire are made when it is sent, so that a fork changes nothing here.
//!
//! It is cut into chunks, which are the values of the segment's database, each at most [`VALUE_BYTES`]: sled
//! spills larger pages into files that it never syncs. Key: position, then chunk index as u32. A chunk names
//! its record itself, so that a raw scan of a damaged database finds it ([`parse_chunk`]):
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 4 | magic `PGWc` |
//! | 4 | 4 | CRC32C of all that follows |
//! | 8 | 8 | position |
//! | 16 | 4 | tag: the CRC32C of the record's sealed bytes, so that chunks of two records with one position never mix |
//! | 20 | 4 | index, from 0 |
//! | 24 | 4 | count of the record's chunks |
//! | 28 | 2 | length of the part |
//! | 30 | | the part |

use pgw_core::chain::ChainValue;
use pgw_core::transaction::Position;

/// The newest version that this build reads, and the one that it writes.
pub(crate) const VERSION: u8 = 1;
/// Begins a record.
pub(crate) const RECORD_MAGIC: [u8; 4] = *b"PGWr";
/// Begins a chunk.
pub(crate) const CHUNK_MAGIC: [u8; 4] = *b"PGWc";
/// Most bytes of a value in a segment.
pub(crate) const VALUE_BYTES: usize = 4096;
/// Bytes before a chunk's part.
pub(crate) const CHUNK_HEADER_BYTES: usize = 30;
/// Bytes before a record's sealed bytes.
pub(crate) const HEADER_BYTES: usize = 120;
/// The part of the header that the seal covers: all but the checksum, which is of the sealed bytes themselves.
pub(crate) const SEALED_HEADER_BYTES: usize = 116;

const PART_BYTES: usize = VALUE_BYTES - CHUNK_HEADER_BYTES;

/// Why bytes cannot be read as a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RecordError {
    /// No magic, or shorter than it says.
    #[error("not a complete record")]
    NotARecord,
    /// Written by a newer version.
    #[error("it has version {0}, which this program does not know")]
    Version(u8),
    /// The sealed bytes are damaged.
    #[error("its checksum does not match")]
    Checksum,
    /// Its chunks are not all there, or do not belong together.
    #[error("chunks are missing")]
    Chunks,
    /// The key is another.
    #[error("it is sealed with another key")]
    OtherKey,
    /// The seal is broken.
    #[error("its seal is broken")]
    Seal,
    /// The sealed bytes are not a transaction.
    #[error("its content is not a transaction")]
    Content,
}

/// The part of a record that can be read without its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    /// Names the key that sealed it.
    pub(crate) key_id: [u8; 8],
    /// The lane's number in this store.
    pub(crate) lane: u16,
    /// Position in the lane.
    pub(crate) position: Position,
    /// Length of the sealed bytes.
    pub(crate) sealed_length: u32,
    /// Value of the chain over positions before it.
    pub(crate) previous: ChainValue,
    /// The same after it.
    pub(crate) chain: ChainValue,
    /// The seal's nonce.
    pub(crate) nonce: [u8; 24],
    /// CRC32C of the sealed bytes.
    pub(crate) crc: u32,
}

impl Header {
    /// Its bytes.
    pub(crate) fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[0..4].copy_from_slice(&RECORD_MAGIC);
        bytes[4] = VERSION;
        bytes[6..8].copy_from_slice(&self.lane.to_be_bytes());
        bytes[8..16].copy_from_slice(&self.key_id);
        bytes[16..24].copy_from_slice(&self.position.to_be_bytes());
        bytes[24..28].copy_from_slice(&self.sealed_length.to_be_bytes());
        bytes[28..60].copy_from_slice(&self.previous.0);
        bytes[60..92].copy_from_slice(&self.chain.0);
        bytes[92..116].copy_from_slice(&self.nonce);
        bytes[116..120].copy_from_slice(&self.crc.to_be_bytes());
        bytes
    }

    /// Reads a record's header and returns its sealed bytes, checked against length and checksum.
    ///
    /// # Errors
    /// [`RecordError`]: not a record, newer, or damaged.
    pub(crate) fn parse(record: &[u8]) -> Result<(Self, &[u8]), RecordError> {
        let (head, sealed) = record.split_first_chunk::<HEADER_BYTES>().ok_or(RecordError::NotARecord)?;
        if head[0..4] != RECORD_MAGIC {
            return Err(RecordError::NotARecord);
        }
        if head[4] != VERSION {
            return Err(RecordError::Version(head[4]));
        }
        let header = Self {
            key_id: part(head, 8),
            lane: u16::from_be_bytes(part(head, 6)),
            position: u64::from_be_bytes(part(head, 16)),
            sealed_length: u32::from_be_bytes(part(head, 24)),
            previous: ChainValue(part(head, 28)),
            chain: ChainValue(part(head, 60)),
            nonce: part(head, 92),
            crc: u32::from_be_bytes(part(head, 116)),
        };
        if u32::try_from(sealed.len()) != Ok(header.sealed_length) {
            return Err(RecordError::NotARecord);
        }
        if crc32c::crc32c(sealed) != header.crc {
            return Err(RecordError::Checksum);
        }
        Ok((header, sealed))
    }
}

/// `N` bytes at `at`; short input would give zeros, but every caller has checked the length.
fn part<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).copied().unwrap_or([0; N])
}

/// A parsed chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Chunk<'a> {
    /// Position of its record.
    pub(crate) position: Position,
    /// CRC32C of its record's sealed bytes.
    pub(crate) tag: u32,
    /// Index, from 0.
    pub(crate) index: u32,
    /// How many the record has.
    pub(crate) count: u32,
    /// Its part of the record.
    pub(crate) part: &'a [u8],
}

impl Chunk<'_> {
    /// Bytes that it takes, header included.
    pub(crate) fn length(&self) -> usize {
        CHUNK_HEADER_BYTES + self.part.len()
    }
}

/// Reads the chunk that begins at the first byte; anything may follow it. `None`: there is no whole chunk.
pub(crate) fn parse_chunk(bytes: &[u8]) -> Option<Chunk<'_>> {
    if bytes.len() < CHUNK_HEADER_BYTES || bytes[0..4] != CHUNK_MAGIC {
        return None;
    }
    let length = usize::from(u16::from_be_bytes(part(bytes, 28)));
    let covered = bytes.get(8..CHUNK_HEADER_BYTES + length)?;
    if length > PART_BYTES || crc32c::crc32c(covered) != u32::from_be_bytes(part(bytes, 4)) {
        return None;
    }
    let chunk = Chunk {
        position: u64::from_be_bytes(part(bytes, 8)),
        tag: u32::from_be_bytes(part(bytes, 16)),
        index: u32::from_be_bytes(part(bytes, 20)),
        count: u32::from_be_bytes(part(bytes, 24)),
        part: &covered[CHUNK_HEADER_BYTES - 8..],
    };
    (chunk.index < chunk.count).then_some(chunk)
}

/// The database key of a chunk.
pub(crate) fn key(position: Position, index: u32) -> [u8; 12] {
    let mut key = [0; 12];
    key[..8].copy_from_slice(&position.to_be_bytes());
    key[8..].copy_from_slice(&index.to_be_bytes());
    key
}

/// Parses a key that [`key`] made.
pub(crate) fn parse_key(key: &[u8]) -> Option<(Position, u32)> {
    (key.len() == 12).then(|| (u64::from_be_bytes(part(key, 0)), u32::from_be_bytes(part(key, 8))))
}

/// Cuts a record into the values to be stored, in the order of their index.
pub(crate) fn chunks(position: Position, record: &[u8]) -> impl Iterator<Item = Vec<u8>> + '_ {
    let count = u32::try_from(record.len().div_ceil(PART_BYTES)).unwrap_or(u32::MAX);
    let tag: [u8; 4] = part(record, SEALED_HEADER_BYTES);
    (0u32..).zip(record.chunks(PART_BYTES)).map(move |(index, piece)| {
        let mut value = Vec::with_capacity(CHUNK_HEADER_BYTES + piece.len());
        value.extend_from_slice(&CHUNK_MAGIC);
        value.extend_from_slice(&[0; 4]);
        value.extend_from_slice(&position.to_be_bytes());
        value.extend_from_slice(&tag);
        value.extend_from_slice(&index.to_be_bytes());
        value.extend_from_slice(&count.to_be_bytes());
        value.extend_from_slice(&u16::try_from(piece.len()).unwrap_or(u16::MAX).to_be_bytes());
        value.extend_from_slice(piece);
        let crc = crc32c::crc32c(&value[8..]);
        value[4..8].copy_from_slice(&crc.to_be_bytes());
        value
    })
}

/// Puts a record together from its chunks, which must come in the order of their index.
#[derive(Debug)]
pub(crate) struct Assembly {
    position: Position,
    tag: u32,
    count: u32,
    next: u32,
    bytes: Vec<u8>,
}

impl Assembly {
    /// Begins with a record's first chunk.
    ///
    /// # Errors
    /// [`RecordError::Chunks`] if it is not the first.
    pub(crate) fn begin(chunk: &Chunk<'_>) -> Result<Self, RecordError> {
        let mut assembly = Self {
            position: chunk.position,
            tag: chunk.tag,
            count: chunk.count,
            next: 0,
            bytes: Vec::with_capacity((chunk.count as usize).saturating_mul(PART_BYTES).min(1 << 25)),
        };
        assembly.add(chunk)?;
        Ok(assembly)
    }

    /// Adds the next chunk.
    ///
    /// # Errors
    /// [`RecordError::Chunks`] if it is another record's, or not the next.
    pub(crate) fn add(&mut self, chunk: &Chunk<'_>) -> Result<(), RecordError> {
        let same = (chunk.position, chunk.tag, chunk.count) == (self.position, self.tag, self.count);
        if !same || chunk.index != self.next {
            return Err(RecordError::Chunks);
        }
        self.next += 1;
        self.bytes.extend_from_slice(chunk.part);
        Ok(())
    }

    /// Whether the last chunk is there.
    pub(crate) fn is_whole(&self) -> bool {
        self.next == self.count
    }

    /// The record's bytes, once it is whole.
    ///
    /// # Errors
    /// [`RecordError::Chunks`] if it is not.
    pub(crate) fn finish(self) -> Result<Vec<u8>, RecordError> {
        if self.is_whole() { Ok(self.bytes) } else { Err(RecordError::Chunks) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(sealed: &[u8]) -> Header {
        Header {
            key_id: *b"keyid678",
            lane: 3,
            position: 0x0102_0304_0506_0708,
            sealed_length: u32::try_from(sealed.len()).unwrap(),
            previous: ChainValue([0xaa; 32]),
            chain: ChainValue([0xbb; 32]),
            nonce: [0xcc; 24],
            crc: crc32c::crc32c(sealed),
        }
    }

    fn record(sealed: &[u8]) -> Vec<u8> {
        [&header(sealed).encode()[..], sealed].concat()
    }

    fn assemble(values: &[Vec<u8>]) -> Result<Vec<u8>, RecordError> {
        let parsed: Vec<_> =
            values.iter().map(|v| parse_chunk(v).ok_or(RecordError::Chunks)).collect::<Result<_, _>>()?;
        let mut assembly = Assembly::begin(parsed.first().ok_or(RecordError::Chunks)?)?;
        for chunk in &parsed[1..] {
            assembly.add(chunk)?;
        }
        assembly.finish()
    }

    #[test]
    fn version_1_has_these_bytes() {
        use pgw_core::text::hex;

        let value = chunks(0x0102_0304_0506_0708, &record(b"sealed")).next().unwrap();
        let expected = [
            "50475763",
            "2410182d",
            "0102030405060708",
            "86471cfb",
            "00000000",
            "00000001",
            "007e",
            "50475772",
            "01",
            "00",
            "0003",
            "6b65796964363738",
            "0102030405060708",
            "00000006",
            &"aa".repeat(32),
            &"bb".repeat(32),
            &"cc".repeat(24),
            "86471cfb",
            "7365616c6564",
        ]
        .concat();
        assert_eq!(hex(&value), expected);
        assert_eq!(hex(&key(0x0102_0304_0506_0708, 9)), "010203040506070800000009");
    }

    #[test]
    fn records_go_there_and_back_in_chunks_of_at_most_4_kib() {
        for size in [0, 1, 4000, PART_BYTES - HEADER_BYTES, PART_BYTES - HEADER_BYTES + 1, 100_000] {
            let sealed: Vec<u8> = (0..size).map(|n| u8::try_from(n % 251).unwrap()).collect();
            let record = record(&sealed);
            let values: Vec<_> = chunks(header(&sealed).position, &record).collect();
            assert!(values.iter().all(|v| v.len() <= VALUE_BYTES));
            assert_eq!(values.len(), (size + HEADER_BYTES).div_ceil(PART_BYTES));
            let again = assemble(&values).unwrap();
            let (read, bytes) = Header::parse(&again).unwrap();
            assert_eq!((read, bytes), (header(&sealed), &sealed[..]));
            if values.len() > 1 {
                assert_eq!(assemble(&values[1..]), Err(RecordError::Chunks));
                assert_eq!(assemble(&values[..values.len() - 1]), Err(RecordError::Chunks));
            }
        }
    }

    #[test]
    fn no_flipped_bit_goes_unseen() {
        let value = chunks(7, &record(b"sealed")).next().unwrap();
        for bit in 0..value.len() * 8 {
            let mut flipped = value.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(parse_chunk(&flipped), None, "bit {bit}");
        }
        let mut newer = record(b"sealed");
        newer[4] = 2;
        assert_eq!(Header::parse(&newer), Err(RecordError::Version(2)));
        let mut damaged = record(b"sealed");
        damaged[HEADER_BYTES] ^= 1;
        assert_eq!(Header::parse(&damaged), Err(RecordError::Checksum));
    }

    #[test]
    fn chunks_of_two_records_with_one_position_never_mix() {
        let one: Vec<_> = chunks(7, &record(&[1; 9000])).collect();
        let other: Vec<_> = chunks(7, &record(&[2; 9000])).collect();
        assert_eq!(assemble(&[one[0].clone(), other[1].clone(), one[2].clone()]), Err(RecordError::Chunks));
    }
}
