//! The gateway's state, its health payload, and what has changed. Sans-IO: no clock, no task.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use pgw_core::transaction::{Clock, Gateway, Practice, rfc3339};
use pgw_core::wire::SCHEMA;
use pgw_outbox::{LaneCounts, Snapshot};

use crate::health::changes;
use crate::health::observation::{GatewayState, Observation, Raised, adds_up, seconds_until, sum};
use crate::health::payload::Payload;

/// If transactions wait on a live link and none was confirmed for this long, the state is not "ok".
const CONFIRM_OVERDUE: Duration = Duration::from_secs(60);

/// The number of confirmed transactions when it last changed, or when nothing was waiting.
type LastConfirmed = Arc<Mutex<Option<(u64, Instant)>>>;

/// Assesses an observation for any caller; clones share what they have seen.
#[derive(Debug, Clone)]
pub struct Evaluator {
    practice: Practice,
    gateway: Gateway,
    started: Instant,
    /// Accepted in total at the start; the rest was accepted since.
    accepted_before: u64,
    progress: LastConfirmed,
}

/// The assessment of one moment.
#[derive(Debug, Clone, PartialEq)]
pub struct Assessment {
    /// The state.
    pub state: GatewayState,
    /// The reason in a few words; empty when ok.
    pub reason: String,
    /// The `health` payload.
    pub payload: Vec<u8>,
}

/// Keeps what one observation must know about the ones before.
#[derive(Debug)]
pub struct HealthState {
    evaluator: Evaluator,
    state: Option<GatewayState>,
    changes: changes::Changes,
}

/// The result of an observation.
#[derive(Debug, Clone, PartialEq)]
pub struct Update {
    /// The assessment.
    pub assessment: Assessment,
    /// Whether the state has changed since the last observation: the payload is then published at once.
    pub changed: bool,
    /// The events to publish.
    pub raised: Vec<Raised>,
}

impl HealthState {
    /// No observation yet.
    #[must_use]
    pub fn new(evaluator: Evaluator) -> Self {
        Self { evaluator, state: None, changes: changes::Changes::default() }
    }

    /// Takes an observation.
    pub fn handle(&mut self, observed: &Observation<'_>) -> Update {
        let assessment = self.evaluator.assess(observed);
        let changed = self.state.replace(assessment.state) != Some(assessment.state);
        Update { assessment, changed, raised: self.changes.since(observed, &sum(observed.outbox)) }
    }
}

impl Evaluator {
    /// `outbox` at the start.
    #[must_use]
    pub fn new(practice: Practice, gateway: Gateway, outbox: &Snapshot, now: Instant) -> Self {
        Self {
            practice,
            gateway,
            started: now,
            accepted_before: sum(outbox).accepted,
            progress: LastConfirmed::default(),
        }
    }

    /// The assessment of an observation.
    #[must_use]
    pub fn assess(&self, observed: &Observation<'_>) -> Assessment {
        let counts = sum(observed.outbox);
        let (state, reason) = self.evaluate(observed, &counts);
        let mut payload = self.payload(observed, &counts);
        payload.set_state(state, reason.clone());
        Assessment { state, reason, payload: payload.to_json() }
    }

