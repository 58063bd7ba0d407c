//! On the wire: topics, envelopes, payloads and signatures, all pure. `docs/wire-format.md` is the contract.
//!
//! - [`topic`]: every topic that either end writes or reads
//! - [`attributes`]: what is stored of a transaction besides its numbers and its body
//! - [`envelope`]: a transaction as a CloudEvents 1.0 MQTT binding, binary mode
//! - [`entry`]: the entry in the place of transactions that a gateway cannot send any more
//! - [`receipt`]: receipts, gaps and position questions: the delivery protocol's payloads
//! - [`signature`]: Ed25519 over messages, and over a lane's head
//! - [`said`]: which start of a gateway says something, and in which order
//! - [`presence`]: status with will, info, events
//! - [`command`]: a hub's orders to a gateway, and their results
//! - [`limits`]: how long texts and packets may be

pub mod attributes;
pub mod command;
pub mod entry;
pub mod envelope;
pub mod limits;
pub mod presence;
pub mod receipt;
pub mod said;
pub mod signature;
pub mod topic;

use crate::transaction::Sequence;

/// Version of every JSON payload: its first key, `schema`.
pub const SCHEMA: u32 = 1;

/// What is wrong with an incoming message. It is ignored, counted and logged at a limited rate, never obeyed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// A required property or key is missing.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// A property or key has an invalid value.
    #[error("{0} is malformed")]
    Malformed(&'static str),
    /// A property comes more than once.
    #[error("{0:?} comes more than once")]
    Twice(String),
    /// A name or a value is longer than [`limits`] allow, or holds a character that they forbid.
    #[error("{0:?} is too long, or holds a character that is not allowed")]
    Text(String),
    /// The payload is not the expected JSON.
    #[error("the payload is not the expected JSON: {0}")]
    Json(String),
    /// A payload of a newer version.
    #[error("the payload has schema {0}, this version reads schema 1")]
    Schema(u32),
    /// The signature is missing, or of none of the keys that may sign this.
    #[error("the signature is missing, or is not that of the configured key")]
    Signature,
    /// Not one of our topics.
    #[error("unknown topic")]
    Topic,
}

/// Reads a JSON payload and checks its schema.
///
/// # Errors
/// [`WireError::Json`] or [`WireError::Schema`].
pub fn from_json<'a, T: serde::Deserialize<'a>>(payload: &'a [u8]) -> Result<T, WireError> {
    #[derive(serde::Deserialize)]
    struct Version {
        schema: u32,
    }
    let version: Version = serde_json::from_slice(payload).map_err(|e| WireError::Json(e.to_string()))?;
    if version.schema != SCHEMA {
        return Err(WireError::Schema(version.schema));
    }
    serde_json::from_slice(payload).map_err(|e| WireError::Json(e.to_string()))
}

/// Writes a JSON payload. Our payload types cannot fail to serialise; an empty payload would show it.
#[must_use]
pub fn to_json<T: serde::Serialize>(payload: &T) -> Vec<u8> {
    serde_json::to_vec(payload).unwrap_or_default()
}

/// A sequence as text: 20 digits, so that it orders as text.
#[must_use]
pub fn sequence_text(sequence: Sequence) -> String {
    format!("{sequence:020}")
}
