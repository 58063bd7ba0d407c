//! The daemon's side of the control socket.

use std::io;
use std::ops::ControlFlow;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use pgw_core::text::chain;
use pgw_core::transaction::{Body, Lane, Position};
use pgw_host::accept::{Accept, Listener, told_to};
use pgw_outbox::{Outbox, Submission};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

use crate::control::answers::{Say, list, show, verify_lanes};
use crate::control::context::{BUDGET_WAIT, ControlConfig, ControlContext, RequestError};
use crate::control::{LINE_BYTES, Reply, Request, hand_carry, orders, quarantined};
use crate::ingest::slip::AcceptanceSlip;
use crate::ingest::{Budget, Counters, StatusSource, count, media};
use crate::listing;
use crate::uplink::Orders;

/// Most clients at once; more wait in the kernel's queue.
const MAX_CLIENTS: usize = 16;
/// How long a client may take over a request or its body, and over taking an answer.
const PATIENCE: Duration = Duration::from_secs(60);
/// A long work says so this often.
const PROGRESS: Duration = Duration::from_secs(5);
/// Longest key.
const KEY_BYTES: usize = 256;

/// The socket cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum ControlSocketError {
    /// Somebody answers there.
    #[error("another process listens on {0}")]
    InUse(PathBuf),
    /// The system said no.
    #[error("cannot make the control socket {path}")]
    Io {
        /// As configured.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
}

/// A control socket that listens; [`ControlSocket::serve`] opens it.
#[derive(Debug)]
pub struct ControlSocket {
    listener: Socket,
    config: ControlConfig,
    orders: Option<Orders>,
}

/// Removes its file when nobody is to connect any more.
#[derive(Debug)]
struct Socket {
    listener: UnixListener,
    path: PathBuf,
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
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::debug!(%error, "Could not remove the control socket");
        }
    }
}

impl ControlSocket {
    /// Makes the socket, in place of one that a dead process left.
    ///
    /// # Errors
    /// [`ControlSocketError`].
    pub fn listen(config: ControlConfig) -> Result<Self, ControlSocketError> {
        let path = config.socket.clone();
        if std::os::unix::net::UnixStream::connect(&path).is_ok() {
            return Err(ControlSocketError::InUse(path));
        }
        match bind(&path) {
            Ok(listener) => Ok(Self { listener: Socket { listener, path }, config, orders: None }),
            Err(source) => Err(ControlSocketError::Io { path, source }),
        }
    }

    /// Where a person's orders to the uplink go.
    #[must_use]
    pub fn with_orders(mut self, orders: Orders) -> Self {
        self.orders = Some(orders);
        self
    }

    /// Answers clients until `stop` becomes true (or its sender is gone), and removes the socket.
    pub async fn serve(
        self,
        outbox: Outbox,
        status: StatusSource,
        counters: Arc<Counters>,
        budget: Budget,
        stop: watch::Receiver<bool>,
    ) {
        let Self { listener, config, orders } = self;
        let context = Arc::new(ControlContext { config, outbox, status, counters, budget, orders });
        let client = |stream, ()| serve_client(stream, Arc::clone(&context), stop.clone());
        let accept = Accept { name: "control", listener, most_clients: MAX_CLIENTS };
        accept.serve(|(), _| Ok(()), client, stop.clone()).await;
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
    // The socket need not last: the next start makes it again.
    std::fs::rename(&making, path)?;
    Ok(listener)
}

async fn serve_client(stream: UnixStream, context: Arc<ControlContext>, mut stop: watch::Receiver<bool>) {
    let mut client = Client { stream: BufReader::new(stream), context };
    loop {
        let request = tokio::select! {
            () = told_to(&mut stop) => return,
            request = client.request() => request,
        };
        let answered = match request {
            Ok(Some(request)) => client.answer(request).await,
            Ok(None) => return,
            Err(error) => Err(error),
        };
        if let Err(error) = answered {
            tracing::debug!(%error, "Ended a control connection");
            return;
        }
    }
}

struct Client {
    stream: BufReader<UnixStream>,
    context: Arc<ControlContext>,
}

impl Client {
    /// The next request; `None` at the end of the connection or after one that is none.
    async fn request(&mut self) -> io::Result<Option<Request>> {
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
        self.say(&Reply::Failed { reason: wrong }).await?;
        Ok(None)
    }