    fn evaluate(&self, observed: &Observation<'_>, counts: &LaneCounts) -> (GatewayState, String) {
        let (outbox, link) = (observed.outbox, observed.link);
        let idle = self.idle(observed, counts);
        if let Some(reason) = &outbox.refusing {
            return (GatewayState::Refusing, reason.clone());
        }
        if !adds_up(counts) {
            return (GatewayState::Degraded, String::from("the numbers do not add up"));
        }
        if !link.refused.is_empty() {
            return (GatewayState::Degraded, link.refused.clone());
        }
        if let Some(reason) = link.later.values().next().filter(|_| link.up) {
            return (GatewayState::Degraded, reason.clone());
        }
        if !link.strange_store.is_empty() {
            return (GatewayState::Degraded, link.strange_store.clone());
        }
        if !link.diverged.is_empty() {
            return (GatewayState::Degraded, link.diverged.clone());
        }
        if counts.damaged > 0 {
            return (GatewayState::Degraded, format!("{} damaged", counts.damaged));
        }
        if link.held > 0 {
            return (GatewayState::Degraded, format!("{} held: {}", link.held, link.held_because));
        }
        if changes::store_low(outbox) {
            return (GatewayState::Degraded, String::from("the store is nearly full"));
        }
        match changes::certificate_days(observed) {
            Some(days) if days < 0 => {
                return (GatewayState::Degraded, String::from("the client certificate has expired"));
            }
            Some(days) if days < changes::CERTIFICATE_ALARM_DAYS => {
                return (GatewayState::Degraded, format!("the client certificate expires in {days} days"));
            }
            _ => {}
        }
        if observed.folders_away > 0 {
            return (
                GatewayState::Degraded,
                format!("{} of the folders cannot be used", observed.folders_away),
            );
        }
        if !link.up {
            let failure = if link.failure.is_empty() { "connecting" } else { &link.failure };
            return (GatewayState::Buffering, format!("link down at {}: {failure}", link.phase.as_str()));
        }
        // An open socket, or even an answer, is no proof: only confirmed transactions are.
        if idle > CONFIRM_OVERDUE {
            return (GatewayState::Buffering, format!("nothing confirmed for {} s", idle.as_secs()));
        }
        (GatewayState::Ok, String::new())
    }

    /// For how long the link has been up with something waiting and nothing confirmed.
    fn idle(&self, observed: &Observation<'_>, counts: &LaneCounts) -> Duration {
        let now = observed.now;
        let mut progress = self.progress.lock().unwrap_or_else(PoisonError::into_inner);
        match *progress {
            Some((confirmed, since))
                if observed.link.up && counts.waiting > 0 && confirmed == counts.confirmed =>
            {
                now.saturating_duration_since(since)
            }
            _ => {
                *progress = Some((counts.confirmed, now));
                Duration::ZERO
            }
        }
    }

    fn payload(&self, observed: &Observation<'_>, counts: &LaneCounts) -> Payload {
        let (outbox, link) = (observed.outbox, observed.link);
        let age = |since: Instant| observed.now.saturating_duration_since(since).as_secs();
        let uptime = age(self.started);
        let rate = link.forward_rate_per_second;
        Payload {
            schema: SCHEMA,
            practice: self.practice.to_string(),
            gateway: self.gateway.to_string(),
            session: link.session,
            time: rfc3339(observed.time),
            state: "",
            state_code: 0,
            state_reason: String::new(),
            uptime_seconds: uptime,
            link_up: link.up.into(),
            link_phase: link.phase.as_str(),
            outage_seconds: link.down_since.map_or(0, age),
            last_receipt_age_seconds: link.last_receipt.map(age),
            probe_rtt_seconds: link.probe.map(|(round_trip, _)| rounded(round_trip.as_secs_f64(), 1000.0)),
            probe_age_seconds: link.probe.map(|(_, when)| age(when)),
            waiting: counts.waiting,
            waiting_bytes: counts.waiting_bytes,
            oldest_age_seconds: counts
                .oldest_time
                .map_or(0, |oldest| observed.time.saturating_sub(oldest) / 1000),
            // The outbox was read a moment before the link: what arrived or left in between is not part of waiting.
            in_flight: link.in_flight.min(counts.waiting),
            held: link.held,
            damaged: counts.damaged,
            refused_in_quarantine: outbox.quarantined,
            forward_rate_per_second: rounded(rate, 10.0),
            drain_eta_seconds: drain_eta(counts.waiting, rate),
            accepted_total: counts.accepted,
            confirmed_total: counts.confirmed,
            forwarded_total: link.forwarded_total,
            duplicates_total: outbox.repeated_total,
            refused_total: observed.refused_total,
            accept_seconds_p99: rounded(outbox.accept_seconds_p99, 10_000.0),
            store_bytes: outbox.store_bytes,
            store_limit_bytes: outbox.limit_bytes,
            disk_free_bytes: outbox.disk_free_bytes,
            space_days: space_days(
                outbox,
                counts,
                counts.accepted.saturating_sub(self.accepted_before),
                uptime,
            ),
            rss_bytes: observed.rss_bytes,
            clock_synced: (observed.clock == Clock::Synced).into(),
            cert_expires_seconds: link.certificate_expires.map(|end| seconds_until(end, observed.time)),
            version: env!("CARGO_PKG_VERSION"),
        }
    }
}

