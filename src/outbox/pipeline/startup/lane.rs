//! Opens a lane from its files on the disk: after a clean stop, after a crash, after damage.
//!
//! A start does not read the backlog. The segment table says what the older segments hold; only the newest is opened, and of
//! that only the last record is read. A start never deletes an answered record, and a store never starts silently empty.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};

use pgw_core::chain::ChainValue;
use pgw_core::delivery::Numbering;
use pgw_core::transaction::{Epoch, Lane, Position};
use tokio::sync::watch;
use uuid::Uuid;

use crate::crypt::seal::Sealer;
use crate::descriptor::failed;
use crate::errors::OpenError;
use crate::files;
use crate::guard::replace::finish_replacements;
use crate::guard::segment::{Segment, SegmentError, SegmentHeader, Span};
use crate::pipeline::handles::Handles;
use crate::pipeline::lane::{LaneState, SharedLane};
use crate::pipeline::space::Ballast;
use crate::pipeline::startup::segments::{LaneContext, Older, newest_begun, older, segment_failed};
use crate::pipeline::startup::tail::last_record;
use crate::quarantine::Quarantine;
use crate::state::checkpoint::TailCheckpoint;
use crate::state::layout::{lane_file, segment_numbers};
use crate::state::segment_table::{MissingRecords, SEGMENT_TABLE_VERSION, SegmentTable};
use crate::state::watermarks::Watermarks;
use crate::types::{LaneSettings, OutboxAlarm, OutboxSettings, Watermark};
use crate::void::Voids;

/// A lane as it was found.
pub(crate) struct OpenedLane {
    pub(crate) lane: Arc<SharedLane>,
    /// The segment to continue: segment number, handle, records, payload bytes.
    pub(crate) active: Option<(u64, Arc<Segment>, u64, u64)>,
    /// The highest segment number in use.
    pub(crate) last_number: u64,
    /// The last record was accepted in an older epoch: the chain value at the tail has to be computed.
    pub(crate) chain_unknown: bool,
}

/// The store's files that a lane needs to open.
pub(super) struct StoreParts<'a> {
    pub(super) settings: &'a OutboxSettings,
    pub(super) sealer: &'a Sealer,
    pub(super) checkpoint: &'a TailCheckpoint,
    pub(super) watermarks: &'a Watermarks,
    pub(super) quarantine: &'a Quarantine,
    pub(super) ballast: &'a Ballast,
}

/// Opens one lane.
pub(super) fn open_lane(
    parts: &StoreParts<'_>,
    lane: &LaneSettings,
    id: u16,
    alarms: &mut Vec<OutboxAlarm>,
) -> Result<OpenedLane, OpenError> {
    let store = &parts.settings.directory;
    let name = &lane.lane;
    let directory = store.join("segments").join(name.as_str());
    files::create_directory(&directory).map_err(failed("create", &directory))?;
    let numbering_path = lane_file(store, name, "numbering");
    if let Some(parent) = numbering_path.parent() {
        files::create_directory(parent).map_err(failed("create", parent))?;
    }
    let table = load_or_alarm::<SegmentTable>(&lane_file(store, name, "ledger"), name, alarms);
    let known_numbering = load_or_alarm::<Numbering>(&numbering_path, name, alarms);

    finish_replacements(&directory).map_err(failed("finish replacing a segment in", &directory))?;
    let mut numbers = segment_numbers(&directory).map_err(failed("list", &directory))?;
    let last_number = numbers.last().copied().unwrap_or(0);
    let context = LaneContext {
        store,
        lane: name,
        full_name: parts.settings.lane_name(name),
        id,
        directory: &directory,
        sealer: parts.sealer,
        checkpoint: parts.checkpoint,
        quarantine: parts.quarantine,
        ballast: parts.ballast,
        numbering: known_numbering.as_ref(),
    };
    let newest = newest_begun(&context, table.as_ref(), &mut numbers, alarms)?;
    let numbering = match &known_numbering {
        Some(numbering) => numbering.clone(),
        None => {
            let from_header = newest.as_ref().map(|(_, _, header)| header.numbering.clone());
            let numbering = from_header.unwrap_or_else(|| Numbering::new(Epoch(Uuid::now_v7())));
            files::save(&numbering_path, &numbering).map_err(failed("write", &numbering_path))?;
            numbering
        }
    };
    let voids = load_or_alarm::<Voids>(&lane_file(store, name, "voids"), name, alarms).unwrap_or_default();
    let mut opening = LaneStartup::new(&context, parts.watermarks, numbering, voids, table.as_ref());
    if let Some((number, segment, header)) = newest {
        let older = older(&context, table.as_ref(), &numbers, number, &header, alarms)?;
        opening.continue_after(older, number, segment, &header, alarms)?;
    }
    opening.continue_after_lost_tail(alarms)?;
    Ok(opening.found(lane, last_number, parts.watermarks))
}

