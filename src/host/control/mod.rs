//! A daemon's control socket: its commands talk to it there. Whoever may open the socket (mode 0660) may command.
//!
//! A request is one line of JSON; its answer is one line or several, and the last one says that it is the last. Bytes may
//! follow a line, as many as it says. A request that cannot be read is answered and ends the connection. What the lines mean
//! is the daemon's own: it brings a type for its requests, one for its replies ([`Reply`]) and a [`Handler`].
//!
//! - [`server`]: makes the socket, and answers; [`client`]: asks, blocking

pub mod client;
pub mod server;

use serde::Serialize;
use serde::de::DeserializeOwned;

pub use client::{Client, ClientError};
pub use server::{Control, Conversation, Handler, ListenError};

/// Longest line, with its end.
pub const LINE_BYTES: usize = 64 * 1024;

/// A line of an answer.
pub trait Reply: Serialize + DeserializeOwned + Send + Sync + 'static {
    /// The daemon could not do it, in one sentence; the last line of its answer.
    fn failed(reason: String) -> Self;

    /// No further line belongs to the same answer.
    fn is_last(&self) -> bool;

    /// Itself, or the error that it stands for.
    ///
    /// # Errors
    /// [`ClientError::Failed`] or [`ClientError::NotPermitted`].
    fn checked(self) -> Result<Self, ClientError>;
}

#[cfg(test)]
mod tests;
