//! What `practice-hub verify` and `practice-hub list` print, as plain text.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use pgw_core::numbering::Numbers;
use pgw_core::text::chain;
use pgw_core::transaction::{UnixMillis, rfc3339};

use super::fleet::{self, GatewayView, OutOfUseLane};
use super::gateways::Gateways;
use super::missing::MissingForGood;
use super::store::beside::{self, Beside};
use super::store::late::{self, BesideLane};
use super::store::ndjson::{self, LaneTrouble, StoredLane};
use super::store::{LaneName, StoreError, Through};
use super::verify::{self, LateTransaction, VerifiedLane};

/// A gateway whose session number went back is flagged for this long.
const DAY_MILLIS: u64 = 86_400_000;

/// A report, and whether all is well, which decides the command's exit code.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PrintedReport {
    /// Lines, each with its newline.
    pub text: String,
    /// Whether nothing is wrong.
    pub ok: bool,
}

/// Walks all lanes, or those of one `practice`, `practice/gateway` or `practice/gateway/lane`; `None`: all.
///
/// # Errors
/// [`StoreError`] when something cannot be read.
pub fn verify(directory: &Path, list: &Gateways, only: Option<&str>) -> Result<PrintedReport, StoreError> {
    verify_with(directory, None, list, only)
}

/// The same, with the files of an archive in place of those that have lost their bodies to it.
///
/// # Errors
/// [`StoreError`] when something cannot be read.
pub fn verify_with(
    directory: &Path,
    archive: Option<&Path>,
    list: &Gateways,
    only: Option<&str>,
) -> Result<PrintedReport, StoreError> {
    let mut text = String::new();
    let (mut ok, mut lanes, mut transactions) = (true, 0, 0);
    for name in ndjson::lanes_in(directory)?.iter().filter(|name| is_below(name, only)) {
        lanes += 1;
        let report = match verify::lane_with(directory, archive, name, list) {
            Ok(report) => report,
            Err(error) => {
                ok = false;
                let _ = writeln!(text, "{name}: NOT whole: {}", chain(&error));
                continue;
            }
        };
        transactions += report.transactions;
        ok &= report.faults_total == 0;
        write_lane(&mut text, &report);
    }
    write_beside(&mut text, directory, only)?;
    let _ = writeln!(
        text,
        "{lanes} lanes, {transactions} transactions: {}",
        if ok { "whole" } else { "NOT whole" }
    );
    Ok(PrintedReport { text, ok: ok && (lanes > 0 || only.is_none()) })
}

fn is_below(name: &LaneName, only: Option<&str>) -> bool {
    only.is_none_or(|only| {
        let name = name.to_string();
        name == only || name.strip_prefix(only).is_some_and(|rest| rest.starts_with('/'))
    })
}

/// Bundles that are no part of a lane.
fn write_beside(text: &mut String, directory: &Path, only: Option<&str>) -> Result<(), StoreError> {
    for (lane, Beside { bundles, since }) in beside::all(directory)? {
        if is_below(&lane, only) {
            let since = rfc3339(since);
            let _ = writeln!(
                text,
                "{lane}: unsigned bundles beside it: {bundles}, since {since}; no part of the lane"
            );
        }
    }
    Ok(())
}

fn write_lane(text: &mut String, report: &VerifiedLane) {
    let state = if report.faults_total == 0 { "whole" } else { "NOT whole" };
    let _ = write!(text, "{}: {state}, {} transactions", report.lane, report.transactions);
    if report.archived > 0 {
        let _ = write!(text, ", {} of them archived: their bodies are elsewhere", report.archived);
    }
    if report.advances > 0 {
        let _ = write!(text, ", {} numbered again after a fork", report.advances);
    }
    if report.others > 0 {
        let _ = write!(text, ", {} lines of a later version", report.others);
    }
    if report.torn_bytes > 0 {
        let _ = write!(text, ", {} bytes of an incomplete last line", report.torn_bytes);
    }
    text.push('\n');
    for watermark in &report.watermarks {
        let _ = writeln!(
            text,
            "  epoch {} through {} chain {}",
            watermark.epoch, watermark.through, watermark.chain
        );
    }
    write_heads(text, report);
    write_lacks(text, report);
    for (epoch, range) in &report.recovered {
        let _ = writeln!(
            text,
            "  recovered: sequences {} to {} of epoch {epoch} are not whole in the lane's files; {} has them",
            range.start(),
            range.end(),
            ndjson::again_path(Path::new(""), &report.lane).display()
        );
    }
    for (path, number, fault) in &report.faults {
        let _ = writeln!(text, "  {}:{number}: {fault}", path.display());
    }
    let more = report.faults_total - report.faults.len() as u64;
    if more > 0 {
        let _ = writeln!(text, "  and {more} more");
    }
    let faults = report.faults.iter();
    let wanted = verify::ranges(faults.flat_map(|(_, _, fault)| fault.numbers(MOST_WANTED)).collect());
    for (epoch, range) in wanted.iter().take(5) {
        let _ = writeln!(
            text,
            "  what to do: practice-hub resend {} --epoch {epoch} --from {} --through {}",
            report.lane,
            range.start(),
            range.end()
        );
    }
}

