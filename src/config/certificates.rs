//! Certificates: CA, chain and key become a TLS client, and say who we are and until when.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio_rustls::rustls::client::WebPkiServerVerifier;
use tokio_rustls::rustls::crypto::ring::default_provider;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::time_provider::TimeProvider;
use tokio_rustls::rustls::{self, ClientConfig, RootCertStore};
use x509_cert::der::Decode as _;
use x509_cert::der::asn1::{PrintableStringRef, Utf8StringRef};
use x509_cert::der::oid::ObjectIdentifier;

use crate::config::TlsFiles;
use crate::transaction::{UnixMillis, rfc3339, unix_millis_now};

const COMMON_NAME: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.3");

/// No certificate of ours is older than this program: 2026-01-01.
const BUILT: UnixMillis = 1_767_225_600_000;

/// What is wrong with a certificate or key. The daemon starts all the same, accepts, and says so in health.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// Not there, or not PEM.
    #[error("cannot read {what} from {file}: {reason}")]
    Unreadable {
        /// `a CA certificate`, `a certificate`, `a private key`.
        what: &'static str,
        /// Which.
        file: PathBuf,
        /// Why.
        reason: String,
    },
    /// The key is not the certificate's, or of a kind that is not taken.
    #[error("the key {key} does not go with the certificate {certificate}")]
    Mismatch {
        /// Key file.
        key: PathBuf,
        /// Certificate file.
        certificate: PathBuf,
        /// What rustls said.
        #[source]
        source: rustls::Error,
    },
    /// Not signed by the CA, or not for clients, or not now.
    #[error("the certificate {file} is not accepted by the CA {ca}: {reason}")]
    Untrusted {
        /// Certificate file.
        file: PathBuf,
        /// CA file.
        ca: PathBuf,
        /// Why.
        reason: String,
    },
}

/// What a certificate says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// `{practice}.{gateway}` or the hub's name; empty if there is none.
    pub common_name: String,
    /// Begins.
    pub not_before: UnixMillis,
    /// Ends.
    pub not_after: UnixMillis,
}

/// The clock that certificates are checked by: never before the build nor before a time once trusted, so that a
/// box that wakes up in 1970 still connects.
#[derive(Debug, Clone, Copy)]
pub struct TrustedClock {
    floor: UnixMillis,
}

impl TrustedClock {
    /// `last_trusted` is the last time at which the clock was known to be synchronised; 0: none.
    #[must_use]
    pub fn new(last_trusted: UnixMillis) -> Self {
        Self { floor: last_trusted.max(BUILT) }
    }

    /// The time to check certificates by.
    #[must_use]
    pub fn now(&self) -> UnixMillis {
        unix_millis_now().max(self.floor)
    }
}

impl TimeProvider for TrustedClock {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::from_millis(self.now())))
    }
}

/// A TLS 1.2+ client for these files, with ring, and what its certificate says.
///
/// # Errors
/// [`CertificateError::Unreadable`] or [`CertificateError::Mismatch`]. A certificate that has ended is no error
/// here: the broker says so, in its phase.
pub fn client(files: &TlsFiles, clock: TrustedClock) -> Result<(Arc<ClientConfig>, Facts), CertificateError> {
    let roots = roots(&files.ca_file)?;
    let chain = chain(&files.certificate_file)?;
    let facts = facts(&chain, &files.certificate_file)?;
    let key = PrivateKeyDer::from_pem_file(&files.key_file)
        .map_err(|error| unreadable("a private key", &files.key_file, &error))?;
    let provider = Arc::new(default_provider());
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
        .build()
        .map_err(|error| unreadable("a CA certificate", &files.ca_file, &error))?;
    let config = ClientConfig::builder_with_details(provider, Arc::new(clock))
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_webpki_verifier(verifier).with_client_auth_cert(chain, key))
        .map_err(|source| CertificateError::Mismatch {
            key: files.key_file.clone(),
            certificate: files.certificate_file.clone(),
            source,
        })?;
    Ok((Arc::new(config), facts))
}

