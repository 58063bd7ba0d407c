//! Runs the hub: one connection after another, each with a new session, and one store thread behind them all.
//!
//! ```text
//! broker ──► session task ──bounded queue──► store thread ──► answers ──► signer ──► broker
//! ```
//!
//! A full queue stops the session, and so TCP, and so the broker: that is the back-pressure. The gateway sends again
//! what the broker then drops, after a gap notice. Our PUBACK promises nothing; the receipt does.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc as blocking;
use std::time::{Duration, Instant};

use pgw_core::consequence::Consequence;
use pgw_core::delivery::Millis;
use pgw_core::wire::WireError;
use pgw_core::wire::signature::SigningKey;
use pgw_host::control::{Control, ListenError};
use pgw_link::backoff::{Backoff, BackoffLimits, random_bits};
use pgw_link::clock::TrustedClock;
use pgw_link::connect::Connected;
use pgw_link::failure::Failure;
use pgw_link::phase::Phase;
use pgw_link::session::{Outgoing, SessionEvent};
use pgw_link::state_file::SessionCounter;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinHandle;

use super::HubSettings;
use super::answers::Answers;
use super::backup::Backups;
use super::control::server::Commands;
use super::fleet::Fleet;
use super::gateways::current::CurrentGateways;
use super::link::{self, AnswerSigner, Ended};
use super::store::ndjson::NdjsonStore;
use super::store::{Store, StoreError};
use super::store_thread::{Arrival, GroupLimits, StoreThread};

/// Payload bytes between the session and the store thread, in units of 1 KiB.
const QUEUE_KIB: u32 = 64 * 1024;
/// The least that a publish counts: so at most 4,096 of them wait.
const LEAST_KIB: u32 = 16;
/// Most answers that are handed to the session at once.
const MOST_ANSWERS: usize = 16;
/// A connection that lived this long was a good one: the next delay is short again.
const GOOD_AFTER: Duration = Duration::from_secs(20);
/// How often the store thread checks for work that is due by time.
const TICK: Duration = Duration::from_secs(5);
/// How long the last messages may take when the hub stops.
const FAREWELL: Duration = Duration::from_secs(2);

