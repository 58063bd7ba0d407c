//! Two small numbers that outlive the process: the session counter and the last trusted time.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::Path;

/// The number in a file; `None`: there is none, or not a number.
pub fn read_number(path: &Path) -> Option<u64> {
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// Replaces the number so that a power cut leaves the old or the new one. Blocking.
pub fn write_number(path: &Path, number: u64) -> io::Result<()> {
    let beside = path.with_extension("new");
    let mut file = File::create(&beside)?;
    writeln!(file, "{number}")?;
    file.sync_all()?;
    std::fs::rename(&beside, path)?;
    if let Some(directory) = path.parent() {
        File::open(directory)?.sync_all()?;
    }
    Ok(())
}

/// The next session: one more than the last, durably before it is used, and not below `least` (what this process
/// used, when the file failed). A damaged file must not make it go back behind a will that is still under way:
/// then the wall clock is the least that it can be. Blocking.
pub fn next_session(directory: &Path, least: u64, now_seconds: u64) -> io::Result<u64> {
    let path = directory.join("session");
    let next = match read_number(&path) {
        Some(last) => last.saturating_add(1).max(least),
        None if path.exists() => now_seconds.max(least),
        None => least,
    };
    write_number(&path, next)?;
    Ok(next)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_is_one_more_at_each_connect_over_restarts() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(next_session(directory.path(), 1, 50).unwrap(), 1);
        assert_eq!(next_session(directory.path(), 1, 50).unwrap(), 2);
        std::fs::write(directory.path().join("session"), b"\0\0\0").unwrap();
        assert_eq!(
            next_session(directory.path(), 1, 50).unwrap(),
            50,
            "a damaged file does not start again at 1"
        );
        assert_eq!(next_session(directory.path(), 1, 50).unwrap(), 51);
    }
}
