//! The seal: XChaCha20-Poly1305 with a random nonce of 24 bytes, as positions are used again after a power cut
//! and a counting nonce would then repeat.
//!
//! The sealed content is the transaction in postcard, in the order of [`Sealed`]'s fields, and behind it, only where the wire has
//! another, the sender as its door has named it. A body that LZ4 makes at least
//! an eighth smaller is stored that way: clinical text does shrink, and the disk of a surgery's box is small and wears.

use chacha20poly1305::aead::{AeadInPlace as _, KeyInit as _};
use chacha20poly1305::{Key, Tag, XChaCha20Poly1305, XNonce};
use pgw_core::chain::ChainValue;
use pgw_core::transaction::{Body, Clock, Kind, Position, Transaction, TransactionId};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::crypt::keyring::{Keyring, OutboxKey};
use crate::guard::record::{HEADER_BYTES, Header, RecordError, SEALED_HEADER_BYTES};

const TAG_BYTES: usize = 16;
/// Bodies smaller than this are not worth the try.
const WORTH_PACKING_BYTES: usize = 256;
/// Of bodies larger than this, first only a sample of the middle is compressed.
const LARGE_BYTES: usize = 1 << 20;
const SAMPLE_BYTES: usize = 64 * 1024;
/// Most bytes that a sealed body may unpack to; more means damage.
const MOST_BODY_BYTES: usize = 1 << 30;

/// The sealed part of a record. The order of the fields is the format.
#[derive(Serialize, Deserialize)]
struct Sealed<'a> {
    id: [u8; 16],
    time: u64,
    event_type: &'a str,
    kind: Kind,
    content_type: &'a str,
    sender: &'a str,
    key: &'a str,
    shows_key: bool,
    correlation_id: &'a str,
    trace_parent: &'a str,
    clock: Clock,
    packing: Packing,
    body_length: u64,
    #[serde(with = "serde_bytes")]
    body: &'a [u8],
}

#[derive(Serialize, Deserialize, PartialEq, Eq)]
enum Packing {
    None,
    Lz4,
}

/// The body compressed by LZ4, where that is worth it. A large one is sampled first: compressing takes as much memory again.
fn packed(body: &[u8]) -> Option<Vec<u8>> {
    let smaller = |body: &[u8]| {
        let packed = lz4_flex::block::compress(body);
        (packed.len() <= body.len() - body.len() / 8).then_some(packed)
    };
    if body.len() < WORTH_PACKING_BYTES {
        return None;
    }
    let middle = body.len() / 2;
    if body.len() > LARGE_BYTES && smaller(body.get(middle..middle + SAMPLE_BYTES)?).is_none() {
        return None;
    }
    smaller(body).map(|mut packed| {
        packed.shrink_to_fit();
        packed
    })
}

/// A record's place, as its header has it and its seal covers it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RecordPlace {
    /// The lane's number in the store.
    pub(crate) lane: u16,
    /// Position.
    pub(crate) position: Position,
    /// Value of the chain over positions before it.
    pub(crate) previous: ChainValue,
    /// The same after it.
    pub(crate) chain: ChainValue,
}

/// Seals records with the present key, and opens those of every known key.
pub(crate) struct Sealer {
    present: (XChaCha20Poly1305, [u8; 8]),
    earlier: Vec<(XChaCha20Poly1305, [u8; 8])>,
}

impl Sealer {
    /// For these keys.
    pub(crate) fn new(keys: &Keyring) -> Self {
        let cipher = |key: &OutboxKey| (XChaCha20Poly1305::new(Key::from_slice(key.bytes())), key.id_bytes());
        Self { present: cipher(keys.present()), earlier: keys.iter().skip(1).map(cipher).collect() }
    }

