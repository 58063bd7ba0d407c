//! `practice-hub gateway`: shows and changes the list of gateways.
//!
//! - [`list`]: what is printed of the list
//!
//! A change is on stable storage first; then the running hub reads the list again, so that a revoked key counts for
//! nothing as soon as the command has ended.

mod list;

use std::io::Write;

use clap::{Args, Subcommand};
use pgw_core::transaction::{Gateway, Lane, Practice, unix_millis_now};
use pgw_core::wire::signature::{KeyId, PublicKey};
use pgw_host::exit::{Exit, complain, fail};

use super::acl::rules;
use crate::config::HubConfig;
use crate::control::{Client, Reply, Request};
use crate::gateways::change::{ChangeError, Revoked, Rotated};
use crate::gateways::file::{Edited, ListError, edit};
use crate::gateways::{Gateways, ListedGateway, common_name, label};

/// What is done with the list.
#[derive(Debug, Clone, Subcommand)]
pub enum GatewayCommand {
    /// Show the gateways and their keys.
    List {
        /// Print one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Add a gateway with its first key.
    Add(Add),
    /// Change a gateway's display name, district, lanes, quota or window.
    Set(Set),
    /// Give a gateway another signing key; what its former key has signed can still be verified.
    Key {
        /// PRACTICE.GATEWAY.
        #[arg(value_parser = common_name)]
        gateway: (Practice, Gateway),
        /// The key that signs from now on, as `practice-gateway init` prints it.
        #[arg(value_parser = public_key)]
        key: PublicKey,
    },
    /// Revoke a stolen or leaked key, at once and for good.
    Revoke {
        /// PRACTICE.GATEWAY.
        #[arg(value_parser = common_name)]
        gateway: (Practice, Gateway),
        /// The key's id, as `practice-hub gateway list` shows it.
        #[arg(value_name = "KEY-ID", value_parser = key_id)]
        id: KeyId,
    },
    /// Remove a gateway from the list; a dry run without --yes.
    Remove {
        /// PRACTICE.GATEWAY.
        #[arg(value_parser = common_name)]
        gateway: (Practice, Gateway),
        /// Do it.
        #[arg(long)]
        yes: bool,
    },
}

/// Add a gateway with its first key.
#[derive(Debug, Clone, Args)]
pub struct Add {
    /// PRACTICE.GATEWAY, the common name of its certificate, for example B86022.gw1.
    #[arg(value_parser = common_name)]
    gateway: (Practice, Gateway),
    /// The key with which it signs, as `practice-gateway init` prints it.
    #[arg(long, value_name = "KEY", value_parser = public_key)]
    public_key: PublicKey,
    /// The surgery's name.
    #[arg(long, value_name = "TEXT", value_parser = label, default_value = "", hide_default_value = true)]
    display_name: String,
    /// Its district.
    #[arg(long, value_name = "TEXT", value_parser = label, default_value = "", hide_default_value = true)]
    district: String,
    /// A lane that it may use; may be repeated. Without this option it may use any lane.
    #[arg(long = "lane", value_name = "LANE")]
    lanes: Vec<Lane>,
}

/// Change a gateway's display name, district, lanes, quota or window; what is not given stays as it is.
#[derive(Debug, Clone, Args)]
pub struct Set {
    /// PRACTICE.GATEWAY.
    #[arg(value_parser = common_name)]
    gateway: (Practice, Gateway),
    #[command(flatten)]
    values: SetValues,
}

/// The values, of which at least one is given.
#[derive(Debug, Clone, Args)]
#[group(required = true, multiple = true)]
struct SetValues {
    /// The surgery's name; "" for none.
    #[arg(long, value_name = "TEXT", value_parser = label)]
    display_name: Option<String>,
    /// Its district; "" for none.
    #[arg(long, value_name = "TEXT", value_parser = label)]
    district: Option<String>,
    /// A lane that it may use, in place of the lanes before; may be repeated.
    #[arg(long = "lane", value_name = "LANE", conflicts_with = "any_lane")]
    lanes: Vec<Lane>,
    /// It may use any lane.
    #[arg(long)]
    any_lane: bool,
    /// Its quota in bytes per day.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1 << 50), conflicts_with = "default_quota")]
    quota_bytes_per_day: Option<u64>,
    /// It has the default quota.
    #[arg(long)]
    default_quota: bool,
    /// How many transactions of each lane it may have under way, to spare the centre when many gateways return at once; 0: it waits.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=65_535), conflicts_with = "own_window")]
    window: Option<u32>,
    /// It may have as many under way as its own configuration says.
    #[arg(long)]
    own_window: bool,
}

fn public_key(text: &str) -> Result<PublicKey, &'static str> {
    text.parse().map_err(|_| "it must be 32 bytes in base64, as `practice-gateway init` prints it")
}

