//! What the centre learns, and decides: late transactions, rivals, kinds of a later version, and what waits to be admitted.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use pgw_core::committer::{Input, Numbered, Record as _, Refusal, Way};
use pgw_core::text::chain;
use pgw_core::transaction::{Epoch, Kind, Sequence, unix_millis_now};
use pgw_core::wire::entry;
use pgw_core::wire::envelope::Envelope;
use pgw_core::wire::limits::LOST_RANGES;

use super::StoreThread;
use crate::missing;
use crate::store::{Entry, LaneName, LateKept, Through, late, walk};
use crate::waits::{Admission, AdmittedLane, NotAdmitted, WaitReason, Waits};

/// The log names the same of a lane at most this often.
const BETWEEN: Duration = Duration::from_secs(60);
/// Most lanes and kinds that are remembered as named.
const MOST: usize = 4_096;

/// What the log says of a lane.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Matter {
    Late,
    NoRoom,
    NotKept,
    Rival,
}

/// What was said in the log.
#[derive(Default)]
pub(super) struct Told {
    of_lanes: BTreeMap<(LaneName, Matter), Instant>,
    kinds: BTreeSet<(String, String)>,
}

impl Told {
    fn may_tell(&mut self, lane: &LaneName, matter: Matter) -> bool {
        let now = Instant::now();
        if self.of_lanes.len() >= MOST {
            self.of_lanes.retain(|_, told| now.duration_since(*told) < BETWEEN);
        }
        let key = (lane.clone(), matter);
        let due = self.of_lanes.get(&key).is_none_or(|told| now.duration_since(*told) >= BETWEEN);
        if due {
            self.of_lanes.insert(key, now);
        }
        due
    }
}

/// What an entry for deleted transactions stands for; `None`: it is another transaction, whatever its body looks like.
pub(super) fn pruned(envelope: &Envelope, body: &[u8]) -> Option<entry::Entry> {
    envelope.is(Kind::Pruned).then(|| entry::Entry::read(body)).flatten()
}

impl StoreThread {
    /// To be kept beside its lane, unless a person has asked for it: then it may replace what the files have lost.
    pub(super) fn late(&mut self, mut entry: Entry, way: Way) {
        if self.resends.asks_for(&entry) {
            return self.repeated(entry);
        }
        let by = self.speakers.signed_by(&entry, entry.envelope.chain, way);
        entry.keep_head(by);
        self.late_bytes += entry.bytes();
        self.late.push(entry);
    }

    /// Puts what is late on stable storage.
    pub(super) fn keep_late(&mut self) {
        self.late_bytes = 0;
        let mut entries = std::mem::take(&mut self.late);
        entries.sort_by(|a, b| a.lane.cmp(&b.lane));
        for entries in entries.chunk_by(|a, b| a.lane == b.lane) {
            let lane = &entries[0].lane;
            let kept = match self.store.keep_late(entries) {
                Ok(kept) => kept,
                // Its gateway still has it.
                Err(error) => {
                    if self.told.may_tell(lane, Matter::NotKept) {
                        tracing::error!(
                            %lane,
                            error = chain(&error),
                            "Late transactions of a lane cannot be kept; its gateway still has them"
                        );
                    }
                    continue;
                }
            };
            let LateKept { new, no_room } = kept;
            self.fleet.late(lane, new);
            if new > 0 && self.told.may_tell(lane, Matter::Late) {
                tracing::error!(
                    %lane,
                    new,
                    "Transactions that do not continue their lane are kept beside it: another history of this gateway has sent them; `practice-hub lane show` lists those that the lane lacks"
                );
            }
            if no_room > 0 && self.told.may_tell(lane, Matter::NoRoom) {
                tracing::error!(
                    %lane,
                    no_room,
                    most_rows = late::MOST_ROWS,
                    most_bytes = late::MOST_BYTES,
                    "Late transactions of a lane are not kept: there are too many beside it; find out which box sends them, and keep its disk"
                );
            }
        }
    }

    /// Another content is stored under the id of a stored transaction.
    pub(super) fn rival(&mut self, lane: &LaneName, numbered: Numbered) {
        self.fleet.rival(lane);
        if !self.told.may_tell(lane, Matter::Rival) {
            return;
        }
        let Numbered { epoch, sequence, id, .. } = numbered;
        tracing::error!(
            %lane, %epoch, sequence, id = %id.0,
            "Two transactions with one id and different contents are stored: one of them may have been changed before it was signed, or two boxes made them; a person must compare them (`practice-hub lane show`)"
        );
    }

    /// Names the kinds of a stored group that this version does not know, once for each gateway.
    pub(super) fn name_kinds(&mut self) {
        let known = [Kind::Transaction, Kind::Test, Kind::Void, Kind::Pruned];
        let unknown = |entry: &&Entry| !known.iter().any(|kind| entry.envelope.is(*kind));
        let stored = |entry: &&Entry| !self.store.is_out_of_use(&entry.lane);
        for entry in self.committer.group().iter().filter(unknown).filter(stored) {
            let kind = entry.envelope.attributes().get("kind");
            let key = (format!("{}/{}", entry.lane.practice, entry.lane.gateway), kind.to_owned());
            if self.told.kinds.len() < MOST && !self.told.kinds.contains(&key) {
                tracing::warn!(
                    gateway = key.0,
                    kind,
                    "A gateway sends a kind of transaction that this hub does not know: it is stored as it is; a newer hub may know it"
                );
                self.told.kinds.insert(key);
            }
        }
    }

