//! `[uplink]` and `[[hub]]` of `gateway.toml`, checked.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use pgw_bundle::keys::Recipient;
use pgw_core::delivery::{Limits, Millis};
use pgw_core::transaction::{Hub, Lane};
use pgw_core::wire::limits;
use pgw_core::wire::signature::PublicKey;
use pgw_host::config::ConfigError;
use pgw_host::config::Source;
use pgw_host::config::Upstream;
use pgw_link::backoff::BackoffLimits;
use pgw_link::tls::TlsFiles;
use pgw_outbox::LaneSettings;
use toml::Spanned;

use crate::config::raw::{RawHubKey, RawUplink};
use crate::uplink::PinnedHub;

/// Which message confirms a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Confirm {
    /// The hub's signed receipt.
    Receipt,
    /// The broker's PUBACK: only where the centre has no hub yet.
    Puback,
}

/// `[uplink]`, checked; other settings of the uplink come from elsewhere in the file.
pub(super) struct Link {
    pub(super) upstreams: Vec<Upstream>,
    pub(super) tls: TlsFiles,
    pub(super) confirm: Confirm,
    pub(super) keep_alive: Duration,
    pub(super) phase_timeout: Duration,
    pub(super) inflight: u16,
    pub(super) max_packet_bytes: u32,
    pub(super) limits: Limits,
    pub(super) reconnect: BackoffLimits,
}

pub(super) fn uplink(source: &Source, raw: RawUplink) -> Result<Link, ConfigError> {
    let file = |key: &str, given: Option<PathBuf>| {
        source.required(key, given, "the path of a PEM file").map(|path| source.path(&path))
    };
    let millis = |key: &str, given, default, range| {
        source
            .seconds(key, given, default, range)
            .map(|time| Millis::try_from(time.as_millis()).unwrap_or(Millis::MAX))
    };
    let confirm = source.word(
        "uplink.confirm",
        raw.confirm,
        Confirm::Receipt,
        &[("receipt", Confirm::Receipt), ("puback", Confirm::Puback)],
    )?;
    Ok(Link {
        upstreams: source.upstreams("uplink.upstreams", raw.upstreams)?,
        tls: TlsFiles {
            ca: file("uplink.ca_file", raw.ca_file)?,
            certificate: file("uplink.certificate_file", raw.certificate_file)?,
            key: file("uplink.key_file", raw.key_file)?,
        },
        confirm,
        // rumqttc panics below 5 seconds.
        keep_alive: source.seconds("uplink.keep_alive_seconds", raw.keep_alive_seconds, 20.0, 5.0..=600.0)?,
        phase_timeout: source.seconds("uplink.phase_seconds", raw.phase_seconds, 10.0, 0.1..=120.0)?,
        inflight: source.number("uplink.inflight", raw.inflight, 64, 1..=65_535)?,
        max_packet_bytes: source.number(
            "uplink.max_packet_bytes",
            raw.max_packet_bytes,
            24 << 20,
            64 << 10..=limits::PACKET_BYTES,
        )?,
        limits: Limits {
            window: source.number("uplink.window", raw.window, 64, 1..=65_535)?,
            window_bytes: source.number("uplink.window_bytes", raw.window_bytes, 4 << 20, 1024..=1 << 30)?,
            receipt_timeout: millis("uplink.receipt_seconds", raw.receipt_seconds, 10.0, 0.1..=600.0)?,
            stall_timeout: millis("uplink.stall_seconds", raw.stall_seconds, 5.0, 0.1..=600.0)?,
            confirm_on_puback: confirm == Confirm::Puback,
        },
        reconnect: BackoffLimits {
            base: millis("uplink.backoff_base_seconds", raw.backoff_base_seconds, 1.0, 0.01..=60.0)?,
            cap: millis("uplink.backoff_cap_seconds", raw.backoff_cap_seconds, 120.0, 0.01..=3600.0)?,
            first_spread: millis(
                "uplink.backoff_first_loss_seconds",
                raw.backoff_first_loss_seconds,
                30.0,
                0.0..=600.0,
            )?,
            proof: millis("uplink.settled_seconds", raw.settled_seconds, 25.0, 0.0..=600.0)?,
        },
    })
}

