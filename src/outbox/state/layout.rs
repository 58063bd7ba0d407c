//! The paths of a lane's files.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use pgw_core::transaction::Lane;

/// `lanes/{lane}/{name}`
pub(crate) fn lane_file(store: &Path, lane: &Lane, name: &str) -> PathBuf {
    store.join("lanes").join(lane.as_str()).join(name)
}

/// The segments in a lane's directory.
pub(crate) fn segment_numbers(directory: &Path) -> io::Result<BTreeSet<u64>> {
    let mut numbers = BTreeSet::new();
    for entry in fs::read_dir(directory)? {
        let name = entry?.file_name();
        let name = name.to_str().unwrap_or_default();
        if name.len() == 10
            && let Ok(number) = name.parse()
        {
            numbers.insert(number);
        }
    }
    Ok(numbers)
}
