//! From what lies on the disk to a lane that goes on: after a clean stop, after a crash, after damage.
//!
//! A start does not read the backlog. The ledger says what the older segments hold; only the newest is opened, and of
//! that only the last record is looked at. Never is anything deleted here that was answered, and never does a
//! store start silently empty.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use tokio::sync::watch;

use pgw_core::chain::ChainValue;
use pgw_core::delivery::Numbering;
use pgw_core::transaction::{Epoch, Lane, Position};
use uuid::Uuid;

use crate::crypt::seal::Sealer;
use crate::descriptor::failed;
use crate::errors::OpenError;
use crate::files;
use crate::guard::replace::finish_replacements;
use crate::guard::segment::{Extent, Segment, SegmentError, SegmentHeader};
use crate::pipeline::handles::Handles;
use crate::pipeline::lane::{LaneShared, LaneState};
use crate::pipeline::space::Ballast;
use crate::pipeline::startup::segments::{Context, Older, newest_begun, older, segment_failed};
use crate::pipeline::startup::tail::last_record;
use crate::quarantine::Quarantine;
use crate::state::checkpoint::Sidecar;
use crate::state::layout::{lane_file, ordinals};
use crate::state::segment_table::{Holes, LEDGER_VERSION, Ledger};
use crate::state::watermarks::Marks;
use crate::types::{LaneSettings, Mark, Notable, Settings};
use crate::void::Voids;

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

/// What a lane is opened with.
pub(super) struct Beside<'a> {
    pub(super) settings: &'a Settings,
    pub(super) sealer: &'a Sealer,
    pub(super) sidecar: &'a Sidecar,
    pub(super) marks: &'a Marks,
    pub(super) quarantine: &'a Quarantine,
    pub(super) ballast: &'a Ballast,
}

/// Opens one lane.
pub(super) fn open_lane(
    beside: &Beside<'_>,
    lane: &LaneSettings,
    id: u16,
    notables: &mut Vec<Notable>,
) -> Result<Found, OpenError> {
    let store = &beside.settings.directory;
    let name = &lane.lane;
    let directory = store.join("segments").join(name.as_str());
    files::create_directory(&directory).map_err(failed("create", &directory))?;
    let numbering_path = lane_file(store, name, "numbering");
    if let Some(parent) = numbering_path.parent() {
        files::create_directory(parent).map_err(failed("create", parent))?;
    }
    let ledger = read_kept::<Ledger>(&lane_file(store, name, "ledger"), name, notables);
    let known_numbering = read_kept::<Numbering>(&numbering_path, name, notables);

    finish_replacements(&directory).map_err(failed("finish replacing a segment in", &directory))?;
    let mut ordinals = ordinals(&directory).map_err(failed("list", &directory))?;
    let last_ordinal = ordinals.last().copied().unwrap_or(0);
    let context = Context {
        store,
        lane: name,
        id,
        directory: &directory,
        sealer: beside.sealer,
        sidecar: beside.sidecar,
        quarantine: beside.quarantine,
        ballast: beside.ballast,
        numbering: known_numbering.as_ref(),
    };
    let newest = newest_begun(&context, ledger.as_ref(), &mut ordinals, notables)?;
    let numbering = match &known_numbering {
        Some(numbering) => numbering.clone(),
        None => {
            let told = newest.as_ref().map(|(_, _, header)| header.numbering.clone());
            let numbering = told.unwrap_or_else(|| Numbering::new(Epoch(Uuid::now_v7())));
            files::save(&numbering_path, &numbering).map_err(failed("write", &numbering_path))?;
            numbering
        }
    };
    let voids = read_kept::<Voids>(&lane_file(store, name, "voids"), name, notables).unwrap_or_default();
    let mut opening = Opening::new(&context, beside.marks, numbering, voids, ledger.as_ref());
    if let Some((ordinal, segment, header)) = newest {
        let older = older(&context, ledger.as_ref(), &ordinals, ordinal, &header, notables)?;
        opening.continue_after(older, ordinal, segment, &header, notables)?;
    }
    opening.give_up_what_is_lost(notables)?;
    Ok(opening.found(lane, last_ordinal, beside.marks))
}

/// A lane while it is opened.
struct Opening<'a> {
    context: &'a Context<'a>,
    numbering: Numbering,
    voids: Voids,
    holes: Holes,
    row: BTreeMap<u64, Extent>,
    ledger_stale: bool,
    mark: Mark,
    tail: Position,
    chain: ChainValue,
    chain_unknown: bool,
    /// The last record is there and damaged, and nothing knows its chain value.
    end_unknown: bool,
    /// The segment to go on with: ordinal, handle, records, payload bytes.
    active: Option<(u64, Arc<Segment>, u64, u64)>,
}

impl<'a> Opening<'a> {
    fn new(
        context: &'a Context<'a>,
        marks: &Marks,
        numbering: Numbering,
        voids: Voids,
        ledger: Option<&Ledger>,
    ) -> Self {
        let first = ChainValue::first(numbering.at(1).epoch, context.lane.as_str());
        Self {
            context,
            numbering,
            voids,
            holes: ledger.map(|ledger| ledger.holes.clone()).unwrap_or_default(),
            row: BTreeMap::new(),
            ledger_stale: ledger.is_none(),
            mark: marks.mark(context.lane).unwrap_or(Mark { position: 0, chain: first }),
            tail: 0,
            chain: first,
            chain_unknown: false,
            end_unknown: false,
            active: None,
        }
    }

