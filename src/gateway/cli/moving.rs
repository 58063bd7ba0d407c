//! `practice-gateway outbox retire`, `adopt` and `set-aside`: another box, a lost key. They take the store's lock, so
//! no daemon may have it open.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::ops::ControlFlow;

use clap::Args;
use pgw_core::transaction::Lane;
use pgw_core::wire::signature::PublicKey;
use pgw_host::exit::{Exit, complain, fail};
use pgw_host::secret::KeyError;
use pgw_outbox::offline::moving;
use pgw_outbox::offline::moving::{LaneTotals, Manifest, MoveError};
use pgw_outbox::offline::set_aside;
use pgw_outbox::offline::set_aside::Unreadable;
use pgw_outbox::{Keyring, Outbox};

use crate::cli::signing_key::command_for_the_hub;
use crate::config::GatewayConfig;
use crate::control::verify::verify;
use crate::keys;

/// Retire a store for good, or take that back.
#[derive(Debug, Clone, Args)]
pub struct Retire {
    /// Give up the move: the store runs here again. Only if nothing was ever started on the new box.
    #[arg(long)]
    pub undo: bool,
    /// Confirm --undo.
    #[arg(long, requires = "undo")]
    pub yes: bool,
}

/// Adopt a copy.
#[derive(Debug, Clone, Args)]
pub struct Adopt {
    /// The old box's signing key is lost: adopt with the one that is here, which central IT then has to list at the hub.
    #[arg(long)]
    pub new_signing_key: bool,
}

/// Set a store aside.
#[derive(Debug, Clone, Args)]
pub struct SetAside {
    /// Do it; without this option it is a dry run.
    #[arg(long)]
    pub yes: bool,
}

fn keyring(config: &GatewayConfig, err: &mut dyn Write) -> Result<Keyring, Exit> {
    keys::outbox_keys(&config.outbox_key_file).map_err(|error| fail(err, &error, error.consequence()))
}

fn not_moved(error: &MoveError, err: &mut dyn Write) -> Exit {
    if let MoveError::Incomplete(wrong) = error {
        let _ =
            writeln!(err, "the copy differs from the retired store; copy the whole data directory again:");
        for what in wrong {
            let _ = writeln!(err, "  {what}");
        }
    } else {
        complain(err, error);
    }
    error.consequence().into()
}

fn write_lanes(out: &mut dyn Write, lanes: &BTreeMap<Lane, LaneTotals>) {
    for (lane, totals) in lanes {
        let LaneTotals { accepted, confirmed, waiting, damaged, chain } = totals;
        let chain = chain.map_or("-".to_owned(), |chain| chain.to_string());
        let _ = writeln!(
            out,
            "lane {lane}: accepted {accepted}, confirmed {confirmed}, waiting {waiting}, damaged {damaged}\n  chain {chain}"
        );
    }
}

/// Runs `outbox retire`.
pub fn retire(config: &GatewayConfig, command: &Retire, out: &mut dyn Write, err: &mut dyn Write) -> Exit {
    let store = config.outbox.directory.display();
    if command.undo {
        if !command.yes {
            let _ = writeln!(
                err,
                "If the copy runs on another box, or ever did, this box must not run again: the two histories would diverge, and a person would \
                 have to put them together.\nIf it never did: `practice-gateway outbox retire --undo --yes`"
            );
            return Exit::Refused;
        }
        return match moving::take_back(&config.outbox) {
            Ok(()) => {
                let _ = writeln!(out, "the store in {store} runs here again; destroy every copy of it");
                Exit::Done
            }
            Err(error) => not_moved(&error, err),
        };
    }
    let keys = match keyring(config, err) {
        Ok(keys) => keys,
        Err(exit) => return exit,
    };
    let ids = keys.ids().join(", ");
    // Without it nothing is retired: the new box would have to be listed again before the hub takes anything from it.
    let signing_key = match keys::signing_key(&config.signing_key_file) {
        Ok(key) => key.public().id().to_string(),
        Err(error) => {
            let exit = fail(err, &error, error.consequence());
            let _ = writeln!(
                err,
                "Is the signing key lost? `practice-gateway init` creates a new one. Nothing was retired."
            );
            return exit;
        }
    };
    match moving::retire(&config.outbox, &config.data_directory, keys, signing_key) {
        Ok(manifest) => {
            let _ = writeln!(out, "the store in {store} is retired: it never runs here again\n");
            write_lanes(out, &manifest.lanes);
            let (data, key) = (config.data_directory.display(), config.outbox_key_file.display());
            let (signing_file, signing_key) = (config.signing_key_file.display(), &manifest.signing_key);
            let bytes: u64 = manifest.files.values().map(|(bytes, _)| bytes).sum();
            let _ = writeln!(
                out,
                "{} files, {bytes} bytes; check word {}\n\
                 \n\
                 Next:\n\
                 1. On this box: systemctl disable practice-gateway\n\
                 2. Copy to the new box, with their modes and owners: {data}, {key} (keys {ids}),\n   \
                 {signing_file} (signing key {signing_key}), the certificate and its key, {}\n\
                 3. On the new box: practice-gateway outbox adopt. It prints the same check word, or what is missing.\n\
                 4. On the new box: systemctl enable --now practice-gateway",
                manifest.files.len(),
                manifest.word(),
                config.file.display()
            );
            Exit::Done
        }
        Err(error) => not_moved(&error, err),
    }
}

