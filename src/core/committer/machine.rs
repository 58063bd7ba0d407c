//! The committer: the group that is stored next, and the receipts that are due.

use std::collections::BTreeMap;

use super::lane::{LaneState, Verdict};
use super::{Action, BackedUp, GroupLimits, Input, Lookup, MOST_LANES, Record, Refusal, Statement};
use crate::delivery::{Millis, Through};
use crate::transaction::{LaneName, TransactionId};

/// How long before a store that has failed is tried again, and at most.
const TRIAL: (Millis, Millis) = (500, 30_000);

/// All lanes of all gateways of one hub.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Committer<R> {
    limits: GroupLimits,
    lanes: BTreeMap<LaneName, LaneState>,
    backed_up: BackedUp,
    group: Vec<R>,
    group_bytes: usize,
    /// The driver stores the group; it has not said yet what became of it.
    appending: bool,
    /// Lanes that get a receipt when the group is stored, with the nonce of the question that it answers.
    due: BTreeMap<LaneName, Option<String>>,
    trouble: Option<Trouble>,
}

/// The store has failed: it is left alone for a while, and what comes meanwhile is not taken. The gateways keep everything.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Trouble {
    next_trial: Millis,
    pause: Millis,
    dropped: u64,
}

impl<R: Record> Committer<R> {
    /// Begins from the store's marks, each lane's epochs oldest first, and from what is said of backups.
    #[must_use]
    pub fn new(
        limits: GroupLimits,
        marks: impl IntoIterator<Item = (LaneName, Vec<Through>)>,
        backed_up: BackedUp,
    ) -> Self {
        let mut lanes: BTreeMap<_, LaneState> = BTreeMap::new();
        for (name, marks) in marks {
            lanes.entry(name).or_default().begin_again(marks);
        }
        Self {
            limits,
            lanes,
            backed_up,
            group: Vec::new(),
            group_bytes: 0,
            appending: false,
            due: BTreeMap::new(),
            trouble: None,
        }
    }

    /// Something has happened. `now` is of a monotonic clock that the caller chose.
    pub fn handle(
        &mut self,
        input: Input<R>,
        now: Millis,
        store: &mut impl Lookup,
        actions: &mut Vec<Action<R>>,
    ) {
        match input {
            Input::Transaction(record) => {
                self.transaction(record, now, store, actions);
                let full =
                    self.group.len() >= self.limits.transactions || self.group_bytes >= self.limits.bytes;
                if full {
                    self.append(actions);
                }
            }
            Input::Position { lane, nonce } => {
                if self.know(&lane, store) {
                    if let Some(state) = self.lanes.get_mut(&lane) {
                        state.ask(nonce.clone());
                    }
                    self.due.insert(lane, Some(nonce));
                } else {
                    actions.push(Action::Refuse(lane, Refusal::TooManyLanes));
                }
            }
            Input::Connected => self.all_due(),
            Input::BackedUp(backed_up) => {
                self.backed_up = backed_up;
                self.all_due();
            }
            Input::Flush if self.appending => {}
            Input::Flush if self.group.is_empty() => self.answer(actions),
            Input::Flush => self.append(actions),
            // Without a group under way there is nothing that either could speak of.
            Input::Stored | Input::StoreFailed if !self.appending => {}
            Input::Stored => self.stored(actions),
            Input::StoreFailed => self.store_failed(now, store, actions),
        }
    }

    /// What is to be put on stable storage: in order, each lane's chain checked.
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

    /// What is on stable storage of a lane, epochs oldest first.
    #[must_use]
    pub fn marks_of(&self, lane: &LaneName) -> Vec<Through> {
        self.lanes.get(lane).map(LaneState::marks).unwrap_or_default()
    }

    /// The store has failed, and is left alone still.
    pub(super) fn is_left_alone(&self, now: Millis) -> bool {
        self.trouble.as_ref().is_some_and(|trouble| now < trouble.next_trial)
    }

    /// A group is being stored: nothing may join it any more.
    pub(super) fn is_appending(&self) -> bool {
        self.appending
    }

    pub(super) fn lane(&self, name: &LaneName) -> Option<&LaneState> {
        self.lanes.get(name)
    }

    fn transaction(&mut self, record: R, now: Millis, store: &mut impl Lookup, actions: &mut Vec<Action<R>>) {
        if let Some(trouble) = &mut self.trouble
            && now < trouble.next_trial
        {
            trouble.dropped += 1;
            return;
        }
        // No driver gives one while it stores a group. It would count as stored with that group, so it counts as lost.
        if self.appending {
            return;
        }
        if !self.know(record.lane(), store) {
            actions.push(Action::Refuse(record.lane().clone(), Refusal::TooManyLanes));
            return;
        }
        match self.judge(&record, false, store) {
            Verdict::Store => self.stage(record),
            Verdict::Known => self.stage_number(record),
            Verdict::Repeat => {
                self.receipt_due(record.lane());
                actions.push(Action::Repeated(record));
            }
            // So that the gateway notices that there is another hub.
            Verdict::Unasked => self.receipt_due(record.lane()),
            Verdict::Ahead(expected) => {
                let state = self.lanes.get_mut(record.lane());
                if let Some(missed) = state.and_then(|state| state.missed(&record.numbered(), expected)) {
                    actions.push(Action::Gap(record.lane().clone(), missed));
                }
            }
            Verdict::Diverged => {
                self.receipt_due(record.lane());
                actions.push(Action::Refuse(record.lane().clone(), Refusal::Chain));
            }
            Verdict::Unsure => self.has_trouble(now, 1),
        }
    }

