//! Runs the hub: one connection after another, each with a new session, and one store thread behind them all.
//!
//! ```text
//! broker ──► session task ──bounded queue──► store thread ──► answers ──► speaker ──► broker
//! ```
//!
//! A full queue stops the session, and so TCP, and so the broker: that is the back-pressure. What the broker then
//! drops is missed, named by a gap notice and sent again. Nothing that a PUBACK of ours said counts for anything:
//! the receipt does.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc as blocking;
use std::time::{Duration, Instant};

use pgw_core::wire::WireError;
use pgw_core::wire::signature::SigningKey;
use pgw_core::wire::topic::HUB_FILTERS;
use pgw_host::control::{Control, ListenError};
use pgw_host::exit::Exit;
use pgw_link::clock::TrustedClock;
use pgw_link::failure::Failure;
use pgw_link::phase::Phase;
use pgw_link::session::{Outgoing, Session, SessionEvent};
use pgw_link::transport;
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{Filter, SubscribeReasonCode};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinHandle;

use super::HubSettings;
use super::answers::Answers;
use super::backup::Backups;
use super::control::server::Commands;
use super::fleet::Fleet;
use super::link::{self, Ended, Speaker};
use super::store::ndjson::NdjsonStore;
use super::store::{Store, StoreError};
use super::store_thread::{Arrival, GroupLimits, StoreThread};

/// Payload bytes between the session and the store thread, in units of 1 KiB.
const QUEUE_KIB: u32 = 64 * 1024;
/// What the smallest publish counts: at most 4,096 of them wait.
const LEAST_KIB: u32 = 16;
/// Answers that are handed to the session at once, at most.
const MOST_ANSWERS: usize = 16;
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
    /// The control socket cannot be made.
    #[error("there is no control socket")]
    Control(#[from] ListenError),
    /// The system has no randomness, or no threads.
    #[error("the system cannot {0}")]
    System(&'static str),
}

impl HubError {
    /// What the supervisor does about it.
    #[must_use]
    pub fn consequence(&self) -> Exit {
        match self {
            Self::Store(_) => Exit::Files,
            Self::KeyFile(..) | Self::Key(..) => Exit::Configuration,
            Self::Control(_) => Exit::Unreachable,
            Self::System(_) => Exit::Internal,
        }
    }
}

/// Opens the embedded store and runs until `stop` turns true. `live` says whether the hub is connected and subscribed.
///
/// # Errors
/// [`HubError`], only before the first connection.
pub async fn run(
    settings: HubSettings,
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
    settings: HubSettings,
    store: Box<dyn Store>,
    mut stop: watch::Receiver<bool>,
    live: watch::Sender<bool>,
) -> Result<(), HubError> {
    let path = settings.signing_key_file.clone();
    let document = fs::read(&path).map_err(|error| HubError::KeyFile(path.clone(), error))?;
    let key = SigningKey::from_pkcs8(&document).map_err(|error| HubError::Key(path, error))?;
    let mut speaker =
        Speaker::begin(settings.hub.clone(), key).map_err(|_| HubError::System("give random numbers"))?;
    let control = Control::listen(&settings.control_socket)?;

    let answers = Answers::default();
    let (arrivals, inbox) = blocking::channel();
    let limits = GroupLimits { transactions: settings.group_transactions, bytes: settings.group_bytes };
    let store_thread = StoreThread::new(
        store,
        answers.clone(),
        Fleet::open(&settings.directory),
        Backups::open(&settings.directory),
        limits,
    );
    let thread = std::thread::Builder::new()
        .name("hub-store".to_owned())
        .spawn(move || store_thread.run(inbox))
        .map_err(|_| HubError::System("start a thread"))?;
    // Also where the store thread has ended by itself, which nobody outside has heard yet.
    let (over, is_over) = watch::channel(false);
    let commands = Commands::new(settings.clone(), arrivals.clone(), is_over.clone());
    let control = tokio::spawn(control.serve(Arc::new(commands), is_over));

    let context = Context { clock: TrustedClock::open(&settings.directory), arrivals, answers };
    connections(&settings, &context, &mut speaker, &mut stop, &live).await;
    drop(context);
    over.send_replace(true);
    // It holds the way to the store thread, too.
    let _ = control.await;
    // The store thread ends when nobody can send to it any more.
    tokio::task::spawn_blocking(move || thread.join())
        .await
        .ok()
        .and_then(Result::ok)
        .ok_or(HubError::System("finish the store thread"))
}

/// One connection after another, until the hub stops.
async fn connections(
    settings: &HubSettings,
    context: &Context,
    speaker: &mut Speaker,
    stop: &mut watch::Receiver<bool>,
    live: &watch::Sender<bool>,
) {
    let mut failures = 0;
    let mut session = 0;
    while !*stop.borrow() {
        session = next_session(&settings.directory, session);
        let began = Instant::now();
        let ended = connection(settings, session, context, speaker, stop, live).await;
        live.send_replace(false);
        if matches!(ended, Ended::Stopping | Ended::NoStore) {
            break;
        }
        failures = if began.elapsed() >= GOOD_AFTER { 0 } else { failures + 1 };
        let most = settings.reconnect_base.saturating_mul(1 << failures.min(10)).min(settings.reconnect_cap);
        let random = pgw_durable::random().map_or(u64::MAX / 2, u64::from_be_bytes);
        let pause = most.mul_f64(random as f64 / u64::MAX as f64);
        tracing::warn!(reason = %ended, again_seconds = pause.as_secs_f64(), "The connection to the broker has ended");
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            _ = stop.wait_for(|stop| *stop) => {}
        }
    }
}

