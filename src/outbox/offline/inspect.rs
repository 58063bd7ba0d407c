//! Reads a store that nobody has open, raw, and writes nothing: what each lane should have, and what lies in its segments.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::{fs, io};

use pgw_core::chain::ChainValue;
use pgw_core::delivery::Numbering;
use pgw_core::transaction::{Epoch, Lane, Position, Transaction};

use crate::crypt::seal::Sealer;
use crate::files;
use crate::guard::carve::{Salvaged, header_in, scan_directory};
use crate::guard::log_check;
use crate::guard::record::Header;
use crate::guard::segment::{DATABASE_FILE, Extent, SegmentHeader};
use crate::offline::error::RepairError;
use crate::offline::plan::{Anchor, Candidates, Found, Part, Released, Verdict, judge};
use crate::state::checkpoint::Sidecar;
use crate::state::layout::lane_file;
use crate::state::segment_table::Ledger;
use crate::state::watermarks::Marks;
use crate::types::Mark;
use crate::void::Voids;

/// A lane as the small files and the segments' headers tell of it, and what lies in its segments.
#[derive(Debug)]
pub(super) struct Look {
    pub(super) lane: Lane,
    /// Its number in records.
    pub(super) id: u16,
    pub(super) numbering: Option<Numbering>,
    pub(super) ledger: Option<Ledger>,
    pub(super) mark: Option<Mark>,
    pub(super) sidecar: Option<(Position, ChainValue)>,
    pub(super) voids: Voids,
    /// Where each epoch begins that anything tells of.
    bases: HashMap<Epoch, Position>,
    /// By ordinal.
    pub(super) pieces: BTreeMap<u64, Piece>,
    /// The last position.
    pub(super) tail: Position,
}

/// A segment as it lies there.
#[derive(Debug)]
pub(super) struct Piece {
    /// Where it belongs.
    pub(super) place: PathBuf,
    /// Where it lies now: a crash can have left it beside its place. `None`: it is gone.
    pub(super) lies: Option<PathBuf>,
    pub(super) header: Option<SegmentHeader>,
    pub(super) extent: Extent,
    /// The last position that counts in it.
    pub(super) last: Position,
    /// Whether sled would find all of its log; otherwise the daemon salvages it when it opens it.
    pub(super) sound: bool,
    /// Bytes that the disk could not read.
    pub(super) unreadable_bytes: u64,
    /// What was found in it; of one that is whole only the first and the last record are kept here.
    pub(super) found: Candidates,
    /// Every position is there, and each follows from the one before.
    pub(super) whole: bool,
}

/// Opens what is found, and remembers the names of senders once.
pub(super) struct Opener<'a> {
    sealer: &'a Sealer,
    senders: HashMap<String, Arc<str>>,
}

impl<'a> Opener<'a> {
    pub(super) fn new(sealer: &'a Sealer) -> Self {
        Self { sealer, senders: HashMap::new() }
    }

