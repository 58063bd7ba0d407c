//! The committer: the group that is stored next, and the receipts that are due.

use std::collections::BTreeMap;

use super::lane::{Arrival, LaneState, Verdict};
use super::pause::Pause;
use super::{
    Action, BackedUp, GroupLimits, Input, Lookup, MOST_LANES, Missed, Numbered, Record, Refusal, Statement,
    Way,
};
use crate::chain::Through;
use crate::delivery::Millis;
use crate::transaction::{Epoch, LaneName, Sequence};
use crate::wire::receipt::GapCode;

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
    /// The store has failed: the committer takes nothing meanwhile.
    pub(super) failure: Option<Pause>,
}

/// Why nothing of a lane is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NotKnown {
    /// Its gateway has too many lanes already.
    TooManyLanes,
    /// The store cannot use its files.
    OutOfUse,
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
            lanes.entry(name).or_default().begin_again(Some(watermarks));
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
            Input::Position { lane, question } => match self.know(&lane, store) {
                Ok(()) => {
                    if let Some(state) = self.lanes.get_mut(&lane) {
                        state.ask(question);
                    }
                    self.due.insert(lane, true);
                }
                Err(NotKnown::TooManyLanes) => actions.push(Action::Refuse(lane, Refusal::TooManyLanes)),
                // No answer: it would say that nothing is stored.
                Err(NotKnown::OutOfUse) => {
                    let later = Missed { code: GapCode::Later, epoch: question.epoch, expected: 0, round: 0 };
                    actions.push(Action::Gap(lane, later));
                }
            },
            Input::Admit(lane) => {
                if let Some(state) = self.lanes.get_mut(&lane) {
                    state.admit();
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
            Input::ReadAgain(lane) => {
                if let Some(state) = self.lanes.get_mut(&lane).filter(|_| self.group.is_empty()) {
                    state.begin_again(store.watermarks_of(&lane));
                }
            }
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
        if self.is_pausing(record.lane(), now) {
            return self.drop_for_now(&record, now, actions);
        }
        // No driver does this. The transaction would count as stored with the group under way, so it is dropped.
        if self.appending {
            return;
        }
        match self.know(record.lane(), store) {
            Ok(()) => {}
            Err(NotKnown::TooManyLanes) => {
                return actions.push(Action::Refuse(record.lane().clone(), Refusal::TooManyLanes));
            }
            Err(NotKnown::OutOfUse) => return self.later(&record, actions),
        }
        let numbered = record.numbered();
        let verdict = self.classify(&record, Way::Link, 0, now, store);
        if matches!(verdict, Verdict::Store | Verdict::Known | Verdict::Rival) {
            self.can_say(record.lane(), actions);
        }
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
            Verdict::Unsure => {
                self.cannot_say(record.lane(), now);
                self.later(&record, actions);
            }
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

    /// Makes sure that the lane is known: one that was out of use begins again from what the store has.
    pub(super) fn know(&mut self, name: &LaneName, store: &impl Lookup<R>) -> Result<(), NotKnown> {
        if let Some(state) = self.lanes.get_mut(name) {
            if state.is_out_of_use() {
                state.begin_again(store.watermarks_of(name));
            }
            return if state.is_out_of_use() { Err(NotKnown::OutOfUse) } else { Ok(()) };
        }
        let same = |other: &&LaneName| other.practice == name.practice && other.gateway == name.gateway;
        // The map keeps a gateway's lanes next to each other.
        let before = self.lanes.range(..name).rev().map(|(other, _)| other).take_while(same).count();
        let after = self.lanes.range(name..).map(|(other, _)| other).take_while(same).count();
        if before + after >= MOST_LANES {
            return Err(NotKnown::TooManyLanes);
        }
        let state = self.lanes.entry(name.clone()).or_default();
        state.begin_again(store.watermarks_of(name));
        if state.is_out_of_use() { Err(NotKnown::OutOfUse) } else { Ok(()) }
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
        // Every lane of the group is due a receipt.
        for lane in self.due.keys() {
            if let Some(state) = self.lanes.get_mut(lane) {
                let watermarks = store.watermarks_of(lane);
                if watermarks.is_some() {
                    state.stored(now);
                }
                // A store that had lost a part of a lane has more at once, when that part has come again; and nothing counts of a
                // lane whose files have failed.
                if watermarks.as_deref() != Some(&state.watermarks()[..]) {
                    state.begin_again(watermarks);
                }
            }
        }
        let is_out = |lane: &LaneName| self.lanes.get(lane).is_some_and(LaneState::is_out_of_use);
        for record in self.group.iter().filter(|record| record.is_rival() && !is_out(record.lane())) {
            actions.push(Action::Rival(record.lane().clone(), record.numbered()));
        }
        self.end_group(actions);
        if let Some(failure) = self.failure.take() {
            actions.push(Action::Recovered { lane: None, dropped: failure.dropped });
        }
        self.answer(store, actions);
    }

    /// Of the group, only what the store's watermarks cover counts.
    fn store_failed(&mut self, now: Millis, store: &mut impl Lookup<R>, actions: &mut Vec<Action<R>>) {
        self.failure = Some(Pause::next(self.failure, now, self.group.len() as u64));
        for lane in self.due.keys() {
            if let Some(state) = self.lanes.get_mut(lane) {
                state.begin_again(store.watermarks_of(lane));
            }
        }
        self.end_group(actions);
        // No receipt, except for an open position question.
        self.due.retain(|_, answers| *answers);
        self.answer(store, actions);
    }

    fn end_group(&mut self, actions: &mut Vec<Action<R>>) {
        self.appending = false;
        self.group_bytes = 0;
        let mut group = std::mem::take(&mut self.group);
        for record in &group {
            if self.lanes.get(record.lane()).is_some_and(LaneState::is_out_of_use) {
                self.later(record, actions);
            }
        }
        // The next group takes its room.
        group.clear();
        self.group = group;
    }

    fn answer(&mut self, store: &mut impl Lookup<R>, actions: &mut Vec<Action<R>>) {
        for (lane, answers) in std::mem::take(&mut self.due) {
            let Some(state) = self.lanes.get_mut(&lane) else { continue };
            if state.is_out_of_use() {
                state.begin_again(store.watermarks_of(&lane));
            }
            // Nothing is said of it, least of all that its line is empty.
            if state.is_out_of_use() {
                continue;
            }
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
