//! Reads the raw files of a store that nobody has open, and writes nothing: what each lane should have, and what its
//! segments hold.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use pgw_core::chain::{ChainValue, Digest};
use pgw_core::transaction::{Lane, LaneName, Position, Transaction};
use uuid::Uuid;

use crate::crypt::seal::Sealer;
use crate::files;
use crate::guard::carve::{CarvedRecord, header_in, scan_directory};
use crate::guard::log_check;
use crate::guard::record::Header;
use crate::guard::segment::{DATABASE_FILE, SegmentHeader, Span};
use crate::offline::error::RepairError;
use crate::offline::plan::{Anchor, Candidates, FoundRecord, Part, PositionVerdict, decide};
use crate::state::checkpoint::TailCheckpoint;
use crate::state::digest_table::{self, lane_id_in};
use crate::state::lane_epochs::LaneEpochs;
use crate::state::layout::lane_file;
use crate::state::segment_table::SegmentTable;
use crate::state::watermarks::Watermarks;
use crate::types::Watermark;
use crate::void::Voids;

/// A lane as the small files and the segments' headers describe it, and the content of its segments.
#[derive(Debug)]
pub(super) struct LaneInspection {
    pub(super) lane: Lane,
    full_name: LaneName,
    /// Its number in records.
    pub(super) id: u16,
    /// Its own id and its epochs.
    pub(super) epochs: Option<LaneEpochs>,
    pub(super) table: Option<SegmentTable>,
    pub(super) watermark: Option<Watermark>,
    pub(super) checkpoint: Option<(Position, ChainValue)>,
    pub(super) voids: Voids,
    /// By segment number.
    pub(super) segments: BTreeMap<u64, SegmentInspection>,
    /// The digests of written-off positions that are in no segment any more: it was pruned once the hub had the entry.
    pub(super) pruned: BTreeMap<Position, Digest>,
    /// The last position.
    pub(super) tail: Position,
}

/// A segment as it was found.
#[derive(Debug)]
pub(super) struct SegmentInspection {
    /// Its proper path.
    pub(super) place: PathBuf,
    /// Where it is now: a crash can have left it beside its place. `None`: it is gone.
    pub(super) lies: Option<PathBuf>,
    pub(super) header: Option<SegmentHeader>,
    pub(super) span: Span,
    /// The last position that counts in it.
    pub(super) last: Position,
    /// Whether sled would find all of its log; if not, the daemon rebuilds it when it opens it.
    pub(super) sound: bool,
    /// Bytes that the disk could not read.
    pub(super) unreadable_bytes: u64,
    /// What its digest table says.
    pub(super) digests: BTreeMap<Position, Digest>,
    /// The records found in it; of a whole segment only the first and the last are kept here.
    pub(super) found: Candidates,
    /// Every position has its record, and each follows from the one before.
    pub(super) whole: bool,
}

/// Opens found records, and keeps each sender's name only once.
pub(super) struct Opener<'a> {
    sealer: &'a Sealer,
    senders: HashMap<String, Arc<str>>,
}

impl<'a> Opener<'a> {
    pub(super) fn new(sealer: &'a Sealer) -> Self {
        Self { sealer, senders: HashMap::new() }
    }

    /// The record's header and what planning needs of it; `None`: it is not ours, or its seal is broken.
    pub(super) fn open(&mut self, carved: &CarvedRecord) -> Option<(Header, Transaction, FoundRecord)> {
        let (header, transaction) = self.sealer.open(&carved.record).ok()?;
        let sender = Arc::clone(
            self.senders
                .entry(transaction.sender.clone())
                .or_insert_with(|| Arc::from(transaction.sender.as_str())),
        );
        let found = FoundRecord {
            previous: header.previous,
            chain: header.chain,
            tag: header.crc,
            own: false,
            time: transaction.time,
            sender,
        };
        Some((header, transaction, found))
    }
}

