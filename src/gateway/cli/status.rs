//! `practice-gateway status`: one page that shows whether all is well.

use std::fmt::Write as _;
use std::io::Write;
use std::path::Path;

use clap::Args;
use pgw_host::exit::Exit;
use serde_json::Value;

use crate::control::client::{Client, failed};
use crate::control::{Reply, Request};

/// Show one page: the link and its phase, the backlog and its age, space, quarantine, each lane.
#[derive(Debug, Clone, Args)]
pub struct Status {
    /// Print the whole document as JSON.
    #[arg(long)]
    pub json: bool,
}

/// Runs the command.
pub fn run(socket: &Path, command: &Status, out: &mut dyn Write, err: &mut dyn Write) -> Exit {
    let mut document = Value::Null;
    let asked = Client::connect(socket).and_then(|mut client| {
        client.ask(&Request::Status {}, |reply| {
            if let Reply::Status { status } = reply {
                document = status;
            }
        })
    });
    if let Err(error) = asked {
        return failed(err, &error);
    }
    let text = if command.json { format!("{document}\n") } else { page(&document) };
    // A reader that has gone is not an error.
    let _ = out.write_all(text.as_bytes());
    Exit::Done
}

/// The page: health's fields (design section 9), and `lanes`: `lane, accepted, confirmed, waiting, held, damaged,
/// waiting_bytes, oldest_age_seconds`. A missing value is shown as a dash.
#[must_use]
pub fn page(status: &Value) -> String {
    let mut page = String::new();
    for (name, value) in summary(status).into_iter().chain(keys(status)) {
        // Writing to a String cannot fail.
        let _ = writeln!(page, "{name:<12}{value}");
    }
    lanes(&mut page, status);
    page
}

fn summary(status: &Value) -> Vec<(&'static str, String)> {
    let text = |key: &str| status[key].as_str().filter(|text| !text.is_empty()).unwrap_or("-").to_owned();
    let number = |key: &str| count(&status[key]);
    let time = |key: &str| span(&status[key]);
    let bytes = |key: &str| size(&status[key]);

    let reason = match text("state_reason").as_str() {
        "-" => String::new(),
        reason => format!(": {reason}"),
    };
    let link = match status["link_up"].as_u64() {
        Some(1) => format!(
            "up; last receipt {} ago, round trip {}",
            time("last_receipt_age_seconds"),
            time("probe_rtt_seconds")
        ),
        Some(_) => format!(
            "DOWN for {} at {}; last receipt {} ago",
            time("outage_seconds"),
            text("link_phase"),
            time("last_receipt_age_seconds")
        ),
        None => "-".to_owned(),
    };
    let waiting = match status["waiting"].as_u64() {
        Some(0) => "nothing".to_owned(),
        _ => format!(
            "{} ({}), the oldest for {}; {} per second, drained in {}",
            number("waiting"),
            bytes("waiting_bytes"),
            time("oldest_age_seconds"),
            rate(&status["forward_rate_per_second"]),
            time("drain_eta_seconds")
        ),
    };
    let days = status["space_days"].as_f64().map_or("-".to_owned(), |days| format!("{days:.0} days"));
    let space = format!(
        "{} of {} used, {} free on the disk, enough for {days}",
        bytes("store_bytes"),
        bytes("store_limit_bytes"),
        bytes("disk_free_bytes")
    );
    let quarantine = format!(
        "{} entries; {} refused since the start",
        number("refused_in_quarantine"),
        number("refused_total")
    );
    let certificate = match status["cert_expires_seconds"].as_f64() {
        Some(seconds) if seconds <= 0.0 => "EXPIRED".to_owned(),
        _ => format!("expires in {}", time("cert_expires_seconds")),
    };
    vec![
        ("gateway", format!("{} {}, version {}", text("practice"), text("gateway"), text("version"))),
        ("state", format!("{}{reason}, up for {}", text("state"), time("uptime_seconds"))),
        ("link", link),
        ("waiting", waiting),
        ("space", space),
        ("quarantine", quarantine),
        ("certificate", certificate),
    ]
}

