//! What was carried here by hand goes the same way into the store as what the broker brings: through the committer.

use bytes::Bytes;
use pgw_bundle::bundle::Older;
use pgw_core::wire::envelope::Envelope;

use super::store::LaneName;

pub use pgw_core::committer::{NotTaken, Tally};

/// A part of one lane of a bundle, in order.
#[derive(Debug)]
pub struct Part {
    /// The lane that it belongs to.
    pub lane: LaneName,
    /// What must be here of older epochs.
    pub older: Vec<Older>,
    /// The transactions.
    pub transactions: Vec<(Envelope, Bytes)>,
}
