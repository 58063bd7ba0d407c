//! The doors: how transactions come in, and the one `submit()` behind all of them (design section 8).
//!
//! A door reads what its protocol needs, passes a [`Submission`] to an [`Acceptor`] and answers its sender only after
//! that has returned: an acknowledged transaction is behind the outbox's barrier. Doors hold no state that matters,
//! and all their buffers are bounded.
//!
//! - [`mllp`]: HL7 v2 over TCP
//! - [`http`]: any bytes, FHIR messages and HL7 v2 over HTTP/1.1
//! - [`folder`]: files that a sender leaves in a folder
//!
//! The fourth door, the control socket, is [`crate::control`]: it also reads the outbox and gives orders to the uplink.
//!
//! What the doors share:
//! - [`slip`]: the acceptance slip, a sender's proof
//! - [`media`]: media types and what follows from them; [`hl7`]: where an HL7 v2 message begins
//! - [`origin`]: where refused input came from
//! - [`counters`]: what the doors have counted; [`listen`]: sockets and the addresses that may connect

#[cfg(test)]
pub(crate) mod carried_for_tests;
pub mod counters;
pub mod folder;
pub mod hl7;
pub mod http;
pub mod listen;
pub mod media;
pub mod mllp;
pub mod origin;
pub mod slip;

pub use counters::{Counters, Counts};

pub(crate) use counters::count;

use std::future::Future;
use std::sync::Arc;

use pgw_core::consequence::Consequence;
use pgw_outbox::{Accepted, Outbox, Refusal, Submission};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Returns the daemon's status document: the fields of health, and `lanes`.
pub type StatusSource = Arc<dyn Fn() -> serde_json::Value + Send + Sync>;

/// What the MLLP and the folder door submit to: the outbox.
///
/// Tests use other implementations: they hold an answer back, refuse at a chosen message, or repeat an answer after a
/// crash at a chosen step, which no real store does on request.
pub trait Acceptor: Clone + Send + Sync + 'static {
    /// Returns when the transaction is on stable storage.
    ///
    /// # Errors
    /// [`Refusal`]: it may not be stored.
    fn submit(&self, submission: Submission) -> impl Future<Output = Result<Accepted, Refusal>> + Send;

    /// Quarantines refused input with its reason, and returns its number; `source` is a line of [`origin`]. Blocking.
    ///
    /// # Errors
    /// [`Refusal`] when there is no space for it.
    fn quarantine(&self, reason: &'static str, source: &str, bytes: &[u8]) -> Result<u64, Refusal>;
}

impl Acceptor for Outbox {
    async fn submit(&self, submission: Submission) -> Result<Accepted, Refusal> {
        Outbox::submit(self, submission).await
    }

    fn quarantine(&self, reason: &'static str, source: &str, bytes: &[u8]) -> Result<u64, Refusal> {
        Outbox::quarantine(self, reason, source, bytes)
    }
}

impl mllp::door::MllpDoorError {
    /// How the daemon ends.
    #[must_use]
    pub fn consequence(&self) -> Consequence {
        match self {
            Self::Address { .. } => Consequence::UNREACHABLE,
            Self::Certificates { .. } => Consequence::CONFIGURATION,
        }
    }
}

impl http::door::HttpDoorError {
    /// How the daemon ends.
    #[must_use]
    pub fn consequence(&self) -> Consequence {
        match self {
            Self::Address { .. } => Consequence::UNREACHABLE,
            Self::Access { .. } => Consequence::CONFIGURATION,
        }
    }
}

/// The memory that all doors together may use for messages being received.
#[derive(Debug, Clone)]
pub struct Budget {
    free: Arc<Semaphore>,
    total_kib: u32,
}

impl Budget {
    /// A budget of `bytes`, rounded down to KiB, at least one.
    #[must_use]
    pub fn new(bytes: u64) -> Self {
        let most = u64::try_from(Semaphore::MAX_PERMITS).unwrap_or(u64::MAX).min(u64::from(u32::MAX));
        let total_kib = u32::try_from((bytes / 1024).clamp(1, most)).unwrap_or(u32::MAX);
        Self { free: Arc::new(Semaphore::new(total_kib as usize)), total_kib }
    }

