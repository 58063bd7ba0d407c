//! `gateway.toml`, checked.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use toml::Spanned;

use crate::config::raw::{RawGateway, RawHubKey, RawLane, RawLog, RawMllp, RawOutbox, RawUplink};
use crate::config::source::Source;
use crate::config::{ConfigError, Upstream, keys};
use crate::outbox::{self, LaneSettings};
use crate::transaction::{Gateway, Hub, Lane, Practice};
use crate::wire::signature::PublicKey;

/// Everything the gateway is told.
#[derive(Debug, Clone)]
pub struct GatewayConfig {
    /// Where it was read from.
    pub file: PathBuf,
    /// First 16 hexadecimal digits of the file's SHA-256.
    pub digest: String,
    /// Whose gateway this is.
    pub practice: Practice,
    /// Its id.
    pub gateway: Gateway,
    /// Everything the gateway writes is below it.
    pub data_directory: PathBuf,
    /// The outbox key where systemd hands over no credential `outbox-key`.
    pub outbox_key_file: PathBuf,
    /// The control socket.
    pub control: Control,
    /// The doors.
    pub mllp: Vec<Mllp>,
    /// What the doors share.
    pub ingest: Ingest,
    /// The store.
    pub outbox: outbox::Settings,
    /// The way to the centre.
    pub uplink: Uplink,
    /// The hubs that must confirm; empty only with [`Confirm::Puback`].
    pub hubs: Vec<HubKey>,
    /// How often health is said.
    pub health: Health,
    /// Logs.
    pub log: Log,
}

/// The control socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Control {
    /// Unix socket, mode 0660.
    pub socket: PathBuf,
}

/// One MLLP door.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mllp {
    /// Address and port.
    pub listen: SocketAddr,
    /// Where its transactions go.
    pub lane: Lane,
    /// Largest frame.
    pub frame_limit_bytes: usize,
    /// Longest time within a frame.
    pub in_frame: Duration,
    /// Most connections at once.
    pub max_connections: usize,
    /// What a sender hears while nothing can be stored.
    pub on_unavailable: OnUnavailable,
    /// Peers that may connect; empty: all.
    pub allow_addresses: Vec<AddressRange>,
    /// `MSH-3|MSH-4` of senders that may send; empty: all.
    pub allow_senders: Vec<String>,
}

/// What a sender hears while nothing can be stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnUnavailable {
    /// Nothing, and the connection is closed: the one "later" that every sender understands.
    Close,
    /// A negative acknowledgment.
    Reject,
}

/// Addresses: `10.1.0.0/16`, `192.168.7.4`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AddressRange {
    /// Its first address.
    pub address: IpAddr,
    /// How many leading bits count.
    pub bits: u8,
}

/// What the doors share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ingest {
    /// Most bytes of unfinished input, all connections together.
    pub memory_bytes: usize,
}

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
    /// Deadline for name, TCP, TLS and CONNACK together.
    pub connect: Duration,
    /// Most transactions beyond the last receipt.
    pub window: u32,
    /// Most payload bytes beyond the last receipt.
    pub window_bytes: u64,
    /// No receipt for this long with something in flight: send again.
    pub receipt: Duration,
    /// No progress for this long at least: a new connection.
    pub stall: Duration,
    /// The first delay after a loss is uniform below this.
    pub first_delay: Duration,
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

/// How often health is said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    /// Besides every change of state.
    pub interval: Duration,
}

/// Logs go to stderr, which systemd takes to the journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Log {
    /// The least important that is written.
    pub level: tracing::Level,
    /// How.
    pub format: LogFormat,
}

/// How a line of the log looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people; without the time under systemd, whose journal has it.
    Text,
    /// One JSON object a line.
    Json,
}

