//! `practice-gateway key`: lists the outbox keys and which are still needed, adds a new one, removes an old one. The
//! signing key is in [`signing_key`].

use std::io::Write;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use pgw_host::exit::{Exit, fail};
use pgw_outbox::{KeyUse, Keyring, Outbox};

use crate::cli::signing_key;
use crate::config::GatewayConfig;
use crate::keys;

/// The outbox keys, and the signing key.
#[derive(Debug, Clone, Subcommand)]
pub enum Key {
    /// List the outbox keys' ids, the active one first, and what needs each.
    List(KeyFile),
    /// Add a new outbox key, which seals from the next start on; the old ones stay, to open older records.
    Rotate(KeyFile),
    /// Remove an outbox key from the key file, if nothing needs it any more.
    Drop(Drop),
    /// Show the signing key's file, id and public key.
    Signing(KeyFile),
    /// Replace the signing key, and print what central IT has to do; the old one is kept beside it.
    RotateSigning(KeyFile),
}

/// The key file to work on.
#[derive(Debug, Clone, Args)]
pub struct KeyFile {
    /// Use this key file instead of the configured one.
    #[arg(long, value_name = "FILE")]
    pub file: Option<PathBuf>,
}

/// Remove a key.
#[derive(Debug, Clone, Args)]
pub struct Drop {
    /// The key's id, as `key list` prints it.
    pub id: String,
    /// The key file that it is in.
    #[command(flatten)]
    pub place: KeyFile,
}

/// Runs the command.
pub fn run(config: &GatewayConfig, command: &Key, out: &mut dyn Write, err: &mut dyn Write) -> Exit {
    match command {
        Key::Signing(place) => signing_key::show(config, place.file.as_deref(), out, err),
        Key::RotateSigning(place) => signing_key::rotate(config, place.file.as_deref(), out, err),
        Key::List(place) | Key::Rotate(place) | Key::Drop(Drop { place, .. }) => {
            let file = place.file.as_ref().unwrap_or(&config.outbox_key_file);
            outbox_keys(config, command, file, out, err)
        }
    }
}

fn outbox_keys(
    config: &GatewayConfig,
    command: &Key,
    file: &Path,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> Exit {
    let keys = match keys::outbox_keys_in(file) {
        Ok(keys) => keys,
        Err(error) => return fail(err, &error, error.consequence()),
    };
    let uses = match Outbox::key_uses_of(&config.outbox) {
        Ok(uses) => uses,
        Err(error) => return fail(err, &error, error.consequence()),
    };
    match command {
        Key::Rotate(_) => rotate(config, file, &keys, &uses.unwrap_or_default(), out, err),
        Key::Drop(Drop { id, .. }) => remove(config, file, &keys, uses.as_deref(), id, out, err),
        _ => list(&keys, &uses.unwrap_or_default(), out),
    }
}

fn rotate(
    config: &GatewayConfig,
    file: &Path,
    keys: &Keyring,
    uses: &[KeyUse],
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> Exit {
    if let Err(error) = Outbox::identify(&config.outbox, keys) {
        return fail(err, &error, error.consequence());
    }
    let active = keys.present().id();
    if uses.iter().any(|used| used.present && used.id != active) {
        let _ = writeln!(
            err,
            "key {active} was created, but nothing is sealed with it yet: `systemctl restart practice-gateway` first"
        );
        return Exit::Refused;
    }
    let keys = match keys::rotate_outbox_key(file) {
        Ok(keys) => keys,
        Err(error) => return fail(err, &error, error.consequence()),
    };
    let new = keys.present().id();
    let file = file.display();
    let _ = writeln!(
        out,
        "key {new} was created and is the first in {file}; key {active} stays there, and opens what it has sealed\n\
         \n\
         Next:\n\
         1. Give a copy of {file} to central IT, off this box. It has all the keys.\n\
         2. systemctl restart practice-gateway: from then on the new key seals.\n\
         3. When `practice-gateway key list` says that key {active} is no longer needed (the retention is over, the quarantine\n   \
         is empty of it): `practice-gateway key drop {active}`."
    );
    Exit::Done
}

/// `uses`: `None` if there is no store.
fn remove(
    config: &GatewayConfig,
    file: &Path,
    keys: &Keyring,
    uses: Option<&[KeyUse]>,
    id: &str,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> Exit {
    if !keys.has(id) {
        let _ = writeln!(err, "there is no key {id} in {}", file.display());
        return Exit::Refused;
    }
    let refused = match uses {
        _ if id == keys.present().id() => Some("it is the active key".to_owned()),
        None => Some(format!(
            "there is no store in {}, so nobody can tell whether the key is needed",
            config.outbox.directory.display()
        )),
        Some(uses) => {
            let used = uses.iter().find(|used| used.id == id);
            used.and_then(|used| match used.needed_by.as_slice() {
                [] if used.present => {
                    Some("the store still seals with it: restart the daemon first".to_owned())
                }
                [] => None,
                parts => Some(format!("it is needed by {}", parts.join(", "))),
            })
        }
    };
    if let Some(reason) = refused {
        let _ = writeln!(err, "key {id} was not removed: {reason}");
        return Exit::Refused;
    }
    if let Err(error) = keys::drop_outbox_key(file, id) {
        return fail(err, &error, error.consequence());
    }
    let _ = writeln!(
        out,
        "key {id} was removed from {}. Central IT may destroy its copy, unless a store that was set aside or an image of this box \
         needs it",
        file.display()
    );
    Exit::Done
}

fn list(keys: &Keyring, uses: &[KeyUse], out: &mut dyn Write) -> Exit {
    for id in keys.ids() {
        let _ = writeln!(out, "{}", describe(&id, uses));
    }
    let missing =
        uses.iter().filter(|used| !keys.has(&used.id) && (used.present || !used.needed_by.is_empty()));
    let mut exit = Exit::Done;
    for used in missing {
        let _ = writeln!(out, "{}: MISSING, and {}", used.id, needs(used));
        exit = Exit::Refused;
    }
    exit
}

/// One line for a key.
pub(crate) fn describe(id: &str, uses: &[KeyUse]) -> String {
    match uses.iter().find(|used| used.id == id) {
        Some(used) => format!("{id}: {}", needs(used)),
        None => format!("{id}: nothing is sealed with it yet"),
    }
}

fn needs(used: &KeyUse) -> String {
    let by = used.needed_by.join(", ");
    match (used.present, used.needed_by.is_empty()) {
        (true, true) => "seals new records; nothing needs it yet".to_owned(),
        (true, false) => format!("seals new records; needed by {by}"),
        (false, true) => format!("no longer needed: `practice-gateway key drop {}`", used.id),
        (false, false) => format!("needed by {by}"),
    }
}
