//! Work on a store that no daemon has open: [`repair()`] (`practice-gateway repair`), [`moving`] (another box) and [`set_aside`]
//! (a lost key).
//!
//! The daemon carves by itself what a damaged segment still holds ([`crate::pipeline::rebuild`]) and continues; a record that it could
//! not read is missing. Offline repair reads everything once more, raw, and other places with it: segments that were set aside,
//! records in quarantine, and directories that a person names, such as an image of the old disk. A record is taken
//! in only where its seal, its checksum and its chain value are right ([`plan`]).
//!
//! - [`inspect`]: what the store should have, and what lies in its segments; nothing is written, sled is not asked
//! - [`identity`]: the two small files without which nothing starts
//! - [`plan`]: what stands, fits, is unproven, is lost; pure; [`judgement`]: that for a whole lane
//! - [`sources`]: the same records from elsewhere
//! - [`apply`]: segments written anew, synced and read back before anything old is set aside; then the segment table
//! - [`renumber`]: new numbers where a recovered record would break the chain on the wire
//! - [`report`]: what a person is told; [`error`]: why there was no repair

mod apply;
mod error;
mod identity;
mod inspect;
mod judgement;
pub mod moving;
mod plan;
mod renumber;
mod repair;
mod report;
pub mod set_aside;
mod sources;
#[cfg(test)]
mod tests;

pub use error::RepairError;
pub use repair::{RepairRequest, repair};
pub use report::{
    FoundRange, LaneReport, LostRange, Neighbour, RepairReport, RewrittenSegment, SourceReport,
};