/// Whether the other end, with the same CA, would take our certificate now. For `check`.
///
/// # Errors
/// [`CertificateError::Untrusted`], or the file that cannot be read.
pub fn accepted_by_ca(files: &TlsFiles, clock: TrustedClock) -> Result<(), CertificateError> {
    let roots = roots(&files.ca_file)?;
    let chain = chain(&files.certificate_file)?;
    let untrusted = |reason: String| CertificateError::Untrusted {
        file: files.certificate_file.clone(),
        ca: files.ca_file.clone(),
        reason,
    };
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::new(default_provider()))
        .build()
        .map_err(|error| untrusted(error.to_string()))?;
    let Some((leaf, intermediates)) = chain.split_first() else {
        return Err(untrusted(String::from("the file has no certificate")));
    };
    let now = UnixTime::since_unix_epoch(Duration::from_millis(clock.now()));
    verifier
        .verify_client_cert(leaf, intermediates, now)
        .map(|_| ())
        .map_err(|error| untrusted(error.to_string()))
}

/// What the first certificate of a file says.
///
/// # Errors
/// [`CertificateError::Unreadable`].
pub fn read_facts(file: &Path) -> Result<Facts, CertificateError> {
    facts(&chain(file)?, file)
}

impl std::fmt::Display for Facts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}, from {} to {}", self.common_name, rfc3339(self.not_before), rfc3339(self.not_after))
    }
}

fn unreadable(what: &'static str, file: &Path, reason: &dyn std::fmt::Display) -> CertificateError {
    CertificateError::Unreadable { what, file: file.to_owned(), reason: reason.to_string() }
}

fn roots(file: &Path) -> Result<RootCertStore, CertificateError> {
    let mut roots = RootCertStore::empty();
    for certificate in read_all("a CA certificate", file)? {
        roots.add(certificate).map_err(|error| unreadable("a CA certificate", file, &error))?;
    }
    Ok(roots)
}

fn chain(file: &Path) -> Result<Vec<CertificateDer<'static>>, CertificateError> {
    read_all("a certificate", file)
}

fn read_all(what: &'static str, file: &Path) -> Result<Vec<CertificateDer<'static>>, CertificateError> {
    let certificates: Vec<_> = CertificateDer::pem_file_iter(file)
        .and_then(Iterator::collect)
        .map_err(|error| unreadable(what, file, &error))?;
    if certificates.is_empty() {
        return Err(unreadable(what, file, &"there is none in it"));
    }
    Ok(certificates)
}

fn facts(chain: &[CertificateDer<'_>], file: &Path) -> Result<Facts, CertificateError> {
    let wrong = |reason: &dyn std::fmt::Display| unreadable("a certificate", file, reason);
    let leaf = chain.first().ok_or_else(|| wrong(&"there is none in it"))?;
    let certificate = x509_cert::Certificate::from_der(leaf).map_err(|error| wrong(&error))?.tbs_certificate;
    let common_name = certificate
        .subject
        .0
        .iter()
        .flat_map(|part| part.0.iter())
        .find(|attribute| attribute.oid == COMMON_NAME)
        .and_then(|attribute| {
            let value = &attribute.value;
            let utf8 = value.decode_as::<Utf8StringRef<'_>>().map(|text| text.as_str().to_owned());
            utf8.or_else(|_| value.decode_as::<PrintableStringRef<'_>>().map(|text| text.as_str().to_owned()))
                .ok()
        })
        .unwrap_or_default();
    let millis = |moment: x509_cert::time::Time| {
        u64::try_from(moment.to_unix_duration().as_millis()).unwrap_or(UnixMillis::MAX)
    };
    Ok(Facts {
        common_name,
        not_before: millis(certificate.validity.not_before),
        not_after: millis(certificate.validity.not_after),
    })
}
