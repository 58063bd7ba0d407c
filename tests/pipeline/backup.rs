//! A gateway whose disk is full of confirmed transactions keeps them until the hub has a backup of them, and then
//! accepts again.

use std::path::{Path, PathBuf};

use crate::harness::eventually_blocking;
use crate::harness::pipeline::{PATIENCE, Pipeline, copy_directory};
use crate::harness::site::{Site, SiteOptions};

/// What `backup begin` has printed.
pub(crate) struct Begun {
    pub(crate) directory: PathBuf,
    pub(crate) digest: String,
}

/// Begins a backup.
pub(crate) fn begin(site: &Site, words: &[&str]) -> Begun {
    let begun = site.hub_command(&[&["backup", "begin"], words].concat());
    let text = String::from_utf8_lossy(&begun.stdout).into_owned();
    assert!(begun.status.success(), "{}", String::from_utf8_lossy(&begun.stderr));
    let printed = |key: &str, end: char| {
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(key))
            .unwrap_or_else(|| panic!("no {key}: {text}"));
        line.trim().split(end).next().unwrap().to_owned()
    };
    Begun { directory: printed("links ", ':').into(), digest: printed("digest ", ' ') }
}

/// Checks a copy, without the hub's configuration. Returns the digest that it prints.
pub(crate) fn check(site: &Site, copy: &Path) -> String {
    let key = std::fs::read_to_string(site.gateway_config()).unwrap();
    let key = key.split("public_key = \"").nth(1).unwrap().split('"').next().unwrap();
    let checked = std::process::Command::new(env!("CARGO_BIN_EXE_practice-hub"))
        .args(["--config", "/nowhere", "backup", "check", "--public-key", key])
        .arg(copy)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&checked.stdout).into_owned();
    assert!(checked.status.success(), "{text}{}", String::from_utf8_lossy(&checked.stderr));
    text.lines().find_map(|line| line.strip_prefix("digest ")).expect("a digest").trim().to_owned()
}

/// Submits a new file, 60 kB that do not compress. Returns the exit code.
fn submit(site: &Site, number: u64) -> Option<i32> {
    let mut state = number + 1;
    let body: Vec<u8> = std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 56) as u8
    })
    .take(60_000)
    .collect();
    let file = site.path("body");
    std::fs::write(&file, body).unwrap();
    let file = file.to_str().unwrap();
    site.gateway_command(&["submit", "--lane", "clinical", "--type", "opaque", file]).status.code()
}

#[test]
fn what_is_confirmed_is_let_go_of_early_only_when_the_hub_has_a_backup_of_it() {
    let outbox = "segment_records = 1000\nsegment_bytes = 1_048_576\nlimit_bytes = 16_777_216\n".to_owned();
    let mut pipeline = Pipeline::start(SiteOptions { outbox, ..SiteOptions::default() });
    let mut number = 0;
    let full = |number: &mut u64| {
        while submit(&pipeline.site, *number) == Some(0) {
            *number += 1;
            assert!(*number < 1_000, "16 MiB hold no 1,000 bodies of 60 kB");
        }
        assert_eq!(submit(&pipeline.site, *number), Some(75), "full means: try later");
    };
    full(&mut number);
    assert!(number > 20, "{number}");
    pipeline.site.wait_for("confirmed_total", number, PATIENCE);
    // All of it is at the hub, but still within its retention: the hub could be restored from a backup.
    let still_full = |number| {
        // The store is pruned every second, and the hub sends a receipt as soon as a backup is reported.
        let uptime = || pipeline.site.status()?["uptime_seconds"].as_f64();
        let from = uptime().unwrap();
        eventually_blocking("some time to pass", PATIENCE, || (uptime()? >= from + 8.0).then_some(()));
        assert_eq!(submit(&pipeline.site, number), Some(75), "{}", pipeline.site.log("gateway"));
    };
    still_full(number);
    let site = &pipeline.site;
    let code = |words: &[&str]| site.hub_command(&[&["backup"], words].concat()).status.code();
    assert_eq!(code(&["done"]), Some(64), "which copy?");
    assert_eq!(code(&["done", &"0".repeat(64)]), Some(65), "none was begun");
    let begun = begin(site, &[]);
    // An incomplete backup does not count.
    still_full(number);
    let copy = site.path("copy");
    copy_directory(&begun.directory, &copy);
    assert_eq!(code(&["check", begun.directory.to_str().unwrap()]), Some(65), "the links are no copy");
    assert_eq!(check(site, &copy), begun.digest);
    let refused = site.hub_command(&["backup", "done", &"0".repeat(64)]);
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(refused.status.code() == Some(65) && text.contains(&begun.digest), "{text}");
    assert_eq!(code(&["done", &begun.digest]), Some(0));
    assert!(!begun.directory.exists(), "the links are removed");
    eventually_blocking("the gateway to take more", PATIENCE, || {
        (submit(&pipeline.site, number) == Some(0)).then_some(())
    });
    number += 1;
    // The room is there before the log says why.
    eventually_blocking("the reason in the log", PATIENCE, || {
        pipeline.site.log("gateway").contains("pruned.early").then_some(())
    });
    pipeline.site.wait_for("confirmed_total", number, PATIENCE);
    // What came after the backup is not in it, and is kept.
    full(&mut number);
    pipeline.site.wait_for("confirmed_total", number, PATIENCE);
    still_full(number);
    let verified = pipeline.site.hub_command(&["verify"]);
    assert!(verified.status.success());
    let text = String::from_utf8_lossy(&verified.stdout).into_owned();
    assert!(text.contains(&format!("whole, {number} transactions")), "{text}");
    pipeline.site.stop();
    // Without a hub the commands do it themselves.
    let site = &pipeline.site;
    let links = site.path("links");
    let begun = begin(site, &[links.to_str().unwrap()]);
    assert_eq!(begun.directory, links);
    copy_directory(&begun.directory, &site.path("copy"));
    let done = site.hub_command(&["backup", "done", &check(site, &site.path("copy"))]);
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let word = std::fs::read_to_string(site.store().join("backup.json")).unwrap();
    assert!(word.contains(&format!("\"through\":{number}")), "{word}");
}
