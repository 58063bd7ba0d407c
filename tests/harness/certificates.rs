//! A new fleet CA for each test.

use std::path::PathBuf;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};
use tempfile::TempDir;
use time::OffsetDateTime;

/// A certificate and its key, as PEM files.
#[derive(Debug, Clone)]
pub struct CertificateFiles {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

/// A CA and the files that it signs. Dropping it deletes the files.
pub struct Certificates {
    directory: TempDir,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Default for Certificates {
    fn default() -> Self {
        Self::new()
    }
}

impl Certificates {
    /// A new fleet CA.
    pub fn new() -> Self {
        let directory = TempDir::with_prefix("pgw-certificates-").unwrap();
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        // Two CAs of the same name would make "unknown CA" look like a broken signature.
        let name = format!("Test fleet CA {}", directory.path().display());
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        std::fs::write(directory.path().join("ca.pem"), issuer.pem()).unwrap();
        Self { directory, issuer }
    }

    /// The CA's certificate.
    pub fn ca(&self) -> PathBuf {
        self.directory.path().join("ca.pem")
    }

    /// For a broker on `localhost` and 127.0.0.1.
    pub fn server(&self) -> CertificateFiles {
        self.server_for(&["localhost", "127.0.0.1"])
    }

    /// For a broker of these names.
    pub fn server_for(&self, names: &[&str]) -> CertificateFiles {
        self.signed("broker", names, ExtendedKeyUsagePurpose::ServerAuth, None)
    }

    /// For a broker on `localhost`, expired yesterday.
    pub fn expired_server(&self) -> CertificateFiles {
        let yesterday = OffsetDateTime::now_utc() - time::Duration::days(1);
        self.signed(
            "broker",
            &["localhost", "127.0.0.1"],
            ExtendedKeyUsagePurpose::ServerAuth,
            Some(yesterday),
        )
    }

    /// For a client of this common name (`B86022.gw1`, or a hub's).
    pub fn client(&self, common_name: &str) -> CertificateFiles {
        self.signed(common_name, &[], ExtendedKeyUsagePurpose::ClientAuth, None)
    }

    /// The same, expired yesterday.
    pub fn expired_client(&self, common_name: &str) -> CertificateFiles {
        let yesterday = OffsetDateTime::now_utc() - time::Duration::days(1);
        self.signed(common_name, &[], ExtendedKeyUsagePurpose::ClientAuth, Some(yesterday))
    }

    /// Signs one; `not_after` is far in the future unless given. Every call makes new files.
    pub fn signed(
        &self,
        common_name: &str,
        names: &[&str],
        usage: ExtendedKeyUsagePurpose,
        not_after: Option<OffsetDateTime>,
    ) -> CertificateFiles {
        let mut params =
            CertificateParams::new(names.iter().map(ToString::to_string).collect::<Vec<_>>()).unwrap();
        params.distinguished_name.push(DnType::CommonName, common_name);
        params.extended_key_usages = vec![usage];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        let now = OffsetDateTime::now_utc();
        params.not_before = now - time::Duration::days(30);
        params.not_after = not_after.unwrap_or(now + time::Duration::days(365));
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &*self.issuer).unwrap();
        let stem = tempfile::Builder::new()
            .prefix(&format!("{common_name}-"))
            .tempdir_in(self.directory.path())
            .unwrap()
            .keep();
        let files = CertificateFiles { certificate: stem.join("certificate.pem"), key: stem.join("key.pem") };
        std::fs::write(&files.certificate, certificate.pem()).unwrap();
        std::fs::write(&files.key, key.serialize_pem()).unwrap();
        let private = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        std::fs::set_permissions(&files.key, private).unwrap();
        files
    }
}
