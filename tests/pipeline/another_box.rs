//! Another box, another key, on the real programs: a rotation, a store that moves to new hardware, a copy that runs twice, a key
//! that is lost and found again. The verdict is that of `harness::road`: once, in order, byte for byte.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use crate::harness;
use crate::harness::road::{PATIENCE, Road, copy_directory};
use crate::harness::senders::{connect, exchange, message, positive};
use crate::harness::site::SiteOptions;
use crate::harness::{Fault, eventually_blocking};

fn small_segments() -> SiteOptions {
    SiteOptions {
        outbox: "segment_records = 100\nmin_free_bytes = 1_048_576\n".into(),
        ..SiteOptions::default()
    }
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

fn gateway(road: &Road, words: &[&str]) -> String {
    let output = road.site.gateway_command(words);
    assert!(output.status.success(), "{words:?}: {}", text(&output));
    text(&output)
}

fn refused(road: &Road, words: &[&str], code: i32, with: &str) {
    let output = road.site.gateway_command(words);
    let said = text(&output);
    assert_eq!(output.status.code(), Some(code), "{words:?}: {said}");
    assert!(said.contains(with), "{words:?}: {with:?} is not said: {said}");
}

/// Every file below a directory with its content.
fn content(directory: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    for entry in std::fs::read_dir(directory).expect("listed") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            files.extend(content(&path));
        } else if path.is_file() {
            files.insert(path.clone(), std::fs::read(&path).expect("read"));
        }
    }
    files
}

/// The same command is refused, and nothing below the data directory is written.
fn refused_and_untouched(road: &Road, words: &[&str], code: i32, with: &str) {
    let before = content(&road.site.path("data"));
    refused(road, words, code, with);
    assert!(content(&road.site.path("data")) == before, "{words:?}: something was written");
}

fn number(road: &Road, key: &str) -> u64 {
    road.site.status().expect("a status")[key].as_u64().expect("a number")
}

fn send_one(road: &Road, message: &[u8]) {
    let mut stream = connect(road.site.door).expect("the door");
    assert!(positive(&exchange(&mut stream, message).expect("an answer")));
}

// ---- another key -----------------------------------------------------------------------------------------------------

#[test]
fn after_a_rotation_the_old_backlog_is_delivered_and_its_repetitions_are_known() {
    let mut road = Road::start(small_segments());
    let mut safe = road.backlog(60);
    let first_key = road.site.path("outbox.key");
    let before = std::fs::read_to_string(&first_key).expect("the key");
    // While it runs: nothing changes until the next start.
    let said = gateway(&road, &["key", "rotate"]);
    let ids: Vec<String> = {
        let list = gateway(&road, &["key", "list"]);
        list.lines().map(|line| line.split(':').next().expect("an id").to_owned()).collect()
    };
    let [new, old] = ids.as_slice() else { panic!("not two keys: {ids:?}") };
    assert!(said.contains(new) && said.contains(old) && said.contains("central IT"), "{said}");
    refused(&road, &["key", "rotate"], 65, "restart");
    refused(&road, &["key", "drop", old], 65, "was not removed");
    assert!(gateway(&road, &["key", "list"]).contains("nothing is sealed with it yet"));
    assert!(std::fs::read_to_string(&first_key).expect("the keys").ends_with(&before), "the old key is gone");

    road.site.kill_gateway();
    road.site.start_gateway();
    // Sender 0's sixty are known, and more comes.
    for body in &safe[0] {
        send_one(&road, body);
    }
    assert_eq!(number(&road, "accepted_total"), 240);
    for (sender, mut more) in safe.iter_mut().zip(road.more_from(4, 60..100)) {
        sender.append(&mut more);
    }
    let status = road.site.status().expect("a status");
    assert_eq!(status["outbox_keys"][0]["id"], **old, "{status}");
    assert_eq!(status["outbox_keys"][0]["needed_by"][0], "positions 1 to 240 of lane clinical", "{status}");
    assert_eq!(
        (&status["outbox_keys"][1]["id"], &status["outbox_keys"][1]["present"]),
        (&new.as_str().into(), &true.into())
    );
    assert!(gateway(&road, &["verify"]).contains("400 verified, 0 wrong, 0 missing"));
    gateway(&road, &["export", "--to", &road.site.path("both.age").display().to_string()]);
    refused(&road, &["key", "drop", old], 65, "positions 1 to 240 of lane clinical");

    // The old key is destroyed too early, or a copy from before the rotation is brought back: refused by name.
    road.site.stop_gateway();
    let both = std::fs::read(&first_key).expect("the keys");
    let new_alone = String::from_utf8(both.clone()).expect("text").lines().next().expect("a line").to_owned();
    std::fs::write(&first_key, new_alone).expect("written");
    refused_and_untouched(&road, &["run"], 78, old);
    std::fs::write(&first_key, &before).expect("written");
    refused_and_untouched(&road, &["run"], 78, new);
    std::fs::write(&first_key, &both).expect("written");
    road.site.start_gateway();
    road.proxy.set(Fault::Pass);
    road.judge(&safe);
}

