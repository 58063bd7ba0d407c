//! The fuzz targets' corpus, with small changes, on any compiler: nothing panics, nothing uses more memory than
//! allowed (`fuzz/checks.rs`).

#[allow(unreachable_pub, reason = "the fuzz targets use them, too")]
#[path = "../../fuzz/checks.rs"]
mod checks;

use std::path::Path;

use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

/// Changes of each input.
const CHANGES: u32 = 200;

fn corpus(target: &str) -> Vec<(String, Vec<u8>)> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let mut inputs: Vec<(String, Vec<u8>)> = std::fs::read_dir(&directory)
        .unwrap_or_else(|error| panic!("{}: {error}", directory.display()))
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.file_name().unwrap().to_string_lossy().into_owned(), std::fs::read(&path).unwrap()))
        .collect();
    inputs.sort();
    assert!(!inputs.is_empty(), "{target} has no inputs");
    inputs
}

#[test]
fn every_kept_input_is_read_without_harm() {
    for (target, check) in checks::TARGETS {
        for (name, input) in corpus(target) {
            let held = std::panic::catch_unwind(|| check(&input));
            assert!(held.is_ok(), "fuzz/corpus/{target}/{name}");
        }
    }
}

#[test]
fn every_target_has_its_file() {
    let manifest = include_str!("../../fuzz/Cargo.toml");
    for (target, _) in checks::TARGETS {
        assert!(manifest.contains(&format!("name = \"{target}\"")), "{target} is not in fuzz/Cargo.toml");
    }
    assert_eq!(manifest.matches("[[bin]]").count(), checks::TARGETS.len());
    let script = include_str!("../../fuzz/run.sh");
    let names: Vec<&str> = checks::TARGETS.iter().map(|(name, _)| *name).collect();
    assert!(script.contains(&names.join(" ")), "fuzz/run.sh runs other targets");
}

/// A change: cut, repeated, or some bytes replaced by others.
fn changed(
    input: &[u8],
    cut: &prop::sample::Index,
    edits: &[(prop::sample::Index, u8)],
    again: bool,
) -> Vec<u8> {
    let mut bytes = input.to_vec();
    if again {
        bytes.extend_from_within(cut.index(bytes.len().max(1)).min(bytes.len())..);
    } else {
        bytes.truncate(cut.index(bytes.len() + 1).max(bytes.len() / 2));
    }
    for (place, byte) in edits {
        let place = place.index(bytes.len().max(1));
        if let Some(slot) = bytes.get_mut(place) {
            *slot = *byte;
        }
    }
    bytes
}

#[test]
fn small_changes_of_them_do_no_harm_either() {
    for (target, check) in checks::TARGETS {
        for (name, input) in corpus(target) {
            let config = Config { cases: CHANGES, failure_persistence: None, ..Config::default() };
            let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &[7; 32]);
            let change = (
                any::<prop::sample::Index>(),
                prop::collection::vec(any::<(prop::sample::Index, u8)>(), 0..6),
                any::<bool>(),
            );
            let run = TestRunner::new_with_rng(config, rng).run(&change, |(cut, edits, again)| {
                check(&changed(&input, &cut, &edits, again));
                Ok(())
            });
            assert!(run.is_ok(), "{target}/{name}: {run:?}");
        }
    }
}
