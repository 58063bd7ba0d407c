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

use serde::Serialize;
use serde::de::DeserializeOwned;

pub use client::{Client, ClientError};
pub use server::{Control, Conversation, Handler, ListenError};

/// Longest line, with its line end.
pub const LINE_BYTES: usize = 64 * 1024;

/// A line of an answer.
pub trait Reply: Serialize + DeserializeOwned + Send + Sync + 'static {
    /// The reply for a request that failed, with the reason in one sentence; the last line of its answer.
    fn failed(reason: String) -> Self;

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
