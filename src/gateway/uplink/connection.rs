//! One connection, from the name look-up to the SUBACK, and then its events in batches.
//!
//! Nothing here outlives an error: the next connection has a new session and a new stream.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use pgw_host::config::Upstream;
use pgw_link::failure::Failure;
use pgw_link::phase::Phase;
use pgw_link::session::{Frame, Note, Opening, Parcel, Session};
use pgw_link::transport;
use rumqttc::v5::ConnectionError;
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{Filter, LastWill, Publish, SubscribeReasonCode};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_rustls::rustls::ClientConfig;

/// Batches of events that may wait for the driver; then the socket is not read any more.
const BATCHES: usize = 16;

/// What a connection needs to know.
pub(super) struct Plan<'a> {
    pub(super) upstream: &'a Upstream,
    /// Addresses of the last successful look-up, renewed here.
    pub(super) known: &'a mut Vec<SocketAddr>,
    pub(super) tls: Option<Arc<ClientConfig>>,
    pub(super) client_id: String,
    pub(super) will: LastWill,
    pub(super) filters: Vec<String>,
    pub(super) keep_alive: Duration,
    pub(super) phase_timeout: Duration,
    pub(super) inflight: u16,
    pub(super) max_incoming_packet_bytes: u32,
}

/// What the broker allows.
#[derive(Debug, Clone, Copy)]
pub(super) struct Allowed {
    /// Unacknowledged publishes.
    pub(super) inflight: u16,
    /// Whole packet, bytes.
    pub(super) packet_bytes: Option<u64>,
}

/// A live connection. Dropping it ends its task and its socket at once.
pub(super) struct Connection {
    parcels: mpsc::Sender<Vec<Parcel>>,
    /// Handed over, and on the way with the next [`Connection::send`].
    bundle: Vec<Parcel>,
    notes: mpsc::Receiver<Vec<Note>>,
    session: Task<ConnectionError>,
    pub(super) allowed: Allowed,
    /// Came before the SUBACK.
    early: Vec<Note>,
}

/// A task that ends with its owner.
struct Task<T>(JoinHandle<T>);

impl<T> Drop for Task<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Connection {
    /// Makes one. `phase` is told how far it has come.
    pub(super) async fn open(plan: Plan<'_>, mut phase: impl FnMut(Phase)) -> Result<Self, Failure> {
        let limit = plan.phase_timeout;
        phase(Phase::Dns);
        transport::resolve(plan.upstream, plan.known, limit).await?;
        phase(Phase::Tcp);
        let socket = transport::open(plan.known, limit).await?;
        let stream: Box<dyn transport::Stream> = match &plan.tls {
            Some(config) => {
                phase(Phase::Tls);
                transport::secure(socket, &plan.upstream.host, config.clone(), limit).await?
            }
            None => Box::new(socket),
        };
        phase(Phase::Mqtt);
        let opening = Opening {
            client_id: plan.client_id,
            will: plan.will,
            // The least that brokers take well.
            keep_alive: plan.keep_alive.max(Duration::from_secs(5)),
            inflight: plan.inflight,
            receive_maximum: plan.inflight,
            maximum_packet_bytes: plan.max_incoming_packet_bytes,
        };
        let (session, connack) = match timeout(limit, Session::open(stream, opening)).await {
            Ok(opened) => opened.map_err(|error| Failure::session(Phase::Mqtt, &error))?,
            Err(_) => return Err(Failure::timeout(Phase::Mqtt, limit.as_secs())),
        };
        let allowed = connack.properties.map_or(
            Allowed { inflight: plan.inflight, packet_bytes: None },
            |properties| Allowed {
                inflight: properties.receive_max.unwrap_or(u16::MAX).min(plan.inflight),
                packet_bytes: properties.max_packet_size.map(u64::from),
            },
        );

        phase(Phase::Subscribe);
        // Bundles are bounded by what may be outstanding, so that handing over never waits.
        let (parcels, handed) = mpsc::channel(usize::from(plan.inflight) + 64);
        let (sender, notes) = mpsc::channel(BATCHES);
        let session = Task(tokio::spawn(run(session, handed, sender)));
        let bundle = Vec::new();
        let mut connection = Self { parcels, bundle, notes, session, allowed, early: Vec::new() };
        let filters = plan.filters.iter().map(|filter| Filter::new(filter.clone(), QoS::AtLeastOnce));
        connection.bundle.push(Parcel::Subscribe(filters.collect()));
        if !connection.send() {
            return Err(connection.failure(Phase::Subscribe).await);
        }
        let suback = connection
            .wait_for(Phase::Subscribe, limit, |note| match note {
                Note::Subscribed(suback) => Ok(suback),
                other => Err(other),
            })
            .await?;
        for (filter, code) in plan.filters.iter().zip(&suback.return_codes) {
            if !matches!(code, SubscribeReasonCode::Success(_)) {
                return Err(Failure::new(
                    Phase::Subscribe,
                    format!(
                        "the broker refuses the subscription to {filter}: {code:?}: does its ACL know this gateway?"
                    ),
                ));
            }
        }
        Ok(connection)
    }

