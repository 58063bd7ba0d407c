//! `init`: creates the outbox key and the directories, replaces nothing, and prints what to do next.

use std::io::Write;

use pgw_host::exit::{Exit, fail};
use pgw_host::init::{directory, is_there};

use crate::config::GatewayConfig;
use crate::keys;

/// `practice-gateway init`.
pub fn run(config: &GatewayConfig, out: &mut dyn Write, err: &mut dyn Write) -> Exit {
    let (file, data) = (&config.outbox_key_file, &config.data_directory);
    if let Err(exit) = directory(data, err).and_then(|()| directory(&config.uplink.state_directory, err)) {
        return exit;
    }
    let place = keys::outbox_key_place(file);
    let made = if place == *file { keys::make_outbox_key(file) } else { Ok(()) };
    let there = match made {
        Ok(()) if place == *file => "created",
        Ok(()) => "exists already, as a systemd credential",
        Err(error) if is_there(&error) => "exists already, unchanged",
        Err(error) => return fail(err, &error, error.consequence()),
    };
    let id = match keys::outbox_keys(file) {
        Ok(keys) => keys.present().id(),
        Err(error) => return fail(err, &error, error.consequence()),
    };
    let (place, data, name) = (place.display(), data.display(), config.file.display());
    let common_name = format!("{}.{}", config.practice, config.gateway);
    let _ = writeln!(
        out,
        "data directory  {data}\n\
         outbox key      {place}, id {id}: {there}\n\
         \n\
         Next:\n\
         1. Keep a copy of the outbox key with central IT, off this box. Without it the backlog cannot be read by anyone.\n\
         2. Get a client certificate with the common name {common_name} from the fleet's CA.\n\
         3. practice-gateway check --config {name}\n\
         4. systemctl enable --now practice-gateway"
    );
    Exit::Done
}
