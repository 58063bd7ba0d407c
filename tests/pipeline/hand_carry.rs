//! Hand-carry: the age format against its own test kit and against Debian's `age`, and bundles from a real gateway to
//! a real hub and back, with link and file in either order.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use pgw_bundle::AgeError;
use pgw_bundle::keys::Identity;
use pgw_bundle::seal::{Decryptor, Encryptor};

use crate::harness::pipeline::copy_directory;
use crate::harness::proof::Proof;
use crate::harness::senders::Senders;
use crate::harness::site::{Site, SiteOptions};
use crate::harness::{Certificates, Fault, FaultProxy, Mosquitto, eventually_blocking};

const PATIENCE: Duration = Duration::from_secs(60);

// ---- the format

fn open(file: &[u8], identity: &Identity) -> (Vec<u8>, Result<(), AgeError>) {
    let mut plain = Vec::new();
    let mut opening = match Decryptor::new(file, identity) {
        Ok(opening) => opening,
        Err(error) => return (plain, Err(error)),
    };
    match opening.read_to_end(&mut plain) {
        Ok(_) => (plain, Ok(())),
        Err(error) => {
            let inner =
                error.into_inner().expect("an error of ours").downcast::<AgeError>().expect("an AgeError");
            (plain, Err(*inner))
        }
    }
}

#[test]
fn the_age_test_kit_says_the_same() {
    let path = std::env::var("PGW_AGE_VECTORS")
        .unwrap_or_else(|_| format!("{}/tests/vectors/age.txt", env!("CARGO_MANIFEST_DIR")));
    let text = std::fs::read_to_string(path).expect("the vectors");
    let mut seen = 0;
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let [name, expect, payload, identity, file] = line.split('\t').collect::<Vec<_>>()[..] else {
            panic!("not a vector: {line}");
        };
        seen += 1;
        let file = BASE64.decode(file).expect("base64");
        let identity = match Identity::from_file_text(identity) {
            Ok(identity) => identity,
            Err(_) => {
                assert_ne!(expect, "success", "{name}: its identity is refused");
                continue;
            }
        };
        let (plain, result) = open(&file, &identity);
        let found = match &result {
            Ok(()) => "success",
            Err(AgeError::OtherKey) => "no match",
            Err(AgeError::HeaderMac) => "HMAC failure",
            Err(AgeError::Header(_)) => "header failure",
            Err(AgeError::Chunk(_) | AgeError::Cut(_)) => "payload failure",
            Err(other) => panic!("{name}: {other}"),
        };
        // The file ends where its salt should be: only a header.
        assert_eq!(found, expect, "{name}: {result:?}");
        // For a bad file the kit says how much is good; our reader may return less.
        if expect == "success" {
            let digest = ring::digest::digest(&ring::digest::SHA256, &plain);
            assert_eq!(
                pgw_core::text::hex(digest.as_ref()),
                payload,
                "{name}: what was released before the end"
            );
        }
    }
    assert!(seen > 15, "the vectors were not found");
}

/// Debian's `age`; without it this machine cannot test that other tools open our files.
fn age(words: &[&str]) -> Output {
    match Command::new("age").args(words).output() {
        Ok(output) => output,
        Err(error) => panic!("`age` cannot be run ({error}): apt-get install age, as tests/all.sh does"),
    }
}

#[test]
fn debians_age_opens_ours_and_we_open_its() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).display().to_string();
    let identity = Identity::generate().unwrap();
    std::fs::write(path("key"), identity.to_file_text().as_bytes()).unwrap();
    for size in [0, 1, 65_536, 200_000] {
        let plain: Vec<u8> = (0..size).map(|at: usize| u8::try_from(at % 253).unwrap()).collect();
        let mut encryptor = Encryptor::new(Vec::new(), &[identity.recipient()]).unwrap();
        encryptor.write_all(&plain).unwrap();
        std::fs::write(path("ours.age"), encryptor.finish().unwrap()).unwrap();
        let opened = age(&["-d", "-i", &path("key"), &path("ours.age")]);
        assert!(opened.status.success(), "{}", String::from_utf8_lossy(&opened.stderr));
        assert!(opened.stdout == plain, "age read something else of {size} bytes");

        std::fs::write(path("plain"), &plain).unwrap();
        let _ = std::fs::remove_file(path("theirs.age"));
        let recipient = identity.recipient().to_string();
        let sealed = age(&["-r", &recipient, "-o", &path("theirs.age"), &path("plain")]);
        assert!(sealed.status.success(), "{}", String::from_utf8_lossy(&sealed.stderr));
        let (read, result) = open(&std::fs::read(path("theirs.age")).unwrap(), &identity);
        assert!(result.is_ok() && read == plain, "we read something else of {size} bytes");
    }
}