impl LaneInspection {
    /// Inspects one lane. Calls `progress` with each segment before it is read.
    pub(super) fn at(
        store: &Path,
        (full_name, id): (LaneName, u16),
        opener: &mut Opener<'_>,
        progress: &mut dyn FnMut(&Lane, u64),
    ) -> Result<Self, RepairError> {
        let lane = &full_name.lane;
        let directory = store.join("segments").join(lane.as_str());
        // The daemon recreates files that cannot be read here, so they are ignored.
        let table = files::load::<SegmentTable>(&lane_file(store, lane, "ledger")).ok().flatten();
        let epochs = LaneEpochs::read(store, lane);
        let voids = files::load::<Voids>(&lane_file(store, lane, "voids")).ok().flatten().unwrap_or_default();
        let checkpoint_path = store.join("sidecar");
        let checkpoint =
            TailCheckpoint::read(&checkpoint_path).map_err(RepairError::cannot("read", &checkpoint_path))?;
        let checkpoint = checkpoint.and_then(|lanes| lanes.get(lane).copied());
        let watermarks_path = store.join("marks");
        let watermark = Watermarks::open(&watermarks_path)
            .map_err(RepairError::cannot("read", &watermarks_path))?
            .watermark(lane);
        let given_up = table
            .as_ref()
            .and_then(|table| table.missing.ranges().last())
            .map_or(0, |is_missing| is_missing.1);
        let vouched = checkpoint
            .map_or(0, |(position, _)| position)
            .max(watermark.map_or(0, |watermark| watermark.position));
        let vouched = vouched.max(given_up);
        let lying = lying_segments(&directory).map_err(RepairError::cannot("list", &directory))?;
        let segments = known_segments(&directory, lying, table.as_ref(), vouched, watermark)?;
        let epochs = epochs.or_else(|| {
            let header = segments.values().rev().find_map(|segment| segment.header.as_ref())?;
            header.numbering.clone().map(|epochs| LaneEpochs::new(header.lane_id, epochs))
        });
        let lane_id = epochs.as_ref().map(|epochs| epochs.lane_id).or_else(|| lane_id_in(&directory));
        let mut inspection = Self {
            lane: lane.clone(),
            full_name: full_name.clone(),
            id,
            epochs,
            table,
            watermark,
            checkpoint,
            voids,
            segments,
            pruned: BTreeMap::new(),
            tail: vouched,
        };
        let numbers: Vec<u64> = inspection.segments.keys().copied().rev().collect();
        for number in numbers {
            progress(lane, number);
            inspection.read_piece(number, vouched, opener)?;
            inspection.read_digests(&directory, lane_id, number);
        }
        inspection.read_pruned(&directory, lane_id);
        Ok(inspection)
    }

    /// Whether the record is one of this lane whose chain value follows from its content.
    pub(super) fn is_sealed_here(&self, header: &Header, transaction: &Transaction) -> bool {
        header.lane == self.id
            && header.chain == header.previous.next(header.position, transaction.digest(&self.full_name))
    }

    /// Whether the lane began its chain again with this value, because the true one was lost: it proves nothing.
    pub(super) fn begins_again(&self, Anchor { position, chain }: Anchor) -> bool {
        self.epochs.as_ref().is_some_and(|epochs| {
            chain == ChainValue::after_lost_position(&self.full_name, epochs.lane_id, position)
        })
    }

    /// Reads what the digest table of a segment says. A table that cannot be read says nothing.
    fn read_digests(&mut self, directory: &Path, lane_id: Option<Uuid>, number: u64) {
        let Some((segment, lane_id)) = self.segments.get_mut(&number).zip(lane_id) else { return };
        let (first, last) = (segment.span.base, segment.last);
        if segment.whole || first > last {
            return;
        }
        let digests = digest_table::read(directory, lane_id, first, (first, last)).unwrap_or_default();
        let known = (first..).zip(digests).filter_map(|(position, digest)| Some((position, digest?)));
        segment.digests = known.collect();
    }

