//! A record that was written off and has been found since is stored once more: as new, at the end of its lane, under its old id
//! and with everything of its acceptance (design section 12.2).
//!
//! Only once the hub has confirmed the entry in its place: then it does not have the record. It passes the duplicate check: if its sender has sent it again meanwhile, that is the answer, and nothing is stored twice.

use pgw_core::transaction::{Lane, Position, Transaction};

use super::Outbox;
use crate::errors::{ReadmitError, Refusal};
use crate::event_type::EventType;
use crate::files;
use crate::lock::locked;
use crate::pipeline::jobs::FirstAcceptance;
use crate::submission::Submission;
use crate::types::Accepted;

/// A record in quarantine that may be stored once more.
#[derive(Debug)]
pub struct WrittenOff {
    lane: usize,
    name: Lane,
    position: Position,
    transaction: Transaction,
}

impl WrittenOff {
    /// Its lane.
    #[must_use]
    pub fn lane(&self) -> &Lane {
        &self.name
    }
}

impl Outbox {
    /// The record in an entry of the quarantine, if a person has written off its position in this store. Blocking.
    ///
    /// # Errors
    /// [`ReadmitError`].
    pub fn written_off(&self, entry: u64) -> Result<WrittenOff, ReadmitError> {
        let shared = self.shared();
        let failed = |error: std::io::Error| Refusal::Trouble(error.to_string());
        let found = shared.quarantine.get(entry).map_err(failed)?;
        let (_, bytes) = found.filter(|(entry, _)| entry.is_written_off()).ok_or(ReadmitError::NotOurs)?;
        let (header, transaction) = shared.sealer.open(&bytes).map_err(|_| ReadmitError::NotOurs)?;
        let known = shared.lanes.iter().enumerate().find(|(_, lane)| lane.id == header.lane);
        let (index, lane) = known.ok_or(ReadmitError::NotOurs)?;
        let follows = header.previous.next(header.position, transaction.digest(&lane.full_name));
        let state = lane.state();
        if follows != header.chain || state.voids.at(header.position).is_none() {
            return Err(ReadmitError::NotOurs);
        }
        // The duplicate check does not remember it for ever.
        if state.voids.has_returned(header.position) {
            return Err(ReadmitError::Returned);
        }
        // Within one epoch a hub looks for no id: the record must not be there already.
        let stands = |(from, through): &(Position, Position)| (*from..=*through).contains(&header.position);
        if state.watermark.position < header.position {
            return Err(ReadmitError::NotConfirmed);
        } else if !state.numbering.entries_of_line().iter().any(stands) {
            return Err(ReadmitError::AtHub);
        }
        drop(state);
        Ok(WrittenOff { lane: index, name: lane.name.clone(), position: header.position, transaction })
    }

    /// Stores it, and returns when it is behind the barrier. Then: [`Outbox::note_returned`].
    ///
    /// # Errors
    /// [`Refusal`]: nothing has changed.
    pub async fn readmit(&self, found: &WrittenOff) -> Result<Accepted, Refusal> {
        let transaction = found.transaction.clone();
        let wire_sender = transaction.given_sender.is_some().then(|| transaction.sender.clone());
        let first = FirstAcceptance { id: transaction.id, time: transaction.time, clock: transaction.clock };
        let submission = Submission {
            lane: found.name.clone(),
            event_type: EventType::Given(transaction.event_type.clone()),
            kind: transaction.kind,
            content_type: transaction.content_type.clone(),
            sender: transaction.sender_as_given().to_owned(),
            key: transaction.key.clone(),
            shows_key: transaction.shows_key,
            correlation_id: transaction.correlation_id.clone(),
            trace_parent: transaction.trace_parent.clone(),
            body: transaction.body,
        };
        self.enqueue(found.lane, submission, wire_sender, Some(first)).await
    }

    /// Notes that it is stored once more, for every later repair. Blocking.
    ///
    /// # Errors
    /// [`Refusal::Trouble`]: it is not noted; [`Outbox::readmit`] can be repeated.
    pub fn note_returned(&self, found: &WrittenOff) -> Result<(), Refusal> {
        let shared = self.shared();
        let Some(lane) = shared.lanes.get(found.lane) else { return Ok(()) };
        let _one_at_a_time = locked(&lane.voiding);
        let mut voids = lane.state().voids.clone();
        if voids.note_returned(found.position) {
            files::save(&shared.lane_file(&lane.name, "voids"), &voids)
                .map_err(|error| Refusal::Trouble(error.to_string()))?;
            lane.state().voids = voids;
        }
        Ok(())
    }
}
