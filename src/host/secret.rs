//! Secret files: read with their modes checked, created once for their owner, never overwritten, and replaced
//! atomically.

use std::ffi::OsStr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use pgw_core::consequence::Consequence;
use pgw_core::wire::signature::{PublicKey, SigningKey};
use zeroize::Zeroizing;

/// Why there is no key. An existing file is unchanged.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// It does not exist, or this user cannot read it.
    #[error("cannot read the key {file}")]
    Unreadable {
        /// The key file.
        file: PathBuf,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
    /// Other users can read it.
    #[error("the key {file} has mode {mode:04o}: only its owner may read it (chmod 0600)")]
    Open {
        /// The key file.
        file: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// It is not a key.
    #[error("the key {file} is not {form}")]
    Form {
        /// The key file.
        file: PathBuf,
        /// What it should be.
        form: &'static str,
    },
    /// It could not be created.
    #[error("cannot create the key {file}")]
    Make {
        /// The key file.
        file: PathBuf,
        /// The system's error; [`std::io::ErrorKind::AlreadyExists`]: there is one, and it is not replaced.
        #[source]
        source: std::io::Error,
    },
    /// Another command has locked it.
    #[error(
        "another command is changing the keys beside {0} at this moment: look what it has printed before you run this one again"
    )]
    Busy(PathBuf),
    /// The system gave no random bytes.
    #[error("the system provides no random bytes")]
    Random,
}

impl KeyError {
    /// How a command or a daemon that needs the key should react. A key that cannot be read is an error of the
    /// configuration whatever the reason, missing rights included.
    #[must_use]
    pub fn consequence(&self) -> Consequence {
        match self {
            Self::Unreadable { .. } | Self::Open { .. } | Self::Form { .. } => Consequence::CONFIGURATION,
            Self::Make { source, .. } => Consequence::of_file(source),
            Self::Busy(_) => Consequence::Refuse,
            Self::Random => Consequence::BUG,
        }
    }
}

/// Where a secret is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretPlace {
    /// The file.
    pub file: PathBuf,
    /// Whether systemd supplies it: it cannot be created or replaced there.
    pub is_credential: bool,
}

impl SecretPlace {
    /// The systemd credential of this name if there is one, otherwise the configured file.
    #[must_use]
    pub fn find(credential: &OsStr, configured: &Path) -> Self {
        let supplied = std::env::var_os("CREDENTIALS_DIRECTORY")
            .map(|directory| Path::new(&directory).join(credential))
            .filter(|file| !credential.is_empty() && file.exists());
        let is_credential = supplied.is_some();
        Self { file: supplied.unwrap_or_else(|| configured.to_owned()), is_credential }
    }

    /// Reads it. systemd protects its credentials by their directory, and gives them other modes.
    ///
    /// # Errors
    /// [`KeyError::Unreadable`], [`KeyError::Open`].
    pub fn read(&self) -> Result<Zeroizing<Vec<u8>>, KeyError> {
        if self.is_credential { read(&self.file) } else { read_secret(&self.file) }
    }
}

/// Reads a file that only its owner may read.
///
/// # Errors
/// [`KeyError::Unreadable`], [`KeyError::Open`].
pub fn read_secret(file: &Path) -> Result<Zeroizing<Vec<u8>>, KeyError> {
    let facts =
        std::fs::metadata(file).map_err(|source| KeyError::Unreadable { file: file.to_owned(), source })?;
    let mode = facts.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(KeyError::Open { file: file.to_owned(), mode });
    }
    read(file)
}

fn read(file: &Path) -> Result<Zeroizing<Vec<u8>>, KeyError> {
    std::fs::read(file)
        .map(Zeroizing::new)
        .map_err(|source| KeyError::Unreadable { file: file.to_owned(), source })
}

/// Creates a secret file, mode 0600, synced; never replaces one.
///
/// # Errors
/// [`KeyError::Make`].
pub fn create(file: &Path, bytes: &[u8]) -> Result<(), KeyError> {
    pgw_durable::create(file, pgw_durable::PRIVATE, bytes)
        .map_err(|source| KeyError::Make { file: file.to_owned(), source })
}

/// Replaces a secret file atomically; owner and mode stay.
///
/// # Errors
/// [`KeyError::Make`]; the file is unchanged.
pub fn replace(file: &Path, bytes: &[u8]) -> Result<(), KeyError> {
    pgw_durable::replace_in_place(file, bytes)
        .map_err(|source| KeyError::Make { file: file.to_owned(), source })
}

/// Reads a signing key (PKCS#8) that only its owner may read.
///
/// # Errors
/// [`KeyError`].
pub fn signing_key(file: &Path) -> Result<SigningKey, KeyError> {
    signing_key_at(&SecretPlace { file: file.to_owned(), is_credential: false })
}

