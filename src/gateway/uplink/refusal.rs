//! Refusals in words: the broker's reason codes, and what the verifier rejects.

use std::fmt::Display;
use std::time::Duration;

use tokio::time::Instant;

/// Warnings about ignored messages are logged at most this often.
const WARN_EVERY: Duration = Duration::from_secs(30);

/// Ignored messages: counted, and logged at a limited rate.
#[derive(Default)]
pub(super) struct Ignored {
    total: u64,
    logged: Option<Instant>,
}

impl Ignored {
    pub(super) fn count(&mut self, reason: &dyn Display) {
        self.total += 1;
        if self.logged.is_none_or(|at| at.elapsed() >= WARN_EVERY) {
            self.logged = Some(Instant::now());
            tracing::warn!(%reason, total = self.total, "Ignored a message from the broker");
        }
    }
}

/// MQTT 5 §3.4.2.1 in words.
pub(super) fn refusal(code: u8) -> String {
    match code {
        0x10 => "nobody subscribes to it: is the hub running?".to_owned(),
        0x87 => "not authorised: does the broker's ACL know this gateway?".to_owned(),
        0x97 => "quota exceeded".to_owned(),
        0x90 => "topic not valid".to_owned(),
        0x99 => "payload not valid".to_owned(),
        _ => format!("reason code {code:#04x}"),
    }
}
