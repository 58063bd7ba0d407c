//! The command line of `practice-gateway`.
//!
//! - [`submit`], [`status`], [`outbox`], [`quarantine`], [`hub`], [`verify`] and [`export`] ask the running daemon over its
//!   control socket ([`crate::control`])
//! - [`check`] and [`init`] need no daemon
//! - [`repair`], [`key`] and [`moving`] (another box, a lost key) work directly on the store and its key file;
//!   [`signing_key`] on the signing key's file
//!
//! Each command writes to the writers that it is given, so that tests can read its output.

pub mod check;
pub mod export;
pub mod hub;
pub mod init;
pub mod key;
pub mod moving;
pub mod outbox;
pub mod quarantine;
pub mod repair;
pub mod signing_key;
pub mod status;
pub mod submit;
pub mod verify;

use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use pgw_host::args::parse_and_load;
use pgw_host::exit::Exit;

use crate::config::GatewayConfig;
use crate::daemon;

/// A surgery's outbox: accept clinical transactions and deliver all of them, once and in order.
#[derive(Debug, Parser)]
#[command(name = "practice-gateway", version)]
struct Arguments {
    /// The configuration file.
    #[arg(long, global = true, value_name = "FILE", default_value = "/etc/practice-gateway/gateway.toml")]
    config: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the daemon.
    Run,
    /// Check configuration, keys, certificates and store; say what is wrong and what to do.
    Check,
    /// Create the outbox key, the signing key and the directories; overwrite nothing.
    Init,
    /// Show the daemon's status.
    Status(status::Status),
    /// Submit transactions; exit 0 only once they are on stable storage.
    Submit(submit::Submit),
    /// List transactions in the outbox, and commands for a stalled lane, another box or a lost key.
    #[command(subcommand)]
    Outbox(outbox::Outbox),
    /// List, rotate and remove outbox keys; show and replace the signing key.
    #[command(subcommand)]
    Key(key::Key),
    /// Inspect refused input; submit it after all, or delete it.
    #[command(subcommand)]
    Quarantine(quarantine::Quarantine),
    /// Commands about the hubs that confirm.
    #[command(subcommand)]
    Hub(hub::Hub),
    /// Check the chain over every transaction in the outbox.
    Verify(verify::Verify),
    /// Recover missing records from damaged segments and other copies of the store, with the daemon stopped; a dry run without --yes.
    Repair(repair::Repair),
    /// Write waiting transactions to an encrypted file, to be carried to the hub.
    Export(export::Export),
    /// Read the hub's receipts from a file.
    Receipts(export::Receipts),
}

/// The program's entry point; the first of `args` is its name.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    run(args, &mut std::io::stdout(), &mut std::io::stderr()).into()
}

fn run(args: impl IntoIterator<Item = OsString>, out: &mut dyn Write, err: &mut dyn Write) -> Exit {
    let file = |arguments: &Arguments| arguments.config.clone();
    let (Arguments { command, .. }, config) = match parse_and_load(args, file, GatewayConfig::load, out, err)
    {
        Ok(loaded) => loaded,
        Err(exit) => return exit,
    };
    let socket = config.control.socket.clone();
    match command {
        Command::Run => pgw_host::daemon::run(&config.log.clone(), || daemon::run(config), err),
        Command::Check => check::run(&config, out),
        Command::Init => init::run(&config, out, err),
        Command::Status(command) => status::run(&socket, &command, out, err),
        Command::Submit(command) => submit::run(&socket, &command, out, err),
        Command::Outbox(outbox::Outbox::Retire(command)) => moving::retire(&config, &command, out, err),
        Command::Outbox(outbox::Outbox::Adopt(command)) => moving::adopt(&config, &command, out, err),
        Command::Outbox(outbox::Outbox::SetAside(command)) => moving::set_aside(&config, &command, out, err),
        Command::Outbox(command) => outbox::run(&socket, &command, out, err),
        Command::Key(command) => key::run(&config, &command, out, err),
        Command::Quarantine(command) => quarantine::run(&socket, &command, out, err),
        Command::Hub(command) => hub::run(&socket, &command, out, err),
        Command::Verify(command) => verify::run(&socket, &command, out, err),
        Command::Repair(command) => repair::run(&config, &command, out, err),
        Command::Export(command) => export::export(&config, &command, out, err),
        Command::Receipts(command) => export::receipts(&socket, &command, out, err),
    }
}
