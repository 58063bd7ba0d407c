//! The settings of one folder door.

use std::path::PathBuf;
use std::time::Duration;

use pgw_core::transaction::{Gateway, Lane, Practice};

use crate::ingest::folder::rules::{Nature, Take};

/// One folder door's settings.
#[derive(Debug, Clone)]
pub struct FolderDoorConfig {
    /// The folder's name, part of the `source` of its transactions.
    pub name: String,
    /// Where it is.
    pub path: PathBuf,
    /// Whose gateway this is, for the `source` of transactions.
    pub practice: Practice,
    /// The gateway's id, likewise.
    pub gateway: Gateway,
    /// The lane that its files go to.
    pub lane: Lane,
    /// How a sender says that a file is complete.
    pub take: Take,
    /// A file system must be mounted there: without it the folder counts as away.
    pub mounted: bool,
    /// Largest file.
    pub file_limit_bytes: usize,
    /// How often it looks, besides when it is told of something new (5 s).
    pub rescan: Duration,
    /// How long a file must have been the same (2 s; none with a second file).
    pub settle: Duration,
    /// How long an empty file may stay empty before it is rejected (60 s).
    pub empty: Duration,
    /// Name of the subfolder for acceptance slips.
    pub accepted: String,
    /// Name of the subfolder for refused files.
    pub rejected: String,
    /// Whether accepted files are kept beside their slips.
    pub keep_accepted: bool,
    /// What files are whose extension says nothing.
    pub usual: Nature,
    /// What files of an extension (in lower case) are.
    pub by_extension: Vec<(String, Nature)>,
}
