//! Style as a test: what a reviewer would otherwise have to point out every time.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test stops at the first thing that goes wrong, and prints"
)]

mod manifests;
mod seeds;
mod structure;

use std::path::{Path, PathBuf};

use structure::IMPORTS;

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
    /// A little longer is better than a split in the wrong place.
    const LINES: usize = 450;
    /// Debts: longer than that today, with the length that they must not exceed.
    const DEBTS: &[(&str, usize)] = &[];
    let mut long = Vec::new();
    for (name, code) in product() {
        let lines = code.lines().count();
        let debt = DEBTS.iter().find(|(of, _)| *of == name).map(|(_, most)| *most);
        if lines > debt.unwrap_or(LINES) {
            long.push((name.clone(), lines));
        }
        assert!(debt.is_none() || lines > LINES, "src/{name} is short again: take it off the list of debts");
    }
    for (of, _) in DEBTS {
        assert!(root().join("src").join(of).exists(), "src/{of} is gone: take it off the list of debts");
    }
    assert!(long.is_empty(), "cut these where they have two subjects: {long:#?}");
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
        "core/",
        "link/backoff.rs",
        "gateway/health/state.rs",
        "gateway/health/changes.rs",
        "gateway/health/payload.rs",
        "gateway/ingest/folder/documents.rs",
        "gateway/ingest/folder/rules.rs",
        "gateway/ingest/folder/debounce.rs",
        "gateway/ingest/hl7.rs",
        "gateway/ingest/http/fhir.rs",
        "gateway/ingest/http/headers.rs",
        "gateway/ingest/http/keys.rs",
        "gateway/ingest/http/metrics.rs",
        "gateway/ingest/http/outcome.rs",
        "gateway/ingest/media.rs",
        "gateway/ingest/mllp/abuse_limiter.rs",
        "gateway/ingest/mllp/codec.rs",
        "gateway/ingest/mllp/msh.rs",
        "gateway/ingest/mllp/ack.rs",
        "gateway/ingest/mllp/envelope.rs",
        "gateway/ingest/mllp/route.rs",
        "gateway/ingest/origin.rs",
        "gateway/ingest/slip.rs",
        "outbox/pipeline/admission.rs",
        "outbox/offline/plan.rs",
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
        // The only read of the wall clock is next to its type.
        let clock = lines.iter().any(|line| line.contains("SystemTime::now"));
        assert!(!clock || name == "core/transaction.rs", "src/{name} is pure and must not look at the clock");
    }
    for (of, seen) in pure.iter().zip(seen) {
        assert!(seen, "src/{of} is not there any more: tell this test where it went");
    }
}

