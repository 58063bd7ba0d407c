//! `practice-hub import` and `verify --bundle`: hand-carry, on the hub's side.

use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use pgw_bundle::keys::Identity;
use pgw_bundle::receipts;
use pgw_host::exit::{Exit, complain};
use ring::rand::{SecureRandom as _, SystemRandom};

use crate::answers::{Answer, Answers};
use crate::backup::Backups;
use crate::config::HubConfig;
use crate::fleet::Fleet;
use crate::import;
use crate::import::{FOLDER, ImportError, LaneOutcome, Outcome};
use crate::keys;
use crate::link::Speaker;
use crate::store::ndjson::NdjsonStore;
use crate::store::{LaneName, Mark, StoreError, create_private, create_private_file};
use crate::store_thread::{GroupLimits, StoreThread};

/// How often the running hub's answer is looked for.
const LOOK: Duration = Duration::from_millis(100);

/// Stores what was carried here in files, exactly once, like what the broker brings. Exit 0: all of it is stored.
#[derive(Debug, Clone, Args)]
pub struct Import {
    /// The files, in the order in which they were exported.
    #[arg(required = true)]
    pub files: Vec<PathBuf>,
    /// Writes the hub's signed receipts for these lanes to this file, for `practice-gateway receipts`.
    #[arg(long, value_name = "FILE")]
    pub receipts_to: Option<PathBuf>,
}

/// Where the parts go.
enum Way {
    /// No hub runs: its store is ours as long as we live.
    Store(Box<StoreThread>),
    /// A hub runs: its drop folder.
    Folder(PathBuf),
}

/// Runs `import`.
pub fn import(config: &HubConfig, command: &Import, out: &mut dyn Write, err: &mut dyn Write) -> Exit {
    let settings = &config.settings;
    let identity = match keys::carry_key(&settings.carry_key_file) {
        Ok(identity) => identity,
        Err(error) => {
            complain(err, &error);
            return Exit::Configuration;
        }
    };
    let mut way = match NdjsonStore::open(&settings.directory, settings.rotate_bytes) {
        Ok(store) => {
            let limits =
                GroupLimits { transactions: settings.group_transactions, bytes: settings.group_bytes };
            let fleet = Fleet::open(&settings.directory);
            Way::Store(Box::new(StoreThread::new(
                Box::new(store),
                Answers::default(),
                fleet,
                Backups::default(),
                limits,
            )))
        }
        Err(StoreError::InUse(_)) => Way::Folder(settings.directory.join(FOLDER)),
        Err(error) => {
            complain(err, &error);
            return Exit::Files;
        }
    };
    let (mut exit, mut lanes) = (Exit::Done, Vec::new());
    for file in &command.files {
        let outcome = match &mut way {
            Way::Store(store) => Ok(offline(file, &identity, store)),
            Way::Folder(folder) => by_folder(file, &identity, folder, err),
        };
        match outcome {
            Ok(outcome) => {
                write_outcome(out, file, &outcome);
                if let Some(error) = &outcome.error {
                    let _ = writeln!(err, "{}: refused: {error}", file.display());
                    exit = Exit::Refused;
                }
                lanes.extend(outcome.lanes);
            }
            Err(error) => {
                let _ = writeln!(err, "{}: {error}", file.display());
                exit = Exit::Files;
            }
        }
        if exit != Exit::Done {
            // The files are an order: what follows would only show a gap.
            break;
        }
    }
    if let Some(to) = &command.receipts_to
        && let Err(error) = write_receipts(config, &lanes, to)
    {
        let _ = writeln!(err, "cannot write {}: {error}", to.display());
        return Exit::Files;
    }
    exit
}

fn offline(file: &Path, identity: &Identity, store: &mut StoreThread) -> Outcome {
    let mut lanes = Vec::new();
    let mut take = |part| store.import(part).map_err(ImportError::from);
    let done = import::import(file, identity, &mut take, &mut lanes);
    Outcome { ok: done.is_ok(), error: done.err().map(|error| import::sentence(&error)), lanes }
}

