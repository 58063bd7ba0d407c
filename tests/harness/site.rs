//! A surgery and a centre: the two real programs with their configuration, which tests kill and restart.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use serde_json::Value;

use super::certificates::{CertificateFiles, Certificates};
use super::{eventually_blocking, ports};

const GATEWAY: &str = env!("CARGO_BIN_EXE_practice-gateway");
const HUB: &str = env!("CARGO_BIN_EXE_practice-hub");

/// One gateway and one hub. Both are killed when it is dropped.
pub struct Site {
    directory: tempfile::TempDir,
    /// The gateway's MLLP door.
    pub door: SocketAddr,
    gateway: Option<Child>,
    hub: Option<Child>,
    /// Additional environment for the gateway.
    pub gateway_environment: Vec<(OsString, OsString)>,
    /// Additional environment for the hub.
    pub hub_environment: Vec<(OsString, OsString)>,
}

/// What may differ between tests.
#[derive(Default)]
pub struct SiteOptions {
    /// More lines for gateway.toml, placed before its first table.
    pub gateway_top: String,
    /// More tables (or `[outbox]` and `[uplink]` keys, see [`Site::new`]) for gateway.toml.
    pub outbox: String,
    /// More keys for `[uplink]` of the gateway.
    pub uplink: String,
    /// Another client certificate for the gateway.
    pub certificate: Option<CertificateFiles>,
    /// A directory other than the system's temporary one.
    pub base: Option<PathBuf>,
    /// Another data directory for the gateway; nothing else is in it.
    pub data: Option<PathBuf>,
    /// The hub's list does not have the gateway.
    pub unlisted: bool,
    /// More tables for hub.toml.
    pub hub: String,
}

impl Site {
    /// Writes both configurations and runs both `init`s; starts nothing.
    pub fn new(
        certificates: &Certificates,
        gateway_upstream: u16,
        hub_upstream: u16,
        options: SiteOptions,
    ) -> Self {
        let directory = match &options.base {
            Some(base) => tempfile::tempdir_in(base),
            None => tempfile::tempdir(),
        }
        .expect("a directory");
        let door = SocketAddr::from((Ipv4Addr::LOCALHOST, ports::reserve()));
        let site = Self {
            directory,
            door,
            gateway: None,
            hub: None,
            gateway_environment: Vec::new(),
            hub_environment: Vec::new(),
        };
        let hub_certificate = certificates.client("hub1");
        let quick =
            "backoff_first_loss_seconds = 0.2\nbackoff_base_seconds = 0.1\nbackoff_cap_seconds = 0.5\n";
        let mut hub = String::new();
        let _ = writeln!(
            hub,
            "hub = \"hub1\"\nstore_directory = {:?}\nsigning_key_file = {:?}\ncarry_key_file = {:?}\ngateways_file = {:?}",
            site.store(),
            site.path("signing.key"),
            site.path("carry.key"),
            site.path("gateways.toml")
        );
        let _ = writeln!(
            hub,
            "[control]\nsocket = {:?}\n[uplink]\nupstreams = [\"localhost:{hub_upstream}\"]\nca_file = {:?}",
            site.path("hub.sock"),
            certificates.ca()
        );
        let _ = writeln!(
            hub,
            "certificate_file = {:?}\nkey_file = {:?}\nbackoff_base_seconds = 0.1\nbackoff_cap_seconds = 0.5",
            hub_certificate.certificate, hub_certificate.key
        );
        hub.push_str(&options.hub);
        std::fs::write(site.hub_config(), hub).expect("hub.toml");
        let made = site.hub_command(&["init"]);
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let printed = String::from_utf8_lossy(&made.stdout).into_owned();
        let printed_value = |key: &str| {
            let found = printed.lines().find_map(|line| {
                line.split_once(key).map(|(_, value)| value.trim().trim_matches('"').to_owned())
            });
            found.unwrap_or_else(|| panic!("practice-hub init printed no {key}: {printed}"))
        };
        let (public_key, recipient) = (printed_value("public_key = "), printed_value("recipient = "));

        let certificate = options.certificate.unwrap_or_else(|| certificates.client("B86022.gw1"));
        let mut gateway = String::new();
        let _ = writeln!(gateway, "practice = \"B86022\"\ngateway = \"gw1\"\n{}", options.gateway_top);
        let _ = writeln!(
            gateway,
            "data_directory = {:?}\noutbox_key_file = {:?}\nsigning_key_file = {:?}",
            options.data.clone().unwrap_or_else(|| site.path("data")),
            site.path("outbox.key"),
            site.path("gateway-signing.key")
        );
        let _ = writeln!(gateway, "[control]\nsocket = {:?}", site.path("control.sock"));
        let _ = writeln!(gateway, "[outbox]\nmin_free_percent = 1\n{}", options.outbox);
        let _ = writeln!(
            gateway,
            "[[lane]]\nname = \"clinical\"\n[[mllp]]\nlisten = \"{door}\"\nlane = \"clinical\""
        );
        let _ = writeln!(
            gateway,
            "[uplink]\nupstreams = [\"localhost:{gateway_upstream}\"]\nca_file = {:?}",
            certificates.ca()
        );
        let _ = writeln!(
            gateway,
            "certificate_file = {:?}\nkey_file = {:?}\n{quick}{}",
            certificate.certificate, certificate.key, options.uplink
        );
        let _ = writeln!(
            gateway,
            "[[hub]]\nname = \"hub1\"\npublic_key = \"{public_key}\"\nrecipient = \"{recipient}\""
        );
        std::fs::write(site.gateway_config(), gateway).expect("gateway.toml");
        let made = site.gateway_command(&["init"]);
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        if !options.unlisted {
            site.central_it(&String::from_utf8_lossy(&made.stdout));
        }
        site
    }

