//! `init`: creates the outbox key, the signing key and the directories, replaces nothing, and prints what to do next.

use std::io::Write;

use pgw_core::wire::signature::PublicKey;
use pgw_host::exit::{Exit, fail};
use pgw_host::init::{directory, is_there};
use pgw_host::secret::{self, KeyError, SecretPlace};

use crate::cli::signing_key::command_for_the_hub;
use crate::config::GatewayConfig;
use crate::keys;

/// `practice-gateway init`.
pub fn run(config: &GatewayConfig, out: &mut dyn Write, err: &mut dyn Write) -> Exit {
    let data = &config.data_directory;
    if let Err(exit) = directory(data, err).and_then(|()| directory(&config.uplink.state_directory, err)) {
        return exit;
    }
    let (outbox_key, (signing_key, public)) =
        match outbox_key(config).and_then(|outbox_key| Ok((outbox_key, signing_key(config)?))) {
            Ok(lines) => lines,
            Err(error) => return fail(err, &error, error.consequence()),
        };
    let _ = writeln!(
        out,
        "data directory  {}\n\
         outbox key      {outbox_key}\n\
         signing key     {signing_key}",
        data.display()
    );
    write_next(config, &public, out);
    Exit::Done
}

fn write_next(config: &GatewayConfig, public: &PublicKey, out: &mut dyn Write) {
    let (name, file) = (config.name(), config.file.display());
    let again = command_for_the_hub(config, "PUBLIC-KEY");
    let _ = writeln!(
        out,
        "\n\
         For central IT, at the hub:\n\
         \n\
         practice-hub gateway add {name} --public-key {public}\n\
         \n\
         Next:\n\
         1. Keep a copy of the outbox key with central IT, off this box. Without it the backlog cannot be read by anyone. The signing\n   \
         key needs no copy: a new one replaces a lost one.\n\
         2. Send central IT the line above (`{again}` if the hub lists this gateway already).\n   \
         Until the hub lists this key, it takes nothing from this gateway, which keeps everything meanwhile.\n\
         3. Get a client certificate with the common name {name} from the fleet's CA.\n\
         4. practice-gateway check --config {file}\n\
         5. systemctl enable --now practice-gateway"
    );
}

/// The line about the outbox key, which exists afterwards.
fn outbox_key(config: &GatewayConfig) -> Result<String, KeyError> {
    let file = &config.outbox_key_file;
    let place = keys::outbox_key_place(file);
    let there = create_at(&place, || keys::make_outbox_key(file))?;
    let id = keys::outbox_keys(file)?.present().id();
    Ok(format!("{}, id {id}: {there}", place.file.display()))
}

/// The line about the signing key, which exists afterwards, and its public key.
fn signing_key(config: &GatewayConfig) -> Result<(String, PublicKey), KeyError> {
    let file = &config.signing_key_file;
    let place = keys::signing_key_place(file);
    let there = create_at(&place, || secret::make_signing_key(file).map(drop))?;
    let public = keys::signing_key(file)?.public();
    Ok((format!("{}, id {}: {there}", place.file.display(), public.id()), public))
}

fn create_at(
    place: &SecretPlace,
    create: impl FnOnce() -> Result<(), KeyError>,
) -> Result<&'static str, KeyError> {
    if place.is_credential {
        return Ok("exists already, as a systemd credential");
    }
    match create() {
        Ok(()) => Ok("created"),
        Err(error) if is_there(&error) => Ok("exists already, unchanged"),
        Err(error) => Err(error),
    }
}
