//! `practice-hub`.

use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::cli::exit::{Exit, complain};
use crate::cli::{acl, check, init, parse};
use crate::config::HubConfig;
use crate::daemon::{self, logs};

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
    /// Walks the chain of every stored lane.
    Verify,
    /// Prints the broker's access rules for this hub and a list of gateways.
    Acl(acl::Acl),
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
        Command::List | Command::Verify => {
            let _ = writeln!(err, "not there yet");
            Exit::Internal
        }
        Command::Acl(command) => acl::run(&config.settings.hub, &command, out, err),
    }
}
