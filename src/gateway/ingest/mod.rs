//! The doors: how transactions come in, and the one `submit()` behind them all (design section 8).
//!
//! A door reads what its protocol needs, hands a [`Submission`] to an [`Acceptor`] and answers its sender only after
//! that has returned: what is acknowledged is behind the outbox's barrier. Doors hold no state that matters; every
//! buffer of theirs is bounded.
//!
//! - [`mllp`]: HL7 v2 over TCP
//! - [`http`]: any bytes, FHIR messages and HL7 v2 over HTTP/1.1
//! - [`folder`]: files that a sender leaves in a folder
//! - [`control`]: the daemon's unix socket, for the command line
//! - [`origin`]: where refused input came from

pub mod control;
pub mod folder;
pub mod http;
pub mod mllp;
pub mod origin;

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use pgw_outbox::{Accepted, Outbox, Refusal, Submission};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// What stands behind every door. The outbox is one; tests have others.
pub trait Acceptor: Clone + Send + Sync + 'static {
    /// Returns when the transaction is on stable storage.
    ///
    /// # Errors
    /// [`Refusal`]: nothing was promised.
    fn submit(&self, submission: Submission) -> impl Future<Output = Result<Accepted, Refusal>> + Send;

    /// Keeps refused input with its reason, and returns its number; `source` is a line of [`origin`]. Blocking.
    ///
    /// # Errors
    /// [`Refusal`] when there is no room for it.
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

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)+) => {
        /// What the doors have seen since the daemon started; shared by all of them and read by health.
        #[derive(Debug, Default)]
        pub struct Counters {
            $($(#[$doc])* pub $name: AtomicU64,)+
        }

        /// [`Counters`] at one moment.
        #[derive(Debug, Default, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
        pub struct Counts {
            $($(#[$doc])* pub $name: u64,)+
        }

        impl Counters {
            /// The numbers now.
            #[must_use]
            pub fn counts(&self) -> Counts {
                Counts { $($name: self.$name.load(Ordering::Relaxed),)+ }
            }
        }
    };
}

counters! {
    /// Messages that came in whole, whatever became of them.
    received,
    /// Messages that are behind the barrier and were answered so, repetitions included.
    accepted,
    /// Messages refused for what they are.
    refused,
    /// Messages that could not be stored then; their senders have them still.
    unavailable,
    /// Of the accepted: repetitions that were stored before.
    repeated,
    /// Of the accepted: the key was seen before with other content.
    key_reused,
    /// Of the accepted: marked by their sender as training or debugging (MSH-11 `T` or `D`).
    not_production,
    /// Refused messages that the quarantine had no room for.
    quarantine_failed,
    /// Refused messages that were not kept because their sender's address had filled its share of the quarantine.
    quarantine_passed_over,
    /// Times that a connection was read more slowly because of the garbage that it brought.
    slowed_down,
    /// Connections open now.
    connections,
    /// Connections ever taken.
    connections_total,
    /// Connections turned away: too many, not allowed, or nothing can be stored now.
    connections_refused,
    /// Connections closed because a frame was not ended in time or its acknowledgment not taken.
    timeouts,
    /// Frames that ended with their connection, or were begun again: never acknowledged.
    unfinished,
    /// Bytes between frames that belonged to none.
    noise_bytes,
    /// Folders that cannot be looked into, or in which files cannot be moved, now.
    folders_away,
    /// What stays in folders now because it is no file or cannot be read.
    files_left,
}

impl Counters {
    /// One message is behind the barrier.
    pub(crate) fn count_accepted(&self, accepted: &Accepted) {
        count(&self.accepted);
        if accepted.repeated {
            count(&self.repeated);
        }
        if accepted.key_reused {
            count(&self.key_reused);
        }
    }
}

/// Adds one.
pub(crate) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// The memory that all doors together may fill with messages under way.
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

    /// Nothing taken yet.
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

/// What one connection has taken of the [`Budget`]; given back when dropped.
#[derive(Debug)]
pub struct Share {
    budget: Budget,
    held: Option<OwnedSemaphorePermit>,
}

impl Share {
    /// Waits until this share has at least `bytes` (or the whole budget, if that is less); asks in turn with others.
    pub async fn grow_to(&mut self, bytes: usize) {
        let have = self.kib();
        let wanted = u32::try_from(bytes.div_ceil(1024)).unwrap_or(u32::MAX).min(self.budget.total_kib);
        if wanted <= have {
            return;
        }
        // The semaphore is never closed; if it were, going on without a permit is the harmless answer.
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

    #[tokio::test]
    async fn a_budget_is_shared_and_given_back() {
        let budget = Budget::new(10 * 1024);
        let (mut one, mut two) = (budget.share(), budget.share());
        one.grow_to(4 * 1024).await;
        one.grow_to(6 * 1024).await;
        assert_eq!(budget.free_bytes(), 4 * 1024);
        assert!(one.covers(6 * 1024) && !one.covers(6 * 1024 + 1));
        let mut waiting = Box::pin(two.grow_to(5 * 1024));
        assert!(futures_poll(waiting.as_mut()).is_none(), "there is no room yet");
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
