//! A gateway whose disk is full of confirmed transactions keeps them until the hub has a backup of them, and then
//! accepts again.

use crate::harness::eventually_blocking;
use crate::harness::pipeline::{PATIENCE, Pipeline};
use crate::harness::site::{Site, SiteOptions};

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
    let backup = |words: &[&str]| {
        let mut all = vec!["backup"];
        all.extend(words);
        pipeline.site.hub_command(&all).status.code()
    };
    assert_eq!(backup(&["done"]), Some(65), "none was begun");
    let begin = pipeline.site.hub_command(&["backup", "begin"]);
    assert_eq!(
        (begin.status.code(), begin.stdout.starts_with(b"recorded how far 1 lanes are")),
        (Some(0), true)
    );
    // An incomplete backup does not count.
    still_full(number);
    assert_eq!(backup(&["done"]), Some(0));
    eventually_blocking("the gateway to take more", PATIENCE, || {
        (submit(&pipeline.site, number) == Some(0)).then_some(())
    });
    number += 1;
    assert!(pipeline.site.log("gateway").contains("pruned.early"), "and says so");
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
    let backup = |word| pipeline.site.hub_command(&["backup", word]).status.code();
    assert_eq!(backup("done"), Some(65), "none was begun");
    assert_eq!((backup("begin"), backup("done")), (Some(0), Some(0)));
    let word = std::fs::read_to_string(pipeline.site.store().join("backup.json")).unwrap();
    assert!(word.contains(&format!("\"through\":{number}")), "{word}");
}
