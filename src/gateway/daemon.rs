//! `practice-gateway run`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use pgw_host::daemon::{Fatal, close_umask, runtime};
use pgw_host::exit::Exit;
use pgw_host::systemd;
use pgw_host::tasks::{Ended, Stage, Tasks};
use pgw_link::clock::TrustedClock;
use pgw_outbox::{OpenError, Outbox, set_aside};
use sd_notify::NotifyState;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;

use crate::config::GatewayConfig;
use crate::control::server::ControlSocket;
use crate::health::LinkSnapshot;
use crate::health::watcher;
use crate::health::watcher::Eye;
use crate::ingest::folder::door::FolderDoor;
use crate::ingest::http::door::{HttpDoor, HttpDoorError};
use crate::ingest::mllp::door::{MllpDoor, MllpDoorError};
use crate::ingest::{Budget, Counters, StatusSource};
use crate::keys;
use crate::uplink;

/// How long the outbox may take to finish what is under way and to close.
const CLOSE_DEADLINE: Duration = Duration::from_secs(20);
/// How long the outbox's writer may take to come round, before the watchdog is no longer fed.
const ANSWER_DEADLINE: Duration = Duration::from_secs(10);
/// How often systemd's status line may change.
const STATUS_INTERVAL: Duration = Duration::from_secs(5);

/// Runs the gateway until SIGTERM or SIGINT. The log has been started.
///
/// # Errors
/// [`Fatal`], with the exit code: 78 for configuration, key and owner of the store, 75 where another process has the
/// store, 74 for its files, 69 for an address that is taken, 70 for a task that ended early.
pub fn run(mut config: GatewayConfig) -> Result<(), Fatal> {
    close_umask();
    let keys = keys::outbox_keys(&config.outbox_key_file)
        .map_err(|error| Fatal::of(Exit::Configuration, "there is no usable outbox key", error))?;
    config.uplink.info.key_id = keys.present().id();
    let began = Instant::now();
    let outbox = Outbox::open(config.outbox.clone(), keys).map_err(not_opened)?;
    tracing::info!(seconds = began.elapsed().as_secs_f64(), "Opened the outbox");
    for (directory, facts) in set_aside::beside(&config.outbox) {
        let notable = set_aside::notable(&directory, &facts);
        tracing::error!(directory = %directory.display(), detail = notable.detail, "A store that was set aside is still here");
        outbox.note(notable);
    }
    std::fs::create_dir_all(&config.uplink.state_directory)
        .map_err(|error| Fatal::of(Exit::Files, "cannot make the uplink's directory", error))?;
    let runtime = runtime()?;
    let ran = runtime.block_on(serve(config, outbox.clone()));
    runtime.shutdown_timeout(Duration::from_secs(1));
    close(outbox);
    ran
}

fn not_opened(error: OpenError) -> Fatal {
    let exit = match &error {
        OpenError::Newer { .. }
        | OpenError::WrongKey { .. }
        | OpenError::OtherOwner { .. }
        | OpenError::Retired { .. } => Exit::Configuration,
        OpenError::InUse(_) => Exit::Later,
        OpenError::Io { .. } => Exit::Files,
    };
    Fatal::of(exit, "the outbox cannot be opened", error)
}

/// The store survives a cut at any point, so that a close that hangs is named and left behind.
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

