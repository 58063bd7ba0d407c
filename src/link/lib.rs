//! One connection to a broker: rumqttc's state machine and codec over TLS of ours. The same for the gateway and the hub.
//!
//! - [`connect`]: from a name to a subscribed session; [`phase`], [`failure`]: how far it came, and why no further
//! - [`transport`]: name, socket and handshake, each with its own deadline
//! - [`session`]: rumqttc's state machine over our stream; [`codec`]: its packets out of the bytes
//! - [`pem`]: certificates and keys from files; [`tls`]: the client's end, [`server_tls`]: that of the doors; [`watched`]: files
//!   that are read again when they change; [`clock`]: the time by which certificates are judged
//! - [`backoff`]: when to try again; [`state_file`]: the session counter
//! - [`check`]: what the `check` commands say of certificates

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
