//! Certificates and keys of the uplink: read, examined, and made into a TLS configuration.
//!
//! `practice-gateway check` uses [`Identity::load`] to say what is wrong before a connection does.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use pgw_core::transaction::UnixMillis;
use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::pki_types::pem::{self, PemObject as _};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::sign::CertifiedKey;
use tokio_rustls::rustls::{self, ClientConfig, RootCertStore};
use x509_cert::der::Decode as _;
use x509_cert::der::oid::ObjectIdentifier;

use super::clock::TrustedClock;

/// `commonName`, RFC 4519 §2.3.
const COMMON_NAME: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.3");

/// PEM files of the connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// The fleet's CA, or several.
    pub ca: PathBuf,
    /// The client certificate, with its intermediates.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// What is wrong with the files.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read, or is not PEM.
    #[error("cannot read {what} from {path}: {reason}")]
    File {
        /// Which of them.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The file is there, but what it should hold is not in it.
    #[error("there is no {what} in {path}")]
    Empty {
        /// Which of them.
        what: &'static str,
        /// Where.
        path: PathBuf,
    },
    /// A certificate that is not X.509.
    #[error("the certificate in {path} cannot be read")]
    Certificate {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: x509_cert::der::Error,
    },
    /// The key is another certificate's.
    #[error("the key in {key} does not belong to the certificate in {certificate}")]
    KeyMismatch {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
    },
    /// rustls does not take them.
    #[error("the certificates cannot be used")]
    Rustls(#[source] rustls::Error),
}

/// What a certificate says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateFacts {
    /// Subject common name; empty where there is none. A gateway's is `{practice}.{gateway}`.
    pub common_name: String,
    /// First moment at which it is valid.
    pub not_before: UnixMillis,
    /// Last one.
    pub not_after: UnixMillis,
}

impl CertificateFacts {
    /// Reads them from DER.
    ///
    /// # Errors
    /// When it is not an X.509 certificate.
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

/// The fleet's CA, our certificate and our key, read and found to fit each other.
pub struct Identity {
    roots: Arc<RootCertStore>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    facts: CertificateFacts,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("facts", &self.facts).finish_non_exhaustive()
    }
}

impl Identity {
    /// Reads the files and checks that the key is the certificate's. Blocking. Whether the certificate is valid
    /// now is not asked here: the other end judges that, and its word names the true reason.
    ///
    /// # Errors
    /// [`TlsError`] names the file.
    pub fn load(files: &TlsFiles) -> Result<Self, TlsError> {
        let mut roots = RootCertStore::empty();
        for certificate in certificates("CA certificate", &files.ca)? {
            roots.add(certificate).map_err(TlsError::Rustls)?;
        }
        let chain = certificates("client certificate", &files.certificate)?;
        let key = PrivateKeyDer::from_pem_file(&files.key).map_err(|error| match error {
            pem::Error::NoItemsFound => TlsError::Empty { what: "private key", path: files.key.clone() },
            other => unreadable("the private key", &files.key, &other),
        })?;
        let facts = match chain.first().map(|first| CertificateFacts::from_der(first)) {
            Some(Ok(facts)) => facts,
            Some(Err(source)) => {
                return Err(TlsError::Certificate { path: files.certificate.clone(), source });
            }
            None => {
                return Err(TlsError::Empty { what: "client certificate", path: files.certificate.clone() });
            }
        };
        match CertifiedKey::from_der(chain.clone(), key.clone_key(), &ring::default_provider()) {
            Ok(_) => {}
            Err(rustls::Error::InconsistentKeys(_)) => {
                return Err(TlsError::KeyMismatch {
                    certificate: files.certificate.clone(),
                    key: files.key.clone(),
                });
            }
            Err(other) => return Err(TlsError::Rustls(other)),
        }
        Ok(Self { roots: Arc::new(roots), chain, key, facts })
    }

    /// What our certificate says.
    #[must_use]
    pub fn facts(&self) -> &CertificateFacts {
        &self.facts
    }

    /// TLS 1.2 and 1.3 with ring, the fleet's CA and our certificate, judged by the trusted clock.
    ///
    /// # Errors
    /// [`TlsError::Rustls`].
    pub fn client_config(&self, clock: Arc<TrustedClock>) -> Result<Arc<ClientConfig>, TlsError> {
        let provider: Arc<CryptoProvider> = Arc::new(ring::default_provider());
        let mut config = ClientConfig::builder_with_details(provider, clock)
            .with_safe_default_protocol_versions()
            .map_err(TlsError::Rustls)?
            .with_root_certificates(self.roots.clone())
            .with_client_auth_cert(self.chain.clone(), self.key.clone_key())
            .map_err(TlsError::Rustls)?;
        // A resumed session would skip the check of both certificates, and a replaced one would not be tried.
        config.resumption = rustls::client::Resumption::disabled();
        Ok(Arc::new(config))
    }
}

fn certificates(what: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let found = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| unreadable(what, path, &error))?;
    if found.is_empty() { Err(TlsError::Empty { what, path: path.to_owned() }) } else { Ok(found) }
}

fn unreadable(what: &'static str, path: &Path, error: &pem::Error) -> TlsError {
    TlsError::File { what, path: path.to_owned(), reason: error.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Made {
        directory: tempfile::TempDir,
        files: TlsFiles,
    }

    fn make() -> Made {
        let directory = tempfile::tempdir().unwrap();
        let mut params = rcgen::CertificateParams::new(vec![]).unwrap();
        params.distinguished_name.push(rcgen::DnType::CommonName, "B86022.gw1");
        params.not_after = time::macros::datetime!(2030-01-01 0:00 UTC);
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        let at = |name: &str, text: String| {
            let path = directory.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        let files = TlsFiles {
            ca: at("ca.pem", certificate.pem()),
            certificate: at("certificate.pem", certificate.pem()),
            key: at("key.pem", key.serialize_pem()),
        };
        Made { directory, files }
    }

    #[test]
    fn a_good_set_is_read_and_says_who_it_is() {
        let made = make();
        let identity = Identity::load(&made.files).unwrap();
        assert_eq!(identity.facts().common_name, "B86022.gw1");
        assert_eq!(identity.facts().not_after, 1_893_456_000_000);
        assert!(identity.client_config(TrustedClock::open(made.directory.path())).is_ok());
        assert!(!format!("{identity:?}").contains("PRIVATE"));
    }

    #[test]
    fn each_bad_file_is_named() {
        let made = make();
        let other = make();
        let broken = made.directory.path().join("broken.pem");
        std::fs::write(&broken, "no PEM").unwrap();
        let with = |change: &dyn Fn(&mut TlsFiles)| {
            let mut files = made.files.clone();
            change(&mut files);
            Identity::load(&files).unwrap_err()
        };
        let mismatch = with(&|files| files.key = other.files.key.clone());
        assert!(matches!(mismatch, TlsError::KeyMismatch { .. }), "{mismatch}");
        let empty = with(&|files| files.ca = broken.clone());
        assert!(matches!(empty, TlsError::Empty { what: "CA certificate", .. }), "{empty}");
        let empty = with(&|files| files.key = broken.clone());
        assert!(matches!(empty, TlsError::Empty { what: "private key", .. }), "{empty}");
        let missing = with(&|files| files.certificate = "/nowhere/certificate.pem".into());
        assert!(missing.to_string().contains("/nowhere/certificate.pem"), "{missing}");
    }
}
