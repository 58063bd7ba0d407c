//! `hub.toml`, checked.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::config::gateway::{Log, TlsFiles, log};
use crate::config::raw::RawHub;
use crate::config::source::Source;
use crate::config::{ConfigError, Upstream};
use crate::transaction::Hub;

/// Everything the hub is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubConfig {
    /// Where it was read from.
    pub file: PathBuf,
    /// Its name: the common name of its certificate, and in its topics.
    pub hub: Hub,
    /// The store and the fleet's view are below it.
    pub data_directory: PathBuf,
    /// PKCS#8 document of the Ed25519 key that signs receipts.
    pub signing_key_file: PathBuf,
    /// The broker.
    pub upstream: Upstream,
    /// Name in the broker's certificate; `upstream`'s host if nothing else is said.
    pub server_name: String,
    /// For TLS.
    pub tls: TlsFiles,
    /// MQTT keep-alive, from 5 seconds.
    pub keep_alive: Duration,
    /// Deadline for name, TCP, TLS and CONNACK together.
    pub connect: Duration,
    /// Reconnect delays are uniform below this, doubled at each attempt ...
    pub backoff_base: Duration,
    /// ... up to this.
    pub backoff_cap: Duration,
    /// Most unacknowledged publishes on the way from the broker.
    pub receive_maximum: u16,
    /// Largest MQTT packet that is taken.
    pub max_packet_bytes: u32,
    /// Most transactions in one group, which is one fsync and one receipt a lane.
    pub group_transactions: usize,
    /// Most payload bytes in one group.
    pub group_bytes: usize,
    /// A lane's file is set aside at this size.
    pub rotate_bytes: u64,
    /// Logs.
    pub log: Log,
}

impl HubConfig {
    /// Reads and checks the file; no other is touched.
    ///
    /// # Errors
    /// [`ConfigError`], the first one found.
    pub fn load(file: &Path) -> Result<Self, ConfigError> {
        let source = Source::read(file)?;
        let raw: RawHub = source.parse()?;
        let broker = raw.broker;
        let name = source.required("hub", raw.hub, "the hub's name, for example \"hub1\"")?;
        let upstream = source.required(
            "broker.upstream",
            broker.upstream,
            "\"host:port\": \"broker.example.nhs.uk:8883\"",
        )?;
        let upstream = Upstream::parse(upstream.get_ref())
            .ok_or_else(|| source.wrong("broker.upstream", &upstream, "\"host:port\""))?;
        let pem = |key: &str, given: Option<PathBuf>| {
            source.required(key, given, "the path of a PEM file").map(|path| source.path(&path))
        };
        let seconds = |key: &str, given, default, range| source.seconds(key, given, default, range);
        Ok(Self {
            file: file.to_owned(),
            hub: source.parsed("hub", &name)?,
            data_directory: source
                .path(&raw.data_directory.unwrap_or_else(|| "/var/lib/practice-hub".into())),
            signing_key_file: source
                .path(&raw.signing_key_file.unwrap_or_else(|| "/etc/practice-hub/signing.key".into())),
            server_name: match broker.server_name {
                Some(name) if name.get_ref().is_empty() => {
                    return Err(source.wrong("broker.server_name", &name, "a host name, or left out"));
                }
                Some(name) => name.into_inner(),
                None => upstream.host.clone(),
            },
            upstream,
            tls: TlsFiles {
                ca_file: pem("broker.ca_file", broker.ca_file)?,
                certificate_file: pem("broker.certificate_file", broker.certificate_file)?,
                key_file: pem("broker.key_file", broker.key_file)?,
            },
            keep_alive: seconds("broker.keep_alive_seconds", broker.keep_alive_seconds, 20.0, 5.0..=600.0)?,
            connect: seconds("broker.connect_seconds", broker.connect_seconds, 10.0, 0.1..=120.0)?,
            backoff_base: seconds(
                "broker.backoff_base_seconds",
                broker.backoff_base_seconds,
                1.0,
                0.01..=60.0,
            )?,
            backoff_cap: seconds(
                "broker.backoff_cap_seconds",
                broker.backoff_cap_seconds,
                30.0,
                0.01..=3600.0,
            )?,
            receive_maximum: source.number(
                "broker.receive_maximum",
                broker.receive_maximum,
                10_000,
                16..=65_535,
            )?,
            max_packet_bytes: source.number(
                "broker.max_packet_bytes",
                broker.max_packet_bytes,
                24 << 20,
                64 << 10..=268_435_455,
            )?,
            group_transactions: source.number(
                "store.group_transactions",
                raw.store.group_transactions,
                1024,
                1..=65_536,
            )?,
            group_bytes: source.number(
                "store.group_bytes",
                raw.store.group_bytes,
                4 << 20,
                1024..=1 << 30,
            )?,
            rotate_bytes: source.number(
                "store.rotate_bytes",
                raw.store.rotate_bytes,
                1 << 30,
                1 << 20..=1 << 50,
            )?,
            log: log(&source, raw.log)?,
        })
    }
}
