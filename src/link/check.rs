//! What the `check` commands report about a client certificate, before any connection is made.

use std::fs::File;
use std::path::PathBuf;
use std::time::Duration;

use pgw_core::transaction::rfc3339;
use pgw_host::check::Checks;
use tokio_rustls::rustls;
use tokio_rustls::rustls::pki_types::UnixTime;
use tokio_rustls::rustls::server::{VerifierBuilderError, WebPkiClientVerifier};

use crate::pem;
use crate::tls::{Identity, TlsError, TlsFiles};

/// A certificate that ends sooner than this is reported, although it still works.
const SOON: u64 = 30 * 86_400;

/// Checks files, key, name and dates, and whether the CA in the file would accept the certificate now.
pub fn certificate(files: &TlsFiles, name: &str, now: u64, report: &mut Checks<'_>) {
    let ask = "ask the fleet's CA for a certificate, and put its files where the configuration says";
    let identity = match Identity::load(files) {
        Ok(identity) => identity,
        Err(error) => return report.error("certificate", &error, ask),
    };
    let facts = identity.facts();
    let file = files.certificate.display();
    if facts.common_name == name {
        report.ok("certificate", &format!("{file}: common name {name}, and the key goes with it"));
    } else {
        let problem =
            format!("{file}: its common name is {:?}, the broker expects {name:?}", facts.common_name);
        report.fail("certificate", &problem, ask);
    }
    let (begins, ends) = (facts.not_before / 1000, facts.not_after / 1000);
    let dates = format!("valid from {} to {}", rfc3339(facts.not_before), rfc3339(facts.not_after));
    if now < begins {
        report.fail("dates", &dates, "it is not valid yet: check this box's clock, or ask the CA");
    } else if now > ends {
        report.fail("dates", &dates, "it has expired: the gateway accepts but cannot send; renew it now");
    } else if ends - now < SOON {
        report.note("dates", &format!("{dates}: it ends in {} days, renew it", (ends - now) / 86_400));
    } else {
        report.ok("dates", &dates);
    }
    match accepted(files, now.clamp(begins, ends)) {
        Ok(()) => report.ok("CA", &format!("{} signs it for clients", files.ca.display())),
        Err(problem) => {
            report.error("CA", &problem, "the CA file and the certificate do not belong together: ask the CA")
        }
    }
    let mode_is_wide = File::open(&files.key).and_then(|key| key.metadata()).is_ok_and(|facts| {
        use std::os::unix::fs::PermissionsExt as _;
        facts.permissions().mode() & 0o007 != 0
    });
    if mode_is_wide {
        let problem = format!("{} can be read by every user of this box", files.key.display());
        report.fail("private key", &problem, "chmod 0600");
    }
}

/// Why a broker with the same CA would not accept the certificate.
#[derive(Debug, thiserror::Error)]
enum NotAccepted {
    /// A file cannot be used.
    #[error(transparent)]
    Files(#[from] TlsError),
    /// The CA cannot verify client certificates.
    #[error("{ca} cannot verify certificates")]
    Verifier {
        /// The CA's file.
        ca: PathBuf,
        /// The verifier's error.
        #[source]
        source: VerifierBuilderError,
    },
    /// The verifier refuses it.
    #[error("{ca} does not accept {certificate}")]
    Refused {
        /// The CA's file.
        ca: PathBuf,
        /// The certificate's file.
        certificate: PathBuf,
        /// The verifier's error.
        #[source]
        source: rustls::Error,
    },
}

/// What a broker with the same CA would say at this time (seconds since the epoch).
fn accepted(files: &TlsFiles, at: u64) -> Result<(), NotAccepted> {
    let (ca, certificate) = (files.ca.clone(), files.certificate.clone());
    let roots = pem::roots("CA certificate", &ca)?;
    let certificates = pem::certificates("client certificate", &certificate)?;
    let Some((leaf, between)) = certificates.split_first() else {
        return Err(TlsError::Empty { what: "client certificate", path: certificate }.into());
    };
    let verifier = match WebPkiClientVerifier::builder_with_provider(roots, pem::provider()).build() {
        Ok(verifier) => verifier,
        Err(source) => return Err(NotAccepted::Verifier { ca, source }),
    };
    let at = UnixTime::since_unix_epoch(Duration::from_secs(at));
    match verifier.verify_client_cert(leaf, between, at) {
        Ok(_) => Ok(()),
        Err(source) => Err(NotAccepted::Refused { ca, certificate, source }),
    }
}
