//! `practice-gateway submit`: exits 0 only once all files are on stable storage, or confirmed if requested.

use std::fs::File;
use std::io::{self, IsTerminal as _, Read as _, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;
use pgw_core::transaction::{Lane, Position};
use pgw_host::exit::{Exit, complain};
use pgw_host::progress::Progress;
use serde_json::json;

use crate::control::client::{self, Client, failed};
use crate::control::{Reply, Request};
use crate::ingest::slip::AcceptanceSlip;
use pgw_host::control::ClientError;

/// No outbox accepts more; an endless stream must not fill the memory.
const MOST_BYTES: u64 = pgw_core::wire::limits::BODY_BYTES;
/// How often the watermark is checked; it is in memory.
const POLL: Duration = Duration::from_millis(100);

/// Submit files in the given order. Exit 0: all are on stable storage. 65: some were refused, the others are stored. 69: no
/// daemon. 74: a file cannot be read; no later file was tried. 75: try later; no later file was tried.
#[derive(Debug, Clone, Args)]
pub struct Submit {
    /// The lane to submit them to.
    #[arg(long)]
    pub lane: Lane,
    /// The CloudEvents type, sent as it is, for example org.practice-gateway.hl7v2.oru_r01.v1.
    #[arg(long = "type")]
    pub event_type: String,
    /// The media type.
    #[arg(long, default_value = "application/octet-stream")]
    pub content_type: String,
    /// A key by which a repetition is recognised; the content hash if left out. One file only.
    #[arg(long, default_value = "")]
    pub key: String,
    /// Wait until the hub has confirmed all files; exit 75 if it has not within --timeout, although they are stored.
    #[arg(long)]
    pub wait_confirmed: bool,
    /// How long to wait for the hub, in seconds.
    #[arg(long, default_value_t = 60, requires = "wait_confirmed")]
    pub timeout: u64,
    /// Print one JSON object per file, and one for all.
    #[arg(long)]
    pub json: bool,
    /// The files, in the order in which they are to be stored; `-` is the standard input.
    #[arg(required = true)]
    pub files: Vec<PathBuf>,
}

/// The result so far: which files were stored and which were refused.
struct Submission<'a> {
    out: &'a mut dyn Write,
    err: &'a mut dyn Write,
    json: bool,
    progress: Progress,
    accepted: usize,
    refused: usize,
    last: Option<Position>,
}

impl Submission<'_> {
    /// A reader that has gone does not undo what is stored.
    fn line(&mut self, text: &str) {
        self.progress.clear(self.err);
        let _ = writeln!(self.out, "{text}");
    }

    fn complain(&mut self, text: &str) {
        self.progress.clear(self.err);
        let _ = writeln!(self.err, "{text}");
    }

    fn accepted(&mut self, name: &str, slip: &AcceptanceSlip) {
        self.accepted += 1;
        self.last = self.last.max(Some(slip.position));
        let AcceptanceSlip { lane, position, repeated, .. } = slip;
        if self.json {
            let mut object = json!(slip);
            object["file"] = json!(name);
            object["outcome"] = json!("accepted");
            self.line(&object.to_string());
        } else {
            let note = if *repeated { " (stored before)" } else { "" };
            self.line(&format!("{} {lane} {position} {name}{note}", slip.id_text()));
        }
    }

    fn not_accepted(&mut self, name: &str, outcome: &str, reason: &str) {
        if self.json {
            self.line(&json!({"file": name, "outcome": outcome, "reason": reason}).to_string());
        }
        let word = if outcome == "later" { "not now" } else { outcome };
        self.complain(&format!("{name}: {word}: {reason}"));
    }

    /// The last line, where there is more than one file or a program reads it.
    fn summary(&mut self, files: usize, confirmed: Option<bool>, exit: Exit) {
        let (accepted, refused) = (self.accepted, self.refused);
        let rest = files - accepted - refused;
        if self.json {
            let object = json!({
                "files": files, "accepted": accepted, "refused": refused, "not_stored": rest, "confirmed": confirmed,
                "exit": exit as u8,
            });
            self.line(&object.to_string());
        } else if files > 1 {
            self.complain(&format!("{accepted} accepted, {refused} refused, {rest} not stored"));
        }
    }
}

/// Runs the command: one line for each accepted file, with its id, lane, position and name.
///
/// The files are an order: after one that cannot be stored now or cannot be read, none of the rest is tried, and the exit
/// code is that one's; the same command again continues where it stopped. A refused one is reported and left out.
pub fn run(socket: &Path, submit: &Submit, out: &mut dyn Write, err: &mut dyn Write) -> Exit {
    if !submit.key.is_empty() && submit.files.len() > 1 {
        let _ = writeln!(err, "--key takes one file only: a key names one transaction");
        return Exit::Usage;
    }
    // Before anything is read that could not be read again.
    if let Err(error) = Client::connect(socket) {
        return failed(err, &error);
    }
    let progress = Progress::new(submit.files.len(), io::stderr().is_terminal());
    let mut report =
        Submission { out, err, json: submit.json, progress, accepted: 0, refused: 0, last: None };
    let mut exit = each(socket, submit, &mut report);
    let mut confirmed = None;
    if submit.wait_confirmed && matches!(exit, Exit::Done | Exit::Refused) {
        let waited = confirmed_within(socket, submit, report.last);
        confirmed = Some(matches!(waited, Ok(true)));
        match waited {
            Ok(true) => {}
            Ok(false) => {
                let seconds = submit.timeout;
                report.complain(&format!("stored, but the hub has not confirmed within {seconds} s"));
                exit = if exit == Exit::Done { Exit::Later } else { exit };
            }
            Err(error) => {
                report.complain("stored; cannot tell whether the hub has confirmed it");
                exit = failed(report.err, &error);
            }
        }
    }
    report.summary(submit.files.len(), confirmed, exit);
    exit
}

