//! Lists one folder: the files that may be taken, oldest first, in bounded memory. Everything here blocks.

use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::ffi::OsStr;
use std::io::{self, ErrorKind};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use super::debounce::Candidate;
use super::read::facts;
use super::rules::{self, Take};

/// Most files in one listing; the next one gives the rest.
pub(super) const MOST: usize = 16_384;

/// The contents of a folder.
pub(super) struct Listed {
    /// The oldest files that may be taken, in the order of taking: by time, then by name.
    pub(super) files: Vec<Candidate>,
    /// Whether there are more.
    pub(super) more: bool,
    /// Number of entries that are neither a file nor a directory; they stay.
    pub(super) odd: u64,
}

/// Ordered as files are taken; a heap of these drops the youngest first.
struct InOrder(Candidate);

impl InOrder {
    fn cmp_to(&self, other: &Self) -> Ordering {
        let (one, two) = (&self.0, &other.0);
        one.facts.modified.cmp(&two.facts.modified).then_with(|| one.name.cmp(&two.name))
    }
}

impl Ord for InOrder {
    fn cmp(&self, other: &Self) -> Ordering {
        self.cmp_to(other)
    }
}

impl PartialOrd for InOrder {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for InOrder {
    fn eq(&self, other: &Self) -> bool {
        self.cmp_to(other) == Ordering::Equal
    }
}

impl Eq for InOrder {}

/// Lists every name in `folder`; returns at most `most` of the files that may be taken.
pub(super) fn list(
    folder: &Path,
    take: Take,
    most: usize,
    may: impl Fn(&OsStr) -> io::Result<bool>,
) -> io::Result<Listed> {
    let mut oldest = BinaryHeap::new();
    let (mut more, mut odd) = (false, 0);
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        if !rules::is_finished(take, name.as_bytes()) {
            continue;
        }
        // Of the name itself: the target of a link is not the sender's to send.
        let metadata = match entry.metadata() {
            Ok(metadata) => metadata,
            // It was removed meanwhile.
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        if !metadata.is_file() {
            odd += u64::from(!metadata.is_dir());
            continue;
        }
        if !may(&name)? {
            continue;
        }
        oldest.push(InOrder(Candidate { name, facts: facts(&metadata) }));
        if oldest.len() > most {
            oldest.pop();
            more = true;
        }
    }
    let files = oldest.into_sorted_vec().into_iter().map(|InOrder(candidate)| candidate).collect();
    Ok(Listed { files, more, odd })
}

/// Whether a regular file of this name exists.
pub(super) fn is_there(folder: &Path, name: &[u8]) -> io::Result<bool> {
    match std::fs::symlink_metadata(folder.join(std::ffi::OsString::from_vec(name.to_vec()))) {
        Ok(metadata) => Ok(metadata.is_file()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Whether a file system is mounted at this place.
pub(super) fn is_mounted(folder: &Path) -> io::Result<bool> {
    let here = std::fs::metadata(folder)?;
    let above = std::fs::metadata(folder.join(".."))?;
    Ok(here.dev() != above.dev() || here.ino() == above.ino())
}

#[cfg(test)]
mod tests {
    use std::fs::FileTimes;
    use std::time::{Duration, SystemTime};

    use super::*;

    fn write(folder: &Path, name: &str, age: u64) {
        let file = std::fs::File::create(folder.join(name)).unwrap();
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000 - age);
        file.set_times(FileTimes::new().set_modified(time)).unwrap();
    }

    fn names(listed: &Listed) -> Vec<&str> {
        listed.files.iter().map(|file| file.name.to_str().unwrap()).collect()
    }

    #[test]
    fn the_oldest_come_first_then_the_name_decides_and_the_number_is_bounded() {
        let folder = tempfile::tempdir().unwrap();
        for (name, age) in [("z", 30), ("b", 20), ("a", 20), ("y", 10), ("x", 5)] {
            write(folder.path(), name, age);
        }
        let listed = list(folder.path(), Take::Rename, 10, |_| Ok(true)).unwrap();
        assert_eq!((names(&listed), listed.more), (vec!["z", "a", "b", "y", "x"], false));
        let listed = list(folder.path(), Take::Rename, 3, |_| Ok(true)).unwrap();
        assert_eq!((names(&listed), listed.more), (vec!["z", "a", "b"], true));
    }

    #[test]
    fn what_is_no_file_is_counted_and_left() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), "a", 1);
        write(folder.path(), "a.tmp", 1);
        std::fs::create_dir(folder.path().join("accepted")).unwrap();
        std::os::unix::fs::symlink("a", folder.path().join("link")).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(folder.path().join("socket")).unwrap();
        let listed = list(folder.path(), Take::Rename, 10, |_| Ok(true)).unwrap();
        assert_eq!((names(&listed), listed.odd), (vec!["a"], 2));
        assert!(is_there(folder.path(), b"a").unwrap() && !is_there(folder.path(), b"b").unwrap());
        assert!(!is_there(folder.path(), b"link").unwrap(), "a link is no file");
    }

    #[test]
    fn a_mounted_file_system_is_told_from_a_plain_directory() {
        let folder = tempfile::tempdir().unwrap();
        assert!(!is_mounted(folder.path()).unwrap());
        assert!(is_mounted(Path::new("/proc")).unwrap());
        assert!(is_mounted(folder.path().join("gone").as_path()).is_err());
    }
}
