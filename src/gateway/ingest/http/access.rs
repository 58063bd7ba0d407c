//! Who may send: certificates, keys and bearer tokens, read at the start and whenever they change.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::http::HeaderMap;
use pgw_host::secret::{KeyError, SecretPlace};
use pgw_link::clock::TrustedClock;
use pgw_link::server_tls as tls;
use pgw_link::server_tls::{Clients, Reloading, Stamp, TlsError};
use pgw_link::tls::CertificateFacts;
use ring::digest::{SHA256, digest};
use tokio_rustls::rustls::{self, ServerConfig};

use crate::ingest::http::headers;

/// Shortest token: a short one could be guessed.
const TOKEN_BYTES: usize = 20;
/// Longest name of a client.
const NAME_BYTES: usize = 64;

/// The files that say who may send to one door.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AccessFiles {
    /// Certificate chain and key; none: no TLS, which is allowed on a loopback address only.
    pub tls: Option<(PathBuf, PathBuf)>,
    /// Who signs the clients' certificates.
    pub client_ca: Option<PathBuf>,
    /// One `name token` per line.
    pub tokens: Option<PathBuf>,
}

/// What is wrong with the files.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// The certificates cannot be used.
    #[error(transparent)]
    Tls(TlsError),
    /// The tokens cannot be read.
    #[error("the tokens of the HTTP door cannot be used")]
    Tokens(#[source] KeyError),
    /// A line of the tokens is wrong. The line itself is secret and not shown.
    #[error(
        "{path}:{line}: a line is a name (letters, digits, . - _) and a token of at least {TOKEN_BYTES} characters"
    )]
    TokenLine {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: usize,
    },
    /// The file has no token at all: nobody could send. A file being edited looks like this for a moment.
    #[error("{0}: there is no token in it, and nobody could send")]
    NoToken(PathBuf),
}

/// Who may send, according to the files.
pub struct Access {
    tls: Option<Arc<ServerConfig>>,
    tokens: Vec<(String, Vec<u8>)>,
    open: bool,
}

/// Who may send, according to the files of an open door.
pub type ReloadingAccess = Reloading<Access, AccessError>;

impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Access").field("tokens", &self.tokens.len()).finish_non_exhaustive()
    }
}

impl Access {
    /// Reads the files. Blocking.
    ///
    /// # Errors
    /// [`AccessError`] names the file.
    pub fn load(files: &AccessFiles, clock: &Arc<TrustedClock>) -> Result<Self, AccessError> {
        let tokens = match &files.tokens {
            Some(path) => tokens(path)?,
            None => Vec::new(),
        };
        let tls = match &files.tls {
            Some((certificate, key)) => {
                let client_ca = files.client_ca.clone();
                let pem = tls::Files { certificate: certificate.clone(), key: key.clone(), client_ca };
                // With tokens, a certificate or a token is enough.
                let clients = if files.tokens.is_some() { Clients::Offered } else { Clients::Required };
                let config = tls::server(&pem, clients, &[b"http/1.1"], clock);
                Some(Arc::new(config.map_err(AccessError::Tls)?))
            }
            None => None,
        };
        Ok(Self { tls, tokens, open: files.client_ca.is_none() && files.tokens.is_none() })
    }

    /// The same for a door that stays open. Blocking.
    ///
    /// # Errors
    /// [`AccessError`] names the file.
    pub fn reloading(files: &AccessFiles, clock: &Arc<TrustedClock>) -> Result<ReloadingAccess, AccessError> {
        let (watched, files, clock) = (files.clone(), files.clone(), Arc::clone(clock));
        let name = "certificates and tokens of the HTTP door";
        Reloading::load(name, move || stamp(&watched), move || Self::load(&files, &clock))
    }

    /// TLS, where there is any.
    #[must_use]
    pub fn tls(&self) -> Option<Arc<ServerConfig>> {
        self.tls.clone()
    }

    /// The name of the client that sends this; `None`: unknown. `certificate` is the common name that TLS has
    /// verified.
    #[must_use]
    pub fn client(&self, certificate: Option<&str>, headers: &HeaderMap) -> Option<String> {
        if let Some(name) = certificate {
            return Some(harmless(name));
        }
        if self.open {
            return Some(String::from("local"));
        }
        // Hashes are compared, so that the time it takes reveals nothing about a token.
        let given = digest(&SHA256, headers::bearer(headers)?.as_bytes());
        self.tokens.iter().find(|(_, token)| token == given.as_ref()).map(|(name, _)| name.clone())
    }
}

/// A name for the `source` of transactions, without characters that could do harm there.
fn harmless(name: &str) -> String {
    name.chars().filter(|c| c.is_ascii_alphanumeric() || ".-_".contains(*c)).take(NAME_BYTES).collect()
}

fn stamp(files: &AccessFiles) -> Stamp {
    let pem = files.tls.iter().flat_map(|(certificate, key)| [certificate, key]);
    let tokens = files.tokens.as_deref().map(|configured| tokens_place(configured).file);
    tls::stamp(pem.chain(&files.client_ca).chain(&tokens).map(PathBuf::as_path))
}

