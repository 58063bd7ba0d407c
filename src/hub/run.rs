//! Runs the hub: one connection after another, each with a new event loop, and one store thread behind them all.
//!
//! ```text
//! broker ──► poll task ──bounded channel──► store thread (desk) ──► answers ──► speaker ──► broker
//! ```
//!
//! A full channel stops `poll()`, and so TCP, and so the broker: that is the back-pressure. What the broker then
//! drops is missed, named by a gap notice and sent again. Nothing that a PUBACK of ours said counts for anything:
//! the receipt does.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ring::rand::{SecureRandom as _, SystemRandom};
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{Filter, Packet, SubscribeReasonCode};
use rumqttc::v5::{AsyncClient, ConnectionError, Event, EventLoop};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinHandle;

use super::Settings;
use super::answers::Answers;
use super::desk::{Arrival, Desk, GroupLimits};
use super::fleet::Fleet;
use super::link::{self, Outgoing, Speaker};
use super::store::ndjson::NdjsonStore;
use super::store::{Store, StoreError};
use crate::uplink::TrustedClock;
use crate::uplink::tls::TlsError;
use crate::wire::WireError;
use crate::wire::signature::SigningKey;
use crate::wire::topic::HUB_FILTERS;

/// Publishes between the poll task and the store thread.
const QUEUE: usize = 4_096;
/// Their payload bytes together, in units of 1 KiB.
const QUEUE_KIB: u32 = 64 * 1024;
/// A connection that lived this long was a good one: the next delay is short again.
const GOOD_AFTER: Duration = Duration::from_secs(20);
/// How often the store thread looks at what is due by time.
const TICK: Duration = Duration::from_secs(5);
/// How long the last words may take when the hub stops.
const FAREWELL: Duration = Duration::from_secs(2);