    /// Makes sure that the lane is known; `false`: its gateway has too many already.
    pub(super) fn know(&mut self, name: &LaneName, store: &impl Lookup) -> bool {
        if self.lanes.contains_key(name) {
            return true;
        }
        let same = |other: &&LaneName| other.practice == name.practice && other.gateway == name.gateway;
        // The lanes of a gateway stand together.
        let before = self.lanes.range(..name).rev().map(|(other, _)| other).take_while(same).count();
        let behind = self.lanes.range(name..).map(|(other, _)| other).take_while(same).count();
        if before + behind >= MOST_LANES {
            return false;
        }
        self.lanes.entry(name.clone()).or_default().begin_again(store.marks_of(name));
        true
    }

    /// Asks the lane, by one of its two ways.
    pub(super) fn judge(&mut self, record: &R, by_hand: bool, store: &mut impl Lookup) -> Verdict {
        let name = record.lane();
        let Some(state) = self.lanes.get_mut(name) else { return Verdict::Unasked };
        let group = &self.group;
        let known = |id: TransactionId| {
            let here = |staged: &R| staged.lane() == name && !staged.is_void() && staged.numbered().id == id;
            if group.iter().any(here) { Some(true) } else { store.has_id(name, id) }
        };
        if by_hand { state.judge(record, known) } else { state.arrive(record, known) }
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

    fn receipt_due(&mut self, lane: &LaneName) {
        if !self.due.contains_key(lane) {
            self.due.insert(lane.clone(), None);
        }
    }

    /// Every lane gets a receipt. An answer may have been lost with the connection before, so the last nonce goes with it
    /// again.
    fn all_due(&mut self) {
        for (name, state) in &self.lanes {
            let question = self.due.entry(name.clone()).or_default();
            if question.is_none() {
                *question = state.asked().cloned();
            }
        }
    }

    fn append(&mut self, actions: &mut Vec<Action<R>>) {
        if !self.appending && !self.group.is_empty() {
            self.appending = true;
            actions.push(Action::Append);
        }
    }

    fn stored(&mut self, actions: &mut Vec<Action<R>>) {
        // Every lane of the group is due a receipt.
        for lane in self.due.keys() {
            if let Some(state) = self.lanes.get_mut(lane) {
                state.stored();
            }
        }
        self.end_group();
        if let Some(trouble) = self.trouble.take() {
            actions.push(Action::Recovered { dropped: trouble.dropped });
        }
        self.answer(actions);
    }

    /// Nothing of the group counts but what the store's marks say.
    fn store_failed(&mut self, now: Millis, store: &impl Lookup, actions: &mut Vec<Action<R>>) {
        self.has_trouble(now, self.group.len() as u64);
        for lane in self.due.keys() {
            if let Some(state) = self.lanes.get_mut(lane) {
                state.begin_again(store.marks_of(lane));
            }
        }
        self.end_group();
        // No receipt, except to those who ask where the hub is.
        self.due.retain(|_, question| question.is_some());
        self.answer(actions);
    }

    fn end_group(&mut self) {
        self.appending = false;
        self.group.clear();
        self.group_bytes = 0;
    }

    pub(super) fn has_trouble(&mut self, now: Millis, lost: u64) {
        let pause = self.trouble.as_ref().map_or(TRIAL.0, |trouble| (trouble.pause * 2).min(TRIAL.1));
        let dropped = self.trouble.as_ref().map_or(0, |trouble| trouble.dropped) + lost;
        self.trouble = Some(Trouble { next_trial: now + pause, pause, dropped });
    }

    /// An epoch that is not in a receipt is not known here; none at all: nothing of the lane is stored.
    fn answer(&mut self, actions: &mut Vec<Action<R>>) {
        for (lane, nonce) in std::mem::take(&mut self.due) {
            let epochs = self.marks_of(&lane);
            let word = epochs.last().zip(self.backed_up.get(&lane));
            let backed_up_through = word
                .filter(|(newest, (epoch, _))| newest.epoch == *epoch)
                // More than is here cannot be in it: the store was restored from an older copy, whose word is younger.
                .map(|(newest, (_, through))| newest.through.min(*through));
            actions.push(Action::Receipt(lane, Statement { epochs, backed_up_through, nonce }));
        }
    }
}
