//! The manifest of a backup: which files of the store it holds, how many bytes of each, and how far each lane is. The hub
//! signs it, so that a copy proves years later, on any machine, what it has to hold.
//!
//! Two files lie in the directory that is copied: `manifest.json`, and `manifest.signature`, the hub's Ed25519 signature
//! over it in base64 (word `manifest`, topic `pgw/v1/hub/{hub}/backup`). The SHA-256 of `manifest.json` is the backup's
//! digest, by which `practice-hub backup done` knows it.

use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

use pgw_core::chain::ChainValue;
use pgw_core::text::hex;
use pgw_core::transaction::{Epoch, Hub, Sequence};
use pgw_core::wire::WireError;
use pgw_core::wire::signature::{PublicKey, SigningKey, Word};
use ring::digest::{SHA256, digest};
use serde::{Deserialize, Serialize};

use super::BackupError;

/// The manifest's name in the copy.
pub const MANIFEST: &str = "manifest.json";
/// Its signature's.
pub const SIGNATURE: &str = "manifest.signature";
/// Version of the format.
const SCHEMA: u32 = 1;

/// What a backup holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Version of the format, 1.
    pub schema: u32,
    /// The hub's name.
    pub hub: Hub,
    /// The key that signs it. A copy proves its hub only to whoever knows this key from elsewhere.
    pub public_key: PublicKey,
    /// When the backup began, RFC 3339.
    pub time: String,
    /// The file system of the directory of links (`st_dev`): with the inodes it tells the links from a copy.
    pub device: u64,
    /// The lanes, in the order of their names.
    pub lanes: Vec<LaneEnds>,
    /// Lanes that are out of use at the hub, and so not in the backup.
    pub left_out: Vec<LeftOut>,
    /// The files, each lane's in the order of its transactions.
    pub files: Vec<ManifestFile>,
}

/// A lane that is not in the backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftOut {
    /// `PRACTICE/GATEWAY/LANE`.
    pub lane: String,
    /// Why.
    pub reason: String,
}

/// How far a lane is in the backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaneEnds {
    /// `PRACTICE/GATEWAY/LANE`.
    pub lane: String,
    /// The end of each of its epochs, oldest first.
    pub ends: Vec<LaneEnd>,
}

/// The end of an epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaneEnd {
    /// The epoch.
    pub epoch: Epoch,
    /// Its last sequence.
    pub through: Sequence,
    /// The chain value there.
    pub chain: ChainValue,
}

/// A file of the backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestFile {
    /// Its path below the copy, with `/`.
    pub path: String,
    /// This many bytes of it belong to the backup; a copy may hold more.
    pub bytes: u64,
    /// SHA-256 of these, 64 hexadecimal digits.
    pub sha256: String,
    /// Its inode in the directory of links.
    pub inode: u64,
}

impl ManifestFile {
    /// Where it lies below `directory`; `None`: its path leads elsewhere.
    #[must_use]
    pub fn below(&self, directory: &Path) -> Option<PathBuf> {
        let path = Path::new(&self.path);
        let inside = path.components().all(|part| matches!(part, Component::Normal(_)));
        (inside && !self.path.is_empty()).then(|| directory.join(path))
    }
}

/// A manifest as it was read, with the digest of its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadManifest {
    /// The manifest.
    pub manifest: Manifest,
    /// SHA-256 of its file, 64 hexadecimal digits.
    pub digest: String,
}

/// Why a manifest cannot be read, or proves nothing.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// The copy has none.
    #[error(
        "{0} has no {MANIFEST}: copy the directory that `practice-hub backup begin` has printed, with everything in it"
    )]
    Missing(PathBuf),
    /// It, or its signature, cannot be read.
    #[error("cannot read {0}")]
    Unreadable(PathBuf, #[source] io::Error),
    /// It is not a manifest of this version.
    #[error("{0} is damaged, or of another version: copy it again")]
    Malformed(PathBuf, #[source] serde_json::Error),
    /// It is of another version.
    #[error(
        "{0} has schema {1}, and this program reads {SCHEMA}: use the program that made the backup, or a newer one"
    )]
    Version(PathBuf, u32),
    /// The signature is not of this key.
    #[error(
        "{0} is not signed by the key {1}: it is damaged, somebody has changed it, or it is of another hub"
    )]
    Signature(PathBuf, PublicKey, #[source] WireError),
}

impl Manifest {
    /// A manifest of this version.
    #[must_use]
    pub fn new(hub: Hub, key: &SigningKey, time: String, device: u64) -> Self {
        let (lanes, left_out, files) = (Vec::new(), Vec::new(), Vec::new());
        Self { schema: SCHEMA, hub, public_key: key.public(), time, device, lanes, left_out, files }
    }

    fn topic(&self) -> String {
        format!("pgw/v1/hub/{}/backup", self.hub)
    }

    /// Signs it, and puts it and its signature into the directory, on stable storage. Returns its digest.
    ///
    /// # Errors
    /// [`BackupError`].
    pub fn write(&self, directory: &Path, key: &SigningKey) -> Result<String, BackupError> {
        let failed = |path: &Path, source| BackupError::Io { action: "write", path: path.to_owned(), source };
        let path = directory.join(MANIFEST);
        let mut text = serde_json::to_vec(self).map_err(|error| failed(&path, error.into()))?;
        text.push(b'\n');
        let signature = format!("{}\n", key.sign(Word::Manifest, &self.topic(), &text));
        let beside = directory.join(SIGNATURE);
        pgw_durable::create(&beside, pgw_durable::PRIVATE, signature.as_bytes())
            .map_err(|error| failed(&beside, error))?;
        // Last: a directory with a manifest is complete.
        pgw_durable::create(&path, pgw_durable::PRIVATE, &text).map_err(|error| failed(&path, error))?;
        Ok(hex(digest(&SHA256, &text).as_ref()))
    }

    /// Reads the manifest in a directory and verifies its signature: with `pinned`, or with the key that it names itself.
    ///
    /// # Errors
    /// [`ManifestError`].
    pub fn read(directory: &Path, pinned: Option<PublicKey>) -> Result<ReadManifest, ManifestError> {
        let path = directory.join(MANIFEST);
        let text = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(ManifestError::Missing(directory.to_owned()));
            }
            read => read.map_err(|error| ManifestError::Unreadable(path.clone(), error))?,
        };
        let manifest: Self =
            serde_json::from_slice(&text).map_err(|error| ManifestError::Malformed(path.clone(), error))?;
        if manifest.schema != SCHEMA {
            return Err(ManifestError::Version(path, manifest.schema));
        }
        let beside = directory.join(SIGNATURE);
        let signature =
            fs::read_to_string(&beside).map_err(|error| ManifestError::Unreadable(beside, error))?;
        let key = pinned.unwrap_or(manifest.public_key);
        key.verify(Word::Manifest, &manifest.topic(), &text, Some(signature.trim()))
            .map_err(|error| ManifestError::Signature(path, key, error))?;
        let digest = hex(digest(&SHA256, &text).as_ref());
        Ok(ReadManifest { manifest, digest })
    }
}