/// A copy of the file in the running hub's folder, and the hub's word about it.
fn by_folder(file: &Path, identity: &Identity, folder: &Path, err: &mut dyn Write) -> io::Result<Outcome> {
    // What is no good need not go there.
    if let Err(error) = import::check(file, identity) {
        return Ok(Outcome { ok: false, error: Some(import::sentence(&error)), lanes: Vec::new() });
    }
    create_private(folder).map_err(io::Error::other)?;
    let name = uuid::Uuid::now_v7().to_string();
    let (new, dropped) = (folder.join(format!("{name}.part")), folder.join(format!("{name}.age")));
    let mut copy = create_private_file(&new)?;
    io::copy(&mut BufReader::new(File::open(file)?), &mut copy)?;
    copy.sync_all()?;
    fs::rename(&new, &dropped)?;
    let _ = writeln!(err, "a hub is running: it imports {} itself", file.display());
    let answer = dropped.with_extension("json");
    loop {
        match fs::read(&answer) {
            Ok(text) => {
                let outcome: Outcome = serde_json::from_slice(&text)?;
                // Our copy: the file itself is left to who brought it.
                for extension in ["json", "age.done", "age.refused"] {
                    let _ = fs::remove_file(dropped.with_extension(extension));
                }
                return Ok(outcome);
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => std::thread::sleep(LOOK),
            Err(error) => return Err(error),
        }
    }
}

fn write_outcome(out: &mut dyn Write, file: &Path, outcome: &Outcome) {
    let _ = writeln!(out, "{}: {}", file.display(), if outcome.ok { "imported" } else { "NOT imported" });
    for lane in &outcome.lanes {
        let LaneOutcome { practice, gateway, lane, count, stored, renumbered, repeated, .. } = lane;
        let _ = writeln!(
            out,
            "  {practice}/{gateway}/{lane}: {count} transactions: {stored} new, {} here already",
            renumbered + repeated
        );
    }
}

/// Signed as the running hub signs them. They answer no question, and the gateway takes them for no more than that.
fn write_receipts(config: &HubConfig, lanes: &[LaneOutcome], to: &Path) -> io::Result<()> {
    let settings = &config.settings;
    let key = pgw_host::secret::signing_key(&settings.signing_key_file).map_err(io::Error::other)?;
    let mut incarnation = [0; 8];
    SystemRandom::new().fill(&mut incarnation).map_err(|_| io::Error::other("no random numbers"))?;
    let mut speaker = Speaker::new(settings.hub.clone(), u64::from_be_bytes(incarnation) >> 11, key);
    let mut new = to.as_os_str().to_owned();
    new.push(".part");
    let new = PathBuf::from(new);
    let mut file = BufWriter::new(create_private_file(&new)?);
    for (index, lane) in lanes.iter().enumerate() {
        let name = |of: &LaneOutcome| LaneName {
            practice: of.practice.clone(),
            gateway: of.gateway.clone(),
            lane: of.lane.clone(),
        };
        // The last file's word about a lane is the newest.
        if lanes.iter().skip(index + 1).any(|later| name(later) == name(lane)) {
            continue;
        }
        let marks: Vec<Mark> = lane.marks.iter().copied().map(Mark::from).collect();
        let said = speaker.say(Answer::Receipt { lane: name(lane), marks, backed_up: None, nonce: None });
        let signature = said.properties.user_properties.into_iter().next().map(|(_, value)| value);
        let line = receipts::SignedReceipt {
            topic: said.topic,
            payload: String::from_utf8(said.payload).map_err(io::Error::other)?,
            signature: signature.unwrap_or_default(),
        };
        receipts::write(&mut file, &line)?;
    }
    file.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
    fs::rename(&new, to)
}

/// Runs `verify --bundle`.
pub fn verify(config: &HubConfig, file: &Path, out: &mut dyn Write, err: &mut dyn Write) -> Exit {
    let identity = match keys::carry_key(&config.settings.carry_key_file) {
        Ok(identity) => identity,
        Err(error) => {
            complain(err, &error);
            return Exit::Configuration;
        }
    };
    match import::check(file, &identity) {
        Ok(lanes) => {
            for LaneOutcome { practice, gateway, lane, epoch, first, last, count, .. } in &lanes {
                let _ = writeln!(
                    out,
                    "{practice}/{gateway}/{lane}: ok: {count} transactions, from sequence {first} of epoch {epoch} to sequence {last}"
                );
            }
            let _ = writeln!(out, "{}: whole, in order and unaltered", file.display());
            Exit::Done
        }
        Err(error) => {
            let _ = writeln!(err, "{}: NOT OK: {}", file.display(), import::sentence(&error));
            if matches!(error, ImportError::File(..)) { Exit::Files } else { Exit::Refused }
        }
    }
}
