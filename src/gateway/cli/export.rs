//! `practice-gateway export` and `receipts`: hand-carry, on the gateway's side.

use std::fs::File;
use std::io::{self, BufReader, IsTerminal as _, Write};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use clap::Args;
use pgw_bundle::end::{self, EndError};
use pgw_bundle::receipts::{self, SignedReceipt};
use pgw_core::consequence::Consequence;
use pgw_core::transaction::{Lane, Position};
use pgw_durable::{NewFile, PRIVATE};
use pgw_host::exit::{Exit, fail};
use pgw_outbox::Outbox;
use pgw_outbox::offline::moving;

use crate::config::GatewayConfig;
use crate::control::client::{Client, failed};
use crate::control::{Reply, Request, Source, Wanted, export_in_pieces};
use crate::keys;
use pgw_host::control::{ClientError, NotDone};

/// Write waiting transactions to one file that only the hub can read. The outbox does not change: the hub confirms each once, by
/// link or by file.
#[derive(Debug, Clone, Args)]
pub struct Export {
    /// The file to write; an existing file is not overwritten.
    #[arg(long, value_name = "FILE")]
    pub to: PathBuf,
    /// Write only this lane.
    #[arg(long)]
    pub lane: Option<Lane>,
    /// Start at this position; at the oldest waiting one if left out.
    #[arg(long, value_name = "POSITION")]
    pub from: Option<Position>,
    /// Begin where the hub's line of a lane ends: the file that `practice-hub import` has written beside a bundle which did not
    /// continue it. Once for each lane. With `--from` only for a store that was set aside.
    #[arg(long, value_name = "FILE")]
    pub end: Vec<PathBuf>,
    /// Read this store that was set aside; the daemon may run.
    #[arg(long, value_name = "DIRECTORY")]
    pub store: Option<PathBuf>,
    /// Use this key file instead of the configured one: the key that was found.
    #[arg(long, value_name = "FILE", requires = "store")]
    pub key_file: Option<PathBuf>,
}

/// Read the hub's receipts from a file written by `practice-hub import --receipts-to`.
#[derive(Debug, Clone, Args)]
pub struct Receipts {
    /// The file to read.
    pub file: PathBuf,
}

/// The file, under a temporary name beside its own until it is complete.
fn begin(to: &Path) -> io::Result<NewFile> {
    if to.exists() {
        return Err(io::ErrorKind::AlreadyExists.into());
    }
    let mut name = to.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_owned();
    name.push(format!(".{}.part", std::process::id()));
    NewFile::begin(&to.with_file_name(name), PRIVATE)
}

/// The files that say where the hub's lines end.
fn ends(files: &[PathBuf], err: &mut dyn Write) -> Result<Vec<SignedReceipt>, Exit> {
    let read = |file: &PathBuf| {
        let read = File::open(file).map_err(EndError::Io).and_then(|mut file| end::read(&mut file));
        read.map_err(|error| {
            let _ = writeln!(err, "cannot use {}: {error}", file.display());
            if matches!(error, EndError::Io(_)) { Exit::Files } else { Exit::Refused }
        })
    };
    files.iter().map(read).collect()
}

/// Runs `export`, through the daemon, or from a store that no daemon has open.
pub fn export(config: &GatewayConfig, command: &Export, out: &mut dyn Write, err: &mut dyn Write) -> Exit {
    let cannot = |err: &mut dyn Write, error: &io::Error| {
        let to = command.to.display();
        let _ = match error.kind() {
            io::ErrorKind::AlreadyExists => {
                writeln!(err, "cannot write {to}: this file is there already: name another")
            }
            _ => writeln!(err, "cannot write {to}: {error}"),
        };
        Exit::Files
    };
    if command.from.is_some() && !command.end.is_empty() && command.store.is_none() {
        let _ = writeln!(
            err,
            "--from cannot be used with --end, which says where the lane begins, except with --store"
        );
        return Exit::Usage;
    }
    let ends = match ends(&command.end, err) {
        Ok(ends) => ends,
        Err(exit) => return exit,
    };
    let wanted = Wanted { lane: command.lane.clone(), from: command.from, ends };
    let mut bundle = match begin(&command.to) {
        Ok(bundle) => bundle,
        Err(error) => return cannot(err, &error),
    };
    let mut shown = Shown { watched: io::stderr().is_terminal(), percent: None };
    let (mut total, mut stopped, mut lines, mut write_error) = (0, false, Vec::new(), None);
    let mut each = |reply: Reply, err: &mut dyn Write| match reply {
        Reply::Progress { lane, position, tail } => shown.show(err, &lane, position, tail),
        Reply::Piece { base64 } if write_error.is_none() => {
            let bytes = BASE64.decode(base64).map_err(io::Error::other);
            write_error = bytes.and_then(|bytes| bundle.write_all(&bytes)).err();
        }
        Reply::Exported { lane, count, first, last, stopped_before } => {
            total += count;
            stopped |= stopped_before.is_some();
            if count > 0 {
                lines.push(format!("{lane}: {count} transactions, positions {first} to {last}"));
            }
            if let Some(position) = stopped_before {
                lines.push(format!(
                    "{lane}: stops before position {position}, which is missing: see the runbook, `hole`"
                ));
            }
        }
        _ => {}
    };
    let asked = ask(config, command, &wanted, &mut each, err);
    shown.clear(err);
    if let Err(exit) = asked {
        return exit;
    }
    if let Some(error) = write_error {
        return cannot(err, &error);
    }
    for line in lines {
        let _ = writeln!(out, "{line}");
    }
    if total == 0 {
        let _ = writeln!(out, "no transactions are waiting: no file was written");
    } else if let Err(error) = bundle.commit(&command.to) {
        return cannot(err, &error);
    } else {
        let _ = writeln!(out, "wrote {total} transactions to {}", command.to.display());
    }
    if stopped { Exit::Refused } else { Exit::Done }
}