// ---- another box -----------------------------------------------------------------------------------------------------

/// A second data directory, and a configuration that names it: the new box. It keeps the first one's key file.
fn new_box(road: &Road) -> (PathBuf, PathBuf) {
    let (old, new) = (road.site.path("data"), road.site.path("new-data"));
    let config = road.site.path("old.toml");
    let now = std::fs::read_to_string(road.site.gateway_config()).expect("gateway.toml");
    std::fs::copy(road.site.gateway_config(), &config).expect("copied");
    let moved = now.replacen(&format!("{old:?}"), &format!("{new:?}"), 1);
    assert_ne!(now, moved);
    std::fs::write(road.site.gateway_config(), moved).expect("written");
    (new, config)
}

fn with_config(config: &Path, words: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_practice-gateway"));
    command.args(words).arg("--config").arg(config).stdin(Stdio::null()).output().expect("run")
}

#[test]
fn a_store_moves_to_another_box_whole_or_not_at_all() {
    let mut road = Road::start(small_segments());
    let mut safe = road.more_from(4, 0..50);
    road.site.wait_for("confirmed_total", 200, PATIENCE);
    road.cut_off();
    for (sender, mut more) in safe.iter_mut().zip(road.more_from(4, 50..120)) {
        sender.append(&mut more);
    }
    refused(&road, &["outbox", "retire"], 75, "in use");
    road.site.stop_gateway();
    refused(&road, &["outbox", "adopt"], 65, "not retired");
    let said = gateway(&road, &["outbox", "retire"]);
    assert!(said.contains("accepted 480, confirmed 200, waiting 280, damaged 0"), "{said}");
    let word =
        said.split("check word ").nth(1).expect("a check word").split_whitespace().next().expect("a word");
    let bundle = road.site.path("retired.age").display().to_string();
    for words in [&["run"][..], &["export", "--to", &bundle], &["check"]] {
        refused_and_untouched(&road, words, 78, "retired");
    }
    refused_and_untouched(&road, &["run"], 78, "never run again");
    refused_and_untouched(&road, &["outbox", "adopt"], 65, "the retired store itself");
    assert!(gateway(&road, &["outbox", "retire"]).contains(word), "it says the same again");

    let (data, old_config) = new_box(&road);
    copy_directory(&road.site.path("data"), &data);
    refused(&road, &["run"], 78, "adopt");
    let whole = content(&data);
    // Each of these copies is refused, and what is wrong is named.
    for name in ["outbox/sidecar", "outbox/marks", "outbox/segments/clinical/0000000003/db", "uplink/session"]
    {
        let path = data.join(name);
        let bytes = whole[&path].clone();
        std::fs::remove_file(&path).expect("removed");
        refused(&road, &["outbox", "adopt"], 65, &format!("{name} is missing"));
        std::fs::write(&path, &bytes[..bytes.len() / 2]).expect("written");
        refused(&road, &["outbox", "adopt"], 65, &format!("{name} has "));
        let mut flipped = bytes.clone();
        flipped[bytes.len() / 2] ^= 1;
        std::fs::write(&path, flipped).expect("written");
        refused(&road, &["outbox", "adopt"], 65, &format!("{name} has other bytes"));
        std::fs::write(&path, bytes).expect("written");
    }
    std::fs::write(data.join("outbox/marks.old"), "x").expect("written");
    refused(&road, &["outbox", "adopt"], 65, "outbox/marks.old was not there");
    std::fs::remove_file(data.join("outbox/marks.old")).expect("removed");
    let manifest = std::fs::read(data.join("outbox/MANIFEST")).expect("the list");
    std::fs::remove_file(data.join("outbox/MANIFEST")).expect("removed");
    refused(&road, &["outbox", "adopt"], 65, "MANIFEST is missing");
    std::fs::write(data.join("outbox/MANIFEST"), manifest).expect("written");
    let key = road.site.path("outbox.key");
    let right = std::fs::read(&key).expect("the key");
    std::fs::write(&key, "ab".repeat(32)).expect("written");
    refused(&road, &["outbox", "adopt"], 78, "needs key");
    std::fs::write(&key, right).expect("written");
    refused(&road, &["run"], 78, "adopt");

    let said = gateway(&road, &["outbox", "adopt"]);
    assert!(said.contains(word) && said.contains("accepted 480, confirmed 200, waiting 280"), "{said}");
    refused(&road, &["outbox", "adopt"], 65, "not retired");
    road.site.start_gateway();
    for (sender, mut more) in safe.iter_mut().zip(road.more_from(4, 120..130)) {
        sender.append(&mut more);
    }
    // What its senders repeat is known on the new box, too.
    send_one(&road, &safe[2][60]);
    assert_eq!(number(&road, "accepted_total"), 520);
    let before = content(&road.site.path("data"));
    let output = with_config(&old_config, &["run"]);
    assert_eq!(output.status.code(), Some(78), "{}", text(&output));
    assert!(content(&road.site.path("data")) == before, "the old box wrote something");
    road.proxy.set(Fault::Pass);
    road.judge(&safe);
}

