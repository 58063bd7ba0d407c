//! Encryption at rest, all of it. An auditor reads this folder and `docs/on-disk-format.md`.
//!
//! - [`keyring`]: the outbox keys, and the keys that are derived from them
//! - [`seal`]: a record's seal
//! - [`entry_seal`]: the seal of an entry in quarantine
//! - [`index_key`]: the key of the duplicate index, sealed with the outbox key
//! - [`key_use`]: which key has sealed what, and so which key is still needed
//!
//! Everything is sealed with XChaCha20-Poly1305 and a random nonce of 24 bytes ([`pgw_durable::random`]).

pub(crate) mod entry_seal;
pub(crate) mod index_key;
pub(crate) mod key_use;
pub(crate) mod keyring;
pub(crate) mod seal;