    /// The record's header and what planning needs of it; `None`: it is not ours, or its seal is broken.
    pub(super) fn open(&mut self, salvaged: &Salvaged) -> Option<(Header, Transaction, Found)> {
        let (header, transaction) = self.sealer.open(&salvaged.record).ok()?;
        let sender = Arc::clone(
            self.senders
                .entry(transaction.source.clone())
                .or_insert_with(|| Arc::from(transaction.source.as_str())),
        );
        let found = Found {
            epoch: header.epoch,
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

impl Look {
    /// Looks at one lane. `progress` hears of each segment before it is read.
    pub(super) fn at(
        store: &Path,
        (lane, id): (&Lane, u16),
        opener: &mut Opener<'_>,
        progress: &mut dyn FnMut(&Lane, u64),
    ) -> Result<Self, RepairError> {
        let directory = store.join("segments").join(lane.as_str());
        // What cannot be read here the daemon makes again, and so it counts for nothing.
        let ledger = files::load::<Ledger>(&lane_file(store, lane, "ledger")).ok().flatten();
        let numbering = files::load::<Numbering>(&lane_file(store, lane, "numbering")).ok().flatten();
        let voids = files::load::<Voids>(&lane_file(store, lane, "voids")).ok().flatten().unwrap_or_default();
        let sidecar_path = store.join("sidecar");
        let sidecar = Sidecar::look(&sidecar_path).map_err(RepairError::cannot("read", &sidecar_path))?;
        let sidecar = sidecar.and_then(|lanes| lanes.get(lane).copied());
        let marks_path = store.join("marks");
        let mark = Marks::open(&marks_path).map_err(RepairError::cannot("read", &marks_path))?.mark(lane);
        let given_up =
            ledger.as_ref().and_then(|ledger| ledger.holes.ranges().last()).map_or(0, |hole| hole.1);
        let vouched = sidecar.map_or(0, |(position, _)| position).max(mark.map_or(0, |mark| mark.position));
        let vouched = vouched.max(given_up);
        let lying = segments(&directory).map_err(RepairError::cannot("list", &directory))?;
        let pieces = row(&directory, lying, ledger.as_ref(), vouched, mark)?;
        let mut bases = HashMap::new();
        let headers = pieces.values().filter_map(|piece| piece.header.as_ref()).map(|h| &h.numbering);
        for numbering in headers.chain(&numbering) {
            bases.extend(numbering.epochs().iter().map(|begun| (begun.epoch, begun.base)));
        }
        let numbering = numbering.or_else(|| {
            pieces
                .values()
                .rev()
                .find_map(|piece| piece.header.as_ref())
                .map(|header| header.numbering.clone())
        });
        let mut look = Self {
            lane: lane.clone(),
            id,
            numbering,
            ledger,
            mark,
            sidecar,
            voids,
            bases,
            pieces,
            tail: vouched,
        };
        let ordinals: Vec<u64> = look.pieces.keys().copied().rev().collect();
        for ordinal in ordinals {
            progress(lane, ordinal);
            look.read_piece(ordinal, vouched, opener)?;
        }
        Ok(look)
    }

    /// Whether the record is one of this lane whose chain value follows from its content; where the beginning of its epoch is
    /// not known any more, its seal alone speaks for the value.
    pub(super) fn is_sealed_here(&self, header: &Header, transaction: &Transaction) -> bool {
        if header.lane != self.id {
            return false;
        }
        let Some(sequence) = self
            .bases
            .get(&header.epoch)
            .and_then(|base| header.position.checked_sub(*base))
            .filter(|s| *s > 0)
        else {
            return true;
        };
        header.chain == header.previous.next_for(header.epoch, &self.lane, sequence, transaction)
    }

    /// Reads one segment raw. The newest comes first, as it says where the lane ends.
    fn read_piece(
        &mut self,
        ordinal: u64,
        vouched: Position,
        opener: &mut Opener<'_>,
    ) -> Result<(), RepairError> {
        let newest = self.pieces.last_key_value().is_some_and(|(last, _)| *last == ordinal);
        let Some(piece) = self.pieces.get(&ordinal) else { return Ok(()) };
        let (first, last, lies) = (piece.extent.base, piece.last, piece.lies.clone());
        let mut found = Candidates::new();
        let mut unreadable_bytes = 0;
        let mut sound = false;
        if let Some(lies) = &lies {
            let scan = scan_directory(lies).map_err(RepairError::cannot("read", lies))?;
            unreadable_bytes = scan.unreadable_bytes();
            for salvaged in scan.records() {
                let position = salvaged.position;
                if position < first || (!newest && position > last) {
                    continue;
                }
                if let Some((header, transaction, opened)) = opener.open(&salvaged)
                    && self.is_sealed_here(&header, &transaction)
                {
                    found.entry(position).or_default().push(Found { own: true, ..opened });
                }
            }
            let durable = if newest { vouched } else { last };
            sound = piece.header.is_some()
                && log_check::is_sound(&lies.join(DATABASE_FILE), durable).unwrap_or(false);
        }
        let mut last = last;
        if newest {
            // What a crash left behind a gap was never answered.
            let durable = vouched.max(first.saturating_sub(1));
            let end = (durable + 1..).find(|position| !found.contains_key(position)).unwrap_or(Position::MAX);
            found.split_off(&end);
            last = end - 1;
            self.tail = last;
        }
        if let Some(piece) = self.pieces.get_mut(&ordinal) {
            (piece.last, piece.sound, piece.unreadable_bytes) = (last, sound, unreadable_bytes);
            piece.found = found;
        }
        self.keep_little_of_what_is_whole(ordinal);
        Ok(())
    }

    fn keep_little_of_what_is_whole(&mut self, ordinal: u64) {
        let anchors = self.anchors();
        let (holes, released) = (self.holes().to_vec(), self.released());
        let Some(piece) = self.pieces.get_mut(&ordinal) else { return };
        let (first, last) = (piece.extent.base, piece.last);
        let part = Part { first, last, holes: &holes, released: &released, anchors: &anchors };
        let stands = |(position, verdict): (&Position, &Verdict)| {
            matches!(verdict, Verdict::Stands(_)) && piece.found.get(position).is_some_and(|f| f.len() == 1)
        };
        piece.whole = piece.sound && judge(&part, &piece.found).verdicts.iter().all(stands);
        if piece.whole {
            piece.found.retain(|position, _| *position == first || *position == last);
        }
    }

    /// What the store gives up as lost.
    pub(super) fn holes(&self) -> &[(Position, Position)] {
        self.ledger.as_ref().map_or(&[], |ledger| ledger.holes.ranges())
    }

    /// What a person has released.
    pub(super) fn released(&self) -> Vec<Released> {
        let ranges = self.voids.ranges();
        ranges.map(|(from, through, epoch, previous)| Released { from, through, epoch, previous }).collect()
    }

    /// The chain values that are known beside the records.
    pub(super) fn anchors(&self) -> Vec<Anchor> {
        let mut anchors = Vec::new();
        // A lane that was opened twice after it had lost its end has the first value of the next epoch there.
        let is_first = |chain| self.bases.keys().any(|e| ChainValue::first(*e, self.lane.as_str()) == chain);
        for (epoch, position, chain) in self.voids.ends().filter(|(_, _, chain)| !is_first(*chain)) {
            anchors.push(Anchor { position, epoch, chain });
        }
        if let Some(numbering) = &self.numbering {
            if let Some((position, chain)) = self.sidecar {
                // It has the value as the next record will have it.
                anchors.push(Anchor { position, epoch: numbering.at(position + 1).epoch, chain });
            }
            if let Some(Mark { position, chain }) = self.mark {
                anchors.push(Anchor { position, epoch: numbering.at(position.max(1)).epoch, chain });
            }
        }
        for piece in self.pieces.values() {
            let Some(header) = &piece.header else { continue };
            // A header that salvage had to make up has no value.
            if header.previous != ChainValue([0; 32]) {
                anchors.push(Anchor {
                    position: header.base.saturating_sub(1),
                    epoch: header.numbering.at(header.base).epoch,
                    chain: header.previous,
                });
            }
        }
        anchors
    }
}

/// The segments of a lane by ordinal, and where each lies.
fn segments(directory: &Path) -> io::Result<BTreeMap<u64, PathBuf>> {
    let mut lying = BTreeMap::new();
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(lying),
        other => other?,
    };
    for entry in entries {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        // `{ordinal}.new` counts only where `{ordinal}` is gone: it was finished then.
        let stem = name.strip_suffix(".new").unwrap_or(name);
        if let Some(ordinal) = (stem.len() == 10).then(|| stem.parse().ok()).flatten()
            && (stem == name || !directory.join(stem).exists())
        {
            lying.insert(ordinal, path);
        }
    }
    Ok(lying)
}

/// The row of a lane as the daemon would find it; and those that are gone and were not confirmed.
fn row(
    directory: &Path,
    lying: BTreeMap<u64, PathBuf>,
    ledger: Option<&Ledger>,
    vouched: Position,
    mark: Option<Mark>,
) -> Result<BTreeMap<u64, Piece>, RepairError> {
    let mut headers: BTreeMap<u64, Option<SegmentHeader>> = BTreeMap::new();
    let mut extents: BTreeMap<u64, Extent> = ledger.map(|ledger| ledger.row.clone()).unwrap_or_default();
    for (ordinal, path) in &lying {
        let header = header_in(path).filter(|header| header.ordinal == *ordinal);
        if let Some(header) = &header {
            if let Some((before, extent)) = header.predecessor {
                extents.entry(before).or_insert(extent);
            }
            let known = extents.get(ordinal).copied();
            let (bytes, oldest) = known.map_or((0, None), |extent| (extent.bytes, extent.oldest));
            extents.insert(*ordinal, Extent { base: header.base, previous: header.previous, bytes, oldest });
        } else if !extents.contains_key(ordinal) {
            let scan = scan_directory(path).map_err(RepairError::cannot("read", path))?;
            let first = scan.records().next().and_then(|s| Header::parse(&s.record).ok().map(|(h, _)| h));
            // Without a header and a record it was made ahead only.
            let Some(first) = first else { continue };
            let extent = Extent { base: first.position, previous: first.previous, bytes: 0, oldest: None };
            extents.insert(*ordinal, extent);
        }
        headers.insert(*ordinal, header);
    }
    let confirmed = mark.map_or(0, |mark| mark.position);
    let mut pieces = BTreeMap::new();
    let mut next_base: Option<Position> = None;
    let ordinals: BTreeSet<u64> = extents.keys().copied().collect();
    for ordinal in ordinals.into_iter().rev() {
        let Some(extent) = extents.get(&ordinal).copied() else { continue };
        let lies = lying.get(&ordinal).cloned();
        let last = next_base.map_or(vouched, |next| next - 1);
        let overtaken = next_base.is_some_and(|next| extent.base >= next);
        // What is gone and was confirmed was pruned.
        if overtaken || (lies.is_none() && (last <= confirmed || last < extent.base)) {
            continue;
        }
        next_base = Some(extent.base);
        pieces.insert(
            ordinal,
            Piece {
                place: directory.join(format!("{ordinal:010}")),
                lies,
                header: headers.remove(&ordinal).flatten(),
                extent,
                last,
                sound: false,
                unreadable_bytes: 0,
                found: Candidates::new(),
                whole: false,
            },
        );
    }
    Ok(pieces)
}