#[test]
fn a_move_is_given_up_only_by_a_person_who_was_warned() {
    let mut road = Road::start(small_segments());
    let safe = road.backlog(20);
    road.site.stop_gateway();
    gateway(&road, &["outbox", "retire"]);
    refused_and_untouched(&road, &["outbox", "retire", "--undo"], 65, "diverge");
    refused_and_untouched(&road, &["run"], 78, "retired");
    gateway(&road, &["outbox", "retire", "--undo", "--yes"]);
    refused(&road, &["outbox", "retire", "--undo", "--yes"], 65, "not retired");
    road.site.start_gateway();
    road.proxy.set(Fault::Pass);
    road.judge(&safe);
}

/// The verdict where more than one store has accepted.
fn at_the_hub(mut road: Road, all: &[Vec<Vec<u8>>]) {
    road.site.stop();
    assert!(road.books.balance() > 0);
    let verified = road.site.hub_command(&["verify"]);
    assert!(verified.status.success(), "{}", text(&verified));
    let proof = harness::proof::Proof::of(&road.site.store(), all).expect("the hub's files");
    println!("{}", proof.json());
    assert_eq!(
        (proof.lost, proof.repeated, proof.out_of_order, proof.chain_ok),
        (0, 0, 0, true),
        "{proof:?}"
    );
}

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn two_boxes_with_one_store_are_loud_and_lose_nothing() {
    let mut road = Road::start(small_segments());
    let safe = road.more_from(4, 0..30);
    road.site.wait_for("confirmed_total", 120, PATIENCE);
    road.site.stop_gateway();
    // Copied without retiring it, and both are started.
    let (data, old_config) = new_box(&road);
    copy_directory(&road.site.path("data"), &data);
    let door = harness::ports::reserve();
    let twin_text = std::fs::read_to_string(&old_config)
        .expect("the configuration")
        .replace(&road.site.door.to_string(), &format!("127.0.0.1:{door}"))
        .replace("control.sock", "twin.sock");
    std::fs::write(&old_config, twin_text).expect("written");
    road.site.start_gateway();
    let log = std::fs::File::create(road.site.path("twin.log")).expect("a log");
    let twin = Running(
        Command::new(env!("CARGO_BIN_EXE_practice-gateway"))
            .args(["run", "--config"])
            .arg(&old_config)
            .stdout(log.try_clone().expect("a log"))
            .stderr(log)
            .spawn()
            .expect("started"),
    );
    // Mosquitto 2.0 does not tell the one that it ends; the centre sees the sessions go back.
    eventually_blocking("the centre to see two boxes", PATIENCE, || {
        road.site.log("hub").contains("its store runs on two boxes").then_some(())
    });
    eventually_blocking("the fleet's list to say it", PATIENCE, || {
        text(&road.site.hub_command(&["list"])).contains("on two boxes?").then_some(())
    });
    // Both accept, each under the same numbers.
    let here = road.more_from(2, 30..50);
    let mut stream = eventually_blocking("the twin's door", PATIENCE, || {
        connect(std::net::SocketAddr::from(([127, 0, 0, 1], door))).ok()
    });
    let mut there = Vec::new();
    for number in 1..=20 {
        let body = message(77, number, 30);
        assert!(positive(&exchange(&mut stream, &body).expect("an answer")));
        there.push(body);
    }
    eventually_blocking("the fork to be told", PATIENCE, || {
        road.books.balance();
        (!road.books.events("diverged").is_empty()).then_some(())
    });
    // A person stops one of them when it has delivered, and the other goes on.
    let waiting = || {
        let output = with_config(&old_config, &["status", "--json"]);
        let status: serde_json::Value = serde_json::from_slice(&output.stdout).ok()?;
        (status["waiting"] == 0).then_some(())
    };
    eventually_blocking("the twin to have delivered", PATIENCE, waiting);
    drop(twin);
    let mut all = safe;
    for (sender, mut more) in all.iter_mut().zip(here) {
        sender.append(&mut more);
    }
    all.push(there);
    eventually_blocking("everything to be confirmed", PATIENCE, || {
        (road.site.status()?["waiting"] == 0).then_some(())
    });
    send_one(&road, &message(98, 1, 10));
    all.push(vec![message(98, 1, 10)]);
    road.site.wait_for("confirmed_total", 161, PATIENCE);
    at_the_hub(road, &all);
}

