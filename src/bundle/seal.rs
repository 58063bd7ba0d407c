//! The payload of an age v1 file: 64 KiB chunks of ChaCha20-Poly1305, each bound to its place; the last one is marked.

use std::io::{self, Read, Write};

use ring::aead::{Aad, LessSafeKey, Nonce};
use zeroize::Zeroizing;

use super::AgeError;
use super::header::{self, FileKey};
use super::keys::{Identity, Recipient};

/// Plain bytes of a chunk.
const CHUNK: usize = 64 * 1024;
const TAG: usize = 16;

fn nonce(chunk: u64, last: bool) -> Nonce {
    let mut bytes = [0; 12];
    bytes[3..11].copy_from_slice(&chunk.to_be_bytes());
    bytes[11] = u8::from(last);
    Nonce::assume_unique_for_key(bytes)
}

fn payload_key(file_key: &FileKey, salt: &[u8; 16]) -> Result<LessSafeKey, AgeError> {
    header::cipher(&*header::derive(&file_key[..], salt, "payload")?)
}

/// Encrypts the bytes written to it. [`Encryptor::finish`] writes the last chunk: without it the file counts as truncated, and
/// no reader accepts it.
pub struct Encryptor<W> {
    out: W,
    key: LessSafeKey,
    chunk: u64,
    held: Zeroizing<Vec<u8>>,
}

impl<W: Write> Encryptor<W> {
    /// Writes the header for these recipients; there must be one.
    ///
    /// # Errors
    /// [`AgeError`].
    pub fn new(mut out: W, recipients: &[Recipient]) -> Result<Self, AgeError> {
        let file_key = FileKey::new(pgw_durable::random().map_err(AgeError::Random)?);
        let salt = pgw_durable::random().map_err(AgeError::Random)?;
        out.write_all(&header::write(&file_key, recipients)?)?;
        out.write_all(&salt)?;
        let key = payload_key(&file_key, &salt)?;
        Ok(Self { out, key, chunk: 0, held: Zeroizing::new(Vec::with_capacity(CHUNK + TAG)) })
    }

    fn seal(&mut self, last: bool) -> io::Result<()> {
        self.key
            .seal_in_place_append_tag(nonce(self.chunk, last), Aad::empty(), &mut *self.held)
            .map_err(|_| io::Error::other("a chunk cannot be sealed"))?;
        self.out.write_all(&self.held)?;
        self.held.clear();
        self.chunk += 1;
        Ok(())
    }

    /// Writes the last chunk and returns the writer.
    ///
    /// # Errors
    /// Those of the writer.
    pub fn finish(mut self) -> io::Result<W> {
        self.seal(true)?;
        Ok(self.out)
    }
}

impl<W: Write> Write for Encryptor<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.is_empty() {
            return Ok(0);
        }
        // A full chunk waits until something follows: the last one must not be empty.
        if self.held.len() == CHUNK {
            self.seal(false)?;
        }
        let taken = bytes.len().min(CHUNK - self.held.len());
        self.held.extend_from_slice(bytes.get(..taken).unwrap_or_default());
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// Decrypts, and returns only authenticated bytes. The end of the file is an error unless the last chunk was read.
pub struct Decryptor<R> {
    input: R,
    key: LessSafeKey,
    chunk: u64,
    plain: Zeroizing<Vec<u8>>,
    given: usize,
    /// The first byte of the chunk after this one, if there is one.
    ahead: Option<u8>,
    done: bool,
}

