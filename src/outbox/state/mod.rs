//! The small files beside the segments: what each lane holds, and how far it was accepted and confirmed.

pub(crate) mod checkpoint;
pub(crate) mod layout;
pub(crate) mod segment_table;
pub(crate) mod watermarks;
