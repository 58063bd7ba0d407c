//! Attacks on the promise that nothing accepted is lost, replaced or put out of order, on the real programs: by the broker,
//! by restores of the hub and of the box, and by an operator. Each test also reads what the person on call reads.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::{Duration, Instant};

use pgw_core::chain::ChainValue;
use pgw_core::transaction::Epoch;
use pgw_core::wire::entry;
use pgw_core::wire::envelope::Envelope;
use pgw_core::wire::to_json;
use serde_json::Value;

use crate::harness::adversary::{Adversary, Post, Way};
use crate::harness::pipeline::{PATIENCE, copy_directory};
use crate::harness::proof::Proof;
use crate::harness::senders::{connect, exchange, message, positive};
use crate::harness::site::{Site, SiteOptions, adds_up};
use crate::harness::wire::Books;
use crate::harness::{eventually_blocking, ports};

const LANE: &str = "B86022/gw1/clinical";

/// A surgery and a centre with the adversary between them.
struct Scene {
    site: Site,
    /// What the gateway says at its own broker.
    books: Books,
    adversary: Adversary,
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

impl Scene {
    /// Starts nothing but the brokers.
    fn new(outbox: &str, hub: &str, tables: &str) -> Self {
        let adversary = Adversary::start();
        let books = Books::watch(adversary.outer.plain_port());
        let options = SiteOptions {
            outbox: format!("{outbox}min_free_bytes = 1_048_576\n"),
            uplink: format!("receipt_seconds = 1\n[health]\ninterval_seconds = 0.1\n{tables}"),
            hub: format!("\n{hub}"),
            ..SiteOptions::default()
        };
        let site =
            Site::new(&adversary.certificates, adversary.outer.port(), adversary.inner.port(), options);
        Self { site, books, adversary }
    }

    fn start(outbox: &str) -> Self {
        let mut scene = Self::new(outbox, "", "");
        scene.site.start_hub();
        scene.site.start_gateway();
        scene
    }

    fn hub(&self, words: &[&str]) -> String {
        let output = self.site.hub_command(words);
        assert!(output.status.success(), "{words:?}: {}", text(&output));
        text(&output)
    }

    fn gateway(&self, words: &[&str]) -> String {
        let output = self.site.gateway_command(words);
        assert!(output.status.success(), "{words:?}: {}", text(&output));
        text(&output)
    }

    fn number(&self, key: &str) -> u64 {
        self.site.status().expect("a status")[key].as_u64().expect("a number")
    }

    /// Each is acknowledged.
    fn submit(&self, numbers: impl IntoIterator<Item = usize>) -> Vec<Vec<u8>> {
        let mut stream = connect(self.site.door).expect("the door");
        let accept = |number| {
            let body = message(0, number, 30);
            assert!(positive(&exchange(&mut stream, &body).expect("an answer")), "{number} is not accepted");
            body
        };
        numbers.into_iter().map(accept).collect()
    }

    fn all_confirmed(&self) {
        eventually_blocking("everything to be confirmed", PATIENCE, || {
            let status = self.site.status()?;
            adds_up(&status);
            (status["waiting"] == 0).then_some(())
        });
    }

    /// Waits for an event, and returns what the person on call reads.
    fn event(&self, code: &str) -> String {
        let detail = eventually_blocking(&format!("the event {code}"), PATIENCE, || {
            self.books.events(code).into_iter().next()
        });
        println!("READ event {code}: {detail}");
        detail
    }

    /// Waits for a line in a log, and returns it.
    fn log_line(&self, of: &str, with: &str) -> String {
        let line = eventually_blocking(&format!("the {of} to log {with:?}"), PATIENCE, || {
            self.site.log(of).lines().find(|line| line.contains(with)).map(str::to_owned)
        });
        println!("READ {of} log: {line}");
        line
    }

    /// Waits until `practice-hub WORDS` says it, and returns that line.
    fn hub_says(&self, words: &[&str], with: &str) -> String {
        let began = Instant::now();
        let line = loop {
            let printed = text(&self.site.hub_command(words));
            if let Some(line) = printed.lines().find(|line| line.contains(with)) {
                break line.to_owned();
            }
            assert!(began.elapsed() < Duration::from_secs(30), "{words:?} does not say {with:?}: {printed}");
            std::thread::sleep(Duration::from_millis(50));
        };
        println!("READ practice-hub {}: {line}", words.join(" "));
        line
    }

    /// The lane's line at the hub: every number with a body or without, in order.
    fn line(&self) -> Vec<Value> {
        let file = self.site.store().join("B86022/gw1/clinical.ndjson");
        let text = std::fs::read_to_string(file).unwrap_or_default();
        let rows = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        rows.filter(|row| row["id"].is_string()).collect()
    }

