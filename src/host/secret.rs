//! Secret files: read with their modes checked, created once for their owner, never overwritten, and replaced
//! atomically.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use pgw_core::consequence::Consequence;
use pgw_core::wire::signature::SigningKey;
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
            Self::Random => Consequence::BUG,
        }
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

/// Reads a file that its directory protects: a systemd credential.
///
/// # Errors
/// [`KeyError::Unreadable`].
pub fn read(file: &Path) -> Result<Zeroizing<Vec<u8>>, KeyError> {
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

/// Reads a signing key (PKCS#8).
///
/// # Errors
/// [`KeyError`].
pub fn signing_key(file: &Path) -> Result<SigningKey, KeyError> {
    let document = read_secret(file)?;
    SigningKey::from_pkcs8(&document).map_err(|_| KeyError::Form {
        file: file.to_owned(),
        form: "an Ed25519 key in PKCS#8, as `practice-hub init` creates it",
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
}
