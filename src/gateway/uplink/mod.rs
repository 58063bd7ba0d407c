//! The uplink: one connection at a time, dropped on any error (design section 6).
//!
//! In the order in which a connection passes them:
//! - [`mod@run`]: connection after connection, upstream after upstream, with full-jitter delays between them
//! - `renewal`: new certificates, tried before they replace the old ones, checked by a time that never goes back
//! - `connection`: a connection of [`pgw_link::connect`], in a task of its own; every failure names its
//!   [`pgw_link::phase::Phase`]
//! - `driver`, `live`: pass events to the machines of [`pgw_core::delivery`] and carry out their actions; `lane` and
//!   `reader` fetch the records, `in_flight` matches PUBACKs to publishes, `verifier` checks what comes in, `command_gate` which
//!   commands are obeyed, `known_stores` on which stores of the hubs pruning may rely
//! - [`mod@orders`]: a person's orders: a receipt from a file, a retry of a held record
//! - `resend`: confirmed transactions sent again, for a hub's command or a person's order
//! - `announcements`, `speaker`, `probe`, `refusal`: the gateway's own messages, signed, to the hub and to people; `link`, `snapshot`: to
//!   health
//!
//! Handing a packet to the session is not progress: only the contiguous prefix of PUBACKs (flow) and verified receipts
//! (delivery) reach the machines.

mod announcements;
mod command_gate;
mod connection;
mod driver;
mod in_flight;
mod known_stores;
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
mod speaker;
mod verifier;

pub use command_gate::NotObeyed;
pub use orders::{OrderError, Ordered, Orders, orders};
pub use resend::{ResendFailed, ResendProgress, Resent};
pub use run::{Requests, run};
pub use settings::{PinnedHub, UplinkSettings};
pub use snapshot::{LinkSnapshot, Reports};
pub use verifier::Rejected;

use pgw_core::consequence::Consequence;
use pgw_core::transaction::Lane;

/// What no other connection can fix: the gateway must be restarted, or its configuration changed.
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

impl UplinkError {
    /// How the daemon ends.
    #[must_use]
    pub fn consequence(&self) -> Consequence {
        match self {
            Self::UnknownLane(_) | Self::NoUpstream => Consequence::CONFIGURATION,
            Self::Thread(_) | Self::Reader(_) | Self::Randomness(_) => Consequence::BUG,
        }
    }
}
