//! `practice-gateway repair`: which missing records can be recovered; with `--yes` it recovers them.

use std::io::{self, IsTerminal as _, Write};
use std::path::PathBuf;

use clap::Args;
use pgw_core::transaction::{Lane, Position};
use pgw_host::exit::{Exit, fail};
use pgw_outbox::OpenError;
use pgw_outbox::offline::{
    self, FoundRange, LaneReport, LostRange, Neighbour, RepairError, RepairReport, RepairRequest,
};

use crate::config::GatewayConfig;
use crate::keys;

/// Recover missing records from damaged segments, from what was set aside, and from each --from. The daemon must be stopped.
/// Without --yes nothing is written. Exit 0: nothing is missing any more. 65: something is missing, or could be done with --yes.
#[derive(Debug, Clone, Args)]
pub struct Repair {
    /// Another copy to read: a data directory on a copy of the old disk, a copied segment, or a disk image.
    #[arg(long, value_name = "PATH")]
    pub from: Vec<PathBuf>,
    /// Repair only this lane.
    #[arg(long)]
    pub lane: Option<Lane>,
    /// Also take records that fit but that no later record proves. Their senders may never have received an acknowledgment.
    #[arg(long)]
    pub unproven: bool,
    /// Do it; without this option it is a dry run.
    #[arg(long)]
    pub yes: bool,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// Runs the command on the store itself.
pub fn run(config: &GatewayConfig, command: &Repair, out: &mut dyn Write, err: &mut dyn Write) -> Exit {
    let keys = match keys::outbox_keys(&config.outbox_key_file) {
        Ok(keys) => keys,
        Err(error) => return fail(err, &error, error.consequence()),
    };
    let Repair { from, lane, unproven, yes, json } = command.clone();
    if let Some(lane) = &lane
        && config.outbox.lanes.iter().all(|known| known.lane != *lane)
    {
        let _ = writeln!(err, "there is no lane {lane}");
        return Exit::Usage;
    }
    let watched = io::stderr().is_terminal();
    let mut shown = false;
    let request = RepairRequest { from, lane, unproven, act: yes };
    let repaired = offline::repair(&config.outbox, &keys, &request, &mut |lane, segment| {
        if watched {
            shown = true;
            let _ = write!(err, "\r{lane}: reading segment {segment}\x1b[K");
        }
    });
    if shown {
        let _ = write!(err, "\r\x1b[K");
    }
    let report = match repaired {
        Ok(report) => report,
        Err(error) => return refused(err, &error),
    };
    let _ = if json { write_json(out, &report) } else { write_report(out, &report, command) };
    let remade = report.done || report.remade.is_empty();
    if remade && report.lanes.iter().all(|lane| is_well(&report, lane, command)) {
        Exit::Done
    } else {
        Exit::Refused
    }
}

fn refused(err: &mut dyn Write, error: &RepairError) -> Exit {
    let exit = fail(err, error, error.consequence());
    if let RepairError::Open(OpenError::InUse(_)) = error {
        let _ = writeln!(
            err,
            "the daemon has it: `systemctl stop practice-gateway`, repair, and start it again; \
             `practice-gateway verify` says what is missing while it runs"
        );
    }
    exit
}

/// Whether a lane needs nothing more.
fn is_well(report: &RepairReport, lane: &LaneReport, command: &Repair) -> bool {
    let unproven = if command.unproven { 0 } else { lane.unproven_count() };
    let open = lane.saved_count() + lane.unproven_count() + lane.written_off_count();
    let open = if report.done { 0 } else { open };
    lane.lost_count() + unproven + open == 0
        && lane.contradicted.is_empty()
        && (report.done || lane.rewritten.is_empty())
}

fn write_json(out: &mut dyn Write, report: &RepairReport) -> io::Result<()> {
    serde_json::to_writer(&mut *out, report)?;
    out.write_all(b"\n")
}

fn write_report(out: &mut dyn Write, report: &RepairReport, command: &Repair) -> io::Result<()> {
    for name in &report.remade {
        let word = if report.done { "was recreated" } else { "is damaged, and would be recreated" };
        writeln!(out, "{name}: {word} (if this store was retired, do not start it: it runs elsewhere)")?;
    }
    for place in &report.from {
        writeln!(out, "{}: {} records at positions where one is missing", place.path, place.records)?;
        for file in &place.unreadable_files {
            writeln!(out, "  cannot be opened, skipped: {file}")?;
        }
    }
    for lane in &report.lanes {
        write_lane(out, report, lane, command)?;
    }
    let kept =
        |lane: &LaneReport| !lane.written_off.is_empty() || (command.unproven && !lane.refused.is_empty());
    let kept = report.lanes.iter().any(kept);
    let work =
        !report.remade.is_empty() || report.lanes.iter().any(|lane| !lane.rewritten.is_empty()) || kept;
    match (report.done, work) {
        (false, false) => writeln!(out, "Nothing was changed, and nothing can be recovered."),
        (false, true) => writeln!(out, "Nothing was changed. Add --yes to do it."),
        (true, false) => writeln!(out, "Nothing was changed: nothing can be recovered."),
        (true, true) if kept && report.lanes.iter().all(|lane| lane.rewritten.is_empty()) => {
            writeln!(out, "Done. Start the daemon, and decide about what is in its quarantine.")
        }
        (true, true) => writeln!(
            out,
            "Done. The old segments are in aside/. Start the daemon: its lanes continue by themselves."
        ),
    }
}

fn write_lane(
    out: &mut dyn Write,
    report: &RepairReport,
    lane: &LaneReport,
    command: &Repair,
) -> io::Result<()> {
    let LaneReport { lane: name, first, last, read, released, missing, .. } = lane;
    writeln!(
        out,
        "{name}: positions {first} to {last}: {read} readable, {missing} missing, {released} written off"
    )?;
    if lane.unreadable_bytes > 0 {
        writeln!(out, "  the disk could not read {} bytes", lane.unreadable_bytes)?;
    }
    let taken = if report.done { "recovered" } else { "would be recovered" };
    write_found(out, taken, &lane.saved)?;
    let unproven = match (command.unproven, report.done) {
        (true, true) => "recovered, although no later record proves them",
        (true, false) => "would be recovered, although no later record proves them",
        (false, _) => "left out, because no later record proves them (see --unproven)",
    };
    write_found(out, unproven, &lane.unproven)?;
    let written_off = if report.done {
        "written off, and found: in quarantine (`practice-gateway quarantine release` submits it under its old id)"
    } else {
        "written off, and found: would go to the quarantine"
    };
    write_found(out, written_off, &lane.written_off)?;
    let refused = if report.done && command.unproven {
        "REFUSED, because the digest table names another record there (now in quarantine)"
    } else {
        "REFUSED, because the digest table names another record there"
    };
    write_found(out, refused, &lane.refused)?;
    for segment in &lane.rewritten {
        let word = if report.done { "was rebuilt" } else { "would be rebuilt" };
        let why = if segment.unsound { ", and is damaged or gone" } else { "" };
        writeln!(
            out,
            "  segment {} {word} with {} records; {} were missing in it{why}",
            segment.segment, segment.records, segment.filled
        )?;
    }
    if !lane.contradicted.is_empty() {
        let ranges: Vec<String> = lane.contradicted.iter().map(|(a, b)| range(*a, *b)).collect();
        writeln!(out, "  CONTRADICTED by the next record, and left as it is: {}", ranges.join(", "))?;
    }
    for lost in &lane.lost {
        write_lost(out, lane, lost)?;
    }
    Ok(())
}

fn write_found(out: &mut dyn Write, word: &str, list: &[FoundRange]) -> io::Result<()> {
    for FoundRange { from, through, found_in } in list {
        writeln!(out, "  {word}: {} from {found_in}", range(*from, *through))?;
    }
    Ok(())
}

fn write_lost(out: &mut dyn Write, lane: &LaneReport, lost: &LostRange) -> io::Result<()> {
    let range = range(lost.from, lost.through);
    if lost.confirmed {
        return writeln!(out, "  missing here, but confirmed by the hub: {range}");
    }
    writeln!(out, "  UNRECOVERABLE: {range}")?;
    for (word, neighbour) in [("before", &lost.before), ("after", &lost.after)] {
        if let Some(Neighbour { position, time, sender }) = neighbour {
            writeln!(out, "    {word} it: position {position}, accepted {time}, from {sender}")?;
        }
    }
    writeln!(
        out,
        "    find another copy (--from), or have the senders send it again; then, with the daemon running:\n    \
         practice-gateway outbox void --lane {} --sequence {} --through {} --reason \"...\"",
        lane.lane, lost.from, lost.through
    )
}

fn range(from: Position, through: Position) -> String {
    if from == through { from.to_string() } else { format!("{from}-{through}") }
}