/// Whoever has the whole key at hand need not look for its id.
fn key_id(text: &str) -> Result<KeyId, &'static str> {
    text.parse().or_else(|_| text.parse().map(|key: PublicKey| key.id())).map_err(|_| {
        "it must be a key's id (16 hexadecimal digits, as `practice-hub gateway list` shows it) or the key itself"
    })
}

/// Runs the command.
pub fn run(config: &HubConfig, command: GatewayCommand, out: &mut dyn Write, err: &mut dyn Write) -> Exit {
    match command {
        GatewayCommand::List { json } => match Gateways::load(&config.settings.gateways_file) {
            Ok(list) => list::print(&config.settings.gateways_file, &list, json, out),
            Err(error) => fail(err, &error, error.consequence()),
        },
        GatewayCommand::Remove { gateway, yes: false } => would_remove(config, &gateway, out, err),
        command => match change(config, command) {
            Ok(Edited { outcome, before, after }) => {
                let _ = writeln!(out, "{outcome}");
                let told = tell_hub(config, &after, out, err);
                if rules(&[], &before) != rules(&[], &after) {
                    let _ = writeln!(
                        out,
                        "next: the broker's access rules have changed; install what `practice-hub acl` prints and reload the broker"
                    );
                }
                told
            }
            Err(error) => fail(err, &error, error.consequence()),
        },
    }
}

/// Changes the list, and says what has changed.
fn change(config: &HubConfig, command: GatewayCommand) -> Result<Edited<String>, ListError> {
    let now = unix_millis_now();
    edit(&config.settings.gateways_file, &config.file, |list| match command {
        GatewayCommand::List { .. } => Ok(String::new()),
        GatewayCommand::Add(command) => add(list, command, now),
        GatewayCommand::Set(Set { gateway, values }) => {
            let listed = list.listed_mut(&gateway)?;
            values.put(listed);
            Ok(format!("{}: {}", text(&gateway), list::one_line(listed)))
        }
        GatewayCommand::Key { gateway, key } => {
            let rotated = list.rotate(&gateway, key, now)?;
            Ok(rotation(&text(&gateway), key.id(), rotated))
        }
        GatewayCommand::Revoke { gateway, id } => {
            let revoked = list.revoke(&gateway, id)?;
            Ok(revocation(&text(&gateway), id, revoked, list.listed_mut(&gateway)?))
        }
        GatewayCommand::Remove { gateway, .. } => {
            list.remove(&gateway)?;
            Ok(format!("{} is removed from the list; its transactions stay in the store", text(&gateway)))
        }
    })
}

fn text((practice, gateway): &(Practice, Gateway)) -> String {
    format!("{practice}.{gateway}")
}

fn add(list: &mut Gateways, command: Add, now: u64) -> Result<String, ChangeError> {
    let Add { gateway, public_key, display_name, district, lanes } = command;
    let listed = ListedGateway { display_name, district, lanes: once(lanes), ..ListedGateway::default() };
    list.add(&gateway, listed, public_key, now)?;
    Ok(format!("{} is added: key {} signs", text(&gateway), public_key.id()))
}

