//! One connection to a broker: rumqttc's state machine and codec over TLS of ours. The same for the gateway and the hub.
//!
//! - [`transport`]: name, socket and handshake, each with its own deadline; [`phase`], [`failure`]: how far it came, and why no further
//! - [`session`]: rumqttc's state machine and codec over our stream
//! - [`tls`]: client certificates; [`server_tls`]: those of the doors; [`clock`]: the time by which they are judged
//! - [`backoff`]: when to try again; [`state_file`]: the session counter
//! - [`check`]: what the `check` commands say of certificates

pub mod backoff;
pub mod check;
pub mod clock;
pub mod failure;
pub mod phase;
pub mod server_tls;
pub mod session;
pub mod state_file;
pub mod tls;
pub mod transport;
