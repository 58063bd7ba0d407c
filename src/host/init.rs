//! What both `init` commands share: they create what is missing and replace nothing.

use std::io::{self, Write};
use std::path::Path;

use pgw_core::consequence::Consequence;

use crate::exit::Exit;
use crate::secret::KeyError;

/// Creates a directory that only its owner can use; an existing one stays as it is.
///
/// # Errors
/// The exit code; the reason has been written.
pub fn directory(path: &Path, err: &mut dyn Write) -> Result<(), Exit> {
    pgw_durable::create_directory(path, 0o700).map_err(|error| {
        let _ = writeln!(err, "cannot create the directory {}: {error}", path.display());
        Consequence::of_file(&error).into()
    })
}

/// Whether a key was not created because one exists.
#[must_use]
pub fn is_there(error: &KeyError) -> bool {
    matches!(error, KeyError::Make { source, .. } if source.kind() == io::ErrorKind::AlreadyExists)
}
