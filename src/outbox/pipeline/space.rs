//! The disk: free space, the store's size, and the ballast that is released when nothing else helps.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

use rustix::fs::{FallocateFlags, fallocate, statvfs};

use crate::files;
use crate::pipeline::admission::DiskSpace;

/// Free and total bytes of the file system that holds `path`; `store_bytes` is 0.
pub(crate) fn free(path: &Path) -> io::Result<DiskSpace> {
    let system = statvfs(path)?;
    Ok(DiskSpace {
        free_bytes: system.f_bavail.saturating_mul(system.f_frsize),
        total_bytes: system.f_blocks.saturating_mul(system.f_frsize),
        store_bytes: 0,
    })
}

/// Bytes that everything below `directory` takes on the disk. Files that vanish meanwhile do not count, links
/// are not followed.
pub(crate) fn directory_bytes(directory: &Path) -> io::Result<u64> {
    let mut bytes = 0u64;
    let mut open = vec![directory.to_owned()];
    while let Some(directory) = open.pop() {
        let Some(entries) = there(std::fs::read_dir(&directory))? else { continue };
        for entry in entries {
            let Some(entry) = there(entry)? else { continue };
            let Some(metadata) = there(entry.metadata())? else { continue };
            if metadata.is_dir() {
                open.push(entry.path());
            }
            bytes = bytes.saturating_add(metadata.blocks().saturating_mul(512));
        }
    }
    Ok(bytes)
}

fn there<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// A file that reserves the space that the store needs to open and to drain when the disk is full.
#[derive(Debug)]
pub(crate) struct Ballast {
    file: File,
    bytes: u64,
}

impl Ballast {
    /// Opens or creates the file, without taking the space yet: see [`Ballast::restore`].
    pub(crate) fn open(path: &Path, bytes: u64) -> io::Result<Self> {
        let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path)?;
        files::sync_name(path)?;
        Ok(Self { file, bytes })
    }

    /// Whether the space is taken.
    pub(crate) fn is_held(&self) -> io::Result<bool> {
        let metadata = self.file.metadata()?;
        Ok(metadata.len() == self.bytes && metadata.blocks().saturating_mul(512) >= self.bytes)
    }

    /// Frees the space.
    pub(crate) fn release(&self) -> io::Result<()> {
        self.file.set_len(0)?;
        self.file.sync_all()
    }

    /// Takes the space again if `free_bytes` are at least twice as much. Returns whether it is held.
    ///
    /// # Errors
    /// The file system's; nothing is held then.
    pub(crate) fn restore(&self, free_bytes: u64) -> io::Result<bool> {
        if self.is_held()? {
            return Ok(true);
        }
        if free_bytes < self.bytes.saturating_mul(2) {
            return Ok(false);
        }
        let taken = self.file.set_len(self.bytes).and_then(|()| self.take());
        if let Err(error) = taken {
            // Part of it may have been taken, which is of no use.
            self.release()?;
            return Err(error);
        }
        self.is_held()
    }

    fn take(&self) -> io::Result<()> {
        match fallocate(&self.file, FallocateFlags::empty(), 0, self.bytes) {
            Err(rustix::io::Errno::OPNOTSUPP) => self.write_zeros()?,
            other => other?,
        }
        self.file.sync_all()
    }

    fn write_zeros(&self) -> io::Result<()> {
        use std::os::unix::fs::FileExt;
        let zeros = vec![0; 1 << 20];
        let mut at = 0;
        while at < self.bytes {
            let length = usize::try_from(self.bytes - at).unwrap_or(usize::MAX).min(zeros.len());
            self.file.write_all_at(zeros.get(..length).unwrap_or(&zeros), at)?;
            at += length as u64;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ballast_takes_its_space_and_gives_it_back() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ballast");
        let ballast = Ballast::open(&path, 3 << 20).unwrap();
        assert!(!ballast.is_held().unwrap());
        assert!(!ballast.restore((6 << 20) - 1).unwrap(), "not when it would fill the disk");
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 0);
        assert!(ballast.restore(6 << 20).unwrap());
        assert!(directory_bytes(directory.path()).unwrap() >= 3 << 20);
        assert!(
            Ballast::open(&path, 3 << 20).unwrap().is_held().unwrap(),
            "it is still held at the next start"
        );
        ballast.release().unwrap();
        assert!(!ballast.is_held().unwrap());
        assert!(directory_bytes(directory.path()).unwrap() < 1 << 20);
    }

    #[test]
    fn a_ballast_without_fallocate_is_written_out() {
        let directory = tempfile::tempdir().unwrap();
        let ballast = Ballast::open(&directory.path().join("ballast"), (1 << 20) + 4096).unwrap();
        ballast.write_zeros().unwrap();
        assert!(ballast.is_held().unwrap());
    }

    /// A sparse file of this length takes no space: it must not count as held.
    #[test]
    fn a_hole_is_no_ballast() {
        let directory = tempfile::tempdir().unwrap();
        let ballast = Ballast::open(&directory.path().join("ballast"), 1 << 20).unwrap();
        ballast.file.set_len(1 << 20).unwrap();
        assert!(!ballast.is_held().unwrap());
        assert!(ballast.restore(u64::MAX).unwrap());
    }

    #[test]
    fn directories_are_summed_to_the_bottom_and_links_not_followed() {
        let directory = tempfile::tempdir().unwrap();
        let deep = directory.path().join("a/b");
        std::fs::create_dir_all(&deep).unwrap();
        std::fs::write(deep.join("file"), vec![1; 100_000]).unwrap();
        std::os::unix::fs::symlink("/", deep.join("link")).unwrap();
        let bytes = directory_bytes(directory.path()).unwrap();
        assert!((100_000..200_000).contains(&bytes), "{bytes}");
        assert_eq!(directory_bytes(&directory.path().join("missing")).unwrap(), 0);
    }

    #[test]
    fn the_file_system_has_room_and_a_size() {
        let space = free(Path::new("/")).unwrap();
        assert!(space.total_bytes > 1 << 20 && space.free_bytes <= space.total_bytes);
    }
}
