//! The hub: takes the fleet's transactions from the broker, stores them exactly once and in order, sends receipts.
//!
//! - [`store`]: the interface to stable storage, and the embedded NDJSON store behind it
//! - [`run`]: one connection after another, each with a new session
//! - [`link`]: the options of a connection, and what is published on it
//! - [`store_thread`]: drives [`pgw_core::committer`], which decides what is stored and answered, over the store
//! - [`imported`], [`import`]: hand-carried bundles, stored in the same way; [`bundle_signatures`]: who has signed one;
//!   [`unsigned`]: what nobody has signed, kept beside its lanes
//! - [`control`]: the socket over which the commands talk to the running hub
//! - [`resend`]: asks gateways again for what the hub's files have lost or altered
//! - [`backup`]: what is in a backup, so that gateways may free their disks
//! - [`archive`]: moves the bodies of old transactions elsewhere, to make room
//! - [`answers`]: what is to be published, coalesced
//! - [`gateways`]: the list of gateways and their keys
//! - `speakers`: verifies what arrives with the keys of that list; [`hearing`]: which of it is new
//! - [`fleet`]: what each gateway last said about itself; [`waits`]: what waits at a lane until the centre admits it
//! - [`verify`]: walks the stored chains and names what is missing, altered, swapped or repeated
//! - [`missing`]: what an entry stands for, and the line lacks
//! - [`report`]: what `practice-hub verify` and `list` print
//! - [`config`], [`keys`], [`daemon`], [`cli`]: configuration, keys, the daemon, the command line
//!
//! Invariant: a receipt never covers more than `Store::append` has already put on stable storage.

pub mod answers;
pub mod archive;
pub mod backup;
pub mod bundle_signatures;
pub mod cli;
pub mod config;
pub mod control;
pub mod daemon;
pub mod fleet;
pub mod gateways;
pub mod hearing;
pub mod import;
pub mod imported;
pub mod keys;
pub mod link;
pub mod missing;
mod refusals;
pub mod report;
pub mod resend;
pub mod run;
mod speakers;
pub mod store;
pub mod store_thread;
pub mod unsigned;
pub mod verify;
pub mod waits;

use std::path::PathBuf;
use std::time::Duration;

use pgw_core::transaction::Hub;

/// The hub's settings. None is optional: the configuration supplies the defaults.
#[derive(Debug, Clone)]
pub struct HubSettings {
    /// The hub's name: the CN of its certificate, and in its topics.
    pub hub: Hub,
    /// Directory of the NDJSON store and of the fleet view.
    pub directory: PathBuf,
    /// Host name or address of the broker; its certificate must name it.
    pub broker_host: String,
    /// Its port (8883).
    pub broker_port: u16,
    /// PEM file with the fleet's CA.
    pub ca_file: PathBuf,
    /// PEM file with the hub's certificate chain.
    pub certificate_file: PathBuf,
    /// PEM file with its private key.
    pub key_file: PathBuf,
    /// PKCS#8 document (DER) of the Ed25519 key that signs receipts.
    pub signing_key_file: PathBuf,
    /// The socket on which commands reach the running hub; its directory exists.
    pub control_socket: PathBuf,
    /// The age identity that decrypts bundles; without the file nothing can be imported.
    pub carry_key_file: PathBuf,
    /// The list of gateways and their keys; without the file there are none.
    pub gateways_file: PathBuf,
    /// MQTT keep-alive (20 s; at least 5 s).
    pub keep_alive: Duration,
    /// Deadline for name, TCP, TLS and CONNACK together (10 s).
    pub connect_timeout: Duration,
    /// Upper bound of the first reconnect delay; the delay is uniform below it (1 s).
    pub reconnect_base: Duration,
    /// Upper bound of any reconnect delay (30 s).
    pub reconnect_cap: Duration,
    /// Most unacknowledged publishes that the broker may have in flight to the hub (10,000).
    pub receive_maximum: u16,
    /// Largest MQTT packet that is accepted; not below the gateways' limit (24 MiB).
    pub maximum_packet_bytes: u32,
    /// Most transactions in one group (1,024).
    pub group_transactions: usize,
    /// Most payload bytes in one group; a single larger transaction forms its own group (4 MiB).
    pub group_bytes: usize,
    /// A lane file is rotated at this size (1 GiB).
    pub rotate_bytes: u64,
}
