//! `check`: one line for each thing that must be right, and what to do where it is not.

use std::error::Error;
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio_rustls::rustls::RootCertStore;
use tokio_rustls::rustls::crypto::ring::default_provider;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, UnixTime};
use tokio_rustls::rustls::server::WebPkiClientVerifier;

use crate::cli::exit::Exit;
use crate::cli::key;
use crate::config::{GatewayConfig, HubConfig, keys};
use crate::ingest::control::client::Client;
use crate::ingest::mllp::door;
use crate::ingest::tls::{self, Clients};
use crate::outbox::{Outbox, set_aside};
use crate::transaction::rfc3339;
use crate::uplink::tls::Identity;
use crate::uplink::{TlsFiles, TrustedClock};

/// A certificate that ends sooner is reported, though it still works.
const SOON: u64 = 30 * 86_400;

struct Report<'a> {
    out: &'a mut dyn Write,
    exit: Exit,
}

impl Report<'_> {
    fn ok(&mut self, what: &str, detail: &str) {
        let _ = writeln!(self.out, "OK    {what:<14} {detail}");
    }

    fn note(&mut self, what: &str, detail: &str) {
        let _ = writeln!(self.out, "NOTE  {what:<14} {detail}");
    }

    fn fail(&mut self, what: &str, problem: &str, action: &str) {
        let _ = writeln!(self.out, "FAIL  {what:<14} {problem}\n      {:<14} -> {action}", "");
        self.exit = Exit::Configuration;
    }
}

fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// `practice-gateway check`: ends with 78 if anything fails.
pub fn gateway(config: &GatewayConfig, out: &mut dyn Write) -> Exit {
    let mut report = Report { out, exit: Exit::Done };
    let clock = TrustedClock::open(&config.uplink.state_directory);
    let lanes = &config.uplink.info.lanes;
    let detail = format!(
        "{}: practice {}, gateway {}, lanes {lanes}",
        config.file.display(),
        config.practice,
        config.gateway
    );
    report.ok("configuration", &detail);
    if config.mllp.is_empty() {
        report.note("doors", "there is no [[mllp]]: only `submit` on this box can bring anything in");
    }
    for door in &config.mllp {
        mllp(door, &clock, &mut report);
    }
    if config.uplink.delivery.confirm_on_puback {
        report.note("confirm", "the broker's word confirms: nobody checks that the centre has it");
    }
    store(config, &mut report);
    let name = format!("{}.{}", config.practice, config.gateway);
    if let Some(files) = &config.uplink.tls {
        certificate(files, &name, clock.seconds(), &mut report);
    }
    for folder in &config.folders {
        let place = format!("{}: {}", folder.name, folder.path.display());
        if folder.path.is_dir() {
            report.ok("folder", &format!("{place} is there"));
        } else {
            let action = "make or mount it; until then the gateway goes on without it, and says so";
            report.fail("folder", &format!("{place} is no directory"), action);
        }
    }
    report.exit
}

/// Most surgeries' systems speak MLLP without TLS: that is allowed, and said.
fn mllp(door: &door::Settings, clock: &Arc<TrustedClock>, report: &mut Report<'_>) {
    let address = door.listen;
    let guarded = door.tls.as_ref().is_some_and(|files| files.client_ca.is_some());
    if !address.ip().is_loopback() && door.allowed_addresses.is_empty() && !guarded {
        report.note(
            "mllp",
            &format!(
                "{address}: whoever reaches this address may send; say who in allow_addresses (or client_ca_file)"
            ),
        );
    }
    if let Some(files) = &door.tls {
        match tls::server(files, Clients::Required, &[], clock) {
            Ok(_) => report.ok("mllp", &format!("{address}: its certificate and key can be used")),
            Err(error) => report.fail("mllp", &chain(&error), "put a certificate and its key in place"),
        }
    }
}

fn store(config: &GatewayConfig, report: &mut Report<'_>) {
    let place = keys::outbox_key_place(&config.outbox_key_file);
    let keys = match keys::outbox_keys(&config.outbox_key_file) {
        Ok(keys) => keys,
        Err(error) => {
            let action = "`practice-gateway init` makes one; with a store already there, bring its key back from escrow";
            return report.fail("outbox key", &chain(&error), action);
        }
    };
    report.ok("outbox key", &format!("{}, id {}", place.display(), keys.present().id()));
    let uses = Outbox::key_uses_of(&config.outbox).ok().flatten().unwrap_or_default();
    for id in keys.ids().into_iter().skip(1) {
        report.note("earlier key", &key::said(&id, &uses));
    }
    for (directory, facts) in set_aside::beside(&config.outbox) {
        report.note("set aside", &set_aside::notable(&directory, &facts).detail);
    }
    let directory = config.outbox.directory.display();
    match Outbox::identify(&config.outbox, &keys) {
        Ok(true) => report.ok("store", &format!("{directory}: format, owner and keys are right")),
        Ok(false) if config.data_directory.is_dir() => {
            report.ok("store", &format!("{directory}: there is none yet, the first start makes it"));
        }
        Ok(false) => {
            let problem = format!("{} is not there", config.data_directory.display());
            report.fail("store", &problem, "`practice-gateway init` makes it");
        }
        Err(error) => report.fail(
            "store",
            &chain(&error),
            "bring back the right key, disk or version; see \"Another box, another key\" in the runbook",
        ),
    }
    match Client::connect(&config.control.socket) {
        Ok(_) => report.ok("daemon", "it runs, and answers on its socket"),
        Err(_) => report.note("daemon", "it does not run, or this user may not ask it"),
    }
}

