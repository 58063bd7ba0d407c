//! The shared types, the chain, and all decisions that need no input or output, no clock and no randomness.
//!
//! - [`transaction`]: practice, gateway, lane, epoch, transaction
//! - [`text`]: hexadecimal digits, errors with their causes
//! - [`consequence`]: how to react to an error
//! - [`chain`]: the proof that none is missing, altered or swapped
//! - [`numbering`]: which number names which positions on the wire
//! - [`delivery`]: which transaction is sent when, and what a receipt means; sans-IO
//! - [`committer`]: what the hub stores, what it answers, and when; sans-IO
//! - [`wire`]: topics, envelopes, payloads, signatures; pure

pub mod chain;
pub mod committer;
pub mod consequence;
pub mod delivery;
pub mod numbering;
pub mod text;
pub mod transaction;
pub mod wire;
