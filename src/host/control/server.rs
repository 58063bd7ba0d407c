//! The daemon's side of a control socket.

use std::io;
use std::ops::ControlFlow;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use pgw_core::consequence::Consequence;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::timeout;

use super::{LINE_BYTES, NotDone, Reply};
use crate::accept::{Accept, Listener, stop_requested};

/// Most clients at once; further ones wait in the kernel's queue.
const MAX_CLIENTS: usize = 64;
/// Most answers of many lines at once: each has a thread and reads the store.
const LONG_ANSWERS: usize = 8;
/// How long a client waits until it may have one.
const LONG_ANSWER_WAIT: Duration = Duration::from_secs(30);
/// How long a client may keep its place without a request.
const IDLE: Duration = Duration::from_secs(15);
/// Longest path of a socket, bytes (`sun_path` of unix(7), with its end).
const PATH_BYTES: usize = 107;
/// How long a client may take to send a request or its bytes, and to read an answer.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// A long answer has a line at least this often, so that the client knows that the daemon is still working.
pub const PROGRESS: Duration = Duration::from_secs(5);

/// Takes a line of an answer; `Break` means that the client has gone.
pub type SendReply<'a, R> = &'a mut dyn FnMut(R) -> ControlFlow<()>;

/// What a daemon does for its commands.
pub trait Handler: Send + Sync + 'static {
    /// The type of its requests.
    type Request: DeserializeOwned + Send;
    /// The type of its replies.
    type Reply: Reply;

    /// Carries out a request and sends all lines of the answer, up to and including the last. An error ends the
    /// connection.
    fn answer(
        &self,
        request: Self::Request,
        client: &mut Conversation,
    ) -> impl Future<Output = io::Result<()>> + Send;
}

/// The socket cannot be created.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// A daemon already answers there.
    #[error("another process listens on {0}")]
    InUse(PathBuf),
    /// Something else is there: it is not replaced.
    #[error("{0} is there already and is no socket: give the control socket a path of its own")]
    NotASocket(PathBuf),
    /// The system has no room for the path.
    #[error("the path of the control socket has at most {PATH_BYTES} bytes: {0}")]
    TooLong(PathBuf),
    /// Its directory is not there.
    #[error("the directory of the control socket {0} is not there")]
    NoDirectory(PathBuf),
    /// The system refuses it.
    #[error("cannot create the control socket {path}")]
    Io {
        /// The socket.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
}

impl ListenError {
    /// How the daemon ends.
    #[must_use]
    pub fn consequence(&self) -> Consequence {
        match self {
            Self::InUse(_) | Self::Io { .. } => Consequence::UNREACHABLE,
            Self::NotASocket(_) | Self::TooLong(_) | Self::NoDirectory(_) => Consequence::CONFIGURATION,
        }
    }
}

/// Whether a control socket can be created here, as far as the configuration decides it.
///
/// # Errors
/// [`ListenError`], of those that a person has to correct.
pub fn check(socket: &Path) -> Result<(), ListenError> {
    if socket.as_os_str().as_bytes().len() > PATH_BYTES {
        return Err(ListenError::TooLong(socket.to_owned()));
    }
    match std::fs::symlink_metadata(socket) {
        Ok(facts) if !facts.file_type().is_socket() => Err(ListenError::NotASocket(socket.to_owned())),
        Ok(_) => Ok(()),
        Err(_) if socket.parent().is_some_and(Path::is_dir) => Ok(()),
        Err(_) => Err(ListenError::NoDirectory(socket.to_owned())),
    }
}

/// A control socket that listens; [`Control::serve`] starts to answer.
#[derive(Debug)]
pub struct Control {
    listener: Socket,
}

/// Removes the socket's file when it is dropped, unless another one has taken its place.
#[derive(Debug)]
struct Socket {
    listener: UnixListener,
    path: PathBuf,
    /// Device and inode.
    own: (u64, u64),
}

impl Listener for Socket {
    type Stream = UnixStream;
    type Peer = ();

    async fn accept(&self) -> io::Result<(UnixStream, ())> {
        Listener::accept(&self.listener).await
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        match identity(&self.path) {
            Ok(there) if there == self.own => {
                if let Err(error) = std::fs::remove_file(&self.path) {
                    tracing::debug!(%error, "Could not remove the control socket");
                }
            }
            _ => {
                tracing::warn!(path = %self.path.display(), "The control socket was removed or replaced meanwhile")
            }
        }
    }
}

impl Control {
    /// Creates the socket, replacing one that a dead process left behind.
    ///
    /// # Errors
    /// [`ListenError`].
    pub fn listen(socket: &Path) -> Result<Self, ListenError> {
        check(socket)?;
        let path = socket.to_owned();
        if std::os::unix::net::UnixStream::connect(&path).is_ok() {
            return Err(ListenError::InUse(path));
        }
        match bind(&path) {
            Ok((listener, own)) => Ok(Self { listener: Socket { listener, path, own } }),
            Err(source) => Err(ListenError::Io { path, source }),
        }
    }

    /// Answers clients until `stop` becomes true (or its sender is gone), and removes the socket.
    pub async fn serve<H: Handler>(self, handler: Arc<H>, stop: watch::Receiver<bool>) {
        let long_answers = Arc::new(Semaphore::new(LONG_ANSWERS));
        let client = |stream, ()| {
            let client =
                Conversation { stream: BufReader::new(stream), long_answers: Arc::clone(&long_answers) };
            serve_client(client, Arc::clone(&handler), stop.clone())
        };
        let accept = Accept { name: "control", listener: self.listener, most_clients: MAX_CLIENTS };
        accept.serve(|(), _| Ok(()), client, stop.clone()).await;
    }
}