/// The hub, by its index, to which each lane is delivered: `names` are those that the configuration gives.
pub(super) fn lane_hubs(
    source: &Source,
    lanes: &[LaneSettings],
    names: &[(Lane, Spanned<String>)],
    hubs: &[PinnedHub],
) -> Result<BTreeMap<Lane, usize>, ConfigError> {
    let of = |lane: &Lane| {
        let given = names.iter().find(|(named, _)| named == lane);
        hub_of(source, given.map(|(_, name)| name), hubs)
    };
    lanes.iter().map(|settings| Ok((settings.lane.clone(), of(&settings.lane)?))).collect()
}

fn hub_of(
    source: &Source,
    given: Option<&Spanned<String>>,
    hubs: &[PinnedHub],
) -> Result<usize, ConfigError> {
    const KEY: &str = "lane.hub";
    let names = || hubs.iter().map(|known| known.hub.as_str()).collect::<Vec<_>>().join(", ");
    match given {
        Some(name) => {
            let hub: Hub = source.parsed(KEY, name)?;
            let known = hubs.iter().position(|known| known.hub == hub);
            known.ok_or_else(|| {
                source.wrong(KEY, name, format!("the name of a [[hub]] of this file: {}", names()))
            })
        }
        None if hubs.len() > 1 => Err(source.missing(
            KEY,
            &format!("in each [[lane]], because a lane goes to exactly one of the hubs: {}", names()),
        )),
        None => Ok(0),
    }
}

/// The recipients of bundles: the hubs that have an age recipient.
pub(super) fn recipients(source: &Source, raw: &[RawHubKey]) -> Result<Vec<Recipient>, ConfigError> {
    let texts = raw.iter().filter_map(|entry| entry.recipient.as_ref());
    let wrong =
        |text| source.wrong("hub.recipient", text, "the age1... line that `practice-hub init` printed");
    texts.map(|text| text.get_ref().parse().map_err(|_| wrong(text))).collect()
}

pub(super) fn hubs(source: &Source, raw: Vec<RawHubKey>) -> Result<Vec<PinnedHub>, ConfigError> {
    const ALLOWED: &str = "the line that `practice-hub init` printed, or public_key_file with a file of it";
    let mut hubs: Vec<PinnedHub> = Vec::new();
    for entry in raw {
        let name = source.required("hub.name", entry.name, "the hub's name, for example \"hub1\"")?;
        let hub: Hub = source.parsed("hub.name", &name)?;
        if hubs.iter().any(|other| other.hub == hub) {
            return Err(source.wrong("hub.name", &name, "different from the other hubs' names"));
        }
        let key: PublicKey = match (entry.public_key, entry.public_key_file) {
            (Some(text), None) => text.get_ref().parse().map_err(|_| {
                source.wrong(
                    "hub.public_key",
                    &text,
                    "32 bytes in base64, as `practice-hub init` prints them",
                )
            })?,
            (None, Some(file)) => std::fs::read_to_string(source.path(file.get_ref()))
                .ok()
                .and_then(|text| text.parse().ok())
                .ok_or_else(|| {
                    source.wrong("hub.public_key_file", &file, "a readable file with 32 bytes in base64")
                })?,
            (Some(_), Some(file)) => {
                return Err(source.wrong(
                    "hub.public_key_file",
                    &file,
                    "left out where there is a public_key",
                ));
            }
            (None, None) => return Err(source.missing("hub.public_key", ALLOWED)),
        };
        let mut keys = vec![key];
        if let Some(text) = entry.next_public_key {
            const NEXT: &str = "32 bytes in base64, of another key than public_key";
            let next = text.get_ref().parse().ok().filter(|next| !keys.contains(next));
            keys.push(next.ok_or_else(|| source.wrong("hub.next_public_key", &text, NEXT))?);
        }
        hubs.push(PinnedHub { hub, keys });
    }
    Ok(hubs)
}
