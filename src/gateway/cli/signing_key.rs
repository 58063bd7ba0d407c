//! `practice-gateway key signing` and `key rotate-signing`: the key with which the gateway signs what it says.

use std::io::{self, Write};
use std::path::Path;

use pgw_core::wire::signature::SigningKey;
use pgw_host::exit::{Exit, complain};
use pgw_host::secret::{self, KeyError, ReplacedKey, SecretPlace};

use crate::config::GatewayConfig;
use crate::keys;

/// What central IT runs at the hub after this gateway's key has changed.
pub(crate) fn command_for_the_hub(config: &GatewayConfig, public_key: impl std::fmt::Display) -> String {
    format!("practice-hub gateway key {} {public_key}", config.name())
}

/// One line for a key.
pub(crate) fn describe(file: &Path, key: &SigningKey) -> String {
    format!("{}, id {}, public key {}", file.display(), key.public().id(), key.public())
}

fn place(config: &GatewayConfig, named: Option<&Path>) -> SecretPlace {
    match named {
        Some(file) => SecretPlace { file: file.to_owned(), is_credential: false },
        None => keys::signing_key_place(&config.signing_key_file),
    }
}

/// Runs `key signing`.
pub fn show(config: &GatewayConfig, named: Option<&Path>, out: &mut dyn Write, err: &mut dyn Write) -> Exit {
    let place = place(config, named);
    let key = match secret::signing_key_at(&place) {
        Ok(key) => key,
        Err(error) => {
            complain(err, &error);
            if is_missing(&error) {
                let _ = writeln!(
                    err,
                    "Is the key an encrypted systemd credential? Then, as root:\n  \
                     systemd-run --pty -p LoadCredentialEncrypted=signing-key:/etc/practice-gateway/signing-key.cred practice-gateway key signing\n\
                     Otherwise `practice-gateway init` creates one."
                );
            }
            return error.consequence().into();
        }
    };
    let public = key.public();
    let _ = writeln!(
        out,
        "file        {}\nid          {}\npublic key  {public}",
        place.file.display(),
        public.id()
    );
    Exit::Done
}

/// Runs `key rotate-signing`.
pub fn rotate(
    config: &GatewayConfig,
    named: Option<&Path>,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> Exit {
    let place = place(config, named);
    let file = &place.file;
    if place.is_credential {
        let _ = writeln!(err, "the signing key was not replaced: {} is a systemd credential", file.display());
        write_credential_steps(err);
        return Exit::Refused;
    }
    let replaced = match secret::replace_signing_key(file) {
        Ok(replaced) => replaced,
        Err(error) => {
            complain(err, &error);
            if is_missing(&error) && named.is_none() {
                let _ =
                    writeln!(err, "The key is lost? `practice-gateway init` creates a new one. Otherwise:");
                write_credential_steps(err);
            }
            return error.consequence().into();
        }
    };
    write_replaced(config, file, &replaced, out);
    Exit::Done
}

fn is_missing(error: &KeyError) -> bool {
    matches!(error, KeyError::Unreadable { source, .. } if source.kind() == io::ErrorKind::NotFound)
}

/// How to replace a key that exists only encrypted: the plain one is in memory only, and never on the disk.
fn write_credential_steps(err: &mut dyn Write) {
    let _ = writeln!(
        err,
        "For a key that is an encrypted systemd credential, as root:\n  \
         umask 077\n  \
         systemd-creds decrypt --name=signing-key /etc/practice-gateway/signing-key.cred /run/signing.key\n  \
         practice-gateway key rotate-signing --file /run/signing.key\n  \
         systemd-creds encrypt --name=signing-key /run/signing.key /etc/practice-gateway/signing-key.cred.new\n  \
         cp -p /etc/practice-gateway/signing-key.cred /etc/practice-gateway/signing-key.cred.old\n  \
         mv /etc/practice-gateway/signing-key.cred.new /etc/practice-gateway/signing-key.cred\n  \
         shred -u /run/signing.key /run/signing.key.old-*\n\
         `key rotate-signing` prints what central IT and you do next. To go back, rename signing-key.cred.old back to signing-key.cred."
    );
}

fn write_replaced(config: &GatewayConfig, file: &Path, replaced: &ReplacedKey, out: &mut dyn Write) {
    let (new, old) = (replaced.new.public(), replaced.old);
    let (new_id, old_id) = (new.id(), old.id());
    let is_configured = file == config.signing_key_file;
    let (file, kept) = (replaced.file.display(), replaced.kept.display());
    let (list_new, list_old) = (command_for_the_hub(config, new), command_for_the_hub(config, old));
    let _ = writeln!(
        out,
        "signing key {new_id} was created in {file}; key {old_id} is kept in {kept}\n\
         public key  {new}\n\
         \n\
         Next:\n\
         1. Central IT, at the hub: {list_new}\n\
         2. Then on this box: systemctl restart practice-gateway\n\
         3. Once `practice-gateway status` shows that the hub confirms again: shred -u {kept}\n\
         \n\
         Keep this order. The gateway signs with key {old_id} until step 2. The hub takes nothing under key {new_id} until central\n\
         IT has listed it, and from then on nothing new under key {old_id}. Meanwhile the gateway accepts and keeps everything;\n\
         nothing is lost.\n"
    );
    let _ = if is_configured {
        writeln!(
            out,
            "To go back before step 3:\n\
             1. mv {kept} {file}\n\
             2. Central IT, if it has listed the new key: {list_old}\n\
             3. systemctl restart practice-gateway"
        )
    } else {
        writeln!(out, "The gateway does not read {file}: put the new key in place before step 2.")
    };
}
