//! Work on a store that no daemon has open: [`repair()`] (`practice-gateway repair`), [`moving`] (another box) and [`set_aside`]
//! (a lost key).
//!
//! The daemon itself rebuilds a damaged segment ([`crate::pipeline::rebuild`]) and continues; a record that it could not read
//! is missing. Offline repair reads all raw files once more, and other places too: segments that were set aside, records in
//! quarantine, and directories that an operator names, such as an image of the old disk. It takes a record only if its seal,
//! its checksum and its chain value are right ([`plan`]).
//!
//! - [`inspect`]: what the store should have, and what its segments hold; nothing is written, sled is not used
//! - [`identity`]: the two small files without which nothing starts
//! - [`plan`]: which records are intact, fit, are unproven, are lost; pure; [`lane_plan`]: the same for a whole lane
//! - [`sources`]: the same records from elsewhere
//! - [`keep`]: what was found and does not go back goes to the quarantine
//! - [`apply`]: writes, syncs and reads back new segments before it sets old ones aside; then the segment table
//! - [`report`]: the report for the operator; [`error`]: why a repair failed

mod apply;
mod error;
mod identity;
mod inspect;
mod keep;
mod lane_plan;
pub mod moving;
mod plan;
mod repair;
mod report;
pub mod set_aside;
mod sources;
#[cfg(test)]
pub(crate) mod tests;

pub use error::RepairError;
pub use repair::{RepairRequest, repair};
pub use report::{
    FoundRange, LaneReport, LostRange, Neighbour, RepairReport, RewrittenSegment, SourceReport,
};
