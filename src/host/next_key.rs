//! The key that comes next: made beside the present signing key, and put in its place once everybody who verifies knows both.

use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::{MetadataExt as _, fchown};
use std::path::{Path, PathBuf};

use pgw_core::wire::signature::{PublicKey, SigningKey};
use pgw_durable::NewFile;
use zeroize::Zeroizing;

use crate::secret::{KeyError, ReplacedKey, keep, lock, signing_key};

/// A signing key and the one that comes next, if it is made.
#[derive(Debug)]
pub struct KeyPair {
    /// The file of the present key, without links.
    pub file: PathBuf,
    /// The present key's public half.
    pub present: PublicKey,
    /// The next key's file: `FILE.next`.
    pub next_file: PathBuf,
    /// The next key's public half.
    pub next: Option<PublicKey>,
}

impl KeyPair {
    /// Reads both; changes nothing.
    ///
    /// # Errors
    /// [`KeyError`] for either file.
    pub fn read(file: &Path) -> Result<Self, KeyError> {
        let present = signing_key(file)?.public();
        let unreadable = |source| KeyError::Unreadable { file: file.to_owned(), source };
        let file = std::fs::canonicalize(file).map_err(unreadable)?;
        let mut name = file.file_name().unwrap_or_default().to_owned();
        name.push(".next");
        let next_file = file.with_file_name(name);
        let next = match signing_key(&next_file) {
            Ok(key) => Some(key.public()),
            Err(KeyError::Unreadable { source, .. }) if source.kind() == ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        Ok(Self { file, present, next_file, next })
    }
}

/// Makes the next key, with the present key's owner, synced. One that is there stays: others may know it already. True: it was
/// made now.
///
/// # Errors
/// [`KeyError`]; the present key is unchanged.
pub fn make(file: &Path) -> Result<(KeyPair, bool), KeyError> {
    let _lock = lock(file)?;
    let pair = KeyPair::read(file)?;
    let make = |source| KeyError::Make { file: pair.next_file.clone(), source };
    if pair.next.is_some() {
        // An earlier try may have ended before its sync, and the gateways are given what is printed now.
        let directory = pair.next_file.parent().unwrap_or(Path::new("."));
        pgw_durable::sync_directory(directory).map_err(make)?;
        return Ok((pair, false));
    }
    let document = Zeroizing::new(SigningKey::generate().map_err(|_| KeyError::Random)?);
    write(&pair, &document).map_err(make)?;
    Ok((KeyPair::read(file)?, true))
}

fn write(pair: &KeyPair, document: &[u8]) -> std::io::Result<()> {
    let mut draft = pair.next_file.clone().into_os_string();
    draft.push(".new");
    let mut new = NewFile::begin(Path::new(&draft), pgw_durable::PRIVATE)?;
    let owner = std::fs::metadata(&pair.file)?;
    let own = new.file().metadata()?;
    if (own.uid(), own.gid()) != (owner.uid(), owner.gid()) {
        fchown(new.file(), Some(owner.uid()), Some(owner.gid()))?;
    }
    new.write_all(document)?;
    new.commit(&pair.next_file)
}

/// Puts the next key in the place of the present one, which stays beside it as `FILE.old-ID`: one rename, so that at every moment
/// the file has one of the two. `None`: no next key is made, and nothing has changed.
///
/// # Errors
/// [`KeyError`]; unless the last sync failed, the key in the file is unchanged.
pub fn switch(file: &Path) -> Result<Option<ReplacedKey>, KeyError> {
    let _lock = lock(file)?;
    let pair = KeyPair::read(file)?;
    if pair.next.is_none() {
        return Ok(None);
    }
    let kept = keep(&pair.file, pair.present)?;
    pgw_durable::rename(&pair.next_file, &pair.file)
        .map_err(|source| KeyError::Make { file: pair.file.clone(), source })?;
    Ok(Some(ReplacedKey { new: signing_key(&pair.file)?, old: pair.present, file: pair.file, kept }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::make_signing_key;

    #[test]
    fn the_next_key_is_made_once_and_takes_the_place_of_the_present_one_which_is_kept() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("signing.key");
        let present = make_signing_key(&file).unwrap().public();
        assert!(switch(&file).unwrap().is_none(), "there is no next key");
        let (pair, made) = make(&file).unwrap();
        let next = pair.next.unwrap();
        assert!(made && next != present && pair.present == present);
        let (again, made) = make(&file).unwrap();
        assert_eq!((again.next, made), (Some(next), false), "gateways may have it already");
        assert_eq!(signing_key(&file).unwrap().public(), present, "nothing signs with it yet");

        let switched = switch(&file).unwrap().unwrap();
        assert_eq!((switched.old, switched.new.public()), (present, next));
        assert_eq!(signing_key(&file).unwrap().public(), next);
        assert_eq!(signing_key(&switched.kept).unwrap().public(), present);
        assert_eq!(KeyPair::read(&file).unwrap().next, None);
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 2);
    }

    #[test]
    fn of_commands_at_once_one_makes_the_next_key() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("signing.key");
        make_signing_key(&file).unwrap();
        let _other = lock(&file).unwrap();
        assert!(matches!(make(&file), Err(KeyError::Busy(_))));
        assert!(matches!(switch(&file), Err(KeyError::Busy(_))));
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_next_key_that_cannot_be_read_is_never_put_in_place() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("signing.key");
        let present = make_signing_key(&file).unwrap().public();
        let (pair, _) = make(&file).unwrap();
        std::fs::write(&pair.next_file, "half").unwrap();
        assert!(matches!(switch(&file), Err(KeyError::Form { .. })));
        assert!(matches!(make(&file), Err(KeyError::Form { .. })));
        assert_eq!(signing_key(&file).unwrap().public(), present);
    }
}
