//! From what lies on the disk to lanes that go on: after a clean stop, after a crash, after damage.
//!
//! A start does not read the backlog. The ledger says what the older segments hold; only the newest is opened, and of
//! that only the last record is looked at. Never is anything deleted here that was answered, and never does a
//! store start silently empty.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::{Arc, Mutex};

use pgw_core::chain::ChainValue;
use pgw_core::delivery::Numbering;
use pgw_core::transaction::{Epoch, Lane, Position};
use tokio::sync::watch;
use uuid::Uuid;

use super::claim::failed;
use super::lane::{Handles, LaneShared, LaneState, Ledger};
use super::marks::Marks;
use super::quarantine::{INCOMPLETE, Quarantine};
use super::repair::{Damaged, finish_replacements, salvage_segment, told, was_begun};
use super::seal::Sealer;
use super::segment::{DATABASE_FILE, Extent, Segment, SegmentError, SegmentHeader};
use super::shared::lane_file;
use super::sidecar::Sidecar;
use super::space::Ballast;
use super::trash::discard;
use super::voids::Voids;
use super::{LaneSettings, Mark, Notable, OpenError, Settings, files};

/// Of the ledger.
pub(crate) const LEDGER_VERSION: u32 = 1;
/// Records at the end of the newest segment from which its payload is estimated.
const SAMPLE_RECORDS: u64 = 32;
const SAMPLE_BYTES: u64 = 4 << 20;

/// A lane as it was found.
pub(crate) struct Found {
    pub(crate) lane: Arc<LaneShared>,
    /// The segment to go on with: ordinal, handle, records, payload bytes.
    pub(crate) active: Option<(u64, Arc<Segment>, u64, u64)>,
    /// The highest ordinal in use.
    pub(crate) last_ordinal: u64,
    /// The last record was accepted in an older epoch: the chain value at the tail has to be computed.
    pub(crate) chain_unknown: bool,
}

fn segment_failed(path: &Path) -> impl FnOnce(SegmentError) -> OpenError {
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

/// What a lane is opened with.
pub(crate) struct Beside<'a> {
    pub(crate) settings: &'a Settings,
    pub(crate) sealer: &'a Sealer,
    pub(crate) sidecar: &'a Sidecar,
    pub(crate) marks: &'a Marks,
    pub(crate) quarantine: &'a Quarantine,
    pub(crate) ballast: &'a Ballast,
}

