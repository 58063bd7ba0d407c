//! Keys: read with their file modes checked, made once and never overwritten.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use ring::rand::SecureRandom as _;
use zeroize::{Zeroize as _, Zeroizing};

use crate::carry::keys::Identity;
use crate::outbox::{Keyring, OutboxKey};
use crate::wire::signature::SigningKey;

/// Name of the credential that systemd hands over.
pub const CREDENTIAL: &str = "outbox-key";

/// Why there is no key. Nothing was written, except by the two that make keys.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// Not there, or not for us.
    #[error("cannot read the key {file}")]
    Unreadable {
        /// Which.
        file: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// Others may read it.
    #[error("the key {file} has mode {mode:04o}: only its owner may read it (chmod 0600)")]
    Open {
        /// Which.
        file: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Not a key.
    #[error("the key {file} is not {form}")]
    Form {
        /// Which.
        file: PathBuf,
        /// What it should be.
        form: &'static str,
    },
    /// Could not be made.
    #[error("cannot make the key {file}")]
    Make {
        /// Which.
        file: PathBuf,
        /// What the system said; [`std::io::ErrorKind::AlreadyExists`]: there is one, and it stays.
        #[source]
        source: std::io::Error,
    },
    /// The system gave no random numbers.
    #[error("the system gives no random numbers")]
    Random,
}

/// Where the outbox key is: the credential of systemd if there is one, else the configured file.
#[must_use]
pub fn outbox_key_place(configured: &Path) -> PathBuf {
    std::env::var_os("CREDENTIALS_DIRECTORY")
        .map(|directory| Path::new(&directory).join(CREDENTIAL))
        .filter(|file| file.exists())
        .unwrap_or_else(|| configured.to_owned())
}

/// Reads the outbox keys: each on a line of its own, 32 bytes as 64 hexadecimal digits or as base64. The first one is the present
/// one and seals; the others only open what they have sealed. Empty lines, and lines that begin with `#`, say nothing.
///
/// # Errors
/// [`KeyError`].
pub fn outbox_keys(configured: &Path) -> Result<Keyring, KeyError> {
    let file = outbox_key_place(configured);
    // systemd guards its credentials by the directory, and shows them with modes of its own.
    let text = if file == configured { read_secret(&file)? } else { read(&file)? };
    keyring(&file, &text)
}

/// The same of a file that is none of systemd's.
///
/// # Errors
/// [`KeyError`].
pub fn outbox_keys_in(file: &Path) -> Result<Keyring, KeyError> {
    keyring(file, &read_secret(file)?)
}

fn keyring(file: &Path, text: &[u8]) -> Result<Keyring, KeyError> {
    const FORM: &str = "32 bytes, as 64 hexadecimal digits or as base64, for each key a line";
    let form = || KeyError::Form { file: file.to_owned(), form: FORM };
    let text = std::str::from_utf8(text).map_err(|_| form())?;
    let mut keys = Vec::new();
    for line in key_lines(text) {
        let mut bytes = decode(line).ok_or_else(form)?;
        keys.push(OutboxKey::new(bytes));
        bytes.zeroize();
    }
    let mut keys = keys.into_iter();
    let present = keys.next().ok_or_else(form)?;
    Ok(Keyring::new(present, keys.collect()))
}

fn key_lines(text: &str) -> impl Iterator<Item = &str> {
    text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'))
}

fn decode(text: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    if text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit()) {
        for (byte, digits) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
            *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
        }
        return Some(bytes);
    }
    let decoded = Zeroizing::new(BASE64.decode(text).ok()?);
    if decoded.len() != 32 {
        return None;
    }
    bytes.copy_from_slice(&decoded);
    Some(bytes)
}

/// Makes an outbox key, mode 0600, synced. Never replaces one: a lost key loses the backlog.
///
/// # Errors
/// [`KeyError::Make`].
pub fn make_outbox_key(file: &Path) -> Result<(), KeyError> {
    let mut text = new_key()?;
    text.push('\n');
    write_new(file, text.as_bytes())
}

fn new_key() -> Result<Zeroizing<String>, KeyError> {
    let mut bytes = Zeroizing::new([0_u8; 32]);
    ring::rand::SystemRandom::new().fill(&mut *bytes).map_err(|_| KeyError::Random)?;
    Ok(Zeroizing::new(hexadecimal(&*bytes)))
}