fn rounded(value: f64, steps: f64) -> f64 {
    if value.is_finite() { (value * steps).round() / steps } else { 0.0 }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "`as` saturates, and it is an estimate"
)]
fn drain_eta(waiting: u64, rate: f64) -> Option<u64> {
    match waiting {
        0 => Some(0),
        _ if rate > 0.0 => Some((waiting as f64 / rate).ceil() as u64),
        _ => None,
    }
}

/// Days until the store or the disk is full if nothing is confirmed and input continues as since the start. Unknown in
/// the first ten minutes, and while nothing arrives.
fn space_days(outbox: &Snapshot, counts: &LaneCounts, accepted: u64, uptime: u64) -> Option<u64> {
    const TEN_MINUTES: u64 = 600;
    /// The average size of a clinical transaction, used when no waiting one shows it.
    const USUAL_BYTES: u64 = 25_000;
    if uptime < TEN_MINUTES || accepted == 0 {
        return None;
    }
    let each =
        counts.waiting_bytes.checked_div(counts.waiting).filter(|bytes| *bytes > 0).unwrap_or(USUAL_BYTES);
    let space = outbox.limit_bytes.saturating_sub(outbox.store_bytes).min(outbox.disk_free_bytes);
    // The store takes about twice the payload.
    let a_day = u128::from(accepted) * u128::from(each) * 2 * 86_400 / u128::from(uptime);
    u64::try_from(u128::from(space) / a_day.max(1)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::health::MAX_BYTES;
    use crate::health::observation::Level;
    use crate::uplink::LinkSnapshot;
    use pgw_core::transaction::{Lane, UnixMillis};
    use pgw_link::phase::Phase;

    const DAY: u64 = 86_400_000;

    struct Scene {
        state: HealthState,
        outbox: Snapshot,
        link: LinkSnapshot,
        start: Instant,
        now: Instant,
        time: UnixMillis,
        clock: Clock,
        folders_away: u64,
    }

    impl Scene {
        fn new() -> Self {
            let now = Instant::now();
            let counts = LaneCounts { accepted: 10, confirmed: 10, ..LaneCounts::default() };
            let outbox = Snapshot {
                lanes: vec![(Lane::new("clinical").unwrap(), counts)],
                store_bytes: 1_000,
                limit_bytes: 1_000_000,
                disk_free_bytes: 1_000_000_000,
                ..Snapshot::default()
            };
            let link = LinkSnapshot {
                up: true,
                phase: Phase::Live,
                down_since: None,
                last_receipt: Some(now),
                certificate_expires: Some(400 * DAY),
                ..LinkSnapshot::starting(now)
            };
            let (practice, gateway) = (Practice::new("B86022").unwrap(), Gateway::new("gw1").unwrap());
            let state = HealthState::new(Evaluator::new(practice, gateway, &outbox, now));
            Self {
                state,
                outbox,
                link,
                start: now,
                now,
                time: 100 * DAY,
                clock: Clock::Synced,
                folders_away: 0,
            }
        }

        fn counts(&mut self) -> &mut LaneCounts {
            &mut self.outbox.lanes[0].1
        }

        fn after(&mut self, seconds: u64) -> Update {
            self.now += Duration::from_secs(seconds);
            self.time += seconds * 1000;
            self.observe()
        }

        fn observe(&mut self) -> Update {
            self.state.handle(&Observation {
                outbox: &self.outbox,
                link: &self.link,
                refused_total: 3,
                folders_away: self.folders_away,
                clock: self.clock,
                rss_bytes: 40 << 20,
                now: self.now,
                time: self.time,
            })
        }

        fn link_down(&mut self) {
            self.link.up = false;
            self.link.phase = Phase::Tls;
            self.link.failure = String::from("certificate has expired");
            self.link.down_since = Some(self.now);
        }
    }

    fn json(update: &Update) -> serde_json::Map<String, serde_json::Value> {
        serde_json::from_slice(&update.assessment.payload).unwrap()
    }

    fn codes(update: &Update) -> Vec<&'static str> {
        update.raised.iter().map(|raised| raised.code).collect()
    }

    #[test]
    fn each_state_has_its_causes_and_the_worst_wins() {
        let mut scene = Scene::new();
        assert_eq!(
            (scene.observe().assessment.state, scene.observe().assessment.reason.as_str()),
            (GatewayState::Ok, "")
        );
        scene.link_down();
        let update = scene.observe();
        assert_eq!(update.assessment.state, GatewayState::Buffering);
        assert_eq!(update.assessment.reason, "link down at tls: certificate has expired");
        scene.link.held = 1;
        assert_eq!(scene.observe().assessment.state, GatewayState::Degraded);
        scene.outbox.refusing = Some(String::from("the disk is full"));
        let update = scene.observe();
        assert_eq!(
            (update.assessment.state, update.assessment.reason.as_str()),
            (GatewayState::Refusing, "the disk is full")
        );
        assert_eq!(json(&update)["state_code"], 3);
    }

    #[test]
    fn each_thing_that_a_person_must_see_degrades() {
        type Change = fn(&mut Scene);
        let changes: [(Change, &str); 10] = [
            (|s| s.folders_away = 1, "1 of the folders cannot be used"),
            (|s| (s.counts().accepted, s.counts().damaged) = (12, 2), "2 damaged"),
            (|s| s.link.diverged = String::from("hub1 is ahead"), "hub1 is ahead"),
            (|s| s.link.refused = String::from("the key is refused"), "the key is refused"),
            (|s| _ = s.link.later.insert(Lane::new("x").unwrap(), String::from("not now")), "not now"),
            (|s| s.link.strange_store = String::from("another store"), "another store"),
            (|s| s.outbox.store_bytes = 800_001, "the store is nearly full"),
            (
                |s| s.link.certificate_expires = Some(s.time + 3 * DAY + 1),
                "the client certificate expires in 3 days",
            ),
            (|s| s.link.certificate_expires = Some(s.time - 1000), "the client certificate has expired"),
            (|s| s.counts().accepted = 11, "the numbers do not add up"),
        ];
        for (change, reason) in changes {
            let mut scene = Scene::new();
            change(&mut scene);
            let update = scene.observe();
            assert_eq!(
                (update.assessment.state, update.assessment.reason.as_str()),
                (GatewayState::Degraded, reason)
            );
        }
    }

    #[test]
    fn an_open_socket_is_no_proof_of_life() {
        let mut scene = Scene::new();
        (scene.counts().accepted, scene.counts().waiting) = (11, 1);
        assert_eq!(scene.observe().assessment.state, GatewayState::Ok);
        scene.link.last_receipt = Some(scene.now);
        assert_eq!(scene.after(60).assessment.state, GatewayState::Ok);
        // Receipts that confirm nothing new are no proof either.
        scene.link.last_receipt = Some(scene.now);
        let update = scene.after(1);
        assert_eq!(
            (update.assessment.state, update.assessment.reason.as_str()),
            (GatewayState::Buffering, "nothing confirmed for 61 s")
        );
        (scene.counts().accepted, scene.counts().confirmed) = (12, 11);
        assert_eq!(scene.observe().assessment.state, GatewayState::Ok);
        assert_eq!(scene.after(61).assessment.state, GatewayState::Buffering);
        // With nothing waiting there is nothing to confirm, however long it lasts.
        (scene.counts().confirmed, scene.counts().waiting) = (12, 0);
        assert_eq!(scene.after(3600).assessment.state, GatewayState::Ok);
        (scene.counts().accepted, scene.counts().waiting) = (13, 1);
        assert_eq!(scene.after(10).assessment.state, GatewayState::Ok);
        // An outage is reported as an outage; after it the hub has its minute again.
        scene.link_down();
        assert!(scene.after(600).assessment.reason.starts_with("link down"));
        scene.link.up = true;
        assert_eq!(scene.after(50).assessment.state, GatewayState::Ok);
    }

    #[test]
    fn the_payload_adds_up_over_all_lanes_and_has_every_key() {
        let mut scene = Scene::new();
        let urgent = LaneCounts {
            accepted: 7,
            confirmed: 2,
            waiting: 4,
            damaged: 1,
            waiting_bytes: 100,
            oldest_time: Some(scene.time - 5_000),
        };
        scene.outbox.lanes.push((Lane::new("urgent").unwrap(), urgent));
        let payload = json(&scene.observe());
        let number = |key: &str| payload[key].as_u64().unwrap();
        assert_eq!(number("accepted_total"), 17);
        assert_eq!(
            number("accepted_total"),
            number("confirmed_total") + number("waiting") + number("damaged")
        );
        assert_eq!((number("oldest_age_seconds"), number("refused_total")), (5, 3));
        let keys: Vec<&str> = payload.keys().map(String::as_str).collect();
        let mut expected: Vec<&str> = "schema practice gateway session time state state_code state_reason \
            uptime_seconds link_up link_phase outage_seconds last_receipt_age_seconds probe_rtt_seconds \
            probe_age_seconds waiting waiting_bytes oldest_age_seconds in_flight held damaged \
            refused_in_quarantine forward_rate_per_second drain_eta_seconds accepted_total confirmed_total \
            forwarded_total duplicates_total refused_total accept_seconds_p99 store_bytes store_limit_bytes \
            disk_free_bytes space_days rss_bytes clock_synced cert_expires_seconds version"
            .split_whitespace()
            .collect();
        expected.sort_unstable();
        let mut keys = keys;
        keys.sort_unstable();
        assert_eq!(keys, expected);
    }

    #[test]
    fn the_payload_stays_small_whatever_the_numbers() {
        let mut scene = Scene::new();
        let most = 999_999_999_999;
        *scene.counts() = LaneCounts {
            accepted: 3 * most,
            confirmed: most,
            waiting: most,
            damaged: most,
            waiting_bytes: most,
            oldest_time: Some(0),
        };
        scene.outbox.store_bytes = most;
        scene.outbox.limit_bytes = most;
        scene.outbox.disk_free_bytes = most;
        scene.outbox.quarantined = most;
        scene.outbox.repeated_total = most;
        scene.outbox.accept_seconds_p99 = 1.0 / 3.0;
        scene.outbox.refusing = Some("\"\\\u{1}".repeat(2000));
        scene.link.forward_rate_per_second = 123_456.789_123;
        scene.link.probe = Some((Duration::from_micros(123_456_789), scene.now));
        scene.link.forwarded_total = most;
        scene.link.in_flight = most;
        scene.link.held = most;
        scene.link.session = most;
        scene.time = 1_795_385_530_123;
        scene.state.evaluator.practice = Practice::new("B86022123").unwrap();
        scene.state.evaluator.gateway = Gateway::new(&"g".repeat(32)).unwrap();
        let update = scene.after(10_000_000);
        assert!(update.assessment.payload.len() <= MAX_BYTES, "{}", update.assessment.payload.len());
        assert_eq!(json(&update)["state"], "refusing");
    }

    #[test]
    fn a_state_is_news_once() {
        let mut scene = Scene::new();
        assert!(scene.observe().changed);
        assert!(!scene.observe().changed);
        scene.link_down();
        assert!(scene.observe().changed);
        assert!(!scene.after(5).changed);
    }

    #[test]
    fn a_change_is_raised_once_when_it_begins_and_once_when_it_ends() {
        let mut scene = Scene::new();
        assert_eq!(codes(&scene.observe()), ["link.up"]);
        scene.link_down();
        let update = scene.observe();
        assert_eq!(codes(&update), ["link.down"]);
        assert_eq!((update.raised[0].phase, update.raised[0].level), ("tls", Level::Warning));
        assert_eq!(codes(&scene.after(90)), [""; 0]);
        (scene.link.up, scene.link.phase, scene.link.down_since) = (true, Phase::Live, None);
        let update = scene.observe();
        assert_eq!(
            (codes(&update), update.raised[0].detail.as_str()),
            (vec!["link.up"], "after 90 s, 0 waiting")
        );

        scene.outbox.refusing = Some(String::from("the disk is full"));
        scene.outbox.store_bytes = 900_000;
        assert_eq!(codes(&scene.observe()), ["store.refusing", "store.filling"]);
        assert_eq!(codes(&scene.observe()), [""; 0]);
        scene.outbox.refusing = None;
        scene.outbox.store_bytes = 1;
        assert_eq!(codes(&scene.observe()), ["store.accepting", "store.eased"]);
    }

    #[test]
    fn nothing_is_raised_before_the_first_attempt_has_ended() {
        let mut scene = Scene::new();
        scene.link = LinkSnapshot::starting(scene.now);
        assert_eq!(codes(&scene.observe()), [""; 0]);
        scene.link.failure = String::from("connection refused");
        assert_eq!(codes(&scene.observe()), ["link.down"]);
    }

    #[test]
    fn a_certificate_warns_then_alarms_then_has_expired() {
        let mut scene = Scene::new();
        let _ = scene.observe();
        for (days, level, code) in [
            (29, Level::Warning, "cert.expiring"),
            (6, Level::Alarm, "cert.expiring"),
            (-1, Level::Alarm, "cert.expired"),
            (300, Level::Info, "cert.renewed"),
        ] {
            scene.link.certificate_expires = Some(scene.time.checked_add_signed(days * 86_400_000).unwrap());
            let update = scene.observe();
            assert_eq!((codes(&update), update.raised[0].level), (vec![code], level), "{days}");
            assert_eq!(codes(&scene.observe()), [""; 0]);
        }
    }

    #[test]
    fn a_clock_that_is_set_is_noticed_and_moves_no_age() {
        let mut scene = Scene::new();
        let _ = scene.observe();
        scene.time -= 3_600_000;
        let update = scene.after(10);
        assert_eq!(
            (codes(&update), update.raised[0].detail.as_str()),
            (vec!["clock.step"], "the clock was set back by 3600 s")
        );
        assert_eq!(json(&update)["last_receipt_age_seconds"], 10);
        assert_eq!(codes(&scene.after(10)), [""; 0]);
        scene.clock = Clock::Holdover;
        assert_eq!(codes(&scene.observe()), ["clock.trust"]);
    }

    #[test]
    fn what_is_not_known_is_null_and_not_zero() {
        let mut scene = Scene::new();
        scene.link = LinkSnapshot::starting(scene.start);
        (scene.counts().accepted, scene.counts().waiting) = (11, 1);
        let payload = json(&scene.observe());
        for key in [
            "last_receipt_age_seconds",
            "probe_rtt_seconds",
            "drain_eta_seconds",
            "space_days",
            "cert_expires_seconds",
        ] {
            assert!(payload[key].is_null(), "{key}");
        }
    }

    #[test]
    fn the_days_of_space_follow_from_the_work_since_the_start() {
        let mut scene = Scene::new();
        let _ = scene.observe();
        // 1,000 of 100 bytes in 1,000 s: 200 bytes of disk a second, 999,000 left: 4,995 s.
        *scene.counts() = LaneCounts {
            accepted: 1_010,
            confirmed: 10,
            waiting: 1_000,
            waiting_bytes: 100_000,
            ..LaneCounts::default()
        };
        assert_eq!(json(&scene.after(1_000))["space_days"], 0);
        scene.outbox.limit_bytes = 20 * 86_400 * 200 + 1_000;
        scene.outbox.disk_free_bytes = u64::MAX;
        assert_eq!(json(&scene.observe())["space_days"], 20);
        scene.outbox.disk_free_bytes = 10 * 86_400 * 200;
        assert_eq!(json(&scene.observe())["space_days"], 10);
    }
}
