//! Reads one file, and checks whether a file is still the one that was read. Everything here blocks.

use std::fs::{File, Metadata};
use std::io::{ErrorKind, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use bytes::Bytes;
use pgw_core::text::hex;
use ring::digest;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::debounce::FileFacts;

const PIECE_BYTES: usize = 64 * 1024;

/// The result of reading a file.
pub(super) enum ReadFile {
    /// All of it, unchanged since it was listed.
    Whole(Bytes),
    /// It is empty.
    Empty,
    /// Larger than the limit.
    TooLarge,
    /// It was written to since it was listed.
    Changed,
    /// It has gone, or is no longer a file.
    Gone,
    /// It cannot be read.
    Unreadable(ErrorKind),
}

pub(super) fn facts(metadata: &Metadata) -> FileFacts {
    let nanoseconds = u32::try_from(metadata.mtime_nsec()).unwrap_or(0);
    FileFacts { bytes: metadata.len(), modified: (metadata.mtime(), nanoseconds) }
}

/// Opens only a regular file: does not follow a link or wait for a pipe.
fn open(path: &Path) -> std::io::Result<(File, FileFacts)> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(file) => File::from(file),
        // A link: the file itself is not there.
        Err(Errno::LOOP) => return Err(ErrorKind::NotFound.into()),
        Err(error) => return Err(error.into()),
    };
    let metadata = file.metadata()?;
    if metadata.is_file() { Ok((file, facts(&metadata))) } else { Err(ErrorKind::NotFound.into()) }
}

/// Reads a file that was listed as `expected`, of at most `limit` bytes.
pub(super) fn take(path: &Path, expected: FileFacts, limit: u64) -> ReadFile {
    take_while(path, expected, limit, || ())
}

/// The same, with an action of the test while it is read.
fn take_while(path: &Path, expected: FileFacts, limit: u64, meanwhile: impl FnOnce()) -> ReadFile {
    let read = || {
        let (mut file, before) = open(path)?;
        if before != expected {
            return Ok(ReadFile::Changed);
        }
        if before.bytes == 0 {
            return Ok(ReadFile::Empty);
        }
        if before.bytes > limit {
            return Ok(ReadFile::TooLarge);
        }
        let mut bytes = Vec::with_capacity(usize::try_from(before.bytes).unwrap_or(0));
        // One byte more than expected: it shows a file that is growing.
        (&mut file).take(before.bytes + 1).read_to_end(&mut bytes)?;
        meanwhile();
        let same = bytes.len() as u64 == before.bytes && facts(&file.metadata()?) == before;
        Ok(if same { ReadFile::Whole(Bytes::from(bytes)) } else { ReadFile::Changed })
    };
    read().unwrap_or_else(|error: std::io::Error| match error.kind() {
        ErrorKind::NotFound => ReadFile::Gone,
        kind => ReadFile::Unreadable(kind),
    })
}

/// Whether a file is unchanged and has this content. Reads in pieces, because the content needs no memory a second
/// time.
pub(super) fn is_the_same(path: &Path, expected: FileFacts, sha256: &str) -> std::io::Result<bool> {
    let (mut file, found) = open(path)?;
    if found != expected {
        return Ok(false);
    }
    let mut context = digest::Context::new(&digest::SHA256);
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        match file.read(&mut piece)? {
            0 => break,
            read => context.update(piece.get(..read).unwrap_or_default()),
        }
    }
    Ok(hex(context.finish().as_ref()) == sha256)
}

#[cfg(test)]
mod tests {
    use super::super::rules::sha256;
    use super::*;

    fn facts_of(path: &Path) -> FileFacts {
        facts(&std::fs::symlink_metadata(path).unwrap())
    }

    #[test]
    fn a_file_is_read_whole_or_not_at_all() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a");
        std::fs::write(&path, b"12345").unwrap();
        let seen = facts_of(&path);
        assert!(matches!(take(&path, seen, 5), ReadFile::Whole(bytes) if *bytes == b"12345"[..]));
        assert!(matches!(take(&path, seen, 4), ReadFile::TooLarge));
        assert!(matches!(take(&path, FileFacts { bytes: 4, ..seen }, 5), ReadFile::Changed));
        assert!(matches!(take(&path, FileFacts { modified: (0, 0), ..seen }, 5), ReadFile::Changed));
        assert!(is_the_same(&path, seen, &sha256(b"12345")).unwrap());
        assert!(!is_the_same(&path, seen, &sha256(b"12346")).unwrap(), "same size and time are not enough");
        assert!(!is_the_same(&path, FileFacts { modified: (0, 0), ..seen }, &sha256(b"12345")).unwrap());
        std::fs::write(&path, b"").unwrap();
        assert!(matches!(take(&path, facts_of(&path), 5), ReadFile::Empty));
        std::fs::remove_file(&path).unwrap();
        assert!(matches!(take(&path, seen, 5), ReadFile::Gone));
    }

    #[test]
    fn a_file_that_is_written_to_while_it_is_read_is_not_taken() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a");
        std::fs::write(&path, b"half").unwrap();
        let taken = take_while(&path, facts_of(&path), 10, || std::fs::write(&path, b"whole").unwrap());
        assert!(matches!(taken, ReadFile::Changed));
    }

    #[test]
    fn links_and_pipes_are_never_opened() {
        let directory = tempfile::tempdir().unwrap();
        let (target, link, pipe) =
            (directory.path().join("t"), directory.path().join("l"), directory.path().join("p"));
        std::fs::write(&target, b"secret").unwrap();
        std::os::unix::fs::symlink(&target, &link).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)
            .unwrap();
        assert!(matches!(take(&link, facts_of(&target), 10), ReadFile::Gone));
        assert!(matches!(take(&pipe, facts_of(&pipe), 10), ReadFile::Gone), "and it does not hang");
        assert!(matches!(take(directory.path(), facts_of(directory.path()), 10), ReadFile::Gone));
    }
}
