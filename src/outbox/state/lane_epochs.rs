//! A lane's own id, and its epochs on the wire: the file `lanes/{lane}/numbering`, and the same once more beside the lane's
//! segments, `segments/{lane}/numbering.copy`. One lost directory loses one of them, or the records too.
//!
//! The id is random, made once with the lane, and begins its chain over positions. The header of each segment has both as they
//! were when it began, each digest table the id, for the case that both files are lost: the lane then begins a new epoch,
//! because nothing says which epochs came after that segment's beginning.

use std::io;
use std::path::{Path, PathBuf};

use pgw_core::delivery::Numbering;
use pgw_core::transaction::{Epoch, Lane, Position};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::files;
use crate::state::layout::lane_file;

const VERSION: u32 = 1;
/// The file.
pub(crate) const NUMBERING: &str = "numbering";

/// The content of the file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LaneEpochs {
    version: u32,
    /// The lane's own id.
    pub(crate) lane_id: Uuid,
    /// Its epochs, oldest first.
    pub(crate) epochs: Numbering,
    /// Positions, first to last, that the hub has confirmed and has lost for good, as its last answer says; in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) lost_at_hub: Vec<(Position, Position)>,
}

impl LaneEpochs {
    /// Of a lane that has both already.
    pub(crate) fn new(lane_id: Uuid, epochs: Numbering) -> Self {
        Self { version: VERSION, lane_id, epochs, lost_at_hub: Vec::new() }
    }

    /// And with what the hub has lost of it.
    pub(crate) fn with_lost_at_hub(self, lost_at_hub: Vec<(Position, Position)>) -> Self {
        Self { lost_at_hub, ..self }
    }

    /// Of a lane in its first epoch; `lane_id`: its id, if it is known.
    ///
    /// # Errors
    /// The system gives no random bytes.
    pub(crate) fn begin(lane_id: Option<Uuid>) -> io::Result<Self> {
        let lane_id = match lane_id {
            Some(known) => known,
            None => uuid::Builder::from_random_bytes(pgw_durable::random()?).into_uuid(),
        };
        Ok(Self::new(lane_id, Numbering::new(Epoch(Uuid::now_v7()))))
    }

    /// Of a lane whose files are both lost: `known` are the epochs that a segment remembers. Later ones may have been used, so the
    /// lane goes on in one that nobody has seen, from its first position: the hub's end tells delivery where to begin.
    pub(crate) fn after_loss(lane_id: Uuid, known: &Numbering) -> Self {
        Self::new(lane_id, known.begun(Epoch(Uuid::now_v7()), None, Vec::new(), 0, Vec::new()))
    }

    /// Writes the copy and then the file, durably. An epoch that is only in the copy was never used.
    ///
    /// # Errors
    /// The file system's: the file is as it was, and counts.
    pub(crate) fn save(&self, store: &Path, lane: &Lane) -> io::Result<()> {
        self.save_copy(store, lane)?;
        files::save(&lane_file(store, lane, NUMBERING), self)
    }

    /// Writes the copy only, durably.
    ///
    /// # Errors
    /// The file system's.
    pub(crate) fn save_copy(&self, store: &Path, lane: &Lane) -> io::Result<()> {
        files::save(&copy_path(store, lane), self)
    }

    /// The copy, for when the file is lost; `None`: it is lost too.
    pub(crate) fn copy(store: &Path, lane: &Lane) -> Option<Self> {
        files::load(&copy_path(store, lane)).ok().flatten()
    }

    /// The file, or its copy. Nothing is written; damage counts as loss.
    pub(crate) fn read(store: &Path, lane: &Lane) -> Option<Self> {
        files::load(&lane_file(store, lane, NUMBERING)).ok().flatten().or_else(|| Self::copy(store, lane))
    }
}

fn copy_path(store: &Path, lane: &Lane) -> PathBuf {
    store.join("segments").join(lane.as_str()).join("numbering.copy")
}

/// Bytes of a header that the lane's epochs may take: it is one chunk.
const COPIED_BYTES: usize = 3_000;