/// Reads a signing key (PKCS#8) at its place.
///
/// # Errors
/// [`KeyError`].
pub fn signing_key_at(place: &SecretPlace) -> Result<SigningKey, KeyError> {
    SigningKey::from_pkcs8(&place.read()?).map_err(|_| KeyError::Form {
        file: place.file.clone(),
        form: "an Ed25519 key in PKCS#8 (DER), as `init` creates it",
    })
}

/// Creates a signing key, mode 0600, synced; never replaces one.
///
/// # Errors
/// [`KeyError::Make`].
pub fn make_signing_key(file: &Path) -> Result<SigningKey, KeyError> {
    let document = Zeroizing::new(SigningKey::generate().map_err(|_| KeyError::Random)?);
    create(file, &document)?;
    signing_key(file)
}

/// A signing key that was replaced.
#[derive(Debug)]
pub struct ReplacedKey {
    /// The key that is in the file now.
    pub new: SigningKey,
    /// The one that was there before.
    pub old: PublicKey,
    /// The file of the new one, without links.
    pub file: PathBuf,
    /// Where the old one is kept, with its owner and mode.
    pub kept: PathBuf,
}

/// Locks the directory of a key. Whoever replaces a key holds it from reading the old one until the new one is in its place: of
/// two at once each would print a key, and only one of these would exist.
///
/// # Errors
/// [`KeyError::Busy`] without waiting, because a second replacement is hardly what two people want; [`KeyError::Make`].
pub(crate) fn lock(file: &Path) -> Result<std::fs::File, KeyError> {
    match pgw_durable::try_lock_directory(file) {
        Ok(Some(locked)) => Ok(locked),
        Ok(None) => Err(KeyError::Busy(file.to_owned())),
        Err(source) => Err(KeyError::Make { file: file.to_owned(), source }),
    }
}

/// Puts a new signing key in the place of the one in the file; the old one stays beside it, as `FILE.old-ID`. At every
/// moment the file has one of the two. After an interruption it can be done again. Of two at once only one does it.
///
/// # Errors
/// [`KeyError`]; the key in the file is unchanged.
pub fn replace_signing_key(file: &Path) -> Result<ReplacedKey, KeyError> {
    let old = signing_key(file)?.public();
    let _lock = lock(file)?;
    // Another command may have replaced it just before the lock.
    if signing_key(file)?.public() != old {
        return Err(KeyError::Busy(file.to_owned()));
    }
    let unreadable = |source| KeyError::Unreadable { file: file.to_owned(), source };
    // Where the configuration names a link, the link stays, and both keys are beside each other.
    let file = std::fs::canonicalize(file).map_err(unreadable)?;
    let kept = keep(&file, old)?;
    let document = Zeroizing::new(SigningKey::generate().map_err(|_| KeyError::Random)?);
    replace(&file, &document)?;
    Ok(ReplacedKey { new: signing_key(&file)?, old, file, kept })
}

