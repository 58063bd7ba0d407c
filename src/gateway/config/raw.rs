//! The files as written: every key is optional here, so that the checks can name what is missing.
//!
//! `config/gateway.toml` says what each key means; a test keeps the two in step.

use std::path::PathBuf;

use pgw_host::log_config::RawLog;
use serde::Deserialize;
use toml::Spanned;

type Text = Option<Spanned<String>>;
type Number = Option<Spanned<u64>>;
type Time = Option<Spanned<f64>>;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawGateway {
    pub(super) practice: Text,
    pub(super) gateway: Text,
    pub(super) data_directory: Option<PathBuf>,
    pub(super) outbox_key_file: Option<PathBuf>,
    pub(super) signing_key_file: Option<PathBuf>,
    #[serde(default)]
    pub(super) control: RawControl,
    #[serde(default)]
    pub(super) lane: Vec<RawLane>,
    #[serde(default)]
    pub(super) mllp: Vec<RawMllp>,
    #[serde(default)]
    pub(super) http: Vec<RawHttp>,
    #[serde(default)]
    pub(super) folder: Vec<RawFolder>,
    #[serde(default)]
    pub(super) ingest: RawIngest,
    #[serde(default)]
    pub(super) events: RawEvents,
    #[serde(default)]
    pub(super) outbox: RawOutbox,
    #[serde(default)]
    pub(super) uplink: RawUplink,
    #[serde(default)]
    pub(super) hub: Vec<RawHubKey>,
    #[serde(default)]
    pub(super) health: RawHealth,
    #[serde(default)]
    pub(super) log: RawLog,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawControl {
    pub(super) socket: Option<PathBuf>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawLane {
    pub(super) name: Text,
    pub(super) urgent: Option<bool>,
    pub(super) hub: Text,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawMllp {
    pub(super) listen: Text,
    pub(super) lane: Text,
    pub(super) frame_limit_bytes: Number,
    pub(super) in_frame_seconds: Time,
    pub(super) max_connections: Number,
    pub(super) on_unavailable: Text,
    pub(super) unavailable_pause_seconds: Time,
    #[serde(default)]
    pub(super) allow_addresses: Vec<Spanned<String>>,
    #[serde(default)]
    pub(super) allow_senders: Vec<Spanned<String>>,
    #[serde(default)]
    pub(super) route: Vec<RawRoute>,
    pub(super) certificate_file: Option<PathBuf>,
    pub(super) key_file: Option<PathBuf>,
    pub(super) client_ca_file: Option<PathBuf>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawRoute {
    pub(super) message: Text,
    pub(super) lane: Text,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawHttp {
    pub(super) listen: Text,
    pub(super) lane: Text,
    pub(super) body_limit_bytes: Number,
    pub(super) header_seconds: Time,
    pub(super) body_seconds: Time,
    pub(super) max_connections: Number,
    pub(super) fhir: Text,
    #[serde(default)]
    pub(super) allow_addresses: Vec<Spanned<String>>,
    pub(super) certificate_file: Option<PathBuf>,
    pub(super) key_file: Option<PathBuf>,
    pub(super) client_ca_file: Option<PathBuf>,
    pub(super) tokens_file: Option<PathBuf>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawFolder {
    pub(super) name: Text,
    pub(super) path: Option<Spanned<PathBuf>>,
    pub(super) lane: Text,
    pub(super) take: Text,
    pub(super) mounted: Option<bool>,
    pub(super) file_limit_bytes: Number,
    pub(super) rescan_seconds: Time,
    pub(super) settle_seconds: Time,
    pub(super) empty_seconds: Time,
    pub(super) accepted: Text,
    pub(super) rejected: Text,
    pub(super) keep_accepted: Option<bool>,
    #[serde(rename = "type")]
    pub(super) event_type: Text,
    pub(super) content_type: Text,
    #[serde(default)]
    pub(super) by_extension: Vec<RawExtension>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawExtension {
    pub(super) extension: Text,
    #[serde(rename = "type")]
    pub(super) event_type: Text,
    pub(super) content_type: Text,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawIngest {
    pub(super) memory_bytes: Number,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawEvents {
    pub(super) type_prefix: Text,
    pub(super) type_suffix: Text,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawOutbox {
    pub(super) segment_records: Number,
    pub(super) segment_bytes: Number,
    pub(super) retention_days: Time,
    pub(super) limit_bytes: Number,
    pub(super) min_free_bytes: Number,
    pub(super) min_free_percent: Number,
    pub(super) max_body_bytes: Number,
    pub(super) queue_bytes: Number,
    pub(super) quarantine_bytes: Number,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawUplink {
    pub(super) upstreams: Option<Spanned<Vec<Spanned<String>>>>,
    pub(super) ca_file: Option<PathBuf>,
    pub(super) certificate_file: Option<PathBuf>,
    pub(super) key_file: Option<PathBuf>,
    pub(super) confirm: Text,
    pub(super) keep_alive_seconds: Time,
    pub(super) phase_seconds: Time,
    pub(super) inflight: Number,
    pub(super) window: Number,
    pub(super) window_bytes: Number,
    pub(super) receipt_seconds: Time,
    pub(super) stall_seconds: Time,
    pub(super) backoff_first_loss_seconds: Time,
    pub(super) backoff_base_seconds: Time,
    pub(super) backoff_cap_seconds: Time,
    pub(super) settled_seconds: Time,
    pub(super) max_packet_bytes: Number,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawHubKey {
    pub(super) name: Text,
    pub(super) public_key: Text,
    pub(super) public_key_file: Option<Spanned<PathBuf>>,
    pub(super) next_public_key: Text,
    pub(super) recipient: Text,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawHealth {
    pub(super) interval_seconds: Time,
}
