//! The task that looks on: every second, and whenever the link changes.

use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};
use tokio::time::MissedTickBehavior;
use uuid::Uuid;

use crate::health::state::{HealthState, Level, Looks, Raised};
use crate::health::{LinkSnapshot, Reports, changes, clock};
use crate::outbox::Outbox;
use crate::transaction::{Gateway, Practice, rfc3339, unix_millis_now};
use crate::wire::SCHEMA;
use crate::wire::presence::Event;

/// Events that wait for the link; more are in the log only.
const EVENTS: usize = 256;

/// How often everything is looked at, at least.
const LOOK: Duration = Duration::from_secs(1);

/// What is looked at and how often it is said.
pub struct Settings {
    /// In the payload.
    pub practice: Practice,
    /// In the payload.
    pub gateway: Gateway,
    /// The payload goes out this often, and at each change of state.
    pub interval: Duration,
}

/// Where the watcher speaks to.
pub struct Voice {
    published: watch::Sender<Vec<u8>>,
    current: watch::Sender<Vec<u8>>,
    events: mpsc::Sender<Event>,
}

/// The watcher's voice, what the uplink publishes of it, and the newest payload of every look for the box itself.
#[must_use]
pub fn channels() -> (Voice, Reports, watch::Receiver<Vec<u8>>) {
    let (published, health) = watch::channel(Vec::new());
    let (current, newest) = watch::channel(Vec::new());
    let (events, received) = mpsc::channel(EVENTS);
    (Voice { published, current, events }, Reports { health, events: received }, newest)
}

/// Looks on until `stop` is true or its sender is gone. `refused_total` is asked at each look.
pub async fn run(
    settings: Settings,
    outbox: Outbox,
    mut link: watch::Receiver<LinkSnapshot>,
    refused_total: impl Fn() -> u64 + Send,
    voice: Voice,
    mut stop: watch::Receiver<bool>,
) {
    let mut state = HealthState::new(settings.practice, settings.gateway, Instant::now());
    let mut tick = tokio::time::interval(LOOK.min(settings.interval));
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut said: Option<Instant> = None;
    let mut link_is_there = true;
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            changed = link.changed(), if link_is_there => link_is_there = changed.is_ok(),
            _ = stop.wait_for(|stop| *stop) => return,
        }
        let now = Instant::now();
        let snapshot = outbox.snapshot();
        let seen = link.borrow_and_update().clone();
        let looks = Looks {
            outbox: &snapshot,
            link: &seen,
            refused_total: refused_total(),
            clock: clock::trust(),
            rss_bytes: rss_bytes(),
            now,
            time: unix_millis_now(),
        };
        let report = state.handle(&looks);
        if report.changed {
            tracing::info!(state = report.state.as_str(), reason = report.reason, "State changed");
        }
        for raised in report.raised.into_iter().chain(outbox.notables().iter().map(changes::from_notable)) {
            tell(&voice.events, &raised);
        }
        let due = said.is_none_or(|said| now.duration_since(said) >= settings.interval);
        if report.changed || due {
            said = Some(now);
            voice.published.send_replace(report.payload.clone());
        }
        voice.current.send_replace(report.payload);
    }
}

fn tell(events: &mpsc::Sender<Event>, raised: &Raised) {
    let Raised { level, code, phase, detail } = raised;
    match level {
        Level::Info => tracing::info!(code, phase, detail, "Event"),
        Level::Warning => tracing::warn!(code, phase, detail, "Event"),
        Level::Alarm => tracing::error!(code, phase, detail, "Event"),
    }
    let event = Event {
        schema: SCHEMA,
        id: Uuid::now_v7().to_string(),
        time: rfc3339(unix_millis_now()),
        level: level.as_str().to_owned(),
        code: (*code).to_owned(),
        phase: (*phase).to_owned(),
        detail: detail.clone(),
    };
    // Full while the link is down for long: it is in the log, and health carries what still holds.
    let _ = events.try_send(event);
}

/// Resident memory of this process; 0 where it cannot be read.
fn rss_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kib.map_or(0, |kib| kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read() {
        assert!(rss_bytes() > 1 << 20);
    }
}
