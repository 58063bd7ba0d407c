//! A real Mosquitto as a child process, with mutual TLS.

use std::fs::File;
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use super::{CertificateFiles, Certificates, eventually_blocking, ports};

/// What may differ between tests.
#[derive(Debug, Clone, Default)]
pub struct MosquittoOptions {
    /// Contents of an ACL file; none: everyone may do everything.
    pub acl: Option<String>,
    /// Further lines of the configuration, for example `max_inflight_messages 20`.
    pub extra: String,
    /// Further lines for the listener with TLS: before a listener they would open one on the default port.
    pub listener: String,
    /// A certificate other than one for `localhost`.
    pub server: Option<CertificateFiles>,
    /// A CA other than the fleet's for checking clients.
    pub client_ca: Option<PathBuf>,
}

/// A broker. Dropping it kills it.
pub struct Mosquitto {
    directory: TempDir,
    port: u16,
    plain_port: u16,
    child: Option<Child>,
}

impl Mosquitto {
    /// Starts one that accepts any client of the fleet CA and stores nothing on disk.
    pub fn start(certificates: &Certificates) -> Self {
        Self::start_with(certificates, &MosquittoOptions::default())
    }

    /// Starts one with options.
    pub fn start_with(certificates: &Certificates, options: &MosquittoOptions) -> Self {
        let mut directory = TempDir::with_prefix("pgw-mosquitto-").unwrap();
        let server = options.server.clone().unwrap_or_else(|| certificates.server());
        let ca = options.client_ca.clone().unwrap_or_else(|| certificates.ca());
        // A stranger can take a port between our check and Mosquitto's bind: then try again.
        for _ in 0..5 {
            let (port, plain_port) = (ports::reserve(), ports::reserve());
            let mut conf = format!(
                "user root\npersistence false\nlog_type error\nlog_type warning\nlog_type notice\n\
                 per_listener_settings false\nallow_anonymous true\nmax_queued_messages 0\nmax_inflight_messages 1024\nset_tcp_nodelay true\n\
                 {extra}\n\
                 listener {port} 127.0.0.1\ncafile {ca}\ncertfile {cert}\nkeyfile {key}\n\
                 require_certificate true\nuse_identity_as_username true\n{listener}\n\
                 listener {plain_port} 127.0.0.1\n",
                extra = options.extra,
                listener = options.listener,
                ca = ca.display(),
                cert = server.certificate.display(),
                key = server.key.display(),
            );
            if let Some(acl) = &options.acl {
                let path = directory.path().join("acl");
                std::fs::write(&path, acl).unwrap();
                conf.push_str(&format!("acl_file {}\n", path.display()));
            }
            std::fs::write(directory.path().join("mosquitto.conf"), conf).unwrap();
            let mut broker = Self { directory, port, plain_port, child: None };
            if broker.try_launch() {
                return broker;
            }
            let Self { directory: same, .. } = &mut broker;
            directory = std::mem::replace(same, TempDir::new().unwrap());
        }
        panic!(
            "Mosquitto does not start: {}",
            std::fs::read_to_string(directory.path().join("log")).unwrap()
        );
    }

    fn try_launch(&mut self) -> bool {
        let log = File::options().create(true).append(true).open(self.directory.path().join("log")).unwrap();
        let program = ["/usr/sbin/mosquitto", "/usr/local/sbin/mosquitto"]
            .into_iter()
            .find(|path| std::path::Path::new(path).exists())
            .unwrap_or("mosquitto");
        let child = Command::new(program)
            .arg("-c")
            .arg(self.directory.path().join("mosquitto.conf"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("these tests need Mosquitto: apt-get install mosquitto");
        self.child = Some(child);
        eventually_blocking("Mosquitto listens or gives up", Duration::from_secs(20), || {
            if let Some(child) = &mut self.child
                && child.try_wait().unwrap().is_some()
            {
                return Some(false);
            }
            self.answers().then_some(true)
        })
    }

    /// Whether it serves: a port may be bound by a broker that is about to give up because of another port.
    fn answers(&self) -> bool {
        use std::io::{Read as _, Write as _};
        let Ok(mut stream) = TcpStream::connect(("127.0.0.1", self.plain_port)) else { return false };
        let _ = stream.set_read_timeout(Some(Duration::from_secs(2)));
        // CONNECT of MQTT 3.1.1, a clean session, the client id "probe".
        let connect = b"\x10\x11\0\x04MQTT\x04\x02\0\x0a\0\x05probe";
        let mut answer = [0];
        stream.write_all(connect).is_ok() && stream.read_exact(&mut answer).is_ok() && answer == [0x20]
    }

    /// Its process id, for `/proc`.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().map_or(0, Child::id)
    }

    /// The port of the TLS listener, on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// A second listener without TLS, for the test's own observers.
    pub fn plain_port(&self) -> u16 {
        self.plain_port
    }

    /// SIGKILL: everything in its memory is lost.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Starts it again on the same ports (after [`Mosquitto::kill`], or instead of it).
    pub fn restart(&mut self) {
        self.kill();
        assert!(self.try_launch(), "Mosquitto does not start again: {}", self.log());
    }

    /// Changes the rules and restarts it.
    pub fn set_acl(&mut self, rules: &str) {
        std::fs::write(self.directory.path().join("acl"), rules).unwrap();
        self.restart();
    }

    /// Changes the CA for checking clients and restarts it.
    pub fn set_client_ca(&mut self, ca: &std::path::Path) {
        self.change(|line| line.starts_with("cafile "), &format!("cafile {}", ca.display()));
        self.restart();
    }

    /// Changes a setting of the whole broker and restarts it.
    pub fn set(&mut self, name: &str, value: &str) {
        self.change(|line| line.starts_with(&format!("{name} ")), &format!("{name} {value}"));
        self.restart();
    }

    fn change(&self, which: impl Fn(&str) -> bool, to: &str) {
        let path = self.directory.path().join("mosquitto.conf");
        let conf = std::fs::read_to_string(&path).unwrap();
        let mut lines: Vec<&str> = conf.lines().filter(|line| !which(line)).collect();
        // A listener's settings come after it; the rest before.
        let place = lines.iter().position(|line| line.starts_with("listener ")).unwrap();
        lines.insert(place + usize::from(to.starts_with("cafile ")), to);
        std::fs::write(path, lines.join("\n") + "\n").unwrap();
    }

    /// Its log so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Mosquitto {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprintln!("Mosquitto's log:\n{}", self.log());
        }
    }
}
