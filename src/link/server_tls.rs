//! TLS at the doors: certificates and keys from files, read at the start and whenever they change.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use tokio_rustls::rustls::crypto::{CryptoProvider, ring as provider};
use tokio_rustls::rustls::pki_types::pem::{self, PemObject as _};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use tokio_rustls::rustls::{RootCertStore, ServerConfig};

use crate::clock::TrustedClock;

/// How long a handshake may take.
pub const HANDSHAKE_TIME: Duration = Duration::from_secs(10);
/// How often the files are looked at.
pub const FILES_INTERVAL: Duration = Duration::from_secs(30);

/// PEM files of one door.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Files {
    /// Ours, with the certificates between it and its CA.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// Who signs the clients' certificates; none: clients show none.
    pub client_ca: Option<PathBuf>,
}

/// What is wrong with the files.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read or has nothing of the kind in it.
    #[error("cannot read {what} from {path}: {reason}")]
    Pem {
        /// Which of them.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// rustls does not take them.
    #[error("the certificates of a door cannot be used: {0}")]
    Rustls(String),
}

/// Whether a client must show a certificate where there is a CA for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Clients {
    /// It must.
    Required,
    /// It may; who it is shows otherwise.
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
    let refused = |error: &dyn fmt::Display| TlsError::Rustls(error.to_string());
    let ring: Arc<CryptoProvider> = Arc::new(provider::default_provider());
    let chain = certificates("the certificate", &files.certificate)?;
    let key = PrivateKeyDer::from_pem_file(&files.key)
        .map_err(|error| unreadable("the private key", &files.key, &error))?;
    let builder = ServerConfig::builder_with_details(Arc::clone(&ring), Arc::<TrustedClock>::clone(clock))
        .with_safe_default_protocol_versions()
        .map_err(|error| refused(&error))?;
    let builder = match &files.client_ca {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let mut roots = RootCertStore::empty();
            for certificate in certificates("the clients' CA", path)? {
                roots.add(certificate).map_err(|error| refused(&error))?;
            }
            let mut verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), ring);
            if clients == Clients::Offered {
                verifier = verifier.allow_unauthenticated();
            }
            builder.with_client_cert_verifier(verifier.build().map_err(|error| refused(&error))?)
        }
    };
    let mut config = builder.with_single_cert(chain, key).map_err(|error| refused(&error))?;
    config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
    // A resumed session would skip the check of the client's certificate after its CA was replaced.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

fn certificates(what: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let found = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| unreadable(what, path, &error))?;
    if found.is_empty() { Err(unreadable(what, path, &pem::Error::NoItemsFound)) } else { Ok(found) }
}

fn unreadable(what: &'static str, path: &Path, error: &pem::Error) -> TlsError {
    TlsError::Pem { what, path: path.to_owned(), reason: error.to_string() }
}

/// Times and sizes of files: tells whether they are others than those that were read.
pub type Stamp = Vec<Option<(SystemTime, u64)>>;

/// Looks at the files. Blocking.
pub fn stamp<'a>(paths: impl IntoIterator<Item = &'a Path>) -> Stamp {
    let look = |path: &Path| {
        let facts = std::fs::metadata(path).ok()?;
        Some((facts.modified().ok()?, facts.len()))
    };
    paths.into_iter().map(look).collect()
}

/// The certificates that a door works with, exchanged while it is open.
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
        // The stamp first: what changes meanwhile is read again at the next look.
        let stamp = Self::stamp(files);
        Ok((server(files, Clients::Required, &[], clock)?, stamp))
    }

    fn stamp(files: &Files) -> Stamp {
        stamp([&files.certificate, &files.key].into_iter().chain(&files.client_ca).map(PathBuf::as_path))
    }

    /// What the next connection is answered with.
    pub fn current(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.now.read().unwrap_or_else(PoisonError::into_inner).0)
    }

    /// Reads the files again, if they are others than before or in any case; what is not usable replaces nothing. Blocking.
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
                tracing::error!(%error, "The MLLP door goes on with the certificates that it has");
            }
        }
    }
}
