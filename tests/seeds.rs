//! Where the property tests keep the seeds of the cases that failed. Part of each crate that has such tests.

use std::path::{Path, PathBuf};

use proptest::test_runner::{Config, FailurePersistence as _, FileFailurePersistence};

/// Beside the source: `admission.proptest-regressions` for `admission.rs`. proptest's default would be one folder for all
/// crates of `src`.
const SEEDS: FileFailurePersistence = FileFailurePersistence::WithSource("proptest-regressions");

/// The configuration of every property test.
pub(crate) fn kept() -> Config {
    Config { failure_persistence: Some(Box::new(SEEDS)), ..Config::default() }
}

/// The same, with another number of cases.
#[allow(dead_code, reason = "not every program needs it")]
pub(crate) fn kept_of(cases: u32) -> Config {
    Config { cases, ..kept() }
}

/// Every file of seeds below this folder of the package.
fn files(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "proptest-regressions") {
            found.push(path);
        }
    }
}

#[test]
fn every_kept_seed_is_read() {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    // The crates in `src` look for their own.
    let folder = if package.join("src").is_dir() { package.join("tests") } else { package.to_owned() };
    let mut found = Vec::new();
    files(&folder, &mut found);
    assert!(!found.is_empty(), "no seeds in {}", folder.display());
    for path in found {
        let source = path.with_extension("rs").into_os_string().into_string().expect("text");
        assert!(Path::new(&source).exists(), "{source}");
        let text = std::fs::read_to_string(&path).expect("text");
        let kept = text.lines().filter(|line| line.starts_with("cc ")).count();
        let read = SEEDS.load_persisted_failures2(Some(String::leak(source)));
        assert_eq!((read.len(), kept > 0), (kept, true), "{}", path.display());
    }
}
