//! On the wire: topics, envelopes, payloads and signatures, all pure. `docs/wire-format.md` is the contract.
//!
//! - [`topic`]: every topic that either end writes or reads
//! - [`envelope`]: a transaction as a CloudEvents 1.0 MQTT binding, binary mode
//! - [`receipt`]: receipts, gaps and position questions: the delivery protocol's payloads
//! - [`signature`]: Ed25519 over topic and payload
//! - [`presence`]: status with will, info, events
//! - [`command`]: a hub's orders to a gateway, and their results
//! - [`void`]: the mark for what is lost and was released by a person

pub mod command;
pub mod envelope;
pub mod presence;
pub mod receipt;
pub mod signature;
pub mod topic;
pub mod void;

/// Version of every JSON payload: its first key, `schema`.
pub const SCHEMA: u32 = 1;

/// What is wrong with something that came in. It is ignored, counted and logged at a limited rate, never obeyed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// A property or key that must be there is not.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// A property or key has a value that does not fit.
    #[error("{0} is malformed")]
    Malformed(&'static str),
    /// The payload is not the JSON that it should be.
    #[error("the payload is not the expected JSON: {0}")]
    Json(String),
    /// A payload of a newer version.
    #[error("the payload has schema {0}, this version reads schema 1")]
    Schema(u32),
    /// The signature is missing or is not this hub's.
    #[error("the signature is missing or is not that of the configured hub")]
    Signature,
    /// No topic of ours.
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

/// Writes a JSON payload. Our payload types cannot fail to be written; an empty payload would say so.
#[must_use]
pub fn to_json<T: serde::Serialize>(payload: &T) -> Vec<u8> {
    serde_json::to_vec(payload).unwrap_or_default()
}
