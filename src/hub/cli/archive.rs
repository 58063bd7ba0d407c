//! `practice-hub archive`: makes room in the store by moving the bodies of old transactions elsewhere.

use std::io::Write;
use std::path::{Path, PathBuf};

use clap::Args;
use pgw_core::consequence::Consequence;
use pgw_core::text::chain;
use pgw_core::transaction::unix_millis_now;
use pgw_host::control::ClientError;
use pgw_host::exit::{Exit, fail};

use super::not_answering;
use super::resend::lane_name;
use crate::HubSettings;
use crate::archive::{ArchiveError, ArchivedLane, NewArchive};
use crate::control::{Client, Reply, Request};
use crate::store::archived::{self, CompleteFile};
use crate::store::ndjson::{self, NdjsonStore};
use crate::store::{LaneName, Store as _, StoreError};

const DAY_MILLIS: u64 = 86_400_000;

/// Move the bodies of old transactions out of the store, to make room. Their ids, numbers, chain values and signatures
/// stay, so that nothing is stored twice and `practice-hub verify` still proves the lanes. The hub may run.
#[derive(Debug, Clone, Args)]
pub struct Archive {
    /// Only files whose last transaction was stored more than so many days ago; the one that grows is never archived.
    #[arg(long, value_name = "DAYS")]
    older_than: u32,
    /// Where the whole files go; made if it is not there. Keep it: it has the only bodies then.
    #[arg(long, value_name = "DIR")]
    into: PathBuf,
    /// Only these lanes, `PRACTICE/GATEWAY/LANE`.
    #[arg(value_parser = lane_name, value_name = "LANE")]
    lanes: Vec<LaneName>,
}

/// Who puts what remains of a file in its place.
enum Swapper<'a> {
    Hub(&'a Path),
    Store(Box<NdjsonStore>),
}

impl Swapper<'_> {
    fn new(settings: &HubSettings) -> Result<Swapper<'_>, ArchiveError> {
        let socket = &settings.control_socket;
        match Client::connect(socket) {
            Err(error) if error.is_not_running() => {
                let store = NdjsonStore::open(&settings.directory, settings.rotate_bytes)?;
                Ok(Swapper::Store(Box::new(store)))
            }
            // Another connection for each file: copying takes longer than the hub waits for a request.
            _ => Ok(Swapper::Hub(socket)),
        }
    }

    fn swap(&mut self, lane: &LaneName, file: &CompleteFile) -> Result<(), ArchiveError> {
        let socket = match self {
            Swapper::Store(store) => {
                archived::compare(&file.path, &archived::draft(&file.path))?;
                return Ok(store.take_remains(lane, file.number)?);
            }
            Swapper::Hub(socket) => socket,
        };
        let LaneName { practice, gateway, lane } = lane.clone();
        let request = Request::TakeRemains { practice, gateway, lane, file: file.number };
        let mut answer = None;
        let asked =
            Client::connect(socket).and_then(|mut hub| hub.ask(&request, |reply| answer = Some(reply)));
        match (asked, answer) {
            (Ok(()), Some(Reply::RemainsTaken {})) => Ok(()),
            (Ok(()), _) => Err(not_done(file, "its answer was not understood".into(), Consequence::FILES)),
            (Err(error), _) => Err(not_done(file, reason(&error), error.consequence())),
        }
    }
}

fn reason(error: &ClientError) -> String {
    chain(error)
}

fn not_done(file: &CompleteFile, reason: String, consequence: Consequence) -> ArchiveError {
    ArchiveError::Hub { path: file.path.clone(), reason, consequence }
}

/// Runs the command.
pub fn run(settings: &HubSettings, command: &Archive, out: &mut dyn Write, err: &mut dyn Write) -> Exit {
    match archive(settings, command, out, err) {
        Ok(exit) => exit,
        Err(ArchiveError::Store(StoreError::InUse(_))) => not_answering(&settings.control_socket, err),
        Err(error) => fail(err, &error, error.consequence()),
    }
}

fn archive(
    settings: &HubSettings,
    command: &Archive,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> Result<Exit, ArchiveError> {
    let Archive { older_than, into, lanes } = command;
    let stored_before = unix_millis_now().saturating_sub(u64::from(*older_than) * DAY_MILLIS);
    let mut swapper = Swapper::new(settings)?;
    let archive = NewArchive::begin(&settings.directory, into, stored_before)?;
    let lanes = if lanes.is_empty() { ndjson::lanes_in(&settings.directory)? } else { lanes.clone() };
    let (mut all, mut exit) = (ArchivedLane::default(), Exit::Done);
    for lane in &lanes {
        let mut done = ArchivedLane::default();
        match archive.lane(lane, &mut done, &mut |lane, file| swapper.swap(lane, file)) {
            Ok(()) => {}
            Err(error) if error.concerns_one_lane() => exit = fail(err, &error, error.consequence()),
            Err(error) => return Err(error),
        }
        if done.files > 0 {
            let ArchivedLane { files, bodies, before, after } = done;
            let _ = writeln!(
                out,
                "{lane}: {files} files archived, {bodies} bodies; they took {before} bytes and take {after} now"
            );
        }
        all.files += done.files;
        all.before += done.before;
        all.after += done.after;
    }
    let freed = all.before.saturating_sub(all.after);
    let into = into.display();
    let _ = writeln!(out, "{} files archived into {into}, {freed} bytes fewer in the store", all.files);
    if all.files > 0 {
        let _ = writeln!(
            out,
            "Keep {into}: nothing else has these bodies. `practice-hub verify --archive {into}` proves them.\n\
             A backup that has begun keeps the space of its links until `practice-hub backup done`."
        );
    }
    Ok(exit)
}
