//! `practice-hub resend`: asks a gateway to send transactions again that were stored before.

use std::io::Write;
use std::path::Path;

use clap::Args;
use pgw_core::transaction::{Epoch, Gateway, Lane, Practice, Sequence};
use pgw_host::control::ClientError;
use pgw_host::exit::{Exit, fail};

use crate::control::{Client, Reply, Request};
use crate::store::LaneName;

/// Ask a gateway to send transactions again that the hub's files have lost or altered. The hub keeps the copies beside
/// the lane's files and stores nothing twice.
#[derive(Debug, Clone, Args)]
pub struct Resend {
    /// `PRACTICE/GATEWAY/LANE`.
    #[arg(value_parser = lane_name)]
    pub lane: LaneName,
    /// The epoch of the sequences; the lane's last epoch if left out.
    #[arg(long, value_parser = epoch)]
    pub epoch: Option<Epoch>,
    /// The first sequence.
    #[arg(long, value_name = "SEQUENCE")]
    pub from: Sequence,
    /// The last one; only the first if left out.
    #[arg(long, value_name = "SEQUENCE")]
    pub through: Option<Sequence>,
}

fn epoch(text: &str) -> Result<Epoch, String> {
    let epoch = uuid::Uuid::try_parse(text).map(Epoch);
    epoch.map_err(|_| "it must be an epoch as `practice-hub verify` prints it".to_owned())
}

/// A lane's full name as an argument.
pub(super) fn lane_name(text: &str) -> Result<LaneName, String> {
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
pub fn run(socket: &Path, command: &Resend, out: &mut dyn Write, err: &mut dyn Write) -> Exit {
    let Resend { lane, epoch, from, through } = command;
    let request = Request::Resend {
        practice: lane.practice.clone(),
        gateway: lane.gateway.clone(),
        lane: lane.lane.clone(),
        epoch: *epoch,
        from: *from,
        through: through.unwrap_or(*from),
    };
    let mut answer = None;
    let asked = Client::connect(socket).and_then(|mut hub| hub.ask(&request, |reply| answer = Some(reply)));
    match (asked, answer) {
        (Ok(()), Some(Reply::Resent { sent, kept, detail })) => {
            let _ = writeln!(
                out,
                "{lane}: {sent} transactions arrived again, {kept} copies are kept; `practice-hub verify {lane}` says which lines they replace"
            );
            if !detail.is_empty() {
                let _ = writeln!(out, "  the gateway says: {detail}");
            }
            Exit::Done
        }
        (Ok(()), Some(Reply::NotResent { reason, kept })) => {
            let _ = writeln!(err, "{reason}");
            if kept > 0 {
                let _ = writeln!(err, "{kept} copies had arrived before that and are kept");
            }
            Exit::Refused
        }
        (asked, _) => no_answer(asked, err),
    }
}

/// The running hub has not answered what was asked for.
pub(super) fn no_answer(asked: Result<(), ClientError>, err: &mut dyn Write) -> Exit {
    match asked {
        Ok(()) => {
            let _ = writeln!(err, "the hub's answer was not understood");
            Exit::Internal
        }
        Err(error) if error.is_not_running() => {
            let _ = writeln!(err, "the hub is not running: start it, then run this command again");
            Exit::Unreachable
        }
        Err(error) => fail(err, &error, error.consequence()),
    }
}