/// Why the hub cannot run. Trouble with the broker is never a reason.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// The store cannot be opened.
    #[error("the store cannot be opened")]
    Store(#[from] StoreError),
    /// The signing key cannot be read.
    #[error("cannot read the signing key {0}")]
    KeyFile(PathBuf, #[source] std::io::Error),
    /// It is none.
    #[error("{0} is not a PKCS#8 document with an Ed25519 key")]
    Key(PathBuf, #[source] WireError),
    /// The system has no randomness, or no threads.
    #[error("the system cannot {0}")]
    System(&'static str),
}

/// Why a connection has ended.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error("{0}")]
    Files(#[from] TlsError),
    #[error("{0}")]
    Connection(Box<ConnectionError>),
    #[error("the broker refused the subscription to {0}")]
    Subscription(&'static str),
    #[error("nothing moved for {0:?}")]
    Silent(Duration),
    #[error("the store thread has ended")]
    NoStore,
    #[error("the poll task has ended by a panic")]
    Panicked,
    #[error("the hub stops")]
    Stopping,
}

/// Opens the embedded store and runs until `stop` turns true. `live` says whether the hub is connected and subscribed.
///
/// # Errors
/// [`HubError`], only before the first connection.
pub async fn run(
    settings: Settings,
    stop: watch::Receiver<bool>,
    live: watch::Sender<bool>,
) -> Result<(), HubError> {
    let (directory, rotate_bytes) = (settings.directory.clone(), settings.rotate_bytes);
    let store = tokio::task::spawn_blocking(move || NdjsonStore::open(&directory, rotate_bytes))
        .await
        .map_err(|_| HubError::System("open the store"))??;
    run_with(settings, Box::new(store), stop, live).await
}

/// The same with any store.
///
/// # Errors
/// [`HubError`], only before the first connection.
pub async fn run_with(
    settings: Settings,
    store: Box<dyn Store>,
    mut stop: watch::Receiver<bool>,
    live: watch::Sender<bool>,
) -> Result<(), HubError> {
    let path = settings.signing_key_file.clone();
    let document = fs::read(&path).map_err(|error| HubError::KeyFile(path.clone(), error))?;
    let key = SigningKey::from_pkcs8(&document).map_err(|error| HubError::Key(path, error))?;
    // 53 bits: a number that every JSON reader keeps exactly.
    let mut speaker = Speaker::new(settings.hub.clone(), random()? >> 11, key);

    let answers = Answers::default();
    let (arrivals, inbox) = mpsc::channel(QUEUE);
    let limits = GroupLimits { transactions: settings.group_transactions, bytes: settings.group_bytes };
    let desk = Desk::new(store, answers.clone(), Fleet::open(&settings.directory), limits);
    let thread = std::thread::Builder::new()
        .name("hub-store".to_owned())
        .spawn(move || desk.run(inbox))
        .map_err(|_| HubError::System("start a thread"))?;

    let road = Road { clock: TrustedClock::open(&settings.directory), arrivals, answers };
    let mut failures = 0;
    let mut session = 0;
    while !*stop.borrow() {
        session = next_session(&settings.directory, session);
        let began = Instant::now();
        let ended = connection(&settings, session, &road, &mut speaker, &mut stop, &live).await;
        live.send_replace(false);
        if matches!(ended, Ended::Stopping | Ended::NoStore) {
            break;
        }
        failures = if began.elapsed() >= GOOD_AFTER { 0 } else { failures + 1 };
        let most = settings.reconnect_base.saturating_mul(1 << failures.min(10)).min(settings.reconnect_cap);
        let pause = most.mul_f64(random().unwrap_or(u64::MAX / 2) as f64 / u64::MAX as f64);
        tracing::warn!(reason = %ended, again_seconds = pause.as_secs_f64(), "The connection to the broker has ended");
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            _ = stop.wait_for(|stop| *stop) => {}
        }
    }
    drop(road);
    tokio::task::spawn_blocking(move || thread.join())
        .await
        .ok()
        .and_then(Result::ok)
        .ok_or(HubError::System("finish the store thread"))
}

/// What every connection has in common.
struct Road {
    clock: Arc<TrustedClock>,
    /// To the store thread.
    arrivals: mpsc::Sender<Arrival>,
    /// From it.
    answers: Answers,
}

/// One connection, from its first byte to its last.
async fn connection(
    settings: &Settings,
    session: u64,
    road: &Road,
    speaker: &mut Speaker,
    stop: &mut watch::Receiver<bool>,
    live: &watch::Sender<bool>,
) -> Ended {
    let Road { clock, arrivals, answers } = road;
    let options = match link::options(settings, session, clock) {
        Ok(options) => options,
        Err(error) => return Ended::Files(error),
    };
    let silence = options.keep_alive() * 2 + settings.connect_timeout;
    // A short request queue: what waits shall wait in `answers`, where it coalesces.
    let (client, events) = AsyncClient::new(options, 2);
    let (subscribed_sender, mut subscribed) = watch::channel(false);
    let mut poll = AbortOnDrop(tokio::spawn(poll(events, arrivals.clone(), subscribed_sender, silence)));
    let filters = HUB_FILTERS.map(|filter| Filter::new(filter, QoS::AtLeastOnce));
    tokio::select! {
        ended = &mut poll.0 => return joined(ended),
        _ = client.subscribe_many(filters) => {}
    }
    tokio::select! {
        ended = &mut poll.0 => return joined(ended),
        _ = subscribed.wait_for(|subscribed| *subscribed) => {}
        _ = stop.wait_for(|stop| *stop) => return Ended::Stopping,
    }
    tracing::info!(session, "The hub is connected and subscribed");
    live.send_replace(true);
    let mut next = Some(speaker.status("online", session, "connected"));
    let mut tick = tokio::time::interval(TICK);
    tokio::select! {
        ended = &mut poll.0 => return joined(ended),
        sent = arrivals.send(Arrival::Connected) => if sent.is_err() { return Ended::NoStore },
    }
    loop {
        match next.take().or_else(|| answers.take().map(|answer| speaker.say(answer))) {
            Some(outgoing) => tokio::select! {
                ended = &mut poll.0 => return joined(ended),
                _ = publish(&client, outgoing) => {}
            },
            None => tokio::select! {
                ended = &mut poll.0 => return joined(ended),
                () = answers.changed() => {}
                _ = tick.tick() => { let _ = arrivals.try_send(Arrival::Tick); }
                _ = stop.wait_for(|stop| *stop) => break,
            },
        }
        if *stop.borrow() {
            break;
        }
    }
    let farewell = async {
        let _ = publish(&client, speaker.status("offline", session, "stopped")).await;
        let _ = client.disconnect().await;
        let _ = (&mut poll.0).await;
    };
    let _ = tokio::time::timeout(FAREWELL, farewell).await;
    Ended::Stopping
}

async fn publish(client: &AsyncClient, outgoing: Outgoing) -> Result<(), rumqttc::v5::ClientError> {
    let Outgoing { topic, payload, retain, properties } = outgoing;
    client.publish_with_properties(topic, QoS::AtLeastOnce, retain, payload, properties).await
}

/// Drives the event loop; the only place that calls `poll()`, and never inside a `select!`.
async fn poll(
    mut events: EventLoop,
    arrivals: mpsc::Sender<Arrival>,
    subscribed: watch::Sender<bool>,
    silence: Duration,
) -> Ended {
    let room = Arc::new(Semaphore::new(QUEUE_KIB as usize));
    loop {
        // rumqttc pings at every keep-alive, so that something always moves; after a timeout nothing of this
        // event loop is used again.
        let event = match tokio::time::timeout(silence, events.poll()).await {
            Ok(Ok(event)) => event,
            Ok(Err(error)) => return Ended::Connection(Box::new(error)),
            Err(_) => return Ended::Silent(silence),
        };
        match event {
            Event::Incoming(Packet::Publish(publish)) => {
                let kib = u32::try_from(publish.payload.len() / 1024 + 1).unwrap_or(QUEUE_KIB).min(QUEUE_KIB);
                let Ok(permit) = room.clone().acquire_many_owned(kib).await else { return Ended::NoStore };
                if arrivals.send(Arrival::Publish(publish, permit)).await.is_err() {
                    return Ended::NoStore;
                }
            }
            Event::Incoming(Packet::SubAck(ack)) => {
                for (code, filter) in ack.return_codes.iter().zip(HUB_FILTERS) {
                    if !matches!(code, SubscribeReasonCode::Success(_)) {
                        return Ended::Subscription(filter);
                    }
                }
                subscribed.send_replace(true);
            }
            _ => {}
        }
    }
}

struct AbortOnDrop(JoinHandle<Ended>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn joined(ended: Result<Ended, tokio::task::JoinError>) -> Ended {
    ended.unwrap_or(Ended::Panicked)
}

fn random() -> Result<u64, HubError> {
    let mut bytes = [0; 8];
    SystemRandom::new().fill(&mut bytes).map_err(|_| HubError::System("give random numbers"))?;
    Ok(u64::from_be_bytes(bytes))
}

/// The persisted session counter, one more than the last one; where it cannot be kept, at least one more than `before`.
fn next_session(directory: &Path, before: u64) -> u64 {
    let path = directory.join("session");
    let kept = fs::read_to_string(&path).ok().and_then(|text| text.trim().parse::<u64>().ok());
    let session = kept.unwrap_or(0).max(before) + 1;
    let write = || {
        let new = path.with_extension("new");
        let mut file = File::options().create(true).truncate(true).write(true).mode(0o600).open(&new)?;
        writeln!(file, "{session}")?;
        file.sync_all()?;
        fs::rename(&new, &path)?;
        File::open(directory)?.sync_all()
    };
    if let Err(error) = write() {
        tracing::warn!(error = %error, "The session counter could not be kept");
    }
    session
}