/// The copy of a lane's epochs for a header: as many of the newest as fit; `None`: not even the present one does. A lane whose
/// small files are lost then begins a new epoch.
pub(crate) fn copied(numbering: &Numbering) -> Option<Numbering> {
    let mut most = numbering.epochs().count().min(64);
    while most > 0 {
        let copy = numbering.newest(most);
        if postcard::to_allocvec(&copy).is_ok_and(|bytes| bytes.len() <= COPIED_BYTES) {
            return Some(copy);
        }
        most /= 2;
    }
    None
}

#[cfg(test)]
mod tests {
    use pgw_core::chain::{ChainValue, Through};
    use pgw_core::numbering::{Entry, EntryKind, Numbers};
    use pgw_core::transaction::TransactionId;

    use super::*;
    use crate::guard::segment::{Segment, SegmentHeader, Span};

    #[test]
    fn golden_file() {
        let link = Through { epoch: Epoch(Uuid::nil()), through: 7, chain: ChainValue([0xab; 32]) };
        let entry = Entry {
            from: 9,
            through: 10,
            kind: EntryKind::Void,
            id: TransactionId(Uuid::from_u128(3)),
            time: 5,
            reason: "r".into(),
            names: vec![Numbers { epoch: Epoch(Uuid::nil()), from: 9, through: 10 }],
        };
        let first = Numbering::new(Epoch(Uuid::nil()));
        let epochs =
            first.begun(Epoch(Uuid::from_u128(1)), Some(link), vec![Epoch(Uuid::nil())], 7, vec![entry]);
        let text = serde_json::to_string(&LaneEpochs::new(Uuid::from_u128(2), epochs)).unwrap();
        let id = |last: u8| format!("\"00000000-0000-0000-0000-00000000000{last}\"");
        let expected = format!(
            "{{\"version\":1,\"lane_id\":{two},\"epochs\":[{{\"epoch\":{nil},\"base\":0,\"link\":null,\"follows\":[],\"entries\":[]}},{{\"epoch\":{one},\"base\":7,\"link\":{{\"epoch\":{nil},\"through\":7,\"chain\":\"{chain}\"}},\"follows\":[{nil}],\"entries\":[{{\"from\":9,\"through\":10,\"kind\":\"void\",\"id\":{three},\"time\":5,\"reason\":\"r\",\"names\":[{{\"epoch\":{nil},\"from\":9,\"through\":10}}]}}]}}]}}",
            nil = id(0),
            one = id(1),
            two = id(2),
            three = id(3),
            chain = "ab".repeat(32),
        );
        assert_eq!(text, expected);
    }

    #[test]
    fn every_lane_has_an_id_of_its_own_and_keeps_it() {
        let (one, other) = (LaneEpochs::begin(None).unwrap(), LaneEpochs::begin(None).unwrap());
        assert_ne!(one.lane_id, other.lane_id);
        assert_eq!(LaneEpochs::begin(Some(one.lane_id)).unwrap().lane_id, one.lane_id);
    }

    #[test]
    fn a_header_has_room_for_any_number_of_epochs() {
        let directory = tempfile::tempdir().unwrap();
        let segment = Segment::create(&directory.path().join("segments/clinical/1")).unwrap();
        let mut numbering = Numbering::new(Epoch(Uuid::nil()));
        for base in 1..=1000 {
            let epoch = Epoch(Uuid::from_u128(u128::MAX - u128::from(base)));
            let link = Through { epoch, through: u64::MAX, chain: ChainValue([1; 32]) };
            numbering = numbering.begun(epoch, Some(link), Vec::new(), u64::MAX / 2 + base, vec![]);
        }
        let copy = copied(&numbering);
        let kept = copy.as_ref().map(|copy| (copy.present(), copy.epochs().count()));
        assert_eq!(kept, Some((numbering.present(), 16)));
        let span =
            Span { base: u64::MAX, previous: ChainValue([1; 32]), bytes: u64::MAX, oldest: Some(u64::MAX) };
        let header = SegmentHeader {
            number: u64::MAX,
            base: u64::MAX,
            numbering: copy,
            predecessor: Some((u64::MAX, span)),
            lane: u16::MAX,
            previous: ChainValue([1; 32]),
            lane_id: Uuid::max(),
        };
        segment.begin(&header).unwrap();
        assert_eq!(segment.header().unwrap(), Some(header));
    }
}
