//! Opens a lane from its files on the disk: after a clean stop, after a crash, after damage.
//!
//! A start does not read the backlog. The segment table says what the older segments hold; only the newest is opened, and of
//! that only the last record is read. A start never deletes an answered record, and a store never starts silently empty.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use pgw_core::chain::ChainValue;
use pgw_core::delivery::Numbering;
use pgw_core::transaction::Position;
use tokio::sync::watch;
use uuid::Uuid;

use crate::crypt::seal::Sealer;
use crate::descriptor::failed;
use crate::errors::OpenError;
use crate::files;
use crate::guard::replace::finish_replacements;
use crate::guard::segment::{Segment, SegmentError, SegmentHeader, Span};
use crate::pipeline::handles::Handles;
use crate::pipeline::lane::{DigestTables, LaneState, SharedLane};
use crate::pipeline::lane_writer::Continued;
use crate::pipeline::space::Ballast;
use crate::pipeline::startup::epochs::{FoundEpochs, load_or_alarm};
use crate::pipeline::startup::segments::{LaneContext, Older, newest_begun, older, segment_failed};
use crate::pipeline::startup::tail::last_record;
use crate::quarantine::Quarantine;
use crate::state::checkpoint::TailCheckpoint;
use crate::state::digest_table::{self, OpenTable, TableHead, lane_id_in};
use crate::state::lane_epochs::{LaneEpochs, NUMBERING};
use crate::state::layout::{lane_file, segment_numbers};
use crate::state::segment_table::{MissingRecords, SEGMENT_TABLE_VERSION, SegmentTable};
use crate::state::settled_digests::chain_over;
use crate::state::watermarks::Watermarks;
use crate::types::{LaneSettings, OutboxAlarm, OutboxSettings, Watermark};
use crate::void::Voids;

/// A lane as it was found.
pub(crate) struct OpenedLane {
    pub(crate) lane: Arc<SharedLane>,
    /// The segment to continue.
    pub(crate) active: Option<Continued>,
    /// The highest segment number in use.
    pub(crate) last_number: u64,
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
    let numbering_path = lane_file(store, name, NUMBERING);
    if let Some(parent) = numbering_path.parent() {
        files::create_directory(parent).map_err(failed("create", parent))?;
    }
    let table = load_or_alarm::<SegmentTable>(&lane_file(store, name, "ledger"), name, alarms);
    let epochs = FoundEpochs::load(store, name, alarms);

    finish_replacements(&directory).map_err(failed("finish replacing a segment in", &directory))?;
    let mut numbers = segment_numbers(&directory).map_err(failed("list", &directory))?;
    let last_number = numbers.last().copied().unwrap_or(0);
    let known = epochs.known().map(|known| known.epochs.clone());
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
        lane_id: epochs.known().map(|known| known.lane_id).or_else(|| lane_id_in(&directory)),
        numbering: known.as_ref(),
    };
    let newest = newest_begun(&context, table.as_ref(), &mut numbers, alarms)?;
    let epochs = epochs.settle(&context, newest.as_ref().map(|(_, _, header)| header), alarms)?;
    let voids = load_or_alarm::<Voids>(&lane_file(store, name, "voids"), name, alarms).unwrap_or_default();
    let mut opening = LaneStartup::new(&context, parts.watermarks, epochs, voids, table.as_ref());
    if let Some((number, segment, header)) = newest {
        let older = older(&context, table.as_ref(), &numbers, number, &header, alarms)?;
        opening.continue_after(older, number, segment, &header, alarms)?;
    }
    opening.continue_after_lost_tail(alarms)?;
    opening.prove_newest();
    Ok(opening.found(lane, last_number, parts.watermarks))
}

