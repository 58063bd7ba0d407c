//! The HTTP door: any bytes, FHIR messages, and HL7 v2, each answered in its own format (design section 8).
//!
//! `docs/openapi.yaml` is the contract; a test drives every route, method and status in it.
//!
//! - [`headers`], [`fhir`], [`outcome`], [`keys`] and [`metrics`] are pure
//! - [`door`] listens and holds connections, [`context`] is what they share, [`access`] decides who may send, `intake`
//!   reads a body within its limits
//! - [`router`] has the routes, `compose` and `submission` turn a request into a `submit()`, `lookup` finds accepted
//!   transactions

pub mod access;
mod compose;
pub mod context;
pub mod door;
pub mod fhir;
pub mod headers;
mod intake;
pub mod keys;
mod lookup;
pub mod metrics;
pub mod outcome;
pub mod router;
mod submission;
