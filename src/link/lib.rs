//! One connection to a broker: rumqttc's state machine and codec over our own TLS stream. Gateway and hub use the same
//! code.
//!
//! - [`connect`]: from a host name to a subscribed session; [`phase`], [`failure`]: how far it got, and why it failed
//! - [`transport`]: name, socket and handshake, each with its own deadline
//! - [`session`]: rumqttc's state machine over our stream; [`codec`]: decodes packets from bytes
//! - [`pem`]: certificates and keys from files; [`tls`]: the client's side, [`server_tls`]: the doors' side;
//!   [`watched`]: files that are reread when they change; [`clock`]: the time used to check certificates
//! - [`backoff`]: when to retry; [`state_file`]: the session counter
//! - [`check`]: what the `check` commands report about certificates

pub mod backoff;
pub mod check;
pub mod clock;
pub mod codec;
pub mod connect;
pub mod failure;
pub mod pem;
pub mod phase;
pub mod server_tls;
pub mod session;
pub mod state_file;
pub mod tls;
pub mod transport;
pub mod watched;
