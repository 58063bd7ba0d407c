//! TLS at the doors: certificates and keys from files, read at the start and whenever they change.

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use pgw_core::text::chain;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};

use crate::clock::TrustedClock;
pub use crate::pem::TlsError;
use crate::pem::{self, Pair};
pub use crate::watched::{Stamp, keep_reading, stamp};

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
) -> Result<Arc<ServerConfig>, TlsError> {
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
    Ok(Arc::new(config))
}

/// The certificates that a door uses; they can be exchanged while it is open.
pub struct Certificates {
    files: Files,
    clock: Arc<TrustedClock>,
    now: RwLock<(Arc<ServerConfig>, Stamp)>,
}

impl fmt::Debug for Certificates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificates").field("files", &self.files).finish_non_exhaustive()
    }
}

impl Certificates {
    /// Reads the files. Blocking.
    pub fn load(files: Files, clock: Arc<TrustedClock>) -> Result<Self, TlsError> {
        let read = Self::read(&files, &clock)?;
        Ok(Self { files, clock, now: RwLock::new(read) })
    }

    fn read(files: &Files, clock: &Arc<TrustedClock>) -> Result<(Arc<ServerConfig>, Stamp), TlsError> {
        // The stamp is taken first, so that a change during reading is noticed at the next check.
        let stamp = Self::stamp(files);
        Ok((server(files, Clients::Required, &[], clock)?, stamp))
    }

    fn stamp(files: &Files) -> Stamp {
        stamp([&files.certificate, &files.key].into_iter().chain(&files.client_ca).map(PathBuf::as_path))
    }

    /// What the next connection gets.
    pub fn current(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.now.read().unwrap_or_else(PoisonError::into_inner).0)
    }

    /// Rereads the files if they have changed, or in any case when asked to. Unusable files replace nothing. Blocking.
    pub fn renew(&self, always: bool) {
        let stale = {
            let now = self.now.read().unwrap_or_else(PoisonError::into_inner);
            Self::stamp(&self.files) != now.1
        };
        if !always && !stale {
            return;
        }
        match Self::read(&self.files, &self.clock) {
            Ok(read) => {
                *self.now.write().unwrap_or_else(PoisonError::into_inner) = read;
                tracing::info!("Read the certificates of the MLLP door again");
            }
            Err(error) => {
                tracing::error!(error = chain(&error), "The MLLP door keeps the certificates that it has");
            }
        }
    }
}
