//! The task that looks on: every second, and whenever the link changes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use pgw_core::transaction::{Gateway, Practice, rfc3339, unix_millis_now};
use pgw_core::wire::SCHEMA;
use pgw_core::wire::presence::Event;
use pgw_outbox::Outbox;
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use tokio::time::MissedTickBehavior;
use uuid::Uuid;

use crate::health::state::{HealthState, Judge, Level, Looks, Raised, State};
use crate::health::{LinkSnapshot, Reports, changes, clock};
use crate::ingest::Counters;

/// Events that wait for the link; more are in the log only.
const EVENTS: usize = 256;

/// How often everything is looked at, at least.
const LOOK: Duration = Duration::from_secs(1);

/// How often, at most: the link tells of every receipt.
const BREATH: Duration = Duration::from_millis(100);

/// Sees everything that health is made of; can be asked at any time.
#[derive(Clone)]
pub struct Eye {
    judge: Judge,
    outbox: Outbox,
    link: watch::Receiver<LinkSnapshot>,
    doors: Arc<Counters>,
}

impl Eye {
    /// Opened at the start of the daemon, right after the store.
    #[must_use]
    pub fn new(
        practice: Practice,
        gateway: Gateway,
        outbox: Outbox,
        link: watch::Receiver<LinkSnapshot>,
        doors: Arc<Counters>,
    ) -> Self {
        let judge = Judge::new(practice, gateway, &outbox.snapshot(), Instant::now());
        Self { judge, outbox, link, doors }
    }

    fn look<R>(&self, with: impl FnOnce(&Looks<'_>) -> R) -> R {
        let (outbox, link, doors) = (self.outbox.snapshot(), self.link.borrow().clone(), self.doors.counts());
        with(&Looks {
            outbox: &outbox,
            link: &link,
            refused_total: doors.refused,
            folders_away: doors.folders_away,
            clock: clock::trust(),
            rss_bytes: rss_bytes(),
            now: Instant::now(),
            time: unix_millis_now(),
        })
    }

    /// The status document for the box itself: health's fields, and `lanes`, as of now.
    #[must_use]
    pub fn status(&self) -> Value {
        self.look(|looks| {
            let payload = self.judge.verdict(looks).payload;
            let mut status: Value = serde_json::from_slice(&payload).unwrap_or_default();
            let one = looks.outbox.lanes.len() == 1;
            let lanes = looks.outbox.lanes.iter().map(|(lane, counts)| {
                let oldest = counts.oldest_time.map(|oldest| looks.time.saturating_sub(oldest) / 1000);
                json!({
                    "lane": lane,
                    "accepted": counts.accepted,
                    "confirmed": counts.confirmed,
                    "waiting": counts.waiting,
                    "held": one.then_some(looks.link.held),
                    "damaged": counts.damaged,
                    "waiting_bytes": counts.waiting_bytes,
                    "oldest_age_seconds": oldest,
                })
            });
            status["lanes"] = lanes.collect();
            status["upstream"] = looks.link.upstream.as_str().into();
            let keys = self.outbox.key_uses().into_iter();
            let keys =
                keys.map(|used| json!({"id": used.id, "present": used.present, "needed_by": used.needed_by}));
            status["outbox_keys"] = keys.collect();
            status
        })
    }
}

/// Where the watcher speaks to.
pub struct Voice {
    published: watch::Sender<Vec<u8>>,
    state: watch::Sender<(State, String)>,
    events: mpsc::Sender<Event>,
}

/// The watcher's voice, what the uplink publishes of it, and the state with its reason for the box itself.
#[must_use]
pub fn channels() -> (Voice, Reports, watch::Receiver<(State, String)>) {
    let (published, health) = watch::channel(Vec::new());
    let (state, seen) = watch::channel((State::Buffering, String::from("starting")));
    let (events, received) = mpsc::channel(EVENTS);
    (Voice { published, state, events }, Reports { health, events: received }, seen)
}

/// Looks on until `stop` is true or its sender is gone. The payload goes out every `interval` and at each change.
pub async fn run(mut eye: Eye, interval: Duration, voice: Voice, mut stop: watch::Receiver<bool>) {
    let mut state = HealthState::new(eye.judge.clone());
    let mut tick = tokio::time::interval(LOOK.min(interval));
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut said: Option<Instant> = None;
    let (mut link_is_there, mut last) = (true, Instant::now());
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            changed = changed(&mut eye.link, last), if link_is_there => link_is_there = changed,
            _ = stop.wait_for(|stop| *stop) => return,
        }
        last = Instant::now();
        eye.outbox.set_clock(clock::trust());
        let report = eye.look(|looks| state.handle(looks));
        let verdict = report.verdict;
        if report.changed {
            tracing::info!(state = verdict.state.as_str(), reason = verdict.reason, "State changed");
        }
        for raised in report.raised.into_iter().chain(eye.outbox.alarms().iter().map(changes::from_notable)) {
            tell(&voice.events, &raised);
        }
        if report.changed || said.is_none_or(|said| said.elapsed() >= interval) {
            said = Some(Instant::now());
            voice.published.send_replace(verdict.payload);
        }
        voice.state.send_if_modified(|state| {
            let new = (verdict.state, verdict.reason);
            let modified = *state != new;
            *state = new;
            modified
        });
    }
}

/// The link has something new, and the last look is long enough ago. False: the uplink has ended.
async fn changed(link: &mut watch::Receiver<LinkSnapshot>, last: Instant) -> bool {
    let there = link.changed().await.is_ok();
    // If this is cancelled here the news counts as seen, and it is: something else has made the watcher look.
    tokio::time::sleep_until((last + BREATH).into()).await;
    there
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
