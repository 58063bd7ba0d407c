//! The daemon's side of the control socket.

use std::io;
use std::ops::ControlFlow;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use pgw_bundle::keys::Recipient;
use pgw_core::transaction::{Body, Gateway, Lane, Position, Practice};
use pgw_outbox::Submission;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::ingest::control::answers::{Say, list, show, verify_lanes};
use crate::ingest::control::carried;
use crate::ingest::control::kept::Kept;
use crate::ingest::control::{LINE_BYTES, Receipt, Reply, Request, quarantined};
use crate::ingest::{Budget, Counters, count};
use crate::uplink::{Orders, ResendProgress, Resent};

/// Most clients at once.
const MAX_CLIENTS: usize = 16;
/// How long a client may take over a request or its body, and over taking an answer.
const PATIENCE: Duration = Duration::from_secs(60);
/// A long work says so this often.
const PROGRESS: Duration = Duration::from_secs(5);
/// How long a body waits for the memory that all doors share.
pub(super) const BUDGET_WAIT: Duration = Duration::from_secs(2);
/// Pause after a failed `accept`.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long clients have to end after a stop.
const STOP_DEADLINE: Duration = Duration::from_secs(5);
/// Longest type, content type and key.
const NAME_BYTES: usize = 256;

/// Gives the status document: the fields of health, and `lanes`.
pub type StatusSource = Arc<dyn Fn() -> serde_json::Value + Send + Sync>;

/// What the control socket is told by the configuration.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where the socket is made; its directory exists.
    pub socket: PathBuf,
    /// Whose gateway this is, for the `source` of transactions.
    pub practice: Practice,
    /// The gateway's id, likewise.
    pub gateway: Gateway,
    /// Largest body that is read.
    pub max_body_bytes: u64,
    /// The hubs that can open a bundle.
    pub recipients: Vec<Recipient>,
}

/// The socket cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Somebody answers there.
    #[error("another process listens on {0}")]
    InUse(PathBuf),
    /// The system said no.
    #[error("cannot make the control socket {path}")]
    Io {
        /// Where.
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
    settings: Settings,
    orders: Option<Orders>,
}

/// What all clients share.
pub(super) struct Shared<K> {
    pub(super) settings: Settings,
    pub(super) kept: K,
    status: StatusSource,
    pub(super) counters: Arc<Counters>,
    pub(super) budget: Budget,
    pub(super) orders: Option<Orders>,
}

impl Control {
    /// Makes the socket, in place of one that a dead process left.
    ///
    /// # Errors
    /// [`ListenError`].
    pub fn listen(settings: Settings) -> Result<Self, ListenError> {
        let path = settings.socket.clone();
        if std::os::unix::net::UnixStream::connect(&path).is_ok() {
            return Err(ListenError::InUse(path));
        }
        let listener = bind(&path).map_err(|source| ListenError::Io { path, source })?;
        Ok(Self { listener, settings, orders: None })
    }

    /// Where a person's orders to the uplink go.
    #[must_use]
    pub fn with_orders(mut self, orders: Orders) -> Self {
        self.orders = Some(orders);
        self
    }