/// Opens one lane.
pub(crate) fn open_lane(
    beside: &Beside<'_>,
    lane: &LaneSettings,
    id: u16,
    notables: &mut Vec<Notable>,
) -> Result<Found, OpenError> {
    let Beside { settings, sealer, sidecar, marks, quarantine, ballast } = *beside;
    let name = &lane.lane;
    let directory = settings.directory.join("segments").join(name.as_str());
    files::create_directory(&directory).map_err(failed("create", &directory))?;
    let numbering_path = lane_file(&settings.directory, name, "numbering");
    if let Some(parent) = numbering_path.parent() {
        files::create_directory(parent).map_err(failed("create", parent))?;
    }
    let ledger = read_kept::<Ledger>(&lane_file(&settings.directory, name, "ledger"), name, notables);
    let known_numbering = read_kept::<Numbering>(&numbering_path, name, notables);

    finish_replacements(&directory).map_err(failed("finish replacing a segment in", &directory))?;
    let mut ordinals = ordinals(&directory).map_err(failed("list", &directory))?;
    let last_ordinal = ordinals.last().copied().unwrap_or(0);
    let context = Context {
        store: &settings.directory,
        lane: name,
        id,
        directory: &directory,
        sealer,
        sidecar,
        quarantine,
        ballast,
        numbering: known_numbering.as_ref(),
    };
    let newest = newest_begun(&context, ledger.as_ref(), &mut ordinals, notables)?;

    let saved = known_numbering.is_some();
    let mut numbering = known_numbering
        .clone()
        .or_else(|| newest.as_ref().map(|(_, _, header)| header.numbering.clone()))
        .unwrap_or_else(|| Numbering::new(Epoch(Uuid::now_v7())));
    if !saved {
        files::save(&numbering_path, &numbering).map_err(failed("write", &numbering_path))?;
    }
    let first = ChainValue::first(numbering.at(1).epoch, name.as_str());
    let mark = marks.mark(name).unwrap_or(Mark { position: 0, chain: first });
    let mut row = BTreeMap::new();
    let voids_path = lane_file(&settings.directory, name, "voids");
    let mut voids = read_kept::<Voids>(&voids_path, name, notables).unwrap_or_default();
    let mut holes = ledger.as_ref().map(|ledger| ledger.holes.clone()).unwrap_or_default();
    let (mut tail, mut chain, mut chain_unknown) = (0, first, false);
    let mut active = None;
    let mut end_unknown = false;
    let mut ledger_stale = ledger.is_none();

    if let Some((ordinal, segment, header)) = newest {
        row = older(&context, ledger.as_ref(), &ordinals, ordinal, &header, &mut ledger_stale, notables)?;
        let mut end = last_record(name, &segment, sealer, header.base, sidecar, quarantine, notables);
        if end.as_ref().is_err_and(SegmentError::is_full) {
            ballast.release().map_err(failed("release the ballast for", &directory))?;
            end = last_record(name, &segment, sealer, header.base, sidecar, quarantine, notables);
        }
        let end = end.map_err(segment_failed(segment.directory()))?;
        tail = end.position.unwrap_or(header.base - 1);
        // The last record is damaged: only the sidecar may still know its chain value.
        let beside_it = sidecar.last(name).filter(|(position, _)| *position == tail).map(|(_, chain)| chain);
        end_unknown = end.position.is_some() && end.chain.or(beside_it).is_none();
        chain = end.chain.or(beside_it.filter(|_| end.position.is_some())).unwrap_or(header.previous);
        chain_unknown = end.epoch.is_some_and(|epoch| epoch != numbering.at(tail + 1).epoch)
            || (end.epoch.is_none() && header.numbering != numbering);
        let records = tail + 1 - header.base;
        let bytes = end.average_bytes * records;
        let oldest = end.oldest;
        row.insert(ordinal, Extent { base: header.base, previous: header.previous, bytes, oldest });
        let verified = sidecar.last(name).is_some_and(|(position, _)| position == tail);
        // A tail that nothing vouches for may be in the page cache only, after a barrier that failed before a
        // kill: nothing is appended behind it.
        if !end.trimmed && (verified || records == 0) {
            active = Some((ordinal, Arc::new(segment), records, bytes));
        }
    }

    let vouched = sidecar.last(name).map_or(0, |(position, _)| position).max(mark.position);
    if vouched > tail || end_unknown {
        let epoch = Epoch(Uuid::now_v7());
        let vouched = vouched.max(tail);
        notables.push(Notable {
            code: "store.shortfall",
            detail: format!(
                "lane {name} is whole through position {} only, but {vouched} was accepted; a new epoch begins",
                if end_unknown { tail - 1 } else { tail }
            ),
        });
        tracing::error!(lane = %name, found = tail, accepted = vouched, "Store ends before what it had accepted");
        holes.add(tail + 1, vouched);
        // The hub may have had what is lost here: by this value it is believed.
        let known = sidecar.last(name).filter(|(position, _)| *position == vouched);
        let known = known.or(Some((mark.position, mark.chain)).filter(|_| mark.position == vouched));
        if let Some((_, chain)) = known {
            voids.add_end(numbering.at(vouched).epoch, vouched, chain);
            files::save(&voids_path, &voids).map_err(failed("write", &voids_path))?;
        }
        numbering = numbering.renumbered(epoch, vouched);
        files::save(&numbering_path, &numbering).map_err(failed("write", &numbering_path))?;
        tail = vouched;
        chain = ChainValue::first(epoch, name.as_str());
        chain_unknown = false;
        active = None;
        let ledger_path = lane_file(&settings.directory, name, "ledger");
        let ledger = Ledger { version: LEDGER_VERSION, row: row.clone(), holes: holes.clone() };
        files::save(&ledger_path, &ledger).map_err(failed("write", &ledger_path))?;
    }
    let state = LaneState {
        numbering,
        row,
        tail,
        chain,
        mark,
        backed_up_through: marks.backed_up_through(name),
        holes,
        voids,
        oldest: None,
        ledger_stale,
        mark_epoch: marks.epoch(name),
        mark_stale: false,
        answered: false,
    };
    let handles = Handles::default();
    if let Some((ordinal, segment, _, _)) = &active {
        handles.register(*ordinal, segment);
    }
    let lane = Arc::new(LaneShared {
        name: name.clone(),
        id,
        urgent: lane.urgent,
        directory,
        tail: watch::Sender::new(tail),
        state: Mutex::new(state),
        handles,
        ahead: Mutex::new(None),
        voiding: Mutex::new(()),
        repaired: Mutex::default(),
        computed: Mutex::new(None),
    });
    Ok(Found { lane, active, last_ordinal, chain_unknown })
}

/// A small file that can be made again: damage is told and not fatal.
fn read_kept<T: serde::de::DeserializeOwned>(
    path: &Path,
    lane: &Lane,
    notables: &mut Vec<Notable>,
) -> Option<T> {
    files::load(path).unwrap_or_else(|error| {
        tracing::warn!(path = %path.display(), error = %error, "Small file is damaged and is made again");
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        notables.push(Notable {
            code: "damaged",
            detail: format!("the {name} of lane {lane} was damaged and is made again"),
        });
        None
    })
}