/// What every connection has in common.
struct Context {
    clock: Arc<TrustedClock>,
    /// To the store thread; what may wait there is bounded by permits.
    arrivals: blocking::Sender<Arrival>,
    /// From it.
    answers: Answers,
}

/// One connection, from its first byte to its last.
async fn connection(
    settings: &HubSettings,
    session: u64,
    context: &Context,
    speaker: &mut Speaker,
    stop: &mut watch::Receiver<bool>,
    live: &watch::Sender<bool>,
) -> Ended {
    let Context { clock, arrivals, .. } = context;
    let opened = tokio::select! {
        opened = link::open(settings, session, clock) => opened,
        _ = stop.wait_for(|stop| *stop) => return Ended::Stopping,
    };
    let mqtt = match opened {
        Ok(mqtt) => mqtt,
        Err(ended) => return ended,
    };
    let silence = link::keep_alive(settings) * 2 + settings.connect_timeout;
    // A short queue: what waits shall wait in `answers`, where it coalesces.
    let (parcels, handed) = mpsc::channel(1);
    let (subscribed_sender, mut subscribed) = watch::channel(false);
    let mut work =
        AbortOnDrop(tokio::spawn(work(mqtt, handed, arrivals.clone(), subscribed_sender, silence)));
    let filters = HUB_FILTERS.map(|filter| Filter::new(filter, QoS::AtLeastOnce));
    tokio::select! {
        ended = &mut work.0 => return joined(ended),
        _ = parcels.send(vec![Outgoing::Subscribe(filters.into())]) => {}
    }
    tokio::select! {
        ended = &mut work.0 => return joined(ended),
        _ = subscribed.wait_for(|subscribed| *subscribed) => {}
        _ = stop.wait_for(|stop| *stop) => return Ended::Stopping,
    }
    tracing::info!(session, "The hub is connected and subscribed");
    live.send_replace(true);
    if arrivals.send(Arrival::Connected).is_err() {
        return Ended::NoStore;
    }
    let online = vec![Outgoing::from(speaker.status("online", session, "connected"))];
    if let Err(ended) = publish(online, context, speaker, &parcels, &mut work, stop).await {
        return ended;
    }
    let farewell = async {
        let last = vec![speaker.status("offline", session, "stopped").into(), Outgoing::Disconnect];
        let _ = parcels.send(last).await;
        let _ = (&mut work.0).await;
    };
    let _ = tokio::time::timeout(FAREWELL, farewell).await;
    Ended::Stopping
}

