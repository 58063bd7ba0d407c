//! The hub's list of gateways as central IT changes it: by commands, by hand, with and without a running hub.

use std::process::Output;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use pgw_core::wire::signature::PublicKey;
use serde_json::Value;

use crate::harness::site::{Site, SiteOptions};
use crate::harness::{Certificates, eventually_blocking, ports};

const PATIENCE: Duration = Duration::from_secs(20);

/// A site whose hub finds no broker: its list needs none.
fn site() -> (Certificates, Site) {
    let (certificates, nobody) = (Certificates::new(), ports::reserve());
    let options = SiteOptions { unlisted: true, ..SiteOptions::default() };
    let site = Site::new(&certificates, nobody, nobody, options);
    (certificates, site)
}

fn key(byte: u8) -> String {
    BASE64.encode([byte; 32])
}

fn id(byte: u8) -> String {
    key(byte).parse::<PublicKey>().unwrap().id().to_string()
}

fn text(output: &Output) -> (Option<i32>, String, String) {
    let lossy = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), lossy(&output.stdout), lossy(&output.stderr))
}

/// Runs `practice-hub gateway WORDS`, which must succeed; returns what it printed.
fn done(site: &Site, words: &[&str]) -> String {
    let (code, out, err) = text(&site.hub_command(&[&["gateway"], words].concat()));
    assert_eq!((code, err.as_str()), (Some(0), ""), "{words:?}: {out}");
    out
}

/// Runs it and expects a refusal; returns the reason.
fn refused(site: &Site, words: &[&str], code: i32) -> String {
    let (ended, out, err) = text(&site.hub_command(&[&["gateway"], words].concat()));
    assert_eq!((ended, out.as_str()), (Some(code), ""), "{words:?}: {err}");
    err
}

fn list(site: &Site) -> Value {
    serde_json::from_str(&done(site, &["list", "--json"])).unwrap()
}

fn start_hub(site: &mut Site) {
    site.start_hub();
    eventually_blocking("the hub to listen", PATIENCE, || site.path("hub.sock").exists().then_some(()));
}

#[test]
fn a_gateway_is_added_changed_and_removed() {
    let (_certificates, site) = site();
    let (one, two) = (key(1), key(2));
    assert_eq!(done(&site, &["list"]), "serial 0, 0 gateways\n");
    let added = done(
        &site,
        &[
            "add",
            "B86022.gw1",
            "--public-key",
            &one,
            "--display-name",
            "Chapeltown",
            "--lane",
            "a",
            "--lane",
            "a",
        ],
    );
    assert!(added.contains(&format!("B86022.gw1 is added: key {} signs", id(1))), "{added}");
    assert!(added.contains("the hub is not running: it reads the list when it starts"), "{added}");
    assert!(added.contains("practice-hub acl"), "{added}");
    assert!(refused(&site, &["add", "B86022.gw1", "--public-key", &two], 65).contains("in the list already"));
    assert!(
        refused(&site, &["add", "B86023.gw1", "--public-key", &one], 65).contains("belongs to B86022.gw1")
    );
    for wrong in [["B86022", &one], ["b86022.gw1", &one], ["B86023.gw1", "AAAA"]] {
        let error = refused(&site, &["add", wrong[0], "--public-key", wrong[1]], 64);
        assert!(error.contains("must be"), "{error}");
    }
    let set = ["set", "B86022.gw1", "--district", "Bradford", "--any-lane", "--quota-bytes-per-day", "7000"];
    let changed = done(&site, &set);
    let line = "name Chapeltown, district Bradford, lanes any, quota 7000 bytes/day, window its own";
    assert!(changed.contains(line), "{changed}");
    refused(&site, &["set", "B86022.gw1"], 64);
    refused(&site, &["set", "B86023.gw1", "--any-lane"], 65);
    let shown = list(&site);
    assert_eq!(shown["serial"], 2, "{shown}");
    let gateway = &shown["gateways"][0];
    assert_eq!((&gateway["gateway"], &gateway["signing_key"]), (&"B86022.gw1".into(), &id(1).into()));
    assert_eq!(
        (&gateway["quota_bytes_per_day"], &gateway["keys"][0]["state"]),
        (&7000.into(), &"signing".into())
    );
    let table = done(&site, &["list"]);
    assert!(table.contains("Bradford") && table.ends_with("serial 2, 1 gateway\n"), "{table}");

    let dry = done(&site, &["remove", "B86022.gw1"]);
    assert!(dry.contains("Nothing was changed") && dry.contains("can no longer be verified"), "{dry}");
    assert_eq!(list(&site)["serial"], 2);
    assert!(done(&site, &["remove", "B86022.gw1", "--yes"]).contains("stay in the store"));
    assert_eq!((&list(&site)["serial"], &list(&site)["gateways"]), (&3.into(), &Value::Array(vec![])));
    refused(&site, &["remove", "B86022.gw1"], 65);
}