/// A line for each outbox key, if there are several.
fn keys(status: &Value) -> Vec<(&'static str, String)> {
    let line = |key: &Value| {
        let by: Vec<&str> =
            key["needed_by"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let id = key["id"].as_str().unwrap_or("-");
        match (key["present"].as_bool(), by.is_empty()) {
            (Some(true), _) => format!("{id} seals"),
            (_, true) => format!("{id}: no longer needed (`practice-gateway key drop {id}`)"),
            (_, false) => format!("{id} is needed by {}", by.join(", ")),
        }
    };
    let keys = status["outbox_keys"].as_array().filter(|keys| keys.len() > 1);
    keys.into_iter().flatten().map(|key| ("outbox key", line(key))).collect()
}

fn lanes(page: &mut String, status: &Value) {
    let _ = writeln!(
        page,
        "\n{:<12} {:>12} {:>12} {:>10} {:>6} {:>8} {:>10}",
        "lane", "accepted", "confirmed", "waiting", "held", "damaged", "oldest"
    );
    for lane in status["lanes"].as_array().into_iter().flatten() {
        let _ = writeln!(
            page,
            "{:<12} {:>12} {:>12} {:>10} {:>6} {:>8} {:>10}",
            lane["lane"].as_str().unwrap_or("-"),
            count(&lane["accepted"]),
            count(&lane["confirmed"]),
            count(&lane["waiting"]),
            count(&lane["held"]),
            count(&lane["damaged"]),
            span(&lane["oldest_age_seconds"])
        );
    }
}

fn count(value: &Value) -> String {
    value.as_u64().map_or("-".to_owned(), |n| n.to_string())
}

fn rate(value: &Value) -> String {
    value.as_f64().map_or("-".to_owned(), |n| format!("{n:.1}"))
}

fn span(value: &Value) -> String {
    let Some(seconds) = value.as_f64().filter(|seconds| *seconds >= 0.0) else { return "-".to_owned() };
    match seconds {
        s if s < 1.0 => format!("{:.0} ms", s * 1000.0),
        s if s < 120.0 => format!("{s:.0} s"),
        s if s < 7_200.0 => format!("{:.0} min", s / 60.0),
        s if s < 172_800.0 => format!("{:.1} h", s / 3600.0),
        s => format!("{:.1} days", s / 86_400.0),
    }
}

fn size(value: &Value) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let Some(mut size) = value.as_f64() else { return "-".to_owned() };
    let mut unit = 0;
    while size >= 1024.0 && unit + 1 < UNITS.len() {
        size /= 1024.0;
        unit += 1;
    }
    format!("{size:.*} {}", usize::from(unit > 0), UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::store_for_tests::{Daemon, Store};
    use serde_json::json;

    #[test]
    fn the_page_in_an_outage() {
        let status = json!({
            "practice": "B86022", "gateway": "gw1", "version": "0.1.0", "state": "buffering",
            "state_reason": "no link", "uptime_seconds": 7300.0, "link_up": 0, "link_phase": "tls",
            "outage_seconds": 3600, "last_receipt_age_seconds": 3601, "waiting": 120, "waiting_bytes": 3_145_728,
            "oldest_age_seconds": 3590, "forward_rate_per_second": 0.0, "drain_eta_seconds": null,
            "store_bytes": 1024, "store_limit_bytes": 6_442_450_944_u64, "disk_free_bytes": 10_000_000_000_u64,
            "space_days": 89.7, "refused_in_quarantine": 2, "refused_total": 3, "cert_expires_seconds": 864_000,
            "lanes": [{"lane": "clinical", "accepted": 1000, "confirmed": 879, "waiting": 120, "held": 0,
                "damaged": 1, "oldest_age_seconds": 3590}],
        });
        assert_eq!(
            page(&status),
            "gateway     B86022 gw1, version 0.1.0\n\
             state       buffering: no link, up for 2.0 h\n\
             link        DOWN for 60 min at tls; last receipt 60 min ago\n\
             waiting     120 (3.0 MiB), the oldest for 60 min; 0.0 per second, drained in -\n\
             space       1.0 KiB of 6.0 GiB used, 9.3 GiB free on the disk, enough for 90 days\n\
             quarantine  2 entries; 3 refused since the start\n\
             certificate expires in 10.0 days\n\
             \n\
             lane             accepted    confirmed    waiting   held  damaged     oldest\n\
             clinical             1000          879        120      0        1     60 min\n"
        );
    }

    #[test]
    fn after_a_rotation_it_says_which_key_is_needed() {
        let status = |needed: &[&str]| {
            json!({"outbox_keys": [{"id": "k1", "present": false, "needed_by": needed},
                {"id": "k2", "present": true, "needed_by": ["positions from 9 on of lane clinical"]}]})
        };
        let text = page(&status(&["positions 1 to 8 of lane clinical"]));
        assert!(
            text.contains(
                "\noutbox key  k1 is needed by positions 1 to 8 of lane clinical\noutbox key  k2 seals\n"
            ),
            "{text}"
        );
        assert!(page(&status(&[])).contains("outbox key  k1: no longer needed"));
        assert!(
            !page(&json!({"outbox_keys": [{"id": "k2", "present": true, "needed_by": []}]})).contains("k2")
        );
    }

    #[test]
    fn missing_and_odd_fields_do_not_matter() {
        for odd in [json!(null), json!({}), json!({"waiting": "x", "lanes": [null, {}], "store_bytes": -5})] {
            assert!(page(&odd).starts_with("gateway     - -, version -\n"));
        }
        assert!(page(&json!({"cert_expires_seconds": -5})).contains("EXPIRED"));
    }

    #[test]
    fn the_document_comes_from_the_daemon() {
        let daemon = Daemon::start(Store::empty(), json!({"state": "ok", "waiting": 0}));
        let ask = |json| {
            let mut out = Vec::new();
            assert_eq!(run(&daemon.socket, &Status { json }, &mut out, &mut Vec::new()), Exit::Done);
            String::from_utf8(out).unwrap()
        };
        assert_eq!(ask(true), "{\"state\":\"ok\",\"waiting\":0}\n");
        assert!(ask(false).contains("waiting     nothing\n"));
        let nobody = tempfile::tempdir().unwrap().path().join("none");
        let exit = run(&nobody, &Status { json: true }, &mut Vec::new(), &mut Vec::new());
        assert_eq!(exit, Exit::Unreachable);
    }
}