/// Hands what the store thread answers to the session, after `bundle`, until the hub stops.
async fn publish(
    mut bundle: Vec<Outgoing>,
    Context { arrivals, answers, .. }: &Context,
    speaker: &mut Speaker,
    parcels: &mpsc::Sender<Vec<Outgoing>>,
    work: &mut AbortOnDrop,
    stop: &mut watch::Receiver<bool>,
) -> Result<(), Ended> {
    let mut tick = tokio::time::interval(TICK);
    loop {
        // Signed only when the session can take them: a receipt that waits is replaced by a newer one.
        let room = tokio::select! {
            ended = &mut work.0 => return Err(joined(ended)),
            room = parcels.reserve() => room,
        };
        while bundle.len() < MOST_ANSWERS
            && let Some(answer) = answers.take()
        {
            bundle.push(speaker.say(answer).into());
        }
        if let (false, Ok(room)) = (bundle.is_empty(), room) {
            room.send(std::mem::take(&mut bundle));
        } else {
            tokio::select! {
                ended = &mut work.0 => return Err(joined(ended)),
                () = answers.changed() => {}
                _ = tick.tick() => { let _ = arrivals.send(Arrival::Tick); }
                _ = stop.wait_for(|stop| *stop) => return Ok(()),
            }
        }
        if *stop.borrow() {
            return Ok(());
        }
    }
}

/// Drives the session.
async fn work(
    mut session: Session<Box<dyn transport::Stream>>,
    mut parcels: mpsc::Receiver<Vec<Outgoing>>,
    arrivals: blocking::Sender<Arrival>,
    subscribed: watch::Sender<bool>,
    silence: Duration,
) -> Ended {
    let room = Arc::new(Semaphore::new(QUEUE_KIB as usize));
    let mut notes = Vec::new();
    loop {
        // It pings at every keep-alive, so that something always moves; after a timeout nothing of it is used again.
        let ended = match tokio::time::timeout(silence, session.next(&mut parcels, &mut notes)).await {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(Failure::session(Phase::Live, &error).into()),
            Err(_) => Some(Ended::Silent(silence)),
        };
        let (mut publishes, mut kib) = (Vec::new(), 0);
        for note in notes.drain(..) {
            match note {
                SessionEvent::Message(publish) => {
                    let own = u32::try_from(publish.payload.len() / 1024 + 1).unwrap_or(QUEUE_KIB);
                    kib = own.max(LEAST_KIB).saturating_add(kib).min(QUEUE_KIB);
                    publishes.push(*publish);
                }
                SessionEvent::Subscribed(ack) => {
                    for (code, filter) in ack.return_codes.iter().zip(HUB_FILTERS) {
                        if !matches!(code, SubscribeReasonCode::Success(_)) {
                            return Ended::Subscription(filter);
                        }
                    }
                    subscribed.send_replace(true);
                }
                SessionEvent::Written(_) | SessionEvent::Acknowledged(..) | SessionEvent::Other => {}
            }
        }
        if !publishes.is_empty() {
            let Ok(permit) = room.clone().acquire_many_owned(kib).await else { return Ended::NoStore };
            if arrivals.send(Arrival::Publishes(publishes, permit)).is_err() {
                return Ended::NoStore;
            }
        }
        if let Some(ended) = ended {
            return ended;
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

/// The persisted session counter, one more than the last one; where it cannot be kept, at least one more than `before`.
fn next_session(directory: &Path, before: u64) -> u64 {
    let path = directory.join("session");
    let kept = fs::read_to_string(&path).ok().and_then(|text| text.trim().parse::<u64>().ok());
    let session = kept.unwrap_or(0).max(before) + 1;
    let text = format!("{session}\n");
    if let Err(error) = pgw_durable::replace(&path, pgw_durable::PRIVATE, text.as_bytes()) {
        tracing::warn!(error = %error, "The session counter could not be saved");
    }
    session
}
