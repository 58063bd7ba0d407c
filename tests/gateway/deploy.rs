//! What `deploy/` ships works: the units are as restricted as they claim, and with the broker's configuration and
//! access rules a gateway and a hub can work.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use pgw_gateway::keys;

use crate::harness;
use crate::harness::senders::{connect, exchange, message, positive};
use crate::harness::site::{Site, SiteOptions};
use crate::harness::{Certificates, Mosquitto, MosquittoOptions};

const ACL: &str = include_str!("../../deploy/etc/mosquitto/practice-gateway/acl");
const REFERENCE: &str = include_str!("../../config/gateway.toml");
const MOSQUITTO: &str = include_str!("../../deploy/etc/mosquitto/conf.d/practice-gateway.conf");

fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy")
}

#[test]
fn the_shipped_access_rules_are_what_the_command_makes() {
    let reference = Path::new(env!("CARGO_MANIFEST_DIR")).join("config");
    let hub = std::fs::read_to_string(reference.join("hub.toml")).expect("hub.toml");
    let list = reference.join("gateways.toml");
    let directory = tempfile::tempdir().expect("a directory");
    let config = directory.path().join("hub.toml");
    let here = hub.replace("/etc/practice-hub/gateways.toml", list.to_str().expect("text"));
    std::fs::write(&config, here).expect("written");
    let output = Command::new(env!("CARGO_BIN_EXE_practice-hub"))
        .args(["acl", "--config"])
        .arg(&config)
        .output()
        .expect("run");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(String::from_utf8_lossy(&output.stdout), ACL);
}

/// The shipped limits and rules, without the parts that differ on every machine.
fn shipped() -> MosquittoOptions {
    let elsewhere = [
        "listener",
        "cafile",
        "certfile",
        "keyfile",
        "acl_file",
        "per_listener_settings",
        "persistence",
        "require_certificate",
        "use_identity_as_username",
        "allow_anonymous",
        "log_type",
        "max_queued_messages",
        "max_inflight_messages",
    ];
    let key = |line: &str| line.split_whitespace().next().unwrap_or_default().to_owned();
    let lines = MOSQUITTO.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    let extra: Vec<&str> = lines.filter(|line| !elsewhere.contains(&key(line).as_str())).collect();
    for wanted in ["max_packet_size", "message_size_limit", "max_queued_bytes", "max_keepalive"] {
        assert!(extra.iter().any(|line| key(line) == wanted), "{wanted}");
    }
    // A listener's settings cannot come before it, and the harness makes the listeners.
    let (listener, extra): (Vec<&str>, Vec<&str>) = extra
        .into_iter()
        .partition(|line| ["tls_version", "use_username_as_clientid"].contains(&key(line).as_str()));
    assert_eq!(listener.len(), 2, "{listener:?}");
    MosquittoOptions {
        acl: Some(ACL.to_owned()),
        extra: extra.join("\n"),
        listener: listener.join("\n"),
        ..MosquittoOptions::default()
    }
}

#[test]
fn a_gateway_and_a_hub_can_work_under_the_shipped_rules() {
    let certificates = Certificates::new();
    let broker = Mosquitto::start_with(&certificates, &shipped());
    let mut site = Site::new(&certificates, broker.port(), broker.port(), SiteOptions::default());
    site.start_hub();
    site.start_gateway();
    let mut stream = connect(site.door).expect("the door");
    assert!(positive(&exchange(&mut stream, &message(1, 1, 100)).expect("an answer")));
    site.wait_for("confirmed_total", 1, Duration::from_secs(60));
    site.stop();
}

#[test]
fn another_practices_certificate_delivers_nothing_in_this_ones_name() {
    let certificates = Certificates::new();
    let rules = ACL.replace("B86022.gw1", "B86023.gw1").replace("B86022/gw1", "B86023/gw1");
    let broker = Mosquitto::start_with(&certificates, &MosquittoOptions { acl: Some(rules), ..shipped() });
    let options =
        SiteOptions { certificate: Some(certificates.client("B86023.gw1")), ..SiteOptions::default() };
    let mut site = Site::new(&certificates, broker.port(), broker.port(), options);
    site.start_hub();
    site.start_gateway();
    let mut stream = connect(site.door).expect("the door");
    assert!(positive(&exchange(&mut stream, &message(1, 1, 100)).expect("an answer")));
    // Its questions do not reach the hub, so nothing is ever sent or confirmed: it reports that, and keeps everything.
    harness::eventually_blocking("the gateway to say that nothing goes", Duration::from_secs(90), || {
        let status = site.status()?;
        (status["state_code"] != 0 && status["session"].as_u64()? >= 1).then_some(())
    });
    let status = site.status().expect("a status");
    assert_eq!((&status["waiting"], &status["confirmed_total"]), (&1.into(), &0.into()), "{status}");
    site.stop();
}

/// systemd gives the daemon each key under the name by which it looks for it, in the plain form and in the sealed one.
#[test]
fn the_unit_loads_both_keys_plain_or_sealed() {
    let read = |name: &str| std::fs::read_to_string(deploy().join(name)).expect("a file");
    let unit = read("usr/lib/systemd/system/practice-gateway.service");
    let sealed = read("usr/share/practice-gateway/keys-encrypted.conf");
    for (name, file) in [(keys::OUTBOX_KEY, "outbox.key"), (keys::SIGNING_KEY, "signing.key")] {
        let path = format!("/etc/practice-gateway/{file}");
        assert!(REFERENCE.contains(&format!("_key_file = \"{path}\"")), "{path} is not the default");
        let line = format!("LoadCredential={name}:{path}");
        assert!(unit.lines().any(|there| there == line), "{line}");
        let line = format!("LoadCredentialEncrypted={name}:/etc/practice-gateway/{name}.cred");
        assert!(sealed.lines().any(|there| there == line), "{line}");
        assert!(
            sealed.contains(&format!("systemd-creds encrypt --name={name} {file} {name}.cred")),
            "{name}"
        );
    }
}

#[test]
fn the_units_are_closed() {
    for unit in ["practice-gateway.service", "practice-hub.service"] {
        let file = deploy().join("usr/lib/systemd/system").join(unit);
        let text = std::fs::read_to_string(&file).expect("the unit");
        for line in [
            "LimitCORE=0",
            "MemorySwapMax=0",
            "UMask=0077",
            "RestartPreventExitStatus=77 78",
            "Type=notify",
            "ExecReload=/bin/kill -HUP $MAINPID",
        ] {
            assert!(text.lines().any(|there| there == line), "{unit}: {line}");
        }
        assert!(
            !text.lines().any(|line| line.contains("network-online") && !line.starts_with('#')),
            "{unit}"
        );
        let Ok(output) =
            Command::new("systemd-analyze").args(["security", "--offline=yes"]).arg(&file).output()
        else {
            println!("NOT CHECKED: there is no systemd-analyze here");
            return;
        };
        let printed = String::from_utf8_lossy(&output.stdout).into_owned();
        let score = printed
            .lines()
            .find_map(|line| line.split("exposure level for").nth(1)?.split_whitespace().nth(1));
        let score: f64 =
            score.and_then(|score| score.parse().ok()).unwrap_or_else(|| panic!("no score: {printed}"));
        assert!(score <= 1.2, "{unit}: {score}");
    }
}