    fn restore_hub(&mut self, from: &Path) {
        self.site.kill_hub();
        std::fs::remove_dir_all(self.site.store()).expect("removed");
        copy_directory(from, &self.site.store());
        let online = |post: &Post| post.topic == "pgw/v1/hub/hub1/status" && post.json()["up"] == 1;
        let before = self.adversary.seen(online).len();
        self.site.start_hub();
        eventually_blocking("the hub to be online", PATIENCE, || {
            (self.adversary.seen(online).len() > before).then_some(())
        });
        self.site.wait_for_hub();
    }

    fn copy_of_hub(&mut self, name: &str) -> PathBuf {
        self.site.kill_hub();
        let copy = self.site.path(name);
        copy_directory(&self.site.store(), &copy);
        self.site.start_hub();
        copy
    }

    /// The box is set back to an image; the gateway does not run afterwards.
    fn restore_box(&mut self, image: &Path) {
        self.site.stop_gateway();
        std::fs::remove_dir_all(self.site.path("data")).expect("removed");
        copy_directory(image, &self.site.path("data"));
    }

    /// The oracle: these bodies, in this order, each once, on an unbroken chain, and nothing else but entries.
    fn holds(self, safe: Vec<Vec<u8>>) {
        self.holds_all(&[safe]);
    }