/// Most late transactions of a lane that are listed; `practice-hub lane show` lists all.
const MOST_LATE: usize = 20;

/// What the lane's line names, and its files have lost for good.
pub(crate) fn write_lost(text: &mut String, lost: &[Numbers]) {
    for Numbers { epoch, from, through } in lost {
        let _ = writeln!(
            text,
            "  LOST for good, as the centre has admitted: sequences {from} to {through} of epoch {epoch}; the signatures after them prove that they were there. Look for them in the hub's older backups"
        );
    }
}

/// What a person should know of a lane that is no fault of its files.
fn write_lacks(text: &mut String, report: &VerifiedLane) {
    write_lost(text, &report.lost);
    if report.lost_again > 0 {
        let _ = writeln!(text, "  {} later numbers name these transactions again", report.lost_again);
    }
    for MissingForGood { at, kind, transactions, numbers, reason, time } in &report.missing {
        let _ = write!(text, "  {transactions} transactions are missing for good at this lane:");
        for (epoch, from, through) in numbers {
            let _ = write!(text, " epoch {epoch} numbers {from} to {through},");
        }
        let why = match kind.as_str() {
            "void" => format!("written off at {time}: {reason}"),
            _ => format!("deleted at the gateway after they were confirmed, entry made at {time}"),
        };
        let _ = writeln!(text, " {why} (entry at sequence {} of epoch {})", at.through, at.epoch);
    }
    for (at, id) in &report.rivals {
        let _ = writeln!(
            text,
            "  rival: sequence {} of epoch {} has the id {id}, and so has another content: a person must compare them",
            at.through, at.epoch
        );
    }
    let more = report.rivals_total - report.rivals.len() as u64;
    if more > 0 {
        let _ = writeln!(text, "  and {more} more rivals");
    }
    if report.late.is_empty() {
        return;
    }
    let _ = writeln!(
        text,
        "  late: {} transactions of another history of this gateway are beside the lane and not in it",
        report.late.len()
    );
    write_late(text, &report.late[..report.late.len().min(MOST_LATE)]);
    if report.late.len() > MOST_LATE {
        let _ = writeln!(text, "  and more: practice-hub lane show {}", report.lane);
    }
}

/// Late transactions, a line each.
pub(crate) fn write_late(text: &mut String, late: &[LateTransaction]) {
    for LateTransaction { at, id, event_type, time, file, .. } in late {
        let file = file.file_name().unwrap_or_default().to_string_lossy();
        let _ = writeln!(
            text,
            "    {id} {event_type} of {time}: sequence {} of epoch {}, in {file}",
            at.through, at.epoch
        );
    }
}

/// By which key each epoch is signed, and through which number.
fn write_heads(text: &mut String, report: &VerifiedLane) {
    for watermark in &report.watermarks {
        let heads = report.heads.iter().filter(|head| head.at.epoch == watermark.epoch);
        let Some(newest) = heads.clone().filter(|head| head.verified).max_by_key(|head| head.at.through)
        else {
            let _ = writeln!(text, "  epoch {}: no signature could be verified", watermark.epoch);
            let keys: Vec<_> = heads.map(|head| head.key.to_string()).collect();
            if !keys.is_empty() {
                let _ = writeln!(
                    text,
                    "  what to do: the list of gateways has no key {} for this gateway; was it restored from an older copy?",
                    keys.join(", ")
                );
            }
            continue;
        };
        let _ = writeln!(
            text,
            "  epoch {} signed with key {} through {}",
            watermark.epoch, newest.key, newest.at.through
        );
        if newest.revoked {
            let _ =
                writeln!(text, "  key {} is revoked: whoever has stolen it could sign so too", newest.key);
        }
        if newest.at.through < watermark.through {
            let _ = writeln!(
                text,
                "  NOT signed: sequences {} to {}; right after a crash of the hub the next transaction's signature covers them, otherwise somebody has changed the files",
                newest.at.through + 1,
                watermark.through
            );
        }
    }
}

/// Most numbers of one gap in the proposed command; the next `verify` proposes the rest.
const MOST_WANTED: u64 = 100_000;

