//! One connection, from the name look-up to the SUBACK, and then its events in batches.
//!
//! Nothing here outlives an error: the next connection has a new client, a new event loop and a new bridge.

use std::future::{Future as _, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{
    ConnAck, ConnectProperties, Filter, LastWill, Packet, PubAckReason, Publish, PublishProperties, SubAck,
    SubscribeReasonCode,
};
use rumqttc::v5::{AsyncClient, ConnectionError, Event, EventLoop, MqttOptions};
use rumqttc::{Outgoing, Transport};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_rustls::rustls::ClientConfig;

use super::failure::Failure;
use super::settings::Upstream;
use super::transport::{self, Landing};
use crate::health::Phase;

/// Events handed over at once, at most: small enough that the window is refilled while the rest is being written.
const BATCH: usize = 64;
/// Batches that may wait for the driver; then the socket is not read any more.
const BATCHES: usize = 16;

/// What happened on the connection.
#[derive(Debug)]
pub(super) enum Note {
    /// The oldest publish handed over is written under this packet identifier.
    Written(u16),
    /// A PUBACK; `Err`: its reason code.
    Acknowledged(u16, Result<(), u8>),
    /// A publish came.
    Message(Box<Publish>),
    /// Anything else came from the broker.
    Heard,
    Connected(Box<ConnAck>),
    Subscribed(Box<SubAck>),
}

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

/// A live connection. Dropping it ends its tasks and its socket at once.
pub(super) struct Connection {
    client: AsyncClient,
    notes: mpsc::Receiver<Vec<Note>>,
    events: Task<ConnectionError>,
    bridge: Task<io::Result<()>>,
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
        let landing = Landing::new().map_err(|error| {
            Failure::new(Phase::Mqtt, format!("the inner socket could not be made: {error}"))
        })?;
        let options = mqtt_options(&plan, landing.name());
        let bridge = Task(tokio::spawn(landing.carry(stream)));
        // Room for everything that the window allows and our own messages, so that handing over never waits.
        let capacity = usize::from(plan.inflight) + 64;
        let (client, event_loop) = AsyncClient::new(options, capacity);
        let (sender, notes) = mpsc::channel(BATCHES);
        let events = Task(tokio::spawn(run_event_loop(event_loop, sender)));
        let allowed = Allowed { inflight: plan.inflight, packet_bytes: None };
        let mut connection = Self { client, notes, events, bridge, allowed, early: Vec::new() };

        let connack = connection
            .wait_for(Phase::Mqtt, limit, |note| match note {
                Note::Connected(connack) => Ok(connack),
                other => Err(other),
            })
            .await?;
        if let Some(properties) = connack.properties {
            let inflight = properties.receive_max.unwrap_or(u16::MAX).min(plan.inflight);
            connection.allowed =
                Allowed { inflight, packet_bytes: properties.max_packet_size.map(u64::from) };
        }

        phase(Phase::Subscribe);
        let filters = plan.filters.iter().map(|filter| Filter::new(filter.clone(), QoS::AtLeastOnce));
        connection
            .client
            .try_subscribe_many(filters)
            .map_err(|_| Failure::new(Phase::Subscribe, "the subscriptions could not be sent"))?;
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

    /// Hands a publish (QoS 1) to rumqttc. False: there is no room, which the window rules out on a sound connection.
    pub(super) fn publish(
        &self,
        topic: &str,
        retain: bool,
        payload: bytes::Bytes,
        properties: Option<PublishProperties>,
    ) -> bool {
        let topic = topic.to_owned();
        match properties {
            Some(properties) => {
                self.client.try_publish_with_properties(topic, QoS::AtLeastOnce, retain, payload, properties)
            }
            None => self.client.try_publish(topic, QoS::AtLeastOnce, retain, payload),
        }
        .is_ok()
    }

    /// Why it ended, once [`Connection::notes`] has given `None`.
    pub(super) async fn failure(&mut self, phase: Phase) -> Failure {
        let grace = Duration::from_secs(1);
        if let Ok(Ok(error)) = timeout(grace, &mut self.events.0).await
            && let Some(failure) = Failure::mqtt(phase, &error)
        {
            return failure;
        }
        match timeout(grace, &mut self.bridge.0).await {
            Ok(Ok(Err(error))) => Failure::stream(phase, Some(&error)),
            _ => Failure::stream(phase, None),
        }
    }

    /// A clean end: DISCONNECT, so that the broker keeps the will to itself.
    pub(super) async fn close(mut self, limit: Duration) {
        if self.client.try_disconnect().is_err() {
            return;
        }
        let deadline = Instant::now() + limit;
        let ended = async {
            while self.notes.recv().await.is_some() {}
            let _ = (&mut self.bridge.0).await;
        };
        let _ = timeout_at(deadline, ended).await;
    }
}

fn mqtt_options(plan: &Plan<'_>, address: &str) -> MqttOptions {
    let mut options = MqttOptions::new(plan.client_id.clone(), address, 0);
    options
        .set_transport(Transport::Unix)
        .set_clean_start(true)
        .set_keep_alive(plan.keep_alive.max(Duration::from_secs(5)))
        // Ours comes first, and has the better sentence.
        .set_connection_timeout(plan.phase_timeout.as_secs().saturating_add(2))
        .set_outgoing_inflight_upper_limit(plan.inflight)
        .set_last_will(plan.will.clone());
    let mut properties = ConnectProperties::new();
    properties.session_expiry_interval = Some(0);
    properties.receive_maximum = Some(plan.inflight);
    properties.max_packet_size = Some(plan.max_incoming_packet_bytes);
    options.set_connect_properties(properties);
    options
}

/// Drives rumqttc until it fails. `poll()` is never cancelled between two of its awaits: it would leave a packet
/// recorded but unwritten. Events go out in batches, whenever it would wait.
async fn run_event_loop(mut event_loop: EventLoop, notes: mpsc::Sender<Vec<Note>>) -> ConnectionError {
    let mut batch = Vec::with_capacity(BATCH);
    loop {
        let event = {
            let mut poll = std::pin::pin!(event_loop.poll());
            match poll_fn(|context| Poll::Ready(poll.as_mut().poll(context))).await {
                Poll::Ready(event) => event,
                Poll::Pending => {
                    if !batch.is_empty() && notes.send(std::mem::take(&mut batch)).await.is_err() {
                        return ConnectionError::RequestsDone;
                    }
                    poll.await
                }
            }
        };
        match event {
            Ok(event) => batch.extend(note(event)),
            Err(error) => {
                if !batch.is_empty() {
                    let _ = notes.send(batch).await;
                }
                return error;
            }
        }
        if batch.len() >= BATCH && notes.send(std::mem::take(&mut batch)).await.is_err() {
            return ConnectionError::RequestsDone;
        }
    }
}

fn note(event: Event) -> Option<Note> {
    Some(match event {
        Event::Outgoing(Outgoing::Publish(packet)) => Note::Written(packet),
        Event::Outgoing(_) => return None,
        Event::Incoming(Packet::PubAck(ack)) => Note::Acknowledged(ack.pkid, reason(ack.reason)),
        Event::Incoming(Packet::Publish(publish)) => Note::Message(Box::new(publish)),
        Event::Incoming(Packet::ConnAck(connack)) => Note::Connected(Box::new(connack)),
        Event::Incoming(Packet::SubAck(suback)) => Note::Subscribed(Box::new(suback)),
        Event::Incoming(_) => Note::Heard,
    })
}

/// MQTT 5 §3.4.2.1: anything but 0 is not delivered, "no matching subscribers" included.
fn reason(reason: PubAckReason) -> Result<(), u8> {
    match reason {
        PubAckReason::Success => Ok(()),
        PubAckReason::NoMatchingSubscribers => Err(0x10),
        PubAckReason::UnspecifiedError => Err(0x80),
        PubAckReason::ImplementationSpecificError => Err(0x83),
        PubAckReason::NotAuthorized => Err(0x87),
        PubAckReason::TopicNameInvalid => Err(0x90),
        PubAckReason::PacketIdentifierInUse => Err(0x91),
        PubAckReason::QuotaExceeded => Err(0x97),
        PubAckReason::PayloadFormatInvalid => Err(0x99),
    }
}
