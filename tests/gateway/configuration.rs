//! Configuration: the reference files are complete and correct, and errors name file, line, key and what is allowed.

use std::path::{Path, PathBuf};

use pgw_gateway::config::GatewayConfig;
use pgw_hub::config::HubConfig;
use pgw_hub::gateways::Gateways;

const GATEWAY: &str = include_str!("../../config/gateway.toml");
const HUB: &str = include_str!("../../config/hub.toml");
const LIST: &str = include_str!("../../config/gateways.toml");

/// The required keys; everything else has a default.
const REQUIRED_GATEWAY: &str = r#"
practice = "B86022"
gateway = "gw1"
[[mllp]]
listen = "127.0.0.1:2575"
[[http]]
listen = "127.0.0.1:8080"
[[folder]]
path = "/srv/practice-gateway/in"
[uplink]
upstreams = ["broker.example.nhs.uk:8883"]
ca_file = "/etc/practice-gateway/ca.pem"
certificate_file = "/etc/practice-gateway/gateway.pem"
key_file = "/etc/practice-gateway/gateway.key"
[[hub]]
name = "hub1"
public_key = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
"#;
const REQUIRED_HUB: &str = r#"
hub = "hub1"
[uplink]
upstreams = ["broker.example.nhs.uk:8883"]
ca_file = "/etc/practice-hub/ca.pem"
certificate_file = "/etc/practice-hub/hub.pem"
key_file = "/etc/practice-hub/hub.key"
"#;

struct File {
    _directory: tempfile::TempDir,
    path: PathBuf,
}

fn file(text: &str) -> File {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("it.toml");
    std::fs::write(&path, text).unwrap();
    File { _directory: directory, path }
}

fn gateway(text: &str) -> Result<GatewayConfig, String> {
    let file = file(text);
    GatewayConfig::load(&file.path).map_err(|error| error.to_string())
}

fn hub(text: &str) -> Result<HubConfig, String> {
    let file = file(text);
    HubConfig::load(&file.path).map_err(|error| error.to_string())
}

fn list(text: &str) -> Result<Gateways, String> {
    let file = file(text);
    Gateways::load(&file.path).map_err(|error| error.to_string())
}

/// The settings without what depends on the file itself.
fn settings(mut config: GatewayConfig) -> String {
    config.file = PathBuf::new();
    config.uplink.info.configuration_digest = String::new();
    format!("{config:#?}")
}

#[test]
fn the_defaults_in_the_reference_files_are_the_defaults_in_the_code() {
    let (written, by_default) = (gateway(GATEWAY).unwrap(), gateway(REQUIRED_GATEWAY).unwrap());
    assert_eq!(settings(written), settings(by_default));
    let (mut written, mut by_default) = (hub(HUB).unwrap(), hub(REQUIRED_HUB).unwrap());
    (written.file, by_default.file) = (PathBuf::new(), PathBuf::new());
    assert_eq!(format!("{written:#?}"), format!("{by_default:#?}"));
}

/// The keys of a table that the code knows, from the error about an unknown one.
fn keys(table: &str, load: &dyn Fn(&str) -> String) -> Vec<String> {
    let error = load(&format!("{table}\nno_such_key = 1\n"));
    let (_, list) = error.split_once("expected ").unwrap_or_else(|| panic!("{table}: {error}"));
    let (list, _) = list.rsplit_once(", in `").unwrap_or((list, ""));
    let known: Vec<String> = list.split('`').skip(1).step_by(2).map(str::to_owned).collect();
    assert!(!known.is_empty(), "{error}");
    known
}

/// The part of a reference file that belongs to a table's header; the beginning for none.
fn section<'a>(text: &'a str, table: &str) -> Vec<&'a str> {
    let mut lines = text.lines().skip_while(|line| !table.is_empty() && !line.starts_with(table));
    if !table.is_empty() {
        assert!(lines.next().is_some(), "{table} is not in the reference file");
    }
    lines.take_while(|line| !line.starts_with('[')).collect()
}

