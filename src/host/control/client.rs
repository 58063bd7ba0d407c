//! The command line's side of a control socket. Blocking, because a command does only one thing.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::marker::PhantomData;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use pgw_core::consequence::{Cause, Consequence};
use serde::Serialize;

use super::{LINE_BYTES, NotDone, Reply};

/// How long the client waits for a line of an answer. After that, the daemon may still have done what was asked.
const PATIENCE: Duration = Duration::from_secs(120);

/// Why the daemon's answer could not be had.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No daemon answers there, or this user may not open the socket.
    #[error("cannot reach the daemon at {} ({})", socket.display(), hint(source))]
    Unreachable {
        /// Its socket.
        socket: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// It took too long.
    #[error("the daemon has not answered for {} s: what was asked may still be done", PATIENCE.as_secs())]
    Silent,
    /// The connection ended in the middle of the answer.
    #[error("the daemon closed the connection")]
    Broken(#[source] io::Error),
    /// The bytes of the answer could not be written to their destination.
    #[error("cannot write the daemon's answer")]
    Write(#[source] io::Error),
    /// The answer has an unknown form: the daemon is of another version.
    #[error("the daemon's answer was not understood")]
    NotUnderstood(#[source] serde_json::Error),
    /// The daemon failed to do it.
    #[error(transparent)]
    Failed(NotDone),
    /// The daemon does not do this for this user.
    #[error("{0}")]
    NotPermitted(String),
}

/// What to do where a daemon cannot be reached.
fn hint(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::NotFound => {
            "it is not running, or its socket was removed: see `systemctl status`, and restart it"
        }
        io::ErrorKind::ConnectionRefused => "it is not running: see `systemctl status`",
        io::ErrorKind::PermissionDenied => "run this as root, or as a member of the socket's group",
        _ => "see `systemctl status`",
    }
}

/// What a failed exchange means.
fn broken(error: io::Error) -> ClientError {
    match error.kind() {
        // How the system reports that a timeout of the socket has passed.
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => ClientError::Silent,
        _ => ClientError::Broken(error),
    }
}

impl ClientError {
    /// Nobody listens on the socket: the daemon is not running, or it is starting or stopping.
    #[must_use]
    pub fn is_not_running(&self) -> bool {
        use io::ErrorKind::{ConnectionRefused, NotFound};
        matches!(self, Self::Unreachable { source, .. } if matches!(source.kind(), NotFound | ConnectionRefused))
    }

    /// How the command ends.
    #[must_use]
    pub fn consequence(&self) -> Consequence {
        match self {
            Self::Unreachable { .. } => Consequence::UNREACHABLE,
            Self::Broken(_) | Self::Silent => Consequence::Retry,
            Self::NotUnderstood(_) => Consequence::BUG,
            Self::Failed(not_done) => not_done.consequence,
            Self::NotPermitted(_) => Consequence::Stop(Cause::Rights),
            Self::Write(_) => Consequence::FILES,
        }
    }
}

/// A connection to the daemon that takes requests `Q` and answers with `R`.
#[derive(Debug)]
pub struct Client<Q, R> {
    stream: BufReader<UnixStream>,
    speaks: PhantomData<fn(Q) -> R>,
}

impl<Q: Serialize, R: Reply> Client<Q, R> {
    /// Connects.
    ///
    /// # Errors
    /// [`ClientError::Unreachable`].
    pub fn connect(socket: &Path) -> Result<Self, ClientError> {
        let unreachable = |source| ClientError::Unreachable { socket: socket.to_owned(), source };
        let stream = UnixStream::connect(socket).map_err(unreachable)?;
        stream.set_read_timeout(Some(PATIENCE)).map_err(unreachable)?;
        stream.set_write_timeout(Some(PATIENCE)).map_err(unreachable)?;
        Ok(Self { stream: BufReader::new(stream), speaks: PhantomData })
    }

    /// Sends a request and passes each line of the answer to `each`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn ask(&mut self, request: &Q, each: impl FnMut(R)) -> Result<(), ClientError> {
        self.send(request)?;
        self.replies(each)
    }

    /// Sends a request; the caller still has to read its answer.
    ///
    /// # Errors
    /// [`ClientError::Broken`].
    pub fn send(&mut self, request: &Q) -> Result<(), ClientError> {
        let mut line = serde_json::to_vec(request).map_err(ClientError::NotUnderstood)?;
        line.push(b'\n');
        self.send_bytes(&line)
    }

    /// Sends bytes that belong to the request.
    ///
    /// # Errors
    /// [`ClientError::Broken`].
    pub fn send_bytes(&mut self, bytes: &[u8]) -> Result<(), ClientError> {
        self.stream.get_mut().write_all(bytes).map_err(broken)
    }

    /// Passes the lines of the answer to `each`, up to and including the last.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn replies(&mut self, mut each: impl FnMut(R)) -> Result<(), ClientError> {
        loop {
            let reply = self.reply()?;
            let last = reply.is_last();
            each(reply);
            if last {
                return Ok(());
            }
        }
    }

    /// The next line of the answer.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn reply(&mut self) -> Result<R, ClientError> {
        let mut line = Vec::new();
        let mut limited = (&mut self.stream).take(LINE_BYTES as u64);
        limited.read_until(b'\n', &mut line).map_err(broken)?;
        if line.is_empty() {
            return Err(ClientError::Broken(io::ErrorKind::UnexpectedEof.into()));
        }
        serde_json::from_slice::<R>(&line).map_err(ClientError::NotUnderstood)?.checked()
    }

    /// Copies this many bytes of the answer to `out`.
    ///
    /// # Errors
    /// [`ClientError::Broken`]; [`ClientError::Write`] if writing to `out` fails.
    pub fn bytes(&mut self, mut left: u64, out: &mut dyn io::Write) -> Result<(), ClientError> {
        while left > 0 {
            let read = self.stream.fill_buf().map_err(broken)?;
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
}