    /// Reads what the digest tables of pruned segments say about what was written off in them.
    fn read_pruned(&mut self, directory: &Path, lane_id: Option<Uuid>) {
        let kept_from = self.segments.values().next().map_or(self.tail + 1, |segment| segment.span.base);
        let Some(lane_id) = lane_id.filter(|_| self.voids.ranges().iter().any(|void| void.from < kept_from))
        else {
            return;
        };
        let bases = digest_table::table_bases(directory).unwrap_or_default();
        let mut bases = bases.range(..kept_from).copied().peekable();
        while let Some(base) = bases.next() {
            let last = bases.peek().copied().unwrap_or(kept_from) - 1;
            for void in self.voids.ranges() {
                let (from, through) = (void.from.max(base), void.through.min(last));
                if from <= through {
                    let digests = digest_table::read(directory, lane_id, base, (from, through));
                    let known = (from..).zip(digests.unwrap_or_default());
                    self.pruned.extend(known.filter_map(|(position, digest)| Some((position, digest?))));
                }
            }
        }
        self.pruned.retain(|position, _| !self.voids.has_returned(*position));
    }

    /// Reads one segment's raw files. The newest comes first: it shows where the lane ends.
    fn read_piece(
        &mut self,
        number: u64,
        vouched: Position,
        opener: &mut Opener<'_>,
    ) -> Result<(), RepairError> {
        let newest = self.segments.last_key_value().is_some_and(|(last, _)| *last == number);
        let Some(segment) = self.segments.get(&number) else { return Ok(()) };
        let (first, last, lies) = (segment.span.base, segment.last, segment.lies.clone());
        let mut found = Candidates::new();
        let mut unreadable_bytes = 0;
        let mut sound = false;
        if let Some(lies) = &lies {
            let scan = scan_directory(lies).map_err(RepairError::cannot("read", lies))?;
            unreadable_bytes = scan.unreadable_bytes();
            for carved in scan.records() {
                let position = carved.position;
                if position < first || (!newest && position > last) {
                    continue;
                }
                if let Some((header, transaction, opened)) = opener.open(&carved)
                    && self.is_sealed_here(&header, &transaction)
                {
                    found.entry(position).or_default().push(FoundRecord { own: true, ..opened });
                }
            }
            let durable = if newest { vouched } else { last };
            sound = segment.header.is_some()
                && log_check::is_sound(&lies.join(DATABASE_FILE), durable).unwrap_or(false);
        }
        let mut last = last;
        if newest {
            // Records that a crash left after a gap were never answered.
            let durable = vouched.max(first.saturating_sub(1));
            let end = (durable + 1..).find(|position| !found.contains_key(position)).unwrap_or(Position::MAX);
            found.split_off(&end);
            last = end - 1;
            self.tail = last;
        }
        if let Some(segment) = self.segments.get_mut(&number) {
            (segment.last, segment.sound, segment.unreadable_bytes) = (last, sound, unreadable_bytes);
            segment.found = found;
        }
        self.keep_little_of_what_is_whole(number);
        Ok(())
    }

    fn keep_little_of_what_is_whole(&mut self, number: u64) {
        let anchors = self.anchors();
        let (missing, released) = (self.missing().to_vec(), self.released());
        let Some(segment) = self.segments.get_mut(&number) else { return };
        let (first, last) = (segment.span.base, segment.last);
        let (missing, released, digests) = (&missing[..], &released[..], &BTreeMap::new());
        let part = Part { first, last, missing, released, anchors: &anchors, digests };
        let intact = |(position, verdict): (&Position, &PositionVerdict)| {
            matches!(verdict, PositionVerdict::Intact(_))
                && segment.found.get(position).is_some_and(|f| f.len() == 1)
        };
        segment.whole = segment.sound && decide(&part, &segment.found).verdicts.iter().all(intact);
        if segment.whole {
            segment.found.retain(|position, _| *position == first || *position == last);
        }
    }

    /// The positions that the store counts as missing.
    pub(super) fn missing(&self) -> &[(Position, Position)] {
        self.table.as_ref().map_or(&[], |table| table.missing.ranges())
    }

