//! A configuration file as text, and the checks that name file, line and key when they fail.

use std::fmt::{Debug, Display};
use std::net::SocketAddr;
use std::ops::{Range, RangeInclusive};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use pgw_core::consequence::Consequence;
use pgw_core::text::hex;
use toml::Spanned;

/// What is wrong with a configuration (exit code 78). Nothing was started and no store was opened.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file does not exist or cannot be read.
    #[error("cannot read the configuration {file}")]
    Unreadable {
        /// The configuration file.
        file: PathBuf,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
    /// The file is not TOML, a key is unknown, or a value has the wrong type.
    #[error("{file}:{line}: {what}")]
    Syntax {
        /// The configuration file.
        file: PathBuf,
        /// From 1.
        line: usize,
        /// What the reader says; for an unknown key, which keys exist.
        what: String,
    },
    /// A required key is missing.
    #[error("{file}: {key} is missing: it must be {allowed}")]
    Missing {
        /// The configuration file.
        file: PathBuf,
        /// With its table: `uplink.ca_file`.
        key: String,
        /// What is allowed.
        allowed: String,
    },
    /// A value that is not allowed.
    #[error("{file}:{line}: {key} = {given} is not allowed: it must be {allowed}")]
    Value {
        /// The configuration file.
        file: PathBuf,
        /// From 1.
        line: usize,
        /// With its table: `outbox.segment_records`.
        key: String,
        /// As written in the file.
        given: String,
        /// What is allowed.
        allowed: String,
    },
}

impl ConfigError {
    /// Always the same: a person has to correct the file.
    #[must_use]
    pub fn consequence(&self) -> Consequence {
        Consequence::CONFIGURATION
    }
}

/// One broker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upstream {
    /// Name (checked against the broker's certificate) or address.
    pub host: String,
    /// TCP port.
    pub port: u16,
}

impl std::fmt::Display for Upstream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// The file being read. Relative paths in it are relative to its directory.
pub struct Source {
    file: PathBuf,
    text: String,
}

impl Source {
    /// Reads the file.
    ///
    /// # Errors
    /// [`ConfigError::Unreadable`].
    pub fn read(file: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(file)
            .map_err(|source| ConfigError::Unreadable { file: file.to_owned(), source })?;
        Ok(Self { file: file.to_owned(), text })
    }

    /// For text that is not in a file; relative paths are resolved as if it were in `file`.
    #[must_use]
    pub fn of(file: &Path, text: String) -> Self {
        Self { file: file.to_owned(), text }
    }

    /// First 16 hexadecimal digits of the text's SHA-256: identifies the configuration that was read.
    #[must_use]
    pub fn digest(&self) -> String {
        let mut digits = hex(ring::digest::digest(&ring::digest::SHA256, self.text.as_bytes()).as_ref());
        digits.truncate(16);
        digits
    }

    /// Parses the text as TOML into `T`.
    ///
    /// # Errors
    /// [`ConfigError::Syntax`].
    pub fn parse<T: serde::de::DeserializeOwned>(&self) -> Result<T, ConfigError> {
        toml::from_str(&self.text).map_err(|mut error: toml::de::Error| {
            let line = self.line(error.span().as_ref());
            // Without its input, toml's error says what is wrong and in which table; `ConfigError` adds the line
            // number.
            error.set_input(None);
            let what = error.to_string().trim().replace('\n', ", ");
            ConfigError::Syntax { file: self.file.clone(), line, what }
        })
    }

    fn line(&self, span: Option<&Range<usize>>) -> usize {
        let start = span.map_or(0, |span| span.start.min(self.text.len()));
        self.text.as_bytes().iter().take(start).filter(|&&byte| byte == b'\n').count() + 1
    }

    /// The error for a value that is present but not allowed.
    pub fn wrong<T: Debug>(&self, key: &str, given: &Spanned<T>, allowed: impl Into<String>) -> ConfigError {
        ConfigError::Value {
            file: self.file.clone(),
            line: self.line(Some(&given.span())),
            key: key.to_owned(),
            given: format!("{:?}", given.get_ref()),
            allowed: allowed.into(),
        }
    }

    /// The error for a required key that is missing.
    #[must_use]
    pub fn missing(&self, key: &str, allowed: &str) -> ConfigError {
        ConfigError::Missing { file: self.file.clone(), key: key.to_owned(), allowed: allowed.to_owned() }
    }

    /// A required key.
    ///
    /// # Errors
    /// [`ConfigError::Missing`].
    pub fn required<T>(&self, key: &str, given: Option<T>, allowed: &'static str) -> Result<T, ConfigError> {
        given.ok_or_else(|| self.missing(key, allowed))
    }

