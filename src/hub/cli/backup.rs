//! `practice-hub backup`: what to copy of the store, whether a copy is complete, and that it counts.

use std::io::Write;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use pgw_core::wire::signature::PublicKey;
use pgw_host::control::ClientError;
use pgw_host::exit::{Exit, fail};
use pgw_host::secret;

use crate::HubSettings;
use crate::backup::check::{CheckedCopy, check as check_copy};
use crate::backup::manifest::{LeftOut, Manifest};
use crate::backup::{self, BackupError, BegunBackup, NewBackup};
use crate::cli::not_answering;
use crate::control::{Client, Reply, Request};
use crate::store::ndjson::{NdjsonStore, StoreLock};
use crate::store::{Store as _, StoreError};

/// The three steps.
#[derive(Debug, Subcommand)]
pub enum Backup {
    /// Make a directory of links of the store's files, which you then copy; they take no space.
    Begin(Begin),
    /// Check that a copy holds everything and is on stable storage; needs neither a hub nor its keys.
    Check(Check),
    /// Make a checked copy count, so that gateways short of space may delete what is in it, and remove the links.
    Done(Done),
}

/// `backup begin`.
#[derive(Debug, Args)]
pub struct Begin {
    /// A directory that does not exist, on the store's file system; a new one below the store's by default.
    directory: Option<PathBuf>,
}

/// `backup check`.
#[derive(Debug, Args)]
pub struct Check {
    /// The copy.
    directory: PathBuf,
    /// The hub's public key, as `practice-hub init` prints it; without it the key in the copy is believed.
    #[arg(long, value_name = "KEY")]
    public_key: Option<PublicKey>,
}

/// `backup done`.
#[derive(Debug, Args)]
pub struct Done {
    /// The digest that `practice-hub backup check` has printed for the copy.
    digest: Option<String>,
}

/// Why neither the running hub nor this command has done it.
enum Failed {
    Hub(ClientError),
    Store(BackupError),
    Key(secret::KeyError),
}

/// Runs `begin` or `done`.
pub fn run(settings: &HubSettings, command: &Backup, out: &mut dyn Write, err: &mut dyn Write) -> Exit {
    let request = match command {
        Backup::Begin(Begin { directory }) => {
            // The hub has another working directory.
            match directory.as_ref().map(std::path::absolute).transpose() {
                Ok(directory) => Request::BackupBegin { directory },
                Err(error) => return fail(err, &error, pgw_core::consequence::Consequence::of_file(&error)),
            }
        }
        Backup::Done(Done { digest: Some(digest) }) => Request::BackupDone { digest: digest.clone() },
        Backup::Done(Done { digest: None }) => {
            let _ = writeln!(
                err,
                "a backup counts only once its copy is checked: run `practice-hub backup check DIR` on the copy, then \
                 `practice-hub backup done` with the digest that it prints"
            );
            return Exit::Usage;
        }
        Backup::Check(command) => return check(command, out, err),
    };
    let mut answer = None;
    let asked = Client::connect(&settings.control_socket)
        .and_then(|mut hub| hub.ask(&request, |reply| answer = Some(reply)));
    let reply = match asked {
        Err(error) if error.is_not_running() => in_store(settings, request).map(Some),
        asked => asked.map(|()| answer).map_err(Failed::Hub),
    };
    match reply {
        Ok(Some(Reply::BackupBegun(begun))) => {
            print_begun(&begun, out);
            // A job must not go on to remove the backup before.
            if begun.left_out.is_empty() { Exit::Done } else { Exit::Refused }
        }
        Ok(Some(Reply::BackupDone { kept })) => {
            for directory in kept {
                let directory = directory.display();
                let _ = writeln!(
                    out,
                    "{directory} holds more than links and was not removed: look, and remove it yourself"
                );
            }
            let _ = writeln!(out, "the backup counts; a running hub tells the gateways within seconds");
            Exit::Done
        }
        Ok(_) => {
            let _ = writeln!(err, "the hub's answer was not understood");
            Exit::Internal
        }
        Err(Failed::Hub(error)) => fail(err, &error, error.consequence()),
        Err(Failed::Store(BackupError::Store(StoreError::InUse(_)))) => {
            not_answering(&settings.control_socket, err)
        }
        Err(Failed::Store(error)) => fail(err, &error, error.consequence()),
        Err(Failed::Key(error)) => fail(err, &error, error.consequence()),
    }
}