/// A lane while it is opened.
struct LaneStartup<'a> {
    context: &'a LaneContext<'a>,
    numbering: Numbering,
    voids: Voids,
    missing: MissingRecords,
    segments: BTreeMap<u64, Span>,
    table_stale: bool,
    watermark: Watermark,
    tail: Position,
    chain: ChainValue,
    chain_unknown: bool,
    /// The last record is damaged, and its chain value is not known from elsewhere.
    end_unknown: bool,
    /// The segment to continue: segment number, handle, records, payload bytes.
    active: Option<(u64, Arc<Segment>, u64, u64)>,
}

impl<'a> LaneStartup<'a> {
    fn new(
        context: &'a LaneContext<'a>,
        watermarks: &Watermarks,
        numbering: Numbering,
        voids: Voids,
        table: Option<&SegmentTable>,
    ) -> Self {
        let first = ChainValue::first(&context.full_name, numbering.at(1).epoch);
        Self {
            context,
            numbering,
            voids,
            missing: table.map(|table| table.missing.clone()).unwrap_or_default(),
            segments: BTreeMap::new(),
            table_stale: table.is_none(),
            watermark: watermarks.watermark(context.lane).unwrap_or(Watermark { position: 0, chain: first }),
            tail: 0,
            chain: first,
            chain_unknown: false,
            end_unknown: false,
            active: None,
        }
    }

    /// Finds the lane's end in its newest segment, and whether the writer may continue in it.
    fn continue_after(
        &mut self,
        older: Older,
        number: u64,
        segment: Segment,
        header: &SegmentHeader,
        alarms: &mut Vec<OutboxAlarm>,
    ) -> Result<(), OpenError> {
        let context = self.context;
        self.segments = older.segments;
        self.table_stale |= older.stale;
        let mut end = last_record(context, &segment, header.base, alarms);
        if end.as_ref().is_err_and(SegmentError::is_full) {
            let directory = context.directory;
            context.ballast.release().map_err(failed("release the ballast for", directory))?;
            end = last_record(context, &segment, header.base, alarms);
        }
        let end = end.map_err(segment_failed(segment.directory()))?;
        let tail = end.position.unwrap_or(header.base - 1);
        let parts = context.checkpoint.last(context.lane).filter(|(position, _)| *position == tail);
        // If the last record is damaged, only the tail checkpoint may have its chain value.
        let at_checkpoint = parts.map(|(_, chain)| chain);
        self.tail = tail;
        self.end_unknown = end.position.is_some() && end.chain.or(at_checkpoint).is_none();
        self.chain =
            end.chain.or(at_checkpoint.filter(|_| end.position.is_some())).unwrap_or(header.previous);
        self.chain_unknown = end.epoch.is_some_and(|epoch| epoch != self.numbering.at(tail + 1).epoch)
            || (end.epoch.is_none() && header.numbering != self.numbering);
        let records = tail + 1 - header.base;
        let bytes = end.average_bytes * records;
        let span = Span { base: header.base, previous: header.previous, bytes, oldest: end.oldest };
        self.segments.insert(number, span);
        // A tail beyond the tail checkpoint may be in the page cache only, after a barrier that failed before a kill:
        // nothing is appended to that segment.
        if !end.trimmed && (parts.is_some() || records == 0) {
            self.active = Some((number, Arc::new(segment), records, bytes));
        }
        Ok(())
    }

