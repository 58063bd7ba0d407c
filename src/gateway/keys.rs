//! The gateway's keys: where they are; creation and rotation of the outbox keys. The signing key's are in [`secret`].

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use pgw_core::text::{from_hex, hex};
use pgw_core::wire::signature::SigningKey;
use pgw_host::secret::{self, KeyError, SecretPlace, read_secret};
use pgw_outbox::{Keyring, OutboxKey};
use zeroize::{Zeroize as _, Zeroizing};

/// Name of the outbox key as a systemd credential.
pub const OUTBOX_KEY: &str = "outbox-key";
/// Name of the signing key as a systemd credential.
pub const SIGNING_KEY: &str = "signing-key";

/// Where the outbox key is: the systemd credential if there is one, otherwise the configured file.
#[must_use]
pub fn outbox_key_place(configured: &Path) -> SecretPlace {
    SecretPlace::find(OUTBOX_KEY.as_ref(), configured)
}

/// Where the signing key is: the systemd credential if there is one, otherwise the configured file.
#[must_use]
pub fn signing_key_place(configured: &Path) -> SecretPlace {
    SecretPlace::find(SIGNING_KEY.as_ref(), configured)
}

/// Reads the key with which the gateway signs.
///
/// # Errors
/// [`KeyError`].
pub fn signing_key(configured: &Path) -> Result<SigningKey, KeyError> {
    secret::signing_key_at(&signing_key_place(configured))
}

/// Reads the outbox keys: one per line, 32 bytes as 64 hexadecimal digits or as base64. The first is the current key,
/// which seals; the others only decrypt what they have sealed. Empty lines and lines that begin with `#` are ignored.
///
/// # Errors
/// [`KeyError`].
pub fn outbox_keys(configured: &Path) -> Result<Keyring, KeyError> {
    let place = outbox_key_place(configured);
    keyring(&place.file, &place.read()?)
}

/// The same for a file that is not a systemd credential.
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
    if text.len() == 64
        && let Some(bytes) = from_hex(text)
    {
        return Some(bytes);
    }
    let decoded = Zeroizing::new(BASE64.decode(text).ok()?);
    if decoded.len() != 32 {
        return None;
    }
    bytes.copy_from_slice(&decoded);
    Some(bytes)
}

/// Creates an outbox key, mode 0600, synced. Never replaces one: losing a key loses the backlog.
///
/// # Errors
/// [`KeyError::Make`].
pub fn make_outbox_key(file: &Path) -> Result<(), KeyError> {
    let mut text = new_key()?;
    text.push('\n');
    secret::create(file, text.as_bytes())
}

fn new_key() -> Result<Zeroizing<String>, KeyError> {
    let bytes = Zeroizing::new(pgw_durable::random::<32>().map_err(|_| KeyError::Random)?);
    Ok(Zeroizing::new(hex(&*bytes)))
}

/// Puts a new key before those in the file. No key is lost, whatever happens: the file is either the old or the new
/// one. Returns all keys, the new one first.
///
/// # Errors
/// [`KeyError`]; the file is unchanged.
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
    secret::replace(file, text.as_bytes())?;
    let keys = outbox_keys_in(file)?;
    debug_assert_eq!(keys.ids().len(), before.ids().len() + 1);
    Ok(keys)
}

/// Removes the keys of this id from the file. The caller has checked that nothing needs them; the first key stays.
///
/// # Errors
/// [`KeyError`]; the file is unchanged.
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
    secret::replace(file, text.as_bytes())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_key_is_64_digits_or_base64_of_32_bytes() {
        let digits = "00ff".repeat(16);
        let bytes = decode(&digits).unwrap();
        assert_eq!(&bytes[..4], [0, 255, 0, 255]);
        assert_eq!(decode(&BASE64.encode(bytes)), Some(bytes));
        assert_eq!(hex(&bytes), digits);
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
        // A left-over from a crash does no harm.
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
        assert_eq!(outbox_keys(&file).unwrap().ids().len(), 2, "the active one stays");
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
}
