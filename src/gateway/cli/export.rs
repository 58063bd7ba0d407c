//! `practice-gateway export` and `receipts`: hand-carry, on the gateway's side.

use std::fs::{self, File};
use std::io::{self, BufReader, IsTerminal as _, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use clap::Args;
use pgw_bundle::receipts;
use pgw_core::transaction::{Lane, Position};
use pgw_host::exit::{Exit, complain};
use pgw_outbox::Outbox;
use pgw_outbox::offline::moving;

use crate::cli::key::not_looked_at;
use crate::config::GatewayConfig;
use crate::ingest::control::client::failed;
use crate::ingest::control::client::{Client, ClientError};
use crate::ingest::control::{Reply, Request, export_from_stopped};
use crate::keys;

/// Writes what waits into one file that only the hub can read, to be carried there. Nothing here changes: what the hub
/// confirms later, by link or by file, is confirmed once.
#[derive(Debug, Clone, Args)]
pub struct Export {
    /// The file; one that is there is left alone.
    #[arg(long, value_name = "FILE")]
    pub to: PathBuf,
    /// Only this lane.
    #[arg(long)]
    pub lane: Option<Lane>,
    /// From this position; otherwise the oldest that waits.
    #[arg(long, value_name = "POSITION")]
    pub from: Option<Position>,
    /// From this store that was set aside, whatever the daemon does.
    #[arg(long, value_name = "DIRECTORY")]
    pub store: Option<PathBuf>,
    /// With these keys instead of the configured ones: those that were found again.
    #[arg(long, value_name = "FILE", requires = "store")]
    pub key_file: Option<PathBuf>,
}

/// Takes the hub's receipts in from a file that `practice-hub import --receipts-to` made.
#[derive(Debug, Clone, Args)]
pub struct Receipts {
    /// The file.
    pub file: PathBuf,
}

/// What is being written: under a name of its own until it is whole.
struct Making<'a> {
    file: File,
    making: PathBuf,
    to: &'a Path,
}

impl<'a> Making<'a> {
    fn begin(to: &'a Path) -> io::Result<Self> {
        if to.exists() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let mut name = to.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_owned();
        name.push(format!(".{}.part", std::process::id()));
        let making = to.with_file_name(name);
        let file = File::options().write(true).create_new(true).mode(0o600).open(&making)?;
        Ok(Self { file, making, to })
    }

    /// On stable storage, then under its name.
    fn finish(self) -> io::Result<()> {
        self.file.sync_all()?;
        // Nothing that came there meanwhile is replaced.
        fs::hard_link(&self.making, self.to).or_else(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => Err(error),
            // A stick with FAT knows no links.
            _ => fs::rename(&self.making, self.to),
        })?;
        let _ = fs::remove_file(&self.making);
        let directory = self.to.parent().filter(|directory| !directory.as_os_str().is_empty());
        File::open(directory.unwrap_or(Path::new(".")))?.sync_all()
    }

    fn give_up(self) {
        let _ = fs::remove_file(&self.making);
    }
}

/// Runs `export`, through the daemon, or from a store that no daemon has open.
pub fn export(config: &GatewayConfig, command: &Export, out: &mut dyn Write, err: &mut dyn Write) -> Exit {
    let cannot = |err: &mut dyn Write, error: &io::Error| {
        let _ = writeln!(err, "cannot write {}: {error}", command.to.display());
        Exit::Files
    };
    let mut making = match Making::begin(&command.to) {
        Ok(making) => making,
        Err(error) => return cannot(err, &error),
    };
    let mut shown = Shown { watched: io::stderr().is_terminal(), percent: None };
    let (mut total, mut stopped, mut lines, mut trouble) = (0, false, Vec::new(), None);
    let mut each = |reply: Reply, err: &mut dyn Write| match reply {
        Reply::Progress { lane, position, tail } => shown.show(err, &lane, position, tail),
        Reply::Piece { base64 } if trouble.is_none() => {
            let bytes = BASE64.decode(base64).map_err(io::Error::other);
            trouble = bytes.and_then(|bytes| making.file.write_all(&bytes)).err();
        }
        Reply::Exported { lane, count, first, last, stopped_before } => {
            total += count;
            stopped |= stopped_before.is_some();
            if count > 0 {
                lines.push(format!("{lane}: {count} transactions, positions {first} to {last}"));
            }
            if let Some(position) = stopped_before {
                lines.push(format!(
                    "{lane}: stops before position {position}, which is lost: see `practice-gateway outbox void`"
                ));
            }
        }
        _ => {}
    };
    let connected = match command.store {
        Some(_) => None,
        None => Some(Client::connect(&config.control.socket)),
    };
    let asked = match connected {
        Some(Ok(mut client)) => {
            let request = Request::Export { lane: command.lane.clone(), from: command.from };
            let asked = client.ask(&request, |reply| each(reply, err));
            asked.map_err(|error| failed(err, &error))
        }
        None | Some(Err(ClientError::Unreachable { .. })) => from_stopped(config, command, &mut each, err),
        Some(Err(error)) => Err(failed(err, &error)),
    };
    shown.clear(err);
    if let Err(exit) = asked {
        making.give_up();
        return exit;
    }
    if let Some(error) = trouble {
        making.give_up();
        return cannot(err, &error);
    }
    for line in lines {
        let _ = writeln!(out, "{line}");
    }
    if total == 0 {
        making.give_up();
        let _ = writeln!(out, "nothing waits that could be carried: no file was made");
    } else if let Err(error) = making.finish() {
        return cannot(err, &error);
    } else {
        let _ = writeln!(out, "{total} transactions are in {}", command.to.display());
    }
    if stopped { Exit::Refused } else { Exit::Done }
}

/// The store itself: its lock says whether a daemon has it.
fn from_stopped(
    config: &GatewayConfig,
    command: &Export,
    each: &mut dyn FnMut(Reply, &mut dyn Write),
    err: &mut dyn Write,
) -> Result<(), Exit> {
    let keys = match &command.key_file {
        Some(file) => keys::outbox_keys_in(file),
        None => keys::outbox_keys(&config.outbox_key_file),
    };
    let keys = keys.map_err(|error| {
        complain(err, &error);
        Exit::Configuration
    })?;
    let mut settings = config.outbox.clone();
    if let Some(store) = &command.store {
        settings.directory.clone_from(store);
    }
    if !settings.directory.join("FORMAT").exists() {
        let _ = writeln!(err, "there is no daemon, and no store in {}", settings.directory.display());
        return Err(Exit::Unreachable);
    }
    let store = settings.directory.clone();
    let outbox = Outbox::open(settings, keys).map_err(|error| not_looked_at(&error, err))?;
    let done =
        export_from_stopped(&outbox, &config.control, command.lane.as_ref(), command.from, &mut |reply| {
            each(reply, err);
            std::ops::ControlFlow::Continue(())
        });
    outbox.close();
    moving::give_to_owner(&store).map_err(|error| not_looked_at(&error, err))?;
    done.map_err(|reason| {
        let _ = writeln!(err, "{reason}");
        Exit::Refused
    })
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
            if let Reply::Heard { lane, confirmed } = reply {
                let _ = writeln!(out, "{lane}: confirmed through position {confirmed}");
            }
        });
        match asked {
            Ok(()) => {}
            Err(ClientError::Failed(reason)) => {
                let _ = writeln!(err, "a receipt is not believed: {reason}");
                worst = Exit::Refused;
            }
            Err(error) => return failed(err, &error),
        }
    }
    worst
}

/// Progress, where a person looks on.
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
