//! `practice-gateway quarantine list`, `show`, `release` and `discard`: refused input, and a person's decision about
//! it.

use std::io::{self, Write};
use std::path::Path;

use clap::{Args, Subcommand};
use pgw_core::transaction::Lane;
use pgw_host::exit::Exit;

use crate::control::client::{self, Client, failed};
use crate::control::{Quarantined, Reply, Request};

/// Refused input that waits for a person's decision.
#[derive(Debug, Clone, Subcommand)]
pub enum Quarantine {
    /// List all entries, oldest first; never their content.
    List(List),
    /// Show one entry; with --bytes its content, for root and the daemon's user only.
    Show(Show),
    /// Submit an entry as if it had just arrived (a written-off record that was found: under its old id), and delete it once it is on
    /// stable storage. Exit 0: done. 75: try later. 65: refused.
    Release(Release),
    /// Delete an entry for good. The reason goes to the log and to the centre: no patient data.
    Discard(Discard),
}

/// List entries.
#[derive(Debug, Clone, Args)]
pub struct List {
    /// Print one JSON object per line.
    #[arg(long)]
    pub json: bool,
}

/// Show one entry.
#[derive(Debug, Clone, Args)]
pub struct Show {
    /// The entry's number, as `quarantine list` prints it.
    pub id: u64,
    /// Print JSON.
    #[arg(long, conflicts_with = "bytes")]
    pub json: bool,
    /// Print the bytes as received, and nothing else.
    #[arg(long)]
    pub bytes: bool,
}

/// Submit an entry.
#[derive(Debug, Clone, Args)]
pub struct Release {
    /// The entry's number, as `quarantine list` prints it.
    pub id: u64,
    /// The lane to submit it to; the first lane if left out.
    #[arg(long)]
    pub lane: Option<Lane>,
    /// The CloudEvents type, sent as it is; from MSH, with the configured prefix and suffix, if left out.
    #[arg(long = "type")]
    pub event_type: Option<String>,
    /// The media type; from MSH, or application/octet-stream, if left out.
    #[arg(long)]
    pub content_type: Option<String>,
}

/// Delete an entry.
#[derive(Debug, Clone, Args)]
pub struct Discard {
    /// The entry's number, as `quarantine list` prints it.
    pub id: u64,
    /// The reason, for the log and the centre; no patient data.
    #[arg(long)]
    pub reason: String,
}

/// Runs the command.
pub fn run(socket: &Path, command: &Quarantine, out: &mut dyn Write, err: &mut dyn Write) -> Exit {
    let mut client = match Client::connect(socket) {
        Ok(client) => client,
        Err(error) => return failed(err, &error),
    };
    match command {
        Quarantine::List(List { json }) => {
            if !json {
                let _ = writeln!(
                    out,
                    "{:>6} {:<24} {:<6} {:<15} {:>9} {:<22} source",
                    "id", "received", "door", "address", "bytes", "reason"
                );
            }
            let write = if *json { write_json } else { write_line };
            entries(&mut client, &Request::QuarantineList {}, write, out, err)
        }
        Quarantine::Show(Show { id, bytes: true, .. }) => {
            match client::bytes(&mut client, &Request::QuarantineBytes { id: *id }, out) {
                Ok(()) => Exit::Done,
                Err(error) => failed(err, &error),
            }
        }
        Quarantine::Show(Show { id, json, .. }) => {
            let write = if *json { write_json } else { write_page };
            entries(&mut client, &Request::QuarantineShow { id: *id }, write, out, err)
        }
        Quarantine::Release(release) => {
            let request = Request::QuarantineRelease {
                id: release.id,
                lane: release.lane.clone(),
                event_type: release.event_type.clone(),
                content_type: release.content_type.clone(),
            };
            let mut exit = Exit::Internal;
            let asked = client.ask(&request, |reply| match reply {
                Reply::Accepted(slip) => {
                    let note = if slip.repeated { " (stored before)" } else { "" };
                    let (id, lane, position) = (slip.id_text(), slip.lane, slip.position);
                    let _ = writeln!(out, "{id} {lane} {position}{note}");
                    exit = Exit::Done;
                }
                Reply::Refused { temporary, reason } => {
                    let word = if temporary { "not now" } else { "refused" };
                    let _ = writeln!(err, "{word}: {reason}; the entry stays in quarantine");
                    exit = if temporary { Exit::Later } else { Exit::Refused };
                }
                _ => {}
            });
            asked.map_or_else(|error| failed(err, &error), |()| exit)
        }
        Quarantine::Discard(Discard { id, reason }) => {
            let request = Request::QuarantineDiscard { id: *id, reason: reason.clone() };
            match client.ask(&request, |_| {}) {
                Ok(()) => Exit::Done,
                Err(error) => failed(err, &error),
            }
        }
    }
}

/// How an entry is written.
type WriteEntry = fn(&mut dyn Write, &Quarantined) -> io::Result<()>;

fn entries(
    client: &mut Client,
    request: &Request,
    write: WriteEntry,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> Exit {
    let mut gone = false;
    let asked = client.ask(request, |reply| {
        if let Reply::Quarantined(entry) = reply
            && !gone
        {
            gone = write(out, &entry).is_err();
        }
    });
    asked.map_or_else(|error| failed(err, &error), |()| Exit::Done)
}

fn write_json(out: &mut dyn Write, entry: &Quarantined) -> io::Result<()> {
    serde_json::to_writer(&mut *out, entry)?;
    out.write_all(b"\n")
}

/// A dash for a missing value.
fn dash(text: &str) -> &str {
    if text.is_empty() { "-" } else { text }
}

fn reason(entry: &Quarantined) -> &str {
    if entry.damaged { "DAMAGED" } else { dash(&entry.reason) }
}

fn address(entry: &Quarantined) -> String {
    entry.address.map_or_else(|| String::from("-"), |address| address.to_string())
}

fn write_line(out: &mut dyn Write, entry: &Quarantined) -> io::Result<()> {
    let Quarantined { id, time, door, source, bytes, .. } = entry;
    let (time, door, source) = (dash(time), dash(door), dash(source));
    let (address, reason) = (address(entry), reason(entry));
    writeln!(out, "{id:>6} {time:<24} {door:<6} {address:<15} {bytes:>9} {reason:<22} {source}")
}

fn write_page(out: &mut dyn Write, entry: &Quarantined) -> io::Result<()> {
    writeln!(out, "id            {}", entry.id)?;
    writeln!(out, "received      {}", dash(&entry.time))?;
    writeln!(out, "door          {}", dash(&entry.door))?;
    writeln!(out, "address       {}", address(entry))?;
    writeln!(out, "source        {}", dash(&entry.source))?;
    writeln!(out, "reason        {}", reason(entry))?;
    writeln!(out, "bytes         {}", entry.bytes)
}
