//! `practice-hub key`: the key with which the hub signs what it says, and the one that comes next.
//!
//! Every gateway pins the hub's key, and a gateway that does not know it counts nothing as confirmed. So the next key is made and
//! given to all gateways first; they have room for two.

use std::io::{ErrorKind, Write};

use clap::Subcommand;
use pgw_core::wire::signature::PublicKey;
use pgw_host::exit::{Exit, complain, fail};
use pgw_host::next_key::{self, KeyPair};
use pgw_host::secret::{KeyError, ReplacedKey};

use crate::HubSettings;
use crate::config::HubConfig;

/// What is done with the hub's signing key.
#[derive(Debug, Clone, Copy, Subcommand)]
pub enum Key {
    /// Show the signing key's public half, and that of the next key, as the gateways' configuration needs them.
    Signing,
    /// Make the next signing key beside the present one, and print what comes then; the hub signs with the present one.
    Next,
    /// Put the next key in the place of the present one, which is kept: only when every gateway has it as `next_public_key`.
    Switch {
        /// Every gateway has the next key.
        #[arg(long)]
        yes: bool,
    },
}

/// Runs the command.
pub fn run(config: &HubConfig, command: Key, out: &mut dyn Write, err: &mut dyn Write) -> Exit {
    let settings = &config.settings;
    let file = &settings.signing_key_file;
    let done = match command {
        Key::Signing => KeyPair::read(file).map(|pair| show(settings, &pair, out)),
        Key::Next => next_key::make(file).map(|(pair, made)| write_next(settings, &pair, made, out)),
        Key::Switch { yes: false } => KeyPair::read(file).map(|pair| ask(&pair, err)),
        Key::Switch { yes: true } => next_key::switch(file).map(|switched| match switched {
            Some(replaced) => write_switched(settings, &replaced, out),
            None => no_next(err),
        }),
    };
    match done {
        Ok(exit) => exit,
        Err(error) if is_missing(&error) => {
            complain(err, &error);
            let _ = writeln!(
                err,
                "The key is lost? Look for its copy first: `practice-hub init` makes another one, which no gateway knows."
            );
            error.consequence().into()
        }
        Err(error) => fail(err, &error, error.consequence()),
    }
}

fn is_missing(error: &KeyError) -> bool {
    matches!(error, KeyError::Unreadable { source, .. } if source.kind() == ErrorKind::NotFound)
}

fn no_next(err: &mut dyn Write) -> Exit {
    let _ = writeln!(
        err,
        "the signing key was not replaced: there is no next key; `practice-hub key next` makes it"
    );
    Exit::Refused
}

/// The lines of the gateways' configuration.
fn lines(settings: &HubSettings, present: PublicKey, next: PublicKey) -> String {
    format!("[[hub]]\nname = \"{}\"\npublic_key = \"{present}\"\nnext_public_key = \"{next}\"", settings.hub)
}

fn show(settings: &HubSettings, pair: &KeyPair, out: &mut dyn Write) -> Exit {
    let KeyPair { file, present, next_file, next } = pair;
    let _ =
        writeln!(out, "file        {}\nid          {}\npublic key  {present}", file.display(), present.id());
    let _ = match next {
        None => writeln!(out, "next key    none: `practice-hub key next` makes it"),
        Some(next) => writeln!(
            out,
            "next file   {}\nnext id     {}\nnext key    {next}\n\nEvery gateway's configuration needs:\n\n{}",
            next_file.display(),
            next.id(),
            lines(settings, *present, *next)
        ),
    };
    Exit::Done
}

fn write_next(settings: &HubSettings, pair: &KeyPair, made: bool, out: &mut dyn Write) -> Exit {
    let Some(next) = pair.next else { return Exit::Internal };
    let (file, there) =
        (pair.next_file.display(), if made { "created" } else { "exists already, unchanged" });
    let (present_id, next_id) = (pair.present.id(), next.id());
    let _ = writeln!(
        out,
        "next signing key {next_id} in {file}: {there}\n\
         \n\
         Next:\n\
         1. Keep a copy of {file} in a safe place.\n\
         2. Every gateway's configuration needs, and then a restart of the gateway:\n\
         \n\
         {}\n\
         \n\
         3. When every gateway has it: practice-hub key switch --yes\n\
         4. systemctl restart practice-hub\n\
         5. Then in every gateway's configuration: public_key = \"{next}\", and no next_public_key.\n\
         \n\
         Keep this order. The hub signs with key {present_id} until step 4. A gateway that does not have key {next_id} then takes\n\
         nothing from the hub: it keeps everything, and confirms again as soon as it has the key.\n\
         \n\
         To go back before step 3: remove next_public_key from the gateways, then {file}.",
        lines(settings, pair.present, next)
    );
    Exit::Done
}

fn ask(pair: &KeyPair, err: &mut dyn Write) -> Exit {
    let Some(next) = pair.next else { return no_next(err) };
    let _ = writeln!(
        err,
        "nothing has changed. A gateway that does not have key {} as next_public_key would take nothing from this hub: if every\n\
         gateway has it, run `practice-hub key switch --yes`",
        next.id()
    );
    Exit::Refused
}

fn write_switched(settings: &HubSettings, replaced: &ReplacedKey, out: &mut dyn Write) -> Exit {
    let (new, old) = (replaced.new.public(), replaced.old);
    let (file, kept) = (replaced.file.display(), replaced.kept.display());
    let _ = writeln!(
        out,
        "signing key {} is in {file}; key {} is kept in {kept}\n\
         \n\
         Next:\n\
         1. systemctl restart practice-hub\n\
         2. When the gateways confirm again, in every gateway's configuration of hub {}: public_key = \"{new}\", and no\n   \
         next_public_key.\n\
         3. When every gateway has that: shred -u {kept}\n\
         \n\
         To go back before step 2:\n\
         1. mv {file} {file}.next\n\
         2. mv {kept} {file}\n\
         3. systemctl restart practice-hub\n\
         After step 2 a gateway no longer has key {}: give it back as next_public_key first.",
        new.id(),
        old.id(),
        settings.hub,
        old.id()
    );
    Exit::Done
}
