//! The door with TLS: who is admitted, and new certificates while it is open.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use pgw_link::clock::TrustedClock;
use pgw_link::server_tls::Files;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::ring::default_provider;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use crate::ingest::mllp::codec::encode;
use crate::ingest::mllp::context::MllpDoorConfig;
use crate::ingest::mllp::door::{MllpDoor, MllpDoorError};
use crate::ingest::mllp::door_tests::{Running, message, open, settings};

const PATIENCE: Duration = Duration::from_secs(20);

struct Ca {
    directory: tempfile::TempDir,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Ca {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("ca.pem"), issuer.pem()).unwrap();
        Self { directory, issuer }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Signs a certificate for `name`, into `{name}.pem` and `{name}.key`.
    fn sign(&self, name: &str) {
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &*self.issuer).unwrap();
        std::fs::write(self.path(&format!("{name}.pem")), certificate.pem()).unwrap();
        std::fs::write(self.path(&format!("{name}.key")), key.serialize_pem()).unwrap();
    }

    fn files(&self, client_ca: bool) -> Files {
        self.sign("localhost");
        let client_ca = client_ca.then(|| self.path("ca.pem"));
        Files { certificate: self.path("localhost.pem"), key: self.path("localhost.key"), client_ca }
    }

    /// One message over TLS: the answer, or `None` if there was none.
    async fn send(&self, door: &Running, client: Option<&Ca>, id: &str) -> Option<Vec<u8>> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(self.path("ca.pem")).unwrap()).unwrap();
        let builder = ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let config = match client {
            None => builder.with_no_client_auth(),
            Some(ca) => {
                ca.sign("sender");
                let chain = vec![CertificateDer::from_pem_file(ca.path("sender.pem")).unwrap()];
                let key = PrivateKeyDer::from_pem_file(ca.path("sender.key")).unwrap();
                builder.with_client_auth_cert(chain, key).unwrap()
            }
        };
        let exchange = async {
            let stream = TcpStream::connect(door.address).await.ok()?;
            let name = ServerName::try_from("localhost").unwrap();
            let mut stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await.ok()?;
            let mut framed = Vec::new();
            encode(&message(id, "AL"), &mut framed);
            stream.write_all(&framed).await.ok()?;
            let mut buffer = vec![0; 2000];
            let read = stream.read(&mut buffer).await.ok()?;
            buffer.truncate(read);
            Some(buffer).filter(|answer| !answer.is_empty())
        };
        timeout(PATIENCE, exchange).await.expect("an answer or a close")
    }
}

fn accepted(answer: Option<Vec<u8>>, id: &str) -> bool {
    answer.is_some_and(|answer| String::from_utf8_lossy(&answer).contains(&format!("MSA|CA|{id}")))
}

async fn guarded(files: &Files) -> Running {
    open(MllpDoorConfig { tls: Some(files.clone()), ..settings() }).await
}

#[tokio::test]
async fn over_tls_each_message_is_answered() {
    let ca = Ca::new("ours");
    let door = guarded(&ca.files(false)).await;
    assert!(accepted(ca.send(&door, None, "1").await, "1"));
    let strangers = Ca::new("strangers'");
    assert_eq!(strangers.send(&door, None, "2").await, None, "it would not believe us");
    // A client without TLS gets no answer, and its bytes count as no message.
    let mut plain = TcpStream::connect(door.address).await.unwrap();
    let mut framed = Vec::new();
    encode(&message("3", ""), &mut framed);
    plain.write_all(&framed).await.unwrap();
    let mut answer = Vec::new();
    let _ = timeout(PATIENCE, plain.read_to_end(&mut answer)).await.unwrap();
    assert!(!answer.contains(&0x0b), "{answer:?}");
    door.counted(|c| c.connections_refused == 2 && c.accepted == 1 && c.received == 1).await;
}

#[tokio::test]
async fn a_large_message_comes_whole_through_tls() {
    let ca = Ca::new("ours");
    let door = guarded(&ca.files(false)).await;
    let id = format!("1|P|2.3|||AL\rOBX|1|TX|{}", "x".repeat(90_000));
    assert!(ca.send(&door, None, &id).await.is_some());
    door.counted(|c| c.accepted == 1).await;
}

#[tokio::test]
async fn with_a_ca_for_senders_only_those_that_it_signed_get_in() {
    let (ca, strangers) = (Ca::new("ours"), Ca::new("strangers'"));
    let door = guarded(&ca.files(true)).await;
    assert!(accepted(ca.send(&door, Some(&ca), "1").await, "1"));
    assert_eq!(ca.send(&door, None, "2").await, None);
    assert_eq!(ca.send(&door, Some(&strangers), "3").await, None);
    door.counted(|c| c.connections_refused == 2 && c.accepted == 1).await;
}

#[tokio::test]
async fn new_certificates_are_taken_while_it_is_open_and_bad_ones_replace_nothing() {
    let (old, new) = (Ca::new("old"), Ca::new("new"));
    let (files, other) = (old.files(false), new.files(false));
    let door = guarded(&files).await;
    std::fs::write(&files.certificate, "nothing").unwrap();
    door.reload.send_modify(|times| *times += 1);
    assert!(accepted(old.send(&door, None, "1").await, "1"));
    std::fs::copy(&other.certificate, &files.certificate).unwrap();
    std::fs::copy(&other.key, &files.key).unwrap();
    door.reload.send_modify(|times| *times += 1);
    let taken = async {
        while !accepted(new.send(&door, None, "2").await, "2") {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, taken).await.unwrap();
    assert_eq!(old.send(&door, None, "3").await, None, "the old one is gone");
}

#[tokio::test]
async fn without_usable_certificates_the_door_stays_shut() {
    let ca = Ca::new("ours");
    let files = ca.files(true);
    std::fs::write(&files.key, "nothing").unwrap();
    let clock = TrustedClock::open(Path::new("/nonexistent"));
    let opened = MllpDoor::listen(MllpDoorConfig { tls: Some(files), ..settings() }, clock).await;
    assert!(matches!(opened, Err(MllpDoorError::Certificates { .. })), "{opened:?}");
}
