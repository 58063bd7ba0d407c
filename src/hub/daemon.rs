//! `practice-hub run`.

use std::time::Duration;

use pgw_core::consequence::Consequence;
use pgw_host::daemon::{Fatal, close_umask, runtime};
use pgw_host::systemd;
use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;

use crate::config::HubConfig;
use crate::gateways::current::CurrentGateways;
use crate::run::{self, HubError};

/// How long the hub may take to store and answer what it has received.
const STOP_DEADLINE: Duration = Duration::from_secs(30);

/// Runs the hub until SIGTERM or SIGINT. The log is already started.
///
/// # Errors
/// [`Fatal`], with the exit code of its consequence: 78 for the signing key or the list of gateways, 75 if another process has the store, 77 for
/// missing rights on it, 74 for its files, 69 for the control socket, 70 for a bug.
pub fn run(config: HubConfig) -> Result<(), Fatal> {
    close_umask();
    let runtime = runtime()?;
    let ran = runtime.block_on(serve(config));
    runtime.shutdown_timeout(Duration::from_secs(1));
    ran
}

fn ended(error: HubError) -> Fatal {
    Fatal::of("the hub has ended", error.consequence(), error)
}

async fn serve(config: HubConfig) -> Result<(), Fatal> {
    let cannot = |error| Fatal::of("cannot wait for signals", Consequence::BUG, error);
    let mut terminate = signal(SignalKind::terminate()).map_err(cannot)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(cannot)?;
    let mut hangup = signal(SignalKind::hangup()).map_err(cannot)?;
    // After the signals: a SIGHUP that comes now reads the list once more, and does not end the hub.
    let gateways = CurrentGateways::load(&config.settings.gateways_file)
        .map_err(|error| Fatal::of("cannot read the list of gateways", error.consequence(), error))?;
    let (stop, stopped) = watch::channel(false);
    let (live, mut seen) = watch::channel(false);
    let mut hub = tokio::spawn(run::run(config.settings, gateways.clone(), stopped, live));
    systemd::notify(&[NotifyState::Ready, NotifyState::Status("connecting")]);
    let watched = systemd::watchdog_interval();
    let mut watchdog = tokio::time::interval(watched.unwrap_or(Duration::from_secs(3600)));
    watchdog.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            // The certificates need nothing: they are read at each connection to the broker.
            _ = hangup.recv() => {
                let gateways = gateways.clone();
                // Its result, good or bad, is in the log.
                drop(tokio::task::spawn_blocking(move || gateways.reload()));
            }
            ended_early = &mut hub => {
                return outcome(ended_early).and(Err(Fatal::new("the hub ended early", Consequence::BUG)));
            }
            _ = watchdog.tick(), if watched.is_some() => systemd::notify(&[NotifyState::Watchdog]),
            Ok(()) = seen.changed() => {
                let status = if *seen.borrow_and_update() { "live" } else { "no broker" };
                systemd::notify(&[NotifyState::Status(status)]);
            }
        }
    }
    systemd::notify(&[NotifyState::Stopping]);
    tracing::info!("Stopping");
    stop.send_replace(true);
    match tokio::time::timeout(STOP_DEADLINE, &mut hub).await {
        Ok(stopped) => outcome(stopped),
        Err(_) => {
            tracing::error!(
                seconds = STOP_DEADLINE.as_secs(),
                "The hub did not stop in time and was aborted"
            );
            Err(Fatal::new("the hub did not stop in time", Consequence::BUG))
        }
    }
}

fn outcome(ended_with: Result<Result<(), HubError>, tokio::task::JoinError>) -> Result<(), Fatal> {
    match ended_with {
        Ok(ran) => ran.map_err(ended),
        Err(_) => Err(Fatal::new("the hub panicked", Consequence::BUG)),
    }
}
