//! Kept seeds of the property tests: a case that failed once is tried again in every run.

use std::path::{Path, PathBuf};

use crate::{root, sources};

/// proptest's own default searches for a folder with `lib.rs` and keeps the seeds beside that folder: of all our crates
/// in `src/proptest-regressions`, where files of two crates could meet.
const ENDING: &str = "proptest-regressions";

fn kept(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            kept(&path, found);
        }
        if path.to_string_lossy().contains(ENDING) {
            found.push(path);
        }
    }
}

/// The same for every property test: `tests/seeds.rs` says where the seeds are, and its test reads each file.
#[test]
fn property_tests_keep_their_seeds_beside_their_source() {
    let mut all = 0;
    for folder in ["src", "tests", "examples", "benches"] {
        for path in sources(&root().join(folder)) {
            let code = std::fs::read_to_string(&path).expect("text");
            let lines: Vec<&str> = code.lines().map(str::trim).collect();
            for (at, _) in lines.iter().enumerate().filter(|(_, line)| **line == "proptest! {") {
                all += 1;
                let configured =
                    lines[at + 1].starts_with("#![proptest_config(") && lines[at + 1].contains("seeds::kept");
                assert!(configured, "{}:{}: begin with seeds::kept()", path.display(), at + 1);
            }
        }
    }
    assert!(all > 10, "the property tests were not found");
}

#[test]
fn every_file_of_seeds_belongs_to_a_property_test() {
    assert!(!root().join(ENDING).exists(), "{ENDING}/ is read by no test");
    let mut found = Vec::new();
    for folder in ["src", "tests"] {
        kept(&root().join(folder), &mut found);
    }
    assert!(!found.is_empty(), "no seeds were found");
    for path in found {
        let source = path.with_extension("rs");
        let code = std::fs::read_to_string(&source).unwrap_or_default();
        let reads =
            path.extension().is_some_and(|extension| extension == ENDING) && code.contains("proptest! {");
        assert!(reads, "{} is read by no test: its source would be {}", path.display(), source.display());
    }
}