    /// The same of several senders.
    fn holds_all(mut self, safe: &[Vec<Vec<u8>>]) {
        self.all_confirmed();
        self.site.stop();
        assert!(self.books.balance() > 0);
        let verified = self.site.hub_command(&["verify"]);
        assert!(verified.status.success(), "{}", text(&verified));
        let proof = Proof::of(&self.site.store(), safe).expect("the hub's files");
        println!("{}", proof.json());
        // What nobody has been told is safe counts as repeated.
        let entries = self.line().iter().filter(|row| row["kind"] != "transaction").count();
        let result = (proof.lost, proof.repeated, proof.out_of_order, proof.chain_ok);
        assert_eq!(result, (0, entries, 0, true), "{proof:?}");
    }
}

fn is_txn(post: &Post) -> bool {
    post.is("txn")
}

/// Whether it carries one of these messages.
fn is_of(post: &Post, mut numbers: std::ops::RangeInclusive<usize>) -> bool {
    numbers.any(|number| post.payload == message(0, number, 30))
}

/// A receipt that answers a question, and whose.
fn nonce(post: &Post) -> Option<String> {
    let kind = post.is("receipt") || post.is("position");
    kind.then(|| post.json()["nonce"].as_str().map(str::to_owned)).flatten()
}

fn is_pruned(scene: &Scene, position: u64) -> bool {
    let shown = scene.site.gateway_command(&["outbox", "show", "--json", &position.to_string()]);
    !shown.status.success() || text(&shown).contains("\"pruned\"")
}

/// Holds for this long: there is no condition to wait for where nothing may happen.
fn stays(what: &str, mut holds: impl FnMut() -> bool) {
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(4) {
        assert!(holds(), "{what}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

// ---- 1: what is released, and what is pruned -------------------------------------------------------------------------

/// Overwrites the middle of the second segment.
fn destroy(data: &Path) {
    let file = data.join("outbox/segments/clinical/0000000002/db");
    let mut bytes = std::fs::read(&file).expect("the second segment");
    let used = bytes.iter().rposition(|byte| *byte != 0).expect("it is not empty");
    bytes[used / 4..used * 3 / 4].fill(0);
    std::fs::write(file, bytes).expect("written");
}

fn release(scene: &Scene, (from, through): (u64, u64)) {
    let (from, through) = (from.to_string(), through.to_string());
    let words = ["outbox", "void", "--lane", "clinical", "--sequence", &from, "--through", &through];
    let printed = scene.gateway(&[&words[..], &["--reason", "bad sector", "--yes"]].concat());
    println!("READ outbox void: {printed}");
}

#[test]
fn what_a_person_has_released_is_new_when_its_sender_repeats_it() {
    let mut scene = Scene::new("segment_records = 100\n", "", "");
    scene.site.start_gateway();
    let all = scene.submit(1..=300);
    // Stopped, so that the duplicate index is on the disk: it still knows what is destroyed.
    scene.site.stop_gateway();
    destroy(&scene.site.path("data"));
    scene.site.start_gateway();
    let verified = scene.site.gateway_command(&["verify", "--json"]);
    let verdict: Value = serde_json::from_slice(&verified.stdout).expect("a verdict");
    let lost: Vec<(u64, u64)> = serde_json::from_value(verdict["missing_ranges"].clone()).expect("ranges");
    let is_lost = |position: usize| lost.iter().any(|(a, b)| (*a..=*b).contains(&(position as u64)));
    let (gone, kept): (Vec<usize>, Vec<usize>) = (1..=300).partition(|position| is_lost(*position));
    assert!(!gone.is_empty() && gone.len() <= 100, "{verdict}");

    scene.site.start_hub();
    let hole = scene.event("hole");
    assert!(hole.contains(&format!("position {} can no longer be read", lost[0].0)), "{hole}");
    lost.iter().for_each(|range| release(&scene, *range));
    scene.all_confirmed();
    let status = scene.site.status().expect("a status");
    assert_eq!(status["confirmed_total"], kept.len(), "{status}");
    let said = scene.hub_says(&["verify"], "missing for good");
    assert!(said.contains("bad sector"), "{said}");

    // The void is confirmed, and old receipts come again: the sender's repetition is its only way back.
    scene.adversary.seen(|post| post.is("receipt")).iter().for_each(|old| scene.adversary.send(old));
    scene.submit(1..=300);
    assert_eq!(scene.number("accepted_total") as usize, 300 + gone.len(), "only the lost ones are new");
    scene.submit(1..=300);
    assert_eq!(scene.number("accepted_total") as usize, 300 + gone.len(), "and now they are known");
    scene.holds(kept.into_iter().chain(gone).map(|position| all[position - 1].clone()).collect());
}

#[test]
fn what_a_restored_hub_lacks_and_the_gateway_has_pruned_is_new_when_its_sender_repeats_it() {
    let mut scene = Scene::start("segment_records = 100\nretention_days = 0\n");
    let mut safe = scene.submit(1..=50);
    scene.site.wait_for("confirmed_total", 50, PATIENCE);
    let copy = scene.copy_of_hub("hub-at-50");
    let later = scene.submit(51..=250);
    scene.site.wait_for("confirmed_total", 250, PATIENCE);
    eventually_blocking("two segments to go", PATIENCE, || is_pruned(&scene, 200).then_some(()));

    scene.restore_hub(&copy);
    let waits = scene.hub_says(&["list"], "WAITS until the centre admits it");
    assert!(waits.contains("stands for 150 transactions that the gateway has deleted"), "{waits}");
    let later_event = scene.event("hub.later");
    assert!(later_event.contains("until the centre admits it"), "{later_event}");
    let epoch = scene.event("epoch.new");
    assert!(epoch.contains("clinical"), "{epoch}");
    assert_eq!(scene.line().len(), 50, "nothing goes past what waits");
    // Repeated before the centre has decided, and afterwards.
    scene.submit([60]);
    assert_eq!(scene.number("accepted_total"), 251);
    let admitted = scene.hub(&["lane", "admit", LANE, "--as", "deleted"]);
    println!("READ lane admit: {admitted}");
    scene.site.stop_gateway();
    scene.site.start_gateway();
    scene.all_confirmed();
    scene.submit([130, 60, 220]);
    assert_eq!(scene.number("accepted_total"), 252, "60 is on its way, 220 was never away");
    scene.all_confirmed();
    let said = scene.hub_says(&["verify"], "missing for good");
    assert!(said.contains("150 transactions"), "{said}");
    safe.extend(later[150..].iter().cloned());
    safe.extend([message(0, 60, 30), message(0, 130, 30)]);
    scene.holds(safe);
}

/// The hub's first file has lost its content, and only the hub had it.
#[test]
fn what_the_hub_has_lost_for_good_is_named_and_new_when_its_sender_repeats_it() {
    let mut scene =
        Scene::new("segment_records = 100\nretention_days = 0\n", "[store]\nrotate_bytes = 65_536\n", "");
    scene.site.start_hub();
    scene.site.start_gateway();
    let all = scene.submit(1..=250);
    scene.site.wait_for("confirmed_total", 250, PATIENCE);
    eventually_blocking("two segments to go", PATIENCE, || is_pruned(&scene, 200).then_some(()));
    scene.site.stop_gateway();
    scene.site.kill_hub();
    let first = scene.site.store().join("B86022/gw1/clinical.000001.ndjson");
    let text = std::fs::read_to_string(&first).expect("a file that has rotated");
    let lost = text.lines().filter(|line| line.starts_with("{\"specversion\"")).count();
    assert!((2..200).contains(&lost), "{lost}");
    std::fs::remove_file(&first).expect("removed");
    scene.site.start_hub();
    scene.site.start_gateway();

    scene.hub_says(&["list"], "counts as lost for good");
    let admitted = scene.hub(&["lane", "admit", LANE, "--as", "lost"]);
    println!("READ lane admit: {admitted}");
    let said = scene.event("hub.lost");
    assert!(said.contains(&format!("lost {lost} transactions for good")), "{said}");
    scene.all_confirmed();
    let status = scene.site.status().expect("a status");
    assert_eq!((&status["confirmed_total"], &status["damaged"]), (&(250 - lost).into(), &lost.into()));
    let shown = scene.hub_says(&["lane", "show", LANE], "LOST for good");
    assert!(shown.contains(&format!("sequences 1 to {lost}")), "{shown}");
    // The gateway knows it, also after a restart without a link: the sender's repetition is the only way back.
    scene.site.stop_gateway();
    scene.site.kill_hub();
    scene.site.start_gateway();
    assert!(is_pruned(&scene, lost as u64 + 1), "the hub has it");
    assert!(!is_pruned(&scene, lost as u64), "the hub has it not");
    scene.submit([lost]);
    assert_eq!(scene.number("accepted_total"), 251);
    scene.site.start_hub();
    scene.all_confirmed();
    scene.site.stop();
    let verified = scene.site.hub_command(&["verify"]);
    assert!(verified.status.success(), "{verified:?}");
    // The independent proof knows no part that is lost, so the chain and the order at its end are for `verify` to judge.
    let mut safe: Vec<_> = all[lost..].to_vec();
    safe.push(all[lost - 1].clone());
    let proof = Proof::of(&scene.site.store(), &[safe]).expect("the hub's files");
    assert_eq!((proof.lost, proof.repeated, proof.delivered), (0, 0, 251 - lost), "{proof:?}");
}

// ---- 2: something else in the place of a transaction -----------------------------------------------------------------

/// With the chain value that belongs to it: all but the signature fits.
fn chained(post: &Post, before: ChainValue) -> Post {
    let envelope = Envelope::from_properties(post.content_type.clone(), post.properties.clone());
    let mut envelope = envelope.expect("an envelope");
    let next = before.next(envelope.sequence, envelope.digest(&post.payload));
    envelope.chain = next;
    let (content_type, properties) = envelope.into_properties();
    Post { content_type: Some(content_type), properties, ..post.clone() }
}

/// The true transaction changed in each way that would lose or falsify it.
fn forgeries(post: &Post) -> Vec<(&'static str, Post)> {
    let with = |name: &str, value: &str| {
        let mut forged = post.clone();
        forged.set(name, value);
        forged
    };
    let names = vec![entry::Named {
        epoch: Epoch(post.get("epoch").parse().expect("an epoch")),
        from: post.sequence(),
        through: post.sequence(),
    }];
    let content = entry::Entry {
        schema: 1,
        from: post.sequence(),
        through: post.sequence(),
        names,
        reason: "FORGED".into(),
        time: "2026-11-27T10:00:00.000Z".into(),
    };
    let as_entry = |kind: &str| {
        let mut forged = with("kind", kind);
        forged.set("type", &format!("org.practice-gateway.{kind}.v1"));
        forged.content_type = Some(entry::CONTENT_TYPE.into());
        forged.properties.retain(|(name, _)| name != "datacontenttype");
        forged.payload = to_json(&content);
        forged
    };
    vec![
        ("another body", Post { payload: b"MSH|^~\\&|FORGED".to_vec(), ..post.clone() }),
        ("a void", as_entry("void")),
        ("a pruned entry", as_entry("pruned")),
        ("a test", with("kind", "test")),
        ("another sender", with("sender", "hl7v2:FORGED%7CB86022")),
    ]
}

#[test]
fn nothing_false_takes_the_place_of_a_transaction() {
    let scene = Scene::start("");
    let mut safe = scene.submit(1..=3);
    scene.site.wait_for("confirmed_total", 3, PATIENCE);
    let mut number = 4;
    for which in 0..5 {
        for is_chained in [false, true] {
            let held = number;
            scene.adversary.hold(move |post| post.sequence() == held);
            safe.extend(scene.submit([number as usize]));
            let truth = scene.adversary.wait("the true one", |post| post.sequence() == held);
            let before = scene.adversary.wait("the one before", |post| post.sequence() == held - 1);
            let before: ChainValue = before.get("chain").parse().expect("a chain value");
            let (what, forged) = forgeries(&truth).swap_remove(which);
            let forged = if is_chained { chained(&forged, before) } else { forged };
            scene.adversary.send(&forged);
            let code = if is_chained { "unverified" } else { "link" };
            let refused = |post: &Post| {
                post.is("gap") && post.json()["code"] == code && post.json()["expected"] == held
            };
            scene.adversary.wait(&format!("{what} to be refused as {code}"), refused);
            scene.adversary.send(&truth);
            scene.adversary.pass();
            scene.site.wait_for("confirmed_total", held, PATIENCE);
            number += 1;
        }
    }
    let alarm = scene.event("unverified");
    assert!(alarm.contains("could not verify sequence"), "{alarm}");
    scene.log_line("hub", "it does not continue the lane");
    scene.log_line("hub", "Refused what a gateway sent");
    // Neither in the line nor beside it.
    let rows = scene.line();
    assert_eq!(rows.len(), safe.len());
    let sender = rows[0]["sender"].clone();
    assert!(rows.iter().all(|row| row["kind"] == "transaction" && row["sender"] == sender), "{rows:?}");
    let late = text(&scene.site.hub_command(&["lane", "show", LANE]));
    assert!(!late.contains("void") && !late.contains("test"), "{late}");
    scene.holds(safe);
}

#[test]
fn a_bundle_that_the_gateway_has_not_signed_is_refused() {
    let mut scene = Scene::start("");
    let mut safe = scene.submit(1..=3);
    scene.site.wait_for("confirmed_total", 3, PATIENCE);
    scene.adversary.hold(is_txn);
    safe.extend(scene.submit(4..=6));
    scene.site.stop_gateway();
    // Whoever has the store but not the key.
    let (key, away) = (scene.site.path("gateway-signing.key"), scene.site.path("away.key"));
    std::fs::rename(&key, &away).expect("away");
    scene.gateway(&["init"]);
    let bundle = scene.site.path("forged.age").display().to_string();
    scene.gateway(&["export", "--to", &bundle]);
    let refused = scene.site.hub_command(&["import", &bundle]);
    println!("READ import: {}", text(&refused));
    assert_eq!(refused.status.code(), Some(65), "{}", text(&refused));
    assert!(text(&refused).contains("sequence 4 of epoch"), "{}", text(&refused));
    assert!(text(&refused).contains("is not signed with a key"), "{}", text(&refused));
    assert_eq!(scene.line().len(), 3);
    std::fs::rename(&away, &key).expect("back");
    scene.adversary.pass();
    scene.site.start_gateway();
    scene.holds(safe);
}

// ---- 3 and 5: restores of the hub and of the box ---------------------------------------------------------------------

/// A lane of two epochs: A:1-15, of which the box lacks 11-15 since it was restored from an image, and B:1-3 after it.
struct TwoEpochs {
    scene: Scene,
    safe: Vec<Vec<u8>>,
    hub_at_6: PathBuf,
    image: PathBuf,
    /// What was published in A and in B.
    first: Vec<Post>,
    second: Vec<Post>,
}

fn two_epochs() -> TwoEpochs {
    let mut scene = Scene::start("");
    let mut safe = scene.submit(1..=6);
    scene.site.wait_for("confirmed_total", 6, PATIENCE);
    let hub_at_6 = scene.copy_of_hub("hub-at-6");
    safe.extend(scene.submit(7..=10));
    scene.site.wait_for("confirmed_total", 10, PATIENCE);
    scene.site.stop_gateway();
    let image = scene.site.path("image");
    copy_directory(&scene.site.path("data"), &image);
    scene.site.start_gateway();
    safe.extend(scene.submit(11..=15));
    scene.site.wait_for("confirmed_total", 15, PATIENCE);
    scene.restore_box(&image);
    scene.site.start_gateway();
    let alarm = scene.event("diverged");
    assert!(alarm.contains("ends with 15 of epoch"), "{alarm}");
    safe.extend(scene.submit(16..=18));
    scene.all_confirmed();
    let mut all = scene.adversary.seen(is_txn);
    let mut known = HashSet::new();
    all.retain(|post| known.insert((post.get("epoch").to_owned(), post.sequence())));
    let a = all[0].get("epoch").to_owned();
    let (first, second): (Vec<Post>, Vec<Post>) = all.into_iter().partition(|post| post.get("epoch") == a);
    assert_eq!((first.len(), second.len()), (15, 3));
    TwoEpochs { scene, safe, hub_at_6, image, first, second }
}

/// Waits until the hub has dealt with a repetition of what it has: everything sent before it is dealt with too.
fn settled(scene: &Scene, stored: &Post) {
    let receipts = || scene.adversary.seen(|post| post.is("receipt")).len();
    let before = receipts();
    scene.adversary.send(stored);
    eventually_blocking("a receipt for a repetition", PATIENCE, || (receipts() > before).then_some(()));
}

#[test]
fn a_later_epoch_is_not_stored_before_the_end_of_the_one_before() {
    let TwoEpochs { mut scene, safe, hub_at_6, first, second, .. } = two_epochs();
    let positions = scene.adversary.seen(|post| post.is("position"));
    // The gateway is kept away, and the hub is restored.
    scene.adversary.rule(|_| vec![]);
    scene.restore_hub(&hub_at_6);
    settled(&scene, &first[0]);
    for old in &positions {
        scene.adversary.send(old);
    }
    second.iter().for_each(|post| scene.adversary.send(post));
    // And the other way round, and each of them alone.
    second.iter().rev().for_each(|post| scene.adversary.send(post));
    settled(&scene, &first[0]);
    assert_eq!(scene.line().len(), 6, "nothing of the second epoch is in the line");
    let beside = scene.log_line("hub", "are kept beside it");
    assert!(beside.contains("another history of this gateway"), "{beside}");
    scene.hub_says(&["list"], "of another history of its gateway are beside it");
    // What only the broker still has continues the line: it is signed, and in order.
    first[6..].iter().for_each(|post| scene.adversary.send(post));
    eventually_blocking("the first epoch to be whole", PATIENCE, || (scene.line().len() == 15).then_some(()));
    scene.adversary.pass();
    scene.site.stop_gateway();
    scene.site.start_gateway();
    eventually_blocking("the second epoch to follow", PATIENCE, || (scene.line().len() == 18).then_some(()));
    scene.holds(safe);
}

#[test]
fn a_box_and_a_hub_that_were_both_restored_end_with_no_abandoned_history_in_silence() {
    let TwoEpochs { mut scene, safe, hub_at_6, image, first, second } = two_epochs();
    scene.restore_box(&image);
    scene.restore_hub(&hub_at_6);
    scene.site.start_gateway();
    let mut all = safe[..10].to_vec();
    all.extend(scene.submit(21..=22));
    scene.site.wait_for("confirmed_total", 12, PATIENCE);
    let (line, diverged) = (scene.line(), scene.books.events("diverged").len());
    assert_eq!(line.len(), 12);
    first[10..].iter().chain(&second).for_each(|post| scene.adversary.send(post));
    // A:13 would continue the line if its chain value did. All of it is signed, and kept beside the line.
    scene.hub_says(&["list"], "8 transactions and");
    for old in scene.adversary.seen(|post| post.is("position")) {
        scene.adversary.send(&old);
    }
    first[10..].iter().chain(&second).for_each(|post| scene.adversary.send(post));
    settled(&scene, &first[0]);
    let beside = scene.log_line("hub", "are kept beside it");
    assert!(beside.contains("another history of this gateway"), "{beside}");
    let shown = scene.hub(&["lane", "show", LANE]);
    println!("READ lane show: {shown}");
    assert_eq!(scene.line(), line, "the abandoned history is beside the line");
    all.extend(scene.submit(23..=24));
    scene.site.wait_for("confirmed_total", 14, PATIENCE);
    assert_eq!(scene.books.events("diverged").len(), diverged, "the line is the gateway's own");
    scene.holds(all);
}

#[test]
fn an_abandoned_history_that_comes_first_is_an_alarm_and_loses_nothing() {
    let TwoEpochs { mut scene, mut safe, hub_at_6, image, first, second } = two_epochs();
    scene.restore_box(&image);
    scene.restore_hub(&hub_at_6);
    let diverged = scene.books.events("diverged").len();
    settled(&scene, &first[0]);
    first[6..].iter().chain(&second).for_each(|post| scene.adversary.send(post));
    eventually_blocking("the history to be stored", PATIENCE, || (scene.line().len() == 18).then_some(()));
    scene.site.start_gateway();
    safe.extend(scene.submit(21..=22));
    eventually_blocking("the alarm", PATIENCE, || {
        (scene.books.events("diverged").len() > diverged).then_some(())
    });
    scene.all_confirmed();
    scene.holds(safe);
}

#[test]
fn a_box_from_an_image_says_what_it_lacks_and_uses_no_number_twice() {
    let mut scene = Scene::start("");
    let mut safe = scene.submit(1..=20);
    scene.site.wait_for("confirmed_total", 20, PATIENCE);
    scene.site.stop_gateway();
    let image = scene.site.path("image");
    copy_directory(&scene.site.path("data"), &image);
    scene.site.start_gateway();
    scene.adversary.hold(is_txn);
    scene.submit(21..=50);
    // It connects once more, so that its tail is named; what it sends then is held back too.
    scene.site.stop_gateway();
    scene.site.start_gateway();
    let held = scene.adversary.wait("the last one to be sent", |post| post.sequence() == 50);
    let named = |post: &Post| post.is("position") && post.json()["tail"] == 50;
    scene.adversary.wait("a position that names its tail", named);
    scene.restore_box(&image);
    scene.adversary.pass();
    scene.site.start_gateway();
    let alarm = scene.event("tail.lost");
    assert!(alarm.contains("lacks 30 transactions"), "{alarm}");
    let row = scene.hub_says(&["list"], "online");
    assert!(row.contains("B86022/gw1"), "{row}");
    safe.extend(scene.submit(61..=70));
    scene.all_confirmed();
    // What was held back comes after all: it is signed, and all of it is kept beside the line.
    let lost = scene.adversary.seen(|post| post.sequence() > 20 && post.get("epoch") == held.get("epoch"));
    let lost: Vec<_> =
        lost.into_iter().filter(|post| post.sequence() <= 50 && is_of(post, 21..=50)).collect();
    lost.iter().for_each(|post| scene.adversary.send(post));
    scene.hub_says(&["list"], "30 transactions and 0 files of another history");
    let mut numbers = BTreeMap::new();
    for post in scene.adversary.seen(is_txn) {
        let number = (post.get("epoch").to_owned(), post.sequence());
        let content = (post.get("id").to_owned(), post.payload.clone());
        let before = numbers.entry(number).or_insert_with(|| content.clone());
        assert_eq!(*before, content, "a number of two contents");
    }
    scene.holds(safe);
}

// ---- 4: old answers --------------------------------------------------------------------------------------------------

#[test]
fn nothing_is_pruned_on_an_old_answer() {
    let mut scene = Scene::start("segment_records = 100\nretention_days = 0\n");
    let mut safe = scene.submit(1..=50);
    scene.site.wait_for("confirmed_total", 50, PATIENCE);
    let copy = scene.copy_of_hub("hub-at-50");
    scene.site.wait_for("confirmed_total", 50, PATIENCE);
    safe.extend(scene.submit(51..=60));
    scene.site.wait_for("confirmed_total", 60, PATIENCE);
    // Answers are withheld from now on, other receipts are passed: it may not prune what they confirm.
    scene.adversary.hold(|post| post.is("receipt") && nonce(post).is_some());
    safe.extend(scene.submit(61..=250));
    scene.site.wait_for("confirmed_total", 250, PATIENCE);
    let asked = |scene: &Scene| {
        let positions = scene.adversary.seen(|post| post.is("position"));
        positions.iter().rev().find_map(nonce)
    };
    let answered_all =
        |post: &Post| post.is("receipt") && nonce(post).is_some() && post.json()["end"]["through"] == 250;
    scene.adversary.wait("an answer that would allow it", answered_all);
    scene.adversary.hold(|post| post.way == Way::Down);
    let question = asked(&scene);
    eventually_blocking("another question", PATIENCE, || (asked(&scene) != question).then_some(()));
    let answers = scene.adversary.seen(|post| post.is("receipt"));
    scene.restore_hub(&copy);
    let now = asked(&scene);
    let stale: Vec<_> = answers.into_iter().filter(|post| nonce(post) != now).collect();
    assert!(stale.iter().any(answered_all), "the test replays nothing");
    stays("pruned on an old answer", || {
        stale.iter().for_each(|post| scene.adversary.send(post));
        !is_pruned(&scene, 1) && !is_pruned(&scene, 101)
    });
    scene.adversary.pass();
    let restored = scene.event("hub.restored");
    assert!(restored.contains("positions 51 to 250 again"), "{restored}");
    eventually_blocking("the difference to be there", PATIENCE, || (scene.line().len() >= 250).then_some(()));
    scene.holds(safe);
}

// ---- 6: what the hub never takes -------------------------------------------------------------------------------------

fn second_lane() -> (std::net::SocketAddr, String) {
    let door = std::net::SocketAddr::from(([127, 0, 0, 1], ports::reserve()));
    (door, format!("[[lane]]\nname = \"letters\"\n[[mllp]]\nlisten = \"{door}\"\nlane = \"letters\"\n"))
}

fn held_status(scene: &Scene) -> Value {
    let status = eventually_blocking("the lane to be held", PATIENCE, || {
        scene.site.status().filter(|status| status["held"] == 1)
    });
    println!("READ status: {}: {}", status["state"], status["state_reason"]);
    println!("READ status: {}", text(&scene.site.gateway_command(&["status"])));
    status
}

fn others_continue(scene: &Scene, door: std::net::SocketAddr) -> Vec<Vec<u8>> {
    let mut stream = connect(door).expect("the other door");
    let bodies: Vec<_> = (1..=5).map(|number| message(5, number, 10)).collect();
    for body in &bodies {
        assert!(positive(&exchange(&mut stream, body).expect("an answer")));
    }
    eventually_blocking("the other lane to continue", PATIENCE, || {
        let status = scene.site.status()?;
        let lane = status["lanes"].as_array()?.iter().find(|lane| lane["lane"] == "letters")?.clone();
        (lane["confirmed"] == 5).then_some(())
    });
    bodies
}

#[test]
fn what_is_changed_each_time_is_held_with_a_reason_and_sent_when_it_is_released() {
    let (door, lane) = second_lane();
    let mut scene = Scene::new("", "", &lane);
    scene.site.start_hub();
    scene.site.start_gateway();
    let mut safe = scene.submit(1..=3);
    scene.site.wait_for("confirmed_total", 3, PATIENCE);
    scene.adversary.rule(|post| {
        let mut passed = post.clone();
        if post.sequence() == 4 && post.topic.ends_with("/clinical") {
            passed.payload = b"MSH|^~\\&|FORGED".to_vec();
            passed.set("signature", "");
        }
        vec![passed]
    });
    safe.extend(scene.submit(4..=8));
    let status = held_status(&scene);
    assert_eq!((&status["state"], &status["confirmed_total"]), (&"degraded".into(), &3.into()), "{status}");
    let alarm = scene.event("held");
    assert!(alarm.contains("lane clinical is stalled at position 4"), "{alarm}");
    assert!(alarm.contains("it is changed on its way"), "{alarm}");
    let letters = others_continue(&scene, door);
    assert_eq!(scene.line().len(), 3);
    scene.adversary.pass();
    println!("READ release: {}", scene.gateway(&["outbox", "release", "--lane", "clinical"]));
    scene.event("released");
    scene.all_confirmed();
    safe.extend(letters);
    scene.holds(safe);
}

#[test]
fn what_is_larger_than_the_hub_takes_is_held_with_a_reason() {
    let (door, lane) = second_lane();
    let mut scene = Scene::new("", "max_packet_bytes = 65_536\n", &lane);
    scene.site.start_hub();
    scene.site.start_gateway();
    let mut safe = scene.submit(1..=3);
    scene.site.wait_for("confirmed_total", 3, PATIENCE);
    let large = message(0, 4, 100_000);
    let mut stream = connect(scene.site.door).expect("the door");
    assert!(positive(&exchange(&mut stream, &large).expect("an answer")));
    safe.push(large);
    safe.extend(scene.submit(5..=6));
    held_status(&scene);
    let alarm = scene.event("held");
    assert!(alarm.contains("the broker or the hub takes 65536"), "{alarm}");
    let letters = others_continue(&scene, door);
    // Central IT raises the limit.
    let config = std::fs::read_to_string(scene.site.hub_config()).expect("hub.toml");
    std::fs::write(scene.site.hub_config(), config.replace("65_536", "1_048_576")).expect("written");
    scene.site.kill_hub();
    scene.site.start_hub();
    scene.gateway(&["outbox", "release", "--lane", "clinical"]);
    scene.all_confirmed();
    scene.holds_all(&[safe, letters]);
}

// ---- beyond: order, repetition, exchange -----------------------------------------------------------------------------

/// Lane `clinical` in the place of `letters`, and the other way round.
fn other_lane(post: &Post) -> Post {
    let topic = match post.topic.strip_suffix("/clinical") {
        Some(root) => format!("{root}/letters"),
        None => post.topic.replace("/letters", "/clinical"),
    };
    Post { topic, ..post.clone() }
}

/// What arrives in fours goes on in the other order, then once more, and each on the other lane's topic as well; of the receipts
/// and notices every other one goes to the other lane only.
fn exchanging() -> impl FnMut(&Post) -> Vec<Post> + Send + 'static {
    let (mut kept, mut count) = (Vec::new(), 0);
    move |post| {
        if post.is("txn") {
            kept.push(post.clone());
            if kept.len() < 4 {
                return vec![];
            }
            let four: Vec<Post> = std::mem::take(&mut kept);
            let exchanged: Vec<Post> = four.iter().map(other_lane).collect();
            let backward = four.iter().rev().cloned();
            return backward.chain(exchanged).chain(four.iter().cloned()).collect();
        }
        if post.is("receipt") || post.is("gap") {
            count += 1;
            return vec![if count % 2 == 0 { other_lane(post) } else { post.clone() }];
        }
        vec![post.clone()]
    }
}

#[test]
fn a_broker_that_reorders_repeats_and_exchanges_lanes_loses_nothing() {
    let (door, lane) = second_lane();
    let mut scene = Scene::new("", "", &lane);
    scene.site.start_hub();
    scene.site.start_gateway();
    scene.adversary.rule(exchanging());
    let safe = scene.submit(1..=40);
    let mut stream = connect(door).expect("the other door");
    let letters: Vec<_> = (1..=40).map(|number| message(5, number, 10)).collect();
    for body in &letters {
        assert!(positive(&exchange(&mut stream, body).expect("an answer")));
    }
    scene.log_line("hub", "Refused what a gateway sent");
    // A receipt of one lane confirms nothing of the other: what is confirmed is in the store.
    stays("confirmed more than is stored", || {
        let confirmed = scene.number("confirmed_total");
        let other = scene.site.store().join("B86022/gw1/letters.ndjson");
        let other = std::fs::read_to_string(other).unwrap_or_default().matches("\"specversion\"").count();
        confirmed as usize <= scene.line().len() + other
    });
    scene.adversary.pass();
    scene.all_confirmed();
    scene.holds_all(&[safe, letters]);
}

#[test]
fn what_was_said_before_says_nothing_when_it_is_repeated() {
    let mut scene = Scene::start("segment_records = 100\nretention_days = 0\n");
    let mut safe = scene.submit(1..=20);
    scene.site.wait_for("confirmed_total", 20, PATIENCE);
    // One of each: a gap notice, a will, another start of the gateway and of the hub.
    let mut lost = false;
    scene.adversary.hold(move |post| post.sequence() == 22 && !std::mem::replace(&mut lost, true));
    safe.extend(scene.submit(21..=30));
    scene.adversary.wait("a gap notice", |post| post.is("gap"));
    scene.site.wait_for("confirmed_total", 30, PATIENCE);
    scene.site.kill_gateway();
    let will = |post: &Post| post.is("status") && post.json()["reason"] == "connection lost (unconfirmed)";
    scene.adversary.wait("the will", will);
    scene.site.start_gateway();
    scene.site.kill_hub();
    scene.site.start_hub();
    safe.extend(scene.submit(31..=40));
    scene.site.wait_for("confirmed_total", 40, PATIENCE);
    let all = scene.adversary.seen(|_| true);
    for _ in 0..3 {
        all.iter().for_each(|post| scene.adversary.send(post));
        all.iter().rev().for_each(|post| scene.adversary.send(post));
    }
    safe.extend(scene.submit(41..=150));
    scene.site.wait_for("confirmed_total", 150, PATIENCE);
    scene.hub_says(&["list"], "online");
    let listed = text(&scene.site.hub_command(&["list"]));
    assert!(
        !listed.contains("two boxes") && !listed.contains("lost") && !listed.contains("WAITS"),
        "{listed}"
    );
    for code in ["hub.restored", "diverged", "tail.lost", "held", "key.refused", "hub.store"] {
        assert!(scene.books.events(code).is_empty(), "{code}: {:?}", scene.books.events(code));
    }
    scene.holds(safe);
}
