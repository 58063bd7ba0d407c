//! Where a bundle begins after the end of the hub's line that a file names (`practice-gateway export --end`).
//!
//! The delivery machine decides ([`Delivery::layout`]): the running one of the lane, or one that is made for a store that no
//! daemon has open.

use std::collections::BTreeMap;

use pgw_bundle::end::{self, EndError};
use pgw_bundle::receipts::SignedReceipt;
use pgw_core::chain::{ChainValue, Through};
use pgw_core::consequence::Consequence;
use pgw_core::delivery::{Action, Delivery, Input, Layout, Limits, Point};
use pgw_core::transaction::{Lane, Position};
use pgw_outbox::{Outbox, ReadError, Refusal, Watermark};

use crate::listing;
use crate::uplink::{OrderError, Orders, PinnedHub};
use crate::wire_chain::WireReader;

/// Where the hub's line of a lane ends; `None`: it is empty.
pub(crate) type LaneEnd = (Lane, Option<Through>);

/// Why no bundle begins there.
#[derive(Debug, thiserror::Error)]
pub enum LayoutError {
    /// The file does not count.
    #[error("the file with the end of the hub's line does not count")]
    File(#[from] EndError),
    /// It is of a lane that is not exported.
    #[error("the file with the end of the hub's line is of {0}, which is not a lane of this export")]
    OtherLane(String),
    /// The end is not in this store's history.
    #[error(
        "the hub's line of lane {0} ends with what this store's history does not contain: only an answer of the hub over the link can say where the lane continues"
    )]
    NotOwn(Lane),
    /// The daemon did not do it.
    #[error(transparent)]
    Order(#[from] OrderError),
    /// The store cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The new epoch could not be written.
    #[error(transparent)]
    Refused(#[from] Refusal),
}

impl LayoutError {
    /// How the command ends.
    #[must_use]
    pub fn consequence(&self) -> Consequence {
        match self {
            Self::File(EndError::Io(_)) => Consequence::FILES,
            Self::File(_) | Self::OtherLane(_) | Self::NotOwn(_) => Consequence::Refuse,
            Self::Order(error) => error.consequence(),
            Self::Read(error) => error.consequence(),
            Self::Refused(refusal) => refusal.consequence(),
        }
    }
}

/// What the files say, each signed by the hub of its lane.
///
/// # Errors
/// [`LayoutError::File`], [`LayoutError::OtherLane`].
pub(crate) fn verified(
    outbox: &Outbox,
    lanes: &[Lane],
    hubs: &BTreeMap<Lane, PinnedHub>,
    files: &[SignedReceipt],
) -> Result<Vec<LaneEnd>, LayoutError> {
    let of = |file: &SignedReceipt| {
        let mut other = LayoutError::OtherLane(file.topic.clone());
        for lane in lanes {
            let Some(PinnedHub { hub, keys }) = hubs.get(lane) else { continue };
            match end::verify(file, hub, &outbox.lane_name(lane), keys) {
                Ok(receipt) => return Ok((lane.clone(), receipt.end)),
                Err(EndError::Other { .. }) => {}
                Err(error) => other = error.into(),
            }
        }
        Err(other)
    };
    files.iter().map(of).collect()
}

/// A store that nothing but bundles will ever leave: from which position on, if whoever exports says so.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SetAside {
    pub(crate) from: Option<Position>,
}

/// After which position the bundle of a lane begins. The epoch that this needs is on the disk then. Blocking.
///
/// # Errors
/// [`LayoutError`].
pub(crate) fn after(
    outbox: &Outbox,
    orders: Option<&Orders>,
    (lane, end): &LaneEnd,
    set_aside: Option<SetAside>,
) -> Result<Position, LayoutError> {
    let ours = match end {
        Some(end) => WireReader::new(outbox, lane).value_at(end.epoch, end.through)?,
        None => None,
    };
    match orders {
        Some(orders) => {
            let after = orders.lay_out(lane.clone(), *end, ours)?;
            after.ok_or_else(|| LayoutError::NotOwn(lane.clone()))
        }
        None => alone(outbox, (lane, *end), ours, set_aside),
    }
}

/// The same in a store that no daemon has open.
fn alone(
    outbox: &Outbox,
    (lane, end): (&Lane, Option<Through>),
    ours: Option<ChainValue>,
    set_aside: Option<SetAside>,
) -> Result<Position, LayoutError> {
    let not_own = || LayoutError::NotOwn(lane.clone());
    let numbering = outbox.numbering(lane).ok_or_else(not_own)?;
    let watermark = outbox.watermark(lane);
    let point = watermark.and_then(|Watermark { position, point }| point.map(|at| Point { position, at }));
    let mut machine = Delivery::new(NOTHING_IS_SENT, numbering, point, listing::tail(outbox, lane));
    let mut actions = Vec::new();
    machine.handle(Input::Gone(outbox.gone(lane)), 0, &mut actions);
    // Nothing proves what the hub has of a store that was set aside: what it has confirmed once is taken to be there.
    let confirmed = machine.confirmed();
    let is_own = machine.layout(end, ours, None).is_some();
    let set_aside = set_aside.and_then(|store| match store.from {
        Some(from) => Some(from.saturating_sub(1)),
        None => (!is_own).then_some(confirmed),
    });
    let (Layout::Continues(after) | Layout::Begins(after)) =
        machine.layout(end, ours, set_aside).ok_or_else(not_own)?;
    machine.handle(Input::EndByFile { end, ours, set_aside }, 0, &mut actions);
    for action in actions {
        if let Action::NewEpoch { after, link, follows, gone } = action {
            outbox.new_epoch(lane, after, link, follows, &gone)?;
        }
    }
    Ok(after)
}

const NOTHING_IS_SENT: Limits =
    Limits { window: 1, window_bytes: 1, receipt_timeout: 1, stall_timeout: 1, confirm_on_puback: false };
