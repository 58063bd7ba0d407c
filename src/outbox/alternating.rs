//! Small files that are written often and must never be torn: two slots, written alternately, with one fdatasync a write.
//!
//! An [`Alternating`] file is two slots of [`SLOT_BYTES`] each, numbers big-endian:
//!
//! | bytes | what |
//! |---|---|
//! | 4 | magic, the caller's |
//! | 2 | version of the payload, the caller's |
//! | 2 | zero |
//! | 8 | write counter, from 1: the valid slot with the higher one counts |
//! | 4 | length of the payload |
//! | n | payload |
//! | 4 | CRC32C of everything before |
//!
//! A write goes to the slot that does *not* count, so a torn write leaves the other one. After a failed
//! write or fdatasync the same slot is written again: the good one is never touched before its successor is on the disk.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;

use crate::files::{self, is_unreadable};

/// Room of one slot; a payload may have 24 bytes less.
pub(crate) const SLOT_BYTES: u64 = 64 * 1024;
const HEAD: usize = 20;
const TAIL: usize = 4;

/// A small file of two slots that are written alternately.
#[derive(Debug)]
pub(crate) struct Alternating {
    file: File,
    magic: [u8; 4],
    version: u16,
    counter: u64,
}

/// The content of an [`Alternating`] file when it was opened.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum SlotContent {
    /// The file was not there, or its creation was interrupted.
    Nothing,
    /// The newest valid payload.
    Payload(Vec<u8>),
    /// The file has content, but neither slot is valid.
    Damaged,
}

impl Alternating {
    /// Opens `path`, or creates it durably.
    pub(crate) fn open(path: &Path, magic: [u8; 4], version: u16) -> io::Result<(Self, SlotContent)> {
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
        if file.metadata()?.len() < 2 * SLOT_BYTES {
            file.set_len(2 * SLOT_BYTES)?;
            file.sync_all()?;
            files::sync_name(path)?;
        }
        let (counter, found) = newest(&file, magic, version)?;
        Ok((Self { file, magic, version, counter }, found))
    }

    /// Reads the file's content. Nothing is written or created.
    pub(crate) fn read(path: &Path, magic: [u8; 4], version: u16) -> io::Result<SlotContent> {
        let file = match File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(SlotContent::Nothing),
            other => other?,
        };
        if file.metadata()?.len() < 2 * SLOT_BYTES {
            return Ok(SlotContent::Nothing);
        }
        Ok(newest(&file, magic, version)?.1)
    }

    /// Writes `payload` to the other slot and waits until it is on the disk.
    pub(crate) fn write(&mut self, payload: &[u8]) -> io::Result<()> {
        let counter = self.counter + 1;
        let slot = encode(payload, self.magic, self.version, counter)?;
        self.file.write_all_at(&slot, counter % 2 * SLOT_BYTES)?;
        pgw_durable::sync_data(&self.file)?;
        self.counter = counter;
        Ok(())
    }
}

/// The newest payload of a file of two slots, and its write counter.
fn newest(file: &File, magic: [u8; 4], version: u16) -> io::Result<(u64, SlotContent)> {
    let mut written = false;
    let mut best: Option<(u64, Vec<u8>)> = None;
    for slot in 0..2 {
        let mut bytes = vec![0; SLOT_BYTES as usize];
        match file.read_exact_at(&mut bytes, slot * SLOT_BYTES) {
            Err(error) if is_unreadable(&error) => {
                written = true;
                continue;
            }
            other => other?,
        }
        written |= bytes.iter().any(|b| *b != 0);
        let Some((counter, payload)) = parse(&bytes, magic, version) else { continue };
        if counter % 2 == slot && best.as_ref().is_none_or(|(other, _)| counter > *other) {
            best = Some((counter, payload.to_vec()));
        }
    }
    Ok(match best {
        Some((counter, payload)) => (counter, SlotContent::Payload(payload)),
        None if written => (0, SlotContent::Damaged),
        None => (0, SlotContent::Nothing),
    })
}

fn encode(payload: &[u8], magic: [u8; 4], version: u16, counter: u64) -> io::Result<Vec<u8>> {
    let length = u32::try_from(payload.len()).map_err(io::Error::other)?;
    if (HEAD + payload.len() + TAIL) as u64 > SLOT_BYTES {
        return Err(io::Error::other("the payload is larger than its slot"));
    }
    let mut slot = Vec::with_capacity(HEAD + payload.len() + TAIL);
    slot.extend(magic);
    slot.extend(version.to_be_bytes());
    slot.extend([0, 0]);
    slot.extend(counter.to_be_bytes());
    slot.extend(length.to_be_bytes());
    slot.extend(payload);
    slot.extend(crc32c::crc32c(&slot).to_be_bytes());
    Ok(slot)
}

