//! Both command lines.
//!
//! Commands that touch the outbox ask the running daemon over its control socket ([`crate::ingest::control`]). Each
//! writes to the writers that it is given, so that tests can read what a person would.

pub mod exit;
pub mod outbox;
pub mod status;
pub mod submit;
pub mod verify;
