//! Files that survive a power cut, and random bytes. The only module that renames a file that must last.
//!
//! A file is replaced in four steps, so that a power cut at any moment leaves the old or the new content, whole: the new file
//! is written beside the old one, synced, renamed over it, and the directory is synced. Without the last step the rename can be
//! lost; without the second the name can point to an empty file. Everything here blocks.
//!
//! - [`replace`], [`Replacement`]: new content for a file; [`create`], [`NewFile`]: a file that never replaces another
//! - [`ExclusiveRename`], [`rename_unsynced`]: for many files at once, whose directories the caller syncs
//! - [`rename`], [`add_name`], [`add_name_unsynced`], [`remove`], [`create_directory`], [`sync_directory`]: directory entries, made durable
//! - [`sync_data`], [`sync_all`]: a file's content, made durable, and the file system's word for it checked
//! - [`try_lock_directory`]: of commands that change a file only one at a time
//! - [`random`]: random bytes of the kernel

use std::fs::{DirBuilder, File, OpenOptions, Permissions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{CWD, FallocateFlags, RenameFlags, renameat_with};
use rustix::io::Errno;

/// For its owner only: keys, clinical data, state.
pub const PRIVATE: u32 = 0o600;
/// Added to the file's name while its new content is written; a leftover of a crash is replaced.
const ASIDE: &str = ".new";

/// Replaces a file's content, or makes the file, with this mode.
///
/// # Errors
/// Those of the system; the file is as it was, or (only if the last sync failed) has the new content.
pub fn replace(path: &Path, mode: u32, bytes: &[u8]) -> io::Result<()> {
    let mut replacement = Replacement::begin(path, mode)?;
    replacement.write_all(bytes)?;
    replacement.commit()
}

/// As [`replace`], but a link stays a link, and owner, group and mode stay as they are. The file must be there.
///
/// # Errors
/// Those of the system; the file is as it was.
pub fn replace_in_place(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let path = std::fs::canonicalize(path)?;
    let facts = std::fs::metadata(&path)?;
    let mode = facts.mode() & 0o777;
    let mut replacement = Replacement::begin(&path, mode)?;
    std::os::unix::fs::fchown(replacement.file(), Some(facts.uid()), Some(facts.gid()))?;
    // The caller's umask may have taken bits away, without which the file's other readers would lose it.
    replacement.file().set_permissions(Permissions::from_mode(mode))?;
    replacement.write_all(bytes)?;
    replacement.commit()
}

/// Makes a new file.
///
/// # Errors
/// [`io::ErrorKind::AlreadyExists`]: the file exists, and stays as it is; else those of the system.
pub fn create(path: &Path, mode: u32, bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    file.write_all(bytes)?;
    sync_all(&file)?;
    sync_directory(parent(path))
}

/// Returns when the file's data is on stable storage (fdatasync). The file is open for writing.
///
/// # Errors
/// Those of the system: the data may be lost, although it can be read.
pub fn sync_data(file: &File) -> io::Result<()> {
    file.sync_data()?;
    still_works(file)
}

/// As [`sync_data`], with the file's attributes (fsync).
///
/// # Errors
/// As [`sync_data`].
pub fn sync_all(file: &File) -> io::Result<()> {
    file.sync_all()?;
    still_works(file)
}

/// Asks the file system for something that needs its journal, and that changes nothing.
///
/// ext4 aborts its journal at an error (`errors=remount-ro`). A sync that is under way just then finds its journal transaction
/// gone, takes that for done and returns success, although the data is lost: seen in 4 of 40 such errors on Linux 6.18, with
/// four threads writing. The journal is marked as aborted before its transactions go, so that a request after the sync tells.
/// It takes 4 microseconds where the sync takes 350.
fn still_works(file: &File) -> io::Result<()> {
    loop {
        match rustix::fs::fallocate(file, FallocateFlags::KEEP_SIZE, 0, 1) {
            Err(Errno::INTR) => {}
            // No answer to the question: the file system has no such call, or no space for what it did not have to reserve.
            Ok(())
            | Err(
                Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL | Errno::PERM | Errno::NOSPC | Errno::DQUOT,
            ) => {
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// A file while it is written, under another name. Dropped before it has its own name it leaves nothing.
#[derive(Debug)]
pub struct NewFile {
    file: File,
    draft: PathBuf,
    placed: bool,
}

impl NewFile {
    /// Begins to write below the draft's name, which is on the same file system and the caller's alone.
    ///
    /// # Errors
    /// Those of the system.
    pub fn begin(draft: &Path, mode: u32) -> io::Result<Self> {
        // Created each time: a leftover may have another owner or mode, or be a link.
        match std::fs::remove_file(draft) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let file = OpenOptions::new().write(true).create_new(true).mode(mode).open(draft)?;
        Ok(Self { file, draft: draft.to_owned(), placed: false })
    }

    /// The file that is being written.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Syncs the file, gives it this name and syncs the directory. Replaces no file.
    ///
    /// # Errors
    /// [`io::ErrorKind::AlreadyExists`]: the name is taken; else those of the system. If only the last sync failed, the file has
    /// its name.
    pub fn commit(self, path: &Path) -> io::Result<()> {
        self.commit_unsynced(path, &ExclusiveRename::default())?;
        sync_directory(parent(path))
    }

    /// As [`Self::commit`], but the caller syncs the directory.
    ///
    /// # Errors
    /// As [`Self::commit`].
    pub fn commit_unsynced(self, path: &Path, exclusive: &ExclusiveRename) -> io::Result<()> {
        self.place(|draft| exclusive.rename_unsynced(draft, path))
    }

    fn place(mut self, rename: impl FnOnce(&Path) -> io::Result<()>) -> io::Result<()> {
        sync_all(&self.file)?;
        rename(&self.draft)?;
        self.placed = true;
        Ok(())
    }
}

impl Write for NewFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if !self.placed {
            // A leftover does no harm: the next one replaces it.
            let _ = std::fs::remove_file(&self.draft);
        }
    }
}

/// A file's new content while it is written, for content that does not fit into memory. Dropped without [`Self::commit`] it
/// leaves the file as it was.
#[derive(Debug)]
pub struct Replacement {
    new: NewFile,
    path: PathBuf,
}

impl Replacement {
    /// Begins to write the new content.
    ///
    /// # Errors
    /// Those of the system.
    pub fn begin(path: &Path, mode: u32) -> io::Result<Self> {
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(ASIDE);
        Ok(Self { new: NewFile::begin(&path.with_file_name(name), mode)?, path: path.to_owned() })
    }

    /// The file that is being written.
    #[must_use]
    pub fn file(&self) -> &File {
        self.new.file()
    }

    /// Replaces the file.
    ///
    /// # Errors
    /// Those of the system; the file is as it was, or (only if the last sync failed) has the new content.
    pub fn commit(self) -> io::Result<()> {
        let Self { new, path } = self;
        new.place(|draft| std::fs::rename(draft, &path))?;
        sync_directory(parent(&path))
    }
}

impl Write for Replacement {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.new.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.new.flush()
    }
}

/// Renames a file or directory whose content is on stable storage already.
///
/// # Errors
/// Those of the system.
pub fn rename(from: &Path, to: &Path) -> io::Result<()> {
    std::fs::rename(from, to)?;
    let (before, after) = (parent(from), parent(to));
    sync_directory(after)?;
    if before == after { Ok(()) } else { sync_directory(before) }
}

/// Gives a file a second name on the same file system: the same bytes, owner and mode, whatever takes the first name later.
///
/// # Errors
/// [`io::ErrorKind::AlreadyExists`]: the name is taken, and nothing was done; else those of the system.
pub fn add_name(file: &Path, name: &Path) -> io::Result<()> {
    std::fs::hard_link(file, name)?;
    sync_directory(parent(name))
}

/// As [`add_name`], but the caller syncs the directory: once for many names.
///
/// # Errors
/// As [`add_name`].
pub fn add_name_unsynced(file: &Path, name: &Path) -> io::Result<()> {
    std::fs::hard_link(file, name)
}

/// As [`rename`], but the caller syncs the directories: once for many files.
///
/// # Errors
/// Those of the system.
pub fn rename_unsynced(from: &Path, to: &Path) -> io::Result<()> {
    std::fs::rename(from, to)
}

/// Renames within one file system and never replaces a file: for names that others choose.
#[derive(Debug)]
pub struct ExclusiveRename {
    /// The file system can rename without replacing; cleared on the first failure.
    in_one_step: AtomicBool,
}

impl Default for ExclusiveRename {
    fn default() -> Self {
        Self { in_one_step: AtomicBool::new(true) }
    }
}

impl ExclusiveRename {
    /// As on a file system that cannot do it in one step (NFS).
    #[must_use]
    pub fn in_two_steps() -> Self {
        Self { in_one_step: AtomicBool::new(false) }
    }

    /// Renames; the caller syncs the directories.
    ///
    /// # Errors
    /// [`io::ErrorKind::AlreadyExists`]: the name is taken, and nothing was done; else those of the system.
    pub fn rename_unsynced(&self, from: &Path, to: &Path) -> io::Result<()> {
        if self.in_one_step.load(Ordering::Relaxed) {
            match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
                // NFS, and other remote file systems.
                Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => {
                    self.in_one_step.store(false, Ordering::Relaxed);
                }
                renamed => return Ok(renamed?),
            }
        }
        // Our empty file reserves the name: on every file system only one caller can create it. We may replace that file.
        std::fs::symlink_metadata(from)?;
        drop(OpenOptions::new().write(true).create_new(true).mode(PRIVATE).open(to)?);
        std::fs::rename(from, to)
    }
}

/// Removes a file so that it stays removed. One that is not there is no error.
///
/// # Errors
/// Those of the system.
pub fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(()) => sync_directory(parent(path)),
    }
}

