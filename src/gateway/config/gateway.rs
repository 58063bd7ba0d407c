//! `gateway.toml`, checked.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use pgw_core::transaction::{Gateway, Lane, Practice};
use pgw_core::wire::SCHEMA;
use pgw_core::wire::limits;
use pgw_core::wire::presence::Info;
use pgw_host::config::ConfigError;
use pgw_host::config::Source;
use pgw_host::log_config::{Log, log};
use pgw_outbox::{self as outbox, LaneSettings};
use toml::Spanned;

use crate::config::raw::{RawGateway, RawLane, RawOutbox};
use crate::config::uplink::{Confirm, Link, hubs, lane_hubs, recipients, uplink};
use crate::config::{doors, events, folder};
use crate::control::ControlConfig;
use crate::ingest::folder::config::FolderDoorConfig;
use crate::ingest::http::context::HttpDoorConfig;
use crate::ingest::mllp::context::MllpDoorConfig;
use crate::uplink;
use crate::uplink::PinnedHub;

/// The gateway's configuration, checked.
#[derive(Debug, Clone)]
pub struct GatewayConfig {
    /// Where it was read from.
    pub file: PathBuf,
    /// Whose gateway this is.
    pub practice: Practice,
    /// Its id.
    pub gateway: Gateway,
    /// Everything the gateway writes is below it.
    pub data_directory: PathBuf,
    /// The outbox key file, used if systemd supplies no credential `outbox-key`.
    pub outbox_key_file: PathBuf,
    /// The signing key file, used if systemd supplies no credential `signing-key`.
    pub signing_key_file: PathBuf,
    /// The control socket.
    pub control: ControlConfig,
    /// The MLLP doors.
    pub mllp: Vec<MllpDoorConfig>,
    /// The HTTP doors.
    pub http: Vec<HttpDoorConfig>,
    /// The folder doors.
    pub folders: Vec<FolderDoorConfig>,
    /// Most bytes of unfinished input, for all doors together.
    pub ingest_memory_bytes: u64,
    /// The store.
    pub outbox: outbox::OutboxSettings,
    /// The uplink. Its `info` has no key id yet: the key is not read here.
    pub uplink: uplink::UplinkSettings,
    /// How often health is published, besides every change of state.
    pub health_interval: Duration,
    /// Logs.
    pub log: Log,
}

impl GatewayConfig {
    /// Its name at the centre, in its certificate and at the broker: `PRACTICE.GATEWAY`.
    #[must_use]
    pub fn name(&self) -> String {
        format!("{}.{}", self.practice, self.gateway)
    }

    /// Reads and checks the file. Opens no other file than this one and `public_key_file`.
    ///
    /// # Errors
    /// [`ConfigError`], the first one found.
    pub fn load(file: &Path) -> Result<Self, ConfigError> {
        Self::checked(&Source::read(file)?, file)
    }

    /// The same for text that is not in `file`.
    ///
    /// # Errors
    /// [`ConfigError`], the first one found.
    pub fn of_text(file: &Path, text: &str) -> Result<Self, ConfigError> {
        Self::checked(&Source::of(file, text.to_owned()), file)
    }

