//! Imported bundles enter the store in the same way as messages from the broker: through the committer.

use bytes::Bytes;
use pgw_core::wire::envelope::Envelope;

use super::store::LaneName;

pub use pgw_core::committer::{NotTaken, Tally};

/// A part of one lane of a bundle, in order.
#[derive(Debug)]
pub struct Part {
    /// Its lane.
    pub lane: LaneName,
    /// Its transactions.
    pub transactions: Vec<(Envelope, Bytes)>,
}