/// The signing key must have come along: under another one the hub takes nothing before central IT has listed it.
fn signing_key_of_copy(
    config: &GatewayConfig,
    command: &Adopt,
    manifest: &Manifest,
    err: &mut dyn Write,
) -> Result<PublicKey, Exit> {
    const LOST: &str = "Is it lost? `practice-gateway init` creates a new one if none is there; then \
                        `practice-gateway outbox adopt --new-signing-key`";
    let (file, old) = (config.signing_key_file.display(), &manifest.signing_key);
    let public = match keys::signing_key(&config.signing_key_file) {
        Ok(key) => key.public(),
        Err(error) => {
            let exit = fail(err, &error, error.consequence());
            let _ = writeln!(err, "copy signing key {old} from the old box to {file}. {LOST}");
            return Err(exit);
        }
    };
    let here = public.id().to_string();
    if here == *old || command.new_signing_key {
        return Ok(public);
    }
    let _ = writeln!(
        err,
        "the signing key here is {here}, and the old box had {old}: copy that one to {file}. {LOST}"
    );
    Err(Exit::Refused)
}

/// What differs between the copy and the list of the retired store.
fn differences(outbox: &Outbox, manifest: &Manifest) -> Vec<String> {
    let mut wrong = Vec::new();
    for lane in manifest.lanes.keys() {
        match verify(outbox, lane, |_, _| ControlFlow::Continue(())) {
            // Damage that the old box knew of is not the copy's fault.
            Ok(Some(verdict)) => {
                let known = manifest.lanes.get(lane).map_or(0, |totals| totals.damaged);
                if verdict.wrong > 0 || verdict.missing > known {
                    wrong.push(format!(
                        "lane {lane}: {} records are altered and {} missing",
                        verdict.wrong, verdict.missing
                    ));
                }
            }
            Ok(None) => {}
            Err(error) => wrong.push(format!("lane {lane}: {error}")),
        }
    }
    let found = moving::lane_totals(outbox);
    for (lane, totals) in &manifest.lanes {
        match found.get(lane) {
            Some(here) if here == totals => {}
            Some(here) => wrong.push(format!(
                "lane {lane}: accepted {}, confirmed {}, waiting {} here, and {}, {}, {} on the old box",
                here.accepted,
                here.confirmed,
                here.waiting,
                totals.accepted,
                totals.confirmed,
                totals.waiting
            )),
            None => wrong.push(format!("the configuration of this box has no lane {lane}")),
        }
    }
    wrong
}

/// Runs `outbox adopt`.
pub fn adopt(config: &GatewayConfig, command: &Adopt, out: &mut dyn Write, err: &mut dyn Write) -> Exit {
    let manifest = match moving::check_copy(&config.outbox, &config.data_directory) {
        Ok(manifest) => manifest,
        Err(error) => return not_moved(&error, err),
    };
    let keys = match keyring(config, err) {
        Ok(keys) => keys,
        Err(exit) => return exit,
    };
    let public = match signing_key_of_copy(config, command, &manifest, err) {
        Ok(public) => public,
        Err(exit) => return exit,
    };
    let outbox = match Outbox::open_retired(config.outbox.clone(), keys) {
        Ok(outbox) => outbox,
        Err(error) => return fail(err, &error, error.consequence()),
    };
    let wrong = differences(&outbox, &manifest);
    outbox.close();
    if !wrong.is_empty() {
        return not_moved(&MoveError::Incomplete(wrong), err);
    }
    if let Err(error) = moving::adopt(&config.outbox) {
        return not_moved(&error, err);
    }
    write_adopted(config, &manifest, public, out);
    Exit::Done
}

