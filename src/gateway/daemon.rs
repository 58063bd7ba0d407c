//! `practice-gateway run`.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pgw_core::consequence::Consequence;
use pgw_core::text::chain;
use pgw_core::wire::signature::SigningKey;
use pgw_host::control::Control;
use pgw_host::daemon::{Fatal, close_umask, runtime};
use pgw_host::systemd;
use pgw_host::tasks::{Ended, Stage, Tasks};
use pgw_link::clock::TrustedClock;
use pgw_outbox::Outbox;
use pgw_outbox::offline::set_aside;
use sd_notify::NotifyState;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;

use crate::config::GatewayConfig;
use crate::control::ControlConfig;
use crate::control::server::Commands;
use crate::health::observation::GatewayState;
use crate::health::watcher;
use crate::health::watcher::Sampler;
use crate::ingest::folder::config::FolderDoorConfig;
use crate::ingest::folder::door::FolderDoor;
use crate::ingest::http::context::HttpDoorConfig;
use crate::ingest::http::door::HttpDoor;
use crate::ingest::mllp::context::MllpDoorConfig;
use crate::ingest::mllp::door::MllpDoor;
use crate::ingest::{Budget, Counters, StatusSource};
use crate::keys;
use crate::uplink::{self, LinkSnapshot};

/// How long the outbox may take to finish its work and to close.
const CLOSE_DEADLINE: Duration = Duration::from_secs(20);
/// How long the outbox's writer may take to respond, before the watchdog is no longer fed.
const ANSWER_DEADLINE: Duration = Duration::from_secs(10);
/// How often systemd's status line may change.
const STATUS_INTERVAL: Duration = Duration::from_secs(5);

/// Why the daemon ends if a door's address or certificates cannot be used.
const NO_DOOR: &str = "a door cannot be opened";

/// Runs the gateway until SIGTERM or SIGINT. The log is already started.
///
/// # Errors
/// [`Fatal`], with the exit code of its consequence: 78 for configuration, keys and owner of the store, 75 if another
/// process has the store, 77 for missing rights on it, 74 for its files, 69 for an address that is in use, 70 for a bug.
pub fn run(mut config: GatewayConfig) -> Result<(), Fatal> {
    close_umask();
    let runtime = runtime()?;
    // From here on: opening the store may take long, and a reload meanwhile must not end the process. SIGTERM may.
    let hangup = runtime.block_on(async { on(SignalKind::hangup()) })?;
    let keys = keys::outbox_keys(&config.outbox_key_file)
        .map_err(|error| Fatal::of("there is no usable outbox key", error.consequence(), error))?;
    config.uplink.info.key_id = keys.present().id();
    let signing_key = keys::signing_key(&config.signing_key_file)
        .map_err(|error| Fatal::of("there is no usable signing key", error.consequence(), error))?;
    let signing_key = Arc::new(signing_key);
    let public = signing_key.public();
    tracing::info!(key = %public.id(), public_key = %public, "Read the signing key");
    let began = Instant::now();
    let outbox = Outbox::open(config.outbox.clone(), keys)
        .map_err(|error| Fatal::of("the outbox cannot be opened", error.consequence(), error))?;
    tracing::info!(seconds = began.elapsed().as_secs_f64(), "Opened the outbox");
    for (directory, facts) in set_aside::beside(&config.outbox) {
        let alarm = set_aside::alarm(&directory, &facts);
        tracing::error!(directory = %directory.display(), detail = alarm.detail, "A store that was set aside is still on this box");
        outbox.raise(alarm);
    }
    pgw_durable::create_directory(&config.uplink.state_directory, 0o700).map_err(|error| {
        Fatal::of("cannot create the uplink's directory", Consequence::of_file(&error), error)
    })?;
    let ran = runtime.block_on(serve(config, signing_key, outbox.clone(), hangup));
    runtime.shutdown_timeout(Duration::from_secs(1));
    close(outbox);
    ran
}

/// The store survives being cut off at any point, so a close that hangs is logged and abandoned.
fn close(outbox: Outbox) {
    let (done, closed) = std::sync::mpsc::channel();
    let closing = std::thread::Builder::new().name("close".into()).spawn(move || {
        outbox.close();
        let _ = done.send(());
    });
    match closing.map(|_| closed.recv_timeout(CLOSE_DEADLINE)) {
        Ok(Ok(())) => tracing::info!("Closed the outbox"),
        _ => tracing::error!(seconds = CLOSE_DEADLINE.as_secs(), "The outbox did not close in time"),
    }
}