    fn checked(source: &Source, file: &Path) -> Result<Self, ConfigError> {
        let raw: RawGateway = source.parse()?;
        let practice = source.required("practice", raw.practice, "an ODS code, for example \"B86022\"")?;
        let practice: Practice = source.parsed("practice", &practice)?;
        let gateway = source.required("gateway", raw.gateway, "an id unique in the practice: \"gw1\"")?;
        let gateway: Gateway = source.parsed("gateway", &gateway)?;
        let data_directory =
            source.path(&raw.data_directory.unwrap_or_else(|| "/var/lib/practice-gateway".into()));
        let (lanes, hub_names) = lanes(source, raw.lane)?;
        let types = events::types(source, &raw.events)?;
        let (owner, box_id) = (practice.clone(), gateway.clone());
        let outbox = outbox_settings(source, raw.outbox, &data_directory, owner, box_id, lanes, types)?;
        let mllp = raw.mllp.into_iter().map(|door| doors::mllp(source, door, &outbox));
        let mllp = mllp.collect::<Result<Vec<_>, _>>()?;
        let http = raw.http.into_iter().map(|door| doors::http(source, door, &outbox));
        let http = http.collect::<Result<Vec<_>, _>>()?;
        let mut folders = Vec::new();
        for raw in raw.folder {
            folders.push(folder::folder(source, raw, &outbox, &data_directory, &folders)?);
        }
        let ingest_memory_bytes =
            source.number("ingest.memory_bytes", raw.ingest.memory_bytes, 64 << 20, 1 << 20..=4 << 30)?;
        let recipients = recipients(source, &raw.hub)?;
        let hubs = hubs(source, raw.hub)?;
        let link = uplink(source, raw.uplink)?;
        if hubs.is_empty() && link.confirm == Confirm::Receipt {
            return Err(source.missing(
                "[[hub]]",
                "there for each hub that must confirm (or uplink.confirm = \"puback\")",
            ));
        }
        let interfaces = interfaces(&[("mllp", mllp.len()), ("http", http.len()), ("folder", folders.len())]);
        let health_interval =
            source.seconds("health.interval_seconds", raw.health.interval_seconds, 60.0, 0.1..=3600.0)?;
        let lane_hubs = lane_hubs(source, &outbox.lanes, &hub_names, &hubs)?;
        let hub_at = |(lane, hub): (&Lane, &usize)| Some((lane.clone(), hubs.get(*hub)?.clone()));
        let pinned = lane_hubs.iter().filter_map(hub_at).collect();
        let mut uplink =
            uplink_settings(source, link, (hubs, lane_hubs), &outbox, &data_directory, interfaces);
        uplink.info.health_interval_seconds = health_interval.as_secs_f64();
        let signing_key_file =
            source.path(&raw.signing_key_file.unwrap_or_else(|| "/etc/practice-gateway/signing.key".into()));
        Ok(Self {
            file: file.to_owned(),
            practice,
            gateway,
            outbox_key_file: source
                .path(&raw.outbox_key_file.unwrap_or_else(|| "/etc/practice-gateway/outbox.key".into())),
            signing_key_file: signing_key_file.clone(),
            control: ControlConfig {
                socket: source
                    .path(&raw.control.socket.unwrap_or_else(|| "/run/practice-gateway/control.sock".into())),
                practice: outbox.practice.clone(),
                gateway: outbox.gateway.clone(),
                max_body_bytes: outbox.max_body_bytes,
                recipients,
                lane_hubs: pinned,
                signing_key_file,
            },
            data_directory,
            mllp,
            http,
            folders,
            ingest_memory_bytes,
            outbox,
            uplink,
            health_interval,
            log: log(source, raw.log)?,
        })
    }
}