fn each(socket: &Path, submit: &Submit, report: &mut Submission<'_>) -> Exit {
    let mut exit = Exit::Done;
    for (index, file) in submit.files.iter().enumerate() {
        report.progress.at(index, Instant::now(), report.err);
        let name = file.display().to_string();
        let body = match read(file) {
            Ok(body) => body,
            Err(error) => {
                report.progress.clear(report.err);
                let _ = write!(report.err, "cannot read {name}: ");
                complain(report.err, &error);
                return Exit::Files;
            }
        };
        let request = Request::Submit {
            lane: submit.lane.clone(),
            event_type: submit.event_type.clone(),
            content_type: submit.content_type.clone(),
            key: submit.key.clone(),
            body_bytes: body.len() as u64,
        };
        // A connection for each: reading may have taken longer than the daemon waits for a request.
        let submitted =
            Client::connect(socket).and_then(|mut client| client::submit(&mut client, &request, &body));
        match submitted {
            Ok(Reply::Accepted(slip)) => report.accepted(&name, &slip),
            Ok(Reply::Refused { temporary: true, reason }) => {
                report.not_accepted(&name, "later", &reason);
                return Exit::Later;
            }
            Ok(Reply::Refused { temporary: false, reason }) => {
                report.refused += 1;
                report.not_accepted(&name, "refused", &reason);
                exit = Exit::Refused;
            }
            Ok(_) => {
                report.complain(&format!("{name}: the daemon's answer was not understood"));
                return Exit::Internal;
            }
            Err(error) => {
                report.progress.clear(report.err);
                let _ = write!(report.err, "{name}: ");
                return failed(report.err, &error);
            }
        }
    }
    report.progress.clear(report.err);
    exit
}

/// Whether the hub has confirmed everything through `last` within the time. Nothing to wait for is confirmed.
fn confirmed_within(socket: &Path, submit: &Submit, last: Option<Position>) -> Result<bool, ClientError> {
    let Some(last) = last else { return Ok(true) };
    let mut client = Client::connect(socket)?;
    let begun = Instant::now();
    loop {
        let mut through = 0;
        client.ask(&Request::Watermark { lane: submit.lane.clone() }, |reply| {
            if let Reply::Watermark { confirmed } = reply {
                through = confirmed;
            }
        })?;
        if through >= last {
            return Ok(true);
        }
        let left = Duration::from_secs(submit.timeout).saturating_sub(begun.elapsed());
        if left.is_zero() {
            return Ok(false);
        }
        std::thread::sleep(POLL.min(left));
    }
}