impl GatewayConfig {
    /// Reads and checks the file. No other file than this one and `public_key_file` is touched.
    ///
    /// # Errors
    /// [`ConfigError`], the first one found.
    pub fn load(file: &Path) -> Result<Self, ConfigError> {
        let source = Source::read(file)?;
        let raw: RawGateway = source.parse()?;
        let practice_text =
            source.required("practice", raw.practice, "an ODS code, for example \"B86022\"")?;
        let gateway_text =
            source.required("gateway", raw.gateway, "an id unique in the practice: \"gw1\"")?;
        let practice: Practice = source.parsed("practice", &practice_text)?;
        let gateway: Gateway = source.parsed("gateway", &gateway_text)?;
        let data_directory =
            source.path(&raw.data_directory.unwrap_or_else(|| "/var/lib/practice-gateway".into()));
        let lanes = lanes(&source, raw.lane)?;
        let outbox =
            outbox_settings(&source, raw.outbox, &data_directory, practice.clone(), gateway.clone(), lanes)?;
        let mllp =
            raw.mllp.into_iter().map(|door| mllp(&source, door, &outbox)).collect::<Result<Vec<_>, _>>()?;
        let memory_bytes =
            source.number("ingest.memory_bytes", raw.ingest.memory_bytes, 64 << 20, 1 << 20..=4 << 30)?;
        let uplink = uplink(&source, raw.uplink)?;
        let hubs = hubs(&source, raw.hub, uplink.confirm)?;
        let interval =
            source.seconds("health.interval_seconds", raw.health.interval_seconds, 60.0, 0.1..=3600.0)?;
        Ok(Self {
            file: file.to_owned(),
            digest: keys::digest(source.text().as_bytes()),
            practice,
            gateway,
            outbox_key_file: source
                .path(&raw.outbox_key_file.unwrap_or_else(|| "/etc/practice-gateway/outbox.key".into())),
            control: Control {
                socket: source
                    .path(&raw.control.socket.unwrap_or_else(|| "/run/practice-gateway/control.sock".into())),
            },
            data_directory,
            mllp,
            ingest: Ingest { memory_bytes },
            outbox,
            uplink,
            hubs,
            health: Health { interval },
            log: log(&source, raw.log)?,
        })
    }
}

fn lanes(source: &Source, raw: Vec<RawLane>) -> Result<Vec<LaneSettings>, ConfigError> {
    const KEY: &str = "lane.name";
    let mut lanes: Vec<LaneSettings> = Vec::new();
    for entry in raw {
        let name = source.required(KEY, entry.name, "a name, for example \"clinical\"")?;
        let lane: Lane = source.parsed(KEY, &name)?;
        if lanes.iter().any(|other| other.lane == lane) {
            return Err(source.wrong(KEY, &name, "different from the other lanes' names"));
        }
        if lanes.len() == 16 {
            return Err(source.wrong(KEY, &name, "one of at most 16 lanes"));
        }
        lanes.push(LaneSettings { lane, urgent: entry.urgent.unwrap_or(false) });
    }
    if lanes.is_empty() {
        let name = Spanned::new(0..0, String::from("clinical"));
        lanes.push(LaneSettings { lane: source.parsed(KEY, &name)?, urgent: false });
    }
    Ok(lanes)
}

fn outbox_settings(
    source: &Source,
    raw: RawOutbox,
    data_directory: &Path,
    practice: Practice,
    gateway: Gateway,
    lanes: Vec<LaneSettings>,
) -> Result<outbox::Settings, ConfigError> {
    const MIB: u64 = 1 << 20;
    const TIB: u64 = 1 << 40;
    let segment_bytes =
        source.number("outbox.segment_bytes", raw.segment_bytes, 32 * MIB, MIB..=1024 * MIB)?;
    let max_body_bytes =
        source.number("outbox.max_body_bytes", raw.max_body_bytes, 20_000_000, 1024..=256 * MIB)?;
    let day = Duration::from_secs(86_400);
    Ok(outbox::Settings {
        directory: data_directory.join("outbox"),
        practice,
        gateway,
        lanes,
        segment_records: source.number(
            "outbox.segment_records",
            raw.segment_records,
            16_384,
            16..=1_000_000,
        )?,
        segment_bytes,
        retention: source.duration("outbox.retention_days", raw.retention_days, 35.0, 0.0..=3650.0, day)?,
        // Two segments of ballast and one to write in must fit twice over.
        limit_bytes: source.number(
            "outbox.limit_bytes",
            raw.limit_bytes,
            6 << 30,
            8 * segment_bytes.min(4 << 20)..=64 * TIB,
        )?,
        min_free_bytes: source.number("outbox.min_free_bytes", raw.min_free_bytes, 64 * MIB, 0..=TIB)?,
        min_free_percent: source.number("outbox.min_free_percent", raw.min_free_percent, 10, 0..=90)?,
        max_body_bytes,
        // A queue that cannot take the largest body would refuse it for ever.
        queue_bytes: source.number(
            "outbox.queue_bytes",
            raw.queue_bytes,
            (64 * MIB).max(max_body_bytes),
            max_body_bytes..=4 << 30,
        )?,
        quarantine_bytes: source.number(
            "outbox.quarantine_bytes",
            raw.quarantine_bytes,
            256 * MIB,
            0..=TIB,
        )?,
    })
}

