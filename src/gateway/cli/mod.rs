//! Both command lines.
//!
//! - [`gateway`]: `practice-gateway`; [`submit`], [`status`], [`outbox`], [`quarantine`] and [`verify`] ask the running
//!   daemon over its control socket ([`crate::control`])
//! - [`hub`]: `practice-hub`; [`acl`] makes the broker's access rules; [`import`] and [`resend`] ask a running hub by its
//!   folders
//! - [`repair`] works on the store itself, which no daemon may have open
//! - [`check`] and [`init`] are for both, and need no daemon
//! - [`key`] and [`moving`]: another key, another box; both work on the store and its key file themselves
//! - [`exit`]: what a script decides by; [`progress`]: what a person sees meanwhile
//!
//! Each command writes to the writers that it is given, so that tests can read what a person would.

pub mod check;
pub mod export;
pub mod init;
pub mod key;
pub mod moving;
pub mod outbox;
pub mod quarantine;
pub mod repair;
pub mod status;
pub mod submit;
pub mod verify;

use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use pgw_host::args::parse;
use pgw_host::exit::{Exit, complain};
use pgw_host::logs;

use crate::config::GatewayConfig;
use crate::daemon;

/// A surgery's outbox: accepts clinical transactions and delivers them all, once, in order.
#[derive(Debug, Parser)]
#[command(name = "practice-gateway", version)]
struct Arguments {
    /// The configuration.
    #[arg(long, global = true, value_name = "FILE", default_value = "/etc/practice-gateway/gateway.toml")]
    config: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs the daemon.
    Run,
    /// Looks at configuration, keys, certificates and store, and says what to do.
    Check,
    /// Makes the outbox key and the directories; replaces nothing.
    Init,
    /// Shows how the daemon is.
    Status(status::Status),
    /// Takes transactions in; ends well only when they are durable.
    Submit(submit::Submit),
    /// Shows headers of what is kept.
    #[command(subcommand)]
    Outbox(outbox::Outbox),
    /// The keys that seal what is kept: which are needed, a new one.
    #[command(subcommand)]
    Key(key::Key),
    /// What was refused: look at it, release it, discard it.
    #[command(subcommand)]
    Quarantine(quarantine::Quarantine),
    /// Walks the chain of all that is kept.
    Verify(verify::Verify),
    /// Fills holes from damaged segments and other copies of the store, with the daemon stopped; a dry run without --yes.
    Repair(repair::Repair),
    /// Writes what waits into one encrypted file, to be carried to the hub.
    Export(export::Export),
    /// Takes the hub's receipts in from a file.
    Receipts(export::Receipts),
}

/// The program: `words` begin with its name.
pub fn main(words: impl IntoIterator<Item = OsString>) -> ExitCode {
    run(words, &mut std::io::stdout(), &mut std::io::stderr()).into()
}

fn run(words: impl IntoIterator<Item = OsString>, out: &mut dyn Write, err: &mut dyn Write) -> Exit {
    let Arguments { config: file, command } = match parse(words, out, err) {
        Ok(arguments) => arguments,
        Err(exit) => return exit,
    };
    let config = match GatewayConfig::load(&file) {
        Ok(config) => config,
        Err(error) => {
            complain(err, &error);
            return Exit::Configuration;
        }
    };
    let socket = config.control.socket.clone();
    match command {
        Command::Run => {
            logs::start(&config.log);
            match daemon::run(config) {
                Ok(()) => Exit::Done,
                Err(fatal) => {
                    complain(err, &fatal);
                    fatal.exit
                }
            }
        }
        Command::Check => check::run(&config, out),
        Command::Init => init::run(&config, out, err),
        Command::Status(command) => status::run(&socket, &command, out, err),
        Command::Submit(command) => submit::run(&socket, &command, out, err),
        Command::Outbox(outbox::Outbox::Retire(command)) => moving::retire(&config, &command, out, err),
        Command::Outbox(outbox::Outbox::Adopt) => moving::adopt(&config, out, err),
        Command::Outbox(outbox::Outbox::SetAside(command)) => moving::set_aside(&config, &command, out, err),
        Command::Outbox(command) => outbox::run(&socket, &command, out, err),
        Command::Key(command) => key::run(&config, &command, out, err),
        Command::Quarantine(command) => quarantine::run(&socket, &command, out, err),
        Command::Verify(command) => verify::run(&socket, &command, out, err),
        Command::Repair(command) => repair::run(&config, &command, out, err),
        Command::Export(command) => export::export(&config, &command, out, err),
        Command::Receipts(command) => export::receipts(&socket, &command, out, err),
    }
}
