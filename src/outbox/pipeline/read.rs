//! Reading records behind the barrier.

use pgw_core::transaction::Position;

use crate::errors::ReadError;
use crate::pipeline::lane::SharedLane;
use crate::pipeline::shared::SharedOutbox;
use crate::types::Stored;

impl SharedOutbox {
    /// As [`crate::handle::Outbox::read`].
    pub(crate) fn read(
        &self,
        lane: &SharedLane,
        from: Position,
        max_records: usize,
        max_bytes: usize,
    ) -> Result<Vec<Stored>, ReadError> {
        let records = self.records(lane, from, max_records, max_bytes)?;
        let stored = |(header, transaction): crate::pipeline::records::Record| Stored {
            position: header.position,
            digest: transaction.digest(&lane.full_name),
            transaction,
        };
        Ok(records.into_iter().map(stored).collect())
    }
}
