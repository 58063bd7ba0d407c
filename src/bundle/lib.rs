//! Hand-carry: waiting transactions in one file that only the hub can read, for a long outage of the link.
//!
//! - [`keys`], `bech32`: the hub's age identity (X25519) and its public half, the recipient
//! - `header`, [`seal`]: the age v1 file format (C2SP `age.md`), so that other tools can open a bundle with the hub's key
//! - [`bundle`]: the content: every transaction as it would be published, with the chain around it
//! - [`receipts`]: the hub's signed receipts as lines of a file, for the way back
//! - [`end`]: where the hub's line of a lane ends, signed, as a file for the next export
//!
//! Everything streams: memory does not grow with the bundle. `docs/hand-carry.md` is the contract.

mod bech32;
pub mod bundle;
pub mod end;
mod header;
pub mod keys;
pub mod receipts;
pub mod seal;

/// Why a file or key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AgeError {
    /// Reading or writing failed.
    #[error("the file cannot be read or written")]
    Io(#[from] std::io::Error),
    /// It is not the age v1 format.
    #[error("it is not an age v1 file: {0}")]
    Header(&'static str),
    /// No stanza of it is for this key.
    #[error("it was not encrypted for this hub's key")]
    OtherKey,
    /// The header's MAC does not fit: its header was altered.
    #[error("its header was altered")]
    HeaderMac,
    /// A chunk does not open: altered, out of its place, or truncated.
    #[error("it was altered or cut off: chunk {0} (64 KiB each) does not decrypt")]
    Chunk(u64),
    /// The file ends before its last chunk.
    #[error("it is cut off: it ends in chunk {0} (64 KiB each), before the last one")]
    Cut(u64),
    /// Text that is neither a recipient nor an identity.
    #[error("it is not an age X25519 {0}")]
    Key(&'static str),
    /// The system gives no random bytes.
    #[error("the system provides no random bytes")]
    Random(#[source] std::io::Error),
}
