//! Removes files from the folder after they were stored or refused. Everything here blocks, and can be retried.
//!
//! A file first goes into `.taken/`, which only we use: a file that arrives under its name afterwards is another file,
//! and the one in `.taken/` is compared with what was stored. Its acceptance slip is on the disk before the file may
//! go.

use std::ffi::{OsStr, OsString};
use std::fs::{self, Permissions};
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use pgw_core::transaction::Lane;
use pgw_durable::{ExclusiveRename, NewFile, PRIVATE};
use pgw_outbox::Accepted;

use super::debounce::FileFacts;
use super::documents;
use super::documents::{Reason, prefixes, suffix};
#[cfg(test)]
use super::faults_for_tests::Faults;
use super::list;
use super::read;
use super::rules;
use super::rules::Take;
use crate::ingest::slip::AcceptanceSlip;

/// The folder that only we use.
const TAKEN: &str = ".taken";
/// Prefix of what we write until it is complete; no file of a sender that may be taken has it.
const DRAFT: &str = ".draft-";

/// Where a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FilePlace {
    /// Where its sender put it.
    Folder,
    /// In `.taken/`.
    Taken,
}

/// How far putting away a file has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    Stored,
    Claimed,
    /// It is certain that the file in `.taken/` is the one that was stored, or that there is none.
    Checked,
    Slipped,
    Away,
}

/// A stored file that still has to be put away. No `Debug`: its name often contains a patient's name.
pub(super) struct StoredFile {
    name: OsString,
    facts: FileFacts,
    sha256: String,
    accepted: Accepted,
    step: Step,
    /// Whether there is still a file to put away.
    file: bool,
}

impl StoredFile {
    pub(super) fn new(
        name: OsString,
        facts: FileFacts,
        sha256: String,
        accepted: Accepted,
        place: FilePlace,
    ) -> Self {
        let step = if place == FilePlace::Folder { Step::Stored } else { Step::Claimed };
        Self { name, facts, sha256, accepted, step, file: true }
    }
}

/// The folder and its subfolders.
pub(super) struct SettledFiles {
    folder: PathBuf,
    taken: PathBuf,
    accepted: PathBuf,
    rejected: PathBuf,
    take: Take,
    keep: bool,
    lane: Lane,
    pub(super) exclusive: ExclusiveRename,
    #[cfg(test)]
    pub(super) faults: Faults,
}

/// Where a test can make it fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Point {
    /// Before a file is read.
    Read,
    /// Before a file is moved into `.taken/`.
    Claim,
    /// Before slips are written.
    Slip,
    /// Before files are moved or removed.
    Put,
    /// Before a rejected file is moved.
    Reject,
}

impl SettledFiles {
    pub(super) fn new(
        folder: &Path,
        accepted: &str,
        rejected: &str,
        take: Take,
        keep: bool,
        lane: Lane,
    ) -> Self {
        Self {
            folder: folder.to_owned(),
            taken: folder.join(TAKEN),
            accepted: folder.join(accepted),
            rejected: folder.join(rejected),
            take,
            keep,
            lane,
            exclusive: ExclusiveRename::default(),
            #[cfg(test)]
            faults: Faults::default(),
        }
    }

    #[cfg(test)]
    pub(super) fn point(&self, point: Point) -> io::Result<()> {
        self.faults.check(point)
    }

    #[cfg(not(test))]
    #[expect(clippy::unnecessary_wraps, clippy::unused_self, reason = "tests have faults here")]
    pub(super) fn point(&self, _: Point) -> io::Result<()> {
        Ok(())
    }

    pub(super) fn path(&self, place: FilePlace, name: &OsStr) -> PathBuf {
        match place {
            FilePlace::Folder => self.folder.join(name),
            FilePlace::Taken => self.taken.join(name),
        }
    }

    pub(super) fn directory(&self, place: FilePlace) -> &Path {
        match place {
            FilePlace::Folder => &self.folder,
            FilePlace::Taken => &self.taken,
        }
    }

    /// Creates missing subfolders, and removes unfinished files of an earlier run.
    pub(super) fn prepare(&self) -> io::Result<()> {
        let mode = fs::metadata(&self.folder)?.mode() & 0o7777;
        for (directory, mode) in
            [(&self.taken, 0o700), (&self.accepted, mode | 0o700), (&self.rejected, mode | 0o700)]
        {
            match fs::symlink_metadata(directory) {
                // A link could lead anywhere.
                Ok(metadata) if !metadata.is_dir() => return Err(ErrorKind::NotADirectory.into()),
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::NotFound => {
                    fs::create_dir(directory)?;
                    // Like the folder itself, whatever the umask: its sender reads the files there.
                    if let Err(error) = fs::set_permissions(directory, Permissions::from_mode(mode)) {
                        tracing::debug!(%error, "Could not set the mode of a subfolder");
                    }
                }
                Err(error) => return Err(error),
            }
        }
        for entry in fs::read_dir(&self.taken)? {
            let name = entry?.file_name();
            if name.as_bytes().starts_with(DRAFT.as_bytes()) || self.is_stale_ctl(&name)? {
                remove(&self.taken.join(name))?;
            }
        }
        Ok(())
    }