/// The lanes without repetitions, which the list's file does not allow.
fn once(lanes: Vec<Lane>) -> Vec<Lane> {
    let mut kept = Vec::new();
    for lane in lanes {
        if !kept.contains(&lane) {
            kept.push(lane);
        }
    }
    kept
}

impl SetValues {
    fn put(self, listed: &mut ListedGateway) {
        listed.display_name = self.display_name.unwrap_or(std::mem::take(&mut listed.display_name));
        listed.district = self.district.unwrap_or(std::mem::take(&mut listed.district));
        if self.any_lane || !self.lanes.is_empty() {
            listed.lanes = once(self.lanes);
        }
        if self.default_quota || self.quota_bytes_per_day.is_some() {
            listed.quota_bytes_per_day = self.quota_bytes_per_day;
        }
        if self.own_window || self.window.is_some() {
            listed.window = self.window;
        }
    }
}

fn rotation(gateway: &str, id: KeyId, rotated: Rotated) -> String {
    match rotated {
        Rotated::Already => format!("{gateway} signs with key {id} already: nothing has changed"),
        Rotated::From(None) => format!("{gateway} signs with key {id} from now on; it had no signing key"),
        Rotated::From(Some(former)) => format!(
            "{gateway} signs with key {id} from now on; key {former} is kept to verify what it signed before"
        ),
    }
}

fn revocation(gateway: &str, id: KeyId, revoked: Revoked, listed: &ListedGateway) -> String {
    let without = format!(
        "{gateway} has no signing key now: the hub accepts nothing from it until `practice-hub gateway key {gateway} KEY` \
         gives it another"
    );
    let done = match revoked {
        Revoked::Already => format!("key {id} of {gateway} is revoked already: nothing has changed"),
        _ => format!("key {id} of {gateway} is revoked; no command can undo this"),
    };
    if listed.signing().is_none() { format!("{done}\n{without}") } else { done }
}

fn would_remove(
    config: &HubConfig,
    gateway: &(Practice, Gateway),
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> Exit {
    let removed =
        Gateways::load(&config.settings.gateways_file).and_then(|mut list| Ok(list.remove(gateway)?));
    let listed = match removed {
        Ok(listed) => listed,
        Err(error) => return fail(err, &error, error.consequence()),
    };
    let _ = writeln!(
        out,
        "{}: {}\n\
         Removed from the list:\n\
         - the hub accepts nothing from it any more\n\
         - what its keys have signed (the heads that the hub keeps, its bundles) can no longer be verified\n\
         - the list no longer knows which of its keys were revoked\n\
         Nothing of the store is deleted. Nothing was changed: add --yes to do it.",
        text(gateway),
        list::one_line(&listed)
    );
    Exit::Done
}

/// Has the running hub read the list again, which is `now` or newer.
fn tell_hub(config: &HubConfig, now: &Gateways, out: &mut dyn Write, err: &mut dyn Write) -> Exit {
    let mut answer = None;
    let asked = Client::connect(&config.settings.control_socket)
        .and_then(|mut hub| hub.ask(&Request::Reload {}, |reply| answer = Some(reply)));
    match (asked, answer) {
        (Ok(()), Some(Reply::Reloaded { serial, .. })) if serial >= now.serial => {
            let _ = writeln!(out, "the hub has read the list: serial {serial}");
            Exit::Done
        }
        (Ok(()), Some(Reply::Reloaded { serial, .. })) => {
            let _ = writeln!(
                err,
                "the running hub reads another list (serial {serial}, not {}): run this command with the hub's own --config",
                now.serial
            );
            Exit::Configuration
        }
        (Ok(()), _) => {
            let _ = writeln!(err, "the hub's answer was not understood");
            Exit::Internal
        }
        (Err(error), _) if error.is_not_running() => {
            let _ = writeln!(out, "the hub is not running: it reads the list when it starts");
            Exit::Done
        }
        (Err(error), _) => {
            complain(err, &error);
            let _ = writeln!(
                err,
                "the list is changed, but the running hub has not read it: correct that, then `systemctl reload practice-hub`"
            );
            error.consequence().into()
        }
    }
}
