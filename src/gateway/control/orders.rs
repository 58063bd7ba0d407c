//! A person's orders to the uplink: a receipt from a file, lost records to write off, a held record to retry,
//! confirmed transactions to send again.

use std::sync::Arc;
use std::time::Duration;

use pgw_bundle::receipts;
use pgw_core::transaction::{Hub, Lane, Position};
use pgw_core::wire::receipt::StoreId;
use pgw_host::control::NotDone;
use pgw_outbox::{Outbox, Released};
use tokio::sync::watch;

use crate::control::Reply;
use crate::control::context::{ControlContext, RequestError};
use crate::listing;
use crate::uplink::{OrderError, Orders, ResendProgress, Resent};

/// How long to wait for a receipt to move the watermark.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often that is checked.
const POLL: Duration = Duration::from_millis(50);

/// Passes a receipt to the uplink and waits until the uplink has done what it can.
pub(super) async fn receipt(
    outbox: &Outbox,
    orders: Option<&Orders>,
    line: receipts::SignedReceipt,
) -> Reply {
    let Some(orders) = orders else { return Reply::Failed(OrderError::NoUplink.into()) };
    let (lane, position) = match orders.receipt(line).await {
        Ok(hubs) => hubs,
        Err(error) => return Reply::Failed(error.into()),
    };
    let confirmed = || listing::confirmed(outbox, &lane);
    let wait = async {
        while confirmed() < position {
            tokio::time::sleep(POLL).await;
        }
    };
    // A receipt that confirms nothing new, or cannot be trusted yet, is no error.
    let _ = tokio::time::timeout(PATIENCE, wait).await;
    let confirmed = confirmed();
    Reply::ReceiptVerified { lane, confirmed }
}

/// Writes off lost records and retries the lane.
pub(super) async fn void(
    context: Arc<ControlContext>,
    lane: Lane,
    range: (Position, Position),
    reason: String,
    act: bool,
) -> Reply {
    let (of, asked) = (lane.clone(), Arc::clone(&context));
    let done = tokio::task::spawn_blocking(move || asked.outbox.void(&of, range, &reason, act)).await;
    let Released { from, through } = match done {
        Ok(Ok(released)) => released,
        Ok(Err(error)) => return Reply::Failed(NotDone::of(&error, error.consequence())),
        Err(_) => return RequestError::Panicked("the records could not be written off").into(),
    };
    if let (true, Some(orders)) = (act, &context.orders) {
        // It is durable; an uplink that has ended finds it when it starts again.
        let _ = orders.retry_head(lane.clone()).await;
    }
    Reply::Released { lane, from, through }
}

/// Retries the held transaction that stalls a lane.
pub(super) async fn retry_head(orders: Option<&Orders>, lane: Lane) -> Reply {
    let done = match orders {
        Some(orders) => orders.retry_head(lane).await,
        None => Err(OrderError::NoUplink),
    };
    done.map_or_else(|error| Reply::Failed(error.into()), |()| Reply::End {})
}

/// Relies on a hub's store from now on.
pub(super) async fn accept_store(orders: Option<&Orders>, hub: Hub, store: StoreId) -> Reply {
    let done = match orders {
        Some(orders) => orders.accept_store(hub, store).await,
        None => Err(OrderError::NoUplink),
    };
    done.map_or_else(|error| Reply::Failed(error.into()), |()| Reply::End {})
}

/// Sends confirmed transactions again; the caller can watch the progress.
pub(super) async fn resend(
    orders: Option<&Orders>,
    lane: &Lane,
    range: (Position, Position),
) -> Result<watch::Receiver<ResendProgress>, OrderError> {
    match orders {
        Some(orders) => orders.resend(lane.clone(), range).await,
        None => Err(OrderError::NoUplink),
    }
}

/// How far a resend has come; `gone`: the uplink has ended and reports no more.
pub(super) fn resent(progress: ResendProgress, gone: bool, lane: Lane, last: Position) -> Reply {
    let ResendProgress { arrived, ended } = progress;
    match ended {
        Some(Ok(Resent { count, missing, unsubscribed })) => {
            Reply::Resent { lane, count, missing, unsubscribed }
        }
        Some(Err(error)) => Reply::Failed(NotDone::of(&error, error.consequence())),
        None if gone => Reply::Failed(OrderError::Ended.into()),
        None => Reply::Progress { lane, position: arrived, tail: last },
    }
}
