//! What the clients of the control socket share, and its configuration.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use pgw_bundle::keys::Recipient;
use pgw_core::transaction::{Gateway, Lane, Practice};
use pgw_outbox::{Outbox, ReadError, Refusal};

use crate::ingest::{Budget, Counters, StatusSource};
use crate::uplink::Orders;

/// How long a body waits for the memory that all doors share.
pub(super) const BUDGET_WAIT: Duration = Duration::from_secs(2);

/// The control socket's settings.
#[derive(Debug, Clone)]
pub struct ControlConfig {
    /// Where the socket is made; its directory exists.
    pub socket: PathBuf,
    /// Whose gateway this is, for the `source` of transactions.
    pub practice: Practice,
    /// The gateway's id, likewise.
    pub gateway: Gateway,
    /// Largest body that is read.
    pub max_body_bytes: u64,
    /// The hubs that can open a bundle.
    pub recipients: Vec<Recipient>,
}

/// What all clients share.
pub(super) struct ControlContext {
    pub(super) config: ControlConfig,
    pub(super) outbox: Outbox,
    pub(super) status: StatusSource,
    pub(super) counters: Arc<Counters>,
    pub(super) budget: Budget,
    pub(super) orders: Option<Orders>,
}

/// Why a request is not answered. The client gets the sentence; what to do next, a person decides.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RequestError {
    /// No such lane.
    #[error("there is no lane {0:?} in the configuration")]
    UnknownLane(Lane),
    /// No such transaction.
    #[error("the outbox has no such transaction")]
    NoTransaction,
    /// No such entry.
    #[error("there is no entry {0} in quarantine")]
    NoEntry(u64),
    /// Nothing says what an entry is.
    #[error("it has no MSH to take the type from: use --type")]
    NoType,
    /// What it is said to be cannot be.
    #[error("the type or the content type is malformed")]
    MalformedType,
    /// Nobody could open a bundle.
    #[error("no [[hub]] in the configuration has a recipient: `practice-hub init` prints it")]
    NoRecipient,
    /// The store cannot be read now.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The outbox refuses.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// No bundle came of it.
    #[error(transparent)]
    Export(#[from] crate::export::ExportError),
    /// The thread that does it has panicked.
    #[error("{0}: a bug in this program, see its log")]
    Panicked(&'static str),
}