    /// Answers clients until `stop` becomes true (or its sender is gone), and removes the socket.
    pub async fn serve<K: Kept>(
        self,
        kept: K,
        status: StatusSource,
        counters: Arc<Counters>,
        budget: Budget,
        mut stop: watch::Receiver<bool>,
    ) {
        let socket = self.settings.socket.clone();
        let shared =
            Arc::new(Shared { settings: self.settings, kept, status, counters, budget, orders: self.orders });
        let mut clients = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                _ = stop.wait_for(|stop| *stop) => break,
                Some(_) = clients.join_next(), if !clients.is_empty() => continue,
                accepted = self.listener.accept(), if clients.len() < MAX_CLIENTS => accepted,
            };
            match accepted {
                Ok((stream, _)) => {
                    clients.spawn(serve_client(stream, Arc::clone(&shared), stop.clone()));
                }
                Err(error) => {
                    tracing::warn!(%error, "Could not take a control connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        if let Err(error) = std::fs::remove_file(&socket) {
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
    std::fs::rename(&making, path)?;
    Ok(listener)
}

async fn serve_client<K: Kept>(stream: UnixStream, shared: Arc<Shared<K>>, mut stop: watch::Receiver<bool>) {
    let mut client = Client { stream: BufReader::new(stream), shared };
    loop {
        let request = tokio::select! {
            _ = stop.wait_for(|stop| *stop) => return,
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

struct Client<K> {
    stream: BufReader<UnixStream>,
    shared: Arc<Shared<K>>,
}

impl<K: Kept> Client<K> {
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
        let shared = Arc::clone(&self.shared);
        match request {
            Request::Submit { lane, event_type, content_type, key, body_bytes } => {
                let reply = self.submit(lane, event_type, content_type, key, body_bytes).await?;
                self.say(&reply).await
            }
            Request::Status {} => {
                // The source may look at the disk.
                let status = tokio::task::spawn_blocking(move || (shared.status)());
                let reply = match status.await {
                    Ok(status) => Reply::Status { status },
                    Err(_) => Reply::Failed { reason: "the status could not be made".to_owned() },
                };
                self.say(&reply).await
            }
            Request::List { lane, from, limit } => {
                self.stream_of(move |say| list(&shared.kept, lane.as_ref(), from, limit, say)).await
            }
            Request::Show { lane, which } => {
                self.stream_of(move |say| show(&shared.kept, lane.as_ref(), which, say)).await
            }
            Request::Verify { lane } => {
                self.stream_of(move |say| verify_lanes(&shared.kept, lane.as_ref(), say)).await
            }
            Request::Mark { lane } => {
                let confirmed = shared.kept.mark(&lane).map_or(0, |mark| mark.position);
                self.say(&Reply::Mark { confirmed }).await
            }
            Request::QuarantineList {} => {
                self.stream_of(move |say| quarantined::list(&shared.kept, say)).await
            }
            Request::QuarantineShow { id } => {
                self.stream_of(move |say| quarantined::show(&shared.kept, id, say)).await
            }
            Request::QuarantineBytes { id } => {
                let mut share = shared.budget.share();
                let (reply, bytes) = quarantined::bytes(&shared, id, self.user()?, &mut share).await;
                self.say(&reply).await?;
                timeout(PATIENCE, self.stream.get_mut().write_all(&bytes)).await?
            }
            Request::QuarantineRelease { id, lane, event_type, content_type } => {
                let wanted = quarantined::Wanted { lane, event_type, content_type };
                let reply = quarantined::release(&shared, id, wanted, self.user()?).await;
                self.say(&reply).await
            }
            Request::QuarantineDiscard { id, reason } => {
                let reply = quarantined::discard(&shared, id, reason, self.user()?).await;
                self.say(&reply).await
            }
            Request::Export { lane, from } => {
                self.stream_of(move |say| {
                    let Settings { practice, gateway, recipients, .. } = &shared.settings;
                    carried::export(&shared.kept, (practice, gateway), recipients, lane.as_ref(), from, say)
                })
                .await
            }
            Request::Void { lane, from, through, reason, act } => {
                let reply = carried::void(shared, lane, (from, through), reason, act).await;
                self.say(&reply).await
            }
            Request::Again { lane } => {
                let reply = carried::again(shared.orders.as_ref(), lane).await;
                self.say(&reply).await
            }
            Request::Resend { lane, from, through } => self.resend(lane, (from, through)).await,
            Request::Receipt(line) => {
                let reply = carried::receipt(&shared.kept, shared.orders.as_ref(), line).await;
                self.say(&reply).await
            }
        }
    }

    /// Says how far it has come every few seconds, so that the client knows that somebody is there.
    async fn resend(&mut self, lane: Lane, range: (Position, Position)) -> io::Result<()> {
        let failed = |reason: &str| Reply::Failed { reason: reason.to_owned() };
        let told = match self.shared.orders.clone() {
            Some(orders) => orders.resend(lane.clone(), range).await.map_err(|error| error.to_string()),
            None => Err("there is no uplink".to_owned()),
        };
        let mut told = match told {
            Ok(told) => told,
            Err(reason) => return self.say(&failed(&reason)).await,
        };
        loop {
            let gone = timeout(PROGRESS, told.wait_for(|again| again.ended.is_some()))
                .await
                .is_ok_and(|ended| ended.is_err());
            let ResendProgress { arrived, ended } = told.borrow().clone();
            let reply = match ended {
                Some(Ok(Resent { count, missing, unheard })) => {
                    Reply::Resent { lane: lane.clone(), count, missing, unheard }
                }
                Some(Err(reason)) => failed(&reason),
                None if gone => failed("the uplink has ended"),
                None => Reply::Progress { lane: lane.clone(), position: arrived, tail: range.1 },
            };
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
        let settings = &self.shared.settings;
        if !is_name(&event_type) {
            return refused(false, "a type has 1 to 256 letters, digits, and . - _ : /".to_owned());
        }
        if !is_media_type(&content_type) {
            return refused(false, "a content type is a media type, at most 256 characters".to_owned());
        }
        if key.len() > NAME_BYTES {
            return refused(false, format!("a key has at most {NAME_BYTES} bytes"));
        }
        let limit = settings.max_body_bytes;
        let size = match usize::try_from(body_bytes) {
            Ok(size) if body_bytes <= limit => size,
            _ => {
                return refused(
                    false,
                    format!("the body has {body_bytes} bytes, more than the limit of {limit}"),
                );
            }
        };
        let mut share = self.shared.budget.share();
        if timeout(BUDGET_WAIT, share.grow_to(size)).await.is_err() {
            return refused(true, "too many large messages are under way".to_owned());
        }
        let source = format!("urn:pgw:{}:{}:cli", settings.practice, settings.gateway);
        self.say(&Reply::Send {}).await?;
        let mut body = vec![0; size];
        timeout(PATIENCE, self.stream.read_exact(&mut body)).await??;
        let counters = Arc::clone(&self.shared.counters);
        count(&counters.received);
        let submission = Submission {
            lane: lane.clone(),
            kind: kind(&content_type).to_owned(),
            event_type,
            content_type,
            source,
            key,
            correlation_id: String::new(),
            test_data: false,
            body: Body::new(Bytes::from(body)),
        };
        match self.shared.kept.submit(submission).await {
            Ok(accepted) => {
                counters.count_accepted(&accepted);
                Ok(Reply::Accepted(Receipt::new(lane, accepted)))
            }
            Err(refusal) => {
                // Not to quarantine: who submits by hand has the file, and reads why.
                count(if refusal.is_temporary() { &counters.unavailable } else { &counters.refused });
                Ok(refusal.into())
            }
        }
    }

    /// An answer of many lines, made by a thread of its own because it reads the disk. A client that has gone ends it.
    async fn stream_of(
        &mut self,
        make: impl FnOnce(Say<'_>) -> Result<(), String> + Send + 'static,
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
            Ok(Ok(())) => Reply::End {},
            Ok(Err(reason)) => Reply::Failed { reason },
            Err(_) => Reply::Failed { reason: "the answer could not be made".to_owned() },
        };
        self.say(&last).await
    }
}

pub(super) fn is_name(text: &str) -> bool {
    (1..=NAME_BYTES).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-:/".contains(&b))
}

pub(super) fn is_media_type(text: &str) -> bool {
    (3..=NAME_BYTES).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_graphic() || b == b' ')
        && text.split_once('/').is_some_and(|(kind, rest)| !kind.is_empty() && !rest.is_empty())
}

/// CloudEvents `kind`, from the media type.
pub(super) fn kind(content_type: &str) -> &'static str {
    let name = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    match name.as_str() {
        "application/edifact" => "edifact",
        name if name.starts_with("application/hl7-v2") => "hl7v2",
        name if name.starts_with("application/fhir+") => "fhir",
        _ => "opaque",
    }
}

#[cfg(test)]
#[path = "server_tests.rs"]
pub(crate) mod tests;
