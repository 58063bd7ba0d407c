//! Duplicates: whether a sender has given us this transaction before.
//!
//! - [`index`]: the index of one store, a sequence of tables
//! - [`table`]: a hash table on disk
//! - [`fingerprint`]: keyed hashes of a transaction's source and key, and of its body
//! - [`bloom`]: which fingerprints the index surely lacks
//!
//! A hit is a hint only; `pipeline/duplicates.rs` reads the record and decides.

pub(crate) mod bloom;
pub(crate) mod fingerprint;
pub(crate) mod index;
pub(crate) mod table;