/// A lane while it is opened.
struct LaneStartup<'a> {
    context: &'a LaneContext<'a>,
    lane_id: Uuid,
    numbering: Numbering,
    voids: Voids,
    lost_at_hub: Vec<(Position, Position)>,
    missing: MissingRecords,
    segments: BTreeMap<u64, Span>,
    table_stale: bool,
    watermark: Watermark,
    tail: Position,
    /// Value of the chain over positions at the tail.
    chain: ChainValue,
    /// The last record is damaged, and the value after it is not known from elsewhere.
    end_unknown: bool,
    /// The segment to continue.
    active: Option<Continued>,
    /// The newest segment's table does not follow the chain: its base.
    unproven: Option<Position>,
}

impl<'a> LaneStartup<'a> {
    fn new(
        context: &'a LaneContext<'a>,
        watermarks: &Watermarks,
        epochs: LaneEpochs,
        voids: Voids,
        table: Option<&SegmentTable>,
    ) -> Self {
        let LaneEpochs { lane_id, epochs: numbering, lost_at_hub, .. } = epochs;
        Self {
            context,
            lane_id,
            numbering,
            voids,
            lost_at_hub,
            missing: table.map(|table| table.missing.clone()).unwrap_or_default(),
            segments: BTreeMap::new(),
            table_stale: table.is_none(),
            watermark: watermarks.watermark(context.lane).unwrap_or_default(),
            tail: 0,
            chain: ChainValue::first_of_positions(&context.full_name, lane_id),
            end_unknown: false,
            active: None,
            unproven: None,
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
        // If the last record is damaged, only the tail checkpoint may have the value after it.
        let at_checkpoint = parts.map(|(_, chain)| chain);
        self.tail = tail;
        self.end_unknown = end.position.is_some() && end.chain.or(at_checkpoint).is_none();
        self.chain =
            end.chain.or(at_checkpoint.filter(|_| end.position.is_some())).unwrap_or(header.previous);
        let records = tail + 1 - header.base;
        let bytes = end.average_bytes * records;
        let span = Span { base: header.base, previous: header.previous, bytes, oldest: end.oldest };
        self.segments.insert(number, span);
        // A tail beyond the tail checkpoint may be in the page cache only, after a barrier that failed before a kill:
        // nothing is appended to that segment. Nor where records are lost behind it: only its table knows them.
        if !end.trimmed
            && self.vouched() <= tail
            && (parts.is_some() || records == 0)
            && let Some(table) = self.continued_digests(span, alarms)
        {
            let digests = Some(table);
            self.active = Some(Continued { number, segment: Arc::new(segment), records, bytes, digests });
        }
        Ok(())
    }

    /// The last position that was accepted, as other files know it.
    fn vouched(&self) -> Position {
        let checkpoint = self.context.checkpoint.last(self.context.lane);
        checkpoint.map_or(0, |(position, _)| position).max(self.watermark.position)
    }

    /// The digest table of the segment that is continued. `None`: it cannot be written, and the writer leaves the segment.
    fn continued_digests(&self, span: Span, alarms: &mut Vec<OutboxAlarm>) -> Option<OpenTable> {
        let LaneContext { lane, directory, id, .. } = *self.context;
        let Span { base, previous, .. } = span;
        let head = TableHead { lane: id, lane_id: self.lane_id, base, previous };
        if let Some(reason) = digest_table::unusable(directory, self.lane_id, base) {
            let detail = format!(
                "the digest table at position {base} of lane {lane} cannot be used and is made again: {reason}"
            );
            alarms.push(OutboxAlarm { code: "damaged", detail });
        }
        let opened = OpenTable::resume(directory, head, self.tail);
        match opened.and_then(|table| table.map_or_else(|| OpenTable::create(directory, head), Ok)) {
            Ok(table) => Some(table),
            Err(error) => {
                tracing::warn!(%lane, base, %error, "A digest table cannot be written; its segment is not continued");
                let detail =
                    format!("the digest table at position {base} of lane {lane} cannot be written: {error}");
                alarms.push(OutboxAlarm { code: "damaged", detail });
                None
            }
        }
    }

    /// Whether the newest segment's digest table follows the chain to the lane's end. If not, its entries are checked later, by
    /// another thread: a start reads no backlog.
    fn prove_newest(&mut self) {
        let LaneContext { directory, .. } = *self.context;
        let Some(Span { base, previous, .. }) = self.segments.values().next_back().copied() else { return };
        if base > self.tail {
            return;
        }
        let entries = digest_table::read(directory, self.lane_id, base, (base, self.tail));
        if !entries.is_ok_and(|entries| chain_over(previous, base, &entries) == Some(self.chain)) {
            self.unproven = Some(base);
        }
    }

    /// Records that were accepted beyond the end that was found are lost: the lane continues after them.
    fn continue_after_lost_tail(&mut self, alarms: &mut Vec<OutboxAlarm>) -> Result<(), OpenError> {
        let (store, name) = (self.context.store, self.context.lane);
        let checkpoint = self.context.checkpoint.last(name);
        let vouched = self.vouched();
        if vouched <= self.tail && !self.end_unknown {
            return Ok(());
        }
        let vouched = vouched.max(self.tail);
        alarms.push(OutboxAlarm {
            code: "store.shortfall",
            detail: format!(
                "lane {name} is whole through position {} only, but {vouched} was accepted",
                if self.end_unknown { self.tail - 1 } else { self.tail }
            ),
        });
        tracing::error!(lane = %name, found = self.tail, accepted = vouched, "The store ends before the last position that it had accepted");
        self.missing.add(self.tail + 1, vouched);
        // The tail checkpoint proves the lost records, should they be found; else the chain begins again.
        let known = checkpoint.filter(|(position, _)| *position == vouched).map(|(_, chain)| chain);
        self.chain = known.unwrap_or_else(|| {
            ChainValue::after_lost_position(&self.context.full_name, self.lane_id, vouched)
        });
        self.tail = vouched;
        self.active = None;
        let path = lane_file(store, name, "ledger");
        let table = SegmentTable {
            version: SEGMENT_TABLE_VERSION,
            segments: self.segments.clone(),
            missing: self.missing.clone(),
        };
        files::save(&path, &table).map_err(failed("write", &path))
    }

    /// What was written off is not read any more, even if the disk can read it again and the segment table was lost: the hub has,
    /// or will have, an entry in its place.
    fn stay_written_off(&mut self) {
        let first = self.segments.values().next().map_or(self.tail + 1, |span| span.base);
        for void in self.voids.ranges() {
            self.table_stale |= self.missing.add(void.from.max(first), void.through.min(self.tail));
        }
    }

    /// The opened lane, for sharing.
    fn found(mut self, settings: &LaneSettings, last_number: u64, watermarks: &Watermarks) -> OpenedLane {
        let LaneContext { lane: name, id, directory, .. } = *self.context;
        self.stay_written_off();
        let state = LaneState {
            numbering: self.numbering,
            segments: self.segments,
            tail: self.tail,
            chain: self.chain,
            watermark: self.watermark,
            backed_up_through: watermarks.backed_up_through(name),
            missing: self.missing,
            voids: self.voids,
            lost_at_hub: self.lost_at_hub,
            oldest: None,
            table_stale: self.table_stale,
            watermark_stale: false,
            since_diverged: watermarks.since_diverged(name),
            diverged: false,
            answer: None,
            wants_answer: false,
        };
        let handles = Handles::default();
        if let Some(Continued { number, segment, .. }) = &self.active {
            handles.register(*number, segment);
        }
        let lane = Arc::new(SharedLane {
            name: name.clone(),
            full_name: self.context.full_name.clone(),
            id,
            lane_id: self.lane_id,
            urgent: settings.urgent,
            directory: directory.to_owned(),
            tail: watch::Sender::new(self.tail),
            state: Mutex::new(state),
            handles,
            ahead: Mutex::new(None),
            voiding: Mutex::new(()),
            rebuilt: Mutex::default(),
            renumbering: Mutex::new(()),
            digests: DigestTables {
                unproven: Mutex::new(self.unproven.into_iter().collect()),
                ..Default::default()
            },
            accepted: Mutex::default(),
        });
        OpenedLane { lane, active: self.active, last_number }
    }
}