    /// Runs at the hub the first `practice-hub gateway` command that a command of the gateway has printed.
    pub fn central_it(&self, printed: &str) {
        let at = printed.find("practice-hub gateway ").unwrap_or_else(|| panic!("no command: {printed}"));
        let words: Vec<&str> =
            printed[at..].lines().next().unwrap_or_default().split_whitespace().skip(1).collect();
        let done = self.hub_command(&words);
        assert!(done.status.success(), "{words:?}: {}", String::from_utf8_lossy(&done.stderr));
    }

    /// A file of the site.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The hub's store.
    pub fn store(&self) -> PathBuf {
        self.path("hub")
    }

    /// gateway.toml.
    pub fn gateway_config(&self) -> PathBuf {
        self.path("gateway.toml")
    }

    /// hub.toml.
    pub fn hub_config(&self) -> PathBuf {
        self.path("hub.toml")
    }

    /// Starts the gateway and waits until its store is open (its control socket answers).
    pub fn start_gateway(&mut self) {
        self.spawn_gateway();
        eventually_blocking("the gateway to answer", Duration::from_secs(30), || self.status());
    }

    /// Starts the gateway without waiting.
    pub fn spawn_gateway(&mut self) {
        assert!(self.gateway.is_none(), "the gateway runs already");
        self.gateway =
            Some(self.spawn(GATEWAY, &self.gateway_config(), "gateway.log", &self.gateway_environment));
    }

    /// Starts the hub.
    pub fn start_hub(&mut self) {
        assert!(self.hub.is_none(), "the hub runs already");
        self.hub = Some(self.spawn(HUB, &self.hub_config(), "hub.log", &self.hub_environment));
    }

    /// Waits until a hub that was started takes commands.
    pub fn wait_for_hub(&self) {
        eventually_blocking("the hub to take commands", Duration::from_secs(30), || {
            std::os::unix::net::UnixStream::connect(self.path("hub.sock")).ok()
        });
    }

    fn spawn(&self, program: &str, config: &Path, log: &str, environment: &[(OsString, OsString)]) -> Child {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.path(log)).expect("a log");
        Command::new(program)
            .args(["run", "--config"])
            .arg(config)
            .envs(environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a log"))
            .stderr(log)
            .spawn()
            .expect("started")
    }

    /// Process id of the gateway.
    pub fn gateway_pid(&self) -> u32 {
        self.gateway.as_ref().expect("a gateway").id()
    }

    /// Process id of the hub.
    pub fn hub_pid(&self) -> u32 {
        self.hub.as_ref().expect("a hub").id()
    }

