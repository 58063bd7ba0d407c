//! `practice-gateway submit`: takes files in; success means durable.

use std::fs::File;
use std::io::{self, Read as _, Write};
use std::path::{Path, PathBuf};

use clap::Args;

use crate::cli::exit::{Exit, complain, failed};
use crate::ingest::control::client::Client;
use crate::ingest::control::{Reply, Request};
use crate::transaction::Lane;

/// No outbox takes more; a stream that never ends must not fill the memory.
const MOST_BYTES: u64 = 256 << 20;

/// Takes files in. Exit 0: each is on stable storage. 75: not now, try again. 65: refused. 69: no daemon.
#[derive(Debug, Clone, Args)]
pub struct Submit {
    /// The lane that they go to.
    #[arg(long)]
    pub lane: Lane,
    /// What they are, for example `hl7v2.oru_r01`.
    #[arg(long = "type")]
    pub event_type: String,
    /// Their media type.
    #[arg(long, default_value = "application/octet-stream")]
    pub content_type: String,
    /// A key of your own by which a repetition is recognised; otherwise the content decides. One file only.
    #[arg(long, default_value = "")]
    pub key: String,
    /// Files, in the order in which they are to be stored; `-` is the standard input.
    #[arg(required = true)]
    pub files: Vec<PathBuf>,
}

/// Runs the command: one line for each accepted file, with its id, lane, position and name.
///
/// The files are an order: after one that cannot be stored now, none of the rest is tried. A refused one is reported
/// and left out.
pub fn run(socket: &Path, submit: &Submit, out: &mut dyn Write, err: &mut dyn Write) -> Exit {
    if !submit.key.is_empty() && submit.files.len() > 1 {
        let _ = writeln!(err, "a key names one transaction: give one file with --key");
        return Exit::Usage;
    }
    let mut client = match Client::connect(socket) {
        Ok(client) => client,
        Err(error) => return failed(err, &error),
    };
    let mut worst = Exit::Done;
    for file in &submit.files {
        let name = file.display();
        let body = match read(file) {
            Ok(body) => body,
            Err(error) => {
                let _ = write!(err, "cannot read {name}: ");
                complain(err, &error);
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
        match client.submit(&request, &body) {
            Ok(Reply::Accepted(receipt)) => {
                let note = if receipt.repeated { " (stored before)" } else { "" };
                let (id, lane, position) = (receipt.id, receipt.lane, receipt.position);
                // A reader that has gone does not undo what is stored.
                let _ = writeln!(out, "{id} {lane} {position} {name}{note}");
            }
            Ok(Reply::Refused { temporary: true, reason }) => {
                let _ = writeln!(err, "{name}: not now: {reason}");
                return Exit::Later;
            }
            Ok(Reply::Refused { temporary: false, reason }) => {
                let _ = writeln!(err, "{name}: refused: {reason}");
                worst = Exit::Refused;
            }
            Ok(_) => {
                let _ = writeln!(err, "{name}: the daemon's answer was not understood");
                return Exit::Internal;
            }
            Err(error) => {
                let _ = write!(err, "{name}: ");
                return failed(err, &error);
            }
        }
    }
    worst
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
    use crate::ingest::control::server::tests::{Daemon, Shelf};
    use crate::outbox::Refusal;

    fn submit(daemon: &Daemon, files: &[&Path], key: &str) -> (Exit, String, String) {
        let command = Submit {
            lane: Shelf::lane(),
            event_type: "t".into(),
            content_type: "text/plain".into(),
            key: key.into(),
            files: files.iter().map(|file| file.to_path_buf()).collect(),
        };
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let exit = run(&daemon.socket, &command, &mut out, &mut err);
        (exit, String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap())
    }

    #[test]
    fn the_exit_code_says_what_became_of_them() {
        let daemon = Daemon::start(Shelf::default(), serde_json::Value::Null);
        let directory = tempfile::tempdir().unwrap();
        let [one, large, two] = ["one", "large", "two"].map(|name| directory.path().join(name));
        std::fs::write(&one, "1").unwrap();
        std::fs::write(&large, [b'x'; 1001]).unwrap();
        std::fs::write(&two, "2").unwrap();

        let (exit, out, err) = submit(&daemon, &[&one, &two], "");
        assert_eq!((exit, err.as_str()), (Exit::Done, ""));
        let second = format!("{} clinical 2 {}", daemon.shelf.record(2).transaction.id, two.display());
        assert_eq!(out.lines().nth(1), Some(second.as_str()));
        assert_eq!(out.lines().count(), 2);

        let (exit, out, err) = submit(&daemon, &[&large, &one], "");
        assert_eq!(exit, Exit::Refused);
        assert_eq!(out.lines().count(), 1, "the good one is taken");
        assert!(err.contains("limit of 1000"), "{err}");

        daemon.shelf.refuse(Some(Refusal::Full("no space".into())));
        let (exit, out, err) = submit(&daemon, &[&one, &two], "");
        assert_eq!((exit, out.as_str()), (Exit::Later, ""));
        assert!(err.contains("not now: the outbox has no room"), "{err}");
        daemon.shelf.refuse(None);

        assert_eq!(submit(&daemon, &[&one, &two], "k").0, Exit::Usage);
        let again = submit(&daemon, &[&one], "again");
        assert!(again.0 == Exit::Done && again.1.ends_with(" (stored before)\n"), "{again:?}");
        assert_eq!(submit(&daemon, &[&directory.path().join("none")], "").0, Exit::Files);
    }

    #[test]
    fn no_daemon_is_told_apart() {
        let directory = tempfile::tempdir().unwrap();
        let command = Submit {
            lane: Shelf::lane(),
            event_type: "t".into(),
            content_type: "text/plain".into(),
            key: String::new(),
            files: vec!["-".into()],
        };
        let mut err = Vec::new();
        let exit = run(&directory.path().join("none"), &command, &mut Vec::new(), &mut err);
        assert_eq!(exit, Exit::Unreachable);
        assert!(String::from_utf8(err).unwrap().contains("cannot reach the daemon"));
    }
}
