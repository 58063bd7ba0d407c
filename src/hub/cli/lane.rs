//! `practice-hub lane`: what is beside a lane, and why it waits until the centre admits it.

use std::fmt::Write as _;
use std::io::Write;

use clap::{Args, Subcommand};
use pgw_host::exit::{Exit, fail};

use super::resend::{lane_name, no_answer};
use crate::HubSettings;
use crate::control::{Client, Reply, Request};
use crate::fleet;
use crate::gateways::Gateways;
use crate::report;
use crate::store::LaneName;
use crate::verify;
use crate::waits::{AdmittedLane, WaitReason};

/// What is done with a lane.
#[derive(Debug, Clone, Subcommand)]
pub enum Lane {
    /// Show why a lane waits, and the transactions beside it that it lacks.
    Show {
        /// `PRACTICE/GATEWAY/LANE`.
        #[arg(value_parser = lane_name)]
        lane: LaneName,
    },
    /// Let a lane continue that waits for the centre: `show` and `list` say why it waits.
    Admit(Admit),
}

/// Which lanes.
#[derive(Debug, Clone, Args)]
pub struct Admit {
    /// `PRACTICE/GATEWAY/LANE`.
    #[arg(value_parser = lane_name, required_unless_present = "all")]
    lane: Option<LaneName>,
    /// Every lane that waits for this reason.
    #[arg(long, conflicts_with = "lane")]
    all: bool,
    /// The reason that `show` and `list` gave: a lane that waits for another one by now is not admitted.
    #[arg(long = "as", value_name = "REASON")]
    reason: WaitReason,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub fn run(settings: &HubSettings, command: &Lane, out: &mut dyn Write, err: &mut dyn Write) -> Exit {
    match command {
        Lane::Show { lane } => show(settings, lane, out, err),
        Lane::Admit(command) => admit(settings, command, out, err),
    }
}

fn show(settings: &HubSettings, lane: &LaneName, out: &mut dyn Write, err: &mut dyn Write) -> Exit {
    let list = match Gateways::load(&settings.gateways_file) {
        Ok(list) => list,
        Err(error) => return fail(err, &error, error.consequence()),
    };
    let verified = match verify::lane(&settings.directory, lane, &list) {
        Ok(verified) => verified,
        Err(error) => return fail(err, &error, error.consequence()),
    };
    let mut text = format!("{lane}: {} transactions\n", verified.transactions);
    if verified.archived > 0 {
        let _ = writeln!(text, "  {} of them are archived: their bodies are elsewhere", verified.archived);
    }
    let waiting = fleet::waiting(&fleet::read(&settings.directory));
    for (_, waits) in waiting.iter().filter(|(at, _)| at == lane) {
        let _ = writeln!(text, "  waits until the centre admits it: {waits} ({})", waits.command(lane));
    }
    report::write_lost(&mut text, &verified.lost);
    for (at, id) in &verified.rivals {
        let _ = writeln!(text, "  rival: {id} at sequence {} of epoch {}", at.through, at.epoch);
    }
    let _ = writeln!(
        text,
        "  {} transactions of another history of its gateway are beside it and not in it",
        verified.late.len()
    );
    report::write_late(&mut text, &verified.late);
    match out.write_all(text.as_bytes()) {
        Ok(()) => Exit::Done,
        Err(_) => Exit::Files,
    }
}

fn admit(settings: &HubSettings, command: &Admit, out: &mut dyn Write, err: &mut dyn Write) -> Exit {
    let lane = command.lane.clone().map(|lane| lane.to_string());
    let request = Request::LaneAdmit { lane, reason: command.reason };
    let mut answer = None;
    let asked = Client::connect(&settings.control_socket)
        .and_then(|mut hub| hub.ask(&request, |reply| answer = Some(reply)));
    match (asked, answer) {
        (Ok(()), Some(Reply::Admitted { lanes })) => {
            let text = if command.json {
                format!("{}\n", serde_json::json!({ "lanes": lanes }))
            } else {
                lanes.iter().map(sentence).collect()
            };
            match out.write_all(text.as_bytes()) {
                Ok(()) => Exit::Done,
                Err(_) => Exit::Files,
            }
        }
        (asked, _) => no_answer(asked, err),
    }
}

fn sentence(admitted: &AdmittedLane) -> String {
    let mut text = format!("{}: admitted: {}\n", admitted.name(), admitted.waits);
    if admitted.waits.reason == WaitReason::Lost {
        let _ = writeln!(
            text,
            "  the missing part is lost for good, and the lane continues with the files after it: practice-hub lane show {}",
            admitted.name()
        );
    }
    if admitted.waits.reason == WaitReason::Hole {
        let _ = writeln!(
            text,
            "  {} files after the missing part are beside the lane now: practice-hub lane show {}",
            admitted.set_aside,
            admitted.name()
        );
    }
    text
}