fn every_key_is_there_with_a_comment(text: &str, load: &dyn Fn(&str) -> String) {
    let top = keys("", load);
    let mut tables = vec![String::new()];
    for line in text.lines().filter(|line| line.starts_with('[')) {
        tables.push(line.to_owned());
        let name = line.trim_matches(['[', ']']);
        assert!(top.iter().any(|known| known == name), "{name} is no table");
    }
    for table in &tables {
        let lines = section(text, table);
        for key in keys(table, load) {
            let is_table = tables.iter().any(|known| known.trim_matches(['[', ']']) == key);
            if table.is_empty() && is_table {
                continue;
            }
            let start = format!("{key} = ");
            let line = lines.iter().find(|line| line.trim_start_matches("# ").starts_with(&start));
            let line = line.unwrap_or_else(|| panic!("{table} {key} is not in the reference file"));
            let comment = line.rsplit_once("# ").map_or("", |(_, comment)| comment);
            assert!(comment.len() > 5 && !comment.starts_with(&start), "{table} {key} has no comment");
        }
    }
}

#[test]
fn every_key_that_the_code_knows_is_in_its_reference_file_with_a_comment() {
    every_key_is_there_with_a_comment(GATEWAY, &|text| gateway(text).unwrap_err());
    every_key_is_there_with_a_comment(HUB, &|text| hub(text).unwrap_err());
}

#[test]
fn every_key_of_the_list_of_gateways_is_in_the_reference_list() {
    assert_eq!(list(LIST).unwrap().gateways.len(), 1);
    // With what is commented out as well: those keys are spelt right too.
    list(&LIST.replace("# lanes", "lanes").replace("# quota", "quota").replace("# window", "window"))
        .unwrap();
    for table in ["", "[[gateway]]", "[[gateway.key]]"] {
        let above = if table == "[[gateway.key]]" { "[[gateway]]\nname = \"B86022.gw1\"\n" } else { "" };
        for key in keys(&format!("{above}{table}"), &|text| list(text).unwrap_err()) {
            let there = section(LIST, table)
                .iter()
                .any(|line| line.trim_start_matches("# ").starts_with(&format!("{key} = ")));
            let is_table =
                LIST.contains(&format!("[[{key}]]")) || LIST.contains(&format!("[[gateway.{key}]]"));
            assert!(there || is_table, "{table} {key} is not in config/gateways.toml");
        }
    }
}

/// Replaces one line of the reference file; returns its number with the error.
fn spoiled(old: &str, new: &str) -> (usize, String) {
    let number =
        GATEWAY.lines().position(|line| line.starts_with(old)).unwrap_or_else(|| panic!("{old}")) + 1;
    let text: Vec<&str> =
        GATEWAY.lines().enumerate().map(|(i, line)| if i + 1 == number { new } else { line }).collect();
    (number, gateway(&text.join("\n")).expect_err(new))
}

