//! The command line: `practice-hub`.
//!
//! - [`check`], [`init`]: before the first start; [`acl`]: the broker's access rules
//! - [`import`], [`resend`]: what the store lacks
//!
//! Each command writes to the writers that it is given, so that tests can read what a person would.

pub mod acl;
pub mod check;
pub mod import;
pub mod init;
pub mod resend;

use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use pgw_core::transaction::unix_millis_now;
use pgw_host::args::parse;
use pgw_host::exit::{Exit, complain};
use pgw_host::logs;

use crate::backup;
use crate::config::HubConfig;
use crate::daemon;
use crate::report;
use crate::report::Report;
use crate::store::StoreError;

/// The centre's end: stores the surgeries' transactions exactly once, in order, and confirms them.
#[derive(Debug, Parser)]
#[command(name = "practice-hub", version)]
struct Arguments {
    /// The configuration.
    #[arg(long, global = true, value_name = "FILE", default_value = "/etc/practice-hub/hub.toml")]
    config: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs the hub.
    Run,
    /// Looks at configuration, keys, certificates and store, and says what to do.
    Check,
    /// Makes the signing key and the store's directory; prints the public key; replaces nothing.
    Init,
    /// Lists the gateways that the hub knows, and how they are.
    List,
    /// Walks the chain of every stored lane, while the hub runs or not.
    Verify(Verify),
    /// Stores what was carried here in files.
    Import(import::Import),
    /// Has a gateway send again what the store has lost or altered.
    Resend(resend::Resend),
    /// Tells the hub what there is a backup of, so that gateways whose disks are full may let go of it.
    #[command(subcommand)]
    Backup(Backup),
    /// Prints the broker's access rules for this hub and a list of gateways.
    Acl(acl::Acl),
}

#[derive(Debug, Clone, Copy, Subcommand)]
enum Backup {
    /// Before the store's files are copied: writes down how far each lane is.
    Begin,
    /// After the copy is complete and safe: receipts say so from now on.
    Done,
}

#[derive(Debug, Args)]
struct Verify {
    /// Only `PRACTICE`, `PRACTICE/GATEWAY` or `PRACTICE/GATEWAY/LANE`.
    only: Option<String>,
    /// Not the store but a file that was carried here: all of it is read and checked, nothing is stored.
    #[arg(long, value_name = "FILE", conflicts_with = "only")]
    bundle: Option<PathBuf>,
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
    let config = match HubConfig::load(&file) {
        Ok(config) => config,
        Err(error) => {
            complain(err, &error);
            return Exit::Configuration;
        }
    };
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
        Command::List => {
            let list = report::list(&config.settings.directory, unix_millis_now());
            // A gateway that is away is what the table is for, not a failure of the command.
            print(list.map(|list| Report { ok: true, ..list }), out, err)
        }
        Command::Import(command) => import::import(&config, &command, out, err),
        Command::Verify(Verify { bundle: Some(file), .. }) => import::verify(&config, &file, out, err),
        Command::Verify(Verify { only, bundle: None }) => {
            print(report::verify(&config.settings.directory, only.as_deref()), out, err)
        }
        Command::Resend(command) => resend::run(&config.settings.directory, &command, out, err),
        Command::Backup(command) => backup(&config.settings.directory, command, out, err),
        Command::Acl(command) => acl::run(&config.settings.hub, &command, out, err),
    }
}

fn backup(directory: &Path, command: Backup, out: &mut dyn Write, err: &mut dyn Write) -> Exit {
    let done = match command {
        Backup::Begin => backup::begin(directory).map(|lanes| {
            let _ = writeln!(
                out,
                "noted how far {lanes} lanes are: copy {} now, then run `practice-hub backup done`",
                directory.display()
            );
            Exit::Done
        }),
        Backup::Done => backup::done(directory).map(|begun| match begun {
            true => {
                let _ = writeln!(out, "the gateways are told within seconds, when the hub runs");
                Exit::Done
            }
            false => {
                let _ = writeln!(err, "no backup was begun: run `practice-hub backup begin` before the copy");
                Exit::Refused
            }
        }),
    };
    done.unwrap_or_else(|error| {
        complain(err, &error);
        Exit::Files
    })
}

fn print(report: Result<Report, StoreError>, out: &mut dyn Write, err: &mut dyn Write) -> Exit {
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
        Err(error) => {
            complain(err, &error);
            Exit::Files
        }
    }
}
