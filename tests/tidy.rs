//! Style as a test: what a reviewer would otherwise have to say every time.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test stops at the first thing that goes wrong, and prints"
)]

use std::path::{Path, PathBuf};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn sources(directory: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(directory).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            files.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files.sort();
    files
}

/// Every file of the product: its name below `src/`, and its text before its tests.
fn product() -> Vec<(String, String)> {
    let directory = root().join("src");
    let files: Vec<(String, String)> = sources(&directory)
        .into_iter()
        .map(|path| {
            let name = path.strip_prefix(&directory).expect("below src").display().to_string();
            let text = std::fs::read_to_string(&path).expect("text");
            let code = text.split("\n#[cfg(test)]\nmod tests {").next().unwrap_or_default().to_owned();
            (name, code)
        })
        .filter(|(name, _)| !name.ends_with("tests.rs"))
        .collect();
    assert!(files.len() > 30, "the product's files were not found");
    files
}

#[test]
fn files_are_short() {
    /// About 400; a little more is better than a cut in the wrong place.
    const LINES: usize = 500;
    /// Debts: longer than that today, with the length that they must not grow beyond.
    const DEBTS: [(&str, usize); 0] = [];
    for (name, code) in product() {
        let lines = code.lines().count();
        let debt = DEBTS.iter().find(|(of, _)| *of == name).map(|(_, most)| *most);
        assert!(
            lines <= debt.unwrap_or(LINES),
            "src/{name} has {lines} lines before its tests: cut it where it has two subjects"
        );
        assert!(debt.is_none() || lines > LINES, "src/{name} is short again: take it off the list of debts");
    }
}

#[test]
fn every_module_says_what_it_is() {
    for (name, code) in product() {
        assert!(code.starts_with("//! "), "src/{name} does not begin with //!");
        assert!(!code.starts_with("//! stub"), "src/{name} is still a stub");
    }
}

#[test]
fn pure_files_have_no_io_no_clock_and_no_chance() {
    let pure = [
        "chain.rs",
        "transaction.rs",
        "delivery/",
        "wire/",
        "health/state.rs",
        "health/changes.rs",
        "health/payload.rs",
        "committer/",
        "ingest/folder/papers.rs",
        "ingest/folder/rules.rs",
        "ingest/folder/settle.rs",
        "ingest/http/fhir.rs",
        "ingest/http/headers.rs",
        "ingest/http/keys.rs",
        "ingest/http/metrics.rs",
        "ingest/http/outcome.rs",
        "ingest/mllp/allowance.rs",
        "ingest/mllp/codec.rs",
        "ingest/mllp/msh.rs",
        "ingest/mllp/ack.rs",
        "ingest/mllp/envelope.rs",
        "ingest/mllp/route.rs",
        "ingest/origin.rs",
        "outbox/admission.rs",
        "outbox/mend/plan.rs",
    ];
    let mut seen = vec![false; pure.len()];
    for (name, code) in product() {
        let Some(index) =
            pure.iter().position(|of| name == *of || (of.ends_with('/') && name.starts_with(of)))
        else {
            continue;
        };
        seen[index] = true;
        let lines: Vec<&str> = code.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
        for forbidden in
            ["tokio", "Instant::now", "std::net", "std::fs", "std::thread", "Uuid::now_v7", "Uuid::new_v4"]
        {
            let found = lines.iter().any(|line| line.contains(forbidden));
            assert!(!found, "src/{name} is pure and must not use {forbidden}");
        }
        // The one look at the wall clock stands beside the word for it.
        let clock = lines.iter().any(|line| line.contains("SystemTime::now"));
        assert!(!clock || name == "transaction.rs", "src/{name} is pure and must not look at the clock");
    }
    for (of, seen) in pure.iter().zip(seen) {
        assert!(seen, "src/{of} is not there any more: tell this test where it went");
    }
}

#[test]
fn only_the_outbox_knows_sled() {
    for (name, code) in product() {
        let knows = code.lines().any(|line| !line.trim_start().starts_with("//") && line.contains("sled::"));
        assert!(!knows || name.starts_with("outbox/"), "src/{name} knows sled");
    }
}

#[test]
fn nothing_is_printed_past_the_command_lines_writers() {
    for (name, code) in product() {
        for forbidden in ["println!(", "eprintln!(", "print!(", "dbg!(", "todo!(", "unimplemented!("] {
            assert!(!code.contains(forbidden), "src/{name} has {forbidden}");
        }
    }
}