fn write_adopted(config: &GatewayConfig, manifest: &Manifest, public: PublicKey, out: &mut dyn Write) {
    let store = config.outbox.directory.display();
    let _ = writeln!(out, "the copy in {store} is whole, and its chains are unbroken\n");
    write_lanes(out, &manifest.lanes);
    let _ = writeln!(out, "{} files; check word {}\n", manifest.files.len(), manifest.word());
    if public.id().to_string() != manifest.signing_key {
        let _ = writeln!(
            out,
            "Signing key {} is new. Before the hub takes anything under it, central IT has to list it there:\n\
             {}\n",
            public.id(),
            command_for_the_hub(config, public)
        );
    }
    let _ = writeln!(out, "It runs on this box only from now on: systemctl enable --now practice-gateway");
}

/// Runs `outbox set-aside`.
pub fn set_aside(
    config: &GatewayConfig,
    command: &SetAside,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> Exit {
    let file = &config.outbox_key_file;
    let keys = match keys::outbox_keys(file) {
        Ok(keys) => Some(keys),
        // Missing, or not a key any more: lost.
        Err(KeyError::Unreadable { source, .. }) if source.kind() == io::ErrorKind::NotFound => None,
        Err(KeyError::Form { .. }) => None,
        Err(error) => return fail(err, &error, error.consequence()),
    };
    if !command.yes {
        return match set_aside::inspect(&config.outbox, keys.as_ref()) {
            Ok(facts) => {
                write_loss(out, &facts);
                let _ = writeln!(
                    out,
                    "\nIs the key an encrypted systemd credential, and just not in {}? Then it is not lost: do nothing here.\n\
                     Ask central IT for its copy of key {}: with that copy nothing is lost.\n\
                     Without any copy: `practice-gateway outbox set-aside --yes` renames the store, and the next start creates a new one.",
                    file.display(),
                    facts.key_ids.join(" and ")
                );
                Exit::Done
            }
            Err(error) => fail(err, &error, error.consequence()),
        };
    }
    let (aside, facts) = match set_aside::set_aside(&config.outbox, keys.as_ref()) {
        Ok(done) => done,
        Err(error) => return fail(err, &error, error.consequence()),
    };
    write_loss(out, &facts);
    let _ = writeln!(out, "\nthe store is set aside in {}: keep it", aside.display());
    match new_key(config, keys) {
        Ok(id) => {
            let _ = writeln!(
                out,
                "the next start creates a new store, sealed with key {id} in {}\n\
                 \n\
                 Next:\n\
                 1. Give a copy of {} to central IT, off this box.\n\
                 2. systemctl start practice-gateway\n\
                 3. Have the senders repeat what they sent after the hub's last receipt (`practice-hub list`); or, should the old key be\n   \
                 found, before they do: practice-gateway export --store {} --key-file FILE --to BUNDLE, and `practice-hub import`.",
                file.display(),
                file.display(),
                aside.display()
            );
            Exit::Done
        }
        Err(error) => {
            let exit = fail(err, &error, error.consequence());
            let _ = writeln!(err, "there is no new key yet: `practice-gateway init` creates it");
            exit
        }
    }
}

/// The id of the key for the new store: an existing key that has opened nothing, or a new one. A file that is not a
/// key is kept.
fn new_key(config: &GatewayConfig, keys: Option<Keyring>) -> Result<String, KeyError> {
    let file = &config.outbox_key_file;
    if let Some(keys) = keys {
        return Ok(keys.present().id());
    }
    if file.exists() {
        let mut name = file.file_name().unwrap_or_default().to_owned();
        name.push(format!(".not-a-key-{}", uuid::Uuid::now_v7()));
        pgw_durable::rename(file, &file.with_file_name(name))
            .map_err(|source| KeyError::Make { file: file.clone(), source })?;
    }
    keys::make_outbox_key(file)?;
    Ok(keys::outbox_keys_in(file)?.present().id())
}

fn write_loss(out: &mut dyn Write, facts: &set_aside::SetAside) {
    let _ = writeln!(out, "the store needs key {}, which is not here", facts.key_ids.join(" and "));
    for (lane, known) in &facts.lanes {
        let Unreadable { accepted, confirmed, .. } = known;
        let _ = match known.count() {
            0 => writeln!(out, "lane {lane}: all {accepted} were confirmed by the hub: nothing is lost"),
            count => writeln!(
                out,
                "lane {lane}: {accepted} accepted, {confirmed} confirmed by the hub; {count} cannot be read, positions {} to {accepted}",
                confirmed + 1
            ),
        };
    }
}
