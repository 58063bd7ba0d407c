//! `[[mllp]]` of `gateway.toml`, checked.

use toml::Spanned;

use crate::config::ConfigError;
use crate::config::raw::RawMllp;
use crate::config::source::Source;
use crate::ingest::mllp::door::{self, OnUnavailable};
use crate::outbox;
use crate::transaction::Lane;

pub(super) fn mllp(
    source: &Source,
    raw: RawMllp,
    outbox: &outbox::Settings,
) -> Result<door::Settings, ConfigError> {
    let listen = source.required("mllp.listen", raw.listen, "an address and port: \"127.0.0.1:2575\"")?;
    let lane = match raw.lane {
        Some(text) => {
            let lane: Lane = source.parsed("mllp.lane", &text)?;
            if !outbox.lanes.iter().any(|known| known.lane == lane) {
                return Err(source.wrong("mllp.lane", &text, "the name of a [[lane]]"));
            }
            lane
        }
        None => match outbox.lanes.first() {
            Some(first) => first.lane.clone(),
            None => return Err(source.missing("mllp.lane", "the name of a [[lane]]")),
        },
    };
    let allowed_addresses = raw
        .allow_addresses
        .iter()
        .map(|text| source.parsed("mllp.allow_addresses", text))
        .collect::<Result<Vec<_>, _>>()?;
    for sender in &raw.allow_senders {
        if !sender.get_ref().contains('|') {
            return Err(source.wrong("mllp.allow_senders", sender, "MSH-3|MSH-4 as the sender writes them"));
        }
    }
    Ok(door::Settings {
        practice: outbox.practice.clone(),
        gateway: outbox.gateway.clone(),
        listen: source.address("mllp.listen", &listen)?,
        lane,
        frame_limit_bytes: source.number(
            "mllp.frame_limit_bytes",
            raw.frame_limit_bytes,
            usize::try_from(outbox.max_body_bytes).unwrap_or(usize::MAX),
            1024..=outbox.max_body_bytes,
        )?,
        in_frame_timeout: source.seconds(
            "mllp.in_frame_seconds",
            raw.in_frame_seconds,
            30.0,
            0.1..=3600.0,
        )?,
        max_connections: source.number("mllp.max_connections", raw.max_connections, 1000, 1..=10_000)?,
        on_unavailable: source.word(
            "mllp.on_unavailable",
            raw.on_unavailable,
            OnUnavailable::Close,
            &[("close", OnUnavailable::Close), ("reject", OnUnavailable::Reject)],
        )?,
        unavailable_pause: source.seconds(
            "mllp.unavailable_pause_seconds",
            raw.unavailable_pause_seconds,
            1.0,
            0.01..=60.0,
        )?,
        allowed_addresses,
        allowed_senders: raw.allow_senders.into_iter().map(Spanned::into_inner).collect(),
    })
}