    /// A second file whose first file has gone: it must not count for the next file of that name.
    fn is_stale_ctl(&self, name: &OsStr) -> io::Result<bool> {
        let Some(names) = rules::dat_names(name.as_bytes()).filter(|_| self.take == Take::Ctl) else {
            return Ok(false);
        };
        for dat in names {
            if list::is_there(&self.folder, &dat)? || list::is_there(&self.taken, &dat)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether the sender has said that this file is complete.
    pub(super) fn is_complete(&self, name: &OsStr) -> io::Result<bool> {
        if self.take == Take::Rename {
            return Ok(true);
        }
        for ctl in rules::ctl_names(name.as_bytes()) {
            if list::is_there(&self.folder, &ctl)? || list::is_there(&self.taken, &ctl)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Moves it into `.taken/`, its second file first: one that stayed would count for the next file of that name.
    /// False: the file has gone.
    pub(super) fn claim(&self, name: &OsStr) -> io::Result<bool> {
        self.point(Point::Claim)?;
        if self.take == Take::Ctl {
            for ctl in rules::ctl_names(name.as_bytes()) {
                let ctl = OsString::from_vec(ctl);
                if list::is_there(&self.folder, ctl.as_bytes())? {
                    let target = self.taken.join(&ctl);
                    // One that already exists says the same as this one.
                    remove(&target)?;
                    move_in(&self.folder.join(&ctl), &target)?;
                }
            }
        }
        move_in(&self.folder.join(name), &self.taken.join(name))
    }

    /// Puts stored files away: moves them into `.taken/`, compares them, writes their slips, then moves or removes
    /// them. Finished files leave `items`; after an error the rest can be retried.
    pub(super) fn put_away(&self, items: &mut Vec<StoredFile>) -> io::Result<()> {
        if items.is_empty() {
            return Ok(());
        }
        for item in items.iter_mut().filter(|item| item.step == Step::Stored) {
            item.file = self.claim(&item.name)?;
            item.step = Step::Claimed;
        }
        for item in items.iter_mut().filter(|item| item.step == Step::Claimed) {
            // Another file under the same name stays in `.taken/`, and is taken next.
            item.file = item.file
                && match read::is_the_same(&self.taken.join(&item.name), item.facts, &item.sha256) {
                    Err(error) if error.kind() == ErrorKind::NotFound => false,
                    same => same?,
                };
            item.step = Step::Checked;
        }
        self.point(Point::Slip)?;
        let mode = fs::metadata(&self.folder)?.mode() & 0o444 | 0o600;
        for item in items.iter_mut().filter(|item| item.step == Step::Checked) {
            let text = documents::slip(
                &AcceptanceSlip::new(self.lane.clone(), &item.accepted),
                &item.sha256,
                item.facts.bytes,
            );
            self.write_slip(item, &text, mode)?;
            item.step = Step::Slipped;
        }
        sync(&self.accepted)?;
        self.point(Point::Put)?;
        for item in items.iter_mut().filter(|item| item.step == Step::Slipped) {
            self.put(item)?;
            item.step = Step::Away;
        }
        for directory in [&self.folder, &self.taken, &self.accepted] {
            sync(directory)?;
        }
        items.clear();
        Ok(())
    }

    fn write_slip(&self, item: &StoredFile, text: &[u8], mode: u32) -> io::Result<()> {
        let position = item.accepted.position;
        for prefix in prefixes(&position.to_string()) {
            let name = if self.keep {
                documents::fitted(&prefix, item.name.as_bytes(), ".receipt.json")
            } else {
                format!("{}-{position:012}{}.json", self.lane, suffix(&prefix, position)).into_bytes()
            };
            if self.write(&self.accepted.join(OsString::from_vec(name)), text, mode)? {
                return Ok(());
            }
        }
        Err(ErrorKind::AlreadyExists.into())
    }

    /// Writes a document, synced; the caller syncs its directory. Replaces nothing; false: a different file of this
    /// name exists.
    fn write(&self, target: &Path, text: &[u8], mode: u32) -> io::Result<bool> {
        match fs::read(target) {
            Ok(there) if there == text => return Ok(true),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            // A different document, or something that is not a document.
            Ok(_) | Err(_) => return Ok(false),
        }
        let mut document = NewFile::begin(&self.taken.join(format!("{DRAFT}document")), PRIVATE)?;
        document.write_all(text)?;
        // As readable as the folder itself: it is for the sender.
        if let Err(error) = document.file().set_permissions(Permissions::from_mode(mode)) {
            tracing::debug!(%error, "Could not set the mode of a document");
        }
        match document.commit_unsynced(target, &self.exclusive) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Its second file goes first: one that stayed would count for the next file of that name.
    fn put(&self, item: &StoredFile) -> io::Result<()> {
        let position = item.accepted.position.to_string();
        for ctl in self.ctl_of(&item.name)? {
            if self.keep && item.file {
                self.move_into(&ctl, &self.accepted, &position)?;
            } else if item.file || !list::is_there(&self.taken, item.name.as_bytes())? {
                remove(&ctl)?;
            }
        }
        let file = self.taken.join(&item.name);
        match (item.file, self.keep) {
            (false, _) => Ok(()),
            (true, false) => remove(&file),
            (true, true) => self.move_into(&file, &self.accepted, &position),
        }
    }

    /// The second files of a name in `.taken/`.
    fn ctl_of(&self, name: &OsStr) -> io::Result<Vec<PathBuf>> {
        let mut found = Vec::new();
        if self.take == Take::Ctl {
            for ctl in rules::ctl_names(name.as_bytes()) {
                if list::is_there(&self.taken, &ctl)? {
                    found.push(self.taken.join(OsString::from_vec(ctl)));
                }
            }
        }
        Ok(found)
    }

    /// Moves a file from `.taken/` to `rejected/`, its reason first.
    pub(super) fn reject(&self, name: &OsStr, facts: FileFacts, reason: Reason) -> io::Result<()> {
        self.point(Point::Reject)?;
        let mode = fs::metadata(&self.folder)?.mode() & 0o444 | 0o600;
        let text = reason.text(facts.bytes);
        let time = facts.modified.0.to_string();
        for prefix in prefixes(&time) {
            let target =
                self.rejected.join(OsString::from_vec(documents::fitted(&prefix, name.as_bytes(), "")));
            let document = documents::fitted(&prefix, name.as_bytes(), ".reason.json");
            if fs::symlink_metadata(&target).is_ok()
                || !self.write(&self.rejected.join(OsString::from_vec(document)), &text, mode)?
            {
                continue;
            }
            sync(&self.rejected)?;
            for ctl in self.ctl_of(name)? {
                self.move_into(&ctl, &self.rejected, &time)?;
            }
            self.exclusive.rename_unsynced(&self.taken.join(name), &target)?;
            for directory in [&self.folder, &self.taken, &self.rejected] {
                sync(directory)?;
            }
            return Ok(());
        }
        Err(ErrorKind::AlreadyExists.into())
    }

    /// Moves a file under its own name, or with a prefix if the name is taken.
    fn move_into(&self, from: &Path, to: &Path, number: &str) -> io::Result<()> {
        let name = from.file_name().unwrap_or_default().as_bytes();
        for prefix in prefixes(number) {
            let target = to.join(OsString::from_vec(documents::fitted(&prefix, name, "")));
            match self.exclusive.rename_unsynced(from, &target) {
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                moved => return moved,
            }
        }
        Err(ErrorKind::AlreadyExists.into())
    }
}

/// Renames into `.taken/`, where only we write, so that checking first is enough. False: the file has gone.
fn move_in(from: &Path, to: &Path) -> io::Result<bool> {
    match fs::symlink_metadata(to) {
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Ok(_) => {
            // Moved before without our knowing, or a file that is not ours.
            return match fs::symlink_metadata(from) {
                Err(error) if error.kind() == ErrorKind::NotFound => Ok(true),
                Ok(_) => Err(ErrorKind::AlreadyExists.into()),
                Err(error) => Err(error),
            };
        }
        Err(error) => return Err(error),
    }
    match pgw_durable::rename_unsynced(from, to) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        renamed => renamed.map(|()| true),
    }
}

/// Removes a file; a missing one counts as removed.
fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

/// Some shared file systems cannot sync a directory; then their server does it, or nobody can.
fn sync(directory: &Path) -> io::Result<()> {
    match pgw_durable::sync_directory(directory) {
        Err(error) if matches!(error.kind(), ErrorKind::InvalidInput | ErrorKind::Unsupported) => Ok(()),
        synced => synced,
    }
}
