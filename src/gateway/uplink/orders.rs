//! A person's orders: they reach the driver beside the connection's own events, with or without a link.

use pgw_bundle::receipts::SignedReceipt;
use pgw_core::chain::{ChainValue, Through};
use pgw_core::consequence::Consequence;
use pgw_core::transaction::{Hub, Lane, Position};
use pgw_core::wire::receipt::StoreId;
use pgw_host::control::NotDone;
use tokio::sync::{mpsc, oneshot, watch};

use super::resend::ResendProgress;
use super::verifier::Rejected;

/// Orders that wait for the driver; further ones are refused.
const MOST: usize = 64;

/// One order.
#[derive(Debug)]
pub(super) enum Order {
    /// A receipt from a file: the answer is its lane and the position that it confirms.
    Receipt(SignedReceipt, oneshot::Sender<Result<(Lane, Position), OrderError>>),
    /// What stalled the lane may have gone: a void was made, or a person wants to retry the held record.
    RetryHead(Lane, oneshot::Sender<Result<(), OrderError>>),
    /// A file, which was verified, says where the hub's line ends, and this lane's own chain value there is the second: a bundle is
    /// to begin there. The answer is the position before its first; `None`: that end is not in this gateway's history.
    LayOut(Lane, Option<Through>, Option<ChainValue>, oneshot::Sender<Result<Option<Position>, OrderError>>),
    /// A hub's store to rely on from now on.
    AcceptStore(Hub, StoreId, oneshot::Sender<Result<(), OrderError>>),
    /// Confirmed transactions to send again: the first and the last position.
    Resend(Lane, (Position, Position), watch::Sender<ResendProgress>),
}

/// Why an order was not carried out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OrderError {
    /// The gateway runs without an uplink.
    #[error("there is no uplink")]
    NoUplink,
    /// The gateway is stopping, or the uplink has failed: the order can be given again once it runs.
    #[error("the uplink has ended")]
    Ended,
    /// No such lane is configured.
    #[error("there is no lane {0}")]
    UnknownLane(Lane),
    /// A verified message, but not a receipt.
    #[error("not a receipt")]
    NotAReceipt,
    /// Its hub says on the link where the lane continues.
    #[error(
        "the hub of lane {0} answers over the link, so no file has to say where its line ends: leave out --end"
    )]
    HubAnswers(Lane),
    /// A new epoch is being written.
    #[error("lane {0} is beginning a new epoch just now: try again")]
    Beginning(Lane),
    /// Another store waits to be accepted, or none does.
    #[error("{}", not_that_store(.hub, .store, .waiting.as_ref()))]
    NotThatStore {
        /// The hub.
        hub: Hub,
        /// The store that was named.
        store: StoreId,
        /// The one that waits.
        waiting: Option<StoreId>,
    },
    /// The new epoch cannot be written.
    #[error("the new epoch could not be written: {0}")]
    NotLaidOut(String),
    /// The gateway's directory cannot be written.
    #[error("it could not be saved, so it counts only until the gateway restarts: {0}")]
    NotSaved(String),
    /// The file's content is not for this gateway, or not of a configured hub.
    #[error(transparent)]
    Rejected(#[from] Rejected),
}

impl OrderError {
    /// How the command ends.
    #[must_use]
    pub fn consequence(&self) -> Consequence {
        match self {
            Self::Ended | Self::Beginning(_) => Consequence::Retry,
            Self::NotSaved(_) | Self::NotLaidOut(_) => Consequence::FILES,
            Self::NoUplink
            | Self::UnknownLane(_)
            | Self::NotAReceipt
            | Self::HubAnswers(_)
            | Self::NotThatStore { .. }
            | Self::Rejected(_) => Consequence::Refuse,
        }
    }
}

fn not_that_store(hub: &Hub, store: &StoreId, waiting: Option<&StoreId>) -> String {
    match waiting {
        Some(waiting) => format!("{hub} answers from store {waiting}, not from {store}"),
        None => format!(
            "no store of {hub} waits to be accepted: it has not answered yet, or answers from the known one"
        ),
    }
}

impl From<OrderError> for NotDone {
    fn from(error: OrderError) -> Self {
        Self::of(&error, error.consequence())
    }
}

/// The sending end, for those who order.
#[derive(Debug, Clone)]
pub struct Orders(mpsc::Sender<Order>);

/// The driver's end.
#[derive(Debug)]
pub struct Ordered(pub(super) mpsc::Receiver<Order>);

/// Both ends.
#[must_use]
pub fn orders() -> (Orders, Ordered) {
    let (sender, receiver) = mpsc::channel(MOST);
    (Orders(sender), Ordered(receiver))
}

impl Orders {
    /// Passes on a receipt from a file.
    ///
    /// # Errors
    /// It is not of a configured hub, or not for this gateway, or the gateway stops.
    pub async fn receipt(&self, receipt: SignedReceipt) -> Result<(Lane, Position), OrderError> {
        self.ask(|answer| Order::Receipt(receipt, answer)).await
    }

    /// Retries the held transaction at the lane's head.
    ///
    /// # Errors
    /// There is no such lane, or the gateway stops.
    pub async fn retry_head(&self, lane: Lane) -> Result<(), OrderError> {
        self.ask(|answer| Order::RetryHead(lane, answer)).await
    }

    /// Begins an epoch after the end of the hub's line, if the lane does not continue there. Blocking.
    ///
    /// # Errors
    /// The hub answers on the link, the epoch could not be written, there is no such lane, or the gateway stops.
    pub fn lay_out(
        &self,
        lane: Lane,
        end: Option<Through>,
        ours: Option<ChainValue>,
    ) -> Result<Option<Position>, OrderError> {
        let (answer, answered) = oneshot::channel();
        let order = Order::LayOut(lane, end, ours, answer);
        self.0.blocking_send(order).map_err(|_| OrderError::Ended)?;
        answered.blocking_recv().map_err(|_| OrderError::Ended)?
    }

    /// Relies on a hub's store from now on.
    ///
    /// # Errors
    /// It is not the store that waits, or the gateway stops.
    pub async fn accept_store(&self, hub: Hub, store: StoreId) -> Result<(), OrderError> {
        self.ask(|answer| Order::AcceptStore(hub, store, answer)).await
    }

    /// Sends confirmed transactions again; the caller can watch the progress.
    ///
    /// # Errors
    /// The gateway stops.
    pub async fn resend(
        &self,
        lane: Lane,
        range: (Position, Position),
    ) -> Result<watch::Receiver<ResendProgress>, OrderError> {
        let (progress, watcher) = watch::channel(ResendProgress::default());
        let order = Order::Resend(lane, range, progress);
        self.0.send(order).await.map_err(|_| OrderError::Ended)?;
        Ok(watcher)
    }

    async fn ask<T>(
        &self,
        order: impl FnOnce(oneshot::Sender<Result<T, OrderError>>) -> Order,
    ) -> Result<T, OrderError> {
        let (answer, answered) = oneshot::channel();
        self.0.send(order(answer)).await.map_err(|_| OrderError::Ended)?;
        answered.await.map_err(|_| OrderError::Ended)?
    }
}
