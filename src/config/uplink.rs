//! `[uplink]` and `[[hub]]` of `gateway.toml`, checked.

use std::path::PathBuf;
use std::time::Duration;

use crate::config::raw::{RawHubKey, RawUplink};
use crate::config::source::Source;
use crate::config::{ConfigError, Upstream};
use crate::transaction::Hub;
use crate::wire::signature::PublicKey;

/// CA, certificate chain and private key, all PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// Certificates that sign the other end's.
    pub ca_file: PathBuf,
    /// Ours, leaf first.
    pub certificate_file: PathBuf,
    /// Its private key.
    pub key_file: PathBuf,
}

/// What confirms a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Confirm {
    /// The hub's signed receipt.
    Receipt,
    /// The broker's PUBACK: only where the centre has no hub yet.
    Puback,
}

/// The way to the centre.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uplink {
    /// Tried in this order.
    pub upstreams: Vec<Upstream>,
    /// For TLS.
    pub tls: TlsFiles,
    /// What confirms.
    pub confirm: Confirm,
    /// MQTT keep-alive, whole seconds from 5.
    pub keep_alive: Duration,
    /// Deadline for each of name, TCP, TLS, CONNACK and SUBACK.
    pub phase: Duration,
    /// Most unacknowledged publishes on one connection, if the broker allows as many.
    pub inflight: u16,
    /// Most transactions beyond the last receipt.
    pub window: u32,
    /// Most payload bytes beyond the last receipt.
    pub window_bytes: u64,
    /// No receipt for this long with something in flight: send again.
    pub receipt: Duration,
    /// No progress for this long at least: a new connection.
    pub stall: Duration,
    /// The first delay after a loss is uniform below this.
    pub backoff_first_loss: Duration,
    /// The later delays are uniform below this, doubled at each attempt ...
    pub backoff_base: Duration,
    /// ... up to this.
    pub backoff_cap: Duration,
    /// Confirmed progress for this long starts the backoff anew.
    pub settled: Duration,
    /// Largest MQTT packet that is taken.
    pub max_packet_bytes: u32,
}

/// A hub that the gateway obeys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubKey {
    /// Its name.
    pub hub: Hub,
    /// What its receipts are checked with.
    pub public_key: PublicKey,
}

pub(super) fn uplink(source: &Source, raw: RawUplink) -> Result<Uplink, ConfigError> {
    let file = |key: &str, given: Option<PathBuf>| {
        source.required(key, given, "the path of a PEM file").map(|path| source.path(&path))
    };
    Ok(Uplink {
        upstreams: source.upstreams("uplink.upstreams", raw.upstreams)?,
        tls: TlsFiles {
            ca_file: file("uplink.ca_file", raw.ca_file)?,
            certificate_file: file("uplink.certificate_file", raw.certificate_file)?,
            key_file: file("uplink.key_file", raw.key_file)?,
        },
        confirm: source.word(
            "uplink.confirm",
            raw.confirm,
            Confirm::Receipt,
            &[("receipt", Confirm::Receipt), ("puback", Confirm::Puback)],
        )?,
        // rumqttc panics below 5 seconds.
        keep_alive: source.seconds("uplink.keep_alive_seconds", raw.keep_alive_seconds, 20.0, 5.0..=600.0)?,
        phase: source.seconds("uplink.phase_seconds", raw.phase_seconds, 10.0, 0.1..=120.0)?,
        inflight: source.number("uplink.inflight", raw.inflight, 64, 1..=65_535)?,
        window: source.number("uplink.window", raw.window, 64, 1..=65_535)?,
        window_bytes: source.number("uplink.window_bytes", raw.window_bytes, 4 << 20, 1024..=1 << 30)?,
        receipt: source.seconds("uplink.receipt_seconds", raw.receipt_seconds, 10.0, 0.1..=600.0)?,
        stall: source.seconds("uplink.stall_seconds", raw.stall_seconds, 5.0, 0.1..=600.0)?,
        backoff_first_loss: source.seconds(
            "uplink.backoff_first_loss_seconds",
            raw.backoff_first_loss_seconds,
            30.0,
            0.0..=600.0,
        )?,
        backoff_base: source.seconds(
            "uplink.backoff_base_seconds",
            raw.backoff_base_seconds,
            1.0,
            0.01..=60.0,
        )?,
        backoff_cap: source.seconds(
            "uplink.backoff_cap_seconds",
            raw.backoff_cap_seconds,
            120.0,
            0.01..=3600.0,
        )?,
        settled: source.seconds("uplink.settled_seconds", raw.settled_seconds, 20.0, 0.0..=600.0)?,
        max_packet_bytes: source.number(
            "uplink.max_packet_bytes",
            raw.max_packet_bytes,
            24 << 20,
            64 << 10..=268_435_455,
        )?,
    })
}

pub(super) fn hubs(
    source: &Source,
    raw: Vec<RawHubKey>,
    confirm: Confirm,
) -> Result<Vec<HubKey>, ConfigError> {
    const ALLOWED: &str = "the line that `practice-hub init` printed, or public_key_file with a file of it";
    let mut hubs: Vec<HubKey> = Vec::new();
    for entry in raw {
        let name = source.required("hub.name", entry.name, "the hub's name, for example \"hub1\"")?;
        let hub: Hub = source.parsed("hub.name", &name)?;
        if hubs.iter().any(|other| other.hub == hub) {
            return Err(source.wrong("hub.name", &name, "different from the other hubs' names"));
        }
        let public_key = match (entry.public_key, entry.public_key_file) {
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
        hubs.push(HubKey { hub, public_key });
    }
    if hubs.is_empty() && confirm == Confirm::Receipt {
        return Err(source
            .missing("[[hub]]", "there for each hub that must confirm (or uplink.confirm = \"puback\")"));
    }
    Ok(hubs)
}
