//! The header of an age v1 file (C2SP `age.md`): stanzas that wrap the file key, and a MAC over them.

use std::io::Read;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD as BASE64;
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use ring::{hkdf, hmac};
use zeroize::Zeroizing;

use super::AgeError;
use super::keys::{Identity, Recipient};

const VERSION: &str = "age-encryption.org/v1";
const X25519: &str = "age-encryption.org/v1/X25519";
const FILE_KEY_BYTES: usize = 16;
/// Columns of a stanza's body.
const COLUMNS: usize = 64;
/// Longest header that is read.
const MOST_BYTES: usize = 64 * 1024;

pub(super) type FileKey = Zeroizing<[u8; FILE_KEY_BYTES]>;

struct Length(usize);

impl hkdf::KeyType for Length {
    fn len(&self) -> usize {
        self.0
    }
}

/// HKDF-SHA-256 to 32 bytes.
pub(super) fn derive(secret: &[u8], salt: &[u8], info: &str) -> Result<Zeroizing<[u8; 32]>, AgeError> {
    let mut key = Zeroizing::new([0; 32]);
    hkdf::Salt::new(hkdf::HKDF_SHA256, salt)
        .extract(secret)
        .expand(&[info.as_bytes()], Length(32))
        .and_then(|okm| okm.fill(&mut *key))
        .map_err(|_| AgeError::Header("a key cannot be derived"))?;
    Ok(key)
}

/// ChaCha20-Poly1305.
pub(super) fn cipher(key: &[u8; 32]) -> Result<LessSafeKey, AgeError> {
    let key =
        UnboundKey::new(&CHACHA20_POLY1305, key).map_err(|_| AgeError::Header("a key has the wrong size"))?;
    Ok(LessSafeKey::new(key))
}

fn wrapping_key(
    ephemeral: &[u8; 32],
    recipient: &Recipient,
    shared: &[u8; 32],
) -> Result<LessSafeKey, AgeError> {
    let salt = [&ephemeral[..], &recipient.0[..]].concat();
    cipher(&*derive(shared, &salt, X25519)?)
}

/// Nonce of zeros: each wrapping key is used once.
fn once() -> Nonce {
    Nonce::assume_unique_for_key([0; 12])
}

/// The header for these recipients.
pub(super) fn write(file_key: &FileKey, recipients: &[Recipient]) -> Result<Vec<u8>, AgeError> {
    let mut text = format!("{VERSION}\n");
    for recipient in recipients {
        let ephemeral = Identity::generate()?;
        let share = ephemeral.recipient().0;
        let shared = ephemeral.agree(&recipient.0).ok_or(AgeError::Key("recipient that can be used"))?;
        let mut wrapped = file_key.to_vec();
        wrapping_key(&share, recipient, &shared)?
            .seal_in_place_append_tag(once(), Aad::empty(), &mut wrapped)
            .map_err(|_| AgeError::Header("the file key cannot be wrapped"))?;
        // 32 bytes are 43 digits: one short line, which ends the stanza.
        text += &format!("-> X25519 {}\n{}\n", BASE64.encode(share), BASE64.encode(wrapped));
    }
    text += "---";
    let mac = hmac::sign(&mac_key(file_key)?, text.as_bytes());
    text += &format!(" {}\n", BASE64.encode(mac));
    Ok(text.into_bytes())
}

fn mac_key(file_key: &FileKey) -> Result<hmac::Key, AgeError> {
    Ok(hmac::Key::new(hmac::HMAC_SHA256, &*derive(&file_key[..], &[], "header")?))
}

/// Reads the header and returns the file key.
pub(super) fn read(input: &mut impl Read, identity: &Identity) -> Result<FileKey, AgeError> {
    let mut text = Vec::new();
    if line(input, &mut text)? != VERSION {
        return Err(AgeError::Header("its first line is another"));
    }
    let mut found = None;
    loop {
        let began = text.len();
        let first = line(input, &mut text)?;
        if let Some(mac) = first.strip_prefix("--- ") {
            let mac = BASE64.decode(mac).ok().filter(|mac| mac.len() == 32);
            let mac = mac.ok_or(AgeError::Header("its MAC has another form"))?;
            let file_key: FileKey = found.ok_or(AgeError::OtherKey)?;
            let covered = text.get(..began + 3).unwrap_or_default();
            return match hmac::verify(&mac_key(&file_key)?, covered, &mac) {
                Ok(()) => Ok(file_key),
                Err(_) => Err(AgeError::HeaderMac),
            };
        }
        let words: Vec<&str> = first.strip_prefix("-> ").unwrap_or_default().split(' ').collect();
        if words.iter().any(|word| word.is_empty() || !word.bytes().all(|byte| byte.is_ascii_graphic())) {
            return Err(AgeError::Header("a stanza begins with something else"));
        }
        let body = body(input, &mut text)?;
        if words.first() == Some(&"X25519")
            && let Some(key) = unwrap(&words, &body, identity)?
            && found.is_none()
        {
            found = Some(key);
        }
    }
}

/// The file key of an X25519 stanza; `None`: it is for another identity.
fn unwrap(words: &[&str], body: &[u8], identity: &Identity) -> Result<Option<FileKey>, AgeError> {
    let wrong = || AgeError::Header("an X25519 stanza has another form");
    let [_, share] = words else { return Err(wrong()) };
    let share: [u8; 32] =
        BASE64.decode(share).ok().and_then(|share| share.try_into().ok()).ok_or_else(wrong)?;
    if body.len() != FILE_KEY_BYTES + 16 {
        return Err(wrong());
    }
    let shared = identity.agree(&share).ok_or_else(wrong)?;
    let mut wrapped = Zeroizing::new(body.to_vec());
    let key = wrapping_key(&share, &identity.recipient(), &shared)?;
    let Ok(opened) = key.open_in_place(once(), Aad::empty(), &mut wrapped) else { return Ok(None) };
    let mut file_key = FileKey::default();
    file_key.copy_from_slice(opened);
    Ok(Some(file_key))
}

fn body(input: &mut impl Read, text: &mut Vec<u8>) -> Result<Vec<u8>, AgeError> {
    let mut digits = String::new();
    loop {
        let line = line(input, text)?;
        if line.len() > COLUMNS {
            return Err(AgeError::Header("a line of a stanza is too long"));
        }
        digits.push_str(&line);
        if line.len() < COLUMNS {
            return BASE64.decode(digits).map_err(|_| AgeError::Header("a stanza's body is not base64"));
        }
    }
}

/// The next line without its end; `text` keeps it with the end. Read byte by byte, so that nothing after it is consumed.
fn line(input: &mut impl Read, text: &mut Vec<u8>) -> Result<String, AgeError> {
    let began = text.len();
    let mut byte = [0];
    loop {
        match input.read_exact(&mut byte) {
            Ok(()) => text.push(byte[0]),
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
                return Err(AgeError::Header("its header is cut"));
            }
            Err(error) => return Err(error.into()),
        }
        if byte[0] == b'\n' {
            let line = text.get(began..text.len() - 1).unwrap_or_default().to_vec();
            return String::from_utf8(line).map_err(|_| AgeError::Header("its header is not text"));
        }
        if text.len() > MOST_BYTES {
            return Err(AgeError::Header("its header is too long"));
        }
    }
}
