//! The gateway's signing key as an operator and systemd handle it: created, shown, replaced, missing.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use pgw_core::wire::signature::PublicKey;

use crate::harness;
use crate::harness::Certificates;
use crate::harness::site::{Site, SiteOptions};

fn site() -> (Site, Certificates) {
    let certificates = Certificates::new();
    let dead = harness::ports::reserve();
    let site = Site::new(&certificates, dead, dead, SiteOptions::default());
    (site, certificates)
}

fn printed(output: &Output) -> (Option<i32>, String) {
    let both = [output.stdout.clone(), output.stderr.clone()].concat();
    (output.status.code(), String::from_utf8_lossy(&both).into_owned())
}

/// The command with the systemd credentials of `directory`.
fn with_credentials(site: &Site, directory: &Path, words: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_practice-gateway"));
    command.args(words).arg("--config").arg(site.gateway_config()).env("CREDENTIALS_DIRECTORY", directory);
    printed(&command.stdin(Stdio::null()).output().expect("run"))
}

fn public_key(file: &Path) -> PublicKey {
    pgw_host::secret::signing_key(file).expect("a signing key").public()
}

#[test]
fn init_prints_the_line_with_which_central_it_lists_the_gateway() {
    let (site, _certificates) = site();
    let key = site.path("gateway-signing.key");
    let facts = std::fs::metadata(&key).expect("init has made it");
    assert_eq!(facts.permissions().mode() & 0o777, 0o600);
    let public = public_key(&key);
    for there in ["exists already, unchanged", "created"] {
        let (code, text) = printed(&site.gateway_command(&["init"]));
        assert_eq!(code, Some(0), "{text}");
        let (file, public) = (key.display(), public_key(&key));
        let line = format!("practice-hub gateway add B86022.gw1 --public-key {public}");
        assert!(text.lines().any(|printed| printed == line), "{line}: {text}");
        let line = format!("signing key     {file}, id {}: {there}", public.id());
        assert!(text.lines().any(|printed| printed == line), "{line}: {text}");
        let _ = std::fs::remove_file(&key);
    }
    site.gateway_command(&["init"]);
    assert_ne!(public_key(&key), public, "each key is a new one");
}

#[test]
fn without_a_signing_key_that_it_can_use_the_gateway_touches_nothing() {
    let (site, _certificates) = site();
    let key = site.path("gateway-signing.key");
    let refused = |words: &[&str], with: &str| {
        let (code, text) = printed(&site.gateway_command(words));
        assert_eq!(code, Some(78), "{words:?}: {text}");
        assert!(text.contains("gateway-signing.key") && text.contains(with), "{words:?}: {with}: {text}");
    };
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o640)).expect("set");
    for words in [&["run"][..], &["init"], &["check"], &["key", "signing"], &["key", "rotate-signing"]] {
        refused(words, "has mode 0640");
    }
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).expect("set");
    std::fs::write(&key, "no key").expect("written");
    for words in [&["run"][..], &["init"], &["check"], &["key", "signing"], &["key", "rotate-signing"]] {
        refused(words, "is not an Ed25519 key in PKCS#8");
    }
    assert_eq!(std::fs::read(&key).expect("the file"), b"no key");
    std::fs::remove_file(&key).expect("removed");
    refused(&["run"], "there is no usable signing key");
    refused(&["check"], "`practice-gateway init` creates one");
    refused(&["key", "signing"], "LoadCredentialEncrypted=signing-key:");
    refused(&["key", "rotate-signing"], "systemd-creds encrypt --name=signing-key");
    assert!(!key.exists() && !site.path("data/outbox").exists(), "something was written");
}

#[test]
fn a_replaced_signing_key_says_what_central_it_does_and_how_to_go_back() {
    let (mut site, _certificates) = site();
    let key = site.path("gateway-signing.key");
    let old = public_key(&key);
    let (code, text) = printed(&site.gateway_command(&["key", "rotate-signing"]));
    assert_eq!(code, Some(0), "{text}");
    let new = public_key(&key);
    assert_ne!(old, new);
    let kept = site.path(&format!("gateway-signing.key.old-{}", old.id()));
    assert_eq!(public_key(&kept), old);
    assert_eq!(std::fs::metadata(&kept).expect("kept").permissions().mode() & 0o777, 0o600);
    let order = [
        format!("public key  {new}"),
        format!("practice-hub gateway key B86022.gw1 {new}"),
        "systemctl restart practice-gateway".into(),
        format!("mv {} ", kept.canonicalize().expect("kept").display()),
        format!("practice-hub gateway key B86022.gw1 {old}"),
    ];
    let places: Vec<_> = order.iter().map(|part| text.find(part).expect(part)).collect();
    assert!(places.is_sorted(), "{order:?} is the order of work: {text}");

    let (code, shown) = printed(&site.gateway_command(&["key", "signing"]));
    assert_eq!((code, shown.contains(&new.to_string())), (Some(0), true), "{shown}");
    let (_, checked) = printed(&site.gateway_command(&["check"]));
    let line = checked.lines().find(|line| line.starts_with("OK    signing key "));
    let line = line.unwrap_or_else(|| panic!("no line: {checked}"));
    assert!(line.contains(&new.to_string()) && line.contains(&new.id().to_string()), "{line}");
    site.start_gateway();
    assert!(site.log("gateway").contains(&new.to_string()), "{}", site.log("gateway"));
    site.stop();
    std::fs::rename(&kept, &key).expect("the way back");
    site.start_gateway();
    assert!(site.log("gateway").contains(&old.to_string()), "{}", site.log("gateway"));
    site.stop();
}

#[test]
fn a_signing_key_that_systemd_supplies_is_used_and_is_not_replaced() {
    let (site, _certificates) = site();
    let directory = site.path("credentials");
    std::fs::create_dir(&directory).expect("made");
    // systemd gives its credentials other modes.
    let supplied = directory.join("signing-key");
    std::fs::copy(site.path("signing.key"), &supplied).expect("copied");
    let public = public_key(&supplied).to_string();
    std::fs::set_permissions(&supplied, std::fs::Permissions::from_mode(0o444)).expect("set");
    let key = std::fs::read(site.path("gateway-signing.key")).expect("the file's key");
    for words in [&["check"][..], &["key", "signing"], &["init"]] {
        let (code, text) = with_credentials(&site, &directory, words);
        assert_eq!(code, Some(0), "{words:?}: {text}");
        assert!(text.contains(&public) && text.contains("credentials/signing-key"), "{words:?}: {text}");
    }
    let (code, text) = with_credentials(&site, &directory, &["key", "rotate-signing"]);
    assert_eq!(code, Some(65), "{text}");
    assert!(text.contains("is a systemd credential") && text.contains("systemd-creds encrypt"), "{text}");
    assert_eq!(std::fs::read(site.path("gateway-signing.key")).expect("the file's key"), key);
    // As the text says: a plain copy elsewhere.
    let plain = site.path("plain.key");
    std::fs::copy(site.path("signing.key"), &plain).expect("copied");
    let file = plain.display().to_string();
    let (code, text) = with_credentials(&site, &directory, &["key", "rotate-signing", "--file", &file]);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains(&public_key(&plain).to_string()), "{text}");
    assert!(text.contains("put the new key in place before step 2"), "{text}");
    assert_ne!(public_key(&plain).to_string(), public);
}