    /// Records that were accepted beyond the end that was found are lost: the lane continues after them, in a new epoch.
    fn continue_after_lost_tail(&mut self, alarms: &mut Vec<OutboxAlarm>) -> Result<(), OpenError> {
        let (store, name) = (self.context.store, self.context.lane);
        let checkpoint = self.context.checkpoint.last(name);
        let vouched = checkpoint.map_or(0, |(position, _)| position).max(self.watermark.position);
        if vouched <= self.tail && !self.end_unknown {
            return Ok(());
        }
        let epoch = Epoch(Uuid::now_v7());
        let vouched = vouched.max(self.tail);
        alarms.push(OutboxAlarm {
            code: "store.shortfall",
            detail: format!(
                "lane {name} is whole through position {} only, but {vouched} was accepted; a new epoch begins",
                if self.end_unknown { self.tail - 1 } else { self.tail }
            ),
        });
        tracing::error!(lane = %name, found = self.tail, accepted = vouched, "The store ends before the last position that it had accepted");
        self.missing.add(self.tail + 1, vouched);
        // The hub may have the lost records: this value then confirms its receipt.
        let known = checkpoint.filter(|(position, _)| *position == vouched);
        let known = known.or(Some((self.watermark.position, self.watermark.chain))
            .filter(|(position, _)| *position == vouched));
        if let Some((_, chain)) = known {
            self.voids.add_end(self.numbering.at(vouched).epoch, vouched, chain);
            let path = lane_file(store, name, "voids");
            files::save(&path, &self.voids).map_err(failed("write", &path))?;
        }
        self.numbering = self.numbering.renumbered(epoch, vouched);
        let path = lane_file(store, name, "numbering");
        files::save(&path, &self.numbering).map_err(failed("write", &path))?;
        self.tail = vouched;
        self.chain = ChainValue::first(&self.context.full_name, epoch);
        self.chain_unknown = false;
        self.active = None;
        let path = lane_file(store, name, "ledger");
        let table = SegmentTable {
            version: SEGMENT_TABLE_VERSION,
            segments: self.segments.clone(),
            missing: self.missing.clone(),
        };
        files::save(&path, &table).map_err(failed("write", &path))
    }

    /// The opened lane, for sharing.
    fn found(self, settings: &LaneSettings, last_number: u64, watermarks: &Watermarks) -> OpenedLane {
        let LaneContext { lane: name, id, directory, .. } = *self.context;
        let state = LaneState {
            numbering: self.numbering,
            segments: self.segments,
            tail: self.tail,
            chain: self.chain,
            watermark: self.watermark,
            backed_up_through: watermarks.backed_up_through(name),
            missing: self.missing,
            voids: self.voids,
            oldest: None,
            table_stale: self.table_stale,
            watermark_epoch: watermarks.epoch(name),
            watermark_stale: false,
            answer: None,
            wants_answer: false,
        };
        let handles = Handles::default();
        if let Some((number, segment, _, _)) = &self.active {
            handles.register(*number, segment);
        }
        let lane = Arc::new(SharedLane {
            name: name.clone(),
            full_name: self.context.full_name.clone(),
            id,
            urgent: settings.urgent,
            directory: directory.to_owned(),
            tail: watch::Sender::new(self.tail),
            state: Mutex::new(state),
            handles,
            ahead: Mutex::new(None),
            voiding: Mutex::new(()),
            rebuilt: Mutex::default(),
            computed: Mutex::new(None),
        });
        OpenedLane { lane, active: self.active, last_number, chain_unknown: self.chain_unknown }
    }
}

/// Loads a small file that can be recreated: damage raises an alarm and is not fatal.
fn load_or_alarm<T: serde::de::DeserializeOwned>(
    path: &Path,
    lane: &Lane,
    alarms: &mut Vec<OutboxAlarm>,
) -> Option<T> {
    files::load(path).unwrap_or_else(|error| {
        tracing::warn!(path = %path.display(), error = %error, "A small file of the store was damaged and is recreated");
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        alarms.push(OutboxAlarm {
            code: "damaged",
            detail: format!("the {name} of lane {lane} was damaged and recreated"),
        });
        None
    })
}
