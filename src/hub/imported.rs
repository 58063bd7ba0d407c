//! What was carried here by hand goes the same way into the store as what the broker brings: through the committer.

use bytes::Bytes;

use super::store::LaneName;
use crate::carry::bundle::Older;
use crate::wire::envelope::Envelope;

pub use crate::committer::{NotTaken, Tally};

/// A part of one lane of a bundle, in order.
#[derive(Debug)]
pub struct Part {
    /// Whose.
    pub lane: LaneName,
    /// What must be here of older epochs.
    pub older: Vec<Older>,
    /// The transactions.
    pub transactions: Vec<(Envelope, Bytes)>,
}
