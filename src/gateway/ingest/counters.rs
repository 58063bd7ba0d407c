//! What the doors have seen: counted by them, read by health and by the HTTP door's metrics.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use pgw_outbox::{Accepted, Refusal};

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

    /// The outbox has refused one message.
    pub(crate) fn count_refused(&self, refusal: &Refusal) {
        count(if refusal.is_temporary() { &self.unavailable } else { &self.refused });
    }

    /// One more connection, until what this returns is dropped.
    pub(crate) fn connection(self: &Arc<Self>) -> OpenConnection {
        count(&self.connections);
        count(&self.connections_total);
        OpenConnection(Arc::clone(self))
    }
}

/// A connection that is counted as open.
pub(crate) struct OpenConnection(Arc<Counters>);

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Adds one.
pub(crate) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}
