//! The numbers of health and of the doors in Prometheus's format. Pure.

use std::fmt::Write as _;

use serde_json::Value;

use crate::ingest::Counts;

/// Media type of the text format.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Health's keys, whether they only grow, and their meaning. `confirmed_total` goes down when a hub is restored.
const HEALTH: [(&str, &str, &str); 31] = [
    ("state_code", "gauge", "0 ok, 1 buffering, 2 degraded, 3 refusing"),
    ("uptime_seconds", "gauge", "Since the start of the process"),
    ("link_up", "gauge", "Traffic came back from the broker within its deadline"),
    ("outage_seconds", "gauge", "How long the link has been down; 0 when up"),
    ("last_receipt_age_seconds", "gauge", "Since the last verified receipt of a hub"),
    ("probe_rtt_seconds", "gauge", "Round trip of the last probe through the whole path"),
    ("probe_age_seconds", "gauge", "Since the last probe came back"),
    ("waiting", "gauge", "Accepted and not confirmed yet"),
    ("waiting_bytes", "gauge", "Payload of waiting transactions"),
    ("oldest_age_seconds", "gauge", "Age of the oldest waiting transaction"),
    ("in_flight", "gauge", "Published and not confirmed yet"),
    ("held", "gauge", "Accepted and not sendable now"),
    ("damaged", "gauge", "Not confirmed, and can no longer be read"),
    ("refused_in_quarantine", "gauge", "Refused input that a person should look at"),
    ("forward_rate_per_second", "gauge", "Confirmed a second, smoothed"),
    ("drain_eta_seconds", "gauge", "Until the backlog is drained, at this rate"),
    ("accepted_total", "counter", "Ever accepted; confirmed + waiting + damaged"),
    ("confirmed_total", "gauge", "Confirmed by the hub; goes down when a hub is restored"),
    ("forwarded_total", "counter", "Publishes since the start, repetitions included"),
    ("duplicates_total", "counter", "Repetitions recognised since the start"),
    ("refused_total", "counter", "Refused for its content since the start"),
    ("accept_seconds_p99", "gauge", "From submit to answer, 99th percentile of the last minute"),
    ("store_bytes", "gauge", "The store on disk"),
    ("store_limit_bytes", "gauge", "Its limit"),
    ("disk_free_bytes", "gauge", "Free on its file system"),
    ("space_days", "gauge", "Days until it is full, at the present rate"),
    ("rss_bytes", "gauge", "Resident memory"),
    ("clock_synced", "gauge", "The kernel says that the clock is disciplined"),
    ("cert_expires_seconds", "gauge", "Until the uplink's certificate ends"),
    ("session", "counter", "Connections to the broker ever made"),
    ("schema", "gauge", "Version of the health payload that these numbers are of"),
];

const LANES: [(&str, &str, &str); 6] = [
    ("accepted", "counter", "Ever accepted in this lane"),
    ("confirmed", "gauge", "Confirmed by the hub"),
    ("waiting", "gauge", "Not confirmed yet"),
    ("damaged", "gauge", "Can no longer be read"),
    ("waiting_bytes", "gauge", "Payload of waiting transactions"),
    ("oldest_age_seconds", "gauge", "Age of the oldest waiting transaction"),
];

/// The status document and the doors' counters as text. Unknown values are left out, never written as 0.
#[must_use]
pub fn render(status: &Value, doors: &Counts) -> String {
    let mut out = String::with_capacity(8 * 1024);
    // Writing to a String cannot fail.
    let word = |key: &str| status[key].as_str().unwrap_or_default();
    head(&mut out, "info", "gauge", "Who this is");
    let _ = writeln!(
        out,
        "pgw_info{{practice=\"{}\",gateway=\"{}\",version=\"{}\"}} 1",
        label(word("practice")),
        label(word("gateway")),
        label(word("version"))
    );
    for (key, kind, help) in HEALTH {
        if let Some(number) = number(&status[key]) {
            head(&mut out, key, kind, help);
            let _ = writeln!(out, "pgw_{key} {number}");
        }
    }
    let lanes = status["lanes"].as_array().map_or(&[][..], Vec::as_slice);
    for (key, kind, help) in LANES {
        let mut named = false;
        for lane in lanes {
            if let Some(number) = number(&lane[key]) {
                if !named {
                    head(&mut out, &format!("lane_{key}"), kind, help);
                    named = true;
                }
                let lane = lane["lane"].as_str().unwrap_or_default();
                let _ = writeln!(out, "pgw_lane_{key}{{lane=\"{}\"}} {number}", label(lane));
            }
        }
    }
    if let Ok(Value::Object(doors)) = serde_json::to_value(doors) {
        for (key, value) in &doors {
            let moves = ["connections", "folders_away", "files_left"].contains(&key.as_str());
            let kind = if moves { "gauge" } else { "counter" };
            if let Some(number) = number(value) {
                head(&mut out, &format!("doors_{key}"), kind, "All doors together, since the start");
                let _ = writeln!(out, "pgw_doors_{key} {number}");
            }
        }
    }
    out
}

fn head(out: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(out, "# HELP pgw_{name} {help}\n# TYPE pgw_{name} {kind}");
}

fn number(value: &Value) -> Option<String> {
    match value {
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(yes) => Some(u8::from(*yes).to_string()),
        _ => None,
    }
}

fn label(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn numbers_are_written_and_unknown_ones_left_out() {
        let status = json!({
            "practice": "B86022", "gateway": "gw1", "version": "1\"0", "state": "ok", "state_code": 0,
            "link_up": true, "probe_rtt_seconds": null, "accept_seconds_p99": 0.25, "accepted_total": 7,
            "lanes": [{"lane": "clinical", "accepted": 5}, {"lane": "urgent", "accepted": 2, "oldest_age_seconds": null}],
        });
        let text = render(&status, &Counts { received: 3, ..Counts::default() });
        for line in [
            "pgw_info{practice=\"B86022\",gateway=\"gw1\",version=\"1\\\"0\"} 1",
            "pgw_state_code 0",
            "pgw_link_up 1",
            "pgw_accept_seconds_p99 0.25",
            "# TYPE pgw_accepted_total counter",
            "pgw_lane_accepted{lane=\"urgent\"} 2",
            "pgw_doors_received 3",
            "# TYPE pgw_doors_connections gauge",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
        }
        assert!(!text.contains("probe_rtt") && !text.contains("oldest_age"), "{text}");
        // Each name is described once, before its first value.
        let mut described = std::collections::HashSet::new();
        for line in text.lines() {
            match line.strip_prefix("# TYPE ") {
                Some(rest) => assert!(described.insert(rest.split(' ').next().unwrap().to_owned()), "{line}"),
                None if line.starts_with('#') => {}
                None => assert!(described.contains(line.split(['{', ' ']).next().unwrap()), "{line}"),
            }
        }
    }
}
