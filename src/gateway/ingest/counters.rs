//! What the doors have counted; health and the HTTP door's metrics read it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use pgw_outbox::{Accepted, Refusal};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)+) => {
        /// What the doors have counted since the daemon started; shared by all of them and read by health.
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
            /// The counts now.
            #[must_use]
            pub fn counts(&self) -> Counts {
                Counts { $($name: self.$name.load(Ordering::Relaxed),)+ }
            }
        }
    };
}

counters! {
    /// Messages that arrived complete, whatever happened to them.
    received,
    /// Messages that are behind the barrier and were acknowledged, repetitions included.
    accepted,
    /// Messages refused because of their content.
    refused,
    /// Messages that could not be stored at the time; their senders still have them.
    unavailable,
    /// Of the accepted: repetitions of a stored transaction.
    repeated,
    /// Of the accepted: a known key with other content.
    key_reused,
    /// Of the accepted: an attribute contained a valid NHS number, which was left out.
    withheld,
    /// Of the accepted: marked by their sender as training or debugging (MSH-11 `T` or `D`).
    not_production,
    /// Refused messages for which the quarantine had no space.
    quarantine_failed,
    /// Refused messages that were not kept because their sender's address had filled its share of the quarantine.
    quarantine_passed_over,
    /// How often a connection was read more slowly because of the junk that it sent.
    slowed_down,
    /// Connections open now.
    connections,
    /// Connections accepted since the start.
    connections_total,
    /// Connections turned away: too many, not allowed, or nothing can be stored now.
    connections_refused,
    /// Connections closed because a frame was not finished, or its acknowledgment not read, in time.
    timeouts,
    /// Frames that ended with their connection, or were begun again: never acknowledged.
    unfinished,
    /// Bytes between frames that belonged to no frame.
    noise_bytes,
    /// Folders that cannot be listed, or in which files cannot be moved, now.
    folders_away,
    /// Entries that stay in folders now because they are not regular files or cannot be read.
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
        if accepted.withheld {
            count(&self.withheld);
        }
    }

    /// The outbox has refused one message.
    pub(crate) fn count_refused(&self, refusal: &Refusal) {
        count(if refusal.is_temporary() { &self.unavailable } else { &self.refused });
    }

    /// Counts a connection as open until the returned value is dropped.
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