    async fn say(&mut self, reply: &Reply) -> io::Result<()> {
        let mut line = serde_json::to_vec(reply)?;
        line.push(b'\n');
        timeout(PATIENCE, self.stream.get_mut().write_all(&line)).await?
    }

    async fn answer(&mut self, request: Request) -> io::Result<()> {
        match request {
            Request::List { .. }
            | Request::Show { .. }
            | Request::Verify { .. }
            | Request::Export { .. }
            | Request::QuarantineList {}
            | Request::QuarantineShow { .. } => self.stream_of(request).await,
            Request::Resend { lane, from, through } => self.resend(lane, (from, through)).await,
            Request::QuarantineBytes { id } => {
                let context = Arc::clone(&self.context);
                let mut share = context.budget.share();
                let (reply, bytes) = quarantined::bytes(&context, id, self.user()?, &mut share).await;
                self.say(&reply).await?;
                timeout(PATIENCE, self.stream.get_mut().write_all(&bytes)).await?
            }
            request => {
                let reply = self.reply_to(request).await?;
                self.say(&reply).await
            }
        }
    }

    /// The one reply to a request that has one.
    async fn reply_to(&mut self, request: Request) -> io::Result<Reply> {
        let context = Arc::clone(&self.context);
        Ok(match request {
            Request::Submit { lane, event_type, content_type, key, body_bytes } => {
                self.submit(lane, event_type, content_type, key, body_bytes).await?
            }
            Request::Mark { lane } => Reply::Mark { confirmed: listing::confirmed(&context.outbox, &lane) },
            Request::QuarantineRelease { id, lane, event_type, content_type } => {
                let wanted = quarantined::Wanted { lane, event_type, content_type };
                quarantined::release(&context, id, wanted, self.user()?).await
            }
            Request::QuarantineDiscard { id, reason } => {
                quarantined::discard(&context, id, reason, self.user()?).await
            }
            Request::Void { lane, from, through, reason, act } => {
                orders::void(context, lane, (from, through), reason, act).await
            }
            Request::RetryHead { lane } => orders::retry_head(context.orders.as_ref(), lane).await,
            Request::Receipt(line) => orders::receipt(&context.outbox, context.orders.as_ref(), line).await,
            // The source may look at the disk.
            Request::Status {} => match tokio::task::spawn_blocking(move || (context.status)()).await {
                Ok(status) => Reply::Status { status },
                Err(_) => Reply::Failed { reason: "the status could not be made".to_owned() },
            },
            // Those of many lines: [`Self::answer`].
            _ => Reply::Failed { reason: "a bug in this program: no single reply".to_owned() },
        })
    }

    /// Says how far it has come every few seconds, so that the client knows that somebody is there.
    async fn resend(&mut self, lane: Lane, range: (Position, Position)) -> io::Result<()> {
        let mut progress = match orders::resend(self.context.orders.as_ref(), &lane, range).await {
            Ok(progress) => progress,
            Err(reason) => return self.say(&Reply::Failed { reason }).await,
        };
        loop {
            let gone = timeout(PROGRESS, progress.wait_for(|progress| progress.ended.is_some()))
                .await
                .is_ok_and(|ended| ended.is_err());
            let reply = orders::resent(progress.borrow().clone(), gone, lane.clone(), range.1);
            self.say(&reply).await?;
            if reply.is_last() {
                return Ok(());
            }
        }
    }

    /// Who asks: the kernel's word, not the client's.
    fn user(&self) -> io::Result<u32> {
        Ok(self.stream.get_ref().peer_cred()?.uid())
    }