/// Puts a new key before those that the file has; none is lost, whatever happens: the file is either the old or the new. All
/// keys, the new one first.
///
/// # Errors
/// [`KeyError`]; the file is as it was.
pub fn rotate_outbox_key(file: &Path) -> Result<Keyring, KeyError> {
    let before = outbox_keys_in(file)?;
    let old = read_secret(file)?;
    let old =
        std::str::from_utf8(&old).map_err(|_| KeyError::Form { file: file.to_owned(), form: "text" })?;
    let fresh = new_key()?;
    let mut text = Zeroizing::new(String::with_capacity(fresh.len() + old.len() + 2));
    text.push_str(&fresh);
    text.push('\n');
    text.push_str(old);
    replace(file, text.as_bytes())?;
    let keys = outbox_keys_in(file)?;
    debug_assert_eq!(keys.ids().len(), before.ids().len() + 1);
    Ok(keys)
}

/// Takes the keys of this id out of the file. Whoever calls this knows that nothing needs them; the first one stays.
///
/// # Errors
/// [`KeyError`]; the file is as it was.
pub fn drop_outbox_key(file: &Path, id: &str) -> Result<(), KeyError> {
    let present = outbox_keys_in(file)?.present().id();
    let old = read_secret(file)?;
    let old =
        std::str::from_utf8(&old).map_err(|_| KeyError::Form { file: file.to_owned(), form: "text" })?;
    let mut text = Zeroizing::new(String::with_capacity(old.len() + 1));
    for line in key_lines(old) {
        let bytes = decode(line).map(Zeroizing::new);
        if id == present || bytes.is_none_or(|bytes| OutboxKey::new(*bytes).id() != id) {
            text.push_str(line);
            text.push('\n');
        }
    }
    replace(file, text.as_bytes())
}

/// Written aside with the old one's owner, synced, renamed, and the directory synced.
fn replace(file: &Path, bytes: &[u8]) -> Result<(), KeyError> {
    let write = || {
        // A link stays a link.
        let file = std::fs::canonicalize(file)?;
        let facts = std::fs::metadata(&file)?;
        let mut name = file.file_name().unwrap_or_default().to_owned();
        name.push(".new");
        let aside = file.with_file_name(name);
        match std::fs::remove_file(&aside) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut new = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&aside)?;
        std::os::unix::fs::fchown(&new, Some(facts.uid()), Some(facts.gid()))?;
        new.write_all(bytes)?;
        new.sync_all()?;
        std::fs::rename(&aside, &file)?;
        file.parent().map_or(Ok(()), |directory| std::fs::File::open(directory)?.sync_all())
    };
    write().map_err(|source| KeyError::Make { file: file.to_owned(), source })
}

/// Reads the hub's signing key (PKCS#8).
///
/// # Errors
/// [`KeyError`].
pub fn signing_key(file: &Path) -> Result<SigningKey, KeyError> {
    let document = read_secret(file)?;
    SigningKey::from_pkcs8(&document).map_err(|_| KeyError::Form {
        file: file.to_owned(),
        form: "an Ed25519 key in PKCS#8, as `practice-hub init` makes it",
    })
}

/// Makes a signing key, mode 0600, synced; never replaces one.
///
/// # Errors
/// [`KeyError::Make`].
pub fn make_signing_key(file: &Path) -> Result<SigningKey, KeyError> {
    let document = Zeroizing::new(SigningKey::generate().map_err(|_| KeyError::Random)?);
    write_new(file, &document)?;
    signing_key(file)
}

/// Reads the hub's age identity.
///
/// # Errors
/// [`KeyError`].
pub fn carry_key(file: &Path) -> Result<Identity, KeyError> {
    let text = read_secret(file)?;
    std::str::from_utf8(&text).ok().and_then(|text| Identity::from_file_text(text).ok()).ok_or_else(|| {
        KeyError::Form { file: file.to_owned(), form: "an age identity, as `practice-hub init` makes it" }
    })
}

/// Makes an age identity, mode 0600, synced; never replaces one: bundles that are under way need it.
///
/// # Errors
/// [`KeyError::Make`].
pub fn make_carry_key(file: &Path) -> Result<Identity, KeyError> {
    let identity = Identity::generate().map_err(|_| KeyError::Random)?;
    write_new(file, identity.to_file_text().as_bytes())?;
    carry_key(file)
}

