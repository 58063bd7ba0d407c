//! The setup: certificates, the broker, and the two real programs with their configuration files.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose};
use serde_json::Value;

use crate::bar::Bar;
use crate::{Arguments, Result, broker, ports, until};

/// The broker's address, and what is needed to connect to it.
pub(crate) struct Broker {
    /// `host:port`.
    pub(crate) address: String,
    ca: PathBuf,
    gateway: (PathBuf, PathBuf),
    hub: (PathBuf, PathBuf),
}

impl Broker {
    /// A broker that is already running elsewhere.
    pub(crate) fn named(arguments: &Arguments, address: &str) -> Result<Self> {
        let file = |path: &Option<PathBuf>| -> Result<PathBuf> {
            Ok(std::fs::canonicalize(path.as_ref().ok_or("a certificate file is missing")?)?)
        };
        Ok(Self {
            address: address.to_owned(),
            ca: file(&arguments.ca)?,
            gateway: (file(&arguments.gateway_certificate)?, file(&arguments.gateway_key)?),
            hub: (file(&arguments.hub_certificate)?, file(&arguments.hub_key)?),
        })
    }

    /// The demonstration's own broker in this process, with mutual TLS and certificates made for this run.
    pub(crate) fn embedded(directory: &Path) -> Result<Self> {
        let tls = directory.join("tls");
        std::fs::create_dir_all(&tls)?;
        let mut params = CertificateParams::new(Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(DnType::CommonName, "Practice Gateway example CA");
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        let ca_file = tls.join("ca.pem");
        std::fs::write(&ca_file, ca.pem())?;
        let issue = |name: &str, hosts: Vec<String>| -> Result<(PathBuf, PathBuf)> {
            let mut params = CertificateParams::new(hosts)?;
            params.distinguished_name.push(DnType::CommonName, name);
            let key = KeyPair::generate()?;
            let certificate = params.signed_by(&key, &ca)?;
            let files = (tls.join(format!("{name}.pem")), tls.join(format!("{name}.key")));
            std::fs::write(&files.0, certificate.pem())?;
            private(&files.1, key.serialize_pem().as_bytes())?;
            Ok(files)
        };
        let server = issue("broker", vec!["localhost".to_owned(), "127.0.0.1".to_owned()])?;
        let gateway = issue("B86022.gw1", Vec::new())?;
        let hub = issue("hub1", Vec::new())?;

        let listen = broker::start(&ca_file, &server.0, &server.1)?;
        Ok(Self { address: format!("localhost:{}", listen.port()), ca: ca_file, gateway, hub })
    }
}

/// The gateway and the hub, each in its own process.
pub(crate) struct Plant {
    /// The gateway's MLLP door.
    pub(crate) door: SocketAddr,
    /// The hub's store.
    pub(crate) store: PathBuf,
    config: PathBuf,
    processes: Vec<(&'static str, Child)>,
    directory: PathBuf,
}

impl Plant {
    /// Creates keys and configuration files, as the programs' own `init` does, and starts both.
    pub(crate) fn start(directory: &Path, broker: &Broker, link: SocketAddr) -> Result<Self> {
        let door = free_address();
        let store = directory.join("hub");
        let (config, hub_config) = (directory.join("gateway.toml"), directory.join("hub.toml"));
        let host = broker.address.rsplit_once(':').map_or("localhost", |(host, _)| host);
        std::fs::write(
            &hub_config,
            format!(
                "hub = \"hub1\"\n\
                 store_directory = {store:?}\n\
                 signing_key_file = {key:?}\n\
                 carry_key_file = {carry:?}\n\
                 gateways_file = {gateways:?}\n\
                 [control]\nsocket = {socket:?}\n\
                 [uplink]\n\
                 upstreams = [{broker:?}]\n\
                 ca_file = {ca:?}\ncertificate_file = {cert:?}\nkey_file = {cert_key:?}\n\
                 backoff_base_seconds = 0.2\nbackoff_cap_seconds = 1.0\n",
                key = directory.join("hub-signing.key"),
                carry = directory.join("hub-carry.key"),
                gateways = directory.join("gateways.toml"),
                socket = directory.join("hub.sock"),
                broker = broker.address,
                ca = broker.ca,
                cert = broker.hub.0,
                cert_key = broker.hub.1,
            ),
        )?;
        let made = own("practice-hub", &["init"], &hub_config).stderr(Stdio::inherit()).output()?;
        let text = String::from_utf8_lossy(&made.stdout).into_owned();
        let public_key = text
            .lines()
            .find_map(|line| {
                line.split_once("public_key = ").map(|(_, key)| key.trim().trim_matches('"').to_owned())
            })
            .ok_or_else(|| format!("practice-hub init printed no public key: {text}"))?;
        std::fs::write(
            &config,
            format!(
                "practice = \"B86022\"\n\
                 gateway = \"gw1\"\n\
                 data_directory = {data:?}\n\
                 outbox_key_file = {key:?}\n\
                 signing_key_file = {signing_key:?}\n\
                 [control]\nsocket = {socket:?}\n\
                 [outbox]\nmin_free_percent = 1\n\
                 [[lane]]\nname = \"clinical\"\n\
                 [[mllp]]\nlisten = \"{door}\"\nlane = \"clinical\"\n\
                 [uplink]\n\
                 upstreams = [\"{host}:{port}\"]\n\
                 ca_file = {ca:?}\ncertificate_file = {cert:?}\nkey_file = {cert_key:?}\n\
                 backoff_first_loss_seconds = 0.5\nbackoff_base_seconds = 0.2\nbackoff_cap_seconds = 1.0\n\
                 [[hub]]\nname = \"hub1\"\npublic_key = \"{public_key}\"\n",
                data = directory.join("gateway"),
                key = directory.join("outbox.key"),
                signing_key = directory.join("gateway-signing.key"),
                socket = directory.join("control.sock"),
                port = link.port(),
                ca = broker.ca,
                cert = broker.gateway.0,
                cert_key = broker.gateway.1,
            ),
        )?;
        let made = own("practice-gateway", &["init"], &config).stderr(Stdio::inherit()).output()?;
        if !made.status.success() {
            return Err("practice-gateway init failed".into());
        }
        let text = String::from_utf8_lossy(&made.stdout).into_owned();
        let add = text
            .lines()
            .find_map(|line| line.trim().strip_prefix("practice-hub "))
            .ok_or_else(|| format!("practice-gateway init printed no command for the hub: {text}"))?;
        let words: Vec<&str> = add.split_whitespace().collect();
        if !own("practice-hub", &words, &hub_config).stdout(Stdio::null()).status()?.success() {
            return Err("practice-hub gateway add failed".into());
        }
        let mut plant = Self { door, store, config, processes: Vec::new(), directory: directory.to_owned() };
        plant.spawn("practice-hub", &hub_config)?;
        let config = plant.config.clone();
        plant.spawn("practice-gateway", &config)?;
        Ok(plant)
    }