// ---- from a gateway to a hub and back

struct Carry {
    site: Site,
    proxy: FaultProxy,
    _broker: Mosquitto,
    _certificates: Certificates,
}

fn carry() -> Carry {
    let certificates = Certificates::new();
    let broker = Mosquitto::start(&certificates);
    let proxy = FaultProxy::start(broker.port());
    let options = SiteOptions { outbox: "segment_records = 200\n".into(), ..SiteOptions::default() };
    let mut site = Site::new(&certificates, proxy.port(), broker.port(), options);
    site.start_hub();
    site.start_gateway();
    Carry { site, proxy, _broker: broker, _certificates: certificates }
}

impl Carry {
    fn cut(&self) {
        self.proxy.set(Fault::Refuse);
        self.proxy.cut();
        self.site.wait_for_link(false);
    }

    fn gateway(&self, words: &[&str]) -> String {
        done(&self.site.gateway_command(words))
    }

    fn hub(&self, words: &[&str]) -> String {
        done(&self.site.hub_command(words))
    }

    fn file(&self, name: &str) -> String {
        self.site.path(name).display().to_string()
    }

    fn export(&self, name: &str) -> String {
        let to = self.file(name);
        self.gateway(&["export", "--to", &to]);
        to
    }

    fn nothing_is_left(&self) {
        let left = std::fs::read_dir(self.site.store()).unwrap().flatten();
        let left: Vec<_> = left.filter(|entry| !is_the_stores(&entry.file_name())).collect();
        assert!(left.is_empty(), "copies were left: {left:?}");
    }

    /// Anyone who can open the socket may give commands, and an aborted command leaves nothing behind.
    fn only_the_socket_is_needed(&self, bundle: &str, transactions: u64) {
        let socket = self.site.path("hub.sock");
        assert_eq!(std::fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o660);
        for (size, sent) in [(1_000_000, 100), (10, 10)] {
            let mut stream = UnixStream::connect(&socket).unwrap();
            let request =
                format!("{{\"command\":\"import\",\"bytes\":{size},\"receipts\":true,\"unsigned\":false}}\n");
            stream.write_all(request.as_bytes()).unwrap();
            let mut line = String::new();
            BufReader::new(&stream).read_line(&mut line).unwrap();
            assert_eq!(line, "{\"reply\":\"send\"}\n");
            stream.write_all(&vec![b'x'; sent]).unwrap();
            if sent < size {
                let second = self.site.hub_command(&["import", bundle]);
                assert_eq!(second.status.code(), Some(75), "one at a time: {second:?}");
                let printed = String::from_utf8_lossy(&second.stderr).into_owned();
                assert!(printed.contains("another import is under way"), "{printed}");
            }
            if sent == size {
                line.clear();
                BufReader::new(&stream).read_line(&mut line).unwrap();
                assert!(line.starts_with("{\"reply\":\"not_imported\""), "{line}");
            }
        }
        // The command reads neither the keys nor the store.
        let config = std::fs::read_to_string(self.site.hub_config()).unwrap();
        let elsewhere: String = config
            .lines()
            .map(|line| match line.split_once(" = ") {
                Some((key @ ("signing_key_file" | "carry_key_file" | "store_directory"), _)) => {
                    format!("{key} = \"/nowhere\"\n")
                }
                _ => format!("{line}\n"),
            })
            .collect();
        std::fs::write(self.site.hub_config(), elsewhere).unwrap();
        let to = self.file("again");
        let printed = self.hub(&["import", bundle, "--receipts-to", &to]);
        std::fs::write(self.site.hub_config(), config).unwrap();
        assert!(printed.contains(&format!("0 new, {transactions} already stored")), "{printed}");
        assert_eq!(std::fs::read_to_string(&to).unwrap().lines().count(), 1);
        self.nothing_is_left();
    }

    fn waiting(&self) -> u64 {
        self.site.status().expect("a status")["waiting"].as_u64().expect("a number")
    }