/// Gives the present key a second name, `FILE.old-ID`, before another one takes its place. The caller has the lock.
///
/// # Errors
/// [`KeyError::Make`]: another key has that name, or the system's error.
pub(crate) fn keep(file: &Path, old: PublicKey) -> Result<PathBuf, KeyError> {
    let mut name = file.file_name().unwrap_or_default().to_owned();
    name.push(format!(".old-{}", old.id()));
    let kept = file.with_file_name(name);
    match pgw_durable::add_name(file, &kept) {
        Err(source) if source.kind() == std::io::ErrorKind::AlreadyExists => {
            // Left by an interruption, or by somebody who went back to this key with a copy. Anything else is not ours.
            if signing_key(&kept).ok().is_none_or(|there| there.public() != old) {
                return Err(KeyError::Make { file: kept, source });
            }
        }
        added => added.map_err(|source| KeyError::Make { file: kept.clone(), source })?,
    }
    Ok(kept)
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind::{NotFound, PermissionDenied, StorageFull};

    use pgw_core::consequence::Cause;

    use super::*;

    #[test]
    fn a_key_that_cannot_be_read_is_an_error_of_the_configuration() {
        let file = || PathBuf::from("outbox.key");
        for kind in [NotFound, PermissionDenied] {
            let error = KeyError::Unreadable { file: file(), source: kind.into() };
            assert_eq!(error.consequence(), Consequence::CONFIGURATION, "{kind}");
        }
        let open = KeyError::Open { file: file(), mode: 0o644 };
        let form = KeyError::Form { file: file(), form: "text" };
        assert_eq!([open, form].map(|error| error.consequence()), [Consequence::CONFIGURATION; 2]);
        let make = |kind: std::io::ErrorKind| KeyError::Make { file: file(), source: kind.into() };
        assert_eq!(make(PermissionDenied).consequence(), Consequence::Stop(Cause::Rights));
        assert_eq!(make(StorageFull).consequence(), Consequence::FILES);
    }

    #[test]
    fn a_key_that_others_may_read_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("signing.key");
        let made = make_signing_key(&file).unwrap();
        assert_eq!(signing_key(&file).unwrap().public(), made.public());
        for mode in [0o640, 0o604, 0o610] {
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).unwrap();
            assert!(matches!(signing_key(&file), Err(KeyError::Open { mode: found, .. }) if found == mode));
        }
    }

    #[test]
    fn a_replaced_signing_key_is_kept_beside_the_new_one_and_can_be_put_back() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("signing.key");
        let first = make_signing_key(&file).unwrap().public();
        let replaced = replace_signing_key(&file).unwrap();
        let second = signing_key(&file).unwrap().public();
        assert_eq!((replaced.old, replaced.new.public()), (first, second));
        assert_ne!(first, second);
        assert_eq!(
            replaced.kept.file_name().unwrap().to_str().unwrap(),
            format!("signing.key.old-{}", first.id())
        );
        assert_eq!(signing_key(&replaced.kept).unwrap().public(), first);
        for file in [&file, &replaced.kept] {
            assert_eq!(std::fs::metadata(file).unwrap().permissions().mode() & 0o777, 0o600);
        }
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 2);
        std::fs::rename(&replaced.kept, &file).unwrap();
        assert_eq!(signing_key(&file).unwrap().public(), first);
    }

    #[test]
    fn of_commands_that_replace_a_signing_key_at_once_each_prints_a_key_that_exists() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("signing.key");
        let first = make_signing_key(&file).unwrap().public();
        let start = std::sync::Barrier::new(8);
        let command = || {
            start.wait();
            (0..20).map(|_| replace_signing_key(&file)).collect::<Vec<_>>()
        };
        let ended: Vec<_> = std::thread::scope(|scope| {
            let commands: Vec<_> = (0..8).map(|_| scope.spawn(command)).collect();
            commands.into_iter().flat_map(|command| command.join().unwrap()).collect()
        });
        let mut left = vec![first];
        let mut made = Vec::new();
        for command in ended {
            match command {
                Ok(replaced) => {
                    left.push(replaced.new.public());
                    made.push(replaced.old);
                }
                Err(error) => assert!(matches!(error, KeyError::Busy(_)), "{error}"),
            }
        }
        let present = signing_key(&file).unwrap().public();
        for key in &left {
            let kept = directory.path().join(format!("signing.key.old-{}", key.id()));
            assert!(*key == present || signing_key(&kept).unwrap().public() == *key, "{key} is lost");
        }
        // Each key was replaced once.
        made.push(present);
        let sorted = |mut keys: Vec<PublicKey>| {
            keys.sort_by_key(ToString::to_string);
            keys
        };
        assert_eq!(sorted(made), sorted(left));
    }

    #[test]
    fn a_link_to_a_signing_key_stays_and_both_keys_are_where_it_leads() {
        let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (link, file) = (here.path().join("link.key"), there.path().join("signing.key"));
        make_signing_key(&file).unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        let replaced = replace_signing_key(&link).unwrap();
        assert_eq!(replaced.file, file.canonicalize().unwrap());
        assert_eq!(replaced.kept.parent(), replaced.file.parent());
        assert_eq!(std::fs::read_link(&link).unwrap(), file);
        assert_eq!(signing_key(&link).unwrap().public(), replaced.new.public());
    }

    #[test]
    fn after_an_interruption_a_signing_key_is_replaced_by_the_same_command() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("signing.key");
        let first = make_signing_key(&file).unwrap().public();
        let kept = directory.path().join(format!("signing.key.old-{}", first.id()));
        std::fs::hard_link(&file, &kept).unwrap();
        std::fs::write(directory.path().join("signing.key.new"), "half").unwrap();
        assert_eq!(replace_signing_key(&file).unwrap().old, first);
        assert_eq!(signing_key(&kept).unwrap().public(), first);
        assert_ne!(signing_key(&file).unwrap().public(), first);
    }

    #[test]
    fn nothing_is_written_over_a_file_that_has_the_old_keys_name() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("signing.key");
        let first = make_signing_key(&file).unwrap().public();
        let taken = directory.path().join(format!("signing.key.old-{}", first.id()));
        std::fs::write(&taken, "somebody's").unwrap();
        let refused = replace_signing_key(&file).unwrap_err();
        assert!(matches!(refused, KeyError::Make { file, .. } if file == taken.canonicalize().unwrap()));
        assert_eq!(std::fs::read(&taken).unwrap(), b"somebody's");
        assert_eq!(signing_key(&file).unwrap().public(), first);
    }
}