    fn spawn(&mut self, program: &'static str, config: &Path) -> Result<()> {
        let log = std::fs::File::create(self.directory.join(format!("{program}.log")))?;
        let child = own(program, &["run"], config).stdout(log.try_clone()?).stderr(log).spawn()?;
        self.processes.push((program, child));
        Ok(())
    }

    /// What `practice-gateway status --json` says.
    pub(crate) fn status(&self) -> Result<Value> {
        let output =
            own("practice-gateway", &["status", "--json"], &self.config).stderr(Stdio::null()).output()?;
        Ok(serde_json::from_slice(&output.stdout).unwrap_or(Value::Null))
    }

    /// Waits until the status meets a condition.
    pub(crate) async fn wait_for(&mut self, what: &str, wanted: impl Fn(&Value) -> bool) -> Result<()> {
        let logs = self.directory.clone();
        until(what, Duration::from_secs(60), || {
            for (program, child) in &mut self.processes {
                if let Some(status) = child.try_wait()? {
                    let log =
                        std::fs::read_to_string(logs.join(format!("{program}.log"))).unwrap_or_default();
                    return Err(format!("{program} ended with {status}:\n{log}").into());
                }
            }
            let output = own("practice-gateway", &["status", "--json"], &self.config)
                .stderr(Stdio::null())
                .output()?;
            Ok(serde_json::from_slice(&output.stdout).is_ok_and(|status| wanted(&status)))
        })
        .await
    }

    /// Shows the backlog being drained until `total` are confirmed.
    pub(crate) async fn drain(&self, what: &'static str, total: u64) -> Result<()> {
        let already = self.status()?["confirmed_total"].as_u64().unwrap_or(0);
        if already >= total {
            println!("   {what} all {total}, while they came in");
            return Ok(());
        }
        let bar = Bar::new(total.saturating_sub(already), what);
        until("the backlog to drain", Duration::from_secs(600), || {
            let confirmed = self.status()?["confirmed_total"].as_u64().unwrap_or(already);
            bar.at(confirmed.saturating_sub(already));
            Ok(confirmed >= total)
        })
        .await?;
        bar.finish();
        Ok(())
    }

    /// Stops both with SIGTERM, the gateway first, and waits for them.
    pub(crate) fn stop(&mut self) -> Result<()> {
        while let Some((program, mut child)) = self.processes.pop() {
            if let Some(pid) = rustix::process::Pid::from_raw(i32::try_from(child.id())?) {
                rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
            }
            let status = child.wait()?;
            if !status.success() {
                return Err(format!("{program} ended with {status}").into());
            }
        }
        Ok(())
    }
}

impl Drop for Plant {
    fn drop(&mut self) {
        for (_, child) in &mut self.processes {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// This file, under the name of one of the two programs.
fn own(program: &str, words: &[&str], config: &Path) -> Command {
    let executable = std::env::current_exe().unwrap_or_else(|_| PathBuf::from("/proc/self/exe"));
    let mut command = Command::new(executable);
    command.arg(program).args(words).arg("--config").arg(config).stdin(Stdio::null());
    command
}

fn free_address() -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, ports::reserve()))
}

fn private(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)?
        .write_all(bytes)
}