    fn prove(mut self, safe: &[Vec<Vec<u8>>]) {
        eventually_blocking("everything to be confirmed", PATIENCE, || (self.waiting() == 0).then_some(()));
        self.site.stop();
        self.hub(&["verify"]);
        let proof = Proof::of(&self.site.store(), safe).expect("the hub's files");
        println!("{}", proof.json());
        assert!(proof.accepted > 0 && proof.chain_ok, "{proof:?}");
        assert_eq!((proof.lost, proof.repeated, proof.out_of_order), (0, 0, 0), "{proof:?}");
    }
}

fn done(output: &Output) -> String {
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    text
}

fn refused(output: &Output, with: &str) {
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(65), "{text}");
    assert!(text.contains(with), "{with:?} is not said: {text}");
}

/// The hub's files besides the practices' folders.
fn is_the_stores(name: &std::ffi::OsStr) -> bool {
    let name = name.to_str().unwrap();
    let name = name.strip_suffix(".new").unwrap_or(name);
    ["B86022", "fleet.json", "identity.json", "lock", "session", "trusted-time"].contains(&name)
}

#[test]
fn while_the_link_is_down_a_bundle_and_receipts_by_file_do_all() {
    let carry = carry();
    let before = Senders::start(carry.site.door, 2, 100).join();
    carry.site.wait_for("confirmed_total", 200, PATIENCE);
    carry.cut();
    let safe = Senders::start(carry.site.door, 3, 250).join();
    // The first two senders' first messages are repetitions: only new ones wait.
    let waiting = 750 - before.iter().map(Vec::len).sum::<usize>() as u64;
    carry.site.wait_for("waiting", waiting, PATIENCE);

    let bundle = carry.export("one.age");
    assert_eq!(std::fs::metadata(&bundle).unwrap().permissions().mode() & 0o777, 0o600);
    let sealed = std::fs::read(&bundle).unwrap();
    assert!(sealed.starts_with(b"age-encryption.org/v1\n"), "it is no age file");
    // As long as that: three letters stand in one of a hundred such files by chance.
    let header = b"MSH|^~\\&|";
    assert!(!sealed.windows(header.len()).any(|window| window == header), "it is not sealed");
    // Nothing is replaced or left behind.
    assert_eq!(carry.site.gateway_command(&["export", "--to", &bundle]).status.code(), Some(74));
    let opened = age(&["-d", "-i", &carry.file("carry.key"), &bundle]);
    assert!(opened.status.success() && opened.stdout.starts_with(b"{\"pgw\":\"bundle\""));
    let printed = carry.hub(&["verify", "--bundle", &bundle]);
    assert!(
        printed.contains(&format!("clinical: ok: {waiting} transactions, from sequence 201 ")),
        "{printed}"
    );

    // The hub is running: it takes the file itself. Importing it twice stores nothing twice.
    let receipts = carry.file("receipts");
    let printed = carry.hub(&["import", &bundle, "--receipts-to", &receipts]);
    assert!(
        printed.contains(&format!("{waiting} transactions: {waiting} new, 0 already stored")),
        "{printed}"
    );
    let printed = carry.hub(&["import", &bundle]);
    assert!(
        printed.contains(&format!("{waiting} transactions: 0 new, {waiting} already stored")),
        "{printed}"
    );
    carry.nothing_is_left();

    carry.only_the_socket_is_needed(&bundle, waiting);

    // Still no link: the receipts arrive as a file.
    assert_eq!(carry.waiting(), waiting);
    let forged = std::fs::read_to_string(&receipts).unwrap().replace("hub1/clinical", "hub1/clinica1");
    std::fs::write(carry.file("forged"), forged).unwrap();
    refused(&carry.site.gateway_command(&["receipts", &carry.file("forged")]), "a receipt was rejected");
    assert_eq!(carry.waiting(), waiting, "a forged receipt confirms nothing");
    let printed = carry.gateway(&["receipts", &receipts]);
    assert!(printed.contains(&format!("confirmed through position {}", 200 + waiting)), "{printed}");
    assert_eq!(carry.waiting(), 0);
    assert!(
        carry.gateway(&["export", "--to", &carry.file("none.age")]).contains("no transactions are waiting")
    );
    assert!(!Path::new(&carry.file("none.age")).exists());

    // The link is back: nothing is sent twice, and new transactions pass.
    carry.proxy.set(Fault::Pass);
    carry.site.wait_for_link(true);
    let more = Senders::start(carry.site.door, 4, 260).join();
    drop(safe);
    carry.prove(&more);
}