#[test]
fn no_folder_is_a_drawer_for_everything() {
    for (name, _) in product() {
        let words = ["utils", "util", "common", "helpers", "misc", "manager"];
        let drawer = name.split(['/', '.', '_']).any(|part| words.contains(&part));
        assert!(!drawer, "src/{name}: name it after what it is about");
    }
}

#[test]
fn the_map_names_every_room() {
    let map = std::fs::read_to_string(root().join("docs/architecture.md")).expect("the map");
    let lib = std::fs::read_to_string(root().join("src/lib.rs")).expect("lib.rs");
    let rooms: Vec<&str> =
        lib.lines().filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';')).collect();
    assert!(rooms.len() > 8);
    for room in rooms {
        assert!(map.contains(&format!("`{room}`")), "docs/architecture.md does not name {room}");
        assert!(lib.contains(&format!("[`{room}`]")), "src/lib.rs does not say what {room} is");
    }
}

#[test]
fn every_dependency_says_why_it_is_there() {
    let manifest = std::fs::read_to_string(root().join("Cargo.toml")).expect("Cargo.toml");
    let mut in_dependencies = false;
    let mut seen = 0;
    for line in manifest.lines() {
        if line.starts_with('[') {
            in_dependencies = line.ends_with("dependencies]");
        } else if in_dependencies && line.contains(" = ") && !line.starts_with('#') {
            seen += 1;
            assert!(line.contains("# "), "no reason: {line}");
        }
    }
    assert!(seen > 20, "the dependencies were not found");
}

/// `tests/http.rs` `its_test`, `src/outbox/tests.rs` `its_test`: each must be there.
fn named_tests(document: &str) -> Vec<(String, String)> {
    let parts: Vec<&str> = document.split('`').collect();
    let mut named = Vec::new();
    let mut file: Option<&str> = None;
    // Odd parts stand between backticks.
    for (index, part) in parts.iter().enumerate() {
        let quoted = index % 2 == 1;
        let is_file =
            quoted && part.ends_with(".rs") && (part.starts_with("src/") || part.starts_with("tests/"));
        let is_test = quoted
            && part.contains('_')
            && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
        match file {
            _ if is_file => file = Some(part),
            // Only what stands right behind its file, with a space between.
            Some(of) if is_test && parts[index - 1] == " " => named.push((of.to_owned(), (*part).to_owned())),
            _ if !quoted && *part != " " => file = None,
            _ => {}
        }
    }
    named
}

#[test]
fn the_tests_that_documents_name_are_there() {
    for (document, least) in [
        ("docs/architecture.md", 10),
        ("docs/ingest.md", 60),
        ("docs/faults.md", 25),
        ("docs/safety/hazard-log.md", 20),
    ] {
        let text = std::fs::read_to_string(root().join(document)).expect("a document");
        let named = named_tests(&text);
        assert!(named.len() >= least, "{document}: only {} tests were found", named.len());
        for (file, test) in named {
            let code = std::fs::read_to_string(root().join(&file))
                .unwrap_or_else(|_| panic!("{document} names {file}, which is not there"));
            let lines: Vec<&str> = code.lines().map(str::trim).collect();
            let found = lines.iter().position(|line| {
                ["fn ", "async fn "].iter().any(|word| line.starts_with(&format!("{word}{test}(")))
            });
            let found = found.unwrap_or_else(|| panic!("{document}: there is no {test} in {file}"));
            let marked = lines[found.saturating_sub(4)..found]
                .iter()
                .any(|line| ["#[test]", "#[tokio::test"].iter().any(|mark| line.starts_with(mark)));
            assert!(marked, "{document}: {test} in {file} is no test");
        }
    }
}

/// Every row of the tables in `docs/ingest.md` says which test holds it.
#[test]
fn every_row_of_the_doors_names_its_test() {
    let text = std::fs::read_to_string(root().join("docs/ingest.md")).expect("the document");
    let mut rows = 0;
    for line in text.lines().filter(|line| line.starts_with("| ") && line.ends_with('|')) {
        let cells: Vec<&str> = line.trim_matches('|').split(" | ").map(str::trim).collect();
        assert_eq!(cells.len(), 6, "{line}");
        if cells[0] == "input" {
            continue;
        }
        rows += 1;
        assert!(cells[5] == "no test yet" || !named_tests(cells[5]).is_empty(), "{line}");
    }
    assert!(rows > 60, "{rows}");
}
