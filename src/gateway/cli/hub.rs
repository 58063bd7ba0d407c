//! `practice-gateway hub accept`: relies on another store of a hub.

use std::io::Write;
use std::path::Path;

use clap::{Args, Subcommand};
use pgw_core::transaction;
use pgw_core::wire::receipt::StoreId;
use pgw_host::exit::Exit;

use crate::control::Request;
use crate::control::client::{Client, failed};

/// The hubs that confirm.
#[derive(Debug, Clone, Subcommand)]
pub enum Hub {
    /// The hub answers from another store than before, and central IT says that this is right: rely on it, so that confirmed
    /// transactions are deleted again after their retention.
    Accept(Accept),
}

/// Rely on a hub's store.
#[derive(Debug, Clone, Args)]
pub struct Accept {
    /// The hub's name.
    pub hub: transaction::Hub,
    /// The store's identity, as the alarm `hub.store` and `practice-hub store` name it.
    pub store: StoreId,
}

/// Runs the command.
pub fn run(socket: &Path, command: &Hub, out: &mut dyn Write, err: &mut dyn Write) -> Exit {
    let Hub::Accept(Accept { hub, store }) = command;
    let request = Request::AcceptStore { hub: hub.clone(), store: *store };
    let asked = Client::connect(socket).and_then(|mut client| client.ask(&request, |_| {}));
    match asked {
        Ok(()) => {
            let _ = writeln!(out, "this gateway relies on store {store} of {hub} from now on");
            Exit::Done
        }
        Err(error) => failed(err, &error),
    }
}
