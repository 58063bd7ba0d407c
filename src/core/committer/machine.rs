//! The committer: the group that is stored next, and the receipts that are due.

use std::collections::BTreeMap;

use super::lane::{Arrival, LaneState, Verdict};
use super::{
    Action, BackedUp, GroupLimits, Input, Lookup, MOST_LANES, Numbered, Record, Refusal, Statement, Way,
};
use crate::chain::Through;
use crate::delivery::Millis;
use crate::transaction::{Epoch, LaneName, Sequence};
use crate::wire::receipt::GapCode;

/// The pause before a failed store is tried again: the first, and the longest.
const RETRY_PAUSE: (Millis, Millis) = (500, 30_000);

/// All lanes of all gateways of one hub.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Committer<R> {
    limits: GroupLimits,
    pub(super) lanes: BTreeMap<LaneName, LaneState>,
    backed_up: BackedUp,
    pub(super) group: Vec<R>,
    pub(super) group_bytes: usize,
    /// How the records of the group have come: a bundle's never share a group with the link's.
    pub(super) way: Way,
    /// The driver is storing the group, and has not reported the outcome yet.
    appending: bool,
    /// Lanes that get a receipt when the group is stored; true: it answers the lane's last question.
    due: BTreeMap<LaneName, bool>,
    failure: Option<StoreFailure>,
}

/// The store has failed: the committer pauses and takes nothing meanwhile. The gateways keep everything.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct StoreFailure {
    retry_at: Millis,
    pause: Millis,
    dropped: u64,
}

impl<R: Record> Committer<R> {
    /// Begins from the store's watermarks, each lane's epochs oldest first, and from the backups that are known.
    #[must_use]
    pub fn new(
        limits: GroupLimits,
        watermarks: impl IntoIterator<Item = (LaneName, Vec<Through>)>,
        backed_up: BackedUp,
    ) -> Self {
        let mut lanes: BTreeMap<_, LaneState> = BTreeMap::new();
        for (name, watermarks) in watermarks {
            lanes.entry(name).or_default().begin_again(watermarks);
        }
        Self {
            limits,
            lanes,
            backed_up,
            group: Vec::new(),
            group_bytes: 0,
            way: Way::Link,
            appending: false,
            due: BTreeMap::new(),
            failure: None,
        }
    }

    /// Takes an event and appends what is to be done. `now` is of a monotonic clock that the caller chose.
    pub fn handle(
        &mut self,
        input: Input<R>,
        now: Millis,
        store: &mut impl Lookup<R>,
        actions: &mut Vec<Action<R>>,
    ) {
        match input {
            Input::Transaction(record) => {
                self.transaction(record, now, store, actions);
                let full =
                    self.group.len() >= self.limits.transactions || self.group_bytes >= self.limits.bytes;
                if full {
                    self.append(store, actions);
                }
            }
            Input::Position { lane, question } => {
                if self.know(&lane, store) {
                    if let Some(state) = self.lanes.get_mut(&lane) {
                        state.ask(question);
                    }
                    self.due.insert(lane, true);
                } else {
                    actions.push(Action::Refuse(lane, Refusal::TooManyLanes));
                }
            }
            Input::Admit(lane) => {
                let is_staged = self.group.iter().any(|record| *record.lane() == lane);
                if let Some(state) = self.lanes.get_mut(&lane) {
                    state.admit();
                    // What the store has lost may count as lost for good now: then it is further at once.
                    let watermarks = store.watermarks_of(&lane);
                    if !is_staged && watermarks != state.watermarks() {
                        state.begin_again(watermarks);
                    }
                }
                // A receipt without an answer makes its gateway try again.
                self.receipt_due(&lane);
            }
            Input::Connected => self.all_due(),
            Input::BackedUp(backed_up) => {
                self.backed_up = backed_up;
                self.all_due();
            }
            Input::Flush if self.appending => {}
            Input::Flush if self.group.is_empty() => self.answer(store, actions),
            Input::Flush => self.append(store, actions),
            // No group is under way that either could report on.
            Input::Stored | Input::StoreFailed if !self.appending => {}
            Input::Stored => self.stored(now, store, actions),
            Input::StoreFailed => self.store_failed(now, store, actions),
        }
    }

    /// The records to put on stable storage: in order, each lane's chain checked.
    #[must_use]
    pub fn group(&self) -> &[R] {
        &self.group
    }

    /// How large its groups may become.
    #[must_use]
    pub fn limits(&self) -> GroupLimits {
        self.limits
    }

    /// Whether [`Input::Flush`] would do anything.
    #[must_use]
    pub fn has_work(&self) -> bool {
        !self.group.is_empty() || !self.due.is_empty()
    }

    /// How far a lane is on stable storage, epochs oldest first.
    #[must_use]
    pub fn watermarks_of(&self, lane: &LaneName) -> Vec<Through> {
        self.lanes.get(lane).map(LaneState::watermarks).unwrap_or_default()
    }

