//! What was carried here by hand goes the same way into the store as what the broker brings: through the committer.

use bytes::Bytes;

use super::store::{Entry, LaneName};
use super::store_thread::StoreThread;
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

impl StoreThread {
    /// Takes a part: what the broker brought before is stored first, then this, and it is on stable storage when this returns.
    ///
    /// # Errors
    /// [`NotTaken`].
    pub fn import(&mut self, part: Part) -> Result<Tally, NotTaken> {
        let Part { lane, older, transactions } = part;
        if !self.finish() {
            return Err(NotTaken::Trouble(lane));
        }
        let older = older.into_iter().map(|Older { epoch, through }| (epoch, through));
        let entry = |(envelope, body)| Entry { lane: lane.clone(), envelope, body: Some(body) };
        let records = transactions.into_iter().map(entry);
        let (mut tally, wrong) = self.import_to_committer(&lane, older, records)?;
        if !self.finish() {
            return Err(NotTaken::Trouble(lane));
        }
        tally.marks = self.store.marks_of(&lane);
        wrong.map_or(Ok(tally), Err)
    }
}