/// What a gateway says of its doors: those that are open, and the control socket.
fn interfaces(doors: &[(&'static str, usize)]) -> Vec<&'static str> {
    let open = doors.iter().filter(|(_, doors)| *doors > 0).map(|(name, _)| *name);
    open.chain(["control"]).collect()
}

fn uplink_settings(
    source: &Source,
    link: Link,
    (hubs, lane_hubs): (Vec<PinnedHub>, BTreeMap<Lane, usize>),
    outbox: &outbox::OutboxSettings,
    data_directory: &Path,
    interfaces: Vec<&str>,
) -> uplink::UplinkSettings {
    // Urgent lanes are served first.
    let (urgent, others): (Vec<_>, Vec<_>) = outbox.lanes.iter().partition(|lane| lane.urgent);
    let lanes: Vec<Lane> = urgent.into_iter().chain(others).map(|lane| lane.lane.clone()).collect();
    let names: Vec<&str> = lanes.iter().map(Lane::as_str).collect();
    let confirm = if link.confirm == Confirm::Receipt { "receipt" } else { "puback" };
    let info = Info {
        schema: SCHEMA,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        lanes: names.join(" "),
        interfaces: interfaces.join(" "),
        configuration_digest: source.digest(),
        confirm: confirm.to_owned(),
        certificate_expires: String::new(),
        key_id: String::new(),
        health_interval_seconds: 0.0,
        time: String::new(),
    };
    uplink::UplinkSettings {
        practice: outbox.practice.clone(),
        gateway: outbox.gateway.clone(),
        lanes,
        upstreams: link.upstreams,
        tls: Some(link.tls),
        state_directory: data_directory.join("uplink"),
        hubs,
        lane_hubs,
        keep_alive: link.keep_alive,
        phase_timeout: link.phase_timeout,
        inflight: link.inflight,
        max_incoming_packet_bytes: link.max_packet_bytes,
        delivery: link.limits,
        reconnect: link.reconnect,
        info,
    }
}

/// The lanes, and the names of hubs that some of them have.
type Lanes = (Vec<LaneSettings>, Vec<(Lane, Spanned<String>)>);

fn lanes(source: &Source, raw: Vec<RawLane>) -> Result<Lanes, ConfigError> {
    const KEY: &str = "lane.name";
    let mut lanes: Vec<LaneSettings> = Vec::new();
    let mut hubs = Vec::new();
    for entry in raw {
        let name = source.required(KEY, entry.name, "a name, for example \"clinical\"")?;
        let lane: Lane = source.parsed(KEY, &name)?;
        if lanes.iter().any(|other| other.lane == lane) {
            return Err(source.wrong(KEY, &name, "different from the other lanes' names"));
        }
        if lanes.len() == 16 {
            return Err(source.wrong(KEY, &name, "one of at most 16 lanes"));
        }
        hubs.extend(entry.hub.map(|hub| (lane.clone(), hub)));
        lanes.push(LaneSettings { lane, urgent: entry.urgent.unwrap_or(false) });
    }
    if lanes.is_empty() {
        let name = Spanned::new(0..0, String::from("clinical"));
        lanes.push(LaneSettings { lane: source.parsed(KEY, &name)?, urgent: false });
    }
    Ok((lanes, hubs))
}

fn outbox_settings(
    source: &Source,
    raw: RawOutbox,
    data_directory: &Path,
    practice: Practice,
    gateway: Gateway,
    lanes: Vec<LaneSettings>,
    types: outbox::TypeAffixes,
) -> Result<outbox::OutboxSettings, ConfigError> {
    const MIB: u64 = 1 << 20;
    const TIB: u64 = 1 << 40;
    let segment_bytes =
        source.number("outbox.segment_bytes", raw.segment_bytes, 32 * MIB, MIB..=1024 * MIB)?;
    // What is accepted must fit into one packet: a larger one could never leave.
    let most = 1024..=limits::BODY_BYTES;
    let max_body_bytes = source.number("outbox.max_body_bytes", raw.max_body_bytes, 20_000_000, most)?;
    let day = Duration::from_secs(86_400);
    Ok(outbox::OutboxSettings {
        directory: data_directory.join("outbox"),
        practice,
        gateway,
        lanes,
        types,
        segment_records: source.number(
            "outbox.segment_records",
            raw.segment_records,
            8_192,
            16..=1_000_000,
        )?,
        segment_bytes,
        retention: source.duration("outbox.retention_days", raw.retention_days, 35.0, 0.0..=3650.0, day)?,
        // The ballast is as large as four segments' payload. The segments in use and made ahead take as much again,
        // with what sled needs. A store that these alone fill would stay full for ever.
        limit_bytes: source.number(
            "outbox.limit_bytes",
            raw.limit_bytes,
            6 << 30,
            16 * segment_bytes..=64 * TIB,
        )?,
        min_free_bytes: source.number("outbox.min_free_bytes", raw.min_free_bytes, 64 * MIB, 0..=TIB)?,
        min_free_percent: source.number("outbox.min_free_percent", raw.min_free_percent, 10, 0..=90)?,
        max_body_bytes,
        // A queue that cannot hold the largest body would refuse it for ever.
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
