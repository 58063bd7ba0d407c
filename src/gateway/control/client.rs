//! The command line's side of the control socket. Blocking: a command does one thing.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use pgw_host::exit::{Exit, complain};

use crate::control::{LINE_BYTES, Reply, Request};

/// How long an answer may take. A submission that is not answered by then may be stored all the same: it can be
/// repeated without harm.
const PATIENCE: Duration = Duration::from_secs(120);

/// Why the daemon gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody answers there.
    #[error("cannot reach the daemon at {socket}")]
    Unreachable {
        /// Its socket.
        socket: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// The connection ended early.
    #[error("the daemon closed the connection")]
    Broken(#[source] io::Error),
    /// The answer could not be written.
    #[error("cannot write the daemon's answer")]
    Write(#[source] io::Error),
    /// The daemon speaks otherwise: another version.
    #[error("the daemon's answer cannot be parsed: are program and daemon of one version?")]
    NotUnderstood(#[source] serde_json::Error),
    /// The daemon could not answer.
    #[error("{0}")]
    Failed(String),
    /// The daemon does not answer this user.
    #[error("{0}")]
    NotPermitted(String),
}

/// A connection to the daemon.
#[derive(Debug)]
pub struct Client {
    stream: BufReader<UnixStream>,
}

impl Client {
    /// Connects.
    ///
    /// # Errors
    /// [`ClientError::Unreachable`].
    pub fn connect(socket: &Path) -> Result<Self, ClientError> {
        let unreachable = |source| ClientError::Unreachable { socket: socket.to_owned(), source };
        let stream = UnixStream::connect(socket).map_err(unreachable)?;
        stream.set_read_timeout(Some(PATIENCE)).map_err(unreachable)?;
        stream.set_write_timeout(Some(PATIENCE)).map_err(unreachable)?;
        Ok(Self { stream: BufReader::new(stream) })
    }

    /// Asks, and hands each reply but [`Reply::End`] to `each`.
    ///
    /// # Errors
    /// [`ClientError`], [`Reply::Failed`] included.
    pub fn ask(&mut self, request: &Request, mut each: impl FnMut(Reply)) -> Result<(), ClientError> {
        self.send(request)?;
        loop {
            let reply = self.reply()?;
            let last = reply.is_last();
            match reply {
                Reply::Failed { reason } => return Err(ClientError::Failed(reason)),
                Reply::NotPermitted { reason } => return Err(ClientError::NotPermitted(reason)),
                Reply::End {} => return Ok(()),
                reply => each(reply),
            }
            if last {
                return Ok(());
            }
        }
    }

    /// Submits one body: `request` is a [`Request::Submit`] of its size. The reply is [`Reply::Accepted`] or
    /// [`Reply::Refused`].
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn submit(&mut self, request: &Request, body: &[u8]) -> Result<Reply, ClientError> {
        self.send(request)?;
        let reply = match self.reply()? {
            Reply::Send {} => {
                self.stream.get_mut().write_all(body).map_err(ClientError::Broken)?;
                self.reply()?
            }
            reply => reply,
        };
        match reply {
            Reply::Failed { reason } => Err(ClientError::Failed(reason)),
            reply => Ok(reply),
        }
    }

    /// Asks for an entry's bytes, and copies them to `out`.
    ///
    /// # Errors
    /// [`ClientError`]; [`ClientError::Write`] where `out` takes no more.
    pub fn bytes(&mut self, request: &Request, out: &mut dyn io::Write) -> Result<(), ClientError> {
        self.send(request)?;
        let mut left = match self.reply()? {
            Reply::Bytes { body_bytes } => body_bytes,
            Reply::NotPermitted { reason } => return Err(ClientError::NotPermitted(reason)),
            Reply::Failed { reason } | Reply::Refused { reason, .. } => {
                return Err(ClientError::Failed(reason));
            }
            _ => return Err(ClientError::Broken(io::ErrorKind::InvalidData.into())),
        };
        while left > 0 {
            let read = self.stream.fill_buf().map_err(ClientError::Broken)?;
            let read = &read[..read.len().min(usize::try_from(left).unwrap_or(usize::MAX))];
            if read.is_empty() {
                return Err(ClientError::Broken(io::ErrorKind::UnexpectedEof.into()));
            }
            out.write_all(read).map_err(ClientError::Write)?;
            let count = read.len();
            self.stream.consume(count);
            left -= count as u64;
        }
        Ok(())
    }

    fn send(&mut self, request: &Request) -> Result<(), ClientError> {
        let mut line = serde_json::to_vec(request).map_err(ClientError::NotUnderstood)?;
        line.push(b'\n');
        self.stream.get_mut().write_all(&line).map_err(ClientError::Broken)
    }

    fn reply(&mut self) -> Result<Reply, ClientError> {
        let mut line = Vec::new();
        let mut limited = (&mut self.stream).take(LINE_BYTES as u64);
        limited.read_until(b'\n', &mut line).map_err(ClientError::Broken)?;
        if line.is_empty() {
            return Err(ClientError::Broken(io::ErrorKind::UnexpectedEof.into()));
        }
        serde_json::from_slice(&line).map_err(ClientError::NotUnderstood)
    }
}

impl From<&ClientError> for Exit {
    fn from(error: &ClientError) -> Self {
        match error {
            ClientError::Unreachable { .. } => Exit::Unreachable,
            ClientError::Broken(_) => Exit::Later,
            ClientError::NotUnderstood(_) => Exit::Internal,
            ClientError::Failed(_) => Exit::Refused,
            ClientError::NotPermitted(_) => Exit::NotPermitted,
            ClientError::Write(_) => Exit::Files,
        }
    }
}

/// Writes what the daemon's error is, and gives its exit code.
pub(crate) fn failed(err: &mut dyn io::Write, error: &ClientError) -> Exit {
    complain(err, error);
    error.into()
}
