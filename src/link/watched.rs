//! Files that are read again when they change: certificates, keys, tokens.

use std::path::Path;
use std::time::{Duration, SystemTime};

/// How often the files are looked at.
pub const FILES_INTERVAL: Duration = Duration::from_secs(30);

/// Times and sizes of files: tells whether they are others than those that were read. Taken before they are read, so that
/// what changes meanwhile is read again at the next look.
pub type Stamp = Vec<Option<(SystemTime, u64)>>;

/// Looks at the files; one that is not there is a state like any other. Blocking.
pub fn stamp<'a>(paths: impl IntoIterator<Item = &'a Path>) -> Stamp {
    let look = |path: &Path| {
        let facts = std::fs::metadata(path).ok()?;
        Some((facts.modified().ok()?, facts.len()))
    };
    paths.into_iter().map(look).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_comes_grows_or_goes_changes_the_stamp() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("key.pem");
        let look = || stamp([file.as_path()]);
        let none = look();
        std::fs::write(&file, "one").unwrap();
        let one = look();
        assert_ne!(none, one);
        assert_eq!(one, look());
        std::fs::write(&file, "more").unwrap();
        assert_ne!(one, look());
        std::fs::remove_file(&file).unwrap();
        assert_eq!(none, look());
    }
}