    /// SIGKILL.
    pub fn kill_gateway(&mut self) {
        kill(self.gateway.take());
    }

    /// SIGKILL.
    pub fn kill_hub(&mut self) {
        kill(self.hub.take());
    }

    /// SIGTERM to both, the gateway first; asserts that both exit with 0.
    pub fn stop(&mut self) {
        self.stop_gateway();
        let hub = self.hub.take();
        self.end("hub", hub);
    }

    /// SIGTERM to the gateway; asserts that it exits with 0.
    pub fn stop_gateway(&mut self) {
        let gateway = self.gateway.take();
        self.end("gateway", gateway);
    }

    fn end(&self, name: &str, child: Option<Child>) {
        let Some(mut child) = child else { return };
        let pid = rustix::process::Pid::from_raw(child.id().cast_signed()).expect("a process");
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("signalled");
        let status = child.wait().expect("waited");
        assert!(status.success(), "the {name} ended with {status}\n{}", self.log(name));
    }

    /// The gateway's exit status, if it has ended.
    pub fn gateway_ended(&mut self) -> Option<std::process::ExitStatus> {
        let ended = self.gateway.as_mut()?.try_wait().expect("waited");
        if ended.is_some() {
            self.gateway = None;
        }
        ended
    }

    /// The hub's exit status, if it has ended.
    pub fn hub_ended(&mut self) -> Option<std::process::ExitStatus> {
        let ended = self.hub.as_mut()?.try_wait().expect("waited");
        if ended.is_some() {
            self.hub = None;
        }
        ended
    }

    /// The log of `gateway` or `hub` so far.
    pub fn log(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(&format!("{name}.log"))).unwrap_or_default()
    }

    /// `practice-gateway WORDS --config ...`.
    pub fn gateway_command(&self, words: &[&str]) -> Output {
        Command::new(GATEWAY)
            .args(words)
            .arg("--config")
            .arg(self.gateway_config())
            .stdin(Stdio::null())
            .output()
            .expect("run")
    }

    /// `practice-hub WORDS --config ...`.
    pub fn hub_command(&self, words: &[&str]) -> Output {
        Command::new(HUB)
            .args(words)
            .arg("--config")
            .arg(self.hub_config())
            .stdin(Stdio::null())
            .output()
            .expect("run")
    }

    /// `practice-gateway status --json`, if the gateway answers.
    pub fn status(&self) -> Option<Value> {
        let output = self.gateway_command(&["status", "--json"]);
        output.status.success().then(|| serde_json::from_slice(&output.stdout).ok()).flatten()
    }

    /// Waits until a number in the status is at least `wanted`; asserts meanwhile that health adds up.
    pub fn wait_for(&self, key: &str, wanted: u64, limit: Duration) {
        let what = format!("{key} >= {wanted}; the gateway's log ends:\n{}", tail(&self.log("gateway")));
        eventually_blocking(&what, limit, || {
            let status = self.status()?;
            adds_up(&status);
            (status[key].as_u64()? >= wanted).then_some(())
        });
    }

    /// Waits for the link to be up or down.
    pub fn wait_for_link(&self, up: bool) {
        eventually_blocking(&format!("link_up = {up}"), Duration::from_secs(60), || {
            (self.status()?["link_up"] == u8::from(up)).then_some(())
        });
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!(
                "gateway.log ends:\n{}\nhub.log ends:\n{}",
                tail(&self.log("gateway")),
                tail(&self.log("hub"))
            );
        }
        kill(self.gateway.take());
        kill(self.hub.take());
    }
}

/// Promise 8: accepted = confirmed + waiting + damaged, in every message.
pub fn adds_up(status: &Value) {
    let number = |key: &str| status[key].as_u64().unwrap_or_else(|| panic!("{key} is missing in {status}"));
    assert_eq!(
        number("accepted_total"),
        number("confirmed_total") + number("waiting") + number("damaged"),
        "health does not add up: {status}"
    );
}

fn kill(child: Option<Child>) {
    if let Some(mut child) = child {
        let _ = child.kill();
        let _ = child.wait();
    }
}

fn tail(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(30)..].join("\n")
}
