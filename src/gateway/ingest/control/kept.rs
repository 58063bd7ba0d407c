//! What the control socket looks at: all that the outbox keeps. Everything here blocks.

use pgw_core::delivery::Numbering;
use pgw_core::transaction::{Lane, Position};
use pgw_outbox::{Outbox, OutboxAlarm, QuarantineEntry, ReadError, Refusal, Released, Stored, Watermark};

use crate::ingest::Acceptor;

/// Records read at once.
pub(crate) const READ_RECORDS: usize = 256;
/// Payload bytes read at once, about.
pub(crate) const READ_BYTES: usize = 1 << 20;

/// The outbox as the control socket reads it; tests have another.
pub trait Kept: Acceptor {
    /// The lanes, in the order of the configuration.
    fn lanes(&self) -> Vec<Lane>;

    /// The first position that is kept; `None` for an unknown or empty lane.
    fn first_retained(&self, lane: &Lane) -> Option<Position>;

    /// The last position behind the barrier; 0 for an empty or unknown lane.
    fn tail(&self, lane: &Lane) -> Position;

    /// How positions map to numbers on the wire; `None` for an unknown lane.
    fn numbering(&self, lane: &Lane) -> Option<Numbering>;

    /// As [`Outbox::void`].
    ///
    /// # Errors
    /// One sentence.
    fn void(
        &self,
        lane: &Lane,
        range: (Position, Position),
        reason: &str,
        act: bool,
    ) -> Result<Released, String>;

    /// The confirmed mark.
    fn mark(&self, lane: &Lane) -> Option<Watermark>;

    /// At least one record from `from` on.
    ///
    /// # Errors
    /// [`ReadError`].
    fn read(
        &self,
        lane: &Lane,
        from: Position,
        records: usize,
        bytes: usize,
    ) -> Result<Vec<Stored>, ReadError>;

    /// What is in quarantine, oldest first.
    ///
    /// # Errors
    /// [`Refusal::Trouble`].
    fn quarantined(&self) -> Result<Vec<QuarantineEntry>, Refusal>;

    /// One entry without its bytes; `None`: there is none of this number.
    ///
    /// # Errors
    /// [`Refusal::Trouble`].
    fn quarantined_entry(&self, id: u64) -> Result<Option<QuarantineEntry>, Refusal>;

    /// The bytes of an entry; `None`: there is none of this number.
    ///
    /// # Errors
    /// [`Refusal::Trouble`]: damaged, or not to be read.
    fn quarantined_bytes(&self, id: u64) -> Result<Option<Vec<u8>>, Refusal>;

    /// Removes an entry for good; false: there is none.
    ///
    /// # Errors
    /// [`Refusal::Trouble`].
    fn discard_quarantined(&self, id: u64) -> Result<bool, Refusal>;

    /// Something that people should know of.
    fn note(&self, alarm: OutboxAlarm);
}

impl Kept for Outbox {
    fn lanes(&self) -> Vec<Lane> {
        self.snapshot().lanes.into_iter().map(|(lane, _)| lane).collect()
    }

    fn first_retained(&self, lane: &Lane) -> Option<Position> {
        Outbox::first_retained(self, lane)
    }

    fn tail(&self, lane: &Lane) -> Position {
        Outbox::tail(self, lane).map_or(0, |tail| *tail.borrow())
    }

    fn numbering(&self, lane: &Lane) -> Option<Numbering> {
        Outbox::numbering(self, lane)
    }

    fn void(
        &self,
        lane: &Lane,
        range: (Position, Position),
        reason: &str,
        act: bool,
    ) -> Result<Released, String> {
        Outbox::void(self, lane, range, reason, act).map_err(|error| pgw_core::text::chain(&error))
    }

    fn mark(&self, lane: &Lane) -> Option<Watermark> {
        Outbox::watermark(self, lane)
    }

    fn read(
        &self,
        lane: &Lane,
        from: Position,
        records: usize,
        bytes: usize,
    ) -> Result<Vec<Stored>, ReadError> {
        Outbox::read(self, lane, from, records, bytes)
    }

    fn quarantined(&self) -> Result<Vec<QuarantineEntry>, Refusal> {
        Outbox::quarantined(self)
    }

    fn quarantined_entry(&self, id: u64) -> Result<Option<QuarantineEntry>, Refusal> {
        Outbox::quarantined_entry(self, id)
    }

    fn quarantined_bytes(&self, id: u64) -> Result<Option<Vec<u8>>, Refusal> {
        Ok(Outbox::quarantined_bytes(self, id)?.map(|(_, bytes)| bytes))
    }

    fn discard_quarantined(&self, id: u64) -> Result<bool, Refusal> {
        Outbox::discard_quarantined(self, id)
    }

    fn note(&self, alarm: OutboxAlarm) {
        Outbox::raise(self, alarm);
    }
}