    /// The epoch that [`Input::Admit`] would let through: the one that the lane's gateway has last named as its present one, or
    /// that of a bundle which came after that; `None`: neither has come since the hub started.
    #[must_use]
    pub fn may_admit(&self, lane: &LaneName) -> Option<Epoch> {
        self.lanes.get(lane)?.named()
    }

    /// After how long the store is tried again; `None`: it works.
    #[must_use]
    pub fn retries_in(&self, now: Millis) -> Option<Millis> {
        self.failure.as_ref().map(|failure| failure.retry_at.saturating_sub(now))
    }

    /// The store has failed, and is not tried again yet.
    pub(super) fn is_pausing(&self, now: Millis) -> bool {
        self.failure.as_ref().is_some_and(|failure| now < failure.retry_at)
    }

    /// A group is being stored: nothing may join it any more.
    pub(super) fn is_appending(&self) -> bool {
        self.appending
    }

    fn transaction(
        &mut self,
        record: R,
        now: Millis,
        store: &mut impl Lookup<R>,
        actions: &mut Vec<Action<R>>,
    ) {
        if let Some(failure) = &mut self.failure
            && now < failure.retry_at
        {
            failure.dropped += 1;
            // Its gateway shows why nothing is confirmed.
            if let Some(state) = self.lanes.get(record.lane()) {
                let numbered = record.numbered();
                let expected = state.expected(numbered.epoch);
                self.gap(GapCode::Later, record.lane(), &numbered, expected, actions);
            }
            return;
        }
        // No driver does this. The transaction would count as stored with the group under way, so it is dropped.
        if self.appending {
            return;
        }
        if !self.know(record.lane(), store) {
            actions.push(Action::Refuse(record.lane().clone(), Refusal::TooManyLanes));
            return;
        }
        let numbered = record.numbered();
        let verdict = self.classify(&record, Way::Link, 0, now, store);
        match verdict {
            Verdict::Store => self.stage(record),
            Verdict::Known => self.stage_number(record),
            Verdict::Rival => self.stage_rival(record),
            Verdict::Repeat => {
                self.receipt_due(record.lane());
                actions.push(Action::Repeated(record));
            }
            Verdict::Late => {
                self.gap(GapCode::Link, record.lane(), &numbered, numbered.sequence, actions);
                actions.push(Action::KeepLate(record));
            }
            Verdict::Ahead(expected) => {
                self.gap(GapCode::Missing, record.lane(), &numbered, expected, actions);
            }
            Verdict::Unsigned(expected) => {
                self.refuse(&record, (GapCode::Unverified, expected), Refusal::Unsigned, actions);
            }
            Verdict::Link => {
                self.refuse(&record, (GapCode::Link, numbered.sequence), Refusal::Link, actions);
            }
            Verdict::Admit | Verdict::Hole => {
                let why = if matches!(verdict, Verdict::Hole) { Refusal::Hole } else { Refusal::Admit };
                self.refuse(&record, (GapCode::Admit, numbered.sequence), why, actions);
            }
            Verdict::Epochs => {
                self.refuse(&record, (GapCode::Epochs, numbered.sequence), Refusal::Epochs, actions);
            }
            Verdict::TooLarge => {
                self.refuse(&record, (GapCode::TooLarge, numbered.sequence), Refusal::TooLarge, actions);
            }
            Verdict::Unsure => self.note_failure(now, 1),
        }
    }

    /// Says why a record is not stored.
    fn refuse(
        &mut self,
        record: &R,
        (code, expected): (GapCode, Sequence),
        why: Refusal,
        actions: &mut Vec<Action<R>>,
    ) {
        self.gap(code, record.lane(), &record.numbered(), expected, actions);
        actions.push(Action::Refuse(record.lane().clone(), why));
    }

    /// Makes sure that the lane is known; `false`: its gateway has too many already.
    pub(super) fn know(&mut self, name: &LaneName, store: &impl Lookup<R>) -> bool {
        if self.lanes.contains_key(name) {
            return true;
        }
        let same = |other: &&LaneName| other.practice == name.practice && other.gateway == name.gateway;
        // The map keeps a gateway's lanes next to each other.
        let before = self.lanes.range(..name).rev().map(|(other, _)| other).take_while(same).count();
        let after = self.lanes.range(name..).map(|(other, _)| other).take_while(same).count();
        if before + after >= MOST_LANES {
            return false;
        }
        self.lanes.entry(name.clone()).or_default().begin_again(store.watermarks_of(name));
        true
    }

    /// Asks the lane what to do with a record.
    pub(super) fn classify(
        &mut self,
        record: &R,
        way: Way,
        same_through: Sequence,
        now: Millis,
        store: &mut impl Lookup<R>,
    ) -> Verdict {
        let Some(state) = self.lanes.get_mut(record.lane()) else { return Verdict::Unsure };
        self.way = way;
        let verdict = state.classify(record, &Arrival { way, group: &self.group, same_through, now }, store);
        if verdict == Verdict::Late {
            state.keeps_late(&record.numbered());
        }
        verdict
    }

