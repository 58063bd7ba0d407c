//! A live connection: its session in a task of its own, its events in batches.
//!
//! Nothing here is used again after an error: the next connection has a new session and a new stream.

use std::time::Duration;

use pgw_link::connect::{Allowed, Connected};
use pgw_link::failure::Failure;
use pgw_link::phase::Phase;
use pgw_link::session::{Frame, Outgoing, Session, SessionError, SessionEvent};
use pgw_link::transport;
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::Publish;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout, timeout_at};

use super::speaker::Spoken;

/// Batches of events that may wait for the driver; beyond that the socket is not read.
const BATCHES: usize = 16;

/// A live connection. Dropping it ends its task and its socket at once.
pub(super) struct Connection {
    queue: mpsc::Sender<Vec<Outgoing>>,
    /// Handed over; sent with the next [`Connection::send`].
    bundle: Vec<Outgoing>,
    events: mpsc::Receiver<Vec<SessionEvent>>,
    session: Task<SessionError>,
    pub(super) allowed: Allowed,
    /// Messages that came before the SUBACK.
    early: Vec<SessionEvent>,
}

/// A task that is aborted when its owner is dropped.
struct Task<T>(JoinHandle<T>);

impl<T> Drop for Task<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Connection {
    /// Starts a task for a subscribed session.
    pub(super) fn start(connected: Connected) -> Self {
        let Connected { session, queue, handed, allowed, early } = connected;
        let (sender, events) = mpsc::channel(BATCHES);
        let session = Task(tokio::spawn(run(session, handed, sender)));
        Self { queue, bundle: Vec::new(), events, session, allowed, early }
    }

    /// The next events; `None`: the connection has ended, and [`Connection::failure`] says why. Cancelling it loses nothing.
    pub(super) async fn events(&mut self) -> Option<Vec<SessionEvent>> {
        if !self.early.is_empty() {
            return Some(std::mem::take(&mut self.early));
        }
        self.events.recv().await
    }

    /// More events, if some are there already.
    pub(super) fn more_events(&mut self) -> Option<Vec<SessionEvent>> {
        self.events.try_recv().ok()
    }

    /// Returns a batch: it comes first the next time.
    pub(super) fn put_back(&mut self, batch: Vec<SessionEvent>) {
        self.early = batch;
    }

    /// Hands over a publish (QoS 1). It is sent with the next [`Connection::send`].
    pub(super) fn publish(&mut self, topic: &str, retain: bool, spoken: Spoken) {
        let properties = spoken.properties();
        let mut publish = Publish::new(topic, QoS::AtLeastOnce, spoken.payload, Some(properties));
        publish.retain = retain;
        self.bundle.push(Outgoing::Publish(publish));
    }

    /// The same for an encoded publish.
    pub(super) fn frame(&mut self, frame: Frame) {
        self.bundle.push(Outgoing::Frame(frame));
    }

    /// Sends together what was handed over. False: the session has ended and knows the reason.
    pub(super) fn send(&mut self) -> bool {
        self.bundle.is_empty() || self.queue.try_send(std::mem::take(&mut self.bundle)).is_ok()
    }

    /// Why it ended, once [`Connection::events`] has given `None`.
    pub(super) async fn failure(&mut self, phase: Phase) -> Failure {
        match timeout(Duration::from_secs(1), &mut self.session.0).await {
            Ok(Ok(error)) => Failure::session(phase, &error),
            _ => Failure::stream(phase, None),
        }
    }

    /// A clean end: DISCONNECT, so that the broker does not publish the will.
    pub(super) async fn close(mut self, limit: Duration) {
        self.bundle.push(Outgoing::Disconnect);
        if !self.send() {
            return;
        }
        // The broker closes when it has read it.
        let deadline = Instant::now() + limit;
        let _ = timeout_at(deadline, async { while self.events.recv().await.is_some() {} }).await;
    }
}

/// Drives a session until it fails; passes its events on in batches.
async fn run(
    mut session: Session<Box<dyn transport::Stream>>,
    mut queue: mpsc::Receiver<Vec<Outgoing>>,
    events: mpsc::Sender<Vec<SessionEvent>>,
) -> SessionError {
    loop {
        let mut batch = Vec::new();
        let ended = session.next(&mut queue, &mut batch).await.err();
        if !batch.is_empty() && events.send(batch).await.is_err() {
            return ended.unwrap_or(rumqttc::v5::ConnectionError::RequestsDone.into());
        }
        if let Some(error) = ended {
            return error;
        }
    }
}