fn read(file: &Path) -> io::Result<Vec<u8>> {
    let mut body = Vec::new();
    let read = if file.as_os_str() == "-" {
        io::stdin().lock().take(MOST_BYTES + 1).read_to_end(&mut body)?
    } else {
        File::open(file)?.take(MOST_BYTES + 1).read_to_end(&mut body)?
    };
    if read as u64 > MOST_BYTES {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "larger than any outbox takes"));
    }
    Ok(body)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::store_for_tests::{Daemon, Store, lane};

    fn command(files: &[&Path], key: &str) -> Submit {
        Submit {
            lane: lane(),
            event_type: "t".into(),
            content_type: "text/plain".into(),
            key: key.into(),
            wait_confirmed: false,
            timeout: 60,
            json: false,
            files: files.iter().map(|file| file.to_path_buf()).collect(),
        }
    }

    fn submit(daemon: &Daemon, files: &[&Path], key: &str) -> (Exit, String, String) {
        take(daemon, &command(files, key))
    }

    fn take(daemon: &Daemon, command: &Submit) -> (Exit, String, String) {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let exit = run(&daemon.socket, command, &mut out, &mut err);
        (exit, String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap())
    }

    #[test]
    fn the_exit_code_says_what_became_of_them() {
        let daemon = Daemon::start(Store::empty(), serde_json::Value::Null);
        let directory = tempfile::tempdir().unwrap();
        let [one, large, two] = ["one", "large", "two"].map(|name| directory.path().join(name));
        std::fs::write(&one, "1").unwrap();
        std::fs::write(&large, [b'x'; 1001]).unwrap();
        std::fs::write(&two, "2").unwrap();

        let (exit, out, err) = submit(&daemon, &[&one, &two], "");
        assert_eq!((exit, err.as_str()), (Exit::Done, "2 accepted, 0 refused, 0 not stored\n"));
        let second = format!("{} clinical 2 {}", daemon.store.record(2).transaction.id, two.display());
        assert_eq!(out.lines().nth(1), Some(second.as_str()));
        assert_eq!(out.lines().count(), 2);

        let (exit, out, err) = submit(&daemon, &[&large, &one], "");
        assert_eq!(exit, Exit::Refused);
        assert_eq!(out.lines().count(), 1, "the good one is taken");
        assert!(
            err.contains("limit of 1000") && err.contains("1 accepted, 1 refused, 0 not stored"),
            "{err}"
        );

        let full = Daemon::start(Store::full(), serde_json::Value::Null);
        let (exit, out, err) = submit(&full, &[&one, &two], "");
        assert_eq!((exit, out.as_str()), (Exit::Later, ""));
        assert!(err.contains("not now: the store is full") && err.contains("2 not stored"), "{err}");
        assert_eq!(err.matches("not now").count(), 1, "the second was not tried: {err}");

        assert_eq!(submit(&daemon, &[&one, &two], "k").0, Exit::Usage);
        assert!(submit(&daemon, &[&one], "again").1.ends_with("/one\n"), "another key, another transaction");
        let again = submit(&daemon, &[&one], "again");
        assert!(again.0 == Exit::Done && again.1.ends_with(" (stored before)\n"), "{again:?}");
        assert_eq!(submit(&daemon, &[&directory.path().join("none")], "").0, Exit::Files);
    }

    #[test]
    fn no_daemon_is_told_apart() {
        let directory = tempfile::tempdir().unwrap();
        let mut err = Vec::new();
        let exit =
            run(&directory.path().join("none"), &command(&[Path::new("-")], ""), &mut Vec::new(), &mut err);
        assert_eq!(exit, Exit::Unreachable);
        assert!(String::from_utf8(err).unwrap().contains("cannot reach the daemon"));
    }

    #[test]
    fn an_unreadable_file_stops_the_rest_and_the_same_again_continues() {
        let daemon = Daemon::start(Store::empty(), serde_json::Value::Null);
        let directory = tempfile::tempdir().unwrap();
        let [one, none, two] = ["one", "none", "two"].map(|name| directory.path().join(name));
        std::fs::write(&one, "1").unwrap();
        std::fs::write(&two, "2").unwrap();
        let (exit, out, err) = submit(&daemon, &[&one, &none, &two], "");
        assert_eq!((exit, out.lines().count()), (Exit::Files, 1));
        assert!(
            err.contains("cannot read") && err.ends_with("1 accepted, 0 refused, 2 not stored\n"),
            "{err}"
        );
    }

    #[test]
    fn confirmed_means_that_the_hub_has_said_so() {
        let daemon = Daemon::start(Store::empty(), serde_json::Value::Null);
        let directory = tempfile::tempdir().unwrap();
        let one = directory.path().join("one");
        std::fs::write(&one, "1").unwrap();
        let waiting = Submit { wait_confirmed: true, timeout: 0, ..command(&[&one], "first") };
        let (exit, out, err) = take(&daemon, &waiting);
        assert_eq!((exit, out.lines().count()), (Exit::Later, 1), "it is stored all the same");
        assert_eq!(err, "stored, but the hub has not confirmed within 0 s\n");
        daemon.store.confirm(1);
        let second = Submit { key: "second".into(), ..waiting };
        assert_eq!(take(&daemon, &second).0, Exit::Later, "the one before it is confirmed, and it is not");
        let patient = Submit { key: "third".into(), timeout: 60, ..second };
        let store = daemon.store.clone();
        let hub = std::thread::spawn(move || {
            while store.count() < 3 {
                std::thread::yield_now();
            }
            store.confirm(3);
        });
        let (exit, _, err) = take(&daemon, &patient);
        assert_eq!((exit, err.as_str()), (Exit::Done, ""));
        hub.join().unwrap();
    }

    #[test]
    fn a_program_reads_objects() {
        let daemon = Daemon::start(Store::empty(), serde_json::Value::Null);
        let directory = tempfile::tempdir().unwrap();
        let [one, large] = ["one", "large"].map(|name| directory.path().join(name));
        std::fs::write(&one, "1").unwrap();
        std::fs::write(&large, [b'x'; 1001]).unwrap();
        let (exit, out, _) = take(&daemon, &Submit { json: true, ..command(&[&one, &large], "") });
        let objects: Vec<serde_json::Value> =
            out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let [stored, refused, all] = &objects[..] else { panic!("{out}") };
        assert_eq!((stored["outcome"].as_str(), stored["position"].as_u64()), (Some("accepted"), Some(1)));
        assert_eq!(stored["file"].as_str(), one.to_str());
        assert_eq!(refused["outcome"], "refused");
        let numbers =
            ["files", "accepted", "refused", "not_stored", "exit"].map(|key| all[key].as_u64().unwrap());
        assert_eq!((exit, numbers), (Exit::Refused, [2, 1, 1, 0, 65]));
        assert!(all["confirmed"].is_null());
    }
}