    /// Waits for one note and keeps the others.
    async fn wait_for<T>(
        &mut self,
        phase: Phase,
        limit: Duration,
        mut take: impl FnMut(Note) -> Result<T, Note>,
    ) -> Result<T, Failure> {
        let deadline = Instant::now() + limit;
        loop {
            let batch = match timeout_at(deadline, self.notes.recv()).await {
                Ok(Some(batch)) => batch,
                Ok(None) => return Err(self.failure(phase).await),
                Err(_) => return Err(Failure::timeout(phase, limit.as_secs())),
            };
            let mut found = None;
            for note in batch {
                match (&found, take(note)) {
                    (None, Ok(it)) => found = Some(it),
                    (Some(_), Ok(_)) => {}
                    (_, Err(other)) => self.early.push(other),
                }
            }
            if let Some(found) = found {
                return Ok(found);
            }
        }
    }

    /// The next events; `None`: the connection has ended, and [`Connection::failure`] says why. Cancelling it loses nothing.
    pub(super) async fn notes(&mut self) -> Option<Vec<Note>> {
        if !self.early.is_empty() {
            return Some(std::mem::take(&mut self.early));
        }
        self.notes.recv().await
    }

    /// More events that are there already.
    pub(super) fn more_notes(&mut self) -> Option<Vec<Note>> {
        self.notes.try_recv().ok()
    }

    /// Gives a batch back: it comes first the next time.
    pub(super) fn put_back(&mut self, batch: Vec<Note>) {
        self.early = batch;
    }

    /// Hands over a publish (QoS 1). It goes with the next [`Connection::send`].
    pub(super) fn publish(&mut self, topic: &str, retain: bool, payload: Bytes) {
        let mut publish = Publish::new(topic, QoS::AtLeastOnce, payload, None);
        publish.retain = retain;
        self.bundle.push(Parcel::Publish(publish));
    }

    /// The same for one that is written already.
    pub(super) fn frame(&mut self, frame: Frame) {
        self.bundle.push(Parcel::Frame(frame));
    }

    /// Sends what was handed over, together. False: the session has ended, and knows why.
    pub(super) fn send(&mut self) -> bool {
        self.bundle.is_empty() || self.parcels.try_send(std::mem::take(&mut self.bundle)).is_ok()
    }

    /// Why it ended, once [`Connection::notes`] has given `None`.
    pub(super) async fn failure(&mut self, phase: Phase) -> Failure {
        match timeout(Duration::from_secs(1), &mut self.session.0).await {
            Ok(Ok(error)) => Failure::session(phase, &error),
            _ => Failure::stream(phase, None),
        }
    }

    /// A clean end: DISCONNECT, so that the broker keeps the will to itself.
    pub(super) async fn close(mut self, limit: Duration) {
        self.bundle.push(Parcel::Disconnect);
        if !self.send() {
            return;
        }
        // The broker closes when it has read it.
        let deadline = Instant::now() + limit;
        let _ = timeout_at(deadline, async { while self.notes.recv().await.is_some() {} }).await;
    }
}

/// Drives a session until it fails; what has happened goes out in batches.
async fn run(
    mut session: Session<Box<dyn transport::Stream>>,
    mut parcels: mpsc::Receiver<Vec<Parcel>>,
    notes: mpsc::Sender<Vec<Note>>,
) -> ConnectionError {
    loop {
        let mut batch = Vec::new();
        let ended = session.next(&mut parcels, &mut batch).await.err();
        if !batch.is_empty() && notes.send(batch).await.is_err() {
            return ended.unwrap_or(ConnectionError::RequestsDone);
        }
        if let Some(error) = ended {
            return error;
        }
    }
}