#[test]
fn the_link_may_come_back_before_during_and_after_the_import() {
    let mut carry = carry();
    carry.site.wait_for_link(true);
    carry.cut();
    let _ = Senders::start(carry.site.door, 2, 200).join();
    let early = carry.export("early.age");
    let _ = Senders::start(carry.site.door, 4, 400).join();
    let late = carry.export("late.age");
    carry.site.wait_for("waiting", 1_600, PATIENCE);
    // A slow link is back while both files are imported, the newer one first.
    carry.proxy.set(Fault::Throttle(300_000));
    carry.site.wait_for_link(true);
    let printed = carry.hub(&["import", &late, &early]);
    assert_eq!(printed.matches(": imported").count(), 2, "{printed}");
    carry.proxy.set(Fault::Pass);
    eventually_blocking("the hub's own receipt", PATIENCE, || (carry.waiting() == 0).then_some(()));
    // And once more, without a hub, when everything is there.
    carry.site.kill_hub();
    let printed = carry.hub(&["import", &early]);
    assert!(printed.contains("0 new, 400 already stored"), "{printed}");
    carry.site.start_hub();
    let more = Senders::start(carry.site.door, 5, 420).join();
    carry.prove(&more);
}

#[test]
fn without_daemon_and_without_hub_the_files_do_the_same() {
    let mut carry = carry();
    carry.cut();
    let safe = Senders::start(carry.site.door, 3, 150).join();
    carry.site.kill_gateway();
    carry.site.kill_hub();
    let bundle = carry.export("one.age");
    let receipts = carry.file("receipts");
    let printed = carry.hub(&["import", &bundle, "--receipts-to", &receipts]);
    assert!(printed.contains("450 new"), "{printed}");
    assert_eq!(carry.site.gateway_command(&["receipts", &receipts]).status.code(), Some(69), "no daemon");
    carry.site.start_gateway();
    carry.gateway(&["receipts", &receipts]);
    assert_eq!(carry.waiting(), 0);
    carry.site.start_hub();
    carry.proxy.set(Fault::Pass);
    carry.site.wait_for_link(true);
    carry.prove(&safe);
}

#[test]
fn verify_says_by_which_key_a_bundle_is_signed() {
    let carry = carry();
    carry.cut();
    let _ = Senders::start(carry.site.door, 1, 20).join();
    let bundle = carry.export("signed.age");
    let shown = carry.gateway(&["key", "signing"]);
    let id = shown.lines().find_map(|line| line.strip_prefix("id")).expect("an id").trim().to_owned();
    let printed = carry.hub(&["verify", "--bundle", &bundle]);
    assert!(printed.contains(&format!("signed with key {id} through 20")), "{printed}");
    // The hub's list is enough, and without one it says what it has not done.
    let (list, away) = (carry.file("gateways.toml"), carry.file("gateways.away"));
    std::fs::rename(&list, &away).unwrap();
    let unchecked = carry.site.hub_command(&["verify", "--bundle", &bundle]);
    assert_eq!(unchecked.status.code(), Some(78));
    let said = String::from_utf8_lossy(&unchecked.stderr).into_owned();
    assert!(said.contains("its signatures were NOT checked"), "{said}");
    std::fs::rename(&away, &list).unwrap();
    carry.hub(&["gateway", "revoke", "B86022.gw1", &id]);
    let verified = carry.site.hub_command(&["verify", "--bundle", &bundle]);
    refused(&verified, &format!("key {id} has signed it, which is revoked"));
    let printed = String::from_utf8_lossy(&verified.stdout).into_owned();
    assert!(printed.contains("NOT signed from sequence 1 of epoch"), "{printed}");
    refused(&carry.site.hub_command(&["import", &bundle]), "sequence 1 of epoch");
}

