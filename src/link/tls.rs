//! The client's side of TLS: the fleet's CA, our certificate and our key, as a configuration.
//!
//! The `check` commands use [`Identity::load`] to say what is wrong before a connection does.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use tokio_rustls::rustls::{self, ClientConfig, RootCertStore};

use crate::clock::TrustedClock;
use crate::pem::{self, Pair};
pub use crate::pem::{CertificateFacts, TlsError};
use crate::watched::{Stamp, stamp};

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

impl TlsFiles {
    /// A stamp that shows whether the files have changed. Blocking.
    #[must_use]
    pub fn stamp(&self) -> Stamp {
        stamp([self.ca.as_path(), &self.certificate, &self.key])
    }
}

/// The fleet's CA, our certificate and our key, read and checked to match.
pub struct Identity {
    roots: Arc<RootCertStore>,
    pair: Pair,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("facts", &self.pair.facts).finish_non_exhaustive()
    }
}

impl Identity {
    /// Reads the files and checks that the key belongs to the certificate. Blocking. Whether the certificate is valid
    /// now is not checked here: the peer decides that, and its error gives the true reason.
    ///
    /// # Errors
    /// [`TlsError`] names the file.
    pub fn load(files: &TlsFiles) -> Result<Self, TlsError> {
        let roots = pem::roots("CA certificate", &files.ca)?;
        Ok(Self { roots, pair: Pair::load("client certificate", &files.certificate, &files.key)? })
    }

    /// What our certificate says.
    #[must_use]
    pub fn facts(&self) -> &CertificateFacts {
        &self.pair.facts
    }

    /// TLS 1.2 and 1.3 with ring, the fleet's CA and our certificate, checked by the trusted clock.
    ///
    /// # Errors
    /// [`TlsError::Rustls`].
    pub fn client_config(&self, clock: Arc<TrustedClock>) -> Result<Arc<ClientConfig>, TlsError> {
        let mut config = ClientConfig::builder_with_details(pem::provider(), clock)
            .with_safe_default_protocol_versions()
            .map_err(TlsError::Rustls)?
            .with_root_certificates(self.roots.clone())
            .with_client_auth_cert(self.pair.chain.clone(), self.pair.key.clone_key())
            .map_err(TlsError::Rustls)?;
        // A resumed session would skip the check of both certificates, and a replaced one would not be tried.
        config.resumption = rustls::client::Resumption::disabled();
        Ok(Arc::new(config))
    }
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
