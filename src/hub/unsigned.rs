//! `import --unsigned`: a bundle that no key vouches for is kept beside its lanes, where it counts for nothing.

use std::path::Path;

use pgw_bundle::keys::Identity;

use super::bundle_signatures::{self, SignedLane, Unsigned};
use super::gateways::Gateways;
use super::import::{BundleFile, ImportError};
use super::store::{LaneName, beside};

/// A bundle that was kept beside its lanes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// False: it lay there already.
    pub new: bool,
    /// The first sequence of each lane that is not signed, and why, in one sentence.
    pub reason: String,
}

/// Reads a bundle to its end; if a lane of it is not signed to its end by a key that counts, keeps the file beside its lanes.
/// `None`: all of it is signed, and nothing was kept. `read` is called now and then with the number of transactions read.
///
/// # Errors
/// [`ImportError`]: it is damaged, or cannot be kept.
pub fn keep(
    file: &BundleFile,
    identity: &Identity,
    list: &Gateways,
    store: &Path,
    read: &mut dyn FnMut(u64),
) -> Result<Option<Kept>, ImportError> {
    let lanes = bundle_signatures::read(file, identity, list, read)?;
    let reasons: Vec<String> = lanes.iter().filter_map(reason).collect();
    if reasons.is_empty() {
        return Ok(None);
    }
    let names: Vec<LaneName> = lanes.into_iter().map(|lane| lane.lane).collect();
    let new = beside::keep(store, &names, file.file())?;
    Ok(Some(Kept { new, reason: reasons.join("; ") }))
}

fn reason(lane: &SignedLane) -> Option<String> {
    let Unsigned { epoch, sequence, why } = lane.unsigned?;
    Some(format!("{} is not signed from sequence {sequence} of epoch {epoch} on: {why}", lane.lane))
}