/// The fleet as a table: a line for each lane of each gateway; `now` is the wall clock.
///
/// # Errors
/// [`StoreError`] when the store cannot be read.
pub fn list(directory: &Path, now: UnixMillis) -> Result<PrintedReport, StoreError> {
    let mut rows: BTreeMap<String, Vec<(String, String)>> = BTreeMap::new();
    let (mut troubles, mut notes) = (String::new(), String::new());
    let views = fleet::read(directory);
    for StoredLane { lane, ends, trouble } in ndjson::peek(directory)? {
        let who = format!("{}/{}", lane.practice, lane.gateway);
        rows.entry(who).or_default().push((lane.lane.to_string(), through(&ends)));
        write_trouble(&mut troubles, &lane, trouble, &views);
        let BesideLane { rows, files } = late::count(directory, &lane)?;
        if rows + files > 0 {
            let _ = writeln!(
                notes,
                "{lane}: {rows} transactions and {files} files of another history of its gateway are beside it: practice-hub lane show {lane}"
            );
        }
    }
    for (lane, waits) in fleet::waiting(&views) {
        let _ =
            writeln!(notes, "{lane} WAITS until the centre admits it: {waits} ({})", waits.command(&lane));
    }
    for (gateway, lane, view) in fleet::lanes(&views) {
        if view.rivals_total > 0 {
            let _ = writeln!(
                notes,
                "{gateway}/{lane}: {} transactions have an id that has another content as well: practice-hub verify {gateway}/{lane}",
                view.rivals_total
            );
        }
    }
    for who in views.keys() {
        rows.entry(who.clone()).or_default();
    }
    let mut table = vec![
        ["GATEWAY", "LANE", "THROUGH", "LAST SEEN", "STATUS", "STATE", "WAITING", "VERSION"]
            .map(str::to_owned),
    ];
    // The table is for finding gateways that are offline, so an offline gateway is not a failure.
    let ok = troubles.is_empty();
    for (who, mut lanes) in rows {
        let view = views.get(&who).cloned().unwrap_or_default();
        if lanes.is_empty() {
            lanes.push(("-".to_owned(), "-".to_owned()));
        }
        let duplicate = view.duplicate.is_some_and(|at| now.saturating_sub(at) < DAY_MILLIS);
        for (lane, through) in lanes {
            let mut status = view.presence(now).to_owned();
            if duplicate {
                status.push_str(", on two boxes?");
            }
            table.push([
                who.clone(),
                lane,
                through,
                last_seen(&view, now),
                status,
                of_health(&view, "state"),
                of_health(&view, "waiting"),
                view.status.as_ref().map_or("-", |status| status.version.as_str()).to_owned(),
            ]);
        }
    }
    let mut text = aligned(&table) + &troubles + &notes;
    write_beside(&mut text, directory, None)?;
    Ok(PrintedReport { text, ok })
}

/// What is wrong with a lane's files: as they are, or as the running hub has found them.
fn write_trouble(
    text: &mut String,
    lane: &LaneName,
    trouble: Option<LaneTrouble>,
    views: &BTreeMap<String, GatewayView>,
) {
    if let Some(trouble) = trouble {
        let _ = writeln!(text, "{lane} is NOT whole: {trouble}");
    } else if let Some(OutOfUseLane { reason, since }) = out_of_use(views, lane) {
        let _ = writeln!(
            text,
            "{lane} is OUT OF USE at the hub since {}: {reason}; the hub tries it again once a minute",
            rfc3339(*since)
        );
    }
}

fn out_of_use<'a>(views: &'a BTreeMap<String, GatewayView>, lane: &LaneName) -> Option<&'a OutOfUseLane> {
    let view = views.get(&format!("{}/{}", lane.practice, lane.gateway))?;
    view.lanes.get(lane.lane.as_str())?.out_of_use.as_ref()
}

fn through(watermarks: &[Through]) -> String {
    match watermarks {
        [] => "0".to_owned(),
        [one] => one.through.to_string(),
        [.., last] => format!("{} (epoch {} of {})", last.through, watermarks.len(), watermarks.len()),
    }
}

fn last_seen(view: &GatewayView, now: UnixMillis) -> String {
    match view.last_seen {
        None => "never".to_owned(),
        Some(at) => {
            let seconds = now.saturating_sub(at) / 1_000;
            match seconds {
                0..120 => format!("{seconds} s ago"),
                120..7_200 => format!("{} min ago", seconds / 60),
                7_200..172_800 => format!("{} h ago", seconds / 3_600),
                _ => rfc3339(at),
            }
        }
    }
}

fn of_health(view: &GatewayView, key: &str) -> String {
    match view.health.as_ref().and_then(|health| health.get(key)) {
        Some(serde_json::Value::String(text)) => text.chars().filter(|c| !c.is_control()).take(24).collect(),
        Some(value) => value.to_string(),
        None => "-".to_owned(),
    }
}

pub(crate) fn aligned<const N: usize>(table: &[[String; N]]) -> String {
    let mut widths = [0; N];
    for row in table {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    for row in table {
        let cells: Vec<_> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}