impl<R: Read> Decryptor<R> {
    /// Reads the header.
    ///
    /// # Errors
    /// [`AgeError`].
    pub fn new(mut input: R, identity: &Identity) -> Result<Self, AgeError> {
        let file_key = header::read(&mut input, identity)?;
        let mut salt = [0; 16];
        input.read_exact(&mut salt).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => AgeError::Header("it is cut before its payload"),
            _ => error.into(),
        })?;
        let key = payload_key(&file_key, &salt)?;
        let mut decryptor = Self {
            input,
            key,
            chunk: 0,
            plain: Zeroizing::new(Vec::new()),
            given: 0,
            ahead: None,
            done: false,
        };
        decryptor.ahead = decryptor.byte()?;
        Ok(decryptor)
    }

    fn byte(&mut self) -> Result<Option<u8>, AgeError> {
        let mut byte = [0];
        loop {
            match self.input.read(&mut byte) {
                Ok(0) => return Ok(None),
                Ok(_) => return Ok(Some(byte[0])),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Opens the next chunk; false: the last one was read.
    fn next(&mut self) -> Result<bool, AgeError> {
        if self.done {
            return Ok(false);
        }
        let Some(first) = self.ahead.take() else { return Err(AgeError::Cut(self.chunk)) };
        self.plain.clear();
        self.given = 0;
        self.plain.push(first);
        (&mut self.input).take((CHUNK + TAG - 1) as u64).read_to_end(&mut self.plain)?;
        let full = self.plain.len() == CHUNK + TAG;
        self.ahead = if full { self.byte()? } else { None };
        let last = self.ahead.is_none();
        // A full chunk at the end that is not marked as the last one: the file was truncated there. The chunk itself is good.
        let spare = (last && full).then(|| Zeroizing::new(self.plain.to_vec()));
        let mut length = self.open(last).ok();
        if length.is_none()
            && let Some(spare) = spare
        {
            self.plain = spare;
            length = self.open(false).ok();
            if length.is_some() {
                self.plain.truncate(CHUNK);
                self.chunk += 1;
                return Ok(true);
            }
        }
        let Some(length) = length else { return Err(AgeError::Chunk(self.chunk)) };
        if length == 0 && self.chunk > 0 {
            return Err(AgeError::Chunk(self.chunk));
        }
        self.plain.truncate(length);
        self.chunk += 1;
        self.done = last;
        Ok(true)
    }

    fn open(&mut self, last: bool) -> Result<usize, ring::error::Unspecified> {
        let opened = self.key.open_in_place(nonce(self.chunk, last), Aad::empty(), &mut self.plain);
        opened.map(|plain| plain.len())
    }
}

impl<R: Read> Read for Decryptor<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while self.given == self.plain.len() {
            if !self.next().map_err(|error| match error {
                AgeError::Io(error) => error,
                error => io::Error::new(io::ErrorKind::InvalidData, error),
            })? {
                return Ok(0);
            }
        }
        let rest = self.plain.get(self.given..).unwrap_or_default();
        let taken = rest.len().min(out.len());
        out.get_mut(..taken).unwrap_or_default().copy_from_slice(rest.get(..taken).unwrap_or_default());
        self.given += taken;
        Ok(taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sealed(plain: &[u8], recipients: &[Recipient]) -> Vec<u8> {
        let mut encryptor = Encryptor::new(Vec::new(), recipients).unwrap();
        encryptor.write_all(plain).unwrap();
        encryptor.finish().unwrap()
    }

    fn opened(file: &[u8], identity: &Identity) -> Result<Vec<u8>, String> {
        let mut plain = Vec::new();
        let mut decryptor = Decryptor::new(file, identity).map_err(|error| error.to_string())?;
        decryptor.read_to_end(&mut plain).map_err(|error| error.to_string())?;
        Ok(plain)
    }

    #[test]
    fn there_and_back_at_every_seam() {
        let (hub, other) = (Identity::generate().unwrap(), Identity::generate().unwrap());
        for size in [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 2 * CHUNK + 7] {
            let plain: Vec<u8> = (0..size).map(|at| u8::try_from(at % 251).unwrap()).collect();
            let file = sealed(&plain, &[other.recipient(), hub.recipient()]);
            assert_eq!(opened(&file, &hub).unwrap(), plain, "{size}");
        }
    }

    #[test]
    fn what_is_cut_altered_or_anothers_does_not_open() {
        let (hub, other) = (Identity::generate().unwrap(), Identity::generate().unwrap());
        let file = sealed(&vec![7; 2 * CHUNK], &[hub.recipient()]);
        assert!(matches!(Decryptor::new(&file[..], &other), Err(AgeError::OtherKey)));
        let header = file.len() - 2 * (CHUNK + TAG) - 16;
        let cut_at_seam = opened(&file[..file.len() - CHUNK - TAG], &hub).unwrap_err();
        assert!(cut_at_seam.contains("cut"), "{cut_at_seam}");
        for end in [0, 5, header - 1, header, header + 3, header + 16, header + 17, file.len() - 1] {
            assert!(opened(&file[..end], &hub).is_err(), "cut at {end}");
        }
        for at in [0, 30, header - 10, header + 2, header + 20, file.len() - 1] {
            let mut altered = file.clone();
            altered[at] ^= 1;
            assert!(opened(&altered, &hub).is_err(), "altered at {at}");
        }
        let mut swapped = file[..header + 16].to_vec();
        swapped.extend_from_slice(&file[header + 16 + CHUNK + TAG..]);
        swapped.extend_from_slice(&file[header + 16..header + 16 + CHUNK + TAG]);
        assert!(opened(&swapped, &hub).is_err(), "swapped chunks");
        let mut longer = file.clone();
        longer.push(0);
        assert!(opened(&longer, &hub).is_err(), "something after the end");
    }
}
