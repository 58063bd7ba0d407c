//! The uplink: one connection at a time, thrown away on any error (design section 6).
//!
//! In the order in which a connection passes them:
//! - [`mod@run`]: connection after connection, upstream after upstream, with full-jitter delays between them
//! - `renewal`: certificates, tried before they replace the old, judged by a time that never goes back
//! - `connection`: what [`pgw_link::connect`] has made, in a task of its own; every failure names its [`pgw_link::phase::Phase`]
//! - `driver`, `live`: events to the machines of [`pgw_core::delivery`], their actions to the wire; `lane` and `reader` bring
//!   the records, `in_flight` tells whose a PUBACK is, `verifier` whose a message
//! - [`mod@orders`]: what a person orders: a receipt by file, another try of a held head
//! - `resend`: confirmed transactions once more, for a hub's command or a person's order
//! - `announcements`, `probe`, `refusal`: what the gateway says of itself, upstream and to people; `link`, `snapshot`: to health
//!
//! Nothing that was handed to the session counts as progress: only the contiguous prefix of PUBACKs (flow) and
//! verified receipts (delivery) reach the machines.

mod announcements;
mod connection;
mod driver;
mod in_flight;
mod lane;
mod link;
mod live;
mod orders;
mod probe;
mod reader;
mod refusal;
mod renewal;
mod resend;
mod run;
mod settings;
mod snapshot;
mod verifier;

pub use orders::{OrderError, Ordered, Orders, orders};
pub use resend::{ResendProgress, Resent};
pub use run::run;
pub use settings::{PinnedHub, UplinkSettings};
pub use snapshot::{LinkSnapshot, Reports};
pub use verifier::Rejected;

use pgw_core::transaction::Lane;

/// What no other connection can put right: the gateway must be restarted, or configured otherwise.
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
    /// The system gives no random bytes.
    #[error("the system provides no random bytes")]
    Randomness(#[source] std::io::Error),
}