fn parse(slot: &[u8], magic: [u8; 4], version: u16) -> Option<(u64, &[u8])> {
    let mut head = Take(slot);
    if head.array::<4>()? != magic || head.array::<2>()? != version.to_be_bytes() || head.array()? != [0, 0] {
        return None;
    }
    let counter = head.u64()?;
    let payload = head.bytes(usize::try_from(head.peek_u32()?).ok()? + 4)?.get(4..)?;
    let crc = u32::from_be_bytes(head.array()?);
    (crc32c::crc32c(slot.get(..HEAD + payload.len())?) == crc).then_some((counter, payload))
}

/// Reads numbers and fields off the front of some bytes; `None` at their end.
pub(crate) struct Take<'a>(pub(crate) &'a [u8]);

impl<'a> Take<'a> {
    /// The next `count` bytes.
    pub(crate) fn bytes(&mut self, count: usize) -> Option<&'a [u8]> {
        let (front, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(front)
    }

    /// The next `N` bytes.
    pub(crate) fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.bytes(N)?.try_into().ok()
    }

    /// The next u16, big-endian.
    pub(crate) fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    /// The next u32, big-endian.
    pub(crate) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    /// The next u64, big-endian.
    pub(crate) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }

    fn peek_u32(&self) -> Option<u32> {
        Take(self.0).u32()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAGIC: [u8; 4] = *b"TEST";

    fn reopen(path: &Path) -> SlotContent {
        Alternating::open(path, MAGIC, 1).unwrap().1
    }

    #[test]
    fn the_newest_payload_is_found_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("slots");
        let (mut file, found) = Alternating::open(&path, MAGIC, 1).unwrap();
        assert_eq!(found, SlotContent::Nothing);
        for n in 0..5u8 {
            file.write(&[n; 9]).unwrap();
            assert_eq!(reopen(&path), SlotContent::Payload(vec![n; 9]));
        }
        assert_eq!(Alternating::open(&path, *b"ELSE", 1).unwrap().1, SlotContent::Damaged);
        assert_eq!(Alternating::open(&path, MAGIC, 2).unwrap().1, SlotContent::Damaged);
    }

    /// The disk may have written any part of the last slot, in pieces of 512 bytes; the one before must then count.
    #[test]
    fn a_torn_slot_leaves_the_other() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("slots");
        let (mut file, _) = Alternating::open(&path, MAGIC, 1).unwrap();
        file.write(&[1; 3000]).unwrap();
        let before = std::fs::read(&path).unwrap();
        file.write(&[2; 3000]).unwrap();
        let after = std::fs::read(&path).unwrap();
        let mut new = 0;
        for pieces in 0..64u32 {
            let mut torn = before.clone();
            for piece in (0..6).filter(|p| pieces >> p & 1 == 1) {
                let at = piece as usize * 512; // write 2 is in slot 0
                torn[at..at + 512].copy_from_slice(&after[at..at + 512]);
            }
            std::fs::write(&path, torn).unwrap();
            let found = reopen(&path);
            let whole = pieces == 63;
            assert_eq!(found, SlotContent::Payload(vec![if whole { 2 } else { 1 }; 3000]), "{pieces:b}");
            new += u32::from(whole);
        }
        assert_eq!(new, 1);
    }

    #[test]
    fn any_flipped_bit_is_noticed() {
        let slot = encode(b"payload", MAGIC, 1, 7).unwrap();
        assert_eq!(parse(&slot, MAGIC, 1), Some((7, &b"payload"[..])));
        for bit in 0..slot.len() * 8 {
            let mut flipped = slot.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(parse(&flipped, MAGIC, 1), None, "bit {bit}");
        }
    }

    #[test]
    fn both_slots_gone_is_damage_and_is_got_over() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("slots");
        std::fs::write(&path, [7u8; 100]).unwrap();
        let (mut file, found) = Alternating::open(&path, MAGIC, 1).unwrap();
        assert_eq!(found, SlotContent::Damaged);
        file.write(b"again").unwrap();
        assert_eq!(reopen(&path), SlotContent::Payload(b"again".to_vec()));
    }

    #[test]
    fn a_payload_larger_than_its_slot_is_refused_and_changes_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("slots");
        let (mut file, _) = Alternating::open(&path, MAGIC, 1).unwrap();
        file.write(b"small").unwrap();
        assert!(file.write(&vec![1; SLOT_BYTES as usize - HEAD - TAIL + 1]).is_err());
        assert_eq!(reopen(&path), SlotContent::Payload(b"small".to_vec()));
        let largest = vec![1; SLOT_BYTES as usize - HEAD - TAIL];
        file.write(&largest).unwrap();
        assert_eq!(reopen(&path), SlotContent::Payload(largest));
    }

    #[test]
    fn golden_slot() {
        let slot = encode(b"ab", MAGIC, 1, 2).unwrap();
        assert_eq!(pgw_core::text::hex(&slot), "5445535400010000000000000000000200000002616223bacab8");
    }
}
