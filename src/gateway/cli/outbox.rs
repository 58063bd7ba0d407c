//! `practice-gateway outbox list` and `outbox show`: headers of transactions, never a body.

use std::io::{self, Write};
use std::path::Path;

use clap::{Args, Subcommand};
use pgw_core::transaction::{Lane, Position};
use pgw_host::exit::Exit;

use crate::cli::moving;
use crate::control::client::{Client, failed};
use crate::control::{Reply, Request, TransactionRef};
use crate::listing::{ListedTransaction, TransactionState};

/// Transactions in the outbox: headers only.
#[derive(Debug, Clone, Subcommand)]
pub enum Outbox {
    /// List transactions in order, from the oldest waiting one.
    List(List),
    /// Show one transaction.
    Show(Show),
    /// Write off records that are lost for good, to unblock their lane; a dry run without --yes.
    Void(Void),
    /// Retry the held transaction that stalls a lane.
    Release(Release),
    /// On the old box, with the daemon stopped: retire this store for good, and print what to copy.
    Retire(moving::Retire),
    /// On the new box: check that the copy of a retired store is complete, and allow it to run.
    Adopt(moving::Adopt),
    /// The outbox key is lost: rename the store, so that the next start creates a new one; nothing is deleted. A dry run without
    /// --yes.
    SetAside(moving::SetAside),
    /// Send confirmed transactions again, with the same ids, for a hub that has lost them. The hub stores none twice.
    Resend(Resend),
}

/// Send confirmed transactions again.
#[derive(Debug, Clone, Args)]
pub struct Resend {
    /// The lane that they belong to.
    #[arg(long)]
    pub lane: Lane,
    /// The first position to send.
    #[arg(long, value_name = "POSITION")]
    pub from: Position,
    /// The last one; only the first if left out.
    #[arg(long, value_name = "POSITION")]
    pub through: Option<Position>,
}

/// Write off lost records.
#[derive(Debug, Clone, Args)]
pub struct Void {
    /// The lane that is stalled.
    #[arg(long)]
    pub lane: Lane,
    /// The first lost position, as `verify` prints it.
    #[arg(long, value_name = "POSITION")]
    pub sequence: Position,
    /// The last one; only the first if left out.
    #[arg(long, value_name = "POSITION")]
    pub through: Option<Position>,
    /// The reason; the hub stores it for good. No patient data.
    #[arg(long)]
    pub reason: String,
    /// Do it. This cannot be undone.
    #[arg(long)]
    pub yes: bool,
}

/// Retry a held transaction, or begin the epoch that waits for an hour because the hub's line differs for the second time in a day.
#[derive(Debug, Clone, Args)]
pub struct Release {
    /// The lane that is stalled.
    #[arg(long)]
    pub lane: Lane,
}

/// List transactions.
#[derive(Debug, Clone, Args)]
pub struct List {
    /// List only this lane.
    #[arg(long)]
    pub lane: Option<Lane>,
    /// Start at this position; 1 includes confirmed transactions that are still kept.
    #[arg(long)]
    pub from: Option<Position>,
    /// The most transactions to list for each lane.
    #[arg(long, default_value_t = 50)]
    pub limit: u32,
    /// Print one JSON object per line.
    #[arg(long)]
    pub json: bool,
}

/// Show one transaction.
#[derive(Debug, Clone, Args)]
pub struct Show {
    /// The lane; all are searched if left out.
    #[arg(long)]
    pub lane: Option<Lane>,
    /// The transaction's id or position.
    pub which: TransactionRef,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// How an entry is written.
type WriteEntry = fn(&mut dyn Write, &ListedTransaction) -> io::Result<()>;

/// Runs the command.
pub fn run(socket: &Path, command: &Outbox, out: &mut dyn Write, err: &mut dyn Write) -> Exit {
    let mut client = match Client::connect(socket) {
        Ok(client) => client,
        Err(error) => return failed(err, &error),
    };
    let (request, write): (_, WriteEntry) = match command {
        // They need no daemon, and were run before.
        Outbox::Retire(_) | Outbox::Adopt(_) | Outbox::SetAside(_) => return Exit::Usage,
        Outbox::Void(command) => return void(&mut client, command, out, err),
        Outbox::Resend(command) => return resend(&mut client, command, out, err),
        Outbox::Release(Release { lane }) => {
            return match client.ask(&Request::RetryHead { lane: lane.clone() }, |_| {}) {
                Ok(()) => Exit::Done,
                Err(error) => failed(err, &error),
            };
        }
        Outbox::List(List { lane, from, limit, json }) => {
            if !json {
                let _ = writeln!(
                    out,
                    "{:<12} {:>10} {:<9} {:<24} {:>9} {:<40} id",
                    "lane", "position", "state", "accepted", "bytes", "type"
                );
            }
            let write = if *json { write_json } else { write_line };
            (Request::List { lane: lane.clone(), from: *from, limit: *limit }, write)
        }
        Outbox::Show(Show { lane, which, json }) => {
            let write = if *json { write_json } else { write_page };
            (Request::Show { lane: lane.clone(), which: *which }, write)
        }
    };
    // All of it before any is written: a pager may read for longer than the daemon waits.
    let mut entries = Vec::new();
    let asked = client.ask(&request, |reply| {
        if let Reply::Entry(entry) = reply {
            entries.push(entry);
        }
    });
    if let Err(error) = asked {
        return failed(err, &error);
    }
    // A reader that has gone is no error.
    let _ = entries.iter().try_for_each(|entry| write(out, entry));
    Exit::Done
}

fn void(client: &mut Client, command: &Void, out: &mut dyn Write, err: &mut dyn Write) -> Exit {
    let Void { lane, sequence, through, reason, yes } = command;
    let request = Request::Void {
        lane: lane.clone(),
        from: *sequence,
        through: through.unwrap_or(*sequence),
        reason: reason.clone(),
        act: *yes,
    };
    let asked = client.ask(&request, |reply| {
        if let Reply::Released { lane, from, through } = reply {
            let word = if *yes { "are released" } else { "would be released (add --yes)" };
            let _ = writeln!(out, "{lane}: positions {from} to {through} are lost and {word}");
        }
    });
    match asked {
        Ok(()) => Exit::Done,
        Err(error) => failed(err, &error),
    }
}

fn resend(client: &mut Client, command: &Resend, out: &mut dyn Write, err: &mut dyn Write) -> Exit {
    let Resend { lane, from, through } = command;
    let request = Request::Resend { lane: lane.clone(), from: *from, through: through.unwrap_or(*from) };
    let asked = client.ask(&request, |reply| match reply {
        Reply::Progress { lane, position, tail } => {
            let _ = writeln!(err, "{lane}: sent again through position {position} of {tail}");
        }
        Reply::Resent { lane, count, missing, unsubscribed } => {
            let _ =
                writeln!(out, "{lane}: {count} transactions sent again; the hub stores none of them twice");
            if missing > 0 {
                let _ = writeln!(out, "  {missing} positions of the range are no longer in the outbox");
            }
            if unsubscribed {
                let _ = writeln!(
                    out,
                    "  no hub was subscribed for some of them: run this command again once a hub is online"
                );
            }
        }
        _ => {}
    });
    match asked {
        Ok(()) => Exit::Done,
        Err(error) => failed(err, &error),
    }
}

fn word(state: TransactionState) -> &'static str {
    match state {
        TransactionState::Waiting => "waiting",
        TransactionState::Confirmed => "confirmed",
        TransactionState::Pruned => "pruned",
        TransactionState::Damaged => "damaged",
    }
}

