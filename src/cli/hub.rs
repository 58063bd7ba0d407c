//! `practice-hub`.

use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::cli::exit::{Exit, complain};
use crate::cli::{acl, check, import, init, parse, resend};
use crate::config::HubConfig;
use crate::daemon::{self, logs};
use crate::hub::report::{self, Report};
use crate::hub::store::StoreError;
use crate::transaction::unix_millis_now;

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
    /// Prints the broker's access rules for this hub and a list of gateways.
    Acl(acl::Acl),
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
            match daemon::hub::run(config) {
                Ok(()) => Exit::Done,
                Err(fatal) => {
                    complain(err, &fatal);
                    fatal.exit
                }
            }
        }
        Command::Check => check::hub(&config, out),
        Command::Init => init::hub(&config, out, err),
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
        Command::Acl(command) => acl::run(&config.settings.hub, &command, out, err),
    }
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
