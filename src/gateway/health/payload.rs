//! The `health` payload, version 1: flat JSON with every key always present, `null` for unknown, at most 1,100 bytes on the wire.

use pgw_core::wire::said::MOST_ORIGIN_BYTES;
use serde::Serialize;

use crate::health::observation::GatewayState;

/// Most bytes of a payload: 1,100 with what the uplink adds to it.
pub const MAX_BYTES: usize = 1_100 - MOST_ORIGIN_BYTES;

/// Longest reason, bytes, when there is space for it.
const REASON_BYTES: usize = 120;

/// The keys in the order in which they are sent; yes and no are 1 and 0, because Telegraf skips booleans. None of them
/// holds the name of a patient, user, file or sending host.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Payload {
    pub(super) schema: u32,
    pub(super) practice: String,
    pub(super) gateway: String,
    pub(super) session: u64,
    pub(super) time: String,
    pub(super) state: &'static str,
    pub(super) state_code: u8,
    pub(super) state_reason: String,
    pub(super) uptime_seconds: u64,
    pub(super) link_up: u8,
    pub(super) link_phase: &'static str,
    pub(super) outage_seconds: u64,
    pub(super) last_receipt_age_seconds: Option<u64>,
    pub(super) probe_rtt_seconds: Option<f64>,
    pub(super) probe_age_seconds: Option<u64>,
    pub(super) waiting: u64,
    pub(super) waiting_bytes: u64,
    pub(super) oldest_age_seconds: u64,
    pub(super) in_flight: u64,
    pub(super) held: u64,
    pub(super) damaged: u64,
    pub(super) refused_in_quarantine: u64,
    pub(super) forward_rate_per_second: f64,
    pub(super) drain_eta_seconds: Option<u64>,
    pub(super) accepted_total: u64,
    pub(super) confirmed_total: u64,
    pub(super) forwarded_total: u64,
    pub(super) duplicates_total: u64,
    pub(super) refused_total: u64,
    pub(super) accept_seconds_p99: f64,
    pub(super) store_bytes: u64,
    pub(super) store_limit_bytes: u64,
    pub(super) disk_free_bytes: u64,
    pub(super) space_days: Option<u64>,
    pub(super) rss_bytes: u64,
    pub(super) clock_synced: u8,
    pub(super) cert_expires_seconds: Option<i64>,
    pub(super) version: &'static str,
}

impl Payload {
    pub(super) fn set_state(&mut self, state: GatewayState, reason: String) {
        self.state = state.as_str();
        self.state_code = state.code();
        self.state_reason = shortened(reason, REASON_BYTES);
    }

    /// As JSON; the reason is shortened if the numbers are long.
    pub(super) fn to_json(&self) -> Vec<u8> {
        let json = pgw_core::wire::to_json(self);
        if json.len() <= MAX_BYTES {
            return json;
        }
        let mut shorter = self.clone();
        // Escaped characters take more than their own length, so the whole reason goes if half of it is still too
        // long.
        for bytes in [REASON_BYTES / 2, 0] {
            shorter.state_reason = shortened(shorter.state_reason, bytes);
            let json = pgw_core::wire::to_json(&shorter);
            if json.len() <= MAX_BYTES {
                return json;
            }
        }
        pgw_core::wire::to_json(&shorter)
    }
}

fn shortened(mut text: String, most: usize) -> String {
    while text.len() > most {
        text.pop();
    }
    text
}