#[test]
fn an_unsigned_bundle_is_kept_beside_its_lane_and_counts_for_nothing() {
    let mut carry = carry();
    carry.cut();
    let safe = Senders::start(carry.site.door, 1, 20).join();
    let bundle = carry.export("unsigned.age");
    let shown = carry.gateway(&["key", "signing"]);
    let key =
        shown.lines().find_map(|line| line.strip_prefix("public key")).expect("a key").trim().to_owned();
    carry.hub(&["gateway", "remove", "B86022.gw1", "--yes"]);
    refused(
        &carry.site.hub_command(&["import", &bundle]),
        "`practice-hub import --unsigned` keeps such a file",
    );
    // By the running hub, and by the command alone.
    let receipts = carry.file("receipts");
    let printed = carry.hub(&["import", "--unsigned", &bundle, "--receipts-to", &receipts]);
    assert!(printed.contains("unsigned.age: kept beside its lanes, NOT imported"), "{printed}");
    assert!(printed.contains("clinical is not signed from sequence 1 of epoch"), "{printed}");
    assert_eq!(std::fs::read_to_string(&receipts).unwrap(), "", "there is nothing to confirm");
    carry.site.kill_hub();
    let printed = carry.hub(&["import", "--unsigned", &bundle]);
    assert!(printed.contains("lies beside its lanes already"), "{printed}");
    let kept: Vec<_> = std::fs::read_dir(carry.site.store().join("B86022/gw1/clinical.unsigned"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    assert_eq!(kept.len(), 1, "{kept:?}");
    assert_eq!(std::fs::read(&kept[0]).unwrap(), std::fs::read(&bundle).unwrap(), "it is whole");
    for command in ["verify", "list"] {
        let printed = carry.hub(&[command]);
        assert!(
            printed.contains("B86022/gw1/clinical: unsigned bundles beside it: 1, since 20"),
            "{printed}"
        );
    }
    assert_eq!(carry.waiting(), 20);
    // No id became known: once the gateway is listed all of it is new. With the option too, as it is signed.
    carry.site.start_hub();
    carry.site.wait_for_hub();
    carry.hub(&["gateway", "add", "B86022.gw1", "--public-key", &key]);
    let printed = carry.hub(&["import", "--unsigned", &bundle]);
    assert!(printed.contains("20 transactions: 20 new, 0 already stored"), "{printed}");
    carry.proxy.set(Fault::Pass);
    carry.prove(&safe);
}

#[test]
fn a_bundle_that_is_cut_altered_anothers_or_after_a_gap_is_refused() {
    let mut carry = carry();
    carry.cut();
    let _ = Senders::start(carry.site.door, 1, 1_500).join();
    let whole = carry.export("whole.age");
    let after = carry.file("after.age");
    carry.gateway(&["export", "--to", &after, "--from", "41"]);
    carry.site.kill_hub();
    refused(&carry.site.hub_command(&["import", &after]), "sequence 41 of epoch");
    refused(&carry.site.hub_command(&["import", &after]), "practice-gateway export --end");

    let bytes = std::fs::read(&whole).unwrap();
    let bad = carry.file("bad.age");
    for (what, changed) in [
        ("cut", bytes[..bytes.len() - 5_000].to_vec()),
        ("altered", {
            let mut bytes = bytes.clone();
            // Late in the file: what comes before it would be stored if the file were not read to its end first.
            let middle = bytes.len() - 3_000;
            bytes[middle] ^= 1;
            bytes
        }),
    ] {
        std::fs::write(&bad, changed).unwrap();
        refused(&carry.site.hub_command(&["import", &bad]), "altered or cut");
        refused(&carry.site.hub_command(&["verify", "--bundle", &bad]), "after sequence");
        println!("{what}");
    }
    // Complete, but for another hub.
    let other = Identity::generate().unwrap();
    let config = std::fs::read_to_string(carry.site.gateway_config()).unwrap();
    let line = config.lines().find(|line| line.starts_with("recipient")).unwrap();
    carry.site.kill_gateway();
    std::fs::write(
        carry.site.gateway_config(),
        config.replace(line, &format!("recipient = \"{}\"", other.recipient())),
    )
    .unwrap();
    let theirs = carry.export("theirs.age");
    refused(&carry.site.hub_command(&["import", &theirs]), "not encrypted for this hub's key");
    // Nothing of this was stored.
    let printed = carry.hub(&["import", &whole]);
    assert!(printed.contains("1500 new, 0 already stored"), "{printed}");
}

#[test]
fn a_bundle_that_does_not_continue_its_lane_is_made_again_after_the_hubs_end() {
    let mut carry = carry();
    carry.site.wait_for_link(true);
    let _ = Senders::start(carry.site.door, 1, 60).join();
    carry.site.wait_for("confirmed_total", 60, PATIENCE);
    // The hub is restored to here later.
    let (store, copy) = (carry.site.store(), carry.site.path("hub.copy"));
    let (data, image) = (carry.site.path("data"), carry.site.path("box.copy"));
    carry.site.kill_hub();
    copy_directory(&store, &copy);
    carry.site.start_hub();
    carry.site.wait_for_link(true);
    let _ = Senders::start(carry.site.door, 1, 100).join();
    let confirmed = |carry: &Carry| carry.site.status().unwrap()["confirmed_total"].as_u64().unwrap();
    eventually_blocking("all to be confirmed", PATIENCE, || (carry.waiting() == 0).then_some(()));
    let of_image = confirmed(&carry);
    // And the box from this image, so that a second epoch begins.
    carry.site.kill_gateway();
    copy_directory(&data, &image);
    carry.site.start_gateway();
    let _ = Senders::start(carry.site.door, 2, 150).join();
    eventually_blocking("all to be confirmed", PATIENCE, || (carry.waiting() == 0).then_some(()));
    carry.site.kill_gateway();
    std::fs::rename(&data, carry.site.path("data.newer")).unwrap();
    copy_directory(&image, &data);
    carry.site.start_gateway();
    let _ = Senders::start(carry.site.door, 3, 180).join();
    eventually_blocking("all to be confirmed", PATIENCE, || {
        (carry.waiting() == 0 && confirmed(&carry) > of_image).then_some(())
    });
    let confirmed = confirmed(&carry);
    carry.cut();
    carry.site.kill_hub();
    std::fs::remove_dir_all(&store).unwrap();
    copy_directory(&copy, &store);
    let _ = Senders::start(carry.site.door, 4, 200).join();
    let waiting = carry.waiting();

    // The bundle begins after what the gateway believes to be at the hub.
    let bundle = carry.export("one.age");
    refused(&carry.site.hub_command(&["import", &bundle]), "practice-gateway export --end");
    let end = format!("{bundle}.clinical.end.json");
    let again = carry.file("two.age");
    let key = carry.file("carry.key");
    refused(
        &carry.site.gateway_command(&["export", "--to", &again, "--end", &key]),
        "it is not a file that `practice-hub import` has written",
    );
    let both = carry.site.gateway_command(&["export", "--to", &again, "--end", &end, "--from", "1"]);
    assert_eq!(both.status.code(), Some(64), "{both:?}");
    let printed = carry.gateway(&["export", "--to", &again, "--end", &end]);
    let all = waiting + confirmed - 60;
    assert!(printed.contains(&format!("clinical: {all} transactions, positions 61 to")), "{printed}");
    assert_eq!(carry.waiting(), waiting, "a file moves nothing");
    let altered = std::fs::read_to_string(&end).unwrap().replace("through", "thr0ugh");
    let forged = carry.file("forged.json");
    std::fs::write(&forged, altered).unwrap();
    let to = carry.file("three.age");
    refused(&carry.site.gateway_command(&["export", "--to", &to, "--end", &forged]), "does not count");
    refused(
        &carry.site.gateway_command(&["export", "--to", &to, "--end", &end, "--lane", "letters"]),
        "there is no lane",
    );
    let printed = carry.hub(&["import", &again]);
    assert!(printed.contains(&format!("{all} new, 0 already stored")), "{printed}");

    // The image has never been where the line ends now. Only the hub's answer can say where it continues.
    carry.site.kill_gateway();
    std::fs::rename(&data, carry.site.path("data.newest")).unwrap();
    copy_directory(&image, &data);
    carry.site.start_gateway();
    let safe = Senders::start(carry.site.door, 5, 230).join();
    let bundle = carry.export("three.age");
    refused(&carry.site.hub_command(&["import", &bundle]), "practice-gateway export --end");
    let end = format!("{bundle}.clinical.end.json");
    refused(
        &carry.site.gateway_command(&["export", "--to", &carry.file("four.age"), "--end", &end]),
        "only an answer of the hub over the link can say",
    );
    carry.site.start_hub();
    carry.proxy.set(Fault::Pass);
    carry.site.wait_for_link(true);
    eventually_blocking("everything to be confirmed", PATIENCE, || (carry.waiting() == 0).then_some(()));
    refused(
        &carry.site.gateway_command(&["export", "--to", &carry.file("no.age"), "--end", &end]),
        "leave out --end",
    );
    carry.site.stop();
    carry.hub(&["verify"]);
    // The image did not know what had been accepted after it, so the senders' repetitions were new to it.
    let proof = Proof::of(&carry.site.store(), &safe).expect("the hub's files");
    assert!(proof.lost == 0 && proof.chain_ok, "{proof:?}");
}