#[test]
fn only_the_guard_knows_sled() {
    for (name, code) in product() {
        let knows = code.lines().any(|line| !line.trim_start().starts_with("//") && line.contains("sled::"));
        assert!(!knows || name.starts_with("outbox/guard/"), "src/{name} knows sled");
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

/// An error names its consequence; `host/exit.rs` alone turns consequences into exit codes.
#[test]
fn errors_become_exit_codes_in_one_place() {
    for (name, code) in product() {
        assert!(
            !code.contains("fn consequence(&self) -> Exit"),
            "src/{name}: a consequence is not an exit code"
        );
        let by_hand = code.lines().any(|line| line.contains("Error::") && line.contains("=> Exit::"));
        assert!(!by_hand, "src/{name} maps an error to an exit code: give the error a consequence()");
        let maps = code.contains("for Exit {");
        assert!(!maps || name == "host/exit.rs", "src/{name} has a second mapping to exit codes");
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
fn the_map_names_every_crate_and_each_crate_its_modules() {
    let map = std::fs::read_to_string(root().join("docs/architecture.md")).expect("the map");
    for (name, _) in IMPORTS {
        assert!(map.contains(&format!("| `{name}` |")), "docs/architecture.md does not name {name}");
        let tour = std::fs::read_to_string(root().join("src").join(name).join("lib.rs")).expect("lib.rs");
        for line in tour.lines() {
            let Some(module) = line.strip_prefix("pub mod ").and_then(|rest| rest.strip_suffix(';')) else {
                continue;
            };
            assert!(tour.contains(&format!("`{module}`")), "src/{name}/lib.rs does not say what {module} is");
        }
    }
}

/// `tests/gateway/http.rs` `its_test`, `src/outbox/tests.rs` `its_test`: each must be there.
fn named_tests(document: &str) -> Vec<(String, String)> {
    let parts: Vec<&str> = document.split('`').collect();
    let mut named = Vec::new();
    let mut file: Option<&str> = None;
    // The odd parts are between backticks.
    for (index, part) in parts.iter().enumerate() {
        let quoted = index % 2 == 1;
        let is_file =
            quoted && part.ends_with(".rs") && (part.starts_with("src/") || part.starts_with("tests/"));
        let is_test = quoted
            && part.contains('_')
            && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
        match file {
            _ if is_file => file = Some(part),
            // Only a name directly after its file, separated by a space.
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

/// Every row of the tables in `docs/ingest.md` names its test.
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

/// All documents for people: their paths from the root, and their text.
fn documents() -> Vec<(String, String)> {
    let mut paths: Vec<String> =
        ["README.md", "CHANGELOG.md", "SECURITY.md", "deploy/README.md", "tests/powercut/README.md"]
            .map(str::to_owned)
            .into();
    for folder in ["docs", "docs/safety"] {
        for entry in std::fs::read_dir(root().join(folder)).expect("a directory") {
            let name = entry.expect("an entry").file_name().into_string().expect("text");
            if [".md", ".yaml"].iter().any(|end| name.ends_with(end)) {
                paths.push(format!("{folder}/{name}"));
            }
        }
    }
    paths.sort();
    let read = |path: String| {
        let text = std::fs::read_to_string(root().join(&path)).expect("text");
        (path, text)
    };
    paths.into_iter().map(read).collect()
}

/// What a document links to in this repository, without the part behind `#`.
fn links(text: &str) -> Vec<&str> {
    text.split("](")
        .skip(1)
        .filter_map(|rest| rest.split_once(')'))
        .filter_map(|(link, _)| link.split('#').next())
        .filter(|link| !link.is_empty() && !link.contains("://"))
        .collect()
}

#[test]
fn links_between_documents_lead_somewhere() {
    for (path, text) in documents() {
        let folder = root().join(&path).parent().expect("a directory").to_owned();
        for link in links(&text) {
            assert!(folder.join(link).exists(), "{path} links to {link}, which is not there");
        }
    }
}

#[test]
fn the_index_lists_every_document() {
    let index = std::fs::read_to_string(root().join("docs/README.md")).expect("the index");
    let listed: Vec<PathBuf> = links(&index)
        .into_iter()
        .map(|link| root().join("docs").join(link).canonicalize().expect("a document"))
        .collect();
    for (path, _) in documents().iter().filter(|(path, _)| path != "docs/README.md") {
        let document = root().join(path).canonicalize().expect("a document");
        assert!(listed.contains(&document), "docs/README.md does not list {path}");
    }
    for line in index.lines().filter(|line| line.starts_with(|c: char| c.is_ascii_digit())) {
        assert!(line.ends_with('?'), "which question does it answer? {line}");
    }
}

#[test]
fn the_first_screen_of_the_readme_says_what_it_is_and_is_not() {
    let readme = std::fs::read_to_string(root().join("README.md")).expect("the README");
    let screen: Vec<&str> = readme.lines().take(40).collect();
    let screen = screen.join("\n");
    for part in ["**What it is.**", "**Who it is for.**", "**What it promises**", "**What it does not do.**"]
    {
        assert!(screen.contains(part), "{part} is not in the first 40 lines of README.md");
    }
    assert!(screen.contains("\"lost\":0"), "the proof is not in the first 40 lines of README.md");
}

/// Every event code that the product can raise has its row in the runbook's index.
#[test]
fn the_runbook_explains_every_event_code() {
    // The prefixes of event codes with a dot; other codes have one word.
    let about = [
        "cert",
        "clock",
        "folder",
        "hub",
        "index",
        "key",
        "lane",
        "link",
        "numbers",
        "pruned",
        "quarantine",
        "store",
        "tail",
        "epoch",
    ];
    let words = ["damaged", "diverged", "held", "hole", "refused", "released", "salvaged", "twin", "void"]
        .map(str::to_owned);
    let mut codes: Vec<String> = words.into();
    // The names of configuration keys look the same.
    for (_, code) in product().iter().filter(|(name, _)| !name.contains("config")) {
        for literal in code.split('"') {
            let is_code = literal.split_once('.').is_some_and(|(subject, what)| {
                literal != "folder.transaction" // A CloudEvents type.
                    && about.contains(&subject)
                    && !what.is_empty()
                    && what != "rs"
                    && what.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')
            });
            if is_code && !codes.iter().any(|known| known == literal) {
                codes.push(literal.to_owned());
            }
        }
    }
    assert!(codes.len() > 30, "only {codes:?} were found");
    let runbook = std::fs::read_to_string(root().join("docs/runbook.md")).expect("the runbook");
    let index: Vec<&str> = runbook
        .lines()
        .skip_while(|line| *line != "## Find a code")
        .take_while(|line| !line.starts_with("## `"))
        .collect();
    for code in codes {
        assert!(
            index.iter().any(|line| line.starts_with("| `")
                && line.split(" | ").next().is_some_and(|cell| cell.contains(&format!("`{code}`")))),
            "docs/runbook.md, \"Find a code\", does not explain {code}"
        );
    }
}

/// A starting child process holds a copy of every lock of this process until it runs its own code, and the outbox's
/// tests close a store and reopen it at once.
#[test]
fn no_test_of_the_outbox_starts_a_process() {
    for path in sources(&root().join("src/outbox")) {
        let code = std::fs::read_to_string(&path).expect("text");
        assert!(!code.contains("Command::new("), "{} starts a process", path.display());
    }
}

/// The test programs with more than one file: the files below each, with their text.
fn test_programs() -> Vec<(&'static str, Vec<(PathBuf, String)>)> {
    ["model", "gateway", "pipeline"]
        .map(|program| {
            let files: Vec<_> = sources(&root().join("tests").join(program))
                .into_iter()
                .map(|path| (path.clone(), std::fs::read_to_string(path).expect("text")))
                .collect();
            assert!(files.len() > 8, "the files of tests/{program} were not found");
            (program, files)
        })
        .into()
}

/// The compiler does not report a file that no `mod` names: its tests would not run, and nobody would notice.
#[test]
fn every_test_file_belongs_to_its_program() {
    for (program, files) in test_programs() {
        for (path, _) in &files {
            let name = path.file_stem().expect("a name").to_string_lossy();
            let parent = path.parent().expect("a directory");
            let (module, head) = match name.as_ref() {
                "main" => continue,
                "mod" => {
                    (parent.file_name().expect("a name").to_string_lossy(), parent.with_file_name("main.rs"))
                }
                _ if parent.join("main.rs").exists() => (name, parent.join("main.rs")),
                _ => (name, parent.join("mod.rs")),
            };
            let text = files.iter().find(|(path, _)| *path == head).map_or("", |(_, text)| text.as_str());
            let named = text.lines().any(|line| {
                line.trim_start_matches("pub(crate) ").trim_start_matches("pub ") == format!("mod {module};")
            });
            assert!(
                named,
                "tests/{program}: {} is in no program: name it in {}",
                path.display(),
                head.display()
            );
        }
    }
}

/// Tests of one program are threads of one process: see the comments at the top of `tests/*/main.rs`.
#[test]
fn tests_leave_their_own_process_alone() {
    for (program, files) in test_programs() {
        for (path, code) in files {
            for forbidden in
                ["set_var(", "remove_var(", "set_current_dir(", "umask(", "set_global_default(", "set_hook("]
            {
                assert!(!code.contains(forbidden), "{} has {forbidden}", path.display());
            }
            let starts = code.contains("Command::new(") || code.contains("harness");
            assert!(
                program != "model" || !starts,
                "{} starts a process: it belongs elsewhere",
                path.display()
            );
        }
    }
}

/// Text that people read under stress: string literals, and the help of the command lines.
fn printed_lines() -> Vec<(String, String)> {
    let mut lines = Vec::new();
    for (name, code) in product() {
        for line in code.lines().map(str::trim) {
            let help = line.starts_with("///") && name.contains("cli/");
            if help || (!line.starts_with("//") && line.contains('"')) {
                lines.push((name.clone(), line.to_lowercase()));
            }
        }
    }
    lines
}

/// They puzzle a reader at three in the morning; next to each is what an engineer says.
#[test]
fn what_is_printed_is_plain_english() {
    const NOT_BUT: [(&str, &str); 17] = [
        ("ends well", "exits 0"),
        (" durable", "on stable storage"),
        ("how the daemon is", "the daemon's status"),
        ("lane that stands", "stalled lane"),
        ("not to be had", "can no longer be read"),
        ("come round", "is not responding"),
        ("what is no file", "not a regular file"),
        ("speaks no tls that", "no TLS version or cipher suite in common"),
        ("is meant so", "that is deliberate"),
        ("made anew", "recreated"),
        ("looked at", "checked"),
        ("goes on", "continues"),
        ("is told", "receives"),
        ("has trouble", "fails"),
        ("a fault of this program", "a bug in this program"),
        ("what waits", "waiting transactions"),
        ("what is lost", "lost records"),
    ];
    let lines = printed_lines();
    assert!(lines.len() > 1_000, "the texts were not found");
    let mut found = Vec::new();
    for (name, line) in lines {
        for (not, but) in NOT_BUT.iter().filter(|(not, _)| line.contains(not)) {
            found.push(format!("src/{name}: not {not:?} but {but:?}: {line}"));
        }
    }
    assert!(found.is_empty(), "{found:#?}");
}
