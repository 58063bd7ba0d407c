//! The watermarks: how far the hub has each lane, and since when each segment has been wholly confirmed.
//!
//! Retention is counted in *running time* (how long this gateway has run, over all restarts), never by the wall
//! clock, which may be wrong by years on a box without a battery. A lost file does no harm: everything is
//! sent once more and kept for one more retention.
//!
//! The file is one line of JSON and one line with its CRC32C as 8 hexadecimal digits, replaced as a whole.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use pgw_core::chain::Through;
use pgw_core::transaction::{Lane, Position};
use pgw_durable::PRIVATE;
use serde::{Deserialize, Serialize};

use crate::files::is_unreadable;
use crate::types::Watermark;

const VERSION: u32 = 1;

/// The watermarks of all lanes, in memory and, after [`Watermarks::save`], on the disk.
#[derive(Debug)]
pub(crate) struct Watermarks {
    path: PathBuf,
    content: Content,
    unsaved: bool,
    damaged: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Content {
    version: u32,
    running_millis: u64,
    lanes: BTreeMap<Lane, LaneWatermark>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct LaneWatermark {
    confirmed: Option<Confirmed>,
    backed_up_through: Option<Position>,
    segments: BTreeMap<u64, ConfirmedSegment>,
    /// When the hub's line last ended where this lane has never been, in running time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    diverged_millis: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Confirmed {
    position: Position,
    /// The point of the lane's line on the wire that says so.
    point: Option<Through>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct ConfirmedSegment {
    last: Position,
    since_millis: u64,
}

impl Watermarks {
    /// Reads the file, or starts without one. A damaged one counts as none, and [`Watermarks::was_damaged`].
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let none = Content { version: VERSION, running_millis: 0, lanes: BTreeMap::new() };
        let (content, damaged) = match std::fs::read(path) {
            Ok(bytes) => decode(&bytes).map_or((none, true), |content| (content, false)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => (none, false),
            Err(error) if is_unreadable(&error) => (none, true),
            Err(error) => return Err(error),
        };
        Ok(Self { path: path.to_owned(), content, unsaved: false, damaged })
    }

    /// Whether the file was damaged when it was opened.
    pub(crate) fn was_damaged(&self) -> bool {
        self.damaged
    }

    /// The watermark of `lane`, if there was ever one.
    pub(crate) fn watermark(&self, lane: &Lane) -> Option<Watermark> {
        let Confirmed { position, point } = self.content.lanes.get(lane)?.confirmed?;
        Some(Watermark { position, point })
    }

    /// How far the hub's backup goes, as it has said.
    pub(crate) fn backed_up_through(&self, lane: &Lane) -> Option<Position> {
        self.content.lanes.get(lane)?.backed_up_through
    }

    /// Sets the watermark of `lane`. When it goes back, every segment that ends beyond it is unconfirmed again, and its retention
    /// begins again with its next confirmation.
    pub(crate) fn set(&mut self, lane: &Lane, watermark: Watermark, backed_up_through: Option<Position>) {
        let watermarks = self.content.lanes.entry(lane.clone()).or_default();
        let before = watermarks.clone();
        let Watermark { position, point } = watermark;
        watermarks.confirmed = Some(Confirmed { position, point });
        watermarks.backed_up_through = backed_up_through;
        watermarks.segments.retain(|_, segment| segment.last <= position);
        self.unsaved |= *watermarks != before;
    }

    /// The hub's line ends where this lane has never been, now.
    pub(crate) fn diverged(&mut self, lane: &Lane) {
        let now = self.content.running_millis;
        self.content.lanes.entry(lane.clone()).or_default().diverged_millis = Some(now);
        self.unsaved = true;
    }

    /// How long ago that was last so, in running time.
    pub(crate) fn since_diverged(&self, lane: &Lane) -> Option<Duration> {
        let at = self.content.lanes.get(lane)?.diverged_millis?;
        Some(self.running().saturating_sub(Duration::from_millis(at)))
    }

    /// Adds to the running time.
    pub(crate) fn add_running(&mut self, elapsed: Duration) {
        let millis = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX);
        self.content.running_millis = self.content.running_millis.saturating_add(millis);
        self.unsaved |= millis > 0;
    }

    /// How long this gateway has run, over all starts.
    pub(crate) fn running(&self) -> Duration {
        Duration::from_millis(self.content.running_millis)
    }

    /// Notes that segment `number`, whose last record is `last`, is wholly confirmed. The first call counts; one
    /// that the watermark does not cover is ignored.
    pub(crate) fn segment_confirmed(&mut self, lane: &Lane, number: u64, last: Position) {
        let since_millis = self.content.running_millis;
        let Some(watermarks) = self.content.lanes.get_mut(lane) else { return };
        if watermarks.confirmed.is_some_and(|watermark| watermark.position >= last)
            && !watermarks.segments.contains_key(&number)
        {
            watermarks.segments.insert(number, ConfirmedSegment { last, since_millis });
            self.unsaved = true;
        }
    }

    /// Whether the segment has been wholly confirmed for at least `retention` of running time.
    pub(crate) fn expired(&self, lane: &Lane, number: u64, retention: Duration) -> bool {
        let segment = self.content.lanes.get(lane).and_then(|watermarks| watermarks.segments.get(&number));
        segment.is_some_and(|segment| {
            let since = Duration::from_millis(segment.since_millis);
            self.running().saturating_sub(since) >= retention
        })
    }

    /// Forgets a segment that was removed.
    pub(crate) fn forget(&mut self, lane: &Lane, number: u64) {
        if let Some(watermarks) = self.content.lanes.get_mut(lane) {
            self.unsaved |= watermarks.segments.remove(&number).is_some();
        }
    }

    /// Makes the watermarks durable; costs nothing when nothing is new.
    pub(crate) fn save(&mut self) -> io::Result<()> {
        if self.unsaved {
            pgw_durable::replace(&self.path, PRIVATE, &encode(&self.content)?)?;
            self.unsaved = false;
        }
        Ok(())
    }
}

fn encode(content: &Content) -> io::Result<Vec<u8>> {
    let mut bytes = serde_json::to_vec(content)?;
    let crc = crc32c::crc32c(&bytes);
    bytes.extend(format!("\n{crc:08x}\n").bytes());
    Ok(bytes)
}

fn decode(bytes: &[u8]) -> Option<Content> {
    let (json, crc) = bytes.split_at_checked(bytes.len().checked_sub(10)?)?;
    if crc != format!("\n{:08x}\n", crc32c::crc32c(json)).as_bytes() {
        return None;
    }
    let content: Content = serde_json::from_slice(json).ok()?;
    (content.version == VERSION).then_some(content)
}

#[cfg(test)]
mod tests {
    use pgw_core::chain::ChainValue;
    use pgw_core::transaction::Epoch;

    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn lane() -> Lane {
        Lane::new("clinical").unwrap()
    }

    fn at(position: Position) -> Watermark {
        let epoch = Epoch(uuid::Uuid::nil());
        let point = Through { epoch, through: position - 1, chain: ChainValue([3; 32]) };
        Watermark { position, point: Some(point) }
    }

    #[test]
    fn everything_comes_back_after_a_save() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("marks.json");
        let mut watermarks = Watermarks::open(&path).unwrap();
        assert_eq!(watermarks.watermark(&lane()), None);
        watermarks.add_running(HOUR);
        watermarks.set(&lane(), at(100), Some(90));
        watermarks.segment_confirmed(&lane(), 1, 100);
        assert_eq!(watermarks.since_diverged(&lane()), None);
        watermarks.diverged(&lane());
        watermarks.add_running(HOUR);
        watermarks.save().unwrap();
        watermarks.set(&lane(), at(101), Some(91));
        let again = Watermarks::open(&path).unwrap();
        assert_eq!(again.watermark(&lane()), Some(at(100)));
        assert_eq!(again.backed_up_through(&lane()), Some(90));
        assert_eq!((again.running(), again.since_diverged(&lane())), (2 * HOUR, Some(HOUR)));
        assert!(again.expired(&lane(), 1, Duration::ZERO));
        assert!(!again.was_damaged());
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1, "nothing else is left");
    }

