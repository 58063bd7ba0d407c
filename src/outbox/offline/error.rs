//! Why offline repair failed.

use std::io;
use std::path::{Path, PathBuf};

use pgw_core::consequence::{Cause, Consequence};

use crate::errors::OpenError;

/// Why a repair failed. Everything done so far stays, and the command can be run again.
#[derive(Debug, thiserror::Error)]
pub enum RepairError {
    /// It is not a store that this configuration and key open, or it is in use.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// There is no store.
    #[error("there is no store in {0}")]
    NoStore(PathBuf),
    /// `FORMAT` is damaged or gone, and no record opens with this key.
    #[error("the file FORMAT of the store in {0} is damaged, and no record there opens with the outbox key")]
    NothingOpens(PathBuf),
    /// `FORMAT` also said which key has sealed what.
    #[error(
        "the file FORMAT of the store in {0} is damaged, and records there were sealed with an earlier key: take FORMAT from a copy of the store"
    )]
    SeveralKeys(PathBuf),
    /// New files would belong to another user, and the daemon could not read them.
    #[error(
        "the store in {0} belongs to user {1}: repair it as that user or as root, or the daemon could not read it afterwards"
    )]
    NotTheOwner(PathBuf, u32),
    /// The file system failed.
    #[error("cannot {action} {path}")]
    Files {
        /// What was tried.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// A new segment did not read back as it was written; the old one is in its place.
    #[error("{0} does not read back as it was written: nothing was replaced")]
    ReadBack(PathBuf),
}

impl RepairError {
    /// How the command ends. A store that cannot be opened has the same consequence as for the daemon.
    #[must_use]
    pub fn consequence(&self) -> Consequence {
        match self {
            Self::Open(error) => error.consequence(),
            Self::Files { source, .. } => Consequence::of_file(source),
            Self::ReadBack(_) => Consequence::FILES,
            Self::NothingOpens(_) | Self::SeveralKeys(_) => Consequence::CONFIGURATION,
            Self::NoStore(_) => Consequence::UNREACHABLE,
            Self::NotTheOwner(..) => Consequence::Stop(Cause::Rights),
        }
    }

    /// Makes one of the system's error.
    pub(super) fn cannot(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Files { action, path, source }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::offline::moving::MoveError;
    use crate::offline::set_aside::SetAsideError;

    /// Every command that opens the store ends as the daemon would.
    #[test]
    fn a_store_that_cannot_be_opened_has_one_consequence() {
        let denied = || OpenError::Io {
            action: "open",
            path: "outbox".into(),
            source: io::ErrorKind::PermissionDenied.into(),
        };
        let errors = [
            denied,
            || OpenError::InUse("outbox".into()),
            || OpenError::Retired { directory: "outbox".into(), time: String::new() },
            || OpenError::Io {
                action: "read",
                path: "outbox".into(),
                source: io::ErrorKind::InvalidData.into(),
            },
        ];
        for error in errors {
            let daemon = error().consequence();
            assert_eq!(RepairError::from(error()).consequence(), daemon, "{}", error());
            assert_eq!(MoveError::from(error()).consequence(), daemon, "{}", error());
            assert_eq!(SetAsideError::from(error()).consequence(), daemon, "{}", error());
        }
        let files = RepairError::cannot("write", Path::new("outbox"))(io::ErrorKind::PermissionDenied.into());
        assert_eq!(files.consequence(), denied().consequence());
    }

    #[test]
    fn a_store_that_is_not_there_has_one_consequence() {
        let path = || PathBuf::from("outbox");
        let repair = RepairError::NoStore(path()).consequence();
        assert_eq!(MoveError::NoStore(path()).consequence(), repair);
        assert_eq!(SetAsideError::NoStore(path()).consequence(), repair);
    }
}
