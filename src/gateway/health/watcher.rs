//! The task that observes: every second, and whenever the link changes.

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

use crate::health::observation::{GatewayState, Level, Observation, Raised};
use crate::health::state::{Evaluator, HealthState};
use crate::health::{changes, clock};
use crate::ingest::Counters;
use crate::uplink::{LinkSnapshot, Reports};

/// Events that wait for the link; further ones are in the log only.
const EVENTS: usize = 256;

/// The longest time between two observations.
const POLL: Duration = Duration::from_secs(1);

/// Shortest time between two observations: the link reports every receipt.
const BREATH: Duration = Duration::from_millis(100);

/// Observes everything that health is made of; can be asked at any time.
#[derive(Clone)]
pub struct Sampler {
    evaluator: Evaluator,
    outbox: Outbox,
    link: watch::Receiver<LinkSnapshot>,
    doors: Arc<Counters>,
}

impl Sampler {
    /// Created at the start of the daemon, right after the store.
    #[must_use]
    pub fn new(
        practice: Practice,
        gateway: Gateway,
        outbox: Outbox,
        link: watch::Receiver<LinkSnapshot>,
        doors: Arc<Counters>,
    ) -> Self {
        let evaluator = Evaluator::new(practice, gateway, &outbox.snapshot(), Instant::now());
        Self { evaluator, outbox, link, doors }
    }

    fn with_observation<R>(&self, with: impl FnOnce(&Observation<'_>) -> R) -> R {
        let (outbox, link, doors) = (self.outbox.snapshot(), self.link.borrow().clone(), self.doors.counts());
        with(&Observation {
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

    /// The current status document for the box itself: health's fields, and `lanes`.
    #[must_use]
    pub fn status(&self) -> Value {
        self.with_observation(|observed| {
            let payload = self.evaluator.assess(observed).payload;
            let mut status: Value = serde_json::from_slice(&payload).unwrap_or_default();
            let one = observed.outbox.lanes.len() == 1;
            let lanes = observed.outbox.lanes.iter().map(|(lane, counts)| {
                let oldest = counts.oldest_time.map(|oldest| observed.time.saturating_sub(oldest) / 1000);
                json!({
                    "lane": lane,
                    "accepted": counts.accepted,
                    "confirmed": counts.confirmed,
                    "waiting": counts.waiting,
                    "held": one.then_some(observed.link.held),
                    "damaged": counts.damaged,
                    "waiting_bytes": counts.waiting_bytes,
                    "oldest_age_seconds": oldest,
                })
            });
            status["lanes"] = lanes.collect();
            status["upstream"] = observed.link.upstream.as_str().into();
            let keys = self.outbox.key_uses().into_iter();
            let keys =
                keys.map(|used| json!({"id": used.id, "present": used.present, "needed_by": used.needed_by}));
            status["outbox_keys"] = keys.collect();
            status
        })
    }
}

/// Where the watcher publishes to.
pub struct Publisher {
    published: watch::Sender<Vec<u8>>,
    state: watch::Sender<(GatewayState, String)>,
    events: mpsc::Sender<Event>,
}

/// The watcher's end, the uplink's end, and the state with its reason for the box itself.
#[must_use]
pub fn channels() -> (Publisher, Reports, watch::Receiver<(GatewayState, String)>) {
    let (published, health) = watch::channel(Vec::new());
    let (state, seen) = watch::channel((GatewayState::Buffering, String::from("starting")));
    let (events, received) = mpsc::channel(EVENTS);
    (Publisher { published, state, events }, Reports { health, events: received }, seen)
}

/// Observes until `stop` is true or its sender is gone. Publishes the payload every `interval` and at each change.
pub async fn run(
    mut sampler: Sampler,
    interval: Duration,
    publisher: Publisher,
    mut stop: watch::Receiver<bool>,
) {
    let mut state = HealthState::new(sampler.evaluator.clone());
    let mut tick = tokio::time::interval(POLL.min(interval));
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut published: Option<Instant> = None;
    let (mut link_is_there, mut last) = (true, Instant::now());
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            changed = changed(&mut sampler.link, last), if link_is_there => link_is_there = changed,
            _ = stop.wait_for(|stop| *stop) => return,
        }
        last = Instant::now();
        sampler.outbox.set_clock(clock::trust());
        let update = sampler.with_observation(|observed| state.handle(observed));
        let assessment = update.assessment;
        if update.changed {
            tracing::info!(
                state = assessment.state.as_str(),
                reason = assessment.reason,
                "The state has changed"
            );
        }
        for raised in
            update.raised.into_iter().chain(sampler.outbox.alarms().iter().map(changes::from_outbox_alarm))
        {
            tell(&publisher.events, &raised);
        }
        if update.changed || published.is_none_or(|published| published.elapsed() >= interval) {
            published = Some(Instant::now());
            publisher.published.send_replace(assessment.payload);
        }
        publisher.state.send_if_modified(|state| {
            let new = (assessment.state, assessment.reason);
            let modified = *state != new;
            *state = new;
            modified
        });
    }
}

/// Returns when the link has changed and the last observation is long enough ago. False: the uplink has ended.
async fn changed(link: &mut watch::Receiver<LinkSnapshot>, last: Instant) -> bool {
    let there = link.changed().await.is_ok();
    // If this is cancelled here the change counts as seen, and it is: something else has started an observation.
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
    // Full while the link is down for long: the event is in the log, and health shows what is still true.
    let _ = events.try_send(event);
}

/// Resident memory of this process; 0 if it cannot be read.
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
