//! `hub.toml`: as written, with every key optional, and checked. `config/hub.toml` says what each key means; a test
//! keeps the two in step.

use std::path::{Path, PathBuf};

use pgw_core::wire::limits;
use pgw_host::config::{ConfigError, Source};
use pgw_host::log_config::{Log, RawLog, log};
use serde::Deserialize;
use toml::Spanned;

use crate::HubSettings;

/// The hub's configuration, read and checked.
#[derive(Debug, Clone)]
pub struct HubConfig {
    /// Where it was read from.
    pub file: PathBuf,
    /// The hub's settings.
    pub settings: HubSettings,
    /// Logs.
    pub log: Log,
}

impl HubConfig {
    /// Reads and checks the file; opens no other file.
    ///
    /// # Errors
    /// [`ConfigError`], the first one found.
    pub fn load(file: &Path) -> Result<Self, ConfigError> {
        let source = Source::read(file)?;
        let raw: RawHub = source.parse()?;
        let (link, store) = (raw.uplink, raw.store);
        let name = source.required("hub", raw.hub, "the hub's name, for example \"hub1\"")?;
        let upstreams = source.upstreams("uplink.upstreams", link.upstreams)?;
        let [upstream] = &upstreams[..] else {
            return Err(source.missing("uplink.upstreams", "one broker, which is the hub's own"));
        };
        let path =
            |given: Option<PathBuf>, default: &str| source.path(&given.unwrap_or_else(|| default.into()));
        let pem = |key: &str, given: Option<PathBuf>| {
            source.required(key, given, "the path of a PEM file").map(|path| source.path(&path))
        };
        let seconds = |key, given, default, range| source.seconds(key, given, default, range);
        let settings = HubSettings {
            hub: source.parsed("hub", &name)?,
            directory: path(raw.store_directory, "/var/lib/practice-hub"),
            broker_host: upstream.host.clone(),
            broker_port: upstream.port,
            ca_file: pem("uplink.ca_file", link.ca_file)?,
            certificate_file: pem("uplink.certificate_file", link.certificate_file)?,
            key_file: pem("uplink.key_file", link.key_file)?,
            signing_key_file: path(raw.signing_key_file, "/etc/practice-hub/signing.key"),
            control_socket: path(raw.control.socket, "/run/practice-hub/control.sock"),
            carry_key_file: path(raw.carry_key_file, "/etc/practice-hub/carry.key"),
            gateways_file: path(raw.gateways_file, "/etc/practice-hub/gateways.toml"),
            keep_alive: seconds("uplink.keep_alive_seconds", link.keep_alive_seconds, 20.0, 5.0..=600.0)?,
            connect_timeout: seconds("uplink.connect_seconds", link.connect_seconds, 10.0, 0.1..=120.0)?,
            reconnect_base: seconds(
                "uplink.backoff_base_seconds",
                link.backoff_base_seconds,
                1.0,
                0.01..=60.0,
            )?,
            reconnect_cap: seconds(
                "uplink.backoff_cap_seconds",
                link.backoff_cap_seconds,
                30.0,
                0.01..=3600.0,
            )?,
            receive_maximum: source.number(
                "uplink.receive_maximum",
                link.receive_maximum,
                10_000,
                16..=65_535,
            )?,
            maximum_packet_bytes: source.number(
                "uplink.max_packet_bytes",
                link.max_packet_bytes,
                24 << 20,
                64 << 10..=limits::PACKET_BYTES,
            )?,
            group_transactions: source.number(
                "store.group_transactions",
                store.group_transactions,
                1024,
                1..=65_536,
            )?,
            group_bytes: source.number("store.group_bytes", store.group_bytes, 4 << 20, 1024..=1 << 30)?,
            rotate_bytes: source.number(
                "store.rotate_bytes",
                store.rotate_bytes,
                1 << 30,
                64 << 10..=1 << 50,
            )?,
        };
        Ok(Self { file: file.to_owned(), settings, log: log(&source, raw.log)? })
    }
}

type Text = Option<Spanned<String>>;
type Number = Option<Spanned<u64>>;
type Time = Option<Spanned<f64>>;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawHub {
    hub: Text,
    store_directory: Option<PathBuf>,
    signing_key_file: Option<PathBuf>,
    carry_key_file: Option<PathBuf>,
    gateways_file: Option<PathBuf>,
    #[serde(default)]
    control: RawControl,
    #[serde(default)]
    uplink: RawHubUplink,
    #[serde(default)]
    store: RawStore,
    #[serde(default)]
    log: RawLog,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawControl {
    socket: Option<PathBuf>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawHubUplink {
    upstreams: Option<Spanned<Vec<Spanned<String>>>>,
    ca_file: Option<PathBuf>,
    certificate_file: Option<PathBuf>,
    key_file: Option<PathBuf>,
    keep_alive_seconds: Time,
    connect_seconds: Time,
    backoff_base_seconds: Time,
    backoff_cap_seconds: Time,
    receive_maximum: Number,
    max_packet_bytes: Number,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawStore {
    group_transactions: Number,
    group_bytes: Number,
    rotate_bytes: Number,
}
