//! The real daemon under the power-cut rig (`tests/powercut/README.md`).
//!
//! ```text
//! powercut-daemon run   GATEWAY DIR SOCKET SECONDS SEED   runs it, feeds it through the control socket and MLLP
//! powercut-daemon check GATEWAY DIR EVENTS                exit 0, or a verdict word and exit 1
//! ```
//!
//! Events, one per line: `ack LANE POSITION ID KEY` for the control socket, `mllp KEY` for a positive acknowledgment.
//! `check` starts the daemon on the image, lets it verify its chain, submits something new, stops it by SIGTERM, then
//! opens the outbox itself and looks for everything that was acknowledged.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)] // a workload: any surprise ends it

#[path = "../../harness/ports.rs"]
mod ports;

use std::collections::{HashMap, HashSet};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio, exit};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use pgw_core::transaction::Lane;
use pgw_gateway::config::GatewayConfig;
use pgw_gateway::control::client::{self, Client};
use pgw_gateway::control::{Reply, Request};
use pgw_gateway::ingest::slip::AcceptanceSlip;
use pgw_outbox::{Outbox, OutboxKey};

const LANES: [&str; 2] = ["clinical", "urgent"];
/// The running daemon, killed before this program ends with a verdict.
static RUNNING: Mutex<Option<rustix::process::Pid>> = Mutex::new(None);
const PATIENCE: Duration = Duration::from_secs(30);

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

