//! The uplink: rumqttc and TLS, one connection at a time, thrown away on any error (design section 6).
//!
//! In the order in which a connection passes them:
//! - [`mod@run`]: connection after connection, upstream after upstream, with full-jitter delays between them
//! - `renewal`: certificates, tried before they replace the old, judged by a time that never goes back
//! - `connection`: name, socket, TLS, CONNECT, SUBSCRIBE, by [`pgw_link`]; every failure names its [`pgw_link::phase::Phase`]
//! - `driver`, `live`: events to the machines of [`pgw_core::delivery`], their actions to the wire; `lane` and `reader` bring
//!   the records, `ledger` tells whose a PUBACK is, `inbound` whose a receipt
//! - [`mod@orders`]: what a person orders: a receipt by file, another try of a head that stands
//! - `resend`: confirmed transactions once more, for a hub's command or a person's order
//! - `own`, `link`, `probe`, `notable`: what the gateway says of itself, upstream, to health and to people
//!
//! Nothing that was handed to the session counts as progress: only the contiguous prefix of PUBACKs (flow) and
//! verified receipts (delivery) reach the machines.

mod connection;
mod driver;
mod inbound;
mod lane;
mod ledger;
mod link;
mod live;
mod notable;
mod orders;
mod own;
mod probe;
mod reader;
mod renewal;
mod resend;
mod run;
mod settings;

pub use orders::{Ordered, Orders, orders};
pub use resend::{Again, Resent};
pub use run::run;
pub use settings::{PinnedHub, Settings};

use pgw_core::transaction::Lane;

/// What no connection can mend.
#[derive(Debug, thiserror::Error)]
pub enum UplinkError {
    /// The configuration names a lane that the outbox does not have.
    #[error("the outbox has no lane {0}")]
    UnknownLane(Lane),
    /// The configuration names no broker.
    #[error("no upstream is configured")]
    NoUpstream,
    /// A lane's reader thread could not be started.
    #[error("cannot start a thread")]
    Thread(#[source] std::io::Error),
    /// A lane's reader thread panicked.
    #[error("the thread that reads lane {0} has failed")]
    Reader(Lane),
    /// The system gives no random numbers.
    #[error("the system has no randomness")]
    Randomness,
}