    async fn submit(
        &mut self,
        lane: Lane,
        event_type: String,
        content_type: String,
        key: String,
        body_bytes: u64,
    ) -> io::Result<Reply> {
        let refused = |temporary, reason: String| Ok(Reply::Refused { temporary, reason });
        let config = &self.context.config;
        if !media::is_event_type(&event_type) {
            return refused(false, "a type has 1 to 256 letters, digits, and . - _ : /".to_owned());
        }
        if !media::is_media_type(&content_type) {
            return refused(false, "a content type is a media type, at most 256 characters".to_owned());
        }
        if key.len() > KEY_BYTES {
            return refused(false, format!("a key has at most {KEY_BYTES} bytes"));
        }
        let limit = config.max_body_bytes;
        let size = match usize::try_from(body_bytes) {
            Ok(size) if body_bytes <= limit => size,
            _ => {
                return refused(
                    false,
                    format!("the body has {body_bytes} bytes, more than the limit of {limit}"),
                );
            }
        };
        let mut share = self.context.budget.share();
        if timeout(BUDGET_WAIT, share.grow_to(size)).await.is_err() {
            return refused(true, "too many large messages are under way".to_owned());
        }
        let source = format!("urn:pgw:{}:{}:cli", config.practice, config.gateway);
        self.say(&Reply::Send {}).await?;
        let mut body = vec![0; size];
        timeout(PATIENCE, self.stream.read_exact(&mut body)).await??;
        let counters = Arc::clone(&self.context.counters);
        count(&counters.received);
        let submission = Submission {
            lane: lane.clone(),
            kind: media::kind(&content_type).to_owned(),
            event_type,
            content_type,
            source,
            key,
            correlation_id: String::new(),
            test_data: false,
            body: Body::new(Bytes::from(body)),
        };
        match self.context.outbox.submit(submission).await {
            Ok(accepted) => {
                counters.count_accepted(&accepted);
                Ok(Reply::Accepted(AcceptanceSlip::new(lane, &accepted)))
            }
            Err(refusal) => {
                // Not to quarantine: who submits by hand has the file, and reads why.
                counters.count_refused(&refusal);
                Ok(refusal.into())
            }
        }
    }

    /// An answer of many lines, made by a thread of its own because it reads the disk. A client that has gone ends it.
    async fn stream_of(&mut self, request: Request) -> io::Result<()> {
        let (lines, mut replies) = mpsc::channel(64);
        let context = Arc::clone(&self.context);
        let work = tokio::task::spawn_blocking(move || {
            lines_of(&context, request, &mut |reply| match lines.blocking_send(reply) {
                Ok(()) => ControlFlow::Continue(()),
                Err(_) => ControlFlow::Break(()),
            })
        });
        while let Some(reply) = replies.recv().await {
            self.say(&reply).await?;
        }
        let done = work.await.unwrap_or(Err(RequestError::Panicked("the answer could not be made")));
        let last = done.map_or_else(|error| Reply::Failed { reason: chain(&error) }, |()| Reply::End {});
        self.say(&last).await
    }
}

/// Says all lines of an answer that has many. Blocking.
fn lines_of(context: &ControlContext, request: Request, say: Say<'_>) -> Result<(), RequestError> {
    let ControlContext { outbox, config, .. } = context;
    match request {
        Request::List { lane, from, limit } => list(outbox, lane.as_ref(), from, limit, say),
        Request::Show { lane, which } => show(outbox, lane.as_ref(), which, say),
        Request::Verify { lane } => verify_lanes(outbox, lane.as_ref(), say),
        Request::QuarantineList {} => quarantined::list(outbox, say),
        Request::QuarantineShow { id } => quarantined::show(outbox, id, say),
        Request::Export { lane, from } => hand_carry::export(outbox, config, lane.as_ref(), from, say),
        // Those of one reply: [`Client::reply_to`].
        _ => Ok(()),
    }
}

#[cfg(test)]
#[path = "server_tests.rs"]
mod tests;