// ---- a lost key ------------------------------------------------------------------------------------------------------

#[test]
fn a_lost_key_costs_what_is_named_and_nothing_when_it_is_found() {
    let mut road = Road::start(small_segments());
    let mut safe = road.more_from(4, 0..50);
    road.site.wait_for("confirmed_total", 200, PATIENCE);
    road.cut_off();
    for (sender, mut more) in safe.iter_mut().zip(road.more_from(4, 50..110)) {
        sender.append(&mut more);
    }
    refused(&road, &["outbox", "set-aside", "--yes"], 65, "nothing is lost");
    // Stopped, so that the marks, which are written behind, tell what was confirmed last.
    road.site.stop_gateway();
    refused(&road, &["outbox", "set-aside", "--yes"], 65, "nothing is lost");
    let (key, escrow) = (road.site.path("outbox.key"), road.site.path("escrow.key"));
    std::fs::rename(&key, &escrow).expect("lost");
    refused_and_untouched(&road, &["run"], 78, "key");
    // Somebody makes a new one in good faith.
    gateway(&road, &["init"]);
    refused_and_untouched(&road, &["run"], 78, "needs key");
    std::fs::remove_file(&key).expect("removed");
    let before = content(&road.site.path("data"));
    let said = gateway(&road, &["outbox", "set-aside"]);
    assert!(
        said.contains("440 accepted, 200 confirmed by the hub; 240 cannot be read, positions 201 to 440"),
        "{said}"
    );
    assert!(content(&road.site.path("data")) == before, "only to be told, and something was written");

    let said = gateway(&road, &["outbox", "set-aside", "--yes"]);
    assert!(said.contains("240 cannot be read") && said.contains("central IT"), "{said}");
    let aside = std::fs::read_dir(road.site.path("data"))
        .expect("listed")
        .map(|entry| entry.expect("an entry").path())
        .find(|path| path.to_string_lossy().contains("outbox.set-aside-"))
        .expect("it is set aside");
    for (path, bytes) in &before {
        let Ok(name) = path.strip_prefix(road.site.path("data").join("outbox")) else { continue };
        assert!(
            std::fs::read(aside.join(name)).is_ok_and(|now| now == *bytes),
            "{} was lost",
            name.display()
        );
    }
    road.site.start_gateway();
    road.proxy.set(Fault::Pass);
    // The centre is told how many of which lane, also after a restart.
    for times in 1..=2 {
        let events = eventually_blocking("the loss to be told", PATIENCE, || {
            Some(road.books.events("store.set_aside")).filter(|events| events.len() >= times)
        });
        assert!(
            events[times - 1].contains("lane clinical: 240 transactions, positions 201 to 440"),
            "{events:?}"
        );
        if times == 1 {
            road.site.kill_gateway();
            road.site.start_gateway();
        }
    }
    // The surgery goes on, from position 1 of a new epoch.
    for sender in 4..8 {
        let new: Vec<_> = (1..=25).map(|number| message(sender, number, 30)).collect();
        new.iter().for_each(|body| send_one(&road, body));
        safe.push(new);
    }
    road.site.wait_for("confirmed_total", 100, PATIENCE);

    // The key is found.
    let (bundle, store) = (road.site.path("found.age").display().to_string(), aside.display().to_string());
    refused(&road, &["export", "--store", &store, "--to", &bundle], 78, "needs key");
    let escrow = escrow.display().to_string();
    let said = gateway(&road, &["export", "--store", &store, "--key-file", &escrow, "--to", &bundle]);
    assert!(said.contains("240 transactions"), "{said}");
    for expected in ["240 new, 0 already stored", "0 new, 240 already stored"] {
        let imported = road.site.hub_command(&["import", &bundle]);
        assert!(imported.status.success() && text(&imported).contains(expected), "{}", text(&imported));
    }
    send_one(&road, &message(98, 1, 10));
    safe.push(vec![message(98, 1, 10)]);
    road.site.wait_for("confirmed_total", 101, PATIENCE);
    at_the_hub(road, &safe);
}
