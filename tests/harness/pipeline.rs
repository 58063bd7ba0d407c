//! The whole pipeline on the real programs, and the only oracle for every run: what a sender was told is safe must be
//! in the hub's store exactly once, byte for byte, in the order in which that sender got its acknowledgments, on an
//! unbroken chain, with nothing beside it; and health adds up in every status on the way, and in every message at the
//! broker.

use std::path::Path;
use std::time::Duration;

use super::proof::Proof;
use super::senders::{Senders, connect, exchange, message, positive};
use super::site::{Site, SiteOptions, adds_up};
use super::wire::Books;
use super::{Certificates, Fault, FaultProxy, Mosquitto, MosquittoOptions, eventually_blocking};

/// The longest that anything may take.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// A gateway behind a proxy, a broker, and a hub next to the broker.
pub struct Pipeline {
    pub site: Site,
    pub proxy: FaultProxy,
    pub broker: Mosquitto,
    pub certificates: Certificates,
    /// Every health message on the broker.
    pub books: Books,
}

impl Pipeline {
    /// Starts both programs.
    pub fn start(options: SiteOptions) -> Self {
        let mut pipeline = Self::prepare(options, &MosquittoOptions::default());
        pipeline.site.start_hub();
        pipeline.site.start_gateway();
        pipeline
    }

    /// Neither program is running yet.
    pub fn prepare(options: SiteOptions, mosquitto: &MosquittoOptions) -> Self {
        let certificates = Certificates::new();
        let broker = Mosquitto::start_with(&certificates, mosquitto);
        Self::between(certificates, broker, options)
    }

    /// The same with existing certificates and an existing broker.
    pub fn between(certificates: Certificates, broker: Mosquitto, mut options: SiteOptions) -> Self {
        let books = Books::watch(broker.plain_port());
        // Far more often than in practice: each message is checked.
        options.uplink.push_str("[health]\ninterval_seconds = 0.1\n");
        let proxy = FaultProxy::start(broker.port());
        let site = Site::new(&certificates, proxy.port(), broker.port(), options);
        Self { site, proxy, broker, certificates, books }
    }

    /// Cuts the link and refuses new connections; returns when the gateway knows it.
    pub fn cut_off(&self) {
        self.site.wait_for_link(true);
        self.proxy.set(Fault::Refuse);
        self.proxy.cut();
        self.site.wait_for_link(false);
    }

    /// Cuts the link and lets four senders fill the outbox.
    pub fn backlog(&self, each: usize) -> Vec<Vec<Vec<u8>>> {
        self.cut_off();
        let safe = Senders::start(self.site.door, 4, each).join();
        self.site.wait_for("waiting", 4 * each as u64, PATIENCE);
        safe
    }

    /// One connection for each sender, message by message.
    pub fn more_from(&self, senders: usize, numbers: std::ops::Range<usize>) -> Vec<Vec<Vec<u8>>> {
        (0..senders)
            .map(|sender| {
                let mut stream = connect(self.site.door).expect("the door");
                numbers
                    .clone()
                    .map(|number| {
                        let message = message(sender, number + 1, 50);
                        let answer = exchange(&mut stream, &message).expect("an answer");
                        assert!(positive(&answer));
                        message
                    })
                    .collect()
            })
            .collect()
    }

    /// Waits until everything accepted is confirmed; then stops both and compares the hub's files.
    pub fn prove(mut self, safe: &[Vec<Vec<u8>>]) -> Proof {
        let accepted: usize = safe.iter().map(Vec::len).sum();
        self.site.wait_for("accepted_total", accepted as u64, PATIENCE);
        eventually_blocking("everything to be confirmed", PATIENCE, || {
            let status = self.site.status()?;
            adds_up(&status);
            (status["waiting"] == 0).then_some(())
        });
        eventually_blocking("health messages at the broker", PATIENCE, || {
            (self.books.balance() > 0).then_some(())
        });
        self.site.stop();
        let messages = self.books.balance();
        let verified = self.site.hub_command(&["verify"]);
        assert!(verified.status.success(), "{}", String::from_utf8_lossy(&verified.stdout));
        println!("{messages} health messages add up");
        let proof = Proof::of(&self.site.store(), safe).expect("the hub's files");
        println!("{}", proof.json());
        proof
    }

    /// Checks that fresh traffic passes, then asserts the oracle's result.
    pub fn check(self, safe: &[Vec<Vec<u8>>]) {
        let mut safe = safe.to_vec();
        let fresh = message(99, 1, 10);
        let mut stream = connect(self.site.door).expect("the door takes fresh traffic");
        assert!(positive(&exchange(&mut stream, &fresh).expect("an answer to fresh traffic")));
        safe.push(vec![fresh]);
        let proof = self.prove(&safe);
        assert_eq!(proof.lost, 0, "{proof:?}");
        assert_eq!(proof.repeated, 0, "{proof:?}");
        assert_eq!(proof.out_of_order, 0, "{proof:?}");
        assert!(proof.chain_ok, "{proof:?}");
        assert!(proof.accepted > 1, "nothing was accepted: the run proves nothing");
    }
}

/// Copies what is below `from` to `to`.
pub fn copy_directory(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a directory");
    for entry in std::fs::read_dir(from).expect("listed") {
        let path = entry.expect("an entry").path();
        let target = to.join(path.file_name().expect("a name"));
        if path.is_dir() {
            copy_directory(&path, &target);
        } else if path.is_file() {
            std::fs::copy(&path, &target).expect("copied");
        }
    }
}

/// A small generator with a printed seed: `PGW_SEED` repeats the same moments.
pub struct Random(u64);

impl Random {
    /// From `PGW_SEED`, or from the clock.
    pub fn seeded() -> Self {
        let seed = std::env::var("PGW_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or_else(|| {
            std::time::SystemTime::now()
                .duration_since(std::time::UNIX_EPOCH)
                .map_or(1, |d| d.as_nanos() as u64)
        });
        println!("PGW_SEED={seed}");
        Self(seed | 1)
    }

    /// Below `limit`.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

/// If a row ends without `check`, its health messages are checked all the same.
impl Drop for Pipeline {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.books.balance();
        }
    }
}