fn write_json(out: &mut dyn Write, entry: &ListedTransaction) -> io::Result<()> {
    serde_json::to_writer(&mut *out, entry)?;
    out.write_all(b"\n")
}

fn write_line(out: &mut dyn Write, entry: &ListedTransaction) -> io::Result<()> {
    let ListedTransaction { lane, position, state, header } = entry;
    write!(out, "{:<12} {position:>10} {:<9}", lane.as_str(), word(*state))?;
    match header {
        Some(h) => writeln!(out, " {:<24} {:>9} {:<40} {}", h.time, h.bytes, h.event_type, h.id),
        None => writeln!(out),
    }
}

fn write_page(out: &mut dyn Write, entry: &ListedTransaction) -> io::Result<()> {
    writeln!(out, "lane          {}", entry.lane)?;
    writeln!(out, "position      {}", entry.position)?;
    writeln!(out, "state         {}", word(entry.state))?;
    let Some(h) = &entry.header else { return Ok(()) };
    writeln!(out, "id            {}", h.id)?;
    writeln!(out, "accepted      {}", h.time)?;
    writeln!(out, "type          {}", h.event_type)?;
    writeln!(out, "content type  {}", h.content_type)?;
    writeln!(out, "sender        {}", h.sender)?;
    writeln!(out, "bytes         {}", h.bytes)?;
    if let (Some(epoch), Some(sequence)) = (h.epoch, h.sequence) {
        writeln!(out, "epoch         {epoch}")?;
        writeln!(out, "sequence      {sequence}")?;
    }
    writeln!(out, "digest        {}", h.digest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::store_for_tests::{Daemon, Store};
    use pgw_core::transaction::rfc3339;

    fn ask(daemon: &Daemon, command: &Outbox) -> (Exit, String) {
        let mut out = Vec::new();
        let exit = run(&daemon.socket, command, &mut out, &mut Vec::new());
        (exit, String::from_utf8(out).unwrap())
    }

    #[test]
    fn lists_and_pages() {
        let store = Store::with_lost(5, 1, &[4]);
        store.confirm(2);
        let [third, fifth] = [3, 5].map(|position| store.record(position).transaction);
        let daemon = Daemon::start(store, serde_json::Value::Null);
        let list = |from, json| Outbox::List(List { lane: None, from, limit: 50, json });
        let (exit, text) = ask(&daemon, &list(None, false));
        assert_eq!(exit, Exit::Done);
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines[0][..4], ["lane", "position", "state", "accepted"]);
        assert_eq!(
            lines[1],
            ["clinical", "3", "waiting", &rfc3339(third.time), "6", "t", &third.id.to_string()]
        );
        assert_eq!(lines[2], ["clinical", "4", "damaged"]);
        assert_eq!(lines.len(), 4);
        let (_, text) = ask(&daemon, &list(Some(1), true));
        let first: serde_json::Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
        assert_eq!((first["state"].as_str(), first["bytes"].as_u64()), (Some("confirmed"), Some(6)));

        let show = |which, json| Outbox::Show(Show { lane: None, which, json });
        let (exit, page) = ask(&daemon, &show(TransactionRef::Position(5), false));
        assert_eq!(exit, Exit::Done);
        assert!(page.contains(&format!("id            {}\n", fifth.id)), "{page}");
        assert_eq!(ask(&daemon, &show(TransactionRef::Position(6), true)), (Exit::Refused, String::new()));
    }
}
