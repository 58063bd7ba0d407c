//! The settings of one folder door.

use std::path::PathBuf;
use std::time::Duration;

use pgw_core::transaction::{Gateway, Lane, Practice};

use crate::ingest::folder::rules::{Nature, Take};

/// One folder door's settings.
#[derive(Debug, Clone)]
pub struct FolderDoorConfig {
    /// The folder's name, part of its transactions' `source`.
    pub name: String,
    /// Its path.
    pub path: PathBuf,
    /// Whose gateway this is, for the `source` of transactions.
    pub practice: Practice,
    /// The gateway's id, likewise.
    pub gateway: Gateway,
    /// The lane for its files.
    pub lane: Lane,
    /// How a sender says that a file is complete.
    pub take: Take,
    /// Whether a file system must be mounted there: without it the folder counts as away.
    pub mounted: bool,
    /// Largest file.
    pub file_limit_bytes: usize,
    /// How often it is scanned, besides when inotify reports a change (5 s).
    pub rescan: Duration,
    /// How long a file must be unchanged (2 s; none with a second file).
    pub settle: Duration,
    /// How long a file may stay empty before it is rejected (60 s).
    pub empty: Duration,
    /// Name of the subfolder for acceptance slips.
    pub accepted: String,
    /// Name of the subfolder for refused files.
    pub rejected: String,
    /// Whether accepted files are kept beside their slips.
    pub keep_accepted: bool,
    /// The type of files whose extension is not listed.
    pub usual: Nature,
    /// The types of files by extension (in lower case).
    pub by_extension: Vec<(String, Nature)>,
}