/// First 16 hexadecimal digits of a SHA-256: names a file's content.
#[must_use]
pub fn digest(bytes: &[u8]) -> String {
    let mut text = hexadecimal(ring::digest::digest(&ring::digest::SHA256, bytes).as_ref());
    text.truncate(16);
    text
}

fn hexadecimal(bytes: &[u8]) -> String {
    const DIGITS: [char; 16] =
        ['0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'a', 'b', 'c', 'd', 'e', 'f'];
    bytes.iter().flat_map(|byte| [DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]).collect()
}

pub(crate) fn read(file: &Path) -> Result<Zeroizing<Vec<u8>>, KeyError> {
    std::fs::read(file)
        .map(Zeroizing::new)
        .map_err(|source| KeyError::Unreadable { file: file.to_owned(), source })
}

pub(crate) fn read_secret(file: &Path) -> Result<Zeroizing<Vec<u8>>, KeyError> {
    let facts =
        std::fs::metadata(file).map_err(|source| KeyError::Unreadable { file: file.to_owned(), source })?;
    let mode = facts.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(KeyError::Open { file: file.to_owned(), mode });
    }
    read(file)
}

fn write_new(file: &Path, bytes: &[u8]) -> Result<(), KeyError> {
    let write = || {
        let mut new = OpenOptions::new().write(true).create_new(true).mode(0o600).open(file)?;
        new.write_all(bytes)?;
        new.sync_all()?;
        if let Some(directory) = file.parent().filter(|directory| !directory.as_os_str().is_empty()) {
            std::fs::File::open(directory)?.sync_all()?;
        }
        Ok(())
    };
    write().map_err(|source| KeyError::Make { file: file.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_64_digits_or_base64_of_32_bytes() {
        let digits = "00ff".repeat(16);
        let bytes = decode(&digits).unwrap();
        assert_eq!(&bytes[..4], [0, 255, 0, 255]);
        assert_eq!(decode(&BASE64.encode(bytes)), Some(bytes));
        assert_eq!(hexadecimal(&bytes), digits);
        for bad in ["", "00ff", &"0g".repeat(32), &BASE64.encode([1; 31]), &BASE64.encode([1; 33])] {
            assert_eq!(decode(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_key_is_made_for_its_owner_only_and_never_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("outbox.key");
        make_outbox_key(&file).unwrap();
        let first = std::fs::read(&file).unwrap();
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        let again = make_outbox_key(&file);
        assert!(
            matches!(again, Err(KeyError::Make { source, .. }) if source.kind() == std::io::ErrorKind::AlreadyExists)
        );
        assert_eq!(std::fs::read(&file).unwrap(), first);
    }

    #[test]
    fn a_rotation_adds_a_key_before_the_others_and_loses_none() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("outbox.key");
        make_outbox_key(&file).unwrap();
        let first = outbox_keys(&file).unwrap().ids();
        // What a crash left behind is in nobody's way.
        std::fs::write(directory.path().join("outbox.key.new"), "half").unwrap();
        let second = rotate_outbox_key(&file).unwrap().ids();
        assert_eq!(second[1..], first);
        std::fs::write(&file, format!("# ours\n\n{}", std::fs::read_to_string(&file).unwrap())).unwrap();
        let third = rotate_outbox_key(&file).unwrap().ids();
        assert_eq!(third[1..], second);
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
        drop_outbox_key(&file, &second[0]).unwrap();
        assert_eq!(outbox_keys(&file).unwrap().ids(), [&third[0], &first[0]].map(String::as_str));
        drop_outbox_key(&file, &third[0]).unwrap();
        assert_eq!(outbox_keys(&file).unwrap().ids().len(), 2, "the present one stays");
    }

    #[test]
    fn a_file_with_anything_but_keys_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("outbox.key");
        make_outbox_key(&file).unwrap();
        let good = std::fs::read_to_string(&file).unwrap();
        for bad in [String::new(), "# nothing\n".into(), format!("{good}half"), format!("x\n{good}")] {
            std::fs::write(&file, &bad).unwrap();
            assert!(matches!(outbox_keys(&file), Err(KeyError::Form { .. })), "{bad:?}");
            assert!(rotate_outbox_key(&file).is_err());
            assert_eq!(std::fs::read_to_string(&file).unwrap(), bad);
        }
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
