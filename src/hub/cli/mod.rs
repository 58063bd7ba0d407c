//! The command line: `practice-hub`.
//!
//! - [`check`], [`init`]: before the first start
//! - [`gateway`]: the list of gateways; [`acl`]: the broker's access rules for it
//! - [`import`], [`resend`]: add what the store lacks; [`backup`]: record a backup; [`mod@store`]: its identity
//!
//! Each command writes to the writers that it is given, so that tests can read its output.

pub mod acl;
pub mod backup;
pub mod check;
pub mod gateway;
pub mod import;
pub mod init;
pub mod resend;
pub mod store;

use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use pgw_core::transaction::unix_millis_now;
use pgw_host::args::parse_and_load;
use pgw_host::exit::{Exit, fail};

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
    /// List the gateways and their status.
    List,
    /// Check the chain of every stored lane, whether or not the hub runs.
    Verify(Verify),
    /// Store the transactions of hand-carried files.
    Import(import::Import),
    /// Ask a gateway to send transactions again that the store has lost or altered.
    Resend(resend::Resend),
    /// Record how far the backup of the store reaches, so that gateways short of space may delete those transactions early.
    #[command(subcommand)]
    Backup(backup::Backup),
    /// The store's identity.
    #[command(subcommand)]
    Store(store::Store),
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
}

/// The program's entry point; the first of `args` is its name.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    run(args, &mut std::io::stdout(), &mut std::io::stderr()).into()
}

fn run(args: impl IntoIterator<Item = OsString>, out: &mut dyn Write, err: &mut dyn Write) -> Exit {
    let file = |arguments: &Arguments| arguments.config.clone();
    let (Arguments { command, .. }, config) = match parse_and_load(args, file, HubConfig::load, out, err) {
        Ok(loaded) => loaded,
        Err(exit) => return exit,
    };
    match command {
        Command::Run => pgw_host::daemon::run(&config.log.clone(), || daemon::run(config), err),
        Command::Check => check::run(&config, out),
        Command::Init => init::run(&config, out, err),
        Command::List => {
            let list = report::list(&config.settings.directory, unix_millis_now());
            // The table is for finding gateways that are offline, so an offline gateway is not a failure of the
            // command.
            print(list.map(|list| PrintedReport { ok: true, ..list }), out, err)
        }
        Command::Import(command) => import::import(&config, &command, out, err),
        Command::Verify(Verify { bundle: Some(file), .. }) => import::verify(&config, &file, out, err),
        Command::Verify(Verify { only, bundle: None }) => {
            let settings = &config.settings;
            match Gateways::load(&settings.gateways_file) {
                Ok(list) => print(report::verify(&settings.directory, &list, only.as_deref()), out, err),
                Err(error) => fail(err, &error, error.consequence()),
            }
        }
        Command::Resend(command) => resend::run(&config.settings.control_socket, &command, out, err),
        Command::Backup(command) => backup::run(&config.settings, command, out, err),
        Command::Store(command) => store::run(&config.settings, command, out, err),
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
