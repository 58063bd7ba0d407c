//! What gateways sent and the hub refused: counted, named, and logged at a limited rate.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use pgw_core::wire::WireError;

/// The same refusal of the same gateway is logged at most this often.
const LOG_INTERVAL: Duration = Duration::from_secs(10);
/// Most refusals that are counted separately.
const MOST: usize = 1_000;

/// Counts refusals by sender and reason.
#[derive(Debug, Default)]
pub(super) struct Refusals(HashMap<(String, &'static str), Refused>);

#[derive(Debug)]
struct Refused {
    count: u64,
    logged: Instant,
}

impl Refusals {
    /// Counts one; returns whether it should be logged.
    pub(super) fn count(&mut self, who: &str, why: &'static str, now: Instant) -> bool {
        let recent = |refused: &Refused| now.saturating_duration_since(refused.logged) < LOG_INTERVAL;
        if self.0.len() >= MOST {
            self.0.retain(|_, refused| recent(refused));
        }
        let full = self.0.len() >= MOST;
        let key = (who.to_owned(), why);
        let log = match self.0.get_mut(&key) {
            Some(refused) => {
                refused.count += 1;
                let log = !recent(refused);
                if log {
                    refused.logged = now;
                }
                log
            }
            // Beyond the limit refusals are neither counted separately nor logged: the log has enough of them.
            None if full => false,
            None => {
                self.0.insert(key.clone(), Refused { count: 1, logged: now });
                true
            }
        };
        if log {
            let count = self.0.get(&key).map(|refused| refused.count);
            tracing::warn!(gateway = who, reason = why, count, "Refused what a gateway sent");
        }
        log
    }
}

/// The name of what is wrong.
pub(super) fn reason(error: &WireError) -> &'static str {
    match error {
        WireError::Twice(_) => "a property that comes twice",
        WireError::Text(_) => "a text that does not fit",
        WireError::Missing(name) | WireError::Malformed(name) => name,
        WireError::Json(_) => "not the expected JSON",
        WireError::Schema(_) => "unknown schema",
        WireError::Signature => "signature",
        WireError::Topic => "topic",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_refusal_is_logged_once_in_a_while_and_the_memory_is_bounded() {
        let (mut refusals, start) = (Refusals::default(), Instant::now());
        assert!(refusals.count("a", "x", start));
        assert!(!refusals.count("a", "x", start + LOG_INTERVAL / 2));
        assert!(refusals.count("a", "y", start), "another reason");
        assert!(refusals.count("a", "x", start + LOG_INTERVAL));
        for n in 0..MOST * 2 {
            refusals.count(&n.to_string(), "x", start + LOG_INTERVAL);
        }
        assert!(refusals.0.len() <= MOST);
        assert!(refusals.count("late", "x", start + LOG_INTERVAL * 3), "the old ones have been removed");
    }
}