    /// The whole record: header and sealed transaction.
    ///
    /// # Errors
    /// [`RecordError::Content`] if the system gives no random bytes or the transaction is beyond every limit.
    pub(crate) fn seal(
        &self,
        place: &RecordPlace,
        transaction: &Transaction,
    ) -> Result<Vec<u8>, RecordError> {
        let body = transaction.body.as_bytes();
        let packed = packed(body);
        let sealed = Sealed {
            id: *transaction.id.0.as_bytes(),
            time: transaction.time,
            event_type: &transaction.event_type,
            kind: transaction.kind,
            content_type: &transaction.content_type,
            sender: &transaction.sender,
            key: &transaction.key,
            shows_key: transaction.shows_key,
            correlation_id: &transaction.correlation_id,
            trace_parent: &transaction.trace_parent,
            clock: transaction.clock,
            packing: if packed.is_some() { Packing::Lz4 } else { Packing::None },
            body_length: body.len() as u64,
            body: packed.as_deref().unwrap_or(body),
        };
        let mut record = Vec::with_capacity(HEADER_BYTES + sealed.body.len() + 256 + TAG_BYTES);
        record.resize(HEADER_BYTES, 0);
        let mut record = postcard::to_extend(&sealed, record).map_err(|_| RecordError::Content)?;
        if let Some(given) = &transaction.given_sender {
            record = postcard::to_extend(given, record).map_err(|_| RecordError::Content)?;
        }
        drop(packed);

        let nonce = pgw_durable::random::<24>().map_err(|_| RecordError::Content)?;
        let mut header = Header {
            key_id: self.present.1,
            lane: place.lane,
            position: place.position,
            sealed_length: u32::try_from(record.len() - HEADER_BYTES + TAG_BYTES)
                .map_err(|_| RecordError::Content)?,
            previous: place.previous,
            chain: place.chain,
            nonce,
            crc: 0,
        };
        let bytes = header.encode();
        let tag = self
            .present
            .0
            .encrypt_in_place_detached(
                XNonce::from_slice(&nonce),
                &bytes[..SEALED_HEADER_BYTES],
                &mut record[HEADER_BYTES..],
            )
            .map_err(|_| RecordError::Seal)?;
        record.extend_from_slice(&tag);
        header.crc = crc32c::crc32c(&record[HEADER_BYTES..]);
        record[..HEADER_BYTES].copy_from_slice(&header.encode());
        Ok(record)
    }

