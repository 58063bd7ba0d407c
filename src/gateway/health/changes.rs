//! What has changed since the last observation, as events: each is raised once when it begins and once when it ends.
//! The uplink raises what its delivery machines report (held, diverged ...), because it knows the lane and position.

use std::time::{Duration, Instant};

use pgw_core::transaction::{Clock, UnixMillis};
use pgw_outbox::{LaneCounts, OutboxAlarm, Snapshot};

use crate::health::observation::{Level, Observation, Raised, adds_up, seconds_until};

/// A certificate that ends within so many days is an alarm ...
pub(super) const CERTIFICATE_ALARM_DAYS: i64 = 7;
/// ... and within so many a warning.
const CERTIFICATE_WARNING_DAYS: i64 = 30;

/// The wall clock may drift this far from the monotonic one between two observations.
const STEP: Duration = Duration::from_secs(2);

/// The facts of the last observation.
#[derive(Debug, Default)]
pub(super) struct Changes {
    link_up: Option<bool>,
    outage: Option<Instant>,
    refusing: bool,
    store_low: bool,
    folders_away: bool,
    numbers_wrong: bool,
    certificate: Certificate,
    clock: Option<Clock>,
    last: Option<(Instant, UnixMillis)>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Certificate {
    #[default]
    Good,
    Warning,
    Alarm,
    Expired,
}

/// More than four fifths of the store's limit.
pub(super) fn store_low(outbox: &Snapshot) -> bool {
    outbox.limit_bytes > 0 && outbox.store_bytes > outbox.limit_bytes / 5 * 4
}

/// Whole days until the client certificate ends; negative once it has.
pub(super) fn certificate_days(observed: &Observation<'_>) -> Option<i64> {
    let seconds = seconds_until(observed.link.certificate_expires?, observed.time);
    Some(seconds.div_euclid(86_400))
}

/// An event for an alarm of the outbox.
pub(super) fn from_outbox_alarm(alarm: &OutboxAlarm) -> Raised {
    let level = match alarm.code {
        "damaged" | "salvaged" | "store.trouble" | "store.shortfall" | "store.set_aside" => Level::Alarm,
        "store.works" | "store.room" | "index.rebuilt" | "quarantine.released" | "quarantine.discarded" => {
            Level::Info
        }
        _ => Level::Warning,
    };
    Raised { level, code: alarm.code, phase: "", detail: alarm.detail.clone() }
}

impl Changes {
    pub(super) fn since(&mut self, observed: &Observation<'_>, counts: &LaneCounts) -> Vec<Raised> {
        let mut raised = Vec::new();
        self.link(observed, counts, &mut raised);
        let mut flag =
            |before: &mut bool, now: bool, begins: (Level, &'static str, String), over: &'static str| {
                if std::mem::replace(before, now) != now {
                    let (level, code, detail) = if now { begins } else { (Level::Info, over, String::new()) };
                    raised.push(Raised { level, code, phase: "", detail });
                }
            };
        let outbox = observed.outbox;
        let refusing = outbox.refusing.clone().unwrap_or_default();
        flag(
            &mut self.refusing,
            outbox.refusing.is_some(),
            (Level::Alarm, "store.refusing", refusing),
            "store.accepting",
        );
        let low = format!("{} of {} bytes are used", outbox.store_bytes, outbox.limit_bytes);
        flag(&mut self.store_low, store_low(outbox), (Level::Warning, "store.filling", low), "store.eased");
        let away = format!("{} of the folders cannot be used", observed.folders_away);
        flag(
            &mut self.folders_away,
            observed.folders_away > 0,
            (Level::Alarm, "folder.away", away),
            "folder.back",
        );
        let numbers = format!(
            "accepted {}, confirmed {}, waiting {}, damaged {}",
            counts.accepted, counts.confirmed, counts.waiting, counts.damaged
        );
        flag(
            &mut self.numbers_wrong,
            !adds_up(counts),
            (Level::Alarm, "numbers.disagree", numbers),
            "numbers.agree",
        );
        self.certificate(observed, &mut raised);
        self.clock(observed, &mut raised);
        raised
    }

    fn link(&mut self, observed: &Observation<'_>, counts: &LaneCounts, raised: &mut Vec<Raised>) {
        let link = observed.link;
        // Before the first attempt has ended there is nothing to report.
        if self.link_up == Some(link.up) || (self.link_up.is_none() && !link.up && link.failure.is_empty()) {
            self.outage = link.down_since.or(self.outage);
            return;
        }
        let event = if link.up {
            let outage =
                self.outage.map_or(0, |since| observed.now.saturating_duration_since(since).as_secs());
            let detail = format!("after {outage} s, {} waiting", counts.waiting);
            Raised { level: Level::Info, code: "link.up", phase: link.phase.as_str(), detail }
        } else {
            let detail = if link.failure.is_empty() { "the connection was lost" } else { &link.failure };
            Raised {
                level: Level::Warning,
                code: "link.down",
                phase: link.phase.as_str(),
                detail: detail.to_owned(),
            }
        };
        self.link_up = Some(link.up);
        self.outage = link.down_since;
        raised.push(event);
    }

    fn certificate(&mut self, observed: &Observation<'_>, raised: &mut Vec<Raised>) {
        let Some(days) = certificate_days(observed) else { return };
        let now = match days {
            ..0 => Certificate::Expired,
            0..CERTIFICATE_ALARM_DAYS => Certificate::Alarm,
            CERTIFICATE_ALARM_DAYS..CERTIFICATE_WARNING_DAYS => Certificate::Warning,
            _ => Certificate::Good,
        };
        let before = std::mem::replace(&mut self.certificate, now);
        let (level, code) = match now {
            _ if now == before => return,
            Certificate::Good => (Level::Info, "cert.renewed"),
            Certificate::Warning => (Level::Warning, "cert.expiring"),
            Certificate::Alarm => (Level::Alarm, "cert.expiring"),
            Certificate::Expired => (Level::Alarm, "cert.expired"),
        };
        let detail = format!("the client certificate expires in {days} days");
        raised.push(Raised { level, code, phase: "", detail });
    }

    fn clock(&mut self, observed: &Observation<'_>, raised: &mut Vec<Raised>) {
        if let Some((instant, time)) = self.last.replace((observed.now, observed.time)) {
            let passed = observed.now.saturating_duration_since(instant);
            let expected = time.saturating_add(u64::try_from(passed.as_millis()).unwrap_or(u64::MAX));
            let off = observed.time.abs_diff(expected);
            if u128::from(off) > STEP.as_millis() {
                let direction = if observed.time > expected { "forward" } else { "back" };
                let detail = format!("the clock was set {direction} by {} s", off / 1000);
                raised.push(Raised { level: Level::Warning, code: "clock.step", phase: "", detail });
            }
        }
        let before = self.clock.replace(observed.clock);
        if before.is_some_and(|before| before != observed.clock) {
            let level = if observed.clock == Clock::Synced { Level::Info } else { Level::Warning };
            let detail = format!("the clock is {}", observed.clock.as_str());
            raised.push(Raised { level, code: "clock.trust", phase: "", detail });
        }
    }
}
