//! TLS at the doors: certificates and keys from files, read at the start and whenever they change.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};

use crate::clock::TrustedClock;
pub use crate::pem::TlsError;
use crate::pem::{self, Pair};
pub use crate::watched::{Reloading, Stamp, keep_reading, stamp};

/// How long a handshake may take.
pub const HANDSHAKE_TIME: Duration = Duration::from_secs(10);

/// PEM files of one door.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Files {
    /// Our certificate, with its intermediates.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// The CA of the clients' certificates; none: clients show no certificate.
    pub client_ca: Option<PathBuf>,
}

impl Files {
    fn stamp(&self) -> Stamp {
        stamp([&self.certificate, &self.key].into_iter().chain(&self.client_ca).map(PathBuf::as_path))
    }
}

/// Whether a client must show a certificate when there is a CA for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Clients {
    /// It must.
    Required,
    /// It may; otherwise the client is identified in another way.
    Offered,
}

/// Reads the files. Blocking.
///
/// # Errors
/// [`TlsError`] names the file.
pub fn server(
    files: &Files,
    clients: Clients,
    protocols: &[&[u8]],
    clock: &Arc<TrustedClock>,
) -> Result<ServerConfig, TlsError> {
    let Pair { chain, key, .. } = Pair::load("certificate", &files.certificate, &files.key)?;
    let builder = ServerConfig::builder_with_details(pem::provider(), Arc::<TrustedClock>::clone(clock))
        .with_safe_default_protocol_versions()
        .map_err(TlsError::Rustls)?;
    let builder = match &files.client_ca {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let roots = pem::roots("clients' CA", path)?;
            let mut verifier = WebPkiClientVerifier::builder_with_provider(roots, pem::provider());
            if clients == Clients::Offered {
                verifier = verifier.allow_unauthenticated();
            }
            let verifier = verifier.build();
            builder.with_client_cert_verifier(
                verifier.map_err(|source| TlsError::Verifier { path: path.clone(), source })?,
            )
        }
    };
    let mut config = builder.with_single_cert(chain, key).map_err(TlsError::Rustls)?;
    config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
    // A resumed session would skip the check of the client's certificate after its CA was replaced.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// The certificates of an open door whose clients show one where there is a CA for them.
pub type Certificates = Reloading<ServerConfig, TlsError>;

/// Reads the certificates of a door, named for the log as in [`Reloading::load`]. Blocking.
///
/// # Errors
/// [`TlsError`] names the file.
pub fn certificates(
    name: &'static str,
    files: Files,
    clock: Arc<TrustedClock>,
) -> Result<Certificates, TlsError> {
    let watched = files.clone();
    Reloading::load(name, move || watched.stamp(), move || server(&files, Clients::Required, &[], &clock))
}
