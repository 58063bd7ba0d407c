//! `practice-hub store`: which store this is. Gateways prune only on the word of a store that they know.

use std::io::Write;

use clap::Subcommand;
use pgw_core::wire::receipt::StoreId;
use pgw_host::exit::{Exit, fail};

use super::not_answering;
use crate::HubSettings;
use crate::store::ndjson::StoreLock;
use crate::store::{StoreError, StoreIdentity};

/// What is done with the store's identity.
#[derive(Debug, Clone, Copy, Subcommand)]
pub enum Store {
    /// Show the store's identity.
    Show,
    /// State that this store has replaced another one, whose gateways then rely on it without being asked one by one.
    /// Only where this store has all that they confirm by, or they may lose what the other one had. The hub is stopped.
    Succeed {
        /// The other store's identity, as the alarms of its gateways name it.
        store: StoreId,
    },
}

/// Runs the command.
pub fn run(settings: &HubSettings, command: Store, out: &mut dyn Write, err: &mut dyn Write) -> Exit {
    let done = match command {
        Store::Show => show(settings, out),
        Store::Succeed { store } => succeed(settings, store, out),
    };
    match done {
        Ok(exit) => exit,
        Err(StoreError::InUse(_)) => {
            let _ = writeln!(err, "stop the hub first: systemctl stop practice-hub");
            not_answering(&settings.control_socket, err)
        }
        Err(error) => fail(err, &error, error.consequence()),
    }
}

fn show(settings: &HubSettings, out: &mut dyn Write) -> Result<Exit, StoreError> {
    let directory = settings.directory.display();
    match StoreIdentity::read(&settings.directory)? {
        Some(StoreIdentity { store, succeeds }) => {
            let _ = writeln!(out, "directory   {directory}\nstore       {store}");
            for before in succeeds {
                let _ = writeln!(out, "replaced    {before}");
            }
        }
        None => {
            let _ = writeln!(
                out,
                "directory   {directory}\nstore       none yet: the first start of the hub makes it"
            );
        }
    }
    Ok(Exit::Done)
}

fn succeed(settings: &HubSettings, other: StoreId, out: &mut dyn Write) -> Result<Exit, StoreError> {
    let _lock = StoreLock::take(&settings.directory)?;
    let mut identity = StoreIdentity::open(&settings.directory)?;
    let own = identity.store;
    if identity.stand_for(other) {
        identity.write(&settings.directory)?;
        let _ = writeln!(
            out,
            "store {own} has replaced {other}: the gateways learn it from the hub's next start on"
        );
    } else {
        let _ = writeln!(out, "store {own} has replaced {other} already: nothing has changed");
    }
    Ok(Exit::Done)
}