/// Makes a directory with this mode, and its missing parents; an existing one stays as it is.
///
/// # Errors
/// Those of the system.
pub fn create_directory(path: &Path, mode: u32) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    let above = parent(path);
    create_directory(above, mode)?;
    match DirBuilder::new().mode(mode).create(path) {
        // Another process has made it meanwhile.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        Err(error) => Err(error),
        Ok(()) => sync_directory(above),
    }
}

/// Locks the directory in which a file is, for a command that reads the file and then replaces it; a link is followed. `None`:
/// another one has the lock. It is held until the value is dropped.
///
/// # Errors
/// Those of the system.
pub fn try_lock_directory(file: &Path) -> io::Result<Option<File>> {
    let real = std::fs::canonicalize(file).unwrap_or_else(|_| file.to_owned());
    let directory = File::open(parent(&real))?;
    match directory.try_lock() {
        Ok(()) => Ok(Some(directory)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// Makes a directory's entries durable: names that were added, changed and removed.
///
/// # Errors
/// Those of the system.
pub fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// The directory that a path is in; `.` for a bare name.
fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Random bytes of the kernel, fit for keys.
///
/// # Errors
/// Those of the system: early at boot, or in a sandbox without `getrandom`.
pub fn random<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    let mut filled = 0;
    while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        filled += match rustix::rand::getrandom(rest, rustix::rand::GetRandomFlags::empty()) {
            Ok(count) => count,
            Err(rustix::io::Errno::INTR) => 0,
            Err(error) => return Err(error.into()),
        };
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(directory: &Path) -> Vec<String> {
        let mut names: Vec<String> = std::fs::read_dir(directory)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    fn mode(path: &Path) -> u32 {
        std::fs::metadata(path).unwrap().mode() & 0o777
    }

    #[test]
    fn a_file_is_replaced_whole_and_what_a_crash_left_is_in_nobodys_way() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("marks");
        replace(&file, PRIVATE, b"one").unwrap();
        std::fs::write(directory.path().join("marks.new"), "half").unwrap();
        replace(&file, PRIVATE, b"two").unwrap();
        assert_eq!(std::fs::read(&file).unwrap(), b"two");
        assert_eq!((names(directory.path()), mode(&file)), (vec!["marks".to_owned()], 0o600));
    }

    #[test]
    fn a_replacement_that_is_not_committed_leaves_the_file_as_it_was() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("marks");
        replace(&file, PRIVATE, b"one").unwrap();
        let mut replacement = Replacement::begin(&file, PRIVATE).unwrap();
        replacement.write_all(b"tw").unwrap();
        drop(replacement);
        assert_eq!(std::fs::read(&file).unwrap(), b"one");
        assert_eq!(names(directory.path()), ["marks"]);
    }

    #[test]
    fn a_leftover_that_is_a_link_is_not_followed() {
        let directory = tempfile::tempdir().unwrap();
        let victim = directory.path().join("victim");
        std::fs::write(&victim, "precious").unwrap();
        std::os::unix::fs::symlink(&victim, directory.path().join("marks.new")).unwrap();
        replace(&directory.path().join("marks"), PRIVATE, b"one").unwrap();
        assert_eq!(std::fs::read(&victim).unwrap(), b"precious");
    }

    #[test]
    fn in_place_a_link_stays_a_link_and_the_mode_stays() {
        let directory = tempfile::tempdir().unwrap();
        let (file, link) = (directory.path().join("key"), directory.path().join("link"));
        create(&file, 0o640, b"one").unwrap();
        // More than any usual umask leaves of a new file.
        std::fs::set_permissions(&file, Permissions::from_mode(0o666)).unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        replace_in_place(&link, b"two").unwrap();
        assert!(std::fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!((std::fs::read(&file).unwrap(), mode(&file)), (b"two".to_vec(), 0o666));
    }

    #[test]
    fn a_new_file_replaces_none() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("key");
        create(&file, PRIVATE, b"one").unwrap();
        assert_eq!(create(&file, PRIVATE, b"two").unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(std::fs::read(&file).unwrap(), b"one");
    }

    #[test]
    fn a_new_file_has_its_name_once_it_is_whole_and_replaces_none_that_came_meanwhile() {
        let directory = tempfile::tempdir().unwrap();
        let [draft, file] = ["draft", "bundle"].map(|name| directory.path().join(name));
        for exclusive in [ExclusiveRename::default(), ExclusiveRename::in_two_steps()] {
            std::fs::write(&draft, "a longer leftover of a crash").unwrap();
            let mut new = NewFile::begin(&draft, PRIVATE).unwrap();
            new.write_all(b"one").unwrap();
            assert_eq!(names(directory.path()), ["draft"]);
            new.commit_unsynced(&file, &exclusive).unwrap();
            assert_eq!((std::fs::read(&file).unwrap(), mode(&file)), (b"one".to_vec(), 0o600));
            let mut late = NewFile::begin(&draft, PRIVATE).unwrap();
            late.write_all(b"two").unwrap();
            let taken = late.commit_unsynced(&file, &exclusive).unwrap_err();
            assert_eq!(taken.kind(), io::ErrorKind::AlreadyExists);
            assert_eq!(
                (std::fs::read(&file).unwrap(), names(directory.path())),
                (b"one".into(), vec!["bundle".into()])
            );
            std::fs::remove_file(&file).unwrap();
        }
        drop(NewFile::begin(&draft, PRIVATE).unwrap());
        assert!(names(directory.path()).is_empty(), "given up, it leaves nothing");
    }

    #[test]
    fn directories_are_made_with_their_mode_and_moved_and_removed() {
        let directory = tempfile::tempdir().unwrap();
        let deep = directory.path().join("a/b");
        create_directory(&deep, 0o700).unwrap();
        create_directory(&deep, 0o755).unwrap();
        assert_eq!(mode(&deep), 0o700);
        std::fs::write(deep.join("x"), "x").unwrap();
        rename(&deep.join("x"), &directory.path().join("y")).unwrap();
        assert_eq!(names(directory.path()), ["a", "y"]);
        remove(&directory.path().join("y")).unwrap();
        remove(&directory.path().join("y")).unwrap();
        assert_eq!(names(directory.path()), ["a"]);
    }

    #[test]
    fn random_bytes_differ() {
        assert_ne!(random::<32>().unwrap(), random::<32>().unwrap());
    }

    #[test]
    fn an_exclusive_rename_replaces_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let [from, to] = ["from", "to"].map(|name| directory.path().join(name));
        for rename in [ExclusiveRename::default(), ExclusiveRename::in_two_steps()] {
            std::fs::write(&from, b"new").unwrap();
            std::fs::write(&to, b"old").unwrap();
            let taken = rename.rename_unsynced(&from, &to).unwrap_err();
            assert_eq!(taken.kind(), io::ErrorKind::AlreadyExists);
            assert_eq!(
                (std::fs::read(&from).unwrap(), std::fs::read(&to).unwrap()),
                (b"new".into(), b"old".into())
            );
            std::fs::remove_file(&to).unwrap();
            rename.rename_unsynced(&from, &to).unwrap();
            assert_eq!(std::fs::read(&to).unwrap(), b"new");
            let gone = rename.rename_unsynced(&from, &directory.path().join("other")).unwrap_err();
            assert_eq!(
                (gone.kind(), directory.path().join("other").exists()),
                (io::ErrorKind::NotFound, false)
            );
        }
    }
}
