//! `check`: one line for each check, with what to do if it fails.

use std::io::Write;
use std::sync::Arc;

use pgw_host::check::Checks;
use pgw_host::exit::Exit;
use pgw_link::check::certificate;
use pgw_link::clock::TrustedClock;
use pgw_link::server_tls::{self as tls, Clients};
use pgw_outbox::Outbox;
use pgw_outbox::offline::set_aside;

use crate::cli::{key, signing_key};
use crate::config::GatewayConfig;
use crate::control::client::Client;
use crate::ingest::http::access::{Access, AccessFiles};
use crate::ingest::http::context::HttpDoorConfig;
use crate::ingest::mllp::context::MllpDoorConfig;
use crate::keys;

/// `practice-gateway check`: exits with 78 if any check fails.
pub fn run(config: &GatewayConfig, out: &mut dyn Write) -> Exit {
    let mut report = Checks::new(out);
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
        report.note(
            "doors",
            "no [[mllp]]: only other doors and `submit` on this box can bring transactions in",
        );
    }
    for door in &config.mllp {
        mllp(door, &clock, &mut report);
    }
    for door in &config.http {
        http(door, &clock, &mut report);
    }
    if config.uplink.delivery.confirm_on_puback {
        report.note(
            "confirm",
            "the broker's PUBACK confirms: nothing proves that the centre has stored a transaction",
        );
    }
    signing(config, &mut report);
    store(config, &mut report);
    let name = config.name();
    if let Some(files) = &config.uplink.tls {
        certificate(files, &name, clock.seconds(), &mut report);
    }
    for folder in &config.folders {
        let place = format!("{}: {}", folder.name, folder.path.display());
        if folder.path.is_dir() {
            report.ok("folder", &format!("{place} is there"));
        } else {
            let action = "create or mount it; until then the gateway runs without it and reports folder.away";
            report.fail("folder", &format!("{place} is not a directory"), action);
        }
    }
    report.exit
}

/// Most surgeries' systems speak MLLP without TLS: that is allowed, and reported.
fn mllp(door: &MllpDoorConfig, clock: &Arc<TrustedClock>, report: &mut Checks<'_>) {
    let address = door.listen;
    let guarded = door.tls.as_ref().is_some_and(|files| files.client_ca.is_some());
    if !address.ip().is_loopback() && door.allowed_addresses.is_empty() && !guarded {
        report.note(
            "mllp",
            &format!(
                "{address}: anyone who can reach this address may send; restrict it with allow_addresses or client_ca_file"
            ),
        );
    }
    if let Some(files) = &door.tls {
        match tls::server(files, Clients::Required, &[], clock) {
            Ok(_) => report.ok("mllp", &format!("{address}: its certificate and key can be used")),
            Err(error) => report.error("mllp", &error, "put a certificate and its key in place"),
        }
    }
}

/// Its certificates and tokens, as the daemon reads them; a door without any is on a loopback address.
fn http(door: &HttpDoorConfig, clock: &Arc<TrustedClock>, report: &mut Checks<'_>) {
    match Access::load(&door.files, clock) {
        Ok(_) if door.files == AccessFiles::default() => {}
        Ok(_) => report.ok("http", &format!("{}: its certificates and tokens can be used", door.listen)),
        Err(error) => report.error("http", &error, "correct or replace this file"),
    }
}

fn signing(config: &GatewayConfig, report: &mut Checks<'_>) {
    match keys::signing_key(&config.signing_key_file) {
        Ok(key) => {
            let place = keys::signing_key_place(&config.signing_key_file);
            report.ok("signing key", &signing_key::describe(&place.file, &key));
        }
        Err(error) => {
            let hub = signing_key::command_for_the_hub(config, "PUBLIC-KEY");
            let action = format!(
                "`practice-gateway init` creates one if none is there, and central IT then lists it at the hub (`{hub}`)"
            );
            report.error("signing key", &error, &action);
        }
    }
}

fn store(config: &GatewayConfig, report: &mut Checks<'_>) {
    let place = keys::outbox_key_place(&config.outbox_key_file);
    let keys = match keys::outbox_keys(&config.outbox_key_file) {
        Ok(keys) => keys,
        Err(error) => {
            let action = "`practice-gateway init` creates one; if there is a store already, get its key from central IT's copy";
            return report.error("outbox key", &error, action);
        }
    };
    report.ok("outbox key", &format!("{}, id {}", place.file.display(), keys.present().id()));
    let uses = Outbox::key_uses_of(&config.outbox).ok().flatten().unwrap_or_default();
    for id in keys.ids().into_iter().skip(1) {
        report.note("earlier key", &key::describe(&id, &uses));
    }
    for (directory, facts) in set_aside::beside(&config.outbox) {
        report.note("set aside", &set_aside::alarm(&directory, &facts).detail);
    }
    let directory = config.outbox.directory.display();
    match Outbox::identify(&config.outbox, &keys) {
        Ok(true) => report.ok("store", &format!("{directory}: format, owner and keys are right")),
        Ok(false) if config.data_directory.is_dir() => {
            report.ok("store", &format!("{directory}: none yet, the first start creates it"));
        }
        Ok(false) => {
            let problem = format!("{} is not there", config.data_directory.display());
            report.fail("store", &problem, "`practice-gateway init` creates it");
        }
        Err(error) => report.error(
            "store",
            &error,
            "restore the right key, disk or version; see \"Moving to another box, replacing a key\" in the runbook",
        ),
    }
    report.control_socket(&config.control.socket);
    match Client::connect(&config.control.socket) {
        Ok(_) => report.ok("daemon", "it runs, and answers on its socket"),
        Err(_) => report.note("daemon", "it is not running, or this user may not use its socket"),
    }
}
