//! What both `init` commands share: they create what is missing and replace nothing.

use std::io::{self, Write};
use std::path::Path;

use crate::exit::{Exit, complain};
use crate::secret::KeyError;

/// Creates a directory that only its owner can use; an existing one stays as it is.
///
/// # Errors
/// The exit code; the reason has been written.
pub fn directory(path: &Path, err: &mut dyn Write) -> Result<(), Exit> {
    pgw_durable::create_directory(path, 0o700).map_err(|error| {
        let _ = writeln!(err, "cannot create the directory {}: {error}", path.display());
        if error.kind() == io::ErrorKind::PermissionDenied { Exit::NotPermitted } else { Exit::Files }
    })
}

/// Whether a key was not created because one exists.
#[must_use]
pub fn is_there(error: &KeyError) -> bool {
    matches!(error, KeyError::Make { source, .. } if source.kind() == io::ErrorKind::AlreadyExists)
}

/// Writes why a key was not created, and returns the exit code.
pub fn not_made(error: &KeyError, err: &mut dyn Write) -> Exit {
    complain(err, error);
    match error {
        KeyError::Make { source, .. } | KeyError::Unreadable { source, .. }
            if source.kind() == io::ErrorKind::PermissionDenied =>
        {
            Exit::NotPermitted
        }
        KeyError::Make { .. } | KeyError::Unreadable { .. } => Exit::Files,
        KeyError::Open { .. } | KeyError::Form { .. } => Exit::Configuration,
        KeyError::Random => Exit::Internal,
    }
}
