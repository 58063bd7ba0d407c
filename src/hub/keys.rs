//! The hub's age identity, which decrypts bundles.

use std::path::Path;

use pgw_bundle::keys::Identity;
use pgw_host::secret::{self, KeyError, read_secret};

/// Reads the hub's age identity.
///
/// # Errors
/// [`KeyError`].
pub fn carry_key(file: &Path) -> Result<Identity, KeyError> {
    let text = read_secret(file)?;
    std::str::from_utf8(&text).ok().and_then(|text| Identity::from_file_text(text).ok()).ok_or_else(|| {
        KeyError::Form { file: file.to_owned(), form: "an age identity, as `practice-hub init` creates it" }
    })
}

/// Creates an age identity, mode 0600, synced; never replaces one, because bundles on their way need it.
///
/// # Errors
/// [`KeyError::Make`].
pub fn make_carry_key(file: &Path) -> Result<Identity, KeyError> {
    let identity = Identity::generate().map_err(|_| KeyError::Random)?;
    secret::create(file, identity.to_file_text().as_bytes())?;
    carry_key(file)
}