/// Why the hub cannot run. A failure of the broker is never a reason.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// The store cannot be opened.
    #[error("the store cannot be opened")]
    Store(#[from] StoreError),
    /// The signing key cannot be read.
    #[error("cannot read the signing key {0}")]
    KeyFile(PathBuf, #[source] std::io::Error),
    /// It is not a key.
    #[error("{0} is not a PKCS#8 document with an Ed25519 key")]
    Key(PathBuf, #[source] WireError),
    /// The control socket cannot be created.
    #[error("cannot open the control socket")]
    Control(#[from] ListenError),
    /// The system has no randomness, or no threads.
    #[error("the system cannot {0}")]
    System(&'static str),
}

impl HubError {
    /// How the hub ends.
    #[must_use]
    pub fn consequence(&self) -> Consequence {
        match self {
            // It may be a command that ends soon.
            Self::Store(StoreError::InUse(_)) => Consequence::Retry,
            Self::Store(error) => error.consequence(),
            Self::KeyFile(..) | Self::Key(..) => Consequence::CONFIGURATION,
            Self::Control(error) => error.consequence(),
            Self::System(_) => Consequence::BUG,
        }
    }
}

/// Opens the embedded store and runs until `stop` turns true. `gateways` is the list in use, which whoever has a clone of
/// it may reload at any time. `live` reports whether the hub is connected and subscribed.
///
/// # Errors
/// [`HubError`], only before the first connection.
pub async fn run(
    settings: HubSettings,
    gateways: CurrentGateways,
    stop: watch::Receiver<bool>,
    live: watch::Sender<bool>,
) -> Result<(), HubError> {
    let (directory, rotate_bytes) = (settings.directory.clone(), settings.rotate_bytes);
    let store = tokio::task::spawn_blocking(move || NdjsonStore::open(&directory, rotate_bytes))
        .await
        .map_err(|_| HubError::System("open the store"))??;
    run_with(settings, gateways, Box::new(store), stop, live).await
}

/// The same with any store.
///
/// # Errors
/// [`HubError`], only before the first connection.
pub async fn run_with(
    settings: HubSettings,
    gateways: CurrentGateways,
    store: Box<dyn Store>,
    mut stop: watch::Receiver<bool>,
    live: watch::Sender<bool>,
) -> Result<(), HubError> {
    let path = settings.signing_key_file.clone();
    let document = fs::read(&path).map_err(|error| HubError::KeyFile(path.clone(), error))?;
    let key = SigningKey::from_pkcs8(&document).map_err(|error| HubError::Key(path, error))?;
    let mut signer = AnswerSigner::begin(&settings, store.identity().clone(), key)
        .map_err(|_| HubError::System("give random numbers"))?;
    let control = Control::listen(&settings.control_socket)?;

    let answers = Answers::default();
    let (arrivals, inbox) = blocking::channel();
    let limits = GroupLimits { transactions: settings.group_transactions, bytes: settings.group_bytes };
    let store_thread = StoreThread::new(
        store,
        answers.clone(),
        gateways.subscribe(),
        Fleet::open(&settings.directory),
        Backups::open(&settings.directory),
        limits,
    );
    let thread = std::thread::Builder::new()
        .name("hub-store".to_owned())
        .spawn(move || store_thread.run(inbox))
        .map_err(|_| HubError::System("start a thread"))?;
    // Also if the store thread has ended by itself, which nobody outside knows yet.
    let (over, is_over) = watch::channel(false);
    let commands = Commands::new(settings.clone(), arrivals.clone(), is_over.clone(), gateways);
    let control = tokio::spawn(control.serve(Arc::new(commands), is_over));

    let clock = TrustedClock::open(&settings.directory);
    let mut context = ConnectionContext { clock, known: Vec::new(), arrivals, answers };
    connections(&settings, &mut context, &mut signer, &mut stop, &live).await;
    drop(context);
    over.send_replace(true);
    // It also holds a sender to the store thread.
    let _ = control.await;
    // The store thread ends when all its senders are gone.
    tokio::task::spawn_blocking(move || thread.join())
        .await
        .ok()
        .and_then(Result::ok)
        .ok_or(HubError::System("finish the store thread"))
}

/// One connection after another, until the hub stops.
async fn connections(
    settings: &HubSettings,
    context: &mut ConnectionContext,
    signer: &mut AnswerSigner,
    stop: &mut watch::Receiver<bool>,
    live: &watch::Sender<bool>,
) {
    let millis = |time: Duration| Millis::try_from(time.as_millis()).unwrap_or(Millis::MAX);
    let base = millis(settings.reconnect_base);
    // A fleet has few hubs: their first attempts need not be spread out.
    let mut backoff = Backoff::new(BackoffLimits {
        base,
        cap: millis(settings.reconnect_cap),
        first_spread: base,
        proof: millis(GOOD_AFTER),
    });
    let mut sessions = SessionCounter::new(&settings.directory);
    while !*stop.borrow() {
        let (session, began) = (sessions.next(context.clock.trusted_seconds()).await, Instant::now());
        let ended = connection(settings, session, context, signer, stop, live).await;
        if live.send_replace(false) {
            backoff.connected();
            backoff.progress(0);
            backoff.progress(millis(began.elapsed()));
        }
        if matches!(ended, Ended::Stopping | Ended::NoStore) {
            break;
        }
        let pause = Duration::from_millis(backoff.delay(random_bits()));
        tracing::warn!(reason = %ended, again_seconds = pause.as_secs_f64(), "The connection to the broker has ended");
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            _ = stop.wait_for(|stop| *stop) => {}
        }
    }
}

/// What all connections share.
struct ConnectionContext {
    clock: Arc<TrustedClock>,
    /// The broker's addresses from the last look-up.
    known: Vec<SocketAddr>,
    /// To the store thread; permits limit what may wait there.
    arrivals: blocking::Sender<Arrival>,
    /// From the store thread.
    answers: Answers,
}

/// One connection, from start to end.
async fn connection(
    settings: &HubSettings,
    session: u64,
    context: &mut ConnectionContext,
    signer: &mut AnswerSigner,
    stop: &mut watch::Receiver<bool>,
    live: &watch::Sender<bool>,
) -> Ended {
    let ConnectionContext { clock, known, arrivals, .. } = &mut *context;
    let opened = tokio::select! {
        opened = link::open(settings, session, signer, clock, known) => opened,
        _ = stop.wait_for(|stop| *stop) => return Ended::Stopping,
    };
    let (queue, connected) = match opened {
        Ok(connected) => (connected.queue.clone(), connected),
        Err(ended) => return ended,
    };
    let silence = link::keep_alive(settings) * 2 + settings.connect_timeout;
    let mut work = AbortOnDrop(tokio::spawn(work(connected, arrivals.clone(), silence)));
    tracing::info!(session, "The hub is connected and subscribed");
    live.send_replace(true);
    if arrivals.send(Arrival::Connected).is_err() {
        return Ended::NoStore;
    }
    let online = vec![Outgoing::from(signer.status("online", session, "connected"))];
    if let Err(ended) = publish(online, context, signer, &queue, &mut work, stop).await {
        return ended;
    }
    let farewell = async {
        let last = vec![signer.status("offline", session, "stopped").into(), Outgoing::Disconnect];
        let _ = queue.send(last).await;
        let _ = (&mut work.0).await;
    };
    let _ = tokio::time::timeout(FAREWELL, farewell).await;
    Ended::Stopping
}

/// Passes the store thread's answers to the session, after `bundle`, until the hub stops.
async fn publish(
    mut bundle: Vec<Outgoing>,
    ConnectionContext { arrivals, answers, .. }: &ConnectionContext,
    signer: &mut AnswerSigner,
    queue: &mpsc::Sender<Vec<Outgoing>>,
    work: &mut AbortOnDrop,
    stop: &mut watch::Receiver<bool>,
) -> Result<(), Ended> {
    let mut tick = tokio::time::interval(TICK);
    loop {
        // Signed only when the session can take them: until then a newer receipt replaces a waiting one.
        let slot = tokio::select! {
            ended = &mut work.0 => return Err(joined(ended)),
            slot = queue.reserve() => slot,
        };
        while bundle.len() < MOST_ANSWERS
            && let Some(answer) = answers.take()
        {
            bundle.push(signer.sign(answer).into());
        }
        if let (false, Ok(slot)) = (bundle.is_empty(), slot) {
            slot.send(std::mem::take(&mut bundle));
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
async fn work(connected: Connected, arrivals: blocking::Sender<Arrival>, silence: Duration) -> Ended {
    // Only this connection uses the queue's other end.
    let Connected { mut session, mut handed, early: mut events, .. } = connected;
    let capacity = Arc::new(Semaphore::new(QUEUE_KIB as usize));
    let mut ended = None;
    loop {
        let (mut publishes, mut kib) = (Vec::new(), 0);
        for event in events.drain(..) {
            if let SessionEvent::Message(publish) = event {
                let own = u32::try_from(publish.payload.len() / 1024 + 1).unwrap_or(QUEUE_KIB);
                kib = own.max(LEAST_KIB).saturating_add(kib).min(QUEUE_KIB);
                publishes.push(*publish);
            }
        }
        if !publishes.is_empty() {
            let Ok(permit) = capacity.clone().acquire_many_owned(kib).await else { return Ended::NoStore };
            if arrivals.send(Arrival::Publishes(publishes, permit)).is_err() {
                return Ended::NoStore;
            }
        }
        if let Some(ended) = ended {
            return ended;
        }
        // It pings at every keep-alive, so that something always happens; after a timeout the session is not used
        // again.
        ended = match tokio::time::timeout(silence, session.next(&mut handed, &mut events)).await {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(Failure::session(Phase::Live, &error).into()),
            Err(_) => Some(Ended::Silent(silence)),
        };
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
