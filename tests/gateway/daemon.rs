//! The daemon's behaviour towards systemd and operators: ready, watchdog, stopping, exit codes, `init` and `check`.

use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use crate::harness;
use crate::harness::Certificates;
use crate::harness::senders::{connect, exchange, message, positive};
use crate::harness::site::{Site, SiteOptions};

const GATEWAY: &str = env!("CARGO_BIN_EXE_practice-gateway");

fn dead_port() -> u16 {
    harness::ports::reserve()
}

fn site(options: SiteOptions) -> (Site, Certificates) {
    let certificates = Certificates::new();
    let site = Site::new(&certificates, dead_port(), dead_port(), options);
    (site, certificates)
}

/// systemd's end of the notify socket, and what has come there and was not asked about.
struct Systemd {
    socket: UnixDatagram,
    unread: String,
    log: PathBuf,
}

impl Systemd {
    fn new(path: &Path, log: PathBuf) -> Self {
        let socket = UnixDatagram::bind(path).expect("a socket");
        socket.set_read_timeout(Some(Duration::from_millis(100))).expect("set");
        Self { socket, unread: String::new(), log }
    }

    /// Reads messages until one contains `wanted`; what came with others before it counts for the next question.
    fn until(&mut self, wanted: &str, limit: Duration) {
        let start = Instant::now();
        let mut buffer = [0; 4096];
        while start.elapsed() < limit {
            if let Some(at) = self.unread.find(wanted) {
                self.unread.replace_range(at..at + wanted.len(), "");
                return;
            }
            if let Ok(length) = self.socket.recv(&mut buffer) {
                self.unread.push_str(&String::from_utf8_lossy(&buffer[..length]));
                self.unread.push('\n');
            }
        }
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        panic!("systemd was not told {wanted}, but: {}; the gateway's log: {log}", self.unread);
    }
}

fn terminate(child: &mut Child) -> std::process::ExitStatus {
    let pid = rustix::process::Pid::from_raw(child.id().cast_signed()).expect("a process");
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("signalled");
    child.wait().expect("waited")
}

#[test]
fn systemd_is_told_when_it_accepts_that_it_moves_and_that_it_stops() {
    let (site, _certificates) = site(SiteOptions::default());
    let mut systemd = Systemd::new(&site.path("notify"), site.path("gateway.log"));
    let mut child = Command::new(GATEWAY)
        .args(["run", "--config"])
        .arg(site.gateway_config())
        .env("NOTIFY_SOCKET", site.path("notify"))
        .env("WATCHDOG_USEC", "400000")
        .stdin(Stdio::null())
        .stderr(std::fs::File::create(site.path("gateway.log")).expect("a log"))
        .spawn()
        .expect("started");
    systemd.until("READY=1", Duration::from_secs(30));
    // Ready means that the door answers, even with the link down.
    let mut stream = connect(site.door).expect("the door");
    assert!(positive(&exchange(&mut stream, &message(1, 1, 10)).expect("an answer")));
    systemd.until("WATCHDOG=1", Duration::from_secs(10));
    systemd.until("WATCHDOG=1", Duration::from_secs(10));
    systemd.until("STATUS=buffering", Duration::from_secs(60));
    let status = terminate(&mut child);
    assert!(status.success(), "{status}: {}", site.log("gateway"));
    systemd.until("STOPPING=1", Duration::from_secs(1));
    assert!(!site.path("control.sock").exists(), "the socket is left");
}

fn hang_up(pid: u32) {
    let pid = rustix::process::Pid::from_raw(pid.cast_signed()).expect("a process");
    rustix::process::kill_process(pid, rustix::process::Signal::HUP).expect("signalled");
}