/// Through the daemon, if it has the store open.
fn ask(
    config: &GatewayConfig,
    command: &Export,
    wanted: &Wanted,
    each: &mut dyn FnMut(Reply, &mut dyn Write),
    err: &mut dyn Write,
) -> Result<(), Exit> {
    let connected = match command.store {
        Some(_) => None,
        None => Some(Client::connect(&config.control.socket)),
    };
    match connected {
        Some(Ok(mut client)) => {
            let Wanted { lane, from, ends } = wanted.clone();
            let asked = client.ask(&Request::Export { lane, from, ends }, |reply| each(reply, err));
            asked.map_err(|error| failed(err, &error))
        }
        None | Some(Err(ClientError::Unreachable { .. })) => from_stopped(config, command, wanted, each, err),
        Some(Err(error)) => Err(failed(err, &error)),
    }
}

/// Opens the store; its lock shows whether a daemon has it open.
fn from_stopped(
    config: &GatewayConfig,
    command: &Export,
    wanted: &Wanted,
    each: &mut dyn FnMut(Reply, &mut dyn Write),
    err: &mut dyn Write,
) -> Result<(), Exit> {
    let keys = match &command.key_file {
        Some(file) => keys::outbox_keys_in(file),
        None => keys::outbox_keys(&config.outbox_key_file),
    };
    let keys = keys.map_err(|error| fail(err, &error, error.consequence()))?;
    let mut settings = config.outbox.clone();
    if let Some(store) = &command.store {
        settings.directory.clone_from(store);
    }
    if !settings.directory.join("FORMAT").exists() {
        let _ =
            writeln!(err, "no daemon is running, and there is no store in {}", settings.directory.display());
        return Err(Exit::Unreachable);
    }
    let source = if command.store.is_some() { Source::SetAside } else { Source::Stopped };
    let store = settings.directory.clone();
    let outbox = Outbox::open(settings, keys).map_err(|error| fail(err, &error, error.consequence()))?;
    let done = export_in_pieces(&outbox, &config.control, source, wanted, &mut |reply| {
        each(reply, err);
        std::ops::ControlFlow::Continue(())
    });
    outbox.close();
    moving::give_to_owner(&store).map_err(|error| fail(err, &error, error.consequence()))?;
    done.map_err(|error| fail(err, &error, error.consequence()))
}

/// Runs `receipts`.
pub fn receipts(socket: &Path, command: &Receipts, out: &mut dyn Write, err: &mut dyn Write) -> Exit {
    let read = File::open(&command.file).and_then(|file| receipts::read(&mut BufReader::new(file)));
    let lines = match read {
        Ok(lines) => lines,
        Err(error) => {
            let _ = writeln!(err, "cannot read {}: {error}", command.file.display());
            return if error.kind() == io::ErrorKind::InvalidData { Exit::Refused } else { Exit::Files };
        }
    };
    let mut client = match Client::connect(socket) {
        Ok(client) => client,
        Err(error) => return failed(err, &error),
    };
    let mut worst = Exit::Done;
    for line in lines {
        let asked = client.ask(&Request::Receipt(line), |reply| {
            if let Reply::ReceiptVerified { lane, confirmed } = reply {
                let _ = writeln!(out, "{lane}: confirmed through position {confirmed}");
            }
        });
        match asked {
            Ok(()) => {}
            Err(ClientError::Failed(NotDone { reason, consequence: Consequence::Refuse })) => {
                let _ = writeln!(err, "a receipt was rejected: {reason}");
                worst = Exit::Refused;
            }
            Err(error) => return failed(err, &error),
        }
    }
    worst
}

/// Progress, on a terminal.
struct Shown {
    watched: bool,
    percent: Option<u64>,
}

impl Shown {
    fn show(&mut self, err: &mut dyn Write, lane: &Lane, position: Position, tail: Position) {
        let percent = position * 100 / tail.max(1);
        if self.watched && self.percent != Some(percent) {
            self.percent = Some(percent);
            let _ = write!(err, "\r{lane}: {position} of {tail} ({percent} %)\x1b[K");
        }
    }

    fn clear(&mut self, err: &mut dyn Write) {
        if self.percent.take().is_some() {
            let _ = write!(err, "\r\x1b[K");
        }
    }
}
