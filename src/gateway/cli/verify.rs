//! `practice-gateway verify`: checks the chain over every transaction in the outbox.

use std::io::{IsTerminal as _, Write};
use std::path::Path;

use clap::Args;
use pgw_core::transaction::{Lane, Position};
use pgw_host::exit::Exit;

use crate::control::client::{Client, failed};
use crate::control::verify::LaneVerification;
use crate::control::{Reply, Request};

/// Check the chain over every transaction in the outbox. Exit 0: nothing is missing or altered. 65: something is, and is named.
#[derive(Debug, Clone, Args)]
pub struct Verify {
    /// Check only this lane.
    #[arg(long)]
    pub lane: Option<Lane>,
    /// Print one JSON object per lane.
    #[arg(long)]
    pub json: bool,
}

/// Runs the command. Progress goes to `err` where that is a person's terminal.
pub fn run(socket: &Path, command: &Verify, out: &mut dyn Write, err: &mut dyn Write) -> Exit {
    let mut client = match Client::connect(socket) {
        Ok(client) => client,
        Err(error) => return failed(err, &error),
    };
    let watched = std::io::stderr().is_terminal();
    let mut ok = true;
    let mut shown = None;
    let asked = client.ask(&Request::Verify { lane: command.lane.clone() }, |reply| match reply {
        Reply::Progress { lane, position, tail } if watched => {
            let percent = position * 100 / tail.max(1);
            if shown != Some(percent) {
                shown = Some(percent);
                let _ = write!(err, "\r{lane}: {position} of {tail} ({percent} %)\x1b[K");
            }
        }
        Reply::Verified(verdict) => {
            if shown.take().is_some() {
                let _ = write!(err, "\r\x1b[K");
            }
            ok &= verdict.ok;
            let _ = if command.json {
                serde_json::to_string(&verdict)
                    .map_err(std::io::Error::from)
                    .and_then(|line| writeln!(out, "{line}"))
            } else {
                write_verdict(out, &verdict)
            };
        }
        _ => {}
    });
    match asked {
        Ok(()) if ok => Exit::Done,
        Ok(()) => Exit::Refused,
        Err(error) => failed(err, &error),
    }
}

fn write_verdict(out: &mut dyn Write, verdict: &LaneVerification) -> std::io::Result<()> {
    let LaneVerification { lane, from, through, verified, wrong, missing, .. } = verdict;
    let word = if verdict.ok { "ok" } else { "NOT OK" };
    writeln!(
        out,
        "{lane}: {word}: positions {from} to {through}: {verified} verified, {wrong} wrong, {missing} missing"
    )?;
    for (what, ranges) in [("wrong", &verdict.wrong_ranges), ("missing", &verdict.missing_ranges)] {
        if !ranges.is_empty() {
            writeln!(out, "  {what}: {}", ranges.iter().map(range).collect::<Vec<_>>().join(", "))?;
        }
    }
    match verdict.agrees_with_hub {
        Some(true) => writeln!(out, "  the hub confirmed these transactions")?,
        Some(false) => writeln!(out, "  the hub confirmed ANOTHER chain value at the watermark")?,
        None => {}
    }
    match &verdict.chain {
        Some(chain) => writeln!(out, "  chain over positions {chain}"),
        None => Ok(()),
    }
}

fn range((from, to): &(Position, Position)) -> String {
    if from == to { from.to_string() } else { format!("{from}-{to}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::store_for_tests::{Daemon, Store, lane};

    fn verify(store: Store, json: bool) -> (Exit, String) {
        let daemon = Daemon::start(store, serde_json::Value::Null);
        let mut out = Vec::new();
        let exit = run(&daemon.socket, &Verify { lane: Some(lane()), json }, &mut out, &mut Vec::new());
        (exit, String::from_utf8(out).unwrap())
    }

    #[test]
    fn the_verdict_is_the_exit_code() {
        let (exit, text) = verify(Store::with(10), false);
        assert_eq!(exit, Exit::Done);
        assert!(
            text.starts_with("clinical: ok: positions 1 to 10: 10 verified, 0 wrong, 0 missing\n"),
            "{text}"
        );

        let store = Store::with_lost(10, 2, &[7, 8]);
        let (exit, text) = verify(store.clone(), false);
        assert_eq!(exit, Exit::Refused);
        assert!(text.contains("NOT OK") && text.contains("  missing: 7-8\n"), "{text}");
        let (exit, text) = verify(store, true);
        assert_eq!(exit, Exit::Refused);
        // A line for each lane.
        let value: serde_json::Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
        assert_eq!(value["missing_ranges"], serde_json::json!([[7, 8]]));
    }

    #[test]
    fn altered_records_and_another_chain_at_the_hub_are_named() {
        let found = LaneVerification {
            lane: lane(),
            ok: false,
            from: 1,
            through: 10,
            verified: 7,
            wrong: 1,
            missing: 2,
            wrong_ranges: vec![(4, 4)],
            missing_ranges: vec![(7, 8)],
            agrees_with_hub: Some(false),
            chain: None,
        };
        let mut out = Vec::new();
        write_verdict(&mut out, &found).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert!(text.contains("NOT OK") && text.contains("  wrong: 4\n  missing: 7-8\n"), "{text}");
        assert!(text.contains("ANOTHER chain value"), "{text}");
    }
}
