//! The manifests: why each dependency is there, that somebody uses it, and which half of the project a target needs.

use std::path::PathBuf;

use crate::structure::IMPORTS;
use crate::{root, sources};

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).expect("a manifest")
}

/// Every `NAME.workspace = true` and `NAME = ...` below a heading of dependencies.
fn dependencies(manifest: &str) -> Vec<(&str, &str)> {
    let mut heading = "";
    let mut found = Vec::new();
    for line in manifest.lines() {
        if line.starts_with('[') {
            heading = line;
        } else if heading.ends_with("dependencies]") && line.contains(" = ") && !line.starts_with('#') {
            found.push((heading, line));
        }
    }
    found
}

#[test]
fn every_dependency_says_why_it_is_there() {
    let manifest = read("Cargo.toml");
    let listed: Vec<&str> = dependencies(&manifest)
        .into_iter()
        .filter(|(heading, _)| *heading == "[workspace.dependencies]")
        .map(|(_, line)| line)
        .collect();
    assert!(listed.len() > 30, "the dependencies were not found");
    for line in listed {
        assert!(line.contains("# "), "no reason: {line}");
    }
    // All others take a dependency from that list, which has the reason.
    let mut others = vec![String::from("Cargo.toml"), String::from("examples/Cargo.toml")];
    others.extend(IMPORTS.map(|(name, _)| format!("src/{name}/Cargo.toml")));
    for path in others {
        let manifest = read(&path);
        for (heading, line) in dependencies(&manifest) {
            let taken = line.contains("workspace = true") || heading == "[workspace.dependencies]";
            assert!(taken, "{path}: {line} is not taken from the workspace");
        }
    }
}

/// The manifests, each with the folders or files of its library or programs, and those of its tests.
fn crates() -> Vec<(String, Vec<String>, Vec<String>)> {
    let mut crates = vec![
        (
            String::from("Cargo.toml"),
            vec![String::from("src/bin")],
            ["tests", "benches", "examples/outage/proof.rs"].map(str::to_owned).into(),
        ),
        (String::from("examples/Cargo.toml"), Vec::new(), vec![String::from("examples")]),
    ];
    crates.extend(IMPORTS.map(|(name, _)| {
        let folder = format!("src/{name}");
        (format!("{folder}/Cargo.toml"), vec![folder.clone()], vec![folder])
    }));
    crates
}

/// What the compiler sees of these folders and files; without what follows `#[cfg(test)]` unless tests are asked for.
fn code(paths: &[String], tests: bool) -> String {
    let mut files: Vec<PathBuf> = Vec::new();
    for path in paths {
        let path = root().join(path);
        if path.is_dir() { files.extend(sources(&path)) } else { files.push(path) }
    }
    let mut code = String::new();
    for path in files {
        // The rig is a workspace of its own; only its workloads are built here. This program only names crates.
        let name = path.strip_prefix(root()).expect("below the root").display().to_string();
        if name.starts_with("tests/powercut/src") || name.starts_with("tests/tidy") {
            continue;
        }
        let text = std::fs::read_to_string(&path).expect("text");
        let all = tests || !name.ends_with("tests.rs");
        let product = text.split("\n#[cfg(test)]\nmod tests {").next().unwrap_or_default();
        let seen = if tests { &text } else { product };
        for line in seen.lines().filter(|line| all && !line.trim_start().starts_with("//")) {
            code.push_str(line);
            code.push('\n');
        }
    }
    code
}

/// Whether code names this crate: in a path, in a `use`, or as serde's `with`.
fn names(code: &str, dependency: &str) -> bool {
    let name = dependency.replace('-', "_");
    code.match_indices(&name).any(|(at, _)| {
        let (before, after) = (&code[..at], &code[at + name.len()..]);
        let begins = !before.ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':');
        let path = after.starts_with("::") || after.starts_with(" as ");
        begins && (path || (after.starts_with('"') && before.ends_with("with = \"")))
    })
}

#[test]
fn every_dependency_is_used() {
    let mut unused = Vec::new();
    let mut all = 0;
    for (path, product, tests) in crates() {
        let (product, tests) = (code(&product, false), code(&tests, true));
        for (heading, line) in dependencies(&read(&path)) {
            let dependency = line.split(['.', ' ']).next().expect("a name");
            let code = match heading {
                "[dependencies]" => &product,
                "[dev-dependencies]" => &tests,
                _ => continue,
            };
            all += 1;
            if !names(code, dependency) {
                unused.push(format!("{path}: {heading} {dependency}"));
            }
        }
    }
    assert!(all > 100, "the dependencies were not found");
    assert!(unused.is_empty(), "nobody uses these: {unused:#?}");
    let manifests: Vec<String> = crates().iter().map(|(path, ..)| read(path)).collect();
    for (heading, line) in dependencies(&manifests[0]) {
        let dependency = line.split(['.', ' ']).next().expect("a name");
        let taken = format!("{dependency}.workspace = true");
        let inline = format!("{dependency} = {{ workspace = true");
        let used = manifests.iter().any(|manifest| {
            manifest.lines().any(|line| line.starts_with(&taken) || line.starts_with(&inline))
        });
        assert!(used || heading != "[workspace.dependencies]", "no crate takes {dependency}");
    }
}

/// Either half is built without the other: a target that names its needs is left out, one that does not breaks the build.
#[test]
fn every_target_says_which_half_it_needs() {
    let manifest = read("Cargo.toml");
    let mut targets = 0;
    for section in manifest.split("\n\n").filter(|section| section.contains("[[")) {
        targets += 1;
        assert!(
            section.contains("\nrequired-features = ["),
            "{section}\ndoes not say which features it needs"
        );
    }
    assert!(targets > 10, "the targets were not found");
}