    #[test]
    fn retention_counts_running_time_from_the_first_confirmation() {
        let directory = tempfile::tempdir().unwrap();
        let mut watermarks = Watermarks::open(&directory.path().join("marks.json")).unwrap();
        watermarks.set(&lane(), at(50), None);
        assert!(!watermarks.expired(&lane(), 1, Duration::ZERO), "not confirmed at all");
        watermarks.segment_confirmed(&lane(), 1, 51);
        assert!(!watermarks.expired(&lane(), 1, Duration::ZERO), "its last record is not confirmed");
        watermarks.segment_confirmed(&lane(), 1, 50);
        watermarks.add_running(HOUR);
        watermarks.segment_confirmed(&lane(), 1, 50);
        assert!(watermarks.expired(&lane(), 1, HOUR));
        assert!(!watermarks.expired(&lane(), 1, HOUR + Duration::from_millis(1)));
        watermarks.forget(&lane(), 1);
        assert!(!watermarks.expired(&lane(), 1, Duration::ZERO));
    }

    #[test]
    fn a_mark_that_goes_back_unconfirms_what_lies_beyond() {
        let directory = tempfile::tempdir().unwrap();
        let mut watermarks = Watermarks::open(&directory.path().join("marks.json")).unwrap();
        watermarks.set(&lane(), at(100), None);
        watermarks.segment_confirmed(&lane(), 1, 50);
        watermarks.segment_confirmed(&lane(), 2, 100);
        watermarks.set(&lane(), at(99), None);
        assert!(watermarks.expired(&lane(), 1, Duration::ZERO));
        assert!(!watermarks.expired(&lane(), 2, Duration::ZERO));
        watermarks.add_running(HOUR);
        watermarks.set(&lane(), at(100), None);
        assert!(!watermarks.expired(&lane(), 2, Duration::ZERO), "confirmed again only when said so");
        watermarks.segment_confirmed(&lane(), 2, 100);
        assert!(!watermarks.expired(&lane(), 2, HOUR), "and its retention starts again");
    }