    /// A whole number within a range.
    ///
    /// # Errors
    /// [`ConfigError`] names the line and what is allowed.
    pub fn number<N>(
        &self,
        key: &str,
        given: Option<Spanned<u64>>,
        default: N,
        range: RangeInclusive<u64>,
    ) -> Result<N, ConfigError>
    where
        N: TryFrom<u64>,
    {
        let Some(given) = given else { return Ok(default) };
        let value = *given.get_ref();
        let fits = if range.contains(&value) { N::try_from(value).ok() } else { None };
        fits.ok_or_else(|| self.wrong(key, &given, format!("from {} to {}", range.start(), range.end())))
    }

    /// A duration; fractions are allowed. `unit` is the length of 1.
    ///
    /// # Errors
    /// [`ConfigError`] names the line and what is allowed.
    pub fn duration(
        &self,
        key: &str,
        given: Option<Spanned<f64>>,
        default: f64,
        range: RangeInclusive<f64>,
        unit: Duration,
    ) -> Result<Duration, ConfigError> {
        let value = given.as_ref().map_or(default, |given| *given.get_ref());
        match given {
            Some(given) if !range.contains(&value) => {
                Err(self.wrong(key, &given, format!("from {} to {}", range.start(), range.end())))
            }
            _ => Ok(unit.mul_f64(value)),
        }
    }

    /// A duration in seconds.
    ///
    /// # Errors
    /// [`ConfigError`] names the line and what is allowed.
    pub fn seconds(
        &self,
        key: &str,
        given: Option<Spanned<f64>>,
        default: f64,
        range: RangeInclusive<f64>,
    ) -> Result<Duration, ConfigError> {
        self.duration(key, given, default, range, Duration::from_secs(1))
    }

    /// Text that a type validates when it is parsed; the type's error says what is allowed.
    ///
    /// # Errors
    /// [`ConfigError`] names the line and what is allowed.
    pub fn parsed<T>(&self, key: &str, given: &Spanned<String>) -> Result<T, ConfigError>
    where
        T: FromStr,
        T::Err: Display,
    {
        given.get_ref().parse().map_err(|error: T::Err| {
            // The error of a name is a whole sentence, ours already says the rest of it.
            let text = error.to_string();
            let allowed = text.rsplit_once("it must be ").map_or(text.as_str(), |(_, rule)| rule);
            self.wrong(key, given, allowed)
        })
    }

    /// One of a fixed set of words.
    ///
    /// # Errors
    /// [`ConfigError`] names the line and what is allowed.
    pub fn word<T: Copy>(
        &self,
        key: &str,
        given: Option<Spanned<String>>,
        default: T,
        words: &[(&str, T)],
    ) -> Result<T, ConfigError> {
        let Some(given) = given else { return Ok(default) };
        let found = words.iter().find(|(word, _)| *word == given.get_ref()).map(|(_, meaning)| *meaning);
        found.ok_or_else(|| {
            let allowed: Vec<String> = words.iter().map(|(word, _)| format!("{word:?}")).collect();
            self.wrong(key, &given, allowed.join(" or "))
        })
    }

    /// An address to listen on.
    ///
    /// # Errors
    /// [`ConfigError`] names the line and what is allowed.
    pub fn address(&self, key: &str, given: &Spanned<String>) -> Result<SocketAddr, ConfigError> {
        given.get_ref().parse().map_err(|_| {
            self.wrong(
                key,
                given,
                "an IP address and a port, for example \"127.0.0.1:2575\" or \"[::1]:2575\"",
            )
        })
    }

    /// At least one upstream.
    ///
    /// # Errors
    /// [`ConfigError`] names the line and what is allowed.
    pub fn upstreams(
        &self,
        key: &str,
        given: Option<Spanned<Vec<Spanned<String>>>>,
    ) -> Result<Vec<Upstream>, ConfigError> {
        const ALLOWED: &str = "one or more \"host:port\", for example [\"broker.example.nhs.uk:8883\"]";
        let list = self.required(key, given, ALLOWED)?;
        if list.get_ref().is_empty() {
            return Err(self.missing(key, ALLOWED));
        }
        list.get_ref()
            .iter()
            .map(|one| upstream(one.get_ref()).ok_or_else(|| self.wrong(key, one, ALLOWED)))
            .collect()
    }

    /// A path, resolved against the file's directory if it is relative.
    #[must_use]
    pub fn path(&self, given: &Path) -> PathBuf {
        self.file.parent().unwrap_or(Path::new("")).join(given)
    }
}

/// `host:port`, `address:port` or `[address]:port`.
fn upstream(text: &str) -> Option<Upstream> {
    let (host, port) = text.rsplit_once(':')?;
    let port = port.parse().ok().filter(|port| *port != 0)?;
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    let address = host.parse::<std::net::IpAddr>().is_ok();
    let name = !host.is_empty()
        && host.len() <= 253
        && host.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'.')
        && !host.starts_with(['-', '.']);
    (address || name).then(|| Upstream { host: host.to_owned(), port })
}
