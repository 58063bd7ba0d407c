//! The MLLP door: HL7 v2 as surgeries' systems send it (design section 8).
//!
//! [`codec`], [`msh`], [`ack`], [`envelope`], [`route`] and [`abuse_limiter`] are pure; [`door`] listens, `connection`
//! talks to one sender, [`context`] is what the connections of a door share.

pub mod abuse_limiter;
pub mod ack;
pub mod codec;
mod connection;
pub mod context;
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
