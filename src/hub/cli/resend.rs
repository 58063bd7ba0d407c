//! `practice-hub resend`: has a gateway send again what is stored here already.

use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::time::Duration;

use clap::Args;
use pgw_core::transaction::{Epoch, Gateway, Lane, Practice, Sequence};
use pgw_host::exit::{Exit, complain};

use crate::resend::{FOLDER, Outcome, Wanted};
use crate::store::ndjson::{NdjsonStore, peek};
use crate::store::{LaneName, StoreError, create_private, create_private_file};

/// How often the running hub's answer is looked for.
const LOOK: Duration = Duration::from_millis(100);

/// Has a gateway send stored transactions again, for what the hub's files have lost or altered. Copies are kept beside
/// the lane's files; nothing is stored twice.
#[derive(Debug, Clone, Args)]
pub struct Resend {
    /// `PRACTICE/GATEWAY/LANE`.
    #[arg(value_parser = lane_name)]
    pub lane: LaneName,
    /// The epoch of the numbers; otherwise the lane's last one.
    #[arg(long, value_parser = epoch)]
    pub epoch: Option<Epoch>,
    /// The first sequence.
    #[arg(long, value_name = "SEQUENCE")]
    pub from: Sequence,
    /// The last one; otherwise only the first.
    #[arg(long, value_name = "SEQUENCE")]
    pub through: Option<Sequence>,
}

fn epoch(text: &str) -> Result<Epoch, String> {
    let epoch = uuid::Uuid::try_parse(text).map(Epoch);
    epoch.map_err(|_| "it must be an epoch as `practice-hub verify` prints it".to_owned())
}

fn lane_name(text: &str) -> Result<LaneName, String> {
    let mut parts = text.split('/');
    match (parts.next(), parts.next(), parts.next(), parts.next()) {
        (Some(practice), Some(gateway), Some(lane), None) => Ok(LaneName {
            practice: Practice::new(practice).map_err(|error| error.to_string())?,
            gateway: Gateway::new(gateway).map_err(|error| error.to_string())?,
            lane: Lane::new(lane).map_err(|error| error.to_string())?,
        }),
        _ => Err("it must be PRACTICE/GATEWAY/LANE, for example B86022/gw1/clinical".to_owned()),
    }
}

/// Runs the command.
pub fn run(directory: &Path, command: &Resend, out: &mut dyn Write, err: &mut dyn Write) -> Exit {
    let Resend { lane, epoch, from, through } = command;
    let last_epoch = || {
        let lanes = peek(directory)?;
        let marks = lanes.into_iter().find(|(name, _)| name == lane).map(|(_, marks)| marks);
        Ok::<_, StoreError>(marks.and_then(|marks| marks.last().map(|mark| mark.epoch)))
    };
    let epoch = match epoch.map_or_else(last_epoch, |epoch| Ok(Some(epoch))) {
        Ok(Some(epoch)) => epoch,
        Ok(None) => {
            let _ = writeln!(err, "nothing of {lane} is stored here");
            return Exit::Refused;
        }
        Err(error) => {
            complain(err, &error);
            return Exit::Files;
        }
    };
    // Whoever can have the store's lock knows that no hub runs.
    match NdjsonStore::is_in_use(directory) {
        Ok(true) => {}
        Ok(false) => {
            let _ = writeln!(err, "the hub does not run: start it, then order it again");
            return Exit::Unreachable;
        }
        Err(error) => {
            complain(err, &error);
            return Exit::Files;
        }
    }
    let wanted = Wanted {
        practice: lane.practice.clone(),
        gateway: lane.gateway.clone(),
        lane: lane.lane.clone(),
        epoch,
        from: *from,
        through: through.unwrap_or(*from),
    };
    match ask(&directory.join(FOLDER), &wanted) {
        Ok(Outcome { error: None, sent, kept, detail }) => {
            let _ = writeln!(
                out,
                "{lane}: {sent} transactions came again, {kept} copies are kept; `practice-hub verify {lane}` says what they mend"
            );
            if !detail.is_empty() {
                let _ = writeln!(out, "  the gateway says: {detail}");
            }
            Exit::Done
        }
        Ok(Outcome { error: Some(error), kept, .. }) => {
            let _ = writeln!(err, "{error}");
            if kept > 0 {
                let _ = writeln!(err, "{kept} copies came before and are kept");
            }
            Exit::Refused
        }
        Err(error) => {
            let _ = writeln!(err, "cannot reach the running hub by its folder {FOLDER}: {error}");
            Exit::Files
        }
    }
}

/// Puts the order into the running hub's folder, and waits for its word.
fn ask(folder: &Path, wanted: &Wanted) -> io::Result<Outcome> {
    create_private(folder).map_err(io::Error::other)?;
    let order = folder.join(format!("{}.order", uuid::Uuid::now_v7()));
    let new = order.with_extension("part");
    create_private_file(&new)?.write_all(&serde_json::to_vec(wanted)?)?;
    fs::rename(&new, &order)?;
    let answer = order.with_extension("json");
    loop {
        match fs::read(&answer) {
            Ok(text) => {
                let outcome = serde_json::from_slice(&text)?;
                fs::remove_file(&answer)?;
                return Ok(outcome);
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => std::thread::sleep(LOOK),
            Err(error) => return Err(error),
        }
    }
}
