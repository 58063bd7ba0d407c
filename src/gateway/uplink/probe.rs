//! Probes: a small message to the hub and back, from time to time, while the link is live.

use std::time::{Duration, Instant};

use pgw_core::transaction::{rfc3339, unix_millis_now};
use pgw_core::wire::SCHEMA;
use pgw_core::wire::presence::Probe;
use uuid::Uuid;

/// Between two probes.
const EVERY: Duration = Duration::from_secs(60);

/// The outstanding probe, if there is one.
#[derive(Debug, Default)]
pub(super) struct Prober {
    under_way: Option<(String, Instant)>,
}

impl Prober {
    /// The next probe, if one is due. An older one without a reply is given up: its age shows in health.
    pub(super) fn due(&mut self) -> Option<Probe> {
        if self.under_way.as_ref().is_some_and(|(_, sent)| sent.elapsed() < EVERY) {
            return None;
        }
        let id = Uuid::now_v7().to_string();
        self.under_way = Some((id.clone(), Instant::now()));
        Some(Probe { schema: SCHEMA, id, time: rfc3339(unix_millis_now()) })
    }

    /// A reply has arrived: its round trip, if it is the first reply to the newest probe.
    pub(super) fn returned(&mut self, id: &str) -> Option<Duration> {
        let (newest, sent) = self.under_way.as_mut()?;
        if newest != id {
            return None;
        }
        newest.clear();
        Some(sent.elapsed())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_at_a_time_and_only_its_own_first_reply_counts() {
        let mut prober = Prober::default();
        let probe = prober.due().unwrap();
        assert_eq!(prober.due(), None);
        assert_eq!(prober.returned("another"), None);
        assert!(prober.returned(&probe.id).is_some());
        assert_eq!(prober.returned(&probe.id), None);
        assert_eq!(prober.due(), None, "a minute lies between two");
    }
}
