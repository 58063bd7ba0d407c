//! The small files beside the segments: what each lane holds, and how far it was accepted and confirmed.

pub(crate) mod checkpoint;
pub(crate) mod digest_table;
pub(crate) mod lane_epochs;
pub(crate) mod layout;
pub(crate) mod segment_table;
pub(crate) mod settled_digests;
pub(crate) mod watermarks;
