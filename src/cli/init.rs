//! `init`: makes keys and directories, replaces nothing, and says what a person must do next.

use std::fs::DirBuilder;
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;

use crate::cli::exit::{Exit, complain};
use crate::config::keys::{self, KeyError};
use crate::config::{GatewayConfig, HubConfig};

/// `practice-gateway init`.
pub fn gateway(config: &GatewayConfig, out: &mut dyn Write, err: &mut dyn Write) -> Exit {
    let (file, data) = (&config.outbox_key_file, &config.data_directory);
    if let Err(exit) = directory(data, err).and_then(|()| directory(&config.uplink.state_directory, err)) {
        return exit;
    }
    let place = keys::outbox_key_place(file);
    let made = if place == *file { keys::make_outbox_key(file) } else { Ok(()) };
    let there = match made {
        Ok(()) if place == *file => "made",
        Ok(()) => "there already, as a credential of systemd",
        Err(error) if is_there(&error) => "there already, left as it is",
        Err(error) => return not_made(&error, err),
    };
    let id = match keys::outbox_keys(file) {
        Ok(keys) => keys.present().id(),
        Err(error) => return not_made(&error, err),
    };
    let (place, data, name) = (place.display(), data.display(), config.file.display());
    let common_name = format!("{}.{}", config.practice, config.gateway);
    let _ = writeln!(
        out,
        "data directory  {data}\n\
         outbox key      {place}, id {id}: {there}\n\
         \n\
         Next:\n\
         1. Keep a copy of the outbox key with central IT, off this box. Without it nobody can read the backlog.\n\
         2. Get a client certificate with the common name {common_name} from the fleet's CA.\n\
         3. practice-gateway check --config {name}\n\
         4. systemctl enable --now practice-gateway"
    );
    Exit::Done
}

/// `practice-hub init`.
pub fn hub(config: &HubConfig, out: &mut dyn Write, err: &mut dyn Write) -> Exit {
    let settings = &config.settings;
    if let Err(exit) = directory(&settings.directory, err) {
        return exit;
    }
    let file = &settings.signing_key_file;
    let (key, there) = match keys::make_signing_key(file) {
        Ok(key) => (key, "made"),
        Err(error) if is_there(&error) => match keys::signing_key(file) {
            Ok(key) => (key, "there already, left as it is"),
            Err(error) => return not_made(&error, err),
        },
        Err(error) => return not_made(&error, err),
    };
    let carry_file = &settings.carry_key_file;
    let (recipient, carry_there) = match keys::make_carry_key(carry_file) {
        Ok(identity) => (identity.recipient(), "made"),
        Err(error) if is_there(&error) => match keys::carry_key(carry_file) {
            Ok(identity) => (identity.recipient(), "there already, left as it is"),
            Err(error) => return not_made(&error, err),
        },
        Err(error) => return not_made(&error, err),
    };
    let (store, file, name) = (settings.directory.display(), file.display(), config.file.display());
    let (hub, public, carry_file) = (&settings.hub, key.public(), carry_file.display());
    let _ = writeln!(
        out,
        "store        {store}\n\
         signing key  {file}: {there}\n\
         carry key    {carry_file}: {carry_there}\n\
         \n\
         Every gateway's configuration needs:\n\
         \n\
         [[hub]]\n\
         name = \"{hub}\"\n\
         public_key = \"{public}\"\n\
         recipient = \"{recipient}\"\n\
         \n\
         Next:\n\
         1. Keep a copy of both keys in a safe place: with new ones every gateway must be told, and a lost\n   carry key leaves carried files unread.\n\
         2. Get a client certificate with the common name {hub} from the fleet's CA.\n\
         3. practice-hub acl --gateways FILE for the broker's access rules.\n\
         4. practice-hub check --config {name}, then systemctl enable --now practice-hub"
    );
    Exit::Done
}

/// Makes a directory for its owner only; one that is there stays as it is.
fn directory(path: &Path, err: &mut dyn Write) -> Result<(), Exit> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|error| {
        let _ = writeln!(err, "cannot make the directory {}: {error}", path.display());
        if error.kind() == io::ErrorKind::PermissionDenied { Exit::NotPermitted } else { Exit::Files }
    })
}

fn is_there(error: &KeyError) -> bool {
    matches!(error, KeyError::Make { source, .. } if source.kind() == io::ErrorKind::AlreadyExists)
}

fn not_made(error: &KeyError, err: &mut dyn Write) -> Exit {
    complain(err, error);
    match error {
        KeyError::Make { source, .. } | KeyError::Unreadable { source, .. }
            if source.kind() == io::ErrorKind::PermissionDenied =>
        {
            Exit::NotPermitted
        }
        KeyError::Make { .. } | KeyError::Unreadable { .. } => Exit::Files,
        KeyError::Open { .. } | KeyError::Form { .. } => Exit::Configuration,
        KeyError::Random => Exit::Internal,
    }
}