async fn serve(
    config: GatewayConfig,
    signing_key: Arc<SigningKey>,
    outbox: Outbox,
    hangup: Signal,
) -> Result<(), Fatal> {
    let signals = Signals::with(hangup)?;
    let mut tasks = Tasks::new();
    let reload = watch::Sender::new(0_u64);
    let (link, seen) = watch::channel(LinkSnapshot::starting(Instant::now()));
    let counters = Arc::new(Counters::default());
    let (practice, gateway) = (config.practice.clone(), config.gateway.clone());
    let sampler = Sampler::new(practice, gateway, outbox.clone(), seen, Arc::clone(&counters));
    let (orders, ordered) = uplink::orders();
    // Refused before any door is open.
    let control = Control::listen(&config.control.socket)
        .map_err(|error| Fatal::of("cannot open the control socket", error.consequence(), error))?;

    let asked = sampler.clone();
    let doors = Doors {
        outbox: outbox.clone(),
        counters,
        budget: Budget::new(config.ingest_memory_bytes),
        status: Arc::new(move || asked.status()),
        clock_directory: config.uplink.state_directory.clone(),
        reload: reload.clone(),
    };
    doors.open_mllp(&mut tasks, &config.mllp).await?;
    doors.open_http(&mut tasks, &config.http).await?;
    doors.open_folders(&mut tasks, &config.folders);
    doors.open_control(&mut tasks, control, config.control.clone(), orders);
    let (publisher, reports, state) = watcher::channels();
    let (stop, interval) = (tasks.stop_of(Stage::Health), config.health_interval);
    tasks.spawn(Stage::Health, "health", async move {
        watcher::run(sampler, interval, publisher, stop).await;
        Ok(())
    });
    let (shutdown, reloaded) = (tasks.stop_of(Stage::Uplink), reload.subscribe());
    let requests = uplink::Requests { shutdown, reload: reloaded, orders: ordered };
    let (settings, store) = (config.uplink, outbox.clone());
    tasks.spawn(Stage::Uplink, "uplink", async move {
        uplink::run(settings, signing_key, store, link, reports, requests)
            .await
            .map_err(|error| Fatal::of("the uplink has failed", error.consequence(), error))
    });

    systemd::notify(&[NotifyState::Ready]);
    tracing::info!(version = env!("CARGO_PKG_VERSION"), "Accepting");
    let failed = attend(&mut tasks, signals, &reload, state, &outbox).await;
    systemd::notify(&[NotifyState::Stopping]);
    tracing::info!("Stopping");
    let fatal = failed.map(|Ended { name, reason }| {
        tracing::error!(task = name, failure = chain(&reason), "A task ended early");
        Fatal::of(format!("the task {name:?} ended early"), reason.consequence(), reason)
    });
    tasks.stop().await;
    fatal.map_or(Ok(()), Err)
}

/// Signals from systemd and operators.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn with(hangup: Signal) -> Result<Self, Fatal> {
        Ok(Self { terminate: on(SignalKind::terminate())?, interrupt: on(SignalKind::interrupt())?, hangup })
    }
}

fn on(kind: SignalKind) -> Result<Signal, Fatal> {
    signal(kind).map_err(|error| Fatal::of("cannot wait for signals", Consequence::BUG, error))
}

/// Feeds the watchdog, reports the state to systemd and passes SIGHUP on, until the gateway is stopped (`None`) or a
/// task ends.
async fn attend(
    tasks: &mut Tasks,
    mut signals: Signals,
    reload: &watch::Sender<u64>,
    mut state: watch::Receiver<(GatewayState, String)>,
    outbox: &Outbox,
) -> Option<Ended> {
    let watched = systemd::watchdog_interval();
    let mut watchdog = tokio::time::interval(watched.unwrap_or(Duration::from_secs(3600)));
    watchdog.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut line = tokio::time::interval(STATUS_INTERVAL);
    line.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = signals.terminate.recv() => return None,
            _ = signals.interrupt.recv() => return None,
            _ = signals.hangup.recv() => {
                tracing::info!("Reading the certificates again");
                reload.send_modify(|times| *times += 1);
            }
            ended = tasks.next() => return Some(ended),
            _ = watchdog.tick(), if watched.is_some() => {
                if moves(outbox).await {
                    systemd::notify(&[NotifyState::Watchdog]);
                }
            }
            _ = line.tick() => if state.has_changed().unwrap_or(false) {
                let (state, reason) = state.borrow_and_update().clone();
                let text = if reason.is_empty() { state.as_str().to_owned() } else { format!("{}: {reason}", state.as_str()) };
                systemd::notify(&[NotifyState::Status(&text)]);
            }
        }
    }
}