#[test]
fn a_reload_before_the_store_is_open_ends_nothing() {
    let (mut site, _certificates) = site(SiteOptions::default());
    let key = std::fs::read(site.path("outbox.key")).expect("the key");
    std::fs::remove_file(site.path("outbox.key")).expect("removed");
    let made = Command::new("mkfifo").args(["-m", "0600"]).arg(site.path("outbox.key")).status();
    assert!(made.expect("mkfifo").success());
    site.spawn_gateway();
    // Opens when the gateway reads its key, and keeps it there.
    let mut pipe = std::fs::OpenOptions::new().write(true).open(site.path("outbox.key")).expect("a reader");
    hang_up(site.gateway_pid());
    std::thread::sleep(Duration::from_millis(100));
    pipe.write_all(&key).expect("the gateway still reads");
    drop(pipe);
    harness::eventually_blocking("a status", Duration::from_secs(30), || {
        assert!(site.gateway_ended().is_none(), "{}", site.log("gateway"));
        site.status()
    });
    site.stop();
}

#[test]
fn a_reload_ends_no_hub() {
    let (mut site, _certificates) = site(SiteOptions::default());
    site.start_hub();
    let said = |what: &str| {
        harness::eventually_blocking(what, Duration::from_secs(30), || {
            site.log("hub").contains(what).then_some(())
        });
    };
    said("The connection to the broker has ended");
    hang_up(site.hub_pid());
    harness::eventually_blocking("the list to be read again", Duration::from_secs(30), || {
        (site.log("hub").matches("Read the list of gateways").count() == 2).then_some(())
    });
    site.stop();
}

#[test]
fn a_second_hub_on_the_same_store_is_told_to_come_later() {
    let (mut site, _certificates) = site(SiteOptions::default());
    site.start_hub();
    harness::eventually_blocking("a hub", Duration::from_secs(30), || {
        site.log("hub").contains("The connection to the broker has ended").then_some(())
    });
    let output = site.hub_command(&["run"]);
    assert_eq!(output.status.code(), Some(75), "{}", text(&output));
    assert!(text(&output).contains("in use by another process"), "{}", text(&output));
    site.stop();
}

#[test]
fn an_export_to_a_file_that_is_there_asks_for_another_name() {
    let (site, _certificates) = site(SiteOptions::default());
    std::fs::write(site.path("taken.age"), "mine").expect("written");
    let to = site.path("taken.age").display().to_string();
    let output = site.gateway_command(&["export", "--to", &to]);
    assert_eq!(output.status.code(), Some(74), "{}", text(&output));
    assert!(
        text(&output).contains("taken.age: this file is there already: name another"),
        "{}",
        text(&output)
    );
    assert_eq!(std::fs::read(&to).expect("the file"), b"mine");
}

#[test]
fn a_second_daemon_on_the_same_store_is_told_to_come_later() {
    let (mut site, _certificates) = site(SiteOptions::default());
    site.start_gateway();
    let output = site.gateway_command(&["run"]);
    let printed = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(75), "{printed}");
    assert!(printed.contains("in use by another process"), "{printed}");
    assert!(site.status().is_some(), "the first one was disturbed");
    site.stop();
}

#[test]
fn a_door_that_is_taken_is_named() {
    let (site, _certificates) = site(SiteOptions::default());
    let _taken = std::net::TcpListener::bind(site.door).expect("the port");
    let output = site.gateway_command(&["run"]);
    let printed = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(69), "{printed}");
    assert!(printed.contains(&site.door.to_string()), "{printed}");
}

#[test]
fn a_log_that_nobody_takes_stops_nothing() {
    let (mut site, _certificates) = site(SiteOptions::default());
    std::os::unix::fs::symlink("/dev/full", site.path("gateway.log")).expect("a link");
    site.start_gateway();
    let mut stream = connect(site.door).expect("the door");
    for number in 0..3 {
        assert!(positive(&exchange(&mut stream, &message(1, number, 100)).expect("an answer")));
    }
    assert_eq!(site.status().expect("a status")["accepted_total"], 3);
    assert!(site.gateway_ended().is_none());
}