fn mllp(source: &Source, raw: RawMllp, outbox: &outbox::Settings) -> Result<Mllp, ConfigError> {
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
    let allow_addresses = raw
        .allow_addresses
        .iter()
        .map(|text| source.parsed("mllp.allow_addresses", text))
        .collect::<Result<Vec<_>, _>>()?;
    for sender in &raw.allow_senders {
        if !sender.get_ref().contains('|') {
            return Err(source.wrong("mllp.allow_senders", sender, "MSH-3|MSH-4 as the sender writes them"));
        }
    }
    Ok(Mllp {
        listen: source.address("mllp.listen", &listen)?,
        lane,
        frame_limit_bytes: source.number(
            "mllp.frame_limit_bytes",
            raw.frame_limit_bytes,
            usize::try_from(outbox.max_body_bytes).unwrap_or(usize::MAX),
            1024..=outbox.max_body_bytes,
        )?,
        in_frame: source.seconds("mllp.in_frame_seconds", raw.in_frame_seconds, 30.0, 0.1..=3600.0)?,
        max_connections: source.number("mllp.max_connections", raw.max_connections, 1000, 1..=10_000)?,
        on_unavailable: source.word(
            "mllp.on_unavailable",
            raw.on_unavailable,
            OnUnavailable::Close,
            &[("close", OnUnavailable::Close), ("reject", OnUnavailable::Reject)],
        )?,
        allow_addresses,
        allow_senders: raw.allow_senders.into_iter().map(Spanned::into_inner).collect(),
    })
}

fn uplink(source: &Source, raw: RawUplink) -> Result<Uplink, ConfigError> {
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
        connect: source.seconds("uplink.connect_seconds", raw.connect_seconds, 10.0, 0.1..=120.0)?,
        window: source.number("uplink.window", raw.window, 64, 1..=65_535)?,
        window_bytes: source.number("uplink.window_bytes", raw.window_bytes, 4 << 20, 1024..=1 << 30)?,
        receipt: source.seconds("uplink.receipt_seconds", raw.receipt_seconds, 10.0, 0.1..=600.0)?,
        stall: source.seconds("uplink.stall_seconds", raw.stall_seconds, 5.0, 0.1..=600.0)?,
        first_delay: source.seconds(
            "uplink.first_delay_seconds",
            raw.first_delay_seconds,
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

fn hubs(source: &Source, raw: Vec<RawHubKey>, confirm: Confirm) -> Result<Vec<HubKey>, ConfigError> {
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

pub(super) fn log(source: &Source, raw: RawLog) -> Result<Log, ConfigError> {
    use tracing::Level;
    Ok(Log {
        level: source.word(
            "log.level",
            raw.level,
            Level::INFO,
            &[
                ("error", Level::ERROR),
                ("warn", Level::WARN),
                ("info", Level::INFO),
                ("debug", Level::DEBUG),
                ("trace", Level::TRACE),
            ],
        )?,
        format: source.word(
            "log.format",
            raw.format,
            LogFormat::Text,
            &[("text", LogFormat::Text), ("json", LogFormat::Json)],
        )?,
    })
}

impl std::str::FromStr for AddressRange {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const ALLOWED: &str = "an IP address, with a prefix length where more are meant: \"10.1.0.0/16\"";
        let (address, bits) =
            text.split_once('/').map_or((text, None), |(address, bits)| (address, Some(bits)));
        let address: IpAddr = address.parse().map_err(|_| ALLOWED)?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let bits = bits.map_or(Ok(most), |bits| bits.parse().map_err(|_| ALLOWED))?;
        if bits <= most { Ok(Self { address, bits }) } else { Err(ALLOWED) }
    }
}
