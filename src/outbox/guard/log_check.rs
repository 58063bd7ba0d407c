//! Checks whether the log of a sled database is sound, before sled opens it.
//!
//! sled 0.34.7 takes the first message that it cannot read for the end of its log and zeroes the rest: a flipped bit in
//! the middle would destroy everything after it, without an error, and carving would come too late. So this module walks
//! the log first, in the same way, and only reads. An unsound log is carved and never opened.
//!
//! The file is a sequence of pieces of 512 KiB in no order. Each begins with CRC-32 (inverted), LSN and another number, 20 bytes;
//! messages follow: CRC-32 (inverted) of the body and of the header's rest, kind, and three numbers of
//! variable length: length, piece number (LSN / 512 KiB), page. A message of kind 2 ends its piece, else less than 32 bytes are
//! left at the end. Zeros after a message are unused room. The piece with the highest LSN may end in leftovers of a crash: no
//! record that is known to be durable is only after those.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read as _, Seek as _};
use std::path::Path;

use pgw_core::transaction::Position;

use crate::guard::record::{CHUNK_MAGIC, parse_chunk};

const PIECE_BYTES: usize = 512 * 1024;
const PIECE_HEADER_BYTES: usize = 20;
/// No message begins in the last bytes of a piece.
const LEAST_ROOM_BYTES: usize = 32;
const CAP: u8 = 2;
const NEWEST_KIND: u8 = 11;

/// Whether sled will find everything in this file that was ever made durable; `durable`: the records up to this
/// position are known to have been.
pub(crate) fn is_sound(database: &Path, durable: Position) -> io::Result<bool> {
    let mut file = File::open(database)?;
    let mut piece = Vec::with_capacity(PIECE_BYTES);
    let mut highest = None;
    // Piece number, LSN, and where the walk ended.
    let mut broken: Vec<(u64, u64, usize)> = Vec::new();
    for number in 0.. {
        piece.clear();
        if (&mut file).take(PIECE_BYTES as u64).read_to_end(&mut piece)? == 0 {
            break;
        }
        let Some(header) = piece.first_chunk::<PIECE_HEADER_BYTES>() else { continue };
        if header.iter().all(|byte| *byte == 0) {
            continue;
        }
        let Some(lsn) = piece_lsn(header) else { return Ok(false) };
        highest = highest.max(Some(lsn));
        if let Some(end) = walk(&piece, lsn / PIECE_BYTES as u64) {
            broken.push((number, lsn, end));
        }
    }
    match broken[..] {
        [] => Ok(true),
        [(number, lsn, end)] if Some(lsn) == highest => {
            Ok(!lies_behind(&mut file, number * PIECE_BYTES as u64 + end as u64, durable)?)
        }
        _ => Ok(false),
    }
}

/// Whether a chunk of a durable record is after the break at `from` and nowhere else. A copy alone proves nothing: sled
/// writes the same value several times.
fn lies_behind(file: &mut File, from: u64, durable: Position) -> io::Result<bool> {
    file.seek(io::SeekFrom::Start(0))?;
    let until = (from / PIECE_BYTES as u64 + 1) * PIECE_BYTES as u64;
    let (mut behind, mut elsewhere) = (BTreeSet::new(), BTreeSet::new());
    let mut piece = Vec::with_capacity(PIECE_BYTES);
    let mut start = 0;
    loop {
        piece.clear();
        if file.take(PIECE_BYTES as u64).read_to_end(&mut piece)? == 0 {
            return Ok(behind.difference(&elsewhere).next().is_some());
        }
        let mut at = 0;
        while let Some(found) =
            piece.get(at..).and_then(|rest| rest.windows(4).position(|w| w == CHUNK_MAGIC))
        {
            at += found;
            if let Some(chunk) = piece.get(at..).and_then(parse_chunk).filter(|c| c.position <= durable) {
                let place = start + at as u64;
                let set = if (from..until).contains(&place) { &mut behind } else { &mut elsewhere };
                set.insert((chunk.position, chunk.tag, chunk.index));
            }
            at += 1;
        }
        start += piece.len() as u64;
    }
}

fn piece_lsn(header: &[u8; PIECE_HEADER_BYTES]) -> Option<u64> {
    let stored = u32::from_le_bytes(header.first_chunk().copied()?) ^ u32::MAX;
    let lsn = u64::from_le_bytes(header.get(4..12)?.try_into().ok()?) ^ (u64::MAX >> 1);
    (crc32fast::hash(header.get(4..)?) == stored).then_some(lsn)
}

