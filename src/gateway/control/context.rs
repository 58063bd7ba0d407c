//! What the clients of the control socket share, and the socket's configuration.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use pgw_bundle::keys::Recipient;
use pgw_core::consequence::Consequence;
use pgw_core::transaction::{Gateway, Lane, Practice};
use pgw_host::control::NotDone;
use pgw_host::secret::KeyError;
use pgw_outbox::{Outbox, ReadError, Refusal};

use crate::ingest::{Budget, Counters, StatusSource};
use crate::layout::LayoutError;
use crate::uplink::{Orders, PinnedHub};

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
    /// The hub of each lane, whose file says where its line ends.
    pub lane_hubs: BTreeMap<Lane, PinnedHub>,
    /// The key that signs bundles; a systemd credential takes precedence.
    pub signing_key_file: PathBuf,
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

/// Why a request fails. The client gets the sentence; a person decides what to do next.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RequestError {
    /// A hub takes no bundle that its gateway has not signed.
    #[error("there is no usable signing key, and a hub takes no unsigned bundle")]
    SigningKey(#[from] KeyError),
    /// No such lane.
    #[error("there is no lane {0:?} in the configuration")]
    UnknownLane(Lane),
    /// No such transaction.
    #[error("the outbox has no such transaction")]
    NoTransaction,
    /// No such entry.
    #[error("there is no entry {0} in quarantine")]
    NoEntry(u64),
    /// Neither the entry nor the request says what kind of message it is.
    #[error("it has no MSH to take the type from: use --type")]
    NoType,
    /// The kind or media type in the request is not valid.
    #[error("the type or the content type is malformed")]
    MalformedType,
    /// No hub is configured that could decrypt a bundle.
    #[error("no [[hub]] in the configuration has a recipient: `practice-hub init` prints it")]
    NoRecipient,
    /// The store cannot be read now.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The outbox refuses it.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The bundle could not be made.
    #[error(transparent)]
    Export(#[from] crate::export::ExportError),
    /// The bundle cannot begin where the file says.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// The thread that worked on it has panicked.
    #[error("{0}: a bug in this program, see its log")]
    Panicked(&'static str),
}

impl RequestError {
    /// How the command ends.
    pub(crate) fn consequence(&self) -> Consequence {
        match self {
            Self::UnknownLane(_)
            | Self::NoTransaction
            | Self::NoEntry(_)
            | Self::NoType
            | Self::MalformedType
            | Self::NoRecipient => Consequence::Refuse,
            Self::SigningKey(error) => error.consequence(),
            Self::Read(error) => error.consequence(),
            Self::Refused(refusal) => refusal.consequence(),
            Self::Export(error) => error.consequence(),
            Self::Layout(error) => error.consequence(),
            Self::Panicked(_) => Consequence::BUG,
        }
    }
}

impl From<RequestError> for NotDone {
    fn from(error: RequestError) -> Self {
        Self::of(&error, error.consequence())
    }
}
