//! The structure of the code: who imports whom, how long a function may be, who may rename a file.

use crate::{product, root};

/// Each crate, and which of ours it may import (docs/architecture.md, "Crates").
pub(crate) const IMPORTS: [(&str, &[&str]); 8] = [
    ("core", &[]),
    ("durable", &[]),
    ("host", &["core", "durable"]),
    ("link", &["core", "durable", "host"]),
    ("bundle", &["core", "durable"]),
    ("outbox", &["core", "durable"]),
    ("gateway", &["core", "durable", "host", "link", "bundle", "outbox"]),
    ("hub", &["core", "durable", "host", "link", "bundle"]),
];

#[test]
fn crates_import_what_the_map_allows() {
    for (name, allowed) in IMPORTS {
        let manifest = std::fs::read_to_string(root().join("src").join(name).join("Cargo.toml"))
            .expect("the crate's manifest");
        for (other, _) in IMPORTS.iter().filter(|(other, _)| *other != name) {
            let imports = manifest.lines().any(|line| line.starts_with(&format!("pgw-{other}")));
            assert!(!imports || allowed.contains(other), "src/{name}/Cargo.toml imports {other}");
        }
        assert!(name == "outbox" || !manifest.contains("sled"), "src/{name}/Cargo.toml has sled");
    }
    // A new folder of src/ needs a row.
    for entry in std::fs::read_dir(root().join("src")).expect("src") {
        let folder = entry.expect("an entry").file_name().into_string().expect("text");
        assert!(
            folder == "bin" || IMPORTS.iter().any(|(name, _)| *name == folder),
            "src/{folder} has no row"
        );
    }
}

/// A module of a crate: its path from the crate's root, empty for the root itself.
type Module = Vec<String>;

fn module(name: &str) -> (String, Module) {
    let (folder, path) = name.split_once('/').expect("a crate");
    let path = path.strip_suffix(".rs").expect("a Rust file");
    let path = path.strip_suffix("/mod").unwrap_or(path);
    let parts = if path == "lib" { Vec::new() } else { path.split('/').map(str::to_owned).collect() };
    (folder.to_owned(), parts)
}

/// The paths that begin with `crate::`, `super::` or `self::`, groups taken apart.
fn paths(code: &str) -> Vec<String> {
    let code: String =
        code.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n");
    let mut found = Vec::new();
    for word in ["crate::", "super::", "self::"] {
        for (at, _) in code.match_indices(word) {
            let alone =
                !code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':' || c == '$');
            if alone {
                take_apart(&code[at..], String::new(), &mut found);
            }
        }
    }
    found
}

/// One path, or each of `a::{b, c::{d, e}}`; returns what follows it.
fn take_apart<'a>(text: &'a str, before: String, found: &mut Vec<String>) -> &'a str {
    let end = text.find(|c: char| !(c.is_alphanumeric() || c == '_' || c == ':')).unwrap_or(text.len());
    let path = format!("{before}{}", &text[..end]);
    let mut rest = &text[end..];
    if !path.ends_with("::") || !rest.starts_with('{') {
        found.push(path);
        return rest;
    }
    rest = rest[1..].trim_start();
    while !rest.starts_with('}') && !rest.is_empty() {
        let after = take_apart(rest, path.clone(), found).trim_start();
        let after = after.strip_prefix("as ").map_or(after, |renamed| {
            renamed.trim_start_matches(|c: char| c.is_alphanumeric() || c == '_').trim_start()
        });
        let after = after.strip_prefix(',').unwrap_or(after).trim_start();
        if after.len() == rest.len() {
            break;
        }
        rest = after;
    }
    rest.strip_prefix('}').unwrap_or(rest)
}

/// Who imports whom within a crate, reported for the two siblings under their common folder.
fn imports_between_siblings() -> Vec<(String, String, String)> {
    let files: Vec<(String, Module, String)> = product()
        .into_iter()
        .filter(|(name, _)| !name.starts_with("bin/"))
        .map(|(name, code)| {
            let (folder, path) = module(&name);
            (folder, path, code)
        })
        .collect();
    let mut edges = Vec::new();
    for (folder, from, code) in &files {
        for path in paths(code) {
            let mut parts: Vec<&str> = path.split("::").collect();
            let mut place: Vec<&str> =
                if parts[0] == "crate" { Vec::new() } else { from.iter().map(String::as_str).collect() };
            while let Some(step) = parts.first().copied().filter(|p| ["crate", "super", "self"].contains(p)) {
                if step == "super" {
                    place.pop();
                }
                parts.remove(0);
            }
            place.extend(parts);
            let to = files
                .iter()
                .filter(|(other, to, _)| {
                    other == folder && place.len() >= to.len() && place[..to.len()] == to[..]
                })
                .map(|(_, to, _)| to)
                .max_by_key(|to| to.len())
                .expect("the root");
            let shared = from.iter().zip(to).take_while(|(a, b)| a == b).count();
            if shared < from.len() && shared < to.len() {
                let above = [std::slice::from_ref(folder), &from[..shared]].concat().join("::");
                edges.push((above, from[shared].clone(), to[shared].clone()));
            }
        }
    }
    edges.sort();
    edges.dedup();
    assert!(edges.len() > 100, "the imports were not found");
    edges
}

