//! Small files of JSON, each with a CRC32C, so that half a file is never used; [`pgw_durable`] replaces them as a whole. Also
//! work on whole trees of files.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::Path;

use pgw_durable::{PRIVATE, Replacement};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Creates a directory of the store, for its owner only, and syncs its parent.
pub(crate) fn create_directory(directory: &Path) -> io::Result<()> {
    pgw_durable::create_directory(directory, 0o700)
}

/// Makes a file's directory entry durable.
pub(crate) fn sync_name(path: &Path) -> io::Result<()> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    pgw_durable::sync_directory(directory.unwrap_or(Path::new(".")))
}

/// Syncs `directory` and everything below it.
pub(crate) fn sync_tree(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            sync_tree(&entry.path())?;
        } else {
            match File::open(entry.path()) {
                Ok(file) => file.sync_all()?,
                // sled may remove an old snapshot at any moment.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
    }
    pgw_durable::sync_directory(directory)
}

/// Gives everything below `directory` to its owner: the daemon must be able to write the files that root's commands made.
pub(crate) fn give_to_owner(directory: &Path) -> io::Result<()> {
    use std::os::unix::fs::{MetadataExt as _, lchown};
    let owner = fs::metadata(directory)?;
    let mut open = vec![directory.to_owned()];
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(directory)? {
            let path = entry?.path();
            let facts = fs::symlink_metadata(&path)?;
            if (facts.uid(), facts.gid()) != (owner.uid(), owner.gid()) {
                lchown(&path, Some(owner.uid()), Some(owner.gid()))?;
            }
            if facts.is_dir() {
                open.push(path);
            }
        }
    }
    Ok(())
}

/// Writes `value` as one line of JSON and one line with its checksum.
pub(crate) fn save<T: Serialize>(path: &Path, value: &T) -> io::Result<()> {
    save_for(None, path, value)
}

/// The same, for another user and group, who own the file before it gets its name.
pub(crate) fn save_for<T: Serialize>(owner: Option<(u32, u32)>, path: &Path, value: &T) -> io::Result<()> {
    let mut text = serde_json::to_vec(value)?;
    let sum = crc32c::crc32c(&text);
    text.extend_from_slice(format!("\n{sum:08x}\n").as_bytes());
    let mut replacement = Replacement::begin(path, PRIVATE)?;
    replacement.write_all(&text)?;
    if let Some((user, group)) = owner {
        std::os::unix::fs::fchown(replacement.file(), Some(user), Some(group))?;
    }
    replacement.commit()
}

/// Reads what [`save`] wrote; `None` if there is no such file.
///
/// # Errors
/// `InvalidData` if it is incomplete or damaged.
pub(crate) fn load<T: DeserializeOwned>(path: &Path) -> io::Result<Option<T>> {
    let text = match fs::read_to_string(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    let damaged =
        || io::Error::new(io::ErrorKind::InvalidData, "the file's checksum does not fit its content");
    let (json, sum) = text.split_once('\n').ok_or_else(damaged)?;
    if u32::from_str_radix(sum.trim_end(), 16).ok() != Some(crc32c::crc32c(json.as_bytes())) {
        return Err(damaged());
    }
    Ok(Some(serde_json::from_str(json)?))
}

/// Whether the disk cannot read what was written: damage, not a temporary fault.
pub(crate) fn is_unreadable(error: &io::Error) -> bool {
    /// EIO, ENODATA (a bad sector on some disks), EBADMSG and EUCLEAN (checksums of the file system).
    const CODES: [i32; 4] = [5, 61, 74, 117];
    error.raw_os_error().is_some_and(|code| CODES.contains(&code))
}

/// Whether the process lacks something that it may have again soon: says nothing about the file.
pub(crate) fn may_pass(error: &io::Error) -> bool {
    /// EINTR, EAGAIN, ENOMEM, ENFILE, EMFILE.
    const CODES: [i32; 5] = [4, 11, 12, 23, 24];
    error.raw_os_error().is_some_and(|code| CODES.contains(&code))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_a_file_is_never_believed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("numbers");
        assert_eq!(load::<Vec<u64>>(&path).unwrap(), None);
        save(&path, &vec![1u64, 2, 3]).unwrap();
        assert_eq!(load::<Vec<u64>>(&path).unwrap(), Some(vec![1, 2, 3]));
        let whole = fs::read(&path).unwrap();
        for cut in 1..whole.len() - 1 {
            fs::write(&path, &whole[..cut]).unwrap();
            assert!(load::<Vec<u64>>(&path).is_err(), "cut at {cut}");
        }
        let mut flipped = whole.clone();
        flipped[1] ^= 1;
        fs::write(&path, flipped).unwrap();
        assert!(load::<Vec<u64>>(&path).is_err());
    }

    #[test]
    fn what_root_made_is_given_to_the_owner() {
        use std::os::unix::fs::{MetadataExt as _, chown};
        let directory = tempfile::tempdir().unwrap();
        let below = directory.path().join("segments/0000000001");
        fs::create_dir_all(&below).unwrap();
        fs::write(below.join("db"), "x").unwrap();
        if chown(directory.path(), Some(54_321), Some(54_321)).is_err() {
            // Only root can give files away, and nobody else makes files that are not their own.
            return;
        }
        give_to_owner(directory.path()).unwrap();
        for path in [below.parent().unwrap(), &below, &below.join("db")] {
            let facts = fs::metadata(path).unwrap();
            assert_eq!((facts.uid(), facts.gid()), (54_321, 54_321), "{}", path.display());
        }
    }
}
