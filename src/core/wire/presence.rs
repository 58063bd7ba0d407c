//! Presence: `status` with its will, `info`, and `event` (design section 7).

use serde::{Deserialize, Serialize};

use crate::wire::SCHEMA;

/// `status`, retained; the will is the same with `online: false`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// 1.
    pub schema: u32,
    /// `online`, `offline`, `stopping`.
    pub status: String,
    /// The same as a number for monitors that read only numbers: 1 online, 0 offline, 2 stopping.
    pub up: u8,
    /// Persisted counter, one more at each connect, the same in the will: a late will of an older session loses.
    pub session: u64,
    /// A gateway's, while it is online: commands name it. New at each connect; empty in a will, and in a hub's status.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub command_nonce: String,
    /// Why, in a word or two: `connected`, `connection lost`, `stopped`.
    pub reason: String,
    /// RFC 3339; in the will the time of the connect.
    pub time: String,
    /// Version of the program.
    pub version: String,
}

impl Status {
    /// A status now (`time` is given: this module has no clock).
    #[must_use]
    pub fn new(status: &str, session: u64, reason: &str, time: String) -> Self {
        let up = match status {
            "online" => 1,
            "stopping" => 2,
            _ => 0,
        };
        Self {
            schema: SCHEMA,
            status: status.to_owned(),
            up,
            session,
            command_nonce: String::new(),
            reason: reason.to_owned(),
            time,
            version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }
}

/// `info`, retained: what is installed and configured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Info {
    /// 1.
    pub schema: u32,
    /// Version of the program.
    pub version: String,
    /// Names of the lanes, separated by a space: flat.
    pub lanes: String,
    /// The doors that are open, without addresses: `mllp control`.
    pub interfaces: String,
    /// First 16 hexadecimal digits of the configuration file's SHA-256.
    pub configuration_digest: String,
    /// `receipt` or `puback`.
    pub confirm: String,
    /// RFC 3339 end of the client certificate; empty when it cannot be read.
    pub certificate_expires: String,
    /// Id of the outbox key: names it and reveals nothing of it.
    pub key_id: String,
    /// Interval of health messages, besides one at every change.
    pub health_interval_seconds: f64,
    /// RFC 3339.
    pub time: String,
}

/// `event`: something that an operator may want to know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// 1.
    pub schema: u32,
    /// UUIDv7.
    pub id: String,
    /// RFC 3339.
    pub time: String,
    /// `info`, `warning`, `alarm`.
    pub level: String,
    /// Fixed code: `link.down`, `store.low`, `quarantine`, `diverged` ...
    pub code: String,
    /// Link phase where one is meant, else empty.
    pub phase: String,
    /// One sentence, no patient data.
    pub detail: String,
}

/// `probe` and, unchanged and signed by the hub, `probe/reply`: its round trip proves the whole path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probe {
    /// 1.
    pub schema: u32,
    /// UUIDv7: whose reply it is.
    pub id: String,
    /// RFC 3339, by the gateway's clock.
    pub time: String,
}
