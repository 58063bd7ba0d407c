//! A lane's segments at start: the newest is opened, the older ones are known from the segment table; a damaged one is carved.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;

use pgw_core::delivery::Numbering;
use pgw_core::transaction::{Lane, Position};

use crate::crypt::seal::Sealer;
use crate::descriptor::failed;
use crate::errors::OpenError;
use crate::guard::carve::was_begun;
use crate::guard::segment::{DATABASE_FILE, Extent, Segment, SegmentError, SegmentHeader};
use crate::pipeline::rebuild::{Damaged, salvage_segment, told};
use crate::pipeline::space::Ballast;
use crate::pipeline::trash::discard;
use crate::quarantine::Quarantine;
use crate::state::checkpoint::Sidecar;
use crate::state::segment_table::Ledger;
use crate::types::Notable;

/// Makes an [`OpenError`] of what a segment said.
pub(super) fn segment_failed(path: &Path) -> impl FnOnce(SegmentError) -> OpenError {
    let path = path.to_owned();
    move |error| OpenError::Io {
        action: "open the segment",
        path,
        source: match error {
            SegmentError::Files(source) => source,
            other => io::Error::other(other),
        },
    }
}

/// Number, handle and header of the newest segment.
pub(super) type Newest = (u64, Segment, SegmentHeader);

/// What opening a lane goes by.
pub(super) struct Context<'a> {
    pub(super) store: &'a Path,
    pub(super) lane: &'a Lane,
    pub(super) id: u16,
    pub(super) directory: &'a Path,
    pub(super) sealer: &'a Sealer,
    pub(super) sidecar: &'a Sidecar,
    pub(super) quarantine: &'a Quarantine,
    pub(super) ballast: &'a Ballast,
    pub(super) numbering: Option<&'a Numbering>,
}

/// The newest segment that was begun. Newer ones were only made ahead, and go; a damaged one is replaced by what can be
/// salvaged of it.
pub(super) fn newest_begun(
    context: &Context<'_>,
    ledger: Option<&Ledger>,
    ordinals: &mut BTreeSet<u64>,
    notables: &mut Vec<Notable>,
) -> Result<Option<Newest>, OpenError> {
    while let Some(ordinal) = ordinals.last().copied() {
        let path = context.directory.join(format!("{ordinal:010}"));
        // A crash while it was made ahead leaves one that sled may refuse; nothing was in it.
        let made_ahead = ledger.is_none_or(|ledger| !ledger.row.contains_key(&ordinal));
        if made_ahead && !was_begun(&path).map_err(failed("read", &path))? {
            discard(context.store, &path).map_err(failed("remove", &path))?;
            ordinals.remove(&ordinal);
            continue;
        }
        match open_or_salvage(context, ledger, ordinal, &path, None, notables)? {
            (segment, Some(header)) => {
                // Recovered, not only read: what it gives from here on must survive the next cut too.
                segment.barrier().map_err(segment_failed(&path))?;
                return Ok(Some((ordinal, segment, header)));
            }
            (segment, None) => {
                drop(segment);
                discard(context.store, &path).map_err(failed("remove", &path))?;
                ordinals.remove(&ordinal);
            }
        }
    }
    Ok(None)
}

/// A power cut in the making of a segment can leave its directory without a database. One that was begun has had
/// every file of it synced before; should its database vanish, the ledger or the sidecar knows of it.
fn is_half_made(path: &Path, ledger: Option<&Ledger>, ordinal: u64) -> bool {
    !path.join(DATABASE_FILE).exists() && ledger.is_none_or(|ledger| !ledger.row.contains_key(&ordinal))
}

