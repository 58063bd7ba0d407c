//! Moving to another box and replacing a key, on the real programs: a rotation, a store that moves to new hardware, a copy that runs
//! twice, a key that is lost and found again, another signing key. The oracle is that of `harness::pipeline`: once, in order,
//! byte for byte.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use crate::harness;
use crate::harness::pipeline::{PATIENCE, Pipeline, copy_directory};
use crate::harness::senders::{connect, exchange, message, positive};
use crate::harness::site::{SiteOptions, adds_up};
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

fn gateway(pipeline: &Pipeline, words: &[&str]) -> String {
    let output = pipeline.site.gateway_command(words);
    assert!(output.status.success(), "{words:?}: {}", text(&output));
    text(&output)
}

fn refused(pipeline: &Pipeline, words: &[&str], code: i32, with: &str) {
    let output = pipeline.site.gateway_command(words);
    let printed = text(&output);
    assert_eq!(output.status.code(), Some(code), "{words:?}: {printed}");
    assert!(printed.contains(with), "{words:?}: {with:?} is not said: {printed}");
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
fn refused_and_untouched(pipeline: &Pipeline, words: &[&str], code: i32, with: &str) {
    let before = content(&pipeline.site.path("data"));
    refused(pipeline, words, code, with);
    assert!(content(&pipeline.site.path("data")) == before, "{words:?}: something was written");
}

fn number(pipeline: &Pipeline, key: &str) -> u64 {
    pipeline.site.status().expect("a status")[key].as_u64().expect("a number")
}

fn send_one(pipeline: &Pipeline, message: &[u8]) {
    let mut stream = connect(pipeline.site.door).expect("the door");
    assert!(positive(&exchange(&mut stream, message).expect("an answer")));
}

// ---- another key -----------------------------------------------------------------------------------------------------

#[test]
fn after_a_rotation_the_old_backlog_is_delivered_and_its_repetitions_are_known() {
    let mut pipeline = Pipeline::start(small_segments());
    let mut safe = pipeline.backlog(60);
    let first_key = pipeline.site.path("outbox.key");
    let before = std::fs::read_to_string(&first_key).expect("the key");
    // While it runs: nothing changes until the next start.
    let printed = gateway(&pipeline, &["key", "rotate"]);
    let ids: Vec<String> = {
        let list = gateway(&pipeline, &["key", "list"]);
        list.lines().map(|line| line.split(':').next().expect("an id").to_owned()).collect()
    };
    let [new, old] = ids.as_slice() else { panic!("not two keys: {ids:?}") };
    assert!(printed.contains(new) && printed.contains(old) && printed.contains("central IT"), "{printed}");
    refused(&pipeline, &["key", "rotate"], 65, "restart");
    refused(&pipeline, &["key", "drop", old], 65, "was not removed");
    assert!(gateway(&pipeline, &["key", "list"]).contains("nothing is sealed with it yet"));
    assert!(std::fs::read_to_string(&first_key).expect("the keys").ends_with(&before), "the old key is gone");

    pipeline.site.kill_gateway();
    pipeline.site.start_gateway();
    // Sender 0's sixty are known, and more arrive.
    for body in &safe[0] {
        send_one(&pipeline, body);
    }
    assert_eq!(number(&pipeline, "accepted_total"), 240);
    for (sender, mut more) in safe.iter_mut().zip(pipeline.more_from(4, 60..100)) {
        sender.append(&mut more);
    }
    let status = pipeline.site.status().expect("a status");
    assert_eq!(status["outbox_keys"][0]["id"], **old, "{status}");
    assert_eq!(status["outbox_keys"][0]["needed_by"][0], "positions 1 to 240 of lane clinical", "{status}");
    assert_eq!(
        (&status["outbox_keys"][1]["id"], &status["outbox_keys"][1]["present"]),
        (&new.as_str().into(), &true.into())
    );
    assert!(gateway(&pipeline, &["verify"]).contains("400 verified, 0 wrong, 0 missing"));
    gateway(&pipeline, &["export", "--to", &pipeline.site.path("both.age").display().to_string()]);
    refused(&pipeline, &["key", "drop", old], 65, "positions 1 to 240 of lane clinical");

    // The old key is destroyed too early, or a copy from before the rotation is restored: refused, naming the key.
    pipeline.site.stop_gateway();
    let both = std::fs::read(&first_key).expect("the keys");
    let new_alone = String::from_utf8(both.clone()).expect("text").lines().next().expect("a line").to_owned();
    std::fs::write(&first_key, new_alone).expect("written");
    refused_and_untouched(&pipeline, &["run"], 78, old);
    std::fs::write(&first_key, &before).expect("written");
    refused_and_untouched(&pipeline, &["run"], 78, new);
    std::fs::write(&first_key, &both).expect("written");
    pipeline.site.start_gateway();
    pipeline.proxy.set(Fault::Pass);
    pipeline.check(&safe);
}

// ---- another box -----------------------------------------------------------------------------------------------------

/// A second data directory, and a configuration that names it: the new box. It keeps the first one's key file.
fn new_box(pipeline: &Pipeline) -> (PathBuf, PathBuf) {
    let (old, new) = (pipeline.site.path("data"), pipeline.site.path("new-data"));
    let config = pipeline.site.path("old.toml");
    let now = std::fs::read_to_string(pipeline.site.gateway_config()).expect("gateway.toml");
    std::fs::copy(pipeline.site.gateway_config(), &config).expect("copied");
    let moved = now.replacen(&format!("{old:?}"), &format!("{new:?}"), 1);
    assert_ne!(now, moved);
    std::fs::write(pipeline.site.gateway_config(), moved).expect("written");
    (new, config)
}

fn with_config(config: &Path, words: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_practice-gateway"));
    command.args(words).arg("--config").arg(config).stdin(Stdio::null()).output().expect("run")
}

#[test]
fn a_store_moves_to_another_box_whole_or_not_at_all() {
    let mut pipeline = Pipeline::start(small_segments());
    let mut safe = pipeline.more_from(4, 0..50);
    pipeline.site.wait_for("confirmed_total", 200, PATIENCE);
    pipeline.cut_off();
    for (sender, mut more) in safe.iter_mut().zip(pipeline.more_from(4, 50..120)) {
        sender.append(&mut more);
    }
    refused(&pipeline, &["outbox", "retire"], 75, "in use");
    pipeline.site.stop_gateway();
    refused(&pipeline, &["outbox", "adopt"], 65, "not retired");
    let (signing_key, moved) = (pipeline.site.path("gateway-signing.key"), pipeline.site.path("moved.key"));
    std::fs::rename(&signing_key, &moved).expect("away");
    refused_and_untouched(&pipeline, &["outbox", "retire"], 78, "gateway-signing.key");
    std::fs::rename(&moved, &signing_key).expect("back");
    let signing_id = signing_key_id(&pipeline);
    let printed = gateway(&pipeline, &["outbox", "retire"]);
    assert!(printed.contains("accepted 480, confirmed 200, waiting 280, damaged 0"), "{printed}");
    let copied = format!("{} (signing key {signing_id})", signing_key.display());
    assert!(printed.contains(&copied), "{copied}: {printed}");
    let word =
        printed.split("check word ").nth(1).expect("a check word").split_whitespace().next().expect("a word");
    let bundle = pipeline.site.path("retired.age").display().to_string();
    for words in [&["run"][..], &["export", "--to", &bundle], &["check"]] {
        refused_and_untouched(&pipeline, words, 78, "retired");
    }
    refused_and_untouched(&pipeline, &["run"], 78, "must never run here again");
    refused_and_untouched(&pipeline, &["outbox", "adopt"], 65, "the retired store itself");
    assert!(gateway(&pipeline, &["outbox", "retire"]).contains(word), "it says the same again");

    let (data, old_config) = new_box(&pipeline);
    copy_directory(&pipeline.site.path("data"), &data);
    refused(&pipeline, &["run"], 78, "adopt");
    let whole = content(&data);
    // Each of these copies is refused, with the reason.
    for name in ["outbox/sidecar", "outbox/marks", "outbox/segments/clinical/0000000003/db", "uplink/session"]
    {
        let path = data.join(name);
        let bytes = whole[&path].clone();
        std::fs::remove_file(&path).expect("removed");
        refused(&pipeline, &["outbox", "adopt"], 65, &format!("{name} is missing"));
        std::fs::write(&path, &bytes[..bytes.len() / 2]).expect("written");
        refused(&pipeline, &["outbox", "adopt"], 65, &format!("{name} has "));
        let mut flipped = bytes.clone();
        flipped[bytes.len() / 2] ^= 1;
        std::fs::write(&path, flipped).expect("written");
        refused(&pipeline, &["outbox", "adopt"], 65, &format!("{name} has other bytes"));
        std::fs::write(&path, bytes).expect("written");
    }
    std::fs::write(data.join("outbox/marks.old"), "x").expect("written");
    refused(&pipeline, &["outbox", "adopt"], 65, "outbox/marks.old was not there");
    std::fs::remove_file(data.join("outbox/marks.old")).expect("removed");
    let manifest = std::fs::read(data.join("outbox/MANIFEST")).expect("the list");
    std::fs::remove_file(data.join("outbox/MANIFEST")).expect("removed");
    refused(&pipeline, &["outbox", "adopt"], 65, "MANIFEST is missing");
    std::fs::write(data.join("outbox/MANIFEST"), manifest).expect("written");
    let key = pipeline.site.path("outbox.key");
    let right = std::fs::read(&key).expect("the key");
    std::fs::write(&key, "ab".repeat(32)).expect("written");
    refused(&pipeline, &["outbox", "adopt"], 78, "needs key");
    std::fs::write(&key, right).expect("written");
    // The new box has made a signing key of its own, or none is there.
    std::fs::rename(&signing_key, &moved).expect("away");
    refused(&pipeline, &["outbox", "adopt"], 78, &format!("copy signing key {signing_id} from the old box"));
    gateway(&pipeline, &["init"]);
    let other = signing_key_id(&pipeline);
    assert_ne!(other, signing_id);
    let sentence = format!("the signing key here is {other}, and the old box had {signing_id}");
    refused(&pipeline, &["outbox", "adopt"], 65, &sentence);
    std::fs::rename(&moved, &signing_key).expect("copied");
    assert!(content(&data) == whole, "a refused adoption wrote something");
    refused(&pipeline, &["run"], 78, "adopt");

    let printed = gateway(&pipeline, &["outbox", "adopt"]);
    assert!(!printed.contains("practice-hub gateway"), "central IT has nothing to do: {printed}");
    assert!(
        printed.contains(word) && printed.contains("accepted 480, confirmed 200, waiting 280"),
        "{printed}"
    );
    refused(&pipeline, &["outbox", "adopt"], 65, "not retired");
    pipeline.site.start_gateway();
    for (sender, mut more) in safe.iter_mut().zip(pipeline.more_from(4, 120..130)) {
        sender.append(&mut more);
    }
    // The new box also recognises its senders' repetitions.
    send_one(&pipeline, &safe[2][60]);
    assert_eq!(number(&pipeline, "accepted_total"), 520);
    let before = content(&pipeline.site.path("data"));
    let output = with_config(&old_config, &["run"]);
    assert_eq!(output.status.code(), Some(78), "{}", text(&output));
    assert!(content(&pipeline.site.path("data")) == before, "the old box wrote something");
    pipeline.proxy.set(Fault::Pass);
    pipeline.check(&safe);
}

fn signing_key_id(pipeline: &Pipeline) -> String {
    let shown = gateway(pipeline, &["key", "signing"]);
    let id = shown.lines().find_map(|line| line.strip_prefix("id "));
    id.unwrap_or_else(|| panic!("no id: {shown}")).trim().to_owned()
}

#[test]
fn a_store_whose_signing_key_did_not_come_along_is_adopted_with_a_new_one_by_a_person() {
    let mut pipeline = Pipeline::start(small_segments());
    let safe = pipeline.backlog(20);
    pipeline.site.stop_gateway();
    gateway(&pipeline, &["outbox", "retire"]);
    let (data, _) = new_box(&pipeline);
    copy_directory(&pipeline.site.path("data"), &data);
    std::fs::remove_file(pipeline.site.path("gateway-signing.key")).expect("lost");
    refused(&pipeline, &["outbox", "adopt", "--new-signing-key"], 78, "practice-gateway init");
    gateway(&pipeline, &["init"]);
    let id = signing_key_id(&pipeline);
    refused(&pipeline, &["outbox", "adopt"], 65, "--new-signing-key");
    let printed = gateway(&pipeline, &["outbox", "adopt", "--new-signing-key"]);
    assert!(printed.contains(&format!("Signing key {id} is new")), "{printed}");
    pipeline.site.central_it(&printed);
    pipeline.site.start_gateway();
    pipeline.proxy.set(Fault::Pass);
    pipeline.check(&safe);
}

#[test]
fn another_signing_key_costs_nothing_of_the_backlog() {
    let mut pipeline = Pipeline::start(small_segments());
    let mut safe = pipeline.backlog(20);
    let first = signing_key_id(&pipeline);
    // Replaced while it runs: nothing changes until the next start.
    gateway(&pipeline, &["key", "rotate-signing"]);
    for (sender, mut more) in safe.iter_mut().zip(pipeline.more_from(4, 20..30)) {
        sender.append(&mut more);
    }
    pipeline.site.kill_gateway();
    pipeline.site.start_gateway();
    let second = signing_key_id(&pipeline);
    assert_ne!(first, second);
    // Lost, the kept one too: a new one.
    pipeline.site.stop_gateway();
    std::fs::remove_file(pipeline.site.path("gateway-signing.key")).expect("lost");
    refused_and_untouched(&pipeline, &["run"], 78, "there is no usable signing key");
    gateway(&pipeline, &["init"]);
    pipeline.site.start_gateway();
    for (sender, mut more) in safe.iter_mut().zip(pipeline.more_from(4, 30..40)) {
        sender.append(&mut more);
    }
    // Central IT has not listed it yet: the gateway says so, and buffers.
    pipeline.proxy.set(Fault::Pass);
    let third = signing_key_id(&pipeline);
    eventually_blocking("the gateway to say that its key is not accepted", PATIENCE, || {
        let status = pipeline.site.status()?;
        adds_up(&status);
        assert_eq!(status["waiting"], status["accepted_total"], "{status}");
        let reason = status["state_reason"].as_str()?.to_owned();
        (reason.contains("does not accept") && reason.contains(&third)).then_some(())
    });
    let printed = gateway(&pipeline, &["key", "signing"]);
    let public = printed.lines().find_map(|line| line.strip_prefix("public key")).expect("a public key");
    pipeline.site.central_it(&format!("practice-hub gateway key B86022.gw1 {public}"));
    pipeline.check(&safe);
}

#[test]
fn the_hubs_signing_key_is_replaced_while_a_gateway_sends_and_nothing_is_lost() {
    let mut pipeline = Pipeline::start(SiteOptions::default());
    let hub = |pipeline: &Pipeline, words: &[&str]| {
        let output = pipeline.site.hub_command(words);
        assert!(output.status.success(), "{words:?}: {}", text(&output));
        text(&output)
    };
    let kept = |pipeline: &Pipeline| {
        eventually_blocking("everything to be confirmed", PATIENCE, || {
            (pipeline.site.status()?["waiting"] == 0).then_some(())
        });
    };
    let configuration = |pipeline: &Pipeline, change: &dyn Fn(&str) -> String| {
        let file = pipeline.site.gateway_config();
        let config = std::fs::read_to_string(&file).expect("read");
        let lines: Vec<_> = config.lines().map(change).collect();
        std::fs::write(file, lines.join("\n")).expect("written");
    };
    let mut safe = pipeline.more_from(4, 0..10);
    let more = |pipeline: &Pipeline, safe: &mut Vec<Vec<Vec<u8>>>, numbers: std::ops::Range<usize>| {
        for (sender, mut more) in safe.iter_mut().zip(pipeline.more_from(4, numbers)) {
            sender.append(&mut more);
        }
    };
    kept(&pipeline);
    let nothing = pipeline.site.hub_command(&["key", "switch", "--yes"]);
    assert_eq!((nothing.status.code(), text(&nothing).contains("there is no next key")), (Some(65), true));

    // The next key, which every gateway gets before anything signs with it.
    let printed = hub(&pipeline, &["key", "next"]);
    let line =
        printed.lines().find(|line| line.starts_with("next_public_key = ")).expect("a line").to_owned();
    assert!(hub(&pipeline, &["key", "next"]).contains(&line), "the key that was given out stays");
    let next = line.split('"').nth(1).expect("a key").to_owned();
    assert!(hub(&pipeline, &["key", "signing"]).contains(&line));
    let checked = text(&pipeline.site.hub_command(&["check"]));
    assert!(checked.contains(&format!("public key {next}; nothing signs with it yet")), "{checked}");
    pipeline.site.stop_gateway();
    configuration(&pipeline, &|old| match old.starts_with("public_key = ") {
        true => format!("{old}\n{line}"),
        false => old.to_owned(),
    });
    pipeline.site.start_gateway();
    more(&pipeline, &mut safe, 10..20);
    kept(&pipeline);

    // Nobody switches by mistake. Then the hub signs with the next key from its next start on.
    assert_eq!(pipeline.site.hub_command(&["key", "switch"]).status.code(), Some(65));
    hub(&pipeline, &["key", "switch", "--yes"]);
    more(&pipeline, &mut safe, 20..30);
    kept(&pipeline);
    pipeline.site.kill_hub();
    more(&pipeline, &mut safe, 30..40);
    pipeline.site.start_hub();
    kept(&pipeline);
    let shown = hub(&pipeline, &["key", "signing"]);
    assert!(shown.contains(&format!("public key  {next}")) && shown.contains("next key    none"), "{shown}");

    // The gateway knows the new key alone.
    pipeline.site.stop_gateway();
    configuration(&pipeline, &|old| match old {
        old if old.starts_with("public_key = ") => format!("public_key = \"{next}\""),
        old if old.starts_with("next_public_key = ") => String::new(),
        old => old.to_owned(),
    });
    pipeline.site.start_gateway();
    more(&pipeline, &mut safe, 40..50);
    pipeline.check(&safe);
}

#[test]
fn a_move_is_given_up_only_by_a_person_who_was_warned() {
    let mut pipeline = Pipeline::start(small_segments());
    let safe = pipeline.backlog(20);
    pipeline.site.stop_gateway();
    gateway(&pipeline, &["outbox", "retire"]);
    refused_and_untouched(&pipeline, &["outbox", "retire", "--undo"], 65, "diverge");
    refused_and_untouched(&pipeline, &["run"], 78, "retired");
    gateway(&pipeline, &["outbox", "retire", "--undo", "--yes"]);
    refused(&pipeline, &["outbox", "retire", "--undo", "--yes"], 65, "not retired");
    pipeline.site.start_gateway();
    pipeline.proxy.set(Fault::Pass);
    pipeline.check(&safe);
}

/// The oracle for runs in which more than one store has accepted.
fn at_the_hub(mut pipeline: Pipeline, all: &[Vec<Vec<u8>>]) {
    pipeline.site.stop();
    assert!(pipeline.books.balance() > 0);
    let verified = pipeline.site.hub_command(&["verify"]);
    assert!(verified.status.success(), "{}", text(&verified));
    let proof = harness::proof::Proof::of(&pipeline.site.store(), all).expect("the hub's files");
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
    let mut pipeline = Pipeline::start(small_segments());
    let safe = pipeline.more_from(4, 0..30);
    pipeline.site.wait_for("confirmed_total", 120, PATIENCE);
    pipeline.site.stop_gateway();
    // Copied without retiring it, and both are started.
    let (data, old_config) = new_box(&pipeline);
    copy_directory(&pipeline.site.path("data"), &data);
    let door = harness::ports::reserve();
    let copy_config = std::fs::read_to_string(&old_config)
        .expect("the configuration")
        .replace(&pipeline.site.door.to_string(), &format!("127.0.0.1:{door}"))
        .replace("control.sock", "copy.sock");
    std::fs::write(&old_config, copy_config).expect("written");
    pipeline.site.start_gateway();
    let log = std::fs::File::create(pipeline.site.path("copy.log")).expect("a log");
    let copy = Running(
        Command::new(env!("CARGO_BIN_EXE_practice-gateway"))
            .args(["run", "--config"])
            .arg(&old_config)
            .stdout(log.try_clone().expect("a log"))
            .stderr(log)
            .spawn()
            .expect("started"),
    );
    // Mosquitto 2.0 does not tell the session that it ends; the centre sees the session numbers go back.
    eventually_blocking("the centre to see two boxes", PATIENCE, || {
        pipeline.site.log("hub").contains("its store runs on two boxes").then_some(())
    });
    eventually_blocking("the fleet's list to say it", PATIENCE, || {
        text(&pipeline.site.hub_command(&["list"])).contains("on two boxes?").then_some(())
    });
    // Both accept, each under the same numbers.
    let here = pipeline.more_from(2, 30..50);
    let mut stream = eventually_blocking("the copy's door", PATIENCE, || {
        connect(std::net::SocketAddr::from(([127, 0, 0, 1], door))).ok()
    });
    let mut there = Vec::new();
    for number in 1..=20 {
        let body = message(77, number, 30);
        assert!(positive(&exchange(&mut stream, &body).expect("an answer")));
        there.push(body);
    }
    eventually_blocking("the fork to be reported", PATIENCE, || {
        pipeline.books.balance();
        (!pipeline.books.events("diverged").is_empty()).then_some(())
    });
    // A person stops one of them when it has delivered, and the other continues.
    let waiting = || {
        let output = with_config(&old_config, &["status", "--json"]);
        let status: serde_json::Value = serde_json::from_slice(&output.stdout).ok()?;
        (status["waiting"] == 0).then_some(())
    };
    eventually_blocking("the copy to have delivered", PATIENCE, waiting);
    drop(copy);
    let mut all = safe;
    for (sender, mut more) in all.iter_mut().zip(here) {
        sender.append(&mut more);
    }
    all.push(there);
    eventually_blocking("everything to be confirmed", PATIENCE, || {
        (pipeline.site.status()?["waiting"] == 0).then_some(())
    });
    send_one(&pipeline, &message(98, 1, 10));
    all.push(vec![message(98, 1, 10)]);
    pipeline.site.wait_for("confirmed_total", 161, PATIENCE);
    at_the_hub(pipeline, &all);
}

// ---- a lost key ------------------------------------------------------------------------------------------------------

#[test]
fn a_lost_key_costs_what_is_named_and_nothing_when_it_is_found() {
    let mut pipeline = Pipeline::start(small_segments());
    let mut safe = pipeline.more_from(4, 0..50);
    pipeline.site.wait_for("confirmed_total", 200, PATIENCE);
    pipeline.cut_off();
    for (sender, mut more) in safe.iter_mut().zip(pipeline.more_from(4, 50..110)) {
        sender.append(&mut more);
    }
    refused(&pipeline, &["outbox", "set-aside", "--yes"], 65, "nothing is lost");
    // Stopped, so that the watermarks, which are written later, show the last confirmation.
    pipeline.site.stop_gateway();
    refused(&pipeline, &["outbox", "set-aside", "--yes"], 65, "nothing is lost");
    let (key, escrow) = (pipeline.site.path("outbox.key"), pipeline.site.path("escrow.key"));
    std::fs::rename(&key, &escrow).expect("lost");
    refused_and_untouched(&pipeline, &["run"], 78, "key");
    // Somebody creates a new key in good faith.
    gateway(&pipeline, &["init"]);
    refused_and_untouched(&pipeline, &["run"], 78, "needs key");
    std::fs::remove_file(&key).expect("removed");
    let before = content(&pipeline.site.path("data"));
    let printed = gateway(&pipeline, &["outbox", "set-aside"]);
    assert!(
        printed.contains("440 accepted, 200 confirmed by the hub; 240 cannot be read, positions 201 to 440"),
        "{printed}"
    );
    assert!(content(&pipeline.site.path("data")) == before, "only a report, and something was written");

    let printed = gateway(&pipeline, &["outbox", "set-aside", "--yes"]);
    assert!(printed.contains("240 cannot be read") && printed.contains("central IT"), "{printed}");
    let aside = std::fs::read_dir(pipeline.site.path("data"))
        .expect("listed")
        .map(|entry| entry.expect("an entry").path())
        .find(|path| path.to_string_lossy().contains("outbox.set-aside-"))
        .expect("it is set aside");
    for (path, bytes) in &before {
        let Ok(name) = path.strip_prefix(pipeline.site.path("data").join("outbox")) else { continue };
        assert!(
            std::fs::read(aside.join(name)).is_ok_and(|now| now == *bytes),
            "{} was lost",
            name.display()
        );
    }
    pipeline.site.start_gateway();
    pipeline.proxy.set(Fault::Pass);
    // The centre gets the number of lost transactions of each lane, also after a restart.
    for times in 1..=2 {
        let events = eventually_blocking("the loss to be reported", PATIENCE, || {
            Some(pipeline.books.events("store.set_aside")).filter(|events| events.len() >= times)
        });
        assert!(
            events[times - 1].contains("lane clinical: 240 transactions, positions 201 to 440"),
            "{events:?}"
        );
        if times == 1 {
            pipeline.site.kill_gateway();
            pipeline.site.start_gateway();
        }
    }
    // The surgery continues, from position 1 of a new epoch.
    for sender in 4..8 {
        let new: Vec<_> = (1..=25).map(|number| message(sender, number, 30)).collect();
        new.iter().for_each(|body| send_one(&pipeline, body));
        safe.push(new);
    }
    pipeline.site.wait_for("confirmed_total", 100, PATIENCE);

    // The key is found.
    let (bundle, store) =
        (pipeline.site.path("found.age").display().to_string(), aside.display().to_string());
    refused(&pipeline, &["export", "--store", &store, "--to", &bundle], 78, "needs key");
    let escrow = escrow.display().to_string();
    let printed = gateway(&pipeline, &["export", "--store", &store, "--key-file", &escrow, "--to", &bundle]);
    assert!(printed.contains("240 transactions"), "{printed}");
    // The new store's transactions are at the hub already: the found ones follow them.
    let imported = pipeline.site.hub_command(&["import", &bundle]);
    assert_eq!(imported.status.code(), Some(65), "{}", text(&imported));
    let (end, again) =
        (format!("{bundle}.clinical.end.json"), pipeline.site.path("again.age").display().to_string());
    let words = ["export", "--store", &store, "--key-file", &escrow, "--end", &end, "--to", &again];
    assert!(gateway(&pipeline, &words).contains("240 transactions"));
    for expected in ["240 new, 0 already stored", "0 new, 240 already stored"] {
        let imported = pipeline.site.hub_command(&["import", &again]);
        assert!(imported.status.success() && text(&imported).contains(expected), "{}", text(&imported));
    }
    // Whoever exports may say that the hub lacks more, also once an epoch was begun for that end.
    let all = pipeline.site.path("all.age").display().to_string();
    let words = [&words[..7], &["--from", "1", "--to", &all]].concat();
    assert!(gateway(&pipeline, &words).contains("440 transactions, positions 1 to 440"));
    // For the running store the hub's line ends where it has never been, the second time today: a person has looked.
    send_one(&pipeline, &message(98, 1, 10));
    safe.push(vec![message(98, 1, 10)]);
    eventually_blocking("the fork to be named", PATIENCE, || {
        (pipeline.books.events("diverged").len() > 1).then_some(())
    });
    gateway(&pipeline, &["outbox", "release", "--lane", "clinical"]);
    pipeline.site.wait_for("confirmed_total", 101, PATIENCE);
    at_the_hub(pipeline, &safe);
}