async fn serve(config: GatewayConfig, outbox: Outbox) -> Result<(), Fatal> {
    let mut terminate = on_signal(SignalKind::terminate())?;
    let mut interrupt = on_signal(SignalKind::interrupt())?;
    let mut hangup = on_signal(SignalKind::hangup())?;

    let mut tasks = Tasks::new();
    let doors = Arc::new(Counters::default());
    let budget = Budget::new(config.ingest_memory_bytes);
    let (link, seen) = watch::channel(LinkSnapshot::starting(Instant::now()));
    let (practice, gateway) = (config.practice.clone(), config.gateway.clone());
    let eye = Eye::new(practice, gateway, outbox.clone(), seen, Arc::clone(&doors));

    let (orders, ordered) = uplink::orders();
    let control = ControlSocket::listen(config.control.clone())
        .map_err(|error| Fatal::of(Exit::Unreachable, "there is no control socket", error))?
        .with_orders(orders);
    let reload = watch::Sender::new(0_u64);
    for settings in config.mllp.clone() {
        let name = format!("mllp {}", settings.listen);
        let clock = TrustedClock::open(&config.uplink.state_directory);
        let door = MllpDoor::listen(settings, clock).await.map_err(|error| {
            let exit = match &error {
                MllpDoorError::Address { .. } => Exit::Unreachable,
                MllpDoorError::Certificates { .. } => Exit::Configuration,
            };
            Fatal::of(exit, "a door cannot be opened", error)
        })?;
        tracing::info!(address = %door.address(), "Opened an MLLP door");
        let (stop, certificates) = (tasks.stop_of(Stage::Doors), reload.subscribe());
        let (outbox, doors, budget) = (outbox.clone(), Arc::clone(&doors), budget.clone());
        tasks.spawn(Stage::Doors, name, async move {
            door.serve(outbox, doors, budget, certificates, stop).await;
            Ok(())
        });
    }
    let asked = eye.clone();
    let status: StatusSource = Arc::new(move || asked.status());
    for settings in config.http.clone() {
        let name = format!("http {}", settings.listen);
        let clock = TrustedClock::open(&config.uplink.state_directory);
        let door = HttpDoor::listen(settings, clock).await.map_err(not_listening)?;
        tracing::info!(address = %door.address(), "Opened an HTTP door");
        let (stop, certificates, status) =
            (tasks.stop_of(Stage::Doors), reload.subscribe(), Arc::clone(&status));
        let (outbox, doors, budget) = (outbox.clone(), Arc::clone(&doors), budget.clone());
        tasks.spawn(Stage::Doors, name, async move {
            door.serve(outbox, status, doors, budget, certificates, stop).await;
            Ok(())
        });
    }
    for settings in config.folders.clone() {
        let name = format!("folder {}", settings.name);
        tracing::info!(folder = settings.name, path = %settings.path.display(), "Opened a folder door");
        let stop = tasks.stop_of(Stage::Doors);
        let (outbox, doors, budget) = (outbox.clone(), Arc::clone(&doors), budget.clone());
        tasks.spawn(Stage::Doors, name, async move {
            FolderDoor::new(settings).serve(outbox, doors, budget, stop).await;
            Ok(())
        });
    }
    let (stop, read) = (tasks.stop_of(Stage::Control), outbox.clone());
    tasks.spawn(Stage::Control, "control", async move {
        control.serve(read, status, doors, budget, stop).await;
        Ok(())
    });
    let (voice, reports, mut state) = watcher::channels();
    let (stop, interval) = (tasks.stop_of(Stage::Health), config.health_interval);
    tasks.spawn(Stage::Health, "health", async move {
        watcher::run(eye, interval, voice, stop).await;
        Ok(())
    });
    let (stop, certificates) = (tasks.stop_of(Stage::Uplink), reload.subscribe());
    let (settings, sent) = (config.uplink, outbox.clone());
    tasks.spawn(Stage::Uplink, "uplink", async move {
        uplink::run(settings, sent, link, reports, stop, certificates, ordered)
            .await
            .map_err(|error| error.to_string())
    });

    systemd::tell(&[NotifyState::Ready]);
    tracing::info!(version = env!("CARGO_PKG_VERSION"), "Accepting");
    let watched = systemd::watchdog_interval();
    let mut watchdog = tokio::time::interval(watched.unwrap_or(Duration::from_secs(3600)));
    watchdog.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut line = tokio::time::interval(STATUS_INTERVAL);
    line.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let failed = loop {
        tokio::select! {
            _ = terminate.recv() => break None,
            _ = interrupt.recv() => break None,
            _ = hangup.recv() => {
                tracing::info!("Reading the certificates again");
                reload.send_modify(|times| *times += 1);
            }
            ended = tasks.next() => break Some(ended),
            _ = watchdog.tick(), if watched.is_some() => {
                if moves(&outbox).await {
                    systemd::tell(&[NotifyState::Watchdog]);
                }
            }
            _ = line.tick() => if state.has_changed().unwrap_or(false) {
                let (state, reason) = state.borrow_and_update().clone();
                let text = if reason.is_empty() { state.as_str().to_owned() } else { format!("{}: {reason}", state.as_str()) };
                systemd::tell(&[NotifyState::Status(&text)]);
            }
        }
    };
    systemd::tell(&[NotifyState::Stopping]);
    tracing::info!("Stopping");
    let fatal = failed.map(|Ended { name, failure }| {
        let failure = failure.unwrap_or_else(|| String::from("it returned"));
        tracing::error!(task = name, failure, "A task ended early");
        Fatal::new(Exit::Internal, format!("the task {name:?} ended early: {failure}"))
    });
    tasks.stop().await;
    fatal.map_or(Ok(()), Err)
}

fn not_listening(error: HttpDoorError) -> Fatal {
    let exit = match &error {
        HttpDoorError::Address { .. } => Exit::Unreachable,
        HttpDoorError::Access { .. } => Exit::Configuration,
    };
    Fatal::of(exit, "a door cannot be opened", error)
}

fn on_signal(kind: SignalKind) -> Result<Signal, Fatal> {
    signal(kind).map_err(|error| Fatal::of(Exit::Internal, "cannot wait for signals", error))
}

/// Whether things move: this task runs, a blocking thread is to be had, and the outbox's writer comes round.
async fn moves(outbox: &Outbox) -> bool {
    let outbox = outbox.clone();
    let asked = tokio::task::spawn_blocking(move || outbox.pulse(ANSWER_DEADLINE));
    let answered = tokio::time::timeout(ANSWER_DEADLINE, asked).await;
    let well = matches!(answered, Ok(Ok(true)));
    if !well {
        tracing::error!("The outbox's writer does not come round: the watchdog is not fed");
    }
    well
}