#[test]
fn an_error_names_file_line_key_and_what_is_allowed() {
    for (old, new, key, allowed) in [
        ("practice", "practice = 'b86022'", "practice", "ODS code"),
        ("gateway", "gateway = 'gw/1'", "gateway", "lower-case letters"),
        ("name = \"clinical\"", "name = '+'", "lane.name", "lower-case letters"),
        ("listen", "listen = 'localhost'", "mllp.listen", "an IP address and a port"),
        ("lane = ", "lane = 'urgent'", "mllp.lane", "the name of a [[lane]]"),
        (
            "frame_limit_bytes",
            "frame_limit_bytes = 20_000_001",
            "mllp.frame_limit_bytes",
            "from 1024 to 20000000",
        ),
        ("on_unavailable", "on_unavailable = 'nack'", "mllp.on_unavailable", "\"close\" or \"reject\""),
        ("allow_addresses", "allow_addresses = ['10.0.0.0/33']", "mllp.allow_addresses", "prefix length"),
        ("allow_senders", "allow_senders = ['LAB']", "mllp.allow_senders", "MSH-3|MSH-4"),
        ("segment_records", "segment_records = 1", "outbox.segment_records", "from 16 to 1000000"),
        ("retention_days", "retention_days = -1", "outbox.retention_days", "from 0 to 3650"),
        ("queue_bytes", "queue_bytes = 1000", "outbox.queue_bytes", "from 20000000"),
        ("max_body_bytes", "max_body_bytes = 268_419_072", "outbox.max_body_bytes", "from 1024 to 268419071"),
        ("min_free_percent", "min_free_percent = 100", "outbox.min_free_percent", "from 0 to 90"),
        ("upstreams", "upstreams = ['broker']", "uplink.upstreams", "\"host:port\""),
        ("keep_alive_seconds", "keep_alive_seconds = 4.9", "uplink.keep_alive_seconds", "from 5 to 600"),
        ("keep_alive_seconds", "keep_alive_seconds = nan", "uplink.keep_alive_seconds", "from 5 to 600"),
        ("confirm", "confirm = 'ack'", "uplink.confirm", "\"receipt\" or \"puback\""),
        ("public_key = ", "public_key = 'AAAA'", "hub.public_key", "32 bytes in base64"),
        ("# public_key_file", "public_key_file = 'x'", "hub.public_key_file", "left out"),
        ("take", "take = 'now'", "folder.take", "\"rename\" or \"ctl\""),
        ("path", "path = '/var/lib/practice-gateway/in'", "folder.path", "outside data_directory"),
        ("accepted", "accepted = 'a/b'", "folder.accepted", "the name of a subfolder"),
        ("rejected", "rejected = 'accepted'", "folder.rejected", "another name than"),
        ("settle_seconds", "settle_seconds = -1", "folder.settle_seconds", "from 0 to 3600"),
        ("content_type", "content_type = 'pdf'", "folder.content_type", "a media type"),
        ("type = ", "type = 'a b'", "folder.type", "letters, digits"),
        (
            "by_extension",
            "by_extension = [{extension = '.edi'}]",
            "folder.by_extension.extension",
            "after its last dot",
        ),
        ("type_prefix", "type_prefix = 'org.Example.'", "events.type_prefix", "each with a dot behind it"),
        (
            "type_prefix",
            &format!("type_prefix = '{}.'", "p".repeat(128)),
            "events.type_prefix",
            "at most 128",
        ),
        ("type_prefix", "type_prefix = 'org.x-.'", "events.type_prefix", "begins or ends with a hyphen"),
        ("type_suffix", "type_suffix = '.-1'", "events.type_suffix", "begins or ends with a hyphen"),
        ("type_suffix", "type_suffix = 'v1'", "events.type_suffix", "for example \".v1\""),
        ("type_suffix", &format!("type_suffix = '.{}'", "s".repeat(56)), "events.type_suffix", "at most 56"),
        ("level", "level = 'loud'", "log.level", "\"error\" or"),
    ] {
        let (line, error) = spoiled(old, new);
        assert!(error.contains(&format!("it.toml:{line}: {key} = ")), "{new}: {error}");
        assert!(error.contains(allowed), "{new}: {error}");
        assert_eq!(error.matches("is not allowed").count(), 1, "{new}: {error}");
    }
}

#[test]
fn an_unknown_or_ill_typed_key_is_named_with_its_line() {
    let (line, error) = spoiled("window = ", "windows = 64");
    assert!(error.contains(&format!("it.toml:{line}: ")), "{error}");
    assert!(error.contains("`windows`") && error.contains("`window`"), "{error}");
    let (line, error) = spoiled("segment_bytes", "segment_bytes = \"32 MiB\"");
    assert!(error.contains(&format!("it.toml:{line}: ")) && error.contains("segment_bytes"), "{error}");
    let (line, error) = spoiled("segment_bytes", "segment_bytes = 32 MiB");
    assert!(error.contains(&format!("it.toml:{line}: ")), "{error}");
}

#[test]
fn a_missing_key_is_named_with_what_it_could_be() {
    for (key, shown) in [
        ("practice", "practice is missing"),
        ("gateway", "gateway is missing"),
        ("listen", "mllp.listen is missing"),
        ("path", "folder.path is missing"),
        ("upstreams", "uplink.upstreams is missing"),
        ("ca_file", "uplink.ca_file is missing"),
        ("certificate_file", "uplink.certificate_file is missing"),
        ("key_file", "uplink.key_file is missing"),
        ("name", "hub.name is missing"),
        ("public_key", "hub.public_key is missing"),
    ] {
        let text: Vec<&str> = REQUIRED_GATEWAY.lines().filter(|line| !line.starts_with(key)).collect();
        let error = gateway(&text.join("\n")).expect_err(key);
        assert!(error.contains(shown) && error.contains("it.toml"), "{error}");
    }
}

#[test]
fn without_a_hub_only_a_puback_can_confirm() {
    let (without, _) = REQUIRED_GATEWAY.split_once("[[hub]]").unwrap();
    assert!(gateway(without).unwrap_err().contains("[[hub]] is missing"));
    let puback = without.replace("[uplink]", "[uplink]\nconfirm = \"puback\"");
    assert!(gateway(&puback).unwrap().uplink.delivery.confirm_on_puback);
}