    pub(super) fn stage(&mut self, record: R) {
        self.receipt_due(record.lane());
        self.group_bytes += record.bytes();
        self.group.push(record);
    }

    pub(super) fn stage_number(&mut self, mut record: R) {
        record.keep_only_number();
        self.stage(record);
    }

    pub(super) fn stage_rival(&mut self, mut record: R) {
        record.mark_rival();
        self.stage(record);
    }

    fn receipt_due(&mut self, lane: &LaneName) {
        if !self.due.contains_key(lane) {
            self.due.insert(lane.clone(), false);
        }
    }

    /// Every lane gets a receipt. The last answer may have been lost with the connection, so its nonce goes out again.
    fn all_due(&mut self) {
        for (name, state) in &self.lanes {
            *self.due.entry(name.clone()).or_default() |= state.question().is_some();
        }
    }

    fn append(&mut self, store: &mut impl Lookup<R>, actions: &mut Vec<Action<R>>) {
        if self.appending || self.group.is_empty() {
            return;
        }
        self.keep_what_is_signed(store, actions);
        if self.group.is_empty() {
            self.answer(store, actions);
        } else {
            self.appending = true;
            actions.push(Action::Append);
        }
    }

    /// Sends a gap notice, unless it was sent for this number and round already.
    pub(super) fn gap(
        &mut self,
        code: GapCode,
        lane: &LaneName,
        numbered: &Numbered,
        expected: Sequence,
        actions: &mut Vec<Action<R>>,
    ) {
        let state = self.lanes.get_mut(lane);
        if let Some(missed) = state.and_then(|state| state.missed(code, numbered, expected)) {
            actions.push(Action::Gap(lane.clone(), missed));
        }
    }

    fn stored(&mut self, now: Millis, store: &mut impl Lookup<R>, actions: &mut Vec<Action<R>>) {
        for record in self.group.iter().filter(|record| record.is_rival()) {
            actions.push(Action::Rival(record.lane().clone(), record.numbered()));
        }
        // Every lane of the group is due a receipt.
        for lane in self.due.keys() {
            if let Some(state) = self.lanes.get_mut(lane) {
                state.stored(now);
                // A store that had lost a part of a lane has more at once, when that part has come again.
                let watermarks = store.watermarks_of(lane);
                if watermarks != state.watermarks() {
                    state.begin_again(watermarks);
                }
            }
        }
        self.end_group();
        if let Some(failure) = self.failure.take() {
            actions.push(Action::Recovered { dropped: failure.dropped });
        }
        self.answer(store, actions);
    }

    /// Of the group, only what the store's watermarks cover counts.
    fn store_failed(&mut self, now: Millis, store: &mut impl Lookup<R>, actions: &mut Vec<Action<R>>) {
        self.note_failure(now, self.group.len() as u64);
        for lane in self.due.keys() {
            if let Some(state) = self.lanes.get_mut(lane) {
                state.begin_again(store.watermarks_of(lane));
            }
        }
        self.end_group();
        // No receipt, except for an open position question.
        self.due.retain(|_, answers| *answers);
        self.answer(store, actions);
    }

    fn end_group(&mut self) {
        self.appending = false;
        self.group.clear();
        self.group_bytes = 0;
    }

    pub(super) fn note_failure(&mut self, now: Millis, lost: u64) {
        let (first, longest) = RETRY_PAUSE;
        let pause = self.failure.as_ref().map_or(first, |failure| (failure.pause * 2).min(longest));
        let dropped = self.failure.as_ref().map_or(0, |failure| failure.dropped) + lost;
        self.failure = Some(StoreFailure { retry_at: now + pause, pause, dropped });
    }

    fn answer(&mut self, store: &mut impl Lookup<R>, actions: &mut Vec<Action<R>>) {
        for (lane, answers) in std::mem::take(&mut self.due) {
            let Some(state) = self.lanes.get(&lane) else { continue };
            let end = state.end();
            let question = state.question().filter(|_| answers);
            let held = |point| state.holds(&lane, &point, store);
            let (nonce, holds_point) = match question.map(|question| (question, question.point.map(held))) {
                None => (None, None),
                Some((question, None)) => (Some(question.nonce.clone()), None),
                // The store cannot say now: the gateway asks again.
                Some((_, Some(None))) => (None, None),
                Some((question, Some(held))) => (Some(question.nonce.clone()), held),
            };
            let backed_up_through = end
                .zip(self.backed_up.get(&lane))
                .filter(|(end, (epoch, _))| end.epoch == *epoch)
                // A backup cannot have more than the store has, unless the store was restored from an older copy.
                .map(|(end, (_, through))| end.through.min(*through));
            actions.push(Action::Receipt(lane, Statement { end, holds_point, backed_up_through, nonce }));
        }
    }
}