    /// Opens a record.
    ///
    /// # Errors
    /// [`RecordError`] says what is wrong with it.
    pub(crate) fn open(&self, record: &[u8]) -> Result<(Header, Transaction), RecordError> {
        let (header, sealed) = Header::parse(record)?;
        let mut keys = std::iter::once(&self.present).chain(&self.earlier);
        let (cipher, _) = keys.find(|(_, id)| *id == header.key_id).ok_or(RecordError::OtherKey)?;
        let (bytes, tag) = sealed.split_last_chunk::<TAG_BYTES>().ok_or(RecordError::NotARecord)?;
        let mut bytes = bytes.to_vec();
        let covered = record.get(..SEALED_HEADER_BYTES).ok_or(RecordError::NotARecord)?;
        cipher
            .decrypt_in_place_detached(
                XNonce::from_slice(&header.nonce),
                covered,
                &mut bytes,
                Tag::from_slice(tag),
            )
            .map_err(|_| RecordError::Seal)?;
        let (sealed, rest): (Sealed<'_>, _) =
            postcard::take_from_bytes(&bytes).map_err(|_| RecordError::Content)?;
        let given_sender = match rest {
            [] => None,
            rest => Some(postcard::from_bytes(rest).map_err(|_| RecordError::Content)?),
        };
        let body = match sealed.packing {
            Packing::None => sealed.body.to_vec(),
            Packing::Lz4 => {
                let length = usize::try_from(sealed.body_length).map_err(|_| RecordError::Content)?;
                if length > MOST_BODY_BYTES {
                    return Err(RecordError::Content);
                }
                lz4_flex::block::decompress(sealed.body, length).map_err(|_| RecordError::Content)?
            }
        };
        if body.len() as u64 != sealed.body_length {
            return Err(RecordError::Content);
        }
        let transaction = Transaction {
            id: TransactionId(Uuid::from_bytes(sealed.id)),
            time: sealed.time,
            event_type: sealed.event_type.to_owned(),
            kind: sealed.kind,
            content_type: sealed.content_type.to_owned(),
            sender: sealed.sender.to_owned(),
            given_sender,
            key: sealed.key.to_owned(),
            shows_key: sealed.shows_key,
            correlation_id: sealed.correlation_id.to_owned(),
            trace_parent: sealed.trace_parent.to_owned(),
            clock: sealed.clock,
            body: Body::new(body),
        };
        Ok((header, transaction))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn transaction(body: Vec<u8>) -> Transaction {
        Transaction {
            id: TransactionId(Uuid::from_u128(7)),
            time: 1_795_385_530_123,
            event_type: "hl7v2.oru_r01".into(),
            kind: Kind::Transaction,
            content_type: "application/hl7-v2+er7".into(),
            sender: "lab".into(),
            given_sender: None,
            key: "MSG0001".into(),
            shows_key: true,
            correlation_id: String::new(),
            trace_parent: String::new(),
            clock: Clock::Synced,
            body: Body::new(body),
        }
    }

    const PLACE: RecordPlace =
        RecordPlace { lane: 0, position: 9, previous: ChainValue([1; 32]), chain: ChainValue([2; 32]) };

    #[test]
    fn what_is_sealed_comes_back_and_cannot_be_read_without_the_key() {
        let sealer = Sealer::new(&OutboxKey::new([7; 32]).into());
        let random: Vec<u8> =
            (0..5000u32).map(|n| u8::try_from(n.wrapping_mul(2_654_435_761) >> 24).unwrap()).collect();
        for body in [vec![], b"PID|1||9434765919".to_vec(), b"PID|1||9434765919".repeat(100), random] {
            let record = sealer.seal(&PLACE, &transaction(body.clone())).unwrap();
            assert!(!record.windows(10).any(|w| w == b"9434765919" || w == b"MSG0001\0\0\0"));
            let (header, read) = sealer.open(&record).unwrap();
            assert_eq!(read, transaction(body));
            assert_eq!((header.position, header.chain), (9, ChainValue([2; 32])));
            assert_eq!(
                Sealer::new(&OutboxKey::new([8; 32]).into()).open(&record).unwrap_err(),
                RecordError::OtherKey
            );
        }
    }

    #[test]
    fn every_bit_of_a_record_is_covered() {
        let sealer = Sealer::new(&OutboxKey::new([7; 32]).into());
        let record = sealer.seal(&PLACE, &transaction(b"body".to_vec())).unwrap();
        for bit in 0..record.len() * 8 {
            let mut flipped = record.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(sealer.open(&flipped).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn text_is_packed() {
        let sealer = Sealer::new(&OutboxKey::new([7; 32]).into());
        let body = b"OBX|1|NM|718-7^Hemoglobin^LN||13.2|g/dL\r".repeat(100);
        assert!(sealer.seal(&PLACE, &transaction(body.clone())).unwrap().len() < body.len() / 2);
    }

    #[test]
    fn earlier_keys_open_and_only_the_present_one_seals() {
        let old = Sealer::new(&OutboxKey::new([7; 32]).into());
        let both = Sealer::new(&Keyring::new(OutboxKey::new([8; 32]), vec![OutboxKey::new([7; 32])]));
        let new = Sealer::new(&OutboxKey::new([8; 32]).into());
        let record = old.seal(&PLACE, &transaction(b"before".to_vec())).unwrap();
        assert_eq!(both.open(&record).unwrap().1, transaction(b"before".to_vec()));
        let record = both.seal(&PLACE, &transaction(b"after".to_vec())).unwrap();
        assert_eq!(new.open(&record).unwrap().1, transaction(b"after".to_vec()));
        assert_eq!(old.open(&record).unwrap_err(), RecordError::OtherKey);
    }

    #[test]
    fn a_sender_as_given_is_in_the_record_and_one_without_reads_as_before() {
        let sealer = Sealer::new(&OutboxKey::new([7; 32]).into());
        let plain = transaction(b"x".to_vec());
        let given = Transaction { given_sender: Some("9434765919".into()), ..plain.clone() };
        let lengths = [&plain, &given].map(|transaction| {
            let record = sealer.seal(&PLACE, transaction).unwrap();
            assert!(!record.windows(10).any(|part| part == b"9434765919"));
            let (_, opened) = sealer.open(&record).unwrap();
            assert_eq!(&opened, transaction);
            record.len()
        });
        assert_eq!(lengths[1] - lengths[0], 11, "its length and its bytes, and nothing where there is none");
        assert_eq!((plain.sender_as_given(), given.sender_as_given()), ("lab", "9434765919"));
        let lane = "B86022/gw1/clinical".parse().unwrap();
        assert_eq!(given.digest(&lane), plain.digest(&lane), "the hub never sees it");
    }
}