#[test]
fn a_key_is_rotated_and_a_stolen_one_revoked_for_good() {
    let (_certificates, site) = site();
    let [one, two, three] = [1, 2, 3].map(key);
    done(&site, &["add", "B86022.gw1", "--public-key", &one]);
    let rotated = done(&site, &["key", "B86022.gw1", &two]);
    assert!(rotated.contains(&format!("signs with key {} from now on", id(2))), "{rotated}");
    assert!(rotated.contains(&format!("key {} is kept to verify", id(1))), "{rotated}");
    assert!(!rotated.contains("practice-hub acl"), "the broker's rules do not depend on it: {rotated}");
    assert!(done(&site, &["key", "B86022.gw1", &two]).contains("nothing has changed"));
    assert_eq!(list(&site)["serial"], 2);
    let rules = |site: &Site| text(&site.hub_command(&["acl"])).1;
    assert!(rules(&site).contains("user B86022.gw1\n"));

    let revoked = done(&site, &["revoke", "B86022.gw1", &id(2)]);
    assert!(revoked.contains("is revoked; no command can undo this"), "{revoked}");
    assert!(revoked.contains("has no signing key now") && revoked.contains("practice-hub acl"), "{revoked}");
    assert!(!rules(&site).contains("user B86022.gw1\n"));
    assert!(list(&site)["gateways"][0]["signing_key"].is_null());
    assert!(done(&site, &["list"]).ends_with(", 1 without a signing key\n"));
    let checked = text(&site.hub_command(&["check"])).1;
    assert!(checked.contains("NOTE  gateways       1 without a signing key: B86022.gw1"), "{checked}");
    assert!(refused(&site, &["key", "B86022.gw1", &two], 65).contains("is revoked and cannot be used again"));
    assert!(refused(&site, &["revoke", "B86022.gw1", &id(9)], 65).contains("has no key"));
    assert!(
        done(&site, &["revoke", "B86022.gw1", &two]).contains("revoked already"),
        "the whole key is an id too"
    );
    assert!(done(&site, &["key", "B86022.gw1", &three]).contains("it had no signing key"));
    assert!(rules(&site).contains("user B86022.gw1\n"));
}

#[test]
fn commands_at_once_lose_nothing() {
    let (_certificates, site) = site();
    std::thread::scope(|threads| {
        for n in 1..=8 {
            let site = &site;
            threads.spawn(move || done(site, &["add", &format!("B8602{n}.gw1"), "--public-key", &key(n)]));
        }
    });
    let shown = list(&site);
    assert_eq!((&shown["serial"], shown["gateways"].as_array().unwrap().len()), (&8.into(), 8));
}

#[test]
fn a_running_hub_reads_the_list_again_and_keeps_it_where_the_file_is_wrong() {
    let (_certificates, mut site) = site();
    let file = site.path("gateways.toml");
    start_hub(&mut site);
    let added = done(&site, &["add", "B86022.gw1", "--public-key", &key(1)]);
    assert!(added.contains("the hub has read the list: serial 1\n"), "{added}");

    let good = std::fs::read_to_string(&file).unwrap().replace("serial = 1", "serial = 41");
    let hangup = |site: &Site| {
        let pid = rustix::process::Pid::from_raw(site.hub_pid().cast_signed()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::HUP).unwrap();
    };
    let logged = |site: &Site, what: &str| {
        eventually_blocking(what, PATIENCE, || site.log("hub").contains(what).then_some(()));
    };
    std::fs::write(&file, &good).unwrap();
    hangup(&site);
    logged(&site, "serial=41");

    let wrong = good.replace("state = \"signing\"", "state = \"stolen\"");
    std::fs::write(&file, &wrong).unwrap();
    hangup(&site);
    logged(&site, "gateway.key.state");
    let log = site.log("hub");
    let line = log.lines().find(|line| line.contains("ERROR") && line.contains("gateway.key.state"));
    let at = wrong.lines().position(|line| line.contains("stolen")).unwrap() + 1;
    assert!(line.is_some_and(|line| line.contains(&format!("gateways.toml:{at}: "))), "{log}");
    let (code, _, err) = text(&site.hub_command(&["check"]));
    assert_eq!(code, Some(78), "{err}");
    assert!(refused(&site, &["key", "B86022.gw1", &key(2)], 78).contains("gateway.key.state"));
    assert_eq!(std::fs::read_to_string(&file).unwrap(), wrong, "a list that is wrong is not overwritten");

    std::fs::write(&file, &good).unwrap();
    let again = done(&site, &["key", "B86022.gw1", &key(1)]);
    assert!(
        again.contains("nothing has changed") && again.contains("the hub has read the list: serial 41"),
        "{again}"
    );
    site.stop();

    std::fs::write(&file, &wrong).unwrap();
    site.start_hub();
    let ended = eventually_blocking("the hub to end", PATIENCE, || site.hub_ended());
    assert_eq!(ended.code(), Some(78));
    assert!(site.log("hub").contains("cannot read the list of gateways"), "{}", site.log("hub"));
}
