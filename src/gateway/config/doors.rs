//! `[[mllp]]` and `[[http]]` of `gateway.toml`, checked.

use std::path::PathBuf;

use pgw_core::transaction::Lane;
use pgw_host::config::ConfigError;
use pgw_host::config::Source;
use pgw_link::server_tls as tls;
use pgw_outbox as outbox;
use toml::Spanned;

use crate::config::raw::{RawHttp, RawMllp, RawRoute};
use crate::ingest::http::access::AccessFiles;
use crate::ingest::http::context::HttpDoorConfig;
use crate::ingest::listen::AddressRange;
use crate::ingest::mllp::context::{MllpDoorConfig, OnUnavailable};
use crate::ingest::mllp::route::Route;

pub(super) fn mllp(
    source: &Source,
    raw: RawMllp,
    outbox: &outbox::OutboxSettings,
) -> Result<MllpDoorConfig, ConfigError> {
    let listen = source.required("mllp.listen", raw.listen, "an address and port: \"127.0.0.1:2575\"")?;
    let lane = lane(source, "mllp.lane", raw.lane, outbox)?;
    let allowed_addresses = addresses(source, "mllp.allow_addresses", &raw.allow_addresses)?;
    for sender in &raw.allow_senders {
        if !sender.get_ref().contains('|') {
            return Err(source.wrong("mllp.allow_senders", sender, "MSH-3|MSH-4 as the sender writes them"));
        }
    }
    let path = |given: Option<PathBuf>| given.map(|path| source.path(&path));
    let client_ca = path(raw.client_ca_file);
    let tls = pair(source, "mllp", path(raw.certificate_file), path(raw.key_file))?;
    if client_ca.is_some() && tls.is_none() {
        return Err(source.missing("mllp.certificate_file", "there where client_ca_file is"));
    }
    Ok(MllpDoorConfig {
        practice: outbox.practice.clone(),
        gateway: outbox.gateway.clone(),
        listen: source.address("mllp.listen", &listen)?,
        lane,
        frame_limit_bytes: limit(source, "mllp.frame_limit_bytes", raw.frame_limit_bytes, 1024, outbox)?,
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
        routes: routes(source, raw.route, outbox)?,
        tls: tls.map(|(certificate, key)| tls::Files { certificate, key, client_ca }),
        allowed_senders: raw.allow_senders.into_iter().map(Spanned::into_inner).collect(),
    })
}

pub(super) fn http(
    source: &Source,
    raw: RawHttp,
    outbox: &outbox::OutboxSettings,
) -> Result<HttpDoorConfig, ConfigError> {
    let written = source.required("http.listen", raw.listen, "an address and port: \"127.0.0.1:8080\"")?;
    let listen = source.address("http.listen", &written)?;
    let path = |given: Option<PathBuf>| given.map(|path| source.path(&path));
    let tls = pair(source, "http", path(raw.certificate_file), path(raw.key_file))?;
    let files = AccessFiles { tls, client_ca: path(raw.client_ca_file), tokens: path(raw.tokens_file) };
    if files.client_ca.is_some() && files.tls.is_none() {
        return Err(source.missing("http.certificate_file", "there where client_ca_file is"));
    }
    let guarded = files.tls.is_some() && (files.client_ca.is_some() || files.tokens.is_some());
    if !listen.ip().is_loopback() && !guarded {
        let allowed =
            "a loopback address, or have certificate_file and key_file with client_ca_file or tokens_file";
        return Err(source.wrong("http.listen", &written, allowed));
    }
    let lane = lane(source, "http.lane", raw.lane, outbox)?;
    Ok(HttpDoorConfig {
        listen,
        practice: outbox.practice.clone(),
        gateway: outbox.gateway.clone(),
        lane,
        lanes: outbox.lanes.iter().map(|lane| lane.lane.clone()).collect(),
        body_limit_bytes: limit(source, "http.body_limit_bytes", raw.body_limit_bytes, 1024, outbox)?,
        header_timeout: source.seconds("http.header_seconds", raw.header_seconds, 10.0, 0.1..=3600.0)?,
        body_timeout: source.seconds("http.body_seconds", raw.body_seconds, 30.0, 0.1..=3600.0)?,
        max_connections: source.number("http.max_connections", raw.max_connections, 256, 1..=10_000)?,
        bars: source.word("http.fhir", raw.fhir, true, &[("bars", true), ("plain", false)])?,
        allowed_addresses: addresses(source, "http.allow_addresses", &raw.allow_addresses)?,
        files,
    })
}

/// Certificate and key, both or neither.
fn pair(
    source: &Source,
    door: &str,
    certificate: Option<PathBuf>,
    key: Option<PathBuf>,
) -> Result<Option<(PathBuf, PathBuf)>, ConfigError> {
    match (certificate, key) {
        (Some(certificate), Some(key)) => Ok(Some((certificate, key))),
        (None, None) => Ok(None),
        (None, Some(_)) => Err(source.missing(&format!("{door}.certificate_file"), "there beside key_file")),
        (Some(_), None) => Err(source.missing(&format!("{door}.key_file"), "there beside certificate_file")),
    }
}

fn routes(
    source: &Source,
    raw: Vec<RawRoute>,
    outbox: &outbox::OutboxSettings,
) -> Result<Vec<Route>, ConfigError> {
    let route = |raw: RawRoute| {
        let message = source.required("mllp.route.message", raw.message, "a kind: \"ADT\", \"ORU^R01\"")?;
        let named = source.required("mllp.route.lane", raw.lane, "the name of a [[lane]]")?;
        Ok(Route {
            message: source.parsed("mllp.route.message", &message)?,
            lane: lane(source, "mllp.route.lane", Some(named), outbox)?,
        })
    };
    raw.into_iter().map(route).collect()
}

/// The lane that a door names, or the first lane.
pub(super) fn lane(
    source: &Source,
    key: &str,
    given: Option<Spanned<String>>,
    outbox: &outbox::OutboxSettings,
) -> Result<Lane, ConfigError> {
    const ALLOWED: &str = "the name of a [[lane]]";
    let Some(text) = given else {
        let first = outbox.lanes.first().map(|first| first.lane.clone());
        return first.ok_or_else(|| source.missing(key, ALLOWED));
    };
    let lane: Lane = source.parsed(key, &text)?;
    if outbox.lanes.iter().any(|known| known.lane == lane) {
        Ok(lane)
    } else {
        Err(source.wrong(key, &text, ALLOWED))
    }
}

/// The largest input that a door takes: at most what the outbox takes, and that unless configured.
pub(super) fn limit(
    source: &Source,
    key: &str,
    given: Option<Spanned<u64>>,
    least: u64,
    outbox: &outbox::OutboxSettings,
) -> Result<usize, ConfigError> {
    let most = outbox.max_body_bytes;
    source.number(key, given, usize::try_from(most).unwrap_or(usize::MAX), least..=most)
}

fn addresses(
    source: &Source,
    key: &str,
    given: &[Spanned<String>],
) -> Result<Vec<AddressRange>, ConfigError> {
    given.iter().map(|text| source.parsed(key, text)).collect()
}