/// First under another name: nobody can connect before the mode is right, and the rename replaces a left-over socket
/// atomically.
fn bind(path: &Path) -> io::Result<(UnixListener, (u64, u64))> {
    // Short: the system's limit is on the path of this one, too.
    let making = path.with_file_name(format!(".{:x}", std::process::id()));
    match std::fs::remove_file(&making) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&making)?;
    let named = std::fs::set_permissions(&making, std::fs::Permissions::from_mode(0o660))
        // A socket does not outlive its daemon, so it need not be on stable storage.
        .and_then(|()| std::fs::rename(&making, path))
        .and_then(|()| identity(path));
    if named.is_err() {
        let _ = std::fs::remove_file(&making);
    }
    Ok((listener, named?))
}

/// Device and inode of what is at a path.
fn identity(path: &Path) -> io::Result<(u64, u64)> {
    std::fs::symlink_metadata(path).map(|facts| (facts.dev(), facts.ino()))
}

async fn serve_client<H: Handler>(
    mut client: Conversation,
    handler: Arc<H>,
    mut stop: watch::Receiver<bool>,
) {
    loop {
        let request = tokio::select! {
            () = stop_requested(&mut stop) => return,
            request = client.request::<H>() => request,
        };
        let answered = match request {
            Ok(Some(request)) => handler.answer(request, &mut client).await,
            Ok(None) => return,
            Err(error) => Err(error),
        };
        if let Err(error) = answered {
            tracing::debug!(%error, "Ended a control connection");
            return;
        }
    }
}

/// The connection of one client.
#[derive(Debug)]
pub struct Conversation {
    stream: BufReader<UnixStream>,
    long_answers: Arc<Semaphore>,
}

impl Conversation {
    /// The next request; `None` at the end of the connection, or after a line that is not a request.
    async fn request<H: Handler>(&mut self) -> io::Result<Option<H::Request>> {
        let mut line = Vec::new();
        let mut limited = (&mut self.stream).take(LINE_BYTES as u64);
        timeout(IDLE, limited.read_until(b'\n', &mut line)).await??;
        if line.is_empty() {
            return Ok(None);
        }
        let wrong = match serde_json::from_slice(&line) {
            _ if line.len() == LINE_BYTES && !line.ends_with(b"\n") => {
                format!("a request has at most {LINE_BYTES} bytes")
            }
            Ok(request) if line.ends_with(b"\n") => return Ok(Some(request)),
            Ok(_) => "a request must end with a line end".to_owned(),
            Err(error) => format!("not a request: {error}"),
        };
        self.send_line(&H::Reply::failed(NotDone::refused(wrong))).await?;
        Ok(None)
    }

    /// Sends a line of the answer.
    ///
    /// # Errors
    /// The client has gone, or does not read it.
    pub async fn send_line(&mut self, reply: &impl Serialize) -> io::Result<()> {
        let mut line = serde_json::to_vec(reply)?;
        line.push(b'\n');
        self.send(&line).await
    }

    /// Sends bytes that belong to the answer.
    ///
    /// # Errors
    /// The client has gone, or does not read them.
    pub async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        timeout(PATIENCE, self.stream.get_mut().write_all(bytes)).await?
    }

    /// Reads bytes that belong to the request; fills the whole buffer.
    ///
    /// # Errors
    /// The client has gone, or does not send them.
    pub async fn read_exact(&mut self, bytes: &mut [u8]) -> io::Result<()> {
        timeout(PATIENCE, self.stream.read_exact(bytes)).await??;
        Ok(())
    }

    /// The client's user id, as reported by the kernel and not by the client.
    ///
    /// # Errors
    /// The system's error.
    pub fn user(&self) -> io::Result<u32> {
        Ok(self.stream.get_ref().peer_cred()?.uid())
    }

    /// Sends an answer of many lines. `make` blocks, so it runs on its own thread; it returns the last line, or why
    /// there is none. If the client has gone, the answer ends at its next line.
    ///
    /// # Errors
    /// The client has gone, or does not read them.
    pub async fn stream_of<R: Reply, E: Into<NotDone> + Send + 'static>(
        &mut self,
        make: impl FnOnce(SendReply<'_, R>) -> Result<R, E> + Send + 'static,
    ) -> io::Result<()> {
        let Ok(Ok(_place)) = timeout(LONG_ANSWER_WAIT, Arc::clone(&self.long_answers).acquire_owned()).await
        else {
            let busy =
                "other commands that read the store are under way: run this one again when they have ended";
            return self.send_line(&R::failed(NotDone::later(busy))).await;
        };
        let (lines, mut replies) = mpsc::channel(64);
        let work = tokio::task::spawn_blocking(move || {
            make(&mut |reply| match lines.blocking_send(reply) {
                Ok(()) => ControlFlow::Continue(()),
                Err(_) => ControlFlow::Break(()),
            })
        });
        while let Some(reply) = replies.recv().await {
            self.send_line(&reply).await?;
        }
        let last = match work.await {
            Ok(Ok(last)) => last,
            Ok(Err(error)) => R::failed(error.into()),
            Err(_) => {
                R::failed(NotDone::bug("could not produce the reply: a bug in this program, see its log"))
            }
        };
        self.send_line(&last).await
    }
}
