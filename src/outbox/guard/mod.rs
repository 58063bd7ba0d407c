//! The segments' databases: the only modules that use sled, and the protection against its faults.
//!
//! - [`segment`]: one small sled database, every call contained
//! - [`log_check`]: whether its log is sound, before sled opens it
//! - [`record`]: our records, and the chunks that sled stores
//! - [`carve`]: finds those chunks in the raw bytes of files that sled cannot read any more
//! - [`replace`]: a rebuilt segment takes the place of a damaged one

pub(crate) mod carve;
pub(crate) mod log_check;
pub(crate) mod record;
pub(crate) mod replace;
pub(crate) mod segment;