    /// An empty share.
    #[must_use]
    pub fn share(&self) -> Share {
        Share { budget: self.clone(), held: None }
    }

    /// What is free now, in bytes.
    #[must_use]
    pub fn free_bytes(&self) -> u64 {
        self.free.available_permits() as u64 * 1024
    }
}

/// What one connection has taken from the [`Budget`]; given back when dropped.
#[derive(Debug)]
pub struct Share {
    budget: Budget,
    held: Option<OwnedSemaphorePermit>,
}

impl Share {
    /// Waits until this share has at least `bytes` (or the whole budget, if that is less); requests are served in
    /// turn.
    pub async fn grow_to(&mut self, bytes: usize) {
        let have = self.kib();
        let wanted = u32::try_from(bytes.div_ceil(1024)).unwrap_or(u32::MAX).min(self.budget.total_kib);
        if wanted <= have {
            return;
        }
        // The semaphore is never closed; if it were, continuing without a permit would do no harm.
        if let Ok(more) = Arc::clone(&self.budget.free).acquire_many_owned(wanted - have).await {
            match &mut self.held {
                Some(held) => held.merge(more),
                None => self.held = Some(more),
            }
        }
    }

    /// Whether [`Share::grow_to`] would have to ask for more.
    #[must_use]
    pub fn covers(&self, bytes: usize) -> bool {
        let wanted = u32::try_from(bytes.div_ceil(1024)).unwrap_or(u32::MAX).min(self.budget.total_kib);
        wanted <= self.kib()
    }

    /// Gives everything back.
    pub fn release(&mut self) {
        self.held = None;
    }

    fn kib(&self) -> u32 {
        self.held.as_ref().map_or(0, |held| u32::try_from(held.num_permits()).unwrap_or(u32::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The HTTP door keeps a body exactly if the outbox's refusal says so.
    #[test]
    fn what_the_outbox_refuses_because_of_its_content_is_quarantined() {
        use pgw_core::wire::limits::{Text, TextError};
        let lane = pgw_core::transaction::Lane::new("clinical").unwrap();
        for refusal in [
            Refusal::Full(String::new()),
            Refusal::Busy,
            Refusal::Trouble(String::new()),
            Refusal::Stopping,
            Refusal::TooLarge { bytes: 2, limit: 1 },
            Refusal::UnknownLane(lane),
            Refusal::Text(TextError::Character(Text::Key)),
        ] {
            let kept = !http::outcome::Problem::of(&refusal).reason.is_empty();
            assert_eq!(kept, refusal.consequence() == Consequence::Quarantine, "{refusal}");
        }
    }

    #[tokio::test]
    async fn a_budget_is_shared_and_given_back() {
        let budget = Budget::new(10 * 1024);
        let (mut one, mut two) = (budget.share(), budget.share());
        one.grow_to(4 * 1024).await;
        one.grow_to(6 * 1024).await;
        assert_eq!(budget.free_bytes(), 4 * 1024);
        assert!(one.covers(6 * 1024) && !one.covers(6 * 1024 + 1));
        let mut waiting = Box::pin(two.grow_to(5 * 1024));
        assert!(futures_poll(waiting.as_mut()).is_none(), "there is no space yet");
        one.release();
        waiting.await;
        assert_eq!(budget.free_bytes(), 5 * 1024);
        drop(two);
        one.grow_to(1024 * 1024).await;
        assert_eq!(budget.free_bytes(), 0, "more than all is all");
    }

    fn futures_poll<F: Future>(future: std::pin::Pin<&mut F>) -> Option<F::Output> {
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        match future.poll(&mut context) {
            std::task::Poll::Ready(out) => Some(out),
            std::task::Poll::Pending => None,
        }
    }
}