    /// A transaction was refused until the centre admits it.
    pub(super) fn waits(
        &mut self,
        lane: &LaneName,
        why: Refusal,
        (epoch, sequence): (Epoch, Sequence),
        entry: Option<entry::Entry>,
    ) {
        let Some(mut reason) = WaitReason::of(why) else { return };
        // A broker may repeat another history: the centre is asked about the present one only.
        if self.committer.may_admit(lane) != Some(epoch) {
            return;
        }
        if reason == WaitReason::Hole
            && let Some(until) = self.store.hole(lane)
            && entry.as_ref().is_some_and(|entry| self.is_covered(lane, entry, &until))
        {
            reason = WaitReason::Lost;
            self.covered.extend(self.missing_part(lane).map(|part| (lane.clone(), part)));
        }
        let deleted = entry.filter(|_| matches!(reason, WaitReason::Deleted | WaitReason::Lost));
        let transactions = deleted.map_or(0, |entry| entry.transactions());
        let waits = Waits { epoch, sequence, reason, transactions, since: unix_millis_now() };
        if self.fleet.waits(lane, waits) {
            tracing::error!(%lane, waits = %waits, "A lane waits until the centre admits it: {}", waits.command(lane));
        }
    }

    /// Where a lane's files end before what is missing, and where they go on.
    fn missing_part(&self, lane: &LaneName) -> Option<(Vec<Through>, Vec<Through>)> {
        Some((self.store.watermarks_of(lane), self.store.hole(lane)?))
    }

    /// Whether an entry stands for all that a lane's files lack before these ends. Answers name what is lost, so there is a limit.
    fn is_covered(&self, lane: &LaneName, entry: &entry::Entry, until: &[Through]) -> bool {
        let ends = self.store.watermarks_of(lane);
        let parts = walk::between(&ends, until).map_or(0, |parts| parts.len());
        self.store.lost(lane).len() + parts <= LOST_RANGES && missing::covers(entry, &ends, until)
    }

    /// The centre admits what waits at a lane, or at every lane (`None`).
    ///
    /// # Errors
    /// [`NotAdmitted`]; lanes before that are admitted.
    pub(super) fn admit(&mut self, admission: &Admission) -> Result<Vec<AdmittedLane>, NotAdmitted> {
        self.finish();
        let Admission { lane: only, reason } = admission;
        let only = only.as_ref();
        let waiting: Vec<_> = self
            .fleet
            .waiting()
            .into_iter()
            .filter(|(lane, _)| only.is_none_or(|only| only == lane))
            .collect();
        // What a person has read may have become something else meanwhile, that costs more.
        if let (Some(_), Some((lane, waits))) = (only, waiting.first())
            && waits.reason != *reason
        {
            return Err(NotAdmitted::Other { lane: lane.clone(), waits: *waits });
        }
        let mut admitted = Vec::new();
        let mut other = None;
        for (lane, waits) in waiting.into_iter().filter(|(_, waits)| waits.reason == *reason) {
            if self.committer.may_admit(&lane) != Some(waits.epoch) {
                other = Some(lane);
                continue;
            }
            // Of a lane that is out of use nothing can be given up.
            let given_up = match waits.reason {
                WaitReason::Hole => self.store.check_lane(&lane).and_then(|()| self.store.leave_hole(&lane)),
                // The files have changed since: its gateway says again what it has deleted.
                WaitReason::Lost
                    if self.store.check_lane(&lane).is_ok()
                        && self.covered.get(&lane) != self.missing_part(&lane).as_ref() =>
                {
                    other = Some(lane);
                    continue;
                }
                WaitReason::Lost => {
                    self.store.check_lane(&lane).and_then(|()| self.store.close_hole(&lane)).map(|()| 0)
                }
                WaitReason::Deleted | WaitReason::Epochs => Ok(0),
            };
            if matches!(waits.reason, WaitReason::Hole | WaitReason::Lost) {
                self.tell(Input::ReadAgain(lane.clone()));
            }
            let set_aside =
                given_up.map_err(|error| NotAdmitted::Store { lane: lane.clone(), reason: chain(&error) })?;
            self.covered.remove(&lane);
            tracing::warn!(%lane, waits = %waits, set_aside, "A person has admitted what waited at a lane");
            self.fleet.waits_no_more(&lane);
            self.tell(Input::Admit(lane.clone()));
            let LaneName { practice, gateway, lane } = lane;
            admitted.push(AdmittedLane { practice, gateway, lane, waits, set_aside });
        }
        self.hurry = true;
        match (admitted.is_empty(), other, only) {
            (false, ..) => Ok(admitted),
            (true, Some(lane), _) => Err(NotAdmitted::NotNamed(lane)),
            (true, None, Some(lane)) => Err(NotAdmitted::Nothing(lane.clone())),
            (true, None, None) => Err(NotAdmitted::NothingAnywhere),
        }
    }
}
