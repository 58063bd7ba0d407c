//! The daemon's side of a control socket.

use std::io;
use std::ops::ControlFlow;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::{LINE_BYTES, Reply};

/// Most clients at once.
const MAX_CLIENTS: usize = 16;
/// How long a client may take over a request or its bytes, and over taking an answer.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// A long answer has a line this often, so that its client knows that the daemon is at it.
pub const PROGRESS: Duration = Duration::from_secs(5);
/// Pause after a failed `accept`.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long clients have to end after a stop.
const STOP_DEADLINE: Duration = Duration::from_secs(5);

/// Takes a line of an answer; `Break`: the client has gone.
pub type Say<'a, R> = &'a mut dyn FnMut(R) -> ControlFlow<()>;

/// What a daemon does for its commands.
pub trait Handler: Send + Sync + 'static {
    /// What it is asked.
    type Request: DeserializeOwned + Send;
    /// What it answers.
    type Reply: Reply;

    /// Does it, and says all lines of the answer through the last. An error ends the connection.
    fn answer(
        &self,
        request: Self::Request,
        client: &mut Conversation,
    ) -> impl Future<Output = io::Result<()>> + Send;
}

/// The socket cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// A daemon answers there.
    #[error("another process listens on {0}")]
    InUse(PathBuf),
    /// The system refuses it.
    #[error("cannot make the control socket {path}")]
    Io {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// A control socket that listens; [`Control::serve`] opens it.
#[derive(Debug)]
pub struct Control {
    listener: UnixListener,
    socket: PathBuf,
}

impl Control {
    /// Makes the socket, in place of one that a dead process left.
    ///
    /// # Errors
    /// [`ListenError`].
    pub fn listen(socket: &Path) -> Result<Self, ListenError> {
        if std::os::unix::net::UnixStream::connect(socket).is_ok() {
            return Err(ListenError::InUse(socket.to_owned()));
        }
        let listener = bind(socket).map_err(|source| ListenError::Io { path: socket.to_owned(), source })?;
        Ok(Self { listener, socket: socket.to_owned() })
    }

    /// Answers clients until `stop` becomes true (or its sender is gone), and removes the socket.
    pub async fn serve<H: Handler>(self, handler: Arc<H>, mut stop: watch::Receiver<bool>) {
        let mut clients = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                _ = stop.wait_for(|stop| *stop) => break,
                Some(_) = clients.join_next(), if !clients.is_empty() => continue,
                accepted = self.listener.accept(), if clients.len() < MAX_CLIENTS => accepted,
            };
            match accepted {
                Ok((stream, _)) => {
                    clients.spawn(serve_client(stream, Arc::clone(&handler), stop.clone()));
                }
                Err(error) => {
                    tracing::warn!(%error, "Could not take a control connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        if let Err(error) = std::fs::remove_file(&self.socket) {
            tracing::debug!(%error, "Could not remove the control socket");
        }
        let all_ended = async { while clients.join_next().await.is_some() {} };
        if timeout(STOP_DEADLINE, all_ended).await.is_err() {
            tracing::warn!(clients = clients.len(), "Cut control connections that did not end in time");
        }
    }
}

/// Under a name of its own first: nobody can connect before the mode is right, and a left-over is replaced at once.
fn bind(path: &Path) -> io::Result<UnixListener> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}", std::process::id()));
    let making = path.with_file_name(name);
    match std::fs::remove_file(&making) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&making)?;
    std::fs::set_permissions(&making, std::fs::Permissions::from_mode(0o660))?;
    // A socket does not outlive its daemon: it need not be on stable storage.
    std::fs::rename(&making, path)?;
    Ok(listener)
}

async fn serve_client<H: Handler>(stream: UnixStream, handler: Arc<H>, mut stop: watch::Receiver<bool>) {
    let mut client = Conversation { stream: BufReader::new(stream) };
    loop {
        let request = tokio::select! {
            _ = stop.wait_for(|stop| *stop) => return,
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
}

impl Conversation {
    /// The next request; `None` at the end of the connection, or after a line that is none.
    async fn request<H: Handler>(&mut self) -> io::Result<Option<H::Request>> {
        let mut line = Vec::new();
        let mut limited = (&mut self.stream).take(LINE_BYTES as u64);
        timeout(PATIENCE, limited.read_until(b'\n', &mut line)).await??;
        if line.is_empty() {
            return Ok(None);
        }
        let wrong = match serde_json::from_slice(&line) {
            Ok(request) if line.ends_with(b"\n") => return Ok(Some(request)),
            Ok(_) => "a request must end with a line end".to_owned(),
            Err(_) if line.len() == LINE_BYTES => format!("a request has at most {LINE_BYTES} bytes"),
            Err(error) => format!("not a request: {error}"),
        };
        self.say(&H::Reply::failed(wrong)).await?;
        Ok(None)
    }

    /// Says a line of the answer.
    ///
    /// # Errors
    /// The client has gone, or does not take it.
    pub async fn say(&mut self, reply: &impl Serialize) -> io::Result<()> {
        let mut line = serde_json::to_vec(reply)?;
        line.push(b'\n');
        self.send(&line).await
    }

    /// Sends bytes that belong to the answer.
    ///
    /// # Errors
    /// The client has gone, or does not take them.
    pub async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        timeout(PATIENCE, self.stream.get_mut().write_all(bytes)).await?
    }

    /// Reads bytes that belong to the request, all of them.
    ///
    /// # Errors
    /// The client has gone, or does not send them.
    pub async fn read_exact(&mut self, bytes: &mut [u8]) -> io::Result<()> {
        timeout(PATIENCE, self.stream.read_exact(bytes)).await??;
        Ok(())
    }

    /// The user who asks: the kernel's word, not the client's.
    ///
    /// # Errors
    /// Those of the system.
    pub fn user(&self) -> io::Result<u32> {
        Ok(self.stream.get_ref().peer_cred()?.uid())
    }

    /// An answer of many lines, made by a thread of its own because it blocks. `make` gives the last line, or why there is
    /// none. A client that has gone ends it at its next line.
    ///
    /// # Errors
    /// The client has gone, or does not take them.
    pub async fn stream_of<R: Reply>(
        &mut self,
        make: impl FnOnce(Say<'_, R>) -> Result<R, String> + Send + 'static,
    ) -> io::Result<()> {
        let (lines, mut replies) = mpsc::channel(64);
        let work = tokio::task::spawn_blocking(move || {
            make(&mut |reply| match lines.blocking_send(reply) {
                Ok(()) => ControlFlow::Continue(()),
                Err(_) => ControlFlow::Break(()),
            })
        });
        while let Some(reply) = replies.recv().await {
            self.say(&reply).await?;
        }
        let last = match work.await {
            Ok(Ok(last)) => last,
            Ok(Err(reason)) => R::failed(reason),
            Err(_) => R::failed("the answer could not be made".to_owned()),
        };
        self.say(&last).await
    }
}