    /// Finds the lane's end in its newest segment, and whether that may be written on.
    fn continue_after(
        &mut self,
        older: Older,
        ordinal: u64,
        segment: Segment,
        header: &SegmentHeader,
        notables: &mut Vec<Notable>,
    ) -> Result<(), OpenError> {
        let context = self.context;
        self.row = older.row;
        self.ledger_stale |= older.stale;
        let mut end = last_record(context, &segment, header.base, notables);
        if end.as_ref().is_err_and(SegmentError::is_full) {
            let directory = context.directory;
            context.ballast.release().map_err(failed("release the ballast for", directory))?;
            end = last_record(context, &segment, header.base, notables);
        }
        let end = end.map_err(segment_failed(segment.directory()))?;
        let tail = end.position.unwrap_or(header.base - 1);
        let beside = context.sidecar.last(context.lane).filter(|(position, _)| *position == tail);
        // The last record is damaged: only the sidecar may still know its chain value.
        let beside_it = beside.map(|(_, chain)| chain);
        self.tail = tail;
        self.end_unknown = end.position.is_some() && end.chain.or(beside_it).is_none();
        self.chain = end.chain.or(beside_it.filter(|_| end.position.is_some())).unwrap_or(header.previous);
        self.chain_unknown = end.epoch.is_some_and(|epoch| epoch != self.numbering.at(tail + 1).epoch)
            || (end.epoch.is_none() && header.numbering != self.numbering);
        let records = tail + 1 - header.base;
        let bytes = end.average_bytes * records;
        let extent = Extent { base: header.base, previous: header.previous, bytes, oldest: end.oldest };
        self.row.insert(ordinal, extent);
        // A tail that nothing vouches for may be in the page cache only, after a barrier that failed before a
        // kill: nothing is appended behind it.
        if !end.trimmed && (beside.is_some() || records == 0) {
            self.active = Some((ordinal, Arc::new(segment), records, bytes));
        }
        Ok(())
    }

    /// What was accepted beyond the end that was found is lost: the lane goes on after it, in a new epoch.
    fn give_up_what_is_lost(&mut self, notables: &mut Vec<Notable>) -> Result<(), OpenError> {
        let (store, name) = (self.context.store, self.context.lane);
        let sidecar = self.context.sidecar.last(name);
        let vouched = sidecar.map_or(0, |(position, _)| position).max(self.mark.position);
        if vouched <= self.tail && !self.end_unknown {
            return Ok(());
        }
        let epoch = Epoch(Uuid::now_v7());
        let vouched = vouched.max(self.tail);
        notables.push(Notable {
            code: "store.shortfall",
            detail: format!(
                "lane {name} is whole through position {} only, but {vouched} was accepted; a new epoch begins",
                if self.end_unknown { self.tail - 1 } else { self.tail }
            ),
        });
        tracing::error!(lane = %name, found = self.tail, accepted = vouched, "Store ends before what it had accepted");
        self.holes.add(self.tail + 1, vouched);
        // The hub may have had what is lost here: by this value it is believed.
        let known = sidecar.filter(|(position, _)| *position == vouched);
        let known = known
            .or(Some((self.mark.position, self.mark.chain)).filter(|(position, _)| *position == vouched));
        if let Some((_, chain)) = known {
            self.voids.add_end(self.numbering.at(vouched).epoch, vouched, chain);
            let path = lane_file(store, name, "voids");
            files::save(&path, &self.voids).map_err(failed("write", &path))?;
        }
        self.numbering = self.numbering.renumbered(epoch, vouched);
        let path = lane_file(store, name, "numbering");
        files::save(&path, &self.numbering).map_err(failed("write", &path))?;
        self.tail = vouched;
        self.chain = ChainValue::first(epoch, name.as_str());
        self.chain_unknown = false;
        self.active = None;
        let path = lane_file(store, name, "ledger");
        let ledger = Ledger { version: LEDGER_VERSION, row: self.row.clone(), holes: self.holes.clone() };
        files::save(&path, &ledger).map_err(failed("write", &path))
    }

    /// The lane, to be shared.
    fn found(self, settings: &LaneSettings, last_ordinal: u64, marks: &Marks) -> Found {
        let Context { lane: name, id, directory, .. } = *self.context;
        let state = LaneState {
            numbering: self.numbering,
            row: self.row,
            tail: self.tail,
            chain: self.chain,
            mark: self.mark,
            backed_up_through: marks.backed_up_through(name),
            holes: self.holes,
            voids: self.voids,
            oldest: None,
            ledger_stale: self.ledger_stale,
            mark_epoch: marks.epoch(name),
            mark_stale: false,
            answered: false,
        };
        let handles = Handles::default();
        if let Some((ordinal, segment, _, _)) = &self.active {
            handles.register(*ordinal, segment);
        }
        let lane = Arc::new(LaneShared {
            name: name.clone(),
            id,
            urgent: settings.urgent,
            directory: directory.to_owned(),
            tail: watch::Sender::new(self.tail),
            state: Mutex::new(state),
            handles,
            ahead: Mutex::new(None),
            voiding: Mutex::new(()),
            repaired: Mutex::default(),
            computed: Mutex::new(None),
        });
        Found { lane, active: self.active, last_ordinal, chain_unknown: self.chain_unknown }
    }
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