    #[test]
    fn a_flipped_bit_or_a_cut_file_counts_as_none() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("marks.json");
        let mut watermarks = Watermarks::open(&path).unwrap();
        watermarks.set(&lane(), at(1), None);
        watermarks.save().unwrap();
        let good = std::fs::read(&path).unwrap();
        assert!(decode(&good).is_some());
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(decode(&bad), None, "bit {bit}");
        }
        for cut in 0..good.len() {
            assert_eq!(decode(&good[..cut]), None, "{cut}");
        }
        std::fs::write(&path, &good[1..]).unwrap();
        let damaged = Watermarks::open(&path).unwrap();
        assert!(damaged.was_damaged());
        assert_eq!(damaged.watermark(&lane()), None);
    }

    #[test]
    fn golden_file() {
        let mut watermarks = Watermarks::open(Path::new("/nonexistent/marks.json")).unwrap();
        watermarks.add_running(Duration::from_millis(1500));
        let point = at(7).point.map(|point| Through { chain: ChainValue([0xab; 32]), ..point });
        watermarks.set(&lane(), Watermark { point, ..at(7) }, Some(5));
        watermarks.segment_confirmed(&lane(), 3, 6);
        let json = format!(
            "{{\"version\":1,\"running_millis\":1500,\"lanes\":{{\"clinical\":{{\"confirmed\":{{\"position\":7,\"point\":{{\"epoch\":\"00000000-0000-0000-0000-000000000000\",\"through\":6,\"chain\":\"{}\"}}}},\
             \"backed_up_through\":5,\"segments\":{{\"3\":{{\"last\":6,\"since_millis\":1500}}}}}}}}}}",
            "ab".repeat(32)
        );
        let text = String::from_utf8(encode(&watermarks.content).unwrap()).unwrap();
        assert!(text.starts_with(&json), "{text}");
        assert_eq!(&text[json.len()..], format!("\n{:08x}\n", crc32c::crc32c(json.as_bytes())));
    }
}