/// What the doors share.
struct Doors {
    outbox: Outbox,
    counters: Arc<Counters>,
    budget: Budget,
    status: StatusSource,
    clock_directory: PathBuf,
    /// Changes at SIGHUP: certificates are reread.
    reload: watch::Sender<u64>,
}

impl Doors {
    async fn open_mllp(&self, tasks: &mut Tasks, doors: &[MllpDoorConfig]) -> Result<(), Fatal> {
        for settings in doors {
            let name = format!("mllp {}", settings.listen);
            let clock = TrustedClock::open(&self.clock_directory);
            let door = MllpDoor::listen(settings.clone(), clock)
                .await
                .map_err(|error| Fatal::of(NO_DOOR, error.consequence(), error))?;
            tracing::info!(address = %door.address(), "Opened an MLLP door");
            let (stop, certificates) = (tasks.stop_of(Stage::Doors), self.reload.subscribe());
            let (outbox, counters) = (self.outbox.clone(), Arc::clone(&self.counters));
            let budget = self.budget.clone();
            tasks.spawn(Stage::Doors, name, async move {
                door.serve(outbox, counters, budget, certificates, stop).await;
                Ok(())
            });
        }
        Ok(())
    }

    async fn open_http(&self, tasks: &mut Tasks, doors: &[HttpDoorConfig]) -> Result<(), Fatal> {
        for settings in doors {
            let name = format!("http {}", settings.listen);
            let clock = TrustedClock::open(&self.clock_directory);
            let door = HttpDoor::listen(settings.clone(), clock)
                .await
                .map_err(|error| Fatal::of(NO_DOOR, error.consequence(), error))?;
            tracing::info!(address = %door.address(), "Opened an HTTP door");
            let (stop, certificates) = (tasks.stop_of(Stage::Doors), self.reload.subscribe());
            let (outbox, counters) = (self.outbox.clone(), Arc::clone(&self.counters));
            let (budget, status) = (self.budget.clone(), Arc::clone(&self.status));
            tasks.spawn(Stage::Doors, name, async move {
                door.serve(outbox, status, counters, budget, certificates, stop).await;
                Ok(())
            });
        }
        Ok(())
    }

    fn open_folders(&self, tasks: &mut Tasks, folders: &[FolderDoorConfig]) {
        for settings in folders.iter().cloned() {
            let name = format!("folder {}", settings.name);
            tracing::info!(folder = settings.name, path = %settings.path.display(), "Opened a folder door");
            let stop = tasks.stop_of(Stage::Doors);
            let (outbox, counters) = (self.outbox.clone(), Arc::clone(&self.counters));
            let budget = self.budget.clone();
            tasks.spawn(Stage::Doors, name, async move {
                FolderDoor::new(settings).serve(outbox, counters, budget, stop).await;
                Ok(())
            });
        }
    }

    fn open_control(
        self,
        tasks: &mut Tasks,
        control: Control,
        config: ControlConfig,
        orders: uplink::Orders,
    ) {
        let stop = tasks.stop_of(Stage::Control);
        let Self { outbox, counters, budget, status, .. } = self;
        let commands = Commands::new(config, outbox, status, counters, budget, Some(orders));
        tasks.spawn(Stage::Control, "control", async move {
            control.serve(Arc::new(commands), stop).await;
            Ok(())
        });
    }
}

/// Whether the daemon is working: this task runs, a blocking thread can be started, and the outbox's writer responds.
async fn moves(outbox: &Outbox) -> bool {
    let outbox = outbox.clone();
    let asked = tokio::task::spawn_blocking(move || outbox.pulse(ANSWER_DEADLINE));
    let answered = tokio::time::timeout(ANSWER_DEADLINE, asked).await;
    let well = matches!(answered, Ok(Ok(true)));
    if !well {
        tracing::error!("The outbox writer is not responding; the watchdog is not fed");
    }
    well
}