    /// The ranges that an operator has written off.
    pub(super) fn released(&self) -> Vec<(Position, Position)> {
        self.voids.ranges().iter().map(|range| (range.from, range.through)).collect()
    }

    /// The values of the chain over positions that are known beside the records.
    pub(super) fn anchors(&self) -> Vec<Anchor> {
        let mut anchors = Vec::new();
        if let Some((position, chain)) = self.checkpoint {
            anchors.push(Anchor { position, chain });
        }
        for segment in self.segments.values() {
            let Some(header) = &segment.header else { continue };
            // A substitute header that carving made has no value.
            if header.previous != ChainValue([0; 32]) {
                anchors.push(Anchor { position: header.base.saturating_sub(1), chain: header.previous });
            }
        }
        anchors.retain(|anchor| !self.begins_again(*anchor));
        anchors
    }
}

/// The segments of a lane by segment number, with their paths.
fn lying_segments(directory: &Path) -> io::Result<BTreeMap<u64, PathBuf>> {
    let mut lying = BTreeMap::new();
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(lying),
        other => other?,
    };
    for entry in entries {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        // `{segment number}.new` counts only where `{segment number}` is gone: it was finished then.
        let stem = name.strip_suffix(".new").unwrap_or(name);
        if let Some(number) = (stem.len() == 10).then(|| stem.parse().ok()).flatten()
            && (stem == name || !directory.join(stem).exists())
        {
            lying.insert(number, path);
        }
    }
    Ok(lying)
}

/// A lane's segments as the daemon would find them, and those that are gone and were not confirmed.
fn known_segments(
    directory: &Path,
    lying: BTreeMap<u64, PathBuf>,
    table: Option<&SegmentTable>,
    vouched: Position,
    watermark: Option<Watermark>,
) -> Result<BTreeMap<u64, SegmentInspection>, RepairError> {
    let mut headers: BTreeMap<u64, Option<SegmentHeader>> = BTreeMap::new();
    let mut spans: BTreeMap<u64, Span> = table.map(|table| table.segments.clone()).unwrap_or_default();
    for (number, path) in &lying {
        let header = header_in(path).filter(|header| header.number == *number);
        if let Some(header) = &header {
            if let Some((before, span)) = header.predecessor {
                spans.entry(before).or_insert(span);
            }
            let known = spans.get(number).copied();
            let (bytes, oldest) = known.map_or((0, None), |span| (span.bytes, span.oldest));
            spans.insert(*number, Span { base: header.base, previous: header.previous, bytes, oldest });
        } else if !spans.contains_key(number) {
            let scan = scan_directory(path).map_err(RepairError::cannot("read", path))?;
            let first = scan.records().next().and_then(|s| Header::parse(&s.record).ok().map(|(h, _)| h));
            // Without a header and a record it was only made ahead.
            let Some(first) = first else { continue };
            let span = Span { base: first.position, previous: first.previous, bytes: 0, oldest: None };
            spans.insert(*number, span);
        }
        headers.insert(*number, header);
    }
    let confirmed = watermark.map_or(0, |watermark| watermark.position);
    let mut segments = BTreeMap::new();
    let mut next_base: Option<Position> = None;
    let numbers: BTreeSet<u64> = spans.keys().copied().collect();
    for number in numbers.into_iter().rev() {
        let Some(span) = spans.get(&number).copied() else { continue };
        let lies = lying.get(&number).cloned();
        let last = next_base.map_or(vouched, |next| next - 1);
        let overtaken = next_base.is_some_and(|next| span.base >= next);
        // A segment that is gone and was confirmed was pruned.
        if overtaken || (lies.is_none() && (last <= confirmed || last < span.base)) {
            continue;
        }
        next_base = Some(span.base);
        segments.insert(
            number,
            SegmentInspection {
                place: directory.join(format!("{number:010}")),
                lies,
                header: headers.remove(&number).flatten(),
                span,
                last,
                sound: false,
                unreadable_bytes: 0,
                digests: BTreeMap::new(),
                found: Candidates::new(),
                whole: false,
            },
        );
    }
    Ok(segments)
}