/// A program that reads exit codes need not know which command ran.
#[test]
fn a_key_that_cannot_be_read_ends_every_command_with_the_daemons_code() {
    let (site, _certificates) = site(SiteOptions::default());
    let key = site.path("outbox.key");
    std::fs::remove_file(&key).expect("removed");
    std::fs::create_dir(&key).expect("a directory");
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o700)).expect("set");
    let bundle = site.path("bundle.age").display().to_string();
    for words in [
        &["run"][..],
        &["init"],
        &["key", "list"],
        &["key", "rotate"],
        &["repair"],
        &["outbox", "retire"],
        &["outbox", "set-aside"],
        &["export", "--to", &bundle],
    ] {
        let output = site.gateway_command(words);
        let printed = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(78), "{words:?}: {printed}");
        assert!(printed.contains("outbox.key"), "{words:?}: {printed}");
    }
}

#[test]
fn a_key_that_others_may_read_or_that_is_gone_starts_nothing() {
    let (site, _certificates) = site(SiteOptions::default());
    let key = site.path("outbox.key");
    let mode = std::fs::metadata(&key).expect("the key").permissions().mode() & 0o777;
    assert_eq!(mode, 0o600);
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).expect("set");
    let output = site.gateway_command(&["run"]);
    let printed = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(78), "{printed}");
    assert!(printed.contains("0644") && printed.contains("outbox.key"), "{printed}");
    std::fs::remove_file(&key).expect("removed");
    assert_eq!(site.gateway_command(&["run"]).status.code(), Some(78));
    assert!(!site.path("data/outbox").exists(), "the store was touched");
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&[output.stdout.clone(), output.stderr.clone()].concat()).into_owned()
}

#[test]
fn a_credential_of_systemd_goes_before_the_file() {
    let (site, _certificates) = site(SiteOptions::default());
    let before = text(&site.gateway_command(&["check"]));
    std::fs::create_dir(site.path("credentials")).expect("made");
    std::fs::write(site.path("credentials/outbox-key"), "ab".repeat(32)).expect("written");
    let output = Command::new(GATEWAY)
        .args(["check", "--config"])
        .arg(site.gateway_config())
        .env("CREDENTIALS_DIRECTORY", site.path("credentials"))
        .output()
        .expect("run");
    let after = text(&output);
    let line = |printed: &str| printed.lines().find(|line| line.contains("outbox key")).map(str::to_owned);
    assert!(after.contains("credentials/outbox-key"), "{after}");
    assert_ne!(line(&before), line(&after));
}

#[test]
fn init_replaces_no_key_and_says_what_to_escrow() {
    let (site, _certificates) = site(SiteOptions::default());
    for (key, file) in [("outbox.key", true), ("gateway-signing.key", true), ("signing.key", false)] {
        let before = std::fs::read(site.path(key)).expect("the key");
        let again = if file { site.gateway_command(&["init"]) } else { site.hub_command(&["init"]) };
        let printed = text(&again);
        assert!(again.status.success() && printed.contains("exists already, unchanged"), "{printed}");
        assert!(printed.contains("Keep a copy"), "{printed}");
        assert_eq!(std::fs::read(site.path(key)).expect("the key"), before);
    }
}

#[test]
fn check_says_what_is_wrong_and_what_to_do_one_line_each() {
    let (site, _certificates) = site(SiteOptions::default());
    let output = site.gateway_command(&["check"]);
    let printed = text(&output);
    assert!(output.status.success(), "{printed}");
    for what in ["configuration", "outbox key", "store", "signing key", "certificate", "dates", "CA"] {
        assert!(printed.contains(&format!("OK    {what} ")), "{what}: {printed}");
    }
    let output = site.hub_command(&["check"]);
    assert!(output.status.success() && text(&output).contains("OK    signing key"), "{}", text(&output));
}

