//! Certificates and keys from PEM files, for both sides of TLS, with one error type that names the file.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use pgw_core::transaction::UnixMillis;
use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::pki_types::pem::{self, PemObject as _};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::VerifierBuilderError;
use tokio_rustls::rustls::sign::CertifiedKey;
use tokio_rustls::rustls::{self, RootCertStore};
use x509_cert::der::Decode as _;
use x509_cert::der::oid::ObjectIdentifier;

/// `commonName`, RFC 4519 §2.3.
const COMMON_NAME: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.3");

/// What is wrong with the files.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read, or is not PEM.
    #[error("cannot read the {what} from {path}")]
    File {
        /// What it should hold.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The error of the system; [`std::io::ErrorKind::InvalidData`]: of the PEM reader.
        #[source]
        source: std::io::Error,
    },
    /// The file exists, but does not hold what it should.
    #[error("there is no {what} in {path}")]
    Empty {
        /// What it should hold.
        what: &'static str,
        /// The file.
        path: PathBuf,
    },
    /// A certificate that is not X.509.
    #[error("the certificate in {path} cannot be read")]
    Certificate {
        /// The certificate's file.
        path: PathBuf,
        /// The X.509 reader's error.
        #[source]
        source: x509_cert::der::Error,
    },
    /// The key belongs to another certificate.
    #[error("the key in {key} does not belong to the certificate in {certificate}")]
    KeyMismatch {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
    },
    /// rustls does not accept them.
    #[error("the certificates cannot be used")]
    Rustls(#[source] rustls::Error),
    /// rustls cannot verify certificates with this CA.
    #[error("the CA in {path} cannot be used")]
    Verifier {
        /// The CA's file.
        path: PathBuf,
        /// rustls's error.
        #[source]
        source: VerifierBuilderError,
    },
}

/// What a certificate says about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateFacts {
    /// Subject common name; empty if there is none. A gateway's is `{practice}.{gateway}`.
    pub common_name: String,
    /// First moment at which it is valid.
    pub not_before: UnixMillis,
    /// Last moment at which it is valid.
    pub not_after: UnixMillis,
}

impl CertificateFacts {
    /// Reads it from DER.
    ///
    /// # Errors
    /// It is not an X.509 certificate.
    pub fn from_der(der: &[u8]) -> Result<Self, x509_cert::der::Error> {
        let certificate = x509_cert::Certificate::from_der(der)?;
        let body = &certificate.tbs_certificate;
        let common_name = body
            .subject
            .0
            .iter()
            .flat_map(|names| names.0.iter())
            .find(|attribute| attribute.oid == COMMON_NAME)
            .map(|attribute| String::from_utf8_lossy(attribute.value.value()).into_owned())
            .unwrap_or_default();
        let millis = |time: x509_cert::time::Time| {
            u64::try_from(time.to_unix_duration().as_millis()).unwrap_or(u64::MAX)
        };
        Ok(Self {
            common_name,
            not_before: millis(body.validity.not_before),
            not_after: millis(body.validity.not_after),
        })
    }
}

/// The only crypto provider.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// All certificates of a file, in order; at least one. Blocking.
pub(crate) fn certificates(
    what: &'static str,
    path: &Path,
) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let found = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| unreadable(what, path, error))?;
    if found.is_empty() { Err(TlsError::Empty { what, path: path.to_owned() }) } else { Ok(found) }
}

/// The CAs of a file. Blocking.
pub(crate) fn roots(what: &'static str, path: &Path) -> Result<Arc<RootCertStore>, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(what, path)? {
        roots.add(certificate).map_err(TlsError::Rustls)?;
    }
    Ok(Arc::new(roots))
}

/// A certificate with its intermediates, and its key, checked to match.
pub(crate) struct Pair {
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) key: PrivateKeyDer<'static>,
    pub(crate) facts: CertificateFacts,
}

impl Pair {
    /// Reads both files. Blocking.
    pub(crate) fn load(what: &'static str, certificate: &Path, key_file: &Path) -> Result<Self, TlsError> {
        let chain = certificates(what, certificate)?;
        let key = PrivateKeyDer::from_pem_file(key_file)
            .map_err(|error| unreadable("private key", key_file, error))?;
        let facts = match chain.first().map(|first| CertificateFacts::from_der(first)) {
            Some(Ok(facts)) => facts,
            Some(Err(source)) => return Err(TlsError::Certificate { path: certificate.to_owned(), source }),
            None => return Err(TlsError::Empty { what, path: certificate.to_owned() }),
        };
        match CertifiedKey::from_der(chain.clone(), key.clone_key(), &ring::default_provider()) {
            Ok(_) => Ok(Self { chain, key, facts }),
            Err(rustls::Error::InconsistentKeys(_)) => {
                Err(TlsError::KeyMismatch { certificate: certificate.to_owned(), key: key_file.to_owned() })
            }
            Err(other) => Err(TlsError::Rustls(other)),
        }
    }
}

fn unreadable(what: &'static str, path: &Path, error: pem::Error) -> TlsError {
    let path = path.to_owned();
    match error {
        pem::Error::NoItemsFound => TlsError::Empty { what, path },
        pem::Error::Io(source) => TlsError::File { what, path, source },
        other => {
            let source = std::io::Error::new(std::io::ErrorKind::InvalidData, other.to_string());
            TlsError::File { what, path, source }
        }
    }
}
