//! A daemon's control socket, over which its commands talk to it. Anyone who can open the socket (mode 0660) may give
//! commands.
//!
//! A request is one line of JSON. Its answer is one line or several; the last one says that it is the last. A line may
//! announce a number of bytes that follow it. A request that cannot be read gets an error and ends the connection.
//! Each daemon defines the meaning of the lines: it brings a type for its requests, one for its replies ([`Reply`])
//! and a [`Handler`].
//!
//! - [`server`]: creates the socket and answers; [`client`]: sends requests, blocking

pub mod client;
pub mod server;

use std::error::Error;

use pgw_core::consequence::Consequence;
use pgw_core::text::chain;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

pub use client::{Client, ClientError};
pub use server::{Control, Conversation, Handler, ListenError, check};

/// Longest line, with its line end.
pub const LINE_BYTES: usize = 64 * 1024;

/// Why a daemon did not do what a command asked, as the command reads it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{reason}")]
pub struct NotDone {
    /// One sentence.
    pub reason: String,
    /// How the command ends.
    pub consequence: Consequence,
}

impl NotDone {
    /// An error with all its causes, in one sentence.
    #[must_use]
    pub fn of(error: &dyn Error, consequence: Consequence) -> Self {
        Self { reason: chain(error), consequence }
    }

    /// The request is wrong, or asks for what cannot be done.
    pub fn refused(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), consequence: Consequence::Refuse }
    }

    /// The same request may succeed later.
    pub fn later(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), consequence: Consequence::Retry }
    }

    /// A bug in this program.
    pub fn bug(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), consequence: Consequence::BUG }
    }
}

/// A line of an answer.
pub trait Reply: Serialize + DeserializeOwned + Send + Sync + 'static {
    /// The reply for a request that failed; the last line of its answer.
    fn failed(failed: NotDone) -> Self;

    /// Whether this is the last line of its answer.
    fn is_last(&self) -> bool;

    /// The reply itself, or the error that it represents.
    ///
    /// # Errors
    /// [`ClientError::Failed`] or [`ClientError::NotPermitted`].
    fn checked(self) -> Result<Self, ClientError>;
}

#[cfg(test)]
mod tests;