/// Opens a segment; a damaged one is replaced by what can be salvaged of it first.
fn open_or_salvage(
    context: &Context<'_>,
    ledger: Option<&Ledger>,
    ordinal: u64,
    path: &Path,
    through: Option<Position>,
    notables: &mut Vec<Notable>,
) -> Result<(Segment, Option<SegmentHeader>), OpenError> {
    let sidecar = context.sidecar.last(context.lane);
    let durable = through.or(sidecar.map(|(position, _)| position)).unwrap_or(0);
    let opened = match open_begun(path, durable) {
        Err(error) if error.is_full() => {
            context.ballast.release().map_err(failed("release the ballast for", path))?;
            open_begun(path, durable)
        }
        other => other,
    };
    let opened = match opened {
        Err(error) if error.is_damage() => {
            tracing::error!(lane = %context.lane, ordinal, error = %error, "Segment is damaged, salvaging what is in it");
            let damaged = Damaged {
                store: context.store,
                lane: (context.lane, context.id),
                ordinal,
                directory: path,
                extent: ledger.and_then(|ledger| ledger.row.get(&ordinal).copied()),
                numbering: context.numbering,
                known: sidecar,
                through,
            };
            let outcome = salvage_segment(&damaged, context.sealer, context.quarantine)
                .map_err(segment_failed(path))?;
            let lost = outcome
                .range
                .map_or(0, |(first, last)| (last.max(durable) + 1 - first).saturating_sub(outcome.records));
            notables.push(Notable { code: "salvaged", detail: told(context.lane, ordinal, &outcome, lost) });
            open_begun(path, durable)
        }
        other => other,
    };
    opened.map_err(segment_failed(path))
}

/// Opens a segment and its header. One without a header that holds records is damaged.
fn open_begun(path: &Path, durable: Position) -> Result<(Segment, Option<SegmentHeader>), SegmentError> {
    let segment = Segment::open(path, durable)?;
    let header = segment.header()?;
    if header.is_none() && segment.last_position()?.is_some() {
        return Err(SegmentError::Header);
    }
    Ok((segment, header))
}

/// The segments before the newest.
pub(super) struct Older {
    pub(super) row: BTreeMap<u64, Extent>,
    /// The ledger did not know all of them.
    pub(super) stale: bool,
}

/// The row before the newest segment: from the ledger, the newest one's header, and only then from the segments.
pub(super) fn older(
    context: &Context<'_>,
    ledger: Option<&Ledger>,
    ordinals: &BTreeSet<u64>,
    newest: u64,
    header: &SegmentHeader,
    notables: &mut Vec<Notable>,
) -> Result<Older, OpenError> {
    let mut row: BTreeMap<u64, Extent> = BTreeMap::new();
    let mut stale = false;
    let mut next_base = header.base;
    for ordinal in ordinals.range(..newest).rev().copied() {
        let told =
            header.predecessor.filter(|(predecessor, _)| *predecessor == ordinal).map(|(_, extent)| extent);
        let known = told.or_else(|| ledger.and_then(|ledger| ledger.row.get(&ordinal).copied()));
        let extent = match known {
            Some(extent) => extent,
            None => {
                stale = true;
                let path = context.directory.join(format!("{ordinal:010}"));
                if is_half_made(&path, ledger, ordinal) {
                    discard(context.store, &path).map_err(failed("remove", &path))?;
                    continue;
                }
                match open_or_salvage(context, ledger, ordinal, &path, Some(next_base - 1), notables)? {
                    (_, Some(header)) => {
                        Extent { base: header.base, previous: header.previous, bytes: 0, oldest: None }
                    }
                    (segment, None) => {
                        // Made ahead, and overtaken by one that the writer needed sooner.
                        drop(segment);
                        discard(context.store, &path).map_err(failed("remove", &path))?;
                        continue;
                    }
                }
            }
        };
        if extent.base < next_base {
            next_base = extent.base;
            row.insert(ordinal, extent);
        } else {
            // A later one began at the same position: nothing that was answered is here.
            let path = context.directory.join(format!("{ordinal:010}"));
            discard(context.store, &path).map_err(failed("remove", &path))?;
        }
    }
    Ok(Older { row, stale })
}