fn print_left_out(left_out: &[LeftOut], out: &mut dyn Write) {
    for LeftOut { lane, reason } in left_out {
        let _ = writeln!(out, "NOT whole in this backup: {lane}: {reason}");
    }
}

fn print_begun(begun: &BegunBackup, out: &mut dyn Write) {
    let BegunBackup { directory, digest, lanes, files, bytes, left_out } = begun;
    let name = directory.file_name().unwrap_or_default().display();
    let directory = directory.display();
    print_left_out(left_out, out);
    if !left_out.is_empty() {
        let _ = writeln!(
            out,
            "Keep every backup from before: it may be the only copy of what these lanes lack.\n"
        );
    }
    let _ = writeln!(
        out,
        "links     {directory}: {files} files of {lanes} lanes, {bytes} bytes; change nothing in it: these are the store's files\n\
         digest    {digest}\n\
         \n\
         Next:\n\
         1. Copy everything in {directory} into a directory of its own, for example: rsync -a {directory}/ backup:/practice-hub/{name}/\n\
         2. Where the copy is: practice-hub backup check /practice-hub/{name}\n\
         3. Here: practice-hub backup done {digest}"
    );
}

/// Does what the running hub would do, in a store whose hub is not running.
fn in_store(settings: &HubSettings, request: Request) -> Result<Reply, Failed> {
    let HubSettings { directory: store, hub, signing_key_file, rotate_bytes, .. } = settings;
    match request {
        Request::BackupBegin { directory } => {
            let key = secret::signing_key(signing_key_file).map_err(Failed::Key)?;
            let mut open =
                NdjsonStore::open(store, *rotate_bytes).map_err(|error| Failed::Store(error.into()))?;
            let new = NewBackup { store, directory, hub, key: &key };
            let mut link = |lane: &_, into: &_| Ok(open.link_lane(lane, into)?);
            backup::begin(new, &mut link, &mut |_| {}).map(Reply::BackupBegun)
        }
        Request::BackupDone { digest } => {
            let locked = StoreLock::take(store).map_err(BackupError::from);
            locked.and_then(|_lock| backup::done(store, &digest)).map(|kept| Reply::BackupDone { kept })
        }
        // Nothing else comes here.
        _ => Err(BackupError::NoneBegun),
    }
    .map_err(Failed::Store)
}

/// `practice-hub backup check`.
pub fn check(command: &Check, out: &mut dyn Write, err: &mut dyn Write) -> Exit {
    let Check { directory, public_key } = command;
    let CheckedCopy { read, faults } = match check_copy(directory, *public_key, &mut |_| {}) {
        Ok(checked) => checked,
        Err(error) => {
            let consequence = error.consequence();
            return fail(err, &error, consequence);
        }
    };
    let Manifest { hub, time, lanes, files, public_key: key, .. } = &read.manifest;
    let bytes: u64 = files.iter().map(|file| file.bytes).sum();
    let known = if public_key.is_some() {
        "as given"
    } else {
        "as the copy itself says; --public-key KEY compares it"
    };
    let _ = writeln!(
        out,
        "copy      {}\n\
         backup    of hub {hub}, begun at {time}: {} files of {} lanes, {bytes} bytes\n\
         signature by the key {key}, {known}\n\
         digest    {}",
        directory.display(),
        files.len(),
        lanes.len(),
        read.digest
    );
    print_left_out(&read.manifest.left_out, out);
    for fault in &faults {
        let _ = writeln!(err, "{fault}");
    }
    if faults.is_empty() && !read.manifest.left_out.is_empty() {
        let _ = writeln!(
            out,
            "NOT complete: all that the hub had is in this copy, but the lanes above were not whole there; keep every backup from before, and mend them first\n\
             Next, at the hub: practice-hub backup done {}",
            read.digest
        );
        Exit::Refused
    } else if faults.is_empty() {
        let _ = writeln!(
            out,
            "complete: every byte of the backup is in this copy, on stable storage\n\
             Next, at the hub: practice-hub backup done {}",
            read.digest
        );
        Exit::Done
    } else {
        let _ = writeln!(
            out,
            "NOT complete: {} files lack something; correct them, then check again",
            faults.len()
        );
        Exit::Refused
    }
}
