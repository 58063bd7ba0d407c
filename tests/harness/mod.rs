//! The basis of the end-to-end tests: new certificates, a real Mosquitto and a proxy that breaks links.
//!
//! Everything listens on loopback, on ports that the system picked, below directories that are deleted afterwards.
#![allow(unreachable_pub, missing_docs, reason = "a kit says what it offers")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test that cannot continue fails"
)]

pub mod adversary;
mod certificates;
mod mosquitto;
pub mod pipeline;
pub mod ports;
#[path = "../../examples/outage/proof.rs"]
pub mod proof;
mod proxy;
pub mod senders;
pub mod shim;
pub mod site;
pub mod wire;

pub use certificates::{CertificateFiles, Certificates};
pub use mosquitto::{Mosquitto, MosquittoOptions};
pub use proxy::{Direction, Fault, FaultProxy};

use std::time::{Duration, Instant};

/// Waits for a condition: polls until `probe` returns something, and fails the test by name after `limit`.
pub async fn eventually<T>(what: &str, limit: Duration, mut probe: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = probe() {
            return found;
        }
        assert!(start.elapsed() < limit, "not within {limit:?}: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// The same for tests without a runtime.
pub fn eventually_blocking<T>(what: &str, limit: Duration, mut probe: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = probe() {
            return found;
        }
        assert!(start.elapsed() < limit, "not within {limit:?}: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