#[test]
fn names_are_given_once() {
    let lanes = format!("{REQUIRED_GATEWAY}\n[[lane]]\nname = \"a\"\n[[lane]]\nname = \"a\"\n");
    assert!(gateway(&lanes).unwrap_err().contains("different from the other lanes' names"));
    for (more, what) in
        [("path = \"/a\"", "names"), ("path = \"/srv/practice-gateway/in\"\nname = \"b\"", "paths")]
    {
        let folders = format!("{REQUIRED_GATEWAY}\n[[folder]]\n{more}\n");
        let error = gateway(&folders).unwrap_err();
        assert!(error.contains(&format!("different from the other folders' {what}")), "{error}");
    }
    let (_, hub) = REQUIRED_GATEWAY.split_once("[[hub]]").unwrap();
    let hubs = format!("{REQUIRED_GATEWAY}\n[[hub]]{hub}");
    assert!(gateway(&hubs).unwrap_err().contains("different from the other hubs' names"));
}

#[test]
fn an_mllp_door_has_routes_and_certificates() {
    let with = |more: &str| gateway(&REQUIRED_GATEWAY.replace("[[http]]", &format!("{more}\n[[http]]")));
    let lanes = "[[lane]]\nname = \"clinical\"\n[[lane]]\nname = \"results\"\n";
    let table = "[[mllp.route]]\nmessage = \"ORU^R01\"\nlane = \"results\"\n";
    let line = "route = [{ message = \"ORU^R01\", lane = \"results\" }]\n";
    let [one, two] =
        [table, line].map(|route| with(&format!("{route}{lanes}")).unwrap().mllp[0].routes.clone());
    assert!(one.len() == 1 && one == two && one[0].lane.as_str() == "results");
    for (wrong, says) in [
        (
            format!("{table}{}", lanes.replace("results", "letters")),
            "mllp.route.lane = \"results\" is not allowed",
        ),
        (table.replace("ORU^R01", "ORU^"), "mllp.route.message = \"ORU^\" is not allowed"),
        ("[[mllp.route]]\nlane = \"clinical\"".into(), "mllp.route.message is missing"),
        ("[[mllp.route]]\nmessage = \"ADT\"".into(), "mllp.route.lane is missing"),
        ("key_file = \"k\"".into(), "mllp.certificate_file is missing"),
        ("certificate_file = \"c\"".into(), "mllp.key_file is missing"),
        ("client_ca_file = \"ca\"".into(), "mllp.certificate_file is missing"),
    ] {
        let error = with(&wrong).expect_err(&wrong);
        assert!(error.contains(says), "{wrong}: {error}");
    }
    let tls = with("certificate_file = \"c\"\nkey_file = \"/k\"\nclient_ca_file = \"ca\"").unwrap();
    let files = tls.mllp[0].tls.clone().unwrap();
    assert!(files.certificate.ends_with("c") && files.certificate.is_absolute());
    assert_eq!((files.key, files.client_ca.is_some()), (PathBuf::from("/k"), true));
}

#[test]
fn relative_paths_are_relative_to_the_file() {
    let file = file(&REQUIRED_GATEWAY.replace("/etc/practice-gateway/ca.pem", "tls/ca.pem"));
    let config = GatewayConfig::load(&file.path).unwrap();
    assert_eq!(config.uplink.tls.unwrap().ca, file.path.parent().unwrap().join("tls/ca.pem"));
}

#[test]
fn a_configuration_that_is_not_there_is_named() {
    let error = GatewayConfig::load(Path::new("nowhere/gateway.toml")).unwrap_err();
    assert!(error.to_string().contains("nowhere/gateway.toml"));
}

#[test]
fn short_times_are_possible_and_whole_numbers_are_times_too() {
    let text = REQUIRED_GATEWAY
        .replace("[uplink]", "[health]\ninterval_seconds = 0.25\n[uplink]\nreceipt_seconds = 2");
    let config = gateway(&text).unwrap();
    assert_eq!(config.health_interval.as_millis(), 250);
    assert_eq!(config.uplink.delivery.receipt_timeout, 2000);
}

#[test]
fn upstreams_are_read_in_order_and_shown_as_written() {
    let list = r#"["a.nhs.uk:8883", "10.0.0.1:1883", "[2001:db8::1]:8883"]"#;
    let text = REQUIRED_GATEWAY.replace(r#"["broker.example.nhs.uk:8883"]"#, list);
    let shown: Vec<String> =
        gateway(&text).unwrap().uplink.upstreams.iter().map(ToString::to_string).collect();
    assert_eq!(shown, ["a.nhs.uk:8883", "10.0.0.1:1883", "[2001:db8::1]:8883"]);
}