#[test]
fn check_before_the_first_start_misses_no_directory_that_systemd_creates() {
    let (site, _certificates) = site(SiteOptions::default());
    for (config, socket, gateway) in
        [(site.gateway_config(), "control.sock", true), (site.hub_config(), "hub.sock", false)]
    {
        let check = || {
            let output =
                if gateway { site.gateway_command(&["check"]) } else { site.hub_command(&["check"]) };
            (output.status.code(), text(&output))
        };
        let whole = std::fs::read_to_string(&config).expect("the configuration");
        std::fs::write(&config, whole.replace(socket, &format!("not/yet/{socket}"))).expect("written");
        let (code, printed) = check();
        assert_eq!(code, Some(0), "{printed}");
        assert!(
            printed.contains("NOTE  control socket") && printed.contains("systemd creates it"),
            "{printed}"
        );
        std::fs::write(site.path("somebodys"), "file").expect("written");
        std::fs::write(&config, whole.replace(socket, "somebodys")).expect("written");
        let (code, printed) = check();
        assert_eq!(code, Some(78), "{printed}");
        assert!(printed.contains("FAIL  control socket") && printed.contains("is no socket"), "{printed}");
        std::fs::write(&config, whole).expect("written");
    }
}

#[test]
fn check_says_that_an_open_door_is_open() {
    let (site, certificates) = site(SiteOptions::default());
    let text_before = std::fs::read_to_string(site.gateway_config()).expect("gateway.toml");
    let server = certificates.server();
    let tls = format!("certificate_file = {:?}\nkey_file = {:?}", server.certificate, server.key);
    let ca = format!("{tls}\nclient_ca_file = {:?}", certificates.ca());
    for (more, noted) in [
        (String::new(), true),
        ("allow_addresses = [\"10.0.0.0/8\"]".into(), false),
        (tls.clone(), true),
        (ca, false),
    ] {
        let door = format!("[[mllp]]\nlisten = \"0.0.0.0:2576\"\n{more}\n");
        std::fs::write(site.gateway_config(), format!("{text_before}{door}")).expect("written");
        let output = site.gateway_command(&["check"]);
        let printed = text(&output);
        assert!(output.status.success(), "a note is no failure: {printed}");
        assert_eq!(printed.contains("NOTE  mllp           0.0.0.0:2576: anyone"), noted, "{more}: {printed}");
        assert_eq!(printed.contains("OK    mllp "), more.contains("key_file"), "{printed}");
    }
    let broken = tls.replace("certificate.pem", "none.pem");
    let door = format!("[[mllp]]\nlisten = \"127.0.0.1:2576\"\n{broken}\n");
    std::fs::write(site.gateway_config(), format!("{text_before}{door}")).expect("written");
    for (command, code) in [("check", 78), ("run", 78)] {
        let output = site.gateway_command(&[command]);
        assert_eq!(output.status.code(), Some(code), "{command}: {}", text(&output));
        assert!(text(&output).contains("none.pem"), "{}", text(&output));
    }
}

#[test]
fn check_finds_each_wrong_certificate() {
    type Choose = fn(&Certificates, &Certificates) -> harness::CertificateFiles;
    let wrong: [(&str, Choose); 3] = [
        ("FAIL  certificate ", |fleet, _| fleet.client("B86022.gw2")),
        ("FAIL  dates ", |fleet, _| fleet.expired_client("B86022.gw1")),
        ("FAIL  CA ", |_, strangers| strangers.client("B86022.gw1")),
    ];
    let strangers = Certificates::new();
    for (line, choose) in wrong {
        let certificates = Certificates::new();
        let certificate = Some(choose(&certificates, &strangers));
        let options = SiteOptions { certificate, ..SiteOptions::default() };
        let site = Site::new(&certificates, dead_port(), dead_port(), options);
        let output = site.gateway_command(&["check"]);
        let printed = text(&output);
        assert_eq!(output.status.code(), Some(78), "{printed}");
        let fails = printed.lines().filter(|line| line.starts_with("FAIL")).count();
        assert!(printed.contains(line) && fails == 1 && printed.contains("-> "), "{line}: {printed}");
    }
}

#[test]
fn a_wrong_command_line_ends_with_64_and_help_ends_well() {
    for (words, code) in [(&["fly"][..], 64), (&["run", "--fast"], 64), (&["--help"], 0), (&["--version"], 0)]
    {
        let output = Command::new(GATEWAY).args(words).output().expect("run");
        assert_eq!(output.status.code(), Some(code), "{words:?}: {}", text(&output));
    }
}
