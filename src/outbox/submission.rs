//! A door's input, and what of its envelope goes into the record. Pure.

use pgw_core::transaction::{Body, Kind, Lane};
use pgw_core::wire::limits::{Text, TextError};

use crate::event_type::EventType;

/// A door's input; the outbox gives it id, time and number.
#[derive(Debug, Clone)]
pub struct Submission {
    /// Its lane.
    pub lane: Lane,
    /// CloudEvents `type`.
    pub event_type: EventType,
    /// Its kind.
    pub kind: Kind,
    /// Media type.
    pub content_type: String,
    /// Which system sent it.
    pub sender: String,
    /// The sender's key; empty: the content hash is the key.
    pub key: String,
    /// The key goes to the hub too: it is the sender's own word and names no patient.
    pub shows_key: bool,
    /// Correlation id; may be empty.
    pub correlation_id: String,
    /// W3C trace context; may be empty.
    pub trace_parent: String,
    /// The message.
    pub body: Body,
}

impl Submission {
    /// Whether the wire can carry its texts. A door asks before it submits, so that it can name what is wrong in its sender's
    /// own terms; the outbox asks again.
    ///
    /// # Errors
    /// [`TextError`], the first.
    pub fn check_texts(&self) -> Result<(), TextError> {
        self.event_type.check()?;
        Text::ContentType.check(&self.content_type)?;
        Text::Sender.check(&self.sender)?;
        Text::Key.check(&self.key)?;
        Text::CorrelationId.check(&self.correlation_id)?;
        Text::TraceParent.check(&self.trace_parent)
    }
}
