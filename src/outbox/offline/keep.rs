//! Records that were found and do not go back into their places: they go to the quarantine, where a person decides.
//!
//! One that was written off stays so, as the hub has an entry in its place; it returns as new, under its old id
//! ([`crate::handle::Outbox::readmit`]). One that the digest table contradicts is not what was accepted.

use std::collections::BTreeSet;
use std::path::Path;

use crate::crypt::keyring::Keyring;
use crate::crypt::seal::Sealer;
use crate::descriptor;
use crate::files;
use crate::guard::carve::{Scan, scan_directory};
use crate::guard::replace::step;
use crate::offline::error::RepairError;
use crate::offline::lane_plan::{KeptRecord, LanePlan};
use crate::offline::plan::NotPutBack;
use crate::offline::sources::Sources;
use crate::quarantine::{Quarantine, RIVAL, WRITTEN_OFF};
use crate::types::OutboxSettings;

/// Puts the lane's records into the quarantine, unless they are there already: it can be run again.
pub(super) fn keep(
    settings: &OutboxSettings,
    (keys, sealer): (&Keyring, &Sealer),
    owner: Option<(u32, u32)>,
    lane_plan: &LanePlan,
    sources: &Sources,
    unproven: bool,
) -> Result<(), RepairError> {
    if lane_plan.kept(unproven).next().is_none() {
        return Ok(());
    }
    let directory = settings.directory.join("quarantine");
    let failed = || RepairError::cannot("write", &directory);
    let quarantine = open(settings, keys, &directory)?;
    let known: BTreeSet<(String, String)> =
        quarantine.list().map_err(failed())?.into_iter().map(|entry| (entry.reason, entry.source)).collect();
    let mut scanned: Option<(u64, Scan)> = None;
    for (position, kept) in lane_plan.kept(unproven) {
        let KeptRecord { segment, why, record } = kept;
        let carved = if let (true, Some(segment)) = (record.own, *segment) {
            let inspected = lane_plan.inspection.segments.get(&segment);
            if scanned.as_ref().is_none_or(|(of, _)| *of != segment) {
                let lies = inspected.and_then(|inspected| inspected.lies.as_deref());
                let scan = lies.map_or_else(|| Ok(Scan::default()), scan_directory);
                scanned = Some((segment, scan.map_err(failed())?));
            }
            scanned.as_ref().and_then(|(_, scan)| scan.record((position, record.tag)))
        } else {
            sources.record(position, record.tag)
        };
        let opened = carved.and_then(|carved| Some((sealer.open(&carved.record).ok()?.1.id, carved)));
        let Some((id, carved)) = opened else {
            let changed = std::io::Error::other("a record that was found before can no longer be read");
            return Err(failed()(changed));
        };
        let reason = match why {
            NotPutBack::WrittenOff => WRITTEN_OFF,
            NotPutBack::Contradicted => RIVAL,
        };
        let source = format!("store - {} position {position} {id}", lane_plan.inspection.lane);
        if !known.contains(&(reason.to_owned(), source.clone())) {
            step(&directory.join(lane_plan.inspection.lane.as_str()).join("entry")).map_err(failed())?;
            quarantine.keep_own(reason, &source, &carved.record).map_err(failed())?;
        }
    }
    if owner.is_some() {
        files::give_to_owner(&settings.directory).map_err(failed())?;
    }
    Ok(())
}

/// Sealed with the key that seals in this store: `FORMAT` does not know a newer one yet.
fn open(settings: &OutboxSettings, keys: &Keyring, directory: &Path) -> Result<Quarantine, RepairError> {
    let seals = descriptor::owned(settings)?.map(|format| format.key_id().to_owned());
    let seals = keys.iter().find(|key| Some(key.id()) == seals).unwrap_or_else(|| keys.present());
    let failed = || RepairError::cannot("open", directory);
    let quarantine = Quarantine::open(directory, &seals.derived("quarantine"), 0).map_err(failed())?;
    let mut earlier = keys.iter().filter(|key| key.id() != seals.id());
    earlier
        .try_fold(quarantine, |quarantine, key| quarantine.also_opening(&key.derived("quarantine")))
        .map_err(failed())
}