/// A systemd credential of the file's name takes precedence over the file.
fn tokens_place(configured: &Path) -> SecretPlace {
    SecretPlace::find(configured.file_name().unwrap_or_default(), configured)
}

fn tokens(configured: &Path) -> Result<Vec<(String, Vec<u8>)>, AccessError> {
    let place = tokens_place(configured);
    let text = place.read().map_err(AccessError::Tokens)?;
    let path = place.file;
    let mut tokens = Vec::new();
    for (index, line) in text.split(|b| *b == b'\n').enumerate() {
        let wrong = || AccessError::TokenLine { path: path.clone(), line: index + 1 };
        let line = std::str::from_utf8(line).map_err(|_| wrong())?.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (name, token) = line.split_once([' ', '\t']).ok_or_else(wrong)?;
        let token = token.trim();
        let good = token.len() >= TOKEN_BYTES && token.bytes().all(|b| b.is_ascii_graphic());
        if name.is_empty() || harmless(name) != name || !good {
            return Err(wrong());
        }
        tokens.push((name.to_owned(), digest(&SHA256, token.as_bytes()).as_ref().to_vec()));
    }
    if tokens.is_empty() { Err(AccessError::NoToken(path)) } else { Ok(tokens) }
}

/// The common name of the client's certificate, verified by rustls.
pub(super) fn common_name(connection: &rustls::ServerConnection) -> Option<String> {
    let shown = connection.peer_certificates()?.first()?;
    Some(CertificateFacts::from_der(shown).map(|facts| facts.common_name).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use pgw_host::secret;

    use super::*;

    const TOKEN: &str = "s3cret-s3cret-s3cret";

    fn with_tokens(text: &str, mode: u32) -> Result<Access, AccessError> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("tokens");
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        let files = AccessFiles { tokens: Some(path), ..AccessFiles::default() };
        Access::load(&files, &TrustedClock::open(directory.path()))
    }

    fn asks(token: &str) -> HeaderMap {
        let value = format!("Bearer {token}").parse().unwrap();
        HeaderMap::from_iter([(axum::http::header::AUTHORIZATION, value)])
    }

    #[test]
    fn a_token_names_its_client() {
        let other = "other-other-other-other";
        let access = with_tokens(&format!("# lab\nlab-1 {TOKEN}\n\nemis\t {other}\n"), 0o600).unwrap();
        assert_eq!(access.client(None, &asks(TOKEN)).as_deref(), Some("lab-1"));
        assert_eq!(access.client(None, &asks(other)).as_deref(), Some("emis"));
        for wrong in ["", "x", &TOKEN[1..], &format!("{TOKEN}x")] {
            assert_eq!(access.client(None, &asks(wrong)), None, "{wrong}");
        }
        assert_eq!(access.client(None, &HeaderMap::new()), None);
        assert_eq!(access.client(Some("pc 7/é"), &HeaderMap::new()).as_deref(), Some("pc7"));
        assert!(!format!("{access:?}").contains("s3cret"));
    }

    #[test]
    fn no_files_mean_everybody() {
        let clock = TrustedClock::open(Path::new("/nonexistent"));
        let open = Access::load(&AccessFiles::default(), &clock).unwrap();
        assert_eq!(open.client(None, &HeaderMap::new()).as_deref(), Some("local"));
    }

    #[test]
    fn a_file_without_a_token_is_refused_and_replaces_no_tokens() {
        for none in ["", "\n", "# none yet\n"] {
            let error = with_tokens(none, 0o600).unwrap_err().to_string();
            assert!(error.contains("tokens: there is no token"), "{none:?}: {error}");
        }
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("tokens");
        secret::create(&path, format!("lab {TOKEN}\n").as_bytes()).unwrap();
        let files = AccessFiles { tokens: Some(path.clone()), ..AccessFiles::default() };
        let access = Access::reloading(&files, &TrustedClock::open(directory.path())).unwrap();
        // An editor that truncates and then writes is seen in between.
        std::fs::write(&path, "").unwrap();
        access.renew(true);
        assert_eq!(access.current().client(None, &asks(TOKEN)).as_deref(), Some("lab"));
    }

    #[test]
    fn a_bad_file_is_named_with_its_line_and_not_shown() {
        for bad in ["lab short", "lab", &format!("la/b {TOKEN}"), &format!("lab {TOKEN} more")] {
            let error = with_tokens(&format!("a {TOKEN}\n{bad}\n"), 0o600).unwrap_err().to_string();
            assert!(error.contains("tokens:2:") && !error.contains("s3cret"), "{error}");
        }
        let open = with_tokens(&format!("lab {TOKEN}\n"), 0o644).unwrap_err();
        assert!(matches!(open, AccessError::Tokens(KeyError::Open { mode: 0o644, .. })), "{open}");
    }
}