/// The body that belongs to a key: a message of up to 20 KiB that names it in MSH-10.
fn body_of(key: &str) -> Vec<u8> {
    let seed = key.bytes().fold(7, |h: u64, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
    let mut random = Random(seed);
    let most = if random.next().is_multiple_of(8) { 20_000 } else { 1500 };
    let filler: String =
        (0..random.next() % most).map(|_| char::from(b'a' + (random.next() % 26) as u8)).collect();
    format!("MSH|^~\\&|CUT|WARD|GW|GP|20261122||ORU^R01|{key}|P|2.4\rOBX|1|TX|||{filler}\r").into_bytes()
}

/// A daemon with its own configuration; killed when dropped.
struct Daemon {
    child: Child,
    folder: tempfile::TempDir,
    mllp: u16,
}

impl Daemon {
    fn start(gateway: &str, directory: &Path) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let key = folder.path().join("outbox.key");
        let mut file =
            std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&key).unwrap();
        writeln!(file, "{}", "07".repeat(32)).unwrap();
        pgw_host::secret::make_signing_key(&folder.path().join("signing.key")).unwrap();
        let mllp = ports::reserve();
        let configuration = format!(
            "practice = \"B86022\"\ngateway = \"gw1\"\ndata_directory = \"{data}\"\noutbox_key_file = \"outbox.key\"\n\
             signing_key_file = \"signing.key\"\n\
             [control]\nsocket = \"control.sock\"\n\
             [[lane]]\nname = \"clinical\"\n[[lane]]\nname = \"urgent\"\nurgent = true\n\
             [[mllp]]\nlisten = \"127.0.0.1:{mllp}\"\nlane = \"clinical\"\n\
             [outbox]\nsegment_records = 64\nsegment_bytes = 1_048_576\nlimit_bytes = 400_000_000\nmin_free_bytes = 1_048_576\n\
             min_free_percent = 1\nmax_body_bytes = 1_000_000\nqueue_bytes = 16_000_000\n\
             [uplink]\nupstreams = [\"127.0.0.1:1\"]\nca_file = \"none\"\ncertificate_file = \"none\"\nkey_file = \"none\"\n\
             confirm = \"puback\"\n[log]\nlevel = \"warn\"\n",
            data = directory.join("data").display()
        );
        std::fs::write(folder.path().join("gateway.toml"), configuration).unwrap();
        let log = std::fs::File::create(folder.path().join("log")).unwrap();
        let child = Command::new(gateway)
            .args(["run", "--config"])
            .arg(folder.path().join("gateway.toml"))
            .stdout(Stdio::from(log.try_clone().unwrap()))
            .stderr(Stdio::from(log))
            .spawn()
            .unwrap();
        *RUNNING.lock().unwrap() = Some(rustix::process::Pid::from_child(&child));
        let mut daemon = Self { child, folder, mllp };
        let until = Instant::now() + PATIENCE;
        while Client::connect(&daemon.socket()).is_err() {
            if daemon.child.try_wait().unwrap().is_some() || Instant::now() > until {
                fail("NOSTART", &daemon.log());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        daemon
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("control.sock")
    }

    fn log(&self) -> String {
        let log = std::fs::read_to_string(self.folder.path().join("log")).unwrap();
        log.lines().rev().take(3).collect::<Vec<_>>().join(" / ")
    }

    /// Stops it as systemd would and opens its store.
    fn stop(mut self) -> (Outbox, tempfile::TempDir) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        let until = Instant::now() + PATIENCE;
        while self.child.try_wait().unwrap().is_none() {
            if Instant::now() > until {
                fail("NOSTOP", &self.log());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        *RUNNING.lock().unwrap() = None;
        let config = GatewayConfig::load(&self.folder.path().join("gateway.toml")).unwrap();
        let outbox = Outbox::open(config.outbox, OutboxKey::new([7; 32]));
        let folder = std::mem::replace(&mut self.folder, tempfile::tempdir().unwrap());
        (outbox.unwrap_or_else(|error| fail("OPENFAIL", &format!("{error:?}"))), folder)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn submit(client: &mut Client, lane: &Lane, key: &str) -> AcceptanceSlip {
    let body = body_of(key);
    let request = Request::Submit {
        lane: lane.clone(),
        event_type: String::from("powercut"),
        content_type: String::from("application/hl7-v2+er7"),
        key: key.to_owned(),
        body_bytes: body.len() as u64,
    };
    match client::submit(client, &request, &body) {
        Ok(Reply::Accepted(slip)) => slip,
        other => fail("STUCK", &format!("{key} was answered with {other:?}")),
    }
}

fn tell(events: &mut BufReader<UnixStream>, line: &str) {
    writeln!(events.get_mut(), "{line}").unwrap();
    events.read_line(&mut String::new()).unwrap();
}

fn run(gateway: &str, directory: &Path, socket: &str, seconds: u64, seed: &str) {
    let daemon = Daemon::start(gateway, directory);
    let until = Instant::now() + Duration::from_secs(seconds);
    let connect = || BufReader::new(UnixStream::connect(socket).unwrap());
    let mut threads = Vec::new();
    for feeder in 0..6 {
        let (mut events, control, seed) = (connect(), daemon.socket(), seed.to_owned());
        threads.push(std::thread::spawn(move || {
            let lane = Lane::new(LANES[usize::from(feeder % 3 == 0)]).unwrap();
            let mut client = Client::connect(&control).unwrap();
            for number in 0.. {
                if Instant::now() > until {
                    return number;
                }
                let key = format!("{seed}c{feeder}-{number}");
                let slip = submit(&mut client, &lane, &key);
                tell(&mut events, &format!("ack {lane} {} {} {key}", slip.position, slip.id_text()));
            }
            0
        }));
    }
    for feeder in 0..6 {
        let (mut events, port, seed) = (connect(), daemon.mllp, seed.to_owned());
        threads.push(std::thread::spawn(move || {
            let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            for number in 0.. {
                if Instant::now() > until {
                    return number;
                }
                let key = format!("{seed}m{feeder}-{number}");
                stream.write_all(&[b"\x0b", &body_of(&key)[..], b"\x1c\r"].concat()).unwrap();
                let mut answer = Vec::new();
                while !answer.ends_with(b"\x1c\r") {
                    let mut piece = [0; 1500];
                    let length = stream.read(&mut piece).unwrap();
                    assert!(length > 0, "the daemon closed the connection");
                    answer.extend_from_slice(&piece[..length]);
                }
                let text = String::from_utf8_lossy(&answer);
                assert!(text.contains(&format!("MSA|AA|{key}")), "{text}");
                tell(&mut events, &format!("mllp {key}"));
            }
            0
        }));
    }
    let all: u64 = threads.into_iter().map(|thread| thread.join().unwrap()).sum();
    println!("acknowledged {all}; {}", daemon.log());
}

fn check(gateway: &str, directory: &Path, events: &str) {
    let mut acknowledged: HashMap<String, Vec<(u64, String, String)>> = HashMap::new();
    let mut mllp: HashSet<String> = HashSet::new();
    for line in std::fs::read_to_string(events).unwrap().lines() {
        match line.split(' ').collect::<Vec<_>>()[..] {
            ["ack", lane, position, id, key] => {
                let position = position.parse().unwrap();
                acknowledged.entry(lane.to_owned()).or_default().push((
                    position,
                    id.to_owned(),
                    key.to_owned(),
                ));
            }
            ["mllp", key] => drop(mllp.insert(key.to_owned())),
            _ => panic!("event {line}"),
        }
    }
    let promised = mllp.len() + acknowledged.values().map(Vec::len).sum::<usize>();
    let daemon = Daemon::start(gateway, directory);
    let mut client = Client::connect(&daemon.socket()).unwrap();
    let verified = client.ask(&Request::Verify { lane: None }, |reply| {
        if let Reply::Verified(verdict) = reply
            && !verdict.ok
        {
            fail("CHAIN", &format!("{verdict:?}"));
        }
    });
    verified.unwrap_or_else(|error| fail("CHAIN", &error.to_string()));
    for name in LANES {
        let lane = Lane::new(name).unwrap();
        if let Some((position, id, key)) = acknowledged.get(name).and_then(|all| all.last()) {
            let slip = submit(&mut client, &lane, key);
            if !slip.repeated || slip.position != *position || slip.id_text() != *id {
                fail(
                    "FORGOTTEN",
                    &format!("the repetition of {key}, position {position}, was answered with {slip:?}"),
                );
            }
        }
        if submit(&mut client, &lane, &format!("future-{name}")).repeated {
            fail("STUCK", "something new was taken for a repetition");
        }
    }
    drop(client);
    let (outbox, _folder) = daemon.stop();
    let mut found = 0;
    for name in LANES {
        let lane = Lane::new(name).unwrap();
        let tail = *outbox.tail(&lane).unwrap().borrow();
        let mut at: HashMap<u64, (String, String)> = HashMap::new();
        let (mut next, mut keys) = (1, HashSet::new());
        while next <= tail {
            let read = outbox.read(&lane, next, 100, 1 << 20);
            for stored in read
                .unwrap_or_else(|error| fail("LOST", &format!("{lane} {next}: {error}; the tail is {tail}")))
            {
                let transaction = stored.transaction;
                if stored.position != next {
                    fail("LOST", &format!("{lane} {next} is not there"));
                }
                if transaction.body.as_bytes() != body_of(&transaction.key) {
                    fail("CORRUPT", &format!("{lane} {next}"));
                }
                if !keys.insert(transaction.key.clone()) {
                    fail("REPEATED", &format!("{lane}: {} is there twice", transaction.key));
                }
                mllp.remove(&transaction.key);
                at.insert(next, (transaction.id.to_string(), transaction.key));
                next += 1;
            }
        }
        found += at.len();
        for (position, id, key) in acknowledged.get(name).into_iter().flatten() {
            match at.get(position) {
                Some((other, _)) if other == id => {}
                other => {
                    fail("LOST", &format!("{lane} {position} {key}: {other:?} is there, the tail is {tail}"))
                }
            }
        }
    }
    if let Some(key) = mllp.iter().next() {
        fail("LOST", &format!("{} acknowledged over MLLP, {key} among them", mllp.len()));
    }
    outbox.close();
    println!("ok acknowledged {promised}, found {found}");
}

fn fail(word: &str, detail: &str) -> ! {
    println!("{word} {detail}");
    if let Some(pid) = *RUNNING.lock().unwrap() {
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
    exit(1)
}

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["run", gateway, directory, socket, seconds, seed] => {
            run(gateway, Path::new(directory), socket, seconds.parse().unwrap(), seed);
        }
        ["check", gateway, directory, events] => check(gateway, Path::new(directory), events),
        _ => {
            println!("usage: powercut-daemon run GATEWAY DIR SOCKET SECONDS SEED | check GATEWAY DIR EVENTS");
            exit(64)
        }
    }
}