/// `practice-hub check`: ends with 78 if anything fails.
pub fn hub(config: &HubConfig, out: &mut dyn Write) -> Exit {
    let mut report = Report { out, exit: Exit::Done };
    let settings = &config.settings;
    report.ok("configuration", &format!("{}: hub {}", config.file.display(), settings.hub));
    match keys::signing_key(&settings.signing_key_file) {
        Ok(key) => {
            let detail = format!("{}, public key {}", settings.signing_key_file.display(), key.public());
            report.ok("signing key", &detail);
        }
        Err(error) => report.fail("signing key", &chain(&error), "`practice-hub init` makes one"),
    }
    let directory = settings.directory.display();
    if settings.directory.is_dir() {
        report.ok("store", &format!("{directory}; `practice-hub verify` walks its chains"));
    } else {
        report.fail("store", &format!("{directory} is not there"), "`practice-hub init` makes it");
    }
    let files = TlsFiles {
        ca: settings.ca_file.clone(),
        certificate: settings.certificate_file.clone(),
        key: settings.key_file.clone(),
    };
    let clock = TrustedClock::open(&settings.directory);
    certificate(&files, settings.hub.as_str(), clock.seconds(), &mut report);
    report.exit
}

/// Files, key, name, dates, and whether the CA of the file would take it now.
fn certificate(files: &TlsFiles, name: &str, now: u64, report: &mut Report<'_>) {
    let ask = "ask the fleet's CA for a certificate, and put its files where the configuration says";
    let identity = match Identity::load(files) {
        Ok(identity) => identity,
        Err(error) => return report.fail("certificate", &chain(&error), ask),
    };
    let facts = identity.facts();
    let file = files.certificate.display();
    if facts.common_name == name {
        report.ok("certificate", &format!("{file}: common name {name}, and the key goes with it"));
    } else {
        let problem =
            format!("{file}: its common name is {:?}, the broker expects {name:?}", facts.common_name);
        report.fail("certificate", &problem, ask);
    }
    let (begins, ends) = (facts.not_before / 1000, facts.not_after / 1000);
    let dates = format!("valid from {} to {}", rfc3339(facts.not_before), rfc3339(facts.not_after));
    if now < begins {
        report.fail("dates", &dates, "it is not valid yet: check this box's clock, or ask the CA");
    } else if now > ends {
        report.fail(
            "dates",
            &dates,
            "it has expired: the gateway goes on accepting, and sends nothing; renew it now",
        );
    } else if ends - now < SOON {
        report.note("dates", &format!("{dates}: it ends in {} days, renew it", (ends - now) / 86_400));
    } else {
        report.ok("dates", &dates);
    }
    match accepted(files, now.clamp(begins, ends)) {
        Ok(()) => report.ok("CA", &format!("{} signs it for clients", files.ca.display())),
        Err(problem) => {
            report.fail("CA", &problem, "the CA file or the certificate is another fleet's: ask the CA")
        }
    }
    let mode_is_wide = File::open(&files.key).and_then(|key| key.metadata()).is_ok_and(|facts| {
        use std::os::unix::fs::PermissionsExt as _;
        facts.permissions().mode() & 0o007 != 0
    });
    if mode_is_wide {
        let problem = format!("{} can be read by everybody on this box", files.key.display());
        report.fail("private key", &problem, "chmod 0600");
    }
}

/// What a broker with the same CA would say at this time (seconds since the epoch).
fn accepted(files: &TlsFiles, at: u64) -> Result<(), String> {
    let mut roots = RootCertStore::empty();
    for certificate in read(&files.ca)? {
        roots.add(certificate).map_err(|error| error.to_string())?;
    }
    let chain = read(&files.certificate)?;
    let (leaf, between) = chain.split_first().ok_or("there is no certificate")?;
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::new(default_provider()))
        .build()
        .map_err(|error| error.to_string())?;
    let at = UnixTime::since_unix_epoch(Duration::from_secs(at));
    match verifier.verify_client_cert(leaf, between, at) {
        Ok(_) => Ok(()),
        Err(error) => {
            Err(format!("{} does not accept {}: {error}", files.ca.display(), files.certificate.display()))
        }
    }
}

fn read(file: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    CertificateDer::pem_file_iter(file)
        .and_then(Iterator::collect)
        .map_err(|error| format!("{}: {error}", file.display()))
}