/// Two siblings that import each other, directly or through others; a folder stands for everything in it.
#[test]
fn no_modules_import_each_other_in_a_circle() {
    /// Debts, which may only shrink: the folder, and the modules that are on a cycle in it.
    const DEBTS: &[(&str, &[&str])] = &[];
    let edges = imports_between_siblings();
    let mut circles = Vec::new();
    let mut folders: Vec<&str> = edges.iter().map(|(above, ..)| above.as_str()).collect();
    folders.dedup();
    for folder in folders {
        let mut reach: Vec<(&str, &str)> = edges
            .iter()
            .filter(|(above, ..)| above == folder)
            .map(|(_, from, to)| (from.as_str(), to.as_str()))
            .collect();
        loop {
            let further: Vec<(&str, &str)> = reach
                .iter()
                .flat_map(|(a, b)| reach.iter().filter(move |(c, _)| c == b).map(move |(_, d)| (*a, *d)))
                .filter(|pair| !reach.contains(pair))
                .collect();
            if further.is_empty() {
                break;
            }
            reach.extend(further);
            reach.sort_unstable();
            reach.dedup();
        }
        let circle: Vec<&str> = reach.iter().filter(|(a, b)| a == b).map(|(a, _)| *a).collect();
        let debt = DEBTS.iter().find(|(of, _)| *of == folder).map_or(&[][..], |(_, modules)| modules);
        circles.extend(circle.iter().filter(|module| !debt.contains(module)).map(|module| (folder, *module)));
        for module in debt {
            assert!(circle.contains(module), "{folder}: {module} lies on no circle: take it off the list");
        }
    }
    assert!(circles.is_empty(), "these lie on circles of imports: {circles:?}");
}

/// rustfmt puts a function's closing brace at the indentation of its `fn`.
fn functions(code: &str) -> Vec<(String, usize)> {
    let lines: Vec<&str> = code.lines().collect();
    let mut found = Vec::new();
    for (first, line) in lines.iter().enumerate() {
        let text = line.trim_start();
        let indent = line.len() - text.len();
        let Some((before, after)) = text.split_once("fn ") else { continue };
        let is_one = before.split_whitespace().all(|word| {
            ["pub", "const", "async", "unsafe", "extern", "\"C\""].contains(&word) || word.starts_with("pub(")
        });
        let end = format!("{}}}", " ".repeat(indent));
        let length = lines[first..].iter().position(|line| *line == end);
        if let (true, Some(length)) = (is_one && !text.ends_with('}') && !text.ends_with(';'), length) {
            let name: String = after.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            found.push((name, length + 1));
        }
    }
    found
}

#[test]
fn functions_are_short() {
    const LINES: usize = 70;
    /// Debts, which may only shrink: file, function, and the length that it must not grow beyond.
    const DEBTS: &[(&str, &str, usize)] = &[];
    let mut all = 0;
    let mut long = Vec::new();
    for (name, code) in product() {
        for (function, lines) in functions(&code) {
            all += 1;
            let debt = DEBTS.iter().find(|(file, of, _)| *file == name && *of == function);
            if lines > debt.map_or(LINES, |(_, _, most)| *most) {
                long.push((name.clone(), function, lines));
            }
        }
    }
    assert!(all > 1_000, "the functions were not found");
    assert!(long.is_empty(), "a reader cannot see all of these at once: {long:#?}");
    for (file, function, _) in DEBTS {
        let long = product().iter().any(|(name, code)| {
            name == file && functions(code).iter().any(|(of, lines)| of == function && *lines > LINES)
        });
        assert!(long, "src/{file}: {function} is short again: take it off the list of debts");
    }
}

/// Only `durable` gives files that must survive their names: elsewhere the sync of the file or of the directory gets forgotten.
#[test]
fn only_durable_renames() {
    /// Files that need not survive, with the reason.
    const NEED_NOT_LAST: &[(&str, &str)] = &[("host/control/server.rs", "a socket ends with its daemon")];
    let renames = |code: &str| {
        code.lines().any(|line| {
            !line.trim_start().starts_with("//")
                && ["fs::rename(", "renameat", "hard_link", "fs::linkat"]
                    .iter()
                    .any(|call| line.contains(call))
        })
    };
    let all: Vec<String> = product()
        .into_iter()
        .filter(|(name, code)| !name.starts_with("durable/") && renames(code))
        .map(|(name, _)| name)
        .collect();
    let others: Vec<&String> =
        all.iter().filter(|name| NEED_NOT_LAST.iter().all(|(of, _)| of != name)).collect();
    assert!(
        others.is_empty(),
        "durable::rename, replace, Replacement or NewFile name what must last, not {others:?}"
    );
    for (of, _) in NEED_NOT_LAST {
        assert!(all.iter().any(|name| name == of), "src/{of} renames nothing: take it off the list");
    }
}
