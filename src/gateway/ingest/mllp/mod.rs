//! The MLLP door: HL7 v2 as surgeries' systems send it (design section 8).
//!
//! [`codec`], [`msh`], [`ack`], [`envelope`], [`route`] and [`allowance`] are pure; [`door`] listens, and holds the
//! connections.

pub mod ack;
pub mod allowance;
pub mod codec;
mod connection;
pub mod door;
pub mod envelope;
pub mod msh;
pub mod route;
mod stream;

#[cfg(test)]
mod door_tests;
#[cfg(test)]
mod outbox_tests;
#[cfg(test)]
mod tls_tests;
