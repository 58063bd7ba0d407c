//! `check`: one line for each check, with what to do if it fails.

use std::io::Write;
use std::path::Path;

use pgw_host::check::Checks;
use pgw_host::exit::Exit;
use pgw_host::next_key::KeyPair;
use pgw_host::secret;
use pgw_link::check::certificate;
use pgw_link::clock::TrustedClock;
use pgw_link::tls::TlsFiles;

use crate::config::HubConfig;
use crate::gateways::Gateways;

/// `practice-hub check`: exits with 78 if any check fails.
pub fn run(config: &HubConfig, out: &mut dyn Write) -> Exit {
    let mut report = Checks::new(out);
    let settings = &config.settings;
    report.ok("configuration", &format!("{}: hub {}", config.file.display(), settings.hub));
    signing_keys(&settings.signing_key_file, &mut report);
    report.control_socket(&settings.control_socket);
    let directory = settings.directory.display();
    if settings.directory.is_dir() {
        report.ok("store", &format!("{directory}; `practice-hub verify` checks its chains"));
    } else {
        report.fail("store", &format!("{directory} is not there"), "`practice-hub init` creates it");
    }
    gateways(&settings.gateways_file, &mut report);
    let files = TlsFiles {
        ca: settings.ca_file.clone(),
        certificate: settings.certificate_file.clone(),
        key: settings.key_file.clone(),
    };
    let clock = TrustedClock::open(&settings.directory);
    certificate(&files, settings.hub.as_str(), clock.seconds(), &mut report);
    report.exit
}

fn signing_keys(file: &Path, report: &mut Checks<'_>) {
    match secret::signing_key(file) {
        Ok(key) => report.ok("signing key", &format!("{}, public key {}", file.display(), key.public())),
        Err(error) => return report.error("signing key", &error, "`practice-hub init` creates one"),
    }
    match KeyPair::read(file) {
        Ok(KeyPair { next: None, .. }) => {}
        Ok(KeyPair { next: Some(next), next_file, .. }) => {
            let detail = format!("{}, public key {next}; nothing signs with it yet", next_file.display());
            report.ok("next signing key", &detail);
        }
        Err(error) => {
            report.error("next signing key", &error, "remove it; `practice-hub key next` makes another one")
        }
    }
}

fn gateways(file: &Path, report: &mut Checks<'_>) {
    const WHAT: &str = "gateways";
    let path = file.display();
    let list = match Gateways::load(file) {
        Ok(list) => list,
        Err(error) => return report.error(WHAT, &error, "correct the list, then run this check again"),
    };
    if list.gateways.is_empty() {
        let state = if file.exists() { "is empty" } else { "is not there" };
        let add = "`practice-hub gateway add` adds a gateway";
        return report
            .note(WHAT, &format!("{path} {state}: the hub accepts nothing from any gateway; {add}"));
    }
    report.ok(WHAT, &format!("{path}: serial {}, {}", list.serial, list.count()));
    let without: Vec<String> =
        list.without_signing_key().map(|(practice, gateway)| format!("{practice}.{gateway}")).collect();
    if !without.is_empty() {
        let names = without.join(", ");
        let key = "`practice-hub gateway key` gives a gateway one";
        report.note(WHAT, &format!("{} without a signing key: {names}; {key}", without.len()));
    }
}