/// The segments in a lane's directory.
pub(crate) fn ordinals(directory: &Path) -> io::Result<BTreeSet<u64>> {
    let mut ordinals = BTreeSet::new();
    for entry in fs::read_dir(directory)? {
        let name = entry?.file_name();
        let name = name.to_str().unwrap_or_default();
        if name.len() == 10
            && let Ok(ordinal) = name.parse()
        {
            ordinals.insert(ordinal);
        }
    }
    Ok(ordinals)
}

type Newest = (u64, Segment, SegmentHeader);

/// What opening a lane goes by.
struct Context<'a> {
    store: &'a Path,
    lane: &'a Lane,
    id: u16,
    directory: &'a Path,
    sealer: &'a Sealer,
    sidecar: &'a Sidecar,
    quarantine: &'a Quarantine,
    ballast: &'a Ballast,
    numbering: Option<&'a Numbering>,
}

/// The newest segment that was begun. Newer ones were only made ahead, and go; a damaged one is replaced by what can be
/// salvaged of it.
fn newest_begun(
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

/// The row before the newest segment: from the ledger, the newest one's header, and only then from the segments.
fn older(
    context: &Context<'_>,
    ledger: Option<&Ledger>,
    ordinals: &BTreeSet<u64>,
    newest: u64,
    header: &SegmentHeader,
    stale: &mut bool,
    notables: &mut Vec<Notable>,
) -> Result<BTreeMap<u64, Extent>, OpenError> {
    let mut row: BTreeMap<u64, Extent> = BTreeMap::new();
    let mut next_base = header.base;
    for ordinal in ordinals.range(..newest).rev().copied() {
        let told =
            header.predecessor.filter(|(predecessor, _)| *predecessor == ordinal).map(|(_, extent)| extent);
        let known = told.or_else(|| ledger.and_then(|ledger| ledger.row.get(&ordinal).copied()));
        let extent = match known {
            Some(extent) => extent,
            None => {
                *stale = true;
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
    Ok(row)
}

/// How the newest segment ends.
#[derive(Default)]
struct End {
    position: Option<Position>,
    chain: Option<ChainValue>,
    epoch: Option<Epoch>,
    oldest: Option<u64>,
    average_bytes: u64,
    trimmed: bool,
}

fn last_record(
    lane: &Lane,
    segment: &Segment,
    sealer: &Sealer,
    base: Position,
    sidecar: &Sidecar,
    quarantine: &Quarantine,
    notables: &mut Vec<Notable>,
) -> Result<End, SegmentError> {
    let mut end = End::default();
    let vouched = sidecar.last(lane).map_or(0, |(position, _)| position);
    while let Some(last) = segment.last_position()?.filter(|last| *last >= base) {
        let opened = segment.first(last, last)?.map(|(_, bytes)| bytes.and_then(|bytes| sealer.open(&bytes)));
        match opened {
            Some(Ok((header, _))) => {
                end.position = Some(last);
                end.chain = Some(header.chain);
                end.epoch = Some(header.epoch);
                break;
            }
            // Nobody was told of it: a crash cut it short. Its pieces are kept all the same.
            _ if last > vouched && !end.trimmed => {
                quarantine
                    .keep_own(INCOMPLETE, lane.as_str(), &segment.pieces(last)?)
                    .map_err(SegmentError::Files)?;
                segment.remove(last)?;
                segment.barrier()?;
                end.trimmed = true;
                tracing::warn!(%lane, position = last, "Trimmed an incomplete last record");
                notables.push(Notable {
                    code: "tail.trimmed",
                    detail: format!(
                        "position {last} of lane {lane} was cut short by a crash before it was answered"
                    ),
                });
            }
            // It was answered: it stays. A reader will find it damaged, and salvage may find it whole.
            _ => {
                end.position = Some(last);
                end.trimmed = true;
                break;
            }
        }
    }
    if let Some(last) = end.position {
        let sample_from = last.saturating_sub(SAMPLE_RECORDS - 1).max(base);
        let (mut records, mut bytes) = (0, 0);
        segment.visit(sample_from, last, &mut |_, record| {
            if let Ok((_, transaction)) = record.and_then(|record| sealer.open(&record)) {
                records += 1;
                bytes += transaction.body.len() as u64;
            }
            if bytes < SAMPLE_BYTES { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        end.average_bytes = bytes / records.max(1);
        let oldest = segment.first(base, last)?;
        end.oldest = oldest.and_then(|(_, bytes)| sealer.open(&bytes.ok()?).ok()).map(|(_, t)| t.time);
    }
    Ok(end)
}
