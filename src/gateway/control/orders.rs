//! A person's orders to the uplink: a receipt from a file, lost records to write off, a held record to retry,
//! confirmed transactions to send again.

use std::sync::Arc;
use std::time::Duration;

use pgw_bundle::receipts;
use pgw_core::transaction::{Lane, Position};
use pgw_outbox::{Outbox, Released};
use tokio::sync::watch;

use crate::control::Reply;
use crate::control::context::ControlContext;
use crate::listing;
use crate::uplink::{Orders, ResendProgress, Resent};

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
    let failed = |reason: String| Reply::Failed { reason };
    let Some(orders) = orders else { return failed("there is no uplink".to_owned()) };
    let (lane, position) = match orders.receipt(line).await {
        Ok(hubs) => hubs,
        Err(error) => return failed(error.to_string()),
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
    Reply::Heard { lane, confirmed }
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
    let Released { from, through, previous, chain } = match done {
        Ok(Ok(released)) => released,
        Ok(Err(error)) => return Reply::Failed { reason: pgw_core::text::chain(&error) },
        Err(_) => return Reply::Failed { reason: "the records could not be written off".to_owned() },
    };
    if let (true, Some(orders)) = (act, &context.orders) {
        // It is durable; an uplink that has ended finds it when it starts again.
        let _ = orders.retry_head(lane.clone()).await;
    }
    Reply::Released { lane, from, through, previous, chain }
}

/// Retries the held transaction that stalls a lane.
pub(super) async fn retry_head(orders: Option<&Orders>, lane: Lane) -> Reply {
    let done = match orders {
        Some(orders) => orders.retry_head(lane).await.map_err(|error| error.to_string()),
        None => Err("there is no uplink".to_owned()),
    };
    done.map_or_else(|reason| Reply::Failed { reason }, |()| Reply::End {})
}

/// Sends confirmed transactions again; the caller can watch the progress.
pub(super) async fn resend(
    orders: Option<&Orders>,
    lane: &Lane,
    range: (Position, Position),
) -> Result<watch::Receiver<ResendProgress>, String> {
    match orders {
        Some(orders) => orders.resend(lane.clone(), range).await.map_err(|error| error.to_string()),
        None => Err("there is no uplink".to_owned()),
    }
}

/// How far a resend has come; `gone`: the uplink has ended and reports no more.
pub(super) fn resent(progress: ResendProgress, gone: bool, lane: Lane, last: Position) -> Reply {
    let ResendProgress { arrived, ended } = progress;
    match ended {
        Some(Ok(Resent { count, missing, unheard })) => Reply::Resent { lane, count, missing, unheard },
        Some(Err(reason)) => Reply::Failed { reason },
        None if gone => Reply::Failed { reason: "the uplink has ended".to_owned() },
        None => Reply::Progress { lane, position: arrived, tail: last },
    }
}