/// Where a message cannot be read although bytes follow it.
fn walk(piece: &[u8], number: u64) -> Option<usize> {
    let mut at = PIECE_HEADER_BYTES;
    while at + LEAST_ROOM_BYTES <= PIECE_BYTES {
        let rest = piece.get(at..).unwrap_or_default();
        match message(rest, number) {
            Some((CAP, _)) => return None,
            Some((_, length)) => at += length,
            None => {
                let unused = rest.iter().take(LEAST_ROOM_BYTES).all(|byte| *byte == 0);
                return (!unused).then_some(at);
            }
        }
    }
    None
}

/// Kind and whole length of the message that begins here.
fn message(bytes: &[u8], number: u64) -> Option<(u8, usize)> {
    let crc = u32::from_le_bytes(bytes.first_chunk().copied()?);
    let kind = *bytes.get(4).filter(|kind| (1..=NEWEST_KIND).contains(*kind))?;
    let mut at = 5;
    let length = usize::try_from(variable(bytes, &mut at)?).ok()?;
    let piece = variable(bytes, &mut at)?;
    let _page = variable(bytes, &mut at)?;
    let body = bytes.get(at..at.checked_add(length)?)?;
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(body);
    hasher.update(bytes.get(4..at)?);
    (hasher.finalize() ^ u32::MAX == crc && piece == number).then_some((kind, at + length))
}

fn variable(bytes: &[u8], at: &mut usize) -> Option<u64> {
    let first = *bytes.get(*at)?;
    let byte = |offset: usize| bytes.get(*at + offset).copied().map(u64::from);
    let (value, length) = match first {
        0..=240 => (u64::from(first), 1),
        241..=248 => (240 + 256 * (u64::from(first) - 241) + byte(1)?, 2),
        249 => (2288 + 256 * byte(1)? + byte(2)?, 3),
        250..=255 => {
            let width = usize::from(first) - 247;
            let mut value = 0;
            for offset in (1..=width).rev() {
                value = value << 8 | byte(offset)?;
            }
            (value, width + 1)
        }
    };
    *at += length;
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A database with several pieces, closed and opened again in the middle.
    fn database(directory: &Path) -> std::path::PathBuf {
        for half in 0..2u64 {
            // The first half's lock outlives its handle by a moment.
            let begun = std::time::Instant::now();
            let db = loop {
                match sled::Config::new().path(directory).flush_every_ms(None).open() {
                    Ok(db) => break db,
                    Err(error) => assert!(begun.elapsed().as_secs() < 20, "{error}"),
                }
            };
            for n in half * 600..half * 600 + 600 {
                db.insert(n.to_be_bytes(), vec![u8::try_from(n % 251).unwrap(); 3000]).unwrap();
                if n % 50 == 0 {
                    db.flush().unwrap();
                }
            }
            db.flush().unwrap();
        }
        directory.join("db")
    }

    #[test]
    fn what_sled_wrote_is_sound_and_a_flipped_bit_before_the_end_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = database(directory.path());
        assert!(is_sound(&path, 0).unwrap());
        let whole = std::fs::read(&path).unwrap();
        let pieces = whole.chunks(PIECE_BYTES);
        let lsns: Vec<_> = pieces.clone().map(|p| p.first_chunk().and_then(piece_lsn)).collect();
        assert!(lsns.len() >= 4);
        let highest = lsns.iter().max().unwrap();
        for (index, lsn) in lsns.iter().enumerate().filter(|(_, lsn)| lsn.is_some() && *lsn != highest) {
            for offset in [2, 10, 30, 5_000, 100_000] {
                let mut damaged = whole.clone();
                damaged[index * PIECE_BYTES + offset] ^= 0x10;
                std::fs::write(&path, &damaged).unwrap();
                assert!(!is_sound(&path, 0).unwrap(), "piece {index} {lsn:?} offset {offset}");
            }
        }
    }

    #[test]
    fn a_torn_end_is_no_damage() {
        let directory = tempfile::tempdir().unwrap();
        let path = database(directory.path());
        let whole = std::fs::read(&path).unwrap();
        let lsns: Vec<_> = whole.chunks(PIECE_BYTES).map(|p| p.first_chunk().and_then(piece_lsn)).collect();
        let newest = lsns.iter().enumerate().max_by_key(|(_, lsn)| **lsn).unwrap().0;
        let mut torn = whole.clone();
        torn[newest * PIECE_BYTES + 40..][..3].fill(0xaa);
        std::fs::write(&path, &torn).unwrap();
        assert!(is_sound(&path, 0).unwrap());
    }
}
