//! `practice-hub backup`: tells the hub about a backup of its store.

use std::io::Write;

use clap::Subcommand;
use pgw_host::control::ClientError;
use pgw_host::exit::{Exit, fail};

use crate::HubSettings;
use crate::backup;
use crate::cli::not_answering;
use crate::control::{Client, Reply, Request};
use crate::store::StoreError;
use crate::store::ndjson::StoreLock;

/// The two steps.
#[derive(Debug, Clone, Copy, Subcommand)]
pub enum Backup {
    /// Before you copy the store's files: record how far each lane is.
    Begin,
    /// Confirm that the copy is complete and safe; receipts report it from now on.
    Done,
}

/// Why neither the running hub nor this command has done it.
enum Failed {
    Hub(ClientError),
    Store(StoreError),
}

/// Runs the command.
pub fn run(settings: &HubSettings, command: Backup, out: &mut dyn Write, err: &mut dyn Write) -> Exit {
    let reply = match by_hub(settings, command) {
        Err(error) if error.is_not_running() => in_store(settings, command).map_err(Failed::Store),
        done => done.map_err(Failed::Hub),
    };
    match reply {
        Ok(Some(Reply::BackupBegun { lanes })) => {
            let _ = writeln!(
                out,
                "recorded how far {lanes} lanes are: copy {} now, then run `practice-hub backup done`",
                settings.directory.display()
            );
            Exit::Done
        }
        Ok(Some(Reply::BackupDone { begun: true })) => {
            let _ = writeln!(out, "a running hub tells the gateways within seconds");
            Exit::Done
        }
        Ok(Some(Reply::BackupDone { begun: false })) => {
            let _ = writeln!(err, "no backup has begun: run `practice-hub backup begin` before the copy");
            Exit::Refused
        }
        Ok(_) => {
            let _ = writeln!(err, "the hub's answer was not understood");
            Exit::Internal
        }
        Err(Failed::Hub(error)) => fail(err, &error, error.consequence()),
        Err(Failed::Store(StoreError::InUse(_))) => not_answering(&settings.control_socket, err),
        Err(Failed::Store(error)) => fail(err, &error, error.consequence()),
    }
}

fn by_hub(settings: &HubSettings, command: Backup) -> Result<Option<Reply>, ClientError> {
    let request = match command {
        Backup::Begin => Request::BackupBegin {},
        Backup::Done => Request::BackupDone {},
    };
    let mut answer = None;
    Client::connect(&settings.control_socket)?.ask(&request, |reply| answer = Some(reply))?;
    Ok(answer)
}

/// Does what the running hub would do, in a store whose hub is not running.
fn in_store(settings: &HubSettings, command: Backup) -> Result<Option<Reply>, StoreError> {
    let _lock = StoreLock::take(&settings.directory)?;
    Ok(Some(match command {
        Backup::Begin => Reply::BackupBegun { lanes: backup::begin(&settings.directory)? as u64 },
        Backup::Done => Reply::BackupDone { begun: backup::done(&settings.directory)? },
    }))
}
