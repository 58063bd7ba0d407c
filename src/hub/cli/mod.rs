//! The command line: `practice-hub`.
//!
//! - [`check`], [`init`]: before the first start
//! - [`key`]: the hub's signing key and the next one
//! - [`gateway`]: the list of gateways; [`acl`]: the broker's access rules for it
//! - [`lane`]: what is beside a lane, and what waits there
//! - [`import`], [`resend`]: add what the store lacks; [`backup`]: back the store up; [`archive`]: make room in it;
//!   [`mod@store`]: its identity
//!
//! Each command writes to the writers that it is given, so that tests can read its output.

pub mod acl;
pub mod archive;
pub mod backup;
pub mod check;
pub mod gateway;
pub mod import;
pub mod init;
pub mod key;
pub mod lane;
pub mod resend;
pub mod store;

use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use pgw_core::transaction::unix_millis_now;
use pgw_host::args::parse;
use pgw_host::exit::{Exit, complain, fail};

use crate::HubSettings;
use crate::config::HubConfig;
use crate::daemon;
use crate::gateways::Gateways;
use crate::report;
use crate::report::PrintedReport;
use crate::store::StoreError;

/// The centre's end: store the surgeries' transactions exactly once and in order, and confirm them.
#[derive(Debug, Parser)]
#[command(name = "practice-hub", version)]
struct Arguments {
    /// The configuration file.
    #[arg(long, global = true, value_name = "FILE", default_value = "/etc/practice-hub/hub.toml")]
    config: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the hub.
    Run,
    /// Check configuration, keys, certificates and store; say what is wrong and what to do.
    Check,
    /// Create the keys and the store's directory, and print the public key; overwrite nothing.
    Init,
    /// List the gateways and their status; fails if a lane's files are not whole.
    List,
    /// Check the chain of every stored lane, whether or not the hub runs.
    Verify(Verify),
    /// Store the transactions of hand-carried files.
    Import(import::Import),
    /// Ask a gateway to send transactions again that the store has lost or altered.
    Resend(resend::Resend),
    /// A lane: show what is beside it, and let it continue where it waits for the centre.
    #[command(subcommand)]
    Lane(lane::Lane),
    /// Back up the store: what to copy, whether a copy is complete, and that it is.
    #[command(subcommand)]
    Backup(backup::Backup),
    /// Move the bodies of old transactions elsewhere, to make room.
    Archive(archive::Archive),
    /// The store's identity.
    #[command(subcommand)]
    Store(store::Store),
    /// The hub's signing key: show it, make the next one, put that in its place.
    #[command(subcommand)]
    Key(key::Key),
    /// The list of gateways and their keys: show it and change it.
    #[command(subcommand)]
    Gateway(gateway::GatewayCommand),
    /// Print the broker's access rules for this hub and its list of gateways.
    Acl(acl::Acl),
}

#[derive(Debug, Args)]
struct Verify {
    /// Check only PRACTICE, PRACTICE/GATEWAY or PRACTICE/GATEWAY/LANE.
    only: Option<String>,
    /// Check a hand-carried file instead of the store; nothing is stored.
    #[arg(long, value_name = "FILE", conflicts_with = "only")]
    bundle: Option<PathBuf>,
    /// Read the files that this archive has in place of those that have lost their bodies to it.
    #[arg(long, value_name = "DIR", conflicts_with = "bundle")]
    archive: Option<PathBuf>,
}

/// The program's entry point; the first of `args` is its name.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    run(args, &mut std::io::stdout(), &mut std::io::stderr()).into()
}

fn run(args: impl IntoIterator<Item = OsString>, out: &mut dyn Write, err: &mut dyn Write) -> Exit {
    let Arguments { command, config } = match parse(args, out, err) {
        Ok(arguments) => arguments,
        Err(exit) => return exit,
    };
    // It runs where the copy is, also where no hub is installed.
    if let Command::Backup(backup::Backup::Check(check)) = &command {
        return backup::check(check, out, err);
    }
    let config = match HubConfig::load(&config) {
        Ok(config) => config,
        Err(error) => {
            complain(err, &error);
            return Exit::Configuration;
        }
    };
    match command {
        Command::Run => pgw_host::daemon::run(&config.log.clone(), || daemon::run(config), err),
        Command::Check => check::run(&config, out),
        Command::Init => init::run(&config, out, err),
        Command::List => print(report::list(&config.settings.directory, unix_millis_now()), out, err),
        Command::Import(command) => import::import(&config, &command, out, err),
        Command::Verify(Verify { bundle: Some(file), .. }) => import::verify(&config, &file, out, err),
        Command::Verify(Verify { only, archive, bundle: None }) => {
            let settings = &config.settings;
            match Gateways::load(&settings.gateways_file) {
                Ok(list) => {
                    let (archive, only) = (archive.as_deref(), only.as_deref());
                    print(report::verify_with(&settings.directory, archive, &list, only), out, err)
                }
                Err(error) => fail(err, &error, error.consequence()),
            }
        }
        Command::Archive(command) => archive::run(&config.settings, &command, out, err),
        Command::Resend(command) => resend::run(&config.settings.control_socket, &command, out, err),
        Command::Lane(command) => lane::run(&config.settings, &command, out, err),
        Command::Backup(command) => backup::run(&config.settings, &command, out, err),
        Command::Store(command) => store::run(&config.settings, command, out, err),
        Command::Key(command) => key::run(&config, command, out, err),
        Command::Gateway(command) => gateway::run(&config, command, out, err),
        Command::Acl(command) => {
            let HubSettings { hub, gateways_file, .. } = &config.settings;
            acl::run(hub, gateways_file, &command, out, err)
        }
    }
}

/// A process has locked the store but has no control socket: a hub that is starting or stopping, or another command.
fn not_answering(socket: &Path, err: &mut dyn Write) -> Exit {
    let socket = socket.display();
    let _ = writeln!(
        err,
        "the store is in use by another process, and no hub answers at {socket}: try again in a moment"
    );
    Exit::Unreachable
}

fn print(report: Result<PrintedReport, StoreError>, out: &mut dyn Write, err: &mut dyn Write) -> Exit {
    match report {
        Ok(report) => {
            let written = out.write_all(report.text.as_bytes());
            if written.is_err() {
                Exit::Files
            } else if report.ok {
                Exit::Done
            } else {
                Exit::Refused
            }
        }
        Err(error) => fail(err, &error, error.consequence()),
    }
}
